/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The reader of shard headers. Owns every rule H01..H23; the words behind each
 * are in rules.def. H24 (reserved names) is the model's: converted files hold
 * such tensors rightly.
 *
 * The text streams through a window and is digested on the way; only the table
 * stays: 40 bytes a tensor, its name, and its shape where the last few tensors
 * had another. A value of the wrong kind is passed over before it is refused,
 * so that a fault of the text (a deep nest, a bad escape) is named as that.
 */

#include "safetensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "entry_scan.h"
#include "jsonscan.h"
#include "nameset.h"
#include "tiling.h"

/* Small enough to stay in a core's cache between the read, the digest and the
 * parse. */
#define WINDOW_BYTES  (UINT64_C(1) << 18)
#define PREFIX_BYTES  8
#define ENTRY_BYTES   128 /* of an entry, from real headers */
#define N_SHAPES_KEPT 64  /* models repeat a dozen shapes; power of two */
/* What a header's length promises is a guess: believe 64,000 tensors. */
#define EXPECT_MAX   ((size_t)64000)
#define METADATA_KEY "__metadata__"

/* What an entry has said so far. */
enum { HAS_DTYPE = 1, HAS_SHAPE = 2, HAS_OFFSETS = 4 };

typedef struct entry {
    moec_tensor *t;
    uint64_t begin, end;
    uint64_t shape[MOEC_RANK_MAX];
    uint32_t has;
} entry;

typedef struct parser {
    moec_jsonscan js;
    moec_header *h;
    moec_arena *arena; /* of names and shapes */
    size_t cap;        /* of h->tensors */
    size_t breaks_cap;
    moec_nameset names;
    moec_entry_scan scan;
    const uint64_t *shapes[N_SHAPES_KEPT]; /* stored ones, by hash */
    uint16_t shape_rank[N_SHAPES_KEPT];
    /* source */
    int fd;
    uint64_t next, limit; /* bytes of the file still to be read */
    unsigned char *window;
    moec_hasher *hasher;
    char text[MOEC_NAME_BYTES_MAX];
} parser;

/* ---------------------------------------------------------------- errors */

/* Refuse tensor `name`; the text behind it says why. */
static moec_status MOEC_PRINTF(4, 5)
    refuse(parser *p, moec_rule rule, const char *name, const char *fmt, ...)
{
    char why[256];
    va_list args;
    uint64_t at = moec_js_pos(&p->js);

    va_start(args, fmt);
    (void)vsnprintf(why, sizeof(why), fmt, args);
    va_end(args);
    return moec_fail_at(p->js.err, MOEC_E_FORMAT, rule, at,
                        "%s: tensor '%s': %s (byte %" PRIu64 ")", p->js.name,
                        name, why, at);
}

/* ----------------------------------------------------------- the entries */

static moec_status check_name(parser *p, const moec_js_text *t, uint64_t at)
{
    if (t->has_nul)
        return moec_fail_at(p->js.err, MOEC_E_FORMAT, MOEC_RULE_H08, at,
                            "%s: byte %" PRIu64 ": a tensor's name holds an "
                            "escaped NUL",
                            p->js.name, at);
    if (t->len == 0 || t->len > MOEC_NAME_BYTES_MAX)
        return moec_fail_at(p->js.err, MOEC_E_FORMAT, MOEC_RULE_H22, at,
                            "%s: byte %" PRIu64 ": a tensor's name of %" PRIu64
                            " bytes, outside 1 to %d",
                            p->js.name, at, t->len, MOEC_NAME_BYTES_MAX);
    if (p->h->n_tensors >= MOEC_TENSORS_PER_FILE_MAX)
        return moec_fail_at(p->js.err, MOEC_E_FORMAT, MOEC_RULE_H23, at,
                            "%s: byte %" PRIu64 ": more than %u tensors",
                            p->js.name, at, MOEC_TENSORS_PER_FILE_MAX);
    return MOEC_OK;
}

/* Tensor number `n` stands before the one that it follows in the header. */
static moec_status add_break(parser *p, size_t n)
{
    moec_header *h = p->h;

    if (!MOEC_GROW(h->breaks, h->n_breaks, p->breaks_cap))
        return moec_fail_nomem(p->js.err, "the order of the tensors");
    h->breaks[h->n_breaks++] = (uint32_t)n;
    return MOEC_OK;
}

