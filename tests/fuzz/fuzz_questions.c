/* fuzz_questions.c - a multiple-choice file, as the run reads it and as inspect does. */
#include "io/dataset.h"
#include "io/h5.h"
#include "io/inspect.h"
#include "tests/fuzz/h5_build.h"

static void build(const char *path, struct fuzz_bytes *bytes) {
    static const uint32_t prompts[] = {1, 2, 3, 4, 5, 6, 7}, choices[] = {1, 2, 3, 4, 4, 3, 2, 1},
                          answers[] = {3, 0};
    static const uint64_t offsets[] = {0, 3, 7};
    hid_t file = fuzz_h5_create(path, 0, bytes);
    const struct {
        const char *name;
        struct fuzz_h5_set set;
    } sets[] = {{"prompts", {H5T_STD_U32LE, 1, {7}, prompts}},
                {"offsets", {H5T_STD_U64LE, 1, {3}, offsets}},
                {"choices", {H5T_STD_U32LE, 2, {2, 4}, choices}},
                {"answers", {H5T_STD_U32LE, 1, {2}, answers}}};
    for (size_t i = 0; i < 4; i++)
        fuzz_h5_dataset(file, sets[i].name, &sets[i].set, bytes);
    fuzz_h5_attribute(file, "vocab_size", NULL, 8, bytes);
    H5Fclose(file);
}

static void use(const struct mm_questions *q) {
    uint64_t sum = 0;
    FUZZ_CHECK(q->offsets[0] == 0);
    for (size_t i = 0; i < q->n; i++) {
        FUZZ_CHECK(q->offsets[i] < q->offsets[i + 1] && q->answers[i] < 4);
        FUZZ_CHECK(q->offsets[i + 1] - q->offsets[i] <= q->longest);
        for (uint64_t k = q->offsets[i]; k < q->offsets[i + 1]; k++)
            sum += q->prompts[k];
        sum += q->choices[4 * i + q->answers[i]];
    }
    FUZZ_CHECK(sum + 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *folder = fuzz_begin();
    struct fuzz_bytes bytes = {data, size};
    struct mm_error err = {""};
    struct mm_questions questions;
    fuzz_quiet();
    char *path = mm_format("%s/questions.h5", folder);
    uint32_t vocab = (uint32_t)fuzz_choose(&bytes, 16);
    build(path, &bytes);
    long handles = fuzz_h5_handles();
    enum mm_status status = mm_questions_read(&questions, path, vocab, &err);
    fuzz_expect(status, &err, path);
    if (status == MM_OK) {
        use(&questions);
        mm_questions_free(&questions);
    }
    fuzz_expect(mm_inspect(path, &err), &err, path);
    FUZZ_CHECK(fuzz_h5_handles() == handles);
    mm_free(path);
    fuzz_end();
    return 0;
}
