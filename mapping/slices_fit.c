/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The slices of a layer against the config: each has the size of its
 * projection, or of scales or groups of it; a source of gate and up can be cut
 * in two; gate is like up; routers have the shape that the family states.
 */

#include "slices.h"

bool moec_dtype_is_unpacked(moec_dtype dtype)
{
    switch (dtype) {
    case MOEC_DTYPE_F8_E5M2:
    case MOEC_DTYPE_F8_E4M3:
    case MOEC_DTYPE_F8_E4M3FNUZ:
    case MOEC_DTYPE_F8_E5M2FNUZ:
    case MOEC_DTYPE_F16:
    case MOEC_DTYPE_BF16:
    case MOEC_DTYPE_F32:
    case MOEC_DTYPE_F64:
        return true;
    default:
        return false;
    }
}

/* Features out of and into a projection. */
typedef struct features {
    uint64_t out, in;
} features;

static features features_of(const moec_reading *r, const moec_slice *s)
{
    const moec_facts *f = &r->b->config->facts;
    bool shared = s->role == MOEC_ROLE_SHARED;
    uint64_t hidden = shared ? f->hidden : r->b->config->expert_hidden;
    uint64_t inter = f->inter;
    if (shared) /* stacked: each of its own width */
        inter = s->stacked ? f->shared_width / f->n_shared : f->shared_width;
    if (s->part == MOEC_PART_DOWN)
        return (features){hidden, inter};
    return (features){s->part == MOEC_PART_GATE_UP ? 2 * inter : inter, hidden};
}

/* Divides, or is 0 and does not. */
static bool divides(uint64_t part, uint64_t whole)
{
    return part != 0 && whole % part == 0;
}

static bool weight_fits(const moec_slice *s, features w)
{
    uint64_t out = s->shape[s->in_out ? s->rank - 1 : 0];
    uint64_t in = s->shape[s->in_out ? 0 : 1];
    if (out != w.out)
        return false;
    if (s->rank == 2 && moec_dtype_is_unpacked((moec_dtype)s->dtype))
        return in == w.in;
    return divides(in, w.in); /* packed: several elements in one */
}

/* Can `n` blocks of one length, the last one short, be of `whole` features?
 * The smallest length that makes no more of them must make as many. */
static bool is_blocks(uint64_t n, uint64_t whole)
{
    return n != 0 && n <= whole &&
           moec_ceil_div(whole, moec_ceil_div(whole, n)) == n;
}

static bool block_scale_fits(const moec_reading *r, const moec_slice *s,
                             features w)
{
    const moec_config *c = r->b->config;
    uint64_t out = s->shape[s->in_out ? s->rank - 1 : 0];
    uint64_t in = s->shape[s->in_out ? 0 : 1];
    if (s->by_block)
        return out == moec_ceil_div(w.out, c->block[0]) &&
               in == moec_ceil_div(w.in, c->block[1]);
    /* Groups of packed weights lie within rows; only the zero points of
     * several rows may share a word. */
    if (s->of_packed && out != w.out)
        return s->dtype == MOEC_DTYPE_I32 && divides(out, w.out) &&
               is_blocks(in, w.in);
    return is_blocks(out, w.out) && is_blocks(in, w.in);
}

static bool kept_fits(const moec_slice *s, features w)
{
    if (s->rank == 1) /* g_idx: a group for each input */
        return s->shape[0] == w.in;
    return divides(s->shape[0], w.in) && divides(s->shape[1], w.out);
}

static moec_status check_sizes(const moec_reading *r, const moec_slice *s)
{
    const moec_kind *k = moec_reading_kind(r, s->tensors[0]);
    features w = features_of(r, s);
    bool fits = true;
    switch ((moec_geometry)s->geometry) {
    case MOEC_GEO_MATRIX:
        fits = k == NULL || k->geometry == MOEC_GEO_SCALE
                   ? block_scale_fits(r, s, w)
                   : weight_fits(s, w);
        break;
    case MOEC_GEO_MATRIX_KEPT:
        fits = kept_fits(s, w);
        break;
    case MOEC_GEO_OUT_VECTOR:
        fits = s->shape[0] == w.out;
        break;
    case MOEC_GEO_SCALAR:
    case MOEC_GEO_RECORD:
        break;
    }
    if (fits)
        return MOEC_OK;
    return DISAGREE(
        r,
        "tensor '%s' is %s (%s an expert), which is no %s of a "
        "projection of %ju features from %ju as " CONFIG_NAME " has it",
        moec_reading_name(r, s->tensors[0]),
        moec_shape_say(moec_ckpt_tensor(r->b->ckpt, s->tensors[0])->rank,
                       moec_ckpt_tensor(r->b->ckpt, s->tensors[0])->shape)
            .s,
        moec_shape_say(s->rank, s->shape).s, s->component, (uintmax_t)w.out,
        (uintmax_t)w.in);
}

