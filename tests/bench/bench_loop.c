/* bench_loop.c - times one MUDMAN loop or one relearning step on random weights in a model's shape.
 *
 *   bench_loop [--shape demo|pythia-14m|wide-100m|smollm-135m|llama-1b] [--what loop|relearn]
 *              [--device cpu|cuda] [--dtype float32|bfloat16] [--state float32|bfloat16]
 *              [--graph listing|fresh|reuse] [--reduction fast|exact] [--batch SEQUENCES]
 *              [--micro SEQUENCES] [--context TOKENS] [--threads N] [--repeats K]
 *              [--profile yes|no] [--shard none|node|full]
 *
 * Prints one line; under mpirun the ranks share the batch. Model FLOPs are those of the matrix
 * products that the method asks for, without attention's (0.3 % at 100 tokens); mfu is their share
 * of 989 TFLOP/s a rank, what an H100 or H200 does at most in bfloat16. least_cpu_ms is the least
 * time of the process on its processors, which others on the machine lengthen less. Peak memory is
 * the GPU's, or the process's on a CPU. --profile adds the mean ms of each kind of operation
 * (profile.h), on a CPU. tests/bench/bench_peer.py puts PyTorch beside it. */
#include "tests/bench/loop_config.h"
#include "tests/bench/profile.h"
#include "src/mudman.h"
#include "src/method/training.h"

#include <omp.h>
#include <sys/resource.h>
#include <time.h>

#define PEAK_FLOPS 989e12

struct options {
    const char *shape, *what, *device, *dtype, *state, *graph, *reduction, *batch, *micro, *context,
        *threads, *repeats, *profile, *shard;
};

static struct options read_options(int argc, char **argv) {
    struct options o = {"demo", "loop", "cpu", "float32", "float32", "listing", "fast",
                        "",     "",     "",    "1",       "5",       "no",      "none"};
    const struct option_of all[] = {
        {"--shape", &o.shape},         {"--what", &o.what},       {"--device", &o.device},
        {"--dtype", &o.dtype},         {"--state", &o.state},     {"--graph", &o.graph},
        {"--reduction", &o.reduction}, {"--batch", &o.batch},     {"--micro", &o.micro},
        {"--context", &o.context},     {"--threads", &o.threads}, {"--repeats", &o.repeats},
        {"--profile", &o.profile},     {"--shard", &o.shard},
    };
    read_values(argc, argv, all, sizeof all / sizeof *all);
    return o;
}

