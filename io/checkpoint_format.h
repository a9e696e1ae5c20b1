/* checkpoint_format.h - what writing, reading and inspecting a checkpoint share. For io/ only.
 *
 * checkpoint.h5 = user block of 512 bytes (mm_checkpoint_seal: one line with the hash of all bytes
 * after it, spaces, a newline) + HDF5. Its attributes say what mm_checkpoint_info says, and:
 *   format, format_version, writer   which program wrote it, in which format
 *   dtype                            the type of the values
 *   ranks, part_hashes               how many parts there are, and the hash of each part's bytes
 * Its datasets are virtual: they take row block r of every tensor from /<group>/<tensor> of
 * part-<r>.h5 in the same folder. */
#ifndef MM_CHECKPOINT_FORMAT_H
#define MM_CHECKPOINT_FORMAT_H

#include "io/checkpoint.h"
#include "io/h5.h"

#define MM_CHECKPOINT_FORMAT "mudman-mpi checkpoint"
#define MM_CHECKPOINT_PART   "mudman-mpi checkpoint part"
#define MM_CHECKPOINT_WHOLE  "checkpoint.h5"

enum { MM_CHECKPOINT_VERSION = 1, MM_USER_BLOCK = 512 };

void mm_checkpoint_part_name(char name[32], int rank);
void mm_checkpoint_seal(char block[MM_USER_BLOCK], const char hex[33]);

/* What the following functions write: the files of one checkpoint, into `folder`. Each file is
 * synced. They return MM_FAILED if that is not possible. */
struct mm_checkpoint_job {
    const char *folder;
    const struct mm_state *state;
    const struct mm_checkpoint_info *info;
    int rank, size;
    char (*hashes)[33]; /* of the parts, for checkpoint.h5 */
};
/* Writes part-<rank>.h5 and returns its hash. */
enum mm_status mm_checkpoint_part_write(const struct mm_checkpoint_job *job, char hash[33],
                                        struct mm_error *err);
/* Writes checkpoint.h5. The parts need not be there yet. */
enum mm_status mm_checkpoint_whole_write(const struct mm_checkpoint_job *job, struct mm_error *err);

/* An upper bound of the bytes of this rank's files. It does not count the hashes. Local. */
double mm_checkpoint_bytes(const struct mm_checkpoint_job *job);
/* MM_FAILED if this process may not write files of so many bytes: beyond its limit (ulimit -f) a
 * signal, SIGXFSZ, would end it. */
enum mm_status mm_checkpoint_check_limit(double bytes, struct mm_error *err);

/* The folders of one checkpoint; the caller frees. */
struct mm_checkpoint_paths {
    char *root, *temporary, *final, *aside;
};
struct mm_checkpoint_paths mm_checkpoint_paths_of(const char *run_dir, size_t loops);
void mm_checkpoint_paths_free(struct mm_checkpoint_paths *paths);

/* Makes the root, removes what a crash left, and checks that `bytes` fit on the disk. Returns
 * MM_FAILED or MM_BAD_INPUT. */
enum mm_status mm_checkpoint_prepare(const struct mm_checkpoint_paths *paths, double bytes,
                                     struct mm_error *err);
/* Gives the temporary folder its final name. It must hold the files of `size` ranks. */
enum mm_status mm_checkpoint_publish(const struct mm_checkpoint_paths *paths, int size,
                                     struct mm_error *err);
/* Removes all but the newest `keep` of the checkpoints up to `loops`, which itself stays. One of
 * more loops comes from a future that this run has left; it is replaced when the run gets there. */
enum mm_status mm_checkpoint_prune(const struct mm_checkpoint_paths *paths, const char *run_dir,
                                   size_t loops, size_t keep, struct mm_error *err);

struct mm_checkpoint_shape {
    char *name;
    size_t rows, cols;
    bool in[MM_STATE_GROUPS]; /* the groups that it is in */
};
/* Everything that checkpoint.h5 says. */
struct mm_checkpoint_head {
    struct mm_checkpoint_info info;
    char hash[33]; /* of checkpoint.h5, behind its user block */
    enum mm_dtype dtype;
    int ranks;
    char (*hashes)[33];
    struct mm_checkpoint_shape *tensors; /* of all groups */
    size_t tensors_n;
};

/* Reads folder/checkpoint.h5. It checks the hash first, so that HDF5 never sees damaged bytes.
 * Returns MM_BAD_INPUT. The caller frees *head, also after an error. */
enum mm_status mm_checkpoint_head_read(struct mm_checkpoint_head *head, const char *folder,
                                       struct mm_error *err);
void mm_checkpoint_head_free(struct mm_checkpoint_head *head);

/* Checks one part: that it is there, its hash, and every dataset that it must hold. Returns
 * MM_BAD_INPUT. */
enum mm_status mm_checkpoint_part_check(const struct mm_checkpoint_head *head, const char *folder,
                                        int rank, struct mm_error *err);

/* Reads rows of a tensor through its virtual dataset in checkpoint.h5, open
 * as `file`, whose path is `path`. Returns MM_BAD_INPUT if a value is NaN. */
enum mm_status mm_checkpoint_rows_read(const struct mm_checkpoint_head *head, hid_t file,
                                       const char *path, int group,
                                       const struct mm_checkpoint_shape *tensor,
                                       struct mm_rows rows, void *out, struct mm_error *err);

#endif
