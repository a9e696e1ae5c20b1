/* table.h - the table of keys: a row says everything about a key of the config.
 *
 * Reading, checking, writing, help and the tests walk the rows; nothing else lists the keys. Rows
 * of a section follow each other. Everything is local and constant. */
#ifndef MM_CONFIG_TABLE_H
#define MM_CONFIG_TABLE_H

#include "src/config/config.h"

enum mm_config_type {
    MM_KEY_INTEGER, /* size_t or uint64_t */
    MM_KEY_NUMBER,  /* double */
    MM_KEY_BOOL,
    MM_KEY_ENUM,    /* an enum; `values` are its names */
    MM_KEY_TEXT,    /* char *, owned */
    MM_KEY_PATH,    /* char *, owned, absolute */
    MM_KEY_WORDS,   /* char ** and its count */
    MM_KEY_PAIR,    /* double[2] */
    MM_KEY_CHOICES, /* struct mm_multiple_choice * and its count */
    MM_KEY_ATTACKS, /* struct mm_attack * and its count */
};

struct mm_config_name {
    const char *name; /* NULL ends a list */
    unsigned value;
};

struct mm_config_row {
    const char *name; /* dotted */
    enum mm_config_type type;
    size_t offset, count_offset; /* into struct mm_config; the count of a list */
    /* The default as YAML. NULL: there is none, and the key may be null; the field then holds NULL,
     * MM_ABSENT, NaN or MM_ABSENT_CHOICE. */
    const char *initial;
    const char *bounds; /* of numbers: an interval, "[0, 1)" leaves 1 out */
    const struct mm_config_name *values;
    unsigned flags; /* MM_KEY_NEEDED_BY(command) | ..., MM_KEY_RESUMABLE, MM_KEY_ASIDE */
    const char *help;
};

#define MM_KEY_NEEDED_BY(command) (1u << (command))
#define MM_KEY_RESUMABLE          (1u << 16) /* a resume may change it */
#define MM_KEY_ASIDE              (1u << 17) /* decides no result of a run, or rounding only */

extern const struct mm_config_row mm_config_rows[];
extern const size_t mm_config_rows_n;

/* A key whose value is a list of mappings. The rows describe one mapping; their offsets count from
 * its struct. Texts and paths must be given. The name comes first, and no two mappings have the
 * same. */
struct mm_config_list {
    const struct mm_config_row *rows;
    size_t rows_n, bytes; /* of the struct */
    const char *plural;   /* what they are, for messages */
};

/* The description of the list that a row of this type holds; NULL if the type is no such list. */
const struct mm_config_list *mm_config_list(enum mm_config_type type);

/* The row called `name`, or NULL. */
const struct mm_config_row *mm_config_row(const char *name);

/* The row whose name is the fewest edits away from `name`; among names of other sections only the
 * last part counts, so that "adv_lr" finds "unlearn.adv_lr". */
const struct mm_config_row *mm_config_nearest(const char *name);

/* True if `name` is a section ("model"), with the keys in it as text: "path, dtype, ...". */
bool mm_config_section(const char *name, char *keys, size_t keys_bytes);

/* Says what the row takes, for messages and help: "a number in [0, 1)". Returns `out`. */
enum { MM_CONFIG_ACCEPTS = 256 };
const char *mm_config_accepts(const struct mm_config_row *row, char out[MM_CONFIG_ACCEPTS]);

/* True if `value` lies within row->bounds. */
bool mm_config_within(const struct mm_config_row *row, double value);

#endif
