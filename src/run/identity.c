/* identity.c - see identity.h. */
#include "src/run/identity.h"

#include "io/files.h"
#include "src/config/decisive.h"

#include <stdio.h>
#include <string.h>

static struct mm_input *add(struct mm_identity *id, char *name, const char *path) {
    struct mm_input *input = &id->inputs[id->n++];
    *input = (struct mm_input){.name = name, .path = mm_strdup(path)};
    return input;
}

static void add_set(struct mm_identity *id, const char *name, const char *path,
                    const struct mm_dataset *set) {
    if (path)
        mm_dataset_hash(set, add(id, mm_strdup(name), path)->hash);
}

struct mm_identity mm_identity_take(const char *config_path, const struct mm_arch *arch,
                                    const struct mm_weights *weights,
                                    const struct mm_config *config, const struct mm_data *data) {
    enum { OTHERS = 9 }; /* config.json, weights, seven token files */
    struct mm_identity id = {.inputs = mm_calloc(OTHERS + data->questions_n, sizeof *id.inputs)};
    const __typeof__(config->data) *d = &config->data;
    memcpy(add(&id, mm_strdup("config.json"), config_path)->hash, arch->hash, sizeof arch->hash);
    if (weights)
        add(&id, mm_strdup("weights"), mm_weights_path(weights));
    add_set(&id, "data.retain", d->retain, &data->retain);
    add_set(&id, "data.forget", d->forget, &data->forget);
    add_set(&id, "data.retain_validation", d->retain_validation, &data->retain_validation);
    add_set(&id, "data.forget_validation", d->forget_validation, &data->forget_validation);
    add_set(&id, "data.retain_evaluation", d->retain_evaluation, &data->retain_evaluation);
    add_set(&id, "data.forget_evaluation", d->forget_evaluation, &data->forget_evaluation);
    add_set(&id, "evaluate.kl.file", config->evaluate.kl.file, &data->kl);
    for (size_t i = 0; i < data->questions_n; i++) {
        const struct mm_multiple_choice *choice = &config->evaluate.multiple_choice[i];
        char *name = mm_format("evaluate.multiple_choice.%s", choice->name);
        mm_questions_hash(&data->questions[i], add(&id, name, choice->file)->hash);
    }
    return id;
}

void mm_identity_free(struct mm_identity *id) {
    for (size_t i = 0; i < id->n; i++) {
        mm_free(id->inputs[i].name);
        mm_free(id->inputs[i].path);
    }
    mm_free(id->inputs);
    *id = (struct mm_identity){0};
}

struct mm_input *mm_identity_find(const struct mm_identity *id, const char *name) {
    for (size_t i = 0; i < id->n; i++)
        if (strcmp(id->inputs[i].name, name) == 0)
            return &id->inputs[i];
    return NULL;
}

/* -- between ranks ------------------------------------------------------------------------------
 */

/* The text of rank 0 on every rank; the caller frees. Collective. */
static char *text_of_first(struct mm_comm *comm, const char *mine) {
    size_t bytes = strlen(mine) + 1;
    mm_comm_broadcast(comm, 0, &bytes, sizeof bytes);
    char *text = mm_calloc(bytes, 1);
    if (mm_comm_rank(comm) == 0)
        memcpy(text, mine, bytes);
    mm_comm_broadcast(comm, 0, text, bytes);
    return text;
}

enum mm_status mm_identity_agree_config(struct mm_comm *comm, const struct mm_config *config,
                                        struct mm_error *err) {
    struct mm_line_difference d;
    enum mm_status status = MM_OK;
    if (mm_comm_size(comm) == 1)
        return MM_OK;
    char *mine = mm_config_lines(config, MM_KEYS_ALL), *first = text_of_first(comm, mine);
    const char *here = mine, *there = first;
    if (mm_lines_differ(&here, &there, &d))
        status = mm_fail(err, MM_BAD_INPUT,
                         "%s is %s on rank %d, but %s on rank 0: give all ranks the same "
                         "configuration and arguments",
                         d.key, d.left, mm_comm_rank(comm), d.right);
    mm_free(mine);
    mm_free(first);
    return mm_comm_agree(comm, status, err);
}

enum mm_status mm_identity_agree(struct mm_comm *comm, const struct mm_identity *id,
                                 struct mm_error *err) {
    char(*first)[33] = mm_calloc(id->n, sizeof *first);
    enum mm_status status = MM_OK;
    for (size_t i = 0; i < id->n; i++)
        memcpy(first[i], id->inputs[i].hash, sizeof *first);
    if (mm_comm_size(comm) > 1)
        mm_comm_broadcast(comm, 0, first, id->n * sizeof *first);
    for (size_t i = 0; i < id->n && status == MM_OK; i++) {
        const struct mm_input *input = &id->inputs[i];
        if (strcmp(first[i], input->hash) != 0)
            status = mm_fail(err, MM_BAD_INPUT,
                             "rank %d read another %s than rank 0: %s there has the hash %s, not "
                             "%s: give all ranks the same files",
                             mm_comm_rank(comm), input->name, input->path, input->hash, first[i]);
    }
    mm_free(first);
    return mm_comm_agree(comm, status, err);
}
