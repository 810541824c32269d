/* SPDX-License-Identifier: Apache-2.0 */
/*
 * EPLB against what SGLang and DeepSeek's own code gave, and refusals.
 */

#include "vectors.h"

#include <math.h>

#include <moec/mapping.h>

#include "base/base.h"

static const char *const accums[] = {"f64", "f32"};
static const char *const ties[] = {"introsort", "stable"};

/* Loads of a case as [layers][E]; step_loads through our sum. */
static float *case_loads(const json_t *c, uint32_t n_experts, uint32_t *layers)
{
    const json_t *steps = json_object_get(c, "step_loads");
    const json_t *v = steps ? steps : json_object_get(c, "loads");
    size_t n = vectors_flatten(v, NULL);
    double *d = calloc(n, sizeof(*d));
    float *out = calloc(n, sizeof(*out));

    assert_non_null(d);
    assert_non_null(out);
    (void)vectors_flatten(v, d);
    if (steps) {
        size_t n_steps = json_array_size(steps);
        int64_t *counts = calloc(n, sizeof(*counts));

        assert_non_null(counts);
        for (size_t i = 0; i < n; i++)
            counts[i] = (int64_t)d[i];
        n /= n_steps;
        assert_int_equal(moec_eplb_sum_steps(counts, n_steps, n, out, NULL),
                         MOEC_OK);
        free(counts);
    } else {
        for (size_t i = 0; i < n; i++)
            out[i] = (float)d[i];
    }
    free(d);
    *layers = (uint32_t)(n / n_experts);
    return out;
}

static moec_eplb_opts case_opts(const json_t *c)
{
    moec_eplb_opts o = MOEC_EPLB_OPTS_INIT;

    o.n_redundant = vectors_u32(c, "R");
    o.n_ranks = vectors_u32(c, "W");
    o.n_groups = vectors_u32(c, "groups");
    o.n_nodes = vectors_u32(c, "nodes");
    o.policy = strcmp(vectors_text(c, "policy"), "global") == 0
                   ? MOEC_EPLB_GLOBAL
                   : MOEC_EPLB_HIERARCHICAL;
    return o;
}

/* One case with one pair of options: what is wrong, or NULL. */
static const char *run_pair(const json_t *c, const json_t *want,
                            const moec_eplb_opts *o)
{
    uint32_t n_experts = vectors_u32(c, "E"), layers;
    size_t n = 0, n_replica = 0;
    int32_t *rows = vectors_i32(json_object_get(want, "phy2log"), &n);
    int32_t *order = vectors_i32(json_object_get(want, "replica"), &n_replica);
    float *loads = case_loads(c, n_experts, &layers);
    uint32_t *replica = calloc(n, sizeof(*replica));
    moec_placement *p = NULL;
    moec_error err = MOEC_ERROR_INIT;
    const char *wrong = NULL;

    assert_non_null(replica);
    assert_int_equal(n_replica, n);
    if (moec_eplb(&p, replica, o, loads, layers, n_experts, &err) != MOEC_OK)
        fail_msg("%s: %s", vectors_text(c, "id"), err.text);
    assert_int_equal((size_t)layers * moec_placement_n_physical(p), n);
    if (memcmp(moec_placement_row(p, 0), rows, n * sizeof(*rows)) != 0)
        wrong = "phy2log";
    else if (memcmp(replica, order, n * sizeof(*order)) != 0)
        wrong = "replica";
    moec_placement_destroy(p);
    free(replica);
    free(loads);
    free(order);
    free(rows);
    return wrong;
}

