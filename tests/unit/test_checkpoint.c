/* test_checkpoint.c - checkpoints: what one rank writes is read back bit for bit; parts of several
 * ranks are one whole; the right one is found, kept, replaced. Damage and full disks:
 * test_checkpoint_damage.c.
 *
 * Under mpirun, for tests/unit/ranks_checkpoint.sh:
 *   test_checkpoint write DIR            two checkpoints of each dtype, 10 and 20 loops
 *   test_checkpoint read DIR [LOOPS]     finds LOOPS (20) of each, whatever the number of ranks
 *   test_checkpoint fail DIR RANK        writes 30 loops where only RANK's disk is full */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io/checkpoint_format.h"
#include "io/files.h"
#include "tests/unit/checkpoint_state.h"

static struct mm_comm *comm;
static char run_dir[] = "/tmp/test_checkpoint.XXXXXX";
static struct mm_error err;

static bool disk_is_full;

/* In place of the C library's, for the files of this program; HDF5 writes by pwrite. */
ssize_t write(int fd, const void *data, size_t bytes) {
    if (disk_is_full && fd > 2 && syscall(SYS_gettid) == getpid()) {
        errno = ENOSPC;
        return -1;
    }
    return syscall(SYS_write, fd, data, bytes);
}

static enum mm_status write_one(const char *dir, size_t loops, size_t keep, enum mm_dtype dtype,
                                bool adversary) {
    struct mm_state state =
        state_make(loops, dtype, adversary, mm_comm_size(comm), mm_comm_rank(comm));
    struct mm_checkpoint_info info = info_make(loops);
    enum mm_status status = mm_checkpoint_write(comm, dir, keep, &state, &info, &err);
    mm_checkpoint_info_free(&info);
    state_free(&state);
    return status;
}

/* 0 if a checkpoint of `loops` is found and holds what write_one wrote. */
static int read_one(const char *dir, size_t loops, enum mm_dtype dtype, bool adversary) {
    int size = mm_comm_size(comm), rank = mm_comm_rank(comm), wrong = 0;
    char *folder;
    struct mm_checkpoint_info info, expected = info_make(loops);
    struct mm_state want = state_make(loops, dtype, adversary, size, rank);
    struct mm_state got = state_make(loops + 1, dtype, adversary, size, rank);
    enum mm_status status = mm_checkpoint_find(comm, dir, &folder, &info, &err);
    if (status == MM_OK && !info_equal(&info, &expected))
        status = mm_fail(&err, MM_FAILED, "loops %zu, expected %zu", info.loops, loops);
    if (status == MM_OK)
        status = mm_checkpoint_read(comm, folder, &got, &err);
    if (status == MM_OK && !state_equal(&want, &got, size, rank))
        status = mm_fail(&err, MM_FAILED, "other values than were written");
    if (status != MM_OK) {
        fprintf(stderr, "rank %d of %d: %s: %s\n", rank, size, dir, err.text);
        wrong = 1;
    }
    state_free(&got);
    state_free(&want);
    mm_checkpoint_info_free(&expected);
    mm_checkpoint_info_free(&info);
    mm_free(folder);
    return wrong;
}

/* A checkpoint as `ranks` ranks write it, from this one. */
static void write_parts(const char *folder, size_t loops, int ranks, enum mm_dtype dtype) {
    struct mm_checkpoint_info info = info_make(loops);
    char(*hashes)[33] = mm_calloc((size_t)ranks, sizeof *hashes);
    assert_ok(mm_folder_make(folder, &err));
    for (int r = ranks; r-- > 0;) {
        struct mm_state state = state_make(loops, dtype, true, ranks, r);
        struct mm_checkpoint_job job = {.folder = folder,
                                        .state = &state,
                                        .info = &info,
                                        .rank = r,
                                        .size = ranks,
                                        .hashes = hashes};
        assert_ok(mm_checkpoint_part_write(&job, hashes[r], &err));
        if (r == 0)
            assert_ok(mm_checkpoint_whole_write(&job, &err));
        state_free(&state);
    }
    mm_free(hashes);
    mm_checkpoint_info_free(&info);
}

