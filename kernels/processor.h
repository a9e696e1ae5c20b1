/* processor.h - what this processor can do, as far as the choice of code depends on it. Local. */
#ifndef MM_PROCESSOR_H
#define MM_PROCESSOR_H

#include <stdbool.h>

struct mm_processor {
    int level;        /* of x86-64: 4 with AVX-512, 3 with AVX2, else 1; 0: another architecture */
    bool avx512_bf16; /* products of bfloat16 */
    bool amx_bf16;    /* the same on tiles, and the operating system knows of tiles */
};

/* This machine's. */
struct mm_processor mm_processor(void);
/* "x86-64-v4 with AVX512-BF16, AMX-BF16"; `text` is returned. */
enum { MM_PROCESSOR_TEXT = 64 };
const char *mm_processor_text(struct mm_processor processor, char text[MM_PROCESSOR_TEXT]);

/* cpus[c] (=): whether threads of this process may run on CPU c, also where OpenMP's runtime has
 * bound the calling thread to one place. */
enum { MM_MOST_CPUS = 1024 };
void mm_processor_cpus(bool cpus[MM_MOST_CPUS]);
/* Lets the calling thread run on all of them again. */
void mm_processor_unbind(void);

#endif
