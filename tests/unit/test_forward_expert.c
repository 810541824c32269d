/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Logical experts as the source's side of level 3 reads them, against digests
 * that another implementation took of the same experts (experts.json): every
 * fixture, every layer, every expert and the shared one. Then formats that the
 * fixtures do not have, made by hand.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "forward.h"
#include "plan_fixture.h"

static moec_kernels *kernels;

static int setup(void **state)
{
    moec_kernels_opts o = MOEC_KERNELS_OPTS_INIT;

    (void)state;
    o.isa = MOEC_ISA_SCALAR;
    return moec_kernels_open(&kernels, &o, NULL) == MOEC_OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    moec_kernels_close(kernels);
    return 0;
}

/* ------------------------------------------------------------- fixtures */

static moec_status read_ckpt(void *ctx, uint32_t tensor, uint64_t off,
                             void *buf, size_t n, moec_error *err)
{
    return moec_ckpt_read((const moec_ckpt *)ctx, tensor, off, buf, n, err);
}

static json_t *load_experts(const char *fixture)
{
    char path[512];
    json_error_t e;
    json_t *j;

    snprintf(path, sizeof(path), "%s/checkpoints/%s/experts.json",
             MOEC_TEST_FIXTURES, fixture);
    j = json_load_file(path, 0, &e);
    if (j == NULL)
        fail_msg("%s: %s", path, e.text);
    return j;
}

/* Compare the digest called `key`, or "`key`_f32" where weights are coded. */
static void check_digest(json_t *expert, const char *key, const void *data,
                         size_t n, const char *what)
{
    const char *want;
    char name[32], got[65];
    moec_sha256 sha;

    snprintf(name, sizeof(name), "%s_f32", key);
    want = json_string_value(json_object_get(expert, name));
    if (want == NULL)
        want = json_string_value(json_object_get(expert, key));
    assert_non_null(want);
    assert_int_equal(moec_sha256_of(data, n, &sha, NULL), MOEC_OK);
    moec_hex(sha.b, sizeof(sha.b), got);
    if (strcmp(want, got) != 0)
        fail_msg("%s: %s is not the reference's", what, key);
}

/* Biases were digested as BF16. */
static void check_bias(json_t *expert, const char *key, const float *f,
                       uint64_t n, const char *what)
{
    uint16_t cast[1024];

    assert_true(n <= 1024);
    assert_int_equal(
        moec_cast(kernels, f, MOEC_DTYPE_F32, cast, MOEC_DTYPE_BF16, n, NULL),
        MOEC_OK);
    check_digest(expert, key, cast, (size_t)n * 2, what);
}

static size_t check_expert(const plan_fixture *x, moec_plain *p, size_t layer,
                           moec_role role, uint32_t e, uint64_t inter,
                           json_t *expert, const char *what)
{
    const moec_facts *f = moec_model_facts(x->model);
    moec_error err = MOEC_ERROR_INIT;
    moec_plain_source from = {moec_model_slices(x->model, layer),
                              role,
                              f->hidden,
                              inter,
                              read_ckpt,
                              x->ckpt};
    uint64_t elem, half;

    if (moec_plain_read(p, kernels, &from, e, &err) != MOEC_OK)
        fail_msg("%s: %s", what, err.text);
    elem = p->w13.format == MOEC_WFORMAT_F32 ? 4 : 2;
    half = inter * f->hidden * elem;
    assert_int_equal(p->w13.n_out, 2 * inter);
    assert_int_equal(p->w2.n_in, inter);
    check_digest(expert, "gate", p->w13.data, (size_t)half, what);
    check_digest(expert, "up", (const char *)p->w13.data + half, (size_t)half,
                 what);
    check_digest(expert, "down", p->w2.data, (size_t)half, what);
    if (p->w13.bias == NULL)
        return 3;
    check_bias(expert, "gate_bias", p->w13.bias, inter, what);
    check_bias(expert, "up_bias", (const float *)p->w13.bias + inter, inter,
               what);
    check_bias(expert, "down_bias", p->w2.bias, f->hidden, what);
    return 6;
}

