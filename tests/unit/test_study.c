/* SPDX-License-Identifier: Apache-2.0
 *
 * Load studies against the formulas of placement.md, sections 2 and 5, written
 * down once more, a token at a time. */

#include "route_recording.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>

#include <moec/study.h>

#define E 12u
#define K 3u
#define P 15u
#define N 3u

/* 3 redundant experts; expert 2 has both copies on rank 0 of 5. */
static const int32_t p2l[N][P] = {
    {0, 2, 2, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0, 4},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0, 0, 0},
    {11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 1, 5, 9},
};

typedef struct brute {
    uint32_t W, L, S, batch;
    uint32_t n_tokens;
    moec_study_replica replica;
    moec_waterfill_mode mode;
    const moec_routes *routes;
    double slots[N][P + 3 * 15];
    double step_max[N], step_mean[N];
    uint64_t moved;
} brute;

/* Physical slot of an expert, from rank r. Nodes are not known. */
static uint32_t choose(const brute *b, uint32_t l, int32_t e, uint32_t r,
                       uint32_t row)
{
    uint32_t cand[P], n = 0;

    for (uint32_t p = 0; p < P; p++)
        if (p2l[l][p] == e)
            cand[n++] = p;
    if (b->replica == MOEC_STUDY_ROW)
        return cand[row % n];
    if (b->replica == MOEC_STUDY_NEAREST)
        for (uint32_t i = 0; i < n; i++)
            if (cand[i] / b->L == r)
                return cand[i];
    return cand[(row + r + rr_keys[l].number) % n];
}

/* Section 5, for the token `ids` of rank `home`. */
static uint32_t fill(const brute *b, const uint64_t *load, uint64_t target,
                     uint64_t rows, uint32_t row, uint32_t home,
                     const uint32_t *visited, uint32_t n_visited)
{
    uint32_t order[64], n = 0, best = home;
    uint64_t wt[64] = {0}, tw = 0, max = 0, x;
    bool all;

    for (uint32_t r = 0; r < b->W; r++)
        max = load[r] > max ? load[r] : max;
    if (b->mode == MOEC_WATERFILL_OFF || rows < 64)
        return home;
    all = b->mode == MOEC_WATERFILL_STATIC || max <= target;
    order[n++] = home;
    for (uint32_t i = 0; i < (all ? b->W : n_visited); i++)
        order[n++] = all ? i : visited[i];
    for (uint32_t i = 0; i < n; i++) {
        uint64_t room = target > load[order[i]] ? target - load[order[i]] : 0;

        if (load[order[i]] * 11 < load[best] * 10)
            best = order[i];
        wt[order[i]] = order[i] == home ? room : room * 10 / 11;
    }
    for (uint32_t r = 0; r < b->W; r++)
        tw += wt[r];
    if (tw == 0)
        return best;
    x = ((row ^ (home * 0x9E3779B9u)) * 1664525u + 1013904223u) % tw;
    for (uint32_t r = 0; r < b->W; r++) {
        if (x < wt[r])
            return r;
        x -= wt[r];
    }
    return best;
}

