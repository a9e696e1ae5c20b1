/* model.c - builds the table of tensors; see model.h. A family has its own names and order of
 * tensors; arch.c has read its other differences as data. */
#include "src/model/model.h"

#include <stdio.h>
#include <string.h>

#include "kernels/queue.h"

/* Products and rows start on this many elements: full vectors and cache lines. */
#define GROUP_ALIGNMENT ((size_t)64)

struct builder {
    struct mm_model *model;
    size_t *offsets; /* of each param, in elements of the block */
    size_t end;
    size_t before, layers_n; /* where the layers begin, and elements of all */
    int layer;
};

static const char *prefix(const struct mm_arch *arch) {
    return arch->family == MM_NEOX ? "gpt_neox" : "model";
}

/* The next tensor begins a group. */
static void begin_group(struct builder *b) {
    b->end = (b->end + GROUP_ALIGNMENT - 1) / GROUP_ALIGNMENT * GROUP_ALIGNMENT;
}

/* Adds a tensor "<prefix>[.layers.<layer>].<name>" behind the last one; returns its index. */
static size_t add(struct builder *b, size_t rows, size_t cols, const char *name) {
    struct mm_model *m = b->model;
    const struct mm_arch *arch = &m->arch;
    size_t index = m->params_n++;
    if ((index & (index - 1)) == 0) { /* 0 or a power of two: the tables are full */
        size_t room = index ? 2 * index : 1;
        m->params = mm_realloc(m->params, room * sizeof *m->params);
        b->offsets = mm_realloc(b->offsets, room * sizeof *b->offsets);
    }
    bool outside = strcmp(name, "lm_head.weight") == 0 || strcmp(name, "embed_out.weight") == 0;
    m->params[index] = (struct mm_param){
        .name = outside        ? mm_strdup(name)
                : b->layer < 0 ? mm_format("%s.%s", prefix(arch), name)
                               : mm_format("%s.layers.%d.%s", prefix(arch), b->layer, name),
        .rows = rows,
        .cols = cols ? cols : 1,
        .vector = cols == 0,
        .layer = b->layer,
    };
    b->offsets[index] = b->end;
    b->end += rows * m->params[index].cols;
    m->elements += rows * m->params[index].cols;
    return index;
}

/* Of rows of `cols` elements in `parts` parts. */
static struct mm_norm_weights add_norm(struct builder *b, const char *name, size_t cols,
                                       size_t parts) {
    struct mm_norm_weights norm = {.parts = parts};
    char text[64];
    snprintf(text, sizeof text, "%s.weight", name);
    begin_group(b);
    norm.weight_part = add(b, cols / parts, 0, text);
    if (b->model->arch.norm == MM_LAYER_NORM) {
        snprintf(text, sizeof text, "%s.bias", name);
        norm.has_bias = true;
        begin_group(b);
        norm.bias_part = add(b, cols / parts, 0, text);
    }
    return norm;
}

static struct mm_linear add_linear(struct builder *b, const char *module, const char *const *names,
                                   const size_t *rows, size_t n, size_t cols, bool bias) {
    struct mm_linear linear = {.parts_n = n};
    char text[64];
    begin_group(b);
    for (size_t i = 0; i < n; i++) {
        snprintf(text, sizeof text, "%s.%s.weight", module, names[i]);
        linear.part[i] = add(b, rows[i], cols, text);
        linear.w.rows += rows[i];
    }
    if (bias)
        begin_group(b);
    for (size_t i = 0; bias && i < n; i++) {
        snprintf(text, sizeof text, "%s.%s.bias", module, names[i]);
        linear.bias_part[i] = add(b, rows[i], 0, text);
    }
    linear.w.cols = linear.w.ld = cols;
    linear.bias = bias ? b : NULL; /* bound to memory later */
    return linear;
}

/* The products into q, k and v, and the norms of q and k. */
static void add_qkv(struct builder *b, struct mm_layer *layer, const char *attention) {
    const struct mm_arch *a = &b->model->arch;
    const struct mm_heads *h = &a->heads;
    bool neox = a->family == MM_NEOX, heads = a->qk_norm == MM_QK_BY_HEAD;
    size_t q = h->heads * h->head_dim, kv = h->kv_heads * h->head_dim;
    layer->qkv = add_linear(b, attention,
                            neox ? (const char *const[]){"query_key_value"}
                                 : (const char *const[]){"q_proj", "k_proj", "v_proj"},
                            neox ? (const size_t[]){3 * q} : (const size_t[]){q, kv, kv},
                            neox         ? 1
                            : a->qk_norm ? 2
                                         : 3,
                            a->width, a->qkv_bias);
    if (a->qk_norm == MM_QK_PLAIN)
        return;
    layer->v = add_linear(b, attention, (const char *const[]){"v_proj"}, (const size_t[]){kv}, 1,
                          a->width, a->qkv_bias);
    layer->q_norm = add_norm(b, "self_attn.q_norm", q, heads ? h->heads : 1);
    layer->k_norm = add_norm(b, "self_attn.k_norm", kv, heads ? h->kv_heads : 1);
}

