/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The plan: which slot tensors a layer has (plan_slots.c), which moves fill
 * one block of them (plan_moves.c), what becomes of every source tensor.
 * Decided here once, executed and proved elsewhere. Nothing is stored per
 * expert or per rank: a block's moves are computed from the layer's slices
 * when asked for, so a plan of 500,000 tensors is as small as one of 500.
 *
 * Refused here: ranks and slots that do not fit (P06, P07), explicit shared
 * slots where the shared expert cannot take any (P10).
 */

#include <string.h>

#include "placement.h"
#include "plan_parts.h"
#include "requant.h"

/* -------------------------------------------------------------- topology */

static moec_status add_note(moec_plan *p, moec_rule rule, const char *text,
                            moec_error *err)
{
    if (!MOEC_GROW(p->notes, p->n_notes, p->cap_notes))
        return moec_fail_nomem(err, "a note");
    moec_note *n = &p->notes[p->n_notes++];
    n->rule = rule;
    snprintf(n->text, sizeof(n->text), "%s", text);
    return MOEC_OK;
}

/* The shared expert stands in slots and, as it was, in a common file. */
static moec_status choose_lossy(moec_plan *p, moec_error *err)
{
    const moec_facts *f = moec_model_facts(p->model);
    char text[MOEC_ERROR_TEXT_BYTES];

    if (p->opts.shared_store_common)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P10,
                         "--shared-store common keeps the shared expert as it "
                         "is, --requantize-shared does not: give one of them");
    p->requantises = true;
    p->topo.n_shared_slots = p->shared_rows = f->split_slots;
    p->topo.shared_global = p->opts.shared == MOEC_SHARED_SLOTS_GLOBAL;
    snprintf(text, sizeof(text),
             "the shared expert is requantised, which loses precision (%s); "
             "its own tensors stay common tensors",
             f->no_fuse_why ? f->no_fuse_why : "it is of another format");
    return add_note(p, MOEC_RULE_P10, text, err);
}

static moec_status choose_shared(moec_plan *p, moec_error *err)
{
    const moec_facts *f = moec_model_facts(p->model);
    moec_shared_mode mode = p->opts.shared;
    char text[MOEC_ERROR_TEXT_BYTES];

    if (f->shared_width == 0 || mode == MOEC_SHARED_SLOTS_OFF) {
        p->opts.requantise_shared = 0;
        p->opts.shared_store_common = 0;
        return MOEC_OK;
    }
    if (f->shared_slots == 0 && f->split_slots != 0 &&
        p->opts.requantise_shared)
        return choose_lossy(p, err);
    p->opts.requantise_shared = 0; /* there is no need */
    if (f->shared_slots == 0) {
        const char *why = f->no_fuse_why ? f->no_fuse_why : "unknown reason";
        if (mode != MOEC_SHARED_SLOTS_AUTO)
            return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P10,
                             "the shared expert cannot take slots: %s; use "
                             "--shared-slots none",
                             why);
        p->opts.shared_store_common = 0; /* common tensors stand once anyway */
        snprintf(text, sizeof(text),
                 "the shared expert stays a common tensor: %s", why);
        return add_note(p, MOEC_RULE_P10, text, err);
    }
    p->topo.n_shared_slots = f->shared_slots;
    p->topo.shared_global = mode == MOEC_SHARED_SLOTS_GLOBAL;
    p->shared_rows = p->opts.shared_store_common ? 0 : f->shared_slots;
    return MOEC_OK;
}

static moec_status copy_placement(moec_plan *p, moec_error *err)
{
    const moec_placement *from = p->opts.placement;
    uint32_t n = (uint32_t)moec_model_n_layers(p->model);
    moec_placement *own = NULL;

    if (from == NULL) {
        MOEC_TRY(moec_placement_trivial(&own, n, p->n_experts,
                                        p->opts.n_redundant, err));
        from = own;
    } else if (moec_placement_n_layers(from) != n ||
               moec_placement_n_experts(from) != p->n_experts) {
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P02,
                         "placement has %u MoE layers of %u experts, the model "
                         "%u of %u",
                         moec_placement_n_layers(from),
                         moec_placement_n_experts(from), n, p->n_experts);
    }
    /* without --allow-empty this is a plain copy */
    uint32_t multiple = p->opts.allow_empty ? p->opts.n_ranks : 1;
    moec_status st = moec_placement_padded(&p->placement, from, multiple, err);
    moec_placement_destroy(own);
    return st;
}

static moec_status note_same_rank(moec_plan *p, moec_error *err)
{
    uint32_t n = (uint32_t)moec_model_n_layers(p->model);
    char text[MOEC_ERROR_TEXT_BYTES];

    for (uint32_t i = 0; i < n; i++) {
        char layer[MOEC_LAYER_TEXT_BYTES];
        moec_same_rank r;

        MOEC_TRY(moec_placement_same_rank(p->placement, i, p->topo.n_ranks, &r,
                                          err));
        if (r.n_slots == 0)
            continue;
        snprintf(text, sizeof(text),
                 "%s: %u slots repeat an expert of their own rank; first: "
                 "rank %u holds expert %u in physical slots %u and %u",
                 moec_layer_text(moec_model_layer(p->model, i)->key, layer),
                 r.n_slots, r.rank, r.expert.v, r.first.v, r.second.v);
        MOEC_TRY(add_note(p, MOEC_RULE_P09, text, err));
    }
    return MOEC_OK;
}

