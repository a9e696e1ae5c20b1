/* json_text.c - see json_text.h. */
#include "io/json_text.h"

#include "io/files.h"
#include "io/json_scan.h"

#include <cJSON.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char bom[] = "\xef\xbb\xbf";

struct source {
    const char *text, *path, *what;
    struct mm_error *err;
};

/* What is wrong at an offset of the text: "PATH:LINE: ..." of a file, a byte of anything else. */
static void fault(const struct source *s, size_t at, const char *why, const char *name) {
    char *quoted = name ? mm_format(" '%.200s'", name) : mm_strdup("");
    size_t line = 1;
    for (size_t i = 0; i < at; i++)
        line += s->text[i] == '\n';
    if (!s->what)
        mm_fail(s->err, MM_BAD_INPUT, "%s:%zu: the file is not JSON: %s%s", s->path, line, why,
                quoted);
    else
        mm_fail(s->err, MM_BAD_INPUT, "%s%s%s is not JSON (near its byte %zu): %s%s%s", s->path,
                *s->path ? ": " : "", s->what, at, why, quoted,
                *s->path ? ": damaged, download it again" : "");
    mm_free(quoted);
}

/* --- names that stand twice --- */

struct name {
    const char *text;
    size_t at;
};

static int by_text(const void *a, const void *b) {
    const struct name *x = a, *y = b;
    int order = strcmp(x->text, y->text);
    return order ? order : (x->at > y->at) - (x->at < y->at);
}

/* Sorts the names of one object; the second of two that are the same, if any. */
static const struct name *twice_among(struct name *names, size_t n) {
    qsort(names, n, sizeof *names, by_text);
    for (size_t i = 1; i < n; i++)
        if (!strcmp(names[i - 1].text, names[i].text))
            return &names[i];
    return NULL;
}

/* Visits the members of `item` and below in the order of the text; *next is the place of the next
 * name. True where an object has a name twice, which is said. */
static bool has_twice(const struct source *s, const cJSON *item, const size_t **next) {
    bool object = cJSON_IsObject(item), found = false;
    size_t n = 0;
    for (const cJSON *child = item->child; child; child = child->next)
        n++;
    struct name *names = object ? mm_calloc(n, sizeof *names) : NULL;
    n = 0;
    for (const cJSON *child = item->child; child && !found; child = child->next) {
        if (object)
            names[n++] = (struct name){child->string, *(*next)++};
        found = child->child && has_twice(s, child, next);
    }
    const struct name *second = found || !object ? NULL : twice_among(names, n);
    if (second)
        fault(s, second->at, "one object has a name twice:", second->text);
    mm_free(names);
    return found || second;
}

/* --- reading --- */

/* `text` with quotes around NaN and its like: strings, which no reader of a number takes. */
static char *quote_constants(const char *text, size_t bytes, const struct mm_json_places *places) {
    char *out = mm_calloc(bytes + 2 * places->n + 1, 1), *to = out;
    size_t from = 0;
    for (size_t i = 0; i < places->n; i++) {
        size_t at = places->at[i], length = text[at] == 'N' ? 3 : text[at] == 'I' ? 8 : 9;
        memcpy(to, text + from, at - from);
        to += at - from;
        *to++ = '"';
        memcpy(to, text + at, length);
        to += length;
        *to++ = '"';
        from = at + length;
    }
    memcpy(to, text + from, bytes - from);
    return out;
}

static cJSON *parse(const struct source *s, size_t bytes, const struct mm_json_scan *scan) {
    char *quoted = quote_constants(s->text, bytes, &scan->constants);
    const size_t *next = scan->names.at;
    cJSON *root = cJSON_ParseWithOpts(quoted, NULL, true);
    mm_free(quoted);
    if (!root)
        fault(s, 0, "it cannot be parsed", NULL);
    else if (!cJSON_IsObject(root))
        mm_fail(s->err, MM_BAD_INPUT, "%s%s%s is not a JSON object: { is expected", s->path,
                *s->path ? ": " : "", s->what ? s->what : "the file");
    else if (!has_twice(s, root, &next))
        return root;
    cJSON_Delete(root);
    return NULL;
}

