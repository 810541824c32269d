/* SPDX-License-Identifier: Apache-2.0
 *
 * Recordings: the file, merging, counts. */

#include "route_recording.h"

#include "base/base.h"
#include "tmpdir.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#define E 16u
#define K 3u

static moec_routes *make(uint32_t n_experts, uint32_t n_layers)
{
    moec_recorder *r = rr_start(n_experts, K, n_layers);
    uint64_t a = rr_request(r, "a \"quoted\" \xc3\xa4\n", 0);
    uint64_t b = rr_request(r, "b", 3);
    moec_routes *out = NULL;

    (void)rr_request(r, "nothing yet", 0);
    rr_fill(r, a, 1, 4, 90, n_experts, K);
    rr_fill(r, b, 2, 0, 7, n_experts, K);
    assert_int_equal(moec_recorder_gap(r, a, 0, 4, NULL), MOEC_OK);
    assert_int_equal(moec_recorder_gap(r, b, 7, 9, NULL), MOEC_OK);
    assert_int_equal(moec_recorder_stop(r, &out, NULL), MOEC_OK);
    moec_recorder_destroy(r);
    return out;
}

static void assert_same(const moec_routes *x, const moec_routes *y)
{
    const moec_routes_shape *s = moec_routes_shape_get(x);

    assert_int_equal(moec_routes_n_requests(x), moec_routes_n_requests(y));
    assert_int_equal(moec_routes_n_tokens(x), moec_routes_n_tokens(y));
    assert_int_equal(s->n_decoder, moec_routes_shape_get(y)->n_decoder);
    for (uint32_t i = 0; i < s->n_layers; i++)
        assert_memory_equal(&s->keys[i], &moec_routes_shape_get(y)->keys[i],
                            sizeof(s->keys[i]));
    assert_memory_equal(moec_routes_positions(x), moec_routes_positions(y),
                        moec_routes_n_tokens(x) * 4);
    assert_memory_equal(moec_routes_data(x), moec_routes_data(y),
                        moec_routes_n_tokens(x) * s->n_layers * s->top_k *
                            moec_routes_width(x));
    for (uint64_t i = 0; i < moec_routes_n_requests(x); i++) {
        moec_routes_request p = moec_routes_get_request(x, i);
        moec_routes_request q = moec_routes_get_request(y, i);

        assert_string_equal(p.id, q.id);
        assert_int_equal(p.sample, q.sample);
        assert_int_equal(p.n_tokens, q.n_tokens);
        assert_int_equal(p.n_gaps, q.n_gaps);
        assert_memory_equal(p.gaps, q.gaps, p.n_gaps * sizeof(p.gaps[0]));
    }
}

/* In the C library's place: a disk that fails is not another kind of file. */
static bool fstat_fails;

int fstat(int fd, struct stat *st)
{
    if (fstat_fails) {
        errno = EIO;
        return -1;
    }
    return fstatat(fd, "", st, AT_EMPTY_PATH);
}

/* ----------------------------------------------------------------- file */

static void file_holds_all_of_it(void **state)
{
    const uint32_t experts[] = {E, 255, 256, 4096};
    tmpdir dir = tmpdir_make();
    char path[300];

    (void)state;
    snprintf(path, sizeof(path), "%s/r.safetensors", dir.path);
    for (int i = 0; i < 4; i++) {
        moec_routes *r = make(experts[i], 3 + (uint32_t)i % 2), *back = NULL;

        assert_int_equal(moec_routes_save(r, path, i > 0, NULL), MOEC_OK);
        assert_int_equal(moec_routes_open(&back, path, NULL), MOEC_OK);
        assert_same(r, back);
        moec_routes_destroy(r);
        moec_routes_destroy(back);
    }
    tmpdir_remove(&dir);
}

static void never_replaces_a_file_unasked(void **state)
{
    tmpdir dir = tmpdir_make();
    moec_routes *r = make(E, 3), *back = NULL;
    char path[300];

    (void)state;
    snprintf(path, sizeof(path), "%s/r.safetensors", dir.path);
    assert_int_equal(moec_routes_save(r, path, 0, NULL), MOEC_OK);
    assert_int_equal(moec_routes_save(r, path, 0, NULL), MOEC_E_ARG);
    assert_int_equal(moec_routes_open(&back, path, NULL), MOEC_OK);
    moec_routes_destroy(back);
    moec_routes_destroy(r);
    tmpdir_remove(&dir);
}

