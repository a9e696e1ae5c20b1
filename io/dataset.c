/* dataset.c - see dataset.h.
 *
 * Data files come from anywhere. Before anything is allocated, a dataset's shape is held against
 * what the file can hold (mm_h5_check_stored); each value is then read in 64 bits, of the sign it
 * has in the file, and compared with its limit before it becomes 32 bits. */
#include "io/dataset.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "io/files.h"
#include "io/h5.h"

enum { READ_ELEMENTS = 1 << 16, NAMED = 4 /* of the datasets that are not read */ };

/* A file and one dataset of whole numbers in it, of one or two dimensions. */
struct integers {
    const char *path, *name;
    hid_t file, set;
    int rank;
    size_t rows, cols; /* cols == 1 where rank == 1 */
    bool is_signed;
};

/* What a value must be below, and what that limit is, for the text. */
struct limit {
    uint64_t below;
    const char *what;
};

static void close_integers(struct integers *in) {
    mm_h5_close(in->set);
    in->set = -1;
}

/* Opens dataset `name` of in->file; close_integers afterwards. */
static enum mm_status open_integers(struct integers *in, const char *name, int rank,
                                    struct mm_error *err) {
    hsize_t dims[2] = {0, 1};
    in->name = name;
    in->rank = rank;
    enum mm_status status = mm_h5_open_dataset(&in->set, in->file, in->path, name, err);
    if (status != MM_OK)
        return status;
    hid_t type = H5Dget_type(in->set);
    if (type < 0)
        status = mm_h5_fail(err, MM_BAD_INPUT, "%s: cannot read the type of '%s'", in->path, name);
    else if (H5Tget_class(type) != H5T_INTEGER)
        status = mm_fail(err, MM_BAD_INPUT, "%s: '%s' does not hold integers", in->path, name);
    else
        status = mm_h5_dims(in->set, in->path, name, rank, dims, err);
    if (status == MM_OK) {
        in->is_signed = H5Tget_sign(type) == H5T_SGN_2;
        in->rows = dims[0];
        in->cols = dims[1];
        status = mm_h5_check_stored(in->set, in->path, name, rank, dims, err);
    }
    mm_h5_close(type);
    if (status != MM_OK)
        close_integers(in);
    return status;
}

static enum mm_status bad_value(const struct integers *in, size_t row, size_t col, int64_t value,
                                struct limit limit, struct mm_error *err) {
    char place[64], number[32];
    if (in->rank == 2)
        snprintf(place, sizeof place, "row %zu, column %zu", row, col);
    else
        snprintf(place, sizeof place, "element %zu", row);
    if (in->is_signed)
        snprintf(number, sizeof number, "%" PRId64, value);
    else
        snprintf(number, sizeof number, "%" PRIu64, (uint64_t)value);
    return mm_fail(err, MM_BAD_INPUT, "%s: %s of '%s' is %s: it must be from 0 to %" PRIu64 " (%s)",
                   in->path, place, in->name, number, limit.below - 1, limit.what);
}

/* The first `cols` columns of all rows into `out`, u32 or u64 by `bytes`. limit.below is at most
 * 2^32 for u32. A negative number, as unsigned, is above every limit but 2^64, which none is. */
static enum mm_status read_integers(const struct integers *in, size_t cols, struct limit limit,
                                    size_t bytes, void *out, struct mm_error *err) {
    size_t step = cols < READ_ELEMENTS ? READ_ELEMENTS / cols : 1;
    step = step < in->rows ? step : in->rows;
    uint64_t *values = mm_calloc(step * cols, sizeof *values);
    enum mm_status status = MM_OK;
    for (size_t row = 0; status == MM_OK && row < in->rows; row += step) {
        size_t count = in->rows - row < step ? in->rows - row : step;
        if (!mm_h5_read_rows(in->set, in->is_signed ? H5T_NATIVE_INT64 : H5T_NATIVE_UINT64, row,
                             count, cols, values)) {
            status = mm_h5_fail(err, MM_BAD_INPUT, "%s: cannot read '%s'", in->path, in->name);
            break;
        }
        for (size_t i = 0; status == MM_OK && i < count * cols; i++) {
            if (values[i] >= limit.below)
                status = bad_value(in, row + i / cols, i % cols, (int64_t)values[i], limit, err);
            else if (bytes == 4)
                ((uint32_t *)out)[row * cols + i] = (uint32_t)values[i];
            else
                ((uint64_t *)out)[row * cols + i] = values[i];
        }
    }
    mm_free(values);
    return status;
}

