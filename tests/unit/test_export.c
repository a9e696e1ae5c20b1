/* test_export.c - writing model folders: every byte that is not ours to change stays; what is
 * replaced is rounded and counted; a failure leaves nothing behind. */
#define _GNU_SOURCE /* unshare */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "comm/comm.h"
#include "tests/unit/export_folders.h"

static void replaces_and_counts(void **state) {
    struct folders f = make_input(state);
    /* full: one changed. half: the same, below half a unit, one unit, NaN. brain: lost, changed,
     * same. */
    const float new_full[] = {1, 1.00390637f, -1e-3f, 70000};
    const float new_half[] = {1, 0x1.1p-24f, 65472, NAN};
    const float new_brain[] = {1.001f, 2.02f, 0x1.fep127f};
    const struct mm_replacement replacements[] = {
        {"w.half", new_half, 4}, {"w.full", new_full, 4}, {"w.brain", new_brain, 3}};
    struct mm_export_report report = export_good(&f, replacements, 3, NULL);
    assert_int_equal(report.replaced, 11);
    assert_int_equal(report.changed, 1 + 3 + 2);
    assert_int_equal(report.lost, 0 + 1 + 1);
    assert_int_equal(report.overflowed, 0);
    char *before, *after;
    size_t bytes;
    mm_file_read(path_in(f.in, "model.safetensors"), &before, &bytes, &err);
    char *data = before + bytes - 33;
    const uint16_t halves[] = {0x3c00, 0x0001, 0x7bfe, 0x7e00}, brains[] = {0x3f80, 0x4001, 0x7f7f};
    memcpy(data + 1, new_full, 16);
    memcpy(data + 17, halves, 8);
    memcpy(data + 25, brains, 6);
    mm_file_read(path_in(f.out, "model.safetensors"), &after, NULL, &err);
    assert_memory_equal(after, before, bytes);
    mm_free(before);
    mm_free(after);
}

/* A tensor of more than one chunk, its length no multiple of one. */
static void long_tensors(void **state) {
    struct folders f = make_input(state);
    enum { N = 150001 };
    float *old = mm_calloc(N, sizeof *old), *new = mm_calloc(N, sizeof *new);
    for (size_t i = 0; i < N; i++) {
        old[i] = (float)i;
        new[i] = i % 3 ? (float)i : -(float)i - 1;
    }
    const struct mm_named_tensor tensor = {"long", N, 0, old};
    assert_int_equal(mm_weights_write(f.in, &tensor, 1, &err), MM_OK);
    const struct mm_replacement replacement = {"long", new, N};
    struct mm_export_report report = export_good(&f, &replacement, 1, NULL);
    assert_int_equal(report.changed, (N + 2) / 3);
    assert_int_equal(report.lost, 0);
    struct mm_weights *weights = open_good(f.out);
    load(weights, "long", N, 0, old, MM_F32);
    assert_memory_equal(old, new, N * sizeof *new);
    mm_weights_free(weights);
    assert_int_equal(mm_folder_remove(f.out, &err), MM_OK);
    report = export_good(&f, &replacement, 1, &(enum mm_dtype){MM_BF16});
    weights = open_good(f.out);
    load(weights, "long", N, 0, old, MM_F32);
    for (size_t i = 0; i < N; i++)
        assert_true(old[i] == mm_bf16_round(new[i]));
    mm_weights_free(weights);
    mm_free(old);
    mm_free(new);
}

