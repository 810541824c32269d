/* SPDX-License-Identifier: Apache-2.0
 *
 * The growing buffer. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"

static void appends_and_ends_with_nul(void **state)
{
    moec_buf b = {0};

    (void)state;
    moec_buf_append(&b, "x", 0);
    assert_null(b.data); /* nothing appended, nothing allocated */
    for (int i = 0; i < 1000; i++) {
        moec_buf_puts(&b, "abc");
        assert_int_equal(b.data[b.len], '\0');
    }
    assert_int_equal(b.len, 3000);
    assert_memory_equal(b.data + 2997, "abc", 4);
    moec_buf_fini(&b);
    assert_null(b.data);
    assert_int_equal(b.len, 0);
}

static void reserve_makes_empty_text(void **state)
{
    moec_buf b = {0};

    (void)state;
    assert_true(moec_buf_reserve(&b, 0));
    assert_string_equal(b.data, "");
    assert_int_equal(b.len, 0);
    moec_buf_fini(&b);
}

static void prints_texts_of_any_length(void **state)
{
    moec_buf b = {0};

    (void)state;
    for (int width = 250; width < 262; width++) { /* around the stack buffer */
        size_t before = b.len;
        moec_buf_printf(&b, "%*d", width, 7);
        assert_int_equal(b.len - before, width);
        assert_int_equal(b.data[b.len - 1], '7');
        assert_int_equal(b.data[b.len], '\0');
    }
    moec_buf_printf(&b, "%5000d|", 1);
    assert_memory_equal(b.data + b.len - 2, "1|", 3);
    moec_buf_fini(&b);
}

static void writes_little_endian(void **state)
{
    moec_buf b = {0};

    (void)state;
    moec_buf_u32(&b, UINT32_C(0x81020304));
    moec_buf_u64(&b, UINT64_C(0x8102030405060708));
    assert_int_equal(b.len, 12);
    assert_memory_equal(b.data,
                        "\x04\x03\x02\x81\x08\x07\x06\x05\x04\x03\x02\x81", 12);
    assert_int_equal(moec_le32(b.data), UINT32_C(0x81020304));
    assert_true(moec_le64(b.data + 4) == UINT64_C(0x8102030405060708));
    moec_buf_fini(&b);
}

static void escapes_json_strings(void **state)
{
    static const struct {
        const char *in;
        size_t n;
        const char *out;
    } cases[] = {
        {"", 0, "\"\""},
        {"plain/\xe2\x82\xac", 9, "\"plain/\xe2\x82\xac\""},
        {"\"\\\b\f\n\r\t", 7, "\"\\\"\\\\\\b\\f\\n\\r\\t\""},
        {"a\0b\x1f\x7f", 5, "\"a\\u0000b\\u001f\\u007f\""},
        {"\"", 1, "\"\\\"\""},
        {"x\n", 2, "\"x\\n\""},
        {"a\xff\n\xe2\x82", 5, "\"a\\ufffd\\n\\ufffd\\ufffd\""},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        moec_buf b = {0};
        moec_buf_json_string(&b, cases[i].in, cases[i].n);
        assert_string_equal(b.data, cases[i].out);
        assert_int_equal(b.len, strlen(cases[i].out));
        moec_buf_fini(&b);
    }
}

static void failure_is_sticky_and_keeps_data(void **state)
{
    moec_buf b = {0};

    (void)state;
    moec_buf_puts(&b, "kept");
    moec_alloc_fail_at(1);
    for (int i = 0; i < 200 && !b.oom; i++)
        moec_buf_puts(&b, "0123456789");
    assert_true(b.oom);
    moec_alloc_fail_at(0);
    assert_memory_equal(b.data, "kept", 4);
    size_t len = b.len;
    moec_buf_puts(&b, "late");
    moec_buf_printf(&b, "%400d", 1);
    moec_buf_json_string(&b, "late", 4);
    assert_int_equal(b.len, len);
    assert_false(moec_buf_reserve(&b, 0));
    moec_buf_fini(&b);
    assert_false(b.oom);
}

static void refuses_sizes_that_wrap(void **state)
{
    moec_buf b = {0};

    (void)state;
    moec_buf_puts(&b, "abc");
    assert_false(moec_buf_reserve(&b, SIZE_MAX - 3));
    assert_true(b.oom);
    moec_buf_fini(&b);
    moec_buf_puts(&b, "abc");
    assert_false(moec_buf_reserve(&b, SIZE_MAX));
    assert_string_equal(b.data, "abc");
    moec_buf_fini(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(appends_and_ends_with_nul),
        cmocka_unit_test(reserve_makes_empty_text),
        cmocka_unit_test(prints_texts_of_any_length),
        cmocka_unit_test(writes_little_endian),
        cmocka_unit_test(escapes_json_strings),
        cmocka_unit_test(failure_is_sticky_and_keeps_data),
        cmocka_unit_test(refuses_sizes_that_wrap),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
