/* faults.h - system calls that fail when a test says so.
 *
 * The following stand in for the C library's, for the files of this program. HDF5 calls none of
 * them: it writes by pwrite. The test defines fsync itself, by `fails`. */
#ifndef MM_TEST_FAULTS_H
#define MM_TEST_FAULTS_H

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Of the calls of the kind `call` that the first thread makes, or the other ones, the one at which
 * `countdown` reaches 0 fails. */
enum call { NO_CALL, FSYNC, RENAME, WRITE, MKDIR, CALLS };
enum threads { FIRST_THREAD, OTHER_THREADS };
static struct {
    enum call call;
    enum threads threads;
    atomic_int countdown;
} fault;

static inline bool in_threads(enum threads threads) {
    return (syscall(SYS_gettid) == getpid()) == (threads == FIRST_THREAD);
}

static inline bool fails(enum call call, int reason) {
    if (fault.call != call || !in_threads(fault.threads) ||
        atomic_fetch_sub(&fault.countdown, 1) != 1)
        return false;
    errno = reason;
    return true;
}

int rename(const char *from, const char *to) {
    return fails(RENAME, EROFS) ? -1 : (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

/* MPI writes too, but not to regular files. */
ssize_t write(int fd, const void *data, size_t bytes) {
    struct stat info;
    bool file = fault.call == WRITE && fd > 2 && fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
    return file && fails(WRITE, ENOSPC) ? -1 : syscall(SYS_write, fd, data, bytes);
}

int mkdir(const char *path, mode_t mode) {
    return fails(MKDIR, EROFS) ? -1 : (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}

#endif
