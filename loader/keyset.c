/* SPDX-License-Identifier: Apache-2.0 */

/* SipHash in pieces, and the set of keys over it. */

#include "keyset.h"

#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "base/siphash.h"

/* ----------------------------------------------------------- SipHash-1-3
 * In pieces; the two output words follow the paper's 128-bit form. */

void moec_random_secret(uint64_t secret[2])
{
    struct timespec now = {0, 0};

    if (getrandom(secret, 16, GRND_NONBLOCK) == 16)
        return;
    /* Early boot, or a seccomp filter: an address and the clock still keep a
     * file from knowing the secret in advance. */
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    secret[0] = (uint64_t)now.tv_nsec * UINT64_C(0x9e3779b97f4a7c15);
    secret[1] = (uint64_t)(uintptr_t)secret ^ (uint64_t)now.tv_sec;
}

void moec_siphash_begin(moec_siphash *h, const uint64_t secret[2])
{
    moec_sip_begin(h->v, secret);
    h->v[1] ^= 0xee;
    h->tail = 0;
    h->n = 0;
}

void moec_siphash_add(moec_siphash *h, const void *data, size_t n)
{
    const unsigned char *p = data;
    const unsigned char *end = p + n;

    while (p < end && h->n % 8 != 0) {
        h->tail |= (uint64_t)*p++ << (h->n++ % 8 * 8);
        if (h->n % 8 == 0) {
            moec_sip_word(h->v, h->tail);
            h->tail = 0;
        }
    }
    while (end - p >= 8) {
        moec_sip_word(h->v, moec_le64(p));
        p += 8;
        h->n += 8;
    }
    while (p < end)
        h->tail |= (uint64_t)*p++ << (h->n++ % 8 * 8);
}

void moec_siphash_end(moec_siphash *h, uint64_t out[2])
{
    moec_sip_word(h->v, h->tail | h->n << 56);
    h->v[2] ^= 0xee;
    out[0] = moec_sip_end(h->v);
    h->v[1] ^= 0xdd;
    out[1] = moec_sip_end(h->v);
}

/* --------------------------------------------------------------- key set */

#define CELLS_MIN ((size_t)64)
/* What the caller expects is a guess from a file's size: believe 16 MiB. */
#define CELLS_EXPECT_MAX ((size_t)1 << 20)

uint64_t moec_keyset_open(moec_keyset *k)
{
    return ++k->serial;
}

void moec_keyset_begin(moec_keyset *k, moec_siphash *h, uint64_t serial)
{
    if (!k->seeded) {
        moec_random_secret(k->secret);
        k->seeded = true;
    }
    moec_siphash_begin(h, k->secret);
    moec_siphash_add(h, &serial, sizeof(serial));
}

/* Return the cell of this digest, or the free one where it belongs. */
static uint64_t *keyset_cell(const moec_keyset *k, const uint64_t key[2])
{
    size_t i = (size_t)key[0] & (k->cap - 1);

    while ((k->cells[i][0] | k->cells[i][1]) != 0 &&
           (k->cells[i][0] != key[0] || k->cells[i][1] != key[1]))
        i = (i + 1) & (k->cap - 1);
    return k->cells[i];
}

static moec_status keyset_grow(moec_keyset *k, moec_error *err)
{
    size_t old_cap = k->cap;
    uint64_t(*old)[2] = k->cells;
    size_t cap = old_cap == 0 ? CELLS_MIN : old_cap * 2;

    while (cap < k->expect && cap < CELLS_EXPECT_MAX)
        cap *= 2;
    k->cells = moec_calloc(cap, sizeof(*k->cells));
    if (k->cells == NULL) {
        k->cells = old;
        return moec_fail_nomem(err, "the keys of a JSON object");
    }
    k->cap = cap;
    for (size_t i = 0; i < old_cap; i++) {
        if ((old[i][0] | old[i][1]) != 0)
            memcpy(keyset_cell(k, old[i]), old[i], sizeof(*old));
    }
    moec_free(old);
    return MOEC_OK;
}

moec_status moec_keyset_end(moec_keyset *k, moec_siphash *h, bool *existed,
                            moec_error *err)
{
    uint64_t key[2];
    uint64_t *cell;

    if (k->n >= k->cap / 4 * 3)
        MOEC_TRY(keyset_grow(k, err));
    moec_siphash_end(h, key);
    key[1] |= (key[0] | key[1]) == 0; /* {0, 0} means free */
    cell = keyset_cell(k, key);
    *existed = (cell[0] | cell[1]) != 0;
    if (!*existed) {
        cell[0] = key[0];
        cell[1] = key[1];
        k->n++;
    }
    return MOEC_OK;
}

void moec_keyset_clear(moec_keyset *k)
{
    if (k->n == 0)
        return;
    /* A table that one large object made must not be wiped again and again
     * for the small ones behind it. */
    if (k->cap > CELLS_MIN) {
        moec_free(k->cells);
        k->cells = NULL;
        k->cap = 0;
    } else {
        memset(k->cells, 0, k->cap * sizeof(*k->cells));
    }
    k->n = 0;
}

void moec_keyset_fini(moec_keyset *k)
{
    moec_free(k->cells);
    memset(k, 0, sizeof(*k));
}
