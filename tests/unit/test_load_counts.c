/* SPDX-License-Identifier: Apache-2.0 */

/* deepseek_v3: three decoder layers of which 1 and 2 are MoE layers, one MTP
 * layer, 16 experts. Rows here hold row * 100 + column. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "npy.h"
#include "plan_fixture.h"

static plan_fixture model;

static int setup(void **state)
{
    moec_plan_opts o = plan_fixture_opts();
    (void)state;
    model = plan_fixture_open("deepseek_v3", &o);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    plan_fixture_close(&model);
    return 0;
}

static moec_counts *read_bytes(const moec_model *m, const void *text, size_t n)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_counts *c = NULL;

    if (moec_counts_parse(&c, m, "c.json", text, n, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    return c;
}

static moec_counts *read_text(const moec_model *m, const char *text)
{
    return read_bytes(m, text, strlen(text));
}

static void refuse_bytes(const moec_model *m, const void *text, size_t n,
                         moec_rule rule, const char *fragment)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_counts *c = NULL;

    assert_int_equal(moec_counts_parse(&c, m, "c.json", text, n, &err),
                     MOEC_E_FORMAT);
    assert_null(c);
    if (!strstr(err.text, fragment))
        fail_msg("'%s' is not in: %s", fragment, err.text);
    assert_int_equal(err.rule, rule);
}

static void refuse(const moec_model *m, const char *text, moec_rule rule,
                   const char *fragment)
{
    refuse_bytes(m, text, strlen(text), rule, fragment);
}

/* n_rows rows of n_cols counts, row * 100 + column; row `zero` is zeros. */
static void put_rows(char *text, unsigned n_rows, unsigned n_cols,
                     unsigned zero)
{
    char *at = text + strlen(text);

    at += sprintf(at, "[");
    for (unsigned i = 0; i < n_rows; i++) {
        at += sprintf(at, "%s[", i ? "," : "");
        for (unsigned k = 0; k < n_cols; k++)
            at +=
                sprintf(at, "%s%u", k ? "," : "", i == zero ? 0 : i * 100 + k);
        at += sprintf(at, "]");
    }
    sprintf(at, "]");
}

static void sums_the_steps_of_a_file(void **state)
{
    moec_counts *c = read_text(
        NULL, "{\"logical_count\": [[[1,2],[3,4]],[[10,20],[30,40]]]}");
    static const float want[] = {11, 22, 33, 44};
    (void)state;

    assert_int_equal(moec_counts_n_steps(c), 2);
    assert_int_equal(moec_counts_n_layers(c), 2);
    assert_int_equal(moec_counts_n_experts(c), 2);
    assert_memory_equal(moec_counts_loads(c), want, sizeof(want));
    moec_counts_destroy(c);
}

/* Float32 steps would lose the 1; so would a float32 running sum. */
static void rounds_the_exact_sum_once(void **state)
{
    moec_counts *c = read_text(NULL, "[[[16777216]],[[1]],[[1]]]");
    (void)state;

    assert_true(moec_counts_loads(c)[0] == 16777218.0F);
    moec_counts_destroy(c);
    /* 2^53 + 1 + 1: a double running sum would lose both. */
    c = read_text(NULL, "[[[9007199254740992]],[[1]],[[1]],[[1073741822]]]");
    assert_true(moec_counts_loads(c)[0] == 0x1.000002p53F);
    moec_counts_destroy(c);
}

static void takes_counts_that_are_no_integers(void **state)
{
    moec_counts *c = read_text(NULL, "[[0.5, 2], [1e3, 0]]");
    static const float want[] = {0.5F, 2, 1000, 0};
    (void)state;

    assert_memory_equal(moec_counts_loads(c), want, sizeof(want));
    moec_counts_destroy(c);
}

static void assert_layers(const moec_counts *c, unsigned a, unsigned b,
                          unsigned mtp)
{
    const unsigned rows[] = {a, b, mtp};

    assert_int_equal(moec_counts_n_layers(c), 3);
    for (uint32_t i = 0; i < 3; i++) {
        const float *row = moec_counts_loads(c) + (size_t)i * 16;

        assert_int_equal(moec_counts_has(c, i), rows[i] != UINT32_MAX);
        for (unsigned k = 0; k < 16; k++)
            assert_true(
                row[k] ==
                (rows[i] == UINT32_MAX ? 0.0F : (float)(rows[i] * 100 + k)));
    }
}

