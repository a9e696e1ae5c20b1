/* job.c - see job.h. */
#include "src/run/job.h"

#include "io/files.h"
#include "src/mudman.h"
#include "src/run/rows.h"
#include "src/run/stop.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define TRY(call)                                                                                  \
    do {                                                                                           \
        enum mm_status try_status = (call);                                                        \
        if (try_status != MM_OK)                                                                   \
            return try_status;                                                                     \
    } while (0)

enum mm_status mm_job_check_attacks(const struct mm_config *c, struct mm_error *err) {
    for (size_t i = 0; i < mm_config_attacks_n(c); i++) {
        struct mm_attack a = mm_config_attack(c, i);
        size_t each = a.with_retain ? 4 : 2;
        if (a.passes % each)
            return mm_fail(
                err, MM_BAD_INPUT,
                "relearn.%spasses%s%s is %zu, not a multiple of the %zu passes of a step",
                a.name ? "attacks: " : "", a.name ? " of " : "", a.name ? a.name : "", a.passes,
                each);
    }
    return MM_OK;
}

static enum mm_status check_leaves(const struct mm_config *c, size_t ranks, struct mm_error *err) {
    size_t leaves = mm_leaves(c->data.batch_size, c->data.micro_batch);
    if (c->reduction == MM_REDUCTION_EXACT && leaves < ranks)
        return mm_fail(err, MM_BAD_INPUT,
                       "data.micro_batch is %zu: with reduction: exact a batch of %zu has %zu "
                       "leaves of so many sequences, fewer than the %zu ranks: start at most %zu "
                       "ranks or lower data.micro_batch",
                       c->data.micro_batch, c->data.batch_size, leaves, ranks, leaves);
    return MM_OK;
}

/* Values that are right in themselves but not here: this model, this number of ranks. */
static enum mm_status check_config(const struct mm_job *job, struct mm_error *err) {
    const struct mm_config *c = job->config;
    size_t ranks = (size_t)mm_comm_size(job->comm), T = c->data.context_length;
    TRY(mm_job_check_attacks(c, err));
    if (c->data.batch_size < ranks)
        return mm_fail(err, MM_BAD_INPUT,
                       "data.batch_size is %zu, but there are %zu ranks: start at most %zu ranks "
                       "or raise data.batch_size",
                       c->data.batch_size, ranks, c->data.batch_size);
    TRY(check_leaves(c, ranks, err));
    if (job->arch.sliding_window && job->arch.sliding_window < T)
        return mm_fail(err, MM_BAD_INPUT,
                       "%s: sliding_window %zu is shorter than data.context_length %zu, which is "
                       "not supported: lower data.context_length",
                       c->model.path, job->arch.sliding_window, T);
    return MM_OK;
}

static enum mm_status open_weights(struct mm_job *job, struct mm_error *err) {
    TRY(mm_weights_open(&job->weights, job->config->model.path, err));
    if (mm_comm_rank(job->comm) == 0)
        mm_weights_hash(job->weights, job->weights_hash);
    return MM_OK;
}

/* Whether every tensor of the model is there in the right shape: what is allocated for the model is
 * then in proportion to its files. */
static enum mm_status check_tensors(const struct mm_job *job, struct mm_error *err) {
    struct mm_arena *arena = mm_arena_create(job->dev, true);
    struct mm_model *model = mm_model_create(arena, &job->arch, mm_config_dtype(job->config), 1);
    enum mm_status status = MM_OK;
    for (size_t i = 0; i < model->params_n && status == MM_OK; i++) {
        const struct mm_param *p = &model->params[i];
        const struct mm_stored_tensor *t = mm_weights_find(job->weights, p->name);
        float unused;
        if (!t || t->dims_n != (p->vector ? 1u : 2u) || t->dims[0] != p->rows ||
            (!p->vector && t->dims[1] != p->cols))
            status = mm_weights_load(job->weights, p->name, p->rows, p->vector ? 0 : p->cols,
                                     &unused, MM_F32, err);
    }
    mm_model_free(model);
    mm_arena_free(arena);
    return status;
}

