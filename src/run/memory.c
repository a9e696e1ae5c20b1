/* memory.c - see memory.h. */
#include "src/run/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#define FOR_LIBRARIES ((size_t)4 << 20) /* what they take at least while a job runs */

/* A file's number; SIZE_MAX: no such file, or no number in it ("max"). */
static size_t number_in(const char *path) {
    FILE *file = fopen(path, "r");
    unsigned long long n = 0;
    bool read = file && fscanf(file, "%llu", &n) == 1;
    if (file)
        fclose(file);
    return read ? (size_t)n : SIZE_MAX;
}

/* The least limit of a control group and of those that it lies in. In a container the path may be
 * that of the host: then only the last step finds a file. Cuts `path`. */
static size_t least_limit(const char *mount, char *path, const char *name) {
    size_t least = SIZE_MAX;
    for (bool more = true; more;) {
        char *file = mm_format("%s%s/%s", mount, path, name);
        size_t limit = number_in(file);
        least = limit < least ? limit : least;
        mm_free(file);
        char *end = strrchr(path, '/');
        more = end != NULL;
        if (more)
            *end = '\0';
    }
    return least;
}

static size_t group_limit(void) {
    FILE *file = fopen("/proc/self/cgroup", "r");
    char line[4096];
    size_t least = SIZE_MAX;
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        char *names = strchr(line, ':'), *path = names ? strchr(names + 1, ':') : NULL;
        if (!path)
            continue;
        *path++ = '\0';
        size_t limit = SIZE_MAX;
        if (names[1] == '\0') /* version 2 */
            limit = least_limit("/sys/fs/cgroup", path, "memory.max");
        else if (strstr(names, "memory"))
            limit = least_limit("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes");
        least = limit < least ? limit : least;
    }
    if (file)
        fclose(file);
    return least;
}

/* Memory of this process alone: what files back can be read again. */
static size_t held(void) {
    FILE *file = fopen("/proc/self/statm", "r");
    size_t resident = 0, shared = 0;
    if (!file || fscanf(file, "%*s %zu %zu", &resident, &shared) != 2)
        resident = shared = 0;
    if (file)
        fclose(file);
    return (resident - shared) * (size_t)sysconf(_SC_PAGESIZE);
}

void mm_memory_limit(struct mm_device *dev, const struct mm_comm *comm) {
    struct sysinfo machine;
    char text[32];
    int ranks = mm_comm_local_size(comm);
    if (sysinfo(&machine) != 0)
        return;
    size_t unit = machine.mem_unit, group = group_limit(), all = machine.totalram * unit;
    bool grouped = group < all;
    all = (grouped ? group : all) + machine.totalswap * unit;
    size_t share = all / (size_t)ranks, used = held() + FOR_LIBRARIES;
    dev->arenas_most = share > used ? share - used : 1;
    snprintf(dev->arenas_limit, sizeof dev->arenas_limit, "%s memory, %s for %d rank%s",
             grouped ? "the job's limit on" : "this machine's", mm_bytes_text(text, (double)all),
             ranks, ranks == 1 ? "" : "s");
}
