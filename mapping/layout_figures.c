/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: what each rank of a plan costs: bytes that it reads of the
 *   source, and moves. Knows units and rows; no file is part of it.
 */

#include "layout_parts.h"

/* What one unit costs in one layer: the slot tensors whose rows are the
 * rank's own together, or those whose rows are all slots. */
typedef struct unit_cost {
    uint64_t bytes, n_moves;
    uint32_t mark; /* 1 + the last rank that counted its bytes */
} unit_cost;

static bool same_source(const moec_move *a, const moec_move *b)
{
    return a->tensor == b->tensor && a->src_off == b->src_off &&
           a->n_rows == b->n_rows && a->n_cols == b->n_cols &&
           a->src_row == b->src_row && a->src_col == b->src_col &&
           a->elem_bytes == b->elem_bytes;
}

/* True where an earlier block names the very bytes that `m` names: the parts
 * of a split shared expert repeat its per-tensor and per-row scales. Routed
 * experts have slices of their own and never share bytes. */
static bool counted_before(const moec_plan *plan, size_t layer, size_t t,
                           uint32_t first_unit, uint32_t unit,
                           const moec_move *m)
{
    moec_move moves[MOEC_BLOCK_MOVES_MAX];

    for (uint32_t u = first_unit; u < unit; u++) {
        size_t n = moec_plan_block_moves(plan, layer, t, u, moves);

        for (size_t i = 0; i < n; i++) {
            if (same_source(&moves[i], m))
                return true;
        }
    }
    return false;
}

static uint64_t source_bytes(const moec_plan *plan, uint32_t tensor)
{
    return moec_ckpt_tensor(moec_model_ckpt(moec_plan_model(plan)), tensor)
        ->bytes;
}

static unit_cost cost_of_unit(const moec_plan *plan, size_t layer,
                              uint32_t n_experts, uint32_t unit, bool all_slots)
{
    size_t n_tensors = moec_plan_n_slot_tensors(plan, layer);
    moec_move moves[MOEC_BLOCK_MOVES_MAX];
    unit_cost cost = {0};

    for (size_t t = 0; t < n_tensors; t++) {
        size_t n = 0;

        if (moec_plan_slot_tensor(plan, layer, t)->all_slots == all_slots)
            n = moec_plan_block_moves(plan, layer, t, unit, moves);
        cost.n_moves += n;
        for (size_t i = 0; i < n; i++) {
            bool again = moves[i].op == MOEC_OP_FILL;
            bool made = moves[i].op == MOEC_OP_REQUANTISE;

            for (size_t j = 0; j < i && !again; j++)
                again = same_source(&moves[j], &moves[i]);
            if (!again && unit > n_experts)
                again =
                    counted_before(plan, layer, t, n_experts, unit, &moves[i]);
            /* Moves lie within tensors: their sizes cannot overflow. */
            if (!again && made) /* its scales are little beside it */
                cost.bytes += source_bytes(plan, moves[i].tensor);
            else if (!again)
                cost.bytes +=
                    moves[i].n_rows * moves[i].n_cols * moves[i].elem_bytes;
        }
    }
    return cost;
}

typedef struct counting {
    const moec_plan *plan;
    uint32_t n_ranks, n_experts, n_units;
    unit_cost *units; /* of the layer at hand */
    moec_rank_figures *figures;
} counting;

/* Slot tensors of one kind: `like` is the first of them. */
static void add_rows(const counting *k, size_t layer, size_t like)
{
    const moec_slot_tensor *s = moec_plan_slot_tensor(k->plan, layer, like);
    bool all = s->all_slots != 0;
    unit_cost empty =
        cost_of_unit(k->plan, layer, k->n_experts, MOEC_UNIT_EMPTY, all);
    unit_cost routed = cost_of_unit(k->plan, layer, k->n_experts, 0, all);

    /* Experts of a layer are alike (C12), their moves differ in the tensors. */
    for (uint32_t u = 0; u < k->n_experts; u++)
        k->units[u] = routed;
    for (uint32_t u = k->n_experts; u < k->n_units; u++)
        k->units[u] = cost_of_unit(k->plan, layer, k->n_experts, u, all);
    for (uint32_t rank = 0; rank < k->n_ranks; rank++) {
        moec_rank_figures *f = &k->figures[rank];

        for (uint32_t row = 0; row < s->shape[0]; row++) {
            uint32_t u = moec_plan_row_unit(k->plan, layer, like, rank, row);
            unit_cost *cost = u < k->n_units ? &k->units[u] : &empty;

            f->n_moves += cost->n_moves;
            if (cost->mark != rank + 1)
                f->bytes_read += cost->bytes;
            cost->mark = rank + 1;
        }
    }
}

static void add_layer(const counting *k, size_t layer)
{
    size_t n = moec_plan_n_slot_tensors(k->plan, layer);
    bool done[2] = {false, false};

    for (size_t t = 0; t < n; t++) {
        bool *d =
            &done[moec_plan_slot_tensor(k->plan, layer, t)->all_slots != 0];
        if (!*d)
            add_rows(k, layer, t);
        *d = true;
    }
}

moec_status moec_plan_add_figures(const moec_plan *plan, uint32_t n_ranks,
                                  moec_rank_figures *figures, moec_error *err)
{
    counting k = {.plan = plan, .n_ranks = n_ranks, .figures = figures};
    size_t n_layers = moec_plan_n_layers(plan);

    k.n_experts = moec_model_facts(moec_plan_model(plan))->n_experts;
    k.n_units = k.n_experts + moec_plan_shared_rows(plan);
    k.units = moec_calloc(k.n_units, sizeof(*k.units));
    if (!k.units)
        return moec_fail_nomem(err, "layout");
    for (size_t layer = 0; layer < n_layers; layer++)
        add_layer(&k, layer);
    moec_free(k.units);
    return MOEC_OK;
}
