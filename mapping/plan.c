/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The plan: which slot tensors a layer has, which moves fill one block of
 * them, what becomes of every source tensor. Decided here once, executed and
 * proved elsewhere. Nothing is stored per expert or per rank: a block's moves
 * are computed from the layer's slices when asked for, so a plan of 500,000
 * tensors is as small as one of 500.
 *
 * Refused here: ranks and slots that do not fit (P06, P07), explicit shared
 * slots where the shared expert cannot take any (P10), shapes that cannot be
 * joined or cut (T5).
 */

#include <string.h>

#include "base/base.h"
#include "model.h"
#include "placement.h"
#include "requant.h"
#include "slot_axes.h"

/* A slot tensor and where its rows come from. Halves of w13 are gate (0) and
 * up (1); both point to one slice where the source holds both. */
typedef struct slot_spec {
    moec_slot_tensor pub;
    const moec_slice *routed[2];
    const moec_slice *shared[2];
    uint32_t n_halves; /* 2: gated w13; 1: ungated w13, w2 */
    uint64_t largest;  /* bytes of the component's largest slice */
} slot_spec;

typedef struct plan_layer {
    size_t model_layer;
    size_t n_specs;
    slot_spec *specs;
} plan_layer;

struct moec_plan {
    const moec_model *model;
    moec_plan_opts opts;
    moec_placement *placement;
    moec_topology topo;
    uint32_t n_experts;
    uint32_t shared_rows;
    bool requantises;
    size_t n_layers;
    plan_layer *layers;
    uint8_t *fates; /* moec_fate by source tensor */
    size_t n_notes, cap_notes;
    moec_note *notes;
    moec_arena arena;
};

/* ---------------------------------------------------- shape of a slice */

/* A slice as a matrix: `out` features, each of `in` elements of `elem` bytes.
 * Sub-byte elements count as bytes: they are never turned. */
typedef struct matrix {
    uint64_t out, in;
    uint32_t elem;
} matrix;

