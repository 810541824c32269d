/* SPDX-License-Identifier: Apache-2.0
 *
 * FP8 and 4-bit codes to bf16 in registers, 128 at a time and unscaled: every
 * value of these formats is one of bf16's. Included by ffn_avx512bf16.c alone.
 *
 * A code's two bytes come from two tables and are put side by side within
 * lanes of 128 bits, which leaves the values out of memory's order:
 *   bytes    vectors 0 and 1 are codes 0 .. 63, 2 and 3 codes 64 .. 127; lane
 *            l holds codes 16 l .. 16 l + 7 in the first of the two, the next
 *            eight in the second
 *   nibbles  lane l holds codes 32 l .. 32 l + 31: of the first sixteen the
 *            even ones in vector 0, the odd ones in 1, of the others in 2, 3
 * Inputs are packed in the same order (pack_bytes, pack_nibbles), so that no
 * product pays for it, and a lane never mixes groups of 32 (16) nibbles. */

/* bf16 of an E4M3 magnitude, all but its sign: 3 mantissa bits below the
 * exponent; the eight denormals are m * 2^-9. NaN stays NaN. */
#define E4M3(c)                                                                \
  ((c) == 0      ? 0x0000                                                      \
   : (c) == 0x7f ? 0x7fc0                                                      \
   : (c) > 7     ? ((c) << 4) + (120 << 7)                                     \
   : (c) > 3     ? (120 << 7) + ((c)-4) * 32                                   \
   : (c) > 1     ? (119 << 7) + ((c)-2) * 64                                   \
                 : 118 << 7)
#define LOW(c)     (uint8_t)(E4M3(c) & 255)
#define HIGH(c)    (uint8_t)(E4M3(c) >> 8)
#define FOUR(f, c) f((c)), f((c) + 1), f((c) + 2), f((c) + 3)
#define OF_16(f, c)                                                            \
  FOUR(f, (c)), FOUR(f, (c) + 4), FOUR(f, (c) + 8), FOUR(f, (c) + 12)
#define OF_64(f, c)                                                            \
  OF_16(f, (c)), OF_16(f, (c) + 16), OF_16(f, (c) + 32), OF_16(f, (c) + 48)
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
        for (size_t i = 0; i < 2; i++) {
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

/* 128 codes to four vectors; those past the first `left` are read as 0, which
 * decodes to something finite and meets inputs of 0. */
static inline __attribute__((always_inline)) void
decode_128(const struct tables *t, bool fp8, const uint8_t *p, uint32_t left,
           __m512i out[4])
{
    int32_t n = left < 128 ? (int32_t)left : 128;

    UNROLL
    for (uint32_t h = 0; h < 2; h++) {
        __m512i c, low, high;

        if (fp8) {
            c = _mm512_maskz_loadu_epi8(first_of_64(n - 64 * (int32_t)h),
                                        p + 64 * (size_t)h);
            low = _mm512_permutex2var_epi8(t->low[0], c, t->low[1]);
            high = _mm512_permutex2var_epi8(t->high[0], c, t->high[1]);
            /* high | (c & 0x80): the sign */
            high = _mm512_ternarylogic_epi32(
                high, c, _mm512_set1_epi8((char)0x80), 0xf8);
            out[2 * (size_t)h] = _mm512_unpacklo_epi8(low, high);
            out[2 * (size_t)h + 1] = _mm512_unpackhi_epi8(low, high);
        } else {
            c = _mm512_maskz_loadu_epi8(first_of_64((n + 1) / 2), p);
            c = h ? _mm512_srli_epi16(c, 4) : c;
            c = _mm512_and_si512(c, _mm512_set1_epi8(15));
            low = _mm512_shuffle_epi8(t->low[0], c);
            high = _mm512_shuffle_epi8(t->high[0], c);
            out[h] = _mm512_unpacklo_epi8(low, high);
            out[h + 2] = _mm512_unpackhi_epi8(low, high);
        }
    }
}

/* Put 16 values, packed to bf16, where element `first` (a multiple of 16) of a
 * row of each order belongs. */
static inline void put_bytes(uint16_t *row, uint32_t first, __m256i v)
{
    size_t q = first % 128 / 16;
    uint16_t *out = row + (size_t)(first / 128) * 128 + q / 4 * 64 + q % 4 * 8;

    _mm_store_si128((void *)out, _mm256_castsi256_si128(v));
    _mm_store_si128((void *)(out + 32), _mm256_extracti128_si256(v, 1));
}

static inline void put_nibbles(uint16_t *row, uint32_t first, __m256i v)
{
    const __m256i split = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
    size_t q = first % 128 / 16;
    uint16_t *out = row + (size_t)(first / 128) * 128 + q % 2 * 64 + q / 2 * 8;

    v = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(v, split), 0xd8);
    _mm_store_si128((void *)out, _mm256_castsi256_si128(v));
    _mm_store_si128((void *)(out + 32), _mm256_extracti128_si256(v, 1));
}
