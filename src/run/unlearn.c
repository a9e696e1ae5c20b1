/* unlearn.c - the unlearning phase around a method: data, evaluation, budget, checkpoints, export.
 *
 * An asynchronous device is given the next loop before the last one's scalars are there, so that it
 * never waits for the host. At any time
 *   1. done <= asked <= done + 2, and asked <= done + 1 where the device is not asynchronous;
 *   2. nothing was asked for beyond a loop after which something is due (evaluation, checkpoint,
 *      state hash), so that what is due sees the state after that very loop;
 *   3. once a rank wants to stop, no loop is asked for but one that is needed to go on at all.
 * A loop after one that the guard stopped writes nothing, and its scalars are not asked for. The
 * cost: losses of a loop are known one loop late. */
#include "src/run/unlearn.h"

#include "src/method/method.h"
#include "src/parallel/load.h"
#include "src/run/export.h"
#include "src/run/progress.h"
#include "src/run/report.h"
#include "src/run/saving.h"
#include "src/run/state_hash.h"

#include <math.h>

#include "kernels/queue.h"

struct phase {
    struct mm_job *job;
    struct mm_arena *arena;
    struct mm_shard *shard;
    const struct mm_method *method;
    struct mm_method_run run; /* self NULL: not created */
    struct mm_saving saving;
    struct mm_sequences retain, forget; /* this rank's, of a loop */
    size_t loops, each;                 /* of the whole run; passes of a loop */
    size_t asked, done;                 /* loops asked for | completed */
    size_t first;                       /* loops completed before this process */
    bool resumed;
    struct mm_progress progress;
    enum mm_stop_why stop;
    struct mm_stopwatch stopwatch;
};

static enum mm_status create(struct phase *ph, struct mm_job *job, struct mm_arena *arena,
                             struct mm_error *err) {
    const struct mm_config *c = job->config;
    *ph = (struct phase){.job = job, .arena = arena, .method = mm_method_of(c)};
    enum mm_status status = mm_job_loops(c, &ph->loops, err);
    ph->each = ph->method->passes(c);
    bool *wanted = mm_calloc(job->model->params_n, sizeof *wanted);
    if (status == MM_OK)
        status = mm_model_choose(job->model, c->unlearn.target_modules, c->unlearn.target_modules_n,
                                 wanted, err);
    if (status == MM_OK)
        status = mm_hidden_loss_check(c, job->model->arch.layers, err);
    if (status == MM_OK) {
        ph->shard = mm_shard_create(arena, job->comm, job->model, wanted);
        ph->run = ph->method->create(arena, c, job->comm, job->model, ph->shard);
        ph->retain = mm_share_sequences(ph->run.share);
        ph->forget = mm_share_sequences(ph->run.share);
    }
    mm_free(wanted);
    return status;
}

/* What the method begins with, from the files, where the working weights are a rounding of what
 * they hold. */
static enum mm_status load_origin(struct phase *ph, struct mm_error *err) {
    const struct mm_shard *s = ph->shard;
    struct mm_vector w = ph->run.origin;
    enum mm_status status = MM_OK;
    for (size_t t = 0; t < s->tensors_n && status == MM_OK; t++) {
        const struct mm_param *p = &s->model->params[s->param[t]];
        struct mm_rows own = mm_layout_own(&s->layout, t);
        struct mm_stored_rows rows = {p->rows, p->vector ? 0 : p->cols, own.first, own.count};
        status = mm_load_rows(ph->job->dev, ph->job->weights, p->name, rows, w.dtype,
                              (char *)w.data + s->layout.offsets[t] * mm_dtype_bytes(w.dtype), err);
    }
    mm_weights_forget(ph->job->weights);
    return status;
}

static void destroy(struct phase *ph) {
    mm_saving_free(&ph->saving);
    mm_sequences_free(&ph->retain);
    mm_sequences_free(&ph->forget);
    if (ph->run.self)
        ph->method->free(ph->run.self);
    mm_shard_free(ph->shard);
    mm_arena_free(ph->arena);
}

size_t mm_unlearn_plan(struct mm_job *job, struct mm_arena *arena, struct mm_rehearsal *loop,
                       struct mm_error *err) {
    struct phase ph;
    enum mm_stop_why why;
    size_t bytes = 0;
    if (create(&ph, job, arena, err) == MM_OK) {
        bytes = mm_state_own_bytes(ph.run.state);
        *loop = mm_rehearsal_begin(job);
        ph.method->rehearse(ph.run.self);
        mm_stop_agree(&ph.stopwatch, job->comm, MM_OK, &why, err);
        mm_rehearsal_end(loop, job);
    }
    ph.arena = NULL;
    destroy(&ph);
    return bytes;
}