static void experts_are_the_references(void **state)
{
    size_t n = 0;

    (void)state;
    for (size_t i = 0; i < PLAN_FIXTURES; i++) {
        moec_plan_opts o = plan_fixture_opts();
        const char *fixture = plan_fixture_names[i];
        plan_fixture x = plan_fixture_open(fixture, &o);
        const moec_facts *f = moec_model_facts(x.model);
        json_t *j = load_experts(fixture), *layers;
        moec_plain p = {0};

        layers = json_object_get(j, "layers");
        for (size_t l = 0; l < moec_model_n_layers(x.model); l++) {
            char key[16], what[96];
            json_t *layer, *experts, *shared;

            snprintf(key, sizeof(key), "%u",
                     moec_model_layer(x.model, l)->source_number);
            layer = json_object_get(layers, key);
            experts = json_object_get(layer, "experts");
            shared = json_object_get(layer, "shared");
            assert_int_equal(json_array_size(experts), f->n_experts);
            for (uint32_t e = 0; e < f->n_experts; e++) {
                snprintf(what, sizeof(what), "%s, layer %s, expert %u", fixture,
                         key, e);
                n += check_expert(&x, &p, l, MOEC_ROLE_ROUTED, e, f->inter,
                                  json_array_get(experts, e), what);
            }
            snprintf(what, sizeof(what), "%s, layer %s, shared", fixture, key);
            assert_int_equal(shared != NULL, f->shared_width != 0);
            if (shared != NULL)
                n += check_expert(&x, &p, l, MOEC_ROLE_SHARED, 0,
                                  f->shared_width, shared, what);
        }
        json_decref(j);
        moec_plain_fini(&p);
        plan_fixture_close(&x);
    }
    assert_true(n > 1000);
}

/* -------------------------------------------------------------- formats */

static moec_component component(const char *name, moec_dtype dtype,
                                uint8_t geometry, uint64_t a, uint64_t b,
                                const void *data, uint64_t bytes)
{
    moec_component c = {.name = name,
                        .dtype = dtype,
                        .geometry = geometry,
                        .rank = 2,
                        .dim = {a, b, 1},
                        .bytes = bytes,
                        .data = data};

    return c;
}

static const uint8_t zeros[65536];

/* 192 rows in 2 blocks are 128 + 64. */
static void blocks_are_counted_and_not_divided(void **state)
{
    static const struct {
        uint64_t out, in, rows, cols;
        uint32_t block_out, block_in;
    } table[] = {
        {192, 256, 2, 2, 128, 128}, {256, 192, 2, 2, 128, 128},
        {256, 256, 1, 1, 256, 256}, {256, 128, 256, 1, 1, 128},
        {128, 256, 128, 8, 1, 32},  {96, 96, 3, 3, 32, 32},
        {60, 60, 5, 4, 12, 16},     {128, 128, 129, 1, 0, 0},
        {128, 128, 0, 1, 0, 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        uint64_t out = table[i].out, in = table[i].in;
        moec_projection p = {.out = out, .in = in, .n = 2};
        moec_matrix m;
        moec_error err = MOEC_ERROR_INIT;
        moec_status st;

        p.part[0] = component("weight", MOEC_DTYPE_F8_E4M3, MOEC_GEO_MATRIX,
                              out, in, zeros, out * in);
        p.part[1] = component("weight_scale_inv", MOEC_DTYPE_F32,
                              MOEC_GEO_MATRIX, table[i].rows, table[i].cols,
                              zeros, table[i].rows * table[i].cols * 4);
        st = moec_projection_matrix(&p, &m, &err);
        if (table[i].block_out == 0) {
            assert_int_equal(st, MOEC_E_UNSUPPORTED);
            assert_non_null(strstr(err.text, "weight_scale_inv"));
            continue;
        }
        assert_int_equal(st, MOEC_OK);
        assert_int_equal(m.format, MOEC_WFORMAT_FP8);
        assert_int_equal(m.block_out, table[i].block_out);
        assert_int_equal(m.block_in, table[i].block_in);
    }
}

/* One dtype and shape each for everything that may stand under one name. */
static void formats_are_told_apart(void **state)
{
    static const struct {
        const char *weight, *scale, *second;
        moec_dtype dtype, scale_dtype;
        uint8_t geometry;
        uint64_t rows, cols, bytes; /* of the weights */
        uint64_t scale_rows, scale_cols;
        moec_wformat format;
    } table[] = {
        {"weight", "scale", NULL, MOEC_DTYPE_I8, MOEC_DTYPE_F8_E8M0, 0, 64, 64,
         4096, 64, 4, MOEC_WFORMAT_MXFP4},
        {"weight_packed", "weight_scale", NULL, MOEC_DTYPE_U8, MOEC_DTYPE_U8, 0,
         64, 64, 4096, 64, 4, MOEC_WFORMAT_MXFP4},
        {"blocks", "scales", NULL, MOEC_DTYPE_U8, MOEC_DTYPE_U8, 0, 64, 4, 4096,
         64, 4, MOEC_WFORMAT_MXFP4},
        {"weight", "weight_scale", "weight_scale_2", MOEC_DTYPE_U8,
         MOEC_DTYPE_F8_E4M3, 0, 64, 64, 4096, 64, 8, MOEC_WFORMAT_NVFP4},
        {"weight_packed", "weight_scale", NULL, MOEC_DTYPE_I32, MOEC_DTYPE_BF16,
         0, 64, 16, 4096, 64, 4, MOEC_WFORMAT_INT4},
        {"weight", "weight_scale_inv", NULL, MOEC_DTYPE_F8_E4M3, MOEC_DTYPE_U8,
         0, 64, 128, 8192, 64, 4, MOEC_WFORMAT_FP8},
        {"qweight", "scales", "qzeros", MOEC_DTYPE_I32, MOEC_DTYPE_F16,
         MOEC_GEO_MATRIX_KEPT, 128, 8, 4096, 1, 64, MOEC_WFORMAT_AWQ},
        {"qweight", "scales", "qzeros", MOEC_DTYPE_I32, MOEC_DTYPE_F16,
         MOEC_GEO_MATRIX_KEPT, 16, 64, 4096, 1, 64, MOEC_WFORMAT_GPTQ},
    };
    static const float two = 2.0f;

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        moec_projection p = {.out = 64, .in = 128, .n = 2};
        uint64_t n = table[i].scale_rows * table[i].scale_cols;
        moec_matrix m;
        moec_error err = MOEC_ERROR_INIT;

        p.part[0] =
            component(table[i].weight, table[i].dtype, table[i].geometry,
                      table[i].rows, table[i].cols, zeros, table[i].bytes);
        p.part[1] =
            component(table[i].scale, table[i].scale_dtype, table[i].geometry,
                      table[i].scale_rows, table[i].scale_cols, zeros,
                      n * moec_dtype_bits(table[i].scale_dtype) / 8);
        if (table[i].second != NULL && table[i].geometry != 0)
            p.part[p.n++] = component("qzeros", MOEC_DTYPE_I32,
                                      MOEC_GEO_MATRIX_KEPT, 1, 8, zeros, 32);
        else if (table[i].second != NULL)
            p.part[p.n++] = component(table[i].second, MOEC_DTYPE_F32,
                                      MOEC_GEO_SCALAR, 1, 1, &two, 4);
        if (moec_projection_matrix(&p, &m, &err) != MOEC_OK)
            fail_msg("row %zu: %s", i, err.text);
        assert_int_equal(m.format, table[i].format);
        if (m.format == MOEC_WFORMAT_NVFP4)
            assert_true(*m.scale2 >= 2.0f && *m.scale2 <= 2.0f);
        /* one byte less is another projection's */
        p.part[0].bytes--;
        assert_int_equal(moec_projection_matrix(&p, &m, NULL),
                         MOEC_E_UNSUPPORTED);
    }
}

