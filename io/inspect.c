/* inspect.c - what a file holds, for a person. A checkpoint's files are
 * shown to HDF5 only if their hashes are right, so damaged ones can be inspected too. */
#include "io/inspect.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "io/checkpoint_format.h"
#include "io/dataset.h"
#include "io/files.h"

enum { READ_ELEMENTS = 1 << 20 };

/* A text of the file, indented; what would steer a terminal becomes '?'. */
static void print_text(const char *name, const char *text) {
    printf("%s:%s", name, strchr(text, '\n') ? "\n    " : " ");
    for (const char *c = text; *c; c++) {
        if (*c == '\n' && c[1])
            printf("\n    ");
        else if (*c != '\n')
            putchar(((unsigned char)*c < 0x20 && *c != '\t') || *c == 0x7f ? '?' : *c);
    }
    putchar('\n');
}

static void print_line(const char *name, const char *value) {
    printf("%-14s %s\n", name, value);
}

static void print_count(const char *name, uint64_t value) {
    printf("%-14s %" PRIu64 "\n", name, value);
}

static enum mm_status print_state(enum mm_status status, const struct mm_error *err) {
    if (status == MM_OK)
        print_line("state", "intact");
    else
        printf("%-14s damaged: %s\n", "state", err->text);
    return status == MM_OK ? MM_OK : MM_BAD_INPUT;
}

/* Values ------------------------------------------------------------------------------------ */

struct range {
    double min, max, sum;
    size_t n, nan;
};

static void add_values(struct range *range, const float *values, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (isnan(values[i])) {
            range->nan++;
            continue;
        }
        range->min = range->n ? fmin(range->min, values[i]) : values[i];
        range->max = range->n ? fmax(range->max, values[i]) : values[i];
        range->sum += values[i];
        range->n++;
    }
}

/* The dataset is opened anew for each block of rows, since it keeps every part that it read open.
 */
static enum mm_status read_range(struct range *range, hid_t at, const char *path, const char *name,
                                 enum mm_dtype dtype, size_t rows, size_t cols,
                                 struct mm_error *err) {
    size_t step = cols < READ_ELEMENTS ? READ_ELEMENTS / cols : 1;
    step = step < rows ? step : rows;
    void *values = mm_calloc(step * cols, mm_dtype_bytes(dtype));
    float *floats = mm_calloc(step * cols, sizeof *floats);
    hid_t type = mm_h5_type(dtype);
    enum mm_status status = MM_OK;
    for (size_t row = 0; status == MM_OK && row < rows; row += step) {
        size_t now = rows - row < step ? rows - row : step;
        hid_t set = H5Dopen2(at, name, H5P_DEFAULT);
        if (set < 0 || !mm_h5_read_rows(set, type, row, now, cols, values))
            status = mm_h5_fail(err, MM_BAD_INPUT, "%s: cannot read '%s'", path, name);
        mm_h5_close(set);
        if (status == MM_OK) {
            mm_convert(floats, MM_F32, values, dtype, now * cols);
            add_values(range, floats, now * cols);
        }
    }
    mm_h5_close(type);
    mm_free(floats);
    mm_free(values);
    return status;
}

/* What of a file's tensors may be read: nothing; values that it holds itself; those that the
 * checked parts of a checkpoint hold. */
enum values { UNREADABLE, OWN_VALUES, VALUES_OF_PARTS };

