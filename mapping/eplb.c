/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: EPLB, DeepSeek's expert-parallel load balancer, bit for bit:
 *   the same loads give the same slots as SGLang's copy (sums in float64) or
 *   DeepSeek's own code (float32), on the CPU.
 * Refuses: loads that are no finite numbers from 0 on (P12), slots that do not
 *   divide by the ranks (P06, P07), experts by the groups or ranks by the
 *   nodes (P13).
 *
 * Three steps a layer. Groups of experts are packed onto nodes; on each node
 * the experts with the largest load per copy are replicated until its slots
 * are full; the copies are packed onto the node's ranks. Equality hangs on
 * details of the tools that the originals use, and each stands where it is
 * used: the order of torch's float32 sum, the order in which libstdc++'s
 * std::sort leaves equal keys, float32 division, and which of two equal sums
 * is taken first.
 */

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "placement.h"

/* ---------------------------------------- std::sort, descending by load
 * libstdc++ (gcc 4.9 on; bits/stl_algo.h, bits/stl_heap.h): introsort with a
 * median of three, then one insertion sort. torch sorts (value, index) pairs
 * with it where a stable order was not asked for. */

typedef struct item {
    float load;
    uint32_t id;
} item;

/* torch's KeyValueCompDesc; NaN was refused. */
static bool before(item a, item b)
{
    return a.load > b.load;
}

static void swap(item *a, item *b)
{
    item t = *a;

    *a = *b;
    *b = t;
}

/* __adjust_heap and __push_heap. */
static void adjust_heap(item *x, size_t hole, size_t n, item value)
{
    size_t top = hole, child = hole;

    while (child < (n - 1) / 2) {
        child = 2 * (child + 1);
        if (before(x[child], x[child - 1]))
            child--;
        x[hole] = x[child];
        hole = child;
    }
    if (n % 2 == 0 && child == (n - 2) / 2) {
        child = 2 * (child + 1);
        x[hole] = x[child - 1];
        hole = child - 1;
    }
    while (hole > top && before(x[(hole - 1) / 2], value)) {
        x[hole] = x[(hole - 1) / 2];
        hole = (hole - 1) / 2;
    }
    x[hole] = value;
}

/* __partial_sort(first, last, last): a heap sort. n > 1. */
static void heap_sort(item *x, size_t n)
{
    for (size_t parent = (n - 2) / 2 + 1; parent-- > 0;)
        adjust_heap(x, parent, n, x[parent]);
    while (n-- > 1) {
        item value = x[n];

        x[n] = x[0];
        adjust_heap(x, 0, n, value);
    }
}

/* __move_median_to_first. */
static void median_to_first(item *result, item *a, item *b, item *c)
{
    if (before(*a, *b)) {
        if (before(*b, *c))
            swap(result, b);
        else if (before(*a, *c))
            swap(result, c);
        else
            swap(result, a);
    } else if (before(*a, *c)) {
        swap(result, a);
    } else if (before(*b, *c)) {
        swap(result, c);
    } else {
        swap(result, b);
    }
}

/* __unguarded_partition around *pivot: the median stops both scans. */
static item *partition(item *first, item *last, const item *pivot)
{
    for (;;) {
        while (before(*first, *pivot))
            first++;
        last--;
        while (before(*pivot, *last))
            last--;
        if (first >= last)
            return first;
        swap(first, last);
        first++;
    }
}

/* _S_threshold: shorter runs are left to the insertion sort. */
#define SORT_RUN 16

/* __introsort_loop: recursion into the right part, as deep as `depth`. */
/* NOLINTNEXTLINE(misc-no-recursion): at most 2 log2(n) deep */
static void introsort(item *first, item *last, unsigned depth)
{
    while (last - first > SORT_RUN) {
        item *cut;

        if (depth-- == 0) {
            heap_sort(first, (size_t)(last - first));
            return;
        }
        median_to_first(first, first + 1, first + (last - first) / 2, last - 1);
        cut = partition(first + 1, last, first);
        introsort(cut, last, depth);
        last = cut;
    }
}

/* __unguarded_linear_insert: something before `at` stops it. */
static void linear_insert(item *at)
{
    item value = *at;

    while (before(value, at[-1])) {
        *at = at[-1];
        at--;
    }
    *at = value;
}

/* __final_insertion_sort. */
static void insertion_sort(item *x, size_t n)
{
    size_t guarded = n > SORT_RUN ? SORT_RUN : n;

    for (size_t i = 1; i < guarded; i++) {
        if (before(x[i], x[0])) {
            item value = x[i];

            memmove(x + 1, x, i * sizeof(*x));
            x[0] = value;
        } else {
            linear_insert(x + i);
        }
    }
    for (size_t i = guarded; i < n; i++)
        linear_insert(x + i);
}

