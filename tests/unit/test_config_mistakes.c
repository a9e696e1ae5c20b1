/* Tests of the configuration: every kind of mistake, in YAML, keys, values, keys together and
 * arguments, is refused with its place and what would be right. */
#include "src/config/command.h"
#include "tests/unit/config_cases.h"

#include <math.h>
#include <unistd.h>

/* ---- YAML, keys, values ---- */

static void test_yaml_mistakes(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"", "t.yaml: there is nothing in it"},
        {"# only a comment\n", "t.yaml: there is nothing in it"},
        {"---\n", "t.yaml:2: the file must be a mapping"},
        {"- a\n", "t.yaml:1: the file must be a mapping"},
        {"\nrun\n", "t.yaml:2: the file must be a mapping"},
        {"seed: 1\n---\nseed: 2\n", "t.yaml:2: a second document"},
        {"model:\n\tpath: /m\n", "t.yaml:2:1: found character that cannot start any token (while "
                                 "scanning for the next token); indent with spaces, not tabs"},
        {"model:\n  path: 'a\n", "t.yaml:3:1: found unexpected end of stream"},
        {"seed: [1\n", "t.yaml:2:1: did not find expected ',' or ']'"},
        {"a: 1\n b: 2\n", "t.yaml:2:3: mapping values are not allowed"},
        {"seed: 1\nmodel: {path: \xc3\x28}\n", "t.yaml:2:16: invalid trailing UTF-8 octet"},
        {"\xc3\xa4: \xff\n", "t.yaml:1:4: invalid leading UTF-8 octet"},
        {"seed: \x01\n", "t.yaml:1:7: control characters are not allowed"},
        {"seed: &a 1\n", "t.yaml:1: anchors (&) and aliases (*) are not supported"},
        {"&a seed: 1\n", "t.yaml:1: anchors (&) and aliases (*) are not supported"},
        {"x: &a {b: 1}\n", "t.yaml:1: anchors (&) and aliases (*) are not supported"},
        {"x: &a [b]\n", "t.yaml:1: anchors (&) and aliases (*) are not supported"},
        {"seed: *a\n", "t.yaml:1: anchors (&) and aliases (*) are not supported"},
        {"seed: !!int 3\n", "t.yaml:1: tags (!) are not supported"},
        {"seed: ! 3\n", "t.yaml:1: tags (!) are not supported"},
        {"? [a, b]\n: 1\n", "t.yaml:1: a key must be a name"},
        {"seed: [[[[[[[[[[1]]]]]]]]]]\n", "t.yaml:1: nested too deeply"},
        {"model: {path: \"a\\0b\"}\n", "t.yaml:1: a text contains a NUL"},
    };
    for (size_t i = 0; i < COUNT(cases); i++)
        bad(cases[i][0], NULL, cases[i][1]);
    char *marked = mm_format("\xef\xbb\xbf%s", base); /* UTF-8's byte-order mark */
    struct mm_config c = good(marked, NULL);
    mm_config_free(&c);
    mm_free(marked);
}

static void test_too_many_values(void **state) {
    (void)state;
    char *text = malloc(50000);
    strcpy(text, "seed: [");
    for (int i = 0; i < 10001; i++)
        strcat(text + 3 * i, "1, ");
    strcat(text, "]\n");
    bad(text, NULL, "t.yaml:1: more than 10000 values");
    free(text);
}

