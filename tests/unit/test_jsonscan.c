/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The tokenizer: what it accepts, what it refuses, by which rule and at which
 * byte, and that none of it depends on where a window ends.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "jsonscan.h"

#define JSON  MOEC_RULE_H04
#define UTF8  MOEC_RULE_H03
#define DEEP  MOEC_RULE_H05
#define TWICE MOEC_RULE_H07
#define KEYS  MOEC_RULE_H10

/* A text that comes in windows of `step` bytes, each in memory of its own. */
typedef struct feed {
    const char *text;
    size_t n, next, step;
    size_t fail_at; /* bytes behind which reading fails; 0: never */
    void *window;
} feed;

static moec_status refill(void *ctx, const void **data_out, size_t *n_out,
                          moec_error *err)
{
    feed *f = ctx;
    size_t n = f->n - f->next < f->step ? f->n - f->next : f->step;

    free(f->window);
    f->window = NULL;
    if (f->fail_at != 0 && f->next >= f->fail_at)
        return moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE, "no more");
    f->window = malloc(n > 0 ? n : 1);
    assert_non_null(f->window);
    memcpy(f->window, f->text + f->next, n);
    f->next += n;
    *data_out = f->window;
    *n_out = n;
    return MOEC_OK;
}

static moec_jsonscan scanner(feed *f, moec_error *err)
{
    moec_jsonscan s = {.refill = refill,
                       .ctx = f,
                       .name = "x.json",
                       .err = err,
                       .n_keys_max = 1000,
                       .json = JSON,
                       .utf8 = UTF8,
                       .too_deep = DEEP,
                       .duplicate = TWICE,
                       .too_many_keys = KEYS};
    return s;
}

/* Skip one value and whatever whitespace follows: it must be all there is. */
static moec_rule skip_all(const char *text, size_t n, size_t step, uint64_t *at)
{
    moec_error err = MOEC_ERROR_INIT;
    feed f = {.text = text, .n = n, .step = step};
    moec_jsonscan s = scanner(&f, &err);
    moec_status st = moec_js_skip(&s);
    int c = 0;

    if (st == MOEC_OK)
        st = moec_js_peek(&s, &c);
    if (st == MOEC_OK && c >= 0)
        st = moec_js_fail(&s, JSON, "expected the end");
    *at = st == MOEC_OK ? moec_js_pos(&s) : err.file_off;
    assert_int_equal(err.status, st);
    moec_js_fini(&s);
    free(f.window);
    return err.rule;
}

static void check_skip(const char *text, size_t n, moec_rule want, size_t pos)
{
    static const size_t steps[] = {1, 2, 3, 7, 8, 9, 64, 1u << 20};

    for (size_t i = 0; i < sizeof(steps) / sizeof(*steps); i++) {
        uint64_t at = 0;
        moec_rule got = skip_all(text, n, steps[i], &at);
        if (got != want || at != pos)
            fail_msg("'%.*s' in windows of %zu: rule %d at %llu, not %d at "
                     "%zu",
                     (int)n, text, steps[i], (int)got, (unsigned long long)at,
                     (int)want, pos);
    }
}

static void accepts_what_rfc_8259_has(void **state)
{
    static const char *const texts[] = {
        "{}",
        "[]",
        "\"\"",
        "0",
        "-0",
        "-1.5e+10",
        "1E5",
        "0.0",
        "true",
        "false",
        "null",
        " \t\r\n[ 1 , 2 ] \n",
        "{\"a\":[{\"b\":null},[[]],\"c\"],\"d\":{\"a\":1}}",
        "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0000\\uD83D\\uDE00\"",
        "\"\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80 \x7f\"",
        "\"\xf0\x90\x80\x80 \xf4\x8f\xbf\xbf\"",
        "123456789012345678901234567890",
        "{\"a\":{\"a\":{\"a\":1}},\"b\":[{\"a\":1},{\"a\":1}]}"};

    (void)state;
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++)
        check_skip(texts[i], strlen(texts[i]), MOEC_RULE_NONE,
                   strlen(texts[i]));
}

