/* traffic.c - see traffic.h. */
#include "comm/traffic.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "comm/mpi_comm.h"

/* -- counting ---------------------------------------------------------------------------------- */

char *mm_traffic_text(const struct mm_traffic *t) {
    char text[512] = "";
    for (int k = 0; k < MM_WATCHED_KINDS; k++) {
        size_t used = strlen(text), calls = t->of[k].calls;
        if (!calls)
            continue;
        snprintf(text + used, sizeof text - used, "%s%zu %s%s", used ? ", " : "", calls,
                 mm_watched_name((enum mm_watched)k), calls > 1 ? "s" : "");
        used = strlen(text);
        if (t->of[k].bytes)
            snprintf(text + used, sizeof text - used, " of %zu bytes", t->of[k].bytes);
    }
    return mm_strdup(*text ? text : "nothing");
}

struct mm_traffic mm_traffic_since(const struct mm_traffic *now, const struct mm_traffic *before) {
    struct mm_traffic t = *now;
    for (int k = 0; k < MM_WATCHED_KINDS; k++) {
        t.of[k].calls -= before->of[k].calls;
        t.of[k].bytes -= before->of[k].bytes;
    }
    return t;
}

const struct mm_traffic *mm_comm_traffic(const struct mm_comm *comm) {
    return &comm->traffic;
}

/* -- comparing --------------------------------------------------------------------------------- */

/* What a rank tells the others; without padding, so that bytes can be compared. */
struct told {
    uint64_t number, bytes, shape;
    int32_t kind, over, root, zero;
};

static void told_text(const struct told *t, char *text, size_t bytes) {
    int used =
        snprintf(text, bytes, "%s of %llu bytes over %s", mm_watched_name((enum mm_watched)t->kind),
                 (unsigned long long)t->bytes, t->over == MM_OVER_NCCL ? "NCCL" : "MPI");
    if (t->kind == MM_WATCHED_BROADCAST)
        snprintf(text + used, bytes - (size_t)used, " from rank %d", t->root);
    else if (t->shape)
        snprintf(text + used, bytes - (size_t)used, ", shapes %08llx",
                 (unsigned long long)(t->shape & 0xffffffff));
}

static bool same(const struct told *a, const struct told *b) {
    return memcmp(a, b, sizeof *a) == 0;
}

/* "ranks 0, 2: gather of 8 bytes over MPI; rank 1: ...": one entry a kind of call, in rank order.
 */
static void list(const struct told *all, int size, char *text, size_t bytes) {
    *text = '\0';
    for (int r = 0; r < size; r++) {
        char call[128];
        int first = 0, others = 0;
        while (!same(&all[first], &all[r]))
            first++;
        if (first < r)
            continue;
        for (int q = r + 1; q < size; q++)
            others += same(&all[q], &all[r]);
        size_t used = strlen(text);
        used += (size_t)snprintf(text + used, bytes - used, "%srank%s %d", r ? "; " : "",
                                 others ? "s" : "", r);
        for (int q = r + 1; q < size && used + 16 < bytes; q++)
            if (same(&all[q], &all[r]))
                used += (size_t)snprintf(text + used, bytes - used, ", %d", q);
        told_text(&all[r], call, sizeof call);
        if (used + sizeof call + 8 > bytes)
            return;
        snprintf(text + used, bytes - used, ": %s", call);
    }
}

/* All ranks come to the same end; rank 0 tells of it. */
static void compare(struct mm_comm *comm, struct mm_call call) {
    struct told mine = {comm->compared++, call.bytes, call.shape, call.kind,
                        call.over,        call.root,  0};
    struct told *all = mm_calloc((size_t)comm->size, sizeof *all);
    CHECK_MPI(
        MPI_Allgather(&mine, sizeof mine, MPI_BYTE, all, sizeof mine, MPI_BYTE, comm->comparing));
    int r = 1;
    while (r < comm->size && same(&all[0], &all[r]))
        r++;
    if (r < comm->size) {
        char text[1024];
        list(all, comm->size, text, sizeof text);
        if (comm->rank != 0)
            sleep(2);
        MM_CHECK(r == comm->size, "collective %llu of this job is not the same on all ranks: %s",
                 (unsigned long long)mine.number, text);
    }
    mm_free(all);
}

void mm_comm_compare_begin(struct mm_comm *comm) {
    const char *text = getenv("MUDMAN_CHECK_COLLECTIVES");
    int mine = text && *text && strcmp(text, "0") != 0, any;
    CHECK_MPI(MPI_Allreduce(&mine, &any, 1, MPI_INT, MPI_MAX, comm->world));
    comm->comparing = MPI_COMM_NULL;
    if (any)
        CHECK_MPI(MPI_Comm_dup(comm->world, &comm->comparing));
}

/* Who leaves while others go on is found out, too. */
void mm_comm_compare_end(struct mm_comm *comm) {
    if (comm->comparing == MPI_COMM_NULL)
        return;
    compare(comm, (struct mm_call){.kind = MM_WATCHED_DEPARTURE});
    CHECK_MPI(MPI_Comm_free(&comm->comparing));
}

/* -- before each collective -------------------------------------------------------------------- */

uint64_t mm_comm_enter(struct mm_comm *comm, struct mm_call call) {
    uint64_t watched =
        comm->pretends ? 0 : mm_watch_enter(comm->watch, call.kind, call.over, call.bytes);
    if (comm->size == 1)
        return watched;
    comm->traffic.of[call.kind].calls++;
    comm->traffic.of[call.kind].bytes += call.bytes;
    if (comm->comparing != MPI_COMM_NULL && !comm->pretends)
        compare(comm, call);
    return watched;
}

/* In the debug mode, what passed in the section that ends. */
void mm_comm_tell_traffic(struct mm_comm *comm, const char *what, size_t number) {
    if (comm->comparing == MPI_COMM_NULL || comm->rank != 0)
        return;
    if (*comm->section.what) {
        struct mm_traffic t = mm_traffic_since(&comm->traffic, &comm->section.before);
        char *text = mm_traffic_text(&t);
        mm_log0(MM_LOG_INFO, "collectives of %s %zu: %s", comm->section.what, comm->section.number,
                text);
        mm_free(text);
    }
    comm->section.before = comm->traffic;
    comm->section.number = number;
    snprintf(comm->section.what, sizeof comm->section.what, "%s",
             number == MM_UNNUMBERED ? "" : what);
}
