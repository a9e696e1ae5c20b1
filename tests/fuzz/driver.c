/* driver.c - runs a fuzz target on files, and on the files of folders, without libFuzzer: the
 * regressions of the suite, or one input by hand. An input that crashes, hangs, or takes memory out
 * of proportion ends the program; what it was is the last name printed. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/files.h"
#include "tests/fuzz/fuzz.h"

enum { SECONDS = 10, MEGABYTES = 128 }; /* half of them mm_calloc leaves to libraries */

#if defined(__SANITIZE_ADDRESS__)
/* The address space of AddressSanitizer knows no limit. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) {
    return "max_allocation_size_mb=256";
}
static void limit_memory(void) {}
#else
/* To what the process has now, and MEGABYTES more. */
static void limit_memory(void) {
    size_t pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%zu", &pages) != 1)
        pages = 0;
    if (file)
        fclose(file);
    rlim_t bytes = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + ((rlim_t)MEGABYTES << 20);
    struct rlimit limit = {bytes, bytes};
    if (pages)
        setrlimit(RLIMIT_AS, &limit);
}
#endif

static int run_file(const char *path) {
    char *text;
    size_t bytes;
    struct mm_error err;
    if (mm_file_read(path, &text, &bytes, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 0;
    }
    /* In a block of its own size, so that a sanitizer sees a read beyond it. */
    uint8_t *data = malloc(bytes ? bytes : 1);
    if (!data)
        return 0;
    memcpy(data, text, bytes);
    mm_free(text);
    fprintf(stderr, "%s\n", path);
    alarm(SECONDS);
    LLVMFuzzerTestOneInput(data, bytes);
    alarm(0);
    free(data);
    return 1;
}

static int not_hidden(const struct dirent *entry) {
    return entry->d_name[0] != '.';
}

static int run_folder(const char *path) {
    struct dirent **names;
    int n = scandir(path, &names, not_hidden, alphasort), ran = 0;
    for (int i = 0; i < n; i++) {
        char file[4096];
        snprintf(file, sizeof file, "%s/%s", path, names[i]->d_name);
        ran += run_file(file);
        free(names[i]);
    }
    if (n >= 0)
        free(names);
    return ran == n ? ran : 0;
}

int main(int argc, char **argv) {
    int ran = 0;
    LLVMFuzzerTestOneInput((const uint8_t *)"", 0); /* what is set up once, before the limit */
    limit_memory();
    for (int i = 1; i < argc; i++) {
        struct stat info;
        bool folder = stat(argv[i], &info) == 0 && S_ISDIR(info.st_mode);
        fuzz_verbose = !folder;
        int now = folder ? run_folder(argv[i]) : run_file(argv[i]);
        if (!now)
            return EXIT_FAILURE;
        ran += now;
    }
    fprintf(stderr, "%d inputs\n", ran);
    return ran ? EXIT_SUCCESS : EXIT_FAILURE;
}
