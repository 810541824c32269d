/* SPDX-License-Identifier: Apache-2.0
 *
 * Every wider back end against the scalar one: random configurations, sizes
 * and logits with ties, NaN, infinities and -0; inputs and outputs end at a
 * guard page; ids and weights must be equal bit for bit, however the rows are
 * split over calls and threads. Seeds are fixed: a failure repeats. */

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "route.h"

static uint64_t seed;

static uint32_t draw(uint32_t n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)(seed >> 32) % n;
}

static float uniform(void)
{
    return (float)draw(1u << 24) / (float)(1u << 24);
}

/* `bytes` that end where a page begins that cannot be touched. */
struct guarded {
    void *p;
    void *map;
    size_t map_bytes;
};

static struct guarded guard(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t body = (bytes + page) / page * page;
    struct guarded g = {.map_bytes = body + page};

    g.map = mmap(NULL, g.map_bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(g.map != MAP_FAILED);
    assert_int_equal(mprotect((char *)g.map + body, page, PROT_NONE), 0);
    memset(g.map, 0x5a, body);
    g.p = (char *)g.map + body - bytes;
    return g;
}

static void unguard(struct guarded *g)
{
    munmap(g->map, g->map_bytes);
}

/* One random call. */
struct trial {
    moec_route_config c;
    moec_route_in in;
    uint32_t n, cols, stride;
    struct guarded logits, bias, scale, gate, forced, table, tokens;
};

static float odd_number(void)
{
    switch (draw(7)) {
    case 0:
        return NAN;
    case 1:
        return INFINITY;
    case 2:
        return -INFINITY;
    case 3:
        return -0.0f;
    case 4:
        return FLT_MAX;
    case 5:
        return -FLT_MAX;
    default:
        return 0.0f;
    }
}

/* One logit of a row of kind `kind`, a share of odd ones in 256. */
static float logit(uint32_t kind, uint32_t odd, uint32_t i)
{
    float v = (uniform() + uniform() + uniform() + uniform() - 2.0f) * 3.0f;

    if (draw(256) < odd)
        return odd_number();
    switch (kind) {
    case 0: /* many ties */
        return rintf(v);
    case 1: /* one long tie */
        return 1.0f;
    case 2: /* ascending: the lanes say least about the order */
        return (float)i * 0.125f;
    case 3: /* beyond every exponential */
        return v * 100.0f;
    case 4: /* the best share a lane */
        return i % 16 == 3 ? v + 10.0f : v;
    default:
        return v;
    }
}

static uint16_t to_bf16(float v)
{
    uint32_t u;

    memcpy(&u, &v, 4);
    return (uint16_t)(u >> 16 | (v != v ? 0x40u : 0u));
}

/* Small integers and halves, NaN and infinities: what the trials need. */
static uint16_t to_f16(float v)
{
    uint32_t u, exp;

    memcpy(&u, &v, 4);
    exp = u >> 23 & 255u;
    if (v != v)
        return 0x7e00u;
    if (exp < 113) /* denormal in f16: let it be a zero of its sign */
        return (uint16_t)(u >> 16 & 0x8000u);
    if (exp > 142)
        return (uint16_t)((u >> 16 & 0x8000u) | 0x7c00u);
    return (uint16_t)((u >> 16 & 0x8000u) | (exp - 112) << 10 |
                      (u >> 13 & 0x3ffu));
}

static void make_logits(struct trial *t)
{
    uint32_t rows = t->in.n_tokens, odd = draw(3) ? 0 : 1 + draw(40);
    size_t cells, width = t->in.logits_dtype == MOEC_DTYPE_F32 ? 4 : 2;

    t->stride = t->cols + (draw(2) ? draw(20) : 0);
    t->in.logits_stride = t->stride == t->cols && draw(2) ? 0 : t->stride;
    cells = rows ? (size_t)(rows - 1) * t->stride + t->cols : 0;
    t->logits = guard(cells * width);
    t->in.logits = t->logits.p;
    for (uint32_t r = 0; r < rows; r++) {
        uint32_t kind = draw(10);
        uint32_t all_odd = draw(50) == 0 ? 256 : odd;

        for (uint32_t i = 0; i < t->cols; i++) {
            float v = logit(kind, all_odd, i);
            size_t at = (size_t)r * t->stride + i;

            if (t->in.logits_dtype == MOEC_DTYPE_F32)
                ((float *)t->logits.p)[at] = v;
            else
                ((uint16_t *)t->logits.p)[at] =
                    t->in.logits_dtype == MOEC_DTYPE_BF16 ? to_bf16(v)
                                                          : to_f16(v);
        }
    }
}

static uint32_t draw_experts(void)
{
    static const uint32_t sizes[] = {60,  64,  100, 127, 128, 129,  130,
                                     160, 256, 384, 512, 513, 1000, 4096};

    if (draw(3))
        return 1 + draw(40);
    return sizes[draw(draw(4) ? 11 : 14)];
}

static void draw_groups(moec_route_config *c)
{
    uint32_t n = 1 + draw(draw(8) ? 8 : 40);

    if (c->n_zero || draw(2) || n == 1)
        return;
    c->n_experts = (c->n_experts + n - 1) / n * n;
    while (c->n_experts > 4096)
        c->n_experts -= n;
    c->n_group = n;
    c->topk_group = 1 + draw(n);
    if (c->n_experts > n && draw(2))
        c->group_score = MOEC_GROUP_TOP2;
}

static void draw_config(struct trial *t)
{
    static const float ps[] = {1.0f, 2.0f};
    moec_route_config *c = &t->c;
    uint32_t most;

    *c = (moec_route_config)MOEC_ROUTE_CONFIG_INIT;
    c->n_experts = draw_experts();
    if (draw(4) == 0)
        c->n_zero = draw(20);
    if (c->n_experts + c->n_zero > 4096)
        c->n_zero = 0;
    draw_groups(c);
    most = c->n_experts + c->n_zero;
    if (c->n_group > 1)
        most = c->n_experts / c->n_group * c->topk_group;
    most = most < 64 ? most : 64;
    c->top_k = 1 + draw(draw(3) && most > 8 ? 8 : most);
    c->n_shared = draw(3) ? 0 : draw(4);
    c->score = (moec_score)draw(4);
    c->norm = (moec_route_norm)draw(6);
    c->norm_arg = ps[draw(2)];
    if (c->norm == MOEC_NORM_FLOOR)
        c->norm_arg = draw(2) ? 1e-12f : 0.25f;
    if (draw(5) == 0)
        c->softcap = 5.0f;
    c->rsf = draw(2) ? 1.0f : 2.5f;
    c->rsf_on = (moec_rsf_on)draw(2);
    c->shared_kind = draw(2) ? MOEC_SHARED_PLAIN : MOEC_SHARED_SIGMOID;
    c->shared_ranks = draw(3);
    if (c->n_group <= 1 && draw(12) == 0)
        c->choice = MOEC_CHOICE_HASH;
    else if (c->n_group <= 1 && draw(12) == 0)
        c->choice = MOEC_CHOICE_SPARSE_MIXER;
    if (c->choice == MOEC_CHOICE_SPARSE_MIXER) {
        c->score = MOEC_SCORE_LOGIT;
        c->norm = MOEC_NORM_NONE;
    }
    if (c->norm == MOEC_NORM_JOINT) {
        c->score = MOEC_SCORE_SIGMOID;
        c->n_shared_logits = 1 + c->n_shared;
        c->shared_kind = MOEC_SHARED_ROUTER;
    }
    t->n = c->n_experts + c->n_zero;
    t->cols = t->n + c->n_shared_logits;
}

static void draw_extras(struct trial *t)
{
    const moec_route_config *c = &t->c;
    uint32_t rows = t->in.n_tokens;
    size_t cells = (size_t)rows * c->top_k;

    t->bias = guard(t->n * 4);
    t->scale = guard(c->n_experts * 4);
    t->gate = guard(rows * 4);
    t->forced = guard(cells * 4);
    t->tokens = guard(rows * 4);
    t->table = guard(7 * c->top_k * 4);
    for (uint32_t i = 0; i < t->n; i++)
        ((float *)t->bias.p)[i] =
            draw(200) ? rintf(uniform() * 64.0f) / 64.0f : odd_number();
    for (uint32_t i = 0; i < c->n_experts; i++)
        ((float *)t->scale.p)[i] = uniform() + 0.5f;
    for (uint32_t i = 0; i < rows; i++) {
        ((float *)t->gate.p)[i] = draw(9) ? uniform() - 0.5f : odd_number();
        ((int32_t *)t->tokens.p)[i] = (int32_t)draw(7);
    }
    for (size_t i = 0; i < cells; i++)
        ((int32_t *)t->forced.p)[i] = (int32_t)draw(t->n + 1) - 1;
    for (size_t i = 0; i < 7 * c->top_k; i++)
        ((int32_t *)t->table.p)[i] = (int32_t)draw(t->n + 1) - 1;
    if (draw(2) && c->choice != MOEC_CHOICE_SPARSE_MIXER)
        t->in.bias = t->bias.p;
    if (draw(6) == 0)
        t->in.expert_scale = t->scale.p;
    if (draw(12) == 0)
        t->in.forced_ids = t->forced.p;
    t->in.shared_gate = t->gate.p;
    t->in.tokens = t->tokens.p;
    t->in.hash_table = t->table.p;
    t->in.vocab = 7;
}

/* A bias that brings all columns of the first row to nearly one choice score:
 * only the exact sigmoid tells them apart. */
static void level_bias(struct trial *t)
{
    const float *x = t->logits.p;

    for (uint32_t i = 0; i < t->n; i++) {
        float s = 1.0f / (1.0f + expf(-x[i]));

        ((float *)t->bias.p)[i] = (draw(9) ? 0.75f : 0.7500001f) - s;
    }
}

static void trial_init(struct trial *t)
{
    static const moec_dtype dtypes[] = {MOEC_DTYPE_F32, MOEC_DTYPE_BF16,
                                        MOEC_DTYPE_F16};

    memset(t, 0, sizeof(*t));
    draw_config(t);
    t->in = (moec_route_in)MOEC_ROUTE_IN_INIT;
    t->in.n_tokens = draw(t->n > 600 ? 6 : 40);
    t->in.n_valid = draw(3) ? t->in.n_tokens : draw(t->in.n_tokens + 1);
    t->in.logits_dtype = dtypes[draw(2) ? 0 : draw(3)];
    make_logits(t);
    draw_extras(t);
    if (t->in.n_tokens && t->in.logits_dtype == MOEC_DTYPE_F32 && draw(4) == 0)
        level_bias(t);
}

static void trial_fini(struct trial *t)
{
    unguard(&t->logits);
    unguard(&t->bias);
    unguard(&t->scale);
    unguard(&t->gate);
    unguard(&t->forced);
    unguard(&t->table);
    unguard(&t->tokens);
}

static moec_router *router(const struct trial *t, const moec_kernels *k)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_router *r = NULL;

    if (moec_router_create(&r, k, &t->c, &err) != MOEC_OK)
        fail_msg("seed %llx: %s", (unsigned long long)seed, err.text);
    return r;
}

