/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TESTS_MATRIX_CASE_H
#define MOEC_TESTS_MATRIX_CASE_H

/*
 * Random stored matrices of every format with the values they stand for,
 * from the published definitions and in double: nothing here is shared with
 * the kernels. Data and scales end at guard pages.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <moec/kernels.h>

#include "guarded.h"

/* sign, exponent and mantissa of a small float in words: OCP's formula. */
static inline double small_float(uint32_t code, int exp_bits, int man_bits)
{
    int bias = (1 << (exp_bits - 1)) - 1;
    uint32_t man = code & ((1u << man_bits) - 1);
    int e = (int)(code >> man_bits & ((1u << exp_bits) - 1));
    double sign = code >> (exp_bits + man_bits) & 1 ? -1.0 : 1.0;
    double m = ldexp(man, -man_bits);

    return sign * (e ? ldexp(1.0 + m, e - bias) : ldexp(m, 1 - bias));
}

/* What a code of this dtype stands for; NaN and infinity included. */
static inline double code_value(moec_dtype d, uint32_t code)
{
    float f;

    switch ((int)d) {
    case MOEC_DTYPE_F8_E4M3:
        return (code & 0x7f) == 0x7f ? (double)NAN : small_float(code, 4, 3);
    case MOEC_DTYPE_F8_E5M2:
        if ((code & 0x7f) >= 0x7c)
            return (code & 3)
                       ? (double)NAN
                       : copysign((double)INFINITY, code & 0x80 ? -1.0 : 1.0);
        return small_float(code, 5, 2);
    case MOEC_DTYPE_F16:
        if ((code & 0x7fff) >= 0x7c00)
            return (code & 0x3ff)
                       ? (double)NAN
                       : copysign((double)INFINITY, code & 0x8000 ? -1.0 : 1.0);
        return small_float(code, 5, 10);
    case MOEC_DTYPE_F8_E8M0:
    case MOEC_DTYPE_U8:
        return code == 255 ? (double)NAN : ldexp(1.0, (int)code - 127);
    default:
        if (d == MOEC_DTYPE_BF16)
            code <<= 16;
        memcpy(&f, &code, sizeof(f));
        return (double)f;
    }
}

static inline uint32_t dtype_bytes(moec_dtype d)
{
    return moec_dtype_bits(d) / 8;
}

/* A scale of moderate size as a code of `d`. */
static inline uint32_t random_scale(moec_dtype d, uint64_t *rng)
{
    float f = 0.01f + 0.02f * fabsf(random_float(rng));
    uint32_t u;

    memcpy(&u, &f, sizeof(u));
    switch ((int)d) {
    case MOEC_DTYPE_F8_E4M3:
        return 0x28 + random_below(rng, 0x20);
    case MOEC_DTYPE_F8_E5M2:
        return random_below(rng, 0x7c);
    case MOEC_DTYPE_F8_E8M0:
    case MOEC_DTYPE_U8:
        return 118 + random_below(rng, 8);
    case MOEC_DTYPE_F16:
        return 0x2000 + random_below(rng, 0x400);
    case MOEC_DTYPE_BF16:
        return u >> 16;
    default:
        return u;
    }
}

static inline uint32_t get_code(const uint8_t *p, uint64_t i, uint32_t bytes)
{
    uint32_t v = 0;

    memcpy(&v, p + i * bytes, bytes);
    return v;
}

static inline void put_code_at(uint8_t *p, uint64_t i, uint32_t bytes,
                               uint32_t v)
{
    memcpy(p + i * bytes, &v, bytes);
}

struct matrix_case {
    moec_matrix m;
    float *values; /* [n][n_out][n_in] */
    float *bias;   /* [n][n_out], or NULL */
};

static inline uint64_t div_up(uint64_t a, uint64_t b)
{
    return (a + b - 1) / b;
}

static const double e2m1_values[16] = {0,    .5,  1,  1.5,  2,  3,  4,  6,
                                       -0.0, -.5, -1, -1.5, -2, -3, -4, -6};

/* Fill `m` (format, sizes, blocks, dtypes are set) with n random matrices. */
static inline void case_sizes(moec_matrix *m, uint64_t *row, uint64_t *data,
                              uint64_t *scale, uint64_t *zeros)
{
    uint64_t part = m->part_rows ? m->part_rows : m->n_out;
    uint64_t g = m->block_in ? div_up(m->n_in, m->block_in) : 0;
    uint64_t parts = m->n_out / part;

    *row = m->n_in;
    *data = 0;
    *scale = parts * div_up(part, m->block_out ? m->block_out : 1) * g;
    *zeros = 0;
    switch (m->format) {
    case MOEC_WFORMAT_F32:
        *row *= 4;
        *scale = 0;
        break;
    case MOEC_WFORMAT_BF16:
    case MOEC_WFORMAT_F16:
        *row *= 2;
        *scale = 0;
        break;
    case MOEC_WFORMAT_FP8:
        break;
    case MOEC_WFORMAT_INT4:
        *zeros = parts * div_up(part, 8) * g * 4;
        *row /= 2;
        break;
    case MOEC_WFORMAT_MXFP4:
    case MOEC_WFORMAT_NVFP4:
        *row /= 2;
        break;
    case MOEC_WFORMAT_AWQ:
        *row = m->n_out / 2;
        *data = *row * m->n_in;
        *scale = g * m->n_out;
        *zeros = g * m->n_out / 2;
        break;
    case MOEC_WFORMAT_GPTQ:
        *row = (uint64_t)m->n_out * 4;
        *data = *row * (m->n_in / 8);
        *scale = g * m->n_out;
        *zeros = g * m->n_out / 2;
        break;
    }
    if (*data == 0)
        *data = *row * m->n_out;
}