static void test_key_mistakes(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"unlearn.adv_ir: 1\n",
         "t.yaml:14: unknown key 'unlearn.adv_ir'; the nearest valid one is 'unlearn.adv_lr'"},
        {"\n\nadv_lr: 1\n", "t.yaml:16: unknown key 'adv_lr'; the nearest valid one is "
                            "'unlearn.adv_lr'"},
        {"relearn: {learning_rate: 1}\n", "t.yaml:14: unknown key 'relearn.learning_rate'; "},
        {"sead: 1\n", "the nearest valid one is 'seed'"},
        {"dtype: 1\n", "the nearest valid one is 'model.dtype'"},
        {"relearn: {pases: 1}\n", "the nearest valid one is 'relearn.passes'"},
        {"\"a\\nb\": 1\n", "t.yaml:14: unknown key 'a?b'"},
        {"'': 1\n", "t.yaml:14: unknown key ''"},
        {"relearn: 3\n", "t.yaml:14: relearn is a section, not a key: it holds passes, lr, "
                         "with_retain"},
        {"relearn:\n", "t.yaml:14: relearn is a section, not a key"},
        {"checkpoint: [1]\n", "t.yaml:14: checkpoint is a section, not a key"},
        {"seed: {a: 1}\n", "t.yaml:14: seed: expected an integer in [0, 18446744073709551615], "
                           "got a mapping"},
        {"seed: {}\n", "t.yaml:14: seed: expected an integer in"},
        {"pretrain: {betas: {a: {b: 1}}}\n", "t.yaml:14: pretrain.betas: expected a list of two"},
        {"output:\n  dir: /p\n", "t.yaml:15: repeated key 'output.dir' (first on line 8)"},
        {"seed: 1\nseed: 1\n", "t.yaml:15: repeated key 'seed' (first on line 14)"},
        {"unlearn.loops: 3\n", "t.yaml:14: repeated key 'unlearn.loops' (first on line 10)"},
        {"unlearn.passes: 120\n", "t.yaml:14: unlearn.passes is given beside unlearn.loops"},
    };
    for (size_t i = 0; i < COUNT(cases); i++)
        bad_more(cases[i][0], cases[i][1]);
    struct mm_config c = good(base, "relearn={}"); /* an empty section is no mistake */
    mm_config_free(&c);
}

static void test_long_keys(void **state) {
    (void)state;
    /* Cut between characters. */
    char *wide = mm_format("%sx", base);
    for (int i = 0; i < 60; i++) {
        char *wider = mm_format("%s\xc3\xa4", wide);
        mm_free(wide);
        wide = wider;
    }
    char *line = mm_format("%s: 1\n", wide);
    bad(line, NULL, "\xc3\xa4...'; the nearest");
    mm_free(line);
    mm_free(wide);
    char *many = mm_format("%s%0900d: 1\n", base, 7);
    bad(many, NULL, "t.yaml:14: unknown key '000");
    mm_free(many);
}

#define INTEGERS(bounds) ": expected an integer in " bounds ", got "
static void test_number_mistakes(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"seed: 1e3", "t.yaml:14: seed: expected an integer in [0, 18446744073709551615], got 1e3"},
        {"seed: -1", "got -1"},
        {"seed: 18446744073709551616", "got 18446744073709551616"},
        {"seed: 1.0", "got 1.0"},
        {"seed: 010", "got 010"},
        {"seed: 0x10", "got 0x10"},
        {"seed: 1_000", "got 1_000"},
        {"seed: \"7\"", "got \"7\""},
        {"seed: null", "got null"},
        {"seed:\n\nreduction: fast\n",
         "t.yaml:14: seed: expected an integer in [0, 18446744073709551615], "
         "got null"},
        {"seed: [1]", "got a list"},
        {"data.batch_size: 0", "data.batch_size" INTEGERS("[1, 1000000]") "0"},
        {"data.batch_size: 1000001", "data.batch_size" INTEGERS("[1, 1000000]") "1000001"},
        {"data.micro_batch: 0", "data.micro_batch" INTEGERS("[1, 1000000]") "0"},
        {"data.context_length: 1", "data.context_length" INTEGERS("[2, 1000000]") "1"},
        {"unlearn.fork_every_n_loops: 0", INTEGERS("[1, 1000000000]") "0"},
        {"evaluate.every_passes: 0", INTEGERS("[1, 1000000000]") "0"},
        {"checkpoint.keep: 0", INTEGERS("[1, 1000000]") "0"},
        {"unlearn.adv_decay: 1.5", "t.yaml:14: unlearn.adv_decay: expected a number in [0, 1], "
                                   "got 1.5"},
        {"unlearn.adv_decay: -0.1", "a number in [0, 1], got -0.1"},
        {"unlearn.retain_momentum: 1", "a number in [0, 1), got 1"},
        {"unlearn.forget_momentum: 1", "a number in [0, 1), got 1"},
        {"unlearn.discard_growing_weights: 1.01", "a number in [0, 1], got 1.01"},
        {"unlearn.adv_update: -1", "a number in [0, 1000000000], got -1"},
        {"unlearn.npo_beta: 0", "a number in (0, 1000000000], got 0"},
        {"unlearn.rep_eng_retain_lr: -0.5", "a number in [0, 1000000000], got -0.5"},
        {"unlearn.rmu_layer: 0", "an integer in [1, 1000000], got 0"},
        {"unlearn.rmu_coefficient: -1", "a number in [0, 1000000000], got -1"},
        {"unlearn.retain_loss_budget: -1", "a number in [0, 1000000000], got -1"},
        {"relearn.lr: 0", "a number in (0, 1000000000], got 0"},
        {"relearn.lr: 1e999", "got 1e999"},
        {"relearn.lr: 1e10", "got 1e10"},
        {"relearn.lr: .inf", "got .inf"},
        {"relearn.lr: inf", "got inf"},
        {"relearn.lr: nan", "got nan"},
        {"relearn.lr: .nan", "got .nan"},
        {"relearn.lr: 0x1p-3", "got 0x1p-3"},
        {"relearn.lr: 1e", "got 1e"},
        {"relearn.lr: .", "got ."},
        {"relearn.lr: 1 2", "got 1 2"},
        {"relearn.lr: '1'", "got \"1\""},
        {"relearn.lr: null", "got null"},
        {"relearn.lr: true", "got true"},
    };
    for (size_t i = 0; i < COUNT(cases); i++)
        bad_more(cases[i][0], cases[i][1]);
}

