/* ranks_note.h - mistakes of one rank that fail the test on all: a rank that left a test alone
 * would leave the others waiting. A test notes its mistakes and settles at its end. */
#ifndef MM_TEST_RANKS_NOTE_H
#define MM_TEST_RANKS_NOTE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "comm/comm.h"

static struct mm_comm *comm;
static int rank, size;
static char mistake[256];

/* The first mistake of this rank, as printf. */
#define NOTE(ok, ...)                                                                              \
    do {                                                                                           \
        if (!(ok) && !*mistake)                                                                    \
            snprintf(mistake, sizeof mistake, __VA_ARGS__);                                        \
    } while (0)

/* Collective. */
static inline void settle(void) {
    bool any = mm_comm_any(comm, *mistake != 0);
    char text[256];
    memcpy(text, mistake, sizeof text);
    *mistake = 0;
    if (any)
        fail_msg("rank %d: %s", rank, *text ? text : "another rank has failed");
}

#endif
