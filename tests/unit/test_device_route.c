/* SPDX-License-Identifier: Apache-2.0
 *
 * The choice of a device against the vectors, and against the scalar CPU bit
 * for bit: shapes, scores, norms, special values, padding. With the argument
 * "long" the random part runs for minutes (the target device-route-long). */

#include "route_vectors.h"

#include <float.h>
#include <math.h>

#include <moec/moec.h>

#include "device_route.h"
#include "guarded.h"

static moec_device *device;
static moec_kernels *cpu;
static bool is_long;

static int open_both(void **state)
{
    (void)state;
    return test_open_both(&device, &cpu, MOEC_ISA_SCALAR);
}

static int close_both(void **state)
{
    (void)state;
    moec_device_close(device);
    moec_kernels_close(cpu);
    return 0;
}

/* ------------------------------------------------------------ vectors */

static void compare(const char *id, const struct route_result *x,
                    const int32_t *want_ids, const double *exact)
{
    for (size_t i = 0; i < x->n; i++) {
        double d = fabs((double)x->weights[i] - exact[i]);

        if (x->ids[i] != want_ids[i])
            fail_msg("%s: cell %zu is id %d, not %d", id, i, x->ids[i],
                     want_ids[i]);
        if (!(d <= 4.8e-7 * fabs(exact[i]) + 1e-37))
            fail_msg("%s: cell %zu weighs %.9g, not %.9g", id, i,
                     (double)x->weights[i], exact[i]);
    }
}

static void run_case(const struct route_vectors *v, const json_t *c,
                     bool n_valid_on_device)
{
    const char *id = case_text(c, "id");
    struct route_call call = {.config = case_config(c)};
    void *logits = route_vectors_copy(v, id, "logits");
    float *bias = route_vectors_copy(v, id, "bias");
    int32_t *table = route_vectors_copy(v, id, "tid2eid");
    int32_t *tokens = route_vectors_copy(v, id, "tokens");
    int32_t *want_ids = route_vectors_copy(v, id, "ids");
    double *exact = route_vectors_copy(v, id, "exact");
    moec_error err = MOEC_ERROR_INIT;
    moec_router *r = NULL;
    struct route_result x;
    size_t bytes = 0;

    call.in = (moec_route_in)MOEC_ROUTE_IN_INIT;
    call.in.n_tokens = case_uint(c, "T");
    call.in.n_valid = case_uint(c, "non_padded");
    call.in.logits_dtype = case_dtype(c);
    call.in.logits = logits;
    call.in.bias = bias;
    call.in.tokens = tokens;
    call.in.hash_table = table;
    if (route_vectors_tensor(v, id, "tid2eid", &bytes))
        call.in.vocab = (uint32_t)(bytes / 4 / call.config.top_k);
    call.n_valid_on_device = n_valid_on_device;
    x = result_of(&call);
    if (moec_router_create(&r, cpu, &call.config, &err) != MOEC_OK)
        fail_msg("%s: %s", id, err.text);
    device_call(&call, device, r, &x);
    compare(id, &x, want_ids, exact);
    check_call(&call, device, cpu);
    moec_router_destroy(r);
    result_free(&x);
    free(logits);
    free(bias);
    free(table);
    free(tokens);
    free(want_ids);
    free(exact);
}

static void gives_what_the_vectors_say(void **state)
{
    struct route_vectors v =
        route_vectors_open(MOEC_TEST_FIXTURES "/vectors", "routing", 1);
    json_t *cases = json_object_get(v.doc, "cases"), *c;
    size_t at;

    (void)state;
    assert_true(json_array_size(cases) >= 61);
    json_array_foreach (cases, at, c)
        run_case(&v, c, at % 2 != 0);
    route_vectors_close(&v);
}

/* ------------------------------------------------------------- random */

struct shape {
    uint32_t n_experts, top_k;
};

static const struct shape shapes[] = {
    {1, 1},   {2, 2},    {7, 3},    {8, 2},    {13, 13},   {32, 4},
    {33, 8},  {40, 40},  {60, 4},   {64, 6},   {64, 64},   {100, 9},
    {128, 8}, {160, 6},  {256, 8},  {256, 22}, {256, 33},  {257, 8},
    {384, 8}, {512, 10}, {512, 64}, {1000, 8}, {4096, 16}, {4096, 64},
};

