/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Snapshots of a plan for the theorems: everything the plan decided, copied
 * out through its public accessors, one layer at a time (a layer of 3,584
 * slots and 900 experts takes about 3 MB).
 */

#include <string.h>

#include "theorems.h"

/* Enter the slices' tensors into the table of sources. */
static void enter_slices(moec_proof *p, const moec_layer_slices *l)
{
    for (size_t i = 0; i < l->n_slices; i++)
        for (uint32_t k = 0; k < l->slices[i].n_tensors; k++)
            p->sources[l->slices[i].tensors[k]].slice = &l->slices[i];
}

moec_status moec_proof_open(moec_proof *out, const moec_plan *plan,
                            moec_error *err)
{
    const moec_model *model = moec_plan_model(plan);
    const moec_ckpt *ckpt = moec_model_ckpt(model);
    const moec_plan_opts *opts = moec_plan_options(plan);
    moec_proof p = {.ckpt = ckpt,
                    .model = model,
                    .topo = moec_plan_topology(plan),
                    .w13_order = opts->w13_order,
                    .n_experts = moec_model_facts(model)->n_experts,
                    .shared_rows = moec_plan_shared_rows(plan),
                    .allow_empty = opts->allow_empty != 0,
                    .no_mtp = opts->no_mtp != 0,
                    .requantises = moec_plan_requantises(plan) != 0,
                    .shared_store_common = opts->shared_store_common != 0,
                    .n_layers = moec_plan_n_layers(plan),
                    .n_sources = moec_ckpt_n_tensors(ckpt),
                    .n_notes = moec_plan_n_notes(plan)};

    p.notes = p.n_notes > 0 ? moec_plan_note(plan, 0) : NULL;
    p.sources = moec_calloc(p.n_sources, sizeof(*p.sources));
    if (p.sources == NULL)
        return moec_fail_nomem(err, "sources of a proof");
    for (size_t i = 0; i < p.n_sources; i++)
        p.sources[i].fate = moec_plan_fate(plan, i);
    for (size_t i = 0; i < moec_model_n_layers(model); i++)
        enter_slices(&p, moec_model_slices(model, i));
    *out = p;
    return MOEC_OK;
}

void moec_proof_close(moec_proof *p)
{
    moec_free(p->sources);
    p->sources = NULL;
}

static moec_status copy_moves(moec_proof_layer *l, const moec_plan *plan,
                              size_t layer, moec_error *err)
{
    size_t n_blocks = l->n_tensors * ((size_t)l->n_units + 1);
    size_t cap = n_blocks * 2 + MOEC_BLOCK_MOVES_MAX, n = 0;

    l->blocks = moec_calloc(n_blocks, sizeof(*l->blocks));
    l->moves = moec_realloc_array(NULL, cap, sizeof(*l->moves));
    if (l->blocks == NULL || l->moves == NULL)
        return moec_fail_nomem(err, "moves of a layer");
    for (size_t b = 0; b < n_blocks; b++) {
        size_t t = b / ((size_t)l->n_units + 1);
        uint32_t unit = (uint32_t)(b % ((size_t)l->n_units + 1));

        if (cap - n < MOEC_BLOCK_MOVES_MAX) {
            moec_move *grown =
                moec_realloc_array(l->moves, cap * 2, sizeof(*grown));
            if (grown == NULL)
                return moec_fail_nomem(err, "moves of a layer");
            l->moves = grown;
            cap *= 2;
        }
        l->blocks[b].first = n;
        l->blocks[b].n = moec_plan_block_moves(
            plan, layer, t, unit == l->n_units ? MOEC_UNIT_EMPTY : unit,
            l->moves + n);
        n += l->blocks[b].n;
    }
    l->n_moves = n;
    return MOEC_OK;
}

static moec_status copy_units(moec_proof_layer *l, const moec_plan *plan,
                              size_t layer, moec_error *err)
{
    moec_topology topo = moec_plan_topology(plan);
    uint32_t n_rows = topo.n_local + moec_plan_shared_rows(plan);
    const moec_placement *placement = moec_plan_placement(plan);
    uint32_t n_physical = moec_placement_n_physical(placement);
    const int32_t *row = moec_placement_row(placement, l->model_layer);

    l->units = moec_calloc((size_t)topo.n_ranks * n_rows, sizeof(*l->units));
    l->p2l = moec_calloc(n_physical, sizeof(*l->p2l));
    if (l->units == NULL || l->p2l == NULL)
        return moec_fail_nomem(err, "units of a layer");
    memcpy(l->p2l, row, n_physical * sizeof(*row));
    l->n_p2l = n_physical;
    for (uint32_t rank = 0; rank < topo.n_ranks; rank++)
        for (uint32_t j = 0; j < n_rows; j++)
            l->units[(size_t)rank * n_rows + j] =
                moec_plan_unit(plan, layer, rank, (moec_local_row){j});
    return MOEC_OK;
}

static moec_status copy_tables(moec_proof_layer *l, const moec_plan *plan,
                               size_t layer, moec_error *err)
{
    uint64_t n = 0;

    for (size_t t = 0; t < l->n_tensors; t++)
        if (l->tensors[t].all_slots)
            n += l->tensors[t].shape[0];
    if (n == 0)
        return MOEC_OK;
    l->table_units = moec_calloc((size_t)n, sizeof(*l->table_units));
    if (l->table_units == NULL)
        return moec_fail_nomem(err, "units of a layer");
    for (size_t t = 0; t < l->n_tensors; t++) {
        const moec_slot_tensor *s = &l->tensors[t];
        for (uint32_t q = 0; s->all_slots && q < s->shape[0]; q++)
            l->table_units[l->n_table_units++] =
                moec_plan_row_unit(plan, layer, t, 0, q);
    }
    return MOEC_OK;
}

moec_status moec_proof_layer_open(moec_proof_layer *out, const moec_plan *plan,
                                  size_t layer, moec_error *err)
{
    const moec_model *model = moec_plan_model(plan);
    size_t model_layer = moec_plan_model_layer(plan, layer);
    moec_proof_layer l = {.key = moec_model_layer(model, model_layer)->key,
                          .model_layer = (uint32_t)model_layer,
                          .slices = moec_model_slices(model, model_layer),
                          .n_units = moec_model_facts(model)->n_experts +
                                     moec_plan_shared_rows(plan),
                          .n_tensors = moec_plan_n_slot_tensors(plan, layer)};
    moec_status st;

    l.tensors = moec_calloc(l.n_tensors, sizeof(*l.tensors));
    if (l.tensors == NULL)
        return moec_fail_nomem(err, "slot tensors of a layer");
    for (size_t t = 0; t < l.n_tensors; t++)
        l.tensors[t] = *moec_plan_slot_tensor(plan, layer, t);
    st = copy_moves(&l, plan, layer, err);
    if (st == MOEC_OK)
        st = copy_units(&l, plan, layer, err);
    if (st == MOEC_OK)
        st = copy_tables(&l, plan, layer, err);
    if (st != MOEC_OK) {
        moec_proof_layer_close(&l);
        return st;
    }
    *out = l;
    return MOEC_OK;
}

void moec_proof_layer_close(moec_proof_layer *l)
{
    moec_free(l->tensors);
    moec_free(l->units);
    moec_free(l->table_units);
    moec_free(l->p2l);
    moec_free(l->blocks);
    moec_free(l->moves);
    l->tensors = NULL;
    l->units = NULL;
    l->table_units = NULL;
    l->p2l = NULL;
    l->blocks = NULL;
    l->moves = NULL;
}
