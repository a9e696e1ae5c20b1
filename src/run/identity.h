/* identity.h - what a job's results stand on, by hash: config.json, weights, token files, question
 * files, the configuration and the program. Every rank hashes what it has read, in memory, and
 * the ranks hash the weights together (src/parallel/load.h). All ranks must have read the same, and
 * a resume must find what the checkpoint was made from. */
#ifndef MM_IDENTITY_H
#define MM_IDENTITY_H

#include "io/weights.h"
#include "src/model/arch.h"
#include "src/run/evaluate.h"

/* One input: a file, or the weight files of a folder. */
struct mm_input {
    char *name; /* "config.json", "weights", or the key that names it: "data.forget" */
    char *path;
    char hash[33]; /* XXH3 128-bit of the content */
};

struct mm_identity {
    struct mm_input *inputs;
    size_t n;
};

/* Of all that was read; weights NULL: none. Their hash is empty until they are loaded. config_path
 * is that of config.json. The caller frees. Local. */
struct mm_identity mm_identity_take(const char *config_path, const struct mm_arch *arch,
                                    const struct mm_weights *weights,
                                    const struct mm_config *config, const struct mm_data *data);
void mm_identity_free(struct mm_identity *identity);

/* The input called so; NULL if there is none. Local. */
struct mm_input *mm_identity_find(const struct mm_identity *identity, const char *name);

/* MM_BAD_INPUT if a rank was given another configuration than rank 0, which the text names with the
 * key. Collective. */
enum mm_status mm_identity_agree_config(struct mm_comm *comm, const struct mm_config *config,
                                        struct mm_error *err);
/* MM_BAD_INPUT if a rank has read another input than rank 0: the text names rank and file. The
 * ranks must have agreed on the configuration. Collective. */
enum mm_status mm_identity_agree(struct mm_comm *comm, const struct mm_identity *identity,
                                 struct mm_error *err);

#endif
