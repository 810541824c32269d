/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The self-test of dispatch: the chain from logical ids to slots, and
 * waterfill. Both run on every back end.
 */
#include <math.h>
#include <string.h>

#include <moec/mapping.h>

#include "device_calls.h"
#include "selftest_parts.h"

/* -------------------------------------------------------------- chains */

typedef struct chain_case {
    moec_dispatch_map map;
    uint32_t n_rows, n_valid, top_k, n_shared;
    uint32_t layer, rank;
    bool global;
    const char *algorithm;
    float shared_weight;
    int32_t *ids, *want; /* [T][K], [T][K+S] */
} chain_case;

static const struct {
    const char *name;
    moec_replica_rule rule;
} algorithms[] = {
    {"static", MOEC_REPLICA_TABLE},
    {"identity", MOEC_REPLICA_TABLE},
    {"row", MOEC_REPLICA_ROW},
    {"row+layer", MOEC_REPLICA_ROW_LAYER},
    {"row+rank+layer", MOEC_REPLICA_ROW_RANK_LAYER},
};
#define N_ALGORITHMS (sizeof(algorithms) / sizeof(algorithms[0]))

/* Our one place for the weight of shared columns must agree with the file. */
static moec_status read_weight(moec_self *s, const moec_json *c, chain_case *x,
                               moec_error *err)
{
    moec_route_config cfg = MOEC_ROUTE_CONFIG_INIT;
    float want = -1.0f;
    bool folded = false;

    MOEC_TRY(moec_vec_opt_f32(c, "rsf", &cfg.rsf, err));
    MOEC_TRY(moec_vec_opt_bool(c, "rsf_folded|rsf_on_weights", &folded, err));
    MOEC_TRY(moec_vec_opt_u32(c, "shared_ranks", 1024, &cfg.shared_ranks, err));
    MOEC_TRY(moec_vec_opt_f32(c, "shared_weight", &want, err));
    cfg.rsf_on = folded ? MOEC_RSF_ON_WEIGHTS : MOEC_RSF_ON_OUTPUT;
    x->shared_weight = moec_shared_weight(&cfg, 0.0f);
    if (want >= 0.0f && fabsf(x->shared_weight - want) > 1e-6f * want)
        moec_self_differs(s, NULL, "shared weight %.9g, must be %.9g",
                          (double)x->shared_weight, (double)want);
    return MOEC_OK;
}

static moec_status read_chain(moec_self *s, const moec_json *c, chain_case *x,
                              moec_error *err)
{
    moec_json ids, row;
    const char *slots;
    uint32_t dims[2];

    *x = (chain_case){0};
    MOEC_TRY(moec_json_get_u32(c, "layer", MOEC_SELF_SIZE_MAX, &x->layer, err));
    MOEC_TRY(moec_json_get_u32(c, "rank", MOEC_SELF_SIZE_MAX, &x->rank, err));
    MOEC_TRY(moec_json_get_u32(c, "S", 64, &x->n_shared, err));
    MOEC_TRY(moec_json_get_string(c, "algorithm", &x->algorithm, err));
    MOEC_TRY(moec_vec_opt_text(c, "shared_slots", &slots, err));
    x->global = slots && strcmp(slots, "global") == 0;
    MOEC_TRY(moec_json_get_array(c, "ids", &ids, err));
    x->n_rows = (uint32_t)moec_json_len(&ids);
    row = moec_json_item(&ids, 0);
    x->top_k = (uint32_t)moec_json_len(&row);
    x->n_valid = x->n_rows;
    MOEC_TRY(moec_vec_opt_u32(c, "non_padded", x->n_rows, &x->n_valid, err));
    dims[0] = x->n_rows;
    dims[1] = x->top_k;
    MOEC_TRY(moec_vec_i32_of(&ids, dims, 2, s->arena, &x->ids, err));
    dims[1] += x->n_shared;
    MOEC_TRY(moec_vec_i32(c, "out", dims, 2, s->arena, &x->want, err));
    return read_weight(s, c, x, err);
}

