/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The theorems of level 1 over one layer, from snapshots (theorems.h).
 *
 * T2 is exact: destinations tile the slot, byte for byte, by the arithmetic of
 * moec_moves_tile; so is T1, which stands in theorems_used.c. T3 (by name) and T5 ask
 * origin.c where each move's bytes must come from. A move is affine in (row,
 * column), and so is the origin within one half and one part: where both agree
 * at the first, second and last row and column they agree in between, and a
 * move that runs over the border of a half or of a cut row is off at its last
 * element. So nine points of a move stand for all of them.
 *
 * A finding says the first thing that is wrong with a block; what follows from
 * it is not listed again.
 */

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "execute.h"
#include "origin.h"
#include "report.h"
#include "theorems.h"

/* What all functions of one layer's proof need. */
typedef struct prover {
    moec_report *r;
    moec_proof *p;
    const moec_proof_layer *l;
    uint32_t n_rows;      /* of a rank */
    uint8_t *placed;      /* [n_units + 1]: some row holds the unit */
    moec_origin *origins; /* [n_slices], of the slot tensor at hand */
    uint8_t *origin_ok;
    /* the block at hand */
    size_t t;
    uint32_t unit;
    const moec_move *moves;
    size_t n_moves;
    /* of the routed expert whose block was proved last; 0: none was */
    const moec_move *proved;
    size_t n_proved;
} prover;

/* ------------------------------------------------------------ findings */

static moec_finding layer_finding(const prover *v, moec_rule rule)
{
    moec_finding f = {.rule = rule,
                      .severity = MOEC_SEVERITY_ERROR,
                      .has = MOEC_HAS_LAYER,
                      .layer = v->l->key};
    return f;
}

static moec_finding tensor_finding(const prover *v, moec_rule rule)
{
    moec_finding f = layer_finding(v, rule);

    f.has |= MOEC_HAS_TENSOR;
    f.tensor = v->l->tensors[v->t].name;
    return f;
}

static moec_finding block_finding(const prover *v, moec_rule rule)
{
    moec_finding f = tensor_finding(v, rule);

    if (v->unit < v->l->n_units) {
        f.has |= MOEC_HAS_EXPERT;
        f.expert = v->unit;
    }
    return f;
}

static moec_finding row_finding(const prover *v, uint32_t rank, uint32_t row)
{
    moec_finding f = layer_finding(v, MOEC_RULE_T4);

    f.has |= MOEC_HAS_RANK | MOEC_HAS_SLOT;
    f.rank = rank;
    f.slot = row;
    return f;
}

/* ---------------------------------------------------------- T4: the map */

static bool topology_agrees(const prover *v)
{
    const moec_topology *topo = &v->p->topo;
    moec_finding f = layer_finding(v, MOEC_RULE_T4);
    uint64_t n = (uint64_t)topo->n_ranks * topo->n_local;
    bool ok = true;

    if (n != topo->n_physical || v->l->n_p2l != topo->n_physical) {
        moec_report_add(v->r, &f,
                        "%u ranks of %u routed slots are not the %u physical "
                        "slots of the topology and the %u of the placement",
                        topo->n_ranks, topo->n_local, topo->n_physical,
                        v->l->n_p2l);
        ok = false;
    }
    if (v->p->shared_rows != topo->n_shared_slots && v->p->shared_rows != 0) {
        moec_report_add(v->r, &f, "%u shared rows, but %u shared slots",
                        v->p->shared_rows, topo->n_shared_slots);
        ok = false;
    }
    for (size_t t = 0; t < v->l->n_tensors; t++) {
        const moec_slot_tensor *s = &v->l->tensors[t];
        uint64_t routed = s->all_slots ? topo->n_physical : topo->n_local;
        uint64_t shared = v->p->shared_rows;
        if (s->all_slots && !topo->shared_global)
            shared *= topo->n_ranks;
        if (s->rank > 0 && s->shape[0] == routed + shared)
            continue;
        f.has |= MOEC_HAS_TENSOR;
        f.tensor = s->name;
        moec_report_add(v->r, &f,
                        "%" PRIu64 " rows a rank, expected %" PRIu64
                        " routed and %" PRIu64 " shared",
                        s->rank > 0 ? s->shape[0] : 0, routed, shared);
        ok = false;
    }
    return ok;
}

