/* test_dataset.c - token and multiple-choice files: what is read, and that no file, however wrong,
 * gets further than an error text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/dataset.h"
#include "io/h5.h"
#include "tests/unit/h5_cases.h"

static char folder[] = "/tmp/test_dataset.XXXXXX";
static char path[64];
static struct mm_error err;

/* Writing ----------------------------------------------------------------------------------- */

static hid_t create(void) {
    return H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
}

static const hsize_t shape[2] = {5, 4};

static void tokens_of(int64_t tokens[20]) {
    for (int i = 0; i < 20; i++)
        tokens[i] = i * 3;
}

/* A good token file [5, 4] with values 0, 3, 6 ... 57, but value `bad` at row 3, column 1. */
static void write_tokens(hid_t type, hid_t dcpl, int64_t bad) {
    int64_t tokens[20];
    uint32_t vocab = 60;
    tokens_of(tokens);
    tokens[13] = bad;
    hid_t file = create();
    put_number(file, "vocab_size", H5T_NATIVE_UINT32, &vocab);
    put_data(file, "tokens", 2, shape, type, H5T_NATIVE_INT64, tokens, dcpl);
    H5Fclose(file);
}

static enum mm_status read_tokens(size_t context_length, uint32_t vocab) {
    struct mm_dataset set;
    enum mm_status status = mm_dataset_read(&set, path, context_length, vocab, &err);
    mm_dataset_free(&set);
    return status;
}

static void expect_bad(const char *words) {
    assert_int_equal(read_tokens(2, 60), MM_BAD_INPUT);
    if (!strstr(err.text, words) || !strstr(err.text, path))
        fail_msg("'%s' does not say '%s'", err.text, words);
}

/* Token files ------------------------------------------------------------------------------- */

static void reads_every_integer_type(void **state) {
    (void)state;
    const hid_t types[] = {H5T_STD_U8LE,  H5T_STD_I8LE,  H5T_STD_U16BE,
                           H5T_STD_I16LE, H5T_STD_U32LE, H5T_STD_U32BE,
                           H5T_STD_I32LE, H5T_STD_I64BE, H5T_STD_U64LE};
    char first[33], hash[33]; /* of what is read, however it is stored */
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        struct mm_dataset set;
        write_tokens(types[t], H5P_DEFAULT, 39);
        assert_int_equal(mm_dataset_read(&set, path, 3, 60, &err), MM_OK);
        assert_int_equal(set.examples, 5);
        assert_int_equal(set.context, 4);
        assert_int_equal(set.context_length, 3);
        assert_int_equal(set.vocab_size, 60);
        for (size_t i = 0; i < 15; i++)
            assert_int_equal(set.tokens[i], (i / 3 * 4 + i % 3) * 3);
        mm_dataset_hash(&set, t ? hash : first);
        assert_string_equal(t ? hash : first, first);
        set.tokens[14]++;
        mm_dataset_hash(&set, hash);
        assert_string_not_equal(hash, first);
        mm_dataset_free(&set);
    }
}

static void reads_chunked_and_compressed(void **state) {
    (void)state;
    hid_t dcpl = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_chunk(dcpl, 2, (hsize_t[]){2, 3});
    H5Pset_deflate(dcpl, 9);
    write_tokens(H5T_STD_U32LE, dcpl, 39);
    H5Pclose(dcpl);
    assert_int_equal(read_tokens(4, 58), MM_OK);
    assert_int_equal(read_tokens(0, 0), MM_OK);
}

/* HDF5 1.10 reads beyond its buffers in these, and asks plugins for filters that it lacks. */
static void refuses_other_filters(void **state) {
    (void)state;
    hid_t dcpl = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_chunk(dcpl, 2, (hsize_t[]){2, 3});
    H5Pset_shuffle(dcpl);
    H5Pset_deflate(dcpl, 1);
    H5Pset_fletcher32(dcpl);
    write_tokens(H5T_STD_U32LE, dcpl, 39);
    assert_int_equal(read_tokens(4, 58), MM_OK);
    H5Pclose(dcpl);
    dcpl = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_chunk(dcpl, 2, (hsize_t[]){2, 3});
    H5Pset_scaleoffset(dcpl, H5Z_SO_INT, 0); /* alone: behind others it writes beyond its buffer */
    write_tokens(H5T_STD_U32LE, dcpl, 39);
    H5Pclose(dcpl);
    expect_bad("filtered by more than gzip");
}

