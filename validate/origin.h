/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_ORIGIN_H
#define MOEC_ORIGIN_H

/*
 * What this is: the layout contract said backwards: from a byte of a slot to
 *   the byte of the source slice that must stand there. It knows the slice's
 *   geometry and the slot tensor's shape, and nothing of moves or of the
 *   plan's way to make them: the two must agree, which is what T3 and T5
 *   prove.
 * Threads: plain values.
 */

#include <stdbool.h>

#include <moec/mapping.h>

#include "model.h"

typedef struct moec_origin {
    const moec_slice *s;
    bool w2, up_first;
    bool repeated;      /* every part of the shared expert has all of it */
    uint32_t n_halves;  /* gate and up: 2; ungated and w2: 1 */
    uint64_t elem;      /* bytes; 1 where elements are smaller */
    uint64_t row_bytes; /* of one output of the slot (KEPT: of one input) */
    uint64_t half_out;  /* outputs of one half of the slot */
    uint64_t slice_row; /* bytes of one output of the slice */
    uint64_t slice_out; /* outputs of the slice, both halves where joined */
    uint64_t slice_half;
    uint64_t inputs; /* KEPT: of the slot */
} moec_origin;

/* Work out how one slot of `t` comes from slice `s`, cut into `n_parts` (1:
 * whole). `n_halves` is 2 where gate and up are joined. Returns NULL, or why
 * the slot's dtype or shape does not follow from the slice's (static text). */
const char *moec_origin_init(moec_origin *o, const moec_slot_tensor *t,
                             const moec_slice *s, uint32_t n_halves,
                             uint32_t n_parts, moec_w13_order order);

/* Say which byte of the slice stands at byte `at` of the slot of part `part`
 * (0 where not cut). False where `at` belongs to the other projection. */
bool moec_origin_of(const moec_origin *o, uint32_t part, uint64_t at,
                    uint64_t *src_out);

#endif
