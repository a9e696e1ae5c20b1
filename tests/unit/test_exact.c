/* test_exact.c - reduction: exact: the same bits on any number of ranks and threads, for every run
 * that the golden traces hold, with batches of 8.
 *
 * Usage: test_exact [FILE]: FILE (=) a line of every loop and every end, each behind the name of
 * its run, for ranks_exact.sh to compare with those of other numbers of ranks. Without FILE: the
 * lines are the same with 1 and 2 threads. */
#include "tests/golden/golden_model.h"

#include "src/mudman.h"
#include "src/run/state_hash.h"
#include "src/method/training.h"
#include "tests/bench/bench_shapes.h"

#include <omp.h>

#define BATCH 8
#define LOOPS ((size_t)4)

static struct mm_comm *comm;
static struct mm_device *dev;
static FILE *out; /* of rank 0; elsewhere nobody reads it */

/* -- one run ----------------------------------------------------------------------------------- */

/* The config of a trace (NULL: none) with batches of 8 and leaves of `micro`. */
static struct mm_config config_of(hid_t group, size_t micro) {
    static const char base[] =
        "model: {path: m}\n"
        "data: {retain: r, forget: f, retain_validation: rv, forget_validation: fv}\n"
        "unlearn: {loops: 4, unlearning_rate: 0.1, retaining_rate: 0.1, adv_lr: 0.1}\n"
        "output: {dir: o}\n"
        "reduction: exact\n";
    struct mm_error err = {""};
    struct mm_config config;
    char *text = group >= 0 ? trace_text(group, "overrides") : mm_strdup("data.context_length=20");
    char *lines[32], sizes[2][64], *save = NULL;
    size_t n = 0;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        if (strncmp(line, "data.batch_size", 15) != 0)
            lines[n++] = line;
    snprintf(sizes[0], sizeof sizes[0], "data.micro_batch=%zu", micro);
    snprintf(sizes[1], sizeof sizes[1], "data.batch_size=%d", BATCH);
    for (int i = 0; i < 2; i++)
        lines[n++] = sizes[i];
    if (mm_config_parse(&config, base, "base", lines, n, MM_RUN, &err) != MM_OK)
        fail_msg("%s", err.text);
    mm_free(text);
    return config;
}

static void write_hash(const char *run, const struct mm_shard *shard, struct mm_vector v) {
    struct mm_hasher *hasher = mm_hasher_create(comm, dev);
    char hash[33];
    mm_hasher_add_vector(hasher, &shard->layout, v);
    mm_hasher_end(hasher, hash);
    fprintf(out, "%s end %s\n", run, hash);
}

static void unlearn(const char *run, struct mm_model *model, const struct mm_config *config,
                    const struct mm_dataset *retain, const struct mm_dataset *forget) {
    struct mm_error err = {""};
    char hash[33];
    struct mm_arena *arena = mm_arena_create(dev);
    bool *wanted = mm_calloc(model->params_n, 1);
    if (mm_model_choose(model, config->unlearn.target_modules, config->unlearn.target_modules_n,
                        wanted, &err) != MM_OK)
        fail_msg("%s", err.text);
    struct mm_shard *shard = mm_shard_create(arena, comm, model, wanted);
    struct mm_mudman *u = mm_mudman_create(arena, config, comm, model, shard);
    struct mm_sequences r = mm_share_sequences(&u->passes->share);
    struct mm_sequences f = mm_share_sequences(&u->passes->share);
    for (size_t t = 0; t < LOOPS; t++) {
        mm_share_read(&u->passes->share, retain, t, &r);
        mm_share_read(&u->passes->share, forget, t, &f);
        mm_mudman_loop(u, t, &r, &f);
        struct mm_loop_scalars s = mm_mudman_scalars(u);
        fprintf(out, "%s %zu %a %a %a %a %a %a\n", run, t, s.retain_loss, s.adversary_loss,
                s.unlearning_loss, s.sum_squares, s.grad_norm, s.mask_fraction);
    }
    mm_state_hash(&u->state, comm, dev, hash);
    fprintf(out, "%s end %s\n", run, hash);
    mm_sequences_free(&r);
    mm_sequences_free(&f);
    mm_free(wanted);
    mm_mudman_free(u);
    mm_shard_free(shard);
    mm_arena_free(arena);
}

