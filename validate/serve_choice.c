/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Every other way to choose slots. serve.c has run the experts once; since then
 * each slot's bytes have a digest and each expert a slot that is known to be
 * right. So the other choices need no arithmetic: the routing is repeated under
 * every replica rule, from every source rank, with padding rows, with one
 * token, with the shared experts moved about by waterfill, and with Expert
 * Choice, and each column must come to a slot of the same bytes. Rows made up
 * so that every replica is called for see to it that none is left unasked.
 */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "level3.h"

/* One choice under way. */
typedef struct choice {
    moec_l3_layer *l;
    const char *what; /* "row % n, rank 3" is made of it */
    uint32_t home, rank;
    const int32_t *ids; /* [n][C] */
    uint32_t n, n_valid;
    const int32_t *slots;
    bool filled; /* waterfill: the shared expert may be anywhere */
    bool told;   /* one finding for each choice is enough */
} choice;

static const char *const rule_names[] = {
    [MOEC_REPLICA_TABLE] = "static table",
    [MOEC_REPLICA_ROW] = "replica by row",
    [MOEC_REPLICA_ROW_LAYER] = "replica by row and layer",
    [MOEC_REPLICA_ROW_RANK_LAYER] = "replica by row, rank and layer",
};

static void tell(choice *c, uint32_t t, uint32_t col, int32_t id,
                 const char *why)
{
    moec_finding f;

    if (c->told)
        return;
    c->told = true;
    f = moec_l3_finding(c->l, MOEC_RULE_K06, MOEC_SEVERITY_ERROR);
    f.has |= MOEC_HAS_RANK;
    f.rank = c->rank;
    if (id >= 0) {
        f.has |= MOEC_HAS_EXPERT;
        f.expert = (uint32_t)id;
    }
    moec_report_add(c->l->v->r, &f,
                    "%s, source rank %" PRIu32 ": token %" PRIu32
                    ", column %" PRIu32 ": %s",
                    c->what, c->rank, t, col, why);
}

/* A slot with other bytes than the right one of its expert. */
static void tell_slot(choice *c, uint32_t rank, uint32_t row, uint32_t expert,
                      const moec_l3_slot *right)
{
    moec_l3_layer *l = c->l;
    moec_l3_slot *slot = &l->slot[(size_t)rank * l->n_rows + row];
    moec_finding f;
    char want[33], got[33];

    if (slot->told)
        return;
    slot->told = true;
    f = moec_l3_slot_finding(l, MOEC_RULE_K05, rank, row);
    moec_hex(right->digest.b, sizeof(right->digest.b), want);
    moec_hex(slot->digest.b, sizeof(slot->digest.b), got);
    f.has |= MOEC_HAS_EXPERT | MOEC_HAS_EXPECTED | MOEC_HAS_FOUND;
    f.expert = expert;
    f.expected = want;
    f.found = got;
    moec_report_add(l->v->r, &f,
                    "%s, source rank %" PRIu32
                    ": the slot that the expert's tokens go to holds other "
                    "bytes than the expert",
                    c->what, c->rank);
}

static bool is_slot(const moec_l3_layer *l, int32_t q)
{
    uint32_t copies = l->topo.shared_global ? 1 : l->topo.n_ranks;

    return q >= 0 && (uint32_t)q < l->topo.n_physical + copies * l->shared;
}

/* Does (rank, row) hold what expert (or shared part) `expert` is? */
static void check_bytes(choice *c, uint32_t rank, uint32_t row, uint32_t expert)
{
    moec_l3_layer *l = c->l;
    moec_l3_slot *slot = &l->slot[(size_t)rank * l->n_rows + row];
    uint32_t right = l->expert_slot[expert];

    slot->reached = true;
    if (right == UINT32_MAX) /* it has its finding already */
        return;
    if (!slot->read || memcmp(slot->digest.b, l->slot[right].digest.b,
                              sizeof(slot->digest.b)) != 0)
        tell_slot(c, rank, row, expert, &l->slot[right]);
}

