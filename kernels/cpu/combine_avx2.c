/* SPDX-License-Identifier: Apache-2.0
 *
 * moec_combine_scalar in 8 lanes, 64 elements at a time. */

#include <immintrin.h>
#include <stddef.h>

#include "combine.h"

#define LANES 8u
#define STEP  8u /* vectors in registers */

/* acc += weight * y, elements from h on. */
static inline void add_term(__m256 *acc, float weight, const float *y,
                            uint32_t n)
{
    __m256 w = _mm256_set1_ps(weight);

    for (uint32_t i = 0; i < n; i++)
        acc[i] = _mm256_add_ps(
            acc[i], _mm256_mul_ps(w, _mm256_loadu_ps(y + (size_t)i * LANES)));
}

static inline void combine(const moec_combine_terms *s, uint32_t h, uint32_t n,
                           float *out)
{
    __m256 acc[STEP], scale = _mm256_set1_ps(s->scale);
    uint32_t c = 0;

    for (uint32_t i = 0; i < n; i++)
        acc[i] =
            s->x ? _mm256_mul_ps(_mm256_set1_ps(s->identity),
                                 _mm256_loadu_ps(s->x + h + (size_t)i * LANES))
                 : _mm256_setzero_ps();
    for (; c < s->n_scaled; c++)
        add_term(acc, s->weights[c], s->y[c] + h, n);
    for (uint32_t i = 0; i < n; i++)
        acc[i] = _mm256_mul_ps(acc[i], scale);
    for (; c < s->n; c++)
        add_term(acc, s->weights[c], s->y[c] + h, n);
    for (uint32_t i = 0; i < n; i++)
        _mm256_storeu_ps(out + h + (size_t)i * LANES, acc[i]);
}

/* Elements from h on, fewer than a vector. */
static void combine_tail(const moec_combine_terms *s, uint32_t h, uint32_t n,
                         float *out)
{
    for (; h < n; h++) {
        float acc = s->x ? s->identity * s->x[h] : 0.0f;
        uint32_t c = 0;

        for (; c < s->n_scaled; c++)
            acc += s->weights[c] * s->y[c][h];
        acc *= s->scale;
        for (; c < s->n; c++)
            acc += s->weights[c] * s->y[c][h];
        out[h] = acc;
    }
}

void moec_combine_avx2(const moec_combine_terms *s, uint32_t n, float *out)
{
    uint32_t h = 0;

    for (; n - h >= LANES * STEP; h += LANES * STEP)
        combine(s, h, STEP, out);
    for (; n - h >= LANES; h += LANES)
        combine(s, h, 1, out);
    combine_tail(s, h, n, out);
}
