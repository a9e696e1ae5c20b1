/* bench_gpu.c - the speed of every operation that a loop takes, beside the limit of the hardware.
 *
 *   bench_gpu [--device cuda|cpu] [--shape llama-1b] [--dtype bfloat16|float32] [--seconds 0.05]
 *   bench_gpu --model llama-1b [--dtype bfloat16|float32] [--state float32|bfloat16]
 *             [--graph listing|fresh|reuse]
 *
 * --model runs nothing on a device: it computes the least time of a whole loop (roofline.h).
 * An operation's bytes are what it must read and write at least, its FLOPs those of its definition
 * (2 a multiply-add; of attention, the causal half). Its limit is the larger of bytes / bandwidth
 * and FLOPs / peak of the GPU, where its name tells both; shown is limit / time. Small operands
 * stay in the GPU's cache, so that a share can exceed 100 %. */
#include "tests/bench/roofline.h"
#include "kernels/queue.h"
#include "src/base/base.h"

#include <math.h>

#define BATCH     16
#define CONTEXT   100
#define HEAD_ROWS ((size_t)512) /* of a chunk of logits, at most */

/* What the rows work on. n tokens, C width, M MLP width, V vocabulary. */
struct bench {
    struct mm_device *dev;
    const struct mm_ops *ops;
    struct shape shape;
    enum mm_dtype dtype;
    size_t n, head_rows;
    uint32_t *tokens;
    struct mm_mat x, y, sum;    /* [n, C] */
    struct mm_mat u, du, h, dh; /* [n, M or 2M], [n, M] */
    struct mm_mat qkv, dqkv, att, datt;
    struct mm_mat table;  /* [V, C]: embedding, head */
    struct mm_mat logits; /* [head_rows, V] */
    struct mm_mat w_qkv, w_o, w_up, w_down;
    struct mm_mat dw;     /* float32 [M, C] */
    struct mm_mat dtable; /* float32 [V, C] */
    float *stats, *lse, *losses, *bias, *cosine, *sine;
    double *scalars, *scale;
    struct mm_loop_scalars *loop;
    struct mm_mask_sums *sums;
    size_t *offsets, tensors_n;
    struct mm_vector b, m, g, second;
};

/* -- the rows ---------------------------------------------------------------------------------- */

struct row {
    const char *name;
    void (*run)(const struct bench *b);
    /* Elements moved by their place: activations and weights | float32; and FLOPs. */
    double (*elements)(const struct bench *b);
    double (*floats)(const struct bench *b);
    double (*flops)(const struct bench *b);
};

static double none(const struct bench *b) {
    (void)b;
    return 0;
}
static double size(struct mm_mat m) {
    return (double)m.rows * (double)m.cols;
}
static double flops_of(struct mm_mat w, size_t n) {
    return 2 * size(w) * (double)n;
}

/* Rows of one product y = x·wᵀ: forward, dx, and dw where it is wanted. */
#define PRODUCT(name, x, w, y, n)                                                                  \
    static void run_##name(const struct bench *b) {                                                \
        b->ops->linear(b->dev, y, x, w, NULL, MM_SET);                                             \
    }                                                                                              \
    static void run_##name##_dx(const struct bench *b) {                                           \
        b->ops->linear_dx(b->dev, x, y, w, MM_SET);                                                \
    }                                                                                              \
    static double elements_##name(const struct bench *b) {                                         \
        return size(x) + size(w) + size(y);                                                        \
    }                                                                                              \
    static double flops_##name(const struct bench *b) {                                            \
        return flops_of(w, n);                                                                     \
    }
PRODUCT(qkv, b->x, b->w_qkv, b->qkv, b->n)
PRODUCT(o, b->att, b->w_o, b->y, b->n)
PRODUCT(up, b->x, b->w_up, b->u, b->n)
PRODUCT(down, b->h, b->w_down, b->y, b->n)
PRODUCT(head, mm_mat_rows(b->x, 0, b->head_rows), b->table, b->logits, b->head_rows)

static void run_dw(const struct bench *b) {
    b->ops->linear_dw(b->dev, b->dw, mm_mat_cols(b->du, 0, b->dw.rows), b->x, MM_SET);
}
static double elements_dw(const struct bench *b) {
    return size(b->x) + size(b->h);
}
static double floats_dw(const struct bench *b) {
    return size(b->dw);
}
static double flops_dw(const struct bench *b) {
    return flops_of(b->dw, b->n);
}