static void brute_step(brute *b, uint32_t l, uint32_t begin, uint32_t n_step)
{
    double ranks[16] = {0}, max = 0, sum = 0;
    uint64_t global[16] = {0}, n_routed = 0;
    uint32_t W = b->W;

    for (int turn = 0; turn < 2; turn++) {
        for (uint32_t r = 0; r < W; r++) {
            uint32_t first = n_step * r / W, end = n_step * (r + 1) / W;
            uint64_t load[16] = {0}, routed = 0, total = 0, target;

            if (b->mode == MOEC_WATERFILL_DYNAMIC) {
                memcpy(load, global, sizeof(load));
                routed = n_routed;
                for (uint32_t i = 0; i < W; i++)
                    load[i] += (uint64_t)b->S *
                               (n_step * (i + 1) / W - n_step * i / W);
            }
            for (uint32_t pass = 0; pass < 2; pass++) {
                total = 0;
                for (uint32_t i = 0; i < W; i++)
                    total += load[i];
                if (b->mode == MOEC_WATERFILL_STATIC)
                    routed = total;
                target = (total + b->S * (routed / K) + W - 1) / W;
                for (uint32_t t = first; t < end; t++) {
                    int32_t ids[K];
                    uint32_t visited[K], n = 0, best;

                    moec_routes_ids(b->routes, begin + t, 1, l, ids);
                    for (uint32_t c = 0; c < K; c++) {
                        uint32_t p;

                        if (ids[c] < 0)
                            continue;
                        p = choose(b, l, ids[c], r, t - first);
                        visited[n++] = p / b->L;
                        if (turn == 0 && pass == 0) {
                            global[p / b->L]++;
                            n_routed++;
                        }
                        if (turn == 1 && pass == 0 &&
                            b->mode == MOEC_WATERFILL_STATIC)
                            load[p / b->L]++;
                        if (turn == 1 && pass == 1) {
                            b->slots[l][p + p / b->L * b->S]++;
                            ranks[p / b->L]++;
                        }
                    }
                    if (turn == 0 || pass == 0 || n == 0)
                        continue;
                    best = fill(b, load, target, end - first, t - first, r,
                                visited, n);
                    for (uint32_t s = 0; s < b->S; s++)
                        b->slots[l][best * (b->L + b->S) + b->L + s]++;
                    ranks[best] += b->S;
                    b->moved += b->S > 0 && best != r;
                }
            }
        }
    }
    for (uint32_t r = 0; r < W; r++) {
        max = ranks[r] > max ? ranks[r] : max;
        sum += ranks[r];
    }
    b->step_max[l] += max;
    b->step_mean[l] += sum / W;
}

static moec_routes *make_routes(uint32_t n_tokens)
{
    moec_recorder *r = rr_start(E, K, 3);
    moec_routes *out = NULL;

    for (uint32_t q = 0; q * 100 < n_tokens; q++) {
        char name[16];
        uint32_t n = n_tokens - q * 100 < 100 ? n_tokens - q * 100 : 100;

        snprintf(name, sizeof(name), "%u", q);
        rr_fill(r, rr_request(r, name, 0), q + 1, 0, n, E, K);
    }
    assert_int_equal(moec_recorder_stop(r, &out, NULL), MOEC_OK);
    moec_recorder_destroy(r);
    return out;
}

static moec_study_opts opts_of(const moec_placement *p)
{
    moec_study_opts o = MOEC_STUDY_OPTS_INIT;

    o.placement = p;
    o.keys = rr_keys;
    o.n_decoder = 5;
    return o;
}

