/* test_inspect.c - what mm_inspect says of every kind of file, whole and damaged. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "io/checkpoint_format.h"
#include "io/files.h"
#include "io/inspect.h"
#include "tests/unit/checkpoint_state.h"

static char run_dir[] = "/tmp/test_inspect.XXXXXX";
static struct mm_error err;

static const char *const files[] = {"part-00000.h5", "part-00001.h5", "part-00002.h5"};

static void put(hid_t file, const char *name, int rank, const hsize_t *dims, const void *data) {
    hid_t space = H5Screate_simple(rank, dims, NULL);
    hid_t set = H5Dcreate2(file, name, H5T_STD_U32LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(H5Dwrite(set, H5T_NATIVE_UINT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
    H5Dclose(set);
    H5Sclose(space);
}

static void put_origin(hid_t file, uint32_t vocab) {
    hid_t space = H5Screate(H5S_SCALAR), text = H5Tcopy(H5T_C_S1);
    H5Tset_size(text, 12);
    hid_t id = H5Acreate2(file, "vocab_size", H5T_STD_U32LE, space, H5P_DEFAULT, H5P_DEFAULT);
    H5Awrite(id, H5T_NATIVE_UINT32, &vocab);
    H5Aclose(id);
    id = H5Acreate2(file, "source", text, space, H5P_DEFAULT, H5P_DEFAULT);
    H5Awrite(id, text, "made\x1b[2J up");
    H5Aclose(id);
    H5Tclose(text);
    H5Sclose(space);
}

/* Inspect ----------------------------------------------------------------------------------- */

/* What mm_inspect printed, in *text (mm_free). */
static enum mm_status inspect(const char *path, char **text) {
    char *out = mm_format("%s/out", run_dir);
    fflush(stdout);
    int before = dup(1), fd = open(out, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    dup2(fd, 1);
    enum mm_status status = mm_inspect(path, &err);
    fflush(stdout);
    dup2(before, 1);
    close(before);
    close(fd);
    assert_ok(mm_file_read(out, text, NULL, &err));
    unlink(out);
    mm_free(out);
    return status;
}

static void expect_inspect(const char *path, enum mm_status status, const char *words) {
    char *text;
    assert_int_equal(inspect(path, &text), status);
    if (!strstr(text, words))
        fail_msg("does not say '%s':\n%s", words, text);
    mm_free(text);
}

static void checkpoints(void **state) {
    (void)state;
    char *folder = write_three_parts(run_dir);
    char *whole = mm_format("%s/%s", folder, MM_CHECKPOINT_WHOLE);
    char *part = mm_format("%s/%s", folder, files[1]);
    expect_inspect(folder, MM_OK, "base/a two rows [2, 9] float32  min ");
    expect_inspect(whole, MM_OK, "    seed: 7\n    name: \"gr\xc3\xbc\xc3\x9f");
    expect_inspect(whole, MM_OK, "NaN 0\nstate          intact\n");
    expect_inspect(part, MM_OK,
                   "adversary/model.layers.0.mlp.gate_proj.weight [3, 5] float32 from "
                   "row 3  min");
    expect_inspect(run_dir, MM_OK, "    7  intact");
    assert_int_equal(truncate(part, 3000), 0);
    expect_inspect(folder, MM_BAD_INPUT, "part-00001.h5: damaged");
    expect_inspect(folder, MM_BAD_INPUT, "[2, 9] float32\n");
    assert_non_null(strstr(err.text, "part-00001.h5: damaged"));
    expect_inspect(part, MM_BAD_INPUT, "state          damaged");
    expect_inspect(run_dir, MM_BAD_INPUT, "    7  damaged: ");
    assert_int_equal(unlink(whole), 0);
    expect_inspect(folder, MM_BAD_INPUT, "checkpoint.h5");
    mm_free(part);
    part = mm_format("%s/%s", folder, files[2]);
    expect_inspect(part, MM_OK, "unknown: no checkpoint.h5");
    mm_free(part);
    mm_free(whole);
    mm_free(folder);
}

static void data_files(void **state) {
    (void)state;
    char *path = mm_format("%s/data.h5", run_dir);
    const uint32_t tokens[6] = {1, 2, 3, 4, 5, 6}, offsets[3] = {0, 2, 6}, answers[2] = {3, 0};
    const uint32_t choices[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    put_origin(file, 7);
    put(file, "tokens", 2, (hsize_t[]){2, 3}, tokens);
    H5Fclose(file);
    expect_inspect(path, MM_OK, "token file");
    expect_inspect(path, MM_OK, "examples       2\ncontext        3\n");
    expect_inspect(path, MM_OK, "tokens  min 1  max 6  mean 3.5\nstate          intact\n");
    expect_inspect(path, MM_OK, "source: made?[2J up\n"); /* no terminal is steered */

    file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    put_origin(file, 6); /* the largest token is beyond */
    put(file, "tokens", 2, (hsize_t[]){2, 3}, tokens);
    H5Fclose(file);
    expect_inspect(path, MM_BAD_INPUT, "damaged: ");

    file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    put(file, "prompts", 1, (hsize_t[]){6}, tokens);
    put(file, "offsets", 1, (hsize_t[]){3}, offsets);
    put(file, "choices", 2, (hsize_t[]){2, 4}, choices);
    put(file, "answers", 1, (hsize_t[]){2}, answers);
    H5Fclose(file);
    expect_inspect(path, MM_OK, "questions      2\nlongest prompt 4\n");

    file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    H5Fclose(file);
    expect_inspect(path, MM_BAD_INPUT, "");
    assert_non_null(strstr(err.text, "neither a token file"));
    unlink(path);
    expect_inspect(path, MM_BAD_INPUT, "");
    expect_inspect(run_dir, MM_BAD_INPUT, "");
    assert_non_null(strstr(err.text, "neither a checkpoint nor a run folder"));
    mm_free(path);
}

static int begin(void **state) {
    (void)state;
    return mm_folder_remove(run_dir, &err) || mm_folder_make(run_dir, &err);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(checkpoints),
        TEST(data_files),
    };
    if (!mkdtemp(run_dir))
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return failed + (mm_folder_remove(run_dir, &err) != MM_OK);
}
