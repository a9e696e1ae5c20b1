/* test_comm.c - what ranks do together in host memory, on any number of them. Sums are of integers,
 * so that they are exact, or of numbers that come out differently in any other order.
 *
 * A rank that failed alone would leave the others waiting: checks only note the first mistake, and
 * settle() ends every test on all ranks alike. */
#include "tests/unit/ranks_note.h"

#include "kernels/dry.h"
#include "kernels/queue.h"

#include <math.h>
#include <unistd.h>

/* Bytes that every (who, which) has different. */
static unsigned char byte_of(int who, size_t which) {
    return (unsigned char)((size_t)(who + 1) * 89 + which * 7 + which / 251);
}

/* -- places and rows --------------------------------------------------------------------------- */

static void places(void **state) {
    (void)state;
    NOTE(rank >= 0 && rank < size, "rank %d of %d", rank, size);
    int local = mm_comm_local_rank(comm), locals = mm_comm_local_size(comm);
    NOTE(locals >= 1 && locals <= size && local >= 0 && local < locals, "%d of %d", local, locals);
    const char *launched = getenv("OMPI_COMM_WORLD_SIZE");
    NOTE(!launched || atoi(launched) == size, "%s ranks were launched, not %d", launched, size);
    int *all = mm_calloc((size_t)size, sizeof *all);
    mm_comm_gather_all(comm, &rank, sizeof rank, all);
    for (int r = 0; r < size; r++)
        NOTE(all[r] == r, "rank %d says it is %d", r, all[r]);
    mm_free(all);
    settle();
}

static void row_blocks(void **state) {
    (void)state;
    for (size_t rows = 0; rows <= 70; rows++)
        for (int n = 1; n <= 40; n++) {
            size_t next = 0, c = mm_rows_block(rows, n);
            NOTE(c * (size_t)n >= rows && (rows == 0 || (c - 1) * (size_t)n < rows),
                 "%zu rows, %d ranks: blocks of %zu", rows, n, c);
            for (int r = 0; r < n; r++) {
                struct mm_rows own = mm_rows_of(rows, n, r);
                size_t left = rows - next;
                NOTE(own.first == next && own.count == (left < c ? left : c),
                     "%zu rows, %d ranks: rank %d has %zu from %zu", rows, n, r, own.count,
                     own.first);
                next += own.count;
            }
            NOTE(next == rows, "%zu rows, %d ranks: %zu given", rows, n, next);
        }
    settle();
}

/* -- decisions --------------------------------------------------------------------------------- */

static void any(void **state) {
    (void)state;
    NOTE(!mm_comm_any(comm, false), "any of none");
    NOTE(mm_comm_any(comm, true), "any of all");
    for (int r = 0; r < size; r++) {
        NOTE(mm_comm_any(comm, rank == r), "any of rank %d", r);
        NOTE(mm_comm_any(comm, rank != r) == (size > 1), "any of all but %d", r);
    }
    settle();
}

static void largest(void **state) {
    (void)state;
    for (int r = 0; r < size; r++) {
        double here = rank == r ? -0.5 : -3.0 - rank;
        NOTE(mm_comm_max(comm, here) == -0.5, "largest at %d", r);
        here = rank == r ? -1e300 : -INFINITY;
        NOTE(mm_comm_max(comm, here) == -1e300, "largest beside infinities at %d", r);
        here = rank == r ? INFINITY : 1;
        NOTE(mm_comm_max(comm, here) == INFINITY, "infinity at %d", r);
    }
    settle();
}

static const enum mm_status statuses[] = {MM_FAILED, MM_BAD_INPUT, MM_STOPPED, MM_REJECTED};

/* Every set of failing ranks: its lowest decides, and its words are heard by all. */
static void agree(void **state) {
    (void)state;
    for (unsigned failing = 0; failing < 1u << size; failing++) {
        struct mm_error err;
        enum mm_status mine = failing >> rank & 1 ? statuses[rank % 4] : MM_OK;
        int lowest = 0;
        while (lowest < size && !(failing >> lowest & 1))
            lowest++;
        memset(err.text, 0, sizeof err.text);
        snprintf(err.text, sizeof err.text, "rank %d of set %u", rank, failing);
        if (mine != MM_OK) /* to the last character */
            memset(err.text + strlen(err.text), 'a' + rank, sizeof err.text - strlen(err.text) - 1);
        enum mm_status got = mm_comm_agree(comm, mine, &err);
        NOTE(got == (failing ? statuses[lowest % 4] : MM_OK), "set %u: status %d", failing, got);
        char want[64];
        int length =
            snprintf(want, sizeof want, "rank %d of set %u", failing ? lowest : rank, failing);
        NOTE(strncmp(err.text, want, (size_t)length) == 0, "set %u: '%.40s'", failing, err.text);
        NOTE(strlen(err.text) == (failing ? sizeof err.text - 1 : (size_t)length),
             "set %u: %zu characters", failing, strlen(err.text));
    }
    settle();
}

