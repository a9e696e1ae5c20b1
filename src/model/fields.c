/* fields.c - see fields.h. */
#include "src/model/fields.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

void mm_fields_fault(struct mm_fields *f, const char *format, ...) {
    char what[640];
    va_list args;
    if (f->status != MM_OK)
        return;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    f->status = mm_fail(f->err, MM_BAD_INPUT, "%s: %s", f->path, what);
}

const cJSON *mm_field(const struct mm_fields *f, const char *name) {
    return cJSON_GetObjectItemCaseSensitive(f->object, name);
}

bool mm_field_given(const struct mm_fields *f, const char *name) {
    const cJSON *item = mm_field(f, name);
    return item && !cJSON_IsNull(item);
}

double mm_field_number(struct mm_fields *f, const char *name, double fallback) {
    const cJSON *item = mm_field(f, name);
    if (!item && isnan(fallback))
        mm_fields_fault(f, "'%s' is missing", name);
    if (!item)
        return fallback;
    if (cJSON_IsNumber(item) && isfinite(item->valuedouble))
        return item->valuedouble;
    mm_fields_fault(f, "'%s' is not a number", name);
    return fallback;
}

size_t mm_field_count(struct mm_fields *f, const char *name, size_t fallback) {
    bool required = fallback == SIZE_MAX;
    double value = mm_field_number(f, name, required ? NAN : (double)fallback);
    if (f->status == MM_OK && (value < 1 || value > 1e9 || value != floor(value)))
        mm_fields_fault(f, "'%s' is %g, not a whole number from 1 to 10^9", name, value);
    return f->status == MM_OK ? (size_t)value : 1;
}

bool mm_field_bool(struct mm_fields *f, const char *name, bool fallback) {
    const cJSON *item = mm_field(f, name);
    if (item && !cJSON_IsBool(item))
        mm_fields_fault(f, "'%s' is neither true nor false", name);
    return item ? cJSON_IsTrue(item) : fallback;
}

const char *mm_field_text(struct mm_fields *f, const char *name, const char *fallback) {
    const cJSON *item = mm_field(f, name);
    if (item && !cJSON_IsString(item))
        mm_fields_fault(f, "'%s' is not a string", name);
    return cJSON_IsString(item) ? item->valuestring : fallback;
}
