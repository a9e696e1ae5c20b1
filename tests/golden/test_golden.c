/* test_golden.c - the program against traces of PyTorch with transformers models in float64
 * (tests/golden/README.md). Runs on any number of ranks up to the batch of 4: every rank compares
 * the gathered whole, so the ranks' agreement is tested by the same numbers. With the argument
 * exact: the same with reduction: exact.
 *
 * Compiled with MM_TEST_CUDA it runs on a GPU, or on the host shim, in float32 arithmetic with the
 * same tolerances and then (without the argument float32) in bfloat16. Of that a number is good to
 * 2^-9, and the models are so narrow that little averages out: compared is the error of a whole
 * tensor, or of a whole vector's change over a run, against its size. Measured: logits off by up to
 * 0.020, gradients by 0.02 on average and up to 0.11; over a run losses drift by up to 0.015 (more
 * where *_drift say so, and in relearning with LoRA), norms by 0.006 on average and up to 0.3,
 * vectors by 0.07 and up to 0.31. The tolerances are half as much again. */
#include "tests/golden/golden_adapters.h"
#include "tests/golden/golden_vectors.h"

#include "io/dataset.h"
#include "src/run/evaluate.h"
#include "src/mudman.h"
#include "src/method/training.h"

static struct mm_comm *comm;

/* -- logits, losses, gradients of all parameters ----------------------------------------------- */

static void check_logits(struct fixture *f, const uint32_t *tokens, size_t B, size_t T) {
    size_t n = B * T, V = f->model->arch.vocab;
    struct mm_acts acts;
    struct mm_scratch scratch;
    struct mm_layer_hook none = {0};
    uint32_t *on_device = mm_arena_take(f->arena, MM_FOR_SCRATCH, n, sizeof *on_device);
    dev->ops->upload(dev, on_device, tokens, n * sizeof *tokens);
    mm_acts_create(&acts, f->arena, f->model, n, NULL);
    mm_scratch_create(&scratch, f->arena, f->model, n, false);
    mm_forward(f->model, &acts, &scratch, on_device, B, T, none);
    struct mm_mat logits = mm_arena_mat(f->arena, MM_FOR_SCRATCH, arithmetic, n, V);
    dev->ops->linear(dev, logits, acts.hidden, f->model->params[f->model->head_part].w, NULL,
                     false);
    double *want = trace_read(f->reference, "logits", NULL, NULL);
    float *got = fetch(logits.data, arithmetic, n * V);
    expect_tensor(f->name, "logits", got, want, n * V, 3e-6, 0.03);
    mm_free(got);
    mm_free(want);
    mm_acts_free(&acts);
}

static struct mm_shard *shard_of_all(struct fixture *f) {
    bool *all = mm_calloc(f->model->params_n, 1);
    memset(all, 1, f->model->params_n);
    struct mm_shard *shard = mm_shard_create(f->arena, comm, f->model, all);
    mm_free(all);
    return shard;
}

/* Whether the loss that clips at 0 has a position so near there that bfloat16 may clip it or not:
 * then it has another gradient. */
static bool on_the_edge(struct fixture *f, const uint32_t *tokens, size_t B, size_t T) {
    size_t V = f->model->arch.vocab;
    double *z = trace_read(f->reference, "logits", NULL, NULL), nearest = INFINITY;
    for (size_t i = 0; i < B * T; i++) {
        double mean = 0;
        for (size_t v = 0; v < V; v++)
            mean += z[i * V + v] / (double)V;
        if ((i + 1) % T)
            nearest = fmin(nearest, fabs(z[i * V + tokens[i + 1]] - mean));
    }
    mm_free(z);
    return nearest < 0.02;
}

