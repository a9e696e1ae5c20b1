/* weights_export.c - writes a model folder anew with some tensors replaced; see weights.h.
 *
 * Data streams from the mapped files through one chunk of conversion buffers: no tensor is ever
 * held whole. Unless dtypes change, headers are copied byte for byte. */
#include "io/weights.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/export_files.h"
#include "io/files.h"
#include "io/weights_folder.h"

enum { CHUNK = 1 << 16 }; /* elements */

struct export {
    const struct mm_weights *weights;
    const char *folder; /* being written */
    const enum mm_dtype *save_dtype;
    struct replaced {
        const struct mm_safetensors_entry *entry;
        const struct mm_replacement *by;
    } * replaced; /* by entry */
    size_t replaced_n;
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

static int by_entry(const void *a, const void *b) {
    const struct replaced *x = a, *y = b;
    return (x->entry > y->entry) - (x->entry < y->entry);
}

static const struct mm_replacement *replacement_of(const struct export *job,
                                                   const struct mm_safetensors_entry *entry) {
    const struct replaced key = {.entry = entry}, *found = NULL;
    if (job->replaced_n)
        found = bsearch(&key, job->replaced, job->replaced_n, sizeof key, by_entry);
    return found ? found->by : NULL;
}

/* Sorts the replacements; each must name a tensor of its size, once. */
static enum mm_status take_replacements(struct export *job,
                                        const struct mm_replacement *replacements, size_t n,
                                        struct mm_error *err) {
    job->replaced = mm_calloc(n, sizeof *job->replaced);
    for (size_t i = 0; i < n; i++) {
        const struct mm_stored_tensor *tensor = mm_weights_find(job->weights, replacements[i].name);
        if (!tensor || tensor->elements != replacements[i].elements)
            return mm_fail(err, MM_BAD_INPUT,
                           "%s: cannot replace tensor '%s' by %zu elements: it holds %zu",
                           job->weights->folder, replacements[i].name, replacements[i].elements,
                           tensor ? tensor->elements : 0);
        job->replaced[job->replaced_n++] = (struct replaced){
            mm_weights_entry(job->weights, replacements[i].name), &replacements[i]};
    }
    qsort(job->replaced, n, sizeof *job->replaced, by_entry);
    for (size_t i = 1; i < n; i++)
        if (job->replaced[i - 1].entry == job->replaced[i].entry)
            return mm_fail(err, MM_BAD_INPUT, "%s: tensor '%s' is replaced twice",
                           job->weights->folder, job->replaced[i].by->name);
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
    const struct mm_replacement *replacement = replacement_of(job, entry);
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

static size_t all_bytes(const struct export *job) {
    size_t total = 0;
    for (size_t i = 0; i < job->weights->entries_n; i++)
        total += target_bytes(job, job->weights->entries[i]);
    return total;
}

/* --- the folder --- */

/* Everything into job->folder, then that folder renamed to `out`. */
static enum mm_status write_folder(struct export *job, const char *out, struct mm_error *err) {
    enum mm_status status = mm_folder_remove(job->folder, err);
    if (status)
        return status;
    status = mm_folder_make(job->folder, err);
    if (!status)
        status = mm_export_files(job->weights, job->folder, job->save_dtype, all_bytes(job), err);
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
    mm_free(job.replaced);
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
