/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Replica choice against SGLang's tables, and maps that must be refused.
 */

#include "vectors.h"

#include <moec/mapping.h>

#include "placement.h"

/* Indices of EPLB's lists, [layers][P], from `candidates`. */
static uint32_t *replica_of(const json_t *lists, size_t n_physical)
{
    size_t n_layers = json_array_size(lists);
    uint32_t *out = calloc(n_layers * n_physical, sizeof(*out));

    assert_non_null(out);
    for (size_t i = 0; i < n_layers; i++) {
        const json_t *row = json_array_get(lists, i);

        for (size_t e = 0; e < json_array_size(row); e++) {
            const json_t *list = json_array_get(row, e);

            for (size_t k = 0; k < json_array_size(list); k++) {
                json_int_t p = json_integer_value(json_array_get(list, k));

                out[i * n_physical + (size_t)p] = (uint32_t)k;
            }
        }
    }
    return out;
}

static moec_replicas_opts map_opts(const json_t *map, const json_t *rank)
{
    moec_replicas_opts o = MOEC_REPLICAS_OPTS_INIT;
    const json_t *nodes = json_object_get(map, "nodes");

    o.n_ranks = vectors_u32(map, "W");
    o.n_nodes = json_is_null(nodes) ? 0 : vectors_u32(map, "nodes");
    o.rank = vectors_u32(rank, "rank");
    o.all_to_all = json_is_true(json_object_get(map, "a2a"));
    return o;
}

static moec_placement *map_placement(const json_t *map)
{
    size_t n = 0;
    int32_t *rows = vectors_i32(json_object_get(map, "p2l"), &n);
    uint32_t n_experts = vectors_u32(map, "E");
    uint32_t n_physical = n_experts + vectors_u32(map, "R");
    moec_placement *p = NULL;
    moec_error err = MOEC_ERROR_INIT;

    if (moec_placement_from_rows(&p, (uint32_t)(n / n_physical), n_experts,
                                 n_physical, rows, &err))
        fail_msg("%s", err.text);
    free(rows);
    return p;
}

/* What one rank derives from a map: how many arrays differ. */
static unsigned check_rank(const json_t *map, const moec_placement *p,
                           const json_t *rank)
{
    const json_t *lists = json_object_get(map, "candidates");
    const json_t *collapsed = json_object_get(rank, "collapsed");
    uint32_t n_experts = vectors_u32(map, "E");
    moec_replicas_opts o = map_opts(map, rank);
    moec_error err = MOEC_ERROR_INIT;
    moec_replicas *r = NULL;
    uint32_t *replica = NULL;
    size_t n = 0;
    int32_t *table = vectors_i32(json_object_get(rank, "static"), &n);
    unsigned n_bad;

    if (lists && o.all_to_all) /* EPLB's lists are never collapsed */
        o.all_to_all = 0;
    if (lists)
        o.replica = replica = replica_of(lists, moec_placement_n_physical(p));
    if (moec_replicas_create(&r, p, &o, &err))
        fail_msg("%s: %s", vectors_text(map, "id"), err.text);
    assert_int_equal(n, (size_t)n_experts * moec_placement_n_layers(p));
    n_bad = memcmp(moec_replicas_table(r, 0), table, n * sizeof(*table)) != 0;
    if (collapsed) {
        int32_t *near = vectors_i32(collapsed, NULL);

        n_bad +=
            memcmp(moec_replicas_nearest(r, 0), near, n * sizeof(*near)) != 0;
        free(near);
    }
    free(table);
    moec_replicas_destroy(r);
    free(replica);
    return n_bad;
}

static void equals_sglang_bit_for_bit(void **state)
{
    json_t *root = vectors_load("dispatch.json");
    const json_t *maps = json_object_get(root, "maps");
    unsigned n_bad = 0, n_ranks = 0;

    (void)state;
    for (size_t i = 0; i < json_array_size(maps); i++) {
        const json_t *map = json_array_get(maps, i);
        const json_t *ranks = json_object_get(map, "ranks");
        moec_placement *p = map_placement(map);

        for (size_t k = 0; k < json_array_size(ranks); k++) {
            const json_t *rank = json_array_get(ranks, k);
            unsigned bad = check_rank(map, p, rank);

            if (bad)
                print_error("%s (%s), rank %u differs\n",
                            vectors_text(map, "id"), vectors_text(map, "kind"),
                            vectors_u32(rank, "rank"));
            n_bad += bad;
            n_ranks++;
        }
        moec_placement_destroy(p);
    }
    json_decref(root);
    assert_int_equal(n_bad, 0);
    assert_int_equal(n_ranks, 124);
}

