/* test_ops_rounding.c - the steps of every backend on float32 vectors to the last bit: every
 * product and every sum is rounded by itself and in the order that is written here, no two joined
 * in one instruction, so that the states of all backends agree. bfloat16: test_ops_half.c. */
#include "tests/unit/ops_subject.h"

struct as_written {
    double *retain_m, *retain_b, *adversary, *forget, *unlearn, *sgd, *first, *second, *adamw;
};

/* Compiled without contraction, as all of the host's code. */
static struct as_written written(size_t n, const double *x, const double *y, const double *g,
                                 const struct mm_adamw *how) {
    struct as_written w = {numbers(n), numbers(n), numbers(n), numbers(n), numbers(n),
                           numbers(n), numbers(n), numbers(n), numbers(n)};
    const double *betas = how->betas, t = (double)how->t;
    float momentum = (float)0.95, fresh = (float)(1 - 0.95), rate = (float)0.3;
    float decay = (float)0.7, rest = (float)(1 - 0.7);
    float beta1 = (float)betas[0], rest1 = (float)(1 - betas[0]);
    float beta2 = (float)betas[1], rest2 = (float)(1 - betas[1]);
    float keep = (float)(1 - how->rate * how->weight_decay);
    float step = (float)(how->rate / (1 - pow(betas[0], t)));
    float correction = (float)(1 / sqrt(1 - pow(betas[1], t)));
    for (size_t i = 0; i < n; i++) {
        float p = (float)x[i], q = (float)y[i], d = (float)g[i], scaled = d * (float)how->g_scale;
        float square = q * q, m = p * momentum + d * fresh, one = beta1 * q + rest1 * scaled;
        float two = beta2 * square + rest2 * scaled * scaled;
        w.retain_m[i] = m;
        w.retain_b[i] = q - rate * m;
        w.forget[i] = p * momentum + d * fresh;
        w.adversary[i] = (p - d * rate) * decay + q * rest;
        w.unlearn[i] = p - d * rate;
        w.sgd[i] = p - d * rate;
        w.first[i] = one;
        w.second[i] = two;
        w.adamw[i] = p * keep - step * one / (sqrtf(two) * correction + (float)how->epsilon);
    }
    return w;
}

static void rounds_as_written(void **state) {
    (void)state;
    const size_t n = 1021, at[] = {0, n};
    struct rng r = {3};
    double *x = random_numbers(&r, MM_F32, n, 1), *y = random_numbers(&r, MM_F32, n, 1);
    double *g = random_numbers(&r, MM_F32, n, 1), *square = numbers(n);
    struct mm_adamw how = {0.37, 3e-3, {0.9, 0.999}, 1e-8, 0.1, 3};
    struct as_written w = written(n, x, y, g, &how);
    for (size_t i = 0; i < n; i++)
        square[i] = (float)((float)y[i] * (float)y[i]);
    FOR_DEVICES(s) {
        const struct mm_ops *ops = s->dev->ops;
        struct box bg = box_row(s, MM_F32, n, g), two = box_row(s, MM_F32, n, square);
        struct box p = box_row(s, MM_F32, n, x), q = box_row(s, MM_F32, n, y);
        ops->retain_step(s->dev, box_vector(&p), box_vector(&q), box_vector(&bg), 0.95, 0.3,
                         stop_put(s, 0));
        expect_exact(&p, "retain_step m", w.retain_m);
        expect_exact(&q, "retain_step b", w.retain_b);
        p = box_row(s, MM_F32, n, x), q = box_row(s, MM_F32, n, y);
        ops->adversary_step(s->dev, box_vector(&p), box_vector(&q), box_vector(&bg), 0.3, 0.7, NULL,
                            stop_put(s, 0));
        expect_exact(&p, "adversary_step", w.adversary);
        p = box_row(s, MM_F32, n, x);
        struct mm_mask mask = {box_vector(&q), false, device_put(s, at, sizeof at), 1};
        struct mm_mask_sums none = {0}, *sums = device_put(s, &none, sizeof none);
        struct mm_unlearn_options options = {
            .f = box_vector(&p), .momentum = 0.95, .discard = 1, .stop = stop_put(s, 0)};
        struct box taken = box_row(s, MM_F32, n, g);
        ops->mask_sums(s->dev, sums, box_vector(&taken), &mask, &options);
        expect_exact(&p, "mask_sums f", w.forget);
        p = box_row(s, MM_F32, n, x);
        ops->unlearn_step(s->dev, box_vector(&p), box_vector(&bg), &mask, scalar_put(s, 1), 0.3,
                          NULL, stop_put(s, 0));
        expect_exact(&p, "unlearn_step", w.unlearn);
        p = box_row(s, MM_F32, n, x);
        ops->sgd_step(s->dev, box_vector(&p), box_vector(&bg), 0.3);
        expect_exact(&p, "sgd_step", w.sgd);
        p = box_row(s, MM_F32, n, x), q = box_row(s, MM_F32, n, y);
        ops->adamw_step(s->dev, box_vector(&p), box_vector(&q), box_vector(&two), box_vector(&bg),
                        &how);
        expect_exact(&q, "adamw_step first", w.first);
        expect_exact(&two, "adamw_step second", w.second);
        expect_exact(&p, "adamw_step p", w.adamw);
    }
}

/* Two tensors of n equal elements, `between` others between them: their sums, on an exact device,
 * of the elements as they are, masked, and masked with some discarded. */
static void check_sums(enum mm_dtype dtype, size_t n, size_t between) {
    const size_t at[] = {0, n, n + between, 2 * n + between};
    struct rng r = {between};
    double *g = random_numbers(&r, MM_F32, at[3], 1), *m = random_numbers(&r, dtype, at[3], 1);
    for (size_t i = 0; i < n; i++) {
        g[at[2] + i] = g[i];
        m[at[2] + i] = m[i];
    }
    FOR_DEVICES(s) {
        struct box bg = box_row(s, MM_F32, at[3], g), bm = box_row(s, dtype, at[3], m);
        struct mm_vector signs = box_vector(&bm);
        struct mm_mask mask = {signs, true, device_put(s, at, sizeof at), 3};
        struct mm_mask none = {{NULL, at[3], dtype}, false, mask.offsets, 3};
        struct mm_unlearn_options discard = {.b = signs, .discard = 0.5, .stop = stop_put(s, 0)};
        struct mm_mask_sums sums[3] = {{0}}, *on = device_put(s, sums, sizeof sums);
        for (int how = 0; how < 3; how++) {
            s->dev->exact = true;
            s->dev->ops->mask_sums(s->dev, on, box_vector(&bg), how ? &mask : &none,
                                   how == 2 ? &discard : NULL);
            s->dev->exact = false;
            device_get(s, sums, on, sizeof sums);
            assert_memory_equal(&sums[0], &sums[2], sizeof sums[0]);
            assert_true(how ? sums[0].kept_n < 0.6 * (double)n : sums[0].kept == sums[0].raw);
        }
    }
    pool_drop();
}

/* They are the same wherever in the vector a tensor lies, as its rows lie elsewhere for every
 * number of ranks. */
static void sums_wherever_it_lies(void **state) {
    (void)state;
    for (size_t k = 0; k < 12; k++)
        check_sums(k % 2 ? MM_F32 : MM_BF16, 9000 + k, 1 + 1234 * k);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test_teardown(rounds_as_written, test_end),
                                       cmocka_unit_test_teardown(sums_wherever_it_lies, test_end)};
    return cmocka_run_group_tests(tests, subjects_open, subjects_close);
}
