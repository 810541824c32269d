/* SPDX-License-Identifier: Apache-2.0
 *
 * Expert Choice against references that know nothing of its lists, floors and
 * heaps: admission by sorting whole columns, and the stable assignment three
 * ways: the walk over all sorted pairs, deferred acceptance in random order,
 * and a search for pairs that would rather have each other. The keys are the
 * scalar back end's. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ec.h"

static uint64_t rng_state = 1;

static uint32_t rng(void)
{
    rng_state = rng_state * UINT64_C(6364136223846793005) + 1;
    return (uint32_t)(rng_state >> 33);
}

static float gauss(void)
{
    float v = 0.0f;

    for (int i = 0; i < 12; i++)
        v += (float)rng() / 2147483648.0f;
    return v - 6.0f;
}

struct model {
    uint32_t n, e, k, capacity;
    uint32_t *rows, *cols; /* [n][e] */
};

/* Pair a of token t before pair b of it, in the token's order. */
static bool token_prefers(const struct model *m, uint32_t t, uint32_t a,
                          uint32_t b)
{
    const uint32_t *rows = m->rows + (size_t)t * m->e;

    return rows[a] != rows[b] ? rows[a] > rows[b] : a < b;
}

static bool expert_prefers(const struct model *m, uint32_t e, uint32_t a,
                           uint32_t b)
{
    uint32_t ka = m->cols[(size_t)a * m->e + e];
    uint32_t kb = m->cols[(size_t)b * m->e + e];

    return ka != kb ? ka > kb : a < b;
}

/* ids of row t: its best k of those in `in`; returns how many. */
static uint32_t best_of(const struct model *m, uint32_t t, const uint8_t *in,
                        int32_t *ids)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < m->k; i++) {
        uint32_t best = m->e;

        for (uint32_t e = 0; e < m->e; e++) {
            bool taken = !in[e] || m->rows[(size_t)t * m->e + e] == 0;

            for (uint32_t j = 0; j < n; j++)
                taken |= ids[j] == (int32_t)e;
            if (!taken && (best == m->e || token_prefers(m, t, e, best)))
                best = e;
        }
        if (best == m->e)
            break;
        ids[n++] = (int32_t)best;
    }
    for (uint32_t i = n; i < m->k; i++)
        ids[i] = -1;
    return n;
}

/* ----------------------------------------------------------- admission */

static const struct model *sorting;
static uint32_t sorting_expert;

static int by_column(const void *a, const void *b)
{
    uint32_t x, y;

    memcpy(&x, a, 4);
    memcpy(&y, b, 4);
    return expert_prefers(sorting, sorting_expert, x, y) ? -1 : 1;
}

static void admission(const struct model *m, moec_ec_fill fill, int32_t *ids)
{
    uint8_t *in = calloc(m->n, m->e), *all = malloc(m->e);
    uint32_t *tokens = malloc(m->n * sizeof(*tokens));

    assert_non_null(in);
    assert_non_null(all);
    assert_non_null(tokens);
    memset(all, 1, m->e);
    sorting = m;
    for (uint32_t e = 0; e < m->e; e++) {
        uint32_t n = 0;

        for (uint32_t t = 0; t < m->n; t++)
            if (m->cols[(size_t)t * m->e + e] != 0)
                tokens[n++] = t;
        sorting_expert = e;
        qsort(tokens, n, sizeof(*tokens), by_column);
        for (uint32_t i = 0; i < n && i < m->capacity; i++)
            in[(size_t)tokens[i] * m->e + e] = 1;
    }
    for (uint32_t t = 0; t < m->n; t++) {
        uint8_t *mine = in + (size_t)t * m->e;
        int32_t *row = ids + (size_t)t * m->k;
        uint32_t n = best_of(m, t, mine, row);

        if (n == m->k || fill == MOEC_EC_PAD)
            continue;
        if (fill == MOEC_EC_FILL_MISSING) {
            int32_t plain[MOEC_ROUTE_K_MAX];
            uint32_t n_plain = best_of(m, t, all, plain);

            for (uint32_t i = 0; i < n_plain && n < m->k; i++) {
                n += !mine[plain[i]];
                mine[plain[i]] = 1;
            }
            (void)best_of(m, t, mine, row);
        } else {
            (void)best_of(m, t, all, row);
        }
    }
    free(in);
    free(all);
    free(tokens);
}

