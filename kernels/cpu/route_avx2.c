/* SPDX-License-Identifier: Apache-2.0
 *
 * The vectors of route_vec.h in AVX2: two registers of eight each. There is
 * no compress: a table of 256 orders stands in. There is no unsigned 64-bit
 * maximum either: a rank is put into the mantissa of a double between 1 and 2,
 * where max and min of doubles order it, whatever the mode for denormals. */

#include <immintrin.h>
#include <string.h>

#include "route.h"

typedef struct vf {
    __m256 a, b;
} vf;
typedef struct vi {
    __m256i a, b;
} vi;
typedef struct vq {
    __m256d a, b;
} vq;
typedef struct vm {
    __m256 a, b;
} vm;

/* The set bits of a mask, packed, a byte each. */
/* clang-format off */
static const uint64_t packed[256] = {
    0x0000000000000000, 0x0000000000000000, 0x0000000000000001,
    0x0000000000000100, 0x0000000000000002, 0x0000000000000200,
    0x0000000000000201, 0x0000000000020100, 0x0000000000000003,
    0x0000000000000300, 0x0000000000000301, 0x0000000000030100,
    0x0000000000000302, 0x0000000000030200, 0x0000000000030201,
    0x0000000003020100, 0x0000000000000004, 0x0000000000000400,
    0x0000000000000401, 0x0000000000040100, 0x0000000000000402,
    0x0000000000040200, 0x0000000000040201, 0x0000000004020100,
    0x0000000000000403, 0x0000000000040300, 0x0000000000040301,
    0x0000000004030100, 0x0000000000040302, 0x0000000004030200,
    0x0000000004030201, 0x0000000403020100, 0x0000000000000005,
    0x0000000000000500, 0x0000000000000501, 0x0000000000050100,
    0x0000000000000502, 0x0000000000050200, 0x0000000000050201,
    0x0000000005020100, 0x0000000000000503, 0x0000000000050300,
    0x0000000000050301, 0x0000000005030100, 0x0000000000050302,
    0x0000000005030200, 0x0000000005030201, 0x0000000503020100,
    0x0000000000000504, 0x0000000000050400, 0x0000000000050401,
    0x0000000005040100, 0x0000000000050402, 0x0000000005040200,
    0x0000000005040201, 0x0000000504020100, 0x0000000000050403,
    0x0000000005040300, 0x0000000005040301, 0x0000000504030100,
    0x0000000005040302, 0x0000000504030200, 0x0000000504030201,
    0x0000050403020100, 0x0000000000000006, 0x0000000000000600,
    0x0000000000000601, 0x0000000000060100, 0x0000000000000602,
    0x0000000000060200, 0x0000000000060201, 0x0000000006020100,
    0x0000000000000603, 0x0000000000060300, 0x0000000000060301,
    0x0000000006030100, 0x0000000000060302, 0x0000000006030200,
    0x0000000006030201, 0x0000000603020100, 0x0000000000000604,
    0x0000000000060400, 0x0000000000060401, 0x0000000006040100,
    0x0000000000060402, 0x0000000006040200, 0x0000000006040201,
    0x0000000604020100, 0x0000000000060403, 0x0000000006040300,
    0x0000000006040301, 0x0000000604030100, 0x0000000006040302,
    0x0000000604030200, 0x0000000604030201, 0x0000060403020100,
    0x0000000000000605, 0x0000000000060500, 0x0000000000060501,
    0x0000000006050100, 0x0000000000060502, 0x0000000006050200,
    0x0000000006050201, 0x0000000605020100, 0x0000000000060503,
    0x0000000006050300, 0x0000000006050301, 0x0000000605030100,
    0x0000000006050302, 0x0000000605030200, 0x0000000605030201,
    0x0000060503020100, 0x0000000000060504, 0x0000000006050400,
    0x0000000006050401, 0x0000000605040100, 0x0000000006050402,
    0x0000000605040200, 0x0000000605040201, 0x0000060504020100,
    0x0000000006050403, 0x0000000605040300, 0x0000000605040301,
    0x0000060504030100, 0x0000000605040302, 0x0000060504030200,
    0x0000060504030201, 0x0006050403020100, 0x0000000000000007,
    0x0000000000000700, 0x0000000000000701, 0x0000000000070100,
    0x0000000000000702, 0x0000000000070200, 0x0000000000070201,
    0x0000000007020100, 0x0000000000000703, 0x0000000000070300,
    0x0000000000070301, 0x0000000007030100, 0x0000000000070302,
    0x0000000007030200, 0x0000000007030201, 0x0000000703020100,
    0x0000000000000704, 0x0000000000070400, 0x0000000000070401,
    0x0000000007040100, 0x0000000000070402, 0x0000000007040200,
    0x0000000007040201, 0x0000000704020100, 0x0000000000070403,
    0x0000000007040300, 0x0000000007040301, 0x0000000704030100,
    0x0000000007040302, 0x0000000704030200, 0x0000000704030201,
    0x0000070403020100, 0x0000000000000705, 0x0000000000070500,
    0x0000000000070501, 0x0000000007050100, 0x0000000000070502,
    0x0000000007050200, 0x0000000007050201, 0x0000000705020100,
    0x0000000000070503, 0x0000000007050300, 0x0000000007050301,
    0x0000000705030100, 0x0000000007050302, 0x0000000705030200,
    0x0000000705030201, 0x0000070503020100, 0x0000000000070504,
    0x0000000007050400, 0x0000000007050401, 0x0000000705040100,
    0x0000000007050402, 0x0000000705040200, 0x0000000705040201,
    0x0000070504020100, 0x0000000007050403, 0x0000000705040300,
    0x0000000705040301, 0x0000070504030100, 0x0000000705040302,
    0x0000070504030200, 0x0000070504030201, 0x0007050403020100,
    0x0000000000000706, 0x0000000000070600, 0x0000000000070601,
    0x0000000007060100, 0x0000000000070602, 0x0000000007060200,
    0x0000000007060201, 0x0000000706020100, 0x0000000000070603,
    0x0000000007060300, 0x0000000007060301, 0x0000000706030100,
    0x0000000007060302, 0x0000000706030200, 0x0000000706030201,
    0x0000070603020100, 0x0000000000070604, 0x0000000007060400,
    0x0000000007060401, 0x0000000706040100, 0x0000000007060402,
    0x0000000706040200, 0x0000000706040201, 0x0000070604020100,
    0x0000000007060403, 0x0000000706040300, 0x0000000706040301,
    0x0000070604030100, 0x0000000706040302, 0x0000070604030200,
    0x0000070604030201, 0x0007060403020100, 0x0000000000070605,
    0x0000000007060500, 0x0000000007060501, 0x0000000706050100,
    0x0000000007060502, 0x0000000706050200, 0x0000000706050201,
    0x0000070605020100, 0x0000000007060503, 0x0000000706050300,
    0x0000000706050301, 0x0000070605030100, 0x0000000706050302,
    0x0000070605030200, 0x0000070605030201, 0x0007060503020100,
    0x0000000007060504, 0x0000000706050400, 0x0000000706050401,
    0x0000070605040100, 0x0000000706050402, 0x0000070605040200,
    0x0000070605040201, 0x0007060504020100, 0x0000000706050403,
    0x0000070605040300, 0x0000070605040301, 0x0007060504030100,
    0x0000070605040302, 0x0007060504030200, 0x0007060504030201,
    0x0706050403020100,
};

