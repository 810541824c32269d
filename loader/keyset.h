/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_KEYSET_H
#define MOEC_KEYSET_H

/*
 * What this is: which keys a JSON object has had. Keys are kept as 128-bit
 *   SipHash values under a random secret, tied to the serial number of their
 *   object: equal keys are always found, different ones collide once in 2^128
 *   pairs, and no file can aim for it. So a key of any length costs 16 bytes,
 *   and need never be in memory as a whole.
 * Lifetime: zero-initialise; one secret serves until _fini.
 * Threads: one set, one thread.
 * Errors: NOMEM.
 */

#include "base/base.h"

typedef struct moec_siphash {
    uint64_t v[4];
    uint64_t tail; /* bytes not yet absorbed, little endian */
    uint64_t n;    /* bytes seen */
} moec_siphash;

typedef struct moec_keyset {
    uint64_t (*cells)[2]; /* {0, 0} is free */
    size_t n, cap;        /* cap is a power of two, or 0 */
    size_t expect;        /* keys that may come, a guess; 0: few */
    uint64_t secret[2];
    uint64_t serial; /* of the object opened last */
    bool seeded;
} moec_keyset;

/* Fill two words with randomness; never blocks, never fails. */
void moec_random_secret(uint64_t secret[2]);

void moec_siphash_begin(moec_siphash *h, const uint64_t secret[2]);
void moec_siphash_add(moec_siphash *h, const void *data, size_t n);
/* The first word alone is the 64-bit hash. */
void moec_siphash_end(moec_siphash *h, uint64_t out[2]);

/* Return a serial number for one more object. */
uint64_t moec_keyset_open(moec_keyset *k);
/* Begin the digest of a key of object `serial`. */
void moec_keyset_begin(moec_keyset *k, moec_siphash *h, uint64_t serial);
/* Insert what was added since. *existed tells of a duplicate. NOMEM. */
moec_status moec_keyset_end(moec_keyset *k, moec_siphash *h, bool *existed,
                            moec_error *err);
/* Forget all keys; costs what they did. */
void moec_keyset_clear(moec_keyset *k);
void moec_keyset_fini(moec_keyset *k);

#endif
