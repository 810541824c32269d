/* SPDX-License-Identifier: Apache-2.0
 *
 * Stored matrices: every format and code against the published definitions,
 * the dot product against its documented order, casts exhaustively; all back
 * ends and numbers of threads bit for bit. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "matrix_case.h"

static moec_kernels *back_ends[BACK_ENDS];
static size_t n_back_ends;

static int setup(void **state)
{
    (void)state;
    n_back_ends = open_back_ends(back_ends);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    close_back_ends(back_ends, n_back_ends);
    guarded_free_all();
    return 0;
}

static bool same_bits(const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (memcmp(a + i, b + i, sizeof(*a)) != 0 &&
            !(isnan(a[i]) && isnan(b[i]))) {
            print_error("element %zu: %a, not %a\n", i, (double)a[i],
                        (double)b[i]);
            return false;
        }
    return true;
}

/* ---------------------------------------------------------------- casts */

static void widens_every_code(void **state)
{
    static const moec_dtype dtypes[] = {MOEC_DTYPE_F8_E4M3, MOEC_DTYPE_F8_E5M2,
                                        MOEC_DTYPE_F16, MOEC_DTYPE_BF16};

    (void)state;
    for (size_t d = 0; d < 4; d++) {
        uint32_t bytes = dtype_bytes(dtypes[d]);
        uint32_t n = bytes == 1 ? 256 : 65536;
        uint8_t *in = guarded((size_t)n * bytes);
        float *out = guarded(n * sizeof(float));

        for (uint32_t i = 0; i < n; i++)
            put_code_at(in, i, bytes, i);
        for (size_t b = 0; b < n_back_ends; b++) {
            assert_int_equal(moec_cast(back_ends[b], in, dtypes[d], out,
                                       MOEC_DTYPE_F32, n, NULL),
                             MOEC_OK);
            for (uint32_t i = 0; i < n; i++) {
                float want = (float)code_value(dtypes[d], i);

                if (isnan(want) ? !isnan(out[i])
                                : memcmp(&want, &out[i], 4) != 0)
                    fail_msg("%s %x: %a, not %a", moec_dtype_name(dtypes[d]),
                             (unsigned)i, (double)out[i], (double)want);
                if (isnan(want))
                    assert_int_equal(signbit(out[i]) != 0,
                                     i >> (8 * bytes - 1));
            }
        }
    }
}

/* Nearest code by search over all of them; ties to the even one. */
static uint32_t nearest(moec_dtype d, float f, bool saturate)
{
    uint32_t bits = moec_dtype_bits(d), half = 1u << (bits - 1);
    uint32_t sign = signbit(f) ? half : 0, lo = 0, hi = half - 1;
    double a = fabs((double)f);

    hi = d == MOEC_DTYPE_F16       ? 0x7c00
         : d == MOEC_DTYPE_BF16    ? 0x7f80
         : d == MOEC_DTYPE_F32     ? 0x7f800000
         : d == MOEC_DTYPE_F8_E4M3 ? 0x7e
                                   : 0x7b; /* infinity, or the largest */
    if (saturate && a >= code_value(d, hi))
        return sign | hi;
    if (!saturate && isinf(f))
        return sign | hi;
    while (hi - lo > 1) {
        uint32_t mid = (lo + hi) / 2;

        if (code_value(d, mid) <= a)
            lo = mid;
        else
            hi = mid;
    }
    { /* infinity stands for the next power of two when it comes to ties */
        double l = code_value(d, lo), h = code_value(d, hi);

        if (isinf(h))
            h = l + (l - code_value(d, lo - 1));
        if (a - l < h - a || (a - l == h - a && lo % 2 == 0))
            return sign | lo;
    }
    return sign | hi;
}

#define N_NARROW 20011u

/* Codes, what lies between them, neighbours of both, and random bits. */
static float narrow_input(moec_dtype d, uint32_t i, uint64_t *rng)
{
    uint32_t bits = moec_dtype_bits(d), code, u;
    double a, b;
    float f;

    if (i % 4 == 3) {
        u = (uint32_t)random_u64(rng);
        memcpy(&f, &u, sizeof(f));
        return isnan(f) ? 1.0f : f;
    }
    code = random_below(rng, (1u << (bits - 1)) - 2);
    a = code_value(d, code);
    b = code_value(d, code + 1);
    if (isnan(b) || isinf(b))
        b = a + (a - code_value(d, code - 1));
    if (isnan(a) || isinf(a))
        a = b = 1.0;
    f = (float)(i % 4 == 2 ? a : (a + b) / 2);
    if (i % 8 >= 4)
        f = nextafterf(f, i % 16 >= 8 ? INFINITY : 0.0f);
    return random_below(rng, 2) ? -f : f;
}

