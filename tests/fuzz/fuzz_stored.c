/* fuzz_stored.c - a model folder, config.json held against the tensors of its file: what the folder
 * is if not a model, names, tied pairs, shapes. A byte says what else lies in the folder;
 * config.json follows up to a NUL, then the tensors: a name up to a NUL, and bytes for rows,
 * columns (0: a vector), dtype and value. A model that is found loads, and its export is found to
 * be the same. */
#include <stdio.h>
#include <string.h>

#include "io/files.h"
#include "src/model/model.h"
#include "src/model/stored.h"
#include "tests/fuzz/fuzz.h"
#include "tests/unit/whole_model.h"
#include "tests/unit/whole_export.h"

enum {
    MOST_TENSORS = 64,
    MOST_TEXT = 1 << 15,
    MOST_DATA = 1 << 16,
    ELSE = 0x80,
    ADAPTER = 1,
    CACHE = 2,
    NO_CONFIG = 4
};

static const uint8_t *up_to_nul(struct fuzz_bytes *bytes, size_t *n) {
    const uint8_t *text = bytes->next, *nul = bytes->n ? memchr(text, 0, bytes->n) : NULL;
    *n = nul ? (size_t)(nul - text) : bytes->n;
    size_t taken = *n + (nul ? 1 : 0);
    bytes->next += taken;
    bytes->n -= taken;
    return text;
}

/* A name as a string of JSON, whatever it holds. */
static size_t quote(char *to, const uint8_t *name, size_t n) {
    size_t at = 0;
    to[at++] = '"';
    for (size_t i = 0; i < n; i++)
        if (name[i] < 0x20 || name[i] == '"' || name[i] == '\\')
            at += (size_t)sprintf(to + at, "\\u%04x", name[i]);
        else
            to[at++] = (char)name[i];
    to[at++] = '"';
    return at;
}

/* model.safetensors, valid but for the names: one may be there twice. */
static void put_tensors(struct fuzz_bytes *bytes) {
    static const struct {
        const char *name;
        size_t bytes;
    } dtypes[] = {{"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8}};
    static char header[MOST_TEXT + MOST_TENSORS * 100];
    static uint8_t data[MOST_DATA], file[8 + sizeof header + MOST_DATA];
    size_t at = 1, end = 0, n;
    header[0] = '{';
    for (int tensors = 0; bytes->n && tensors < MOST_TENSORS; tensors++) {
        const uint8_t *name = up_to_nul(bytes, &n);
        size_t rows = fuzz_take(bytes, 1), cols = fuzz_take(bytes, 1), kind = fuzz_choose(bytes, 4);
        size_t size = rows * (cols ? cols : 1) * dtypes[kind].bytes;
        int value = (int)fuzz_take(bytes, 1);
        if (at + 6 * n + 2 > MOST_TEXT || end + size > MOST_DATA)
            break;
        if (tensors)
            header[at++] = ',';
        at += quote(header + at, name, n);
        at += (size_t)sprintf(header + at, ":{\"dtype\":\"%s\",\"shape\":[%zu", dtypes[kind].name,
                              rows);
        if (cols)
            at += (size_t)sprintf(header + at, ",%zu", cols);
        at += (size_t)sprintf(header + at, "],\"data_offsets\":[%zu,%zu]}", end, end + size);
        memset(data + end, value, size);
        end += size;
    }
    header[at++] = '}';
    for (int i = 0; i < 8; i++)
        file[i] = (uint8_t)((uint64_t)at >> 8 * i);
    memcpy(file + 8, header, at);
    memcpy(file + 8 + at, data, end);
    fuzz_put("model/model.safetensors", file, 8 + at + end);
}

/* What makes the folder an adapter, or one of a cache; its main revision is of the same bytes. */
static void put_else(const char *folder, uint64_t what, const uint8_t *text, size_t n) {
    struct mm_error err;
    char *refs = mm_format("%s/refs", folder), *snapshot = mm_format("%s/snapshots/x", folder);
    if (what & ADAPTER)
        fuzz_put("model/adapter_config.json", "{}", 2);
    if (what & CACHE) {
        FUZZ_CHECK(mm_folder_make(refs, &err) == MM_OK && mm_folder_make(snapshot, &err) == MM_OK);
        fuzz_put("model/refs/main", text, n);
    }
    mm_free(refs);
    mm_free(snapshot);
}

/* Everything as `job.c` opens it. Where all is well the weights are the caller's. */
static enum mm_status open_model(const char *folder, struct mm_device *dev, struct mm_arch *arch,
                                 struct mm_weights **weights, struct mm_error *err) {
    char *path = mm_format("%s/config.json", folder);
    *weights = NULL;
    enum mm_status status = mm_stored_check_folder(folder, err);
    if (status == MM_OK)
        status = mm_arch_read(arch, path, err);
    if (status == MM_OK)
        status = mm_weights_open(weights, folder, err);
    if (status == MM_OK)
        status = mm_stored_match(arch, *weights, dev, err);
    if (status != MM_OK && *weights)
        mm_weights_free(*weights);
    mm_free(path);
    return status;
}

static void use(struct mm_device *dev, const struct mm_arch *arch,
                const struct mm_weights *weights) {
    struct mm_error err;
    struct mm_arena *arena = mm_arena_create(dev);
    struct mm_model *model = mm_model_create(arena, arch, MM_F32, 1);
    FUZZ_CHECK(load_whole(model, weights, &err) == MM_OK);
    mm_model_free(model);
    mm_arena_free(arena);
}

static void export(const char *folder, struct mm_device *dev, const struct mm_arch *arch,
                   const struct mm_weights *weights) {
    struct mm_error err = {""};
    struct mm_arch again;
    struct mm_weights *exported;
    char *out = mm_format("%s-out", folder);
    FUZZ_CHECK(export_whole(weights, out, NULL, 0, NULL, NULL, &err) == MM_OK);
    FUZZ_CHECK(open_model(out, dev, &again, &exported, &err) == MM_OK);
    FUZZ_CHECK(again.tied == arch->tied && again.family == arch->family);
    mm_weights_free(exported);
    FUZZ_CHECK(mm_folder_remove(out, &err) == MM_OK);
    mm_free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct mm_device *dev;
    if (!dev)
        dev = mm_device_create_cpu(); /* its blocks are not this input's */
    struct fuzz_bytes bytes = {data, size};
    struct mm_error err = {""};
    struct mm_arch arch;
    struct mm_weights *weights;
    char *folder = mm_format("%s/model", fuzz_begin());
    size_t n;
    uint64_t what = fuzz_take(&bytes, 1);
    const uint8_t *config = up_to_nul(&bytes, &n);
    FUZZ_CHECK(mm_folder_make(folder, &err) == MM_OK);
    if (what & ELSE)
        put_else(folder, what, config, n);
    if (!(what & ELSE) || !(what & NO_CONFIG))
        fuzz_put("model/config.json", config, n);
    put_tensors(&bytes);
    enum mm_status status = open_model(folder, dev, &arch, &weights, &err);
    fuzz_expect(status, &err, NULL);
    if (status == MM_OK) {
        use(dev, &arch, weights);
        export(folder, dev, &arch, weights);
        mm_weights_free(weights);
    }
    FUZZ_CHECK(mm_folder_remove(folder, &err) == MM_OK);
    mm_free(folder);
    fuzz_end();
    return 0;
}