/* The file with `from` changed to `to`, both of one length. */
static moec_status parse_changed(const char *path, const char *from,
                                 const char *to, moec_error *err)
{
    moec_buf b = {0};
    moec_routes *out = NULL;
    moec_status st;
    FILE *f = fopen(path, "rb");
    char *at;
    int c;

    assert_non_null(f);
    while ((c = fgetc(f)) != EOF) {
        char byte = (char)c;

        moec_buf_append(&b, &byte, 1);
    }
    (void)fclose(f);
    at = memmem(b.data, b.len, from, strlen(from));
    assert_non_null(at);
    assert_int_equal(strlen(from), strlen(to));
    memcpy(at, to, strlen(to));
    st = moec_routes_parse(&out, b.data, b.len, "r", err);
    assert_true(st == MOEC_OK || out == NULL);
    moec_routes_destroy(out);
    moec_buf_fini(&b);
    return st;
}

static void refuses_metadata_that_is_wrong(void **state)
{
    static const struct {
        const char *from, *to, *text;
    } cases[] = {
        {"moec.routes/1", "moec.routes/2", "format"},
        {"\"n_experts\":\"16\"", "\"n_experts\":\"1x\"", "n_experts"},
        {"\"n_experts\":\"16\"", "\"n_experts\":\"02\"", "top-k 3 of 2"},
        {"\"n_decoder\":\"5\"", "\"n_decoder\":\"4\"", "layer 4 of 4"},
        {"\"1 2 4\"", "\"1 4 2\"", "layer 2 is not behind"},
        {"\"1 2 4\"", "\"1 2  \"", "MoE layers of topk_ids"},
        {"\"1 2 4\"", "\"1 243\"", "MoE layers of topk_ids"},
        {"\"position\"", "\"positioN\"", "none of recorded routes"},
        {"\"U8\"", "\"I8\"", "must be U8"},
        {"\\\"b\\\"", "    1", "request_ids"},
        {",\\\"b\\\"", "      ", "fewer request ids"},
        {"\"n_zero\"", "\"n_zerO\"", "n_zero"},
    };
    tmpdir dir = tmpdir_make();
    moec_routes *r = make(E, 3);
    char path[300];

    (void)state;
    snprintf(path, sizeof(path), "%s/r.safetensors", dir.path);
    assert_int_equal(moec_routes_save(r, path, 0, NULL), MOEC_OK);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        moec_error err = MOEC_ERROR_INIT;

        assert_int_equal(parse_changed(path, cases[i].from, cases[i].to, &err),
                         MOEC_E_FORMAT);
        assert_int_equal(err.rule, MOEC_RULE_R01);
        if (!strstr(err.text, cases[i].text))
            fail_msg("%s: no '%s'", err.text, cases[i].text);
    }
    moec_routes_destroy(r);
    tmpdir_remove(&dir);
}

/* The header with `from` changed to `to`, of any length. */
static moec_status parse_other(const char *path, const char *from,
                               const char *to, moec_error *err)
{
    static unsigned char data[30000], out[30000];
    moec_routes *routes = NULL;
    size_t n_from = strlen(from), n_to = strlen(to), n, at;
    FILE *f = fopen(path, "rb");
    const unsigned char *found;
    uint64_t header;
    moec_status st;

    assert_non_null(f);
    n = fread(data, 1, sizeof(data), f);
    (void)fclose(f);
    found = memmem(data, n, from, n_from);
    if (!found)
        fail_msg("no '%s' in the file", from);
    at = (size_t)(found - data);
    assert_true(n + n_to < sizeof(out));
    memcpy(out, data, at);
    memcpy(out + at, to, n_to);
    memcpy(out + at + n_to, data + at + n_from, n - at - n_from);
    header = moec_le64(out) + n_to - n_from;
    for (unsigned i = 0; i < 8; i++)
        out[i] = (unsigned char)(header >> 8 * i);
    st = moec_routes_parse(&routes, out, n + n_to - n_from, "r", err);
    assert_true(st == MOEC_OK || routes == NULL);
    moec_routes_destroy(routes);
    return st;
}