static void equals_sglang_and_deepseek(void **state)
{
    json_t *root = vectors_load("eplb.json");
    const json_t *cases = json_object_get(root, "cases");
    size_t n_bad = 0, n_run = 0;

    (void)state;
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *c = json_array_get(cases, i);
        const json_t *outs = json_object_get(c, "out");

        for (size_t k = 0; k < json_array_size(outs); k++) {
            const json_t *want = json_array_get(outs, k);
            const json_t *as = json_object_get(want, "as");

            for (size_t m = 0; m < json_array_size(as); m++) {
                const json_t *pair = json_array_get(as, m);
                const char *accum = json_string_value(json_array_get(pair, 0));
                const char *tie = json_string_value(json_array_get(pair, 1));
                moec_eplb_opts o = case_opts(c);
                const char *wrong;

                o.accum = (moec_eplb_accum)(strcmp(accum, accums[1]) == 0);
                o.ties = (moec_eplb_ties)(strcmp(tie, ties[1]) == 0);
                wrong = run_pair(c, want, &o);
                n_run++;
                if (!wrong)
                    continue;
                n_bad++;
                print_error("%s (%s) [%s, %s]: %s differs\n",
                            vectors_text(c, "id"), vectors_text(c, "kind"),
                            accum, tie, wrong);
            }
        }
    }
    json_decref(root);
    assert_int_equal(n_bad, 0);
    assert_int_equal(n_run, 240);
}

static void chooses_the_policy_by_groups_and_nodes(void **state)
{
    json_t *root = vectors_load("eplb.json");
    const json_t *cases = json_object_get(root, "cases");

    (void)state;
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *c = json_array_get(cases, i);
        const json_t *want = json_array_get(json_object_get(c, "out"), 0);
        moec_eplb_opts o = case_opts(c);
        bool hierarchical = o.n_groups % o.n_nodes == 0;

        /* Some cases force the global policy where groups would do. */
        if (hierarchical != (o.policy == MOEC_EPLB_HIERARCHICAL))
            continue;
        o.policy = MOEC_EPLB_AUTO;
        assert_null(run_pair(c, want, &o));
    }
    json_decref(root);
}

static void refuse(const moec_eplb_opts *o, const float *loads, uint32_t layers,
                   uint32_t n_experts, moec_status want, moec_rule rule,
                   const char *fragment)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_placement *p = NULL;

    assert_int_equal(moec_eplb(&p, NULL, o, loads, layers, n_experts, &err),
                     want);
    assert_int_equal(err.rule, rule);
    if (!strstr(err.text, fragment))
        fail_msg("'%s' is not in: %s", fragment, err.text);
    assert_null(p);
}

static void refuses_loads_that_are_no_counts(void **state)
{
    static const float bad[] = {-1.0f, NAN, INFINITY, -INFINITY, -1e-30f};
    moec_eplb_opts o = MOEC_EPLB_OPTS_INIT;

    (void)state;
    o.n_ranks = 2;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        float loads[] = {1, 2, 3, 4, 5, 6, bad[i], 8};

        refuse(&o, loads, 2, 4, MOEC_E_FORMAT, MOEC_RULE_P12,
               "row 1, expert 2: load");
    }
}

static void takes_negative_zero_for_zero(void **state)
{
    static const float loads[] = {-0.0f, 0.0f, 0.0f, -0.0f};
    static const int32_t want[] = {0, 1, 2, 3}; /* no load: the first pack */
    moec_eplb_opts o = MOEC_EPLB_OPTS_INIT;
    moec_placement *p = NULL;

    (void)state;
    o.n_ranks = 2;
    assert_int_equal(moec_eplb(&p, NULL, &o, loads, 1, 4, NULL), MOEC_OK);
    assert_memory_equal(moec_placement_row(p, 0), want, sizeof(want));
    moec_placement_destroy(p);
}