static void converts_to_save_dtype(void **state) {
    static const struct {
        enum mm_dtype dtype;
        const char *name;
        size_t overflowed;
    } cases[] = {{MM_F32, "float32", 0}, {MM_BF16, "bfloat16", 0}, {MM_F16, "float16", 2}};
    struct folders f = make_input(state);
    for (size_t i = 0; i < 3; i++) {
        enum mm_dtype dtype = cases[i].dtype;
        struct mm_export_report report = export_good(&f, NULL, 0, &dtype);
        assert_int_equal(report.overflowed, cases[i].overflowed);
        assert_int_equal(report.changed, 0);
        char *bytes;
        mm_file_read(path_in(f.out, "model.safetensors"), &bytes, NULL, &err);
        assert_int_equal((unsigned char)bytes[0] % 8, 0); /* padded: data at a multiple of 8 */
        const char *metadata =
            "{\"__metadata__\":{\"format\":\"pt\",\"n\\\"ote\":\"\xc3\xa4\\n\"},\"count\":";
        assert_memory_equal(bytes + 8, metadata, strlen(metadata));
        assert_non_null(strstr(bytes + 8, "\"shape\":[1,1,1,1,1]"));
        mm_free(bytes);
        struct mm_weights *weights = open_good(f.out);
        assert_int_equal(mm_weights_count(weights), 3);
        for (size_t k = 0; k < 3; k++)
            assert_int_equal(mm_weights_at(weights, k)->dtype, dtype);
        float values[4], wanted[4];
        uint16_t bits[4];
        load(weights, "w.full", 4, 0, values, MM_F32);
        mm_convert(bits, dtype == MM_F32 ? MM_BF16 : dtype, full, MM_F32, 4);
        mm_convert(wanted, MM_F32, bits, dtype == MM_F32 ? MM_BF16 : dtype, 4);
        assert_memory_equal(values, dtype == MM_F32 ? full : wanted, 16);
        load(weights, "w.half", 2, 2, values, MM_F32);
        assert_true(values[0] == 1 && values[1] == 0x1p-24f && values[3] == -1);
        assert_true(values[2] == (dtype == MM_BF16 ? 65536 : 65504));
        expect_fault(mm_weights_load(weights, "f\xc3\xbcnf", 1, 1, values, MM_F32, &err),
                     MM_BAD_INPUT, &err, "has 5 dimensions");
        expect_fault(mm_weights_load(weights, "count", 1, 0, values, MM_F32, &err), MM_BAD_INPUT,
                     &err, "has dtype U8");
        mm_weights_free(weights);
        char wanted_config[sizeof config + 8];
        const char *place = strstr(config, "bfloat16");
        snprintf(wanted_config, sizeof wanted_config, "%.*s%s%s", (int)(place - config), config,
                 cases[i].name, place + strlen("bfloat16"));
        expect_text(path_in(f.out, "config.json"), wanted_config);
        assert_int_equal(mm_folder_remove(f.out, &err), MM_OK);
    }
}

/* What is lost is told in the written dtype: an update that the original's own rounding hides. */
static void lost_in_save_dtype(void **state) {
    struct folders f = make_input(state);
    const float new_full[] = {1.001f, 1.0039f, -1e-3f, 70001};
    const struct mm_replacement replacement = {"w.full", new_full, 4};
    struct mm_export_report report = export_good(&f, &replacement, 1, &(enum mm_dtype){MM_F16});
    assert_int_equal(report.changed, 3);
    assert_int_equal(report.lost, 2); /* 1.0039 and infinity; 1.001 is one unit up */
    assert_int_equal(report.overflowed, 2);
}

