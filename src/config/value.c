/* value.c - see value.h. */
#include "src/config/value.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- in ---- */

static enum mm_status expected(const struct mm_value_place *at, const struct mm_config_row *row,
                               const struct mm_yaml_node *got) {
    char accepts[MM_CONFIG_ACCEPTS], shown[MM_YAML_SHOWN];
    const char *what = got->kind == MM_YAML_LIST  ? "a list"
                       : got->kind == MM_YAML_MAP ? "a mapping"
                       : mm_yaml_is_null(got)     ? "null"
                                                  : mm_yaml_shown(shown, got->text);
    const char *quote = got->quoted ? "\"" : "";
    return mm_yaml_fail(at->err, at->origin, got->line, "%s: expected %s, got %s%s%s", at->key,
                        mm_config_accepts(row, accepts), quote, what, quote);
}

static size_t digits(const char *text) {
    return strspn(text, "0123456789");
}

static bool parse_integer(const char *text, size_t *value) {
    size_t n = digits(text);
    if (n == 0 || text[n] || (n > 1 && text[0] == '0'))
        return false;
    errno = 0;
    *value = strtoull(text, NULL, 10);
    return errno == 0;
}

/* Decimal: 1, -0.5, .5, 1., 1e-3; no hexadecimal, nan or inf. What overflows becomes infinite,
 * which lies in no row's bounds. */
static bool parse_number(const char *text, double *value) {
    const char *at = text + (*text == '-' || *text == '+');
    size_t before = digits(at), after = 0;
    at += before;
    if (*at == '.') {
        after = digits(at + 1);
        at += 1 + after;
    }
    if (before + after == 0)
        return false;
    if (*at == 'e' || *at == 'E') {
        at += at[1] == '-' || at[1] == '+' ? 2 : 1;
        size_t exponent = digits(at);
        if (exponent == 0)
            return false;
        at += exponent;
    }
    if (*at)
        return false;
    *value = strtod(text, NULL);
    return true;
}

static enum mm_status read_number(const struct mm_value_place *at, const struct mm_config_row *row,
                                  const struct mm_yaml_node *node, double *value) {
    if (node->kind != MM_YAML_SCALAR || node->quoted || !parse_number(node->text, value) ||
        !mm_config_within(row, *value))
        return expected(at, row, node);
    return MM_OK;
}

static enum mm_status read_text(const struct mm_value_place *at, const struct mm_config_row *row,
                                const struct mm_yaml_node *node, char **value) {
    if (node->kind != MM_YAML_SCALAR || mm_yaml_is_null(node) || !*node->text)
        return expected(at, row, node);
    if (!mm_yaml_text_ok(node->text))
        return mm_yaml_fail(at->err, at->origin, node->line,
                            "%s: a line break or control character in the text", at->key);
    *value = mm_strdup(node->text);
    return MM_OK;
}

static enum mm_status read_path(const struct mm_value_place *at, const struct mm_config_row *row,
                                const struct mm_yaml_node *node, char **value) {
    enum mm_status status = read_text(at, row, node, value);
    if (status || **value == '/')
        return status;
    char *here = getcwd(NULL, 0);
    if (!here)
        return mm_yaml_fail(at->err, at->origin, node->line,
                            "%s: the working directory, where a relative path starts: %s", at->key,
                            strerror(errno));
    char *absolute = mm_format("%s/%s", strcmp(here, "/") == 0 ? "" : here, *value);
    free(here); /* the C library's, not ours to count */
    mm_free(*value);
    *value = absolute;
    if (!mm_yaml_text_ok(absolute))
        return mm_yaml_fail(at->err, at->origin, node->line,
                            "%s: the working directory's name is not plain UTF-8 text", at->key);
    return MM_OK;
}

static enum mm_status read_enum(const struct mm_value_place *at, const struct mm_config_row *row,
                                const struct mm_yaml_node *node, void *field) {
    if (node->kind == MM_YAML_SCALAR)
        for (const struct mm_config_name *v = row->values; v->name; v++)
            if (strcmp(v->name, node->text) == 0) {
                memcpy(field, &v->value, sizeof v->value);
                return MM_OK;
            }
    return expected(at, row, node);
}

