/* arch.c - config.json to struct mm_arch, see arch.h. What a family takes for granted stands in
 * family.c, the rotary settings are read in rope_fields.c. */
#include "src/model/arch.h"

#include "io/files.h"
#include "io/json_text.h"
#include "src/model/family.h"
#include "src/model/fields.h"
#include "src/model/rope_fields.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static bool is_neutral(const cJSON *item, double neutral) {
    if (cJSON_IsNumber(item))
        return item->valuedouble == neutral;
    return cJSON_IsNull(item) || (cJSON_IsBool(item) && cJSON_IsTrue(item) == (neutral != 0));
}

/* Fields of other models and modes that would change the arithmetic, with the one value each that
 * does not. Some of them transformers ignores in these families; but then the weights were not made
 * for what it computes. */
static void refuse_unsupported(struct mm_fields *f) {
    static const struct {
        const char *name;
        double neutral;
    } fields[] = {
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
        const cJSON *item = mm_field(f, fields[i].name);
        if (item && !is_neutral(item, fields[i].neutral))
            mm_fields_fault(f, "'%s' is set, which is not supported", fields[i].name);
    }
    const cJSON *causal = mm_field(f, "is_causal");
    if (causal && !cJSON_IsTrue(causal))
        mm_fields_fault(f, "'is_causal' is not true: attention in both directions is not "
                           "supported");
    /* Other files, or other fields for some layers, that transformers would read. */
    static const char *const elsewhere[] = {"per_layer_config", "configuration_files",
                                            "transformers_weights"};
    for (size_t i = 0; i < sizeof elsewhere / sizeof *elsewhere; i++)
        if (mm_field_given(f, elsewhere[i]))
            mm_fields_fault(f, "'%s' is set, which is not supported", elsewhere[i]);
    const cJSON *quantized = mm_field(f, "quantization_config");
    if (quantized && !cJSON_IsNull(quantized) && !(cJSON_IsObject(quantized) && !quantized->child))
        mm_fields_fault(f, "'quantization_config': quantized weights are not supported: use the "
                           "float16, bfloat16 or float32 model");
}

static const struct mm_family_row *find_family(struct mm_fields *f) {
    char names[256];
    const char *type = mm_field_text(f, "model_type", "(missing)");
    const struct mm_family_row *row = mm_family_find(type);
    if (!row)
        mm_fields_fault(f, "model_type '%s' is not supported: one of %s", type,
                        mm_family_names(names, sizeof names));
    return row;
}

/* A size, or the family's default, which is noted: only the weights can tell whether it holds. */
static size_t read_size(struct mm_fields *f, struct mm_arch *arch, const char *name,
                        size_t fallback) {
    size_t used = strlen(arch->assumed);
    if (!mm_field(f, name))
        snprintf(arch->assumed + used, sizeof arch->assumed - used, "%s%s %zu", used ? ", " : "",
                 name, fallback);
    return mm_field_count(f, name, fallback);
}

static void read_window(struct mm_fields *f, const struct mm_family_row *row,
                        struct mm_arch *arch) {
    bool per_layer = row->window == MM_WINDOW_PER_LAYER, any = false;
    bool used = row->window == MM_WINDOW_ALL_LAYERS ||
                (per_layer && mm_field_bool(f, "use_sliding_window", false));
    const cJSON *null = mm_field(f, "sliding_window");
    size_t window = used && !cJSON_IsNull(null) ? mm_field_count(f, "sliding_window", 4096) : 0;
    if (row->window == MM_WINDOW_ALL_LAYERS) /* layer_types does not count */
        arch->sliding_window = window;
    if (row->window == MM_WINDOW_ALL_LAYERS)
        return;
    if (!mm_field_given(f, "layer_types")) {
        double first = per_layer ? mm_field_number(f, "max_window_layers", 28) : INFINITY;
        arch->sliding_window = (double)arch->layers > first ? window : 0;
        return;
    }
    size_t n = 0;
    const cJSON *type, *types = mm_field(f, "layer_types");
    cJSON_ArrayForEach(type, types) {
        const char *name = cJSON_IsString(type) ? type->valuestring : "(not a string)";
        bool sliding = per_layer && strcmp(name, "sliding_attention") == 0;
        if (!sliding && strcmp(name, "full_attention") != 0)
            mm_fields_fault(
                f, "'layer_types' names '%.100s', which is not supported in this family", name);
        any |= sliding;
        n++;
    }
    if (!cJSON_IsArray(types) || n != arch->layers)
        mm_fields_fault(f, "'layer_types' is not a list of one kind for each of %zu layers",
                        arch->layers);
    if (any && !window)
        mm_fields_fault(f, "'layer_types' names 'sliding_attention', but sliding_window and "
                           "use_sliding_window set no window");
    arch->sliding_window = any ? window : 0;
}

