/* SPDX-License-Identifier: Apache-2.0
 *
 * Replay: forced ids, live weights, disagreements. */

#include "route_recording.h"

#include <math.h>

#include "base/base.h"

#define E 24u
#define K 4u
#define S 1u
#define C (K + S)
#define T 40u

typedef struct replay_case {
    moec_kernels *k;
    moec_router *router;
    float logits[T][E];
    float bias[E];
    int32_t ids[T][C];
    float weights[T][C];
    moec_route_in in;
    void *workspace;
    uint64_t bytes;
} replay_case;

static void start(replay_case *x)
{
    moec_route_config c = MOEC_ROUTE_CONFIG_INIT;
    uint32_t seed = 7;

    memset(x, 0, sizeof(*x));
    c.n_experts = E;
    c.top_k = K;
    c.n_shared = S;
    c.score = MOEC_SCORE_SIGMOID;
    c.norm = MOEC_NORM_SUM;
    c.rsf = 2.5f;
    c.shared_kind = MOEC_SHARED_PLAIN;
    assert_int_equal(moec_kernels_open(&x->k, NULL, NULL), MOEC_OK);
    assert_int_equal(moec_router_create(&x->router, x->k, &c, NULL), MOEC_OK);
    for (uint32_t i = 0; i < T * E; i++) {
        seed = seed * 1664525u + 1013904223u;
        x->logits[i / E][i % E] = (float)(seed >> 8) / 4194304.0f - 2.0f;
        x->bias[i % E] = (float)(i % 5) * 0.01f;
    }
    x->in = (moec_route_in)MOEC_ROUTE_IN_INIT;
    x->in.n_tokens = T;
    x->in.n_valid = T;
    x->in.logits = x->logits;
    x->in.bias = x->bias;
    x->bytes = moec_replay_workspace_bytes(x->router, T);
    x->workspace = moec_alloc_aligned((size_t)x->bytes, 64);
    assert_non_null(x->workspace);
}

static void end(replay_case *x)
{
    moec_free_aligned(x->workspace);
    moec_router_destroy(x->router);
    moec_kernels_close(x->k);
}

static moec_route_out out_of(replay_case *x)
{
    return (moec_route_out){.struct_bytes = sizeof(moec_route_out),
                            .ids = &x->ids[0][0],
                            .weights = &x->weights[0][0]};
}

/* A recording of what the router chose, but for rows [0, n_changed), whose
 * last expert is another one. */
static moec_routes *record(replay_case *x, uint32_t n_changed)
{
    moec_recorder *r = rr_start(E, K, 1);
    moec_route_key keys[T];
    moec_route_out out = out_of(x);
    moec_routes *routes = NULL;
    uint64_t h = rr_request(r, "a", 0);

    assert_int_equal(moec_route(x->router, &x->in, &out, NULL, 0, NULL),
                     MOEC_OK);
    for (uint32_t t = 0; t < T; t++) {
        keys[t] = (moec_route_key){h, t, 0};
        for (uint32_t e = 0; t < n_changed && e < E; e++) {
            int used = 0;

            for (uint32_t c = 0; c < K; c++)
                used |= x->ids[t][c] == (int32_t)e;
            if (!used) {
                x->ids[t][K - 1] = (int32_t)e;
                break;
            }
        }
    }
    /* The stride passes over the shared column. */
    assert_int_equal(
        moec_recorder_append(r, 0, keys, &x->ids[0][0], C, T, NULL), MOEC_OK);
    assert_int_equal(moec_recorder_stop(r, &routes, NULL), MOEC_OK);
    moec_recorder_destroy(r);
    return routes;
}

static void identity(uint64_t tokens[T])
{
    for (uint32_t t = 0; t < T; t++)
        tokens[t] = t;
}

