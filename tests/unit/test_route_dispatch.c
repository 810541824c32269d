/* SPDX-License-Identifier: Apache-2.0
 *
 * The fused call gives what moec_route and moec_dispatch give one after the
 * other, bit for bit: every kind of choice, with and without logical ids,
 * zero experts, padding, waterfill, Expert Choice, on every back end and with
 * threads. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <moec/kernels.h>

#include "base/base.h"
#include "guarded.h"

static moec_kernels *open_kernels(moec_isa isa, uint32_t n_threads)
{
    moec_kernels_opts o = MOEC_KERNELS_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    moec_kernels *k = NULL;

    o.isa = isa;
    o.n_threads = n_threads;
    if (moec_kernels_open(&k, &o, &err) != MOEC_OK)
        return NULL; /* this CPU lacks it */
    return k;
}

static void assert_ok(moec_status status, const moec_error *err)
{
    if (status != MOEC_OK)
        fail_msg("%s", err->text);
}

struct both {
    moec_route_config config;
    moec_router *router;
    moec_route_in in;
    moec_dispatch_map map;
    moec_waterfill waterfill;
    uint32_t n_slots, n_cols;
};

/* One of the shapes that models have. */
static void random_config(uint64_t *seed, moec_route_config *c)
{
    static const moec_route_config init = MOEC_ROUTE_CONFIG_INIT;
    static const uint32_t experts[] = {8, 60, 64, 128, 256};

    *c = init;
    c->n_experts = experts[random_below(seed, 5)];
    c->top_k = 1 + random_below(seed, 8);
    c->n_shared = random_below(seed, 3);
    c->rsf = 2.5f;
    c->norm = MOEC_NORM_SUM;
    switch (random_below(seed, 5)) {
    case 0:
        c->score = MOEC_SCORE_SOFTMAX;
        break;
    case 1:
        c->score = MOEC_SCORE_SIGMOID;
        c->n_group = 4;
        c->topk_group = 4;
        c->group_score = MOEC_GROUP_TOP2;
        break;
    case 2:
        c->score = MOEC_SCORE_LOGIT;
        c->norm = MOEC_NORM_SOFTMAX;
        break;
    case 3:
        c->n_zero = 1 + random_below(seed, 64);
        c->norm = MOEC_NORM_NONE;
        break;
    default:
        c->score = MOEC_SCORE_SIGMOID;
        c->shared_kind = MOEC_SHARED_SIGMOID;
        break;
    }
}

static void random_in(uint64_t *seed, struct both *b, uint32_t n_tokens)
{
    uint32_t n = b->config.n_experts + b->config.n_zero;
    float *logits = guarded((size_t)n_tokens * n * sizeof(*logits));
    float *bias = guarded(n * sizeof(*bias));
    float *gate = guarded(n_tokens * sizeof(*gate));

    for (size_t i = 0; i < (size_t)n_tokens * n; i++)
        logits[i] = 3.0f * random_float(seed);
    for (uint32_t i = 0; i < n_tokens; i++) {
        gate[i] = random_float(seed);
        if (random_below(seed, 16) == 0) /* nothing selectable */
            for (uint32_t e = 0; e < n; e++)
                logits[(size_t)i * n + e] = -__builtin_inff();
    }
    for (uint32_t e = 0; e < n; e++)
        bias[e] = 0.1f * random_float(seed);
    b->in = (moec_route_in)MOEC_ROUTE_IN_INIT;
    b->in.n_tokens = n_tokens;
    b->in.n_valid = n_tokens - random_below(seed, n_tokens / 8 + 1);
    b->in.logits = logits;
    b->in.bias = b->config.score == MOEC_SCORE_SIGMOID ? bias : NULL;
    b->in.shared_gate = gate;
}

