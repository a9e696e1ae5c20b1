/* yaml.h - YAML text and key=value arguments as one flat list of settings.
 *
 * The only user of libyaml. It knows YAML but no key: nested mappings become dotted keys, a key
 * that is set twice in the file or twice by arguments is an error, and an argument replaces the
 * file's setting. Everything is local. Anchors, aliases, tags and further documents are refused: a
 * config then means what its text says, line by line. */
#ifndef MM_CONFIG_YAML_H
#define MM_CONFIG_YAML_H

#include "src/base/base.h"

enum mm_yaml_kind { MM_YAML_SCALAR, MM_YAML_LIST, MM_YAML_MAP };

struct mm_yaml_node {
    enum mm_yaml_kind kind;
    size_t line; /* 1-based */
    char *text;  /* of a scalar: UTF-8 without NUL */
    bool quoted; /* a scalar in quotes (or a block) is text, never a number, a bool or null */
    char *key;   /* of an item of a mapping */
    size_t key_line;
    struct mm_yaml_node *items;
    size_t items_n;
};

/* Where a setting comes from: an argument as typed, or else the file. */
struct mm_yaml_origin {
    const char *file;
    const char *argument; /* NULL: the file */
};

struct mm_setting {
    char *key;                        /* dotted: "unlearn.adv_lr" */
    const struct mm_yaml_node *value; /* a mapping only if it is empty */
    size_t line;                      /* of the key, in the file */
    struct mm_yaml_origin origin;
};

struct mm_settings {
    struct mm_setting *items;
    size_t n;
    struct mm_yaml_source *sources; /* what the items point into */
    size_t sources_n;
};

/* Appends the settings of `text` (n bytes). `file` names it in messages and is borrowed for the
 * life of the list. MM_BAD_INPUT: "FILE:LINE:COLUMN: problem" or "FILE:LINE: problem". On an error,
 * too, the list is freed by mm_settings_free. */
enum mm_status mm_settings_add_text(struct mm_settings *settings, const char *text, size_t n,
                                    const char *file, struct mm_error *err);

/* Appends or replaces what "key=value" sets; value is one YAML value in flow syntax. MM_BAD_INPUT:
 * "argument 'key=value': problem". */
enum mm_status mm_settings_add_argument(struct mm_settings *settings, const char *argument,
                                        struct mm_error *err);

/* The setting of `key`, or NULL. Borrowed, valid until the list changes. */
const struct mm_setting *mm_settings_find(const struct mm_settings *settings, const char *key);

/* Forgets `key` where it is set. */
void mm_settings_drop(struct mm_settings *settings, const char *key);

void mm_settings_free(struct mm_settings *settings);

/* null, ~ or nothing, not in quotes. */
bool mm_yaml_is_null(const struct mm_yaml_node *node);

/* True if `text` is UTF-8 that a quoted YAML scalar gives back unchanged: no control characters, no
 * line breaks (U+0085, U+2028 and U+2029 are some), no byte-order mark. */
bool mm_yaml_text_ok(const char *text);

/* MM_BAD_INPUT with the text "FILE:LINE: ..." (without ":LINE" if line is 0) or "argument '...':
 * ...". */
enum mm_status mm_yaml_fail(struct mm_error *err, struct mm_yaml_origin origin, size_t line,
                            const char *format, ...) __attribute__((format(printf, 4, 5)));

/* `text` for a message: cut, without control characters; `out` is returned. */
enum { MM_YAML_SHOWN = 100 };
const char *mm_yaml_shown(char out[MM_YAML_SHOWN], const char *text);

#endif
