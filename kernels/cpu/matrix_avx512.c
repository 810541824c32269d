/* SPDX-License-Identifier: Apache-2.0
 *
 * Matrices with AVX-512: the bits of matrix_scalar.c. AWQ and GPTQ stay
 * scalar: packed along the other dimension, they gain little. */

#include <immintrin.h>
#include <string.h>

#include "matrix.h"

#if defined(__clang__)
#  define UNROLL _Pragma("unroll")
#else
#  define UNROLL _Pragma("GCC unroll 16")
#endif

static inline __mmask16 tail_mask(uint64_t n)
{
    return (__mmask16)(n >= 16 ? 0xffffu : (1u << n) - 1u);
}

/* ------------------------------------------------------------ widening */

static inline __m512 widen_bf16(__m256i h)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

/* E4M3 as binary16 with the exponent 8 too small: the converter knows its
 * denormals. Only NaN needs another hand. */
static inline __m512 widen_e4m3(__m128i c)
{
    __m256i w = _mm256_cvtepu8_epi16(c);
    __m256i mag = _mm256_and_si256(w, _mm256_set1_epi16(0x7f));
    __m256i sign =
        _mm256_slli_epi16(_mm256_and_si256(w, _mm256_set1_epi16(0x80)), 8);
    __mmask16 nan = _mm256_cmpeq_epi16_mask(mag, _mm256_set1_epi16(0x7f));
    __m512 f = _mm512_mul_ps(
        _mm512_cvtph_ps(_mm256_or_si256(_mm256_slli_epi16(mag, 7), sign)),
        _mm512_set1_ps(256.0f));

    return _mm512_castsi512_ps(_mm512_mask_or_epi32(
        _mm512_castps_si512(f), nan, _mm512_castps_si512(f),
        _mm512_set1_epi32(0x7fc00000)));
}

static inline __m512 widen_e5m2(__m128i c)
{
    return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(c), 8));
}

/* 2^(c - 127): c is the exponent, but for 0 and NaN. */
static inline __m512 widen_e8m0(__m128i c)
{
    __m512i e = _mm512_cvtepu8_epi32(c);
    __m512i f = _mm512_slli_epi32(e, 23);

    f = _mm512_mask_mov_epi32(f, _mm512_testn_epi32_mask(e, e),
                              _mm512_set1_epi32(0x00400000));
    f = _mm512_mask_mov_epi32(
        f, _mm512_cmpeq_epi32_mask(e, _mm512_set1_epi32(255)),
        _mm512_set1_epi32(0x7fc00000));
    return _mm512_castsi512_ps(f);
}

static void to_f32_avx512(moec_dtype dtype, const void *in, uint64_t n,
                          float *out)
{
    const uint8_t *p = in;

#define WIDEN_ALL(wide)                                                        \
  for (uint64_t i = 0; i < n; i += 16) {                                       \
    __mmask16 m = tail_mask(n - i);                                            \
    _mm512_mask_storeu_ps(out + i, m, wide);                                   \
  }
    if (dtype == MOEC_DTYPE_F32)
        memcpy(out, in, n * sizeof(*out));
    else if (dtype == MOEC_DTYPE_BF16)
        WIDEN_ALL(widen_bf16(_mm256_maskz_loadu_epi16(m, p + 2 * i)))
    else if (dtype == MOEC_DTYPE_F16)
        WIDEN_ALL(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, p + 2 * i)))
    else if (dtype == MOEC_DTYPE_F8_E4M3)
        WIDEN_ALL(widen_e4m3(_mm_maskz_loadu_epi8(m, p + i)))
    else if (dtype == MOEC_DTYPE_F8_E5M2)
        WIDEN_ALL(widen_e5m2(_mm_maskz_loadu_epi8(m, p + i)))
    else
        WIDEN_ALL(widen_e8m0(_mm_maskz_loadu_epi8(m, p + i)))
#undef WIDEN_ALL
}

/* ----------------------------------------------------------- narrowing */

/* vcvtneps2bf16 would flush denormals; this is exact. */
static inline __m256i narrow_bf16(__m512 f)
{
    __m512i u = _mm512_castps_si512(f);
    __mmask16 nan = _mm512_cmp_ps_mask(f, f, _CMP_UNORD_Q);
    __m512i odd =
        _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r =
        _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));

    r = _mm512_mask_or_epi32(r, nan, u, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
}