static void check_gradients(struct fixture *f, const uint32_t *tokens, size_t B, size_t T) {
    static const char *const names[] = {"cross_entropy", "neg_cross_entropy", "neg_entropy",
                                        "correct_logit_minus_avg"};
    const enum mm_loss_fn clipped = MM_LOSS_CORRECT_LOGIT_MINUS_AVG;
    bool edge = arithmetic == MM_BF16 && on_the_edge(f, tokens, B, T);
    struct mm_shard *shard = shard_of_all(f);
    struct mm_passes *p = mm_passes_create(f->arena, comm, f->model, shard, B, 3, T, false);
    struct mm_vector g = mm_shard_gradient(shard, f->arena);
    double *loss = mm_arena_take(f->arena, MM_FOR_SCRATCH, 1, sizeof *loss);
    struct mm_batch batch;
    mm_batch_create(&batch, f->arena, p);
    uint32_t *own = mm_calloc(p->share * T, sizeof *own);
    mm_passes_pick(p, tokens, own);
    mm_batch_set(&batch, 0, own);
    mm_free(own);
    for (int fn = 0; fn < 4; fn++) {
        struct mm_objective objective = {.fn = (enum mm_loss_fn)fn};
        char group[64];
        snprintf(group, sizeof group, "loss/%s", names[fn]);
        double *want = trace_read(f->reference, group, NULL, NULL);
        mm_passes_gradient(p, &batch, objective, g, loss, NULL);
        expect_near(f->name, names[fn], 0, fetch_scalar(loss), *want, 2e-6, 1e-2);
        mm_free(want);
        float *got = fetch(g.data, MM_F32, g.n);
        for (size_t t = 0; t < shard->tensors_n && !(edge && objective.fn == clipped); t++) {
            const struct mm_param *param = &f->model->params[shard->param[t]];
            struct mm_rows rows = mm_layout_own(&shard->layout, t);
            char *path = mm_format("grad/%s/%s", names[fn], param->name);
            want = trace_read(f->reference, path, NULL, NULL);
            assert_non_null(want);
            expect_tensor(names[fn], path, got + shard->layout.offsets[t],
                          want + rows.first * param->cols, rows.count * param->cols, 1e-4, 0.16);
            mm_free(want);
            mm_free(path);
        }
        mm_free(got);
    }
    mm_batch_free(&batch);
    mm_passes_free(p);
    mm_shard_free(shard);
}

static void check_reference(const char *name) {
    struct fixture f = open_case(name);
    size_t B, T;
    uint32_t *tokens = trace_tokens(f.reference, "tokens", &B, &T);
    check_logits(&f, tokens, B, T);
    check_gradients(&f, tokens, B, T);
    mm_free(tokens);
    close_case(&f);
}

/* -- unlearning runs --------------------------------------------------------------------------- */

/* The config a trace's `overrides` attribute describes. */
static void read_config(struct mm_config *config, hid_t group, size_t micro_batch) {
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

/* bfloat16 arithmetic: how far the losses of a run may drift. Some are a small difference of states
 * or logits; activations that grow away multiply what they were off by. */
static double retain_drift(const char *variant) {
    if (strcmp(variant, "rmu") == 0)
        return 0.2;
    return strcmp(variant, "tar2") == 0 ? 0.06 : 0.02;
}

static double unlearning_drift(const char *variant) {
    if (strstr(variant, "logit"))
        return 0.1;
    return strstr(variant, "stream_activation") ? 0.05 : 0.02;
}

static void check_loop(const char *what, hid_t group, size_t t, struct mm_loop_scalars s,
                       bool half) {
    const struct {
        const char *name;
        double value;
        double half_tolerance;
    } values[] = {{"retain_loss", s.retain_loss, retain_drift(what)},
                  {"adversary_loss", s.adversary_loss, 0.02},
                  {"unlearning_loss", s.unlearning_loss, unlearning_drift(what)},
                  {"grad_norm", s.grad_norm, 0.45},
                  {"mask_fraction", s.mask_fraction, 0.04}};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        double *want = trace_read(group, values[i].name, NULL, NULL);
        expect_near(what, values[i].name, t, values[i].value, want[t], half ? 1e-3 : 4e-5,
                    values[i].half_tolerance);
        mm_free(want);
    }
    assert_int_equal(s.stop, MM_STOP_NONE);
}

struct unlearning {
    struct mm_arena *arena;
    struct mm_shard *shard;
    struct mm_mudman *u;
    struct mm_dataset retain, forget;
    uint32_t *retain_batch, *forget_batch;
};

static struct unlearning begin(struct fixture *f, const struct mm_config *config) {
    struct mm_error err = {""};
    struct unlearning run = {.arena = mm_arena_create(dev, false),
                             .retain = trace_dataset(f->traces, "retain"),
                             .forget = trace_dataset(f->traces, "forget")};
    load_model(f, f->model);
    bool *wanted = mm_calloc(f->model->params_n, 1);
    if (mm_model_choose(f->model, config->unlearn.target_modules, config->unlearn.target_modules_n,
                        wanted, &err) != MM_OK)
        fail_msg("%s", err.text);
    run.shard = mm_shard_create(run.arena, comm, f->model, wanted);
    run.u = mm_mudman_create(run.arena, config, comm, f->model, run.shard);
    size_t n = run.u->passes->share * run.u->passes->T;
    run.retain_batch = mm_calloc(n, sizeof *run.retain_batch);
    run.forget_batch = mm_calloc(n, sizeof *run.forget_batch);
    mm_free(wanted);
    return run;
}

