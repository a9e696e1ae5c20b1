/* bytes.h - counts the bytes of the device's memory that launches move, as
 * tests/bench/cuda_bytes.h says. */
#ifndef MM_TEST_PTX_BYTES_H
#define MM_TEST_PTX_BYTES_H

#include "tests/bench/cuda_bytes.h"

#ifdef __cplusplus
extern "C" {
#endif

/* From now on launches are counted, from zero. */
void ptx_count_begin(void);
/* What was moved since, by the launches that are done; ends the counting. */
struct cuda_bytes ptx_count_end(void);

#ifdef __cplusplus
}

namespace ptx {

/* What the lanes of a warp do with one instruction. */
struct access {
    uint64_t at[32];
    unsigned n = 0, bytes; /* each */
    bool writes;

    access(unsigned each, bool writing) : bytes(each), writes(writing) {}
};

bool counting();
void count_launch(); /* one begins */
void count(access &a);

} // namespace ptx
#endif

#endif
