/* SPDX-License-Identifier: Apache-2.0
 *
 * Fast products by vdpbf16ps: weights in bf16 as they stand in memory, and
 * FP8, INT4, MXFP4, NVFP4 decoded, unscaled and thus exactly, into bf16 in the
 * L1 cache, their scales applied to the float32 sums of each group.
 *
 * Four weight rows are one tile. Its sums go through the same additions
 * whatever the number of tokens beside them, so a token's result does not
 * depend on the batch. While a tile is read the next is prefetched: with few
 * tokens reading the weights is all the time there is.
 *
 * Not here: INT4 with zero points, AWQ, GPTQ, F32, F16, and blocks that are
 * not multiples of 16 columns. moec_fast_bf16 says so, and ffn.c takes the
 * float32 product of matrix_avx512.c. */

#include <immintrin.h>
#include <string.h>

#include "matrix.h"

#if defined(__clang__)
#  define UNROLL _Pragma("unroll")
#else
#  define UNROLL _Pragma("GCC unroll 16")
#endif

#define ROWS   4u    /* weight rows of a tile */
#define COLS   1024u /* columns of a tile: 8 KiB beside the inputs */
#define TOKENS MOEC_TILE_TOKENS

/* Sums of a tile: [token][row][16 lanes]. */
typedef float tile_sums[TOKENS][ROWS][16];

static inline __m512bh as_bf16(__m512i v)
{
    return (__m512bh)v;
}

static inline __m512i load_x(const uint8_t *p)
{
    return _mm512_load_si512((const void *)p);
}

/* What stands `ahead` bytes further, perhaps in another block, to L2: into L1
 * it takes the buffers that the reads need (Zen 4: 0.85 of the bandwidth of
 * plain reading instead of 1.0). */
#define PREFETCH(p, ahead)                                                     \
  _mm_prefetch((const char *)((uintptr_t)(p) + (ahead)), _MM_HINT_T1)

/* ---------------------------------------------------------- bf16 tiles */

/* ROWS rows by N tokens over n columns, added to the sums. Every pass over
 * the tile prefetches, not the first alone: requests that found no buffer then
 * come again (Zen 4, 16 tokens: +18 %). */
#define PLAIN_STEP(N, LOAD_W)                                                  \
  do {                                                                         \
    UNROLL                                                                     \
    for (unsigned r = 0; r < ROWS; r++) {                                      \
      a[r] = LOAD_W(w + r * w_bytes + 2 * (size_t)i);                          \
      PREFETCH(w + r * w_bytes + 2 * (size_t)i, ahead);                        \
    }                                                                          \
    UNROLL                                                                     \
    for (unsigned t = 0; t < N; t++) {                                         \
      __m512i b = load_x(x + t * x_bytes + 2 * (size_t)i);                     \
      UNROLL                                                                   \
      for (unsigned r = 0; r < ROWS; r++)                                      \
        s[r][t] = _mm512_dpbf16_ps(s[r][t], as_bf16(a[r]), as_bf16(b));        \
    }                                                                          \
  } while (0)

#define LOAD_WHOLE(p) _mm512_loadu_si512((const void *)(p))
#define LOAD_TAIL(p)  _mm512_maskz_loadu_epi16(tail, p)

#define PLAIN_TILE(name, N)                                                    \
  static void name(const uint8_t *w, size_t w_bytes, size_t ahead,             \
                   const uint8_t *x, size_t x_bytes, uint32_t n,               \
                   float(*sums)[ROWS][16])                                     \
  {                                                                            \
    __mmask32 tail = (__mmask32)((1ull << n % 32) - 1);                        \
    __m512 s[ROWS][N];                                                         \
    __m512i a[ROWS];                                                           \
    uint32_t i = 0;                                                            \
                                                                               \
    UNROLL                                                                     \
    for (unsigned r = 0; r < ROWS; r++)                                        \
      UNROLL                                                                   \
    for (unsigned t = 0; t < N; t++)                                           \
      s[r][t] = _mm512_load_ps(sums[t][r]);                                    \
    for (; i + 32 <= n; i += 32)                                               \
      PLAIN_STEP(N, LOAD_WHOLE);                                               \
    if (i < n)                                                                 \
      PLAIN_STEP(N, LOAD_TAIL);                                                \
    UNROLL                                                                     \
    for (unsigned r = 0; r < ROWS; r++)                                        \
      UNROLL                                                                   \
    for (unsigned t = 0; t < N; t++)                                           \
      _mm512_store_ps(sums[t][r], s[r][t]);                                    \
  }

