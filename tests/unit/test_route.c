/* SPDX-License-Identifier: Apache-2.0
 *
 * The choice against the vectors, on every back end that this CPU has, and
 * what it refuses. */

#include <math.h>

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

static moec_route_config config_of(const json_t *c)
{
    moec_route_config cfg = MOEC_ROUTE_CONFIG_INIT;
    const char *variant = case_text(c, "variant");
    const char *scoring = case_text(c, "scoring");

    cfg.n_zero = case_uint(c, "zero_experts");
    cfg.n_experts = case_uint(c, "E") - cfg.n_zero;
    cfg.top_k = case_uint(c, "K");
    cfg.n_shared = case_uint(c, "S");
    cfg.n_group = case_uint(c, "groups");
    cfg.topk_group = case_uint(c, "topk_group");
    cfg.rsf = (float)json_number_value(json_object_get(c, "rsf"));
    if (json_is_true(json_object_get(c, "rsf_on_weights")))
        cfg.rsf_on = MOEC_RSF_ON_WEIGHTS;
    if (json_is_true(json_object_get(c, "renormalize")))
        cfg.norm = MOEC_NORM_SUM;
    if (strcmp(variant, "biased_grouped") == 0)
        cfg.group_score = MOEC_GROUP_TOP2;
    if (strcmp(variant, "hash") == 0)
        cfg.choice = MOEC_CHOICE_HASH;
    if (strcmp(scoring, "sigmoid") == 0)
        cfg.score = MOEC_SCORE_SIGMOID;
    else if (strcmp(scoring, "sqrtsoftplus") == 0)
        cfg.score = MOEC_SCORE_SQRT_SOFTPLUS;
    return cfg;
}

static moec_dtype dtype_of(const json_t *c)
{
    const char *name = case_text(c, "dtype");

    if (strcmp(name, "BF16") == 0)
        return MOEC_DTYPE_BF16;
    return strcmp(name, "F16") == 0 ? MOEC_DTYPE_F16 : MOEC_DTYPE_F32;
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
    moec_route_config cfg = config_of(c);
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
    in.logits_dtype = dtype_of(c);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gives_what_the_vectors_say),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
