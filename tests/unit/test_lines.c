/* test_lines.c - lines from a pipe: whole, in pieces, without an end, too long. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "io/lines.h"

static int ends[2];
static struct mm_lines lines;

static void begin(void) {
    assert_int_equal(pipe(ends), 0);
    lines = (struct mm_lines){.fd = ends[0]};
}

static void send(const char *text) {
    assert_int_equal(write(ends[1], text, strlen(text)), (ssize_t)strlen(text));
}

static void expect_line(const char *text) {
    assert_string_equal(mm_lines_wait(&lines), text);
    assert_string_equal(mm_lines_look(&lines), text); /* stays */
    mm_lines_take(&lines);
}

static void end(void) {
    assert_null(mm_lines_wait(&lines));
    mm_lines_free(&lines);
    close(ends[0]);
    assert_int_equal(mm_live_blocks(), 0);
}

static void whole_and_in_pieces(void **state) {
    (void)state;
    begin();
    assert_null(mm_lines_look(&lines));
    send("one\n\ntwo\nthr");
    expect_line("one");
    expect_line("");
    expect_line("two");
    assert_null(mm_lines_look(&lines));
    send("ee\nlast");
    expect_line("three");
    assert_null(mm_lines_look(&lines));
    close(ends[1]);
    expect_line("last");
    end();
}

/* 3 lines: of MM_LINE_MAX - 1 bytes, of 4 times MM_LINE_MAX, and "after". */
static void *send_long(void *unused) {
    char block[4096];
    (void)unused;
    memset(block, 'x', sizeof block);
    for (size_t i = 0; i < MM_LINE_MAX / sizeof block; i++)
        if (write(ends[1], block, sizeof block - (i == 0)) < 0)
            break;
    send("\n");
    for (size_t i = 0; i < 4 * (MM_LINE_MAX / sizeof block); i++)
        if (write(ends[1], block, sizeof block) < 0)
            break;
    send("\nafter\n");
    close(ends[1]);
    return NULL;
}

static void too_long(void **state) {
    (void)state;
    pthread_t sender;
    begin();
    assert_int_equal(pthread_create(&sender, NULL, send_long, NULL), 0);
    assert_int_equal(strlen(mm_lines_wait(&lines)), MM_LINE_MAX - 1);
    mm_lines_take(&lines);
    expect_line("");
    assert_true(lines.bytes < 2 * (size_t)MM_LINE_MAX);
    expect_line("after");
    assert_int_equal(pthread_join(sender, NULL), 0);
    end();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_and_in_pieces),
        cmocka_unit_test(too_long),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
