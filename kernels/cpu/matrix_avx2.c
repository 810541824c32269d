/* SPDX-License-Identifier: Apache-2.0
 *
 * Matrices with AVX2 and F16C: the bits of matrix_scalar.c. What does not
 * fill a vector, and AWQ and GPTQ, go to the scalar functions. */

#include <immintrin.h>
#include <string.h>

#include "matrix.h"

#if defined(__clang__)
#  define UNROLL _Pragma("unroll")
#else
#  define UNROLL _Pragma("GCC unroll 16")
#endif

/* ------------------------------------------------------------ widening */

static inline __m128i load8(const void *p)
{
    return _mm_loadl_epi64((const __m128i *)p);
}

static inline __m128i load16(const void *p)
{
    return _mm_loadu_si128((const __m128i *)p);
}

static inline void store16(void *p, __m128i v)
{
    _mm_storeu_si128((__m128i *)p, v);
}

static inline __m256 widen_bf16(__m128i h)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

/* E4M3 as binary16 with the exponent 8 too small: the converter knows its
 * denormals. Only NaN needs another hand. */
static inline __m256 widen_e4m3(__m128i c)
{
    __m128i w = _mm_cvtepu8_epi16(c);
    __m128i mag = _mm_and_si128(w, _mm_set1_epi16(0x7f));
    __m128i sign = _mm_slli_epi16(_mm_and_si128(w, _mm_set1_epi16(0x80)), 8);
    __m128i nan = _mm_cmpeq_epi16(mag, _mm_set1_epi16(0x7f));
    __m256i wide_nan = _mm256_and_si256(_mm256_cvtepi16_epi32(nan),
                                        _mm256_set1_epi32(0x7fc00000));
    __m256 f = _mm256_mul_ps(
        _mm256_cvtph_ps(_mm_or_si128(_mm_slli_epi16(mag, 7), sign)),
        _mm256_set1_ps(256.0f));

    return _mm256_or_ps(f, _mm256_castsi256_ps(wide_nan));
}

static inline __m256 widen_e5m2(__m128i c)
{
    return _mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(c), 8));
}

static void to_f32_avx2(moec_dtype dtype, const void *in, uint64_t n,
                        float *out)
{
    const uint8_t *p = in;
    uint64_t i = 0;

    if (dtype == MOEC_DTYPE_BF16)
        for (; i + 8 <= n; i += 8)
            _mm256_storeu_ps(out + i, widen_bf16(load16(p + 2 * i)));
    else if (dtype == MOEC_DTYPE_F16)
        for (; i + 8 <= n; i += 8)
            _mm256_storeu_ps(out + i, _mm256_cvtph_ps(load16(p + 2 * i)));
    else if (dtype == MOEC_DTYPE_F8_E4M3)
        for (; i + 8 <= n; i += 8)
            _mm256_storeu_ps(out + i, widen_e4m3(load8(p + i)));
    else if (dtype == MOEC_DTYPE_F8_E5M2)
        for (; i + 8 <= n; i += 8)
            _mm256_storeu_ps(out + i, widen_e5m2(load8(p + i)));
    moec_to_f32_scalar(dtype, p + i * (moec_dtype_bits(dtype) / 8), n - i,
                       out + i);
}

/* ----------------------------------------------------------- narrowing */

/* As a float32 whose low half is zero. */
static inline __m256i round_bf16(__m256 f)
{
    __m256i u = _mm256_castps_si256(f);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(f, f, _CMP_UNORD_Q));
    __m256i odd =
        _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r =
        _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));

    r = _mm256_blendv_epi8(r, _mm256_or_si256(u, _mm256_set1_epi32(0x400000)),
                           nan);
    return _mm256_and_si256(r, _mm256_set1_epi32((int)0xffff0000u));
}

static inline __m128i narrow_bf16(__m256 f)
{
    __m256i r = _mm256_srli_epi32(round_bf16(f), 16);

    return _mm_packus_epi32(_mm256_castsi256_si128(r),
                            _mm256_extracti128_si256(r, 1));
}

