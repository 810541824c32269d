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

#include "decode_bf16.h"

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
    for (unsigned t = 0; t < (N); t++) {                                       \
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
    for (unsigned t = 0; t < (N); t++)                                         \
      s[r][t] = _mm512_load_ps(sums[t][r]);                                    \
    for (; i + 32 <= n; i += 32)                                               \
      PLAIN_STEP(N, LOAD_WHOLE);                                               \
    if (i < n)                                                                 \
      PLAIN_STEP(N, LOAD_TAIL);                                                \
    UNROLL                                                                     \
    for (unsigned r = 0; r < ROWS; r++)                                        \
      UNROLL                                                                   \
    for (unsigned t = 0; t < (N); t++)                                         \
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

/* -------------------------------------------------------- scaled tiles
 * 128 columns at a time: the sums of four vectors get one scale a lane, or
 * those of the first two and of the last two one each. */

/* Scales that a tile keeps at once, each of `group` columns; what is read
 * behind them is not used. */
#define SCALES        512u
#define SCALE_STRIDE  (SCALES + 16)
#define SCALED_TOKENS 3u

struct weights {
    const uint8_t *p; /* codes, or bf16 in the order of decode_bf16.h */
    size_t row_bytes, ahead;
    const float (*scale)[SCALE_STRIDE];
    uint32_t per_block; /* scales in 128 columns */
    __m512i which[2];   /* of those the one of each lane, for both halves */
    struct tables tables;
};

static inline __m512 lane_scales(const struct weights *w, unsigned row,
                                 uint32_t block, unsigned half)
{
    return _mm512_permutexvar_ps(
        w->which[half],
        _mm512_loadu_ps(w->scale[row] + (size_t)block * w->per_block));
}

/* ROWS rows decoded before, by N tokens. */
static inline __attribute__((always_inline)) void
decoded_tile(const struct weights *w, unsigned halves, unsigned n_tokens,
             const uint8_t *x, size_t x_bytes, uint32_t n,
             float (*sums)[ROWS][16])
{
    unsigned steps = 4 / halves;
    __m512 s[ROWS][SCALED_TOKENS], p[ROWS][SCALED_TOKENS];

    UNROLL
    for (unsigned r = 0; r < ROWS; r++)
        UNROLL
    for (unsigned t = 0; t < n_tokens; t++)
        s[r][t] = _mm512_load_ps(sums[t][r]);
    for (uint32_t g = 0; g < (n + 127) / 128 * halves; g++) {
        UNROLL
        for (unsigned r = 0; r < ROWS; r++)
            UNROLL
        for (unsigned t = 0; t < n_tokens; t++)
            p[r][t] = _mm512_setzero_ps();
        UNROLL
        for (unsigned k = 0; k < steps; k++) {
            size_t at = ((size_t)g * steps + k) * 64;
            __m512i b[SCALED_TOKENS];

            UNROLL
            for (unsigned t = 0; t < n_tokens; t++)
                b[t] = load_x(x + t * x_bytes + at);
            UNROLL
            for (unsigned r = 0; r < ROWS; r++) {
                __m512i a = load_x(w->p + r * w->row_bytes + at);

                UNROLL
                for (unsigned t = 0; t < n_tokens; t++)
                    p[r][t] =
                        _mm512_dpbf16_ps(p[r][t], as_bf16(a), as_bf16(b[t]));
            }
        }
        UNROLL
        for (unsigned r = 0; r < ROWS; r++) {
            __m512 scale = lane_scales(w, r, g / halves, g % halves);

            UNROLL
            for (unsigned t = 0; t < n_tokens; t++)
                s[r][t] = _mm512_fmadd_ps(p[r][t], scale, s[r][t]);
        }
    }
    UNROLL
    for (unsigned r = 0; r < ROWS; r++)
        UNROLL
    for (unsigned t = 0; t < n_tokens; t++)
        _mm512_store_ps(sums[t][r], s[r][t]);
}

/* The same sums without the way through memory: for so few tokens that a
 * weight is used once or twice. */
static inline __attribute__((always_inline)) void
coded_tile(const struct weights *w, bool fp8, unsigned halves,
           unsigned n_tokens, const uint8_t *x, size_t x_bytes, uint32_t n,
           float (*sums)[ROWS][16])
{
    const struct tables tables = w->tables;
    unsigned steps = 4 / halves;
    __m512 s[ROWS][SCALED_TOKENS];

    UNROLL
    for (unsigned r = 0; r < ROWS; r++)
        UNROLL
    for (unsigned t = 0; t < n_tokens; t++)
        s[r][t] = _mm512_load_ps(sums[t][r]);
    for (uint32_t b = 0; b < (n + 127) / 128; b++) {
        UNROLL
        for (unsigned r = 0; r < ROWS; r++) {
            const uint8_t *p =
                w->p + r * w->row_bytes + (size_t)b * (fp8 ? 128 : 64);
            __m512 scale[2], sum = _mm512_setzero_ps();
            __m512i a[4];

            if (n - b * 128 >= 128) /* without masks: 10 % */
                decode_128(&tables, fp8, p, 128, a);
            else
                decode_128(&tables, fp8, p, n - b * 128, a);
            PREFETCH(p, w->ahead);
            if (fp8)
                PREFETCH(p + 64, w->ahead);
            UNROLL
            for (unsigned h = 0; h < halves; h++)
                scale[h] = lane_scales(w, r, b, h);
            UNROLL
            for (unsigned t = 0; t < n_tokens; t++)
                UNROLL
            for (unsigned k = 0; k < 4; k++) {
                __m512i v = load_x(x + t * x_bytes + 256 * (size_t)b + 64 * k);

                if (k % steps == 0)
                    sum = _mm512_setzero_ps();
                sum = _mm512_dpbf16_ps(sum, as_bf16(a[k]), as_bf16(v));
                if (k % steps == steps - 1)
                    s[r][t] = _mm512_fmadd_ps(sum, scale[k / steps], s[r][t]);
            }
        }
    }
    UNROLL
    for (unsigned r = 0; r < ROWS; r++)
        UNROLL
    for (unsigned t = 0; t < n_tokens; t++)
        _mm512_store_ps(sums[t][r], s[r][t]);
}

#define SCALED_ARGS                                                            \
  const struct weights *w, const uint8_t *x, size_t x_bytes, uint32_t n,       \
      float(*sums)[ROWS][16]
#define SCALED_TILES(HALVES, N)                                                \
  static void decoded_##HALVES##_##N(SCALED_ARGS)                              \
  {                                                                            \
    decoded_tile(w, HALVES, N, x, x_bytes, n, sums);                           \
  }                                                                            \
  static void nibbles_##HALVES##_##N(SCALED_ARGS)                              \
  {                                                                            \
    coded_tile(w, false, HALVES, N, x, x_bytes, n, sums);                      \
  }                                                                            \
  static void bytes_##HALVES##_##N(SCALED_ARGS)                                \
  {                                                                            \
    coded_tile(w, true, HALVES, N, x, x_bytes, n, sums);                       \
  }
SCALED_TILES(1, 1)
SCALED_TILES(1, 2)
SCALED_TILES(1, 3)
SCALED_TILES(2, 1)
SCALED_TILES(2, 2)
SCALED_TILES(2, 3)

enum { DECODED, NIBBLES, BYTES };
typedef void (*scaled_fn)(SCALED_ARGS);
static const scaled_fn scaled_tiles[3][2][SCALED_TOKENS] = {
    {{decoded_1_1, decoded_1_2, decoded_1_3},
     {decoded_2_1, decoded_2_2, decoded_2_3}},
    {{nibbles_1_1, nibbles_1_2, nibbles_1_3},
     {nibbles_2_1, nibbles_2_2, nibbles_2_3}},
    {{bytes_1_1, bytes_1_2, bytes_1_3}, {bytes_2_1, bytes_2_2, bytes_2_3}},
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

/* Whether all rows from a to b have the same scales. */
static bool one_block(const struct moec_mat *m, uint32_t a, uint32_t b)
{
    return m->block_out > 1 && !m->scale2 &&
           moec_mat_scale_row(m, a) == moec_mat_scale_row(m, b);
}

/* Scales of a tile. Rows of one block share theirs; groups behind the last
 * one, up to 128 columns, weigh 0. */
static void tile_scales(const struct moec_matrix_fns *f,
                        const struct moec_mat *m, uint32_t row, uint32_t n_rows,
                        uint32_t col, uint32_t n, float (*out)[SCALE_STRIDE])
{
    uint32_t group = group_of(m), used = (n + group - 1) / group;
    uint32_t all = (n + 127) / 128 * (128 / group);

    for (uint32_t r = 0; r < n_rows; r++) {
        if (r > 0 && one_block(m, row + r - 1, row + r)) {
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

/* Everything of a tile's weights but where they are. */
static struct weights weights_of(const struct moec_mat *m,
                                 const float (*scale)[SCALE_STRIDE])
{
    struct weights w = {.row_bytes = m->row_bytes,
                        .scale = scale,
                        .per_block = 128 / group_of(m),
                        .tables = tables_of(m->format)};
    const __m512i lane = _mm512_srli_epi32(
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
        2);

    for (int h = 0; h < 2; h++) { /* columns in units of 16, over the group */
        __m512i at = m->format == MOEC_WFORMAT_FP8
                         ? _mm512_add_epi32(lane, _mm512_set1_epi32(4 * h))
                         : _mm512_add_epi32(_mm512_add_epi32(lane, lane),
                                            _mm512_set1_epi32(h));

        w.which[h] = _mm512_srlv_epi32(
            at, _mm512_set1_epi32(__builtin_ctz(group_of(m) / 16)));
    }
    return w;
}

/* Whether the two halves of a block differ in scale. */
static unsigned halves_of(const struct moec_mat *m)
{
    return group_of(m) < (m->format == MOEC_WFORMAT_FP8 ? 128 : 32) ? 2 : 1;
}

static size_t code_bytes(const struct moec_mat *m, uint32_t n)
{
    return m->format == MOEC_WFORMAT_FP8 ? n : n / 2;
}

/* What the tiles of a call have in common. */
struct scaled_call {
    const struct moec_matrix_fns *f;
    const struct moec_mat *m;
    const struct moec_acts *x;
    struct weights w;
    float scale[ROWS][SCALE_STRIDE];
    bool whole; /* a row's scales fit, and are kept from tile to tile */
};

/* Few tokens: decoded in registers. */
static void coded_rows(struct scaled_call *c, uint32_t row, bool same_scales,
                       size_t ahead, tile_sums sums)
{
    const struct moec_mat *m = c->m;
    int kind = m->format == MOEC_WFORMAT_FP8 ? BYTES : NIBBLES;
    scaled_fn tile = scaled_tiles[kind][halves_of(m) - 1][c->x->n - 1];
    uint32_t most = SCALES * group_of(m), n;

    c->w.ahead = ahead;
    c->w.row_bytes = m->row_bytes;
    for (uint32_t col = 0; col < m->n_in; col += n) {
        n = m->n_in - col < most ? m->n_in - col : most;
        if (!same_scales)
            tile_scales(c->f, m, row, ROWS, col, n, c->scale);
        c->w.p = m->data + row * m->row_bytes + code_bytes(m, col);
        tile(&c->w, (const uint8_t *)c->x->x + 2 * (size_t)col, c->x->bytes, n,
             sums);
    }
}

static void decode_row(const struct moec_mat *m, const struct tables *t,
                       uint32_t row, uint32_t col, uint32_t n, size_t ahead,
                       uint16_t *out)
{
    const uint8_t *p = m->data + row * m->row_bytes + code_bytes(m, col);

    for (uint32_t i = 0; i < n; i += 128) {
        __m512i a[4];

        PREFETCH(p + code_bytes(m, i), ahead);
        if (m->format == MOEC_WFORMAT_FP8) {
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

static void decoded_rows(struct scaled_call *c, uint32_t row, uint32_t n_rows,
                         size_t ahead, tile_sums sums)
{
    const struct moec_mat *m = c->m;
    const struct moec_acts *x = c->x;
    const scaled_fn *tiles = scaled_tiles[DECODED][halves_of(m) - 1];
    _Alignas(64) uint16_t code[ROWS][COLS];

    if (n_rows < ROWS) { /* rows that are not there still take part */
        memset(code, 0, sizeof(code));
        memset(c->scale, 0, sizeof(c->scale));
    }
    c->w.p = (const uint8_t *)code;
    c->w.row_bytes = sizeof(code[0]);
    for (uint32_t col = 0; col < m->n_in; col += COLS) {
        uint32_t n = m->n_in - col < COLS ? m->n_in - col : COLS, step;
        const uint8_t *xs = (const uint8_t *)x->x + 2 * (size_t)col;

        for (uint32_t r = 0; r < n_rows; r++)
            decode_row(m, &c->w.tables, row + r, col, n, ahead, code[r]);
        tile_scales(c->f, m, row, n_rows, col, n, c->scale);
        for (uint32_t t = 0; t < x->n; t += step) {
            step = (uint32_t)moec_min_u64(x->n - t, SCALED_TOKENS);
            tiles[step - 1](&c->w, xs + t * x->bytes, x->bytes, n, sums + t);
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

static void rows_plain(const struct moec_matrix_fns *f,
                       const struct moec_mat *m, uint32_t row, uint32_t n_rows,
                       const struct moec_acts *x, float *out, size_t out_stride)
{
    uint32_t n_tiles = (n_rows + ROWS - 1) / ROWS;
    _Alignas(64) tile_sums sums;

    (void)f;
    for (uint32_t i = 0; i < n_tiles; i++, row += ROWS) {
        uint32_t n = n_rows - i * ROWS < ROWS ? n_rows - i * ROWS : ROWS;

        plain_rows(m, row, n, ahead_of(m, row, i, n_tiles, x->then), x, sums);
        put_sums(m, row, n, sums, (uint32_t)x->n, out + (size_t)i * ROWS,
                 out_stride);
    }
}

static void rows_scaled(const struct moec_matrix_fns *f,
                        const struct moec_mat *m, uint32_t row, uint32_t n_rows,
                        const struct moec_acts *x, float *out,
                        size_t out_stride)
{
    uint32_t n_tiles = (n_rows + ROWS - 1) / ROWS;
    struct scaled_call c; /* its scales are written before they are read */
    _Alignas(64) tile_sums sums;

    c.f = f;
    c.m = m;
    c.x = x;
    c.w = weights_of(m, (const float(*)[SCALE_STRIDE])c.scale);
    c.whole = m->n_in <= SCALES * group_of(m);
    for (uint32_t i = 0; i < n_tiles; i++, row += ROWS) {
        uint32_t n = n_rows - i * ROWS < ROWS ? n_rows - i * ROWS : ROWS;
        size_t ahead = ahead_of(m, row, i, n_tiles, x->then);

        memset(sums, 0, x->n * sizeof(sums[0]));
        if (n == ROWS && x->n <= SCALED_TOKENS)
            coded_rows(&c, row,
                       i > 0 && c.whole && one_block(m, row - 1, row + 3),
                       ahead, sums);
        else
            decoded_rows(&c, row, n, ahead, sums);
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

/* Sixteen of n values from i, 0 behind them. */
static inline __m256i bf16_at(const float *x, uint32_t i, uint32_t n)
{
    __mmask16 k = (__mmask16)(n >= i + 16 ? 0xffffu
                              : n > i     ? (1u << (n - i)) - 1u
                                          : 0u);

    return (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(k, x + i));
}

/* One past the values to write: up to 128 behind the row's last. */
static uint32_t pack_end(uint32_t first, uint32_t n, uint32_t n_in)
{
    return first + n == n_in ? (n_in + 127) / 128 * 128 - first : n;
}

static void pack_plain(const float *x, uint32_t first, uint32_t n,
                       uint32_t n_in, void *row)
{
    uint16_t *out = (uint16_t *)row + first;

    for (uint32_t i = 0; i < pack_end(first, n, n_in); i += 16)
        _mm256_store_si256((void *)(out + i), bf16_at(x, i, n));
}

static void pack_bytes(const float *x, uint32_t first, uint32_t n,
                       uint32_t n_in, void *row)
{
    for (uint32_t i = 0; i < pack_end(first, n, n_in); i += 16)
        put_bytes(row, first + i, bf16_at(x, i, n));
}

static void pack_nibbles(const float *x, uint32_t first, uint32_t n,
                         uint32_t n_in, void *row)
{
    for (uint32_t i = 0; i < pack_end(first, n, n_in); i += 16)
        put_nibbles(row, first + i, bf16_at(x, i, n));
}

static const struct moec_product product_plain = {
    .x_bytes = x_bytes_bf16, .pack = pack_plain, .rows = rows_plain};
static const struct moec_product product_bytes = {
    .x_bytes = x_bytes_bf16, .pack = pack_bytes, .rows = rows_scaled};
static const struct moec_product product_nibbles = {
    .x_bytes = x_bytes_bf16, .pack = pack_nibbles, .rows = rows_scaled};

const struct moec_product *moec_fast_bf16(const struct moec_mat *m)
{
    switch (m->format) {
    case MOEC_WFORMAT_BF16:
        return &product_plain;
    case MOEC_WFORMAT_FP8:
        return group_of(m) ? &product_bytes : NULL;
    case MOEC_WFORMAT_INT4:
        if (m->zeros)
            return NULL;
        return group_of(m) ? &product_nibbles : NULL;
    case MOEC_WFORMAT_MXFP4:
    case MOEC_WFORMAT_NVFP4:
        return group_of(m) ? &product_nibbles : NULL;
    case MOEC_WFORMAT_F32:
    case MOEC_WFORMAT_F16:
    case MOEC_WFORMAT_AWQ:
    case MOEC_WFORMAT_GPTQ:
        break;
    }
    return NULL;
}