static void narrows_to_the_nearest(void **state)
{
    static const moec_dtype dtypes[] = {MOEC_DTYPE_F8_E4M3, MOEC_DTYPE_F8_E5M2,
                                        MOEC_DTYPE_F16, MOEC_DTYPE_BF16};
    uint64_t rng = 5;

    (void)state;
    for (size_t d = 0; d < 4; d++) {
        uint32_t bytes = dtype_bytes(dtypes[d]);
        float *in = guarded(N_NARROW * sizeof(float));
        uint8_t *out = guarded((size_t)N_NARROW * bytes);
        uint32_t *want = guarded(N_NARROW * sizeof(uint32_t));

        for (uint32_t i = 0; i < N_NARROW; i++)
            in[i] = narrow_input(dtypes[d], i, &rng);
        in[0] = INFINITY;
        in[1] = -INFINITY;
        in[2] = -0.0f;
        in[3] = 3.4e38f;
        for (uint32_t i = 0; i < N_NARROW; i++)
            want[i] = nearest(dtypes[d], in[i], bytes == 1);
        for (size_t b = 0; b < n_back_ends; b++) {
            memset(out, 0x55, (size_t)N_NARROW * bytes);
            assert_int_equal(moec_cast(back_ends[b], in, MOEC_DTYPE_F32, out,
                                       dtypes[d], N_NARROW, NULL),
                             MOEC_OK);
            for (uint32_t i = 0; i < N_NARROW; i++)
                if (get_code(out, i, bytes) != want[i])
                    fail_msg("%s of %a: %x, not %x", moec_dtype_name(dtypes[d]),
                             (double)in[i], (unsigned)get_code(out, i, bytes),
                             (unsigned)want[i]);
        }
    }
}

static void keeps_nan_in_every_cast(void **state)
{
    static const moec_dtype dtypes[] = {MOEC_DTYPE_F32, MOEC_DTYPE_BF16,
                                        MOEC_DTYPE_F16, MOEC_DTYPE_F8_E4M3,
                                        MOEC_DTYPE_F8_E5M2};
    static const uint32_t nans[] = {0x7fc00000u, 0x7fc0u, 0x7e00u, 0x7fu,
                                    0x7fu};
    uint8_t in[40 * 4], out[40 * 4];

    (void)state;
    for (size_t a = 0; a < 5; a++)
        for (size_t c = 0; c < 5; c++)
            for (size_t b = 0; b < n_back_ends; b++) {
                for (uint32_t i = 0; i < 40; i++)
                    put_code_at(in, i, dtype_bytes(dtypes[a]), nans[a]);
                assert_int_equal(moec_cast(back_ends[b], in, dtypes[a], out,
                                           dtypes[c], 40, NULL),
                                 MOEC_OK);
                for (uint32_t i = 0; i < 40; i++)
                    assert_true(isnan(code_value(
                        dtypes[c], get_code(out, i, dtype_bytes(dtypes[c])))));
            }
}

static void casts_any_length_and_pair(void **state)
{
    static const moec_dtype dtypes[] = {MOEC_DTYPE_F32, MOEC_DTYPE_BF16,
                                        MOEC_DTYPE_F16, MOEC_DTYPE_F8_E4M3,
                                        MOEC_DTYPE_F8_E5M2};
    uint64_t rng = 9;

    (void)state;
    for (size_t a = 0; a < 5; a++)
        for (size_t c = 0; c < 5; c++)
            for (uint32_t n = 0; n < 70; n += 1 + n / 20) {
                uint32_t ab = dtype_bytes(dtypes[a]);
                uint32_t cb = dtype_bytes(dtypes[c]);
                uint8_t *in = guarded(n * ab), *out = guarded(n * cb);

                for (uint32_t i = 0; i < n; i++)
                    put_code_at(in, i, ab, random_scale(dtypes[a], &rng));
                for (size_t b = 0; b < n_back_ends; b++) {
                    memset(out, 0x55, n * cb);
                    assert_int_equal(moec_cast(back_ends[b], in, dtypes[a], out,
                                               dtypes[c], n, NULL),
                                     MOEC_OK);
                    for (uint32_t i = 0; i < n; i++)
                        assert_int_equal(
                            get_code(out, i, cb),
                            nearest(dtypes[c],
                                    (float)code_value(dtypes[a],
                                                      get_code(in, i, ab)),
                                    cb == 1));
                }
            }
    guarded_free_all();
}

