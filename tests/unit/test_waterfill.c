/* SPDX-License-Identifier: Apache-2.0
 *
 * Waterfill against the vectors, SGLang's own and those of any W and S, and
 * against the rule of spec/placement.md section 5 written down once more. */

#include "vectors.h"

#include <moec/kernels.h>

#include "base/base.h"
#include "guarded.h"

#define SMALL 64u /* batches under it stay at home */

static moec_topology topology_of(uint32_t n_physical, uint32_t n_ranks,
                                 uint32_t n_shared)
{
    moec_topology t = {.n_physical = n_physical,
                       .n_ranks = n_ranks,
                       .n_local = n_physical / n_ranks,
                       .n_shared_slots = n_shared};
    return t;
}

static uint64_t *wide(const json_t *v)
{
    size_t n;
    int32_t *small = vectors_i32(v, &n);
    uint64_t *out = calloc(n + 1, sizeof(*out));

    assert_non_null(out);
    for (size_t i = 0; i < n; i++)
        out[i] = (uint64_t)small[i];
    free(small);
    return out;
}

/* Ranks of one batch equal `want`; load and target too where they are known. */
static void assert_ranks(const char *id, const moec_topology *t,
                         const moec_waterfill *w, uint32_t rank,
                         const json_t *ids, uint32_t top_k, const json_t *want,
                         const uint64_t *load, uint64_t target)
{
    moec_error err = MOEC_ERROR_INIT;
    size_t n, n_tokens = json_array_size(ids);
    int32_t *in = vectors_i32(ids, &n), *expect = vectors_i32(want, NULL);
    int32_t *best = guarded(n_tokens * sizeof(*best));
    uint64_t *load_out = guarded(t->n_ranks * sizeof(*load_out)), target_out;

    assert_int_equal(n, n_tokens * top_k);
    if (moec_waterfill_ranks(t, w, rank, in, (uint32_t)n_tokens, top_k, best,
                             load_out, &target_out, &err) != MOEC_OK)
        fail_msg("%s: %s", id, err.text);
    for (size_t i = 0; i < n_tokens; i++)
        if (best[i] != expect[i])
            fail_msg("%s: rank %u, row %zu: %d, not %d", id, rank, i, best[i],
                     expect[i]);
    assert_memory_equal(load_out, load, t->n_ranks * sizeof(*load));
    assert_int_equal(target_out, n_tokens < SMALL ? 0 : target);
    free(in);
    free(expect);
}

static void check_static(const json_t *c, const moec_topology *t)
{
    moec_waterfill w = {.mode = MOEC_WATERFILL_STATIC};
    uint64_t *load = wide(json_object_get(c, "load"));
    const json_t *target = json_object_get(c, "target");

    for (w.by_rank = 0; w.by_rank < 2; w.by_rank++) /* no difference here */
        assert_ranks(vectors_text(c, "id"), t, &w, vectors_u32(c, "rank"),
                     json_object_get(c, "ids"), vectors_u32(c, "K"),
                     json_object_get(c, "best"), load,
                     (uint64_t)json_integer_value(target));
    free(load);
}

static void check_dynamic(const json_t *c, const moec_topology *t)
{
    const json_t *by_rank = json_object_get(c, "best_rank_order");
    const json_t *by_column = json_object_get(c, "best");
    uint64_t *routed = wide(json_object_get(c, "routed"));
    uint64_t *tokens = wide(json_object_get(c, "tokens"));
    uint64_t *load = wide(json_object_get(c, "load"));
    moec_waterfill w = {
        .mode = MOEC_WATERFILL_DYNAMIC, .routed = routed, .tokens = tokens};

    for (uint32_t r = 0; r < t->n_ranks; r++)
        for (w.by_rank = 0; w.by_rank < 2; w.by_rank++) {
            const json_t *best = w.by_rank && by_rank ? by_rank : by_column;

            assert_ranks(vectors_text(c, "id"), t, &w, r,
                         json_array_get(json_object_get(c, "ids"), r),
                         vectors_u32(c, "K"), json_array_get(best, r), load,
                         vectors_u32(c, "target"));
        }
    free(routed);
    free(tokens);
    free(load);
}

static void agrees_with_every_vector(void **state)
{
    json_t *root = vectors_load("waterfill.json"), *c;
    unsigned n_static = 0, n_dynamic = 0;
    size_t i;

    (void)state;
    json_array_foreach (json_object_get(root, "cases"), i, c) {
        moec_topology t = topology_of(vectors_u32(c, "P"), vectors_u32(c, "W"),
                                      vectors_u32(c, "S"));

        if (strcmp(vectors_text(c, "mode"), "static") == 0) {
            check_static(c, &t);
            n_static++;
        } else {
            check_dynamic(c, &t);
            n_dynamic++;
        }
    }
    assert_true(n_static >= 20 && n_dynamic >= 20);
    json_decref(root);
}

/* The rule, as it stands in the specification: slowly, and with every rank's
 * weight in one array. */
