/* divergence.c - see divergence.h. */
#include "src/run/divergence.h"

#include <math.h>

#include "kernels/queue.h"

struct mm_divergence {
    const struct mm_dataset *set; /* borrowed, as comm and model */
    struct mm_comm *comm;
    struct mm_model *model;
    struct mm_passes *passes; /* all rows are one batch */
    struct mm_batch batch;
    struct mm_sequences own;
    char *start;    /* [share·T, V], of the model's type; NULL: nothing kept */
    char *now;      /* [a chunk, V], while a pass is made */
    double *values; /* [share·T] of positions */
};

struct mm_divergence *mm_divergence_create(struct mm_arena *arena, const struct mm_config *config,
                                           const struct mm_dataset *set, struct mm_comm *comm,
                                           struct mm_model *model) {
    struct mm_divergence *d = mm_calloc(1, sizeof *d);
    struct mm_batch_size size = mm_batch_size_of(config);
    size.sequences = config->evaluate.kl.rows;
    *d = (struct mm_divergence){.set = set, .comm = comm, .model = model};
    d->passes = mm_passes_create(arena, comm, model, NULL, size, MM_PASSES_PLAIN);
    mm_batch_create(&d->batch, arena, &d->passes->share);
    d->own = mm_share_sequences(&d->passes->share);
    d->values = mm_calloc(mm_share_tokens(&d->passes->share), sizeof *d->values);
    return d;
}

void mm_divergence_free(struct mm_divergence *d) {
    if (!d)
        return;
    mm_sequences_free(&d->own);
    mm_batch_free(&d->batch);
    mm_passes_free(d->passes);
    mm_free(d->start);
    mm_free(d->values);
    mm_free(d);
}

static size_t row_bytes(const struct mm_divergence *d) {
    return d->model->arch.vocab * mm_dtype_bytes(d->model->dtype);
}

static size_t start_bytes(const struct mm_divergence *d) {
    return mm_share_tokens(&d->passes->share) * row_bytes(d);
}

static size_t now_bytes(const struct mm_divergence *d) {
    return d->passes->head.rows * row_bytes(d);
}

size_t mm_divergence_bytes(const struct mm_divergence *d) {
    return start_bytes(d) + now_bytes(d);
}

static void begin(struct mm_divergence *d) {
    mm_share_read(&d->passes->share, d->set, 0, &d->own);
    mm_batch_set(&d->batch, 0, &d->own); /* the pass before was waited for */
}

static void keep_rows(void *self, size_t row, struct mm_mat logits) {
    struct mm_divergence *d = self;
    d->model->dev->queue->download(d->model->dev, d->start + row * row_bytes(d), logits.data,
                                   logits.rows * row_bytes(d));
}

void mm_divergence_keep(struct mm_divergence *d) {
    if (!d->start)
        d->start = mm_calloc(start_bytes(d), 1);
    begin(d);
    mm_passes_see_logits(d->passes, &d->batch, keep_rows, d);
}

static double logit(const char *row, enum mm_dtype dtype, size_t i) {
    return dtype == MM_F32 ? (double)((const float *)row)[i]
                           : (double)mm_f32_from_bf16(((const uint16_t *)row)[i]);
}

/* log(sum of e^logit) */
static double log_sum(const char *row, enum mm_dtype dtype, size_t V) {
    double most = -INFINITY, sum = 0;
    for (size_t i = 0; i < V; i++)
        most = fmax(most, logit(row, dtype, i));
    for (size_t i = 0; i < V; i++)
        sum += exp(logit(row, dtype, i) - most);
    return most + log(sum);
}

/* sum of p·(log p - log q), p of the row `from`, q of `to`; 0·log 0 is 0. */
static double row_divergence(const char *from, const char *to, enum mm_dtype dtype, size_t V) {
    double from_sum = log_sum(from, dtype, V), to_sum = log_sum(to, dtype, V), sum = 0;
    for (size_t i = 0; i < V; i++) {
        double log_p = logit(from, dtype, i) - from_sum, p = exp(log_p);
        if (p != 0)
            sum += p * (log_p - (logit(to, dtype, i) - to_sum));
    }
    return sum;
}

static void compare_rows(void *self, size_t row, struct mm_mat logits) {
    struct mm_divergence *d = self;
    d->model->dev->queue->download(d->model->dev, d->now, logits.data, logits.rows * row_bytes(d));
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < logits.rows; i++)
        d->values[row + i] = row_divergence(d->start + (row + i) * row_bytes(d),
                                            d->now + i * row_bytes(d), logits.dtype, logits.cols);
}

/* sums [rows of all ranks] (=) of the valid positions of this rank's rows; 0 of others. */
static void add_positions(const struct mm_divergence *d, double *sums) {
    const struct mm_share *s = &d->passes->share;
    for (size_t i = 0; i < s->micros_n; i++)
        for (size_t k = 0; k < mm_share_count(s, i); k++)
            for (size_t t = 0; t < d->own.lengths[i * s->micro_batch + k]; t++)
                sums[mm_share_first(s, i) + k] +=
                    d->values[mm_share_row(s, i) + k * d->batch.longest[i] + t];
}

double mm_divergence_measure(struct mm_divergence *d) {
    size_t rows = d->passes->share.batch_size;
    if (!d->start)
        return NAN;
    double *sums = mm_calloc(rows, sizeof *sums), sum = 0;
    d->now = mm_calloc(now_bytes(d), 1);
    begin(d);
    mm_passes_see_logits(d->passes, &d->batch, compare_rows, d);
    add_positions(d, sums);
    mm_comm_sum(d->comm, sums, rows);
    for (size_t i = 0; i < rows; i++) /* the same order on any number of ranks */
        sum += sums[i];
    mm_free(d->now);
    mm_free(sums);
    double mean = sum / d->own.counts.tokens;
    return isnan(mean) ? INFINITY : mean;
}