static void finds_the_layers_of_a_model(void **state)
{
    char text[2048] = "{\"logical_count\": ";
    moec_counts *c;
    (void)state;

    /* SGLang: decoder layers, the dense one among them. */
    put_rows(text, 3, 16, 0);
    strcat(text, "}");
    c = read_text(model.model, text);
    assert_layers(c, 1, 2, UINT32_MAX);
    moec_counts_destroy(c);
    /* With MTP behind them. */
    text[0] = '\0';
    put_rows(text, 4, 16, 0);
    c = read_text(model.model, text);
    assert_layers(c, 1, 2, 3);
    moec_counts_destroy(c);
    /* MoE layers only. */
    text[0] = '\0';
    put_rows(text, 2, 16, 9);
    c = read_text(model.model, text);
    assert_layers(c, 0, 1, UINT32_MAX);
    moec_counts_destroy(c);
}

/* Three rows fit twice: the dense layer's counts say which is meant. */
static void dense_rows_decide_where_both_fit(void **state)
{
    char text[2048] = "";
    moec_counts *c;
    (void)state;

    put_rows(text, 3, 16, 0);
    c = read_text(model.model, text);
    assert_layers(c, 1, 2, UINT32_MAX);
    moec_counts_destroy(c);
    text[0] = '\0';
    put_rows(text, 3, 16, 9);
    c = read_text(model.model, text);
    assert_layers(c, 0, 1, 2);
    moec_counts_destroy(c);
}

static void folds_slots_into_experts(void **state)
{
    moec_counts *c = read_text(
        NULL, "{\"expert_load_window\": [[[1,2,4,8]],[[16,32,64,128]]],"
              " \"physical_to_logical_map\": [[2,0,2,1]]}");
    static const float want[] = {34, 136, 85};
    (void)state;

    assert_int_equal(moec_counts_n_experts(c), 3);
    assert_memory_equal(moec_counts_loads(c), want, sizeof(want));
    moec_counts_destroy(c);
    refuse(NULL, "{\"expert_load_window\": [[[1,2]]]}", MOEC_RULE_P12,
           "without physical_to_logical_map");
    refuse(NULL,
           "{\"expert_load_pass\": [[1,2]], \"physical_to_logical_map\": "
           "[[0]]}",
           MOEC_RULE_P03, "row 0 of the map has 1 slots, the counts have 2");
    refuse(NULL,
           "{\"expert_load_pass\": [[1,2]], \"physical_to_logical_map\": "
           "[[0,1],[0,1]]}",
           MOEC_RULE_P02, "the map has 2 rows, the counts have 1");
    refuse(NULL,
           "{\"expert_load_pass\": [[1,2]], \"physical_to_logical_map\": "
           "[[0,1.0]]}",
           MOEC_RULE_P04, "row 0, slot 1 of the map");
    refuse(NULL,
           "{\"expert_load_pass\": [[1,2]], \"physical_to_logical_map\": "
           "[[-1,-1]]}",
           MOEC_RULE_P04, "the map has no expert");
    refuse(model.model,
           "{\"expert_load_pass\": [[1,2],[1,2]], "
           "\"physical_to_logical_map\": [[0,1],[0,16]]}",
           MOEC_RULE_P03, "counts of 17 experts, the model has 16");
}

/* Each cell is below 2^63, what an expert's slots come to is not. */
static void folds_slots_beyond_two_to_the_63(void **state)
{
    moec_counts *c =
        read_text(NULL, "{\"expert_load_pass\": [[9000000000000000000,"
                        "9000000000000000000,7]], \"physical_to_logical_map\": "
                        "[[0,0,1]]}");
    static const float want[] = {18e18F, 7};
    (void)state;

    assert_memory_equal(moec_counts_loads(c), want, sizeof(want));
    moec_counts_destroy(c);
}