/* A logit in the style of the row: random, few values, or special ones. */
static float random_logit(uint64_t *seed, uint32_t style)
{
    static const float special[] = {NAN,    -NAN,    INFINITY, -INFINITY,
                                    0.0f,   -0.0f,   FLT_MAX,  -FLT_MAX,
                                    1e-45f, -1e-45f, 90.0f,    -90.0f,
                                    1e-38f, -1e-38f, 50.0f,    -1000.0f};

    switch (style % 6) {
    case 0:
        return (float)random_below(seed, 5) * 0.25f;
    case 1:
        return special[random_below(seed, 16)];
    case 2:
        return 0.0f; /* all the same */
    case 3:
        return 30.0f * random_float(seed);
    default:
        return 4.0f * random_float(seed);
    }
}

static void store_logit(void *logits, size_t i, moec_dtype dtype, float v)
{
    uint32_t u;

    memcpy(&u, &v, 4);
    if (dtype == MOEC_DTYPE_F32) {
        ((float *)logits)[i] = v;
    } else if (dtype == MOEC_DTYPE_BF16) {
        ((uint16_t *)logits)[i] = (uint16_t)(u >> 16);
    } else {
        (void)moec_cast(cpu, &v, MOEC_DTYPE_F32, (uint16_t *)logits + i,
                        MOEC_DTYPE_F16, 1, NULL);
    }
}

static void random_logits(uint64_t *seed, struct route_call *c)
{
    static const moec_dtype dtypes[] = {MOEC_DTYPE_F32, MOEC_DTYPE_BF16,
                                        MOEC_DTYPE_F16};
    const moec_route_config *g = &c->config;
    uint32_t n = g->n_experts + g->n_zero + g->n_shared_logits;
    uint64_t stride = n + random_below(seed, 3);
    uint32_t T = c->in.n_tokens;
    void *logits = guarded(T * stride * 4 + 4);

    c->in.logits_dtype = dtypes[random_below(seed, 3)];
    c->in.logits_stride = stride == n ? 0 : stride;
    for (uint32_t t = 0; t < T; t++) {
        uint32_t style = (uint32_t)random_u64(seed);

        for (uint64_t i = 0; i < stride; i++)
            store_logit(logits, t * stride + i, c->in.logits_dtype,
                        random_logit(seed, style));
    }
    c->in.logits = logits;
}

static float *random_floats(uint64_t *seed, size_t n, float size)
{
    float *x = guarded(n * 4 + 4);

    for (size_t i = 0; i < n; i++)
        x[i] = size * random_float(seed);
    return x;
}

static void random_groups(uint64_t *seed, moec_route_config *c)
{
    static const uint32_t counts[] = {2, 4, 5, 8, 20, 32, 64, 100};
    uint32_t g = counts[random_below(seed, 8)], kept;

    if (c->n_experts % g != 0 || c->n_experts == g)
        return;
    kept = 1 + random_below(seed, g);
    if (kept * (c->n_experts / g) < c->top_k)
        return;
    c->n_group = g;
    c->topk_group = kept;
    c->group_score = (moec_group_score)random_below(seed, 2);
}

static void random_norm(uint64_t *seed, moec_route_config *c)
{
    c->norm = (moec_route_norm)random_below(seed, 6);
    c->norm_arg =
        c->norm == MOEC_NORM_P ? (float)(1 + random_below(seed, 2)) : 0.125f;
    if (c->norm == MOEC_NORM_JOINT) {
        c->score = MOEC_SCORE_SIGMOID;
        c->n_shared_logits = 1 + random_below(seed, 40);
        c->n_shared = random_below(seed, 3) % (c->n_shared_logits + 1);
    }
}

static void random_config(uint64_t *seed, moec_route_config *c,
                          const struct shape *s)
{
    static const moec_route_config init = MOEC_ROUTE_CONFIG_INIT;

    *c = init;
    c->n_experts = s->n_experts;
    c->top_k = s->top_k;
    c->n_shared = random_below(seed, 3);
    c->score = (moec_score)random_below(seed, 4);
    c->rsf = random_below(seed, 2) ? 2.5f : 1.0f;
    c->rsf_on = (moec_rsf_on)random_below(seed, 2);
    c->shared_ranks = random_below(seed, 3);
    random_norm(seed, c);
    if (c->norm != MOEC_NORM_JOINT)
        c->shared_kind = (moec_shared_kind)random_below(seed, 3);
    if (random_below(seed, 8) == 0)
        c->softcap = 30.0f;
    switch (random_below(seed, 6)) {
    case 0:
        if (c->norm == MOEC_NORM_JOINT || c->norm == MOEC_NORM_SOFTMAX)
            break;
        c->choice = MOEC_CHOICE_SPARSE_MIXER;
        c->score =
            random_below(seed, 2) ? MOEC_SCORE_SOFTMAX : MOEC_SCORE_LOGIT;
        break;
    case 1:
        c->choice = MOEC_CHOICE_HASH;
        break;
    case 2:
        if (c->n_experts <= 4000)
            c->n_zero = random_below(seed, 40);
        break;
    default:
        random_groups(seed, c);
        break;
    }
}

