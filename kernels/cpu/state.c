/* state.c - losses on hidden states (docs/method.md 4), a token at a time. */
#include "kernels/cpu/cpu.h"

static float square_distance(const float *h, const float *r, size_t C) {
    float lanes[LANES] = {0};
    size_t j = 0;
    for (; j + LANES <= C; j += LANES)
        for (size_t i = 0; i < LANES; i++) {
            float d = h[j + i] - r[j + i];
            lanes[i] += d * d;
        }
    for (size_t i = 0; j < C; j++, i++)
        lanes[i] += (h[j] - r[j]) * (h[j] - r[j]);
    return fold(lanes);
}

/* 1/x, but 0 of 0. */
static float inverse(float x) {
    return x == 0.0f ? 0.0f : 1.0f / x;
}

/* The gradient is slope·(h - r). */
static float distance_row(bool square, const float *h, const float *r, float *dx, float scale,
                          size_t C) {
    float squared = square_distance(h, r, C), value = square ? squared : sqrtf(squared);
    float slope = scale * (square ? 2.0f : inverse(value));
    for (size_t j = 0; dx && j < C; j++)
        dx[j] += slope * (h[j] - r[j]);
    return value;
}

/* The gradient is (r/‖r‖ - cos·h/‖h‖) / ‖h‖ where the cosine is positive. */
static float cosine_row(const float *h, const float *r, float *dx, float scale, size_t C) {
    float length = sqrtf(row_dot(h, h, C)), other = sqrtf(row_dot(r, r, C));
    float to_h = inverse(length), to_r = inverse(other);
    float cosine = row_dot(h, r, C) * to_h * to_r;
    for (size_t j = 0; dx && cosine > 0.0f && j < C; j++)
        dx[j] += scale * to_h * (r[j] * to_r - cosine * (h[j] * to_h));
    return cosine > 0.0f || isnan(cosine) ? cosine : 0.0f;
}

static float length_row(const float *h, float *dx, float scale, size_t C) {
    float length = sqrtf(row_dot(h, h, C)), slope = scale * inverse(length);
    for (size_t j = 0; dx && j < C; j++)
        dx[j] += slope * h[j];
    return length;
}

static float state_row(enum mm_state_loss kind, const float *h, const float *r, float *dx,
                       float scale, size_t C) {
    if (kind == MM_STATE_LENGTH)
        return length_row(h, dx, scale, C);
    if (kind == MM_STATE_COSINE)
        return cosine_row(h, r, dx, scale, C);
    return distance_row(kind == MM_STATE_SQUARE_DISTANCE, h, r, dx, scale, C);
}

void CPU_NAME(cpu_state_loss)(struct mm_device *dev, enum mm_state_loss kind, struct mm_mat states,
                              struct mm_mat others, const uint32_t *targets, float scale,
                              const double *factor, float *values, struct mm_mat dx) {
    size_t C = states.cols, each = room_for(C);
    float *rooms = scratch(dev, 3 * (size_t)omp_get_max_threads() * each * sizeof *rooms);
    float slope = factor ? scale * (float)*factor : scale;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < states.rows; i++) {
        float *room = room_of_thread(rooms, 3 * each);
        if (targets[i] == MM_NO_TOKEN) {
            if (values)
                values[i] = 0.0f;
            continue;
        }
        const float *h = row_get(states, i, room);
        const float *r = others.data ? row_get(others, i, room + each) : NULL;
        float *d = dx.data ? row_open(dx, i, room + 2 * each) : NULL;
        float value = state_row(kind, h, r, d, slope, C);
        if (d)
            row_put(dx, i, d);
        if (values)
            values[i] = value;
    }
}

void CPU_NAME(cpu_add_squares)(struct mm_device *dev, double *sum, const double *x, size_t n) {
    (void)dev;
    for (size_t i = 0; i < n; i++)
        *sum += x[i] * x[i];
}
