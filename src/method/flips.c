/* flips.c - counts the elements whose fate a bfloat16 reduction changes; see flips.h. */
#include "src/method/flips.h"

#include "kernels/queue.h"
#include "src/mudman.h"

static int sign(float x) {
    return (x > 0) - (x < 0);
}

/* Elements whose sign agrees with m's in one of g and `unrounded` alone. */
static double count_flips(struct mm_mudman *u) {
    enum { CHUNK = 1 << 16 };
    const struct mm_vector vectors[3] = {u->g, u->unrounded, u->m};
    float *host[3];
    double flips = 0;
    for (int i = 0; i < 3; i++)
        host[i] = mm_calloc(CHUNK, sizeof **host);
    for (size_t first = 0; first < u->g.n; first += CHUNK) {
        size_t n = u->g.n - first < CHUNK ? u->g.n - first : CHUNK;
        for (int i = 0; i < 3; i++)
            mm_download_floats(u->dev, host[i], vectors[i].dtype,
                               (char *)vectors[i].data + first * mm_dtype_bytes(vectors[i].dtype),
                               n);
        for (size_t i = 0; i < n; i++) {
            int m = sign(host[2][i]);
            flips += (sign(host[0][i]) == m) != (sign(host[1][i]) == m);
        }
    }
    for (int i = 0; i < 3; i++)
        mm_free(host[i]);
    return flips;
}

void mm_flips_measure(struct mm_mudman *u) {
    const struct mm_mudman_settings *c = &u->settings;
    bool reuse = c->train_adversary && c->graph == MM_GRAPH_REUSE;
    struct mm_mat unrounded = mm_mat(u->unrounded.data, MM_F32, 1, u->unrounded.n);
    mm_comm_reduce_as(u->comm, MM_F32);
    if (c->train_adversary && c->graph == MM_GRAPH_LISTING)
        mm_passes_second_gradient(u->passes, u->unrounded);
    else
        mm_passes_gradient(u->passes, &u->forget, reuse ? c->training : c->unlearning, u->unrounded,
                           u->scale, NULL); /* which has room for a loss */
    mm_comm_sum_waiting(u->comm);
    mm_comm_reduce_as(u->comm, MM_BF16);
    if (reuse)
        u->dev->ops->scale(u->dev, unrounded, unrounded, -1.0f);
    double flips = count_flips(u);
    mm_comm_sum(u->comm, &flips, 1);
    u->flips = flips / u->shard->layout.total;
}
