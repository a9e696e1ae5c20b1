/* table.c - see table.h.
 *
 * A new key is a field of struct mm_config and a row here. The macros stop the compilation if the
 * type of the field is not the one that the row's readers and writers assume. */
#include "src/config/table.h"

#include "src/config/command.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* ---- the names of values ---- */

#define NAMES(variable, ...)                                                                       \
    static const struct mm_config_name variable[] = {__VA_ARGS__, {NULL, 0}}

NAMES(device_names, {"auto", MM_DEVICE_AUTO}, {"cpu", MM_DEVICE_CPU}, {"cuda", MM_DEVICE_CUDA});
NAMES(dtype_names, {"auto", MM_DTYPE_AUTO}, {"float32", MM_DTYPE_F32}, {"bfloat16", MM_DTYPE_BF16});
NAMES(state_names, {"float32", MM_F32}, {"bfloat16", MM_BF16});
NAMES(loss_names, {"neg_cross_entropy", MM_LOSS_NEG_CROSS_ENTROPY},
      {"neg_entropy", MM_LOSS_NEG_ENTROPY},
      {"correct_logit_minus_avg", MM_LOSS_CORRECT_LOGIT_MINUS_AVG}, {"npo", MM_LOSS_NPO},
      {"simnpo", MM_LOSS_SIMNPO}, {"circuit_breaker", MM_LOSS_CIRCUIT_BREAKER},
      {"stream_activation", MM_LOSS_STREAM_ACTIVATION}, {"rmu", MM_LOSS_RMU});
NAMES(normalization_names, {"global_pre_mask", MM_NORM_GLOBAL_PRE_MASK},
      {"global_post_mask", MM_NORM_GLOBAL_POST_MASK}, {"per_parameter", MM_NORM_PER_PARAMETER},
      {"none", MM_NORM_NONE});
NAMES(rate_names, {"listing", MM_RATE_LISTING}, {"study", MM_RATE_STUDY});
NAMES(graph_names, {"listing", MM_GRAPH_LISTING}, {"fresh", MM_GRAPH_FRESH},
      {"reuse", MM_GRAPH_REUSE});
NAMES(error_names, {"stop", MM_ON_ERROR_STOP}, {"continue", MM_ON_ERROR_CONTINUE});
NAMES(save_names, {"stored", MM_SAVE_STORED}, {"float32", MM_SAVE_F32}, {"bfloat16", MM_SAVE_BF16},
      {"float16", MM_SAVE_F16});
NAMES(transport_names, {"auto", MM_TRANSPORT_AUTO}, {"nccl", MM_TRANSPORT_NCCL},
      {"staged", MM_TRANSPORT_STAGED});
NAMES(optimizer_names, {"sgd", MM_SGD}, {"adamw", MM_ADAMW});
NAMES(bool_names, {"false", false}, {"true", true}); /* where it may be absent */
NAMES(recompute_names, {"none", MM_RECOMPUTE_NONE}, {"layer", MM_RECOMPUTE_LAYER});
NAMES(shard_names, {"auto", MM_SHARD_AUTO}, {"none", MM_SHARD_NONE}, {"node", MM_SHARD_NODE},
      {"full", MM_SHARD_FULL});
NAMES(reduction_names, {"fast", MM_REDUCTION_FAST}, {"exact", MM_REDUCTION_EXACT});

/* ---- the rows ---- */

/* The offset of a field; an array of negative size, an error, if the field is not of the type that
 * the row's readers and writers assume. */
#define FIELD(owner, type, field)                                                                  \
    (offsetof(owner, field) +                                                                      \
     0 * sizeof(                                                                                   \
             char[__builtin_types_compatible_p(type, __typeof__(((owner *)0)->field)) ? 1 : -1]))
#define AT(type, field) FIELD(struct mm_config, type, field)
#define ENUM_AT(field)                                                                             \
    (offsetof(struct mm_config, field) +                                                           \
     0 * sizeof(char[sizeof(((struct mm_config *)0)->field) == sizeof(unsigned) ? 1 : -1]))
_Static_assert(sizeof(size_t) == sizeof(uint64_t), "integers are read as 64 bits");