static void test_name_and_path_mistakes(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"relearn.with_retain: yes", "relearn.with_retain: expected true or false, got yes"},
        {"relearn.with_retain: True", "expected true or false, got True"},
        {"relearn.with_retain: 1", "expected true or false, got 1"},
        {"relearn.with_retain: 'true'", "expected true or false, got \"true\""},
        {"relearn.with_retain: null", "expected true or false, got null"},
        {"unlearn.graph: new", "unlearn.graph: expected listing | fresh | reuse, got new"},
        {"unlearn.graph: null", "expected listing | fresh | reuse, got null"},
        {"unlearn.graph: [fresh]", "expected listing | fresh | reuse, got a list"},
        {"unlearn.unlearning_loss_fn: cross_entropy",
         "expected neg_cross_entropy | neg_entropy | correct_logit_minus_avg | npo | simnpo | "
         "circuit_breaker | stream_activation | rmu, got cross_entropy"},
        {"relearn.optimizer: adam", "relearn.optimizer: expected sgd | adamw, got adam"},
        {"relearn.lora_rank: 65537", "expected an integer in [0, 65536], got 65537"},
        {"reduce_dtype: float16", "expected float32 | bfloat16, got float16"},
        {"transport: mpi", "transport: expected auto | nccl | staged, got mpi"},
        {"pretrain.config: ''", "pretrain.config: expected a path, got \"\""},
        {"pretrain.config: [a]", "pretrain.config: expected a path, got a list"},
        {"pretrain.config: \"a\\nb\"", "pretrain.config: a line break or control character"},
        {"pretrain.config: \"a\\x85b\"", "pretrain.config: a line break or control character"},
        {"pretrain.config: \"a\\u2028b\"", "pretrain.config: a line break or control character"},
    };
    for (size_t i = 0; i < COUNT(cases); i++)
        bad_more(cases[i][0], cases[i][1]);
}

