/* SPDX-License-Identifier: Apache-2.0 */

/* NumPy's files: what their header may say, and what it must not. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "npy.h"

/* A file of version 1.0 with this header and `bytes` of data, 1, 2, 3, ... */
static size_t make(unsigned char *out, const char *header, size_t bytes)
{
    size_t n = strlen(header);

    memcpy(out, "\x93NUMPY\1\0", 8);
    out[8] = (unsigned char)n;
    out[9] = (unsigned char)(n >> 8);
    memcpy(out + 10, header, n);
    for (size_t i = 0; i < bytes; i++)
        out[10 + n + i] = (unsigned char)(i + 1);
    return 10 + n + bytes;
}

static moec_status open_it(moec_npy *a, const char *header, size_t bytes,
                           moec_error *err)
{
    static unsigned char data[1024];
    size_t n = make(data, header, bytes);

    *err = (moec_error)MOEC_ERROR_INIT;
    return moec_npy_open(a, "f", data, n, MOEC_RULE_P04, err);
}

static void reads_keys_in_any_order_and_spacing(void **state)
{
    static const char *const headers[] = {
        "{'descr': '<i2', 'fortran_order': False, 'shape': (2, 3), }   \n",
        "{'shape':(2,3,),'fortran_order':False,'descr':'<i2'}",
        " { 'fortran_order' : False , 'shape' : ( 2 , 3 ) , 'descr' : '<i2' }",
    };
    moec_error err;
    moec_npy a;
    int64_t v;

    (void)state;
    for (size_t i = 0; i < sizeof(headers) / sizeof(headers[0]); i++) {
        if (open_it(&a, headers[i], 12, &err))
            fail_msg("%s: %s", headers[i], err.text);
        assert_int_equal(a.rank, 2);
        assert_int_equal(a.shape[1], 3);
        assert_int_equal(a.n, 6);
        assert_true(moec_npy_i64(&a, 1, &v));
        assert_int_equal(v, 0x0403);
    }
    assert_int_equal(open_it(&a,
                             "{'descr': '<i2', 'fortran_order': False, "
                             "'shape': ()}",
                             2, &err),
                     MOEC_OK);
    assert_int_equal(a.n, 1);
}

#define DICT(descr, order, shape)                                              \
  "{'descr': " descr ", 'fortran_order': " order ", 'shape': " shape "}"
#define SHAPE(shape) DICT("'|u1'", "False", shape)

static void refuses_headers_that_numpy_does_not_write(void **state)
{
    static const struct {
        const char *header, *text;
    } cases[] = {
        {"", "no dict"},
        {"[1]", "no dict"},
        {"{", "no dict of"},
        {"{'descr", "no dict of"},
        {"{'descr'", "no dict of"},
        {"{'descr' '<i2'}", "no dict of"},
        {"{descr: 1}", "no dict of"},
        {"{'a_key_that_is_too_long': 1}", "no dict of"},
        {"{'shape': (4,)}", "no dict of"},
        {"{'descr': '|u1', 'shape': (4,)}", "no dict of"},
        {"{'descr': '|u1', 'fortran_order': False}", "no dict of"},
        {SHAPE("(4,)") "x", "no dict of"},
        {"{'descr': '|u1' 'shape': (4,)}", "the dict does not end"},
        {"{'descr': '|u1'", "the dict does not end"},
        {"{'size': 4}", "unknown or stands twice"},
        {"{'descr': '|u1', 'descr': '|u1'}", "unknown or stands twice"},
        {"{'shape': (4,), 'shape': (4,)}", "unknown or stands twice"},
        {"{'fortran_order': False, 'fortran_order': False}",
         "unknown or stands twice"},
        {DICT("[('a', '<i2')]", "False", "(2,)"), "no plain element type"},
        {DICT("'a_type_that_is_too_long'", "False", "(2,)"),
         "no plain element type"},
        {DICT("'>i2'", "False", "(2,)"), "elements of type '>i2'"},
        {DICT("'|O'", "False", "(2,)"), "elements of type '|O'"},
        {DICT("'|u1'", "True", "(4,)"), "columns first"},
        {DICT("'|u1'", "0", "(4,)"), "neither True nor False"},
        {"{'fortran_order': Fals", "neither True nor False"},
        {SHAPE("4"), "'shape' is no tuple"},
        {SHAPE("(2 2)"), "'shape' is no tuple"},
        {"{'shape': (2", "'shape' is no tuple"},
        {SHAPE("(-1,)"), "something else than sizes"},
        {SHAPE("(a,)"), "something else than sizes"},
        {"{'shape': (", "something else than sizes"},
        {SHAPE("(1, 1, 1, 1, 4)"), "more than 4 dimensions"},
        {SHAPE("(99999999999999999999,)"), "something else than sizes"},
        {SHAPE("(18446744073709551619,)"), "something else than sizes"},
        {SHAPE("(4294967296, 4294967296)"), "beyond 64 bits"},
        {DICT("'<i8'", "False", "(9223372036854775807,)"), "4 bytes of data"},
        {SHAPE("(5,)"), "4 bytes of data"},
        {SHAPE("(3,)"), "4 bytes of data"},
    };
    moec_error err;
    moec_npy a;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        moec_status st = open_it(&a, cases[i].header, 4, &err);

        if (st != MOEC_E_FORMAT || err.rule != MOEC_RULE_P04 ||
            !strstr(err.text, cases[i].text))
            fail_msg("%s: no '%s': %s", cases[i].header, cases[i].text,
                     err.text);
    }
}