static void random_map(uint64_t *seed, struct both *b)
{
    uint32_t n_experts = b->config.n_experts;
    moec_topology *t = &b->map.topology;
    uint32_t *table = guarded(n_experts * sizeof(*table));

    b->map.struct_bytes = sizeof(b->map);
    t->n_ranks = 8;
    t->n_local = (n_experts + 7) / 8 + random_below(seed, 3);
    t->n_physical = 8 * t->n_local;
    t->n_shared_slots = b->config.n_shared;
    b->map.n_experts = n_experts;
    b->map.rank = random_below(seed, 8);
    for (uint32_t e = 0; e < n_experts; e++)
        table[e] = t->n_physical - 1 - e;
    b->map.table = table;
    b->waterfill.mode = (moec_waterfill_mode)random_below(seed, 2);
    b->n_slots = t->n_physical + 8 * t->n_shared_slots;
    b->n_cols = b->config.top_k + b->config.n_shared;
}

static moec_route_out route_out(const struct both *b)
{
    size_t n = (size_t)b->in.n_tokens * b->n_cols;
    moec_route_out out = {.struct_bytes = sizeof(out),
                          .ids = guarded(n * sizeof(int32_t)),
                          .weights = guarded(n * sizeof(float))};

    return out;
}

static moec_dispatch_out dispatch_out(const struct both *b)
{
    size_t n = (size_t)b->in.n_tokens * b->n_cols;
    moec_dispatch_out out = {
        .struct_bytes = sizeof(out),
        .slots = guarded(n * sizeof(int32_t)),
        .weights = guarded(n * sizeof(float)),
        .identity = guarded(b->in.n_tokens * sizeof(float)),
        .slot_counts = guarded(b->n_slots * sizeof(uint32_t)),
        .rank_counts = guarded(8 * sizeof(uint32_t))};

    return out;
}

static void assert_equal(const struct both *b, const moec_dispatch_out *found,
                         const moec_dispatch_out *want)
{
    size_t n = (size_t)b->in.n_tokens * b->n_cols;

    assert_memory_equal(found->slots, want->slots, n * sizeof(int32_t));
    assert_memory_equal(found->weights, want->weights, n * sizeof(float));
    assert_memory_equal(found->identity, want->identity,
                        b->in.n_tokens * sizeof(float));
    assert_memory_equal(found->slot_counts, want->slot_counts,
                        b->n_slots * sizeof(uint32_t));
    assert_memory_equal(found->rank_counts, want->rank_counts,
                        8 * sizeof(uint32_t));
}

static void compare(const struct both *b, const moec_kernels *k)
{
    uint32_t T = b->in.n_tokens;
    uint64_t route_bytes = moec_route_workspace_bytes(b->router, T);
    uint64_t bytes = moec_dispatch_workspace_bytes(k, &b->map, T);
    uint64_t fused_bytes =
        moec_route_dispatch_workspace_bytes(b->router, &b->map, T);
    moec_route_out ids = route_out(b), ids2 = route_out(b);
    moec_dispatch_out want = dispatch_out(b), found = dispatch_out(b);
    size_t n = (size_t)T * b->n_cols;
    moec_error err = MOEC_ERROR_INIT;

    assert_ok(moec_route(b->router, &b->in, &ids, guarded(route_bytes),
                         route_bytes, &err),
              &err);
    assert_ok(moec_dispatch(k, &b->map, &b->waterfill, ids.ids, ids.weights, T,
                            b->in.n_valid, b->config.top_k, &want,
                            guarded(bytes), bytes, &err),
              &err);
    assert_ok(moec_route_dispatch(b->router, &b->in, &b->map, &b->waterfill,
                                  NULL, &found, guarded(fused_bytes),
                                  fused_bytes, &err),
              &err);
    assert_equal(b, &found, &want);
    found = dispatch_out(b);
    assert_ok(moec_route_dispatch(b->router, &b->in, &b->map, &b->waterfill,
                                  &ids2, &found, guarded(fused_bytes),
                                  fused_bytes, &err),
              &err);
    assert_equal(b, &found, &want);
    assert_memory_equal(ids.ids, ids2.ids, n * sizeof(int32_t));
    assert_memory_equal(ids.weights, ids2.weights, n * sizeof(float));
}