static void check_routed(choice *c, uint32_t t, uint32_t col)
{
    moec_l3_layer *l = c->l;
    size_t p = (size_t)t * (l->top_k + l->shared) + col;
    int32_t id = c->ids[p], q = c->slots[p];
    bool real = t < c->n_valid && id >= 0 && (uint32_t)id < l->experts;
    uint32_t rank, row;

    if (!real) {
        if (q != -1)
            tell(c, t, col, -1, "a column without an expert has a slot");
        return;
    }
    if (!is_slot(l, q)) {
        tell(c, t, col, id, "the expert has no slot to go to");
        return;
    }
    moec_l3_place(l, (uint32_t)q, c->rank, &rank, &row);
    if (row >= l->topo.n_local)
        tell(c, t, col, id, "a routed expert goes to a shared slot");
    else
        check_bytes(c, rank, row, (uint32_t)id);
}

static void check_shared(choice *c, uint32_t t)
{
    moec_l3_layer *l = c->l;
    uint32_t cols = l->top_k + l->shared, first = 0;
    size_t p = (size_t)t * cols;
    bool valid = false;

    for (uint32_t k = 0; t < c->n_valid && k < l->top_k; k++)
        valid = valid || c->ids[p + k] >= 0;
    for (uint32_t s = 0; s < l->shared; s++) {
        int32_t q = c->slots[p + l->top_k + s];
        uint32_t rank, row;

        if (!valid) {
            if (q != -1)
                tell(c, t, l->top_k + s, -1,
                     "a row without experts has a shared slot");
            continue;
        }
        if (!is_slot(l, q)) {
            tell(c, t, l->top_k + s, -1, "the shared part has no slot");
            continue;
        }
        moec_l3_place(l, (uint32_t)q, c->rank, &rank, &row);
        if (s == 0)
            first = rank;
        if (row != l->topo.n_local + s)
            tell(c, t, l->top_k + s, -1, "the shared part goes to another row");
        else if (rank != first || (!c->filled && rank != c->rank))
            tell(c, t, l->top_k + s, -1,
                 "the shared part goes to another rank");
        else
            check_bytes(c, rank, row, l->experts + s);
    }
}

static void check(choice *c)
{
    for (uint32_t t = 0; t < c->n; t++) {
        for (uint32_t k = 0; k < c->l->top_k; k++)
            check_routed(c, t, k);
        check_shared(c, t);
    }
    c->l->result->choices++;
}

/* ------------------------------------------------------------ the rooms */

typedef struct bench {
    moec_l3_layer *l;
    int32_t *ids; /* [rows][C] of every expert once */
    uint32_t n_ids;
    uint32_t replicas; /* most of any expert */
    int32_t *slots;
    float *weights, *out_weights, *identity;
} bench;

static void bench_fini(bench *b)
{
    moec_free(b->ids);
    moec_free(b->slots);
    moec_free(b->weights);
    moec_free(b->out_weights);
    moec_free(b->identity);
}

static uint32_t most_replicas(const moec_l3_layer *l)
{
    const int32_t *row =
        moec_placement_row(moec_plan_placement(l->v->plan),
                           (uint32_t)l->model_layer[MOEC_LEVEL3_SERVED]);
    uint32_t *n = moec_calloc((size_t)l->experts + 1, sizeof(*n)), most = 1;

    for (uint32_t p = 0; n != NULL && p < l->topo.n_physical; p++)
        if (row[p] >= 0 && ++n[row[p]] > most)
            most = n[row[p]];
    moec_free(n);
    return most;
}

static moec_status bench_open(bench *b, moec_l3_layer *l, moec_error *err)
{
    uint32_t cols = l->top_k + l->shared;
    size_t rows, n;

    b->l = l;
    b->replicas = most_replicas(l);
    b->n_ids = (l->experts + l->top_k - 1) / l->top_k;
    rows = moec_max_u64(b->n_ids, l->tokens) + 1;
    n = rows * cols;
    b->ids = moec_calloc(n, sizeof(*b->ids));
    b->slots = moec_calloc(n, sizeof(*b->slots));
    b->weights = moec_calloc(n, sizeof(*b->weights));
    b->out_weights = moec_calloc(n, sizeof(*b->out_weights));
    b->identity = moec_calloc(rows, sizeof(*b->identity));
    if (b->ids == NULL || b->slots == NULL || b->weights == NULL ||
        b->out_weights == NULL || b->identity == NULL)
        return moec_fail_nomem(err, "choices of a layer");
    for (uint32_t i = 0; i < b->n_ids * cols; i++) {
        uint32_t e = i / cols * l->top_k + i % cols;

        b->ids[i] = i % cols < l->top_k && e < l->experts ? (int32_t)e : -1;
        b->weights[i] = 1.0f;
    }
    return MOEC_OK;
}

