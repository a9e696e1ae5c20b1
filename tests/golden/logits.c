/* logits.c - writes what our forward gives, for programs that compare
 * (tests/golden/check_export.py).
 *
 *   logits MODEL_DIR TOKENS.h5 CONTEXT ROWS OUT    OUT: float32 [ROWS, CONTEXT, V], raw */
#include "tests/unit/whole_model.h"

#include "io/dataset.h"
#include "src/model/stored.h"
#include "src/model/transformer.h"

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    struct mm_error err = {""};
    struct mm_arch arch;
    struct mm_weights *weights;
    struct mm_dataset set = {0};
    if (argc != 6)
        return 2;
    size_t T = strtoul(argv[3], NULL, 10), rows = strtoul(argv[4], NULL, 10);
    char *config = mm_format("%s/config.json", argv[1]);
    struct mm_device *dev = mm_device_create_cpu();
    if (mm_arch_read(&arch, config, &err) || mm_weights_open(&weights, argv[1], &err) ||
        mm_stored_match(&arch, weights, dev, &err) ||
        mm_dataset_read(&set, argv[2], T, (uint32_t)arch.vocab, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 2;
    }
    struct mm_arena *arena = mm_arena_create(dev);
    struct mm_model *model = mm_model_create(arena, &arch, MM_F32, T);
    MM_CHECK(load_whole(model, weights, &err) == MM_OK, "%s", err.text);
    struct mm_acts acts;
    struct mm_scratch scratch;
    mm_acts_create(&acts, arena, model, rows * T, NULL, MM_KEEP_ALL);
    mm_scratch_create(&scratch, arena, model, rows * T, MM_FORWARD_ONLY);
    struct mm_layer_hook none = {0};
    mm_forward(model, &acts, &scratch, set.tokens, rows, T, none);
    struct mm_mat logits = mm_arena_mat(arena, MM_FOR_SCRATCH, MM_F32, rows * T, arch.vocab);
    dev->ops->linear(dev, logits, acts.hidden, model->params[model->head_part].w, NULL, MM_SET);
    FILE *out = fopen(argv[5], "wb");
    MM_CHECK(out && fwrite(logits.data, 4, rows * T * arch.vocab, out) == rows * T * arch.vocab &&
                 fclose(out) == 0,
             "cannot write %s", argv[5]);
    return 0;
}
