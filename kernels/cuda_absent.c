/* cuda_absent.c - in place of kernels/cuda where the build is without CUDA. */
#include "kernels/device.h"

struct mm_device *mm_device_create_cuda(int index, struct mm_error *err) {
    mm_fail(err, MM_FAILED, "GPU %d asked for, but this mudman-mpi was built without CUDA", index);
    return NULL;
}

int mm_cuda_device_count(void) {
    return 0;
}

char *mm_cuda_text(void) {
    return mm_strdup("not in this build");
}
