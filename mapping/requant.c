/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Shared experts requantised into the routed format. See requant.h.
 *
 * Work goes by chunks of rows of one half of one part, each a multiple of the
 * rows that one scale covers, so that a chunk's numbers and scales depend on
 * nothing else: rows are read, made float32, cut to the part's columns,
 * quantised, and what was asked for of it is copied. The numbers and their
 * scales are two slot tensors, so a source row is read once for each: shared
 * experts are a percent of a model.
 *
 * What a layer's numbers are made of, and what is refused, is requant_find.c's.
 */

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "requant_parts.h"

moec_status moec_requant_create(moec_requant **out, const moec_plan *plan,
                                moec_error *err)
{
    moec_requant *q;
    moec_status st;

    *out = NULL;
    if (!moec_plan_requantises(plan))
        return MOEC_OK;
    q = moec_calloc(1, sizeof(*q));
    if (q == NULL)
        return moec_fail_nomem(err, "the requantiser");
    q->plan = plan;
    q->n_experts = moec_model_facts(moec_plan_model(plan))->n_experts;
    q->n_parts = moec_plan_topology(plan).n_shared_slots;
    q->n_layers = moec_plan_n_layers(plan);
    q->layers = moec_calloc(q->n_layers + 1, sizeof(*q->layers));
    st = q->layers ? moec_kernels_open(&q->k, NULL, err)
                   : moec_fail_nomem(err, "the requantiser");
    for (size_t i = 0; st == MOEC_OK && i < q->n_layers; i++)
        st = moec_requant_find(q, i, err);
    if (st != MOEC_OK) {
        moec_requant_destroy(q);
        return st;
    }
    *out = q;
    return MOEC_OK;
}

void moec_requant_destroy(moec_requant *q)
{
    if (q == NULL)
        return;
    moec_kernels_close(q->k);
    moec_free(q->layers);
    moec_free(q);
}

/* --------------------------------------------------------------- a chunk */

/* Values of a chunk, where the rows of one scale are not more. */
#define CHUNK_VALUES (UINT64_C(1) << 18)

/* Rows [row, row + n) of half `half` of part `part`. */
typedef struct chunk {
    const moec_requant *q;
    const moec_requant_to *to;
    const moec_requant_from *from;
    uint32_t part;
    uint64_t row, n;
    moec_read_fn read;
    void *ctx;
    bool w2;
    /* buffers for chunk_rows() rows */
    unsigned char *raw, *raw_scale, *data, *scale;
    float *wide, *values;
} chunk;

static uint64_t chunk_rows(const moec_requant_to *to)
{
    uint64_t block = to->like.block_out;
    uint64_t n = CHUNK_VALUES / (block * to->like.n_in);

    return block * (n > 0 ? n : 1);
}

static void chunk_fini(chunk *c)
{
    moec_free(c->raw);
    moec_free(c->raw_scale);
    moec_free(c->data);
    moec_free(c->scale);
    moec_free(c->wide);
    moec_free(c->values);
}

/* Source rows before the chunk that share its first scale: read and not
 * used. One scale for all rows needs none. */
static uint64_t rows_before(const moec_requant_from *s, uint64_t row)
{
    return s->format == MOEC_WFORMAT_FP8 && s->block_out < s->tensor_rows
               ? row % s->block_out
               : 0;
}

static uint64_t chunk_bytes(const moec_requant_to *to,
                            const moec_requant_from *s)
{
    uint64_t n = chunk_rows(to), more = n + s->block_out;

    return more * (s->row_bytes + s->scale_cols * 4 + 1) +
           n * (s->in * sizeof(float) + to->like.n_in * sizeof(float) +
                to->data_row) +
           moec_ceil_div(n, to->like.block_out) * to->scale_row;
}

uint64_t moec_requant_memory(const moec_requant *q)
{
    uint64_t most = 0;

    for (size_t i = 0; q != NULL && i < q->n_layers; i++)
        for (int p = 0; p <= MOEC_PROJECTION_DOWN; p++)
            if (moec_requant_has(q, i, (moec_projection)p))
                most = moec_max_u64(
                    most,
                    chunk_bytes(&q->layers[i].to[p == MOEC_PROJECTION_DOWN],
                                &q->layers[i].from[p]));
    return most;
}

