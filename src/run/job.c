/* job.c - opens what a command needs and checks it first; see job.h. */
#include "src/run/job.h"

#include "io/files.h"
#include "src/method/method.h"
#include "src/parallel/load.h"
#include "src/model/stored.h"
#include "src/run/memory.h"
#include "src/run/rows.h"
#include "src/run/stop.h"

#include <math.h>
#include <string.h>
#include <unistd.h>

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

/* Ranks beyond the batch are of use all the same: they hold their rows of the state. */
static void tell_of_idle_ranks(const struct mm_config *c, size_t ranks) {
    bool leaves = c->reduction == MM_REDUCTION_EXACT;
    size_t most = leaves ? mm_leaves(c->data.batch_size, c->data.micro_batch) : c->data.batch_size;
    if (most < ranks)
        mm_log0(MM_LOG_WARN,
                "%zu of %zu ranks have no %s of a batch: they hold their rows of the state, and "
                "compute nothing",
                ranks - most, ranks, leaves ? "leaf (data.micro_batch)" : "sequence");
}

/* Values that are right in themselves but not here, with this model. */
static enum mm_status check_config(const struct mm_job *job, struct mm_error *err) {
    const struct mm_config *c = job->config;
    size_t ranks = (size_t)mm_comm_size(job->comm), T = c->data.context_length;
    TRY(mm_job_check_attacks(c, err));
    tell_of_idle_ranks(c, ranks);
    if (job->arch.sliding_window && job->arch.sliding_window < T)
        return mm_fail(err, MM_BAD_INPUT,
                       "%s: sliding_window %zu is shorter than data.context_length %zu, which is "
                       "not supported: lower data.context_length",
                       c->model.path, job->arch.sliding_window, T);
    return MM_OK;
}

static enum mm_status read_inputs(struct mm_job *job, const char *path, enum mm_job_kind kind,
                                  struct mm_error *err) {
    const struct mm_config *c = job->config;
    bool pretrain = kind == MM_JOB_PRETRAIN;
    if (!pretrain)
        TRY(mm_stored_check_folder(c->model.path, err));
    TRY(mm_arch_read(&job->arch, path, err));
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
    TRY(mm_weights_open(&job->weights, c->model.path, err));
    return mm_stored_match(&job->arch, job->weights, job->dev, err);
}

/* Collective but for a plan, which hashes nothing. */
static enum mm_status open_inputs(struct mm_job *job, enum mm_job_kind kind, struct mm_error *err) {
    const struct mm_config *c = job->config;
    bool pretrain = kind == MM_JOB_PRETRAIN;
    char *path =
        pretrain ? mm_strdup(c->pretrain.config) : mm_format("%s/config.json", c->model.path);
    enum mm_status status = read_inputs(job, path, kind, err);
    if (kind != MM_JOB_PLAN) {
        if (status == MM_OK)
            job->identity = mm_identity_take(path, &job->arch, job->weights, c, &job->data);
        status = mm_comm_agree(job->comm, status, err);
        if (status == MM_OK)
            status = mm_identity_agree(job->comm, &job->identity, err);
    }
    mm_free(path);
    return status;
}

/* What a rank's copy of the weights makes of the model: without this agreed, loading could hang. */
static enum mm_status agree_on_head(const struct mm_job *job, struct mm_error *err) {
    enum mm_status status = MM_OK;
    if (mm_comm_any(job->comm, !job->arch.tied) && job->arch.tied)
        status = mm_fail(err, MM_BAD_INPUT,
                         "rank %d read another weights than other ranks: in %s head and embedding "
                         "are the same: give all ranks the same files",
                         mm_comm_rank(job->comm), mm_weights_path(job->weights));
    return mm_comm_agree(job->comm, status, err);
}

static enum mm_status load_weights(struct mm_job *job, struct mm_error *err) {
    struct mm_input *input = mm_identity_find(&job->identity, "weights");
    TRY(agree_on_head(job, err));
    TRY(mm_load_weights(job->model, job->comm, job->weights, input->hash, err));
    return mm_identity_agree(job->comm, &job->identity, err);
}

