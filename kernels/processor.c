/* processor.c - see processor.h. */
#define _GNU_SOURCE /* CPU affinity */
#include "kernels/processor.h"

#include <omp.h>
#include <sched.h>
#include <stdio.h>

#if defined(__x86_64__)
#include <cpuid.h>

/* Whether the operating system saves the registers of AMX: bits 17 and 18 of XCR0. */
static bool tiles_are_saved(void) {
    unsigned a, b, c, d, low, high;
    const unsigned osxsave = 1u << 27, tiles = 3u << 17;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & osxsave))
        return false;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & tiles) == tiles;
}

struct mm_processor mm_processor(void) {
    struct mm_processor p = {.level = 1};
    unsigned a, b, c, d;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        p.level = 4;
    else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        p.level = 3;
    if (p.level == 4 && __get_cpuid_count(7, 1, &a, &b, &c, &d))
        p.avx512_bf16 = a >> 5 & 1;
    if (p.level == 4 && __get_cpuid_count(7, 0, &a, &b, &c, &d))
        p.amx_bf16 = (d >> 22 & 1) && (d >> 24 & 1) && tiles_are_saved();
    return p;
}
#else
struct mm_processor mm_processor(void) {
    return (struct mm_processor){0};
}
#endif

const char *mm_processor_text(struct mm_processor p, char text[MM_PROCESSOR_TEXT]) {
    const char *const levels[] = {"native", "x86-64", "x86-64", "x86-64-v3", "x86-64-v4"};
    snprintf(text, MM_PROCESSOR_TEXT, "%s%s%s%s%s", levels[p.level],
             p.avx512_bf16 || p.amx_bf16 ? " with " : "", p.avx512_bf16 ? "AVX512-BF16" : "",
             p.avx512_bf16 && p.amx_bf16 ? ", " : "", p.amx_bf16 ? "AMX-BF16" : "");
    return text;
}

/* A runtime that binds has bound this thread already: it knows the places of all, the operating
 * system only this one's. */
static void find_cpus(cpu_set_t *cpus) {
    bool bound = omp_get_proc_bind() != omp_proc_bind_false;
    CPU_ZERO(cpus);
    for (int place = 0; bound && place < omp_get_num_places(); place++) {
        int ids[CPU_SETSIZE], n = omp_get_place_num_procs(place);
        if (n > CPU_SETSIZE)
            continue;
        omp_get_place_proc_ids(place, ids);
        for (int i = 0; i < n; i++)
            CPU_SET(ids[i], cpus);
    }
    if (CPU_COUNT(cpus) == 0 && sched_getaffinity(0, sizeof *cpus, cpus) != 0)
        CPU_SET(0, cpus); /* more CPUs than a set has */
}

void mm_processor_cpus(bool cpus[MM_MOST_CPUS]) {
    cpu_set_t set;
    find_cpus(&set);
    for (int cpu = 0; cpu < MM_MOST_CPUS; cpu++)
        cpus[cpu] = CPU_ISSET(cpu, &set);
}

void mm_processor_unbind(void) {
    cpu_set_t set;
    find_cpus(&set);
    sched_setaffinity(0, sizeof set, &set); /* else the thread stays where it is */
}