static void from_f32_avx2(moec_dtype dtype, const float *in, uint64_t n,
                          void *out)
{
    uint8_t *p = out;
    uint64_t i = 0;

    if (dtype == MOEC_DTYPE_BF16)
        for (; i + 8 <= n; i += 8)
            store16(p + 2 * i, narrow_bf16(_mm256_loadu_ps(in + i)));
    else if (dtype == MOEC_DTYPE_F16)
        for (; i + 8 <= n; i += 8)
            store16(p + 2 * i, _mm256_cvtps_ph(_mm256_loadu_ps(in + i),
                                               _MM_FROUND_TO_NEAREST_INT |
                                                   _MM_FROUND_NO_EXC));
    moec_from_f32_scalar(dtype, in + i, n - i,
                         p + i * (moec_dtype_bits(dtype) / 8));
}

/* --------------------------------------------------------------- tiles */

static void row_fp8_avx2(const struct moec_mat *m, uint32_t row, uint32_t col,
                         uint32_t n, float *out)
{
    const uint8_t *p = m->data + row * m->row_bytes;

    for (uint32_t c = col, end; c < col + n; c = end) {
        __m256 s = _mm256_set1_ps(moec_mat_scale(m, row, c / m->block_in));
        uint32_t i = c;

        end = c - c % m->block_in + m->block_in;
        if (end > col + n || end < c)
            end = col + n;
        for (; i + 8 <= end; i += 8)
            _mm256_storeu_ps(out + (i - col),
                             _mm256_mul_ps(widen_e4m3(load8(p + i)), s));
        if (i < end)
            moec_tile_scalar(m, row, 1, i, end - i, out + (i - col), 0);
    }
}

static const float e2m1[16] = {0.0f,  0.5f,  1.0f,  1.5f, 2.0f,  3.0f,
                               4.0f,  6.0f,  -0.0f, -.5f, -1.0f, -1.5f,
                               -2.0f, -3.0f, -4.0f, -6.0f};
static const float integers[16] = {-8, -7, -6, -5, -4, -3, -2, -1,
                                   0,  1,  2,  3,  4,  5,  6,  7};

/* A group's sixteen values times its scale are the table of a permutation:
 * two halves here, chosen by the nibble's top bit. */
static void row_4bit_avx2(const struct moec_mat *m, uint32_t row, uint32_t col,
                          uint32_t n, float *out)
{
    const uint8_t *p = m->data + row * m->row_bytes;
    const float *values = m->format == MOEC_WFORMAT_INT4 ? integers : e2m1;
    const __m256i shift = _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4);
    const __m128i twice =
        _mm_setr_epi8(0, 0, 1, 1, 2, 2, 3, 3, -1, -1, -1, -1, -1, -1, -1, -1);

    for (uint32_t c = col, end; c < col + n; c = end) {
        __m256 s = _mm256_set1_ps(moec_mat_scale(m, row, c / m->block_in));
        __m256 low = _mm256_mul_ps(_mm256_loadu_ps(values), s);
        __m256 high = _mm256_mul_ps(_mm256_loadu_ps(values + 8), s);
        uint32_t i = c;

        end = c - c % m->block_in + m->block_in;
        if (end > col + n || end < c)
            end = col + n;
        for (; i + 8 <= end; i += 8) {
            __m128i b = _mm_cvtsi32_si128((int)moec_le32(p + i / 2));
            __m256i q = _mm256_srlv_epi32(
                _mm256_cvtepu8_epi32(_mm_shuffle_epi8(b, twice)), shift);
            __m256 top = _mm256_castsi256_ps(_mm256_slli_epi32(q, 28));

            _mm256_storeu_ps(out + (i - col),
                             _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, q),
                                              _mm256_permutevar8x32_ps(high, q),
                                              top));
        }
        if (i < end)
            moec_tile_scalar(m, row, 1, i, end - i, out + (i - col), 0);
    }
}

