/* SPDX-License-Identifier: Apache-2.0 */

/*
 * From a byte of a slot back to its source. Written from the layout contract
 * and from nothing else, so that a mistake in plan.c's arithmetic cannot hide
 * behind the same mistake here: there, counts and strides are built forwards;
 * here, one address is taken apart by division.
 */

#include "origin.h"

#include "base/base.h"

static uint64_t product(const uint64_t *shape, uint32_t from, uint32_t to,
                        bool *ok)
{
    uint64_t n = 1;

    for (uint32_t i = from; i < to; i++)
        if (!moec_mul_u64(n, shape[i], &n))
            *ok = false;
    return n;
}

/* Bytes of one slot are the product of its dimensions. */
static const char *check_bytes(const moec_slot_tensor *t)
{
    bool ok = t->rank >= 1 && t->rank <= MOEC_RANK_MAX;
    uint64_t n, bits;

    if (!ok)
        return "the slot tensor has no slot axis";
    n = product(t->shape, 1, t->rank, &ok);
    if (!ok || !moec_mul_u64(n, moec_dtype_bits(t->dtype), &bits))
        return "the slot's size overflows";
    if (bits == 0 || bits % 8 != 0 || bits / 8 != t->slot_bytes)
        return "the slot's bytes are not its shape times the element";
    return NULL;
}

/* The axes behind the first two (the 16 bytes of an mxfp4 block) stay. */
static bool tail_agrees(const moec_slot_tensor *t, const moec_slice *s)
{
    if (s->in_out || s->rank < 3)
        return true;
    if (t->rank != s->rank + 1)
        return false;
    for (uint32_t i = 2; i < s->rank; i++)
        if (t->shape[i + 1] != s->shape[i])
            return false;
    return true;
}

static const char *init_matrix(moec_origin *o, const moec_slot_tensor *t,
                               uint32_t n_parts)
{
    const moec_slice *s = o->s;
    uint64_t out = t->rank > 1 ? t->shape[1] : 0;

    o->slice_out = s->rank == 0 ? 1 : s->shape[s->in_out ? s->rank - 1 : 0];
    if (out == 0 || o->slice_out == 0 || out % o->n_halves != 0)
        return "the slot has no outputs to share among its halves";
    o->half_out = out / o->n_halves;
    o->row_bytes = t->slot_bytes / out;
    o->slice_row = s->bytes / o->slice_out;
    o->slice_half = o->slice_out;
    if (s->part == MOEC_PART_GATE_UP)
        o->slice_half = o->slice_out / 2;
    if (!tail_agrees(t, s))
        return "the inner axes of slot and source differ";
    if (!o->w2) {
        if (o->slice_half != o->half_out * n_parts)
            return "gate or up has another number of outputs than its half";
        return o->slice_row == o->row_bytes
                   ? NULL
                   : "slot and source have another number of inputs";
    }
    if (o->slice_out != out)
        return "slot and source have another number of outputs";
    o->repeated =
        n_parts > 1 && o->slice_row == o->elem && o->row_bytes == o->elem;
    if (!o->repeated && o->slice_row != o->row_bytes * n_parts)
        return "slot and source have another number of inputs";
    return NULL;
}

static const char *init_kept(moec_origin *o, const moec_slot_tensor *t,
                             uint32_t n_parts)
{
    const moec_slice *s = o->s;
    uint64_t out = t->rank > 1 ? t->shape[t->rank - 1] : 0;
    uint64_t inputs, slice_inputs;

    o->slice_out = s->rank == 0 ? 0 : s->shape[s->rank - 1];
    if (out == 0 || o->slice_out == 0 || out % o->n_halves != 0)
        return "the slot has no outputs to share among its halves";
    o->half_out = out / o->n_halves;
    o->row_bytes = out * o->elem;
    o->slice_row = o->slice_out * o->elem;
    o->slice_half = o->slice_out;
    if (s->part == MOEC_PART_GATE_UP)
        o->slice_half = o->slice_out / 2;
    inputs = t->slot_bytes / o->row_bytes;
    o->inputs = inputs;
    slice_inputs = s->bytes / o->slice_row;
    o->repeated = o->w2 && n_parts > 1 && inputs == 1 && slice_inputs == 1;
    if (o->slice_half != o->half_out * (o->w2 ? 1 : n_parts))
        return "slot and source have another number of outputs";
    if (slice_inputs != inputs * (o->w2 && !o->repeated ? n_parts : 1))
        return "slot and source have another number of inputs";
    return NULL;
}

