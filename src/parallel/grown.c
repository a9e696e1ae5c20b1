/* grown.c - see grown.h. */
#include "src/parallel/grown.h"

#include <string.h>

#include "kernels/queue.h"

void mm_grown_begin(struct mm_grown *g, double *values, size_t n) {
    size_t i = g->n++;
    g->all[i].values = values;
    g->all[i].n = n;
    g->all[i].totals = g->dev->exact ? mm_calloc(n, sizeof(double)) : NULL;
    g->dev->queue->zero(g->dev, values, n * sizeof *values);
}

/* totals += values of each rank that had a leaf, one after the other. */
static void add_leaves(const struct mm_grown *g, size_t which, size_t leaves) {
    size_t n = g->all[which].n, bytes = n * sizeof(double);
    double *all = mm_calloc((size_t)mm_comm_size(g->comm), bytes);
    mm_comm_gather_all(g->comm, g->all[which].values, bytes, all);
    if (!g->dev->dry)
        memset(g->all[which].values, 0, bytes);
    for (size_t r = 0; r < leaves; r++)
        for (size_t i = 0; i < n; i++)
            g->all[which].totals[i] += all[r * n + i];
    mm_free(all);
}

void mm_grown_step(struct mm_grown *g, size_t leaves) {
    for (size_t k = 0; k < g->n && g->dev->exact; k++)
        add_leaves(g, k, leaves);
}

void mm_grown_end(struct mm_grown *g) {
    for (size_t k = 0; k < g->n; k++) {
        if (!g->all[k].totals)
            mm_comm_sum_later(g->comm, g->all[k].values, g->all[k].n);
        else if (!g->dev->dry)
            memcpy(g->all[k].values, g->all[k].totals, g->all[k].n * sizeof(double));
        mm_free(g->all[k].totals);
    }
    g->n = 0;
}
