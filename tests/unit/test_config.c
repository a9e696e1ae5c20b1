/* Tests of the configuration: defaults and values. test_config_round_trip.c takes every key
 * there and back, test_config_mistakes.c and test_config_arguments.c hold what must be refused,
 * test_config_resume.c what a resume may change, and the help. */
#include "tests/unit/config_cases.h"

#include <math.h>

/* ---- values ---- */

static void test_defaults(void **state) {
    (void)state;
    struct mm_config c = good(base, NULL);
    assert_string_equal(c.model.path, "/m");
    assert_int_equal(c.model.dtype, MM_DTYPE_AUTO);
    assert_int_equal(c.model.state_dtype, MM_F32);
    assert_int_equal(c.device, MM_DEVICE_AUTO);
    assert_int_equal(c.seed, 42);
    assert_string_equal(c.data.retain, "/r");
    assert_string_equal(c.data.forget, "/f");
    assert_string_equal(c.data.retain_validation, "/rv");
    assert_string_equal(c.data.forget_validation, "/fv");
    assert_null(c.data.retain_evaluation);
    assert_null(c.data.forget_evaluation);
    assert_int_equal(c.data.batch_size, 16);
    assert_int_equal(c.data.micro_batch, 16);
    assert_int_equal(c.data.context_length, 100);
    assert_int_equal(c.unlearn.loops, 24);
    assert_true(c.unlearn.passes == MM_ABSENT);
    assert_int_equal(c.unlearn.target_modules_n, 1);
    assert_string_equal(c.unlearn.target_modules[0], "gate_proj");
    assert_int_equal(c.unlearn.loss_fn, MM_LOSS_NEG_CROSS_ENTROPY);
    assert_true(c.unlearn.clip_at == 0);
    assert_true(c.unlearn.unlearning_rate == 0.1);
    assert_true(c.unlearn.retaining_rate == 0.001);
    assert_true(c.unlearn.adv_lr == 0.002);
    assert_true(c.unlearn.retain_momentum == 0.9);
    assert_int_equal(c.unlearn.fork_every_n_loops, 32);
    assert_true(c.unlearn.adv_decay == 1);
    assert_true(c.unlearn.npo_beta == 0.1 && c.unlearn.simnpo_gamma == 0);
    assert_true(c.unlearn.rep_eng_retain_lr == 0 && c.unlearn.retain_cross_entropy);
    assert_false(c.unlearn.square_norm);
    assert_true(c.unlearn.rmu_layer == MM_ABSENT && c.unlearn.rmu_coefficient == 6.5);
    assert_true(c.unlearn.forget_momentum == 0 && c.unlearn.adv_update == 0);
    assert_true(c.unlearn.discard_growing_weights == 1);
    assert_true(c.unlearn.train_adversary);
    assert_true(c.unlearn.use_masking);
    assert_int_equal(c.unlearn.normalization, MM_NORM_GLOBAL_PRE_MASK);
    assert_int_equal(c.unlearn.rate_scale, MM_RATE_LISTING);
    assert_int_equal(c.unlearn.graph, MM_GRAPH_LISTING);
    assert_true(isnan(c.unlearn.retain_loss_budget));
    mm_config_free(&c);
    assert_true(owns_nothing(&c));
    mm_config_free(&c); /* again: safe */
}

static void test_other_defaults(void **state) {
    (void)state;
    struct mm_config c = good(base, NULL);
    assert_int_equal(c.relearn.passes, 120);
    assert_true(c.relearn.lr == 1e-3);
    assert_false(c.relearn.with_retain);
    assert_int_equal(c.relearn.optimizer, MM_SGD);
    assert_int_equal(c.relearn.lora_rank, 0);
    assert_int_equal(c.relearn.attacks_n, 0);
    assert_int_equal(mm_config_attacks_n(&c), 1);
    assert_int_equal(mm_config_relearn_passes(&c), 120);
    assert_int_equal(c.evaluate.every_passes, 30);
    assert_int_equal(c.evaluate.batches, 1);
    assert_int_equal(c.evaluate.multiple_choice_n, 0);
    assert_int_equal(c.checkpoint.every_loops, 10);
    assert_int_equal(c.checkpoint.keep, 2);
    assert_int_equal(c.checkpoint.on_error, MM_ON_ERROR_STOP);
    assert_string_equal(c.output.dir, "/o");
    assert_true(c.output.save_model);
    assert_int_equal(c.output.save_dtype, MM_SAVE_STORED);
    assert_null(c.pretrain.config);
    assert_int_equal(c.pretrain.steps, 1200);
    assert_true(c.pretrain.lr == 5e-3);
    assert_true(c.pretrain.betas[0] == 0.9 && c.pretrain.betas[1] == 0.95);
    assert_true(c.pretrain.weight_decay == 0.1);
    assert_int_equal(c.pretrain.warmup, 50);
    assert_true(c.pretrain.min_lr_ratio == 0.1);
    assert_true(c.pretrain.clip == 1);
    assert_int_equal(c.reduction, MM_REDUCTION_FAST);
    assert_int_equal(c.reduce_dtype, MM_F32);
    assert_int_equal(c.transport, MM_TRANSPORT_AUTO);
    assert_true(c.timeout == 600);
    mm_config_free(&c);
}

