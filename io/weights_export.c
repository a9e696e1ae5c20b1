/* weights_export.c - writes a model folder anew with some tensors replaced; see weights.h.
 *
 * Reason: no rank could hold a large model, nor would one disk's stream do. Every rank writes its
 * own rows into the files at their places. Data streams from the mapped files through one chunk of
 * conversion buffers: no tensor is ever held whole. Unless dtypes change, headers are copied byte
 * for byte. */
#include "io/weights.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm/comm.h"
#include "io/export_files.h"
#include "io/files.h"
#include "io/weights_folder.h"

enum { CHUNK = 1 << 16 }; /* elements */

/* The rows of one rank, while they are written. */
struct writer {
    const struct mm_weights_export *export;
    int ranks, rank;
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
        float replacing[CHUNK];
    } * chunk;
};

/* `out` without slashes at its end, and the folder that is written meanwhile; the caller frees. */
static char *target_of(const struct mm_weights_export *e) {
    size_t length = strlen(e->out);
    while (length > 1 && e->out[length - 1] == '/')
        length--;
    return mm_format("%.*s", (int)length, e->out);
}

static char *folder_of(const struct mm_weights_export *e) {
    char *target = target_of(e), *folder = mm_format("%s.writing", target);
    mm_free(target);
    return folder;
}

/* --- headers --- */

static enum mm_dtype target_dtype(const struct mm_weights_export *e,
                                  const struct mm_safetensors_entry *entry) {
    return e->save_dtype ? *e->save_dtype : entry->tensor.dtype;
}

static size_t target_bytes(const struct mm_weights_export *e,
                           const struct mm_safetensors_entry *entry) {
    return entry->floating ? entry->tensor.elements * mm_dtype_bytes(target_dtype(e, entry))
                           : entry->bytes;
}

/* The header of a file with other dtypes. The caller frees its text. */
static struct mm_safetensors_header make_header(const struct mm_weights_export *e,
                                                const struct mm_safetensors *file) {
    struct mm_safetensors_header header;
    mm_safetensors_header_begin(&header, file->metadata);
    for (size_t i = 0; i < file->entries_n; i++) {
        const struct mm_safetensors_entry *entry = &file->entries[i];
        mm_safetensors_header_add(&header, entry->name,
                                  entry->floating ? mm_safetensors_dtype(*e->save_dtype)
                                                  : entry->dtype,
                                  entry->shape, target_bytes(e, entry));
    }
    mm_safetensors_header_end(&header);
    return header;
}

/* Where the data of a written file begins. */
static size_t data_begin(const struct mm_weights_export *e, const struct mm_safetensors *file) {
    if (!e->save_dtype)
        return file->data_begin;
    struct mm_safetensors_header header = make_header(e, file);
    mm_free(header.text);
    return header.bytes;
}

static enum mm_status write_header(const struct mm_weights_export *e,
                                   const struct mm_safetensors *file, const char *folder,
                                   struct mm_error *err) {
    struct mm_output out;
    struct mm_safetensors_header header = {0};
    char *path = mm_format("%s/%s", folder, file->name);
    enum mm_status status = mm_output_open(&out, path, err);
    mm_free(path);
    if (status != MM_OK)
        return status;
    if (e->save_dtype)
        header = make_header(e, file);
    status = header.text ? mm_output_write(&out, header.text, header.bytes, err)
                         : mm_output_write(&out, file->map, file->data_begin, err);
    mm_free(header.text);
    return mm_output_close(&out, status, err);
}

/* --- rows --- */

static int by_entry(const void *a, const void *b) {
    const struct replaced *x = a, *y = b;
    return (x->entry > y->entry) - (x->entry < y->entry);
}

static const struct mm_replacement *replacement_of(const struct writer *w,
                                                   const struct mm_safetensors_entry *entry) {
    const struct replaced key = {.entry = entry}, *found = NULL;
    if (w->replaced_n)
        found = bsearch(&key, w->replaced, w->replaced_n, sizeof key, by_entry);
    return found ? found->by : NULL;
}

