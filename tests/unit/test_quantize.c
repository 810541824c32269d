/* SPDX-License-Identifier: Apache-2.0
 *
 * The quantiser: what is exact stays exact, the error is the format's and is
 * reported as it is, and nothing that is not finite passes. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "matrix_case.h"

static moec_kernels *kernels;

static int setup(void **state)
{
    moec_kernels_opts o = MOEC_KERNELS_OPTS_INIT;

    (void)state;
    o.n_threads = 2;
    return moec_kernels_open(&kernels, &o, NULL) != MOEC_OK;
}

static int teardown(void **state)
{
    (void)state;
    moec_kernels_close(kernels);
    guarded_free_all();
    return 0;
}

static const moec_matrix likes[] = {
    {.format = MOEC_WFORMAT_FP8,
     .scale_dtype = MOEC_DTYPE_F32,
     .block_out = 128,
     .block_in = 128},
    {.format = MOEC_WFORMAT_FP8,
     .scale_dtype = MOEC_DTYPE_F8_E8M0,
     .block_out = 128,
     .block_in = 128},
    {.format = MOEC_WFORMAT_FP8,
     .scale_dtype = MOEC_DTYPE_U8,
     .block_out = 1,
     .block_in = 32},
    {.format = MOEC_WFORMAT_FP8,
     .scale_dtype = MOEC_DTYPE_BF16,
     .block_out = 1,
     .block_in = 4096},
    {.format = MOEC_WFORMAT_INT4,
     .scale_dtype = MOEC_DTYPE_BF16,
     .block_in = 32},
    {.format = MOEC_WFORMAT_INT4,
     .scale_dtype = MOEC_DTYPE_F16,
     .block_in = 128},
    {.format = MOEC_WFORMAT_MXFP4,
     .scale_dtype = MOEC_DTYPE_U8,
     .block_in = 32},
};
/* Largest error of a value over the largest value of its block, from the
 * format: half the widest step. E4M3 at 448: 16 / 448; with a power of two as
 * scale the same step over an amax of half that. INT4: half a step of
 * amax / 7.5, and bf16's rounding of the scale. E2M1: half a step of 2 over an
 * amax of 4 to 8, saturating above 6: 1.999 / 8. */
static const double bounds[] = {
    16.0 / 448 + 1e-6, 32.0 / 448,       32.0 / 448, 16.0 / 448 + 4e-3,
    0.5 / 7.5 + 4e-3,  0.5 / 7.5 + 1e-3, 0.25};
#define N_LIKES (sizeof(likes) / sizeof(likes[0]))

struct made {
    moec_matrix m;
    uint8_t *data, *scale;
    moec_quant_error e;
};

static moec_status quantize(const float *w, moec_matrix like, uint32_t n_out,
                            uint32_t n_in, uint32_t part, struct made *out,
                            moec_error *err)
{
    uint64_t row, data, scale, zeros;

    like.struct_bytes = sizeof(like);
    like.n_out = n_out;
    like.n_in = n_in;
    like.part_rows = part;
    case_sizes(&like, &row, &data, &scale, &zeros);
    out->data = guarded(data);
    out->scale = guarded(scale * dtype_bytes(like.scale_dtype));
    out->m = like;
    out->m.data = out->data;
    out->m.scale = out->scale;
    return moec_quantize_rows(kernels, &like, w, out->data, out->scale, &out->e,
                              err);
}

static void stays_within_the_formats_error(void **state)
{
    enum { OUT = 200, IN = 416 };
    float *w = guarded(OUT * IN * sizeof(float));
    uint64_t rng = 1;

    (void)state;
    for (size_t f = 0; f < N_LIKES; f++) {
        double max = 0, square = 0, square_in = 0;
        struct made q;

        for (size_t i = 0; i < OUT * IN; i++)
            w[i] = random_float(&rng) * random_float(&rng) * 0.1f;
        assert_int_equal(quantize(w, likes[f], OUT, IN, 100, &q, NULL),
                         MOEC_OK);
        for (uint32_t o = 0; o < OUT; o++)
            for (uint32_t i = 0; i < IN; i++) {
                double x = (double)w[o * IN + i];
                double d = fabs((double)case_value(&q.m, q.data, q.scale, NULL,
                                                   NULL, o, i) -
                                x);

                max = d > max ? d : max;
                square += d * d;
                square_in += x * x;
            }
        if (!(max <= bounds[f] * 0.1))
            fail_msg("format %zu: %g", f, max / 0.1);
        assert_true(max == q.e.max_abs);
        assert_true(fabs(sqrt(square / (OUT * IN)) / q.e.rms - 1) < 1e-9);
        assert_true(fabs(sqrt(square_in / (OUT * IN)) / q.e.rms_in - 1) < 1e-9);
        assert_int_equal(q.e.n, OUT * IN);
    }
}

/* What the format can say, it says: a dequantised matrix comes back. MXFP4's
 * scale follows from an amax of 4 or 6; FP8's from 448. */
