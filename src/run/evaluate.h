/* evaluate.h - losses on held-out batches, multiple-choice accuracy, and the divergence from the
 * model as it was (docs/method.md 9). */
#ifndef MM_EVALUATE_H
#define MM_EVALUATE_H

#include "io/dataset.h"
#include "io/metrics.h"
#include "src/config/config.h"
#include "src/parallel/passes.h"
#include "src/run/divergence.h"

/* The token files of a run, NULL where the config names none. */
struct mm_data {
    struct mm_dataset retain, forget, retain_validation, forget_validation;
    struct mm_dataset retain_evaluation, forget_evaluation;
    struct mm_dataset kl;
    struct mm_questions *questions; /* [questions_n], as config->evaluate.multiple_choice */
    size_t questions_n;
};

/* Reads every file the config names, checked against the vocabulary. Local. */
enum mm_status mm_data_read(struct mm_data *data, const struct mm_config *config, size_t vocab,
                            struct mm_error *err);
void mm_data_free(struct mm_data *data);
/* The longest sequence any of it puts through the model. Local. */
size_t mm_data_longest(const struct mm_data *data, const struct mm_config *config);

struct mm_evaluation {
    double forget_loss, retain_loss;  /* mean cross-entropy */
    double forget_answer_probability; /* mean over rows of exp(-mean cross-entropy of the row) */
    double kl;                        /* mean KL(start || now); infinite where it is no number; NaN:
                                         not measured */
    double *accuracy;                 /* [questions_n] */
};

struct mm_evaluator {
    const struct mm_config *config;
    const struct mm_data *data;
    struct mm_comm *comm;
    struct mm_model *model;
    struct mm_passes *passes; /* forward only */
    struct mm_batch batch;
    struct mm_acts acts; /* of questions */
    uint32_t *tokens;    /* theirs, device */
    struct mm_scratch scratch;
    struct mm_mat last, logits; /* [micro_batch, C], [micro_batch, V]: one position a question */
    double *loss;               /* device */
    float *terms;               /* [share·T], device: of the positions of a batch */
    struct mm_divergence *divergence; /* NULL: without evaluate.kl.file */
};

/* Local. The caller frees before the arena. */
struct mm_evaluator *mm_evaluator_create(struct mm_arena *arena, const struct mm_config *config,
                                         const struct mm_data *data, struct mm_comm *comm,
                                         struct mm_model *model);
void mm_evaluator_free(struct mm_evaluator *evaluator);

/* Bytes of host memory that evaluations take for logits: of the model as it was, for the
 * divergence, and of questions. Local. */
size_t mm_evaluator_bytes(const struct mm_evaluator *evaluator);

/* Takes the working weights for the model as it was, from which later evaluations measure the
 * divergence; nothing without evaluate.kl.file. MM_FAILED where these weights themselves diverge
 * from it. Collective. */
enum mm_status mm_evaluator_keep_start(struct mm_evaluator *evaluator, struct mm_error *err);

/* Evaluates the working weights; out->accuracy is [questions_n] of the caller's. Collective. */
void mm_evaluate(struct mm_evaluator *evaluator, struct mm_evaluation *out);

/* All measures NaN. Local. */
void mm_evaluation_clear(struct mm_evaluation *evaluation, size_t questions_n);
/* Whether every measure is that was taken, and every one of the questions_n accuracies. Local. */
bool mm_evaluation_finite(const struct mm_evaluation *evaluation, size_t questions_n);

/* Share of questions answered right (temperature 0: argmax) or mean probability of the right answer
 * among the choices (temperature 1); NaN where a choice's logit is not finite. Collective. */
double mm_evaluate_questions(struct mm_evaluator *evaluator, const struct mm_questions *questions,
                             double temperature);

#endif