/* Sorts the replacements; each must name a tensor of its size, once. */
static enum mm_status take_replacements(struct writer *w, const struct mm_replacement *replacements,
                                        size_t n, struct mm_error *err) {
    const struct mm_weights *weights = w->export->weights;
    w->replaced = mm_calloc(n, sizeof *w->replaced);
    for (size_t i = 0; i < n; i++) {
        const struct mm_stored_tensor *tensor = mm_weights_find(weights, replacements[i].name);
        if (!tensor || tensor->elements != replacements[i].elements)
            return mm_fail(err, MM_BAD_INPUT,
                           "%s: cannot replace tensor '%s' by %zu elements: it holds %zu",
                           weights->folder, replacements[i].name, replacements[i].elements,
                           tensor ? tensor->elements : 0);
        w->replaced[w->replaced_n++] =
            (struct replaced){mm_weights_entry(weights, replacements[i].name), &replacements[i]};
    }
    qsort(w->replaced, n, sizeof *w->replaced, by_entry);
    for (size_t i = 1; i < n; i++)
        if (w->replaced[i - 1].entry == w->replaced[i].entry)
            return mm_fail(err, MM_BAD_INPUT, "%s: tensor '%s' is replaced twice", weights->folder,
                           w->replaced[i].by->name);
    return MM_OK;
}

static uint32_t bits_at(const void *values, size_t width, size_t i) {
    uint32_t bits = 0;
    memcpy(&bits, (const char *)values + i * width, width);
    return bits;
}

/* Converts n elements from `first` on into chunk->written and counts what that did. `by` has the
 * values that replace them; NULL: none. */
static void convert_chunk(struct writer *w, const struct mm_safetensors_entry *entry,
                          const float *by, size_t first, size_t n) {
    static const uint32_t exponents[] = {
        [MM_F32] = 0x7f800000u, [MM_BF16] = 0x7f80u, [MM_F16] = 0x7c00u};
    struct chunk *chunk = w->chunk;
    enum mm_dtype stored = entry->tensor.dtype, target = target_dtype(w->export, entry);
    size_t width = mm_dtype_bytes(target);
    const char *source = (const char *)entry->tensor.data + first * mm_dtype_bytes(stored);
    mm_convert(chunk->original, MM_F32, source, stored, n);
    const float *values = by ? by : chunk->original;
    mm_convert(chunk->written, target, values, MM_F32, n);
    if (by)
        mm_convert(chunk->unchanged, target, source, stored, n);
    for (size_t i = 0; i < n; i++)
        w->report.overflowed +=
            (bits_at(chunk->written, width, i) & exponents[target]) == exponents[target] &&
            isfinite(values[i]);
    if (!by)
        return;
    w->report.replaced += n;
    for (size_t i = 0; i < n; i++) {
        bool changed = bits_at(values, 4, i) != bits_at(chunk->original, 4, i);
        w->report.changed += changed;
        w->report.lost +=
            changed && bits_at(chunk->written, width, i) == bits_at(chunk->unchanged, width, i);
    }
}

/* The values that replace n of this rank's elements of a tensor, from `first` on. */
static const float *replacing(struct writer *w, const struct mm_replacement *replacement,
                              size_t first, size_t n) {
    if (!w->export->read)
        return (const float *)replacement->data + first;
    w->export->read(replacement->data, first, n, w->chunk->replacing);
    return w->chunk->replacing;
}

static enum mm_status write_converted(struct writer *w, const struct mm_safetensors_entry *entry,
                                      struct mm_rows own, size_t cols, struct mm_output *out,
                                      struct mm_error *err) {
    const struct mm_replacement *replacement = replacement_of(w, entry);
    size_t width = mm_dtype_bytes(target_dtype(w->export, entry)), all = own.count * cols;
    size_t stored = mm_dtype_bytes(entry->tensor.dtype), kept = 0; /* from here on in memory */
    const char *source = (const char *)entry->tensor.data + own.first * cols * stored;
    enum mm_status status = MM_OK;
    for (size_t done = 0, n; done < all && status == MM_OK; done += n) {
        n = all - done < CHUNK ? all - done : CHUNK;
        convert_chunk(w, entry, replacement ? replacing(w, replacement, done, n) : NULL,
                      own.first * cols + done, n);
        status = mm_output_write(out, w->chunk->written, n * width, err);
        if ((done + n - kept) * stored < MM_FILE_PIECE && done + n < all)
            continue;
        mm_safetensors_forget(source + kept * stored, (done + n - kept) * stored);
        kept = done + n;
    }
    return status;
}

static enum mm_status write_unchanged(const char *data, size_t bytes, struct mm_output *out,
                                      struct mm_error *err) {
    enum mm_status status = MM_OK;
    for (size_t now; bytes > 0 && status == MM_OK; data += now, bytes -= now) {
        now = bytes < MM_FILE_PIECE ? bytes : MM_FILE_PIECE;
        status = mm_output_write(out, data, now, err);
        mm_safetensors_forget(data, now);
    }
    return status;
}

/* place: where the tensor's data begins in the written file. What is no matrix or vector of numbers
 * that we know is one row. */
