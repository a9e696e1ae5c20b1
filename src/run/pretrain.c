/* pretrain.c - trains a small model from scratch: the demo's, or a testbed. */
#include "src/run/pretrain.h"

#include "io/files.h"
#include "io/json_text.h"
#include "src/parallel/collect.h"
#include "src/run/job.h"
#include "src/run/progress.h"

#include <math.h>
#include <string.h>

struct pretraining {
    struct mm_job *job;
    struct mm_training *training;
    struct mm_sequences batch; /* a whole one: retain rows, then forget rows */
    struct mm_sequences own;   /* this rank's of it */
    size_t sets;               /* 1, or 2 with forget data */
};

static double step(struct pretraining *pt, size_t t) {
    const struct mm_config *c = pt->job->config;
    const struct mm_dataset *const sets[] = {&pt->job->data.retain, &pt->job->data.forget};
    size_t B = c->data.batch_size;
    pt->batch.counts = (struct mm_counts){0};
    for (size_t i = 0; i < pt->sets; i++) {
        struct mm_counts more = mm_dataset_counts(sets[i], t, B), *all = &pt->batch.counts;
        mm_dataset_batch(sets[i], t, B, 0, B, &pt->batch, i * B);
        *all = (struct mm_counts){.sequences = all->sequences + more.sequences,
                                  .targets = all->targets + more.targets,
                                  .tokens = all->tokens + more.tokens};
    }
    mm_share_pick(&pt->training->passes->share, &pt->batch, &pt->own);
    return mm_training_adamw(pt->training, &pt->own, c, t);
}

static enum mm_status all_steps(struct pretraining *pt, struct mm_error *err) {
    const struct mm_config *c = pt->job->config;
    struct mm_metrics *m = pt->job->metrics;
    struct mm_progress progress =
        mm_progress_start(mm_comm_rank(pt->job->comm), "pretrain", "step", 0, c->pretrain.steps);
    enum mm_status status = MM_OK;
    for (size_t t = 0; t < c->pretrain.steps && status == MM_OK; t++) {
        mm_job_watch(pt->job, "pretraining step", t);
        double loss = step(pt, t);
        if (m) {
            mm_metrics_begin(m, "pretrain");
            mm_metrics_count(m, "step", t);
            mm_metrics_number(m, "loss", loss);
            status = mm_metrics_end(m, err);
        }
        if (status == MM_OK && pt->training->wrecked)
            status =
                mm_fail(err, MM_REJECTED, "pretraining diverged: %s at step %zu: lower pretrain.lr",
                        pt->training->wrecked, t);
        status = mm_comm_agree(pt->job->comm, status, err);
        mm_progress_step(&progress, t + 1, "loss %.4f", loss);
    }
    mm_progress_end(&progress);
    return status;
}

/* output.dir/model: config.json and float32 weights. */
static enum mm_status write(const struct mm_job *job, const struct mm_named_tensor *tensors,
                            size_t tensors_n, struct mm_error *err) {
    char *folder = mm_format("%s/model", job->config->output.dir);
    char *path = mm_format("%s/config.json", folder), *json = NULL;
    enum mm_status status = mm_folder_make(folder, err);
    if (status == MM_OK)
        status = mm_weights_write(folder, tensors, tensors_n, err);
    if (status == MM_OK)
        status = mm_file_read(job->config->pretrain.config, &json, NULL, err);
    if (status == MM_OK) /* it was read as JSON at the start: no NUL in it */
        status = mm_file_write(path, mm_json_start(json), strlen(mm_json_start(json)), err);
    if (status == MM_OK)
        mm_log0(MM_LOG_INFO, "saved %s", folder);
    mm_free(json);
    mm_free(path);
    mm_free(folder);
    return status;
}

/* The float32 masters of all ranks, written by rank 0. Collective. */
static enum mm_status save(const struct pretraining *pt, struct mm_error *err) {
    const struct mm_shard *s = pt->training->shard;
    bool writes = mm_comm_rank(pt->job->comm) == 0;
    enum mm_status status = MM_OK;
    mm_job_watch_files(pt->job, "export", MM_UNNUMBERED);
    struct mm_named_tensor *tensors = mm_calloc(s->tensors_n, sizeof *tensors);
    for (size_t t = 0; t < s->tensors_n; t++) {
        const struct mm_param *p = &s->model->params[s->param[t]];
        float *whole = mm_collect(s, pt->training->p, t);
        tensors[t] = (struct mm_named_tensor){p->name, p->rows, p->vector ? 0 : p->cols,
                                              writes ? whole : NULL};
        if (!writes)
            mm_free(whole);
    }
    if (writes)
        status = write(pt->job, tensors, s->tensors_n, err);
    for (size_t t = 0; t < s->tensors_n; t++)
        mm_free((float *)tensors[t].data);
    mm_free(tensors);
    return mm_comm_agree(pt->job->comm, status, err);
}

enum mm_status mm_pretrain(struct mm_comm *comm, struct mm_device *dev,
                           const struct mm_config *config, struct mm_error *err) {
    struct mm_job job;
    enum mm_status status = mm_job_open(&job, comm, dev, config, MM_JOB_PRETRAIN, err);
    if (status != MM_OK)
        return status;
    struct mm_owner *owner = job.owner = mm_owner_create();
    status = mm_job_open_folder(&job, err);
    struct pretraining pt = {.job = &job, .sets = job.data.forget.tokens ? 2 : 1};
    struct mm_arena *arena = mm_arena_create(dev);
    if (status == MM_OK) {
        struct mm_batch_size size = mm_batch_size_of(config);
        size.sequences *= pt.sets;
        mm_model_randomize(job.model, config->seed);
        pt.training = mm_training_create(arena, comm, job.model, size, MM_F32, MM_ADAMW);
        pt.batch = mm_sequences_create(size.sequences, size.T);
        pt.own = mm_share_sequences(&pt.training->passes->share);
        status = all_steps(&pt, err);
    }
    if (status == MM_OK)
        status = save(&pt, err);
    mm_sequences_free(&pt.batch);
    mm_sequences_free(&pt.own);
    mm_training_free(pt.training);
    mm_arena_free(arena);
    mm_job_close(&job);
    mm_owner_free(owner);
    return status;
}