/* Weights that tell columns apart, and the shared ones' own. Rows of ids as
 * moec_route gives them: K routed, S shared. */
static moec_status make_rows(moec_self *s, const chain_case *x, int32_t **ids,
                             float **weights, moec_error *err)
{
    uint32_t n_cols = x->top_k + x->n_shared;
    uint64_t n = (uint64_t)x->n_rows * n_cols;

    MOEC_TRY(moec_vec_room(s->arena, n, 4, ids, err));
    MOEC_TRY(moec_vec_room(s->arena, n, 4, weights, err));
    for (uint64_t i = 0; i < n; i++) {
        uint64_t row = i / n_cols, col = i % n_cols;
        bool shared = col >= x->top_k;

        (*ids)[i] = shared ? -5 : x->ids[row * x->top_k + col];
        (*weights)[i] = shared ? x->shared_weight : 1.0f / (float)(1 + i % 97);
    }
    return MOEC_OK;
}

/* Dispatch on one back end and compare slots, weights and counts. */
static moec_status run_dispatch(moec_self *s, const moec_kernels *k,
                                const chain_case *x,
                                const moec_waterfill *waterfill,
                                moec_error *err)
{
    uint32_t n_cols = x->top_k + x->n_shared;
    uint64_t n = (uint64_t)x->n_rows * n_cols, bytes;
    moec_dispatch_out out = {.struct_bytes = sizeof(out)};
    moec_error got = MOEC_ERROR_INIT;
    int32_t *ids = NULL;
    float *weights = NULL;
    void *workspace = NULL;
    moec_status st;

    MOEC_TRY(make_rows(s, x, &ids, &weights, err));
    bytes = moec_dispatch_workspace_bytes(k, &x->map, x->n_rows);
    MOEC_TRY(moec_vec_room(s->arena, bytes, 1, &workspace, err));
    MOEC_TRY(moec_vec_room(s->arena, n, 4, &out.slots, err));
    MOEC_TRY(moec_vec_room(s->arena, n, 4, &out.weights, err));
    for (uint64_t i = 0; i < n; i++) {
        out.slots[i] = -77;
        out.weights[i] = NAN;
    }
    if (s->opts->device) {
        const moec_dispatch_call on = {&x->map,   waterfill,  ids,      weights,
                                       x->n_rows, x->n_valid, x->top_k, out};

        st = moec_on_device_dispatch(s->opts->device, &on, &got);
    } else {
        st = moec_dispatch(k, &x->map, waterfill, ids, weights, x->n_rows,
                           x->n_valid, x->top_k, &out, workspace, bytes, &got);
    }
    if (st != MOEC_OK)
        return moec_self_refused(s, k, st, &got, err);
    if (!moec_self_same_ids(s, k, "slot", out.slots, x->want, x->n_rows,
                            n_cols))
        return MOEC_OK;
    for (uint64_t i = 0; i < n; i++) {
        float want = x->want[i] < 0 ? 0.0f : weights[i];

        if (out.weights[i] == want)
            continue;
        moec_self_differs(s, k, "row %u, column %u: weight %.9g, must be %.9g",
                          (unsigned)(i / n_cols), (unsigned)(i % n_cols),
                          (double)out.weights[i], (double)want);
        return MOEC_OK;
    }
    return MOEC_OK;
}

/* A table that sends every expert to the slot of its own number. */
static moec_status identity_table(moec_self *s, uint32_t n, uint32_t **out,
                                  moec_error *err)
{
    MOEC_TRY(moec_vec_room(s->arena, n, 4, out, err));
    for (uint32_t e = 0; e < n; e++)
        (*out)[e] = e;
    return MOEC_OK;
}