static void test_multiple_choice(void **state) {
    (void)state;
    struct mm_config c = good(base, "evaluate.multiple_choice=[{name: a, file: /a.h5}, "
                                    "{name: b, temperature: 1, file: /b.h5}]");
    assert_int_equal(c.evaluate.multiple_choice_n, 2);
    assert_string_equal(c.evaluate.multiple_choice[0].name, "a");
    assert_string_equal(c.evaluate.multiple_choice[0].file, "/a.h5");
    assert_true(c.evaluate.multiple_choice[0].temperature == 0);
    assert_string_equal(c.evaluate.multiple_choice[1].name, "b");
    assert_string_equal(c.evaluate.multiple_choice[1].file, "/b.h5");
    assert_true(c.evaluate.multiple_choice[1].temperature == 1);
    mm_config_free(&c);
}

static void assert_attack(struct mm_attack a, const char *name, enum mm_optimizer optimizer,
                          size_t passes, double lr, bool with_retain, size_t lora_rank) {
    assert_true(name ? strcmp(a.name, name) == 0 : !a.name);
    assert_int_equal(a.optimizer, optimizer);
    assert_int_equal(a.passes, passes);
    assert_true(a.lr == lr);
    assert_int_equal(a.with_retain, with_retain);
    assert_int_equal(a.lora_rank, lora_rank);
}

/* What an attack leaves out is as relearn has it, wherever that stands. */
static void test_attacks(void **state) {
    (void)state;
    static const char relearn[] =
        "relearn={attacks: [{name: a}, {name: b, optimizer: sgd, lr: 0.5, passes: 8, "
        "with_retain: false, lora_rank: 0}, {name: c, passes: null, lr: 2}], "
        "optimizer: adamw, passes: 40, with_retain: true, lora_rank: 6, lr: 0.25}";
    struct mm_config c = good(base, relearn);
    assert_int_equal(mm_config_attacks_n(&c), 3);
    assert_attack(mm_config_attack(&c, 0), "a", MM_ADAMW, 40, 0.25, true, 6);
    assert_attack(mm_config_attack(&c, 1), "b", MM_SGD, 8, 0.5, false, 0);
    assert_attack(mm_config_attack(&c, 2), "c", MM_ADAMW, 40, 2, true, 6);
    assert_int_equal(mm_config_relearn_passes(&c), 88);
    char *yaml = mm_config_yaml(&c);
    mm_config_free(&c);
    c = good(yaml, "relearn.lr=3"); /* of those that leave it out, after a round trip too */
    assert_attack(mm_config_attack(&c, 0), "a", MM_ADAMW, 40, 3, true, 6);
    assert_attack(mm_config_attack(&c, 1), "b", MM_SGD, 8, 0.5, false, 0);
    mm_free(yaml);
    mm_config_free(&c);
    c = good(base, "relearn={optimizer: adamw, lora_rank: 2}");
    assert_attack(mm_config_attack(&c, 0), NULL, MM_ADAMW, 120, 1e-3, false, 2);
    mm_config_free(&c);
}

/* auto: as before the key was there. An attack takes what it says before what relearn says. */
static void test_state_of_attacks(void **state) {
    (void)state;
    struct mm_config c = good(base, "relearn.optimizer=adamw");
    assert_int_equal(mm_config_attack(&c, 0).state_dtype, MM_DTYPE_F32);
    mm_config_free(&c);
    c = good(base, "model.state_dtype=bfloat16");
    assert_int_equal(mm_config_attack(&c, 0).state_dtype, MM_DTYPE_BF16);
    mm_config_free(&c);
    c = good(base, "relearn={state_dtype: bfloat16, attacks: [{name: a, optimizer: adamw}, "
                   "{name: b, state_dtype: float32}, {name: c, state_dtype: auto}]}");
    assert_int_equal(mm_config_attack(&c, 0).state_dtype, MM_DTYPE_BF16);
    assert_int_equal(mm_config_attack(&c, 1).state_dtype, MM_DTYPE_F32);
    assert_int_equal(mm_config_attack(&c, 2).state_dtype, MM_DTYPE_F32);
    mm_config_free(&c);
}