/* -- loops ------------------------------------------------------------------------------------- */

static bool crosses(size_t before, size_t after, size_t every) {
    return after / every > before / every;
}

/* After `done` loops; a trial has no run folder. */
static bool hash_due(const struct phase *ph, size_t done) {
    size_t every = ph->job->config->output.hash_every_loops;
    return every && !ph->job->trial && crosses(done - 1, done, every);
}

/* Collective where a hash is due. */
static enum mm_status write_loop(struct phase *ph, const struct mm_loop_scalars *s,
                                 struct mm_error *err) {
    struct mm_metrics *m = ph->job->metrics;
    char hash[33] = "";
    if (hash_due(ph, ph->done + 1))
        mm_state_hash(ph->run.state, ph->job->comm, ph->job->dev, hash);
    if (!m)
        return MM_OK;
    enum mm_status status = mm_owner_check_often(ph->job->owner, err);
    if (status != MM_OK)
        return status;
    mm_metrics_begin(m, "unlearn");
    mm_metrics_count(m, "loop", ph->done);
    mm_metrics_count(m, "passes", (ph->done + 1) * ph->each);
    mm_metrics_number(m, "retain_loss", s->retain_loss);
    mm_metrics_number(m, "adversary_loss", s->adversary_loss);
    mm_metrics_number(m, "unlearning_loss", s->unlearning_loss);
    mm_metrics_number(m, "grad_norm", s->grad_norm);
    mm_metrics_number(m, "mask_fraction", s->mask_fraction);
    if (*hash)
        mm_metrics_text(m, "state_hash", hash);
    return mm_metrics_end(m, err);
}

static void copy_vector(const struct phase *ph, struct mm_vector to, struct mm_vector from) {
    ph->job->dev->queue->copy(ph->job->dev, to.data, from.data,
                              from.n * mm_dtype_bytes(from.dtype));
}

static bool has_budget(const struct phase *ph) {
    return !isnan(ph->job->config->evaluate.kl.budget);
}

static void keep_state(struct phase *ph) {
    copy_vector(ph, ph->run.kept, ph->run.trained);
    ph->saving.kept = ph->done;
}

/* b as the weights, after `loops` loops, evaluated. */
static enum mm_status evaluate_weights(struct phase *ph, const char *at, size_t loops,
                                       struct mm_error *err) {
    ph->method->store(ph->run.self);
    return mm_report_evaluate(ph->job, at, loops * ph->each, &ph->job->results.after_unlearning,
                              err);
}

static void note_end(struct phase *ph) {
    ph->job->results.kept_passes = ph->saving.kept * ph->each;
    ph->loops = ph->done;
}

/* Beyond the budget: the kept state takes the place of b, and no loop follows. */
static enum mm_status end_at_kept(struct phase *ph, struct mm_error *err) {
    mm_log0(MM_LOG_INFO,
            "kl %.4g after loop %zu exceeds the budget %g: the state after %zu loops is kept",
            ph->job->results.after_unlearning.kl, ph->done - 1, ph->job->config->evaluate.kl.budget,
            ph->saving.kept);
    copy_vector(ph, ph->run.trained, ph->run.kept);
    ph->saving.ended = true;
    note_end(ph);
    return evaluate_weights(ph, "kept", ph->saving.kept, err);
}

/* b as the weights, evaluated; *reason where that rejects the run. */
static enum mm_status evaluate(struct phase *ph, char **reason, struct mm_error *err) {
    struct mm_job *job = ph->job;
    struct mm_evaluation *e = &job->results.after_unlearning;
    double budget = job->config->unlearn.retain_loss_budget;
    enum mm_status status = evaluate_weights(ph, "unlearn", ph->done, err);
    if (status != MM_OK)
        return status;
    if (has_budget(ph) && e->kl > job->config->evaluate.kl.budget)
        return end_at_kept(ph, err);
    if (!mm_evaluation_finite(e, job->data.questions_n))
        *reason = mm_format("the evaluation after loop %zu is not finite", ph->done - 1);
    else if (e->retain_loss > job->results.at_start.retain_loss + budget)
        *reason =
            mm_format("retain loss %.4f after loop %zu exceeds the initial %.4f + budget %g",
                      e->retain_loss, ph->done - 1, job->results.at_start.retain_loss, budget);
    else if (has_budget(ph))
        keep_state(ph);
    return *reason ? MM_REJECTED : MM_OK;
}

