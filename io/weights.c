/* weights.c - a folder's weight files as one table of named tensors; see weights.h. The format of
 * one file is in safetensors.c, writing in weights_export.c. */
#include "io/weights.h"

#include <cJSON.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/files.h"
#include "io/json_text.h"
#include "io/weights_folder.h"

static const char single_name[] = "model.safetensors";
static const char index_name[] = "model.safetensors.index.json";

/* --- which files --- */

/* A plain name of a weight file: what leaves the folder, or hides in it, is refused. */
static bool good_file_name(const char *name) {
    size_t length = strlen(name), suffix = strlen(".safetensors");
    return name[0] != '.' && !strchr(name, '/') && length > suffix && length < 256 &&
           !strcmp(name + length - suffix, ".safetensors");
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The file names of a weight map (path: the index), sorted, each once; borrowed from it. */
static enum mm_status index_files(const cJSON *map, const char *path, const char ***names,
                                  size_t *names_n, struct mm_error *err) {
    size_t rows_n = 0, kept = 0;
    const cJSON *row;
    cJSON_ArrayForEach(row, map) rows_n++;
    const char **all = mm_calloc(rows_n, sizeof *all);
    rows_n = 0;
    cJSON_ArrayForEach(row, map) {
        if (!cJSON_IsString(row) || !good_file_name(row->valuestring)) {
            mm_free(all);
            return mm_fail(err, MM_BAD_INPUT,
                           "%s: the file of tensor '%.200s' is %.200s%s%s: it must be a plain name "
                           "in this folder that ends in .safetensors",
                           path, row->string, cJSON_IsString(row) ? "'" : "not a string",
                           cJSON_IsString(row) ? row->valuestring : "",
                           cJSON_IsString(row) ? "'" : "");
        }
        all[rows_n++] = row->valuestring;
    }
    qsort(all, rows_n, sizeof *all, by_text);
    for (size_t i = 0; i < rows_n; i++)
        if (i == 0 || strcmp(all[kept - 1], all[i]))
            all[kept++] = all[i];
    *names = all;
    *names_n = kept;
    return MM_OK;
}

static bool is_there(const char *folder, const char *name) {
    char *path = mm_format("%s/%s", folder, name);
    bool there = access(path, F_OK) == 0;
    mm_free(path);
    return there;
}

/* A file that an index names may be missing: perhaps nobody asks for what it holds. */
static enum mm_status open_files(struct mm_weights *weights, const char *const *names,
                                 size_t names_n, struct mm_error *err) {
    weights->files = mm_calloc(names_n, sizeof *weights->files);
    for (size_t i = 0; i < names_n; i++) {
        if (weights->index && !is_there(weights->folder, names[i]))
            continue;
        enum mm_status status =
            mm_safetensors_open(&weights->files[weights->files_n], weights->folder, names[i], err);
        if (status)
            return status;
        weights->files_n++;
    }
    return MM_OK;
}

static int by_entry_name(const void *a, const void *b) {
    const struct mm_safetensors_entry *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static const char *file_of(const struct mm_weights *weights,
                           const struct mm_safetensors_entry *entry) {
    return weights->files[entry->tensor.file].path;
}

/* Fills both tables from the files. */
static enum mm_status build_tables(struct mm_weights *weights, struct mm_error *err) {
    size_t entries_n = 0;
    for (size_t f = 0; f < weights->files_n; f++)
        entries_n += weights->files[f].entries_n;
    weights->entries = mm_calloc(entries_n, sizeof *weights->entries);
    weights->listed = mm_calloc(entries_n, sizeof *weights->listed);
    for (size_t f = 0; f < weights->files_n; f++)
        for (size_t i = 0; i < weights->files[f].entries_n; i++) {
            struct mm_safetensors_entry *entry = &weights->files[f].entries[i];
            entry->tensor.file = f;
            weights->entries[weights->entries_n++] = entry;
            if (entry->listed)
                weights->listed[weights->listed_n++] = &entry->tensor;
        }
    qsort(weights->entries, entries_n, sizeof *weights->entries, by_entry_name);
    for (size_t i = 1; i < entries_n; i++)
        if (!strcmp(weights->entries[i - 1]->name, weights->entries[i]->name))
            return mm_fail(err, MM_BAD_INPUT,
                           "%s: tensor '%.200s' is also in %s: remove one of the files or mend "
                           "the index",
                           file_of(weights, weights->entries[i]), weights->entries[i]->name,
                           file_of(weights, weights->entries[i - 1]));
    return MM_OK;
}

static enum mm_status open_indexed(struct mm_weights *weights, const char *path,
                                   struct mm_error *err) {
    weights->index = mm_json_file(path, NULL, err);
    if (!weights->index)
        return MM_BAD_INPUT;
    const cJSON *map = cJSON_GetObjectItemCaseSensitive(weights->index, "weight_map");
    if (!cJSON_IsObject(map) || !map->child)
        return mm_fail(err, MM_BAD_INPUT,
                       "%s: no \"weight_map\" that names tensors: download it again", path);
    const char **names = NULL;
    size_t names_n = 0;
    enum mm_status status = index_files(map, path, &names, &names_n, err);
    if (!status)
        status = open_files(weights, names, names_n, err);
    if (!status)
        status = build_tables(weights, err);
    mm_free(names);
    return status;
}

/* What is said of a folder without the files that are read. */
static enum mm_status explain_none(const char *folder, struct mm_error *err) {
    char other[256] = "";
    DIR *all = opendir(folder);
    const struct dirent *item;
    while (all && !*other && (item = readdir(all)))
        if (strstr(item->d_name, ".safetensors"))
            snprintf(other, sizeof other, "%s", item->d_name);
    if (all)
        closedir(all);
    if (*other)
        return mm_fail(err, MM_BAD_INPUT,
                       "%s: holds %s, but neither %s nor %s: if all weights are in that file, name "
                       "it %s; if it is one of several, download their index too",
                       folder, other, single_name, index_name, single_name);
    return mm_fail(err, MM_BAD_INPUT,
                   "%s: holds neither %s nor %s; PyTorch files (*.bin, *.pt) are not read: "
                   "convert them to safetensors (transformers: save_pretrained)",
                   folder, single_name, index_name);
}

static enum mm_status open_folder(struct mm_weights *weights, struct mm_error *err) {
    const char *folder = weights->folder;
    struct stat info;
    if (stat(folder, &info))
        return mm_fail(err, MM_BAD_INPUT,
                       "%s: no such folder: model.path must be a Hugging Face model folder "
                       "(config.json and *.safetensors)",
                       folder);
    if (!S_ISDIR(info.st_mode))
        return mm_fail(err, MM_BAD_INPUT,
                       "%s: not a folder: model.path must be the folder that holds config.json "
                       "and *.safetensors",
                       folder);
    char *single = mm_format("%s/%s", folder, single_name);
    char *index = mm_format("%s/%s", folder, index_name);
    enum mm_status status;
    if (mm_path_exists(single)) {
        status = open_files(weights, (const char *const[]){single_name}, 1, err);
        if (!status)
            status = build_tables(weights, err);
    } else if (mm_path_exists(index)) {
        status = open_indexed(weights, index, err);
    } else {
        status = explain_none(folder, err);
    }
    mm_free(single);
    mm_free(index);
    return status;
}

enum mm_status mm_weights_open(struct mm_weights **weights, const char *folder,
                               struct mm_error *err) {
    *weights = mm_calloc(1, sizeof **weights);
    (*weights)->folder = mm_strdup(folder);
    enum mm_status status = open_folder(*weights, err);
    if (status) {
        mm_weights_free(*weights);
        *weights = NULL;
    }
    return status;
}

void mm_weights_free(struct mm_weights *weights) {
    if (!weights)
        return;
    for (size_t f = 0; f < weights->files_n; f++)
        mm_safetensors_close(&weights->files[f]);
    for (size_t i = 0; i < weights->aliases_n; i++)
        mm_free(weights->aliases[i].name);
    mm_free(weights->aliases);
    cJSON_Delete(weights->index);
    mm_free(weights->files);
    mm_free(weights->entries);
    mm_free(weights->listed);
    mm_free(weights->folder);
    mm_free(weights);
}

/* --- looking things up --- */

size_t mm_weights_count(const struct mm_weights *weights) {
    return weights->listed_n;
}

const struct mm_stored_tensor *mm_weights_at(const struct mm_weights *weights, size_t index) {
    MM_CHECK(index < weights->listed_n, "tensor %zu of %zu", index, weights->listed_n);
    return weights->listed[index];
}

static int by_alias(const void *a, const void *b) {
    return strcmp(((const struct mm_weights_alias *)a)->name,
                  ((const struct mm_weights_alias *)b)->name);
}

static const struct mm_safetensors_entry *stored_entry(const struct mm_weights *weights,
                                                       const char *name) {
    const struct mm_safetensors_entry key = {.name = (char *)(uintptr_t)name}, *place = &key;
    const struct mm_safetensors_entry **found =
        bsearch(&place, weights->entries, weights->entries_n, sizeof *found, by_entry_name);
    return found ? *found : NULL;
}

const struct mm_safetensors_entry *mm_weights_entry(const struct mm_weights *weights,
                                                    const char *name) {
    const struct mm_weights_alias key = {.name = (char *)(uintptr_t)name}, *found = NULL;
    if (weights->aliases_n)
        found = bsearch(&key, weights->aliases, weights->aliases_n, sizeof key, by_alias);
    return found ? found->entry : stored_entry(weights, name);
}

void mm_weights_alias(struct mm_weights *weights, const char *name, const char *stored) {
    const struct mm_safetensors_entry *entry = stored_entry(weights, stored);
    MM_CHECK(entry, "no tensor '%s'", stored);
    size_t n = weights->aliases_n++;
    weights->aliases = mm_realloc(weights->aliases, (n + 1) * sizeof *weights->aliases);
    while (n && strcmp(weights->aliases[n - 1].name, name) > 0) {
        weights->aliases[n] = weights->aliases[n - 1];
        n--;
    }
    weights->aliases[n] = (struct mm_weights_alias){mm_strdup(name), entry};
}

size_t mm_weights_names_n(const struct mm_weights *weights) {
    return weights->entries_n;
}

const char *mm_weights_name(const struct mm_weights *weights, size_t index) {
    MM_CHECK(index < weights->entries_n, "tensor %zu of %zu", index, weights->entries_n);
    return weights->entries[index]->name;
}

void mm_weights_untie(struct mm_weights *weights) {
    weights->untied = true;
}

bool mm_weights_same(const struct mm_weights *weights, const char *a, const char *b) {
    enum { CHUNK = 4096 };
    const struct mm_stored_tensor *x = mm_weights_find(weights, a),
                                  *y = mm_weights_find(weights, b);
    bool same = true;
    if (!x || !y || x->dims_n != y->dims_n || memcmp(x->dims, y->dims, sizeof x->dims))
        return false;
    float values[2][CHUNK];
    for (size_t i = 0, n; i < x->elements && same; i += n) {
        n = x->elements - i < CHUNK ? x->elements - i : CHUNK;
        mm_convert(values[0], MM_F32, (const char *)x->data + i * mm_dtype_bytes(x->dtype),
                   x->dtype, n);
        mm_convert(values[1], MM_F32, (const char *)y->data + i * mm_dtype_bytes(y->dtype),
                   y->dtype, n);
        for (size_t k = 0; k < n; k++)
            same = same && values[0][k] == values[1][k];
    }
    mm_safetensors_forget(x->data, x->elements * mm_dtype_bytes(x->dtype));
    mm_safetensors_forget(y->data, y->elements * mm_dtype_bytes(y->dtype));
    return same;
}

const struct mm_stored_tensor *mm_weights_find(const struct mm_weights *weights, const char *name) {
    const struct mm_safetensors_entry *entry = mm_weights_entry(weights, name);
    return entry && entry->listed ? &entry->tensor : NULL;
}

static enum mm_status explain_missing(const struct mm_weights *weights, const char *name,
                                      struct mm_error *err) {
    const struct mm_safetensors_entry *entry = mm_weights_entry(weights, name);
    const cJSON *map = cJSON_GetObjectItemCaseSensitive(weights->index, "weight_map");
    const cJSON *row = cJSON_GetObjectItemCaseSensitive(map, name);
    if (!entry && row)
        return mm_fail(err, MM_BAD_INPUT,
                       "%s/%s: tensor '%s' should be in %s, which %s: download it again",
                       weights->folder, index_name, name, row->valuestring,
                       is_there(weights->folder, row->valuestring) ? "lacks it" : "is missing");
    if (!entry)
        return mm_fail(err, MM_BAD_INPUT,
                       "%s/%s: no tensor '%s': config.json and the weights do not belong together",
                       weights->folder, weights->index ? index_name : single_name, name);
    if (!entry->floating)
        return mm_fail(err, MM_BAD_INPUT,
                       "%s: tensor '%s' has dtype %.20s, which is not supported (F32, F16 and BF16 "
                       "are): convert the model",
                       file_of(weights, entry), name, entry->dtype);
    return mm_fail(err, MM_BAD_INPUT,
                   "%s: tensor '%s' has %zu dimensions, at most 4 are supported: %.200s",
                   file_of(weights, entry), name, entry->dims_n, entry->shape);
}

enum mm_status mm_weights_check(const struct mm_weights *weights, const char *name, size_t rows,
                                size_t cols, struct mm_error *err) {
    const struct mm_safetensors_entry *entry = mm_weights_entry(weights, name);
    if (!entry || !entry->listed)
        return explain_missing(weights, name, err);
    const struct mm_stored_tensor *tensor = &entry->tensor;
    bool same = cols ? tensor->dims_n == 2 && tensor->dims[0] == rows && tensor->dims[1] == cols
                     : tensor->dims_n == 1 && tensor->dims[0] == rows;
    if (!same) {
        char wanted[64];
        snprintf(wanted, sizeof wanted, cols ? "[%zu,%zu]" : "[%zu]", rows, cols);
        return mm_fail(err, MM_BAD_INPUT,
                       "%s: tensor '%s' has shape %s, the model needs %s: config.json and the "
                       "weights do not belong together",
                       file_of(weights, entry), name, entry->shape, wanted);
    }
    return MM_OK;
}

enum mm_status mm_weights_load_rows(const struct mm_weights *weights, const char *name,
                                    struct mm_stored_rows part, void *dst, enum mm_dtype dst_dtype,
                                    struct mm_error *err) {
    enum mm_status status = mm_weights_check(weights, name, part.rows, part.cols, err);
    if (status)
        return status;
    const struct mm_stored_tensor *tensor = mm_weights_find(weights, name);
    size_t cols = part.cols ? part.cols : 1, bytes = mm_dtype_bytes(tensor->dtype);
    size_t all = part.count * cols, most = MM_FILE_PIECE / bytes;
    const char *from = (const char *)tensor->data + part.first * cols * bytes;
    for (size_t done = 0, n; done < all; done += n) {
        n = all - done < most ? all - done : most;
        mm_convert((char *)dst + done * mm_dtype_bytes(dst_dtype), dst_dtype, from + done * bytes,
                   tensor->dtype, n);
        mm_safetensors_forget(from + done * bytes, n * bytes);
    }
    return MM_OK;
}

enum mm_status mm_weights_load(const struct mm_weights *weights, const char *name, size_t rows,
                               size_t cols, void *dst, enum mm_dtype dst_dtype,
                               struct mm_error *err) {
    struct mm_stored_rows all = {rows, cols, 0, rows};
    return mm_weights_load_rows(weights, name, all, dst, dst_dtype, err);
}

void mm_weights_forget(const struct mm_weights *weights) {
    for (size_t f = 0; f < weights->files_n; f++)
        mm_safetensors_forget(weights->files[f].map, weights->files[f].bytes);
}

const char *mm_weights_path(const struct mm_weights *weights) {
    return weights->files_n == 1 ? weights->files[0].path : weights->folder;
}

size_t mm_weights_mapped_bytes(const struct mm_weights *weights) {
    size_t bytes = 0;
    for (size_t f = 0; f < weights->files_n; f++)
        bytes += weights->files[f].bytes;
    return bytes;
}