static void refuses_headers_of_other_forms(void **state)
{
    static const struct {
        const char *from, *to, *text;
    } cases[] = {
        {"\"format\":\"moec.routes/1\",", "", "metadata format is ''"},
        {"moec.routes/1", "a\\u0000b", "a NUL in a string"},
        {"\"n_experts\":\"16\"", "\"n_experts\":\"\"", "out of range"},
        {"\"n_experts\":\"16\"", "\"n_experts\":\"0000000016\"",
         "out of range"},
        {"\"n_experts\":\"16\"", "\"n_experts\":\"4097\"", "out of range"},
        {"\"n_experts\":\"16\"", "\"n_experts\":\"/6\"", "out of range"},
        {"\"n_zero\":\"0\"", "\"n_zero\":\"5000\"", "out of range"},
        {"\"n_decoder\":\"5\"", "\"n_decoder\":\"99999\"", "out of range"},
        {"\"layers\":", "\"Layers\":", "out of range"},
        {"\"request_ids\":", "\"request_iDs\":", "out of range"},
        {"\"1 2 4\"", "\"\"", "names not the 3 MoE layers"},
        {"\"1 2 4\"", "\"1 2 4 \"", "names not the 3 MoE layers"},
        {"\"1 2 4\"", "\"1 2 mtp.\"", "names not the 3 MoE layers"},
        {"\"1 2 4\"", "\"1 2 0000000000000004\"", "names not the 3 MoE layers"},
        {"\"1 2 4\"", "\"1 2 x\"", "names not the 3 MoE layers"},
        {"\"1 2 4\"", "\"1 2\"", "names not the 3 MoE layers"},
        {"\"1 2 4\"", "\"1 2 99999\"", "names not the 3 MoE layers"},
        {"\"shape\":[93]", "\"shape\":[93,1]",
         "'position' is I32 of 2 dimensions"},
        {"\"shape\":[93]", "\"shape\":[31,3]",
         "'position' is I32 of 2 dimensions"},
        {"\"I32\",\"shape\":[93]", "\"F32\",\"shape\":[93]",
         "'position' is F32 of 1 dimensions"},
        {"[93,3,3]", "[93,9,1]", "MoE layers of topk_ids"},
        {"[93,3,3]", "[837,1,1]", "names not the 1 MoE layers"},
        {"[93,3,3]", "[3,3,93]", "must be [tokens, MoE layers, top-k]"},
        {"[93,3,3]", "[31,9,3]", "names not the 9 MoE layers"},
        {"[93,3,3]", "[9,3,31]", "top-k 31 of 16"},
        {"[93,3,3]", "[279,3,1]", "279 tokens with 93 positions"},
        {"[2,3]", "[3,2]", "gaps of 2 numbers"},
        {"[\\\"a ", "{\\\"a ", "request_ids is no JSON array"},
        {"\\\"b\\\"", "\\\"\\\"", "empty, too long or no text"},
        {"\\\"b\\\"", "\\\"\\\\u0000\\\"", "empty, too long or no text"},
        {"\\\"b\\\"", "\\\"b\\\",\\\"c\\\"", "more request ids"},
        {"yet\\\"]", "yet\\\"] 1", "bytes behind request_ids"},
        {"yet\\\"]", "yet\\\"", "request_ids"},
    };
    tmpdir dir = tmpdir_make();
    moec_routes *r = make(E, 3);
    char path[300];

    (void)state;
    snprintf(path, sizeof(path), "%s/r.safetensors", dir.path);
    assert_int_equal(moec_routes_save(r, path, 0, NULL), MOEC_OK);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        moec_error err = MOEC_ERROR_INIT;
        moec_status st = parse_other(path, cases[i].from, cases[i].to, &err);

        if (st != MOEC_E_FORMAT || !strstr(err.text, cases[i].text))
            fail_msg("%s for %s: no '%s': %s", cases[i].to, cases[i].from,
                     cases[i].text, err.text);
    }
    moec_routes_destroy(r);
    tmpdir_remove(&dir);
}