#define VF2(name, op)                                                         \
  static inline vf name(vf x, vf y)                                           \
  {                                                                           \
      vf z = {op(x.a, y.a), op(x.b, y.b)};                                    \
      return z;                                                               \
  }
#define VI2(name, op)                                                         \
  static inline vi name(vi x, vi y)                                           \
  {                                                                           \
      vi z = {op(x.a, y.a), op(x.b, y.b)};                                    \
      return z;                                                               \
  }
VF2(vf_add, _mm256_add_ps)
VF2(vf_sub, _mm256_sub_ps)
VF2(vf_mul, _mm256_mul_ps)
VF2(vf_div, _mm256_div_ps)
VF2(vf_min, _mm256_min_ps)
VF2(vf_max, _mm256_max_ps)
VF2(vf_unpack_low, _mm256_unpacklo_ps)
VF2(vf_unpack_high, _mm256_unpackhi_ps)
VI2(vi_add, _mm256_add_epi32)
VI2(vi_and, _mm256_and_si256)
VI2(vi_or, _mm256_or_si256)
VI2(vi_xor, _mm256_xor_si256)
/* clang-format on */

static inline vf vf_set(float x)
{
    vf z = {_mm256_set1_ps(x), _mm256_set1_ps(x)};

    return z;
}

static inline vf vf_load(const void *p)
{
    const float *f = p;
    vf z = {_mm256_loadu_ps(f), _mm256_loadu_ps(f + 8)};

    return z;
}