/* ids[rows][K], distinct in a row, some -1. */
static int32_t *random_ids(uint64_t *seed, const moec_route_config *c,
                           uint32_t rows)
{
    uint32_t n = c->n_experts + c->n_zero;
    int32_t *ids = guarded((size_t)rows * c->top_k * 4 + 4);

    for (uint32_t r = 0; r < rows; r++) {
        uint32_t first = random_below(seed, n);

        for (uint32_t k = 0; k < c->top_k; k++)
            ids[r * c->top_k + k] =
                random_below(seed, 9) == 0 ? -1 : (int32_t)((first + k) % n);
    }
    return ids;
}

static void random_rest(uint64_t *seed, struct route_call *c)
{
    const moec_route_config *g = &c->config;
    uint32_t T = c->in.n_tokens, n = g->n_experts + g->n_zero;
    int32_t *tokens = guarded(T * 4ull + 4);

    for (uint32_t t = 0; t < T; t++)
        tokens[t] = (int32_t)random_below(seed, 5);
    c->in.tokens = tokens;
    c->in.vocab = 5;
    c->in.hash_table = random_ids(seed, g, 5);
    c->in.shared_gate = random_floats(seed, T, 3.0f);
    if (g->choice != MOEC_CHOICE_SPARSE_MIXER && random_below(seed, 2)) {
        float *bias = random_floats(seed, n, 1.0f);

        if (random_below(seed, 4) == 0)
            bias[random_below(seed, n)] = -INFINITY;
        c->in.bias = bias;
    }
    if (random_below(seed, 4) == 0)
        c->in.expert_scale = random_floats(seed, g->n_experts, 2.0f);
    if (random_below(seed, 8) == 0)
        c->in.forced_ids = random_ids(seed, g, T);
}

static void random_call(uint64_t *seed, const struct shape *s, uint32_t T)
{
    struct route_call c = {.in = MOEC_ROUTE_IN_INIT};

    random_config(seed, &c.config, s);
    c.in.n_tokens = T;
    c.in.n_valid = T - random_below(seed, T / 4 + 1);
    c.n_valid_on_device = random_below(seed, 2) != 0;
    random_logits(seed, &c);
    random_rest(seed, &c);
    check_call(&c, device, cpu);
    guarded_free_all();
}

static void equals_the_scalar_cpu(void **state)
{
    uint64_t seed = 1;

    (void)state;
    for (uint32_t turn = 0; turn < (is_long ? 400u : 4u); turn++)
        for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++)
            random_call(
                &seed, &shapes[i],
                shapes[i].n_experts > 512 ? 3 : 1 + random_below(&seed, 20));
}

/* What servers run, at sizes that take more than one turn of the grid. */
static void equals_it_for_models(void **state)
{
    static const struct {
        uint32_t n_experts, top_k, n_group, topk_group;
        moec_score score;
        moec_route_norm norm;
        bool bias;
    } models[] = {
        {128, 8, 0, 0, MOEC_SCORE_SOFTMAX, MOEC_NORM_SUM, false},
        {256, 8, 0, 0, MOEC_SCORE_SOFTMAX, MOEC_NORM_NONE, false},
        {256, 8, 8, 4, MOEC_SCORE_SIGMOID, MOEC_NORM_SUM, true},
        {384, 8, 1, 1, MOEC_SCORE_SIGMOID, MOEC_NORM_SUM, true},
        {160, 6, 8, 3, MOEC_SCORE_SOFTMAX, MOEC_NORM_NONE, false},
        {256, 6, 0, 0, MOEC_SCORE_SQRT_SOFTPLUS, MOEC_NORM_SUM, true},
        {64, 6, 0, 0, MOEC_SCORE_SOFTMAX, MOEC_NORM_FLOOR, true},
        {32, 4, 0, 0, MOEC_SCORE_LOGIT, MOEC_NORM_SOFTMAX, false},
    };
    uint64_t seed = 2;

    (void)state;
    for (size_t i = 0; i < sizeof(models) / sizeof(*models); i++) {
        struct route_call c = {.config = MOEC_ROUTE_CONFIG_INIT,
                               .in = MOEC_ROUTE_IN_INIT};
        uint32_t n = models[i].n_experts, T = 150;

        c.config.n_experts = n;
        c.config.top_k = models[i].top_k;
        c.config.n_group = models[i].n_group;
        c.config.topk_group = models[i].topk_group;
        c.config.score = models[i].score;
        c.config.norm = models[i].norm;
        c.config.norm_arg = 1e-12f;
        c.config.rsf = 2.5f;
        if (models[i].bias)
            c.config.group_score = MOEC_GROUP_TOP2;
        c.config.n_shared = 1;
        c.in.n_tokens = T;
        c.in.n_valid = T - 3;
        c.in.logits = random_floats(&seed, (size_t)T * n, 4.0f);
        if (models[i].bias)
            c.in.bias = random_floats(&seed, n, 0.2f);
        check_call(&c, device, cpu);
        guarded_free_all();
    }
}

