/* test_comm_rows.c - what ranks do together on the memory of a device, on any number of them.
 * Usage: test_comm_rows [auto|staged|nccl [float32|bfloat16]]: the transport, and reduce_dtype.
 * Where built with MM_TEST_CUDA the device is a GPU, else the CPU.
 *
 * Sums are of integers, so that they are exact, or of numbers that come out differently in any
 * other order. A rank that failed alone would leave the others waiting: checks only note the first
 * mistake, and settle() ends every test on all ranks alike. */
#include "tests/unit/ranks_note.h"

#include <math.h>
#include <unistd.h>

#include "kernels/dry.h"
#include "kernels/ops.h"
#include "kernels/queue.h"

static struct mm_device *dev;
static enum mm_dtype reduce_dtype;

static void *on_device(const void *host, size_t bytes) {
    void *block = dev->queue->alloc(dev, bytes);
    dev->queue->upload(dev, block, host, bytes);
    return block;
}

static void *from_device(const void *block, size_t bytes) {
    void *host = mm_calloc(bytes, 1);
    dev->queue->download(dev, host, block, bytes);
    return host;
}

/* In rank order they lose other digits than in any other order, and each `which` is another case.
 */
static double awkward(int who, size_t which, double big) {
    const double values[] = {big, 1, -big, 3, 1, -big / 2, big / 2};
    return values[((size_t)who * (1 + which % 3) + which) % 7];
}

/* float32 reductions over NCCL are in NCCL's own order. */
static bool in_rank_order(void) {
    return reduce_dtype == MM_BF16 || strncmp(mm_comm_transport_name(comm), "NCCL", 4) != 0;
}

/* -- reductions -------------------------------------------------------------------------------- */

#define BEHIND (-7.25f) /* what lies behind a matrix and must stay */

struct tensor {
    size_t rows, cols, turn;
    bool order;
    struct mm_rows mine;
    struct mm_reduction on; /* the device */
};

/* Element i of rank `who`'s whole gradient; float32 adds 4 of them exactly. */
static float part_of(int who, size_t i, size_t turn, bool order) {
    if (order)
        return (float)awkward(who, i + i / 7 + turn, 0x1p25);
    return (float)((int)((i * 1009 + turn * 77) % 4096) - 2048 + who * 100000);
}

static float sum_of_parts(size_t i, size_t turn, bool order) {
    bool rounds = reduce_dtype == MM_BF16 && size > 1;
    float sum = 0;
    for (int r = 0; r < size; r++) {
        float part = part_of(r, i, turn, order);
        part = rounds ? mm_bf16_round(part) : part;
        sum = r == 0 ? part : sum + part;
    }
    return sum;
}

static size_t whole_of(const struct tensor *t) {
    return mm_rows_block(t->rows, size) * (size_t)size * t->cols;
}

/* Padding rows are not a number; they must not show. */
static void fill(struct tensor *t, size_t turn) {
    size_t whole = whole_of(t), own_n = t->mine.count * t->cols;
    float *full = mm_calloc(whole + 1, sizeof *full), *own = mm_calloc(own_n + 1, sizeof *own);
    t->turn = turn;
    for (size_t i = 0; i < whole; i++)
        full[i] = i < t->rows * t->cols ? part_of(rank, i, turn, t->order) : NAN;
    for (size_t i = 0; i <= own_n; i++)
        own[i] = BEHIND;
    full[whole] = BEHIND;
    dev->queue->upload(dev, t->on.full.data, full, (whole + 1) * sizeof *full);
    dev->queue->upload(dev, t->on.own, own, (own_n + 1) * sizeof *own);
    mm_free(full);
    mm_free(own);
}

static struct tensor tensor_make(size_t rows, size_t cols, bool order) {
    struct tensor t = {.rows = rows, .cols = cols, .order = order};
    size_t c = mm_rows_block(rows, size);
    t.mine = mm_rows_of(rows, size, rank);
    float *full = dev->queue->alloc(dev, (whole_of(&t) + 1) * sizeof *full);
    t.on.full = mm_mat(full, MM_F32, c * (size_t)size, cols);
    t.on.rows = rows;
    t.on.own = dev->queue->alloc(dev, (t.mine.count * cols + 1) * sizeof(float));
    fill(&t, 0);
    return t;
}

