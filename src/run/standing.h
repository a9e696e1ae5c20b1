/* standing.h - what a job's results stand on, as checkpoints, result lines and `trials` say it; and
 * whether a checkpoint stands on the same. All functions are local. */
#ifndef MM_STANDING_H
#define MM_STANDING_H

#include "src/run/job.h"

struct cJSON;

/* {"program": version, "config": hash, "evaluation": hash, "<input>": hash, ...}: `config` of the
 * keys that decide results, `evaluation` of what every evaluation reads, and the inputs by their
 * names (identity.h). The caller frees it with cJSON_Delete. */
struct cJSON *mm_standing_hashes(const struct mm_job *job);

/* Fields of a line that was begun: "attack_of_score", the attack that `score` comes from, with its
 * settings (null: there is no score), "evaluation", and the hashes as "identity". */
void mm_standing_write(const struct mm_job *job, struct mm_metrics *to, double score);
/* The same of a server of trials: the hashes, and the keys that decide results as "settings". */
void mm_standing_write_settings(const struct mm_job *job, struct mm_metrics *to);

/* The hashes that an evaluation alone stands on, a line each, on standard output. */
void mm_standing_print(const struct mm_job *job);

/* Compares what a checkpoint stands on, as mm_standing_hashes gave it, with this job. `stored`
 * NULL, of an older version: nothing is compared, with a warning. MM_BAD_INPUT if the finished
 * loops were made from another content; the text names checkpoint, file and both hashes. Another
 * content that decides only what is still to come is warned of. *evaluates_otherwise: the losses so
 * far come from another evaluation. */
enum mm_status mm_standing_check(const struct mm_job *job, const char *folder,
                                 const struct cJSON *stored, bool *evaluates_otherwise,
                                 struct mm_error *err);
/* The part of it for one input that decides the loops. */
enum mm_status mm_standing_check_input(const struct mm_job *job, const char *folder,
                                       const char *name, const char *hash, struct mm_error *err);

#endif
