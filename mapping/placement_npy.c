/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: one NumPy array of integers (.npy, versions 1 to 3):
 *     1. "\x93NUMPY", major, minor
 *     2. header bytes N: u16 (version 1) or u32, little endian
 *     3. N bytes: a Python dict {'descr': '<i8', 'fortran_order': False,
 *        'shape': (58, 288), } and padding
 *     4. the elements, row major
 * Refuses: elements that are no integers (P04), big-endian ones, Fortran
 *   order, objects (pickles), and bytes too many or too few (P01).
 */

#include <inttypes.h>
#include <string.h>

#include "placement_rows.h"

/* The header's text on its way through. */
typedef struct header {
    const char *file, *at, *end;
    char descr[16];
    bool seen_descr, seen_order, seen_shape;
    bool fortran;
    uint64_t shape[MOEC_ARRAY_DIMS];
    uint32_t n_dims;
} header;

static moec_status fail(const header *h, const char *what, moec_error *err)
{
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01, "%s: .npy header: %s",
                     h->file, what);
}

static void skip_space(header *h)
{
    while (h->at < h->end && (*h->at == ' ' || *h->at == '\n'))
        h->at++;
}

static bool take(header *h, const char *word)
{
    size_t n = strlen(word);

    skip_space(h);
    if ((size_t)(h->end - h->at) < n || memcmp(h->at, word, n) != 0)
        return false;
    h->at += n;
    return true;
}

static moec_status take_text(header *h, char *out, size_t max, moec_error *err)
{
    const char *from;

    if (!take(h, "'"))
        return fail(h, "a string must stand in single quotes", err);
    from = h->at;
    while (h->at < h->end && *h->at != '\'')
        h->at++;
    if (h->at == h->end || (size_t)(h->at - from) >= max)
        return fail(h, "a string without an end", err);
    memcpy(out, from, (size_t)(h->at - from));
    out[h->at - from] = '\0';
    h->at++;
    return MOEC_OK;
}

static moec_status take_shape(header *h, moec_error *err)
{
    if (!take(h, "("))
        return fail(h, "the shape is no tuple", err);
    while (!take(h, ")")) {
        uint64_t v = 0;
        const char *from;

        skip_space(h);
        from = h->at;
        for (; h->at < h->end && *h->at >= '0' && *h->at <= '9'; h->at++) {
            if (!moec_mul_u64(v, 10, &v) ||
                !moec_add_u64(v, (uint64_t)(*h->at - '0'), &v))
                return fail(h, "a size too large", err);
        }
        if (h->at == from || h->n_dims == MOEC_ARRAY_DIMS)
            return fail(h, "the shape must be 2 or 3 sizes", err);
        h->shape[h->n_dims++] = v;
        if (!take(h, ",") && (h->at == h->end || *h->at != ')'))
            return fail(h, "the shape must be 2 or 3 sizes", err);
    }
    return MOEC_OK;
}

static moec_status take_member(header *h, moec_error *err)
{
    char key[16];

    MOEC_TRY(take_text(h, key, sizeof(key), err));
    if (!take(h, ":"))
        return fail(h, "a key without a value", err);
    if (strcmp(key, "descr") == 0 && !h->seen_descr) {
        h->seen_descr = true;
        return take_text(h, h->descr, sizeof(h->descr), err);
    }
    if (strcmp(key, "fortran_order") == 0 && !h->seen_order) {
        h->seen_order = true;
        h->fortran = take(h, "True");
        return h->fortran || take(h, "False")
                   ? MOEC_OK
                   : fail(h, "fortran_order is neither True nor False", err);
    }
    if (strcmp(key, "shape") == 0 && !h->seen_shape) {
        h->seen_shape = true;
        return take_shape(h, err);
    }
    return fail(h, "a key that is not expected, or one twice", err);
}

