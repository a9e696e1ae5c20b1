/* progress.c - see progress.h. */
#include "src/run/progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#define TERMINAL_SECONDS 0.1
#define PLAIN_SECONDS    10.0

struct mm_progress mm_progress_start(int rank, const char *phase, const char *unit, size_t first,
                                     size_t total) {
    return (struct mm_progress){.phase = phase,
                                .unit = unit,
                                .done = first,
                                .total = total,
                                .first = first,
                                .started = mm_now(),
                                .printed = -1,
                                .speaks = rank == 0,
                                .terminal = isatty(STDERR_FILENO)};
}

static void duration(char text[48], double seconds) {
    long s = (long)(seconds + 0.5);
    if (s >= 3600)
        snprintf(text, 48, "%ldh%02ldm", s / 3600, s / 60 % 60);
    else
        snprintf(text, 48, "%ldm%02lds", s / 60, s % 60);
}

void mm_progress_step(struct mm_progress *p, size_t done, const char *format, ...) {
    double now = mm_now(), every = p->terminal ? TERMINAL_SECONDS : PLAIN_SECONDS;
    p->done = done;
    if (!p->speaks || (p->printed >= 0 && now - p->printed < every && done != p->total))
        return;
    p->printed = now;
    char losses[256], left[48];
    va_list args;
    va_start(args, format);
    vsnprintf(losses, sizeof losses, format, args);
    va_end(args);
    double rate = (double)(done - p->first) / (now - p->started + 1e-9);
    duration(left, (double)(p->total - done) / (rate + 1e-9));
    fprintf(stderr, "%s%s %s %zu/%zu  %s  %.3g %ss/s  %s left%s", p->terminal ? "\r" : "", p->phase,
            p->unit, done, p->total, losses, rate, p->unit, left, p->terminal ? "\033[K" : "\n");
}

void mm_progress_end(struct mm_progress *p) {
    if (p->speaks && p->terminal && p->printed >= 0)
        fputc('\n', stderr);
}
