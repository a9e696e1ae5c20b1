/* test_stored.c - the model of config.json held against what the files hold, and what model.path
 * may be instead of a model folder. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "src/model/model.h"
#include "src/model/stored.h"
#include "tests/unit/scratch.h"

static struct mm_error err;

/* One layer, width 2, vocabulary 3: every tensor is named once here, its values are `first`, ... */
struct tensors {
    struct mm_named_tensor rows[32];
    float values[32][16];
    size_t n;
};

static void add(struct tensors *t, const char *name, size_t rows, size_t cols, float first) {
    for (size_t i = 0; i < 16; i++)
        t->values[t->n][i] = first + (float)i;
    t->rows[t->n] = (struct mm_named_tensor){name, rows, cols, t->values[t->n]};
    t->n++;
}

/* Without embedding and head. */
static void add_llama(struct tensors *t, bool prefix) {
    static const struct {
        const char *name;
        size_t rows, cols;
    } all[] = {
        {"model.layers.0.input_layernorm.weight", 2, 0},
        {"model.layers.0.self_attn.q_proj.weight", 2, 2},
        {"model.layers.0.self_attn.k_proj.weight", 2, 2},
        {"model.layers.0.self_attn.v_proj.weight", 2, 2},
        {"model.layers.0.self_attn.o_proj.weight", 2, 2},
        {"model.layers.0.post_attention_layernorm.weight", 2, 0},
        {"model.layers.0.mlp.gate_proj.weight", 1, 2},
        {"model.layers.0.mlp.up_proj.weight", 1, 2},
        {"model.layers.0.mlp.down_proj.weight", 2, 1},
        {"model.norm.weight", 2, 0},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        add(t, all[i].name + (prefix ? 0 : strlen("model.")), all[i].rows, all[i].cols, 1);
}

static const struct mm_arch llama = {
    .family = MM_LLAMA,
    .layers = 1,
    .width = 2,
    .mlp = 1,
    .vocab = 3,
    .heads = {.heads = 1, .kv_heads = 1, .head_dim = 2, .rotary_dim = 2},
    .norm = MM_RMS_NORM,
    .activation = MM_SWIGLU,
};

/* What came of it: the message, or "" and the first values of embedding and head. Warnings go to
 * `log`. */
struct outcome {
    enum mm_status status;
    bool tied;
    float embed, head;
    char log[4096];
};

static struct outcome match(void **state, const struct tensors *t, bool tied) {
    struct mm_arch arch = llama;
    struct mm_weights *weights;
    struct outcome got = {0};
    struct mm_device *dev = mm_device_create_cpu();
    arch.tied = tied;
    assert_int_equal(mm_weights_write(*state, t->rows, t->n, &err), MM_OK);
    assert_int_equal(mm_weights_open(&weights, *state, &err), MM_OK);
    const char *path = path_in(*state, "log");
    int kept = dup(2);
    assert_non_null(freopen(path, "w", stderr));
    got.status = mm_stored_match(&arch, weights, dev, &err);
    fflush(stderr);
    dup2(kept, 2);
    close(kept);
    char *log;
    struct mm_error unused;
    assert_int_equal(mm_file_read(path, &log, NULL, &unused), MM_OK);
    snprintf(got.log, sizeof got.log, "%s", log);
    mm_free(log);
    got.tied = arch.tied;
    if (got.status == MM_OK) {
        float values[6];
        mm_weights_load(weights, "model.embed_tokens.weight", 3, 2, values, MM_F32, &err);
        got.embed = got.head = values[0];
        if (!arch.tied)
            mm_weights_load(weights, "lm_head.weight", 3, 2, values, MM_F32, &err);
        got.head = values[0];
    }
    mm_weights_free(weights);
    mm_device_free(dev);
    return got;
}

static void plain(void **state) {
    struct tensors t = {.n = 0};
    add_llama(&t, true);
    add(&t, "model.embed_tokens.weight", 3, 2, 5);
    add(&t, "lm_head.weight", 3, 2, 7);
    struct outcome got = match(state, &t, false);
    assert_true(got.status == MM_OK && got.embed == 5 && got.head == 7);
    assert_string_equal(got.log, "");
}

static void tied_pairs(void **state) {
    struct tensors t = {.n = 0};
    add_llama(&t, true);
    add(&t, "model.embed_tokens.weight", 3, 2, 5);
    struct outcome got = match(state, &t, true);
    assert_true(got.status == MM_OK && got.tied && got.embed == 5 && !*got.log);
    got = match(state, &t, false);
    expect_fault(got.status, MM_BAD_INPUT, &err, "no tensor 'lm_head.weight'");
    add(&t, "lm_head.weight", 3, 2, 5); /* the same: still tied, and used */
    got = match(state, &t, true);
    assert_true(got.status == MM_OK && got.tied && got.embed == 5 && !*got.log);
    t.values[t.n - 1][5] += 1;
    t.values[t.n - 1][0] = 9;
    got = match(state, &t, true);
    assert_true(got.status == MM_OK && !got.tied && got.embed == 5 && got.head == 9);
    assert_non_null(
        strstr(got.log, "hold model.embed_tokens.weight and lm_head.weight, which differ"));
    t.rows[t.n - 2] = t.rows[t.n - 1]; /* the head alone serves for both */
    t.n--;
    got = match(state, &t, true);
    assert_true(got.status == MM_OK && got.tied && got.embed == 9 && !*got.log);
}

static void names_without_prefix(void **state) {
    struct tensors t = {.n = 0};
    add_llama(&t, false);
    add(&t, "embed_tokens.weight", 3, 2, 5);
    struct outcome got = match(state, &t, true);
    assert_true(got.status == MM_OK && got.embed == 5 && !*got.log);
    add(&t, "model.lm_head.weight", 3, 2, 8);
    got = match(state, &t, false);
    assert_true(got.status == MM_OK && got.head == 8 && !*got.log);
    add(&t, "model.norm.weight", 2, 0, 1);
    got = match(state, &t, false);
    expect_fault(got.status, MM_BAD_INPUT, &err, "hold both 'model.norm.weight' and 'norm.weight'");
}

static void unused_tensors(void **state) {
    struct tensors t = {.n = 0};
    add_llama(&t, true);
    add(&t, "model.embed_tokens.weight", 3, 2, 5);
    add(&t, "model.layers.0.self_attn.rotary_emb.inv_freq", 1, 0, 1); /* a known buffer */
    assert_string_equal(match(state, &t, true).log, "");
    add(&t, "model.layers.0.self_attn.q_proj.bias", 2, 0, 1);
    struct outcome got = match(state, &t, true);
    assert_int_equal(got.status, MM_OK);
    assert_non_null(strstr(got.log, "hold 1 tensor that the model of config.json does not use: "
                                    "model.layers.0.self_attn.q_proj.bias\n"));
    add(&t, "model.layers.1.input_layernorm.weight", 2, 0, 1);
    add(&t, "a", 2, 0, 1);
    add(&t, "b", 2, 0, 1);
    add(&t, "c", 2, 0, 1);
    got = match(state, &t, true);
    assert_non_null(strstr(got.log, "hold 5 tensors that the model of config.json does not use: a, "
                                    "b, c, model.layers.0.self_attn.q_proj.bias, ...\n"));
}

static void model_paths(void **state) {
    const char *folder = *state;
    const char *file = path_in(folder, "file"), *cache = path_in(folder, "models--o--m"),
               *adapter = path_in(folder, "adapter");
    put_text(file, "x");
    assert_int_equal(mm_folder_make(path_in(cache, "snapshots/b1"), &err), MM_OK);
    assert_int_equal(mm_folder_make(path_in(cache, "snapshots/a0"), &err), MM_OK);
    assert_int_equal(mm_folder_make(path_in(cache, "refs"), &err), MM_OK);
    put_text(path_in(cache, "refs/main"), "a0");
    put_text(path_in(cache, "snapshots/a0/config.json"), "{}");
    assert_int_equal(mm_folder_make(adapter, &err), MM_OK);
    put_text(path_in(adapter, "adapter_config.json"), "{}");
    assert_int_equal(mm_folder_make(path_in(folder, "hub/models--a--b/snapshots/c"), &err), MM_OK);
    char here[4096];
    assert_non_null(getcwd(here, sizeof here));
    assert_int_equal(chdir(folder), 0);
    const struct {
        char *path; /* as the configuration makes it: absolute */
        const char *said;
    } cases[] = {
        {mm_format("%s/org/name", folder), "model.path: org/name: no such folder. If it is the "
                                           "identifier of a model on the Hugging Face hub"},
        {mm_format("%s/~/m", folder), "model.path: ~/m: only a shell replaces '~'"},
        {mm_format("%s/$HOME/m", folder), "model.path: $HOME/m: only a shell replaces '$'"},
        {mm_format("%s/https://h/o/m", folder), "model.path: https://h/o/m: an address"},
        {mm_format("%s/none", folder), "none: no such folder. If it is the identifier of a model"},
        {mm_format("%s/./none", folder), "none: no such folder: it must be a Hugging Face model"},
        {mm_format("%s/adapter/none", folder), "adapter/none: no such folder: it must be"},
        {mm_strdup(file), "a file, not a folder"},
        {mm_strdup(cache), "name the model folder in it, "},
        {mm_strdup(adapter), "an adapter (LoRA), not a model: merge it"},
        {mm_strdup(folder), "/config.json: no such file: the folder must be a Hugging Face model"},
        {mm_format("%s/snapshots", cache), "snapshots/a0"},
        {mm_format("%s/hub", folder), "/hub/models--a--b/snapshots/c"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        enum mm_status status = mm_stored_check_folder(cases[i].path, &err);
        expect_fault(status, MM_BAD_INPUT, &err, cases[i].said);
        if (strstr(cases[i].said, "name the model folder in it"))
            assert_non_null(strstr(err.text, "models--o--m/snapshots/a0"));
        mm_free(cases[i].path);
    }
    put_text(path_in(folder, "config.json"), "{}");
    assert_int_equal(mm_stored_check_folder(folder, &err), MM_OK);
    assert_int_equal(chdir(here), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, scratch_make, scratch_drop)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(plain),          TEST(tied_pairs),  TEST(names_without_prefix),
        TEST(unused_tensors), TEST(model_paths),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
