/* stored.c - see stored.h. */
#include "src/model/stored.h"

#include "io/files.h"
#include "src/model/model.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- model.path --- */

static bool has(const char *folder, const char *name) {
    char *path = mm_format("%s/%s", folder, name);
    bool there = mm_path_exists(path);
    mm_free(path);
    return there;
}

/* What a relative path starts with was put before it: the user's own text, as far as it can be
 * told. */
static const char *as_written(const char *path) {
    char here[4096];
    size_t length = getcwd(here, sizeof here) ? strlen(here) : 0;
    return length && !strncmp(path, here, length) && path[length] == '/' ? path + length + 1 : path;
}

static enum mm_status explain_missing(const char *folder, struct mm_error *err) {
    const char *text = as_written(folder), *slash = strchr(text, '/');
    if (*text == '~' || strchr(text, '$'))
        return mm_fail(err, MM_BAD_INPUT,
                       "model.path: %s: only a shell replaces '%c': write the whole path of the "
                       "model folder",
                       text, *text == '~' ? '~' : '$');
    char *parent = mm_path_parent(folder);
    bool hub = *text != '.' && (!slash || (slash > text && slash[1] && !strchr(slash + 1, '/') &&
                                           !mm_path_exists(parent)));
    mm_free(parent);
    if (strstr(text, "://"))
        return mm_fail(err, MM_BAD_INPUT,
                       "model.path: %s: an address, not a folder: nothing is downloaded here; "
                       "download the model and name its folder",
                       text);
    if (hub)
        return mm_fail(err, MM_BAD_INPUT,
                       "model.path: %s: no such folder. If it is the identifier of a model on the "
                       "Hugging Face hub: nothing is downloaded here; download it ('hf download %s "
                       "--local-dir FOLDER') and name that folder",
                       text, text);
    return mm_fail(err, MM_BAD_INPUT,
                   "model.path: %s: no such folder: it must be a Hugging Face model folder "
                   "(config.json and *.safetensors)",
                   folder);
}

/* The snapshot that a folder of the cache means: that of its main branch, else any; mm_free. */
static char *snapshot_of(const char *cache) {
    struct mm_error unused;
    char *main = mm_format("%s/refs/main", cache), *revision = NULL, *found = NULL;
    char *snapshots = mm_format("%s/snapshots", cache);
    if (mm_file_read(main, &revision, NULL, &unused) == MM_OK) {
        revision[strcspn(revision, "\r\n")] = 0;
        found = has(snapshots, revision) ? mm_format("%s/%s", snapshots, revision) : NULL;
    }
    DIR *folder = opendir(snapshots);
    const struct dirent *item;
    while (!found && folder && (item = readdir(folder)))
        if (item->d_name[0] != '.')
            found = mm_format("%s/%s", snapshots, item->d_name);
    if (folder)
        closedir(folder);
    if (!found)
        found = mm_format("%s/...", snapshots);
    mm_free(main);
    mm_free(revision);
    mm_free(snapshots);
    return found;
}

/* The model folder that `path` is, or that it means as a folder of the hub's cache; NULL: neither;
 * mm_free. */
static char *model_at(const char *path) {
    if (has(path, "config.json"))
        return mm_strdup(path);
    return has(path, "snapshots") ? snapshot_of(path) : NULL;
}

/* A model folder in `folder`, as ", perhaps PATH"; "" if there is none; mm_free. */
static char *perhaps_below(const char *folder) {
    DIR *all = opendir(folder);
    char *found = NULL;
    const struct dirent *item;
    while (!found && all && (item = readdir(all))) {
        char *path = mm_format("%s/%s", folder, item->d_name);
        char *model = item->d_name[0] == '.' ? NULL : model_at(path);
        found = model ? mm_format(", perhaps %s", model) : NULL;
        mm_free(model);
        mm_free(path);
    }
    if (all)
        closedir(all);
    return found ? found : mm_strdup("");
}

static enum mm_status explain_empty(const char *folder, struct mm_error *err) {
    char *perhaps = perhaps_below(folder);
    enum mm_status status =
        mm_fail(err, MM_BAD_INPUT,
                "model.path: %s/config.json: no such file: the folder must be a Hugging Face model "
                "folder (config.json and *.safetensors)%s",
                folder, perhaps);
    mm_free(perhaps);
    return status;
}

