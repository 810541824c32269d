/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening a plug-in, and what it says where there is none; memory; casts. */

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <moec/moec.h>

#include "device_test.h"

static moec_device *open_ok(void)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_device *d = NULL;

    if (test_device_open(&d, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    return d;
}

static void says_that_there_is_no_plugin(void **state)
{
    moec_device_opts o = MOEC_DEVICE_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    moec_device *d = NULL;

    (void)state;
    o.plugin = "no/such/plugin.so";
    assert_int_equal(moec_device_open(&d, &o, &err), MOEC_E_NO_DEVICE);
    assert_null(d);
    assert_non_null(strstr(err.text, "no/such/plugin.so"));
}

/* A shared object that is no plug-in: this test's own library. */
static void refuses_a_library_that_is_no_plugin(void **state)
{
    moec_device_opts o = MOEC_DEVICE_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    moec_device *d = NULL;

    (void)state;
    o.plugin = "libcmocka.so.0";
    assert_int_equal(moec_device_open(&d, &o, &err), MOEC_E_NO_DEVICE);
    assert_non_null(strstr(err.text, "another version"));
}

static void refuses_a_device_that_is_not_there(void **state)
{
    moec_device_opts o = MOEC_DEVICE_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    moec_device *d = NULL;

    (void)state;
    o.plugin = MOEC_EMULATED_PLUGIN;
    o.ordinal = 1000;
    assert_int_equal(moec_device_open(&d, &o, &err), MOEC_E_NO_DEVICE);
    assert_non_null(strstr(err.text, "1000"));
}

static void copies_there_and_back(void **state)
{
    moec_device *d = open_ok();
    unsigned char a[1000], b[1000];
    void *p;

    (void)state;
    for (size_t i = 0; i < sizeof(a); i++)
        a[i] = (unsigned char)(i % 251);
    p = test_to_device(d, a, sizeof(a));
    test_from_device(d, b, p, sizeof(b));
    assert_memory_equal(a, b, sizeof(a));
    assert_true(strlen(moec_device_name(d)) > 0);
    moec_device_free(d, p);
    moec_device_free(d, NULL);
    moec_device_close(d);
}

/* Run a cast of `n` elements on the device. */
static void cast(moec_device *d, const void *in, moec_dtype from, void *out,
                 moec_dtype to, size_t n)
{
    size_t in_bytes = n * moec_dtype_bits(from) / 8;
    size_t out_bytes = n * moec_dtype_bits(to) / 8;
    void *din = test_to_device(d, in, in_bytes);
    void *dout = test_to_device(d, NULL, out_bytes);
    moec_launch l = MOEC_LAUNCH_INIT;
    moec_error err = MOEC_ERROR_INIT;

    if (moec_device_cast(d, din, from, dout, to, n, &l, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    test_from_device(d, out, dout, out_bytes);
    moec_device_free(d, din);
    moec_device_free(d, dout);
}

/* Every value of a minifloat survives the way to float32 and back. */
static void keeps_every_code(void **state)
{
    static const moec_dtype types[] = {MOEC_DTYPE_F8_E4M3, MOEC_DTYPE_F8_E5M2,
                                       MOEC_DTYPE_F16, MOEC_DTYPE_BF16};
    static uint16_t in[65536], out[65536];
    static float f[65536];
    moec_device *d = open_ok();

    (void)state;
    for (size_t t = 0; t < 4; t++) {
        bool byte = moec_dtype_bits(types[t]) == 8;
        size_t n = byte ? 256 : 65536, differ = 0;

        for (size_t i = 0; i < n; i++)
            if (byte)
                ((uint8_t *)in)[i] = (uint8_t)i;
            else
                in[i] = (uint16_t)i;
        cast(d, in, types[t], f, MOEC_DTYPE_F32, n);
        cast(d, f, MOEC_DTYPE_F32, out, types[t], n);
        for (size_t i = 0; i < n; i++) {
            uint32_t a = byte ? ((uint8_t *)in)[i] : in[i];
            uint32_t b = byte ? ((uint8_t *)out)[i] : out[i];

            /* NaN stays NaN; infinities of E5M2 saturate. */
            if (f[i] == f[i] && a != b &&
                !(types[t] == MOEC_DTYPE_F8_E5M2 && (a & 0x7f) == 0x7c))
                differ++;
        }
        assert_int_equal(differ, 0);
    }
    moec_device_close(d);
}

static void knows_values_of_the_formats(void **state)
{
    static const uint8_t e4m3[] = {0x00, 0x80, 0x01, 0x08, 0x38, 0x7e, 0xfe};
    static const float is[] = {0.0f, -0.0f,  0.001953125f, 0.015625f,
                               1.0f, 448.0f, -448.0f};
    static const float big[] = {460.0f, 1e9f,          465.0f,
                                -1e9f,  0.0009765625f, 0.00097656256f};
    static const uint8_t code[] = {0x7e, 0x7e, 0x7e, 0xfe, 0x00, 0x01};
    moec_device *d = open_ok();
    float f[7];
    uint8_t out[6];

    (void)state;
    cast(d, e4m3, MOEC_DTYPE_F8_E4M3, f, MOEC_DTYPE_F32, 7);
    assert_memory_equal(f, is, sizeof(is));
    cast(d, big, MOEC_DTYPE_F32, out, MOEC_DTYPE_F8_E4M3, 6);
    assert_memory_equal(out, code, sizeof(code));
    moec_device_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(says_that_there_is_no_plugin),
        cmocka_unit_test(refuses_a_library_that_is_no_plugin),
        cmocka_unit_test(refuses_a_device_that_is_not_there),
        cmocka_unit_test(copies_there_and_back),
        cmocka_unit_test(keeps_every_code),
        cmocka_unit_test(knows_values_of_the_formats),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