static void relearn(const char *run, struct mm_model *model, const struct mm_config *config,
                    const struct mm_dataset *forget) {
    const struct mm_attack attack = mm_config_attack(config, 0);
    struct mm_arena *arena = mm_arena_create(dev);
    struct mm_training *t = mm_training_create_attack(arena, comm, model, config, &attack, NULL);
    struct mm_sequences own = mm_share_sequences(&t->passes->share);
    for (size_t i = 0; i < LOOPS; i++) {
        mm_share_read(&t->passes->share, forget, i, &own);
        fprintf(out, "%s %zu %a\n", run, i, mm_training_attack(t, &own, &attack));
    }
    write_hash(run, t->shard, t->lora ? t->g : t->p); /* the weights of now */
    mm_sequences_free(&own);
    mm_training_free(t);
    mm_arena_free(arena);
}

static void pretrain(const char *run, struct mm_model *model, const struct mm_config *config,
                     const struct mm_dataset *retain) {
    struct mm_arena *arena = mm_arena_create(dev);
    struct mm_training *t = mm_training_create(
        arena, comm, model,
        (struct mm_batch_size){BATCH, config->data.micro_batch, config->data.context_length},
        MM_F32, MM_ADAMW);
    struct mm_sequences own = mm_share_sequences(&t->passes->share);
    for (size_t i = 0; i < LOOPS; i++) {
        mm_share_read(&t->passes->share, retain, i, &own);
        fprintf(out, "%s %zu %a\n", run, i, mm_training_adamw(t, &own, config, i));
    }
    write_hash(run, t->shard, t->p);
    mm_sequences_free(&own);
    mm_training_free(t);
    mm_arena_free(arena);
}

/* -- all of them ------------------------------------------------------------------------------- */

static bool has_leaves(size_t micro) {
    return mm_leaves(BATCH, micro) >= (size_t)mm_comm_size(comm);
}

static void run_trace(struct fixture *f, hid_t traces, const char *name, size_t micro) {
    char *run = mm_format("%s/%s/%zu", f->name, name, micro);
    hid_t group = H5Gopen2(traces, name, H5P_DEFAULT);
    struct mm_dataset retain = trace_dataset(traces, "retain"),
                      forget = trace_dataset(traces, "forget");
    struct mm_config config = config_of(group, micro);
    size_t bytes = f->model->block_n * sizeof(float);
    void *start = mm_calloc(bytes, 1);
    memcpy(start, f->model->block, bytes);
    if (strncmp(name, "relearn", 7) == 0)
        relearn(run, f->model, &config, &forget);
    else if (strcmp(name, "pretrain") == 0)
        pretrain(run, f->model, &config, &retain);
    else
        unlearn(run, f->model, &config, &retain, &forget);
    memcpy(f->model->block, start, bytes);
    mm_free(start);
    mm_config_free(&config);
    mm_dataset_free(&retain);
    mm_dataset_free(&forget);
    mm_free(run);
    H5Gclose(group);
}

/* Every trace in leaves of one sequence; those whose loss is not one of positions, and a few more,
 * in leaves of which the last is shorter. */
