/* passes_memory.c - what passes hold; see passes.h. */
#include "src/parallel/passes.h"

struct mm_passes *mm_passes_create(struct mm_arena *arena, struct mm_comm *comm,
                                   struct mm_model *model, struct mm_shard *shard,
                                   struct mm_batch_size size, enum mm_passes_kind kind) {
    bool held = kind == MM_PASSES_HELD;
    struct mm_passes *p = mm_calloc(1, sizeof *p);
    *p = (struct mm_passes){
        .comm = comm, .model = model, .shard = shard, .grown = {.comm = comm, .dev = model->dev}};
    p->share = mm_share_of(comm, model->dev->exact, size);
    enum mm_keep keep = !model->recompute ? MM_KEEP_ALL
                        : held            ? MM_KEEP_INPUTS_FOR_TWO
                                          : MM_KEEP_INPUTS;
    size_t micros = p->share.micros_n ? p->share.micros_n : 1;
    if (shard)
        shard->idle = p->share.micros_n == 0;
    p->group = model->source && !model->dev->exact ? p->share.steps : 1;
    p->acts_n = held || p->group > micros ? micros : p->group;
    p->acts = mm_calloc(p->acts_n, sizeof *p->acts);
    p->dhidden = mm_calloc(p->acts_n, sizeof *p->dhidden);
    size_t n = p->share.micro_batch * size.T, C = model->arch.width;
    bool *wanted = mm_calloc(model->params_n, sizeof *wanted);
    for (size_t i = 0; shard && i < model->params_n; i++)
        wanted[i] = shard->grads[i] != NULL;
    for (size_t i = 0; i < p->acts_n; i++) {
        mm_acts_create(&p->acts[i], arena, model, n, shard ? wanted : NULL, keep);
        if (p->group > 1)
            mm_acts_separate(&p->acts[i], arena, model);
        if (held)
            p->dhidden[i] = mm_arena_mat(arena, MM_FOR_ACTIVATIONS, model->dtype, n, C);
    }
    mm_free(wanted);
    if (shard)
        p->dhidden_now = mm_arena_mat(arena, MM_FOR_SCRATCH, model->dtype, n, C);
    mm_scratch_create(&p->scratch, arena, model, n, shard ? MM_WITH_BACKWARD : MM_FORWARD_ONLY);
    mm_head_create(&p->head, arena, model, n, held ? MM_TWO_LOSSES : MM_ONE_LOSS);
    return p;
}

void mm_passes_free(struct mm_passes *p) {
    if (!p)
        return;
    for (size_t i = 0; i < p->acts_n; i++)
        mm_acts_free(&p->acts[i]);
    mm_free(p->acts);
    mm_free(p->dhidden);
    mm_free(p);
}