/* One source for gate and up can be cut in two only where no block is of
 * both. */
static moec_status check_halves(const moec_reading *r, const moec_slice *s)
{
    const moec_config *c = r->b->config;
    features w = features_of(r, s);
    if (s->part != MOEC_PART_GATE_UP || s->geometry == MOEC_GEO_RECORD ||
        s->geometry == MOEC_GEO_SCALAR) /* one number scales both halves */
        return MOEC_OK;
    uint64_t out = s->geometry == MOEC_GEO_MATRIX_KEPT || s->in_out
                       ? s->shape[s->rank - 1]
                       : s->shape[0];
    uint64_t half = out / 2, inter = w.out / 2;
    bool cut = out % 2 == 0 && (!s->interleaved || out == w.out);
    if (s->geometry == MOEC_GEO_MATRIX_KEPT) /* packed along its last axis */
        cut = cut && s->rank > 1 && !s->interleaved && divides(half, inter);
    else if (cut && s->by_block && out != w.out)
        cut = inter % c->block[0] == 0;
    else if (cut && s->geometry == MOEC_GEO_MATRIX && out != w.out)
        cut = moec_whole_blocks(half, inter);
    if (cut)
        return MOEC_OK;
    return moec_fail(r->err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                     "tensor '%s' is %s: gate and up share one of its "
                     "numbers, and cannot be told apart",
                     moec_reading_name(r, s->tensors[0]),
                     moec_shape_say(s->rank, s->shape).s);
}

/* Blocks whose length nobody states are a power of two of features: 192
 * features in 2 blocks are 128 + 64, not 96 + 96. */
bool moec_whole_blocks(uint64_t n, uint64_t whole)
{
    return divides(n, whole) && ((whole / n) & (whole / n - 1)) == 0;
}

/* ------------------------------------------------------ whole layer */

static moec_status check_gate_like_up(const moec_reading *r,
                                      const moec_slice *list, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const moec_slice *g = &list[i];
        if (g->part != MOEC_PART_GATE)
            continue;
        const moec_slice *u = moec_slices_find(list, n, (moec_role)g->role,
                                               MOEC_PART_UP, g->component);
        if (u == NULL ||
            moec_same_form(moec_ckpt_tensor(r->b->ckpt, g->tensors[0]),
                           moec_ckpt_tensor(r->b->ckpt, u->tensors[0])))
            continue;
        return moec_fail(r->err, MOEC_E_MIXED, MOEC_RULE_C12,
                         "tensor '%s' is %s %s, its gate '%s' is %s %s",
                         moec_reading_name(r, u->tensors[0]),
                         moec_dtype_name((moec_dtype)u->dtype),
                         moec_shape_say(u->rank, u->shape).s,
                         moec_reading_name(r, g->tensors[0]),
                         moec_dtype_name((moec_dtype)g->dtype),
                         moec_shape_say(g->rank, g->shape).s);
    }
    return MOEC_OK;
}

static uint64_t dim_value(const moec_reading *r, moec_dim d)
{
    const moec_facts *f = &r->b->config->facts;
    /* Columns without weights, and shared experts that the router weighs. */
    uint64_t router = f->n_experts + (uint64_t)r->b->config->zero_experts;
    if (f->shared_kind == MOEC_SHARED_ROUTER)
        router += f->n_shared;
    return d.symbol == 'E'   ? f->n_experts
           : d.symbol == 'H' ? f->hidden
           : d.symbol == 'I' ? f->inter
           : d.symbol == 'R' ? router
                             : d.number;
}

/* Routers and gates: in the shape stated. */
static moec_status check_router(const moec_reading *r)
{
    for (size_t i = r->layer->begin; i < r->layer->end; i++) {
        const moec_kind *k = moec_reading_kind(r, i);
        if (k == NULL || moec_kind_is_weights(k) || k->n_dims == 0)
            continue;
        const moec_tensor *t = moec_ckpt_tensor(r->b->ckpt, i);
        uint64_t want[MOEC_DIMS_MAX];
        for (size_t d = 0; d < k->n_dims; d++)
            want[d] = dim_value(r, k->dims[d]);
        if (t->rank != k->n_dims ||
            memcmp(want, t->shape, k->n_dims * sizeof(*want)) != 0)
            return DISAGREE(
                r, "tensor '%s' is %s, must be %s as " CONFIG_NAME " has it",
                t->name, moec_shape_say(t->rank, t->shape).s,
                moec_shape_say(k->n_dims, want).s);
    }
    return MOEC_OK;
}

moec_status moec_slice_fits(const moec_reading *r, const moec_slice *s)
{
    MOEC_TRY(check_sizes(r, s));
    return check_halves(r, s);
}

moec_status moec_slices_fit(const moec_reading *r, const moec_slice *list,
                            size_t n)
{
    MOEC_TRY(check_gate_like_up(r, list, n));
    return check_router(r);
}
