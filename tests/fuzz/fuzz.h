/* fuzz.h - what the fuzz targets share. A target, fuzz_<what>.c, defines LLVMFuzzerTestOneInput;
 * it is linked with libFuzzer for fuzzing and with driver.c for the suite. See README.md. */
#ifndef MM_FUZZ_H
#define MM_FUZZ_H

#include "src/base/base.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Begins one input: the scratch folder is there and ours alone. Returns its path. */
const char *fuzz_begin(void);

/* Ends it: a reader frees all it took, whatever it met. Aborts otherwise. */
void fuzz_end(void);

/* A reader says MM_OK or MM_BAD_INPUT; the fault's text is one line, without control characters,
 * and names `place`, the file (NULL: the text need not). Aborts otherwise. */
void fuzz_expect(enum mm_status status, const struct mm_error *err, const char *place);

/* Whether fuzz_expect prints the faults: the driver does for a file by hand. */
extern bool fuzz_verbose;

/* Aborts, saying what should have held. */
#define FUZZ_CHECK(ok)                                                                             \
    do {                                                                                           \
        if (!(ok))                                                                                 \
            fuzz_broken(__FILE__, __LINE__, #ok);                                                  \
    } while (0)
void fuzz_broken(const char *file, int line, const char *expression) __attribute__((noreturn));

/* Writes a file into the scratch folder. */
void fuzz_put(const char *name, const void *data, size_t bytes);

/* What is left of an input that says how to build a file: numbers taken from its front, zeros
 * behind its end. */
struct fuzz_bytes {
    const uint8_t *next;
    size_t n;
};
uint64_t fuzz_take(struct fuzz_bytes *bytes, int size); /* little-endian, `size` <= 8 bytes */
size_t fuzz_choose(struct fuzz_bytes *bytes, size_t n); /* below n, by one byte */
/* A size: small, or one at which arithmetic breaks (0, powers of two and one beside them). */
uint64_t fuzz_size(struct fuzz_bytes *bytes);

#endif
