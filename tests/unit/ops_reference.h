/* ops_reference.h - the operations of kernels/ops.h in double, as their definitions say it: one
 * element after the other, no blocks, no fused passes. Gradients are central differences of these.
 */
#ifndef MM_TEST_OPS_REFERENCE_H
#define MM_TEST_OPS_REFERENCE_H

#include <complex.h>
#include <math.h>

#include "kernels/ops.h"

/* (f(x + h) - f(x - h)) / 2h in one of f's arguments. */
static inline double central(double (*f)(const void *of), const void *of, double *x, double h) {
    double keep = *x, high = keep + h, low = keep - h;
    *x = high;
    double above = f(of);
    *x = low;
    double below = f(of);
    *x = keep;
    return (above - below) / (high - low);
}

/* c [n, m] += a · b, element (i, j) the sum of a(i, k)·b(k, j) over k; size: of the |products|. A
 * transposed operand is given by its strides. */
struct ref_operand {
    const double *x;
    size_t row, col; /* strides */
};
static inline void ref_product(double *c, double *size, size_t n, size_t m, size_t k,
                               struct ref_operand a, struct ref_operand b) {
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < m; j++) {
            size[i * m + j] += fabs(c[i * m + j]);
            for (size_t l = 0; l < k; l++) {
                double term = a.x[i * a.row + l * a.col] * b.x[l * b.row + j * b.col];
                c[i * m + j] += term;
                size[i * m + j] += fabs(term);
            }
        }
}

/* stats: mean (0 for RMS) and 1/deviation. */
static inline void ref_norm_row(enum mm_norm_kind kind, double epsilon, const double *x,
                                const double *weight, const double *bias, size_t C, double *y,
                                double *stats) {
    double mean = 0, square = 0;
    for (size_t j = 0; j < C && kind == MM_LAYER_NORM; j++)
        mean += x[j] / (double)C;
    for (size_t j = 0; j < C; j++)
        square += (x[j] - mean) * (x[j] - mean) / (double)C;
    double deviation = sqrt(square + epsilon);
    for (size_t j = 0; j < C; j++)
        y[j] = (x[j] - mean) / deviation * weight[j] + (bias ? bias[j] : 0);
    stats[0] = mean;
    stats[1] = 1 / deviation;
}

/* One head of one row: pairs (i, i + half) are complex numbers, turned by e^(i·angle). */
static inline void ref_rotate(double *head, size_t half, const double *angles, bool inverse) {
    for (size_t i = 0; i < half; i++) {
        double complex z = head[i] + head[i + half] * I;
        z *= cexp((inverse ? -1 : 1) * angles[i] * I);
        head[i] = creal(z);
        head[i + half] = cimag(z);
    }
}

/* One sequence, T <= 512: qkv [T, cols] -> out [T, heads·head_dim], lse [heads, T]. Returns the
 * largest |score|. */
static inline double ref_attention(const struct mm_heads *h, const double *qkv, size_t cols,
                                   size_t T, double *out, double *lse) {
    size_t d = h->head_dim, width = h->heads * d;
    double most = 0;
    for (size_t head = 0; head < h->heads; head++)
        for (size_t t = 0; t < T; t++) {
            size_t kv = head * h->kv_heads / h->heads;
            const double *q = qkv + t * cols + h->q_first + head * h->q_step;
            const double *k = qkv + h->k_first + kv * h->k_step;
            const double *v = qkv + h->v_first + kv * h->v_step;
            double *o = out + t * width + head * d, top = -INFINITY, sum = 0;
            double scores[512];
            for (size_t i = 0; i <= t; i++) {
                scores[i] = 0;
                for (size_t j = 0; j < d; j++)
                    scores[i] += q[j] * k[i * cols + j] / sqrt((double)d);
                top = fmax(top, scores[i]);
                most = fmax(most, fabs(scores[i]));
            }
            memset(o, 0, d * sizeof *o);
            for (size_t i = 0; i <= t; i++)
                sum += exp(scores[i] - top);
            for (size_t i = 0; i <= t; i++)
                for (size_t j = 0; j < d; j++)
                    o[j] += exp(scores[i] - top) / sum * v[i * cols + j];
            lse[head * T + t] = top + log(sum);
        }
    return most;
}

static inline double ref_sigmoid(double x) {
    return 1 / (1 + exp(-x));
}

static inline double ref_activate(enum mm_activation kind, double x, double up) {
    return kind == MM_SWIGLU ? x * ref_sigmoid(x) * up : x * 0.5 * erfc(-x / sqrt(2));
}

/* log of the softmax's denominator */
static inline double ref_log_sum(const double *z, size_t V) {
    double top = -INFINITY, sum = 0;
    for (size_t j = 0; j < V; j++)
        top = fmax(top, z[j]);
    for (size_t j = 0; j < V; j++)
        sum += exp(z[j] - top);
    return top + log(sum);
}

/* One position's term of the loss (docs/method.md 4), not divided by N. */
static inline double ref_loss(enum mm_loss_fn fn, double clip_at, const double *z, uint32_t y,
                              size_t V) {
    double lse = ref_log_sum(z, V), sum = 0;
    if (y == MM_NO_TOKEN)
        return 0;
    if (fn == MM_LOSS_NEG_ENTROPY) {
        for (size_t j = 0; j < V; j++)
            sum += exp(z[j] - lse) * (z[j] - lse);
        return sum;
    }
    if (y == MM_NO_TARGET)
        return 0;
    if (fn == MM_LOSS_CORRECT_LOGIT_MINUS_AVG) {
        for (size_t j = 0; j < V; j++)
            sum += z[j] / (double)V;
        return fmax(z[y] - sum, clip_at);
    }
    return (fn == MM_LOSS_CROSS_ENTROPY ? -1 : 1) * (z[y] - lse);
}

/* A token's term of a loss on hidden states, as enum mm_state_loss says it; cosine 0 of a 0. */
static inline double ref_state_loss(enum mm_state_loss kind, const double *h, const double *r,
                                    size_t C) {
    double hh = 0, rr = 0, hr = 0, dd = 0;
    for (size_t j = 0; j < C; j++) {
        hh += h[j] * h[j];
        rr += r[j] * r[j];
        hr += h[j] * r[j];
        dd += (h[j] - r[j]) * (h[j] - r[j]);
    }
    if (kind == MM_STATE_DISTANCE || kind == MM_STATE_SQUARE_DISTANCE)
        return kind == MM_STATE_DISTANCE ? sqrt(dd) : dd;
    if (kind == MM_STATE_LENGTH)
        return sqrt(hh);
    return hh > 0 && rr > 0 ? fmax(0, hr / sqrt(hh * rr)) : 0;
}

#endif
