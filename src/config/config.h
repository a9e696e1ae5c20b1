/* config.h - everything a user can set, read from YAML plus key=value overrides (docs/method.md
 * says what they mean).
 *
 * One table in table.c holds a row per key: name, type, default, bounds, help. It parses,
 * checks, prints help and writes the resolved file. Only yaml.c sees yaml.h. Every function
 * is local: ranks read the same file and agree on the status afterwards. */
#ifndef MM_CONFIG_H
#define MM_CONFIG_H

#include "comm/comm.h"
#include "kernels/ops.h"

#include <limits.h>

enum mm_device_choice { MM_DEVICE_AUTO, MM_DEVICE_CPU, MM_DEVICE_CUDA };
enum mm_dtype_choice { MM_DTYPE_AUTO, MM_DTYPE_F32, MM_DTYPE_BF16 }; /* auto: by device */
enum mm_rate_scale { MM_RATE_LISTING, MM_RATE_STUDY };
enum mm_graph { MM_GRAPH_LISTING, MM_GRAPH_FRESH, MM_GRAPH_REUSE };
/* Where the weights of the layers are: whole on every rank | spread over the ranks by rows. */
enum mm_sharding { MM_SHARD_NONE, MM_SHARD_NODE, MM_SHARD_FULL, MM_SHARD_AUTO };
enum mm_recompute { MM_RECOMPUTE_NONE, MM_RECOMPUTE_LAYER };
enum mm_reduction_order { MM_REDUCTION_FAST, MM_REDUCTION_EXACT };
enum mm_on_error { MM_ON_ERROR_STOP, MM_ON_ERROR_CONTINUE };
enum mm_save_dtype { MM_SAVE_STORED, MM_SAVE_F32, MM_SAVE_BF16, MM_SAVE_F16 };

struct mm_multiple_choice {
    char *name, *file;
    double temperature; /* 0: argmax; 1: probability of the answer among the choices */
};

enum mm_optimizer { MM_SGD, MM_ADAMW };

/* An attack of relearn.attacks. What it leaves out is absent here, and as relearn has it. */
struct mm_attack {
    char *name; /* NULL: relearn itself, without a list */
    enum mm_optimizer optimizer;
    size_t passes;
    double lr;
    unsigned with_retain; /* 0 or 1 */
    size_t lora_rank;     /* of the adapters on every matrix of the layers; 0: all parameters */
    enum mm_dtype_choice state_dtype; /* of masters and moments; never auto (mm_config_attack) */
};

/* The commands, by which keys are needed: missing ones are errors. All but the last read a config;
 * command.h has a row for each. */
enum mm_command {
    MM_RUN,
    MM_RESUME,
    MM_EVAL,
    MM_PRETRAIN,
    MM_PLAN,
    MM_TRIALS,
    MM_INSPECT,
    MM_COMMANDS
};

/* Stands for a whole number without a default that is not given. */
#define MM_ABSENT SIZE_MAX
/* Stands for a choice of words that is not given. */
#define MM_ABSENT_CHOICE UINT_MAX

struct mm_config {
    struct {
        char *path;
        enum mm_dtype_choice dtype; /* auto until mm_place_open or mm_place_plan */
        enum mm_dtype state_dtype;  /* MM_F32 | MM_BF16 */
        enum mm_sharding shard;     /* auto until mm_fit_shard */
        enum mm_recompute recompute;
    } model;
    enum mm_device_choice device;
    uint64_t seed;
    struct {
        char *retain, *forget; /* NULL where absent, as all paths here */
        char *retain_validation, *forget_validation;
        char *retain_evaluation, *forget_evaluation;
        size_t batch_size;     /* sequences over all ranks */
        size_t micro_batch;    /* 0 in the file is an error; default 16 */
        size_t context_length; /* tokens a sequence */
    } data;
    struct {
        size_t loops;  /* exactly one of loops and passes is given; the other is MM_ABSENT */
        size_t passes; /* src/run/job.c turns it into loops and checks that it divides */
        char **target_modules;
        size_t target_modules_n;
        size_t lora_rank; /* of the adapters beside them, the base; 0: their weights are the base */
        enum mm_loss_fn loss_fn;
        double clip_at, npo_beta, simnpo_gamma;
        /* The rates are NaN where absent, which only commands that don't use them allow; adv_lr
         * also without train_adversary. */
        double unlearning_rate, retaining_rate, adv_lr, retain_momentum;
        size_t fork_every_n_loops;
        double adv_decay;
        double forget_momentum, discard_growing_weights, adv_update; /* 0, 1, 0: off */
        size_t adv_lora_rank, adv_lora_count; /* rank 0: the adversary is a copy of the base */
        bool train_adversary, use_masking;
        enum mm_normalization normalization;
        enum mm_rate_scale rate_scale;
        enum mm_graph graph;
        double rep_eng_retain_lr,
            rmu_coefficient; /* losses on hidden states: src/parallel/hidden_loss.h */
        bool square_norm, retain_cross_entropy;
        size_t rmu_layer;          /* MM_ABSENT: floor(layers/2) */
        double retain_loss_budget; /* NaN: none (null in the file) */
    } unlearn;
    struct {
        size_t passes; /* 0: no relearning */
        double lr;
        bool with_retain;
        enum mm_optimizer optimizer;
        size_t lora_rank;
        enum mm_dtype_choice state_dtype;
        struct mm_attack *attacks; /* [attacks_n]; none: one attack of the keys above */
        size_t attacks_n;
    } relearn;
    struct {
        size_t every_passes, batches;
        struct mm_multiple_choice *multiple_choice;
        size_t multiple_choice_n;
        struct {
            char *file;    /* NULL: no divergence is measured */
            size_t rows;   /* of the file, the first ones */
            double budget; /* NaN: none */
        } kl;
    } evaluate;
    struct {
        size_t every_loops, keep;
        enum mm_on_error on_error;
    } checkpoint;
    struct {
        char *dir;
        bool save_model;
        enum mm_save_dtype save_dtype;
        size_t hash_every_loops; /* 0: never */
    } output;
    struct {
        char *config; /* config.json of the model to make */
        size_t steps, warmup;
        double lr, betas[2], weight_decay, min_lr_ratio, clip;
    } pretrain;
    enum mm_reduction_order reduction;
    enum mm_dtype reduce_dtype;
    enum mm_transport_choice transport; /* between GPUs */
    double timeout;                     /* seconds of waiting for each other; 0: for ever */
};