static enum mm_status open_inputs(struct mm_job *job, enum mm_job_kind kind, struct mm_error *err) {
    const struct mm_config *c = job->config;
    bool pretrain = kind == MM_JOB_PRETRAIN;
    char *path =
        pretrain ? mm_strdup(c->pretrain.config) : mm_format("%s/config.json", c->model.path);
    enum mm_status status = mm_arch_read(&job->arch, path, err);
    mm_free(path);
    TRY(status);
    TRY(check_config(job, err));
    TRY(mm_data_read(&job->data, c, job->arch.vocab, err));
    if (kind == MM_JOB_TRAIN || kind == MM_JOB_PLAN)
        TRY(mm_rows_check(&job->data, c, err));
    size_t longest = mm_data_longest(&job->data, c);
    if (job->arch.sliding_window && job->arch.sliding_window < longest)
        return mm_fail(err, MM_BAD_INPUT,
                       "%s: sliding_window %zu is shorter than a question's %zu tokens",
                       c->model.path, job->arch.sliding_window, longest);
    if (pretrain)
        return MM_OK;
    TRY(open_weights(job, err));
    return check_tensors(job, err);
}

static void create_evaluations(struct mm_job *job) {
    struct mm_evaluation *all[] = {&job->at_start, &job->after_unlearning, &job->after_relearning};
    for (int i = 0; i < 3; i++) {
        all[i]->forget_loss = all[i]->retain_loss = NAN;
        all[i]->accuracy = mm_calloc(job->data.questions_n, sizeof(double));
    }
}

enum mm_status mm_job_open(struct mm_job *job, struct mm_comm *comm, struct mm_device *dev,
                           const struct mm_config *config, enum mm_job_kind kind,
                           struct mm_error *err) {
    *job = (struct mm_job){.comm = comm, .dev = dev, .config = config, .started = mm_now()};
    bool dry = kind == MM_JOB_PLAN;
    dev->exact = config->reduction == MM_REDUCTION_EXACT;
    enum mm_status status = open_inputs(job, kind, err);
    if (!dry)
        status = mm_comm_agree(comm, status, err);
    if (status == MM_OK && kind == MM_JOB_TRAIN)
        status = mm_stop_before_start(comm, err);
    if (status == MM_OK) {
        if (!dry)
            mm_comm_broadcast(comm, 0, job->weights_hash, sizeof job->weights_hash);
        job->arena = mm_arena_create(dev, dry);
        job->model = mm_model_create(job->arena, &job->arch, mm_config_dtype(config),
                                     mm_data_longest(&job->data, config));
        if (!dry && kind != MM_JOB_PRETRAIN)
            status = mm_model_load(job->model, job->weights, err);
        if (!dry)
            status = mm_comm_agree(comm, status, err);
    }
    if (status == MM_OK && kind != MM_JOB_PRETRAIN)
        job->evaluator = mm_evaluator_create(job->arena, config, &job->data, comm, job->model);
    create_evaluations(job);
    if (status != MM_OK)
        mm_job_close(job);
    return status;
}

void mm_job_close(struct mm_job *job) {
    mm_free(job->at_start.accuracy);
    mm_free(job->after_unlearning.accuracy);
    mm_free(job->after_relearning.accuracy);
    mm_free(job->attack_scores);
    mm_free(job->adapters);
    mm_metrics_free(job->metrics);
    mm_evaluator_free(job->evaluator);
    mm_model_free(job->model);
    mm_arena_free(job->arena);
    mm_weights_free(job->weights);
    mm_data_free(&job->data);
    *job = (struct mm_job){0};
}

/* -- run folder -------------------------------------------------------------------------------- */

static enum mm_status create_folder(struct mm_job *job, bool resume, size_t keep_bytes,
                                    struct mm_error *err) {
    const char *dir = job->config->output.dir;
    static const char *const used[] = {"metrics.jsonl", "checkpoints", "model"};
    for (size_t i = 0; !resume && i < sizeof used / sizeof *used; i++) {
        char *path = mm_format("%s/%s", dir, used[i]);
        bool exists = mm_path_exists(path);
        mm_free(path);
        if (exists)
            return mm_fail(err, MM_BAD_INPUT,
                           "output.dir: %s already holds %s of an earlier run: use 'mudman-mpi "
                           "resume %s' or another folder",
                           dir, used[i], dir);
    }
    char *path = mm_format("%s/config.yaml", dir), *text = mm_config_yaml(job->config);
    enum mm_status status = mm_folder_make(dir, err);
    if (status == MM_OK)
        status = mm_metrics_open(&job->metrics, dir, keep_bytes, err);
    if (status == MM_OK) {
        mm_metrics_be_patient(job->metrics,
                              job->config->checkpoint.on_error == MM_ON_ERROR_CONTINUE);
        status = mm_file_write(path, text, strlen(text), err);
    }
    mm_free(path);
    mm_free(text);
    return status == MM_OK ? MM_OK : MM_BAD_INPUT;
}

