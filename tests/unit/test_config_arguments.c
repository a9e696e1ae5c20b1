/* Tests of the configuration: arguments that replace a file's values, and mistakes in them, which
 * are refused with their place and what would be right. */
#include "tests/unit/config_cases.h"

static void test_arguments(void **state) {
    (void)state;
    struct mm_config c = good(base, "unlearn.target_modules=[gate_proj,v_proj]");
    assert_int_equal(c.unlearn.target_modules_n, 2);
    assert_string_equal(c.unlearn.target_modules[1], "v_proj");
    mm_config_free(&c);
    c = good(base, "model.path=/a=b # a comment");
    assert_string_equal(c.model.path, "/a=b");
    mm_config_free(&c);
    c = good(base, "model.path='/a, b: #c'");
    assert_string_equal(c.model.path, "/a, b: #c");
    mm_config_free(&c);
}

static void test_loops_and_passes(void **state) {
    (void)state;
    struct mm_config c = good(base, "unlearn.passes=120");
    assert_true(c.unlearn.loops == MM_ABSENT);
    assert_int_equal(c.unlearn.passes, 120);
    char *yaml = mm_config_yaml(&c);
    mm_config_free(&c);
    c = good(yaml, "unlearn.loops=5");
    assert_int_equal(c.unlearn.loops, 5);
    assert_true(c.unlearn.passes == MM_ABSENT);
    mm_free(yaml);
    mm_config_free(&c);
    c = good(base, "unlearn.passes=null"); /* does not take the file's loops away */
    assert_int_equal(c.unlearn.loops, 24);
    mm_config_free(&c);
    bad(base, "unlearn={passes: 120, loops: 3}", "unlearn.passes is given beside unlearn.loops");
    c = good(base, "unlearn.loops=0"); /* relearning only */
    assert_int_equal(c.unlearn.loops, 0);
    mm_config_free(&c);
    bad(base, "unlearn.passes=0", "expected an integer in [1, 1000000000], got 0");
}

static void test_argument_mistakes(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"seed", "argument 'seed': expected key=value"},
        {"=3", "argument '=3': expected key=value"},
        {"", "argument '': expected key=value"},
        {"seed=", "argument 'seed=': no value"},
        {"seed=1,2", "argument 'seed=1,2': more than one value"},
        {"seed=]", "argument 'seed=]': not a YAML value: "},
        {"seed=1]\n---\n[2", "argument 'seed=1]?---?[2': "},
        {"seed=[1", "argument 'seed=[1': not a YAML value: did not find expected"},
        {"seed={", "argument 'seed={': not a YAML value"},
        {"seed=&a 1", "argument 'seed=&a 1': anchors"},
        {"seed=\xff", "not a YAML value: invalid leading UTF-8 octet"},
        {"unlearn.adv_ir=1", "argument 'unlearn.adv_ir=1': unknown key 'unlearn.adv_ir'; the "
                             "nearest valid one is 'unlearn.adv_lr'"},
        {"seed=x", "argument 'seed=x': seed: expected an integer in [0, 18446744073709551615], "
                   "got x"},
        {"seed={a: 1}", "argument 'seed={a: 1}': seed: expected an integer"},
        {"unlearn=3", "argument 'unlearn=3': unlearn is a section, not a key: it holds loops, "},
        {"unlearn={adv_lr: 1, adv_lr: 2}", "repeated key 'unlearn.adv_lr'"},
        {"model.path=\"a\\nb\"", "model.path: a line break or control character"},
    };
    for (size_t i = 0; i < COUNT(cases); i++)
        bad(base, cases[i][0], cases[i][1]);
    char *twice[] = {"seed=1", "relearn.lr=1", "seed=2"};
    struct mm_config c;
    struct mm_error err;
    assert_int_equal(mm_config_parse(&c, base, "t", twice, 3, MM_RUN, &err), MM_BAD_INPUT);
    assert_string_equal(err.text,
                        "argument 'seed=2': repeated key 'seed' (first in argument 'seed=1')");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_arguments),
        TEST(test_loops_and_passes),
        TEST(test_argument_mistakes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