/* Reads `path`, applies `overrides` ("key=value", dotted or top-level; they replace the file's
 * values; one value in YAML flow syntax, so that a text with a comma or ": " needs quotes), fills
 * defaults, checks every value, and checks that what `command` needs is there. An override of
 * unlearn.loops replaces the file's unlearn.passes, and the other way round. Relative paths become
 * absolute (from the working directory). null stands for an absent path, rate, budget, loops or
 * passes. On MM_BAD_INPUT the text reads "FILE:LINE: what; nearest valid name or bound" (a syntax
 * error: FILE:LINE:COLUMN; a missing key: FILE; an override: "argument 'key=value': ..."), and
 * *config owns nothing. On success the caller frees with mm_config_free. */
enum mm_status mm_config_read(struct mm_config *config, const char *path, char *const *overrides,
                              size_t overrides_n, enum mm_command command, struct mm_error *err);

/* The same from text in memory; `name` stands for the file in messages. */
enum mm_status mm_config_parse(struct mm_config *config, const char *text, const char *name,
                               char *const *overrides, size_t overrides_n, enum mm_command command,
                               struct mm_error *err);

/* Frees what the config owns and zeroes it. It is safe on a zeroed struct. */
void mm_config_free(struct mm_config *config);

/* The type of arithmetic, for a config whose model.dtype is not auto any more. */
static inline enum mm_dtype mm_config_dtype(const struct mm_config *config) {
    return config->model.dtype == MM_DTYPE_BF16 ? MM_BF16 : MM_F32;
}

/* The number of attacks to make: those of the list, or one. */
static inline size_t mm_config_attacks_n(const struct mm_config *config) {
    return config->relearn.attacks_n ? config->relearn.attacks_n : 1;
}
/* Attack i, with nothing absent. The name is borrowed. */
struct mm_attack mm_config_attack(const struct mm_config *config, size_t i);
/* The passes of all attacks together. 0: there is no relearning. */
size_t mm_config_relearn_passes(const struct mm_config *config);

/* Every key with its resolved value, as YAML that mm_config_parse reads back to the same values. A
 * double has 17 digits if 15 are not enough. The caller frees the text with mm_free. */
char *mm_config_yaml(const struct mm_config *config);

/* Returns MM_BAD_INPUT if an override of `resume` would change the finished loops. Allowed are
 * those keys whose rows have MM_KEY_RESUMABLE. The caller, who knows the finished loops, checks
 * that unlearn.loops (or passes) are not fewer. */
enum mm_status mm_config_check_resume(char *const *overrides, size_t overrides_n,
                                      struct mm_error *err);

/* The `timeout` to use while no config has been read: that of the last override of it that is
 * valid, or the default. Local. */
double mm_config_early_timeout(char *const *overrides, size_t overrides_n);

/* Ranks wait this many times as long as `timeout` says if they wait for another rank's files: at
 * start-up, checkpoint, export and exit. */
#define MM_PATIENCE_FOR_FILES 6

enum mm_config_keys { MM_CONFIG_ALL_KEYS, MM_CONFIG_KEYS_OF_RESUME }; /* all | may change then */
/* The keys, each with its default, bounds and meaning, for --help, but for those of `unused`:
 * sections or whole keys, each after a ' '; NULL: none. The caller frees with mm_free. */
char *mm_config_help(const char *unused, enum mm_config_keys keys);

#endif