static void the_same_logits_agree(void **state)
{
    static replay_case x;
    moec_route_out out;
    moec_replay_stats stats;
    float before[T][C];
    uint64_t tokens[T];
    moec_routes *r;

    (void)state;
    start(&x);
    r = record(&x, 0);
    memcpy(before, x.weights, sizeof(before));
    memset(x.weights, 0x55, sizeof(x.weights));
    identity(tokens);
    out = out_of(&x);
    assert_int_equal(moec_replay(x.router, &x.in, r, 0, tokens, &out, &stats,
                                 x.workspace, x.bytes, NULL),
                     MOEC_OK);
    assert_int_equal(stats.rows, T);
    assert_int_equal(stats.rows_differ, 0);
    assert_int_equal(stats.first_row, MOEC_NO_ROW);
    assert_memory_equal(before, x.weights, sizeof(before));
    moec_routes_destroy(r);
    end(&x);
}

static void recorded_ids_are_forced_and_weighed_anew(void **state)
{
    static replay_case x;
    moec_route_out out;
    moec_replay_stats stats;
    float scores[K], sum = 0;
    uint64_t tokens[T];
    moec_routes *r;
    int32_t ids[K];

    (void)state;
    start(&x);
    r = record(&x, 3);
    identity(tokens);
    tokens[1] = MOEC_NO_TOKEN;
    tokens[5] = 6; /* another token's row */
    out = out_of(&x);
    assert_int_equal(moec_replay(x.router, &x.in, r, 0, tokens, &out, &stats,
                                 x.workspace, x.bytes, NULL),
                     MOEC_OK);
    assert_int_equal(stats.rows, T - 1);
    assert_int_equal(stats.rows_unrecorded, 1);
    assert_int_equal(stats.rows_differ, 3); /* 0, 2 and 5 */
    assert_true(stats.columns_differ >= 3);
    assert_int_equal(stats.first_row, 0);
    moec_routes_ids(r, 0, 1, 0, ids);
    assert_int_equal(stats.first_recorded, ids[K - 1]);
    for (uint32_t c = 0; c < K; c++) {
        assert_int_equal(x.ids[0][c], ids[c]);
        scores[c] = 1.0f / (1.0f + expf(-x.logits[0][ids[c]]));
        sum += scores[c];
    }
    for (uint32_t c = 0; c < K; c++)
        assert_true(fabsf(x.weights[0][c] - scores[c] / sum) < 1e-6f);
    assert_int_equal(x.ids[0][K], E); /* the shared column as ever */
    moec_routes_ids(r, 6, 1, 0, ids);
    assert_int_equal(x.ids[5][0], ids[0]);
    moec_routes_destroy(r);
    end(&x);
}

static void refuses_what_does_not_fit(void **state)
{
    static replay_case x;
    moec_recorder *other = rr_start(E + 1, K, 1);
    moec_routes *r, *wide = NULL;
    moec_route_out out;
    uint64_t tokens[T];

    (void)state;
    assert_int_equal(moec_recorder_stop(other, &wide, NULL), MOEC_OK);
    start(&x);
    r = record(&x, 0);
    identity(tokens);
    out = out_of(&x);
    assert_int_equal(moec_replay(x.router, &x.in, wide, 0, tokens, &out, NULL,
                                 x.workspace, x.bytes, NULL),
                     MOEC_E_ARG);
    assert_int_equal(moec_replay(x.router, &x.in, r, 1, tokens, &out, NULL,
                                 x.workspace, x.bytes, NULL),
                     MOEC_E_ARG);
    assert_int_equal(moec_replay(x.router, &x.in, r, 0, tokens, &out, NULL,
                                 x.workspace, x.bytes - 64, NULL),
                     MOEC_E_ARG);
    tokens[T - 1] = T;
    assert_int_equal(moec_replay(x.router, &x.in, r, 0, tokens, &out, NULL,
                                 x.workspace, x.bytes, NULL),
                     MOEC_E_ARG);
    moec_routes_destroy(r);
    moec_routes_destroy(wide);
    moec_recorder_destroy(other);
    end(&x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_logits_agree),
        cmocka_unit_test(recorded_ids_are_forced_and_weighed_anew),
        cmocka_unit_test(refuses_what_does_not_fit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
