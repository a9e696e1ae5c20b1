/* report.h - what a job says of itself: lines of metrics.jsonl, and the summary on the terminal. */
#ifndef MM_REPORT_H
#define MM_REPORT_H

#include "src/run/job.h"

/* Evaluates the working weights, writes the metrics line and tells the job's listener. Collective.
 */
enum mm_status mm_report_evaluate(struct mm_job *job, const char *at, size_t passes,
                                  struct mm_evaluation *out, struct mm_error *err);

/* The last metrics line and the summary on the terminal; reason NULL when done. Collective. */
enum mm_status mm_report_result(struct mm_job *job, const char *reason, double score,
                                struct mm_error *err);

/* Fields of a line that was begun: when an evaluation was made, and by which attack if there is a
 * list; what it found; the run's score and each attack's. Local. */
void mm_report_moment(const struct mm_job *job, struct mm_metrics *to, const char *at,
                      size_t passes);
void mm_report_evaluation(const struct mm_job *job, struct mm_metrics *to,
                          const struct mm_evaluation *evaluation);
/* Of a result line: the probabilities of the answers, the retain loss at the end of each attack of
 * a list, and the divergence where it is measured. */
void mm_report_divergence(const struct mm_job *job, struct mm_metrics *to);
void mm_report_scores(const struct mm_job *job, struct mm_metrics *to, double score);

#endif
