/* SPDX-License-Identifier: Apache-2.0
 *
 * The choice against the vectors, on every back end that this CPU has, and
 * what it refuses. */

#include <math.h>
#include <stdbool.h>

#include "route_vectors.h"

#include <moec/kernels.h>

static const moec_isa isas[] = {MOEC_ISA_SCALAR, MOEC_ISA_AVX2,
                                MOEC_ISA_AVX512};

/* NULL where the CPU lacks it. */
static moec_kernels *open_isa(moec_isa isa)
{
    moec_kernels_opts o = MOEC_KERNELS_OPTS_INIT;
    moec_kernels *k = NULL;

    o.isa = isa;
    if (moec_kernels_open(&k, &o, NULL) != MOEC_OK)
        return NULL;
    return k;
}

/* "weights are within 2.4e-7 of exact", and ours within the same of them. */
static void compare(const char *id, const int32_t *ids, const float *weights,
                    const int32_t *want_ids, const double *exact, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)weights[i] - exact[i]);

        if (ids[i] != want_ids[i])
            fail_msg("%s: cell %zu is id %d, not %d", id, i, ids[i],
                     want_ids[i]);
        if (!(d <= 4.8e-7 * fabs(exact[i]) + 1e-37))
            fail_msg("%s: cell %zu weighs %.9g, not %.9g", id, i,
                     (double)weights[i], exact[i]);
    }
}

static void run_case(const struct route_vectors *v, const json_t *c,
                     const moec_kernels *k)
{
    const char *id = case_text(c, "id");
    moec_route_config cfg = case_config(c);
    moec_route_in in = MOEC_ROUTE_IN_INIT;
    moec_route_out out = {.struct_bytes = sizeof(out)};
    moec_error err = MOEC_ERROR_INIT;
    moec_router *r = NULL;
    void *logits = route_vectors_copy(v, id, "logits");
    float *bias = route_vectors_copy(v, id, "bias");
    int32_t *table = route_vectors_copy(v, id, "tid2eid");
    int32_t *tokens = route_vectors_copy(v, id, "tokens");
    int32_t *want_ids = route_vectors_copy(v, id, "ids");
    double *exact = route_vectors_copy(v, id, "exact");
    size_t bytes = 0, n;

    in.n_tokens = case_uint(c, "T");
    in.n_valid = case_uint(c, "non_padded");
    in.logits_dtype = case_dtype(c);
    in.logits = logits;
    in.bias = bias;
    in.tokens = tokens;
    in.hash_table = table;
    if (route_vectors_tensor(v, id, "tid2eid", &bytes))
        in.vocab = (uint32_t)(bytes / 4 / cfg.top_k);
    n = (size_t)in.n_tokens * (cfg.top_k + cfg.n_shared);
    out.ids = malloc(n * 4 + 1);
    out.weights = malloc(n * 4 + 1);
    assert_non_null(out.ids);
    assert_non_null(out.weights);
    assert_int_equal(moec_router_create(&r, k, &cfg, &err), MOEC_OK);
    assert_int_equal(moec_route(r, &in, &out, NULL, 0, &err), MOEC_OK);
    compare(id, out.ids, out.weights, want_ids, exact, n);
    moec_router_destroy(r);
    free(out.ids);
    free(out.weights);
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
    json_t *cases = json_object_get(v.doc, "cases");

    (void)state;
    for (size_t i = 0; i < sizeof(isas) / sizeof(isas[0]); i++) {
        moec_kernels *k = open_isa(isas[i]);
        json_t *c;
        size_t at;

        if (!k)
            continue;
        assert_true(json_array_size(cases) >= 61);
        json_array_foreach (cases, at, c)
            run_case(&v, c, k);
        moec_kernels_close(k);
    }
    route_vectors_close(&v);
}

/* ------------------------------------------------ formulas, by hand
 * What no vector covers, from the routing page in double. */

#define E 12
#define K 3

struct made {
    moec_route_config c;
    moec_route_in in;
    float logits[E + 4];
    int32_t ids[K + 2];
    float weights[K + 2];
};

