/* weights_folder.h - the inside of struct mm_weights (io/weights.h), for the files that read and
 * export one. For io/ only. */
#ifndef MM_WEIGHTS_FOLDER_H
#define MM_WEIGHTS_FOLDER_H

#include "io/safetensors.h"

/* An opened folder: the inside of struct mm_weights. */
struct mm_weights {
    char *folder;
    bool indexed;                 /* by model.safetensors.index.json */
    struct mm_safetensors *files; /* by name */
    size_t files_n;
    const struct mm_safetensors_entry **entries; /* of all files and dtypes, by tensor name */
    size_t entries_n;
    const struct mm_stored_tensor **listed; /* by file, then in the order of the data */
    size_t listed_n;
};

/* The entry, listed or not; NULL where there is none. */
const struct mm_safetensors_entry *mm_weights_entry(const struct mm_weights *weights,
                                                    const char *name);

#endif
