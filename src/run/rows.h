/* rows.h - which rows of the token files each phase reads, and how often.
 *
 * Evaluation reads the first evaluate.batches batches of a file. An attack reads the validation
 * files and never a row that is evaluated, in whichever file that row stands: without evaluation
 * files it begins behind the evaluated rows and comes round to the first row behind them. */
#ifndef MM_ROWS_H
#define MM_ROWS_H

#include "src/run/evaluate.h"

/* What relearning reads, batch 0 first: views of the validation files. */
struct mm_attack_rows {
    struct mm_dataset forget, retain;
};

/* Of this config's attacks. MM_BAD_INPUT: an attack reads a file of which every row is evaluated.
 * The caller frees; on failure nothing is left. Local. */
enum mm_status mm_attack_rows(struct mm_attack_rows *rows, const struct mm_data *data,
                              const struct mm_config *config, struct mm_error *err);
void mm_attack_rows_free(struct mm_attack_rows *rows);

/* Warns on rank 0 where a batch holds a row twice, an evaluation counts one twice, or the attack
 * leaves rows out. MM_BAD_INPUT as mm_attack_rows. Local. */
enum mm_status mm_rows_check(const struct mm_data *data, const struct mm_config *config,
                             struct mm_error *err);

/* `plan`'s table: rows that a phase has, different ones that it reads, and reads of a row beyond
 * its first. Of several attacks the longest counts. Local. */
void mm_rows_print(const struct mm_data *data, const struct mm_config *config, size_t loops);

#endif
