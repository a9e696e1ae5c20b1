/* arch.c - config.json to struct mm_arch, see arch.h. */
#include "src/model/arch.h"

#include "io/files.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* A reader with a sticky fault: the first is kept, later calls return defaults. */
struct reader {
    const char *path;
    const cJSON *object;
    enum mm_status status;
    struct mm_error *err;
};

#define FAULT(r, ...)                                                                              \
    do {                                                                                           \
        if ((r)->status == MM_OK) {                                                                \
            char what[512];                                                                        \
            snprintf(what, sizeof what, __VA_ARGS__);                                              \
            (r)->status = mm_fail((r)->err, MM_BAD_INPUT, "%s: %s", (r)->path, what);              \
        }                                                                                          \
    } while (0)

/* NULL for a field that is absent or null. */
static const cJSON *field(const struct reader *r, const char *name) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(r->object, name);
    return item && !cJSON_IsNull(item) ? item : NULL;
}

static double number(struct reader *r, const char *name, double fallback) {
    const cJSON *item = field(r, name);
    if (!item) {
        if (isnan(fallback))
            FAULT(r, "'%s' is missing", name);
        return fallback;
    }
    if (!cJSON_IsNumber(item) || !isfinite(item->valuedouble))
        FAULT(r, "'%s' is not a number", name);
    return item->valuedouble;
}

static size_t count(struct reader *r, const char *name, double fallback) {
    double value = number(r, name, fallback);
    if (r->status == MM_OK && (value < 1 || value > 1e9 || value != floor(value)))
        FAULT(r, "'%s' is %g, not a whole number from 1 to 10^9", name, value);
    return r->status == MM_OK ? (size_t)value : 1;
}

static bool boolean(struct reader *r, const char *name, bool fallback) {
    const cJSON *item = field(r, name);
    if (item && !cJSON_IsBool(item))
        FAULT(r, "'%s' is neither true nor false", name);
    return item ? cJSON_IsTrue(item) : fallback;
}

static const char *text(struct reader *r, const char *name, const char *fallback) {
    const cJSON *item = field(r, name);
    if (item && !cJSON_IsString(item))
        FAULT(r, "'%s' is not a string", name);
    return item && cJSON_IsString(item) ? item->valuestring : fallback;
}

/* Fields of other models and modes that would change the arithmetic, with the one value each that
 * does not. */
static void refuse_unsupported(struct reader *r) {
    static const struct {
        const char *name;
        double neutral;
    } fields[] = {
        {"attention_dropout", 0},
        {"hidden_dropout", 0},
        {"attn_logit_softcapping", 0},
        {"final_logit_softcapping", 0},
        {"embedding_multiplier", 1},
        {"attention_multiplier", 1},
        {"residual_multiplier", 1},
        {"logits_scaling", 1},
        {"num_local_experts", 0},
        {"num_experts", 0},
        {"qk_norm", 0},
        {"use_qk_norm", 0},
        {"use_alibi", 0},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        const cJSON *item = field(r, fields[i].name);
        if (item && !(cJSON_IsFalse(item) && fields[i].neutral == 0) &&
            !(cJSON_IsNumber(item) && item->valuedouble == fields[i].neutral))
            FAULT(r, "'%s' is set, which is not supported", fields[i].name);
    }
    if (field(r, "quantization_config"))
        FAULT(r, "quantized weights are not supported: use the float16, bfloat16 or float32 model");
}

static enum mm_family family(struct reader *r) {
    static const char *const names[] = {"llama", "mistral", "qwen2", "gpt_neox"};
    const char *type = text(r, "model_type", NULL);
    for (int i = 0; type && i < 4; i++)
        if (strcmp(type, names[i]) == 0)
            return (enum mm_family)i;
    FAULT(r, "model_type '%s' is not supported: one of llama, mistral, qwen2, gpt_neox",
          type ? type : "(missing)");
    return MM_LLAMA;
}

/* The rope dictionary: transformers 5 has `rope_parameters`, which then holds everything;
 * transformers 4 has `rope_scaling` and keeps base and share of rotated dimensions outside. */