static void refuses_other_casts(void **state)
{
    moec_error err = MOEC_ERROR_INIT;
    float f = 1.0f;
    uint8_t b = 0;

    (void)state;
    assert_int_equal(
        moec_cast(back_ends[0], &f, MOEC_DTYPE_F32, &b, MOEC_DTYPE_I8, 1, &err),
        MOEC_E_UNSUPPORTED);
    assert_string_equal(err.text, "a cast from F32 to I8");
    assert_int_equal(moec_cast(back_ends[0], NULL, MOEC_DTYPE_F32, &b,
                               MOEC_DTYPE_F16, 1, NULL),
                     MOEC_E_ARG);
    assert_int_equal(moec_cast(back_ends[0], NULL, MOEC_DTYPE_F32, NULL,
                               MOEC_DTYPE_F16, 0, NULL),
                     MOEC_OK);
}

/* -------------------------------------------------------------- formats */

#define FP8(o, i, sd, bo, bi)                                                  \
  {                                                                            \
    .format = MOEC_WFORMAT_FP8, .n_out = (o), .n_in = (i),                     \
    .scale_dtype = MOEC_DTYPE_##sd, .block_out = (bo), .block_in = (bi)        \
  }
#define Q4(f, o, i, sd, bi)                                                    \
  {                                                                            \
    .format = MOEC_WFORMAT_##f, .n_out = (o), .n_in = (i),                     \
    .scale_dtype = MOEC_DTYPE_##sd, .block_in = (bi)                           \
  }
#define PLAIN(f, o, i)                                                         \
  {                                                                            \
    .format = MOEC_WFORMAT_##f, .n_out = (o), .n_in = (i)                      \
  }

static const moec_matrix shapes[] = {
    PLAIN(F32, 9, 37),
    PLAIN(F32, 3, 1),
    PLAIN(BF16, 17, 1300),
    PLAIN(BF16, 1, 7),
    PLAIN(F16, 10, 66),
    PLAIN(F16, 5, 31),
    FP8(64, 256, F32, 128, 128),
    FP8(192, 320, F32, 128, 128), /* ragged both ways */
    FP8(130, 129, BF16, 64, 64),
    FP8(20, 100, F16, 1, 100), /* per row */
    FP8(20, 77, F32, 20, 77),  /* per tensor */
    FP8(10, 96, U8, 1, 32),    /* mxfp8 */
    FP8(10, 1000, F8_E8M0, 1, 32),
    FP8(7, 300, F8_E8M0, 128, 128),
    FP8(3, 50, F32, 2, 7),
    Q4(INT4, 24, 256, BF16, 32),
    Q4(INT4, 9, 1128, F16, 128),
    Q4(INT4, 5, 40, F32, 40),
    Q4(MXFP4, 12, 288, U8, 32),
    Q4(MXFP4, 3, 1202, F8_E8M0, 32),
    Q4(NVFP4, 16, 176, F8_E4M3, 16),
    Q4(NVFP4, 3, 1050, F8_E4M3, 16),
    Q4(AWQ, 32, 96, F16, 32),
    Q4(AWQ, 8, 1030, BF16, 128),
    Q4(GPTQ, 24, 96, F16, 32),
    Q4(GPTQ, 8, 1064, F32, 128),
};
#define N_SHAPES (sizeof(shapes) / sizeof(shapes[0]))

static void check_dequantised(const struct matrix_case *c, uint32_t n)
{
    const moec_matrix *m = &c->m;
    size_t row = m->n_in;

    for (size_t b = 0; b < n_back_ends; b++)
        for (uint32_t e = 0; e < n; e++)
            for (uint32_t from = 0; from < m->n_out; from += 1 + from) {
                uint32_t rows = m->n_out - from;
                float *out = guarded(rows * row * sizeof(float));

                assert_int_equal(
                    moec_dequantize(back_ends[b], m, e, from, rows, out, NULL),
                    MOEC_OK);
                if (!same_bits(out,
                               c->values + ((size_t)e * m->n_out + from) * row,
                               rows * row))
                    fail_msg("format %u, %u x %u, back end %zu, row %u",
                             (unsigned)m->format, (unsigned)m->n_out,
                             (unsigned)m->n_in, b, (unsigned)from);
            }
}

