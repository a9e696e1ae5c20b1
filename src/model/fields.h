/* fields.h - reads fields of one JSON object with a sticky fault: the first is kept, and later
 * calls return their fallbacks. All functions local. */
#ifndef MM_FIELDS_H
#define MM_FIELDS_H

#include "src/base/base.h"

struct cJSON;

struct mm_fields {
    const char *path; /* of the file, for messages */
    const struct cJSON *object;
    enum mm_status status;
    struct mm_error *err;
};

/* Keeps MM_BAD_INPUT with "PATH: " and the text, if nothing was kept before. */
void mm_fields_fault(struct mm_fields *f, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* The field as it stands, null included; NULL where it is absent. Borrowed. */
const struct cJSON *mm_field(const struct mm_fields *f, const char *name);
/* It is there and not null. */
bool mm_field_given(const struct mm_fields *f, const char *name);

/* The field, or `fallback` where it is absent. A fault: another type, null, not finite; where the
 * fallback is NAN (a number) or SIZE_MAX (a count), also an absent field. */
double mm_field_number(struct mm_fields *f, const char *name, double fallback);
size_t mm_field_count(struct mm_fields *f, const char *name, size_t fallback); /* 1 to 10^9 */
bool mm_field_bool(struct mm_fields *f, const char *name, bool fallback);
/* Borrowed from the object, or `fallback`, which may be NULL. */
const char *mm_field_text(struct mm_fields *f, const char *name, const char *fallback);

#endif
