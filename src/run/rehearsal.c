/* rehearsal.c - see rehearsal.h. */
#include "src/run/rehearsal.h"

#include <stdio.h>

struct mm_rehearsal mm_rehearsal_begin(const struct mm_job *job) {
    mm_spread_settle(job->model, NULL); /* as a step finds it that follows another */
    mm_spread_changed(job->model);
    return (struct mm_rehearsal){.traffic = *mm_comm_traffic(job->comm),
                                 .clock = *mm_dry_clock(job->dev)};
}

void mm_rehearsal_end(struct mm_rehearsal *r, const struct mm_job *job) {
    r->traffic = mm_traffic_since(mm_comm_traffic(job->comm), &r->traffic);
    r->clock = mm_clock_since(mm_dry_clock(job->dev), &r->clock);
    r->workspace = job->dev->own_bytes;
    r->messages = mm_comm_room_bytes(job->comm);
}

void mm_rehearsal_print_traffic(const struct mm_rehearsal *r, const char *what) {
    char *text = mm_traffic_text(&r->traffic);
    printf("collectives of %s: %s\n", what, text);
    mm_free(text);
}

void mm_rehearsal_print_time(const struct mm_rehearsal *r, const char *what, size_t tokens) {
    static const char *const names[MM_SPENT_ON] = {
        "matrix products",        "other work of the layers", "updates and copies",
        "waiting for reductions", "waiting for gathers",      "waiting for sums"};
    double now = r->clock.now;
    printf("predicted, not measured: %s takes %.6f s, %.1f tokens/s\n", what, now,
           (double)tokens / now);
    for (int i = 0; i < MM_SPENT_ON; i++)
        printf("  %-26s %12.6f s %6.1f %%\n", names[i], r->clock.seconds[i],
               100 * r->clock.seconds[i] / now);
    printf("  between ranks, waited for or not: %.6f s\n", r->clock.between_ranks);
}
