/* loss.c - the losses of docs/method.md 4 with their gradients, one row of logits at a time. */
#include "kernels/cpu/cpu.h"

/* Columns whose terms are added in float32: sums of these are added in double, so that a large
 * vocabulary costs no digits. */
#define BLOCK ((size_t)512)

struct exp_sums {
    double sum, weighted; /* of e[j] | of e[j]·(z[j] - top) */
};

/* A d that e^d may be multiplied by: below -87 fast_exp is 0, and 0·(-infinity) must be 0 as well,
 * the limit of p log p. NaN stays NaN. */
static inline float exponent(float d) {
    return d < -87.0f ? -87.0f : d;
}

static inline void add_block(struct exp_sums *sums, const float *z, float top, float *e, size_t n) {
    float sum[LANES] = {0}, with_z[LANES] = {0};
    size_t j = 0;
    for (; j + LANES <= n; j += LANES)
        for (size_t i = 0; i < LANES; i++) {
            float d = z[j + i] - top, x = fast_exp(d);
            e[j + i] = x;
            sum[i] += x;
            with_z[i] += x * exponent(d);
        }
    for (size_t i = 0; j < n; j++, i++) {
        float d = z[j] - top, x = fast_exp(d);
        e[j] = x;
        sum[i] += x;
        with_z[i] += x * exponent(d);
    }
    sums->sum += (double)fold(sum);
    sums->weighted += (double)fold(with_z);
}

/* e[j] = exp(z[j] - top), and their sums. */
static struct exp_sums exponentials(const float *z, float top, float *e, size_t V) {
    struct exp_sums sums = {0, 0};
    for (size_t first = 0; first < V; first += BLOCK)
        add_block(&sums, z + first, top, e + first, V - first < BLOCK ? V - first : BLOCK);
    return sums;
}

/* log p_y = z_y - lse; gradient p - [j = y], both times `sign` (-1 for neg_cross_entropy). */
static float cross_entropy_row(const float *z, uint32_t y, float *e, float *d, float scale,
                               float sign, size_t V) {
    float top = row_max(z, V), sum = (float)exponentials(z, top, e, V).sum;
    float loss = sign * (logf(sum) - (z[y] - top)), factor = sign * scale / sum;
    if (d) {
        for (size_t j = 0; j < V; j++)
            d[j] = e[j] * factor;
        d[y] -= sign * scale;
    }
    return loss;
}

/* Sum of p log p = -H; gradient p_j (log p_j + H); a logit of -infinity has no part in either. */
static float neg_entropy_row(const float *z, float *e, float *d, float scale, size_t V) {
    float top = row_max(z, V);
    struct exp_sums sums = exponentials(z, top, e, V);
    float sum = (float)sums.sum;
    float log_sum = logf(sum), loss = (float)(sums.weighted / sums.sum) - log_sum;
    if (d)
        for (size_t j = 0; j < V; j++)
            d[j] = e[j] * (scale / sum) * (exponent(z[j] - top) - log_sum - loss);
    return loss;
}

/* max(z_y - mean z, clip); gradient [j = y] - 1/V where not clipped. */
static float correct_logit_row(const float *z, uint32_t y, float clip, float *d, float scale,
                               size_t V) {
    float value = z[y] - row_sum(z, V) / (float)V;
    float slope = value >= clip ? scale : 0.0f;
    if (d) {
        for (size_t j = 0; j < V; j++)
            d[j] = -slope / (float)V;
        d[y] += slope;
    }
    return value >= clip || isnan(value) ? value : clip;
}

/* e: V floats of scratch. A d that is z itself is fine for all but neg_entropy, which reads z after
 * e is written: so e is never z or d there. */
static float loss_row(enum mm_loss_fn fn, float clip, const float *z, uint32_t y, float *e,
                      float *d, float scale, size_t V) {
    bool counts = fn == MM_LOSS_NEG_ENTROPY ? y != MM_NO_TOKEN : y < MM_NO_TOKEN;
    if (!counts) {
        if (d)
            memset(d, 0, V * sizeof *d);
        return 0.0f;
    }
    if (fn == MM_LOSS_NEG_ENTROPY)
        return neg_entropy_row(z, e, d, scale, V);
    MM_CHECK(y < V, "target %u, vocabulary %zu", y, V);
    if (fn == MM_LOSS_CORRECT_LOGIT_MINUS_AVG)
        return correct_logit_row(z, y, clip, d, scale, V);
    return cross_entropy_row(z, y, e, d, scale, fn == MM_LOSS_CROSS_ENTROPY ? 1.0f : -1.0f, V);
}

void CPU_NAME(cpu_loss)(struct mm_device *dev, const struct mm_loss *how, struct mm_mat logits,
                        const uint32_t *targets, float *losses, struct mm_mat dlogits) {
    size_t V = logits.cols, each = room_for(V);
    float *rooms = scratch(dev, 2 * (size_t)omp_get_max_threads() * each * sizeof *rooms);
    if (dev->dry)
        return;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < logits.rows; i++) {
        float *e = room_of_thread(rooms, 2 * each), *room = e + each;
        const float *z = row_get(logits, i, room);
        float *d = dlogits.data ? row_at(dlogits, i, room) : NULL;
        float scale = how->weights ? how->scale * how->weights[i] : how->scale;
        losses[i] = loss_row(how->fn, how->clip_at, z, targets[i], e, d, scale, V);
        if (d)
            row_put(dlogits, i, d);
    }
}

void CPU_NAME(cpu_sequence_loss)(struct mm_device *dev, const struct mm_sequence_loss *how,
                                 const float *losses, const uint32_t *targets, size_t B, size_t T,
                                 float *terms, float *weights) {
    (void)dev;
    double beta = how->beta;
    for (size_t b = 0; b < B; b++) {
        double s = 0;
        size_t count = 0;
        for (size_t i = b * T; i < (b + 1) * T; i++) {
            s -= (double)losses[i] - (how->fn == MM_LOSS_NPO ? (double)how->reference[i] : 0);
            count += targets[i] < MM_NO_TOKEN;
        }
        double by = how->fn == MM_LOSS_SIMNPO ? 1 / (double)count : 1;
        double x = beta * by * s + (how->fn == MM_LOSS_SIMNPO ? how->gamma : 0);
        terms[b] = (float)(2 / beta * (fmax(x, 0) + log1p(exp(-fabs(x)))));
        float weight = (float)(-2 * by / (1 + exp(-x)) * how->scale);
        for (size_t i = b * T; i < (b + 1) * T; i++)
            weights[i] = weight;
    }
}

void CPU_NAME(cpu_sum)(struct mm_device *dev, double *sum, const float *values, size_t n,
                       double scale) {
    (void)dev;
    double total = 0;
    for (size_t i = 0; i < n; i++)
        total += (double)values[i];
    *sum += scale * total;
}
