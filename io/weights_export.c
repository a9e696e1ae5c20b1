/* weights_export.c - writes a model folder anew with some tensors replaced; see weights.h.
 *
 * Data streams from the mapped files through one chunk of conversion buffers: no tensor is ever
 * held whole. Unless dtypes change, headers are copied byte for byte. */
#include "io/weights.h"

#include <dirent.h>
#include <cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "io/files.h"
#include "io/json_text.h"
#include "io/weights_folder.h"

enum { CHUNK = 1 << 16 }; /* elements */

struct export {
    const struct mm_weights *weights;
    const char *folder; /* being written */
    const enum mm_dtype *save_dtype;
    const struct mm_replacement **replacements; /* by name */
    size_t replacements_n;
    struct mm_export_report report;
    struct chunk {
        float original[CHUNK];     /* as stored */
        uint32_t unchanged[CHUNK]; /* the original in the written dtype */
        uint32_t written[CHUNK];
    } * chunk;
};

/* --- tensors --- */

static enum mm_dtype target_dtype(const struct export *job,
                                  const struct mm_safetensors_entry *entry) {
    return job->save_dtype ? *job->save_dtype : entry->tensor.dtype;
}

static size_t target_bytes(const struct export *job, const struct mm_safetensors_entry *entry) {
    return entry->floating ? entry->tensor.elements * mm_dtype_bytes(target_dtype(job, entry))
                           : entry->bytes;
}