static enum mm_status explain_file(const char *path, struct mm_error *err) {
    char *parent = mm_path_parent(path);
    enum mm_status status =
        mm_fail(err, MM_BAD_INPUT,
                "model.path: %s: a file, not a folder: name the folder that holds config.json and "
                "*.safetensors, perhaps %s",
                path, parent);
    mm_free(parent);
    return status;
}

static enum mm_status explain_cache(const char *folder, struct mm_error *err) {
    char *snapshot = snapshot_of(folder);
    enum mm_status status = mm_fail(err, MM_BAD_INPUT,
                                    "model.path: %s: a folder of the Hugging Face cache: name the "
                                    "model folder in it, %s",
                                    folder, snapshot);
    mm_free(snapshot);
    return status;
}

enum mm_status mm_stored_check_folder(const char *folder, struct mm_error *err) {
    struct stat info;
    if (stat(folder, &info))
        return explain_missing(folder, err);
    if (!S_ISDIR(info.st_mode))
        return explain_file(folder, err);
    bool adapter = has(folder, "adapter_config.json");
    if (has(folder, "config.json")) {
        if (adapter)
            mm_log0(MM_LOG_WARN, "model.path: %s: the adapter in it is not applied", folder);
        return MM_OK;
    }
    if (has(folder, "snapshots"))
        return explain_cache(folder, err);
    if (adapter)
        return mm_fail(err, MM_BAD_INPUT,
                       "model.path: %s: an adapter (LoRA), not a model: merge it into its base "
                       "model (peft: merge_and_unload, then save_pretrained) and name that folder",
                       folder);
    return explain_empty(folder, err);
}

/* --- names --- */

/* The same tensor may stand under up to this many names. */
enum { CANDIDATES = 3 };

struct match {
    struct mm_arch *arch;
    struct mm_weights *weights;
    const char *prefix;    /* with its dot */
    bool *used;            /* of the tensors of the files */
    const char *untied[2]; /* the names of a tied pair that differs */
};

/* Index of the tensor `name` of the files, or their number. */
static size_t find(const struct match *m, const char *name) {
    size_t low = 0, high = mm_weights_names_n(m->weights), n = high;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, mm_weights_name(m->weights, middle));
        if (order == 0)
            return middle;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return n;
}

static bool is_head(const char *name) {
    return !strcmp(name, "lm_head.weight") || !strcmp(name, "embed_out.weight");
}

/* The tensor that `name`, of the model's own table, is stored as; *stored is its index, or the
 * number of tensors if there is none. */
static enum mm_status look_for(const struct match *m, const char *name, size_t *stored,
                               struct mm_error *err) {
    char *names[CANDIDATES] = {mm_strdup(name), NULL, NULL};
    if (is_head(name)) {
        names[1] = mm_strdup("lm_head.weight");
        names[2] = mm_format("%slm_head.weight", m->prefix);
    } else {
        names[1] = mm_strdup(name + strlen(m->prefix));
    }
    size_t n = mm_weights_names_n(m->weights);
    enum mm_status status = MM_OK;
    *stored = n;
    for (size_t i = 0; i < CANDIDATES && names[i]; i++) {
        size_t place = find(m, names[i]);
        if (place < n && *stored < n && place != *stored && !status)
            status =
                mm_fail(err, MM_BAD_INPUT,
                        "the weights of model.path hold both '%s' and '%s', which are the same "
                        "tensor of the model: remove one",
                        mm_weights_name(m->weights, *stored), names[i]);
        if (place < n)
            *stored = place;
    }
    for (size_t i = 0; i < CANDIDATES; i++)
        mm_free(names[i]);
    return status;
}

/* Lets `name` mean the tensor of the files with that index. */
static void take(struct match *m, const char *name, size_t stored) {
    const char *found = mm_weights_name(m->weights, stored);
    m->used[stored] = true;
    if (strcmp(found, name) != 0)
        mm_weights_alias(m->weights, name, found);
}

