/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slots.bin: which bytes of which file belong to which slot, and their
 * digests. The grammar stands in converted.h.
 *
 * The decoder refuses (M03) everything that a writer of ours does not write,
 * so that who follows a decoded table needs no checks of his own: sizes are
 * compared with the bytes at hand before anything is allocated, every index
 * and range is inside its table, tensors tile their files, and equal tables
 * have equal bytes. It does not compare digests with data: verify does.
 */

#include <inttypes.h>
#include <string.h>

#include <moec/loader.h>

#include "base/base.h"
#include "converted.h"

#define BAD(err, off, ...)                                                     \
  moec_fail_at(err, MOEC_E_FORMAT, MOEC_RULE_M03, off, __VA_ARGS__)

static const char magic[8] = {'M', 'O', 'E', 'C', 'S', 'L', 'T', 1};

enum {
    VERSION = 1,
    HEAD_BYTES = 64,
    FILE_BYTES = 96,
    TENSOR_BYTES = 64,
    SLOT_BYTES = 48,
    LEAF_BYTES = 48,
    PAD_BYTES_MAX = 4095 /* layout.md: fillers have 1 to 4095 bytes */
};

/* Leaves are copied as they stand. */
_Static_assert(sizeof(moec_leaf) == LEAF_BYTES, "a leaf is two digests");

static const char pad_prefix[] = "__pad.";

/* ------------------------------------------------------------- encode */

/* Append name_off, name_bytes; count the name in *names_bytes. */
static moec_status put_name(moec_buf *out, const char *name,
                            uint64_t *names_bytes, moec_error *err)
{
    size_t n = name ? strlen(name) : 0;

    if (n == 0 || n > MOEC_NAME_BYTES_MAX)
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                         "slots.bin: a name of %zu bytes", n);
    moec_buf_u64(out, *names_bytes);
    moec_buf_u32(out, (uint32_t)n);
    *names_bytes += n;
    return MOEC_OK;
}

static moec_status put_files(moec_buf *out, const moec_slots *s,
                             uint64_t *names_bytes, moec_error *err)
{
    for (size_t i = 0; i < s->n_files; i++) {
        const moec_ct_file *f = &s->files[i];

        MOEC_TRY(put_name(out, f->name, names_bytes, err));
        moec_buf_u32(out, 0);
        moec_buf_u64(out, f->bytes);
        moec_buf_u64(out, f->header_bytes);
        moec_buf_append(out, f->header_sha256.b, sizeof(f->header_sha256.b));
        moec_buf_append(out, f->tree_sha256.b, sizeof(f->tree_sha256.b));
    }
    return MOEC_OK;
}

static moec_status put_tensors(moec_buf *out, const moec_slots *s,
                               uint64_t *names_bytes, moec_error *err)
{
    for (size_t i = 0; i < s->n_tensors; i++) {
        const moec_ct_tensor *t = &s->tensors[i];
        const uint8_t bytes[4] = {t->kind, t->dtype, t->space, 0};

        MOEC_TRY(put_name(out, t->name, names_bytes, err));
        moec_buf_u32(out, t->file);
        moec_buf_append(out, bytes, sizeof(bytes));
        moec_buf_u32(out, t->layer);
        moec_buf_u32(out, t->rank);
        moec_buf_u32(out, t->n_slots);
        moec_buf_u64(out, t->off);
        moec_buf_u64(out, t->bytes);
        moec_buf_u64(out, t->first_slot);
        moec_buf_u64(out, 0);
    }
    return MOEC_OK;
}

static void put_slots(moec_buf *out, const moec_slots *s)
{
    for (size_t i = 0; i < s->n_slots; i++) {
        const moec_ct_slot *slot = &s->slots[i];

        moec_buf_u32(out, (uint32_t)slot->logical);
        moec_buf_u32(out, slot->n_leaves);
        moec_buf_u64(out, slot->first_leaf);
        moec_buf_append(out, slot->sha256.b, sizeof(slot->sha256.b));
    }
}

static void put_names(moec_buf *out, const moec_slots *s, uint64_t names_bytes)
{
    static const char zeros[8] = {0};

    for (size_t i = 0; i < s->n_files; i++)
        moec_buf_puts(out, s->files[i].name);
    for (size_t i = 0; i < s->n_tensors; i++)
        moec_buf_puts(out, s->tensors[i].name);
    moec_buf_append(out, zeros, (size_t)(-names_bytes & 7));
}

