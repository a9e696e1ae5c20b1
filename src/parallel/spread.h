/* spread.h - the weights of a model's layers, spread over the ranks: `model.shard: full`.
 *
 * Reason: with the whole model on every rank, no number of GPUs runs a model that one cannot hold.
 * So rank r keeps the rows mm_rows_of(rows, R, r) of every tensor of a layer, and the model has two
 * slots (src/model/model.h). A pass gathers a layer into its slot just before it reads it, the next
 * layer while it computes. The tensors of no layer are whole on every rank.
 *
 * Cost: each pass gathers the layers anew; only the two that the forward read last are there when
 * its backward begins. All ranks must make equal passes. The gathered weights are the same bits as
 * the whole ones, so no product changes. */
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
    mm_ticket ticket;
    bool started; /* and not yet waited for */
};

struct mm_spread {
    struct mm_layer_source source; /* of the model; the first member */
    struct mm_comm *comm;
    struct mm_model *model;
    struct mm_layout layout; /* of the tensors of the layers, in the table's order */
    size_t *place;           /* [params_n] a tensor's index in the layout; SIZE_MAX: in no layer */
    char *own;               /* this rank's rows of them, model->dtype; NULL: there are no slots */
    struct mm_mat *gathers;  /* [the layout's tensors] their places in the slots */
    size_t each;             /* tensors of a layer */
    struct mm_slot slots[MM_SLOTS];
};

/* Tests set it: a slot is filled with NaN before its next layer arrives. For CPUs only. */
extern bool mm_spread_poison;

/* Becomes the source of the model, which has mm_spread_slots or, with fewer layers, as many. The
 * own rows are zero. Local. The caller frees with mm_spread_free, before the arena. */
struct mm_spread *mm_spread_create(struct mm_arena *arena, struct mm_comm *comm,
                                   struct mm_model *model);
void mm_spread_free(struct mm_spread *spread);

/* This rank's rows of tensor `param` of the model: of its spread where it has one and the tensor
 * is in a layer, else of the working weights. Who writes to them calls mm_spread_changed. Local. */
struct mm_mat mm_own_rows(const struct mm_model *model, struct mm_comm *comm, size_t param);
/* The slots hold nobody's weights any more. No-op for a model without a spread. Local. */
void mm_spread_changed(struct mm_model *model);
/* NULL: the model is whole. Local. */
struct mm_spread *mm_spread_of(const struct mm_model *model);

/* A copy of this rank's weights in memory of the arena, and back. Local. */
struct mm_kept_weights {
    void *block, *own; /* own NULL: the model is whole */
};
struct mm_kept_weights mm_weights_keep(struct mm_arena *arena, const struct mm_model *model);
void mm_weights_restore(struct mm_model *model, struct mm_kept_weights kept);

#endif