static char *in_run(const char *name) {
    return mm_format("%s/checkpoints/%s", run_dir, name);
}

static bool exists(const char *name) {
    char *path = in_run(name);
    bool there = mm_path_exists(path);
    mm_free(path);
    return there;
}

static void make(const char *name) {
    char *path = in_run(name);
    assert_ok(mm_folder_make(path, &err));
    mm_free(path);
}

static void move(const char *from, const char *to) {
    char *a = in_run(from), *b = in_run(to);
    assert_int_equal(rename(a, b), 0);
    mm_free(a);
    mm_free(b);
}

/* Tests of one rank ------------------------------------------------------------------------- */

static void round_trip(void **state) {
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        enum mm_dtype dtype = kind % 2 ? MM_BF16 : MM_F32;
        assert_ok(write_one(run_dir, 7, 1, dtype, kind < 2));
        assert_int_equal(read_one(run_dir, 7, dtype, kind < 2), 0);
    }
}

static void same_state_same_bytes(void **state) {
    (void)state;
    char hash[2][2][33];
    for (int time = 0; time < 2; time++) {
        assert_ok(write_one(run_dir, 7, 1, MM_F32, true));
        char *part = in_run("7/part-00000.h5"), *whole = in_run("7/" MM_CHECKPOINT_WHOLE);
        assert_ok(mm_file_hash(part, 0, hash[time][0], &err));
        assert_ok(mm_file_hash(whole, 0, hash[time][1], &err));
        mm_free(part);
        mm_free(whole);
        if (time == 0)
            sleep(1); /* a time stamp would differ now */
    }
    assert_memory_equal(hash[0], hash[1], sizeof hash[0]);
}

static void parts_are_one_whole(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= 30; ranks++) {
        char *folder = in_run("7");
        enum mm_dtype dtype = ranks % 2 ? MM_BF16 : MM_F32;
        mm_folder_remove(folder, &err);
        write_parts(folder, 7, ranks, dtype);
        assert_int_equal(read_one(run_dir, 7, dtype, true), 0);
        mm_free(folder);
    }
}

/* HDF5 would keep all parts open at once. */
static void more_parts_than_open_files(void **state) {
    (void)state;
    struct rlimit limit, small;
    char *folder = in_run("7");
    getrlimit(RLIMIT_NOFILE, &limit);
    small = limit;
    small.rlim_cur = 150;
    struct mm_state one = {.tensors_n = 1, .dtype = MM_F32};
    struct mm_state_tensor tensor = {.name = "t", .rows = 400, .cols = 1};
    float values[400], got[400], acc[400];
    struct mm_checkpoint_info info = info_make(7);
    char(*hashes)[33] = mm_calloc(400, sizeof *hashes);
    one.tensors = &tensor;
    assert_ok(mm_folder_make(folder, &err));
    for (int r = 400; r-- > 0;) {
        struct mm_checkpoint_job job = {folder, &one, &info, r, 400, hashes};
        values[r] = (float)r;
        tensor.own[MM_GROUP_BASE] = tensor.own[MM_GROUP_RETAIN_ACC] = &values[r];
        assert_ok(mm_checkpoint_part_write(&job, hashes[r], &err));
        if (r == 0)
            assert_ok(mm_checkpoint_whole_write(&job, &err));
    }
    tensor.own[MM_GROUP_BASE] = got;
    tensor.own[MM_GROUP_RETAIN_ACC] = acc;
    setrlimit(RLIMIT_NOFILE, &small);
    assert_ok(mm_checkpoint_read(comm, folder, &one, &err));
    setrlimit(RLIMIT_NOFILE, &limit);
    assert_memory_equal(got, values, sizeof values);
    assert_memory_equal(acc, values, sizeof values);
    mm_free(hashes);
    mm_checkpoint_info_free(&info);
    mm_free(folder);
}

