/* golden_replay.h - the updates of a run of bfloat16 state from stored gradients: bit by bit what
 * PyTorch did. */
#ifndef MM_TEST_GOLDEN_REPLAY_H
#define MM_TEST_GOLDEN_REPLAY_H

#include "tests/golden/golden_run.h"
#include "tests/golden/golden_vectors.h"

/* g (=) own rows of loop t's stored gradient. */
static inline void load_gradient(hid_t group, const char *kind, size_t t,
                                 const struct mm_shard *shard, struct mm_vector g) {
    float *host = mm_calloc(g.n + 1, sizeof *host);
    for (size_t i = 0; i < shard->tensors_n; i++) {
        const struct mm_param *param = &shard->model->params[shard->param[i]];
        struct mm_rows own = mm_layout_own(&shard->layout, i);
        char *path = mm_format("gradients/%s/%s", kind, param->name);
        double *all = trace_read(group, path, NULL, NULL);
        assert_non_null(all);
        size_t first = (t * param->rows + own.first) * param->cols;
        for (size_t j = 0; j < own.count * param->cols; j++)
            host[shard->layout.offsets[i] + j] = (float)all[first + j];
        mm_free(all);
        mm_free(path);
    }
    dev->queue->upload(dev, g.data, host, g.n * sizeof *host);
    mm_free(host);
}

/* The updates of every loop from the stored gradients: b, a, m must come out the same to the bit.
 */
static inline void check_replay(struct fixture *f, const char *variant) {
    struct mm_config config;
    hid_t group = H5Gopen2(f->traces, variant, H5P_DEFAULT);
    read_config(&config, group, 4);
    struct unlearning run = begin(f, &config);
    struct mm_shard *shard = run.shard;
    struct mm_mudman *u = run.u;
    const __typeof__(config.unlearn) *c = &config.unlearn;
    const uint32_t *stop = &u->scalars->stop;
    const struct mm_unlearn_options all = {.f = u->f,
                                           .momentum = c->forget_momentum,
                                           .b = u->b,
                                           .discard = c->discard_growing_weights,
                                           .a = u->a,
                                           .adv_rate = c->adv_update * c->unlearning_rate,
                                           .stop = stop},
                                    *options = c->adv_update > 0 ? &all : NULL;
    const struct mm_mask mask = {u->m, c->use_masking, u->over_w.offsets, shard->tensors_n};
    const struct mm_normalizing norm = {c->normalization, c->rate_scale == MM_RATE_STUDY,
                                        shard->layout.total, MM_BF16};
    for (size_t t = 0; t < c->loops; t++) {
        if (t % c->fork_every_n_loops == 0)
            dev->ops->fork(dev, u->a, u->b, stop);
        load_gradient(group, "retain", t, shard, u->g);
        dev->ops->retain_step(dev, u->m, u->b, u->g, c->retain_momentum, c->retaining_rate, stop);
        load_gradient(group, "adversary", t, shard, u->g);
        dev->ops->adversary_step(dev, u->a, u->b, u->g, c->adv_lr, c->adv_decay, NULL, stop);
        load_gradient(group, "unlearning", t, shard, u->g);
        dev->ops->mask_sums(dev, u->sums, u->g, &mask, options);
        mm_comm_sum_device(comm, (double *)u->sums, 3 * mask.tensors_n);
        dev->ops->unlearn_scale(dev, &norm, u->scale, u->sums, mask.tensors_n, u->scalars);
        dev->ops->unlearn_step(dev, u->b, u->g, &mask, u->scale, c->unlearning_rate, options, stop);
    }
    check_vector(variant, group, "base", shard, u->b, 0);
    check_vector(variant, group, "adversary", shard, u->a, 0);
    check_vector(variant, group, "retain_acc", shard, u->m, 0);
    if (u->f.data)
        check_vector(variant, group, "forget_acc", shard, u->f, 0);
    end(&run);
    mm_config_free(&config);
    H5Gclose(group);
}

#endif
