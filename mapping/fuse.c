/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Can the shared expert take slots beside the routed ones, and how many?
 *
 * A shared MLP of width m * I is the sum of m MLPs of width I, cut by rows of
 * gate and up and by columns of down, because the activation is element-wise.
 * It may stand in slots where each part then has exactly the routed experts'
 * shapes, dtypes and scale format. Scales must be cut where their blocks
 * begin: half a block has no scale. And the routed experts' activation must be
 * its own. Anything else is no mistake of the
 * checkpoint: the shared expert stays a common tensor, and the reason is kept.
 */

#include "build.h"

#include <string.h>

/* One projection of an expert in canonical order, wherever it is stored. */
typedef struct form {
    uint8_t geometry, dtype;
    uint32_t rank;
    uint64_t out, in, rest; /* rest: what an [out, in] place holds */
} form;

static uint64_t half(const moec_slice *s, uint64_t out)
{
    return s->part == MOEC_PART_GATE_UP ? out / 2 : out;
}

static form form_of(const moec_slice *s)
{
    form f = {s->geometry, s->dtype, s->rank, 1, 1, 1};
    switch ((moec_geometry)s->geometry) {
    case MOEC_GEO_MATRIX:
        f.out = half(s, s->shape[s->in_out ? s->rank - 1 : 0]);
        f.in = s->shape[s->in_out ? 0 : 1];
        for (uint32_t i = 2; i < s->rank; i++)
            f.rest *= s->shape[i];
        break;
    case MOEC_GEO_MATRIX_KEPT:
        f.out = half(s, s->shape[s->rank - 1]);
        f.in = s->rank > 1 ? s->shape[0] : 1;
        break;
    case MOEC_GEO_OUT_VECTOR:
        f.out = half(s, s->shape[0]);
        break;
    case MOEC_GEO_SCALAR:
        break;
    case MOEC_GEO_RECORD:
        f.rest = s->bytes;
        break;
    }
    return f;
}

/* The slice that holds `part` (gate, up or down) of a component. */
static const moec_slice *holder(const moec_layer_slices *l, moec_role role,
                                uint32_t part, const char *component)
{
    for (size_t i = 0; i < l->n_slices; i++) {
        const moec_slice *s = &l->slices[i];
        bool both = s->part == MOEC_PART_GATE_UP && part != MOEC_PART_DOWN;
        if (s->role == role && (s->part == part || both) &&
            s->component == component)
            return s;
    }
    return NULL;
}

/* `dim` entries go along the I features of one expert: does each part of a
 * shared expert begin at a border of them? */
static bool cut_at_border(const moec_config *c, const moec_slice *s,
                          uint64_t dim)
{
    uint64_t inter = c->facts.inter;
    uint32_t axis = s->part == MOEC_PART_DOWN ? 1 : 0;
    if (s->by_block)
        return inter % c->block[axis] == 0;
    return moec_whole_blocks(dim, inter);
}

/* The same for a matrix: cut by rows, or down by columns. */
static const char *why_matrix_apart(const moec_config *c, const moec_slice *s,
                                    form routed, form shared, uint64_t m)
{
    bool down = s->part == MOEC_PART_DOWN;
    bool once = down && routed.in == 1 && shared.in == 1; /* scale of a row */
    uint64_t out = down ? routed.out : m * routed.out;
    uint64_t in = down && !once ? m * routed.in : routed.in;
    if (m > 1 && !once && !cut_at_border(c, s, down ? routed.in : routed.out))
        return "is not cut at borders of its blocks";
    if (shared.out != out || shared.in != in)
        return m > 1 ? "does not cut into parts of the routed shape"
                     : "is of another shape";
    return NULL;
}

/* Why the shared slice is not m routed ones, or NULL. */
static const char *why_apart(const moec_config *c, const moec_slice *routed,
                             const moec_slice *shared, uint64_t m)
{
    static const char other_shape[] = "is of another shape";
    form r = form_of(routed), s = form_of(shared);
    bool down = shared->part == MOEC_PART_DOWN;
    if (r.dtype != s.dtype)
        return "is of another dtype";
    if (r.geometry != s.geometry || r.rank != s.rank || r.rest != s.rest)
        return other_shape;
    switch ((moec_geometry)s.geometry) {
    case MOEC_GEO_SCALAR:
        break;
    case MOEC_GEO_RECORD:
        return m == 1 ? NULL
                      : "is about the whole projection and cannot be cut";
    case MOEC_GEO_MATRIX_KEPT:
        if (m != 1 && routed->rank == 1)
            return "numbers groups of the whole projection and cannot be cut";
        return why_matrix_apart(c, shared, r, s, m);
    case MOEC_GEO_OUT_VECTOR:
        if (down && m != 1)
            return "would be added once for each part";
        return s.out == (down ? r.out : m * r.out) ? NULL : other_shape;
    case MOEC_GEO_MATRIX:
        return why_matrix_apart(c, shared, r, s, m);
    }
    return NULL;
}

