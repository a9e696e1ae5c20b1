/* whole_model.h - fills the weights of a model without the ranks of a job. */
#ifndef MM_WHOLE_MODEL_H
#define MM_WHOLE_MODEL_H

#include "io/weights.h"
#include "kernels/queue.h"
#include "src/model/model.h"

static inline enum mm_status load_whole(const struct mm_model *m, const struct mm_weights *weights,
                                        struct mm_error *err) {
    enum mm_status status = MM_OK;
    for (size_t i = 0; i < m->params_n && status == MM_OK; i++) {
        const struct mm_param *p = &m->params[i];
        size_t bytes = p->rows * p->cols * mm_dtype_bytes(m->dtype);
        void *host = mm_calloc(bytes, 1);
        status = mm_weights_load(weights, p->name, p->rows, p->vector ? 0 : p->cols, host, m->dtype,
                                 err);
        if (status == MM_OK)
            m->dev->queue->upload(m->dev, p->w.data, host, bytes);
        mm_free(host);
    }
    return status;
}

#endif
