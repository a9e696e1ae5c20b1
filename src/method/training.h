/* training.h - training: relearning of all parameters or of adapters or both, by SGD or AdamW;
 * pretraining.
 *
 * Masters of every trained tensor are spread over the ranks like W in unlearning; a step reduces
 * the gradients to their owners, updates there, and gathers the weights. Where the layers are
 * spread (src/parallel/spread.h) an attack on all parameters, whose steps need no norm first,
 * updates each layer when its gradient arrives, and no rank keeps the gradients of all. */
#ifndef MM_TRAINING_H
#define MM_TRAINING_H

#include "src/config/config.h"
#include "src/method/lora.h"
#include "src/parallel/passes.h"
#include "src/parallel/sums.h"

struct mm_training {
    struct mm_comm *comm;
    struct mm_model *model;
    struct mm_shard *shard; /* every tensor, or (alone) the adapted ones; owned */
    struct mm_passes *passes;
    struct mm_batch batch;
    struct mm_lora *lora;           /* owned; NULL: none */
    bool alone;                     /* the adapters are trained, and nothing else */
    struct mm_vector p, g;          /* masters (LoRA: W0), reduced gradient; g without data where
                                       each layer's is taken as it arrives */
    struct mm_vector first, second; /* AdamW's moments; data NULL for SGD */
    struct mm_sums over_all;        /* sums over all ranks */
    double *scalars;                /* device: loss, sum of squares */
    size_t steps;                   /* of an attack, so far */
    float *room;                    /* see mm_lora_store; NULL where it is not called */
    const struct mm_attack *taking; /* whose gradients are being taken as they arrive; or NULL */
    const char *wrecked;            /* why the last step was not taken; NULL: it was */
};

/* Training of all parameters. Masters and moments are `dtype` (float32; bfloat16 repeats the
 * authors' relearning) and start as the working weights. Local; the caller frees before the arena.
 */
struct mm_training *mm_training_create(struct mm_arena *arena, struct mm_comm *comm,
                                       struct mm_model *model, struct mm_batch_size size,
                                       enum mm_dtype dtype, enum mm_optimizer optimizer);
/* What an attack trains, with batches as in the config. Masters and moments are of the attack's
 * state_dtype.
 *
 * Adapters that were unlearned with (unlearn.lora_rank) stay attached: an attack on all parameters
 * trains them, too, and the masters start as the working weights less the adapters'. adapters: own
 * rows of them, host memory; NULL: they begin as in unlearning. To an attack by adapters of its own
 * they are part of the frozen weights. Collective; the caller frees before the arena. */
struct mm_training *mm_training_create_attack(struct mm_arena *arena, struct mm_comm *comm,
                                              struct mm_model *model,
                                              const struct mm_config *config,
                                              const struct mm_attack *attack,
                                              const float *adapters);
void mm_training_free(struct mm_training *training);

/* One step of an attack on cross-entropy, by its optimizer and lr: SGD without momentum, or AdamW
 * with betas 0.9 and 0.999, epsilon 1e-8 and no decay; own: this rank's sequences. Returns the
 * loss before the step. The step is not taken, and `wrecked` says so on every rank, where the loss
 * or the gradient is not finite, or the gradient is zero everywhere and the loss is not.
 * Collective. */
double mm_training_attack(struct mm_training *training, const struct mm_sequences *own,
                          const struct mm_attack *attack);

/* Asks a dry device for all that it is asked in a step. */
void mm_training_rehearse(struct mm_training *training, const struct mm_attack *attack);

/* One step of pretraining by AdamW, t = 0, 1, ...: linear warm-up, cosine to min_lr_ratio, gradient
 * clipped to the norm `clip`, matrices decayed. Returns the loss before the step; `wrecked` as
 * above. Collective. */
double mm_training_adamw(struct mm_training *training, const struct mm_sequences *own,
                         const struct mm_config *config, size_t t);

/* The learning rate of pretraining step t. Local. */
double mm_pretrain_rate(const struct mm_config *config, size_t t);

/* Weights of a new model: normal with the config's standard deviation, norms 1, biases 0, from the
 * seed and each element's place alone. Local. */
void mm_model_randomize(struct mm_model *model, uint64_t seed);

#endif
