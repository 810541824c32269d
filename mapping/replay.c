/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: replay: the recorded ids instead of the choice, weights from
 *   the live logits, and what the live logits would have chosen.
 * Refuses: recordings of another shape than the router, Expert Choice (whose
 *   choice depends on the other tokens).
 */

#include <inttypes.h>
#include <string.h>

#include "routes.h"

#define ALIGN 64u

static uint64_t aligned(uint64_t n)
{
    return (n + ALIGN - 1) / ALIGN * ALIGN;
}

/* Forced ids [T][K], then what is chosen live: ids and weights [T][C]. */
static uint64_t forced_bytes(const moec_route_config *c, uint32_t n_tokens)
{
    return aligned((uint64_t)n_tokens * c->top_k * sizeof(int32_t));
}

static uint64_t live_bytes(const moec_route_config *c, uint32_t n_tokens)
{
    return aligned((uint64_t)n_tokens * (c->top_k + c->n_shared) * 4);
}

uint64_t moec_replay_workspace_bytes(const moec_router *router,
                                     uint32_t n_tokens)
{
    const moec_route_config *c = moec_router_config(router);

    return forced_bytes(c, n_tokens) + 2 * live_bytes(c, n_tokens);
}

static moec_status check(const moec_route_config *c, const moec_route_in *in,
                         const moec_routes *routes, uint32_t layer,
                         const uint64_t *tokens, moec_error *err)
{
    const moec_routes_shape *s = &routes->shape;

    if (s->n_experts != c->n_experts || s->n_zero != c->n_zero ||
        s->top_k != c->top_k || layer >= s->n_layers)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "replay: layer %" PRIu32 " of %" PRIu32 ", %" PRIu32
                         " experts and top-k %" PRIu32 " recorded, %" PRIu32
                         " and %" PRIu32 " in the router",
                         layer, s->n_layers, s->n_experts + s->n_zero, s->top_k,
                         c->n_experts + c->n_zero, c->top_k);
    if (c->ec.mode != MOEC_EC_OFF || in->forced_ids)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "replay: not with expert choice, nor with ids that "
                         "are forced already");
    for (uint32_t t = 0; t < in->n_valid; t++)
        if (tokens[t] != MOEC_NO_TOKEN && tokens[t] >= routes->n_tokens)
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "replay: row %" PRIu32 " is token %" PRIu64
                             " of %" PRIu64,
                             t, tokens[t], routes->n_tokens);
    return MOEC_OK;
}

/* First id of `a` that `b` lacks, or -1; *n_out: how many. */
static int32_t lacking(const int32_t *a, const int32_t *b, uint32_t k,
                       uint32_t *n_out)
{
    int32_t first = -1;
    uint32_t n = 0;

    for (uint32_t i = 0; i < k; i++) {
        bool found = a[i] < 0;

        for (uint32_t j = 0; j < k && !found; j++)
            found = a[i] == b[j];
        if (!found && n++ == 0)
            first = a[i];
    }
    *n_out = n;
    return first;
}

static void compare(moec_replay_stats *s, uint32_t row, const int32_t *recorded,
                    const int32_t *live, uint32_t k)
{
    uint32_t n, n_live;
    int32_t a = lacking(recorded, live, k, &n);
    int32_t b = lacking(live, recorded, k, &n_live);

    s->rows++;
    s->columns_differ += n;
    if (n == 0 && n_live == 0)
        return;
    if (s->rows_differ++ == 0) {
        s->first_row = row;
        s->first_recorded = a;
        s->first_live = b;
    }
}

moec_status moec_replay(const moec_router *router, const moec_route_in *in,
                        const moec_routes *routes, uint32_t layer,
                        const uint64_t *tokens, const moec_route_out *out,
                        moec_replay_stats *stats, void *workspace,
                        uint64_t workspace_bytes, moec_error *err)
{
    const moec_route_config *c;
    moec_replay_stats s = {
        .first_row = MOEC_NO_ROW, .first_recorded = -1, .first_live = -1};
    moec_route_out live = {.struct_bytes = sizeof(live)};
    moec_route_in forced;
    int32_t *ids;
    uint32_t cols;

    if (!router || !in || !routes || !out || (in->n_valid && !tokens))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE, "replay: NULL");
    c = moec_router_config(router);
    cols = c->top_k + c->n_shared;
    MOEC_TRY(check(c, in, routes, layer, tokens, err));
    if (in->n_tokens &&
        (!workspace || (uintptr_t)workspace % ALIGN != 0 ||
         workspace_bytes < moec_replay_workspace_bytes(router, in->n_tokens)))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "replay: the workspace is NULL, not aligned or has "
                         "only %" PRIu64 " bytes",
                         workspace_bytes);
    ids = workspace;
    live.ids =
        (int32_t *)(void *)((char *)workspace + forced_bytes(c, in->n_tokens));
    live.weights =
        (float *)(void *)((char *)live.ids + live_bytes(c, in->n_tokens));
    MOEC_TRY(moec_route(router, in, &live, NULL, 0, err));
    for (uint32_t t = 0; t < in->n_valid; t++) {
        int32_t *row = ids + (uint64_t)t * c->top_k;
        const int32_t *chosen = live.ids + (uint64_t)t * cols;

        if (tokens[t] == MOEC_NO_TOKEN) {
            memcpy(row, chosen, c->top_k * sizeof(row[0]));
            s.rows_unrecorded++;
            continue;
        }
        moec_routes_ids(routes, tokens[t], 1, layer, row);
        compare(&s, t, row, chosen, c->top_k);
    }
    forced = *in;
    forced.forced_ids = ids;
    MOEC_TRY(moec_route(router, &forced, out, NULL, 0, err));
    if (stats)
        *stats = s;
    return MOEC_OK;
}