static void reads_more_than_a_buffer(void **state) {
    (void)state;
    enum { ROWS = 3001, COLS = 101 };
    struct mm_dataset set;
    int64_t *tokens = calloc(ROWS * COLS, sizeof *tokens);
    for (int i = 0; i < ROWS * COLS; i++)
        tokens[i] = i;
    hid_t file = create();
    put_data(file, "tokens", 2, (hsize_t[]){ROWS, COLS}, H5T_STD_U32LE, H5T_NATIVE_INT64, tokens,
             H5P_DEFAULT);
    H5Fclose(file);
    free(tokens);
    assert_int_equal(mm_dataset_read(&set, path, 100, ROWS * COLS, &err), MM_OK);
    assert_int_equal(set.vocab_size, 0);
    for (size_t i = 0; i < ROWS * 100; i++)
        if (set.tokens[i] != i / 100 * COLS + i % 100)
            fail_msg("element %zu", i);
    mm_dataset_free(&set);
    assert_int_equal(read_tokens(101, ROWS * COLS - 1), MM_BAD_INPUT);
    assert_non_null(strstr(err.text, "row 3000, column 100 of 'tokens' is 303100"));
}

static void batches_wrap(void **state) {
    (void)state;
    struct mm_dataset set;
    struct mm_sequences out = mm_sequences_create(3, 2);
    write_tokens(H5T_STD_U32LE, H5P_DEFAULT, 39);
    assert_int_equal(mm_dataset_read(&set, path, 2, 60, &err), MM_OK);
    /* Batch 4 of 3 is rows 12, 13, 14 of 5: 2, 3, 4; batch 3 ends with row 11: 1. */
    mm_dataset_batch(&set, 4, 3, 0, 3, &out, 0);
    assert_memory_equal(out.tokens, ((uint32_t[]){24, 27, 36, 39, 48, 51}), 24);
    mm_dataset_batch(&set, 3, 3, 1, 2, &out, 0);
    assert_memory_equal(out.tokens, ((uint32_t[]){0, 3, 12, 15}), 16);
    /* Batches larger than the file. */
    mm_dataset_batch(&set, 1, 7, 2, 1, &out, 0);
    assert_memory_equal(out.tokens, ((uint32_t[]){48, 51}), 8);
    mm_sequences_free(&out);
    mm_dataset_free(&set);
}

/* Rows from the third on, round to the second, without those that another set begins with. */
static void views_leave_rows_out(void **state) {
    (void)state;
    struct mm_dataset set, view;
    struct mm_sequences out = mm_sequences_create(4, 2);
    uint32_t others[] = {36, 39, 7, 7, 0, 3}; /* row 3, none, row 0 */
    struct mm_dataset other = {.examples = 3, .context_length = 2, .tokens = others};
    write_tokens(H5T_STD_U32LE, H5P_DEFAULT, 39);
    assert_int_equal(mm_dataset_read(&set, path, 2, 60, &err), MM_OK);
    mm_dataset_view(&view, &set, 2, &other, 2);
    assert_int_equal(view.examples, 4);
    mm_dataset_batch(&view, 0, 4, 0, 4, &out, 0);
    assert_memory_equal(out.tokens, ((uint32_t[]){24, 27, 48, 51, 0, 3, 12, 15}), 32);
    mm_dataset_batch(&view, 1, 3, 0, 3, &out, 0); /* rows 4, 5, 6 of 4 */
    assert_memory_equal(out.tokens, ((uint32_t[]){12, 15, 24, 27, 48, 51}), 24);
    mm_dataset_free(&view);
    mm_dataset_view(&view, &set, 0, &other, 9); /* all of the other's three */
    assert_int_equal(view.examples, 3);
    mm_dataset_free(&view);
    mm_dataset_view(&view, &set, 5, &set, 5);
    assert_int_equal(view.examples, 0);
    mm_dataset_free(&view);
    mm_dataset_free(&set);
    mm_sequences_free(&out);
}

static void values_out_of_range(void **state) {
    (void)state;
    write_tokens(H5T_STD_I32LE, H5P_DEFAULT, -1);
    expect_bad("row 3, column 1 of 'tokens' is -1: it must be from 0 to 59");
    write_tokens(H5T_STD_I64LE, H5P_DEFAULT, 60);
    expect_bad("row 3, column 1 of 'tokens' is 60");
    assert_int_equal(read_tokens(2, 61), MM_OK);
    assert_int_equal(read_tokens(1, 60), MM_OK); /* that column is not used */
    assert_int_equal(read_tokens(2, 0), MM_BAD_INPUT);
    write_tokens(H5T_STD_I64LE, H5P_DEFAULT, (int64_t)1 << 32);
    expect_bad("is 4294967296");
    write_tokens(H5T_STD_I64LE, H5P_DEFAULT, INT64_MIN);
    expect_bad("is -9223372036854775808");
    write_tokens(H5T_STD_U64LE, H5P_DEFAULT, INT64_MAX);
    expect_bad("is 9223372036854775807");
}