static void refuses_sizes_that_do_not_divide(void **state)
{
    static const float loads[12] = {0};
    moec_eplb_opts o = MOEC_EPLB_OPTS_INIT;

    (void)state;
    o.n_ranks = 5;
    refuse(&o, loads, 1, 12, MOEC_E_MAPPING, MOEC_RULE_P06, "5 ranks");
    o.n_ranks = 13;
    refuse(&o, loads, 1, 12, MOEC_E_MAPPING, MOEC_RULE_P07, "13 ranks");
    o.n_ranks = 0;
    refuse(&o, loads, 1, 12, MOEC_E_MAPPING, MOEC_RULE_P07, "0 ranks");
    o.n_ranks = 4;
    o.n_groups = 5;
    refuse(&o, loads, 1, 12, MOEC_E_MAPPING, MOEC_RULE_P13, "5 groups");
    o.n_groups = 3;
    o.n_nodes = 3;
    refuse(&o, loads, 1, 12, MOEC_E_MAPPING, MOEC_RULE_P13, "3 nodes");
    o.n_nodes = 2;
    o.policy = MOEC_EPLB_HIERARCHICAL;
    refuse(&o, loads, 1, 12, MOEC_E_MAPPING, MOEC_RULE_P13, "only the global");
    refuse(&o, loads, 0, 0, MOEC_E_MAPPING, MOEC_RULE_P03, "0 experts");
}

static void places_three_groups_on_two_nodes_globally(void **state)
{
    static const float loads[12] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8};
    moec_eplb_opts o = MOEC_EPLB_OPTS_INIT;
    moec_placement *a = NULL, *b = NULL;

    (void)state;
    o.n_ranks = 4;
    o.n_redundant = 4;
    o.n_groups = 3;
    o.n_nodes = 2;
    assert_int_equal(moec_eplb(&a, NULL, &o, loads, 1, 12, NULL), MOEC_OK);
    o.n_groups = o.n_nodes = 1;
    assert_int_equal(moec_eplb(&b, NULL, &o, loads, 1, 12, NULL), MOEC_OK);
    assert_memory_equal(moec_placement_row(a, 0), moec_placement_row(b, 0), 64);
    moec_placement_destroy(b);
    moec_placement_destroy(a);
}

static void rounds_the_sum_of_steps_once(void **state)
{
    /* 2^24 + 1 + 1 is a float, 2^24 + 1 is not: float sums would lose it. */
    static const int64_t counts[] = {16777216, 1, 1, 5, 1, 7};
    static const int64_t too_many[] = {INT64_MAX, 1}, negative[] = {3, -1};
    float out[2];
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    assert_int_equal(moec_eplb_sum_steps(counts, 3, 2, out, NULL), MOEC_OK);
    assert_true(out[0] == 16777218.0f && out[1] == 13.0f);
    assert_int_equal(moec_eplb_sum_steps(too_many, 2, 1, out, &err),
                     MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_P12);
    assert_int_equal(moec_eplb_sum_steps(negative, 2, 1, out, NULL),
                     MOEC_E_FORMAT);
}

static void survives_every_failed_allocation(void **state)
{
    static const float loads[24] = {3, 1, 4, 1, 5};
    moec_eplb_opts o = MOEC_EPLB_OPTS_INIT;
    moec_placement *p = NULL;
    moec_status st = MOEC_E_NOMEM;

    (void)state;
    o.n_ranks = 4;
    o.n_redundant = 4;
    for (uint64_t n = 1; n < 100 && st == MOEC_E_NOMEM; n++) {
        (void)moec_alloc_fail_at(n);
        st = moec_eplb(&p, NULL, &o, loads, 2, 12, NULL);
        (void)moec_alloc_fail_at(0);
    }
    assert_int_equal(st, MOEC_OK);
    moec_placement_destroy(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_sglang_and_deepseek),
        cmocka_unit_test(chooses_the_policy_by_groups_and_nodes),
        cmocka_unit_test(refuses_loads_that_are_no_counts),
        cmocka_unit_test(takes_negative_zero_for_zero),
        cmocka_unit_test(refuses_sizes_that_do_not_divide),
        cmocka_unit_test(places_three_groups_on_two_nodes_globally),
        cmocka_unit_test(rounds_the_sum_of_steps_once),
        cmocka_unit_test(survives_every_failed_allocation),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