moec_status moec_slots_encode(const moec_slots *s, moec_buf *out,
                              moec_error *err)
{
    /* The head holds names_bytes, which the tables decide: tables first, into
     * the caller's buffer, behind a head that is filled in at the end. */
    uint64_t names_bytes = 0;
    moec_buf head = {0};
    size_t at = out->len;
    static const char blank[HEAD_BYTES] = {0};

    moec_buf_append(out, blank, sizeof(blank));
    MOEC_TRY(put_files(out, s, &names_bytes, err));
    MOEC_TRY(put_tensors(out, s, &names_bytes, err));
    put_slots(out, s);
    if (s->n_leaves > 0)
        moec_buf_append(out, s->leaves, s->n_leaves * sizeof(*s->leaves));
    put_names(out, s, names_bytes);

    moec_buf_append(&head, magic, sizeof(magic));
    moec_buf_u32(&head, VERSION);
    moec_buf_u32(&head, 0);
    moec_buf_u64(&head, s->n_files);
    moec_buf_u64(&head, s->n_tensors);
    moec_buf_u64(&head, s->n_slots);
    moec_buf_u64(&head, s->n_leaves);
    moec_buf_u64(&head, names_bytes);
    moec_buf_u64(&head, 0);
    bool oom = head.oom || out->oom;
    if (!oom)
        memcpy(out->data + at, head.data, HEAD_BYTES);
    moec_buf_fini(&head);
    return oom ? moec_fail_nomem(err, "slots.bin") : MOEC_OK;
}

/* ------------------------------------------------------------- decode */

/* The bytes, where each table begins in them, and how far names and slots
 * have been handed out. */
typedef struct decoder {
    const unsigned char *data;
    uint64_t files_off, tensors_off, slots_off, leaves_off, names_off;
    uint64_t names_bytes;
    uint64_t names_used, slots_used;
    moec_slots *out;
    moec_error *err;
} decoder;

static bool is_zero(const unsigned char *p, size_t n)
{
    while (n > 0 && *p == 0) {
        p++;
        n--;
    }
    return n == 0;
}

/* Read a count and find the end of its table; a count that does not fit in the
 * `n` bytes at hand is refused before anything is allocated for it. */
static moec_status table_end(const decoder *d, size_t count_off, uint64_t width,
                             uint64_t begin, size_t n, size_t *count_out,
                             uint64_t *end_out)
{
    uint64_t count = moec_le64(d->data + count_off);
    uint64_t bytes;

    if (!moec_mul_u64(count, width, &bytes) || bytes > n - begin)
        return BAD(d->err, count_off,
                   "%" PRIu64 " rows of %" PRIu64 " bytes at %" PRIu64
                   " exceed the file's %zu bytes",
                   count, width, begin, n);
    *count_out = (size_t)count;
    *end_out = begin + bytes;
    return MOEC_OK;
}

static moec_status decode_head(decoder *d, size_t n)
{
    moec_slots *s = d->out;
    size_t names = 0;
    uint64_t end;

    if (n < HEAD_BYTES)
        return BAD(d->err, 0, "%zu bytes are no head of %d bytes", n,
                   HEAD_BYTES);
    if (memcmp(d->data, magic, sizeof(magic)) != 0)
        return BAD(d->err, 0, "the magic is not that of slots.bin");
    if (moec_le32(d->data + 8) != VERSION)
        return BAD(d->err, 8, "version %" PRIu32 ", this program reads %d",
                   moec_le32(d->data + 8), VERSION);
    if (!is_zero(d->data + 12, 4) || !is_zero(d->data + 56, 8))
        return BAD(d->err, 12, "a reserved field of the head is not 0");
    d->files_off = HEAD_BYTES;
    MOEC_TRY(table_end(d, 16, FILE_BYTES, d->files_off, n, &s->n_files,
                       &d->tensors_off));
    MOEC_TRY(table_end(d, 24, TENSOR_BYTES, d->tensors_off, n, &s->n_tensors,
                       &d->slots_off));
    MOEC_TRY(table_end(d, 32, SLOT_BYTES, d->slots_off, n, &s->n_slots,
                       &d->leaves_off));
    MOEC_TRY(table_end(d, 40, LEAF_BYTES, d->leaves_off, n, &s->n_leaves,
                       &d->names_off));
    MOEC_TRY(table_end(d, 48, 1, d->names_off, n, &names, &end));
    d->names_bytes = names;
    if (!moec_align_u64(end, 8, &end) || end != n)
        return BAD(d->err, end,
                   "the tables end at %" PRIu64 ", the file at %zu", end, n);
    if (!is_zero(d->data + d->names_off + names, (size_t)(-names & 7)))
        return BAD(d->err, d->names_off + names,
                   "the padding behind the names is not 0");
    return MOEC_OK;
}