/* The scalar steps of f32_to_e4m3 and f32_to_e5m2 with their constants:
 * mantissa bits dropped, least normal, adder of the denormals, bias, largest
 * code. */
static inline __m128i narrow_fp8(__m512 f, unsigned drop, int normal,
                                 float adder, int bias, int largest)
{
    __m512i u = _mm512_castps_si512(f);
    __m512i a = _mm512_and_si512(u, _mm512_set1_epi32(0x7fffffff));
    __m512i sign =
        _mm512_and_si512(_mm512_srli_epi32(u, 24), _mm512_set1_epi32(0x80));
    __mmask16 nan = _mm512_cmp_ps_mask(f, f, _CMP_UNORD_Q);
    __mmask16 small = _mm512_cmplt_epu32_mask(a, _mm512_set1_epi32(normal));
    __m512 add = _mm512_set1_ps(adder);
    __m512i odd =
        _mm512_and_si512(_mm512_srli_epi32(a, drop), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(
        a, _mm512_add_epi32(odd, _mm512_set1_epi32((1 << (drop - 1)) - 1)));

    r = _mm512_srli_epi32(_mm512_sub_epi32(r, _mm512_set1_epi32(bias << 23)),
                          drop);
    r = _mm512_mask_sub_epi32(
        r, small,
        _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(a), add)),
        _mm512_castps_si512(add));
    r = _mm512_min_epu32(r, _mm512_set1_epi32(largest));
    r = _mm512_mask_mov_epi32(r, nan, _mm512_set1_epi32(0x7f));
    return _mm512_cvtepi32_epi8(_mm512_or_si512(r, sign));
}

