/* test_files.c - the checked file operations, and edits of JSON text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cJSON.h>

#include "io/json_text.h"
#include "tests/unit/scratch.h"

static struct mm_error err;

static void reads_whole_files(void **state) {
    const char *path = path_in(*state, "text");
    char *text;
    size_t bytes;
    put(path, "a\0b", 3);
    assert_int_equal(mm_file_read(path, &text, &bytes, &err), MM_OK);
    assert_int_equal(bytes, 3);
    assert_memory_equal(text, "a\0b", 4); /* terminated */
    mm_free(text);
    put(path, "", 0);
    assert_int_equal(mm_file_read(path, &text, NULL, &err), MM_OK);
    assert_string_equal(text, "");
    mm_free(text);

    size_t large = 300001; /* beyond the first buffer */
    char *pattern = mm_calloc(large, 1);
    for (size_t i = 0; i < large; i++)
        pattern[i] = (char)(i * 31 % 251);
    put(path, pattern, large);
    expect_file(path, pattern, large);
    mm_free(pattern);

    expect_fault(mm_file_read(path_in(*state, "none"), &text, &bytes, &err), MM_BAD_INPUT, &err,
                 "none: cannot read: No such file");
    assert_null(text);
    expect_fault(mm_file_read(*state, &text, &bytes, &err), MM_BAD_INPUT, &err, "Is a directory");
    assert_null(text);
}

static void writes_replace(void **state) {
    const char *path = path_in(*state, "out");
    assert_int_equal(mm_file_write(path, "first", 5, &err), MM_OK);
    assert_int_equal(mm_file_write(path, "second\0", 7, &err), MM_OK);
    expect_file(path, "second\0", 7);
    assert_false(mm_path_exists(path_in(*state, "out.tmp")));
    expect_fault(mm_file_write(path_in(*state, "no/out"), "x", 1, &err), MM_BAD_INPUT, &err,
                 "no/out.tmp: cannot write: No such file");
    /* A folder of that name cannot be replaced; the temporary file goes. */
    assert_int_equal(mm_folder_make(path_in(*state, "taken/below"), &err), MM_OK);
    expect_fault(mm_file_write(path_in(*state, "taken"), "x", 1, &err), MM_BAD_INPUT, &err,
                 "taken: cannot rename to");
    assert_false(mm_path_exists(path_in(*state, "taken.tmp")));
}

/* Of a folder from elsewhere: a link in the temporary file's place leads nowhere. */
static void leaves_links_alone(void **state) {
    const char *path = path_in(*state, "out"), *other = path_in(*state, "other");
    put_text(other, "kept");
    assert_int_equal(symlink(other, path_in(*state, "out.tmp")), 0);
    expect_fault(mm_file_write(path, "new", 3, &err), MM_BAD_INPUT, &err, "cannot write");
    expect_text(other, "kept");
}

static void full_disk(void **state) {
    const char *path = path_in(*state, "out");
    assert_int_equal(mm_file_write(path, "old", 3, &err), MM_OK);
    struct rlimit before, small;
    getrlimit(RLIMIT_FSIZE, &before);
    small = before;
    small.rlim_cur = 4096;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    char *large = mm_calloc(10000, 1);
    enum mm_status status = mm_file_write(path, large, 10000, &err);
    setrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, handler);
    mm_free(large);
    expect_fault(status, MM_FAILED, &err, "/out: cannot write: File too large");
    expect_text(path, "old");
    assert_false(mm_path_exists(path_in(*state, "out.tmp")));
}

static void copies(void **state) {
    const char *from = path_in(*state, "from"), *to = path_in(*state, "to");
    size_t large = 2500000; /* several buffers */
    char *pattern = mm_calloc(large, 1);
    for (size_t i = 0; i < large; i++)
        pattern[i] = (char)(i * 7 % 253);
    put(from, pattern, large);
    assert_int_equal(mm_file_copy(from, to, &err), MM_OK);
    expect_file(to, pattern, large);
    mm_free(pattern);
    expect_fault(mm_file_copy(path_in(*state, "none"), to, &err), MM_BAD_INPUT, &err,
                 "none: cannot read");
    expect_fault(mm_file_copy(*state, path_in(*state, "x"), &err), MM_BAD_INPUT, &err,
                 "Is a directory");
    assert_false(mm_path_exists(path_in(*state, "x")));
    assert_false(mm_path_exists(path_in(*state, "x.tmp")));
    expect_fault(mm_file_copy(from, path_in(*state, "no/to"), &err), MM_BAD_INPUT, &err,
                 "no/to.tmp: cannot write");
}

static void folders(void **state) {
    const char *deep = path_in(*state, "a//b/c/");
    assert_int_equal(mm_folder_make(deep, &err), MM_OK);
    assert_int_equal(mm_folder_make(deep, &err), MM_OK);
    assert_int_equal(mm_folder_sync(deep, &err), MM_OK);
    put_text(path_in(*state, "a/b/c/file"), "x");
    put_text(path_in(*state, "kept"), "kept");
    assert_int_equal(mm_folder_make(path_in(*state, "other"), &err), MM_OK);
    put_text(path_in(*state, "other/kept"), "kept");
    assert_int_equal(symlink("../../other", path_in(*state, "a/b/link")), 0);
    assert_int_equal(symlink("../kept", path_in(*state, "a/file-link")), 0);
    assert_int_equal(symlink("nowhere", path_in(*state, "a/.dangling")), 0);
    assert_true(mm_path_exists(path_in(*state, "a/.dangling")));
    assert_int_equal(mm_folder_remove(path_in(*state, "a"), &err), MM_OK);
    assert_false(mm_path_exists(path_in(*state, "a")));
    expect_text(path_in(*state, "other/kept"), "kept");
    expect_text(path_in(*state, "kept"), "kept");
    assert_int_equal(mm_folder_remove(path_in(*state, "a"), &err), MM_OK); /* none: no error */
    /* A link to a folder goes, the folder stays. */
    assert_int_equal(symlink("other", path_in(*state, "link")), 0);
    assert_int_equal(mm_folder_remove(path_in(*state, "link"), &err), MM_OK);
    assert_false(mm_path_exists(path_in(*state, "link")));
    assert_true(mm_path_exists(path_in(*state, "other/kept")));

    expect_fault(mm_folder_make("", &err), MM_BAD_INPUT, &err, "without a name");
    expect_fault(mm_folder_make(path_in(*state, "kept/below"), &err), MM_BAD_INPUT, &err,
                 "kept: cannot make the folder: File exists");
    expect_fault(mm_folder_sync(path_in(*state, "a"), &err), MM_BAD_INPUT, &err,
                 "/a: cannot sync: No such file");
}

