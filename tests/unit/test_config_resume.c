/* Tests of the configuration: which keys a resume may change, which decide results, and the help.
 */
#include "src/config/decisive.h"
#include "tests/unit/config_cases.h"

static enum mm_status check_resume(char *argument, struct mm_error *err) {
    return mm_config_check_resume(&argument, 1, err);
}

static void test_resume(void **state) {
    (void)state;
    static char *const allowed[] = {"device=cpu",
                                    "device=cuda",
                                    "transport=nccl",
                                    "timeout=0",
                                    "checkpoint.keep=3",
                                    "checkpoint={on_error: stop}",
                                    "evaluate.batches=2",
                                    "evaluate.multiple_choice=[]",
                                    "relearn={lr: 1, passes: 3, with_retain: true}",
                                    "relearn={optimizer: adamw, lora_rank: 2, attacks: []}",
                                    "model.path=a",
                                    "data.retain=a",
                                    "data.forget=a",
                                    "data.retain_validation=a",
                                    "data.forget_validation=a",
                                    "data.retain_evaluation=a",
                                    "data.forget_evaluation=null",
                                    "output.save_model=false",
                                    "output.save_dtype=float16",
                                    "output.hash_every_loops=3",
                                    "unlearn.loops=99",
                                    "unlearn.passes=99"};
    static char *const refused[] = {"seed=1",
                                    "model.dtype=float32",
                                    "model.state_dtype=float32",
                                    "data.batch_size=1",
                                    "data.micro_batch=1",
                                    "data.context_length=2",
                                    "unlearn.adv_lr=1",
                                    "unlearn={loops: 99, graph: fresh}",
                                    "output.dir=a",
                                    "pretrain.steps=1",
                                    "reduction=exact",
                                    "reduce_dtype=float32",
                                    "unlearn.retain_loss_budget=1"};
    struct mm_error err;
    for (size_t i = 0; i < COUNT(allowed); i++)
        if (check_resume(allowed[i], &err))
            fail_msg("%s", err.text);
    for (size_t i = 0; i < COUNT(refused); i++) {
        if (check_resume(refused[i], &err) != MM_BAD_INPUT)
            fail_msg("%s allowed", refused[i]);
        assert_non_null(strstr(err.text, "cannot change on resume"));
        assert_int_equal(mm_live_blocks(), blocks_before);
    }
    assert_int_equal(check_resume("sead=1", &err), MM_BAD_INPUT);
    assert_non_null(strstr(err.text, "the nearest valid one is 'seed'"));
    assert_int_equal(check_resume("device", &err), MM_BAD_INPUT);
    assert_int_equal(mm_config_check_resume(NULL, 0, &err), MM_OK);
}

/* The first key in which an override changes the lines; "" where it changes none. */
static void changed_key(const char *override, enum mm_which_keys which, char key[64]) {
    struct mm_config left = good(base, NULL), right = good(base, override);
    char *before = mm_config_lines(&left, which), *after = mm_config_lines(&right, which);
    const char *a = before, *b = after;
    struct mm_line_difference d = {0};
    if (mm_lines_differ(&a, &b, &d) && mm_lines_differ(&a, &b, &d))
        fail_msg("%s changes %s too", override, d.key);
    snprintf(key, 64, "%s", d.key);
    mm_free(before);
    mm_free(after);
    mm_config_free(&left);
    mm_config_free(&right);
}

static void test_decisive_keys(void **state) {
    (void)state;
    static const struct {
        const char *override, *all, *decisive, *paths; /* the key that differs in each */
    } rows[] = {
        {"seed=1", "seed", "seed", "seed"},
        {"data.batch_size=1", "data.batch_size", "data.batch_size", "data.batch_size"},
        {"relearn.attacks=[{name: a}, {name: b, lr: 1}]", "relearn.attacks", "relearn.attacks",
         "relearn.attacks"},
        {"evaluate.multiple_choice=[{name: a, file: b}]", "evaluate.multiple_choice",
         "evaluate.multiple_choice", "evaluate.multiple_choice"},
        {"data.micro_batch=1", "data.micro_batch", "", "data.micro_batch"},
        {"device=cpu", "device", "", "device"},
        {"checkpoint.keep=9", "checkpoint.keep", "", "checkpoint.keep"},
        {"output.dir=/other", "output.dir", "", "output.dir"},
        {"timeout=9", "timeout", "", "timeout"},
        {"pretrain.steps=9", "pretrain.steps", "", "pretrain.steps"},
        {"model.path=/other", "", "", "model.path"},
        {"data.forget=/other", "", "", "data.forget"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char key[64];
        changed_key(rows[i].override, MM_KEYS_ALL, key);
        assert_string_equal(key, rows[i].all);
        changed_key(rows[i].override, MM_KEYS_DECISIVE, key);
        assert_string_equal(key, rows[i].decisive);
        changed_key(rows[i].override, MM_KEYS_PATHS, key);
        assert_string_equal(key, rows[i].paths);
    }
    assert_int_equal(mm_live_blocks(), blocks_before);
}

/* A line a key, however long a value: what is cut is cut at its end only. */
static void test_lines_of_long_values(void **state) {
    (void)state;
    char list[4096] = "relearn.attacks=[{name: a0}";
    for (int i = 1; i < 99; i++)
        snprintf(list + strlen(list), sizeof list - strlen(list), ", {name: a%d}", i);
    strcat(list, "]");
    struct mm_config left = good(base, NULL), right = good(base, list);
    char *before = mm_config_lines(&left, MM_KEYS_ALL);
    char *after = mm_config_lines(&right, MM_KEYS_ALL);
    const char *a = before, *b = after;
    struct mm_line_difference d;
    assert_true(mm_lines_differ(&a, &b, &d));
    assert_string_equal(d.key, "relearn.attacks");
    assert_string_equal(d.left, "[]");
    assert_int_equal(strlen(d.right), sizeof d.right - 1);
    assert_non_null(strstr(d.right, "{name: 'a1'}"));
    assert_false(mm_lines_differ(&a, &b, &d));
    mm_free(before);
    mm_free(after);
    mm_config_free(&left);
    mm_config_free(&right);
}

static void test_help(void **state) {
    (void)state;
    char *help = mm_config_help(NULL, MM_CONFIG_ALL_KEYS);
    for (size_t i = 0; i < mm_config_rows_n; i++) {
        char *line = mm_format("\n  %s ", mm_config_rows[i].name);
        if (!strstr(help, line))
            fail_msg("no help for %s", mm_config_rows[i].name);
        mm_free(line);
    }
    assert_non_null(strstr(help, "a number in [0, 1) (default 0.9)"));
    assert_non_null(strstr(help, "listing | fresh | reuse (default listing)"));
    for (const char *line = help; *line;) {
        size_t n = strcspn(line, "\n");
        if (n > 120)
            fail_msg("long line: %.*s", (int)n, line);
        line += n + (line[n] == '\n');
    }
    mm_free(help);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_resume),
        TEST(test_decisive_keys),
        TEST(test_lines_of_long_values),
        TEST(test_help),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