/* Few of many, where Random.sample draws into a set instead of copying the
 * list: no vector has it. Expected from CPython 3.11's own random.Random. */
static void draws_few_of_many_like_cpython(void **state)
{
    static const uint32_t want[35] = {
        22, 2,  20, 14, 34, 58, 24, 10, 50, 60, 54, 8,  18, 38, 6,  48, 40, 44,
        32, 14, 62, 52, 0,  2,  26, 36, 4,  34, 56, 46, 42, 12, 16, 28, 30};
    moec_replicas_opts o = MOEC_REPLICAS_OPTS_INIT;
    moec_placement *p = NULL;
    int32_t row[67], next = 1;

    (void)state;
    /* Expert 0 on the even ranks below 64, the 35 others on the rest. */
    for (int32_t i = 0; i < 67; i++)
        row[i] = i % 2 == 0 && i < 64 ? 0 : next++;
    assert_int_equal(moec_placement_from_rows(&p, 1, 36, 67, row, NULL),
                     MOEC_OK);
    o.n_ranks = 67;
    for (uint32_t rank = 0, at = 0; rank < 67; rank++) {
        moec_replicas *r = NULL;

        o.rank = rank;
        assert_int_equal(moec_replicas_create(&r, p, &o, NULL), MOEC_OK);
        assert_int_equal(moec_replicas_table(r, 0)[0],
                         row[rank] == 0 ? rank : want[at++]);
        moec_replicas_destroy(r);
    }
    moec_placement_destroy(p);
}

/* SGLang's stream runs over dense layers too. */
static void draws_for_dense_layers(void **state)
{
    int32_t rows[3 * 40];
    const moec_layer_key keys[] = {
        {MOEC_SPACE_MAIN, 1}, {MOEC_SPACE_MAIN, 2}, {MOEC_SPACE_MTP, 0}};
    moec_replicas_opts o = MOEC_REPLICAS_OPTS_INIT;
    moec_placement *all = NULL, *moe = NULL;
    moec_replicas *a = NULL, *b = NULL, *c = NULL;

    (void)state;
    for (int32_t i = 0; i < 3 * 40; i++)
        rows[i] = (i % 40 * 7 + i / 40) % 10;
    assert_int_equal(moec_placement_trivial(&all, 4, 10, 30, NULL), MOEC_OK);
    assert_int_equal(moec_placement_from_rows(&moe, 3, 10, 40, rows, NULL),
                     MOEC_OK);
    o.n_ranks = 20;
    o.rank = 3;
    assert_int_equal(moec_replicas_create(&b, moe, &o, NULL), MOEC_OK);
    o.keys = keys;
    o.n_decoder = 3;
    assert_int_equal(moec_replicas_create(&a, moe, &o, NULL), MOEC_OK);
    /* With a dense row in front the first MoE layer differs from without. */
    assert_memory_not_equal(moec_replicas_table(a, 0),
                            moec_replicas_table(b, 0), 40);
    /* The same with that row given. */
    o.keys = NULL;
    moec_placement_destroy(moe);
    {
        int32_t four[4 * 40];

        memcpy(four, moec_placement_row(all, 0), 160);
        memcpy(four + 40, rows, sizeof(rows));
        assert_int_equal(moec_placement_from_rows(&moe, 4, 10, 40, four, NULL),
                         MOEC_OK);
    }
    assert_int_equal(moec_replicas_create(&c, moe, &o, NULL), MOEC_OK);
    for (uint32_t i = 0; i < 3; i++)
        assert_memory_equal(moec_replicas_table(a, i),
                            moec_replicas_table(c, i + 1), 40);
    moec_replicas_destroy(c);
    moec_replicas_destroy(b);
    moec_replicas_destroy(a);
    moec_placement_destroy(moe);
    moec_placement_destroy(all);
}

