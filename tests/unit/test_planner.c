/* SPDX-License-Identifier: Apache-2.0 */

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "placement.h"

static uint64_t seed = 1;

static uint32_t draw(uint32_t n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((seed >> 33) % n);
}

/* A shape of a job and skewed loads for it. */
typedef struct job {
    moec_planner_opts o;
    uint32_t n_layers, n_experts, n_physical;
    float *loads;
} job;

static job make_job(uint32_t n_layers, uint32_t n_experts, uint32_t redundant,
                    uint32_t ranks, uint32_t nodes, uint32_t groups)
{
    job j = {.o = MOEC_PLANNER_OPTS_INIT,
             .n_layers = n_layers,
             .n_experts = n_experts,
             .n_physical = n_experts + redundant};

    j.o.eplb.n_redundant = redundant;
    j.o.eplb.n_ranks = ranks;
    j.o.eplb.n_nodes = nodes;
    j.o.eplb.n_groups = groups;
    j.loads = calloc((size_t)n_layers * n_experts, sizeof(*j.loads));
    assert_non_null(j.loads);
    for (uint32_t i = 0; i < n_layers * n_experts; i++)
        j.loads[i] = (float)(draw(1000) * (draw(8) == 0 ? 20 : 1));
    return j;
}

static moec_placement *plan(const job *j)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_placement *p = NULL;

    if (moec_planner(&p, &j->o, j->loads, j->n_layers, j->n_experts, &err) !=
        MOEC_OK)
        fail_msg("%s", err.text);
    assert_int_equal(moec_placement_n_physical(p), j->n_physical);
    return p;
}

static moec_placement *eplb(const job *j)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_placement *p = NULL;

    if (moec_eplb(&p, NULL, &j->o.eplb, j->loads, j->n_layers, j->n_experts,
                  &err) != MOEC_OK)
        fail_msg("%s", err.text);
    return p;
}

static double ratio(const job *j, const moec_placement *p, uint32_t layer)
{
    moec_balance b;

    assert_int_equal(moec_placement_balance(
                         p, layer, j->o.eplb.n_ranks,
                         j->loads + (size_t)layer * j->n_experts, &b, NULL),
                     MOEC_OK);
    return b.ratio;
}

/* Copies of an expert beside another one on the same rank. */
static uint32_t doubled(const job *j, const moec_placement *p)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < j->n_layers; i++) {
        moec_same_rank same;

        assert_int_equal(
            moec_placement_same_rank(p, i, j->o.eplb.n_ranks, &same, NULL),
            MOEC_OK);
        n += same.n_slots;
    }
    return n;
}

static const uint32_t shapes[][5] = {
    /* E, R, W, nodes, groups */
    {64, 8, 8, 1, 1},  {64, 8, 8, 2, 8},    {60, 4, 16, 2, 3},
    {16, 0, 4, 1, 1},  {16, 16, 32, 4, 4},  {8, 24, 4, 1, 1},
    {33, 3, 6, 3, 11}, {256, 32, 32, 4, 8}, {5, 1, 1, 1, 1},
};
enum { N_SHAPES = sizeof(shapes) / sizeof(shapes[0]) };

static job shape(size_t i, uint32_t n_layers)
{
    const uint32_t *s = shapes[i];

    return make_job(n_layers, s[0], s[1], s[2], s[3], s[4]);
}

static void is_never_worse_than_eplb(void **state)
{
    uint32_t better = 0, n = 0;
    (void)state;

    for (size_t i = 0; i < N_SHAPES; i++) {
        job j = shape(i, 12);
        moec_placement *a = eplb(&j), *b = plan(&j);

        for (uint32_t k = 0; k < j.n_layers; k++, n++) {
            double before = ratio(&j, a, k), after = ratio(&j, b, k);

            if (after > before * (1 + 1e-12))
                fail_msg("shape %zu, layer %u: %.17g after %.17g", i, k, after,
                         before);
            better += after < before * (1 - 1e-9);
        }
        assert_true(doubled(&j, b) <= doubled(&j, a));
        moec_placement_destroy(a);
        moec_placement_destroy(b);
        free(j.loads);
    }
    assert_true(2 * better >= n);
}