static void refuses_act_order(void **state)
{
    moec_projection p = {.out = 64, .in = 128, .n = 4};
    uint32_t order[128];
    moec_matrix m;
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    for (uint32_t i = 0; i < 128; i++)
        order[i] = i / 64;
    p.part[0] = component("qweight", MOEC_DTYPE_I32, MOEC_GEO_MATRIX_KEPT, 16,
                          64, zeros, 4096);
    p.part[1] = component("scales", MOEC_DTYPE_F16, MOEC_GEO_MATRIX_KEPT, 2, 64,
                          zeros, 256);
    p.part[2] = component("qzeros", MOEC_DTYPE_I32, MOEC_GEO_MATRIX_KEPT, 2, 8,
                          zeros, 64);
    p.part[3] = component("g_idx", MOEC_DTYPE_I32, MOEC_GEO_MATRIX_KEPT, 1, 128,
                          order, sizeof(order));
    assert_int_equal(moec_projection_matrix(&p, &m, &err), MOEC_OK);
    assert_int_equal(m.block_in, 64);
    order[5] = 1;
    assert_int_equal(moec_projection_matrix(&p, &m, &err), MOEC_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "act-order"));
}

static void refuses_weights_that_it_does_not_know(void **state)
{
    moec_projection p = {.out = 64, .in = 128, .n = 1};
    moec_matrix m;

    (void)state;
    p.part[0] = component("weight", MOEC_DTYPE_F8_E5M2, MOEC_GEO_MATRIX, 64,
                          128, zeros, 8192);
    assert_int_equal(moec_projection_matrix(&p, &m, NULL), MOEC_E_UNSUPPORTED);
    p.part[0].dtype = MOEC_DTYPE_F8_E4M3; /* without a scale */
    assert_int_equal(moec_projection_matrix(&p, &m, NULL), MOEC_E_UNSUPPORTED);
    p.part[0].name = "input_scale";
    assert_int_equal(moec_projection_matrix(&p, &m, NULL), MOEC_E_UNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(experts_are_the_references),
        cmocka_unit_test(blocks_are_counted_and_not_divided),
        cmocka_unit_test(formats_are_told_apart),
        cmocka_unit_test(refuses_act_order),
        cmocka_unit_test(refuses_weights_that_it_does_not_know),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