static void test_enum_names(void **state) {
    (void)state;
    static const struct {
        const char *key, *name;
        unsigned value;
    } cases[] = {
        {"model.dtype", "auto", MM_DTYPE_AUTO},
        {"model.dtype", "float32", MM_DTYPE_F32},
        {"model.dtype", "bfloat16", MM_DTYPE_BF16},
        {"model.state_dtype", "float32", MM_F32},
        {"model.state_dtype", "bfloat16", MM_BF16},
        {"device", "auto", MM_DEVICE_AUTO},
        {"device", "cpu", MM_DEVICE_CPU},
        {"device", "cuda", MM_DEVICE_CUDA},
        {"unlearn.unlearning_loss_fn", "neg_cross_entropy", MM_LOSS_NEG_CROSS_ENTROPY},
        {"unlearn.unlearning_loss_fn", "neg_entropy", MM_LOSS_NEG_ENTROPY},
        {"unlearn.unlearning_loss_fn", "correct_logit_minus_avg", MM_LOSS_CORRECT_LOGIT_MINUS_AVG},
        {"unlearn.unlearning_loss_fn", "npo", MM_LOSS_NPO},
        {"unlearn.unlearning_loss_fn", "simnpo", MM_LOSS_SIMNPO},
        {"unlearn.unlearning_loss_fn", "circuit_breaker", MM_LOSS_CIRCUIT_BREAKER},
        {"unlearn.unlearning_loss_fn", "stream_activation", MM_LOSS_STREAM_ACTIVATION},
        {"unlearn.unlearning_loss_fn", "rmu", MM_LOSS_RMU},
        {"unlearn.normalization", "global_pre_mask", MM_NORM_GLOBAL_PRE_MASK},
        {"unlearn.normalization", "global_post_mask", MM_NORM_GLOBAL_POST_MASK},
        {"unlearn.normalization", "per_parameter", MM_NORM_PER_PARAMETER},
        {"unlearn.normalization", "none", MM_NORM_NONE},
        {"unlearn.rate_scale", "listing", MM_RATE_LISTING},
        {"unlearn.rate_scale", "study", MM_RATE_STUDY},
        {"unlearn.graph", "listing", MM_GRAPH_LISTING},
        {"unlearn.graph", "fresh", MM_GRAPH_FRESH},
        {"unlearn.graph", "reuse", MM_GRAPH_REUSE},
        {"checkpoint.on_error", "stop", MM_ON_ERROR_STOP},
        {"checkpoint.on_error", "continue", MM_ON_ERROR_CONTINUE},
        {"output.save_dtype", "stored", MM_SAVE_STORED},
        {"output.save_dtype", "float32", MM_SAVE_F32},
        {"output.save_dtype", "bfloat16", MM_SAVE_BF16},
        {"output.save_dtype", "float16", MM_SAVE_F16},
        {"reduction", "fast", MM_REDUCTION_FAST},
        {"reduction", "exact", MM_REDUCTION_EXACT},
        {"reduce_dtype", "float32", MM_F32},
        {"reduce_dtype", "bfloat16", MM_BF16},
        {"transport", "auto", MM_TRANSPORT_AUTO},
        {"transport", "nccl", MM_TRANSPORT_NCCL},
        {"transport", "staged", MM_TRANSPORT_STAGED},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        const struct mm_config_row *row = mm_config_row(cases[i].key);
        char argument[80];
        snprintf(argument, sizeof argument, "%s=%s", cases[i].key, cases[i].name);
        struct mm_config c = good(base, argument);
        unsigned value;
        memcpy(&value, (char *)&c + row->offset, sizeof value);
        assert_int_equal(value, cases[i].value);
        mm_config_free(&c);
    }
}

static void test_numbers_accepted(void **state) {
    (void)state;
    static const struct {
        const char *text;
        double value;
    } cases[] = {{"1e-3", 1e-3}, {".5", .5},    {"1.", 1},           {"+2.5E+1", 25}, {"007", 7},
                 {"0", 0},       {"1e-400", 0}, {"1000000000", 1e9}, {"0.1", 0.1},    {"-0.0", 0}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        char argument[64];
        snprintf(argument, sizeof argument, "unlearn.unlearning_rate=%s", cases[i].text);
        struct mm_config c = good(base, argument);
        assert_true(c.unlearn.unlearning_rate == cases[i].value);
        mm_config_free(&c);
    }
    struct mm_config c = good(base, "seed=18446744073709551615");
    assert_true(c.seed == UINT64_MAX);
    mm_config_free(&c);
}

static void test_exact_micro_batch(void **state) {
    (void)state;
    struct mm_config c = good(base, "reduction=exact");
    assert_int_equal(c.reduction, MM_REDUCTION_EXACT);
    assert_int_equal(c.data.micro_batch, 1);
    mm_config_free(&c);
    char *overrides[] = {"reduction=exact", "data.micro_batch=4"};
    struct mm_error err;
    assert_int_equal(mm_config_parse(&c, base, "t", overrides, 2, MM_RUN, &err), MM_OK);
    assert_int_equal(c.data.micro_batch, 4);
    mm_config_free(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_defaults),         TEST(test_other_defaults),    TEST(test_multiple_choice),
        TEST(test_attacks),          TEST(test_state_of_attacks),  TEST(test_enum_names),
        TEST(test_numbers_accepted), TEST(test_exact_micro_batch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