static void one_loop(struct unlearning *run, size_t t) {
    mm_passes_read(run->u->passes, &run->retain, t, run->retain_batch);
    mm_passes_read(run->u->passes, &run->forget, t, run->forget_batch);
    mm_mudman_loop(run->u, t, run->retain_batch, run->forget_batch);
}

static void end(struct unlearning *run) {
    mm_free(run->retain_batch);
    mm_free(run->forget_batch);
    mm_mudman_free(run->u);
    mm_shard_free(run->shard);
    mm_arena_free(run->arena);
    mm_dataset_free(&run->retain);
    mm_dataset_free(&run->forget);
}

/* All loops of a trace; metrics of each, and b, a, m at the end. */
static void check_run(struct fixture *f, const char *variant, size_t micro_batch) {
    struct mm_config config;
    hid_t group = H5Gopen2(f->traces, variant, H5P_DEFAULT);
    assert_true(group >= 0);
    read_config(&config, group, micro_batch);
    struct unlearning run = begin(f, &config);
    struct mm_mudman *u = run.u;
    struct mm_shard *shard = run.shard;
    bool half = config.model.state_dtype == MM_BF16;
    for (size_t t = 0; t < config.unlearn.loops; t++) {
        one_loop(&run, t);
        if (t > 0) /* one loop ahead of the device, as a run is */
            check_loop(variant, group, t - 1, mm_mudman_scalars(u), half);
    }
    check_loop(variant, group, config.unlearn.loops - 1, mm_mudman_scalars(u), half);
    const struct {
        const char *name;
        struct mm_vector v;
        double tolerance;
    } ends[] = {{"base", u->b, 5e-6},
                {"retain_acc", u->m, 1e-4},
                {"adversary", u->a, 1e-5},
                {"forget_acc", u->f, 1e-4}};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        if (!ends[i].v.data)
            continue;
        if (u->base) /* circuit breakers' first gradients are small differences of states */
            check_adapters(variant, group, ends[i].name, u->base, ends[i].v, true, 3e-4, 0.45);
        else if (arithmetic == MM_BF16)
            check_change(variant, group, ends[i].name, f, shard, ends[i].v,
                         ends[i].v.data != u->m.data && ends[i].v.data != u->f.data, 0.45);
        else if (half)
            check_half(variant, group, ends[i].name, shard, ends[i].v);
        else
            check_vector(variant, group, ends[i].name, shard, ends[i].v, ends[i].tolerance);
    }
    if (u->adversary)
        check_adapters(variant, group, "adversary", u->adversary, u->adversary->all, false, 2e-5,
                       0.3);
    end(&run);
    mm_config_free(&config);
    H5Gclose(group);
}

/* A GPU differs by its operations, of which one way of cutting the batch sees all. */
static void check_micro_batches(struct fixture *f, const char *variant) {
    if (arithmetic == MM_BF16 && strcmp(variant, "circuit_breakers_no_lora") == 0)
        return; /* its b is then the frozen model, and its first gradient nothing but rounding */
    if (dev->ops->asynchronous)
        check_run(f, variant, mm_comm_size(comm) > 1 ? 1 : 3);
    for (size_t micro_batch = 1; micro_batch <= 4 && !dev->ops->asynchronous; micro_batch *= 2)
        check_run(f, variant, micro_batch);
}

/* Every group of the file that has a b at the end is an unlearning run. */
static void check_runs(const char *name) {
    struct fixture f = open_case(name);
    H5G_info_t info;
    H5Gget_info(f.traces, &info);
    size_t runs = 0;
    for (hsize_t i = 0; i < info.nlinks; i++) {
        char variant[128], base[160];
        H5Lget_name_by_idx(f.traces, ".", H5_INDEX_NAME, H5_ITER_INC, i, variant, sizeof variant,
                           H5P_DEFAULT);
        snprintf(base, sizeof base, "%s/base", variant);
        H5O_info_t object;
        H5Oget_info_by_name(f.traces, variant, &object, H5P_DEFAULT);
        if (object.type != H5O_TYPE_GROUP || H5Lexists(f.traces, base, H5P_DEFAULT) <= 0)
            continue;
        check_micro_batches(&f, variant);
        runs++;
    }
    assert_true(runs >= 2);
    close_case(&f);
}

