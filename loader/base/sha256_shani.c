/* SPDX-License-Identifier: Apache-2.0 */

/*
 * SHA-256 of two messages at once with the SHA extensions.
 *
 * One message cannot keep the unit busy: each sha256rnds2 waits for the one
 * before. Two independent messages, interleaved, hide that wait: digest.c
 * hands over two leaves of a block at a time. Only this file is compiled with
 * these instructions; digest.c asks the CPU first. FIPS 180-4 section 6.2.2;
 * the order of state words (ABEF, CDGH) is the instructions' own.
 */

#include "base/sha256_shani.h"

#if defined(__x86_64__) && defined(__SHA__)

#  include <immintrin.h>

/* FIPS 180-4 section 4.2.2. */
static const uint32_t k256[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
    0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
    0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
    0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
    0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
    0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
    0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

typedef struct lane {
    __m128i abef, cdgh; /* running state */
    __m128i a0, c0;     /* state before this block */
    __m128i w[4];       /* the last 16 schedule words */
} lane;

static inline __attribute__((always_inline)) void load_state(lane *l,
                                                             const uint32_t *s)
{
    __m128i lo = _mm_loadu_si128((const __m128i *)(const void *)s);
    __m128i hi = _mm_loadu_si128((const __m128i *)(const void *)(s + 4));

    lo = _mm_shuffle_epi32(lo, 0xB1); /* CDAB */
    hi = _mm_shuffle_epi32(hi, 0x1B); /* EFGH */
    l->abef = _mm_alignr_epi8(lo, hi, 8);
    l->cdgh = _mm_blend_epi16(hi, lo, 0xF0);
}

static inline __attribute__((always_inline)) void store_state(const lane *l,
                                                              uint32_t *s)
{
    __m128i feba = _mm_shuffle_epi32(l->abef, 0x1B);
    __m128i dchg = _mm_shuffle_epi32(l->cdgh, 0xB1);

    _mm_storeu_si128((__m128i *)(void *)s, _mm_blend_epi16(feba, dchg, 0xF0));
    _mm_storeu_si128((__m128i *)(void *)(s + 4),
                     _mm_alignr_epi8(dchg, feba, 8));
}

/* 16 bytes of the message, stored at `to` on the way unless that is NULL. They
 * are loaded once: what is digested is what was stored, whoever writes to the
 * source meanwhile. */
static inline __attribute__((always_inline)) __m128i
load_words(const unsigned char *from, unsigned char *to)
{
    __m128i x = _mm_loadu_si128((const __m128i *)(const void *)from);

    if (to != NULL) {
        __asm__("" : "+x"(x)); /* not to be loaded again */
        _mm_storeu_si128((__m128i *)(void *)to, x);
    }
    return x;
}

/* Rounds 4i .. 4i+3. Words 0..3 of the message are loaded, later ones come
 * from the schedule; both land in w[i % 4]. */
static inline __attribute__((always_inline)) void
four_rounds(lane *l, const unsigned char *block, unsigned char *to, size_t i)
{
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i *w = l->w, x;

    if (i < 4) {
        w[i] = _mm_shuffle_epi8(
            load_words(block + 16 * i, to != NULL ? to + 16 * i : NULL), swap);
    } else {
        __m128i t = _mm_sha256msg1_epu32(w[i % 4], w[(i + 1) % 4]);
        t = _mm_add_epi32(t,
                          _mm_alignr_epi8(w[(i + 3) % 4], w[(i + 2) % 4], 4));
        w[i % 4] = _mm_sha256msg2_epu32(t, w[(i + 3) % 4]);
    }
    x = _mm_add_epi32(
        w[i % 4],
        _mm_load_si128((const __m128i *)(const void *)(k256 + 4 * i)));
    l->cdgh = _mm_sha256rnds2_epu32(l->cdgh, l->abef, x);
    x = _mm_shuffle_epi32(x, 0x0E);
    l->abef = _mm_sha256rnds2_epu32(l->abef, l->cdgh, x);
}

/* Lines to be stored to are asked for so many bytes before: stores that wait
 * for memory took 5 % of the time. */
#  define STORES_AHEAD 2048

/* `copy` is a constant where this is inlined. */
static inline __attribute__((always_inline)) void
compress_x2(uint32_t state_a[8], uint32_t state_b[8],
            const moec_sha256_block m[2], size_t n_blocks, bool copy)
{
    const unsigned char *a = m[0].from, *ahead_a = m[0].ahead;
    const unsigned char *b = m[1].from, *ahead_b = m[1].ahead;
    unsigned char *to_a = m[0].to, *to_b = m[1].to;
    lane x, y;

    load_state(&x, state_a);
    load_state(&y, state_b);
    for (size_t k = 0; k < 64 * n_blocks; k += 64) {
        x.a0 = x.abef;
        x.c0 = x.cdgh;
        y.a0 = y.abef;
        y.c0 = y.cdgh;
        if (copy) {
            __builtin_prefetch(ahead_a + k);
            __builtin_prefetch(ahead_b + k);
            __builtin_prefetch(to_a + k + STORES_AHEAD, 1);
            __builtin_prefetch(to_b + k + STORES_AHEAD, 1);
        }
#  pragma GCC unroll 16
        for (size_t i = 0; i < 16; i++) {
            four_rounds(&x, a + k, copy ? to_a + k : NULL, i);
            four_rounds(&y, b + k, copy ? to_b + k : NULL, i);
        }
        x.abef = _mm_add_epi32(x.abef, x.a0);
        x.cdgh = _mm_add_epi32(x.cdgh, x.c0);
        y.abef = _mm_add_epi32(y.abef, y.a0);
        y.cdgh = _mm_add_epi32(y.cdgh, y.c0);
    }
    store_state(&x, state_a);
    store_state(&y, state_b);
}

void moec_sha256_shani_x2(uint32_t state_a[8], const unsigned char *a,
                          uint32_t state_b[8], const unsigned char *b,
                          size_t n_blocks)
{
    const moec_sha256_block m[2] = {{.from = a}, {.from = b}};

    compress_x2(state_a, state_b, m, n_blocks, false);
}

void moec_sha256_shani_copy_x2(uint32_t state_a[8], uint32_t state_b[8],
                               const moec_sha256_block b[2], size_t n_blocks)
{
    compress_x2(state_a, state_b, b, n_blocks, true);
}

bool moec_sha256_shani_built(void)
{
    return true;
}

#else

void moec_sha256_shani_x2(uint32_t state_a[8], const unsigned char *a,
                          uint32_t state_b[8], const unsigned char *b,
                          size_t n_blocks)
{
    (void)state_a;
    (void)a;
    (void)state_b;
    (void)b;
    (void)n_blocks;
}

void moec_sha256_shani_copy_x2(uint32_t state_a[8], uint32_t state_b[8],
                               const moec_sha256_block b[2], size_t n_blocks)
{
    (void)state_a;
    (void)state_b;
    (void)b;
    (void)n_blocks;
}

bool moec_sha256_shani_built(void)
{
    return false;
}

#endif
