/* family.c - see family.h. */
#include "src/model/family.h"

#include <stdio.h>
#include <string.h>

/* What the families that grew out of llama share. */
#define LLAMA_LIKE                                                                                 \
    .width = 4096, .layers = 32, .heads = 32, .kv_field = true, .head_field = true,                \
    .norm = MM_RMS_NORM, .epsilon_field = "rms_norm_eps", .activation = MM_SWIGLU,                 \
    .hidden_act = {"silu", "swish"}, .theta_field = "rope_theta",                                  \
    .share_field = "partial_rotary_factor", .share = 1, .pad_field = true

static const struct mm_family_row rows[] = {
    {
        .model_type = "llama",
        .family = MM_LLAMA,
        .vocab = 32000,
        .mlp = 11008,
        .positions = 2048,
        .head_null = true,
        .whole_heads = true,
        .bias_field = true,
        .mlp_bias_field = true,
        .epsilon = 1e-6,
        .pad = MM_NO_TOKEN,
        LLAMA_LIKE,
    },
    {
        .model_type = "mistral",
        .family = MM_MISTRAL,
        .vocab = 32000,
        .mlp = 14336,
        .kv_heads = 8,
        .positions = 131072,
        .head_null = true,
        .window = MM_WINDOW_ALL_LAYERS,
        .epsilon = 1e-6,
        .pad = MM_NO_TOKEN,
        LLAMA_LIKE,
    },
    {
        .model_type = "qwen2",
        .family = MM_QWEN2,
        .vocab = 151936,
        .mlp = 22016,
        .kv_heads = 32,
        .positions = 32768,
        .qkv_bias = true,
        .window = MM_WINDOW_PER_LAYER,
        .epsilon = 1e-6,
        .pad = MM_NO_TOKEN,
        LLAMA_LIKE,
    },
    {
        .model_type = "qwen3",
        .family = MM_QWEN3,
        .vocab = 151936,
        .mlp = 22016,
        .kv_heads = 32,
        .positions = 32768,
        .head_dim = 128,
        .bias_field = true,
        .window = MM_WINDOW_PER_LAYER,
        .qk_norm = MM_QK_BY_HEAD,
        .epsilon = 1e-6,
        .pad = MM_NO_TOKEN,
        LLAMA_LIKE,
    },
    {
        .model_type = "olmo2",
        .family = MM_OLMO2,
        .vocab = 50304,
        .mlp = 11008,
        .positions = 2048,
        .bias_field = true,
        .norm_after = true,
        .qk_norm = MM_QK_BY_ROW,
        .epsilon = 1e-5,
        .pad = 1,
        LLAMA_LIKE,
    },
    {
        .model_type = "gpt_neox",
        .family = MM_NEOX,
        .vocab = 50432,
        .width = 6144,
        .mlp = 24576,
        .layers = 44,
        .heads = 64,
        .positions = 2048,
        .whole_heads = true,
        .bias_field = true,
        .bias = true,
        .mlp_bias = true,
        .norm = MM_LAYER_NORM,
        .epsilon_field = "layer_norm_eps",
        .epsilon = 1e-5,
        .activation = MM_GELU,
        .hidden_act = {"gelu"},
        .theta_field = "rotary_emb_base",
        .share_field = "rotary_pct",
        .share = 0.25,
        .parallel_field = true,
    },
};

const struct mm_family_row *mm_family_find(const char *model_type) {
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (strcmp(model_type, rows[i].model_type) == 0)
            return &rows[i];
    return NULL;
}

const char *mm_family_names(char *text, size_t bytes) {
    size_t used = 0;
    *text = 0;
    for (size_t i = 0; i < sizeof rows / sizeof *rows && used < bytes; i++)
        used +=
            (size_t)snprintf(text + used, bytes - used, "%s%s", i ? ", " : "", rows[i].model_type);
    return text;
}
