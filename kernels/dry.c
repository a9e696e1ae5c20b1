/* dry.c - see dry.h. Each operation says how many FLOPs it is and how many bytes it reads and
 * writes; those of a few numbers count as started, and no more. */
#include "kernels/dry.h"

#include "kernels/ops.h"
#include "kernels/queue.h"

struct dry {
    struct mm_device *cpu; /* dry, too; NULL: a GPU's place */
    struct mm_ops ops;
    struct mm_rates rates;
    struct mm_clock clock;
};

static double over(double amount, double rate) {
    return rate > 0 ? amount / rate : 0;
}

static void spend(struct mm_device *dev, enum mm_spent on, double flops, double rate,
                  double bytes) {
    struct dry *d = dev->context;
    double arithmetic = over(flops, rate), traffic = over(bytes, d->rates.memory);
    d->clock.flops += flops;
    d->clock.bytes += bytes;
    mm_clock_spend(&d->clock, on, d->rates.start + (arithmetic > traffic ? arithmetic : traffic));
}

static double rate_of(struct mm_device *dev, enum mm_dtype dtype) {
    const struct dry *d = dev->context;
    return dtype == MM_F32 ? d->rates.float32 : d->rates.bfloat16;
}

/* One pass over `bytes` bytes. */
static void pass(struct mm_device *dev, enum mm_spent on, double bytes) {
    spend(dev, on, 0, 0, bytes);
}

static double bytes_of(struct mm_mat m) {
    return m.data ? (double)m.rows * (double)m.cols * (double)mm_dtype_bytes(m.dtype) : 0;
}

static double bytes_in(struct mm_vector v) {
    return v.data ? (double)v.n * (double)mm_dtype_bytes(v.dtype) : 0;
}

/* Asks the CPU's device for the room of an operation. */
#define TAKE_ROOM(dev, operation, ...)                                                             \
    do {                                                                                           \
        struct mm_device *cpu = ((struct dry *)(dev)->context)->cpu;                               \
        if (!cpu)                                                                                  \
            break;                                                                                 \
        cpu->exact = (dev)->exact;                                                                 \
        cpu->ops->operation(cpu, __VA_ARGS__);                                                     \
        (dev)->own_bytes = cpu->own_bytes;                                                         \
    } while (0)

/* -- matrix products --------------------------------------------------------------------------- */

/* Of m x n results, each a sum of k terms. */
static void product(struct mm_device *dev, struct mm_mat result, enum mm_into into, size_t k,
                    enum mm_dtype dtype, double read) {
    double results = (double)result.rows * (double)result.cols;
    spend(dev, MM_ON_PRODUCTS, 2 * results * (double)k, rate_of(dev, dtype),
          read + bytes_of(result) * (into == MM_ADD ? 2 : 1));
}

static void dry_linear(struct mm_device *dev, struct mm_mat y, struct mm_mat x, struct mm_mat w,
                       const void *bias, enum mm_into into) {
    TAKE_ROOM(dev, linear, y, x, w, bias, into);
    product(dev, y, into, x.cols, w.dtype, bytes_of(x) + bytes_of(w));
}

static void dry_linear_dx(struct mm_device *dev, struct mm_mat dx, struct mm_mat dy,
                          struct mm_mat w, enum mm_into into) {
    TAKE_ROOM(dev, linear_dx, dx, dy, w, into);
    product(dev, dx, into, dy.cols, w.dtype, bytes_of(dy) + bytes_of(w));
}

static void dry_linear_dw(struct mm_device *dev, struct mm_mat dw, struct mm_mat dy,
                          struct mm_mat x, enum mm_into into) {
    TAKE_ROOM(dev, linear_dw, dw, dy, x, into);
    product(dev, dw, into, dy.rows, x.dtype, bytes_of(dy) + bytes_of(x));
}

static void dry_bias_db(struct mm_device *dev, float *db, struct mm_mat dy) {
    (void)db;
    pass(dev, MM_ON_LAYERS, bytes_of(dy));
}

/* -- transformer ------------------------------------------------------------------------------- */

static void dry_embed(struct mm_device *dev, struct mm_mat x, struct mm_mat table,
                      const uint32_t *tokens) {
    (void)table;
    (void)tokens;
    pass(dev, MM_ON_LAYERS, 2 * bytes_of(x));
}

static void dry_embed_grad(struct mm_device *dev, struct mm_mat dtable, struct mm_mat dx,
                           const uint32_t *tokens, uint32_t skipped) {
    (void)tokens;
    (void)skipped;
    dtable.rows = dx.rows; /* those that tokens name */
    pass(dev, MM_ON_LAYERS, bytes_of(dx) + 2 * bytes_of(dtable));
}

