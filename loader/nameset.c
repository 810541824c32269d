/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Open addressing over SipHash with a random secret: no file can aim for
 * collisions. A cell holds the tensor's number + 1 in its low 20 bits (0:
 * free) and bits of the hash above, so that other names are rarely looked at.
 */

#include "nameset.h"

#include <string.h>

#include <moec/loader.h>

#include "base/siphash.h"
#include "keyset.h"

#define NUMBER_BITS 20
#define NUMBER_MASK ((UINT32_C(1) << NUMBER_BITS) - 1)
_Static_assert(MOEC_TENSORS_PER_FILE_MAX <= NUMBER_MASK, "cells hold numbers");

uint64_t moec_nameset_hash(const uint64_t secret[2], const char *name, size_t n)
{
    const unsigned char *p = (const unsigned char *)name;
    uint64_t v[4], tail = (uint64_t)n << 56;
    size_t left = n % 8;

    moec_sip_begin(v, secret);
    for (const unsigned char *end = p + (n - left); p < end; p += 8)
        moec_sip_word(v, moec_le64(p));
    for (size_t i = 0; i < left; i++)
        tail |= (uint64_t)p[i] << i * 8;
    moec_sip_word(v, tail);
    v[2] ^= 0xff;
    return moec_sip_end(v);
}

static uint32_t tag_of(uint64_t hash)
{
    return (uint32_t)(hash >> 32) << NUMBER_BITS;
}

static void put(moec_nameset *s, uint64_t hash, size_t number)
{
    size_t i = (size_t)hash & (s->cap - 1);

    while (s->cells[i] != 0)
        i = (i + 1) & (s->cap - 1);
    s->cells[i] = tag_of(hash) | (uint32_t)(number + 1);
}

static bool has(const moec_nameset *s, const moec_tensor *tensors,
                uint64_t hash, const char *name, size_t n)
{
    size_t i = (size_t)hash & (s->cap - 1);

    for (; s->cells[i] != 0; i = (i + 1) & (s->cap - 1)) {
        const char *other;
        if ((s->cells[i] & ~NUMBER_MASK) != tag_of(hash))
            continue;
        other = tensors[(s->cells[i] & NUMBER_MASK) - 1].name;
        if (strncmp(other, name, n) == 0 && other[n] == '\0')
            return true;
    }
    return false;
}

static moec_status grow(moec_nameset *s, const moec_tensor *tensors,
                        size_t n_tensors, moec_error *err)
{
    size_t cap = s->cap == 0 ? 64 : s->cap * 2;
    uint32_t *cells;

    if (s->cap == 0 && (s->secret[0] | s->secret[1]) == 0)
        moec_random_secret(s->secret);
    /* Pages that a wrong guess leaves unused cost nothing. */
    while (cap / 2 < s->expect && cap / 2 < MOEC_TENSORS_PER_FILE_MAX)
        cap *= 2;
    cells = moec_calloc(cap, sizeof(*cells));
    if (cells == NULL)
        return moec_fail_nomem(err, "the set of tensor names");
    moec_free(s->cells);
    s->cells = cells;
    s->cap = cap;
    for (size_t i = 0; i < n_tensors; i++) {
        const char *name = tensors[i].name;
        put(s, moec_nameset_hash(s->secret, name, strlen(name)), i);
    }
    return MOEC_OK;
}

moec_status moec_nameset_add(moec_nameset *s, const moec_tensor *tensors,
                             size_t n_tensors, const char *name, size_t n,
                             bool *existed, moec_error *err)
{
    uint64_t hash;

    if (n_tensors >= s->cap / 2)
        MOEC_TRY(grow(s, tensors, n_tensors, err));
    hash = moec_nameset_hash(s->secret, name, n);
    *existed = has(s, tensors, hash, name, n);
    if (*existed)
        return MOEC_OK;
    put(s, hash, n_tensors);
    s->sum += hash;
    return MOEC_OK;
}

void moec_nameset_fini(moec_nameset *s)
{
    moec_free(s->cells);
    s->cells = NULL;
    s->cap = 0;
}