/* Scalars and records: one for each half, repeated in every part. */
static const char *init_whole(moec_origin *o, const moec_slot_tensor *t)
{
    const moec_slice *s = o->s;
    uint32_t lead = o->w2 ? 1 : 2, rank = 0;

    if (!o->w2 && (t->rank < 2 || t->shape[1] != o->n_halves))
        return "the slot does not have one number for each projection";
    if (s->geometry == MOEC_GEO_RECORD)
        rank = s->rank;
    if (t->rank != lead + rank)
        return "slot and source have another number of axes";
    for (uint32_t i = 0; i < rank; i++)
        if (t->shape[lead + i] != s->shape[i])
            return "the record's shape differs between slot and source";
    o->row_bytes = s->bytes;
    o->repeated = true;
    if (t->slot_bytes != s->bytes * o->n_halves)
        return "slot and source have another number of elements";
    return NULL;
}

const char *moec_origin_init(moec_origin *o, const moec_slot_tensor *t,
                             const moec_slice *s, uint32_t n_halves,
                             uint32_t n_parts, moec_w13_order order)
{
    uint32_t bits = moec_dtype_bits((moec_dtype)s->dtype);
    const char *why = check_bytes(t);
    moec_origin v = {.s = s,
                     .w2 = t->is_w2 != 0,
                     .up_first = order == MOEC_W13_UP_GATE && n_halves == 2,
                     .n_halves = n_halves,
                     .elem = bits >= 8 ? bits / 8 : 1};

    *o = v;
    if (why != NULL)
        return why;
    if ((moec_dtype)s->dtype != t->dtype)
        return "slot and source have another dtype";
    if (s->bytes == 0 || t->slot_bytes == 0 || n_halves == 0 || n_parts == 0)
        return "slot or source is empty";
    switch ((moec_geometry)s->geometry) {
    case MOEC_GEO_MATRIX:
    case MOEC_GEO_OUT_VECTOR:
        return init_matrix(o, t, n_parts);
    case MOEC_GEO_MATRIX_KEPT:
        return init_kept(o, t, n_parts);
    case MOEC_GEO_SCALAR:
    case MOEC_GEO_RECORD:
        return init_whole(o, t);
    }
    return "the source has an unknown geometry";
}

/* Is half `half` of the slot the up projection? And does the slice have it? */
static bool projection(const moec_origin *o, uint64_t half, bool *up_out)
{
    bool up = o->n_halves == 2 && (half == 1) != o->up_first;

    *up_out = up;
    if (o->n_halves < 2 || o->s->part == MOEC_PART_GATE_UP)
        return true;
    return up == (o->s->part == MOEC_PART_UP);
}

/* Output `i` of half `half` of the slot, as an output of the slice. */
static bool output_of(const moec_origin *o, uint32_t part, uint64_t half,
                      uint64_t i, uint64_t *out)
{
    bool up;

    if (!projection(o, half, &up))
        return false;
    if (!o->w2)
        i += part * o->half_out;
    if (o->s->part == MOEC_PART_GATE_UP)
        i = o->s->interleaved ? 2 * i + up : i + (up ? o->slice_half : 0);
    *out = i;
    return true;
}

static bool origin_matrix(const moec_origin *o, uint32_t part, uint64_t at,
                          uint64_t *src_out)
{
    uint64_t a = at / o->row_bytes, j = at % o->row_bytes, row;

    if (!output_of(o, part, a / o->half_out, a % o->half_out, &row))
        return false;
    if (o->w2 && !o->repeated)
        j += part * o->row_bytes;
    if (o->s->in_out)
        *src_out = (j / o->elem * o->slice_out + row) * o->elem + j % o->elem;
    else
        *src_out = row * o->slice_row + j;
    return true;
}

static bool origin_kept(const moec_origin *o, uint32_t part, uint64_t at,
                        uint64_t *src_out)
{
    uint64_t in = at / o->row_bytes, rest = at % o->row_bytes;
    uint64_t c = rest / o->elem, col;

    if (!output_of(o, part, c / o->half_out, c % o->half_out, &col))
        return false;
    if (o->w2 && !o->repeated)
        in += part * o->inputs;
    *src_out = in * o->slice_row + col * o->elem + rest % o->elem;
    return true;
}

bool moec_origin_of(const moec_origin *o, uint32_t part, uint64_t at,
                    uint64_t *src_out)
{
    bool up;

    switch ((moec_geometry)o->s->geometry) {
    case MOEC_GEO_MATRIX:
    case MOEC_GEO_OUT_VECTOR:
        return origin_matrix(o, part, at, src_out);
    case MOEC_GEO_MATRIX_KEPT:
        return origin_kept(o, part, at, src_out);
    case MOEC_GEO_SCALAR:
    case MOEC_GEO_RECORD:
        *src_out = at % o->row_bytes;
        return projection(o, at / o->row_bytes, &up);
    }
    return false;
}
