/* fuzz_weights.c - a model folder whose index, or config.json, comes from anyone: two good files,
 * model.safetensors.index.json from the input up to a NUL, config.json from the rest. Read and
 * exported in another dtype, which edits both texts. Nothing may appear beside the folder. */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#include "io/files.h"
#include "io/weights.h"
#include "tests/fuzz/fuzz.h"
#include "tests/unit/whole_export.h"

/* One row of two float32 each. */
static void put_tensors(const char *name, const char *tensor) {
    uint8_t file[128] = {0};
    char *header =
        mm_format("{\"%s\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", tensor);
    size_t length = strlen(header);
    file[0] = (uint8_t)length;
    memcpy(file + 8, header, length);
    fuzz_put(name, file, 8 + length + 8);
    mm_free(header);
}

static size_t entries_of(const char *path) {
    DIR *folder = opendir(path);
    size_t n = 0;
    FUZZ_CHECK(folder);
    while (readdir(folder))
        n++;
    closedir(folder);
    return n;
}

static void use(const struct mm_weights *weights, const char *folder) {
    struct mm_error err = {""};
    char hex[33], *out = mm_format("%s/out", folder);
    float values[2];
    struct mm_weights_sum sum = {0};
    mm_weights_hash_files(weights, hex);
    for (size_t i = 0; i < mm_weights_count(weights); i++) {
        const struct mm_stored_tensor *tensor = mm_weights_at(weights, i);
        mm_weights_sum_rows(weights, tensor->name, 0, mm_stored_rows_n(tensor), &sum);
        FUZZ_CHECK(mm_weights_load(weights, tensor->name, 2, 0, values, MM_F32, &err) == MM_OK);
    }
    const enum mm_dtype dtype = MM_F16;
    fuzz_expect(export_whole(weights, out, NULL, 0, &dtype, NULL, &err), &err, folder);
    FUZZ_CHECK(mm_folder_remove(out, &err) == MM_OK);
    mm_free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *scratch = fuzz_begin();
    struct mm_error err = {""};
    struct mm_weights *weights;
    static size_t beside;
    char *folder = mm_format("%s/model", scratch);
    if (!beside) {
        FUZZ_CHECK(mm_folder_make(folder, &err) == MM_OK);
        put_tensors("model/a.safetensors", "a");
        put_tensors("model/b.safetensors", "b");
        put_tensors("outside.safetensors", "a");
        beside = entries_of(scratch);
    }
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    size_t index = nul ? (size_t)(nul - data) : size;
    fuzz_put("model/model.safetensors.index.json", data, index);
    fuzz_put("model/config.json", nul ? nul + 1 : data, nul ? size - index - 1 : size);
    enum mm_status status = mm_weights_open(&weights, folder, &err);
    fuzz_expect(status, &err, folder);
    if (status == MM_OK)
        use(weights, folder);
    if (status == MM_OK)
        mm_weights_free(weights);
    FUZZ_CHECK(entries_of(scratch) == beside);
    mm_free(folder);
    fuzz_end();
    return 0;
}
