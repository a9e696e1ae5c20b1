/* base.c - see base.h. The only mutable state of the process lives here: who logs, how much, the
 * abort hook, and the count of live blocks. */
#include "src/base/base.h"

#include <malloc.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static struct {
    int rank;
    enum mm_log_level level;
    void (*abort_hook)(int);
    atomic_long live;
} process = {.level = MM_LOG_INFO};

enum mm_status mm_fail(struct mm_error *err, enum mm_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    for (char *c = err->text; *c; c++) /* names in files may hold anything */
        *c = (unsigned char)*c < 0x20 || *c == 0x7f ? '?' : *c;
    return status;
}

void mm_set_abort_hook(void (*hook)(int)) {
    process.abort_hook = hook;
}

void mm_abort(enum mm_status status, const char *file, int line, const char *expression,
              const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "mudman-mpi: rank %d: %s:%d: %s (%s)\n", process.rank, file, line, text,
            expression);
    if (process.abort_hook)
        process.abort_hook(status);
    _exit(status);
}

void mm_log_init(int rank, enum mm_log_level level) {
    process.rank = rank;
    process.level = level;
}

enum mm_log_level mm_log_set(enum mm_log_level level) {
    enum mm_log_level before = process.level;
    process.level = level;
    return before;
}

static void log_line(enum mm_log_level level, const char *format, va_list args) {
    static const char *const names[] = {"error: ", "warning: ", "", "debug: "};
    if (level > process.level)
        return;
    char text[2048];
    int used = snprintf(text, sizeof text, "%s", names[level]);
    vsnprintf(text + used, sizeof text - (size_t)used, format, args);
    fprintf(stderr, "%s\n", text);
}

void mm_log(enum mm_log_level level, const char *format, ...) {
    va_list args;
    va_start(args, format);
    log_line(level, format, args);
    va_end(args);
}

void mm_log0(enum mm_log_level level, const char *format, ...) {
    if (process.rank != 0)
        return;
    va_list args;
    va_start(args, format);
    log_line(level, format, args);
    va_end(args);
}

double mm_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

bool mm_space_is_left(void) {
    const size_t bytes = MM_SPACE_LEFT;
    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
        return true;
    void *block = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return block != MAP_FAILED && munmap(block, bytes) == 0;
}

/* Ends the job where there is no block, or a large one leaves nothing to libraries. */
static void check_block(const void *block, size_t bytes) {
    const size_t large = (size_t)1 << 20;
    MM_CHECK(block, "out of memory: no %zu bytes more", bytes);
    MM_CHECK(bytes < large || mm_space_is_left(),
             "out of memory: after %zu bytes more the limit on address space (ulimit -v, or the "
             "job's) leaves libraries none",
             bytes);
}

void mm_memory_settle(void) {
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 1 << 20); /* else it grows with what is freed, to 32 MiB */
#endif
}

void *mm_calloc(size_t count, size_t size) {
    void *block = calloc(count ? count : 1, size ? size : 1);
    check_block(block, count * size);
    atomic_fetch_add(&process.live, 1);
    return block;
}

void *mm_realloc(void *block, size_t bytes) {
    void *grown = realloc(block, bytes ? bytes : 1);
    check_block(grown, bytes);
    if (!block)
        atomic_fetch_add(&process.live, 1);
    return grown;
}

char *mm_strdup(const char *text) {
    size_t bytes = strlen(text) + 1;
    return memcpy(mm_calloc(bytes, 1), text, bytes);
}

char *mm_format(const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int length = vsnprintf(NULL, 0, format, args);
    MM_CHECK(length >= 0, "cannot format '%s'", format);
    char *text = mm_calloc((size_t)length + 1, 1);
    vsnprintf(text, (size_t)length + 1, format, again);
    va_end(again);
    va_end(args);
    return text;
}

void mm_free(void *block) {
    if (!block)
        return;
    free(block);
    atomic_fetch_sub(&process.live, 1);
}

long mm_live_blocks(void) {
    return atomic_load(&process.live);
}

const char *mm_bytes_text(char text[32], double bytes) {
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
    size_t unit = 0;
    while (bytes >= 999.5 && unit + 1 < sizeof units / sizeof *units) {
        bytes /= 1000;
        unit++;
    }
    snprintf(text, 32, unit ? "%.2f %s" : "%.0f %s", bytes, units[unit]);
    return text;
}
