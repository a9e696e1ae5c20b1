/* rope_fields.h - the rotary settings of config.json. Local. */
#ifndef MM_ROPE_FIELDS_H
#define MM_ROPE_FIELDS_H

#include "src/model/family.h"
#include "src/model/fields.h"

/* Fills rope_theta, rope_scaling and heads.rotary_dim; heads.head_dim is read. A fault: a kind of
 * rotary embedding that is not supported, values out of range, and two dictionaries that
 * disagree. */
void mm_rope_read(struct mm_fields *f, const struct mm_family_row *row, struct mm_arch *arch);

#endif
