/* SPDX-License-Identifier: Apache-2.0
 *
 * Matrix products and the expert FFN of a device against the CPU's: EXACT bit
 * for bit, FAST within what bf16 inputs and activations can do. */

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <moec/moec.h>

#include "device_test.h"
#include "matrix_case.h"

static moec_device *device;
static moec_kernels *cpu;

static int open_both(void **state)
{
    (void)state;
    return test_open_both(&device, &cpu, MOEC_ISA_AUTO);
}

static int close_both(void **state)
{
    (void)state;
    moec_device_close(device);
    moec_kernels_close(cpu);
    guarded_free_all();
    return 0;
}

/* The arrays of a case on the device. */
static moec_matrix matrix_up(const struct matrix_case *c, uint32_t n)
{
    moec_matrix m = c->m;
    uint64_t halves = m.scale2_rows ? m.n_out / m.scale2_rows : 1;

    m.data = test_to_device(device, m.data, m.data_stride * n);
    m.scale = test_to_device(device, m.scale, m.scale_stride * n);
    if (m.zeros)
        m.zeros = test_to_device(device, m.zeros, m.zeros_stride * n);
    if (m.scale2)
        m.scale2 = test_to_device(device, m.scale2, halves * 4 * n);
    if (m.bias)
        m.bias = test_to_device(device, m.bias, m.bias_stride * n);
    return m;
}

static void matrix_down(moec_matrix *m)
{
    moec_device_free(device, (void *)(uintptr_t)m->data);
    moec_device_free(device, (void *)(uintptr_t)m->scale);
    moec_device_free(device, (void *)(uintptr_t)m->zeros);
    moec_device_free(device, (void *)(uintptr_t)m->scale2);
    moec_device_free(device, (void *)(uintptr_t)m->bias);
}

/* -------------------------------------------------------------- matmul */

static void check_matmul(moec_matrix like, uint32_t n_out, uint32_t n_in,
                         uint32_t tokens, unsigned flags, uint64_t *rng)
{
    uint64_t xs = n_in + 3, os = n_out + 1;
    struct matrix_case c;
    float *x = guarded(tokens * xs * 4);
    float *want = guarded(tokens * os * 4), *got = guarded(tokens * os * 4);
    moec_launch l = MOEC_LAUNCH_INIT;
    moec_error err = MOEC_ERROR_INIT;
    moec_matrix m;
    void *dx, *dout;

    like.n_out = n_out;
    like.n_in = n_in;
    c = matrix_case_make(like, 2, flags, rng);
    for (uint64_t i = 0; i < tokens * xs; i++)
        x[i] = random_float(rng) * 2.0f;
    m = matrix_up(&c, 2);
    dx = test_to_device(device, x, tokens * xs * 4);
    dout = test_to_device(device, got, tokens * os * 4); /* the poison */
    assert_int_equal(moec_matmul(cpu, &c.m, 1, x, xs, tokens, want, os, &err),
                     MOEC_OK);
    if (moec_device_matmul(device, &m, 1, dx, xs, tokens, dout, os, &l, &err) !=
        MOEC_OK)
        fail_msg("%s", err.text);
    test_from_device(device, got, dout, tokens * os * 4);
    if (memcmp(got, want, tokens * os * 4) != 0)
        fail_msg("format %d, %u x %u, %u tokens: other bits", (int)like.format,
                 n_out, n_in, tokens);
    moec_device_free(device, dx);
    moec_device_free(device, dout);
    matrix_down(&m);
    matrix_case_free(&c);
    guarded_free_all();
}

