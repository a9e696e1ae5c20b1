/* evaluate.h - losses on held-out batches and multiple-choice accuracy (docs/method.md 9). */
#ifndef MM_EVALUATE_H
#define MM_EVALUATE_H

#include "io/dataset.h"
#include "io/metrics.h"
#include "src/config/config.h"
#include "src/parallel/passes.h"

/* The token files of a run, NULL where the config names none. */
struct mm_data {
    struct mm_dataset retain, forget, retain_validation, forget_validation;
    struct mm_dataset retain_evaluation, forget_evaluation;
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
    double forget_loss, retain_loss; /* mean cross-entropy */
    double *accuracy;                /* [questions_n] */
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
};

/* Local. The caller frees before the arena. */
struct mm_evaluator *mm_evaluator_create(struct mm_arena *arena, const struct mm_config *config,
                                         const struct mm_data *data, struct mm_comm *comm,
                                         struct mm_model *model);
void mm_evaluator_free(struct mm_evaluator *evaluator);

/* Evaluates the working weights; out->accuracy is [questions_n] of the caller's. Collective. */
void mm_evaluate(struct mm_evaluator *evaluator, struct mm_evaluation *out);

/* Whether every loss is, and every one of the questions_n accuracies. Local. */
bool mm_evaluation_finite(const struct mm_evaluation *evaluation, size_t questions_n);

/* Share of questions answered right (temperature 0: argmax) or mean probability of the right answer
 * among the choices (temperature 1); NaN where a choice's logit is not finite. Collective. */
double mm_evaluate_questions(struct mm_evaluator *evaluator, const struct mm_questions *questions,
                             double temperature);

#endif