/* Ranks that write their rows, the last one first, make the file that one rank makes. */
static void replaces_by_rows(void **state) {
    struct folders f = make_input(state);
    enum { ROWS = 7, RANKS = 3 };
    float old[2 * ROWS], new[2 * ROWS];
    for (size_t i = 0; i < 2 * ROWS; i++) {
        old[i] = (float)i;
        new[i] = i % 4 ? old[i] + 0.001f : old[i];
    }
    const struct mm_named_tensor tensors[] = {
        {"vector", 5, 0, old}, {"a", ROWS, 2, old}, {"few", 2, 2, new}, {"kept", ROWS, 2, new}};
    assert_int_equal(mm_weights_write(f.in, tensors, 4, &err), MM_OK);
    const struct mm_replacement whole[] = {{"few", old, 4}, {"a", new, 2 * ROWS}};
    for (int i = 0; i < 2; i++) {
        const enum mm_dtype *dtype = i ? &(enum mm_dtype){MM_BF16} : NULL;
        struct mm_export_report want = export_good(&f, whole, 2, dtype), got = {0}, part;
        char *together = mm_format("%s-together", f.out);
        struct mm_weights *weights = open_good(f.in);
        const struct mm_weights_export e = {
            .weights = weights, .out = together, .save_dtype = dtype};
        assert_int_equal(mm_weights_export_begin(&e, &err), MM_OK);
        for (int rank = RANKS - 1; rank >= 0; rank--) {
            const struct mm_replacement rows[] = {
                {"few", old + 2 * mm_rows_of(2, RANKS, rank).first, 4},
                {"a", new + 2 * mm_rows_of(ROWS, RANKS, rank).first, 2 * ROWS}};
            assert_int_equal(mm_weights_export_rows(&e, rows, 2, RANKS, rank, &part, &err), MM_OK);
            got.replaced += part.replaced;
            got.changed += part.changed;
            got.lost += part.lost;
            assert_false(mm_path_exists(together));
        }
        assert_int_equal(mm_weights_export_end(&e, MM_OK, &err), MM_OK);
        mm_weights_free(weights);
        assert_true(got.changed && (got.lost > 0) == (i > 0));
        assert_true(got.replaced == want.replaced && got.changed == want.changed &&
                    got.lost == want.lost);
        char *one = mm_strdup(path_in(f.out, "model.safetensors"));
        expect_same_files(one, path_in(together, "model.safetensors"));
        mm_free(one);
        assert_int_equal(mm_folder_remove(f.out, &err), MM_OK);
        assert_int_equal(mm_folder_remove(together, &err), MM_OK);
        mm_free(together);
    }
}

static void shards(void **state) {
    struct folders f = make_input(state);
    static const char one[] = "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}";
    static const char two[] = "{\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
    static const char index[] =
        "{\"metadata\": {\"note\": 1e-05, \"total_size\": 12},\n\"weight_map\": "
        "{\"a\": \"s1.safetensors\", \"b\": \"s2.safetensors\"}}";
    unlink(path_in(f.in, "model.safetensors"));
    put_tensors(path_in(f.in, "s1.safetensors"), one, (float[]){1, 2}, 8);
    put_tensors(path_in(f.in, "s2.safetensors"), two, (float[]){3}, 4);
    put_text(path_in(f.in, "model.safetensors.index.json"), index);
    const struct mm_replacement replacement = {"b", (const float[]){4}, 1};
    struct mm_export_report report = export_good(&f, &replacement, 1, NULL);
    assert_int_equal(report.changed, 1);
    expect_same_files(path_in(f.in, "s1.safetensors"), path_in(f.out, "s1.safetensors"));
    expect_text(path_in(f.out, "model.safetensors.index.json"), index);
    struct mm_weights *weights = open_good(f.out);
    float value;
    load(weights, "b", 1, 0, &value, MM_F32);
    assert_true(value == 4);
    mm_weights_free(weights);
    assert_int_equal(mm_folder_remove(f.out, &err), MM_OK);
    export_good(&f, &replacement, 1, &(enum mm_dtype){MM_BF16});
    expect_text(path_in(f.out, "model.safetensors.index.json"),
                "{\"metadata\": {\"note\": 1e-05, \"total_size\": 6},\n\"weight_map\": "
                "{\"a\": \"s1.safetensors\", \"b\": \"s2.safetensors\"}}");
    weights = open_good(f.out);
    load(weights, "b", 1, 0, &value, MM_F32);
    assert_true(value == 4);
    mm_weights_free(weights);
}