static matrix matrix_of(const moec_slice *s)
{
    uint32_t bits = moec_dtype_bits((moec_dtype)s->dtype);
    matrix m = {1, 1, bits >= 8 ? bits / 8 : 1};

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

/* Outputs of one half: a source of gate and up holds both. */
static uint64_t half_out(const moec_slice *s)
{
    uint64_t out = matrix_of(s).out;

    if (s->geometry == MOEC_GEO_SCALAR || s->geometry == MOEC_GEO_RECORD)
        return out;
    return s->part == MOEC_PART_GATE_UP ? out / 2 : out;
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
static void slot_shape(slot_spec *sp, uint32_t rows)
{
    const moec_slice *s = sp->routed[0];
    moec_slot_tensor *t = &sp->pub;
    bool w13 = !t->is_w2;
    uint32_t n = 0;

    t->shape[n++] = rows;
    switch ((moec_geometry)s->geometry) {
    case MOEC_GEO_MATRIX:
        t->shape[n++] = half_out(s) * sp->n_halves;
        for (uint32_t i = 0; i + 1 < s->rank; i++)
            t->shape[n++] = s->shape[s->in_out ? i : i + 1];
        break;
    case MOEC_GEO_MATRIX_KEPT:
        for (uint32_t i = 0; i + 1 < s->rank; i++)
            t->shape[n++] = s->shape[i];
        t->shape[n++] = half_out(s) * sp->n_halves;
        break;
    case MOEC_GEO_OUT_VECTOR:
        t->shape[n++] = half_out(s) * sp->n_halves;
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

static uint64_t slot_bytes(const slot_spec *sp)
{
    const moec_slice *s = sp->routed[0];
    bool joined = s->part == MOEC_PART_GATE_UP &&
                  s->geometry != MOEC_GEO_SCALAR &&
                  s->geometry != MOEC_GEO_RECORD;

    return joined ? s->bytes : s->bytes * sp->n_halves;
}

static uint8_t op_of(const moec_slice *s)
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
    if (halves && matrix_of(s).out % 2 != 0 && s->geometry != MOEC_GEO_SCALAR &&
        s->geometry != MOEC_GEO_RECORD)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_T5,
                         "%s: component '%s' joins gate and up in an odd "
                         "number of rows",
                         l->experts_prefix, s->component);
    return MOEC_OK;
}

/* Where is the shared slice's share of part s cut, and can it be? */
static bool shared_fits(const slot_spec *sp, uint32_t h, uint32_t m)
{
    const moec_slice *r = sp->routed[h], *s = sp->shared[h];
    matrix rm = matrix_of(r), sm = matrix_of(s);

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
        return half_out(s) == m * half_out(r);
    case MOEC_GEO_MATRIX:
    case MOEC_GEO_MATRIX_KEPT:
        break;
    }
    if (!sp->pub.is_w2)
        return half_out(s) == m * half_out(r) && sm.in == rm.in;
    return sm.out == rm.out &&
           (sm.in == m * rm.in || (rm.in == 1 && sm.in == 1));
}

/* The weights of which a requantised slot is made. That they can be is asked
 * for all layers at once, at the end (requant.c). */
static moec_status find_lossy(slot_spec *sp, const moec_layer_slices *l,
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

static moec_status find_shared(slot_spec *sp, const moec_layer_slices *l,
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

/* The topology as files have it: without a row for shared experts that are in
 * a file of their own. */
static moec_topology stored_topology(const moec_plan *p)
{
    moec_topology topo = p->topo;

    topo.n_shared_slots = p->shared_rows;
    return topo;
}

/* Rows of a table over all slots. */
static uint32_t table_rows(const moec_plan *p)
{
    uint32_t copies = p->topo.shared_global ? 1 : p->topo.n_ranks;

    return p->topo.n_physical + copies * p->shared_rows;
}

static moec_status make_spec(moec_plan *p, const moec_layer_slices *l,
                             const char *component, bool w2, slot_spec *sp,
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
    t->op = op_of(sp->routed[0]);
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
static bool spec_before(const slot_spec *a, const slot_spec *b)
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

static bool spec_known(const plan_layer *pl, const char *component, bool w2)
{
    for (size_t i = 0; i < pl->n_specs; i++)
        if (pl->specs[i].pub.is_w2 == w2 &&
            strcmp(pl->specs[i].routed[0]->component, component) == 0)
            return true;
    return false;
}

static void sort_specs(plan_layer *pl)
{
    for (size_t i = 1; i < pl->n_specs; i++) {
        slot_spec s = pl->specs[i];
        size_t at = i;
        for (; at > 0 && spec_before(&s, &pl->specs[at - 1]); at--)
            pl->specs[at] = pl->specs[at - 1];
        pl->specs[at] = s;
    }
}

static moec_status plan_one_layer(moec_plan *p, plan_layer *pl, moec_error *err)
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
        slot_spec *sp = &pl->specs[pl->n_specs];
        sp->n_halves =
            find_halves(l, MOEC_ROLE_ROUTED, s->component, w2, sp->routed);
        MOEC_TRY(make_spec(p, l, s->component, w2, sp, err));
        pl->n_specs++;
    }
    sort_specs(pl);
    return MOEC_OK;
}

/* -------------------------------------------------------------- topology */

static moec_status add_note(moec_plan *p, moec_rule rule, const char *text,
                            moec_error *err)
{
    if (p->n_notes == p->cap_notes) {
        size_t cap = p->cap_notes ? 2 * p->cap_notes : 8;
        moec_note *n = moec_realloc_array(p->notes, cap, sizeof(*n));
        if (n == NULL)
            return moec_fail_nomem(err, "a note");
        p->notes = n;
        p->cap_notes = cap;
    }
    moec_note *n = &p->notes[p->n_notes++];
    n->rule = rule;
    snprintf(n->text, sizeof(n->text), "%s", text);
    return MOEC_OK;
}

/* The shared expert stands in slots and, as it was, in a common file. */
static moec_status choose_lossy(moec_plan *p, moec_error *err)
{
    const moec_facts *f = moec_model_facts(p->model);
    char text[MOEC_ERROR_TEXT_BYTES];

    if (p->opts.shared_store_common)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P10,
                         "--shared-store common keeps the shared expert as it "
                         "is, --requantize-shared does not: give one of them");
    p->requantises = true;
    p->topo.n_shared_slots = p->shared_rows = f->split_slots;
    p->topo.shared_global = p->opts.shared == MOEC_SHARED_SLOTS_GLOBAL;
    snprintf(text, sizeof(text),
             "the shared expert is requantised, which loses precision (%s); "
             "its own tensors stay common tensors",
             f->no_fuse_why ? f->no_fuse_why : "it is of another format");
    return add_note(p, MOEC_RULE_P10, text, err);
}

static moec_status choose_shared(moec_plan *p, moec_error *err)
{
    const moec_facts *f = moec_model_facts(p->model);
    moec_shared_mode mode = p->opts.shared;
    char text[MOEC_ERROR_TEXT_BYTES];

    if (f->shared_width == 0 || mode == MOEC_SHARED_SLOTS_OFF) {
        p->opts.requantise_shared = 0;
        p->opts.shared_store_common = 0;
        return MOEC_OK;
    }
    if (f->shared_slots == 0 && f->split_slots != 0 &&
        p->opts.requantise_shared)
        return choose_lossy(p, err);
    p->opts.requantise_shared = 0; /* there is no need */
    if (f->shared_slots == 0) {
        const char *why = f->no_fuse_why ? f->no_fuse_why : "unknown reason";
        if (mode != MOEC_SHARED_SLOTS_AUTO)
            return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P10,
                             "the shared expert cannot take slots: %s; use "
                             "--shared-slots none",
                             why);
        p->opts.shared_store_common = 0; /* common tensors stand once anyway */
        snprintf(text, sizeof(text),
                 "the shared expert stays a common tensor: %s", why);
        return add_note(p, MOEC_RULE_P10, text, err);
    }
    p->topo.n_shared_slots = f->shared_slots;
    p->topo.shared_global = mode == MOEC_SHARED_SLOTS_GLOBAL;
    p->shared_rows = p->opts.shared_store_common ? 0 : f->shared_slots;
    return MOEC_OK;
}

