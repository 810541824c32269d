/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The self-test of maps: replica choice, and maps that must be refused. No
 * back end has a part in it.
 */
#include <string.h>

#include "placement.h"
#include "selftest_parts.h"

moec_status moec_self_read_sizes(const moec_json *c, moec_self_sizes *out,
                                 moec_error *err)
{
    uint32_t redundant;

    MOEC_TRY(
        moec_json_get_u32(c, "E", MOEC_SELF_SIZE_MAX, &out->n_experts, err));
    MOEC_TRY(moec_json_get_u32(c, "R", MOEC_SELF_SIZE_MAX, &redundant, err));
    MOEC_TRY(moec_json_get_u32(c, "W", MOEC_SELF_SIZE_MAX, &out->n_ranks, err));
    out->n_physical = out->n_experts + redundant;
    return MOEC_OK;
}

/* ---------------------------------------------------------------- maps */

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
static moec_status read_order(moec_self *s, const moec_json *map,
                              moec_self_map_case *x, moec_error *err)
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

moec_status moec_self_read_map(moec_self *s, const moec_json *map,
                               moec_self_map_case *x, moec_error *err)
{
    moec_error got = MOEC_ERROR_INIT;
    moec_json p2l;
    int32_t *rows = NULL;
    uint32_t dims[2];
    bool a2a = false;
    moec_status st;

    *x = (moec_self_map_case){.opts = MOEC_REPLICAS_OPTS_INIT};
    MOEC_TRY(moec_json_get_string(map, "id", &x->id, err));
    MOEC_TRY(moec_self_read_sizes(map, &x->n, err));
    MOEC_TRY(moec_json_get_array(map, "p2l", &p2l, err));
    x->n_layers = (uint32_t)moec_json_len(&p2l);
    dims[0] = x->n_layers;
    dims[1] = x->n.n_physical;
    MOEC_TRY(moec_vec_i32_of(&p2l, dims, 2, s->arena, &rows, err));
    x->opts.n_ranks = x->n.n_ranks;
    MOEC_TRY(moec_vec_opt_u32(map, "nodes", MOEC_SELF_SIZE_MAX,
                              &x->opts.n_nodes, err));
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
                           const moec_self_map_case *x, const int32_t *got,
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
static moec_status check_rank(moec_self *s, const moec_json *rank,
                              moec_self_map_case *x, moec_error *err)
{
    const uint32_t dims[] = {x->n_layers, x->n.n_experts};
    moec_error got = MOEC_ERROR_INIT;
    moec_replicas *r = NULL;
    int32_t *table = NULL, *collapsed = NULL;
    moec_status st;

    MOEC_TRY(moec_json_get_u32(rank, "rank", MOEC_SELF_SIZE_MAX, &x->opts.rank,
                               err));
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
    moec_self_map_case x;

    MOEC_TRY(moec_self_read_map(s, c, &x, err));
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
    moec_self_sizes n;
    moec_status st;

    MOEC_TRY(moec_json_get_string(c, "rule", &rule, err));
    MOEC_TRY(moec_self_read_sizes(c, &n, err));
    MOEC_TRY(
        moec_json_get_u32(c, "layers", MOEC_SELF_SIZE_MAX, &t.n_layers, err));
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