static void can_be_moved(void **state) {
    (void)state;
    char *moved = mm_format("%s.moved", run_dir), *folder = in_run("7"), *before = getcwd(NULL, 0);
    write_parts(folder, 7, 3, MM_F32);
    assert_int_equal(rename(run_dir, moved), 0);
    assert_int_equal(chdir("/"), 0);
    int wrong = read_one(moved, 7, MM_F32, true);
    assert_int_equal(chdir(moved), 0);
    wrong += read_one(".", 7, MM_F32, true);
    assert_int_equal(chdir(before), 0);
    assert_int_equal(rename(moved, run_dir), 0);
    free(before);
    mm_free(folder);
    mm_free(moved);
    assert_int_equal(wrong, 0);
}

static void long_and_missing_texts(void **state) {
    (void)state;
    struct mm_state some = state_make(7, MM_F32, false, 1, 0);
    struct mm_checkpoint_info info = {.loops = 7, .config = mm_calloc(300001, 1)}, got;
    char *folder = in_run("7");
    memset(info.config, 'x', 300000);
    assert_ok(mm_checkpoint_write(comm, run_dir, 1, &some, &info, &err));
    assert_ok(mm_checkpoint_verify(folder, &got, &err));
    assert_string_equal(got.config, info.config);
    assert_string_equal(got.extra, "");
    assert_string_equal(got.weights_hash, "");
    mm_checkpoint_info_free(&got);
    mm_checkpoint_info_free(&info);
    mm_free(folder);
    state_free(&some);
}

static void keeps_the_newest(void **state) {
    (void)state;
    make("24x");
    make("024");
    make("-3");
    make(".writing-5"); /* left by crashes */
    make(".removed-5");
    for (size_t loops = 8; loops <= 11; loops++)
        assert_ok(write_one(run_dir, loops, 2, MM_F32, true));
    assert_false(exists("8") || exists("9") || exists(".writing-5") || exists(".removed-5"));
    assert_true(exists("10") && exists("11") && exists("24x") && exists("024") && exists("-3"));
    assert_int_equal(read_one(run_dir, 11, MM_F32, true), 0);

    /* Back to loop 9 (10 and 11 are not this run's any more): what was written stays. */
    assert_ok(write_one(run_dir, 9, 1, MM_F32, true));
    assert_true(exists("9") && exists("10") && exists("11"));
    assert_ok(write_one(run_dir, 12, 0, MM_F32, true));
    assert_false(exists("9") || exists("10") || exists("11"));
    assert_true(exists("12"));
}

static void replaces(void **state) {
    (void)state;
    assert_ok(write_one(run_dir, 7, 2, MM_F32, true));
    assert_ok(write_one(run_dir, 7, 2, MM_BF16, false));
    assert_int_equal(read_one(run_dir, 7, MM_BF16, false), 0);
    assert_false(exists(".replaced-7") || exists(".writing-7"));

    /* A crash between the two renames: the older one comes back. */
    move("7", ".replaced-7");
    assert_ok(write_one(run_dir, 6, 2, MM_F32, true));
    assert_int_equal(read_one(run_dir, 7, MM_BF16, false), 0);
    /* And one after them. */
    make(".replaced-7");
    assert_ok(write_one(run_dir, 6, 2, MM_F32, true));
    assert_false(exists(".replaced-7"));
    assert_int_equal(read_one(run_dir, 7, MM_BF16, false), 0);
}

static void finds_none(void **state) {
    (void)state;
    char *folder;
    struct mm_checkpoint_info info;
    assert_int_equal(mm_checkpoint_find(comm, run_dir, &folder, &info, &err), MM_BAD_INPUT);
    make("8");
    assert_int_equal(mm_checkpoint_find(comm, run_dir, &folder, &info, &err), MM_BAD_INPUT);
    assert_non_null(strstr(err.text, "checkpoints/8/checkpoint.h5"));
    assert_ok(write_one(run_dir, 7, 1, MM_F32, true));
    assert_int_equal(read_one(run_dir, 7, MM_F32, true), 0);
    move("7", "9"); /* not what it says */
    assert_int_equal(mm_checkpoint_find(comm, run_dir, &folder, &info, &err), MM_BAD_INPUT);
    assert_null(folder);
}

static void expect_other(struct mm_state *other, const char *words) {
    char *folder = in_run("7");
    assert_int_equal(mm_checkpoint_read(comm, folder, other, &err), MM_BAD_INPUT);
    if (!strstr(err.text, words))
        fail_msg("'%s' does not say '%s'", err.text, words);
    mm_free(folder);
}

