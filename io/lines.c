/* lines.c - see lines.h. Lines come from another program, which may send anything: a line without
 * an end is dropped at MM_LINE_MAX, and bytes that were searched are not searched again. */
#include "io/lines.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#define READ_BYTES 4096

/* Where the first line ends: at its newline, at a NUL (no text has one), or at the end of input.
 * NULL if its end has not come yet. */
static char *end_of_line(struct mm_lines *l) {
    for (; l->searched < l->bytes; l->searched++)
        if (l->text[l->searched] == '\n' || l->text[l->searched] == '\0')
            return l->text + l->searched;
    return l->ended && (l->bytes || l->dropped) ? l->text + l->bytes : NULL;
}

/* Keeps nothing of a line that is too long. */
static void drop_excess(struct mm_lines *l) {
    if (l->searched > MM_LINE_MAX) {
        l->dropped = true;
        memmove(l->text, l->text + l->searched, l->bytes - l->searched);
        l->bytes -= l->searched;
        l->searched = 0;
    }
}

/* False where nothing comes for so long (-1: it waits), after a signal, and at the end of input. */
static bool read_more(struct mm_lines *l, int milliseconds) {
    struct pollfd input = {.fd = l->fd, .events = POLLIN};
    drop_excess(l);
    if (l->ended || poll(&input, 1, milliseconds) <= 0)
        return false;
    l->text = mm_realloc(l->text, l->bytes + READ_BYTES + 1);
    ssize_t got = read(l->fd, l->text + l->bytes, READ_BYTES);
    if (got < 0)
        return errno == EAGAIN;
    l->ended = got == 0;
    l->bytes += (size_t)got;
    return true;
}

static const char *next_line(struct mm_lines *l, int milliseconds) {
    char *end = end_of_line(l);
    while (!end && read_more(l, milliseconds))
        end = end_of_line(l);
    if (!end)
        return NULL;
    *end = '\0';
    l->found = (size_t)(end - l->text) + 1;
    return l->dropped || l->found > MM_LINE_MAX ? "" : l->text;
}

const char *mm_lines_look(struct mm_lines *l) {
    return next_line(l, 0);
}

const char *mm_lines_wait(struct mm_lines *l) {
    return next_line(l, -1);
}

void mm_lines_take(struct mm_lines *l) {
    size_t taken = l->found < l->bytes ? l->found : l->bytes;
    memmove(l->text, l->text + taken, l->bytes - taken);
    l->bytes -= taken;
    l->searched = l->found = 0;
    l->dropped = false;
}

void mm_lines_free(struct mm_lines *l) {
    mm_free(l->text);
    *l = (struct mm_lines){.fd = l->fd};
}
