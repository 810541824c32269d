/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_SCATTER_H
#define MOEC_SCATTER_H

/*
 * What this is: copying a matrix of elements from one pair of strides to
 *   another: what the executor of moves and the engine of a load both end in.
 */

#include <stdint.h>

typedef struct moec_grid {
    uint32_t elem_bytes;
    uint64_t n_rows, n_cols;
    uint64_t src_row, src_col; /* bytes between elements, by axis and side */
    uint64_t dst_row, dst_col;
} moec_grid;

/* Copy element (0, 0) of src to dst, and so on. The sides do not overlap. */
void moec_scatter(const moec_grid *g, unsigned char *dst,
                  const unsigned char *src);

#endif