static void keeps_groups_on_their_nodes(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_SHAPES; i++) {
        job j = shape(i, 4);
        uint32_t nodes = j.o.eplb.n_nodes;
        moec_placement *a = eplb(&j), *b = plan(&j);
        int32_t home[256];

        for (uint32_t k = 0;
             nodes > 1 && j.o.eplb.n_groups % nodes == 0 && k < j.n_layers;
             k++) {
            for (uint32_t p = 0; p < j.n_physical; p++)
                home[moec_placement_row(a, k)[p]] =
                    (int32_t)(p / (j.n_physical / nodes));
            for (uint32_t p = 0; p < j.n_physical; p++)
                assert_int_equal(home[moec_placement_row(b, k)[p]],
                                 p / (j.n_physical / nodes));
        }
        moec_placement_destroy(a);
        moec_placement_destroy(b);
        free(j.loads);
    }
}

/* Two hot experts, two nodes, no groups: each node gets a copy of both. */
static void spreads_copies_over_nodes(void **state)
{
    job j = make_job(1, 6, 2, 4, 2, 1);
    static const float loads[] = {100, 100, 10, 10, 10, 10};
    moec_placement *p;
    (void)state;

    memcpy(j.loads, loads, sizeof(loads));
    j.o.eplb.policy = MOEC_EPLB_GLOBAL;
    p = plan(&j);
    for (int32_t e = 0; e < 2; e++) {
        uint32_t on_node[2] = {0};

        for (uint32_t i = 0; i < 8; i++)
            on_node[i / 4] += moec_placement_row(p, 0)[i] == e;
        assert_int_equal(on_node[0], 1);
        assert_int_equal(on_node[1], 1);
    }
    moec_placement_destroy(p);
    free(j.loads);
}

/* One expert has nearly all load: EPLB gives each rank three copies of it, and
 * taking one of them away would make the other ranks heavier. */
static void parts_copies_that_eplb_doubles(void **state)
{
    static const float loads[] = {1000, 1, 1, 1};
    job j = make_job(1, 4, 8, 3, 1, 1);
    moec_placement *a, *b;
    (void)state;

    memcpy(j.loads, loads, sizeof(loads));
    a = eplb(&j);
    b = plan(&j);
    assert_int_equal(doubled(&j, a), 6);
    assert_int_equal(doubled(&j, b), 0);
    assert_true(ratio(&j, b, 0) <= ratio(&j, a, 0));
    moec_placement_destroy(a);
    moec_placement_destroy(b);
    free(j.loads);
}

static uint64_t all_moves(const job *j, const moec_placement *a,
                          const moec_placement *b)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < j->n_layers; i++)
        n += moec_placement_moves(a, b, i);
    return n;
}

static void stays_where_nothing_changed(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_SHAPES; i++) {
        job j = shape(i, 6);
        moec_placement *a = plan(&j), *b;

        j.o.from = a;
        b = plan(&j);
        assert_int_equal(all_moves(&j, a, b), 0);
        moec_placement_destroy(a);
        moec_placement_destroy(b);
        free(j.loads);
    }
}

/* The loads drift: from the old placement fewer slots change than without. */
static void changes_few_slots_from_a_placement(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_SHAPES; i++) {
        job j = shape(i, 8);
        moec_placement *old = plan(&j), *fresh, *near, *base;

        for (uint32_t k = 0; k < j.n_layers * j.n_experts; k++)
            j.loads[k] *= 0.9F + (float)draw(200) / 1000;
        base = eplb(&j);
        fresh = plan(&j);
        j.o.from = old;
        near = plan(&j);
        assert_true(all_moves(&j, old, near) <= all_moves(&j, old, fresh));
        for (uint32_t k = 0; k < j.n_layers; k++)
            assert_true(ratio(&j, near, k) <= ratio(&j, base, k) * (1 + 1e-12));
        moec_placement_destroy(old);
        moec_placement_destroy(base);
        moec_placement_destroy(fresh);
        moec_placement_destroy(near);
        free(j.loads);
    }
}

