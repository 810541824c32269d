/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The slot tensors of a layer: one for w13 and one for w2 of every component
 * that its experts have, their shapes, and the slices that their rows come
 * from.
 *
 * Refused here: slices that cannot be turned or cut in half (T5), shared
 * experts that have not the routed ones' shape and format (P10).
 */

#include <string.h>

#include "plan_parts.h"

moec_slice_dims moec_slice_dims_of(const moec_slice *s)
{
    uint32_t bits = moec_dtype_bits((moec_dtype)s->dtype);
    moec_slice_dims m = {1, 1, bits >= 8 ? bits / 8 : 1};

    switch ((moec_geometry)s->geometry) {
    case MOEC_GEO_MATRIX:
        if (s->rank > 0)
            m.out = s->shape[s->in_out ? s->rank - 1 : 0];
        break;
    case MOEC_GEO_MATRIX_KEPT:
        if (s->rank > 0)
            m.out = s->shape[s->rank - 1];
        break;
    case MOEC_GEO_OUT_VECTOR:
        m.out = s->shape[0];
        break;
    case MOEC_GEO_SCALAR:
    case MOEC_GEO_RECORD:
        break;
    }
    if (m.out != 0)
        m.in = s->bytes / m.elem / m.out;
    return m;
}

uint64_t moec_slice_half(const moec_slice *s, const moec_slice_dims *m)
{
    if (s->geometry == MOEC_GEO_SCALAR || s->geometry == MOEC_GEO_RECORD)
        return m->out;
    return s->part == MOEC_PART_GATE_UP ? m->out / 2 : m->out;
}

static uint64_t half_of(const moec_slice *s)
{
    moec_slice_dims m = moec_slice_dims_of(s);

    return moec_slice_half(s, &m);
}

/* ------------------------------------------------------- slot tensors */

static const moec_slice *find_slice(const moec_layer_slices *l, moec_role role,
                                    moec_part part, const char *component)
{
    for (size_t i = 0; i < l->n_slices; i++) {
        const moec_slice *s = &l->slices[i];
        if (s->role == role && s->part == part &&
            strcmp(s->component, component) == 0)
            return s;
    }
    return NULL;
}

/* The two halves (or the one) of w13, or w2, for a role. Returns how many. */
static uint32_t find_halves(const moec_layer_slices *l, moec_role role,
                            const char *component, bool w2,
                            const moec_slice *out[2])
{
    const moec_slice *both;

    out[0] = out[1] = NULL;
    if (w2) {
        out[0] = find_slice(l, role, MOEC_PART_DOWN, component);
        return out[0] != NULL;
    }
    both = find_slice(l, role, MOEC_PART_GATE_UP, component);
    if (both != NULL) {
        out[0] = out[1] = both;
        return 2;
    }
    out[0] = find_slice(l, role, MOEC_PART_GATE, component);
    out[1] = find_slice(l, role, MOEC_PART_UP, component);
    if (out[0] != NULL && out[1] != NULL)
        return 2;
    if (out[0] == NULL) {
        out[0] = out[1];
        out[1] = NULL;
    }
    return out[0] != NULL;
}

/* Shape of one slot: the slice with its halves joined on the out axis. */
static void slot_shape(moec_slot_spec *sp, uint32_t rows)
{
    const moec_slice *s = sp->routed[0];
    moec_slot_tensor *t = &sp->pub;
    bool w13 = !t->is_w2;
    uint32_t n = 0;

    t->shape[n++] = rows;
    switch ((moec_geometry)s->geometry) {
    case MOEC_GEO_MATRIX:
        t->shape[n++] = half_of(s) * sp->n_halves;
        for (uint32_t i = 0; i + 1 < s->rank; i++)
            t->shape[n++] = s->shape[s->in_out ? i : i + 1];
        break;
    case MOEC_GEO_MATRIX_KEPT:
        for (uint32_t i = 0; i + 1 < s->rank; i++)
            t->shape[n++] = s->shape[i];
        t->shape[n++] = half_of(s) * sp->n_halves;
        break;
    case MOEC_GEO_OUT_VECTOR:
        t->shape[n++] = half_of(s) * sp->n_halves;
        break;
    case MOEC_GEO_SCALAR:
        if (w13)
            t->shape[n++] = sp->n_halves;
        break;
    case MOEC_GEO_RECORD:
        if (w13)
            t->shape[n++] = sp->n_halves;
        for (uint32_t i = 0; i < s->rank; i++)
            t->shape[n++] = s->shape[i];
        break;
    }
    t->rank = n;
}

