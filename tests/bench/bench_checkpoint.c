/* bench_checkpoint.c - what a checkpoint costs, in a model's shape with random weights.
 *
 *   bench_checkpoint DIR [--shape demo|pythia-14m|smollm-135m|llama-1b] [--threads N] [--repeats K]
 *
 * Each repeat does, one after the other and under DIR, which must be on the disk that is meant:
 *   plain   every rank writes the bytes of its state to a file of its own, 1 MiB a call, and syncs
 *   whole   a checkpoint, while nothing else goes on
 *   alone   loops without a save
 *   saving  loops while a checkpoint is written beside them, as a run does it
 * and prints a line; the last one has the medians. bandwidth = plain seconds / whole seconds.
 * blocked = time in which the loops stood still for the save (copy of the state, start, polls);
 * stall = that, and what the loops lost by sharing the machine with the writer; both as shares of
 * what `whole` took, which is what the loops would wait otherwise. Loops are of one sequence of 16
 * tokens a rank, short, so that polls come often. Under mpirun the ranks share the state. */
#include "tests/bench/bench_shapes.h"
#include "io/files.h"
#include "io/saver.h"
#include "src/mudman.h"
#include "src/method/training.h"

#include <fcntl.h>
#include <omp.h>
#include <unistd.h>

enum { REPEATS_MOST = 100 };

struct bench {
    const char *dir;
    struct shape shape;
    struct mm_comm *comm;
    struct mm_device *dev;
    struct mm_arena *arena;
    struct mm_model *model;
    struct mm_shard *shard;
    struct mm_mudman *mudman;
    struct mm_state_copy copy;
    struct mm_sequences mine; /* this rank's of every batch */
    size_t loops, saves;
};

struct figures {
    double plain, whole, loop, save, blocked, stalled; /* seconds */
};

static struct mm_error err;

static void need(enum mm_status status) {
    MM_CHECK(status == MM_OK, "%s", err.text);
}

/* -- set-up ------------------------------------------------------------------------------------ */

static struct mm_config config_of(const struct shape *s) {
    struct mm_config c = {0};
    c.model.state_dtype = MM_F32;
    c.data.batch_size = c.data.micro_batch = s->batch;
    c.data.context_length = s->context;
    c.unlearn.loss_fn = MM_LOSS_NEG_CROSS_ENTROPY;
    c.unlearn.unlearning_rate = c.unlearn.retaining_rate = c.unlearn.adv_lr = 1e-3;
    c.unlearn.retain_momentum = 0.9;
    c.unlearn.fork_every_n_loops = 1000000;
    c.unlearn.adv_decay = c.unlearn.discard_growing_weights = 1;
    c.unlearn.train_adversary = c.unlearn.use_masking = c.unlearn.retain_cross_entropy = true;
    return c;
}

static void set_up(struct bench *b) {
    struct mm_config config = config_of(&b->shape);
    const struct mm_arch *arch = &b->shape.arch;
    b->arena = mm_arena_create(b->dev);
    b->model = mm_model_create(b->arena, arch, MM_F32, b->shape.context);
    mm_model_randomize(b->model, 1);
    bool *wanted = mm_calloc(b->model->params_n, 1);
    need(mm_model_choose(b->model, &b->shape.target, 1, wanted, &err));
    b->shard = mm_shard_create(b->arena, b->comm, b->model, wanted);
    b->mudman = mm_mudman_create(b->arena, &config, b->comm, b->model, b->shard);
    mm_free(wanted);
    size_t B = b->shape.batch, T = b->shape.context, n = B * T;
    uint32_t *tokens = mm_calloc(n, sizeof *tokens);
    struct mm_dataset set = {.examples = B, .context = T, .context_length = T, .tokens = tokens};
    b->mine = mm_share_sequences(&b->mudman->passes->share);
    for (size_t i = 0; i < n; i++)
        tokens[i] = (uint32_t)(i * 2654435761u >> 7) % (uint32_t)arch->vocab;
    mm_share_read(&b->mudman->passes->share, &set, 0, &b->mine);
    mm_free(tokens);
    b->copy = mm_state_copy_create(&b->mudman->state, b->dev);
}

static void tear_down(struct bench *b) {
    mm_state_copy_free(&b->copy);
    mm_sequences_free(&b->mine);
    mm_mudman_free(b->mudman);
    mm_shard_free(b->shard);
    mm_model_free(b->model);
    mm_arena_free(b->arena);
}

/* -- what is timed ----------------------------------------------------------------------------- */

static void one_loop(struct bench *b) {
    mm_mudman_loop(b->mudman, b->loops++, &b->mine, &b->mine);
    struct mm_loop_scalars scalars = mm_mudman_scalars(b->mudman);
    MM_CHECK(scalars.stop == MM_GUARD_NONE, "%s", mm_guard_text(scalars.stop));
}

static double write_plain(const struct bench *b) {
    char *path = mm_format("%s/plain-%d", b->dir, mm_comm_rank(b->comm));
    unlink(path);
    mm_comm_barrier(b->comm);
    double start = mm_now();
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    MM_CHECK(fd >= 0, "cannot write '%s'", path);
    const struct mm_state_list *list = b->copy.list;
    for (size_t i = 0; i < list->n; i++) {
        size_t bytes = b->copy.host[i] ? list->parts[i].vector.n * sizeof(float) : 0;
        size_t step = 1 << 20;
        for (size_t at = 0; at < bytes; at += step) {
            size_t now = bytes - at < step ? bytes - at : step;
            MM_CHECK(write(fd, (char *)b->copy.host[i] + at, now) == (ssize_t)now, "a short write");
        }
    }
    MM_CHECK(fsync(fd) == 0 && close(fd) == 0, "cannot sync");
    mm_comm_barrier(b->comm);
    double seconds = mm_now() - start;
    unlink(path);
    mm_free(path);
    return seconds;
}

