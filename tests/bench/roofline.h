/* roofline.h - the least time of a loop on a GPU, by kind of operation, and the bytes that the CUDA
 * kernels move beside the least: the loop itself is run, on a dry device that counts (profile.h).
 * Nothing is measured, and no GPU is needed. */
#ifndef MM_BENCH_ROOFLINE_H
#define MM_BENCH_ROOFLINE_H

#include "tests/bench/loop_config.h"
#include "tests/bench/profile.h"
#include "src/mudman.h"

/* An H100's memory, and what large products of bfloat16 reach on an H100 or H200; float32 without
 * tensor cores. */
static const struct mm_rates roofline_rates = {
    .memory = 3.35e12, .bfloat16 = 790e12, .float32 = 67e12};

/* Of the least bytes: what the launches may move at most. */
#define ROOFLINE_MOST 1.15

/* One loop, neither the first nor one with a fork. */
static inline void roofline_run(struct mm_comm *comm, struct mm_device *dev, const struct shape *s,
                                enum mm_dtype dtype, const struct mm_config *config) {
    struct mm_error err;
    struct mm_arena *arena = mm_arena_create_dry(dev);
    struct mm_model *model = mm_model_create(arena, &s->arch, dtype, s->context);
    bool *wanted = mm_calloc(model->params_n, sizeof *wanted);
    char *target = s->target;
    MM_CHECK(mm_model_choose(model, &target, 1, wanted, &err) == MM_OK, "%s", err.text);
    struct mm_shard *shard = mm_shard_create(arena, comm, model, wanted);
    struct mm_mudman *u = mm_mudman_create(arena, config, comm, model, shard);
    profile_begin(dev);
    mm_mudman_method.rehearse(u);
    mm_mudman_free(u);
    mm_shard_free(shard);
    mm_free(wanted);
    mm_model_free(model);
    mm_arena_free(arena);
}

static inline void roofline_row(const char *name, const struct profile_meter *m) {
    printf("| %s | %zu | %.1f | %.3f | %.3f | %.2f | %.3f | %.2f |\n", name, m->calls,
           1e-9 * m->flops, 1e-9 * m->bytes, 1e3 * m->seconds,
           m->bytes > 0 ? m->cuda.launched / m->bytes : 1, 1e-9 * m->cuda.asked,
           m->bytes > 0 ? m->cuda.asked / m->bytes : 1);
}

/* As a table of Markdown. False where the launches move too many bytes, or where an operation that
 * takes time stands in no row. */
static inline bool roofline_print(struct mm_clock all) {
    struct profile_meter sum = {0};
    printf(
        "| operation | calls | GFLOP | GB at least | floor, ms | launches / least | GB asked for "
        "| asked / least |\n|---|---|---|---|---|---|---|---|\n");
    for (int i = 0; i < PROFILE_KINDS; i++) {
        const struct profile_meter *m = &profile_meters[i];
        if (!m->calls)
            continue;
        roofline_row(profile_names[i], m);
        sum.calls += m->calls;
        sum.flops += m->flops;
        sum.bytes += m->bytes;
        sum.seconds += m->seconds;
        sum.cuda.launched += m->cuda.launched;
        sum.cuda.asked += m->cuda.asked;
    }
    roofline_row("**sum**", &sum);
    printf("\noperations of a few numbers, which stand in no row: %.6f ms\n",
           1e3 * (all.now - sum.seconds));
    return sum.cuda.launched <= ROOFLINE_MOST * sum.bytes && all.now - sum.seconds < 1e-6;
}

/* argv: an MPI program's. Returns its exit status. */
static inline int roofline(int *argc, char ***argv, struct shape s, enum mm_dtype dtype,
                           enum mm_dtype state, enum mm_graph graph) {
    struct mm_links none = {.per_machine = 1};
    struct mm_error err = {""};
    struct mm_comm *comm = mm_comm_create(argc, argv);
    struct mm_device *dev = mm_device_create_dry(MM_CUDA_CHUNK, roofline_rates);
    struct mm_config config = loop_config(&s, s.batch, state, graph);
    mm_comm_pretend(comm, 1, none);
    MM_CHECK(mm_comm_attach(comm, dev, MM_TRANSPORT_AUTO, MM_F32, &err) == MM_OK, "%s", err.text);
    roofline_run(comm, dev, &s, dtype, &config);
    printf("computed, not measured: a loop of %s, %zu x %zu tokens, %s, state %s, at %.2f TB/s and "
           "%.0f TFLOP/s\n\n",
           s.name, s.batch, s.context, mm_dtype_name(dtype), mm_dtype_name(state),
           1e-12 * roofline_rates.memory,
           1e-12 * (dtype == MM_F32 ? roofline_rates.float32 : roofline_rates.bfloat16));
    bool fine = roofline_print(*mm_dry_clock(dev));
    mm_comm_pretend_end(comm);
    mm_comm_free(comm);
    mm_device_free(dev);
    return fine ? 0 : 1;
}

#endif
