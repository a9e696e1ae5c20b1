/* golden_model.h - the models of tests/golden with their tokens, for tests that need no traces. */
#ifndef MM_TEST_GOLDEN_MODEL_H
#define MM_TEST_GOLDEN_MODEL_H

#include "tests/golden/trace.h"
#include "tests/unit/whole_model.h"

#include "src/parallel/passes.h"

static const char *const cases[] = {"llama-gqa-tied", "llama3-untied", "qwen2",      "qwen3",
                                    "olmo2",          "neox-parallel", "neox-serial"};
#define CASES (sizeof cases / sizeof *cases)

/* One of them, and an arena that ends with it. */
struct fixture {
    const char *name;
    struct mm_arena *arena;
    struct mm_model *model;
    uint32_t *tokens, *targets; /* [B·T], host; each position's next token */
    size_t B, T;
};

static const struct mm_layer_hook no_hook;

/* For mm_free. */
static inline uint32_t *next_tokens(const uint32_t *tokens, size_t n, size_t T) {
    uint32_t *next = mm_calloc(n, sizeof *next);
    for (size_t i = 0; i < n; i++)
        next[i] = (i + 1) % T ? tokens[i + 1] : UINT32_MAX;
    return next;
}

static inline struct fixture open_case(struct mm_device *dev, const char *name) {
    struct mm_error err = {""};
    struct mm_arch arch;
    struct mm_weights *weights;
    struct fixture f = {.name = name, .arena = mm_arena_create(dev)};
    char *folder = mm_format("%s/golden/%s", TEST_DIR, name);
    char *config = mm_format("%s/config.json", folder),
         *file = mm_format("%s/reference.h5", folder);
    if (mm_arch_read(&arch, config, &err) != MM_OK)
        fail_msg("%s", err.text);
    f.model = mm_model_create(f.arena, &arch, MM_F32, 32);
    if (mm_weights_open(&weights, folder, &err) != MM_OK ||
        load_whole(f.model, weights, &err) != MM_OK)
        fail_msg("%s", err.text);
    mm_weights_free(weights);
    hid_t reference = H5Fopen(file, H5F_ACC_RDONLY, H5P_DEFAULT);
    f.tokens = trace_tokens(reference, "tokens", &f.B, &f.T);
    f.targets = next_tokens(f.tokens, f.B * f.T, f.T);
    H5Fclose(reference);
    mm_free(folder);
    mm_free(config);
    mm_free(file);
    return f;
}

static inline void close_case(struct fixture *f) {
    mm_free(f->tokens);
    mm_free(f->targets);
    mm_model_free(f->model);
    mm_arena_free(f->arena);
}

static inline size_t elements(const struct fixture *f, size_t part) {
    return f->model->params[part].rows * f->model->params[part].cols;
}

/* |got - want| <= tolerance · max |want|, which is not zero. */
static inline void expect_near(const char *what, const float *got, const float *want, size_t n,
                               double tolerance) {
    double most = 0, error = 0;
    for (size_t i = 0; i < n; i++) {
        double e = fabs((double)got[i] - (double)want[i]);
        error = e > error || isnan(e) ? e : error;
        most = fmax(most, fabs((double)want[i]));
    }
    if (!(error <= tolerance * most && most > 0))
        fail_msg("%s: off by %.3g of %.3g", what, error, most);
}

#endif