/* -------------------------------------------------- the stable assignment */

static int by_walk(const void *a, const void *b)
{
    const struct model *m = sorting;
    uint32_t x[2], y[2], kx, ky;

    memcpy(x, a, 8);
    memcpy(y, b, 8);
    kx = m->cols[(size_t)x[0] * m->e + x[1]];
    ky = m->cols[(size_t)y[0] * m->e + y[1]];
    if (kx != ky)
        return kx > ky ? -1 : 1;
    if (x[0] != y[0])
        return x[0] < y[0] ? -1 : 1;
    return token_prefers(m, x[0], x[1], y[1]) ? -1 : 1;
}

static void walk(const struct model *m, uint8_t *in)
{
    uint32_t(*pairs)[2] = malloc((size_t)m->n * m->e * sizeof(*pairs));
    uint32_t *tokens = calloc(m->n, 4), *experts = calloc(m->e, 4);
    size_t n = 0;

    assert_non_null(pairs);
    assert_non_null(tokens);
    assert_non_null(experts);
    for (uint32_t t = 0; t < m->n; t++)
        for (uint32_t e = 0; e < m->e; e++)
            if (m->cols[(size_t)t * m->e + e] != 0) {
                pairs[n][0] = t;
                pairs[n++][1] = e;
            }
    sorting = m;
    qsort(pairs, n, sizeof(*pairs), by_walk);
    for (size_t i = 0; i < n; i++) {
        uint32_t t = pairs[i][0], e = pairs[i][1];

        if (tokens[t] == m->k || experts[e] == m->capacity)
            continue;
        tokens[t]++;
        experts[e]++;
        in[(size_t)t * m->e + e] = 1;
    }
    free(pairs);
    free(tokens);
    free(experts);
}

/* A random token that lacks an expert proposes to its best one not yet asked;
 * a full expert keeps the better of the new one and its worst. */
static void deferred_acceptance(const struct model *m, uint8_t *in)
{
    uint8_t *asked = calloc(m->n, m->e), *done = calloc(m->n, 1);
    uint32_t n_done = 0;

    assert_non_null(asked);
    assert_non_null(done);
    while (n_done < m->n) {
        uint32_t t = rng() % m->n, best = m->e, held = 0, n = 0, worst = m->n;

        while (done[t])
            t = (t + 1) % m->n;
        for (uint32_t e = 0; e < m->e; e++) {
            size_t at = (size_t)t * m->e + e;

            held += in[at];
            if (!asked[at] && m->rows[at] != 0 &&
                (best == m->e || token_prefers(m, t, e, best)))
                best = e;
        }
        if (held == m->k || best == m->e) {
            done[t] = 1;
            n_done++;
            continue;
        }
        asked[(size_t)t * m->e + best] = 1;
        in[(size_t)t * m->e + best] = 1;
        for (uint32_t u = 0; u < m->n; u++)
            if (in[(size_t)u * m->e + best]) {
                n++;
                if (worst == m->n || expert_prefers(m, best, worst, u))
                    worst = u;
            }
        if (n > m->capacity) {
            in[(size_t)worst * m->e + best] = 0;
            n_done -= done[worst];
            done[worst] = 0;
        }
    }
    free(asked);
    free(done);
}

