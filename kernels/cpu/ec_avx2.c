/* SPDX-License-Identifier: Apache-2.0
 *
 * The scans of Expert Choice, 8 keys at a time. AVX2 compares signed: keys are
 * compared with their top bit flipped. */

#include <immintrin.h>

#include "ec.h"

static inline __m256i load(const uint32_t *p)
{
    return _mm256_loadu_si256((const void *)p);
}

static inline __m256i splat(uint32_t v)
{
    return _mm256_set1_epi32((int)v);
}

static inline __m256i flip(__m256i v)
{
    return _mm256_xor_si256(v, splat(0x80000000u));
}

/* a > b, unsigned, as ones. */
static inline __m256i greater(__m256i a, __m256i b)
{
    return _mm256_cmpgt_epi32(flip(a), flip(b));
}

static inline uint32_t mask_of(__m256i v)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(v));
}

static uint32_t reduce_max(__m256i v)
{
    __m128i m = _mm_max_epu32(_mm256_castsi256_si128(v),
                              _mm256_extracti128_si256(v, 1));

    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(m);
}

static uint32_t above(const uint32_t *cols, const uint32_t *floors,
                      uint32_t stride, uint16_t *ids)
{
    uint32_t n = 0;

    for (uint32_t e = 0; e < stride; e += 16) {
        uint32_t m = mask_of(greater(load(cols + e), load(floors + e)));

        m |= mask_of(greater(load(cols + e + 8), load(floors + e + 8))) << 8;
        for (; m; m &= m - 1)
            ids[n++] = (uint16_t)(e + (uint32_t)__builtin_ctz(m));
    }
    return n;
}

static inline __m256i load_pairs(const uint64_t *p)
{
    return _mm256_xor_si256(_mm256_loadu_si256((const void *)p),
                            _mm256_set1_epi64x(INT64_MIN));
}

/* Counts of what is below v are negative sums of the compares' ones. */
static uint32_t reach(const uint64_t *pairs, uint32_t n, uint64_t v)
{
    const __m256i w = _mm256_xor_si256(_mm256_set1_epi64x((long long)v),
                                       _mm256_set1_epi64x(INT64_MIN));
    __m256i below = _mm256_setzero_si256();
    uint64_t lane[4];
    uint32_t i = 0, count;

    for (; i + 4 <= n; i += 4)
        below = _mm256_sub_epi64(below,
                                 _mm256_cmpgt_epi64(w, load_pairs(pairs + i)));
    _mm256_storeu_si256((void *)lane, below);
    count = i - (uint32_t)(lane[0] + lane[1] + lane[2] + lane[3]);
    for (; i < n; i++)
        count += pairs[i] >= v;
    return count;
}

static uint64_t largest(const uint64_t *pairs, uint32_t n)
{
    __m256i most = _mm256_set1_epi64x(INT64_MIN);
    uint64_t lane[4], v = 0;
    uint32_t i = 0;

    for (; i + 4 <= n; i += 4) {
        __m256i x = load_pairs(pairs + i);

        most = _mm256_blendv_epi8(most, x, _mm256_cmpgt_epi64(x, most));
    }
    _mm256_storeu_si256((void *)lane,
                        _mm256_xor_si256(most, _mm256_set1_epi64x(INT64_MIN)));
    for (uint32_t j = 0; j < 4; j++)
        v = lane[j] > v ? lane[j] : v;
    for (; i < n; i++)
        v = pairs[i] > v ? pairs[i] : v;
    return v;
}

static __m256i floors_of_8(const uint32_t *keys, uint32_t n, uint32_t rank)
{
    __m256i lo = _mm256_setzero_si256();

    for (uint32_t bit = UINT32_C(1) << 31; bit > 1 << 13; bit >>= 1) {
        __m256i v = _mm256_or_si256(lo, splat(bit)), w = flip(v);
        __m256i count = _mm256_setzero_si256(), enough;

        for (uint32_t i = 0; i < n; i++)
            count = _mm256_sub_epi32(
                count,
                _mm256_cmpgt_epi32(flip(load(keys + (size_t)i * 16)), w));
        enough = _mm256_cmpgt_epi32(splat(rank), count);
        lo = _mm256_blendv_epi8(v, lo, enough);
    }
    return lo;
}

static void floors(const uint32_t *keys, uint32_t n, uint32_t rank,
                   uint32_t *out)
{
    _mm256_storeu_si256((void *)out, floors_of_8(keys, n, rank));
    _mm256_storeu_si256((void *)(out + 8), floors_of_8(keys + 8, n, rank));
}

static uint32_t next(const uint32_t *keys, const uint32_t *open,
                     uint32_t stride, uint32_t last_key, uint32_t last_id)
{
    const __m256i key = splat(last_key), id = splat(last_id);
    __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i most = _mm256_setzero_si256(), at = splat(UINT32_MAX);
    uint32_t top, m, ids[8], first = UINT32_MAX;

    for (uint32_t e = 0; e < stride; e += 8) {
        __m256i k = _mm256_and_si256(load(keys + e), load(open + e));
        __m256i behind = _mm256_and_si256(_mm256_cmpeq_epi32(k, key),
                                          _mm256_cmpgt_epi32(lanes, id));

        behind = _mm256_or_si256(behind, greater(key, k));
        behind = _mm256_and_si256(behind, greater(k, most));
        most = _mm256_blendv_epi8(most, k, behind);
        at = _mm256_blendv_epi8(at, lanes, behind);
        lanes = _mm256_add_epi32(lanes, splat(8));
    }
    top = reduce_max(most);
    _mm256_storeu_si256((void *)ids, at);
    for (m = mask_of(_mm256_cmpeq_epi32(most, splat(top))); m; m &= m - 1) {
        uint32_t e = ids[__builtin_ctz(m)];

        first = e < first ? e : first;
    }
    return first;
}

const struct moec_ec_fns moec_ec_avx2 = {
    .above = above,
    .reach = reach,
    .largest = largest,
    .keep = moec_ec_keep_scalar,
    .floors = floors,
    .best = moec_ec_best_scalar,
    .next = next,
};