static moec_status copy_placement(moec_plan *p, moec_error *err)
{
    const moec_placement *from = p->opts.placement;
    uint32_t n = (uint32_t)moec_model_n_layers(p->model);
    moec_placement *own = NULL;

    if (from == NULL) {
        MOEC_TRY(moec_placement_trivial(&own, n, p->n_experts,
                                        p->opts.n_redundant, err));
        from = own;
    } else if (moec_placement_n_layers(from) != n ||
               moec_placement_n_experts(from) != p->n_experts) {
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P02,
                         "placement has %u MoE layers of %u experts, the model "
                         "%u of %u",
                         moec_placement_n_layers(from),
                         moec_placement_n_experts(from), n, p->n_experts);
    }
    /* without --allow-empty this is a plain copy */
    uint32_t multiple = p->opts.allow_empty ? p->opts.n_ranks : 1;
    moec_status st = moec_placement_padded(&p->placement, from, multiple, err);
    moec_placement_destroy(own);
    return st;
}

static moec_status note_same_rank(moec_plan *p, moec_error *err)
{
    uint32_t n = (uint32_t)moec_model_n_layers(p->model);
    char text[MOEC_ERROR_TEXT_BYTES];

    for (uint32_t i = 0; i < n; i++) {
        char layer[MOEC_LAYER_TEXT_BYTES];
        moec_same_rank r;

        MOEC_TRY(moec_placement_same_rank(p->placement, i, p->topo.n_ranks, &r,
                                          err));
        if (r.n_slots == 0)
            continue;
        snprintf(text, sizeof(text),
                 "%s: %u slots repeat an expert of their own rank; first: "
                 "rank %u holds expert %u in physical slots %u and %u",
                 moec_layer_text(moec_model_layer(p->model, i)->key, layer),
                 r.n_slots, r.rank, r.expert.v, r.first.v, r.second.v);
        MOEC_TRY(add_note(p, MOEC_RULE_P09, text, err));
    }
    return MOEC_OK;
}

