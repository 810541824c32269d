/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The entry of one tensor in a shard header: dtype, shape, data_offsets, each
 * once, and that they agree (H07, H10..H14, H18..H21). A value of the wrong
 * kind is passed over before it is refused, so that a fault of the text (a deep
 * nest, a bad escape) is named as that.
 */

#include <inttypes.h>

#include "header_parts.h"

/* Refuse tensor `name`; the text behind it says why. */
static moec_status MOEC_PRINTF(4, 5)
    refuse(moec_header_parser *p, moec_rule rule, const char *name,
           const char *fmt, ...)
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

/* Pass over a value of the wrong kind, then refuse it. */
static moec_status refuse_kind(moec_header_parser *p, moec_rule rule,
                               const char *name, const char *why)
{
    MOEC_TRY(moec_js_skip(&p->js));
    return refuse(p, rule, name, "%s", why);
}

/* One unsigned integer, or `rule`. */
static moec_status read_u64(moec_header_parser *p, moec_rule rule,
                            const moec_header_entry *e, const char *why,
                            uint64_t *out)
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

static moec_status read_dtype(moec_header_parser *p, moec_header_entry *e)
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

static moec_status read_shape(moec_header_parser *p, moec_header_entry *e)
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

static moec_status read_offsets(moec_header_parser *p, moec_header_entry *e)
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
static moec_status read_unknown(moec_header_parser *p, moec_header_entry *e,
                                const moec_js_text *t, uint64_t *serial)
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
static moec_status read_field(moec_header_parser *p, moec_header_entry *e,
                              uint64_t *serial)
{
    static const struct {
        const char *key;
        uint32_t key_bytes, bit;
        moec_status (*read)(moec_header_parser *p, moec_header_entry *e);
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
static moec_status shape_bytes(moec_header_parser *p,
                               const moec_header_entry *e, uint64_t *out)
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

moec_status moec_header_check_entry(moec_header_parser *p, moec_header_entry *e)
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
    return moec_header_keep_shape(p, e);
}

moec_status moec_header_read_entry(moec_header_parser *p, moec_tensor *t)
{
    moec_header_entry e = {.t = t};
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
    return moec_header_check_entry(p, &e);
}
