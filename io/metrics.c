/* metrics.c - see metrics.h. A line is built by cJSON and appended by one write, so that the file
 * always ends at the end of a line: a write that comes short is cut off again. */
#include "io/metrics.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct mm_metrics {
    char *path;
    int fd;
    size_t bytes;  /* length of the file */
    cJSON *line;   /* between begin and end */
    char *waiting; /* lines that could not be written yet, or NULL */
    bool patient;
};

/* Cuts the file to keep_bytes, which must be the end of a line. */
static enum mm_status cut(struct mm_metrics *metrics, size_t keep_bytes, struct mm_error *err) {
    struct stat info;
    char last = '\n';
    if (fstat(metrics->fd, &info) != 0)
        return mm_fail(err, MM_BAD_INPUT, "cannot read '%s': %s", metrics->path, strerror(errno));
    if ((uint64_t)info.st_size < keep_bytes)
        return mm_fail(err, MM_BAD_INPUT,
                       "'%s' has %jd bytes, fewer than the %zu at the checkpoint", metrics->path,
                       (intmax_t)info.st_size, keep_bytes);
    if (keep_bytes && pread(metrics->fd, &last, 1, (off_t)keep_bytes - 1) != 1)
        return mm_fail(err, MM_BAD_INPUT, "cannot read '%s': %s", metrics->path, strerror(errno));
    if (last != '\n')
        return mm_fail(err, MM_BAD_INPUT,
                       "'%s' was changed since the checkpoint: no line ends at byte %zu",
                       metrics->path, keep_bytes);
    if (ftruncate(metrics->fd, (off_t)keep_bytes) != 0)
        return mm_fail(err, MM_BAD_INPUT, "cannot cut '%s' to %zu bytes: %s", metrics->path,
                       keep_bytes, strerror(errno));
    metrics->bytes = keep_bytes;
    return MM_OK;
}

enum mm_status mm_metrics_open(struct mm_metrics **metrics, const char *run_dir, size_t keep_bytes,
                               struct mm_error *err) {
    struct mm_metrics *m = mm_calloc(1, sizeof *m);
    enum mm_status status;
    m->path = mm_format("%s/metrics.jsonl", run_dir);
    /* No link: the file is cut, and may be someone else's. */
    m->fd = open(m->path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (m->fd < 0)
        status = mm_fail(err, MM_BAD_INPUT, "cannot write '%s': %s", m->path, strerror(errno));
    else
        status = cut(m, keep_bytes, err);
    if (status != MM_OK) {
        mm_metrics_free(m);
        m = NULL;
    }
    *metrics = m;
    return status;
}

struct mm_metrics *mm_metrics_on(int fd, const char *name) {
    struct mm_metrics *m = mm_calloc(1, sizeof *m);
    m->path = mm_strdup(name);
    m->fd = fd;
    return m;
}

void mm_metrics_free(struct mm_metrics *metrics) {
    if (!metrics)
        return;
    if (metrics->fd >= 0)
        close(metrics->fd);
    cJSON_Delete(metrics->line);
    mm_free(metrics->waiting);
    mm_free(metrics->path);
    mm_free(metrics);
}

static void add(struct mm_metrics *metrics, const char *key, cJSON *item) {
    MM_CHECK(metrics->line, "field '%s' outside a line", key);
    MM_CHECK(item && cJSON_AddItemToObject(metrics->line, key, item), "out of memory");
}

static void begin(struct mm_metrics *metrics, const char *key, const char *value) {
    MM_CHECK(!metrics->line, "a line of metrics inside another");
    metrics->line = cJSON_CreateObject();
    mm_metrics_text(metrics, key, value);
}

void mm_metrics_begin(struct mm_metrics *metrics, const char *phase) {
    begin(metrics, "phase", phase);
}

void mm_metrics_begin_event(struct mm_metrics *metrics, const char *event) {
    begin(metrics, "event", event);
}

/* Length of the UTF-8 sequence at p, 0 if it is none. */
static size_t utf8_length(const unsigned char *p) {
    static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t n = p[0] < 0x80 ? 1 : p[0] >> 5 == 6 ? 2 : p[0] >> 4 == 14 ? 3 : p[0] >> 3 == 30 ? 4 : 0;
    uint32_t code = n < 2 ? p[0] : p[0] & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) {
        if (p[i] >> 6 != 2)
            return 0;
        code = code << 6 | (p[i] & 0x3fu);
    }
    return n && code >= smallest[n] && code <= 0x10ffff && code >> 11 != 27 ? n : 0;
}