static int by_name(const void *a, const void *b) {
    const struct mm_replacement *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static const struct mm_replacement *replacement_of(const struct export *job, const char *name) {
    struct mm_replacement key = {.name = name};
    const struct mm_replacement *place = &key, **found;
    found = bsearch(&place, job->replacements, job->replacements_n, sizeof *found, by_name);
    return found ? *found : NULL;
}

/* Sorts the replacements; each must name a tensor of its size, once. */
static enum mm_status take_replacements(struct export *job,
                                        const struct mm_replacement *replacements, size_t n,
                                        struct mm_error *err) {
    job->replacements = mm_calloc(n, sizeof *job->replacements);
    for (size_t i = 0; i < n; i++) {
        const struct mm_stored_tensor *tensor = mm_weights_find(job->weights, replacements[i].name);
        if (!tensor || tensor->elements != replacements[i].elements)
            return mm_fail(err, MM_BAD_INPUT,
                           "%s: cannot replace tensor '%s' by %zu elements: it holds %zu",
                           job->weights->folder, replacements[i].name, replacements[i].elements,
                           tensor ? tensor->elements : 0);
        job->replacements[job->replacements_n++] = &replacements[i];
    }
    qsort(job->replacements, n, sizeof *job->replacements, by_name);
    for (size_t i = 1; i < n; i++)
        if (!strcmp(job->replacements[i - 1]->name, job->replacements[i]->name))
            return mm_fail(err, MM_BAD_INPUT, "%s: tensor '%s' is replaced twice",
                           job->weights->folder, job->replacements[i]->name);
    return MM_OK;
}

static uint32_t bits_at(const void *values, size_t width, size_t i) {
    uint32_t bits = 0;
    memcpy(&bits, (const char *)values + i * width, width);
    return bits;
}

/* Converts elements [first, first + n) into chunk->written and counts what that did. */
static void convert_chunk(struct export *job, const struct mm_safetensors_entry *entry,
                          const struct mm_replacement *replacement, size_t first, size_t n) {
    static const uint32_t exponents[] = {
        [MM_F32] = 0x7f800000u, [MM_BF16] = 0x7f80u, [MM_F16] = 0x7c00u};
    struct chunk *chunk = job->chunk;
    enum mm_dtype stored = entry->tensor.dtype, target = target_dtype(job, entry);
    size_t width = mm_dtype_bytes(target);
    const char *source = (const char *)entry->tensor.data + first * mm_dtype_bytes(stored);
    mm_convert(chunk->original, MM_F32, source, stored, n);
    const float *values = replacement ? replacement->data + first : chunk->original;
    mm_convert(chunk->written, target, values, MM_F32, n);
    for (size_t i = 0; i < n; i++)
        job->report.overflowed +=
            (bits_at(chunk->written, width, i) & exponents[target]) == exponents[target] &&
            isfinite(values[i]);
    if (!replacement)
        return;
    mm_convert(chunk->unchanged, target, source, stored, n);
    job->report.replaced += n;
    for (size_t i = 0; i < n; i++) {
        bool changed = bits_at(values, 4, i) != bits_at(chunk->original, 4, i);
        job->report.changed += changed;
        job->report.lost +=
            changed && bits_at(chunk->written, width, i) == bits_at(chunk->unchanged, width, i);
    }
}

static enum mm_status write_tensor(struct export *job, const struct mm_safetensors_entry *entry,
                                   struct mm_output *out, struct mm_error *err) {
    const struct mm_replacement *replacement = replacement_of(job, entry->name);
    if (!replacement && (!entry->floating || target_dtype(job, entry) == entry->tensor.dtype))
        return mm_output_write(out, entry->tensor.data, entry->bytes, err);
    size_t width = mm_dtype_bytes(target_dtype(job, entry));
    enum mm_status status = MM_OK;
    for (size_t first = 0, n; first < entry->tensor.elements && !status; first += n) {
        n = entry->tensor.elements - first < CHUNK ? entry->tensor.elements - first : CHUNK;
        convert_chunk(job, entry, replacement, first, n);
        status = mm_output_write(out, job->chunk->written, n * width, err);
    }
    return status;
}

static enum mm_status write_header(const struct export *job, const struct mm_safetensors *file,
                                   struct mm_output *out, struct mm_error *err) {
    if (!job->save_dtype)
        return mm_output_write(out, file->map, file->data_begin, err);
    struct mm_safetensors_header header;
    mm_safetensors_header_begin(&header, file->metadata);
    for (size_t i = 0; i < file->entries_n; i++) {
        const struct mm_safetensors_entry *entry = &file->entries[i];
        mm_safetensors_header_add(&header, entry->name,
                                  entry->floating ? mm_safetensors_dtype(*job->save_dtype)
                                                  : entry->dtype,
                                  entry->shape, target_bytes(job, entry));
    }
    mm_safetensors_header_end(&header);
    enum mm_status status = mm_output_write(out, header.text, header.bytes, err);
    mm_free(header.text);
    return status;
}

static enum mm_status write_weights(struct export *job, struct mm_error *err) {
    enum mm_status status = MM_OK;
    for (size_t f = 0; f < job->weights->files_n && !status; f++) {
        const struct mm_safetensors *file = &job->weights->files[f];
        char *path = mm_format("%s/%s", job->folder, file->name);
        struct mm_output out;
        status = mm_output_open(&out, path, err);
        mm_free(path);
        if (status)
            break;
        status = write_header(job, file, &out, err);
        for (size_t i = 0; i < file->entries_n && !status; i++)
            status = write_tensor(job, &file->entries[i], &out, err);
        status = mm_output_close(&out, status, err);
    }
    return status;
}

/* --- the other files --- */

/* The text of config.json, one JSON object, with the dtype's name set. */
static char *config_text(const char *text, enum mm_dtype dtype) {
    static const char *const keys[] = {"torch_dtype", "dtype"};
    char *quoted = mm_format("\"%s\"", mm_dtype_name(dtype)), *out = mm_strdup(text);
    const char *begin, *end;
    size_t found = 0;
    for (size_t k = 0; k < 2; k++) {
        if (!mm_json_member(out, keys[k], &begin, &end))
            continue;
        char *next = mm_json_replace(out, begin, end, quoted);
        mm_free(out);
        out = next;
        found++;
    }
    const char *brace = strchr(out, '{');
    if (!found && brace) {
        bool empty = brace[1 + strspn(brace + 1, " \t\r\n")] == '}';
        char *member = mm_format("\n  \"%s\": %s%s", keys[0], quoted, empty ? "\n" : ",");
        char *next = mm_json_replace(out, brace + 1, brace + 1, member);
        mm_free(member);
        mm_free(out);
        out = next;
    }
    mm_free(quoted);
    return out;
}

/* The index's text with metadata.total_size, where it has one, set to the bytes written. */
static char *index_text(const struct export *job, const char *text) {
    size_t total = 0;
    for (size_t i = 0; i < job->weights->entries_n; i++)
        total += target_bytes(job, job->weights->entries[i]);
    char digits[24];
    snprintf(digits, sizeof digits, "%zu", total);
    const char *begin, *end;
    if (mm_json_member(text, "metadata", &begin, &end) &&
        mm_json_member(begin, "total_size", &begin, &end))
        return mm_json_replace(text, begin, end, digits);
    return mm_strdup(text);
}

static const char index_name[] = "model.safetensors.index.json";

/* config.json or the index, edited for *save_dtype. */
static enum mm_status write_edited(const struct export *job, const char *name, const char *from,
                                   const char *to, struct mm_error *err) {
    char *text;
    size_t bytes;
    enum mm_status status = mm_file_read(from, &text, &bytes, err);
    if (status)
        return status;
    cJSON *root = mm_json_object(text, bytes, from, "the file", err);
    if (root) {
        char *edited =
            strcmp(name, index_name) ? config_text(text, *job->save_dtype) : index_text(job, text);
        status = mm_file_write(to, edited, strlen(edited), err);
        mm_free(edited);
    } else {
        status = MM_BAD_INPUT;
    }
    cJSON_Delete(root);
    mm_free(text);
    return status;
}

/* Weights of any format would still hold what was unlearned, and indexes would name them. */
static bool is_weights_name(const char *name) {
    static const char *const suffixes[] = {
        ".safetensors", ".index.json", ".bin", ".pt",   ".pth",  ".ckpt",  ".h5",
        ".msgpack",     ".onnx",       ".ot",  ".gguf", ".ggml", ".tflite"};
    size_t length = strlen(name);
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        size_t n = strlen(suffixes[i]);
        if (length >= n && !strcasecmp(name + length - n, suffixes[i]))
            return true;
    }
    return false;
}

