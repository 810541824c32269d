/* SPDX-License-Identifier: Apache-2.0
 *
 * Matrices without intrinsics: the specification of every format, and the
 * table that others fall back to. An element is f32(code) * f32(scale),
 * rounded once; all codes are exact in float32. */

#include <string.h>

#include "matrix.h"

static float f32_of_bits(uint32_t u)
{
    float f;

    memcpy(&f, &u, sizeof(f));
    return f;
}

static uint32_t bits_of_f32(float f)
{
    uint32_t u;

    memcpy(&u, &f, sizeof(u));
    return u;
}

static uint16_t le16(const void *p)
{
    uint16_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

/* ------------------------------------------------------------ widening */

static float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, em = h & 0x7fffu;

    if (em > 0x7c00) /* NaN, made quiet as F16C does */
        return f32_of_bits(sign | 0x7fc00000u | (em & 0x3ffu) << 13);
    if (em == 0x7c00)
        return f32_of_bits(sign | 0x7f800000u);
    if (em >= 0x400)
        return f32_of_bits(sign | ((em << 13) + (112u << 23)));
    return f32_of_bits(sign | bits_of_f32((float)em * 0x1p-24f));
}

static float e5m2_to_f32(uint8_t c)
{
    return f16_to_f32((uint16_t)(c << 8));
}

/* OCP E4M3: no infinities, S.1111.111 is NaN. */
static float e4m3_to_f32(uint8_t c)
{
    uint32_t sign = (uint32_t)(c & 0x80u) << 24, em = c & 0x7fu;

    if (em == 0x7f)
        return f32_of_bits(sign | 0x7fc00000u);
    if (em >= 8)
        return f32_of_bits(sign | ((em << 20) + (120u << 23)));
    return f32_of_bits(sign | bits_of_f32((float)em * 0x1p-9f));
}

/* 2^(c - 127); 0 is a denormal of float32, 255 is NaN. */
static float e8m0_to_f32(uint8_t c)
{
    if (c == 0)
        return f32_of_bits(0x00400000u);
    return f32_of_bits(c == 255 ? 0x7fc00000u : (uint32_t)c << 23);
}

void moec_to_f32_scalar(moec_dtype dtype, const void *in, uint64_t n,
                        float *out)
{
    const uint8_t *p = in;

    if (dtype == MOEC_DTYPE_F32)
        memcpy(out, in, n * sizeof(*out));
    else if (dtype == MOEC_DTYPE_BF16)
        for (uint64_t i = 0; i < n; i++)
            out[i] = f32_of_bits((uint32_t)le16(p + 2 * i) << 16);
    else if (dtype == MOEC_DTYPE_F16)
        for (uint64_t i = 0; i < n; i++)
            out[i] = f16_to_f32(le16(p + 2 * i));
    else if (dtype == MOEC_DTYPE_F8_E4M3)
        for (uint64_t i = 0; i < n; i++)
            out[i] = e4m3_to_f32(p[i]);
    else if (dtype == MOEC_DTYPE_F8_E5M2)
        for (uint64_t i = 0; i < n; i++)
            out[i] = e5m2_to_f32(p[i]);
    else /* F8_E8M0, or U8 in its place */
        for (uint64_t i = 0; i < n; i++)
            out[i] = e8m0_to_f32(p[i]);
}

/* ----------------------------------------------------------- narrowing
 * Round to nearest even. NaN stays NaN, with its sign. */

