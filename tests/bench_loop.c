/* bench_loop.c - times one MUDMAN loop or one relearning step on random weights in a model's shape.
 *
 *   bench_loop --shape demo|pythia-14m|smollm-135m --what loop|relearn --threads N --repeats K
 *
 * Prints one line; under mpirun the ranks share the batch. tests/bench_peer.py puts PyTorch beside
 * it. */
#include "src/mudman.h"
#include "src/training.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

struct shape {
    const char *name;
    struct mm_arch arch;
    char *target;
    size_t batch, context;
};

static struct mm_heads fused_heads(size_t heads, size_t kv, size_t d) {
    return (struct mm_heads){.heads = heads,
                             .kv_heads = kv,
                             .head_dim = d,
                             .rotary_dim = d,
                             .q_step = d,
                             .k_first = heads * d,
                             .k_step = d,
                             .v_first = (heads + kv) * d,
                             .v_step = d};
}

static struct mm_arch llama(size_t layers, size_t width, size_t mlp, size_t vocab, size_t heads,
                            size_t kv) {
    return (struct mm_arch){.family = MM_LLAMA,
                            .layers = layers,
                            .width = width,
                            .mlp = mlp,
                            .vocab = vocab,
                            .heads = fused_heads(heads, kv, width / heads),
                            .norm = MM_RMS_NORM,
                            .epsilon = 1e-5f,
                            .activation = MM_SWIGLU,
                            .tied = true,
                            .rope_theta = 1e4,
                            .initializer_range = 0.02};
}

static struct mm_arch pythia_14m(void) {
    size_t d = 32;
    return (struct mm_arch){.family = MM_NEOX,
                            .layers = 6,
                            .width = 128,
                            .mlp = 512,
                            .vocab = 50304,
                            .heads = {.heads = 4,
                                      .kv_heads = 4,
                                      .head_dim = d,
                                      .rotary_dim = 8,
                                      .q_step = 3 * d,
                                      .k_first = d,
                                      .k_step = 3 * d,
                                      .v_first = 2 * d,
                                      .v_step = 3 * d},
                            .norm = MM_LAYER_NORM,
                            .epsilon = 1e-5f,
                            .activation = MM_GELU,
                            .parallel = true,
                            .qkv_bias = true,
                            .o_bias = true,
                            .mlp_bias = true,
                            .rope_theta = 1e4,
                            .initializer_range = 0.02};
}

static struct shape find_shape(const char *name) {
    const struct shape shapes[] = {
        {"demo", llama(3, 64, 192, 256, 4, 2), "gate_proj", 8, 96},
        {"pythia-14m", pythia_14m(), "dense_h_to_4h", 4, 100},
        {"smollm-135m", llama(30, 576, 1536, 49152, 9, 3), "gate_proj", 4, 100},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (strcmp(shapes[i].name, name) == 0)
            return shapes[i];
    fprintf(stderr, "no shape '%s'\n", name);
    exit(2);
}

static uint32_t *random_tokens(const struct shape *s, unsigned seed) {
    uint32_t *tokens = mm_calloc(s->batch * s->context, sizeof *tokens);
    for (size_t i = 0; i < s->batch * s->context; i++) {
        seed = seed * 1664525u + 1013904223u;
        tokens[i] = (seed >> 8) % (uint32_t)s->arch.vocab;
    }
    return tokens;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct mm_config config_of(const struct shape *s) {
    struct mm_config c = {0};
    c.model.state_dtype = MM_F32;
    c.data.batch_size = c.data.micro_batch = s->batch;
    c.data.context_length = s->context;
    c.unlearn.loss_fn = MM_LOSS_NEG_CROSS_ENTROPY;
    c.unlearn.unlearning_rate = 1e-2;
    c.unlearn.retaining_rate = c.unlearn.adv_lr = 1e-3;
    c.unlearn.retain_momentum = 0.9;
    c.unlearn.fork_every_n_loops = 1000000;
    c.unlearn.adv_decay = 1;
    c.unlearn.train_adversary = c.unlearn.use_masking = true;
    return c;
}

/* times[repeats + 1]: the first is the warm-up. */
static void time_loops(const struct shape *s, struct mm_arena *arena, struct mm_comm *comm,
                       struct mm_model *model, double *times, int repeats) {
    struct mm_error err;
    struct mm_config config = config_of(s);
    bool *wanted = mm_calloc(model->params_n, 1);
    char *target = s->target;
    MM_CHECK(mm_model_choose(model, &target, 1, wanted, &err) == MM_OK, "%s", err.text);
    struct mm_shard *shard = mm_shard_create(arena, comm, model, wanted);
    struct mm_mudman *u = mm_mudman_create(arena, &config, comm, model, shard);
    uint32_t *retain = random_tokens(s, 1), *forget = random_tokens(s, 2);
    size_t first = u->passes->first * s->context;
    for (int i = 0; i <= repeats; i++) {
        double start = mm_now();
        mm_mudman_loop(u, (size_t)i, retain + first, forget + first);
        times[i] = mm_now() - start;
    }
    mm_free(retain);
    mm_free(forget);
    mm_free(wanted);
    mm_mudman_free(u);
    mm_shard_free(shard);
}

static void time_relearning(const struct shape *s, struct mm_arena *arena, struct mm_comm *comm,
                            struct mm_model *model, double *times, int repeats) {
    struct mm_training *t =
        mm_training_create(arena, comm, model, s->batch, s->batch, s->context, MM_F32, false);
    uint32_t *tokens = random_tokens(s, 1);
    for (int i = 0; i <= repeats; i++) {
        double start = mm_now();
        mm_training_sgd(t, tokens + t->passes->first * s->context, 1e-3);
        times[i] = mm_now() - start;
    }
    mm_free(tokens);
    mm_training_free(t);
}

int main(int argc, char **argv) {
    const char *name = "demo", *what = "loop";
    int threads = 1, repeats = 5;
    struct mm_comm *comm = mm_comm_create(&argc, &argv);
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--shape") == 0)
            name = argv[i + 1];
        else if (strcmp(argv[i], "--what") == 0)
            what = argv[i + 1];
        else if (strcmp(argv[i], "--threads") == 0)
            threads = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--repeats") == 0)
            repeats = atoi(argv[i + 1]);
    }
    omp_set_num_threads(threads);
    struct shape s = find_shape(name);
    struct mm_device *dev = mm_device_create_cpu();
    struct mm_arena *arena = mm_arena_create(dev, false);
    struct mm_model *model = mm_model_create(arena, &s.arch, MM_F32, s.context);
    double *times = mm_calloc((size_t)repeats + 1, sizeof *times);
    bool loop = strcmp(what, "loop") == 0;
    mm_model_randomize(model, 1);
    (loop ? time_loops : time_relearning)(&s, arena, comm, model, times, repeats);
    qsort(times + 1, (size_t)repeats, sizeof *times, ascending);
    double seconds = times[1 + repeats / 2];
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    if (mm_comm_rank(comm) == 0)
        printf("shape=%s what=%s threads=%d ranks=%d ms=%.3f tokens_per_s=%.1f peak_bytes=%ld\n",
               name, what, threads, mm_comm_size(comm), 1e3 * seconds,
               (double)(s.batch * s.context * (loop ? 2 : 1)) / seconds, usage.ru_maxrss * 1024);
    mm_free(times);
    mm_model_free(model);
    mm_arena_free(arena);
    mm_device_free(dev);
    mm_comm_free(comm);
    return 0;
}
