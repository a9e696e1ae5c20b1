/* config.c - see config.h: reads, checks and writes a whole configuration.
 *
 * Settings (yaml.h) give each key's text with its place, the table (table.h) says
 * what the key takes, value.h moves one value. A default is YAML text too and takes the same
 * way in. Last come the checks of keys against the command and against each other. */
#include "src/config/command.h"
#include "src/config/config.h"

#include "src/config/value.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FILE_BYTES = 1 << 20 };

/* ---- keys and values ---- */

static enum mm_status unknown_key(const struct mm_setting *setting, struct mm_error *err) {
    char shown[MM_YAML_SHOWN], keys[512];
    mm_yaml_shown(shown, setting->key);
    if (mm_config_section(setting->key, keys, sizeof keys)) {
        if (setting->value->kind == MM_YAML_MAP)
            return MM_OK; /* an empty section */
        return mm_yaml_fail(err, setting->origin, setting->line,
                            "%s is a section, not a key: it holds %s", shown, keys);
    }
    /* "seed.a" comes from a mapping where a value was meant. */
    for (size_t i = 0; i < mm_config_rows_n; i++) {
        const struct mm_config_row *row = &mm_config_rows[i];
        size_t n = strlen(row->name);
        char accepts[MM_CONFIG_ACCEPTS];
        if (strncmp(row->name, setting->key, n) == 0 && setting->key[n] == '.')
            return mm_yaml_fail(err, setting->origin, setting->line,
                                "%s: expected %s, got a mapping", row->name,
                                mm_config_accepts(row, accepts));
    }
    return mm_yaml_fail(err, setting->origin, setting->line,
                        "unknown key '%s'; the nearest valid one is '%s'", shown,
                        mm_config_nearest(setting->key)->name);
}

static enum mm_status check_keys(const struct mm_settings *given, struct mm_error *err) {
    for (size_t i = 0; i < given->n; i++)
        if (!mm_config_row(given->items[i].key)) {
            enum mm_status status = unknown_key(&given->items[i], err);
            if (status)
                return status;
        }
    return MM_OK;
}

static enum mm_status read_rows(struct mm_config *config, const struct mm_settings *given,
                                const struct mm_settings *defaults, struct mm_error *err) {
    for (size_t i = 0; i < mm_config_rows_n; i++) {
        const struct mm_config_row *row = &mm_config_rows[i];
        const struct mm_setting *setting = mm_settings_find(given, row->name);
        if (!setting)
            setting = mm_settings_find(defaults, row->name);
        if (!setting)
            continue;
        struct mm_value_place at = {row->name, setting->origin, err};
        enum mm_status status = mm_value_read(&at, row, setting->value, config);
        if (status)
            return status;
    }
    if (config->reduction == MM_REDUCTION_EXACT && !mm_settings_find(given, "data.micro_batch"))
        config->data.micro_batch = 1;
    return MM_OK;
}

/* ---- checks of keys together ---- */

struct check {
    const struct mm_config *config;
    const struct mm_settings *given;
    const char *file;
    enum mm_command command;
    struct mm_error *err;
};

/* Fails at the place of `key`, or naming the file where the key is not set. */
static enum mm_status wrong(const struct check *c, const char *key, const char *what) {
    const struct mm_setting *setting = mm_settings_find(c->given, key);
    struct mm_yaml_origin file = {.file = c->file};
    return mm_yaml_fail(c->err, setting ? setting->origin : file, setting ? setting->line : 0,
                        "%s %s", key, what);
}

static enum mm_status missing(const struct check *c, const char *key) {
    char what[64];
    snprintf(what, sizeof what, "is %s, but %s needs it",
             mm_settings_find(c->given, key) ? "null" : "missing",
             mm_command_rows[c->command].name);
    return wrong(c, key, what);
}

