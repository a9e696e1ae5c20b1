/* golden_run.h - an unlearning run as a trace describes it: its config, its vectors and its loops.
 */
#ifndef MM_TEST_GOLDEN_RUN_H
#define MM_TEST_GOLDEN_RUN_H

#include "io/dataset.h"
#include "src/mudman.h"
#include "tests/golden/golden_device.h"

/* The config a trace's `overrides` attribute describes. */
static inline void read_config(struct mm_config *config, hid_t group, size_t micro_batch) {
    static const char base[] =
        "model: {path: m}\n"
        "data: {retain: r, forget: f, retain_validation: rv,\n"
        "  forget_validation: fv, context_length: 2}\n"
        "unlearn: {loops: 1, unlearning_rate: 1, retaining_rate: 1, adv_lr: 1}\n"
        "output: {dir: o}\n";
    struct mm_error err = {""};
    char *text = trace_text(group, "overrides"), *lines[32], micro[64], *save = NULL;
    size_t n = 0;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        lines[n++] = line;
    snprintf(micro, sizeof micro, "data.micro_batch=%zu", micro_batch);
    lines[n++] = micro;
    if (mm_config_parse(config, base, "base", lines, n, MM_RUN, &err) != MM_OK)
        fail_msg("%s", err.text);
    mm_free(text);
}

struct unlearning {
    struct mm_arena *arena;
    struct mm_shard *shard;
    struct mm_mudman *u;
    struct mm_dataset retain, forget;
    struct mm_sequences retain_batch, forget_batch;
};

static inline struct unlearning begin(struct fixture *f, const struct mm_config *config) {
    struct mm_error err = {""};
    struct unlearning run = {.arena = mm_arena_create(dev),
                             .retain = trace_dataset(f->traces, "retain"),
                             .forget = trace_dataset(f->traces, "forget")};
    load_model(f, f->model);
    bool *wanted = mm_calloc(f->model->params_n, 1);
    if (mm_model_choose(f->model, config->unlearn.target_modules, config->unlearn.target_modules_n,
                        wanted, &err) != MM_OK)
        fail_msg("%s", err.text);
    run.shard = mm_shard_create(run.arena, comm, f->model, wanted);
    run.u = mm_mudman_create(run.arena, config, comm, f->model, run.shard);
    run.retain_batch = mm_share_sequences(&run.u->passes->share);
    run.forget_batch = mm_share_sequences(&run.u->passes->share);
    mm_free(wanted);
    return run;
}

static inline void one_loop(struct unlearning *run, size_t t) {
    mm_share_read(&run->u->passes->share, &run->retain, t, &run->retain_batch);
    mm_share_read(&run->u->passes->share, &run->forget, t, &run->forget_batch);
    mm_mudman_loop(run->u, t, &run->retain_batch, &run->forget_batch);
}

static inline void end(struct unlearning *run) {
    mm_sequences_free(&run->retain_batch);
    mm_sequences_free(&run->forget_batch);
    mm_mudman_free(run->u);
    mm_shard_free(run->shard);
    mm_arena_free(run->arena);
    mm_dataset_free(&run->retain);
    mm_dataset_free(&run->forget);
}

#endif
