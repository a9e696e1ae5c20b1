/* machine.h - what `plan --machine` takes a loop's time from: rates of a device and of what is
 * between ranks. docs/scaling.md says where each constant comes from. */
#ifndef MM_MACHINE_H
#define MM_MACHINE_H

#include "comm/comm.h"
#include "kernels/dry.h"

struct mm_machine {
    bool cuda; /* a rank is a GPU */
    struct mm_rates rates;
    struct mm_links links;
};

/* `name`: one of those that are built in, or a YAML file with every key of the table in
 * src/run/machine.c. MM_BAD_INPUT names file, line and key. Local. */
enum mm_status mm_machine_read(struct mm_machine *machine, const char *name, struct mm_error *err);

#endif