static void test_list_mistakes(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"unlearn.target_modules: gate_proj", "expected a list of different names, [a, b], got "
                                              "gate_proj"},
        {"unlearn.target_modules: []", "expected a list of different names"},
        {"unlearn.target_modules: null", "expected a list of different names, [a, b], got null"},
        {"unlearn.target_modules:\n- a\n- [b]", "t.yaml:16: unlearn.target_modules: expected"},
        {"unlearn.target_modules:\n- a\n-\n", "t.yaml:16: unlearn.target_modules: expected"},
        {"unlearn.target_modules: [a, '']", "got \"\""},
        {"unlearn.target_modules:\n- a\n- b\n- a\n",
         "t.yaml:17: unlearn.target_modules: a is given twice"},
        {"pretrain.betas: [0.9]", "expected a list of two numbers in [0, 1), got a list"},
        {"pretrain.betas: [0.9, 0.9, 0.9]", "expected a list of two numbers in [0, 1)"},
        {"pretrain.betas: [0.9, 1]", "expected a list of two numbers in [0, 1), got 1"},
        {"pretrain.betas: 0.9", "expected a list of two numbers in [0, 1), got 0.9"},
        {"evaluate.multiple_choice: null", "expected a list of {name: a, file: b.h5"},
        {"evaluate.multiple_choice: [a]", "expected a list of {name: a, file: b.h5"},
        {"evaluate.multiple_choice:\n- {name: a}", "t.yaml:15: evaluate.multiple_choice: file is "
                                                   "missing"},
        {"evaluate.multiple_choice: [{file: a}]", "name is missing"},
        {"evaluate.multiple_choice: [{file: a, name: null}]", "name is missing"},
        {"evaluate.multiple_choice: [{}]", "name is missing"},
        {"evaluate.multiple_choice:\n- name: a\n  fil: b\n",
         "t.yaml:16: evaluate.multiple_choice: unknown key 'fil'; valid are name, file and "
         "temperature"},
        {"evaluate.multiple_choice:\n- name: a\n  file: b\n  name: c\n",
         "t.yaml:17: evaluate.multiple_choice: repeated key 'name' (first on line 15)"},
        {"evaluate.multiple_choice: [{name: a, file: b, temperature: -1}]", "expected a number"},
        {"evaluate.multiple_choice: [{name: a, file: b, temperature: null}]", "expected a number"},
        {"evaluate.multiple_choice: [{name: a, file: b}, {name: a, file: c}]",
         "two files are called a"},
        {"relearn.attacks: null", "relearn.attacks: expected a list of {name: a, optimizer"},
        {"relearn.attacks: {a: 1}", "expected a list of {name: a, optimizer"},
        {"relearn.attacks: [sgd]", "expected a list of {name: a, optimizer"},
        {"relearn.attacks:\n- name: a\n- lr: 1\n", "t.yaml:16: relearn.attacks: name is missing"},
        {"relearn.attacks:\n- name: a\n- name: b\n- name: a\n",
         "t.yaml:17: relearn.attacks: two attacks are called a"},
        {"relearn.attacks:\n- name: a\n  rate: 1\n",
         "t.yaml:16: relearn.attacks: unknown key 'rate'; valid are name, optimizer, lr, passes, "
         "with_retain, lora_rank and state_dtype"},
        {"relearn.attacks:\n- name: a\n  lr: 1\n  lr: 2\n",
         "t.yaml:17: relearn.attacks: repeated key 'lr' (first on line 16)"},
        {"relearn.attacks:\n- name: a\n  lr: 0\n",
         "t.yaml:16: relearn.attacks: lr: expected a number in (0, 1000000000], got 0"},
        {"relearn.attacks: [{name: a, optimizer: adam}]",
         "relearn.attacks: optimizer: expected sgd | adamw, got adam"},
        {"relearn.attacks: [{name: a, passes: 0}]",
         "expected an integer in [1, 1000000000], got 0"},
        {"relearn.attacks: [{name: a, with_retain: 1}]", "expected false | true, got 1"},
        {"relearn.attacks: [{name: a, lora_rank: -1}]",
         "expected an integer in [0, 65536], got -1"},
    };
    for (size_t i = 0; i < COUNT(cases); i++)
        bad_more(cases[i][0], cases[i][1]);
}

/* ---- keys together ---- */

static void test_what_commands_need(void **state) {
    (void)state;
    static const enum mm_command unlearning[] = {MM_RUN, MM_RESUME, MM_PLAN, MM_TRIALS};
    static const char *const keys[] = {"model.path",
                                       "data.retain",
                                       "data.forget",
                                       "data.retain_validation",
                                       "data.forget_validation",
                                       "unlearn.unlearning_rate",
                                       "unlearn.retaining_rate",
                                       "unlearn.adv_lr"};
    for (size_t c = 0; c < COUNT(unlearning); c++) {
        const char *command = mm_command_rows[unlearning[c]].name;
        for (size_t k = 0; k < COUNT(keys); k++) {
            char argument[64], message[200];
            snprintf(argument, sizeof argument, "%s=null", keys[k]);
            snprintf(message, sizeof message, "argument '%s': %s is null, but %s needs it",
                     argument, keys[k], command);
            bad_as(base, argument, unlearning[c], message);
        }
        bad_as(base, "unlearn.loops=null", unlearning[c],
               "argument 'unlearn.loops=null': unlearn.loops is missing, and so is unlearn.passes");
    }
    bad("seed: 1", NULL, "t.yaml: model.path is missing, but run needs it");
    bad("model: {path: null}", NULL, "t.yaml:1: model.path is null, but run needs it");
    bad(base, "output.dir=null", "output.dir is null, but run needs it");
    bad_as(base, "output.dir=null", MM_RESUME, "output.dir is null, but resume needs it");
    struct mm_config c = good_as(base, "output.dir=null", MM_PLAN);
    mm_config_free(&c);
    c = good_as(base, "output.dir=null", MM_TRIALS);
    mm_config_free(&c);
    bad("seed: 1", "output.dir=/o", "model.path is missing");
}

