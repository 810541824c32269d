/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The self-test's calls on a device: a case's arrays are copied there, the
 * call runs, what it wrote is copied back. Outputs go there as they are, so
 * that what no kernel writes shows. Refuses what the device refuses.
 */
#include "base/base.h"
#include "selftest_parts.h"

enum { MAX_BLOCKS = 16 };

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
                          "self-test: more than %d arrays", (int)MAX_BLOCKS);
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

moec_status moec_self_device_route(moec_device *d, const moec_router *r,
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

moec_status moec_self_device_dispatch(moec_device *d,
                                      const moec_self_dispatch *x,
                                      moec_error *err)
{
    const moec_topology *t = &x->map->topology;
    uint64_t n = (uint64_t)x->n_rows * (x->top_k + t->n_shared_slots) * 4;
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
    to.slots = room(&b, x->out.slots, n);
    to.weights = room(&b, x->out.weights, n);
    if (b.st == MOEC_OK)
        b.st = moec_device_dispatch(d, &map, x->waterfill ? &fill : NULL, ids,
                                    weights, x->n_rows, x->n_valid, x->top_k,
                                    &to, &l, err);
    back(&b, x->out.slots, to.slots, n);
    back(&b, x->out.weights, to.weights, n);
    return release(&b);
}