static moec_status choose_topology(moec_plan *p, moec_error *err)
{
    uint32_t n = (uint32_t)moec_model_n_layers(p->model);

    if (p->opts.by_expert) {
        if (p->opts.placement != NULL || p->opts.n_redundant != 0)
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "an expert store has no placement: leave "
                             "--placement and --redundant out");
        p->opts.n_ranks = 1;
        p->opts.allow_empty = 0;
    }
    if (p->opts.n_ranks == 0)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P07,
                         "0 ranks: at least 1 is needed");
    MOEC_TRY(copy_placement(p, err));
    if (p->opts.placement != NULL && p->opts.n_redundant != 0 &&
        moec_placement_n_physical(p->opts.placement) - p->n_experts !=
            p->opts.n_redundant)
        return moec_fail(
            err, MOEC_E_MAPPING, MOEC_RULE_P08,
            "--redundant %u, but the placement has %u slots for "
            "%u experts: %u redundant; leave --redundant out",
            p->opts.n_redundant, moec_placement_n_physical(p->opts.placement),
            p->n_experts,
            moec_placement_n_physical(p->opts.placement) - p->n_experts);
    p->opts.n_redundant =
        moec_placement_n_physical(p->opts.placement ? p->opts.placement
                                                    : p->placement) -
        p->n_experts;
    moec_layer_key *keys = moec_calloc(n + 1u, sizeof(*keys));
    if (keys == NULL)
        return moec_fail_nomem(err, "layer keys");
    for (uint32_t i = 0; i < n; i++)
        keys[i] = moec_model_layer(p->model, i)->key;
    moec_status st =
        moec_placement_fits(p->placement, p->opts.n_ranks, keys, n, err);
    moec_free(keys);
    MOEC_TRY(st);
    p->topo.n_physical = moec_placement_n_physical(p->placement);
    p->topo.n_ranks = p->opts.n_ranks;
    p->topo.n_local = p->topo.n_physical / p->topo.n_ranks;
    return p->opts.by_expert ? MOEC_OK : note_same_rank(p, err);
}

/* ----------------------------------------------------------------- fates */

static moec_fate fate_of(const moec_plan *p, size_t i)
{
    moec_tensor_use u = moec_model_use(p->model, i);

    if (p->opts.no_mtp && u.is_mtp)
        return MOEC_FATE_SKIPPED;
    if (u.role == MOEC_ROLE_ROUTED)
        return MOEC_FATE_MOVED;
    if (u.role != MOEC_ROLE_SHARED || p->topo.n_shared_slots == 0 ||
        p->requantises)
        return MOEC_FATE_COMMON;
    return p->opts.shared_store_common ? MOEC_FATE_SHARED : MOEC_FATE_MOVED;
}

static moec_status choose_fates(moec_plan *p, moec_error *err)
{
    size_t n = moec_ckpt_n_tensors(moec_model_ckpt(p->model));
    size_t skipped = 0;
    char text[MOEC_ERROR_TEXT_BYTES];

    p->fates = moec_calloc(n + 1, 1);
    if (p->fates == NULL)
        return moec_fail_nomem(err, "fates of tensors");
    for (size_t i = 0; i < n; i++) {
        p->fates[i] = (uint8_t)fate_of(p, i);
        skipped += p->fates[i] == MOEC_FATE_SKIPPED;
    }
    if (skipped == 0)
        return MOEC_OK;
    snprintf(text, sizeof(text), "--no-mtp leaves %zu tensors out", skipped);
    return add_note(p, MOEC_RULE_M09, text, err);
}

static moec_status plan_layers(moec_plan *p, moec_error *err)
{
    size_t n = moec_model_n_layers(p->model);

    p->layers = moec_calloc(n + 1, sizeof(*p->layers));
    if (p->layers == NULL)
        return moec_fail_nomem(err, "layers of a plan");
    for (size_t i = 0; i < n; i++) {
        const moec_moe_layer *l = moec_model_layer(p->model, i);
        if (p->opts.no_mtp && l->key.space == MOEC_SPACE_MTP)
            continue;
        plan_layer *pl = &p->layers[p->n_layers++];
        pl->model_layer = i;
        MOEC_TRY(plan_one_layer(p, pl, err));
    }
    return MOEC_OK;
}