/* -- bytes ------------------------------------------------------------------------------------- */

static void barrier(void **state) {
    (void)state;
    for (int late = 0; late < size; late++) {
        if (rank == late)
            usleep(30000);
        double in = mm_now();
        mm_comm_barrier(comm);
        double out = mm_now();
        mm_comm_broadcast(comm, late, &in, sizeof in);
        if (mm_comm_local_size(comm) == size) /* one machine, one clock */
            NOTE(out >= in, "left %.3f s before rank %d came", in - out, late);
    }
    settle();
}

static void broadcast(void **state) {
    (void)state;
    static const size_t sizes[] = {0, 1, 7, 4096, 300001};
    for (int root = 0; root < size; root++)
        for (size_t k = 0; k < 5; k++) {
            size_t n = sizes[k];
            unsigned char *data = mm_calloc(n + 1, 1);
            for (size_t i = 0; i <= n; i++)
                data[i] = byte_of(rank, i);
            mm_comm_broadcast(comm, root, data, n);
            for (size_t i = 0; i < n; i++)
                NOTE(data[i] == byte_of(root, i), "byte %zu of %zu from %d", i, n, root);
            NOTE(data[n] == byte_of(rank, n), "the byte behind %zu was written", n);
            mm_free(data);
        }
    settle();
}

static void gather_all(void **state) {
    (void)state;
    static const size_t sizes[] = {1, 7, 4096, 30001};
    for (size_t k = 0; k < 4; k++) {
        size_t n = sizes[k], total = n * (size_t)size;
        unsigned char *mine = mm_calloc(n, 1), *all = mm_calloc(total + 1, 1);
        for (size_t i = 0; i < n; i++)
            mine[i] = byte_of(rank, i);
        all[total] = 0x5a;
        mm_comm_gather_all(comm, mine, n, all);
        for (size_t i = 0; i < total; i++)
            NOTE(all[i] == byte_of((int)(i / n), i % n), "byte %zu of rank %zu", i % n, i / n);
        for (size_t i = 0; i < n; i++)
            NOTE(mine[i] == byte_of(rank, i), "byte %zu of one's own was written", i);
        NOTE(all[total] == 0x5a, "the byte behind %zu was written", total);
        mm_free(mine);
        mm_free(all);
    }
    settle();
}

/* -- sums -------------------------------------------------------------------------------------- */

/* In rank order they lose other digits than in any other order, and each `which` is another case.
 */
static double awkward(int who, size_t which, double big) {
    const double values[] = {big, 1, -big, 3, 1, -big / 2, big / 2};
    return values[((size_t)who * (1 + which % 3) + which) % 7];
}

static void sum_of_doubles(void **state) {
    (void)state;
    static const size_t counts[] = {0, 1, 3, 1000};
    for (size_t k = 0; k < 4; k++) {
        size_t n = counts[k];
        double *exact = mm_calloc(n + 1, sizeof *exact), *order = mm_calloc(n + 1, sizeof *order);
        for (size_t i = 0; i <= n; i++) {
            exact[i] = (double)(i * 1000 + (size_t)rank);
            order[i] = awkward(rank, i, 1e16);
        }
        mm_comm_sum(comm, exact, n);
        mm_comm_sum(comm, order, n);
        for (size_t i = 0; i < n; i++) {
            double want = awkward(0, i, 1e16), total = size * (double)(i * 1000);
            for (int r = 1; r < size; r++)
                want += awkward(r, i, 1e16);
            total += size * (size - 1) / 2.0;
            NOTE(exact[i] == total, "sum[%zu] is %g, not %g", i, exact[i], total);
            NOTE(order[i] == want, "sum[%zu] is %g in another order, not %g", i, order[i], want);
        }
        NOTE(exact[n] == (double)(n * 1000 + (size_t)rank), "what is behind was written");
        mm_free(exact);
        mm_free(order);
    }
    for (int r = 0; r < size; r++) {
        double value = rank == r ? NAN : 1;
        mm_comm_sum(comm, &value, 1);
        NOTE(isnan(value), "NaN of rank %d was lost", r);
    }
    settle();
}