static void parents(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"a", "."},     {"a/", "."},   {"", "."},       {"/", "/"},   {"/a", "/"},
        {"/a/b", "/a"}, {"a/b/", "a"}, {"a//b//", "a"}, {"./a", "."}, {"//a/b", "//a"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *parent = mm_path_parent(cases[i][0]);
        assert_string_equal(parent, cases[i][1]);
        mm_free(parent);
    }
}

static void hashes(void **state) {
    const char *path = path_in(*state, "data");
    char hex[33], other[33];
    put(path, "", 0);
    assert_int_equal(mm_file_hash(path, 0, hex, &err), MM_OK);
    assert_string_equal(hex, "99aa06d3014798d86001c324468d497f"); /* of nothing, as published */
    put_text(path, "0123456789");
    assert_int_equal(mm_file_hash(path, 4, hex, &err), MM_OK);
    put_text(path, "456789");
    assert_int_equal(mm_file_hash(path, 0, other, &err), MM_OK);
    assert_string_equal(hex, other);
    assert_int_equal(mm_file_hash(path, 6, hex, &err), MM_OK);
    assert_string_equal(hex, "99aa06d3014798d86001c324468d497f");
    expect_fault(mm_file_hash(path, 7, hex, &err), MM_BAD_INPUT, &err,
                 "truncated: 6 bytes, at least 7 expected");
    expect_fault(mm_file_hash(path_in(*state, "none"), 0, hex, &err), MM_BAD_INPUT, &err,
                 "none: cannot read");
    expect_fault(mm_file_hash(*state, 0, hex, &err), MM_BAD_INPUT, &err, "Is a directory");
}

static void finds_members(void **state) {
    (void)state;
    static const char text[] =
        " {\"a\" : 1 , \"b\":{\"c\":[1,{\"a\":2}]}, \"s\":\"}\\\",{\", \"e\":[]\n}";
    static const char *const found[][2] = {
        {"a", "1"}, {"b", "{\"c\":[1,{\"a\":2}]}"}, {"s", "\"}\\\",{\""}, {"e", "[]"}};
    const char *begin, *end;
    for (size_t i = 0; i < 4; i++) {
        assert_true(mm_json_member(text, found[i][0], &begin, &end));
        assert_int_equal(end - begin, strlen(found[i][1]));
        assert_memory_equal(begin, found[i][1], strlen(found[i][1]));
    }
    assert_false(mm_json_member(text, "c", &begin, &end));
    assert_false(mm_json_member(text, "", &begin, &end));
    /* Whatever the text, its end is the end. */
    char cut[sizeof text];
    for (size_t n = 0; n < sizeof text; n++) {
        memcpy(cut, text, n);
        cut[n] = 0;
        mm_json_member(cut, "none", &begin, &end);
        char *exact = mm_strdup(cut);
        mm_json_member(exact, "none", &begin, &end);
        mm_free(exact);
    }
    static const char small[] = "{\"a\": 1.50}";
    assert_true(mm_json_member(small, "a", &begin, &end));
    char *edited = mm_json_replace(small, begin, end, "2");
    assert_string_equal(edited, "{\"a\": 2}");
    mm_free(edited);
}

static void refuses_what_is_no_object(void **state) {
    (void)state;
    static const char *const good[] = {"{}", "  {\"a\":\"\\\\u0000\"}  ", "{\"a\":\"\\u0001\"}"};
    static const struct {
        const char *text, *fault;
    } bad[] = {
        {"", "f: it is not JSON (near its byte 0)"},
        {"{\"a\":1", "is not JSON"},
        {"{} x", "is not JSON (near its byte 3)"},
        {"[]", "is not a JSON object"},
        {"{\"a\":\"\\u0000\"}", "holds a NUL character"},
        {"{\"a\":\"\\\\\\u0000\"}", "holds a NUL character"},
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        cJSON *root = mm_json_object(good[i], strlen(good[i]), "f", "it", &err);
        assert_non_null(root);
        cJSON_Delete(root);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_null(mm_json_object(bad[i].text, strlen(bad[i].text), "f", "it", &err));
        expect_fault(MM_BAD_INPUT, MM_BAD_INPUT, &err, bad[i].fault);
    }
    assert_null(mm_json_object("{}\0", 3, "f", "it", &err));
    expect_fault(MM_BAD_INPUT, MM_BAD_INPUT, &err, "holds a NUL character");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, scratch_make, scratch_drop)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(reads_whole_files),
        TEST(writes_replace),
        TEST(leaves_links_alone),
        TEST(full_disk),
        TEST(copies),
        TEST(folders),
        TEST(parents),
        TEST(hashes),
        TEST(finds_members),
        TEST(refuses_what_is_no_object),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
