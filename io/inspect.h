/* inspect.h - what a file holds, for a person. */
#ifndef MM_INSPECT_H
#define MM_INSPECT_H

#include "src/base/base.h"

/* `inspect`: prints on stdout what a run folder, checkpoint (folder, checkpoint.h5 or part), token
 * file or multiple-choice file holds, with shapes, ranges (min, max, mean, NaN count) and hashes,
 * and whether it is intact. MM_BAD_INPUT if not. Local. */
enum mm_status mm_inspect(const char *path, struct mm_error *err);

#endif
