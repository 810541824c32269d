/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The self-test of placement: replica choice, refused maps, the chain from
 * logical ids to dispatch slots, waterfill and EPLB. Chains and waterfill run
 * on every back end; the rest has none.
 */
#include <math.h>
#include <string.h>

#include <moec/mapping.h>

#include "device_calls.h"
#include "placement.h"
#include "selftest_parts.h"

#define SIZE_MAX_OF 65536u /* experts, ranks, columns */

/* Sizes that most cases have. */
typedef struct sizes {
    uint32_t n_experts, n_physical, n_ranks; /* E, P, W */
} sizes;

static moec_status read_sizes(const moec_json *c, sizes *out, moec_error *err)
{
    uint32_t redundant;

    MOEC_TRY(moec_json_get_u32(c, "E", SIZE_MAX_OF, &out->n_experts, err));
    MOEC_TRY(moec_json_get_u32(c, "R", SIZE_MAX_OF, &redundant, err));
    MOEC_TRY(moec_json_get_u32(c, "W", SIZE_MAX_OF, &out->n_ranks, err));
    out->n_physical = out->n_experts + redundant;
    return MOEC_OK;
}

/* ---------------------------------------------------------------- maps */

/* A map of dispatch.json and what is derived from it. */
typedef struct map_case {
    const char *id;
    sizes n;
    uint32_t n_layers;
    moec_placement *placement;
    moec_replicas_opts opts;
} map_case;

/* The lists of one layer: replica[p] is the place of slot p in its own. */
static moec_status read_lists(const moec_json *row, uint32_t n_physical,
                              uint32_t *replica, moec_error *err)
{
    moec_json list, item;
    uint32_t p;

    MOEC_TRY(moec_json_want_array(row, err));
    for (size_t e = 0; e < moec_json_len(row); e++) {
        list = moec_json_item(row, e);
        MOEC_TRY(moec_json_want_array(&list, err));
        for (size_t k = 0; k < moec_json_len(&list); k++) {
            item = moec_json_item(&list, k);
            MOEC_TRY(moec_json_as_u32(&item, n_physical - 1, &p, err));
            replica[p] = (uint32_t)k;
        }
    }
    return MOEC_OK;
}

/* `candidates`, where there are any: EPLB's order. */
static moec_status read_order(moec_self *s, const moec_json *map, map_case *x,
                              moec_error *err)
{
    uint32_t n_physical = x->n.n_physical, *replica = NULL;
    moec_json lists, row;

    if (!moec_json_has(map, "candidates"))
        return MOEC_OK;
    MOEC_TRY(moec_json_get_array(map, "candidates", &lists, err));
    if (moec_json_len(&lists) != x->n_layers || n_physical == 0)
        return moec_json_fail(&lists, MOEC_RULE_V01, err,
                              "has %zu layers, must have %u",
                              moec_json_len(&lists), x->n_layers);
    MOEC_TRY(moec_vec_room(s->arena, (uint64_t)x->n_layers * n_physical, 4,
                           &replica, err));
    for (uint32_t i = 0; i < x->n_layers; i++) {
        row = moec_json_item(&lists, i);
        MOEC_TRY(read_lists(&row, n_physical, replica + (size_t)i * n_physical,
                            err));
    }
    x->opts.replica = replica;
    x->opts.all_to_all = 0; /* EPLB's lists are never collapsed */
    return MOEC_OK;
}