enum mm_status mm_job_open_folder(struct mm_job *job, bool resume, size_t keep_bytes,
                                  struct mm_error *err) {
    enum mm_status status = MM_OK;
    if (mm_comm_rank(job->comm) == 0)
        status = create_folder(job, resume, keep_bytes, err);
    return mm_comm_agree(job->comm, status, err);
}

void mm_job_watch(const struct mm_job *job, const char *what, size_t number) {
    mm_comm_watch_begin(job->comm, job->config->timeout, what, number);
}

void mm_job_watch_files(const struct mm_job *job, const char *what, size_t number) {
    mm_comm_watch_begin(job->comm, MM_PATIENCE_FOR_FILES * job->config->timeout, what, number);
}

/* -- evaluation and result --------------------------------------------------------------------- */

void mm_job_write_moment(const struct mm_job *job, struct mm_metrics *to, const char *at,
                         size_t passes) {
    mm_metrics_text(to, "at", at);
    if (job->attack)
        mm_metrics_text(to, "attack", job->attack);
    mm_metrics_count(to, "passes", passes);
}

void mm_job_write_evaluation(const struct mm_job *job, struct mm_metrics *to,
                             const struct mm_evaluation *e) {
    mm_metrics_number(to, "forget_loss", e->forget_loss);
    mm_metrics_number(to, "retain_loss", e->retain_loss);
    for (size_t i = 0; i < job->data.questions_n; i++) {
        char key[128];
        snprintf(key, sizeof key, "accuracy_%s", job->config->evaluate.multiple_choice[i].name);
        mm_metrics_number(to, key, e->accuracy[i]);
    }
}

static enum mm_status write_evaluation(struct mm_job *job, const char *at, size_t passes,
                                       const struct mm_evaluation *e, struct mm_error *err) {
    mm_metrics_begin(job->metrics, "eval");
    mm_job_write_moment(job, job->metrics, at, passes);
    mm_job_write_evaluation(job, job->metrics, e);
    return mm_metrics_end(job->metrics, err);
}

enum mm_status mm_job_evaluate(struct mm_job *job, const char *at, size_t passes,
                               struct mm_evaluation *out, struct mm_error *err) {
    enum mm_status status = MM_OK;
    mm_job_watch(job, "evaluation after pass", passes);
    mm_evaluate(job->evaluator, out);
    if (job->metrics)
        status = write_evaluation(job, at, passes, out, err);
    mm_log0(MM_LOG_DEBUG, "eval at %s, %zu passes: forget %.4f retain %.4f", at, passes,
            out->forget_loss, out->retain_loss);
    status = mm_comm_agree(job->comm, status, err);
    if (status == MM_OK && job->listener.evaluated)
        status = job->listener.evaluated(job->listener.self, at, passes, out, err);
    return status;
}

/* The largest resident size of this very program; getrusage would count what the process held
 * before exec, as a child of its launcher. */
static double peak_resident_bytes(void) {
    FILE *file = fopen("/proc/self/status", "r");
    char line[256];
    double kilobytes = NAN;
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "VmHWM: %lf", &kilobytes) == 1)
            break;
    if (file)
        fclose(file);
    return kilobytes * 1024;
}

double mm_job_peak_bytes(struct mm_job *job) {
    double bytes = job->dev->ops->asynchronous
                       ? (double)(mm_arena_peak_bytes(job->dev) + MM_CUDA_WORKSPACE_BYTES)
                       : peak_resident_bytes();
    return mm_comm_max(job->comm, bytes);
}

