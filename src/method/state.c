/* state.c - the list of the state and its copy in host memory; see state.h. A tensor of the
 * checkpoint is found by its name: parts whose tensors have the same names, as b, a, m and f have,
 * are groups of the same tensors. */
#include "src/method/state.h"

#include <string.h>

#include "kernels/queue.h"

void mm_state_add(struct mm_state_list *list, struct mm_state_part part) {
    MM_CHECK(list->n < MM_STATE_PARTS, "more than %d parts of the state", MM_STATE_PARTS);
    list->parts[list->n++] = part;
}

struct mm_vector mm_state_take(struct mm_state_list *list, struct mm_arena *arena,
                               struct mm_state_part part, enum mm_dtype dtype) {
    part.vector = mm_layout_vector(part.layout, arena, part.purpose, dtype);
    mm_state_add(list, part);
    return part.vector;
}

static size_t sets_of(const struct mm_state_part *part) {
    return part->sets ? part->sets : 1;
}

static size_t bytes_of(const struct mm_state_part *part) {
    return part->vector.data ? part->vector.n * mm_dtype_bytes(part->vector.dtype) : 0;
}

size_t mm_state_own_bytes(const struct mm_state_list *list) {
    size_t bytes = 0;
    for (size_t i = 0; i < list->n; i++)
        bytes += bytes_of(&list->parts[i]);
    return bytes;
}

double mm_state_all_bytes(const struct mm_state_list *list) {
    double bytes = 0;
    for (const struct mm_state_part *p = list->parts; p < list->parts + list->n; p++)
        if (p->vector.data)
            bytes +=
                p->layout->total * (double)sets_of(p) * (double)mm_dtype_bytes(p->vector.dtype);
    return bytes;
}

/* -- the copy ---------------------------------------------------------------------------------- */

/* Of tensor t of a set; mm_free. */
static char *name_of(const struct mm_state_list *list, const struct mm_state_part *part, size_t set,
                     size_t t) {
    const struct mm_shard *s = list->shard;
    if (!part->adapters)
        return mm_strdup(s->model->params[s->param[t]].name);
    struct mm_lora_tensor tensor = mm_lora_tensor(part->adapters, t);
    if (!part->sets)
        return mm_format("%s.lora_%c", tensor.adapted, tensor.matrix);
    return mm_format("%s.lora_%c.%zu", tensor.adapted, tensor.matrix, set);
}

/* The tensor of that name, which is taken over, appended where there is none yet. */
static struct mm_state_tensor *find(struct mm_state *state, char *name, size_t rows, size_t cols) {
    for (size_t i = 0; i < state->tensors_n; i++)
        if (strcmp(state->tensors[i].name, name) == 0) {
            mm_free(name);
            return &state->tensors[i];
        }
    struct mm_state_tensor *tensor = &state->tensors[state->tensors_n++];
    *tensor = (struct mm_state_tensor){.name = name, .rows = rows, .cols = cols};
    return tensor;
}

static void bind(struct mm_state_copy *copy, size_t i) {
    const struct mm_state_part *part = &copy->list->parts[i];
    const struct mm_layout *l = part->layout;
    size_t bytes = mm_dtype_bytes(part->vector.dtype), set_n = mm_layout_elements(l);
    for (size_t set = 0; set < sets_of(part); set++)
        for (size_t t = 0; t < l->tensors_n; t++) {
            char *name = name_of(copy->list, part, set, t);
            struct mm_state_tensor *tensor = find(&copy->state, name, l->rows[t], l->cols[t]);
            tensor->own[part->group] =
                (char *)copy->host[i] + (set * set_n + l->offsets[t]) * bytes;
        }
}

struct mm_state_copy mm_state_copy_create(const struct mm_state_list *list, struct mm_device *dev) {
    struct mm_state_copy copy = {.list = list, .dev = dev};
    size_t most = 0;
    for (size_t i = 0; i < list->n; i++)
        most += list->parts[i].layout->tensors_n * sets_of(&list->parts[i]);
    copy.state.tensors = mm_calloc(most, sizeof *copy.state.tensors);
    copy.state.dtype = list->parts[0].vector.dtype;
    for (size_t i = 0; i < list->n; i++)
        if (list->parts[i].vector.data) {
            copy.host[i] = dev->queue->pinned_alloc(dev, bytes_of(&list->parts[i]));
            bind(&copy, i);
        }
    return copy;
}

void mm_state_copy_free(struct mm_state_copy *copy) {
    for (int i = 0; i < MM_STATE_PARTS; i++)
        if (copy->host[i])
            copy->dev->queue->pinned_free(copy->dev, copy->host[i]);
    for (size_t i = 0; i < copy->state.tensors_n; i++)
        mm_free(copy->state.tensors[i].name);
    mm_free(copy->state.tensors);
    *copy = (struct mm_state_copy){0};
}

void mm_state_save(const struct mm_state_copy *copy) {
    const struct mm_state_part *parts = copy->list->parts;
    for (size_t i = 0; i < copy->list->n; i++)
        if (copy->host[i])
            copy->dev->queue->download(copy->dev, copy->host[i], parts[i].vector.data,
                                       bytes_of(&parts[i]));
}

void mm_state_restore(const struct mm_state_copy *copy) {
    const struct mm_state_part *parts = copy->list->parts;
    for (size_t i = 0; i < copy->list->n; i++)
        if (copy->host[i])
            copy->dev->queue->upload(copy->dev, parts[i].vector.data, copy->host[i],
                                     bytes_of(&parts[i]));
}
