/* test_arch.c - config.json as transformers reads it: where a setting is looked for, what holds
 * where it is absent, what is refused by name. tests/golden/random_configs.py holds the same
 * against transformers itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "src/model/arch.h"
#include "tests/unit/scratch.h"

static struct mm_error err;

#define SIZES                                                                                      \
    "\"num_hidden_layers\":2,\"hidden_size\":32,\"intermediate_size\":24,\"vocab_size\":53,"       \
    "\"num_attention_heads\":16"
#define LLAMA   "{\"model_type\":\"llama\"," SIZES
#define MISTRAL "{\"model_type\":\"mistral\"," SIZES
#define QWEN2   "{\"model_type\":\"qwen2\"," SIZES
#define QWEN3   "{\"model_type\":\"qwen3\"," SIZES
#define OLMO2   "{\"model_type\":\"olmo2\"," SIZES
#define NEOX                                                                                       \
    "{\"model_type\":\"gpt_neox\",\"num_hidden_layers\":2,\"hidden_size\":32,"                     \
    "\"intermediate_size\":24,\"vocab_size\":53,\"num_attention_heads\":4"
#define LLAMA3 "\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4"

static enum mm_status read_text(void **state, const char *text, struct mm_arch *arch) {
    const char *path = path_in(*state, "config.json");
    put_text(path, text);
    return mm_arch_read(arch, path, &err);
}

static struct mm_arch read_good(void **state, const char *text) {
    struct mm_arch arch;
    if (read_text(state, text, &arch))
        fail_msg("%s: %s", text, err.text);
    return arch;
}

static void defaults_of_families(void **state) {
    struct mm_arch a = read_good(state, LLAMA "}");
    assert_true(a.heads.kv_heads == 16 && a.heads.head_dim == 2 && a.rope_theta == 10000);
    assert_true(a.epsilon == 1e-6f && !a.tied && !a.qkv_bias && !a.o_bias && !a.mlp_bias);
    assert_int_equal(a.sliding_window, 0);
    assert_string_equal(a.assumed, "");
    a = read_good(state, MISTRAL "}");
    assert_true(a.heads.kv_heads == 8 && a.sliding_window == 4096 && a.rope_theta == 10000);
    a = read_good(state, MISTRAL ",\"num_key_value_heads\":null,\"sliding_window\":null}");
    assert_true(a.heads.kv_heads == 16 && a.sliding_window == 0);
    a = read_good(state, QWEN2 ",\"num_key_value_heads\":4}");
    assert_true(a.qkv_bias && !a.o_bias && a.rope_theta == 10000 && a.sliding_window == 0);
    a = read_good(state, QWEN3 ",\"num_key_value_heads\":4}");
    assert_true(a.heads.head_dim == 128 && a.heads.rotary_dim == 128 && !a.qkv_bias && !a.o_bias);
    assert_true(a.qk_norm == MM_QK_BY_HEAD && !a.norm_after && a.epsilon == 1e-6f);
    assert_string_equal(a.assumed, "head_dim 128");
    a = read_good(state, QWEN3 ",\"num_key_value_heads\":null,\"head_dim\":6,"
                               "\"attention_bias\":true}");
    assert_true(a.heads.kv_heads == 16 && a.heads.head_dim == 6 && a.qkv_bias && a.o_bias);
    a = read_good(state, OLMO2 "}");
    assert_true(a.heads.kv_heads == 16 && a.heads.head_dim == 2 && a.epsilon == 1e-5f);
    assert_true(a.qk_norm == MM_QK_BY_ROW && a.norm_after && !a.qkv_bias && !a.mlp_bias);
    a = read_good(state, NEOX "}");
    assert_true(a.qkv_bias && a.o_bias && a.mlp_bias && a.parallel && a.epsilon == 1e-5f);
    assert_true(a.heads.rotary_dim == 2 && a.rope_theta == 10000 && a.heads.head_dim == 8);
    a = read_good(state, "{\"model_type\":\"llama\",\"num_attention_heads\":16}");
    assert_true(a.layers == 32 && a.width == 4096 && a.mlp == 11008 && a.vocab == 32000);
    assert_string_equal(a.assumed, "num_hidden_layers 32, hidden_size 4096, "
                                   "intermediate_size 11008, vocab_size 32000");
}

/* A field of one family means nothing in another. */
static void fields_of_other_families(void **state) {
    static const char other[] = ",\"attention_bias\":true,\"mlp_bias\":true,"
                                "\"num_key_value_heads\":4,\"rotary_emb_base\":7,\"rotary_pct\":1,"
                                "\"layer_norm_eps\":0.5,\"use_parallel_residual\":false}";
    char text[1024];
    snprintf(text, sizeof text, "%s%s", MISTRAL, other);
    struct mm_arch a = read_good(state, text);
    assert_true(!a.qkv_bias && !a.o_bias && !a.mlp_bias && a.rope_theta == 10000);
    assert_true(a.epsilon == 1e-6f && !a.parallel && a.heads.rotary_dim == 2);
    snprintf(text, sizeof text, "%s%s", QWEN2, other);
    a = read_good(state, text);
    assert_true(a.qkv_bias && !a.o_bias && !a.mlp_bias);
    a = read_good(state, LLAMA ",\"attention_bias\":true,\"mlp_bias\":true,\"sliding_window\":4,"
                               "\"use_sliding_window\":true,\"attention_dropout\":0.1}");
    assert_true(a.qkv_bias && a.o_bias && a.mlp_bias && a.sliding_window == 0);
    a = read_good(state, NEOX ",\"attention_bias\":false,\"num_key_value_heads\":2,"
                              "\"rope_theta\":5,\"sliding_window\":4,\"hidden_dropout\":0.1}");
    assert_true(!a.qkv_bias && !a.o_bias && a.mlp_bias && a.heads.kv_heads == 4);
    assert_true(a.rope_theta == 10000 && a.sliding_window == 0);
}