static void dry_norm(struct mm_device *dev, const struct mm_norm *how, struct mm_mat sum,
                     struct mm_mat x, struct mm_mat delta, struct mm_mat y, float *stats) {
    (void)how;
    (void)stats;
    pass(dev, MM_ON_LAYERS,
         bytes_of(x) + bytes_of(y) + (delta.data ? bytes_of(delta) + bytes_of(sum) : 0));
}

static void dry_norm_grad(struct mm_device *dev, const struct mm_norm *how, struct mm_mat dx,
                          struct mm_mat dy, struct mm_mat x, const float *stats, float *dweight,
                          float *dbias) {
    (void)how;
    (void)stats;
    (void)dweight;
    (void)dbias;
    pass(dev, MM_ON_LAYERS, 2 * bytes_of(dx) + bytes_of(dy) + bytes_of(x));
}

static void dry_rope(struct mm_device *dev, struct mm_mat qkv, const struct mm_heads *heads,
                     size_t T, const float *cosine, const float *sine, enum mm_turn turn) {
    (void)T;
    (void)cosine;
    (void)sine;
    (void)turn;
    qkv.cols = (heads->heads + heads->kv_heads) * heads->rotary_dim;
    pass(dev, MM_ON_LAYERS, 2 * bytes_of(qkv));
}

/* Each product of a causal attention: half of T x T scores for each head of each sequence. */
static double attention_flops(struct mm_mat qkv, const struct mm_heads *heads, size_t T) {
    return (double)qkv.rows * (double)T * (double)(heads->heads * heads->head_dim);
}

static void dry_attention(struct mm_device *dev, struct mm_mat out, struct mm_mat qkv, float *lse,
                          const struct mm_heads *heads, size_t T) {
    TAKE_ROOM(dev, attention, out, qkv, lse, heads, T);
    spend(dev, MM_ON_LAYERS, 2 * attention_flops(qkv, heads, T), rate_of(dev, qkv.dtype),
          bytes_of(qkv) + bytes_of(out));
}

static void dry_attention_grad(struct mm_device *dev, struct mm_mat dqkv, struct mm_mat dout,
                               struct mm_mat out, struct mm_mat qkv, const float *lse,
                               const struct mm_heads *heads, size_t T) {
    TAKE_ROOM(dev, attention_grad, dqkv, dout, out, qkv, lse, heads, T);
    spend(dev, MM_ON_LAYERS, 5 * attention_flops(qkv, heads, T), rate_of(dev, qkv.dtype),
          bytes_of(dqkv) + bytes_of(dout) + bytes_of(out) + bytes_of(qkv));
}

static void dry_activate(struct mm_device *dev, enum mm_activation kind, struct mm_mat h,
                         struct mm_mat u) {
    (void)kind;
    pass(dev, MM_ON_LAYERS, bytes_of(h) + bytes_of(u));
}

static void dry_activate_grad(struct mm_device *dev, enum mm_activation kind, struct mm_mat du,
                              struct mm_mat dh, struct mm_mat u) {
    (void)kind;
    pass(dev, MM_ON_LAYERS, bytes_of(du) + bytes_of(dh) + bytes_of(u));
}

/* -- losses ------------------------------------------------------------------------------------ */

static void dry_loss(struct mm_device *dev, const struct mm_loss *how, struct mm_mat logits,
                     const uint32_t *targets, float *losses, struct mm_mat dlogits) {
    TAKE_ROOM(dev, loss, how, logits, targets, losses, dlogits);
    pass(dev, MM_ON_LAYERS, bytes_of(logits) + bytes_of(dlogits));
}

static void dry_sequence_loss(struct mm_device *dev, const struct mm_sequence_loss *how,
                              const float *losses, const uint32_t *targets, size_t B, size_t T,
                              float *terms, float *weights) {
    (void)how;
    (void)losses;
    (void)targets;
    (void)terms;
    (void)weights;
    pass(dev, MM_ON_LAYERS, (double)(B * T) * 3 * sizeof(float));
}

static void dry_state_loss(struct mm_device *dev, enum mm_state_loss kind, struct mm_mat states,
                           struct mm_mat others, const uint32_t *targets, float scale,
                           const double *factor, float *values, struct mm_mat dx) {
    (void)kind;
    (void)targets;
    (void)scale;
    (void)factor;
    (void)values;
    pass(dev, MM_ON_LAYERS, bytes_of(states) + bytes_of(others) + 2 * bytes_of(dx));
}