static enum mm_status write_other(const struct export *job, const char *name,
                                  struct mm_error *err) {
    bool index = !strcmp(name, index_name) && job->weights->indexed;
    if (name[0] == '.' || (is_weights_name(name) && !index))
        return MM_OK;
    enum mm_status status = MM_OK;
    char *from = mm_format("%s/%s", job->weights->folder, name);
    char *to = mm_format("%s/%s", job->folder, name);
    struct stat info;
    if (stat(from, &info))
        mm_log(MM_LOG_WARN, "%s: not copied: %s", from, strerror(errno));
    else if (S_ISREG(info.st_mode) && job->save_dtype && (index || !strcmp(name, "config.json")))
        status = write_edited(job, name, from, to, err);
    else if (S_ISREG(info.st_mode))
        status = mm_file_copy(from, to, err);
    mm_free(from);
    mm_free(to);
    return status;
}

static enum mm_status write_others(const struct export *job, struct mm_error *err) {
    DIR *folder = opendir(job->weights->folder);
    if (!folder)
        return mm_fail(err, MM_BAD_INPUT, "%s: cannot list: %s", job->weights->folder,
                       strerror(errno));
    enum mm_status status = MM_OK;
    const struct dirent *item;
    while (!status && (item = readdir(folder)))
        status = write_other(job, item->d_name, err);
    closedir(folder);
    return status;
}

/* --- the folder --- */