static enum mm_status check_needed(const struct check *c) {
    const struct mm_config *config = c->config;
    for (size_t i = 0; i < mm_config_rows_n; i++) {
        const struct mm_config_row *row = &mm_config_rows[i];
        bool adversary_only = row->offset == offsetof(struct mm_config, unlearn.adv_lr);
        if (row->flags & MM_KEY_NEEDED_BY(c->command) && mm_value_absent(row, config) &&
            (config->unlearn.train_adversary || !adversary_only))
            return missing(c, row->name);
    }
    bool unlearns = c->command != MM_EVAL && c->command != MM_PRETRAIN;
    bool loops = config->unlearn.loops != MM_ABSENT, passes = config->unlearn.passes != MM_ABSENT;
    if (loops && passes)
        return wrong(c, "unlearn.passes", "is given beside unlearn.loops: give only one of them");
    if (unlearns && !loops && !passes)
        return wrong(c, "unlearn.loops", "is missing, and so is unlearn.passes: one is needed");
    if (!config->data.retain_evaluation != !config->data.forget_evaluation)
        return wrong(
            c, config->data.retain_evaluation ? "data.retain_evaluation" : "data.forget_evaluation",
            "is given alone: evaluation needs both or neither of retain_evaluation and "
            "forget_evaluation");
    if (c->command == MM_EVAL && !config->data.retain_evaluation) {
        if (!config->data.retain_validation)
            return missing(c, "data.retain_validation");
        if (!config->data.forget_validation)
            return missing(c, "data.forget_validation");
    }
    return MM_OK;
}

/* What an adversary made of adapters cannot be combined with; docs/method.md 7 says that it needs
 * the mask and a norm. */
static enum mm_status check_adversary_lora(const struct check *c) {
    const __typeof__(c->config->unlearn) *u = &c->config->unlearn;
    if (u->adv_lora_count > 1 && !u->adv_lora_rank)
        return wrong(c, "unlearn.adv_lora_count", "is given without adv_lora_rank");
    if (!u->adv_lora_rank)
        return MM_OK;
    if (!u->train_adversary)
        return wrong(c, "unlearn.adv_lora_rank",
                     "is given, but without train_adversary there is no adversary");
    if (!u->use_masking)
        return wrong(c, "unlearn.adv_lora_rank", "needs use_masking");
    if (u->normalization == MM_NORM_NONE)
        return wrong(c, "unlearn.adv_lora_rank", "needs a normalization other than none");
    if (u->adv_update > 0)
        return wrong(
            c, "unlearn.adv_lora_rank",
            "is given with adv_update, but adapters lie on the base and move with it anyway");
    if (c->config->model.state_dtype != MM_F32)
        return wrong(c, "unlearn.adv_lora_rank", "needs model.state_dtype float32");
    if (u->fork_every_n_loops / 6 * 6 < u->adv_lora_count)
        return wrong(
            c, "unlearn.fork_every_n_loops",
            "is too small for adv_lora_rank: rounded down to a multiple of 6 it must be at "
            "least adv_lora_count");
    return MM_OK;
}

/* What adapters as the base cannot be combined with. */
static enum mm_status check_base_lora(const struct check *c) {
    const __typeof__(c->config->unlearn) *u = &c->config->unlearn;
    if (!u->lora_rank)
        return MM_OK;
    if (u->train_adversary)
        return wrong(c, "unlearn.lora_rank", "needs train_adversary false");
    if (u->normalization == MM_NORM_PER_PARAMETER)
        return wrong(c, "unlearn.lora_rank",
                     "is given with normalization per_parameter: half of the adapters have no "
                     "gradient where they begin, and no norm to divide by");
    if (u->discard_growing_weights < 1)
        return wrong(
            c, "unlearn.lora_rank",
            "is given with discard_growing_weights, but the numbers of an adapter are no weights");
    if (c->config->model.state_dtype != MM_F32)
        return wrong(c, "unlearn.lora_rank", "needs model.state_dtype float32");
    if (c->config->reduce_dtype != MM_F32)
        return wrong(c, "unlearn.lora_rank", "needs reduce_dtype float32");
    for (size_t i = 0; i < mm_config_attacks_n(c->config); i++)
        if (mm_config_attack(c->config, i).state_dtype == MM_DTYPE_BF16)
            return wrong(c, "unlearn.lora_rank", "needs relearn.state_dtype float32");
    return MM_OK;
}

