/* evaluate.c - see evaluate.h. */
#include "src/run/evaluate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/queue.h"

/* A file and the tokenizer that made it. */
struct made {
    const char *path, *tokenizer;
};

/* Whether two texts of the attribute name the same tokenizer: where both end in a hash of
 * tokenizer.json, as prepare_data.py writes them, the folders before it may differ. */
static bool same_tokenizer(const char *a, const char *b) {
    const char *hash_a = strstr(a, " sha256:"), *hash_b = strstr(b, " sha256:");
    return strcmp(hash_a && hash_b ? hash_a : a, hash_a && hash_b ? hash_b : b) == 0;
}

/* Ids of one tokenizer mean something else in another, and nothing else would show it. */
static void warn_of_tokenizers(const struct mm_data *data) {
    const struct mm_dataset *sets[] = {&data->retain,
                                       &data->forget,
                                       &data->retain_validation,
                                       &data->forget_validation,
                                       &data->retain_evaluation,
                                       &data->forget_evaluation};
    size_t sets_n = sizeof sets / sizeof *sets;
    struct made first = {0};
    for (size_t i = 0; i < sets_n + data->questions_n; i++) {
        const struct mm_questions *questions = i < sets_n ? NULL : &data->questions[i - sets_n];
        struct made made = questions ? (struct made){questions->path, questions->tokenizer}
                                     : (struct made){sets[i]->path, sets[i]->tokenizer};
        if (made.tokenizer && !first.tokenizer)
            first = made;
        if (!made.tokenizer || same_tokenizer(first.tokenizer, made.tokenizer))
            continue;
        mm_log0(MM_LOG_WARN,
                "%s and %s were made by different tokenizers (%s; %s): the model can know the ids "
                "of one of them only",
                first.path, made.path, first.tokenizer, made.tokenizer);
        return;
    }
}

enum mm_status mm_data_read(struct mm_data *data, const struct mm_config *config, size_t vocab,
                            struct mm_error *err) {
    const struct {
        struct mm_dataset *set;
        const char *path;
    } files[] = {
        {&data->retain, config->data.retain},
        {&data->forget, config->data.forget},
        {&data->retain_validation, config->data.retain_validation},
        {&data->forget_validation, config->data.forget_validation},
        {&data->retain_evaluation, config->data.retain_evaluation},
        {&data->forget_evaluation, config->data.forget_evaluation},
        {&data->kl, config->evaluate.kl.file},
    };
    enum mm_status status = MM_OK;
    *data = (struct mm_data){0};
    for (size_t i = 0; i < sizeof files / sizeof *files && status == MM_OK; i++)
        if (files[i].path)
            status = mm_dataset_read(files[i].set, files[i].path, config->data.context_length,
                                     (uint32_t)vocab, err);
    if (status == MM_OK && data->kl.tokens && data->kl.examples < config->evaluate.kl.rows)
        status = mm_fail(err, MM_BAD_INPUT, "evaluate.kl.rows is %zu, but %s has %zu rows",
                         config->evaluate.kl.rows, data->kl.path, data->kl.examples);
    size_t n = config->evaluate.multiple_choice_n;
    data->questions = mm_calloc(n, sizeof *data->questions);
    for (; data->questions_n < n && status == MM_OK; data->questions_n++)
        status = mm_questions_read(&data->questions[data->questions_n],
                                   config->evaluate.multiple_choice[data->questions_n].file,
                                   (uint32_t)vocab, err);
    if (status == MM_OK)
        warn_of_tokenizers(data);
    return status;
}

void mm_data_free(struct mm_data *data) {
    mm_dataset_free(&data->retain);
    mm_dataset_free(&data->forget);
    mm_dataset_free(&data->retain_validation);
    mm_dataset_free(&data->forget_validation);
    mm_dataset_free(&data->retain_evaluation);
    mm_dataset_free(&data->forget_evaluation);
    mm_dataset_free(&data->kl);
    for (size_t i = 0; i < data->questions_n; i++)
        mm_questions_free(&data->questions[i]);
    mm_free(data->questions);
    *data = (struct mm_data){0};
}