/* The value of element (o, i) of one matrix, from its bytes. */
static inline float case_value(const moec_matrix *m, const uint8_t *data,
                               const uint8_t *scale, const uint8_t *zeros,
                               const float *scale2, uint32_t o, uint32_t i)
{
    static const int awq_order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    uint64_t part = m->part_rows ? m->part_rows : m->n_out;
    uint64_t g = m->block_in ? div_up(m->n_in, m->block_in) : 1;
    uint64_t bo = m->block_out ? m->block_out : 1;
    uint64_t sb = dtype_bytes(m->scale_dtype), row;
    uint64_t gi = m->block_in ? i / m->block_in : 0, zi;
    uint32_t code, at = 0;
    double s, z = 8;

    if (m->format == MOEC_WFORMAT_AWQ || m->format == MOEC_WFORMAT_GPTQ) {
        const uint8_t *word;

        s = code_value(m->scale_dtype,
                       get_code(scale, gi * m->n_out + o, (uint32_t)sb));
        if (m->format == MOEC_WFORMAT_AWQ) {
            /* nibble n of a word is column awq_order[n] of its eight */
            while (awq_order[at] != (int)(o % 8))
                at++;
            row = m->row_bytes ? m->row_bytes : m->n_out / 2;
            word = data + i * row + o / 8 * 4;
            code = get_code(word, 0, 4) >> 4 * at & 15;
        } else {
            at = o % 8;
            row = m->row_bytes ? m->row_bytes : (uint64_t)m->n_out * 4;
            word = data + i / 8 * row + o * 4;
            code = get_code(word, 0, 4) >> 4 * (i % 8) & 15;
        }
        if (zeros)
            z = (get_code(zeros, gi * (m->n_out / 8) + o / 8, 4) >> 4 * at &
                 15) +
                (m->format == MOEC_WFORMAT_GPTQ ? 1 : 0);
        return (float)(((double)code - z) * s);
    }
    row = m->row_bytes;
    switch (m->format) {
    case MOEC_WFORMAT_F32:
        return (float)code_value(
            MOEC_DTYPE_F32,
            get_code(data + o * (row ? row : m->n_in * 4), i, 4));
    case MOEC_WFORMAT_BF16:
    case MOEC_WFORMAT_F16:
        return (float)code_value(
            m->format == MOEC_WFORMAT_F16 ? MOEC_DTYPE_F16 : MOEC_DTYPE_BF16,
            get_code(data + o * (row ? row : m->n_in * 2), i, 2));
    default:
        break;
    }
    s = code_value(
        m->scale_dtype,
        get_code(scale,
                 ((o / part) * div_up(part, bo) + o % part / bo) * g + gi,
                 (uint32_t)sb));
    if (m->format == MOEC_WFORMAT_FP8)
        return (float)(code_value(MOEC_DTYPE_F8_E4M3,
                                  data[o * (row ? row : m->n_in) + i]) *
                       s);
    code = data[o * (row ? row : m->n_in / 2) + i / 2] >> (i % 2 * 4) & 15;
    if (m->format == MOEC_WFORMAT_MXFP4)
        return (float)(e2m1_values[code] * s);
    if (m->format == MOEC_WFORMAT_NVFP4) {
        float both = (float)s;

        if (scale2)
            both =
                (float)(s * (double)scale2[o / (m->scale2_rows ? m->scale2_rows
                                                               : m->n_out)]);
        return (float)(e2m1_values[code] * (double)both);
    }
    zi = ((o / part) * div_up(part, 8) + o % part / 8) * g + gi;
    if (zeros)
        z = get_code(zeros, zi, 4) >> 4 * (o % part % 8) & 15;
    return (float)(((double)code - z) * s);
}

enum { CASE_BIAS = 1, CASE_ZEROS = 2, CASE_GAPS = 4 };

