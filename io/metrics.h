/* metrics.h - JSON lines: metrics.jsonl, appended by rank 0, and the answers of `trials`.
 *
 * Usage: begin, fields, end. A double that is not finite is written as null. Numbers are written
 * with the digits that give the same double back. All functions local, called on one rank. */
#ifndef MM_METRICS_H
#define MM_METRICS_H

#include "src/base/base.h"

struct mm_metrics;

/* Opens run_dir/metrics.jsonl and first cuts it to `keep_bytes` (0 for a new run). Returns
 * MM_BAD_INPUT if it is shorter than that, no line ends there, or it cannot be written. The caller
 * frees *metrics. */
enum mm_status mm_metrics_open(struct mm_metrics **metrics, const char *run_dir, size_t keep_bytes,
                               struct mm_error *err);
/* The same for an open descriptor, which mm_metrics_free closes. */
struct mm_metrics *mm_metrics_on(int fd, const char *name);
void mm_metrics_free(struct mm_metrics *metrics);

void mm_metrics_begin(struct mm_metrics *metrics, const char *phase); /* first field: "phase" */
void mm_metrics_begin_event(struct mm_metrics *metrics,
                            const char *event); /* first field: "event" */
void mm_metrics_text(struct mm_metrics *metrics, const char *key, const char *value);
void mm_metrics_count(struct mm_metrics *metrics, const char *key, uint64_t value);
void mm_metrics_number(struct mm_metrics *metrics, const char *key, double value);
void mm_metrics_json(struct mm_metrics *metrics, const char *key, const char *json); /* as it is */
/* Writes the line with one write call. Returns MM_FAILED on a full disk; the file then ends with
 * the line before. Each byte that is not UTF-8 is written as '?'. */
enum mm_status mm_metrics_end(struct mm_metrics *metrics, struct mm_error *err);

/* While `patient` is true, mm_metrics_end does not fail if a line cannot be written. It warns once,
 * and the line waits in memory for the next one. At first it is false. */
void mm_metrics_be_patient(struct mm_metrics *metrics, bool patient);
/* Writes the lines that wait. *bytes is then the length of the file, to which a resume from a
 * checkpoint made now would cut it. Returns MM_FAILED. */
enum mm_status mm_metrics_flush(struct mm_metrics *metrics, size_t *bytes, struct mm_error *err);
/* Syncs to disk what was written so far. Another thread may call it while lines are added. Returns
 * MM_FAILED. */
enum mm_status mm_metrics_sync(const struct mm_metrics *metrics, struct mm_error *err);

#endif
