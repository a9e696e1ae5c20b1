/* lines.h - lines from a pipe or terminal, with a look whether one has come. Local, all of it. */
#ifndef MM_LINES_H
#define MM_LINES_H

#include "src/base/base.h"

/* Bytes of a line; what sends more sends no line of ours. */
enum { MM_LINE_MAX = 1 << 20 };

struct mm_lines {
    int fd;
    char *text; /* what was read and not taken; owned */
    size_t bytes;
    size_t searched; /* of these, that hold no end of a line */
    size_t found;    /* the bytes of the line that mm_lines_look gave, its end included */
    bool ended, dropped;
};

/* The next line without its end, or NULL: with `wait`, after the end of input, or when a signal
 * came before a line did; without, also where none has come. A last line may lack its end. A line
 * longer than MM_LINE_MAX reads as "". It stays the next one until mm_lines_take; valid until the
 * next call. */
const char *mm_lines_look(struct mm_lines *lines, bool wait);
/* Drops the line that mm_lines_look gave. */
void mm_lines_take(struct mm_lines *lines);
void mm_lines_free(struct mm_lines *lines);

#endif