static moec_status run_chain(moec_self *s, const moec_self_map_case *m,
                             chain_case *x, moec_error *err)
{
    moec_replicas_opts opts = m->opts;
    moec_error got = MOEC_ERROR_INIT;
    moec_replicas *r = NULL;
    uint32_t *table = NULL;
    size_t a = 0;
    moec_status st;

    while (a < N_ALGORITHMS && strcmp(algorithms[a].name, x->algorithm) != 0)
        a++;
    if (a == N_ALGORITHMS) {
        moec_self_skip(s, "algorithm '%s' is not known", x->algorithm);
        return MOEC_OK;
    }
    opts.rank = x->rank;
    st = moec_replicas_create(&r, m->placement, &opts, &got);
    if (st != MOEC_OK)
        return moec_self_refused(s, NULL, st, &got, err);
    moec_replicas_map(r, x->layer, algorithms[a].rule, x->layer, x->n_shared,
                      x->global, &x->map);
    if (strcmp(x->algorithm, "identity") == 0) {
        st = identity_table(s, m->n.n_experts, &table, err);
        x->map.table = table;
    }
    for (size_t i = 0; st == MOEC_OK && i < s->opts->n_backends; i++)
        st = run_dispatch(s, s->opts->backends[i], x, NULL, err);
    moec_replicas_destroy(r);
    return st;
}

/* The map that a chain names. */
static moec_status find_map(const moec_json *root, const moec_json *c,
                            moec_json *maps, moec_json *out, moec_error *err)
{
    const char *name, *id;

    MOEC_TRY(moec_json_get_string(c, "map", &name, err));
    MOEC_TRY(moec_json_get_array(root, "maps", maps, err));
    for (size_t i = 0; i < moec_json_len(maps); i++) {
        *out = moec_json_item(maps, i);
        MOEC_TRY(moec_json_get_string(out, "id", &id, err));
        if (strcmp(id, name) == 0)
            return MOEC_OK;
    }
    return moec_json_fail(c, MOEC_RULE_V01, err, "no map '%s'", name);
}

moec_status moec_self_chain(moec_self *s, const moec_json *c, moec_error *err)
{
    moec_json maps, map;
    chain_case x;
    moec_self_map_case m;
    moec_status st;

    MOEC_TRY(read_chain(s, c, &x, err));
    MOEC_TRY(find_map(s->root, c, &maps, &map, err));
    MOEC_TRY(moec_self_read_map(s, &map, &m, err));
    if (!m.placement)
        return MOEC_OK;
    if (x.layer >= m.n_layers)
        st = moec_json_fail(c, MOEC_RULE_V01, err, "layer %u of a map of %u",
                            x.layer, m.n_layers);
    else
        st = run_chain(s, &m, &x, err);
    moec_placement_destroy(m.placement);
    return st;
}

/* ----------------------------------------------------------- waterfill */

typedef struct fill_case {
    moec_topology topology;
    uint32_t top_k;
    moec_waterfill how;
    float rsf;
    uint64_t target; /* 0: the file has none, as under 64 tokens */
    int64_t *load;   /* [W]; NULL: not compared */
} fill_case;

/* The rows of one rank. */
typedef struct fill_rows {
    uint32_t rank, n_rows;
    int32_t *ids, *best;
} fill_rows;

/* The target is of the step; a rank whose own batch stays at home has none. */
#define AT_HOME_ROWS 64u

static void compare_loads(moec_self *s, const fill_case *x,
                          const fill_rows *rows, const uint64_t *load,
                          uint64_t target)
{
    uint64_t want = rows->n_rows < AT_HOME_ROWS ? 0 : x->target;

    for (uint32_t q = 0; x->load && q < x->topology.n_ranks; q++) {
        if (load[q] == (uint64_t)x->load[q])
            continue;
        moec_self_differs(s, NULL, "rank %u: load %ju, must be %jd", q,
                          (uintmax_t)load[q], (intmax_t)x->load[q]);
        return;
    }
    if (target != want)
        moec_self_differs(s, NULL, "rank %u: target %ju, must be %ju",
                          rows->rank, (uintmax_t)target, (uintmax_t)want);
}

