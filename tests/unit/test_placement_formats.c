/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "placement.h"

/* Four decoder layers of which 1 and 3 are MoE layers, and one MTP layer;
 * four experts. */
static const moec_layer_key keys[] = {
    {MOEC_SPACE_MAIN, 1}, {MOEC_SPACE_MAIN, 3}, {MOEC_SPACE_MTP, 0}};
static const moec_placement_target target = {
    .n_experts = 4, .n_layers = 4, .keys = keys, .n_keys = 3};
static const moec_placement_target no_mtp = {
    .n_experts = 4, .n_layers = 4, .keys = keys, .n_keys = 2};

static moec_placement *parse(const moec_placement_target *t, const char *text)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_placement *p = NULL;

    if (moec_placement_parse_for(&p, t, "p.json", text, strlen(text), &err))
        fail_msg("%s", err.text);
    return p;
}

static void assert_row(const moec_placement *p, uint32_t layer,
                       const int32_t *want)
{
    assert_memory_equal(moec_placement_row(p, layer), want,
                        moec_placement_n_physical(p) * sizeof(*want));
}

static void refuse_bytes(const moec_placement_target *t, const char *text,
                         size_t n, moec_status want, moec_rule rule,
                         const char *fragment)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_placement *p = NULL;
    moec_status st = moec_placement_parse_for(&p, t, "p.json", text, n, &err);

    if (st != want)
        fail_msg("status %d, expected %d: %s", (int)st, (int)want, err.text);
    assert_int_equal(err.status, want);
    if (!strstr(err.text, fragment))
        fail_msg("'%s' is not in: %s", fragment, err.text);
    if (!strstr(err.text, "p.json: "))
        fail_msg("the file is not named: %s", err.text);
    assert_int_equal(err.rule, rule);
    assert_null(p);
    /* The same without an error to write to. */
    assert_int_equal(moec_placement_parse_for(&p, t, "p.json", text, n, NULL),
                     want);
    assert_null(p);
}

static void refuse(const moec_placement_target *t, const char *text,
                   moec_status want, moec_rule rule, const char *fragment)
{
    refuse_bytes(t, text, strlen(text), want, rule, fragment);
}

#define FORMAT MOEC_E_FORMAT, MOEC_RULE_P04

/* One file of the SGLang form whose layer 3 is the given row. */
static char *with_row(const char *row)
{
    static char text[2048];

    snprintf(text, sizeof(text),
             "{\"physical_to_logical_map\": [[0,1,2,3,0], [0,1,2,3,0],\n"
             " [0,1,2,3,0], %s]}",
             row);
    return text;
}

static void sglang_rows_are_decoder_layers(void **state)
{
    static const int32_t row1[] = {3, 2, 1, 0, 2}, row3[] = {1, 0, 3, 2, 1};
    moec_placement *p =
        parse(&no_mtp, "{\"physical_to_logical_map\":"
                       "[[9,9,9,9,9],[3,2,1,0,2],[-1,7,7,7,7],[1,0,3,2,1]]}");

    (void)state;
    assert_int_equal(moec_placement_n_layers(p), 2);
    assert_int_equal(moec_placement_n_experts(p), 4);
    assert_int_equal(moec_placement_n_physical(p), 5);
    assert_row(p, 0, row1);
    assert_row(p, 1, row3);
    moec_placement_destroy(p);
}

static void sglang_mtp_rows_stand_behind_the_decoder_layers(void **state)
{
    static const int32_t mtp[] = {3, 3, 2, 1, 0}, trivial[] = {0, 1, 2, 3, 0};
    moec_placement *p =
        parse(&target, "{\"physical_to_logical_map\":"
                       "[[0,1,2,3,0],[3,2,1,0,2],[0,1,2,3,0],[1,0,3,2,1],"
                       "[3,3,2,1,0]]}");

    (void)state;
    assert_int_equal(moec_placement_n_layers(p), 3);
    assert_row(p, 2, mtp);
    moec_placement_destroy(p);

    p = parse(&target, with_row("[1,0,3,2,1]"));
    assert_int_equal(moec_placement_n_layers(p), 3);
    assert_row(p, 2, trivial);
    moec_placement_destroy(p);
}

