/* device.c - chooses the CPU table for this processor. */
#include "kernels/device.h"
#include "kernels/onednn.h"
#include "kernels/processor.h"

#include <omp.h>

#if defined(__x86_64__)
struct mm_device *mm_cpu_device_x86_64(void);
struct mm_device *mm_cpu_device_x86_64_v3(void);
struct mm_device *mm_cpu_device_x86_64_v4(void);

struct mm_device *mm_device_create_cpu(void) {
    int level = mm_processor().level;
    return level == 4   ? mm_cpu_device_x86_64_v4()
           : level == 3 ? mm_cpu_device_x86_64_v3()
                        : mm_cpu_device_x86_64();
}
#else
struct mm_device *mm_cpu_device_native(void);

struct mm_device *mm_device_create_cpu(void) {
    return mm_cpu_device_native();
}
#endif

bool mm_cpu_multiplies_bf16(void) {
    return mm_onednn_multiplies();
}

void mm_device_free(struct mm_device *dev) {
    if (dev)
        dev->close(dev);
}

int mm_cpu_threads(void) {
    return omp_get_max_threads();
}

void mm_cpu_set_threads(int n) {
    omp_set_num_threads(n);
}
