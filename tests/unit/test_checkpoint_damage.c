/* test_checkpoint_damage.c - a checkpoint is never valid by half: every flipped byte, cut, and
 * missing part is seen; every system call of a write that can fail fails once; disks fill up. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io/checkpoint_format.h"
#include "io/files.h"
#include "tests/unit/checkpoint_state.h"
#include "tests/unit/faults.h"

static struct mm_comm *comm;
static char run_dir[] = "/tmp/test_damage.XXXXXX";
static struct mm_error err;

/* Faults ------------------------------------------------------------------------------------ */

static bool space_unknown; /* statvfs fails */

int fsync(int fd) {
    return fails(FSYNC, EIO) ? -1 : (int)syscall(SYS_fsync, fd);
}

int statvfs(const char *path, struct statvfs *disk) {
    int fd = space_unknown ? -1 : open(path, O_RDONLY);
    int result = fstatvfs(fd, disk);
    if (fd >= 0)
        close(fd);
    return result;
}

/* Checkpoints ------------------------------------------------------------------------------- */

static enum mm_status write_one(const char *dir, size_t loops, size_t keep) {
    struct mm_state state = state_make(loops, MM_F32, true, 1, 0);
    struct mm_checkpoint_info info = info_make(loops);
    enum mm_status status = mm_checkpoint_write(comm, dir, keep, &state, &info, &err);
    mm_checkpoint_info_free(&info);
    state_free(&state);
    return status;
}

/* The loops of the checkpoint found, whose values must be those; 0 if none. */
static size_t found(const char *dir) {
    char *folder;
    size_t loops = 0;
    struct mm_checkpoint_info info;
    if (mm_checkpoint_find(comm, dir, &folder, &info, &err) != MM_OK)
        return 0;
    struct mm_state want = state_make(info.loops, MM_F32, true, 1, 0);
    struct mm_state got = state_make(info.loops + 1, MM_F32, true, 1, 0);
    if (mm_checkpoint_read(comm, folder, &got, &err) == MM_OK && state_equal(&want, &got, 1, 0))
        loops = info.loops;
    state_free(&want);
    state_free(&got);
    mm_checkpoint_info_free(&info);
    mm_free(folder);
    return loops;
}

static const char *const files[] = {"part-00000.h5", "part-00001.h5", "part-00002.h5",
                                    MM_CHECKPOINT_WHOLE};

static int left_over(const char *dir) {
    char *path = mm_format("%s/checkpoints", dir);
    DIR *folder = opendir(path);
    int n = 0;
    for (struct dirent *entry; folder && (entry = readdir(folder));)
        n += strncmp(entry->d_name, ".w", 2) == 0;
    if (folder)
        closedir(folder);
    mm_free(path);
    return n;
}

/* Damage ------------------------------------------------------------------------------------ */

static void every_flip_is_seen(void **state) {
    (void)state;
    char *folder = write_three_parts(run_dir);
    for (size_t f = 0; f < 4; f++) {
        char *path = mm_format("%s/%s", folder, files[f]);
        unsigned char byte, flipped;
        struct stat info;
        int fd = open(path, O_RDWR);
        assert_int_equal(fstat(fd, &info), 0);
        assert_true(info.st_size > 2048);
        for (off_t at = 0; at < info.st_size; at += at < 2048 ? 1 : 37) {
            assert_int_equal(pread(fd, &byte, 1, at), 1);
            flipped = byte ^ (unsigned char)(1u << at % 8);
            assert_int_equal(pwrite(fd, &flipped, 1, at), 1);
            if (mm_checkpoint_verify(folder, NULL, &err) != MM_BAD_INPUT)
                fail_msg("%s: byte %lld", files[f], (long long)at);
            assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        }
        assert_non_null(strstr(err.text, files[f]));
        close(fd);
        mm_free(path);
    }
    assert_ok(mm_checkpoint_verify(folder, NULL, &err));
    mm_free(folder);
}