static void tensor_check(const struct tensor *t) {
    size_t own_n = t->mine.count * t->cols, whole = whole_of(t);
    float *own = from_device(t->on.own, (own_n + 1) * sizeof *own), behind;
    for (size_t i = 0; i < own_n; i++) {
        float want = sum_of_parts(t->mine.first * t->cols + i, t->turn, t->order);
        NOTE(own[i] == want, "[%zu, %zu]: own element %zu is %g, not %g%s", t->rows, t->cols, i,
             (double)own[i], (double)want, t->order ? ", by its order" : "");
    }
    NOTE(own[own_n] == BEHIND, "[%zu, %zu]: written behind the own rows", t->rows, t->cols);
    dev->queue->download(dev, &behind, (float *)t->on.full.data + whole, sizeof behind);
    NOTE(behind == BEHIND, "[%zu, %zu]: written behind the whole", t->rows, t->cols);
    mm_free(own);
}

static void tensor_free(struct tensor *t) {
    dev->queue->free(dev, t->on.full.data);
    dev->queue->free(dev, t->on.own);
}

static const size_t rows_of[] = {1, 33, 2, 3, 4, 5, 7, 64, 6, 9}, cols_of[] = {1, 17, 3, 256};
#define ROWS (sizeof rows_of / sizeof *rows_of)
#define COLS (sizeof cols_of / sizeof *cols_of)

static mm_ticket start(const struct tensor *tensors, size_t n) {
    struct mm_reduction bucket[ROWS];
    for (size_t i = 0; i < n; i++)
        bucket[i] = tensors[i].on;
    return mm_comm_reduce_rows(comm, bucket, n);
}

/* Buckets of one tensor, of none, and of many; all under way at once, and waited for backwards. */
static void check_reductions(bool order) {
    struct tensor tensors[COLS][ROWS];
    mm_ticket tickets[COLS + 2];
    for (size_t j = 0; j < COLS; j++)
        for (size_t i = 0; i < ROWS; i++)
            tensors[j][i] = tensor_make(rows_of[i], cols_of[j], order);
    tickets[0] = start(tensors[0], 1);
    tickets[1] = start(tensors[0] + 1, ROWS - 1);
    for (size_t j = 1; j < COLS; j++)
        tickets[j + 1] = start(tensors[j], ROWS);
    tickets[COLS + 1] = start(NULL, 0);
    for (size_t k = COLS + 2; k-- > 0;)
        mm_comm_wait(comm, tickets[k]);
    for (size_t j = 0; j < COLS; j++)
        for (size_t i = 0; i < ROWS; i++) {
            tensor_check(&tensors[j][i]);
            tensor_free(&tensors[j][i]);
        }
}

static void reductions(void **state) {
    (void)state;
    check_reductions(false);
    if (in_rank_order() || size == 2)
        check_reductions(true);
    settle();
}

/* Nothing is rounded that isn't sent: with one rank, and in its own memory. */
static void reductions_alone(void **state) {
    (void)state;
    if (size > 1)
        skip();
    float values[6] = {1.0000001f, 2, 3, -0.1f, 5, 1e-30f};
    float *full = on_device(values, sizeof values);
    struct mm_reduction r = {.full = mm_mat(full, MM_F32, 3, 2), .rows = 3, .own = full};
    mm_comm_wait(comm, mm_comm_reduce_rows(comm, &r, 1));
    float *got = from_device(full, sizeof values);
    NOTE(memcmp(got, values, sizeof values) == 0, "a sum over one rank is another");
    mm_free(got);
    dev->queue->free(dev, full);
    settle();
}

/* -- gathers ----------------------------------------------------------------------------------- */

/* Bits of element i of a whole, the same on every rank that owns it. */
static uint32_t bits_at(size_t i, size_t turn) {
    return (uint32_t)((i + turn) * 2654435761u + 12345);
}

/* A matrix of which only the rows of rank `at` of n are there; one element behind. */
static struct mm_mat gather_make(size_t rows, size_t cols, enum mm_dtype dtype, int n, int at,
                                 size_t turn) {
    struct mm_rows mine = mm_rows_of(rows, n, at);
    size_t bytes = mm_dtype_bytes(dtype), total = (rows * cols + 1) * bytes;
    unsigned char *full = mm_calloc(total, 1);
    memset(full, 0x5a, total);
    for (size_t i = mine.first * cols; i < (mine.first + mine.count) * cols; i++) {
        uint32_t bits = bits_at(i, turn);
        memcpy(full + i * bytes, &bits, bytes);
    }
    struct mm_mat m = mm_mat(on_device(full, total), dtype, rows, cols);
    mm_free(full);
    return m;
}

