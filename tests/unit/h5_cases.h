/* h5_cases.h - writing attributes and datasets of HDF5 files, for the tests of data files. */
#ifndef MM_TEST_H5_CASES_H
#define MM_TEST_H5_CASES_H

#include <hdf5.h>

static inline void put_number(hid_t at, const char *name, hid_t type, const void *value) {
    hid_t space = H5Screate(H5S_SCALAR);
    hid_t id = H5Acreate2(at, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(H5Awrite(id, type, value) >= 0);
    H5Aclose(id);
    H5Sclose(space);
}

/* `data` of memory type `memory`, NULL for none, stored as `type`. */
static inline void put_data(hid_t at, const char *name, int rank, const hsize_t *dims, hid_t type,
                            hid_t memory, const void *data, hid_t dcpl) {
    hid_t space = H5Screate_simple(rank, dims, NULL);
    hid_t set = H5Dcreate2(at, name, type, space, H5P_DEFAULT, dcpl, H5P_DEFAULT);
    assert_true(set >= 0);
    if (data)
        assert_true(H5Dwrite(set, memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
    H5Dclose(set);
    H5Sclose(space);
}

#endif
