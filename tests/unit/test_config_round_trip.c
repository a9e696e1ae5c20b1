/* Every key of the configuration, written as YAML and read back. The table of keys drives the round
 * trip, so that a key without a test value fails here. */
#include "tests/unit/config_cases.h"

#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

/* A value other than the default for every key that can stand beside the others. */
static const char *const changed[][2] = {
    {"model.path", "/other's: #model"},
    {"model.dtype", "bfloat16"},
    {"model.state_dtype", "bfloat16"},
    {"model.shard", "full"},
    {"model.recompute", "layer"},
    {"device", "cpu"},
    {"seed", "18446744073709551615"},
    {"data.retain", "/1"},
    {"data.forget", "/null"},
    {"data.retain_validation", "/3"},
    {"data.forget_validation", "/\xc3\xa4 [b], {c}"},
    {"data.retain_evaluation", "/5"},
    {"data.forget_evaluation", "/6"},
    {"data.batch_size", "17"},
    {"data.micro_batch", "5"},
    {"data.context_length", "99"},
    {"unlearn.loops", "7"},
    {"unlearn.passes", "35"},
    {"unlearn.target_modules", "[up_proj, 'null', \"a\\\"b\"]"},
    {"unlearn.unlearning_loss_fn", "neg_entropy"},
    {"unlearn.clip_at", "-1.5"},
    {"unlearn.npo_beta", "2.5"},
    {"unlearn.simnpo_gamma", "-0.25"},
    {"unlearn.unlearning_rate", "0.30000000000000004"},
    {"unlearn.retaining_rate", "0"},
    {"unlearn.adv_lr", "1.2345678901234567e-7"},
    {"unlearn.retain_momentum", "0.95"},
    {"unlearn.fork_every_n_loops", "3"},
    {"unlearn.adv_decay", "0.5"},
    {"unlearn.rep_eng_retain_lr", "0.75"},
    {"unlearn.square_norm", "true"},
    {"unlearn.retain_cross_entropy", "false"},
    {"unlearn.rmu_layer", "4"},
    {"unlearn.rmu_coefficient", "20"},
    {"unlearn.forget_momentum", "0.6"},
    {"unlearn.discard_growing_weights", "0"},
    {"unlearn.adv_update", "3"},
    {"unlearn.lora_rank", "6"},
    {"unlearn.adv_lora_rank", "8"},
    {"unlearn.adv_lora_count", "2"},
    {"unlearn.train_adversary", "false"},
    {"unlearn.use_masking", "false"},
    {"unlearn.normalization", "global_post_mask"},
    {"unlearn.rate_scale", "study"},
    {"unlearn.graph", "fresh"},
    {"unlearn.retain_loss_budget", "0.05"},
    {"relearn.passes", "0"},
    {"relearn.lr", "0.02"},
    {"relearn.with_retain", "true"},
    {"relearn.optimizer", "adamw"},
    {"relearn.lora_rank", "5"},
    {"relearn.state_dtype", "float32"},
    {"relearn.attacks", "[{name: 'x, y', optimizer: adamw, lr: 0.1, passes: 8, with_retain: true, "
                        "lora_rank: 4, state_dtype: float32}, "
                        "{name: z, with_retain: false}, {name: z2, optimizer: sgd, lora_rank: 0}]"},
    {"evaluate.every_passes", "31"},
    {"evaluate.batches", "4"},
    {"evaluate.multiple_choice", "[{name: 'x, y', file: /x, temperature: 1}, {name: z, file: /z}]"},
    {"evaluate.kl.file", "/kl"},
    {"evaluate.kl.rows", "9"},
    {"evaluate.kl.budget", "0.01"},
    {"checkpoint.every_loops", "11"},
    {"checkpoint.keep", "3"},
    {"checkpoint.on_error", "continue"},
    {"output.dir", "/run"},
    {"output.save_model", "false"},
    {"output.save_dtype", "float16"},
    {"output.hash_every_loops", "6"},
    {"pretrain.config", "/c.json"},
    {"pretrain.steps", "3"},
    {"pretrain.lr", "0.1"},
    {"pretrain.betas", "[0.8, 0.99]"},
    {"pretrain.weight_decay", "0"},
    {"pretrain.warmup", "0"},
    {"pretrain.min_lr_ratio", "1"},
    {"pretrain.clip", "0.5"},
    {"reduction", "exact"},
    {"reduce_dtype", "bfloat16"},
    {"transport", "staged"},
    {"timeout", "0.5"},
};

static bool same_text(const char *a, const char *b) {
    return a && b ? strcmp(a, b) == 0 : a == b;
}

