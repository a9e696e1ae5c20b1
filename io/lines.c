/* lines.c - see lines.h. */
#include "io/lines.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#define READ_BYTES 4096

/* Where the first line ends: at its newline, which becomes a NUL; at the end of input; or NULL. */
static char *end_of_line(struct mm_lines *l) {
    char *end = l->bytes ? memchr(l->text, '\n', l->bytes) : NULL;
    if (!end && l->bytes)
        end = memchr(l->text, '\0', l->bytes); /* found before, or not a text */
    if (!end && l->ended && l->bytes)
        end = l->text + l->bytes;
    return end;
}

/* False where there is nothing to read now, after a signal, and at the end of input. */
static bool read_more(struct mm_lines *l, bool wait) {
    struct pollfd input = {.fd = l->fd, .events = POLLIN};
    if (l->ended || poll(&input, 1, wait ? -1 : 0) <= 0)
        return false;
    l->text = mm_realloc(l->text, l->bytes + READ_BYTES + 1);
    ssize_t got = read(l->fd, l->text + l->bytes, READ_BYTES);
    if (got < 0)
        return errno == EAGAIN;
    l->ended = got == 0;
    l->bytes += (size_t)got;
    return true;
}

const char *mm_lines_look(struct mm_lines *l, bool wait) {
    char *end = end_of_line(l);
    while (!end && read_more(l, wait))
        end = end_of_line(l);
    if (end)
        *end = '\0';
    return end ? l->text : NULL;
}

void mm_lines_take(struct mm_lines *l) {
    size_t taken = strlen(l->text) + 1;
    taken = taken < l->bytes ? taken : l->bytes;
    memmove(l->text, l->text + taken, l->bytes - taken);
    l->bytes -= taken;
}

void mm_lines_free(struct mm_lines *l) {
    mm_free(l->text);
    *l = (struct mm_lines){.fd = l->fd};
}
