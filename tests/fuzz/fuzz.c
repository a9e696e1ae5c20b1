/* fuzz.c - see fuzz.h. */
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/files.h"

bool fuzz_verbose;
static char scratch[64];
static long kept; /* blocks before this input */

static void abort_hook(int exit_status) {
    (void)exit_status;
    abort(); /* a failed MM_CHECK is a find */
}

static void remove_scratch(void) {
    struct mm_error err;
    mm_folder_remove(scratch, &err);
}

const char *fuzz_begin(void) {
    if (!*scratch) {
        mm_set_abort_hook(abort_hook);
        mm_log_init(1, MM_LOG_ERROR); /* of a rank that does not speak */
        strcpy(scratch, access("/dev/shm", W_OK) == 0 ? "/dev/shm/mudman-fuzz-XXXXXX"
                                                      : "/tmp/mudman-fuzz-XXXXXX");
        FUZZ_CHECK(mkdtemp(scratch));
        atexit(remove_scratch);
    }
    kept = mm_live_blocks();
    return scratch;
}

void fuzz_end(void) {
    FUZZ_CHECK(mm_live_blocks() == kept);
}

void fuzz_broken(const char *file, int line, const char *expression) {
    fprintf(stderr, "%s:%d: broken: %s\n", file, line, expression);
    abort();
}

void fuzz_expect(enum mm_status status, const struct mm_error *err, const char *place) {
    if (fuzz_verbose)
        fprintf(stderr, "    %s\n", status == MM_OK ? "good" : err->text);
    FUZZ_CHECK(status == MM_OK || status == MM_BAD_INPUT);
    if (status == MM_OK)
        return;
    FUZZ_CHECK(*err->text);
    for (const char *c = err->text; *c; c++)
        FUZZ_CHECK((unsigned char)*c >= 0x20 && *c != 0x7f);
    FUZZ_CHECK(!place || strstr(err->text, place));
}

void fuzz_put(const char *name, const void *data, size_t bytes) {
    char *path = mm_format("%s/%s", scratch, name);
    FILE *file = fopen(path, "wb");
    FUZZ_CHECK(file && fwrite(data, 1, bytes, file) == bytes);
    FUZZ_CHECK(fclose(file) == 0);
    mm_free(path);
}

uint64_t fuzz_take(struct fuzz_bytes *bytes, int size) {
    uint64_t value = 0;
    for (int i = 0; i < size && bytes->n; i++, bytes->n--)
        value |= (uint64_t)*bytes->next++ << 8 * i;
    return value;
}

size_t fuzz_choose(struct fuzz_bytes *bytes, size_t n) {
    return fuzz_take(bytes, 1) % n;
}

uint64_t fuzz_size(struct fuzz_bytes *bytes) {
    uint64_t byte = fuzz_take(bytes, 1);
    if (byte < 64)
        return byte;
    uint64_t power = (uint64_t)1 << byte % 64;
    return byte < 128 ? power : byte < 192 ? power - 1 : power + 1;
}