size_t mm_data_longest(const struct mm_data *data, const struct mm_config *config) {
    size_t longest = config->data.context_length;
    for (size_t i = 0; i < data->questions_n; i++)
        if (data->questions[i].longest > longest)
            longest = data->questions[i].longest;
    return longest;
}

struct mm_evaluator *mm_evaluator_create(struct mm_arena *arena, const struct mm_config *config,
                                         const struct mm_data *data, struct mm_comm *comm,
                                         struct mm_model *model) {
    struct mm_evaluator *e = mm_calloc(1, sizeof *e);
    *e = (struct mm_evaluator){.config = config, .data = data, .comm = comm, .model = model};
    e->passes =
        mm_passes_create(arena, comm, model, NULL, mm_batch_size_of(config), MM_PASSES_PLAIN);
    mm_batch_create(&e->batch, arena, &e->passes->share);
    e->loss = mm_arena_take(arena, MM_FOR_SCRATCH, 1, sizeof *e->loss);
    e->terms =
        mm_arena_take(arena, MM_FOR_SCRATCH, mm_share_tokens(&e->passes->share), sizeof *e->terms);
    if (data->kl.tokens)
        e->divergence = mm_divergence_create(arena, config, &data->kl, comm, model);
    if (data->questions_n) {
        size_t count = config->data.micro_batch;
        size_t capacity = count * mm_data_longest(data, config);
        mm_acts_create(&e->acts, arena, model, capacity, NULL, MM_KEEP_ALL);
        mm_scratch_create(&e->scratch, arena, model, capacity, MM_FORWARD_ONLY);
        e->tokens = mm_arena_take(arena, MM_FOR_SCRATCH, capacity, sizeof *e->tokens);
        e->last = mm_arena_mat(arena, MM_FOR_SCRATCH, model->dtype, count, model->arch.width);
        e->logits = mm_arena_mat(arena, MM_FOR_SCRATCH, model->dtype, count, model->arch.vocab);
    }
    return e;
}

void mm_evaluator_free(struct mm_evaluator *e) {
    if (!e)
        return;
    mm_batch_free(&e->batch);
    mm_passes_free(e->passes);
    mm_divergence_free(e->divergence);
    mm_acts_free(&e->acts);
    mm_free(e);
}

/* probability [batch_size] (=) exp(-mean term of the targets) of this rank's sequences of the last
 * batch, from its terms; 0 of others. */
static void take_probabilities(struct mm_evaluator *e, const struct mm_sequences *own,
                               double *probability) {
    const struct mm_share *s = &e->passes->share;
    float *terms = mm_calloc(mm_share_tokens(s), sizeof *terms);
    e->model->dev->queue->download(e->model->dev, terms, e->terms,
                                   mm_share_tokens(s) * sizeof *terms);
    memset(probability, 0, s->batch_size * sizeof *probability);
    for (size_t i = 0; i < s->micros_n; i++)
        for (size_t k = 0; k < mm_share_count(s, i); k++) {
            size_t mine = i * s->micro_batch + k, first = own->answers[mine];
            const float *row = terms + mm_share_row(s, i) + k * e->batch.longest[i];
            double sum = 0, targets = (double)(own->lengths[mine] - (first > 1 ? first : 1));
            for (size_t t = 0; t < own->lengths[mine]; t++)
                sum += (double)row[t];
            probability[mm_share_first(s, i) + k] = exp(-sum / targets);
        }
    mm_free(terms);
}

