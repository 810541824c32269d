/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sources.bin: what a conversion must remember of its source to give it back:
 * each shard's header, the index, and files whose names OUT uses itself. The
 * grammar stands in converted.h.
 *
 * The decoder refuses (M04) what a writer of ours does not write: entries in
 * another order than their bytes, names that are no plain file names or stand
 * there twice, headers whose length is not the one they state, and data that
 * do not have their digest.
 */

#include <inttypes.h>
#include <string.h>

#include <moec/loader.h>

#include "base/base.h"
#include "converted.h"

#define BAD(err, off, ...)                                                     \
  moec_fail_at(err, MOEC_E_FORMAT, MOEC_RULE_M04, off, __VA_ARGS__)

static const char magic[8] = {'M', 'O', 'E', 'C', 'S', 'R', 'C', 1};

enum { VERSION = 1, HEAD_BYTES = 32, ENTRY_BYTES = 72 };

/* ------------------------------------------------------------- encode */

static moec_status put_entry(moec_buf *out, const moec_source_entry *e,
                             uint64_t *at, moec_error *err)
{
    size_t n = e->name ? strlen(e->name) : 0;
    moec_sha256 sha;

    if (!moec_plain_name(e->name, n))
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                         "sources.bin: '%s' is not a plain file name",
                         e->name ? e->name : "");
    MOEC_TRY(moec_sha256_of(e->data, (size_t)e->data_bytes, &sha, err));
    moec_buf_u32(out, e->kind);
    moec_buf_u32(out, (uint32_t)n);
    moec_buf_u64(out, *at);
    moec_buf_u64(out, *at + n);
    moec_buf_u64(out, e->data_bytes);
    moec_buf_u64(out,
                 e->kind == MOEC_SRC_SHARD ? e->file_bytes : e->data_bytes);
    moec_buf_append(out, sha.b, sizeof(sha.b));
    *at += n + e->data_bytes;
    return MOEC_OK;
}

moec_status moec_sources_encode(const moec_sources *s, moec_buf *out,
                                moec_error *err)
{
    uint64_t at = HEAD_BYTES + (uint64_t)s->n_entries * ENTRY_BYTES;

    if (s->n_entries > UINT32_MAX)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "sources.bin: %zu entries exceed 2^32 - 1",
                         s->n_entries);
    moec_buf_append(out, magic, sizeof(magic));
    moec_buf_u32(out, VERSION);
    moec_buf_u32(out, (uint32_t)s->n_entries);
    moec_buf_u64(out, 0);
    moec_buf_u64(out, 0);
    for (size_t i = 0; i < s->n_entries; i++)
        MOEC_TRY(put_entry(out, &s->entries[i], &at, err));
    for (size_t i = 0; i < s->n_entries; i++) {
        const moec_source_entry *e = &s->entries[i];

        moec_buf_puts(out, e->name);
        if (e->data_bytes > 0)
            moec_buf_append(out, e->data, (size_t)e->data_bytes);
    }
    return out->oom ? moec_fail_nomem(err, "sources.bin") : MOEC_OK;
}

/* ------------------------------------------------------------- decode */

typedef struct decoder {
    const unsigned char *data;
    size_t n;
    uint64_t used; /* end of the previous entry's data */
    bool has_index;
    moec_sources *out;
    moec_strmap names;
    moec_error *err;
} decoder;

static moec_status decode_head(decoder *d)
{
    uint32_t n_entries;

    if (d->n < HEAD_BYTES)
        return BAD(d->err, 0, "%zu bytes are no head of %d bytes", d->n,
                   HEAD_BYTES);
    if (memcmp(d->data, magic, sizeof(magic)) != 0)
        return BAD(d->err, 0, "the magic is not that of sources.bin");
    if (moec_le32(d->data + 8) != VERSION)
        return BAD(d->err, 8, "version %" PRIu32 ", this program reads %d",
                   moec_le32(d->data + 8), VERSION);
    if (moec_le64(d->data + 16) != 0 || moec_le64(d->data + 24) != 0)
        return BAD(d->err, 16, "a reserved field of the head is not 0");
    n_entries = moec_le32(d->data + 12);
    if (n_entries > (d->n - HEAD_BYTES) / ENTRY_BYTES)
        return BAD(d->err, 12,
                   "%" PRIu32 " entries of %d bytes exceed the file's %zu "
                   "bytes",
                   n_entries, ENTRY_BYTES, d->n);
    d->out->n_entries = n_entries;
    d->used = HEAD_BYTES + (uint64_t)n_entries * ENTRY_BYTES;
    return MOEC_OK;
}

