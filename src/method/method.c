/* method.c - the table of methods; see method.h. */
#include "src/method/method.h"

#include "src/mudman.h"

static const struct mm_method *const methods[] = {&mm_mudman_method};

const struct mm_method *mm_method_of(const struct mm_config *config) {
    (void)config; /* there is one so far */
    return methods[0];
}

const char *mm_guard_text(enum mm_guard guard) {
    static const char *const texts[] = {
        "nothing",
        "the retain loss is not finite",
        "the retain gradient is not finite",
        "the adversary's loss is not finite",
        "the adversary's gradient is not finite",
        "the unlearning loss is not finite",
        "the unlearning gradient is not finite",
        "the norm of the unlearning gradient is zero: there is nothing to normalize",
        "the retain gradient is zero everywhere, though the retain loss is not",
        "the adversary's gradient is zero everywhere, though its loss is not",
    };
    return texts[guard];
}