static void tile_avx2(const struct moec_mat *m, uint32_t row, uint32_t n_rows,
                      uint32_t col, uint32_t n_cols, float *out, size_t stride)
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
            to_f32_avx2(m->format == MOEC_WFORMAT_BF16 ? MOEC_DTYPE_BF16
                                                       : MOEC_DTYPE_F16,
                        m->data + row * m->row_bytes + (size_t)col * 2, n_cols,
                        out);
        else if (fp8)
            row_fp8_avx2(m, row, col, n_cols, out);
        else
            row_4bit_avx2(m, row, col, n_cols, out);
}

/* ----------------------------------------------------------------- dot */

/* R rows by N tokens; a sum's sixteen lanes are two registers. What is less
 * than sixteen at the end goes to the first lanes one by one. */
#define DOT_TILE(name, R, N, MULADD)                                           \
  static void name(const float *w, size_t ws, const float *x, size_t xs,       \
                   uint32_t n, float *acc, size_t as)                          \
  {                                                                            \
    __m256 s[R][N][2], b[N][2];                                                \
    UNROLL                                                                     \
    for (int r = 0; r < (R); r++)                                              \
      UNROLL                                                                   \
    for (int t = 0; t < (N); t++)                                              \
      UNROLL                                                                   \
    for (size_t h = 0; h < 2; h++)                                             \
      s[r][t][h] =                                                             \
          _mm256_load_ps(acc + (size_t)t * as + (size_t)r * 16 + h * 8);       \
    for (uint32_t i = 0; i < n; i += 16) {                                     \
      UNROLL                                                                   \
      for (int t = 0; t < (N); t++)                                            \
        UNROLL                                                                 \
      for (size_t h = 0; h < 2; h++)                                           \
        b[t][h] = _mm256_loadu_ps(x + (size_t)t * xs + i + h * 8);             \
      UNROLL                                                                   \
      for (int r = 0; r < (R); r++)                                            \
        UNROLL                                                                 \
      for (size_t h = 0; h < 2; h++) {                                         \
        __m256 a = _mm256_loadu_ps(w + (size_t)r * ws + i + h * 8);            \
        UNROLL                                                                 \
        for (int t = 0; t < (N); t++)                                          \
          s[r][t][h] = MULADD(a, b[t][h], s[r][t][h]);                         \
      }                                                                        \
    }                                                                          \
    UNROLL                                                                     \
    for (int r = 0; r < (R); r++)                                              \
      UNROLL                                                                   \
    for (int t = 0; t < (N); t++)                                              \
      UNROLL                                                                   \
    for (size_t h = 0; h < 2; h++)                                             \
      _mm256_store_ps(acc + (size_t)t * as + (size_t)r * 16 + h * 8,           \
                      s[r][t][h]);                                             \
  }

#define MUL_THEN_ADD(a, b, s) _mm256_add_ps(s, _mm256_mul_ps(a, b))
DOT_TILE(dot_2x2, 2, 2, MUL_THEN_ADD)
DOT_TILE(dot_2x1, 2, 1, MUL_THEN_ADD)
DOT_TILE(dot_1x1, 1, 1, MUL_THEN_ADD)
DOT_TILE(fma_2x2, 2, 2, _mm256_fmadd_ps)
DOT_TILE(fma_2x1, 2, 1, _mm256_fmadd_ps)
DOT_TILE(fma_1x1, 1, 1, _mm256_fmadd_ps)

typedef void (*dot_fn)(const float *w, size_t ws, const float *x, size_t xs,
                       uint32_t n, float *acc, size_t as);

static void dot_tail(const float *w, size_t ws, uint32_t n_rows, const float *x,
                     uint32_t from, uint32_t n, float *acc)
{
    for (uint32_t r = 0; r < n_rows; r++)
        for (uint32_t i = from; i < n; i++)
            acc[r * 16 + i % 16] += x[i] * w[r * ws + i];
}