static void add_layer(struct builder *b, struct mm_layer *layer) {
    const struct mm_arch *a = &b->model->arch;
    bool neox = a->family == MM_NEOX, after = a->norm_after;
    size_t q = a->heads.heads * a->heads.head_dim;
    const char *const attention = neox ? "attention" : "self_attn";
    layer->norm1 = add_norm(b, after ? "post_attention_layernorm" : "input_layernorm", a->width, 1);
    add_qkv(b, layer, attention);
    layer->o = add_linear(b, attention, (const char *const[]){neox ? "dense" : "o_proj"},
                          (const size_t[]){a->width}, 1, q, a->o_bias);
    layer->norm2 =
        add_norm(b, after ? "post_feedforward_layernorm" : "post_attention_layernorm", a->width, 1);
    layer->up = add_linear(b, "mlp",
                           neox ? (const char *const[]){"dense_h_to_4h"}
                                : (const char *const[]){"gate_proj", "up_proj"},
                           (const size_t[]){a->mlp, a->mlp}, neox ? 1 : 2, a->width, a->mlp_bias);
    layer->down = add_linear(b, "mlp", (const char *const[]){neox ? "dense_4h_to_h" : "down_proj"},
                             (const size_t[]){a->width}, 1, a->mlp, a->mlp_bias);
}

static void bind_norm(const struct mm_model *m, struct mm_norm_weights *norm) {
    norm->weight = m->params[norm->weight_part].w.data;
    if (norm->has_bias)
        norm->bias = m->params[norm->bias_part].w.data;
}

static void bind_linear(const struct mm_model *m, struct mm_linear *linear) {
    linear->w.data = m->params[linear->part[0]].w.data;
    linear->w.dtype = m->dtype;
    if (linear->bias)
        linear->bias = m->params[linear->bias_part[0]].w.data;
}

static void bind(struct mm_model *m, const size_t *offsets) {
    for (size_t i = 0; i < m->params_n; i++) {
        struct mm_param *p = &m->params[i];
        p->w = mm_mat((char *)m->block + offsets[i] * mm_dtype_bytes(m->dtype), m->dtype, p->rows,
                      p->cols);
    }
    for (size_t l = 0; l < m->arch.layers; l++) {
        struct mm_layer *layer = &m->layers[l];
        bind_norm(m, &layer->norm1);
        bind_norm(m, &layer->norm2);
        if (m->arch.qk_norm) {
            bind_norm(m, &layer->q_norm);
            bind_norm(m, &layer->k_norm);
            bind_linear(m, &layer->v);
        }
        bind_linear(m, &layer->qkv);
        bind_linear(m, &layer->o);
        bind_linear(m, &layer->up);
        bind_linear(m, &layer->down);
    }
    bind_norm(m, &m->final_norm);
}

static void fill_rope(struct mm_model *m) {
    size_t bytes = m->context * (m->arch.heads.rotary_dim / 2) * sizeof(float);
    float *host = mm_calloc(2, bytes);
    float *sine = host + bytes / sizeof(float);
    mm_arch_rope(&m->arch, m->context, host, sine);
    m->dev->queue->upload(m->dev, m->cosine, host, bytes);
    m->dev->queue->upload(m->dev, m->sine, sine, bytes);
    mm_free(host);
}

/* Every layer moves to its slot, and what is behind the layers closes up. */
static void move_to_slots(struct builder *b) {
    const struct mm_model *m = b->model;
    size_t each = b->layers_n / m->arch.layers;
    for (size_t i = 0; i < m->params_n; i++)
        if (m->params[i].layer != MM_NO_LAYER) {
            size_t l = (size_t)m->params[i].layer;
            b->offsets[i] -= (l - l % m->slots_n) * each;
        } else if (b->offsets[i] > b->before) {
            b->offsets[i] -= b->layers_n - m->slots_n * each;
        }
    b->end -= b->layers_n - m->slots_n * each;
}