static moec_status grow_table(parser *p)
{
    size_t cap = p->cap * 2;
    moec_tensor *more;

    if (p->cap == 0)
        cap = 64 + (size_t)moec_min_u64(p->names.expect, EXPECT_MAX);
    more = moec_realloc_array(p->h->tensors, cap, sizeof(*more));
    if (more == NULL)
        return moec_fail_nomem(p->js.err, "the tensor table");
    p->h->tensors = more;
    p->cap = cap;
    return MOEC_OK;
}

/* Add a tensor of this name to the table. */
static moec_status add_tensor(parser *p, const moec_js_text *t, uint64_t at)
{
    moec_header *h = p->h;
    size_t n = (size_t)t->len;
    moec_tensor *tensor;
    bool existed = false;

    MOEC_TRY(moec_nameset_add(&p->names, h->tensors, h->n_tensors, t->s, n,
                              &existed, p->js.err));
    if (existed)
        return moec_fail_at(p->js.err, MOEC_E_FORMAT, MOEC_RULE_H07, at,
                            "%s: tensor '%.*s': a second time (byte %" PRIu64
                            ")",
                            p->js.name, (int)n, t->s, at);
    if (h->n_tensors == p->cap)
        MOEC_TRY(grow_table(p));
    tensor = &h->tensors[h->n_tensors];
    memset(tensor, 0, sizeof(*tensor));
    tensor->name = moec_arena_strdup(p->arena, t->s, n);
    if (tensor->name == NULL)
        return moec_fail_nomem(p->js.err, "a tensor's name");
    if (h->n_tensors > 0 && strcmp(tensor[-1].name, tensor->name) > 0)
        MOEC_TRY(add_break(p, h->n_tensors));
    h->n_tensors++;
    return MOEC_OK;
}

/* Give the tensor its shape; equal shapes are stored once where they are
 * near each other. */
static moec_status keep_shape(parser *p, entry *e)
{
    size_t bytes = e->t->rank * sizeof(*e->shape);
    uint64_t hash = e->t->rank;
    uint64_t *own;
    size_t i;

    for (uint32_t d = 0; d < e->t->rank; d++)
        hash = (hash ^ e->shape[d]) * UINT64_C(0x9e3779b97f4a7c15);
    i = (size_t)(hash >> 32) & (N_SHAPES_KEPT - 1);
    if (p->shapes[i] != NULL && p->shape_rank[i] == e->t->rank &&
        memcmp(p->shapes[i], e->shape, bytes) == 0) {
        e->t->shape = p->shapes[i];
        return MOEC_OK;
    }
    own =
        moec_arena_alloc(p->arena, bytes != 0 ? bytes : 1, _Alignof(uint64_t));
    if (own == NULL)
        return moec_fail_nomem(p->js.err, "a tensor's shape");
    memcpy(own, e->shape, bytes);
    e->t->shape = p->shapes[i] = own;
    p->shape_rank[i] = e->t->rank;
    return MOEC_OK;
}

/* Pass over a value of the wrong kind, then refuse it. */
static moec_status refuse_kind(parser *p, moec_rule rule, const char *name,
                               const char *why)
{
    MOEC_TRY(moec_js_skip(&p->js));
    return refuse(p, rule, name, "%s", why);
}

/* One unsigned integer, or `rule`. */
static moec_status read_u64(parser *p, moec_rule rule, const entry *e,
                            const char *why, uint64_t *out)
{
    bool is_u64 = false;
    int c;

    MOEC_TRY(moec_js_peek(&p->js, &c));
    /* ']' behind a comma is a fault of the text: skip names it. */
    if (c != '-' && (c < '0' || c > '9'))
        return refuse_kind(p, rule, e->t->name, why);
    MOEC_TRY(moec_js_number(&p->js, out, &is_u64));
    if (!is_u64)
        return refuse(p, rule, e->t->name, "%s", why);
    return MOEC_OK;
}

static moec_status read_dtype(parser *p, entry *e)
{
    moec_js_text t = {.buf = p->text, .cap = sizeof(p->text)};
    int c;

    MOEC_TRY(moec_js_peek(&p->js, &c));
    if (c != '"')
        return refuse_kind(p, MOEC_RULE_H11, e->t->name,
                           "dtype is not a string");
    MOEC_TRY(moec_js_string(&p->js, &t));
    if (t.len <= 32)
        e->t->dtype = (uint8_t)moec_dtype_parse(t.s, (size_t)t.len);
    if (e->t->dtype == MOEC_DTYPE_NONE)
        return refuse(p, MOEC_RULE_H11, e->t->name, "dtype '%.*s' is unknown",
                      (int)moec_min_u64(t.len, 64), t.s);
    return MOEC_OK;
}

