/* test_weights.c - reading model folders: what is there, converted; what is wrong, named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <sys/stat.h>

#include "tests/unit/weights_cases.h"

/* Tensors of every kind, 48 bytes of data; the header's 8-byte length and odd size put floats at
 * odd addresses. */
static const char all_kinds[] =
    "{\"__metadata__\":{\"format\":\"pt\"},"
    "\"half\":{\"dtype\":\"F16\",\"shape\":[2,1,1,2],\"data_offsets\":[25,33]},"
    "\"byte\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
    "\"none\":{\"shape\":[0,7],\"dtype\":\"F32\",\"data_offsets\":[33,33]},"
    "\"matrix\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[1,25]},"
    "\"brain\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[33,39]},"
    "\"five\":{\"dtype\":\"BF16\",\"shape\":[1,1,1,1,1],\"data_offsets\":[39,41]},"
    "\"scalar\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[41,45]},"
    "\"odd\":{\"dtype\":\"F6_E2M3\",\"shape\":[4],\"data_offsets\":[45,48]}} ";

static void put_all_kinds(const char *path) {
    const float matrix[] = {1, -2, 3.5f, 1e-8f, 1.00390625f, 65519}, scalar = 7;
    const uint16_t halves[] = {0x3c00, 0xc000, 0x0001, 0x7bff}, brain[] = {0x3f80, 0xc000, 0x7f7f};
    unsigned char data[48] = {9};
    memcpy(data + 1, matrix, 24);
    memcpy(data + 25, halves, 8);
    memcpy(data + 33, brain, 6);
    memcpy(data + 41, &scalar, 4);
    put_tensors(path, all_kinds, data, sizeof data);
}

static void lists_tensors(void **state) {
    static const struct {
        const char *name;
        enum mm_dtype dtype;
        size_t dims_n, dims[4], elements;
    } wanted[] = {
        {"matrix", MM_F32, 2, {2, 3}, 6}, {"half", MM_F16, 4, {2, 1, 1, 2}, 4},
        {"none", MM_F32, 2, {0, 7}, 0},   {"brain", MM_BF16, 1, {3}, 3},
        {"scalar", MM_F32, 0, {0}, 1},
    };
    put_all_kinds(single(state));
    struct mm_weights *weights = open_good(*state);
    assert_int_equal(mm_weights_count(weights), 5);
    for (size_t i = 0; i < 5; i++) {
        const struct mm_stored_tensor *tensor = mm_weights_at(weights, i);
        assert_string_equal(tensor->name, wanted[i].name);
        assert_int_equal(tensor->dtype, wanted[i].dtype);
        assert_int_equal(tensor->dims_n, wanted[i].dims_n);
        for (size_t d = 0; d < tensor->dims_n; d++)
            assert_int_equal(tensor->dims[d], wanted[i].dims[d]);
        assert_int_equal(tensor->elements, wanted[i].elements);
        assert_int_equal(tensor->file, 0);
        assert_ptr_equal(mm_weights_find(weights, wanted[i].name), tensor);
    }
    assert_null(mm_weights_find(weights, "byte"));
    assert_null(mm_weights_find(weights, "five"));
    assert_null(mm_weights_find(weights, "odd"));
    assert_null(mm_weights_find(weights, "absent"));
    assert_null(mm_weights_find(weights, ""));
    mm_weights_free(weights);
    mm_weights_free(NULL);
}