static void refuses_what_is_no_count(void **state)
{
    (void)state;
    refuse(NULL, "[[1,2],[3,-4]]", MOEC_RULE_P12,
           "row 1, column 1: the count is -4");
    refuse(NULL, "[[[1,2]],[[3,-0.5]]]", MOEC_RULE_P12,
           "step 1, row 0, column 1: the count is -0.5");
    refuse(NULL, "[[1,true]]", MOEC_RULE_P12, "the count is no number");
    refuse(NULL, "[[1,\"2\"]]", MOEC_RULE_P12, "the count is no number");
    refuse(NULL, "[[1,2],[3]]", MOEC_RULE_P12, "row 1 has 1 columns");
    refuse(NULL, "[[1,2],3]", MOEC_RULE_P12, "a row is no list");
    refuse(NULL, "[[[1],[2]],[[3]]]", MOEC_RULE_P12,
           "step 1 has 1 rows, step 0 has 2");
    refuse(NULL, "[1,2]", MOEC_RULE_P12, "must be [layers][experts]");
    refuse(NULL, "[[]]", MOEC_RULE_P12, "must be [layers][experts]");
    refuse(NULL, "[[[]]]", MOEC_RULE_P12, "must be [layers][experts]");
    refuse(NULL, "[]", MOEC_RULE_P12, "must be [layers][experts]");
    refuse(NULL, "{}", MOEC_RULE_P12, "no key 'logical_count'");
    refuse(NULL, "{\"logical_count\": 3}", MOEC_RULE_P12, "no list");
    refuse(NULL, "{\"logical_count\": [[1]], \"global_expert_load\": [[1]]}",
           MOEC_RULE_P12, "both 'logical_count' and 'global_expert_load'");
    refuse(NULL, "[[[9223372036854775807]],[[1]]]", MOEC_RULE_P12,
           "beyond 2^63");
    refuse(NULL, "[[1e39]]", MOEC_RULE_P12, "the count is 1e+39");
    refuse(NULL, "[[NaN]]", MOEC_RULE_P12, "c.json");
    refuse(model.model, "[[1,2]]", MOEC_RULE_P03,
           "counts of 2 experts, the model has 16");
}

static void refuses_rows_of_another_model(void **state)
{
    char text[4096] = "";
    (void)state;

    put_rows(text, 5, 16, 0);
    refuse(model.model, text, MOEC_RULE_P02,
           "5 rows, must be 3 (decoder layers) or 2 (MoE layers)");
}

/* ------------------------------------------------------------------ npy */

/* Version 1, header padded as NumPy does; returns the bytes in all. */
static size_t npy(unsigned char *out, const char *dict, const void *data,
                  size_t n)
{
    size_t len = strlen(dict) + 1, pad = (64 - (10 + len) % 64) % 64;

    memcpy(out, "\x93NUMPY\1\0", 8);
    len += pad;
    out[8] = (unsigned char)(len & 255);
    out[9] = (unsigned char)(len >> 8);
    memset(out + 10, ' ', len);
    memcpy(out + 10, dict, strlen(dict));
    out[10 + len - 1] = '\n';
    memcpy(out + 10 + len, data, n);
    return 10 + len + n;
}

#define DICT(descr, shape)                                                     \
  "{'descr': '" descr "', 'fortran_order': False, 'shape': " shape ", }"

static void reads_numpy_files(void **state)
{
    static const int64_t i64[] = {1, 2, 3, 4, 5, 6};
    static const float f32[] = {0.5F, 1, 2, 3};
    static const uint8_t u8[] = {200, 255};
    static const float want[] = {5, 7, 9}, bytes[] = {200, 255};
    unsigned char text[512];
    moec_counts *c;
    size_t n;
    (void)state;

    n = npy(text, DICT("<i8", "(2, 1, 3)"), i64, sizeof(i64));
    c = read_bytes(NULL, text, n);
    assert_int_equal(moec_counts_n_steps(c), 2);
    assert_memory_equal(moec_counts_loads(c), want, sizeof(want));
    moec_counts_destroy(c);
    n = npy(text, DICT("<f4", "(2, 2)"), f32, sizeof(f32));
    c = read_bytes(NULL, text, n);
    assert_memory_equal(moec_counts_loads(c), f32, sizeof(f32));
    moec_counts_destroy(c);
    n = npy(text, DICT("|u1", "(1, 2)"), u8, sizeof(u8));
    c = read_bytes(NULL, text, n);
    assert_memory_equal(moec_counts_loads(c), bytes, sizeof(bytes));
    moec_counts_destroy(c);
}