/* The mean loss; *probability (=) the mean over rows of that of their targets; NULL: not wanted. */
static double mean_loss(struct mm_evaluator *e, const struct mm_dataset *set, double *probability) {
    const struct mm_objective objective = {.fn = MM_LOSS_CROSS_ENTROPY};
    struct mm_passes *p = e->passes;
    struct mm_sequences own = mm_share_sequences(&p->share);
    size_t B = p->share.batch_size, batches = e->config->evaluate.batches;
    double *each = mm_calloc(B, sizeof *each), sum = 0, likely = 0, loss;
    for (size_t i = 0; i < batches; i++) {
        mm_share_read(&p->share, set, i, &own);
        mm_batch_set(&e->batch, 0, &own); /* the batch before was waited for */
        mm_passes_loss(p, &e->batch, objective, e->loss, probability ? e->terms : NULL);
        e->model->dev->queue->download(e->model->dev, &loss, e->loss, sizeof loss);
        sum += loss;
        if (!probability)
            continue;
        take_probabilities(e, &own, each);
        mm_comm_sum(e->comm, each, B);
        for (size_t b = 0; b < B; b++) /* the same order on any number of ranks */
            likely += each[b];
    }
    mm_sequences_free(&own);
    mm_free(each);
    if (probability)
        *probability = likely / (double)(batches * B);
    return sum / (double)batches;
}

void mm_evaluate(struct mm_evaluator *e, struct mm_evaluation *out) {
    const struct mm_data *d = e->data;
    out->forget_loss =
        mean_loss(e, d->forget_evaluation.tokens ? &d->forget_evaluation : &d->forget_validation,
                  &out->forget_answer_probability);
    out->retain_loss = mean_loss(
        e, d->retain_evaluation.tokens ? &d->retain_evaluation : &d->retain_validation, NULL);
    out->kl = e->divergence ? mm_divergence_measure(e->divergence) : NAN;
    for (size_t i = 0; i < d->questions_n; i++)
        out->accuracy[i] = mm_evaluate_questions(
            e, &d->questions[i], e->config->evaluate.multiple_choice[i].temperature);
}

enum mm_status mm_evaluator_keep_start(struct mm_evaluator *e, struct mm_error *err) {
    if (!e->divergence)
        return MM_OK;
    mm_divergence_keep(e->divergence);
    double kl = mm_divergence_measure(e->divergence);
    if (kl != 0)
        return mm_fail(err, MM_FAILED,
                       "evaluate.kl: the model as it is in model.path diverges from itself by %g: "
                       "its logits are not finite, or the same pass gives other bits",
                       kl);
    return MM_OK;
}

void mm_evaluation_clear(struct mm_evaluation *e, size_t questions_n) {
    e->forget_loss = e->retain_loss = e->forget_answer_probability = e->kl = NAN;
    for (size_t i = 0; i < questions_n; i++)
        e->accuracy[i] = NAN;
}

bool mm_evaluation_finite(const struct mm_evaluation *e, size_t questions_n) {
    bool finite = isfinite(e->forget_loss) && isfinite(e->retain_loss) && !isinf(e->kl);
    for (size_t i = 0; i < questions_n; i++)
        finite = finite && isfinite(e->accuracy[i]);
    return finite;
}

/* -- multiple choice ------------------------------------------------------------------------------
 */

static size_t prompt_length(const struct mm_questions *q, size_t i) {
    return (size_t)(q->offsets[i + 1] - q->offsets[i]);
}

struct ranked {
    size_t length, index;
};