/* -- bfloat16 state, bit by bit ---------------------------------------------------------------- */

/* g (=) own rows of loop t's stored gradient. */
static void load_gradient(hid_t group, const char *kind, size_t t, const struct mm_shard *shard,
                          struct mm_vector g) {
    float *host = mm_calloc(g.n + 1, sizeof *host);
    for (size_t i = 0; i < shard->tensors_n; i++) {
        const struct mm_param *param = &shard->model->params[shard->param[i]];
        struct mm_rows own = mm_layout_own(&shard->layout, i);
        char *path = mm_format("gradients/%s/%s", kind, param->name);
        double *all = trace_read(group, path, NULL, NULL);
        assert_non_null(all);
        size_t first = (t * param->rows + own.first) * param->cols;
        for (size_t j = 0; j < own.count * param->cols; j++)
            host[shard->layout.offsets[i] + j] = (float)all[first + j];
        mm_free(all);
        mm_free(path);
    }
    dev->ops->upload(dev, g.data, host, g.n * sizeof *host);
    mm_free(host);
}

/* The updates of every loop from the stored gradients: b, a, m must come out the same to the bit.
 */
static void check_replay(struct fixture *f, const char *variant) {
    struct mm_config config;
    hid_t group = H5Gopen2(f->traces, variant, H5P_DEFAULT);
    read_config(&config, group, 4);
    struct unlearning run = begin(f, &config);
    struct mm_shard *shard = run.shard;
    struct mm_mudman *u = run.u;
    const __typeof__(config.unlearn) *c = &config.unlearn;
    const uint32_t *stop = &u->scalars->stop;
    const struct mm_unlearn_options all = {.f = u->f,
                                           .momentum = c->forget_momentum,
                                           .b = u->b,
                                           .discard = c->discard_growing_weights,
                                           .a = u->a,
                                           .adv_rate = c->adv_update * c->unlearning_rate,
                                           .stop = stop},
                                    *options = c->adv_update > 0 ? &all : NULL;
    size_t n = shard->tensors_n;
    for (size_t t = 0; t < c->loops; t++) {
        if (t % c->fork_every_n_loops == 0)
            dev->ops->fork(dev, u->a, u->b, stop);
        load_gradient(group, "retain", t, shard, u->g);
        dev->ops->retain_step(dev, u->m, u->b, u->g, c->retain_momentum, c->retaining_rate, stop);
        load_gradient(group, "adversary", t, shard, u->g);
        dev->ops->adversary_step(dev, u->a, u->b, u->g, c->adv_lr, c->adv_decay, stop);
        load_gradient(group, "unlearning", t, shard, u->g);
        dev->ops->mask_sums(dev, u->sums, u->g, u->m, u->over_w.offsets, n, c->use_masking,
                            options);
        mm_comm_sum_device(comm, (double *)u->sums, 3 * n);
        dev->ops->unlearn_scale(dev, u->scale, u->sums, n, c->normalization,
                                c->rate_scale == MM_RATE_STUDY, shard->layout.total, MM_BF16,
                                u->scalars);
        dev->ops->unlearn_step(dev, u->b, u->g, u->m, u->over_w.offsets, n, u->scale,
                               c->unlearning_rate, c->use_masking, options, stop);
    }
    check_vector(variant, group, "base", shard, u->b, 0);
    check_vector(variant, group, "adversary", shard, u->a, 0);
    check_vector(variant, group, "retain_acc", shard, u->m, 0);
    if (u->f.data)
        check_vector(variant, group, "forget_acc", shard, u->f, 0);
    end(&run);
    mm_config_free(&config);
    H5Gclose(group);
}

/* -- relearning and pretraining -------------------------------------------------------------------
 */

