/* dry.h - a device that does nothing of what it is asked: it counts, and says how long a device of
 * given rates would take. `plan` runs a loop on it, in the run's own code.
 *
 * Its memory is that of dry arenas, at addresses that must not be used (mm_device.dry). An
 * operation takes as long as its arithmetic or its memory traffic, whichever is longer, and what
 * every one takes to start (the roofline of Williams et al. 2009). Cost: that is a bound, which
 * real operations do not reach where they are small. All functions are local. */
#ifndef MM_DRY_H
#define MM_DRY_H

#include "kernels/device.h"

struct mm_rates {
    double float32, bfloat16; /* FLOP/s of matrix products of each */
    double memory;            /* bytes/s */
    double start;             /* s, of each operation */
};

/* What time goes to. */
enum mm_spent {
    MM_ON_PRODUCTS, /* matrix products */
    MM_ON_LAYERS,   /* norms, attention, activations, losses */
    MM_ON_UPDATES,  /* vectors of Algorithm 1 and of optimizers; copies and conversions */
    MM_ON_REDUCTIONS,
    MM_ON_GATHERS, /* these three: what the device waits for them */
    MM_ON_SUMS,
    MM_SPENT_ON,
};

struct mm_clock {
    double now;                  /* s: when all that was asked is done */
    double seconds[MM_SPENT_ON]; /* their sum is `now` */
    double between_ranks;        /* s in which something crosses the network, waited for or not */
    double flops;                /* of matrix products and attention */
    double bytes;                /* read and written, at least */
};

/* In place of a GPU (`cuda`), or of this processor's CPU device with as many threads as there are
 * now, which is then asked for the room of matrix products, losses and attention: it is counted in
 * own_bytes. rates: zeros: nothing takes time. The caller frees with mm_device_free. */
struct mm_device *mm_device_create_dry(bool cuda, struct mm_rates rates);
/* Whether a dry device stands for a GPU. */
bool mm_dry_cuda(const struct mm_device *dev);
/* Of a dry device; its own. Who makes it wait moves it on. */
struct mm_clock *mm_dry_clock(struct mm_device *dev);
/* What passed since. */
struct mm_clock mm_clock_since(const struct mm_clock *now, const struct mm_clock *before);
/* The clock moves on. */
static inline void mm_clock_spend(struct mm_clock *clock, enum mm_spent on, double seconds) {
    clock->now += seconds;
    clock->seconds[on] += seconds;
}

#endif
