/* test_golden.c - the program against traces of PyTorch with transformers models in float64
 * (tests/golden/README.md). Runs on any number of ranks up to the batch of 4: every rank compares
 * the gathered whole, so the ranks' agreement is tested by the same numbers. With the argument
 * exact: the same with reduction: exact; sharded: with spread weights; nccl: ranks with a GPU each.
 *
 * With the argument bfloat16: in bfloat16 arithmetic. Compiled with MM_TEST_CUDA it runs on a GPU,
 * or on the host shim, in float32 with the same tolerances and then (without the argument float32)
 * in bfloat16. Of that a number is good to 2^-9, and the models are so narrow that little averages
 * out: compared is the error of a whole tensor, or of a whole vector's change over a run, against
 * its size. The limits are three times the largest error that was measured (MM_MEASURE, trace.h)
 * with oneDNN and with four kinds of OpenBLAS's kernels, on 1 to 4 ranks and in micro-batches of 1,
 * 2 and all, but at most 0.7 for a change: no change at all would be off by 1. A run that
 * multiplies what it is off by is compared in its first two loops only. */
#include "tests/golden/golden_adapters.h"
#include "tests/golden/golden_reference.h"
#include "tests/golden/golden_replay.h"
#include "tests/golden/golden_vectors.h"
#include "tests/golden/late_transport.h"

#include "src/method/training.h"
#include "src/run/evaluate.h"

/* -- unlearning runs --------------------------------------------------------------------------- */

#define HALF_CHANGE 0.7

/* Runs whose activations grow away, or whose steps are large multiples of small gradients. */
static bool amplifies(const char *variant) {
    return arithmetic == MM_BF16 &&
           (strncmp(variant, "rmu", 3) == 0 || strcmp(variant, "tar2") == 0 ||
            strncmp(variant, "relearn_lora", 12) == 0);
}

/* bfloat16 arithmetic: how far the losses may drift that are a small difference of states or
 * logits.
 */
static double unlearning_drift(const char *variant) {
    if (strstr(variant, "logit"))
        return 0.1;
    return strstr(variant, "stream_activation") ? 0.15 : 0.08;
}

static void check_loop(const char *what, hid_t group, size_t t, struct mm_loop_scalars s,
                       bool half) {
    const struct {
        const char *name;
        double value;
        double half_tolerance;
    } values[] = {{"retain_loss", s.retain_loss, 0.02},
                  {"adversary_loss", s.adversary_loss, 0.02},
                  {"unlearning_loss", s.unlearning_loss, unlearning_drift(what)},
                  {"grad_norm", s.grad_norm, 1.4},
                  {"mask_fraction", s.mask_fraction, 0.08}};
    size_t n = amplifies(what) && t > 1 ? 0 : sizeof values / sizeof *values;
    for (size_t i = 0; i < n; i++) {
        double *want = trace_read(group, values[i].name, NULL, NULL);
        /* an element of a thousand may change its sign */
        bool counts = dev->asynchronous && values[i].value == s.mask_fraction;
        expect_near(what, values[i].name, t, values[i].value, want[t], half || counts ? 1e-3 : 4e-5,
                    values[i].half_tolerance);
        mm_free(want);
    }
    assert_int_equal(s.stop, MM_GUARD_NONE);
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
    } ends[] = {{"base", u->b, 2e-5},
                {"retain_acc", u->m, 4e-4},
                {"adversary", u->a, 4e-5},
                {"forget_acc", u->f, 4e-4}};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        if (!ends[i].v.data || amplifies(variant))
            continue;
        if (u->base) /* circuit breakers' first gradients are small differences of states */
            check_adapters(variant, group, ends[i].name, u->base, ends[i].v, true, 3e-4,
                           HALF_CHANGE);
        else if (arithmetic == MM_BF16)
            check_change(variant, group, ends[i].name, f, shard, ends[i].v,
                         ends[i].v.data != u->m.data && ends[i].v.data != u->f.data, HALF_CHANGE);
        else if (half)
            check_half(variant, group, ends[i].name, shard, ends[i].v);
        else
            check_vector(variant, group, ends[i].name, shard, ends[i].v, ends[i].tolerance);
    }
    if (u->adversary)
        check_adapters(variant, group, "adversary", u->adversary, u->adversary->all, false, 1e-4,
                       HALF_CHANGE);
    end(&run);
    mm_config_free(&config);
    H5Gclose(group);
}

/* A GPU differs by its operations, of which one way of cutting the batch sees all. */
static void check_micro_batches(struct fixture *f, const char *variant) {
    if (arithmetic == MM_BF16 && strcmp(variant, "circuit_breakers_no_lora") == 0)
        return; /* its b is then the frozen model, and its first gradient nothing but rounding */
    if (dev->asynchronous)
        check_run(f, variant, mm_comm_size(comm) > 1 ? 1 : 3);
    for (size_t micro_batch = 1; micro_batch <= 4 && !dev->asynchronous; micro_batch *= 2)
        check_run(f, variant, micro_batch);
}

