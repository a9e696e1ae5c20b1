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

/* What a rank may hold; SIZE_MAX: not known. */
static struct mm_plan_need room(const struct mm_comm *comm, const struct mm_device *dev) {
    if (!dev->asynchronous)
        return (struct mm_plan_need){mm_memory_share(comm), mm_memory_space()};
    size_t memory = dev->free_bytes ? dev->free_bytes / 10 * 9 : SIZE_MAX;
    return (struct mm_plan_need){memory, SIZE_MAX};
}

/* What a choice takes of this rank, and whether every rank has it. */
struct trial {
    struct mm_plan_need need;
    bool fits, narrow; /* narrow: it is some rank's address space that is too small */
};

static enum mm_status try(struct mm_comm *comm, const struct mm_device *dev,
                          struct mm_config *config, enum mm_sharding choice, struct trial *trial,
                          struct mm_error *err) {
    struct mm_plan_need has = room(comm, dev);
    char text[2][32];
    config->model.shard = choice;
    enum mm_log_level level = mm_log_set(MM_LOG_ERROR); /* the run will say the same */
    enum mm_status status = mm_plan_peak(comm, config, dev->asynchronous, &trial->need, err);
    mm_log_set(level);
    status = mm_comm_agree(comm, status, err);
    if (status != MM_OK)
        return status;
    trial->narrow = mm_comm_any(comm, trial->need.space > has.space);
    trial->fits = !mm_comm_any(comm, trial->need.memory > has.memory) && !trial->narrow;
    mm_log0(MM_LOG_DEBUG, "for this rank: %s of memory, %s of address space",
            mm_bytes_text(text[0], (double)has.memory), mm_bytes_text(text[1], (double)has.space));
    return MM_OK;
}

/* none: what became of it. */
static void tell(const struct mm_config *config, const struct trial *none) {
    char text[32];
    mm_log0(MM_LOG_INFO, "model.shard: auto is %s: none takes %s a rank%s, and %s",
            mm_shard_name(config->model.shard),
            mm_bytes_text(text, (double)(none->narrow ? none->need.space : none->need.memory)),
            none->narrow ? " of address space" : "",
            none->fits ? "that is there" : "not every rank has that");
}

enum mm_status mm_fit_shard(struct mm_comm *comm, const struct mm_device *dev,
                            struct mm_config *config, struct mm_error *err) {
    struct trial none = {0}, node = {0};
    if (config->model.shard != MM_SHARD_AUTO)
        return MM_OK;
    enum mm_status status = try(comm, dev, config, MM_SHARD_NONE, &none, err);
    if (status == MM_OK && !none.fits && mm_fit_nodes(comm))
        status = try(comm, dev, config, MM_SHARD_NODE, &node, err);
    if (status != MM_OK)
        return status;
    if (!none.fits && !node.fits)
        config->model.shard = MM_SHARD_FULL;
    tell(config, &none);
    return MM_OK;
}
