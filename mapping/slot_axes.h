/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_SLOT_AXES_H
#define MOEC_SLOT_AXES_H

/*
 * What this is: a slot of a slot tensor as one or two halves of a matrix, for
 *   those who lay it out with gaps or take a part of it.
 * Lifetime: a plain value. Threads: immutable.
 */

#include <stdbool.h>

#include <moec/mapping.h>

/* Along which axis of a half an expert's width I runs. */
typedef enum moec_cut {
    MOEC_CUT_NONE = 0, /* along none: every part has all of it */
    MOEC_CUT_ROWS = 1,
    MOEC_CUT_COLS = 2,
    MOEC_CUT_NEVER = 3 /* a part of it means nothing */
} moec_cut;

/* Element (r, c) of half h stands, in the slot's bytes, at
 *   ((h * n_rows + r) * n_cols + c) * elem, or with half_in_columns at
 *   (r * n_halves * n_cols + h * n_cols + c) * elem. */
typedef struct moec_slot_axes {
    uint32_t elem; /* bytes */
    uint32_t n_halves;
    uint64_t n_rows, n_cols; /* of a half */
    uint32_t half_in_columns;
    uint32_t cut;   /* moec_cut */
    uint32_t block; /* features that one element along the cut axis scales, of
                       the config's blocks; 0: an equal share */
} moec_slot_axes;

/* Axes of slot tensor `t` of planned layer `layer`: plan.c. */
moec_slot_axes moec_plan_slot_axes(const moec_plan *plan, size_t layer,
                                   size_t t);

/* Features that one of `n` equal blocks of `whole` covers; 0 where that is not
 * to be told. Without a stated length it is a power of two: 192 features in 2
 * blocks are 128 + 64. */
uint64_t moec_scale_block(uint64_t n, uint64_t whole);

/* moec_slot_matrix for `n_rows` rows in memory, not all of a rank. */
moec_status moec_slot_matrix_rows(const moec_plan *plan, size_t layer,
                                  int is_w2, uint32_t n_rows,
                                  const void *const *data, moec_matrix *out,
                                  moec_error *err);

#endif
