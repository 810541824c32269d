/* SPDX-License-Identifier: Apache-2.0
 *
 * Stored matrices: what is accepted, moec_dequantize, moec_matmul, moec_cast.
 * Work is cut by output rows, so that every weight is decoded once a call (once
 * for 64 tokens in the products) and no result depends on the cut. */

#include <string.h>

#include "matrix.h"

const struct moec_matrix_fns *moec_matrix_fns_of(moec_isa isa)
{
    switch (isa) {
#if defined(__x86_64__)
    case MOEC_ISA_AVX512:
        return &moec_matrix_avx512;
    case MOEC_ISA_AVX2:
        return &moec_matrix_avx2;
#else
    case MOEC_ISA_AVX512:
    case MOEC_ISA_AVX2:
#endif
    case MOEC_ISA_SCALAR:
    case MOEC_ISA_AUTO:
        break;
    }
    return &moec_matrix_scalar;
}

/* -------------------------------------------------------------- checks */

static const struct {
    const char *name;
    uint8_t bits;        /* of an element */
    uint8_t in_multiple; /* n_in must be one, n_out likewise */
    uint8_t out_multiple;
    uint8_t block_in; /* where the caller says 0; 0: no scales, or no default */
} formats[] = {
    {"f32", 32, 1, 1, 0},   {"bf16", 16, 1, 1, 0}, {"f16", 16, 1, 1, 0},
    {"fp8", 8, 1, 1, 0},    {"int4", 4, 8, 1, 32}, {"mxfp4", 4, 2, 1, 32},
    {"nvfp4", 4, 2, 1, 16}, {"awq", 4, 1, 8, 128}, {"gptq", 4, 8, 8, 128},
};

static bool quantised(moec_wformat f)
{
    return f >= MOEC_WFORMAT_FP8;
}

static bool in_out(moec_wformat f)
{
    return f == MOEC_WFORMAT_AWQ || f == MOEC_WFORMAT_GPTQ;
}

static bool float_dtype(moec_dtype d)
{
    return d == MOEC_DTYPE_F32 || d == MOEC_DTYPE_BF16 || d == MOEC_DTYPE_F16;
}

static bool e8m0_dtype(moec_dtype d)
{
    return d == MOEC_DTYPE_F8_E8M0 || d == MOEC_DTYPE_U8;
}

static bool scale_dtype_fits(const moec_matrix *m)
{
    moec_dtype d = m->scale_dtype;

    switch (m->format) {
    case MOEC_WFORMAT_F32:
    case MOEC_WFORMAT_BF16:
    case MOEC_WFORMAT_F16:
        return true;
    case MOEC_WFORMAT_FP8:
        return float_dtype(d) || e8m0_dtype(d);
    case MOEC_WFORMAT_INT4:
    case MOEC_WFORMAT_AWQ:
    case MOEC_WFORMAT_GPTQ:
        return float_dtype(d);
    case MOEC_WFORMAT_MXFP4:
        return e8m0_dtype(d);
    case MOEC_WFORMAT_NVFP4:
        return d == MOEC_DTYPE_F8_E4M3;
    }
    return false;
}

static uint64_t least_row_bytes(const moec_matrix *m)
{
    if (m->format == MOEC_WFORMAT_AWQ)
        return (uint64_t)m->n_out / 8 * 4;
    if (m->format == MOEC_WFORMAT_GPTQ)
        return (uint64_t)m->n_out * 4;
    return ((uint64_t)m->n_in * formats[m->format].bits + 7) / 8;
}

static moec_status check_scales(const moec_matrix *m, const char *what,
                                moec_error *err)
{
    const char *name = formats[m->format].name;

    if (!quantised(m->format))
        return MOEC_OK;
    if (!m->scale || !scale_dtype_fits(m))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%s: %s cannot have scales of %s", what, name,
                         m->scale ? moec_dtype_name(m->scale_dtype) : "NULL");
    if (m->format == MOEC_WFORMAT_FP8 && (!m->block_in || !m->block_out))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%s: fp8 with blocks of %u x %u", what,
                         (unsigned)m->block_out, (unsigned)m->block_in);
    if (in_out(m->format) && m->block_out > 1)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%s: %s has a scale per output row, not per %u", what,
                         name, (unsigned)m->block_out);
    if (m->part_rows && m->n_out % m->part_rows)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%s: %u rows are not parts of %u", what,
                         (unsigned)m->n_out, (unsigned)m->part_rows);
    return MOEC_OK;
}

