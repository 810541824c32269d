/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TABLE_H
#define MOEC_TABLE_H

/*
 * What this is: the order of a checkpoint's tensors: merging the shards' tables
 *   by name and looking names up.
 * Threads: merging one thread at a time, looking up safe from any thread.
 * Errors: NOMEM.
 */

#include "base/base.h"

/* Tensors of one shard that follow each other by name. */
typedef struct moec_run {
    const moec_tensor *next, *end;
} moec_run;

/* Write the tensors of all runs to `out`, by name, bytewise, of equal names
 * the one of the earlier run first. `out` has room for all; the runs are used
 * up, and none is empty. *twice_out: the first place in `out` whose name is
 * that of the place before, or SIZE_MAX; nothing is written behind it. Takes 4
 * bytes a run while it works. */
moec_status moec_table_merge(const moec_tensor **out, moec_run *runs,
                             size_t n_runs, size_t *twice_out, moec_error *err);

/* Compare the name of a tensor with `n` bytes that hold no NUL. */
int moec_table_compare(const moec_tensor *t, const char *name, size_t n);

/* Index of the tensor with this name in a sorted table, or SIZE_MAX. `guess`
 * is tried first. */
size_t moec_table_find(const moec_tensor *const *tensors, size_t n,
                       const char *name, size_t name_bytes, size_t guess);

#endif
