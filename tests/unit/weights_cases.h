/* weights_cases.h - model folders that open and such that do not, for the tests of weights. */
#ifndef MM_TEST_WEIGHTS_CASES_H
#define MM_TEST_WEIGHTS_CASES_H

#include "io/weights.h"
#include "tests/unit/scratch.h"

static struct mm_error err;

/* The header of one tensor of four bytes. */
#define ONE(name) "{\"" name "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}"

static inline struct mm_weights *open_good(const char *folder) {
    struct mm_weights *weights;
    if (mm_weights_open(&weights, folder, &err))
        fail_msg("%s", err.text);
    return weights;
}

static inline void expect_bad(const char *folder, const char *piece) {
    struct mm_weights *weights = (void *)1;
    enum mm_status status = mm_weights_open(&weights, folder, &err);
    assert_null(weights);
    expect_fault(status, MM_BAD_INPUT, &err, piece);
    assert_int_equal(mm_live_blocks(), 0);
}

static inline const char *single(void **state) {
    return path_in(*state, "model.safetensors");
}

static inline const char *index_path(void **state) {
    return path_in(*state, "model.safetensors.index.json");
}

#endif