static uint16_t f32_to_bf16(float f)
{
    uint32_t u = bits_of_f32(f);

    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

static uint16_t f32_to_f16(float f)
{
    uint32_t u = bits_of_f32(f), sign = u >> 16 & 0x8000u;

    u &= 0x7fffffffu;
    if (u > 0x7f800000u) /* what F16C keeps of a NaN */
        return (uint16_t)(sign | 0x7e00u | (u >> 13 & 0x3ffu));
    if (u >= 0x47800000u) /* 2^16 and infinity; less may still round up */
        return (uint16_t)(sign | 0x7c00u);
    if (u < 0x38800000u) /* denormal: let the adder round at 2^-24 */
        return (uint16_t)(sign | (bits_of_f32(f32_of_bits(u) + 0.5f) -
                                  bits_of_f32(0.5f)));
    u += 0xfffu + (u >> 13 & 1u);
    return (uint16_t)(sign | ((u - (112u << 23)) >> 13));
}

/* Saturating: infinities and what is too large become the largest. */
static uint8_t f32_to_e4m3(float f)
{
    uint32_t u = bits_of_f32(f), sign = u >> 24 & 0x80u;

    u &= 0x7fffffffu;
    if (u > 0x7f800000u)
        return (uint8_t)(sign | 0x7fu);
    if (u < 0x3c800000u) /* under 2^-6: the adder rounds at 2^-9 */
        return (uint8_t)(sign | (bits_of_f32(f32_of_bits(u) + 0x1p14f) -
                                 bits_of_f32(0x1p14f)));
    u += 0x7ffffu + (u >> 20 & 1u);
    u = (u - (120u << 23)) >> 20;
    return (uint8_t)(sign | (u > 0x7e ? 0x7eu : u));
}

static uint8_t f32_to_e5m2(float f)
{
    uint32_t u = bits_of_f32(f), sign = u >> 24 & 0x80u;

    u &= 0x7fffffffu;
    if (u > 0x7f800000u)
        return (uint8_t)(sign | 0x7fu);
    if (u < 0x38800000u) /* under 2^-14: the adder rounds at 2^-16 */
        return (uint8_t)(sign | (bits_of_f32(f32_of_bits(u) + 0x1p7f) -
                                 bits_of_f32(0x1p7f)));
    u += 0xfffffu + (u >> 21 & 1u);
    u = (u - (112u << 23)) >> 21;
    return (uint8_t)(sign | (u > 0x7b ? 0x7bu : u));
}

void moec_from_f32_scalar(moec_dtype dtype, const float *in, uint64_t n,
                          void *out)
{
    uint8_t *b = out;

    if (dtype == MOEC_DTYPE_F32)
        memcpy(out, in, n * sizeof(*in));
    else if (dtype == MOEC_DTYPE_F8_E4M3)
        for (uint64_t i = 0; i < n; i++)
            b[i] = f32_to_e4m3(in[i]);
    else if (dtype == MOEC_DTYPE_F8_E5M2)
        for (uint64_t i = 0; i < n; i++)
            b[i] = f32_to_e5m2(in[i]);
    else
        for (uint64_t i = 0; i < n; i++) {
            uint16_t h = dtype == MOEC_DTYPE_BF16 ? f32_to_bf16(in[i])
                                                  : f32_to_f16(in[i]);

            memcpy(b + 2 * i, &h, sizeof(h));
        }
}

/* --------------------------------------------------------------- tiles */

uint64_t moec_mat_scale_row(const struct moec_mat *m, uint32_t row)
{
    uint64_t at = 0;

    if (row >= m->part_rows) { /* a division less for most */
        at = (uint64_t)(row / m->part_rows) * m->part_scale_rows;
        row %= m->part_rows;
    }
    at += m->block_out == 1 ? row : row / m->block_out;
    return at * m->scale_cols;
}

float moec_mat_scale(const struct moec_mat *m, uint32_t row, uint32_t sc)
{
    uint32_t bytes = moec_dtype_bits(m->scale_dtype) / 8;
    float s;

    moec_to_f32_scalar(m->scale_dtype,
                       m->scale + (moec_mat_scale_row(m, row) + sc) * bytes, 1,
                       &s);
    return m->scale2 ? s * m->scale2[row / m->scale2_rows] : s;
}

float moec_mat_bias(const struct moec_mat *m, uint32_t row)
{
    float b;

    if (!m->bias)
        return 0.0f;
    moec_to_f32_scalar(
        m->bias_dtype,
        m->bias + (uint64_t)row * (moec_dtype_bits(m->bias_dtype) / 8), 1, &b);
    return b;
}

static void row_fp8(const struct moec_mat *m, uint32_t row, uint32_t col,
                    uint32_t n, float *out)
{
    const uint8_t *p = m->data + row * m->row_bytes;

    for (uint32_t c = col, end; c < col + n; c = end) {
        float s = moec_mat_scale(m, row, c / m->block_in);

        end = c - c % m->block_in + m->block_in;
        if (end > col + n || end < c)
            end = col + n;
        for (uint32_t i = c; i < end; i++)
            out[i - col] = e4m3_to_f32(p[i]) * s;
    }
}

static const float e2m1[16] = {0.0f,  0.5f,  1.0f,  1.5f, 2.0f,  3.0f,
                               4.0f,  6.0f,  -0.0f, -.5f, -1.0f, -1.5f,
                               -2.0f, -3.0f, -4.0f, -6.0f};

static unsigned nibble(const uint8_t *p, uint64_t i)
{
    return (unsigned)p[i / 2] >> (i % 2 * 4) & 15u;
}

/* compressed-tensors packs zero points along the output rows. */
static float int4_zero(const struct moec_mat *m, uint32_t row, uint32_t sc)
{
    uint64_t part = row / m->part_rows, in = row % m->part_rows;
    uint64_t at = (part * m->part_zero_rows + in / 8) * m->scale_cols + sc;

    return (float)(moec_le32(m->zeros + 4 * at) >> (in % 8 * 4) & 15u);
}

static void row_4bit(const struct moec_mat *m, uint32_t row, uint32_t col,
                     uint32_t n, float *out)
{
    const uint8_t *p = m->data + row * m->row_bytes;
    bool ints = m->format == MOEC_WFORMAT_INT4;

    for (uint32_t c = col, end; c < col + n; c = end) {
        uint32_t sc = c / m->block_in;
        float s = moec_mat_scale(m, row, sc);
        float zero = ints && m->zeros ? int4_zero(m, row, sc) : 8.0f;

        end = c - c % m->block_in + m->block_in;
        if (end > col + n || end < c)
            end = col + n;
        for (uint32_t i = c; i < end; i++)
            out[i - col] =
                s * (ints ? (float)nibble(p, i) - zero : e2m1[nibble(p, i)]);
    }
}

/* Where AWQ keeps column c of eight in a word: it packs 0 2 4 6 1 3 5 7. */
static const uint8_t awq_at[8] = {0, 4, 1, 5, 2, 6, 3, 7};

/* [in][out] packed: AWQ along out, GPTQ along in. Zero points are packed
 * along out in both; GPTQ's are stored less one. */
static void tile_in_out(const struct moec_mat *m, uint32_t row, uint32_t n_rows,
                        uint32_t col, uint32_t n_cols, float *out,
                        size_t stride)
{
    bool awq = m->format == MOEC_WFORMAT_AWQ;
    uint32_t bytes = moec_dtype_bits(m->scale_dtype) / 8;

    for (uint32_t c = col; c < col + n_cols; c++) {
        uint64_t g = c / m->block_in;
        const uint8_t *words = m->data + (awq ? c : c / 8) * m->row_bytes;

        for (uint32_t o = row; o < row + n_rows; o++) {
            unsigned at = awq ? awq_at[o % 8] : o % 8;
            uint32_t w =
                awq ? moec_le32(words + (size_t)(o / 8) * 4) >> (4 * at)
                    : moec_le32(words + (size_t)o * 4) >> (4 * (c % 8));
            float zero = 8.0f, s;

            if (m->zeros)
                zero = (float)(moec_le32(m->zeros +
                                         (g * (m->n_out / 8) + o / 8) * 4) >>
                                   (4 * at) &
                               15u) +
                       (awq ? 0.0f : 1.0f);
            moec_to_f32_scalar(m->scale_dtype,
                               m->scale + (g * m->n_out + o) * bytes, 1, &s);
            out[(o - row) * stride + (c - col)] = ((float)(w & 15u) - zero) * s;
        }
    }
}

void moec_tile_scalar(const struct moec_mat *m, uint32_t row, uint32_t n_rows,
                      uint32_t col, uint32_t n_cols, float *out, size_t stride)
{
    static const struct {
        moec_dtype dtype;
        uint32_t bytes;
    } plain[] = {
        {MOEC_DTYPE_F32, 4}, {MOEC_DTYPE_BF16, 2}, {MOEC_DTYPE_F16, 2}};

    if (m->format == MOEC_WFORMAT_AWQ || m->format == MOEC_WFORMAT_GPTQ) {
        tile_in_out(m, row, n_rows, col, n_cols, out, stride);
        return;
    }
    for (uint32_t r = 0; r < n_rows; r++, row++, out += stride)
        if (m->format <= MOEC_WFORMAT_F16)
            moec_to_f32_scalar(plain[m->format].dtype,
                               m->data + row * m->row_bytes +
                                   (uint64_t)col * plain[m->format].bytes,
                               n_cols, out);
        else if (m->format == MOEC_WFORMAT_FP8)
            row_fp8(m, row, col, n_cols, out);
        else
            row_4bit(m, row, col, n_cols, out);
}

/* ----------------------------------------------------------------- dot */

/* Four of the sixteen sums: the compiler's vectors, so that this runs at the
 * width every CPU has without a second text for each. */
typedef float v4 __attribute__((vector_size(16), aligned(4), may_alias));

static void dot16_scalar(const float *w, size_t w_stride, uint32_t n_rows,
                         const float *x, size_t x_stride, uint32_t n_tokens,
                         uint32_t n, float *acc)
{
    for (uint32_t t = 0; t < n_tokens; t++)
        for (uint32_t r = 0; r < n_rows; r++, acc += 16) {
            const float *a = w + r * w_stride, *b = x + t * x_stride;
            v4 *s = (v4 *)acc;
            v4 s0 = s[0], s1 = s[1], s2 = s[2], s3 = s[3];
            uint32_t i = 0;

            for (; i + 16 <= n; i += 16) {
                const v4 *va = (const v4 *)(a + i), *vb = (const v4 *)(b + i);

                s0 += va[0] * vb[0];
                s1 += va[1] * vb[1];
                s2 += va[2] * vb[2];
                s3 += va[3] * vb[3];
            }
            s[0] = s0;
            s[1] = s1;
            s[2] = s2;
            s[3] = s3;
            for (; i < n; i++)
                acc[i % 16] += a[i] * b[i];
        }
}

/* ---------------------------------------------------------------- fast
 * Inputs rounded to bf16, kept in float32, and the exact product: this back
 * end is for comparing, not for serving. */

static void pack_rounded(const float *x, uint32_t first, uint32_t n,
                         uint32_t n_in, void *row)
{
    float *out = (float *)row + first;

    (void)n_in;
    for (uint32_t i = 0; i < n; i++)
        out[i] = f32_of_bits((uint32_t)f32_to_bf16(x[i]) << 16);
}

const struct moec_product *moec_fast_scalar(const struct moec_mat *m,
                                            bool bf16_dot)
{
    static const struct moec_product rounded = {
        .x_bytes = moec_x_bytes_f32,
        .pack = pack_rounded,
        .rows = moec_dot_rows,
    };

    (void)m;
    (void)bf16_dot;
    return &rounded;
}

const struct moec_matrix_fns moec_matrix_scalar = {
    .tile = moec_tile_scalar,
    .dot16 = dot16_scalar,
    .to_f32 = moec_to_f32_scalar,
    .from_f32 = moec_from_f32_scalar,
    .act = moec_act_scalar,
    .fast = moec_fast_scalar,
};
