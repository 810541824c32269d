/* SPDX-License-Identifier: Apache-2.0
 *
 * Waterfill: on which rank a token's shared experts are computed, so that all
 * ranks end up with the same work. Every rank has the shared experts, so any
 * will do: those under the mean load are filled up in proportion to their
 * room, at random by row, the token's own rank preferred by a tenth.
 *
 * All in integers, so that ranks that see the same counts agree. With S shared
 * columns a token's shared task weighs S: in the loads and in the target. A
 * token's columns stay together: it is sent once. */

#include <string.h>

#include "remap.h"

#define KEEP_NUM 11u /* remote work must be under 10/11 of home's to move */
#define KEEP_DEN 10u
/* No batch comes near; sums over 1024 ranks, times 11, stay below 2^64. */
#define LOAD_MAX (UINT64_C(1) << 48)
#define SUM_MAX  (UINT64_C(1) << 60)

moec_status moec_waterfill_check(const moec_topology *t,
                                 const moec_waterfill *w, uint32_t rank,
                                 moec_error *err)
{
    if (t->n_ranks > MOEC_WATERFILL_MAX)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "waterfill: %u ranks, more than %u", t->n_ranks,
                         MOEC_WATERFILL_MAX);
    if (rank >= t->n_ranks)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "waterfill: rank %u of %u", rank, t->n_ranks);
    switch (w->mode) {
    case MOEC_WATERFILL_OFF:
    case MOEC_WATERFILL_STATIC:
        return MOEC_OK;
    case MOEC_WATERFILL_DYNAMIC:
        if (!w->routed || !w->tokens)
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "waterfill: DYNAMIC without %s",
                             w->routed ? "tokens" : "routed counts");
        return MOEC_OK;
    }
    return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE, "waterfill: mode %d",
                     (int)w->mode);
}

/* Loads as given: routed + S * tokens. */
static moec_status dynamic_loads(moec_waterfill_plan *p,
                                 const moec_waterfill *w, uint32_t n_shared,
                                 uint64_t *routed_sum, moec_error *err)
{
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        uint64_t shared;

        if (w->routed[r] > LOAD_MAX ||
            !moec_mul_u64(w->tokens[r], n_shared, &shared) || shared > LOAD_MAX)
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "waterfill: rank %u has %llu routed columns and "
                             "%llu tokens of %u shared",
                             r, (unsigned long long)w->routed[r],
                             (unsigned long long)w->tokens[r], n_shared);
        p->load[r] = w->routed[r] + shared;
        *routed_sum += w->routed[r];
    }
    return MOEC_OK;
}

/* Room under the target, less for remote ranks, and its running sum. */
static void find_room(moec_waterfill_plan *p)
{
    uint64_t sum = 0;

    p->emptiest = p->home;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        uint64_t room = p->load[r] < p->target ? p->target - p->load[r] : 0;

        if (r != p->home)
            room = room * KEEP_DEN / KEEP_NUM;
        sum += room;
        p->room[r] = room;
        p->upto[r] = sum;
        if (p->load[r] * KEEP_NUM < p->load[p->emptiest] * KEEP_DEN)
            p->emptiest = r;
    }
}

moec_status moec_waterfill_plan_make(moec_waterfill_plan *p,
                                     const moec_topology *t,
                                     const moec_waterfill *w, uint32_t rank,
                                     uint32_t n_tokens, uint32_t top_k,
                                     moec_error *err)
{
    uint64_t routed = 0, sum = 0, max = 0, tasks;

    p->n_ranks = t->n_ranks;
    p->home = rank;
    p->by_rank = w->by_rank != 0;
    p->target = 0;
    p->all_ranks = true; /* read, for nothing, where all stay at home */
    if (w->mode == MOEC_WATERFILL_DYNAMIC)
        MOEC_TRY(dynamic_loads(p, w, t->n_shared_slots, &routed, err));
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        sum += p->load[r];
        max = moec_max_u64(max, p->load[r]);
    }
    if (w->mode == MOEC_WATERFILL_OFF || n_tokens < MOEC_WATERFILL_ROWS)
        return MOEC_OK;
    if (w->mode == MOEC_WATERFILL_STATIC)
        routed = sum;
    tasks = routed / top_k;
    if (!moec_mul_u64(tasks, t->n_shared_slots, &tasks) ||
        !moec_add_u64(sum, tasks, &sum) || sum > SUM_MAX)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "waterfill: %llu routed columns and %u shared each "
                         "are too many",
                         (unsigned long long)routed, t->n_shared_slots);
    p->target = moec_ceil_div(sum, p->n_ranks);
    p->all_ranks = w->mode == MOEC_WATERFILL_STATIC || max <= p->target;
    find_room(p);
    return MOEC_OK;
}

static uint32_t seed_of(uint32_t row, uint32_t home)
{
    return (row ^ home * UINT32_C(0x9E3779B9)) * UINT32_C(1664525) +
           UINT32_C(1013904223);
}

/* The rank whose part of the running sum holds x: the first above it. */
static uint32_t find_upto(const moec_waterfill_plan *p, uint64_t x)
{
    uint32_t lo = 0, n = p->n_ranks;

    while (n > 1) {
        uint32_t half = n / 2;

        lo += p->upto[lo + half - 1] <= x ? half : 0;
        n -= half;
    }
    return lo;
}

static uint32_t scan_ranks(const moec_waterfill_plan *p, uint32_t best,
                           const uint32_t *ranks, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (p->load[ranks[i]] * KEEP_NUM < p->load[best] * KEEP_DEN)
            best = ranks[i];
    return best;
}

