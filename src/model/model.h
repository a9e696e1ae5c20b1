/* model.h - the working weights of one transformer: a table of named tensors in one block.
 *
 * Loading, the choice of W, sharding, checkpoints and export go by this table. Tensors that one
 * matrix product can serve lie side by side: q, k and v, or q and k where they are normalized;
 * gate and up. All functions are local.
 *
 * The layers need not all be there at once. With slots, layer l takes the memory of slot
 * l mod slots_n, which it shares with other layers, and a source fills the slot when a pass comes
 * to the layer (src/parallel/spread.h). The tensors of no layer are always there. */
#ifndef MM_MODEL_H
#define MM_MODEL_H

#include "kernels/arena.h"
#include "src/model/arch.h"

struct mm_param {
    char *name;        /* Hugging Face's */
    size_t rows, cols; /* a vector has cols 1 */
    bool vector;
    int layer;       /* MM_NO_LAYER: none */
    struct mm_mat w; /* working weights, contiguous, model->dtype */
};

/* One matrix product: up to three tensors stacked by rows, and their biases. */
struct mm_linear {
    struct mm_mat w;  /* [sum of rows, cols] */
    const void *bias; /* NULL: none */
    size_t parts_n;
    size_t part[3];      /* index into params */
    size_t bias_part[3]; /* likewise, where bias */
};

struct mm_norm_weights {
    const void *weight, *bias; /* bias NULL for RMS */
    bool has_bias;
    size_t weight_part, bias_part;
    size_t parts; /* of a row, each normalized by itself */
};

struct mm_layer {
    struct mm_norm_weights norm1, norm2;
    struct mm_norm_weights q_norm, k_norm; /* where arch.qk_norm says so */
    struct mm_linear qkv, v;               /* v: no parts, unless qkv is q and k alone */
    struct mm_linear o, up, down;
};

/* Where the weights of layers come from. `need` makes layer `layer` present, and may begin to fetch
 * `next`, the layer that will be read after it; either may be MM_NO_LAYER. Collective. */
#define MM_NO_LAYER (-1)
struct mm_layer_source {
    void (*need)(struct mm_layer_source *source, int layer, int next);
};

struct mm_model {
    struct mm_device *dev;
    struct mm_arch arch;
    enum mm_dtype dtype;
    size_t params_n;
    struct mm_param *params;
    size_t elements; /* of all params */
    void *block;     /* the weights, of block_n elements with the gaps between tensors */
    size_t block_n;
    size_t slots_n;                 /* 0: every layer has memory of its own */
    struct mm_layer_source *source; /* borrowed; NULL: the layers are always there */
    bool recompute; /* backwards compute a layer's activations anew; set by who creates it */
    struct mm_layer *layers;
    struct mm_norm_weights final_norm;
    size_t embed_part, head_part; /* equal when tied */
    size_t context;               /* tokens the rope tables cover */
    float *cosine, *sine;
};

/* The table, and memory for weights and rope tables of `context` tokens from `arena`. Weights are
 * zero. The caller frees with mm_model_free before the arena. */
struct mm_model *mm_model_create(struct mm_arena *arena, const struct mm_arch *arch,
                                 enum mm_dtype dtype, size_t context);
/* The same with slots_n slots (0: none) for the layers, of which neither is filled. */
struct mm_model *mm_model_create_in_slots(struct mm_arena *arena, const struct mm_arch *arch,
                                          enum mm_dtype dtype, size_t context, size_t slots_n);
void mm_model_free(struct mm_model *model);

/* Tells the device which products' weights stay as they are, and where, from now on: those with no
 * tensor among `changing` [params_n]. Whatever was said before is void. */
void mm_model_hold(const struct mm_model *model, const bool *changing);

/* wanted[params_n] (=): W, the tensors whose name contains "<module>.weight" for one of `modules`.
 * MM_BAD_INPUT for a module that names no matrix of a layer. */
enum mm_status mm_model_choose(const struct mm_model *model, char *const *modules, size_t modules_n,
                               bool *wanted, struct mm_error *err);

#endif