static void bare_rows_are_moe_layers(void **state)
{
    static const int32_t row0[] = {3, 2, 1, 0, 2}, row1[] = {1, 0, 3, 2, 1},
                         mtp[] = {2, 2, 0, 1, 3}, trivial[] = {0, 1, 2, 3, 0};
    moec_placement *p =
        parse(&target, " [[3,2,1,0,2],[1,0,3,2,1],[2,2,0,1,3]]\n");

    (void)state;
    assert_int_equal(moec_placement_n_layers(p), 3);
    assert_row(p, 0, row0);
    assert_row(p, 1, row1);
    assert_row(p, 2, mtp);
    moec_placement_destroy(p);

    p = parse(&target, "[[3,2,1,0,2],[1,0,3,2,1]]");
    assert_row(p, 1, row1);
    assert_row(p, 2, trivial);
    moec_placement_destroy(p);
}

static void trivial_files_are_trivial(void **state)
{
    moec_placement *p = parse(&target, with_row("[0,1,2,3,0]"));

    (void)state;
    assert_true(moec_placement_is_trivial(p));
    moec_placement_destroy(p);
    p = parse(&target, with_row("[0,1,2,3,1]"));
    assert_false(moec_placement_is_trivial(p));
    moec_placement_destroy(p);
}

static void refuses_ids_that_are_no_integers(void **state)
{
    (void)state;
    refuse(&target, with_row("[0,1,2,3.0,3]"), FORMAT,
           "layer 3, slot 3: id is the fraction 3, must be an integer in "
           "[0, 4)");
    refuse(&target, with_row("[0,1,2,3,1.5]"), FORMAT,
           "layer 3, slot 4: id is the fraction 1.5");
    refuse(&target, with_row("[0,true,2,3,1]"), FORMAT,
           "layer 3, slot 1: id is the boolean true");
    refuse(&target, with_row("[false,1,2,3,1]"), FORMAT,
           "layer 3, slot 0: id is the boolean false");
    refuse(&target, with_row("[0,1,\"2\",3,1]"), FORMAT,
           "layer 3, slot 2: id is the string '2'");
    refuse(&target, with_row("[0,1,null,3,1]"), FORMAT,
           "layer 3, slot 2: id is null");
    refuse(&target, with_row("[0,1,2,[3],1]"), FORMAT,
           "layer 3, slot 3: id is a list");
    refuse(&target, with_row("[0,1,2,{},1]"), FORMAT,
           "layer 3, slot 3: id is an object");
}

static void refuses_numbers_that_are_no_json(void **state)
{
    (void)state;
    refuse(&target, with_row("[0,1,2,NaN,1]"), FORMAT,
           "layer 3, slot 3: id is NaN, must be an integer in [0, 4)");
    refuse(&target, with_row("[0,1,Infinity,2,1]"), FORMAT,
           "layer 3, slot 2: id is Infinity");
    refuse(&target, with_row("[0,1,2,3,-Infinity]"), FORMAT,
           "layer 3, slot 4: id is -Infinity");
    refuse(&target, with_row("[99999999999999999999,1,2,3,0]"), FORMAT,
           "layer 3, slot 0: id is 99999999999999999999");
    refuse(&target, with_row("[0,1e999,2,3,0]"), FORMAT,
           "layer 3, slot 1: id is 1e999");
    refuse(&target, "[[0,1,2,3],[0,1, NaN,3]]", FORMAT,
           "layer 3 (row 1), slot 2: id is NaN");
    refuse(&target, "{\"[,\\\"[N\": 1, \"physical_to_logical_map\": [[NaN]]}",
           FORMAT, "layer 0, slot 0: id is NaN");
}

