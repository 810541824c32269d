/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: which replica of an expert a source rank sends to: candidate
 *   lists in the form that kernels take, the nearest candidate, and SGLang's
 *   static table, bit for bit (ExpertLocationMetadata: a fair random choice
 *   among what is equally far).
 * Refuses: placements that W does not divide, a rank or nodes out of range,
 *   an EPLB order that is no order.
 *
 * The table is random but not free: one CPython Random(42) runs over all rows
 * and experts, and what one expert draws moves the rest. An expert that every
 * rank has near (one candidate, or a list collapsed to one) draws nothing, so
 * with collapsed lists each rank sees a stream of its own.
 */

#include <inttypes.h>
#include <string.h>

#include "placement.h"

struct moec_replicas {
    uint32_t n_layers, n_experts, n_physical;
    uint32_t n_ranks, rank;
    uint32_t *first;  /* [n_layers][E + 1] */
    uint32_t *cand;   /* [n_layers][P] */
    uint32_t *table;  /* [n_layers][E] */
    int32_t *nearest; /* [n_layers][E] */
};

/* --------------------------------------------- CPython's random.Random */

#define MT_N 624
#define MT_M 397

typedef struct twister {
    uint32_t state[MT_N];
    uint32_t at;
} twister;

static void mt_init(twister *mt, uint32_t seed)
{
    mt->state[0] = seed;
    for (uint32_t i = 1; i < MT_N; i++)
        mt->state[i] =
            UINT32_C(1812433253) * (mt->state[i - 1] ^ mt->state[i - 1] >> 30) +
            i;
    mt->at = MT_N;
}

/* Random(seed) for 0 <= seed < 2^32: init_by_array of one word. */
static void mt_seed(twister *mt, uint32_t seed)
{
    uint32_t *s = mt->state;
    uint32_t i = 1;

    mt_init(mt, UINT32_C(19650218));
    for (uint32_t k = 0; k < MT_N; k++) {
        s[i] = (s[i] ^ (s[i - 1] ^ s[i - 1] >> 30) * UINT32_C(1664525)) + seed;
        if (++i == MT_N) {
            s[0] = s[MT_N - 1];
            i = 1;
        }
    }
    for (uint32_t k = 0; k < MT_N - 1; k++) {
        s[i] = (s[i] ^ (s[i - 1] ^ s[i - 1] >> 30) * UINT32_C(1566083941)) - i;
        if (++i == MT_N) {
            s[0] = s[MT_N - 1];
            i = 1;
        }
    }
    s[0] = UINT32_C(0x80000000);
}

static void mt_refill(twister *mt)
{
    uint32_t *s = mt->state;

    for (uint32_t i = 0; i < MT_N; i++) {
        uint32_t y = (s[i] & UINT32_C(0x80000000)) |
                     (s[(i + 1) % MT_N] & UINT32_C(0x7fffffff));

        s[i] =
            s[(i + MT_M) % MT_N] ^ y >> 1 ^ (y & 1 ? UINT32_C(0x9908b0df) : 0);
    }
    mt->at = 0;
}

static uint32_t mt_next(twister *mt)
{
    uint32_t y;

    if (mt->at == MT_N)
        mt_refill(mt);
    y = mt->state[mt->at++];
    y ^= y >> 11;
    y ^= y << 7 & UINT32_C(0x9d2c5680);
    y ^= y << 15 & UINT32_C(0xefc60000);
    return y ^ y >> 18;
}

/* Random._randbelow(n), n > 0. */
static uint32_t rand_below(twister *mt, uint32_t n)
{
    unsigned bits = 32 - (unsigned)__builtin_clz(n);
    uint32_t r;

    do
        r = mt_next(mt) >> (32 - bits);
    while (r >= n);
    return r;
}

/* Random.shuffle. */
static void rand_shuffle(twister *mt, uint32_t *x, uint32_t n)
{
    for (uint32_t i = n; i-- > 1;) {
        uint32_t j = rand_below(mt, i + 1), t = x[i];

        x[i] = x[j];
        x[j] = t;
    }
}