static uint64_t slot_bytes(const moec_slot_spec *sp)
{
    const moec_slice *s = sp->routed[0];
    bool joined = s->part == MOEC_PART_GATE_UP &&
                  s->geometry != MOEC_GEO_SCALAR &&
                  s->geometry != MOEC_GEO_RECORD;

    return joined ? s->bytes : s->bytes * sp->n_halves;
}

uint8_t moec_slice_op(const moec_slice *s)
{
    if (s->in_out)
        return MOEC_OP_TRANSPOSE;
    return s->interleaved ? MOEC_OP_DEINTERLEAVE : MOEC_OP_COPY;
}

/* Does a slice of sub-byte elements need turning? Those we cannot move. */
static moec_status check_movable(const moec_moe_layer *l, const moec_slice *s,
                                 moec_error *err)
{
    uint32_t bits = moec_dtype_bits((moec_dtype)s->dtype);
    bool halves = s->part == MOEC_PART_GATE_UP && s->rank > 0;

    if (bits < 8 && (s->in_out || s->geometry == MOEC_GEO_MATRIX_KEPT))
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_T5,
                         "%s: component '%s' is %s stored [in, out]: elements "
                         "below a byte cannot be transposed",
                         l->experts_prefix, s->component,
                         moec_dtype_name((moec_dtype)s->dtype));
    if (s->geometry == MOEC_GEO_MATRIX && s->in_out && s->rank != 2)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_T5,
                         "%s: component '%s' is stored [in, out] with %u "
                         "dimensions an expert, expected 2",
                         l->experts_prefix, s->component, s->rank);
    if (halves && moec_slice_dims_of(s).out % 2 != 0 &&
        s->geometry != MOEC_GEO_SCALAR && s->geometry != MOEC_GEO_RECORD)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_T5,
                         "%s: component '%s' joins gate and up in an odd "
                         "number of rows",
                         l->experts_prefix, s->component);
    return MOEC_OK;
}

/* Where is the shared slice's share of part s cut, and can it be? */
static bool shared_fits(const moec_slot_spec *sp, uint32_t h, uint32_t m)
{
    const moec_slice *r = sp->routed[h], *s = sp->shared[h];
    moec_slice_dims rm = moec_slice_dims_of(r), sm = moec_slice_dims_of(s);

    if (s->dtype != r->dtype || s->geometry != r->geometry)
        return false;
    switch ((moec_geometry)s->geometry) {
    case MOEC_GEO_SCALAR:
        return true;
    case MOEC_GEO_RECORD:
        return m == 1 && s->bytes == r->bytes;
    case MOEC_GEO_OUT_VECTOR:
        if (sp->pub.is_w2)
            return m == 1 && sm.out == rm.out;
        return half_of(s) == m * half_of(r);
    case MOEC_GEO_MATRIX:
    case MOEC_GEO_MATRIX_KEPT:
        break;
    }
    if (!sp->pub.is_w2)
        return half_of(s) == m * half_of(r) && sm.in == rm.in;
    return sm.out == rm.out &&
           (sm.in == m * rm.in || (rm.in == 1 && sm.in == 1));
}

/* The weights of which a requantised slot is made. That they can be is asked
 * for all layers at once, at the end (requant.c). */
static moec_status find_lossy(moec_slot_spec *sp, const moec_layer_slices *l,
                              moec_error *err)
{
    uint32_t n =
        find_halves(l, MOEC_ROLE_SHARED, "weight", sp->pub.is_w2, sp->shared);

    if (n == sp->n_halves)
        return MOEC_OK;
    return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P10,
                     "%s: the shared expert has no plain weights to "
                     "requantise",
                     sp->pub.name);
}

static moec_status find_shared(moec_slot_spec *sp, const moec_layer_slices *l,
                               const char *component, uint32_t m,
                               moec_error *err)
{
    uint32_t n =
        find_halves(l, MOEC_ROLE_SHARED, component, sp->pub.is_w2, sp->shared);
    bool ok = n == sp->n_halves;

    for (uint32_t h = 0; ok && h < n; h++)
        ok = shared_fits(sp, h, m);
    if (ok)
        return MOEC_OK;
    return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P10,
                     "%s: '%s' of the shared expert does not have the routed "
                     "experts' shape and format in %u parts; use "
                     "--shared-slots none",
                     sp->pub.name, component, m);
}