static moec_status chunk_init(chunk *c, moec_error *err)
{
    const moec_requant_from *s = c->from;
    const moec_requant_to *to = c->to;
    uint64_t n = chunk_rows(to), more = n;

    if (s->format == MOEC_WFORMAT_FP8 && s->block_out < s->tensor_rows)
        more += s->block_out;
    c->raw = moec_calloc(more, s->row_bytes);
    c->raw_scale = moec_calloc(more + 1, s->scale_cols * 4 + 1);
    c->wide = moec_calloc(n, s->in * sizeof(float));
    c->values = moec_calloc(n, to->like.n_in * sizeof(float));
    c->data = moec_calloc(n, to->data_row);
    c->scale = moec_calloc(moec_ceil_div(n, to->like.block_out), to->scale_row);
    if (c->raw && c->raw_scale && c->wide && c->values && c->data && c->scale)
        return MOEC_OK;
    return moec_fail_nomem(err, "buffers to requantise");
}

/* The source's rows as float32. */
static moec_status read_wide(chunk *c, moec_error *err)
{
    const moec_requant_from *s = c->from;
    uint64_t row = s->first_row + c->row, before, n, block, first;
    moec_matrix m = {.struct_bytes = sizeof(m), .format = s->format};

    if (!c->w2)
        row += c->part * c->to->half_out;
    before = rows_before(s, row);
    n = c->n + before;
    MOEC_TRY(c->read(c->ctx, s->weight, (row - before) * s->row_bytes, c->raw,
                     (size_t)(n * s->row_bytes), err));
    m.n_out = (uint32_t)n;
    m.n_in = (uint32_t)s->in;
    m.data = c->raw;
    if (s->format == MOEC_WFORMAT_FP8) {
        uint64_t bytes = s->scale_cols * moec_dtype_bits(s->scale_dtype) / 8;

        block = s->block_out;
        first = (row - before) / block;
        if (block >= s->tensor_rows) /* one scale for all rows */
            block = n;
        MOEC_TRY(c->read(c->ctx, s->scale, first * bytes, c->raw_scale,
                         (size_t)(moec_ceil_div(n, block) * bytes), err));
        m.scale = c->raw_scale;
        m.scale_dtype = s->scale_dtype;
        m.block_out = (uint32_t)block;
        m.block_in = (uint32_t)s->block_in;
    }
    return moec_dequantize(c->q->k, &m, 0, (uint32_t)before, (uint32_t)c->n,
                           c->wide, err);
}

static moec_status make_chunk(chunk *c, moec_quant_error *lost, moec_error *err)
{
    const moec_requant_from *s = c->from;
    moec_matrix like = c->to->like;
    uint64_t in = like.n_in, col = c->w2 ? c->part * in : 0;
    moec_error why = MOEC_ERROR_INIT;
    moec_status st;

    MOEC_TRY(read_wide(c, err));
    for (uint64_t r = 0; r < c->n; r++)
        memcpy(c->values + r * in, c->wide + r * s->in + col,
               (size_t)in * sizeof(float));
    like.n_out = (uint32_t)c->n;
    like.part_rows = 0;
    like.block_out = (uint32_t)moec_min_u64(like.block_out, c->n);
    st = moec_quantize_rows(c->q->k, &like, c->values, c->data, c->scale, lost,
                            &why);
    if (st == MOEC_OK)
        return MOEC_OK;
    /* what was prepared above fits: only the weights can be at fault */
    return moec_fail(
        err, st == MOEC_E_ARG ? MOEC_E_FORMAT : st,
        st == MOEC_E_ARG ? MOEC_RULE_P10 : MOEC_RULE_NONE,
        "tensor '%s' cannot be requantised, from row %" PRIu64 " on: %s",
        moec_ckpt_tensor(moec_model_ckpt(moec_plan_model(c->q->plan)),
                         s->weight)
            ->name,
        s->first_row + c->row, why.text);
}

/* Which projection is half `half` of the slot? */
static moec_projection projection_of(const moec_requant *q,
                                     const moec_requant_layer *y, bool w2,
                                     uint32_t half)
{
    bool swap = moec_plan_options(q->plan)->w13_order == MOEC_W13_UP_GATE;

    if (w2)
        return MOEC_PROJECTION_DOWN;
    if (!y->has_up)
        return MOEC_PROJECTION_GATE;
    return (half == 1) != swap ? MOEC_PROJECTION_UP : MOEC_PROJECTION_GATE;
}

/* --------------------------------------------------------------- reading */

/* weight_shape: two integers a half, [out, in]. */
static void fill_shape(const moec_requant_to *to, const moec_slot_tensor *s,
                       uint64_t from, uint64_t to_byte, unsigned char *dst)
{
    unsigned each = moec_dtype_bits(s->dtype) / 8;

    for (uint64_t i = from; i < to_byte; i++) {
        uint64_t v = i / each % 2 == 0 ? to->half_out : to->like.n_in;
        dst[i - from] = (unsigned char)(v >> 8 * (i % each));
    }
}

/* Bytes [from, to) of half `half`, of numbers or scales, of which one row, of
 * `rows_each` output rows, has `row_bytes`. */