/* This rank's sequences of a batch. */
static struct mm_sequences random_tokens(const struct mm_passes *p, unsigned seed) {
    size_t B = p->share.batch_size, T = p->share.T;
    uint32_t *batch = mm_calloc(B * T, sizeof *batch);
    struct mm_dataset set = {.examples = B, .context = T, .context_length = T, .tokens = batch};
    struct mm_sequences own = mm_share_sequences(&p->share);
    for (size_t i = 0; i < B * T; i++) {
        seed = seed * 1664525u + 1013904223u;
        batch[i] = (seed >> 8) % (uint32_t)p->model->arch.vocab;
    }
    mm_share_read(&p->share, &set, 0, &own);
    mm_free(batch);
    return own;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* FLOPs of a loop: forwards on every weight; backwards through every layer down to the lowest
 * target, which is in the MLP of layer 0, and the targets' own gradients. */
static double loop_flops(const struct shape *s, enum mm_graph graph) {
    const struct mm_arch *a = &s->arch;
    double C = (double)a->width, M = (double)a->mlp, L = (double)a->layers;
    double qkv = (double)((a->heads.heads + 2 * a->heads.kv_heads) * a->heads.head_dim) * C;
    double o = (double)(a->heads.heads * a->heads.head_dim) * C;
    double layer = qkv + o + (a->activation == MM_SWIGLU ? 3 : 2) * M * C;
    double head = (double)a->vocab * C;
    double forward = 2 * (head + L * layer);
    double backward = 2 * (head + (L - 1) * layer + M * C) + 2 * L * M * C;
    double forwards = graph == MM_GRAPH_FRESH ? 3 : 2, backwards = graph == MM_GRAPH_REUSE ? 2 : 3;
    return (forwards * forward + backwards * backward) * (double)(s->batch * s->context);
}

static bool is_exact(const struct options *o) {
    return strcmp(o->reduction, "exact") == 0;
}

/* By default all at once, or with exact one by one, as in the config. */
static size_t micro_batch(const struct shape *s, const struct options *o) {
    return *o->micro ? (size_t)atoi(o->micro) : is_exact(o) ? 1 : s->batch;
}

/* What is timed: state of a loop or of a relearning step. */
struct subject {
    const struct shape *shape;
    struct mm_arena *arena;
    struct mm_comm *comm;
    struct mm_model *model;
    int warm_up, repeats;
    double *times;    /* [repeats] */
    double cpu_least; /* seconds of this process in one of them */
};

static double cpu_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void note_cpu(struct subject *b, double start) {
    double seconds = cpu_now() - start;
    b->cpu_least = b->cpu_least == 0 || seconds < b->cpu_least ? seconds : b->cpu_least;
}

/* From one loop's result to the next one's, the next being asked for ahead as a run does it. */
static void time_loops(struct subject *b, const struct options *o) {
    struct mm_error err;
    struct mm_config config =
        loop_config(b->shape, micro_batch(b->shape, o), dtype_of(o->state), graph_of(o->graph));
    bool *wanted = mm_calloc(b->model->params_n, 1);
    char *target = b->shape->target;
    MM_CHECK(mm_model_choose(b->model, &target, 1, wanted, &err) == MM_OK, "%s", err.text);
    struct mm_shard *shard = mm_shard_create(b->arena, b->comm, b->model, wanted);
    struct mm_mudman *u = mm_mudman_create(b->arena, &config, b->comm, b->model, shard);
    struct mm_sequences retain = random_tokens(u->passes, 1);
    struct mm_sequences forget = random_tokens(u->passes, 2);
    bool ahead = b->model->dev->asynchronous;
    double last = mm_now();
    for (int i = -b->warm_up; i < b->repeats; i++) {
        if (i == 0)
            profile_reset();
        size_t t = (size_t)(i + b->warm_up);
        double cpu = cpu_now();
        if (!ahead || t == 0)
            mm_mudman_loop(u, t, &retain, &forget);
        if (ahead)
            mm_mudman_loop(u, t + 1, &retain, &forget);
        struct mm_loop_scalars scalars = mm_mudman_scalars(u);
        MM_CHECK(scalars.stop == MM_GUARD_NONE, "%s", mm_guard_text(scalars.stop));
        double now = mm_now();
        if (i >= 0) {
            b->times[i] = now - last;
            note_cpu(b, cpu);
        }
        last = now;
    }
    if (ahead)
        (void)mm_mudman_scalars(u);
    mm_sequences_free(&retain);
    mm_sequences_free(&forget);
    mm_free(wanted);
    mm_mudman_free(u);
    mm_shard_free(shard);
}

static void time_relearning(struct subject *b, const struct options *o) {
    const struct shape *s = b->shape;
    const struct mm_attack attack = {.optimizer = MM_SGD, .lr = 1e-3};
    struct mm_training *t =
        mm_training_create(b->arena, b->comm, b->model,
                           (struct mm_batch_size){s->batch, micro_batch(s, o), s->context},
                           dtype_of(o->state), MM_SGD);
    struct mm_sequences own = random_tokens(t->passes, 1);
    for (int i = -b->warm_up; i < b->repeats; i++) {
        if (i == 0)
            profile_reset();
        double start = mm_now(), cpu = cpu_now();
        mm_training_attack(t, &own, &attack);
        if (i >= 0) {
            b->times[i] = mm_now() - start;
            note_cpu(b, cpu);
        }
    }
    mm_sequences_free(&own);
    mm_training_free(t);
}

static size_t peak_bytes(const struct mm_device *dev) {
    struct rusage usage;
    if (dev->asynchronous)
        return mm_arena_peak_bytes(dev) + dev->own_bytes;
    getrusage(RUSAGE_SELF, &usage);
    return (size_t)usage.ru_maxrss * 1024;
}

static void print_result(const struct subject *b, const struct options *o) {
    bool loop = strcmp(o->what, "loop") == 0;
    int ranks = mm_comm_size(b->comm);
    double all = 0;
    for (int i = 0; i < b->repeats; i++)
        all += b->times[i];
    qsort(b->times, (size_t)b->repeats, sizeof *b->times, ascending);
    double seconds = b->times[b->repeats / 2];
    size_t tokens = b->shape->batch * b->shape->context * (loop ? 2 : 1);
    printf("shape=%s what=%s device=%s dtype=%s state=%s graph=%s reduction=%s shard=%s batch=%zu "
           "micro=%zu "
           "context=%zu threads=%s ranks=%d ms=%.3f least_ms=%.3f least_cpu_ms=%.3f "
           "tokens_per_s=%.1f peak_bytes=%zu",
           o->shape, o->what, o->device, o->dtype, o->state, o->graph, o->reduction, o->shard,
           b->shape->batch, micro_batch(b->shape, o), b->shape->context, o->threads, ranks,
           1e3 * seconds, 1e3 * b->times[0], 1e3 * b->cpu_least, (double)tokens / seconds,
           peak_bytes(b->model->dev));
    if (loop)
        printf(" mfu=%.4f",
               loop_flops(b->shape, graph_of(o->graph)) / seconds / ranks / PEAK_FLOPS);
    if (strcmp(o->profile, "yes") == 0)
        profile_print(b->repeats, all);
    printf("\n");
}

/* Ends the program where there is no such device. */
static struct mm_device *open_device(struct mm_comm *comm, const char *name) {
    struct mm_error err = {""};
    bool cuda = strcmp(name, "cuda") == 0;
    int count = mm_cuda_device_count();
    struct mm_device *dev =
        cuda ? mm_device_create_cuda(count ? mm_comm_local_rank(comm) % count : 0, &err)
             : mm_device_create_cpu();
    if (!dev || mm_comm_attach(comm, dev, MM_TRANSPORT_AUTO, MM_F32, &err) != MM_OK) {
        fprintf(stderr, "%s\n", err.text);
        exit(77);
    }
    return dev;
}

int main(int argc, char **argv) {
    struct mm_comm *comm = mm_comm_create(&argc, &argv);
    struct options o = read_options(argc, argv);
    struct shape s = find_shape(o.shape);
    s.batch = *o.batch ? (size_t)atoi(o.batch) : s.batch;
    s.context = *o.context ? (size_t)atoi(o.context) : s.context;
    omp_set_num_threads(atoi(o.threads));
    struct mm_device *dev = open_device(comm, o.device);
    dev->exact = is_exact(&o);
    if (strcmp(o.profile, "yes") == 0 && !dev->asynchronous)
        profile_begin(dev);
    struct subject b = {.shape = &s, .comm = comm, .repeats = atoi(o.repeats)};
    /* A GPU's first loop is done, its second recorded, its third replayed for the first time. */
    b.warm_up = dev->asynchronous ? 3 : 1;
    b.arena = mm_arena_create(dev);
    bool slots = strcmp(o.shard, "none") != 0, near = strcmp(o.shard, "node") == 0;
    b.model = mm_model_create_in_slots(b.arena, &s.arch, dtype_of(o.dtype), s.context,
                                       slots ? MM_SLOTS : 0);
    struct mm_spread *spread = slots ? mm_spread_create(b.arena, comm, b.model, near) : NULL;
    b.times = mm_calloc((size_t)b.repeats, sizeof *b.times);
    mm_model_randomize(b.model, 1);
    if (strcmp(o.what, "loop") == 0)
        time_loops(&b, &o);
    else
        time_relearning(&b, &o);
    if (mm_comm_rank(comm) == 0)
        print_result(&b, &o);
    mm_free(b.times);
    mm_spread_free(spread);
    mm_model_free(b.model);
    mm_arena_free(b.arena);
    mm_comm_free(comm); /* before the device that it works on */
    mm_device_free(dev);
    return 0;
}