static void test_what_eval_and_pretrain_need(void **state) {
    (void)state;
    struct mm_config c = good_as("model: {path: /m}\ndata: {retain_evaluation: /a, "
                                 "forget_evaluation: /b}\n",
                                 NULL, MM_EVAL);
    mm_config_free(&c);
    c = good_as("model: {path: /m}\ndata: {retain_validation: /a, forget_validation: /b}\n", NULL,
                MM_EVAL);
    mm_config_free(&c);
    bad_as("data: {retain_validation: /a, forget_validation: /b}\n", NULL, MM_EVAL,
           "model.path is missing, but eval needs it");
    bad_as("model: {path: /m}\n", NULL, MM_EVAL,
           "t.yaml: data.retain_validation is missing, but eval needs it");
    bad_as("model: {path: /m}\ndata: {retain_validation: /a}\n", NULL, MM_EVAL,
           "data.forget_validation is missing");

    c = good_as(least_pretrain, NULL, MM_PRETRAIN);
    mm_config_free(&c);
    bad_as(least_pretrain, "pretrain.config=null", MM_PRETRAIN, "pretrain.config is null");
    bad_as(least_pretrain, "data.retain=~", MM_PRETRAIN, "data.retain is null");
    bad_as(least_pretrain, "output.dir=null", MM_PRETRAIN, "output.dir is null");
}

static void test_keys_together(void **state) {
    (void)state;
    bad_more("data.retain_evaluation: /e\n", "t.yaml:14: data.retain_evaluation is given alone");
    bad_more("data.forget_evaluation: /e\n", "t.yaml:14: data.forget_evaluation is given alone");
    bad_more("unlearn.graph: reuse\nunlearn.unlearning_loss_fn: neg_entropy\n",
             "t.yaml:14: unlearn.graph is reuse");
    bad_more("unlearn.retain_cross_entropy: false\nunlearn.use_masking: false\n",
             "t.yaml:14: unlearn.retain_cross_entropy is false while rep_eng_retain_lr is 0");
    bad_more("unlearn.retain_cross_entropy: false\nunlearn.rep_eng_retain_lr: 1\n",
             "t.yaml:14: unlearn.retain_cross_entropy is false with use_masking");
    bad_more("unlearn.adv_update: 0.5\nunlearn.train_adversary: false\n",
             "t.yaml:14: unlearn.adv_update is given, but without train_adversary");
    bad_more("unlearn.adv_lora_count: 2\n",
             "t.yaml:14: unlearn.adv_lora_count is given without adv_lora_rank");
    static const char *const without[][2] = {
        {"unlearn.train_adversary: false", "is given, but without train_adversary"},
        {"unlearn.use_masking: false", "needs use_masking"},
        {"unlearn.normalization: none", "needs a normalization other than none"},
        {"unlearn.adv_update: 1", "is given with adv_update"},
        {"model.state_dtype: bfloat16", "needs model.state_dtype float32"},
    };
    for (size_t i = 0; i < sizeof without / sizeof *without; i++) {
        char more[128], message[128];
        snprintf(more, sizeof more, "unlearn.adv_lora_rank: 8\n%s\n", without[i][0]);
        snprintf(message, sizeof message, "t.yaml:14: unlearn.adv_lora_rank %s", without[i][1]);
        bad_more(more, message);
    }
    static const char *const beside[][2] = {
        {"unlearn.train_adversary: true", "needs train_adversary false"},
        {"unlearn.normalization: per_parameter", "is given with normalization per_parameter"},
        {"unlearn.discard_growing_weights: 0.5", "is given with discard_growing_weights"},
        {"model.state_dtype: bfloat16", "needs model.state_dtype float32"},
        {"reduce_dtype: bfloat16", "needs reduce_dtype float32"},
        {"relearn: {state_dtype: bfloat16}", "needs relearn.state_dtype float32"},
    };
    for (size_t i = 0; i < sizeof beside / sizeof *beside; i++) {
        char more[128], message[128];
        snprintf(more, sizeof more, "unlearn.lora_rank: 8\n%s\n%s", beside[i][0],
                 i ? "unlearn.train_adversary: false\n" : "");
        snprintf(message, sizeof message, "t.yaml:14: unlearn.lora_rank %s", beside[i][1]);
        bad_more(more, message);
    }
    bad_more("unlearn.fork_every_n_loops: 5\nunlearn.adv_lora_rank: 8\n",
             "t.yaml:14: unlearn.fork_every_n_loops is too small for adv_lora_rank");
    bad_more("unlearn.fork_every_n_loops: 11\nunlearn.adv_lora_rank: 8\n"
             "unlearn.adv_lora_count: 7\n",
             "t.yaml:14: unlearn.fork_every_n_loops is too small for adv_lora_rank");
    struct mm_config c = good(base, "unlearn={graph: reuse, rate_scale: study}");
    assert_int_equal(c.unlearn.graph, MM_GRAPH_REUSE);
    mm_config_free(&c);
    c = good(base, "unlearn={rate_scale: study, normalization: global_post_mask}");
    mm_config_free(&c);
    c = good(base, "unlearn={train_adversary: false, adv_lr: null}");
    assert_true(isnan(c.unlearn.adv_lr));
    mm_config_free(&c);
    bad(base, "unlearn={train_adversary: true, adv_lr: null}", "unlearn.adv_lr is null");
}

