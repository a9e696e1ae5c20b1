/* cuda_bytes.h - the bytes of device memory that the launches of an operation on the CUDA backend
 * move, by its arguments; tests/ptx/test_bytes.c holds them against what the kernels' own PTX
 * does.
 *
 * `launched` counts what each kernel reads and what it writes once, however many of its blocks ask
 * for it: what the memory behind the caches moves, if these serve the rest of a launch. `asked`
 * counts every load and store, which the caches answer in part: once where the lanes of a warp read
 * the same. Left out are single numbers (a token, a row's statistics, a scale), and the partial
 * sums of reductions. Rows are whole groups on aligned addresses, as the shapes of models have
 * them. A matrix product is cuBLASLt's: its operands count once. */
#ifndef MM_BENCH_CUDA_BYTES_H
#define MM_BENCH_CUDA_BYTES_H

#include "kernels/ops.h"

struct cuda_bytes {
    double launched, asked;
};

static inline double mat_bytes(struct mm_mat m) {
    return m.data ? (double)m.rows * (double)m.cols * (double)mm_dtype_bytes(m.dtype) : 0;
}

static inline double vector_bytes(struct mm_vector v) {
    return v.data ? (double)v.n * (double)mm_dtype_bytes(v.dtype) : 0;
}

/* One kernel whose blocks share nothing. */
static inline struct cuda_bytes cuda_once(double bytes) {
    return (struct cuda_bytes){bytes, bytes};
}

static inline struct cuda_bytes cuda_bias_db_bytes(struct mm_mat dy) {
    size_t slabs = (dy.rows + 127) / 128;
    return cuda_once(mat_bytes(dy) + (double)(8 * slabs + 8) * (double)dy.cols);
}

/* Every block of the sort reads all tokens. Of the table, a row a token, no token twice. */
static inline struct cuda_bytes cuda_embed_grad_bytes(struct mm_mat dx) {
    double n = (double)dx.rows, rows = mat_bytes(dx) + 2 * 4 * n * (double)dx.cols;
    double blocks = (double)((dx.rows + 255) / 256);
    return (struct cuda_bytes){rows + 4 * n, rows + 4 * n * blocks};
}

/* Every row asks for the weight and the bias. */
static inline struct cuda_bytes cuda_norm_bytes(const struct mm_norm *how, struct mm_mat x,
                                                struct mm_mat delta) {
    double row = (double)(x.cols / how->parts * mm_dtype_bytes(x.dtype));
    double weights = row * (how->bias ? 2 : 1), data = mat_bytes(x) * (delta.data ? 4 : 2);
    return (struct cuda_bytes){data + weights, data + weights * (double)(x.rows * how->parts)};
}

/* Gradients of weights read dy and x again, in slabs of 32 rows, whose sums are added. */
static inline struct cuda_bytes cuda_norm_grad_bytes(const struct mm_norm *how, struct mm_mat x,
                                                     bool of_weights) {
    size_t C = x.cols / how->parts, parts = x.rows * how->parts, slabs = (parts + 31) / 32;
    double row = (double)(C * mm_dtype_bytes(x.dtype)), data = 4 * mat_bytes(x);
    double again = of_weights ? 2 * mat_bytes(x) + 16.0 * (double)(slabs * C) : 0;
    return (struct cuda_bytes){data + again + row, data + again + row * (double)parts};
}

/* A thread has 8 elements of a head's half; every warp of a row asks for the cosines and sines. */
static inline struct cuda_bytes cuda_rope_bytes(struct mm_mat qkv, const struct mm_heads *h,
                                                size_t T) {
    size_t heads = h->heads + h->kv_heads, half = h->rotary_dim / 2, groups = (half + 7) / 8;
    size_t jobs = heads * groups, last = jobs % 32;
    size_t asked = jobs / 32 * (groups < 32 ? groups : 32) + (last < groups ? last : groups);
    qkv.cols = heads * h->rotary_dim;
    return (struct cuda_bytes){2 * mat_bytes(qkv) + 8.0 * (double)(T * half),
                               2 * mat_bytes(qkv) + 8.0 * (double)(qkv.rows * 8 * asked)};
}

/* -- attention: kernels/cuda/attention.cu --------------------------------------------------------
 */

/* Rows of queries or keys that a block owns, and rows it takes at a time. */
static inline size_t attention_owned(size_t dim) {
    return dim > 128 ? 32 : 64;
}
static inline size_t attention_step(enum mm_dtype dtype, size_t dim) {
    if (dtype == MM_F32)
        return dim <= 64 ? 32 : dim > 96 ? 8 : 16;
    return dim <= 64 ? 64 : dim <= 128 ? 32 : 16;
}