static void create_evaluations(struct mm_job *job) {
    struct mm_evaluation *all[] = {&job->results.at_start, &job->results.after_unlearning,
                                   &job->results.after_relearning};
    for (int i = 0; i < 3; i++) {
        all[i]->accuracy = mm_calloc(job->data.questions_n, sizeof(double));
        mm_evaluation_clear(all[i], job->data.questions_n);
    }
}

/* Pretraining holds the whole model, whatever model.shard says. So does a machine's only rank with
 * node, if no other machine has more. */
static void create_model(struct mm_job *job, enum mm_job_kind kind) {
    const struct mm_config *c = job->config;
    bool node = c->model.shard == MM_SHARD_NODE;
    bool shared = mm_comm_near(job->comm).groups < mm_comm_size(job->comm);
    bool slots = kind != MM_JOB_PRETRAIN && (c->model.shard == MM_SHARD_FULL || (node && shared));
    job->model = mm_model_create_in_slots(job->arena, &job->arch, mm_config_dtype(c),
                                          mm_data_longest(&job->data, c),
                                          slots ? mm_spread_slots(job->comm) : 0);
    job->model->recompute = c->model.recompute == MM_RECOMPUTE_LAYER;
    if (slots)
        job->spread = mm_spread_create(job->arena, job->comm, job->model, node);
}

enum mm_status mm_job_open(struct mm_job *job, struct mm_comm *comm, struct mm_device *dev,
                           const struct mm_config *config, enum mm_job_kind kind,
                           struct mm_error *err) {
    *job = (struct mm_job){.comm = comm,
                           .dev = dev,
                           .config = config,
                           .results = {.started = mm_now(), .kept_passes = SIZE_MAX}};
    bool dry = kind == MM_JOB_PLAN;
    dev->exact = config->reduction == MM_REDUCTION_EXACT;
    enum mm_status status = open_inputs(job, kind, err);
    if (status == MM_OK && kind == MM_JOB_TRAIN)
        status = mm_stop_before_start(comm, err);
    if (status == MM_OK) {
        if (!dry && !dev->asynchronous)
            mm_memory_limit(dev, comm);
        job->arena = dry ? mm_arena_create_dry(dev) : mm_arena_create(dev);
        create_model(job, kind);
        if (dry)
            mm_load_rehearse(job->model, comm);
        else if (job->weights)
            status = load_weights(job, err);
    }
    if (status == MM_OK && kind != MM_JOB_PRETRAIN)
        job->evaluator = mm_evaluator_create(job->arena, config, &job->data, comm, job->model);
    create_evaluations(job);
    if (status != MM_OK)
        mm_job_close(job);
    return status;
}

void mm_job_close(struct mm_job *job) {
    mm_free(job->results.at_start.accuracy);
    mm_free(job->results.after_unlearning.accuracy);
    mm_free(job->results.after_relearning.accuracy);
    mm_job_forget_attacks(job);
    mm_free(job->phase.adapters);
    mm_metrics_free(job->metrics);
    mm_evaluator_free(job->evaluator);
    mm_spread_free(job->spread);
    mm_model_free(job->model);
    mm_arena_free(job->arena);
    mm_weights_free(job->weights);
    mm_data_free(&job->data);
    mm_identity_free(&job->identity);
    *job = (struct mm_job){0};
}

/* -- run folder -------------------------------------------------------------------------------- */

static enum mm_status check_unused(const char *dir, struct mm_error *err) {
    static const char *const used[] = {"metrics.jsonl", "checkpoints", "model"};
    for (size_t i = 0; i < sizeof used / sizeof *used; i++) {
        char *path = mm_format("%s/%s", dir, used[i]);
        bool exists = mm_path_exists(path);
        mm_free(path);
        if (exists)
            return mm_fail(err, MM_BAD_INPUT,
                           "output.dir: %s already holds %s of an earlier run: use 'mudman-mpi "
                           "resume %s', which also starts one without a checkpoint again, or "
                           "another folder",
                           dir, used[i], dir);
    }
    return MM_OK;
}

/* The folder of a new run, which no other job has or had. */
static enum mm_status claim_folder(struct mm_job *job, const char *dir, struct mm_error *err) {
    TRY(mm_owner_look(dir, err));
    TRY(check_unused(dir, err));
    TRY(mm_folder_make(dir, err));
    TRY(mm_owner_claim(job->owner, dir, err));
    return check_unused(dir, err); /* another may have come and gone meanwhile */
}