/* Where Random.sample stops copying the population: what a list of n costs
 * against a set of m. 4^ceil(log4(3m)) without logarithms: 3m is no power of 4,
 * so rounding cannot matter (the two agree for all m up to 2^20). */
static uint64_t sample_set_size(uint32_t m)
{
    uint64_t power = 1;

    if (m <= 5)
        return 21;
    while (power < 3 * (uint64_t)m)
        power *= 4;
    return 21 + power;
}

/* Random.sample(pop[n], m) into out[m]. `scratch` has n entries. */
static void rand_sample(twister *mt, const uint32_t *pop, uint32_t n,
                        uint32_t *out, uint32_t m, uint32_t *scratch)
{
    if (m == 0)
        return;
    if (n <= sample_set_size(m)) {
        memcpy(scratch, pop, n * sizeof(*pop));
        for (uint32_t i = 0; i < m; i++) {
            uint32_t j = rand_below(mt, n - i);

            out[i] = scratch[j];
            scratch[j] = scratch[n - i - 1];
        }
        return;
    }
    memset(scratch, 0, n * sizeof(*scratch));
    for (uint32_t i = 0; i < m; i++) {
        uint32_t j;

        do
            j = rand_below(mt, n);
        while (scratch[j]);
        scratch[j] = 1;
        out[i] = pop[j];
    }
}

/* ------------------------------------------------------------ one layer */

/* What the choice of one expert needs, for all of them. */
typedef struct chooser {
    const moec_replicas_opts *opts;
    twister mt;
    uint32_t n_local;   /* L */
    uint32_t node_size; /* ranks of a node; 0: nodes unknown */
    uint32_t stamp;     /* of the expert at hand */
    uint32_t *on_rank;  /* [W] stamp where a candidate is on the rank */
    uint32_t *on_node;  /* [W] candidates on the node, where the stamp fits */
    uint32_t *node_stamp;
    uint32_t *fair;    /* [W] the fair choices of ranks without a near one */
    uint32_t *scratch; /* [P] */
} chooser;

/* The nearest of cand[n] for `rank`, or -1. */
static int32_t nearest(const chooser *c, const uint32_t *cand, uint32_t n,
                       uint32_t rank)
{
    uint32_t n_here = 0, here = 0;

    if (n == 1)
        return (int32_t)cand[0];
    for (uint32_t i = 0; i < n; i++) {
        if (cand[i] / c->n_local == rank)
            return (int32_t)cand[i];
    }
    if (c->node_size == 0)
        return -1;
    for (uint32_t i = n; i-- > 0;) {
        if (cand[i] / c->n_local / c->node_size != rank / c->node_size)
            continue;
        here = cand[i];
        n_here++;
    }
    return n_here > 0 && n_here < n ? (int32_t)here : -1;
}

/* Ranks that have no near one of cand[n], n > 1; *before_out: those before
 * the source rank. */
static uint32_t count_far(chooser *c, const uint32_t *cand, uint32_t n,
                          uint32_t *before_out)
{
    uint32_t n_far = 0;

    c->stamp++;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t rank = cand[i] / c->n_local;
        uint32_t node = c->node_size ? rank / c->node_size : 0;

        c->on_rank[rank] = c->stamp;
        if (c->node_stamp[node] != c->stamp)
            c->on_node[node] = 0;
        c->node_stamp[node] = c->stamp;
        c->on_node[node]++;
    }
    for (uint32_t rank = 0; rank < c->opts->n_ranks; rank++) {
        uint32_t node = c->node_size ? rank / c->node_size : 0;

        if (rank == c->opts->rank)
            *before_out = n_far;
        if (c->on_rank[rank] == c->stamp)
            continue;
        if (c->node_size && c->node_stamp[node] == c->stamp &&
            c->on_node[node] < n)
            continue;
        n_far++;
    }
    return n_far;
}

