/* test_saver.c - checkpoints written by a thread while the caller goes on: the bytes are those of
 * mm_checkpoint_write, what fails in the thread is heard by every rank, and what stood before
 * stays. The same tests on several ranks, under mpirun: then the last one's disk is the bad one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io/checkpoint_format.h"
#include "io/files.h"
#include "io/saver.h"
#include "tests/unit/checkpoint_state.h"
#include "tests/unit/faults.h"

static struct mm_comm *comm;
static char run_dir[] = "/tmp/test_saver.XXXXXX";
static struct mm_error err;
static int rank, size;

/* Faults ------------------------------------------------------------------------------------ */

static atomic_bool hold;  /* fsync in a thread waits while this is set */
static atomic_int synced; /* how often a thread came to fsync */

int fsync(int fd) {
    bool writer = in_threads(OTHER_THREADS);
    if (writer)
        atomic_fetch_add(&synced, 1);
    while (writer && atomic_load(&hold))
        usleep(1000);
    return fails(FSYNC, EDQUOT) ? -1 : (int)syscall(SYS_fsync, fd);
}

/* Saves ------------------------------------------------------------------------------------- */

static char *place(const char *name) {
    return mm_format("%s/%s", run_dir, name);
}

/* A save by a thread, polled as loops do it. */
static enum mm_status save(const char *dir, size_t loops, size_t keep, struct mm_metrics *metrics) {
    struct mm_saver *saver = mm_saver_create(comm, dir, keep);
    struct mm_state state = state_make(loops, MM_F32, true, size, rank);
    struct mm_checkpoint_info info = info_make(loops);
    enum mm_status status = mm_saver_start(saver, &state, &info, metrics, &err);
    assert_null(info.config);
    for (int i = 0; status == MM_OK && mm_saver_busy(saver); i++) {
        usleep(500);
        status = i > 2000 ? mm_saver_wait(saver, &err) : mm_saver_poll(saver, &err);
    }
    assert_false(mm_saver_busy(saver));
    mm_saver_free(saver);
    state_free(&state);
    return status;
}

static enum mm_status write_at_once(const char *dir, size_t loops, size_t keep) {
    struct mm_state state = state_make(loops, MM_F32, true, size, rank);
    struct mm_checkpoint_info info = info_make(loops);
    enum mm_status status = mm_checkpoint_write(comm, dir, keep, &state, &info, &err);
    mm_checkpoint_info_free(&info);
    state_free(&state);
    return status;
}

/* The loops of the checkpoint found, whose values must be those; 0 if none. */
static size_t found(const char *dir) {
    char *folder;
    struct mm_checkpoint_info info;
    if (mm_checkpoint_find(comm, dir, &folder, &info, &err) != MM_OK)
        return 0;
    struct mm_state want = state_make(info.loops, MM_F32, true, size, rank);
    struct mm_state got = state_make(info.loops + 1, MM_F32, true, size, rank);
    assert_ok(mm_checkpoint_read(comm, folder, &got, &err));
    assert_true(state_equal(&want, &got, size, rank));
    size_t loops = info.loops;
    state_free(&want);
    state_free(&got);
    mm_checkpoint_info_free(&info);
    mm_free(folder);
    return loops;
}

static bool exists(const char *name) {
    char *path = place(name);
    bool there = mm_path_exists(path);
    mm_free(path);
    return there;
}

static void expect_same_file(const char *name) {
    char *a = mm_format("%s/one/checkpoints/7/%s", run_dir, name), hash[2][33];
    char *b = mm_format("%s/other/checkpoints/7/%s", run_dir, name);
    assert_ok(mm_file_hash(a, 0, hash[0], &err));
    assert_ok(mm_file_hash(b, 0, hash[1], &err));
    assert_string_equal(hash[0], hash[1]);
    mm_free(a);
    mm_free(b);
}

/* Tests ------------------------------------------------------------------------------------- */

static void same_bytes_as_at_once(void **state) {
    (void)state;
    char *one = place("one"), *other = place("other"), part[32];
    assert_ok(save(one, 7, 2, NULL));
    assert_ok(write_at_once(other, 7, 2));
    for (int r = 0; r < size; r++) {
        mm_checkpoint_part_name(part, r);
        expect_same_file(part);
    }
    expect_same_file(MM_CHECKPOINT_WHOLE);
    assert_int_equal(found(one), 7);
    mm_free(one);
    mm_free(other);
}

static void keeps_the_newest(void **state) {
    (void)state;
    for (size_t loops = 8; loops <= 10; loops++)
        assert_ok(save(run_dir, loops, 2, NULL));
    assert_false(exists("checkpoints/8"));
    assert_true(exists("checkpoints/9"));
    assert_int_equal(found(run_dir), 10);
}

/* While the disk takes its time, start and poll return, and nothing counts as saved. */
static void nobody_waits_for_the_disk(void **state) {
    (void)state;
    struct mm_saver *saver = mm_saver_create(comm, run_dir, 2);
    struct mm_state some = state_make(7, MM_F32, true, size, rank);
    struct mm_checkpoint_info info = info_make(7);
    int before = atomic_load(&synced);
    atomic_store(&hold, true);
    assert_ok(mm_saver_start(saver, &some, &info, NULL, &err));
    while (atomic_load(&synced) == before)
        usleep(1000);
    for (int i = 0; i < 20; i++) {
        assert_ok(mm_saver_poll(saver, &err));
        assert_true(mm_saver_busy(saver));
        assert_false(exists("checkpoints/7"));
    }
    mm_comm_barrier(comm);
    atomic_store(&hold, false);
    assert_ok(mm_saver_wait(saver, &err));
    assert_false(mm_saver_busy(saver));
    assert_ok(mm_saver_wait(saver, &err)); /* of nothing */
    mm_saver_free(saver);
    state_free(&some);
    assert_int_equal(found(run_dir), 7);
}

