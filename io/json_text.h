/* json_text.h - JSON files that are read with care and edited as text. All functions are local.
 *
 * Reason: printing a parsed tree may change the digits of numbers. So an edit replaces the bytes of
 * one value, and everything else stays as it is. */
#ifndef MM_JSON_TEXT_H
#define MM_JSON_TEXT_H

#include "src/base/base.h"

struct cJSON;

/* Parses JSON that must be one object and free of NUL characters, which would cut C strings. `text`
 * is NUL-terminated after `bytes`. NULL if it is not so, with MM_BAD_INPUT's text in err ("PATH:
 * WHAT is not JSON ..."). The caller frees with cJSON_Delete. */
struct cJSON *mm_json_object(const char *text, size_t bytes, const char *path, const char *what,
                             struct mm_error *err);

/* Finds the value of member `key` (written without escapes) of the object that `text` begins with:
 * the bytes [*begin, *end). False where there is none. Any text is safe, JSON or not. */
bool mm_json_member(const char *text, const char *key, const char **begin, const char **end);

/* `text` with [begin, end), which lies in it, replaced by `value`. The caller frees with mm_free.
 */
char *mm_json_replace(const char *text, const char *begin, const char *end, const char *value);

#endif
