/* plan.c - see plan.h. The numbers are those of the run's own set-up code on dry arenas. */
#include "src/run/plan.h"

#include "src/run/fit.h"
#include "src/run/job.h"
#include "src/run/machine.h"
#include "src/method/method.h"
#include "src/run/place.h"
#include "src/run/relearn.h"
#include "src/run/rows.h"
#include "src/run/unlearn.h"

#include <stdio.h>

#define RANKS_OF_A_MACHINE 8 /* where nobody says otherwise */

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

/* What a job holds: always, while it unlearns, and while it relearns. */
struct planned {
    struct mm_job job;
    struct mm_arena *arenas[3];
    size_t copy; /* of the state in host memory, from which a checkpoint is written */
    struct mm_rehearsal loop, *steps;
    bool cuda;
};

/* The sum of column i. */
static size_t held(const struct planned *p, int i) {
    size_t sum = 0;
    for (int purpose = 0; purpose < MM_PURPOSES; purpose++)
        sum += mm_arena_bytes(p->arenas[i], (enum mm_purpose)purpose);
    if (i == 0)
        sum += p->cuda ? MM_CUDA_WORKSPACE_BYTES : data_bytes(&p->job.data) + start_bytes(&p->job);
    return i == 1 && !p->cuda ? sum + p->copy : sum;
}

static size_t peak_of(const struct planned *p) {
    size_t unlearning = held(p, 1), relearning = held(p, 2);
    return held(p, 0) + (unlearning > relearning ? unlearning : relearning);
}