/* Every call of the last rank's thread that can fail fails once. */
static void every_call_fails_once(void **state) {
    (void)state;
    for (enum call call = FSYNC; call < CALLS; call++) {
        int k = 0;
        for (bool through = false; !through;) {
            mm_comm_barrier(comm);
            if (rank == 0)
                assert_ok(mm_folder_remove(run_dir, &err));
            mm_comm_barrier(comm);
            assert_ok(write_at_once(run_dir, 10, 2));
            assert_ok(write_at_once(run_dir, 20, 2));
            atomic_store(&fault.countdown, ++k);
            fault.call = rank == size - 1 ? call : NO_CALL;
            enum mm_status status = save(run_dir, 30, 1, NULL); /* prunes, too */
            through = !mm_comm_any(comm, rank == size - 1 && atomic_load(&fault.countdown) <= 0);
            fault.call = NO_CALL;
            assert_true(k < 100);
            if (through)
                assert_ok(status);
            if (status == MM_OK) {
                assert_int_equal(found(run_dir), 30);
            } else { /* what stood before stands; the very last sync comes after the rename */
                size_t newest = found(run_dir);
                assert_int_equal(status, MM_FAILED);
                assert_true(newest == 20 || (newest == 30 && call == FSYNC));
                assert_true(exists("checkpoints/10"));
            }
            assert_false(exists("checkpoints/.writing-30"));
        }
        if (rank == 0)
            print_message("call %d: %d places\n", (int)call, k - 1);
        assert_true(k > 1);
    }
}

static void wait_for(const char *name) {
    while (!exists(name))
        usleep(200);
}

/* Removed by somebody between the parts and the whole: it does not count, and nothing is pruned. */
static void vanished_parts(void **state) {
    (void)state;
    char part[32], *name, *path;
    assert_ok(write_at_once(run_dir, 10, 9));
    struct mm_saver *saver = mm_saver_create(comm, run_dir, 1);
    struct mm_state some = state_make(20, MM_F32, true, size, rank);
    struct mm_checkpoint_info info = info_make(20);
    mm_checkpoint_part_name(part, size - 1);
    name = mm_format("checkpoints/.writing-20/%s", part);
    path = place(name);
    assert_ok(mm_saver_start(saver, &some, &info, NULL, &err));
    wait_for(name);
    mm_comm_barrier(comm);
    if (rank == 0)
        assert_ok(mm_folder_remove(path, &err));
    assert_int_equal(mm_saver_wait(saver, &err), MM_FAILED);
    assert_non_null(strstr(err.text, part));
    mm_saver_free(saver);
    state_free(&some);
    assert_int_equal(found(run_dir), 10);
    mm_free(path);
    mm_free(name);
}

/* A checkpoint that says how long the metrics are counts when they are on disk. */
static void metrics_come_first(void **state) {
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0); /* which nobody can sync */
    struct mm_metrics *metrics = rank == 0 ? mm_metrics_on(ends[1], "a pipe") : NULL;
    assert_ok(write_at_once(run_dir, 10, 2));
    assert_int_equal(save(run_dir, 20, 2, metrics), MM_FAILED);
    assert_non_null(strstr(err.text, "a pipe"));
    assert_int_equal(found(run_dir), 10);
    mm_metrics_free(metrics);
    close(ends[0]);
    if (rank != 0)
        close(ends[1]);
}

static void hdf5_belongs_to_the_thread(void **state) {
    (void)state;
    pid_t child = fork();
    if (child == 0) {
        int null = open("/dev/null", O_WRONLY);
        dup2(null, 2);
        mm_set_abort_hook(NULL);
        mm_h5_lend(MM_H5_THEIRS);
        mm_h5_settle();
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == MM_FAILED);
    mm_h5_settle();
}

static int begin(void **state) {
    (void)state;
    mm_comm_barrier(comm);
    int failed = rank == 0 && (mm_folder_remove(run_dir, &err) || mm_folder_make(run_dir, &err));
    mm_comm_barrier(comm);
    live_before = mm_live_blocks();
    return failed;
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        TEST(same_bytes_as_at_once),      TEST(keeps_the_newest), TEST(nobody_waits_for_the_disk),
        TEST(every_call_fails_once),      TEST(vanished_parts),   TEST(metrics_come_first),
        TEST(hdf5_belongs_to_the_thread),
    };
    fault.threads = OTHER_THREADS;
    comm = mm_comm_create(&argc, &argv);
    rank = mm_comm_rank(comm);
    size = mm_comm_size(comm);
    if (rank == 0 && !mkdtemp(run_dir))
        return 1;
    mm_comm_broadcast(comm, 0, run_dir, sizeof run_dir);
    mm_log_init(rank, MM_LOG_ERROR);
    mm_comm_sum(comm, &(double){0}, 1); /* takes memory of its own once */
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    mm_comm_barrier(comm);
    failed += rank == 0 && mm_folder_remove(run_dir, &err) != MM_OK;
    mm_comm_free(comm);
    return failed != 0 || mm_live_blocks() != 0;
}