void mm_metrics_text(struct mm_metrics *metrics, const char *key, const char *value) {
    /* File names are any bytes; JSON is UTF-8. */
    char *text = mm_strdup(value);
    for (size_t i = 0, n; text[i]; i += n ? n : 1) {
        n = utf8_length((const unsigned char *)text + i);
        if (!n)
            text[i] = '?';
    }
    add(metrics, key, cJSON_CreateString(text));
    mm_free(text);
}

void mm_metrics_count(struct mm_metrics *metrics, const char *key, uint64_t value) {
    char digits[24];
    snprintf(digits, sizeof digits, "%" PRIu64, value);
    add(metrics, key, cJSON_CreateRaw(digits));
}

void mm_metrics_json(struct mm_metrics *metrics, const char *key, const char *json) {
    add(metrics, key, cJSON_CreateRaw(json));
}

void mm_metrics_number(struct mm_metrics *metrics, const char *key, double value) {
    /* cJSON's own digits may be off by a unit in the last place. */
    char digits[40] = "null";
    for (int precision = 1; isfinite(value) && precision <= 17; precision++) {
        snprintf(digits, sizeof digits, "%.*g", precision, value);
        if (strtod(digits, NULL) == value)
            break;
    }
    add(metrics, key, cJSON_CreateRaw(digits));
}

/* Writes all lines that wait, or none of them. */
static enum mm_status write_waiting(struct mm_metrics *metrics, struct mm_error *err) {
    size_t bytes = metrics->waiting ? strlen(metrics->waiting) : 0;
    ssize_t written = 0;
    do
        written = bytes ? write(metrics->fd, metrics->waiting, bytes) : 0;
    while (written < 0 && errno == EINTR);
    if (written == (ssize_t)bytes) {
        metrics->bytes += bytes;
        mm_free(metrics->waiting);
        metrics->waiting = NULL;
        return MM_OK;
    }
    int fault = written < 0 ? errno : ENOSPC;
    if (written > 0 && ftruncate(metrics->fd, (off_t)metrics->bytes) != 0)
        mm_log(MM_LOG_WARN, "'%s' ends in half a line, which cannot be removed: %s", metrics->path,
               strerror(errno));
    return mm_fail(err, MM_FAILED, "cannot write '%s': %s", metrics->path, strerror(fault));
}

enum mm_status mm_metrics_end(struct mm_metrics *metrics, struct mm_error *err) {
    MM_CHECK(metrics->line, "a line of metrics ends that was not begun");
    bool waited = metrics->waiting;
    char *json = cJSON_PrintUnformatted(metrics->line);
    MM_CHECK(json, "out of memory");
    char *lines = mm_format("%s%s\n", waited ? metrics->waiting : "", json);
    cJSON_free(json);
    cJSON_Delete(metrics->line);
    metrics->line = NULL;
    mm_free(metrics->waiting);
    metrics->waiting = lines;

    enum mm_status status = write_waiting(metrics, err);
    if (status == MM_OK)
        return MM_OK;
    if (!metrics->patient) {
        mm_free(metrics->waiting);
        metrics->waiting = NULL;
        return status;
    }
    if (!waited)
        mm_log(MM_LOG_WARN, "the run goes on while lines of the metrics wait in memory: %s",
               err->text);
    return MM_OK;
}

void mm_metrics_be_patient(struct mm_metrics *metrics, bool patient) {
    metrics->patient = patient;
}

enum mm_status mm_metrics_flush(struct mm_metrics *metrics, size_t *bytes, struct mm_error *err) {
    enum mm_status status = write_waiting(metrics, err);
    *bytes = metrics->bytes;
    return status;
}

enum mm_status mm_metrics_sync(const struct mm_metrics *metrics, struct mm_error *err) {
    if (fsync(metrics->fd) != 0)
        return mm_fail(err, MM_FAILED, "cannot write '%s': %s", metrics->path, strerror(errno));
    return MM_OK;
}
