/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TILING_H
#define MOEC_TILING_H

/*
 * What this is: whether the tensors of one file tile its data (H15..H17).
 * Threads: safe from any thread. Errors: FORMAT, NOMEM.
 */

#include "base/base.h"

/* Check `n` tensors whose `off` counts from the begin of the data, which is
 * byte `header_bytes` of a file of `file_bytes`. In any order: n log n. */
moec_status moec_tiling_check(const moec_tensor *tensors, size_t n,
                              uint64_t header_bytes, uint64_t file_bytes,
                              const char *name, moec_error *err);

#endif