/* All steps of an attack; `drift`: of the losses in bfloat16. */
static void check_steps(struct fixture *f, const char *variant, hid_t group,
                        const struct mm_attack *attack, struct mm_training *t, double drift) {
    struct mm_dataset retain = trace_dataset(f->traces, "retain_validation");
    struct mm_dataset forget = trace_dataset(f->traces, "forget_validation");
    struct mm_dataset retain_rest, forget_rest;
    struct mm_passes *p = t->passes;
    mm_dataset_view(&retain_rest, &retain, p->batch_size, &retain, p->batch_size);
    mm_dataset_view(&forget_rest, &forget, p->batch_size, &forget, p->batch_size);
    uint32_t *tokens = mm_calloc(p->share * p->T, sizeof *tokens);
    double *loss = trace_read(group, "loss", NULL, NULL);
    double *retain_loss = trace_read(group, "retain_loss", NULL, NULL);
    size_t steps = attack->passes / (attack->with_retain ? 4 : 2);
    for (size_t i = 0; i < steps; i++) {
        mm_passes_read(p, &forget_rest, i, tokens);
        expect_near(variant, "loss", i, mm_training_attack(t, tokens, attack), loss[i], 5e-5,
                    drift);
        if (!attack->with_retain)
            continue;
        mm_passes_read(p, &retain_rest, i, tokens);
        expect_near(variant, "retain_loss", i, mm_training_attack(t, tokens, attack),
                    retain_loss[i], 5e-5, 2 * drift);
    }
    mm_free(loss);
    mm_free(retain_loss);
    mm_free(tokens);
    mm_dataset_free(&retain_rest);
    mm_dataset_free(&forget_rest);
    mm_dataset_free(&retain);
    mm_dataset_free(&forget);
}

/* `tolerance`: of the trained weights in float32. */
static void check_relearning(const char *name, const char *variant, double tolerance,
                             double drift) {
    struct fixture f = open_case(name);
    struct mm_config config;
    hid_t group = H5Gopen2(f.traces, variant, H5P_DEFAULT);
    read_config(&config, group, 3);
    const struct mm_attack attack = mm_config_attack(&config, 0);
    struct mm_training *t =
        mm_training_create_attack(f.arena, comm, f.model, &config, &attack, NULL);
    check_steps(&f, variant, group, &attack, t, drift);
    struct mm_vector end = t->lora ? t->g : t->p; /* the weights of now */
    if (arithmetic == MM_BF16)
        check_change(variant, group, "params", &f, t->shard, end, true, 0.45);
    else
        check_vector(variant, group, "params", t->shard, end, tolerance);
    mm_training_free(t);
    mm_config_free(&config);
    H5Gclose(group);
    close_case(&f);
}

/* An attack on what unlearning leaves, with the adapters that unlearned. */
static void check_after_unlearning(const char *name, const char *variant) {
    struct fixture f = open_case(name);
    struct mm_config config;
    hid_t group = H5Gopen2(f.traces, variant, H5P_DEFAULT);
    read_config(&config, group, 3);
    struct unlearning run = begin(&f, &config);
    for (size_t t = 0; t < config.unlearn.loops; t++) {
        one_loop(&run, t);
        mm_mudman_scalars(run.u);
    }
    mm_mudman_store(run.u);
    float *adapters = fetch(run.u->b.data, MM_F32, run.u->b.n);
    const struct mm_attack attack = mm_config_attack(&config, 0);
    struct mm_training *t =
        mm_training_create_attack(f.arena, comm, f.model, &config, &attack, adapters);
    check_steps(&f, variant, group, &attack, t, 0.03);
    mm_free(adapters);
    mm_training_free(t);
    end(&run);
    mm_config_free(&config);
    H5Gclose(group);
    close_case(&f);
}

static void check_pretraining(const char *name) {
    struct fixture f = open_case(name);
    struct mm_config config;
    hid_t group = H5Gopen2(f.traces, "pretrain", H5P_DEFAULT);
    read_config(&config, group, 3);
    struct mm_dataset retain = trace_dataset(f.traces, "retain"),
                      forget = trace_dataset(f.traces, "forget");
    size_t B = config.data.batch_size, T = forget.context;
    struct mm_training *t =
        mm_training_create(f.arena, comm, f.model, 2 * B, config.data.micro_batch, T, MM_F32, true);
    uint32_t *both = mm_calloc(2 * B * T, sizeof *both);
    uint32_t *own = mm_calloc(t->passes->share * T, sizeof *own);
    double *loss = trace_read(group, "loss", NULL, NULL);
    for (size_t i = 0; i < config.pretrain.steps; i++) {
        mm_dataset_batch(&retain, i, B, 0, B, both);
        mm_dataset_batch(&forget, i, B, 0, B, both + B * T);
        mm_passes_pick(t->passes, both, own);
        expect_near("pretrain", "loss", i, mm_training_adamw(t, own, &config, i), loss[i], 1e-5,
                    0.015);
    }
    /* Adam divides by the gradient's size: where that is rounding only, so is the step. */
    if (arithmetic == MM_BF16)
        check_change("pretrain", group, "params", &f, t->shard, t->p, true, 0.15);
    else
        check_vector("pretrain", group, "params", t->shard, t->p, 1e-3);
    mm_free(loss);
    mm_free(both);
    mm_free(own);
    mm_training_free(t);
    mm_dataset_free(&retain);
    mm_dataset_free(&forget);
    mm_config_free(&config);
    H5Gclose(group);
    close_case(&f);
}