PLAIN_TILE(plain_1, 1)
PLAIN_TILE(plain_2, 2)
PLAIN_TILE(plain_3, 3)
PLAIN_TILE(plain_4, 4)
PLAIN_TILE(plain_5, 5)
PLAIN_TILE(plain_6, 6)
#define PLAIN_TOKENS 6u

typedef void (*plain_fn)(const uint8_t *w, size_t w_bytes, size_t ahead,
                         const uint8_t *x, size_t x_bytes, uint32_t n,
                         float (*sums)[ROWS][16]);
static const plain_fn plain_tiles[PLAIN_TOKENS] = {plain_1, plain_2, plain_3,
                                                   plain_4, plain_5, plain_6};

/* -------------------------------------------------------------- decode */

/* bf16 of an E4M3 magnitude, all but its sign: 3 mantissa bits below the
 * exponent; the eight denormals are m * 2^-9. NaN stays NaN. */
#define E4M3(c)                                                                \
  ((c) == 0      ? 0x0000                                                      \
   : (c) == 0x7f ? 0x7fc0                                                      \
   : (c) > 7     ? ((c) << 4) + (120 << 7)                                     \
   : (c) > 3     ? (120 << 7) + ((c)-4) * 32                                   \
   : (c) > 1     ? (119 << 7) + ((c)-2) * 64                                   \
                 : 118 << 7)
#define LOW(c)      (uint8_t)(E4M3(c) & 255)
#define HIGH(c)     (uint8_t)(E4M3(c) >> 8)
#define FOUR(f, c)  f(c), f((c) + 1), f((c) + 2), f((c) + 3)
#define OF_16(f, c) FOUR(f, c), FOUR(f, c + 4), FOUR(f, c + 8), FOUR(f, c + 12)
#define OF_64(f, c)                                                            \
  OF_16(f, c), OF_16(f, c + 16), OF_16(f, c + 32), OF_16(f, c + 48)
static const _Alignas(64) uint8_t e4m3_low[128] = {OF_64(LOW, 0),
                                                   OF_64(LOW, 64)};
static const _Alignas(64) uint8_t e4m3_high[128] = {OF_64(HIGH, 0),
                                                    OF_64(HIGH, 64)};

/* bf16 of the sixteen nibbles. */
static const _Alignas(16) uint8_t e2m1_low[16] = {
    0, 0, 0x80, 0xc0, 0, 0x40, 0x80, 0xc0,
    0, 0, 0x80, 0xc0, 0, 0x40, 0x80, 0xc0};
static const _Alignas(16) uint8_t e2m1_high[16] = {
    0,    0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40,
    0x80, 0xbf, 0xbf, 0xbf, 0xc0, 0xc0, 0xc0, 0xc0};
static const _Alignas(16) uint8_t int4_low[16] = {
    0x00, 0xe0, 0xc0, 0xa0, 0x80, 0x40, 0x00, 0x80,
    0x00, 0x80, 0x00, 0x40, 0x80, 0xa0, 0xc0, 0xe0};
static const _Alignas(16) uint8_t int4_high[16] = {
    0xc1, 0xc0, 0xc0, 0xc0, 0xc0, 0xc0, 0xc0, 0xbf,
    0x00, 0x3f, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40};

struct tables {
    __m512i low[2], high[2];
};

static inline struct tables tables_of(moec_wformat f)
{
    const void *low = f == MOEC_WFORMAT_INT4 ? int4_low : e2m1_low;
    const void *high = f == MOEC_WFORMAT_INT4 ? int4_high : e2m1_high;
    struct tables t;

    if (f == MOEC_WFORMAT_FP8) {
        for (int i = 0; i < 2; i++) {
            t.low[i] = _mm512_load_si512(e4m3_low + i * 64);
            t.high[i] = _mm512_load_si512(e4m3_high + i * 64);
        }
        return t;
    }
    t.low[0] = t.low[1] = _mm512_broadcast_i32x4(_mm_load_si128(low));
    t.high[0] = t.high[1] = _mm512_broadcast_i32x4(_mm_load_si128(high));
    return t;
}

