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

static const char *const good_json[] = {
    "{}",
    "  {\"a\":\"\\\\u0000\"}  \r\n",
    "{\"a\":\"\\u0001\\n\\ud83d\\ude00 \xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80\"}",
    "\xef\xbb\xbf{\"a\":1}",
    "{\"a\":[-0.5e+3,0,1E5,true,false,null,[],{}],\"b\":{\"a\":2},\"c\":[{\"a\":1},{\"a\":2}]}",
    "{\"a\":NaN,\"b\":[Infinity,-Infinity]}",
};
static const struct {
    const char *text, *fault;
} bad_json[] = {
    {"", "f: it is not JSON (near its byte 0): it ends too early"},
    {"{\"a\":1", "it is not JSON (near its byte 6): it ends too early"},
    {"{} x", "is not JSON (near its byte 3): something stands behind the end"},
    {"{}{}", "(near its byte 2): something stands behind the end"},
    {"[]", "f: it is not a JSON object"},
    {"NaN", "f: it is not a JSON object"},
    {"{\"a\":\"\\u0000\"}", "(near its byte 6): a NUL character"},
    {"{\"a\":\"\\\\\\u0000\"}", "a NUL character"},
    {"{\"a\":1,\"a\":1}", "(near its byte 7): one object has a name twice: 'a'"},
    {"{\"b\":[{\"x\":{},\"a\":1,\"\\u0061\":1}]}",
     "(near its byte 20): one object has a name twice: 'a'"},
    {"{\"a\":{\"b\":1,\"b\":1},\"a\":1}", "one object has a name twice: 'b'"},
    {"{\"a\":1,}", "a comma before the closing bracket"},
    {"{\"a\":[1,]}", "a comma before the closing bracket"},
    {"{,}", "a name in double quotes is expected"},
    {"{a:1}", "a name in double quotes is expected"},
    {"{\"a\" 1}", "':' is expected"},
    {"{\"a\":1 \"b\":1}", "',' or '}' is expected"},
    {"{\"a\":[1 2]}", "',' or ']' is expected"},
    {"{\"a\":01}", "not a number as JSON writes it"},
    {"{\"a\":-}", "not a number as JSON writes it"},
    {"{\"a\":1.}", "not a number as JSON writes it"},
    {"{\"a\":1e}", "not a number as JSON writes it"},
    {"{\"a\":+1}", "a value is expected"},
    {"{\"a\":.5}", "a value is expected"},
    {"{\"a\":nan}", "a value is expected"},
    {"{\"a\":'b'}", "a value is expected"},
    {"{\"a\":\"\n\"}", "a control character in a string"},
    {"{\"a\":\"\\x\"}", "no such escape"},
    {"{\"a\":\"\\u12g4\"}", "no such escape"},
    {"{\"a\":\"\\ud83d\"}", "half a character"},
    {"{\"a\":\"\\ude00\"}", "half a character"},
    {"{\"a\":\"\xff\"}", "not UTF-8"},
    {"{\"a\":\"\xc0\x80\"}", "not UTF-8"},
    {"{\"a\":\"\xed\xa0\x80\"}", "not UTF-8"},
    {"{\"a\":\"\xe2\x82\"}", "not UTF-8"},
    {"{\"a\":\"b", "a string without an end"},
    {"\xff\xfe{", "a value is expected"},
    {"{\"a\":1234567890123456789012345678901234567890123456789012345678901}",
     "a number of more than 60 characters"},
};

static void reads_strictly(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof good_json / sizeof *good_json; i++) {
        cJSON *root = mm_json_object(good_json[i], strlen(good_json[i]), "f", "it", &err);
        if (!root)
            fail_msg("%s: %s", good_json[i], err.text);
        cJSON_Delete(root);
    }
    for (size_t i = 0; i < sizeof bad_json / sizeof *bad_json; i++) {
        assert_null(mm_json_object(bad_json[i].text, strlen(bad_json[i].text), "f", "it", &err));
        expect_fault(MM_BAD_INPUT, MM_BAD_INPUT, &err, bad_json[i].fault);
    }
    assert_null(mm_json_object("{}\0", 3, "f", "it", &err));
    expect_fault(MM_BAD_INPUT, MM_BAD_INPUT, &err, "a NUL character");
}

/* A constant that JSON lacks is a string of its name, hence no number to any reader. */
static void constants_are_no_numbers(void **state) {
    (void)state;
    static const char text[] = "{\"a\":NaN,\"b\":[1,-Infinity , Infinity],\"c\":2}";
    cJSON *root = mm_json_object(text, strlen(text), "f", "it", &err);
    char *printed = cJSON_PrintUnformatted(root);
    assert_string_equal(printed, "{\"a\":\"NaN\",\"b\":[1,\"-Infinity\",\"Infinity\"],\"c\":2}");
    cJSON_free(printed);
    cJSON_Delete(root);
}

static void depth(void **state) {
    (void)state;
    for (size_t deep = 200; deep <= 201; deep++) {
        char text[1024] = "{\"a\":";
        memset(text + 5, '[', deep - 1);
        memset(text + 4 + deep, ']', deep - 1);
        strcat(text, "}");
        cJSON *root = mm_json_object(text, strlen(text), "f", "it", &err);
        assert_true((root != NULL) == (deep == 200));
        cJSON_Delete(root);
    }
    expect_fault(MM_BAD_INPUT, MM_BAD_INPUT, &err, "nested more than 200 deep");
}

static void names_lines_of_files(void **state) {
    const char *path = path_in(*state, "f.json");
    put_text(path, "\xef\xbb\xbf{\n\"a\": 1,\n\"b\": 2,\n\n\"a\": 3}\n");
    assert_null(mm_json_file(path, NULL, &err));
    expect_fault(MM_BAD_INPUT, MM_BAD_INPUT, &err,
                 "f.json:5: the file is not JSON: one object has a name twice: 'a'");
    put_text(path, "\xef\xbb\xbf{\"a\": 1}\n");
    char *text;
    cJSON *root = mm_json_file(path, &text, &err);
    assert_non_null(root);
    assert_string_equal(text, "{\"a\": 1}\n");
    cJSON_Delete(root);
    mm_free(text);
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
        TEST(reads_strictly),
        TEST(constants_are_no_numbers),
        TEST(depth),
        TEST(names_lines_of_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
