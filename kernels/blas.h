/* blas.h - the BLAS library around its products: the right kernels, and the memory it takes.
 *
 * OpenBLAS chooses its kernels when it is loaded, by the processors that it knew when it was
 * published: on a newer one it may fall back to those of twenty years ago, several times slower. It
 * takes its buffers when they are first needed and, where there is no memory, tries for ever. */
#ifndef MM_BLAS_H
#define MM_BLAS_H

#include "kernels/processor.h"
#include "src/base/base.h"

/* The kernels to ask for (a value of OPENBLAS_CORETYPE) where those called `core` are beneath the
 * processor; NULL: they are not, or their name is unknown. Pure. */
const char *mm_blas_better_core(const char *core, struct mm_processor processor);

/* Starts this program anew, once, with better kernels where there are any, which it says on rank 0,
 * and with threads that wait quietly: libraries read both from the environment when they are
 * loaded. What is set there (OPENBLAS_CORETYPE; GOMP_SPINCOUNT or OMP_WAIT_POLICY) is the user's.
 * Before MPI_Init and before any product, with main's argv; returns where there is nothing to do.
 * Local. */
void mm_blas_settle(char **argv);

/* Has the library take now what products on `threads` threads need, each of which multiplies by
 * itself in attention, and leaves some to other libraries. MM_FAILED where it is not to be had: the
 * text says what to do. Local. */
enum mm_status mm_blas_take_memory(int threads, struct mm_error *err);

/* "OpenBLAS 0.3.21, SkylakeX kernels"; the caller frees with mm_free. Local. */
char *mm_blas_text(void);

#endif