/* Take the name that the row at `row` must have next. */
static moec_status take_name(decoder *d, uint64_t row, size_t max,
                             const char **out)
{
    uint64_t off = moec_le64(d->data + row);
    uint32_t n = moec_le32(d->data + row + 8);
    const char *name;
    size_t at;

    if (off != d->names_used || n > d->names_bytes - off)
        return BAD(d->err, row,
                   "the name at %" PRIu64 " of %" PRIu32 " bytes should stand "
                   "at %" PRIu64 " of %" PRIu64 " bytes of names",
                   off, n, d->names_used, d->names_bytes);
    if (n == 0 || n > max)
        return BAD(d->err, row, "a name of %" PRIu32 " bytes", n);
    name = (const char *)d->data + d->names_off + off;
    if (memchr(name, 0, n) || !moec_utf8_valid(name, n, &at))
        return BAD(d->err, d->names_off + off,
                   "a name is not UTF-8 or holds NUL");
    *out = moec_arena_strdup(&d->out->arena, name, n);
    if (!*out)
        return moec_fail_nomem(d->err, "names of slots.bin");
    d->names_used += n;
    return MOEC_OK;
}

static moec_status decode_file(decoder *d, size_t i)
{
    uint64_t row = d->files_off + i * FILE_BYTES;
    const unsigned char *p = d->data + row;
    moec_ct_file *f = &d->out->files[i];

    MOEC_TRY(take_name(d, row, MOEC_FILE_NAME_BYTES_MAX, &f->name));
    if (!moec_plain_name(f->name, strlen(f->name)))
        return BAD(d->err, row, "'%s' is not a plain file name", f->name);
    f->bytes = moec_le64(p + 16);
    f->header_bytes = moec_le64(p + 24);
    memcpy(f->header_sha256.b, p + 32, 32);
    memcpy(f->tree_sha256.b, p + 64, 32);
    if (!is_zero(p + 12, 4))
        return BAD(d->err, row + 12, "file '%s': a reserved field is not 0",
                   f->name);
    if (f->header_bytes < 8 || f->header_bytes > f->bytes ||
        f->header_bytes - 8 > MOEC_HEADER_BYTES_MAX)
        return BAD(d->err, row + 24,
                   "file '%s': a header of %" PRIu64 " bytes in %" PRIu64
                   " bytes",
                   f->name, f->header_bytes, f->bytes);
    return MOEC_OK;
}

static moec_status decode_files(decoder *d)
{
    moec_slots *s = d->out;
    moec_strmap names = {0};
    moec_status st = moec_strmap_init(&names, s->n_files, d->err);

    for (size_t i = 0; st == MOEC_OK && i < s->n_files; i++) {
        const char *name;
        bool existed = false;

        st = decode_file(d, i);
        if (st != MOEC_OK)
            break;
        name = s->files[i].name;
        st = moec_strmap_put(&names, name, strlen(name), i, &existed, d->err);
        if (st == MOEC_OK && existed)
            st = BAD(d->err, d->files_off + i * FILE_BYTES,
                     "file '%s' stands there twice", name);
    }
    moec_strmap_fini(&names);
    return st;
}

static void decode_slots(const decoder *d)
{
    const unsigned char *p = d->data + d->slots_off;

    for (size_t i = 0; i < d->out->n_slots; i++, p += SLOT_BYTES) {
        moec_ct_slot *slot = &d->out->slots[i];
        uint32_t logical = moec_le32(p);

        memcpy(&slot->logical, &logical, sizeof(logical));
        slot->n_leaves = moec_le32(p + 4);
        slot->first_leaf = moec_le64(p + 8);
        memcpy(slot->sha256.b, p + 16, 32);
    }
}

/* Slots [first_slot, + n_slots) as rows of tensor `t`. */
static moec_status check_slots(const decoder *d, const moec_ct_tensor *t)
{
    const moec_slots *s = d->out;
    uint64_t leaves = moec_ceil_div(t->bytes / t->n_slots, MOEC_LEAF_BYTES);

    for (uint32_t i = 0; i < t->n_slots; i++) {
        uint64_t at = t->first_slot + i;
        const moec_ct_slot *slot = &s->slots[at];
        bool fits = t->kind == MOEC_CT_COMMON
                        ? slot->logical == MOEC_LOGICAL_NONE
                        : slot->logical >= MOEC_LOGICAL_EMPTY;

        if (!fits)
            return BAD(d->err, d->slots_off + at * SLOT_BYTES,
                       "tensor '%s': slot %" PRIu32 " has logical id %" PRId32,
                       t->name, i, slot->logical);
        if (slot->n_leaves != leaves || slot->first_leaf > s->n_leaves ||
            leaves > s->n_leaves - slot->first_leaf)
            return BAD(d->err, d->slots_off + at * SLOT_BYTES,
                       "tensor '%s': slot %" PRIu32 " has %" PRIu32 " leaves "
                       "from %" PRIu64 ", it needs %" PRIu64 " of %zu",
                       t->name, i, slot->n_leaves, slot->first_leaf, leaves,
                       s->n_leaves);
    }
    return MOEC_OK;
}