const char *mm_json_start(const char *text) {
    return strncmp(text, bom, 3) ? text : text + 3;
}

cJSON *mm_json_object(const char *text, size_t bytes, const char *path, const char *what,
                      struct mm_error *err) {
    const char *start = mm_json_start(text);
    struct source source = {start, path, what, err};
    struct mm_json_scan scan;
    mm_json_scan(&scan, start, bytes - (size_t)(start - text));
    cJSON *root = NULL;
    if (scan.why)
        fault(&source, scan.fault, scan.why, NULL);
    else
        root = parse(&source, bytes - (size_t)(start - text), &scan);
    mm_json_scan_clear(&scan);
    return root;
}

cJSON *mm_json_file(const char *path, char **text, struct mm_error *err) {
    size_t bytes;
    struct stat info;
    if (stat(path, &info) == 0 && !S_ISREG(info.st_mode)) { /* a pipe would hang the job */
        mm_fail(err, MM_BAD_INPUT, "%s: not a regular file", path);
        return NULL;
    }
    char *all;
    if (mm_file_read(path, &all, &bytes, err))
        return NULL;
    cJSON *root = mm_json_object(all, bytes, path, NULL, err);
    if (root && text)
        *text = mm_strdup(mm_json_start(all));
    mm_free(all);
    return root;
}

/* --- editing --- */

/* What cJSON takes for white space. */
static bool is_space(char c) {
    return c && (unsigned char)c <= ' ';
}

static const char *skip_space(const char *at) {
    while (is_space(*at))
        at++;
    return at;
}

/* From the opening quote to behind the closing one. */
static const char *skip_string(const char *at) {
    for (at++; *at && *at != '"'; at++)
        if (*at == '\\' && at[1])
            at++;
    return *at ? at + 1 : at;
}

/* To the comma or bracket that ends the value. */
static const char *skip_value(const char *at) {
    size_t depth = 0;
    while (*at) {
        if (*at == '"') {
            at = skip_string(at);
            continue;
        }
        if (*at == '{' || *at == '[')
            depth++;
        else if (depth == 0 && strchr(",}]", *at))
            break;
        else if (*at == '}' || *at == ']')
            depth--;
        at++;
    }
    return at;
}

/* Whether the quoted name [at, end) is `key`, however it is escaped. */
static bool is_name(const char *at, const char *end, const char *key) {
    char *quoted = mm_format("%.*s", (int)(end - at), at);
    cJSON *name = cJSON_Parse(quoted);
    bool same = cJSON_IsString(name) && !strcmp(name->valuestring, key);
    cJSON_Delete(name);
    mm_free(quoted);
    return same;
}

bool mm_json_member(const char *text, const char *key, const char **begin, const char **end) {
    const char *at = skip_space(text);
    if (*at != '{')
        return false;
    for (at = skip_space(at + 1); *at == '"'; at = skip_space(at + 1)) {
        const char *name = at;
        at = skip_string(at);
        bool found = is_name(name, at, key);
        at = skip_space(at);
        if (*at != ':')
            return false;
        *begin = skip_space(at + 1);
        at = *end = skip_value(*begin);
        while (*end > *begin && is_space((*end)[-1]))
            --*end;
        if (found)
            return true;
        if (*at != ',')
            return false;
    }
    return false;
}

char *mm_json_replace(const char *text, const char *begin, const char *end, const char *value) {
    size_t before = (size_t)(begin - text), length = strlen(value), after = strlen(end);
    char *out = mm_calloc(before + length + after + 1, 1);
    memcpy(out, text, before);
    memcpy(out + before, value, length);
    memcpy(out + before + length, end, after);
    return out;
}
