/* output.c - see output.h. */
#include "src/run/output.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void mm_output_begin(void) {
    /* open() takes the lowest free number. Standard output can then not be written: its end says
     * so. What goes to standard error is lost. */
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF)
            (void)open("/dev/null", fd == STDERR_FILENO ? O_WRONLY : O_RDONLY);
    signal(SIGPIPE, SIG_IGN);
}

enum mm_status mm_output_end(struct mm_error *err) {
    bool failed = ferror(stdout);
    errno = 0;
    failed = fflush(stdout) != 0 || failed;
    if (!failed)
        return MM_OK;
    return mm_fail(err, MM_FAILED, "cannot write to standard output%s%s", errno ? ": " : "",
                   errno ? strerror(errno) : "");
}
