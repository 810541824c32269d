/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The four id spaces of types.h against the placement contract, written out
 * anew here: twice as formulas, once as a walk over the slots in the order in
 * which they are numbered.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <moec/types.h>

#define N_TOPOLOGIES 20000
#define SLOTS_MAX    4096

static uint64_t rng_state;

/* splitmix64: a fixed sequence, so that a failure can be found again. */
static uint32_t below(uint32_t n)
{
    uint64_t z = rng_state += UINT64_C(0x9E3779B97F4A7C15);

    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return (uint32_t)((z ^ (z >> 31)) % n);
}

/* E, R, W and S of one job; R is the smallest that fits plus whole rows. */
typedef struct job {
    uint32_t e, r, w, s;
} job;

static job random_job(void)
{
    bool large = below(100) == 0; /* as large as real jobs; rare: speed */
    job j = {.e = 1 + below(large ? 1024 : 48),
             .w = 1 + below(large ? 320 : 16),
             .s = below(5)};

    j.r = (j.w - j.e % j.w) % j.w + below(3) * j.w;
    return j;
}

static moec_topology topology_of(job j, uint32_t global)
{
    moec_topology t = {.n_physical = j.e + j.r,
                       .n_ranks = j.w,
                       .n_local = (j.e + j.r) / j.w,
                       .n_shared_slots = j.s,
                       .shared_global = global};
    return t;
}

static void slots_follow_the_formulas(void **state)
{
    (void)state;
    rng_state = 1;
    for (int i = 0; i < N_TOPOLOGIES; i++) {
        job j = random_job();
        moec_topology t = topology_of(j, 0);
        uint32_t P = j.e + j.r, L = P / j.w;

        assert_int_equal(P % j.w, 0);
        for (uint32_t p = 0; p < P; p++) {
            uint32_t q = moec_physical_slot(t, (moec_physical_id){p}).v;

            assert_int_equal(q, p + (p / L) * j.s);
            assert_int_equal(q / (L + j.s), p / L);
            assert_int_equal(q % (L + j.s), p % L);
            assert_int_equal(moec_physical_rank(t, (moec_physical_id){p}),
                             p / L);
        }
        for (uint32_t r = 0; r < j.w; r++) {
            for (uint32_t s = 0; s < j.s; s++) {
                uint32_t q = moec_shared_slot(t, r, s).v;

                assert_int_equal(q, r * (L + j.s) + L + s);
                assert_int_equal(q / (L + j.s), r);
                assert_int_equal(q % (L + j.s), L + s);
            }
        }
    }
}

/* Rank by rank, row by row, shared rows last: the q-th step is slot q. */
static void slots_are_the_rows_in_order(void **state)
{
    (void)state;
    rng_state = 2;
    for (int i = 0; i < N_TOPOLOGIES; i++) {
        job j = random_job();
        moec_topology t = topology_of(j, 0);
        uint32_t L = (j.e + j.r) / j.w, q = 0, p = 0;

        for (uint32_t r = 0; r < j.w; r++) {
            for (uint32_t row = 0; row < L; row++, p++, q++) {
                moec_physical_id id = {p};

                assert_int_equal(moec_physical_slot(t, id).v, q);
                assert_int_equal(moec_physical_rank(t, id), r);
                assert_int_equal(moec_physical_local(t, id).v, row);
            }
            for (uint32_t s = 0; s < j.s; s++, q++)
                assert_int_equal(moec_shared_slot(t, r, s).v, q);
        }
        assert_int_equal(p, j.e + j.r);
        assert_int_equal(q, j.e + j.r + j.s * j.w);
    }
}

static void physical_and_local_round_trip(void **state)
{
    (void)state;
    rng_state = 3;
    for (int i = 0; i < N_TOPOLOGIES; i++) {
        job j = random_job();
        moec_topology t = topology_of(j, below(2));

        for (uint32_t p = 0; p < t.n_physical; p++) {
            moec_physical_id id = {p};
            uint32_t rank = moec_physical_rank(t, id);
            moec_local_row row = moec_physical_local(t, id);

            assert_true(rank < j.w);
            assert_true(row.v < t.n_local);
            assert_int_equal(moec_local_physical(t, rank, row).v, p);
        }
    }
}