static inline void vf_store(void *p, vf v)
{
    float *f = p;

    _mm256_storeu_ps(f, v.a);
    _mm256_storeu_ps(f + 8, v.b);
}

static inline vf vf_sqrt(vf x)
{
    vf z = {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)};

    return z;
}

static inline vf vf_fma(vf x, vf y, vf w)
{
    vf z = {_mm256_fmadd_ps(x.a, y.a, w.a), _mm256_fmadd_ps(x.b, y.b, w.b)};

    return z;
}

/* 1/x to 1.5 * 2^-12. */
static inline vf vf_rcp(vf x)
{
    vf z = {_mm256_rcp_ps(x.a), _mm256_rcp_ps(x.b)};

    return z;
}

static inline vm vf_ge(vf x, vf y)
{
    vm z = {_mm256_cmp_ps(x.a, y.a, _CMP_GE_OQ),
            _mm256_cmp_ps(x.b, y.b, _CMP_GE_OQ)};

    return z;
}

static inline vm vf_gt(vf x, vf y)
{
    vm z = {_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ),
            _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ)};

    return z;
}

static inline vm vf_eq0(vf x)
{
    vm z = {_mm256_cmp_ps(x.a, _mm256_setzero_ps(), _CMP_EQ_OQ),
            _mm256_cmp_ps(x.b, _mm256_setzero_ps(), _CMP_EQ_OQ)};

    return z;
}

static inline vm vm_and(vm x, vm y)
{
    vm z = {_mm256_and_ps(x.a, y.a), _mm256_and_ps(x.b, y.b)};

    return z;
}

static inline uint32_t vm_count(vm m)
{
    uint32_t bits = (uint32_t)_mm256_movemask_ps(m.a) |
                    (uint32_t)_mm256_movemask_ps(m.b) << 8;

    return (uint32_t)__builtin_popcount(bits);
}

static inline vf vf_sel(vm m, vf x, vf y)
{
    vf z = {_mm256_blendv_ps(y.a, x.a, m.a), _mm256_blendv_ps(y.b, x.b, m.b)};

    return z;
}

static inline vf vf_maskz(vm m, vf x)
{
    vf z = {_mm256_and_ps(m.a, x.a), _mm256_and_ps(m.b, x.b)};

    return z;
}

static inline vi vf_as_i(vf x)
{
    vi z = {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)};

    return z;
}

static inline vf vi_as_f(vi x)
{
    vf z = {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)};

    return z;
}

static inline vi vi_set(uint32_t x)
{
    vi z = {_mm256_set1_epi32((int)x), _mm256_set1_epi32((int)x)};

    return z;
}

static inline vi vi_iota(void)
{
    vi z = {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
            _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};

    return z;
}

static inline vi vi_load(const void *p)
{
    const __m256i_u *w = p;
    vi z = {_mm256_loadu_si256(w), _mm256_loadu_si256(w + 1)};

    return z;
}

static inline void vi_store(void *p, vi v)
{
    __m256i_u *w = p;

    _mm256_storeu_si256(w, v.a);
    _mm256_storeu_si256(w + 1, v.b);
}

static inline vi vi_sll(vi x, int n)
{
    vi z = {_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)};

    return z;
}

