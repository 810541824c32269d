/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "placement.h"

static const moec_layer_key keys3[] = {
    {MOEC_SPACE_MAIN, 3}, {MOEC_SPACE_MAIN, 5}, {MOEC_SPACE_MTP, 0}};

static void assert_refused(moec_status st, const moec_error *err,
                           moec_status want, moec_rule rule,
                           const char *fragment)
{
    assert_int_equal(st, want);
    assert_int_equal(err->status, want);
    assert_int_equal(err->rule, rule);
    if (!strstr(err->text, fragment))
        fail_msg("'%s' is not in: %s", fragment, err->text);
}

static moec_placement *trivial(uint32_t n_layers, uint32_t n_experts,
                               uint32_t n_redundant)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_placement *p = NULL;

    if (moec_placement_trivial(&p, n_layers, n_experts, n_redundant, &err))
        fail_msg("%s", err.text);
    return p;
}

static moec_placement *rows(uint32_t n_layers, uint32_t n_experts,
                            uint32_t n_physical, const int32_t *p2l)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_placement *p = NULL;

    if (moec_placement_from_rows(&p, n_layers, n_experts, n_physical, p2l,
                                 &err))
        fail_msg("%s", err.text);
    return p;
}

static void trivial_puts_redundant_slots_last(void **state)
{
    moec_placement *p = trivial(3, 6, 8);

    (void)state;
    assert_int_equal(moec_placement_n_layers(p), 3);
    assert_int_equal(moec_placement_n_experts(p), 6);
    assert_int_equal(moec_placement_n_physical(p), 14);
    assert_true(moec_placement_is_trivial(p));
    for (uint32_t layer = 0; layer < 3; layer++) {
        static const int32_t want[] = {0, 1, 2, 3, 4, 5, 0,
                                       1, 2, 3, 4, 5, 0, 1};

        assert_memory_equal(moec_placement_row(p, layer), want, sizeof(want));
    }
    moec_placement_destroy(p);
}

static void trivial_refuses_sizes_out_of_range(void **state)
{
    moec_placement *p = NULL;
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    assert_refused(moec_placement_trivial(&p, 1, 0, 0, &err), &err, MOEC_E_ARG,
                   MOEC_RULE_NONE, "no experts");
    err = (moec_error){0};
    assert_refused(moec_placement_trivial(&p, 1, 8, UINT32_MAX, &err), &err,
                   MOEC_E_MAPPING, MOEC_RULE_P03, "4294967303 slots");
    assert_null(p);
}

static void rows_are_kept_and_copied(void **state)
{
    int32_t p2l[] = {2, 0, 1, 2, 0, 1, 2, -1};
    moec_placement *p = rows(2, 3, 4, p2l);
    static const int32_t want1[] = {0, 1, 2, -1};

    (void)state;
    p2l[0] = 77;
    assert_int_equal(moec_placement_row(p, 0)[0], 2);
    assert_int_equal(moec_placement_row(p, 0)[3], 2);
    assert_memory_equal(moec_placement_row(p, 1), want1, sizeof(want1));
    assert_false(moec_placement_is_trivial(p));
    moec_placement_destroy(p);
}

static void trivial_rows_are_recognised(void **state)
{
    static const int32_t p2l[] = {0, 1, 2, 0, 0, 1, 2, 0};
    static const int32_t late[] = {0, 1, 2, 0, 0, 1, 2, 1};
    moec_placement *p = rows(2, 3, 4, p2l);

    (void)state;
    assert_true(moec_placement_is_trivial(p));
    moec_placement_destroy(p);
    p = rows(2, 3, 4, late);
    assert_false(moec_placement_is_trivial(p));
    moec_placement_destroy(p);
}

