/* job.h - what every command stands on: model, data, evaluation, the run folder.
 *
 * mm_job_open checks everything that can be checked before the first pass, so that bad input costs
 * nothing but a message. */
#ifndef MM_JOB_H
#define MM_JOB_H

#include <math.h>

#include "io/owner.h"
#include "src/run/evaluate.h"
#include "src/run/identity.h"
#include "src/method/training.h"

/* Who is told of every evaluation of a phase, on every rank: MM_REJECTED, with a text, gives the
 * phase up. Collective. */
struct mm_listener {
    void *self;
    enum mm_status (*evaluated)(void *self, const char *at, size_t passes,
                                const struct mm_evaluation *evaluation, struct mm_error *err);
};

/* What became of an attack. */
struct mm_attack_end {
    double score;       /* its lowest forget loss; NaN: not made, or diverged */
    char *diverged;     /* why it is no evidence; NULL: it is, or was not made */
    double retain_loss; /* at its end; NaN: not made */
};

/* What a job has found out so far. */
struct mm_results {
    struct mm_evaluation at_start, after_unlearning, after_relearning;
    size_t kept_passes; /* of unlearning that the kept weights have, where the divergence went
                           beyond its budget; SIZE_MAX: it did not */
    size_t attacks_n;   /* 0: none made */
    struct mm_attack_end *attacks; /* as mm_config_attack */
    double started;                /* mm_now() */
    double busy;                   /* seconds in loops and steps, their evaluations included */
};

/* What one phase leaves for the next, or says of itself while it runs. */
struct mm_phase {
    float *adapters;    /* own rows of those that were unlearned with (unlearn.lora_rank), host
                           memory; NULL: none */
    const char *attack; /* the name of the one under way; NULL: none, or there is no list */
    bool advanced;      /* this process completed loops: a resume need not repeat them */
};

struct mm_job {
    struct mm_comm *comm;           /* borrowed */
    struct mm_device *dev;          /* borrowed */
    const struct mm_config *config; /* borrowed; model.dtype is not auto any more */
    struct mm_arch arch;
    struct mm_weights *weights; /* NULL when pretraining */
    struct mm_data data;
    struct mm_identity identity; /* of all the inputs; nothing in a plan */
    struct mm_arena *arena;      /* weights and evaluation: lives as long as the job */
    struct mm_model *model;
    struct mm_spread *spread; /* model.shard: full; else NULL */
    struct mm_evaluator *evaluator;
    struct mm_metrics *metrics; /* rank 0 of a run; NULL elsewhere */
    struct mm_owner *owner;     /* of the run folder; borrowed; NULL: nothing is written */
    bool again; /* the folder is of a run that stopped before its first checkpoint */
    bool trial; /* no run folder: nothing is written, and results.at_start is known */
    struct mm_listener listener; /* evaluated NULL: nobody */
    struct mm_results results;
    struct mm_phase phase;
};

/* What a command needs of the job. */
enum mm_job_kind {
    MM_JOB_TRAIN,    /* run, resume: everything */
    MM_JOB_EVALUATE, /* eval */
    MM_JOB_PRETRAIN, /* a model from its config.json, weights random */
    MM_JOB_PLAN,     /* dry: memory is counted, not taken; weights are checked, not loaded */
};

/* Collective; every rank returns the same status. On failure nothing is left open. */
enum mm_status mm_job_open(struct mm_job *job, struct mm_comm *comm, struct mm_device *dev,
                           const struct mm_config *config, enum mm_job_kind kind,
                           struct mm_error *err);
void mm_job_close(struct mm_job *job);

/* Creates the run folder with config.yaml, claims it for job->owner and opens metrics.jsonl.
 * MM_BAD_INPUT when the folder belongs to another job, or holds metrics or checkpoints. Collective.
 */
enum mm_status mm_job_open_folder(struct mm_job *job, struct mm_error *err);
/* The same on a resume, for which the folder is claimed already: metrics.jsonl is cut to
 * keep_bytes. Collective. */
enum mm_status mm_job_reopen_folder(struct mm_job *job, size_t keep_bytes, struct mm_error *err);

/* After the checkpoint for a stop is complete: the file `stopped` in the run folder says so, to
 * scripts that get another exit status than MM_STOPPED since a rank left late. mm_job_open_folder
 * removes it. Local. */
void mm_job_mark_stopped(const struct mm_job *job);

/* The watchdog goes on to a section in which ranks wait for each other's work, or files. Local. */
void mm_job_watch(const struct mm_job *job, const char *what, size_t number);
void mm_job_watch_files(const struct mm_job *job, const char *what, size_t number);

/* Forgets what became of attacks. Local. */
void mm_job_forget_attacks(struct mm_job *job);
/* What attacks start from: after unlearning, or at the start where there was none. Local. */
const struct mm_evaluation *mm_job_before_attacks(const struct mm_job *job);
/* The attack that the score is of; SIZE_MAX: none. Local. */
size_t mm_job_scored(const struct mm_job *job, double score);
/* A loss that has risen by this: the perplexity has doubled. Of the forget loss, the attack went
 * uphill (less is what one without effect may do); of the retain loss, it broke the model. */
#define MM_UPHILL M_LN2

/* MM_BAD_INPUT if the passes of relearning don't divide into steps. Local. */
enum mm_status mm_job_check_attacks(const struct mm_config *config, struct mm_error *err);

/* Loops of the config, from `loops` or `passes`. MM_BAD_INPUT if passes don't divide. Local. */
enum mm_status mm_job_loops(const struct mm_config *config, size_t *loops, struct mm_error *err);

#endif
