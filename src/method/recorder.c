/* recorder.c - recordings of a device's work, one a kind; see recorder.h. */
#include "src/method/recorder.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/queue.h"

/* Ranks may be given different environments: so this is asked where all ranks agree. */
static bool is_wanted(void) {
    const char *text = getenv("MUDMAN_RECORD");
    return !text || strcmp(text, "0") != 0;
}

struct mm_recorder mm_recorder_create(struct mm_comm *comm, struct mm_device *dev, size_t kinds_n,
                                      bool dry) {
    struct mm_recorder r = {.comm = comm, .dev = dev, .kinds_n = kinds_n};
    r.kinds = mm_calloc(kinds_n, sizeof *r.kinds);
    if (dry)
        return r;
    r.records = dev->asynchronous && mm_comm_records(comm) && !dev->exact;
    if (dev->asynchronous && !r.records)
        mm_log0(MM_LOG_INFO, "loops are not recorded, which costs speed only: %s%s",
                dev->exact ? "reduction: exact" : "transport ",
                dev->exact ? "" : mm_comm_transport_name(comm));
    return r;
}

void mm_recorder_free(struct mm_recorder *r) {
    for (size_t i = 0; i < r->kinds_n; i++)
        if (r->kinds[i].recording)
            r->dev->queue->recording_free(r->dev, r->kinds[i].recording);
    mm_free(r->kinds);
}

/* Begins on all ranks, or on none: `begun` says what this one has done. */
static bool begin(struct mm_recorder *r, bool *begun, struct mm_error *err) {
    enum mm_status status = MM_OK;
    *begun = is_wanted() && r->dev->queue->record(r->dev);
    if (!*begun)
        status = mm_fail(err, MM_FAILED, "rank %d does not record%s", mm_comm_rank(r->comm),
                         is_wanted() ? "" : ": MUDMAN_RECORD is 0");
    return mm_comm_agree(r->comm, status, err) == MM_OK;
}

/* The recording of `work`; NULL, and the text says why, where a rank has none. What was noted and
 * is not replayed has not been done. */
static void *record(struct mm_recorder *r, size_t kind, void (*work)(void *self, size_t kind),
                    void *self, struct mm_error *err) {
    struct mm_error own = {""};
    bool begun, all = begin(r, &begun, err);
    if (all)
        work(self, kind);
    void *recording = begun ? r->dev->queue->recorded(r->dev, &own) : NULL;
    if (all) {
        *err = own;
        all = mm_comm_agree(r->comm, recording ? MM_OK : MM_FAILED, err) == MM_OK;
    }
    if (all || !recording)
        return recording;
    r->dev->queue->recording_free(r->dev, recording);
    return NULL;
}

void mm_recorder_run(struct mm_recorder *r, size_t kind, void (*work)(void *self, size_t kind),
                     void *self) {
    struct mm_recorded *k = &r->kinds[kind];
    struct mm_error err = {""};
    if (!k->recording && r->records && k->done) {
        k->recording = record(r, kind, work, self, &err);
        r->records = k->recording != NULL;
        if (!r->records)
            mm_log0(MM_LOG_WARN, "loops are not recorded, which costs speed only: %s", err.text);
    }
    if (k->recording)
        r->dev->queue->replay(r->dev, k->recording);
    else
        work(self, kind);
    k->done = true;
}
