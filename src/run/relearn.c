/* relearn.c - the attacks: training on held-out forget data (docs/method.md 9), each from the
 * unlearned weights. */
#include "src/run/relearn.h"

#include "src/run/progress.h"
#include "src/run/report.h"
#include "src/run/rows.h"
#include "src/run/stop.h"

#include <math.h>

#include "kernels/queue.h"

struct attack {
    struct mm_job *job;
    struct mm_attack how;
    struct mm_training *training;
    struct mm_sequences own; /* this rank's, of a step */
    struct mm_attack_rows rows;
    double start;   /* the forget loss before any attack */
    double best;    /* lowest forget loss seen */
    char *diverged; /* why this attack is no evidence, the job's; NULL: it is */
    struct mm_stopwatch stopwatch;
    struct mm_evaluation last;
};

/* -- the weights that every attack starts from ------------------------------------------------- */

/* Nothing where there is only one attack. */
static struct mm_kept_weights keep_weights(struct mm_job *job, struct mm_arena *arena) {
    struct mm_kept_weights none = {0};
    return mm_config_attacks_n(job->config) == 1 ? none : mm_weights_keep(arena, job->model);
}

static struct mm_training *create(struct mm_job *job, struct mm_arena *arena, size_t i) {
    struct mm_attack how = mm_config_attack(job->config, i);
    return mm_training_create_attack(arena, job->comm, job->model, job->config, &how,
                                     job->phase.adapters);
}

/* What attack i takes; and a step of it is rehearsed. */
static size_t bytes_of(struct mm_job *job, size_t i, struct mm_rehearsal *step) {
    struct mm_arena *arena = mm_arena_create_dry(job->dev);
    struct mm_attack how = mm_config_attack(job->config, i);
    struct mm_training *training = create(job, arena, i);
    struct mm_stopwatch watch = mm_stopwatch_start(0);
    enum mm_stop_why why;
    struct mm_error err;
    size_t bytes = 0;
    *step = mm_rehearsal_begin(job);
    for (int sets = how.with_retain ? 2 : 1; sets > 0; sets--)
        mm_training_rehearse(training, &how);
    mm_stop_agree(&watch, job->comm, MM_OK, &why, &err);
    mm_rehearsal_end(step, job);
    mm_training_free(training);
    for (int purpose = 0; purpose < MM_PURPOSES; purpose++)
        bytes += mm_arena_bytes(arena, (enum mm_purpose)purpose);
    mm_arena_free(arena);
    return bytes;
}

void mm_relearn_plan(struct mm_job *job, struct mm_arena *arena, struct mm_rehearsal *steps) {
    size_t largest = 0, most = 0;
    for (size_t i = 0; i < mm_config_attacks_n(job->config); i++) {
        size_t bytes = bytes_of(job, i, &steps[i]);
        largest = bytes > most ? i : largest;
        most = bytes > most ? bytes : most;
    }
    keep_weights(job, arena);
    mm_training_free(create(job, arena, largest));
}

/* -- one attack -------------------------------------------------------------------------------- */

/* One step on batch `index` of `set`; the loss before it. */
static double step(struct attack *a, const struct mm_dataset *set, size_t index) {
    mm_job_watch(a->job, "relearning step", index);
    mm_share_read(&a->training->passes->share, set, index, &a->own);
    double loss = mm_training_attack(a->training, &a->own, &a->how);
    if (a->training->wrecked)
        a->diverged = mm_format("%s at step %zu", a->training->wrecked, index);
    return loss;
}

static enum mm_status evaluate(struct attack *a, size_t passes, struct mm_error *err) {
    enum mm_status status = mm_report_evaluate(a->job, "relearn", passes, &a->last, err);
    double loss = a->last.forget_loss;
    if (!mm_evaluation_finite(&a->last, a->job->data.questions_n))
        a->diverged = mm_format("the evaluation after %zu passes is not finite", passes);
    else
        a->best = fmin(a->best, loss);
    if (!a->diverged && passes == a->how.passes && loss > a->start + MM_UPHILL)
        a->diverged = mm_format("the forget loss ends at %.4f, beyond the %.4f it started from",
                                loss, a->start);
    return status;
}

static enum mm_status write_step(const struct mm_job *job, size_t index, double loss,
                                 struct mm_error *err) {
    enum mm_status status = MM_OK;
    if (job->metrics)
        status = mm_owner_check_often(job->owner, err);
    if (job->metrics && status == MM_OK) {
        mm_metrics_begin(job->metrics, "relearn");
        if (job->phase.attack)
            mm_metrics_text(job->metrics, "attack", job->phase.attack);
        mm_metrics_count(job->metrics, "step", index);
        mm_metrics_number(job->metrics, "loss", loss);
        status = mm_metrics_end(job->metrics, err);
    }
    return status;
}

/* Relearning starts anew in a resume: where it alone did not fit, it would end so again. */
static enum mm_status stop_here(const struct attack *a, enum mm_stop_why why,
                                struct mm_error *err) {
    const char *dir = a->job->config->output.dir;
    if (why == MM_GO_ON)
        return MM_OK;
    if (why == MM_STOP_LIMIT && !a->job->phase.advanced)
        return mm_fail(err, MM_FAILED,
                       "relearning does not fit into the job's time: give 'mudman-mpi resume %s' "
                       "a longer limit, or lower relearn.passes",
                       dir);
    return mm_fail(err, MM_STOPPED,
                   "stopped %s while relearning: 'mudman-mpi resume %s' relearns from the last "
                   "checkpoint",
                   mm_stop_words(why), dir);
}

