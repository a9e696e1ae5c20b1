/* memory.c - see memory.h. */
#include "src/run/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#define FOR_LIBRARIES ((size_t)4 << 20) /* what they take at least while a job runs */
/* Address space of a new thread: its stack, and what malloc asks for to find 64 MiB in one piece
 * that begin at a multiple of it. */
#define FOR_A_THREAD ((size_t)(8 + 128) << 20)

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

/* Of /proc/self/statm, in bytes. */
struct statm {
    size_t space, resident, shared;
};

static struct statm read_statm(void) {
    FILE *file = fopen("/proc/self/statm", "r");
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    struct statm s = {0};
    if (!file || fscanf(file, "%zu %zu %zu", &s.space, &s.resident, &s.shared) != 3)
        s = (struct statm){0};
    if (file)
        fclose(file);
    return (struct statm){s.space * page, s.resident * page, s.shared * page};
}

size_t mm_memory_resident(void) {
    return read_statm().resident;
}

/* The machine's memory, or that of the job's control group where this is less (*grouped); 0: not
 * known. */
static size_t all_memory(bool *grouped) {
    struct sysinfo machine;
    if (sysinfo(&machine) != 0)
        return 0;
    size_t unit = machine.mem_unit, group = group_limit(), all = machine.totalram * unit;
    *grouped = group < all;
    return (*grouped ? group : all) + machine.totalswap * unit;
}

size_t mm_memory_share(const struct mm_comm *comm) {
    bool grouped;
    size_t all = all_memory(&grouped);
    return all ? all / (size_t)mm_comm_local_size(comm) : SIZE_MAX;
}

size_t mm_memory_space(void) {
    struct rlimit limit;
    size_t used = read_statm().space + FOR_A_THREAD + MM_SPACE_LEFT;
    if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
        return SIZE_MAX;
    return limit.rlim_cur > used ? limit.rlim_cur - used : 0;
}

void mm_memory_limit(struct mm_device *dev, const struct mm_comm *comm) {
    char text[32];
    bool grouped;
    int ranks = mm_comm_local_size(comm);
    size_t all = all_memory(&grouped);
    if (!all)
        return;
    struct statm now = read_statm(); /* what files back can be read again */
    size_t share = all / (size_t)ranks, used = now.resident - now.shared + FOR_LIBRARIES;
    dev->arenas_most = share > used ? share - used : 1;
    snprintf(dev->arenas_limit, sizeof dev->arenas_limit, "%s memory, %s for %d rank%s",
             grouped ? "the job's limit on" : "this machine's", mm_bytes_text(text, (double)all),
             ranks, ranks == 1 ? "" : "s");
}
