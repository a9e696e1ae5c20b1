/* onednn.c - see onednn.h.
 *
 * oneDNN makes a program for each shape, which takes far longer than a small product: the programs
 * are kept, the least recently used one making room. Weights as we store them are brought into the
 * layout of the instructions within every product. With AVX512-BF16 that costs a few percent. With
 * AMX it costs more than the product, so that weights that don't change are packed once, at the
 * price of a copy. */
#include "kernels/onednn.h"

#include <string.h>

#include <dnnl.h>

#include "kernels/queue.h"

/* A run has some thirty shapes; evaluation of questions adds one for each length. */
#define PREPARED 96

#define CHECK(call)                                                                                \
    do {                                                                                           \
        dnnl_status_t status = (call);                                                             \
        MM_CHECK(status == dnnl_success, "oneDNN: status %d", (int)status);                        \
    } while (0)

/* -- what differs between oneDNN 2 and 3 ------------------------------------------------------- */

#if DNNL_VERSION_MAJOR >= 3
typedef const_dnnl_memory_desc_t layout_ref;
#define LAYOUT(l) (l)

static void layout_drop(dnnl_memory_desc_t *l) {
    dnnl_memory_desc_destroy(*l);
}

static void layout_plain(dnnl_memory_desc_t *l, dnnl_data_type_t type, const dnnl_dims_t dims,
                         const dnnl_dims_t strides) {
    CHECK(dnnl_memory_desc_create_with_strides(l, 2, dims, type, strides));
}

static void layout_any(dnnl_memory_desc_t *l, dnnl_data_type_t type, const dnnl_dims_t dims) {
    CHECK(dnnl_memory_desc_create_with_tag(l, 2, dims, type, dnnl_format_tag_any));
}

static void add_to_c(dnnl_post_ops_t ops) {
    CHECK(dnnl_post_ops_append_sum(ops, 1.0f, 0, dnnl_data_type_undef));
}

static void make_matmul(dnnl_primitive_desc_t *made, dnnl_engine_t engine, layout_ref a,
                        layout_ref b, layout_ref bias, layout_ref c, dnnl_primitive_attr_t attr) {
    CHECK(dnnl_matmul_primitive_desc_create(made, engine, a, b, bias, c, attr));
}
#else
typedef const dnnl_memory_desc_t *layout_ref;
#define LAYOUT(l) (&(l))

static void layout_drop(dnnl_memory_desc_t *l) {
    (void)l;
}

static void layout_plain(dnnl_memory_desc_t *l, dnnl_data_type_t type, const dnnl_dims_t dims,
                         const dnnl_dims_t strides) {
    CHECK(dnnl_memory_desc_init_by_strides(l, 2, dims, type, strides));
}

static void layout_any(dnnl_memory_desc_t *l, dnnl_data_type_t type, const dnnl_dims_t dims) {
    CHECK(dnnl_memory_desc_init_by_tag(l, 2, dims, type, dnnl_format_tag_any));
}

static void add_to_c(dnnl_post_ops_t ops) {
    CHECK(dnnl_post_ops_append_sum(ops, 1.0f));
}

static void make_matmul(dnnl_primitive_desc_t *made, dnnl_engine_t engine, layout_ref a,
                        layout_ref b, layout_ref bias, layout_ref c, dnnl_primitive_attr_t attr) {
    dnnl_matmul_desc_t what;
    CHECK(dnnl_matmul_desc_init(&what, a, b, bias, c));
    CHECK(dnnl_primitive_desc_create(made, &what, attr, engine, NULL));
}
#endif

/* -- what is kept ------------------------------------------------------------------------------ */

/* All that a program depends on; compared as bytes. */
struct key {
    size_t rows, cols, depth, a_ld, b_ld, c_ld;
    unsigned a_transposed, b_transposed, accumulate, bias, packed, dtype, c_dtype;
};

/* The memory objects hold no memory: each product says where its matrices are. */
struct prepared {
    struct key key;
    size_t last_use; /* 0: an empty place */
    dnnl_primitive_t primitive;
    dnnl_memory_t a, b, c, bias, room;
    size_t room_bytes;
};

/* Held weights, and their packed copies as b and as b transposed; NULL: not yet asked for. */
struct held {
    struct mm_mat w;
    dnnl_memory_t packed[2];
};

