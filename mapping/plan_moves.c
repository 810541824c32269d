/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The moves that fill one block of a slot tensor with one unit's bytes, and
 * which of its axes may be cut. Worked out from the layer's slices whenever
 * they are asked for.
 */

#include "plan_parts.h"
#include "slot_axes.h"

/* Part `part` of `n_parts` of half `h` of slice `s`, taken from `base` bytes
 * into its tensor; `to` is the half's place in the slot. */
typedef struct cut {
    const moec_slice *s;
    uint64_t base;
    uint32_t h, n_halves; /* halves in the slot */
    uint32_t to;
    uint32_t part, n_parts;
    bool w2;
    moec_slice_dims m; /* s as one; divisions, so once a move */
    uint64_t half;
} cut;

/* What a part has of a half. */
typedef struct cut_range {
    uint64_t out, in, out_begin, in_begin;
} cut_range;

/* Parts of gate and up are ranges of out, parts of down ranges of in; an in
 * that is alone (a scale per row) is repeated in each part. */
static cut_range range_of(const cut *k)
{
    cut_range r = {.out = k->half, .in = k->m.in};

    if (!k->w2) {
        r.out /= k->n_parts;
        r.out_begin = k->part * r.out;
    } else if (r.in >= k->n_parts) {
        r.in /= k->n_parts;
        r.in_begin = k->part * r.in;
    }
    return r;
}

/* [out, in]: rows of the source are rows of the slot. */
static moec_move cut_matrix(const cut *k)
{
    moec_slice_dims m = k->m;
    cut_range r = range_of(k);
    uint64_t out = r.out, in = r.in, out_begin = r.out_begin, es = m.elem;
    uint64_t in_begin = r.in_begin, step = k->s->interleaved ? 2 : 1;

    if (k->s->part == MOEC_PART_GATE_UP)
        out_begin = k->s->interleaved ? 2 * out_begin + k->h
                                      : out_begin + k->h * k->half;
    moec_move v = {.op = moec_slice_op(k->s),
                   .elem_bytes = (uint16_t)es,
                   .n_rows = out,
                   .n_cols = in};
    v.src_row = (k->s->in_out ? 1 : m.in) * es;
    v.src_col = (k->s->in_out ? m.out : 1) * es;
    v.src_off = k->base + out_begin * v.src_row + in_begin * v.src_col;
    v.src_row *= step;
    v.dst_row = in * es;
    v.dst_col = es;
    v.dst_off = k->to * out * v.dst_row;
    return v;
}

/* [in, out] that stays so: halves join on the last axis. */
static moec_move cut_kept(const cut *k)
{
    moec_slice_dims m = k->m;
    cut_range r = range_of(k);
    uint64_t out = r.out, in = r.in, out_begin = r.out_begin, es = m.elem;
    uint64_t in_begin = r.in_begin;

    if (k->s->part == MOEC_PART_GATE_UP)
        out_begin += k->h * k->half;
    moec_move v = {.op = MOEC_OP_COPY,
                   .elem_bytes = (uint16_t)es,
                   .n_rows = in,
                   .n_cols = out};
    v.src_row = m.out * es;
    v.src_col = v.dst_col = es;
    v.src_off = k->base + in_begin * v.src_row + out_begin * es;
    v.dst_row = k->n_halves * out * es;
    v.dst_off = k->to * out * es;
    return v;
}

/* Scalars and records: the whole of it, once for each half. */
static moec_move cut_whole(const cut *k)
{
    uint64_t es = k->m.elem;
    moec_move v = {.op = MOEC_OP_COPY,
                   .elem_bytes = (uint16_t)es,
                   .n_rows = 1,
                   .n_cols = k->s->bytes / es};

    v.src_off = k->base;
    v.src_col = v.dst_col = es;
    v.src_row = v.dst_row = k->s->bytes;
    v.dst_off = k->to * k->s->bytes;
    return v;
}

static moec_move cut_move(const cut *k)
{
    switch ((moec_geometry)k->s->geometry) {
    case MOEC_GEO_MATRIX:
    case MOEC_GEO_OUT_VECTOR:
        return cut_matrix(k);
    case MOEC_GEO_MATRIX_KEPT:
        return cut_kept(k);
    case MOEC_GEO_SCALAR:
    case MOEC_GEO_RECORD:
        break;
    }
    return cut_whole(k);
}

/* Gate and up of one source that follow each other on both sides are one
 * move: half the calls, and the proofs see what really happens. */
static bool join_moves(moec_move *a, const moec_move *b)
{
    uint64_t src = a->n_rows * a->src_row, dst = a->n_rows * a->dst_row;

    if (a->tensor != b->tensor || a->op != MOEC_OP_COPY ||
        a->n_cols != b->n_cols || a->src_row != b->src_row ||
        a->dst_row != b->dst_row || b->src_off != a->src_off + src ||
        b->dst_off != a->dst_off + dst)
        return false;
    a->n_rows += b->n_rows;
    return true;
}

