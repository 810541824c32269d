/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_DEVICE_ROUTE_H
#define MOEC_DEVICE_ROUTE_H

/*
 * What this is: one route call, or route and dispatch, on the CPU (scalar) and
 *   on a device from the same host arrays, and the comparison of the two.
 *   Device memory is freed by device_free_all.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "device_test.h"

static void *device_blocks[64];
static size_t n_device_blocks;

static inline void *on_device(moec_device *d, const void *from, size_t n)
{
    void *p = test_to_device(d, from, n);

    assert_true(n_device_blocks < 64);
    device_blocks[n_device_blocks++] = p;
    return p;
}

static inline void device_free_all(moec_device *d)
{
    while (n_device_blocks)
        moec_device_free(d, device_blocks[--n_device_blocks]);
}

/* A call whose arrays are the host's. */
struct route_call {
    moec_route_config config;
    moec_route_in in;
    bool n_valid_on_device;
    const moec_dispatch_map *map; /* NULL: choice only */
    const moec_waterfill *waterfill;
    bool no_ids; /* with a map: logical ids are not wanted */
    bool no_counts;
};

/* Outputs, malloc'ed. */
struct route_result {
    int32_t *ids, *slots;
    float *weights, *slot_weights, *identity;
    uint32_t *slot_counts, *rank_counts;
    size_t n; /* T * C */
    uint32_t n_tokens, n_slots, n_ranks;
    moec_ec_stats ec;    /* of Expert Choice */
    moec_ec_state state; /* before the call a copy of in.ec_state, then after */
};

static inline void *result_array(size_t n)
{
    void *p = malloc(n * 4 + 4);

    assert_non_null(p);
    memset(p, 0x5a, n * 4 + 4);
    return p;
}

static inline struct route_result result_of(const struct route_call *c)
{
    struct route_result r = {0};

    r.n_tokens = c->in.n_tokens;
    if (c->in.ec_state)
        r.state = *c->in.ec_state;
    r.n = (size_t)c->in.n_tokens * (c->config.top_k + c->config.n_shared);
    if (c->map) {
        const moec_topology *t = &c->map->topology;

        r.n_ranks = t->n_ranks;
        r.n_slots = t->n_physical +
                    (t->shared_global ? 1 : t->n_ranks) * t->n_shared_slots;
    }
    r.ids = result_array(r.n);
    r.slots = result_array(r.n);
    r.weights = result_array(r.n);
    r.slot_weights = result_array(r.n);
    r.identity = result_array(r.n_tokens);
    r.slot_counts = result_array(r.n_slots);
    r.rank_counts = result_array(r.n_ranks);
    return r;
}

static inline void result_free(struct route_result *r)
{
    free(r->ids);
    free(r->slots);
    free(r->weights);
    free(r->slot_weights);
    free(r->identity);
    free(r->slot_counts);
    free(r->rank_counts);
}

static inline void result_same(const char *what, const void *found,
                               const void *want, size_t n)
{
    const uint32_t *a = found, *b = want;

    for (size_t i = 0; i < n; i++)
        if (a[i] != b[i])
            fail_msg("%s %zu of %zu is %08x on the device, not %08x", what, i,
                     n, a[i], b[i]);
}

static inline void cpu_call(const struct route_call *c, const moec_kernels *k,
                            moec_router *r, struct route_result *x)
{
    moec_route_out out = {.struct_bytes = sizeof(out),
                          .ids = c->no_ids ? NULL : x->ids,
                          .weights = c->no_ids ? NULL : x->weights,
                          .ec = &x->ec};
    moec_route_in in = c->in;
    moec_dispatch_out disp = {
        .struct_bytes = sizeof(disp),
        .slots = x->slots,
        .weights = x->slot_weights,
        .identity = x->identity,
        .slot_counts = c->no_counts ? NULL : x->slot_counts,
        .rank_counts = c->no_counts ? NULL : x->rank_counts};
    uint64_t bytes = moec_route_workspace_bytes(r, c->in.n_tokens);
    moec_error err = MOEC_ERROR_INIT;
    moec_status st;
    void *ws;

    (void)k;
    in.ec_state = &x->state;
    if (c->map)
        bytes = moec_route_dispatch_workspace_bytes(r, c->map, c->in.n_tokens);
    ws = aligned_alloc(64, (bytes + 127) / 64 * 64);
    assert_non_null(ws);
    st = c->map ? moec_route_dispatch(r, &in, c->map, c->waterfill, &out, &disp,
                                      ws, bytes, &err)
                : moec_route(r, &in, &out, ws, bytes, &err);
    if (st != MOEC_OK)
        fail_msg("cpu: %s", err.text);
    free(ws);
}

/* The map with its arrays on the device. */
static inline moec_dispatch_map map_on_device(moec_device *d,
                                              const moec_dispatch_map *map)
{
    moec_dispatch_map m = *map;
    uint32_t e = map->n_experts;

    if (map->rule == MOEC_REPLICA_TABLE) {
        m.table = on_device(d, map->table, e * 4);
    } else {
        m.cand_first = on_device(d, map->cand_first, (e + 1) * 4);
        m.cand = on_device(d, map->cand, map->cand_first[e] * 4);
    }
    return m;
}

static inline moec_waterfill
waterfill_on_device(moec_device *d, const moec_waterfill *w, uint32_t n_ranks)
{
    moec_waterfill x = *w;

    if (w->routed)
        x.routed = on_device(d, w->routed, n_ranks * 8);
    if (w->tokens)
        x.tokens = on_device(d, w->tokens, n_ranks * 8);
    return x;
}

