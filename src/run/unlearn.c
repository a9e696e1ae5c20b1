/* unlearn.c - the unlearning phase around Algorithm 1: data, evaluation, budget, checkpoints,
 * export. */
#include "io/checkpoint.h"
#include "io/files.h"
#include "io/saver.h"
#include "src/parallel/collect.h"
#include "src/run/job.h"
#include "src/mudman.h"
#include "src/run/progress.h"
#include "src/run/state_hash.h"
#include "src/run/stop.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <string.h>

/* The vectors that a checkpoint holds: b, a, m, f, of one layout; the adversary's adapters. */
enum { OF_LAYOUT = 4, STATE };

struct phase {
    struct mm_job *job;
    struct mm_arena *arena;
    struct mm_shard *shard;
    struct mm_mudman *mudman;
    struct mm_state state;  /* names and host addresses of the state for checkpoints */
    void *host[STATE];      /* a copy of each of the state's vectors, or NULL */
    struct mm_saver *saver; /* writes it; NULL in a trial */
    size_t saving;          /* loops in the checkpoint that it writes */
    uint32_t *retain, *forget;
    size_t loops, each; /* of the whole run; passes of a loop */
    size_t asked, done; /* loops asked for | completed */
    size_t first;       /* loops completed before this process */
    bool resumed;
    double save_began; /* mm_now() */
    struct mm_stopwatch stopwatch;
};

static enum mm_status create(struct phase *ph, struct mm_job *job, struct mm_arena *arena,
                             struct mm_error *err) {
    const struct mm_config *c = job->config;
    *ph = (struct phase){.job = job, .arena = arena};
    enum mm_status status = mm_job_loops(c, &ph->loops, err);
    ph->each = mm_mudman_passes(c);
    bool *wanted = mm_calloc(job->model->params_n, sizeof *wanted);
    if (status == MM_OK)
        status = mm_model_choose(job->model, c->unlearn.target_modules, c->unlearn.target_modules_n,
                                 wanted, err);
    if (status == MM_OK)
        status = mm_representation_check(c, job->model->arch.layers, err);
    if (status == MM_OK) {
        ph->shard = mm_shard_create(arena, job->comm, job->model, wanted);
        ph->mudman = mm_mudman_create(arena, c, job->comm, job->model, ph->shard);
        const struct mm_passes *p = ph->mudman->passes;
        ph->retain = mm_calloc(p->share * p->T, sizeof *ph->retain);
        ph->forget = mm_calloc(p->share * p->T, sizeof *ph->forget);
    }
    mm_free(wanted);
    return status;
}

/* b, or what its adapters lie on, from the files where the working weights are a rounding of what
 * they hold. */
static enum mm_status load_base(struct phase *ph, struct mm_error *err) {
    const struct mm_shard *s = ph->shard;
    struct mm_vector b = ph->mudman->base ? ph->mudman->frozen.w : ph->mudman->b;
    size_t bytes = mm_dtype_bytes(b.dtype);
    enum mm_status status = MM_OK;
    for (size_t t = 0; t < s->tensors_n && status == MM_OK; t++) {
        const struct mm_param *p = &s->model->params[s->param[t]];
        struct mm_rows own = mm_layout_own(&s->layout, t);
        char *host = mm_calloc(p->rows * p->cols, bytes);
        status = mm_weights_load(ph->job->weights, p->name, p->rows, p->cols, host, b.dtype, err);
        if (status == MM_OK)
            ph->job->dev->ops->upload(ph->job->dev, (char *)b.data + s->layout.offsets[t] * bytes,
                                      host + own.first * p->cols * bytes,
                                      own.count * p->cols * bytes);
        mm_free(host);
    }
    return status;
}

static void destroy(struct phase *ph) {
    for (int i = 0; i < STATE; i++)
        if (ph->host[i])
            ph->job->dev->ops->pinned_free(ph->job->dev, ph->host[i]);
    mm_saver_free(ph->saver);
    for (size_t i = 0; i < ph->state.tensors_n; i++)
        mm_free(ph->state.tensors[i].name);
    mm_free(ph->state.tensors);
    mm_free(ph->retain);
    mm_free(ph->forget);
    mm_mudman_free(ph->mudman);
    mm_shard_free(ph->shard);
    mm_arena_free(ph->arena);
}

