/* Tests of where a command computes. With a GPU visible the cases that need none are left out. */
#include "src/run/place.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static struct mm_comm *comm;
static struct mm_device *dev; /* of the one command that found its place */

static struct mm_config config_of(enum mm_device_choice device, enum mm_dtype_choice dtype) {
    return (struct mm_config){.device = device, .model.dtype = dtype};
}

static void plan_is(enum mm_device_choice device, enum mm_dtype_choice dtype, bool cuda,
                    enum mm_dtype arithmetic) {
    struct mm_config c = config_of(device, dtype);
    assert_int_equal(mm_place_plan(&c), cuda);
    assert_int_not_equal(c.model.dtype, MM_DTYPE_AUTO);
    assert_int_equal(mm_config_dtype(&c), arithmetic);
    assert_int_equal(c.device, device);
}

static void plans(void **state) {
    (void)state;
    bool gpu = mm_cuda_device_count() > 0;
    plan_is(MM_DEVICE_CPU, MM_DTYPE_AUTO, false, MM_F32);
    plan_is(MM_DEVICE_CPU, MM_DTYPE_F32, false, MM_F32);
    plan_is(MM_DEVICE_CUDA, MM_DTYPE_AUTO, true, MM_BF16);
    plan_is(MM_DEVICE_CUDA, MM_DTYPE_F32, true, MM_F32);
    plan_is(MM_DEVICE_AUTO, MM_DTYPE_BF16, true, MM_BF16);
    plan_is(MM_DEVICE_AUTO, MM_DTYPE_AUTO, gpu, gpu ? MM_BF16 : MM_F32);
    plan_is(MM_DEVICE_AUTO, MM_DTYPE_F32, gpu, MM_F32);
    plan_is(MM_DEVICE_CPU, MM_DTYPE_BF16, false, MM_BF16);
}

/* No place: the text begins with `says`. */
static void open_fails(enum mm_device_choice device, enum mm_dtype_choice dtype, bool resumed,
                       const char *says) {
    struct mm_config c = config_of(device, dtype);
    struct mm_device *none;
    struct mm_error err = {""};
    assert_int_equal(mm_place_open(&none, comm, &c, resumed, &err), MM_BAD_INPUT);
    if (strncmp(err.text, says, strlen(says)) != 0)
        fail_msg("said     %s\n  expected %s", err.text, says);
    mm_device_free(none);
}

static void refuses(void **state) {
    (void)state;
    if (mm_cuda_device_count() > 0)
        return;
    open_fails(MM_DEVICE_CUDA, MM_DTYPE_F32, false, "device: cuda on rank 0: ");
}

/* auto is the CPU without a GPU. A run that stored no arithmetic had the CPU's: it keeps it. */
static void opens(void **state) {
    (void)state;
    struct mm_config c = config_of(MM_DEVICE_AUTO, MM_DTYPE_AUTO);
    struct mm_error err = {""};
    if (mm_place_open(&dev, comm, &c, true, &err) != MM_OK)
        fail_msg("%s", err.text);
    assert_int_equal(dev->asynchronous, mm_cuda_device_count() > 0);
    assert_int_equal(c.model.dtype, MM_DTYPE_F32);
    assert_int_equal(c.device, MM_DEVICE_AUTO);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plans),
        cmocka_unit_test(refuses),
        cmocka_unit_test(opens),
    };
    comm = mm_comm_create(&argc, &argv);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    mm_comm_free(comm);
    mm_device_free(dev);
    return failed;
}