static enum mm_status read_words(const struct mm_value_place *at, const struct mm_config_row *row,
                                 const struct mm_yaml_node *node, char ***words, size_t *n) {
    if (node->kind != MM_YAML_LIST || node->items_n == 0)
        return expected(at, row, node);
    *words = mm_calloc(node->items_n, sizeof **words);
    for (size_t i = 0; i < node->items_n; i++) {
        enum mm_status status = read_text(at, row, &node->items[i], &(*words)[i]);
        if (status)
            return status;
        *n = i + 1;
        char shown[MM_YAML_SHOWN];
        for (size_t j = 0; j < i; j++)
            if (strcmp((*words)[i], (*words)[j]) == 0)
                return mm_yaml_fail(at->err, at->origin, node->items[i].line, "%s: %s twice",
                                    at->key, mm_yaml_shown(shown, (*words)[i]));
    }
    return MM_OK;
}

static enum mm_status read_pair(const struct mm_value_place *at, const struct mm_config_row *row,
                                const struct mm_yaml_node *node, double pair[2]) {
    if (node->kind != MM_YAML_LIST || node->items_n != 2)
        return expected(at, row, node);
    for (size_t i = 0; i < 2; i++) {
        enum mm_status status = read_number(at, row, &node->items[i], &pair[i]);
        if (status)
            return status;
    }
    return MM_OK;
}

static enum mm_status read_list(const struct mm_value_place *at, const struct mm_config_row *row,
                                const struct mm_yaml_node *node, void **list, size_t *n);

enum mm_status mm_value_read(const struct mm_value_place *at, const struct mm_config_row *row,
                             const struct mm_yaml_node *node, void *base) {
    void *field = (char *)base + row->offset;
    size_t *count = (size_t *)((char *)base + row->count_offset);
    if (!row->initial && mm_yaml_is_null(node))
        return MM_OK; /* the field is clear */
    switch (row->type) {
    case MM_KEY_INTEGER:
        if (node->kind != MM_YAML_SCALAR || node->quoted || !parse_integer(node->text, field) ||
            !mm_config_within(row, (double)*(size_t *)field))
            return expected(at, row, node);
        return MM_OK;
    case MM_KEY_NUMBER:
        return read_number(at, row, node, field);
    case MM_KEY_BOOL:
        if (node->kind != MM_YAML_SCALAR || node->quoted ||
            (strcmp(node->text, "true") != 0 && strcmp(node->text, "false") != 0))
            return expected(at, row, node);
        *(bool *)field = node->text[0] == 't';
        return MM_OK;
    case MM_KEY_ENUM:
        return read_enum(at, row, node, field);
    case MM_KEY_TEXT:
        return read_text(at, row, node, field);
    case MM_KEY_PATH:
        return read_path(at, row, node, field);
    case MM_KEY_WORDS:
        return read_words(at, row, node, field, count);
    case MM_KEY_PAIR:
        return read_pair(at, row, node, field);
    case MM_KEY_CHOICES:
    case MM_KEY_ATTACKS:
        return read_list(at, row, node, field, count);
    }
    return MM_OK;
}

static enum mm_status unknown_field(const struct mm_value_place *at,
                                    const struct mm_config_list *list,
                                    const struct mm_yaml_node *item) {
    char shown[MM_YAML_SHOWN], valid[256] = "";
    for (size_t r = 0, used = 0; r < list->rows_n; r++)
        used += (size_t)snprintf(valid + used, sizeof valid - used, "%s%s",
                                 r == 0                  ? ""
                                 : r + 1 == list->rows_n ? " and "
                                                         : ", ",
                                 list->rows[r].name);
    return mm_yaml_fail(at->err, at->origin, item->key_line, "%s: unknown key '%s'; valid are %s",
                        at->key, mm_yaml_shown(shown, item->key), valid);
}