/* What names no tensor and no layer of ours may be there. */
static void passes_over_metadata_of_others(void **state)
{
    tmpdir dir = tmpdir_make();
    moec_routes *r = make(E, 3);
    moec_error err = MOEC_ERROR_INIT;
    char path[300];

    (void)state;
    snprintf(path, sizeof(path), "%s/r.safetensors", dir.path);
    assert_int_equal(moec_routes_save(r, path, 0, NULL), MOEC_OK);
    if (parse_other(path, "\"format\"", "\"by\":\"x\", \"format\"", &err))
        fail_msg("%s", err.text);
    if (parse_other(path, "\"fingerprint\":\"\"", "\"fingerprint\":\"ab\"",
                    &err))
        fail_msg("%s", err.text);
    moec_routes_destroy(r);
    tmpdir_remove(&dir);
}

static void refuses_ids_of_another_width(void **state)
{
    tmpdir dir = tmpdir_make();
    moec_routes *r = make(300, 3);
    moec_error err = MOEC_ERROR_INIT;
    char path[300];

    (void)state;
    snprintf(path, sizeof(path), "%s/r.safetensors", dir.path);
    assert_int_equal(moec_routes_save(r, path, 0, NULL), MOEC_OK);
    assert_int_equal(parse_other(path, "\"n_experts\":\"300\"",
                                 "\"n_experts\":\"30\"", &err),
                     MOEC_E_FORMAT);
    assert_non_null(strstr(err.text, "topk_ids is U16, must be U8"));
    moec_routes_destroy(r);
    tmpdir_remove(&dir);
}

static void refuses_paths_that_are_no_file(void **state)
{
    tmpdir dir = tmpdir_make();
    moec_routes *out = NULL;
    moec_error err = MOEC_ERROR_INIT;
    char path[300];

    (void)state;
    snprintf(path, sizeof(path), "%s/none", dir.path);
    assert_int_equal(moec_routes_open(&out, path, &err), MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_R01);
    tmpdir_text(&dir, "file", "x");
    snprintf(path, sizeof(path), "%s/file/none", dir.path);
    assert_int_equal(moec_routes_open(&out, path, NULL), MOEC_E_FORMAT);
    err = (moec_error)MOEC_ERROR_INIT;
    assert_int_equal(moec_routes_open(&out, dir.path, &err), MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_I03);
    snprintf(path, sizeof(path), "%s/loop", dir.path);
    assert_int_equal(symlink("loop", path), 0);
    assert_int_equal(moec_routes_open(&out, path, NULL), MOEC_E_IO);
    snprintf(path, sizeof(path), "%s/file", dir.path);
    fstat_fails = true;
    assert_int_equal(moec_routes_open(&out, path, NULL), MOEC_E_IO);
    fstat_fails = false;
    moec_alloc_fail_at(1);
    assert_int_equal(moec_routes_open(&out, path, NULL), MOEC_E_NOMEM);
    moec_alloc_fail_at(0);
    assert_null(out);
    tmpdir_remove(&dir);
}

/* Change one little-endian word of the data, from its end. */
static void refuse_word(const char *path, size_t from_end, uint32_t value,
                        moec_rule rule)
{
    unsigned char data[20000];
    moec_error err = MOEC_ERROR_INIT;
    moec_routes *out = NULL;
    FILE *f = fopen(path, "rb");
    size_t n;

    assert_non_null(f);
    n = fread(data, 1, sizeof(data), f);
    (void)fclose(f);
    assert_true(n < sizeof(data) && from_end <= n);
    for (unsigned i = 0; i < 4; i++)
        data[n - from_end + i] = (unsigned char)(value >> 8 * i);
    assert_int_equal(moec_routes_parse(&out, data, n, "r", &err),
                     MOEC_E_FORMAT);
    assert_int_equal(err.rule, rule);
}

