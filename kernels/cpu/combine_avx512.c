/* SPDX-License-Identifier: Apache-2.0
 *
 * moec_combine_scalar in 16 lanes, 64 elements at a time, the rest under a
 * mask. Longer steps and prefetching by hand were no faster on Zen 4: rows in
 * the second cache come at memcpy's rate, rows in memory above it. */

#include <immintrin.h>
#include <stddef.h>

#include "combine.h"

#define LANES 16u
#define STEP  4u /* vectors in registers */

/* acc += weight * y. */
static inline void add_term(__m512 *acc, float weight, const float *y,
                            uint32_t n)
{
    __m512 w = _mm512_set1_ps(weight);

    for (uint32_t i = 0; i < n; i++)
        acc[i] = _mm512_add_ps(
            acc[i], _mm512_mul_ps(w, _mm512_loadu_ps(y + (size_t)i * LANES)));
}

static inline void combine(const moec_combine_terms *s, uint32_t h, uint32_t n,
                           float *out)
{
    __m512 acc[STEP], scale = _mm512_set1_ps(s->scale);
    uint32_t c = 0;

    for (uint32_t i = 0; i < n; i++)
        acc[i] =
            s->x ? _mm512_mul_ps(_mm512_set1_ps(s->identity),
                                 _mm512_loadu_ps(s->x + h + (size_t)i * LANES))
                 : _mm512_setzero_ps();
    for (; c < s->n_scaled; c++)
        add_term(acc, s->weights[c], s->y[c] + h, n);
    for (uint32_t i = 0; i < n; i++)
        acc[i] = _mm512_mul_ps(acc[i], scale);
    for (; c < s->n; c++)
        add_term(acc, s->weights[c], s->y[c] + h, n);
    for (uint32_t i = 0; i < n; i++)
        _mm512_storeu_ps(out + h + (size_t)i * LANES, acc[i]);
}

/* Lanes of `m`, from element h on. */
static void combine_masked(const moec_combine_terms *s, uint32_t h, __mmask16 m,
                           float *out)
{
    __m512 acc = _mm512_setzero_ps();
    uint32_t c = 0;

    if (s->x)
        acc = _mm512_mul_ps(_mm512_set1_ps(s->identity),
                            _mm512_maskz_loadu_ps(m, s->x + h));
    for (; c < s->n_scaled; c++)
        acc = _mm512_add_ps(
            acc, _mm512_mul_ps(_mm512_set1_ps(s->weights[c]),
                               _mm512_maskz_loadu_ps(m, s->y[c] + h)));
    acc = _mm512_mul_ps(acc, _mm512_set1_ps(s->scale));
    for (; c < s->n; c++)
        acc = _mm512_add_ps(
            acc, _mm512_mul_ps(_mm512_set1_ps(s->weights[c]),
                               _mm512_maskz_loadu_ps(m, s->y[c] + h)));
    _mm512_mask_storeu_ps(out + h, m, acc);
}

void moec_combine_avx512(const moec_combine_terms *s, uint32_t n, float *out)
{
    uint32_t h = 0;

    for (; n - h >= LANES * STEP; h += LANES * STEP)
        combine(s, h, STEP, out);
    for (; n - h >= LANES; h += LANES)
        combine(s, h, 1, out);
    if (h < n)
        combine_masked(s, h, (__mmask16)((1u << (n - h)) - 1), out);
}
