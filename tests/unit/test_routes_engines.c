/* SPDX-License-Identifier: Apache-2.0
 *
 * SGLang's and vLLM's forms. The texts and arrays were written with NumPy and
 * base64 of Python, see the comment at each. */

#include "route_recording.h"

#include "base/base.h"

#define K 2u

static moec_routes_import_opts opts_init(void)
{
    return (moec_routes_import_opts)MOEC_ROUTES_IMPORT_OPTS_INIT;
}

static moec_routes *stop(moec_recorder *r)
{
    moec_routes *out = NULL;
    moec_error err = MOEC_ERROR_INIT;

    if (moec_recorder_stop(r, &out, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    moec_recorder_destroy(r);
    return out;
}

static void expect_ids(const moec_routes *r, uint64_t token, uint32_t layer,
                       int32_t a, int32_t b)
{
    int32_t ids[K];

    moec_routes_ids(r, token, 1, layer, ids);
    assert_int_equal(ids[0], a);
    assert_int_equal(ids[1], b);
}

/* base64.b64encode(np.array([[[0,0],[1,2],[3,4],[0,0],[5,6]],
 *                            [[0,0],[7,-1],[255,0],[0,0],[9,8]]], '<i4')) */
#define TWO_ROWS                                                               \
  "AAAAAAAAAAABAAAAAgAAAAMAAAAEAAAAAAAAAAAAAAAFAAAABgAAAAAAAAAAAAAABwAAAP////" \
  "//"                                                                         \
  "AAAAAAAAAAAAAAAAAAAACQAAAAgAAAA="

static void expect_two_rows(const moec_routes *r, uint64_t request,
                            uint32_t start)
{
    moec_routes_request q = moec_routes_get_request(r, request);

    assert_int_equal(q.n_tokens, 2);
    assert_int_equal(moec_routes_positions(r)[q.first_token], start);
    assert_int_equal(q.n_gaps, start > 0);
    if (start > 0)
        assert_int_equal(q.gaps[0].end, start);
    expect_ids(r, q.first_token, 0, 1, 2);
    expect_ids(r, q.first_token, 1, 3, 4);
    expect_ids(r, q.first_token, 2, 5, 6);
    expect_ids(r, q.first_token + 1, 0, 7, -1);
    expect_ids(r, q.first_token + 1, 1, 255, 0);
    expect_ids(r, q.first_token + 1, 2, 9, 8);
}

static moec_status sglang(moec_recorder *r, const char *text,
                          const moec_routes_import_opts *o, moec_error *err)
{
    return moec_routes_import_sglang(r, o, "file", text, strlen(text), err);
}

static void reads_bare_base64(void **state)
{
    moec_recorder *r = rr_start(256, K, 3);
    moec_routes_import_opts o = opts_init();
    moec_routes *out;

    (void)state;
    o.request = "bare";
    o.start = 3;
    assert_int_equal(sglang(r, " " TWO_ROWS "\n", &o, NULL), MOEC_OK);
    out = stop(r);
    expect_two_rows(out, 0, 3);
    assert_string_equal(moec_routes_get_request(out, 0).id, "bare");
    moec_routes_destroy(out);
}

static void reads_responses_and_counts_their_samples(void **state)
{
    static const char text[] =
        "\n [ {\"text\": \"hi\", \"meta_info\" : {\"id\": \"r\\u00e9q\", "
        "\"prompt_tokens\": 10, \"completion_tokens\": 2, \"x\": [{}], "
        "\"routed_experts\": \"" TWO_ROWS "\"}},\n"
        "{\"meta_info\": {\"routed_experts\": \"" TWO_ROWS "\", \"id\": "
        "\"r\xc3\xa9q\", \"routed_experts_start_len\": 0}},"
        "{\"meta_info\": {\"routed_experts\": \"\", \"id\": \"none\"}}]";
    moec_recorder *r = rr_start(256, K, 3);
    moec_routes_import_opts o = opts_init();
    moec_routes *out;

    (void)state;
    assert_int_equal(sglang(r, text, &o, NULL), MOEC_OK);
    out = stop(r);
    assert_int_equal(moec_routes_n_requests(out), 3);
    expect_two_rows(out, 0, 9); /* 12 tokens, the last not routed */
    expect_two_rows(out, 1, 0);
    assert_int_equal(moec_routes_get_request(out, 1).sample, 1);
    assert_string_equal(moec_routes_get_request(out, 1).id, "r\xc3\xa9q");
    assert_int_equal(moec_routes_get_request(out, 2).n_tokens, 0);
    moec_routes_destroy(out);
}

static void reads_a_response_behind_spaces(void **state)
{
    moec_recorder *r = rr_start(256, K, 3);
    moec_routes_import_opts o = opts_init();
    moec_routes *out;

    (void)state;
    assert_int_equal(sglang(r,
                            " \t{ \"meta_info\" : { \"routed_experts\" : "
                            "\"" TWO_ROWS "\" , \"id\" : \"x\" } }\n",
                            &o, NULL),
                     MOEC_OK);
    out = stop(r);
    expect_two_rows(out, 0, 0);
    assert_string_equal(moec_routes_get_request(out, 0).id, "x");
    moec_routes_destroy(out);
}

static void refuses_texts_that_are_wrong(void **state)
{
#define META(x) "{\"meta_info\": {" x "}}"
    static const struct {
        const char *text, *why;
        moec_rule rule;
    } cases[] = {
        {"AAA", "no base64", MOEC_RULE_R01},
        {"AA*A", "no base64", MOEC_RULE_R01},
        {"AAAAAAAAAAA=AAAA", "no base64", MOEC_RULE_R01},
        {"AAAAAAAAAAB=", "no base64", MOEC_RULE_R01}, /* stray bits */
        {"AAAAAAAAAAA=", "no rows of 5 layers x 2", MOEC_RULE_R02},
        {META("\"id\": \"a\""), "without meta_info", MOEC_RULE_R01},
        {META("\"routed_experts\": null"), "without meta_info", MOEC_RULE_R01},
        {"{\"meta_info\": 3}", "no object", MOEC_RULE_R01},
        {"[1]", "no object", MOEC_RULE_R01},
        {"{} x", "without meta_info", MOEC_RULE_R01},
        {META("\"routed_experts\": \"" TWO_ROWS "\"") " 1", "bytes behind",
         MOEC_RULE_R01},
        {META("\"prompt_tokens\": 1, \"completion_tokens\": 1, "
              "\"routed_experts\": \"" TWO_ROWS "\""),
         "2 rows of 2 tokens", MOEC_RULE_R01},
        {META("\"prompt_tokens\": 8, \"completion_tokens\": 1, "
              "\"routed_experts_start_len\": 3, "
              "\"routed_experts\": \"" TWO_ROWS "\""),
         "leave 6", MOEC_RULE_R01},
        {META("\"prompt_tokens\": -1, \"routed_experts\": \"\""),
         "whole number", MOEC_RULE_R01},
        {META("\"routed_experts_start_len\": 99999999999, "
              "\"routed_experts\": \"" TWO_ROWS "\""),
         "pass the last one", MOEC_RULE_R01},
    };
#undef META

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        moec_recorder *r = rr_start(256, K, 3);
        moec_routes_import_opts o = opts_init();
        moec_error err = MOEC_ERROR_INIT;

        assert_int_equal(sglang(r, cases[i].text, &o, &err), MOEC_E_FORMAT);
        if (!strstr(err.text, cases[i].why))
            fail_msg("%s: no '%s'", err.text, cases[i].why);
        assert_int_equal(err.rule, cases[i].rule);
        moec_recorder_destroy(r);
    }
}

static void refuses_ids_of_another_model(void **state)
{
    moec_recorder *r = rr_start(255, K, 3);
    moec_routes_import_opts o = opts_init();
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    assert_int_equal(sglang(r, TWO_ROWS, &o, &err), MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_R03);
    assert_non_null(strstr(err.text, "row 1, layer 2: id 255 of 255 experts"));
    moec_recorder_destroy(r);
}

static void gives_sglang_its_own_text_back(void **state)
{
    moec_recorder *r = rr_start(256, K, 3);
    moec_routes_import_opts o = opts_init();
    moec_routes *out;
    char *text = NULL;
    size_t n = 0;

    (void)state;
    assert_int_equal(sglang(r, TWO_ROWS, &o, NULL), MOEC_OK);
    out = stop(r);
    assert_int_equal(moec_routes_export_sglang(out, 0, &text, &n, NULL),
                     MOEC_OK);
    assert_int_equal(n, strlen(TWO_ROWS));
    assert_string_equal(text, TWO_ROWS);
    free(text);
    moec_routes_destroy(out);
}

/* Ids of slots: the placement of each layer says whose they are. */
static void physical_ids_need_their_placement(void **state)
{
    const int32_t p2l[3][6] = {
        {0, 1, 2, 3, 3, 0}, {3, 2, 1, 0, 1, 2}, {1, 0, 3, 2, 0, 0}};
    const int16_t rows[1][3][K] = {{{5, 4}, {0, 4}, {2, -2}}};
    const int16_t empty[1][3][K] = {{{6, 0}, {0, 0}, {0, 0}}};
    moec_placement *p = NULL;
    moec_recorder *r = rr_start(4, K, 3);
    moec_routes_import_opts o = opts_init();
    moec_routes *out;

    (void)state;
    assert_int_equal(moec_placement_from_rows(&p, 3, 4, 6, &p2l[0][0], NULL),
                     MOEC_OK);
    assert_int_equal(
        moec_routes_import_array(r, &o, "f", MOEC_DTYPE_I16, rows, 1, 3, NULL),
        MOEC_E_FORMAT);
    o.placement = p;
    assert_int_equal(
        moec_routes_import_array(r, &o, "f", MOEC_DTYPE_I16, empty, 1, 3, NULL),
        MOEC_E_FORMAT);
    assert_int_equal(
        moec_routes_import_array(r, &o, "f", MOEC_DTYPE_I16, rows, 1, 3, NULL),
        MOEC_OK);
    out = stop(r);
    expect_ids(out, 0, 0, 0, 3);
    expect_ids(out, 0, 1, 3, 1);
    expect_ids(out, 0, 2, 3, -1);
    moec_routes_destroy(out);
    moec_placement_destroy(p);
}

/* np.save of uint8 [2, 5, 2]: layers 1, 2 and 4 are [255,0] [3,4] [5,6] and
 * [1,2] [254,255] [7,8]. */
static const char npy[] =
    "\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': "
    "(2, 5, 2), }                                                       \n"
    "\0\0\xff\0\3\4\0\0\5\6\0\0\1\2\xfe\xff\0\0\7\x8";

static void expert_255_of_vllm_is_an_expert(void **state)
{
    moec_recorder *r = rr_start(256, K, 3);
    moec_routes_import_opts o = opts_init();
    moec_routes *out;
    void *back = NULL;
    size_t n = 0;

    (void)state;
    assert_int_equal(
        moec_routes_import_vllm(r, &o, "f", npy, sizeof(npy) - 1, NULL),
        MOEC_OK);
    out = stop(r);
    expect_ids(out, 0, 0, 255, 0);
    expect_ids(out, 1, 1, 254, 255);
    expect_ids(out, 1, 2, 7, 8);
    assert_int_equal(moec_routes_export_vllm(out, 0, &back, &n, NULL), MOEC_OK);
    assert_int_equal(n, sizeof(npy) - 1);
    assert_memory_equal(back, npy, n);
    free(back);
    moec_routes_destroy(out);
}

static void exports_refuse_to_lose_anything(void **state)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_routes_import_opts o = opts_init();
    moec_recorder *r = rr_start(256, K, 3);
    uint64_t h = rr_request(r, "hole", 0);
    moec_routes *out;
    void *back;
    size_t n;

    (void)state;
    rr_fill(r, h, 1, 0, 2, 256, K);
    rr_fill(r, h, 1, 3, 4, 256, K);
    assert_int_equal(moec_recorder_gap(r, h, 2, 3, NULL), MOEC_OK);
    assert_int_equal(sglang(r, TWO_ROWS, &o, NULL), MOEC_OK);
    o.request = "late";
    o.start = 5;
    assert_int_equal(sglang(r, TWO_ROWS, &o, NULL), MOEC_OK);
    out = stop(r);
    assert_int_equal(
        moec_routes_export_sglang(out, 0, (char **)&back, &n, &err),
        MOEC_E_MAPPING);
    assert_int_equal(err.rule, MOEC_RULE_R06);
    /* A missing expert: int32 has -1, unsigned numbers have nothing. */
    assert_int_equal(moec_routes_export_vllm(out, 1, &back, &n, NULL),
                     MOEC_E_MAPPING);
    assert_int_equal(moec_routes_export_vllm(out, 2, &back, &n, NULL),
                     MOEC_E_MAPPING);
    assert_int_equal(
        moec_routes_export_sglang(out, 2, (char **)&back, &n, NULL), MOEC_OK);
    free(back);
    assert_int_equal(
        moec_routes_export_sglang(out, 3, (char **)&back, &n, NULL),
        MOEC_E_ARG);
    moec_routes_destroy(out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_bare_base64),
        cmocka_unit_test(reads_responses_and_counts_their_samples),
        cmocka_unit_test(reads_a_response_behind_spaces),
        cmocka_unit_test(refuses_texts_that_are_wrong),
        cmocka_unit_test(refuses_ids_of_another_model),
        cmocka_unit_test(gives_sglang_its_own_text_back),
        cmocka_unit_test(physical_ids_need_their_placement),
        cmocka_unit_test(expert_255_of_vllm_is_an_expert),
        cmocka_unit_test(exports_refuse_to_lose_anything),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