static void gather_check(struct mm_mat m, size_t turn) {
    size_t bytes = mm_dtype_bytes(m.dtype), n = m.rows * m.cols;
    const char *name = mm_dtype_name(m.dtype);
    unsigned char *full = from_device(m.data, (n + 1) * bytes);
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = bits_at(i, turn);
        NOTE(memcmp(full + i * bytes, &bits, bytes) == 0, "%s [%zu, %zu]: element %zu", name,
             m.rows, m.cols, i);
    }
    for (size_t i = n * bytes; i < (n + 1) * bytes; i++)
        NOTE(full[i] == 0x5a, "%s [%zu, %zu]: written behind", name, m.rows, m.cols);
    mm_free(full);
}

static void gathers(void **state) {
    (void)state;
    struct mm_mat mats[COLS][ROWS];
    mm_ticket tickets[COLS];
    for (size_t j = 0; j < COLS; j++) {
        for (size_t i = 0; i < ROWS; i++)
            mats[j][i] =
                gather_make(rows_of[i], cols_of[j], (i + j) % 2 ? MM_BF16 : MM_F32, size, rank, 0);
        tickets[j] = mm_comm_gather_rows(comm, mats[j], j == 0 ? 1 : ROWS);
    }
    mm_comm_wait(comm, tickets[0]);
    tickets[0] = mm_comm_gather_rows(comm, mats[0] + 1, ROWS - 1);
    for (size_t j = COLS; j-- > 0;)
        mm_comm_wait(comm, tickets[j]);
    for (size_t j = 0; j < COLS; j++)
        for (size_t i = 0; i < ROWS; i++) {
            gather_check(mats[j][i], 0);
            dev->queue->free(dev, mats[j][i].data);
        }
    settle();
}

/* Every group of near ranks has matrices of its own. One gather over all is under way meanwhile. */
static void near_gathers(void **state) {
    (void)state;
    struct mm_near near = mm_comm_near(comm);
    size_t group = (size_t)near.first;
    NOTE(near.rank == rank - near.first && near.size <= size, "%d of %d from %d", near.rank,
         near.size, near.first);
    struct mm_mat mats[ROWS], whole = gather_make(7, 5, MM_F32, size, rank, 0);
    mm_comm_near_begin(comm);
    for (size_t i = 0; i < ROWS; i++)
        mats[i] = gather_make(rows_of[i], 3, i % 2 ? MM_F32 : MM_BF16, near.size, near.rank, group);
    mm_ticket first = mm_comm_gather_near(comm, mats, ROWS);
    mm_ticket second = mm_comm_gather_rows(comm, &whole, 1);
    mm_comm_wait(comm, second);
    mm_comm_wait(comm, first);
    for (size_t i = 0; i < ROWS; i++) {
        gather_check(mats[i], group);
        dev->queue->free(dev, mats[i].data);
    }
    gather_check(whole, 0);
    dev->queue->free(dev, whole.data);
    settle();
}

/* -- sums -------------------------------------------------------------------------------------- */

static void sums(void **state) {
    (void)state;
    static const size_t counts[] = {1, 0, 3, 1000};
    for (size_t k = 0; k < 4; k++) {
        size_t n = counts[k];
        double *values = mm_calloc(n + 1, sizeof *values);
        for (size_t i = 0; i <= n; i++)
            values[i] = awkward(rank, i, 1e16);
        double *there = on_device(values, (n + 1) * sizeof *there), *got;
        mm_comm_sum_device(comm, there, n);
        got = from_device(there, (n + 1) * sizeof *got);
        for (size_t i = 0; i < n; i++) {
            double want = awkward(0, i, 1e16);
            for (int r = 1; r < size; r++)
                want += awkward(r, i, 1e16);
            NOTE(got[i] == want, "sum[%zu] is %g, not %g", i, got[i], want);
        }
        NOTE(got[n] == values[n], "written behind %zu sums", n);
        mm_free(values);
        mm_free(got);
        dev->queue->free(dev, there);
    }
    settle();
}

/* -- recordings -------------------------------------------------------------------------------- */

struct loop {
    struct tensor tensors[3];
    struct mm_mat weights;
    double *numbers; /* 2, the second 0 */
};

