/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The self-test of EPLB: placements from loads. No back end has a part in it.
 */
#include <string.h>

#include "selftest_parts.h"

typedef struct eplb_case {
    moec_self_sizes n;
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
    MOEC_TRY(moec_self_read_sizes(c, &x->n, err));
    x->opts.n_redundant = x->n.n_physical - x->n.n_experts;
    x->opts.n_ranks = x->n.n_ranks;
    MOEC_TRY(moec_vec_opt_u32(c, "groups", MOEC_SELF_SIZE_MAX,
                              &x->opts.n_groups, err));
    MOEC_TRY(moec_vec_opt_u32(c, "nodes", MOEC_SELF_SIZE_MAX, &x->opts.n_nodes,
                              err));
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