static struct mm_checkpoint_info next_info(struct bench *b) {
    return (struct mm_checkpoint_info){.loops = ++b->saves};
}

static double write_whole(struct bench *b) {
    struct mm_checkpoint_info info = next_info(b);
    mm_comm_barrier(b->comm);
    double start = mm_now();
    need(mm_checkpoint_write(b->comm, b->dir, 1, &b->copy.state, &info, &err));
    return mm_now() - start;
}

static double time_alone(struct bench *b, int n) {
    double start = mm_now();
    for (int i = 0; i < n; i++)
        one_loop(b);
    return (mm_now() - start) / n;
}

static void time_saving(struct bench *b, struct figures *f) {
    struct mm_saver *saver = mm_saver_create(b->comm, b->dir, 1);
    struct mm_checkpoint_info info = next_info(b);
    int loops = 0;
    mm_comm_barrier(b->comm);
    double start = mm_now();
    mm_state_save(&b->copy);
    need(mm_saver_start(saver, &b->copy.state, &info, NULL, &err));
    f->blocked = mm_now() - start;
    while (mm_saver_busy(saver)) {
        one_loop(b);
        loops++;
        double before = mm_now();
        need(mm_saver_poll(saver, &err));
        f->blocked += mm_now() - before;
    }
    f->save = mm_now() - start;
    f->stalled = f->save - loops * f->loop;
    mm_saver_free(saver);
}

/* -- figures ----------------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, ascending);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

static void print_line(const char *name, double bytes, const double v[]) {
    printf("%-7s plain %7.1f MB/s  checkpoint %7.1f MB/s  bandwidth %5.2f  loop %7.1f ms  save "
           "%6.3f s  blocked %5.2f %%  stall %6.1f %%\n",
           name, bytes / v[0] / 1e6, bytes / v[1] / 1e6, v[2], 1e3 * v[3], v[4], 100 * v[5] / v[1],
           100 * v[6] / v[1]);
    fflush(stdout);
}

static void run(struct bench *b, int repeats, double bytes) {
    enum { COLUMNS = 7 };
    double all[COLUMNS][REPEATS_MOST], middle[COLUMNS];
    bool speaks = mm_comm_rank(b->comm) == 0;
    one_loop(b);
    mm_state_save(&b->copy);
    for (int i = -1; i < repeats; i++) { /* the first warms up */
        struct figures f = {0};
        if (i % 2 == 0) /* neither always comes first */
            f.plain = write_plain(b);
        f.whole = write_whole(b);
        if (i % 2 != 0)
            f.plain = write_plain(b);
        f.loop = time_alone(b, 3);
        time_saving(b, &f);
        double v[COLUMNS] = {f.plain, f.whole,   f.plain / f.whole, f.loop,
                             f.save,  f.blocked, f.stalled};
        for (int c = 0; c < COLUMNS && i >= 0; c++)
            all[c][i] = v[c];
        char name[16];
        snprintf(name, sizeof name, "%d", i + 1);
        if (speaks && i >= 0)
            print_line(name, bytes, v);
    }
    for (int c = 0; c < COLUMNS; c++)
        middle[c] = median(all[c], repeats);
    if (speaks)
        print_line("median", bytes, middle);
}

int main(int argc, char **argv) {
    struct mm_comm *comm = mm_comm_create(&argc, &argv);
    const char *shape = "pythia-14m", *threads = "1", *repeats = "5";
    for (int i = 2; i + 1 < argc; i += 2) {
        const char **value = strcmp(argv[i], "--shape") == 0     ? &shape
                             : strcmp(argv[i], "--threads") == 0 ? &threads
                             : strcmp(argv[i], "--repeats") == 0 ? &repeats
                                                                 : NULL;
        if (!value) {
            fprintf(stderr, "no option '%s'\n", argv[i]);
            return 2;
        }
        *value = argv[i + 1];
    }
    int n = atoi(repeats);
    if (argc < 2 || argc % 2 || *argv[1] == '-' || n < 1 || n > REPEATS_MOST) {
        fprintf(stderr, "usage: bench_checkpoint DIR [--shape S] [--threads N] [--repeats K]\n");
        return 2;
    }
    omp_set_num_threads(atoi(threads));
    struct bench b = {.dir = argv[1], .shape = find_shape(shape), .comm = comm};
    b.shape.batch = (size_t)mm_comm_size(comm);
    b.shape.context = 16;
    b.dev = mm_device_create_cpu();
    mm_log_init(mm_comm_rank(comm), MM_LOG_WARN);
    need(mm_comm_attach(comm, b.dev, MM_TRANSPORT_AUTO, MM_F32, &err));
    need(mm_folder_make(b.dir, &err));
    set_up(&b);
    double bytes = mm_state_all_bytes(&b.mudman->state);
    if (mm_comm_rank(comm) == 0)
        printf("shape %s, %d ranks of %s threads, %.1f MB a checkpoint\n", shape,
               mm_comm_size(comm), threads, bytes / 1e6);
    run(&b, n, bytes);
    tear_down(&b);
    mm_comm_free(comm); /* before the device that it works on */
    mm_device_free(b.dev);
    return 0;
}