moec_status moec_matrix_check(const moec_matrix *m, const char *what,
                              moec_error *err)
{
    const char *name;

    if (!m || m->struct_bytes < sizeof(*m) || !m->data || !m->n_out || !m->n_in)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%s: no matrix, or an empty one", what);
    if ((unsigned)m->format >= sizeof(formats) / sizeof(formats[0]))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%s: format %u is none", what, (unsigned)m->format);
    name = formats[m->format].name;
    if (m->n_in % formats[m->format].in_multiple ||
        m->n_out % formats[m->format].out_multiple)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%s: %s cannot be %u x %u", what, name,
                         (unsigned)m->n_out, (unsigned)m->n_in);
    if (m->row_bytes && m->row_bytes < least_row_bytes(m))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%s: rows of %llu bytes where %llu are needed", what,
                         (unsigned long long)m->row_bytes,
                         (unsigned long long)least_row_bytes(m));
    if (m->bias && !float_dtype(m->bias_dtype))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE, "%s: a bias of %s",
                         what, moec_dtype_name(m->bias_dtype));
    return check_scales(m, what, err);
}

static const uint8_t *at_index(const void *p, uint64_t stride, uint32_t index)
{
    return p ? (const uint8_t *)p + stride * index : NULL;
}

struct moec_mat moec_mat_of(const moec_matrix *m, uint32_t index)
{
    struct moec_mat r = {
        .format = m->format,
        .scale_dtype = m->scale_dtype,
        .bias_dtype = m->bias_dtype,
        .n_out = m->n_out,
        .n_in = m->n_in,
        .row_bytes = m->row_bytes ? m->row_bytes : least_row_bytes(m),
        .data = at_index(m->data, m->data_stride, index),
        .bias = at_index(m->bias, m->bias_stride, index),
        .block_out = m->block_out ? m->block_out : 1,
        .block_in = m->block_in ? m->block_in : formats[m->format].block_in,
        .part_rows = m->part_rows ? m->part_rows : m->n_out,
        .scale2_rows = m->scale2_rows ? m->scale2_rows : m->n_out,
    };

    if (!quantised(m->format))
        return r;
    r.scale = at_index(m->scale, m->scale_stride, index);
    if (m->format == MOEC_WFORMAT_NVFP4 && m->scale2)
        r.scale2 = (const float *)(const void *)at_index(
            m->scale2, m->scale2_stride, index);
    if (m->format == MOEC_WFORMAT_INT4 || in_out(m->format))
        r.zeros = at_index(m->zeros, m->zeros_stride, index);
    r.scale_cols = (uint32_t)moec_ceil_div(r.n_in, r.block_in);
    r.part_scale_rows = (uint32_t)moec_ceil_div(r.part_rows, r.block_out);
    r.part_zero_rows = (uint32_t)moec_ceil_div(r.part_rows, 8);
    return r;
}

moec_matrix moec_matrix_filled(const moec_matrix *m)
{
    struct moec_mat r = moec_mat_of(m, 0);
    moec_matrix full = *m;

    full.row_bytes = r.row_bytes;
    full.block_out = r.block_out;
    full.block_in = r.block_in;
    full.part_rows = r.part_rows;
    full.scale2_rows = r.scale2_rows;
    full.scale = r.scale;
    full.scale2 = r.scale2;
    full.zeros = r.zeros;
    return full;
}

/* ---------------------------------------------------------- dequantise */

struct dequantize {
    const struct moec_matrix_fns *f;
    struct moec_mat m;
    uint32_t row, n_rows;
    float *out;
};

static void dequantize_rows(void *ctx, size_t item, uint32_t worker)
{
    struct dequantize *d = ctx;
    uint32_t first = (uint32_t)item * MOEC_TILE_ROWS;
    uint32_t n = d->n_rows - first;

    (void)worker;
    d->f->tile(&d->m, d->row + first, n < MOEC_TILE_ROWS ? n : MOEC_TILE_ROWS,
               0, d->m.n_in, d->out + (size_t)first * d->m.n_in, d->m.n_in);
}