static moec_status choose_topology(moec_plan *p, moec_error *err)
{
    uint32_t n = (uint32_t)moec_model_n_layers(p->model);

    if (p->opts.by_expert) {
        if (p->opts.placement != NULL || p->opts.n_redundant != 0)
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "an expert store has no placement: leave "
                             "--placement and --redundant out");
        p->opts.n_ranks = 1;
        p->opts.allow_empty = 0;
    }
    if (p->opts.n_ranks == 0)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P07,
                         "0 ranks: at least 1 is needed");
    MOEC_TRY(copy_placement(p, err));
    if (p->opts.placement != NULL && p->opts.n_redundant != 0 &&
        moec_placement_n_physical(p->opts.placement) - p->n_experts !=
            p->opts.n_redundant)
        return moec_fail(
            err, MOEC_E_MAPPING, MOEC_RULE_P08,
            "--redundant %u, but the placement has %u slots for "
            "%u experts: %u redundant; leave --redundant out",
            p->opts.n_redundant, moec_placement_n_physical(p->opts.placement),
            p->n_experts,
            moec_placement_n_physical(p->opts.placement) - p->n_experts);
    p->opts.n_redundant =
        moec_placement_n_physical(p->opts.placement ? p->opts.placement
                                                    : p->placement) -
        p->n_experts;
    moec_layer_key *keys = moec_calloc(n + 1u, sizeof(*keys));
    if (keys == NULL)
        return moec_fail_nomem(err, "layer keys");
    for (uint32_t i = 0; i < n; i++)
        keys[i] = moec_model_layer(p->model, i)->key;
    moec_status st =
        moec_placement_fits(p->placement, p->opts.n_ranks, keys, n, err);
    moec_free(keys);
    MOEC_TRY(st);
    p->topo.n_physical = moec_placement_n_physical(p->placement);
    p->topo.n_ranks = p->opts.n_ranks;
    p->topo.n_local = p->topo.n_physical / p->topo.n_ranks;
    return p->opts.by_expert ? MOEC_OK : note_same_rank(p, err);
}

/* ----------------------------------------------------------------- fates */

static moec_fate fate_of(const moec_plan *p, size_t i)
{
    moec_tensor_use u = moec_model_use(p->model, i);

    if (p->opts.no_mtp && u.is_mtp)
        return MOEC_FATE_SKIPPED;
    if (u.role == MOEC_ROLE_ROUTED)
        return MOEC_FATE_MOVED;
    if (u.role != MOEC_ROLE_SHARED || p->topo.n_shared_slots == 0 ||
        p->requantises)
        return MOEC_FATE_COMMON;
    return p->opts.shared_store_common ? MOEC_FATE_SHARED : MOEC_FATE_MOVED;
}

static moec_status choose_fates(moec_plan *p, moec_error *err)
{
    size_t n = moec_ckpt_n_tensors(moec_model_ckpt(p->model));
    size_t skipped = 0;
    char text[MOEC_ERROR_TEXT_BYTES];

    p->fates = moec_calloc(n + 1, 1);
    if (p->fates == NULL)
        return moec_fail_nomem(err, "fates of tensors");
    for (size_t i = 0; i < n; i++) {
        p->fates[i] = (uint8_t)fate_of(p, i);
        skipped += p->fates[i] == MOEC_FATE_SKIPPED;
    }
    if (skipped == 0)
        return MOEC_OK;
    snprintf(text, sizeof(text), "--no-mtp leaves %zu tensors out", skipped);
    return add_note(p, MOEC_RULE_M09, text, err);
}

static moec_status plan_layers(moec_plan *p, moec_error *err)
{
    size_t n = moec_model_n_layers(p->model);

    p->layers = moec_calloc(n + 1, sizeof(*p->layers));
    if (p->layers == NULL)
        return moec_fail_nomem(err, "layers of a plan");
    for (size_t i = 0; i < n; i++) {
        const moec_moe_layer *l = moec_model_layer(p->model, i);
        if (p->opts.no_mtp && l->key.space == MOEC_SPACE_MTP)
            continue;
        moec_plan_layer *pl = &p->layers[p->n_layers++];
        pl->model_layer = i;
        MOEC_TRY(moec_plan_make_layer(p, pl, err));
    }
    return MOEC_OK;
}

static moec_status decide(moec_plan *p, moec_error *err)
{
    if (moec_model_n_layers(p->model) > UINT32_MAX / 2)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE, "too many layers");
    MOEC_TRY(choose_topology(p, err));
    MOEC_TRY(choose_shared(p, err));
    MOEC_TRY(plan_layers(p, err));
    MOEC_TRY(choose_fates(p, err));
    moec_requant *q = NULL;
    moec_status st = moec_requant_create(&q, p, err);
    moec_requant_destroy(q);
    return st;
}

