/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Mutations at level 1: the snapshots that the theorems prove (theorems.h) are
 * changed after they were taken from the plan. The plan itself stays as it is.
 */

#include <string.h>

#include "mutate.h"
#include "report.h"
#include "theorems.h"

/* ------------------------------------------------------------- snapshots */

static uint32_t n_rows(const moec_proof *p)
{
    return p->topo.n_local + p->shared_rows;
}

static uint32_t *unit_at(const moec_proof *p, moec_proof_layer *l,
                         uint32_t rank, uint32_t row)
{
    return &l->units[(size_t)rank * n_rows(p) + row];
}

static moec_proof_block *block_of(moec_proof_layer *l, size_t t, uint32_t unit)
{
    return &l->blocks[t * ((size_t)l->n_units + 1) + unit];
}

/* Give a block other moves. */
static moec_status set_moves(moec_proof_layer *l, moec_proof_block *b,
                             const moec_move *moves, size_t n, moec_error *err)
{
    moec_move *grown =
        moec_realloc_array(l->moves, l->n_moves + n, sizeof(*grown));

    if (grown == NULL)
        return moec_fail_nomem(err, "moves of a mutation");
    memcpy(grown + l->n_moves, moves, n * sizeof(*moves));
    l->moves = grown;
    b->first = l->n_moves;
    b->n = n;
    l->n_moves += n;
    return MOEC_OK;
}

static void swap_units(uint32_t *a, uint32_t *b)
{
    uint32_t unit = *a;

    *a = *b;
    *b = unit;
}

/* ----------------------------------------------------------- the changes */

static void e_for_p(const moec_proof *p, moec_proof_layer *l)
{
    for (uint32_t i = p->n_experts; i < p->topo.n_physical; i++)
        *unit_at(p, l, i / p->topo.n_local, i % p->topo.n_local) = p->n_experts;
}

static void shared_first(const moec_proof *p, moec_proof_layer *l)
{
    memmove(l->units + p->shared_rows, l->units,
            p->topo.n_local * sizeof(*l->units));
    for (uint32_t i = 0; i < p->shared_rows; i++)
        l->units[i] = p->n_experts + i;
}

/* Two halves, in two moves or joined in one, change places. */
static moec_status gate_up_swapped(moec_proof_layer *l, moec_proof_block *b,
                                   moec_error *err)
{
    moec_move v[2] = {l->moves[b->first], l->moves[b->first + b->n - 1]};
    uint64_t off = v[0].dst_off;

    if (b->n == 1) {
        uint64_t rows = v[0].n_rows / 2;
        v[0].n_rows = v[1].n_rows = rows;
        v[1].src_off += rows * v[1].src_row;
        v[1].dst_off += rows * v[1].dst_row;
    }
    v[0].dst_off = v[1].dst_off;
    v[1].dst_off = off;
    return set_moves(l, b, v, 2, err);
}

/* What is copied is turned, and what must be turned is copied. */
static void transposed_down(moec_move *m)
{
    bool copy = m->op == MOEC_OP_COPY;

    m->src_row = copy ? m->elem_bytes : m->n_cols * m->elem_bytes;
    m->src_col = copy ? m->n_rows * m->elem_bytes : m->elem_bytes;
    m->op = copy ? MOEC_OP_TRANSPOSE : MOEC_OP_COPY;
}

static void drop_tensor(moec_proof_layer *l, size_t t)
{
    size_t behind = l->n_tensors - t - 1, width = (size_t)l->n_units + 1;

    memmove(&l->tensors[t], &l->tensors[t + 1], behind * sizeof(*l->tensors));
    memmove(&l->blocks[t * width], &l->blocks[(t + 1) * width],
            behind * width * sizeof(*l->blocks));
    l->n_tensors--;
}

/* Fill the layer's slots with another layer's moves. */
static moec_status take_moves(moec_proof_layer *l, const moec_plan *plan,
                              size_t other, moec_error *err)
{
    moec_proof_layer from;
    moec_move *moves = l->moves;
    moec_proof_block *blocks = l->blocks;

    MOEC_TRY(moec_proof_layer_open(&from, plan, other, err));
    l->moves = from.moves;
    l->n_moves = from.n_moves;
    l->blocks = from.blocks;
    from.moves = moves;
    from.blocks = blocks;
    moec_proof_layer_close(&from);
    return MOEC_OK;
}

static void swap_ranks(const moec_proof *p, moec_proof_layer *l,
                       const moec_mutant *m)
{
    for (uint32_t row = 0; row < n_rows(p); row++)
        swap_units(unit_at(p, l, m->rank, row),
                   unit_at(p, l, m->other_rank, row));
}

static void scale_of_neighbour(const moec_proof *p, moec_proof_layer *l,
                               const moec_mutant *m)
{
    uint32_t unit = *unit_at(p, l, m->rank, m->row);
    uint32_t other = *unit_at(p, l, m->other_rank, m->other_row);

    *block_of(l, m->t, unit) = *block_of(l, m->t, other);
}