static struct mm_norm norm_of(const struct bench *b) {
    const struct mm_arch *a = &b->shape.arch;
    const void *bias = a->norm == MM_LAYER_NORM ? b->table.data : NULL;
    return (struct mm_norm){a->norm, a->epsilon, b->table.data, bias, 1};
}
static void run_norm(const struct bench *b) {
    struct mm_norm how = norm_of(b);
    b->ops->norm(b->dev, &how, b->sum, b->x, b->y, b->y, b->stats);
}
static void run_norm_grad(const struct bench *b) {
    struct mm_norm how = norm_of(b);
    b->ops->norm_grad(b->dev, &how, b->sum, b->y, b->x, b->stats, NULL, NULL);
}
static double elements_norm(const struct bench *b) {
    return 4 * size(b->x);
}
static void run_rope(const struct bench *b) {
    b->ops->rope(b->dev, b->qkv, &b->shape.arch.heads, CONTEXT, b->cosine, b->sine, MM_TURN);
}
static double elements_rope(const struct bench *b) {
    const struct mm_heads *h = &b->shape.arch.heads;
    return 2 * (double)(b->n * (h->heads + h->kv_heads) * h->rotary_dim);
}
static void run_attention(const struct bench *b) {
    b->ops->attention(b->dev, b->att, b->qkv, b->lse, &b->shape.arch.heads, CONTEXT);
}
static void run_attention_grad(const struct bench *b) {
    b->ops->attention_grad(b->dev, b->dqkv, b->datt, b->att, b->qkv, b->lse, &b->shape.arch.heads,
                           CONTEXT);
}
static double elements_attention(const struct bench *b) {
    return size(b->qkv) + size(b->att);
}
static double elements_attention_grad(const struct bench *b) {
    return 2 * size(b->qkv) + 2 * size(b->att);
}
static double flops_attention(const struct bench *b) {
    return 2 * size(b->att) * CONTEXT;
}
static double flops_attention_grad(const struct bench *b) {
    return 5 * size(b->att) * CONTEXT;
}
static void run_activate(const struct bench *b) {
    b->ops->activate(b->dev, b->shape.arch.activation, b->h, b->u);
}
static void run_activate_grad(const struct bench *b) {
    b->ops->activate_grad(b->dev, b->shape.arch.activation, b->du, b->dh, b->u);
}
static double elements_activate(const struct bench *b) {
    return size(b->u) + size(b->h);
}
static double elements_activate_grad(const struct bench *b) {
    return 2 * size(b->u) + size(b->h);
}
static void run_embed(const struct bench *b) {
    b->ops->embed(b->dev, b->x, b->table, b->tokens);
}
static void run_embed_grad(const struct bench *b) {
    b->ops->embed_grad(b->dev, b->dtable, b->x, b->tokens, MM_NO_TOKEN);
}
static double elements_x(const struct bench *b) {
    return size(b->x);
}
static double elements_embed(const struct bench *b) {
    return 2 * size(b->x);
}
static double floats_embed_grad(const struct bench *b) {
    return 2 * size(b->x);
}
static void run_bias_db(const struct bench *b) {
    b->ops->bias_db(b->dev, b->bias, b->qkv);
}
static double elements_bias_db(const struct bench *b) {
    return size(b->qkv);
}
static void run_loss(const struct bench *b) {
    struct mm_loss how = {.fn = MM_LOSS_CROSS_ENTROPY, .scale = 1};
    b->ops->loss(b->dev, &how, b->logits, b->tokens, b->losses, b->logits);
}
static double elements_loss(const struct bench *b) {
    return 2 * size(b->logits);
}

/* Vectors of Algorithm 1, float32. `times`: how often an element is read or written. */
#define VECTOR(name, times, ...)                                                                   \
    static void run_##name(const struct bench *b) {                                                \
        b->ops->name(b->dev, __VA_ARGS__);                                                         \
    }                                                                                              \
    static double floats_##name(const struct bench *b) {                                           \
        return (times) * (double)b->b.n;                                                           \
    }
VECTOR(sum_squares, 1, b->scalars, b->g, MM_F32)
VECTOR(fork, 2, b->m, b->b, &b->loop->stop)
VECTOR(retain_step, 5, b->m, b->b, b->g, 0.9, 1e-9, &b->loop->stop)
VECTOR(adversary_step, 4, b->m, b->b, b->g, 1e-9, 0.99, NULL, &b->loop->stop)
#define MASK(b)                                                                                    \
    &(struct mm_mask) {                                                                            \
        (b)->m, true, (b)->offsets, (b)->tensors_n                                                 \
    }