static void refuses_ids_out_of_range(void **state)
{
    (void)state;
    refuse(&target, with_row("[0,1,2,-7,3]"), FORMAT,
           "layer 3, slot 3: id -7 is not in [0, 4)");
    refuse(&target, with_row("[0,1,2,3,-1]"), FORMAT,
           "layer 3, slot 4: id -1 is not in [0, 4): empty slots are made by "
           "--allow-empty");
    refuse(&target, with_row("[0,1,2,3,4294967296]"), FORMAT,
           "layer 3, slot 4: id 4294967296 is not in [0, 4)");
    refuse(&target, "[[0,1,2,3],[3,2,1,0],[0,1,2,-3]]", FORMAT,
           "mtp layer 0 (row 2), slot 3: id -3");
}

static void refuses_shared_experts_among_routed_slots(void **state)
{
    (void)state;
    refuse(&target, with_row("[0,1,2,3,4]"), FORMAT,
           "layer 3, slot 4: id 4 is not in [0, 4): shared experts, with ids "
           "from there on, have slots of their own");
}

static void refuses_a_wrong_number_of_rows(void **state)
{
    (void)state;
    refuse(&target, "{\"physical_to_logical_map\":[[0,1,2,3],[0,1,2,3]]}",
           MOEC_E_FORMAT, MOEC_RULE_P02,
           "2 rows, must be 4, one for each decoder layer, at most 5 with MTP "
           "layers; a file of MoE layers alone is a bare list");
    refuse(&no_mtp, "{\"physical_to_logical_map\":[[0,1,2,3]]}", MOEC_E_FORMAT,
           MOEC_RULE_P02, "1 rows, must be 4, one for each decoder layer");
    refuse(&no_mtp,
           "{\"physical_to_logical_map\":[[0,1,2,3],[0,1,2,3],[0,1,2,3],"
           "[0,1,2,3],[0,1,2,3]]}",
           MOEC_E_FORMAT, MOEC_RULE_P02, "5 rows, must be 4");
    refuse(&target,
           "{\"physical_to_logical_map\":[[0,1,2,3],[0,1,2,3],[0,1,2,3],"
           "[0,1,2,3],[0,1,2,3],[0,1,2,3]]}",
           MOEC_E_FORMAT, MOEC_RULE_P02, "6 rows, must be 4");
    refuse(&target, "[[0,1,2,3],[0,1,2,3],[0,1,2,3],[0,1,2,3]]", MOEC_E_FORMAT,
           MOEC_RULE_P02,
           "4 rows, must be 2, one for each MoE layer, at most 3 with MTP "
           "layers; a file of all decoder layers is {\"physical_to_logical");
    refuse(&target, "[]", MOEC_E_FORMAT, MOEC_RULE_P02, "0 rows, must be 2");
}

static void refuses_ragged_rows(void **state)
{
    (void)state;
    refuse(&target, with_row("[0,1,2,3]"), MOEC_E_FORMAT, MOEC_RULE_P03,
           "layer 3 has 4 slots, layer 0 has 5");
    refuse(&target, "[[0,1,2,3,0],[0,1,2,3,0,1]]", MOEC_E_FORMAT, MOEC_RULE_P03,
           "layer 3 (row 1) has 6 slots, layer 1 (row 0) has 5");
    refuse(&target, "[[0,1,2],[0,1,2]]", MOEC_E_MAPPING, MOEC_RULE_P03,
           "rows of 3 slots, must have between 4 (the experts) and 1048576");
    refuse(&target, "[[],[]]", MOEC_E_MAPPING, MOEC_RULE_P03,
           "rows of 0 slots");
}

