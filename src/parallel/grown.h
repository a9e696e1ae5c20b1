/* grown.h - numbers on the device that grow with every micro-batch and are summed over the ranks:
 * the losses of a pass, and sums that a loss is made of.
 *
 * On an `exact` device they are added leaf after leaf: after each step the numbers of all ranks are
 * gathered and added to totals on the host. Else each rank's are added in rank order at the end.
 * Collective, all of them, but mm_grown_begin. */
#ifndef MM_GROWN_H
#define MM_GROWN_H

#include "comm/comm.h"

struct mm_grown {
    struct mm_comm *comm; /* borrowed, as dev */
    struct mm_device *dev;
    size_t n; /* under way */
    struct {
        double *values; /* [n], device; borrowed */
        size_t n;
        double *totals; /* exact: [n] of all ranks' leaves so far, host */
    } all[3];
};

/* values [n], device, are zero now and grow until mm_grown_end. Local. */
void mm_grown_begin(struct mm_grown *grown, double *values, size_t n);
/* A step is done, in which ranks 0 ... leaves-1 had a leaf; nothing happens but on an exact device.
 */
void mm_grown_step(struct mm_grown *grown, size_t leaves);
/* What has grown is summed over all ranks: with the next sum that there is (mm_comm_sum_later), or
 * on an exact device already. */
void mm_grown_end(struct mm_grown *grown);

#endif
