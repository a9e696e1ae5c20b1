/* h5_build.h - HDF5 files field by field from an input: bytes at random would not get past HDF5's
 * checksums, and would find its faults rather than ours. Where the input says 0, or has ended, a
 * field is what the reader hopes for; else it is wrong in one of many ways that HDF5 can write. */
#ifndef MM_FUZZ_H5_BUILD_H
#define MM_FUZZ_H5_BUILD_H

#include <hdf5.h>

#include "tests/fuzz/fuzz.h"

/* Begins a file of the scratch folder; the caller closes. */
hid_t fuzz_h5_create(const char *path, hsize_t user_block, struct fuzz_bytes *bytes);

/* An attribute that should be `text`, or, where that is NULL, `count`. */
void fuzz_h5_attribute(hid_t at, const char *name, const char *text, uint64_t count,
                       struct fuzz_bytes *bytes);

/* A group. The handle is the caller's; negative where there is none. */
hid_t fuzz_h5_group(hid_t at, const char *name, struct fuzz_bytes *bytes);

/* A dataset that should be `type` (in the file and in `data`) of dims[rank]. */
struct fuzz_h5_set {
    hid_t type;
    int rank;
    hsize_t dims[2];
    const void *data;
};
void fuzz_h5_dataset(hid_t at, const char *name, const struct fuzz_h5_set *set,
                     struct fuzz_bytes *bytes);

/* Handles of HDF5 that are open: the same before and after a reader. */
long fuzz_h5_handles(void);

/* Sends what inspect prints nowhere, from the first call on. */
void fuzz_quiet(void);

#endif