/* A loop in small; the sum is of a number that the device has just made. */
static void loop_ask(struct loop *l) {
    mm_ticket first = start(l->tensors, 2), second = start(l->tensors + 2, 1);
    dev->ops->scale_scalar(dev, l->numbers + 1, l->numbers, 2);
    mm_comm_sum_device(comm, l->numbers + 1, 1);
    mm_ticket third = mm_comm_gather_rows(comm, &l->weights, 1);
    mm_comm_wait(comm, second);
    mm_comm_wait(comm, first);
    mm_comm_wait(comm, third);
}

static void loop_fill(struct loop *l, size_t turn) {
    double number = (double)turn + rank;
    for (size_t i = 0; i < 3; i++)
        fill(&l->tensors[i], turn);
    dev->queue->upload(dev, l->numbers, &number, sizeof number);
}

static void loop_check(struct loop *l, size_t turn) {
    double *numbers = from_device(l->numbers, 2 * sizeof *numbers);
    double want = 2 * (double)turn * size + size * (size - 1);
    for (size_t i = 0; i < 3; i++)
        tensor_check(&l->tensors[i]);
    NOTE(numbers[1] == want, "turn %zu: sum %g, not %g", turn, numbers[1], want);
    mm_free(numbers);
    gather_check(l->weights, 0);
}

static void replay(struct loop *l, void *recording) {
    for (size_t turn = 2; turn < 5; turn++) {
        loop_fill(l, turn);
        mm_comm_watch_begin(comm, 60, "turn", turn);
        dev->queue->replay(dev, recording);
        loop_check(l, turn);
    }
    mm_comm_watch_end(comm);
    dev->queue->recording_free(dev, recording);
}

static void recordings(void **state) {
    struct loop l = {
        {tensor_make(33, 17, false), tensor_make(5, 3, false), tensor_make(8, 6, false)},
        gather_make(9, 4, MM_F32, size, rank, 0),
        dev->queue->alloc(dev, 2 * sizeof(double))};
    struct mm_error err;
    (void)state;
    loop_fill(&l, 1);
    mm_comm_watch_begin(comm, 60, "turn", 1);
    loop_ask(&l);
    loop_check(&l, 1);
    if (mm_comm_records(comm) && dev->queue->record(dev)) {
        loop_ask(&l);
        void *recording = dev->queue->recorded(dev, &err);
        NOTE(recording, "not recorded: %.200s", err.text);
        if (!mm_comm_any(comm, !recording))
            replay(&l, recording);
    }
    mm_comm_watch_end(comm);
    for (size_t i = 0; i < 3; i++)
        tensor_free(&l.tensors[i]);
    dev->queue->free(dev, l.weights.data);
    dev->queue->free(dev, l.numbers);
    settle();
}

/* -- the program ------------------------------------------------------------------------------- */

static struct mm_device *open_device(struct mm_error *err) {
#ifdef MM_TEST_CUDA
    return mm_device_create_cuda(
        mm_comm_local_rank(comm) % (mm_cuda_device_count() + !mm_cuda_device_count()), err);
#else
    (void)err;
    return mm_device_create_cpu();
#endif
}

static const char *name_wanted(const char *transport) {
    if (strcmp(transport, "nccl") == 0)
        return "NCCL 2.";
    if (size == 1)
        return "one rank";
    return strcmp(transport, "staged") == 0 ? "MPI, staged" : "MPI";
}

/* 0, or the exit status: 77 where there is no GPU. */
static int attach(const char *transport) {
    struct mm_error err;
    enum mm_transport_choice choice = strcmp(transport, "nccl") == 0     ? MM_TRANSPORT_NCCL
                                      : strcmp(transport, "staged") == 0 ? MM_TRANSPORT_STAGED
                                                                         : MM_TRANSPORT_AUTO;
    char gpu[16];
    snprintf(gpu, sizeof gpu, "%d", rank);
    if (choice == MM_TRANSPORT_NCCL)
        setenv("MM_SHIM_GPU", gpu, 1); /* else the shim's ranks share one */
    dev = open_device(&err);
    if (mm_comm_any(comm, !dev)) {
        fprintf(stderr, "%s\n", dev ? "no GPU on another rank" : err.text);
        return 77;
    }
    if (mm_comm_attach(comm, dev, choice, reduce_dtype, &err) != MM_OK) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    const char *name = mm_comm_transport_name(comm), *wanted = name_wanted(transport);
    if (strncmp(name, wanted, strlen(wanted)) == 0)
        return 0;
    fprintf(stderr, "the transport is %s, not %s\n", name, wanted);
    return 1;
}

