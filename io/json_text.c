/* json_text.c - see json_text.h. */
#include "io/json_text.h"

#include <cJSON.h>
#include <string.h>

static bool has_nul(const char *text, size_t bytes) {
    if (memchr(text, 0, bytes))
        return true;
    for (const char *at = text; (at = strchr(at, '\\')) && at[1]; at += 2)
        if (!strncmp(at, "\\u0000", 6))
            return true;
    return false;
}

cJSON *mm_json_object(const char *text, size_t bytes, const char *path, const char *what,
                      struct mm_error *err) {
    if (has_nul(text, bytes)) {
        mm_fail(err, MM_BAD_INPUT, "%s: %s holds a NUL character: damaged, download it again", path,
                what);
        return NULL;
    }
    const char *end = text;
    /* Not the variants that take a length: before version 1.7.18 they read beyond the end. */
    cJSON *root = cJSON_ParseWithOpts(text, &end, true);
    if (!root) {
        mm_fail(err, MM_BAD_INPUT,
                "%s: %s is not JSON (near its byte %zu): damaged, download it again", path, what,
                (size_t)(end - text));
    } else if (!cJSON_IsObject(root)) {
        mm_fail(err, MM_BAD_INPUT, "%s: %s is not a JSON object: damaged, download it again", path,
                what);
        cJSON_Delete(root);
        root = NULL;
    }
    return root;
}

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

bool mm_json_member(const char *text, const char *key, const char **begin, const char **end) {
    const char *at = skip_space(text);
    if (*at != '{')
        return false;
    size_t length = strlen(key);
    for (at = skip_space(at + 1); *at == '"'; at = skip_space(at + 1)) {
        const char *name = at + 1;
        at = skip_string(at);
        bool found = !strncmp(name, key, length) && name[length] == '"';
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
