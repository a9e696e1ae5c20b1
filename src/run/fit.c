/* fit.c - see fit.h. */
#include "src/run/fit.h"

#include "src/run/memory.h"
#include "src/run/plan.h"

/* Bytes that arenas may hold on this rank; SIZE_MAX: not known. */
static size_t room(const struct mm_comm *comm, const struct mm_device *dev) {
    struct mm_device limited = *dev;
    if (dev->asynchronous)
        return dev->free_bytes ? dev->free_bytes / 10 * 9 : SIZE_MAX;
    mm_memory_limit(&limited, comm);
    return limited.arenas_most ? limited.arenas_most : SIZE_MAX;
}

enum mm_status mm_fit_shard(struct mm_comm *comm, const struct mm_device *dev,
                            struct mm_config *config, struct mm_error *err) {
    size_t peak = 0, has = room(comm, dev);
    char text[2][32];
    if (config->model.shard != MM_SHARD_AUTO)
        return MM_OK;
    config->model.shard = MM_SHARD_NONE;
    enum mm_log_level level = mm_log_set(MM_LOG_ERROR); /* the run will say the same */
    enum mm_status status = mm_plan_peak(comm, config, dev->asynchronous, &peak, err);
    mm_log_set(level);
    status = mm_comm_agree(comm, status, err);
    if (status != MM_OK)
        return status;
    bool fits = !mm_comm_any(comm, peak > has);
    if (!fits)
        config->model.shard = MM_SHARD_FULL;
    mm_log0(MM_LOG_INFO, "model.shard: auto is %s: none takes %s a rank, and %s",
            fits ? "none" : "full", mm_bytes_text(text[0], (double)peak),
            fits ? "that is there" : "not every rank has that");
    mm_log0(MM_LOG_DEBUG, "memory for this rank: %s", mm_bytes_text(text[1], (double)has));
    return MM_OK;
}