static moec_status read_shape(parser *p, entry *e)
{
    bool more = true, first = true;
    int c;

    MOEC_TRY(moec_js_peek(&p->js, &c));
    if (c != '[')
        return refuse_kind(p, MOEC_RULE_H12, e->t->name, "shape is not a list");
    MOEC_TRY(moec_js_enter(&p->js));
    for (;; first = false) {
        uint64_t dim = 0;
        MOEC_TRY(moec_js_member(&p->js, ']', first, &more));
        if (!more)
            break;
        MOEC_TRY(read_u64(p, MOEC_RULE_H12, e,
                          "a dimension is not an unsigned integer below 2^64",
                          &dim));
        if (e->t->rank == MOEC_RANK_MAX)
            return refuse(p, MOEC_RULE_H21, e->t->name,
                          "more than %d dimensions", MOEC_RANK_MAX);
        e->shape[e->t->rank++] = dim;
    }
    moec_js_leave(&p->js);
    return MOEC_OK;
}

static moec_status read_offsets(parser *p, entry *e)
{
    static const char why[] = "data_offsets is not a pair of unsigned "
                              "integers";
    uint64_t pair[2] = {0, 0};
    uint32_t n = 0;
    bool more = true;
    int c;

    MOEC_TRY(moec_js_peek(&p->js, &c));
    if (c != '[')
        return refuse_kind(p, MOEC_RULE_H13, e->t->name, why);
    MOEC_TRY(moec_js_enter(&p->js));
    for (;; n++) {
        uint64_t v = 0;
        MOEC_TRY(moec_js_member(&p->js, ']', n == 0, &more));
        if (!more)
            break;
        MOEC_TRY(read_u64(p, MOEC_RULE_H13, e, why, &v));
        if (n == 2)
            return refuse(p, MOEC_RULE_H13, e->t->name, "%s", why);
        pair[n] = v;
    }
    moec_js_leave(&p->js);
    if (n != 2)
        return refuse(p, MOEC_RULE_H13, e->t->name, "%s", why);
    e->begin = pair[0];
    e->end = pair[1];
    return MOEC_OK;
}

/* A field that the format does not have: its value is passed over. The key
 * goes into the entry's set, so that a second one is seen. */
static moec_status read_unknown(parser *p, entry *e, const moec_js_text *t,
                                uint64_t *serial)
{
    moec_keyset *keys = &p->js.keys;
    moec_siphash h;
    bool existed = false;

    if (*serial == 0)
        *serial = moec_keyset_open(keys);
    moec_keyset_begin(keys, &h, *serial);
    /* Longer than the buffer: what fits and the length stand for it. A false
     * match takes two fields of over 512 equal bytes and equal length. */
    moec_siphash_add(&h, t->s, (size_t)moec_min_u64(t->len, t->cap));
    moec_siphash_add(&h, &t->len, sizeof(t->len));
    MOEC_TRY(moec_keyset_end(keys, &h, &existed, p->js.err));
    if (existed)
        return refuse(p, MOEC_RULE_H07, e->t->name,
                      "field '%.*s' a second time",
                      (int)moec_min_u64(t->len, 64), t->s);
    if (keys->n > p->js.n_keys_max)
        return refuse(p, MOEC_RULE_H10, e->t->name, "more than %u fields",
                      p->js.n_keys_max);
    if (p->h->unknown_field == NULL) {
        p->h->unknown_field =
            moec_arena_strdup(p->arena, t->s, (size_t)moec_min_u64(t->len, 64));
        if (p->h->unknown_field == NULL)
            return moec_fail_nomem(p->js.err, "a field's name");
        p->h->unknown_in = e->t->name;
    }
    MOEC_TRY(moec_js_expect(&p->js, ':'));
    return moec_js_skip(&p->js);
}