static enum mm_status read_element(const struct mm_value_place *at,
                                   const struct mm_config_list *list,
                                   const struct mm_yaml_node *node, void *element) {
    size_t seen[8] = {0}; /* lines, by row */
    for (size_t i = 0; i < node->items_n; i++) {
        const struct mm_yaml_node *item = &node->items[i];
        size_t r = 0;
        while (r < list->rows_n && strcmp(list->rows[r].name, item->key) != 0)
            r++;
        if (r == list->rows_n)
            return unknown_field(at, list, item);
        if (seen[r])
            return mm_yaml_fail(at->err, at->origin, item->key_line,
                                "%s: repeated key '%s' (first on line %zu)", at->key,
                                list->rows[r].name, seen[r]);
        seen[r] = item->key_line;
        char *key = mm_format("%s: %s", at->key, list->rows[r].name);
        struct mm_value_place here = {key, at->origin, at->err};
        enum mm_status status = mm_value_read(&here, &list->rows[r], item, element);
        mm_free(key);
        if (status)
            return status;
    }
    for (size_t r = 0; r < list->rows_n; r++) {
        enum mm_config_type type = list->rows[r].type;
        if ((type == MM_KEY_TEXT || type == MM_KEY_PATH) &&
            mm_value_absent(&list->rows[r], element))
            return mm_yaml_fail(at->err, at->origin, node->line, "%s: %s is missing", at->key,
                                list->rows[r].name);
    }
    return MM_OK;
}

static const char *name_of(const struct mm_config_list *list, const void *element) {
    return *(char *const *)((const char *)element + list->rows[0].offset);
}

static enum mm_status read_list(const struct mm_value_place *at, const struct mm_config_row *row,
                                const struct mm_yaml_node *node, void **elements, size_t *n) {
    const struct mm_config_list *list = mm_config_list(row->type);
    if (node->kind != MM_YAML_LIST)
        return expected(at, row, node);
    if (node->items_n == 0)
        return MM_OK;
    char *first = *elements = mm_calloc(node->items_n, list->bytes);
    for (size_t i = 0; i < node->items_n; i++) {
        if (node->items[i].kind != MM_YAML_MAP)
            return expected(at, row, &node->items[i]);
        char *element = first + i * list->bytes;
        mm_values_clear(list->rows, list->rows_n, element);
        *n = i + 1;
        enum mm_status status = read_element(at, list, &node->items[i], element);
        if (status)
            return status;
        char shown[MM_YAML_SHOWN];
        for (char *other = first; other < element; other += list->bytes)
            if (strcmp(name_of(list, element), name_of(list, other)) == 0)
                return mm_yaml_fail(at->err, at->origin, node->items[i].line,
                                    "%s: two %s are called %s", at->key, list->plural,
                                    mm_yaml_shown(shown, name_of(list, element)));
    }
    return MM_OK;
}

/* ---- out ---- */

bool mm_value_absent(const struct mm_config_row *row, const void *base) {
    const void *field = (const char *)base + row->offset;
    if (row->initial)
        return false;
    switch (row->type) {
    case MM_KEY_INTEGER:
        return *(const size_t *)field == MM_ABSENT;
    case MM_KEY_NUMBER:
        return isnan(*(const double *)field);
    case MM_KEY_ENUM:
        return *(const unsigned *)field == MM_ABSENT_CHOICE;
    case MM_KEY_TEXT:
    case MM_KEY_PATH:
        return !*(char *const *)field;
    default:
        return false;
    }
}

/* Single quotes: nothing in them is special but the quote itself. */
static void write_text(FILE *out, const char *text) {
    fputc('\'', out);
    for (; *text; text++)
        fputs(*text == '\'' ? "\'\'" : (char[]){*text, '\0'}, out);
    fputc('\'', out);
}

/* The shortest of 15 and 17 digits that keeps the value. */
static void write_number(FILE *out, double value) {
    char text[32];
    snprintf(text, sizeof text, "%.15g", value);
    if (strtod(text, NULL) != value)
        snprintf(text, sizeof text, "%.17g", value);
    fputs(text, out);
}

