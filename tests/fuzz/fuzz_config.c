/* fuzz_config.c - the configuration: a byte for the command, YAML, then key=value arguments, each
 * after a NUL. What is read must come back from what a run would store. */
#include <stdlib.h>
#include <string.h>

#include "src/config/config.h"
#include "tests/fuzz/fuzz.h"

enum { ARGUMENTS = 8 };

static void use(const struct mm_config *config, enum mm_command command) {
    struct mm_error err = {""};
    struct mm_config again;
    char *text = mm_config_yaml(config), *second;
    if (mm_config_parse(&again, text, "stored", NULL, 0, command, &err) != MM_OK)
        fuzz_broken(__FILE__, __LINE__, err.text);
    second = mm_config_yaml(&again);
    FUZZ_CHECK(strcmp(text, second) == 0);
    for (size_t i = 0; i < mm_config_attacks_n(config); i++)
        (void)mm_config_attack(config, i);
    mm_config_free(&again);
    mm_free(second);
    mm_free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_begin();
    struct fuzz_bytes bytes = {data, size};
    enum mm_command command = (enum mm_command)fuzz_choose(&bytes, MM_TRIALS + 1);
    char *text = mm_calloc(bytes.n + 1, 1), *arguments[ARGUMENTS];
    size_t n = 0;
    if (bytes.n)
        memcpy(text, bytes.next, bytes.n);
    for (char *at = text; n < ARGUMENTS && at + strlen(at) < text + bytes.n; n++)
        arguments[n] = at += strlen(at) + 1;
    struct mm_error err = {""};
    struct mm_config config;
    enum mm_status status =
        mm_config_parse(&config, text, "file.yaml", arguments, n, command, &err);
    fuzz_expect(status, &err, n ? NULL : "file.yaml");
    if (status == MM_OK)
        use(&config, command);
    mm_config_free(&config);
    fuzz_expect(mm_config_check_resume(arguments, n, &err), &err, NULL);
    mm_free(text);
    fuzz_end();
    return 0;
}