static void compare_one(const moec_routes *routes, const moec_placement *p,
                        uint32_t W, uint32_t S, moec_study_replica replica,
                        moec_waterfill_mode mode)
{
    brute *b = calloc(1, sizeof(*b));
    moec_study_opts o = opts_of(p);
    moec_study *s = NULL;
    moec_error err = MOEC_ERROR_INIT;
    uint32_t n_tokens = (uint32_t)moec_routes_n_tokens(routes);
    uint32_t n_slots = 0;

    assert_non_null(b);
    b->W = W;
    b->L = P / W;
    b->S = S;
    b->batch = 70;
    b->replica = replica;
    b->mode = mode;
    b->routes = routes;
    for (uint32_t l = 0; l < N; l++)
        for (uint32_t t = 0; t < n_tokens; t += 70 * W)
            brute_step(b, l, t, n_tokens - t < 70 * W ? n_tokens - t : 70 * W);
    o.n_ranks = W;
    o.n_shared = S;
    o.batch = 70;
    o.replica = replica;
    o.waterfill = mode;
    if (moec_study_routes(&s, routes, &o, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    for (uint32_t l = 0; l < N; l++) {
        const double *slots = moec_study_loads(s, l, MOEC_STUDY_SLOT, &n_slots);

        assert_int_equal(n_slots, P + W * S);
        for (uint32_t q = 0; q < n_slots; q++)
            if (slots[q] != b->slots[l][q])
                fail_msg("W %u S %u replica %d mode %d layer %u slot %u: %g, "
                         "must be %g",
                         W, S, (int)replica, (int)mode, l, q, slots[q],
                         b->slots[l][q]);
        assert_true(fabs(moec_study_figures_of(s, l, MOEC_STUDY_RANK)
                             .step_max_over_mean -
                         b->step_max[l] / b->step_mean[l]) < 1e-12);
    }
    assert_int_equal(moec_study_n_moved(s), b->moved);
    moec_study_destroy(s);
    free(b);
}

static void replays_rows_as_the_formulas_do(void **state)
{
    const uint32_t ranks[] = {1, 3, 5, 15};
    moec_routes *routes = make_routes(1131);
    moec_placement *p = NULL;

    (void)state;
    assert_int_equal(moec_placement_from_rows(&p, N, E, P, &p2l[0][0], NULL),
                     MOEC_OK);
    for (int w = 0; w < 4; w++)
        for (uint32_t S = 0; S < 4; S++)
            for (int mode = 0; mode < 3; mode++) {
                compare_one(routes, p, ranks[w], S, MOEC_STUDY_DYNAMIC,
                            (moec_waterfill_mode)mode);
                compare_one(routes, p, ranks[w], S, MOEC_STUDY_ROW,
                            (moec_waterfill_mode)mode);
                compare_one(routes, p, ranks[w], S, MOEC_STUDY_NEAREST,
                            (moec_waterfill_mode)mode);
            }
    moec_placement_destroy(p);
    moec_routes_destroy(routes);
}

/* Whatever the choice, experts keep their load, and slots, ranks and nodes
 * hold it all. */
static void no_load_is_lost_or_made(void **state)
{
    moec_routes *routes = make_routes(500);
    uint64_t counts[N * E], total = 0;
    moec_placement *p = NULL;

    (void)state;
    moec_routes_counts(routes, counts);
    for (size_t i = 0; i < N * E; i++)
        total += counts[i];
    assert_int_equal(moec_placement_from_rows(&p, N, E, P, &p2l[0][0], NULL),
                     MOEC_OK);
    for (int replica = 0; replica < 4; replica++) {
        moec_study_opts o = opts_of(p);
        moec_study *s = NULL;

        o.n_ranks = 15;
        o.n_nodes = 5;
        o.n_shared = 2;
        o.replica = (moec_study_replica)replica;
        assert_int_equal(moec_study_routes(&s, routes, &o, NULL), MOEC_OK);
        for (uint32_t l = 0; l < N; l++) {
            uint32_t n;
            const double *experts =
                moec_study_loads(s, l, MOEC_STUDY_EXPERT, &n);

            assert_int_equal(n, E);
            for (uint32_t e = 0; e < E; e++)
                assert_true(experts[e] == (double)counts[l * E + e]);
        }
        for (int place = 1; place < MOEC_STUDY_PLACES; place++) {
            double sum = 0;
            uint32_t n;
            const double *loads = moec_study_loads(s, MOEC_STUDY_ALL,
                                                   (moec_study_place)place, &n);

            for (uint32_t i = 0; i < n; i++)
                sum += loads[i];
            assert_true(sum == (double)(total + 500 * 2 * N));
        }
        moec_study_destroy(s);
    }
    moec_placement_destroy(p);
    moec_routes_destroy(routes);
}

/* STATIC sends each expert where the table of its source rank says. */
static void static_follows_each_ranks_table(void **state)
{
    moec_routes *routes = make_routes(400);
    double want[N][P] = {{0}};
    moec_placement *p = NULL;
    moec_study *s = NULL;
    moec_study_opts o;
    int32_t ids[K];

    (void)state;
    assert_int_equal(moec_placement_from_rows(&p, N, E, P, &p2l[0][0], NULL),
                     MOEC_OK);
    o = opts_of(p);
    o.n_ranks = 5;
    o.batch = 40;
    for (uint32_t r = 0; r < 5; r++) {
        moec_replicas_opts ro = MOEC_REPLICAS_OPTS_INIT;
        moec_replicas *x = NULL;

        ro.n_ranks = 5;
        ro.rank = r;
        ro.all_to_all = 1;
        ro.keys = rr_keys;
        ro.n_decoder = 5;
        assert_int_equal(moec_replicas_create(&x, p, &ro, NULL), MOEC_OK);
        for (uint32_t t = 0; t < 400; t++)
            for (uint32_t l = 0; l < N && t / 40 % 5 == r; l++) {
                moec_routes_ids(routes, t, 1, l, ids);
                for (uint32_t c = 0; c < K; c++)
                    if (ids[c] >= 0)
                        want[l][moec_replicas_table(x, l)[ids[c]]]++;
            }
        moec_replicas_destroy(x);
    }
    assert_int_equal(moec_study_routes(&s, routes, &o, NULL), MOEC_OK);
    assert_int_equal(moec_study_n_steps(s), 2);
    for (uint32_t l = 0; l < N; l++)
        assert_memory_equal(moec_study_loads(s, l, MOEC_STUDY_SLOT, NULL),
                            want[l], sizeof(want[l]));
    moec_study_destroy(s);
    moec_placement_destroy(p);
    moec_routes_destroy(routes);
}

static void counts_are_spread_over_replicas(void **state)
{
    double counts[N][E];
    moec_placement *p = NULL;
    moec_study *s = NULL;
    moec_study_opts o;
    const double *x;

    (void)state;
    for (uint32_t i = 0; i < N * E; i++)
        counts[i / E][i % E] = i % E == 0 ? 60 : 6;
    assert_int_equal(moec_placement_from_rows(&p, N, E, P, &p2l[0][0], NULL),
                     MOEC_OK);
    o = opts_of(p);
    o.n_ranks = 5;
    o.n_shared = 1;
    o.top_k = 3;
    o.replica = MOEC_STUDY_DYNAMIC;
    assert_int_equal(moec_study_counts(&s, &counts[0][0], &o, NULL), MOEC_OK);
    x = moec_study_loads(s, 1, MOEC_STUDY_SLOT, NULL);
    assert_true(fabs(x[0] - 15) < 1e-9);     /* one of four copies */
    assert_true(fabs(x[4 * 4] - 15) < 1e-9); /* slot 12 */
    assert_true(fabs(x[1] - 6) < 1e-9);
    assert_true(fabs(x[3] - 126.0 / 3 / 5) < 1e-9); /* shared */
    x = moec_study_loads(s, 1, MOEC_STUDY_RANK, NULL);
    assert_true(fabs(x[4] - (45 + 8.4)) < 1e-9);
    assert_true(moec_study_figures_of(s, 1, MOEC_STUDY_RANK).max == x[4]);
    o.waterfill = MOEC_WATERFILL_STATIC;
    assert_int_equal(moec_study_counts(&s, &counts[0][0], &o, NULL),
                     MOEC_E_UNSUPPORTED);
    moec_study_destroy(s);
    moec_placement_destroy(p);
}

static void refuses_what_does_not_fit(void **state)
{
    moec_routes *routes = make_routes(10);
    moec_placement *p = NULL, *other = NULL;
    moec_study *s = NULL;
    moec_study_opts o;

    (void)state;
    assert_int_equal(moec_placement_from_rows(&p, N, E, P, &p2l[0][0], NULL),
                     MOEC_OK);
    assert_int_equal(moec_placement_trivial(&other, 2, E, 0, NULL), MOEC_OK);
    o = opts_of(p);
    o.n_ranks = 4;
    assert_int_equal(moec_study_routes(&s, routes, &o, NULL), MOEC_E_MAPPING);
    o.n_ranks = 5;
    o.n_nodes = 2;
    assert_int_equal(moec_study_routes(&s, routes, &o, NULL), MOEC_E_ARG);
    o = opts_of(other);
    assert_int_equal(moec_study_routes(&s, routes, &o, NULL), MOEC_E_MAPPING);
    moec_placement_destroy(p);
    moec_placement_destroy(other);
    moec_routes_destroy(routes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(replays_rows_as_the_formulas_do),
        cmocka_unit_test(no_load_is_lost_or_made),
        cmocka_unit_test(static_follows_each_ranks_table),
        cmocka_unit_test(counts_are_spread_over_replicas),
        cmocka_unit_test(refuses_what_does_not_fit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