static void compare_random(uint64_t *seed, const moec_kernels *k,
                           uint32_t n_tokens, moec_ec_mode ec)
{
    struct both b = {0};
    moec_error err = MOEC_ERROR_INIT;

    random_config(seed, &b.config);
    b.config.ec.mode = b.config.n_zero ? MOEC_EC_OFF : ec;
    random_in(seed, &b, n_tokens);
    random_map(seed, &b);
    if (moec_router_create(&b.router, k, &b.config, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    compare(&b, k);
    moec_router_destroy(b.router);
    guarded_free_all();
}

static void equals_route_then_dispatch(void **state)
{
    static const uint32_t sizes[] = {0, 1, 3, 63, 64, 65, 129, 200};
    uint64_t seed = 1;

    (void)state;
    for (int isa = MOEC_ISA_SCALAR; isa <= MOEC_ISA_AVX512; isa++) {
        moec_kernels *k = open_kernels((moec_isa)isa, 1);

        for (int turn = 0; k && turn < 40; turn++)
            compare_random(&seed, k, sizes[turn % 8], MOEC_EC_OFF);
        moec_kernels_close(k);
    }
}

static void equals_it_with_threads(void **state)
{
    uint64_t seed = 2;
    moec_kernels *k = open_kernels(MOEC_ISA_AUTO, 3);

    (void)state;
    for (int turn = 0; turn < 8; turn++)
        compare_random(&seed, k, 300 + random_below(&seed, 500), MOEC_EC_OFF);
    moec_kernels_close(k);
}

static void equals_it_under_expert_choice(void **state)
{
    uint64_t seed = 3;

    (void)state;
    for (uint32_t n_threads = 1; n_threads < 4; n_threads += 2) {
        moec_kernels *k = open_kernels(MOEC_ISA_AUTO, n_threads);

        for (int turn = 0; turn < 10; turn++)
            compare_random(&seed, k, random_below(&seed, 200), MOEC_EC_ON);
        moec_kernels_close(k);
    }
}

static void refuses_a_map_of_another_model(void **state)
{
    moec_kernels *k = open_kernels(MOEC_ISA_AUTO, 1);
    static const char *const texts[] = {
        "the router 8 and 1", "the router 8 and 1", "identity is NULL",
        "router is NULL",     "workspace of 0",     "struct_bytes 8",
    };
    uint64_t seed = 4;

    (void)state;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct both b = {.config = MOEC_ROUTE_CONFIG_INIT};
        moec_error err = MOEC_ERROR_INIT;
        moec_dispatch_out out;
        moec_route_out ids;

        b.config.n_experts = 8;
        b.config.top_k = 2;
        b.config.n_shared = 1;
        b.config.n_zero = i == 2 ? 3 : 0;
        random_in(&seed, &b, 2);
        random_map(&seed, &b);
        b.waterfill.mode = MOEC_WATERFILL_OFF;
        out = dispatch_out(&b);
        ids = route_out(&b);
        assert_ok(moec_router_create(&b.router, k, &b.config, &err), &err);
        b.map.n_experts = i == 0 ? 7 : 8;
        b.map.topology.n_shared_slots = i == 1 ? 2 : 1;
        out.identity = NULL;
        ids.struct_bytes = i == 5 ? 8 : sizeof(ids);
        assert_int_equal(moec_route_dispatch(i == 3 ? NULL : b.router, &b.in,
                                             &b.map, &b.waterfill, &ids, &out,
                                             NULL, 0, &err),
                         MOEC_E_ARG);
        if (!strstr(err.text, texts[i]))
            fail_msg("'%s' is not in: %s", texts[i], err.text);
        moec_router_destroy(b.router);
        guarded_free_all();
    }
    moec_kernels_close(k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_route_then_dispatch),
        cmocka_unit_test(equals_it_with_threads),
        cmocka_unit_test(equals_it_under_expert_choice),
        cmocka_unit_test(refuses_a_map_of_another_model),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
