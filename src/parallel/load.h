/* load.h - brings a model's weights from its files to the ranks. */
#ifndef MM_LOAD_H
#define MM_LOAD_H

#include "io/weights.h"
#include "src/parallel/spread.h"

/* Rows of a stored tensor, converted to `dtype`, to the memory of a device at `to`; little of them
 * is in host memory at a time. Errors as mm_weights_load_rows. Local. */
enum mm_status mm_load_rows(struct mm_device *dev, const struct mm_weights *weights,
                            const char *name, struct mm_stored_rows rows, enum mm_dtype dtype,
                            void *to, struct mm_error *err);

/* Fills the working weights, or this rank's rows of them where the layers are spread. Every rank
 * reads and hashes its own rows of every tensor, and receives the others from the other ranks:
 * together they read each byte once. Ranks that have another copy of the files than rank 0 read all
 * of theirs together, to hash it.
 *
 * hash (=) the hash of this rank's copy, of the model's tensors in 32 hex digits: the same for any
 * number of ranks. Whoever calls compares it between ranks (mm_identity_agree).
 * Errors as mm_weights_load_rows, on every rank. Collective. */
enum mm_status mm_load_weights(struct mm_model *model, struct mm_comm *comm,
                               const struct mm_weights *weights, char hash[33],
                               struct mm_error *err);
/* Asks a transport that only counts for what loading asks of it. Local. */
void mm_load_rehearse(const struct mm_model *model, struct mm_comm *comm);

#endif