/* Dispatch and check. */
static moec_status run(bench *b, choice *c, const moec_dispatch_map *map,
                       const moec_waterfill *fill, moec_error *err)
{
    const moec_l3_layer *l = b->l;
    const float *weights =
        c->ids == b->ids ? b->weights : l->side[MOEC_LEVEL3_SERVED].weights;
    moec_dispatch_out out = {.struct_bytes = sizeof(out),
                             .slots = b->slots,
                             .weights = b->out_weights,
                             .identity = b->identity};
    moec_l3_rows rows = {c->ids, weights, c->n, c->n_valid};

    c->l = b->l;
    c->rank = map->rank;
    c->slots = b->slots;
    c->filled = fill != NULL;
    MOEC_TRY(moec_l3_dispatch(l, map, fill, &rows, &out, err));
    check(c);
    return MOEC_OK;
}

/* ---------------------------------------------------------- the choices */

/* The batch itself, as one source rank would send it. */
static moec_status run_batch(bench *b, moec_replica_rule rule, uint32_t home,
                             moec_error *err)
{
    moec_l3_layer *l = b->l;
    const moec_waterfill fills[2] = {
        {.mode = MOEC_WATERFILL_STATIC},
        {.mode = MOEC_WATERFILL_STATIC, .by_rank = 1}};
    choice c = {.what = rule_names[rule],
                .home = home,
                .ids = l->side[MOEC_LEVEL3_SERVED].ids,
                .n = l->tokens,
                .n_valid = l->tokens};
    moec_dispatch_map map;

    moec_l3_map(l, rule, home, 0, &map);
    MOEC_TRY(run(b, &c, &map, NULL, err));
    c.what = "one token";
    c.n = c.n_valid = 1;
    MOEC_TRY(run(b, &c, &map, NULL, err));
    c.what = "padding rows";
    c.n = l->tokens;
    c.n_valid = l->tokens - (l->tokens + 3) / 4;
    MOEC_TRY(run(b, &c, &map, NULL, err));
    c.n_valid = l->tokens;
    c.what = "waterfill";
    for (uint32_t i = 0; l->shared != 0 && !l->topo.shared_global && i < 2; i++)
        MOEC_TRY(run(b, &c, &map, &fills[i], err));
    return MOEC_OK;
}

/* Every expert once, from row0 on: with as many first rows as there are
 * replicas each of them is called for. */
static moec_status run_all_experts(bench *b, moec_replica_rule rule,
                                   uint32_t home, uint32_t shifts,
                                   moec_error *err)
{
    choice c = {.what = rule_names[rule],
                .home = home,
                .ids = b->ids,
                .n = b->n_ids,
                .n_valid = b->n_ids};

    for (uint32_t row0 = 0; row0 < shifts; row0++) {
        moec_dispatch_map map;

        moec_l3_map(b->l, rule, home, row0, &map);
        MOEC_TRY(run(b, &c, &map, NULL, err));
    }
    return MOEC_OK;
}

/* Choice and dispatch in one pass over the logits: the same slots. */
static moec_status run_fused(bench *b, moec_error *err)
{
    moec_l3_layer *l = b->l;
    const moec_l3_side *s = &l->side[MOEC_LEVEL3_SERVED];
    moec_route_in in = moec_l3_route_in(l, MOEC_LEVEL3_SERVED);
    moec_dispatch_out out = {.struct_bytes = sizeof(out),
                             .slots = b->slots,
                             .weights = b->out_weights,
                             .identity = b->identity};
    choice c = {.l = l,
                .what = "choice and dispatch in one",
                .ids = s->ids,
                .n = l->tokens,
                .n_valid = l->tokens,
                .slots = b->slots};
    moec_dispatch_map map;
    moec_room room = {0};
    uint64_t bytes;
    moec_status st;

    moec_l3_map(l, MOEC_REPLICA_ROW_RANK_LAYER, 0, 0, &map);
    c.rank = map.rank;
    bytes = moec_route_dispatch_workspace_bytes(s->router, &map, l->tokens);
    st = moec_room_get(&room, bytes, err);
    if (st == MOEC_OK)
        st = moec_route_dispatch(s->router, &in, &map, NULL, NULL, &out,
                                 room.data, bytes, err);
    if (st == MOEC_OK)
        check(&c);
    moec_room_fini(&room);
    return st;
}

