/* frozen.h - this rank's rows of W as the model came, for what is measured against that model:
 * hidden states, the probabilities of texts; and where adapters are the base, for what they lie
 * beside. Taken only where the config asks for such a loss, or adapters. */
#ifndef MM_FROZEN_H
#define MM_FROZEN_H

#include "src/config/config.h"
#include "src/parallel/shard.h"

struct mm_frozen {
    struct mm_shard *shard; /* of W; borrowed */
    struct mm_vector w;     /* in the model's dtype, as its weights are, beside adapters in
                               float32; data NULL: not needed */
};

/* Takes memory where it is needed and copies the working weights, which are the model's own then.
 * Local. */
struct mm_frozen mm_frozen_create(struct mm_arena *arena, const struct mm_config *config,
                                  struct mm_shard *shard);

/* Makes the frozen weights the working ones, as mm_shard_store_begin does: the caller ends it with
 * mm_shard_store_end, and stores what comes after. Collective. */
void mm_frozen_use_begin(const struct mm_frozen *frozen);

#endif