/* No token and expert that both have room, or would both give up another. */
static void has_no_blocking_pair(const struct model *m, const uint8_t *in)
{
    for (uint32_t t = 0; t < m->n; t++)
        for (uint32_t e = 0; e < m->e; e++) {
            uint32_t held = 0, n = 0;
            bool token_wants = false, expert_wants = false;

            if (m->rows[(size_t)t * m->e + e] == 0 || in[(size_t)t * m->e + e])
                continue;
            for (uint32_t f = 0; f < m->e; f++)
                if (in[(size_t)t * m->e + f]) {
                    held++;
                    token_wants |= token_prefers(m, t, e, f);
                }
            for (uint32_t u = 0; u < m->n; u++)
                if (in[(size_t)u * m->e + e]) {
                    n++;
                    expert_wants |= expert_prefers(m, e, t, u);
                }
            assert_true(held <= m->k && n <= m->capacity);
            assert_false((held < m->k || token_wants) &&
                         (n < m->capacity || expert_wants));
        }
}

static void stable(const struct model *m, int32_t *ids, bool three_ways)
{
    uint8_t *in = calloc(m->n, m->e), *other = calloc(m->n, m->e);

    assert_non_null(in);
    assert_non_null(other);
    walk(m, in);
    if (three_ways) {
        deferred_acceptance(m, other);
        assert_memory_equal(in, other, (size_t)m->n * m->e);
        has_no_blocking_pair(m, in);
    }
    for (uint32_t t = 0; t < m->n; t++)
        (void)best_of(m, t, in + (size_t)t * m->e, ids + (size_t)t * m->k);
    free(in);
    free(other);
}

/* --------------------------------------------------------------- cases */

static moec_kernels *kernels[8];
static uint32_t n_kernels;

static int open_all(void **state)
{
    (void)state;
    for (int isa = MOEC_ISA_SCALAR; isa <= MOEC_ISA_AVX512; isa++)
        for (uint32_t threads = 1; threads <= 3; threads += 2) {
            moec_kernels_opts o = MOEC_KERNELS_OPTS_INIT;

            o.isa = (moec_isa)isa;
            o.n_threads = threads;
            if (moec_kernels_open(&kernels[n_kernels], &o, NULL) == MOEC_OK)
                n_kernels++;
        }
    return n_kernels == 0;
}

static int close_all(void **state)
{
    (void)state;
    while (n_kernels > 0)
        moec_kernels_close(kernels[--n_kernels]);
    return 0;
}

static void *aligned(uint64_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 127) & ~UINT64_C(63));

    assert_non_null(p);
    memset(p, 0xa5, (bytes + 127) & ~UINT64_C(63));
    return p;
}