/* The same through moec_dispatch: P experts, each in its own slot. */
static moec_status fill_by_dispatch(moec_self *s, const fill_case *x,
                                    const fill_rows *rows, moec_error *err)
{
    chain_case c = {.n_rows = rows->n_rows,
                    .n_valid = rows->n_rows,
                    .top_k = x->top_k,
                    .n_shared = x->topology.n_shared_slots,
                    .ids = rows->ids};
    const moec_topology *t = &x->topology;
    uint32_t n_cols = c.top_k + c.n_shared, *table = NULL;

    c.shared_weight = 1.0f / x->rsf;
    MOEC_TRY(identity_table(s, t->n_physical, &table, err));
    c.map = (moec_dispatch_map){.struct_bytes = sizeof(c.map),
                                .topology = *t,
                                .n_experts = t->n_physical,
                                .rule = MOEC_REPLICA_TABLE,
                                .rank = rows->rank,
                                .table = table};
    MOEC_TRY(
        moec_vec_room(s->arena, (uint64_t)c.n_rows * n_cols, 4, &c.want, err));
    for (uint32_t row = 0; row < c.n_rows; row++) {
        int32_t *want = c.want + (size_t)row * n_cols;

        for (uint32_t col = 0; col < c.top_k; col++) {
            int32_t p = rows->ids[(size_t)row * c.top_k + col];
            moec_physical_id id = {(uint32_t)p};

            want[col] = p < 0 ? -1 : (int32_t)moec_physical_slot(*t, id).v;
        }
        for (uint32_t part = 0; part < c.n_shared; part++)
            want[c.top_k + part] =
                rows->best[row] < 0 ? -1
                                    : (int32_t)moec_shared_slot(
                                          *t, (uint32_t)rows->best[row], part)
                                          .v;
    }
    for (size_t i = 0; i < s->opts->n_backends; i++)
        MOEC_TRY(run_dispatch(s, s->opts->backends[i], &c, &x->how, err));
    return MOEC_OK;
}

static moec_status run_rank(moec_self *s, const fill_case *x,
                            const fill_rows *rows, moec_error *err)
{
    moec_error got = MOEC_ERROR_INIT;
    uint64_t *load = NULL, target = 0;
    int32_t *best = NULL;
    moec_status st;

    MOEC_TRY(moec_vec_room(s->arena, x->topology.n_ranks, 8, &load, err));
    MOEC_TRY(moec_vec_room(s->arena, rows->n_rows, 4, &best, err));
    st =
        moec_waterfill_ranks(&x->topology, &x->how, rows->rank, rows->ids,
                             rows->n_rows, x->top_k, best, load, &target, &got);
    if (st != MOEC_OK)
        return moec_self_refused(s, NULL, st, &got, err);
    if (!moec_self_same_ids(s, NULL, "best", best, rows->best, rows->n_rows, 1))
        return MOEC_OK;
    compare_loads(s, x, rows, load, target);
    return fill_by_dispatch(s, x, rows, err);
}

static moec_status read_fill(moec_self *s, const moec_json *c, fill_case *x,
                             moec_error *err)
{
    moec_topology *t = &x->topology;
    moec_json target = moec_json_member(c, "target");

    *x = (fill_case){.rsf = 1.0f};
    MOEC_TRY(moec_json_get_u32(c, "W", MOEC_SELF_SIZE_MAX, &t->n_ranks, err));
    MOEC_TRY(moec_json_get_u32(c, "P", UINT32_MAX / 2, &t->n_physical, err));
    MOEC_TRY(moec_json_get_u32(c, "K", MOEC_SELF_SIZE_MAX, &x->top_k, err));
    MOEC_TRY(moec_json_get_u32(c, "S", 64, &t->n_shared_slots, err));
    MOEC_TRY(moec_vec_opt_f32(c, "rsf", &x->rsf, err));
    if (t->n_ranks == 0 || t->n_physical % t->n_ranks != 0)
        return moec_json_fail(c, MOEC_RULE_V01, err,
                              "P = %u does not divide by W = %u", t->n_physical,
                              t->n_ranks);
    t->n_local = t->n_physical / t->n_ranks;
    if (target.value)
        MOEC_TRY(moec_json_as_u64(&target, INT64_MAX, &x->target, err));
    if (moec_json_has(c, "load"))
        MOEC_TRY(
            moec_vec_i64(c, "load", &t->n_ranks, 1, s->arena, &x->load, err));
    return MOEC_OK;
}