struct mm_model *mm_model_create(struct mm_arena *arena, const struct mm_arch *arch,
                                 enum mm_dtype dtype, size_t context) {
    return mm_model_create_in_slots(arena, arch, dtype, context, 0);
}

struct mm_model *mm_model_create_in_slots(struct mm_arena *arena, const struct mm_arch *arch,
                                          enum mm_dtype dtype, size_t context, size_t slots_n) {
    struct mm_model *m = mm_calloc(1, sizeof *m);
    *m = (struct mm_model){.dev = mm_arena_device(arena),
                           .arch = *arch,
                           .dtype = dtype,
                           .context = context,
                           .slots_n = slots_n < arch->layers ? slots_n : arch->layers};
    m->layers = mm_calloc(arch->layers, sizeof *m->layers);
    bool neox = arch->family == MM_NEOX;
    struct builder b = {.model = m, .layer = MM_NO_LAYER};
    m->embed_part =
        add(&b, arch->vocab, arch->width, neox ? "embed_in.weight" : "embed_tokens.weight");
    begin_group(&b);
    b.before = b.end;
    for (b.layer = 0; (size_t)b.layer < arch->layers; b.layer++) {
        add_layer(&b, &m->layers[b.layer]);
        begin_group(&b);
    }
    b.layers_n = b.end - b.before;
    b.layer = MM_NO_LAYER;
    m->final_norm = add_norm(&b, neox ? "final_layer_norm" : "norm", arch->width, 1);
    m->head_part = m->embed_part;
    if (!arch->tied) {
        begin_group(&b);
        m->head_part =
            add(&b, arch->vocab, arch->width, neox ? "embed_out.weight" : "lm_head.weight");
    }
    if (m->slots_n)
        move_to_slots(&b);
    m->block_n = b.end;
    m->block = mm_arena_take(arena, MM_FOR_WEIGHTS, m->block_n, mm_dtype_bytes(dtype));
    bind(m, b.offsets);
    mm_free(b.offsets);
    size_t table = context * (arch->heads.rotary_dim / 2);
    m->cosine = mm_arena_take(arena, MM_FOR_WEIGHTS, table, sizeof(float));
    m->sine = mm_arena_take(arena, MM_FOR_WEIGHTS, table, sizeof(float));
    if (!mm_arena_dry(arena))
        fill_rope(m);
    return m;
}

void mm_model_free(struct mm_model *model) {
    if (!model)
        return;
    for (size_t i = 0; i < model->params_n; i++)
        mm_free(model->params[i].name);
    mm_free(model->params);
    mm_free(model->layers);
    mm_free(model);
}

static void hold(const struct mm_model *m, const struct mm_linear *linear, const bool *changing) {
    bool changes = false;
    for (size_t i = 0; i < linear->parts_n; i++)
        changes |= changing[linear->part[i]];
    if (!changes)
        m->dev->ops->hold(m->dev, linear->w);
}

void mm_model_hold(const struct mm_model *m, const bool *changing) {
    m->dev->ops->let_go(m->dev);
    for (size_t l = 0; l < m->arch.layers && !m->slots_n; l++) {
        hold(m, &m->layers[l].qkv, changing);
        if (m->arch.qk_norm)
            hold(m, &m->layers[l].v, changing);
        hold(m, &m->layers[l].o, changing);
        hold(m, &m->layers[l].up, changing);
        hold(m, &m->layers[l].down, changing);
    }
    if (!changing[m->head_part])
        m->dev->ops->hold(m->dev, m->params[m->head_part].w);
}

enum mm_status mm_model_choose(const struct mm_model *model, char *const *modules, size_t modules_n,
                               bool *wanted, struct mm_error *err) {
    memset(wanted, 0, model->params_n * sizeof *wanted);
    const char *const *known = mm_arch_modules(model->arch.family);
    for (size_t i = 0; i < modules_n; i++) {
        size_t k = 0;
        while (known[k] && strcmp(known[k], modules[i]) != 0)
            k++;
        if (!known[k]) {
            char names[256] = "";
            for (k = 0; known[k]; k++)
                snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", k ? ", " : "",
                         known[k]);
            return mm_fail(err, MM_BAD_INPUT,
                           "unlearn.target_modules: '%s' is no module of this model: %s",
                           modules[i], names);
        }
        char part[80];
        snprintf(part, sizeof part, ".%s.weight", modules[i]);
        for (size_t p = 0; p < model->params_n; p++)
            wanted[p] |= strstr(model->params[p].name, part) != NULL;
    }
    return MM_OK;
}
