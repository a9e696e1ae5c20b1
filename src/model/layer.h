/* layer.h - what happens within one layer of a pass, and at a norm; transformer.c walks over the
 * layers. For transformer.c alone. All functions are local. */
#ifndef MM_LAYER_H
#define MM_LAYER_H

#include "src/model/transformer.h"

/* `mat` cut to the n tokens in use; what is absent stays so. */
static inline struct mm_mat mm_used_rows(struct mm_mat mat, size_t n) {
    return mat.data ? mm_mat_rows(mat, 0, n) : mat;
}

static inline size_t mm_acts_tokens(const struct mm_acts *acts) {
    return acts->B * acts->T;
}

/* What layer l keeps, or the one place that the layers below the lowest share. */
static inline const struct mm_kept_layer *mm_kept_of(const struct mm_acts *acts, size_t l) {
    return &acts->kept[l < acts->lowest ? 0 : l - acts->lowest + (acts->lowest > 0)];
}

/* [n, C] the forward's branch that is not added yet. */
static inline struct mm_mat mm_acts_delta(const struct mm_acts *acts, const struct mm_scratch *s) {
    return mm_used_rows(acts->delta.data ? acts->delta : s->delta, mm_acts_tokens(acts));
}

/* ops->norm with the weights of `w`. */
void mm_norm_forward(const struct mm_model *m, struct mm_mat sum, struct mm_mat x,
                     struct mm_mat delta, const struct mm_norm_weights *w, struct mm_mat y,
                     float *stats);

/* Hidden state l (=) from x + delta, and what the layer's products read of it. delta.data NULL: x
 * is the hidden state. */
void mm_layer_input(const struct mm_model *m, const struct mm_acts *acts, struct mm_scratch *s,
                    size_t l, struct mm_mat x, struct mm_mat delta);

/* The whole layer. The residual stream comes as x + delta and leaves so: x_mid (x_in where the
 * branches are parallel) and mm_acts_delta. */
void mm_layer_forward(const struct mm_model *m, const struct mm_acts *acts, struct mm_scratch *s,
                      size_t l, struct mm_mat x, struct mm_mat delta);

/* The same again from hidden state l, which is there, as far as a backward reads it, and but for
 * what the layer has kept of the first time. */
void mm_layer_again(const struct mm_model *m, const struct mm_acts *acts, struct mm_scratch *s,
                    size_t l);

struct mm_backward_pass {
    const struct mm_model *m;
    const struct mm_acts *acts;
    struct mm_scratch *s;
    float *const *grads;
    enum mm_into into; /* of the matrices of layers */
    size_t n;          /* tokens */
};

/* dx += gradient through a norm of x, of capacity rows, and the norm's own gradients. */
void mm_norm_backward(const struct mm_backward_pass *b, const struct mm_norm_weights *w,
                      struct mm_mat dx, struct mm_mat dy, struct mm_mat x, const float *stats);

/* dx: in, the gradient of the layer's output; out, of its input, unless `bottom`: then nothing
 * below wants it, and the products that only serve it are left out. */
void mm_layer_backward(const struct mm_backward_pass *b, size_t l, struct mm_mat dx, bool bottom);

#endif
