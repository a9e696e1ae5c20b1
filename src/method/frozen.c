/* frozen.c - see frozen.h. */
#include "src/method/frozen.h"

#include "kernels/arena.h"

static bool needed(const struct mm_config *config) {
    return config->unlearn.rep_eng_retain_lr > 0 || config->unlearn.lora_rank ||
           config->unlearn.loss_fn == MM_LOSS_NPO ||
           config->unlearn.loss_fn == MM_LOSS_CIRCUIT_BREAKER;
}

struct mm_frozen mm_frozen_create(struct mm_arena *arena, const struct mm_config *config,
                                  struct mm_shard *shard) {
    struct mm_frozen frozen = {.shard = shard};
    if (!needed(config))
        return frozen;
    frozen.w = mm_shard_vector(shard, arena, MM_FOR_FROZEN,
                               config->unlearn.lora_rank ? MM_F32 : shard->model->dtype);
    if (!mm_arena_dry(arena))
        mm_shard_load(shard, frozen.w);
    return frozen;
}

void mm_frozen_use_begin(const struct mm_frozen *frozen) {
    mm_shard_store_begin(frozen->shard, frozen->w);
}
