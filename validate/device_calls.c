/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A call on a device from the host's arrays: copies there, the call, copies
 * back. Refuses what the device refuses.
 */
#include "device_calls.h"

#include "base/base.h"

enum { MAX_BLOCKS = 24 };

/* What a call holds on the device. The first failure stays in `st`. */
typedef struct blocks {
    moec_device *d;
    void *at[MAX_BLOCKS];
    size_t n;
    moec_status st;
    moec_error *err;
} blocks;

/* Room for `bytes`, filled from `from` unless that is NULL. */
static void *room(blocks *b, const void *from, uint64_t bytes)
{
    void *p = NULL;

    if (b->st != MOEC_OK)
        return NULL;
    if (b->n == MAX_BLOCKS)
        b->st = moec_fail(b->err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                          "a call of more than %d arrays", (int)MAX_BLOCKS);
    else
        b->st = moec_device_alloc(b->d, &p, bytes ? bytes : 1, b->err);
    if (b->st != MOEC_OK)
        return NULL;
    b->at[b->n++] = p;
    if (from && bytes)
        b->st = moec_device_upload(b->d, p, from, bytes, NULL, b->err);
    return p;
}

/* The copy of an array that may be missing. */
static const void *opt(blocks *b, const void *from, uint64_t bytes)
{
    return from ? room(b, from, bytes) : NULL;
}

static void back(blocks *b, void *to, const void *from, uint64_t bytes)
{
    if (b->st == MOEC_OK && to && bytes)
        b->st = moec_device_download(b->d, to, from, bytes, NULL, b->err);
}

static moec_status release(blocks *b)
{
    while (b->n > 0)
        moec_device_free(b->d, b->at[--b->n]);
    return b->st;
}

static moec_launch launch_of(blocks *b, uint64_t workspace)
{
    moec_launch l = MOEC_LAUNCH_INIT;

    l.workspace = room(b, NULL, workspace);
    l.workspace_bytes = workspace;
    return l;
}

static moec_route_in inputs(blocks *b, const moec_route_config *c,
                            const moec_route_in *in)
{
    uint64_t n = (uint64_t)c->n_experts + c->n_zero, rows = in->n_tokens;
    uint64_t stride =
        in->logits_stride ? in->logits_stride : n + c->n_shared_logits;
    uint64_t width = moec_dtype_bits(in->logits_dtype) / 8;
    moec_route_in on = *in;

    on.logits = opt(b, in->logits, rows * stride * width);
    on.bias = opt(b, in->bias, n * 4);
    on.expert_scale = opt(b, in->expert_scale, c->n_experts * UINT64_C(4));
    on.shared_gate = opt(b, in->shared_gate, rows * 4);
    on.hash_table = opt(b, in->hash_table, in->vocab * UINT64_C(4) * c->top_k);
    on.tokens = opt(b, in->tokens, rows * 4);
    on.forced_ids = opt(b, in->forced_ids, rows * 4 * c->top_k);
    return on;
}

moec_status moec_on_device_route(moec_device *d, const moec_router *r,
                                 const moec_route_in *in,
                                 const moec_route_out *out, moec_error *err)
{
    const moec_route_config *c = moec_router_config(r);
    uint64_t n = (uint64_t)in->n_tokens * (c->top_k + c->n_shared) * 4;
    blocks b = {.d = d, .err = err};
    moec_route_in on = inputs(&b, c, in);
    moec_route_out to = {.struct_bytes = sizeof(to)};
    moec_launch l = launch_of(
        &b, moec_device_route_workspace_bytes(d, r, NULL, in->n_tokens));

    to.ids = room(&b, out->ids, n);
    to.weights = room(&b, out->weights, n);
    if (out->ec)
        to.ec = room(&b, out->ec, sizeof(*out->ec));
    if (b.st == MOEC_OK)
        b.st = moec_device_route(d, r, &on, &to, &l, err);
    back(&b, out->ids, to.ids, n);
    back(&b, out->weights, to.weights, n);
    back(&b, out->ec, to.ec, sizeof(*out->ec));
    return release(&b);
}

/* The map and the waterfill with their arrays on the device. */
static moec_dispatch_map map_on(blocks *b, const moec_dispatch_map *map)
{
    uint64_t n = map->n_experts;
    moec_dispatch_map on = *map;

    on.table = opt(b, map->table, n * 4);
    on.cand_first = opt(b, map->cand_first, (n + 1) * 4);
    if (map->cand_first)
        on.cand = opt(b, map->cand, map->cand_first[n] * UINT64_C(4));
    return on;
}

static moec_waterfill fill_on(blocks *b, const moec_waterfill *w,
                              uint32_t n_ranks)
{
    moec_waterfill on = *w;

    on.routed = opt(b, w->routed, n_ranks * UINT64_C(8));
    on.tokens = opt(b, w->tokens, n_ranks * UINT64_C(8));
    return on;
}