/* Everything into job->folder, then that folder renamed to `out`. */
static enum mm_status write_folder(struct export *job, const char *out, struct mm_error *err) {
    enum mm_status status = mm_folder_remove(job->folder, err);
    if (status)
        return status;
    status = mm_folder_make(job->folder, err);
    if (!status)
        status = write_others(job, err);
    if (!status)
        status = write_weights(job, err);
    if (!status)
        status = mm_folder_sync(job->folder, err);
    if (!status && rename(job->folder, out))
        status = mm_fail(err, MM_FAILED, "%s: cannot rename to %s: %s", job->folder, out,
                         strerror(errno));
    if (status) {
        struct mm_error second; /* the first one counts */
        mm_folder_remove(job->folder, &second);
        return status;
    }
    char *parent = mm_path_parent(out);
    status = mm_folder_sync(parent, err);
    mm_free(parent);
    return status;
}

enum mm_status mm_weights_export(const struct mm_weights *weights, const char *out,
                                 const struct mm_replacement *replacements, size_t replacements_n,
                                 const enum mm_dtype *save_dtype, struct mm_export_report *report,
                                 struct mm_error *err) {
    if (!*out)
        return mm_fail(err, MM_BAD_INPUT, "the folder to write a model into has no name");
    if (mm_path_exists(out))
        return mm_fail(err, MM_BAD_INPUT, "%s: exists already: remove it or choose another name",
                       out);
    size_t length = strlen(out);
    while (length > 1 && out[length - 1] == '/')
        length--;
    char *target = mm_format("%.*s", (int)length, out);
    char *folder = mm_format("%s.writing", target);
    struct export job = {.weights = weights, .folder = folder, .save_dtype = save_dtype};
    job.chunk = mm_calloc(1, sizeof *job.chunk);
    enum mm_status status = take_replacements(&job, replacements, replacements_n, err);
    if (!status)
        status = write_folder(&job, target, err);
    if (!status && report)
        *report = job.report;
    mm_free(job.replacements);
    mm_free(job.chunk);
    mm_free(folder);
    mm_free(target);
    return status;
}

/* --- a model made here --- */

static size_t tensor_bytes(const struct mm_named_tensor *tensor) {
    return 4 * tensor->rows * (tensor->cols ? tensor->cols : 1);
}

static enum mm_status write_model(const char *path, const struct mm_named_tensor *tensors,
                                  size_t tensors_n, struct mm_error *err) {
    struct mm_output out;
    enum mm_status status = mm_output_open(&out, path, err);
    if (status)
        return status;
    struct mm_safetensors_header header;
    mm_safetensors_header_begin(&header, "{\"format\":\"pt\"}"); /* transformers asks for it */
    for (size_t i = 0; i < tensors_n; i++) {
        char shape[64];
        snprintf(shape, sizeof shape, tensors[i].cols ? "[%zu,%zu]" : "[%zu]", tensors[i].rows,
                 tensors[i].cols);
        mm_safetensors_header_add(&header, tensors[i].name, mm_safetensors_dtype(MM_F32), shape,
                                  tensor_bytes(&tensors[i]));
    }
    mm_safetensors_header_end(&header);
    status = mm_output_write(&out, header.text, header.bytes, err);
    mm_free(header.text);
    for (size_t i = 0; i < tensors_n && !status; i++)
        status = mm_output_write(&out, tensors[i].data, tensor_bytes(&tensors[i]), err);
    return mm_output_close(&out, status, err);
}

enum mm_status mm_weights_write(const char *folder, const struct mm_named_tensor *tensors,
                                size_t tensors_n, struct mm_error *err) {
    for (size_t i = 0; i < tensors_n; i++)
        for (size_t k = 0; k < i; k++)
            if (!strcmp(tensors[i].name, tensors[k].name))
                return mm_fail(err, MM_BAD_INPUT, "%s: tensor '%s' is given twice", folder,
                               tensors[i].name);
    enum mm_status status = mm_folder_make(folder, err);
    if (status)
        return status;
    char *path = mm_format("%s/model.safetensors", folder);
    status = write_model(path, tensors, tensors_n, err);
    mm_free(path);
    return status ? status : mm_folder_sync(folder, err);
}
