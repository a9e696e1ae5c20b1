/* checkpoint.h - the state of an unlearning run on disk. Any number of ranks can read it, and other
 * programs see each tensor whole.
 *
 * checkpoints/<loops>/ holds part-00000.h5 ... (serial HDF5, one rank's rows of every tensor) and
 * checkpoint.h5, whose virtual datasets (fill value NaN) show each tensor whole:
 * /base/<tensor>, /adversary/<tensor>, /retain_acc/<tensor>, /forget_acc/<tensor> in model shape.
 * The second and the last are there only if the run has them. An adversary made of adapters has A
 * and B of each set instead, /adversary/<tensor>.lora_A.<set> and .lora_B.<set>. Everything is
 * written into checkpoints/.writing-<loops>/, closed and synced. When all ranks agree that this is
 * done, the folder gets its name.
 *
 * Integrity: checkpoint.h5 records the XXH128 of every part. Its own hash is in its 512-byte HDF5
 * user block, whose other bytes are fixed. So the hashes cover every byte of the folder. Virtual
 * datasets fill missing parts silently; therefore the reader checks all parts before it reads a
 * value. The cost: every rank hashes what it writes, and a reader hashes all that was written. */
#ifndef MM_CHECKPOINT_H
#define MM_CHECKPOINT_H

#include "comm/comm.h"

/* What a run's state is made of: a group of tensors in the file. A new one is a row here and in
 * mm_state_groups; nothing else in io/ names one. */
enum mm_state_group {
    MM_GROUP_BASE,
    MM_GROUP_ADVERSARY,
    MM_GROUP_RETAIN_ACC,
    MM_GROUP_FORGET_ACC,
    MM_GROUP_KEPT,
    MM_STATE_GROUPS,
};

/* Which tensors a group holds. */
enum mm_group_tensors {
    MM_TENSORS_ITS_OWN,       /* any, or none */
    MM_TENSORS_OF_BASE,       /* those of the base */
    MM_TENSORS_OF_BASE_OR_NO, /* those of the base, or the whole group is absent */
};

struct mm_state_group_row {
    const char *name;  /* in the file */
    const char *words; /* for messages */
    enum mm_group_tensors tensors;
};
extern const struct mm_state_group_row mm_state_groups[MM_STATE_GROUPS];

/* One named tensor as this rank holds it: `own` are its rows mm_rows_of(rows, size, rank). */
struct mm_state_tensor {
    char *name; /* without group: "model.layers.0.mlp.gate_proj.weight"; no '/' or '%' */
    size_t rows, cols;
    void *own[MM_STATE_GROUPS]; /* own rows, contiguous, host memory; NULL: not in that group */
};

struct mm_state {
    enum mm_dtype
        dtype; /* MM_F32 | MM_BF16 of all tensors; BF16 is stored as a 16-bit HDF5 float */
    struct mm_state_tensor *tensors;
    size_t tensors_n;
};

/* What a checkpoint says beside the tensors. It owns its strings; the caller frees them with
 * mm_checkpoint_info_free. */
struct mm_checkpoint_info {
    size_t loops;                        /* completed */
    size_t retain_cursor, forget_cursor; /* batches consumed */
    size_t metrics_bytes;                /* length of metrics.jsonl at that moment */
    char weights_hash[33];               /* of the frozen weights' files */
    char *config;                        /* resolved config, YAML */
    char *extra;                         /* JSON of the caller's own scalars */
};

void mm_checkpoint_info_free(struct mm_checkpoint_info *info);

/* Writes checkpoints/<info->loops>/ under `run_dir`, then removes all but the newest `keep`.
 * A checkpoint that has this name already is replaced. Returns MM_FAILED, for example on a full
 * disk; then the temporary folder is removed and earlier checkpoints are intact. Collective; every
 * rank returns the same status. */
enum mm_status mm_checkpoint_write(struct mm_comm *comm, const char *run_dir, size_t keep,
                                   const struct mm_state *state,
                                   const struct mm_checkpoint_info *info, struct mm_error *err);

/* Gives a checkpoint that was being replaced when the job ended its name back, where the new one
 * did not get it. For the owner of the folder, before it looks for checkpoints. Local. */
enum mm_status mm_checkpoint_recover(const char *run_dir, struct mm_error *err);

/* Lists the checkpoints under run_dir by the names of their folders, newest first, in *loops[*n],
 * which the caller frees. *n is 0 if there is no folder. The function does not look whether they
 * are intact. Local. */
enum mm_status mm_checkpoint_list(const char *run_dir, size_t **loops, size_t *n,
                                  struct mm_error *err);

/* Finds the newest valid checkpoint under run_dir. It warns (mm_log0) of each damaged one that it
 * skips, and names folder, file and fault. *folder is the path, which the caller frees with
 * mm_free. Returns MM_BAD_INPUT if none is valid. Collective; the ranks share the work of hashing.
 */
enum mm_status mm_checkpoint_find(struct mm_comm *comm, const char *run_dir, char **folder,
                                  struct mm_checkpoint_info *info, struct mm_error *err);

/* Checks the checkpoint as mm_checkpoint_find does and reads this rank's rows into state's buffers,
 * whatever number of ranks wrote them. The tensors of `state` must be those of the file, with the
 * same names, shapes, dtype and groups; if not, it returns MM_BAD_INPUT and names the first that
 * differs. Collective. */
enum mm_status mm_checkpoint_read(struct mm_comm *comm, const char *folder, struct mm_state *state,
                                  struct mm_error *err);

/* Checks one checkpoint folder (or its checkpoint.h5): every part must be there, every hash right,
 * and every dataset whole. Returns MM_BAD_INPUT, and names file and fault. `info` may be NULL.
 * Local. */
enum mm_status mm_checkpoint_verify(const char *folder, struct mm_checkpoint_info *info,
                                    struct mm_error *err);

#endif