/* The attribute vocab_size, 0 where there is none, and the limit of a token: of the caller's
 * vocabulary, or of the attribute where the caller has none. */
static enum mm_status token_limit(const struct integers *in, uint32_t vocab_size,
                                  uint32_t *attribute, struct limit *limit, struct mm_error *err) {
    uint64_t value = 0;
    enum mm_status status = MM_OK;
    if (mm_h5_has_attribute(in->file, "vocab_size"))
        status = mm_h5_get_count(in->file, in->path, "vocab_size", UINT32_MAX, &value, err);
    *attribute = (uint32_t)value;
    if (vocab_size)
        *limit = (struct limit){vocab_size, "the model's vocabulary"};
    else if (value)
        *limit = (struct limit){value, "the file's vocab_size"};
    else
        *limit = (struct limit){(uint64_t)1 << 32, "32 bits"};
    return status;
}

/* The attribute tokenizer, which is for people: NULL where it is missing or no text. */
static char *tokenizer_of(hid_t file, const char *path) {
    struct mm_error unused;
    char *text = NULL;
    if (mm_h5_has_attribute(file, "tokenizer"))
        mm_h5_get_text(file, path, "tokenizer", &text, &unused);
    return text;
}

/* The names of a token file's datasets that are not read. */
struct strangers {
    char *names;
    size_t n;
};

static herr_t add_stranger(hid_t file, const char *name, const H5L_info_t *info, void *data) {
    static const char *const known[] = {"tokens", "lengths", "answer_from"};
    struct strangers *strangers = data;
    (void)file, (void)info;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(name, known[i]) == 0)
            return 0;
    if (strangers->n++ < NAMED) {
        char *names = mm_format("%s%s'%s'", strangers->names ? strangers->names : "",
                                strangers->names ? ", " : "", name);
        mm_free(strangers->names);
        strangers->names = names;
    }
    return 0;
}

static void warn_of_strangers(const struct integers *in) {
    struct strangers strangers = {0};
    H5Literate(in->file, H5_INDEX_NAME, H5_ITER_INC, NULL, add_stranger, &strangers);
    if (strangers.n)
        mm_log0(MM_LOG_WARN,
                "%s: %s%s: not read; how long a row is stands in 'lengths', where its answer "
                "begins in 'answer_from'",
                in->path, strangers.names, strangers.n > NAMED ? " and others" : "");
    mm_free(strangers.names);
}

/* Reads all of dataset `name`, [rows] or [rows, cols] (cols > 0), into a new *out; *rows is checked
 * where it is not 0, else set. */
static enum mm_status read_whole(struct integers *in, const char *name, size_t *rows, size_t cols,
                                 struct limit limit, size_t bytes, void **out,
                                 struct mm_error *err) {
    enum mm_status status = open_integers(in, name, cols ? 2 : 1, err);
    if (status != MM_OK)
        return status;
    if ((*rows && in->rows != *rows) || (cols && in->cols != cols))
        status = mm_fail(err, MM_BAD_INPUT, "%s: '%s' is [%zu, %zu], not [%zu, %zu]", in->path,
                         name, in->rows, in->cols, *rows ? *rows : in->rows, cols ? cols : 1);
    if (status == MM_OK) {
        *rows = in->rows;
        *out = mm_calloc(in->rows * in->cols, bytes);
        status = read_integers(in, in->cols, limit, bytes, *out, err);
    }
    close_integers(in);
    return status;
}

/* The numbers of a row, as /lengths and /answer_from have them, for the columns that are used: the
 * padding is replaced, so that nothing can depend on it. */
