/* golden_device.h - a golden case on a device, and comparison of the device's memory with traces in
 * float64, in either arithmetic: for test_golden.c, which says how exact each is. */
#ifndef MM_TEST_GOLDEN_DEVICE_H
#define MM_TEST_GOLDEN_DEVICE_H

#include "tests/golden/trace.h"

#include "comm/comm.h"
#include "kernels/queue.h"
#include "src/parallel/load.h"

static struct mm_comm *comm;
static struct mm_device *dev;
static bool sharded;    /* model.shard: full */
static bool recomputes; /* model.recompute: layer */
static enum mm_dtype arithmetic = MM_F32;

/* n numbers of the device's memory as float32; the caller frees with mm_free. */
static inline float *fetch(const void *data, enum mm_dtype dtype, size_t n) {
    void *raw = mm_calloc(n + 1, mm_dtype_bytes(dtype));
    float *host = mm_calloc(n + 1, sizeof *host);
    dev->queue->download(dev, raw, data, n * mm_dtype_bytes(dtype));
    mm_convert(host, MM_F32, raw, dtype, n);
    mm_free(raw);
    return host;
}

static inline double fetch_scalar(const double *data) {
    double value;
    dev->queue->download(dev, &value, data, sizeof value);
    return value;
}

/* Sums of squares, of what a tensor or a vector should be and of what it is off. */
struct size {
    double want, error;
};

static inline void size_add(struct size *s, const float *x, const double *want, size_t n) {
    for (size_t i = 0; i < n; i++) {
        s->want += want[i] * want[i];
        s->error += ((double)x[i] - want[i]) * ((double)x[i] - want[i]);
    }
}

static inline void expect_size(const char *what, const char *name, struct size s,
                               double tolerance) {
    trace_judge(what, name, sqrt(s.error), tolerance * sqrt(s.want));
}

static inline void expect_near(const char *what, const char *name, size_t at, double x, double want,
                               double tolerance, double half_tolerance) {
    trace_near(what, name, at, x, want, arithmetic == MM_F32 ? tolerance : half_tolerance);
}

static inline void expect_tensor(const char *what, const char *name, const float *x,
                                 const double *want, size_t n, double tolerance,
                                 double half_tolerance) {
    struct size s = {0, 0};
    size_add(&s, x, want, n);
    if (arithmetic == MM_F32)
        trace_close(what, name, x, want, n, tolerance);
    else if (!strstr(name, "k_proj.bias")) /* 0 but for rounding */
        expect_size(what, name, s, half_tolerance);
}

/* A golden case: its model, and arenas that end with it. */
struct fixture {
    const char *name;
    struct mm_arena *arena;
    struct mm_model *model;
    struct mm_model *exact;   /* float32, never changed */
    struct mm_spread *spread; /* NULL: the model is whole */
    hid_t reference, traces;
};

static inline hid_t open_file(const char *name, const char *file) {
    char *path = mm_format("%s/golden/%s/%s", TEST_DIR, name, file);
    hid_t id = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    assert_true(id >= 0);
    mm_free(path);
    return id;
}

/* The hash that the ranks found together is that of all rows, and all have their own. */
static inline void expect_hash(const struct mm_model *m, const struct mm_weights *weights,
                               const char *hash) {
    struct mm_weights_sum sum = {0};
    char whole[33];
    for (size_t i = 0; i < m->params_n; i++) {
        const struct mm_stored_tensor *t = mm_weights_find(weights, m->params[i].name);
        mm_weights_sum_rows(weights, t->name, 0, mm_stored_rows_n(t), &sum);
    }
    mm_weights_sum_text(sum, whole);
    assert_string_equal(hash, whole);
}

static inline void load_model(const struct fixture *f, struct mm_model *model) {
    struct mm_error err = {""};
    struct mm_weights *weights;
    char *folder = mm_format("%s/golden/%s", TEST_DIR, f->name);
    char hash[33];
    if (mm_weights_open(&weights, folder, &err) != MM_OK ||
        mm_load_weights(model, comm, weights, hash, &err) != MM_OK)
        fail_msg("%s", err.text);
    expect_hash(model, weights, hash);
    mm_weights_free(weights);
    mm_free(folder);
}

/* With the traces of a file. */
static inline struct fixture open_traces(const char *name, const char *file) {
    struct mm_error err = {""};
    struct mm_arch arch;
    struct fixture f = {.name = name, .arena = mm_arena_create(dev)};
    char *path = mm_format("%s/golden/%s/config.json", TEST_DIR, name);
    if (mm_arch_read(&arch, path, &err) != MM_OK)
        fail_msg("%s", err.text);
    mm_free(path);
    f.model = mm_model_create_in_slots(f.arena, &arch, arithmetic, 32, sharded ? MM_SLOTS : 0);
    f.model->recompute = recomputes;
    f.spread = sharded ? mm_spread_create(f.arena, comm, f.model, true) : NULL;
    f.exact = mm_model_create(f.arena, &arch, MM_F32, 32);
    load_model(&f, f.model);
    load_model(&f, f.exact);
    f.reference = open_file(name, "reference.h5");
    f.traces = open_file(name, file);
    return f;
}

static inline struct fixture open_case(const char *name) {
    return open_traces(name, "traces.h5");
}

static inline void close_case(struct fixture *f) {
    H5Fclose(f->reference);
    H5Fclose(f->traces);
    mm_spread_free(f->spread);
    mm_model_free(f->model);
    mm_model_free(f->exact);
    mm_arena_free(f->arena);
}

/* The device under test; NULL: there is no GPU. */
static inline struct mm_device *open_device(void) {
#ifdef MM_TEST_CUDA
    struct mm_error err = {""};
    int gpus = mm_cuda_device_count();
    struct mm_device *gpu = mm_device_create_cuda(gpus ? mm_comm_local_rank(comm) % gpus : 0, &err);
    if (!gpu)
        fprintf(stderr, "skipped: %s\n", err.text);
    return gpu;
#else
    return mm_device_create_cpu();
#endif
}

#endif
