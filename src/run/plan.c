/* plan.c - see plan.h. The numbers are those of the run's own set-up code on dry arenas. */
#include "src/run/plan.h"

#include "src/run/job.h"
#include "src/method/method.h"
#include "src/run/place.h"
#include "src/run/relearn.h"
#include "src/run/rows.h"
#include "src/run/unlearn.h"

#include <stdio.h>

static void print_row(const char *name, const size_t bytes[3]) {
    char text[3][32];
    printf("%-24s %12s %12s %12s\n", name, mm_bytes_text(text[0], (double)bytes[0]),
           mm_bytes_text(text[1], (double)bytes[1]), mm_bytes_text(text[2], (double)bytes[2]));
}

static size_t data_bytes(const struct mm_data *d) {
    const struct mm_dataset *const sets[] = {&d->retain,
                                             &d->forget,
                                             &d->retain_validation,
                                             &d->forget_validation,
                                             &d->retain_evaluation,
                                             &d->forget_evaluation,
                                             &d->kl};
    size_t bytes = 0;
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        bytes += sets[i]->examples * sets[i]->context_length * sizeof(uint32_t);
    return bytes;
}

/* Host memory for the logits of the model as it was. */
static size_t start_bytes(const struct mm_job *job) {
    const struct mm_divergence *d = job->evaluator->divergence;
    return d ? mm_divergence_bytes(d) : 0;
}

/* copy: of the state in host memory, from which a checkpoint is written. */
static void print_peak(const struct mm_job *job, size_t copy, bool cuda, size_t peak) {
    char text[4][32];
    mm_bytes_text(text[0], (double)peak);
    if (cuda)
        printf(
            "peak: %s of GPU memory a rank, beside what CUDA and, between ranks, NCCL take "
            "for themselves\nhost memory: token files %s, checkpoints %s, the start's logits %s\n",
            text[0], mm_bytes_text(text[1], (double)data_bytes(&job->data)),
            mm_bytes_text(text[2], (double)copy), mm_bytes_text(text[3], (double)start_bytes(job)));
    else
        printf("peak: %s a rank, beside the program's own memory and its libraries'\n", text[0]);
    struct mm_arena *arena = mm_arena_create_dry(job->dev);
    mm_weights_keep(arena, job->model);
    mm_bytes_text(text[0], (double)mm_arena_bytes(arena, MM_FOR_WEIGHTS));
    mm_arena_free(arena);
    printf("trials: %s more, the weights to start every trial from\n", text[0]);
}

static void print_plan(const struct mm_job *job, struct mm_arena *const arenas[3],
                       size_t copy_bytes, bool cuda) {
    size_t sums[3] = {0}, fixed[3] = {cuda ? MM_CUDA_WORKSPACE_BYTES : data_bytes(&job->data)};
    printf("%-24s %12s %12s %12s\n", "bytes a rank", "always", "unlearning", "relearning");
    for (int purpose = 0; purpose < MM_PURPOSES; purpose++) {
        size_t row[3];
        for (int i = 0; i < 3; i++)
            sums[i] += row[i] = mm_arena_bytes(arenas[i], (enum mm_purpose)purpose);
        if (row[0] + row[1] + row[2])
            print_row(mm_purpose_names[purpose], row);
    }
    print_row(cuda ? "device workspace" : "token files", fixed);
    sums[0] += fixed[0];
    if (!cuda && start_bytes(job)) {
        size_t start[3] = {start_bytes(job)};
        print_row("the start's logits", start);
        sums[0] += start[0];
    }
    if (!cuda) {
        size_t copy[3] = {0, copy_bytes};
        print_row("checkpoint copy", copy);
        sums[1] += copy[1];
    }
    print_row("sum", sums);
    print_peak(job, copy_bytes, cuda, sums[0] + (sums[1] > sums[2] ? sums[1] : sums[2]));
}

static void print_head(const struct mm_job *job, size_t loops, bool cuda) {
    const struct mm_config *c = job->config;
    size_t each = mm_method_of(c)->passes(c);
    printf("model: %s, %zu parameters in %zu tensors\n", c->model.path, job->model->elements,
           job->model->params_n);
    printf("arithmetic: %s on %s; state: %s\n", mm_dtype_name(mm_config_dtype(c)),
           cuda ? "a GPU a rank" : "the CPU", mm_dtype_name(c->model.state_dtype));
    printf("ranks: %d; batch %zu x %zu tokens, %zu sequences at once\n", mm_comm_size(job->comm),
           c->data.batch_size, c->data.context_length, job->evaluator->passes->share.micro_batch);
    printf("unlearning: %zu loops of %zu passes; relearning: %zu passes", loops, each,
           mm_config_relearn_passes(c));
    if (c->relearn.attacks_n)
        printf(" in %zu attacks", c->relearn.attacks_n);
    putchar('\n');
}

static enum mm_status plan_on(struct mm_comm *comm, struct mm_device *dev,
                              const struct mm_config *config, bool cuda, struct mm_error *err) {
    struct mm_job job;
    size_t loops;
    enum mm_status status = mm_job_loops(config, &loops, err);
    if (status == MM_OK)
        status = mm_job_open(&job, comm, dev, config, MM_JOB_PLAN, err);
    if (status != MM_OK)
        return status;
    struct mm_arena *arenas[3] = {job.arena, mm_arena_create_dry(dev), mm_arena_create_dry(dev)};
    bool *wanted = mm_calloc(job.model->params_n, sizeof *wanted);
    status = mm_model_choose(job.model, config->unlearn.target_modules,
                             config->unlearn.target_modules_n, wanted, err);
    mm_free(wanted);
    if (status == MM_OK)
        status = mm_hidden_loss_check(config, job.model->arch.layers, err);
    if (status == MM_OK) {
        size_t copy = mm_unlearn_plan(&job, arenas[1], err);
        if (mm_config_relearn_passes(config))
            mm_relearn_plan(&job, arenas[2]);
        print_head(&job, loops, cuda);
        print_plan(&job, arenas, copy, cuda);
        mm_rows_print(&job.data, config, loops);
    }
    mm_arena_free(arenas[1]);
    mm_arena_free(arenas[2]);
    mm_job_close(&job);
    return status;
}

/* The CPU's device stands for the GPU: dry arenas ask nothing of it. */
enum mm_status mm_plan(struct mm_comm *comm, struct mm_config *config, int ranks,
                       struct mm_error *err) {
    bool cuda;
    enum mm_status status = mm_place_plan(config, &cuda, err);
    if (status != MM_OK)
        return status;
    mm_comm_pretend(comm, ranks ? ranks : mm_comm_size(comm));
    struct mm_device *dev = mm_device_create_cpu();
    status = plan_on(comm, dev, config, cuda, err);
    mm_device_free(dev);
    return status;
}
