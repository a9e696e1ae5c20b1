/* decisive.h - a configuration key by key, so that two can be compared. All functions are local.
 *
 * Paths of inputs are mostly left out: what a file holds decides, not where it lies. */
#ifndef MM_DECISIVE_H
#define MM_DECISIVE_H

#include "src/config/config.h"

/* Which keys: all, or those that decide results beyond rounding (rows without MM_KEY_ASIDE); or all
 * with the paths of inputs. */
enum mm_which_keys { MM_KEYS_ALL, MM_KEYS_DECISIVE, MM_KEYS_PATHS };

/* Every key on a line of its own, in the order of the table: "unlearn.adv_lr: 0.5\n". But for
 * MM_KEYS_PATHS, the path of an input reads "given" or "null", and question files are left out of
 * their list. The caller frees the text with mm_free. */
char *mm_config_lines(const struct mm_config *config, enum mm_which_keys which);

/* A line in which two such texts of the same keys differ. */
struct mm_line_difference {
    char key[64];
    char left[128], right[128]; /* the values, cut to this length */
};

/* Finds the first difference from *at on, in both texts, and moves both behind it. Returns false at
 * the end of either. */
bool mm_lines_differ(const char **left, const char **right, struct mm_line_difference *found);

#endif
