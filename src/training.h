/* training.h - training of all parameters: relearning by SGD, pretraining by AdamW.
 *
 * Float32 masters of every tensor are spread over the ranks like W in unlearning; a step reduces
 * the gradients to their owners, updates there, and gathers the weights. */
#ifndef MM_TRAINING_H
#define MM_TRAINING_H

#include "src/config.h"
#include "src/passes.h"

struct mm_training {
    struct mm_comm *comm;
    struct mm_model *model;
    struct mm_shard *shard; /* every tensor; owned */
    struct mm_passes *passes;
    struct mm_batch batch;
    struct mm_vector p, g;          /* masters, reduced gradient */
    struct mm_vector first, second; /* AdamW's moments; data NULL for SGD */
    double *scalars;                /* device: loss, sum of squares */
};

/* Masters are `dtype` (float32; bfloat16 repeats the authors' relearning). batch_size: sequences a
 * step over all ranks. Masters start as the working weights. Local; the caller frees before the
 * arena. */
struct mm_training *mm_training_create(struct mm_arena *arena, struct mm_comm *comm,
                                       struct mm_model *model, size_t batch_size,
                                       size_t micro_batch, size_t T, enum mm_dtype dtype,
                                       bool adamw);
void mm_training_free(struct mm_training *training);

/* One step of SGD without momentum on cross-entropy; tokens: this rank's sequences. Returns the
 * loss before the step; weights are left as they were if it is not finite. Collective. */
double mm_training_sgd(struct mm_training *training, const uint32_t *tokens, double rate);

/* One step of AdamW, t = 0, 1, ...: linear warm-up, cosine to min_lr_ratio, gradient clipped to the
 * norm `clip`, matrices decayed. Returns the loss before the step. Collective. */
double mm_training_adamw(struct mm_training *training, const uint32_t *tokens,
                         const struct mm_config *config, size_t t);

/* The learning rate of pretraining step t. Local. */
double mm_pretrain_rate(const struct mm_config *config, size_t t);

/* Weights of a new model: normal with the config's standard deviation, norms 1, biases 0, from the
 * seed and each element's place alone. Local. */
void mm_model_randomize(struct mm_model *model, uint64_t seed);

#endif