/* A tied pair: one of the two is enough; two that differ are not tied. */
static enum mm_status match_tied(struct match *m, const char *embed, struct mm_error *err) {
    const char *head = m->arch->family == MM_NEOX ? "embed_out.weight" : "lm_head.weight";
    size_t n = mm_weights_names_n(m->weights), at_embed, at_head;
    enum mm_status status = look_for(m, embed, &at_embed, err);
    if (!status)
        status = look_for(m, head, &at_head, err);
    if (status || at_head == n)
        return status;
    const char *stored_head = mm_weights_name(m->weights, at_head);
    if (at_embed == n) {
        take(m, embed, at_head);
        return MM_OK;
    }
    const char *stored_embed = mm_weights_name(m->weights, at_embed);
    m->used[at_head] = true;
    if (mm_weights_same(m->weights, stored_embed, stored_head))
        return MM_OK;
    m->untied[0] = stored_embed;
    m->untied[1] = stored_head;
    m->arch->tied = false;
    mm_weights_untie(m->weights);
    return MM_OK;
}

/* --- tensors --- */

/* Every tensor of the model: its place, and its shape. What is allocated for the model is then in
 * proportion to its files. */
static enum mm_status match_all(struct match *m, const struct mm_model *model,
                                struct mm_error *err) {
    size_t n = mm_weights_names_n(m->weights), stored;
    for (size_t i = 0; i < model->params_n; i++) {
        const struct mm_param *p = &model->params[i];
        enum mm_status status = MM_OK;
        if (!mm_weights_find(m->weights, p->name)) { /* else it has its place */
            status = look_for(m, p->name, &stored, err);
            if (!status && stored < n)
                take(m, p->name, stored);
        } else if ((stored = find(m, p->name)) < n) {
            m->used[stored] = true;
            status = look_for(m, p->name, &stored, err);
        }
        if (!status)
            status = mm_weights_check(m->weights, p->name, p->rows, p->vector ? 0 : p->cols, err);
        if (!status)
            continue;
        struct mm_error first = *err;
        return *m->arch->assumed ? mm_fail(err, status,
                                           "%.700s; config.json leaves out sizes, for which "
                                           "transformers takes %s",
                                           first.text, m->arch->assumed)
                                 : status;
    }
    return MM_OK;
}

/* Buffers that older versions stored and no version reads. */
static bool is_known_buffer(const struct mm_arch *arch, const char *name) {
    if (strstr(name, "rotary_emb.inv_freq"))
        return true;
    return arch->family == MM_NEOX &&
           (strstr(name, "attention.bias") || strstr(name, "attention.masked_bias"));
}

static void warn(const struct match *m) {
    if (m->untied[0])
        mm_log0(MM_LOG_WARN,
                "config.json says tie_word_embeddings, but the weights hold %s and %s, which "
                "differ: they are not tied, as in transformers",
                m->untied[0], m->untied[1]);
    enum { SHOWN = 4 };
    char names[SHOWN * 120] = "";
    size_t unused = 0, used = 0;
    for (size_t i = 0; i < mm_weights_names_n(m->weights); i++) {
        const char *name = mm_weights_name(m->weights, i);
        if (m->used[i] || is_known_buffer(m->arch, name))
            continue;
        if (unused++ < SHOWN)
            used += (size_t)snprintf(names + used, sizeof names - used, "%s%.110s",
                                     used ? ", " : "", name);
    }
    for (char *c = names; *c; c++) /* names in files may hold anything */
        *c = (unsigned char)*c < 0x20 || *c == 0x7f ? '?' : *c;
    if (unused)
        mm_log0(
            MM_LOG_WARN,
            "the weights of model.path hold %zu tensor%s that the model of config.json does not "
            "use: %s%s",
            unused, unused == 1 ? "" : "s", names, unused > SHOWN ? ", ..." : "");
}

enum mm_status mm_stored_match(struct mm_arch *arch, struct mm_weights *weights,
                               struct mm_device *dev, struct mm_error *err) {
    bool neox = arch->family == MM_NEOX;
    struct match m = {.arch = arch,
                      .weights = weights,
                      .prefix = neox ? "gpt_neox." : "model.",
                      .used = mm_calloc(mm_weights_names_n(weights), sizeof *m.used)};
    enum mm_status status = MM_OK;
    if (arch->tied)
        status =
            match_tied(&m, neox ? "gpt_neox.embed_in.weight" : "model.embed_tokens.weight", err);
    struct mm_arena *arena = mm_arena_create_dry(dev);
    struct mm_model *model = mm_model_create(arena, arch, MM_F32, 1);
    if (!status)
        status = match_all(&m, model, err);
    if (!status)
        warn(&m);
    mm_model_free(model);
    mm_arena_free(arena);
    mm_free(m.used);
    return status;
}
