/* export_files.c - see export_files.h. A list of what not to copy would be a race with every new
 * format of weights: this is a list of what to copy. */
#include "io/export_files.h"

#include <cJSON.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "io/files.h"
#include "io/json_text.h"
#include "io/weights_folder.h"

static const char index_name[] = "model.safetensors.index.json";
static const char templates_name[] = "additional_chat_templates";

struct job {
    const struct mm_weights *weights;
    const char *folder; /* being written */
    const enum mm_dtype *save_dtype;
    size_t bytes;
    char **left; /* names of what is left out; owned */
    size_t left_n;
};

/* --- what is copied --- */

static bool ends_with(const char *name, const char *suffix) {
    size_t length = strlen(name), n = strlen(suffix);
    return length >= n && !strcasecmp(name + length - n, suffix);
}

static bool is_listed(const char *name) {
    static const char *const names[] = {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "tokenizer.model",
        "tokenizer.model.v3",
        "tekken.json",
        "spiece.model",
        "sentencepiece.bpe.model",
        "chat_template.json",
        "chat_template.jinja",
        "preprocessor_config.json",
        "processor_config.json",
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i]))
            return true;
    return false;
}

/* A licence, a description, a tokenizer's code: by the first word or by the suffix. */
static bool is_text_name(const char *name) {
    static const char *const words[] = {"LICENSE", "LICENCE",    "COPYING",   "NOTICE",
                                        "README",  "USE_POLICY", "MODEL_CARD"};
    static const char *const suffixes[] = {".md", ".txt", ".rst", ".jinja"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!strcasecmp(name, words[i]))
            return true;
    if (!strncmp(name, "tokenization_", strlen("tokenization_")) && ends_with(name, ".py"))
        return true;
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++)
        if (name[0] != '.' && ends_with(name, suffixes[i]))
            return true;
    return false;
}

/* No byte of it is NUL, which a file of weights has many of. */
static bool is_text(const char *path) {
    char *text;
    size_t bytes;
    struct mm_error unused;
    if (mm_file_read(path, &text, &bytes, &unused))
        return false;
    bool good = !memchr(text, 0, bytes);
    mm_free(text);
    return good;
}

static bool is_copied(const char *path, const char *name) {
    struct stat info;
    if (stat(path, &info) || !S_ISREG(info.st_mode))
        return false;
    bool binary = strstr(name, ".model") != NULL; /* sentencepiece's */
    return (is_listed(name) || is_text_name(name)) && (binary || is_text(path));
}

static bool is_rewritten(const struct mm_weights *weights, const char *name) {
    for (size_t i = 0; i < weights->files_n; i++)
        if (!strcmp(name, weights->files[i].name))
            return true;
    return false;
}

/* --- what is edited --- */

/* `text` with member `key` of its object, where it has one, set to `value`. Frees `text`. */
static char *set_member(char *text, const char *key, const char *value) {
    const char *begin, *end;
    if (!mm_json_member(text, key, &begin, &end))
        return text;
    char *out = mm_json_replace(text, begin, end, value);
    mm_free(text);
    return out;
}

/* The same, but a member that is not there is put first. */
static char *put_member(char *text, const char *key, const char *value) {
    const char *begin, *end, *brace = strchr(text, '{');
    if (mm_json_member(text, key, &begin, &end) || !brace)
        return set_member(text, key, value);
    bool empty = brace[1 + strspn(brace + 1, " \t\r\n")] == '}';
    char *member = mm_format("\n  \"%s\": %s%s", key, value, empty ? "\n" : ",");
    char *out = mm_json_replace(text, brace + 1, brace + 1, member);
    mm_free(member);
    mm_free(text);
    return out;
}

/* Frees `text`; returns config.json as it is written. */
static char *config_text(const struct job *job, char *text) {
    const char *begin, *end;
    if (job->save_dtype) {
        char *quoted = mm_format("\"%s\"", mm_dtype_name(*job->save_dtype));
        bool five = mm_json_member(text, "dtype", &begin, &end);
        text = set_member(text, "dtype", quoted);
        text = five ? set_member(text, "torch_dtype", quoted)
                    : put_member(text, "torch_dtype", quoted);
        mm_free(quoted);
    }
    return job->weights->untied ? put_member(text, "tie_word_embeddings", "false") : text;
}

/* Every row names the file that has its tensor. */
static bool index_holds(const struct mm_weights *weights, const cJSON *map) {
    const cJSON *row;
    size_t rows_n = 0, found_n = 0;
    for (size_t i = 0; i < weights->entries_n; i++) {
        row = cJSON_GetObjectItemCaseSensitive(map, weights->entries[i]->name);
        const char *file = weights->files[weights->entries[i]->tensor.file].name;
        found_n += row && !strcmp(row->valuestring, file);
    }
    cJSON_ArrayForEach(row, map) rows_n++;
    return rows_n == found_n;
}

static char *weight_map(const struct mm_weights *weights) {
    cJSON *map = cJSON_CreateObject();
    for (size_t i = 0; i < weights->entries_n; i++)
        cJSON_AddStringToObject(map, weights->entries[i]->name,
                                weights->files[weights->entries[i]->tensor.file].name);
    char *printed = cJSON_Print(map), *text = printed ? mm_strdup(printed) : NULL;
    MM_CHECK(text, "out of memory");
    cJSON_free(printed);
    cJSON_Delete(map);
    return text;
}

