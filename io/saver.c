/* saver.c - see saver.h and, for one rank's part of the work, checkpoint_format.h.
 *
 * Nothing here is decided by one rank: after each step all agree before the next begins, so none
 * waits for one that gave up. */
#include "io/saver.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "io/checkpoint_format.h"
#include "io/files.h"

enum step {
    IDLE,
    PARTS, /* every rank writes its part */
    WHOLE, /* rank 0 writes checkpoint.h5 and publishes the folder */
};

struct mm_saver {
    struct mm_comm *comm;
    char *run_dir;
    size_t keep;
    bool threaded; /* else each step is done when it begins */
    struct mm_owner *owner;

    /* The save under way. While a thread runs, only it touches what follows. */
    enum step step;
    struct mm_checkpoint_job job;
    struct mm_checkpoint_info info;
    struct mm_checkpoint_paths paths;
    struct mm_metrics *metrics;
    char hash[33]; /* of this rank's part */
    enum mm_status status;
    struct mm_error err;
    bool lost; /* the folder is another's now */

    pthread_t thread;
    bool running; /* there is a thread to be joined */
    atomic_bool done;
};

static struct mm_saver saver_of(struct mm_comm *comm, const char *run_dir, size_t keep) {
    return (struct mm_saver){.comm = comm, .run_dir = mm_strdup(run_dir), .keep = keep};
}

struct mm_saver *mm_saver_create(struct mm_comm *comm, const char *run_dir, size_t keep) {
    struct mm_saver *s = mm_calloc(1, sizeof *s);
    *s = saver_of(comm, run_dir, keep);
    s->threaded = true;
    return s;
}

void mm_saver_heed(struct mm_saver *s, struct mm_owner *owner) {
    s->owner = owner;
}

void mm_saver_free(struct mm_saver *s) {
    if (!s)
        return;
    MM_CHECK(s->step == IDLE, "a checkpoint is still being written");
    mm_free(s->run_dir);
    mm_free(s);
}

bool mm_saver_busy(const struct mm_saver *s) {
    return s->step != IDLE;
}

/* On rank 0. */
static enum mm_status check_owner(struct mm_saver *s, struct mm_error *err) {
    enum mm_status status = mm_owner_check(s->owner, err);
    s->lost = status != MM_OK;
    return status;
}

/* The steps: no MPI in them ------------------------------------------------------------------- */

static void write_part(struct mm_saver *s) {
    s->status = mm_checkpoint_part_write(&s->job, s->hash, &s->err);
    if (s->status == MM_OK && s->metrics)
        s->status = mm_metrics_sync(s->metrics, &s->err);
}

static void write_whole(struct mm_saver *s) {
    struct mm_error later;
    s->status = mm_checkpoint_whole_write(&s->job, &s->err);
    if (s->status == MM_OK)
        s->status = check_owner(s, &s->err);
    if (s->status == MM_OK)
        s->status = mm_checkpoint_publish(&s->paths, s->job.size, &s->err);
    if (s->status == MM_OK &&
        mm_checkpoint_prune(&s->paths, s->run_dir, s->info.loops, s->keep, &later) != MM_OK)
        mm_log0(MM_LOG_WARN, "old checkpoints cannot be removed: %s", later.text);
}

static void *run_step(void *argument) {
    struct mm_saver *s = argument;
    if (s->running)
        mm_h5_lend(MM_H5_MINE);
    s->step == PARTS ? write_part(s) : write_whole(s);
    atomic_store(&s->done, true);
    return NULL;
}

static void begin_step(struct mm_saver *s, enum step step) {
    bool mine = step == PARTS || s->job.rank == 0;
    s->step = step;
    s->status = MM_OK;
    atomic_store(&s->done, !mine);
    s->running = mine && s->threaded;
    if (s->running) {
        mm_h5_lend(MM_H5_THEIRS);
        MM_CHECK(pthread_create(&s->thread, NULL, run_step, s) == 0, "no thread for a checkpoint");
    } else if (mine) {
        run_step(s);
    }
}

/* Waits for this rank's thread; the status of all. */
static enum mm_status end_step(struct mm_saver *s, struct mm_error *err) {
    if (s->running) {
        MM_CHECK(pthread_join(s->thread, NULL) == 0, "a thread cannot be waited for");
        mm_h5_lend(MM_H5_ANYONES);
    }
    s->running = false;
    *err = s->err;
    return mm_comm_agree(s->comm, s->status, err);
}

/* The save --------------------------------------------------------------------------------------
 */