/* Change the snapshot of the mutant's own layer. */
static moec_status change_layer(const moec_proof *p, moec_proof_layer *l,
                                const moec_plan *plan, const moec_mutant *m,
                                moec_error *err)
{
    uint32_t *unit = unit_at(p, l, m->rank, m->row);

    switch (m->kind) {
    case MOEC_MUTATION_SWAP_SLOTS:
        swap_units(unit, unit_at(p, l, m->other_rank, m->other_row));
        return MOEC_OK;
    case MOEC_MUTATION_E_FOR_P:
        e_for_p(p, l);
        return MOEC_OK;
    case MOEC_MUTATION_SHARED_FIRST:
        shared_first(p, l);
        return MOEC_OK;
    case MOEC_MUTATION_SHARED_MISSING:
        *unit_at(p, l, m->rank, m->other_row) = MOEC_UNIT_EMPTY;
        return MOEC_OK;
    case MOEC_MUTATION_GATE_UP_SWAPPED:
        return gate_up_swapped(l, block_of(l, m->t, *unit), err);
    case MOEC_MUTATION_TRANSPOSED_DOWN:
        transposed_down(&l->moves[block_of(l, m->t, *unit)->first]);
        return MOEC_OK;
    case MOEC_MUTATION_SCALE_DROPPED:
    case MOEC_MUTATION_BIAS_DROPPED:
        drop_tensor(l, m->t);
        return MOEC_OK;
    case MOEC_MUTATION_SCALE_OF_NEIGHBOUR:
        scale_of_neighbour(p, l, m);
        return MOEC_OK;
    case MOEC_MUTATION_LAYER_OFF_BY_ONE:
    case MOEC_MUTATION_MTP_AS_MAIN:
        return take_moves(l, plan, m->other_layer, err);
    case MOEC_MUTATION_BF16_AS_F16:
        l->tensors[m->t].dtype = MOEC_DTYPE_F16;
        return MOEC_OK;
    case MOEC_MUTATION_RANK_FILES_SWAPPED:  /* of all layers */
    case MOEC_MUTATION_ROUTER_BIAS_DROPPED: /* of none */
    case MOEC_MUTATION_REPLICA_STALE:
    case MOEC_MUTATION_WRONG_NORM_TOPK:
    case MOEC_MUTATION_RSF_TWICE:
    case MOEC_MUTATION_RSF_MISSING:
    case MOEC_MUTATION_SHARED_WEIGHT_RENORMALISED:
    case MOEC_MUTATION_COUNT:
        break;
    }
    return MOEC_OK;
}

/* --------------------------------------------------------------- proving */

static moec_status prove_layer(moec_report *r, moec_proof *p,
                               const moec_plan *plan, const moec_mutant *m,
                               size_t layer, moec_error *err)
{
    moec_proof_layer l;
    moec_status st = moec_proof_layer_open(&l, plan, layer, err);

    if (st != MOEC_OK)
        return st;
    if (m->kind == MOEC_MUTATION_RANK_FILES_SWAPPED)
        swap_ranks(p, &l, m);
    else if (layer == m->layer)
        st = change_layer(p, &l, plan, m, err);
    if (st == MOEC_OK)
        st = moec_prove_layer(r, p, &l, err);
    moec_proof_layer_close(&l);
    return st;
}

/* moec_prove_into with the change. */
static moec_status prove_mutant(moec_report *r, const moec_layout *layout,
                                const moec_mutant *m, moec_error *err)
{
    const moec_plan *plan = moec_layout_plan(layout);
    moec_proof p;
    moec_status st = moec_proof_open(&p, plan, err);

    if (st != MOEC_OK)
        return st;
    if (m->kind == MOEC_MUTATION_ROUTER_BIAS_DROPPED)
        p.sources[m->source].fate = MOEC_FATE_SKIPPED;
    for (size_t i = 0; st == MOEC_OK && i < p.n_layers; i++)
        st = prove_layer(r, &p, plan, m, i, err);
    if (st == MOEC_OK)
        moec_prove_sources(r, &p);
    if (st == MOEC_OK)
        st = moec_prove_files(r, &p, plan, moec_layout_file(layout, 0),
                              moec_layout_n_files(layout), err);
    moec_proof_close(&p);
    return st;
}

/* A layout that is wrong already would be "found" whatever is changed. */
static moec_status prove_clean(const moec_layout *layout, moec_error *err)
{
    moec_report *r;
    moec_status st = MOEC_OK;

    MOEC_TRY(moec_layout_prove(&r, layout, err));
    for (size_t i = 0; st == MOEC_OK && i < moec_report_n_findings(r); i++) {
        const moec_finding *f = moec_report_finding(r, i);
        if (f->severity == MOEC_SEVERITY_ERROR)
            st = moec_fail(err, MOEC_E_INTEGRITY, f->rule,
                           "the layout is wrong before it is changed: %s",
                           f->message);
    }
    moec_report_destroy(r);
    return st;
}

static bool names(const moec_report *r, moec_rule rule)
{
    for (size_t i = 0; i < moec_report_n_findings(r); i++)
        if (moec_report_finding(r, i)->rule == rule &&
            moec_report_finding(r, i)->severity == MOEC_SEVERITY_ERROR)
            return true;
    return false;
}

moec_status moec_check_mutation(moec_report **out, int *found_out,
                                const moec_layout *layout, moec_mutation kind,
                                moec_error *err)
{
    moec_rule rule;
    moec_report *r;
    moec_mutant m;
    moec_status st;

    MOEC_TRY(moec_mutant_find(&m, layout, kind, err));
    rule = moec_mutation_describe(kind)->headers_rule;
    if (rule == MOEC_RULE_NONE)
        return moec_mutant_refuse(kind,
                                  "it needs level digests over a conversion: "
                                  "a plan moves all replicas of an expert "
                                  "alike",
                                  err);
    MOEC_TRY(prove_clean(layout, err));
    MOEC_TRY(moec_report_create(&r, err));
    st = prove_mutant(r, layout, &m, err);
    if (st == MOEC_OK)
        st = moec_report_finish(r, err);
    if (st != MOEC_OK) {
        moec_report_destroy(r);
        return st;
    }
    *found_out = names(r, rule);
    *out = r;
    return MOEC_OK;
}
