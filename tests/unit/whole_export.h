/* whole_export.h - exports a model folder without the ranks of a job. */
#ifndef MM_WHOLE_EXPORT_H
#define MM_WHOLE_EXPORT_H

#include "io/weights.h"

/* As a job of one rank. report may be NULL. */
static inline enum mm_status export_whole(const struct mm_weights *weights, const char *out,
                                          const struct mm_replacement *replacements, size_t n,
                                          const enum mm_dtype *dtype,
                                          struct mm_export_report *report, struct mm_error *err) {
    const struct mm_weights_export e = {.weights = weights, .out = out, .save_dtype = dtype};
    struct mm_export_report unused;
    enum mm_status status = mm_weights_export_begin(&e, err);
    if (status != MM_OK)
        return status;
    status = mm_weights_export_rows(&e, replacements, n, 1, 0, report ? report : &unused, err);
    return mm_weights_export_end(&e, status, err);
}

#endif