/* All groups have the same best, and the later ones a better second. */
static void lower_groups_win_ties(void **state)
{
    static const uint32_t groups[] = {4, 16, 32, 64};
    float x[128];

    (void)state;
    for (size_t i = 0; i < sizeof(groups) / sizeof(*groups); i++) {
        struct route_call c = {.config = MOEC_ROUTE_CONFIG_INIT,
                               .in = MOEC_ROUTE_IN_INIT};
        uint32_t width = 128 / groups[i];

        for (uint32_t e = 0; e < 128; e++)
            x[e] = e % width == 0 ? 5.0f : 0.01f * (float)(e / width);
        c.config.n_experts = 128;
        c.config.n_group = groups[i];
        c.config.topk_group = groups[i] / 2 - 1;
        c.config.top_k = 2 * c.config.topk_group;
        c.in.n_tokens = c.in.n_valid = 1;
        c.in.logits = x;
        check_call(&c, device, cpu);
    }
}

static void takes_no_rows(void **state)
{
    struct route_call c = {.config = MOEC_ROUTE_CONFIG_INIT,
                           .in = MOEC_ROUTE_IN_INIT};

    (void)state;
    c.config.n_experts = 8;
    c.config.top_k = 2;
    check_call(&c, device, cpu);
    c.in.n_tokens = 9; /* none of them valid, and no logits */
    check_call(&c, device, cpu);
}

static void refuses_what_it_cannot_do(void **state)
{
    moec_route_config cfg = MOEC_ROUTE_CONFIG_INIT;
    moec_route_in in = MOEC_ROUTE_IN_INIT;
    moec_route_out out = {.struct_bytes = sizeof(out)};
    moec_launch l = MOEC_LAUNCH_INIT;
    moec_error err = MOEC_ERROR_INIT;
    moec_router *r = NULL;
    float x[8] = {0};

    (void)state;
    cfg.n_experts = 8;
    cfg.top_k = 2;
    assert_int_equal(moec_router_create(&r, cpu, &cfg, &err), MOEC_OK);
    in.n_tokens = in.n_valid = 1;
    assert_int_equal(moec_device_route(device, r, &in, &out, &l, &err),
                     MOEC_E_ARG);
    assert_non_null(strstr(err.text, "logits is NULL"));
    in.logits = x;
    err = (moec_error)MOEC_ERROR_INIT;
    assert_int_equal(moec_device_route(device, r, &in, &out, &l, &err),
                     MOEC_E_ARG);
    assert_non_null(strstr(err.text, "ids or weights"));
    in.logits_stride = 7;
    err = (moec_error)MOEC_ERROR_INIT;
    assert_int_equal(moec_device_route(device, r, &in, &out, &l, &err),
                     MOEC_E_ARG);
    assert_non_null(strstr(err.text, "logits_stride 7"));
    moec_router_destroy(r);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gives_what_the_vectors_say),
        cmocka_unit_test(equals_the_scalar_cpu),
        cmocka_unit_test(equals_it_for_models),
        cmocka_unit_test(lower_groups_win_ties),
        cmocka_unit_test(takes_no_rows),
        cmocka_unit_test(refuses_what_it_cannot_do),
    };

    is_long = argc > 1 && strcmp(argv[1], "long") == 0;
    return cmocka_run_group_tests(tests, open_both, close_both);
}