/* The first n of 64, where n may be below 0 and above 64. */
static inline __mmask64 first_of_64(int32_t n)
{
    return n >= 64 ? ~0ull : n > 0 ? (1ull << n) - 1 : 0;
}

/* 128 codes to bf16; those past the first `left` read as 0, which decodes to
 * something finite and meets inputs of 0. Codes are spread so that unpacking
 * within lanes leaves the results in memory's order. */
static inline __attribute__((always_inline)) void
decode_128(const struct tables *t, bool fp8, const uint8_t *p, uint32_t left,
           __m512i out[4])
{
    const __m512i spread = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    int32_t n = left < 128 ? (int32_t)left : 128;

    UNROLL
    for (int h = 0; h < 2; h++) {
        __m512i c, low, high;

        if (fp8) {
            c = _mm512_maskz_loadu_epi8(first_of_64(n - 64 * h), p + 64 * h);
            c = _mm512_permutexvar_epi64(spread, c);
            low = _mm512_permutex2var_epi8(t->low[0], c, t->low[1]);
            high = _mm512_permutex2var_epi8(t->high[0], c, t->high[1]);
            /* high | (c & 0x80): the sign */
            high = _mm512_ternarylogic_epi32(
                high, c, _mm512_set1_epi8((char)0x80), 0xf8);
        } else {
            __mmask32 k = (__mmask32)first_of_64((n + 1) / 2 - 32 * h);

            c = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(k, p + 32 * h));
            c = _mm512_and_si512(_mm512_or_si512(c, _mm512_slli_epi16(c, 4)),
                                 _mm512_set1_epi8(15));
            c = _mm512_permutexvar_epi64(spread, c);
            low = _mm512_shuffle_epi8(t->low[0], c);
            high = _mm512_shuffle_epi8(t->high[0], c);
        }
        out[2 * h] = _mm512_unpacklo_epi8(low, high);
        out[2 * h + 1] = _mm512_unpackhi_epi8(low, high);
    }
}

/* -------------------------------------------------------- scaled tiles */

/* Scales that a tile keeps at once, each of `group` columns. */
#define SCALES 512u

struct decoded {
    _Alignas(64) uint16_t w[ROWS][COLS];
    _Alignas(64) float scale[ROWS][SCALES + 1];
};

#define SCALE_WHOLE(r, g) _mm512_set1_ps(d->scale[r][g])
/* Groups of 16: the lower eight lanes and the upper eight. */
#define SCALE_HALVES(r, g)                                                     \
  _mm512_insertf32x8(_mm512_set1_ps(d->scale[r][2 * (g)]),                     \
                     _mm256_set1_ps(d->scale[r][2 * (g) + 1]), 1)

/* ROWS rows by N tokens over n columns, a multiple of STEPS * 32, whose sums
 * get one scale every STEPS vectors. */
