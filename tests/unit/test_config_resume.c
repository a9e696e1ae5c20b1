/* Tests of the configuration: which keys a resume may change, and the help. */
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
                                    "model.path=a",
                                    "model.dtype=float32",
                                    "model.state_dtype=float32",
                                    "data.retain=a",
                                    "data.forget=a",
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

static void test_help(void **state) {
    (void)state;
    char *help = mm_config_help(NULL, false);
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
        TEST(test_help),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