static bool evaluation_due(const struct phase *ph, size_t done) {
    return done == ph->loops ||
           crosses((done - 1) * ph->each, done * ph->each, ph->job->config->evaluate.every_passes);
}

static bool checkpoint_due(const struct phase *ph, size_t done) {
    return done == ph->loops || crosses(done - 1, done, ph->job->config->checkpoint.every_loops);
}

/* After a loop: evaluation and checkpoint where due, and the answer to a signal or the limit. */
static enum mm_status after_loop(struct phase *ph, char **reason, struct mm_error *err) {
    enum mm_stop_why stop = ph->stop;
    enum mm_status status = MM_OK;
    if (evaluation_due(ph, ph->done))
        status = evaluate(ph, reason, err);
    if (status == MM_OK && (stop || checkpoint_due(ph, ph->done)))
        status = mm_saving_start(&ph->saving, ph->done, err);
    if (status == MM_OK && stop)
        status = mm_saving_wait(&ph->saving, err);
    if (status == MM_OK && stop && ph->done < ph->loops)
        status = mm_fail(err, MM_STOPPED,
                         "stopped %s after loop %zu of %zu: resume with 'mudman-mpi resume %s'",
                         mm_stop_words(stop), ph->done, ph->loops, ph->job->config->output.dir);
    return status;
}

static void ask_loop(struct phase *ph) {
    struct mm_job *job = ph->job;
    size_t t = ph->asked++;
    mm_share_read(ph->run.share, &job->data.retain, t, &ph->retain);
    mm_share_read(ph->run.share, &job->data.forget, t, &ph->forget);
    mm_job_watch(job, "loop", t);
    ph->method->loop(ph->run.self, t, &ph->retain, &ph->forget);
}

/* Waits for the first loop not done yet; its line, and whether it ends the run. */
static enum mm_status end_loop(struct phase *ph, char **reason, struct mm_error *err) {
    struct mm_loop_scalars s = ph->method->scalars(ph->run.self);
    enum mm_stop_why why;
    enum mm_status status =
        mm_stop_agree(&ph->stopwatch, ph->job->comm, write_loop(ph, &s, err), &why, err);
    if (!ph->stop)
        ph->stop = why;
    if (status != MM_OK)
        return status;
    if (s.stop != MM_GUARD_NONE) {
        *reason = mm_format("loop %zu: %s", ph->done, mm_guard_text((enum mm_guard)s.stop));
        return MM_REJECTED;
    }
    if (ph->run.flips && ph->done == ph->first)
        mm_log0(MM_LOG_INFO,
                "reduce_dtype: bfloat16 masks %.2g %% of the weights otherwise than float32 would "
                "(measured in loop %zu)",
                100 * *ph->run.flips, ph->done);
    ph->done++;
    mm_progress_step(&ph->progress, ph->done, "retain %.4f forget %.4f kept %.0f %%", s.retain_loss,
                     s.adversary_loss, 100 * s.mask_fraction);
    return MM_OK;
}

/* Whether something has to see the state after `done` loops. */
static bool due(const struct phase *ph, size_t done) {
    return ph->stop || evaluation_due(ph, done) || checkpoint_due(ph, done);
}

/* Whether the next loop may be asked for: see the invariants above. */
static bool may_ask(const struct phase *ph) {
    size_t ahead = ph->job->dev->asynchronous ? 2 : 1;
    if (ph->asked == ph->loops || ph->asked == ph->done + ahead)
        return false;
    return ph->asked == ph->done || !(due(ph, ph->asked) || hash_due(ph, ph->asked));
}

/* One loop to its end, and what is due after it. */
static enum mm_status one_loop(struct phase *ph, char **reason, struct mm_error *err) {
    while (may_ask(ph))
        ask_loop(ph);
    enum mm_status status = end_loop(ph, reason, err);
    if (status == MM_OK)
        status = mm_saving_go_on(&ph->saving, err);
    if (status == MM_OK && ph->asked == ph->done && due(ph, ph->done))
        status = after_loop(ph, reason, err);
    return status;
}

/* The losses that a checkpoint does not tell: of the model as it was, whose weights the model has
 * until the first loop, and after loops that are all done. */