static enum mm_status print_tensor(hid_t at, const char *path, const char *name,
                                   enum values readable, struct mm_error *err) {
    struct range range = {0};
    hsize_t dims[2] = {0};
    uint64_t first = 0;
    enum mm_dtype dtype = MM_F32;
    hid_t set;
    enum mm_status status = mm_h5_open_dataset(&set, at, path, name, err);
    if (status == MM_OK)
        status = mm_h5_dims(set, path, name, 2, dims, err);
    if (status == MM_OK && !mm_h5_dtype(set, &dtype))
        status = mm_fail(err, MM_BAD_INPUT, "%s: '%s' is neither float32 nor bfloat16", path, name);
    if (status == MM_OK && mm_h5_has_attribute(set, "first_row"))
        status = mm_h5_get_count(set, path, "first_row", SIZE_MAX, &first, err);
    if (status == MM_OK && readable == OWN_VALUES)
        status = mm_h5_check_stored(set, path, name, 2, dims, err);
    mm_h5_close(set);
    if (status == MM_OK && readable)
        status = read_range(&range, at, path, name, dtype, dims[0], dims[1], err);
    if (status != MM_OK)
        return status;
    printf("    %s [%" PRIu64 ", %" PRIu64 "] %s", name, (uint64_t)dims[0], (uint64_t)dims[1],
           mm_dtype_name(dtype));
    if (first)
        printf(" from row %" PRIu64, first);
    if (readable && range.n)
        printf("  min %.6g  max %.6g  mean %.6g", range.min, range.max,
               range.sum / (double)range.n);
    if (readable)
        printf("  NaN %zu", range.nan);
    putchar('\n');
    return readable && range.nan
               ? mm_fail(err, MM_BAD_INPUT, "%s: '%s' holds %zu values that are NaN", path, name,
                         range.nan)
               : MM_OK;
}

/* Every tensor of every group of a checkpoint.h5 or a part. */
static enum mm_status print_tensors(hid_t file, const char *path, enum values readable,
                                    struct mm_error *err) {
    enum mm_status status = MM_OK;
    printf("tensors:\n");
    for (int g = 0; g < MM_STATE_GROUPS; g++) {
        const char *group = mm_state_groups[g].name;
        H5G_info_t info;
        if (!mm_h5_own(file, group))
            continue;
        if (H5Gget_info_by_name(file, group, &info, H5P_DEFAULT) < 0)
            return mm_h5_fail(err, MM_BAD_INPUT, "%s: cannot read '%s'", path, group);
        for (hsize_t i = 0; status == MM_OK && i < info.nlinks; i++) {
            char tensor[1024];
            if (H5Lget_name_by_idx(file, group, H5_INDEX_NAME, H5_ITER_INC, i, tensor,
                                   sizeof tensor, H5P_DEFAULT) < 0)
                return mm_h5_fail(err, MM_BAD_INPUT, "%s: cannot read '%s'", path, group);
            char *name = mm_format("%s/%s", group, tensor);
            status = print_tensor(file, path, name, readable, err);
            mm_free(name);
        }
    }
    return status;
}

/* Checkpoints ------------------------------------------------------------------------------- */

static void print_head(const struct mm_checkpoint_head *head) {
    print_count("loops", head->info.loops);
    print_count("retain_cursor", head->info.retain_cursor);
    print_count("forget_cursor", head->info.forget_cursor);
    print_count("metrics_bytes", head->info.metrics_bytes);
    print_line("weights_hash", head->info.weights_hash);
    print_line("dtype", mm_dtype_name(head->dtype));
    print_count("ranks", (uint64_t)head->ranks);
    print_text("extra", head->info.extra);
    print_text("config", head->info.config);
}

/* The first fault stays in err. */
static enum mm_status print_parts(const struct mm_checkpoint_head *head, const char *folder,
                                  struct mm_error *err) {
    enum mm_status status = MM_OK;
    printf("parts:\n");
    for (int r = 0; r < head->ranks; r++) {
        struct mm_error fault;
        char name[32];
        enum mm_status part = mm_checkpoint_part_check(head, folder, r, &fault);
        mm_checkpoint_part_name(name, r);
        printf("    %s  XXH128 %s  %s\n", name, head->hashes[r],
               part == MM_OK ? "intact" : fault.text);
        if (status == MM_OK && part != MM_OK) {
            status = part;
            *err = fault;
        }
    }
    return status;
}

static enum mm_status inspect_checkpoint(const char *folder, struct mm_error *err) {
    struct mm_checkpoint_head head;
    struct mm_error other;
    hid_t file = -1;
    char *path = mm_format("%s/%s", folder, MM_CHECKPOINT_WHOLE);
    print_line("checkpoint", folder);
    enum mm_status status = mm_checkpoint_head_read(&head, folder, err);
    if (status == MM_OK) {
        print_head(&head);
        status = print_parts(&head, folder, err);
        enum mm_status values = mm_h5_open(&file, path, &other);
        if (values == MM_OK)
            values =
                print_tensors(file, path, status == MM_OK ? VALUES_OF_PARTS : UNREADABLE, &other);
        if (status == MM_OK && values != MM_OK) {
            status = values;
            *err = other;
        }
        mm_h5_close(file);
    }
    mm_checkpoint_head_free(&head);
    mm_free(path);
    return print_state(status, err);
}