/* Which axis of a half runs along I, the width of an expert. */
static void cut_axis(const moec_slot_spec *sp, moec_slot_axes *a)
{
    const moec_slice *s = sp->routed[0];
    bool w2 = sp->pub.is_w2;

    switch ((moec_geometry)s->geometry) {
    case MOEC_GEO_MATRIX:
        a->cut = w2 ? MOEC_CUT_COLS : MOEC_CUT_ROWS;
        if (!s->by_block && (w2 ? a->n_cols : a->n_rows) == 1)
            a->cut = MOEC_CUT_NONE; /* a scale per row, or one for all */
        if (s->by_block)
            a->block = s->block[w2 ? 1 : 0];
        break;
    case MOEC_GEO_MATRIX_KEPT:
        a->cut = w2 ? MOEC_CUT_ROWS : MOEC_CUT_COLS;
        if (s->rank == 1) /* g_idx: a group of the whole for each input */
            a->cut = w2 ? MOEC_CUT_NEVER : MOEC_CUT_NONE;
        break;
    case MOEC_GEO_OUT_VECTOR:
        a->cut = w2 ? MOEC_CUT_NONE : MOEC_CUT_ROWS;
        break;
    case MOEC_GEO_SCALAR:
    case MOEC_GEO_RECORD:
        a->cut = MOEC_CUT_NONE;
        break;
    }
}

moec_slot_axes moec_plan_slot_axes(const moec_plan *p, size_t layer, size_t t)
{
    const moec_slot_spec *sp = &p->layers[layer].specs[t];
    const moec_slice *s = sp->routed[0];
    bool kept = s->geometry == MOEC_GEO_MATRIX_KEPT;
    bool whole =
        s->geometry == MOEC_GEO_SCALAR || s->geometry == MOEC_GEO_RECORD;
    moec_slice_dims m = moec_slice_dims_of(s);
    moec_slot_axes a = {.elem = m.elem,
                        .n_halves = sp->n_halves,
                        .half_in_columns = kept && sp->n_halves == 2};

    uint64_t half = moec_slice_half(s, &m);
    a.n_rows = whole ? 1 : kept ? m.in : half;
    a.n_cols = whole ? s->bytes / m.elem : kept ? half : m.in;
    cut_axis(sp, &a);
    return a;
}

/* One move for each half: where it stands, and the weights it is made of. */
static size_t lossy_moves(const moec_slot_spec *sp, bool swap, moec_move *out)
{
    uint64_t bytes = sp->pub.slot_bytes / sp->n_halves;

    for (uint32_t i = 0; i < sp->n_halves; i++) {
        moec_move v = {.tensor = sp->shared[swap ? 1 - i : i]->tensors[0],
                       .op = MOEC_OP_REQUANTISE,
                       .elem_bytes = 1,
                       .n_rows = 1,
                       .n_cols = bytes,
                       .dst_row = bytes,
                       .dst_col = 1,
                       .dst_off = i * bytes};
        out[i] = v;
    }
    return sp->n_halves;
}

size_t moec_plan_block_moves(const moec_plan *p, size_t layer, size_t t,
                             uint32_t unit, moec_move *out)
{
    const moec_slot_spec *sp = &p->layers[layer].specs[t];
    bool shared = unit >= p->n_experts;
    bool swap = p->opts.w13_order == MOEC_W13_UP_GATE && sp->n_halves == 2;
    size_t n = 0;

    if (unit == MOEC_UNIT_EMPTY) {
        uint64_t bytes = sp->pub.slot_bytes;
        moec_move fill = {.tensor = UINT32_MAX,
                          .op = MOEC_OP_FILL,
                          .elem_bytes = 1,
                          .n_rows = 1,
                          .n_cols = bytes,
                          .src_row = bytes,
                          .src_col = 1,
                          .dst_row = bytes,
                          .dst_col = 1};
        out[0] = fill;
        return 1;
    }
    if (shared && p->requantises)
        return lossy_moves(sp, swap, out);
    for (uint32_t i = 0; i < sp->n_halves; i++) {
        uint32_t h = swap ? 1 - i : i; /* i-th half of the slot */
        const moec_slice *s = shared ? sp->shared[h] : sp->routed[h];
        cut k = {.s = s,
                 .h = h,
                 .n_halves = sp->n_halves,
                 .to = i,
                 .part = shared ? unit - p->n_experts : 0,
                 .n_parts = shared ? p->topo.n_shared_slots : 1,
                 .w2 = sp->pub.is_w2};
        k.m = moec_slice_dims_of(s);
        k.half = moec_slice_half(s, &k.m);
        if (!shared && s->stacked)
            k.base = unit * s->bytes;
        out[n] = cut_move(&k);
        out[n].tensor = s->tensors[shared || s->stacked ? 0 : unit];
        if (n == 0 || !join_moves(&out[n - 1], &out[n]))
            n++;
    }
    return n;
}