static inline vi vi_srl(vi x, int n)
{
    vi z = {_mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n)};

    return z;
}

static inline vi vi_sra(vi x, int n)
{
    vi z = {_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)};

    return z;
}

static inline vm vi_as_mask(vi x)
{
    vf z = vi_as_f(x);
    vm m = {z.a, z.b};

    return m;
}

static inline vm vi_lt(vi x, vi y)
{
    vi z = {_mm256_cmpgt_epi32(y.a, x.a), _mm256_cmpgt_epi32(y.b, x.b)};

    return vi_as_mask(z);
}

static inline vi vi_maskz(vm m, vi x)
{
    return vf_as_i(vf_maskz(m, vi_as_f(x)));
}

static inline vi vi_ones_where_zero(vi x)
{
    vi z = {_mm256_cmpeq_epi32(x.a, _mm256_setzero_si256()),
            _mm256_cmpeq_epi32(x.b, _mm256_setzero_si256())};

    return z;
}

/* x + 1 where m */
static inline vi vi_sub_mask(vi x, vm m)
{
    vi z = {_mm256_sub_epi32(x.a, _mm256_castps_si256(m.a)),
            _mm256_sub_epi32(x.b, _mm256_castps_si256(m.b))};

    return z;
}

/* The first n <= 16 of p, `fill` behind. */
static inline vf vf_load_part(const float *p, uint32_t n, float fill)
{
    vm m = vi_lt(vi_iota(), vi_set(n));
    vf z = {_mm256_maskload_ps(p, _mm256_castps_si256(m.a)),
            _mm256_maskload_ps(n > 8 ? p + 8 : p, _mm256_castps_si256(m.b))};

    return vf_sel(m, z, vf_set(fill));
}

static inline vf vf_load_bf16(const uint16_t *p)
{
    __m256i w = _mm256_loadu_si256((const __m256i_u *)p);
    vi z = {_mm256_cvtepu16_epi32(_mm256_castsi256_si128(w)),
            _mm256_cvtepu16_epi32(_mm256_extracti128_si256(w, 1))};

    return vi_as_f(vi_sll(z, 16));
}

static inline vf vf_load_f16(const uint16_t *p)
{
    __m256i w = _mm256_loadu_si256((const __m256i_u *)p);
    vf z = {_mm256_cvtph_ps(_mm256_castsi256_si128(w)),
            _mm256_cvtph_ps(_mm256_extracti128_si256(w, 1))};

    return z;
}

static inline float vf_one(uint16_t h, moec_dtype dtype)
{
    if (dtype == MOEC_DTYPE_F16)
        return _cvtsh_ss(h);
    return _mm_cvtss_f32(
        _mm_castsi128_ps(_mm_cvtsi32_si128((int)((uint32_t)h << 16))));
}

/* The lanes of m, packed; up to 16 entries of p are overwritten. */
static inline void vi_compress(uint32_t *p, vm m, vi v)
{
    uint32_t a = (uint32_t)_mm256_movemask_ps(m.a);
    uint32_t b = (uint32_t)_mm256_movemask_ps(m.b);
    __m128i oa = _mm_cvtsi64_si128((long long)packed[a]);
    __m128i ob = _mm_cvtsi64_si128((long long)packed[b]);
    uint32_t *q = p + __builtin_popcount(a);

    _mm256_storeu_si256((__m256i_u *)p, _mm256_permutevar8x32_epi32(
                                            v.a, _mm256_cvtepu8_epi32(oa)));
    _mm256_storeu_si256((__m256i_u *)q, _mm256_permutevar8x32_epi32(
                                            v.b, _mm256_cvtepu8_epi32(ob)));
}

static inline void vf_compress(float *p, vm m, vf v)
{
    uint32_t a = (uint32_t)_mm256_movemask_ps(m.a);
    uint32_t b = (uint32_t)_mm256_movemask_ps(m.b);
    __m128i oa = _mm_cvtsi64_si128((long long)packed[a]);
    __m128i ob = _mm_cvtsi64_si128((long long)packed[b]);
    float *q = p + __builtin_popcount(a);

    _mm256_storeu_ps(p,
                     _mm256_permutevar8x32_ps(v.a, _mm256_cvtepu8_epi32(oa)));
    _mm256_storeu_ps(q,
                     _mm256_permutevar8x32_ps(v.b, _mm256_cvtepu8_epi32(ob)));
}