void mm_unlearn_plan(struct mm_job *job, struct mm_arena *arena, struct mm_error *err) {
    struct phase ph;
    create(&ph, job, arena, err);
    ph.arena = NULL;
    destroy(&ph);
}

/* -- checkpoints ------------------------------------------------------------------------------- */

/* data NULL where the run has none. */
static struct mm_vector state_vector(const struct phase *ph, int i) {
    const struct mm_mudman *u = ph->mudman;
    const struct mm_vector none = {0};
    const struct mm_vector all[STATE] = {u->b, u->a, u->m, u->f,
                                         u->adversary ? u->adversary->all : none};
    return all[i];
}

/* Host memory for a copy, from which a checkpoint is written while the loops go on; taken once, so
 * that a checkpoint does not fail for want of it. */
static void take_host(struct phase *ph) {
    struct mm_device *dev = ph->job->dev;
    for (int i = 0; i < STATE; i++) {
        struct mm_vector v = state_vector(ph, i);
        if (v.data)
            ph->host[i] = dev->ops->pinned_alloc(dev, v.n * mm_dtype_bytes(v.dtype));
    }
}

/* From the vectors to their copies, or back. */
static void copy_state(const struct phase *ph, bool to_host) {
    struct mm_device *dev = ph->job->dev;
    for (int i = 0; i < STATE; i++) {
        struct mm_vector v = state_vector(ph, i);
        size_t bytes = v.n * mm_dtype_bytes(v.dtype);
        if (ph->host[i] && to_host)
            dev->ops->download(dev, ph->host[i], v.data, bytes);
        else if (ph->host[i])
            dev->ops->upload(dev, v.data, ph->host[i], bytes);
    }
}

/* Sets of adapters beside the tensors of W: only the adversary has them. */
static void bind_adapters(struct phase *ph) {
    const struct mm_lora *l = ph->mudman->adversary;
    size_t n = l ? l->layout.tensors_n : 0;
    for (size_t set = 0; n && set < ph->job->config->unlearn.adv_lora_count; set++)
        for (size_t i = 0; i < n; i++) {
            struct mm_lora_tensor t = mm_lora_tensor(l, i);
            ph->state.tensors[ph->state.tensors_n++] = (struct mm_state_tensor){
                .name = mm_format("%s.lora_%c.%zu", t.adapted, t.matrix, set),
                .rows = l->layout.rows[i],
                .cols = l->layout.cols[i],
                .adversary = (float *)ph->host[OF_LAYOUT] + set * l->p.n + l->layout.offsets[i]};
        }
}

/* Of tensor t of b; mm_free. */
static char *name_of(const struct phase *ph, size_t t) {
    const struct mm_lora *l = ph->mudman->base;
    const struct mm_shard *s = ph->shard;
    if (!l)
        return mm_strdup(s->model->params[s->param[t]].name);
    return mm_format("%s.lora_%c", mm_lora_tensor(l, t).adapted, mm_lora_tensor(l, t).matrix);
}

static void bind_state(struct phase *ph) {
    const struct mm_mudman *u = ph->mudman;
    const struct mm_layout *l = u->layout;
    const struct mm_config *c = ph->job->config;
    size_t bytes = mm_dtype_bytes(u->b.dtype);
    take_host(ph);
    ph->saver = mm_saver_create(ph->job->comm, c->output.dir, c->checkpoint.keep);
    ph->state = (struct mm_state){.dtype = u->b.dtype, .tensors_n = l->tensors_n};
    size_t adapters = u->adversary ? u->adversary->layout.tensors_n * c->unlearn.adv_lora_count : 0;
    ph->state.tensors = mm_calloc(l->tensors_n + adapters, sizeof *ph->state.tensors);
    for (size_t t = 0; t < l->tensors_n; t++) {
        size_t at = l->offsets[t] * bytes;
        ph->state.tensors[t] = (struct mm_state_tensor){
            .name = name_of(ph, t),
            .rows = l->rows[t],
            .cols = l->cols[t],
            .base = (char *)ph->host[0] + at,
            .adversary = ph->host[1] ? (char *)ph->host[1] + at : NULL,
            .retain_acc = (char *)ph->host[2] + at,
            .forget_acc = ph->host[3] ? (char *)ph->host[3] + at : NULL,
        };
    }
    bind_adapters(ph);
}