static void sort_unstable(item *x, size_t n)
{
    unsigned log2n = 0;

    if (n == 0)
        return;
    while (n >> log2n > 1)
        log2n++;
    introsort(x, x + n, 2 * log2n);
    insertion_sort(x, n);
}

/* Stable merge sort; `tmp` has n entries. */
static void sort_stable(item *x, item *tmp, size_t n)
{
    for (size_t run = 1; run < n; run *= 2) {
        for (size_t at = 0; at < n; at += 2 * run) {
            size_t mid = moec_min_u64(at + run, n);
            size_t end = moec_min_u64(at + 2 * run, n);
            size_t i = at, j = mid;

            for (size_t k = at; k < end; k++) {
                bool left = i < mid && (j >= end || !before(x[j], x[i]));

                tmp[k] = left ? x[i++] : x[j++];
            }
        }
        memcpy(x, tmp, n * sizeof(*x));
    }
}

/* ------------------------------------------------------ torch's sum(-1)
 * ATen's cascade sum of n contiguous float32 on a CPU with vectors of 8 lanes
 * (torch's AVX-512 build sums so, too), below 512 of them; from there on it
 * cascades, which groups of experts never are long enough for. */

static float sum_scalars(const float *x, size_t n)
{
    float part[4] = {0};

    for (size_t i = 0; i < n / 4; i++) {
        for (size_t r = 0; r < 4; r++)
            part[r] += x[4 * i + r];
    }
    for (size_t i = n / 4 * 4; i < n; i++)
        part[0] += x[i];
    return ((part[0] + part[1]) + part[2]) + part[3];
}

static float sum_vectors(const float *x, size_t n)
{
    float part[4][8] = {{0}}, sum = 0;
    size_t n_vec = n / 8;

    for (size_t i = 0; i < n_vec; i++) {
        size_t r = i < n_vec / 4 * 4 ? i % 4 : 0;

        for (size_t k = 0; k < 8; k++)
            part[r][k] += x[i * 8 + k];
    }
    for (size_t r = 1; r < 4; r++) {
        for (size_t k = 0; k < 8; k++)
            part[0][k] += part[r][k];
    }
    for (size_t i = n_vec * 8; i < n; i++)
        sum += x[i];
    for (size_t k = 0; k < 8; k++)
        sum += part[0][k];
    return sum;
}

static float torch_sum(const float *x, size_t n)
{
    return n < 8 ? sum_scalars(x, n) : sum_vectors(x, n);
}

/* ------------------------------------------------------------- packing */

/* One layer at work. */
typedef struct balancer {
    const moec_eplb_opts *opts;
    uint32_t n_experts, n_physical;
    uint32_t n_groups, n_nodes; /* those of the policy */
    item *sorted, *tmp;         /* [P] */
    uint32_t *pack, *place;     /* [P] of each item: its pack, rank in it */
    uint32_t *n_in;             /* [W] items in each pack */
    double *sum64;              /* [W] */
    float *sum32;               /* [W] */
    float *group_load;          /* [G] */
    uint32_t *order;            /* [E] expert of each number by node */
    float *load;                /* [E] in that order */
    uint32_t *copies;           /* [E/N] of one node */
    uint32_t *owner, *copy;     /* [P/N] of each slot: number, which copy */
    float *slot_load;           /* [P/N] */
} balancer;

/* The pack with room and the smallest sum, the lowest on ties. */
static uint32_t lightest(const balancer *b, uint32_t n_packs, uint32_t room)
{
    bool f32 = b->opts->accum == MOEC_EPLB_F32;
    uint32_t best = UINT32_MAX;

    for (uint32_t i = 0; i < n_packs; i++) {
        if (b->n_in[i] == room)
            continue;
        if (best == UINT32_MAX ||
            (f32 ? b->sum32[i] < b->sum32[best] : b->sum64[i] < b->sum64[best]))
            best = i;
    }
    return best;
}

/* balanced_packing: load[n] into n_packs packs of n / n_packs items each. */
static void pack_items(balancer *b, const float *load, uint32_t n,
                       uint32_t n_packs)
{
    uint32_t room = n / n_packs;

    if (room == 1) {
        for (uint32_t i = 0; i < n; i++) {
            b->pack[i] = i;
            b->place[i] = 0;
        }
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        b->sorted[i] = (item){load[i], i};
    switch (b->opts->ties) {
    case MOEC_EPLB_INTROSORT:
        sort_unstable(b->sorted, n);
        break;
    case MOEC_EPLB_STABLE:
        sort_stable(b->sorted, b->tmp, n);
        break;
    }
    memset(b->n_in, 0, n_packs * sizeof(*b->n_in));
    memset(b->sum32, 0, n_packs * sizeof(*b->sum32));
    memset(b->sum64, 0, n_packs * sizeof(*b->sum64));
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = lightest(b, n_packs, room), id = b->sorted[i].id;

        b->pack[id] = at;
        b->place[id] = b->n_in[at]++;
        b->sum32[at] += load[id];
        b->sum64[at] += (double)load[id];
    }
}

