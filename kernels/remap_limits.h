/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_REMAP_LIMITS_H
#define MOEC_REMAP_LIMITS_H

/* What this is: the sizes that a dispatch accepts, for the CPU and for CUDA. */

#include <stdint.h>

/* More slots than any layout has; below it a division by n_local is one
 * multiplication (moec_divider). */
#define MOEC_SLOTS_MAX      (UINT32_C(1) << 20)
#define MOEC_TOP_K_MAX      64u
#define MOEC_WATERFILL_MAX  1024u /* ranks */
#define MOEC_WATERFILL_ROWS 64u   /* smaller batches stay at home */

/* x / n for x, n <= 2^20: m = ceil(2^40 / n) is too large by less than one
 * part in 2^40 / n, and x < 2^20 of such errors do not reach the next
 * integer. */
static inline uint64_t moec_divider(uint32_t n)
{
    return ((UINT64_C(1) << 40) + n - 1) / n;
}

#endif