#define SCALED_TILE(name, N, STEPS, SCALE)                                     \
  static void name(const struct decoded *d, const uint8_t *x, size_t x_bytes,  \
                   uint32_t n, float(*sums)[ROWS][16])                         \
  {                                                                            \
    __m512 s[ROWS][N];                                                         \
                                                                               \
    UNROLL                                                                     \
    for (unsigned r = 0; r < ROWS; r++)                                        \
      UNROLL                                                                   \
    for (unsigned t = 0; t < N; t++)                                           \
      s[r][t] = _mm512_load_ps(sums[t][r]);                                    \
    for (uint32_t g = 0; g < n / (32 * STEPS); g++) {                          \
      __m512 p[ROWS][N];                                                       \
                                                                               \
      UNROLL                                                                   \
      for (unsigned r = 0; r < ROWS; r++)                                      \
        UNROLL                                                                 \
      for (unsigned t = 0; t < N; t++)                                         \
        p[r][t] = _mm512_setzero_ps();                                         \
      UNROLL                                                                   \
      for (unsigned k = 0; k < STEPS; k++) {                                   \
        size_t i = ((size_t)g * STEPS + k) * 32;                               \
        __m512i b[N];                                                          \
                                                                               \
        UNROLL                                                                 \
        for (unsigned t = 0; t < N; t++)                                       \
          b[t] = load_x(x + t * x_bytes + 2 * i);                              \
        UNROLL                                                                 \
        for (unsigned r = 0; r < ROWS; r++) {                                  \
          __m512i a = _mm512_load_si512((const void *)(d->w[r] + i));          \
          UNROLL                                                               \
          for (unsigned t = 0; t < N; t++)                                     \
            p[r][t] = _mm512_dpbf16_ps(p[r][t], as_bf16(a), as_bf16(b[t]));    \
        }                                                                      \
      }                                                                        \
      UNROLL                                                                   \
      for (unsigned r = 0; r < ROWS; r++) {                                    \
        __m512 scale = SCALE(r, g);                                            \
        UNROLL                                                                 \
        for (unsigned t = 0; t < N; t++)                                       \
          s[r][t] = _mm512_fmadd_ps(p[r][t], scale, s[r][t]);                  \
      }                                                                        \
    }                                                                          \
    UNROLL                                                                     \
    for (unsigned r = 0; r < ROWS; r++)                                        \
      UNROLL                                                                   \
    for (unsigned t = 0; t < N; t++)                                           \
      _mm512_store_ps(sums[t][r], s[r][t]);                                    \
  }

