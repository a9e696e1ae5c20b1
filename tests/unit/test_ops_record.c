/* test_ops_record.c - running ahead of the device: pinned memory, marks, and recordings, whose
 * replay must give the bits that the operations themselves give. */
#include "tests/unit/ops_subject.h"

/* -- a list of operations ---------------------------------------------------------------------- */

enum { ROWS = 37, MLP = 40, OUT = 21 };

/* A layer forward and backward, and a masked step from its gradient. */
struct list {
    const struct subject *on;
    char *from; /* x and dy, pinned */
    char *to;   /* y and b, pinned */
    struct box x, h, w, y, dy, dh, du, dw, db, copy;
    struct box b, m;
    struct mm_mask_sums *sums;
    double *scale;
    struct mm_loop_scalars *scalars;
    size_t *offsets;
};

static size_t bytes_of(const struct box *b) {
    return b->mat.rows * b->mat.cols * mm_dtype_bytes(b->mat.dtype);
}

static struct list list_make(const struct subject *s, struct rng *r) {
    enum mm_dtype dtype = s->dtype;
    const struct mm_queue *queue = s->dev->queue;
    static const size_t offsets[] = {0, 100, OUT * MLP};
    static const struct mm_loop_scalars none;
    struct list l = {.on = s};
    l.x = box_make(s, dtype, ROWS, 2 * MLP, 0, NULL);
    l.w = box_make(s, dtype, OUT, MLP, 0, random_numbers(r, dtype, OUT * MLP, 1));
    l.h = box_make(s, dtype, ROWS, MLP, 0, NULL);
    l.y = box_make(s, dtype, ROWS, OUT, 0, NULL);
    l.dy = box_make(s, dtype, ROWS, OUT, 0, NULL);
    l.dh = box_make(s, dtype, ROWS, MLP, 0, NULL);
    l.du = box_make(s, dtype, ROWS, 2 * MLP, 0, NULL);
    l.dw = box_make(s, MM_F32, OUT, MLP, 0, NULL);
    l.db = box_row(s, MM_F32, OUT, random_numbers(r, MM_F32, OUT, 1));
    l.copy = box_make(s, dtype, ROWS, MLP, 0, NULL);
    l.b = box_row(s, MM_F32, OUT * MLP, random_numbers(r, MM_F32, OUT * MLP, 1));
    l.m = box_row(s, MM_F32, OUT * MLP, random_numbers(r, MM_F32, OUT * MLP, 1));
    l.sums = pool_keep(s->dev, queue->alloc(s->dev, 2 * sizeof *l.sums));
    l.scale = pool_keep(s->dev, queue->alloc(s->dev, 2 * sizeof *l.scale));
    l.scalars = device_put(s, &none, sizeof none);
    l.offsets = device_put(s, offsets, sizeof offsets);
    l.from = queue->pinned_alloc(s->dev, bytes_of(&l.x) + bytes_of(&l.dy));
    l.to = queue->pinned_alloc(s->dev, bytes_of(&l.y) + bytes_of(&l.b));
    return l;
}

static void list_free(struct list *l) {
    l->on->dev->queue->pinned_free(l->on->dev, l->from);
    l->on->dev->queue->pinned_free(l->on->dev, l->to);
}

/* Other inputs, in pinned memory only; the device must be done with the last ones. */
static void list_set(struct list *l, uint64_t seed) {
    struct rng r = {seed};
    for (size_t i = 0; i < ROWS * (2 * MLP + OUT); i++)
        box_encode(l->on->dtype, l->from, i, rng_normal(&r));
}

static void list_ask(struct list *l) {
    struct mm_device *dev = l->on->dev;
    const struct mm_ops *ops = dev->ops;
    struct mm_vector b = box_vector(&l->b), m = box_vector(&l->m);
    struct mm_vector g = {l->dw.mat.data, b.n, MM_F32};
    const struct mm_mask mask = {m, true, l->offsets, 2};
    const struct mm_normalizing norm = {MM_NORM_GLOBAL_POST_MASK, false, (double)b.n, MM_F32};
    dev->queue->upload_later(dev, l->x.mat.data, l->from, bytes_of(&l->x));
    dev->queue->upload_later(dev, l->dy.mat.data, l->from + bytes_of(&l->x), bytes_of(&l->dy));
    ops->activate(dev, MM_SWIGLU, l->h.mat, l->x.mat);
    dev->queue->copy(dev, l->copy.mat.data, l->h.mat.data, bytes_of(&l->h));
    ops->linear(dev, l->y.mat, l->copy.mat, l->w.mat, NULL, MM_SET);
    ops->linear_dx(dev, l->dh.mat, l->dy.mat, l->w.mat, MM_SET);
    ops->linear_dw(dev, l->dw.mat, l->dy.mat, l->h.mat, MM_SET);
    ops->bias_db(dev, l->db.mat.data, l->dy.mat);
    ops->activate_grad(dev, MM_SWIGLU, l->du.mat, l->dh.mat, l->x.mat);
    dev->queue->zero(dev, &l->scalars->sum_squares, sizeof(double));
    ops->sum_squares(dev, &l->scalars->sum_squares, g, MM_F32);
    ops->mask_sums(dev, l->sums, g, &mask, NULL);
    ops->unlearn_scale(dev, &norm, l->scale, l->sums, mask.tensors_n, l->scalars);
    ops->unlearn_step(dev, b, g, &mask, l->scale, 0.1, NULL, &l->scalars->stop);
    dev->queue->download_later(dev, l->to, l->y.mat.data, bytes_of(&l->y));
    dev->queue->download_later(dev, l->to + bytes_of(&l->y), l->b.mat.data, bytes_of(&l->b));
}

