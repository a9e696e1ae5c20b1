/* lines.h - reads lines from a pipe or terminal, and can look whether one has come without waiting.
 * All functions are local. */
#ifndef MM_LINES_H
#define MM_LINES_H

#include "src/base/base.h"

/* The most bytes of a line. Whoever sends more does not send a line of ours. */
enum { MM_LINE_MAX = 1 << 20 };

struct mm_lines {
    int fd;
    char *text; /* what was read and not taken yet; owned */
    size_t bytes;
    size_t searched; /* so many of these bytes hold no end of a line */
    size_t found;    /* the bytes of the line that was given, its end included */
    bool ended, dropped;
};

/* The next line without its end. NULL after the end of input, if a signal came, or if no line has
 * come yet. A last line may lack its end. A line longer than MM_LINE_MAX reads as "". The line
 * stays the next one until mm_lines_take; the text is valid until the next call. */
const char *mm_lines_look(struct mm_lines *lines);
/* The same, but it waits for a line. */
const char *mm_lines_wait(struct mm_lines *lines);
/* Drops the line that mm_lines_look or mm_lines_wait gave. */
void mm_lines_take(struct mm_lines *lines);
void mm_lines_free(struct mm_lines *lines);

#endif
