/* SPDX-License-Identifier: Apache-2.0
 *
 * The vectors of route_vec.h in AVX-512 (F, BW, DQ, VL). compress is used to
 * a register and then stored: Zen 4 takes over a hundred cycles for a
 * compress to memory. */

#include <immintrin.h>

#include "route.h"

typedef __m512 vf;
typedef __m512i vi;
typedef __m512i vq;
typedef __mmask16 vm;

/* clang-format off */
static inline vf vf_set(float x) { return _mm512_set1_ps(x); }
static inline vf vf_load(const void *p) { return _mm512_loadu_ps(p); }
static inline void vf_store(void *p, vf v) { _mm512_storeu_ps(p, v); }
static inline vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf vf_sqrt(vf a) { return _mm512_sqrt_ps(a); }
static inline vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
/* 1/a to 2^-14 */
static inline vf vf_rcp(vf a) { return _mm512_rcp14_ps(a); }
static inline vm vf_ge(vf a, vf b)
{ return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
static inline vm vf_gt(vf a, vf b)
{ return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
static inline vm vf_eq0(vf a)
{ return _mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_EQ_OQ); }
static inline vm vm_and(vm a, vm b) { return a & b; }
static inline uint32_t vm_count(vm m)
{ return (uint32_t)__builtin_popcount(m); }
static inline vf vf_sel(vm m, vf a, vf b)
{ return _mm512_mask_blend_ps(m, b, a); }
static inline vf vf_maskz(vm m, vf a) { return _mm512_maskz_mov_ps(m, a); }
static inline vi vf_as_i(vf a) { return _mm512_castps_si512(a); }
static inline vf vi_as_f(vi a) { return _mm512_castsi512_ps(a); }

static inline vi vi_set(uint32_t x) { return _mm512_set1_epi32((int)x); }
static inline vi vi_load(const void *p) { return _mm512_loadu_si512(p); }
static inline void vi_store(void *p, vi v) { _mm512_storeu_si512(p, v); }
static inline vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
static inline vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }
static inline vi vi_or(vi a, vi b) { return _mm512_or_si512(a, b); }
static inline vi vi_xor(vi a, vi b) { return _mm512_xor_si512(a, b); }
static inline vi vi_sll(vi a, int n)
{ return _mm512_slli_epi32(a, (unsigned)n); }
static inline vi vi_sra(vi a, int n)
{ return _mm512_srai_epi32(a, (unsigned)n); }
static inline vm vi_lt(vi a, vi b) { return _mm512_cmplt_epi32_mask(a, b); }
static inline vi vi_maskz(vm m, vi a) { return _mm512_maskz_mov_epi32(m, a); }
static inline vi vi_ones_where_zero(vi a)
{ return _mm512_movm_epi32(_mm512_testn_epi32_mask(a, a)); }
static inline vm vi_as_mask(vi a) { return _mm512_movepi32_mask(a); }
/* a + 1 where m */
static inline vi vi_sub_mask(vi a, vm m)
{ return _mm512_mask_add_epi32(a, m, a, _mm512_set1_epi32(1)); }
static inline vi vi_iota(void)
{
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14,
                             15);
}
/* clang-format on */

static inline vm first_n(uint32_t n)
{
    return (vm)_bzhi_u32(0xffffu, n);
}

/* The first n <= 16 of p, `fill` behind. */
static inline vf vf_load_part(const float *p, uint32_t n, float fill)
{
    return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first_n(n), p);
}

static inline vf vf_load_bf16(const uint16_t *p)
{
    vi w = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i_u *)p));

    return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
}

static inline vf vf_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i_u *)p));
}

static inline float vf_one(uint16_t h, moec_dtype dtype)
{
    if (dtype == MOEC_DTYPE_F16)
        return _cvtsh_ss(h);
    return _mm_cvtss_f32(
        _mm_castsi128_ps(_mm_cvtsi32_si128((int)((uint32_t)h << 16))));
}

/* The lanes of m, packed; up to 16 entries of p are overwritten. */
static inline void vf_compress(float *p, vm m, vf v)
{
    _mm512_storeu_ps(p, _mm512_maskz_compress_ps(m, v));
}

static inline void vi_compress(uint32_t *p, vm m, vi v)
{
    _mm512_storeu_si512(p, _mm512_maskz_compress_epi32(m, v));
}

static inline void vi_store_part(uint32_t *p, vi v, uint32_t n)
{
    _mm512_mask_storeu_epi32(p, first_n(n), v);
}

/* The first n of lanes 0 .. 7, and of 8 .. 15. Not by a masked extract to
 * memory: that one faults for lanes that its mask leaves out, and gcc makes
 * one of an extract and a masked store. */
static inline void vf_store_low(int32_t *p, vf v, uint32_t n)
{
    if (n == 8)
        _mm256_storeu_ps((float *)p, _mm512_castps512_ps256(v));
    else
        _mm512_mask_storeu_ps(p, first_n(n), v);
}

