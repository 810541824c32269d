/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The way back from output files to source tensors. Nothing is decided here:
 * the forward moves of the units that a source tensor feeds are asked for
 * again, those that read it are kept and turned round.
 */

#include <inttypes.h>
#include <string.h>

#include "base/base.h"
#include "execute.h"
#include "inverse.h"
#include "model.h"

/* What a source tensor's block feeds. */
typedef struct target {
    const moec_layout *layout;
    const moec_plan *plan;
    size_t tensor;
    size_t layer; /* planned */
    moec_inverse *out;
} target;

static const moec_tensor *source_of(const moec_layout *layout, size_t tensor)
{
    const moec_plan *plan = moec_layout_plan(layout);

    return moec_ckpt_tensor(moec_model_ckpt(moec_plan_model(plan)), tensor);
}

/* A routed tensor that names no expert holds them all, one after another. */
static bool is_stacked(moec_tensor_use use)
{
    return use.role == MOEC_ROLE_ROUTED && use.expert == MOEC_NO_EXPERT;
}

size_t moec_inverse_n_blocks(const moec_layout *layout, size_t tensor)
{
    const moec_plan *plan = moec_layout_plan(layout);
    const moec_model *model = moec_plan_model(plan);

    switch (moec_plan_fate(plan, tensor)) {
    case MOEC_FATE_SKIPPED:
        return 0;
    case MOEC_FATE_COMMON:
    case MOEC_FATE_SHARED:
        return 1;
    case MOEC_FATE_MOVED:
        break;
    }
    if (is_stacked(moec_model_use(model, tensor)))
        return moec_model_facts(model)->n_experts;
    return 1;
}

/* A tensor that was stored unchanged: one copy. */
static moec_status inverse_common(const moec_layout *layout, size_t tensor,
                                  moec_inverse *out, moec_error *err)
{
    const moec_tensor *t = source_of(layout, tensor);
    moec_move copy = {.op = MOEC_OP_COPY,
                      .elem_bytes = 1,
                      .n_rows = 1,
                      .n_cols = t->bytes,
                      .src_row = t->bytes,
                      .src_col = 1,
                      .dst_row = t->bytes,
                      .dst_col = 1};

    if (!moec_layout_find_common(layout, tensor, &out->from[0].file,
                                 &out->from[0].off))
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_T6,
                         "tensor '%s' has no place in the output files",
                         t->name);
    out->off = 0;
    out->bytes = t->bytes;
    out->from[0].bytes = t->bytes;
    out->moves[0] = copy;
    out->n_moves = 1;
    return MOEC_OK;
}

/* Planned layer of the model's layer. Only MTP layers, which stand last, are
 * ever left out, but this does not rely on it. */
static bool find_planned(const moec_plan *plan, uint32_t model_layer,
                         size_t *out)
{
    size_t n = moec_plan_n_layers(plan);

    if (model_layer < n &&
        moec_plan_model_layer(plan, model_layer) == model_layer) {
        *out = model_layer;
        return true;
    }
    for (size_t i = 0; i < n; i++)
        if (moec_plan_model_layer(plan, i) == model_layer) {
            *out = i;
            return true;
        }
    return false;
}

/* Rank and row of the first slot that holds `unit`. */
static bool find_slot(const moec_plan *plan, size_t layer, uint32_t unit,
                      uint32_t *rank, uint32_t *row)
{
    moec_topology topo = moec_plan_topology(plan);
    uint32_t n_experts = moec_model_facts(moec_plan_model(plan))->n_experts;
    uint32_t model_layer = (uint32_t)moec_plan_model_layer(plan, layer);
    const int32_t *p2l;

    if (unit >= n_experts) {
        *rank = 0;
        *row = topo.n_local + (unit - n_experts);
        return unit - n_experts < moec_plan_shared_rows(plan);
    }
    p2l = moec_placement_row(moec_plan_placement(plan), model_layer);
    for (uint32_t p = 0; p < topo.n_physical; p++) {
        if (p2l[p] != (int32_t)unit)
            continue;
        *rank = moec_physical_rank(topo, (moec_physical_id){p});
        *row = moec_physical_local(topo, (moec_physical_id){p}).v;
        return true;
    }
    return false;
}

bool moec_inverse_slot(const moec_layout *layout, size_t layer, size_t t,
                       uint32_t unit, moec_inverse_from *out)
{
    const moec_plan *plan = moec_layout_plan(layout);
    const moec_slot_tensor *s = moec_plan_slot_tensor(plan, layer, t);
    uint32_t rank, row;

    if (!find_slot(plan, layer, unit, &rank, &row))
        return false;
    moec_layout_find_slots(layout, rank, layer, t, &out->file, &out->off);
    out->off += moec_plan_row(plan, layer, t, rank, (moec_local_row){row}) *
                s->slot_bytes;
    out->bytes = s->slot_bytes;
    return true;
}

