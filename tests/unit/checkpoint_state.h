/* checkpoint_state.h - states for the checkpoint tests: every value follows from its place, so that
 * any rank of any job can check what another wrote. Odd shapes: fewer rows than ranks, one row, one
 * column. */
#ifndef CHECKPOINT_STATE_H
#define CHECKPOINT_STATE_H

#include <string.h>

#include "io/checkpoint_format.h"
#include "io/files.h"

static const struct {
    const char *name;
    size_t rows, cols;
} state_shapes[] = {
    {"model.layers.0.mlp.gate_proj.weight", 7, 5},
    {"model.layers.1.mlp.gate_proj.weight", 13, 1},
    {"gpt_neox.layers.0.mlp.dense_h_to_4h.weight", 24, 8},
    {"one_row", 1, 3},
    {"a two rows", 2, 9},
};
enum { STATE_TENSORS = sizeof state_shapes / sizeof *state_shapes };

/* Any finite bits, also subnormal numbers and -0. */
static inline uint32_t state_bits(size_t salt, size_t tensor, int group, size_t row, size_t col,
                                  enum mm_dtype dtype) {
    uint64_t x = salt * 1000003 + tensor * 10007 + (uint64_t)group * 101 + row * 1009 + col;
    x = (x + 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    uint32_t bits = (uint32_t)(x >> 32), exponent = 0x7f800000u;
    bits = (bits & exponent) == exponent ? bits & 0xbfffffffu : bits;
    return dtype == MM_F32 ? bits : bits >> 16;
}

static inline size_t state_own_bytes(const struct mm_state *state, size_t tensor, int size,
                                     int rank) {
    const struct mm_state_tensor *t = &state->tensors[tensor];
    return mm_rows_of(t->rows, size, rank).count * t->cols * mm_dtype_bytes(state->dtype);
}

static inline void *state_rows(size_t salt, size_t tensor, int group, enum mm_dtype dtype, int size,
                               int rank) {
    size_t bytes = mm_dtype_bytes(dtype), cols = state_shapes[tensor].cols;
    struct mm_rows rows = mm_rows_of(state_shapes[tensor].rows, size, rank);
    char *values = mm_calloc(rows.count * cols, bytes);
    for (size_t i = 0; i < rows.count * cols; i++) {
        uint32_t bits = state_bits(salt, tensor, group, rows.first + i / cols, i % cols, dtype);
        memcpy(values + i * bytes, &bits, bytes);
    }
    return values;
}

/* The state after `salt` loops, as rank `rank` of `size` holds it: one of bfloat16 with a forget
 * accumulator. state_free frees. */
static inline struct mm_state state_make(size_t salt, enum mm_dtype dtype, bool adversary, int size,
                                         int rank) {
    struct mm_state state = {.dtype = dtype, .tensors_n = STATE_TENSORS};
    state.tensors = mm_calloc(STATE_TENSORS, sizeof *state.tensors);
    for (size_t i = 0; i < STATE_TENSORS; i++) {
        state.tensors[i] = (struct mm_state_tensor){
            .name = mm_strdup(state_shapes[i].name),
            .rows = state_shapes[i].rows,
            .cols = state_shapes[i].cols,
        };
        for (int g = 0; g < MM_STATE_GROUPS; g++) {
            bool there = g == MM_GROUP_ADVERSARY    ? adversary
                         : g == MM_GROUP_FORGET_ACC ? dtype == MM_BF16
                                                    : true;
            state.tensors[i].own[g] = there ? state_rows(salt, i, g, dtype, size, rank) : NULL;
        }
    }
    return state;
}

static inline void state_free(struct mm_state *state) {
    for (size_t i = 0; i < state->tensors_n; i++) {
        mm_free(state->tensors[i].name);
        for (int g = 0; g < MM_STATE_GROUPS; g++)
            mm_free(state->tensors[i].own[g]);
    }
    mm_free(state->tensors);
}

static inline bool state_equal(const struct mm_state *a, const struct mm_state *b, int size,
                               int rank) {
    bool equal = true;
    for (size_t i = 0; i < a->tensors_n; i++) {
        const struct mm_state_tensor *s = &a->tensors[i], *t = &b->tensors[i];
        size_t bytes = state_own_bytes(a, i, size, rank);
        for (int g = 0; g < MM_STATE_GROUPS; g++)
            equal = equal && (!s->own[g] || memcmp(s->own[g], t->own[g], bytes) == 0);
    }
    return equal;
}

static inline struct mm_checkpoint_info info_make(size_t loops) {
    return (struct mm_checkpoint_info){.loops = loops,
                                       .retain_cursor = 3 * loops,
                                       .forget_cursor = 2 * loops,
                                       .metrics_bytes = 1000 * loops + 1,
                                       .weights_hash = "0123456789abcdef0123456789abcdef",
                                       .config = mm_format("seed: %zu\nname: \"gr\xc3\xbc\xc3\x9f"
                                                           "e\"\n",
                                                           loops),
                                       .extra = mm_strdup("{\"initial\":1.5}")};
}

static inline bool info_equal(const struct mm_checkpoint_info *a,
                              const struct mm_checkpoint_info *b) {
    return a->loops == b->loops && a->retain_cursor == b->retain_cursor &&
           a->forget_cursor == b->forget_cursor && a->metrics_bytes == b->metrics_bytes &&
           strcmp(a->weights_hash, b->weights_hash) == 0 && strcmp(a->config, b->config) == 0 &&
           strcmp(a->extra, b->extra) == 0;
}

/* For calls that fill a `struct mm_error err` in scope. */
#define assert_ok(call)                                                                            \
    do {                                                                                           \
        if ((call) != MM_OK)                                                                       \
            fail_msg("%s", err.text);                                                              \
    } while (0)

/* A checkpoint of three parts in run_dir/checkpoints/7; returns the folder, the caller's. */
static inline char *write_three_parts(const char *run_dir) {
    struct mm_error err;
    char *folder = mm_format("%s/checkpoints/7", run_dir), hashes[3][33];
    struct mm_checkpoint_info info = info_make(7);
    assert_ok(mm_folder_make(folder, &err));
    for (int r = 3; r-- > 0;) {
        struct mm_state own = state_make(7, MM_F32, true, 3, r);
        struct mm_checkpoint_job job = {folder, &own, &info, r, 3, hashes};
        assert_ok(mm_checkpoint_part_write(&job, hashes[r], &err));
        if (r == 0)
            assert_ok(mm_checkpoint_whole_write(&job, &err));
        state_free(&own);
    }
    mm_checkpoint_info_free(&info);
    assert_ok(mm_checkpoint_verify(folder, NULL, &err));
    return folder;
}

/* A test begins with its program's `begin`, which sets live_before where blocks are taken by then,
 * and leaves nothing behind. */
static long live_before;

static inline int nothing_left(void **state) {
    (void)state;
    return H5Fget_obj_count(H5F_OBJ_ALL, H5F_OBJ_ALL) != 0 || mm_live_blocks() != live_before;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, nothing_left)

#endif
