/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_COMBINE_H
#define MOEC_COMBINE_H

/*
 * What this is: the inner loop of moec_combine, one for each instruction set.
 * Every one does the same additions and multiplications in the same order,
 * none of them fused, so that all give the same bits.
 */

#include <stdint.h>

/* One token's terms: n rows of y with their weights, in column order. The
 * first n_scaled, and the identity before them, are multiplied by scale
 * before the others are added. */
typedef struct moec_combine_terms {
    const float *const *y;
    const float *weights;
    uint32_t n, n_scaled;
    const float *x; /* NULL: no identity */
    float identity, scale;
} moec_combine_terms;

/* out[0 .. n) for n elements; rows of y and x begin at element 0. */
typedef void (*moec_combine_fn)(const moec_combine_terms *terms, uint32_t n,
                                float *out);

void moec_combine_scalar(const moec_combine_terms *terms, uint32_t n,
                         float *out);
void moec_combine_avx2(const moec_combine_terms *terms, uint32_t n, float *out);
void moec_combine_avx512(const moec_combine_terms *terms, uint32_t n,
                         float *out);

#endif
