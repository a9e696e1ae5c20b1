/* test_export_files.c - what an export copies beside the weights, and what it edits on the way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <sys/stat.h>

#include "tests/unit/export_folders.h"

static void unchanged_but_for_foreign_weights(void **state) {
    struct folders f = make_input(state);
    static const char *const left[] = {".hidden",
                                       "pytorch_model.bin",
                                       "a.PT",
                                       "old.safetensors",
                                       "flax_model.msgpack",
                                       "tf_model.h5",
                                       "consolidated.pth",
                                       "pytorch_model.bin.index.json",
                                       "model.safetensors.index.json",
                                       "model.onnx_data",
                                       "model.safetensors.bak",
                                       "weights.npz",
                                       "config.json.orig",
                                       "optimizer",
                                       "adapter_config.json",
                                       "trainer_state.json"};
    for (size_t i = 0; i < sizeof left / sizeof *left; i++)
        put_text(path_in(f.in, left[i]), "x");
    put(path_in(f.in, "weights.txt"), "a\0b", 3); /* no text */
    put(path_in(f.in, "tokenizer.model"), "a\0b", 3);
    static const char *const text[] = {"LICENSE",
                                       "license.txt",
                                       "Readme.md",
                                       "chat_template.jinja",
                                       "generation_config.json",
                                       "vocab.json",
                                       "tokenization_x.py"};
    for (size_t i = 0; i < sizeof text / sizeof *text; i++)
        put_text(path_in(f.in, text[i]), "text");
    assert_int_equal(mm_folder_make(path_in(f.in, "additional_chat_templates"), &err), MM_OK);
    put_text(path_in(f.in, "additional_chat_templates/tools.jinja"), "{{ x }}");
    put_text(path_in(f.in, "additional_chat_templates/weights"), "x");
    assert_int_equal(mm_folder_make(path_in(f.in, "original/deep"), &err), MM_OK);
    put_text(path_in(*state, "blob"), "linked");
    assert_int_equal(symlink("../blob", path_in(f.in, "merges.txt")), 0);
    assert_int_equal(symlink("nowhere", path_in(f.in, "dangling")), 0);
    struct mm_export_report report = export_good(&f, NULL, 0, NULL);
    assert_int_equal(report.replaced + report.changed + report.lost + report.overflowed, 0);
    static const char *const same[] = {
        "model.safetensors", "config.json", "tokenizer.json",
        "tokenizer.model",   "merges.txt",  "additional_chat_templates/tools.jinja"};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        expect_same_files(path_in(f.in, same[i]), path_in(f.out, same[i]));
    for (size_t i = 0; i < sizeof left / sizeof *left; i++)
        assert_false(mm_path_exists(path_in(f.out, left[i])));
    for (size_t i = 0; i < sizeof text / sizeof *text; i++)
        expect_same_files(path_in(f.in, text[i]), path_in(f.out, text[i]));
    assert_false(mm_path_exists(path_in(f.out, "weights.txt")));
    assert_false(mm_path_exists(path_in(f.out, "additional_chat_templates/weights")));
    assert_false(mm_path_exists(path_in(f.out, "original")));
    assert_false(mm_path_exists(path_in(f.out, "dangling")));
    struct stat info;
    assert_int_equal(lstat(path_in(f.out, "merges.txt"), &info), 0);
    assert_true(S_ISREG(info.st_mode));
}

