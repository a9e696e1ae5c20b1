/* resume.c - see resume.h. */
#include "src/run/resume.h"

#include "io/files.h"
#include "src/config/decisive.h"
#include "src/config/table.h"

#include <string.h>

/* config.yaml of the run folder as a resume would read it; false, with the reason, if it cannot. */
static bool read_edited(struct mm_config *edited, const char *run_dir, char *const *overrides,
                        size_t overrides_n, struct mm_error *err) {
    char *path = mm_format("%s/config.yaml", run_dir);
    *err = (struct mm_error){""};
    bool readable = mm_path_exists(path) &&
                    mm_config_read(edited, path, overrides, overrides_n, MM_RESUME, err) == MM_OK;
    mm_free(path);
    return readable;
}

static char **path_of(const struct mm_config_row *row, struct mm_config *config) {
    return (char **)((char *)config + row->offset);
}

enum mm_status mm_resume_find_inputs(struct mm_config *config, const char *run_dir,
                                     struct mm_error *err) {
    struct mm_config edited = {0};
    struct mm_error unused;
    enum mm_status status = MM_OK;
    bool readable = read_edited(&edited, run_dir, NULL, 0, &unused);
    for (size_t i = 0; i < mm_config_rows_n && status == MM_OK; i++) {
        const struct mm_config_row *row = &mm_config_rows[i];
        bool read = strncmp(row->name, "data.", 5) == 0 || strncmp(row->name, "model.", 6) == 0;
        if (row->type != MM_KEY_PATH || !read)
            continue;
        char **path = path_of(row, config), *other = readable ? *path_of(row, &edited) : NULL;
        if (!*path || mm_path_exists(*path))
            continue;
        if (!other || !mm_path_exists(other)) {
            status = mm_fail(err, MM_BAD_INPUT,
                             "%s: %s is not there any more: if it was moved, say where it is: "
                             "%s=PATH",
                             row->name, *path, row->name);
        } else {
            mm_free(*path);
            *path = mm_strdup(other);
        }
    }
    mm_config_free(&edited);
    return status;
}

static void warn_differences(const char *path, const char *there, const char *here) {
    struct mm_line_difference d;
    while (mm_lines_differ(&there, &here, &d)) {
        const struct mm_config_row *row = mm_config_row(d.key);
        bool can_change = row && row->flags & MM_KEY_RESUMABLE;
        mm_log0(MM_LOG_WARN,
                "%s: %s is %s there, but a resume goes by the checkpoint, which has %s: %s", path,
                d.key, d.left, d.right,
                can_change ? "give an argument to change it" : "it shaped the finished loops");
    }
}

void mm_resume_warn_edited(const char *run_dir, const struct mm_config *config,
                           char *const *overrides, size_t overrides_n) {
    struct mm_config edited = {0};
    struct mm_error err;
    char *path = mm_format("%s/config.yaml", run_dir);
    bool readable = read_edited(&edited, run_dir, overrides, overrides_n, &err);
    if (!readable && *err.text)
        mm_log0(MM_LOG_WARN, "%s; a resume goes by the checkpoint's settings", err.text);
    if (readable) {
        mm_free(edited.output.dir); /* the folder may have been moved */
        edited.output.dir = mm_strdup(config->output.dir);
        char *there = mm_config_lines(&edited, MM_KEYS_PATHS);
        char *here = mm_config_lines(config, MM_KEYS_PATHS);
        warn_differences(path, there, here);
        mm_free(there);
        mm_free(here);
    }
    mm_config_free(&edited);
    mm_free(path);
}
