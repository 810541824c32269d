/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: NumPy's .npy: "\x93NUMPY", version, the length of a header,
 *   the header (a Python dict literal, spaces and a newline behind it), data.
 * Refuses: see npy.h. The header is read as the three keys that NumPy writes,
 *   in any order and nothing else: it is no Python that we evaluate.
 */

#include "npy.h"

#include <inttypes.h>
#include <string.h>

#define NPY_MAGIC "\x93NUMPY"
enum { NPY_MAGIC_BYTES = 6 };

/* Host and file are both little endian: multi-byte elements are copied. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "little endian");

static const struct {
    const char *descr;
    moec_dtype dtype;
} dtypes[] = {
    {"|b1", MOEC_DTYPE_BOOL}, {"|i1", MOEC_DTYPE_I8},  {"|u1", MOEC_DTYPE_U8},
    {"<i2", MOEC_DTYPE_I16},  {"<u2", MOEC_DTYPE_U16}, {"<i4", MOEC_DTYPE_I32},
    {"<u4", MOEC_DTYPE_U32},  {"<i8", MOEC_DTYPE_I64}, {"<u8", MOEC_DTYPE_U64},
    {"<f4", MOEC_DTYPE_F32},  {"<f8", MOEC_DTYPE_F64},
};

/* The header's text at work. */
typedef struct cursor {
    const char *at, *end;
    const char *name;
    moec_rule rule;
} cursor;

static moec_status refuse(const cursor *c, const char *why, moec_error *err)
{
    return moec_fail(err, MOEC_E_FORMAT, c->rule, "%s: .npy header: %s",
                     c->name, why);
}

static void skip_space(cursor *c)
{
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\n'))
        c->at++;
}

static bool take(cursor *c, char wanted)
{
    skip_space(c);
    if (c->at == c->end || *c->at != wanted)
        return false;
    c->at++;
    return true;
}

static bool take_word(cursor *c, const char *word)
{
    size_t n = strlen(word);

    skip_space(c);
    if ((size_t)(c->end - c->at) < n || memcmp(c->at, word, n) != 0)
        return false;
    c->at += n;
    return true;
}

/* 'text' in single quotes, without escapes. */
static bool take_string(cursor *c, char *buf, size_t room)
{
    size_t n = 0;

    if (!take(c, '\''))
        return false;
    for (; c->at < c->end && *c->at != '\''; c->at++) {
        if (n + 1 == room)
            return false;
        buf[n++] = *c->at;
    }
    buf[n] = '\0';
    return take(c, '\'');
}

static bool take_number(cursor *c, uint64_t *out)
{
    uint64_t v = 0;
    const char *begin;

    skip_space(c);
    for (begin = c->at; c->at < c->end && *c->at >= '0' && *c->at <= '9';
         c->at++) {
        if (!moec_mul_u64(v, 10, &v) ||
            !moec_add_u64(v, (uint64_t)(*c->at - '0'), &v))
            return false;
    }
    *out = v;
    return c->at > begin;
}

static moec_status read_descr(cursor *c, moec_npy *a, moec_error *err)
{
    char descr[16];

    if (!take_string(c, descr, sizeof(descr)))
        return refuse(c, "'descr' is no plain element type", err);
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        if (strcmp(descr, dtypes[i].descr) == 0)
            a->dtype = dtypes[i].dtype;
    }
    if (a->dtype == MOEC_DTYPE_NONE)
        return moec_fail(err, MOEC_E_FORMAT, c->rule,
                         "%s: elements of type '%s', must be little-endian "
                         "integers or floats",
                         c->name, descr);
    return MOEC_OK;
}

static moec_status read_shape(cursor *c, moec_npy *a, moec_error *err)
{
    if (!take(c, '('))
        return refuse(c, "'shape' is no tuple", err);
    while (!take(c, ')')) {
        if (a->rank == MOEC_NPY_RANK_MAX)
            return refuse(c, "more than 4 dimensions", err);
        if (!take_number(c, &a->shape[a->rank]))
            return refuse(c, "'shape' holds something else than sizes", err);
        a->rank++;
        if (!take(c, ',') && (c->at == c->end || *c->at != ')'))
            return refuse(c, "'shape' is no tuple", err);
    }
    return MOEC_OK;
}

static moec_status read_order(cursor *c, moec_error *err)
{
    if (take_word(c, "False"))
        return MOEC_OK;
    if (take_word(c, "True"))
        return refuse(c, "columns first; save numpy.ascontiguousarray(array)",
                      err);
    return refuse(c, "'fortran_order' is neither True nor False", err);
}