/* With the digits that give the same double back: cJSON settles for 15 that come close. */
static cJSON *exact_number(double value) {
    char *text = isfinite(value) ? mm_format("%.17g", value) : mm_strdup("null");
    cJSON *number = cJSON_CreateRaw(text);
    mm_free(text);
    return number;
}

static void add_losses(cJSON *to, const char *key, const struct mm_evaluation *e) {
    cJSON *pair = cJSON_AddArrayToObject(to, key);
    cJSON_AddItemToArray(pair, exact_number(e->forget_loss));
    cJSON_AddItemToArray(pair, exact_number(e->retain_loss));
}

static void get_losses(const cJSON *from, const char *key, struct mm_evaluation *e) {
    const cJSON *pair = cJSON_GetObjectItemCaseSensitive(from, key);
    const cJSON *forget = cJSON_GetArrayItem(pair, 0), *retain = cJSON_GetArrayItem(pair, 1);
    e->forget_loss = cJSON_IsNumber(forget) ? forget->valuedouble : NAN;
    e->retain_loss = cJSON_IsNumber(retain) ? retain->valuedouble : NAN;
}

/* The losses a resumed run cannot measure again. */
static char *extra_text(const struct mm_job *job) {
    cJSON *extra = cJSON_CreateObject();
    add_losses(extra, "start", &job->at_start);
    add_losses(extra, "unlearn", &job->after_unlearning);
    char *printed = cJSON_PrintUnformatted(extra), *text = mm_strdup(printed);
    cJSON_free(printed);
    cJSON_Delete(extra);
    return text;
}

/* What checkpoint.on_error says of a save of `loops` loops that ended with `status`. */
static enum mm_status judge(const struct phase *ph, size_t loops, enum mm_status status,
                            const struct mm_error *err) {
    if (status == MM_OK || ph->job->config->checkpoint.on_error == MM_ON_ERROR_STOP)
        return status;
    mm_log0(MM_LOG_WARN, "no checkpoint after loop %zu, going on: %s", loops, err->text);
    return MM_OK;
}

/* Takes the save under way further, with `wait` to its end. Collective. */
static enum mm_status go_on_saving(struct phase *ph, bool wait, struct mm_error *err) {
    struct mm_error fault;
    if (!ph->saver || !mm_saver_busy(ph->saver))
        return MM_OK;
    if (wait)
        mm_job_watch_files(ph->job, "checkpoint after loop", ph->saving);
    enum mm_status status = mm_saver_poll(ph->saver, wait, &fault);
    if (!mm_saver_busy(ph->saver))
        mm_stopwatch_saved(&ph->stopwatch, mm_now() - ph->save_began);
    if (status != MM_OK)
        *err = fault;
    return judge(ph, ph->saving, status, &fault);
}

/* Starts a save of the state as it is, after the one before. */
static enum mm_status save(struct phase *ph, struct mm_error *err) {
    struct mm_checkpoint_info info = {
        .loops = ph->done, .retain_cursor = ph->done, .forget_cursor = ph->done};
    if (!ph->saver)
        return MM_OK;
    enum mm_status status = go_on_saving(ph, true, err);
    if (status != MM_OK)
        return status;
    mm_job_watch_files(ph->job, "checkpoint after loop", ph->done);
    ph->save_began = mm_now();
    if (ph->job->metrics)
        status = mm_metrics_flush(ph->job->metrics, &info.metrics_bytes, err);
    status = mm_comm_agree(ph->job->comm, status, err);
    if (status != MM_OK)
        return judge(ph, ph->done, status, err);
    memcpy(info.weights_hash, ph->job->weights_hash, sizeof info.weights_hash);
    info.config = mm_config_yaml(ph->job->config);
    info.extra = extra_text(ph->job);
    copy_state(ph, true);
    ph->saving = ph->done;
    status = mm_saver_start(ph->saver, &ph->state, &info, ph->job->metrics, err);
    return judge(ph, ph->saving, status, err);
}