static void loads_converted(void **state) {
    put_all_kinds(single(state));
    struct mm_weights *weights = open_good(*state);
    const float matrix[] = {1, -2, 3.5f, 1e-8f, 1.00390625f, 65519};
    float f32[7] = {0};
    uint16_t h[7] = {0};
    f32[6] = 42;
    h[6] = 42;
    assert_int_equal(mm_weights_load(weights, "matrix", 2, 3, f32, MM_F32, &err), MM_OK);
    assert_memory_equal(f32, matrix, sizeof matrix);
    assert_int_equal(mm_weights_load(weights, "matrix", 2, 3, h, MM_BF16, &err), MM_OK);
    for (size_t i = 0; i < 6; i++)
        assert_int_equal(h[i], mm_bf16_from_f32(matrix[i]));
    assert_int_equal(mm_weights_load(weights, "matrix", 2, 3, h, MM_F16, &err), MM_OK);
    for (size_t i = 0; i < 6; i++)
        assert_int_equal(h[i], mm_f16_from_f32(matrix[i]));
    assert_true(f32[6] == 42 && h[6] == 42); /* nothing beyond the end */
    assert_int_equal(mm_weights_load(weights, "brain", 3, 0, f32, MM_F32, &err), MM_OK);
    assert_true(f32[0] == 1 && f32[1] == -2 && f32[2] == 0x1.fep127f);
    assert_int_equal(mm_weights_load(weights, "brain", 3, 0, h, MM_BF16, &err), MM_OK);
    assert_true(h[0] == 0x3f80 && h[1] == 0xc000 && h[2] == 0x7f7f);
    assert_int_equal(mm_weights_load(weights, "none", 0, 7, NULL, MM_F32, &err), MM_OK);
    mm_weights_free(weights);
}

static void load_names_what_is_wrong(void **state) {
    put_all_kinds(single(state));
    struct mm_weights *weights = open_good(*state);
    static const struct {
        const char *name;
        size_t rows, cols;
        const char *fault;
    } cases[] = {
        {"matrix", 3, 2,
         "model.safetensors: tensor 'matrix' has shape [2,3], the model needs [3,2]"},
        {"matrix", 2, 4, "has shape [2,3], the model needs [2,4]"},
        {"matrix", 6, 0, "has shape [2,3], the model needs [6]"},
        {"matrix", 2, 0, "has shape [2,3], the model needs [2]"},
        {"brain", 4, 0, "has shape [3], the model needs [4]"},
        {"brain", 3, 1, "has shape [3], the model needs [3,1]"},
        {"half", 2, 1, "has shape [2,1,1,2], the model needs [2,1]"},
        {"scalar", 1, 0, "has shape [], the model needs [1]"},
        {"absent", 1, 1, "model.safetensors: no tensor 'absent'"},
        {"byte", 1, 0, "tensor 'byte' has dtype U8, which is not supported"},
        {"odd", 4, 0, "tensor 'odd' has dtype F6_E2M3, which is not supported"},
        {"five", 1, 1, "tensor 'five' has 5 dimensions, at most 4 are supported: [1,1,1,1,1]"},
    };
    float out[8];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_fault(mm_weights_load(weights, cases[i].name, cases[i].rows, cases[i].cols, out,
                                     MM_F32, &err),
                     MM_BAD_INPUT, &err, cases[i].fault);
    mm_weights_free(weights);
}

/* One tensor 't' but for what is said; the file has 8 bytes of data. */
#define T(dtype, shape, offsets)                                                                   \
    "{\"t\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define U(offsets) ",\"u\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":" offsets "}}"
#define V(offsets) "{\"v\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":" offsets "}"

