/* SPDX-License-Identifier: Apache-2.0
 *
 * Strict JSON documents and their error texts. */

#include "base/json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const moec_json_doc doc = {
    .name = "config.json",
    .other = MOEC_RULE_C09,
    .missing = MOEC_RULE_C11,
    .integer = MOEC_RULE_C03,
    .number = MOEC_RULE_C04,
    .string = MOEC_RULE_C05,
};

static moec_status parse(const char *text, size_t n, json_t **out,
                         moec_error *err)
{
    return moec_json_parse(text, n, "f.json", MOEC_RULE_C02, MOEC_RULE_I10, out,
                           err);
}

static json_t *must_parse(const char *text)
{
    json_t *value = NULL;
    moec_error err = MOEC_ERROR_INIT;

    if (parse(text, strlen(text), &value, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    return value;
}

static void refuses_what_is_not_strict(void **state)
{
    static const struct {
        const char *text;
        moec_rule rule;
        const char *error; /* a part of it */
    } cases[] = {
        {"{\"a\": 1,\n \"b\": 2, \"a\": 3}", MOEC_RULE_I10,
         "[MOE-I10 index-duplicate-key] f.json: line 2 column "},
        {"{\"a\": 1, \"\\u0061\": 3}", MOEC_RULE_I10, "duplicate"},
        {"", MOEC_RULE_C02, "f.json: is empty"},
        {"\xef\xbb\xbf{}", MOEC_RULE_C02, "byte order mark"},
        {"{\n\"a\": ]", MOEC_RULE_C02, "f.json: line 2 column 6: "},
        {"{} x", MOEC_RULE_C02, "end of file expected"},
        {"1", MOEC_RULE_C02, "'[' or '{' expected"},
        {"[1,]", MOEC_RULE_C02, "line 1"},
        {"[01]", MOEC_RULE_C02, "line 1"},
        {"[NaN]", MOEC_RULE_C02, "line 1"},
        {"['a']", MOEC_RULE_C02, "line 1"},
        {"[1] // x", MOEC_RULE_C02, "line 1"},
        {"[1e999]", MOEC_RULE_C02, "real number overflow"},
        {"[99999999999999999999]", MOEC_RULE_C02, "too big integer"},
        {"[\"\\u0000\"]", MOEC_RULE_C02, "line 1"},
        {"[\"\\ud800\"]", MOEC_RULE_C02, "line 1"},
        {"[\"\xff\"]", MOEC_RULE_C02, "decode byte 0xff"},
        {"[\"\n\"]", MOEC_RULE_C02, "line 1"},
        {"[1", MOEC_RULE_C02, "line 1"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        json_t *value = NULL;
        moec_error err = MOEC_ERROR_INIT;
        assert_int_equal(
            parse(cases[i].text, strlen(cases[i].text), &value, &err),
            MOEC_E_FORMAT);
        assert_null(value);
        assert_int_equal(err.rule, cases[i].rule);
        if (!strstr(err.text, cases[i].error))
            fail_msg("'%s' is not in '%s'", cases[i].error, err.text);
    }
}

static void refuses_a_nul_behind_the_text(void **state)
{
    json_t *value = NULL;

    (void)state;
    assert_int_equal(parse("{}\0", 3, &value, NULL), MOEC_E_FORMAT);
    assert_null(value);
}

static void bounds_size_and_depth(void **state)
{
    size_t n = MOEC_JSON_BYTES_MAX + 1;
    char *text = moec_alloc(n);
    json_t *value = NULL;
    moec_error big = MOEC_ERROR_INIT, deep = MOEC_ERROR_INIT;

    (void)state;
    assert_non_null(text);
    memset(text, '[', n);
    assert_int_equal(parse(text, n, &value, &big), MOEC_E_FORMAT);
    assert_int_equal(big.rule, MOEC_RULE_I04);
    assert_int_equal(parse(text, n - 1, &value, &deep), MOEC_E_FORMAT);
    assert_int_equal(deep.rule, MOEC_RULE_C02);
    assert_non_null(strstr(deep.text, "depth"));
    moec_free(text);
}

static void reads_typed_members(void **state)
{
    json_t *tree = must_parse(
        "{\"u\": 9223372036854775807, \"i\": -5, \"d\": 2.5, \"n\": 3,"
        " \"t\": true, \"s\": \"x\", \"h\": \"00ff\", \"z\": null,"
        " \"o\": {\"k\": [1, 2]}}");
    moec_json root = moec_json_root(tree, &doc), o, k, item;
    uint64_t u = 0;
    int64_t i = 0;
    double d = 0;
    bool t = false;
    const char *s = NULL;
    unsigned char h[2] = {1, 1};

    (void)state;
    assert_int_equal(moec_json_get_u64(&root, "u", UINT64_MAX, &u, NULL), 0);
    assert_true(u == INT64_MAX);
    assert_int_equal(moec_json_get_i64(&root, "i", -5, 5, &i, NULL), 0);
    assert_int_equal(i, -5);
    assert_int_equal(moec_json_get_double(&root, "d", &d, NULL), 0);
    assert_true(d >= 2.5 && d <= 2.5);
    assert_int_equal(moec_json_get_double(&root, "n", &d, NULL), 0);
    assert_true(d >= 3 && d <= 3);
    assert_int_equal(moec_json_get_bool(&root, "t", &t, NULL), 0);
    assert_true(t);
    assert_int_equal(moec_json_get_string(&root, "s", &s, NULL), 0);
    assert_string_equal(s, "x");
    assert_int_equal(moec_json_get_hex(&root, "h", h, 2, NULL), 0);
    assert_int_equal(h[1], 0xff);
    assert_false(moec_json_has(&root, "z"));
    assert_false(moec_json_has(&root, "absent"));
    assert_true(moec_json_has(&root, "s"));
    assert_int_equal(moec_json_get_object(&root, "o", &o, NULL), 0);
    assert_int_equal(moec_json_get_array(&o, "k", &k, NULL), 0);
    assert_int_equal(moec_json_len(&k), 2);
    assert_int_equal(moec_json_len(&o), 1);
    item = moec_json_item(&k, 1);
    assert_int_equal(moec_json_as_u64(&item, 2, &u, NULL), 0);
    assert_int_equal(u, 2);
    json_decref(tree);
}

static void integers_are_integers_alone(void **state)
{
    static const struct {
        const char *text, *error;
    } cases[] = {
        {"{\"n\": 8.0}", "is a fraction, must be an integer"},
        {"{\"n\": 1e2}", "is a fraction, must be an integer"},
        {"{\"n\": \"8\"}", "is a string, must be an integer"},
        {"{\"n\": true}", "is a boolean, must be an integer"},
        {"{\"n\": [8]}", "is an array, must be an integer"},
        {"{\"n\": {}}", "is an object, must be an integer"},
        {"{\"n\": -1}", "is -1, must be between 0 and 8"},
        {"{\"n\": 9}", "is 9, must be between 0 and 8"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        json_t *tree = must_parse(cases[i].text);
        moec_json root = moec_json_root(tree, &doc);
        moec_error err = MOEC_ERROR_INIT;
        uint32_t v = 77;
        char want[200];
        snprintf(want, sizeof(want),
                 "[MOE-C03 config-integer] config.json: n: %s", cases[i].error);
        assert_int_equal(moec_json_get_u32(&root, "n", 8, &v, &err),
                         MOEC_E_FORMAT);
        assert_string_equal(err.text, want);
        assert_int_equal(v, 77);
        json_decref(tree);
    }
}

static void each_mistake_has_its_rule(void **state)
{
    json_t *tree = must_parse("{\"x\": [], \"h\": \"00FF\", \"z\": null}");
    moec_json root = moec_json_root(tree, &doc), v;
    moec_error e[6];
    double d;
    bool t;
    const char *s;
    unsigned char h[2];

    (void)state;
    memset(e, 0, sizeof(e));
    moec_json_get_double(&root, "x", &d, &e[0]);
    moec_json_get_bool(&root, "x", &t, &e[1]);
    moec_json_get_string(&root, "x", &s, &e[2]);
    moec_json_get_object(&root, "x", &v, &e[3]);
    moec_json_get_hex(&root, "h", h, 2, &e[4]);
    moec_json_get_string(&root, "z", &s, &e[5]);
    assert_int_equal(e[0].rule, MOEC_RULE_C04);
    assert_int_equal(e[1].rule, MOEC_RULE_C09);
    assert_int_equal(e[2].rule, MOEC_RULE_C05);
    assert_int_equal(e[3].rule, MOEC_RULE_C09);
    assert_int_equal(e[4].rule, MOEC_RULE_C05);
    assert_string_equal(e[5].text, "[MOE-C11 config-missing] config.json: z: "
                                   "is missing, must be a string");
    json_decref(tree);
}

static void texts_name_the_way(void **state)
{
    json_t *tree = must_parse("{\"a\": {\"b\": [[0], [1, \"\\u0007\"]]}}");
    moec_json root = moec_json_root(tree, &doc), a, b, row, item;
    moec_error err = MOEC_ERROR_INIT, top = MOEC_ERROR_INIT;
    uint64_t u;

    (void)state;
    assert_int_equal(moec_json_get_object(&root, "a", &a, NULL), MOEC_OK);
    assert_int_equal(moec_json_get_array(&a, "b", &b, NULL), MOEC_OK);
    row = moec_json_item(&b, 1);
    item = moec_json_item(&row, 1);
    assert_int_equal(moec_json_as_u64(&item, 9, &u, &err), MOEC_E_FORMAT);
    assert_string_equal(err.text,
                        "[MOE-C03 config-integer] config.json: a.b[1][1]: "
                        "is a string, must be an integer");
    assert_int_equal(moec_json_want_array(&root, &top), MOEC_E_FORMAT);
    assert_string_equal(top.text, "[MOE-C09 family-file] config.json: is an "
                                  "object, must be an array");
    json_decref(tree);
}

static void refuses_unknown_keys(void **state)
{
    static const char *const keys[] = {"a", "b"};
    json_t *tree = must_parse("{\"o\": {\"b\": 1, \"c\\n\": 2}}");
    moec_json root = moec_json_root(tree, &doc), o;
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    assert_int_equal(moec_json_get_object(&root, "o", &o, NULL), MOEC_OK);
    assert_int_equal(moec_json_only_keys(&o, keys, 2, &err), MOEC_E_FORMAT);
    assert_string_equal(err.text, "[MOE-C09 family-file] config.json: o: has "
                                  "the unknown key 'c\\x0a'");
    json_object_del(o.value, "c\n");
    assert_int_equal(moec_json_only_keys(&o, keys, 2, NULL), MOEC_OK);
    json_decref(tree);
}

/* ------------------------------------------------------------- memory */

static size_t n_allocs, fail_at; /* of jansson; 0: never */

static void *scarce(size_t n)
{
    return ++n_allocs == fail_at ? NULL : malloc(n);
}

static const char rich[] =
    "{\"a\": [1, -2.5e-3, true, null, \"x\\u00e9\\ud83d\\ude00\\n\"], "
    "\"b\": {\"c\": {}, \"d\": []}, \"e\": \"0123456789abcdef\"}";

static void lack_of_memory_is_no_syntax_error(void **state)
{
    moec_status st = MOEC_E_NOMEM;
    json_t *value = NULL, *plenty = must_parse(rich);
    uint64_t n = 1;

    (void)state;
    for (; st != MOEC_OK && n < 1000; n++) {
        moec_error err = MOEC_ERROR_INIT;
        moec_alloc_fail_at(n);
        st = parse(rich, sizeof(rich) - 1, &value, &err);
        moec_alloc_fail_at(0);
        if (st != MOEC_OK)
            assert_int_equal(st, MOEC_E_NOMEM);
    }
    assert_int_equal(st, MOEC_OK);
    assert_in_range(n, 10, 999);
    assert_true(json_equal(value, plenty));
    json_decref(value);
    json_decref(plenty);
}

/* Where another allocator is set, nobody tells. */
static void a_foreign_allocator_is_believed(void **state)
{
    json_malloc_t alloc;
    json_free_t release;
    json_t *value = NULL;

    (void)state;
    json_decref(must_parse("[]"));
    json_get_alloc_funcs(&alloc, &release);
    json_set_alloc_funcs(scarce, free);
    for (fail_at = 1; fail_at < 8; fail_at++) {
        n_allocs = 0;
        if (parse(rich, sizeof(rich) - 1, &value, NULL) == MOEC_OK)
            json_decref(value);
        else
            assert_int_equal(parse("[\"a", 3, &value, NULL), MOEC_E_FORMAT);
    }
    json_set_alloc_funcs(alloc, release);
}

/* jansson, less what well_formed does not look at. */
static void expect_agreement(const char *text, size_t n)
{
    json_error_t e;
    json_t *value = json_loadb(text, n, JSON_REJECT_DUPLICATES, &e);
    bool well = moec_json_is_well_formed(text, n);

    if (value) {
        json_decref(value);
        if (!well)
            fail_msg("well-formed, and refused: %.*s", (int)n, text);
        return;
    }
    switch (json_error_code(&e)) {
    case json_error_duplicate_key:
    case json_error_numeric_overflow:
    case json_error_null_character:
    case json_error_null_byte_in_key:
    case json_error_invalid_utf8:
        return;
    default:
        if (well)
            fail_msg("malformed (%s), and passed: %.*s", e.text, (int)n, text);
    }
}

static void well_formed_agrees_with_jansson(void **state)
{
    static const char pool[] = "{}[]\",:\\u0189aefE+-. \n\ttrueflsn/dD";
    static const char *const texts[] = {
        "",      "  ",      "1",           "\"a\"",         "{}",
        " [ ] ", "[1,]",    "{,}",         "{\"a\":1,}",    "[01]",
        "[-]",   "[1.]",    "[1e]",        "[1e+5]",        "[.5]",
        "[tru]", "[truer]", "[\"\\u12\"]", "[\"\\ud800\"]", "[\"\\udc00\"]",
        "[]]",   "{}{}",    "[\"\t\"]",    "[1 2]",         "{\"a\" 1}",
        "[\"",   "[",       "{\"a\":",     "[nul",          "[\"\\",
    };
    char text[sizeof(rich)];
    uint32_t seed = 1;

    (void)state;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        expect_agreement(texts[i], strlen(texts[i]));
    for (size_t i = 0; i < sizeof(rich); i++)
        expect_agreement(rich, i);
    for (int round = 0; round < 20000; round++) {
        memcpy(text, rich, sizeof(rich));
        for (int k = 0; k < 2; k++) {
            seed = seed * 1664525u + 1013904223u;
            text[(seed >> 8) % (sizeof(rich) - 1)] =
                pool[(seed >> 20) % (sizeof(pool) - 1)];
        }
        expect_agreement(text, sizeof(rich) - 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses_what_is_not_strict),
        cmocka_unit_test(refuses_a_nul_behind_the_text),
        cmocka_unit_test(bounds_size_and_depth),
        cmocka_unit_test(reads_typed_members),
        cmocka_unit_test(integers_are_integers_alone),
        cmocka_unit_test(each_mistake_has_its_rule),
        cmocka_unit_test(texts_name_the_way),
        cmocka_unit_test(refuses_unknown_keys),
        cmocka_unit_test(lack_of_memory_is_no_syntax_error),
        cmocka_unit_test(a_foreign_allocator_is_believed),
        cmocka_unit_test(well_formed_agrees_with_jansson),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