/* Every slot is hit, none twice, none outside [0, P + S*W) (per rank) or
 * [0, P + S) (global, where all ranks name one shared slot alike). */
static void slots_are_disjoint_and_cover(void **state)
{
    static uint8_t hits[SLOTS_MAX];

    (void)state;
    rng_state = 4;
    for (int i = 0; i < N_TOPOLOGIES; i++) {
        job j = random_job();
        uint32_t global = below(2);
        moec_topology t = topology_of(j, global);
        uint32_t n = t.n_physical + j.s * (global ? 1 : j.w);

        assert_true(n <= SLOTS_MAX);
        memset(hits, 0, n);
        for (uint32_t p = 0; p < t.n_physical; p++) {
            uint32_t q = moec_physical_slot(t, (moec_physical_id){p}).v;

            assert_true(q < n);
            hits[q]++;
        }
        for (uint32_t r = 0; r < (global ? 1 : j.w); r++) {
            for (uint32_t s = 0; s < j.s; s++) {
                uint32_t q = moec_shared_slot(t, r, s).v;

                assert_true(q < n);
                hits[q]++;
            }
        }
        for (uint32_t q = 0; q < n; q++)
            assert_int_equal(hits[q], 1);
    }
}

static void global_shared_slots_follow_all_routed_ones(void **state)
{
    (void)state;
    rng_state = 5;
    for (int i = 0; i < N_TOPOLOGIES; i++) {
        job j = random_job();
        moec_topology t = topology_of(j, 1);

        for (uint32_t p = 0; p < t.n_physical; p++)
            assert_int_equal(moec_physical_slot(t, (moec_physical_id){p}).v, p);
        for (uint32_t r = 0; r < j.w; r++) {
            for (uint32_t s = 0; s < j.s; s++)
                assert_int_equal(moec_shared_slot(t, r, s).v, j.e + j.r + s);
        }
    }
}

/* SGLang PR 25367, run with the public code: rank 3 of 8, 256 experts and 8
 * redundant ones. */
static void known_answer_of_a_redundant_layout(void **state)
{
    moec_topology t = topology_of((job){256, 8, 8, 1}, 0);

    (void)state;
    assert_int_equal(moec_physical_slot(t, (moec_physical_id){0}).v, 0);
    assert_int_equal(moec_physical_slot(t, (moec_physical_id){33}).v, 34);
    assert_int_equal(moec_physical_slot(t, (moec_physical_id){263}).v, 270);
    assert_int_equal(moec_shared_slot(t, 3, 0).v, 135);
}

/* The historic defect: E where P is needed gives other slots, so that a check
 * that compares slots sees it. Without redundancy it gives the same ones. */
static void experts_for_slots_gives_the_historic_wrong_answer(void **state)
{
    moec_topology wrong = topology_of((job){256, 0, 8, 1}, 0);

    (void)state;
    assert_int_equal(moec_physical_slot(wrong, (moec_physical_id){0}).v, 0);
    assert_int_equal(moec_physical_slot(wrong, (moec_physical_id){33}).v, 34);
    assert_int_equal(moec_physical_slot(wrong, (moec_physical_id){263}).v, 271);
    assert_int_equal(moec_shared_slot(wrong, 3, 0).v, 131);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slots_follow_the_formulas),
        cmocka_unit_test(slots_are_the_rows_in_order),
        cmocka_unit_test(physical_and_local_round_trip),
        cmocka_unit_test(slots_are_disjoint_and_cover),
        cmocka_unit_test(global_shared_slots_follow_all_routed_ones),
        cmocka_unit_test(known_answer_of_a_redundant_layout),
        cmocka_unit_test(experts_for_slots_gives_the_historic_wrong_answer),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
