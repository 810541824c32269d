/* SPDX-License-Identifier: Apache-2.0
 *
 * UTF-8, against an encoder: what it makes of each code point is valid, what
 * it makes of surrogates or with too many bytes is not. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"

/* Encode `c` in exactly `len` bytes, overlong where they are too many. */
static void encode(uint32_t c, size_t len, char *out)
{
    static const unsigned lead[] = {0, 0, 0xc0, 0xe0, 0xf0};

    if (len == 1) {
        out[0] = (char)c;
        return;
    }
    for (size_t i = len - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (c & 0x3f));
        c >>= 6;
    }
    out[0] = (char)(lead[len] | c);
}

static size_t shortest(uint32_t c)
{
    return c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
}

static void judges_every_code_point(void **state)
{
    char s[4];

    (void)state;
    for (uint32_t c = 0; c < 0x1fffff; c++) {
        size_t n = shortest(c);
        bool good = c <= 0x10ffff && (c < 0xd800 || c > 0xdfff);
        encode(c, n, s);
        if (moec_utf8_valid(s, n, NULL) != good)
            fail_msg("U+%04X", (unsigned)c);
    }
}

static void refuses_every_overlong_form(void **state)
{
    char s[4];

    (void)state;
    for (uint32_t c = 0; c < 0x10000; c++) {
        for (size_t n = shortest(c) + 1; n <= 4; n++) {
            encode(c, n, s);
            if (moec_utf8_valid(s, n, NULL))
                fail_msg("U+%04X in %zu bytes", (unsigned)c, n);
        }
    }
}

/* Memory of exactly n bytes: the sanitizer sees a read past its end. */
static void finds_the_first_bad_byte(void **state)
{
    (void)state;
    for (size_t n = 1; n <= 40; n++) {
        for (size_t at = 0; at < n; at++) {
            char *s = malloc(n);
            size_t bad = SIZE_MAX;
            assert_non_null(s);
            memset(s, 'a', n);
            assert_true(moec_utf8_valid(s, n, &bad));
            assert_true(bad == SIZE_MAX);
            s[at] = (char)0x80;
            assert_false(moec_utf8_valid(s, n, &bad));
            assert_int_equal(bad, at);
            free(s);
        }
    }
}

static void refuses_characters_cut_short(void **state)
{
    static const char *const whole[] = {"\xc3\xa9", "\xe2\x82\xac",
                                        "\xf0\x9f\x98\x80"};

    (void)state;
    for (size_t i = 0; i < sizeof(whole) / sizeof(whole[0]); i++) {
        for (size_t n = 1; n <= strlen(whole[i]); n++) {
            char *s = malloc(n + 9);
            size_t bad = SIZE_MAX;
            assert_non_null(s);
            memset(s, 'a', 9);
            memcpy(s + 9, whole[i], n);
            assert_int_equal(moec_utf8_valid(s, 9 + n, &bad),
                             n == strlen(whole[i]));
            if (n < strlen(whole[i]))
                assert_int_equal(bad, 9);
            free(s);
        }
    }
}

static void refuses_bytes_that_never_occur(void **state)
{
    (void)state;
    for (unsigned b = 0x80; b < 0x100; b++) {
        char s[4] = {(char)b, (char)0x80, (char)0x80, (char)0x80};
        if (b < 0xc2 || b > 0xf4)
            assert_false(moec_utf8_valid(s, 4, NULL));
        s[1] = 'a'; /* no lead byte stands alone */
        assert_false(moec_utf8_valid(s, 2, NULL));
    }
    assert_true(moec_utf8_valid("", 0, NULL));
    assert_true(moec_utf8_valid("a\0b", 3, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(judges_every_code_point),
        cmocka_unit_test(refuses_every_overlong_form),
        cmocka_unit_test(finds_the_first_bad_byte),
        cmocka_unit_test(refuses_characters_cut_short),
        cmocka_unit_test(refuses_bytes_that_never_occur),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