/* -- the table --------------------------------------------------------------------------------- */

static void reference_llama(void **state) {
    (void)state;
    check_reference("llama-gqa-tied");
    check_reference("llama3-untied");
}
static void reference_qwen2(void **state) {
    (void)state;
    check_reference("qwen2");
}
static void reference_neox(void **state) {
    (void)state;
    check_reference("neox-parallel");
    check_reference("neox-serial");
}
static void runs_llama(void **state) {
    (void)state;
    check_runs("llama-gqa-tied");
    check_runs("llama3-untied");
}
static void runs_qwen2(void **state) {
    (void)state;
    check_runs("qwen2");
}
static void runs_neox(void **state) {
    (void)state;
    check_runs("neox-parallel");
    check_runs("neox-serial");
}
static void bfloat16_replay(void **state) {
    (void)state;
    struct fixture f = open_case("llama-gqa-tied");
    check_replay(&f, "bfloat16");
    check_replay(&f, "bfloat16_study");
    check_replay(&f, "bfloat16_ablations");
    close_case(&f);
}
static void relearning(void **state) {
    (void)state;
    check_relearning("llama-gqa-tied", "relearn", 2e-5, 0.015);
    check_relearning("llama-gqa-tied", "relearn_with_retain", 2e-5, 0.015);
    check_relearning("neox-parallel", "relearn", 2e-5, 0.015);
    check_relearning("neox-parallel", "relearn_with_retain", 2e-5, 0.015);
}
/* Adam divides by the gradient's size: where that is rounding only, so is the step. LoRA's factor
 * 16/rank makes large steps of small gradients, and in bfloat16 of their errors. */
static void relearning_otherwise(void **state) {
    (void)state;
    check_relearning("llama-gqa-tied", "relearn_adamw", 1e-3, 0.015);
    check_relearning("llama-gqa-tied", "relearn_lora", 3e-4, 0.045);
    check_relearning("llama-gqa-tied", "relearn_adapters", 3e-4, 0.015);
    check_relearning("neox-parallel", "relearn_lora_adamw", 1e-3, 0.045);
    check_after_unlearning("llama-gqa-tied", "relearn_adapters_after");
}
static void pretraining(void **state) {
    (void)state;
    check_pretraining("llama-gqa-tied");
}

static int run_all(bool half_too) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reference_llama),      cmocka_unit_test(reference_qwen2),
        cmocka_unit_test(reference_neox),       cmocka_unit_test(runs_llama),
        cmocka_unit_test(runs_qwen2),           cmocka_unit_test(runs_neox),
        cmocka_unit_test(bfloat16_replay),      cmocka_unit_test(relearning),
        cmocka_unit_test(relearning_otherwise), cmocka_unit_test(pretraining),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    arithmetic = MM_BF16;
    return half_too ? failed + cmocka_run_group_tests(tests, NULL, NULL) : failed;
}

int main(int argc, char **argv) {
    struct mm_error err = {""};
    int failed = 0;
    bool only_float32 = argc > 1 && strcmp(argv[1], "float32") == 0;
    mm_bucket_bytes = 1; /* a bucket a layer, where the program would make one of so little */
    comm = mm_comm_create(&argc, &argv);
    mm_log_init(mm_comm_rank(comm), MM_LOG_INFO);
    dev = open_device(comm);
    bool skipped = mm_comm_any(comm, !dev);
    if (!skipped) {
        dev->exact = argc > 1 && strcmp(argv[1], "exact") == 0;
        bool staged = dev->ops->asynchronous && mm_comm_size(comm) > 1;
        failed = mm_comm_attach(comm, dev, staged ? MM_TRANSPORT_STAGED : MM_TRANSPORT_AUTO, MM_F32,
                                &err) != MM_OK ||
                 run_all(dev->ops->asynchronous && !only_float32);
    }
    mm_comm_free(comm);
    mm_device_free(dev);
    if (mm_live_blocks() != 0)
        fprintf(stderr, "%ld blocks were not freed\n", mm_live_blocks());
    return skipped ? 77 : failed || mm_live_blocks() != 0;
}
