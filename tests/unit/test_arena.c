/* Tests of the arenas: what they count, their peak, and how a device that is full ends the job. The
 * device is one of this file, with a limit. */
#include "kernels/arena.h"
#include "kernels/queue.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

struct small_device {
    size_t left;
    int blocks;
};

static void *small_alloc(struct mm_device *dev, size_t bytes) {
    struct small_device *d = dev->context;
    if (bytes > d->left)
        return NULL;
    d->left -= bytes;
    d->blocks++;
    return calloc(1, bytes + 1);
}

static void small_free(struct mm_device *dev, void *block) {
    struct small_device *d = dev->context;
    d->blocks--;
    free(block);
}

static const struct mm_queue queue = {.alloc = small_alloc, .free = small_free};

static struct mm_device device_of(struct small_device *d) {
    return (struct mm_device){.name = "small", .queue = &queue, .context = d};
}

static void counts_and_peak(void **state) {
    (void)state;
    struct small_device small = {.left = 10000};
    struct mm_device dev = device_of(&small);
    struct mm_arena *weights = mm_arena_create(&dev), *phase = mm_arena_create(&dev);
    struct mm_arena *dry = mm_arena_create_dry(&dev);
    mm_arena_take(weights, MM_FOR_WEIGHTS, 100, 4);
    mm_arena_take(phase, MM_FOR_BASE, 30, 4);
    mm_arena_take(phase, MM_FOR_BASE, 0, 4);
    assert_int_equal(mm_arena_mat(phase, MM_FOR_SCRATCH, MM_BF16, 3, 5).ld, 5);
    mm_arena_take(dry, MM_FOR_OPTIMIZER, 1000, 1000);
    assert_int_equal(mm_arena_bytes(weights, MM_FOR_WEIGHTS), 400);
    assert_int_equal(mm_arena_bytes(phase, MM_FOR_BASE), 120);
    assert_int_equal(mm_arena_bytes(phase, MM_FOR_SCRATCH), 30);
    assert_int_equal(mm_arena_bytes(dry, MM_FOR_OPTIMIZER), 1000000);
    assert_int_equal(mm_arena_peak_bytes(&dev), 550);
    assert_int_equal(small.blocks, 4);

    /* The first phase's memory is free again when the second one's is taken. */
    mm_arena_free(phase);
    phase = mm_arena_create(&dev);
    mm_arena_take(phase, MM_FOR_OPTIMIZER, 1, 100);
    assert_int_equal(mm_arena_peak_bytes(&dev), 550);
    mm_arena_take(phase, MM_FOR_OPTIMIZER, 1, 51);
    assert_int_equal(mm_arena_peak_bytes(&dev), 551);
    mm_arena_free(weights);
    mm_arena_free(dry);
    mm_arena_free(phase);
    assert_int_equal(mm_arena_peak_bytes(&dev), 551);
    assert_int_equal(small.blocks, 0);
    assert_null(dev.arenas);
}

static void fill(struct mm_device *dev) {
    struct mm_arena *first = mm_arena_create(dev), *gone = mm_arena_create(dev);
    struct mm_arena *last = mm_arena_create(dev), *dry = mm_arena_create_dry(dev);
    mm_arena_take(first, MM_FOR_WEIGHTS, 1, 2000);
    mm_arena_take(gone, MM_FOR_OPTIMIZER, 1, 9000);
    mm_arena_free(gone);
    mm_arena_take(dry, MM_FOR_GRADIENTS, 1, 100000);
    mm_arena_take(last, MM_FOR_BASE, 1, 3000);
    mm_arena_take(last, MM_FOR_WEIGHTS, 1, 500);
    mm_arena_take(last, MM_FOR_ACTIVATIONS, 1000, 6);
}

/* What `fill` says on stderr, in a process of its own; its exit status is returned. */
static int said_by_fill(struct mm_device *dev, char *text, size_t bytes) {
    int ends[2], status;
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        fill(dev);
        _exit(0);
    }
    close(ends[1]);
    size_t n = 0;
    for (ssize_t got = 1; got > 0 && n + 1 < bytes; n += (size_t)got) {
        got = read(ends[0], text + n, bytes - 1 - n);
        assert_true(got >= 0);
    }
    text[n] = '\0';
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void full_device(void **state) {
    (void)state;
    char text[2048];
    struct small_device small = {.left = 20000};
    struct mm_device dev = device_of(&small);
    assert_int_equal(said_by_fill(&dev, text, sizeof text), MM_FAILED);
    static const char said[] =
        "out of memory on small: no 6.00 kB more for activations. It would be activations 6.00 kB "
        "(try model.recompute: layer, or a lower data.micro_batch with unlearn.graph fresh or "
        "reuse), base (b) 3.00 kB (try more ranks or model.state_dtype: bfloat16), weights 2.50 kB "
        "(";
    if (!strstr(text, said))
        fail_msg("said     %s\n  expected %s", text, said);

    small.left = 20500 - 1;
    assert_int_equal(said_by_fill(&dev, text, sizeof text), MM_FAILED);
    small.left = 20500;
    assert_int_equal(said_by_fill(&dev, text, sizeof text), 0);
    assert_string_equal(text, "");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counts_and_peak),
        cmocka_unit_test(full_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