static enum mm_status load(struct phase *ph, const char *folder,
                           const struct mm_checkpoint_info *info, struct mm_error *err) {
    struct mm_job *job = ph->job;
    if (strcmp(info->weights_hash, job->weights_hash) != 0)
        return mm_fail(err, MM_BAD_INPUT,
                       "%s: made from other weights than those in %s (hash %s, not %s)", folder,
                       job->config->model.path, info->weights_hash, job->weights_hash);
    if (info->loops > ph->loops)
        return mm_fail(err, MM_BAD_INPUT, "%s: has %zu loops, more than the %zu asked for", folder,
                       info->loops, ph->loops);
    enum mm_status status = mm_checkpoint_read(job->comm, folder, &ph->state, err);
    if (status != MM_OK)
        return status;
    copy_state(ph, false);
    cJSON *extra = cJSON_Parse(info->extra);
    get_losses(extra, "start", &job->at_start);
    get_losses(extra, "unlearn", &job->after_unlearning);
    cJSON_Delete(extra);
    ph->done = info->loops;
    ph->resumed = true;
    mm_log0(MM_LOG_INFO, "resuming from %s: %zu of %zu loops done", folder, ph->done, ph->loops);
    return MM_OK;
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
        mm_state_hash(ph->mudman, hash);
    if (!m)
        return MM_OK;
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

/* b as the weights, evaluated; *reason where that rejects the run. */
static enum mm_status evaluate(struct phase *ph, char **reason, struct mm_error *err) {
    struct mm_job *job = ph->job;
    struct mm_evaluation *e = &job->after_unlearning;
    double budget = job->config->unlearn.retain_loss_budget;
    mm_mudman_store(ph->mudman);
    enum mm_status status = mm_job_evaluate(job, "unlearn", ph->done * ph->each, e, err);
    if (status != MM_OK)
        return status;
    if (!mm_evaluation_finite(e, job->data.questions_n))
        *reason = mm_format("the evaluation after loop %zu is not finite", ph->done - 1);
    else if (e->retain_loss > job->at_start.retain_loss + budget)
        *reason = mm_format("retain loss %.4f after loop %zu exceeds the initial %.4f + budget %g",
                            e->retain_loss, ph->done - 1, job->at_start.retain_loss, budget);
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
static enum mm_status after_loop(struct phase *ph, enum mm_stop_why stop, char **reason,
                                 struct mm_error *err) {
    enum mm_status status = MM_OK;
    if (evaluation_due(ph, ph->done))
        status = evaluate(ph, reason, err);
    if (status == MM_OK && (stop || checkpoint_due(ph, ph->done)))
        status = save(ph, err);
    if (status == MM_OK && stop)
        status = go_on_saving(ph, true, err);
    if (status == MM_OK && stop && ph->done < ph->loops)
        status = mm_fail(err, MM_STOPPED,
                         "stopped %s after loop %zu of %zu: resume with 'mudman-mpi resume %s'",
                         mm_stop_words(stop), ph->done, ph->loops, ph->job->config->output.dir);
    return status;
}

static void ask_loop(struct phase *ph) {
    struct mm_job *job = ph->job;
    const struct mm_passes *p = ph->mudman->passes;
    size_t t = ph->asked++;
    mm_passes_read(p, &job->data.retain, t, ph->retain);
    mm_passes_read(p, &job->data.forget, t, ph->forget);
    mm_job_watch(job, "loop", t);
    mm_mudman_loop(ph->mudman, t, ph->retain, ph->forget);
}

/* Waits for the first loop not done yet; its line, and whether it ends the run. */
static enum mm_status end_loop(struct phase *ph, struct mm_progress *progress, char **reason,
                               struct mm_error *err) {
    struct mm_loop_scalars s = mm_mudman_scalars(ph->mudman);
    enum mm_status status = mm_comm_agree(ph->job->comm, write_loop(ph, &s, err), err);
    if (status != MM_OK)
        return status;
    if (s.stop != MM_STOP_NONE) {
        *reason = mm_format("loop %zu: %s", ph->done, mm_stop_text((enum mm_stop)s.stop));
        return MM_REJECTED;
    }
    if (ph->mudman->exact.data && ph->done == ph->first)
        mm_log0(MM_LOG_INFO,
                "reduce_dtype: bfloat16 masks %.2g %% of the weights otherwise than float32 would "
                "(measured in loop %zu)",
                100 * mm_mudman_flips(ph->mudman), ph->done);
    ph->done++;
    mm_progress_step(progress, ph->done, "retain %.4f forget %.4f kept %.0f %%", s.retain_loss,
                     s.adversary_loss, 100 * s.mask_fraction);
    return MM_OK;
}

/* One loop to its end. An asynchronous device is given the next one before, so that it never waits
 * for the host, unless something is due in between. A loop after one that the guard stopped writes
 * nothing, and its scalars are not asked for. */
static enum mm_status one_loop(struct phase *ph, struct mm_progress *progress,
                               enum mm_stop_why *stop, char **reason, struct mm_error *err) {
    size_t ahead = ph->job->dev->ops->asynchronous ? 2 : 1;
    while (ph->asked < ph->loops && ph->asked < ph->done + ahead &&
           (ph->asked == ph->done || !(*stop || evaluation_due(ph, ph->asked) ||
                                       checkpoint_due(ph, ph->asked) || hash_due(ph, ph->asked))))
        ask_loop(ph);
    enum mm_status status = end_loop(ph, progress, reason, err);
    if (status == MM_OK)
        status = go_on_saving(ph, false, err);
    if (!*stop)
        *stop = mm_stop_now(&ph->stopwatch, ph->job->comm);
    bool idle = ph->asked == ph->done;
    if (status == MM_OK && idle &&
        (*stop || evaluation_due(ph, ph->done) || checkpoint_due(ph, ph->done)))
        status = after_loop(ph, *stop, reason, err);
    return status;
}

/* The last save is over before anything else happens, also where the loops ended badly, for then
 * it is the newest. */
static enum mm_status end_saving(struct phase *ph, enum mm_status status, struct mm_error *err) {
    struct mm_error fault = {""};
    enum mm_status saved = go_on_saving(ph, true, &fault);
    if (saved != MM_OK && status != MM_OK)
        mm_log0(MM_LOG_WARN, "no checkpoint after loop %zu: %s", ph->saving, fault.text);
    else if (saved != MM_OK)
        *err = fault;
    return status != MM_OK ? status : saved;
}

/* Of all ranks. */
static double state_bytes(const struct phase *ph) {
    const struct mm_lora *l = ph->mudman->adversary;
    double bytes = 0;
    if (l)
        bytes += l->layout.total * (double)ph->job->config->unlearn.adv_lora_count * sizeof(float);
    for (int i = 0; i < OF_LAYOUT; i++)
        if (state_vector(ph, i).data)
            bytes += ph->mudman->layout->total * (double)mm_dtype_bytes(state_vector(ph, i).dtype);
    return bytes;
}

static enum mm_status all_loops(struct phase *ph, char **reason, struct mm_error *err) {
    struct mm_job *job = ph->job;
    enum mm_status status = MM_OK;
    double started = mm_now();
    if (!ph->resumed && !job->trial)
        status = mm_job_evaluate(job, "start", 0, &job->at_start, err);
    if (status == MM_OK && !ph->resumed &&
        !mm_evaluation_finite(&job->at_start, job->data.questions_n)) {
        *reason = mm_strdup("the evaluation of the model as it is in model.path is not finite");
        status = MM_REJECTED;
    }
    if (status == MM_OK && !ph->resumed && ph->loops == 0)
        status = save(ph, err);
    struct mm_progress progress = mm_progress_start(job->trial ? 1 : mm_comm_rank(job->comm),
                                                    "unlearn", "loop", ph->done, ph->loops);
    enum mm_stop_why stop = MM_GO_ON;
    ph->stopwatch = mm_stopwatch_start(state_bytes(ph));
    ph->first = ph->asked = ph->done;
    while (status == MM_OK && ph->done < ph->loops)
        status = one_loop(ph, &progress, &stop, reason, err);
    job->advanced = ph->done > ph->first;
    mm_progress_end(&progress);
    status = end_saving(ph, status, err);
    job->busy += mm_now() - started;
    return status;
}

/* -- export ------------------------------------------------------------------------------------ */

static enum mm_status write_model(const struct phase *ph, const struct mm_replacement *replaced,
                                  struct mm_error *err) {
    const struct mm_job *job = ph->job;
    const struct mm_config *c = job->config;
    static const enum mm_dtype dtypes[] = {MM_F32, MM_F32, MM_BF16, MM_F16};
    enum mm_dtype dtype = dtypes[c->output.save_dtype];
    char *out = mm_format("%s/model", c->output.dir);
    struct mm_export_report report = {0};
    enum mm_status status = mm_folder_remove(out, err);
    if (status == MM_OK)
        status =
            mm_weights_export(job->weights, out, replaced, ph->shard->tensors_n,
                              c->output.save_dtype == MM_SAVE_STORED ? NULL : &dtype, &report, err);
    if (status == MM_OK)
        mm_log0(MM_LOG_INFO,
                "saved %s: %zu of %.0f intervened weights changed, %.2g %% of the changes lost to "
                "rounding",
                out, report.changed, ph->shard->layout.total,
                report.changed ? 100.0 * (double)report.lost / (double)report.changed : 0.0);
    if (status == MM_OK && report.overflowed)
        mm_log0(MM_LOG_WARN,
                "%zu weights are too large for the saved dtype and became infinite: set "
                "output.save_dtype",
                report.overflowed);
    mm_free(out);
    return status;
}

/* w, the weights of b, of all ranks, not the working weights, which are it rounded to the model's
 * dtype. A tensor at a time: only rank 0, which writes, ever holds more than one. Collective. */
static enum mm_status save_model(const struct phase *ph, struct mm_vector w, struct mm_error *err) {
    const struct mm_shard *s = ph->shard;
    bool writes = mm_comm_rank(ph->job->comm) == 0;
    enum mm_status status = MM_OK;
    mm_job_watch_files(ph->job, "export", MM_UNNUMBERED);
    struct mm_replacement *replaced = mm_calloc(s->tensors_n, sizeof *replaced);
    for (size_t t = 0; t < s->tensors_n; t++) {
        const struct mm_param *p = &s->model->params[s->param[t]];
        float *whole = mm_collect(s, w, t);
        replaced[t] = (struct mm_replacement){p->name, writes ? whole : NULL, p->rows * p->cols};
        if (!writes)
            mm_free(whole);
    }
    if (writes)
        status = write_model(ph, replaced, err);
    for (size_t t = 0; t < s->tensors_n; t++)
        mm_free((float *)replaced[t].data);
    mm_free(replaced);
    return mm_comm_agree(ph->job->comm, status, err);
}

/* For relearning, which trains them too. */
static void keep_adapters(const struct phase *ph) {
    struct mm_vector b = ph->mudman->b;
    mm_free(ph->job->adapters);
    ph->job->adapters = ph->mudman->base ? mm_calloc(b.n + 1, sizeof(float)) : NULL;
    if (ph->job->adapters)
        ph->job->dev->ops->download(ph->job->dev, ph->job->adapters, b.data, b.n * sizeof(float));
}

enum mm_status mm_unlearn(struct mm_job *job, const char *resume,
                          const struct mm_checkpoint_info *info, char **reason,
                          struct mm_error *err) {
    struct phase ph;
    enum mm_status status = create(&ph, job, mm_arena_create(job->dev, false), err);
    status = mm_comm_agree(job->comm, status, err);
    if (status == MM_OK) {
        if (!job->trial)
            bind_state(&ph);
        if (resume)
            status = load(&ph, resume, info, err);
        bool rounded = job->model->dtype != MM_F32 && (!resume || ph.mudman->base);
        if (status == MM_OK && rounded)
            status = load_base(&ph, err);
        status = mm_comm_agree(job->comm, status, err);
    }
    if (status == MM_OK && !job->trial)
        status = mm_stop_before_start(job->comm, err);
    if (status == MM_OK && !job->trial)
        status = mm_job_open_folder(job, resume != NULL, resume ? info->metrics_bytes : 0, err);
    if (status == MM_OK)
        status = all_loops(&ph, reason, err);
    if (status == MM_OK) {
        struct mm_vector w = mm_mudman_store(ph.mudman); /* for relearning */
        keep_adapters(&ph);
        if (job->config->output.save_model && !job->trial)
            status = save_model(&ph, w, err);
    }
    destroy(&ph);
    return status;
}