static void refuses_what_stands_before_the_header(void **state)
{
    static const struct {
        size_t at;
        unsigned char byte;
        const char *text;
    } cases[] = {
        {0, 'N', "cut short"}, {6, 0, "a version"},    {6, 4, "a version"},
        {7, 1, "a version"},   {9, 0x40, "cut short"},
    };
    unsigned char data[256];
    moec_error err;
    moec_npy a;
    size_t n;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        n = make(data, SHAPE("(4,)"), 4);
        data[cases[i].at] = cases[i].byte;
        err = (moec_error)MOEC_ERROR_INIT;
        assert_int_equal(moec_npy_open(&a, "f", data, n, MOEC_RULE_P04, &err),
                         MOEC_E_FORMAT);
        if (!strstr(err.text, cases[i].text))
            fail_msg("case %zu: %s", i, err.text);
    }
    for (n = 0; n < 12; n++)
        assert_int_equal(moec_npy_open(&a, "f", data, n, MOEC_RULE_P04, NULL),
                         MOEC_E_FORMAT);
}

/* Versions 2 and 3 have a header's length of four bytes. */
static void reads_later_versions(void **state)
{
    static const char header[] = SHAPE("(4,)");
    unsigned char data[256] = "\x93NUMPY\2";
    moec_npy a;

    (void)state;
    data[8] = sizeof(header) - 1;
    memcpy(data + 12, header, sizeof(header) - 1);
    for (unsigned char version = 2; version < 4; version++) {
        data[6] = version;
        assert_int_equal(moec_npy_open(&a, "f", data, 12 + sizeof(header) + 3,
                                       MOEC_RULE_P04, NULL),
                         MOEC_OK);
        assert_int_equal(a.n, 4);
    }
    data[11] = 0x80;
    assert_int_equal(moec_npy_open(&a, "f", data, 12 + sizeof(header) + 3,
                                   MOEC_RULE_P04, NULL),
                     MOEC_E_FORMAT);
}

static void gives_each_type_its_value(void **state)
{
    static const struct {
        const char *header;
        unsigned char bytes[8];
        size_t n;
        bool is_integer, fits;
        int64_t v;
        double d;
    } cases[] = {
        {DICT("'|b1'", "False", "()"), {1}, 1, false, false, 0, 1},
        {DICT("'|i1'", "False", "()"), {0xff}, 1, true, true, -1, -1},
        {DICT("'|u1'", "False", "()"), {0xff}, 1, true, true, 255, 255},
        {DICT("'<i2'", "False", "()"),
         {0, 0x80},
         2,
         true,
         true,
         -32768,
         -32768},
        {DICT("'<u2'", "False", "()"), {0, 0x80}, 2, true, true, 32768, 32768},
        {DICT("'<i4'", "False", "()"), {1}, 4, true, true, 1, 1},
        {DICT("'<u4'", "False", "()"),
         {0, 0, 0, 0x80},
         4,
         true,
         true,
         INT64_C(1) << 31,
         2147483648.0},
        {DICT("'<i8'", "False", "()"),
         {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
         8,
         true,
         true,
         -1,
         -1},
        {DICT("'<u8'", "False", "()"),
         {0, 0, 0, 0, 0, 0, 0, 0x80},
         8,
         true,
         false,
         0,
         0x1p63},
        {DICT("'<u8'", "False", "()"), {7}, 8, true, true, 7, 7},
        {DICT("'<f4'", "False", "()"),
         {0, 0, 0xc0, 0x3f},
         4,
         false,
         false,
         0,
         1.5},
        {DICT("'<f8'", "False", "()"),
         {0, 0, 0, 0, 0, 0, 0xf8, 0x3f},
         8,
         false,
         false,
         0,
         1.5},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        unsigned char data[256];
        size_t n = make(data, cases[i].header, cases[i].n);
        moec_npy a;
        int64_t v = 0;

        memcpy(data + n - cases[i].n, cases[i].bytes, cases[i].n);
        assert_int_equal(moec_npy_open(&a, "f", data, n, MOEC_RULE_P04, NULL),
                         MOEC_OK);
        assert_int_equal(moec_npy_is_integer(&a), cases[i].is_integer);
        assert_int_equal(moec_npy_i64(&a, 0, &v), cases[i].fits);
        assert_int_equal(v, cases[i].v);
        assert_true(moec_npy_f64(&a, 0) == cases[i].d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_keys_in_any_order_and_spacing),
        cmocka_unit_test(refuses_headers_that_numpy_does_not_write),
        cmocka_unit_test(refuses_what_stands_before_the_header),
        cmocka_unit_test(reads_later_versions),
        cmocka_unit_test(gives_each_type_its_value),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
