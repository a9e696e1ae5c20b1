/* progress.h - one line that says where a phase stands: rewritten on a terminal, plain lines now
 * and then elsewhere. Only rank 0 prints. All functions local. */
#ifndef MM_PROGRESS_H
#define MM_PROGRESS_H

#include "src/base/base.h"

struct mm_progress {
    const char *phase, *unit;
    size_t done, total, first; /* first: where this process began (a resume) */
    double started, printed;
    bool speaks, terminal;
};

struct mm_progress mm_progress_start(int rank, const char *phase, const char *unit, size_t first,
                                     size_t total);
/* After step `done`; the rest is the losses, as printf. */
void mm_progress_step(struct mm_progress *progress, size_t done, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Leaves the line. */
void mm_progress_end(struct mm_progress *progress);

#endif