static void config_forms(void **state) {
    static const char *const cases[][2] = {
        {"{}", "{\n  \"torch_dtype\": \"float16\"\n}"},
        {"{\"a\": 1}", "{\n  \"torch_dtype\": \"float16\",\"a\": 1}"},
        {"{\"dtype\": null , \"x\": 1e-05}", "{\"dtype\": \"float16\" , \"x\": 1e-05}"},
        {"{\"dtype\":\"bfloat16\",\"torch_dtype\":\"bfloat16\"}",
         "{\"dtype\":\"float16\",\"torch_dtype\":\"float16\"}"},
        {"{\"sub\":{\"dtype\":\"float64\",\"l\":[{\"torch_dtype\":1}]},\"dtype\":\"float32\"}",
         "{\"sub\":{\"dtype\":\"float64\",\"l\":[{\"torch_dtype\":1}]},\"dtype\":\"float16\"}"},
    };
    struct folders f = make_input(state);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put_text(path_in(f.in, "config.json"), cases[i][0]);
        export_good(&f, NULL, 0, &(enum mm_dtype){MM_F16});
        expect_text(path_in(f.out, "config.json"), cases[i][1]);
        assert_int_equal(mm_folder_remove(f.out, &err), MM_OK);
    }
    put_text(path_in(f.in, "config.json"), "{\"a\"");
    expect_no_export(&f, NULL, 0, &(enum mm_dtype){MM_F16}, MM_BAD_INPUT,
                     "config.json:1: the file is not JSON");
    expect_no_export(&f, NULL, 0, NULL, MM_BAD_INPUT, "config.json:1: the file is not JSON");
    put_text(path_in(f.in, "config.json"), "\xef\xbb\xbf{\"torch\\u005fdtype\": 1}");
    export_good(&f, NULL, 0, NULL); /* transformers reads no byte order mark */
    expect_text(path_in(f.out, "config.json"), "{\"torch\\u005fdtype\": 1}");
    assert_int_equal(mm_folder_remove(f.out, &err), MM_OK);
    export_good(&f, NULL, 0, &(enum mm_dtype){MM_F16});
    expect_text(path_in(f.out, "config.json"), "{\"torch\\u005fdtype\": \"float16\"}");
}

static void says_untied_and_follows_aliases(void **state) {
    static const char *const cases[][2] = {
        {"{\"tie_word_embeddings\": true, \"a\": 1}", "{\"tie_word_embeddings\": false, \"a\": 1}"},
        {"{\"a\": 1}", "{\n  \"tie_word_embeddings\": false,\"a\": 1}"},
    };
    struct folders f = make_input(state);
    const float values[] = {4, 3, 2, 1};
    const struct mm_replacement replacement = {"another", values, 4},
                                both[] = {{"another", values, 4}, {"w.full", values, 4}};
    for (size_t i = 0; i < 2; i++) {
        put_text(path_in(f.in, "config.json"), cases[i][0]);
        struct mm_weights *weights = open_good(f.in);
        mm_weights_untie(weights);
        mm_weights_alias(weights, "another", "w.full");
        if (export_whole(weights, f.out, &replacement, 1, NULL, NULL, &err))
            fail_msg("%s", err.text);
        expect_text(path_in(f.out, "config.json"), cases[i][1]);
        assert_int_equal(mm_folder_remove(f.out, &err), MM_OK);
        expect_fault(export_whole(weights, f.out, both, 2, NULL, NULL, &err), MM_BAD_INPUT, &err,
                     "is replaced twice");
        export_whole(weights, f.out, &replacement, 1, NULL, NULL, &err);
        mm_weights_free(weights);
        float got[4];
        weights = open_good(f.out);
        load(weights, "w.full", 4, 0, got, MM_F32);
        assert_memory_equal(got, values, sizeof got);
        mm_weights_free(weights);
        assert_int_equal(mm_folder_remove(f.out, &err), MM_OK);
    }
}

/* Rows of what is not there, or not where they say, would keep transformers from loading. */
static void mends_the_index(void **state) {
    struct folders f = make_input(state);
    unlink(path_in(f.in, "model.safetensors"));
    put_tensors(path_in(f.in, "s1.safetensors"),
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", (float[]){1, 2},
                8);
    put_text(path_in(f.in, "model.safetensors.index.json"),
             "{\"metadata\": {\"total_size\": 99}, \"weight_map\": {\"a\": \"s1.safetensors\", "
             "\"b\": \"s1.safetensors\", \"c\": \"gone.safetensors\"}}");
    export_good(&f, NULL, 0, NULL);
    expect_text(
        path_in(f.out, "model.safetensors.index.json"),
        "{\"metadata\": {\"total_size\": 8}, \"weight_map\": {\n\t\"a\":\t\"s1.safetensors\"\n}}");
    assert_false(mm_path_exists(path_in(f.out, "gone.safetensors")));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, scratch_make, scratch_drop)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(unchanged_but_for_foreign_weights),
        TEST(config_forms),
        TEST(says_untied_and_follows_aliases),
        TEST(mends_the_index),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