/* After all choices: a slot that none of them reached serves nobody. */
static void check_reached(moec_l3_layer *l)
{
    for (uint32_t r = 0; r < l->topo.n_ranks; r++)
        for (uint32_t row = 0; row < l->topo.n_local; row++) {
            const moec_l3_slot *slot = &l->slot[(size_t)r * l->n_rows + row];
            moec_finding f;

            if (!slot->read || slot->reached)
                continue;
            f = moec_l3_slot_finding(l, MOEC_RULE_K06, r, row);
            moec_report_add(l->v->r, &f, "no choice sends a token here");
        }
}

moec_status moec_l3_choices(moec_l3_layer *l, moec_error *err)
{
    static const moec_replica_rule rules[] = {
        MOEC_REPLICA_TABLE, MOEC_REPLICA_ROW, MOEC_REPLICA_ROW_LAYER,
        MOEC_REPLICA_ROW_RANK_LAYER};
    bench b = {0};
    moec_status st = bench_open(&b, l, err);

    for (uint32_t h = 0; h < l->v->n_homes; h++)
        for (size_t i = 0; st == MOEC_OK && i < 4; i++) {
            bool by_row = rules[i] != MOEC_REPLICA_TABLE;

            st = run_batch(&b, rules[i], h, err);
            if (st == MOEC_OK)
                st = run_all_experts(&b, rules[i], h,
                                     by_row && h == 0 ? b.replicas : 1, err);
        }
    if (st == MOEC_OK)
        st = run_fused(&b, err);
    if (st == MOEC_OK)
        check_reached(l);
    bench_fini(&b);
    return st;
}

/* -------------------------------------------------------- Expert Choice */

typedef struct mode {
    const char *what;
    moec_ec_fill fill;
    bool hard;
} mode;

static const mode modes[] = {
    {"expert choice, fill missing", MOEC_EC_FILL_MISSING, false},
    {"expert choice, full row", MOEC_EC_FULL_ROW, false},
    {"expert choice, pad", MOEC_EC_PAD, true},
    {"expert choice, balanced", MOEC_EC_BALANCED, true},
};
enum { N_MODES = sizeof(modes) / sizeof(*modes) };

/* One side's ids in a mode; into ids [tokens][C]. */
static moec_status route_mode(const bench *b, int side, const mode *m,
                              uint32_t ppm, uint32_t tokens, int32_t *ids,
                              moec_ec_stats *stats, moec_error *err)
{
    const moec_l3_layer *l = b->l;
    moec_route_config config = *moec_router_config(l->side[side].router);
    moec_route_in in = moec_l3_route_in(l, side);
    moec_router *router = NULL;
    moec_status st;

    config.ec.mode = MOEC_EC_ON;
    config.ec.fill = m->fill;
    config.ec.capacity_ppm = ppm;
    in.n_tokens = in.n_valid = tokens;
    st = moec_router_create(&router, l->v->k[side], &config, err);
    if (st == MOEC_OK)
        st = moec_l3_run_router(l->v->device[side], router, &in, ids,
                                b->out_weights, stats, err);
    moec_router_destroy(router);
    return st;
}

/* More columns of one expert than it has room for. */
static void check_capacity(moec_l3_layer *l, const mode *m, const int32_t *ids,
                           uint32_t capacity)
{
    uint32_t cols = l->side[1].cols;
    moec_finding f;

    for (uint32_t e = 0; m->hard && e < l->experts; e++) {
        uint32_t n = 0;

        for (uint32_t t = 0; t < l->tokens; t++)
            for (uint32_t k = 0; k < l->top_k; k++)
                n += ids[(size_t)t * cols + k] == (int32_t)e;
        if (n <= capacity)
            continue;
        f = moec_l3_finding(l, MOEC_RULE_K08, MOEC_SEVERITY_ERROR);
        f.has |= MOEC_HAS_EXPERT;
        f.expert = e;
        moec_report_add(l->v->r, &f,
                        "%s: %" PRIu32 " tokens, its capacity is %" PRIu32,
                        m->what, n, capacity);
        return;
    }
}