static void keeps_to_the_budget_of_moves(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_SHAPES; i++) {
        job j = shape(i, 5);
        moec_placement *old = NULL, *p;
        double last = INFINITY;

        assert_int_equal(moec_placement_trivial(&old, j.n_layers, j.n_experts,
                                                j.n_physical - j.n_experts,
                                                NULL),
                         MOEC_OK);
        j.o.from = old;
        for (uint64_t budget = 0; budget < 65; budget += 16) {
            double sum = 0;

            j.o.max_moves = budget;
            p = plan(&j);
            assert_true(all_moves(&j, old, p) <= budget);
            for (uint32_t k = 0; k < j.n_layers; k++) {
                assert_true(ratio(&j, p, k) <= ratio(&j, old, k) * (1 + 1e-12));
                sum = fmax(sum, ratio(&j, p, k));
            }
            assert_true(sum <= last * (1 + 1e-12));
            last = sum;
            moec_placement_destroy(p);
        }
        moec_placement_destroy(old);
        free(j.loads);
    }
}

static void refuses_another_placement_to_start_from(void **state)
{
    job j = make_job(2, 8, 0, 2, 1, 1);
    moec_error err = MOEC_ERROR_INIT;
    moec_placement *from = NULL, *p = NULL;
    static const int32_t rows[] = {0, 1, 2, 3, 4, 5, 6, 7, -1, -1};
    (void)state;

    assert_int_equal(moec_placement_trivial(&from, 2, 8, 2, NULL), MOEC_OK);
    j.o.from = from;
    assert_int_equal(moec_planner(&p, &j.o, j.loads, 2, 8, &err),
                     MOEC_E_MAPPING);
    assert_int_equal(err.rule, MOEC_RULE_P03);
    moec_placement_destroy(from);
    assert_int_equal(moec_placement_from_rows(&from, 1, 8, 10, rows, NULL),
                     MOEC_OK);
    j.o.from = from;
    j.o.eplb.n_redundant = 2;
    err = (moec_error)MOEC_ERROR_INIT;
    assert_int_equal(moec_planner(&p, &j.o, j.loads, 1, 8, &err),
                     MOEC_E_MAPPING);
    assert_int_equal(err.rule, MOEC_RULE_P04);
    j.loads[3] = -1;
    err = (moec_error)MOEC_ERROR_INIT;
    assert_int_equal(moec_planner(&p, &j.o, j.loads, 1, 8, &err),
                     MOEC_E_FORMAT);
    assert_null(p);
    moec_placement_destroy(from);
    free(j.loads);
}

static void every_allocation_may_fail(void **state)
{
    job j = make_job(2, 16, 4, 4, 2, 1);
    moec_placement *from = plan(&j), *p = NULL;
    moec_status st = MOEC_E_NOMEM;
    (void)state;

    j.o.from = from;
    j.o.max_moves = 3;
    for (uint64_t n = 1; st != MOEC_OK; n++) {
        moec_alloc_fail_at(n);
        st = moec_planner(&p, &j.o, j.loads, 2, 16, NULL);
        moec_alloc_fail_at(0);
        assert_true(st == MOEC_OK || st == MOEC_E_NOMEM);
        assert_true(n < 200);
    }
    moec_placement_destroy(p);
    moec_placement_destroy(from);
    free(j.loads);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(is_never_worse_than_eplb),
        cmocka_unit_test(keeps_groups_on_their_nodes),
        cmocka_unit_test(spreads_copies_over_nodes),
        cmocka_unit_test(parts_copies_that_eplb_doubles),
        cmocka_unit_test(stays_where_nothing_changed),
        cmocka_unit_test(changes_few_slots_from_a_placement),
        cmocka_unit_test(keeps_to_the_budget_of_moves),
        cmocka_unit_test(refuses_another_placement_to_start_from),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