static void where_rope_settings_stand(void **state) {
    static const struct {
        const char *text;
        double theta;
        size_t rotary;
        double original; /* 0: no scaling */
    } cases[] = {
        {LLAMA ",\"rope_theta\":5}", 5, 2, 0},
        {LLAMA ",\"rope_theta\":5,\"rope_parameters\":{\"rope_type\":\"default\"}}", 5, 2, 0},
        {LLAMA ",\"rope_theta\":5,\"rope_parameters\":{\"rope_theta\":6}}", 6, 2, 0},
        {LLAMA ",\"rope_theta\":null,\"rope_parameters\":{\"rope_theta\":6}}", 6, 2, 0},
        {LLAMA ",\"rope_theta\":5,\"rope_scaling\":{\"type\":\"default\",\"rope_theta\":6}}", 6, 2,
         0},
        {LLAMA ",\"rope_scaling\":{},\"rope_parameters\":{\"rope_theta\":6}}", 6, 2, 0},
        {LLAMA ",\"rope_scaling\":null,\"rope_parameters\":{\"rope_theta\":6}}", 6, 2, 0},
        {LLAMA ",\"rope_theta\":5,\"rope_scaling\":{\"rope_type\":\"default\"},"
               "\"rope_parameters\":{\"rope_theta\":5,\"factor\":3}}",
         5, 2, 0},
        {LLAMA ",\"rope_scaling\":{\"type\":\"llama3\"," LLAMA3
               ",\"original_max_position_embeddings\":16}}",
         10000, 2, 16},
        {LLAMA ",\"original_max_position_embeddings\":64,\"rope_scaling\":{\"rope_type\":"
               "\"llama3\"," LLAMA3 ",\"original_max_position_embeddings\":16}}",
         10000, 2, 64},
        {LLAMA
         ",\"max_position_embeddings\":99,\"rope_parameters\":{\"rope_type\":\"llama3\"," LLAMA3
         "}}",
         10000, 2, 99},
        {LLAMA ",\"rope_parameters\":{\"rope_type\":\"llama3\"," LLAMA3 "}}", 10000, 2, 2048},
        {NEOX ",\"rotary_emb_base\":5,\"rotary_pct\":0.5}", 5, 4, 0},
        {NEOX ",\"rotary_emb_base\":5,\"rotary_pct\":0.5,\"rope_parameters\":{\"rope_theta\":6}}",
         6, 4, 0},
        {NEOX
         ",\"rotary_emb_base\":5,\"rotary_pct\":0.5,\"rope_scaling\":{\"partial_rotary_factor\":"
         "1}}",
         5, 8, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mm_arch a = read_good(state, cases[i].text);
        if (a.rope_theta != cases[i].theta || a.heads.rotary_dim != cases[i].rotary ||
            a.rope_scaling.original != cases[i].original)
            fail_msg("%s: %g, %zu, %g", cases[i].text, a.rope_theta, a.heads.rotary_dim,
                     a.rope_scaling.original);
    }
}

static void windows(void **state) {
    static const struct {
        const char *fields;
        size_t window;
    } cases[] = {
        {"\"sliding_window\":4}", 0},
        {"\"sliding_window\":4,\"use_sliding_window\":true}", 0}, /* from layer 28 on */
        {"\"sliding_window\":4,\"use_sliding_window\":true,\"max_window_layers\":1}", 4},
        {"\"sliding_window\":4,\"use_sliding_window\":true,\"max_window_layers\":2}", 0},
        {"\"sliding_window\":4,\"use_sliding_window\":false,\"max_window_layers\":0}", 0},
        {"\"use_sliding_window\":true,\"max_window_layers\":0}", 4096},
        {"\"sliding_window\":null,\"use_sliding_window\":true,\"max_window_layers\":0}", 0},
        {"\"sliding_window\":4,\"use_sliding_window\":true,\"max_window_layers\":0,"
         "\"layer_types\":[\"full_attention\",\"full_attention\"]}",
         0},
        {"\"sliding_window\":4,\"use_sliding_window\":true,"
         "\"layer_types\":[\"full_attention\",\"sliding_attention\"]}",
         4},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[512];
        snprintf(text, sizeof text, "%s,\"num_key_value_heads\":4,%s", QWEN2, cases[i].fields);
        struct mm_arch a = read_good(state, text);
        if (a.sliding_window != cases[i].window)
            fail_msg("%s: %zu", text, a.sliding_window);
    }
    assert_int_equal(
        read_good(state, MISTRAL ",\"sliding_window\":7,\"layer_types\":[\"x\"]}").sliding_window,
        7);
}

static void refuses_by_name(void **state) {
    static const char *const cases[][2] = {
        {"{}", "model_type '(missing)' is not supported: one of llama, mistral, qwen2, qwen3, "
               "olmo2, gpt_neox"},
        {"{\"model_type\":1}", "'model_type' is not a string"},
        {LLAMA ",\"rope_scaling\":{\"rope_theta\":5},\"rope_parameters\":{\"rope_theta\":6}}",
         "'rope_scaling' and 'rope_parameters' disagree"},
        {LLAMA ",\"rope_scaling\":{\"type\":\"yarn\"},\"rope_parameters\":{\"rope_theta\":6}}",
         "'rope_scaling' and 'rope_parameters' disagree"},
        {LLAMA ",\"rope_parameters\":{\"full_attention\":{}}}", "'full_attention'"},
        {LLAMA ",\"rope_parameters\":[]}", "'rope_parameters' is not an object"},
        {LLAMA ",\"rope_theta\":null}", "'rope_theta' is not a number"},
        {LLAMA ",\"rope_theta\":NaN}", "'rope_theta' is not a number"},
        {LLAMA ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4}}", "rope type 'yarn'"},
        {LLAMA ",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":4}}",
         "'low_freq_factor' is missing"},
        {LLAMA ",\"partial_rotary_factor\":0.5}", "partial_rotary_factor 0.5"},
        {LLAMA ",\"is_causal\":false}", "'is_causal'"},
        {LLAMA ",\"per_layer_config\":{\"0\":{}}}", "'per_layer_config'"},
        {LLAMA ",\"configuration_files\":[\"x.json\"]}", "'configuration_files'"},
        {LLAMA ",\"transformers_weights\":\"x.safetensors\"}", "'transformers_weights'"},
        {LLAMA ",\"quantization_config\":{\"bits\":4}}", "'quantization_config'"},
        {LLAMA ",\"attn_logit_softcapping\":30}", "'attn_logit_softcapping'"},
        {LLAMA ",\"layer_types\":[\"full_attention\",\"sliding_attention\"]}", "'layer_types'"},
        {LLAMA ",\"layer_types\":[\"full_attention\"]}", "'layer_types'"},
        {LLAMA ",\"tie_word_embeddings\":null}", "'tie_word_embeddings'"},
        {LLAMA ",\"rms_norm_eps\":null}", "'rms_norm_eps'"},
        {LLAMA ",\"hidden_act\":\"gelu\"}", "hidden_act 'gelu'"},
        {LLAMA ",\"hidden_size\":33}", "one object has a name twice: 'hidden_size'"},
        {MISTRAL ",\"sliding_window\":0}", "'sliding_window' is 0"},
        {QWEN2 ",\"num_key_value_heads\":4,\"layer_types\":[\"full_attention\","
               "\"sliding_attention\"]}",
         "set no window"},
        {QWEN2 "}", "num_attention_heads 16 is not a multiple of num_key_value_heads 32"},
        {QWEN3 ",\"head_dim\":null}", "'head_dim' is not"},
        {QWEN3 "}", "num_attention_heads 16 is not a multiple of num_key_value_heads 32"},
        {OLMO2 ",\"layer_types\":[\"full_attention\",\"sliding_attention\"]}", "'layer_types'"},
        {NEOX ",\"head_dim\":4}", "'head_dim'"},
        {NEOX ",\"rotary_pct\":0.4}", "rotary dimension"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mm_arch arch;
        enum mm_status status = read_text(state, cases[i][0], &arch);
        expect_fault(status, MM_BAD_INPUT, &err, cases[i][1]);
        assert_non_null(strstr(err.text, "config.json:"));
    }
}

/* What changes nothing is nothing. */
static void ignores(void **state) {
    static const char *const fields[] = {
        "\"note\":NaN",          "\"attention_dropout\":0.5",  "\"quantization_config\":null",
        "\"use_qk_norm\":false", "\"quantization_config\":{}", "\"pretraining_tp\":2",
        "\"is_causal\":true",    "\"hidden_act\":\"swish\"",   "\"auto_map\":{\"a\":\"b\"}",
        "\"head_dim\":null",     "\"per_layer_config\":null",  "\"initializer_range\":0.5",
        "\"rotary_pct\":3",      "\"attention_multiplier\":1", "\"num_key_value_heads\":null",
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        char text[512];
        snprintf(text, sizeof text, "%s,%s}", LLAMA, fields[i]);
        struct mm_arch a = read_good(state, text);
        assert_true(a.heads.head_dim == 2 && a.heads.kv_heads == 16 && a.heads.rotary_dim == 2);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, scratch_make, scratch_drop)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(defaults_of_families),      TEST(fields_of_other_families),
        TEST(where_rope_settings_stand), TEST(windows),
        TEST(refuses_by_name),           TEST(ignores),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