static void refuses_the_rest_at_its_first_byte(void **state)
{
    static const struct {
        const char *text;
        moec_rule rule;
        size_t at;
    } cases[] = {
        {"", JSON, 0},
        {"{", JSON, 1},
        {"[1,]", JSON, 3},
        {"[,1]", JSON, 1},
        {"{\"a\":1,}", JSON, 7},
        {"{a:1}", JSON, 1},
        {"{'a':1}", JSON, 1},
        {"{\"a\" 1}", JSON, 5},
        {"[1 2]", JSON, 3},
        {"01", JSON, 1},
        {"-", JSON, 1},
        {"+1", JSON, 0},
        {".5", JSON, 0},
        {"1.", JSON, 2},
        {"1.e5", JSON, 2},
        {"1e", JSON, 2},
        {"1e+", JSON, 3},
        {"-01", JSON, 2},
        {"0x10", JSON, 1},
        {"NaN", JSON, 0},
        {"nul", JSON, 3},
        {"nulL", JSON, 3},
        {"True", JSON, 0},
        {"\"a", JSON, 2},
        {"\"\\x\"", JSON, 2},
        {"\"\\u12G4\"", JSON, 5},
        {"\"a\nb\"", JSON, 2},
        {"\"\t\"", JSON, 1},
        {"\"\\uDC00\"", JSON, 7},
        {"\"\\uD800\"", JSON, 7},
        {"\"\\uD800\\n\"", JSON, 8},
        {"\"\\uD800\\u0041\"", JSON, 13},
        {"[1]]", JSON, 3},
        {"{}{}", JSON, 2},
        {"[}", JSON, 1},
        {"{]", JSON, 1},
        {"/**/1", JSON, 0},
        {"1 //", JSON, 2},
        {"\xff", UTF8, 0},
        {"\"\xc0\xaf\"", UTF8, 1},
        {"\"\x80\"", UTF8, 1},
        {"\"\xe0\x9f\xbf\"", UTF8, 2},
        {"\"\xed\xa0\x80\"", UTF8, 2},
        {"\"\xf0\x8f\xbf\xbf\"", UTF8, 2},
        {"\"\xf4\x90\x80\x80\"", UTF8, 2},
        {"\"\xf5\x80\x80\x80\"", UTF8, 1},
        {"\"\xe2\x82\"", UTF8, 3},
        {"{\"a\":1,\"a\":2}", TWICE, 7},
        {"{\"a\":1,\"\\u0061\":2}", TWICE, 7},
        {"[{\"b\":{\"k\":1,\"k\":1}}]", TWICE, 13},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
        check_skip(cases[i].text, strlen(cases[i].text), cases[i].rule,
                   cases[i].at);
    check_skip("\"a\0b\"", 5, JSON, 2);
    check_skip("\xef\xbb\xbf{}", 5, JSON, 0);
}

static void bounds_nesting_of_either_kind(void **state)
{
    char text[5 * MOEC_JSON_DEPTH_MAX + 16];
    const size_t d = MOEC_JSON_DEPTH_MAX;

    (void)state;
    memset(text, '[', d + 1);
    memset(text + d, ']', d);
    check_skip(text, 2 * d, MOEC_RULE_NONE, 2 * d);
    memset(text, '[', d + 1);
    check_skip(text, d + 1, DEEP, d);
    for (size_t i = 0; i <= d; i++)
        memcpy(text + 5 * i, "{\"a\":", 5);
    check_skip(text, 5 * d + 1, DEEP, 5 * d);
}

static void bounds_the_keys_of_a_value_that_nobody_reads(void **state)
{
    char text[16384];
    size_t n = 1;
    uint64_t at;

    (void)state;
    text[0] = '[';
    for (int i = 0; i < 1000; i++)
        n += (size_t)snprintf(text + n, sizeof(text) - n, "{\"k\":%d},", i);
    text[n - 1] = ']';
    assert_int_equal(skip_all(text, n, 100, &at), MOEC_RULE_NONE);
    n += (size_t)snprintf(text + n - 1, sizeof(text) - n, ",{\"k\":0}]") - 1;
    assert_int_equal(skip_all(text, n, 100, &at), KEYS);
}

static void finds_a_duplicate_among_thousands_of_keys(void **state)
{
    enum { N = 20000 };
    moec_keyset keys = {0};
    moec_error err = MOEC_ERROR_INIT;
    uint64_t serial = moec_keyset_open(&keys);

    (void)state;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < N; i++) {
            bool existed = round == 0;
            moec_siphash h;
            moec_keyset_begin(&keys, &h, serial);
            moec_siphash_add(&h, &i, sizeof(i));
            assert_int_equal(moec_keyset_end(&keys, &h, &existed, &err),
                             MOEC_OK);
            assert_int_equal(existed, round == 1);
        }
    }
    assert_int_equal(keys.n, N);
    moec_keyset_clear(&keys);
    assert_int_equal(keys.n, 0);
    moec_keyset_fini(&keys);
}

