/* test_weights_hash.c - a model's hash does not depend on who reads what, nor on where it lies. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/weights_cases.h"

/* The hash of "a" [3,1] and "v" [2], BF16, read in two parts that meet behind `first` rows of "a".
 */
static void sum_of(void **state, const char *a, const char *v, const char *data, size_t first,
                   char hex[33]) {
    struct mm_weights_sum one = {0}, two = {0};
    char *header = mm_format("{\"a\":{\"dtype\":\"BF16\",\"shape\":[3,1],\"data_offsets\":[%s]},"
                             "\"v\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[%s]}}",
                             a, v);
    put_tensors(single(state), header, data, 10);
    struct mm_weights *weights = open_good(*state);
    mm_weights_sum_rows(weights, "a", first, 3 - first, &two);
    mm_weights_sum_rows(weights, "v", 0, 1, &one);
    mm_weights_sum_rows(weights, "a", 0, first, &one);
    mm_weights_sum_text((struct mm_weights_sum){one.low + two.low, one.high + two.high}, hex);
    mm_weights_free(weights);
    mm_free(header);
}

static void sums_of_rows_are_a_hash(void **state) {
    char hex[33], other[33];
    sum_of(state, "0,6", "6,10", "aabbccddee", 0, hex);
    for (size_t first = 1; first <= 3; first++) {
        sum_of(state, "0,6", "6,10", "aabbccddee", first, other);
        assert_string_equal(other, hex);
    }
    sum_of(state, "4,10", "0,4", "ddeeaabbcc", 1, other); /* elsewhere in the file */
    assert_string_equal(other, hex);
    static const char *const others[] = {"aabbccddef", "bbaaccddee", "aabbddccee", "aabbccdeed"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        sum_of(state, "0,6", "6,10", others[i], 1, other);
        assert_string_not_equal(other, hex);
    }
}

static void hash_covers_all_files(void **state) {
    char hex[33], other[33];
    put_tensors(single(state), ONE("a"), "0123", 4);
    struct mm_weights *weights = open_good(*state);
    mm_weights_hash_files(weights, hex);
    mm_weights_free(weights);
    assert_int_equal(mm_file_hash(single(state), 0, other, &err), MM_OK);
    assert_string_equal(hex, other);
    unlink(single(state));
    /* Files in order of name, whatever the index's order. */
    put_tensors(path_in(*state, "x2.safetensors"), ONE("a"), "0123", 4);
    put_tensors(path_in(*state, "x1.safetensors"), ONE("b"), "4567", 4);
    put_text(index_path(state),
             "{\"weight_map\":{\"a\":\"x2.safetensors\",\"b\":\"x1.safetensors\"}}");
    weights = open_good(*state);
    mm_weights_hash_files(weights, hex);
    mm_weights_free(weights);
    char *first, *second;
    size_t first_bytes, second_bytes;
    mm_file_read(path_in(*state, "x1.safetensors"), &first, &first_bytes, &err);
    mm_file_read(path_in(*state, "x2.safetensors"), &second, &second_bytes, &err);
    first = mm_realloc(first, first_bytes + second_bytes);
    memcpy(first + first_bytes, second, second_bytes);
    put(path_in(*state, "both"), first, first_bytes + second_bytes);
    mm_free(first);
    mm_free(second);
    assert_int_equal(mm_file_hash(path_in(*state, "both"), 0, other, &err), MM_OK);
    assert_string_equal(hex, other);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, scratch_make, scratch_drop)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(sums_of_rows_are_a_hash),
        TEST(hash_covers_all_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