static const moec_matrix formats[] = {
    {.format = MOEC_WFORMAT_F32},
    {.format = MOEC_WFORMAT_BF16},
    {.format = MOEC_WFORMAT_F16},
    {.format = MOEC_WFORMAT_FP8,
     .scale_dtype = MOEC_DTYPE_F32,
     .block_out = 128,
     .block_in = 128},
    {.format = MOEC_WFORMAT_FP8,
     .scale_dtype = MOEC_DTYPE_F8_E8M0,
     .block_out = 128,
     .block_in = 128},
    {.format = MOEC_WFORMAT_FP8,
     .scale_dtype = MOEC_DTYPE_BF16,
     .block_out = 1,
     .block_in = 4096},
    {.format = MOEC_WFORMAT_FP8,
     .scale_dtype = MOEC_DTYPE_U8,
     .block_out = 1,
     .block_in = 32},
    {.format = MOEC_WFORMAT_FP8,
     .scale_dtype = MOEC_DTYPE_F16,
     .block_out = 24,
     .block_in = 64},
    {.format = MOEC_WFORMAT_FP8,
     .scale_dtype = MOEC_DTYPE_F8_E8M0,
     .block_out = 8,
     .block_in = 64},
    {.format = MOEC_WFORMAT_FP8,
     .scale_dtype = MOEC_DTYPE_F32,
     .block_out = 3,
     .block_in = 20},
    {.format = MOEC_WFORMAT_INT4,
     .scale_dtype = MOEC_DTYPE_BF16,
     .block_in = 32},
    {.format = MOEC_WFORMAT_INT4,
     .scale_dtype = MOEC_DTYPE_F16,
     .block_in = 128},
    {.format = MOEC_WFORMAT_INT4,
     .scale_dtype = MOEC_DTYPE_F32,
     .block_in = 512},
    {.format = MOEC_WFORMAT_MXFP4,
     .scale_dtype = MOEC_DTYPE_U8,
     .block_in = 32},
    {.format = MOEC_WFORMAT_NVFP4,
     .scale_dtype = MOEC_DTYPE_F8_E4M3,
     .block_in = 16},
    {.format = MOEC_WFORMAT_AWQ, .scale_dtype = MOEC_DTYPE_F16, .block_in = 32},
    {.format = MOEC_WFORMAT_GPTQ,
     .scale_dtype = MOEC_DTYPE_F16,
     .block_in = 32},
};
#define N_FORMATS (sizeof(formats) / sizeof(formats[0]))

static void multiplies_bit_for_bit(void **state)
{
    static const uint32_t sizes[][3] = {{8, 8, 1}, {40, 136, 2}, {24, 296, 17}};
    uint64_t rng = 11;

    (void)state;
    for (size_t f = 0; f < N_FORMATS; f++)
        for (size_t s = 0; s < 3; s++)
            check_matmul(formats[f], sizes[s][0], sizes[s][1], sizes[s][2],
                         s == 1   ? CASE_BIAS
                         : s == 2 ? CASE_ZEROS | CASE_GAPS
                                  : 0,
                         &rng);
    check_matmul(formats[0], 33, 77, 3, CASE_BIAS, &rng);
    check_matmul(formats[1], 1, 1, 33, 0, &rng);
    check_matmul(formats[3], 131, 131, 5, CASE_BIAS, &rng);
}

/* ----------------------------------------------------------------- ffn */

struct layer {
    moec_ffn_config c;
    moec_ffn_in in;
    struct matrix_case w13, w2;
    uint32_t *sorted;
    uint64_t *first;
    float *weights;
    uint32_t n, n_columns;
};

/* Columns go to rows by (t + 2k) mod n_rows, some to none, none to row 1. */
static struct layer layer_make(moec_ffn_config c, moec_matrix w13,
                               moec_matrix w2, uint32_t n_rows, uint32_t tokens,
                               uint32_t cols, moec_dtype x_dtype,
                               unsigned flags, uint64_t *rng)
{
    struct layer l = {.c = c, .n_columns = tokens * cols};
    uint32_t xb = dtype_bytes(x_dtype);
    uint8_t *x = guarded((size_t)tokens * c.hidden * xb);

    w13.n_out = c.inter * (c.gated ? 2 : 1);
    w13.n_in = c.hidden;
    w2.n_out = c.hidden;
    w2.n_in = c.inter;
    l.w13 = matrix_case_make(w13, n_rows, flags, rng);
    l.w2 = matrix_case_make(w2, n_rows, flags, rng);
    l.sorted = guarded((size_t)l.n_columns * 4 + 4);
    l.first = guarded((n_rows + 1) * sizeof(uint64_t));
    l.weights = guarded((size_t)l.n_columns * 4);
    for (size_t i = 0; i < l.n_columns; i++)
        l.weights[i] = 0.5f + 0.4f * random_float(rng);
    for (size_t i = 0; i < (size_t)tokens * c.hidden; i++) {
        float f = random_float(rng) * 2.0f;
        uint32_t u;

        memcpy(&u, &f, 4);
        put_code_at(x, i, xb, x_dtype == MOEC_DTYPE_BF16 ? u >> 16 : u);
    }
    for (uint32_t r = 0; r < n_rows; r++) {
        l.first[r] = l.n;
        for (uint32_t p = 0; p < l.n_columns; p++)
            if ((p / cols + 2 * (p % cols)) % n_rows == r && p % 7 != 6 &&
                (n_rows < 4 || r != 1))
                l.sorted[l.n++] = p;
    }
    l.first[n_rows] = l.n;
    l.in = (moec_ffn_in){.struct_bytes = sizeof(l.in),
                         .n_rows = n_rows,
                         .x_dtype = x_dtype,
                         .x = x,
                         .n_tokens = tokens,
                         .n_cols = cols,
                         .weights = l.weights,
                         .sorted = l.sorted,
                         .slot_first = l.first};
    return l;
}

