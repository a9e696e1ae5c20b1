/* Tests of the words of the command line. */
#include "src/config/command.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static struct mm_error err;

/* Of "plan x.yaml --ranks 3"; words are separated by one space. */
static enum mm_status read_line(struct mm_command_line *line, const char *text) {
    static char copy[256];
    char *argv[16] = {"mudman-mpi"};
    int argc = 1;
    strcpy(copy, text);
    for (char *word = strtok(copy, " "); word; word = strtok(NULL, " "))
        argv[argc++] = word;
    err.text[0] = '\0';
    return mm_command_line_read(line, argc, argv, &err);
}

static void any_order(void **state) {
    (void)state;
    static const char *const lines[] = {
        "plan x.yaml a.b=1 c=2 --ranks 3", "plan x.yaml --ranks 3 a.b=1 c=2",
        "plan --ranks 3 x.yaml a.b=1 c=2", "plan --ranks=3 a.b=1 x.yaml c=2",
        "plan a.b=1 c=2 --ranks 3 x.yaml", "plan a.b=1 --ranks=3 c=2 x.yaml",
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        struct mm_command_line line;
        if (read_line(&line, lines[i]) != MM_OK)
            fail_msg("%s: %s", lines[i], err.text);
        assert_int_equal(line.command, MM_PLAN);
        assert_string_equal(line.subject, "x.yaml");
        assert_int_equal(line.ranks, 3);
        assert_int_equal(line.overrides_n, 2);
        assert_string_equal(line.overrides[0], "a.b=1");
        assert_string_equal(line.overrides[1], "c=2");
        mm_free(line.overrides);
    }
}

static void help_wherever(void **state) {
    (void)state;
    struct mm_command_line line;
    for (int c = 0; c < MM_COMMANDS; c++) {
        static const char *const forms[] = {"%s --help", "%s -h", "%s x.yaml --help",
                                            "%s x.yaml a=1 -h"};
        for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
            char *text = mm_format("%s%s", mm_command_rows[c].name, forms[i] + 2);
            assert_int_equal(read_line(&line, text), MM_OK);
            assert_true(line.help && !line.all && line.command == (enum mm_command)c);
            mm_free(line.overrides);
            mm_free(text);
        }
    }
    assert_int_equal(read_line(&line, "-h"), MM_OK);
    assert_true(line.help && line.all);
    assert_int_equal(read_line(&line, "--version"), MM_OK);
    assert_true(line.version && !line.help);
}

static void mistakes(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"", "nothing is no command: run, resume, eval, pretrain, plan, trials, inspect; "},
        {"rnu x", "rnu is no command: "},
        {"--bogus", "--bogus is no option, nor a command: "},
        {"run", "run needs a CONFIG; see mudman-mpi run --help"},
        {"run a=1", "run needs a CONFIG; "},
        {"resume", "resume needs a RUN_DIR; "},
        {"inspect", "inspect needs a FILE; "},
        {"run x --ranks 2", "run has no option '--ranks'; "},
        {"plan x --rank 2", "plan has no option '--rank'; "},
        {"run -x", "run has no option '-x'; "},
        {"run x -a=1", "run has no option '-a=1'; "},
        {"run x y", "argument 'y' is not understood: run takes one CONFIG, and overrides read "},
        {"inspect x a=1", "argument 'a=1' is not understood: inspect takes nothing but a FILE"},
        {"inspect x y", "argument 'y' is not understood: inspect takes one FILE; "},
        {"plan x --ranks", "--ranks '': not a number of ranks"},
        {"plan x --ranks=", "--ranks '': not a number of ranks"},
        {"plan x --ranks 0", "--ranks '0': not a number of ranks"},
        {"plan x --ranks=2x", "--ranks '2x': not a number of ranks"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mm_command_line line;
        enum mm_status status = read_line(&line, cases[i][0]);
        if (status != MM_BAD_INPUT || strncmp(err.text, cases[i][1], strlen(cases[i][1])) != 0)
            fail_msg("'%s': %d, %s", cases[i][0], status, err.text);
        mm_free(line.overrides);
    }
}

/* A path may hold '=', and where it cannot be told from an override, the file decides. */
static void subjects_with_an_equals_sign(void **state) {
    (void)state;
    struct mm_command_line line;
    assert_int_equal(read_line(&line, "run runs/a=b/x.yaml c=1"), MM_OK);
    assert_string_equal(line.subject, "runs/a=b/x.yaml");
    mm_free(line.overrides);
    FILE *file = fopen("test_command.a=b", "w");
    assert_non_null(file);
    fclose(file);
    enum mm_status status = read_line(&line, "resume test_command.a=b c=1");
    remove("test_command.a=b");
    assert_int_equal(status, MM_OK);
    assert_string_equal(line.subject, "test_command.a=b");
    assert_int_equal(line.overrides_n, 1);
    assert_string_equal(line.overrides[0], "c=1");
    mm_free(line.overrides);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_order),
        cmocka_unit_test(help_wherever),
        cmocka_unit_test(mistakes),
        cmocka_unit_test(subjects_with_an_equals_sign),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