static void refuses_data_that_contradicts_itself(void **state)
{
    tmpdir dir = tmpdir_make();
    moec_routes *r = make(E, 3);
    char path[300];
    /* Behind the header: request I64[4], gap I64[2][3], position I32[93],
     * sample I32[3], ids U8[93][3][3]. */
    const size_t ids = 93 * 9, sample = ids + 12, position = sample + 93 * 4;
    const size_t gap = position + 48, request = gap + 32;

    (void)state;
    snprintf(path, sizeof(path), "%s/r.safetensors", dir.path);
    assert_int_equal(moec_routes_save(r, path, 0, NULL), MOEC_OK);
    refuse_word(path, ids, 0x10, MOEC_RULE_R03); /* id 16 of 16 */
    refuse_word(path, sample, UINT32_MAX, MOEC_RULE_R01);
    refuse_word(path, position, 5, MOEC_RULE_R01); /* 5 5 */
    refuse_word(path, position, 3, MOEC_RULE_R01); /* in the gap */
    refuse_word(path, position - 4, UINT32_MAX, MOEC_RULE_R01);
    refuse_word(path, gap, 1, MOEC_RULE_R01); /* request 1, then 1 */
    refuse_word(path, gap, 9, MOEC_RULE_R01);
    refuse_word(path, gap, 2, MOEC_RULE_R01); /* request 2, then 1 */
    refuse_word(path, gap - 16, UINT32_C(1) << 31, MOEC_RULE_R01);
    refuse_word(path, gap - 8, 4, MOEC_RULE_R01);  /* 4 to 4 */
    refuse_word(path, gap - 16, 5, MOEC_RULE_R01); /* meets a row */
    refuse_word(path, request, 1, MOEC_RULE_R01);
    refuse_word(path, request - 8, 99, MOEC_RULE_R01);
    refuse_word(path, request - 24, 92, MOEC_RULE_R01);
    moec_routes_destroy(r);
    tmpdir_remove(&dir);
}

static void refuses_files_cut_short(void **state)
{
    tmpdir dir = tmpdir_make();
    moec_routes *r = make(E, 3);
    unsigned char data[20000];
    char path[300];
    size_t n;
    FILE *f;

    (void)state;
    snprintf(path, sizeof(path), "%s/r.safetensors", dir.path);
    assert_int_equal(moec_routes_save(r, path, 0, NULL), MOEC_OK);
    f = fopen(path, "rb");
    assert_non_null(f);
    n = fread(data, 1, sizeof(data), f);
    (void)fclose(f);
    for (size_t i = 0; i < n; i += 1 + i / 60) {
        moec_routes *out = NULL;

        assert_int_equal(moec_routes_parse(&out, data, i, "r", NULL),
                         MOEC_E_FORMAT);
    }
    moec_routes_destroy(r);
    tmpdir_remove(&dir);
}

/* -------------------------------------------------------------- merging */

/* Requests "x" and "y"; rank r has positions p of x with p % 2 == r and all of
 * y where r is 1. */
static moec_routes *part(uint32_t rank, uint32_t tag)
{
    moec_recorder *r = rr_start(E, K, 3);
    uint64_t x = rr_request(r, "x", 0), y;
    moec_routes *out = NULL;

    for (uint32_t p = 0; p < 70; p++) {
        if (p % 2 == rank)
            rr_fill(r, x, tag, p, p + 1, E, K);
        else
            assert_int_equal(moec_recorder_gap(r, x, p, p + 1, NULL), MOEC_OK);
    }
    assert_int_equal(moec_recorder_gap(r, x, 70, 80, NULL), MOEC_OK);
    if (rank == 1) {
        y = rr_request(r, "y", 0);
        rr_fill(r, y, 9, 0, 5, E, K);
    }
    assert_int_equal(moec_recorder_stop(r, &out, NULL), MOEC_OK);
    moec_recorder_destroy(r);
    return out;
}