static int by_length(const void *left, const void *right) {
    const struct ranked *a = left, *b = right;
    if (a->length != b->length)
        return a->length < b->length ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

/* The questions from short to long, so that a batch holds prompts of like length. */
static struct ranked *rank_by_length(const struct mm_questions *q) {
    struct ranked *order = mm_calloc(q->n, sizeof *order);
    for (size_t i = 0; i < q->n; i++)
        order[i] = (struct ranked){prompt_length(q, i), i};
    qsort(order, q->n, sizeof *order, by_length);
    return order;
}

/* 1 or 0, or the answer's probability, from the logits of the four choices; a choice without a
 * finite logit is no answer, neither a right nor a wrong one: NaN. */
static double score(const float *logits, const uint32_t *choices, uint32_t answer,
                    double temperature) {
    double right = (double)logits[choices[answer]], sum = 0;
    bool beaten = false;
    for (uint32_t c = 0; c < 4; c++) {
        double other = (double)logits[choices[c]];
        if (!isfinite(other))
            return NAN;
        beaten = beaten || other > right || (other == right && c < answer);
        sum += exp((other - right) / (temperature == 0 ? 1 : temperature));
    }
    return temperature == 0 ? !beaten : 1 / sum;
}

/* Of a batch of questions in host memory, in float32; before that, if it is another dtype, as they
 * are computed. */
static size_t question_logits(const struct mm_evaluator *e) {
    return e->data->questions_n ? e->config->data.micro_batch * e->model->arch.vocab : 0;
}

size_t mm_evaluator_bytes(const struct mm_evaluator *e) {
    size_t each = sizeof(float);
    if (e->model->dtype != MM_F32)
        each += mm_dtype_bytes(e->model->dtype);
    return question_logits(e) * each + (e->divergence ? mm_divergence_bytes(e->divergence) : 0);
}

/* Prompts are padded at the right: causal attention never sees the padding. */
static double score_batch(struct mm_evaluator *e, const struct mm_questions *q,
                          const struct ranked *batch, size_t count, double temperature,
                          uint32_t *tokens, float *host) {
    struct mm_device *dev = e->model->dev;
    size_t T = batch[count - 1].length, C = e->model->arch.width, V = e->model->arch.vocab;
    struct mm_layer_hook none = {0};
    mm_comm_pass(e->comm);
    memset(tokens, 0, count * T * sizeof *tokens);
    for (size_t i = 0; i < count; i++)
        memcpy(tokens + i * T, q->prompts + q->offsets[batch[i].index],
               batch[i].length * sizeof *tokens);
    dev->queue->upload(dev, e->tokens, tokens, count * T * sizeof *tokens);
    mm_forward(e->model, &e->acts, &e->scratch, e->tokens, count, T, none);
    for (size_t i = 0; i < count; i++)
        dev->queue->copy(dev, mm_mat_rows(e->last, i, 1).data,
                         mm_mat_rows(e->acts.hidden, i * T + batch[i].length - 1, 1).data,
                         C * mm_dtype_bytes(e->last.dtype));
    struct mm_mat logits = mm_mat_rows(e->logits, 0, count);
    dev->ops->linear(dev, logits, mm_mat_rows(e->last, 0, count),
                     e->model->params[e->model->head_part].w, NULL, MM_SET);
    mm_download_floats(dev, host, logits.dtype, logits.data, logits.rows * logits.cols);
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += score(host + i * V, q->choices + 4 * batch[i].index, q->answers[batch[i].index],
                     temperature);
    return sum;
}

double mm_evaluate_questions(struct mm_evaluator *e, const struct mm_questions *q,
                             double temperature) {
    size_t most = e->config->data.micro_batch;
    size_t R = (size_t)mm_comm_size(e->comm), r = (size_t)mm_comm_rank(e->comm);
    size_t batches = mm_leaves(q->n, most);
    struct ranked *order = rank_by_length(q);
    uint32_t *tokens = mm_calloc(most * q->longest, sizeof *tokens);
    float *host = mm_calloc(question_logits(e), sizeof *host);
    double *sums = mm_calloc(batches, sizeof *sums), sum = 0;
    for (size_t first = 0; first < batches; first += R) { /* a batch is the same for any R */
        size_t i = first + r;
        if (i < batches)
            sums[i] = score_batch(e, q, order + i * most, i + 1 < batches ? most : q->n - i * most,
                                  temperature, tokens, host);
        else
            mm_forward_none(e->model, e->model->arch.layers - 1);
    }
    mm_comm_sum(e->comm, sums, batches);
    for (size_t i = 0; i < batches; i++)
        sum += sums[i];
    mm_free(sums);
    mm_free(order);
    mm_free(tokens);
    mm_free(host);
    return sum / (double)q->n;
}
