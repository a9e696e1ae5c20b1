/* relearn.c - the attack: SGD on all parameters on held-out forget data (METHOD.md 1.7). */
#include "src/job.h"
#include "src/progress.h"
#include "src/stop.h"

#include <math.h>

struct attack {
    struct mm_job *job;
    struct mm_training *training;
    uint32_t *tokens;
    size_t first_batch; /* the batches before it are for evaluation */
    double best;        /* lowest forget loss seen */
};

static struct mm_training *create(struct mm_job *job, struct mm_arena *arena) {
    const struct mm_config *c = job->config;
    return mm_training_create(arena, job->comm, job->model, c->data.batch_size, c->data.micro_batch,
                              c->data.context_length, c->model.state_dtype, false);
}

void mm_relearn_plan(struct mm_job *job, struct mm_arena *arena) {
    mm_training_free(create(job, arena));
}

/* One SGD step on batch `index` of `set`; the loss before it. */
static double step(struct attack *a, const struct mm_dataset *set, size_t index) {
    const struct mm_passes *p = a->training->passes;
    mm_dataset_batch(set, a->first_batch + index, p->batch_size, p->first, p->share, a->tokens);
    return mm_training_sgd(a->training, a->tokens, a->job->config->relearn.lr);
}

static enum mm_status evaluate(struct attack *a, size_t passes, struct mm_error *err) {
    struct mm_evaluation *e = &a->job->after_relearning;
    enum mm_status status = mm_job_evaluate(a->job, "relearn", passes, e, err);
    a->best = isnan(a->best) || e->forget_loss < a->best ? e->forget_loss : a->best;
    return status;
}

static enum mm_status write_step(struct mm_job *job, size_t index, double loss,
                                 struct mm_error *err) {
    enum mm_status status = MM_OK;
    if (job->metrics) {
        mm_metrics_begin(job->metrics, "relearn");
        mm_metrics_count(job->metrics, "step", index);
        mm_metrics_number(job->metrics, "loss", loss);
        status = mm_metrics_end(job->metrics, err);
    }
    return mm_comm_agree(job->comm, status, err);
}

/* *bad: the step whose loss was not finite, or SIZE_MAX. */
static enum mm_status steps(struct attack *a, size_t *bad, struct mm_error *err) {
    const struct mm_config *c = a->job->config;
    size_t each = c->relearn.with_retain ? 4 : 2, n = c->relearn.passes / each;
    size_t every = c->evaluate.every_passes;
    struct mm_progress progress =
        mm_progress_start(mm_comm_rank(a->job->comm), "relearn", "step", 0, n);
    enum mm_status status = MM_OK;
    *bad = SIZE_MAX;
    for (size_t i = 0; i < n && status == MM_OK && *bad == SIZE_MAX; i++) {
        double loss = step(a, &a->job->data.forget_validation, i), retain = 0;
        if (c->relearn.with_retain && isfinite(loss))
            retain = step(a, &a->job->data.retain_validation, i);
        if (!isfinite(loss) || !isfinite(retain))
            *bad = i;
        status = write_step(a->job, i, loss, err);
        mm_progress_step(&progress, i + 1, "forget loss %.4f", loss);
        if (status == MM_OK && mm_comm_any(a->job->comm, mm_stop_asked()))
            status = mm_fail(err, MM_STOPPED,
                             "stopped by a signal while relearning: 'mudman-mpi "
                             "resume %s' relearns from the last checkpoint",
                             c->output.dir);
        bool due = (i + 1) * each / every > i * each / every || i + 1 == n;
        if (status == MM_OK && due && *bad == SIZE_MAX)
            status = evaluate(a, (i + 1) * each, err);
    }
    mm_progress_end(&progress);
    return status;
}

enum mm_status mm_relearn(struct mm_job *job, double *score, char **reason, struct mm_error *err) {
    const struct mm_config *c = job->config;
    struct mm_arena *arena = mm_arena_create(job->dev, false);
    struct attack a = {.job = job, .training = create(job, arena), .best = NAN};
    const struct mm_passes *p = a.training->passes;
    bool separate = job->data.forget_evaluation.tokens != NULL;
    size_t bad;
    a.first_batch = separate ? 0 : c->evaluate.batches;
    a.tokens = mm_calloc(p->share * p->T, sizeof *a.tokens);
    enum mm_status status = steps(&a, &bad, err);
    if (status == MM_OK && bad != SIZE_MAX) {
        *reason = mm_format("relearning diverged: the loss is not finite at step %zu", bad);
        status = MM_REJECTED;
    }
    *score = status == MM_OK ? a.best : NAN;
    mm_free(a.tokens);
    mm_training_free(a.training);
    mm_arena_free(arena);
    return status;
}