static enum mm_status check_together(const struct check *c) {
    const struct mm_config *config = c->config;
    if (config->unlearn.adv_update > 0 && !config->unlearn.train_adversary)
        return wrong(c, "unlearn.adv_update",
                     "is given, but without train_adversary there is no adversary to update");
    if (config->reduction == MM_REDUCTION_EXACT && config->reduce_dtype != MM_F32)
        return wrong(c, "reduce_dtype",
                     "is bfloat16, which rounds what ranks send each other, and with reduction: "
                     "exact nothing may depend on their number: float32, or reduction: fast");
    if (config->unlearn.graph == MM_GRAPH_REUSE &&
        config->unlearn.loss_fn != MM_LOSS_NEG_CROSS_ENTROPY)
        return wrong(c, "unlearn.graph",
                     "is reuse, which takes one backward for both losses: only "
                     "unlearning_loss_fn neg_cross_entropy allows that");
    if (!config->unlearn.retain_cross_entropy && config->unlearn.rep_eng_retain_lr == 0)
        return wrong(c, "unlearn.retain_cross_entropy",
                     "is false while rep_eng_retain_lr is 0: nothing would be retained");
    if (!config->unlearn.retain_cross_entropy && config->unlearn.use_masking)
        return wrong(c, "unlearn.retain_cross_entropy",
                     "is false with use_masking: what is left of the retain loss has no gradient "
                     "at the initial model, and the mask would keep nothing");
    if (!isnan(config->evaluate.kl.budget) && !config->evaluate.kl.file)
        return wrong(c, "evaluate.kl.budget", "is given without evaluate.kl.file");
    enum mm_status status = check_base_lora(c);
    return status ? status : check_adversary_lora(c);
}

/* ---- entry points ---- */

static void keep_newer_length(struct mm_settings *given) {
    static const char *const keys[2] = {"unlearn.loops", "unlearn.passes"};
    for (size_t i = 0; i < 2; i++) {
        const struct mm_setting *mine = mm_settings_find(given, keys[i]);
        const struct mm_setting *other = mm_settings_find(given, keys[1 - i]);
        if (mine && other && mine->origin.argument && !mm_yaml_is_null(mine->value) &&
            !other->origin.argument)
            mm_settings_drop(given, keys[1 - i]);
    }
}

static enum mm_status gather(struct mm_settings *given, const char *text, size_t n,
                             const char *name, char *const *overrides, size_t overrides_n,
                             struct mm_error *err) {
    enum mm_status status = mm_settings_add_text(given, text, n, name, err);
    for (size_t i = 0; i < overrides_n && !status; i++)
        status = mm_settings_add_argument(given, overrides[i], err);
    if (!status)
        status = check_keys(given, err);
    keep_newer_length(given);
    return status;
}

static enum mm_status parse(struct mm_config *config, const char *text, size_t n, const char *name,
                            char *const *overrides, size_t overrides_n, enum mm_command command,
                            struct mm_error *err) {
    struct mm_settings given = {0}, defaults = {0};
    memset(config, 0, sizeof *config);
    mm_values_clear(mm_config_rows, mm_config_rows_n, config);
    for (size_t i = 0; i < mm_config_rows_n; i++) {
        if (!mm_config_rows[i].initial)
            continue;
        char *argument = mm_format("%s=%s", mm_config_rows[i].name, mm_config_rows[i].initial);
        MM_CHECK(mm_settings_add_argument(&defaults, argument, err) == MM_OK, "%s", err->text);
        mm_free(argument);
    }
    struct check c = {config, &given, name, command, err};
    enum mm_status status = gather(&given, text, n, name, overrides, overrides_n, err);
    if (!status)
        status = read_rows(config, &given, &defaults, err);
    if (!status)
        status = check_needed(&c);
    if (!status)
        status = check_together(&c);
    mm_settings_free(&given);
    mm_settings_free(&defaults);
    if (status)
        mm_config_free(config);
    return status;
}

enum mm_status mm_config_parse(struct mm_config *config, const char *text, const char *name,
                               char *const *overrides, size_t overrides_n, enum mm_command command,
                               struct mm_error *err) {
    return parse(config, text, strlen(text), name, overrides, overrides_n, command, err);
}

enum mm_status mm_config_read(struct mm_config *config, const char *path, char *const *overrides,
                              size_t overrides_n, enum mm_command command, struct mm_error *err) {
    memset(config, 0, sizeof *config);
    errno = 0;
    FILE *file = fopen(path, "rb");
    char *text = mm_calloc(MAX_FILE_BYTES + 1, 1);
    size_t n = file ? fread(text, 1, MAX_FILE_BYTES + 1, file) : 0;
    enum mm_status status;
    if (!file || ferror(file))
        status = mm_fail(err, MM_BAD_INPUT, "%s: cannot be read: %s", path, strerror(errno));
    else if (n > MAX_FILE_BYTES)
        status = mm_fail(err, MM_BAD_INPUT, "%s: larger than 1 MiB: not a configuration", path);
    else
        status = parse(config, text, n, path, overrides, overrides_n, command, err);
    if (file)
        fclose(file);
    mm_free(text);
    return status;
}

