/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: ZIP files of arrays: numpy.savez (.npz: each entry an .npy)
 *   and torch.save (.pt: a pickle and a storage for each tensor,
 *   placement_torch.c). The central directory is what counts:
 *     1. end record "PK\5\6" in the file's last 22 bytes and a comment
 *     2. central entries "PK\1\2": method, CRC-32, sizes, name, place
 *     3. local entries "PK\3\4": lengths of name and extra, then the bytes
 * Refuses (P01): compressed or encrypted entries, entries that lie outside the
 *   file, names twice, bytes that have not their CRC-32, several disks, sizes
 *   that need ZIP64 (a placement is never 4 GiB). Nothing is unpickled and
 *   nothing is extracted.
 */

#include <inttypes.h>
#include <string.h>

#include "placement_rows.h"

enum {
    END_BYTES = 22,
    CENTRAL_BYTES = 46,
    LOCAL_BYTES = 30,
    ENTRIES_MAX = 256
};

typedef struct entry {
    const char *name; /* not terminated */
    size_t name_bytes;
    const unsigned char *data;
    size_t bytes;
} entry;

typedef struct zip {
    const char *file;
    const unsigned char *text;
    size_t n;
    entry e[ENTRIES_MAX];
    size_t n_entries;
} zip;

static uint32_t le16(const unsigned char *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static moec_status fail(const zip *z, const char *what, moec_error *err)
{
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01, "%s: ZIP: %s", z->file,
                     what);
}

/* CRC-32 of ZIP (reflected 0x04c11db7). A placement is small: no table. */
static uint32_t crc32_of(const unsigned char *p, size_t n)
{
    uint32_t crc = UINT32_MAX;

    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? UINT32_C(0xedb88320) : 0);
    }
    return ~crc;
}

static moec_status find_end(const zip *z, size_t *end, moec_error *err)
{
    size_t least = z->n > END_BYTES + 65535 ? z->n - END_BYTES - 65535 : 0;

    if (z->n < END_BYTES)
        return fail(z, "too short", err);
    for (size_t at = z->n - END_BYTES + 1; at-- > least;) {
        if (memcmp(z->text + at, "PK\5\6", 4) == 0 &&
            le16(z->text + at + 20) == z->n - at - END_BYTES) {
            *end = at;
            return MOEC_OK;
        }
    }
    return fail(z, "no end record: the file is cut short", err);
}

static const entry *find(const zip *z, const char *name, size_t n)
{
    for (size_t i = 0; i < z->n_entries; i++) {
        if (z->e[i].name_bytes == n && memcmp(z->e[i].name, name, n) == 0)
            return &z->e[i];
    }
    return NULL;
}

/* Bytes of the entry whose central record is at `c`. */
static moec_status place_entry(const zip *z, const unsigned char *c, entry *out,
                               moec_error *err)
{
    uint64_t at = moec_le32(c + 42), bytes = moec_le32(c + 24);
    const unsigned char *local;
    uint64_t data;

    if (le16(c + 8) & 1)
        return fail(z, "an encrypted entry", err);
    if (le16(c + 10) != 0)
        return fail(z,
                    "a compressed entry: write it with torch.save or "
                    "numpy.savez",
                    err);
    if (moec_le32(c + 20) != bytes || bytes == UINT32_MAX || at == UINT32_MAX)
        return fail(z, "an entry whose two sizes differ, or of ZIP64", err);
    if (at > z->n || z->n - at < LOCAL_BYTES ||
        memcmp(z->text + at, "PK\3\4", 4) != 0)
        return fail(z, "an entry that is not where the directory says", err);
    local = z->text + at;
    data = at + LOCAL_BYTES + le16(local + 26) + le16(local + 28);
    if (data > z->n || bytes > z->n - data)
        return fail(z, "an entry that leaves the file", err);
    out->data = z->text + data;
    out->bytes = (size_t)bytes;
    if (crc32_of(out->data, out->bytes) != moec_le32(c + 16))
        return fail(z, "an entry whose bytes have not their CRC-32", err);
    return MOEC_OK;
}

static moec_status read_entries(zip *z, size_t end, moec_error *err)
{
    size_t n = le16(z->text + end + 10), at = moec_le32(z->text + end + 16);
    size_t total = 0;

    if (le16(z->text + end + 4) != 0 || le16(z->text + end + 8) != n)
        return fail(z, "several disks", err);
    if (n > ENTRIES_MAX)
        return fail(z, "more entries than a placement has", err);
    for (size_t i = 0; i < n; i++) {
        entry e = {0};
        size_t more;

        if (at > end || end - at < CENTRAL_BYTES ||
            memcmp(z->text + at, "PK\1\2", 4) != 0)
            return fail(z, "the directory is damaged", err);
        const unsigned char *c = z->text + at;
        e.name_bytes = le16(c + 28);
        more = e.name_bytes + le16(c + 30) + le16(c + 32);
        if (more > end - at - CENTRAL_BYTES)
            return fail(z, "the directory is damaged", err);
        e.name = (const char *)c + CENTRAL_BYTES;
        if (find(z, e.name, e.name_bytes))
            return fail(z, "two entries of one name", err);
        MOEC_TRY(place_entry(z, c, &e, err));
        /* Entries that share bytes would make a small file a long one. */
        total += e.bytes;
        if (total > z->n)
            return fail(z, "entries that lie upon each other", err);
        z->e[z->n_entries++] = e;
        at += CENTRAL_BYTES + more;
    }
    return MOEC_OK;
}