static void gives_kernels_a_complete_map(void **state)
{
    static const int32_t rows[] = {0, 1, 2, 0, 2, 0};
    moec_replicas_opts o = MOEC_REPLICAS_OPTS_INIT;
    moec_placement *p = NULL;
    moec_replicas *r = NULL;
    moec_dispatch_map map;

    (void)state;
    assert_int_equal(moec_placement_from_rows(&p, 1, 3, 6, rows, NULL),
                     MOEC_OK);
    o.n_ranks = 3;
    o.rank = 2;
    assert_int_equal(moec_replicas_create(&r, p, &o, NULL), MOEC_OK);
    moec_replicas_map(r, 0, MOEC_REPLICA_ROW_LAYER, 7, 2, 0, &map);
    assert_int_equal(map.struct_bytes, sizeof(map));
    assert_int_equal(map.topology.n_physical, 6);
    assert_int_equal(map.topology.n_local, 2);
    assert_int_equal(map.topology.n_shared_slots, 2);
    assert_int_equal(map.n_experts, 3);
    assert_int_equal(map.rank, 2);
    assert_int_equal(map.layer, 7);
    assert_int_equal(map.cand_first[1], 3);
    assert_int_equal(map.cand_first[3], 6);
    assert_int_equal(map.cand[0], 0);
    assert_int_equal(map.cand[1], 3);
    assert_int_equal(map.cand[2], 5);
    assert_int_equal(map.table[0], 5); /* on rank 2 itself */
    assert_int_equal(map.table[1], 1);
    moec_replicas_destroy(r);
    moec_placement_destroy(p);
}

static void leaves_empty_slots_out(void **state)
{
    static const int32_t rows[] = {0, 1, 2, -1};
    moec_replicas_opts o = MOEC_REPLICAS_OPTS_INIT;
    moec_placement *p = NULL;
    moec_replicas *r = NULL;
    moec_dispatch_map map;

    (void)state;
    assert_int_equal(moec_placement_from_rows(&p, 1, 3, 4, rows, NULL),
                     MOEC_OK);
    o.n_ranks = 2;
    assert_int_equal(moec_replicas_create(&r, p, &o, NULL), MOEC_OK);
    moec_replicas_map(r, 0, MOEC_REPLICA_TABLE, 0, 0, 0, &map);
    assert_int_equal(map.cand_first[3], 3);
    assert_int_equal(map.table[2], 2);
    moec_replicas_destroy(r);
    moec_placement_destroy(p);
}

static void refuse(const moec_placement *p, const moec_replicas_opts *o,
                   moec_status want, const char *fragment)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_replicas *r = NULL;

    assert_int_equal(moec_replicas_create(&r, p, o, &err), want);
    if (!strstr(err.text, fragment))
        fail_msg("'%s' is not in: %s", fragment, err.text);
    assert_null(r);
}

static void refuses_options_that_do_not_fit(void **state)
{
    static const uint32_t twice[] = {0, 0, 0, 0, 0, 0}, far[] = {0, 0, 2, 1};
    const moec_layer_key key = {MOEC_SPACE_MAIN, 4};
    moec_replicas_opts o = MOEC_REPLICAS_OPTS_INIT;
    moec_placement *p = NULL;

    (void)state;
    assert_int_equal(moec_placement_trivial(&p, 1, 2, 2, NULL), MOEC_OK);
    o.n_ranks = 3;
    refuse(p, &o, MOEC_E_MAPPING, "do not divide by 3 ranks");
    o.n_ranks = 4;
    o.rank = 4;
    refuse(p, &o, MOEC_E_ARG, "rank 4 of 4");
    o.rank = 0;
    o.n_nodes = 3;
    refuse(p, &o, MOEC_E_ARG, "3 nodes");
    o.n_nodes = 2;
    o.replica = twice;
    refuse(p, &o, MOEC_E_ARG, "slot 2: replica 0 of expert 0");
    o.replica = far;
    refuse(p, &o, MOEC_E_ARG, "slot 2: replica 2 of expert 0");
    o.all_to_all = 1;
    refuse(p, &o, MOEC_E_ARG, "not both");
    o.all_to_all = 0;
    o.replica = NULL;
    o.keys = &key;
    o.n_decoder = 4;
    refuse(p, &o, MOEC_E_ARG, "layer 4 of 4");
    moec_placement_destroy(p);
}

/* ------------------------------------------------------- maps to refuse */

static moec_rule rule_of(const char *name)
{
    static const struct {
        const char *name;
        moec_rule rule;
    } rules[] = {
        {"slots-divide-ranks", MOEC_RULE_P06},
        {"ranks-exceed-slots", MOEC_RULE_P07},
        {"id-range", MOEC_RULE_P04},
        {"id-type", MOEC_RULE_P04},
        {"expert-without-slot", MOEC_RULE_P05},
        {"layer-count", MOEC_RULE_P02},
        {"slot-count", MOEC_RULE_P03},
        {"warn:replicas-on-one-rank", MOEC_RULE_P09},
    };

    for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
        if (strcmp(rules[i].name, name) == 0)
            return rules[i].rule;
    }
    fail_msg("unknown rule %s", name);
    return MOEC_RULE_NONE;
}

