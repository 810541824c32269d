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
 * Refused (P10): routed formats without a quantiser (NVFP4, AWQ, GPTQ, zero
 * points), other tensors beside numbers, scales and weight_shape, shared
 * experts that are not float or FP8 [out, in].
 */

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/base.h"
#include "model.h"
#include "requant.h"
#include "slot_axes.h"

/* Values of a chunk, where the rows of one scale are not more. */
#define CHUNK_VALUES     (UINT64_C(1) << 18)
#define CHUNK_VALUES_MAX (UINT64_C(8) << 20)

/* One projection of the shared expert, as it is stored. */
typedef struct source {
    uint32_t weight, scale; /* tensors; scale UINT32_MAX: none */
    uint64_t first_row;     /* of the projection within the tensor */
    uint64_t out, in;       /* of the projection, whole */
    uint64_t row_bytes, scale_cols;
    uint64_t tensor_rows;
    moec_wformat format;
    moec_dtype scale_dtype;
    uint64_t block_out, block_in;
} source;

/* w13 or w2 of a layer. */
typedef struct target {
    moec_matrix like; /* one whole slot */
    size_t data, scale;
    uint32_t n_halves;
    uint64_t half_out;
    uint64_t data_row, scale_row; /* bytes */
} target;

typedef struct layer {
    target to[2];      /* w13, w2 */
    source from[3];    /* by projection */
    bool has_up, both; /* both: gate and up in one source */
} layer;

struct moec_requant {
    const moec_plan *plan;
    moec_kernels *k;
    uint32_t n_experts, n_parts;
    size_t n_layers;
    layer *layers;
};

static const moec_layer_slices *slices_of(const moec_plan *plan, size_t i)
{
    return moec_model_slices(moec_plan_model(plan),
                             moec_plan_model_layer(plan, i));
}

static moec_status refuse(const moec_layer_slices *l, const char *what,
                          moec_error *err)
{
    return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P10,
                     "%s: the shared expert cannot be requantised: %s",
                     l->layer.experts_prefix, what);
}

/* ----------------------------------------------------- the routed format */

static const char *component_of(const moec_layer_slices *l,
                                const moec_slot_tensor *t)
{
    return t->name + strlen(l->layer.experts_prefix) +
           strlen(t->is_w2 ? ".w2_" : ".w13_");
}

/* Components that are made besides numbers and scales: [out, in] of the
 * projection. */
static bool is_shape(const moec_layer_slices *l, const moec_slot_tensor *t)
{
    return strcmp(component_of(l, t), "weight_shape") == 0 &&
           (t->dtype == MOEC_DTYPE_I32 || t->dtype == MOEC_DTYPE_I64) &&
           t->shape[t->rank - 1] == 2;
}

static bool has_quantiser(const moec_matrix *m)
{
    return m->format == MOEC_WFORMAT_FP8 || m->format == MOEC_WFORMAT_INT4 ||
           m->format == MOEC_WFORMAT_MXFP4;
}

static moec_status check_components(const moec_plan *plan, size_t i, bool w2,
                                    moec_error *err)
{
    static const char *const known[] = {
        "weight",       "weight_packed", "blocks", "weight_scale_inv",
        "weight_scale", "scale",         "scales"};
    const moec_layer_slices *l = slices_of(plan, i);

    for (size_t t = 0; t < moec_plan_n_slot_tensors(plan, i); t++) {
        const moec_slot_tensor *s = moec_plan_slot_tensor(plan, i, t);
        bool ok = (s->is_w2 != 0) != w2 || is_shape(l, s);

        for (size_t k = 0; !ok && k < sizeof(known) / sizeof(*known); k++)
            ok = strcmp(component_of(l, s), known[k]) == 0;
        if (!ok)
            return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P10,
                             "the shared expert cannot be requantised: '%s' "
                             "is neither numbers nor their scales",
                             s->name);
    }
    return MOEC_OK;
}

/* moec_slot_matrix says which slot tensors it takes for numbers and scales by
 * the addresses that it was given for them. */