/* The same for w13 and w2: a component's two tensors stay together. */
static uint64_t largest_slice(const moec_layer_slices *l, const char *component)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < l->n_slices; i++)
        if (l->slices[i].role == MOEC_ROLE_ROUTED &&
            strcmp(l->slices[i].component, component) == 0)
            bytes = moec_max_u64(bytes, l->slices[i].bytes);
    return bytes;
}

/* Rows of a table over all slots. */
static uint32_t table_rows(const moec_plan *p)
{
    uint32_t copies = p->topo.shared_global ? 1 : p->topo.n_ranks;

    return p->topo.n_physical + copies * p->shared_rows;
}

static moec_status make_spec(moec_plan *p, const moec_layer_slices *l,
                             const char *component, bool w2, moec_slot_spec *sp,
                             moec_error *err)
{
    moec_slot_tensor *t = &sp->pub;
    moec_buf name = {0};

    for (uint32_t h = 0; h < sp->n_halves; h++)
        MOEC_TRY(check_movable(&l->layer, sp->routed[h], err));
    moec_buf_printf(&name, "%s.%s_%s", l->layer.experts_prefix,
                    w2 ? "w2" : "w13", component);
    t->name =
        name.oom ? NULL : moec_arena_strdup(&p->arena, name.data, name.len);
    moec_buf_fini(&name);
    if (t->name == NULL)
        return moec_fail_nomem(err, "name of a slot tensor");
    t->dtype = (moec_dtype)sp->routed[0]->dtype;
    t->is_w2 = w2;
    sp->largest = largest_slice(l, component);
    t->op = moec_slice_op(sp->routed[0]);
    t->all_slots = sp->routed[0]->all_slots;
    slot_shape(sp,
               t->all_slots ? table_rows(p) : p->topo.n_local + p->shared_rows);
    t->slot_bytes = slot_bytes(sp);
    if (p->shared_rows > 0 && p->requantises)
        return find_lossy(sp, l, err);
    if (p->shared_rows > 0)
        return find_shared(sp, l, component, p->topo.n_shared_slots, err);
    return MOEC_OK;
}

/* Largest first, so that the weights lead; then by component, w13 before w2. */
static bool spec_before(const moec_slot_spec *a, const moec_slot_spec *b)
{
    const char *ca = a->routed[0]->component, *cb = b->routed[0]->component;
    int c = strcmp(ca, cb);

    if (c == 0)
        return a->pub.is_w2 < b->pub.is_w2;
    bool wa = strcmp(ca, "weight") == 0, wb = strcmp(cb, "weight") == 0;
    if (wa != wb)
        return wa;
    return a->largest != b->largest ? a->largest > b->largest : c < 0;
}

static bool spec_known(const moec_plan_layer *pl, const char *component,
                       bool w2)
{
    for (size_t i = 0; i < pl->n_specs; i++)
        if (pl->specs[i].pub.is_w2 == w2 &&
            strcmp(pl->specs[i].routed[0]->component, component) == 0)
            return true;
    return false;
}

static void sort_specs(moec_plan_layer *pl)
{
    for (size_t i = 1; i < pl->n_specs; i++) {
        moec_slot_spec s = pl->specs[i];
        size_t at = i;
        for (; at > 0 && spec_before(&s, &pl->specs[at - 1]); at--)
            pl->specs[at] = pl->specs[at - 1];
        pl->specs[at] = s;
    }
}

moec_status moec_plan_make_layer(moec_plan *p, moec_plan_layer *pl,
                                 moec_error *err)
{
    const moec_layer_slices *l = moec_model_slices(p->model, pl->model_layer);

    pl->specs = moec_calloc(l->n_slices + 1, sizeof(*pl->specs));
    if (pl->specs == NULL)
        return moec_fail_nomem(err, "slot tensors of a layer");
    for (size_t i = 0; i < l->n_slices; i++) {
        const moec_slice *s = &l->slices[i];
        bool w2 = s->part == MOEC_PART_DOWN;
        if (s->role != MOEC_ROLE_ROUTED || spec_known(pl, s->component, w2))
            continue;
        moec_slot_spec *sp = &pl->specs[pl->n_specs];
        sp->n_halves =
            find_halves(l, MOEC_ROLE_ROUTED, s->component, w2, sp->routed);
        MOEC_TRY(make_spec(p, l, s->component, w2, sp, err));
        pl->n_specs++;
    }
    sort_specs(pl);
    return MOEC_OK;
}