VECTOR(mask_sums, 2, b->sums, b->g, MASK(b), NULL)
VECTOR(unlearn_step, 4, b->b, b->g, MASK(b), b->scale, 1e-9, NULL, &b->loop->stop)
VECTOR(sgd_step, 3, b->b, b->g, 1e-9)
VECTOR(adamw_step, 7, b->b, b->m, b->second, b->g,
       &(struct mm_adamw){1, 1e-9, {0.9, 0.95}, 1e-8, 0.1, 1})
VECTOR(unlearn_scale, 0, &(struct mm_normalizing){MM_NORM_GLOBAL_PRE_MASK, false, 1, MM_F32},
       b->scale, b->sums, b->tensors_n, b->loop)

static void run_convert(const struct bench *b) {
    b->ops->convert(b->dev, b->m.data, MM_BF16, b->b.data, MM_F32, b->b.n);
}
static double floats_convert(const struct bench *b) {
    return 1.5 * (double)b->b.n;
}
static void run_scale(const struct bench *b) {
    struct mm_mat g = mm_mat(b->g.data, MM_F32, 1, b->g.n);
    b->ops->scale(b->dev, g, g, -1);
}

#define PRODUCT_ROWS(name)                                                                         \
    {#name, run_##name, elements_##name, none, flops_##name}, {                                    \
#name " dx", run_##name##_dx, elements_##name, none, flops_##name                          \
    }
