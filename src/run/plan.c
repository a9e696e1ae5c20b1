/* plan.c - see plan.h. The numbers are those of the run's own set-up code on dry arenas. */
#include "src/run/plan.h"

#include "src/run/fit.h"
#include "src/run/job.h"
#include "src/run/machine.h"
#include "src/method/method.h"
#include "src/run/memory.h"
#include "src/run/place.h"
#include "src/run/relearn.h"
#include "src/run/rows.h"
#include "src/run/threads.h"
#include "src/run/unlearn.h"

#include <stdio.h>

#define RANKS_OF_A_MACHINE 8 /* where nobody says otherwise */

/* What a job holds: always, while it unlearns, and while it relearns. */
enum { ALWAYS, UNLEARNING, RELEARNING, COLUMNS };

struct planned {
    struct mm_job job;
    struct mm_arena *arenas[COLUMNS];
    size_t program;   /* what this process held before it read anything */
    size_t workspace; /* what the device had for itself before it did anything, */
    size_t messages;  /* and the transport after the model was loaded */
    size_t copy;      /* of the state in host memory, from which a checkpoint is written */
    struct mm_rehearsal loop, *steps;
    bool cuda;
};

/* -- what is held, by purpose ------------------------------------------------------------------ */

struct row {
    const char *name;
    size_t bytes[COLUMNS];
};

struct table {
    struct row rows[MM_PURPOSES + 8];
    size_t n;
};

