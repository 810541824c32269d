/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TEST_ROUTE_RECORDING_H
#define MOEC_TEST_ROUTE_RECORDING_H

/*
 * What tests of recorded routes share: a shape, and rows whose every id
 * follows from its key, so that any row that is elsewhere is seen.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <moec/record.h>

static const moec_layer_key rr_keys[] = {{MOEC_SPACE_MAIN, 1},
                                         {MOEC_SPACE_MAIN, 2},
                                         {MOEC_SPACE_MAIN, 4},
                                         {MOEC_SPACE_MTP, 0}};

/* `n_layers` of the keys: 3 main ones of 5 decoder layers, 4 with MTP. */
static inline moec_recorder_opts rr_opts(uint32_t n_experts, uint32_t top_k,
                                         uint32_t n_layers)
{
    moec_recorder_opts o = MOEC_RECORDER_OPTS_INIT;

    o.shape.n_experts = n_experts;
    o.shape.top_k = top_k;
    o.shape.n_layers = n_layers;
    o.shape.n_decoder = 5;
    o.shape.keys = rr_keys;
    return o;
}

static inline moec_recorder *rr_start(uint32_t n_experts, uint32_t top_k,
                                      uint32_t n_layers)
{
    moec_recorder_opts o = rr_opts(n_experts, top_k, n_layers);
    moec_recorder *r = NULL;

    assert_int_equal(moec_recorder_start(&r, &o, NULL), MOEC_OK);
    return r;
}

static inline uint64_t rr_request(moec_recorder *r, const char *id,
                                  uint32_t sample)
{
    uint64_t handle = 0;

    assert_int_equal(moec_recorder_request(r, id, sample, &handle, NULL),
                     MOEC_OK);
    return handle;
}

/* Column c of the row with this key: distinct in a row, sometimes none. */
static inline int32_t rr_id(uint32_t tag, uint32_t position, uint32_t layer,
                            uint32_t c, uint32_t n_experts, uint32_t top_k)
{
    uint32_t x = (tag * 2654435761u ^ position * 40503u ^ layer * 97u) >> 3;

    if (c + 1 == top_k && x % 11 == 0)
        return -1;
    return (int32_t)((x + c) % n_experts);
}

/* Append one row, shared columns behind it. */
static inline moec_status rr_append(moec_recorder *r, uint32_t layer,
                                    uint64_t handle, uint32_t tag,
                                    uint32_t position, uint32_t n_experts,
                                    uint32_t top_k)
{
    moec_route_key key = {.request = handle, .position = position};
    int32_t ids[66];

    for (uint32_t c = 0; c < top_k; c++)
        ids[c] = rr_id(tag, position, layer, c, n_experts, top_k);
    ids[top_k] = ids[top_k + 1] = 1 << 20; /* shared: never read */
    return moec_recorder_append(r, layer, &key, ids, top_k + 2, 1, NULL);
}

/* All main layers of positions [first, end). */
static inline void rr_fill(moec_recorder *r, uint64_t handle, uint32_t tag,
                           uint32_t first, uint32_t end, uint32_t n_experts,
                           uint32_t top_k)
{
    for (uint32_t p = first; p < end; p++)
        for (uint32_t l = 0; l < 3; l++)
            assert_int_equal(rr_append(r, l, handle, tag, p, n_experts, top_k),
                             MOEC_OK);
}

/* The request's token `i` is the row that rr_fill gave `position`. */
static inline void rr_expect(const moec_routes *r, uint64_t request, uint64_t i,
                             uint32_t tag, uint32_t position)
{
    const moec_routes_shape *s = moec_routes_shape_get(r);
    moec_routes_request q = moec_routes_get_request(r, request);
    int32_t ids[64];

    assert_true(i < q.n_tokens);
    assert_int_equal(moec_routes_positions(r)[q.first_token + i], position);
    for (uint32_t l = 0; l < 3; l++) {
        moec_routes_ids(r, q.first_token + i, 1, l, ids);
        for (uint32_t c = 0; c < s->top_k; c++)
            assert_int_equal(
                ids[c], rr_id(tag, position, l, c, s->n_experts, s->top_k));
    }
}

#endif