/* Every group of the file that has a b at the end is an unlearning run. */
static void check_runs(const char *name, const char *file) {
    struct fixture f = open_traces(name, file);
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

/* -- relearning and pretraining -------------------------------------------------------------------
 */

/* All steps of an attack; `drift`: of the losses in bfloat16. */
static void check_steps(struct fixture *f, const char *variant, hid_t group,
                        const struct mm_attack *attack, struct mm_training *t, double drift) {
    struct mm_dataset retain = trace_dataset(f->traces, "retain_validation");
    struct mm_dataset forget = trace_dataset(f->traces, "forget_validation");
    struct mm_dataset retain_rest, forget_rest;
    struct mm_passes *p = t->passes;
    mm_dataset_view(&retain_rest, &retain, p->share.batch_size, &retain, p->share.batch_size);
    mm_dataset_view(&forget_rest, &forget, p->share.batch_size, &forget, p->share.batch_size);
    struct mm_sequences own = mm_share_sequences(&p->share);
    double *loss = trace_read(group, "loss", NULL, NULL);
    double *retain_loss = trace_read(group, "retain_loss", NULL, NULL);
    size_t steps = attack->passes / (attack->with_retain ? 4 : 2);
    for (size_t i = 0; i < steps; i++) {
        mm_share_read(&p->share, &forget_rest, i, &own);
        expect_near(variant, "loss", i, mm_training_attack(t, &own, attack), loss[i], 5e-5, drift);
        if (!attack->with_retain)
            continue;
        mm_share_read(&p->share, &retain_rest, i, &own);
        expect_near(variant, "retain_loss", i, mm_training_attack(t, &own, attack), retain_loss[i],
                    5e-5, 2 * drift);
    }
    mm_free(loss);
    mm_free(retain_loss);
    mm_sequences_free(&own);
    mm_dataset_free(&retain_rest);
    mm_dataset_free(&forget_rest);
    mm_dataset_free(&retain);
    mm_dataset_free(&forget);
}

/* `tolerance`: of the trained weights in float32. */
static void check_relearning(const char *name, const char *file, const char *variant,
                             double tolerance, double drift) {
    struct fixture f = open_traces(name, file);
    struct mm_config config;
    hid_t group = H5Gopen2(f.traces, variant, H5P_DEFAULT);
    read_config(&config, group, 3);
    const struct mm_attack attack = mm_config_attack(&config, 0);
    struct mm_training *t =
        mm_training_create_attack(f.arena, comm, f.model, &config, &attack, NULL);
    check_steps(&f, variant, group, &attack, t, drift);
    struct mm_vector end = t->lora ? t->g : t->p; /* the weights of now */
    if (t->room) { /* tensor by tensor: nobody has their sum but the model */
        end = mm_shard_vector(t->shard, f.arena, MM_FOR_OPTIMIZER, MM_F32);
        mm_shard_load(t->shard, end);
    }
    if (arithmetic == MM_BF16 && !amplifies(variant))
        check_change(variant, group, "params", &f, t->shard, end, true, HALF_CHANGE);
    else if (arithmetic == MM_F32)
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
    check_steps(&f, variant, group, &attack, t, 0.1);
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
    struct mm_training *t = mm_training_create(
        f.arena, comm, f.model, (struct mm_batch_size){2 * B, config.data.micro_batch, T}, MM_F32,
        MM_ADAMW);
    struct mm_sequences both = mm_sequences_create(2 * B, T);
    struct mm_sequences own = mm_share_sequences(&t->passes->share);
    both.counts =
        (struct mm_counts){(double)(2 * B), (double)(2 * B * (T - 1)), (double)(2 * B * T)};
    double *loss = trace_read(group, "loss", NULL, NULL);
    for (size_t i = 0; i < config.pretrain.steps; i++) {
        mm_dataset_batch(&retain, i, B, 0, B, &both, 0);
        mm_dataset_batch(&forget, i, B, 0, B, &both, B);
        mm_share_pick(&t->passes->share, &both, &own);
        expect_near("pretrain", "loss", i, mm_training_adamw(t, &own, &config, i), loss[i], 1e-5,
                    0.015);
    }
    /* Adam divides by the gradient's size: where that is rounding only, so is the step. */
    if (arithmetic == MM_BF16)
        check_change("pretrain", group, "params", &f, t->shard, t->p, true, 0.15);
    else
        check_vector("pretrain", group, "params", t->shard, t->p, 1e-3);
    mm_free(loss);
    mm_sequences_free(&both);
    mm_sequences_free(&own);
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
    check_reference("qwen3");
}
static void reference_olmo2(void **state) {
    (void)state;
    check_reference("olmo2");
}
static void reference_neox(void **state) {
    (void)state;
    check_reference("neox-parallel");
    check_reference("neox-serial");
}
static void runs_llama(void **state) {
    (void)state;
    check_runs("llama-gqa-tied", "traces.h5");
    check_runs("llama3-untied", "traces.h5");
}
static void runs_qwen2(void **state) {
    (void)state;
    check_runs("qwen2", "traces.h5");
    check_runs("qwen3", "traces.h5");
}
static void runs_olmo2(void **state) {
    (void)state;
    check_runs("olmo2", "traces.h5");
}
static void runs_neox(void **state) {
    (void)state;
    check_runs("neox-parallel", "traces.h5");
    check_runs("neox-serial", "traces.h5");
}
/* Of different lengths, with prompts that are not learnt. */
static void rows(void **state) {
    (void)state;
    check_runs("llama-gqa-tied", "rows.h5");
    check_relearning("llama-gqa-tied", "rows.h5", "relearn_with_retain", 2e-5, 0.1);
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
    check_relearning("llama-gqa-tied", "traces.h5", "relearn", 2e-5, 0.1);
    check_relearning("llama-gqa-tied", "traces.h5", "relearn_with_retain", 2e-5, 0.1);
    check_relearning("neox-parallel", "traces.h5", "relearn", 2e-5, 0.1);
    check_relearning("neox-parallel", "traces.h5", "relearn_with_retain", 2e-5, 0.1);
}
/* Adam divides by the gradient's size: where that is rounding only, so is the step. LoRA's factor
 * 16/rank makes large steps of small gradients, and in bfloat16 of their errors. */
static void relearning_otherwise(void **state) {
    (void)state;
    check_relearning("llama-gqa-tied", "traces.h5", "relearn_adamw", 1e-3, 0.1);
    check_relearning("llama-gqa-tied", "traces.h5", "relearn_lora", 3e-4, 0.09);
    check_relearning("llama-gqa-tied", "traces.h5", "relearn_adapters", 3e-4, 0.1);
    check_relearning("neox-parallel", "traces.h5", "relearn_lora_adamw", 1e-3, 0.09);
    check_after_unlearning("llama-gqa-tied", "relearn_adapters_after");
}
static void pretraining(void **state) {
    (void)state;
    check_pretraining("llama-gqa-tied");
}

static int run_all(bool half_too) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reference_llama),
        cmocka_unit_test(reference_qwen2),
        cmocka_unit_test(reference_olmo2),
        cmocka_unit_test(reference_neox),
        cmocka_unit_test(runs_llama),
        cmocka_unit_test(runs_qwen2),
        cmocka_unit_test(runs_olmo2),
        cmocka_unit_test(runs_neox),
        cmocka_unit_test(bfloat16_replay),
        cmocka_unit_test(relearning),
        cmocka_unit_test(relearning_otherwise),
        cmocka_unit_test(pretraining),
        cmocka_unit_test(rows),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    arithmetic = MM_BF16;
    return half_too ? failed + cmocka_run_group_tests(tests, NULL, NULL) : failed;
}