/* Ranks of the row, ascending and once each, home among them. */
static uint32_t sort_visited(const moec_waterfill_plan *p,
                             const uint32_t *ranks, uint32_t n, uint32_t *out)
{
    uint64_t seen[MOEC_WATERFILL_MAX / 64] = {0};
    uint32_t n_out = 0;

    seen[p->home / 64] |= UINT64_C(1) << p->home % 64;
    for (uint32_t i = 0; i < n; i++)
        seen[ranks[i] / 64] |= UINT64_C(1) << ranks[i] % 64;
    for (uint32_t i = 0; i * 64 < p->n_ranks; i++)
        for (uint64_t bits = seen[i]; bits; bits &= bits - 1)
            out[n_out++] = i * 64 + (uint32_t)__builtin_ctzll(bits);
    return n_out;
}

static uint32_t best_visited(const moec_waterfill_plan *p, uint32_t row,
                             const uint32_t *ranks, uint32_t n)
{
    uint32_t sorted[MOEC_TOP_K_MAX + 1];
    uint32_t n_sorted = sort_visited(p, ranks, n, sorted);
    uint64_t sum = 0, x;

    for (uint32_t i = 0; i < n_sorted; i++)
        sum += p->room[sorted[i]];
    if (sum == 0)
        return p->by_rank ? scan_ranks(p, p->home, sorted, n_sorted)
                          : scan_ranks(p, p->home, ranks, n);
    x = seed_of(row, p->home) % sum;
    for (uint32_t i = 0; i + 1 < n_sorted; i++) {
        if (x < p->room[sorted[i]])
            return sorted[i];
        x -= p->room[sorted[i]];
    }
    return sorted[n_sorted - 1];
}

uint32_t moec_waterfill_best(const moec_waterfill_plan *p, uint32_t row,
                             const uint32_t *ranks, uint32_t n)
{
    uint64_t sum;

    if (p->target == 0)
        return p->home;
    if (!p->all_ranks)
        return best_visited(p, row, ranks, n);
    sum = p->upto[p->n_ranks - 1];
    if (sum == 0)
        return p->emptiest;
    return find_upto(p, seed_of(row, p->home) % sum);
}

/* Ranks that the row's physical ids visit, into ranks[]; fewer than 2^32. */
static moec_status visit(const moec_topology *t, const int32_t *ids,
                         uint32_t top_k, uint32_t row, uint32_t *ranks,
                         uint32_t *n_out, moec_error *err)
{
    uint32_t n = 0;

    for (uint32_t c = 0; c < top_k; c++) {
        if (ids[c] < 0)
            continue;
        if ((uint32_t)ids[c] >= t->n_physical)
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "row %u, column %u: physical id %d of %u", row, c,
                             ids[c], t->n_physical);
        ranks[n++] = (uint32_t)ids[c] / t->n_local;
    }
    *n_out = n;
    return MOEC_OK;
}

static moec_status check_ranks_args(const moec_topology *t,
                                    const moec_waterfill *w, uint32_t rank,
                                    uint32_t n_tokens, uint32_t top_k,
                                    const void *ids, const void *best,
                                    moec_error *err)
{
    if (!t || !w || (n_tokens && (!ids || !best)))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_waterfill_ranks: %s is NULL",
                         !t     ? "topology"
                         : !w   ? "waterfill"
                         : !ids ? "ids"
                                : "best");
    if (top_k == 0 || top_k > MOEC_TOP_K_MAX)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_waterfill_ranks: top_k %u, not 1 to %u", top_k,
                         MOEC_TOP_K_MAX);
    MOEC_TRY(moec_topology_check(t, err));
    return moec_waterfill_check(t, w, rank, err);
}

/* NOLINTNEXTLINE(readability-function-size): kernels.h says its arguments */
moec_status moec_waterfill_ranks(const moec_topology *topology,
                                 const moec_waterfill *waterfill, uint32_t rank,
                                 const int32_t *ids, uint32_t n_tokens,
                                 uint32_t top_k, int32_t *best,
                                 uint64_t *load_out, uint64_t *target_out,
                                 moec_error *err)
{
    moec_waterfill_plan plan;
    uint32_t ranks[MOEC_TOP_K_MAX], n;

    MOEC_TRY(check_ranks_args(topology, waterfill, rank, n_tokens, top_k, ids,
                              best, err));
    memset(plan.load, 0, topology->n_ranks * sizeof(plan.load[0]));
    for (uint32_t t = 0; t < n_tokens; t++) {
        MOEC_TRY(
            visit(topology, ids + (size_t)t * top_k, top_k, t, ranks, &n, err));
        for (uint32_t i = 0; i < n; i++)
            plan.load[ranks[i]]++;
    }
    MOEC_TRY(moec_waterfill_plan_make(&plan, topology, waterfill, rank,
                                      n_tokens, top_k, err));
    for (uint32_t t = 0; t < n_tokens; t++) {
        MOEC_TRY(
            visit(topology, ids + (size_t)t * top_k, top_k, t, ranks, &n, err));
        best[t] = n ? (int32_t)moec_waterfill_best(&plan, t, ranks, n) : -1;
    }
    if (load_out)
        memcpy(load_out, plan.load, topology->n_ranks * sizeof(load_out[0]));
    if (target_out)
        *target_out = plan.target;
    return MOEC_OK;
}