moec_status moec_on_device_dispatch(moec_device *d, const moec_dispatch_call *x,
                                    moec_error *err)
{
    const moec_topology *t = &x->map->topology;
    uint64_t n = (uint64_t)x->n_rows * (x->top_k + t->n_shared_slots) * 4;
    uint64_t n_slots = t->n_physical + (uint64_t)t->n_shared_slots *
                                           (t->shared_global ? 1 : t->n_ranks);
    blocks b = {.d = d, .err = err};
    moec_dispatch_map map = map_on(&b, x->map);
    moec_waterfill fill = {.mode = MOEC_WATERFILL_OFF};
    moec_dispatch_out to = x->out;
    const int32_t *ids = room(&b, x->ids, n);
    const float *weights = room(&b, x->weights, n);
    moec_launch l = launch_of(
        &b, moec_device_dispatch_workspace_bytes(d, x->map, x->n_rows));

    if (x->waterfill)
        fill = fill_on(&b, x->waterfill, t->n_ranks);
    if (to.slot_counts)
        to.slot_counts = room(&b, to.slot_counts, n_slots * 4);
    if (to.rank_counts)
        to.rank_counts = room(&b, to.rank_counts, t->n_ranks * UINT64_C(4));
    if (to.identity)
        to.identity = room(&b, to.identity, x->n_rows * UINT64_C(4));
    to.slots = room(&b, x->out.slots, n);
    to.weights = room(&b, x->out.weights, n);
    if (b.st == MOEC_OK)
        b.st = moec_device_dispatch(d, &map, x->waterfill ? &fill : NULL, ids,
                                    weights, x->n_rows, x->n_valid, x->top_k,
                                    &to, &l, err);
    back(&b, x->out.slots, to.slots, n);
    back(&b, x->out.weights, to.weights, n);
    back(&b, x->out.slot_counts, to.slot_counts, n_slots * 4);
    back(&b, x->out.rank_counts, to.rank_counts, t->n_ranks * UINT64_C(4));
    back(&b, x->out.identity, to.identity, x->n_rows * UINT64_C(4));
    return release(&b);
}

/* A matrix that is alone: its strides are its sizes. */
static moec_matrix matrix_on(blocks *b, const moec_matrix *m)
{
    moec_matrix on = *m;

    on.data = opt(b, m->data, m->data_stride);
    on.scale = opt(b, m->scale, m->scale_stride);
    on.scale2 = opt(b, m->scale2, m->scale2_stride);
    on.zeros = opt(b, m->zeros, m->zeros_stride);
    on.bias = opt(b, m->bias, m->bias_stride);
    return on;
}

moec_status moec_on_device_matmul(moec_device *d, const moec_matrix *m,
                                  const float *x, uint32_t n, float *out,
                                  moec_error *err)
{
    uint64_t bytes = (uint64_t)n * m->n_out * 4;
    blocks b = {.d = d, .err = err};
    moec_matrix on = matrix_on(&b, m);
    const float *from = room(&b, x, (uint64_t)n * m->n_in * 4);
    float *to = room(&b, out, bytes);
    moec_launch l = MOEC_LAUNCH_INIT;

    if (b.st == MOEC_OK)
        b.st = moec_device_matmul(d, &on, 0, from, m->n_in, n, to, m->n_out, &l,
                                  err);
    back(&b, out, to, bytes);
    return release(&b);
}

/* Of y come back the rows of this call: others belong to other slots. */
static void rows_back(blocks *b, const moec_ffn_in *in, uint32_t hidden,
                      uint64_t n, float *y, const float *from)
{
    for (uint64_t i = 0; i < n; i++) {
        uint64_t at = (uint64_t)in->sorted[i] * hidden;

        back(b, y + at, from + at, hidden * UINT64_C(4));
    }
}

moec_status moec_on_device_ffn(moec_device *d, const moec_ffn_config *c,
                               const moec_ffn_in *in, uint64_t n, float *y,
                               moec_error *err)
{
    uint64_t columns = (uint64_t)in->n_tokens * in->n_cols;
    blocks b = {.d = d, .err = err};
    moec_matrix w13 = matrix_on(&b, in->w13), w2 = matrix_on(&b, in->w2);
    moec_ffn_in on = *in;
    moec_launch l =
        launch_of(&b, moec_device_ffn_workspace_bytes(d, c, n, in->n_rows));
    float *to = room(&b, NULL, columns * c->hidden * 4);

    on.w13 = &w13;
    on.w2 = &w2;
    on.x = room(&b, in->x, (uint64_t)in->n_tokens * c->hidden * 4);
    on.weights = opt(&b, in->weights, columns * 4);
    on.sorted = room(&b, in->sorted, n * 4);
    on.slot_first = room(&b, in->slot_first, (in->n_rows + UINT64_C(1)) * 8);
    if (b.st == MOEC_OK)
        b.st = moec_device_ffn(d, c, &on, n, to, &l, err);
    rows_back(&b, in, c->hidden, n, y, to);
    return release(&b);
}

moec_status moec_on_device_combine(moec_device *d, const moec_combine_in *in,
                                   float *out, moec_error *err)
{
    uint64_t rows = in->n_tokens, row = in->hidden * UINT64_C(4);
    uint64_t cells = rows * in->n_cols;
    blocks b = {.d = d, .err = err};
    moec_combine_in on = *in;
    moec_launch l = MOEC_LAUNCH_INIT;
    float *to = room(&b, out, rows * row);

    on.slots = opt(&b, in->slots, cells * 4);
    on.weights = opt(&b, in->weights, cells * 4);
    on.identity = opt(&b, in->identity, rows * 4);
    on.x = opt(&b, in->x, rows * row);
    on.y = opt(&b, in->y, cells * row);
    if (b.st == MOEC_OK)
        b.st = moec_device_combine(d, &on, to, &l, err);
    back(&b, out, to, rows * row);
    return release(&b);
}