static const struct {
    const char *header, *fault;
} header_cases[] = {
    {"", "does not begin with '{'"},
    {" {}", "does not begin with '{'"},
    {"[1]", "does not begin with '{'"},
    {"{", "the header is not JSON"},
    {"{\"t\":1", "the header is not JSON"},
    {"{\"t\"}", "the header is not JSON"},
    {"{}}", "the header is not JSON (near its byte 2)"},
    {"{\"t\\u0000\":1}", "the header is not JSON (near its byte 3): a NUL character"},
    {"{}", "byte 10 of 18 belongs to no tensor"},
    {"{\"t\":1}", "tensor 't' has not a dtype"},
    {"{\"t\":[\"F32\"]}", "tensor 't' has not a dtype"},
    {"{\"t\":{}}", "tensor 't' has not a dtype"},
    {T("1", "[2]", "[0,8]"), "tensor 't' has not a dtype"},
    {T("\"F32\"", "2", "[0,8]"), "tensor 't' has not a dtype"},
    {T("\"F32\"", "[2]", "0"), "tensor 't' has not a dtype"},
    {T("\"F32\",\"dtype\":\"F32\"", "[2]", "[0,8]"), "a name twice: 'dtype'"},
    {T("\"F32\"", "[2],\"shape\":[2]", "[0,8]"), "a name twice: 'shape'"},
    {T("\"F32\"", "[-2]", "[0,8]"), "the shape of tensor 't'"},
    {T("\"F32\"", "[1.5]", "[0,8]"), "the shape of tensor 't'"},
    {T("\"F32\"", "[\"2\"]", "[0,8]"), "the shape of tensor 't'"},
    {T("\"F32\"", "[9007199254740992]", "[0,8]"), "the shape of tensor 't'"},
    {T("\"F32\"", "[4294967296,4294967296]", "[0,8]"), "the shape of tensor 't'"},
    {T("\"F32\"", "[4503599627370496,1024]", "[0,8]"), "shape [4503599627370496,1024] of F32"},
    {T("\"F32\"", "[1e999]", "[0,8]"), "the shape of tensor 't'"},
    {T("\"F32\"", "[2]", "[0]"), "data_offsets of tensor 't'"},
    {T("\"F32\"", "[2]", "[]"), "data_offsets of tensor 't'"},
    {T("\"F32\"", "[2]", "[0,8,8]"), "data_offsets of tensor 't'"},
    {T("\"F32\"", "[2]", "[-8,0]"), "data_offsets of tensor 't'"},
    {T("\"F32\"", "[2]", "[0,7.5]"), "data_offsets of tensor 't'"},
    {T("\"F32\"", "[2]", "[0,null]"), "data_offsets of tensor 't'"},
    {T("\"F32\"", "[2]", "[8,0]"), "data_offsets of tensor 't'"},
    {T("\"F32\"", "[2]", "[0,18446744073709551616]"), "data_offsets of tensor 't'"},
    {T("\"F32\"", "[3]", "[0,12]"),
     "truncated: header says tensor 't' ends at byte 75, the file has 71 bytes: download"},
    {T("\"F32\"", "[2]", "[0,9007199254740991]"), "truncated: header says tensor 't' ends at"},
    {T("\"F32\"", "[1]", "[0,8]"), "tensor 't' has 8 bytes of data, but shape [1] of F32"},
    {T("\"F32\"", "[3]", "[0,8]"), "tensor 't' has 8 bytes of data, but shape [3] of F32"},
    {T("\"BF16\"", "[2]", "[0,8]"), "but shape [2] of BF16"},
    {T("\"I64\"", "[2]", "[0,8]"), "but shape [2] of I64"},
    {T("\"F32\"", "[1]", "[0,4]"), "belongs to no tensor"},
    {T("\"F32\"", "[1]", "[4,8]"), "belongs to no tensor"},
    {V("[0,4]") U("[0,4]"), "the data of tensors 'u' and 'v' overlap"},
    {V("[0,4]") U("[3,7]"), "the data of tensors 'v' and 'u' overlap"},
    {V("[0,4]") ",\"v\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
     "one object has a name twice: 'v'"},
    {"{\"__metadata__\":{},\"__metadata__\":{}}", "a name twice: '__metadata__'"},
    {"{\"__metadata__\":3}", "\"__metadata__\" is not a JSON object"},
};

static void bad_headers(void **state) {
    for (size_t i = 0; i < sizeof header_cases / sizeof *header_cases; i++) {
        put_tensors(single(state), header_cases[i].header, "01234567", 8);
        expect_bad(*state, header_cases[i].fault);
        assert_non_null(strstr(err.text, single(state))); /* which file */
    }
    /* The same frames with nothing wrong. */
    put_tensors(single(state), T("\"F32\"", "[2]", "[0,8]") " \n", "01234567", 8);
    mm_weights_free(open_good(*state));
    put_tensors(single(state), V("[4,8]") U("[0,4]"), "01234567", 8);
    struct mm_weights *weights = open_good(*state);
    assert_string_equal(mm_weights_at(weights, 0)->name, "u");
    mm_weights_free(weights);
    put_tensors(single(state), "{}", "", 0);
    weights = open_good(*state);
    assert_int_equal(mm_weights_count(weights), 0);
    mm_weights_free(weights);
}

