/* load.c - see load.h. */
#include "src/parallel/load.h"

#include "kernels/queue.h"

/* The ranks that have opened the same files as this one. */
struct readers {
    uint64_t *copies; /* [ranks] mm_weights_copy */
    int n, place;     /* how many they are, and which of them this rank is */
};

static struct readers find_readers(struct mm_comm *comm, const struct mm_weights *weights) {
    int ranks = mm_comm_size(comm), rank = mm_comm_rank(comm);
    struct readers all = {.copies = mm_calloc((size_t)ranks, sizeof *all.copies)};
    uint64_t mine = mm_weights_copy(weights);
    mm_comm_gather_all(comm, &mine, sizeof mine, all.copies);
    for (int r = 0; r < ranks; r++) {
        all.place += all.copies[r] == mine && r < rank;
        all.n += all.copies[r] == mine;
    }
    return all;
}

static void hash_rows(const struct mm_weights *weights, const char *name,
                      const struct readers *readers, struct mm_weights_sum *sum) {
    size_t rows = mm_stored_rows_n(mm_weights_find(weights, name));
    struct mm_rows part = mm_rows_of(rows, readers->n, readers->place);
    mm_weights_sum_rows(weights, name, part.first, part.count, sum);
}

enum mm_status mm_load_rows(struct mm_device *dev, const struct mm_weights *weights,
                            const char *name, struct mm_stored_rows rows, enum mm_dtype dtype,
                            void *to, struct mm_error *err) {
    size_t row_bytes = (rows.cols ? rows.cols : 1) * mm_dtype_bytes(dtype);
    size_t each = row_bytes < MM_HOST_PIECE ? MM_HOST_PIECE / row_bytes : 1,
           end = rows.first + rows.count;
    char *host = mm_calloc(each < rows.count ? each : rows.count, row_bytes), *next = to;
    enum mm_status status = MM_OK;
    while (rows.first < end && status == MM_OK) {
        rows.count = end - rows.first < each ? end - rows.first : each;
        status = mm_weights_load_rows(weights, name, rows, host, dtype, err);
        if (status == MM_OK)
            dev->queue->upload(dev, next, host, rows.count * row_bytes);
        rows.first += rows.count;
        next += rows.count * row_bytes;
    }
    mm_free(host);
    return status;
}

static enum mm_status load_rows(const struct mm_model *m, struct mm_comm *comm, size_t param,
                                const struct mm_weights *weights, struct mm_error *err) {
    const struct mm_param *p = &m->params[param];
    struct mm_mat to = mm_own_rows_changing(m, comm, param);
    struct mm_rows own = mm_rows_of(p->rows, mm_comm_size(comm), mm_comm_rank(comm));
    struct mm_stored_rows rows = {p->rows, p->vector ? 0 : p->cols, own.first, own.count};
    return mm_load_rows(m->dev, weights, p->name, rows, m->dtype, to.data, err);
}

/* The tensors that every rank holds whole, a layer's at a time. */
static void gather_whole(const struct mm_model *m, struct mm_comm *comm) {
    struct mm_mat *some = mm_calloc(m->params_n, sizeof *some);
    for (size_t i = 0, n = 0; i < m->params_n; i++) {
        if (!m->slots_n || m->params[i].layer == MM_NO_LAYER)
            some[n++] = m->params[i].w;
        bool last = i + 1 == m->params_n || m->params[i + 1].layer != m->params[i].layer;
        if (last && n) {
            mm_comm_wait(comm, mm_comm_gather_rows(comm, some, n));
            n = 0;
        }
    }
    mm_free(some);
}

void mm_load_rehearse(const struct mm_model *m, struct mm_comm *comm) {
    gather_whole(m, comm);
}

/* Adds up what the readers of this rank's copy have found. */
static void add_sums(struct mm_comm *comm, const struct readers *readers,
                     struct mm_weights_sum mine, char hash[33]) {
    int ranks = mm_comm_size(comm), rank = mm_comm_rank(comm);
    struct mm_weights_sum *all = mm_calloc((size_t)ranks, sizeof *all), sum = {0};
    mm_comm_gather_all(comm, &mine, sizeof mine, all);
    for (int r = 0; r < ranks; r++)
        if (readers->copies[r] == readers->copies[rank]) {
            sum.low += all[r].low;
            sum.high += all[r].high;
        }
    mm_free(all);
    mm_weights_sum_text(sum, hash);
}

enum mm_status mm_load_weights(struct mm_model *m, struct mm_comm *comm,
                               const struct mm_weights *weights, char hash[33],
                               struct mm_error *err) {
    struct readers readers = find_readers(comm, weights);
    struct mm_weights_sum sum = {0};
    enum mm_status status = MM_OK;
    for (size_t i = 0; i < m->params_n && status == MM_OK; i++) {
        status = load_rows(m, comm, i, weights, err);
        if (status == MM_OK)
            hash_rows(weights, m->params[i].name, &readers, &sum);
    }
    status = mm_comm_agree(comm, status, err);
    if (status == MM_OK) {
        add_sums(comm, &readers, sum, hash);
        gather_whole(m, comm);
    }
    mm_weights_forget(weights);
    mm_free(readers.copies);
    return status;
}
