/* model.h - the working weights of one transformer: a table of named tensors in one block.
 *
 * Loading, the choice of W, sharding, checkpoints and export go by this table. Tensors that one
 * matrix product can serve lie side by side: q, k and v; gate and up. All functions are local. */
#ifndef MM_MODEL_H
#define MM_MODEL_H

#include "io/weights.h"
#include "kernels/arena.h"
#include "src/model/arch.h"

struct mm_param {
    char *name;        /* Hugging Face's */
    size_t rows, cols; /* a vector has cols 1 */
    bool vector;
    int layer;       /* -1: none */
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
};

struct mm_layer {
    struct mm_norm_weights norm1, norm2;
    struct mm_linear qkv, o, up, down;
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
void mm_model_free(struct mm_model *model);

/* Fills the working weights. Errors as mm_weights_load. */
enum mm_status mm_model_load(struct mm_model *model, const struct mm_weights *weights,
                             struct mm_error *err);

/* Tells the device which products' weights stay as they are from now on: those with no tensor among
 * `changing` [params_n]. Whatever was said before is void. */
void mm_model_hold(const struct mm_model *model, const bool *changing);

/* wanted[params_n] (=): W, the tensors whose name contains "<module>.weight" for one of `modules`.
 * MM_BAD_INPUT for a module that names no matrix of a layer. */
enum mm_status mm_model_choose(const struct mm_model *model, char *const *modules, size_t modules_n,
                               bool *wanted, struct mm_error *err);

#endif
