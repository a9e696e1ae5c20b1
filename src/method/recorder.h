/* recorder.h - work that is recorded once and replayed from then on, so that an asynchronous device
 * does not wait for the host's calls.
 *
 * A kind of work is recorded the second time it is asked for: by then every operation has taken the
 * memory that it needs, and chosen how it multiplies. Work of a kind must ask the same of the
 * device every time. All ranks record, or none does: where it fails on one, all go on without,
 * since a rank that replays asks for its messages in another way than one that does not. The cost:
 * the addresses in a recording must stay valid for as long as it is replayed. */
#ifndef MM_RECORDER_H
#define MM_RECORDER_H

#include "comm/comm.h"

struct mm_recorder {
    struct mm_comm *comm; /* borrowed, as dev */
    struct mm_device *dev;
    bool records; /* until a recording has failed */
    size_t kinds_n;
    struct mm_recorded {
        bool done;       /* once, unrecorded */
        void *recording; /* NULL: not recorded yet */
    } * kinds;           /* [kinds_n] */
};

/* Whether the device and the transport can record is found out here, and said if they can't. With
 * the environment variable MUDMAN_RECORD=0 nothing is recorded, to find out what goes wrong in a
 * recording. `dry`: nothing will be run. The caller frees. Local. */
struct mm_recorder mm_recorder_create(struct mm_comm *comm, struct mm_device *dev, size_t kinds_n,
                                      bool dry);
void mm_recorder_free(struct mm_recorder *recorder);

/* Does `work`, or replays it. Collective: of the same kind on all ranks. */
void mm_recorder_run(struct mm_recorder *recorder, size_t kind,
                     void (*work)(void *self, size_t kind), void *self);

#endif