/* How q, k and v lie in the output of their product. */
static void lay_out_heads(struct mm_heads *h, bool mixed) {
    size_t d = h->head_dim;
    if (mixed) { /* q, k, v of head 0, q, k, v of head 1, ... */
        h->q_step = h->k_step = h->v_step = 3 * d;
        h->k_first = d;
        h->v_first = 2 * d;
    } else { /* all q, all k, all v */
        h->q_step = h->k_step = h->v_step = d;
        h->k_first = h->heads * d;
        h->v_first = h->k_first + h->kv_heads * d;
    }
}

static void read_heads(struct mm_fields *f, const struct mm_family_row *row, struct mm_arch *arch) {
    struct mm_heads *h = &arch->heads;
    h->heads = read_size(f, arch, "num_attention_heads", row->heads);
    h->kv_heads = h->heads;
    if (row->kv_field && !cJSON_IsNull(mm_field(f, "num_key_value_heads")))
        h->kv_heads =
            mm_field_count(f, "num_key_value_heads", row->kv_heads ? row->kv_heads : h->heads);
    if (f->status != MM_OK)
        return;
    size_t share = arch->width / h->heads;
    bool own = row->head_field && !(row->head_null && !mm_field_given(f, "head_dim"));
    if (own && row->head_dim)
        h->head_dim = read_size(f, arch, "head_dim", row->head_dim);
    else
        h->head_dim = own ? mm_field_count(f, "head_dim", share) : share;
    if (row->whole_heads && arch->width % h->heads)
        mm_fields_fault(f, "hidden_size %zu is not a multiple of num_attention_heads %zu",
                        arch->width, h->heads);
    if (h->heads % h->kv_heads)
        mm_fields_fault(f, "num_attention_heads %zu is not a multiple of num_key_value_heads %zu",
                        h->heads, h->kv_heads);
    if (!row->head_field && mm_field_given(f, "head_dim") &&
        mm_field_number(f, "head_dim", 0) != (double)share)
        mm_fields_fault(f, "'head_dim' is not hidden_size / num_attention_heads, which is not "
                           "supported in this family");
    if (h->head_dim == 0)
        mm_fields_fault(f, "hidden_size %zu is less than num_attention_heads %zu", arch->width,
                        h->heads);
    lay_out_heads(h, arch->family == MM_NEOX);
}

/* Sizes whose products fit and whose table of tensors does, whatever the file says. */
static void check_sizes(struct mm_fields *f, const struct mm_arch *arch) {
    enum { LAYERS_MAX = 1000 };
    const struct mm_heads *h = &arch->heads;
    __uint128_t attention = (__uint128_t)(2 * h->heads + 2 * h->kv_heads) * h->head_dim,
                layer = (attention + (__uint128_t)3 * arch->mlp + 8) * (arch->width + 1),
                all = layer * arch->layers + (__uint128_t)2 * arch->vocab * arch->width;
    if (arch->layers > LAYERS_MAX)
        mm_fields_fault(f, "'num_hidden_layers' is %zu, above %d", arch->layers, LAYERS_MAX);
    if (all >> 48)
        mm_fields_fault(f, "sizes of a model of more than 2^48 parameters");
}