/* Rows below L: the routed expert that the placement names. */
static void prove_routed_row(const prover *v, uint32_t rank, uint32_t row,
                             uint32_t unit)
{
    moec_finding f = row_finding(v, rank, row);
    uint32_t p = rank * v->p->topo.n_local + row;
    int32_t want = v->l->p2l[p];
    char expected[16], found[16];

    if (unit == MOEC_UNIT_EMPTY && want < 0 && v->p->allow_empty)
        return;
    if (unit == MOEC_UNIT_EMPTY) {
        moec_report_add(v->r, &f, "physical slot %u is empty", p);
        return;
    }
    f.has |= MOEC_HAS_EXPERT;
    f.expert = unit;
    if (unit >= v->p->n_experts) {
        moec_report_add(v->r, &f,
                        "a shared part stands in routed row %u of %u: shared "
                        "parts stand last",
                        row, v->p->topo.n_local);
        return;
    }
    if (want >= 0 && (uint32_t)want == unit)
        return;
    (void)snprintf(expected, sizeof(expected), "%d", want);
    (void)snprintf(found, sizeof(found), "%u", unit);
    f.has |= MOEC_HAS_EXPECTED | MOEC_HAS_FOUND;
    f.expected = expected;
    f.found = found;
    moec_report_add(v->r, &f,
                    "physical slot %u holds expert %u, the placement says %d",
                    p, unit, want);
}

/* Rows from L: shared part row - L. */
static void prove_shared_row(const prover *v, uint32_t rank, uint32_t row,
                             uint32_t unit)
{
    moec_finding f = row_finding(v, rank, row);
    uint32_t part = row - v->p->topo.n_local;

    if (unit == v->p->n_experts + part)
        return;
    if (unit == MOEC_UNIT_EMPTY || unit < v->p->n_experts) {
        moec_report_add(v->r, &f, "shared part %u is missing from its row",
                        part);
        return;
    }
    moec_report_add(v->r, &f, "shared part %u stands where part %u belongs",
                    unit - v->p->n_experts, part);
}

/* The unit that belongs into dispatch slot `q`. Every rank's stretch of slots
 * is its routed ones, then its shared ones; or all routed ones come first. */
static uint32_t unit_of_slot(const prover *v, uint32_t q)
{
    const moec_topology *topo = &v->p->topo;
    uint32_t routed = topo->n_local, base = 0;

    if (topo->shared_global)
        routed = topo->n_physical;
    else
        base = q / v->n_rows * topo->n_local;
    if (!topo->shared_global)
        q %= v->n_rows;
    if (q >= routed)
        return v->p->n_experts + (q - routed);
    return v->l->p2l[base + q] < 0 ? MOEC_UNIT_EMPTY
                                   : (uint32_t)v->l->p2l[base + q];
}

/* Tables over all slots: each row has the unit of its dispatch slot. */
static void prove_tables(prover *v)
{
    size_t at = 0;

    for (v->t = 0; v->t < v->l->n_tensors; v->t++) {
        const moec_slot_tensor *s = &v->l->tensors[v->t];

        for (uint32_t q = 0; s->all_slots && q < s->shape[0]; q++, at++) {
            moec_finding f = tensor_finding(v, MOEC_RULE_T4);

            if (at < v->l->n_table_units &&
                v->l->table_units[at] == unit_of_slot(v, q))
                continue;
            f.has |= MOEC_HAS_SLOT;
            f.slot = q;
            moec_report_add(v->r, &f,
                            "row %u of the table over all slots does not hold "
                            "what slot %u holds",
                            q, q);
        }
    }
}