static void refuses_numpy_files_that_are_none(void **state)
{
    static const int64_t i64[] = {1, -2, 3, 4};
    static const uint32_t not_a_number[] = {0, 0x7fc00000};
    unsigned char text[512];
    size_t n;
    static const struct {
        const char *dict, *fragment;
    } cases[] = {
        {DICT("|O", "(1, 4)"), "elements of type '|O'"},
        {DICT(">i8", "(1, 4)"), "elements of type '>i8'"},
        {DICT("<i8", "(1, 4, 1, 1, 1)"), "more than 4 dimensions"},
        {DICT("<i8", "(1, 5)"), "the shape says 5 elements"},
        {DICT("<i8", "(4294967296, 4294967296)"), "beyond 64 bits"},
        {DICT("<i8", "(4,)"), "not 2 or 3 dimensions"},
        {DICT("<i8", "(1, 4)"), "row 0, column 1: the count is -2"},
        {"{'descr': '<i8', 'fortran_order': True, 'shape': (1, 4), }",
         "columns first"},
        {"{'descr': '<i8', 'fortran_order': False}", "no dict of"},
        {"{'descr': '<i8', 'descr': '<i8'}", "stands twice"},
        {"__import__('os')", "no dict"},
    };
    (void)state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        n = npy(text, cases[i].dict, i64, sizeof(i64));
        refuse_bytes(NULL, text, n, MOEC_RULE_P12, cases[i].fragment);
    }
    n = npy(text, DICT("<u8", "(1, 4)"), i64, sizeof(i64));
    refuse_bytes(NULL, text, n, MOEC_RULE_P12, "beyond 2^63");
    n = npy(text, DICT("|b1", "(2, 2)"), i64, 4);
    refuse_bytes(NULL, text, n, MOEC_RULE_P12, "one of booleans");
    n = npy(text, DICT("<f4", "(1, 2)"), not_a_number, sizeof(not_a_number));
    refuse_bytes(NULL, text, n, MOEC_RULE_P12, "row 0, column 1");
    /* Cut anywhere, it is refused or read within its bytes. */
    n = npy(text, DICT("<i8", "(1, 4)"), i64, sizeof(i64));
    for (size_t cut = 6; cut < n; cut++) {
        unsigned char *exact = malloc(cut);
        moec_counts *c = NULL;

        assert_non_null(exact);
        memcpy(exact, text, cut);
        assert_int_equal(moec_counts_parse(&c, NULL, "c", exact, cut, NULL),
                         MOEC_E_FORMAT);
        free(exact);
    }
}

static void every_allocation_may_fail(void **state)
{
    static const char text[] = "{\"expert_load_window\": [[[1,2,4,8]]],"
                               " \"physical_to_logical_map\": [[2,0,2,1]]}";
    moec_counts *c = NULL;
    moec_status st = MOEC_E_NOMEM;
    (void)state;

    for (uint64_t n = 1; st != MOEC_OK; n++) {
        moec_alloc_fail_at(n);
        st = moec_counts_parse(&c, NULL, "c", text, sizeof(text) - 1, NULL);
        moec_alloc_fail_at(0);
        assert_true(st == MOEC_OK || st == MOEC_E_NOMEM);
        assert_true(n < 100);
    }
    moec_counts_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_the_steps_of_a_file),
        cmocka_unit_test(rounds_the_exact_sum_once),
        cmocka_unit_test(takes_counts_that_are_no_integers),
        cmocka_unit_test(finds_the_layers_of_a_model),
        cmocka_unit_test(dense_rows_decide_where_both_fit),
        cmocka_unit_test(folds_slots_into_experts),
        cmocka_unit_test(folds_slots_beyond_two_to_the_63),
        cmocka_unit_test(refuses_what_is_no_count),
        cmocka_unit_test(refuses_rows_of_another_model),
        cmocka_unit_test(reads_numpy_files),
        cmocka_unit_test(refuses_numpy_files_that_are_none),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