/* -- comparison -------------------------------------------------------------------------------- */

/* All that the list has written, bit by bit. */
struct outcome {
    void *bits[9];
    size_t bytes[9], n;
};

static void note(struct outcome *o, const void *bits, size_t bytes) {
    void *copy = pool_keep(NULL, mm_calloc(bytes, 1));
    o->bits[o->n] = memcpy(copy, bits, bytes);
    o->bytes[o->n++] = bytes;
}

static struct outcome outcome_of(const struct list *l) {
    struct outcome o = {.n = 0};
    const struct box *boxes[] = {&l->h, &l->y, &l->dh, &l->du, &l->dw, &l->db, &l->b};
    struct mm_loop_scalars scalars;
    for (size_t i = 0; i < sizeof boxes / sizeof *boxes; i++)
        note(&o, box_raw(boxes[i]), bytes_of(boxes[i])); /* no lead, no padding */
    device_get(l->on, &scalars, l->scalars, sizeof scalars);
    note(&o, &scalars, sizeof scalars);
    note(&o, l->to, bytes_of(&l->y) + bytes_of(&l->b)); /* the downloads above have waited */
    return o;
}

static bool same(const struct outcome *a, const struct outcome *b) {
    for (size_t i = 0; i < a->n; i++)
        if (memcmp(a->bits[i], b->bits[i], a->bytes[i]) != 0)
            return false;
    return true;
}

/* -- the tests --------------------------------------------------------------------------------- */

enum { ROUNDS = 4 };

/* ROUNDS times the list on one device state, by itself or (after the first) as a recording. */
static void rounds(const struct subject *s, bool replayed, struct outcome out[ROUNDS]) {
    const struct mm_queue *queue = s->dev->queue;
    struct rng r = {1};
    struct list l = list_make(s, &r);
    struct mm_error err = {""};
    void *recording = NULL;
    list_set(&l, 100);
    list_ask(&l);
    out[0] = outcome_of(&l);
    if (replayed) {
        list_set(&l, 7); /* of no round: what is recorded isn't done */
        assert_true(queue->record(s->dev));
        list_ask(&l);
        recording = queue->recorded(s->dev, &err);
        if (!recording)
            fail_msg("%s", err.text);
        struct outcome still = outcome_of(&l);
        assert_true(same(&still, &out[0]));
    }
    for (size_t i = 1; i < ROUNDS; i++) {
        list_set(&l, 100 + i);
        if (replayed)
            queue->replay(s->dev, recording);
        else
            list_ask(&l);
        out[i] = outcome_of(&l);
    }
    if (recording)
        queue->recording_free(s->dev, recording);
    list_free(&l);
}

static void replays_give_the_same_bits(void **state) {
    (void)state;
    for (const struct subject *s = subjects; s < subjects + subjects_n; s++) {
        struct outcome direct[ROUNDS], replayed[ROUNDS];
        bool records = s->dev->asynchronous;
        rounds(s, false, direct);
        rounds(s, records, replayed);
        for (size_t i = 0; i < ROUNDS; i++) {
            assert_true(same(&direct[i], &replayed[i]));
            assert_true(i == 0 || !same(&direct[i], &direct[i - 1]));
        }
    }
}

/* The host is up to MM_MARKS rounds ahead, each with pinned memory of its own. */
static void marks(void **state) {
    (void)state;
    enum { N = 5000, TIMES = 7 };
    FOR_DEVICES(s) {
        const struct mm_ops *ops = s->dev->ops;
        float *from[MM_MARKS], *to[MM_MARKS];
        float *on = pool_keep(s->dev, s->dev->queue->alloc(s->dev, N * sizeof *on));
        for (int slot = 0; slot < MM_MARKS; slot++) {
            from[slot] = s->dev->queue->pinned_alloc(s->dev, N * sizeof *on);
            to[slot] = s->dev->queue->pinned_alloc(s->dev, N * sizeof *on);
            assert_true(from[slot][N - 1] == 0 && to[slot][N - 1] == 0);
        }
        for (int i = 0; i < TIMES + MM_MARKS; i++) {
            int slot = i % MM_MARKS;
            if (i >= MM_MARKS) { /* round i - MM_MARKS is there */
                s->dev->queue->wait(s->dev, slot);
                for (size_t k = 0; k < N; k++)
                    assert_true(to[slot][k] == (float)(-2 * (i - MM_MARKS) - (int)k));
            }
            if (i >= TIMES)
                continue;
            for (size_t k = 0; k < N; k++)
                from[slot][k] = (float)(i + (int)k / 2.0);
            struct mm_mat x = mm_mat(on, MM_F32, 1, N);
            s->dev->queue->upload_later(s->dev, on, from[slot], N * sizeof *on);
            ops->scale(s->dev, x, x, -2);
            s->dev->queue->download_later(s->dev, to[slot], on, N * sizeof *on);
            s->dev->queue->mark(s->dev, slot);
        }
        for (int slot = 0; slot < MM_MARKS; slot++) {
            s->dev->queue->pinned_free(s->dev, from[slot]);
            s->dev->queue->pinned_free(s->dev, to[slot]);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(replays_give_the_same_bits, test_end),
        cmocka_unit_test_teardown(marks, test_end),
    };
    return cmocka_run_group_tests(tests, subjects_open, subjects_close);
}