static enum mm_status one_step(struct attack *a, size_t i, double *loss, struct mm_error *err) {
    *loss = step(a, &a->rows.forget, i);
    if (a->how.with_retain && !a->diverged)
        step(a, &a->rows.retain, i);
    enum mm_stop_why why;
    enum mm_status status =
        mm_stop_agree(&a->stopwatch, a->job->comm, write_step(a->job, i, *loss, err), &why, err);
    return status == MM_OK ? stop_here(a, why, err) : status;
}

static enum mm_status steps(struct attack *a, struct mm_error *err) {
    struct mm_job *job = a->job;
    size_t each = a->how.with_retain ? 4 : 2, n = a->how.passes / each;
    size_t every = job->config->evaluate.every_passes;
    char *phase = mm_format("relearn%s%s", a->how.name ? " " : "", a->how.name ? a->how.name : "");
    struct mm_progress progress =
        mm_progress_start(job->trial ? 1 : mm_comm_rank(job->comm), phase, "step", 0, n);
    enum mm_status status = MM_OK;
    double loss, started = mm_now();
    a->stopwatch = mm_stopwatch_start(0);
    for (size_t i = 0; i < n && status == MM_OK && !a->diverged; i++) {
        status = one_step(a, i, &loss, err);
        mm_progress_step(&progress, i + 1, "forget loss %.4f", loss);
        bool due = (i + 1) * each / every > i * each / every || i + 1 == n;
        if (status == MM_OK && due && !a->diverged)
            status = evaluate(a, (i + 1) * each, err);
    }
    job->results.busy += mm_now() - started;
    mm_progress_end(&progress);
    mm_free(phase);
    return status;
}

/* Attack i from the working weights, which it changes; a->last.accuracy is the caller's. */
static enum mm_status run(struct attack *a, size_t i, struct mm_error *err) {
    struct mm_job *job = a->job;
    struct mm_arena *arena = mm_arena_create(job->dev);
    a->how = mm_config_attack(job->config, i);
    a->training = create(job, arena, i);
    a->own = mm_share_sequences(&a->training->passes->share);
    a->diverged = NULL;
    a->best = a->last.forget_loss = a->last.retain_loss = NAN;
    job->phase.attack = a->how.name;
    enum mm_status status = steps(a, err);
    job->phase.attack = NULL;
    mm_sequences_free(&a->own);
    mm_training_free(a->training);
    mm_arena_free(arena);
    return status;
}

/* -- all of them ------------------------------------------------------------------------------- */

/* What the result says of relearning: the end of the attack with the lowest forget loss there, a
 * diverged one only where no attack `ended`. */
static void keep_worst(struct attack *a, bool ended) {
    struct mm_evaluation *kept = &a->job->results.after_relearning, last = a->last;
    bool first = !ended && !a->diverged, counts = !ended || !a->diverged;
    if (first || (counts && (isnan(kept->forget_loss) || last.forget_loss < kept->forget_loss))) {
        a->last = *kept;
        *kept = last;
    }
}

static char *why_rejected(const struct attack *a) {
    const char *name = a->how.name;
    return mm_format("relearning diverged%s%s: %s",
                     name ? " in every attack, the last of which is " : "", name ? name : "",
                     a->diverged);
}

/* *ended: whether any attack did without diverging. */
static enum mm_status run_all(struct attack *a, struct mm_kept_weights kept, bool *ended,
                              struct mm_error *err) {
    struct mm_job *job = a->job;
    enum mm_status status = MM_OK;
    bool changed = false;
    for (size_t i = 0; i < mm_config_attacks_n(job->config) && status == MM_OK; i++) {
        if (mm_config_attack(job->config, i).passes == 0)
            continue;
        if (changed)
            mm_weights_restore(job->model, kept);
        changed = true;
        status = run(a, i, err);
        job->results.attacks[i].retain_loss = a->last.retain_loss;
        keep_worst(a, *ended);
        *ended = *ended || !a->diverged;
        job->results.attacks[i].diverged = a->diverged;
        if (status == MM_OK && !a->diverged)
            job->results.attacks[i].score = a->best;
        else if (status == MM_OK && a->how.name)
            mm_log0(MM_LOG_WARN, "attack %s diverged: %s", a->how.name, a->diverged);
    }
    return status;
}

enum mm_status mm_relearn(struct mm_job *job, double *score, char **reason, struct mm_error *err) {
    size_t n = mm_config_attacks_n(job->config);
    struct mm_arena *arena = mm_arena_create(job->dev);
    struct attack a = {.job = job,
                       .start = mm_job_before_attacks(job)->forget_loss,
                       .last.accuracy = mm_calloc(job->data.questions_n, sizeof(double))};
    bool ended = false;
    mm_job_forget_attacks(job);
    job->results.attacks_n = n;
    job->results.attacks = mm_calloc(n, sizeof *job->results.attacks);
    for (size_t i = 0; i < n; i++)
        job->results.attacks[i].score = job->results.attacks[i].retain_loss = NAN;
    enum mm_status status = mm_attack_rows(&a.rows, &job->data, job->config, err);
    if (status == MM_OK)
        status = run_all(&a, keep_weights(job, arena), &ended, err);
    if (status == MM_OK && !ended) {
        *reason = why_rejected(&a);
        status = MM_REJECTED;
    }
    *score = NAN;
    for (size_t i = 0; i < n && status == MM_OK; i++)
        *score = fmin(*score, job->results.attacks[i].score);
    mm_attack_rows_free(&a.rows);
    mm_free(a.last.accuracy);
    mm_arena_free(arena);
    return status;
}
