/* layer.c - the operations between the matrix products: embedding, norms, rotation, activations. */
#include "kernels/cpu/cpu.h"

void CPU_NAME(cpu_embed)(struct mm_device *dev, struct mm_mat x, struct mm_mat table,
                         const uint32_t *tokens) {
    (void)dev;
    size_t bytes = x.cols * mm_dtype_bytes(x.dtype);
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < x.rows; i++) {
        MM_CHECK(tokens[i] < table.rows, "token %u, vocabulary %zu", tokens[i], table.rows);
        memcpy(part_data(x, i, 0), part_data(table, tokens[i], 0), bytes);
    }
}

void CPU_NAME(cpu_embed_grad)(struct mm_device *dev, struct mm_mat dtable, struct mm_mat dx,
                              const uint32_t *tokens, uint32_t skipped) {
    (void)dev;
    /* Threads share columns, not tokens: each element's additions stay in token order. */
#pragma omp parallel for schedule(static)
    for (size_t first = 0; first < dx.cols; first += LANES) {
        size_t count = dx.cols - first < LANES ? dx.cols - first : LANES;
        float room[LANES];
        for (size_t i = 0; i < dx.rows; i++) {
            if (tokens[i] == skipped)
                continue;
            float *out = row_f32(dtable, tokens[i]) + first;
            const float *in = part_get(dx, i, first, count, room);
            for (size_t j = 0; j < count; j++)
                out[j] += in[j];
        }
    }
}

/* s = x + delta, as the sum is stored. */
static const float *add_residual(struct mm_mat sum, struct mm_mat x, struct mm_mat delta, size_t i,
                                 float *room, float *other) {
    const float *in = row_get(x, i, room), *d = row_get(delta, i, other);
    float *s = row_at(sum, i, room);
    for (size_t j = 0; j < x.cols; j++)
        s[j] = in[j] + d[j];
    row_put(sum, i, s);
    return row_get(sum, i, room);
}

/* The i-th part of the rows of m, when each row has `parts`, as a row by itself. */
static struct mm_mat part_of(struct mm_mat m, size_t parts, size_t i) {
    size_t C = m.cols / parts;
    return parts == 1 ? mm_mat_rows(m, i, 1)
                      : mm_mat_cols(mm_mat_rows(m, i / parts, 1), i % parts * C, C);
}

void CPU_NAME(cpu_norm)(struct mm_device *dev, const struct mm_norm *how, struct mm_mat sum,
                        struct mm_mat x, struct mm_mat delta, struct mm_mat y, float *stats) {
    size_t C = x.cols / how->parts, each = room_for(C), threads = (size_t)omp_get_max_threads();
    MM_CHECK(how->parts == 1 || !delta.data, "a residual beside %zu parts", how->parts);
    float *shared = scratch(dev, 2 * (threads + 1) * each * sizeof *shared);
    const float *w = floats_of(how->weight, x.dtype, C, shared);
    const float *b = how->bias ? floats_of(how->bias, x.dtype, C, shared + each) : NULL;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < x.rows * how->parts; i++) {
        struct mm_mat y_part = part_of(y, how->parts, i);
        float *room = room_of_thread(shared + 2 * each, 2 * each),
              *out = row_at(y_part, 0, room + each);
        const float *in = delta.data ? add_residual(sum, x, delta, i, room, room + each)
                                     : row_get(part_of(x, how->parts, i), 0, room);
        float mean = how->kind == MM_LAYER_NORM ? row_sum(in, C) / (float)C : 0.0f;
        for (size_t j = 0; j < C; j++)
            out[j] = in[j] - mean;
        float inverse = 1.0f / sqrtf(row_dot(out, out, C) / (float)C + how->epsilon);
        if (inverse == 0.0f)
            inverse = NAN;
        for (size_t j = 0; j < C; j++)
            out[j] = out[j] * inverse * w[j] + (b ? b[j] : 0.0f);
        row_put(y_part, 0, out);
        stats[2 * i] = mean;
        stats[2 * i + 1] = inverse;
    }
}

/* With u = (x - mean)·r normalized and v = dy·weight:
 * RMS: dx = r·(v - u·avg(v·u)); layer norm: dx = r·(v - avg(v) - u·avg(v·u)). */
static void norm_grad_row(enum mm_norm_kind kind, float *dx, const float *dy, const float *x,
                          const float *stats, const float *w, size_t C) {
    float mean = stats[0], r = stats[1], dot[LANES] = {0}, sum[LANES] = {0};
    size_t j = 0;
    for (; j + LANES <= C; j += LANES)
        for (size_t i = 0; i < LANES; i++) {
            float v = dy[j + i] * w[j + i];
            sum[i] += v;
            dot[i] += v * ((x[j + i] - mean) * r);
        }
    for (size_t i = 0; j < C; j++, i++) {
        float v = dy[j] * w[j];
        sum[i] += v;
        dot[i] += v * ((x[j] - mean) * r);
    }
    float average = kind == MM_LAYER_NORM ? fold(sum) / (float)C : 0.0f;
    float slope = fold(dot) / (float)C;
    for (j = 0; j < C; j++)
        dx[j] += r * (dy[j] * w[j] - average - (x[j] - mean) * r * slope);
}