/* What is watched and does end in its time goes on. */
static void watched(void **state) {
    (void)state;
    for (size_t k = 0; k < 3; k++) {
        double value = rank;
        mm_comm_watch_begin(comm, 60, "turn", k);
        mm_comm_barrier(comm);
        mm_comm_sum(comm, &value, 1);
        NOTE(value == size * (size - 1) / 2.0, "watched sum %g", value);
    }
    mm_comm_watch_end(comm);
    mm_comm_watch_begin(comm, 0, "turn", 3);
    mm_comm_barrier(comm);
    mm_comm_watch_end(comm);
    settle();
}

/* Everything is counted and nothing is done; then the job is as it was. */
static void pretend(void **state) {
    (void)state;
    double value = 3;
    int machines = mm_comm_machines(comm);
    size_t before = mm_comm_traffic(comm)->of[MM_WATCHED_SUM].calls;
    mm_comm_pretend(comm, 1000, (struct mm_links){.per_machine = 8});
    assert_int_equal(mm_comm_rank(comm), 0);
    assert_int_equal(mm_comm_size(comm), 1000);
    assert_int_equal(mm_comm_machines(comm), 125);
    mm_comm_sum(comm, &value, 1);
    mm_comm_barrier(comm);
    assert_true(value == 3);
    char *text = mm_traffic_text(mm_comm_traffic(comm));
    assert_string_equal(text, "1 sum of 8 bytes, 1 barrier");
    mm_free(text);
    mm_comm_pretend_end(comm);
    assert_int_equal(mm_comm_size(comm), size);
    assert_int_equal(mm_comm_machines(comm), machines);
    assert_int_equal(mm_comm_traffic(comm)->of[MM_WATCHED_SUM].calls, before);
    mm_comm_barrier(comm);
}

/* Four ranks on two machines: 3 steps of a ring, one of them between the machines. What crosses
 * beside the device is waited for as far as the device is early. */
static void pretended_time(void **state) {
    (void)state;
    struct mm_error err;
    const struct mm_links links = {.per_machine = 2,
                                   .inside = 100,
                                   .across = 12,
                                   .loss = 4,
                                   .buckets = {.start = 1, .inside = 2, .across = 5},
                                   .sums = {.start = 1},
                                   .beside = true};
    struct mm_device *dev =
        mm_device_create_dry(true, (struct mm_rates){.memory = 1, .start = 0.5});
    struct mm_clock *clock = mm_dry_clock(dev);
    struct mm_mat m = mm_mat((void *)64, MM_F32, 8, 1);
    double seconds = 1 + 2 * 2 + 5 + 32 * 3 / 4.0 / 8;
    mm_comm_pretend(comm, 4, links);
    assert_int_equal(mm_comm_attach(comm, dev, MM_TRANSPORT_AUTO, MM_F32, &err), MM_OK);
    mm_ticket first = mm_comm_gather_rows(comm, &m, 1), second = mm_comm_gather_rows(comm, &m, 1);
    assert_true(clock->now == 0);
    dev->queue->zero(dev, m.data, 6);
    assert_true(clock->now == 6.5 && clock->seconds[MM_ON_UPDATES] == 6.5);
    mm_comm_wait(comm, first);
    assert_true(clock->now == seconds && clock->seconds[MM_ON_GATHERS] == seconds - 6.5);
    mm_comm_wait(comm, second);
    assert_true(clock->now == 2 * seconds && clock->between_ranks == 2 * seconds);
    mm_comm_sum_device(comm, (double *)m.data, 2);
    assert_true(clock->seconds[MM_ON_SUMS] == 1 + 64 * 3 / 4.0 / 8);
    mm_comm_pretend_end(comm);
    mm_device_free(dev);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(places),    cmocka_unit_test(row_blocks), cmocka_unit_test(any),
        cmocka_unit_test(largest),   cmocka_unit_test(agree),      cmocka_unit_test(barrier),
        cmocka_unit_test(broadcast), cmocka_unit_test(gather_all), cmocka_unit_test(sum_of_doubles),
        cmocka_unit_test(watched),   cmocka_unit_test(pretend),    cmocka_unit_test(pretended_time),
    };
    alarm(120); /* ranks that wait for each other forever are a failure too */
    comm = mm_comm_create(&argc, &argv);
    rank = mm_comm_rank(comm);
    size = mm_comm_size(comm);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    mm_comm_free(comm);
    if (mm_live_blocks() != 0)
        fprintf(stderr, "%ld blocks were not freed\n", mm_live_blocks());
    return failed || mm_live_blocks() != 0;
}