static void print_memory(const struct planned *p) {
    size_t fixed[3] = {p->cuda ? MM_CUDA_WORKSPACE_BYTES : data_bytes(&p->job.data)};
    printf("%-24s %12s %12s %12s\n", "bytes a rank", "always", "unlearning", "relearning");
    for (int purpose = 0; purpose < MM_PURPOSES; purpose++) {
        size_t row[3];
        for (int i = 0; i < 3; i++)
            row[i] = mm_arena_bytes(p->arenas[i], (enum mm_purpose)purpose);
        if (row[0] + row[1] + row[2])
            print_row(mm_purpose_names[purpose], row);
    }
    print_row(p->cuda ? "device workspace" : "token files", fixed);
    if (!p->cuda && start_bytes(&p->job))
        print_row("the start's logits", (size_t[3]){start_bytes(&p->job)});
    if (!p->cuda)
        print_row("checkpoint copy", (size_t[3]){0, p->copy, 0});
    print_row("sum", (size_t[3]){held(p, 0), held(p, 1), held(p, 2)});
    print_peak(&p->job, p->copy, p->cuda, peak_of(p));
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

/* "a step of attack adamw"; the caller frees. */
static char *step_text(const struct mm_config *config, size_t i) {
    const char *name = mm_config_attack(config, i).name;
    return mm_format("a step of relearning%s%s", name ? " by " : "", name ? name : "");
}

/* tokens: of a batch. timed: there is a machine to predict times of. */
static void print_rehearsals(const struct mm_config *config, const struct mm_rehearsal *loop,
                             const struct mm_rehearsal *steps, bool timed) {
    size_t tokens = config->data.batch_size * config->data.context_length;
    mm_rehearsal_print_traffic(loop, "a loop");
    if (timed)
        mm_rehearsal_print_time(loop, "a loop", 2 * tokens);
    for (size_t i = 0; mm_config_relearn_passes(config) && i < mm_config_attacks_n(config); i++) {
        char *what = step_text(config, i);
        mm_rehearsal_print_traffic(&steps[i], what);
        if (timed)
            mm_rehearsal_print_time(&steps[i], what,
                                    mm_config_attack(config, i).with_retain ? 2 * tokens : tokens);
        mm_free(what);
    }
}

static void close_plan(struct planned *p) {
    mm_free(p->steps);
    mm_arena_free(p->arenas[1]);
    mm_arena_free(p->arenas[2]);
    mm_job_close(&p->job);
}

static enum mm_status fill(struct planned *p, struct mm_error *err) {
    const struct mm_config *c = p->job.config;
    bool *wanted = mm_calloc(p->job.model->params_n, sizeof *wanted);
    enum mm_status status = mm_model_choose(p->job.model, c->unlearn.target_modules,
                                            c->unlearn.target_modules_n, wanted, err);
    mm_free(wanted);
    if (status == MM_OK)
        status = mm_hidden_loss_check(c, p->job.model->arch.layers, err);
    if (status != MM_OK)
        return status;
    p->copy = mm_unlearn_plan(&p->job, p->arenas[1], &p->loop, err);
    if (mm_config_relearn_passes(c))
        mm_relearn_plan(&p->job, p->arenas[2], p->steps);
    return MM_OK;
}

/* On a dry device, while comm pretends. Unless it fails, the caller closes it. */
static enum mm_status open_plan(struct planned *p, struct mm_comm *comm, struct mm_device *dev,
                                const struct mm_config *config, bool cuda, struct mm_error *err) {
    *p = (struct planned){.cuda = cuda};
    enum mm_status status = mm_job_open(&p->job, comm, dev, config, MM_JOB_PLAN, err);
    if (status != MM_OK)
        return status;
    p->arenas[0] = p->job.arena;
    p->arenas[1] = mm_arena_create_dry(dev);
    p->arenas[2] = mm_arena_create_dry(dev);
    p->steps = mm_calloc(mm_config_attacks_n(config), sizeof *p->steps);
    status = fill(p, err);
    if (status != MM_OK)
        close_plan(p);
    return status;
}

static enum mm_status print_plan(struct mm_comm *comm, struct mm_device *dev,
                                 const struct mm_config *config, bool cuda, bool timed,
                                 struct mm_error *err) {
    struct planned p;
    size_t loops;
    enum mm_status status = mm_job_loops(config, &loops, err);
    if (status == MM_OK)
        status = open_plan(&p, comm, dev, config, cuda, err);
    if (status != MM_OK)
        return status;
    print_head(&p.job, loops, cuda);
    print_memory(&p);
    print_rehearsals(config, &p.loop, p.steps, timed);
    mm_rows_print(&p.job.data, config, loops);
    close_plan(&p);
    return MM_OK;
}

/* What model.shard: auto chooses between; the plan that was printed is of none. */
static enum mm_status print_choice(struct mm_comm *comm, struct mm_device *dev,
                                   struct mm_config *config, bool cuda, struct mm_error *err) {
    printf("model.shard: auto is none where every rank has the memory above");
    for (int i = MM_SHARD_NODE; i <= MM_SHARD_FULL; i++) {
        struct planned p;
        char text[32];
        if (i == MM_SHARD_NODE && !mm_fit_nodes(comm))
            continue;
        config->model.shard = (enum mm_sharding)i;
        enum mm_status status = open_plan(&p, comm, dev, config, cuda, err);
        if (status != MM_OK)
            return status;
        printf(", else %s, whose peak is %s", mm_shard_name(config->model.shard),
               mm_bytes_text(text, (double)peak_of(&p)));
        close_plan(&p);
    }
    putchar('\n');
    return MM_OK;
}

enum mm_status mm_plan_peak(struct mm_comm *comm, const struct mm_config *config, bool cuda,
                            size_t *peak, struct mm_error *err) {
    struct mm_machine unknown = {.links.per_machine = mm_comm_near(comm).size};
    struct mm_device *dev =
        mm_device_create_dry(cuda ? MM_CUDA_CHUNK : MM_CPU_CHUNK, unknown.rates);
    struct planned p;
    mm_comm_pretend(comm, mm_comm_size(comm), unknown.links);
    enum mm_status status = mm_comm_attach(comm, dev, MM_TRANSPORT_AUTO, config->reduce_dtype, err);
    if (status == MM_OK)
        status = open_plan(&p, comm, dev, config, cuda, err);
    if (status == MM_OK) {
        *peak = peak_of(&p);
        close_plan(&p);
    }
    mm_comm_pretend_end(comm);
    mm_device_free(dev);
    return status;
}

enum mm_status mm_plan(struct mm_comm *comm, struct mm_config *config, int ranks, const char *name,
                       struct mm_error *err) {
    struct mm_machine machine = {.links.per_machine = RANKS_OF_A_MACHINE};
    enum mm_status status = name ? mm_machine_read(&machine, name, err) : MM_OK;
    if (name && config->device == MM_DEVICE_AUTO)
        config->device = machine.cuda ? MM_DEVICE_CUDA : MM_DEVICE_CPU;
    bool cuda = mm_place_plan(config);
    if (status == MM_OK && name && cuda != machine.cuda)
        status = mm_fail(err, MM_BAD_INPUT, "--machine %s has %s, but device is %s", name,
                         machine.cuda ? "GPUs" : "no GPUs", cuda ? "cuda" : "cpu");
    if (status != MM_OK)
        return status;
    struct mm_device *dev =
        mm_device_create_dry(cuda ? MM_CUDA_CHUNK : MM_CPU_CHUNK, machine.rates);
    mm_comm_pretend(comm, ranks ? ranks : mm_comm_size(comm), machine.links);
    status = mm_comm_attach(comm, dev, MM_TRANSPORT_AUTO, config->reduce_dtype, err);
    bool choice = config->model.shard == MM_SHARD_AUTO;
    if (choice)
        config->model.shard = MM_SHARD_NONE;
    if (status == MM_OK)
        status = print_plan(comm, dev, config, cuda, name != NULL, err);
    if (status == MM_OK && choice)
        status = print_choice(comm, dev, config, cuda, err);
    mm_comm_pretend_end(comm);
    mm_device_free(dev);
    return status;
}