static void read_activation(struct mm_fields *f, const struct mm_family_row *row) {
    const char *act = mm_field_text(f, "hidden_act", row->hidden_act[0]);
    for (size_t i = 0; row->hidden_act[i]; i++)
        if (strcmp(act, row->hidden_act[i]) == 0)
            return;
    mm_fields_fault(f, "hidden_act '%s' is not supported in this family: '%s'", act,
                    row->hidden_act[0]);
}

/* Counted from the end where it is below 0, as PyTorch does. */
static void read_pad(struct mm_fields *f, const struct mm_family_row *row, struct mm_arch *arch) {
    bool given = mm_field_given(f, "pad_token_id"), null = mm_field(f, "pad_token_id") && !given;
    arch->pad = row->pad_field && !null ? row->pad : MM_NO_TOKEN;
    if (!row->pad_field || (!given && arch->pad == MM_NO_TOKEN))
        return;
    double pad = given ? mm_field_number(f, "pad_token_id", NAN) : row->pad;
    double V = (double)arch->vocab, from_start = pad < 0 ? V + pad : pad;
    if (f->status == MM_OK && !(from_start >= 0 && from_start < V && floor(pad) == pad))
        mm_fields_fault(f,
                        "'pad_token_id' is %g, which is no token of a vocabulary of %zu: null is "
                        "for none",
                        pad, arch->vocab);
    if (f->status == MM_OK)
        arch->pad = (uint32_t)from_start;
}

static void read_fields(struct mm_fields *f, struct mm_arch *arch) {
    *arch = (struct mm_arch){0};
    const struct mm_family_row *row = find_family(f);
    if (!row)
        return;
    arch->family = row->family;
    refuse_unsupported(f);
    arch->layers = read_size(f, arch, "num_hidden_layers", row->layers);
    arch->width = read_size(f, arch, "hidden_size", row->width);
    arch->mlp = read_size(f, arch, "intermediate_size", row->mlp);
    arch->vocab = read_size(f, arch, "vocab_size", row->vocab);
    read_heads(f, row, arch);
    if (f->status != MM_OK)
        return;
    check_sizes(f, arch);
    arch->norm = row->norm;
    arch->norm_after = row->norm_after;
    arch->qk_norm = row->qk_norm;
    double epsilon = mm_field_number(f, row->epsilon_field, row->epsilon);
    if (epsilon < 0)
        mm_fields_fault(f, "'%s' is below 0", row->epsilon_field);
    arch->epsilon = (float)epsilon;
    arch->activation = row->activation;
    read_activation(f, row);
    arch->parallel = row->parallel_field && mm_field_bool(f, "use_parallel_residual", true);
    arch->tied = mm_field_bool(f, "tie_word_embeddings", false);
    bool bias = row->bias_field ? mm_field_bool(f, "attention_bias", row->bias) : row->bias;
    arch->qkv_bias = bias || row->qkv_bias;
    arch->o_bias = bias;
    arch->mlp_bias =
        row->mlp_bias_field ? mm_field_bool(f, "mlp_bias", row->mlp_bias) : row->mlp_bias;
    arch->initializer_range = mm_field_number(f, "initializer_range", 0.02);
    read_pad(f, row, arch);
    mm_rope_read(f, row, arch);
    read_window(f, row, arch);
}

enum mm_status mm_arch_read(struct mm_arch *arch, const char *path, struct mm_error *err) {
    char *text;
    cJSON *object = mm_json_file(path, &text, err);
    if (!object)
        return MM_BAD_INPUT;
    struct mm_fields f = {.path = path, .object = object, .err = err};
    read_fields(&f, arch);
    mm_bytes_hash(text, strlen(text), arch->hash);
    mm_free(text);
    cJSON_Delete(object);
    return f.status;
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