/* SGLang's entry of the static table for one expert: draws for ALL ranks, and
 * returns the source rank's. */
static uint32_t choose(chooser *c, const uint32_t *cand, uint32_t n,
                       int32_t near)
{
    uint32_t before = 0, n_far, whole;

    if (n == 1 || (near >= 0 && c->opts->all_to_all))
        return (uint32_t)near;
    n_far = count_far(c, cand, n, &before);
    whole = n_far - n_far % n;
    for (uint32_t i = 0; i < whole; i++)
        c->fair[i] = cand[i % n];
    rand_sample(&c->mt, cand, n, c->fair + whole, n_far - whole, c->scratch);
    rand_shuffle(&c->mt, c->fair, n_far);
    return near >= 0 ? (uint32_t)near : c->fair[before];
}

/* Candidates of one row, ascending by physical id. */
static void list_ascending(const int32_t *row, uint32_t n_experts,
                           uint32_t n_physical, uint32_t *first, uint32_t *cand)
{
    memset(first, 0, (n_experts + 1) * sizeof(*first));
    for (uint32_t p = 0; p < n_physical; p++) {
        if (row[p] >= 0)
            first[row[p]]++;
    }
    for (uint32_t e = 0, at = 0; e <= n_experts; e++) {
        uint32_t n = e < n_experts ? first[e] : 0;

        first[e] = at;
        at += n;
    }
    for (uint32_t p = 0; p < n_physical; p++) {
        if (row[p] >= 0)
            cand[first[row[p]]++] = p;
    }
    memmove(first + 1, first, n_experts * sizeof(*first));
    first[0] = 0;
}

/* The same in the order of `replica`, whose entries must number the replicas
 * of each expert from 0. */
static moec_status order_by_replica(const int32_t *row, const uint32_t *replica,
                                    uint32_t n_physical, uint32_t layer,
                                    const uint32_t *first, uint32_t *cand,
                                    moec_error *err)
{
    memset(cand, 0xff, n_physical * sizeof(*cand));
    for (uint32_t p = 0; p < n_physical; p++) {
        uint32_t e, n;

        if (row[p] < 0)
            continue;
        e = (uint32_t)row[p];
        n = first[e + 1] - first[e];
        if (replica[p] >= n || cand[first[e] + replica[p]] != UINT32_MAX)
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "row %" PRIu32 ", slot %" PRIu32
                             ": replica %" PRIu32 " of expert %" PRIu32
                             ", whose %" PRIu32
                             " replicas must be numbered from 0, each once",
                             layer, p, replica[p], e, n);
        cand[first[e] + replica[p]] = p;
    }
    return MOEC_OK;
}

/* Nearest and table of one layer whose lists are there. Outputs may be NULL:
 * the row only draws. */
static void choose_row(chooser *c, uint32_t n_experts, const uint32_t *first,
                       const uint32_t *cand, int32_t *near_out, uint32_t *table)
{
    for (uint32_t e = 0; e < n_experts; e++) {
        const uint32_t *list = cand + first[e];
        uint32_t n = first[e + 1] - first[e];
        int32_t near = nearest(c, list, n, c->opts->rank);
        uint32_t chosen = choose(c, list, n, near);

        if (near_out)
            near_out[e] = near;
        if (table)
            table[e] = chosen;
    }
}

/* --------------------------------------------------------- all layers */