/* Read a map; x->placement is the caller's to destroy, NULL on failure. */
static moec_status read_map(moec_self *s, const moec_json *map, map_case *x,
                            moec_error *err)
{
    moec_error got = MOEC_ERROR_INIT;
    moec_json p2l;
    int32_t *rows = NULL;
    uint32_t dims[2];
    bool a2a = false;
    moec_status st;

    *x = (map_case){.opts = MOEC_REPLICAS_OPTS_INIT};
    MOEC_TRY(moec_json_get_string(map, "id", &x->id, err));
    MOEC_TRY(read_sizes(map, &x->n, err));
    MOEC_TRY(moec_json_get_array(map, "p2l", &p2l, err));
    x->n_layers = (uint32_t)moec_json_len(&p2l);
    dims[0] = x->n_layers;
    dims[1] = x->n.n_physical;
    MOEC_TRY(moec_vec_i32_of(&p2l, dims, 2, s->arena, &rows, err));
    x->opts.n_ranks = x->n.n_ranks;
    MOEC_TRY(
        moec_vec_opt_u32(map, "nodes", SIZE_MAX_OF, &x->opts.n_nodes, err));
    MOEC_TRY(moec_vec_opt_bool(map, "a2a", &a2a, err));
    x->opts.all_to_all = a2a;
    MOEC_TRY(read_order(s, map, x, err));
    st = moec_placement_from_rows(&x->placement, x->n_layers, x->n.n_experts,
                                  x->n.n_physical, rows, &got);
    if (st != MOEC_OK)
        return moec_self_refused(s, NULL, st, &got, err);
    return MOEC_OK;
}

/* The first entry of [layers][E] that differs. */
static void compare_tables(moec_self *s, const char *what, uint32_t rank,
                           const map_case *x, const int32_t *got,
                           const int32_t *want)
{
    for (size_t i = 0; i < (size_t)x->n_layers * x->n.n_experts; i++) {
        if (got[i] == want[i])
            continue;
        moec_self_differs(s, NULL,
                          "rank %u, layer %zu, expert %zu: %s slot %d, must "
                          "be %d",
                          rank, i / x->n.n_experts, i % x->n.n_experts, what,
                          got[i], want[i]);
        return;
    }
}

/* One entry of `ranks`. */
static moec_status check_rank(moec_self *s, const moec_json *rank, map_case *x,
                              moec_error *err)
{
    const uint32_t dims[] = {x->n_layers, x->n.n_experts};
    moec_error got = MOEC_ERROR_INIT;
    moec_replicas *r = NULL;
    int32_t *table = NULL, *collapsed = NULL;
    moec_status st;

    MOEC_TRY(moec_json_get_u32(rank, "rank", SIZE_MAX_OF, &x->opts.rank, err));
    MOEC_TRY(moec_vec_i32(rank, "static", dims, 2, s->arena, &table, err));
    if (moec_json_has(rank, "collapsed"))
        MOEC_TRY(moec_vec_i32(rank, "collapsed", dims, 2, s->arena, &collapsed,
                              err));
    st = moec_replicas_create(&r, x->placement, &x->opts, &got);
    if (st != MOEC_OK)
        return moec_self_refused(s, NULL, st, &got, err);
    if (x->n_layers > 0)
        compare_tables(s, "static", x->opts.rank, x,
                       (const int32_t *)moec_replicas_table(r, 0), table);
    if (x->n_layers > 0 && collapsed)
        compare_tables(s, "collapsed", x->opts.rank, x,
                       moec_replicas_nearest(r, 0), collapsed);
    moec_replicas_destroy(r);
    return MOEC_OK;
}

moec_status moec_self_map(moec_self *s, const moec_json *c, moec_error *err)
{
    moec_json ranks, rank;
    moec_status st;
    map_case x;

    MOEC_TRY(read_map(s, c, &x, err));
    if (!x.placement)
        return MOEC_OK;
    st = moec_json_get_array(c, "ranks", &ranks, err);
    for (size_t i = 0; st == MOEC_OK && i < moec_json_len(&ranks); i++) {
        rank = moec_json_item(&ranks, i);
        st = check_rank(s, &rank, &x, err);
    }
    moec_placement_destroy(x.placement);
    return st;
}

/* -------------------------------------------------------- maps to refuse */

static const struct {
    const char *name;
    moec_rule rule;
} bad_rules[] = {
    {"slots-divide-ranks", MOEC_RULE_P06},
    {"ranks-exceed-slots", MOEC_RULE_P07},
    {"id-range", MOEC_RULE_P04},
    {"id-type", MOEC_RULE_P04},
    {"shared-expert", MOEC_RULE_P04},
    {"shared-among-routed", MOEC_RULE_P04},
    {"expert-without-slot", MOEC_RULE_P05},
    {"layer-count", MOEC_RULE_P02},
    {"slot-count", MOEC_RULE_P03},
    {"replicas-on-one-rank", MOEC_RULE_P09},
};