static void rows_refuse_ids_out_of_range(void **state)
{
    static const int32_t high[] = {0, 1, 2, 0, 1, 3};
    static const int32_t low[] = {0, 1, 2, 0, -2, 2};
    moec_placement *p = NULL;
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    assert_refused(moec_placement_from_rows(&p, 2, 3, 3, high, &err), &err,
                   MOEC_E_FORMAT, MOEC_RULE_P04,
                   "row 1, slot 2: id 3 is not in [0, 3)");
    err = (moec_error){0};
    assert_refused(moec_placement_from_rows(&p, 2, 3, 3, low, &err), &err,
                   MOEC_E_FORMAT, MOEC_RULE_P04,
                   "row 1, slot 1: id -2 is not in [0, 3)");
    assert_null(p);
}

static void rows_refuse_an_expert_without_a_slot(void **state)
{
    static const int32_t p2l[] = {0, 1, 2, 3, 0, 2, 2, 0};
    moec_placement *p = NULL;
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    assert_refused(moec_placement_from_rows(&p, 2, 4, 4, p2l, &err), &err,
                   MOEC_E_MAPPING, MOEC_RULE_P05,
                   "row 1: logical expert 1 has none of the 4 slots (2 of 4 "
                   "experts are without one)");
    err = (moec_error){0};
    assert_refused(moec_placement_make(&p, 4, 4, p2l, keys3 + 1, 2, &err), &err,
                   MOEC_E_MAPPING, MOEC_RULE_P05,
                   "mtp layer 0: logical expert 1 ");
    err = (moec_error){0};
    assert_refused(moec_placement_make(&p, 4, 4, p2l, keys3, 2, &err), &err,
                   MOEC_E_MAPPING, MOEC_RULE_P05,
                   "] layer 5: logical expert 1 ");
    assert_null(p);
}

static void rows_refuse_fewer_slots_than_experts(void **state)
{
    static const int32_t p2l[] = {0, 1};
    moec_placement *p = NULL;
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    assert_refused(moec_placement_from_rows(&p, 1, 3, 2, p2l, &err), &err,
                   MOEC_E_MAPPING, MOEC_RULE_P03, "2 slots cannot hold 3");
}

static void digest_is_of_the_decimal_text(void **state)
{
    static const int32_t p2l[] = {2, 0, 1, -1, 0, 1, 2, 2};
    static const char text[] = "3 4\n2 0 1 -1\n0 1 2 2\n";
    moec_placement *p = rows(2, 3, 4, p2l);
    moec_sha256 want;
    uint8_t got[32];

    (void)state;
    assert_int_equal(moec_sha256_of(text, strlen(text), &want, NULL), MOEC_OK);
    assert_int_equal(moec_placement_digest(p, got, NULL), MOEC_OK);
    assert_memory_equal(got, want.b, 32);
    moec_placement_destroy(p);
}

static void digest_writes_large_ids_in_full(void **state)
{
    moec_placement *p = trivial(1, 100001, 0);
    moec_buf text = {0};
    moec_sha256 want;
    uint8_t got[32];

    (void)state;
    moec_buf_puts(&text, "100001 100001\n0");
    for (int i = 1; i <= 100000; i++)
        moec_buf_printf(&text, " %d", i);
    moec_buf_puts(&text, "\n");
    assert_false(text.oom);
    assert_int_equal(moec_sha256_of(text.data, text.len, &want, NULL), MOEC_OK);
    assert_int_equal(moec_placement_digest(p, got, NULL), MOEC_OK);
    assert_memory_equal(got, want.b, 32);
    moec_buf_fini(&text);
    moec_placement_destroy(p);
}

static void check_names_the_smallest_redundancy_that_fits(void **state)
{
    moec_placement *p = trivial(3, 10, 0);
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    assert_refused(moec_placement_fits(p, 4, keys3, 3, &err), &err,
                   MOEC_E_MAPPING, MOEC_RULE_P06,
                   "10 slots (10 experts and R = 0) do not divide by 4 ranks: "
                   "the smallest R that fits is 2");
    assert_null(strstr(err.text, "next one"));
    assert_int_equal(moec_placement_fits(p, 5, keys3, 3, NULL), MOEC_OK);
    moec_placement_destroy(p);

    p = trivial(3, 256, 9);
    err = (moec_error){0};
    assert_refused(moec_placement_fits(p, 8, keys3, 3, &err), &err,
                   MOEC_E_MAPPING, MOEC_RULE_P06,
                   "the smallest R that fits is 0, the next one above 9 is 16");
    moec_placement_destroy(p);
}

