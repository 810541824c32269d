/* SPDX-License-Identifier: Apache-2.0
 *
 * Bytes -> u64. Keys are names out of files that may be hostile: the hash is
 * SipHash-1-3 under a key from getrandom, as in Rust's and Python's tables,
 * so nobody can prepare names that collide. Linear probing; a cell is 24
 * bytes, as a checkpoint can have a million names. Nothing is ever removed. */

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "base/base.h"
#include "base/siphash.h"

#define CELLS_FIRST ((size_t)16)
/* Cells keep 32 bits of the hash; their number stays below that. */
#define CELLS_MAX ((size_t)1 << 31)

struct moec_strmap_cell {
    const char *key; /* NULL: empty */
    uint32_t key_bytes;
    uint32_t hash;
    uint64_t value;
};

static uint32_t hash_key(const uint64_t seed[2], const char *s, size_t n)
{
    uint64_t v[4], m, last = (uint64_t)n << 56;
    size_t i = 0;

    moec_sip_begin(v, seed);
    for (; n - i >= 8; i += 8)
        moec_sip_word(v, moec_le64(s + i));
    for (unsigned shift = 0; i < n; i++, shift += 8)
        last |= (uint64_t)(unsigned char)s[i] << shift;
    moec_sip_word(v, last);
    v[2] ^= 0xff;
    m = moec_sip_end(v);
    return (uint32_t)(m ^ m >> 32);
}

/* The cell of the key, or the empty cell where it belongs. There is always an
 * empty one: at most three of four are taken. */
static struct moec_strmap_cell *probe(struct moec_strmap_cell *cells,
                                      size_t cap, const char *key, size_t n,
                                      uint32_t hash)
{
    size_t i = hash & (cap - 1);

    for (;; i = (i + 1) & (cap - 1)) {
        struct moec_strmap_cell *c = &cells[i];
        if (!c->key || (c->hash == hash && c->key_bytes == n &&
                        memcmp(c->key, key, n) == 0))
            return c;
    }
}

static moec_status make_seed(uint64_t seed[2], moec_error *err)
{
    unsigned char *at = (unsigned char *)seed;
    size_t left = 2 * sizeof(seed[0]);

    while (left > 0) {
        ssize_t got = getrandom(at, left, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return moec_fail_os(err, errno, "getrandom");
        at += got;
        left -= (size_t)got;
    }
    return MOEC_OK;
}

moec_status moec_strmap_init(moec_strmap *m, size_t expect, moec_error *err)
{
    moec_strmap made = {.cap = CELLS_FIRST};

    while (made.cap - made.cap / 4 < expect && made.cap < CELLS_MAX)
        made.cap *= 2;
    MOEC_TRY(make_seed(made.seed, err));
    made.cells = moec_calloc(made.cap, sizeof(*made.cells));
    if (!made.cells)
        return moec_fail_nomem(err, "a table of names");
    *m = made;
    return MOEC_OK;
}

void moec_strmap_fini(moec_strmap *m)
{
    moec_free(m->cells);
    *m = (moec_strmap){0};
}

static moec_status grow(moec_strmap *m, moec_error *err)
{
    struct moec_strmap_cell *cells = NULL;

    if (m->cap < CELLS_MAX)
        cells = moec_calloc(m->cap * 2, sizeof(*cells));
    if (!cells)
        return moec_fail_nomem(err, "a table of names");
    for (size_t i = 0; i < m->cap; i++) {
        const struct moec_strmap_cell *c = &m->cells[i];
        size_t to = c->hash & (m->cap * 2 - 1);
        if (!c->key)
            continue;
        while (cells[to].key) /* keys differ: no need to compare */
            to = (to + 1) & (m->cap * 2 - 1);
        cells[to] = *c;
    }
    moec_free(m->cells);
    m->cells = cells;
    m->cap *= 2;
    return MOEC_OK;
}

moec_status moec_strmap_put(moec_strmap *m, const char *key, size_t key_bytes,
                            uint64_t value, bool *existed, moec_error *err)
{
    uint32_t hash;
    struct moec_strmap_cell *c;

    if (!m->cells)
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                         "a table of names is used before its init");
    if (key_bytes > UINT32_MAX)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "a name of %zu bytes is too long", key_bytes);
    if (!key)
        key = "";
    hash = hash_key(m->seed, key, key_bytes);
    c = probe(m->cells, m->cap, key, key_bytes, hash);
    if (existed)
        *existed = c->key != NULL;
    if (c->key)
        return MOEC_OK;
    if (m->n >= m->cap - m->cap / 4) {
        MOEC_TRY(grow(m, err));
        c = probe(m->cells, m->cap, key, key_bytes, hash);
    }
    *c = (struct moec_strmap_cell){key, (uint32_t)key_bytes, hash, value};
    m->n++;
    return MOEC_OK;
}

bool moec_strmap_get(const moec_strmap *m, const char *key, size_t key_bytes,
                     uint64_t *value_out)
{
    const struct moec_strmap_cell *c;

    if (!m->cells)
        return false;
    if (!key)
        key = "";
    c = probe(m->cells, m->cap, key, key_bytes,
              hash_key(m->seed, key, key_bytes));
    if (!c->key)
        return false;
    if (value_out)
        *value_out = c->value;
    return true;
}
