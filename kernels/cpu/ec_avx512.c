/* SPDX-License-Identifier: Apache-2.0
 *
 * The scans of Expert Choice, 16 keys at a time. Each loop does what the one
 * in ec_scalar.c does, in another order where the order does not show. */

#include <immintrin.h>
#include <string.h>

#include "ec.h"

#define BEST_MAX 64u /* pairs that are ranked by counting */

static inline __m512i load(const uint32_t *p)
{
    return _mm512_loadu_si512(p);
}

static inline __m512i splat(uint32_t v)
{
    return _mm512_set1_epi32((int)v);
}

static inline uint32_t bits(uint32_t mask)
{
    return (uint32_t)__builtin_popcount(mask);
}

static uint32_t above(const uint32_t *cols, const uint32_t *floors,
                      uint32_t stride, uint16_t *ids)
{
    const __m256i lanes =
        _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    uint32_t n = 0;

    for (uint32_t e = 0; e < stride; e += 16) {
        __mmask16 m = _mm512_cmpgt_epu32_mask(load(cols + e), load(floors + e));
        __m256i id = _mm256_add_epi16(lanes, _mm256_set1_epi16((short)e));

        _mm256_storeu_si256((void *)(ids + n),
                            _mm256_maskz_compress_epi16(m, id));
        n += bits(m);
    }
    return n;
}

/* The first left of 8 pairs. */
static inline __mmask8 first_of(uint32_t left)
{
    return (__mmask8)(left < 8 ? (1u << left) - 1 : 0xff);
}

static uint32_t reach(const uint64_t *pairs, uint32_t n, uint64_t v)
{
    const __m512i w = _mm512_set1_epi64((long long)v);
    const __m512i one = _mm512_set1_epi64(1);
    __m512i a = _mm512_setzero_si512(), b = a;
    uint32_t i = 0;

    for (; i + 16 <= n; i += 16) {
        __m512i x = _mm512_loadu_si512(pairs + i);
        __m512i y = _mm512_loadu_si512(pairs + i + 8);

        a = _mm512_mask_add_epi64(a, _mm512_cmpge_epu64_mask(x, w), a, one);
        b = _mm512_mask_add_epi64(b, _mm512_cmpge_epu64_mask(y, w), b, one);
    }
    for (; i < n; i += 8) {
        __mmask8 in = first_of(n - i);
        __m512i x = _mm512_maskz_loadu_epi64(in, pairs + i);

        a = _mm512_mask_add_epi64(a, _mm512_mask_cmpge_epu64_mask(in, x, w), a,
                                  one);
    }
    return (uint32_t)_mm512_reduce_add_epi64(_mm512_add_epi64(a, b));
}

static uint64_t largest(const uint64_t *pairs, uint32_t n)
{
    __m512i a = _mm512_setzero_si512();

    for (uint32_t i = 0; i < n; i += 8)
        a = _mm512_max_epu64(
            a, _mm512_maskz_loadu_epi64(first_of(n - i), pairs + i));
    return _mm512_reduce_max_epu64(a);
}

/* The stores reach at most to the end of what has been loaded. */
static uint32_t keep(uint64_t *pairs, uint32_t n, uint32_t v, uint32_t *ties)
{
    const __m512i low = _mm512_set1_epi64((long long)MOEC_EC_PAIR(v, 0));
    const __m512i high =
        _mm512_set1_epi64((long long)MOEC_EC_PAIR(v, UINT32_MAX));
    uint32_t kept = 0, left = *ties;

    for (uint32_t i = 0; i < n; i += 8) {
        __mmask8 in = first_of(n - i);
        __m512i x = _mm512_maskz_loadu_epi64(in, pairs + i);
        uint32_t take = _mm512_mask_cmpgt_epu64_mask(in, x, high);
        uint32_t tied = _mm512_mask_cmpge_epu64_mask(in, x, low) & ~take;

        for (; tied && left; left--) {
            take |= tied & -tied;
            tied &= tied - 1;
        }
        _mm512_storeu_si512(pairs + kept,
                            _mm512_maskz_compress_epi64((__mmask8)take, x));
        kept += bits(take);
    }
    *ties = left;
    return kept;
}

