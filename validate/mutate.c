/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The kinds of mutations, and where in a layout each can be made: the first
 * place in the order of layers, ranks and rows, so that two runs make the same
 * one. A kind that needs what the model or the topology does not have is
 * refused with what is missing.
 */

#include <string.h>

#include "model.h"
#include "mutate.h"

/* ------------------------------------------------------------- the table */

#define ROW(name, what, headers, digests, kernels)                             \
  {                                                                            \
    name, what, MOEC_LEVEL_HEADERS, MOEC_RULE_##headers, MOEC_RULE_##digests,  \
        MOEC_RULE_##kernels                                                    \
  }
#define KERNELS(name, what, kernels)                                           \
  {                                                                            \
    name, what, MOEC_LEVEL_KERNELS, MOEC_RULE_NONE, MOEC_RULE_NONE,            \
        MOEC_RULE_##kernels                                                    \
  }

/* clang-format off */
static const moec_mutation_info kinds[MOEC_MUTATION_COUNT] = {
    [MOEC_MUTATION_SWAP_SLOTS] =
        ROW("swap-slots", "two slots hold each other's expert", T4, T3, K03),
    [MOEC_MUTATION_E_FOR_P] =
        ROW("E-for-P", "slots from E on count as shared, where P is meant: "
            "redundant slots hold the shared expert", T4, T3, K03),
    [MOEC_MUTATION_SHARED_FIRST] =
        ROW("shared-first", "shared parts stand before a rank's routed slots",
            T4, T3, K03),
    [MOEC_MUTATION_SHARED_MISSING] =
        ROW("shared-missing", "the row of a shared part is empty", T4, T3, K04),
    [MOEC_MUTATION_GATE_UP_SWAPPED] =
        ROW("gate-up-swapped", "gate stands where up belongs in one slot",
            T3, T3, K03),
    [MOEC_MUTATION_TRANSPOSED_DOWN] =
        ROW("transposed-down", "one expert's down projection is turned the "
            "other way", T5, T3, K03),
    [MOEC_MUTATION_REPLICA_STALE] =
        {"replica-stale", "one replica is of another layer",
         MOEC_LEVEL_DIGESTS, MOEC_RULE_NONE, MOEC_RULE_T3,
         MOEC_RULE_K05},
    [MOEC_MUTATION_SCALE_DROPPED] =
        ROW("scale-dropped", "the experts' scales are left out", T1, T3, K03),
    [MOEC_MUTATION_SCALE_OF_NEIGHBOUR] =
        ROW("scale-of-neighbour", "a slot has another expert's scale", T3, T3, K03),
    [MOEC_MUTATION_BIAS_DROPPED] =
        ROW("bias-dropped", "the experts' biases are left out", T1, T3, K03),
    [MOEC_MUTATION_ROUTER_BIAS_DROPPED] =
        ROW("router-bias-dropped", "the router's bias is left out", T1, M07, K01),
    [MOEC_MUTATION_LAYER_OFF_BY_ONE] =
        ROW("layer-off-by-one", "a layer's slots hold the next layer's "
            "experts", T3, T3, K03),
    [MOEC_MUTATION_RANK_FILES_SWAPPED] =
        ROW("rank-files-swapped", "two ranks have each other's files",
            T4, M06, K03),
    [MOEC_MUTATION_BF16_AS_F16] =
        ROW("bf16-as-f16", "a slot tensor of BF16 is said to be F16", T5, M06, K03),
    [MOEC_MUTATION_MTP_AS_MAIN] =
        ROW("mtp-as-main", "a main layer's slots hold an MTP layer's experts",
            T3, T3, K03),
    [MOEC_MUTATION_WRONG_NORM_TOPK] =
        KERNELS("wrong-norm-topk", "weights are normalised where the model "
                "does not, or the other way round", K02),
    [MOEC_MUTATION_RSF_TWICE] =
        KERNELS("rsf-twice", "the routed scaling factor is applied twice", K02),
    [MOEC_MUTATION_RSF_MISSING] =
        KERNELS("rsf-missing", "the routed scaling factor is left out", K02),
    [MOEC_MUTATION_SHARED_WEIGHT_RENORMALISED] =
        KERNELS("shared-weight-renormalised", "the shared expert's weight is "
                "normalised with the routed ones", K04),
};
/* clang-format on */

const moec_mutation_info *moec_mutation_describe(moec_mutation kind)
{
    return (uint32_t)kind < MOEC_MUTATION_COUNT ? &kinds[kind] : NULL;
}