/* Frees `text`; returns the index as it is written: rows of tensors that are there, and
 * metadata.total_size, where it has one, the bytes written. */
static char *index_text(const struct job *job, char *text) {
    const char *begin, *end;
    const cJSON *map = cJSON_GetObjectItemCaseSensitive(job->weights->index, "weight_map");
    bool holds = index_holds(job->weights, map);
    if (!holds) {
        char *rows = weight_map(job->weights);
        text = set_member(text, "weight_map", rows);
        mm_free(rows);
    }
    if ((job->save_dtype || !holds) && mm_json_member(text, "metadata", &begin, &end) &&
        mm_json_member(begin, "total_size", &begin, &end)) {
        char digits[24];
        snprintf(digits, sizeof digits, "%zu", job->bytes);
        char *edited = mm_json_replace(text, begin, end, digits);
        mm_free(text);
        return edited;
    }
    return text;
}

static enum mm_status write_edited(const struct job *job, const char *from, const char *to,
                                   bool index, struct mm_error *err) {
    char *text;
    cJSON *root = mm_json_file(from, &text, err);
    if (!root)
        return MM_BAD_INPUT;
    cJSON_Delete(root);
    text = index ? index_text(job, text) : config_text(job, text);
    enum mm_status status = mm_file_write(to, text, strlen(text), err);
    mm_free(text);
    return status;
}

/* --- the folder --- */

static void leave_out(struct job *job, const char *name) {
    job->left = mm_realloc(job->left, (job->left_n + 1) * sizeof *job->left);
    job->left[job->left_n++] = mm_strdup(name);
}

static enum mm_status copy_templates(struct job *job, const char *from, const char *to,
                                     struct mm_error *err);

static enum mm_status copy_one(struct job *job, const char *name, struct mm_error *err) {
    enum mm_status status = MM_OK;
    char *from = mm_format("%s/%s", job->weights->folder, name);
    char *to = mm_format("%s/%s", job->folder, name);
    bool index = job->weights->index && !strcmp(name, index_name);
    if (index || !strcmp(name, "config.json"))
        status = write_edited(job, from, to, index, err);
    else if (!strcmp(name, templates_name))
        status = copy_templates(job, from, to, err);
    else if (is_copied(from, name))
        status = mm_file_copy(from, to, err);
    else if (!is_rewritten(job->weights, name))
        leave_out(job, name);
    mm_free(from);
    mm_free(to);
    return status;
}

static enum mm_status copy_templates(struct job *job, const char *from, const char *to,
                                     struct mm_error *err) {
    DIR *folder = opendir(from);
    if (!folder) {
        leave_out(job, templates_name);
        return MM_OK;
    }
    enum mm_status status = mm_folder_make(to, err);
    const struct dirent *item;
    while (!status && (item = readdir(folder))) {
        char *inner = mm_format("%s/%s", from, item->d_name);
        char *outer = mm_format("%s/%s", to, item->d_name);
        if (ends_with(item->d_name, ".jinja") && is_copied(inner, item->d_name))
            status = mm_file_copy(inner, outer, err);
        else if (strcmp(item->d_name, ".") && strcmp(item->d_name, ".."))
            leave_out(job, inner + strlen(job->weights->folder) + 1);
        mm_free(inner);
        mm_free(outer);
    }
    closedir(folder);
    return status ? status : mm_folder_sync(to, err);
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* In lines of a length that the log does not cut. */
static void say_left_out(const struct job *job) {
    enum { ROOM = 1200 };
    char line[ROOM + 300] = "";
    size_t used = 0;
    if (job->left_n)
        qsort(job->left, job->left_n, sizeof *job->left, by_text);
    for (size_t i = 0; i < job->left_n; i++) {
        used += (size_t)snprintf(line + used, sizeof line - used, "%s%.255s", used ? ", " : "",
                                 job->left[i]);
        if (used < ROOM && i + 1 < job->left_n)
            continue;
        for (char *c = line; *c; c++)
            *c = (unsigned char)*c < 0x20 || *c == 0x7f ? '?' : *c;
        mm_log(MM_LOG_INFO, "%s: left out of the saved model, for it may hold other weights: %s",
               job->weights->folder, line);
        used = 0;
    }
}

enum mm_status mm_export_files(const struct mm_weights *weights, const char *folder,
                               const enum mm_dtype *save_dtype, size_t bytes,
                               struct mm_error *err) {
    struct job job = {
        .weights = weights, .folder = folder, .save_dtype = save_dtype, .bytes = bytes};
    DIR *input = opendir(weights->folder);
    if (!input)
        return mm_fail(err, MM_BAD_INPUT, "%s: cannot list: %s", weights->folder, strerror(errno));
    enum mm_status status = MM_OK;
    const struct dirent *item;
    while (!status && (item = readdir(input)))
        if (strcmp(item->d_name, ".") && strcmp(item->d_name, ".."))
            status = copy_one(&job, item->d_name, err);
    closedir(input);
    if (!status)
        say_left_out(&job);
    for (size_t i = 0; i < job.left_n; i++)
        mm_free(job.left[i]);
    mm_free(job.left);
    return status;
}