/* A tensor's slots: as many as its kind has, and the next ones in line. */
static moec_status take_slots(decoder *d, uint64_t row, const moec_ct_tensor *t)
{
    bool count_ok = true;

    if (t->kind == MOEC_CT_PAD)
        count_ok = t->n_slots == 0;
    else if (t->kind == MOEC_CT_COMMON)
        count_ok = t->n_slots == 1;
    else
        count_ok = t->n_slots > 0 && t->bytes % t->n_slots == 0;
    if (!count_ok)
        return BAD(d->err, row + 28,
                   "tensor '%s': %" PRIu32 " slots in %" PRIu64
                   " bytes of kind %d",
                   t->name, t->n_slots, t->bytes, t->kind);
    if (t->kind == MOEC_CT_PAD)
        return MOEC_OK;
    if (t->first_slot != d->slots_used ||
        t->n_slots > d->out->n_slots - d->slots_used)
        return BAD(d->err, row + 48,
                   "tensor '%s': slots [%" PRIu64 ", + %" PRIu32 ") should "
                   "begin at %" PRIu64 " of %zu",
                   t->name, t->first_slot, t->n_slots, d->slots_used,
                   d->out->n_slots);
    d->slots_used += t->n_slots;
    return check_slots(d, t);
}

static moec_status check_kind(const decoder *d, uint64_t row,
                              const moec_ct_tensor *t)
{
    bool padded = strncmp(t->name, pad_prefix, sizeof(pad_prefix) - 1) == 0;

    if (t->kind > MOEC_CT_PAD || t->space > MOEC_SPACE_MTP ||
        t->dtype == MOEC_DTYPE_NONE || t->dtype >= MOEC_DTYPE_COUNT)
        return BAD(d->err, row + 16, "tensor '%s': kind %d, dtype %d, space %d",
                   t->name, t->kind, t->dtype, t->space);
    if (t->file >= d->out->n_files)
        return BAD(d->err, row + 12, "tensor '%s': file %" PRIu32 " of %zu",
                   t->name, t->file, d->out->n_files);
    if (t->rank != 0 && t->kind != MOEC_CT_SLOTS)
        return BAD(d->err, row + 24, "tensor '%s' of kind %d has rank %" PRIu32,
                   t->name, t->kind, t->rank);
    if (padded != (t->kind == MOEC_CT_PAD))
        return BAD(d->err, row,
                   "tensor '%s' of kind %d: only fillers are "
                   "called %sN",
                   t->name, t->kind, pad_prefix);
    if (padded && (t->dtype != MOEC_DTYPE_U8 || t->bytes == 0 ||
                   t->bytes > PAD_BYTES_MAX || t->first_slot > d->out->n_slots))
        return BAD(d->err, row, "filler '%s': %" PRIu64 " bytes of dtype %d",
                   t->name, t->bytes, t->dtype);
    return MOEC_OK;
}

static moec_status decode_tensor(decoder *d, size_t i)
{
    uint64_t row = d->tensors_off + i * TENSOR_BYTES;
    const unsigned char *p = d->data + row;
    moec_ct_tensor *t = &d->out->tensors[i];

    MOEC_TRY(take_name(d, row, MOEC_NAME_BYTES_MAX, &t->name));
    t->file = moec_le32(p + 12);
    t->kind = p[16];
    t->dtype = p[17];
    t->space = p[18];
    t->layer = moec_le32(p + 20);
    t->rank = moec_le32(p + 24);
    t->n_slots = moec_le32(p + 28);
    t->off = moec_le64(p + 32);
    t->bytes = moec_le64(p + 40);
    t->first_slot = moec_le64(p + 48);
    if (p[19] != 0 || !is_zero(p + 56, 8))
        return BAD(d->err, row + 19, "tensor '%s': a reserved field is not 0",
                   t->name);
    MOEC_TRY(check_kind(d, row, t));
    return take_slots(d, row, t);
}

/* Walk files and tensors together: each file is filled from its header to its
 * end by its tensors, in order. */