moec_status moec_plan_create(moec_plan **out, const moec_model *model,
                             const moec_plan_opts *opts, moec_error *err)
{
    moec_plan *p;

    MOEC_TRY(moec_check_struct("moec_plan_opts", opts->struct_bytes,
                               sizeof(*opts), err));
    p = moec_calloc(1, sizeof(*p));
    if (p == NULL)
        return moec_fail_nomem(err, "a plan");
    p->model = model;
    p->opts = *opts;
    p->n_experts = moec_model_facts(model)->n_experts;
    moec_status st = decide(p, err);
    p->opts.placement = NULL; /* the caller's may go */
    if (st != MOEC_OK) {
        moec_plan_destroy(p);
        return st;
    }
    *out = p;
    return MOEC_OK;
}

void moec_plan_destroy(moec_plan *p)
{
    if (p == NULL)
        return;
    for (size_t i = 0; p->layers != NULL && i < p->n_layers; i++)
        moec_free(p->layers[i].specs);
    moec_free(p->layers);
    moec_free(p->fates);
    moec_free(p->notes);
    moec_placement_destroy(p->placement);
    moec_arena_fini(&p->arena);
    moec_free(p);
}

/* ------------------------------------------------------------- accessors */

const moec_model *moec_plan_model(const moec_plan *p)
{
    return p->model;
}

const moec_plan_opts *moec_plan_options(const moec_plan *p)
{
    return &p->opts;
}

const moec_placement *moec_plan_placement(const moec_plan *p)
{
    return p->placement;
}

moec_topology moec_plan_topology(const moec_plan *p)
{
    return p->topo;
}

uint32_t moec_plan_shared_rows(const moec_plan *p)
{
    return p->shared_rows;
}

int moec_plan_requantises(const moec_plan *p)
{
    return p->requantises;
}

size_t moec_plan_n_notes(const moec_plan *p)
{
    return p->n_notes;
}

const moec_note *moec_plan_note(const moec_plan *p, size_t i)
{
    return &p->notes[i];
}

size_t moec_plan_n_layers(const moec_plan *p)
{
    return p->n_layers;
}

size_t moec_plan_model_layer(const moec_plan *p, size_t i)
{
    return p->layers[i].model_layer;
}

size_t moec_plan_n_slot_tensors(const moec_plan *p, size_t layer)
{
    return p->layers[layer].n_specs;
}

const moec_slot_tensor *moec_plan_slot_tensor(const moec_plan *p, size_t layer,
                                              size_t t)
{
    return &p->layers[layer].specs[t].pub;
}

moec_fate moec_plan_fate(const moec_plan *p, size_t tensor)
{
    return (moec_fate)p->fates[tensor];
}

uint32_t moec_plan_unit(const moec_plan *p, size_t layer, uint32_t rank,
                        moec_local_row row)
{
    const int32_t *p2l;

    if (row.v >= p->topo.n_local)
        return p->n_experts + (row.v - p->topo.n_local);
    p2l = moec_placement_row(p->placement,
                             (uint32_t)p->layers[layer].model_layer);
    int32_t e = p2l[moec_local_physical(p->topo, rank, row).v];
    return e < 0 ? MOEC_UNIT_EMPTY : (uint32_t)e;
}

/* The topology as files have it: without a row for shared experts that are in
 * a file of their own. */
static moec_topology stored_topology(const moec_plan *p)
{
    moec_topology topo = p->topo;

    topo.n_shared_slots = p->shared_rows;
    return topo;
}

uint32_t moec_plan_row(const moec_plan *p, size_t layer, size_t t,
                       uint32_t rank, moec_local_row row)
{
    moec_topology topo = stored_topology(p);

    if (!p->layers[layer].specs[t].pub.all_slots)
        return row.v;
    if (row.v >= topo.n_local)
        return moec_shared_slot(topo, rank, row.v - topo.n_local).v;
    return moec_physical_slot(topo, moec_local_physical(topo, rank, row)).v;
}

uint32_t moec_plan_row_unit(const moec_plan *p, size_t layer, size_t t,
                            uint32_t rank, uint32_t row)
{
    uint32_t own = p->topo.n_local + p->shared_rows;
    moec_local_row local = {row};

    if (!p->layers[layer].specs[t].pub.all_slots)
        return moec_plan_unit(p, layer, rank, local);
    if (!p->topo.shared_global) {
        rank = row / own;
        local.v = row % own;
    } else if (row < p->topo.n_physical) {
        rank = row / p->topo.n_local;
        local.v = row % p->topo.n_local;
    } else {
        rank = 0; /* shared slots have one number on all ranks */
        local.v = p->topo.n_local + (row - p->topo.n_physical);
    }
    return moec_plan_unit(p, layer, rank, local);
}