struct result {
    struct guarded ids, weights;
    size_t cells;
};

static struct result run(const struct trial *t, const moec_router *r)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_route_out out = {.struct_bytes = sizeof(out)};
    struct result x = {.cells = (size_t)t->in.n_tokens *
                                (t->c.top_k + t->c.n_shared)};

    x.ids = guard(x.cells * 4);
    x.weights = guard(x.cells * 4);
    out.ids = x.ids.p;
    out.weights = x.weights.p;
    if (moec_route(r, &t->in, &out, NULL, 0, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    return x;
}

static void result_fini(struct result *x)
{
    unguard(&x->ids);
    unguard(&x->weights);
}

static void same(const struct trial *t, const struct result *a,
                 const struct result *b, const char *what, unsigned number)
{
    uint32_t cols = t->c.top_k + t->c.n_shared;

    for (size_t i = 0; i < a->cells; i++) {
        int32_t x = ((int32_t *)a->ids.p)[i], y = ((int32_t *)b->ids.p)[i];
        float v = ((float *)a->weights.p)[i], w = ((float *)b->weights.p)[i];

        if (x == y && memcmp(&v, &w, 4) == 0)
            continue;
        fail_msg("trial %u, %s: row %zu column %zu: %d %.9g, scalar %d %.9g "
                 "(E %u Z %u K %u score %u choice %u norm %u groups %u/%u "
                 "top2 %u bias %u dtype %u cap %g)",
                 number, what, i / cols, i % cols, y, (double)w, x, (double)v,
                 t->c.n_experts, t->c.n_zero, t->c.top_k, (unsigned)t->c.score,
                 (unsigned)t->c.choice, (unsigned)t->c.norm, t->c.topk_group,
                 t->c.n_group, (unsigned)t->c.group_score, t->in.bias ? 1u : 0u,
                 (unsigned)t->in.logits_dtype, (double)t->c.softcap);
    }
}

/* Poison in front of what was written is still there. */
static void untouched_before(const struct guarded *g)
{
    const unsigned char *p = g->p;

    for (size_t n = 0; n < 64 && p > (const unsigned char *)g->map; n++)
        assert_int_equal(*--p, 0x5a);
}

/* keys and weights, which other files call. */
static void inner_functions_agree(const struct trial *t, const moec_router *s,
                                  const moec_router *r, unsigned number)
{
    uint32_t rows = t->in.n_valid, k = t->c.top_k, cols = s->n_columns;
    struct guarded a = guard((size_t)rows * t->n * 4);
    struct guarded b = guard((size_t)rows * t->n * 4);
    struct guarded ids = guard((size_t)rows * cols * 4);
    struct guarded v = guard((size_t)rows * cols * 4);
    struct guarded w = guard((size_t)rows * cols * 4);
    moec_row_scale *scales = calloc(2 * (size_t)rows + 2, sizeof(*scales));

    assert_non_null(scales);
    s->fns.keys(s, &t->in, 0, rows, a.p, t->n);
    r->fns.keys(r, &t->in, 0, rows, b.p, t->n);
    if (memcmp(a.p, b.p, (size_t)rows * t->n * 4) != 0)
        fail_msg("trial %u: keys differ", number);
    assert_int_equal(s->fns.cols != NULL, r->fns.cols != NULL);
    if (s->fns.cols && !t->in.bias) {
        uint32_t stride = (t->n + 15) / 16 * 16;
        struct guarded c = guard((size_t)rows * stride * 4);
        struct guarded d = guard((size_t)rows * stride * 4);

        s->fns.cols(s, &t->in, 0, rows, c.p, stride, scales);
        r->fns.cols(r, &t->in, 0, rows, d.p, stride, scales + rows);
        if (memcmp(c.p, d.p, (size_t)rows * stride * 4) != 0)
            fail_msg("trial %u: column keys differ", number);
        unguard(&c);
        unguard(&d);
        if (memcmp(scales, scales + rows, rows * sizeof(*scales)) != 0)
            fail_msg("trial %u: scales differ", number);
    }
    for (uint32_t row = 0; row < rows; row++) {
        uint32_t n = draw(k + 1);

        for (uint32_t i = 0; i < k; i++)
            ((int32_t *)ids.p)[row * cols + i] =
                i < n ? (int32_t)draw(t->n) : -1;
    }
    s->fns.weights(s, &t->in, 0, rows, ids.p, NULL, v.p);
    r->fns.weights(r, &t->in, 0, rows, ids.p,
                   s->fns.cols && !t->in.bias ? scales + rows : NULL, w.p);
    for (uint32_t i = 0; i < rows * cols; i++) {
        const float *x = v.p, *y = w.p;

        if (memcmp(x + i, y + i, 4) != 0)
            fail_msg("trial %u: weight %u of row %u is %.9g, scalar %.9g "
                     "(score %u norm %u bias %u)",
                     number, i % cols, i / cols, (double)y[i], (double)x[i],
                     (unsigned)t->c.score, (unsigned)t->c.norm,
                     t->in.bias ? 1u : 0u);
    }
    free(scales);
    unguard(&ids);
    unguard(&v);
    unguard(&w);
    unguard(&a);
    unguard(&b);
}

/* The rows one call at a time, by random ranges. */
static struct result run_split(const struct trial *t, const moec_router *r)
{
    struct result x = {.cells = (size_t)t->in.n_tokens * r->n_columns};

    x.ids = guard(x.cells * 4);
    x.weights = guard(x.cells * 4);
    for (uint32_t row = 0; row < t->in.n_tokens;) {
        uint32_t n = 1 + draw(t->in.n_tokens - row);
        size_t at = (size_t)row * r->n_columns;

        moec_route_rows(r, &t->in, row, n, (int32_t *)x.ids.p + at,
                        (float *)x.weights.p + at);
        row += n;
    }
    return x;
}

static moec_kernels *open_isa(moec_isa isa, uint32_t threads)
{
    moec_kernels_opts o = MOEC_KERNELS_OPTS_INIT;
    moec_kernels *k = NULL;

    o.isa = isa;
    o.n_threads = threads;
    if (moec_kernels_open(&k, &o, NULL) != MOEC_OK)
        return NULL;
    return k;
}

static void agrees(moec_isa isa, unsigned trials)
{
    moec_kernels *scalar = open_isa(MOEC_ISA_SCALAR, 1);
    moec_kernels *wide = open_isa(isa, 1);

    if (!wide) {
        moec_kernels_close(scalar);
        skip();
    }
    seed = 0x9e3779b97f4a7c15u;
    for (unsigned i = 0; i < trials; i++) {
        struct result a, b, c;
        moec_router *s, *r;
        struct trial t;

        trial_init(&t);
        s = router(&t, scalar);
        r = router(&t, wide);
        a = run(&t, s);
        b = run(&t, r);
        same(&t, &a, &b, moec_isa_name(isa), i);
        untouched_before(&b.ids);
        untouched_before(&b.weights);
        c = run_split(&t, r);
        same(&t, &a, &c, "split", i);
        inner_functions_agree(&t, s, r, i);
        result_fini(&a);
        result_fini(&b);
        result_fini(&c);
        moec_router_destroy(s);
        moec_router_destroy(r);
        trial_fini(&t);
    }
    moec_kernels_close(scalar);
    moec_kernels_close(wide);
}

static unsigned n_trials(void)
{
    const char *n = getenv("MOEC_ROUTE_TRIALS");

    return n ? (unsigned)strtoul(n, NULL, 10) : 1500;
}

static void avx2_equals_scalar(void **state)
{
    (void)state;
    agrees(MOEC_ISA_AVX2, n_trials());
}

static void avx512_equals_scalar(void **state)
{
    (void)state;
    agrees(MOEC_ISA_AVX512, n_trials());
}

static void threads_do_not_show(void **state)
{
    moec_kernels *one = open_isa(MOEC_ISA_AUTO, 1);
    moec_kernels *three = open_isa(MOEC_ISA_AUTO, 3);

    (void)state;
    seed = 12345;
    for (unsigned i = 0; i < 20; i++) {
        struct result a, b;
        moec_router *s, *r;
        struct trial t;

        memset(&t, 0, sizeof(t));
        draw_config(&t);
        t.in = (moec_route_in)MOEC_ROUTE_IN_INIT;
        t.in.n_tokens = 100 + draw(400);
        t.in.n_valid = t.in.n_tokens - draw(100);
        t.in.logits_dtype = MOEC_DTYPE_F32;
        make_logits(&t);
        draw_extras(&t);
        s = router(&t, one);
        r = router(&t, three);
        a = run(&t, s);
        b = run(&t, r);
        same(&t, &a, &b, "threads", i);
        result_fini(&a);
        result_fini(&b);
        moec_router_destroy(s);
        moec_router_destroy(r);
        trial_fini(&t);
    }
    moec_kernels_close(one);
    moec_kernels_close(three);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(avx2_equals_scalar),
        cmocka_unit_test(avx512_equals_scalar),
        cmocka_unit_test(threads_do_not_show),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
