/* export_folders.h - a model folder to export, and the export checked. Include after cmocka.h. */
#ifndef MM_EXPORT_FOLDERS_H
#define MM_EXPORT_FOLDERS_H

#include "io/weights.h"
#include "tests/unit/scratch.h"
#include "tests/unit/whole_export.h"

static struct mm_error err;

/* Five tensors, 33 bytes; the data starts at an odd address. */
static const char header[] =
    "{\"__metadata__\":{\"format\":\"pt\",\"n\\\"ote\":\"\\u00e4\\n\"},"
    "\"w.half\":{\"dtype\":\"F16\",\"shape\":[2,2],\"data_offsets\":[17,25]},"
    "\"count\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
    "\"w.full\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[1,17]},"
    "\"w.brain\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[25,31]},"
    "\"f\\u00fcnf\":{\"dtype\":\"BF16\",\"shape\":[1,1,1,1,1],"
    "\"data_offsets\":[31,33]}}\n";
static const float full[] = {1, 1.00390625f, -1e-3f, 70000};
static const uint16_t half[] = {0x3c00, 0x0001, 0x7bff, 0xbc00}, brain[] = {0x3f80, 0x4000, 0x7f7f};
static const uint16_t five = 0x3fc0;

static const char config[] = "{\n  \"rope_theta\": 500000.0,\n  \"rms_norm_eps\": 1e-05,\n"
                             "  \"torch_dtype\": \"bfloat16\",\n"
                             "  \"quantum\": {\"dtype\": \"int8\", \"a\": \"}\\\"{\"},\n"
                             "  \"big\": 12345678901234567890\n}\n";

struct folders {
    char in[600], out[600];
};

static inline struct folders make_input(void **state) {
    struct folders f;
    snprintf(f.in, sizeof f.in, "%s/in", (char *)*state);
    snprintf(f.out, sizeof f.out, "%s/out", (char *)*state);
    assert_int_equal(mm_folder_make(f.in, &err), MM_OK);
    unsigned char data[33] = {9};
    memcpy(data + 1, full, 16);
    memcpy(data + 17, half, 8);
    memcpy(data + 25, brain, 6);
    memcpy(data + 31, &five, 2);
    put_tensors(path_in(f.in, "model.safetensors"), header, data, sizeof data);
    put_text(path_in(f.in, "config.json"), config);
    put_text(path_in(f.in, "tokenizer.json"), "{}");
    put_text(path_in(f.in, "tokenizer.model"), "vocabulary");
    return f;
}

static inline struct mm_weights *open_good(const char *folder) {
    struct mm_weights *weights;
    if (mm_weights_open(&weights, folder, &err))
        fail_msg("%s", err.text);
    return weights;
}

static inline struct mm_export_report export_good(const struct folders *f,
                                                  const struct mm_replacement *replacements,
                                                  size_t n, const enum mm_dtype *dtype) {
    struct mm_export_report report;
    struct mm_weights *weights = open_good(f->in);
    if (export_whole(weights, f->out, replacements, n, dtype, &report, &err))
        fail_msg("%s", err.text);
    mm_weights_free(weights);
    char *writing = mm_format("%s.writing", f->out);
    assert_false(mm_path_exists(writing));
    mm_free(writing);
    return report;
}

static inline void expect_no_export(const struct folders *f,
                                    const struct mm_replacement *replacements, size_t n,
                                    const enum mm_dtype *dtype, enum mm_status status,
                                    const char *piece) {
    struct mm_weights *weights = open_good(f->in);
    enum mm_status got = export_whole(weights, f->out, replacements, n, dtype, NULL, &err);
    mm_weights_free(weights);
    expect_fault(got, status, &err, piece);
    char *writing = mm_format("%s.writing", f->out);
    assert_false(mm_path_exists(writing));
    mm_free(writing);
}

static inline void load(const struct mm_weights *weights, const char *name, size_t rows,
                        size_t cols, void *out, enum mm_dtype dtype) {
    if (mm_weights_load(weights, name, rows, cols, out, dtype, &err))
        fail_msg("%s", err.text);
}

#endif