static bool is_part(const char *name) {
    int rank;
    char again[32];
    if (sscanf(name, "part-%d.h5", &rank) != 1)
        return false;
    mm_checkpoint_part_name(again, rank);
    return strcmp(again, name) == 0;
}

/* The hash of a part is in the checkpoint.h5 beside it, where there is one. */
static enum mm_status check_alone(const char *path, struct mm_error *err) {
    struct mm_checkpoint_head head = {0};
    int rank = 0;
    char *folder = mm_path_parent(path);
    char *whole = mm_format("%s/%s", folder, MM_CHECKPOINT_WHOLE);
    const char *base = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    enum mm_status status = MM_OK;
    if (!mm_path_exists(whole) || !is_part(base) || sscanf(base, "part-%d", &rank) != 1) {
        print_line("hash", "unknown: no checkpoint.h5 beside it");
    } else {
        status = mm_checkpoint_head_read(&head, folder, err);
        if (status == MM_OK && (rank < 0 || rank >= head.ranks))
            status = mm_fail(err, MM_BAD_INPUT, "%s: is none of the %d parts of '%s'", path,
                             head.ranks, whole);
        if (status == MM_OK) {
            print_line("hash", head.hashes[rank]);
            status = mm_checkpoint_part_check(&head, folder, rank, err);
        }
    }
    mm_checkpoint_head_free(&head);
    mm_free(whole);
    mm_free(folder);
    return status;
}

static enum mm_status inspect_part(const char *path, struct mm_error *err) {
    static const char *const counts[] = {"loops", "rank", "ranks"};
    hid_t file = -1;
    print_line("part", path);
    enum mm_status status = check_alone(path, err);
    if (status == MM_OK)
        status = mm_h5_open(&file, path, err);
    for (int i = 0; i < 3 && status == MM_OK; i++) {
        uint64_t value = 0;
        status = mm_h5_get_count(file, path, counts[i], SIZE_MAX, &value, err);
        if (status == MM_OK)
            print_count(counts[i], value);
    }
    if (status == MM_OK)
        status = print_tensors(file, path, OWN_VALUES, err);
    mm_h5_close(file);
    return print_state(status, err);
}

static enum mm_status inspect_run(const char *folder, struct mm_error *err) {
    size_t *loops, n;
    enum mm_status status = mm_checkpoint_list(folder, &loops, &n, err);
    print_line("run folder", folder);
    printf("checkpoints:%s\n", n ? "" : " none");
    for (size_t i = n; i-- > 0;) {
        struct mm_error fault;
        char *path = mm_format("%s/checkpoints/%zu", folder, loops[i]);
        enum mm_status one = mm_checkpoint_verify(path, NULL, &fault);
        printf("    %zu  %s%s\n", loops[i],
               one == MM_OK ? "intact" : "damaged: ", one == MM_OK ? "" : fault.text);
        if (status == MM_OK && one != MM_OK) {
            status = one;
            *err = fault;
        }
        mm_free(path);
    }
    mm_free(loops);
    return status;
}

/* Data files -------------------------------------------------------------------------------- */

static enum mm_status print_origin(const char *path, struct mm_error *err) {
    static const char *const names[] = {"tokenizer", "source"};
    hid_t file;
    char hash[33], *text;
    uint64_t vocab = 0;
    enum mm_status status = mm_h5_open(&file, path, err);
    if (status == MM_OK && mm_h5_has_attribute(file, "vocab_size")) {
        status = mm_h5_get_count(file, path, "vocab_size", UINT32_MAX, &vocab, err);
        if (status == MM_OK)
            print_count("vocab_size", vocab);
    }
    for (int i = 0; i < 2 && status == MM_OK; i++) {
        if (!mm_h5_has_attribute(file, names[i]))
            continue;
        status = mm_h5_get_text(file, path, names[i], &text, err);
        if (status == MM_OK)
            print_text(names[i], text);
        mm_free(text);
    }
    mm_h5_close(file);
    if (status == MM_OK)
        status = mm_file_hash(path, 0, hash, err);
    if (status == MM_OK)
        printf("%-14s %s\n", "XXH128", hash);
    return status;
}