moec_mutation moec_mutation_find(const char *name)
{
    uint32_t i = 0;

    while (i < MOEC_MUTATION_COUNT && strcmp(kinds[i].name, name) != 0)
        i++;
    return (moec_mutation)i;
}

moec_status moec_mutant_refuse(moec_mutation kind, const char *why,
                               moec_error *err)
{
    return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                     "%s cannot be made here: %s", kinds[kind].name, why);
}

/* ------------------------------------------------------------- the plan */

/* Every finder returns NULL, or what is missing. */
static const char no_experts[] = "no two slots of a layer hold different "
                                 "experts";

static const moec_layer_slices *slices_of(const moec_plan *plan, size_t layer)
{
    return moec_model_slices(moec_plan_model(plan),
                             moec_plan_model_layer(plan, layer));
}

static moec_layer_key key_of(const moec_plan *plan, size_t layer)
{
    return slices_of(plan, layer)->layer.key;
}

/* "weight" of "...experts.w13_weight". */
static const char *component_of(const moec_plan *plan, size_t layer, size_t t)
{
    const moec_slot_tensor *s = moec_plan_slot_tensor(plan, layer, t);
    size_t n = strlen(slices_of(plan, layer)->layer.experts_prefix);

    return s->name + n + strlen(s->is_w2 ? ".w2_" : ".w13_");
}

static const moec_slice *routed_slice(const moec_plan *plan, size_t layer,
                                      size_t t, moec_part part)
{
    const moec_layer_slices *l = slices_of(plan, layer);
    const char *component = component_of(plan, layer, t);

    for (size_t i = 0; i < l->n_slices; i++)
        if (l->slices[i].role == MOEC_ROLE_ROUTED &&
            l->slices[i].part == part &&
            strcmp(l->slices[i].component, component) == 0)
            return &l->slices[i];
    return NULL;
}

static uint32_t unit_at(const moec_plan *plan, size_t layer, uint32_t rank,
                        uint32_t row)
{
    return moec_plan_unit(plan, layer, rank, (moec_local_row){row});
}

/* The routed unit of physical slot `p`, or MOEC_UNIT_EMPTY. */
static uint32_t unit_of(const moec_plan *plan, size_t layer, uint32_t p)
{
    uint32_t n = moec_plan_topology(plan).n_local;

    return unit_at(plan, layer, p / n, p % n);
}

static void place(const moec_plan *plan, uint32_t p, uint32_t *rank,
                  uint32_t *row)
{
    *rank = p / moec_plan_topology(plan).n_local;
    *row = p % moec_plan_topology(plan).n_local;
}

/* The first slot that holds an expert, and the first that holds another. */
static bool find_two_slots(moec_mutant *m, const moec_plan *plan, size_t layer)
{
    uint32_t n = moec_plan_topology(plan).n_physical;
    uint32_t a = 0, b;

    while (a < n && unit_of(plan, layer, a) == MOEC_UNIT_EMPTY)
        a++;
    for (b = a + 1; b < n; b++)
        if (unit_of(plan, layer, b) != MOEC_UNIT_EMPTY &&
            unit_of(plan, layer, b) != unit_of(plan, layer, a))
            break;
    if (b >= n)
        return false;
    m->layer = layer;
    place(plan, a, &m->rank, &m->row);
    place(plan, b, &m->other_rank, &m->other_row);
    return true;
}

static bool same_shape(const moec_plan *plan, size_t a, size_t b)
{
    size_t n = moec_plan_n_slot_tensors(plan, a);

    if (n != moec_plan_n_slot_tensors(plan, b))
        return false;
    for (size_t t = 0; t < n; t++) {
        const moec_slot_tensor *x = moec_plan_slot_tensor(plan, a, t);
        const moec_slot_tensor *y = moec_plan_slot_tensor(plan, b, t);
        if (x->is_w2 != y->is_w2 || x->dtype != y->dtype ||
            x->slot_bytes != y->slot_bytes ||
            strcmp(component_of(plan, a, t), component_of(plan, b, t)) != 0)
            return false;
    }
    return true;
}

/* ----------------------------------------------------------- the finders */

static const char *find_swap(moec_mutant *m, const moec_plan *plan)
{
    return find_two_slots(m, plan, 0) ? NULL : no_experts;
}

static const char *find_shared(moec_mutant *m, const moec_plan *plan)
{
    if (moec_plan_shared_rows(plan) == 0)
        return "no shared expert stands in a rank's slots";
    m->other_row = moec_plan_topology(plan).n_local;
    return NULL;
}

