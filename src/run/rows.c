/* rows.c - see rows.h. */
#include "src/run/rows.h"

#include <stdio.h>

enum { FORGET, RETAIN, KINDS };

static const char *const kinds[KINDS] = {"forget", "retain"};

static const struct mm_dataset *validation(const struct mm_data *d, int kind) {
    return kind == FORGET ? &d->forget_validation : &d->retain_validation;
}

/* The file that is evaluated. */
static const struct mm_dataset *evaluated(const struct mm_data *d, int kind) {
    const struct mm_dataset *own = kind == FORGET ? &d->forget_evaluation : &d->retain_evaluation;
    return own->tokens ? own : validation(d, kind);
}

static size_t evaluation_rows(const struct mm_config *c) {
    return c->evaluate.batches * c->data.batch_size;
}

/* Rows that the longest attack reads of a kind; 0: none reads any. */
static size_t attack_reads(const struct mm_config *c, int kind) {
    size_t steps = 0;
    for (size_t i = 0; i < mm_config_attacks_n(c); i++) {
        struct mm_attack a = mm_config_attack(c, i);
        size_t n = kind == RETAIN && !a.with_retain ? 0 : a.passes / (a.with_retain ? 4 : 2);
        steps = n > steps ? n : steps;
    }
    return steps * c->data.batch_size;
}

static enum mm_status view(struct mm_dataset *rows, const struct mm_data *d,
                           const struct mm_config *c, int kind, struct mm_error *err) {
    const struct mm_dataset *set = validation(d, kind), *other = evaluated(d, kind);
    size_t first = other == set ? evaluation_rows(c) % set->examples : 0;
    mm_dataset_view(rows, set, first, other, evaluation_rows(c));
    if (rows->examples || !attack_reads(c, kind))
        return MM_OK;
    return mm_fail(err, MM_BAD_INPUT,
                   "data.%s_validation: relearning finds no row in %s: all its %zu rows are "
                   "evaluated (evaluate.batches x data.batch_size: the first %zu rows of %s): give "
                   "a file with more rows, lower evaluate.batches, or evaluate on other rows "
                   "(data.%s_evaluation)",
                   kinds[kind], set->path, set->examples, evaluation_rows(c), other->path,
                   kinds[kind]);
}

enum mm_status mm_attack_rows(struct mm_attack_rows *rows, const struct mm_data *data,
                              const struct mm_config *config, struct mm_error *err) {
    *rows = (struct mm_attack_rows){0};
    enum mm_status status = view(&rows->forget, data, config, FORGET, err);
    if (status == MM_OK)
        status = view(&rows->retain, data, config, RETAIN, err);
    if (status != MM_OK)
        mm_attack_rows_free(rows);
    return status;
}

void mm_attack_rows_free(struct mm_attack_rows *rows) {
    mm_dataset_free(&rows->forget);
    mm_dataset_free(&rows->retain);
}

/* -- warnings ---------------------------------------------------------------------------------- */

static void warn_of_batch(const char *phase, const struct mm_dataset *set,
                          const struct mm_config *c) {
    if (set->tokens && set->examples < c->data.batch_size)
        mm_log0(MM_LOG_WARN,
                "%s has %zu rows of %s, fewer than data.batch_size %zu: a batch holds rows more "
                "than once: give a file with more rows, or lower data.batch_size",
                phase, set->examples, set->path, c->data.batch_size);
}

static void warn_of_kind(const struct mm_data *d, const struct mm_config *c, int kind,
                         const struct mm_dataset *attack) {
    const struct mm_dataset *set = validation(d, kind), *other = evaluated(d, kind);
    if (evaluation_rows(c) > other->examples)
        mm_log0(MM_LOG_WARN,
                "evaluation counts rows of %s more than once: evaluate.batches x data.batch_size "
                "is %zu rows, and the file has %zu",
                other->path, evaluation_rows(c), other->examples);
    if (!attack_reads(c, kind))
        return;
    warn_of_batch("relearning", attack, c);
    if (other != set && attack->examples < set->examples)
        mm_log0(MM_LOG_WARN, "relearning leaves out %zu of the %zu rows of %s: %s has them too",
                set->examples - attack->examples, set->examples, set->path, other->path);
}

enum mm_status mm_rows_check(const struct mm_data *data, const struct mm_config *config,
                             struct mm_error *err) {
    struct mm_attack_rows rows;
    enum mm_status status = mm_attack_rows(&rows, data, config, err);
    if (status != MM_OK)
        return status;
    warn_of_batch("unlearning", &data->forget, config);
    warn_of_batch("unlearning", &data->retain, config);
    warn_of_kind(data, config, FORGET, &rows.forget);
    warn_of_kind(data, config, RETAIN, &rows.retain);
    mm_attack_rows_free(&rows);
    return MM_OK;
}

/* -- plan -------------------------------------------------------------------------------------- */

static void print_phase(const char *phase, int kind, size_t has, size_t reads) {
    char name[64];
    size_t uses = reads < has ? reads : has;
    snprintf(name, sizeof name, "%s, %s", phase, kinds[kind]);
    if (reads)
        printf("%-24s %12zu %12zu %12zu\n", name, has, uses, reads - uses);
}

void mm_rows_print(const struct mm_data *data, const struct mm_config *config, size_t loops) {
    struct mm_attack_rows rows;
    struct mm_error err;
    if (mm_attack_rows(&rows, data, config, &err) != MM_OK)
        return; /* mm_rows_check has said so */
    size_t unlearning = loops * config->data.batch_size;
    printf("%-24s %12s %12s %12s\n", "rows", "has", "uses", "repeats");
    print_phase("unlearning", FORGET, data->forget.examples, unlearning);
    print_phase("unlearning", RETAIN, data->retain.examples, unlearning);
    for (int kind = 0; kind < KINDS; kind++)
        print_phase("evaluation", kind, evaluated(data, kind)->examples, evaluation_rows(config));
    print_phase("relearning", FORGET, rows.forget.examples, attack_reads(config, FORGET));
    print_phase("relearning", RETAIN, rows.retain.examples, attack_reads(config, RETAIN));
    mm_attack_rows_free(&rows);
}
