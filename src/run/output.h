/* output.h - what the commands print on standard output, and that it arrives. */
#ifndef MM_OUTPUT_H
#define MM_OUTPUT_H

#include "src/base/base.h"

/* Before anything else is opened: takes the places of standard streams that are closed, so that no
 * file of the program gets one of their numbers, and makes a write into a pipe that nobody reads an
 * error instead of a signal. Local. */
void mm_output_begin(void);

/* After the last print. MM_FAILED if any of it could not be written. Local. */
enum mm_status mm_output_end(struct mm_error *err);

#endif