static void layer_free(struct layer *l)
{
    matrix_case_free(&l->w13);
    matrix_case_free(&l->w2);
    guarded_free_all();
}

static float *on_cpu(const struct layer *l, moec_precision precision)
{
    moec_ffn_config c = l->c;
    moec_ffn_in in = l->in;
    moec_error err = MOEC_ERROR_INIT;
    float *y = guarded((size_t)l->n_columns * c.hidden * sizeof(float));
    uint64_t bytes;

    in.w13 = &l->w13.m;
    in.w2 = &l->w2.m;
    c.precision = precision;
    bytes = moec_ffn_workspace_bytes(cpu, &c, l->n);
    if (moec_ffn(cpu, &c, &in, y, guarded((bytes + 63) / 64 * 64), bytes,
                 &err) != MOEC_OK)
        fail_msg("%s", err.text);
    return y;
}

/* y of all columns; those of no run must keep the poison. `spare` more
 * columns than there are bound the call. */
static float *on_device(const struct layer *l, moec_precision precision,
                        uint64_t spare)
{
    moec_ffn_config c = l->c;
    moec_ffn_in in = l->in;
    moec_error err = MOEC_ERROR_INIT;
    moec_launch launch = MOEC_LAUNCH_INIT;
    size_t bytes = (size_t)l->n_columns * c.hidden * sizeof(float);
    uint32_t xb = dtype_bytes(in.x_dtype);
    moec_matrix w13 = matrix_up(&l->w13, in.n_rows);
    moec_matrix w2 = matrix_up(&l->w2, in.n_rows);
    float *y = guarded(bytes);
    void *dy = test_to_device(device, y, bytes);

    c.precision = precision;
    in.w13 = &w13;
    in.w2 = &w2;
    in.x = test_to_device(device, in.x, (size_t)in.n_tokens * c.hidden * xb);
    in.sorted = test_to_device(device, l->sorted, l->n * 4ull);
    in.slot_first = test_to_device(device, l->first, (in.n_rows + 1ull) * 8);
    in.weights = test_to_device(device, l->weights, l->n_columns * 4ull);
    launch.workspace_bytes =
        moec_device_ffn_workspace_bytes(device, &c, l->n + spare, in.n_rows);
    launch.workspace = test_to_device(device, NULL, launch.workspace_bytes);
    if (moec_device_ffn(device, &c, &in, l->n + spare, dy, &launch, &err) !=
        MOEC_OK)
        fail_msg("%s", err.text);
    test_from_device(device, y, dy, bytes);
    matrix_down(&w13);
    matrix_down(&w2);
    moec_device_free(device, (void *)(uintptr_t)in.x);
    moec_device_free(device, (void *)(uintptr_t)in.sorted);
    moec_device_free(device, (void *)(uintptr_t)in.slot_first);
    moec_device_free(device, (void *)(uintptr_t)in.weights);
    moec_device_free(device, launch.workspace);
    moec_device_free(device, dy);
    return y;
}

/* EXACT is the CPU's; FAST is near EXACT, and leaves the same rows alone. */
static void check_layer(const struct layer *l, const char *what)
{
    size_t n = (size_t)l->n_columns * l->c.hidden;
    float *want = on_cpu(l, MOEC_PRECISION_EXACT);
    float *got = on_device(l, MOEC_PRECISION_EXACT, 5);
    double square = 0, size = 0;

    if (memcmp(got, want, n * sizeof(float)) != 0)
        fail_msg("%s: EXACT has other bits", what);
    got = on_device(l, MOEC_PRECISION_FAST, 3);
    for (size_t i = 0; i < n; i++) {
        double d = (double)got[i] - (double)want[i];

        if (memcmp(&got[i], &want[i], 4) == 0)
            continue;
        square += d * d;
        size += (double)want[i] * (double)want[i];
    }
    if (!(sqrt(square / (size + 1e-12)) < 8e-3))
        fail_msg("%s: FAST is off by %g", what, sqrt(square / size));
    if (n && l->n && square == 0)
        fail_msg("%s: FAST is EXACT", what);
}

static void computes_every_activation(void **state)
{
    uint64_t rng = 1;

    (void)state;
    for (int act = 0; act <= MOEC_ACT_SITU; act++) {
        moec_ffn_config c = ffn_case((moec_act)act, 40, 24);
        struct layer l;
        char what[64];

        c.limit = act % 2 ? 0.75f : 0.0f;
        l = layer_make(c, formats[1], formats[1], 3, 4, 2, MOEC_DTYPE_F32, 0,
                       &rng);
        (void)snprintf(what, sizeof(what), "activation %d", act);
        check_layer(&l, what);
        layer_free(&l);
    }
}