static const char *find_e_for_p(moec_mutant *m, const moec_plan *plan)
{
    uint32_t e = moec_model_facts(moec_plan_model(plan))->n_experts;
    const char *why = find_shared(m, plan);

    if (why != NULL)
        return why;
    if (moec_plan_topology(plan).n_physical == e)
        return "there are no redundant slots, so that E is P";
    place(plan, e, &m->rank, &m->row);
    m->other_rank = m->rank;
    return NULL;
}

static const char *find_gate_up(moec_mutant *m, const moec_plan *plan)
{
    for (size_t l = 0; l < moec_plan_n_layers(plan); l++)
        for (size_t t = 0; t < moec_plan_n_slot_tensors(plan, l); t++) {
            if (moec_plan_slot_tensor(plan, l, t)->is_w2 ||
                (routed_slice(plan, l, t, MOEC_PART_GATE_UP) == NULL &&
                 (routed_slice(plan, l, t, MOEC_PART_GATE) == NULL ||
                  routed_slice(plan, l, t, MOEC_PART_UP) == NULL)))
                continue;
            m->t = t;
            return find_two_slots(m, plan, l) ? NULL : no_experts;
        }
    return "the experts have no gate";
}

static const char *find_down(moec_mutant *m, const moec_plan *plan)
{
    moec_move moves[MOEC_BLOCK_MOVES_MAX];

    for (size_t l = 0; l < moec_plan_n_layers(plan); l++)
        for (size_t t = 0; t < moec_plan_n_slot_tensors(plan, l); t++) {
            if (!moec_plan_slot_tensor(plan, l, t)->is_w2 ||
                moec_plan_block_moves(plan, l, t, 0, moves) != 1 ||
                moves[0].n_rows < 2 || moves[0].n_cols < 2)
                continue;
            m->t = t;
            return find_two_slots(m, plan, l) ? NULL : no_experts;
        }
    return "no down projection has rows and columns";
}

/* A slot of `layer` whose expert has an earlier one: its replica. */
static bool find_replica(moec_mutant *m, const moec_plan *plan, size_t layer)
{
    uint32_t n = moec_plan_topology(plan).n_physical;

    for (uint32_t p = 1; p < n; p++)
        for (uint32_t q = 0; q < p; q++) {
            uint32_t unit = unit_of(plan, layer, p);
            if (unit == MOEC_UNIT_EMPTY || unit_of(plan, layer, q) != unit)
                continue;
            m->layer = layer;
            place(plan, p, &m->rank, &m->row);
            return true;
        }
    return false;
}

static const char *find_stale(moec_mutant *m, const moec_plan *plan)
{
    size_t n = moec_plan_n_layers(plan), other = 0;
    uint32_t unit, p = 0, a = 0;

    while (a < n && !find_replica(m, plan, a))
        a++;
    if (a == n)
        return "no expert has a second slot (--redundant R)";
    while (other < n && (other == a || !same_shape(plan, a, other)))
        other++;
    if (other == n)
        return "no second layer has the same slot tensors";
    unit = unit_at(plan, a, m->rank, m->row);
    while (unit_of(plan, other, p) != unit) /* T4: it has one */
        p++;
    m->other_layer = other;
    place(plan, p, &m->other_rank, &m->other_row);
    return NULL;
}

/* A slot tensor whose component's name has `word` in it, and that the experts
 * are computed with: scales of inputs are a server's. */
static const char *find_component(moec_mutant *m, const moec_plan *plan,
                                  const char *word, const char *missing)
{
    for (size_t l = 0; l < moec_plan_n_layers(plan); l++)
        for (size_t t = 0; t < moec_plan_n_slot_tensors(plan, l); t++) {
            const char *component = component_of(plan, l, t);
            if (strstr(component, word) == NULL ||
                strncmp(component, "input", 5) == 0 ||
                moec_plan_slot_tensor(plan, l, t)->all_slots)
                continue;
            m->t = t;
            return find_two_slots(m, plan, l) ? NULL : no_experts;
        }
    return missing;
}

static const char *find_router_bias(moec_mutant *m, const moec_plan *plan)
{
    const moec_model *model = moec_plan_model(plan);
    const moec_ckpt *ckpt = moec_model_ckpt(model);

    for (size_t i = 0; i < moec_ckpt_n_tensors(ckpt); i++) {
        moec_tensor_use use = moec_model_use(model, i);
        if (use.role != MOEC_ROLE_ROUTER || use.is_mtp ||
            moec_plan_fate(plan, i) != MOEC_FATE_COMMON ||
            strstr(moec_ckpt_tensor(ckpt, i)->name, "bias") == NULL)
            continue;
        m->source = i;
        return NULL;
    }
    return "the router has no bias";
}

/* A main layer and another one of `space` like it; the next one where that is
 * main too. */
