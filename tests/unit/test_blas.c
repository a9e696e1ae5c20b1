/* Tests of which of the BLAS library's kernels are beneath a processor. */
#include "kernels/blas.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void better_cores(void **state) {
    (void)state;
    static const struct {
        const char *core;
        int level;
        const char *better; /* NULL: it is good enough, or unknown */
    } cases[] = {
        {"Prescott", 4, "SkylakeX"},
        {"Prescott", 3, "Haswell"},
        {"Prescott", 1, NULL},
        {"Nehalem", 3, "Haswell"},
        {"Sandybridge", 3, "Haswell"},
        {"Sandybridge", 4, "SkylakeX"},
        {"Sandybridge", 1, NULL},
        {"Barcelona", 3, "Haswell"},
        {"Steamroller", 3, "Haswell"},
        {"Haswell", 4, "SkylakeX"},
        {"Haswell", 3, NULL},
        {"Zen", 4, "SkylakeX"},
        {"Zen", 3, NULL},
        {"Excavator", 3, NULL},
        {"SkylakeX", 4, NULL},
        {"Cooperlake", 4, NULL},
        {"SapphireRapids", 4, NULL},
        {"Haswell", 1, NULL},
        {"prescott", 4, "SkylakeX"},
        {"Unknown", 4, "SkylakeX"},
        {"of the future", 4, NULL},
        {"Prescott", 0, NULL},
        {"", 4, NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mm_processor p = {.level = cases[i].level};
        const char *better = mm_blas_better_core(cases[i].core, p);
        if ((better == NULL) != (cases[i].better == NULL) ||
            (better && strcmp(better, cases[i].better) != 0))
            fail_msg("%s at level %d: %s", cases[i].core, cases[i].level, better ? better : "none");
        p.avx512_bf16 = p.amx_bf16 = true;
        assert_ptr_equal(mm_blas_better_core(cases[i].core, p), better);
    }
}

/* Linked with settle.c: what is left is good enough, unless somebody asked for it. */
static void this_one_is_settled(void **state) {
    (void)state;
    char *text = mm_blas_text();
    assert_int_equal(strncmp(text, "OpenBLAS 0.", 11), 0);
    char *core = strstr(text, ", ");
    assert_non_null(core);
    core[strcspn(core + 2, " ") + 2] = '\0';
    assert_true(getenv("OPENBLAS_CORETYPE") || !mm_blas_better_core(core + 2, mm_processor()));
    mm_free(text);
}

static void words_of_processors(void **state) {
    (void)state;
    char text[MM_PROCESSOR_TEXT];
    assert_string_equal(mm_processor_text((struct mm_processor){.level = 3}, text), "x86-64-v3");
    assert_string_equal(mm_processor_text((struct mm_processor){4, true, false}, text),
                        "x86-64-v4 with AVX512-BF16");
    assert_string_equal(mm_processor_text((struct mm_processor){4, true, true}, text),
                        "x86-64-v4 with AVX512-BF16, AMX-BF16");
    assert_string_equal(mm_processor_text((struct mm_processor){0}, text), "native");
}

static void memory_is_taken(void **state) {
    (void)state;
    struct mm_error err;
    long before = mm_live_blocks();
    assert_int_equal(mm_blas_take_memory(1, &err), MM_OK);
    assert_int_equal(mm_blas_take_memory(2, &err), MM_OK);
    assert_int_equal(mm_live_blocks(), before);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(better_cores),
        cmocka_unit_test(this_one_is_settled),
        cmocka_unit_test(words_of_processors),
        cmocka_unit_test(memory_is_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