/* One "key": value of an entry. */
static moec_status read_field(parser *p, entry *e, uint64_t *serial)
{
    static const struct {
        const char *key;
        uint32_t key_bytes, bit;
        moec_status (*read)(parser *p, entry *e);
    } fields[] = {{"dtype", 5, HAS_DTYPE, read_dtype},
                  {"shape", 5, HAS_SHAPE, read_shape},
                  {"data_offsets", 12, HAS_OFFSETS, read_offsets}};
    moec_js_text t = {.buf = p->text, .cap = sizeof(p->text)};

    MOEC_TRY(moec_js_string(&p->js, &t));
    for (size_t i = 0; i < sizeof(fields) / sizeof(*fields); i++) {
        if (!moec_js_text_is(&t, fields[i].key, fields[i].key_bytes))
            continue;
        if (e->has & fields[i].bit)
            return refuse(p, MOEC_RULE_H07, e->t->name,
                          "field '%s' a second time", fields[i].key);
        e->has |= fields[i].bit;
        MOEC_TRY(moec_js_expect(&p->js, ':'));
        return fields[i].read(p, e);
    }
    return read_unknown(p, e, &t, serial);
}

/* Bytes of the tensor, from dtype and shape. Zero dimensions do not excuse a
 * product that wraps, whatever the order of the dimensions. */
static moec_status shape_bytes(parser *p, const entry *e, uint64_t *out)
{
    uint64_t n = 1, bits;
    bool empty = false;

    for (uint32_t d = 0; d < e->t->rank; d++) {
        empty = empty || e->shape[d] == 0;
        if (e->shape[d] != 0 && !moec_mul_u64(n, e->shape[d], &n))
            return refuse(p, MOEC_RULE_H19, e->t->name,
                          "the product of the dimensions exceeds 64 bits");
    }
    for (uint32_t d = 0; d < e->t->rank; d++) {
        if (e->shape[d] > INT64_MAX)
            return refuse(p, MOEC_RULE_H12, e->t->name,
                          "dimension %" PRIu64 " is negative to readers with "
                          "signed integers, and its bytes overflow",
                          e->shape[d]);
    }
    if (!moec_mul_u64(n, moec_dtype_bits((moec_dtype)e->t->dtype), &bits))
        return refuse(p, MOEC_RULE_H19, e->t->name,
                      "%" PRIu64 " elements of %s exceed 2^64 bits", n,
                      moec_dtype_name((moec_dtype)e->t->dtype));
    if (!empty && bits % 8 != 0)
        return refuse(p, MOEC_RULE_H20, e->t->name,
                      "%" PRIu64 " bits are not whole bytes", bits);
    *out = empty ? 0 : bits / 8;
    return MOEC_OK;
}

static moec_status check_entry(parser *p, entry *e)
{
    const char *missing = !(e->has & HAS_DTYPE)     ? "dtype"
                          : !(e->has & HAS_SHAPE)   ? "shape"
                          : !(e->has & HAS_OFFSETS) ? "data_offsets"
                                                    : NULL;
    uint64_t bytes = 0;

    if (missing != NULL)
        return refuse(p, MOEC_RULE_H10, e->t->name, "%s is missing", missing);
    if (e->begin > e->end)
        return refuse(p, MOEC_RULE_H14, e->t->name,
                      "begins at %" PRIu64 ", behind its end %" PRIu64,
                      e->begin, e->end);
    MOEC_TRY(shape_bytes(p, e, &bytes));
    if (e->end - e->begin != bytes)
        return refuse(p, MOEC_RULE_H18, e->t->name,
                      "data_offsets give %" PRIu64 " bytes, dtype and shape "
                      "%" PRIu64,
                      e->end - e->begin, bytes);
    e->t->off = e->begin; /* from the begin of the data, until place() */
    e->t->bytes = bytes;
    return keep_shape(p, e);
}

static moec_status read_entry(parser *p, moec_tensor *t)
{
    entry e = {.t = t};
    uint64_t serial = 0; /* of this object in the key set, once needed */
    bool more = true, first = true;
    int c;

    MOEC_TRY(moec_js_peek(&p->js, &c));
    if (c != '{')
        return refuse_kind(p, MOEC_RULE_H10, t->name,
                           "its entry is not an object");
    MOEC_TRY(moec_js_enter(&p->js));
    for (;; first = false) {
        MOEC_TRY(moec_js_member(&p->js, '}', first, &more));
        if (!more)
            break;
        MOEC_TRY(read_field(p, &e, &serial));
    }
    moec_js_leave(&p->js);
    moec_keyset_clear(&p->js.keys);
    return check_entry(p, &e);
}

/* -------------------------------------------------------------- metadata */

