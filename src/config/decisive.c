/* decisive.c - see decisive.h. */
#include "src/config/decisive.h"

#include "src/config/value.h"

#include <stdlib.h>
#include <string.h>

/* Where results are written to is the same on every rank; where inputs lie need not be. */
static bool is_input(const struct mm_config_row *row) {
    return row->type == MM_KEY_PATH && row->offset != offsetof(struct mm_config, output.dir);
}

/* The question files without their paths; the caller frees the list. */
static struct mm_multiple_choice *without_paths(const struct mm_config *config) {
    static char none[] = "";
    size_t n = config->evaluate.multiple_choice_n;
    struct mm_multiple_choice *all = mm_calloc(n, sizeof *all);
    for (size_t i = 0; i < n; i++) {
        all[i] = config->evaluate.multiple_choice[i];
        all[i].file = none;
    }
    return all;
}

/* The value on one line: a list is written on several. */
static void write_value(FILE *out, const struct mm_config_row *row, const void *base) {
    char *text = NULL;
    size_t n = 0;
    FILE *value = open_memstream(&text, &n);
    MM_CHECK(value, "out of memory");
    mm_value_write(value, row, base);
    MM_CHECK(fclose(value) == 0, "out of memory");
    for (const char *c = text; *c; c++)
        if (*c != '\n')
            fputc(*c, out);
        else
            c += strspn(c + 1, " ");
    free(text);
}

char *mm_config_lines(const struct mm_config *config, enum mm_which_keys which) {
    struct mm_config plain = *config;
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    MM_CHECK(out, "out of memory");
    struct mm_multiple_choice *choices = without_paths(config);
    if (which != MM_KEYS_PATHS)
        plain.evaluate.multiple_choice = choices;
    for (size_t i = 0; i < mm_config_rows_n; i++) {
        const struct mm_config_row *row = &mm_config_rows[i];
        if (which == MM_KEYS_DECISIVE && row->flags & MM_KEY_ASIDE)
            continue;
        fprintf(out, "%s: ", row->name);
        if (which != MM_KEYS_PATHS && is_input(row) && !mm_value_absent(row, &plain))
            fputs("given", out);
        else
            write_value(out, row, &plain);
        fputc('\n', out);
    }
    mm_free(choices);
    MM_CHECK(fclose(out) == 0, "out of memory");
    char *lines = mm_strdup(text);
    free(text); /* open_memstream's, not ours to count */
    return lines;
}

/* Copies what stands before the end of the line, cut to the room there is. */
static void take(char *to, size_t room, const char *from, size_t bytes) {
    snprintf(to, room, "%.*s", (int)(bytes < room ? bytes : room - 1), from);
}

bool mm_lines_differ(const char **left, const char **right, struct mm_line_difference *found) {
    while (**left && **right) {
        const char *a = *left, *b = *right;
        size_t a_n = strcspn(a, "\n"), b_n = strcspn(b, "\n"), key = strcspn(a, ":\n");
        *left += a_n + (a[a_n] == '\n');
        *right += b_n + (b[b_n] == '\n');
        if (a_n == b_n && strncmp(a, b, a_n) == 0)
            continue;
        size_t value = key + 2 < a_n && key + 2 < b_n ? key + 2 : 0;
        take(found->key, sizeof found->key, a, key);
        take(found->left, sizeof found->left, a + value, a_n - value);
        take(found->right, sizeof found->right, b + value, b_n - value);
        return true;
    }
    return false;
}