struct mm_onednn {
    struct mm_device *dev;
    void *room; /* for the product at hand, grown to the most that one asked for */
    size_t room_bytes;
    dnnl_engine_t engine; /* NULL: not yet asked for */
    dnnl_stream_t stream;
    bool multiplies, pack;
    size_t uses;
    struct prepared prepared[PREPARED];
    size_t held_n;
    struct held *held;
};

/* What oneDNN will use, which can be less than what kernels/processor.h finds: a user may forbid it
 * instructions by ONEDNN_MAX_CPU_ISA, and an old release does not know the newest ones. */
static bool has(dnnl_cpu_isa_t isa) {
    return ((unsigned)dnnl_get_effective_cpu_isa() & (unsigned)isa) == (unsigned)isa;
}

bool mm_onednn_multiplies(void) {
    return has(dnnl_cpu_isa_avx512_core_bf16);
}

bool mm_onednn_has_tiles(void) {
    return has(dnnl_cpu_isa_avx512_core_amx);
}

struct mm_onednn *mm_onednn_create(struct mm_device *dev, bool pack) {
    struct mm_onednn *o = mm_calloc(1, sizeof *o);
    o->dev = dev;
    o->multiplies = mm_onednn_multiplies();
    o->pack = pack;
    return o;
}

/* Before the first product: not every table asks for one. */
static void start(struct mm_onednn *o) {
    if (o->engine)
        return;
    CHECK(dnnl_engine_create(&o->engine, dnnl_cpu, 0));
    CHECK(dnnl_stream_create(&o->stream, o->engine, dnnl_stream_default_flags));
}

static void prepared_drop(struct prepared *p) {
    if (p->last_use == 0)
        return;
    dnnl_primitive_destroy(p->primitive);
    dnnl_memory_destroy(p->a);
    dnnl_memory_destroy(p->b);
    dnnl_memory_destroy(p->c);
    dnnl_memory_destroy(p->bias);
    dnnl_memory_destroy(p->room);
    memset(p, 0, sizeof *p);
}

static layout_ref layout_of(dnnl_memory_t memory) {
    layout_ref layout;
    CHECK(dnnl_memory_get_memory_desc(memory, &layout));
    return layout;
}

void mm_onednn_let_go(struct mm_onednn *o) {
    for (size_t i = 0; i < o->held_n; i++)
        for (size_t k = 0; k < 2; k++) {
            dnnl_memory_t packed = o->held[i].packed[k];
            if (packed)
                o->dev->own_bytes -= dnnl_memory_desc_get_size(layout_of(packed));
            dnnl_memory_destroy(packed);
        }
    mm_free(o->held);
    o->held = NULL;
    o->held_n = 0;
}

void mm_onednn_free(struct mm_onednn *o) {
    if (!o)
        return;
    mm_onednn_let_go(o);
    for (size_t i = 0; i < PREPARED; i++)
        prepared_drop(&o->prepared[i]);
    if (o->room)
        o->dev->queue->free(o->dev, o->room);
    dnnl_stream_destroy(o->stream);
    dnnl_engine_destroy(o->engine);
    mm_free(o);
}

/* -- preparing --------------------------------------------------------------------------------- */

static dnnl_data_type_t type_of(struct mm_mat m) {
    return m.dtype == MM_F32 ? dnnl_f32 : dnnl_bf16;
}

static void matrix_layout(dnnl_memory_desc_t *l, struct mm_mat m, bool transposed) {
    dnnl_data_type_t type = type_of(m);
    dnnl_dims_t as_stored = {(dnnl_dim_t)m.rows, (dnnl_dim_t)m.cols};
    dnnl_dims_t turned = {(dnnl_dim_t)m.cols, (dnnl_dim_t)m.rows};
    dnnl_dims_t strides = {(dnnl_dim_t)m.ld, 1}, turned_strides = {1, (dnnl_dim_t)m.ld};
    layout_plain(l, type, transposed ? turned : as_stored, transposed ? turned_strides : strides);
}

static dnnl_memory_t memory_of(const struct mm_onednn *o, layout_ref layout, void *data) {
    dnnl_memory_t memory;
    CHECK(dnnl_memory_create(&memory, layout, o->engine, data));
    return memory;
}

static struct key key_of(const struct mm_product *p, bool packed) {
    struct key k;
    memset(&k, 0, sizeof k);
    k.rows = p->c.rows;
    k.cols = p->c.cols;
    k.depth = p->a_transposed ? p->a.rows : p->a.cols;
    k.a_ld = p->a.ld;
    k.b_ld = p->b.ld;
    k.c_ld = p->c.ld;
    k.a_transposed = p->a_transposed;
    k.b_transposed = p->b_transposed;
    k.accumulate = p->accumulate;
    k.bias = p->bias != NULL;
    k.packed = packed;
    k.dtype = p->a.dtype;
    k.c_dtype = p->c.dtype;
    return k;
}