static void keeps_what_is_exact(void **state)
{
    static const float fp4[8] = {0, .5f, 1, 1.5f, 2, 3, 4, 6};
    enum { OUT = 8, IN = 128 };
    float *w = guarded(OUT * IN * sizeof(float));
    struct made q;

    (void)state;
    for (uint32_t i = 0; i < OUT * IN; i++)
        w[i] = ldexpf(i % 32 ? fp4[i / 7 % 8] : -6.0f, (int)(i / IN) - 20) *
               (i % 3 ? 1 : -1);
    assert_int_equal(quantize(w, likes[6], OUT, IN, 0, &q, NULL), MOEC_OK);
    assert_true(q.e.max_abs == 0.0);
    assert_true(quantize(w, likes[2], OUT, IN, 0, &q, NULL) == MOEC_OK);
    assert_true(q.e.max_abs == 0.0);
    for (uint32_t i = 0; i < OUT * IN; i++)
        w[i] = i % 128 ? (float)((int)(i % 16) - 8) : -448.0f;
    assert_int_equal(quantize(w, likes[0], OUT, IN, 0, &q, NULL), MOEC_OK);
    assert_true(q.e.max_abs == 0.0);
    for (uint32_t i = 0; i < OUT * IN; i++)
        w[i] = i % 32 == 5 ? 7.5f : (float)((int)(i % 15) - 7);
    assert_int_equal(quantize(w, likes[4], OUT, IN, 0, &q, NULL), MOEC_OK);
    assert_true(q.e.max_abs == 0.5);
}

static void rounds_ties_to_even(void **state)
{
    static const float ties[8] = {4.0f,  .25f, .75f, 1.25f,
                                  1.75f, 2.5f, 3.5f, 5.0f};
    static const float want[8] = {4.0f, 0, 1, 1, 2, 2, 4, 4};
    float w[32] = {0};
    struct made q;

    (void)state;
    for (unsigned i = 0; i < 32; i++)
        w[i] = i < 8 ? ties[i] : i < 16 ? -ties[i - 8] : 0.0f;
    assert_int_equal(quantize(w, likes[6], 1, 32, 0, &q, NULL), MOEC_OK);
    assert_int_equal(q.scale[0], 127);
    for (unsigned i = 0; i < 16; i++)
        assert_true(case_value(&q.m, q.data, q.scale, NULL, NULL, 0, i) ==
                    (i < 8 ? want[i] : -want[i - 8]));
}

static void gives_zeros_a_scale(void **state)
{
    float *w = guarded(128 * 128 * sizeof(float));

    (void)state;
    for (size_t f = 0; f < N_LIKES; f++)
        for (int tiny = 0; tiny < 3; tiny++) {
            struct made q;
            uint32_t code;

            for (uint32_t i = 0; i < 128 * 128; i++)
                w[i] = tiny == 1 ? 0x1p-149f : tiny == 2 ? 3e38f : 0.0f;
            assert_int_equal(quantize(w, likes[f], 128, 128, 0, &q, NULL),
                             MOEC_OK);
            code = get_code(q.scale, 0, dtype_bytes(q.m.scale_dtype));
            assert_true(code_value(q.m.scale_dtype, code) > 0);
            if (!tiny) {
                assert_true(code_value(q.m.scale_dtype, code) == 1.0);
                assert_true(q.e.max_abs == 0.0);
            }
            assert_true(isfinite(
                (double)case_value(&q.m, q.data, q.scale, NULL, NULL, 3, 5)));
        }
}

static void refuses_values_that_are_not_finite(void **state)
{
    float *w = guarded(40 * 64 * sizeof(float));

    (void)state;
    for (size_t f = 0; f < N_LIKES; f++)
        for (int i = 0; i < 2; i++) {
            moec_error err = MOEC_ERROR_INIT;
            struct made q;

            memset(w, 0, 40 * 64 * sizeof(float));
            w[33 * 64 + 40] = i ? INFINITY : NAN;
            assert_int_equal(quantize(w, likes[f], 40, 64, 0, &q, &err),
                             MOEC_E_ARG);
            assert_non_null(strstr(err.text, "not finite"));
        }
}

static void refuses_other_formats(void **state)
{
    moec_matrix m = {.format = MOEC_WFORMAT_NVFP4,
                     .scale_dtype = MOEC_DTYPE_F8_E4M3,
                     .block_in = 16};
    float w[32] = {0};
    struct made q;

    (void)state;
    assert_int_equal(quantize(w, m, 1, 32, 0, &q, NULL), MOEC_E_UNSUPPORTED);
    m = likes[0];
    m.block_in = 0;
    q = (struct made){.m = m};
    m.struct_bytes = sizeof(m);
    m.n_out = 1;
    m.n_in = 32;
    assert_int_equal(moec_quantize_rows(kernels, &m, w, w, w, NULL, NULL),
                     MOEC_E_ARG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stays_within_the_formats_error),
        cmocka_unit_test(keeps_what_is_exact),
        cmocka_unit_test(rounds_ties_to_even),
        cmocka_unit_test(gives_zeros_a_scale),
        cmocka_unit_test(refuses_values_that_are_not_finite),
        cmocka_unit_test(refuses_other_formats),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