static void write_losses(struct mm_job *job) {
    const struct {
        const char *forget, *retain;
        const struct mm_evaluation *e;
    } rows[] = {{"forget_loss_start", "retain_loss_start", &job->at_start},
                {"forget_loss_unlearn", "retain_loss_unlearn", &job->after_unlearning},
                {"forget_loss_relearn", "retain_loss_relearn", &job->after_relearning}};
    for (size_t i = 0; i < 3; i++) {
        mm_metrics_number(job->metrics, rows[i].forget, rows[i].e->forget_loss);
        mm_metrics_number(job->metrics, rows[i].retain, rows[i].e->retain_loss);
    }
}

static double attack_score(const struct mm_job *job, size_t i) {
    return job->attack_scores ? job->attack_scores[i] : NAN;
}

void mm_job_write_scores(const struct mm_job *job, struct mm_metrics *to, double score) {
    mm_metrics_number(to, "score", score);
    for (size_t i = 0; i < job->config->relearn.attacks_n; i++) {
        char *key = mm_format("score_%s", job->config->relearn.attacks[i].name);
        mm_metrics_number(to, key, attack_score(job, i));
        mm_free(key);
    }
}

static void print_attacks(const struct mm_job *job) {
    for (size_t i = 0; i < job->config->relearn.attacks_n && job->attack_scores; i++) {
        struct mm_attack a = mm_config_attack(job->config, i);
        if (a.passes && isnan(attack_score(job, i)))
            mm_log0(MM_LOG_INFO, "%-18s %12s", a.name, "diverged");
        else if (a.passes)
            mm_log0(MM_LOG_INFO, "%-18s %12.4f  lowest forget loss of this attack", a.name,
                    attack_score(job, i));
    }
}

static void print_summary(const struct mm_job *job, double seconds, double peak) {
    const char *const names[] = {"start", "after unlearning", "after relearning"};
    const struct mm_evaluation *const all[] = {&job->at_start, &job->after_unlearning,
                                               &job->after_relearning};
    char text[32];
    mm_log0(MM_LOG_INFO, "%-18s %12s %12s", "", "forget loss", "retain loss");
    for (int i = 0; i < 3; i++)
        if (!isnan(all[i]->forget_loss))
            mm_log0(MM_LOG_INFO, "%-18s %12.4f %12.4f", names[i], all[i]->forget_loss,
                    all[i]->retain_loss);
    mm_log0(MM_LOG_INFO, "%.1f s, at most %s of %smemory a rank", seconds,
            mm_bytes_text(text, peak), job->dev->ops->asynchronous ? "GPU " : "");
}

enum mm_status mm_job_result(struct mm_job *job, const char *reason, double score,
                             struct mm_error *err) {
    mm_job_watch_files(job, "result", MM_UNNUMBERED);
    double peak = mm_job_peak_bytes(job), seconds = mm_now() - job->started;
    enum mm_status status = MM_OK;
    if (job->metrics) {
        mm_metrics_be_patient(job->metrics, false);
        mm_metrics_begin(job->metrics, "result");
        mm_metrics_text(job->metrics, "status", reason ? "rejected" : "done");
        mm_metrics_text(job->metrics, "reason", reason ? reason : "");
        mm_job_write_scores(job, job->metrics, score);
        write_losses(job);
        mm_metrics_number(job->metrics, "peak_bytes", peak);
        mm_metrics_number(job->metrics, "seconds", seconds);
        status = mm_metrics_end(job->metrics, err);
    }
    print_summary(job, seconds, peak);
    print_attacks(job);
    if (!isnan(score))
        mm_log0(MM_LOG_INFO, "score (lowest forget loss while relearning): %.4f", score);
    return mm_comm_agree(job->comm, status, err);
}

enum mm_status mm_job_loops(const struct mm_config *config, size_t *loops, struct mm_error *err) {
    size_t each = mm_mudman_passes(config);
    *loops = config->unlearn.loops;
    if (config->unlearn.passes == MM_ABSENT)
        return MM_OK;
    if (config->unlearn.passes % each)
        return mm_fail(err, MM_BAD_INPUT,
                       "unlearn.passes is %zu, not a multiple of the %zu passes of a loop with "
                       "these settings: try %zu",
                       config->unlearn.passes, each, (config->unlearn.passes / each + 1) * each);
    *loops = config->unlearn.passes / each;
    return MM_OK;
}