static void prepare(const struct mm_onednn *o, struct prepared *to, const struct mm_product *p,
                    bool packed) {
    dnnl_memory_desc_t a, b, c, bias;
    dnnl_dims_t b_dims = {(dnnl_dim_t)(p->b_transposed ? p->b.cols : p->b.rows),
                          (dnnl_dim_t)p->c.cols};
    dnnl_dims_t bias_dims = {1, (dnnl_dim_t)p->c.cols}, bias_strides = {(dnnl_dim_t)p->c.cols, 1};
    dnnl_primitive_attr_t attr;
    dnnl_post_ops_t ops;
    dnnl_primitive_desc_t made;
    matrix_layout(&a, p->a, p->a_transposed);
    matrix_layout(&c, p->c, false);
    layout_plain(&bias, type_of(p->a), bias_dims, bias_strides);
    if (packed)
        layout_any(&b, type_of(p->b), b_dims);
    else
        matrix_layout(&b, p->b, p->b_transposed);
    CHECK(dnnl_primitive_attr_create(&attr));
    CHECK(dnnl_post_ops_create(&ops));
    if (p->accumulate)
        add_to_c(ops);
    CHECK(dnnl_primitive_attr_set_post_ops(attr, ops));
    CHECK(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user));
    make_matmul(&made, o->engine, LAYOUT(a), LAYOUT(b), p->bias ? LAYOUT(bias) : NULL, LAYOUT(c),
                attr);
    if (!o->dev->dry)
        CHECK(dnnl_primitive_create(&to->primitive, made));
    layout_ref room = dnnl_primitive_desc_query_md(made, dnnl_query_scratchpad_md, 0);
    to->room_bytes = dnnl_memory_desc_get_size(room);
    to->room = memory_of(o, room, DNNL_MEMORY_NONE);
    to->key = key_of(p, packed);
    to->a = memory_of(o, LAYOUT(a), DNNL_MEMORY_NONE);
    to->b = memory_of(o, dnnl_primitive_desc_query_md(made, dnnl_query_weights_md, 0),
                      DNNL_MEMORY_NONE);
    to->c = memory_of(o, LAYOUT(c), DNNL_MEMORY_NONE);
    to->bias = memory_of(o, LAYOUT(bias), DNNL_MEMORY_NONE);
    dnnl_primitive_desc_destroy(made);
    dnnl_post_ops_destroy(ops);
    dnnl_primitive_attr_destroy(attr);
    layout_drop(&a);
    layout_drop(&b);
    layout_drop(&c);
    layout_drop(&bias);
}

/* The program for a product: one that is there, or in the place of the least recently used one. */
static struct prepared *find(struct mm_onednn *o, const struct mm_product *p, bool packed) {
    struct key key = key_of(p, packed);
    struct prepared *oldest = &o->prepared[0];
    for (size_t i = 0; i < PREPARED; i++) {
        struct prepared *at = &o->prepared[i];
        if (at->last_use && memcmp(&at->key, &key, sizeof key) == 0) {
            at->last_use = ++o->uses;
            return at;
        }
        if (at->last_use < oldest->last_use)
            oldest = at;
    }
    prepared_drop(oldest);
    prepare(o, oldest, p, packed);
    oldest->last_use = ++o->uses;
    return oldest;
}

/* -- held weights ------------------------------------------------------------------------------ */

static struct held *held_of(const struct mm_onednn *o, struct mm_mat w) {
    for (size_t i = 0; i < o->held_n; i++) {
        const struct mm_mat *h = &o->held[i].w;
        if (h->data == w.data && h->rows == w.rows && h->cols == w.cols && h->ld == w.ld)
            return &o->held[i];
    }
    return NULL;
}

void mm_onednn_hold(struct mm_onednn *o, struct mm_mat w) {
    if (!o->multiplies || !o->pack || held_of(o, w))
        return;
    o->held = mm_realloc(o->held, (o->held_n + 1) * sizeof *o->held);
    o->held[o->held_n++] = (struct held){.w = w};
}

