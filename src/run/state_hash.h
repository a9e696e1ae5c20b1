/* state_hash.h - one number for the state of a run, the same however it is spread over ranks: XXH3
 * 128 of the XXH3 64 of each row of each tensor, in order. */
#ifndef MM_STATE_HASH_H
#define MM_STATE_HASH_H

#include "src/method/state.h"

struct mm_hasher;

/* Local. Ended, and freed, by mm_hasher_end. */
struct mm_hasher *mm_hasher_create(struct mm_comm *comm, struct mm_device *dev);
/* The next tensors: those of a vector of the layout, in device memory. The place of each in the
 * order counts, and so do its bits; data NULL: as many places are left out. Collective. */
void mm_hasher_add_vector(struct mm_hasher *hasher, const struct mm_layout *layout,
                          struct mm_vector v);
/* hex (=) 32 digits. Local. */
void mm_hasher_end(struct mm_hasher *hasher, char hex[33]);

/* Of every part of the state, in its order. Waits for the loops that were asked for. Collective. */
void mm_state_hash(const struct mm_state_list *state, struct mm_comm *comm, struct mm_device *dev,
                   char hex[33]);

#endif
