/* test_rows.c - rows of different lengths in token files, and what is learnt of them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/dataset.h"
#include "io/h5.h"
#include "tests/unit/h5_cases.h"

static char folder[] = "/tmp/test_rows.XXXXXX";
static char path[64];
static struct mm_error err;

/* A token file [5, 4] of 0, 3, 6 ... 57. */
static void write_tokens(void) {
    int64_t tokens[20];
    for (int i = 0; i < 20; i++)
        tokens[i] = i * 3;
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    put_data(file, "tokens", 2, (hsize_t[]){5, 4}, H5T_STD_U32LE, H5T_NATIVE_INT64, tokens,
             H5P_DEFAULT);
    H5Fclose(file);
}

static void expect_bad(const char *words) {
    struct mm_dataset set;
    assert_int_equal(mm_dataset_read(&set, path, 2, 60, &err), MM_BAD_INPUT);
    mm_dataset_free(&set);
    if (!strstr(err.text, words) || !strstr(err.text, path))
        fail_msg("'%s' does not say '%s'", err.text, words);
}

/* Adds a number a row to the file. */
static void put_rows(const char *name, const int64_t rows[5]) {
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    put_data(file, name, 1, (hsize_t[]){5}, H5T_STD_U16LE, H5T_NATIVE_INT64, rows, H5P_DEFAULT);
    H5Fclose(file);
}

static void write_lengths(void) {
    write_tokens();
    put_rows("lengths", (int64_t[]){4, 2, 3, 4, 4});
    put_rows("answer_from", (int64_t[]){0, 1, 2, 1, 0});
}

/* What is cut, what replaces padding, and what a batch on all ranks has. */
static void reads_lengths_and_answers(void **state) {
    (void)state;
    struct mm_dataset set;
    struct mm_sequences out = mm_sequences_create(4, 3);
    write_lengths();
    assert_int_equal(mm_dataset_read(&set, path, 3, 60, &err), MM_OK);
    assert_memory_equal(set.lengths, ((uint32_t[]){3, 2, 3, 3, 3}), 20);
    assert_memory_equal(set.answers, ((uint32_t[]){1, 1, 2, 1, 1}), 20);
    assert_memory_equal(set.tokens + 3, ((uint32_t[]){12, 15, 12}), 12);
    mm_dataset_batch(&set, 0, 4, 1, 2, &out, 2);
    assert_memory_equal(out.lengths + 2, ((uint32_t[]){2, 3}), 8);
    assert_memory_equal(out.answers + 2, ((uint32_t[]){1, 2}), 8);
    assert_memory_equal(out.tokens + 6, ((uint32_t[]){12, 15, 12, 24, 27, 30}), 24);
    struct mm_counts counts = mm_dataset_counts(&set, 1, 3); /* rows 3, 4, 0 */
    assert_true(counts.sequences == 3 && counts.targets == 6 && counts.tokens == 9);
    counts = mm_dataset_counts(&set, 0, 7); /* all, and rows 0 and 1 again */
    assert_true(counts.sequences == 7 && counts.targets == 11 && counts.tokens == 19);
    mm_sequences_free(&out);
    mm_dataset_free(&set);
}

static void hashes_lengths_and_answers(void **state) {
    (void)state;
    struct mm_dataset set;
    char plain[33], both[33], hash[33];
    write_tokens();
    assert_int_equal(mm_dataset_read(&set, path, 4, 60, &err), MM_OK);
    mm_dataset_hash(&set, plain);
    mm_dataset_free(&set);
    write_lengths();
    assert_int_equal(mm_dataset_read(&set, path, 4, 60, &err), MM_OK);
    mm_dataset_hash(&set, both);
    assert_string_not_equal(both, plain);
    uint32_t *const numbers[] = {&set.lengths[4], &set.answers[2]};
    for (size_t i = 0; i < 2; i++) {
        ++*numbers[i];
        mm_dataset_hash(&set, hash);
        assert_string_not_equal(hash, both);
        --*numbers[i];
    }
    mm_dataset_free(&set);
}

/* A row that another is the beginning of is another row; where answers begin does not matter. */
static void views_know_lengths(void **state) {
    (void)state;
    struct mm_dataset set, view;
    uint32_t tokens[] = {24, 27, 30, 33, 24, 27, 30, 24}, lengths[] = {4, 3}, answers[] = {1, 1};
    struct mm_dataset other = {.examples = 2,
                               .context_length = 4,
                               .tokens = tokens,
                               .lengths = lengths,
                               .answers = answers};
    write_lengths();
    assert_int_equal(mm_dataset_read(&set, path, 4, 60, &err), MM_OK);
    mm_dataset_view(&view, &set, 0, &other, 1);
    assert_int_equal(view.examples, 5);
    mm_dataset_free(&view);
    mm_dataset_view(&view, &set, 0, &other, 2);
    assert_int_equal(view.examples, 4);
    struct mm_counts counts = mm_dataset_counts(&view, 0, 4); /* rows 0, 1, 3, 4 */
    assert_true(counts.tokens == 14 && counts.targets == 10);
    mm_dataset_free(&view);
    mm_dataset_free(&set);
}

static void bad_lengths_and_answers(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int64_t rows[5];
        const char *words;
    } cases[] = {
        {"lengths", {4, 4, 5, 4, 4}, "element 2 of 'lengths' is 5: it must be from 0 to 4"},
        {"lengths", {4, 4, 0, 4, 4}, "row 2 has nothing to learn in its first 2 tokens"},
        {"lengths", {4, 1, 4, 4, 4}, "row 1 has nothing to learn"},
        {"answer_from", {0, 0, 0, 0, 2}, "its answer begins at token 2"},
        {"answer_from", {5, 0, 0, 0, 0}, "element 0 of 'answer_from' is 5"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_tokens();
        put_rows(cases[i].name, cases[i].rows);
        expect_bad(cases[i].words);
    }
    write_tokens();
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    int64_t four[4] = {4, 4, 4, 4};
    put_data(file, "lengths", 1, (hsize_t[]){4}, H5T_STD_U16LE, H5T_NATIVE_INT64, four,
             H5P_DEFAULT);
    H5Fclose(file);
    expect_bad("'lengths' is [4, 1], not [5, 1]");
}

static int nothing_left(void **state) {
    (void)state;
    return H5Fget_obj_count(H5F_OBJ_ALL, H5F_OBJ_ALL) != 0 || mm_live_blocks() != 0;
}

#define TEST(name) cmocka_unit_test_teardown(name, nothing_left)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(reads_lengths_and_answers),
        TEST(hashes_lengths_and_answers),
        TEST(views_know_lengths),
        TEST(bad_lengths_and_answers),
    };
    if (!mkdtemp(folder))
        return 1;
    snprintf(path, sizeof path, "%s/tokens.h5", folder);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return failed + (rmdir(folder) != 0);
}