static void prove_map(const prover *v)
{
    const moec_topology *topo = &v->p->topo;

    for (uint32_t rank = 0; rank < topo->n_ranks; rank++)
        for (uint32_t row = 0; row < v->n_rows; row++) {
            uint32_t unit = v->l->units[(size_t)rank * v->n_rows + row];

            if (row < topo->n_local)
                prove_routed_row(v, rank, row, unit);
            else
                prove_shared_row(v, rank, row, unit);
            if (unit == MOEC_UNIT_EMPTY)
                v->placed[v->l->n_units] = 1;
            else if (unit < v->l->n_units)
                v->placed[unit] = 1;
        }
    for (uint32_t e = 0; e < v->p->n_experts; e++) {
        moec_finding f = layer_finding(v, MOEC_RULE_T4);

        if (v->placed[e])
            continue;
        f.has |= MOEC_HAS_EXPERT;
        f.expert = e;
        moec_report_add(v->r, &f, "expert %u has no slot on any rank", e);
    }
}

/* ------------------------------------------------------ T2: written once */

static bool prove_written_once(const prover *v)
{
    const moec_slot_tensor *t = &v->l->tensors[v->t];
    moec_finding f = block_finding(v, MOEC_RULE_T2);
    uint64_t end, off = 0;

    for (size_t i = 0; i < v->n_moves; i++) {
        const moec_move *m = &v->moves[i];
        if (moec_region_end(m, m->dst_off, m->dst_row, m->dst_col, &end) &&
            end <= t->slot_bytes)
            continue;
        moec_report_add(v->r, &f,
                        "move %zu writes outside the slot's %" PRIu64 " bytes",
                        i, t->slot_bytes);
        return false;
    }
    if (moec_moves_tile(v->moves, v->n_moves, t->slot_bytes, &off))
        return true;
    moec_report_add(v->r, &f,
                    "byte %" PRIu64 " of the slot's %" PRIu64
                    " is not written by exactly one of %zu moves",
                    off, t->slot_bytes, v->n_moves);
    return false;
}

/* ------------------------------------- T3 by name, T5: one move's source */

/* The source of `m` is none of the block's: say why. Returns false. */
static bool MOEC_PRINTF(3, 4)
    stranger(const prover *v, const moec_move *m, const char *fmt, ...)
{
    const char *name = moec_ckpt_tensor(v->p->ckpt, m->tensor)->name;
    moec_finding f = block_finding(v, MOEC_RULE_T3);
    char why[MOEC_ERROR_TEXT_BYTES];
    va_list args;

    va_start(args, fmt);
    (void)vsnprintf(why, sizeof(why), fmt, args);
    va_end(args);
    f.has |= MOEC_HAS_FOUND;
    f.found = name;
    moec_report_add(v->r, &f, "source '%s' %s", name, why);
    return false;
}

/* Does the tensor belong to this layer, this expert, this projection? */
static bool prove_identity(const prover *v, const moec_move *m)
{
    const moec_slice *s = v->p->sources[m->tensor].slice;
    const moec_slice *first = v->l->slices->slices;
    bool shared = v->unit >= v->p->n_experts;
    uint32_t expert;

    if (s == NULL)
        return stranger(v, m, "holds no expert");
    if (s < first || s >= first + v->l->slices->n_slices)
        return stranger(v, m, "belongs to another layer");
    if ((s->role == MOEC_ROLE_SHARED) != shared)
        return stranger(v, m, "is %s expert",
                        shared ? "a routed" : "the shared");
    expert = moec_model_use(v->p->model, m->tensor).expert;
    if (!shared && !s->stacked && expert != v->unit)
        return stranger(v, m, "is expert %u, not %u", expert, v->unit);
    if (!v->origin_ok[s - first])
        return stranger(v, m, "is not what '%s' is made of",
                        v->l->tensors[v->t].name);
    return true;
}

static void tell_type(const prover *v, const moec_tensor *s, const char *why)
{
    const moec_slot_tensor *t = &v->l->tensors[v->t];
    moec_finding f = block_finding(v, MOEC_RULE_T5);

    if (why != NULL) {
        moec_report_add(v->r, &f, "source '%s': %s", s->name, why);
        return;
    }
    f.has |= MOEC_HAS_EXPECTED | MOEC_HAS_FOUND;
    f.expected = moec_dtype_name(t->dtype);
    f.found = moec_dtype_name((moec_dtype)s->dtype);
    moec_report_add(v->r, &f, "source '%s' is %s, the slot tensor %s", s->name,
                    f.found, f.expected);
}