/* Compare part `part` of slice `s` with that of the other role. */
static void compare_part(const moec_config *c, const moec_layer_slices *l,
                         const moec_slice *s, uint32_t part, uint64_t m,
                         moec_buf *why)
{
    bool is_shared = s->role == MOEC_ROLE_SHARED;
    const moec_slice *other = holder(
        l, is_shared ? MOEC_ROLE_ROUTED : MOEC_ROLE_SHARED, part, s->component);
    moec_layer_text layer = moec_layer_say(l->layer.key);
    if (other == NULL) {
        moec_buf_printf(why, "%s: the %s experts have '%s', the %s have none",
                        layer.s, is_shared ? "shared" : "routed", s->component,
                        is_shared ? "routed" : "shared");
        return;
    }
    const char *what =
        why_apart(c, is_shared ? other : s, is_shared ? s : other, m);
    if (what != NULL)
        moec_buf_printf(why, "%s: '%s' of the shared expert %s", layer.s,
                        s->component, what);
}

/* Compare one layer. Puts a sentence into `why` where it does not fuse. */
static void compare_layer(const moec_config *c, const moec_layer_slices *l,
                          uint64_t m, moec_buf *why)
{
    for (size_t i = 0; i < l->n_slices; i++) {
        const moec_slice *s = &l->slices[i];
        for (uint32_t p = MOEC_PART_GATE; p <= MOEC_PART_DOWN; p++) {
            if (holder(l, (moec_role)s->role, p, s->component) == s)
                compare_part(c, l, s, p, m, why);
            if (why->len != 0)
                return;
        }
    }
}

static void compare_sizes(const moec_build *b, moec_buf *why)
{
    const moec_facts *f = &b->config->facts;
    if (!b->family->fuse)
        moec_buf_puts(why, b->family->why_not);
    else if (b->config->expert_hidden != f->hidden)
        moec_buf_printf(why,
                        "routed experts work on %ju features, the shared "
                        "expert on %ju",
                        (uintmax_t)b->config->expert_hidden,
                        (uintmax_t)f->hidden);
    else if (f->shared_width % f->inter != 0)
        moec_buf_printf(why,
                        "the shared expert's width %ju is no multiple of the "
                        "routed experts' %ju",
                        (uintmax_t)f->shared_width, (uintmax_t)f->inter);
    else if (f->shared_width / f->inter > INT32_MAX)
        moec_buf_puts(why, "the shared expert is too wide");
}

/* One slot is run by one activation: shared parts with a clamp of their own
 * would be run by the routed experts'. */
static moec_status compare_clamps(const moec_build *b,
                                  const moec_layer_slices *layers, size_t n,
                                  moec_buf *why, moec_error *err)
{
    double routed, shared;
    for (size_t i = 0; i < n && why->len == 0; i++) {
        moec_layer_key key = layers[i].layer.key;
        MOEC_TRY(moec_read_limits(b->config, key, &routed, &shared, err));
        if (routed < shared || routed > shared)
            moec_buf_printf(why,
                            "%s: the activation's limit is %g in the shared "
                            "expert and %g in the routed ones (0: none)",
                            moec_layer_say(key).s, shared, routed);
    }
    return MOEC_OK;
}

/* Shared slices stand last. */
static bool is_stacked_shared(const moec_layer_slices *l)
{
    const moec_slice *last = &l->slices[l->n_slices - 1];
    return last->stacked && last->role == MOEC_ROLE_SHARED;
}

moec_status moec_decide_fusion(const moec_build *b,
                               const moec_layer_slices *layers, size_t n,
                               moec_facts *facts, moec_error *err)
{
    moec_buf why = {0};
    if (facts->shared_width == 0)
        return MOEC_OK;
    compare_sizes(b, &why);
    moec_status st = compare_clamps(b, layers, n, &why, err);
    uint64_t m = facts->shared_width / facts->inter;
    if (why.len == 0)
        facts->split_slots = (uint32_t)m;
    for (size_t i = 0; i < n && why.len == 0; i++) {
        if (is_stacked_shared(&layers[i]))
            moec_buf_puts(&why, "the shared experts are stacked in one "
                                "tensor");
        else
            compare_layer(b->config, &layers[i], m, &why);
    }
    if (n > 0 && is_stacked_shared(&layers[0]))
        facts->split_slots = 0;
    if (st != MOEC_OK) {
        /* said */
    } else if (why.oom) {
        st = moec_fail_nomem(err, "facts of a model");
    } else if (why.len == 0) {
        facts->shared_slots = (uint32_t)m;
    } else {
        facts->no_fuse_why = moec_arena_strdup(b->arena, why.data, why.len);
        if (facts->no_fuse_why == NULL)
            st = moec_fail_nomem(err, "facts of a model");
    }
    moec_buf_fini(&why);
    return st;
}