static void dequantises_every_format(void **state)
{
    uint64_t rng = 1;

    (void)state;
    for (size_t i = 0; i < N_SHAPES; i++)
        for (unsigned flags = 0; flags < 8; flags += 2) {
            struct matrix_case c = matrix_case_make(shapes[i], 2, flags, &rng);

            check_dequantised(&c, 2);
            matrix_case_free(&c);
            guarded_free_all();
        }
}

/* gate 192 rows, up 192 rows: scales are [4][..], not [3][..]. */
static void restarts_blocks_in_each_part(void **state)
{
    moec_matrix m = FP8(384, 256, F32, 128, 128);
    moec_matrix i4 = Q4(INT4, 20, 64, BF16, 32);
    moec_matrix nv = Q4(NVFP4, 20, 64, F8_E4M3, 16);
    uint64_t rng = 2;
    struct matrix_case c;

    (void)state;
    m.part_rows = 192;
    c = matrix_case_make(m, 2, 0, &rng);
    assert_int_equal(c.m.scale_stride, 4 * 2 * 4);
    check_dequantised(&c, 2);
    matrix_case_free(&c);
    i4.part_rows = 10;
    c = matrix_case_make(i4, 2, CASE_ZEROS, &rng);
    check_dequantised(&c, 2);
    matrix_case_free(&c);
    nv.scale2_rows = 10;
    c = matrix_case_make(nv, 2, 0, &rng);
    check_dequantised(&c, 2);
    matrix_case_free(&c);
}

/* All 256 codes and scales, NaN and denormal ones too. */
static void dequantises_special_codes(void **state)
{
    moec_matrix m = FP8(256, 256, U8, 1, 256);
    uint8_t *data = guarded(65536), *scale = guarded(256);
    float *out = guarded(65536 * sizeof(float));

    (void)state;
    for (unsigned i = 0; i < 65536; i++)
        data[i] = (uint8_t)i;
    for (unsigned i = 0; i < 256; i++)
        scale[i] = (uint8_t)i;
    m.struct_bytes = sizeof(m);
    m.data = data;
    m.scale = scale;
    for (size_t b = 0; b < n_back_ends; b++) {
        assert_int_equal(
            moec_dequantize(back_ends[b], &m, 0, 0, 256, out, NULL), MOEC_OK);
        for (unsigned i = 0; i < 65536; i++) {
            float want = (float)(code_value(MOEC_DTYPE_F8_E4M3, i % 256) *
                                 code_value(MOEC_DTYPE_U8, i / 256));

            if (!same_bits(&out[i], &want, 1))
                fail_msg("code %x, scale %u, back end %zu", i % 256, i / 256,
                         b);
        }
    }
}

static void refuses_what_is_no_matrix(void **state)
{
    struct {
        moec_matrix m;
        const char *text;
    } bad[] = {
        {PLAIN(F32, 0, 4), "matrix: no matrix, or an empty one"},
        {PLAIN(BF16, 2, 4), "matrix: rows of 7 bytes where 8 are needed"},
        {FP8(2, 4, F8_E4M3, 1, 4), "matrix: fp8 cannot have scales of F8_E4M3"},
        {FP8(2, 4, F32, 0, 4), "matrix: fp8 with blocks of 0 x 4"},
        {Q4(INT4, 2, 12, BF16, 4), "matrix: int4 cannot be 2 x 12"},
        {Q4(AWQ, 12, 8, F16, 8), "matrix: awq cannot be 12 x 8"},
        {Q4(MXFP4, 2, 32, F32, 32), "matrix: mxfp4 cannot have scales of F32"},
        {Q4(NVFP4, 2, 32, U8, 16), "matrix: nvfp4 cannot have scales of U8"},
        {FP8(5, 4, F32, 1, 4), "matrix: 5 rows are not parts of 2"},
    };
    float bytes[64] = {0}, out[64];

    (void)state;
    bad[1].m.row_bytes = 7;
    bad[8].m.part_rows = 2;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        moec_error err = MOEC_ERROR_INIT;

        bad[i].m.struct_bytes = sizeof(moec_matrix);
        bad[i].m.data = bad[i].m.scale = bytes;
        assert_int_equal(
            moec_dequantize(back_ends[0], &bad[i].m, 0, 0, 1, out, &err),
            MOEC_E_ARG);
        assert_string_equal(err.text, bad[i].text);
    }
    bad[0].m = (moec_matrix)PLAIN(F32, 2, 2);
    bad[0].m.struct_bytes = sizeof(moec_matrix);
    bad[0].m.data = bytes;
    assert_int_equal(
        moec_dequantize(back_ends[0], &bad[0].m, 0, 1, 2, out, NULL),
        MOEC_E_ARG);
    bad[0].m.struct_bytes = 8;
    assert_int_equal(
        moec_dequantize(back_ends[0], &bad[0].m, 0, 0, 1, out, NULL),
        MOEC_E_ARG);
}