static moec_status decide(moec_plan *p, moec_error *err)
{
    if (moec_model_n_layers(p->model) > UINT32_MAX / 2)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE, "too many layers");
    MOEC_TRY(choose_topology(p, err));
    MOEC_TRY(choose_shared(p, err));
    MOEC_TRY(plan_layers(p, err));
    MOEC_TRY(choose_fates(p, err));
    moec_requant *q = NULL;
    moec_status st = moec_requant_create(&q, p, err);
    moec_requant_destroy(q);
    return st;
}

moec_status moec_plan_create(moec_plan **out, const moec_model *model,
                             const moec_plan_opts *opts, moec_error *err)
{
    moec_plan *p;

    MOEC_TRY(moec_check_struct("moec_plan_opts", opts->struct_bytes,
                               sizeof(*opts), err));
    p = moec_calloc(1, sizeof(*p));
    if (p == NULL)
        return moec_fail_nomem(err, "a plan");
    p->model = model;
    p->opts = *opts;
    p->n_experts = moec_model_facts(model)->n_experts;
    moec_status st = decide(p, err);
    p->opts.placement = NULL; /* the caller's may go */
    if (st != MOEC_OK) {
        moec_plan_destroy(p);
        return st;
    }
    *out = p;
    return MOEC_OK;
}

void moec_plan_destroy(moec_plan *p)
{
    if (p == NULL)
        return;
    for (size_t i = 0; p->layers != NULL && i < p->n_layers; i++)
        moec_free(p->layers[i].specs);
    moec_free(p->layers);
    moec_free(p->fates);
    moec_free(p->notes);
    moec_placement_destroy(p->placement);
    moec_arena_fini(&p->arena);
    moec_free(p);
}

/* ------------------------------------------------------------- accessors */

const moec_model *moec_plan_model(const moec_plan *p)
{
    return p->model;
}

const moec_plan_opts *moec_plan_options(const moec_plan *p)
{
    return &p->opts;
}

const moec_placement *moec_plan_placement(const moec_plan *p)
{
    return p->placement;
}

moec_topology moec_plan_topology(const moec_plan *p)
{
    return p->topo;
}

uint32_t moec_plan_shared_rows(const moec_plan *p)
{
    return p->shared_rows;
}

int moec_plan_requantises(const moec_plan *p)
{
    return p->requantises;
}

size_t moec_plan_n_notes(const moec_plan *p)
{
    return p->n_notes;
}

const moec_note *moec_plan_note(const moec_plan *p, size_t i)
{
    return &p->notes[i];
}

size_t moec_plan_n_layers(const moec_plan *p)
{
    return p->n_layers;
}

size_t moec_plan_model_layer(const moec_plan *p, size_t i)
{
    return p->layers[i].model_layer;
}

size_t moec_plan_n_slot_tensors(const moec_plan *p, size_t layer)
{
    return p->layers[layer].n_specs;
}

const moec_slot_tensor *moec_plan_slot_tensor(const moec_plan *p, size_t layer,
                                              size_t t)
{
    return &p->layers[layer].specs[t].pub;
}

moec_fate moec_plan_fate(const moec_plan *p, size_t tensor)
{
    return (moec_fate)p->fates[tensor];
}

uint32_t moec_plan_unit(const moec_plan *p, size_t layer, uint32_t rank,
                        moec_local_row row)
{
    const int32_t *p2l;

    if (row.v >= p->topo.n_local)
        return p->n_experts + (row.v - p->topo.n_local);
    p2l = moec_placement_row(p->placement,
                             (uint32_t)p->layers[layer].model_layer);
    int32_t e = p2l[moec_local_physical(p->topo, rank, row).v];
    return e < 0 ? MOEC_UNIT_EMPTY : (uint32_t)e;
}

uint32_t moec_plan_row(const moec_plan *p, size_t layer, size_t t,
                       uint32_t rank, moec_local_row row)
{
    moec_topology topo = stored_topology(p);

    if (!p->layers[layer].specs[t].pub.all_slots)
        return row.v;
    if (row.v >= topo.n_local)
        return moec_shared_slot(topo, rank, row.v - topo.n_local).v;
    return moec_physical_slot(topo, moec_local_physical(topo, rank, row)).v;
}

