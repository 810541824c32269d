/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A logical expert out of the source's tensors: which bytes are its own, which
 * of them are gate and which are up, and which way round they stand. Written
 * from the description of the source alone (model.h's slices); what a slot
 * looks like is not known here. Refuses formats that forward_format.c refuses.
 */

#include <string.h>

#include "forward.h"

/* ---------------------------------------------------------------- rooms */

moec_status moec_room_get(moec_room *r, uint64_t bytes, moec_error *err)
{
    if (bytes <= r->cap && r->data != NULL)
        return MOEC_OK;
    moec_free_aligned(r->data);
    r->cap = 0;
    r->data = NULL;
    if (bytes > SIZE_MAX - 64)
        return moec_fail_nomem(err, "an expert");
    r->data = moec_alloc_aligned((size_t)bytes + 64, 64);
    if (r->data == NULL)
        return moec_fail_nomem(err, "an expert");
    r->cap = bytes;
    return MOEC_OK;
}

void moec_room_fini(moec_room *r)
{
    moec_free_aligned(r->data);
    r->data = NULL;
    r->cap = 0;
}

void moec_plain_fini(moec_plain *p)
{
    moec_room_fini(&p->w13_data);
    moec_room_fini(&p->w2_data);
    moec_room_fini(&p->w13_bias);
    moec_room_fini(&p->w2_bias);
    for (size_t i = 0; i < 8; i++) {
        moec_room_fini(&p->raw[i]);
        moec_room_fini(&p->cut[i]);
    }
}

/* ------------------------------------------------------------ geometry */

/* What reading one expert needs. */
typedef struct road {
    moec_plain *p;
    const moec_kernels *k;
    const moec_plain_source *from;
    uint32_t expert;
    moec_error *err;
} road;

/* The slice that holds projection `want` of a component; NULL: none does. */
static const moec_slice *slice_of(const road *r, moec_part want,
                                  const char *component)
{
    for (size_t i = 0; i < r->from->l->n_slices; i++) {
        const moec_slice *s = &r->from->l->slices[i];
        bool holds = s->part == want ||
                     (s->part == MOEC_PART_GATE_UP && want != MOEC_PART_DOWN);

        if (s->role == (uint8_t)r->from->role && holds &&
            (component == NULL || s->component == component))
            return s;
    }
    return NULL;
}

static uint64_t product(const uint64_t *shape, uint32_t from, uint32_t to)
{
    uint64_t n = 1;

    for (uint32_t i = from; i < to; i++)
        n *= shape[i];
    return n;
}

/* Turn [in][out] into [out][in]: rows `first`, first + step, ... of the turned
 * matrix. In squares, so that neither side strides through memory. */
static void turn(unsigned char *dst, const unsigned char *src, uint64_t n_out,
                 uint64_t n_in, uint64_t src_outs, uint64_t first,
                 uint64_t step, uint64_t elem)
{
    enum { SQUARE = 64 };

    for (uint64_t o0 = 0; o0 < n_out; o0 += SQUARE)
        for (uint64_t i0 = 0; i0 < n_in; i0 += SQUARE) {
            uint64_t o1 = moec_min_u64(o0 + SQUARE, n_out);
            uint64_t i1 = moec_min_u64(i0 + SQUARE, n_in);

            for (uint64_t o = o0; o < o1; o++)
                for (uint64_t i = i0; i < i1; i++) {
                    const unsigned char *from =
                        src + (i * src_outs + first + o * step) * elem;
                    unsigned char *to = dst + (o * n_in + i) * elem;

                    if (elem == 2)
                        memcpy(to, from, 2);
                    else if (elem == 1)
                        *to = *from;
                    else
                        memcpy(to, from, (size_t)elem);
                }
        }
}

/* Where the outputs of a projection stand among those of its slice. */
typedef struct outputs {
    uint64_t n, first, step;
} outputs;

static outputs outputs_of(const moec_slice *s, moec_part want, uint64_t n_slice)
{
    outputs o = {n_slice, 0, 1};

    if (s->part != MOEC_PART_GATE_UP)
        return o;
    o.n = n_slice / 2;
    if (s->interleaved) { /* gate, up, gate, up */
        o.first = want == MOEC_PART_UP;
        o.step = 2;
    } else if (want == MOEC_PART_UP) {
        o.first = o.n;
    }
    return o;
}

/* [out][in...] or [in][out] -> [out][in]. */
static void cut_matrix(const moec_slice *s, moec_part want, moec_component *c,
                       const unsigned char *raw, unsigned char *dst)
{
    uint32_t at = s->in_out && s->rank > 1 ? s->rank - 1 : 0;
    uint64_t outs = s->rank == 0 ? 1 : s->shape[at];
    outputs o = outputs_of(s, want, outs);
    uint64_t row = s->bytes / outs;

    c->rank = s->rank;
    c->dim[0] = o.n;
    c->dim[1] = c->dim[2] = 1;
    if (s->in_out && s->rank > 1) {
        uint64_t ins = product(s->shape, 0, s->rank - 1);

        c->rank = 2;
        c->dim[1] = ins;
        turn(dst, raw, o.n, ins, outs, o.first, o.step, row / ins);
    } else {
        c->dim[1] = s->rank > 1 ? s->shape[1] : 1;
        c->dim[2] = s->rank > 2 ? product(s->shape, 2, s->rank) : 1;
        for (uint64_t i = 0; i < o.n; i++)
            memcpy(dst + i * row, raw + (o.first + i * o.step) * row,
                   (size_t)row);
    }
    c->bytes = o.n * row;
}

/* AWQ, GPTQ: [in][out], and the halves side by side. */
static void cut_kept(const moec_slice *s, moec_part want, moec_component *c,
                     const unsigned char *raw, unsigned char *dst)
{
    uint64_t outs = s->rank == 0 ? 1 : s->shape[s->rank - 1];
    outputs o = outputs_of(s, want, outs);
    uint64_t ins = s->rank < 2 ? 1 : product(s->shape, 0, s->rank - 1);
    uint64_t elem = s->bytes / outs / ins;

    if (s->rank == 1) { /* g_idx: about the inputs, both halves' */
        o.n = outs;
        o.first = 0;
    }
    for (uint64_t i = 0; i < ins; i++)
        memcpy(dst + i * o.n * elem, raw + (i * outs + o.first) * elem,
               (size_t)(o.n * elem));
    c->rank = s->rank;
    c->dim[0] = ins;
    c->dim[1] = o.n;
    c->dim[2] = 1;
    c->bytes = ins * o.n * elem;
}

/* Bytes that are right as they stand: no turning, no taking apart. */
static bool stands_right(const moec_slice *s)
{
    if (s->geometry == MOEC_GEO_SCALAR || s->geometry == MOEC_GEO_RECORD)
        return true; /* about both halves alike */
    return s->part != MOEC_PART_GATE_UP && (!s->in_out || s->rank < 2);
}

/* The component as it stands. */
static void take_whole(const moec_slice *s, moec_component *c)
{
    bool kept = s->geometry == MOEC_GEO_MATRIX_KEPT;
    uint64_t last = s->rank > 0 ? s->shape[s->rank - 1] : 1;

    c->dim[0] = c->dim[1] = c->dim[2] = 1;
    if (s->geometry == MOEC_GEO_SCALAR || s->geometry == MOEC_GEO_RECORD)
        return;
    c->rank = s->rank;
    if (kept) {
        c->dim[0] = s->rank > 1 ? product(s->shape, 0, s->rank - 1) : 1;
        c->dim[1] = last;
        return;
    }
    c->dim[0] = s->rank > 0 ? s->shape[0] : 1;
    c->dim[1] = s->rank > 1 ? s->shape[1] : 1;
    c->dim[2] = s->rank > 2 ? product(s->shape, 2, s->rank) : 1;
}

/* Read component number `at` of a projection. */
static moec_status read_component(const road *r, const moec_slice *s,
                                  moec_part want, size_t at, moec_component *c)
{
    uint64_t from = s->stacked ? r->expert * s->bytes : 0;
    uint32_t tensor =
        s->tensors[s->stacked || s->n_tensors == 1 ? 0 : r->expert];
    moec_room *raw = &r->p->raw[at], *cut = &r->p->cut[at];

    memset(c, 0, sizeof(*c));
    c->name = s->component;
    c->dtype = (moec_dtype)s->dtype;
    c->geometry = s->geometry;
    MOEC_TRY(moec_room_get(raw, s->bytes, r->err));
    MOEC_TRY(r->from->read(r->from->ctx, tensor, from, raw->data,
                           (size_t)s->bytes, r->err));
    c->data = raw->data;
    c->bytes = s->bytes;
    if (stands_right(s)) {
        take_whole(s, c);
        return MOEC_OK;
    }
    MOEC_TRY(moec_room_get(cut, s->bytes, r->err));
    if (s->geometry == MOEC_GEO_MATRIX_KEPT)
        cut_kept(s, want, c, raw->data, cut->data);
    else
        cut_matrix(s, want, c, raw->data, cut->data);
    c->data = cut->data;
    return MOEC_OK;
}

static moec_status read_projection(const road *r, moec_part want, uint64_t out,
                                   uint64_t in, moec_projection *j)
{
    memset(j, 0, sizeof(*j));
    j->out = out;
    j->in = in;
    for (size_t i = 0; i < r->from->l->n_slices; i++) {
        const moec_slice *s = &r->from->l->slices[i];

        if (s->role != (uint8_t)r->from->role ||
            slice_of(r, want, s->component) != s)
            continue;
        if (j->n == sizeof(j->part) / sizeof(*j->part))
            return moec_fail(r->err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                             "%s: a projection of more than %zu components",
                             r->from->l->layer.experts_prefix, j->n);
        MOEC_TRY(read_component(r, s, want, j->n, &j->part[j->n]));
        j->n++;
    }
    return MOEC_OK;
}

/* ----------------------------------------------------------- the expert */

/* The dtype that the numbers are kept in: their own where they are plain. */
static moec_dtype plain_dtype(const moec_matrix *m)
{
    if (m->format == MOEC_WFORMAT_BF16)
        return MOEC_DTYPE_BF16;
    return m->format == MOEC_WFORMAT_F16 ? MOEC_DTYPE_F16 : MOEC_DTYPE_F32;
}

static void describe_plain(moec_matrix *m, moec_wformat format, uint64_t out,
                           uint64_t in, const void *data, uint64_t elem)
{
    memset(m, 0, sizeof(*m));
    m->struct_bytes = sizeof(*m);
    m->format = format;
    m->n_out = (uint32_t)out;
    m->n_in = (uint32_t)in;
    m->data = data;
    m->data_stride = out * in * elem;
}

/* Put projection `j` behind `row` rows of `m`, whose rooms are data and bias;
 * `rows` is how many there will be. */
static moec_status put(const road *r, moec_projection *j, moec_matrix *m,
                       moec_room *data, moec_room *bias, uint64_t row,
                       uint64_t rows)
{
    moec_matrix one;
    uint64_t elem, size = j->out * j->in;
    moec_dtype dtype;

    MOEC_TRY(moec_projection_matrix(j, &one, r->err));
    dtype = plain_dtype(&one);
    elem = moec_dtype_bits(dtype) / 8;
    if (row == 0) {
        MOEC_TRY(moec_room_get(data, rows * j->in * elem, r->err));
        describe_plain(m,
                       dtype == MOEC_DTYPE_F32 ? MOEC_WFORMAT_F32 : one.format,
                       rows, j->in, data->data, elem);
    }
    if (dtype == MOEC_DTYPE_F32) {
        float *to = (float *)(void *)data->data + row * j->in;

        if (one.format == MOEC_WFORMAT_F32)
            memcpy(to, one.data, (size_t)(size * 4));
        else
            MOEC_TRY(moec_dequantize(r->k, &one, 0, 0, (uint32_t)j->out, to,
                                     r->err));
    } else {
        memcpy(data->data + row * j->in * elem, one.data,
               (size_t)(size * elem));
    }
    if (one.bias == NULL)
        return MOEC_OK;
    MOEC_TRY(moec_room_get(bias, rows * 4, r->err));
    m->bias = bias->data;
    m->bias_dtype = MOEC_DTYPE_F32;
    return moec_cast(r->k, one.bias, one.bias_dtype,
                     (float *)(void *)bias->data + row, MOEC_DTYPE_F32, j->out,
                     r->err);
}

static moec_status read_into(const road *r)
{
    uint64_t hidden = r->from->hidden, inter = r->from->inter;
    moec_plain *p = r->p;
    moec_projection j;
    uint64_t row = 0;

    p->hidden = hidden;
    p->inter = inter;
    p->gated = slice_of(r, MOEC_PART_GATE, NULL) != NULL;
    if (p->gated) {
        MOEC_TRY(read_projection(r, MOEC_PART_GATE, inter, hidden, &j));
        MOEC_TRY(put(r, &j, &p->w13, &p->w13_data, &p->w13_bias, 0, 2 * inter));
        row = inter;
    }
    MOEC_TRY(read_projection(r, MOEC_PART_UP, inter, hidden, &j));
    MOEC_TRY(put(r, &j, &p->w13, &p->w13_data, &p->w13_bias, row, row + inter));
    MOEC_TRY(read_projection(r, MOEC_PART_DOWN, hidden, inter, &j));
    return put(r, &j, &p->w2, &p->w2_data, &p->w2_bias, 0, hidden);
}

moec_status moec_plain_read(moec_plain *p, const moec_kernels *k,
                            const moec_plain_source *source, uint32_t expert,
                            moec_error *err)
{
    road r = {p, k, source, expert, err};
    const char *prefix = source->l->layer.experts_prefix;
    moec_status st;

    if (source->hidden == 0 || source->inter == 0 ||
        source->hidden > UINT32_MAX / 2 || source->inter > UINT32_MAX / 2)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "%s: experts of this size", prefix);
    st = read_into(&r);
    if (st == MOEC_E_UNSUPPORTED)
        moec_error_prefix(err, "%s", prefix);
    return st;
}

uint64_t moec_plain_bytes(const moec_layer_slices *l, moec_role role,
                          uint64_t hidden, uint64_t inter)
{
    uint64_t raw = 0, elem = 4;

    for (size_t i = 0; i < l->n_slices; i++) {
        const moec_slice *s = &l->slices[i];

        if (s->role != (uint8_t)role)
            continue;
        raw = moec_max_u64(raw, s->bytes * (stands_right(s) ? 1 : 2));
        if (strcmp(s->component, "weight") == 0 &&
            (s->dtype == MOEC_DTYPE_BF16 || s->dtype == MOEC_DTYPE_F16))
            elem = 2;
    }
    return raw + 3 * hidden * inter * elem;
}