/* Rows of `ids` and `best`: a list, or one list for each rank. */
static moec_status read_rows(moec_self *s, const fill_case *x,
                             const moec_json *ids, const moec_json *best,
                             fill_rows *out, moec_error *err)
{
    uint32_t dims[2] = {(uint32_t)moec_json_len(ids), x->top_k};

    out->n_rows = dims[0];
    MOEC_TRY(moec_vec_i32_of(ids, dims, 2, s->arena, &out->ids, err));
    return moec_vec_i32_of(best, dims, 1, s->arena, &out->best, err);
}

static moec_status fill_dynamic(moec_self *s, const moec_json *c, fill_case *x,
                                moec_error *err)
{
    int64_t *routed = NULL, *tokens = NULL;
    const char *expected = x->how.by_rank ? "best_rank_order" : "best";
    moec_json ids, best, ids_of, best_of;
    fill_rows rows = {0};

    MOEC_TRY(moec_vec_i64(c, "routed", &x->topology.n_ranks, 1, s->arena,
                          &routed, err));
    MOEC_TRY(moec_vec_i64(c, "tokens", &x->topology.n_ranks, 1, s->arena,
                          &tokens, err));
    for (uint32_t q = 0; q < x->topology.n_ranks; q++)
        if (routed[q] < 0 || tokens[q] < 0)
            return moec_json_fail(c, MOEC_RULE_V01, err,
                                  "rank %u: a negative count", q);
    x->how.routed = (const uint64_t *)routed;
    x->how.tokens = (const uint64_t *)tokens;
    MOEC_TRY(moec_json_get_array(c, "ids", &ids, err));
    MOEC_TRY(moec_json_get_array(c, expected, &best, err));
    if (moec_json_len(&ids) != x->topology.n_ranks ||
        moec_json_len(&best) != x->topology.n_ranks)
        return moec_json_fail(c, MOEC_RULE_V01, err,
                              "ids and %s must have a list for each rank",
                              expected);
    for (rows.rank = 0; rows.rank < x->topology.n_ranks; rows.rank++) {
        ids_of = moec_json_item(&ids, rows.rank);
        best_of = moec_json_item(&best, rows.rank);
        MOEC_TRY(read_rows(s, x, &ids_of, &best_of, &rows, err));
        MOEC_TRY(run_rank(s, x, &rows, err));
    }
    return MOEC_OK;
}

static moec_status fill_static(moec_self *s, const moec_json *c, fill_case *x,
                               moec_error *err)
{
    const char *expected = x->how.by_rank ? "best_rank_order" : "best";
    moec_json ids, best;
    fill_rows rows = {0};

    MOEC_TRY(
        moec_json_get_u32(c, "rank", x->topology.n_ranks - 1, &rows.rank, err));
    MOEC_TRY(moec_json_get_array(c, "ids", &ids, err));
    MOEC_TRY(moec_json_get_array(c, expected, &best, err));
    MOEC_TRY(read_rows(s, x, &ids, &best, &rows, err));
    return run_rank(s, x, &rows, err);
}

moec_status moec_self_waterfill(moec_self *s, const moec_json *c,
                                moec_error *err)
{
    moec_status (*run)(moec_self *, const moec_json *, fill_case *,
                       moec_error *);
    const char *mode;
    fill_case x;

    MOEC_TRY(moec_json_get_string(c, "mode", &mode, err));
    MOEC_TRY(read_fill(s, c, &x, err));
    if (strcmp(mode, "static") == 0) {
        x.how.mode = MOEC_WATERFILL_STATIC;
        run = fill_static;
    } else if (strcmp(mode, "dynamic") == 0) {
        x.how.mode = MOEC_WATERFILL_DYNAMIC;
        run = fill_dynamic;
    } else {
        moec_self_skip(s, "mode '%s' is not known", mode);
        return MOEC_OK;
    }
    MOEC_TRY(run(s, c, &x, err));
    /* The two orders of the scan give the same where the file has one. */
    x.how.by_rank = 1;
    return moec_json_has(c, "best_rank_order") ? run(s, c, &x, err) : MOEC_OK;
}
