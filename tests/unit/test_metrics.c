/* test_metrics.c - metrics.jsonl: every line is JSON, numbers come back as they were, and a full
 * disk or a crash leaves whole lines. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cjson/cJSON.h>
#include <cmocka.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "io/files.h"
#include "io/metrics.h"

static char folder[] = "/tmp/test_metrics.XXXXXX";
static char path[64];
static struct mm_error err;

static struct mm_metrics *start(size_t keep) {
    struct mm_metrics *metrics;
    assert_int_equal(mm_metrics_open(&metrics, folder, keep, &err), MM_OK);
    return metrics;
}

static size_t add_line(struct mm_metrics *metrics, uint64_t loop) {
    size_t bytes;
    mm_metrics_begin(metrics, "unlearn");
    mm_metrics_count(metrics, "loop", loop);
    assert_int_equal(mm_metrics_end(metrics, &err), MM_OK);
    assert_int_equal(mm_metrics_flush(metrics, &bytes, &err), MM_OK);
    assert_int_equal(mm_metrics_sync(metrics, &err), MM_OK);
    return bytes;
}

static void expect_content(const char *content) {
    char *text;
    assert_int_equal(mm_file_read(path, &text, NULL, &err), MM_OK);
    assert_string_equal(text, content);
    mm_free(text);
}

static void writes_lines(void **state) {
    (void)state;
    struct mm_metrics *metrics = start(0);
    mm_metrics_begin(metrics, "unlearn");
    mm_metrics_count(metrics, "loop", UINT64_MAX);
    mm_metrics_number(metrics, "third", 1.0 / 3);
    mm_metrics_number(metrics, "tenth", 0.1);
    mm_metrics_number(metrics, "nan", NAN);
    mm_metrics_number(metrics, "inf", -INFINITY);
    mm_metrics_number(metrics, "zero", 0);
    mm_metrics_text(metrics, "reason", "a \"b\"\n\\ \x01 gr\xc3\xbc\xc3\x9f \xff \xed\xa0\x80.");
    assert_int_equal(mm_metrics_end(metrics, &err), MM_OK);
    mm_metrics_begin(metrics, "result");
    assert_int_equal(mm_metrics_end(metrics, &err), MM_OK);
    mm_metrics_free(metrics);
    expect_content("{\"phase\":\"unlearn\",\"loop\":18446744073709551615,\"third\":"
                   "0.3333333333333333,\"tenth\":0.1,\"nan\":null,\"inf\":null,\"zero\":0,"
                   "\"reason\":\"a \\\"b\\\"\\n\\\\ \\u0001 gr\xc3\xbc\xc3\x9f ? ???.\"}\n"
                   "{\"phase\":\"result\"}\n");
}

/* A power of two's neighbours differ by less than a relative comparison with DBL_EPSILON sees. */
static void numbers_come_back(void **state) {
    (void)state;
    enum { N = 2000 };
    double values[N];
    uint64_t x = 1;
    for (int i = 0; i < N; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        memcpy(&values[i], &x, 8);
        if (i % 4 == 1)
            values[i] = (double)(float)ldexp((double)(x >> 11), -53);
        if (i % 4 == 2)
            values[i] = nextafter(ldexp(1, i % 40 - 20), i % 8 < 4 ? 0 : 4);
        if (!isfinite(values[i]))
            values[i] = 5e-324;
    }
    struct mm_metrics *metrics = start(0);
    mm_metrics_begin(metrics, "eval");
    for (int i = 0; i < N; i++) {
        char key[16];
        snprintf(key, sizeof key, "k%d", i);
        mm_metrics_number(metrics, key, values[i]);
    }
    assert_int_equal(mm_metrics_end(metrics, &err), MM_OK);
    mm_metrics_free(metrics);
    char *text;
    assert_int_equal(mm_file_read(path, &text, NULL, &err), MM_OK);
    cJSON *line = cJSON_Parse(text), *item = line ? line->child : NULL;
    mm_free(text);
    assert_non_null(item);
    for (int i = 0; i < N; i++) {
        item = item->next;
        if (memcmp(&item->valuedouble, &values[i], 8) != 0)
            fail_msg("%a came back as %a", values[i], item->valuedouble);
    }
    cJSON_Delete(line);
}