static void read_rope(struct reader *r, struct mm_arch *arch) {
    const cJSON *five = field(r, "rope_parameters"), *four = field(r, "rope_scaling");
    const cJSON *rope = five ? five : four;
    if (rope && !cJSON_IsObject(rope)) {
        FAULT(r, "'%s' is not an object", five ? "rope_parameters" : "rope_scaling");
        return;
    }
    bool neox = arch->family == MM_NEOX;
    struct reader inner = {.path = r->path, .object = rope, .status = r->status, .err = r->err};
    struct reader *where = five ? &inner : r;
    const char *base = neox && !five ? "rotary_emb_base" : "rope_theta";
    /* Llama's and GPT-NeoX's definitions fix 10^4; the other families have no base of their own. */
    bool fixed = !five && (arch->family == MM_LLAMA || neox);
    arch->rope_theta = number(where, base, fixed ? 10000.0 : NAN);
    double share = neox ? five ? number(where, "partial_rotary_factor", NAN)
                               : number(where, "rotary_pct", 0.25)
                        : number(where, "partial_rotary_factor", 1.0);
    if (!neox && share != 1.0)
        FAULT(where, "partial_rotary_factor %g is not supported in this family", share);
    bool in_range = share > 0 && share <= 1;
    size_t dim = in_range ? (size_t)((double)arch->heads.head_dim * share) : 0;
    if (where->status == MM_OK && (!in_range || dim < 2 || dim % 2))
        FAULT(where, "rotary dimension %g of head dimension %zu is not supported",
              (double)arch->heads.head_dim * share, arch->heads.head_dim);
    arch->heads.rotary_dim = dim;
    if (where->status == MM_OK && !(arch->rope_theta > 1))
        FAULT(where, "%s %g is not above 1", base, arch->rope_theta);
    if (rope && where == r)
        inner.status = r->status;
    const char *type =
        rope ? text(&inner, "rope_type", text(&inner, "type", "default")) : "default";
    if (strcmp(type, "llama3") == 0) {
        arch->rope_scaling.factor = number(&inner, "factor", NAN);
        arch->rope_scaling.low = number(&inner, "low_freq_factor", NAN);
        arch->rope_scaling.high = number(&inner, "high_freq_factor", NAN);
        arch->rope_scaling.original = number(&inner, "original_max_position_embeddings", NAN);
        if (inner.status == MM_OK &&
            !(arch->rope_scaling.factor >= 1 && arch->rope_scaling.original >= 1 &&
              arch->rope_scaling.high > arch->rope_scaling.low && arch->rope_scaling.low > 0))
            FAULT(&inner, "llama3 rope scaling has values out of range");
    } else if (strcmp(type, "default") != 0)
        FAULT(&inner, "rope type '%s' is not supported: default or llama3", type);
    if (r->status == MM_OK)
        r->status = inner.status;
}

static void read_sliding_window(struct reader *r, struct mm_arch *arch) {
    bool used = arch->family == MM_MISTRAL ||
                (arch->family == MM_QWEN2 && boolean(r, "use_sliding_window", false));
    const cJSON *types = field(r, "layer_types"), *type;
    cJSON_ArrayForEach(type, types) {
        if (!cJSON_IsString(type) || (strcmp(type->valuestring, "full_attention") != 0 &&
                                      strcmp(type->valuestring, "sliding_attention") != 0))
            FAULT(r, "'layer_types' has a kind that is not supported");
        else if (strcmp(type->valuestring, "sliding_attention") == 0)
            used = true;
    }
    arch->sliding_window = used && field(r, "sliding_window") ? count(r, "sliding_window", NAN) : 0;
}

static void read_heads(struct reader *r, struct mm_arch *arch) {
    struct mm_heads *h = &arch->heads;
    h->heads = count(r, "num_attention_heads", NAN);
    h->kv_heads =
        arch->family == MM_NEOX ? h->heads : count(r, "num_key_value_heads", (double)h->heads);
    if (r->status == MM_OK && !field(r, "head_dim") && arch->width % h->heads)
        FAULT(r, "hidden_size %zu is not a multiple of num_attention_heads %zu", arch->width,
              h->heads);
    h->head_dim = arch->family == MM_NEOX ? arch->width / h->heads
                                          : count(r, "head_dim", (double)(arch->width / h->heads));
    if (r->status == MM_OK && h->heads % h->kv_heads)
        FAULT(r, "num_attention_heads %zu is not a multiple of num_key_value_heads %zu", h->heads,
              h->kv_heads);
    size_t d = h->head_dim;
    if (arch->family == MM_NEOX) { /* q, k, v of head 0, q, k, v of head 1, ... */
        h->q_step = h->k_step = h->v_step = 3 * d;
        h->k_first = d;
        h->v_first = 2 * d;
    } else { /* all q, all k, all v */
        h->q_step = h->k_step = h->v_step = d;
        h->k_first = h->heads * d;
        h->v_first = h->k_first + h->kv_heads * d;
    }
}

