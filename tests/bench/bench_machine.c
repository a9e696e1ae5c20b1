/* bench_machine.c - measures a machine of CPUs for `plan --machine FILE`, and prints the file.
 *
 *   mpirun -n RANKS bench_machine [THREADS] > machine.yaml
 *
 * All ranks measure at once, as they compute at once in a loop. Each figure is the best of many
 * short calls: what the machine can do. They are products of 200 tokens with weights of 1024 by
 * 1024, updates of a million elements among 16 million, which no cache holds, and messages of 4 MB
 * and of 8 bytes. All ranks are taken to be on one machine: what is between machines is given as if
 * it were within one. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

#include "comm/comm.h"
#include "kernels/arena.h"
#include "kernels/ops.h"
#include "kernels/queue.h"

#define REPEATS 200

static struct mm_comm *comm;
static struct mm_device *dev;
static struct mm_arena *arena;

/* The least seconds of a call, of the rank that needs most. */
static double seconds_of(void (*call)(void *self), void *self) {
    double best = 1e30;
    for (int i = 0; i < REPEATS; i++) {
        mm_comm_barrier(comm);
        double start = mm_now();
        call(self);
        double seconds = mm_comm_max(comm, mm_now() - start);
        best = i > 0 && seconds < best ? seconds : best; /* the first takes memory */
    }
    return best;
}

struct product {
    struct mm_mat y, x, w;
};

static void multiply(void *self) {
    const struct product *p = self;
    dev->ops->linear(dev, p->y, p->x, p->w, NULL, MM_SET);
}

static double product_rate(enum mm_dtype dtype) {
    const size_t n = 200, in = 1024, out = 1024;
    struct product p = {mm_arena_mat(arena, MM_FOR_SCRATCH, dtype, n, out),
                        mm_arena_mat(arena, MM_FOR_SCRATCH, dtype, n, in),
                        mm_arena_mat(arena, MM_FOR_SCRATCH, dtype, out, in)};
    return 2.0 * (double)(n * in * out) / seconds_of(multiply, &p);
}

static const uint32_t go_on;

#define SLICE  ((size_t)1 << 20)
#define SLICES ((size_t)16)

struct vectors {
    struct mm_vector v[3];
    size_t turn;
};

/* Slice after slice. */
static void update(void *self) {
    struct vectors *all = self;
    struct mm_vector v[3];
    for (int i = 0; i < 3; i++)
        v[i] =
            (struct mm_vector){(float *)all->v[i].data + all->turn % SLICES * SLICE, SLICE, MM_F32};
    all->turn++;
    dev->ops->retain_step(dev, v[0], v[1], v[2], 0.9, 1e-3, &go_on);
}

static double memory_rate(void) {
    struct vectors all = {.turn = 0};
    for (int i = 0; i < 3; i++)
        all.v[i].data = mm_arena_take(arena, MM_FOR_SCRATCH, SLICES * SLICE, sizeof(float));
    return 5.0 * (double)(SLICE * sizeof(float)) / seconds_of(update, &all);
}

static void gather(void *self) {
    mm_comm_wait(comm, mm_comm_gather_rows(comm, self, 1));
}

static void reduce(void *self) {
    mm_comm_wait(comm, mm_comm_reduce_rows(comm, self, 1));
}

static void sum(void *self) {
    mm_comm_sum_device(comm, self, 1);
}

int main(int argc, char **argv) {
    struct mm_error err;
    comm = mm_comm_create(&argc, &argv);
    omp_set_num_threads(argc > 1 ? atoi(argv[1]) : 1);
    dev = mm_device_create_cpu();
    MM_CHECK(mm_comm_attach(comm, dev, MM_TRANSPORT_AUTO, MM_F32, &err) == MM_OK, "%s", err.text);
    arena = mm_arena_create(dev);
    size_t size = (size_t)mm_comm_size(comm), rows = 1024 / size * size, cols = 1024;
    struct mm_mat large = mm_arena_mat(arena, MM_FOR_SCRATCH, MM_F32, rows, cols);
    struct mm_mat small = mm_mat(large.data, MM_F32, size, 1);
    struct mm_reduction r = {.full = large, .rows = rows};
    r.own = mm_arena_take(arena, MM_FOR_SCRATCH, rows / size * cols, sizeof *r.own);
    double float32 = product_rate(MM_F32), bfloat16 = product_rate(MM_BF16), memory = memory_rate();
    double bucket = seconds_of(gather, &small), one = seconds_of(sum, large.data);
    double both = seconds_of(gather, &large) + seconds_of(reduce, &r);
    double crossing = 2 * (double)(rows * cols * sizeof(float)) * (double)(size - 1) / (double)size;
    double inside = size > 1 ? crossing / (both - 2 * bucket) : memory;
    if (mm_comm_rank(comm) == 0)
        printf("device: cpu\nranks: %zu\nfloat32: %.4g\nbfloat16: %.4g\nmemory: %.4g\nstart: 0\n"
               "inside: %.4g\nacross: %.4g\nloss: 0\nbeside: false\n"
               "bucket: {start: %.3g, inside: 0, across: 0}\n"
               "sum: {start: %.3g, inside: 0, across: 0}\n",
               size, float32, bfloat16, memory, inside, inside, bucket, one);
    mm_arena_free(arena);
    mm_comm_free(comm);
    mm_device_free(dev);
    return 0;
}