static inline struct matrix_case matrix_case_make(moec_matrix like, uint32_t n,
                                                  unsigned flags, uint64_t *rng)
{
    struct matrix_case c = {.m = like};
    moec_matrix *m = &c.m;
    uint64_t row, data, scale, zeros, halves;
    uint32_t sb = dtype_bytes(like.scale_dtype);
    uint8_t *d, *s, *z = NULL;
    float *s2 = NULL;

    m->struct_bytes = sizeof(*m);
    case_sizes(m, &row, &data, &scale, &zeros);
    if (flags & CASE_GAPS && m->format < MOEC_WFORMAT_AWQ) {
        m->row_bytes = row + 12;
        data = m->row_bytes * m->n_out;
    }
    m->data_stride = data;
    d = guarded(data * n);
    for (uint64_t i = 0; i < data * n; i++)
        d[i] = (uint8_t)random_u64(rng);
    for (uint64_t i = 0; m->format == MOEC_WFORMAT_FP8 && i < data * n; i++)
        if ((d[i] & 0x7f) == 0x7f)
            d[i] = 0x7e;
    for (uint64_t i = 0; m->format <= MOEC_WFORMAT_F16 && i < data * n / 4;
         i++) {
        /* numbers of about 1, not bits */
        float f = random_float(rng), h = random_float(rng);
        uint32_t u, v;

        memcpy(&u, &f, 4);
        memcpy(&v, &h, 4);
        if (m->format == MOEC_WFORMAT_BF16)
            u = u >> 16 | (v & 0xffff0000u);
        if (m->format == MOEC_WFORMAT_F16)
            u = (u & 0xbfffbfffu) % 0xbc00bc00u & 0xbbffbbffu;
        put_code_at(d, i, 4, u);
    }
    m->data = d;
    s = guarded(scale * n * sb);
    for (uint64_t i = 0; i < scale * n; i++)
        put_code_at(s, i, sb, random_scale(m->scale_dtype, rng));
    m->scale = scale ? s : NULL;
    m->scale_stride = scale * sb;
    if (flags & CASE_ZEROS && zeros) {
        z = guarded(zeros * n);
        for (uint64_t i = 0; i < zeros * n; i++)
            z[i] = (uint8_t)random_u64(rng);
        m->zeros = z;
        m->zeros_stride = zeros;
    }
    halves = m->scale2_rows ? m->n_out / m->scale2_rows : 1;
    if (m->format == MOEC_WFORMAT_NVFP4) {
        s2 = guarded(halves * n * 4);
        for (uint64_t i = 0; i < halves * n; i++)
            s2[i] = 0.3f + 0.1f * random_float(rng);
        m->scale2 = s2;
        m->scale2_stride = halves * 4;
    }
    if (flags & CASE_BIAS) {
        uint8_t *b;
        uint32_t bb;

        if (!m->bias_dtype)
            m->bias_dtype = MOEC_DTYPE_F32;
        bb = dtype_bytes(m->bias_dtype);
        b = guarded((uint64_t)m->n_out * n * bb);
        c.bias = malloc((size_t)m->n_out * n * sizeof(float));
        assert_non_null(c.bias);
        for (uint64_t i = 0; i < (uint64_t)m->n_out * n; i++) {
            put_code_at(b, i, bb, random_scale(m->bias_dtype, rng));
            c.bias[i] = (float)code_value(m->bias_dtype, get_code(b, i, bb));
        }
        m->bias = b;
        m->bias_stride = (uint64_t)m->n_out * bb;
    }
    c.values = malloc((size_t)n * m->n_out * m->n_in * sizeof(float));
    assert_non_null(c.values);
    for (uint32_t e = 0; e < n; e++)
        for (uint32_t o = 0; o < m->n_out; o++)
            for (uint32_t i = 0; i < m->n_in; i++)
                c.values[((size_t)e * m->n_out + o) * m->n_in + i] =
                    case_value(m, d + e * data, s + e * scale * sb,
                               z ? z + e * zeros : NULL,
                               s2 ? s2 + e * halves : NULL, o, i);
    return c;
}

static inline void matrix_case_free(struct matrix_case *c)
{
    free(c->values);
    free(c->bias);
    c->values = NULL;
    c->bias = NULL;
}

/* Every back end this CPU has, one and several threads. */
#define BACK_ENDS 6
static inline size_t open_back_ends(moec_kernels **k)
{
    static const moec_isa isas[3] = {MOEC_ISA_SCALAR, MOEC_ISA_AVX2,
                                     MOEC_ISA_AVX512};
    size_t n = 0;

    for (size_t i = 0; i < 3; i++)
        for (uint32_t threads = 1; threads <= 3; threads += 2) {
            moec_kernels_opts o = MOEC_KERNELS_OPTS_INIT;
            moec_error err = MOEC_ERROR_INIT;
            moec_status st;

            o.isa = isas[i];
            o.n_threads = threads;
            st = moec_kernels_open(&k[n], &o, &err);
            if (st == MOEC_E_UNSUPPORTED)
                continue;
            assert_int_equal(st, MOEC_OK);
            n++;
        }
    return n;
}

static inline void close_back_ends(moec_kernels **k, size_t n)
{
    for (size_t i = 0; i < n; i++)
        moec_kernels_close(k[i]);
}

/* An FFN of this activation, with the constants that it needs. */
static inline moec_ffn_config ffn_case(moec_act act, uint32_t hidden,
                                       uint32_t inter)
{
    moec_ffn_config c = MOEC_FFN_CONFIG_INIT;

    c.hidden = hidden;
    c.inter = inter;
    c.act = act;
    c.gated = act != MOEC_ACT_RELU2;
    if (act == MOEC_ACT_SITU) {
        c.beta = 4.0f;
        c.linear_beta = 25.0f;
    }
    return c;
}

#endif
