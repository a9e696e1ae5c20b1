/* value.h - one value of the config: from YAML into a field, out again, and freed.
 *
 * The row (table.h) says where the field is and what it takes; `base` is the struct that the
 * row's offsets count from. Numbers are stricter than YAML's: an integer is digits only (1e3 and
 * 16.0 are errors, so is 010, octal to some readers), a number is decimal and finite. Local. */
#ifndef MM_CONFIG_VALUE_H
#define MM_CONFIG_VALUE_H

#include "src/config/table.h"
#include "src/config/yaml.h"

#include <stdio.h>

/* What a message about a value needs to know. */
struct mm_value_place {
    const char *key;
    struct mm_yaml_origin origin;
    struct mm_error *err;
};

/* Sets every field without a default, in zeroed memory, to what "absent" is. */
void mm_values_clear(const struct mm_config_row *rows, size_t n, void *base);

/* Reads `node` into a clear field. On MM_BAD_INPUT, too, what it holds is freed by mm_values_free.
 */
enum mm_status mm_value_read(const struct mm_value_place *at, const struct mm_config_row *row,
                             const struct mm_yaml_node *node, void *base);

/* True if a field that may be null is. */
bool mm_value_absent(const struct mm_config_row *row, const void *base);

/* Prints the field as YAML that mm_value_read reads back to the same value. No line break at the
 * end. */
void mm_value_write(FILE *out, const struct mm_config_row *row, const void *base);

/* Frees what the fields hold. */
void mm_values_free(const struct mm_config_row *rows, size_t n, void *base);

#endif
