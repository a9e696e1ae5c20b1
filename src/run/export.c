/* export.c - the unlearned model as a Hugging Face folder; see export.h. */
#include "src/run/export.h"

#include "io/files.h"

#include "kernels/queue.h"

/* The sums of all ranks' reports. Collective. */
static void tell(const struct mm_job *job, const struct mm_shard *s, const char *out,
                 const struct mm_export_report *own) {
    double all[] = {(double)own->changed, (double)own->lost, (double)own->overflowed};
    mm_comm_sum(job->comm, all, 3);
    mm_log0(MM_LOG_INFO,
            "saved %s: %.0f of %.0f intervened weights changed, %.2g %% of the changes lost to "
            "rounding",
            out, all[0], s->layout.total, all[0] > 0 ? 100.0 * all[1] / all[0] : 0.0);
    if (all[2] > 0)
        mm_log0(MM_LOG_WARN,
                "%.0f weights are too large for the saved dtype and became infinite: set "
                "output.save_dtype",
                all[2]);
}

static enum mm_status begin(const struct mm_job *job, const struct mm_weights_export *e,
                            struct mm_error *err) {
    enum mm_status status = mm_owner_check(job->owner, err);
    if (status == MM_OK)
        status = mm_folder_remove(e->out, err);
    return status == MM_OK ? mm_weights_export_begin(e, err) : status;
}

/* An owner that was taken for dead must not publish. */
static enum mm_status end(const struct mm_job *job, const struct mm_weights_export *e,
                          enum mm_status status, struct mm_error *err) {
    if (status == MM_OK)
        status = mm_owner_check(job->owner, err);
    return mm_weights_export_end(e, status, err);
}

/* This rank's rows of a tensor, in device memory. */
struct own_rows {
    struct mm_device *dev;
    const char *rows;
    enum mm_dtype dtype;
};

static void read_own(const void *data, size_t first, size_t n, float *floats) {
    const struct own_rows *own = data;
    mm_download_floats(own->dev, floats, own->dtype, own->rows + first * mm_dtype_bytes(own->dtype),
                       n);
}

static enum mm_status write_rows(const struct mm_job *job, const struct mm_shard *s,
                                 struct mm_vector w, const struct mm_weights_export *e,
                                 struct mm_export_report *report, struct mm_error *err) {
    struct mm_replacement *replaced = mm_calloc(s->tensors_n, sizeof *replaced);
    struct own_rows *own = mm_calloc(s->tensors_n, sizeof *own);
    for (size_t t = 0; t < s->tensors_n; t++) {
        const struct mm_param *p = &s->model->params[s->param[t]];
        own[t] = (struct own_rows){
            job->dev, (char *)w.data + s->layout.offsets[t] * mm_dtype_bytes(w.dtype), w.dtype};
        replaced[t] = (struct mm_replacement){p->name, &own[t], p->rows * p->cols};
    }
    enum mm_status status = mm_weights_export_rows(
        e, replaced, s->tensors_n, mm_comm_size(job->comm), mm_comm_rank(job->comm), report, err);
    mm_free(replaced);
    mm_free(own);
    return status;
}

enum mm_status mm_export(const struct mm_job *job, const struct mm_shard *s, struct mm_vector w,
                         struct mm_error *err) {
    static const enum mm_dtype dtypes[] = {MM_F32, MM_F32, MM_BF16, MM_F16};
    enum mm_save_dtype save = job->config->output.save_dtype;
    char *out = mm_format("%s/model", job->config->output.dir);
    const struct mm_weights_export e = {.weights = job->weights,
                                        .out = out,
                                        .save_dtype = save == MM_SAVE_STORED ? NULL : &dtypes[save],
                                        .read = read_own};
    struct mm_export_report report;
    bool first = mm_comm_rank(job->comm) == 0;
    mm_job_watch_files(job, "export", MM_UNNUMBERED);
    enum mm_status status = mm_comm_agree(job->comm, first ? begin(job, &e, err) : MM_OK, err);
    if (status == MM_OK) {
        status = mm_comm_agree(job->comm, write_rows(job, s, w, &e, &report, err), err);
        if (first)
            status = end(job, &e, status, err);
        status = mm_comm_agree(job->comm, status, err);
    }
    if (status == MM_OK)
        tell(job, s, out, &report);
    mm_free(out);
    return status;
}
