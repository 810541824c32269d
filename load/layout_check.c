/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What a server was started with against what it is about to load: the first
 * difference, as a sentence at start-up and not a bad benchmark next week.
 */

#include <inttypes.h>
#include <string.h>

#include <moec/load.h>

#include "base/base.h"

static moec_status differs(const char *what, uint64_t is, uint64_t want,
                           moec_error *err)
{
    return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_NONE,
                     "%s: %" PRIu64 " on disk, the server wants %" PRIu64, what,
                     is, want);
}

static moec_status check_shared(const moec_plan *plan,
                                const moec_layout_want *want, moec_error *err)
{
    moec_topology topo = moec_plan_topology(plan);

    if (want->has_shared && want->shared_slots != moec_plan_shared_rows(plan))
        return differs("shared slots a rank", moec_plan_shared_rows(plan),
                       want->shared_slots, err);
    if (want->shared_global != 0 && topo.n_shared_slots > 0 &&
        (want->shared_global == 2) != (topo.shared_global != 0))
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_NONE,
                         "shared slots are numbered %s on disk, the server "
                         "wants them %s",
                         topo.shared_global ? "once" : "per rank",
                         want->shared_global == 2 ? "once" : "per rank");
    return MOEC_OK;
}

static bool is_known(const moec_layout_want *want, const char *component)
{
    for (size_t i = 0; i < want->n_components; i++)
        if (strcmp(component, want->components[i]) == 0)
            return true;
    return false;
}

/* "model.layers.3.mlp.experts.w13_weight_scale_inv": behind the last dot and
 * the w13_ or w2_. */
static const char *component_of(const moec_slot_tensor *s)
{
    const char *dot = strrchr(s->name, '.');
    const char *name = dot != NULL ? dot + 1 : s->name;
    const char *bar = strchr(name, '_');

    return bar != NULL ? bar + 1 : name;
}

static moec_status check_components(const moec_plan *plan,
                                    const moec_layout_want *want,
                                    moec_error *err)
{
    if (want->components == NULL)
        return MOEC_OK;
    for (size_t i = 0; i < moec_plan_n_layers(plan); i++)
        for (size_t t = 0; t < moec_plan_n_slot_tensors(plan, i); t++) {
            const moec_slot_tensor *s = moec_plan_slot_tensor(plan, i, t);
            if (!is_known(want, component_of(s)))
                return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_NONE,
                                 "'%s' (%s): the server's kernels do not take "
                                 "'%s'",
                                 s->name, moec_dtype_name(s->dtype),
                                 component_of(s));
        }
    return MOEC_OK;
}

moec_status moec_placement_check(const moec_placement *is,
                                 const moec_placement *want, moec_error *err)
{
    uint32_t n = moec_placement_n_physical(is);

    if (n != moec_placement_n_physical(want))
        return differs("physical slots", n, moec_placement_n_physical(want),
                       err);
    if (moec_placement_n_experts(is) != moec_placement_n_experts(want))
        return differs("routed experts", moec_placement_n_experts(is),
                       moec_placement_n_experts(want), err);
    if (moec_placement_n_layers(is) != moec_placement_n_layers(want))
        return differs("MoE layers", moec_placement_n_layers(is),
                       moec_placement_n_layers(want), err);
    for (uint32_t i = 0; i < moec_placement_n_layers(is); i++) {
        const int32_t *a = moec_placement_row(is, i);
        const int32_t *b = moec_placement_row(want, i);

        for (uint32_t p = 0; p < n; p++)
            if (a[p] != b[p])
                return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_NONE,
                                 "MoE layer %" PRIu32 ", physical slot "
                                 "%" PRIu32 ": expert %" PRId32
                                 " on disk, the server wants %" PRId32,
                                 i, p, a[p], b[p]);
    }
    return MOEC_OK;
}

moec_status moec_layout_check(const moec_plan *plan,
                              const moec_layout_want *want, moec_error *err)
{
    const moec_facts *f = moec_model_facts(moec_plan_model(plan));
    const moec_plan_opts *o = moec_plan_options(plan);
    moec_topology topo = moec_plan_topology(plan);

    if (want->struct_bytes < sizeof(*want))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_layout_want.struct_bytes is %u: use "
                         "MOEC_LAYOUT_WANT_INIT",
                         want->struct_bytes);
    if (want->family != NULL && strcmp(want->family, f->family) != 0 &&
        strcmp(want->family, f->model_type) != 0)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_NONE,
                         "the model is '%s' (model_type '%s'), the server "
                         "wants '%s'",
                         f->family, f->model_type, want->family);
    if (want->n_ranks != 0 && want->n_ranks != topo.n_ranks)
        return differs("EP size", topo.n_ranks, want->n_ranks, err);
    if (want->has_redundant && want->n_redundant != o->n_redundant)
        return differs("redundant slots", o->n_redundant, want->n_redundant,
                       err);
    if (want->w13_order != 0 && want->w13_order != (uint32_t)o->w13_order + 1)
        return moec_fail(
            err, MOEC_E_MAPPING, MOEC_RULE_NONE,
            "w13 is %s on disk, the server wants %s",
            o->w13_order == MOEC_W13_UP_GATE ? "up-gate" : "gate-up",
            o->w13_order == MOEC_W13_UP_GATE ? "gate-up" : "up-gate");
    MOEC_TRY(check_shared(plan, want, err));
    MOEC_TRY(check_components(plan, want, err));
    if (want->placement == NULL)
        return MOEC_OK;
    return moec_placement_check(moec_plan_placement(plan), want->placement,
                                err);
}