/* Scalars and records, and per-row scales of a split shared expert, stand in
 * several slots: the first copy gives them back. */
static bool seen_before(const moec_inverse *v, const moec_move *m)
{
    for (size_t i = 0; i < v->n_moves; i++) {
        const moec_move *a = &v->moves[i];
        if (a->dst_off == m->dst_off && a->n_rows == m->n_rows &&
            a->n_cols == m->n_cols && a->dst_row == m->dst_row &&
            a->dst_col == m->dst_col && a->elem_bytes == m->elem_bytes)
            return true;
    }
    return false;
}

/* Add the moves of (slot tensor, unit) that read the source tensor, turned
 * round. */
static moec_status add_unit_tensor(const target *g, size_t t, uint32_t unit,
                                   moec_error *err)
{
    const moec_slot_tensor *s = moec_plan_slot_tensor(g->plan, g->layer, t);
    moec_move moves[MOEC_BLOCK_MOVES_MAX];
    size_t n = moec_plan_block_moves(g->plan, g->layer, t, unit, moves);
    moec_inverse *out = g->out;

    for (size_t i = 0; i < n; i++) {
        moec_move back;

        if (moves[i].op == MOEC_OP_FILL || moves[i].tensor != g->tensor)
            continue;
        back = moec_move_inverse(&moves[i], (uint32_t)out->n_moves, out->off);
        if (seen_before(out, &back))
            continue;
        if (out->n_moves == MOEC_INVERSE_MOVES_MAX)
            return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_M09,
                             "'%s' is spread over more than %d pieces",
                             source_of(g->layout, g->tensor)->name,
                             MOEC_INVERSE_MOVES_MAX);
        if (!moec_inverse_slot(g->layout, g->layer, t, unit,
                               &out->from[out->n_moves]))
            return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_T6,
                             "'%s': unit %" PRIu32 " has no slot", s->name,
                             unit);
        out->moves[out->n_moves++] = back;
    }
    return MOEC_OK;
}

static moec_status add_unit(const target *g, uint32_t unit, moec_error *err)
{
    size_t n = moec_plan_n_slot_tensors(g->plan, g->layer);

    for (size_t t = 0; t < n; t++)
        MOEC_TRY(add_unit_tensor(g, t, unit, err));
    return MOEC_OK;
}

static moec_status inverse_moved(target *g, size_t block, moec_error *err)
{
    const moec_model *model = moec_plan_model(g->plan);
    const moec_tensor *t = source_of(g->layout, g->tensor);
    moec_tensor_use use = moec_model_use(model, g->tensor);
    uint32_t n_experts = moec_model_facts(model)->n_experts;
    uint64_t bad = 0;

    if (!find_planned(g->plan, use.layer, &g->layer))
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_T6,
                         "tensor '%s' belongs to no planned layer", t->name);
    g->out->off = 0;
    g->out->bytes = t->bytes;
    if (use.role == MOEC_ROLE_SHARED) {
        for (uint32_t s = 0; s < moec_plan_shared_rows(g->plan); s++)
            MOEC_TRY(add_unit(g, n_experts + s, err));
    } else if (is_stacked(use)) {
        g->out->bytes = t->bytes / n_experts;
        g->out->off = block * g->out->bytes;
        MOEC_TRY(add_unit(g, (uint32_t)block, err));
    } else {
        MOEC_TRY(add_unit(g, use.expert, err));
    }
    if (!moec_moves_tile(g->out->moves, g->out->n_moves, g->out->bytes, &bad))
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_T6,
                         "tensor '%s': byte %" PRIu64 " cannot be given back",
                         t->name, g->out->off + bad);
    return MOEC_OK;
}

moec_status moec_inverse_block(const moec_layout *layout, size_t tensor,
                               size_t block, moec_inverse *out, moec_error *err)
{
    target g = {.layout = layout,
                .plan = moec_layout_plan(layout),
                .tensor = tensor,
                .out = out};

    out->n_moves = 0;
    if (block >= moec_inverse_n_blocks(layout, tensor))
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_M09,
                         "tensor '%s' has no block %zu: it was left out of "
                         "the conversion",
                         source_of(layout, tensor)->name, block);
    if (moec_plan_fate(g.plan, tensor) == MOEC_FATE_MOVED)
        return inverse_moved(&g, block, err);
    return inverse_common(layout, tensor, out, err);
}