static moec_status refuse_metadata(parser *p, const char *why)
{
    uint64_t at = moec_js_pos(&p->js);

    MOEC_TRY(moec_js_skip(&p->js));
    return moec_fail_at(p->js.err, MOEC_E_FORMAT, MOEC_RULE_H09, at,
                        "%s: byte %" PRIu64 ": %s", p->js.name, at, why);
}

/* Values are not kept: nothing in the library depends on them. */
static moec_status read_metadata(parser *p)
{
    uint64_t serial = moec_keyset_open(&p->js.keys);
    bool more = true, first = true;
    int c;

    MOEC_TRY(moec_js_peek(&p->js, &c));
    if (c != '{')
        return refuse_metadata(p, METADATA_KEY " is not an object");
    MOEC_TRY(moec_js_enter(&p->js));
    p->js.too_many_keys = MOEC_RULE_H09;
    for (;; first = false) {
        MOEC_TRY(moec_js_member(&p->js, '}', first, &more));
        if (!more)
            break;
        MOEC_TRY(moec_js_key(&p->js, serial));
        MOEC_TRY(moec_js_expect(&p->js, ':'));
        MOEC_TRY(moec_js_peek(&p->js, &c));
        if (c != '"')
            return refuse_metadata(p, "a value of " METADATA_KEY
                                      " is not a string");
        MOEC_TRY(moec_js_skip(&p->js));
    }
    p->js.too_many_keys = MOEC_RULE_H10;
    moec_js_leave(&p->js);
    moec_keyset_clear(&p->js.keys);
    return MOEC_OK;
}

/* ------------------------------------------------------------ the object */

/* An entry of the usual form, in one go: *next is the byte behind it. NULL, and
 * nothing consumed, for any other. */
static moec_status read_usual(parser *p, const unsigned char **next)
{
    moec_entry_scan *s = &p->scan;
    uint64_t at = moec_js_pos(&p->js);
    entry e = {.has = HAS_DTYPE | HAS_SHAPE | HAS_OFFSETS};
    moec_js_text t;

    *next = moec_entry_read(s, p->js.p, p->js.end);
    if (*next == NULL)
        return MOEC_OK;
    t = (moec_js_text){.s = s->name, .len = s->name_bytes};
    if (moec_js_text_is(&t, METADATA_KEY, sizeof(METADATA_KEY) - 1)) {
        *next = NULL; /* no such thing belongs there */
        return MOEC_OK;
    }
    MOEC_TRY(check_name(p, &t, at));
    MOEC_TRY(add_tensor(p, &t, at));
    e.t = &p->h->tensors[p->h->n_tensors - 1];
    e.t->dtype = (uint8_t)s->dtype;
    e.t->rank = s->rank;
    e.begin = s->begin;
    e.end = s->end;
    memcpy(e.shape, s->shape, s->rank * sizeof(*e.shape));
    p->js.p = *next;
    return check_entry(p, &e);
}

/* One "name": entry of the header. */
static moec_status read_member(parser *p, bool *metadata_seen)
{
    moec_js_text t = {.buf = p->text, .cap = sizeof(p->text)};
    const unsigned char *next;
    uint64_t at;
    int c;

    MOEC_TRY(moec_js_peek(&p->js, &c));
    MOEC_TRY(read_usual(p, &next));
    if (next != NULL)
        return MOEC_OK;
    at = moec_js_pos(&p->js);
    MOEC_TRY(moec_js_string(&p->js, &t));
    if (moec_js_text_is(&t, METADATA_KEY, sizeof(METADATA_KEY) - 1)) {
        if (*metadata_seen)
            return moec_fail_at(p->js.err, MOEC_E_FORMAT, MOEC_RULE_H07, at,
                                "%s: byte %" PRIu64 ": " METADATA_KEY
                                " a second time",
                                p->js.name, at);
        *metadata_seen = true;
        MOEC_TRY(moec_js_expect(&p->js, ':'));
        return read_metadata(p);
    }
    MOEC_TRY(check_name(p, &t, at));
    MOEC_TRY(add_tensor(p, &t, at));
    MOEC_TRY(moec_js_expect(&p->js, ':'));
    return read_entry(p, &p->h->tensors[p->h->n_tensors - 1]);
}

