/* attention.c - causal attention forward and backward, a block of query rows at a time.
 *
 * One unit of work is a sequence and a key-value head with all query heads that share it, so that
 * dk and dv of a head are written by one thread, in one order. A block of ROWS queries sees the
 * keys up to its last query: half of the score matrix is never computed, and memory is linear in T.
 */
#include "kernels/cpu/cpu.h"

#include <cblas.h>

#define ROWS ((size_t)32)

/* One head's view of the fused rows: element (t, i) is at base[t·ld + i]. */
struct view {
    float *base;
    size_t ld;
};

struct sizes {
    size_t m, n, k;
};

/* c [m, n] = alpha·a·b + beta·c; a [m, k] and b [k, n] are as they are or transposed. */
static void product(enum CBLAS_TRANSPOSE ta, enum CBLAS_TRANSPOSE tb, struct sizes of, float alpha,
                    struct view a, struct view b, float beta, struct view c) {
    cblas_sgemm(CblasRowMajor, ta, tb, (int)of.m, (int)of.n, (int)of.k, alpha, a.base, (int)a.ld,
                b.base, (int)b.ld, beta, c.base, (int)c.ld);
}

/* T rows of a head as they are computed on: in place, or of bfloat16 in `room`, [T, d]. */
static struct view head_at(struct mm_mat rows, size_t first_row, size_t first_col, size_t d,
                           float *room) {
    if (rows.dtype == MM_BF16)
        return (struct view){room, d};
    return (struct view){row_f32(rows, first_row) + first_col, rows.ld};
}

/* The same, filled. */
static struct view head_get(struct mm_mat rows, size_t first_row, size_t first_col, size_t T,
                            size_t d, float *room) {
    for (size_t t = 0; rows.dtype == MM_BF16 && t < T; t++)
        part_get(rows, first_row + t, first_col, d, room + t * d);
    return head_at(rows, first_row, first_col, d, room);
}

static void head_put(struct mm_mat rows, size_t first_row, size_t first_col, size_t T,
                     struct view v, size_t d) {
    for (size_t t = 0; t < T; t++)
        part_put(rows, first_row + t, first_col, d, v.base + t * v.ld);
}

static struct view down(struct view v, size_t rows) {
    return (struct view){v.base + rows * v.ld, v.ld};
}

/* Row i of s (keys of it visible) becomes exp(s - its maximum); returns log-sum-exp, and through
 * `sum` the denominator. The rest of the row, up to `keys`, becomes zero. */
static float softmax_row(float *s, size_t visible, size_t keys, float *sum) {
    float top = row_max(s, visible), lanes[LANES] = {0};
    size_t j = 0;
    for (; j + LANES <= visible; j += LANES)
        for (size_t i = 0; i < LANES; i++) {
            s[j + i] = fast_exp(s[j + i] - top);
            lanes[i] += s[j + i];
        }
    for (size_t i = 0; j < visible; j++, i++) {
        s[j] = fast_exp(s[j] - top);
        lanes[i] += s[j];
    }
    for (; j < keys; j++)
        s[j] = 0.0f;
    *sum = fold(lanes);
    return top + logf(*sum);
}

/* One query head of one sequence. s: scratch of ROWS·T. */
static void head_forward(struct view q, struct view k, struct view v, struct view out, float *lse,
                         size_t T, size_t d, float *s) {
    float scale = 1.0f / sqrtf((float)d);
    for (size_t first = 0; first < T; first += ROWS) {
        size_t rows = T - first < ROWS ? T - first : ROWS, keys = first + rows;
        struct view scores = {s, keys};
        product(CblasNoTrans, CblasTrans, (struct sizes){rows, keys, d}, scale, down(q, first), k,
                0.0f, scores);
        float sums[ROWS];
        for (size_t i = 0; i < rows; i++)
            lse[first + i] = softmax_row(s + i * keys, first + i + 1, keys, &sums[i]);
        product(CblasNoTrans, CblasNoTrans, (struct sizes){rows, d, keys}, 1.0f, scores, v, 0.0f,
                down(out, first));
        for (size_t i = 0; i < rows; i++) {
            float *o = out.base + (first + i) * out.ld, inverse = 1.0f / sums[i];
            for (size_t j = 0; j < d; j++)
                o[j] *= inverse;
        }
    }
}

/* Floats of a thread: `scores` blocks of scores, and of bfloat16 `copies` of a head's rows. */
static size_t room_floats(struct mm_mat qkv, size_t T, size_t d, size_t scores, size_t copies) {
    return room_for(scores * ROWS * T + (qkv.dtype == MM_BF16 ? copies * T * d : 0));
}

void CPU_NAME(cpu_attention)(struct mm_device *dev, struct mm_mat out, struct mm_mat qkv,
                             float *lse, const struct mm_heads *heads, size_t T) {
    size_t B = qkv.rows / T, d = heads->head_dim, H = heads->heads, group = H / heads->kv_heads;
    size_t each = room_floats(qkv, T, d, 1, 4);
    float *rooms = scratch(dev, (size_t)omp_get_max_threads() * each * sizeof *rooms);
    if (dev->dry)
        return;
#pragma omp parallel for schedule(static) collapse(2)
    for (size_t b = 0; b < B; b++)
        for (size_t h = 0; h < H; h++) {
            float *s = room_of_thread(rooms, each), *room = s + ROWS * T;
            size_t kv = h / group;
            struct view to = head_at(out, b * T, h * d, d, room + 3 * T * d);
            head_forward(
                head_get(qkv, b * T, heads->q_first + h * heads->q_step, T, d, room),
                head_get(qkv, b * T, heads->k_first + kv * heads->k_step, T, d, room + T * d),
                head_get(qkv, b * T, heads->v_first + kv * heads->v_step, T, d, room + 2 * T * d),
                to, lse + (b * H + h) * T, T, d, s);
            head_put(out, b * T, h * d, T, to, d);
        }
}