/* Read, then check as plan.c does. */
static moec_rule judge(const json_t *c, moec_error *err)
{
    uint32_t n_layers = vectors_u32(c, "layers"), W = vectors_u32(c, "W");
    uint32_t n_experts = vectors_u32(c, "E");
    char *text = json_dumps(json_object_get(c, "p2l"), JSON_COMPACT);
    moec_layer_key keys[8];
    moec_placement_target target = {.n_experts = n_experts,
                                    .n_layers = n_layers,
                                    .keys = keys,
                                    .n_keys = n_layers,
                                    .n_physical =
                                        n_experts + vectors_u32(c, "R")};
    moec_placement *p = NULL;
    moec_same_rank same = {0};
    moec_rule rule = MOEC_RULE_NONE;

    assert_true(n_layers <= 8);
    for (uint32_t i = 0; i < n_layers; i++)
        keys[i] = (moec_layer_key){MOEC_SPACE_MAIN, i};
    if (moec_placement_parse_for(&p, &target, "p.json", text, strlen(text),
                                 err) != MOEC_OK ||
        moec_placement_fits(p, W, keys, n_layers, err) != MOEC_OK)
        rule = err->rule;
    for (uint32_t i = 0; !rule && i < n_layers; i++) {
        assert_int_equal(moec_placement_same_rank(p, i, W, &same, err),
                         MOEC_OK);
        if (same.n_slots > 0)
            rule = MOEC_RULE_P09;
    }
    moec_placement_destroy(p);
    free(text);
    return rule;
}

static void expect_number(const json_t *c, const char *key, const char *before,
                          const char *text)
{
    const json_t *v = json_object_get(c, key);
    char want[64];

    if (!v)
        return;
    (void)snprintf(want, sizeof(want), "%s %" JSON_INTEGER_FORMAT, before,
                   json_integer_value(v));
    if (!strstr(text, want))
        fail_msg("%s: '%s' is not in: %s", vectors_text(c, "id"), want, text);
}

static void refuses_bad_maps_by_their_rule(void **state)
{
    json_t *root = vectors_load("dispatch.json");
    const json_t *bad = json_object_get(root, "bad");

    (void)state;
    for (size_t i = 0; i < json_array_size(bad); i++) {
        const json_t *c = json_array_get(bad, i);
        moec_error err = MOEC_ERROR_INIT;
        moec_rule want = rule_of(vectors_text(c, "rule")), got = judge(c, &err);

        if (got != want)
            fail_msg("%s: rule %d, expected %d: %s", vectors_text(c, "id"),
                     (int)got, (int)want, err.text);
        expect_number(c, "layer", "layer", err.text);
        expect_number(c, "slot", "slot", err.text);
        expect_number(c, "expert", "expert", err.text);
        expect_number(c, "value", "", err.text);
    }
    assert_int_equal(json_array_size(bad), 19);
    json_decref(root);
}

static void survives_every_failed_allocation(void **state)
{
    moec_replicas_opts o = MOEC_REPLICAS_OPTS_INIT;
    const moec_layer_key key = {MOEC_SPACE_MAIN, 1};
    moec_placement *p = NULL;
    moec_replicas *r = NULL;
    moec_status st = MOEC_E_NOMEM;

    (void)state;
    assert_int_equal(moec_placement_trivial(&p, 1, 6, 6, NULL), MOEC_OK);
    o.n_ranks = 4;
    o.keys = &key;
    o.n_decoder = 2;
    for (uint64_t n = 1; n < 100 && st == MOEC_E_NOMEM; n++) {
        (void)moec_alloc_fail_at(n);
        st = moec_replicas_create(&r, p, &o, NULL);
        (void)moec_alloc_fail_at(0);
    }
    assert_int_equal(st, MOEC_OK);
    moec_replicas_destroy(r);
    moec_replicas_destroy(NULL);
    moec_placement_destroy(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_sglang_bit_for_bit),
        cmocka_unit_test(draws_few_of_many_like_cpython),
        cmocka_unit_test(draws_for_dense_layers),
        cmocka_unit_test(gives_kernels_a_complete_map),
        cmocka_unit_test(leaves_empty_slots_out),
        cmocka_unit_test(refuses_options_that_do_not_fit),
        cmocka_unit_test(refuses_bad_maps_by_their_rule),
        cmocka_unit_test(survives_every_failed_allocation),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
