/* config_cases.h - what the tests of the configuration share: a least file, and parsing that must
 * succeed or must fail with a certain message and leave nothing behind. */
#ifndef MM_TESTS_CONFIG_CASES_H
#define MM_TESTS_CONFIG_CASES_H

#include "src/config/config.h"
#include "src/config/table.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* The least that `run` takes: 13 lines. */
static const char base[] = "model:\n"
                           "  path: /m\n"
                           "data:\n"
                           "  retain: /r\n"
                           "  forget: /f\n"
                           "  retain_validation: /rv\n"
                           "  forget_validation: /fv\n"
                           "output: {dir: /o}\n"
                           "unlearn:\n"
                           "  loops: 24\n"
                           "  unlearning_rate: 1.0e-1\n"
                           "  retaining_rate: 1.0e-3\n"
                           "  adv_lr: 2.0e-3\n";

static const char least_pretrain[] = "pretrain: {config: /c}\n"
                                     "data: {retain: /r}\n"
                                     "output: {dir: /o}\n";

static inline enum mm_status parse(struct mm_config *config, const char *text, const char *override,
                                   enum mm_command command, struct mm_error *err) {
    char *overrides[1] = {(char *) override};
    return mm_config_parse(config, text, "t.yaml", overrides, override ? 1 : 0, command, err);
}

static inline struct mm_config good_as(const char *text, const char *override,
                                       enum mm_command command) {
    struct mm_config config;
    struct mm_error err = {""};
    if (parse(&config, text, override, command, &err))
        fail_msg("%s", err.text);
    return config;
}

static inline struct mm_config good(const char *text, const char *override) {
    return good_as(text, override, MM_RUN);
}

static inline bool owns_nothing(const struct mm_config *config) {
    const unsigned char *bytes = (const unsigned char *)config;
    for (size_t i = 0; i < sizeof *config; i++)
        if (bytes[i])
            return false;
    return true;
}

static inline void bad_as(const char *text, const char *override, enum mm_command command,
                          const char *message) {
    struct mm_config config;
    struct mm_error err = {""};
    long before = mm_live_blocks();
    memset(&config, 0x5a, sizeof config);
    if (parse(&config, text, override, command, &err) != MM_BAD_INPUT)
        fail_msg("accepted, expected: %s", message);
    if (!strstr(err.text, message))
        fail_msg("said     %s\n  expected %s", err.text, message);
    assert_true(owns_nothing(&config));
    if (mm_live_blocks() != before)
        fail_msg("%ld blocks left after: %s", mm_live_blocks() - before, err.text);
}

static inline void bad(const char *text, const char *override, const char *message) {
    bad_as(text, override, MM_RUN, message);
}

/* The base with `more` from line 14 on. */
static inline void bad_more(const char *more, const char *message) {
    char *text = mm_format("%s%s", base, more);
    bad(text, NULL, message);
    mm_free(text);
}

/* Every test frees all it made; one that failed is not held against the next. */
static long blocks_before;

static inline int count_blocks(void **state) {
    (void)state;
    blocks_before = mm_live_blocks();
    return 0;
}

static inline int nothing_left(void **state) {
    (void)state;
    return mm_live_blocks() == blocks_before ? 0 : -1;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, count_blocks, nothing_left)

#endif