static moec_status read_object(parser *p)
{
    bool more = true, first = true, metadata_seen = false;
    int c;

    MOEC_TRY(moec_js_peek(&p->js, &c));
    p->h->leading_space = moec_js_pos(&p->js) != PREFIX_BYTES;
    if (c != '{')
        return moec_js_fail(&p->js, MOEC_RULE_H02,
                            "the header is not a JSON object");
    MOEC_TRY(moec_js_enter(&p->js));
    for (;; first = false) {
        MOEC_TRY(moec_js_member(&p->js, '}', first, &more));
        if (!more)
            break;
        MOEC_TRY(read_member(p, &metadata_seen));
    }
    moec_js_leave(&p->js);
    MOEC_TRY(moec_js_peek(&p->js, &c));
    if (c >= 0)
        return moec_js_fail(&p->js, MOEC_RULE_H06,
                            "something follows the header's object");
    return MOEC_OK;
}

/* -------------------------------------------------------------- sources */

/* Check where the tensors lie, and make offsets count from the file. */
static moec_status place(parser *p, uint64_t file_bytes)
{
    moec_header *h = p->h;

    MOEC_TRY(moec_tiling_check(h->tensors, h->n_tensors, h->header_bytes,
                               file_bytes, p->js.name, p->js.err));
    h->data_bytes = file_bytes - h->header_bytes;
    for (size_t i = 0; i < h->n_tensors; i++)
        h->tensors[i].off += h->header_bytes;
    return MOEC_OK;
}

/* H01. */
static moec_status check_length(const unsigned char prefix[PREFIX_BYTES],
                                uint64_t file_bytes, const char *name,
                                uint64_t *header_bytes_out, moec_error *err)
{
    uint64_t n = moec_le64(prefix);

    if (n > MOEC_HEADER_BYTES_MAX)
        return moec_fail_at(err, MOEC_E_FORMAT, MOEC_RULE_H01, 0,
                            "%s: byte 0: a header of %" PRIu64
                            " bytes, the limit is %" PRIu64,
                            name, n, MOEC_HEADER_BYTES_MAX);
    if (n > file_bytes - PREFIX_BYTES)
        return moec_fail_at(err, MOEC_E_FORMAT, MOEC_RULE_H01, 0,
                            "%s: byte 0: a header of %" PRIu64
                            " bytes in a file of %" PRIu64,
                            name, n, file_bytes);
    *header_bytes_out = PREFIX_BYTES + n;
    return MOEC_OK;
}

static moec_status too_small(const char *name, uint64_t bytes, moec_error *err)
{
    return moec_fail_at(err, MOEC_E_FORMAT, MOEC_RULE_H01, 0,
                        "%s: byte 0: %" PRIu64
                        " bytes, too small for a header's length",
                        name, bytes);
}

static moec_status refill(void *ctx, const void **data_out, size_t *n_out,
                          moec_error *err)
{
    parser *p = ctx;
    size_t n = (size_t)moec_min_u64(p->limit - p->next, WINDOW_BYTES);

    *n_out = n;
    if (n == 0)
        return MOEC_OK;
    MOEC_TRY(moec_pread_full(p->fd, p->js.name, p->window, n, p->next, err));
    MOEC_TRY(moec_hasher_update(p->hasher, p->window, n, err));
    p->next += n;
    *data_out = p->window;
    return MOEC_OK;
}

static void parser_init(parser *p, moec_header *h, const char *name,
                        moec_error *err)
{
    static const moec_header no_header;

    memset(p, 0, sizeof(*p));
    *h = no_header;
    p->h = h;
    p->arena = &h->arena;
    p->fd = -1;
    p->js.name = name;
    p->js.err = err;
    p->js.base = PREFIX_BYTES;
    p->js.n_keys_max = MOEC_JSON_KEYS_MAX;
    p->js.json = MOEC_RULE_H04;
    p->js.utf8 = MOEC_RULE_H03;
    p->js.too_deep = MOEC_RULE_H05;
    p->js.duplicate = MOEC_RULE_H07;
    p->js.too_many_keys = MOEC_RULE_H10;
}

/* Put the table, which is complete, beside its names. */
static moec_status lend_table(parser *p)
{
    moec_header *h = p->h;
    size_t bytes = h->n_tensors * sizeof(*h->tensors);
    moec_tensor *copy =
        moec_arena_alloc(p->arena, bytes + 1, _Alignof(moec_tensor));

    if (copy == NULL)
        return moec_fail_nomem(p->js.err, "the tensor table");
    if (bytes > 0)
        memcpy(copy, h->tensors, bytes);
    moec_free(h->tensors);
    h->tensors = copy;
    h->lent = true;
    return MOEC_OK;
}