static bool ends_with(const entry *e, const char *tail)
{
    size_t n = strlen(tail);

    return e->name_bytes >= n &&
           memcmp(e->name + e->name_bytes - n, tail, n) == 0;
}

/* ----------------------------------------------------------------- .npz */

static moec_status read_npz(const zip *z, moec_int_arrays *a, moec_error *err)
{
    a->named = true;
    for (size_t i = 0; i < z->n_entries; i++) {
        const entry *e = &z->e[i];
        char name[40];

        if (!ends_with(e, ".npy") || e->name_bytes - 4 >= sizeof(name))
            return fail(z, "an entry that is no .npy beside others", err);
        snprintf(name, sizeof(name), "%.*s", (int)(e->name_bytes - 4), e->name);
        MOEC_TRY(moec_npy_array(a, name, z->file, e->data, e->bytes, err));
        /* numpy.savez(file, x): arr_0, arr_1, ... are no names. */
        a->named = a->named && memcmp(name, "arr_", 4) != 0;
    }
    return MOEC_OK;
}

/* ------------------------------------------------------------------ .pt */

typedef struct torch_dir {
    const zip *z;
    const char *dir; /* "archive/" */
    size_t dir_bytes;
} torch_dir;

static bool find_storage(void *ctx, const char *key, moec_torch_storage *out)
{
    const torch_dir *t = ctx;
    char name[320];
    const entry *e;
    int n = snprintf(name, sizeof(name), "%.*sdata/%s", (int)t->dir_bytes,
                     t->dir, key);

    if (n < 0 || (size_t)n >= sizeof(name))
        return false;
    e = find(t->z, name, (size_t)n);
    if (!e)
        return false;
    *out = (moec_torch_storage){e->data, e->bytes};
    return true;
}

static moec_status read_torch(const zip *z, const entry *pickle,
                              moec_int_arrays *a, moec_error *err)
{
    torch_dir t = {.z = z,
                   .dir = pickle->name,
                   .dir_bytes = pickle->name_bytes - strlen("data.pkl")};
    char name[320];
    int n =
        snprintf(name, sizeof(name), "%.*sbyteorder", (int)t.dir_bytes, t.dir);
    const entry *order =
        n > 0 && (size_t)n < sizeof(name) ? find(z, name, (size_t)n) : NULL;

    if (t.dir_bytes > 255)
        return fail(z, "a name too long", err);
    if (order && (order->bytes != 6 || memcmp(order->data, "little", 6) != 0))
        return fail(z, "tensors that are not little-endian", err);
    return moec_torch_read(a, z->file, pickle->data, pickle->bytes,
                           find_storage, &t, err);
}

static moec_status read_arrays(const zip *z, moec_int_arrays *a,
                               moec_error *err)
{
    for (size_t i = 0; i < z->n_entries; i++) {
        if (ends_with(&z->e[i], "/data.pkl"))
            return read_torch(z, &z->e[i], a, err);
    }
    for (size_t i = 0; i < z->n_entries; i++) {
        if (ends_with(&z->e[i], ".npy"))
            return read_npz(z, a, err);
    }
    return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_P01,
                     "%s: a ZIP file that is neither torch.save's nor "
                     "numpy.savez's",
                     z->file);
}

moec_status moec_rows_read_zip(moec_rows *r, const char *text, size_t n,
                               moec_error *err)
{
    moec_int_arrays a = {0};
    moec_status st;
    size_t end = 0;
    zip *z;

    if (n > MOEC_JSON_BYTES_MAX)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I04,
                         "%s: %zu bytes exceed %" PRIu64, r->name, n,
                         MOEC_JSON_BYTES_MAX);
    z = moec_calloc(1, sizeof(*z));
    if (!z)
        return moec_fail_nomem(err, "ZIP");
    z->file = r->name;
    z->text = (const unsigned char *)text;
    z->n = n;
    st = find_end(z, &end, err);
    if (st == MOEC_OK)
        st = read_entries(z, end, err);
    if (st == MOEC_OK)
        st = read_arrays(z, &a, err);
    if (st == MOEC_OK)
        st = moec_rows_from_arrays(r, &a, err);
    moec_int_arrays_fini(&a);
    moec_free(z);
    return st;
}