/* Name and data of the entry at `row`, which must follow the one before. */
static moec_status take_bytes(decoder *d, uint64_t row, moec_source_entry *e)
{
    const unsigned char *p = d->data + row;
    uint32_t n = moec_le32(p + 4);
    uint64_t name_off = moec_le64(p + 8);
    uint64_t data_off = moec_le64(p + 16);
    const char *name;

    e->data_bytes = moec_le64(p + 24);
    if (name_off != d->used || n > d->n - name_off ||
        data_off != name_off + n || e->data_bytes > d->n - data_off)
        return BAD(d->err, row + 8,
                   "a name at %" PRIu64 " of %" PRIu32 " bytes with data at "
                   "%" PRIu64 " of %" PRIu64 " bytes should stand at %" PRIu64
                   " of %zu bytes",
                   name_off, n, data_off, e->data_bytes, d->used, d->n);
    name = (const char *)d->data + name_off;
    if (!moec_plain_name(name, n))
        return BAD(d->err, name_off,
                   "a name of %" PRIu32 " bytes is not a plain file name", n);
    e->name = moec_arena_strdup(&d->out->arena, name, n);
    if (!e->name)
        return moec_fail_nomem(d->err, "names of sources.bin");
    e->data = d->data + data_off;
    d->used = data_off + e->data_bytes;
    return MOEC_OK;
}

/* What the entry's kind says about its sizes. */
static moec_status check_kind(decoder *d, uint64_t row,
                              const moec_source_entry *e)
{
    if (e->kind > MOEC_SRC_FILE)
        return BAD(d->err, row, "'%s': kind %" PRIu32, e->name, e->kind);
    if (e->kind != MOEC_SRC_SHARD && e->file_bytes != e->data_bytes)
        return BAD(d->err, row + 32,
                   "'%s': %" PRIu64 " bytes of a file of %" PRIu64, e->name,
                   e->data_bytes, e->file_bytes);
    if (e->kind == MOEC_SRC_INDEX && d->has_index)
        return BAD(d->err, row, "'%s' is a second index", e->name);
    d->has_index = d->has_index || e->kind == MOEC_SRC_INDEX;
    if (e->kind != MOEC_SRC_SHARD)
        return MOEC_OK;
    if (e->data_bytes < 8 || e->data_bytes - 8 > MOEC_HEADER_BYTES_MAX ||
        moec_le64(e->data) != e->data_bytes - 8 ||
        e->file_bytes < e->data_bytes)
        return BAD(d->err, row + 24,
                   "'%s': %" PRIu64 " bytes are not the header of a shard of "
                   "%" PRIu64 " bytes",
                   e->name, e->data_bytes, e->file_bytes);
    return MOEC_OK;
}

static moec_status decode_entry(decoder *d, size_t i)
{
    uint64_t row = HEAD_BYTES + (uint64_t)i * ENTRY_BYTES;
    moec_source_entry *e = &d->out->entries[i];
    moec_sha256 sha;
    bool existed = false;

    e->kind = moec_le32(d->data + row);
    e->file_bytes = moec_le64(d->data + row + 32);
    memcpy(e->sha256.b, d->data + row + 40, 32);
    MOEC_TRY(take_bytes(d, row, e));
    MOEC_TRY(check_kind(d, row, e));
    MOEC_TRY(moec_strmap_put(&d->names, e->name, strlen(e->name), i, &existed,
                             d->err));
    if (existed)
        return BAD(d->err, row, "'%s' stands there twice", e->name);
    MOEC_TRY(moec_sha256_of(e->data, (size_t)e->data_bytes, &sha, d->err));
    if (memcmp(sha.b, e->sha256.b, sizeof(sha.b)) != 0)
        return BAD(d->err, row + 40, "'%s' does not have its digest", e->name);
    return MOEC_OK;
}

static moec_status decode_entries(decoder *d)
{
    moec_sources *s = d->out;

    MOEC_TRY(moec_strmap_init(&d->names, s->n_entries, d->err));
    s->entries =
        moec_calloc(s->n_entries ? s->n_entries : 1, sizeof(*s->entries));
    if (!s->entries)
        return moec_fail_nomem(d->err, "entries of sources.bin");
    for (size_t i = 0; i < s->n_entries; i++)
        MOEC_TRY(decode_entry(d, i));
    if (d->used != d->n)
        return BAD(d->err, d->used,
                   "the entries end at %" PRIu64 ", the file at %zu", d->used,
                   d->n);
    return MOEC_OK;
}

moec_status moec_sources_decode(moec_sources *out, const void *data, size_t n,
                                moec_error *err)
{
    moec_sources s = {0};
    decoder d = {.data = data, .n = n, .out = &s, .err = err};
    moec_status st = decode_head(&d);

    if (st == MOEC_OK)
        st = decode_entries(&d);
    moec_strmap_fini(&d.names);
    if (st != MOEC_OK)
        moec_sources_fini(&s);
    else
        *out = s;
    return st;
}

void moec_sources_fini(moec_sources *s)
{
    if (!s)
        return;
    moec_free(s->entries);
    moec_arena_fini(&s->arena);
    *s = (moec_sources){0};
}
