/* rope_fields.c - see rope_fields.h. The order is that of transformers: the dictionary is
 * `rope_scaling` unless that is empty, else `rope_parameters`; each setting comes from the
 * dictionary, else from the top level, else from the family. */
#include "src/model/rope_fields.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <string.h>

struct rope {
    const char *type;
    double theta, share;
    double factor, low, high, original; /* NAN where nothing says */
};

/* NULL where the field is absent, null or {}. */
static const cJSON *dictionary(struct mm_fields *f, const char *name) {
    const cJSON *item = mm_field(f, name);
    if (item && !cJSON_IsNull(item) && !cJSON_IsObject(item))
        mm_fields_fault(f, "'%s' is not an object", name);
    const cJSON *member;
    cJSON_ArrayForEach(member, item) if (cJSON_IsObject(item) && cJSON_IsObject(member))
        mm_fields_fault(f, "'%s' has settings of its own for '%.100s', which is not supported",
                        name, member->string);
    return cJSON_IsObject(item) && item->child ? item : NULL;
}

static double or_nan(struct mm_fields *in, const char *name) {
    return mm_field(in, name) ? mm_field_number(in, name, 0) : NAN;
}

/* `value`, else the field, else `fallback`. What is not needed is not read. */
static double or_field(double value, struct mm_fields *f, const char *name, double fallback) {
    if (isnan(value))
        value = or_nan(f, name);
    return isnan(value) ? fallback : value;
}

/* What holds if `dict`, which may be NULL, is the dictionary. */
static struct rope settle(struct mm_fields *f, const struct mm_family_row *row, const cJSON *dict) {
    struct mm_fields in = {f->path, dict, f->status, f->err};
    struct rope rope = {.type = mm_field_text(&in, "type", "default")};
    rope.type = mm_field_text(&in, "rope_type", rope.type);
    rope.theta = or_nan(&in, "rope_theta");
    rope.share = or_nan(&in, "partial_rotary_factor");
    rope.factor = or_nan(&in, "factor");
    rope.low = or_nan(&in, "low_freq_factor");
    rope.high = or_nan(&in, "high_freq_factor");
    rope.original = or_nan(&in, "original_max_position_embeddings");
    f->status = in.status;
    rope.theta = or_field(rope.theta, f, row->theta_field, 10000);
    rope.share = or_field(rope.share, f, row->share_field, row->share);
    if (strcmp(rope.type, "llama3") == 0) { /* the one setting where the top level comes first */
        rope.original = or_field(NAN, f, "original_max_position_embeddings", rope.original);
        rope.original =
            or_field(rope.original, f, "max_position_embeddings", (double)row->positions);
    }
    return rope;
}

static bool same(double a, double b) {
    return a == b || (isnan(a) && isnan(b));
}

static bool same_rope(const struct rope *a, const struct rope *b) {
    if (strcmp(a->type, b->type) != 0 || a->theta != b->theta || a->share != b->share)
        return false;
    return strcmp(a->type, "default") == 0 ||
           (same(a->factor, b->factor) && same(a->low, b->low) && same(a->high, b->high) &&
            same(a->original, b->original));
}

static void read_llama3(struct mm_fields *f, const struct rope *rope, struct mm_arch *arch) {
    const struct {
        const char *name;
        double value;
    } needed[] = {
        {"factor", rope->factor}, {"low_freq_factor", rope->low}, {"high_freq_factor", rope->high}};
    for (size_t i = 0; i < 3; i++)
        if (isnan(needed[i].value))
            mm_fields_fault(f, "'%s' is missing in the dictionary of the llama3 rotary embedding",
                            needed[i].name);
    if (!(rope->factor >= 1 && rope->original >= 1 && rope->high > rope->low && rope->low > 0))
        mm_fields_fault(f, "llama3 rope scaling has values out of range");
    arch->rope_scaling.factor = rope->factor;
    arch->rope_scaling.low = rope->low;
    arch->rope_scaling.high = rope->high;
    arch->rope_scaling.original = rope->original;
}

void mm_rope_read(struct mm_fields *f, const struct mm_family_row *row, struct mm_arch *arch) {
    const cJSON *scaling = dictionary(f, "rope_scaling");
    const cJSON *parameters = dictionary(f, "rope_parameters");
    struct rope rope = settle(f, row, scaling ? scaling : parameters);
    if (scaling && parameters) {
        struct rope other = settle(f, row, parameters);
        if (!same_rope(&rope, &other))
            mm_fields_fault(f, "'rope_scaling' and 'rope_parameters' disagree: keep the one that "
                               "holds");
    }
    if (row->share == 1 && rope.share != 1)
        mm_fields_fault(f, "partial_rotary_factor %g is not supported in this family", rope.share);
    bool in_range = rope.share > 0 && rope.share <= 1;
    size_t dim = in_range ? (size_t)((double)arch->heads.head_dim * rope.share) : 0;
    if (!in_range || dim < 2 || dim % 2)
        mm_fields_fault(f, "rotary dimension %g of head dimension %zu is not supported",
                        (double)arch->heads.head_dim * rope.share, arch->heads.head_dim);
    arch->heads.rotary_dim = dim;
    if (!(rope.theta > 1))
        mm_fields_fault(f, "rope_theta %g is not above 1", rope.theta);
    arch->rope_theta = rope.theta;
    if (strcmp(rope.type, "llama3") == 0)
        read_llama3(f, &rope, arch);
    else if (strcmp(rope.type, "default") != 0)
        mm_fields_fault(f, "rope type '%.100s' is not supported: default or llama3", rope.type);
}
