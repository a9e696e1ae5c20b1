/* lora.h - low-rank adapters (Hu et al. 2021) on the matrices of the layers: W = W0 + scale·B·A,
 * scale = 16/rank, A [rank, cols] random, B [rows, rank] zero at first.
 *
 * The forward and backward are those of the whole weights, which are formed anew after every step:
 * the adapters' gradients follow from W's, dB = scale·dW·Aᵀ and dA = scale·Bᵀ·dW. B and its
 * optimizer lie with W's rows; A is whole on every rank, its optimizer spread over them.
 *
 * On an `exact` device every rank forms the products of whole tensors, whose bits could depend on
 * where the rows are cut, and takes its rows of them. */
#ifndef MM_LORA_H
#define MM_LORA_H

#include "src/shard.h"

/* All adapters' A, or all their B, this rank's part. */
struct mm_adapters {
    struct mm_vector p, g;          /* weights; gradient, without the factor `scale` */
    struct mm_vector first, second; /* AdamW's moments; data NULL without */
};

struct mm_lora {
    struct mm_comm *comm;
    const struct mm_shard *shard; /* borrowed: the adapted tensors */
    size_t rank;
    double scale;
    size_t *a_at, *b_at; /* [tensors_n + 1] where a tensor's A starts in all_a, its B in b.p */
    float *all_a;        /* [a_at[tensors_n]] whole; a.p is this rank's part of it */
    float *all_da;       /* as long, padded to equal blocks: this rank's sequences' and rows' */
    float *whole_b;      /* exact: [most rows, rank] something of one tensor's B; else NULL */
    struct mm_adapters a, b;
};

/* The tensors that LoRA adapts: wanted[params_n] (=). Local. */
void mm_lora_choose(const struct mm_model *model, bool *wanted);

/* Adapters of the shard's tensors, A uniform in ±1/sqrt(cols) from the seed, the tensor's name and
 * the element's place alone. Local. The caller frees before the arena. */
struct mm_lora *mm_lora_create(struct mm_arena *arena, struct mm_comm *comm,
                               const struct mm_shard *shard, size_t rank, uint64_t seed,
                               bool adamw);
void mm_lora_free(struct mm_lora *lora);

/* The adapters' g (=), from the reduced gradient of the shard's tensors, float32. Collective. */
void mm_lora_gradients(struct mm_lora *lora, struct mm_vector g);

/* w (=) w0 + scale·B·A, float32, of the shard's own rows; b.g is lost. Collective. */
void mm_lora_weights(struct mm_lora *lora, struct mm_vector w0, struct mm_vector w);

#endif