static void resume_cuts(void **state) {
    (void)state;
    struct mm_metrics *metrics = start(0);
    add_line(metrics, 0);
    size_t keep = add_line(metrics, 1);
    add_line(metrics, 2);
    mm_metrics_free(metrics);
    metrics = start(keep);
    assert_int_equal(add_line(metrics, 9), keep + keep / 2);
    mm_metrics_free(metrics);
    expect_content("{\"phase\":\"unlearn\",\"loop\":0}\n{\"phase\":\"unlearn\",\"loop\":1}\n"
                   "{\"phase\":\"unlearn\",\"loop\":9}\n");

    assert_int_equal(mm_metrics_open(&metrics, folder, keep - 1, &err), MM_BAD_INPUT);
    assert_non_null(strstr(err.text, "was changed"));
    assert_int_equal(mm_metrics_open(&metrics, folder, 10 * keep, &err), MM_BAD_INPUT);
    assert_non_null(strstr(err.text, "fewer than"));
    assert_null(metrics);
    char missing[64];
    snprintf(missing, sizeof missing, "%s/missing", folder);
    assert_int_equal(mm_metrics_open(&metrics, missing, 0, &err), MM_BAD_INPUT);
}

static void full_disk_leaves_whole_lines(void **state) {
    (void)state;
    struct mm_metrics *metrics = start(0);
    size_t bytes = add_line(metrics, 0);
    struct rlimit limit, small;
    getrlimit(RLIMIT_FSIZE, &limit);
    small = limit;
    small.rlim_cur = bytes + 5;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    mm_metrics_begin(metrics, "unlearn");
    mm_metrics_count(metrics, "loop", 1);
    enum mm_status status = mm_metrics_end(metrics, &err);
    setrlimit(RLIMIT_FSIZE, &limit);
    assert_int_equal(status, MM_FAILED);
    expect_content("{\"phase\":\"unlearn\",\"loop\":0}\n");
    assert_int_equal(add_line(metrics, 2), 2 * bytes);
    mm_metrics_free(metrics);
    expect_content("{\"phase\":\"unlearn\",\"loop\":0}\n{\"phase\":\"unlearn\",\"loop\":2}\n");
}

static void patient_lines_wait(void **state) {
    (void)state;
    struct mm_metrics *metrics = start(0);
    size_t bytes = add_line(metrics, 0), length;
    struct rlimit limit, small;
    getrlimit(RLIMIT_FSIZE, &limit);
    small = limit;
    small.rlim_cur = bytes + 5;
    signal(SIGXFSZ, SIG_IGN);
    mm_log_init(0, MM_LOG_ERROR);
    mm_metrics_be_patient(metrics, true);
    setrlimit(RLIMIT_FSIZE, &small);
    for (uint64_t loop = 1; loop < 3; loop++) {
        mm_metrics_begin(metrics, "unlearn");
        mm_metrics_count(metrics, "loop", loop);
        assert_int_equal(mm_metrics_end(metrics, &err), MM_OK);
    }
    enum mm_status status = mm_metrics_flush(metrics, &length, &err);
    setrlimit(RLIMIT_FSIZE, &limit);
    assert_int_equal(status, MM_FAILED); /* no checkpoint may count lines that are not there */
    expect_content("{\"phase\":\"unlearn\",\"loop\":0}\n");
    assert_int_equal(mm_metrics_flush(metrics, &length, &err), MM_OK);
    assert_int_equal(length, 3 * bytes);
    assert_int_equal(add_line(metrics, 3), 4 * bytes);
    mm_metrics_free(metrics);
    expect_content("{\"phase\":\"unlearn\",\"loop\":0}\n{\"phase\":\"unlearn\",\"loop\":1}\n"
                   "{\"phase\":\"unlearn\",\"loop\":2}\n{\"phase\":\"unlearn\",\"loop\":3}\n");
}

static int nothing_left(void **state) {
    (void)state;
    return mm_live_blocks() != 0;
}

/* A folder from elsewhere may hold a link where its metrics should be. */
static void leaves_links_alone(void **state) {
    (void)state;
    struct mm_metrics *metrics;
    char *other = mm_format("%s/other", folder);
    assert_int_equal(mm_file_write(other, "kept\n", 5, &err), MM_OK);
    unlink(path);
    assert_int_equal(symlink(other, path), 0);
    assert_int_equal(mm_metrics_open(&metrics, folder, 0, &err), MM_BAD_INPUT);
    assert_non_null(strstr(err.text, path));
    expect_content("kept\n");
    unlink(path);
    unlink(other);
    mm_free(other);
}

#define TEST(name) cmocka_unit_test_teardown(name, nothing_left)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(writes_lines),
        TEST(numbers_come_back),
        TEST(resume_cuts),
        TEST(leaves_links_alone),
        TEST(full_disk_leaves_whole_lines),
        TEST(patient_lines_wait),
    };
    if (!mkdtemp(folder))
        return 1;
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    rmdir(folder);
    return failed;
}
