/* trace.h - reading of the golden files (tests/golden/README.md) and comparison with tolerance. */
#ifndef MM_TEST_TRACE_H
#define MM_TEST_TRACE_H

#include <hdf5.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "io/dataset.h"

/* A whole dataset as double; dims up to 4; the caller frees with mm_free. NULL if there is none. */
static inline double *trace_read(hid_t at, const char *name, hsize_t dims[4], int *dims_n) {
    if (H5Lexists(at, name, H5P_DEFAULT) <= 0)
        return NULL;
    hid_t set = H5Dopen2(at, name, H5P_DEFAULT), space = H5Dget_space(set);
    hsize_t local[4] = {0};
    int n = H5Sget_simple_extent_dims(space, local, NULL);
    hssize_t elements = H5Sget_simple_extent_npoints(space);
    double *data = mm_calloc((size_t)elements, sizeof *data);
    assert_true(H5Dread(set, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
    H5Sclose(space);
    H5Dclose(set);
    if (dims)
        memcpy(dims, local, sizeof local);
    if (dims_n)
        *dims_n = n;
    return data;
}

static inline uint32_t *trace_tokens(hid_t at, const char *name, size_t *rows, size_t *cols) {
    hsize_t dims[4] = {0};
    double *values = trace_read(at, name, dims, NULL);
    assert_non_null(values);
    *rows = (size_t)dims[0];
    *cols = (size_t)dims[1];
    uint32_t *tokens = mm_calloc(*rows * *cols, sizeof *tokens);
    for (size_t i = 0; i < *rows * *cols; i++)
        tokens[i] = (uint32_t)values[i];
    mm_free(values);
    return tokens;
}

/* A number a row, at least `least`; NULL where there is no such dataset. */
static inline uint32_t *trace_numbers(hid_t traces, const char *name, const char *what, size_t n,
                                      uint32_t least) {
    char *path = mm_format("%s_%s", name, what);
    double *values =
        H5Lexists(traces, path, H5P_DEFAULT) > 0 ? trace_read(traces, path, NULL, NULL) : NULL;
    uint32_t *numbers = values ? mm_calloc(n, sizeof *numbers) : NULL;
    for (size_t i = 0; i < n && values; i++)
        numbers[i] = (uint32_t)fmax(values[i], least);
    mm_free(values);
    mm_free(path);
    return numbers;
}

/* The same as a token file would give it, but for what stands in padding; mm_dataset_free. */
static inline struct mm_dataset trace_dataset(hid_t traces, const char *name) {
    struct mm_dataset set = {0};
    set.tokens = trace_tokens(traces, name, &set.examples, &set.context);
    set.context_length = set.context;
    set.lengths = trace_numbers(traces, name, "lengths", set.examples, 0);
    set.answers = trace_numbers(traces, name, "answers", set.examples, 1);
    return set;
}

/* A text attribute; the caller frees with mm_free. */
static inline char *trace_text(hid_t at, const char *name) {
    hid_t attribute = H5Aopen(at, name, H5P_DEFAULT), type = H5Aget_type(attribute);
    char *text;
    if (H5Tis_variable_str(type) > 0) {
        char *raw;
        assert_true(H5Aread(attribute, type, &raw) >= 0);
        text = mm_strdup(raw);
        H5free_memory(raw);
    } else {
        text = mm_calloc(H5Tget_size(type) + 1, 1);
        assert_true(H5Aread(attribute, type, text) >= 0);
    }
    H5Tclose(type);
    H5Aclose(attribute);
    return text;
}

/* The largest |x - want|, and the largest |want|. */
static inline double trace_error(const float *x, const double *want, size_t n, double *largest) {
    double error = 0, most = 0;
    for (size_t i = 0; i < n; i++) {
        double e = fabs((double)x[i] - want[i]);
        error = e > error || isnan(e) ? e : error;
        most = fabs(want[i]) > most ? fabs(want[i]) : most;
    }
    *largest = most;
    return error;
}

/* Fails if the error is over what is allowed. With MM_MEASURE in the environment it prints both
 * instead: limits of bfloat16 are set by what several machines and cuts of the batch measure. */
static inline void trace_judge(const char *what, const char *name, double error, double allowed) {
    if (getenv("MM_MEASURE"))
        printf("measured %s %s %.4g of %.4g = %.3f\n", what, name, error, allowed, error / allowed);
    else if (!(error <= allowed))
        fail_msg("%s %s: off by %.3g, allowed %.3g", what, name, error, allowed);
}

/* By how much the tolerances of the two functions below grow: 4 on GPUs, which add in other orders
 * and approximate. That is three times the most that seven draws of noise (MM_NOISE of
 * tests/shim/cuda_shim.h) were off by, as a part of the tolerance. */
static double trace_room = 1;

/* Fails unless |x - want| <= tolerance · max |want| everywhere; a tensor whose values are all
 * rounding (a key bias moves every score of a softmax alike) may be off by 10^-7 of a unit loss. */
static inline void trace_close(const char *what, const char *name, const float *x,
                               const double *want, size_t n, double tolerance) {
    double largest, error = trace_error(x, want, n, &largest);
    double allowed = tolerance == 0 ? 0 : fmax(trace_room * tolerance * largest, 1e-7);
    trace_judge(what, name, error, allowed);
}

static inline void trace_near(const char *what, const char *name, size_t at, double x, double want,
                              double tolerance) {
    char place[96];
    snprintf(place, sizeof place, "%s[%zu]", name, at);
    trace_judge(what, place, fabs(x - want), trace_room * tolerance * fmax(1.0, fabs(want)));
}

#endif