static void floors(const uint32_t *keys, uint32_t n, uint32_t rank,
                   uint32_t *out)
{
    const __m512i one = splat(1), want = splat(rank);
    __m512i lo = _mm512_setzero_si512();

    for (uint32_t bit = UINT32_C(1) << 31; bit > 1 << 13; bit >>= 1) {
        __m512i v = _mm512_or_si512(lo, splat(bit));
        __m512i a = _mm512_setzero_si512(), b = a;
        uint32_t i = 0;

        for (; i + 2 <= n; i += 2) {
            const uint32_t *row = keys + (size_t)i * 16;

            a = _mm512_mask_add_epi32(a, _mm512_cmpgt_epu32_mask(load(row), v),
                                      a, one);
            b = _mm512_mask_add_epi32(
                b, _mm512_cmpgt_epu32_mask(load(row + 16), v), b, one);
        }
        if (i < n)
            a = _mm512_mask_add_epi32(
                a, _mm512_cmpgt_epu32_mask(load(keys + (size_t)i * 16), v), a,
                one);
        lo = _mm512_mask_mov_epi32(
            lo, _mm512_cmpge_epu32_mask(_mm512_add_epi32(a, b), want), v);
    }
    _mm512_storeu_si512(out, lo);
}

/* The place of a pair is the number of larger ones: n * n / 8 compares and no
 * branch on the data. */
static uint32_t best(uint64_t *pairs, uint32_t n, uint32_t k)
{
    uint32_t blocks = (n + 7) / 8;
    __m512i v[BEST_MAX / 8];
    uint64_t ranked[BEST_MAX];

    if (n > BEST_MAX)
        return moec_ec_best_scalar(pairs, n, k);
    for (uint32_t b = 0; b < blocks; b++)
        v[b] = _mm512_maskz_loadu_epi64(first_of(n - 8 * b), pairs + 8 * b);
    for (uint32_t i = 0; i < n; i++) {
        __m512i p = _mm512_set1_epi64((long long)pairs[i]);
        uint32_t place = 0;

        for (uint32_t b = 0; b < blocks; b++)
            place += bits(_mm512_cmpgt_epu64_mask(v[b], p));
        ranked[place] = pairs[i];
    }
    memcpy(pairs, ranked, n * sizeof(*pairs));
    return n < k ? n : k;
}

static uint32_t next(const uint32_t *keys, const uint32_t *open,
                     uint32_t stride, uint32_t last_key, uint32_t last_id)
{
    const __m512i key = splat(last_key), id = splat(last_id);
    __m512i lanes =
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i most = _mm512_setzero_si512(), at = splat(UINT32_MAX);
    uint32_t top;

    for (uint32_t e = 0; e < stride; e += 16) {
        __m512i k = _mm512_and_si512(load(keys + e), load(open + e));
        __mmask16 m = _mm512_cmplt_epu32_mask(k, key);

        m |= _mm512_mask_cmpgt_epu32_mask(_mm512_cmpeq_epu32_mask(k, key),
                                          lanes, id);
        m = _mm512_mask_cmpgt_epu32_mask(m, k, most);
        most = _mm512_mask_mov_epi32(most, m, k);
        at = _mm512_mask_mov_epi32(at, m, lanes);
        lanes = _mm512_add_epi32(lanes, splat(16));
    }
    top = _mm512_reduce_max_epu32(most);
    return _mm512_mask_reduce_min_epu32(
        _mm512_cmpeq_epu32_mask(most, splat(top)), at);
}

const struct moec_ec_fns moec_ec_avx512 = {
    .above = above,
    .reach = reach,
    .largest = largest,
    .keep = keep,
    .floors = floors,
    .best = best,
    .next = next,
};
