/* bench_shapes.h - the models that the benchmarks run, with random weights, by name. */
#ifndef MM_BENCH_SHAPES_H
#define MM_BENCH_SHAPES_H

#include "src/model/arch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct shape {
    const char *name;
    struct mm_arch arch;
    char *target; /* the intervened module */
    size_t batch, context;
};

static inline struct mm_heads shape_heads(size_t heads, size_t kv, size_t d) {
    return (struct mm_heads){.heads = heads,
                             .kv_heads = kv,
                             .head_dim = d,
                             .rotary_dim = d,
                             .q_step = d,
                             .k_first = heads * d,
                             .k_step = d,
                             .v_first = (heads + kv) * d,
                             .v_step = d};
}

static inline struct mm_arch shape_llama(size_t layers, size_t width, size_t mlp, size_t vocab,
                                         size_t heads, size_t kv) {
    return (struct mm_arch){.family = MM_LLAMA,
                            .layers = layers,
                            .width = width,
                            .mlp = mlp,
                            .vocab = vocab,
                            .heads = shape_heads(heads, kv, width / heads),
                            .norm = MM_RMS_NORM,
                            .epsilon = 1e-5f,
                            .activation = MM_SWIGLU,
                            .tied = true,
                            .rope_theta = 1e4,
                            .initializer_range = 0.02};
}

static inline struct mm_arch shape_pythia_14m(void) {
    size_t d = 32;
    return (struct mm_arch){.family = MM_NEOX,
                            .layers = 6,
                            .width = 128,
                            .mlp = 512,
                            .vocab = 50304,
                            .heads = {.heads = 4,
                                      .kv_heads = 4,
                                      .head_dim = d,
                                      .rotary_dim = 8,
                                      .q_step = 3 * d,
                                      .k_first = d,
                                      .k_step = 3 * d,
                                      .v_first = 2 * d,
                                      .v_step = 3 * d},
                            .norm = MM_LAYER_NORM,
                            .epsilon = 1e-5f,
                            .activation = MM_GELU,
                            .parallel = true,
                            .qkv_bias = true,
                            .o_bias = true,
                            .mlp_bias = true,
                            .rope_theta = 1e4,
                            .initializer_range = 0.02};
}

/* Ends the program where there is none of that name. */
static inline struct shape find_shape(const char *name) {
    const struct shape shapes[] = {
        {"demo", shape_llama(3, 64, 192, 256, 4, 2), "gate_proj", 8, 96},
        {"pythia-14m", shape_pythia_14m(), "dense_h_to_4h", 4, 100},
        {"wide-100m", shape_llama(4, 1024, 4096, 32768, 16, 4), "gate_proj", 4, 100},
        {"smollm-135m", shape_llama(30, 576, 1536, 49152, 9, 3), "gate_proj", 4, 100},
        {"llama-1b", shape_llama(16, 2048, 8192, 128256, 32, 8), "gate_proj", 16, 100},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (strcmp(shapes[i].name, name) == 0)
            return shapes[i];
    fprintf(stderr, "no shape '%s'\n", name);
    exit(2);
}

/* Of a command line of options with a value each. */
struct option_of {
    const char *name, **value;
};

/* Exits where an argument is no option. */
static inline void read_values(int argc, char **argv, const struct option_of *all, size_t n) {
    for (int i = 1; i < argc; i += 2) {
        size_t k = 0;
        while (k < n && strcmp(argv[i], all[k].name) != 0)
            k++;
        if (k == n || i + 1 == argc) {
            fprintf(stderr, "no option '%s', or no value\n", argv[i]);
            exit(2);
        }
        *all[k].value = argv[i + 1];
    }
}

#endif
