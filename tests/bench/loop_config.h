/* loop_config.h - the loop that the benchmarks run, by their options. */
#ifndef MM_BENCH_LOOP_CONFIG_H
#define MM_BENCH_LOOP_CONFIG_H

#include "tests/bench/bench_shapes.h"
#include "src/config/config.h"

static inline enum mm_dtype dtype_of(const char *name) {
    return strcmp(name, "bfloat16") == 0 ? MM_BF16 : MM_F32;
}

static inline enum mm_graph graph_of(const char *name) {
    return strcmp(name, "fresh") == 0   ? MM_GRAPH_FRESH
           : strcmp(name, "reuse") == 0 ? MM_GRAPH_REUSE
                                        : MM_GRAPH_LISTING;
}

/* micro: sequences that go through the model at once. */
static inline struct mm_config loop_config(const struct shape *s, size_t micro, enum mm_dtype state,
                                           enum mm_graph graph) {
    struct mm_config c = {0};
    c.model.state_dtype = state;
    c.data.batch_size = s->batch;
    c.data.micro_batch = micro;
    c.data.context_length = s->context;
    c.unlearn.loss_fn = MM_LOSS_NEG_CROSS_ENTROPY;
    c.unlearn.graph = graph;
    c.unlearn.unlearning_rate = 1e-2;
    c.unlearn.retaining_rate = c.unlearn.adv_lr = 1e-3;
    c.unlearn.retain_momentum = 0.9;
    c.unlearn.fork_every_n_loops = 1000000;
    c.unlearn.adv_decay = c.unlearn.discard_growing_weights = 1;
    c.unlearn.train_adversary = c.unlearn.use_masking = c.unlearn.retain_cross_entropy = true;
    return c;
}

#endif