static void from_f32_avx512(moec_dtype dtype, const float *in, uint64_t n,
                            void *out)
{
    uint8_t *p = out;

    if (dtype == MOEC_DTYPE_F32) {
        memcpy(out, in, n * sizeof(*in));
        return;
    }
    for (uint64_t i = 0; i < n; i += 16) {
        __mmask16 m = tail_mask(n - i);
        __m512 f = _mm512_maskz_loadu_ps(m, in + i);

        if (dtype == MOEC_DTYPE_BF16)
            _mm256_mask_storeu_epi16(p + 2 * i, m, narrow_bf16(f));
        else if (dtype == MOEC_DTYPE_F16)
            _mm256_mask_storeu_epi16(
                p + 2 * i, m,
                _mm512_cvtps_ph(f,
                                _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        else if (dtype == MOEC_DTYPE_F8_E4M3)
            _mm_mask_storeu_epi8(
                p + i, m, narrow_fp8(f, 20, 0x3c800000, 0x1p14f, 120, 0x7e));
        else
            _mm_mask_storeu_epi8(
                p + i, m, narrow_fp8(f, 21, 0x38800000, 0x1p7f, 112, 0x7b));
    }
}

/* --------------------------------------------------------------- tiles */

static void row_fp8_avx512(const struct moec_mat *m, uint32_t row, uint32_t col,
                           uint32_t n, float *out)
{
    const uint8_t *p = m->data + row * m->row_bytes;

    for (uint32_t c = col, end; c < col + n; c = end) {
        __m512 s = _mm512_set1_ps(moec_mat_scale(m, row, c / m->block_in));

        end = c - c % m->block_in + m->block_in;
        if (end > col + n || end < c)
            end = col + n;
        for (uint32_t i = c; i < end; i += 16) {
            __mmask16 k = tail_mask(end - i);
            __m512 f = widen_e4m3(_mm_maskz_loadu_epi8(k, p + i));

            _mm512_mask_storeu_ps(out + (i - col), k, _mm512_mul_ps(f, s));
        }
    }
}

static const float e2m1[16] = {0.0f,  0.5f,  1.0f,  1.5f, 2.0f,  3.0f,
                               4.0f,  6.0f,  -0.0f, -.5f, -1.0f, -1.5f,
                               -2.0f, -3.0f, -4.0f, -6.0f};
static const float integers[16] = {-8, -7, -6, -5, -4, -3, -2, -1,
                                   0,  1,  2,  3,  4,  5,  6,  7};

/* A group's sixteen values times its scale are the table of a permutation. */
static void row_4bit_avx512(const struct moec_mat *m, uint32_t row,
                            uint32_t col, uint32_t n, float *out)
{
    const uint8_t *p = m->data + row * m->row_bytes;
    const __m512 values =
        _mm512_loadu_ps(m->format == MOEC_WFORMAT_INT4 ? integers : e2m1);
    const __m128i twice =
        _mm_setr_epi8(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const __m512i shift = _mm512_set1_epi64((long long)4 << 32);

    for (uint32_t c = col, end; c < col + n; c = end) {
        __m512 table = _mm512_mul_ps(
            values, _mm512_set1_ps(moec_mat_scale(m, row, c / m->block_in)));

        end = c - c % m->block_in + m->block_in;
        if (end > col + n || end < c)
            end = col + n;
        for (uint32_t i = c; i < end; i += 16) {
            __mmask16 k = tail_mask(end - i);
            __m128i b = _mm_maskz_loadu_epi8(
                (__mmask16)(tail_mask((end - i + 1) / 2) & 0xff), p + i / 2);
            __m512i q = _mm512_srlv_epi32(
                _mm512_cvtepu8_epi32(_mm_shuffle_epi8(b, twice)), shift);

            _mm512_mask_storeu_ps(out + (i - col), k,
                                  _mm512_permutexvar_ps(q, table));
        }
    }
}

static void tile_avx512(const struct moec_mat *m, uint32_t row, uint32_t n_rows,
                        uint32_t col, uint32_t n_cols, float *out,
                        size_t stride)
{
    bool half = m->format == MOEC_WFORMAT_BF16 || m->format == MOEC_WFORMAT_F16;
    bool fp8 = m->format == MOEC_WFORMAT_FP8;
    bool four = (m->format == MOEC_WFORMAT_INT4 && !m->zeros) ||
                m->format == MOEC_WFORMAT_MXFP4 ||
                m->format == MOEC_WFORMAT_NVFP4;

    if (four && m->block_in % 2)
        four = false; /* a group would begin inside a byte */
    if (!half && !fp8 && !four) {
        moec_tile_scalar(m, row, n_rows, col, n_cols, out, stride);
        return;
    }
    for (uint32_t r = 0; r < n_rows; r++, row++, out += stride)
        if (half)
            to_f32_avx512(m->format == MOEC_WFORMAT_BF16 ? MOEC_DTYPE_BF16
                                                         : MOEC_DTYPE_F16,
                          m->data + row * m->row_bytes + (size_t)col * 2,
                          n_cols, out);
        else if (fp8)
            row_fp8_avx512(m, row, col, n_cols, out);
        else
            row_4bit_avx512(m, row, col, n_cols, out);
}

/* ----------------------------------------------------------------- dot */

/* R rows by N tokens in registers: R * N sums, each a vector of its sixteen
 * lanes. Masked lanes add +0, which changes no sum: none is ever -0. */
#define DOT_TILE(name, R, N, MULADD)                                           \
  static void name(const float *w, size_t ws, const float *x, size_t xs,       \
                   uint32_t n, float *acc, size_t as)                          \
  {                                                                            \
    __m512 s[R][N], b[N];                                                      \
    UNROLL                                                                     \
    for (int r = 0; r < (R); r++)                                              \
      UNROLL                                                                   \
    for (int t = 0; t < (N); t++)                                              \
      s[r][t] = _mm512_load_ps(acc + (size_t)t * as + (size_t)r * 16);         \
    for (uint32_t i = 0; i < n; i += 16) {                                     \
      __mmask16 k = tail_mask(n - i);                                          \
      UNROLL                                                                   \
      for (int t = 0; t < (N); t++)                                            \
        b[t] = _mm512_maskz_loadu_ps(k, x + (size_t)t * xs + i);               \
      UNROLL                                                                   \
      for (int r = 0; r < (R); r++) {                                          \
        __m512 a = _mm512_maskz_loadu_ps(k, w + (size_t)r * ws + i);           \
        UNROLL                                                                 \
        for (int t = 0; t < (N); t++)                                          \
          s[r][t] = MULADD(a, b[t], s[r][t]);                                  \
      }                                                                        \
    }                                                                          \
    UNROLL                                                                     \
    for (int r = 0; r < (R); r++)                                              \
      UNROLL                                                                   \
    for (int t = 0; t < (N); t++)                                              \
      _mm512_store_ps(acc + (size_t)t * as + (size_t)r * 16, s[r][t]);         \
  }

#define MUL_THEN_ADD(a, b, s) _mm512_add_ps(s, _mm512_mul_ps(a, b))
DOT_TILE(dot_4x4, 4, 4, MUL_THEN_ADD)
DOT_TILE(dot_4x1, 4, 1, MUL_THEN_ADD)
DOT_TILE(dot_1x4, 1, 4, MUL_THEN_ADD)
DOT_TILE(dot_1x1, 1, 1, MUL_THEN_ADD)
DOT_TILE(fma_4x4, 4, 4, _mm512_fmadd_ps)
DOT_TILE(fma_4x1, 4, 1, _mm512_fmadd_ps)
DOT_TILE(fma_1x4, 1, 4, _mm512_fmadd_ps)
DOT_TILE(fma_1x1, 1, 1, _mm512_fmadd_ps)

typedef void (*dot_fn)(const float *w, size_t ws, const float *x, size_t xs,
                       uint32_t n, float *acc, size_t as);

static inline void dot_all(const dot_fn f[4], const float *w, size_t ws,
                           uint32_t n_rows, const struct moec_acts *x,
                           uint32_t n, float *acc)
{
    size_t xs = x->bytes / sizeof(float), as = (size_t)n_rows * 16;

    for (uint32_t t = 0; t < x->n;) {
        const float *b = (const float *)x->x + t * xs;
        float *s = acc + t * as;
        bool four = x->n - t >= 4;
        uint32_t r = 0;

        for (; r + 4 <= n_rows; r += 4)
            f[four ? 0 : 1](w + r * ws, ws, b, xs, n, s + (size_t)r * 16, as);
        for (; r < n_rows; r++)
            f[four ? 2 : 3](w + r * ws, ws, b, xs, n, s + (size_t)r * 16, as);
        t += four ? 4 : 1;
    }
}

static void dot16_avx512(const float *w, size_t w_stride, uint32_t n_rows,
                         const float *x, size_t x_stride, uint32_t n_tokens,
                         uint32_t n, float *acc)
{
    static const dot_fn tiles[4] = {dot_4x4, dot_4x1, dot_1x4, dot_1x1};
    struct moec_acts a = {
        .x = x, .bytes = x_stride * sizeof(float), .n = n_tokens};

    dot_all(tiles, w, w_stride, n_rows, &a, n, acc);
}

static void fma16_avx512(const float *w, size_t w_stride, uint32_t n_rows,
                         const float *x, size_t x_stride, uint32_t n_tokens,
                         uint32_t n, float *acc)
{
    static const dot_fn tiles[4] = {fma_4x4, fma_4x1, fma_1x4, fma_1x1};
    struct moec_acts a = {
        .x = x, .bytes = x_stride * sizeof(float), .n = n_tokens};

    dot_all(tiles, w, w_stride, n_rows, &a, n, acc);
}

/* ---------------------------------------------------------------- fast
 * For formats and CPUs that ffn_avx512bf16.c has nothing for: tiles widened
 * to float32, inputs rounded to bf16, fused multiply-add. */

static void pack_rounded(const float *x, uint32_t first, uint32_t n,
                         uint32_t n_in, void *row)
{
    float *out = (float *)row + first;

    (void)n_in;
    for (uint32_t i = 0; i < n; i += 16) {
        __mmask16 k = tail_mask(n - i);
        __m512 f = _mm512_maskz_loadu_ps(k, x + i);

        _mm512_mask_storeu_ps(out + i, k, widen_bf16(narrow_bf16(f)));
    }
}

static void rows_fma(const struct moec_matrix_fns *f, const struct moec_mat *m,
                     uint32_t row, uint32_t n_rows, const struct moec_acts *x,
                     float *out, size_t out_stride)
{
    static const struct moec_matrix_fns fused = {.tile = tile_avx512,
                                                 .dot16 = fma16_avx512};

    (void)f;
    moec_dot_rows(&fused, m, row, n_rows, x, out, out_stride);
}

static const struct moec_product *fast_avx512(const struct moec_mat *m,
                                              bool bf16_dot)
{
    static const struct moec_product rounded = {
        .x_bytes = moec_x_bytes_f32, .pack = pack_rounded, .rows = rows_fma};
    const struct moec_product *p = bf16_dot ? moec_fast_bf16(m) : NULL;

    return p ? p : &rounded;
}

const struct moec_matrix_fns moec_matrix_avx512 = {
    .tile = tile_avx512,
    .dot16 = dot16_avx512,
    .to_f32 = to_f32_avx512,
    .from_f32 = from_f32_avx512,
    .act = moec_act_avx512,
    .fast = fast_avx512,
};
