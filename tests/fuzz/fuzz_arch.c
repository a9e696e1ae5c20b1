/* fuzz_arch.c - config.json of a model, and the table of tensors that follows from it. */
#include <stdlib.h>
#include <string.h>

#include "src/model/model.h"
#include "tests/fuzz/fuzz.h"

/* Every size fits, and the table is of as many rows as the layers need. */
static void use(const struct mm_arch *arch, struct mm_device *dev) {
    float cosine[64], sine[64];
    struct mm_arena *arena = mm_arena_create_dry(dev);
    struct mm_model *model = mm_model_create(arena, arch, MM_F32, 4);
    __uint128_t elements = 0;
    for (size_t i = 0; i < model->params_n; i++)
        elements += (__uint128_t)model->params[i].rows * model->params[i].cols;
    FUZZ_CHECK(elements == model->elements && model->elements <= model->block_n);
    mm_model_free(model);
    mm_arena_free(arena);
    if (arch->heads.rotary_dim <= 32)
        mm_arch_rope(arch, 4, cosine, sine);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct mm_device *dev;
    if (!dev)
        dev = mm_device_create_cpu(); /* its blocks are not this input's */
    const char *folder = fuzz_begin();
    char *path = mm_format("%s/config.json", folder);
    struct mm_error err = {""};
    struct mm_arch arch;
    fuzz_put("config.json", data, size);
    enum mm_status status = mm_arch_read(&arch, path, &err);
    fuzz_expect(status, &err, path);
    if (status == MM_OK)
        use(&arch, dev);
    mm_free(path);
    fuzz_end();
    return 0;
}