static moec_status check_opts(const moec_placement *p,
                              const moec_replicas_opts *o, moec_error *err)
{
    uint32_t n_layers = moec_placement_n_layers(p);

    MOEC_TRY(moec_check_struct("moec_replicas_opts", o->struct_bytes,
                               sizeof(*o), err));
    MOEC_TRY(moec_placement_fits(p, o->n_ranks, NULL, n_layers, err));
    if (o->rank >= o->n_ranks)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "source rank %" PRIu32 " of %" PRIu32 " ranks",
                         o->rank, o->n_ranks);
    if (o->n_nodes > 0 && o->n_ranks % o->n_nodes != 0)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%" PRIu32 " ranks do not divide by %" PRIu32 " nodes",
                         o->n_ranks, o->n_nodes);
    if (o->all_to_all && o->replica)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "lists in EPLB's order are never collapsed: give "
                         "all_to_all or replica, not both");
    for (uint32_t i = 0; o->keys && i < n_layers; i++) {
        if (o->keys[i].space == MOEC_SPACE_MAIN &&
            o->keys[i].number >= o->n_decoder)
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "layer %" PRIu32 " of %" PRIu32 " decoder layers",
                             o->keys[i].number, o->n_decoder);
    }
    return MOEC_OK;
}

static moec_status chooser_init(chooser *c, const moec_replicas_opts *o,
                                uint32_t n_physical, moec_error *err)
{
    size_t n = (size_t)o->n_ranks * 4 + n_physical;

    c->opts = o;
    c->n_local = n_physical / o->n_ranks;
    c->node_size = o->n_nodes ? o->n_ranks / o->n_nodes : 0;
    c->on_rank = moec_calloc(n, sizeof(*c->on_rank));
    if (!c->on_rank)
        return moec_fail_nomem(err, "replica choice");
    c->on_node = c->on_rank + o->n_ranks;
    c->node_stamp = c->on_node + o->n_ranks;
    c->fair = c->node_stamp + o->n_ranks;
    c->scratch = c->fair + o->n_ranks;
    mt_seed(&c->mt, 42);
    return MOEC_OK;
}

static moec_status replicas_alloc(moec_replicas **out, const moec_placement *p,
                                  const moec_replicas_opts *o, moec_error *err)
{
    moec_replicas *r = moec_calloc(1, sizeof(*r));
    size_t n, e;

    if (!r)
        return moec_fail_nomem(err, "replicas");
    r->n_layers = moec_placement_n_layers(p);
    r->n_experts = moec_placement_n_experts(p);
    r->n_physical = moec_placement_n_physical(p);
    r->n_ranks = o->n_ranks;
    r->rank = o->rank;
    n = r->n_layers;
    e = r->n_experts;
    /* Below 2^32 * 2^20 each: no overflow. */
    r->first = moec_calloc(n * (e + 1), sizeof(*r->first));
    r->cand = moec_calloc(n * r->n_physical, sizeof(*r->cand));
    r->table = moec_calloc(n * e, sizeof(*r->table));
    r->nearest = moec_calloc(n * e, sizeof(*r->nearest));
    if (!r->first || !r->cand || !r->table || !r->nearest) {
        moec_replicas_destroy(r);
        return moec_fail_nomem(err, "replica lists");
    }
    *out = r;
    return MOEC_OK;
}

static moec_status list_layers(moec_replicas *r, const moec_placement *p,
                               const moec_replicas_opts *o, moec_error *err)
{
    for (uint32_t i = 0; i < r->n_layers; i++) {
        const int32_t *row = moec_placement_row(p, i);
        uint32_t *first = r->first + (size_t)i * (r->n_experts + 1);
        size_t at = (size_t)i * r->n_physical;

        list_ascending(row, r->n_experts, r->n_physical, first, r->cand + at);
        if (o->replica)
            MOEC_TRY(order_by_replica(row, o->replica + at, r->n_physical, i,
                                      first, r->cand + at, err));
    }
    return MOEC_OK;
}

static void choose_layer(chooser *c, moec_replicas *r, uint32_t i)
{
    size_t at = (size_t)i * r->n_experts;

    choose_row(c, r->n_experts, r->first + (size_t)i * (r->n_experts + 1),
               r->cand + (size_t)i * r->n_physical, r->nearest + at,
               r->table + at);
}

/* The stream over all decoder layers, then the MTP ones in order. Rows are
 * few (hundreds): they are looked for one by one. */