/* A copy of b in the layout that `like` has; oneDNN owns its memory. */
static dnnl_memory_t pack(const struct mm_onednn *o, const struct mm_product *p,
                          dnnl_memory_t like) {
    dnnl_memory_desc_t plain;
    dnnl_primitive_desc_t made;
    dnnl_primitive_t reorder;
    void *memory = o->dev->dry ? DNNL_MEMORY_NONE : DNNL_MEMORY_ALLOCATE;
    dnnl_memory_t to = memory_of(o, layout_of(like), memory);
    o->dev->own_bytes += dnnl_memory_desc_get_size(layout_of(like));
    if (o->dev->dry)
        return to;
    matrix_layout(&plain, p->b, p->b_transposed);
    dnnl_memory_t from = memory_of(o, LAYOUT(plain), p->b.data);
    CHECK(dnnl_reorder_primitive_desc_create(&made, LAYOUT(plain), o->engine, layout_of(like),
                                             o->engine, NULL));
    CHECK(dnnl_primitive_create(&reorder, made));
    dnnl_exec_arg_t arguments[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}};
    CHECK(dnnl_primitive_execute(reorder, o->stream, 2, arguments));
    CHECK(dnnl_stream_wait(o->stream));
    dnnl_primitive_destroy(reorder);
    dnnl_primitive_desc_destroy(made);
    dnnl_memory_destroy(from);
    layout_drop(&plain);
    return to;
}

/* -- products ---------------------------------------------------------------------------------- */

static void grow_room(struct mm_onednn *o, size_t bytes) {
    struct mm_device *dev = o->dev;
    if (bytes <= o->room_bytes)
        return;
    if (o->room)
        dev->queue->free(dev, o->room);
    if (!dev->dry)
        o->room = dev->queue->alloc(dev, bytes);
    MM_CHECK(o->room || dev->dry, "out of memory: no %zu bytes for a product", bytes);
    dev->own_bytes += bytes - o->room_bytes;
    o->room_bytes = bytes;
}

static void execute(struct mm_onednn *o, const struct prepared *with, const struct mm_product *p,
                    dnnl_memory_t b) {
    grow_room(o, with->room_bytes);
    if (o->dev->dry)
        return;
    CHECK(dnnl_memory_set_data_handle(with->room, o->room));
    CHECK(dnnl_memory_set_data_handle(with->a, p->a.data));
    CHECK(dnnl_memory_set_data_handle(with->c, p->c.data));
    if (p->bias)
        CHECK(dnnl_memory_set_data_handle(with->bias, (void *)(uintptr_t)p->bias));
    dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, with->a},
                                   {DNNL_ARG_WEIGHTS, b},
                                   {DNNL_ARG_DST, with->c},
                                   {DNNL_ARG_SCRATCHPAD, with->room},
                                   {DNNL_ARG_BIAS, with->bias}};
    CHECK(dnnl_primitive_execute(with->primitive, o->stream, p->bias ? 5 : 4, arguments));
    CHECK(dnnl_stream_wait(o->stream));
}

/* With the packed copy of held weights, unless this shape wants another layout than the first. */
static bool packed_product(struct mm_onednn *o, const struct mm_product *p) {
    struct held *held = held_of(o, p->b);
    if (!held)
        return false;
    struct prepared *with = find(o, p, true);
    dnnl_memory_t *packed = &held->packed[p->b_transposed];
    if (!*packed)
        *packed = pack(o, p, with->b);
    if (!dnnl_memory_desc_equal(layout_of(*packed), layout_of(with->b)))
        return false;
    execute(o, with, p, *packed);
    return true;
}

bool mm_onednn_product(struct mm_onednn *o, const struct mm_product *p) {
    MM_CHECK(p->a.dtype == p->b.dtype, "operands of %s and %s", mm_dtype_name(p->a.dtype),
             mm_dtype_name(p->b.dtype));
    if (p->a.dtype == MM_BF16 && !o->multiplies)
        return false;
    start(o);
    if (packed_product(o, p))
        return true;
    struct prepared *with = find(o, p, false);
    CHECK(dnnl_memory_set_data_handle(with->b, p->b.data));
    execute(o, with, p, with->b);
    return true;
}

char *mm_onednn_text(void) {
    const dnnl_version_t *v = dnnl_version();
    return mm_format("%d.%d.%d, for %s", v->major, v->minor, v->patch,
                     mm_onednn_has_tiles()           ? "float32 and, with AMX, bfloat16"
                     : mm_onednn_multiplies()        ? "float32 and, with AVX512-BF16, bfloat16"
                     : has(dnnl_cpu_isa_avx512_core) ? "float32"
                                                     : "nothing: this processor has no AVX-512");
}