static bool same_choice(const struct mm_multiple_choice *a, const struct mm_multiple_choice *b) {
    return same_text(a->name, b->name) && same_text(a->file, b->file) &&
           a->temperature == b->temperature;
}

static bool same_number(double a, double b) {
    return a == b || (isnan(a) && isnan(b));
}

static bool same_attack(const struct mm_attack *a, const struct mm_attack *b) {
    return same_text(a->name, b->name) && a->optimizer == b->optimizer && a->passes == b->passes &&
           same_number(a->lr, b->lr) && a->with_retain == b->with_retain &&
           a->lora_rank == b->lora_rank;
}

static bool same_row(const struct mm_config_row *row, const struct mm_config *a,
                     const struct mm_config *b) {
    const void *x = (const char *)a + row->offset, *y = (const char *)b + row->offset;
    switch (row->type) {
    case MM_KEY_TEXT:
    case MM_KEY_PATH:
        return same_text(*(char *const *)x, *(char *const *)y);
    case MM_KEY_NUMBER:
        return same_number(*(const double *)x, *(const double *)y);
    case MM_KEY_PAIR:
        return memcmp(x, y, 2 * sizeof(double)) == 0;
    case MM_KEY_INTEGER:
        return memcmp(x, y, sizeof(size_t)) == 0;
    case MM_KEY_BOOL:
        return *(const bool *)x == *(const bool *)y;
    case MM_KEY_ENUM:
        return memcmp(x, y, sizeof(unsigned)) == 0;
    case MM_KEY_WORDS:
        if (a->unlearn.target_modules_n != b->unlearn.target_modules_n)
            return false;
        for (size_t i = 0; i < a->unlearn.target_modules_n; i++)
            if (!same_text(a->unlearn.target_modules[i], b->unlearn.target_modules[i]))
                return false;
        return true;
    case MM_KEY_CHOICES:
        if (a->evaluate.multiple_choice_n != b->evaluate.multiple_choice_n)
            return false;
        for (size_t i = 0; i < a->evaluate.multiple_choice_n; i++)
            if (!same_choice(&a->evaluate.multiple_choice[i], &b->evaluate.multiple_choice[i]))
                return false;
        return true;
    case MM_KEY_ATTACKS:
        if (a->relearn.attacks_n != b->relearn.attacks_n)
            return false;
        for (size_t i = 0; i < a->relearn.attacks_n; i++)
            if (!same_attack(&a->relearn.attacks[i], &b->relearn.attacks[i]))
                return false;
        return true;
    }
    return false;
}

static void assert_same(const struct mm_config *a, const struct mm_config *b) {
    for (size_t i = 0; i < mm_config_rows_n; i++)
        if (!same_row(&mm_config_rows[i], a, b))
            fail_msg("%s differs", mm_config_rows[i].name);
}

static void assert_round_trip(const struct mm_config *config, enum mm_command command) {
    char *yaml = mm_config_yaml(config);
    struct mm_config again = good_as(yaml, NULL, command);
    assert_same(config, &again);
    char *twice = mm_config_yaml(&again);
    assert_string_equal(yaml, twice);
    mm_free(twice);
    mm_free(yaml);
    mm_config_free(&again);
}

static const char *changed_value(const char *key) {
    for (size_t i = 0; i < COUNT(changed); i++)
        if (strcmp(changed[i][0], key) == 0)
            return changed[i][1];
    fail_msg("%s is a key without a value to test it with", key);
    return NULL;
}

enum { MOST_WITHOUT = 9 };

