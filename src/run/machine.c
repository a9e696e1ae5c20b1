/* machine.c - see machine.h. */
#include "src/run/machine.h"

#include "io/files.h"
#include "src/config/yaml.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* H100 and H200 differ in their memory. */
#define EIGHT_GPUS(memory_rate)                                                                    \
    {                                                                                              \
        .cuda = true, .rates = {53e12, 790e12, (memory_rate), 2e-6}, .links = {                    \
            .per_machine = 8,                                                                      \
            .inside = 360e9,                                                                       \
            .across = 400e9,                                                                       \
            .loss = 20e9,                                                                          \
            .buckets = {8.4e-6, 3.4e-6, 14e-6},                                                    \
            .sums = {6.6e-6, 1.1e-6, 2.7e-6},                                                      \
            .beside = true                                                                         \
        }                                                                                          \
    }

static const struct {
    const char *name;
    struct mm_machine machine;
} built_in[] = {{"h100x8", EIGHT_GPUS(3.0e12)}, {"h200x8", EIGHT_GPUS(4.3e12)}};

/* Numbers of a file. */
static const struct {
    const char *key;
    size_t place;
    bool zero; /* may be 0 */
} numbers[] = {
    {"float32", offsetof(struct mm_machine, rates.float32), false},
    {"bfloat16", offsetof(struct mm_machine, rates.bfloat16), false},
    {"memory", offsetof(struct mm_machine, rates.memory), false},
    {"start", offsetof(struct mm_machine, rates.start), true},
    {"inside", offsetof(struct mm_machine, links.inside), false},
    {"across", offsetof(struct mm_machine, links.across), false},
    {"loss", offsetof(struct mm_machine, links.loss), true},
    {"bucket.start", offsetof(struct mm_machine, links.buckets.start), true},
    {"bucket.inside", offsetof(struct mm_machine, links.buckets.inside), true},
    {"bucket.across", offsetof(struct mm_machine, links.buckets.across), true},
    {"sum.start", offsetof(struct mm_machine, links.sums.start), true},
    {"sum.inside", offsetof(struct mm_machine, links.sums.inside), true},
    {"sum.across", offsetof(struct mm_machine, links.sums.across), true},
};
#define NUMBERS (sizeof numbers / sizeof *numbers)

static enum mm_status bad(const struct mm_setting *s, const char *wanted, struct mm_error *err) {
    return mm_yaml_fail(err, s->origin, s->line, "%s is not %s", s->key, wanted);
}

static enum mm_status read_number(const struct mm_setting *s, bool zero, double *out,
                                  struct mm_error *err) {
    char *end = NULL;
    const char *text = s->value->kind == MM_YAML_SCALAR && !s->value->quoted ? s->value->text : "";
    *out = strtod(text, &end);
    if (!*text || *end || !isfinite(*out) || *out < 0 || (*out == 0 && !zero))
        return bad(s, zero ? "a number from 0 on" : "a number above 0", err);
    return MM_OK;
}

/* Two words, the first of which means true. */
static enum mm_status read_either(const struct mm_setting *s, const char *yes, const char *no,
                                  bool *out, struct mm_error *err) {
    const char *text = s->value->kind == MM_YAML_SCALAR ? s->value->text : "";
    *out = strcmp(text, yes) == 0;
    if (!*out && strcmp(text, no) != 0) {
        char *wanted = mm_format("%s or %s", yes, no);
        enum mm_status status = bad(s, wanted, err);
        mm_free(wanted);
        return status;
    }
    return MM_OK;
}

static enum mm_status read_setting(struct mm_machine *m, const struct mm_setting *s,
                                   struct mm_error *err) {
    double ranks;
    for (size_t i = 0; i < NUMBERS; i++)
        if (strcmp(s->key, numbers[i].key) == 0)
            return read_number(s, numbers[i].zero, (double *)((char *)m + numbers[i].place), err);
    if (strcmp(s->key, "device") == 0)
        return read_either(s, "cuda", "cpu", &m->cuda, err);
    if (strcmp(s->key, "beside") == 0)
        return read_either(s, "true", "false", &m->links.beside, err);
    if (strcmp(s->key, "ranks") != 0)
        return bad(s, "a key of a machine (docs/scaling.md)", err);
    enum mm_status status = read_number(s, false, &ranks, err);
    if (status == MM_OK && (ranks != floor(ranks) || ranks > 1e6))
        status = bad(s, "a number of ranks", err);
    if (status == MM_OK)
        m->links.per_machine = (int)ranks;
    return status;
}

static enum mm_status check_all_there(const struct mm_settings *settings, const char *path,
                                      struct mm_error *err) {
    const char *others[] = {"ranks", "device", "beside"};
    for (size_t i = 0; i < NUMBERS + 3; i++) {
        const char *key = i < NUMBERS ? numbers[i].key : others[i - NUMBERS];
        if (!mm_settings_find(settings, key))
            return mm_fail(err, MM_BAD_INPUT, "%s: says nothing of '%s'", path, key);
    }
    return MM_OK;
}

static enum mm_status read_text(struct mm_machine *m, const char *path, const char *text,
                                size_t bytes, struct mm_error *err) {
    struct mm_settings settings = {0};
    enum mm_status status = mm_settings_add_text(&settings, text, bytes, path, err);
    for (size_t i = 0; i < settings.n && status == MM_OK; i++)
        status = read_setting(m, &settings.items[i], err);
    if (status == MM_OK)
        status = check_all_there(&settings, path, err);
    mm_settings_free(&settings);
    return status;
}

enum mm_status mm_machine_read(struct mm_machine *m, const char *name, struct mm_error *err) {
    char *text = NULL;
    size_t bytes;
    for (size_t i = 0; i < sizeof built_in / sizeof *built_in; i++)
        if (strcmp(name, built_in[i].name) == 0) {
            *m = built_in[i].machine;
            return MM_OK;
        }
    *m = (struct mm_machine){0};
    if (mm_file_read(name, &text, &bytes, err) != MM_OK)
        return mm_fail(err, MM_BAD_INPUT,
                       "--machine '%s': not h100x8, h200x8, nor a file that can be read", name);
    enum mm_status status = read_text(m, name, text, bytes, err);
    mm_free(text);
    return status;
}