/* One token, or room for all: the plain choice. */
static void check_plain(moec_l3_layer *l, const mode *m, const int32_t *ids,
                        uint32_t tokens, const char *when)
{
    const moec_l3_side *s = &l->side[1];
    moec_finding f;

    for (uint32_t t = 0; t < tokens; t++) {
        if (memcmp(ids + (size_t)t * s->cols, s->ids + (size_t)t * s->cols,
                   l->top_k * sizeof(*ids)) == 0)
            continue;
        f = moec_l3_finding(l, MOEC_RULE_K08, MOEC_SEVERITY_ERROR);
        moec_report_add(l->v->r, &f,
                        "%s: with %s token %" PRIu32
                        " does not get its plain choice",
                        m->what, when, t);
        return;
    }
}

static moec_status run_mode(bench *b, const mode *m, int32_t *ids,
                            moec_error *err)
{
    moec_l3_layer *l = b->l;
    moec_l3_side *s = &l->side[1];
    size_t n = ((size_t)l->tokens + 1) * s->cols;
    moec_ec_stats stats[2] = {{0}, {0}};
    choice c = {
        .what = m->what, .ids = ids + n, .n = l->tokens, .n_valid = l->tokens};
    moec_dispatch_map map;

    for (int side = 0; side < 2; side++)
        MOEC_TRY(route_mode(b, side, m, 0, l->tokens, ids + (size_t)side * n,
                            &stats[side], err));
    (void)moec_l3_compare_ids(l, ids, ids + n, m->what, MOEC_RULE_K08);
    check_capacity(l, m, ids + n, stats[1].capacity);
    l->result->ec_fallback[m - modes] = stats[1].fallback_tokens;
    l->result->ec_dropped[m - modes] = stats[1].dropped;
    moec_l3_map(l, MOEC_REPLICA_ROW_RANK_LAYER, 0, 0, &map);
    MOEC_TRY(run(b, &c, &map, NULL, err));
    MOEC_TRY(route_mode(b, 1, m, 0, 1, ids, NULL, err));
    check_plain(l, m, ids, 1, "one token");
    MOEC_TRY(route_mode(b, 1, m, UINT32_MAX, l->tokens, ids, NULL, err));
    check_plain(l, m, ids, l->tokens, "room for all");
    return MOEC_OK;
}

/* Why the family cannot use it, or NULL: what the kernels refuse by design. */
static const char *no_expert_choice(const moec_l3_layer *l)
{
    const moec_route_config *c = &l->side[MOEC_LEVEL3_SOURCE].facts.route;

    if (c->n_zero != 0)
        return "an expert that costs nothing has no capacity";
    if (c->choice == MOEC_CHOICE_HASH)
        return "a table of experts has no scores to compare tokens by";
    if (c->choice == MOEC_CHOICE_SPARSE_MIXER)
        return "the sparse mixer has no scores to compare tokens by";
    if ((uint64_t)l->tokens * l->experts > UINT32_MAX)
        return "too many tokens by experts for one call";
    return NULL;
}

moec_status moec_l3_expert_choice(moec_l3_layer *l, moec_error *err)
{
    size_t n = 2 * ((size_t)l->tokens + 1) * l->side[1].cols;
    int32_t *ids = moec_calloc(n, sizeof(*ids));
    bench b = {0};
    moec_status st = bench_open(&b, l, err);
    moec_error e = MOEC_ERROR_INIT;

    l->no_ec = no_expert_choice(l);
    if (st == MOEC_OK && ids == NULL)
        st = moec_fail_nomem(err, "choices of a layer");
    for (size_t i = 0; st == MOEC_OK && l->no_ec == NULL && i < N_MODES; i++) {
        st = run_mode(&b, &modes[i], ids, &e);
        if (st == MOEC_OK)
            l->result->ec_modes++;
    }
    if (st == MOEC_E_UNSUPPORTED && l->v->opts->device != NULL) {
        (void)snprintf(l->v->lacking, sizeof(l->v->lacking), "%s", e.text);
        st = MOEC_OK;
    } else {
        (void)moec_hand_on(err, st, &e);
    }
    bench_fini(&b);
    moec_free(ids);
    return st;
}