static void refuses(void **state) {
    struct folders f = make_input(state);
    const float values[4] = {0};
    const struct mm_replacement absent = {"absent", values, 4}, size = {"w.full", values, 3},
                                other = {"count", values, 1},
                                twice[] = {{"w.full", values, 4},
                                           {"w.half", values, 4},
                                           {"w.full", values, 4}};
    expect_no_export(&f, &absent, 1, NULL, MM_BAD_INPUT, "cannot replace tensor 'absent'");
    expect_no_export(&f, &size, 1, NULL, MM_BAD_INPUT, "'w.full' by 3 elements: it holds 4");
    expect_no_export(&f, &other, 1, NULL, MM_BAD_INPUT, "cannot replace tensor 'count'");
    expect_no_export(&f, twice, 3, NULL, MM_BAD_INPUT, "tensor 'w.full' is replaced twice");
    assert_int_equal(mkdir(f.out, 0777), 0);
    expect_no_export(&f, NULL, 0, NULL, MM_BAD_INPUT, "/out: exists already");
    rmdir(f.out);
    assert_int_equal(symlink("nowhere", f.out), 0);
    expect_no_export(&f, NULL, 0, NULL, MM_BAD_INPUT, "/out: exists already");
    unlink(f.out);
    put_text(path_in(*state, "file"), "x");
    snprintf(f.out, sizeof f.out, "%s/file/out", (char *)*state);
    expect_no_export(&f, NULL, 0, NULL, MM_BAD_INPUT, "/file: cannot make the folder");
    f.out[0] = 0;
    expect_no_export(&f, NULL, 0, NULL, MM_BAD_INPUT, "has no name");
}

static void remains_and_parents(void **state) {
    struct folders f = make_input(state);
    char *out = mm_format("%s/new/run/model", (char *)*state);
    assert_int_equal(mm_folder_make(path_in(*state, "new/run/model.writing/deep"), &err), MM_OK);
    put_text(path_in(*state, "new/run/model.writing/stale.json"), "x");
    snprintf(f.out, sizeof f.out, "%s/", out); /* a slash at the end is no other name */
    export_good(&f, NULL, 0, NULL);
    expect_same_files(path_in(f.in, "config.json"), path_in(out, "config.json"));
    assert_false(mm_path_exists(path_in(out, "stale.json")));
    assert_false(mm_path_exists(path_in(*state, "new/run/model.writing")));
    mm_free(out);
}

static void writes_own_models(void **state) {
    const char *folder = path_in(*state, "made/here");
    const float a[] = {1, 2, 3, 4, 5, 6}, b[] = {7, 8};
    struct mm_named_tensor tensors[] = {
        {"a \"quoted\"", 2, 3, a}, {"b", 2, 0, b}, {"empty", 0, 4, NULL}};
    assert_int_equal(mm_weights_write(folder, tensors, 3, &err), MM_OK);
    struct mm_weights *weights = open_good(folder);
    float values[6];
    assert_int_equal(mm_weights_count(weights), 3);
    load(weights, "a \"quoted\"", 2, 3, values, MM_F32);
    assert_memory_equal(values, a, sizeof a);
    load(weights, "b", 2, 0, values, MM_F32);
    assert_memory_equal(values, b, sizeof b);
    load(weights, "empty", 0, 4, values, MM_F32);
    assert_int_equal((uintptr_t)mm_weights_find(weights, "b")->data % 8, 0);
    mm_weights_free(weights);
    char *bytes;
    mm_file_read(path_in(folder, "model.safetensors"), &bytes, NULL, &err);
    assert_non_null(
        strstr(bytes + 8, "{\"__metadata__\":{\"format\":\"pt\"},\"a \\\"quoted\\\"\":"));
    mm_free(bytes);
    tensors[2].name = "b";
    expect_fault(mm_weights_write(folder, tensors, 3, &err), MM_BAD_INPUT, &err,
                 "tensor 'b' is given twice");
    put_text(path_in(*state, "file"), "x");
    expect_fault(mm_weights_write(path_in(*state, "file"), tensors, 2, &err), MM_BAD_INPUT, &err,
                 "cannot make the folder");
}