static void obeys_every_option(void **state)
{
    uint64_t rng = 2;

    (void)state;
    for (unsigned i = 0; i < 8; i++) {
        moec_ffn_config c = ffn_case(MOEC_ACT_SILU, 72, 40);
        moec_matrix m = formats[1];
        struct layer l;

        c.up_first = i & 1;
        c.weight_on_input = i >> 1 & 1;
        m.bias_dtype = i & 4 ? MOEC_DTYPE_BF16 : MOEC_DTYPE_F32;
        l = layer_make(c, m, m, 5, 7, 3,
                       i & 4 ? MOEC_DTYPE_BF16 : MOEC_DTYPE_F32,
                       i & 4 ? CASE_BIAS | CASE_GAPS : CASE_BIAS, &rng);
        check_layer(&l, "options");
        layer_free(&l);
    }
}

/* Sizes around every tile and chunk, one column and more than a piece. */
static void multiplies_every_format(void **state)
{
    static const uint32_t sizes[][4] = {
        /* hidden, inter, tokens, columns */
        {32, 16, 1, 1},
        {288, 160, 3, 2},
        {64, 328, 17, 1},
    };
    uint64_t rng = 3;

    (void)state;
    for (size_t f = 0; f < N_FORMATS; f++)
        for (size_t s = 0; s < 3; s++) {
            moec_ffn_config c =
                ffn_case(MOEC_ACT_SILU, sizes[s][0], sizes[s][1]);
            moec_matrix m13 = formats[f];
            struct layer l;
            char what[64];

            m13.part_rows = sizes[s][1];
            if (m13.format == MOEC_WFORMAT_NVFP4)
                m13.scale2_rows = sizes[s][1];
            l = layer_make(c, m13, formats[f], s == 1 ? 4 : 3, sizes[s][2],
                           sizes[s][3], MOEC_DTYPE_BF16,
                           s == 1 ? CASE_ZEROS | CASE_BIAS : 0, &rng);
            (void)snprintf(what, sizeof(what), "format %d.%zu size %zu",
                           (int)m13.format, f, s);
            check_layer(&l, what);
            layer_free(&l);
        }
}

/* More columns than a piece has, and w2 of another format than w13. */
static void cuts_columns_into_pieces(void **state)
{
    uint64_t rng = 4;
    struct layer l;

    (void)state;
    l = layer_make(ffn_case(MOEC_ACT_SILU, 128, 64), formats[3], formats[13], 2,
                   81, 1, MOEC_DTYPE_F32, 0, &rng);
    check_layer(&l, "fp8 then mxfp4");
    layer_free(&l);
    l = layer_make(ffn_case(MOEC_ACT_RELU2, 64, 96), formats[10], formats[1], 1,
                   40, 1, MOEC_DTYPE_F32, 0, &rng);
    check_layer(&l, "int4 then bf16");
    layer_free(&l);
}

/* A column does not depend on the others of the call. */
static void is_invariant_to_the_batch(void **state)
{
    uint64_t rng = 6;
    struct layer l = layer_make(ffn_case(MOEC_ACT_SILU, 128, 48), formats[3],
                                formats[3], 2, 45, 1, MOEC_DTYPE_BF16, 0, &rng);
    float *all = on_device(&l, MOEC_PRECISION_FAST, 0);

    (void)state;
    for (uint32_t i = 0; i < l.n; i += 11) {
        struct layer one = l;
        uint64_t first[3] = {0, i < l.first[1], 1};
        float *y;

        one.n = 1;
        one.sorted = l.sorted + i;
        one.first = first;
        y = on_device(&one, MOEC_PRECISION_FAST, 0);
        assert_memory_equal(y + (size_t)l.sorted[i] * 128,
                            all + (size_t)l.sorted[i] * 128,
                            128 * sizeof(float));
    }
    layer_free(&l);
}

/* A weight that is NaN must not become a number on the way to bf16. */
static void keeps_nans_of_fp8(void **state)
{
    uint64_t rng = 7;
    struct layer l = layer_make(ffn_case(MOEC_ACT_SILU, 128, 32), formats[3],
                                formats[3], 1, 3, 1, MOEC_DTYPE_BF16, 0, &rng);
    uint8_t *w2 = (uint8_t *)(uintptr_t)l.w2.m.data;
    float *y;

    (void)state;
    w2[(size_t)45 * 32 + 13] = 0xff;
    y = on_device(&l, MOEC_PRECISION_FAST, 0);
    for (uint32_t t = 0; t < 3; t++)
        for (uint32_t o = 0; o < 128; o++)
            assert_int_equal(isnan(y[t * 128 + o]) != 0, o == 45);
    layer_free(&l);
}