uint32_t moec_plan_row_unit(const moec_plan *p, size_t layer, size_t t,
                            uint32_t rank, uint32_t row)
{
    uint32_t own = p->topo.n_local + p->shared_rows;
    moec_local_row local = {row};

    if (!p->layers[layer].specs[t].pub.all_slots)
        return moec_plan_unit(p, layer, rank, local);
    if (!p->topo.shared_global) {
        rank = row / own;
        local.v = row % own;
    } else if (row < p->topo.n_physical) {
        rank = row / p->topo.n_local;
        local.v = row % p->topo.n_local;
    } else {
        rank = 0; /* shared slots have one number on all ranks */
        local.v = p->topo.n_local + (row - p->topo.n_physical);
    }
    return moec_plan_unit(p, layer, rank, local);
}

/* ----------------------------------------------------------------- moves */

/* Part `part` of `n_parts` of half `h` of slice `s`, taken from `base` bytes
 * into its tensor; `to` is the half's place in the slot. */
typedef struct cut {
    const moec_slice *s;
    uint64_t base;
    uint32_t h, n_halves; /* halves in the slot */
    uint32_t to;
    uint32_t part, n_parts;
    bool w2;
} cut;

/* [out, in]: rows of the source are rows of the slot. Parts of gate and up
 * are row ranges, parts of down column ranges; a column that is alone (a
 * scale per row) is repeated in each part. */
static moec_move cut_matrix(const cut *k)
{
    matrix m = matrix_of(k->s);
    uint64_t out = half_out(k->s), in = m.in, es = m.elem;
    uint64_t out_begin = 0, in_begin = 0, step = k->s->interleaved ? 2 : 1;

    if (!k->w2) {
        out /= k->n_parts;
        out_begin = k->part * out;
    } else if (in >= k->n_parts) {
        in /= k->n_parts;
        in_begin = k->part * in;
    }
    if (k->s->part == MOEC_PART_GATE_UP)
        out_begin = k->s->interleaved ? 2 * out_begin + k->h
                                      : out_begin + k->h * half_out(k->s);
    moec_move v = {.op = op_of(k->s),
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
    matrix m = matrix_of(k->s);
    uint64_t out = half_out(k->s), in = m.in, es = m.elem;
    uint64_t out_begin = 0, in_begin = 0;

    if (!k->w2) {
        out /= k->n_parts;
        out_begin = k->part * out;
    } else if (in >= k->n_parts) {
        in /= k->n_parts;
        in_begin = k->part * in;
    }
    if (k->s->part == MOEC_PART_GATE_UP)
        out_begin += k->h * half_out(k->s);
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
    uint64_t es = matrix_of(k->s).elem;
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
static void cut_axis(const slot_spec *sp, moec_slot_axes *a)
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
    const slot_spec *sp = &p->layers[layer].specs[t];
    const moec_slice *s = sp->routed[0];
    bool kept = s->geometry == MOEC_GEO_MATRIX_KEPT;
    bool whole =
        s->geometry == MOEC_GEO_SCALAR || s->geometry == MOEC_GEO_RECORD;
    matrix m = matrix_of(s);
    moec_slot_axes a = {.elem = m.elem,
                        .n_halves = sp->n_halves,
                        .half_in_columns = kept && sp->n_halves == 2};

    a.n_rows = whole ? 1 : kept ? m.in : half_out(s);
    a.n_cols = whole ? s->bytes / m.elem : kept ? half_out(s) : m.in;
    cut_axis(sp, &a);
    return a;
}

/* One move for each half: where it stands, and the weights it is made of. */
static size_t lossy_moves(const slot_spec *sp, bool swap, moec_move *out)
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
    const slot_spec *sp = &p->layers[layer].specs[t];
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
        if (!shared && s->stacked)
            k.base = unit * s->bytes;
        out[n] = cut_move(&k);
        out[n].tensor = s->tensors[shared || s->stacked ? 0 : unit];
        if (n == 0 || !join_moves(&out[n - 1], &out[n]))
            n++;
    }
    return n;
}