static const char *find_layers(moec_mutant *m, const moec_plan *plan,
                               moec_space space, const char *missing)
{
    size_t n = moec_plan_n_layers(plan);

    for (size_t a = 0; a < n; a++)
        for (size_t b = a + 1; b < n; b++) {
            if (key_of(plan, a).space != MOEC_SPACE_MAIN ||
                key_of(plan, b).space != space || !same_shape(plan, a, b))
                continue;
            m->layer = a;
            m->other_layer = b;
            return NULL;
        }
    return missing;
}

static bool ranks_differ(const moec_plan *plan, uint32_t a, uint32_t b)
{
    for (size_t l = 0; l < moec_plan_n_layers(plan); l++)
        for (uint32_t row = 0; row < moec_plan_topology(plan).n_local; row++)
            if (unit_at(plan, l, a, row) != unit_at(plan, l, b, row))
                return true;
    return false;
}

static const char *find_ranks(moec_mutant *m, const moec_plan *plan)
{
    uint32_t n = moec_plan_topology(plan).n_ranks;

    if (moec_plan_options(plan)->by_expert)
        return "an expert store has no ranks";
    for (uint32_t r = 1; r < n; r++)
        if (ranks_differ(plan, 0, r)) {
            m->other_rank = r;
            return NULL;
        }
    return n < 2 ? "there is one rank" : "all ranks hold the same experts";
}

static const char *find_bf16(moec_mutant *m, const moec_plan *plan)
{
    for (size_t l = 0; l < moec_plan_n_layers(plan); l++)
        for (size_t t = 0; t < moec_plan_n_slot_tensors(plan, l); t++)
            if (moec_plan_slot_tensor(plan, l, t)->dtype == MOEC_DTYPE_BF16) {
                m->layer = l;
                m->t = t;
                return NULL;
            }
    return "no slot tensor is BF16";
}

static const char *find(moec_mutant *m, const moec_plan *plan)
{
    switch (m->kind) {
    case MOEC_MUTATION_SWAP_SLOTS:
        return find_swap(m, plan);
    case MOEC_MUTATION_E_FOR_P:
        return find_e_for_p(m, plan);
    case MOEC_MUTATION_SHARED_FIRST:
    case MOEC_MUTATION_SHARED_MISSING:
        return find_shared(m, plan);
    case MOEC_MUTATION_GATE_UP_SWAPPED:
        return find_gate_up(m, plan);
    case MOEC_MUTATION_TRANSPOSED_DOWN:
        return find_down(m, plan);
    case MOEC_MUTATION_REPLICA_STALE:
        return find_stale(m, plan);
    case MOEC_MUTATION_SCALE_DROPPED:
    case MOEC_MUTATION_SCALE_OF_NEIGHBOUR:
        return find_component(m, plan, "scale", "the experts have no scales");
    case MOEC_MUTATION_BIAS_DROPPED:
        return find_component(m, plan, "bias", "the experts have no bias");
    case MOEC_MUTATION_ROUTER_BIAS_DROPPED:
        return find_router_bias(m, plan);
    case MOEC_MUTATION_LAYER_OFF_BY_ONE:
        return find_layers(m, plan, MOEC_SPACE_MAIN,
                           "no two MoE layers have the same slot tensors");
    case MOEC_MUTATION_RANK_FILES_SWAPPED:
        return find_ranks(m, plan);
    case MOEC_MUTATION_BF16_AS_F16:
        return find_bf16(m, plan);
    case MOEC_MUTATION_MTP_AS_MAIN:
        return find_layers(m, plan, MOEC_SPACE_MTP,
                           "no MTP layer with experts like a main layer's is "
                           "planned");
    case MOEC_MUTATION_WRONG_NORM_TOPK:
    case MOEC_MUTATION_RSF_TWICE:
    case MOEC_MUTATION_RSF_MISSING:
    case MOEC_MUTATION_SHARED_WEIGHT_RENORMALISED:
    case MOEC_MUTATION_COUNT:
        break;
    }
    return "needs level kernels, which this version does not have";
}

moec_status moec_mutant_find(moec_mutant *out, const moec_layout *layout,
                             moec_mutation kind, moec_error *err)
{
    const moec_plan *plan = moec_layout_plan(layout);
    moec_mutant m = {.kind = kind};
    const char *why;

    if (moec_mutation_describe(kind) == NULL)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "no kind of mutation has number %d", (int)kind);
    why = moec_plan_n_layers(plan) == 0 ? "there is no MoE layer"
                                        : find(&m, plan);
    if (why != NULL)
        return moec_mutant_refuse(kind, why, err);
    *out = m;
    return MOEC_OK;
}
