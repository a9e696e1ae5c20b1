/* settle.c - linked into test programs and timings, which then compute with the kernels that the
 * program would take: a constructor comes before their own main. */
#include "kernels/blas.h"

__attribute__((constructor)) static void settle(int argc, char **argv) {
    (void)argc;
    mm_blas_settle(argv);
}