moec_status moec_dequantize(const moec_kernels *k, const moec_matrix *m,
                            uint32_t index, uint32_t row, uint32_t n_rows,
                            float *out, moec_error *err)
{
    struct dequantize d = {.row = row, .n_rows = n_rows};

    if (!k || (!out && n_rows))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_dequantize: NULL");
    MOEC_TRY(moec_matrix_check(m, "matrix", err));
    if (row > m->n_out || n_rows > m->n_out - row)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "rows %u and %u more of a matrix of %u", (unsigned)row,
                         (unsigned)n_rows, (unsigned)m->n_out);
    d.f = k->matrix;
    d.m = moec_mat_of(m, index);
    d.out = out;
    moec_pool_run(k->pool, moec_ceil_div(n_rows, MOEC_TILE_ROWS),
                  dequantize_rows, &d);
    return MOEC_OK;
}

/* -------------------------------------------------------------- matmul */

/* The sixteen partial sums, pairwise. */
static float sum16(const float *s)
{
    float a[8];

    for (int i = 0; i < 8; i++)
        a[i] = s[i] + s[i + 8];
    for (int i = 0; i < 4; i++)
        a[i] += a[i + 4];
    a[0] += a[2];
    a[1] += a[3];
    return a[0] + a[1];
}

/* Ask for columns [col, col + n) of the rows behind a tile while it is being
 * multiplied; the transposed formats are left to the hardware. */
static void prefetch_rows(const struct moec_mat *m, uint32_t row,
                          uint32_t n_rows, uint32_t col, uint32_t n)
{
    uint64_t bits = formats[m->format].bits, from = col * bits / 8;

    if (in_out(m->format) || row + 2 * (uint64_t)n_rows > m->n_out)
        return;
    for (uint32_t r = row + n_rows; r < row + 2 * n_rows; r++)
        for (uint64_t i = from; i < from + n * bits / 8; i += 64)
            __builtin_prefetch(m->data + r * m->row_bytes + i, 0, 2);
}

/* Up to MOEC_TILE_ROWS rows and MOEC_TILE_TOKENS tokens. */
static void dot_tile(const struct moec_matrix_fns *f, const struct moec_mat *m,
                     uint32_t row, uint32_t n_rows, const struct moec_acts *x,
                     float *out, size_t out_stride)
{
    _Alignas(64) float w[MOEC_TILE_ROWS * MOEC_TILE_COLS];
    _Alignas(64) float acc[MOEC_TILE_TOKENS * MOEC_TILE_ROWS * 16];
    uint32_t nt = (uint32_t)x->n;

    memset(acc, 0, (size_t)nt * n_rows * 16 * sizeof(acc[0]));
    for (uint32_t col = 0; col < m->n_in; col += MOEC_TILE_COLS) {
        uint32_t n = m->n_in - col;

        n = n < MOEC_TILE_COLS ? n : MOEC_TILE_COLS;
        f->tile(m, row, n_rows, col, n, w, MOEC_TILE_COLS);
        prefetch_rows(m, row, n_rows, col, n);
        f->dot16(w, MOEC_TILE_COLS, n_rows, (const float *)x->x + col,
                 x->bytes / sizeof(float), nt, n, acc);
    }
    for (uint32_t r = 0; r < n_rows; r++) {
        float bias = moec_mat_bias(m, row + r);

        for (uint32_t t = 0; t < nt; t++)
            out[t * out_stride + r] =
                sum16(acc + ((size_t)t * n_rows + r) * 16) + bias;
    }
}

void moec_dot_rows(const struct moec_matrix_fns *f, const struct moec_mat *m,
                   uint32_t row, uint32_t n_rows, const struct moec_acts *x,
                   float *out, size_t out_stride)
{
    for (uint32_t r = 0; r < n_rows; r += MOEC_TILE_ROWS) {
        uint32_t n = n_rows - r < MOEC_TILE_ROWS ? n_rows - r : MOEC_TILE_ROWS;

        for (uint64_t t = 0; t < x->n; t += MOEC_TILE_TOKENS) {
            struct moec_acts some = {
                .x = (const uint8_t *)x->x + t * x->bytes,
                .bytes = x->bytes,
                .n = moec_min_u64(x->n - t, MOEC_TILE_TOKENS)};

            dot_tile(f, m, row + r, n, &some, out + t * out_stride + r,
                     out_stride);
        }
    }
}

size_t moec_x_bytes_f32(uint32_t n_in)
{
    return ((size_t)n_in * sizeof(float) + 63) / 64 * 64;
}

void moec_pack_f32(const float *x, uint32_t first, uint32_t n, uint32_t n_in,
                   void *row)
{
    (void)n_in; /* what ends the row is never read */
    memcpy((float *)row + first, x, n * sizeof(float));
}

