/* json_text.h - JSON files that are read with care and edited as text. All functions are local.
 *
 * Reason: printing a parsed tree may change the digits of numbers. So an edit replaces the bytes of
 * one value, and everything else stays as it is. */
#ifndef MM_JSON_TEXT_H
#define MM_JSON_TEXT_H

#include "src/base/base.h"

struct cJSON;

/* Parses JSON strictly: one object, nothing but white space behind it, no name twice in an object,
 * no NUL character, UTF-8, nested at most 200 deep. A byte order mark before it is skipped; NaN,
 * Infinity and -Infinity, which Python writes, become strings of these names. `text` is
 * NUL-terminated after `bytes`. NULL if it is not so, with MM_BAD_INPUT's text in err: "PATH:LINE:
 * the file is not JSON ..." where `what` is NULL, otherwise "PATH: WHAT is not JSON (near its byte
 * N) ...", without the PATH where that is empty. The caller frees with cJSON_Delete. */
struct cJSON *mm_json_object(const char *text, size_t bytes, const char *path, const char *what,
                             struct mm_error *err);

/* The same of a whole file. Where `text` is not NULL, *text is what the file holds behind a byte
 * order mark, for edits; the caller frees it with mm_free. After a failure there is nothing to
 * free. */
struct cJSON *mm_json_file(const char *path, char **text, struct mm_error *err);

/* `text` behind a byte order mark, if it has one. */
const char *mm_json_start(const char *text);

/* Finds the value of member `key` of the object that `text` begins with: the bytes [*begin, *end).
 * False where there is none. Any text is safe, JSON or not. */
bool mm_json_member(const char *text, const char *key, const char **begin, const char **end);

/* `text` with [begin, end), which lies in it, replaced by `value`. The caller frees with mm_free.
 */
char *mm_json_replace(const char *text, const char *begin, const char *end, const char *value);

#endif