static void dry_add_squares(struct mm_device *dev, double *sum, const double *x, size_t n) {
    (void)sum;
    (void)x;
    pass(dev, MM_ON_UPDATES, (double)n * sizeof(double));
}

static void dry_sum(struct mm_device *dev, double *sum, const float *values, size_t n,
                    double scale) {
    (void)sum;
    (void)values;
    (void)scale;
    pass(dev, MM_ON_LAYERS, (double)n * sizeof(float));
}

static void dry_add(struct mm_device *dev, struct mm_mat sum, struct mm_mat x, struct mm_mat y) {
    pass(dev, MM_ON_LAYERS, bytes_of(sum) + bytes_of(x) + bytes_of(y));
}

static void dry_scale(struct mm_device *dev, struct mm_mat y, struct mm_mat x, float factor) {
    (void)factor;
    pass(dev, MM_ON_UPDATES, bytes_of(y) + bytes_of(x));
}

static void dry_scale_scalar(struct mm_device *dev, double *y, const double *x, double factor) {
    (void)y;
    (void)x;
    (void)factor;
    pass(dev, MM_ON_UPDATES, 0);
}

/* -- vectors ----------------------------------------------------------------------------------- */

static void dry_sum_squares(struct mm_device *dev, double *sum, struct mm_vector g,
                            enum mm_dtype state_dtype) {
    (void)sum;
    (void)state_dtype;
    pass(dev, MM_ON_UPDATES, bytes_in(g));
}

static void dry_guard(struct mm_device *dev, const double *value, enum mm_guard code,
                      uint32_t *stop) {
    (void)value;
    (void)code;
    (void)stop;
    pass(dev, MM_ON_UPDATES, 0);
}

static void dry_guard_dead(struct mm_device *dev, const double *sum_squares, const double *loss,
                           enum mm_guard code, uint32_t *stop) {
    (void)loss;
    dry_guard(dev, sum_squares, code, stop);
}

static void dry_fork(struct mm_device *dev, struct mm_vector a, struct mm_vector b,
                     const uint32_t *stop) {
    (void)stop;
    pass(dev, MM_ON_UPDATES, bytes_in(a) + bytes_in(b));
}

static void dry_retain_step(struct mm_device *dev, struct mm_vector m, struct mm_vector b,
                            struct mm_vector g, double momentum, double rate,
                            const uint32_t *stop) {
    (void)momentum;
    (void)rate;
    (void)stop;
    pass(dev, MM_ON_UPDATES, 2 * bytes_in(m) + 2 * bytes_in(b) + bytes_in(g));
}

static void dry_adversary_step(struct mm_device *dev, struct mm_vector a, struct mm_vector b,
                               struct mm_vector g, double rate, double decay,
                               const struct mm_places *places, const uint32_t *stop) {
    (void)rate;
    (void)stop;
    double placed = places ? (double)a.n * (double)mm_dtype_bytes(places->dtype) : 0;
    pass(dev, MM_ON_UPDATES,
         2 * bytes_in(a) + bytes_in(g) + (decay == 1 ? 0 : bytes_in(b)) + placed);
}

/* Beside the gradient and m: what the ablations read and write. */
static double options_bytes(const struct mm_unlearn_options *options) {
    return options ? 2 * bytes_in(options->f) + 2 * bytes_in(options->a) : 0;
}

static void dry_mask_sums(struct mm_device *dev, struct mm_mask_sums *sums, struct mm_vector g,
                          const struct mm_mask *mask, const struct mm_unlearn_options *options) {
    (void)sums;
    pass(dev, MM_ON_UPDATES, bytes_in(g) + bytes_in(mask->m) + options_bytes(options));
}

static void dry_unlearn_scale(struct mm_device *dev, const struct mm_normalizing *how,
                              double *scale, const struct mm_mask_sums *sums, size_t tensors_n,
                              struct mm_loop_scalars *scalars) {
    (void)how;
    (void)scale;
    (void)sums;
    (void)scalars;
    pass(dev, MM_ON_UPDATES, (double)tensors_n * sizeof *sums);
}

static void dry_unlearn_step(struct mm_device *dev, struct mm_vector b, struct mm_vector g,
                             const struct mm_mask *mask, const double *scale, double rate,
                             const struct mm_unlearn_options *options, const uint32_t *stop) {
    (void)scale;
    (void)rate;
    (void)stop;
    pass(dev, MM_ON_UPDATES,
         2 * bytes_in(b) + bytes_in(g) + bytes_in(mask->m) + options_bytes(options));
}

