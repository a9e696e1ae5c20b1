/* fuzz_tokens.c - a token file, as the run reads it and as inspect does. */
#include "io/dataset.h"
#include "io/h5.h"
#include "io/inspect.h"
#include "tests/fuzz/h5_build.h"

static void build(const char *path, struct fuzz_bytes *bytes) {
    static const uint32_t tokens[] = {1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4};
    static const uint32_t lengths[] = {4, 2, 3};
    static const uint8_t answers[] = {0, 1, 2};
    hid_t file = fuzz_h5_create(path, 0, bytes);
    fuzz_h5_dataset(file, "tokens", &(struct fuzz_h5_set){H5T_STD_U32LE, 2, {3, 4}, tokens}, bytes);
    if (fuzz_choose(bytes, 2))
        fuzz_h5_dataset(file, "lengths", &(struct fuzz_h5_set){H5T_STD_U32LE, 1, {3}, lengths},
                        bytes);
    if (fuzz_choose(bytes, 2))
        fuzz_h5_dataset(file, "answer_from", &(struct fuzz_h5_set){H5T_STD_U8LE, 1, {3}, answers},
                        bytes);
    fuzz_h5_attribute(file, "vocab_size", NULL, 8, bytes);
    fuzz_h5_attribute(file, "tokenizer", "none", 0, bytes);
    fuzz_h5_attribute(file, "source", "fuzz", 0, bytes);
    H5Fclose(file);
}

static void use(const struct mm_dataset *set, uint32_t vocab) {
    uint32_t limit = vocab ? vocab : set->vocab_size;
    size_t n = set->examples * set->context_length;
    for (size_t i = 0; i < n; i++)
        FUZZ_CHECK(limit == 0 || set->tokens[i] < limit);
    struct mm_sequences batch = mm_sequences_create(3, set->context_length);
    mm_dataset_batch(set, 7, 5, 2, 3, &batch, 0);
    for (size_t i = 0; i < 3 && set->lengths; i++)
        FUZZ_CHECK(0 < batch.answers[i] && batch.answers[i] < batch.lengths[i] &&
                   batch.lengths[i] <= set->context_length);
    mm_sequences_free(&batch);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *folder = fuzz_begin();
    struct fuzz_bytes bytes = {data, size};
    struct mm_error err = {""};
    struct mm_dataset set;
    fuzz_quiet();
    char *path = mm_format("%s/tokens.h5", folder);
    size_t context = fuzz_choose(&bytes, 8);
    uint32_t vocab = (uint32_t)fuzz_choose(&bytes, 16);
    build(path, &bytes);
    long handles = fuzz_h5_handles();
    enum mm_status status = mm_dataset_read(&set, path, context, vocab, &err);
    fuzz_expect(status, &err, path);
    if (status == MM_OK) {
        use(&set, vocab);
        mm_dataset_free(&set);
    }
    fuzz_expect(mm_inspect(path, &err), &err, path);
    FUZZ_CHECK(fuzz_h5_handles() == handles);
    mm_free(path);
    fuzz_end();
    return 0;
}