static moec_status find_target(const moec_plan *plan, size_t i, bool w2,
                               target *to, moec_error *err)
{
    const moec_layer_slices *l = slices_of(plan, i);
    size_t n = moec_plan_n_slot_tensors(plan, i);
    char *marks = moec_calloc(n + 1, 1);
    const void **data = moec_calloc(n + 1, sizeof(*data));
    moec_status st;

    for (size_t t = 0; marks != NULL && data != NULL && t < n; t++)
        data[t] = marks + t;
    st = marks && data ? check_components(plan, i, w2, err)
                       : moec_fail_nomem(err, "slot tensors");
    if (st == MOEC_OK)
        st = moec_slot_matrix(plan, i, w2, data, &to->like, err);
    if (st == MOEC_E_UNSUPPORTED && err != NULL)
        err->rule = MOEC_RULE_P10;
    if (st == MOEC_OK && !has_quantiser(&to->like))
        st = refuse(l, "there is no quantiser for the routed format", err);
    if (st == MOEC_OK) {
        to->data = (size_t)((const char *)to->like.data - marks);
        to->scale = (size_t)((const char *)to->like.scale - marks);
    }
    moec_free(marks);
    moec_free(data);
    return st;
}

static moec_status measure_target(const moec_plan *plan, size_t i, target *to,
                                  moec_error *err)
{
    const moec_slot_tensor *data = moec_plan_slot_tensor(plan, i, to->data);
    const moec_slot_tensor *scale = moec_plan_slot_tensor(plan, i, to->scale);
    moec_matrix *m = &to->like;

    to->half_out = m->part_rows ? m->part_rows : m->n_out;
    to->n_halves = (uint32_t)(m->n_out / to->half_out);
    to->data_row = data->slot_bytes / m->n_out;
    to->scale_row = scale->slot_bytes /
                    (to->n_halves * moec_ceil_div(to->half_out, m->block_out));
    if ((uint64_t)m->block_out * m->n_in > CHUNK_VALUES_MAX)
        return refuse(slices_of(plan, i), "one scale covers too many values",
                      err);
    m->data = m->scale = NULL;
    return MOEC_OK;
}

/* ------------------------------------------------------ the shared expert */

static const moec_slice *find_slice(const moec_layer_slices *l, uint8_t part,
                                    const char *const *names)
{
    for (size_t i = 0; i < l->n_slices; i++)
        for (size_t k = 0; names[k] != NULL; k++)
            if (l->slices[i].role == MOEC_ROLE_SHARED &&
                l->slices[i].part == part &&
                strcmp(l->slices[i].component, names[k]) == 0)
                return &l->slices[i];
    return NULL;
}

static bool take_format(source *s, moec_dtype dtype)
{
    switch (dtype) {
    case MOEC_DTYPE_F32:
        s->format = MOEC_WFORMAT_F32;
        return true;
    case MOEC_DTYPE_BF16:
        s->format = MOEC_WFORMAT_BF16;
        return true;
    case MOEC_DTYPE_F16:
        s->format = MOEC_WFORMAT_F16;
        return true;
    case MOEC_DTYPE_F8_E4M3:
        s->format = MOEC_WFORMAT_FP8;
        return true;
    default:
        return false;
    }
}

static bool is_scale(moec_dtype d)
{
    return d == MOEC_DTYPE_F32 || d == MOEC_DTYPE_BF16 || d == MOEC_DTYPE_F16 ||
           d == MOEC_DTYPE_F8_E8M0 || d == MOEC_DTYPE_U8;
}

static moec_status take_scale(const moec_layer_slices *l, source *s,
                              const moec_slice *scale, moec_error *err)
{
    uint64_t rows = 1, cols = 1;

    if (scale == NULL || !is_scale((moec_dtype)scale->dtype) || scale->in_out)
        return refuse(l, "its FP8 has no scales that kernels know", err);
    if (scale->geometry == MOEC_GEO_MATRIX && scale->rank == 2) {
        rows = scale->shape[0];
        cols = scale->shape[1];
    } else if (scale->geometry != MOEC_GEO_SCALAR) {
        return refuse(l, "its FP8 has no scales that kernels know", err);
    }
    s->block_out = moec_scale_block(rows, s->tensor_rows);
    s->block_in = moec_scale_block(cols, s->in);
    if (scale->by_block) {
        s->block_out = scale->block[0];
        s->block_in = scale->block[1];
    }
    if (s->block_out == 0 || s->block_in == 0 ||
        moec_ceil_div(s->tensor_rows, s->block_out) != rows ||
        moec_ceil_div(s->in, s->block_in) != cols)
        return refuse(l, "the size of its blocks is not to be told", err);
    s->scale = scale->tensors[0];
    s->scale_dtype = (moec_dtype)scale->dtype;
    s->scale_cols = cols;
    return MOEC_OK;
}

