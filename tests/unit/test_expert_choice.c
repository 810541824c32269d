/* SPDX-License-Identifier: Apache-2.0
 *
 * Expert Choice through moec_route: the vectors, on every back end and any
 * number of threads, capacity, the identities, the policy, what is refused. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <moec/kernels.h>

#include "base/base.h"

static const char *const mode_names[] = {"fill-missing", "full-row", "pad",
                                         "balanced"};

/* One router, its inputs and its outputs. */
struct rig {
    moec_kernels *k;
    moec_router *r;
    moec_route_in in;
    moec_route_out out;
    moec_ec_stats stats;
    float *logits, *bias;
    void *ws;
    uint64_t ws_bytes;
};

static bool open_isa(moec_kernels **out, moec_isa isa, uint32_t threads)
{
    moec_kernels_opts opts = MOEC_KERNELS_OPTS_INIT;

    opts.isa = isa;
    opts.n_threads = threads;
    return moec_kernels_open(out, &opts, NULL) == MOEC_OK;
}

static void *aligned(uint64_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 127) & ~UINT64_C(63));

    assert_non_null(p);
    memset(p, 0xa5, (bytes + 127) & ~UINT64_C(63));
    return p;
}

static void set_up(struct rig *g, const moec_route_config *c, uint32_t n_tokens)
{
    moec_error err = MOEC_ERROR_INIT;
    uint64_t cells = (uint64_t)n_tokens * (c->top_k + c->n_shared);

    g->in = (moec_route_in)MOEC_ROUTE_IN_INIT;
    g->in.n_tokens = n_tokens;
    g->in.n_valid = n_tokens;
    if (moec_router_create(&g->r, g->k, c, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    g->out.struct_bytes = sizeof(g->out);
    g->out.ids = aligned(cells * 4);
    g->out.weights = aligned(cells * 4);
    g->out.ec = &g->stats;
    g->ws_bytes = moec_route_workspace_bytes(g->r, n_tokens);
    g->ws = aligned(g->ws_bytes);
}

static void tear_down(struct rig *g)
{
    moec_router_destroy(g->r);
    free(g->out.ids);
    free(g->out.weights);
    free(g->ws);
}

static void route(struct rig *g)
{
    moec_error err = MOEC_ERROR_INIT;

    if (moec_route(g->r, &g->in, &g->out, g->ws, g->ws_bytes, &err) != MOEC_OK)
        fail_msg("%s", err.text);
}

/* The weights are those of replay with the same ids. */
static void weights_fit_the_ids(struct rig *g)
{
    moec_route_config c = *moec_router_config(g->r);
    uint32_t n_cols = c.top_k + c.n_shared, t = g->in.n_tokens;
    int32_t *forced = aligned((uint64_t)t * c.top_k * 4);
    struct rig replay = {.k = g->k};

    c.ec.mode = MOEC_EC_OFF;
    set_up(&replay, &c, t);
    for (uint32_t i = 0; i < t; i++)
        memcpy(forced + i * c.top_k, g->out.ids + i * n_cols, c.top_k * 4);
    replay.in = g->in;
    replay.in.forced_ids = forced;
    route(&replay);
    for (uint32_t i = 0; i < t * n_cols; i++) {
        assert_int_equal(g->out.ids[i], replay.out.ids[i]);
        assert_true(g->out.weights[i] == replay.out.weights[i]);
    }
    tear_down(&replay);
    free(forced);
}

/* ------------------------------------------------------------- vectors */

static uint32_t number(const json_t *c, const char *key)
{
    json_t *v = json_object_get(c, key);

    assert_true(json_is_integer(v));
    return (uint32_t)json_integer_value(v);
}

static moec_route_config config_of(const json_t *c, moec_ec_fill fill)
{
    const char *scoring = json_string_value(json_object_get(c, "scoring"));
    moec_route_config cfg = MOEC_ROUTE_CONFIG_INIT;

    cfg.n_experts = number(c, "E");
    cfg.top_k = number(c, "K");
    cfg.score = strcmp(scoring, "softmax") == 0 ? MOEC_SCORE_SOFTMAX
                                                : MOEC_SCORE_SIGMOID;
    cfg.n_group = number(c, "groups");
    cfg.topk_group = number(c, "topk_group");
    cfg.group_score =
        json_object_get(c, "bias") ? MOEC_GROUP_TOP2 : MOEC_GROUP_MAX;
    cfg.norm = MOEC_NORM_SUM;
    cfg.n_shared = 1;
    cfg.shared_kind = MOEC_SHARED_PLAIN;
    cfg.ec.mode = MOEC_EC_ON;
    cfg.ec.fill = fill;
    cfg.ec.capacity_ppm = number(c, "capacity_ppm");
    return cfg;
}

static float *floats_of(const json_t *rows, uint32_t n_rows, uint32_t n)
{
    float *v = aligned((uint64_t)n_rows * n * 4);

    for (uint32_t i = 0; i < n_rows; i++)
        for (uint32_t j = 0; j < n; j++) {
            const json_t *x = json_array_get(json_array_get(rows, i), j);

            v[i * n + j] = json_is_null(x) ? (j % 2 ? -INFINITY : NAN)
                                           : (float)json_number_value(x);
        }
    return v;
}

static void check_ids(const json_t *c, moec_ec_fill fill, const struct rig *g)
{
    const json_t *all = json_object_get(c, "ids");
    const json_t *want = json_object_get(all, mode_names[fill]);
    uint32_t k = number(c, "K"), t = number(c, "T"), e = number(c, "E");

    if (json_is_string(want))
        want = json_object_get(all, json_string_value(want));
    assert_int_equal(json_array_size(want), t);
    for (uint32_t i = 0; i < t; i++) {
        const json_t *row = json_array_get(want, i);
        const int32_t *ids = g->out.ids + (uint64_t)i * (k + 1);

        for (uint32_t j = 0; j < k; j++)
            if (ids[j] != json_integer_value(json_array_get(row, j)))
                fail_msg("%s %s row %u column %u: %d",
                         json_string_value(json_object_get(c, "id")),
                         mode_names[fill], i, j, ids[j]);
        assert_int_equal(ids[k], ids[0] < 0 ? -1 : (int32_t)e);
    }
}

static void run_vector(const json_t *c, moec_kernels *k, moec_ec_fill fill)
{
    struct rig g = {.k = k};
    moec_route_config cfg = config_of(c, fill);
    uint32_t t = number(c, "T"), e = cfg.n_experts;
    bool hard = fill == MOEC_EC_PAD || fill == MOEC_EC_BALANCED;
    json_t *bias = json_object_get(c, "bias");
    uint32_t capacity = number(c, hard ? "C_hard" : "C");

    set_up(&g, &cfg, t);
    g.logits = floats_of(json_object_get(c, "logits"), t, e);
    g.in.logits = g.logits;
    g.in.n_valid = number(c, "non_padded");
    if (bias) {
        json_t *rows = json_pack("[O]", bias);

        g.bias = floats_of(rows, 1, e);
        g.in.bias = g.bias;
        json_decref(rows);
    }
    route(&g);
    check_ids(c, fill, &g);
    weights_fit_the_ids(&g);
    assert_int_equal(moec_ec_capacity(&cfg, g.in.n_valid), capacity);
    if (g.in.n_valid > 0)
        assert_int_equal(g.stats.capacity, capacity);
    if (!hard)
        assert_int_equal(g.stats.short_tokens, number(c, "short_tokens"));
    free(g.logits);
    free(g.bias);
    tear_down(&g);
}

static void gives_the_vectors(void **state)
{
    json_error_t je;
    json_t *doc = json_load_file(
        MOEC_TEST_FIXTURES "/vectors/expert_choice.json", 0, &je);
    json_t *cases = json_object_get(doc, "cases"), *c;
    size_t i;

    (void)state;
    assert_true(json_array_size(cases) > 30);
    for (int isa = MOEC_ISA_SCALAR; isa <= MOEC_ISA_AVX512; isa++)
        for (uint32_t threads = 1; threads <= 3; threads += 2) {
            moec_kernels *k;

            if (!open_isa(&k, (moec_isa)isa, threads))
                continue;
            json_array_foreach (cases, i, c)
                for (int fill = 0; fill <= MOEC_EC_BALANCED; fill++)
                    run_vector(c, k, (moec_ec_fill)fill);
            moec_kernels_close(k);
        }
    json_decref(doc);
}

/* ------------------------------------------------------------ capacity */

static uint32_t capacity(uint32_t e, uint32_t k, uint32_t ppm, uint32_t n,
                         moec_ec_fill fill)
{
    moec_route_config c = MOEC_ROUTE_CONFIG_INIT;

    c.n_experts = e;
    c.top_k = k;
    c.ec.capacity_ppm = ppm;
    c.ec.fill = fill;
    return moec_ec_capacity(&c, n);
}

static void computes_capacity_exactly(void **state)
{
    (void)state;
    assert_int_equal(capacity(256, 8, 1250000, 4096, 0), 160);
    assert_int_equal(capacity(256, 8, 1000000, 4096, MOEC_EC_PAD), 128);
    assert_int_equal(capacity(256, 8, 1030000, 4096, MOEC_EC_PAD), 132);
    assert_int_equal(capacity(64, 8, 1030000, 128, MOEC_EC_PAD), 17);
    /* A factor of one millionth more is one token more. */
    assert_int_equal(capacity(256, 8, 1000001, 4096, MOEC_EC_PAD), 129);
    /* The two lower bounds, the upper one, no tokens. */
    assert_int_equal(capacity(256, 8, 1000000, 16, 0), 8);
    assert_int_equal(capacity(256, 8, 1000000, 16, MOEC_EC_FULL_ROW), 8);
    assert_int_equal(capacity(256, 8, 1000000, 16, MOEC_EC_PAD), 1);
    assert_int_equal(capacity(256, 8, 1000000, 5, 0), 5);
    assert_int_equal(capacity(4, 4, 1000000, 77, MOEC_EC_PAD), 77);
    assert_int_equal(capacity(4, 2, 1000000, 0, 0), 0);
    assert_int_equal(capacity(4, 2, 1, 100, MOEC_EC_BALANCED), 1);
    /* No product overflows. */
    assert_int_equal(capacity(1, 1, UINT32_MAX, UINT32_MAX, 0), UINT32_MAX);
    assert_int_equal(capacity(4096, 64, UINT32_MAX, UINT32_MAX, 0), UINT32_MAX);
    assert_int_equal(capacity(4096, 64, 63999999, UINT32_MAX, MOEC_EC_PAD),
                     4294967228u);
    assert_int_equal(capacity(4096, 64, 1250000, UINT32_MAX, MOEC_EC_PAD),
                     83886080);
}

static void picks_the_factor_by_experts_and_tokens(void **state)
{
    (void)state;
    assert_int_equal(capacity(8, 2, 0, 100, MOEC_EC_PAD), 38);    /* 1.5 */
    assert_int_equal(capacity(32, 8, 0, 100, MOEC_EC_PAD), 32);   /* 1.25 */
    assert_int_equal(capacity(33, 11, 0, 100, MOEC_EC_PAD), 37);  /* 1.1 */
    assert_int_equal(capacity(100, 10, 0, 31, MOEC_EC_PAD), 5);   /* 1.5 */
    assert_int_equal(capacity(100, 10, 0, 32, MOEC_EC_PAD), 4);   /* 1.1 */
    assert_int_equal(capacity(8, 2, 0, 128, MOEC_EC_PAD), 48);    /* 1.5 */
    assert_int_equal(capacity(8, 2, 0, 129, MOEC_EC_PAD), 39);    /* 1.2 */
    assert_int_equal(capacity(64, 8, 0, 1280, MOEC_EC_PAD), 176); /* 1.1 */
}

/* A workspace for T tokens does for any number of real ones, although AUTO's
 * factor falls where tokens grow. */
static void needs_no_more_workspace_for_fewer_real_tokens(void **state)
{
    float logits[200 * 8];

    (void)state;
    for (uint32_t i = 0; i < 200 * 8; i++)
        logits[i] = (float)(i * 2654435761u >> 20);
    for (uint32_t threads = 1; threads <= 5; threads++) {
        struct rig g = {0};

        assert_true(open_isa(&g.k, MOEC_ISA_AUTO, threads));
        for (uint32_t n = 1; n <= 200; n += n < 20 || n > 120 ? 1 : 33) {
            for (int fill = 0; fill <= MOEC_EC_BALANCED; fill++) {
                moec_route_config c = MOEC_ROUTE_CONFIG_INIT;
                uint64_t bytes;

                c.n_experts = 8;
                c.top_k = 2;
                c.ec.mode = MOEC_EC_ON;
                c.ec.fill = (moec_ec_fill)fill;
                set_up(&g, &c, 200);
                g.in.logits = logits;
                g.in.n_valid = n;
                bytes = (g.ws_bytes + 127) & ~UINT64_C(63);
                memset((char *)g.ws + g.ws_bytes, 0x77, bytes - g.ws_bytes);
                route(&g);
                for (uint64_t i = g.ws_bytes; i < bytes; i++)
                    assert_int_equal(((unsigned char *)g.ws)[i], 0x77);
                tear_down(&g);
            }
        }
        moec_kernels_close(g.k);
    }
}

/* ---------------------------------------------------------- identities */

static void fill_random(float *v, uint32_t n, uint32_t seed)
{
    uint64_t x = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;

    for (uint32_t i = 0; i < n; i++) {
        x = x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        v[i] = (float)(x >> 40) / 4194304.0f - 2.0f;
    }
}

static void plain_and_ec(struct rig *g, moec_route_config *c, uint32_t n,
                         const float *logits)
{
    struct rig plain = {.k = g->k};
    moec_ec_config ec = c->ec;

    c->ec.mode = MOEC_EC_OFF;
    set_up(&plain, c, n);
    c->ec = ec;
    set_up(g, c, n);
    plain.in.logits = g->in.logits = logits;
    route(&plain);
    route(g);
    assert_int_equal(plain.stats.on, 0);
    assert_memory_equal(plain.out.ids, g->out.ids, (size_t)n * c->top_k * 4);
    assert_memory_equal(plain.out.weights, g->out.weights,
                        (size_t)n * c->top_k * 4);
    tear_down(&plain);
}

/* Also where no expert is fuller than its capacity: then every mode that does
 * more work comes to the same. */
static void is_plain_top_k_where_all_have_room(void **state)
{
    static float logits[70 * 32];

    (void)state;
    fill_random(logits, 70 * 32, 5);
    logits[7] = NAN;
    for (int fill = 0; fill <= MOEC_EC_BALANCED; fill++)
        for (uint32_t n = 1; n <= 70; n += 23)
            for (uint32_t groups = 1; groups <= 4; groups += 3) {
                moec_route_config c = MOEC_ROUTE_CONFIG_INIT;
                struct rig g = {0};

                assert_true(open_isa(&g.k, MOEC_ISA_AUTO, 1));
                c.n_experts = 32;
                c.top_k = 4;
                c.n_group = groups;
                c.topk_group = 2;
                c.norm = MOEC_NORM_SUM;
                c.ec.mode = MOEC_EC_ON;
                c.ec.fill = (moec_ec_fill)fill;
                c.ec.capacity_ppm = n == 1 ? 1 : 8000000;
                plain_and_ec(&g, &c, n, logits);
                assert_int_equal(g.stats.on, 1);
                assert_int_equal(g.stats.capacity, n);
                assert_int_equal(g.stats.fallback_tokens, 0);
                tear_down(&g);
                moec_kernels_close(g.k);
            }
}

/* -------------------------------------------------------------- policy */

/* All tokens to the same experts, or each to its own. */
static float decide(struct rig *g, uint32_t n, bool skewed)
{
    float logits[200 * 8];

    for (uint32_t t = 0; t < n; t++)
        for (uint32_t e = 0; e < 8; e++)
            logits[t * 8 + e] = (float)((skewed ? e : (e + t) % 8) + 1);
    g->in.n_tokens = g->in.n_valid = n;
    g->in.logits = logits;
    route(g);
    return g->in.ec_state->imbalance;
}

static void turns_on_and_off_by_the_imbalance(void **state)
{
    moec_route_config c = MOEC_ROUTE_CONFIG_INIT;
    moec_ec_state memory = {0};
    struct rig g = {0};
    float first, v;

    (void)state;
    assert_true(open_isa(&g.k, MOEC_ISA_AUTO, 1));
    c.n_experts = 8;
    c.top_k = 2;
    c.ec.mode = MOEC_EC_AUTO;
    set_up(&g, &c, 200);
    g.in.ec_state = &memory;
    decide(&g, 31, true); /* too few: not even measured */
    assert_int_equal(g.stats.on, 0);
    assert_int_equal(memory.seen, 0);
    decide(&g, 129, false); /* many: always */
    assert_int_equal(g.stats.on, 1);
    assert_int_equal(memory.seen, 0);
    decide(&g, 32, false); /* balanced */
    assert_int_equal(g.stats.on, 0);
    assert_true(memory.imbalance == 0.0f);
    /* Loads 64 64 0 ...: deviation / mean is sqrt(3), a tenth of it each. */
    v = decide(&g, 64, true);
    assert_int_equal(g.stats.on, 0);
    assert_true(fabsf(v - 0.1f * sqrtf(3.0f)) < 1e-6f);
    v = decide(&g, 128, true);
    assert_int_equal(g.stats.on, 1);
    assert_int_equal(memory.seen, 3);
    assert_true(fabsf(v - 0.19f * sqrtf(3.0f)) < 1e-6f);
    /* Down again: 0.329 * 0.9^n is under 0.20 after 5, under 0.15 after 8. */
    for (uint32_t i = 1; i <= 8; i++) {
        decide(&g, 64, false);
        assert_int_equal(g.stats.on, i < 8);
    }
    tear_down(&g);
    /* The first measurement counts in full. */
    memset(&memory, 0, sizeof(memory));
    c.ec.threshold = 1.0f;
    c.ec.min_tokens = 10;
    c.ec.max_tokens = 20;
    set_up(&g, &c, 200);
    g.in.ec_state = &memory;
    first = decide(&g, 10, true);
    assert_true(fabsf(first - sqrtf(3.0f)) < 1e-6f);
    assert_int_equal(g.stats.on, 1);
    tear_down(&g);
    moec_kernels_close(g.k);
}

/* ------------------------------------------------------------ the rest */

static void counts_what_it_did(void **state)
{
    /* Three tokens, all want expert 0, then 1; C = 1 (hard) or 2. */
    static const float logits[3 * 4] = {9, 5, 1, 0, 8, 4, 1, 0, 7, 3, 1, 0};
    moec_route_config c = MOEC_ROUTE_CONFIG_INIT;
    static const moec_ec_stats want[] = {
        {1, 2, 1, 1, 0}, {1, 2, 1, 1, 0}, {1, 2, 1, 0, 2}, {1, 2, 0, 0, 0}};

    (void)state;
    c.n_experts = 4;
    c.top_k = 2;
    c.score = MOEC_SCORE_LOGIT;
    c.ec.mode = MOEC_EC_ON;
    c.ec.capacity_ppm = 1000000;
    for (int fill = 0; fill <= MOEC_EC_BALANCED; fill++) {
        struct rig g = {0};

        assert_true(open_isa(&g.k, MOEC_ISA_AUTO, 1));
        c.ec.fill = (moec_ec_fill)fill;
        set_up(&g, &c, 3);
        g.in.logits = logits;
        route(&g);
        /* Experts 2 and 3 take tokens 0 and 1, too: token 2 is left out. */
        assert_memory_equal(&g.stats, &want[fill], sizeof(g.stats));
        tear_down(&g);
        moec_kernels_close(g.k);
    }
}

static moec_status try_route(moec_route_config c, moec_ec_state *ec_state,
                             const int32_t *forced, uint64_t bytes,
                             moec_error *err)
{
    float logits[4] = {1, 2, 3, 4}, weights[2];
    moec_route_in in = MOEC_ROUTE_IN_INIT;
    moec_route_out out = {.struct_bytes = sizeof(out)};
    int32_t ids[2];
    moec_kernels *k;
    moec_router *r = NULL;
    void *ws = aligned(1 << 16);
    moec_status st;

    assert_true(open_isa(&k, MOEC_ISA_AUTO, 1));
    in.n_tokens = in.n_valid = 1;
    in.logits = logits;
    in.ec_state = ec_state;
    in.forced_ids = forced;
    out.ids = ids;
    out.weights = weights;
    st = moec_router_create(&r, k, &c, err);
    if (st == MOEC_OK)
        st = moec_route(r, &in, &out, ws, bytes, err);
    moec_router_destroy(r);
    moec_kernels_close(k);
    free(ws);
    return st;
}

static void refuses_what_it_does_not_do(void **state)
{
    moec_route_config c = MOEC_ROUTE_CONFIG_INIT, bad;
    moec_error err = MOEC_ERROR_INIT;
    const int32_t forced[2] = {0, 1};
    moec_ec_state memory = {0};

    (void)state;
    c.n_experts = 4;
    c.top_k = 2;
    c.ec.mode = MOEC_EC_AUTO;
    assert_int_equal(try_route(c, &memory, NULL, 1 << 16, &err), MOEC_OK);
    assert_int_equal(try_route(c, NULL, NULL, 1 << 16, &err), MOEC_E_ARG);
    assert_string_equal(err.text, "ec.mode auto needs ec_state");
    err = (moec_error)MOEC_ERROR_INIT;
    assert_int_equal(try_route(c, &memory, NULL, 64, &err), MOEC_E_ARG);
    assert_non_null(strstr(err.text, "bytes of workspace, there are 64"));
    assert_int_equal(try_route(c, &memory, forced, 1 << 16, NULL),
                     MOEC_E_UNSUPPORTED);
    bad = c;
    bad.n_experts = 3;
    bad.n_zero = 1;
    assert_int_equal(try_route(bad, &memory, NULL, 1 << 16, NULL),
                     MOEC_E_UNSUPPORTED);
    bad = c;
    bad.choice = MOEC_CHOICE_SPARSE_MIXER;
    assert_int_equal(try_route(bad, &memory, NULL, 1 << 16, NULL),
                     MOEC_E_UNSUPPORTED);
    bad = c;
    bad.ec.threshold = 0.1f; /* below the 0.15 that 0 means */
    assert_int_equal(try_route(bad, &memory, NULL, 1 << 16, NULL), MOEC_E_ARG);
    bad.ec.threshold_off = NAN;
    assert_int_equal(try_route(bad, &memory, NULL, 1 << 16, NULL), MOEC_E_ARG);
    bad = c;
    bad.ec.ema = 1.5f;
    assert_int_equal(try_route(bad, &memory, NULL, 1 << 16, NULL), MOEC_E_ARG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gives_the_vectors),
        cmocka_unit_test(computes_capacity_exactly),
        cmocka_unit_test(picks_the_factor_by_experts_and_tokens),
        cmocka_unit_test(needs_no_more_workspace_for_fewer_real_tokens),
        cmocka_unit_test(is_plain_top_k_where_all_have_room),
        cmocka_unit_test(turns_on_and_off_by_the_imbalance),
        cmocka_unit_test(counts_what_it_did),
        cmocka_unit_test(refuses_what_it_does_not_do),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