/* Rows of keys that the blocks of one head load: those up to its last query, in whole steps. */
static inline double attention_keys(size_t T, size_t owned, size_t step) {
    double rows = 0;
    for (size_t first = 0; first < T; first += owned) {
        size_t end = first + owned < T ? first + owned : T;
        end = (end + step - 1) / step * step;
        rows += (double)(end < T ? end : T);
    }
    return rows;
}

/* Rows of queries that the blocks of one key-value head load of each of its heads. */
static inline double attention_queries(size_t T, size_t owned) {
    double rows = 0;
    for (size_t first = 0; first < T; first += owned)
        rows += (double)(T - first);
    return rows;
}

/* What attention works on: bytes of all rows of q and out, of k and v; a float for each query. */
struct attention_sizes {
    double q, kv, floats, row; /* row: of one head */
    double keys, queries;      /* rows, as the two above say, over all heads and sequences */
};

static inline struct attention_sizes attention_sizes(struct mm_mat qkv, const struct mm_heads *h,
                                                     size_t T) {
    size_t owned = attention_owned(h->head_dim), step = attention_step(qkv.dtype, h->head_dim);
    double n = (double)qkv.rows, row = (double)(h->head_dim * mm_dtype_bytes(qkv.dtype));
    double head = (double)h->heads, B = n / (double)T;
    return (struct attention_sizes){.q = n * head * row,
                                    .kv = 2 * n * (double)h->kv_heads * row,
                                    .floats = 4 * n * head,
                                    .row = row,
                                    .keys = B * head * attention_keys(T, owned, step),
                                    .queries = B * head * attention_queries(T, owned)};
}

static inline struct cuda_bytes cuda_attention_bytes(struct mm_mat qkv, const struct mm_heads *h,
                                                     size_t T) {
    struct attention_sizes s = attention_sizes(qkv, h, T);
    return (struct cuda_bytes){2 * s.q + s.kv + s.floats, 2 * s.q + 2 * s.keys * s.row + s.floats};
}

/* By queries: q, dout twice, out, keys, lse -> dq, dout·out. By keys: k, v, queries, dout and two
 * numbers of each -> dk, dv. */
static inline struct cuda_bytes cuda_attention_grad_bytes(struct mm_mat qkv,
                                                          const struct mm_heads *h, size_t T) {
    struct attention_sizes s = attention_sizes(qkv, h, T);
    double by_queries = 4 * s.q + 2 * s.floats, by_keys = 2 * s.kv;
    return (struct cuda_bytes){by_queries + s.kv + by_keys + 2 * s.q + 2 * s.floats,
                               by_queries + s.q + 2 * s.keys * s.row + by_keys +
                                   s.queries * (2 * s.row + 8)};
}

/* -- losses and vectors ------------------------------------------------------------------------ */

/* A row is read for its sums, and again for its gradient. */
static inline struct cuda_bytes cuda_loss_bytes(struct mm_mat logits, struct mm_mat dlogits) {
    double once = mat_bytes(logits) + mat_bytes(dlogits);
    return (struct cuda_bytes){once, once + (dlogits.data ? mat_bytes(logits) : 0)};
}

/* f is read and written, and g written. */
static inline struct cuda_bytes cuda_mask_sums_bytes(struct mm_vector g, const struct mm_mask *mask,
                                                     const struct mm_unlearn_options *o) {
    double f = o && o->f.data ? 2 * vector_bytes(o->f) + vector_bytes(g) : 0;
    double b = o && o->discard != 1 ? vector_bytes(o->b) : 0;
    return cuda_once(vector_bytes(g) + (mask->masking ? vector_bytes(mask->m) : 0) + f + b);
}

static inline struct cuda_bytes cuda_adversary_step_bytes(struct mm_vector a, struct mm_vector b,
                                                          struct mm_vector g, double decay,
                                                          const struct mm_places *places) {
    return cuda_once(2 * vector_bytes(a) + vector_bytes(g) +
                     ((float)decay == 1.0f ? 0 : vector_bytes(b)) +
                     (places ? (double)a.n * (double)mm_dtype_bytes(places->dtype) : 0));
}

/* b is read again where it decides what is discarded. */
static inline struct cuda_bytes cuda_unlearn_step_bytes(struct mm_vector b, struct mm_vector g,
                                                        const struct mm_mask *mask,
                                                        const struct mm_unlearn_options *o) {
    double once = 2 * vector_bytes(b) + vector_bytes(g) + vector_bytes(mask->m) +
                  (o && o->a.data ? 2 * vector_bytes(o->a) : 0);
    return (struct cuda_bytes){once, once + (o && o->discard != 1 ? vector_bytes(b) : 0)};
}

#endif