static moec_status find_source(const moec_layer_slices *l, uint8_t part,
                               source *s, moec_error *err)
{
    static const char *const weights[] = {"weight", NULL};
    static const char *const scales[] = {"weight_scale_inv", "weight_scale",
                                         "scale", NULL};
    const moec_slice *w = find_slice(l, part, weights);

    if (w == NULL || w->geometry != MOEC_GEO_MATRIX || w->rank != 2 ||
        w->in_out || w->interleaved || w->stacked ||
        !take_format(s, (moec_dtype)w->dtype))
        return refuse(l, "it is not float or FP8 stored [out, in]", err);
    s->weight = w->tensors[0];
    s->scale = UINT32_MAX;
    s->tensor_rows = s->out = w->shape[0];
    s->in = w->shape[1];
    s->row_bytes = w->bytes / s->out;
    if (s->format == MOEC_WFORMAT_FP8)
        return take_scale(l, s, find_slice(l, part, scales), err);
    return MOEC_OK;
}

static moec_status find_sources(const moec_layer_slices *l, layer *q,
                                moec_error *err)
{
    static const char *const weights[] = {"weight", NULL};
    source *gate = &q->from[MOEC_PROJECTION_GATE];
    source *up = &q->from[MOEC_PROJECTION_UP];

    MOEC_TRY(
        find_source(l, MOEC_PART_DOWN, &q->from[MOEC_PROJECTION_DOWN], err));
    q->has_up = q->to[0].n_halves == 2;
    q->both = find_slice(l, MOEC_PART_GATE_UP, weights) != NULL;
    if (!q->both && q->has_up) {
        MOEC_TRY(find_source(l, MOEC_PART_GATE, gate, err));
        return find_source(l, MOEC_PART_UP, up, err);
    }
    if (!q->both) {
        bool alone = find_slice(l, MOEC_PART_GATE, weights) != NULL;
        return find_source(l, alone ? MOEC_PART_GATE : MOEC_PART_UP, gate, err);
    }
    MOEC_TRY(find_source(l, MOEC_PART_GATE_UP, gate, err));
    gate->out /= 2;
    *up = *gate;
    up->first_row = gate->out;
    return MOEC_OK;
}

/* Are parts of the shared expert what the slots hold? */
static moec_status check_fit(const moec_requant *q, const moec_layer_slices *l,
                             const layer *y, moec_error *err)
{
    const source *down = &y->from[MOEC_PROJECTION_DOWN];
    bool ok = down->out == y->to[1].like.n_out &&
              down->in == (uint64_t)q->n_parts * y->to[1].like.n_in;

    for (int p = 0; p <= (int)y->has_up; p++)
        ok = ok && y->from[p].out == q->n_parts * y->to[0].half_out &&
             y->from[p].in == y->to[0].like.n_in;
    return ok ? MOEC_OK : refuse(l, "its shapes are others", err);
}

static moec_status make_layer(moec_requant *q, size_t i, moec_error *err)
{
    const moec_layer_slices *l = slices_of(q->plan, i);
    layer *y = &q->layers[i];

    for (int w2 = 0; w2 < 2; w2++) {
        MOEC_TRY(find_target(q->plan, i, w2 != 0, &y->to[w2], err));
        MOEC_TRY(measure_target(q->plan, i, &y->to[w2], err));
    }
    MOEC_TRY(find_sources(l, y, err));
    return check_fit(q, l, y, err);
}

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
        st = make_layer(q, i, err);
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

/* Rows [row, row + n) of half `half` of part `part`. */
typedef struct chunk {
    const moec_requant *q;
    const target *to;
    const source *from;
    uint32_t part;
    uint64_t row, n;
    moec_read_fn read;
    void *ctx;
    bool w2;
    /* buffers for chunk_rows() rows */
    unsigned char *raw, *raw_scale, *data, *scale;
    float *wide, *values;
} chunk;

static uint64_t chunk_rows(const target *to)
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
static uint64_t rows_before(const source *s, uint64_t row)
{
    return s->format == MOEC_WFORMAT_FP8 && s->block_out < s->tensor_rows
               ? row % s->block_out
               : 0;
}

static uint64_t chunk_bytes(const target *to, const source *s)
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
    const source *s = c->from;
    const target *to = c->to;
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
    const source *s = c->from;
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
    const source *s = c->from;
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
static moec_projection projection_of(const moec_requant *q, const layer *y,
                                     bool w2, uint32_t half)
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
static void fill_shape(const target *to, const moec_slot_tensor *s,
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
    const layer *y = &q->layers[layer_index];
    const target *g = &y->to[s->is_w2 != 0];
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
    const layer *y = &q->layers[i];
    const target *g = &y->to[p == MOEC_PROJECTION_DOWN];
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