const struct moec_product moec_product_exact = {
    .x_bytes = moec_x_bytes_f32, .pack = moec_pack_f32, .rows = moec_dot_rows};

struct matmul {
    const struct moec_matrix_fns *f;
    struct moec_mat m;
    struct moec_acts x;
    float *out;
    size_t out_stride;
};

static void matmul_rows(void *ctx, size_t item, uint32_t worker)
{
    struct matmul *p = ctx;
    uint32_t row = (uint32_t)item * MOEC_TILE_ROWS, n = p->m.n_out - row;

    (void)worker;
    moec_dot_rows(p->f, &p->m, row, n < MOEC_TILE_ROWS ? n : MOEC_TILE_ROWS,
                  &p->x, p->out + row, p->out_stride);
}

/* NOLINTNEXTLINE(readability-function-size): two arrays, two strides */
moec_status moec_matmul(const moec_kernels *k, const moec_matrix *m,
                        uint32_t index, const float *x, uint64_t x_stride,
                        uint32_t n_tokens, float *out, uint64_t out_stride,
                        moec_error *err)
{
    struct matmul p = {.x = {.x = x, .n = n_tokens}};

    if (!k || (n_tokens && (!x || !out)))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE, "moec_matmul: NULL");
    MOEC_TRY(moec_matrix_check(m, "matrix", err));
    if (x_stride == 0)
        x_stride = m->n_in;
    p.out_stride = out_stride ? out_stride : m->n_out;
    if (x_stride < m->n_in || p.out_stride < m->n_out)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "strides %llu and %llu for %u x %u",
                         (unsigned long long)x_stride,
                         (unsigned long long)out_stride, (unsigned)m->n_out,
                         (unsigned)m->n_in);
    if (n_tokens == 0)
        return MOEC_OK;
    p.out = out;
    p.x.bytes = x_stride * sizeof(float);
    p.f = k->matrix;
    p.m = moec_mat_of(m, index);
    moec_pool_run(k->pool, moec_ceil_div(m->n_out, MOEC_TILE_ROWS), matmul_rows,
                  &p);
    return MOEC_OK;
}

/* ---------------------------------------------------------------- cast */

#define CAST_ITEM  16384u /* elements of one work item */
#define CAST_CHUNK 1024u  /* elements in float32 on the stack */

struct cast {
    const struct moec_matrix_fns *f;
    const uint8_t *in;
    uint8_t *out;
    moec_dtype in_dtype, out_dtype;
    uint64_t n;
};

static void cast_item(void *ctx, size_t item, uint32_t worker)
{
    struct cast *c = ctx;
    uint64_t i = (uint64_t)item * CAST_ITEM;
    uint64_t end = moec_min_u64(i + CAST_ITEM, c->n);
    uint32_t in_bytes = moec_dtype_bits(c->in_dtype) / 8;
    uint32_t out_bytes = moec_dtype_bits(c->out_dtype) / 8;
    _Alignas(64) float mid[CAST_CHUNK];

    (void)worker;
    for (; i < end; i += CAST_CHUNK) {
        uint64_t n = moec_min_u64(end - i, CAST_CHUNK);

        c->f->to_f32(c->in_dtype, c->in + i * in_bytes, n, mid);
        c->f->from_f32(c->out_dtype, mid, n, c->out + i * out_bytes);
    }
}

static bool castable(moec_dtype d)
{
    return float_dtype(d) || d == MOEC_DTYPE_F8_E4M3 || d == MOEC_DTYPE_F8_E5M2;
}

moec_status moec_cast(const moec_kernels *k, const void *in,
                      moec_dtype in_dtype, void *out, moec_dtype out_dtype,
                      uint64_t n, moec_error *err)
{
    struct cast c = {.in = in,
                     .out = out,
                     .in_dtype = in_dtype,
                     .out_dtype = out_dtype,
                     .n = n};

    if (!k || (n && (!in || !out)))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE, "moec_cast: NULL");
    if (!castable(in_dtype) || !castable(out_dtype))
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "a cast from %s to %s", moec_dtype_name(in_dtype),
                         moec_dtype_name(out_dtype));
    if (in_dtype == out_dtype) { /* NaNs too stay as they are */
        if (n)
            memmove(out, in, n * (moec_dtype_bits(in_dtype) / 8));
        return MOEC_OK;
    }
    c.f = k->matrix;
    moec_pool_run(k->pool, moec_ceil_div(n, CAST_ITEM), cast_item, &c);
    return MOEC_OK;
}