/* What only the device can see: bounded, nothing out of range is written. */
static void bounds_what_the_host_cannot_check(void **state)
{
    uint64_t rng = 8;

    (void)state;
    for (int fast = 0; fast < 2; fast++) {
        struct layer l =
            layer_make(ffn_case(MOEC_ACT_SILU, 32, 16), formats[1], formats[1],
                       3, 4, 2, MOEC_DTYPE_F32, 0, &rng);
        float *want = on_device(&l, (moec_precision)fast, 0), *got;
        uint32_t out = l.sorted[0];

        l.sorted[0] = 8; /* of 8 columns */
        got = on_device(&l, (moec_precision)fast, 0);
        for (uint32_t p = 0; p < 8; p++)
            if (p != out)
                assert_memory_equal(got + p * 32, want + p * 32, 32 * 4);
        assert_true(isnan(got[out * 32]) || got[out * 32] != want[out * 32]);
        l.first[1] = 1ull << 40;
        (void)on_device(&l, (moec_precision)fast, 0);
        layer_free(&l);
    }
}

static void does_nothing_without_columns(void **state)
{
    uint64_t rng = 5;
    struct layer l = layer_make(ffn_case(MOEC_ACT_SILU, 16, 16), formats[1],
                                formats[1], 3, 0, 2, MOEC_DTYPE_F32, 0, &rng);
    moec_ffn_in in = l.in;
    moec_launch launch = MOEC_LAUNCH_INIT;

    (void)state;
    in.w13 = &l.w13.m;
    in.w2 = &l.w2.m;
    assert_int_equal(moec_device_ffn_workspace_bytes(device, &l.c, 0, 3), 0);
    assert_int_equal(moec_device_ffn(device, &l.c, &in, 0, NULL, &launch, NULL),
                     MOEC_OK);
    (void)on_device(&l, MOEC_PRECISION_EXACT, 4);
    (void)on_device(&l, MOEC_PRECISION_FAST, 4);
    layer_free(&l);
}

static void refuses_what_does_not_fit(void **state)
{
    uint64_t rng = 5;
    struct layer l = layer_make(ffn_case(MOEC_ACT_SILU, 16, 16), formats[1],
                                formats[1], 3, 4, 2, MOEC_DTYPE_F32, 0, &rng);
    moec_ffn_in in = l.in;
    moec_launch launch = MOEC_LAUNCH_INIT;
    float y[8 * 16];

    (void)state;
    in.w13 = &l.w13.m;
    in.w2 = &l.w2.m;
#define REFUSES(status, text_)                                                 \
  do {                                                                         \
    moec_error err = MOEC_ERROR_INIT;                                          \
    assert_int_equal(                                                          \
        moec_device_ffn(device, &l.c, &in, l.n, y, &launch, &err), status);    \
    assert_non_null(strstr(err.text, text_));                                  \
  } while (0)
    REFUSES(MOEC_E_ARG, "a workspace of 0 bytes");
    launch.workspace =
        test_to_device(device, NULL, launch.workspace_bytes = 1 << 20);
    l.c.inter = 8;
    REFUSES(MOEC_E_ARG, "w13 is 32 x 16, not 16 x 16");
    l.c.inter = 16;
    l.c.gated = 0;
    REFUSES(MOEC_E_UNSUPPORTED, "activation 0 without a gate");
    l.c.gated = 1;
    l.w13.m.data = (const uint8_t *)l.w13.m.data + 1;
    REFUSES(MOEC_E_ARG, "not aligned");
    in.sorted = NULL;
    REFUSES(MOEC_E_ARG, "without");
    moec_device_free(device, launch.workspace);
    layer_free(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(multiplies_bit_for_bit),
        cmocka_unit_test(computes_every_activation),
        cmocka_unit_test(obeys_every_option),
        cmocka_unit_test(multiplies_every_format),
        cmocka_unit_test(cuts_columns_into_pieces),
        cmocka_unit_test(is_invariant_to_the_batch),
        cmocka_unit_test(keeps_nans_of_fp8),
        cmocka_unit_test(bounds_what_the_host_cannot_check),
        cmocka_unit_test(does_nothing_without_columns),
        cmocka_unit_test(refuses_what_does_not_fit),
    };

    return cmocka_run_group_tests(tests, open_both, close_both);
}
