/* SPDX-License-Identifier: Apache-2.0
 *
 * Error texts and the table of rules. */

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"

static void writes_rule_in_front(void **state)
{
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    assert_int_equal(moec_fail(&err, MOEC_E_FORMAT, MOEC_RULE_H07,
                               "%s: key '%s' twice", "a.safetensors", "x"),
                     MOEC_E_FORMAT);
    assert_int_equal(err.status, MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_H07);
    assert_int_equal(err.has_off, 0);
    assert_string_equal(err.text,
                        "[MOE-H07 duplicate-key] a.safetensors: key 'x' twice");
}

static void first_error_stays(void **state)
{
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    moec_fail(&err, MOEC_E_ARG, MOEC_RULE_NONE, "first");
    assert_int_equal(moec_fail_os(&err, EIO, "second"), MOEC_E_IO);
    assert_int_equal(err.status, MOEC_E_ARG);
    assert_int_equal(err.os_errno, 0);
    assert_string_equal(err.text, "first");
}

static void hands_on_what_a_call_said_itself(void **state)
{
    moec_error err = MOEC_ERROR_INIT, why = MOEC_ERROR_INIT;

    (void)state;
    assert_int_equal(moec_hand_on(&err, MOEC_OK, &why), MOEC_OK);
    moec_fail_at(&why, MOEC_E_FORMAT, MOEC_RULE_NONE, 7, "inner");
    assert_int_equal(moec_hand_on(&err, MOEC_OK, &why), MOEC_OK);
    assert_int_equal(err.status, MOEC_OK);
    assert_int_equal(moec_hand_on(NULL, why.status, &why), MOEC_E_FORMAT);
    assert_int_equal(moec_hand_on(&err, why.status, &why), MOEC_E_FORMAT);
    assert_string_equal(err.text, "inner");
    assert_int_equal(err.file_off, 7);
    moec_fail(&why, MOEC_E_IO, MOEC_RULE_NONE, "later");
    assert_int_equal(moec_hand_on(&err, MOEC_E_IO, &why), MOEC_E_IO);
    assert_string_equal(err.text, "inner");
}

static void accepts_no_error_object(void **state)
{
    (void)state;
    assert_int_equal(moec_fail(NULL, MOEC_E_ARG, MOEC_RULE_NONE, "x"),
                     MOEC_E_ARG);
    assert_int_equal(moec_fail_nomem(NULL, "x"), MOEC_E_NOMEM);
    moec_error_prefix(NULL, "x");
}

static void overwrites_stale_fields(void **state)
{
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    err.os_errno = 7;
    err.has_off = 1;
    moec_fail(&err, MOEC_E_ARG, MOEC_RULE_NONE, "x");
    assert_int_equal(err.os_errno, 0);
    assert_int_equal(err.has_off, 0);
}

static void keeps_offset_and_errno(void **state)
{
    moec_error at = MOEC_ERROR_INIT, os = MOEC_ERROR_INIT;

    (void)state;
    moec_fail_at(&at, MOEC_E_FORMAT, MOEC_RULE_H01, 0, "f: x");
    assert_int_equal(at.has_off, 1);
    assert_int_equal(at.file_off, 0);
    moec_fail_os(&os, ENOENT, "f: cannot open");
    assert_int_equal(os.os_errno, ENOENT);
    assert_string_equal(os.text, "f: cannot open: No such file or directory");
}

static void escapes_what_steers_a_terminal(void **state)
{
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"a\nb\x1b[31m", "a\\x0ab\\x1b[31m"},
        {"\x7f", "\\x7f"},
        {"\xc2\x9b", "\\xc2\\x9b"},                /* C1: CSI */
        {"\xe2\x80\xae", "\\xe2\\x80\\xae"},       /* bidi override */
        {"\xe2\x81\xa6", "\\xe2\\x81\\xa6"},       /* bidi isolate */
        {"\xff\xfe", "\\xff\\xfe"},                /* never UTF-8 */
        {"\xed\xa0\x80", "\\xed\\xa0\\x80"},       /* surrogate */
        {"x\xe2\x82", "x\\xe2\\x82"},              /* cut short */
        {"\xc2\xa0 \xe2\x82\xac \xf0\x9f\x98\x80", /* printable */
         "\xc2\xa0 \xe2\x82\xac \xf0\x9f\x98\x80"},
        {"C:\\x41", "C:\\x41"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        moec_error err = MOEC_ERROR_INIT;
        moec_fail(&err, MOEC_E_ARG, MOEC_RULE_NONE, "%s", cases[i].in);
        assert_string_equal(err.text, cases[i].out);
    }
}

/* Lengths around the border, of characters of every width. */
static void long_text_keeps_begin_and_tail(void **state)
{
    static const char *const units[] = {"a", "\xc3\xa9", "\xe2\x82\xac",
                                        "\xf0\x9f\x98\x80", "\x01"};
    const size_t room = MOEC_ERROR_TEXT_BYTES - 1;

    (void)state;
    for (size_t u = 0; u < sizeof(units) / sizeof(units[0]); u++) {
        for (size_t n = 100; n < 700; n += n < 600 ? 100 : 7) {
            moec_error err = MOEC_ERROR_INIT;
            moec_buf b = {0};
            size_t len;
            for (size_t i = 0; i < n; i++)
                moec_buf_puts(&b, units[u]);
            moec_fail(&err, MOEC_E_FORMAT, MOEC_RULE_H01, "B%s-TAIL", b.data);
            len = strlen(err.text);
            assert_true(len <= room);
            assert_true(moec_utf8_valid(err.text, len, NULL));
            assert_memory_equal(err.text, "[MOE-H01 header-length] B", 25);
            assert_string_equal(err.text + len - 5, "-TAIL");
            if (strstr(err.text, "...")) /* cut only where it must be */
                assert_true(len > room - 8);
            else
                assert_int_equal(len,
                                 25 + 5 + n * (u == 4 ? 4 : strlen(units[u])));
            moec_buf_fini(&b);
        }
    }
}

