/* fit.c - see fit.h. */
#include "src/run/fit.h"

#include "src/run/memory.h"
#include "src/run/plan.h"

/* What a rank may hold; SIZE_MAX: not known. */
static struct mm_plan_need room(const struct mm_comm *comm, const struct mm_device *dev) {
    if (!dev->asynchronous)
        return (struct mm_plan_need){mm_memory_share(comm), mm_memory_space()};
    size_t memory = dev->free_bytes ? dev->free_bytes / 10 * 9 : SIZE_MAX;
    return (struct mm_plan_need){memory, SIZE_MAX};
}

enum mm_status mm_fit_shard(struct mm_comm *comm, const struct mm_device *dev,
                            struct mm_config *config, struct mm_error *err) {
    struct mm_plan_need need = {0}, has = room(comm, dev);
    char text[2][32];
    if (config->model.shard != MM_SHARD_AUTO)
        return MM_OK;
    config->model.shard = MM_SHARD_NONE;
    enum mm_log_level level = mm_log_set(MM_LOG_ERROR); /* the run will say the same */
    enum mm_status status = mm_plan_peak(comm, config, dev->asynchronous, &need, err);
    mm_log_set(level);
    status = mm_comm_agree(comm, status, err);
    if (status != MM_OK)
        return status;
    bool narrow = mm_comm_any(comm, need.space > has.space);
    bool fits = !mm_comm_any(comm, need.memory > has.memory) && !narrow;
    if (!fits)
        config->model.shard = MM_SHARD_FULL;
    mm_log0(MM_LOG_INFO, "model.shard: auto is %s: none takes %s a rank%s, and %s",
            fits ? "none" : "full",
            mm_bytes_text(text[0], (double)(narrow ? need.space : need.memory)),
            narrow ? " of address space" : "", fits ? "that is there" : "not every rank has that");
    mm_log0(MM_LOG_DEBUG, "for this rank: %s of memory, %s of address space",
            mm_bytes_text(text[0], (double)has.memory), mm_bytes_text(text[1], (double)has.space));
    return MM_OK;
}