static moec_status choose_by_key(chooser *c, moec_replicas *r, moec_error *err)
{
    const moec_replicas_opts *o = c->opts;
    uint32_t *first, *cand;
    int32_t *row;
    moec_status st = MOEC_OK;

    first = moec_calloc(r->n_experts + (size_t)1, sizeof(*first));
    cand = moec_calloc(r->n_physical, sizeof(*cand));
    row = moec_calloc(r->n_physical, sizeof(*row));
    if (!first || !cand || !row) {
        st = moec_fail_nomem(err, "dense rows");
        goto done;
    }
    for (uint32_t p = 0; p < r->n_physical; p++)
        row[p] = (int32_t)(p % r->n_experts);
    list_ascending(row, r->n_experts, r->n_physical, first, cand);
    for (uint32_t number = 0; number < o->n_decoder; number++) {
        uint32_t i = 0;

        while (i < r->n_layers && (o->keys[i].space != MOEC_SPACE_MAIN ||
                                   o->keys[i].number != number))
            i++;
        if (i < r->n_layers)
            choose_layer(c, r, i);
        else
            choose_row(c, r->n_experts, first, cand, NULL, NULL);
    }
    for (uint32_t i = 0; i < r->n_layers; i++) {
        if (o->keys[i].space == MOEC_SPACE_MTP)
            choose_layer(c, r, i);
    }
done:
    moec_free(row);
    moec_free(cand);
    moec_free(first);
    return st;
}

moec_status moec_replicas_create(moec_replicas **out,
                                 const moec_placement *placement,
                                 const moec_replicas_opts *opts,
                                 moec_error *err)
{
    moec_replicas *r = NULL;
    chooser c = {0};
    moec_status st;

    MOEC_TRY(check_opts(placement, opts, err));
    MOEC_TRY(replicas_alloc(&r, placement, opts, err));
    st = chooser_init(&c, opts, r->n_physical, err);
    if (st == MOEC_OK)
        st = list_layers(r, placement, opts, err);
    if (st == MOEC_OK && opts->keys)
        st = choose_by_key(&c, r, err);
    else if (st == MOEC_OK) {
        for (uint32_t i = 0; i < r->n_layers; i++)
            choose_layer(&c, r, i);
    }
    moec_free(c.on_rank);
    if (st != MOEC_OK) {
        moec_replicas_destroy(r);
        return st;
    }
    *out = r;
    return MOEC_OK;
}

void moec_replicas_destroy(moec_replicas *replicas)
{
    if (!replicas)
        return;
    moec_free(replicas->nearest);
    moec_free(replicas->table);
    moec_free(replicas->cand);
    moec_free(replicas->first);
    moec_free(replicas);
}

const uint32_t *moec_replicas_table(const moec_replicas *replicas,
                                    uint32_t layer)
{
    return replicas->table + (size_t)layer * replicas->n_experts;
}

const int32_t *moec_replicas_nearest(const moec_replicas *replicas,
                                     uint32_t layer)
{
    return replicas->nearest + (size_t)layer * replicas->n_experts;
}

void moec_replicas_map(const moec_replicas *replicas, uint32_t layer,
                       moec_replica_rule rule, uint32_t number,
                       uint32_t n_shared_slots, uint32_t shared_global,
                       moec_dispatch_map *map)
{
    const moec_replicas *r = replicas;

    *map = (moec_dispatch_map){
        .struct_bytes = sizeof(*map),
        .topology = {.n_physical = r->n_physical,
                     .n_ranks = r->n_ranks,
                     .n_local = r->n_physical / r->n_ranks,
                     .n_shared_slots = n_shared_slots,
                     .shared_global = shared_global},
        .n_experts = r->n_experts,
        .rule = rule,
        .rank = r->rank,
        .layer = number,
        .table = moec_replicas_table(r, layer),
        .cand_first = r->first + (size_t)layer * (r->n_experts + 1),
        .cand = r->cand + (size_t)layer * r->n_physical,
    };
}
