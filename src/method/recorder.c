/* recorder.c - recordings of a device's work, one a kind; see recorder.h. */
#include "src/method/recorder.h"

#include "kernels/queue.h"

struct mm_recorder mm_recorder_create(struct mm_comm *comm, struct mm_device *dev, size_t kinds_n,
                                      bool dry) {
    struct mm_recorder r = {.dev = dev, .kinds_n = kinds_n};
    r.recordings = mm_calloc(kinds_n, sizeof *r.recordings);
    if (dry)
        return r;
    r.records = dev->asynchronous && mm_comm_records(comm);
    if (dev->asynchronous && !r.records)
        mm_log0(MM_LOG_INFO, "loops are not recorded, which costs speed only: transport %s",
                mm_comm_transport_name(comm));
    return r;
}

void mm_recorder_free(struct mm_recorder *r) {
    for (size_t i = 0; i < r->kinds_n; i++)
        if (r->recordings[i])
            r->dev->queue->recording_free(r->dev, r->recordings[i]);
    mm_free(r->recordings);
}

void mm_recorder_run(struct mm_recorder *r, size_t kind, bool ready,
                     void (*work)(void *self, size_t kind), void *self) {
    struct mm_error err = {""};
    void **recording = &r->recordings[kind];
    if (!*recording && r->records && ready) {
        r->records = r->dev->queue->record(r->dev);
        if (r->records) {
            work(self, kind);
            *recording = r->dev->queue->recorded(r->dev, &err);
            r->records = *recording != NULL;
        }
        if (!r->records)
            mm_log0(MM_LOG_WARN, "loops are not recorded, which costs speed only. %s", err.text);
    }
    if (*recording)
        r->dev->queue->replay(r->dev, *recording);
    else
        work(self, kind);
}
