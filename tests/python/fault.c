/* fault.c - a library to preload that makes one rank of a job fail at one call, or spoils what it
 * sends; the program knows nothing of it.
 *
 * MUDMAN_FAULT is "RANK FUNCTION FIRST LAST ACTION". RANK -1: every rank. FUNCTION:
 *
 *   MPI_Init_thread, MPI_Finalize
 *   save   fsync of a checkpoint's file
 *   data   the collectives that carry numbers between ranks
 *   product   a matrix product, between parallel regions
 *
 * Calls of FUNCTION are counted from 0; ACTION is for those from FIRST to LAST, before they do
 * their work:
 *
 *   kill, stop   SIGKILL, SIGSTOP to itself
 *   hang         it never ends, in this thread
 *   exit         _exit(9): exit(9) in the thread that writes checkpoints would tear MPI down
 *                under the one that uses it
 *   error        the collective does not take place and says that it failed
 *   single       MPI_Init_thread allows no threads
 *   nan          an element sent: the first, but of gradients on odd ranks the last
 *   zero         everything sent
 *   log          a line "BYTES gradient" or "BYTES sum" to the file MUDMAN_FAULT_LOG, by rank 0
 *
 * MUDMAN_FAULT_ABORT: MPI_Abort never ends.
 * MUDMAN_FAULT_RAM is this machine's memory in bytes.
 * MUDMAN_FAULT_CORE is what OpenBLAS says its kernels are while OPENBLAS_CORETYPE is not set.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <math.h>
#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

static struct {
    char function[32], action[16];
    int rank, first, last, calls;
} fault = {.rank = -2};

static int my_rank(void) {
    const char *rank = getenv("PMIX_RANK");
    return rank ? atoi(rank) : 0;
}

__attribute__((constructor)) static void configure(void) {
    const char *text = getenv("MUDMAN_FAULT");
    if (text && sscanf(text, "%d %31s %d %d %15s", &fault.rank, fault.function, &fault.first,
                       &fault.last, fault.action) != 5)
        abort();
}

/* Whether this call of `function` is to fail; the rank's own death comes here. */
static int due(const char *function) {
    if (strcmp(function, fault.function) != 0)
        return 0;
    int call = fault.calls++;
    if ((fault.rank != -1 && fault.rank != my_rank()) || call < fault.first || call > fault.last)
        return 0;
    if (strcmp(fault.action, "kill") == 0)
        raise(SIGKILL);
    if (strcmp(fault.action, "stop") == 0)
        raise(SIGSTOP);
    while (strcmp(fault.action, "hang") == 0)
        pause();
    if (strcmp(fault.action, "exit") == 0)
        _exit(9);
    return 1;
}

static void note(const char *function, size_t bytes) {
    const char *path = getenv("MUDMAN_FAULT_LOG");
    FILE *file = path && my_rank() == 0 ? fopen(path, "a") : NULL;
    if (file) {
        fprintf(file, "%zu %s\n", bytes, function);
        fclose(file);
    }
}

static void *zero_or_copy(const void *data, size_t bytes) {
    void *copy = calloc(bytes, 1);
    if (strcmp(fault.action, "zero") != 0)
        memcpy(copy, data, bytes);
    return copy;
}

static void *next_of(const char *function) {
    return dlsym(RTLD_NEXT, function);
}

void cblas_sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a,
                 int lda, const float *b, int ldb, float beta, float *c, int ldc) {
    void (*next)(int, int, int, int, int, int, float, const float *, int, const float *, int, float,
                 float *, int) = next_of("cblas_sgemm");
    due("product");
    next(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

char *openblas_get_corename(void) {
    char *(*next)(void) = next_of("openblas_get_corename");
    char *told = getenv("MUDMAN_FAULT_CORE"), *asked = getenv("OPENBLAS_CORETYPE");
    return told && !(asked && *asked) ? told : next();
}

int sysinfo(struct sysinfo *info) {
    int (*next)(struct sysinfo *) = next_of("sysinfo"), result = next(info);
    const char *told = getenv("MUDMAN_FAULT_RAM");
    if (told) {
        info->totalram = strtoul(told, NULL, 10) / info->mem_unit;
        info->totalswap = 0;
    }
    return result;
}

int MPI_Init_thread(int *argc, char ***argv, int required, int *provided) {
    int faulty = due("MPI_Init_thread"), result = PMPI_Init_thread(argc, argv, required, provided);
    if (faulty && strcmp(fault.action, "single") == 0)
        *provided = MPI_THREAD_SINGLE;
    return result;
}

int MPI_Finalize(void) {
    due("MPI_Finalize");
    return PMPI_Finalize();
}

int MPI_Abort(MPI_Comm comm, int exit_status) {
    while (getenv("MUDMAN_FAULT_ABORT"))
        pause();
    return PMPI_Abort(comm, exit_status);
}

int fsync(int fd) {
    int (*next)(int) = next_of("fsync");
    char link[64], path[4096] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (readlink(link, path, sizeof path - 1) > 0 && strstr(path, "/checkpoints/"))
        due("save");
    return next(fd);
}

/* Gradients: every rank's rows lie behind those of the rank before it. */
int MPI_Alltoallv(const void *out, const int out_n[], const int out_at[], MPI_Datatype out_type,
                  void *in, const int in_n[], const int in_at[], MPI_Datatype in_type,
                  MPI_Comm comm) {
    int size, type_bytes;
    if (!due("data"))
        return PMPI_Alltoallv(out, out_n, out_at, out_type, in, in_n, in_at, in_type, comm);
    if (strcmp(fault.action, "error") == 0)
        return MPI_ERR_OTHER;
    MPI_Comm_size(comm, &size);
    MPI_Type_size(out_type, &type_bytes);
    size_t bytes = (size_t)type_bytes * (size_t)(out_at[size - 1] + out_n[size - 1]);
    float *sent = zero_or_copy(out, bytes);
    if (strcmp(fault.action, "nan") == 0)
        sent[my_rank() % 2 ? bytes / sizeof *sent - 1 : 0] = NAN;
    note("gradient", bytes);
    int result = PMPI_Alltoallv(sent, out_n, out_at, out_type, in, in_n, in_at, in_type, comm);
    free(sent);
    return result;
}

/* Losses and norms. */
int MPI_Allgather(const void *out, int out_n, MPI_Datatype out_type, void *in, int in_n,
                  MPI_Datatype in_type, MPI_Comm comm) {
    if (out_type != MPI_DOUBLE || !due("data"))
        return PMPI_Allgather(out, out_n, out_type, in, in_n, in_type, comm);
    if (strcmp(fault.action, "error") == 0)
        return MPI_ERR_OTHER;
    double *sent = zero_or_copy(out, sizeof(double) * (size_t)out_n);
    if (strcmp(fault.action, "nan") == 0)
        *sent = NAN;
    note("sum", sizeof(double) * (size_t)out_n);
    int result = PMPI_Allgather(sent, out_n, out_type, in, in_n, in_type, comm);
    free(sent);
    return result;
}