/* Step 1: b->order, experts numbered by (node, group's place on it). */
static void pack_groups(balancer *b, const float *load)
{
    uint32_t size = b->n_experts / b->n_groups;
    uint32_t per_node = b->n_groups / b->n_nodes;

    for (uint32_t g = 0; g < b->n_groups; g++)
        b->group_load[g] = torch_sum(load + (size_t)g * size, size);
    pack_items(b, b->group_load, b->n_groups, b->n_nodes);
    for (uint32_t g = 0; g < b->n_groups; g++) {
        uint32_t at = (b->pack[g] * per_node + b->place[g]) * size;

        for (uint32_t k = 0; k < size; k++)
            b->order[at + k] = g * size + k;
    }
    for (uint32_t i = 0; i < b->n_experts; i++)
        b->load[i] = load[b->order[i]];
}

/* Step 2: replicate_experts on one node: load[n] onto n_slots slots. */
static void replicate(balancer *b, const float *load, uint32_t n,
                      uint32_t n_slots)
{
    for (uint32_t i = 0; i < n; i++) {
        b->copies[i] = 1;
        b->owner[i] = i;
        b->copy[i] = 0;
    }
    for (uint32_t slot = n; slot < n_slots; slot++) {
        uint32_t best = 0;
        float most = load[0] / (float)b->copies[0];

        for (uint32_t i = 1; i < n; i++) {
            float each = load[i] / (float)b->copies[i];

            if (each > most) {
                most = each;
                best = i;
            }
        }
        b->owner[slot] = best;
        b->copy[slot] = b->copies[best]++;
    }
}

/* Steps 2 and 3 for one node: its part of the row. */
static void fill_node(balancer *b, uint32_t node, int32_t *row,
                      uint32_t *replica)
{
    uint32_t n = b->n_experts / b->n_nodes;
    uint32_t n_slots = b->n_physical / b->n_nodes;
    uint32_t n_local = b->n_physical / b->opts->n_ranks;
    const float *load = b->load + (size_t)node * n;

    replicate(b, load, n, n_slots);
    for (uint32_t i = 0; i < n_slots; i++)
        b->slot_load[i] = load[b->owner[i]] / (float)b->copies[b->owner[i]];
    pack_items(b, b->slot_load, n_slots, b->opts->n_ranks / b->n_nodes);
    for (uint32_t i = 0; i < n_slots; i++) {
        uint32_t p = node * n_slots + b->pack[i] * n_local + b->place[i];

        row[p] = (int32_t)b->order[node * n + b->owner[i]];
        if (replica)
            replica[p] = b->copy[i];
    }
}

/* ---------------------------------------------------------- all layers */

static moec_status check_sizes(const moec_eplb_opts *o, uint64_t n_experts,
                               uint64_t n_physical, moec_error *err)
{
    if (n_experts == 0 || n_physical > MOEC_PLACEMENT_SLOTS_MAX)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P03,
                         "EPLB of %" PRIu64 " experts on %" PRIu64 " slots",
                         n_experts, n_physical);
    if (o->n_ranks == 0 || o->n_ranks > n_physical)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P07,
                         "%" PRIu32 " ranks for %" PRIu64 " slots", o->n_ranks,
                         n_physical);
    if (n_physical % o->n_ranks != 0)
        return moec_fail(
            err, MOEC_E_MAPPING, MOEC_RULE_P06,
            "%" PRIu64 " slots (%" PRIu64 " experts and R = %" PRIu32
            ") do not divide by %" PRIu32
            " ranks: the smallest R that fits is %" PRIu64,
            n_physical, n_experts, o->n_redundant, o->n_ranks,
            moec_ceil_div(n_experts, o->n_ranks) * o->n_ranks - n_experts);
    return MOEC_OK;
}

/* Groups and nodes of the policy, with 1 for 0. */
static moec_status choose_policy(balancer *b, moec_error *err)
{
    const moec_eplb_opts *o = b->opts;
    uint32_t groups = o->n_groups ? o->n_groups : 1;
    uint32_t nodes = o->n_nodes ? o->n_nodes : 1;

    b->n_groups = 1;
    b->n_nodes = 1;
    if (o->policy == MOEC_EPLB_GLOBAL)
        return MOEC_OK;
    if (b->n_experts % groups != 0)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P13,
                         "%" PRIu32 " experts do not divide by %" PRIu32
                         " groups",
                         b->n_experts, groups);
    if (o->n_ranks % nodes != 0)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P13,
                         "%" PRIu32 " ranks do not divide by %" PRIu32 " nodes",
                         o->n_ranks, nodes);
    if (groups % nodes != 0) {
        if (o->policy == MOEC_EPLB_AUTO)
            return MOEC_OK;
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P13,
                         "%" PRIu32 " groups do not divide by %" PRIu32
                         " nodes: only the global policy can place them",
                         groups, nodes);
    }
    b->n_groups = groups;
    b->n_nodes = nodes;
    return MOEC_OK;
}