static enum mm_status write_tensor(struct writer *w, const struct mm_safetensors_entry *entry,
                                   struct mm_output *out, size_t place, struct mm_error *err) {
    const struct mm_stored_tensor *tensor = &entry->tensor;
    size_t bytes = target_bytes(w->export, entry);
    size_t rows = entry->listed && tensor->dims_n ? tensor->dims[0] : 1;
    struct mm_rows own = mm_rows_of(rows, w->ranks, w->rank);
    if (own.count == 0 || bytes == 0)
        return MM_OK;
    size_t each = bytes / rows;
    enum mm_status status = mm_output_seek(out, place + own.first * each, err);
    if (status != MM_OK)
        return status;
    bool same = !entry->floating || target_dtype(w->export, entry) == tensor->dtype;
    if (same && !replacement_of(w, entry))
        return write_unchanged((const char *)tensor->data + own.first * each, own.count * each, out,
                               err);
    return write_converted(w, entry, own, tensor->elements / rows, out, err);
}

static enum mm_status write_rows(struct writer *w, const struct mm_safetensors *file,
                                 const char *folder, struct mm_error *err) {
    struct mm_output out;
    size_t place = data_begin(w->export, file);
    char *path = mm_format("%s/%s", folder, file->name);
    enum mm_status status = mm_output_reopen(&out, path, err);
    mm_free(path);
    if (status != MM_OK)
        return status;
    for (size_t i = 0; i < file->entries_n && status == MM_OK; i++) {
        status = write_tensor(w, &file->entries[i], &out, place, err);
        place += target_bytes(w->export, &file->entries[i]);
    }
    return mm_output_close(&out, status, err);
}

enum mm_status mm_weights_export_rows(const struct mm_weights_export *e,
                                      const struct mm_replacement *replacements,
                                      size_t replacements_n, int ranks, int rank,
                                      struct mm_export_report *report, struct mm_error *err) {
    struct writer w = {.export = e, .ranks = ranks, .rank = rank};
    w.chunk = mm_calloc(1, sizeof *w.chunk);
    char *folder = folder_of(e);
    enum mm_status status = take_replacements(&w, replacements, replacements_n, err);
    for (size_t f = 0; f < e->weights->files_n && status == MM_OK; f++)
        status = write_rows(&w, &e->weights->files[f], folder, err);
    mm_weights_forget(e->weights);
    *report = w.report;
    mm_free(folder);
    mm_free(w.replaced);
    mm_free(w.chunk);
    return status;
}

/* --- the folder --- */

static size_t all_bytes(const struct mm_weights_export *e) {
    size_t total = 0;
    for (size_t i = 0; i < e->weights->entries_n; i++)
        total += target_bytes(e, e->weights->entries[i]);
    return total;
}

static enum mm_status fill_folder(const struct mm_weights_export *e, const char *folder,
                                  struct mm_error *err) {
    enum mm_status status = mm_folder_make(folder, err);
    if (status == MM_OK)
        status = mm_export_files(e->weights, folder, e->save_dtype, all_bytes(e), err);
    for (size_t f = 0; f < e->weights->files_n && status == MM_OK; f++)
        status = write_header(e, &e->weights->files[f], folder, err);
    return status;
}

static void remove_quietly(const char *folder) {
    struct mm_error second; /* the first one counts */
    mm_folder_remove(folder, &second);
}

enum mm_status mm_weights_export_begin(const struct mm_weights_export *e, struct mm_error *err) {
    if (!*e->out)
        return mm_fail(err, MM_BAD_INPUT, "the folder to write a model into has no name");
    if (mm_path_exists(e->out))
        return mm_fail(err, MM_BAD_INPUT, "%s: exists already: remove it or choose another name",
                       e->out);
    char *folder = folder_of(e);
    enum mm_status status = mm_folder_remove(folder, err);
    if (status == MM_OK) {
        status = fill_folder(e, folder, err);
        if (status != MM_OK)
            remove_quietly(folder);
    }
    mm_free(folder);
    return status;
}

enum mm_status mm_weights_export_end(const struct mm_weights_export *e, enum mm_status status,
                                     struct mm_error *err) {
    char *folder = folder_of(e), *target = target_of(e), *parent = mm_path_parent(target);
    if (status == MM_OK)
        status = mm_folder_sync(folder, err);
    if (status == MM_OK && rename(folder, target))
        status =
            mm_fail(err, MM_FAILED, "%s: cannot rename to %s: %s", folder, target, strerror(errno));
    if (status == MM_OK)
        status = mm_folder_sync(parent, err);
    else
        remove_quietly(folder);
    mm_free(folder);
    mm_free(target);
    mm_free(parent);
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