static void check_state(const struct mm_state *state) {
    for (size_t i = 0; i < state->tensors_n; i++) {
        const struct mm_state_tensor *tensor = &state->tensors[i];
        /* '/' would make a group, '%' a pattern in a virtual dataset. */
        MM_CHECK(*tensor->name && strcmp(tensor->name, ".") != 0 && !strpbrk(tensor->name, "/%"),
                 "a tensor cannot be stored as '%s'", tensor->name);
        MM_CHECK(tensor->rows && tensor->cols, "tensor '%s' is empty", tensor->name);
    }
}

/* Others go on, perhaps into the next save, only when the folder is as it will stay. */
static enum mm_status end_save(struct mm_saver *s, enum mm_status status) {
    struct mm_error later;
    bool lost = status != MM_OK && mm_comm_any(s->comm, s->lost);
    if (status != MM_OK && s->job.rank == 0 && !lost)
        mm_folder_remove(s->paths.temporary, &later);
    mm_comm_barrier(s->comm);
    mm_checkpoint_paths_free(&s->paths);
    mm_checkpoint_info_free(&s->info);
    mm_free(s->job.hashes);
    s->job.hashes = NULL;
    s->step = IDLE;
    return status == MM_OK ? MM_OK : lost ? MM_BAD_INPUT : MM_FAILED;
}

enum mm_status mm_saver_start(struct mm_saver *s, const struct mm_state *state,
                              struct mm_checkpoint_info *info, struct mm_metrics *metrics,
                              struct mm_error *err) {
    MM_CHECK(s->step == IDLE, "a checkpoint is already being written");
    check_state(state);
    s->info = *info;
    *info = (struct mm_checkpoint_info){0};
    s->metrics = metrics;
    s->paths = mm_checkpoint_paths_of(s->run_dir, s->info.loops);
    s->job = (struct mm_checkpoint_job){.folder = s->paths.temporary,
                                        .state = state,
                                        .info = &s->info,
                                        .rank = mm_comm_rank(s->comm),
                                        .size = mm_comm_size(s->comm)};
    double bytes = mm_checkpoint_bytes(&s->job), all_bytes = bytes;
    mm_comm_sum(s->comm, &all_bytes, 1);
    enum mm_status status = mm_checkpoint_check_limit(bytes, err);
    if (status == MM_OK && s->job.rank == 0)
        status = check_owner(s, err);
    if (status == MM_OK && s->job.rank == 0)
        status = mm_checkpoint_prepare(&s->paths, all_bytes, err);
    status = mm_comm_agree(s->comm, status, err);
    if (status != MM_OK)
        return end_save(s, status);
    begin_step(s, PARTS);
    return MM_OK;
}

/* All parts are on disk: goes on to checkpoint.h5. */
static void go_on(struct mm_saver *s) {
    s->job.hashes = mm_calloc((size_t)s->job.size, sizeof *s->job.hashes);
    mm_comm_gather_all(s->comm, s->hash, sizeof s->hash, s->job.hashes);
    begin_step(s, WHOLE);
}

/* Ends the step that is done and begins the next one, if any. */
static enum mm_status advance(struct mm_saver *s, struct mm_error *err) {
    enum mm_status status = end_step(s, err);
    if (status != MM_OK || s->step == WHOLE)
        return end_save(s, status);
    go_on(s);
    return MM_OK;
}

enum mm_status mm_saver_poll(struct mm_saver *s, struct mm_error *err) {
    enum mm_status status = MM_OK;
    while (s->step != IDLE && !mm_comm_any(s->comm, !atomic_load(&s->done)))
        status = advance(s, err);
    return status;
}

enum mm_status mm_saver_wait(struct mm_saver *s, struct mm_error *err) {
    enum mm_status status = MM_OK;
    while (s->step != IDLE)
        status = advance(s, err);
    return status;
}

enum mm_status mm_checkpoint_write(struct mm_comm *comm, const char *run_dir, size_t keep,
                                   const struct mm_state *state,
                                   const struct mm_checkpoint_info *info, struct mm_error *err) {
    struct mm_saver s = saver_of(comm, run_dir, keep);
    struct mm_checkpoint_info copy = *info;
    copy.config = info->config ? mm_strdup(info->config) : NULL;
    copy.extra = info->extra ? mm_strdup(info->extra) : NULL;
    enum mm_status status = mm_saver_start(&s, state, &copy, NULL, err);
    if (status == MM_OK)
        status = mm_saver_wait(&s, err);
    mm_free(s.run_dir);
    return status;
}