static void add_row(struct table *t, const char *name, size_t always, size_t unlearning,
                    size_t relearning) {
    t->rows[t->n++] = (struct row){name, {always, unlearning, relearning}};
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

/* What the device and the transport have taken by the end: they keep it. */
static struct mm_rehearsal most_of(const struct planned *p) {
    const struct mm_config *c = p->job.config;
    struct mm_rehearsal most = p->loop;
    for (size_t i = 0; mm_config_relearn_passes(c) && i < mm_config_attacks_n(c); i++) {
        most.workspace = larger(most.workspace, p->steps[i].workspace);
        most.messages = larger(most.messages, p->steps[i].messages);
    }
    return most;
}

static bool staged(const struct planned *p) {
    return p->cuda && p->job.config->transport == MM_TRANSPORT_STAGED;
}

static void add_rehearsed(struct table *t, const struct planned *p) {
    struct mm_rehearsal most = most_of(p);
    bool relearns = mm_config_relearn_passes(p->job.config) > 0;
    add_row(t, "device workspace", p->workspace, p->loop.workspace - p->workspace,
            relearns ? most.workspace - p->workspace : 0);
    if (!staged(p))
        add_row(t, "messages", p->messages, p->loop.messages - p->messages,
                relearns ? most.messages - p->messages : 0);
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

/* In host memory, which is the device's on the CPU. */
static void add_host(struct table *t, const struct planned *p) {
    add_row(t, "program and libraries", p->program, 0, 0);
    add_row(t, "token files", data_bytes(&p->job.data), 0, 0);
    add_row(t, "logits to evaluate", mm_evaluator_bytes(p->job.evaluator), 0, 0);
    add_row(t, "checkpoint copy", 0, p->copy, 0);
    if (staged(p))
        add_row(t, "messages", most_of(p).messages, 0, 0);
}

static struct table table_of(const struct planned *p) {
    struct table t = {0};
    for (int purpose = 0; purpose < MM_PURPOSES; purpose++) {
        size_t bytes[COLUMNS];
        for (int i = 0; i < COLUMNS; i++)
            bytes[i] = mm_arena_bytes(p->arenas[i], (enum mm_purpose)purpose);
        add_row(&t, mm_purpose_names[purpose], bytes[0], bytes[1], bytes[2]);
    }
    add_rehearsed(&t, p);
    if (!p->cuda)
        add_host(&t, p);
    return t;
}

static struct row sum_of(const struct table *t) {
    struct row sum = {.name = "sum"};
    for (size_t i = 0; i < t->n; i++)
        for (int column = 0; column < COLUMNS; column++)
            sum.bytes[column] += t->rows[i].bytes[column];
    return sum;
}

static size_t peak_of(const struct planned *p) {
    struct table t = table_of(p);
    struct row sum = sum_of(&t);
    return sum.bytes[ALWAYS] + larger(sum.bytes[UNLEARNING], sum.bytes[RELEARNING]);
}

/* -- printing ---------------------------------------------------------------------------------- */

static void print_row(const struct row *row) {
    char text[COLUMNS][32];
    for (int i = 0; i < COLUMNS; i++)
        mm_bytes_text(text[i], (double)row->bytes[i]);
    printf("%-24s %12s %12s %12s\n", row->name, text[0], text[1], text[2]);
}

static void print_peak(const struct planned *p) {
    char text[32];
    mm_bytes_text(text, (double)peak_of(p));
    if (p->cuda) {
        struct table host = {0};
        add_host(&host, p);
        printf("peak: %s of GPU memory a rank, beside what CUDA and, between ranks, NCCL take "
               "for themselves\nhost memory: ",
               text);
        for (size_t i = 0; i < host.n; i++)
            printf("%s%s %s", i ? ", " : "", host.rows[i].name,
                   mm_bytes_text(text, (double)(host.rows[i].bytes[0] + host.rows[i].bytes[1])));
        putchar('\n');
    } else
        printf("peak: %s a rank, with products on %d thread%s\n", text, mm_cpu_threads(),
               mm_cpu_threads() == 1 ? "" : "s");
    struct mm_arena *arena = mm_arena_create_dry(p->job.dev);
    mm_weights_keep(arena, p->job.model);
    mm_bytes_text(text, (double)mm_arena_bytes(arena, MM_FOR_WEIGHTS));
    mm_arena_free(arena);
    printf("trials: %s more, the weights to start every trial from\n", text);
}

static void print_memory(const struct planned *p) {
    struct table t = table_of(p);
    struct row sum = sum_of(&t);
    printf("%-24s %12s %12s %12s\n", "bytes a rank", "always", "unlearning", "relearning");
    for (size_t i = 0; i < t.n; i++)
        if (t.rows[i].bytes[0] + t.rows[i].bytes[1] + t.rows[i].bytes[2])
            print_row(&t.rows[i]);
    print_row(&sum);
    print_peak(p);
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
    *p = (struct planned){
        .cuda = cuda, .program = mm_memory_resident(), .workspace = dev->own_bytes};
    enum mm_status status = mm_job_open(&p->job, comm, dev, config, MM_JOB_PLAN, err);
    if (status != MM_OK)
        return status;
    p->messages = mm_comm_room_bytes(comm);
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
                            struct mm_plan_need *need, struct mm_error *err) {
    struct mm_machine unknown = {.links.per_machine = mm_comm_near(comm).size};
    struct mm_device *dev = mm_device_create_dry(cuda, unknown.rates);
    struct planned p;
    mm_comm_pretend(comm, mm_comm_size(comm), unknown.links);
    enum mm_status status = mm_comm_attach(comm, dev, cuda ? config->transport : MM_TRANSPORT_AUTO,
                                           config->reduce_dtype, err);
    if (status == MM_OK)
        status = open_plan(&p, comm, dev, config, cuda, err);
    if (status == MM_OK) {
        need->memory = peak_of(&p);
        need->space = need->memory - p.program + mm_weights_mapped_bytes(p.job.weights);
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
    struct mm_device *dev = mm_device_create_dry(cuda, machine.rates);
    mm_comm_pretend(comm, ranks ? ranks : mm_comm_size(comm), machine.links);
    if (ranks)
        mm_threads_plan(ranks);
    status = mm_comm_attach(comm, dev, cuda ? config->transport : MM_TRANSPORT_AUTO,
                            config->reduce_dtype, err);
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
