/* metrics.h - JSON lines: metrics.jsonl, appended by rank 0, and the answers of `trials`.
 *
 * Usage: begin, fields, end. A double that is not finite is written as null. Numbers are written
 * with the digits that give the same double back. All functions local, called on one rank. */
#ifndef MM_METRICS_H
#define MM_METRICS_H

#include "src/base/base.h"

struct mm_metrics;

/* Opens run_dir/metrics.jsonl; first cut to `keep_bytes` (0 for a new run). MM_BAD_INPUT if it is
 * shorter than that, no line ends there, or it cannot be written. The caller frees. */
enum mm_status mm_metrics_open(struct mm_metrics **metrics, const char *run_dir, size_t keep_bytes,
                               struct mm_error *err);
/* The same on a descriptor, which mm_metrics_free closes. */
struct mm_metrics *mm_metrics_on(int fd, const char *name);
void mm_metrics_free(struct mm_metrics *metrics);

void mm_metrics_begin(struct mm_metrics *metrics, const char *phase); /* "phase" comes first */
void mm_metrics_begin_event(struct mm_metrics *metrics, const char *event); /* "event" does */
void mm_metrics_text(struct mm_metrics *metrics, const char *key, const char *value);
void mm_metrics_count(struct mm_metrics *metrics, const char *key, uint64_t value);
void mm_metrics_number(struct mm_metrics *metrics, const char *key, double value);
void mm_metrics_json(struct mm_metrics *metrics, const char *key, const char *json); /* as it is */
/* Writes the line (one write call). MM_FAILED on a full disk; the file then ends with the line
 * before. Text that is not UTF-8 has '?' for each wrong byte. */
enum mm_status mm_metrics_end(struct mm_metrics *metrics, struct mm_error *err);

/* While `patient`, mm_metrics_end warns, once, of a line that cannot be written, instead of
 * failing: it waits in memory for the next one. At first not. */
void mm_metrics_be_patient(struct mm_metrics *metrics, bool patient);
/* Writes lines that wait; *bytes is the length of the file: where a resume from a checkpoint made
 * now cuts it. MM_FAILED. */
enum mm_status mm_metrics_flush(struct mm_metrics *metrics, size_t *bytes, struct mm_error *err);
/* Syncs to disk what was written so far; another thread may do so while lines are added. MM_FAILED.
 */
enum mm_status mm_metrics_sync(const struct mm_metrics *metrics, struct mm_error *err);

#endif