static void write_enum(FILE *out, const struct mm_config_row *row, const void *field) {
    unsigned value;
    memcpy(&value, field, sizeof value);
    const struct mm_config_name *v = row->values;
    while (v->name && v->value != value)
        v++;
    MM_CHECK(v->name, "%s holds %u, which has no name", row->name, value);
    fputs(v->name, out);
}

static void write_words(FILE *out, char *const *words, size_t n) {
    fputc('[', out);
    for (size_t i = 0; i < n; i++) {
        fputs(i ? ", " : "", out);
        write_text(out, words[i]);
    }
    fputc(']', out);
}

/* One line each. */
static void write_list(FILE *out, const struct mm_config_list *list, const char *elements,
                       size_t n) {
    fputc('[', out);
    for (size_t i = 0; i < n; i++) {
        const char *element = elements + i * list->bytes, *before = i ? ",\n      {" : "{";
        for (size_t r = 0; r < list->rows_n; r++)
            if (!mm_value_absent(&list->rows[r], element)) {
                fprintf(out, "%s%s: ", before, list->rows[r].name);
                mm_value_write(out, &list->rows[r], element);
                before = ", ";
            }
        fputc('}', out);
    }
    fputc(']', out);
}

void mm_value_write(FILE *out, const struct mm_config_row *row, const void *base) {
    const void *field = (const char *)base + row->offset;
    const size_t *count = (const size_t *)((const char *)base + row->count_offset);
    if (mm_value_absent(row, base)) {
        fputs("null", out);
        return;
    }
    switch (row->type) {
    case MM_KEY_INTEGER:
        fprintf(out, "%zu", *(const size_t *)field);
        break;
    case MM_KEY_NUMBER:
        write_number(out, *(const double *)field);
        break;
    case MM_KEY_BOOL:
        fputs(*(const bool *)field ? "true" : "false", out);
        break;
    case MM_KEY_ENUM:
        write_enum(out, row, field);
        break;
    case MM_KEY_TEXT:
    case MM_KEY_PATH:
        write_text(out, *(char *const *)field);
        break;
    case MM_KEY_WORDS:
        write_words(out, *(char **const *)field, *count);
        break;
    case MM_KEY_PAIR:
        fputc('[', out);
        write_number(out, ((const double *)field)[0]);
        fputs(", ", out);
        write_number(out, ((const double *)field)[1]);
        fputc(']', out);
        break;
    case MM_KEY_CHOICES:
    case MM_KEY_ATTACKS:
        write_list(out, mm_config_list(row->type), *(char *const *)field, *count);
        break;
    }
}

/* ---- clear and free ---- */

void mm_values_clear(const struct mm_config_row *rows, size_t n, void *base) {
    for (size_t i = 0; i < n; i++)
        if (rows[i].initial)
            continue;
        else if (rows[i].type == MM_KEY_NUMBER)
            *(double *)((char *)base + rows[i].offset) = NAN;
        else if (rows[i].type == MM_KEY_INTEGER)
            *(size_t *)((char *)base + rows[i].offset) = MM_ABSENT;
        else if (rows[i].type == MM_KEY_ENUM)
            *(unsigned *)((char *)base + rows[i].offset) = MM_ABSENT_CHOICE;
}

static void free_list(const struct mm_config_row *row, void *field, size_t n) {
    void *list = *(void **)field;
    for (size_t i = 0; i < n; i++)
        if (row->type == MM_KEY_WORDS)
            mm_free(((char **)list)[i]);
        else {
            const struct mm_config_list *kind = mm_config_list(row->type);
            mm_values_free(kind->rows, kind->rows_n, (char *)list + i * kind->bytes);
        }
    mm_free(list);
}

void mm_values_free(const struct mm_config_row *rows, size_t n, void *base) {
    for (size_t i = 0; i < n; i++) {
        void *field = (char *)base + rows[i].offset;
        if (rows[i].type == MM_KEY_TEXT || rows[i].type == MM_KEY_PATH)
            mm_free(*(char **)field);
        else if (rows[i].type == MM_KEY_WORDS || mm_config_list(rows[i].type))
            free_list(&rows[i], field, *(size_t *)((char *)base + rows[i].count_offset));
    }
}