static void refuses_rows_that_are_no_lists(void **state)
{
    (void)state;
    refuse(&target, with_row("7"), MOEC_E_FORMAT, MOEC_RULE_P01,
           "layer 3: the row is no list of ids");
    refuse(&target, "[0,1,2,3]", MOEC_E_FORMAT, MOEC_RULE_P01,
           "layer 1 (row 0): the row is no list of ids");
    refuse(&target, "[0,1]", MOEC_E_FORMAT, MOEC_RULE_P01,
           "layer 1 (row 0): the row is no list of ids");
    refuse(&target, "{\"physical_to_logical_map\": 3}", MOEC_E_FORMAT,
           MOEC_RULE_P01, "physical_to_logical_map is no list of rows");
    refuse(&target, "{\"physical_to_logical_map\": null}", MOEC_E_FORMAT,
           MOEC_RULE_P01, "physical_to_logical_map is no list of rows");
}

static void dense_rows_are_integers_all_the_same(void **state)
{
    (void)state;
    refuse(&no_mtp,
           "{\"physical_to_logical_map\":[[0,1,2,0.5],[0,1,2,3],[0,1,2,3],"
           "[0,1,2,3]]}",
           FORMAT, "layer 0, slot 3: id is the fraction 0.5");
    refuse(&no_mtp,
           "{\"physical_to_logical_map\":[[0,1,2,3],[0,1,2,3],\"x\","
           "[0,1,2,3]]}",
           MOEC_E_FORMAT, MOEC_RULE_P01, "layer 2: the row is no list of ids");
    refuse(&no_mtp,
           "{\"physical_to_logical_map\":[[0,1,2,3],[0,1,2,3],[0,1,2],"
           "[0,1,2,3]]}",
           MOEC_E_FORMAT, MOEC_RULE_P03, "layer 2 has 3 slots");
}

static void refuses_an_expert_without_a_slot(void **state)
{
    (void)state;
    refuse(&target, with_row("[0,1,1,3,0]"), MOEC_E_MAPPING, MOEC_RULE_P05,
           "layer 3: logical expert 2 has none of the 5 slots (1 of 4 experts "
           "are without one)");
    refuse(&target, "[[0,1,2,3],[0,1,2,3],[1,1,3,3]]", MOEC_E_MAPPING,
           MOEC_RULE_P05, "mtp layer 0: logical expert 0 has none");
}

static void refuses_other_keys(void **state)
{
    (void)state;
    refuse(&no_mtp,
           "{\"physical_to_logical_map\":[[0,1,2,3],[0,1,2,3],[0,1,2,3],"
           "[0,1,2,3]],\"version\":1}",
           MOEC_E_FORMAT, MOEC_RULE_P01, "unknown key 'version'");
    refuse(&target, "{\"a\":1}", MOEC_E_FORMAT, MOEC_RULE_P01,
           "no key 'physical_to_logical_map'");
    refuse(&no_mtp,
           "{\"physical_to_logical_map\":[[0,1,2,3]],"
           "\"physical_to_logical_map\":[[0,1,2,3]]}",
           MOEC_E_FORMAT, MOEC_RULE_P01, "duplicate object key");
}

static void load_counts_need_eplb(void **state)
{
    (void)state;
    refuse(&target, "{\"logical_count\": [[1,2,3,4]]}", MOEC_E_UNSUPPORTED,
           MOEC_RULE_P01,
           "'logical_count' is loads, not a placement: `placement eplb "
           "--logical-count` makes one of them");
    refuse(&target, "{\"logcnt\": [[1,2,1,1]]}", MOEC_E_UNSUPPORTED,
           MOEC_RULE_P01, "logcnt alone says how many slots");
}

static void pickles_are_not_run(void **state)
{
    static const char zip[] = "PK\3\4\0\0garbage";
    static const char pickle[] = "\x80\x04\x95garbage";

    (void)state;
    refuse_bytes(&target, zip, sizeof(zip), MOEC_E_FORMAT, MOEC_RULE_P01,
                 "ZIP: too short");
    refuse_bytes(&target, pickle, sizeof(pickle), MOEC_E_UNSUPPORTED,
                 MOEC_RULE_P01, "a pickle, which runs code when read");
}