/* A limit on the size of files stands for the full disk: here a real one takes privileges. */
static void full_disk(void **state) {
    struct folders f = make_input(state);
    enum { N = 4096 };
    float *values = mm_calloc(N, sizeof *values);
    const struct mm_named_tensor tensor = {"t", N, 0, values};
    assert_int_equal(mm_weights_write(f.in, &tensor, 1, &err), MM_OK);
    char *kept = mm_format("%s/model.safetensors", f.in), *hash = mm_calloc(33, 1);
    assert_int_equal(mm_file_hash(kept, 0, hash, &err), MM_OK);
    struct rlimit before, small;
    getrlimit(RLIMIT_FSIZE, &before);
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    for (size_t limit = 1; limit < 4 * N; limit = limit * 3 + 100) {
        small = before;
        small.rlim_cur = limit;
        setrlimit(RLIMIT_FSIZE, &small);
        struct mm_weights *weights = open_good(f.in);
        enum mm_status status = export_whole(weights, f.out, NULL, 0, NULL, NULL, &err);
        struct mm_error second;
        enum mm_status made = mm_weights_write(f.in, &tensor, 1, &second);
        setrlimit(RLIMIT_FSIZE, &before);
        mm_weights_free(weights);
        expect_fault(status, MM_FAILED, &err, "cannot write: File too large");
        assert_non_null(strstr(err.text, "/out.writing/"));
        expect_fault(made, MM_FAILED, &second, "model.safetensors: cannot write: File too large");
        assert_false(mm_path_exists(f.out));
        assert_false(mm_path_exists(path_in(*state, "out.writing")));
        assert_false(mm_path_exists(path_in(f.in, "model.safetensors.tmp")));
        char after[33];
        assert_int_equal(mm_file_hash(kept, 0, after, &err), MM_OK);
        assert_string_equal(after, hash);
    }
    signal(SIGXFSZ, handler);
    mm_free(kept);
    mm_free(hash);
    mm_free(values);
}

/* In a child with mounts of its own: 0 as it should be, 77 not permitted here, else what is wrong.
 */
static int export_to_full_disk(const char *in, const char *disk) {
    if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
        mount("none", disk, "tmpfs", 0, "size=64k"))
        return 77;
    struct mm_weights *weights;
    char out[1024], writing[1024];
    snprintf(out, sizeof out, "%s/out", disk);
    snprintf(writing, sizeof writing, "%s/out.writing", disk);
    if (mm_weights_open(&weights, in, &err))
        return 1;
    if (export_whole(weights, out, NULL, 0, NULL, NULL, &err) != MM_FAILED)
        return 2;
    fprintf(stderr, "%s\n", err.text);
    if (!strstr(err.text, "/out.writing/model.safetensors: cannot write: No space left on device"))
        return 3;
    return mm_path_exists(out) || mm_path_exists(writing) ? 4 : 0;
}

static void really_full_disk(void **state) {
    struct folders f = make_input(state);
    enum { N = 50000 };
    float *values = mm_calloc(N, sizeof *values);
    const struct mm_named_tensor tensor = {"t", N, 0, values};
    assert_int_equal(mm_weights_write(f.in, &tensor, 1, &err), MM_OK);
    mm_free(values);
    assert_int_equal(mkdir(path_in(*state, "disk"), 0777), 0);
    pid_t child = fork();
    if (child == 0)
        _exit(export_to_full_disk(f.in, path_in(*state, "disk")));
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        print_message("no right to mount a small disk: not tested\n");
    else
        assert_int_equal(WEXITSTATUS(status), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, scratch_make, scratch_drop)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(replaces_and_counts),
        TEST(long_tensors),
        TEST(converts_to_save_dtype),
        TEST(lost_in_save_dtype),
        TEST(replaces_by_rows),
        TEST(shards),
        TEST(refuses),
        TEST(remains_and_parents),
        TEST(writes_own_models),
        TEST(full_disk),
        TEST(really_full_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