static inline void vi_store_part(uint32_t *p, vi v, uint32_t n)
{
    uint32_t w[16];

    if (n >= 16) {
        vi_store(p, v);
        return;
    }
    vi_store(w, v);
    for (uint32_t i = 0; i < n; i++)
        p[i] = w[i];
}

/* The first n of lanes 0 .. 7, and of 8 .. 15. A masked store is slower than
 * this on AMD. */
static inline void store_part8(float *p, __m256 v, uint32_t n)
{
    float w[8];

    if (n == 8) {
        _mm256_storeu_ps(p, v);
        return;
    }
    _mm256_storeu_ps(w, v);
    for (uint32_t i = 0; i < n; i++)
        p[i] = w[i];
}

static inline void vf_store_low(int32_t *p, vf v, uint32_t n)
{
    int32_t w[8];

    if (n == 8) {
        _mm256_storeu_si256((__m256i_u *)p, _mm256_castps_si256(v.a));
        return;
    }
    _mm256_storeu_si256((__m256i_u *)w, _mm256_castps_si256(v.a));
    for (uint32_t i = 0; i < n; i++)
        p[i] = w[i];
}

static inline void vf_store_high(float *p, vf v, uint32_t n)
{
    store_part8(p, v.b, n);
}

static inline vf vf_low_halves(vf x, vf y)
{
    vf z = {x.a, y.a};

    return z;
}

static inline vf vf_high_halves(vf x, vf y)
{
    vf z = {x.b, y.b};

    return z;
}

static inline vf vf_even_quarters(vf x, vf y)
{
    vf z = {_mm256_permute2f128_ps(x.a, x.b, 0x20),
            _mm256_permute2f128_ps(y.a, y.b, 0x20)};

    return z;
}

static inline vf vf_odd_quarters(vf x, vf y)
{
    vf z = {_mm256_permute2f128_ps(x.a, x.b, 0x31),
            _mm256_permute2f128_ps(y.a, y.b, 0x31)};

    return z;
}

static inline vf vf_swap_pairs(vf x)
{
    vf z = {_mm256_shuffle_ps(x.a, x.a, 0x4e),
            _mm256_shuffle_ps(x.b, x.b, 0x4e)};

    return z;
}

/* Quarters hold groups 0 1, 4 5, 2 3, 6 7 in their first two lanes. */
static inline vf vf_order_groups(vf x)
{
    __m256d z =
        _mm256_unpacklo_pd(_mm256_castps_pd(x.a), _mm256_castps_pd(x.b));
    vf w = {_mm256_castpd_ps(z), _mm256_castpd_ps(z)};

    return w;
}