static void refuses_text_that_is_no_json(void **state)
{
    (void)state;
    refuse(&target, "", MOEC_E_FORMAT, MOEC_RULE_P01, "is empty");
    refuse(&target, "[[0,1,2,3],[0,1,2,3]", MOEC_E_FORMAT, MOEC_RULE_P01,
           "line 1");
    refuse(&target, "[[0,1,2,3],\n[0,1,2,03]]", MOEC_E_FORMAT, MOEC_RULE_P01,
           "line 2");
    refuse(&target, "[[0,1,2,3],[0,1,2,3],]", MOEC_E_FORMAT, MOEC_RULE_P01,
           "line 1");
    refuse(&target, "[[0,1,2,3],[0,1,2,3]] x", MOEC_E_FORMAT, MOEC_RULE_P01,
           "line 1");
    refuse(&target, "\"N\\", MOEC_E_FORMAT, MOEC_RULE_P01, "line 1");
    refuse(&target, "7", MOEC_E_FORMAT, MOEC_RULE_P01, "line 1");
    refuse(&target, "\xef\xbb\xbf[[0,1,2,3],[0,1,2,3]]", MOEC_E_FORMAT,
           MOEC_RULE_P01, "byte order mark");
}

/* Each prefix of a good file is refused without reading past its end. */
static void refuses_every_truncation(void **state)
{
    const char *text = with_row("[1,0,3,2,1]");
    size_t n = strlen(text);

    (void)state;
    for (size_t i = 0; i < n; i++) {
        char *part = malloc(i + 1);
        moec_placement *p = NULL;

        assert_non_null(part);
        memcpy(part, text, i);
        assert_int_equal(
            moec_placement_parse_for(&p, &target, "p.json", part, i, NULL),
            MOEC_E_FORMAT);
        assert_null(p);
        free(part);
    }
}

/* Larger than any known job: 128 layers of 4,096 slots. Two rows take turns,
 * because writing 500,000 numbers would take longer than reading them. */
static void large_files_round_trip(void **state)
{
    enum { LAYERS = 128, E = 3584, P = 4096 };
    static moec_layer_key many[LAYERS];
    static int32_t p2l[2][P];
    moec_placement_target t = {
        .n_experts = E, .n_layers = LAYERS, .keys = many, .n_keys = LAYERS};
    moec_buf text = {0}, row[2] = {{0}, {0}};
    moec_placement *p;

    (void)state;
    for (int i = 0; i < P; i++) {
        for (int r = 0; r < 2; r++) {
            /* 1003 is coprime to E: the first E ids are all the experts. */
            p2l[r][i] = (i * 1003 + r) % E;
            moec_buf_printf(&row[r], "%s%d", i ? "," : "[", p2l[r][i]);
        }
    }
    moec_buf_puts(&text, "{\"physical_to_logical_map\":[");
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        many[layer] = (moec_layer_key){MOEC_SPACE_MAIN, layer};
        moec_buf_append(&text, row[layer % 2].data, row[layer % 2].len);
        moec_buf_puts(&text, layer + 1 < LAYERS ? "]," : "]]}");
    }
    assert_false(text.oom || row[0].oom || row[1].oom);
    p = parse(&t, text.data);
    assert_int_equal(moec_placement_n_physical(p), P);
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        assert_row(p, layer, p2l[layer % 2]);
    moec_placement_destroy(p);
    moec_buf_fini(&text);
    moec_buf_fini(&row[0]);
    moec_buf_fini(&row[1]);
}

/* The public call takes E, layers and MTP layers from the model: three decoder
 * layers of which 1 and 2 have 16 experts, and one MTP layer. */