/* The digest must not depend on how a string was cut into pieces. */
static void digests_a_string_alike_in_any_pieces(void **state)
{
    static const uint64_t secret[2] = {1, 2};
    char text[64];
    uint64_t whole[2], parts[2];
    moec_siphash h;

    (void)state;
    for (size_t i = 0; i < sizeof(text); i++)
        text[i] = (char)i;
    for (size_t n = 0; n <= sizeof(text); n++) {
        moec_siphash_begin(&h, secret);
        moec_siphash_add(&h, text, n);
        moec_siphash_end(&h, whole);
        for (size_t cut = 0; cut <= n; cut++) {
            moec_siphash_begin(&h, secret);
            moec_siphash_add(&h, text, cut);
            moec_siphash_add(&h, text + cut, n - cut);
            moec_siphash_end(&h, parts);
            assert_memory_equal(whole, parts, sizeof(whole));
        }
    }
}

static void check_string(const char *json, const char *want, size_t want_n,
                         size_t step)
{
    moec_error err = MOEC_ERROR_INIT;
    feed f = {.text = json, .n = strlen(json), .step = step};
    moec_jsonscan s = scanner(&f, &err);
    char buf[16];
    moec_js_text t = {.buf = buf, .cap = sizeof(buf)};

    assert_int_equal(moec_js_string(&s, &t), MOEC_OK);
    assert_int_equal(t.len, want_n);
    assert_memory_equal(t.s, want, want_n < sizeof(buf) ? want_n : sizeof(buf));
    assert_int_equal(t.has_nul, memchr(want, 0, want_n) != NULL);
    moec_js_fini(&s);
    free(f.window);
}

static void unescapes_strings_in_any_windows(void **state)
{
    (void)state;
    for (size_t step = 1; step < 20; step++) {
        check_string("  \"abc\"", "abc", 3, step);
        check_string("\"a\\/b\\n\"", "a/b\n", 4, step);
        check_string("\"\\u6743\\u91cd\"", "\xe6\x9d\x83\xe9\x87\x8d", 6, step);
        check_string("\"\\uD83D\\uDE00\"", "\xf0\x9f\x98\x80", 4, step);
        check_string("\"a\\u0000b\"", "a\0b", 3, step);
        check_string("\"0123456789abcdefXYZ\"", "0123456789abcdefXYZ", 19,
                     step);
    }
}