#define VECTOR_ROW(name)                                                                           \
    { #name, run_##name, none, floats_##name, none }

static const struct row rows[] = {
    PRODUCT_ROWS(qkv),
    PRODUCT_ROWS(o),
    PRODUCT_ROWS(up),
    PRODUCT_ROWS(down),
    PRODUCT_ROWS(head),
    {"target dw", run_dw, elements_dw, floats_dw, flops_dw},
    {"norm", run_norm, elements_norm, none, none},
    {"norm_grad", run_norm_grad, elements_norm, none, none},
    {"rope", run_rope, elements_rope, none, none},
    {"attention", run_attention, elements_attention, none, flops_attention},
    {"attention_grad", run_attention_grad, elements_attention_grad, none, flops_attention_grad},
    {"activate", run_activate, elements_activate, none, none},
    {"activate_grad", run_activate_grad, elements_activate_grad, none, none},
    {"embed", run_embed, elements_embed, none, none},
    {"embed_grad", run_embed_grad, elements_x, floats_embed_grad, none},
    {"bias_db", run_bias_db, elements_bias_db, none, none},
    {"loss", run_loss, elements_loss, none, none},
    VECTOR_ROW(sum_squares),
    VECTOR_ROW(fork),
    VECTOR_ROW(retain_step),
    VECTOR_ROW(adversary_step),
    VECTOR_ROW(mask_sums),
    VECTOR_ROW(unlearn_scale),
    VECTOR_ROW(unlearn_step),
    VECTOR_ROW(sgd_step),
    VECTOR_ROW(adamw_step),
    VECTOR_ROW(convert),
    {"scale", run_scale, none, floats_fork, none},
};

/* -- memory ------------------------------------------------------------------------------------ */

/* Random values of deviation `scale`, as zeros would cost a GPU less power and time. */
static void fill(const struct bench *b, void *data, enum mm_dtype dtype, size_t n, float scale) {
    enum { BLOCK = 1 << 20 };
    static float values[BLOCK];
    static unsigned char converted[sizeof values];
    static uint32_t seed = 1;
    for (size_t i = 0; i < BLOCK; i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = scale * 3.46f * ((float)(seed >> 8) * 0x1p-24f - 0.5f);
    }
    mm_convert(converted, dtype, values, MM_F32, BLOCK);
    for (size_t at = 0; at < n; at += BLOCK) {
        size_t bytes = mm_dtype_bytes(dtype);
        b->dev->queue->upload(b->dev, (char *)data + at * bytes, converted,
                              bytes * (n - at < BLOCK ? n - at : BLOCK));
    }
}

static void *take(const struct bench *b, size_t bytes) {
    void *block = b->dev->queue->alloc(b->dev, bytes);
    MM_CHECK(block != NULL, "no memory for %zu bytes", bytes);
    return block;
}

static struct mm_mat matrix(const struct bench *b, enum mm_dtype dtype, size_t n, size_t cols,
                            float scale) {
    struct mm_mat m = mm_mat(take(b, n * cols * mm_dtype_bytes(dtype)), dtype, n, cols);
    fill(b, m.data, dtype, n * cols, scale);
    return m;
}

static struct mm_vector vector(const struct bench *b, size_t n) {
    return (struct mm_vector){matrix(b, MM_F32, 1, n, 0.02f).data, n, MM_F32};
}

static void take_tokens(struct bench *b) {
    uint32_t *tokens = mm_calloc(b->n, sizeof *tokens);
    for (size_t i = 0; i < b->n; i++)
        tokens[i] = (uint32_t)(i * 2654435761u % b->shape.arch.vocab);
    b->tokens = take(b, b->n * sizeof *tokens);
    b->dev->queue->upload(b->dev, b->tokens, tokens, b->n * sizeof *tokens);
    mm_free(tokens);
}

static void take_rope(struct bench *b) {
    size_t n = CONTEXT * b->shape.arch.heads.rotary_dim / 2, bytes = n * sizeof(float);
    float *cosine = mm_calloc(2 * n, sizeof *cosine);
    mm_arch_rope(&b->shape.arch, CONTEXT, cosine, cosine + n);
    b->cosine = take(b, bytes);
    b->sine = take(b, bytes);
    b->dev->queue->upload(b->dev, b->cosine, cosine, bytes);
    b->dev->queue->upload(b->dev, b->sine, cosine + n, bytes);
    mm_free(cosine);
}

/* W: the target of every layer, [M, C] each. */
static void take_vectors(struct bench *b) {
    const struct mm_arch *a = &b->shape.arch;
    size_t n = a->layers * a->mlp * a->width, bytes = (a->layers + 1) * sizeof(size_t);
    size_t *offsets = mm_calloc(a->layers + 1, sizeof *offsets);
    for (size_t i = 0; i <= a->layers; i++)
        offsets[i] = i * a->mlp * a->width;
    b->tensors_n = a->layers;
    b->offsets = take(b, bytes);
    b->dev->queue->upload(b->dev, b->offsets, offsets, bytes);
    mm_free(offsets);
    b->b = vector(b, n);
    b->m = vector(b, n);
    b->g = vector(b, n);
    b->second = vector(b, n);
    b->sums = take(b, b->tensors_n * sizeof *b->sums);
    b->scale = take(b, b->tensors_n * sizeof *b->scale);
    b->scalars = take(b, sizeof *b->scalars);
    b->loop = take(b, sizeof *b->loop);
}

static void take_all(struct bench *b) {
    const struct mm_arch *a = &b->shape.arch;
    const struct mm_heads *h = &a->heads;
    size_t n = b->n, C = a->width, up = a->activation == MM_SWIGLU ? 2 * a->mlp : a->mlp;
    size_t fused = (h->heads + 2 * h->kv_heads) * h->head_dim, out = h->heads * h->head_dim;
    b->head_rows = n < HEAD_ROWS ? n : HEAD_ROWS;
    struct {
        struct mm_mat *m;
        size_t rows, cols;
        float scale;
    } all[] = {
        {&b->x, n, C, 1},
        {&b->y, n, C, 1},
        {&b->sum, n, C, 1},
        {&b->u, n, up, 1},
        {&b->du, n, up, 1},
        {&b->h, n, a->mlp, 1},
        {&b->dh, n, a->mlp, 1},
        {&b->qkv, n, fused, 1},
        {&b->dqkv, n, fused, 1},
        {&b->att, n, out, 1},
        {&b->datt, n, out, 1},
        {&b->table, a->vocab, C, 0.02f},
        {&b->w_qkv, fused, C, 0.02f},
        {&b->w_o, C, out, 0.02f},
        {&b->w_up, up, C, 0.02f},
        {&b->w_down, C, a->mlp, 0.02f},
        {&b->logits, b->head_rows, a->vocab, 1},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        *all[i].m = matrix(b, b->dtype, all[i].rows, all[i].cols, all[i].scale);
    b->dw = matrix(b, MM_F32, a->mlp, C, 0);
    b->dtable = matrix(b, MM_F32, a->vocab, C, 0);
    b->stats = take(b, 2 * n * sizeof *b->stats);
    b->lse = take(b, n * h->heads * sizeof *b->lse);
    b->losses = take(b, n * sizeof *b->losses);
    b->bias = take(b, fused * sizeof *b->bias);
    take_tokens(b);
    take_rope(b);
    take_vectors(b);
}

/* -- time -------------------------------------------------------------------------------------- */

/* Bytes and FLOPs a second, by a part of the device's name. */
static const struct limit {
    const char *name;
    double bandwidth, flops_bf16, flops_f32;
} limits[] = {
    {"H200", 4.8e12, 989e12, 67e12},
    {"H100", 3.35e12, 989e12, 67e12},
};

static const struct limit *limit_of(const struct bench *b) {
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        if (strstr(b->dev->name, limits[i].name))
            return &limits[i];
    return NULL;
}

/* Seconds of `times` runs one behind the other. */
static double run_for(const struct bench *b, const struct row *row, size_t times) {
    double start = mm_now();
    for (size_t i = 0; i < times; i++)
        row->run(b);
    b->dev->queue->mark(b->dev, 0);
    b->dev->queue->wait(b->dev, 0);
    return mm_now() - start;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median of 5 series of a fifth of `seconds` each; the first runs warm up and say how many those
 * are. */
static double time_of(const struct bench *b, const struct row *row, double seconds) {
    double times[5];
    run_for(b, row, 1);
    double once = fmin(run_for(b, row, 1), run_for(b, row, 3) / 3);
    size_t n = (size_t)fmax(1, fmin(1000, seconds / 5 / once));
    for (size_t i = 0; i < 5; i++)
        times[i] = run_for(b, row, n) / (double)n;
    qsort(times, 5, sizeof *times, ascending);
    return times[2];
}

static void print_row(const struct bench *b, const struct row *row, double seconds) {
    const struct limit *limit = limit_of(b);
    double bytes = row->elements(b) * (double)mm_dtype_bytes(b->dtype) + row->floats(b) * 4;
    double flops = row->flops(b), time = time_of(b, row, seconds);
    printf("%-16s %10.4f %9.1f %9.2f", row->name, 1e3 * time, 1e-9 * bytes / time,
           1e-12 * flops / time);
    if (limit && bytes + flops > 0) {
        double peak = b->dtype == MM_BF16 ? limit->flops_bf16 : limit->flops_f32;
        double memory = bytes / limit->bandwidth, arithmetic = flops / peak;
        printf("  %3.0f %% of %s", 100 * fmax(memory, arithmetic) / time,
               memory > arithmetic ? "bandwidth" : "arithmetic");
    }
    printf("\n");
    fflush(stdout);
}

static struct mm_device *open_device(const char *name) {
    struct mm_error err = {""};
    struct mm_device *dev =
        strcmp(name, "cpu") == 0 ? mm_device_create_cpu() : mm_device_create_cuda(0, &err);
    if (!dev) {
        fprintf(stderr, "%s\n", err.text);
        exit(77);
    }
    return dev;
}

struct options {
    const char *device, *shape, *model, *dtype, *state, *graph, *seconds;
};

static struct options read_options(int argc, char **argv) {
    struct options o = {"cuda", "llama-1b", "", "bfloat16", "float32", "listing", "0.05"};
    const struct option_of all[] = {{"--device", &o.device},  {"--shape", &o.shape},
                                    {"--model", &o.model},    {"--dtype", &o.dtype},
                                    {"--state", &o.state},    {"--graph", &o.graph},
                                    {"--seconds", &o.seconds}};
    read_values(argc, argv, all, sizeof all / sizeof *all);
    return o;
}

static void time_rows(const struct options *o) {
    struct bench b = {.shape = find_shape(o->shape), .n = BATCH * CONTEXT};
    b.dtype = strcmp(o->device, "cpu") == 0 ? MM_F32 : dtype_of(o->dtype);
    b.dev = open_device(o->device);
    b.ops = b.dev->ops;
    take_all(&b);
    printf("%s, %s, %d x %d tokens, %s; W: %zu tensors, %zu elements of float32\n", b.dev->name,
           o->shape, BATCH, CONTEXT, mm_dtype_name(b.dtype), b.tensors_n, b.b.n);
    printf("%-16s %10s %9s %9s  %s\n", "operation", "ms", "GB/s", "TFLOP/s", "share of the limit");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        print_row(&b, &rows[i], atof(o->seconds));
    mm_device_free(b.dev); /* and its memory, with the process */
}

int main(int argc, char **argv) {
    struct options o = read_options(argc, argv);
    if (*o.model)
        return roofline(&argc, &argv, find_shape(o.model), dtype_of(o.dtype), dtype_of(o.state),
                        graph_of(o.graph));
    time_rows(&o);
    return 0;
}