static void merges_data_parallel_ranks_by_key(void **state)
{
    moec_routes *in[3] = {part(0, 1), part(1, 1), part(0, 1)};
    moec_routes *out = NULL;
    moec_routes_request q;

    (void)state;
    assert_int_equal(
        moec_routes_merge(&out, (const moec_routes *const *)in, 3, NULL),
        MOEC_OK);
    assert_int_equal(moec_routes_n_requests(out), 2);
    assert_int_equal(moec_routes_n_tokens(out), 75);
    for (uint32_t p = 0; p < 70; p++)
        rr_expect(out, 0, p, 1, p);
    for (uint32_t p = 0; p < 5; p++)
        rr_expect(out, 1, p, 9, p);
    q = moec_routes_get_request(out, 0);
    assert_int_equal(q.n_gaps, 1);
    assert_int_equal(q.gaps[0].first, 70);
    assert_int_equal(q.gaps[0].end, 80);
    assert_int_equal(moec_routes_get_request(out, 1).n_gaps, 0);
    for (int i = 0; i < 3; i++)
        moec_routes_destroy(in[i]);
    moec_routes_destroy(out);
}

static void gaps_that_nobody_fills_stay(void **state)
{
    moec_routes *in[2] = {part(0, 1), part(0, 1)}, *out = NULL;
    moec_routes_request q;

    (void)state;
    assert_int_equal(
        moec_routes_merge(&out, (const moec_routes *const *)in, 2, NULL),
        MOEC_OK);
    q = moec_routes_get_request(out, 0);
    assert_int_equal(q.n_tokens, 35);
    assert_int_equal(q.n_gaps, 35);
    assert_int_equal(q.gaps[34].first, 69);
    assert_int_equal(q.gaps[34].end, 80);
    for (int i = 0; i < 2; i++)
        moec_routes_destroy(in[i]);
    moec_routes_destroy(out);
}

static void refuses_rows_that_contradict_each_other(void **state)
{
    moec_routes *in[2] = {part(0, 1), part(0, 2)}, *out = NULL;
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    assert_int_equal(
        moec_routes_merge(&out, (const moec_routes *const *)in, 2, &err),
        MOEC_E_MAPPING);
    assert_int_equal(err.rule, MOEC_RULE_R05);
    assert_non_null(strstr(err.text, "request 'x', sample 0, position 0"));
    for (int i = 0; i < 2; i++)
        moec_routes_destroy(in[i]);
}

static void refuses_to_merge_other_shapes(void **state)
{
    moec_routes *in[2] = {make(E, 3), make(E, 4)}, *out = NULL;
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    assert_int_equal(
        moec_routes_merge(&out, (const moec_routes *const *)in, 2, &err),
        MOEC_E_MAPPING);
    assert_int_equal(err.rule, MOEC_RULE_R02);
    for (int i = 0; i < 2; i++)
        moec_routes_destroy(in[i]);
}

/* --------------------------------------------------------------- counts */

static void counts_every_choice_once(void **state)
{
    moec_routes *r = make(E, 3);
    uint64_t counts[3 * E], want[3 * E] = {0};

    (void)state;
    for (uint32_t i = 0; i < 93; i++)
        for (uint32_t l = 0; l < 3; l++)
            for (uint32_t c = 0; c < K; c++) {
                int32_t id =
                    rr_id(i < 86 ? 1 : 2, i < 86 ? i + 4 : i - 86, l, c, E, K);

                if (id >= 0)
                    want[l * E + (uint32_t)id]++;
            }
    moec_routes_counts(r, counts);
    assert_memory_equal(counts, want, sizeof(want));
    moec_routes_destroy(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(file_holds_all_of_it),
        cmocka_unit_test(never_replaces_a_file_unasked),
        cmocka_unit_test(refuses_metadata_that_is_wrong),
        cmocka_unit_test(refuses_headers_of_other_forms),
        cmocka_unit_test(passes_over_metadata_of_others),
        cmocka_unit_test(refuses_ids_of_another_width),
        cmocka_unit_test(refuses_paths_that_are_no_file),
        cmocka_unit_test(refuses_data_that_contradicts_itself),
        cmocka_unit_test(refuses_files_cut_short),
        cmocka_unit_test(merges_data_parallel_ranks_by_key),
        cmocka_unit_test(gaps_that_nobody_fills_stay),
        cmocka_unit_test(refuses_rows_that_contradict_each_other),
        cmocka_unit_test(refuses_to_merge_other_shapes),
        cmocka_unit_test(counts_every_choice_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
