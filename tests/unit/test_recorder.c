/* test_recorder.c - work is recorded on all ranks or on none. Built with MM_TEST_CUDA it needs GPUs
 * that are joined by NCCL, or the host shim; else the CPU, which records nothing. */
#include "tests/unit/ranks_note.h"

#include "kernels/ops.h"
#include "kernels/queue.h"
#include "src/method/recorder.h"

static struct mm_device *dev;

struct job {
    double *values; /* [2], device */
    unsigned calls; /* of work */
};

/* values[kind] becomes the sum over ranks of twice it. */
static void work(void *self, size_t kind) {
    struct job *job = self;
    dev->ops->scale_scalar(dev, job->values + kind, job->values + kind, 2);
    mm_comm_sum_device(comm, job->values + kind, 1);
    job->calls++;
}

/* Five times one kind and three times the other; returns how often the host asked for the work. */
static unsigned calls_of(bool *records) {
    const double begin[] = {1, 3};
    double want[] = {1, 3}, got[2];
    struct job job = {.values = dev->queue->alloc(dev, sizeof begin)};
    struct mm_recorder recorder = mm_recorder_create(comm, dev, 2, false);
    dev->queue->upload(dev, job.values, begin, sizeof begin);
    for (size_t i = 0; i < 8; i++) {
        size_t kind = i % 2 && i < 6;
        mm_recorder_run(&recorder, kind, work, &job);
        want[kind] *= 2 * size;
        dev->queue->download(dev, got, job.values, sizeof got);
        NOTE(got[0] == want[0] && got[1] == want[1], "after run %zu: %g and %g, not %g and %g", i,
             got[0], got[1], want[0], want[1]);
    }
    *records = recorder.records;
    mm_recorder_free(&recorder);
    dev->queue->free(dev, job.values);
    return job.calls;
}

/* Of each kind the first time, and once more to record it. */
static void all_record(void **state) {
    bool records, could = dev->asynchronous && mm_comm_records(comm);
    (void)state;
    unsigned calls = calls_of(&records);
    NOTE(records == could && calls == (could ? 4 : 8), "asked %u times", calls);
    settle();
}

/* The last rank does not: then nobody does. */
static void one_does_not(void **state) {
    static const char *const names[] = {"MUDMAN_RECORD", "CUDA_LAUNCH_BLOCKING"};
    bool records;
    (void)state;
    for (int i = 0; i < 2; i++) {
        if (rank == size - 1)
            setenv(names[i], i ? "1" : "0", 1);
        unsigned calls = calls_of(&records);
        unsetenv(names[i]);
        NOTE(!records && calls == 8, "asked %u times, and %s of one rank", calls, names[i]);
    }
    settle();
}

static struct mm_device *open_device(struct mm_error *err) {
#ifdef MM_TEST_CUDA
    char gpu[16];
    int gpus = mm_cuda_device_count();
    snprintf(gpu, sizeof gpu, "%d", rank);
    setenv("MM_SHIM_GPU", gpu, 1); /* else the shim's ranks share one */
    return mm_device_create_cuda(gpus ? mm_comm_local_rank(comm) % gpus : 0, err);
#else
    (void)err;
    return mm_device_create_cpu();
#endif
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(all_record),
                                       cmocka_unit_test(one_does_not)};
    struct mm_error err = {""};
    comm = mm_comm_create(&argc, &argv);
    rank = mm_comm_rank(comm);
    size = mm_comm_size(comm);
    dev = open_device(&err);
    bool skipped = mm_comm_any(comm, !dev);
    int failed = 1;
    if (skipped)
        fprintf(stderr, "skipped: %s\n", err.text);
    else if (mm_comm_attach(comm, dev, MM_TRANSPORT_AUTO, MM_F32, &err) == MM_OK)
        failed = cmocka_run_group_tests(tests, NULL, NULL);
    mm_comm_free(comm);
    mm_device_free(dev);
    if (mm_live_blocks() != 0)
        fprintf(stderr, "%ld blocks were not freed\n", mm_live_blocks());
    return skipped ? 77 : failed || mm_live_blocks() != 0;
}
