/* flips.h - what reductions in bfloat16 change: the share of W's elements that the mask would keep
 * or drop otherwise, had the unlearning gradient been reduced in float32. Measured once a run, in
 * its first loop. The cost: one more pass there, and a vector of float32. */
#ifndef MM_FLIPS_H
#define MM_FLIPS_H

struct mm_mudman;

/* Takes the unlearning gradient, which is in g and stays there, again, and reduces it in float32.
 * Sets mudman->flips. Before the update of line 15. Collective. */
void mm_flips_measure(struct mm_mudman *mudman);

#endif