static inline moec_route_in in_on_device(moec_device *d,
                                         const struct route_call *c)
{
    const moec_route_config *g = &c->config;
    moec_route_in in = c->in;
    size_t n = g->n_experts + g->n_zero, T = in.n_tokens, K = g->top_k;
    size_t stride =
        in.logits_stride ? in.logits_stride : n + g->n_shared_logits;
    size_t width = in.logits_dtype == MOEC_DTYPE_F32 ? 4 : 2;

    if (in.logits)
        in.logits = on_device(d, in.logits, T * stride * width);
    if (in.bias)
        in.bias = on_device(d, in.bias, n * 4);
    if (in.expert_scale)
        in.expert_scale = on_device(d, in.expert_scale, g->n_experts * 4);
    if (in.shared_gate)
        in.shared_gate = on_device(d, in.shared_gate, T * 4);
    if (in.hash_table)
        in.hash_table = on_device(d, in.hash_table, in.vocab * K * 4);
    if (in.tokens)
        in.tokens = on_device(d, in.tokens, T * 4);
    if (in.forced_ids)
        in.forced_ids = on_device(d, in.forced_ids, T * K * 4);
    return in;
}

static inline void device_call(const struct route_call *c, moec_device *d,
                               moec_router *r, struct route_result *x)
{
    moec_launch l = MOEC_LAUNCH_INIT;
    moec_error err = MOEC_ERROR_INIT;
    moec_route_in in = in_on_device(d, c);
    moec_route_out out = {.struct_bytes = sizeof(out)};
    moec_dispatch_out disp = {.struct_bytes = sizeof(disp)};
    moec_dispatch_map map = {0};
    moec_waterfill w = {MOEC_WATERFILL_OFF, 0, NULL, NULL};
    size_t bytes = x->n * 4;
    moec_status st;

    in.ec_state = on_device(d, &x->state, sizeof(x->state));
    out.ec = on_device(d, NULL, sizeof(x->ec));
    if (c->n_valid_on_device) {
        l.n_valid = on_device(d, &in.n_valid, 4);
        in.n_valid = in.n_tokens;
    }
    if (!c->no_ids) {
        out.ids = on_device(d, NULL, bytes);
        out.weights = on_device(d, NULL, bytes);
    }
    l.workspace_bytes =
        moec_device_route_workspace_bytes(d, r, c->map, c->in.n_tokens);
    l.workspace = on_device(d, NULL, l.workspace_bytes);
    if (c->map) {
        map = map_on_device(d, c->map);
        if (c->waterfill)
            w = waterfill_on_device(d, c->waterfill, x->n_ranks);
        disp.slots = on_device(d, NULL, bytes);
        disp.weights = on_device(d, NULL, bytes);
        disp.identity = on_device(d, NULL, x->n_tokens * 4);
        if (!c->no_counts) {
            disp.slot_counts = on_device(d, NULL, x->n_slots * 4);
            disp.rank_counts = on_device(d, NULL, x->n_ranks * 4);
        }
    }
    st = c->map ? moec_device_route_dispatch(d, r, &in, &map, &w, &out, &disp,
                                             &l, &err)
                : moec_device_route(d, r, &in, &out, &l, &err);
    if (st == MOEC_OK)
        st = moec_device_wait(d, NULL, &err);
    if (st != MOEC_OK)
        fail_msg("device: %s", err.text);
    if (!c->no_ids) {
        test_from_device(d, x->ids, out.ids, bytes);
        test_from_device(d, x->weights, out.weights, bytes);
    }
    test_from_device(d, &x->ec, out.ec, sizeof(x->ec));
    test_from_device(d, &x->state, in.ec_state, sizeof(x->state));
    if (c->map) {
        test_from_device(d, x->slots, disp.slots, bytes);
        test_from_device(d, x->slot_weights, disp.weights, bytes);
        test_from_device(d, x->identity, disp.identity, x->n_tokens * 4);
        if (!c->no_counts) {
            test_from_device(d, x->slot_counts, disp.slot_counts,
                             x->n_slots * 4);
            test_from_device(d, x->rank_counts, disp.rank_counts,
                             x->n_ranks * 4);
        }
    }
    device_free_all(d);
}

/* Both, and equal in every bit. */
static inline void check_call(const struct route_call *c, moec_device *d,
                              const moec_kernels *k)
{
    struct route_result want = result_of(c), found = result_of(c);
    moec_error err = MOEC_ERROR_INIT;
    moec_router *r = NULL;

    if (moec_router_create(&r, k, &c->config, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    cpu_call(c, k, r, &want);
    device_call(c, d, r, &found);
    result_same("id", found.ids, want.ids, want.n);
    result_same("weight", found.weights, want.weights, want.n);
    if (c->config.ec.mode != MOEC_EC_OFF) {
        result_same("figure", &found.ec, &want.ec, sizeof(want.ec) / 4);
        result_same("state", &found.state, &want.state, sizeof(want.state) / 4);
    }
    if (c->in.ec_state)
        *c->in.ec_state = found.state;
    if (c->map) {
        result_same("slot", found.slots, want.slots, want.n);
        result_same("slot weight", found.slot_weights, want.slot_weights,
                    want.n);
        result_same("identity", found.identity, want.identity, want.n_tokens);
        result_same("slot count", found.slot_counts, want.slot_counts,
                    want.n_slots);
        result_same("rank count", found.rank_counts, want.rank_counts,
                    want.n_ranks);
    }
    moec_router_destroy(r);
    result_free(&want);
    result_free(&found);
}

#endif
