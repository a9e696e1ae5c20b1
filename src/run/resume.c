/* resume.c - see resume.h. */
#include "src/run/resume.h"

#include "io/files.h"
#include "src/config/decisive.h"
#include "src/config/table.h"

#include <string.h>

enum mm_status mm_resume_check_inputs(const struct mm_config *config, struct mm_error *err) {
    for (size_t i = 0; i < mm_config_rows_n; i++) {
        const struct mm_config_row *row = &mm_config_rows[i];
        bool read = strncmp(row->name, "data.", 5) == 0 || strncmp(row->name, "model.", 6) == 0;
        if (row->type != MM_KEY_PATH || !read)
            continue;
        const char *path = *(char *const *)((const char *)config + row->offset);
        if (path && !mm_path_exists(path))
            return mm_fail(err, MM_BAD_INPUT,
                           "%s: %s is not there any more: if it was moved, say where it is: "
                           "%s=PATH",
                           row->name, path, row->name);
    }
    return MM_OK;
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
    bool exists = mm_path_exists(path);
    bool readable =
        exists && mm_config_read(&edited, path, overrides, overrides_n, MM_RESUME, &err) == MM_OK;
    if (exists && !readable)
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
