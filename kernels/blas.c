/* blas.c - see blas.h. */
#define _GNU_SOURCE /* CPU affinity */
#include "kernels/blas.h"

#include <cblas.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CORE_VARIABLE "OPENBLAS_CORETYPE"
#define SPIN_VARIABLE "GOMP_SPINCOUNT"

/* -- kernels ----------------------------------------------------------------------------------- */

/* The level of x86-64 that the kernels called `core` need; 0: unknown, left alone. */
static int level_of(const char *core) {
    static const char *const oldest[] = {
        "Unknown", "Katmai",    "Coppermine", "Northwood",    "Prescott",  "Banias",
        "Atom",    "Core2",     "Penryn",     "Dunnington",   "Nehalem",   "Athlon",
        "Opteron", "Nano",      "Bobcat",     "Opteron_SSE3", "Barcelona", "Sandybridge",
        "Generic", "Bulldozer", "Piledriver", "Steamroller"};
    static const char *const avx2[] = {"Haswell", "Excavator", "Zen"};
    for (size_t i = 0; i < sizeof oldest / sizeof *oldest; i++)
        if (strcasecmp(core, oldest[i]) == 0)
            return 1;
    for (size_t i = 0; i < sizeof avx2 / sizeof *avx2; i++)
        if (strcasecmp(core, avx2[i]) == 0)
            return 3;
    return 0;
}

const char *mm_blas_better_core(const char *core, struct mm_processor processor) {
    int level = level_of(core);
    if (level == 0 || level >= processor.level)
        return NULL;
    return processor.level == 4 ? "SkylakeX" : "Haswell";
}

/* The library's own words begin "OpenBLAS 0.3.21 ...". */
static int name_length(const char *config) {
    const char *version = strchr(config, ' ');
    return version ? (int)(version - config + 1 + (long)strcspn(version + 1, " ")) : 0;
}

/* Before MPI says which rank this is, launchers do. */
static bool speaks(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK",
                                        "SLURM_PROCID"};
    const char *rank = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names && !rank; i++)
        rank = getenv(names[i]);
    return !rank || atoi(rank) == 0;
}

/* Whether the environment asks for other kernels from now on. */
static bool ask_for_kernels(void) {
    const char *set = getenv(CORE_VARIABLE), *core = openblas_get_corename();
    const char *config = openblas_get_config();
    const char *better = mm_blas_better_core(core, mm_processor());
    if ((set && *set) || !better || !strstr(config, "DYNAMIC_ARCH"))
        return false;
    if (speaks())
        mm_log0(MM_LOG_INFO,
                "%.*s chose its %s kernels, which are beneath this processor: starting anew "
                "with " CORE_VARIABLE "=%s",
                name_length(config), config, core, better);
    return setenv(CORE_VARIABLE, better, 1) == 0;
}

/* Whether it asks for threads that spin for some 20 microseconds while they wait, and sleep then.
 * GCC's OpenMP would have them spin for milliseconds, each of which a thread loses that waits for
 * the same core; docs/benchmarks.md has what that costs. */
static bool ask_for_calm_threads(void) {
    const char *threads = getenv("OMP_NUM_THREADS");
    bool alone = threads && atoi(threads) == 1;
    return !alone && !getenv(SPIN_VARIABLE) && !getenv("OMP_WAIT_POLICY") &&
           setenv(SPIN_VARIABLE, "1000", 0) == 0;
}

void mm_blas_settle(char **argv) {
    char program[4096];
    bool kernels = ask_for_kernels(), anew = ask_for_calm_threads() || kernels;
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    if (!anew || n < 0)
        return;
    program[n] = '\0';
    mm_processor_unbind(); /* the new program would take one place for all there are */
    execv(program, argv);
    mm_log(MM_LOG_WARN,
           "%s cannot be started anew: set " CORE_VARIABLE " and " SPIN_VARIABLE
           " yourself (docs/running.md, threads and memory)",
           program);
}

char *mm_blas_text(void) {
    const char *config = openblas_get_config();
    return mm_format("%.*s, %s kernels", name_length(config), config, openblas_get_corename());
}

/* -- memory ------------------------------------------------------------------------------------ */

#define BUFFER_BYTES ((size_t)128 << 20) /* of address space; what is used of it is far less */
#define MOST_THREADS 64                  /* that Debian's library is built for */

