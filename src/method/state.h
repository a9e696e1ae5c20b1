/* state.h - the state of a run as one list, made once by the method: what a checkpoint holds, a
 * state hash covers, `plan` counts and a resume brings back. All of those loop over the list, and
 * none of them knows what a vector means. All functions are local unless marked Collective. */
#ifndef MM_STATE_LIST_H
#define MM_STATE_LIST_H

#include "io/checkpoint.h"
#include "src/method/lora.h"

/* One vector, or some sets of the same layout, one behind the other. */
struct mm_state_part {
    enum mm_state_group group;      /* of the checkpoint; its name is there */
    enum mm_purpose purpose;        /* of the memory */
    const struct mm_layout *layout; /* of one set; borrowed */
    size_t sets;                    /* 0: one, whose tensors' names carry no number */
    const struct mm_lora *adapters; /* whose A and B the tensors are; NULL: those of the shard */
    struct mm_vector vector;        /* all sets; data NULL: this run has none */
};

#define MM_STATE_PARTS 8

struct mm_state_list {
    const struct mm_shard *shard; /* of W; borrowed */
    size_t n;
    struct mm_state_part parts[MM_STATE_PARTS]; /* in the order of a state hash */
};

/* Appends a part whose memory is there, or that the run does not have. */
void mm_state_add(struct mm_state_list *list, struct mm_state_part part);
/* Appends a part with a zeroed vector of one set; returns the vector. */
struct mm_vector mm_state_take(struct mm_state_list *list, struct mm_arena *arena,
                               struct mm_state_part part, enum mm_dtype dtype);

/* Bytes of all vectors: of this rank, and of all ranks. */
size_t mm_state_own_bytes(const struct mm_state_list *list);
double mm_state_all_bytes(const struct mm_state_list *list);

/* A copy of the state in host memory, from which a checkpoint is written while the run goes on, and
 * into which one is read. Its memory is taken once, so that a checkpoint does not fail for want of
 * it. */
struct mm_state_copy {
    const struct mm_state_list *list; /* borrowed */
    struct mm_device *dev;            /* borrowed */
    void *host[MM_STATE_PARTS];       /* pinned; NULL: the run has no such part */
    struct mm_state state;            /* names and addresses of the copy, for io/checkpoint.h */
};

/* The caller frees; a zeroed one may be freed too. */
struct mm_state_copy mm_state_copy_create(const struct mm_state_list *list, struct mm_device *dev);
void mm_state_copy_free(struct mm_state_copy *copy);
/* copy (=) the vectors, and the vectors (=) copy. Both wait for the device. */
void mm_state_save(const struct mm_state_copy *copy);
void mm_state_restore(const struct mm_state_copy *copy);

#endif
