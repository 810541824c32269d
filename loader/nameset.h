/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_NAMESET_H
#define MOEC_NAMESET_H

/*
 * What this is: the set of the names of one file's tensors, while its header
 *   is read: a cell of 4 bytes a name, so that a million cost 8 MiB.
 *   Two lists of names are the same, in any order, where their numbers and
 *   their sums of hashes under one secret are: else once in 2^64 tries, and
 *   no file can aim for it.
 * Lifetime: zero-initialise, then _fini. Names stay in the table.
 * Threads: one thread at a time.
 * Errors: NOMEM.
 */

#include "base/base.h"

typedef struct moec_nameset {
    uint32_t *cells;
    size_t cap;         /* power of two, or 0 */
    size_t expect;      /* names that may come, a guess; 0: few */
    uint64_t secret[2]; /* zero: made at the first name */
    uint64_t sum;       /* of the hashes of all names, in any order */
} moec_nameset;

/* The hash that `sum` adds up. */
uint64_t moec_nameset_hash(const uint64_t secret[2], const char *name,
                           size_t n);

/* Add the name that tensor number `n_tensors` will have: the first so many of
 * `tensors` are in the set. *existed: one of them has it, and nothing is
 * added. Names hold no NUL. */
moec_status moec_nameset_add(moec_nameset *s, const moec_tensor *tensors,
                             size_t n_tensors, const char *name, size_t n,
                             bool *existed, moec_error *err);
void moec_nameset_fini(moec_nameset *s);

#endif