static void wrong_datasets(void **state) {
    (void)state;
    int64_t tokens[20];
    double floats[20] = {0};
    tokens_of(tokens);
    hid_t file = create();
    H5Fclose(file);
    expect_bad("no dataset 'tokens'");

    file = create();
    H5Gclose(H5Gcreate2(file, "tokens", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    H5Fclose(file);
    expect_bad("as a dataset");

    for (int rank = 1; rank <= 3; rank += 2) {
        file = create();
        put_data(file, "tokens", rank, (hsize_t[]){rank == 1 ? 20 : 5, 2, 2}, H5T_STD_U32LE,
                 H5T_NATIVE_INT64, tokens, H5P_DEFAULT);
        H5Fclose(file);
        expect_bad("dimensions, not 2");
    }

    file = create();
    put_data(file, "tokens", 2, shape, H5T_IEEE_F32LE, H5T_NATIVE_DOUBLE, floats, H5P_DEFAULT);
    H5Fclose(file);
    expect_bad("does not hold integers");

    hid_t compound = H5Tcreate(H5T_COMPOUND, 8);
    H5Tinsert(compound, "token", 0, H5T_NATIVE_INT64);
    file = create();
    put_data(file, "tokens", 2, shape, compound, compound, tokens, H5P_DEFAULT);
    H5Fclose(file);
    H5Tclose(compound);
    expect_bad("does not hold integers");

    file = create();
    put_data(file, "tokens", 2, (hsize_t[]){0, 4}, H5T_STD_U32LE, H5T_NATIVE_INT64, NULL,
             H5P_DEFAULT);
    H5Fclose(file);
    expect_bad("is empty");

    write_tokens(H5T_STD_U32LE, H5P_DEFAULT, 39);
    assert_int_equal(read_tokens(5, 60), MM_BAD_INPUT);
    assert_non_null(strstr(err.text, "fewer than context_length 5"));
}

static void huge_shapes(void **state) {
    (void)state;
    const hsize_t huge[2] = {(hsize_t)1 << 40, (hsize_t)1 << 20};
    hid_t file = create(), dcpl = H5Pcreate(H5P_DATASET_CREATE);
    put_data(file, "tokens", 2, huge, H5T_STD_U32LE, H5T_NATIVE_INT64, NULL, H5P_DEFAULT);
    H5Fclose(file);
    expect_bad("holds no data");

    /* Allocated, but as a hole that no disk could fill. */
    file = create();
    H5Pset_alloc_time(dcpl, H5D_ALLOC_TIME_EARLY);
    H5Pset_fill_time(dcpl, H5D_FILL_TIME_NEVER);
    put_data(file, "tokens", 2, (hsize_t[]){1 << 20, 1 << 10}, H5T_STD_U32LE, H5T_NATIVE_INT64,
             NULL, dcpl);
    H5Fclose(file);
    H5Pclose(dcpl);
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(truncate(path, info.st_size / 2), 0);
    expect_bad("not an HDF5 file, or damaged");

    int64_t one = 1;
    for (int few = 0; few < 2; few++) {
        file = create();
        dcpl = H5Pcreate(H5P_DATASET_CREATE);
        H5Pset_chunk(dcpl, 2, (hsize_t[]){1, 1});
        put_data(file, "tokens", 2, few ? (hsize_t[]){2, 2} : huge, H5T_STD_U32LE, H5T_NATIVE_INT64,
                 NULL, dcpl);
        hid_t set = H5Dopen2(file, "tokens", H5P_DEFAULT), space = H5Dget_space(set);
        hid_t memory = H5Screate(H5S_SCALAR);
        H5Sselect_elements(space, H5S_SELECT_SET, 1, (hsize_t[]){0, 0});
        H5Dwrite(set, H5T_NATIVE_INT64, memory, space, H5P_DEFAULT, &one);
        H5Sclose(memory);
        H5Sclose(space);
        H5Dclose(set);
        H5Pclose(dcpl);
        H5Fclose(file);
        expect_bad(few ? "holds no data, or only a part" : "tokens");
    }
}

/* Data that lies in another file may be any file of this user. */
static void data_elsewhere(void **state) {
    (void)state;
    char other[80];
    snprintf(other, sizeof other, "%s/other.h5", folder);
    write_tokens(H5T_STD_U32LE, H5P_DEFAULT, 39);
    assert_int_equal(rename(path, other), 0);

    hid_t file = create();
    H5Lcreate_external("other.h5", "/tokens", file, "tokens", H5P_DEFAULT, H5P_DEFAULT);
    H5Fclose(file);
    expect_bad("a link to elsewhere");

    file = create();
    H5Lcreate_soft("/nowhere", file, "tokens", H5P_DEFAULT, H5P_DEFAULT);
    H5Fclose(file);
    expect_bad("tokens");

    file = create();
    hid_t dcpl = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_external(dcpl, "/etc/passwd", 0, 80);
    put_data(file, "tokens", 2, shape, H5T_STD_U32LE, H5T_NATIVE_INT64, NULL, dcpl);
    H5Pclose(dcpl);
    H5Fclose(file);
    expect_bad("in another file");

    file = create();
    dcpl = H5Pcreate(H5P_DATASET_CREATE);
    hid_t space = H5Screate_simple(2, shape, NULL);
    H5Pset_virtual(dcpl, space, "other.h5", "/tokens", space);
    put_data(file, "tokens", 2, shape, H5T_STD_U32LE, H5T_NATIVE_INT64, NULL, dcpl);
    H5Sclose(space);
    H5Pclose(dcpl);
    H5Fclose(file);
    expect_bad("in other files");
}

/* On the way to a dataset, too, as in a checkpoint's groups. */
static void group_elsewhere(void **state) {
    (void)state;
    char other[80];
    hid_t set;
    snprintf(other, sizeof other, "%s/other.h5", folder);
    write_tokens(H5T_STD_U32LE, H5P_DEFAULT, 39);
    assert_int_equal(rename(path, other), 0);
    hid_t file = create();
    H5Lcreate_external("other.h5", "/", file, "base", H5P_DEFAULT, H5P_DEFAULT);
    assert_int_equal(mm_h5_open_dataset(&set, file, path, "base/tokens", &err), MM_BAD_INPUT);
    H5Fclose(file);
    assert_non_null(strstr(err.text, "'base' is a link to elsewhere"));
}

static void wrong_attributes(void **state) {
    (void)state;
    int64_t tokens[20], negative = -60, large = (int64_t)1 << 32;
    double real = 60;
    tokens_of(tokens);
    for (int kind = 0; kind < 4; kind++) {
        hid_t file = create();
        put_data(file, "tokens", 2, shape, H5T_STD_U32LE, H5T_NATIVE_INT64, tokens, H5P_DEFAULT);
        if (kind == 0)
            put_number(file, "vocab_size", H5T_NATIVE_INT64, &negative);
        if (kind == 1)
            put_number(file, "vocab_size", H5T_NATIVE_INT64, &large);
        if (kind == 2)
            put_number(file, "vocab_size", H5T_NATIVE_DOUBLE, &real);
        if (kind == 3) {
            hid_t space = H5Screate_simple(1, (hsize_t[]){20}, NULL);
            H5Aclose(
                H5Acreate2(file, "vocab_size", H5T_NATIVE_INT32, space, H5P_DEFAULT, H5P_DEFAULT));
            H5Sclose(space);
        }
        H5Fclose(file);
        expect_bad("'vocab_size'");
    }
}

static void wrong_files(void **state) {
    (void)state;
    unlink(path);
    expect_bad("No such file");
    assert_int_equal(mkdir(path, 0777), 0);
    expect_bad("not a file");
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(mkfifo(path, 0777), 0);
    expect_bad("not a file");
    unlink(path);
    FILE *file = fopen(path, "w");
    fputs("not HDF5", file);
    fclose(file);
    expect_bad("not an HDF5 file");
    write_tokens(H5T_STD_U32LE, H5P_DEFAULT, 39);
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    for (off_t size = info.st_size - 1; size > 0; size = size * 3 / 4) {
        assert_int_equal(truncate(path, size), 0);
        expect_bad("damaged");
    }
}

/* Multiple choice --------------------------------------------------------------------------- */

struct choice_file {
    uint32_t prompts[6], choices[8], answers[2];
    uint64_t offsets[3];
    hsize_t prompts_n, offsets_n, answers_n;
};

static const struct choice_file good = {.prompts = {1, 2, 3, 4, 5, 6},
                                        .choices = {1, 2, 3, 4, 5, 6, 7, 8},
                                        .answers = {3, 0},
                                        .offsets = {0, 2, 6},
                                        .prompts_n = 6,
                                        .offsets_n = 3,
                                        .answers_n = 2};

static void write_questions(const struct choice_file *f) {
    hid_t file = create();
    put_data(file, "prompts", 1, &f->prompts_n, H5T_STD_U32LE, H5T_NATIVE_UINT32, f->prompts,
             H5P_DEFAULT);
    put_data(file, "offsets", 1, &f->offsets_n, H5T_STD_U64LE, H5T_NATIVE_UINT64, f->offsets,
             H5P_DEFAULT);
    put_data(file, "choices", 2, (hsize_t[]){2, 4}, H5T_STD_U32LE, H5T_NATIVE_UINT32, f->choices,
             H5P_DEFAULT);
    put_data(file, "answers", 1, &f->answers_n, H5T_STD_U8LE, H5T_NATIVE_UINT32, f->answers,
             H5P_DEFAULT);
    H5Fclose(file);
}

static void expect_bad_questions(const struct choice_file *f, const char *words) {
    struct mm_questions questions;
    write_questions(f);
    assert_int_equal(mm_questions_read(&questions, path, 9, &err), MM_BAD_INPUT);
    if (!strstr(err.text, words))
        fail_msg("'%s' does not say '%s'", err.text, words);
}

static void reads_questions(void **state) {
    (void)state;
    struct mm_questions questions;
    write_questions(&good);
    assert_int_equal(mm_questions_read(&questions, path, 9, &err), MM_OK);
    assert_int_equal(questions.n, 2);
    assert_int_equal(questions.longest, 4);
    assert_memory_equal(questions.prompts, good.prompts, sizeof good.prompts);
    assert_memory_equal(questions.offsets, good.offsets, sizeof good.offsets);
    assert_memory_equal(questions.choices, good.choices, sizeof good.choices);
    assert_memory_equal(questions.answers, good.answers, sizeof good.answers);
    mm_questions_free(&questions);
}

static void wrong_questions(void **state) {
    (void)state;
    struct choice_file f = good;
    f.offsets[1] = 0;
    expect_bad_questions(&f, "question 0 has no prompt");
    f = good, f.offsets[1] = 6;
    expect_bad_questions(&f, "question 1 has no prompt");
    f = good, f.offsets[0] = 1;
    expect_bad_questions(&f, "'offsets' run from 1 to 6");
    f = good, f.offsets[2] = 5;
    expect_bad_questions(&f, "'offsets' run from 0 to 5, not from 0 to 6");
    f = good, f.offsets[1] = UINT64_MAX;
    expect_bad_questions(&f, "element 1 of 'offsets' is 18446744073709551615");
    f = good, f.answers[1] = 4;
    expect_bad_questions(&f, "element 1 of 'answers' is 4");
    f = good, f.choices[7] = 9;
    expect_bad_questions(&f, "row 1, column 3 of 'choices' is 9");
    f = good, f.prompts[5] = 9;
    expect_bad_questions(&f, "element 5 of 'prompts' is 9");
    f = good, f.offsets_n = 2;
    expect_bad_questions(&f, "'offsets' is [2, 1], not [3, 1]");
    f = good, f.answers_n = 1;
    expect_bad_questions(&f, "'answers' is [1, 1], not [2, 1]");
}

static int nothing_left(void **state) {
    (void)state;
    return H5Fget_obj_count(H5F_OBJ_ALL, H5F_OBJ_ALL) != 0 || mm_live_blocks() != 0;
}

#define TEST(name) cmocka_unit_test_teardown(name, nothing_left)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(reads_every_integer_type),
        TEST(reads_chunked_and_compressed),
        TEST(refuses_other_filters),
        TEST(reads_more_than_a_buffer),
        TEST(batches_wrap),
        TEST(views_leave_rows_out),
        TEST(values_out_of_range),
        TEST(wrong_datasets),
        TEST(huge_shapes),
        TEST(data_elsewhere),
        TEST(group_elsewhere),
        TEST(wrong_attributes),
        TEST(wrong_files),
        TEST(reads_questions),
        TEST(wrong_questions),
    };
    if (!mkdtemp(folder))
        return 1;
    snprintf(path, sizeof path, "%s/data.h5", folder);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    char *remove = mm_format("rm -r '%s'", folder);
    failed += system(remove) != 0;
    mm_free(remove);
    return failed;
}