static enum mm_status write_config(const struct mm_job *job, const char *dir,
                                   struct mm_error *err) {
    char *path = mm_format("%s/config.yaml", dir), *text = mm_config_yaml(job->config);
    enum mm_status status = mm_file_write(path, text, strlen(text), err);
    mm_free(path);
    mm_free(text);
    return status;
}

static void unmark_stopped(const char *dir) {
    char *path = mm_format("%s/stopped", dir);
    unlink(path);
    mm_free(path);
}

static enum mm_status open_metrics(struct mm_job *job, size_t keep_bytes, struct mm_error *err) {
    const struct mm_config *config = job->config;
    enum mm_status status = mm_metrics_open(&job->metrics, config->output.dir, keep_bytes, err);
    if (status == MM_OK)
        mm_metrics_be_patient(job->metrics, config->checkpoint.on_error == MM_ON_ERROR_CONTINUE);
    return status;
}

/* The config comes first: whatever has metrics can be resumed. */
static enum mm_status create_folder(struct mm_job *job, struct mm_error *err) {
    const char *dir = job->config->output.dir;
    enum mm_status status = claim_folder(job, dir, err);
    if (status != MM_OK)
        return status;
    unmark_stopped(dir);
    status = write_config(job, dir, err);
    return status == MM_OK ? open_metrics(job, 0, err) : status;
}

/* The config comes last: a resume that fails changes nothing. */
static enum mm_status take_folder(struct mm_job *job, size_t keep_bytes, struct mm_error *err) {
    const char *dir = job->config->output.dir;
    unmark_stopped(dir);
    enum mm_status status = open_metrics(job, keep_bytes, err);
    return status == MM_OK ? write_config(job, dir, err) : status;
}

enum mm_status mm_job_open_folder(struct mm_job *job, struct mm_error *err) {
    enum mm_status status = MM_OK;
    if (mm_comm_rank(job->comm) == 0)
        status = job->again ? take_folder(job, 0, err) : create_folder(job, err);
    return mm_comm_agree(job->comm, status == MM_OK ? MM_OK : MM_BAD_INPUT, err);
}

enum mm_status mm_job_reopen_folder(struct mm_job *job, size_t keep_bytes, struct mm_error *err) {
    enum mm_status status = MM_OK;
    if (mm_comm_rank(job->comm) == 0)
        status = take_folder(job, keep_bytes, err);
    return mm_comm_agree(job->comm, status == MM_OK ? MM_OK : MM_BAD_INPUT, err);
}

void mm_job_mark_stopped(const struct mm_job *job) {
    struct mm_error err;
    char *path = mm_format("%s/stopped", job->config->output.dir);
    const char *text = "A checkpoint is complete: resume.\n";
    if (mm_owner_claimed(job->owner) && mm_file_write(path, text, strlen(text), &err) != MM_OK)
        mm_log0(MM_LOG_WARN, "%s", err.text);
    mm_free(path);
}

void mm_job_watch(const struct mm_job *job, const char *what, size_t number) {
    mm_comm_watch_begin(job->comm, job->config->timeout, what, number);
}

void mm_job_watch_files(const struct mm_job *job, const char *what, size_t number) {
    mm_comm_watch_begin(job->comm, MM_PATIENCE_FOR_FILES * job->config->timeout, what, number);
}

void mm_job_forget_attacks(struct mm_job *job) {
    for (size_t i = 0; i < job->results.attacks_n; i++)
        mm_free(job->results.attacks[i].diverged);
    mm_free(job->results.attacks);
    job->results.attacks = NULL;
    job->results.attacks_n = 0;
}

const struct mm_evaluation *mm_job_before_attacks(const struct mm_job *job) {
    const struct mm_results *r = &job->results;
    return isnan(r->after_unlearning.forget_loss) ? &r->at_start : &r->after_unlearning;
}

size_t mm_job_scored(const struct mm_job *job, double score) {
    for (size_t i = 0; i < job->results.attacks_n; i++)
        if (job->results.attacks[i].score == score)
            return i;
    return SIZE_MAX;
}

enum mm_status mm_job_loops(const struct mm_config *config, size_t *loops, struct mm_error *err) {
    size_t each = mm_method_of(config)->passes(config);
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
