/* nccl_gather.cu - gathers between GPUs over NCCL, among all ranks and among those near each other;
 * see nccl.cu. */
#include "comm/nccl.h"

static struct group group_of(const struct over_nccl *t, enum mm_among among) {
    return among == MM_AMONG_ALL ? group{t->nccl, t->rank, t->size} : t->near;
}

static size_t row_bytes_of(const struct mm_mat *m) {
    return m->cols * mm_dtype_bytes(m->dtype);
}

static bool divides(const struct group *g, const struct mm_mat *m) {
    return m->rows % static_cast<size_t>(g->size) == 0;
}

/* Every rank's block to its place in `blocks`, where this rank's is. */
static void gather_blocks(struct over_nccl *t, const struct group *g, char *blocks, size_t bytes) {
    CHECK_NCCL(ncclAllGather(blocks + bytes * static_cast<size_t>(g->rank), blocks, bytes,
                             ncclUint8, g->nccl, t->stream));
}

static void copy_on_stream(struct over_nccl *t, void *to, const void *from, size_t bytes) {
    if (bytes)
        MM_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, t->stream));
}

/* Rows that the ranks do not divide: by way of `room`, where all blocks are as long. The matrix is
 * the beginning of them, since padding comes last. */
static void gather_padded(struct over_nccl *t, const struct group *g, const struct mm_mat *m,
                          char *room) {
    size_t row_bytes = row_bytes_of(m);
    struct mm_rows mine = mm_rows_of(m->rows, g->size, g->rank);
    size_t block = mm_rows_block(m->rows, g->size) * row_bytes;
    copy_on_stream(t, room + block * static_cast<size_t>(g->rank),
                   static_cast<char *>(m->data) + mine.first * row_bytes, mine.count * row_bytes);
    gather_blocks(t, g, room, block);
    copy_on_stream(t, m->data, room, m->rows * row_bytes);
}

/* Those that divide in one group, the others one by one: they share the room. */
void mm_nccl_gather(struct mm_transport *base, mm_ticket ticket, const struct mm_mat *tensors,
                    size_t n, enum mm_among among, uint64_t watched) {
    struct over_nccl *t = over_nccl(base);
    const struct group who = group_of(t, among), *g = &who;
    size_t most = mm_nccl_room(tensors, n, g->size);
    char *room = most ? static_cast<char *>(mm_nccl_reserve(t, &t->room, most)) : nullptr;
    mm_nccl_begin(t, watched);
    CHECK_NCCL(ncclGroupStart());
    for (const struct mm_mat *m = tensors; m < tensors + n; m++)
        if (divides(g, m) && m->rows)
            gather_blocks(t, g, static_cast<char *>(m->data),
                          m->rows / static_cast<size_t>(g->size) * row_bytes_of(m));
    CHECK_NCCL(ncclGroupEnd());
    for (const struct mm_mat *m = tensors; m < tensors + n; m++)
        if (!divides(g, m))
            gather_padded(t, g, m, room);
    mm_nccl_end(t, t->done[ticket], watched);
}

/* Groups that are all ranks, or one rank each, get a communicator all the same. */
void mm_nccl_near_begin(struct mm_transport *base) {
    struct over_nccl *t = over_nccl(base);
    struct mm_near near = mm_comm_near(t->comm);
    struct mm_watch *watch = mm_comm_watch(t->comm);
    ncclComm_t split = nullptr;
    if (t->near.nccl)
        return;
    mm_watch_enter(watch, MM_WATCHED_CONNECTION, MM_OVER_NCCL, 0);
    CHECK_NCCL(ncclCommSplit(t->nccl, near.first, near.rank, &split, nullptr));
    mm_watch_leave(watch);
    t->near = {split, near.rank, near.size};
}