static void other_models(void **state) {
    (void)state;
    assert_ok(write_one(run_dir, 7, 1, MM_F32, true));
    struct mm_state other = state_make(7, MM_F32, true, 1, 0);
    other.tensors_n--;
    expect_other(&other, "holds tensor 'a two rows'");
    other.tensors_n++;
    other.tensors[1].name[0] = 'M';
    expect_other(&other, "holds no tensor 'Model.layers.1");
    other.tensors[1].name[0] = 'm';
    other.tensors[2].rows = 8;
    other.tensors[2].cols = 24;
    expect_other(&other, "is [24, 8] there and [8, 24] here");
    state_free(&other);
    other = state_make(7, MM_F32, false, 1, 0);
    expect_other(&other, "has an adversary there but none here");
    state_free(&other);
    other = state_make(7, MM_BF16, true, 1, 0);
    expect_other(&other, "float32 there and of bfloat16 here");
    assert_ok(write_one(run_dir, 7, 1, MM_BF16, true));
    void **slot = &other.tensors[3].own[MM_GROUP_FORGET_ACC], *acc = *slot;
    *slot = NULL;
    expect_other(&other, "tensor 'one_row' has a forget accumulator there but none here");
    *slot = acc;
    state_free(&other);
    assert_ok(write_one(run_dir, 7, 1, MM_F32, false));
    other = state_make(7, MM_F32, true, 1, 0);
    expect_other(&other, "has no adversary there but one here");
    state_free(&other);
}

static int begin(void **state) {
    (void)state;
    char *checkpoints = mm_format("%s/checkpoints", run_dir);
    int failed = mm_folder_remove(checkpoints, &err);
    mm_free(checkpoints);
    live_before = mm_live_blocks();
    return failed;
}

static int test_one_rank(void) {
    const struct CMUnitTest tests[] = {
        TEST(round_trip),          TEST(same_state_same_bytes),
        TEST(parts_are_one_whole), TEST(more_parts_than_open_files),
        TEST(can_be_moved),        TEST(long_and_missing_texts),
        TEST(keeps_the_newest),    TEST(replaces),
        TEST(finds_none),          TEST(other_models),
    };
    if (!mkdtemp(run_dir))
        return 1;
    mm_log_init(0, MM_LOG_ERROR);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return failed + (mm_folder_remove(run_dir, &err) != MM_OK);
}

/* Under mpirun ------------------------------------------------------------------------------ */

static int test_ranks(const char *mode, const char *dir, size_t number) {
    int wrong = 0;
    mm_log_init(mm_comm_rank(comm), MM_LOG_WARN);
    for (int kind = 0; kind < 2; kind++) {
        char *sub = mm_format("%s/%s", dir, kind ? "bfloat16" : "float32");
        enum mm_dtype dtype = kind ? MM_BF16 : MM_F32;
        if (strcmp(mode, "read") == 0) {
            wrong += read_one(sub, number, dtype, kind == 0);
        } else if (strcmp(mode, "write") == 0) {
            wrong += write_one(sub, 10, 2, dtype, kind == 0) != MM_OK;
            wrong += write_one(sub, 20, 2, dtype, kind == 0) != MM_OK;
        } else {
            disk_is_full = (size_t)mm_comm_rank(comm) == number;
            wrong += write_one(sub, 30, 2, dtype, kind == 0) != MM_FAILED;
            disk_is_full = false;
            wrong += !strstr(err.text, "No space left");
        }
        mm_free(sub);
    }
    wrong += H5Fget_obj_count(H5F_OBJ_ALL, H5F_OBJ_ALL) != 0;
    return wrong;
}

int main(int argc, char **argv) {
    comm = mm_comm_create(&argc, &argv);
    int failed = argc > 2 ? test_ranks(argv[1], argv[2], argc > 3 ? strtoul(argv[3], NULL, 10) : 20)
                          : test_one_rank();
    mm_comm_free(comm);
    return failed != 0 || mm_live_blocks() != 0;
}