static inline void vf_store_high(float *p, vf v, uint32_t n)
{
    if (n == 8)
        _mm256_storeu_ps(p, _mm512_extractf32x8_ps(v, 1));
    else
        _mm512_mask_storeu_ps(p, first_n(n), _mm512_shuffle_f32x4(v, v, 0xee));
}

/* clang-format off */
static inline vf vf_low_halves(vf a, vf b)
{ return _mm512_shuffle_f32x4(a, b, 0x44); }
static inline vf vf_high_halves(vf a, vf b)
{ return _mm512_shuffle_f32x4(a, b, 0xee); }
static inline vf vf_even_quarters(vf a, vf b)
{ return _mm512_shuffle_f32x4(a, b, 0x88); }
static inline vf vf_odd_quarters(vf a, vf b)
{ return _mm512_shuffle_f32x4(a, b, 0xdd); }
static inline vf vf_unpack_low(vf a, vf b) { return _mm512_unpacklo_ps(a, b); }
static inline vf vf_unpack_high(vf a, vf b) { return _mm512_unpackhi_ps(a, b); }
static inline vf vf_swap_pairs(vf a) { return _mm512_shuffle_ps(a, a, 0x4e); }
/* clang-format on */

/* Quarters hold groups 0 1, 4 5, 2 3, 6 7 in their first two lanes. */
static inline vf vf_order_groups(vf a)
{
    return _mm512_permutexvar_ps(
        _mm512_setr_epi32(0, 1, 8, 9, 4, 5, 12, 13, 0, 0, 0, 0, 0, 0, 0, 0), a);
}

static inline __attribute__((always_inline)) void vf_transpose(vf v[16])
{
    __m512 t[16], u[16];

    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            __m512d a = _mm512_castps_pd(t[i + j]);
            __m512d b = _mm512_castps_pd(t[i + j + 2]);

            u[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            u[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    for (int j = 0; j < 4; j++) {
        __m512 a = _mm512_shuffle_f32x4(u[j], u[j + 4], 0x88);
        __m512 b = _mm512_shuffle_f32x4(u[j + 8], u[j + 12], 0x88);
        __m512 c = _mm512_shuffle_f32x4(u[j], u[j + 4], 0xdd);
        __m512 d = _mm512_shuffle_f32x4(u[j + 8], u[j + 12], 0xdd);

        v[j] = _mm512_shuffle_f32x4(a, b, 0x88);
        v[j + 8] = _mm512_shuffle_f32x4(a, b, 0xdd);
        v[j + 4] = _mm512_shuffle_f32x4(c, d, 0x88);
        v[j + 12] = _mm512_shuffle_f32x4(c, d, 0xdd);
    }
}

/* A rank is key << 32 | ~id. Which eight of the sixteen are in lo and which in
 * hi does not matter: they are sorted. */
static inline void vq_pack(vi key, vi id, vq *lo, vq *hi)
{
    vi inverted = _mm512_xor_si512(id, _mm512_set1_epi32(-1));

    *lo = _mm512_unpacklo_epi32(inverted, key);
    *hi = _mm512_unpackhi_epi32(inverted, key);
}

/* Rows 0 .. 7 and 8 .. 15: their keys and ids in row order. */
static inline void vq_unpack(vq lo, vq hi, vi *key, vi *id)
{
    vi even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24,
                                26, 28, 30);
    vi odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));

    *id = _mm512_xor_si512(_mm512_permutex2var_epi32(lo, even, hi),
                           _mm512_set1_epi32(-1));
    *key = _mm512_permutex2var_epi32(lo, odd, hi);
}

/* clang-format off */
static inline vq vq_zero(void) { return _mm512_setzero_si512(); }
static inline vq vq_max(vq a, vq b) { return _mm512_max_epu64(a, b); }
static inline vq vq_min(vq a, vq b) { return _mm512_min_epu64(a, b); }
/* clang-format on */

static inline __attribute__((always_inline)) void vq_transpose(vq v[8])
{
    vq t[8];

    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm512_unpacklo_epi64(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi64(v[i], v[i + 1]);
    }
    for (int j = 0; j < 2; j++) {
        vq a = _mm512_shuffle_i64x2(t[j], t[j + 2], 0x88);
        vq b = _mm512_shuffle_i64x2(t[j + 4], t[j + 6], 0x88);
        vq c = _mm512_shuffle_i64x2(t[j], t[j + 2], 0xdd);
        vq d = _mm512_shuffle_i64x2(t[j + 4], t[j + 6], 0xdd);

        v[j] = _mm512_shuffle_i64x2(a, b, 0x88);
        v[j + 4] = _mm512_shuffle_i64x2(a, b, 0xdd);
        v[j + 2] = _mm512_shuffle_i64x2(c, d, 0x88);
        v[j + 6] = _mm512_shuffle_i64x2(c, d, 0xdd);
    }
}

#include "cpu/route_cols.h"
#include "cpu/route_vec.h"

void moec_route_fill_avx512(moec_router *r)
{
    r->fns.rows = rows_vec;
    r->fns.keys = keys_vec;
    if (r->fns.cols)
        r->fns.cols = cols_vec;
    r->fns.weights = weights_vec;
}