static moec_router *router(const moec_kernels *k, const moec_route_config *c)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_router *r = NULL;

    if (moec_router_create(&r, k, c, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    return r;
}

/* The scalar back end's keys. */
static struct model model_of(const moec_route_config *c,
                             const moec_route_in *in)
{
    moec_router *r = router(kernels[0], c);
    struct model m = {.n = in->n_valid, .e = c->n_experts, .k = c->top_k};
    size_t bytes = (size_t)m.n * m.e * 4;

    m.capacity = moec_ec_capacity(c, m.n);
    m.rows = aligned(bytes);
    m.cols = aligned(bytes);
    r->fns.keys(r, in, 0, m.n, m.rows, m.e);
    memcpy(m.cols, m.rows, bytes);
    for (uint32_t t = 0; t < m.n && r->fns.cols && !in->bias; t++) {
        uint32_t cols[MOEC_ROUTE_E_MAX];

        r->fns.cols(r, in, t, 1, cols, MOEC_ROUTE_E_MAX, NULL);
        memcpy(m.cols + (size_t)t * m.e, cols, m.e * sizeof(*cols));
    }
    moec_router_destroy(r);
    return m;
}

static void compare(const moec_kernels *k, const moec_route_config *c,
                    const moec_route_in *in, const int32_t *want)
{
    moec_router *r = router(k, c);
    uint64_t cells = (uint64_t)in->n_tokens * c->top_k;
    uint64_t bytes = moec_route_workspace_bytes(r, in->n_tokens);
    moec_route_out out = {.struct_bytes = sizeof(out)};
    moec_error err = MOEC_ERROR_INIT;
    moec_ec_stats stats;
    uint64_t dropped = 0;
    void *ws = aligned(bytes);

    out.ids = aligned(cells * 4);
    out.weights = aligned(cells * 4);
    out.ec = &stats;
    if (moec_route(r, in, &out, ws, bytes, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    for (uint64_t i = 0; i < cells; i++) {
        bool real = i < (uint64_t)in->n_valid * c->top_k;

        if (out.ids[i] != (real ? want[i] : -1))
            fail_msg("isa %d threads %u T %u n %u E %u K %u fill %d ppm %u "
                     "row %u column %u: %d, not %d",
                     (int)moec_kernels_isa(k), moec_kernels_n_threads(k),
                     in->n_tokens, in->n_valid, c->n_experts, c->top_k,
                     (int)c->ec.fill, c->ec.capacity_ppm,
                     (unsigned)(i / c->top_k), (unsigned)(i % c->top_k),
                     out.ids[i], real ? want[i] : -1);
        if (out.ids[i] < 0)
            assert_true(out.weights[i] == 0.0f);
        dropped += real && out.ids[i] < 0;
    }
    assert_int_equal(stats.dropped, dropped);
    free(ws);
    free(out.ids);
    free(out.weights);
    moec_router_destroy(r);
}

enum kind { SMOOTH, TIES, HOLES, SKEWED, EQUAL, N_KINDS };

static void draw(float *v, uint32_t n, uint32_t e, enum kind kind)
{
    for (uint32_t t = 0; t < n; t++) {
        float level = kind == SKEWED ? 3.0f * gauss() : 0.0f;

        for (uint32_t j = 0; j < e; j++) {
            float x = gauss() + level;

            if (kind == TIES)
                x = roundf(2.0f * x) / 2.0f;
            if (kind == HOLES && rng() % 3 == 0)
                x = rng() % 2 ? NAN : -INFINITY;
            if (kind == HOLES && rng() % 50 == 0)
                x = INFINITY;
            if (kind == SKEWED)
                x += 4.0f * (float)j / (float)e;
            if (kind == EQUAL)
                x = 1.0f;
            v[(size_t)t * e + j] = x;
        }
    }
    for (uint32_t j = 0; kind == HOLES && j < e; j++)
        v[(size_t)(n / 2) * e + j] = NAN;
}

static void run_case(uint32_t n, uint32_t e, uint32_t k, uint32_t ppm,
                     enum kind kind, bool three_ways)
{
    moec_route_config c = MOEC_ROUTE_CONFIG_INIT;
    moec_route_in in = MOEC_ROUTE_IN_INIT;
    uint32_t tail = rng() % 4;
    float *logits = aligned((uint64_t)(n + tail) * e * 4);
    float *bias = aligned((uint64_t)e * 4);
    int32_t *want = aligned((uint64_t)n * k * 4);

    draw(logits, n + tail, e, kind);
    draw(bias, 1, e, SMOOTH);
    in.n_tokens = n + tail;
    in.n_valid = n;
    in.logits = logits;
    in.bias = rng() % 3 == 0 ? bias : NULL;
    c.n_experts = e;
    c.top_k = k;
    c.score = (moec_score)(rng() % 4);
    c.n_group = e % 4 == 0 && rng() % 3 == 0 ? 4 : 1;
    c.topk_group = 3;
    if (c.n_group > 1 && k > e / 4 * 3)
        c.n_group = 1;
    c.norm = MOEC_NORM_SUM;
    c.ec.mode = MOEC_EC_ON;
    c.ec.capacity_ppm = ppm;
    for (int fill = 0; fill <= MOEC_EC_BALANCED; fill++) {
        struct model m;

        c.ec.fill = (moec_ec_fill)fill;
        m = model_of(&c, &in);
        if (fill == MOEC_EC_BALANCED)
            stable(&m, want, three_ways);
        else
            admission(&m, c.ec.fill, want);
        for (uint32_t i = 0; i < n_kernels; i++)
            compare(kernels[i], &c, &in, want);
        free(m.rows);
        free(m.cols);
    }
    free(logits);
    free(bias);
    free(want);
}

static void equals_the_references_on_small_cases(void **state)
{
    static const uint32_t ppms[] = {1000000, 1030000, 1250000, 300000, 0};

    (void)state;
    for (uint32_t i = 0; i < 300; i++) {
        uint32_t e = 1 + rng() % 24, k = 1 + rng() % (e < 8 ? e : 8);

        run_case(1 + rng() % 40, e, k, ppms[rng() % 5],
                 (enum kind)(i % N_KINDS), true);
    }
}

/* Sizes at which floors are sampled, lists shrink and vectors have tails. */
static void equals_the_references_on_large_cases(void **state)
{
    static const uint32_t sizes[][4] = {
        {1100, 40, 3, 1250000},  {1024, 64, 2, 1000000},
        {1500, 17, 1, 1100000},  {2100, 33, 4, 0},
        {1031, 100, 8, 1030000}, {1200, 128, 22, 1250000},
        {400, 64, 64, 900000},   {130, 300, 40, 1250000},
    };

    (void)state;
    for (uint32_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        run_case(sizes[i][0], sizes[i][1], sizes[i][2], sizes[i][3],
                 (enum kind)(i % N_KINDS), false);
}

/* All tokens that an expert likes are in the sample, and fewer than C of them:
 * its floor is too high, and it must be found out. */
static void finds_out_when_the_sample_was_wrong(void **state)
{
    const uint32_t n = 2048, e = 32;
    float *logits = aligned((uint64_t)n * e * 4);
    moec_route_config c = MOEC_ROUTE_CONFIG_INIT;
    moec_route_in in = MOEC_ROUTE_IN_INIT;
    int32_t *want = aligned((uint64_t)n * 2 * 4);
    struct model m;

    (void)state;
    c.n_experts = e;
    c.top_k = 2;
    c.score = MOEC_SCORE_LOGIT;
    c.ec.mode = MOEC_EC_ON;
    c.ec.capacity_ppm = 1250000;
    in.n_tokens = in.n_valid = n;
    in.logits = logits;
    /* ec_admit.c, sample_row(): 256 of 2048 rows, one of each eight. */
    draw(logits, n, e, SMOOTH);
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t row = i * 8 + ((i * UINT32_C(2654435761)) >> 16) % 8;

        for (uint32_t j = 0; j < e; j += 3)
            logits[row * e + j] += i % 2 ? 0.0f : 20.0f;
    }
    m = model_of(&c, &in);
    admission(&m, MOEC_EC_FILL_MISSING, want);
    for (uint32_t i = 0; i < n_kernels; i++)
        compare(kernels[i], &c, &in, want);
    for (uint32_t i = 0; i < n; i++) /* and only tokens that it does not */
        for (uint32_t j = 0; j < e; j += 3)
            logits[i * e + j] = 5.0f - logits[i * e + j];
    free(m.rows);
    free(m.cols);
    m = model_of(&c, &in);
    admission(&m, MOEC_EC_FILL_MISSING, want);
    for (uint32_t i = 0; i < n_kernels; i++)
        compare(kernels[i], &c, &in, want);
    free(m.rows);
    free(m.cols);
    free(logits);
    free(want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_the_references_on_small_cases),
        cmocka_unit_test(equals_the_references_on_large_cases),
        cmocka_unit_test(finds_out_when_the_sample_was_wrong),
    };

    return cmocka_run_group_tests(tests, open_all, close_all);
}