typedef struct piece {
    bool scales;
    uint64_t row_bytes, rows_each;
} piece;

static moec_status fill_half(chunk *c, const piece *p, uint64_t from,
                             uint64_t to, unsigned char *dst, moec_error *err)
{
    uint64_t step = chunk_rows(c->to), end = c->to->half_out;
    uint64_t row = from / p->row_bytes * p->rows_each / step * step;

    for (; from < to; row += step) {
        const unsigned char *made = p->scales ? c->scale : c->data;
        uint64_t base = row / p->rows_each * p->row_bytes;
        uint64_t n_rows = moec_min_u64(step, end - row);
        uint64_t bytes = moec_ceil_div(n_rows, p->rows_each) * p->row_bytes;
        uint64_t stop = moec_min_u64(to, base + bytes);

        c->row = row;
        c->n = n_rows;
        MOEC_TRY(make_chunk(c, NULL, err));
        memcpy(dst, made + (from - base), (size_t)(stop - from));
        dst += stop - from;
        from = stop;
    }
    return MOEC_OK;
}

moec_status moec_requant_read(const moec_requant *q, size_t layer_index,
                              size_t t, uint32_t unit, uint64_t from,
                              uint64_t to, void *dst, moec_read_fn read,
                              void *ctx, moec_error *err)
{
    const moec_slot_tensor *s = moec_plan_slot_tensor(q->plan, layer_index, t);
    const moec_requant_layer *y = &q->layers[layer_index];
    const moec_requant_to *g = &y->to[s->is_w2 != 0];
    uint64_t half_bytes = s->slot_bytes / g->n_halves;
    piece p = {t == g->scale, g->data_row, 1};
    unsigned char *at = dst;
    moec_status st = MOEC_OK;

    if (t != g->data && t != g->scale) {
        fill_shape(g, s, from, to, dst);
        return MOEC_OK;
    }
    if (p.scales)
        p = (piece){true, g->scale_row, g->like.block_out};
    while (st == MOEC_OK && from < to) {
        uint32_t half = (uint32_t)(from / half_bytes);
        uint64_t base = half * half_bytes;
        uint64_t stop = moec_min_u64(to, base + half_bytes);
        chunk c = {.q = q,
                   .to = g,
                   .from = &y->from[projection_of(q, y, s->is_w2, half)],
                   .part = unit - q->n_experts,
                   .read = read,
                   .ctx = ctx,
                   .w2 = s->is_w2 != 0};

        st = chunk_init(&c, err);
        if (st == MOEC_OK)
            st = fill_half(&c, &p, from - base, stop - base, at, err);
        chunk_fini(&c);
        at += stop - from;
        from = stop;
    }
    return st;
}

/* ---------------------------------------------------------------- errors */

bool moec_requant_has(const moec_requant *q, size_t i, moec_projection p)
{
    return p != MOEC_PROJECTION_UP || q->layers[i].has_up;
}

uint32_t moec_requant_source(const moec_requant *q, size_t i, moec_projection p)
{
    return q->layers[i].from[p].weight;
}

/* Squares add up, and counts. */
static void add_lost(moec_quant_error *sum, const moec_quant_error *e)
{
    double n = (double)e->n;

    sum->max_abs = e->max_abs > sum->max_abs ? e->max_abs : sum->max_abs;
    sum->rms += e->rms * e->rms * n;
    sum->rms_in += e->rms_in * e->rms_in * n;
    sum->n += e->n;
}

moec_status moec_requant_error(const moec_requant *q, size_t i,
                               moec_projection p, moec_read_fn read, void *ctx,
                               moec_quant_error *out, moec_error *err)
{
    const moec_requant_layer *y = &q->layers[i];
    const moec_requant_to *g = &y->to[p == MOEC_PROJECTION_DOWN];
    moec_quant_error sum = {0}, one;
    chunk c = {.q = q,
               .to = g,
               .from = &y->from[p],
               .read = read,
               .ctx = ctx,
               .w2 = p == MOEC_PROJECTION_DOWN};
    moec_status st = chunk_init(&c, err);
    uint64_t step = chunk_rows(g);

    for (c.part = 0; st == MOEC_OK && c.part < q->n_parts; c.part++)
        for (c.row = 0; st == MOEC_OK && c.row < g->half_out; c.row += step) {
            c.n = moec_min_u64(step, g->half_out - c.row);
            st = make_chunk(&c, &one, err);
            if (st == MOEC_OK)
                add_lost(&sum, &one);
        }
    chunk_fini(&c);
    MOEC_TRY(st);
    sum.rms = sqrt(sum.rms / (double)sum.n);
    sum.rms_in = sqrt(sum.rms_in / (double)sum.n);
    *out = sum;
    return MOEC_OK;
}