/* Run the parse, free what the parser holds, and the table if it failed. */
static moec_status parser_run(parser *p, uint64_t file_bytes)
{
    moec_status st;

    p->names.expect = (size_t)(p->h->header_bytes / ENTRY_BYTES);
    st = read_object(p);
    p->h->names_sum = p->names.sum;
    moec_js_fini(&p->js);
    moec_nameset_fini(&p->names);
    if (st == MOEC_OK)
        st = place(p, file_bytes);
    if (st == MOEC_OK && p->arena != &p->h->arena)
        st = lend_table(p);
    if (st != MOEC_OK)
        moec_header_fini(p->h);
    return st;
}

moec_status moec_header_read(moec_header *out, int fd, uint64_t file_bytes,
                             const char *name, const uint64_t secret[2],
                             moec_arena *arena, moec_error *err)
{
    unsigned char prefix[PREFIX_BYTES];
    parser p;
    moec_header h;
    moec_status st;

    if (file_bytes < PREFIX_BYTES)
        return too_small(name, file_bytes, err);
    parser_init(&p, &h, name, err);
    MOEC_TRY(moec_pread_full(fd, name, prefix, sizeof(prefix), 0, err));
    MOEC_TRY(check_length(prefix, file_bytes, name, &h.header_bytes, err));
    if (secret != NULL)
        memcpy(p.names.secret, secret, sizeof(p.names.secret));
    if (arena != NULL)
        p.arena = arena;
    p.fd = fd;
    p.next = PREFIX_BYTES;
    p.limit = h.header_bytes;
    p.js.refill = refill;
    p.js.ctx = &p;
    p.window = moec_alloc((size_t)moec_min_u64(h.header_bytes, WINDOW_BYTES));
    if (p.window == NULL)
        return moec_fail_nomem(err, "a window on a header");
    st = moec_hasher_create(&p.hasher, err);
    if (st != MOEC_OK)
        goto free_window;
    st = moec_hasher_update(p.hasher, prefix, sizeof(prefix), err);
    if (st == MOEC_OK)
        st = parser_run(&p, file_bytes);
    if (st != MOEC_OK) {
        moec_hasher_destroy(p.hasher);
        goto free_window;
    }
    st = moec_hasher_final(p.hasher, &h.sha256, err); /* frees it */
    if (st != MOEC_OK)
        moec_header_fini(&h);
    else
        *out = h;
free_window:
    moec_free(p.window);
    return st;
}

moec_status moec_header_parse(moec_header *out, const void *data, size_t n,
                              uint64_t file_bytes, const char *name,
                              moec_error *err)
{
    const unsigned char *bytes = data;
    parser p;
    moec_header h;

    if (file_bytes < PREFIX_BYTES || n < PREFIX_BYTES)
        return too_small(name, moec_min_u64(file_bytes, n), err);
    parser_init(&p, &h, name, err);
    MOEC_TRY(check_length(bytes, file_bytes, name, &h.header_bytes, err));
    if (h.header_bytes > n)
        return moec_fail_at(err, MOEC_E_FORMAT, MOEC_RULE_H01, 0,
                            "%s: byte 0: a header of %" PRIu64
                            " bytes, %zu are there",
                            name, h.header_bytes - PREFIX_BYTES, n);
    p.js.start = bytes + PREFIX_BYTES;
    p.js.p = p.js.start;
    p.js.end = bytes + h.header_bytes;
    MOEC_TRY(moec_sha256_of(data, (size_t)h.header_bytes, &h.sha256, err));
    MOEC_TRY(parser_run(&p, file_bytes));
    *out = h;
    return MOEC_OK;
}

void moec_header_fini(moec_header *h)
{
    static const moec_header no_header;

    moec_arena_fini(&h->arena);
    if (!h->lent)
        moec_free(h->tensors);
    moec_free(h->breaks);
    *h = no_header;
}

size_t moec_header_n_runs(const moec_header *h)
{
    return h->n_tensors > 0 ? h->n_breaks + 1 : 0;
}

size_t moec_header_runs(const moec_header *h, moec_run *out)
{
    size_t n = moec_header_n_runs(h);

    for (size_t i = 0; i < n; i++) {
        size_t begin = i > 0 ? h->breaks[i - 1] : 0;
        size_t end = i + 1 < n ? h->breaks[i] : h->n_tensors;
        out[i] = (moec_run){h->tensors + begin, h->tensors + end};
    }
    return n;
}
