/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TABLE_H
#define MOEC_TABLE_H

/*
 * What this is: the order of a checkpoint's tensors: sorting by name and
 *   looking names up.
 * Threads: sorting one thread at a time, looking up safe from any thread.
 * Errors: NOMEM.
 */

#include "base/base.h"

/* Sort by name, bytewise. Takes 8 to 16 bytes a tensor while it runs. */
moec_status moec_table_sort(moec_tensor *tensors, size_t n, moec_error *err);

/* Compare the name of a tensor with `n` bytes that hold no NUL. */
int moec_table_compare(const moec_tensor *t, const char *name, size_t n);

/* Index of the tensor with this name in a sorted table, or SIZE_MAX. `guess`
 * is tried first. */
size_t moec_table_find(const moec_tensor *tensors, size_t n, const char *name,
                       size_t name_bytes, size_t guess);

#endif
