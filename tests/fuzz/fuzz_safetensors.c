/* fuzz_safetensors.c - one safetensors file from memory. An input that begins with '{' is the
 * header alone, up to a NUL, and the data: its length is put before it. */
#include <stdlib.h>
#include <string.h>

#include "io/safetensors.h"
#include "tests/fuzz/fuzz.h"

static void use(const struct mm_safetensors *file) {
    size_t place = file->data_begin;
    unsigned sum = 0;
    for (size_t i = 0; i < file->entries_n; i++) {
        const struct mm_safetensors_entry *e = &file->entries[i];
        FUZZ_CHECK(e->begin == place && e->bytes <= file->bytes - place);
        place += e->bytes;
        for (size_t b = 0; b < e->bytes; b++)
            sum += file->map[e->begin + b];
        if (!e->listed || !e->tensor.elements)
            continue;
        float *values = mm_calloc(e->tensor.elements, sizeof *values);
        mm_convert(values, MM_F32, e->tensor.data, e->tensor.dtype, e->tensor.elements);
        mm_free(values);
    }
    FUZZ_CHECK(place == file->bytes && sum + 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_begin();
    bool header_alone = size && data[0] == '{';
    size_t bytes = size + (header_alone ? 8 : 0);
    uint8_t *map = malloc(bytes ? bytes : 1); /* its end is where the sanitizer watches */
    FUZZ_CHECK(map);
    if (header_alone) {
        const uint8_t *nul = memchr(data, 0, size);
        size_t header = nul ? (size_t)(nul - data) : size;
        for (size_t i = 0; i < 8; i++)
            map[i] = (uint8_t)(header >> 8 * i);
        bytes -= nul != NULL;
        memcpy(map + 8, data, header);
        memcpy(map + 8 + header, data + header + (nul != NULL), bytes - 8 - header);
    } else if (size) {
        memcpy(map, data, size);
    }
    struct mm_error err = {""};
    struct mm_safetensors file = {.path = (char *)(uintptr_t) "file", .map = map, .bytes = bytes};
    enum mm_status status = mm_safetensors_parse(&file, &err);
    fuzz_expect(status, &err, "file");
    if (status == MM_OK)
        use(&file);
    mm_safetensors_clear(&file);
    free(map);
    fuzz_end();
    return 0;
}
