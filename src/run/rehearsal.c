/* rehearsal.c - see rehearsal.h. */
#include "src/run/rehearsal.h"

#include <stdio.h>

struct mm_rehearsal mm_rehearsal_begin(const struct mm_job *job) {
    mm_spread_changed(job->model); /* as a step finds it that follows another */
    *mm_dry_clock(job->dev) = (struct mm_clock){0};
    return (struct mm_rehearsal){.traffic = *mm_comm_traffic(job->comm)};
}

void mm_rehearsal_end(struct mm_rehearsal *r, const struct mm_job *job) {
    r->traffic = mm_traffic_since(mm_comm_traffic(job->comm), &r->traffic);
    r->clock = *mm_dry_clock(job->dev);
}

void mm_rehearsal_print_traffic(const struct mm_rehearsal *r, const char *what) {
    char *text = mm_traffic_text(&r->traffic);
    printf("collectives of %s: %s\n", what, text);
    mm_free(text);
}
