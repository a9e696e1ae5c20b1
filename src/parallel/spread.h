/* spread.h - the weights of a model's layers, spread over the ranks: `model.shard: full | node`.
 *
 * Reason: with the whole model on every rank, no number of GPUs runs a model that one cannot hold.
 * So rank r keeps the rows mm_rows_of(rows, R, r) of every tensor of a layer, and the model has two
 * slots (src/model/model.h). A pass gathers a layer into its slot just before it reads it, the next
 * layer while it computes. The tensors of no layer are whole on every rank.
 *
 * Cost: each pass gathers the layers anew; only the two that the forward read last are there when
 * its backward begins. All ranks must make equal passes. The gathered weights are the same bits as
 * the whole ones, so no product changes.
 *
 * `node`: the ranks near each other (mm_comm_near) also keep a copy of every layer among them, each
 * its rows of it. A tensor that changed is gathered from all ranks once, and what arrives goes into
 * the copy; from then on it is gathered from near. So what does not change never crosses from
 * machine to machine. ZeRO++ calls this hierarchical partitioning (arXiv 2306.10209, section 3.2).
 * Cost: the copy's rows, and those that go to all ranks as with `full`. */
#ifndef MM_SPREAD_H
#define MM_SPREAD_H

#include "comm/comm.h"
#include "src/parallel/layout.h"
#include "src/model/model.h"

#define MM_SLOTS ((size_t)2)

/* Slots of a model whose layers are spread over the ranks. One rank has all rows: the layers stay
 * where they are, and nothing is copied. */
static inline size_t mm_spread_slots(const struct mm_comm *comm) {
    return mm_comm_size(comm) > 1 ? MM_SLOTS : 0;
}

struct mm_slot {
    int layer; /* whose weights it holds, or will; MM_NO_LAYER: nobody's */
    mm_ticket tickets[2];
    size_t tickets_n;  /* started and not yet waited for */
    size_t arrivals_n; /* tensors that come from all ranks, for the copy */
    size_t *arrivals;  /* [tensors of a layer] in the layout */
};

struct mm_spread {
    struct mm_layer_source source; /* of the model; the first member */
    struct mm_comm *comm;
    struct mm_model *model;
    struct mm_layout layout; /* of the tensors of the layers, in the table's order */
    size_t *place;           /* [params_n] a tensor's index in the layout; SIZE_MAX: in no layer */
    char *own;               /* this rank's rows of them, model->dtype; NULL: there are no slots */
    struct mm_near group;    /* of the copy */
    char *near;              /* this rank's rows of the copy, model->dtype; NULL: there is none */
    size_t *near_at;         /* [the layout's tensors] elements of `near` before a tensor's */
    bool *changed;           /* [the layout's tensors] since it went into the copy */
    struct mm_mat *gathers;  /* [the layout's tensors] their places in the slots */
    size_t each;             /* tensors of a layer */
    struct mm_mat *some;     /* [each] scratch */
    struct mm_slot slots[MM_SLOTS];
};

/* Tests set it: a slot is filled with NaN before its next layer arrives. For CPUs only. */
extern bool mm_spread_poison;

/* Becomes the source of the model, which has mm_spread_slots or, with fewer layers, as many. The
 * own rows are zero. near: `node`; it means nothing where all ranks are near each other.
 * Collective. The caller frees with mm_spread_free, before the arena. */
struct mm_spread *mm_spread_create(struct mm_arena *arena, struct mm_comm *comm,
                                   struct mm_model *model, bool near);
void mm_spread_free(struct mm_spread *spread);

/* This rank's rows of tensor `param` of the model: of its spread where it has one and the tensor
 * is in a layer, else of the working weights. Local. */
struct mm_mat mm_own_rows(const struct mm_model *model, struct mm_comm *comm, size_t param);
/* The same, to be written to; all ranks do, or none. mm_spread_changed follows. Local. */
struct mm_mat mm_own_rows_changing(const struct mm_model *model, struct mm_comm *comm,
                                   size_t param);
/* The slots hold nobody's weights any more. No-op for a model without a spread. Local. */
void mm_spread_changed(struct mm_model *model);
/* What a loop or step begins with, so that each, and each replay of a recording, makes the same
 * gathers: the copy (see above) has what is in it but for the tensors of changing[params_n], which
 * count as changed; the slots hold nobody's weights. changing NULL: none. No-op without a copy.
 * Collective. */
void mm_spread_settle(struct mm_model *model, const bool *changing);
/* NULL: the model is whole. Local. */
struct mm_spread *mm_spread_of(const struct mm_model *model);

/* A copy of this rank's weights in memory of the arena, and back. Local. */
struct mm_kept_weights {
    void *block, *own; /* own NULL: the model is whole */
};
struct mm_kept_weights mm_weights_keep(struct mm_arena *arena, const struct mm_model *model);
void mm_weights_restore(struct mm_model *model, struct mm_kept_weights kept);

#endif
