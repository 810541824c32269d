/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the slots of a layer ask for, and which tensors of its shared expert
 * give it.
 *
 * Refused (P10): routed formats without a quantiser (NVFP4, AWQ, GPTQ, zero
 * points), other tensors beside numbers, scales and weight_shape, shared
 * experts that are not float or FP8 [out, in].
 */

#include <string.h>

#include "requant_parts.h"
#include "slot_axes.h"

/* What one scale may cover: a chunk of rows is at least that. */
#define SCALE_VALUES_MAX (UINT64_C(8) << 20)

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
                               moec_requant_to *to, moec_error *err)
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

static moec_status measure_target(const moec_plan *plan, size_t i,
                                  moec_requant_to *to, moec_error *err)
{
    const moec_slot_tensor *data = moec_plan_slot_tensor(plan, i, to->data);
    const moec_slot_tensor *scale = moec_plan_slot_tensor(plan, i, to->scale);
    moec_matrix *m = &to->like;

    to->half_out = m->part_rows ? m->part_rows : m->n_out;
    to->n_halves = (uint32_t)(m->n_out / to->half_out);
    to->data_row = data->slot_bytes / m->n_out;
    to->scale_row = scale->slot_bytes /
                    (to->n_halves * moec_ceil_div(to->half_out, m->block_out));
    if ((uint64_t)m->block_out * m->n_in > SCALE_VALUES_MAX)
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

static bool take_format(moec_requant_from *s, moec_dtype dtype)
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

static moec_status take_scale(const moec_layer_slices *l, moec_requant_from *s,
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
                               moec_requant_from *s, moec_error *err)
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

static moec_status find_sources(const moec_layer_slices *l,
                                moec_requant_layer *q, moec_error *err)
{
    static const char *const weights[] = {"weight", NULL};
    moec_requant_from *gate = &q->from[MOEC_PROJECTION_GATE];
    moec_requant_from *up = &q->from[MOEC_PROJECTION_UP];

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
                             const moec_requant_layer *y, moec_error *err)
{
    const moec_requant_from *down = &y->from[MOEC_PROJECTION_DOWN];
    bool ok = down->out == y->to[1].like.n_out &&
              down->in == (uint64_t)q->n_parts * y->to[1].like.n_in;

    for (int p = 0; p <= (int)y->has_up; p++)
        ok = ok && y->from[p].out == q->n_parts * y->to[0].half_out &&
             y->from[p].in == y->to[0].like.n_in;
    return ok ? MOEC_OK : refuse(l, "its shapes are others", err);
}

moec_status moec_requant_find(moec_requant *q, size_t i, moec_error *err)
{
    const moec_layer_slices *l = slices_of(q->plan, i);
    moec_requant_layer *y = &q->layers[i];

    for (int w2 = 0; w2 < 2; w2++) {
        MOEC_TRY(find_target(q->plan, i, w2 != 0, &y->to[w2], err));
        MOEC_TRY(measure_target(q->plan, i, &y->to[w2], err));
    }
    MOEC_TRY(find_sources(l, y, err));
    return check_fit(q, l, y, err);
}
