/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_DIGESTS_H
#define MOEC_DIGESTS_H

/*
 * What this is: the leaves of everything a conversion writes, once per
 *   distinct content: a block (planned layer, slot tensor, unit), whatever
 *   the number of its replicas, or a common tensor. 48 bytes a MiB.
 * Threads: each leaf is written by the one worker that makes its bytes.
 */

#include <moec/mapping.h>

#include "base/base.h"
#include "converted.h"

typedef struct moec_digests {
    const moec_plan *plan;
    size_t n_leaves;
    moec_leaf *leaves;
    size_t *layer_first;   /* planned layer -> first entry of block_base */
    uint64_t *block_base;  /* (layer, t) -> leaf of unit 0 */
    uint64_t *common_base; /* source tensor -> leaf; UINT64_MAX: none */
} moec_digests;

moec_status moec_digests_init(moec_digests *d, const moec_plan *plan,
                              moec_error *err);
void moec_digests_fini(moec_digests *d);

/* First leaf of a block; empty slots have leaves of their own. */
uint64_t moec_digests_block(const moec_digests *d, size_t layer, size_t t,
                            uint32_t unit);

/* Digest `n` bytes that begin at byte `from` (a multiple of a leaf) of the
 * content whose first leaf is `base`. */
moec_status moec_digests_leaves(moec_digests *d, uint64_t base, uint64_t from,
                                const void *data, size_t n, moec_error *err);

static inline uint64_t moec_n_leaves(uint64_t bytes)
{
    return moec_ceil_div(bytes, MOEC_LEAF_BYTES);
}

#endif