static enum mm_status settle_row(struct mm_dataset *set, size_t row, struct mm_error *err) {
    size_t T = set->context_length;
    uint32_t *length = &set->lengths[row], *answer = &set->answers[row];
    uint32_t whole = *length, *tokens = set->tokens + row * T;
    *length = whole < T ? whole : (uint32_t)T;
    if (*answer == 0)
        *answer = 1; /* the first token is nobody's next one */
    if (*answer >= *length)
        return mm_fail(err, MM_BAD_INPUT,
                       "%s: row %zu has nothing to learn in its first %zu tokens: its length is "
                       "%u, and its answer begins at token %u",
                       set->path, row, T, whole, *answer);
    for (size_t i = *length; i < T; i++)
        tokens[i] = tokens[0];
    return MM_OK;
}

/* Reads one of the two datasets into *values [examples], `absent` for all where there is none. */
static enum mm_status read_row_numbers(struct integers *in, const char *name, uint32_t absent,
                                       const struct mm_dataset *set, uint32_t **values,
                                       struct mm_error *err) {
    size_t rows = set->examples;
    struct limit limit = {set->context + 1, "the row's width"};
    if (mm_h5_has(in->file, name))
        return read_whole(in, name, &rows, 0, limit, 4, (void **)values, err);
    *values = mm_calloc(rows, sizeof **values);
    for (size_t i = 0; i < rows; i++)
        (*values)[i] = absent;
    return MM_OK;
}

static enum mm_status read_lengths(struct integers *in, struct mm_dataset *set,
                                   struct mm_error *err) {
    enum mm_status status = MM_OK;
    if (!mm_h5_has(in->file, "lengths") && !mm_h5_has(in->file, "answer_from"))
        return MM_OK;
    status = read_row_numbers(in, "lengths", (uint32_t)set->context, set, &set->lengths, err);
    if (status == MM_OK)
        status = read_row_numbers(in, "answer_from", 0, set, &set->answers, err);
    for (size_t row = 0; row < set->examples && status == MM_OK; row++)
        status = settle_row(set, row, err);
    return status;
}

enum mm_status mm_dataset_read(struct mm_dataset *set, const char *path, size_t context_length,
                               uint32_t vocab_size, struct mm_error *err) {
    struct integers in = {.path = path, .file = -1, .set = -1};
    struct limit limit;
    *set = (struct mm_dataset){.path = mm_strdup(path)};
    enum mm_status status = mm_h5_open(&in.file, path, err);
    if (status == MM_OK)
        status = token_limit(&in, vocab_size, &set->vocab_size, &limit, err);
    if (status == MM_OK)
        status = open_integers(&in, "tokens", 2, err);
    if (status == MM_OK) {
        set->examples = in.rows;
        set->context = in.cols;
        set->context_length = context_length ? context_length : in.cols;
        if (set->context_length > in.cols)
            status = mm_fail(err, MM_BAD_INPUT,
                             "'%s' has sequences of %zu tokens, fewer than context_length %zu",
                             path, in.cols, context_length);
    }
    if (status == MM_OK) {
        set->tokens = mm_calloc(set->examples * set->context_length, sizeof *set->tokens);
        status = read_integers(&in, set->context_length, limit, 4, set->tokens, err);
    }
    close_integers(&in);
    if (status == MM_OK)
        status = read_lengths(&in, set, err);
    if (status == MM_OK) {
        set->tokenizer = tokenizer_of(in.file, path);
        warn_of_strangers(&in);
    }
    mm_h5_close(in.file);
    if (status != MM_OK)
        mm_dataset_free(set);
    return status;
}

void mm_dataset_free(struct mm_dataset *set) {
    if (!set->rows) { /* else borrowed */
        mm_free(set->path);
        mm_free(set->tokenizer);
        mm_free(set->tokens);
        mm_free(set->lengths);
        mm_free(set->answers);
    }
    mm_free(set->rows);
    *set = (struct mm_dataset){0};
}

void mm_dataset_hash(const struct mm_dataset *set, char hex[33]) {
    const uint64_t shape[2] = {set->examples, set->context_length};
    struct mm_hash *hash = mm_hash_begin();
    mm_hash_add(hash, shape, sizeof shape);
    mm_hash_add(hash, set->tokens, set->examples * set->context_length * sizeof *set->tokens);
    if (set->lengths) {
        mm_hash_add(hash, set->lengths, set->examples * sizeof *set->lengths);
        mm_hash_add(hash, set->answers, set->examples * sizeof *set->answers);
    }
    mm_hash_end(hash, hex);
}

