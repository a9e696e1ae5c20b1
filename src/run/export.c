/* export.c - the unlearned model as a Hugging Face folder; see export.h. */
#include "src/run/export.h"

#include "io/files.h"
#include "src/parallel/collect.h"

static enum mm_status write_model(const struct mm_job *job, const struct mm_shard *s,
                                  const struct mm_replacement *replaced, struct mm_error *err) {
    const struct mm_config *c = job->config;
    static const enum mm_dtype dtypes[] = {MM_F32, MM_F32, MM_BF16, MM_F16};
    enum mm_dtype dtype = dtypes[c->output.save_dtype];
    char *out = mm_format("%s/model", c->output.dir);
    struct mm_export_report report = {0};
    enum mm_status status = mm_folder_remove(out, err);
    if (status == MM_OK)
        status =
            mm_weights_export(job->weights, out, replaced, s->tensors_n,
                              c->output.save_dtype == MM_SAVE_STORED ? NULL : &dtype, &report, err);
    if (status == MM_OK)
        mm_log0(MM_LOG_INFO,
                "saved %s: %zu of %.0f intervened weights changed, %.2g %% of the changes lost to "
                "rounding",
                out, report.changed, s->layout.total,
                report.changed ? 100.0 * (double)report.lost / (double)report.changed : 0.0);
    if (status == MM_OK && report.overflowed)
        mm_log0(MM_LOG_WARN,
                "%zu weights are too large for the saved dtype and became infinite: set "
                "output.save_dtype",
                report.overflowed);
    mm_free(out);
    return status;
}

enum mm_status mm_export(const struct mm_job *job, const struct mm_shard *s, struct mm_vector w,
                         struct mm_error *err) {
    bool writes = mm_comm_rank(job->comm) == 0;
    enum mm_status status = MM_OK;
    mm_job_watch_files(job, "export", MM_UNNUMBERED);
    struct mm_replacement *replaced = mm_calloc(s->tensors_n, sizeof *replaced);
    for (size_t t = 0; t < s->tensors_n; t++) {
        const struct mm_param *p = &s->model->params[s->param[t]];
        float *whole = mm_collect(s, w, t);
        replaced[t] = (struct mm_replacement){p->name, writes ? whole : NULL, p->rows * p->cols};
        if (!writes)
            mm_free(whole);
    }
    if (writes)
        status = mm_owner_check(job->owner, err);
    if (writes && status == MM_OK)
        status = write_model(job, s, replaced, err);
    for (size_t t = 0; t < s->tensors_n; t++)
        mm_free((float *)replaced[t].data);
    mm_free(replaced);
    return mm_comm_agree(job->comm, status, err);
}