/* The R that is named fits, and no smaller one does. */
static void named_redundancy_is_the_smallest(void **state)
{
    (void)state;
    for (uint32_t e = 1; e < 20; e++) {
        for (uint32_t w = 2; w < 24; w++) {
            moec_placement *p = trivial(1, e, 0);
            moec_error err = MOEC_ERROR_INIT;
            char want[64];
            uint32_t r = 0;

            while ((e + r) % w != 0)
                r++;
            snprintf(want, sizeof(want), "smallest R that fits is %u", r);
            if (moec_placement_fits(p, w, keys3, 1, &err) == MOEC_OK)
                assert_int_equal(r, 0);
            else if (!strstr(err.text, want))
                fail_msg("E %u, W %u: '%s' is not in: %s", e, w, want,
                         err.text);
            moec_placement_destroy(p);
        }
    }
}

static void check_refuses_no_ranks_and_too_many(void **state)
{
    moec_placement *p = trivial(3, 6, 2);
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    assert_refused(moec_placement_fits(p, 0, keys3, 3, &err), &err,
                   MOEC_E_MAPPING, MOEC_RULE_P07, "0 ranks");
    err = (moec_error){0};
    assert_refused(moec_placement_fits(p, 16, keys3, 3, &err), &err,
                   MOEC_E_MAPPING, MOEC_RULE_P07,
                   "16 ranks for 8 slots (6 experts): the smallest R that fits "
                   "is 10");
    assert_int_equal(moec_placement_fits(p, 8, keys3, 3, NULL), MOEC_OK);
    moec_placement_destroy(p);
}

static void check_wants_a_row_for_each_layer(void **state)
{
    moec_placement *p = trivial(2, 6, 2);
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    assert_refused(moec_placement_fits(p, 4, keys3, 3, &err), &err,
                   MOEC_E_MAPPING, MOEC_RULE_P02, "2 rows for 3 MoE layers");
    moec_placement_destroy(p);
}

static void padded_rows_end_in_empty_slots(void **state)
{
    static const int32_t p2l[] = {4, 3, 2, 1, 0, 0, 1, 2, 3, 4};
    static const int32_t want0[] = {4, 3, 2, 1, 0, -1, -1, -1};
    static const int32_t want1[] = {0, 1, 2, 3, 4, -1, -1, -1};
    moec_placement *p = rows(2, 5, 5, p2l), *q = NULL;

    (void)state;
    assert_int_equal(moec_placement_padded(&q, p, 4, NULL), MOEC_OK);
    moec_placement_destroy(p);
    assert_int_equal(moec_placement_n_physical(q), 8);
    assert_memory_equal(moec_placement_row(q, 0), want0, sizeof(want0));
    assert_memory_equal(moec_placement_row(q, 1), want1, sizeof(want1));
    assert_false(moec_placement_is_trivial(q));
    assert_int_equal(moec_placement_fits(q, 4, keys3, 2, NULL), MOEC_OK);
    moec_placement_destroy(q);
}

static void padding_that_is_not_needed_copies(void **state)
{
    moec_placement *p = trivial(2, 6, 2), *q = NULL;
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    assert_int_equal(moec_placement_padded(&q, p, 4, NULL), MOEC_OK);
    assert_int_equal(moec_placement_n_physical(q), 8);
    assert_true(moec_placement_is_trivial(q));
    assert_memory_equal(moec_placement_row(q, 1), moec_placement_row(p, 1),
                        8 * sizeof(int32_t));
    moec_placement_destroy(q);
    q = NULL;
    assert_refused(moec_placement_padded(&q, p, 9, &err), &err, MOEC_E_MAPPING,
                   MOEC_RULE_P07, "9 ranks for 8 slots");
    assert_null(q);
    moec_placement_destroy(p);
}