/* Sizes whose products fit and whose table of tensors does, whatever the file says. */
static void check_sizes(struct reader *r, const struct mm_arch *arch) {
    enum { LAYERS_MAX = 1000 };
    const struct mm_heads *h = &arch->heads;
    __uint128_t attention = (__uint128_t)(2 * h->heads + 2 * h->kv_heads) * h->head_dim,
                layer = (attention + (__uint128_t)3 * arch->mlp + 8) * (arch->width + 1),
                all = layer * arch->layers + (__uint128_t)2 * arch->vocab * arch->width;
    if (arch->layers > LAYERS_MAX)
        FAULT(r, "'num_hidden_layers' is %zu, above %d", arch->layers, LAYERS_MAX);
    if (all >> 48)
        FAULT(r, "sizes of a model of more than 2^48 parameters");
}

static void read_fields(struct reader *r, struct mm_arch *arch) {
    *arch = (struct mm_arch){.family = family(r)};
    bool neox = arch->family == MM_NEOX;
    refuse_unsupported(r);
    arch->layers = count(r, "num_hidden_layers", NAN);
    arch->width = count(r, "hidden_size", NAN);
    arch->mlp = count(r, "intermediate_size", NAN);
    arch->vocab = count(r, "vocab_size", NAN);
    read_heads(r, arch);
    if (r->status == MM_OK)
        check_sizes(r, arch);
    arch->norm = neox ? MM_LAYER_NORM : MM_RMS_NORM;
    arch->epsilon =
        (float)(neox ? number(r, "layer_norm_eps", 1e-5) : number(r, "rms_norm_eps", NAN));
    arch->activation = neox ? MM_GELU : MM_SWIGLU;
    const char *want = neox ? "gelu" : "silu", *act = text(r, "hidden_act", want);
    if (strcmp(act, want) != 0)
        FAULT(r, "hidden_act '%s' is not supported in this family: '%s'", act, want);
    arch->parallel = neox && boolean(r, "use_parallel_residual", true);
    arch->tied = boolean(r, "tie_word_embeddings", false);
    bool bias = boolean(r, "attention_bias", neox);
    arch->qkv_bias = bias || arch->family == MM_QWEN2;
    arch->o_bias = bias;
    arch->mlp_bias = neox || boolean(r, "mlp_bias", false);
    arch->initializer_range = number(r, "initializer_range", 0.02);
    read_rope(r, arch);
    read_sliding_window(r, arch);
}

enum mm_status mm_arch_read(struct mm_arch *arch, const char *path, struct mm_error *err) {
    char *json;
    size_t bytes;
    enum mm_status status = mm_file_read(path, &json, &bytes, err);
    if (status != MM_OK)
        return status;
    cJSON *object = cJSON_Parse(json);
    if (!cJSON_IsObject(object)) {
        const char *at = object ? json : cJSON_GetErrorPtr();
        size_t line = 1;
        for (const char *c = json; at && c < at; c++)
            line += *c == '\n';
        status = mm_fail(err, MM_BAD_INPUT, "%s:%zu: not a JSON object", path, line);
    } else {
        struct reader r = {.path = path, .object = object, .err = err};
        read_fields(&r, arch);
        status = r.status;
    }
    mm_bytes_hash(json, bytes, arch->hash);
    cJSON_Delete(object);
    mm_free(json);
    return status;
}

const char *const *mm_arch_modules(enum mm_family which) {
    static const char *const llama[] = {"gate_proj", "up_proj", "down_proj", "q_proj",
                                        "k_proj",    "v_proj",  "o_proj",    NULL};
    static const char *const neox[] = {"dense_h_to_4h", "dense_4h_to_h", "query_key_value", "dense",
                                       NULL};
    return which == MM_NEOX ? neox : llama;
}

static float frequency(const struct mm_arch *arch, size_t i) {
    float exponent = (float)(2 * i) / (float)arch->heads.rotary_dim;
    float f = 1.0f / (float)pow(arch->rope_theta, (double)exponent);
    double factor = arch->rope_scaling.factor, original = arch->rope_scaling.original;
    if (factor == 0)
        return f;
    double wave = 2 * M_PI / (double)f, low = arch->rope_scaling.low,
           high = arch->rope_scaling.high;
    if (wave < original / high)
        return f;
    if (wave > original / low)
        return (float)((double)f / factor);
    double smooth = (original / wave - low) / (high - low);
    return (float)((1 - smooth) * (double)f / factor + smooth * (double)f);
}

void mm_arch_rope(const struct mm_arch *arch, size_t T, float *cosine, float *sine) {
    size_t half = arch->heads.rotary_dim / 2;
    for (size_t i = 0; i < half; i++) {
        float f = frequency(arch, i);
        for (size_t t = 0; t < T; t++) {
            float angle = (float)t * f;
            cosine[t * half + i] = (float)cos((double)angle);
            sine[t * half + i] = (float)sin((double)angle);
        }
    }
}