/* The rule by the file's name or by ours. */
static moec_rule rule_of(const char *name)
{
    if (strncmp(name, "warn:", 5) == 0)
        name += 5;
    for (size_t i = 0; i < sizeof(bad_rules) / sizeof(bad_rules[0]); i++)
        if (strcmp(bad_rules[i].name, name) == 0)
            return bad_rules[i].rule;
    return moec_rule_find(name);
}

/* Read and check a map as `plan` does. A warning is an error here. */
static moec_status judge(const moec_placement_target *t, const char *text,
                         uint32_t n_ranks, moec_error *err)
{
    moec_placement *p = NULL;
    moec_same_rank same = {0};
    moec_status st;

    MOEC_TRY(moec_placement_parse_for(&p, t, "p2l", text, strlen(text), err));
    st = moec_placement_fits(p, n_ranks, t->keys, t->n_keys, err);
    for (uint32_t i = 0; st == MOEC_OK && i < t->n_keys; i++) {
        st = moec_placement_same_rank(p, i, n_ranks, &same, err);
        if (st == MOEC_OK && same.n_slots > 0)
            st = moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P09,
                           "layer %u: %u slots repeat an expert of their rank",
                           i, same.n_slots);
    }
    moec_placement_destroy(p);
    return st;
}

/* The refusal must name what the file names. */
static void expect_named(moec_self *s, const moec_json *c, const char *key,
                         const char *word, const moec_error *got)
{
    const json_t *v = moec_json_member(c, key).value;
    char want[64];

    if (!json_is_integer(v))
        return;
    (void)snprintf(want, sizeof(want), "%s %" JSON_INTEGER_FORMAT, word,
                   json_integer_value(v));
    if (!strstr(got->text, want))
        moec_self_differs(s, NULL, "'%s' is not named in: %s", want, got->text);
}

static void compare_rule(moec_self *s, const moec_json *c, const char *name,
                         moec_status st, const moec_error *got)
{
    moec_rule want = rule_of(name);
    const moec_rule_info *found = moec_rule_describe(got->rule);

    if (st == MOEC_OK)
        moec_self_differs(s, NULL, "accepted, must be refused: %s", name);
    else if (want == MOEC_RULE_NONE)
        moec_self_skip(s, "rule '%s' is not known", name);
    else if (got->rule != want)
        moec_self_differs(s, NULL, "refused by %s, must be %s",
                          found ? found->name : "no rule", name);
    expect_named(s, c, "layer", "layer", got);
    expect_named(s, c, "slot", "slot", got);
    expect_named(s, c, "expert", "expert", got);
    expect_named(s, c, "value", "", got);
}

moec_status moec_self_bad_map(moec_self *s, const moec_json *c, moec_error *err)
{
    moec_error got = MOEC_ERROR_INIT;
    moec_placement_target t = {0};
    moec_layer_key *keys = NULL;
    const char *rule;
    moec_json p2l;
    char *text;
    sizes n;
    moec_status st;

    MOEC_TRY(moec_json_get_string(c, "rule", &rule, err));
    MOEC_TRY(read_sizes(c, &n, err));
    MOEC_TRY(moec_json_get_u32(c, "layers", SIZE_MAX_OF, &t.n_layers, err));
    MOEC_TRY(moec_json_get_array(c, "p2l", &p2l, err));
    MOEC_TRY(moec_vec_room(s->arena, t.n_layers, sizeof(*keys), &keys, err));
    for (uint32_t i = 0; i < t.n_layers; i++)
        keys[i] = (moec_layer_key){MOEC_SPACE_MAIN, i};
    t.n_experts = n.n_experts;
    t.n_physical = n.n_physical;
    t.keys = keys;
    t.n_keys = t.n_layers;
    text = json_dumps(p2l.value, JSON_COMPACT);
    if (!text)
        return moec_fail_nomem(err, "a map");
    st = judge(&t, text, n.n_ranks, &got);
    free(text);
    if (st == MOEC_E_NOMEM)
        return moec_self_refused(s, NULL, st, &got, err);
    compare_rule(s, c, rule, st, &got);
    return MOEC_OK;
}

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
    MOEC_TRY(moec_json_get_u32(c, "layer", SIZE_MAX_OF, &x->layer, err));
    MOEC_TRY(moec_json_get_u32(c, "rank", SIZE_MAX_OF, &x->rank, err));
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

