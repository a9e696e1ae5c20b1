/* base.h - what every layer stands on: status and error text, checks, log, clock.
 *
 * There are two kinds of fault. A function that meets an outside fault (arguments, config, files)
 * returns an enum mm_status and fills a struct mm_error; the ranks then agree through
 * mm_comm_agree() before the next collective. Faults of logic, MPI or the device end the job
 * through MM_CHECK. All functions are local. */
#ifndef MM_BASE_H
#define MM_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* "0.1.0+5c1d09ab": the version, and a hash of the sources of this build (cmake/version.cmake). */
extern const char mm_version[];

/* The value of a status is also the process's exit status. */
enum mm_status {
    MM_OK = 0,
    MM_FAILED = 1,    /* anything not below: disk full, out of memory */
    MM_BAD_INPUT = 2, /* arguments, config or files; the text names file and place */
    MM_STOPPED = 3,   /* a signal or time limit, after a checkpoint: requeue */
    MM_REJECTED = 4,  /* retain-loss budget exceeded, or a quantity not finite */
    MM_LOST = 5,      /* another rank, MPI, NCCL or a file system failed or hung: may go on again */
};

/* The text of the first fault, for the user. It says what is wrong, where, and what to do, in one
 * line without a newline. */
struct mm_error {
    char text[1024];
};

/* Writes the text, with '?' for control characters, and returns `status`, so that callers can write
 * `return mm_fail(...)`. */
enum mm_status mm_fail(struct mm_error *err, enum mm_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Ends the whole job with a message naming rank, file:line and expression if `ok` is false. */
#define MM_CHECK(ok, ...) MM_CHECK_AS(MM_FAILED, ok, __VA_ARGS__)
/* The same with an exit status. */
#define MM_CHECK_AS(status, ok, ...)                                                               \
    do {                                                                                           \
        if (!(ok))                                                                                 \
            mm_abort(status, __FILE__, __LINE__, #ok, __VA_ARGS__);                                \
    } while (0)
void mm_abort(enum mm_status status, const char *file, int line, const char *expression,
              const char *format, ...) __attribute__((noreturn, format(printf, 5, 6)));

/* Sets what mm_abort calls. `comm` installs MPI_Abort here; without a hook mm_abort ends this
 * process only. */
void mm_set_abort_hook(void (*hook)(int exit_status));

/* Log: who speaks (set once at start-up) and how much. */
enum mm_log_level { MM_LOG_ERROR, MM_LOG_WARN, MM_LOG_INFO, MM_LOG_DEBUG };
void mm_log_init(int rank, enum mm_log_level level);
/* From now on only lines of this level and of more urgent ones are written; returns the level that
 * it was. */
enum mm_log_level mm_log_set(enum mm_log_level level);
/* One line on stderr from every rank that calls (mm_log) or from rank 0 only (mm_log0). */
void mm_log(enum mm_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
void mm_log0(enum mm_log_level level, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Seconds on a monotonic clock. */
double mm_now(void);

/* Memory of this process. If there is no more, MM_CHECK ends the job, so these never return NULL.
 * `mm_calloc` zeroes. The caller frees with mm_free. mm_live_blocks() counts the blocks that are
 * not yet freed; it is zero at exit. */
void *mm_calloc(size_t count, size_t size) __attribute__((returns_nonnull));
void *mm_realloc(void *block, size_t bytes) __attribute__((returns_nonnull));
char *mm_strdup(const char *text) __attribute__((returns_nonnull));
char *mm_format(const char *format, ...)
    __attribute__((format(printf, 1, 2), nonnull(1), returns_nonnull));
void mm_free(void *block);
/* From now on large blocks go back to the system when they are freed, so that the process holds
 * what it uses and no more: `plan` counts on it. Called once, before others allocate. */
void mm_memory_settle(void);
long mm_live_blocks(void);
/* Whether a limit on address space (ulimit -v) leaves so many bytes to the libraries, some of which
 * crash where they get none. `mm_calloc` and `mm_realloc` ask it of large blocks. */
#define MM_SPACE_LEFT ((size_t)64 << 20)
bool mm_space_is_left(void);

/* Returns true and sets *out = a·b if the product fits in size_t. */
static inline bool mm_mul(size_t a, size_t b, size_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}

/* The number of bytes as text with a unit, "1.25 GB" (GB = 10^9 bytes); `text` is returned. */
const char *mm_bytes_text(char text[32], double bytes);

#endif