static void run_case(const char *name) {
    struct fixture f = open_case(dev, name);
    char *file = mm_format("%s/golden/%s/traces.h5", TEST_DIR, name);
    hid_t traces = H5Fopen(file, H5F_ACC_RDONLY, H5P_DEFAULT);
    H5G_info_t info;
    H5Gget_info(traces, &info);
    for (hsize_t i = 0; i < info.nlinks; i++) {
        char variant[128];
        H5O_info_t object;
        H5Lget_name_by_idx(traces, ".", H5_INDEX_NAME, H5_ITER_INC, i, variant, sizeof variant,
                           H5P_DEFAULT);
        H5Oget_info_by_name(traces, variant, &object, H5P_DEFAULT);
        if (object.type != H5O_TYPE_GROUP)
            continue;
        run_trace(&f, traces, variant, 1);
        if (has_leaves(3) && (strstr(variant, "npo") || strstr(variant, "listing") ||
                              strstr(variant, "stream") || strstr(variant, "lora")))
            run_trace(&f, traces, variant, 3);
    }
    H5Fclose(traces);
    mm_free(file);
    close_case(&f);
}

/* Products of several pieces, and rows of a tensor that no number of ranks divides. */
static void run_wide(void) {
    const struct mm_arch arch = shape_llama(2, 48, 601, 307, 4, 2);
    struct mm_config config = config_of(-1, 1);
    struct mm_dataset sets[2] = {{0}};
    struct mm_arena *arena = mm_arena_create(dev);
    struct mm_model *model = mm_model_create(arena, &arch, MM_F32, 20);
    mm_model_randomize(model, 3);
    for (uint32_t k = 0; k < 2; k++) {
        uint32_t *tokens = mm_calloc(32 * 20, sizeof *tokens);
        for (uint32_t i = 0; i < 32 * 20; i++)
            tokens[i] = (i * i * 7 + i / 3 + k * 11) % 307;
        sets[k] = (struct mm_dataset){
            .tokens = tokens, .examples = 32, .context = 20, .context_length = 20};
    }
    unlearn("wide", model, &config, &sets[0], &sets[1]);
    mm_dataset_free(&sets[0]);
    mm_dataset_free(&sets[1]);
    mm_model_free(model);
    mm_arena_free(arena);
    mm_config_free(&config);
}

static void run_everything(void) {
    for (size_t i = 0; i < CASES; i++)
        run_case(cases[i]);
    run_wide();
}

/* -- threads ----------------------------------------------------------------------------------- */

static char *lines_with(int threads) {
    char *text = NULL;
    size_t n = 0;
    out = open_memstream(&text, &n);
    omp_set_num_threads(threads);
    run_everything();
    fclose(out);
    return text;
}

/* Where two texts differ first, to the end of the line. */
static void expect_same_lines(char *want, char *got, int threads) {
    size_t at = 0, line = 0;
    for (; want[at] && want[at] == got[at]; at++)
        line = want[at] == '\n' ? at + 1 : line;
    if (want[at] || got[at])
        fail_msg("with %d threads: %.*s\ninstead of:    %.*s", threads,
                 (int)strcspn(got + line, "\n"), got + line, (int)strcspn(want + line, "\n"),
                 want + line);
}

static void any_number_of_threads(void **state) {
    (void)state;
    char *want = lines_with(1);
    assert_true(strlen(want) > 10000);
    for (int threads = 2; threads <= 2; threads++) {
        char *got = lines_with(threads);
        expect_same_lines(want, got, threads);
        free(got);
    }
    free(want);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(any_number_of_threads)};
    struct mm_error err = {""};
    int failed = 1;
    comm = mm_comm_create(&argc, &argv);
    mm_log_init(mm_comm_rank(comm), MM_LOG_INFO);
    dev = mm_device_create_cpu();
    dev->exact = true;
    if (mm_comm_attach(comm, dev, MM_TRANSPORT_AUTO, MM_F32, &err) == MM_OK && argc > 1) {
        out = fopen(mm_comm_rank(comm) == 0 ? argv[1] : "/dev/null", "w");
        run_everything();
        failed = fclose(out) != 0;
    } else {
        failed = cmocka_run_group_tests(tests, NULL, NULL);
    }
    mm_comm_free(comm);
    mm_device_free(dev);
    if (mm_live_blocks() != 0)
        fprintf(stderr, "%ld blocks were not freed\n", mm_live_blocks());
    return failed || mm_live_blocks() != 0;
}