/* -- room ---------------------------------------------------------------------------------------
 */

#define MATRICES ((size_t)4)

/* Matrices that ask for more and more, and a smaller one at the end. */
static struct mm_reduction to_reduce(float *full, float *own, size_t i, bool leaves) {
    static const size_t rows[MATRICES] = {5, 33, 64, 7}, cols[MATRICES] = {17, 256, 300, 300};
    size_t padded = mm_rows_block(rows[i], size) * (size_t)size;
    return (struct mm_reduction){.full = mm_mat(full, MM_F32, padded, cols[i]),
                                 .rows = rows[i],
                                 .own = own,
                                 .ranks = leaves ? size : 0};
}

static void ask_for_room(float *full, float *own, double *numbers) {
    for (int leaves = 0; leaves <= (reduce_dtype == MM_F32); leaves++)
        for (size_t i = 0; i < MATRICES; i++) {
            struct mm_reduction r = to_reduce(full, own, i, leaves);
            struct mm_mat m = mm_mat(full, MM_BF16, r.rows, r.full.cols);
            mm_comm_wait(comm, mm_comm_reduce_rows(comm, &r, 1));
            mm_comm_wait(comm, mm_comm_gather_rows(comm, &m, 1));
            mm_comm_sum_device(comm, numbers, 10 * (i + 1));
        }
}

/* A plan counts the room that the transport takes. Nothing may have been asked for before. */
static void room(void **state) {
    (void)state;
    size_t most = 300 * (64 + 2 * (size_t)size);
    float *full = dev->queue->alloc(dev, most * sizeof *full);
    float *own = dev->queue->alloc(dev, most * sizeof *own);
    double *numbers = dev->queue->alloc(dev, 10 * MATRICES * sizeof *numbers);
    const char *name = mm_comm_transport_name(comm);
    enum mm_transport_choice choice = strncmp(name, "NCCL", 4) == 0 ? MM_TRANSPORT_NCCL
                                      : strstr(name, "staged")      ? MM_TRANSPORT_STAGED
                                                                    : MM_TRANSPORT_AUTO;
    ask_for_room(full, own, numbers);
    size_t took = mm_comm_room_bytes(comm);
    NOTE(size == 1 || took > 0, "no room is taken");
    struct mm_device *dry = mm_device_create_dry(dev->asynchronous, (struct mm_rates){0});
    struct mm_error err;
    mm_comm_pretend(comm, size, (struct mm_links){.per_machine = size});
    NOTE(mm_comm_attach(comm, dry, choice, reduce_dtype, &err) == MM_OK, "no dry transport");
    ask_for_room(full, own, numbers);
    size_t planned = mm_comm_room_bytes(comm); /* rank 0's */
    mm_comm_pretend_end(comm);
    mm_device_free(dry);
    NOTE(rank != 0 || planned == took, "%zu bytes of room are planned, and %zu taken", planned,
         took);
    dev->queue->free(dev, full);
    dev->queue->free(dev, own);
    dev->queue->free(dev, numbers);
    settle();
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(room),
        cmocka_unit_test(reductions),
        cmocka_unit_test(reductions_alone),
        cmocka_unit_test(gathers),
        cmocka_unit_test(near_gathers),
        cmocka_unit_test(sums),
        cmocka_unit_test(recordings),
    };
    mm_inbox_bytes = 1000; /* several pieces of a matrix */
    alarm(240);            /* ranks that wait for each other forever are a failure too */
    comm = mm_comm_create(&argc, &argv);
    rank = mm_comm_rank(comm);
    size = mm_comm_size(comm);
    reduce_dtype = argc > 2 && strcmp(argv[2], "bfloat16") == 0 ? MM_BF16 : MM_F32;
    int failed = attach(argc > 1 ? argv[1] : "auto");
    if (!failed)
        failed = cmocka_run_group_tests(tests, NULL, NULL);
    mm_comm_free(comm);
    if (dev)
        mm_device_free(dev);
    if (mm_live_blocks() != 0)
        fprintf(stderr, "%ld blocks were not freed\n", mm_live_blocks());
    return failed ? failed : mm_live_blocks() != 0;
}
