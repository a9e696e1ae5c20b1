/* weights_folder.h - the inside of struct mm_weights (io/weights.h), for the files that read and
 * export one. For io/ only. */
#ifndef MM_WEIGHTS_FOLDER_H
#define MM_WEIGHTS_FOLDER_H

#include "io/safetensors.h"

/* What a tensor is asked for by, where that is not its name in the file. */
struct mm_weights_alias {
    char *name;
    const struct mm_safetensors_entry *entry;
};

/* An opened folder: the inside of struct mm_weights. */
struct mm_weights {
    char *folder;
    struct cJSON *index;              /* model.safetensors.index.json; NULL: one file */
    bool untied;                      /* mm_weights_untie */
    struct mm_weights_alias *aliases; /* by name */
    size_t aliases_n;
    struct mm_safetensors *files; /* by name */
    size_t files_n;
    const struct mm_safetensors_entry **entries; /* of all files and dtypes, by tensor name */
    size_t entries_n;
    const struct mm_stored_tensor **listed; /* by file, then in the order of the data */
    size_t listed_n;
};

/* The entry, listed or not, by alias or name; NULL where there is none. */
const struct mm_safetensors_entry *mm_weights_entry(const struct mm_weights *weights,
                                                    const char *name);

#endif