/* dweight and dbias, columns [first, first + count), in the order of the rows and their parts. */
static void norm_weight_grad(struct mm_mat dy, struct mm_mat x, size_t parts, const float *stats,
                             size_t first, size_t count, float *dweight, float *dbias) {
    float room[2][LANES];
    for (size_t i = 0; i < x.rows * parts; i++) {
        float mean = stats[2 * i], r = stats[2 * i + 1];
        const float *in = part_get(part_of(x, parts, i), 0, first, count, room[0]);
        const float *g = part_get(part_of(dy, parts, i), 0, first, count, room[1]);
        for (size_t j = 0; dweight && j < count; j++)
            dweight[first + j] += g[j] * ((in[j] - mean) * r);
        for (size_t j = 0; dbias && j < count; j++)
            dbias[first + j] += g[j];
    }
}

void CPU_NAME(cpu_norm_grad)(struct mm_device *dev, const struct mm_norm *how, struct mm_mat dx,
                             struct mm_mat dy, struct mm_mat x, const float *stats, float *dweight,
                             float *dbias) {
    size_t parts = how->parts, C = x.cols / parts, each = room_for(C),
           threads = (size_t)omp_get_max_threads();
    float *shared = scratch(dev, (1 + 3 * threads) * each * sizeof *shared);
    const float *w = floats_of(how->weight, x.dtype, C, shared);
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < x.rows * parts; i++) {
        struct mm_mat dx_part = part_of(dx, parts, i);
        float *room = room_of_thread(shared + each, 3 * each), *out = row_open(dx_part, 0, room);
        norm_grad_row(how->kind, out, row_get(part_of(dy, parts, i), 0, room + each),
                      row_get(part_of(x, parts, i), 0, room + 2 * each), stats + 2 * i, w, C);
        row_put(dx_part, 0, out);
    }
    if (!dweight && !dbias)
        return;
#pragma omp parallel for schedule(static)
    for (size_t first = 0; first < C; first += LANES)
        norm_weight_grad(dy, x, parts, stats, first, C - first < LANES ? C - first : LANES, dweight,
                         dbias);
}

static void rotate(float *head, size_t half, const float *cosine, const float *sine, float sign) {
    for (size_t i = 0; i < half; i++) {
        float low = head[i], high = head[i + half], s = sign * sine[i];
        head[i] = low * cosine[i] - high * s;
        head[i + half] = high * cosine[i] + low * s;
    }
}

void CPU_NAME(cpu_rope)(struct mm_device *dev, struct mm_mat qkv, const struct mm_heads *heads,
                        size_t T, const float *cosine, const float *sine, enum mm_turn turn) {
    size_t half = heads->rotary_dim / 2, each = room_for(qkv.cols);
    float *rooms = scratch(dev, (size_t)omp_get_max_threads() * each * sizeof *rooms);
    float sign = turn == MM_TURN_BACK ? -1.0f : 1.0f;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < qkv.rows; i++) {
        const float *c = cosine + i % T * half, *s = sine + i % T * half;
        float *row = row_open(qkv, i, room_of_thread(rooms, each));
        for (size_t h = 0; h < heads->heads; h++)
            rotate(row + heads->q_first + h * heads->q_step, half, c, s, sign);
        for (size_t h = 0; h < heads->kv_heads; h++)
            rotate(row + heads->k_first + h * heads->k_step, half, c, s, sign);
        row_put(qkv, i, row);
    }
}

static inline float sigmoid(float x) {
    return 1.0f / (1.0f + fast_exp(-x));
}

/* The cumulative normal distribution. */
static inline float normal_cdf(float x) {
    return 0.5f * (1.0f + fast_erf(x * 0x1.6a09e6p-1f));
}

static void activate_row(enum mm_activation kind, float *out, const float *in, size_t M) {
    if (kind == MM_SWIGLU)
        for (size_t j = 0; j < M; j++)
            out[j] = in[j] * sigmoid(in[j]) * in[j + M];
    else
        for (size_t j = 0; j < M; j++)
            out[j] = in[j] * normal_cdf(in[j]);
}

void CPU_NAME(cpu_activate)(struct mm_device *dev, enum mm_activation kind, struct mm_mat h,
                            struct mm_mat u) {
    size_t M = h.cols, each = room_for(u.cols);
    float *rooms = scratch(dev, 2 * (size_t)omp_get_max_threads() * each * sizeof *rooms);
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < h.rows; i++) {
        float *room = room_of_thread(rooms, 2 * each), *out = row_at(h, i, room + each);
        activate_row(kind, out, row_get(u, i, room), M);
        row_put(h, i, out);
    }
}

static void activate_grad_row(enum mm_activation kind, float *out, const float *g, const float *in,
                              size_t M) {
    if (kind == MM_SWIGLU)
        for (size_t j = 0; j < M; j++) {
            float x = in[j], s = sigmoid(x), up = in[j + M];
            out[j + M] = g[j] * x * s;
            out[j] = g[j] * up * s * (1.0f + x * (1.0f - s));
        }
    else
        for (size_t j = 0; j < M; j++) {
            float x = in[j], density = 0x1.988454p-2f * fast_exp(-0.5f * x * x);
            out[j] = g[j] * (normal_cdf(x) + x * density);
        }
}

void CPU_NAME(cpu_activate_grad)(struct mm_device *dev, enum mm_activation kind, struct mm_mat du,
                                 struct mm_mat dh, struct mm_mat u) {
    size_t M = dh.cols, each = room_for(u.cols);
    float *rooms = scratch(dev, 3 * (size_t)omp_get_max_threads() * each * sizeof *rooms);
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < dh.rows; i++) {
        float *room = room_of_thread(rooms, 3 * each), *out = row_at(du, i, room);
        activate_grad_row(kind, out, row_get(dh, i, room + each), row_get(u, i, room + 2 * each),
                          M);
        row_put(du, i, out);
    }
}