/* Whether n buffers are to be had, each in one piece, as the library asks for them. */
static bool there_is_room(int n) {
    void *blocks[3 * MOST_THREADS];
    int got = 0;
    while (got < n && got < 3 * MOST_THREADS &&
           (blocks[got] = mmap(NULL, BUFFER_BYTES, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) != MAP_FAILED)
        got++;
    bool room = got == n || got == 3 * MOST_THREADS;
    while (got > 0)
        munmap(blocks[--got], BUFFER_BYTES);
    return room;
}

static const char *variable(char **environment, const char *name) {
    size_t n = strlen(name);
    for (char **entry = environment; entry && *entry; entry++)
        if (strncmp(*entry, name, n) == 0 && (*entry)[n] == '=')
            return *entry + n + 1;
    return NULL;
}

/* Threads that the library has buffers for once it is loaded. */
static int threads_at_load(char **environment) {
    static const char *const names[] = {"OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS",
                                        "OMP_NUM_THREADS"};
    cpu_set_t cpus;
    int most = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1, asked = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names && asked <= 0; i++) {
        const char *text = variable(environment, names[i]);
        asked = text ? atoi(text) : 0;
    }
    most = asked > 0 && asked < most ? asked : most;
    return most < MOST_THREADS ? most : MOST_THREADS;
}

static void no_room_text(char *text, size_t bytes, int buffers, int threads) {
    snprintf(
        text, bytes,
        "no memory for products of matrices: for %d thread%s OpenBLAS takes %d more buffer%s of "
        "128 MiB of address space: raise the limit (ulimit -v, or the job's), or lower "
        "OMP_NUM_THREADS",
        threads, threads == 1 ? "" : "s", buffers, buffers == 1 ? "" : "s");
}

/* The library's own: a buffer for a product, which others find again once it is freed. */
extern void *blas_memory_alloc(int position) __attribute__((weak));
extern void blas_memory_free(void *buffer) __attribute__((weak));

/* As many buffers as threads that multiply at the same time. */
static void take_buffers(int n) {
    void *buffers[MOST_THREADS];
    if (!blas_memory_alloc || !blas_memory_free)
        return;
    n = n < MOST_THREADS ? n : MOST_THREADS;
    for (int i = 0; i < n; i++)
        buffers[i] = blas_memory_alloc(0);
    for (int i = 0; i < n; i++)
        blas_memory_free(buffers[i]);
}

/* Each has a stack, and from its first block on an arena of malloc's. */
static void start_threads(int n) {
#pragma omp parallel num_threads(n)
    mm_free(mm_calloc(1, 1));
}

enum mm_status mm_blas_take_memory(int threads, struct mm_error *err) {
    enum { SIZE = 128 }; /* smaller products need no buffer */
    extern char **environ;
    int loaded = threads_at_load(environ), more = threads > loaded ? threads - loaded : 0;
    char text[sizeof err->text];
    start_threads(threads);
    if (!there_is_room(more + threads) || !mm_space_is_left()) {
        no_room_text(text, sizeof text, more + threads, threads);
        return mm_fail(err, MM_FAILED, "%s", text);
    }
    size_t n = (size_t)SIZE * SIZE;
    float *zeros = mm_calloc(n, sizeof *zeros), *out = mm_calloc(n, sizeof *out);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, SIZE, SIZE, SIZE, 1, zeros, SIZE, zeros,
                SIZE, 0, out, SIZE);
    mm_free(zeros);
    mm_free(out);
    take_buffers(threads);
    return MM_OK;
}

/* The library takes its first buffers when it is loaded, before main: only a function of the
 * program's .preinit_array comes earlier. A sanitizer is not there yet then, and takes more address
 * space than any limit leaves. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED
#endif
#endif
#if !defined(SANITIZED) && !defined(__SANITIZE_ADDRESS__)
static void check_before_load(int argc, char **argv, char **environment) {
    int threads = threads_at_load(environment);
    (void)argc;
    (void)argv;
    if (there_is_room(threads))
        return;
    char why[1024], text[1100];
    no_room_text(why, sizeof why, threads, threads);
    int n = snprintf(text, sizeof text, "mudman-mpi: %s\n", why);
    if (write(STDERR_FILENO, text, (size_t)n) < 0)
        _exit(MM_FAILED);
    _exit(MM_FAILED);
}

__attribute__((section(".preinit_array"),
               used)) static void (*const before_load)(int, char **, char **) = check_before_load;
#endif