/* --------------------------------------------------------------- matmul */

/* kernels.h's sentence, word by word. */
static float dot_in_words(const float *x, const float *w, uint32_t n)
{
    float s[16] = {0};

    for (uint32_t i = 0; i < n; i++) {
        volatile float product = x[i] * w[i];

        s[i % 16] += product;
    }
    for (uint32_t half = 8; half; half /= 2)
        for (uint32_t i = 0; i < half; i++)
            s[i] += s[i + half];
    return s[0];
}

static void check_matmul(const struct matrix_case *c, uint32_t tokens,
                         uint64_t *rng)
{
    const moec_matrix *m = &c->m;
    size_t xs = m->n_in + tokens % 3, os = m->n_out + tokens % 5;
    float *x = guarded((tokens * xs) * sizeof(float));
    float *out = guarded((tokens * os) * sizeof(float));
    float *want = calloc((size_t)tokens * m->n_out + 1, sizeof(float));

    assert_non_null(want);
    for (size_t i = 0; i < tokens * xs; i++)
        x[i] = random_float(rng);
    for (uint32_t t = 0; t < tokens; t++)
        for (uint32_t o = 0; o < m->n_out; o++)
            want[(size_t)t * m->n_out + o] =
                dot_in_words(x + t * xs,
                             c->values + ((size_t)m->n_out + o) * m->n_in,
                             m->n_in) +
                (c->bias ? c->bias[m->n_out + o] : 0.0f);
    for (size_t b = 0; b < n_back_ends; b++) {
        memset(out, GUARDED_POISON, tokens * os * sizeof(float));
        assert_int_equal(
            moec_matmul(back_ends[b], m, 1, x, xs, tokens, out, os, NULL),
            MOEC_OK);
        for (uint32_t t = 0; t < tokens; t++)
            if (!same_bits(out + t * os, want + (size_t)t * m->n_out, m->n_out))
                fail_msg("format %u, %u x %u, back end %zu, token %u",
                         (unsigned)m->format, (unsigned)m->n_out,
                         (unsigned)m->n_in, b, (unsigned)t);
    }
    free(want);
}

static void multiplies_in_the_documented_order(void **state)
{
    static const uint32_t tokens[] = {0, 1, 2, 3, 4, 5, 7, 64, 65, 131};
    uint64_t rng = 3;

    (void)state;
    for (size_t i = 0; i < N_SHAPES; i++)
        for (size_t t = 0; t < sizeof(tokens) / sizeof(tokens[0]); t++) {
            struct matrix_case c;

            if (tokens[t] > 8 && shapes[i].n_out * shapes[i].n_in > 12000)
                continue;
            c = matrix_case_make(shapes[i], 2, (unsigned)(t % 4), &rng);
            check_matmul(&c, tokens[t], &rng);
            matrix_case_free(&c);
            guarded_free_all();
        }
}

static void refuses_strides_that_overlap(void **state)
{
    float bytes[16] = {0};
    moec_matrix m = PLAIN(F32, 2, 4);

    (void)state;
    m.struct_bytes = sizeof(m);
    m.data = bytes;
    assert_int_equal(
        moec_matmul(back_ends[0], &m, 0, bytes, 3, 1, bytes, 2, NULL),
        MOEC_E_ARG);
    assert_int_equal(
        moec_matmul(back_ends[0], &m, 0, bytes, 4, 1, bytes, 1, NULL),
        MOEC_E_ARG);
    assert_int_equal(
        moec_matmul(back_ends[0], &m, 0, NULL, 0, 0, NULL, 0, NULL), MOEC_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(widens_every_code),
        cmocka_unit_test(narrows_to_the_nearest),
        cmocka_unit_test(keeps_nan_in_every_cast),
        cmocka_unit_test(casts_any_length_and_pair),
        cmocka_unit_test(refuses_other_casts),
        cmocka_unit_test(dequantises_every_format),
        cmocka_unit_test(restarts_blocks_in_each_part),
        cmocka_unit_test(dequantises_special_codes),
        cmocka_unit_test(refuses_what_is_no_matrix),
        cmocka_unit_test(multiplies_in_the_documented_order),
        cmocka_unit_test(refuses_strides_that_overlap),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