static void print_tokens(const char *name, const uint32_t *tokens, size_t n) {
    uint32_t min = UINT32_MAX, max = 0;
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        min = tokens[i] < min ? tokens[i] : min;
        max = tokens[i] > max ? tokens[i] : max;
        sum += tokens[i];
    }
    printf("    %s  min %" PRIu32 "  max %" PRIu32 "  mean %.6g\n", name, min, max,
           sum / (double)n);
}

static enum mm_status inspect_tokens(const char *path, struct mm_error *err) {
    struct mm_dataset set = {0};
    print_line("token file", path);
    enum mm_status status = print_origin(path, err);
    if (status == MM_OK)
        status = mm_dataset_read(&set, path, 0, 0, err);
    if (status == MM_OK) {
        print_count("examples", set.examples);
        print_count("context", set.context);
        print_tokens("tokens", set.tokens, set.examples * set.context);
        if (set.lengths) {
            print_tokens("lengths", set.lengths, set.examples);
            print_tokens("answers from", set.answers, set.examples);
        }
        mm_dataset_free(&set);
    }
    return print_state(status, err);
}

static enum mm_status inspect_questions(const char *path, struct mm_error *err) {
    struct mm_questions questions = {0};
    print_line("questions", path);
    enum mm_status status = print_origin(path, err);
    if (status == MM_OK)
        status = mm_questions_read(&questions, path, 0, err);
    if (status == MM_OK) {
        print_count("questions", questions.n);
        print_count("longest prompt", questions.longest);
        print_tokens("prompts", questions.prompts, questions.offsets[questions.n]);
        print_tokens("choices", questions.choices, questions.n * 4);
        print_tokens("answers", questions.answers, questions.n);
        mm_questions_free(&questions);
    }
    return print_state(status, err);
}

/* Which is it ------------------------------------------------------------------------------- */

static bool ends_with(const char *path, const char *name) {
    size_t length = strlen(path), tail = strlen(name);
    return length >= tail && strcmp(path + length - tail, name) == 0 &&
           (length == tail || path[length - tail - 1] == '/');
}

static enum mm_status inspect_file(const char *path, struct mm_error *err) {
    hid_t file;
    const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    if (ends_with(path, MM_CHECKPOINT_WHOLE)) {
        char *folder = mm_path_parent(path);
        enum mm_status status = inspect_checkpoint(folder, err);
        mm_free(folder);
        return status;
    }
    if (is_part(name))
        return inspect_part(path, err);
    enum mm_status status = mm_h5_open(&file, path, err);
    if (status != MM_OK)
        return status;
    bool tokens = mm_h5_has(file, "tokens"), prompts = mm_h5_has(file, "prompts"),
         base = mm_h5_has(file, "base");
    mm_h5_close(file);
    if (tokens)
        return inspect_tokens(path, err);
    if (prompts)
        return inspect_questions(path, err);
    if (base)
        return inspect_part(path, err);
    return mm_fail(err, MM_BAD_INPUT,
                   "%s: neither a token file (/tokens), nor a multiple-choice file (/prompts), nor "
                   "of a checkpoint",
                   path);
}

enum mm_status mm_inspect(const char *path, struct mm_error *err) {
    struct stat info;
    if (stat(path, &info) != 0 || !S_ISDIR(info.st_mode))
        return inspect_file(path, err); /* which names what is wrong */
    char *whole = mm_format("%s/%s", path, MM_CHECKPOINT_WHOLE);
    char *checkpoints = mm_format("%s/checkpoints", path);
    char *part = mm_format("%s/part-00000.h5", path);
    char *config = mm_format("%s/config.yaml", path);
    enum mm_status status;
    if (mm_path_exists(whole) || mm_path_exists(part))
        status = inspect_checkpoint(path, err);
    else if (mm_path_exists(checkpoints) || mm_path_exists(config))
        status = inspect_run(path, err);
    else
        status = mm_fail(err, MM_BAD_INPUT, "%s: neither a checkpoint nor a run folder", path);
    mm_free(config);
    mm_free(part);
    mm_free(checkpoints);
    mm_free(whole);
    return status;
}
