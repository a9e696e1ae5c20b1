/* fuzz_trials.c - what the trial server is sent: the input's first byte says how much comes at a
 * time, the rest comes through a pipe. What a line sets, its own keys alone set. */
#include <cjson/cJSON.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/lines.h"
#include "src/run/trial_line.h"
#include "tests/fuzz/fuzz.h"

static const char text[] = "model: {path: /m}\n"
                           "data: {retain: /r, forget: /f, retain_validation: /rv, "
                           "forget_validation: /fv}\n"
                           "unlearn: {loops: 24, unlearning_rate: 1.0e-1, retaining_rate: 1.0e-3, "
                           "adv_lr: 2.0e-3}\n";

static void parse(const char *line) {
    static char *overrides[] = {"unlearn.clip_at=3", "seed=5"};
    const struct mm_trial_base base = {text, "base.yaml", overrides, 2};
    struct mm_error err = {""};
    struct mm_config config;
    cJSON *request;
    (void)mm_trial_is_prune(line);
    enum mm_status status = mm_trial_parse(&base, line, &request, &config, &err);
    fuzz_expect(status, &err, NULL);
    if (status == MM_OK) {
        FUZZ_CHECK(config.seed == 5 && strcmp(config.model.path, "/m") == 0);
        const cJSON *item, *set = cJSON_GetObjectItemCaseSensitive(request, "overrides");
        cJSON_ArrayForEach(item, set) FUZZ_CHECK(!strchr(item->string, '='));
        const char *more = NULL; /* after the object, only what cJSON takes for white space */
        cJSON *plain = cJSON_ParseWithOpts(line, &more, false); /* NULL: with NaN and the like */
        cJSON_Delete(plain);
        while (plain && *more)
            FUZZ_CHECK((unsigned char)*more++ <= ' ');
        mm_config_free(&config);
    }
    cJSON_Delete(request);
}

static void read_lines(struct mm_lines *lines, const char *(*next)(struct mm_lines *)) {
    const char *line;
    while ((line = next(lines))) {
        FUZZ_CHECK(strlen(line) <= MM_LINE_MAX);
        parse(line);
        FUZZ_CHECK(next(lines) != NULL);
        mm_lines_take(lines);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_begin();
    struct fuzz_bytes bytes = {data, size};
    size_t step = 1 + 64 * fuzz_take(&bytes, 1);
    int ends[2];
    FUZZ_CHECK(pipe(ends) == 0);
    struct mm_lines lines = {.fd = ends[0]};
    while (bytes.n) {
        size_t now = bytes.n < step ? bytes.n : step; /* what a pipe always holds */
        FUZZ_CHECK(write(ends[1], bytes.next, now) == (ssize_t)now);
        bytes.next += now;
        bytes.n -= now;
        read_lines(&lines, mm_lines_look);
    }
    close(ends[1]);
    read_lines(&lines, mm_lines_wait);
    FUZZ_CHECK(lines.ended && lines.bytes == 0);
    mm_lines_free(&lines);
    close(ends[0]);
    fuzz_end();
    return 0;
}
