/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_SIPHASH_H
#define MOEC_SIPHASH_H

/*
 * What this is: the inner steps of SipHash-1-3 (Aumasson and Bernstein, 2012),
 *   which the string map and the key set share: one round a word, three at the
 *   end, the strength that hash tables want (Rust's and Python's choice).
 */

#include <stdint.h>

static inline uint64_t moec_sip_rotl(uint64_t x, unsigned n)
{
    return x << n | x >> (64 - n);
}

static inline void moec_sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[1] = moec_sip_rotl(v[1], 13) ^ v[0];
    v[0] = moec_sip_rotl(v[0], 32);
    v[2] += v[3];
    v[3] = moec_sip_rotl(v[3], 16) ^ v[2];
    v[0] += v[3];
    v[3] = moec_sip_rotl(v[3], 21) ^ v[0];
    v[2] += v[1];
    v[1] = moec_sip_rotl(v[1], 17) ^ v[2];
    v[2] = moec_sip_rotl(v[2], 32);
}

static inline void moec_sip_begin(uint64_t v[4], const uint64_t secret[2])
{
    v[0] = secret[0] ^ UINT64_C(0x736f6d6570736575);
    v[1] = secret[1] ^ UINT64_C(0x646f72616e646f6d);
    v[2] = secret[0] ^ UINT64_C(0x6c7967656e657261);
    v[3] = secret[1] ^ UINT64_C(0x7465646279746573);
}

static inline void moec_sip_word(uint64_t v[4], uint64_t w)
{
    v[3] ^= w;
    moec_sip_round(v);
    v[0] ^= w;
}

/* Three rounds, and an output word. */
static inline uint64_t moec_sip_end(uint64_t v[4])
{
    for (int i = 0; i < 3; i++)
        moec_sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

#endif