static void dry_sgd_step(struct mm_device *dev, struct mm_vector p, struct mm_vector g,
                         double rate) {
    (void)rate;
    pass(dev, MM_ON_UPDATES, 2 * bytes_in(p) + bytes_in(g));
}

static void dry_adamw_step(struct mm_device *dev, struct mm_vector p, struct mm_vector first,
                           struct mm_vector second, struct mm_vector g,
                           const struct mm_adamw *how) {
    (void)how;
    pass(dev, MM_ON_UPDATES,
         2 * bytes_in(p) + 2 * bytes_in(first) + 2 * bytes_in(second) + bytes_in(g));
}

static void dry_convert(struct mm_device *dev, void *dst, enum mm_dtype dst_dtype, const void *src,
                        enum mm_dtype src_dtype, size_t n) {
    (void)dst;
    (void)src;
    pass(dev, MM_ON_UPDATES,
         (double)n * (double)(mm_dtype_bytes(dst_dtype) + mm_dtype_bytes(src_dtype)));
}

static void dry_hold(struct mm_device *dev, struct mm_mat w) {
    struct mm_device *cpu = ((struct dry *)dev->context)->cpu;
    if (cpu)
        cpu->ops->hold(cpu, w);
}

static void dry_let_go(struct mm_device *dev) {
    struct mm_device *cpu = ((struct dry *)dev->context)->cpu;
    if (!cpu)
        return;
    cpu->ops->let_go(cpu);
    dev->own_bytes = cpu->own_bytes;
}

/* -- memory ------------------------------------------------------------------------------------ */

static void dry_zero(struct mm_device *dev, void *block, size_t bytes) {
    (void)block;
    pass(dev, MM_ON_UPDATES, (double)bytes);
}

static void dry_copy(struct mm_device *dev, void *dst, const void *src, size_t bytes) {
    (void)dst;
    (void)src;
    pass(dev, MM_ON_UPDATES, 2 * (double)bytes);
}

/* The host gets zeros. */
static void dry_download(struct mm_device *dev, void *host, const void *src, size_t bytes) {
    (void)dev;
    (void)src;
    memset(host, 0, bytes);
}

static void dry_upload(struct mm_device *dev, void *dst, const void *host, size_t bytes) {
    (void)dev;
    (void)dst;
    (void)host;
    (void)bytes;
}

static const struct mm_queue queue = {
    .zero = dry_zero, .copy = dry_copy, .upload = dry_upload, .download = dry_download};

static void dry_free(struct mm_device *dev) {
    mm_device_free(((struct dry *)dev->context)->cpu);
    mm_free(dev->context);
    mm_free(dev);
}

#define DRY_ROW(operation) .operation = dry_##operation,

struct mm_device *mm_device_create_dry(bool cuda, struct mm_rates rates) {
    struct mm_device *dev = mm_calloc(1, sizeof *dev);
    struct dry *d = mm_calloc(1, sizeof *d);
    d->ops = (struct mm_ops){.chunk = cuda ? MM_CUDA_CHUNK : MM_CPU_CHUNK,
                             .convert = dry_convert,
                             .hold = dry_hold,
                             .let_go = dry_let_go,
                             MM_OPERATIONS(DRY_ROW)};
    d->rates = rates;
    *dev = (struct mm_device){.name = "dry",
                              .dry = true,
                              .queue = &queue,
                              .ops = &d->ops,
                              .context = d,
                              .own_bytes = cuda ? MM_CUDA_WORKSPACE_BYTES : 0,
                              .close = dry_free};
    if (!cuda) {
        d->cpu = mm_device_create_cpu();
        d->cpu->dry = true;
    }
    return dev;
}

bool mm_dry_cuda(const struct mm_device *dev) {
    MM_CHECK(dev->dry, "%s is at work", dev->name);
    return !((const struct dry *)dev->context)->cpu;
}

struct mm_clock *mm_dry_clock(struct mm_device *dev) {
    MM_CHECK(dev->dry, "%s is at work", dev->name);
    return &((struct dry *)dev->context)->clock;
}

struct mm_clock mm_clock_since(const struct mm_clock *now, const struct mm_clock *before) {
    struct mm_clock passed = *now;
    passed.now -= before->now;
    for (int i = 0; i < MM_SPENT_ON; i++)
        passed.seconds[i] -= before->seconds[i];
    passed.between_ranks -= before->between_ranks;
    passed.flops -= before->flops;
    passed.bytes -= before->bytes;
    return passed;
}