/* Elements stay whole and the declared operation explains the strides. */
static bool prove_types(const prover *v, const moec_move *m)
{
    const moec_tensor *s = moec_ckpt_tensor(v->p->ckpt, m->tensor);
    const moec_slice *slice = v->p->sources[m->tensor].slice;
    moec_dtype dtype = v->l->tensors[v->t].dtype;
    uint32_t bits = moec_dtype_bits(dtype);
    const char *why = NULL;

    if ((moec_dtype)s->dtype != dtype) {
        tell_type(v, s, NULL);
        return false;
    }
    if (bits == 0 || m->elem_bytes * 8u % bits != 0)
        why = "an element is cut";
    else if (m->op == MOEC_OP_COPY && m->n_cols > 1 &&
             (m->src_col != m->elem_bytes || m->dst_col != m->elem_bytes))
        why = "a copy that steps over elements is no copy";
    else if (m->op == MOEC_OP_TRANSPOSE && !slice->in_out)
        why = "the source is not stored [in, out]";
    else if (m->op == MOEC_OP_COPY && slice->in_out)
        why = "the source is stored [in, out] and is copied as it is";
    else if (m->op == MOEC_OP_DEINTERLEAVE && !slice->interleaved)
        why = "the source is not interleaved";
    else if (m->op != MOEC_OP_COPY && bits >= 8 && m->elem_bytes * 8u != bits)
        why = "an element of another size is rearranged";
    if (why == NULL)
        return true;
    tell_type(v, s, why);
    return false;
}

/* Is the byte that element (r, c) writes the one that belongs there? */
static bool point_agrees(const prover *v, const moec_move *m, uint64_t r,
                         uint64_t c)
{
    const moec_slice *s = v->p->sources[m->tensor].slice;
    const moec_origin *o = &v->origins[s - v->l->slices->slices];
    bool shared = v->unit >= v->p->n_experts;
    uint32_t part = shared ? v->unit - v->p->n_experts : 0;
    uint64_t base = !shared && s->stacked ? v->unit * s->bytes : 0;
    uint64_t at = m->dst_off + r * m->dst_row + c * m->dst_col;
    uint64_t src = m->src_off + r * m->src_row + c * m->src_col;
    uint64_t last = m->elem_bytes - 1u, want;

    return moec_origin_of(o, part, at, &want) && base + want == src &&
           moec_origin_of(o, part, at + last, &want) &&
           base + want == src + last;
}

static bool prove_origin(const prover *v, const moec_move *m)
{
    uint64_t rows[3] = {0, m->n_rows > 1, m->n_rows - 1};
    uint64_t cols[3] = {0, m->n_cols > 1, m->n_cols - 1};

    for (uint32_t i = 0; i < 9; i++) {
        uint64_t r = rows[i / 3], c = cols[i % 3];
        moec_finding f;

        if (point_agrees(v, m, r, c))
            continue;
        f = block_finding(v, MOEC_RULE_T3);
        f.has |= MOEC_HAS_FOUND;
        f.found = moec_ckpt_tensor(v->p->ckpt, m->tensor)->name;
        moec_report_add(v->r, &f,
                        "byte %" PRIu64
                        " of the slot is filled from byte %" PRIu64
                        " of '%s', where other bytes belong",
                        m->dst_off + r * m->dst_row + c * m->dst_col,
                        m->src_off + r * m->src_row + c * m->src_col, f.found);
        return false;
    }
    return true;
}

/* Are the moves those of the routed expert proved last, but for the tensors?
 * Where a move's source is of the same slice, one tensor an expert, then what
 * was proved of its bytes holds for this one as well. */
static bool like_the_last(const prover *v)
{
    if (v->n_moves != v->n_proved || v->unit >= v->p->n_experts)
        return false;
    for (size_t i = 0; i < v->n_moves; i++) {
        moec_move m = v->moves[i];
        const moec_move *last = &v->proved[i];
        const moec_slice *s;

        if (m.op == MOEC_OP_FILL || m.tensor >= v->p->n_sources)
            return false;
        s = v->p->sources[m.tensor].slice;
        if (s == NULL || s->stacked || s != v->p->sources[last->tensor].slice)
            return false;
        m.tensor = last->tensor;
        if (memcmp(&m, last, sizeof(m)) != 0)
            return false;
    }
    return true;
}