static bool is_one_of(const char *name, const char *const names[MOST_WITHOUT]) {
    for (size_t i = 0; i < MOST_WITHOUT && names[i]; i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return false;
}

/* All keys but some set to their other values, in a file of dotted keys. */
static struct mm_config good_changed(const char *const without[MOST_WITHOUT]) {
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    for (size_t i = 0; i < mm_config_rows_n; i++) {
        const char *name = mm_config_rows[i].name, *value = changed_value(name);
        bool quote = mm_config_rows[i].type == MM_KEY_PATH;
        if (!is_one_of(name, without))
            fprintf(out, quote ? "%s: \"%s\"\n" : "%s: %s\n", name, value);
    }
    fclose(out);
    struct mm_config config = good(text, NULL);
    free(text);
    return config;
}

static void test_every_key_there_and_back(void **state) {
    (void)state;
    static const char *const apart[4][MOST_WITHOUT] = {
        {"unlearn.loops", "unlearn.adv_update", "reduction", "unlearn.adv_lora_rank",
         "unlearn.adv_lora_count", "unlearn.lora_rank"},
        {"unlearn.passes", "unlearn.train_adversary", "reduce_dtype", "unlearn.adv_lora_rank",
         "unlearn.adv_lora_count", "unlearn.lora_rank"},
        {"unlearn.loops", "unlearn.adv_update", "reduction", "unlearn.train_adversary",
         "unlearn.use_masking", "unlearn.retain_cross_entropy", "unlearn.fork_every_n_loops",
         "model.state_dtype", "unlearn.lora_rank"},
        {"unlearn.loops", "unlearn.adv_update", "reduce_dtype", "unlearn.adv_lora_rank",
         "unlearn.adv_lora_count", "unlearn.discard_growing_weights", "model.state_dtype"}};
    struct mm_config defaults = good_as(least_pretrain, NULL, MM_PRETRAIN);
    assert_int_equal(COUNT(changed), mm_config_rows_n);
    for (size_t i = 0; i < COUNT(apart); i++) {
        struct mm_config config = good_changed(apart[i]);
        for (size_t r = 0; r < mm_config_rows_n; r++) {
            bool without = is_one_of(mm_config_rows[r].name, apart[i]);
            if (same_row(&mm_config_rows[r], &config, &defaults) != without)
                fail_msg("%s has not its other value", mm_config_rows[r].name);
        }
        assert_round_trip(&config, MM_RUN);
        mm_config_free(&config);
    }
    mm_config_free(&defaults);
}

static void test_least_there_and_back(void **state) {
    (void)state;
    struct mm_config config = good(base, NULL);
    assert_round_trip(&config, MM_RUN);
    mm_config_free(&config);
    /* What a command does not need is null in its resolved file. */
    config = good_as(least_pretrain, NULL, MM_PRETRAIN);
    assert_true(isnan(config.unlearn.adv_lr));
    assert_null(config.model.path);
    assert_round_trip(&config, MM_PRETRAIN);
    mm_config_free(&config);
}

static void test_many_doubles_there_and_back(void **state) {
    (void)state;
    uint64_t bits = 88172645463325252u;
    for (int i = 0; i < 300; i++) {
        bits ^= bits << 13;
        bits ^= bits >> 7;
        bits ^= bits << 17;
        struct mm_config config = good(base, NULL);
        config.unlearn.unlearning_rate = ldexp((double)bits, -(int)(bits % 200) - 40);
        assert_round_trip(&config, MM_RUN);
        mm_config_free(&config);
    }
}

static void test_relative_paths(void **state) {
    (void)state;
    char before[4096], folder[] = "/tmp/config-test-XXXXXX";
    assert_non_null(getcwd(before, sizeof before));
    assert_non_null(mkdtemp(folder));
    assert_int_equal(chdir(folder), 0);
    assert_int_equal(mkdir("it's: #1", 0700), 0);
    assert_int_equal(chdir("it's: #1"), 0);
    struct mm_config c = good(base, "data={retain: a/b, forget_evaluation: x.h5, "
                                    "retain_evaluation: ./y}");
    char *expect = mm_format("%s/it's: #1/a/b", folder);
    assert_string_equal(c.data.retain, expect);
    mm_free(expect);
    expect = mm_format("%s/it's: #1/x.h5", folder);
    assert_string_equal(c.data.forget_evaluation, expect);
    mm_free(expect);
    assert_string_equal(c.data.forget, "/f");
    assert_round_trip(&c, MM_RUN);
    mm_config_free(&c);
    c = good(base, "evaluate.multiple_choice=[{name: a, file: q.h5}]");
    assert_int_equal(c.evaluate.multiple_choice[0].file[0], '/');
    mm_config_free(&c);
    assert_int_equal(chdir(".."), 0);
    assert_int_equal(rmdir("it's: #1"), 0);

    assert_int_equal(mkdir("\xff", 0700), 0);
    assert_int_equal(chdir("\xff"), 0);
    bad(base, "data.retain=a", "argument 'data.retain=a': data.retain: the working directory");
    assert_int_equal(chdir(".."), 0);
    assert_int_equal(rmdir("\xff"), 0);
    assert_int_equal(chdir("/"), 0);
    c = good(base, "data.retain=a");
    assert_string_equal(c.data.retain, "/a");
    mm_config_free(&c);
    assert_int_equal(rmdir(folder), 0);
    assert_int_equal(chdir(before), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_every_key_there_and_back),
        TEST(test_least_there_and_back),
        TEST(test_many_doubles_there_and_back),
        TEST(test_relative_paths),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