static inline __attribute__((always_inline)) void transpose8(__m256 v[8])
{
    __m256 t[8], u[8];

    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            u[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
            u[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
        }
    for (int j = 0; j < 4; j++) {
        v[j] = _mm256_permute2f128_ps(u[j], u[j + 4], 0x20);
        v[j + 4] = _mm256_permute2f128_ps(u[j], u[j + 4], 0x31);
    }
}

static inline __attribute__((always_inline)) void vf_transpose(vf v[16])
{
    for (int half = 0; half < 2; half++) { /* rows of v, 8 at a time */
        __m256 x[8], y[8];

        for (int j = 0; j < 8; j++) {
            x[j] = v[8 * half + j].a;
            y[j] = v[8 * half + j].b;
        }
        transpose8(x);
        transpose8(y);
        for (int j = 0; j < 8; j++) {
            v[8 * half + j].a = x[j];
            v[8 * half + j].b = y[j];
        }
    }
    for (int j = 0; j < 8; j++) { /* and the two blocks off the diagonal */
        __m256 x = v[j].b;

        v[j].b = v[j + 8].a;
        v[j + 8].a = x;
    }
}

/* A rank is 0x3ff, key, 12 bits of ~id from the top. Which eight of the
 * sixteen are in lo and which in hi does not matter: they are sorted. */
static inline void vq_pack(vi key, vi id, vq *lo, vq *hi)
{
    vi high = vi_or(vi_srl(key, 20), vi_set(0x3ff00000u));
    vi low = vi_or(vi_sll(key, 12),
                   vi_and(vi_xor(id, vi_set(0xfffu)), vi_set(0xfffu)));

    lo->a = _mm256_castsi256_pd(_mm256_unpacklo_epi32(low.a, high.a));
    lo->b = _mm256_castsi256_pd(_mm256_unpacklo_epi32(low.b, high.b));
    hi->a = _mm256_castsi256_pd(_mm256_unpackhi_epi32(low.a, high.a));
    hi->b = _mm256_castsi256_pd(_mm256_unpackhi_epi32(low.b, high.b));
}

/* The even or odd words of eight ranks, in order. */
static inline __m256i words(vq x, bool odd)
{
    __m256 a = _mm256_castpd_ps(x.a), b = _mm256_castpd_ps(x.b);
    __m256 z =
        odd ? _mm256_shuffle_ps(a, b, 0xdd) : _mm256_shuffle_ps(a, b, 0x88);

    return _mm256_permute4x64_epi64(_mm256_castps_si256(z), 0xd8);
}

/* Rows 0 .. 7 and 8 .. 15: their keys and ids in row order. */
static inline void vq_unpack(vq lo, vq hi, vi *key, vi *id)
{
    vi low = {words(lo, false), words(hi, false)};
    vi high = {words(lo, true), words(hi, true)};

    *key = vi_or(vi_sll(high, 20), vi_srl(low, 12));
    *id = vi_and(vi_xor(low, vi_set(0xfffu)), vi_set(0xfffu));
}

static inline vq vq_zero(void)
{
    vq z = {_mm256_setzero_pd(), _mm256_setzero_pd()};

    return z;
}

static inline vq vq_max(vq x, vq y)
{
    vq z = {_mm256_max_pd(x.a, y.a), _mm256_max_pd(x.b, y.b)};

    return z;
}

static inline vq vq_min(vq x, vq y)
{
    vq z = {_mm256_min_pd(x.a, y.a), _mm256_min_pd(x.b, y.b)};

    return z;
}

static inline __attribute__((always_inline)) void transpose4(__m256d v[4])
{
    __m256d a = _mm256_unpacklo_pd(v[0], v[1]);
    __m256d b = _mm256_unpackhi_pd(v[0], v[1]);
    __m256d c = _mm256_unpacklo_pd(v[2], v[3]);
    __m256d d = _mm256_unpackhi_pd(v[2], v[3]);

    v[0] = _mm256_permute2f128_pd(a, c, 0x20);
    v[1] = _mm256_permute2f128_pd(b, d, 0x20);
    v[2] = _mm256_permute2f128_pd(a, c, 0x31);
    v[3] = _mm256_permute2f128_pd(b, d, 0x31);
}

static inline __attribute__((always_inline)) void vq_transpose(vq v[8])
{
    __m256d x[4][4];

    for (int j = 0; j < 4; j++) {
        x[0][j] = v[j].a;
        x[1][j] = v[j + 4].a;
        x[2][j] = v[j].b;
        x[3][j] = v[j + 4].b;
    }
    for (int j = 0; j < 4; j++)
        transpose4(x[j]);
    for (int j = 0; j < 4; j++) {
        v[j].a = x[0][j];
        v[j].b = x[1][j];
        v[j + 4].a = x[2][j];
        v[j + 4].b = x[3][j];
    }
}

#include "cpu/route_cols.h"
#include "cpu/route_vec.h"

void moec_route_fill_avx2(moec_router *r)
{
    r->fns.rows = rows_vec;
    r->fns.keys = keys_vec;
    if (r->fns.cols)
        r->fns.cols = cols_vec;
    r->fns.weights = weights_vec;
}