static moec_status read_header(header *h, moec_error *err)
{
    if (!take(h, "{"))
        return fail(h, "no dict", err);
    while (!take(h, "}")) {
        MOEC_TRY(take_member(h, err));
        if (!take(h, ",")) {
            if (!take(h, "}"))
                return fail(h, "members without a comma between", err);
            break;
        }
    }
    skip_space(h);
    if (h->at != h->end)
        return fail(h, "more behind the dict", err);
    if (!h->seen_descr || !h->seen_order || !h->seen_shape)
        return fail(h, "descr, fortran_order or shape is missing", err);
    if (h->fortran)
        return fail(h, "column major: write it with numpy.ascontiguousarray",
                    err);
    return MOEC_OK;
}

/* Bytes of an element, 0 where it is no little-endian integer. */
static uint32_t element_bytes(const char *descr, bool *is_signed)
{
    uint32_t n;

    if (strlen(descr) != 3 || (descr[1] != 'i' && descr[1] != 'u'))
        return 0;
    n = (uint32_t)(descr[2] - '0');
    if (n != 1 && n != 2 && n != 4 && n != 8)
        return 0;
    if (descr[0] != '<' && !(descr[0] == '|' && n == 1))
        return 0;
    *is_signed = descr[1] == 'i';
    return n;
}

int64_t moec_int_element(const unsigned char *p, uint32_t bytes, bool is_signed)
{
    uint64_t v = 0;

    for (uint32_t i = 0; i < bytes; i++)
        v |= (uint64_t)p[i] << (8 * i);
    if (is_signed && bytes < 8 && (v >> (8 * bytes - 1)) != 0)
        v |= ~UINT64_C(0) << (8 * bytes);
    /* An unsigned one past 2^63 is out of every range, and stays so. */
    return !is_signed && v > INT64_MAX ? INT64_MAX : (int64_t)v;
}

static moec_status find_header(header *h, const unsigned char *text, size_t n,
                               size_t *data, moec_error *err)
{
    size_t lead = text[6] == 1 ? 10 : 12, bytes;

    if (n < 12 || text[6] < 1 || text[6] > 3)
        return fail(h, "a version that is not known", err);
    bytes = text[6] == 1 ? (size_t)text[8] | (size_t)text[9] << 8
                         : moec_le32(text + 8);
    if (bytes > n - lead)
        return fail(h, "it ends before its length says", err);
    h->at = (const char *)text + lead;
    h->end = h->at + bytes;
    *data = lead + bytes;
    return MOEC_OK;
}

moec_status moec_npy_read(moec_int_arrays *a, const char *name,
                          const char *file, const unsigned char *text, size_t n,
                          moec_error *err)
{
    header h = {.file = file};
    bool is_signed = false;
    moec_int_array *x;
    uint32_t size;
    size_t data;

    if (n < 12 || memcmp(text, "\x93NUMPY", 6) != 0)
        return fail(&h, "no .npy file", err);
    MOEC_TRY(find_header(&h, text, n, &data, err));
    MOEC_TRY(read_header(&h, err));
    size = element_bytes(h.descr, &is_signed);
    if (size == 0)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P04,
                         "%s: elements are '%s', must be little-endian "
                         "integers ('<i8', '<i4', ...)",
                         file, h.descr);
    MOEC_TRY(moec_int_arrays_add(a, name, h.shape, h.n_dims, n, &x, file, err));
    if (x->n > (n - data) / size || x->n * size != n - data)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                         "%s: %zu bytes of elements, must be %zu of %" PRIu32,
                         file, n - data, x->n, size);
    for (size_t i = 0; i < x->n; i++)
        x->v[i] = moec_int_element(text + data + i * size, size, is_signed);
    return MOEC_OK;
}

moec_status moec_rows_read_npy(moec_rows *r, const char *text, size_t n,
                               moec_error *err)
{
    moec_int_arrays a = {0};
    moec_status st =
        moec_npy_read(&a, "", r->name, (const unsigned char *)text, n, err);

    if (st == MOEC_OK)
        st = moec_rows_from_arrays(r, &a, err);
    moec_int_arrays_fini(&a);
    return st;
}