static moec_status read_dict(cursor *c, moec_npy *a, moec_error *err)
{
    bool descr = false, shape = false, order = false;
    char key[16];

    if (!take(c, '{'))
        return refuse(c, "no dict", err);
    while (!take(c, '}')) {
        if (!take_string(c, key, sizeof(key)) || !take(c, ':'))
            return refuse(c, "no dict of 'descr', 'fortran_order' and 'shape'",
                          err);
        if (strcmp(key, "descr") == 0 && !descr) {
            descr = true;
            MOEC_TRY(read_descr(c, a, err));
        } else if (strcmp(key, "shape") == 0 && !shape) {
            shape = true;
            MOEC_TRY(read_shape(c, a, err));
        } else if (strcmp(key, "fortran_order") == 0 && !order) {
            order = true;
            MOEC_TRY(read_order(c, err));
        } else {
            return refuse(c, "a key that is unknown or stands twice", err);
        }
        if (!take(c, ',') && (c->at == c->end || *c->at != '}'))
            return refuse(c, "the dict does not end", err);
    }
    skip_space(c);
    if (!descr || !shape || !order || c->at != c->end)
        return refuse(c, "no dict of 'descr', 'fortran_order' and 'shape'",
                      err);
    return MOEC_OK;
}

bool moec_npy_is(const void *text, size_t n)
{
    return n >= NPY_MAGIC_BYTES &&
           memcmp(text, NPY_MAGIC, NPY_MAGIC_BYTES) == 0;
}

moec_status moec_npy_open(moec_npy *out, const char *name, const void *text,
                          size_t n, moec_rule rule, moec_error *err)
{
    const uint8_t *b = text;
    cursor c = {.name = name, .rule = rule};
    moec_npy a = {.n = 1};
    uint64_t begin, header, bytes;

    if (!moec_npy_is(text, n) || n < 12)
        return refuse(&c, "cut short", err);
    if (b[6] < 1 || b[6] > 3 || b[7] != 0)
        return refuse(&c, "a version that is none of 1.0, 2.0, 3.0", err);
    begin = b[6] == 1 ? 10 : 12;
    header =
        b[6] == 1 ? (uint64_t)b[8] | (uint64_t)b[9] << 8 : moec_le32(b + 8);
    if (header > n - begin)
        return refuse(&c, "cut short", err);
    c.at = (const char *)b + begin;
    c.end = c.at + header;
    MOEC_TRY(read_dict(&c, &a, err));
    a.data = b + begin + header;
    for (uint32_t i = 0; i < a.rank; i++) {
        if (!moec_mul_u64(a.n, a.shape[i], &a.n))
            return refuse(&c, "'shape' is beyond 64 bits", err);
    }
    if (!moec_mul_u64(a.n, moec_dtype_bits(a.dtype) / 8, &bytes) ||
        bytes != n - begin - header)
        return moec_fail(err, MOEC_E_FORMAT, rule,
                         "%s: %" PRIu64 " bytes of data, but the shape says "
                         "%" PRIu64 " elements of type %s",
                         name, n - begin - header, a.n,
                         moec_dtype_name(a.dtype));
    *out = a;
    return MOEC_OK;
}

bool moec_npy_is_integer(const moec_npy *a)
{
    return a->dtype != MOEC_DTYPE_BOOL && a->dtype != MOEC_DTYPE_F32 &&
           a->dtype != MOEC_DTYPE_F64;
}

bool moec_npy_i64(const moec_npy *a, uint64_t i, int64_t *out)
{
    size_t bytes = moec_dtype_bits(a->dtype) / 8;
    uint64_t v = 0;
    bool is_signed = a->dtype == MOEC_DTYPE_I8 || a->dtype == MOEC_DTYPE_I16 ||
                     a->dtype == MOEC_DTYPE_I32 || a->dtype == MOEC_DTYPE_I64;

    if (!moec_npy_is_integer(a))
        return false;
    memcpy(&v, a->data + i * bytes, bytes);
    if (is_signed && bytes < 8 && v >> (8 * bytes - 1) != 0)
        v |= UINT64_MAX << (8 * bytes);
    if (!is_signed && v > INT64_MAX)
        return false;
    *out = (int64_t)v;
    return true;
}

double moec_npy_f64(const moec_npy *a, uint64_t i)
{
    int64_t v = 0;
    uint64_t u;
    double d;
    float f;

    if (a->dtype == MOEC_DTYPE_F64) {
        memcpy(&d, a->data + i * sizeof(d), sizeof(d));
        return d;
    }
    if (a->dtype == MOEC_DTYPE_F32) {
        memcpy(&f, a->data + i * sizeof(f), sizeof(f));
        return (double)f;
    }
    if (a->dtype == MOEC_DTYPE_BOOL)
        return a->data[i] != 0;
    if (moec_npy_i64(a, i, &v))
        return (double)v;
    memcpy(&u, a->data + i * sizeof(u), sizeof(u));
    return (double)u;
}