static enum mm_status begin_losses(struct phase *ph, char **reason, struct mm_error *err) {
    struct mm_job *job = ph->job;
    enum mm_status status = MM_OK;
    if (!job->trial)
        status = mm_evaluator_keep_start(job->evaluator, err);
    if (status == MM_OK && !job->trial && (!ph->resumed || ph->saving.start_unknown))
        status = mm_report_evaluate(job, "start", 0, &job->results.at_start, err);
    if (status == MM_OK && (!ph->resumed || ph->saving.start_unknown) &&
        !mm_evaluation_finite(&job->results.at_start, job->data.questions_n)) {
        *reason = mm_strdup("the evaluation of the model as it is in model.path is not finite");
        status = MM_REJECTED;
    }
    if (status == MM_OK && ph->saving.start_unknown && ph->saving.ended)
        status = evaluate_weights(ph, "kept", ph->saving.kept, err);
    else if (status == MM_OK && ph->saving.start_unknown && ph->done && ph->done == ph->loops)
        status = evaluate(ph, reason, err);
    return status;
}

static enum mm_status all_loops(struct phase *ph, char **reason, struct mm_error *err) {
    struct mm_job *job = ph->job;
    double started = mm_now();
    enum mm_status status = begin_losses(ph, reason, err);
    if (status == MM_OK && !ph->resumed && ph->loops == 0)
        status = mm_saving_start(&ph->saving, ph->done, err);
    ph->progress = mm_progress_start(job->trial ? 1 : mm_comm_rank(job->comm), "unlearn", "loop",
                                     ph->done, ph->loops);
    ph->stopwatch = mm_stopwatch_start(mm_state_all_bytes(ph->run.state));
    ph->first = ph->asked = ph->done;
    while (status == MM_OK && ph->done < ph->loops)
        status = one_loop(ph, reason, err);
    job->phase.advanced = ph->done > ph->first;
    mm_progress_end(&ph->progress);
    status = mm_saving_end(&ph->saving, status, err);
    job->results.busy += mm_now() - started;
    return status;
}

/* For relearning, which trains them too. */
static void keep_adapters(const struct phase *ph) {
    struct mm_device *dev = ph->job->dev;
    const struct mm_lora *l = ph->run.adapters;
    mm_free(ph->job->phase.adapters);
    ph->job->phase.adapters = l ? mm_calloc(l->p.n + 1, sizeof(float)) : NULL;
    if (l)
        dev->queue->download(dev, ph->job->phase.adapters, l->p.data, l->p.n * sizeof(float));
}

/* The state to begin with: of a checkpoint, or as the model's files have it. */
static enum mm_status begin(struct phase *ph, const char *resume,
                            const struct mm_checkpoint_info *info, struct mm_error *err) {
    enum mm_status status = MM_OK;
    bool rounded = ph->job->model->dtype != MM_F32 && (!resume || ph->run.adapters);
    ph->saving = mm_saving_create(ph->job, ph->run.state, &ph->stopwatch);
    if (resume)
        status = mm_saving_load(&ph->saving, resume, info, ph->loops, err);
    if (status == MM_OK && resume) {
        ph->done = info->loops;
        ph->resumed = true;
    }
    if (status == MM_OK && rounded)
        status = load_origin(ph, err);
    if (status == MM_OK && has_budget(ph) && !resume)
        keep_state(ph);
    if (status == MM_OK && ph->saving.ended)
        note_end(ph);
    return mm_comm_agree(ph->job->comm, status, err);
}

enum mm_status mm_unlearn(struct mm_job *job, const char *resume,
                          const struct mm_checkpoint_info *info, char **reason,
                          struct mm_error *err) {
    struct phase ph;
    enum mm_status status = create(&ph, job, mm_arena_create(job->dev), err);
    status = mm_comm_agree(job->comm, status, err);
    if (status == MM_OK)
        status = begin(&ph, resume, info, err);
    if (status == MM_OK && !job->trial)
        status = mm_stop_before_start(job->comm, err);
    if (status == MM_OK && !job->trial)
        status = resume ? mm_job_reopen_folder(job, info->metrics_bytes, err)
                        : mm_job_open_folder(job, err);
    if (status == MM_OK)
        status = all_loops(&ph, reason, err);
    if (status == MM_OK) {
        struct mm_vector w = ph.method->store(ph.run.self); /* for relearning */
        keep_adapters(&ph);
        if (job->config->output.save_model && !job->trial)
            status = mm_export(job, ph.shard, w, err);
    }
    destroy(&ph);
    return status;
}