static void deep_and_raw_headers(void **state) {
    put(single(state), "\x04\0\0\0\0\0\0\0{\0 }", 12);
    expect_bad(*state, "the header is not JSON (near its byte 1): a NUL character");
    size_t deep = 100000; /* brackets must not eat the stack */
    char *header = mm_calloc(deep + 6, 1);
    for (size_t i = 0; i < deep + 5; i++)
        header[i] = i < 5 ? "{\"t\":"[i] : '[';
    put_tensors(single(state), header, "", 0);
    mm_free(header);
    expect_bad(*state, "the header is not JSON");
}

static void bad_files(void **state) {
    const char *path = single(state);
    put(path, "", 0);
    expect_bad(*state, "model.safetensors: empty file: download it again");
    put(path, "1234567", 7);
    expect_bad(*state, "truncated: 7 bytes");
    put(path, "\x01\xe1\xf5\x05\0\0\0\0{}", 10);
    expect_bad(*state, "would have 100000001 bytes (the limit is 100000000)");
    put(path, "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10);
    expect_bad(*state, "would have 18446744073709551615 bytes");
    put(path, "\x03\0\0\0\0\0\0\0{}", 10);
    expect_bad(*state, "truncated: the header ends at byte 11, the file has 10 bytes");
    put(path, "\0\0\0\0\0\0\0\0", 8);
    expect_bad(*state, "does not begin with '{'");
    put_text(path, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n");
    expect_bad(*state, "a Git LFS pointer, not the weights: run 'git lfs pull'");
    unlink(path);
    assert_int_equal(mkdir(path, 0777), 0);
    expect_bad(*state, "model.safetensors: not a regular file");
    rmdir(path);
    assert_int_equal(mkfifo(path, 0666), 0); /* opening must not wait for a writer */
    expect_bad(*state, "model.safetensors: not a regular file");
    unlink(path);
    assert_int_equal(symlink("blob", path), 0);
    expect_bad(*state, "model.safetensors: cannot read: No such file");
    put_all_kinds(path_in(*state, "blob")); /* a cache's folders hold links */
    mm_weights_free(open_good(*state));
}

static void bad_folders(void **state) {
    expect_bad(path_in(*state, "none"), "none: no such folder: model.path must be");
    put_text(path_in(*state, "file"), "x");
    expect_bad(path_in(*state, "file"), "file: not a folder");
    put_text(path_in(*state, "pytorch_model.bin"), "x");
    expect_bad(*state, "holds neither model.safetensors nor model.safetensors.index.json; PyTorch "
                       "files (*.bin, *.pt) are not read: convert them to safetensors");
    put_text(path_in(*state, "model-00001-of-00002.safetensors"), "x");
    expect_bad(*state, "holds model-00001-of-00002.safetensors, but neither model.safetensors nor "
                       "model.safetensors.index.json: if all weights");
}

/* Each length that cuts a good file is refused; each flipped bit is refused or read, never more. */
static void damage(void **state) {
    char *text;
    size_t bytes;
    struct mm_weights *weights;
    put_all_kinds(single(state));
    assert_int_equal(mm_file_read(single(state), &text, &bytes, &err), MM_OK);
    for (size_t n = 0; n < bytes; n++) {
        put(single(state), text, n);
        enum mm_status status = mm_weights_open(&weights, *state, &err);
        assert_int_equal(status, MM_BAD_INPUT);
    }
    size_t refused = 0;
    for (size_t bit = 0; bit < 8 * (bytes - 48); bit++) {
        text[bit / 8] ^= (char)(1 << bit % 8);
        put(single(state), text, bytes);
        text[bit / 8] ^= (char)(1 << bit % 8);
        enum mm_status status = mm_weights_open(&weights, *state, &err);
        assert_true(status == MM_OK || status == MM_BAD_INPUT);
        refused += status == MM_BAD_INPUT;
        if (!status) {
            float out[64];
            for (size_t i = 0; i < mm_weights_count(weights); i++)
                mm_convert(out, MM_F32, mm_weights_at(weights, i)->data,
                           mm_weights_at(weights, i)->dtype, mm_weights_at(weights, i)->elements);
            mm_weights_free(weights);
        }
    }
    assert_true(refused > 4 * bytes);
    mm_free(text);
}

static void reads_shards(void **state) {
    const float values[] = {1, 2, 3};
    put_tensors(path_in(*state, "model-00001-of-2.safetensors"),
                "{\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]},"
                "\"d\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
                values, 8);
    put_tensors(path_in(*state, "model-00002-of-2.safetensors"), ONE("a"), values + 2, 4);
    put_text(index_path(state),
             "{\"metadata\":{\"total_size\":12},\"weight_map\":{"
             "\"a\":\"model-00002-of-2.safetensors\",\"b\":\"model-00001-of-2.safetensors\","
             "\"d\":\"model-00001-of-2.safetensors\"}}");
    struct mm_weights *weights = open_good(*state);
    static const char *const names[] = {"d", "b", "a"};
    assert_int_equal(mm_weights_count(weights), 3);
    for (size_t i = 0; i < 3; i++) {
        float value;
        assert_string_equal(mm_weights_at(weights, i)->name, names[i]);
        assert_int_equal(mm_weights_at(weights, i)->file, i / 2);
        assert_int_equal(mm_weights_load(weights, names[i], 1, 0, &value, MM_F32, &err), MM_OK);
        assert_true(value == values[i]);
    }
    expect_fault(mm_weights_load(weights, "c", 1, 0, &(float){0}, MM_F32, &err), MM_BAD_INPUT, &err,
                 "model.safetensors.index.json: no tensor 'c'");
    mm_weights_free(weights);
    /* A single file beside an index counts, as in transformers. */
    put_tensors(single(state), ONE("only"), values, 4);
    weights = open_good(*state);
    assert_int_equal(mm_weights_count(weights), 1);
    mm_weights_free(weights);
}

static void bad_indexes(void **state) {
    static const struct {
        const char *text, *fault;
    } cases[] = {
        {"", "index.json:1: the file is not JSON"},
        {"[]", "index.json: the file is not a JSON object"},
        {"{\"weight_map\":1}", "no \"weight_map\""},
        {"{\"weight_map\":[\"one.safetensors\"]}", "no \"weight_map\""},
        {"{\"weight_map\":{}}", "no \"weight_map\""},
        {"{\"weight_map\":{\"a\":1}}", "the file of tensor 'a' is not a string"},
        {"{\"weight_map\":{\"a\":\"\"}}", "the file of tensor 'a' is '': it must be a plain name"},
        {"{\"weight_map\":{\"a\":\"..\"}}", "is '..': it must be a plain name"},
        {"{\"weight_map\":{\"a\":\"../one.safetensors\"}}", "must be a plain name"},
        {"{\"weight_map\":{\"a\":\"/one.safetensors\"}}", "must be a plain name"},
        {"{\"weight_map\":{\"a\":\"sub/one.safetensors\"}}", "must be a plain name"},
        {"{\"weight_map\":{\"a\":\".safetensors\"}}", "must be a plain name"},
        {"{\"weight_map\":{\"a\":\".one.safetensors\"}}", "must be a plain name"},
        {"{\"weight_map\":{\"a\":\"model.bin\"}}", "must be a plain name"},
        {"{\"weight_map\":{\"a\":\"one.safetensors\",\"a\":\"one.safetensors\"}}",
         "a name twice: 'a'"},
        {"{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"same.safetensors\"}}",
         "same.safetensors: tensor 'a' is also in"},
        {"{\"weight_map\":{\"a\":\"one.safetensors\",\"c\":\"cut.safetensors\"}}",
         "cut.safetensors: truncated"},
    };
    put_tensors(path_in(*state, "one.safetensors"), ONE("a"), "0123", 4);
    put_tensors(path_in(*state, "two.safetensors"),
                "{\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
                "\"c\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
                "01234567", 8);
    put_tensors(path_in(*state, "same.safetensors"), ONE("a"), "0123", 4);
    put_tensors(path_in(*state, "cut.safetensors"), ONE("c"), "012", 3);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put_text(index_path(state), cases[i].text);
        expect_bad(*state, cases[i].fault);
    }
    char name[600] = "{\"weight_map\":{\"a\":\"";
    memset(name + strlen(name), 'x', 300);
    strcat(name, ".safetensors\"}}");
    put_text(index_path(state), name);
    expect_bad(*state, "must be a plain name");
    unlink(index_path(state));
    assert_int_equal(mkfifo(index_path(state), 0666), 0);
    expect_bad(*state, "index.json: not a regular file");
    unlink(index_path(state));
    assert_int_equal(mkdir(index_path(state), 0777), 0);
    expect_bad(*state, "index.json: not a regular file");
}

/* Rows of an index that nothing asks for may name what is not there. */
static void index_rows_that_nothing_needs(void **state) {
    float value = 0;
    put_tensors(path_in(*state, "one.safetensors"), ONE("a"), "0123", 4);
    put_text(index_path(state),
             "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"one.safetensors\","
             "\"c\":\"no.safetensors\",\"d\":\"no.safetensors\"}}");
    struct mm_weights *weights = open_good(*state);
    assert_int_equal(mm_weights_load(weights, "a", 1, 0, &value, MM_F32, &err), MM_OK);
    expect_fault(mm_weights_load(weights, "b", 1, 0, &value, MM_F32, &err), MM_BAD_INPUT, &err,
                 "index.json: tensor 'b' should be in one.safetensors, which lacks it");
    expect_fault(mm_weights_load(weights, "c", 1, 0, &value, MM_F32, &err), MM_BAD_INPUT, &err,
                 "index.json: tensor 'c' should be in no.safetensors, which is missing");
    mm_weights_free(weights);
}

static void aliases_and_comparison(void **state) {
    const float values[] = {1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 5};
    put_tensors(single(state),
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
                "\"b\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[16,32]},"
                "\"c\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[32,48]},"
                "\"d\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[48,64]}}",
                (const float[]){1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3, 4}, 64);
    struct mm_weights *weights = open_good(*state);
    assert_true(mm_weights_same(weights, "a", "b"));
    assert_false(mm_weights_same(weights, "a", "c"));
    assert_false(mm_weights_same(weights, "a", "d")); /* another shape */
    float got[4];
    mm_weights_alias(weights, "z", "c");
    mm_weights_alias(weights, "a", "c"); /* which hides the tensor of that name */
    mm_weights_alias(weights, "m", "b");
    assert_int_equal(mm_weights_load(weights, "z", 2, 2, got, MM_F32, &err), MM_OK);
    assert_memory_equal(got, values + 8, sizeof got);
    assert_int_equal(mm_weights_load(weights, "a", 2, 2, got, MM_F32, &err), MM_OK);
    assert_memory_equal(got, values + 8, sizeof got);
    assert_int_equal(mm_weights_load(weights, "m", 2, 2, got, MM_F32, &err), MM_OK);
    assert_memory_equal(got, values + 4, sizeof got);
    assert_int_equal(mm_weights_names_n(weights), 4);
    assert_string_equal(mm_weights_name(weights, 3), "d");
    mm_weights_free(weights);
}

static void many_tensors(void **state) {
    enum { N = 3000 };
    char *header = mm_calloc(N, 100);
    float *values = mm_calloc(N, sizeof *values);
    size_t used = 0;
    for (size_t i = 0; i < N; i++) {
        values[i] = (float)i;
        used += (size_t)sprintf(header + used,
                                "%c\"layer.%zu\":{\"dtype\":\"F32\",\"shape\":[1],"
                                "\"data_offsets\":[%zu,%zu]}",
                                i ? ',' : '{', i * 7919 % N, 4 * i, 4 * i + 4);
    }
    strcat(header, "}");
    put_tensors(single(state), header, values, 4 * N);
    struct mm_weights *weights = open_good(*state);
    for (size_t i = 0; i < N; i++) {
        char name[32];
        float value;
        snprintf(name, sizeof name, "layer.%zu", i * 7919 % N);
        assert_int_equal(mm_weights_load(weights, name, 1, 0, &value, MM_F32, &err), MM_OK);
        assert_true(value == (float)i);
    }
    mm_weights_free(weights);
    mm_free(header);
    mm_free(values);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, scratch_make, scratch_drop)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(index_rows_that_nothing_needs),
        TEST(aliases_and_comparison),
        TEST(lists_tensors),
        TEST(loads_converted),
        TEST(load_names_what_is_wrong),
        TEST(bad_headers),
        TEST(bad_files),
        TEST(deep_and_raw_headers),
        TEST(bad_folders),
        TEST(damage),
        TEST(reads_shards),
        TEST(bad_indexes),
        TEST(many_tensors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