static moec_status run_chain(moec_self *s, const map_case *m, chain_case *x,
                             moec_error *err)
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
    map_case m;
    moec_status st;

    MOEC_TRY(read_chain(s, c, &x, err));
    MOEC_TRY(find_map(s->root, c, &maps, &map, err));
    MOEC_TRY(read_map(s, &map, &m, err));
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
    MOEC_TRY(moec_json_get_u32(c, "W", SIZE_MAX_OF, &t->n_ranks, err));
    MOEC_TRY(moec_json_get_u32(c, "P", UINT32_MAX / 2, &t->n_physical, err));
    MOEC_TRY(moec_json_get_u32(c, "K", SIZE_MAX_OF, &x->top_k, err));
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

/* ---------------------------------------------------------------- EPLB */

typedef struct eplb_case {
    sizes n;
    uint32_t n_layers;
    moec_eplb_opts opts;
    const float *loads;
} eplb_case;

static moec_status read_steps(moec_self *s, const moec_json *c, eplb_case *x,
                              moec_error *err)
{
    moec_json steps, first;
    uint32_t dims[3];
    int64_t *counts = NULL;
    float *loads = NULL;
    uint64_t n;

    MOEC_TRY(moec_json_get_array(c, "step_loads", &steps, err));
    first = moec_json_item(&steps, 0);
    dims[0] = (uint32_t)moec_json_len(&steps);
    dims[1] = x->n_layers = (uint32_t)moec_json_len(&first);
    dims[2] = x->n.n_experts;
    n = (uint64_t)dims[1] * dims[2];
    MOEC_TRY(moec_vec_i64(c, "step_loads", dims, 3, s->arena, &counts, err));
    MOEC_TRY(moec_vec_room(s->arena, n, 4, &loads, err));
    x->loads = loads;
    return moec_eplb_sum_steps(counts, dims[0], n, loads, err);
}

static moec_status read_eplb(moec_self *s, const moec_json *c, eplb_case *x,
                             moec_error *err)
{
    moec_json list;
    uint32_t dims[2];
    const char *policy;
    float *loads = NULL;

    *x = (eplb_case){.opts = MOEC_EPLB_OPTS_INIT};
    MOEC_TRY(read_sizes(c, &x->n, err));
    x->opts.n_redundant = x->n.n_physical - x->n.n_experts;
    x->opts.n_ranks = x->n.n_ranks;
    MOEC_TRY(
        moec_vec_opt_u32(c, "groups", SIZE_MAX_OF, &x->opts.n_groups, err));
    MOEC_TRY(moec_vec_opt_u32(c, "nodes", SIZE_MAX_OF, &x->opts.n_nodes, err));
    MOEC_TRY(moec_vec_opt_text(c, "policy", &policy, err));
    if (policy && strcmp(policy, "global") == 0)
        x->opts.policy = MOEC_EPLB_GLOBAL;
    else if (policy && strcmp(policy, "hierarchical") == 0)
        x->opts.policy = MOEC_EPLB_HIERARCHICAL;
    else if (policy && strcmp(policy, "auto") != 0)
        moec_self_skip(s, "policy '%s' is not known", policy);
    if (moec_json_has(c, "step_loads"))
        return read_steps(s, c, x, err);
    MOEC_TRY(moec_json_get_array(c, "loads", &list, err));
    dims[0] = x->n_layers = (uint32_t)moec_json_len(&list);
    dims[1] = x->n.n_experts;
    MOEC_TRY(moec_vec_f32(c, "loads", dims, 2, s->arena, &loads, err));
    x->loads = loads;
    return MOEC_OK;
}