void mm_config_free(struct mm_config *config) {
    mm_values_free(mm_config_rows, mm_config_rows_n, config);
    memset(config, 0, sizeof *config);
}

struct mm_attack mm_config_attack(const struct mm_config *config, size_t i) {
    const __typeof__(config->relearn) *r = &config->relearn;
    const struct mm_attack all = {.optimizer = r->optimizer,
                                  .passes = r->passes,
                                  .lr = r->lr,
                                  .with_retain = r->with_retain,
                                  .lora_rank = r->lora_rank,
                                  .state_dtype = r->state_dtype};
    struct mm_attack a = r->attacks_n ? r->attacks[i] : all;
    a.optimizer = (unsigned)a.optimizer == MM_ABSENT_CHOICE ? all.optimizer : a.optimizer;
    a.passes = a.passes == MM_ABSENT ? all.passes : a.passes;
    a.lr = isnan(a.lr) ? all.lr : a.lr;
    a.with_retain = a.with_retain == MM_ABSENT_CHOICE ? all.with_retain : a.with_retain;
    a.lora_rank = a.lora_rank == MM_ABSENT ? all.lora_rank : a.lora_rank;
    a.state_dtype = (unsigned)a.state_dtype == MM_ABSENT_CHOICE ? all.state_dtype : a.state_dtype;
    if (a.state_dtype == MM_DTYPE_AUTO)
        a.state_dtype = a.optimizer == MM_SGD && config->model.state_dtype == MM_BF16
                            ? MM_DTYPE_BF16
                            : MM_DTYPE_F32;
    return a;
}

size_t mm_config_relearn_passes(const struct mm_config *config) {
    size_t passes = 0;
    for (size_t i = 0; i < mm_config_attacks_n(config); i++)
        passes += mm_config_attack(config, i).passes;
    return passes;
}

char *mm_config_yaml(const struct mm_config *config) {
    char *text = NULL;
    size_t n = 0, section_n = 0;
    const char *section = "";
    FILE *out = open_memstream(&text, &n);
    MM_CHECK(out, "out of memory");
    for (size_t i = 0; i < mm_config_rows_n; i++) {
        const struct mm_config_row *row = &mm_config_rows[i];
        const char *dot = strchr(row->name, '.');
        size_t row_n = dot ? (size_t)(dot - row->name) : 0;
        if (row_n != section_n || strncmp(section, row->name, row_n) != 0) {
            section = row->name;
            section_n = row_n;
            if (dot)
                fprintf(out, "%.*s:\n", (int)row_n, section);
        }
        fprintf(out, "%s%s: ", dot ? "  " : "", dot ? dot + 1 : row->name);
        mm_value_write(out, row, config);
        fputc('\n', out);
    }
    MM_CHECK(fclose(out) == 0, "out of memory");
    char *yaml = mm_strdup(text);
    free(text); /* open_memstream's, not ours to count */
    return yaml;
}

double mm_config_early_timeout(char *const *overrides, size_t overrides_n) {
    const struct mm_config_row *row = mm_config_row("timeout");
    double seconds = strtod(row->initial, NULL);
    for (size_t i = 0; i < overrides_n; i++) {
        char *end;
        double value =
            strncmp(overrides[i], "timeout=", 8) == 0 ? strtod(overrides[i] + 8, &end) : -1;
        if (value >= 0 && end != overrides[i] + 8 && !*end && mm_config_within(row, value))
            seconds = value;
    }
    return seconds;
}

enum mm_status mm_config_check_resume(char *const *overrides, size_t overrides_n,
                                      struct mm_error *err) {
    struct mm_settings given = {0};
    enum mm_status status = MM_OK;
    for (size_t i = 0; i < overrides_n && !status; i++)
        status = mm_settings_add_argument(&given, overrides[i], err);
    if (!status)
        status = check_keys(&given, err);
    for (size_t i = 0; i < given.n && !status; i++) {
        const struct mm_config_row *row = mm_config_row(given.items[i].key);
        if (row && !(row->flags & MM_KEY_RESUMABLE))
            status =
                mm_yaml_fail(err, given.items[i].origin, 0,
                             "%s cannot change on resume: it shaped the finished loops", row->name);
    }
    mm_settings_free(&given);
    return status;
}
