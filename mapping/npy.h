/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_NPY_H
#define MOEC_NPY_H

/*
 * What this is: NumPy's array file (.npy, versions 1 to 3), read where it
 *   lies: shape, element type and the place of the data.
 * Refuses: what is no .npy, element types but plain little-endian integers
 *   and floats (an object array is a pickle), columns first, data that is
 *   shorter or longer than the shape says.
 * Lifetime: a view borrows the text. Threads: immutable: share freely.
 */

#include "base/base.h"

#define MOEC_NPY_RANK_MAX 4

typedef struct moec_npy {
    uint32_t rank;
    uint64_t shape[MOEC_NPY_RANK_MAX];
    uint64_t n;       /* elements in all */
    moec_dtype dtype; /* I8 .. I64, U8 .. U64, F32, F64; BOOL */
    const uint8_t *data;
} moec_npy;

/* Does the text begin as a .npy file does? */
bool moec_npy_is(const void *text, size_t n);

/* Read the header. FORMAT with `rule`. */
moec_status moec_npy_open(moec_npy *out, const char *name, const void *text,
                          size_t n, moec_rule rule, moec_error *err);

/* Is the element type an integer one (BOOL is none)? */
bool moec_npy_is_integer(const moec_npy *a);

/* Element `i` < n as an integer; false where it is none: floats, BOOL, an U64
 * beyond int64. */
bool moec_npy_i64(const moec_npy *a, uint64_t i, int64_t *out);
/* Element `i` < n as a double. */
double moec_npy_f64(const moec_npy *a, uint64_t i);

#endif
