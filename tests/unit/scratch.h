/* scratch.h - a temporary folder for each test, and files in it. Include after cmocka.h. */
#ifndef MM_SCRATCH_H
#define MM_SCRATCH_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/files.h"

/* cmocka's set-up and tear-down: *state is the folder's name. Whatever a test did, and however it
 * failed, no block of ours may be left. */
static inline int scratch_make(void **state) {
    const char *root = getenv("TMPDIR");
    char name[512];
    snprintf(name, sizeof name, "%s/mudman-test-XXXXXX", root ? root : "/tmp");
    *state = mkdtemp(name) ? strdup(name) : NULL;
    return *state ? 0 : -1;
}

static inline int scratch_drop(void **state) {
    struct mm_error err;
    int left = mm_folder_remove(*state, &err) != MM_OK;
    free(*state);
    if (mm_live_blocks() != 0) {
        fprintf(stderr, "%ld blocks not freed\n", mm_live_blocks());
        return -1;
    }
    return left;
}

/* folder/name, good until the 16th call after this one. */
static inline const char *path_in(const char *folder, const char *name) {
    static char paths[16][1024];
    static unsigned next;
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return strcpy(paths[next++ % 16], path);
}

static inline void put(const char *path, const void *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

static inline void put_text(const char *path, const char *text) {
    put(path, text, strlen(text));
}

/* A safetensors file as it is told: no padding, so that the data may start at any byte. */
static inline void put_tensors(const char *path, const char *header, const void *data,
                               size_t bytes) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    size_t length = strlen(header);
    for (size_t i = 0; i < 8; i++)
        fputc((int)(length >> 8 * i & 255), file);
    fputs(header, file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

static inline void expect_file(const char *path, const void *data, size_t bytes) {
    struct mm_error err;
    char *text;
    size_t got;
    if (mm_file_read(path, &text, &got, &err))
        fail_msg("%s", err.text);
    int same = got == bytes && !memcmp(text, data, bytes);
    if (!same)
        fprintf(stderr, "%s holds %zu bytes, %zu expected:\n%s\n", path, got, bytes, text);
    mm_free(text);
    assert_true(same);
}

static inline void expect_text(const char *path, const char *text) {
    expect_file(path, text, strlen(text));
}

static inline void expect_same_files(const char *a, const char *b) {
    struct mm_error err;
    char *text;
    size_t bytes;
    if (mm_file_read(a, &text, &bytes, &err))
        fail_msg("%s", err.text);
    expect_file(b, text, bytes);
    mm_free(text);
}

/* The status and a piece of the error text; prints what came instead. */
static inline void expect_fault(enum mm_status got, enum mm_status status,
                                const struct mm_error *err, const char *piece) {
    if (got != status || !strstr(err->text, piece))
        fail_msg("status %d, \"%s\"; expected %d, \"...%s...\"", got, got ? err->text : "", status,
                 piece);
}

#endif