/* ---- files ---- */

static void write_file(const char *path, const char *text, size_t n) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}

static void bad_file(const char *path, const char *message) {
    struct mm_config config;
    struct mm_error err = {""};
    assert_int_equal(mm_config_read(&config, path, NULL, 0, MM_RUN, &err), MM_BAD_INPUT);
    if (!strstr(err.text, message))
        fail_msg("said     %s\n  expected %s", err.text, message);
    assert_true(owns_nothing(&config));
    assert_int_equal(mm_live_blocks(), blocks_before);
}

static void test_files(void **state) {
    (void)state;
    char path[] = "/tmp/config-test-XXXXXX";
    int descriptor = mkstemp(path);
    assert_true(descriptor >= 0);
    close(descriptor);
    write_file(path, base, sizeof base - 1);
    struct mm_config c;
    struct mm_error err;
    char *overrides[] = {"seed=7"};
    assert_int_equal(mm_config_read(&c, path, overrides, 1, MM_RUN, &err), MM_OK);
    assert_int_equal(c.seed, 7);
    assert_string_equal(c.model.path, "/m");
    mm_config_free(&c);

    write_file(path, base, sizeof base); /* with its NUL */
    bad_file(path, ":14:1: control characters are not allowed");
    write_file(path, "", 0);
    bad_file(path, ": there is nothing in it");
    write_file(path, "\xff\xfes\0e\0", 6); /* UTF-16 */
    bad_file(path, ":1:1: ");
    static char large[(1 << 20) + 1];
    memset(large, '#', sizeof large);
    write_file(path, large, sizeof large);
    bad_file(path, ": larger than 1 MiB");
    unlink(path);
    bad_file(path, "cannot be read: No such file");
    bad_file("/tmp", "/tmp: cannot be read: Is a directory");
}

/* Damaged texts end in a value or a message, never in a crash or a leak. */
static void test_damaged(void **state) {
    (void)state;
    struct mm_config config =
        good(base, "evaluate.multiple_choice=[{name: a, file: /a.h5}, {name: b, file: /b.h5}]");
    char *yaml = mm_config_yaml(&config);
    mm_config_free(&config);
    size_t n = strlen(yaml);
    char *copy = malloc(n + 1);
    memcpy(copy, yaml, n + 1);
    mm_free(yaml);
    char *damaged = malloc(n + 1);
    unsigned random = 1;
    for (int round = 0; round < 3000; round++) {
        memcpy(damaged, copy, n + 1);
        for (int i = 0; i <= round % 3; i++) {
            random = random * 1664525u + 1013904223u;
            static const char bytes[] = "\n \t:,[]{}'\"&*!#-0.9en\x80\xff?|>%@`";
            damaged[(random >> 8) % n] = bytes[(random >> 3) % (sizeof bytes - 1)];
        }
        if (round % 5 == 0)
            damaged[(random >> 4) % n] = '\0';
        struct mm_error err = {""};
        enum mm_status status = parse(&config, damaged, NULL, MM_RUN, &err);
        if (status)
            assert_int_equal(strncmp(err.text, "t.yaml:", 7), 0);
        else
            mm_config_free(&config);
        assert_int_equal(mm_live_blocks(), blocks_before);
    }
    free(damaged);
    free(copy);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_yaml_mistakes),
        TEST(test_too_many_values),
        TEST(test_key_mistakes),
        TEST(test_long_keys),
        TEST(test_number_mistakes),
        TEST(test_name_and_path_mistakes),
        TEST(test_list_mistakes),
        TEST(test_what_commands_need),
        TEST(test_what_eval_and_pretrain_need),
        TEST(test_keys_together),
        TEST(test_files),
        TEST(test_damaged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