/* Gate where up belongs, or the other way round? */
static bool is_other_half(const prover *v, const moec_move *m,
                          const moec_slice *w)
{
    bool second = m->dst_off != 0;
    bool up_first = v->p->w13_order == MOEC_W13_UP_GATE;

    if (v->n_moves != 2 || w->part == MOEC_PART_GATE_UP)
        return false;
    return (w->part == MOEC_PART_UP) != (second != up_first);
}

/* A requantised half: declared, where it may be, of the right weights. That its
 * bytes are what the quantiser makes of them is asked where bytes are read. */
static bool prove_made(const prover *v, const moec_move *m)
{
    const moec_slot_tensor *t = &v->l->tensors[v->t];
    bool shared = v->unit >= v->p->n_experts && v->unit < v->l->n_units;
    bool declared = v->p->requantises && m->op == MOEC_OP_REQUANTISE;
    const moec_proof_source *s =
        m->tensor < v->p->n_sources ? &v->p->sources[m->tensor] : NULL;
    const moec_slice *w = s != NULL ? s->slice : NULL;
    moec_finding f = block_finding(v, MOEC_RULE_T5);
    const char *why = NULL;

    if (!shared || !declared)
        why = shared ? "a requantised slot is filled by another operation"
                     : "a slot is requantised that must be copied";
    else if (w == NULL || w->role != MOEC_ROLE_SHARED ||
             w < v->l->slices->slices ||
             w >= v->l->slices->slices + v->l->slices->n_slices ||
             (w->part == MOEC_PART_DOWN) != (t->is_w2 != 0))
        why = "a slot is requantised from what is not this layer's shared "
              "expert";
    else if (is_other_half(v, m, w))
        why = "gate and up of a requantised slot are swapped";
    else if (s->fate != MOEC_FATE_COMMON)
        why = "the source of a requantised slot is not kept: it could not be "
              "given back";
    if (why == NULL)
        return true;
    moec_report_add(v->r, &f, "%s", why);
    return false;
}

static bool prove_move(const prover *v, const moec_move *m, bool known)
{
    bool fill = m->op == MOEC_OP_FILL;
    bool shared = v->unit >= v->p->n_experts;

    if (fill != (v->unit == v->l->n_units)) {
        moec_finding f = block_finding(v, MOEC_RULE_T3);
        moec_report_add(v->r, &f,
                        fill ? "zeros are written where an expert belongs"
                             : "an empty slot is filled with bytes");
        return false;
    }
    if (fill)
        return true;
    if (m->op == MOEC_OP_REQUANTISE || (shared && v->p->requantises))
        return prove_made(v, m);
    if (!moec_source_fits(v->p, m)) {
        moec_finding f = block_finding(v, MOEC_RULE_T5);
        moec_report_add(v->r, &f, "a move reads outside source tensor %u",
                        m->tensor);
        return false;
    }
    return prove_identity(v, m) && prove_types(v, m) &&
           (known || prove_origin(v, m));
}

/* ------------------------------------------------------ one slot tensor */

/* The component's part of "...experts.w13_weight", or NULL. */
static const char *component_of(const prover *v)
{
    const moec_slot_tensor *t = &v->l->tensors[v->t];
    const char *prefix = v->l->slices->layer.experts_prefix;
    size_t n = strlen(prefix);
    const char *w = t->is_w2 ? ".w2_" : ".w13_";

    if (strncmp(t->name, prefix, n) != 0 ||
        strncmp(t->name + n, w, strlen(w)) != 0)
        return NULL;
    return t->name + n + strlen(w);
}

/* 2 where the component has gate and up, in one source or in two. */
static uint32_t count_halves(const prover *v, uint8_t role,
                             const char *component)
{
    bool has[4] = {false};

    for (size_t i = 0; i < v->l->slices->n_slices; i++) {
        const moec_slice *s = &v->l->slices->slices[i];
        if (s->role == role && strcmp(s->component, component) == 0)
            has[s->part & 3] = true;
    }
    return has[MOEC_PART_GATE_UP] || (has[MOEC_PART_GATE] && has[MOEC_PART_UP])
               ? 2
               : 1;
}

