/* arch.h - a transformer described by data: what config.json says, for every family alike.
 *
 * Llama family (Llama 2, 3, 3.1, 3.2, SmolLM, Mistral, Qwen2, Qwen3), OLMo-2 and GPT-NeoX (pythia).
 * A field that would change results and is not supported is an error, never ignored. All functions
 * local. */
#ifndef MM_ARCH_H
#define MM_ARCH_H

#include "kernels/ops.h"

enum mm_family { MM_LLAMA, MM_MISTRAL, MM_QWEN2, MM_QWEN3, MM_OLMO2, MM_NEOX };

/* Whether q and k are normalized before the rotation, and over what. */
enum mm_qk_norm { MM_QK_PLAIN, MM_QK_BY_HEAD, MM_QK_BY_ROW };

struct mm_arch {
    enum mm_family family;
    size_t layers, width, mlp, vocab;
    struct mm_heads heads;
    enum mm_norm_kind norm;
    float epsilon;
    enum mm_activation activation;
    bool parallel;   /* x + attention(norm1 x) + mlp(norm2 x), else one after the other */
    bool norm_after; /* x + norm1(attention x), then x + norm2(mlp x): not with `parallel` */
    enum mm_qk_norm qk_norm;
    bool tied; /* the head is the embedding */
    bool qkv_bias, o_bias, mlp_bias;
    double rope_theta;
    struct { /* Llama 3's rope scaling; factor 0: none */
        double factor, low, high, original;
    } rope_scaling;
    size_t sliding_window; /* tokens, the shortest of any layer; 0: none */
    uint32_t pad; /* whose row of the embedding gets no gradient from its places in a sequence, as
                     of PyTorch's padding_idx; MM_NO_TOKEN: none */
    double initializer_range;
    char assumed[160]; /* sizes that config.json leaves out, with the defaults taken; may be "" */
    char hash[33];     /* XXH3 128-bit, of what config.json holds, without a byte order mark */
};

/* Reads a config.json in the transformers 4 or 5 form, as transformers reads it (family.h).
 * MM_BAD_INPUT names file and field, or line. */
enum mm_status mm_arch_read(struct mm_arch *arch, const char *path, struct mm_error *err);

/* The modules target_modules may name in this family, NULL-terminated. */
const char *const *mm_arch_modules(enum mm_family family);

/* cosine, sine [T, rotary_dim/2] (=): the angle is float32 frequency x float32 position, as
 * transformers has it. */
void mm_arch_rope(const struct mm_arch *arch, size_t T, float *cosine, float *sine);

#endif