static void every_cut_is_seen(void **state) {
    (void)state;
    char *folder = write_three_parts(run_dir);
    for (size_t f = 0; f < 4; f++) {
        char *path = mm_format("%s/%s", folder, files[f]), *content;
        size_t bytes;
        assert_ok(mm_file_read(path, &content, &bytes, &err));
        for (size_t size = bytes - 1;; size = size * 2 / 3) {
            assert_int_equal(truncate(path, (off_t)size), 0);
            if (mm_checkpoint_verify(folder, NULL, &err) != MM_BAD_INPUT)
                fail_msg("%s: %zu bytes", files[f], size);
            if (size == 0)
                break;
        }
        /* Longer, too. */
        assert_ok(mm_file_write(path, content, bytes, &err));
        assert_int_equal(truncate(path, (off_t)bytes + 1), 0);
        assert_int_equal(mm_checkpoint_verify(folder, NULL, &err), MM_BAD_INPUT);
        assert_int_equal(unlink(path), 0);
        assert_int_equal(mm_checkpoint_verify(folder, NULL, &err), MM_BAD_INPUT);
        assert_non_null(strstr(err.text, files[f]));
        assert_ok(mm_file_write(path, content, bytes, &err));
        assert_ok(mm_checkpoint_verify(folder, NULL, &err));
        mm_free(content);
        mm_free(path);
    }
    mm_free(folder);
}

static void rubbish_is_tolerated(void **state) {
    (void)state;
    char *folder = write_three_parts(run_dir);
    const char *const rubbish[] = {"part-00003.h5", "notes.txt", ".nfs0001", "part-00000.h5.tmp"};
    for (size_t i = 0; i < 4; i++) {
        char *path = mm_format("%s/%s", folder, rubbish[i]);
        assert_ok(mm_file_write(path, "x", 1, &err));
        mm_free(path);
    }
    assert_ok(mm_checkpoint_verify(folder, NULL, &err));
    char *whole = mm_format("%s/%s", folder, MM_CHECKPOINT_WHOLE);
    assert_ok(mm_checkpoint_verify(whole, NULL, &err));
    mm_free(whole);
    mm_free(folder);
}

static void parts_of_another_checkpoint(void **state) {
    (void)state;
    assert_ok(write_one(run_dir, 10, 2));
    assert_ok(write_one(run_dir, 20, 2));
    char *from = mm_format("%s/checkpoints/10/part-00000.h5", run_dir);
    char *to = mm_format("%s/checkpoints/20/part-00000.h5", run_dir);
    assert_int_equal(rename(from, to), 0);
    assert_int_equal(found(run_dir), 0);
    mm_free(from);
    mm_free(to);
}

static void the_one_before_is_found(void **state) {
    (void)state;
    for (size_t loops = 10; loops <= 30; loops += 10)
        assert_ok(write_one(run_dir, loops, 3));
    assert_int_equal(found(run_dir), 30);
    char *part = mm_format("%s/checkpoints/30/part-00000.h5", run_dir);
    assert_int_equal(truncate(part, 5000), 0);
    assert_int_equal(found(run_dir), 20);
    mm_free(part);
    char *whole = mm_format("%s/checkpoints/20/checkpoint.h5", run_dir);
    assert_int_equal(unlink(whole), 0);
    assert_int_equal(found(run_dir), 10);
    mm_free(whole);
}

/* Without the hashes: HDF5 itself fills what is missing with NaN, and that is seen. */
static void missing_rows_are_nan(void **state) {
    (void)state;
    char *folder = write_three_parts(run_dir),
         *path = mm_format("%s/%s", folder, MM_CHECKPOINT_WHOLE);
    char *part = mm_format("%s/%s", folder, files[1]);
    struct mm_checkpoint_head head;
    float values[24 * 8];
    hid_t file;
    assert_ok(mm_checkpoint_head_read(&head, folder, &err));
    assert_int_equal(head.tensors[1].rows, 24);
    assert_int_equal(unlink(part), 0);
    assert_ok(mm_h5_open(&file, path, &err));
    assert_ok(mm_checkpoint_rows_read(&head, file, path, 0, &head.tensors[1],
                                      (struct mm_rows){0, 8}, values, &err));
    assert_int_equal(mm_checkpoint_rows_read(&head, file, path, 0, &head.tensors[1],
                                             (struct mm_rows){7, 2}, values, &err),
                     MM_BAD_INPUT);
    assert_non_null(strstr(err.text, "row 8, column 0 is NaN"));
    mm_h5_close(file);
    mm_checkpoint_head_free(&head);
    mm_free(part);
    mm_free(path);
    mm_free(folder);
}

/* Failing writes ---------------------------------------------------------------------------- */