/* Batches ----------------------------------------------------------------------------------- */

struct mm_sequences mm_sequences_create(size_t n, size_t T) {
    struct mm_sequences s = {.n = n, .T = T};
    s.tokens = mm_calloc(n * T, sizeof *s.tokens);
    s.lengths = mm_calloc(n, sizeof *s.lengths);
    s.answers = mm_calloc(n, sizeof *s.answers);
    return s;
}

void mm_sequences_free(struct mm_sequences *s) {
    mm_free(s->tokens);
    mm_free(s->lengths);
    mm_free(s->answers);
    *s = (struct mm_sequences){0};
}

void mm_sequences_copy(struct mm_sequences *to, size_t at, const struct mm_sequences *from,
                       size_t first, size_t count) {
    MM_CHECK(to->T == from->T && at + count <= to->n && first + count <= from->n,
             "sequences %zu to %zu to %zu", first, first + count, at);
    memcpy(to->tokens + at * to->T, from->tokens + first * to->T,
           count * to->T * sizeof *to->tokens);
    memcpy(to->lengths + at, from->lengths + first, count * sizeof *to->lengths);
    memcpy(to->answers + at, from->answers + first, count * sizeof *to->answers);
}

/* The row of set->tokens that is number i of a batch. */
static size_t row_of(const struct mm_dataset *set, size_t index, size_t batch_size, size_t i) {
    size_t row = (index * batch_size + i) % set->examples;
    return set->rows ? set->rows[row] : row;
}

static uint32_t length_of(const struct mm_dataset *set, size_t row) {
    return set->lengths ? set->lengths[row] : (uint32_t)set->context_length;
}

static uint32_t answer_of(const struct mm_dataset *set, size_t row) {
    return set->answers ? set->answers[row] : 1;
}

void mm_dataset_batch(const struct mm_dataset *set, size_t index, size_t batch_size, size_t first,
                      size_t count, struct mm_sequences *out, size_t at) {
    size_t T = set->context_length;
    MM_CHECK(first + count <= batch_size, "sequences %zu to %zu of a batch of %zu", first,
             first + count, batch_size);
    MM_CHECK(out->T == T && at + count <= out->n, "no room for sequences %zu to %zu", at,
             at + count);
    for (size_t i = 0; i < count; i++) {
        size_t row = row_of(set, index, batch_size, first + i);
        memcpy(out->tokens + (at + i) * T, set->tokens + row * T, T * sizeof *out->tokens);
        out->lengths[at + i] = length_of(set, row);
        out->answers[at + i] = answer_of(set, row);
    }
}

struct mm_counts mm_dataset_counts(const struct mm_dataset *set, size_t index, size_t batch_size) {
    struct mm_counts counts = {.sequences = (double)batch_size};
    for (size_t i = 0; i < batch_size; i++) {
        size_t row = row_of(set, index, batch_size, i);
        counts.tokens += (double)length_of(set, row);
        counts.targets += (double)(length_of(set, row) - answer_of(set, row));
    }
    return counts;
}

/* Views ------------------------------------------------------------------------------------- */

struct row {
    const uint32_t *tokens;
    size_t bytes;
    uint32_t length;
};

static struct row view_row(const struct mm_dataset *set, size_t row) {
    size_t T = set->context_length;
    return (struct row){set->tokens + row * T, T * sizeof *set->tokens, length_of(set, row)};
}

static int by_tokens(const void *left, const void *right) {
    const struct row *a = left, *b = right;
    if (a->length != b->length)
        return a->length < b->length ? -1 : 1;
    return memcmp(a->tokens, b->tokens, a->bytes);
}

