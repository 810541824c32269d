/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_ALIGN_H
#define MOEC_ALIGN_H

/*
 * What this is: the part of moec_align that instruction sets differ in:
 *   picking out the columns of a range of slots.
 */

#include <stdint.h>

/* Columns picked out at a time, and what the two lists must have room for. */
#define MOEC_ALIGN_BATCH 1024u
#define MOEC_ALIGN_ROOM  (MOEC_ALIGN_BATCH + 16)

/* For every slot of slots[n], n <= BATCH, that lies in [first, first + range),
 * in order: its number - first into own[], its index + base into found[],
 * which may be NULL. Returns how many; entries behind them are written too. */
typedef uint32_t (*moec_align_pick_fn)(const int32_t *slots, uint32_t n,
                                       uint32_t first, uint32_t range,
                                       uint32_t base, uint32_t *own,
                                       uint32_t *found);

uint32_t moec_align_pick_scalar(const int32_t *slots, uint32_t n,
                                uint32_t first, uint32_t range, uint32_t base,
                                uint32_t *own, uint32_t *found);
uint32_t moec_align_pick_avx512(const int32_t *slots, uint32_t n,
                                uint32_t first, uint32_t range, uint32_t base,
                                uint32_t *own, uint32_t *found);

#endif