static inline void dot_all(const dot_fn f[3], const float *w, size_t ws,
                           uint32_t n_rows, const struct moec_acts *x,
                           uint32_t n, float *acc)
{
    size_t xs = x->bytes / sizeof(float), as = (size_t)n_rows * 16;
    uint32_t whole = n / 16 * 16;

    for (uint32_t t = 0; t < x->n;) {
        const float *b = (const float *)x->x + t * xs;
        bool two = x->n - t >= 2;
        float *s = acc + t * as;
        uint32_t r = 0;

        for (; r + 2 <= n_rows; r += 2)
            f[two ? 0 : 1](w + r * ws, ws, b, xs, whole, s + (size_t)r * 16,
                           as);
        for (uint32_t u = 0; r < n_rows && u <= two; u++)
            f[2](w + r * ws, ws, b + u * xs, xs, whole,
                 s + u * as + (size_t)r * 16, as);
        for (uint32_t u = 0; whole < n && u <= two; u++)
            dot_tail(w, ws, n_rows, b + u * xs, whole, n, s + u * as);
        t += two ? 2 : 1;
    }
}

static void dot16_avx2(const float *w, size_t w_stride, uint32_t n_rows,
                       const float *x, size_t x_stride, uint32_t n_tokens,
                       uint32_t n, float *acc)
{
    static const dot_fn tiles[3] = {dot_2x2, dot_2x1, dot_1x1};
    struct moec_acts a = {
        .x = x, .bytes = x_stride * sizeof(float), .n = n_tokens};

    dot_all(tiles, w, w_stride, n_rows, &a, n, acc);
}

static void fma16_avx2(const float *w, size_t w_stride, uint32_t n_rows,
                       const float *x, size_t x_stride, uint32_t n_tokens,
                       uint32_t n, float *acc)
{
    static const dot_fn tiles[3] = {fma_2x2, fma_2x1, fma_1x1};
    struct moec_acts a = {
        .x = x, .bytes = x_stride * sizeof(float), .n = n_tokens};

    dot_all(tiles, w, w_stride, n_rows, &a, n, acc);
}

/* ---------------------------------------------------------------- fast
 * Tiles widened to float32, inputs rounded to bf16, fused multiply-add. */

static void pack_rounded(const float *x, uint32_t first, uint32_t n,
                         uint32_t n_in, void *row)
{
    float *out = (float *)row + first;
    uint32_t i = 0;

    (void)n_in;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(
            out + i, _mm256_castsi256_ps(round_bf16(_mm256_loadu_ps(x + i))));
    for (; i < n; i++) {
        uint16_t h;

        moec_from_f32_scalar(MOEC_DTYPE_BF16, x + i, 1, &h);
        moec_to_f32_scalar(MOEC_DTYPE_BF16, &h, 1, out + i);
    }
}

static void rows_fma(const struct moec_matrix_fns *f, const struct moec_mat *m,
                     uint32_t row, uint32_t n_rows, const struct moec_acts *x,
                     float *out, size_t out_stride)
{
    static const struct moec_matrix_fns fused = {.tile = tile_avx2,
                                                 .dot16 = fma16_avx2};

    (void)f;
    moec_dot_rows(&fused, m, row, n_rows, x, out, out_stride);
}

static const struct moec_product *fast_avx2(const struct moec_mat *m,
                                            bool bf16_dot)
{
    static const struct moec_product rounded = {
        .x_bytes = moec_x_bytes_f32, .pack = pack_rounded, .rows = rows_fma};

    (void)m;
    (void)bf16_dot;
    return &rounded;
}

const struct moec_matrix_fns moec_matrix_avx2 = {
    .tile = tile_avx2,
    .dot16 = dot16_avx2,
    .to_f32 = to_f32_avx2,
    .from_f32 = from_f32_avx2,
    .act = moec_act_avx2,
    .fast = fast_avx2,
};
