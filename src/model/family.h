/* family.h - what transformers takes for granted about each family: which fields of config.json
 * exist, and what holds where they are absent. One row a family; arch.c reads by it.
 *
 * The rows repeat the configuration and modelling classes of transformers 5.23. A field that a
 * family does not have is ignored there, hence here. */
#ifndef MM_FAMILY_H
#define MM_FAMILY_H

#include "src/model/arch.h"

enum mm_window_rule {
    MM_WINDOW_NEVER,
    MM_WINDOW_ALL_LAYERS, /* sliding_window, 4096 where absent, none where null */
    MM_WINDOW_PER_LAYER,  /* use_sliding_window, layer_types or max_window_layers */
};

struct mm_family_row {
    const char *model_type;
    enum mm_family family;
    size_t vocab, width, mlp, layers, heads; /* defaults, as all below */
    size_t kv_heads;       /* where num_key_value_heads is absent; 0: as many as heads */
    size_t positions;      /* max_position_embeddings */
    bool kv_field;         /* num_key_value_heads exists */
    bool head_field;       /* head_dim exists; otherwise it is hidden_size / num_attention_heads */
    bool head_null;        /* head_dim may be null */
    size_t head_dim;       /* where head_dim is absent; 0: hidden_size / num_attention_heads */
    bool whole_heads;      /* hidden_size must be a multiple of num_attention_heads */
    bool bias_field, bias; /* attention_bias exists; its default */
    bool qkv_bias;         /* q, k and v have biases, whatever attention_bias is */
    bool mlp_bias_field, mlp_bias;
    enum mm_window_rule window;
    enum mm_norm_kind norm;
    bool norm_after;
    enum mm_qk_norm qk_norm;
    const char *epsilon_field;
    double epsilon;
    enum mm_activation activation;
    const char *hidden_act[3]; /* names of the activation, the default first; NULL: no more */
    const char *theta_field;   /* at top level */
    const char *share_field;   /* of rotated dimensions, at top level */
    double share;
    bool parallel_field; /* use_parallel_residual exists, true by default */
    bool pad_field;      /* pad_token_id is the embedding's padding_idx */
    uint32_t pad;        /* where pad_token_id is absent */
};

/* NULL for a model_type that is not supported. */
const struct mm_family_row *mm_family_find(const char *model_type);
/* All supported model types, "llama, mistral, ...", cut to `bytes`; `text` is returned. */
const char *mm_family_names(char *text, size_t bytes);

#endif