/* A file that cannot be read on is no file that ends there. */
static void passes_on_what_reading_says(void **state)
{
    static const char text[] =
        " { \"a\\n\\uD83D\\uDE00\\u00e9\" : [ 1 , -2.5e+7 , 0 , true , "
        "null ] , \"\xe6\x9d\x83\" : { \"b\" : \"\\\\\" , \"c\" : [ ] } , "
        "\"d\" : { } } ";
    const size_t n = sizeof(text) - 1;

    (void)state;
    for (size_t at = 1; at < n; at++) {
        moec_error err = MOEC_ERROR_INIT;
        feed f = {.text = text, .n = n, .step = 1, .fail_at = at};
        moec_jsonscan s = scanner(&f, &err);
        moec_status st = moec_js_skip(&s);
        int c = 0;

        if (st == MOEC_OK)
            st = moec_js_peek(&s, &c);
        if (st != MOEC_E_IO)
            fail_msg("behind byte %zu: %s", at, moec_status_name(st));
        moec_js_fini(&s);
        free(f.window);
    }
}

/* The same of what callers ask for one by one. */
static void passes_on_what_reading_says_of_tokens(void **state)
{
    (void)state;
    for (int what = 0; what < 5; what++) {
        moec_error err = MOEC_ERROR_INIT;
        feed f = {.text = "  ", .n = 2, .step = 1, .fail_at = 2};
        moec_jsonscan s = scanner(&f, &err);
        moec_js_text t = {0};
        uint64_t v;
        bool more;
        moec_status st = what == 0   ? moec_js_expect(&s, ':')
                         : what == 1 ? moec_js_member(&s, '}', true, &more)
                         : what == 2 ? moec_js_member(&s, '}', false, &more)
                         : what == 3 ? moec_js_string(&s, &t)
                                     : moec_js_number(&s, &v, &more);

        assert_int_equal(st, MOEC_E_IO);
        moec_js_fini(&s);
        free(f.window);
    }
}

static void tells_integers_from_other_numbers(void **state)
{
    static const struct {
        const char *text;
        bool is_u64;
        uint64_t value;
    } cases[] = {
        {"0,", true, 0},
        {"7]", true, 7},
        {"123456789012345678,", true, UINT64_C(123456789012345678)},
        {"1234567890123456789,", true, UINT64_C(1234567890123456789)},
        {"18446744073709551615,", true, UINT64_MAX},
        {"18446744073709551616,", false, 0},
        {"99999999999999999999999,", false, 0},
        {"-0,", false, 0},
        {"-5,", false, 0},
        {"1.0,", false, 0},
        {"1e0,", false, 0},
        {"10}", true, 10},
        {"10", true, 10},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        for (size_t step = 1; step < 24; step++) {
            moec_error err = MOEC_ERROR_INIT;
            feed f = {.text = cases[i].text,
                      .n = strlen(cases[i].text),
                      .step = step};
            moec_jsonscan s = scanner(&f, &err);
            uint64_t v = 0;
            bool is_u64 = !cases[i].is_u64;
            assert_int_equal(moec_js_number(&s, &v, &is_u64), MOEC_OK);
            assert_int_equal(is_u64, cases[i].is_u64);
            if (is_u64)
                assert_true(v == cases[i].value);
            moec_js_fini(&s);
            free(f.window);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accepts_what_rfc_8259_has),
        cmocka_unit_test(refuses_the_rest_at_its_first_byte),
        cmocka_unit_test(bounds_nesting_of_either_kind),
        cmocka_unit_test(bounds_the_keys_of_a_value_that_nobody_reads),
        cmocka_unit_test(finds_a_duplicate_among_thousands_of_keys),
        cmocka_unit_test(digests_a_string_alike_in_any_pieces),
        cmocka_unit_test(unescapes_strings_in_any_windows),
        cmocka_unit_test(passes_on_what_reading_says),
        cmocka_unit_test(passes_on_what_reading_says_of_tokens),
        cmocka_unit_test(tells_integers_from_other_numbers),
    };

    return cmocka_run_group_tests_name("jsonscan", tests, NULL, NULL);
}
