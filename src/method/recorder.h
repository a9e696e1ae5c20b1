/* recorder.h - work that is recorded once and replayed from then on, so that an asynchronous device
 * does not wait for the host's calls.
 *
 * A kind of work is recorded the second time it is asked for: by then every operation has taken the
 * memory that it needs. Work of a kind must ask the same of the device every time. The cost: the
 * addresses in a recording must stay valid for as long as it is replayed. All functions local. */
#ifndef MM_RECORDER_H
#define MM_RECORDER_H

#include "comm/comm.h"

struct mm_recorder {
    struct mm_device *dev; /* borrowed */
    bool records;          /* until a recording has failed */
    size_t kinds_n;
    void **recordings; /* [kinds_n]; NULL: not recorded yet */
};

/* Whether the device and the transport can record is found out here, and said if they can't. `dry`:
 * nothing will be run. The caller frees. */
struct mm_recorder mm_recorder_create(struct mm_comm *comm, struct mm_device *dev, size_t kinds_n,
                                      bool dry);
void mm_recorder_free(struct mm_recorder *recorder);

/* Does `work`, or replays it. ready: all operations have their memory, so that it may be recorded.
 */
void mm_recorder_run(struct mm_recorder *recorder, size_t kind, bool ready,
                     void (*work)(void *self, size_t kind), void *self);

#endif
