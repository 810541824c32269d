/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_SELFTEST_H
#define MOEC_SELFTEST_H

/*
 * What this is: this machine's kernels against reference vectors: files of
 *   the form that fixtures/vectors/README.md describes, from a directory or
 *   built into the program. Every case runs through the public functions; a
 *   case that concerns kernels runs on every back end that is listed.
 * Lifetime: built-in files are borrowed; a case's record and its strings are
 *   valid inside the callback only.
 * Threads: one thread at a time; the kernels have their own.
 * Errors: FORMAT (V01: a vector file that is not as it must be, with file and
 *   key), IO, NOMEM. A kernel that differs is no error: it is a failed case.
 */

#include <stddef.h>
#include <stdint.h>

#include <moec/device.h>
#include <moec/kernels.h>

/* A vector file in memory. */
typedef struct moec_vector_file {
    const char *name; /* "routing.json" */
    const void *data;
    size_t bytes;
} moec_vector_file;

typedef enum moec_case_result {
    MOEC_CASE_PASSED = 0,
    MOEC_CASE_FAILED = 1, /* a result differs */
    MOEC_CASE_SKIPPED = 2 /* cannot be run; `text` says why */
} moec_case_result;

typedef struct moec_case {
    const char *area; /* "routing" */
    const char *id;   /* "rt-01" */
    moec_case_result result;
    const char *backend; /* that differs; NULL: not a matter of back ends */
    const char *text;    /* "row 3, column 1: id 7, must be 5" */
} moec_case;

typedef void (*moec_case_fn)(void *ctx, const moec_case *c);

typedef struct moec_selftest_opts {
    const char *dir; /* NULL: `builtin` */
    const moec_vector_file *builtin;
    size_t n_builtin;
    /* Back ends, opened by the caller. */
    moec_kernels *const *backends;
    size_t n_backends;
    /* NULL, or where the calls run instead: there is one back end then, which
     * makes the routers. */
    moec_device *device;
    moec_case_fn fn; /* told of every case; may be NULL */
    void *ctx;
} moec_selftest_opts;

typedef struct moec_selftest_counts {
    uint64_t passed, failed, skipped;
} moec_selftest_counts;

/* Relative difference of a weight from the float64 reference that passes:
 * some 8 ulp of float32. Where there is no float64 reference the other side is
 * a float32 formula of its own, and the same holds. */
#define MOEC_SELFTEST_TOLERANCE 1e-6

/* Run every case of the files that are there. */
moec_status moec_selftest(const moec_selftest_opts *opts,
                          moec_selftest_counts *out, moec_error *err);

#endif