#define INTEGER(field, initial, bounds, flags, help)                                               \
    { #field, MM_KEY_INTEGER, AT(size_t, field), 0, initial, bounds, NULL, flags, help }
#define NUMBER(field, initial, bounds, flags, help)                                                \
    { #field, MM_KEY_NUMBER, AT(double, field), 0, initial, bounds, NULL, flags, help }
#define BOOL(field, initial, flags, help)                                                          \
    { #field, MM_KEY_BOOL, AT(bool, field), 0, initial, NULL, NULL, flags, help }
#define PATH(field, flags, help)                                                                   \
    { #field, MM_KEY_PATH, AT(char *, field), 0, NULL, NULL, NULL, flags, help }
#define NAMED(name, field, initial, values, flags, help)                                           \
    { name, MM_KEY_ENUM, ENUM_AT(field), 0, initial, NULL, values, flags, help }
#define ENUM(field, initial, values, flags, help) NAMED(#field, field, initial, values, flags, help)

#define RUN       MM_KEY_NEEDED_BY(MM_RUN)
#define RESUME    MM_KEY_NEEDED_BY(MM_RESUME)
#define EVAL      MM_KEY_NEEDED_BY(MM_EVAL)
#define PRETRAIN  MM_KEY_NEEDED_BY(MM_PRETRAIN)
#define UNLEARN   (RUN | RESUME | MM_KEY_NEEDED_BY(MM_PLAN) | MM_KEY_NEEDED_BY(MM_TRIALS))
#define RESUMABLE MM_KEY_RESUMABLE
#define ASIDE     MM_KEY_ASIDE

/* Generous, but such that products of a few of them stay in range. */
#define SEQUENCES "[1, 1000000]"
#define COUNTS    "[1, 1000000000]"
#define RATE      "[0, 1000000000]"
#define POSITIVE  "(0, 1000000000]"

const struct mm_config_row mm_config_rows[] = {
    PATH(model.path, UNLEARN | EVAL | RESUMABLE,
         "The model: a Hugging Face folder with config.json and *.safetensors."),
    ENUM(model.dtype, "auto", dtype_names, 0,
         "The type that forward and backward compute in. auto: bfloat16 on cuda, float32 on cpu."),
    ENUM(model.state_dtype, "float32", state_names, 0,
         "The type that base, adversary and accumulators are kept in. bfloat16 repeats the "
         "rounding of the authors' Llama runs."),
    ENUM(
        model.shard, "none", shard_names, RESUMABLE | ASIDE,
        "none: every rank holds the whole model. full: every rank holds its rows of every layer, "
        "and a layer is gathered just before it is read. node: the ranks of each machine also keep "
        "a copy among them, from which they gather what has not changed. auto: the first of none, "
        "node and full that plan says fits into memory. The results are the same bits."),
    ENUM(model.recompute, "none", recompute_names, RESUMABLE | ASIDE,
         "layer: a backward computes the activations of each layer anew from the layer's input, "
         "which takes about a third more time and far less memory. The results are the same."),
    ENUM(device, "auto", device_names, RESUMABLE | ASIDE,
         "Where the arithmetic runs. auto: cuda if every rank has a GPU, else cpu."),
    {"seed", MM_KEY_INTEGER, AT(uint64_t, seed), 0, "42", "[0, 18446744073709551615]", NULL, 0,
     "The seed of everything that is random."},
    PATH(data.retain, UNLEARN | PRETRAIN | RESUMABLE, "Token file of the text to keep."),
    PATH(data.forget, UNLEARN | RESUMABLE,
         "Token file of the text to unlearn. pretrain trains on it too, if it is given."),
    PATH(data.retain_validation, UNLEARN | RESUMABLE,
         "Token file of text to keep. Its first evaluate.batches batches are for evaluation, the "
         "following ones for relearning."),
    PATH(data.forget_validation, UNLEARN | RESUMABLE,
         "The same for the text to unlearn. eval needs these two files or the next two."),
    PATH(data.retain_evaluation, RESUMABLE,
         "With this file and the next one evaluation uses these two instead, and relearning starts "
         "at batch 0 of the validation files."),
    PATH(data.forget_evaluation, RESUMABLE,
         "Is given together with retain_evaluation or not at all."),
    INTEGER(data.batch_size, "16", SEQUENCES, 0, "The sequences in a batch, over all ranks."),
    INTEGER(data.micro_batch, "16", SEQUENCES, ASIDE,
            "The sequences that a rank puts through the model at once. With reduction exact: those "
            "of a leaf, 1 by default."),
    INTEGER(data.context_length, "100", "[2, 1000000]", 0,
            "The tokens in a sequence. A wider token file is cut to its first columns."),
    INTEGER(unlearn.loops, NULL, "[0, 1000000000]", RESUMABLE,
            "How often Algorithm 1 is run through; 0 is for relearning only. Either this or passes "
            "is needed."),
    INTEGER(unlearn.passes, NULL, COUNTS, RESUMABLE,
            "Instead of loops: the number of forward and backward passes, a multiple of the passes "
            "of a loop."),
    {"unlearn.target_modules", MM_KEY_WORDS, AT(char **, unlearn.target_modules),
     AT(size_t, unlearn.target_modules_n), "[gate_proj]", NULL, NULL, 0,
     "The modules whose weights are unlearned, such as [gate_proj, v_proj]."},
    INTEGER(
        unlearn.lora_rank, "0", "[0, 65536]", 0,
        "If not 0, adapters of this rank beside these weights are trained instead of the weights."),
    NAMED("unlearn.unlearning_loss_fn", unlearn.loss_fn, "neg_cross_entropy", loss_names, 0,
          "The loss that the unlearning gradient minimizes on the forget batch."),
    NUMBER(unlearn.clip_at, "0", "[-1000000000, 1000000000]", 0,
           "The least value of correct_logit_minus_avg at a position."),
    NUMBER(unlearn.npo_beta, "0.1", POSITIVE, 0, "The inverse temperature of npo and simnpo."),
    NUMBER(unlearn.simnpo_gamma, "0", "[-1000000000, 1000000000]", 0, "The margin of simnpo."),
    NUMBER(unlearn.unlearning_rate, NULL, RATE, UNLEARN,
           "The rate of the base's step along the unlearning gradient."),
    NUMBER(unlearn.retaining_rate, NULL, RATE, UNLEARN,
           "The rate of the base's step along the retain accumulator."),
    NUMBER(unlearn.adv_lr, NULL, POSITIVE, UNLEARN,
           "The rate of the adversary's step. It is not needed without train_adversary."),
    NUMBER(unlearn.retain_momentum, "0.9", "[0, 1)", 0,
           "The share that the retain accumulator keeps of itself each loop."),
    INTEGER(unlearn.fork_every_n_loops, "32", COUNTS, 0,
            "The adversary is copied from the base anew every so many loops."),
    NUMBER(unlearn.adv_decay, "1.0", "[0, 1]", 0,
           "The share that the adversary keeps of itself each loop; the rest is the base."),
    NUMBER(unlearn.forget_momentum, "0", "[0, 1)", 0,
           "If not 0, an accumulator with this decay takes the place of the unlearning gradient."),
    NUMBER(unlearn.discard_growing_weights, "1", "[0, 1]", 0,
           "The share that is left of an unlearning step that would make a weight larger."),
    NUMBER(unlearn.adv_update, "0", RATE, 0,
           "The adversary takes the unlearning step too, multiplied by this."),
    INTEGER(unlearn.adv_lora_rank, "0", "[0, 65536]", 0,
            "If not 0, the adversary is the base with adapters of this rank; else it is a copy of "
            "the base."),
    INTEGER(unlearn.adv_lora_count, "1", "[1, 1000]", 0,
            "The number of sets of such adapters, which take turns. One set begins anew every "
            "floor(fork_every_n_loops / 6) * 6 / count loops."),
    BOOL(unlearn.train_adversary, "true", 0,
         "false: the unlearning gradient is taken from the base itself."),
    BOOL(unlearn.use_masking, "true", 0,
         "Weights are unlearned only where the unlearning gradient and the retain accumulator have "
         "the same sign."),
    ENUM(unlearn.normalization, "global_pre_mask", normalization_names, 0,
         "The norm that divides the unlearning gradient: of all weights before or after the mask, "
         "or of each tensor after it."),
    ENUM(unlearn.rate_scale, "listing", rate_names, 0,
         "study: the two global norms also multiply the rate by the root of the number of trained "
         "weights, as the authors' searches do."),
    ENUM(unlearn.graph, "listing", graph_names, 0,
         "How the unlearning gradient is taken. listing: as the paper's code does; fresh: as "
         "Algorithm 1 says; reuse: one backward serves both losses (neg_cross_entropy only)."),
    NUMBER(unlearn.rep_eng_retain_lr, "0", RATE, 0,
           "The retain loss has the distance of hidden states from those of the initial model, "
           "with this weight."),
    BOOL(unlearn.square_norm, "false", 0, "That distance is squared."),
    BOOL(unlearn.retain_cross_entropy, "true", 0,
         "false: the retain loss is that distance alone. This needs rep_eng_retain_lr."),
    INTEGER(unlearn.rmu_layer, NULL, "[1, 1000000]", 0,
            "rmu: the layer whose input is steered. null: the one in the middle."),
    NUMBER(unlearn.rmu_coefficient, "6.5", RATE, 0,
           "rmu: the length of the random vector that it is steered to."),
    NUMBER(unlearn.retain_loss_budget, NULL, RATE, 0,
           "A run is rejected if its retain loss exceeds the initial one by more than this. null: "
           "never. The paper has 0.05."),
    INTEGER(relearn.passes, "120", "[0, 1000000000]", RESUMABLE,
            "The forward and backward passes of the attack. 0: no attack."),
    NUMBER(relearn.lr, "1.0e-3", POSITIVE, RESUMABLE, "The rate of the attack."),
    BOOL(relearn.with_retain, "false", RESUMABLE,
         "The attack makes a retain step after each forget step."),
    ENUM(relearn.optimizer, "sgd", optimizer_names, RESUMABLE,
         "The optimizer of the attack. adamw has betas 0.9 and 0.999 and no weight decay."),
    INTEGER(relearn.lora_rank, "0", "[0, 65536]", RESUMABLE,
            "If not 0, the attack trains adapters of this rank on the matrices of the layers; else "
            "all parameters."),
    ENUM(relearn.state_dtype, "auto", dtype_names, RESUMABLE,
         "The type of the masters that the attack trains and of AdamW's moments; adapters are "
         "always "
         "float32. auto: model.state_dtype for sgd, float32 for adamw."),
    {"relearn.attacks", MM_KEY_ATTACKS, AT(struct mm_attack *, relearn.attacks),
     AT(size_t, relearn.attacks_n), "[]", NULL, NULL, RESUMABLE,
     "Several attacks, each on the unlearned model. The score is the worst of them. What one "
     "leaves out is as relearn has it."},
    INTEGER(evaluate.every_passes, "30", COUNTS, RESUMABLE,
            "An evaluation is made every so many passes."),
    INTEGER(evaluate.batches, "1", "[1, 1000000]", RESUMABLE, "The batches in an evaluation."),
    {"evaluate.multiple_choice", MM_KEY_CHOICES,
     AT(struct mm_multiple_choice *, evaluate.multiple_choice),
     AT(size_t, evaluate.multiple_choice_n), "[]", NULL, NULL, RESUMABLE,
     "Question files. temperature 0 (the default) counts right answers; 1 averages the probability "
     "of the right answer."},
    PATH(evaluate.kl.file, RESUMABLE,
         "Token file. Every evaluation measures the mean divergence KL(start || now) on it: of the "
         "next-token distributions of the model as it is from those of the model as it was."),
    INTEGER(evaluate.kl.rows, "128", SEQUENCES, 0, "How many of its rows, the first ones."),
    NUMBER(evaluate.kl.budget, NULL, RATE, 0,
           "Unlearning ends at the evaluation that finds more than this, and the last evaluated "
           "state within it is kept. null: never."),
    INTEGER(checkpoint.every_loops, "10", COUNTS, RESUMABLE | ASIDE,
            "A checkpoint is written every so many loops."),
    INTEGER(checkpoint.keep, "2", "[1, 1000000]", RESUMABLE | ASIDE,
            "The number of newest checkpoints that are kept."),
    ENUM(checkpoint.on_error, "stop", error_names, RESUMABLE | ASIDE,
         "When a checkpoint cannot be written: stop the run, or warn and continue."),
    PATH(output.dir, RUN | RESUME | PRETRAIN | ASIDE,
         "The run folder, for metrics, checkpoints and the model."),
    BOOL(output.save_model, "true", RESUMABLE | ASIDE,
         "The unlearned model is exported for transformers."),
    ENUM(output.save_dtype, "stored", save_names, RESUMABLE | ASIDE,
         "The type of the exported weights. stored: the type that they have in model.path."),
    INTEGER(output.hash_every_loops, "0", "[0, 1000000000]", RESUMABLE | ASIDE,
            "If not 0, the metrics have a hash of base, adversary and accumulators every so many "
            "loops."),
    PATH(pretrain.config, PRETRAIN | ASIDE, "The config.json of the model to make."),
    INTEGER(pretrain.steps, "1200", COUNTS, ASIDE, "The number of AdamW steps."),
    NUMBER(pretrain.lr, "5.0e-3", POSITIVE, ASIDE, "The rate at its peak."),
    {"pretrain.betas", MM_KEY_PAIR, AT(double[2], pretrain.betas), 0, "[0.9, 0.95]", "[0, 1)", NULL,
     ASIDE, "The decays of the two moments."},
    NUMBER(pretrain.weight_decay, "0.1", RATE, ASIDE, "The weight decay, which is decoupled."),
    INTEGER(pretrain.warmup, "50", "[0, 1000000000]", ASIDE,
            "The rate rises linearly for so many steps."),
    NUMBER(pretrain.min_lr_ratio, "0.1", "[0, 1]", ASIDE,
           "The rate falls as a cosine to this share of lr."),
    NUMBER(pretrain.clip, "1.0", POSITIVE, ASIDE,
           "A gradient with a larger norm is scaled to this norm."),
    ENUM(
        reduction, "fast", reduction_names, 0,
        "exact: results are the same to the bit on any number of ranks and threads. It is slower."),
    ENUM(reduce_dtype, "float32", state_names, 0,
         "The type of gradients on their way between ranks. Their sums are float32."),
    ENUM(transport, "auto", transport_names, RESUMABLE | ASIDE,
         "How GPUs exchange data. staged: through host memory, so that ranks may share a GPU."),
    NUMBER(
        timeout, "600", "[0, 1000000000]", RESUMABLE | ASIDE,
        "The seconds that ranks may wait for each other before all of them end; six times as many "
        "where one of them reads or writes files. 0: for ever."),
};
const size_t mm_config_rows_n = COUNT(mm_config_rows);

#define CHOICE_AT(type, field) FIELD(struct mm_multiple_choice, type, field)
static const struct mm_config_row choice_rows[] = {
    {"name", MM_KEY_TEXT, CHOICE_AT(char *, name), 0, NULL, NULL, NULL, 0,
     "The name in the metrics."},
    {"file", MM_KEY_PATH, CHOICE_AT(char *, file), 0, NULL, NULL, NULL, 0, "The question file."},
    {"temperature", MM_KEY_NUMBER, CHOICE_AT(double, temperature), 0, "0", "[0, 1000000]", NULL, 0,
     "0: the share of right answers. Otherwise: the mean probability of the right answer."},
};

#define ATTACK_AT(type, field) FIELD(struct mm_attack, type, field)
static const struct mm_config_row attack_rows[] = {
    {"name", MM_KEY_TEXT, ATTACK_AT(char *, name), 0, NULL, NULL, NULL, 0,
     "The name in the metrics."},
    {"optimizer", MM_KEY_ENUM, ATTACK_AT(enum mm_optimizer, optimizer), 0, NULL, NULL,
     optimizer_names, 0, ""},
    {"lr", MM_KEY_NUMBER, ATTACK_AT(double, lr), 0, NULL, POSITIVE, NULL, 0, ""},
    {"passes", MM_KEY_INTEGER, ATTACK_AT(size_t, passes), 0, NULL, COUNTS, NULL, 0, ""},
    {"with_retain", MM_KEY_ENUM, ATTACK_AT(unsigned, with_retain), 0, NULL, NULL, bool_names, 0,
     ""},
    {"lora_rank", MM_KEY_INTEGER, ATTACK_AT(size_t, lora_rank), 0, NULL, "[0, 65536]", NULL, 0, ""},
    {"state_dtype", MM_KEY_ENUM, ATTACK_AT(enum mm_dtype_choice, state_dtype), 0, NULL, NULL,
     dtype_names, 0, ""},
};

const struct mm_config_list *mm_config_list(enum mm_config_type type) {
    static const struct mm_config_list choices = {choice_rows, COUNT(choice_rows),
                                                  sizeof(struct mm_multiple_choice), "files"};
    static const struct mm_config_list attacks = {attack_rows, COUNT(attack_rows),
                                                  sizeof(struct mm_attack), "attacks"};
    return type == MM_KEY_CHOICES ? &choices : type == MM_KEY_ATTACKS ? &attacks : NULL;
}

/* ---- looking up ---- */

const struct mm_config_row *mm_config_row(const char *name) {
    for (size_t i = 0; i < mm_config_rows_n; i++)
        if (strcmp(mm_config_rows[i].name, name) == 0)
            return &mm_config_rows[i];
    return NULL;
}

/* Levenshtein's distance of the first 63 characters, one row of the matrix at a time. */
static size_t edits(const char *a, const char *b) {
    enum { MOST = 63 };
    size_t a_n = strnlen(a, MOST), b_n = strnlen(b, MOST), line[MOST + 1];
    for (size_t j = 0; j <= b_n; j++)
        line[j] = j;
    for (size_t i = 1; i <= a_n; i++) {
        size_t diagonal = line[0];
        line[0] = i;
        for (size_t j = 1; j <= b_n; j++) {
            size_t replace = diagonal + (a[i - 1] != b[j - 1]);
            size_t insert = (line[j] < line[j - 1] ? line[j] : line[j - 1]) + 1;
            diagonal = line[j];
            line[j] = replace < insert ? replace : insert;
        }
    }
    return line[b_n];
}

static const char *last_part(const char *name) {
    const char *dot = strrchr(name, '.');
    return dot ? dot + 1 : name;
}

const struct mm_config_row *mm_config_nearest(const char *name) {
    const struct mm_config_row *best = NULL;
    size_t least = SIZE_MAX;
    for (size_t i = 0; i < mm_config_rows_n; i++) {
        const char *candidate = mm_config_rows[i].name;
        size_t whole = edits(name, candidate);
        size_t last = edits(last_part(name), last_part(candidate)) + 1; /* another section costs */
        /* Ties go to the name that is nearer as a whole. */
        size_t distance = (whole < last ? whole : last) * 128 + whole;
        if (distance < least) {
            least = distance;
            best = &mm_config_rows[i];
        }
    }
    return best;
}

bool mm_config_section(const char *name, char *keys, size_t keys_bytes) {
    size_t n = strlen(name), used = 0;
    keys[0] = '\0';
    for (size_t i = 0; i < mm_config_rows_n; i++) {
        const char *row = mm_config_rows[i].name;
        if (strncmp(row, name, n) != 0 || row[n] != '.')
            continue;
        int wrote = snprintf(keys + used, keys_bytes - used, "%s%s", used ? ", " : "", row + n + 1);
        used += (size_t)wrote < keys_bytes - used ? (size_t)wrote : keys_bytes - used - 1;
    }
    return used > 0;
}

const char *mm_config_accepts(const struct mm_config_row *row, char out[MM_CONFIG_ACCEPTS]) {
    switch (row->type) {
    case MM_KEY_INTEGER:
        snprintf(out, MM_CONFIG_ACCEPTS, "an integer in %s", row->bounds);
        break;
    case MM_KEY_NUMBER:
        snprintf(out, MM_CONFIG_ACCEPTS, "a number in %s", row->bounds);
        break;
    case MM_KEY_PAIR:
        snprintf(out, MM_CONFIG_ACCEPTS, "a list of two numbers in %s", row->bounds);
        break;
    case MM_KEY_ENUM:
        out[0] = '\0';
        for (const struct mm_config_name *v = row->values; v->name; v++) {
            size_t used = strlen(out);
            snprintf(out + used, MM_CONFIG_ACCEPTS - used, "%s%s", used ? " | " : "", v->name);
        }
        break;
    default: {
        static const char *const texts[] = {
            [MM_KEY_BOOL] = "true or false",
            [MM_KEY_TEXT] = "a text",
            [MM_KEY_PATH] = "a path",
            [MM_KEY_WORDS] = "a list of different names, [a, b]",
            [MM_KEY_CHOICES] = "a list of {name: a, file: b.h5, temperature: 0}",
            [MM_KEY_ATTACKS] = "a list of {name: a, optimizer: adamw, "
                               "lr: 1.0e-4, lora_rank: 8, ...}"};
        snprintf(out, MM_CONFIG_ACCEPTS, "%s", texts[row->type]);
    }
    }
    return out;
}

bool mm_config_within(const struct mm_config_row *row, double value) {
    char *comma;
    double low = strtod(row->bounds + 1, &comma), high = strtod(comma + 1, NULL);
    bool low_in = row->bounds[0] == '[', high_in = row->bounds[strlen(row->bounds) - 1] == ']';
    return (low_in ? value >= low : value > low) && (high_in ? value <= high : value < high);
}

/* ---- help ---- */

enum { HELP_COLUMN = 35, HELP_WIDTH = 115 };

/* Words from HELP_COLUMN on, in as many lines as they need. */
static void print_words(FILE *out, const char *words) {
    for (int column = HELP_COLUMN; *words; words += *words == ' ') {
        int n = (int)strcspn(words, " ");
        bool breaks = column > HELP_COLUMN && column + 1 + n > HELP_WIDTH;
        if (breaks)
            fprintf(out, "\n%*s", HELP_COLUMN, "");
        else if (column > HELP_COLUMN)
            fputc(' ', out);
        fprintf(out, "%.*s", n, words);
        column = (breaks ? HELP_COLUMN : column + (column > HELP_COLUMN)) + n;
        words += n;
    }
}

static void print_help(FILE *out, const struct mm_config_row *row) {
    char accepts[MM_CONFIG_ACCEPTS];
    mm_config_accepts(row, accepts);
    char *text =
        row->initial ? mm_format("%s (default %s)", accepts, row->initial) : mm_strdup(accepts);
    fprintf(out, "  %-*s", HELP_COLUMN - 2, row->name);
    print_words(out, text);
    fprintf(out, "\n%*s", HELP_COLUMN, "");
    print_words(out, row->help);
    fputc('\n', out);
    mm_free(text);
    const char *before = "needed by ";
    for (enum mm_command c = MM_RUN; c <= MM_TRIALS; c++)
        if (row->flags & MM_KEY_NEEDED_BY(c)) {
            fprintf(out, "%*s%s%s", *before == 'n' ? HELP_COLUMN : 0, "", before,
                    mm_command_rows[c].name);
            before = ", ";
        }
    if (*before != 'n')
        fputc('\n', out);
}

/* Whether the row's section or name is a word of `list`. */
static bool listed(const struct mm_config_row *row, const char *list) {
    size_t name = strlen(row->name), section = strcspn(row->name, ".");
    for (; list && *list; list += strcspn(list, " ")) {
        size_t n = strcspn(++list, " ");
        if ((n == name || n == section) && strncmp(list, row->name, n) == 0)
            return true;
    }
    return false;
}

char *mm_config_help(const char *unused, enum mm_config_keys keys) {
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    MM_CHECK(out, "out of memory");
    fputs("Keys of CONFIG (YAML; a dot separates section and key). As arguments:\n"
          "unlearn.adv_lr=0.01 unlearn.target_modules=[gate_proj,v_proj] seed=7\n\n",
          out);
    for (size_t i = 0; i < mm_config_rows_n; i++)
        if (!listed(&mm_config_rows[i], unused) &&
            (keys == MM_CONFIG_ALL_KEYS || mm_config_rows[i].flags & MM_KEY_RESUMABLE))
            print_help(out, &mm_config_rows[i]);
    MM_CHECK(fclose(out) == 0, "out of memory");
    char *help = mm_strdup(text);
    free(text); /* open_memstream's, not ours to count */
    return help;
}