static moec_status check_tiling(const decoder *d)
{
    const moec_slots *s = d->out;
    size_t i = 0;

    for (size_t f = 0; f < s->n_files; f++) {
        uint64_t at = s->files[f].header_bytes;

        for (; i < s->n_tensors && s->tensors[i].file == f; i++) {
            const moec_ct_tensor *t = &s->tensors[i];

            if (t->off != at || t->bytes > s->files[f].bytes - at)
                return BAD(d->err, d->tensors_off + i * TENSOR_BYTES + 32,
                           "tensor '%s': bytes [%" PRIu64 ", + %" PRIu64
                           ") should begin at %" PRIu64 " of %" PRIu64,
                           t->name, t->off, t->bytes, at, s->files[f].bytes);
            at += t->bytes;
        }
        if (at != s->files[f].bytes)
            return BAD(d->err, d->files_off + f * FILE_BYTES + 16,
                       "file '%s': tensors end at %" PRIu64 ", the file at "
                       "%" PRIu64,
                       s->files[f].name, at, s->files[f].bytes);
    }
    if (i != s->n_tensors)
        return BAD(d->err, d->tensors_off + i * TENSOR_BYTES + 12,
                   "tensor '%s' of file %" PRIu32 " stands behind another file",
                   s->tensors[i].name, s->tensors[i].file);
    return MOEC_OK;
}

/* Zeroed memory for `n` rows that are known to be at hand. */
static void *rows(size_t n, size_t size)
{
    return moec_calloc(n ? n : 1, size);
}

static moec_status decode_tables(decoder *d)
{
    moec_slots *s = d->out;

    s->files = rows(s->n_files, sizeof(*s->files));
    s->tensors = rows(s->n_tensors, sizeof(*s->tensors));
    s->slots = rows(s->n_slots, sizeof(*s->slots));
    s->leaves = rows(s->n_leaves, sizeof(*s->leaves));
    if (!s->files || !s->tensors || !s->slots || !s->leaves)
        return moec_fail_nomem(d->err, "tables of slots.bin");
    memcpy(s->leaves, d->data + d->leaves_off, s->n_leaves * LEAF_BYTES);
    decode_slots(d);
    MOEC_TRY(decode_files(d));
    for (size_t i = 0; i < s->n_tensors; i++)
        MOEC_TRY(decode_tensor(d, i));
    MOEC_TRY(check_tiling(d));
    if (d->names_used != d->names_bytes)
        return BAD(d->err, d->names_off + d->names_used,
                   "%" PRIu64 " bytes of names belong to nothing",
                   d->names_bytes - d->names_used);
    if (d->slots_used != s->n_slots)
        return BAD(d->err, d->slots_off + d->slots_used * SLOT_BYTES,
                   "%" PRIu64 " slots belong to no tensor",
                   s->n_slots - d->slots_used);
    return MOEC_OK;
}

moec_status moec_slots_decode(moec_slots *out, const void *data, size_t n,
                              moec_error *err)
{
    moec_slots s = {0};
    decoder d = {.data = data, .out = &s, .err = err};
    moec_status st = decode_head(&d, n);

    if (st == MOEC_OK)
        st = decode_tables(&d);
    if (st != MOEC_OK)
        moec_slots_fini(&s);
    else
        *out = s;
    return st;
}

void moec_slots_fini(moec_slots *s)
{
    if (!s)
        return;
    moec_free(s->files);
    moec_free(s->tensors);
    moec_free(s->slots);
    moec_free(s->leaves);
    moec_arena_fini(&s->arena);
    *s = (moec_slots){0};
}

bool moec_slots_find(const moec_slots *s, size_t file, uint64_t off,
                     uint64_t *slot_out)
{
    size_t lo = 0, hi = s->n_tensors;

    while (lo < hi) { /* first tensor behind (file, off) */
        size_t mid = lo + (hi - lo) / 2;
        const moec_ct_tensor *t = &s->tensors[mid];
        if (t->file < file || (t->file == file && t->off <= off))
            lo = mid + 1;
        else
            hi = mid;
    }
    /* empty tensors share an offset with their neighbour: step over them */
    while (lo > 0 && s->tensors[lo - 1].n_slots > 0) {
        const moec_ct_tensor *t = &s->tensors[lo - 1];
        uint64_t each = t->bytes / t->n_slots;
        if (t->file != file || off < t->off)
            break;
        if (each != 0 && off - t->off < t->bytes &&
            (off - t->off) % each == 0) {
            *slot_out = t->first_slot + (off - t->off) / each;
            return true;
        }
        lo--;
    }
    return false;
}