static void target_is_taken_from_the_model(void **state)
{
    static const char path[] = MOEC_TEST_FIXTURES "/checkpoints/deepseek_v3";
    static const char head[] = "0,1,2,3,4,5,6,7,8,9,10,11,12,13";
    moec_error err = MOEC_ERROR_INIT;
    moec_families *families = NULL;
    moec_placement *p = NULL;
    moec_model *model = NULL;
    moec_ckpt *ckpt = NULL;
    char text[512];
    int n;

    (void)state;
    if (moec_families_create(&families, &err) ||
        moec_ckpt_open(&ckpt, path, NULL, &err) ||
        moec_model_open(&model, ckpt, families, &err))
        fail_msg("%s", err.text);
    n = snprintf(text, sizeof(text),
                 "{\"physical_to_logical_map\":[[%s,14,99],[%s,14,15],"
                 "[%s,15,14],[%s,15,14]]}",
                 head, head, head, head);
    if (moec_placement_parse(&p, model, "p.json", text, (size_t)n, &err))
        fail_msg("%s", err.text);
    assert_int_equal(moec_placement_n_layers(p), 3);
    assert_int_equal(moec_placement_n_experts(p), 16);
    assert_int_equal(moec_placement_row(p, 0)[15], 15);
    assert_int_equal(moec_placement_row(p, 1)[15], 14);
    assert_int_equal(moec_placement_row(p, 2)[15], 14);
    moec_placement_destroy(p);
    p = NULL;
    text[n - 4] = '6'; /* of the last 14 */
    assert_int_equal(
        moec_placement_parse(&p, model, "p.json", text, (size_t)n, &err),
        MOEC_E_FORMAT);
    if (!strstr(err.text, "mtp layer 0, slot 15: id 16 is not in [0, 16)"))
        fail_msg("%s", err.text);
    assert_null(p);
    moec_model_destroy(model);
    moec_ckpt_close(ckpt);
    moec_families_destroy(families);
}

static void survives_failing_allocations(void **state)
{
    const char *text = "[[3,2,1,0,2],[1,0,3,2,1]]";
    moec_status st = MOEC_E_NOMEM;
    int n;

    (void)state;
    for (n = 1; st != MOEC_OK && n < 100; n++) {
        moec_placement *p = NULL;

        moec_alloc_fail_at((uint64_t)n);
        st = moec_placement_parse_for(&p, &target, "p.json", text, strlen(text),
                                      NULL);
        moec_alloc_fail_at(0);
        if (st != MOEC_OK)
            assert_int_equal(st, MOEC_E_NOMEM);
        moec_placement_destroy(p);
    }
    assert_int_equal(st, MOEC_OK);
    assert_true(n > 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sglang_rows_are_decoder_layers),
        cmocka_unit_test(sglang_mtp_rows_stand_behind_the_decoder_layers),
        cmocka_unit_test(bare_rows_are_moe_layers),
        cmocka_unit_test(trivial_files_are_trivial),
        cmocka_unit_test(refuses_ids_that_are_no_integers),
        cmocka_unit_test(refuses_numbers_that_are_no_json),
        cmocka_unit_test(refuses_ids_out_of_range),
        cmocka_unit_test(refuses_shared_experts_among_routed_slots),
        cmocka_unit_test(refuses_a_wrong_number_of_rows),
        cmocka_unit_test(refuses_ragged_rows),
        cmocka_unit_test(refuses_rows_that_are_no_lists),
        cmocka_unit_test(dense_rows_are_integers_all_the_same),
        cmocka_unit_test(refuses_an_expert_without_a_slot),
        cmocka_unit_test(refuses_other_keys),
        cmocka_unit_test(load_counts_need_eplb),
        cmocka_unit_test(pickles_are_not_run),
        cmocka_unit_test(refuses_text_that_is_no_json),
        cmocka_unit_test(refuses_every_truncation),
        cmocka_unit_test(large_files_round_trip),
        cmocka_unit_test(target_is_taken_from_the_model),
        cmocka_unit_test(survives_failing_allocations),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