static void text_that_fills_the_room_is_whole(void **state)
{
    char exact[MOEC_ERROR_TEXT_BYTES];
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    memset(exact, 'q', sizeof(exact) - 1);
    exact[sizeof(exact) - 1] = '\0';
    moec_fail(&err, MOEC_E_ARG, MOEC_RULE_NONE, "%s", exact);
    assert_string_equal(err.text, exact);
}

static void survives_a_monstrous_name(void **state)
{
    moec_error err = MOEC_ERROR_INIT;
    size_t n = 100000;
    char *name = moec_alloc(n + 1);

    (void)state;
    assert_non_null(name);
    memset(name, 0xff, n);
    name[n] = '\0';
    moec_fail(&err, MOEC_E_ARG, MOEC_RULE_NONE, "%s", name);
    moec_error_prefix(&err, "%s", name);
    assert_memory_equal(err.text, "\\xff\\xff", 8);
    assert_true(strlen(err.text) < MOEC_ERROR_TEXT_BYTES);
    moec_free(name);
}

static void prefix_stands_behind_the_rule(void **state)
{
    moec_error err = MOEC_ERROR_INIT, none = MOEC_ERROR_INIT;

    (void)state;
    moec_error_prefix(&err, "nothing to prefix");
    assert_string_equal(err.text, "");
    moec_fail(&err, MOEC_E_FORMAT, MOEC_RULE_H14, "tensor '\t'");
    moec_error_prefix(&err, "%s", "dir\n/f");
    assert_string_equal(err.text,
                        "[MOE-H14 offsets-order] dir\\x0a/f: tensor '\\x09'");
    moec_fail(&none, MOEC_E_ARG, MOEC_RULE_NONE, "b");
    moec_error_prefix(&none, "a");
    assert_string_equal(none.text, "a: b");
}

static void names_every_status(void **state)
{
    (void)state;
    assert_string_equal(moec_status_name(MOEC_OK), "OK");
    assert_string_equal(moec_status_name(MOEC_E_INTERNAL), "INTERNAL");
    for (int s = MOEC_E_INTERNAL; s <= 0; s++)
        assert_string_not_equal(moec_status_name((moec_status)s), "UNKNOWN");
    assert_string_equal(moec_status_name((moec_status)1), "UNKNOWN");
}

static void finds_every_rule_by_id(void **state)
{
    (void)state;
    for (int r = 1; r < MOEC_RULE_COUNT; r++) {
        const moec_rule_info *info = moec_rule_describe((moec_rule)r);
        assert_non_null(info);
        assert_int_equal(moec_rule_find(info->id), r);
        assert_memory_equal(info->id, "MOE-", 4);
        assert_true(strlen(info->what) > 0 && strlen(info->why) > 0 &&
                    strlen(info->mend) > 0);
    }
    assert_null(moec_rule_describe(MOEC_RULE_NONE));
    assert_null(moec_rule_describe(MOEC_RULE_COUNT));
    assert_null(moec_rule_describe((moec_rule)-1));
}

static void finds_a_rule_by_name_or_any_case(void **state)
{
    (void)state;
    assert_int_equal(moec_rule_find("moe-h07"), MOEC_RULE_H07);
    assert_int_equal(moec_rule_find("duplicate-key"), MOEC_RULE_H07);
    assert_int_equal(moec_rule_find("same-bytes"), MOEC_RULE_T3);
    assert_int_equal(moec_rule_find("MOE-H0"), MOEC_RULE_NONE);
    assert_int_equal(moec_rule_find("MOE-H077"), MOEC_RULE_NONE);
    assert_int_equal(moec_rule_find(""), MOEC_RULE_NONE);
    assert_int_equal(moec_rule_find(NULL), MOEC_RULE_NONE);
}

static void tells_its_version(void **state)
{
    char want[32];

    (void)state;
    snprintf(want, sizeof(want), "%d.%d.%d", MOEC_VERSION_MAJOR,
             MOEC_VERSION_MINOR, MOEC_VERSION_PATCH);
    assert_string_equal(moec_version(), want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes_rule_in_front),
        cmocka_unit_test(first_error_stays),
        cmocka_unit_test(hands_on_what_a_call_said_itself),
        cmocka_unit_test(accepts_no_error_object),
        cmocka_unit_test(overwrites_stale_fields),
        cmocka_unit_test(keeps_offset_and_errno),
        cmocka_unit_test(escapes_what_steers_a_terminal),
        cmocka_unit_test(long_text_keeps_begin_and_tail),
        cmocka_unit_test(text_that_fills_the_room_is_whole),
        cmocka_unit_test(survives_a_monstrous_name),
        cmocka_unit_test(prefix_stands_behind_the_rule),
        cmocka_unit_test(names_every_status),
        cmocka_unit_test(finds_every_rule_by_id),
        cmocka_unit_test(finds_a_rule_by_name_or_any_case),
        cmocka_unit_test(tells_its_version),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