static void every_call_fails_once(void **state) {
    (void)state;
    for (enum call call = FSYNC; call <= MKDIR; call++) {
        int k = 0;
        bool went_through = false;
        while (!went_through && k < 100) {
            mm_folder_remove(run_dir, &err);
            assert_ok(mm_folder_make(run_dir, &err));
            assert_ok(write_one(run_dir, 10, 2));
            assert_ok(write_one(run_dir, 20, 2));
            fault.call = call;
            fault.countdown = ++k;
            /* A replacement that also prunes. */
            enum mm_status status = write_one(run_dir, 20, 1);
            went_through = fault.countdown > 0;
            fault.call = NO_CALL;
            if (went_through)
                assert_ok(status);
            else if (status != MM_FAILED) /* only pruning failed; or a folder was there already */
                assert_true(status == MM_OK && (call == RENAME || call == MKDIR));
            assert_int_equal(left_over(run_dir), 0);
            if (found(run_dir) != 20)
                fail_msg("call %d, failing time %d", (int)call, k);
        }
        print_message("call %d: %d places\n", (int)call, k - 1);
        assert_true(k > 1 && k < 100);
        assert_ok(write_one(run_dir, 30, 1));
        assert_int_equal(found(run_dir), 30);
    }
}

static void full_disk(void **state) {
    (void)state;
    char *disk = mm_format("%s/disk", run_dir);
    assert_ok(mm_folder_make(disk, &err));
    if (mount("tmpfs", disk, "tmpfs", 0, "size=160k") != 0) {
        mm_free(disk);
        print_message("no right to mount a small disk: skipped\n");
        skip();
    }
    enum mm_status first = write_one(disk, 10, 9), looked = first, wrote = first;
    size_t loops;
    for (loops = 11; loops < 40 && looked == MM_OK; loops++)
        looked = write_one(disk, loops, 99);
    bool said = strstr(err.text, "no room") != NULL;
    size_t newest = loops - 2, found_then = found(disk);
    space_unknown = true; /* so that the write itself fails */
    for (int time = 0; time < 3; time++) {
        struct mm_state big = state_make(40, MM_F32, true, 1, 0);
        struct mm_checkpoint_info info = info_make(40);
        info.extra = mm_realloc(info.extra, 200001);
        memset(info.extra, 'x', 200000);
        info.extra[200000] = 0;
        wrote = mm_checkpoint_write(comm, disk, 99, &big, &info, &err);
        mm_checkpoint_info_free(&info);
        state_free(&big);
    }
    space_unknown = false;
    bool full = strstr(err.text, "No space left") != NULL;
    size_t found_last = found(disk);
    int rest = left_over(disk);
    umount(disk);
    mm_free(disk);
    assert_ok(first);
    assert_int_equal(looked, MM_FAILED);
    assert_true(said);
    assert_int_equal(found_then, newest);
    assert_int_equal(wrote, MM_FAILED);
    assert_true(full);
    assert_int_equal(found_last, newest);
    assert_int_equal(rest, 0);
}

static void file_size_limit(void **state) {
    (void)state;
    struct rlimit limit, small;
    assert_ok(write_one(run_dir, 10, 2));
    getrlimit(RLIMIT_FSIZE, &limit);
    signal(SIGXFSZ, SIG_IGN);
    for (rlim_t most = 0; most < 50000; most = most * 2 + 300) {
        small = limit;
        small.rlim_cur = most;
        setrlimit(RLIMIT_FSIZE, &small);
        enum mm_status status = write_one(run_dir, 20, 2);
        setrlimit(RLIMIT_FSIZE, &limit);
        assert_int_equal(status, MM_FAILED);
        assert_non_null(strstr(err.text, "ulimit"));
        assert_int_equal(found(run_dir), 10);
        assert_int_equal(left_over(run_dir), 0);
    }
    assert_ok(write_one(run_dir, 20, 2));
}

static void not_a_folder(void **state) {
    (void)state;
    char *file = mm_format("%s/checkpoints", run_dir);
    assert_ok(mm_file_write(file, "x", 1, &err));
    assert_int_equal(write_one(run_dir, 10, 2), MM_FAILED);
    assert_int_equal(found(run_dir), 0);
    mm_free(file);
}

static int begin(void **state) {
    (void)state;
    int failed = mm_folder_remove(run_dir, &err) || mm_folder_make(run_dir, &err);
    live_before = mm_live_blocks();
    return failed;
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        TEST(every_flip_is_seen),      TEST(every_cut_is_seen),
        TEST(rubbish_is_tolerated),    TEST(parts_of_another_checkpoint),
        TEST(the_one_before_is_found), TEST(missing_rows_are_nan),
        TEST(every_call_fails_once),   TEST(full_disk),
        TEST(file_size_limit),         TEST(not_a_folder),
    };
    if (!mkdtemp(run_dir))
        return 1;
    comm = mm_comm_create(&argc, &argv);
    mm_log_init(0, MM_LOG_ERROR);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    failed += mm_folder_remove(run_dir, &err) != MM_OK;
    mm_comm_free(comm);
    return failed != 0 || mm_live_blocks() != 0;
}