void mm_dataset_view(struct mm_dataset *view, const struct mm_dataset *set, size_t first,
                     const struct mm_dataset *other, size_t other_n) {
    size_t T = set->context_length;
    MM_CHECK(other->context_length == T, "rows of %zu and of %zu tokens", T, other->context_length);
    other_n = other_n < other->examples ? other_n : other->examples;
    struct row *others = mm_calloc(other_n, sizeof *others);
    for (size_t i = 0; i < other_n; i++)
        others[i] = view_row(other, i);
    qsort(others, other_n, sizeof *others, by_tokens);
    *view = *set;
    view->rows = mm_calloc(set->examples, sizeof *view->rows);
    view->examples = 0;
    for (size_t i = 0; i < set->examples; i++) {
        size_t at = (first + i) % set->examples;
        struct row row = view_row(set, at);
        if (!bsearch(&row, others, other_n, sizeof *others, by_tokens))
            view->rows[view->examples++] = at;
    }
    mm_free(others);
}

/* Multiple-choice files --------------------------------------------------------------------- */

static enum mm_status check_offsets(struct mm_questions *questions, size_t prompts_n,
                                    struct mm_error *err) {
    const uint64_t *offsets = questions->offsets;
    if (offsets[0] != 0 || offsets[questions->n] != prompts_n)
        return mm_fail(err, MM_BAD_INPUT,
                       "%s: 'offsets' run from %" PRIu64 " to %" PRIu64 ", not from 0 to %zu",
                       questions->path, offsets[0], offsets[questions->n], prompts_n);
    for (size_t q = 0; q < questions->n; q++) {
        if (offsets[q + 1] <= offsets[q])
            return mm_fail(err, MM_BAD_INPUT,
                           "%s: question %zu has no prompt: 'offsets' go from %" PRIu64
                           " to %" PRIu64,
                           questions->path, q, offsets[q], offsets[q + 1]);
        size_t length = offsets[q + 1] - offsets[q];
        questions->longest = length > questions->longest ? length : questions->longest;
    }
    return MM_OK;
}

enum mm_status mm_questions_read(struct mm_questions *questions, const char *path,
                                 uint32_t vocab_size, struct mm_error *err) {
    struct integers in = {.path = path, .file = -1, .set = -1};
    struct limit tokens;
    uint32_t attribute;
    size_t prompts_n = 0, offsets_n = 0;
    *questions = (struct mm_questions){.path = mm_strdup(path)};
    enum mm_status status = mm_h5_open(&in.file, path, err);
    if (status == MM_OK)
        status = token_limit(&in, vocab_size, &attribute, &tokens, err);
    if (status == MM_OK)
        status =
            read_whole(&in, "prompts", &prompts_n, 0, tokens, 4, (void **)&questions->prompts, err);
    if (status == MM_OK)
        status = read_whole(&in, "choices", &questions->n, 4, tokens, 4,
                            (void **)&questions->choices, err);
    if (status == MM_OK)
        status = read_whole(&in, "answers", &questions->n, 0, (struct limit){4, "one of 4 choices"},
                            4, (void **)&questions->answers, err);
    if (status == MM_OK) {
        offsets_n = questions->n + 1;
        status = read_whole(&in, "offsets", &offsets_n, 0,
                            (struct limit){prompts_n + 1, "the length of 'prompts'"}, 8,
                            (void **)&questions->offsets, err);
    }
    if (status == MM_OK)
        status = check_offsets(questions, prompts_n, err);
    if (status == MM_OK)
        questions->tokenizer = tokenizer_of(in.file, path);
    mm_h5_close(in.file);
    if (status != MM_OK)
        mm_questions_free(questions);
    return status;
}

void mm_questions_free(struct mm_questions *questions) {
    mm_free(questions->path);
    mm_free(questions->tokenizer);
    mm_free(questions->prompts);
    mm_free(questions->offsets);
    mm_free(questions->choices);
    mm_free(questions->answers);
    *questions = (struct mm_questions){0};
}

void mm_questions_hash(const struct mm_questions *questions, char hex[33]) {
    size_t n = questions->n;
    struct mm_hash *hash = mm_hash_begin();
    mm_hash_add(hash, questions->offsets, (n + 1) * sizeof *questions->offsets);
    mm_hash_add(hash, questions->prompts, questions->offsets[n] * sizeof *questions->prompts);
    mm_hash_add(hash, questions->choices, n * 4 * sizeof *questions->choices);
    mm_hash_add(hash, questions->answers, n * sizeof *questions->answers);
    mm_hash_end(hash, hex);
}