static bool has_word(int argc, char **argv, const char *word) {
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], word) == 0)
            return true;
    return false;
}

int main(int argc, char **argv) {
    struct mm_error err = {""};
    int failed = 0;
    bool only_float32 = has_word(argc, argv, "float32");
    mm_inbox_bytes = 600;
    mm_bucket_bytes = 1; /* a bucket a layer, where the program would make one of so little */
    comm = mm_comm_create(&argc, &argv);
    mm_log_init(mm_comm_rank(comm), MM_LOG_INFO);
    dev = open_device();
    bool skipped = mm_comm_any(comm, !dev);
    if (!skipped) {
        dev->exact = has_word(argc, argv, "exact");
        sharded = has_word(argc, argv, "sharded");
        recomputes = has_word(argc, argv, "recompute");
        mm_spread_poison = !dev->asynchronous;
        trace_room = dev->asynchronous ? 4 : 1;
        if (has_word(argc, argv, "bfloat16"))
            arithmetic = MM_BF16;
        bool staged = dev->asynchronous && mm_comm_size(comm) > 1;
        enum mm_transport_choice transport = has_word(argc, argv, "nccl") ? MM_TRANSPORT_NCCL
                                             : staged                     ? MM_TRANSPORT_STAGED
                                                                          : MM_TRANSPORT_AUTO;
        failed = mm_comm_attach(comm, dev, transport, MM_F32, &err) != MM_OK;
        if (!failed && has_word(argc, argv, "late"))
            late_transport_attach(comm);
        failed = failed || run_all(dev->asynchronous && !only_float32);
    }
    mm_comm_free(comm);
    mm_device_free(dev);
    if (mm_live_blocks() != 0)
        fprintf(stderr, "%ld blocks were not freed\n", mm_live_blocks());
    return skipped ? 77 : failed || mm_live_blocks() != 0;
}