#define SCALED_TILES(N)                                                        \
  SCALED_TILE(scaled_16_##N, N, 1, SCALE_HALVES)                               \
  SCALED_TILE(scaled_32_##N, N, 1, SCALE_WHOLE)                                \
  SCALED_TILE(scaled_64_##N, N, 2, SCALE_WHOLE)                                \
  SCALED_TILE(scaled_128_##N, N, 4, SCALE_WHOLE)
SCALED_TILES(1)
SCALED_TILES(2)
SCALED_TILES(3)
#define SCALED_TOKENS 3u

typedef void (*scaled_fn)(const struct decoded *d, const uint8_t *x,
                          size_t x_bytes, uint32_t n, float (*sums)[ROWS][16]);
/* By group: 16, 32, 64, 128. */
static const scaled_fn scaled_tiles[4][SCALED_TOKENS] = {
    {scaled_16_1, scaled_16_2, scaled_16_3},
    {scaled_32_1, scaled_32_2, scaled_32_3},
    {scaled_64_1, scaled_64_2, scaled_64_3},
    {scaled_128_1, scaled_128_2, scaled_128_3},
};

/* The same sums without the way through memory: for so few tokens that a
 * weight is used once. What is prefetched as in PLAIN_STEP. */
struct direct {
    const uint8_t *w;
    size_t w_bytes, ahead;
    const float (*scale)[SCALES + 1];
    struct tables tables;
};

static inline __attribute__((always_inline)) __m512
direct_scale(const float *scale, unsigned group, uint32_t block, unsigned k)
{
    const float *s = scale + block * (128 / group) + k * 32 / group;

    if (group >= 32)
        return _mm512_set1_ps(*s);
    return _mm512_insertf32x8(_mm512_set1_ps(s[0]), _mm256_set1_ps(s[1]), 1);
}

static inline __attribute__((always_inline)) void
direct_tile(const struct direct *d, bool fp8, unsigned group, unsigned n_tokens,
            const uint8_t *x, size_t x_bytes, uint32_t n,
            float (*sums)[ROWS][16])
{
    const struct tables tables = d->tables;
    unsigned steps = group < 32 ? 1 : group / 32;
    __m512 s[ROWS][SCALED_TOKENS];

    UNROLL
    for (unsigned r = 0; r < ROWS; r++)
        UNROLL
    for (unsigned t = 0; t < n_tokens; t++)
        s[r][t] = _mm512_load_ps(sums[t][r]);
    for (uint32_t b = 0; b < (n + 127) / 128; b++) {
        size_t at = (size_t)b * (fp8 ? 128 : 64);

        UNROLL
        for (unsigned r = 0; r < ROWS; r++) {
            const uint8_t *p = d->w + r * d->w_bytes + at;
            __m512i a[4];
            __m512 sum = _mm512_setzero_ps();

            decode_128(&tables, fp8, p, n - b * 128, a);
            PREFETCH(p, d->ahead);
            if (fp8)
                PREFETCH(p + 64, d->ahead);
            UNROLL
            for (unsigned t = 0; t < n_tokens; t++)
                UNROLL
            for (unsigned k = 0; k < 4; k++) {
                __m512i v = load_x(x + t * x_bytes + 256 * (size_t)b + 64 * k);

                if (k % steps == 0)
                    sum = _mm512_setzero_ps();
                sum = _mm512_dpbf16_ps(sum, as_bf16(a[k]), as_bf16(v));
                if (k % steps == steps - 1)
                    s[r][t] = _mm512_fmadd_ps(
                        sum, direct_scale(d->scale[r], group, b, k - steps + 1),
                        s[r][t]);
            }
        }
    }
    UNROLL
    for (unsigned r = 0; r < ROWS; r++)
        UNROLL
    for (unsigned t = 0; t < n_tokens; t++)
        _mm512_store_ps(sums[t][r], s[r][t]);
}

#define DIRECT_TILE(name, FP8, GROUP, N)                                       \
  static void name(const struct direct *d, const uint8_t *x, size_t x_bytes,   \
                   uint32_t n, float(*sums)[ROWS][16])                         \
  {                                                                            \
    direct_tile(d, FP8, GROUP, N, x, x_bytes, n, sums);                        \
  }
#define DIRECT_TILES(G)                                                        \
  DIRECT_TILE(nibbles_##G##_1, false, G, 1)                                    \
  DIRECT_TILE(nibbles_##G##_2, false, G, 2)                                    \
  DIRECT_TILE(nibbles_##G##_3, false, G, 3)                                    \
  DIRECT_TILE(bytes_##G##_1, true, G, 1)                                       \
  DIRECT_TILE(bytes_##G##_2, true, G, 2)                                       \
  DIRECT_TILE(bytes_##G##_3, true, G, 3)
#define DIRECT_LIST(kind, G)                                                   \
  {                                                                            \
    kind##_##G##_1, kind##_##G##_2, kind##_##G##_3                             \
  }
DIRECT_TILES(16)
DIRECT_TILES(32)
DIRECT_TILES(64)
DIRECT_TILES(128)

typedef void (*direct_fn)(const struct direct *d, const uint8_t *x,
                          size_t x_bytes, uint32_t n, float (*sums)[ROWS][16]);
static const direct_fn direct_tiles[2][4][SCALED_TOKENS] = {
    {DIRECT_LIST(nibbles, 16), DIRECT_LIST(nibbles, 32),
     DIRECT_LIST(nibbles, 64), DIRECT_LIST(nibbles, 128)},
    {DIRECT_LIST(bytes, 16), DIRECT_LIST(bytes, 32), DIRECT_LIST(bytes, 64),
     DIRECT_LIST(bytes, 128)},
};

/* ---------------------------------------------------------------- rows */

/* Columns that one scale covers here: what divides the blocks, at most 128; 0
 * where nothing fits. */
static uint32_t group_of(const struct moec_mat *m)
{
    if (m->block_in >= m->n_in || m->block_in % 128 == 0)
        return 128;
    if (m->block_in % 64 == 0)
        return 64;
    if (m->block_in % 32 == 0)
        return 32;
    return m->block_in % 16 == 0 ? 16 : 0;
}

/* Scales of columns [col, col + n) of a row, one for each group. */
static void get_scales(const struct moec_matrix_fns *f,
                       const struct moec_mat *m, uint32_t row, uint32_t col,
                       uint32_t n, uint32_t group, float *out)
{
    uint32_t first = col / m->block_in, n_groups = (n + group - 1) / group;
    uint32_t n_stored = (col + n - 1) / m->block_in - first + 1;
    uint32_t bytes = moec_dtype_bits(m->scale_dtype) / 8;
    const uint8_t *p = m->scale + (moec_mat_scale_row(m, row) + first) * bytes;
    float stored[SCALES];

    if (m->block_in == group) {
        f->to_f32(m->scale_dtype, p, n_stored, out);
    } else {
        f->to_f32(m->scale_dtype, p, n_stored, stored);
        for (uint32_t g = 0; g < n_groups; g++)
            out[g] = stored[(col + g * group) / m->block_in - first];
    }
    if (m->scale2) {
        __m512 s2 = _mm512_set1_ps(m->scale2[row / m->scale2_rows]);

        for (uint32_t g = 0; g < n_groups; g += 16) {
            __mmask16 k =
                (__mmask16)(n_groups - g >= 16 ? 0xffffu
                                               : (1u << (n_groups - g)) - 1u);

            _mm512_mask_storeu_ps(
                out + g, k,
                _mm512_mul_ps(_mm512_maskz_loadu_ps(k, out + g), s2));
        }
    }
}

/* Scales of a tile. Rows of one block share theirs; groups behind the last
 * one, up to 128 columns, weigh 0. */
static void tile_scales(const struct moec_matrix_fns *f,
                        const struct moec_mat *m, uint32_t row, uint32_t n_rows,
                        uint32_t col, uint32_t n, float (*out)[SCALES + 1])
{
    uint32_t group = group_of(m), used = (n + group - 1) / group;
    uint32_t all = (n + 127) / 128 * (128 / group);

    for (uint32_t r = 0; r < n_rows; r++) {
        uint32_t block = m->block_out, in = (row + r) % m->part_rows;

        if (r > 0 && in % block != 0 && in != 0) {
            memcpy(out[r], out[r - 1], all * sizeof(float));
            continue;
        }
        get_scales(f, m, row + r, col, n, group, out[r]);
        for (uint32_t g = used; g < all; g++)
            out[r][g] = 0.0f;
    }
}

/* Sums over lanes of ROWS rows of a token, plus bias. */
static inline __m128 lane_sums(const float (*s)[16])
{
    __m512 a = _mm512_load_ps(s[0]), b = _mm512_load_ps(s[1]);
    __m512 c = _mm512_load_ps(s[2]), d = _mm512_load_ps(s[3]);
    __m256 half;

    a = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    c = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    a = _mm512_add_ps(_mm512_shuffle_ps(a, c, 0x44),
                      _mm512_shuffle_ps(a, c, 0xee));
    half =
        _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half),
                      _mm256_extractf128_ps(half, 1));
}

static void put_sums(const struct moec_mat *m, uint32_t row, uint32_t n_rows,
                     float (*sums)[ROWS][16], uint32_t n_tokens, float *out,
                     size_t out_stride)
{
    __mmask8 k = (__mmask8)((1u << n_rows) - 1);
    float bias[ROWS] = {0};

    for (uint32_t r = 0; m->bias && r < n_rows; r++)
        bias[r] = moec_mat_bias(m, row + r);
    for (uint32_t t = 0; t < n_tokens; t++)
        _mm_mask_storeu_ps(out + t * out_stride, k,
                           _mm_add_ps(lane_sums((const float(*)[16])sums[t]),
                                      _mm_loadu_ps(bias)));
}

/* ROWS rows of bf16, one block of columns after the other: 8 KiB of weights
 * stay in the L1 cache for all tokens. */
static void plain_tile(const uint8_t *w, size_t w_bytes, size_t ahead,
                       uint32_t n_in, const struct moec_acts *x, tile_sums sums)
{
    uint32_t n_tokens = (uint32_t)x->n;
    uint32_t groups = (n_tokens + PLAIN_TOKENS - 1) / PLAIN_TOKENS;
    uint32_t most = (n_tokens + groups - 1) / groups;

    memset(sums, 0, n_tokens * sizeof(sums[0]));
    for (uint32_t col = 0; col < n_in; col += COLS) {
        uint32_t n = n_in - col < COLS ? n_in - col : COLS;
        const uint8_t *xs = (const uint8_t *)x->x + 2 * (size_t)col;

        for (uint32_t t = 0; t < n_tokens; t += most) {
            uint32_t nt = n_tokens - t < most ? n_tokens - t : most;

            plain_tiles[nt - 1](w + 2 * (size_t)col, w_bytes, ahead,
                                xs + t * x->bytes, x->bytes, n, sums + t);
        }
    }
}

/* The last tile of a matrix may have fewer rows: each is then taken ROWS
 * times, so that nothing behind the matrix is read. */
static void plain_rows(const struct moec_mat *m, uint32_t row, uint32_t n_rows,
                       size_t ahead, const struct moec_acts *x, tile_sums sums)
{
    const uint8_t *w = m->data + row * m->row_bytes;
    _Alignas(64) tile_sums one;

    if (n_rows == ROWS) {
        plain_tile(w, m->row_bytes, ahead, m->n_in, x, sums);
        return;
    }
    for (uint32_t r = 0; r < n_rows; r++) {
        plain_tile(w + r * m->row_bytes, 0, 0, m->n_in, x, one);
        for (uint32_t t = 0; t < x->n; t++)
            memcpy(sums[t][r], one[t][0], sizeof(one[t][0]));
    }
}

static uint32_t group_number(const struct moec_mat *m)
{
    uint32_t group = group_of(m);

    return group == 128 ? 3 : group == 64 ? 2 : group == 32 ? 1 : 0;
}

/* Few tokens: decoded in registers. */
static void direct_rows(const struct moec_matrix_fns *f,
                        const struct moec_mat *m, uint32_t row, size_t ahead,
                        const struct moec_acts *x, tile_sums sums)
{
    bool fp8 = m->format == MOEC_WFORMAT_FP8;
    direct_fn tile = direct_tiles[fp8][group_number(m)][x->n - 1];
    float scale[ROWS][SCALES + 1];
    struct direct d = {.w_bytes = m->row_bytes,
                       .ahead = ahead,
                       .scale = (const float(*)[SCALES + 1]) scale,
                       .tables = tables_of(m->format)};
    uint32_t most = SCALES * group_of(m), n;

    memset(sums, 0, x->n * sizeof(sums[0]));
    for (uint32_t col = 0; col < m->n_in; col += n) {
        n = m->n_in - col < most ? m->n_in - col : most;
        tile_scales(f, m, row, ROWS, col, n, scale);
        d.w = m->data + row * m->row_bytes + (fp8 ? col : col / 2);
        tile(&d, (const uint8_t *)x->x + 2 * (size_t)col, x->bytes, n, sums);
    }
}

static void decode_row(const struct moec_mat *m, const struct tables *t,
                       uint32_t row, uint32_t col, uint32_t n, size_t ahead,
                       uint16_t *out)
{
    bool fp8 = m->format == MOEC_WFORMAT_FP8;
    const uint8_t *p = m->data + row * m->row_bytes + (fp8 ? col : col / 2);

    for (uint32_t i = 0; i < n; i += 128) {
        __m512i a[4];

        PREFETCH(p + (fp8 ? i : i / 2), ahead);
        if (fp8) {
            PREFETCH(p + i + 64, ahead);
            decode_128(t, true, p + i, n - i, a);
        } else {
            decode_128(t, false, p + i / 2, n - i, a);
        }
        UNROLL
        for (int k = 0; k < 4; k++)
            _mm512_store_si512((void *)(out + i + 32 * k), a[k]);
    }
}

static void scaled_rows(const struct moec_matrix_fns *f,
                        const struct moec_mat *m, uint32_t row, uint32_t n_rows,
                        size_t ahead, const struct moec_acts *x, tile_sums sums)
{
    const scaled_fn *tiles = scaled_tiles[group_number(m)];
    const struct tables tables = tables_of(m->format);
    struct decoded d;

    if (n_rows < ROWS) /* rows that are not there still take part */
        memset(&d, 0, sizeof(d));
    memset(sums, 0, x->n * sizeof(sums[0]));
    for (uint32_t col = 0; col < m->n_in; col += COLS) {
        uint32_t n = m->n_in - col < COLS ? m->n_in - col : COLS, step;
        const uint8_t *xs = (const uint8_t *)x->x + 2 * (size_t)col;

        for (uint32_t r = 0; r < n_rows; r++)
            decode_row(m, &tables, row + r, col, n, ahead, d.w[r]);
        tile_scales(f, m, row, n_rows, col, n, d.scale);
        for (uint32_t t = 0; t < x->n; t += step) {
            step = (uint32_t)moec_min_u64(x->n - t, SCALED_TOKENS);
            tiles[step - 1](&d, xs + t * x->bytes, x->bytes,
                            (n + 127) / 128 * 128, sums + t);
        }
    }
}

/* How far ahead to prefetch from tile `tile` of n: some 8 KiB, and behind the
 * last tile what the caller reads then. */
static size_t ahead_of(const struct moec_mat *m, uint32_t row, uint32_t tile,
                       uint32_t n_tiles, const uint8_t *then)
{
    size_t bytes = ROWS * m->row_bytes, step = (8191 + bytes) / bytes;

    if (tile + step < n_tiles)
        return step * bytes;
    if (!then)
        return 0;
    return (uintptr_t)then + (tile + step - n_tiles) * bytes -
           (uintptr_t)(m->data + row * m->row_bytes);
}

static void rows_bf16(const struct moec_matrix_fns *f, const struct moec_mat *m,
                      uint32_t row, uint32_t n_rows, const struct moec_acts *x,
                      float *out, size_t out_stride)
{
    uint32_t n_tiles = (n_rows + ROWS - 1) / ROWS;
    _Alignas(64) tile_sums sums;

    for (uint32_t i = 0; i < n_tiles; i++, row += ROWS) {
        uint32_t n = n_rows - i * ROWS < ROWS ? n_rows - i * ROWS : ROWS;
        size_t ahead = ahead_of(m, row, i, n_tiles, x->then);

        if (m->format == MOEC_WFORMAT_BF16)
            plain_rows(m, row, n, ahead, x, sums);
        else if (n == ROWS && x->n <= SCALED_TOKENS)
            direct_rows(f, m, row, ahead, x, sums);
        else
            scaled_rows(f, m, row, n, ahead, x, sums);
        put_sums(m, row, n, sums, (uint32_t)x->n, out + (size_t)i * ROWS,
                 out_stride);
    }
}

/* ---------------------------------------------------------------- pack */

/* Tokens stand a cache line off: at powers of two all would meet in the same
 * few lines of the L1 cache (12 % at 16 tokens). */
static size_t x_bytes_bf16(uint32_t n_in)
{
    return ((size_t)n_in + 127) / 128 * 128 * sizeof(uint16_t) + 64;
}

static void pack_bf16(const float *x, uint32_t first, uint32_t n, uint32_t n_in,
                      void *row)
{
    uint16_t *out = (uint16_t *)row + first;
    uint32_t end = first + n == n_in ? (n_in + 127) / 128 * 128 - first : n;

    for (uint32_t i = 0; i < end; i += 16) {
        __mmask16 k = (__mmask16)(n >= i + 16 ? 0xffffu
                                  : n > i     ? (1u << (n - i)) - 1u
                                              : 0u);
        __mmask16 to =
            (__mmask16)(end >= i + 16 ? 0xffffu : (1u << (end - i)) - 1u);
        __m256bh h = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(k, x + i));

        _mm256_mask_storeu_epi16(out + i, to, (__m256i)h);
    }
}

static const struct moec_product product_bf16 = {
    .x_bytes = x_bytes_bf16, .pack = pack_bf16, .rows = rows_bf16};

const struct moec_product *moec_fast_bf16(const struct moec_mat *m)
{
    switch (m->format) {
    case MOEC_WFORMAT_BF16:
        return &product_bf16;
    case MOEC_WFORMAT_INT4:
        if (m->zeros)
            return NULL;
        return group_of(m) ? &product_bf16 : NULL;
    case MOEC_WFORMAT_FP8:
    case MOEC_WFORMAT_MXFP4:
    case MOEC_WFORMAT_NVFP4:
        return group_of(m) ? &product_bf16 : NULL;
    case MOEC_WFORMAT_F32:
    case MOEC_WFORMAT_F16:
    case MOEC_WFORMAT_AWQ:
    case MOEC_WFORMAT_GPTQ:
        break;
    }
    return NULL;
}
