/* fit.c - see fit.h. */
#include "src/run/fit.h"

#include "src/run/memory.h"
#include "src/run/plan.h"

const char *mm_shard_name(enum mm_sharding shard) {
    static const char *const names[] = {"none", "node", "full", "auto"};
    return names[shard];
}

bool mm_fit_nodes(const struct mm_comm *comm) {
    struct mm_near near = mm_comm_near(comm);
    return near.groups > 1 && near.groups < mm_comm_size(comm);
}

/* Bytes that arenas may hold on this rank; SIZE_MAX: not known. */
static size_t room(const struct mm_comm *comm, const struct mm_device *dev) {
    struct mm_device limited = *dev;
    if (dev->asynchronous)
        return dev->free_bytes ? dev->free_bytes / 10 * 9 : SIZE_MAX;
    mm_memory_limit(&limited, comm);
    return limited.arenas_most ? limited.arenas_most : SIZE_MAX;
}

/* Whether every rank's device has room for what this choice takes, *peak bytes on this one. */
static enum mm_status try(struct mm_comm *comm, const struct mm_device *dev,
                          struct mm_config *config, enum mm_sharding choice, size_t *peak,
                          bool *fits, struct mm_error *err) {
    size_t has = room(comm, dev);
    char text[2][32];
    config->model.shard = choice;
    enum mm_log_level level = mm_log_set(MM_LOG_ERROR); /* the run will say the same */
    enum mm_status status = mm_plan_peak(comm, config, dev->asynchronous, peak, err);
    mm_log_set(level);
    status = mm_comm_agree(comm, status, err);
    if (status != MM_OK)
        return status;
    *fits = !mm_comm_any(comm, *peak > has);
    mm_log0(MM_LOG_DEBUG, "this rank has room for %s; model.shard %s takes %s",
            mm_bytes_text(text[0], (double)has), mm_shard_name(choice),
            mm_bytes_text(text[1], (double)*peak));
    return MM_OK;
}

enum mm_status mm_fit_shard(struct mm_comm *comm, const struct mm_device *dev,
                            struct mm_config *config, struct mm_error *err) {
    size_t peak[MM_SHARD_AUTO];
    bool fits = false;
    char text[32];
    if (config->model.shard != MM_SHARD_AUTO)
        return MM_OK;
    for (int i = MM_SHARD_NONE; i < MM_SHARD_FULL && !fits; i++)
        if (i != MM_SHARD_NODE || mm_fit_nodes(comm)) {
            enum mm_status status =
                try(comm, dev, config, (enum mm_sharding)i, &peak[i], &fits, err);
            if (status != MM_OK)
                return status;
        }
    if (!fits)
        config->model.shard = MM_SHARD_FULL;
    mm_log0(MM_LOG_INFO, "model.shard: auto is %s: none takes %s a rank, and %s",
            mm_shard_name(config->model.shard), mm_bytes_text(text, (double)peak[MM_SHARD_NONE]),
            config->model.shard == MM_SHARD_NONE ? "that is there" : "not every rank has that");
    return MM_OK;
}
