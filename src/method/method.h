/* method.h - what the phase around a method asks of it. A new method is one file that fills a
 * struct mm_method, and one row in method.c. */
#ifndef MM_METHOD_H
#define MM_METHOD_H

#include "src/config/config.h"
#include "src/method/state.h"
#include "src/parallel/passes.h"

/* A method at work. Everything but `self` is borrowed from it, and valid until it is freed. */
struct mm_method_run {
    void *self;
    const struct mm_share *share;      /* which sequences of a batch are this rank's */
    const struct mm_state_list *state; /* what a checkpoint holds */
    struct mm_vector
        origin;               /* own rows of W, or of what its adapters lie on, as the model came;
                                 made from the working weights, which may be a rounding of the files */
    struct mm_vector trained; /* own rows of what a loop changes for good: W, or its adapters */
    struct mm_vector kept;    /* room for a copy of it, with evaluate.kl.budget; else data NULL */
    const struct mm_lora *adapters; /* that are trained instead of W; NULL: none */
    const double *flips; /* after the first loop: the share of W's elements that the mask would keep
                            or drop otherwise had the gradient been reduced in float32; NULL: it
                            was, or there is one rank */
};

struct mm_method {
    const char *name;
    /* Passes that a loop takes, as the paper counts them. Local. */
    size_t (*passes)(const struct mm_config *config);
    /* Takes memory, and what is trained begins as the working weights of W. On a dry arena memory
     * is counted only. Local. */
    struct mm_method_run (*create)(struct mm_arena *arena, const struct mm_config *config,
                                   struct mm_comm *comm, struct mm_model *model,
                                   struct mm_shard *shard);
    /* Before the arena and the shard. Local. */
    void (*free)(void *self);
    /* Asks for one loop, t = 0, 1, ...; retain, forget: this rank's sequences of batch t, host
     * memory, read at once. An asynchronous device is still at work on it when this returns. At
     * most two loops may be asked for whose scalars were not taken. Collective. */
    void (*loop)(void *self, size_t t, const struct mm_sequences *retain,
                 const struct mm_sequences *forget);
    /* Asks a dry device for all that it is asked in a loop without a fork. */
    void (*rehearse)(void *self);
    /* The scalars of the first loop whose scalars were not taken yet. Waits for that loop. Local.
     */
    struct mm_loop_scalars (*scalars)(void *self);
    /* Makes the unlearned weights the working ones. Returns them, in a vector over the shard; valid
     * until the next loop. Collective. */
    struct mm_vector (*store)(void *self);
};

/* The method that a config asks for. Local. */
const struct mm_method *mm_method_of(const struct mm_config *config);

/* What the guard saw first, in words. Local. */
const char *mm_guard_text(enum mm_guard guard);

#endif