static moec_status check_loads(const float *loads, uint32_t n_layers,
                               uint32_t n_experts, moec_error *err)
{
    for (uint32_t layer = 0; layer < n_layers; layer++) {
        const float *row = loads + (size_t)layer * n_experts;

        for (uint32_t e = 0; e < n_experts; e++) {
            if (row[e] >= 0 && row[e] <= 3.402823466e+38F)
                continue;
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P12,
                             "row %" PRIu32 ", expert %" PRIu32
                             ": load %g is no finite number from 0 on",
                             layer, e, (double)row[e]);
        }
    }
    return MOEC_OK;
}

/* All scratch from one arena: sizes are P, E, W at most. */
static moec_status scratch_init(balancer *b, moec_arena *arena, moec_error *err)
{
    size_t p = b->n_physical, e = b->n_experts, w = b->opts->n_ranks;
    const struct {
        void *at; /* address of the pointer */
        size_t bytes;
    } parts[] = {
        {&b->sorted, p * sizeof(item)},     {&b->tmp, p * sizeof(item)},
        {&b->pack, p * sizeof(uint32_t)},   {&b->place, p * sizeof(uint32_t)},
        {&b->n_in, w * sizeof(uint32_t)},   {&b->sum64, w * sizeof(double)},
        {&b->sum32, w * sizeof(float)},     {&b->group_load, e * sizeof(float)},
        {&b->order, e * sizeof(uint32_t)},  {&b->load, e * sizeof(float)},
        {&b->copies, e * sizeof(uint32_t)}, {&b->owner, p * sizeof(uint32_t)},
        {&b->copy, p * sizeof(uint32_t)},   {&b->slot_load, p * sizeof(float)},
    };

    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        void *m = moec_arena_alloc(arena, parts[i].bytes, 16);

        if (!m)
            return moec_fail_nomem(err, "EPLB");
        memcpy(parts[i].at, &m, sizeof(m));
    }
    return MOEC_OK;
}

moec_status moec_eplb(moec_placement **out, uint32_t *replica,
                      const moec_eplb_opts *opts, const float *loads,
                      uint32_t n_layers, uint32_t n_experts, moec_error *err)
{
    uint64_t n_physical;
    balancer b = {.opts = opts, .n_experts = n_experts};
    moec_arena arena = {0};
    int32_t *rows = NULL;
    moec_status st;

    MOEC_TRY(moec_check_struct("moec_eplb_opts", opts->struct_bytes,
                               sizeof(*opts), err));
    n_physical = (uint64_t)n_experts + opts->n_redundant;
    MOEC_TRY(check_sizes(opts, n_experts, n_physical, err));
    b.n_physical = (uint32_t)n_physical;
    MOEC_TRY(choose_policy(&b, err));
    MOEC_TRY(check_loads(loads, n_layers, n_experts, err));
    st = scratch_init(&b, &arena, err);
    if (st != MOEC_OK)
        goto free_arena;
    rows = moec_calloc((size_t)n_layers * b.n_physical, sizeof(*rows));
    if (!rows) {
        st = moec_fail_nomem(err, "EPLB rows");
        goto free_arena;
    }
    for (uint32_t i = 0; i < n_layers; i++) {
        size_t at = (size_t)i * b.n_physical;

        pack_groups(&b, loads + (size_t)i * n_experts);
        for (uint32_t node = 0; node < b.n_nodes; node++)
            fill_node(&b, node, rows + at, replica ? replica + at : NULL);
    }
    st = moec_placement_from_rows(out, n_layers, n_experts, b.n_physical, rows,
                                  err);
    moec_free(rows);
free_arena:
    moec_arena_fini(&arena);
    return st;
}

moec_status moec_eplb_sum_steps(const int64_t *counts, uint64_t n_steps,
                                uint64_t n, float *out, moec_error *err)
{
    for (uint64_t i = 0; i < n; i++) {
        int64_t sum = 0;

        for (uint64_t step = 0; step < n_steps; step++) {
            int64_t v = counts[step * n + i];

            if (v < 0)
                return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P12,
                                 "step %" PRIu64 ", entry %" PRIu64
                                 ": a count of %" PRId64,
                                 step, i, v);
            if (__builtin_add_overflow(sum, v, &sum))
                return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P12,
                                 "entry %" PRIu64
                                 ": the counts of all steps exceed 2^63",
                                 i);
        }
        out[i] = (float)sum;
    }
    return MOEC_OK;
}