static struct made made(moec_score score, moec_route_norm norm)
{
    static const float x[E + 4] = {0.5f,  -1.25f, 2.0f,  1.75f, -3.0f, 0.0f,
                                   1.5f,  0.25f,  -0.5f, 1.0f,  -2.0f, 1.9f,
                                   -0.5f, 0.75f,  0.1f,  0.2f};
    struct made m = {.c = MOEC_ROUTE_CONFIG_INIT, .in = MOEC_ROUTE_IN_INIT};

    memcpy(m.logits, x, sizeof(x));
    m.c.n_experts = E;
    m.c.top_k = K;
    m.c.score = score;
    m.c.norm = norm;
    m.in.n_tokens = 1;
    m.in.n_valid = 1;
    return m;
}

static void route_made(struct made *m, const moec_kernels *k)
{
    moec_route_out out = {
        .struct_bytes = sizeof(out), .ids = m->ids, .weights = m->weights};
    moec_error err = MOEC_ERROR_INIT;
    moec_router *r = NULL;

    m->in.logits = m->logits;
    if (moec_router_create(&r, k, &m->c, &err) != MOEC_OK ||
        moec_route(r, &m->in, &out, NULL, 0, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    moec_router_destroy(r);
}

static void near(float found, double want)
{
    if (!(fabs((double)found - want) <= 1e-6 * fabs(want)))
        fail_msg("%.9g, not %.9g", (double)found, want);
}

static double sigmoid(double x)
{
    return 1.0 / (1.0 + exp(-x));
}

/* Experts 2, 11, 3 are the best in every case below. */
static void weigh_by_formula(const moec_kernels *k)
{
    static const int32_t want[K] = {2, 11, 3};
    static const double x[K] = {2.0, (double)1.9f, 1.75};
    double all = 0, sum = 0, squares = 0;
    struct made m;

    for (int i = 0; i < E; i++)
        all += exp((double)made(MOEC_SCORE_SOFTMAX, 0).logits[i]);
    for (int i = 0; i < K; i++) {
        sum += exp(x[i]);
        squares += exp(2 * x[i]);
    }
    m = made(MOEC_SCORE_SOFTMAX, MOEC_NORM_NONE);
    route_made(&m, k);
    assert_memory_equal(m.ids, want, sizeof(want));
    for (int i = 0; i < K; i++)
        near(m.weights[i], exp(x[i]) / all);
    m = made(MOEC_SCORE_SOFTMAX, MOEC_NORM_FLOOR);
    m.c.norm_arg = 0.9f; /* above the sum */
    route_made(&m, k);
    for (int i = 0; i < K; i++)
        near(m.weights[i], exp(x[i]) / all / (double)0.9f);
    m = made(MOEC_SCORE_SOFTMAX, MOEC_NORM_P);
    m.c.norm_arg = 2.0f;
    route_made(&m, k);
    for (int i = 0; i < K; i++)
        near(m.weights[i], exp(x[i]) / sqrt(squares));
    m = made(MOEC_SCORE_LOGIT, MOEC_NORM_SOFTMAX);
    route_made(&m, k);
    for (int i = 0; i < K; i++)
        near(m.weights[i], exp(x[i]) / sum);
    m = made(MOEC_SCORE_SQRT_SOFTPLUS, MOEC_NORM_NONE);
    route_made(&m, k);
    for (int i = 0; i < K; i++)
        near(m.weights[i], sqrt(log1p(exp(x[i]))));
}

/* Inkling: K chosen and the shared over their joint sum, all times rsf. */
static void joint_by_formula(const moec_kernels *k)
{
    struct made m = made(MOEC_SCORE_SIGMOID, MOEC_NORM_JOINT);
    double sum = sigmoid(2.0) + sigmoid((double)1.9f) + sigmoid(1.75) +
                 sigmoid(-0.5) + sigmoid(0.75);

    m.c.n_shared = 2;
    m.c.n_shared_logits = 2;
    m.c.shared_kind = MOEC_SHARED_ROUTER;
    m.c.rsf = 2.5f;
    m.c.rsf_on = MOEC_RSF_ON_WEIGHTS;
    route_made(&m, k);
    near(m.weights[0], 2.5 * sigmoid(2.0) / sum);
    near(m.weights[K], 2.5 * sigmoid(-0.5) / sum);
    near(m.weights[K + 1], 2.5 * sigmoid(0.75) / sum);
    assert_int_equal(m.ids[K + 1], E + 1);
}

/* Grok: the softcap; Gemma 4: a scale an expert, behind rsf. */
static void capped_and_scaled_by_formula(const moec_kernels *k)
{
    struct made m = made(MOEC_SCORE_SOFTMAX, MOEC_NORM_SUM);
    float scale[E] = {0};
    double sum = 0;

    for (int i = 0; i < E; i++)
        scale[i] = 1.0f + 0.25f * (float)i;
    m.c.softcap = 3.0f;
    m.c.rsf = 2.0f;
    m.c.rsf_on = MOEC_RSF_ON_WEIGHTS;
    m.in.expert_scale = scale;
    route_made(&m, k);
    for (int i = 0; i < K; i++)
        sum += exp(3 * tanh((double)m.logits[m.ids[i]] / 3));
    for (int i = 0; i < K; i++)
        near(m.weights[i], exp(3 * tanh((double)m.logits[m.ids[i]] / 3)) / sum *
                               2.0 * (double)scale[m.ids[i]]);
}

/* Phi-3.5-MoE's sparsemixer, transcribed: the mask compares with the round's
 * best, and the first expert is out of the second round. */
static void mixer_by_formula(const moec_kernels *k)
{
    struct made m = made(MOEC_SCORE_LOGIT, MOEC_NORM_NONE);
    bool taken[E] = {false};

    m.c.choice = MOEC_CHOICE_SPARSE_MIXER;
    m.c.top_k = 2;
    m.c.mixer_eps = 0.1f;
    route_made(&m, k);
    for (int round = 0; round < 2; round++) {
        double best = -1e9, sum = 0;
        int id = 0;

        for (int i = 0; i < E; i++)
            if (!taken[i] && (double)m.logits[i] > best) {
                best = (double)m.logits[i];
                id = i;
            }
        for (int i = 0; i < E; i++) {
            double x = (double)m.logits[i];
            double factor = fabs(x) > best ? fabs(x) : best;

            if (!taken[i] && !((best - x) / factor > 2 * (double)0.1f))
                sum += exp(x - best);
        }
        assert_int_equal(m.ids[round], id);
        near(m.weights[round], 1.0 / sum);
        taken[id] = true;
    }
}

static void follows_the_formulas(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(isas) / sizeof(isas[0]); i++) {
        moec_kernels *k = open_isa(isas[i]);

        if (!k)
            continue;
        weigh_by_formula(k);
        joint_by_formula(k);
        capped_and_scaled_by_formula(k);
        mixer_by_formula(k);
        moec_kernels_close(k);
    }
}

static void forced_ids_keep_their_order(void **state)
{
    static const int32_t forced[K] = {7, -1, 2}, want[K] = {7, 2, -1};
    moec_kernels *k = open_isa(MOEC_ISA_SCALAR);
    struct made m = made(MOEC_SCORE_SOFTMAX, MOEC_NORM_SUM);

    (void)state;
    m.in.forced_ids = forced;
    route_made(&m, k);
    assert_memory_equal(m.ids, want, sizeof(want));
    near(m.weights[0], exp(0.25) / (exp(0.25) + exp(2.0)));
    assert_true(m.weights[2] == 0.0f);
    moec_kernels_close(k);
}

static void shared_columns_weigh_as_one_place_says(void **state)
{
    moec_route_config c = MOEC_ROUTE_CONFIG_INIT;

    (void)state;
    c.rsf = 2.5f;
    near(moec_shared_weight(&c, NAN), 0.4);
    c.rsf_on = MOEC_RSF_ON_WEIGHTS;
    assert_true(moec_shared_weight(&c, 9.0f) == 1.0f);
    c.shared_ranks = 4;
    assert_true(moec_shared_weight(&c, 9.0f) == 0.25f);
    c.shared_kind = MOEC_SHARED_SIGMOID;
    near(moec_shared_weight(&c, 1.0f), 0.25 * sigmoid(1.0));
    c.rsf = 0.0f; /* means 1 */
    c.rsf_on = MOEC_RSF_ON_OUTPUT;
    near(moec_shared_weight(&c, 0.0f), 0.125);
}

/* ------------------------------------------------------------ refusals */

#define SET(...)                                                               \
  do {                                                                         \
    moec_route_config c = base;                                                \
    __VA_ARGS__;                                                               \
    n_wrong += refused(k, &c, #__VA_ARGS__, wanted);                           \
  } while (0)

static int refused(const moec_kernels *k, const moec_route_config *c,
                   const char *what, moec_status wanted)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_router *r = NULL;
    moec_status st = moec_router_create(&r, k, c, &err);

    if (st == wanted && !r && err.text[0])
        return 0;
    print_error("%s: status %d, text '%s'\n", what, (int)st, err.text);
    moec_router_destroy(r);
    return 1;
}

static void refuses_configurations(void **state)
{
    moec_kernels *k = open_isa(MOEC_ISA_SCALAR);
    moec_route_config base = MOEC_ROUTE_CONFIG_INIT;
    moec_status wanted = MOEC_E_ARG;
    int n_wrong = 0;

    (void)state;
    base.n_experts = 16;
    base.top_k = 4;
    SET(c.struct_bytes = 8);
    SET(c.n_experts = 0);
    SET(c.n_experts = 4097);
    SET(c.n_experts = 4000, c.n_zero = 97);
    SET(c.n_experts = UINT32_MAX, c.n_zero = 2);
    SET(c.top_k = 0);
    SET(c.top_k = 17);
    SET(c.n_experts = 100, c.top_k = 65);
    SET(c.n_shared = 17);
    SET(c.n_group = 3, c.topk_group = 1);
    SET(c.n_group = 4, c.topk_group = 0);
    SET(c.n_group = 4, c.topk_group = 5);
    SET(c.n_group = 8, c.topk_group = 1);
    SET(c.n_group = 16, c.topk_group = 8, c.group_score = MOEC_GROUP_TOP2);
    SET(c.norm = MOEC_NORM_FLOOR, c.norm_arg = -1.0f);
    SET(c.norm = MOEC_NORM_FLOOR, c.norm_arg = NAN);
    SET(c.softcap = -1.0f);
    SET(c.softcap = INFINITY);
    SET(c.rsf = -1.0f);
    SET(c.rsf = NAN);
    SET(c.choice = MOEC_CHOICE_SPARSE_MIXER, c.score = MOEC_SCORE_LOGIT,
        c.mixer_eps = NAN);
    SET(c.n_shared_logits = 1);
    SET(c.norm = MOEC_NORM_JOINT, c.score = MOEC_SCORE_SIGMOID);
    SET(c.norm = MOEC_NORM_JOINT, c.score = MOEC_SCORE_SIGMOID,
        c.n_shared_logits = 1, c.n_shared = 2);
    for (unsigned bad = 4; bad < 7; bad += 2) {
        SET(c.score = (moec_score)bad);
        SET(c.choice = (moec_choice)bad);
        SET(c.norm = (moec_route_norm)(bad + 2));
    }
    wanted = MOEC_E_UNSUPPORTED;
    SET(c.n_group = 4, c.topk_group = 2, c.n_zero = 4);
    SET(c.norm = MOEC_NORM_P, c.norm_arg = 3.0f);
    SET(c.n_shared = 1, c.shared_kind = MOEC_SHARED_ROUTER);
    SET(c.norm = MOEC_NORM_JOINT, c.n_shared_logits = 1);
    SET(c.choice = MOEC_CHOICE_HASH, c.n_group = 4, c.topk_group = 2);
    SET(c.choice = MOEC_CHOICE_HASH, c.ec.mode = MOEC_EC_ON);
    SET(c.choice = MOEC_CHOICE_SPARSE_MIXER, c.score = MOEC_SCORE_SIGMOID);
    SET(c.choice = MOEC_CHOICE_SPARSE_MIXER, c.norm = MOEC_NORM_SOFTMAX);
    assert_int_equal(n_wrong, 0);
    moec_kernels_close(k);
}

static moec_status try_in(moec_router *r, const moec_route_in *in)
{
    int32_t ids[2 * 4];
    float weights[2 * 4];
    moec_route_out out = {
        .struct_bytes = sizeof(out), .ids = ids, .weights = weights};
    moec_error err = MOEC_ERROR_INIT;
    moec_status st = moec_route(r, in, &out, NULL, 0, &err);

    assert_true((st == MOEC_OK) == (err.text[0] == '\0'));
    return st;
}

#define INPUT(wanted, ...)                                                     \
  do {                                                                         \
    moec_route_in in = base;                                                   \
    __VA_ARGS__;                                                               \
    assert_int_equal(try_in(r, &in), wanted);                                  \
  } while (0)

static void refuses_inputs(void **state)
{
    static const float logits[32], gate[2];
    static const int32_t far[8] = {0, 1, 2, 16}, tokens[2] = {0, 5};
    static const int32_t table[4 * 4] = {0};
    moec_route_config c = MOEC_ROUTE_CONFIG_INIT;
    moec_route_in base = MOEC_ROUTE_IN_INIT;
    moec_kernels *k = open_isa(MOEC_ISA_SCALAR);
    moec_router *r = NULL;

    (void)state;
    c.n_experts = 16;
    c.top_k = 3;
    c.n_shared = 1;
    c.shared_kind = MOEC_SHARED_SIGMOID;
    base.n_tokens = 2;
    base.n_valid = 2;
    base.logits = logits;
    base.shared_gate = gate;
    assert_int_equal(moec_router_create(&r, k, &c, NULL), MOEC_OK);
    assert_int_equal(try_in(r, &base), MOEC_OK);
    INPUT(MOEC_E_ARG, in.struct_bytes = 4);
    INPUT(MOEC_E_ARG, in.n_valid = 3);
    INPUT(MOEC_E_ARG, in.logits = NULL);
    INPUT(MOEC_E_ARG, in.shared_gate = NULL);
    INPUT(MOEC_E_ARG, in.logits_stride = 15);
    INPUT(MOEC_E_ARG, in.logits_dtype = MOEC_DTYPE_F64);
    INPUT(MOEC_E_ARG, in.forced_ids = far);
    INPUT(MOEC_OK, in.n_valid = 0, in.logits = NULL);
    moec_router_destroy(r);
    c.choice = MOEC_CHOICE_HASH;
    assert_int_equal(moec_router_create(&r, k, &c, NULL), MOEC_OK);
    base.hash_table = table;
    base.tokens = tokens;
    base.vocab = 5;
    assert_int_equal(try_in(r, &base), MOEC_E_ARG); /* token 5 */
    base.vocab = 6;
    INPUT(MOEC_E_ARG, in.tokens = NULL);
    INPUT(MOEC_OK, in.n_valid = 1);
    INPUT(MOEC_E_ARG, in.n_valid = 1, in.hash_table = far + 1);
    moec_router_destroy(r);
    moec_kernels_close(k);
}

static void describes_itself_as_json(void **state)
{
    moec_route_config c = MOEC_ROUTE_CONFIG_INIT;
    moec_kernels *k = open_isa(MOEC_ISA_SCALAR);
    moec_router *r = NULL;
    char *text = NULL;
    json_t *doc;

    (void)state;
    c.n_experts = 256;
    c.top_k = 8;
    c.n_group = 8;
    c.topk_group = 4;
    c.group_score = MOEC_GROUP_TOP2;
    c.score = MOEC_SCORE_SIGMOID;
    c.norm = MOEC_NORM_FLOOR;
    c.norm_arg = 0.1f;
    c.ec.mode = MOEC_EC_AUTO;
    assert_int_equal(moec_router_create(&r, k, &c, NULL), MOEC_OK);
    assert_int_equal(moec_route_describe(r, &text, NULL), MOEC_OK);
    doc = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(doc);
    assert_string_equal(case_text(doc, "isa"), "scalar");
    assert_string_equal(case_text(doc, "group_score"), "top2");
    assert_int_equal(case_uint(doc, "topk_group"), 4);
    assert_string_equal(
        case_text(json_object_get(doc, "expert_choice"), "mode"), "auto");
    json_decref(doc);
    free(text);
    moec_router_destroy(r);
    moec_kernels_close(k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gives_what_the_vectors_say),
        cmocka_unit_test(follows_the_formulas),
        cmocka_unit_test(forced_ids_keep_their_order),
        cmocka_unit_test(shared_columns_weigh_as_one_place_says),
        cmocka_unit_test(refuses_configurations),
        cmocka_unit_test(refuses_inputs),
        cmocka_unit_test(describes_itself_as_json),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