struct head {
    struct view q, k, v, dq, dk, dv, out, dout;
    const float *lse;
    size_t T, d;
};

/* p = exp(s - lse) and, in place of dp, ds = p·(dp - dout·out)·scale; zero above the diagonal. */
static void score_grad(const struct head *h, float *p, float *dp, size_t first, size_t rows,
                       float scale) {
    size_t keys = first + rows;
    for (size_t i = 0; i < rows; i++, p += keys, dp += keys) {
        size_t t = first + i, visible = t + 1, j;
        float through = row_dot(h->dout.base + t * h->dout.ld, h->out.base + t * h->out.ld, h->d);
        float lse = h->lse[t];
        for (j = 0; j < visible; j++) {
            p[j] = fast_exp(p[j] - lse);
            dp[j] = p[j] * (dp[j] - through) * scale;
        }
        for (; j < keys; j++)
            p[j] = dp[j] = 0.0f;
    }
}

/* One query head; dk and dv are set by the first head of its group and added to by the others. The
 * last block comes first because it alone reaches every key. */
static void head_backward(const struct head *h, bool first_of_group, float *p, float *dp) {
    float scale = 1.0f / sqrtf((float)h->d);
    size_t T = h->T, d = h->d, last = (T - 1) / ROWS * ROWS;
    for (size_t back = 0; back <= last; back += ROWS) {
        size_t first = last - back, rows = T - first < ROWS ? T - first : ROWS, keys = first + rows;
        float beta = first_of_group && back == 0 ? 0.0f : 1.0f;
        struct view scores = {p, keys}, dscores = {dp, keys};
        struct view q = down(h->q, first), dout = down(h->dout, first);
        product(CblasNoTrans, CblasTrans, (struct sizes){rows, keys, d}, scale, q, h->k, 0.0f,
                scores);
        product(CblasNoTrans, CblasTrans, (struct sizes){rows, keys, d}, 1.0f, dout, h->v, 0.0f,
                dscores);
        score_grad(h, p, dp, first, rows, scale);
        product(CblasNoTrans, CblasNoTrans, (struct sizes){rows, d, keys}, 1.0f, dscores, h->k,
                0.0f, down(h->dq, first));
        product(CblasTrans, CblasNoTrans, (struct sizes){keys, d, rows}, 1.0f, dscores, q, beta,
                h->dk);
        product(CblasTrans, CblasNoTrans, (struct sizes){keys, d, rows}, 1.0f, scores, dout, beta,
                h->dv);
    }
}

/* What cpu_attention_grad is called with. */
struct backward {
    const struct mm_heads *heads;
    struct mm_mat dqkv, dout, out, qkv;
    const float *lse;
    size_t T;
};

/* All query heads of key-value head kv of sequence b. room: two blocks of scores, eight heads. */
static void group_backward(const struct backward *a, size_t b, size_t kv, float *room) {
    const struct mm_heads *heads = a->heads;
    struct mm_mat dqkv = a->dqkv, dout = a->dout, out = a->out, qkv = a->qkv;
    size_t T = a->T, d = heads->head_dim, group = heads->heads / heads->kv_heads, n = T * d;
    size_t k_col = heads->k_first + kv * heads->k_step, v_col = heads->v_first + kv * heads->v_step;
    float *p = room, *dp = p + ROWS * T, *copy = dp + ROWS * T;
    struct head head = {.k = head_get(qkv, b * T, k_col, T, d, copy),
                        .dk = head_at(dqkv, b * T, k_col, d, copy + n),
                        .v = head_get(qkv, b * T, v_col, T, d, copy + 2 * n),
                        .dv = head_at(dqkv, b * T, v_col, d, copy + 3 * n),
                        .T = T,
                        .d = d};
    for (size_t h = kv * group; h < (kv + 1) * group; h++) {
        size_t q_col = heads->q_first + h * heads->q_step;
        head.q = head_get(qkv, b * T, q_col, T, d, copy + 4 * n);
        head.dq = head_at(dqkv, b * T, q_col, d, copy + 5 * n);
        head.out = head_get(out, b * T, h * d, T, d, copy + 6 * n);
        head.dout = head_get(dout, b * T, h * d, T, d, copy + 7 * n);
        head.lse = a->lse + (b * heads->heads + h) * T;
        head_backward(&head, h == kv * group, p, dp);
        head_put(dqkv, b * T, q_col, T, head.dq, d);
    }
    head_put(dqkv, b * T, k_col, T, head.dk, d);
    head_put(dqkv, b * T, v_col, T, head.dv, d);
}

void CPU_NAME(cpu_attention_grad)(struct mm_device *dev, struct mm_mat dqkv, struct mm_mat dout,
                                  struct mm_mat out, struct mm_mat qkv, const float *lse,
                                  const struct mm_heads *heads, size_t T) {
    struct backward a = {heads, dqkv, dout, out, qkv, lse, T};
    size_t B = qkv.rows / T, each = room_floats(qkv, T, heads->head_dim, 2, 8);
    float *rooms = scratch(dev, (size_t)omp_get_max_threads() * each * sizeof *rooms);
    if (dev->dry)
        return;
#pragma omp parallel for schedule(static) collapse(2)
    for (size_t b = 0; b < B; b++)
        for (size_t kv = 0; kv < heads->kv_heads; kv++)
            group_backward(&a, b, kv, room_of_thread(rooms, each));
}