static int32_t rule(const moec_topology *t, const moec_waterfill *w,
                    uint32_t home, uint32_t row, const int32_t *ids,
                    uint32_t top_k, const uint64_t *load, uint64_t target)
{
    bool all = w->mode == MOEC_WATERFILL_STATIC, valid = false;
    uint64_t weights[1024] = {0}, sum = 0, max = 0, at;
    bool candidate[1024] = {false};
    uint32_t best = home;

    for (uint32_t r = 0; r < t->n_ranks; r++)
        max = load[r] > max ? load[r] : max;
    all = all || max <= target;
    for (uint32_t c = 0; c < top_k; c++)
        if (ids[c] >= 0) {
            candidate[(uint32_t)ids[c] / t->n_local] = true;
            valid = true;
        }
    if (!valid)
        return -1;
    candidate[home] = true;
    for (uint32_t r = 0; r < t->n_ranks; r++) {
        if (!candidate[r] && !all)
            continue;
        if ((all || w->by_rank) && load[r] * 11 < load[best] * 10)
            best = r;
        if (load[r] < target)
            weights[r] =
                r == home ? target - load[r] : (target - load[r]) * 10 / 11;
        sum += weights[r];
    }
    for (uint32_t c = 0; c < top_k && !all && !w->by_rank; c++)
        if (ids[c] >= 0 &&
            load[(uint32_t)ids[c] / t->n_local] * 11 < load[best] * 10)
            best = (uint32_t)ids[c] / t->n_local;
    if (sum == 0)
        return (int32_t)best;
    at = ((row ^ (home * 0x9E3779B9u)) * 1664525u + 1013904223u) % sum;
    for (best = 0; at >= weights[best]; best++)
        at -= weights[best];
    return (int32_t)best;
}