/* One entry of `as`. */
static moec_status read_pair(moec_self *s, const moec_json *pair,
                             moec_eplb_opts *o, moec_error *err)
{
    moec_json v;
    const char *accum, *ties;

    MOEC_TRY(moec_json_want_array(pair, err));
    if (moec_json_len(pair) != 2)
        return moec_json_fail(pair, MOEC_RULE_V01, err,
                              "must be [accumulator, tie order]");
    v = moec_json_item(pair, 0);
    MOEC_TRY(moec_json_as_string(&v, &accum, err));
    v = moec_json_item(pair, 1);
    MOEC_TRY(moec_json_as_string(&v, &ties, err));
    o->accum = strcmp(accum, "f32") == 0 ? MOEC_EPLB_F32 : MOEC_EPLB_F64;
    o->ties =
        strcmp(ties, "stable") == 0 ? MOEC_EPLB_STABLE : MOEC_EPLB_INTROSORT;
    if (o->accum == MOEC_EPLB_F64 && strcmp(accum, "f64") != 0)
        moec_self_skip(s, "accumulator '%s' is not known", accum);
    if (o->ties == MOEC_EPLB_INTROSORT && strcmp(ties, "introsort") != 0)
        moec_self_skip(s, "tie order '%s' is not known", ties);
    return MOEC_OK;
}

static moec_status run_eplb(moec_self *s, const eplb_case *x,
                            const int32_t *phy2log, const int32_t *replica,
                            moec_error *err)
{
    uint64_t n = (uint64_t)x->n_layers * x->n.n_physical;
    const char *accum = x->opts.accum == MOEC_EPLB_F32 ? "f32" : "f64";
    const char *ties =
        x->opts.ties == MOEC_EPLB_STABLE ? "stable" : "introsort";
    moec_error got = MOEC_ERROR_INIT;
    moec_placement *p = NULL;
    uint32_t *order = NULL;
    const int32_t *row;
    moec_status st;

    MOEC_TRY(moec_vec_room(s->arena, n, 4, &order, err));
    st = moec_eplb(&p, order, &x->opts, x->loads, x->n_layers, x->n.n_experts,
                   &got);
    if (st != MOEC_OK)
        return moec_self_refused(s, NULL, st, &got, err);
    row = x->n_layers > 0 ? moec_placement_row(p, 0) : phy2log;
    for (uint64_t i = 0; i < n; i++) {
        bool same = row[i] == phy2log[i];

        if (same && (!replica || (int32_t)order[i] == replica[i]))
            continue;
        moec_self_differs(
            s, NULL, "[%s, %s] layer %u, slot %u: %s %d, must be %d", accum,
            ties, (unsigned)(i / x->n.n_physical),
            (unsigned)(i % x->n.n_physical), same ? "replica" : "expert",
            same ? (int32_t)order[i] : row[i], same ? replica[i] : phy2log[i]);
        break;
    }
    moec_placement_destroy(p);
    return MOEC_OK;
}

moec_status moec_self_eplb(moec_self *s, const moec_json *c, moec_error *err)
{
    moec_json outs, out, as, pair;
    int32_t *phy2log = NULL, *replica = NULL;
    eplb_case x;

    MOEC_TRY(read_eplb(s, c, &x, err));
    MOEC_TRY(moec_json_get_array(c, "out", &outs, err));
    for (size_t i = 0; i < moec_json_len(&outs); i++) {
        const uint32_t dims[] = {x.n_layers, x.n.n_physical};

        out = moec_json_item(&outs, i);
        MOEC_TRY(
            moec_vec_i32(&out, "phy2log", dims, 2, s->arena, &phy2log, err));
        if (moec_json_has(&out, "replica"))
            MOEC_TRY(moec_vec_i32(&out, "replica", dims, 2, s->arena, &replica,
                                  err));
        MOEC_TRY(moec_json_get_array(&out, "as", &as, err));
        for (size_t k = 0; k < moec_json_len(&as); k++) {
            pair = moec_json_item(&as, k);
            MOEC_TRY(read_pair(s, &pair, &x.opts, err));
            if (s->result == MOEC_CASE_SKIPPED)
                return MOEC_OK;
            MOEC_TRY(run_eplb(s, &x, phy2log, replica, err));
        }
    }
    return MOEC_OK;
}