static void same_rank_finds_wasted_replicas(void **state)
{
    /* 4 ranks of 3: rank 1 has 0 twice, rank 3 has 4 three times. */
    static const int32_t p2l[] = {0, 1, 2, 0, 3, 0, 1, 5, -1, 4, 4, 4};
    moec_placement *p = rows(1, 6, 12, p2l);
    moec_same_rank r;

    (void)state;
    assert_int_equal(moec_placement_same_rank(p, 0, 4, &r, NULL), MOEC_OK);
    assert_int_equal(r.n_slots, 3);
    assert_int_equal(r.rank, 1);
    assert_int_equal(r.expert.v, 0);
    assert_int_equal(r.first.v, 3);
    assert_int_equal(r.second.v, 5);
    moec_placement_destroy(p);
}

static void same_rank_accepts_replicas_on_other_ranks(void **state)
{
    static const int32_t p2l[] = {0, 1, 1, 0, -1, -1};
    moec_placement *p = rows(1, 2, 6, p2l);
    moec_same_rank r;

    (void)state;
    /* 3 ranks of 2: the two empty slots of one rank are no replicas. */
    assert_int_equal(moec_placement_same_rank(p, 0, 3, &r, NULL), MOEC_OK);
    assert_int_equal(r.n_slots, 0);
    assert_int_equal(moec_placement_same_rank(p, 0, 1, &r, NULL), MOEC_OK);
    assert_int_equal(r.n_slots, 2);
    moec_placement_destroy(p);
}

/* Every allocation of making, padding, digesting and checking fails once. */
static void survives_failing_allocations(void **state)
{
    static const int32_t p2l[] = {0, 1, 2, 0, 0, 1, 2, 1};
    moec_status st = MOEC_E_NOMEM;
    int n;

    (void)state;
    for (n = 1; st != MOEC_OK && n < 100; n++) {
        moec_placement *p = NULL, *q = NULL;
        moec_same_rank r;
        uint8_t digest[32];

        moec_alloc_fail_at((uint64_t)n);
        st = moec_placement_from_rows(&p, 2, 3, 4, p2l, NULL);
        if (st == MOEC_OK)
            st = moec_placement_padded(&q, p, 3, NULL);
        if (st == MOEC_OK)
            st = moec_placement_digest(q, digest, NULL);
        if (st == MOEC_OK)
            st = moec_placement_same_rank(q, 1, 3, &r, NULL);
        if (st == MOEC_OK)
            st = moec_placement_fits(q, 3, keys3, 2, NULL);
        moec_alloc_fail_at(0);
        if (st != MOEC_OK)
            assert_int_equal(st, MOEC_E_NOMEM);
        moec_placement_destroy(p);
        moec_placement_destroy(q);
    }
    assert_int_equal(st, MOEC_OK);
    assert_true(n > 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(trivial_puts_redundant_slots_last),
        cmocka_unit_test(trivial_refuses_sizes_out_of_range),
        cmocka_unit_test(rows_are_kept_and_copied),
        cmocka_unit_test(trivial_rows_are_recognised),
        cmocka_unit_test(rows_refuse_ids_out_of_range),
        cmocka_unit_test(rows_refuse_an_expert_without_a_slot),
        cmocka_unit_test(rows_refuse_fewer_slots_than_experts),
        cmocka_unit_test(digest_is_of_the_decimal_text),
        cmocka_unit_test(digest_writes_large_ids_in_full),
        cmocka_unit_test(check_names_the_smallest_redundancy_that_fits),
        cmocka_unit_test(named_redundancy_is_the_smallest),
        cmocka_unit_test(check_refuses_no_ranks_and_too_many),
        cmocka_unit_test(check_wants_a_row_for_each_layer),
        cmocka_unit_test(padded_rows_end_in_empty_slots),
        cmocka_unit_test(padding_that_is_not_needed_copies),
        cmocka_unit_test(same_rank_finds_wasted_replicas),
        cmocka_unit_test(same_rank_accepts_replicas_on_other_ranks),
        cmocka_unit_test(survives_failing_allocations),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