/* One random batch of n_ranks ranks. */
static void compare_with_rule(uint64_t *seed, uint32_t n_ranks)
{
    uint32_t local = 1 + random_below(seed, 9), top_k, n_tokens, rank;
    moec_topology t =
        topology_of(n_ranks * local, n_ranks, random_below(seed, 5));
    uint64_t load[1024] = {0}, routed[1024], tokens[1024], target;
    uint64_t sum = 0, routed_sum = 0;
    moec_waterfill w = {.routed = routed, .tokens = tokens};
    moec_error err = MOEC_ERROR_INIT;
    int32_t *ids, *best;

    top_k = 1 + random_below(seed, 9);
    n_tokens = SMALL + random_below(seed, 40);
    rank = random_below(seed, n_ranks);
    ids = guarded((size_t)n_tokens * top_k * sizeof(*ids));
    best = guarded(n_tokens * sizeof(*best));
    w.mode =
        random_below(seed, 2) ? MOEC_WATERFILL_STATIC : MOEC_WATERFILL_DYNAMIC;
    w.by_rank = random_below(seed, 2);
    for (size_t i = 0; i < (size_t)n_tokens * top_k; i++)
        ids[i] = random_below(seed, 8) == 0
                     ? -1 - (int32_t)random_below(seed, 3)
                     : (int32_t)random_below(seed, t.n_physical);
    for (uint32_t r = 0; r < n_ranks; r++) {
        routed[r] = random_below(seed, 3) * random_below(seed, 400);
        tokens[r] = random_below(seed, 100);
    }
    for (size_t i = 0; i < (size_t)n_tokens * top_k; i++)
        if (w.mode == MOEC_WATERFILL_STATIC && ids[i] >= 0)
            load[(uint32_t)ids[i] / local]++;
    for (uint32_t r = 0; r < n_ranks; r++) {
        if (w.mode == MOEC_WATERFILL_DYNAMIC)
            load[r] = routed[r] + t.n_shared_slots * tokens[r];
        routed_sum += w.mode == MOEC_WATERFILL_DYNAMIC ? routed[r] : load[r];
        sum += load[r];
    }
    sum += t.n_shared_slots * (routed_sum / top_k);
    target = (sum + n_ranks - 1) / n_ranks;
    if (moec_waterfill_ranks(&t, &w, rank, ids, n_tokens, top_k, best, NULL,
                             NULL, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    for (uint32_t i = 0; i < n_tokens; i++)
        assert_int_equal(best[i], rule(&t, &w, rank, i, ids + i * top_k, top_k,
                                       load, target));
}

static void agrees_with_the_rule_for_any_number_of_ranks(void **state)
{
    static const uint32_t some[] = {1, 2, 3, 31, 32, 33, 63, 64, 65, 100, 1024};
    uint64_t seed = 1;

    (void)state;
    for (size_t i = 0; i < sizeof(some) / sizeof(some[0]); i++)
        for (int turn = 0; turn < 12; turn++)
            compare_with_rule(&seed, some[i]);
    for (int turn = 0; turn < 100; turn++)
        compare_with_rule(&seed, 1 + random_below(&seed, 80));
    guarded_free_all();
}

static void small_batches_stay_at_home(void **state)
{
    moec_topology t = topology_of(16, 4, 1);
    moec_waterfill w = {.mode = MOEC_WATERFILL_STATIC};
    moec_error err = MOEC_ERROR_INIT;
    int32_t ids[64] = {0}, best[64];
    uint64_t target;

    (void)state;
    ids[5] = -3;
    assert_int_equal(
        moec_waterfill_ranks(&t, &w, 0, ids, 63, 1, best, NULL, &target, &err),
        MOEC_OK);
    for (int i = 0; i < 63; i++)
        assert_int_equal(best[i], i == 5 ? -1 : 0);
    assert_int_equal(target, 0);
    assert_int_equal(
        moec_waterfill_ranks(&t, &w, 0, ids, 64, 1, best, NULL, &target, &err),
        MOEC_OK);
    assert_int_not_equal(best[0], 0); /* all the load is on rank 0 */
    assert_int_equal(target, 32);     /* (63 + 63) / 4, up */
    assert_int_equal(
        moec_waterfill_ranks(&t, &w, 0, NULL, 0, 1, NULL, NULL, NULL, &err),
        MOEC_OK);
}

/* Loads 10 and 8, 2 shared tasks: the target is (18 + 2) / 2, and the fullest
 * rank, which just meets it, does not stop a row from leaving. */
static void a_rank_at_the_target_is_not_over_it(void **state)
{
    static const uint64_t routed[] = {10, 8}, tokens[2];
    moec_topology t = topology_of(18, 2, 1);
    moec_waterfill w = {MOEC_WATERFILL_DYNAMIC, 0, routed, tokens};
    moec_error err = MOEC_ERROR_INIT;
    int32_t ids[SMALL * 9], best[SMALL];
    uint64_t target;

    (void)state;
    for (size_t i = 0; i < SMALL * 9; i++)
        ids[i] = i % 9 == 0 ? 0 : -1; /* all visit rank 0, their home, only */
    assert_int_equal(moec_waterfill_ranks(&t, &w, 0, ids, SMALL, 9, best, NULL,
                                          &target, &err),
                     MOEC_OK);
    assert_int_equal(target, 10);
    assert_int_equal(best[0], 1);
}

struct refused {
    const char *text;
    uint32_t n_physical, n_ranks, n_shared, rank, top_k;
    moec_waterfill w;
    int32_t id;
};

static void refuses_what_does_not_fit(void **state)
{
    static const uint64_t few[4], many[4] = {0, UINT64_MAX};
    const moec_waterfill on = {.mode = MOEC_WATERFILL_STATIC};
    const struct refused cases[] = {
        {"15 physical slots are not 4 ranks", 15, 4, 1, 0, 1, on, 0},
        {"0 physical slots", 0, 1, 1, 0, 1, on, 0},
        {"1025 ranks, more than 1024", 1025, 1025, 1, 0, 1, on, 0},
        {"rank 4 of 4", 16, 4, 1, 4, 1, on, 0},
        {"top_k 0, not 1 to 64", 16, 4, 1, 0, 0, on, 0},
        {"top_k 65, not 1 to 64", 16, 4, 1, 0, 65, on, 0},
        {"row 0, column 0: physical id 16 of 16", 16, 4, 1, 0, 1, on, 16},
        {"more than 1048576", 16, 4, 1u << 30, 0, 1, on, 0},
        {"DYNAMIC without routed",
         16,
         4,
         1,
         0,
         1,
         {MOEC_WATERFILL_DYNAMIC, 0, NULL, few},
         0},
        {"DYNAMIC without tokens",
         16,
         4,
         1,
         0,
         1,
         {MOEC_WATERFILL_DYNAMIC, 0, few, NULL},
         0},
        {"rank 1 has 18446744073709551615 routed",
         16,
         4,
         1,
         0,
         1,
         {MOEC_WATERFILL_DYNAMIC, 0, many, few},
         0},
        {"18446744073709551615 tokens of 2 shared",
         16,
         4,
         2,
         0,
         1,
         {MOEC_WATERFILL_DYNAMIC, 0, few, many},
         0},
    };
    int32_t ids[65] = {0}, best[1];

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct refused *c = &cases[i];
        moec_topology t = topology_of(c->n_physical, c->n_ranks, c->n_shared);
        moec_error err = MOEC_ERROR_INIT;

        ids[0] = c->id;
        assert_int_not_equal(moec_waterfill_ranks(&t, &c->w, c->rank, ids, 1,
                                                  c->top_k, best, NULL, NULL,
                                                  &err),
                             MOEC_OK);
        if (!strstr(err.text, c->text))
            fail_msg("'%s' is not in: %s", c->text, err.text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_every_vector),
        cmocka_unit_test(agrees_with_the_rule_for_any_number_of_ranks),
        cmocka_unit_test(small_batches_stay_at_home),
        cmocka_unit_test(a_rank_at_the_target_is_not_over_it),
        cmocka_unit_test(refuses_what_does_not_fit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