/* Work out the origins of this slot tensor: T5 over shapes. */
static bool prepare_origins(prover *v)
{
    const moec_slot_tensor *t = &v->l->tensors[v->t];
    const char *component = component_of(v), *why;
    moec_finding f = tensor_finding(v, MOEC_RULE_T5);
    size_t n = v->l->slices->n_slices, found = 0;

    memset(v->origin_ok, 0, n);
    for (size_t i = 0; component != NULL && i < n; i++) {
        const moec_slice *s = &v->l->slices->slices[i];
        bool shared = s->role == MOEC_ROLE_SHARED;
        uint32_t halves = 1;

        if ((s->part == MOEC_PART_DOWN) != (t->is_w2 != 0) ||
            strcmp(s->component, component) != 0 ||
            (shared && (v->p->shared_rows == 0 || v->p->requantises)))
            continue;
        if (!t->is_w2)
            halves = count_halves(v, s->role, component);
        why = moec_origin_init(&v->origins[i], t, s, halves,
                               shared ? v->p->topo.n_shared_slots : 1,
                               v->p->w13_order);
        if (why != NULL) {
            moec_report_add(v->r, &f, "%s ('%s')", why,
                            moec_ckpt_tensor(v->p->ckpt, s->tensors[0])->name);
            return false;
        }
        v->origin_ok[i] = 1;
        found++;
    }
    if (found == 0)
        moec_report_add(v->r, &f, "no source of this layer explains it");
    return found != 0;
}

static void prove_tensor(prover *v)
{
    uint64_t n_blocks = 0, n_moves = 0;
    bool explained = prepare_origins(v);

    v->n_proved = 0;
    for (v->unit = 0; v->unit <= v->l->n_units; v->unit++) {
        const moec_proof_block *b =
            &v->l->blocks[v->t * ((size_t)v->l->n_units + 1) + v->unit];
        bool ok, known;

        if (!v->placed[v->unit])
            continue;
        v->moves = v->l->moves + b->first;
        v->n_moves = b->n;
        n_blocks++;
        n_moves += b->n;
        known = like_the_last(v);
        ok = known || prove_written_once(v);
        for (size_t i = 0; ok && explained && i < b->n; i++)
            ok = prove_move(v, &v->moves[i], known);
        if (ok && explained && v->unit < v->p->n_experts) {
            v->proved = v->moves;
            v->n_proved = v->n_moves;
        }
    }
    moec_report_ran(v->r, MOEC_RULE_T2, n_blocks);
    moec_report_ran(v->r, MOEC_RULE_T5, n_moves);
}

/* ------------------------------------------------------------- one layer */

moec_status moec_prove_layer(moec_report *r, moec_proof *p,
                             const moec_proof_layer *l, moec_error *err)
{
    prover v = {
        .r = r, .p = p, .l = l, .n_rows = p->topo.n_local + p->shared_rows};
    uint64_t n_slots = (uint64_t)p->topo.n_ranks * v.n_rows;
    moec_status st = MOEC_OK;

    moec_report_ran(r, MOEC_RULE_T4, n_slots);
    if (!topology_agrees(&v))
        return MOEC_OK;
    v.placed = moec_calloc((size_t)l->n_units + 1, 1);
    v.origins = moec_calloc(l->slices->n_slices + 1, sizeof(*v.origins));
    v.origin_ok = moec_calloc(l->slices->n_slices + 1, 1);
    if (v.placed == NULL || v.origins == NULL || v.origin_ok == NULL) {
        st = moec_fail_nomem(err, "proof of a layer");
        goto done;
    }
    prove_map(&v);
    prove_tables(&v);
    for (v.t = 0; v.t < l->n_tensors; v.t++)
        prove_tensor(&v);
    st = moec_prove_used(r, p, l, v.placed, err);
done:
    moec_free(v.placed);
    moec_free(v.origins);
    moec_free(v.origin_ok);
    return st;
}
