/* SPDX-License-Identifier: Apache-2.0
 *
 * moec_quantize_rows: float32 into the formats that a fused shared expert may
 * have to take. Lossy, so it says how much. Plain C for every back end: it
 * runs once per conversion and is bound by reading. */

#include <math.h>
#include <string.h>

#include "matrix.h"

struct quantize {
    struct moec_mat m; /* data and scale are written through these two: */
    uint8_t *data, *scale;
    const float *w;
    struct quantize_sums {
        double max_abs, square, square_in;
        uint64_t bad; /* first value that is not finite, plus 1 */
    } * sums;         /* one an item, added up in order */
    uint32_t item_rows;
};

/* Largest magnitude of a block; a NaN or an infinity makes it infinite. */
static float block_amax(const struct quantize *q, uint32_t row, uint32_t n_rows,
                        uint32_t col, uint32_t n_cols)
{
    float amax = 0.0f;

    for (uint32_t r = row; r < row + n_rows; r++)
        for (uint32_t c = col; c < col + n_cols; c++) {
            float a = fabsf(q->w[(uint64_t)r * q->m.n_in + c]);

            if (!isfinite(a))
                return INFINITY;
            amax = a > amax ? a : amax;
        }
    return amax;
}

/* The E8M0 code of 2^e, within what the format has. */
static uint8_t e8m0_code(int e)
{
    return (uint8_t)(e < -127 ? 0 : e > 127 ? 254 : e + 127);
}

/* Code and value of a block's scale. */
static float put_scale(const struct quantize *q, uint64_t at, float amax)
{
    moec_dtype d = q->m.scale_dtype;
    uint32_t bytes = moec_dtype_bits(d) / 8;
    float divisor = q->m.format == MOEC_WFORMAT_FP8 ? 448.0f : 7.5f;
    float s = amax > 0.0f ? amax / divisor : 1.0f;
    int e;

    if (d == MOEC_DTYPE_F8_E8M0 || d == MOEC_DTYPE_U8) {
        if (amax > 0.0f) {
            /* frexp gives [0.5, 1): floor(log2(amax)) is e - 1 */
            float part = frexpf(q->m.format == MOEC_WFORMAT_FP8 ? s : amax, &e);

            if (q->m.format != MOEC_WFORMAT_FP8)
                e -= 1 + 2;
            else if (part == 0.5f)
                e -= 1;
        } else {
            e = 0;
        }
        q->scale[at] = e8m0_code(e);
    } else {
        /* A tiny block must not end up with a scale of 0. */
        if (s < (d == MOEC_DTYPE_F16 ? 0x1p-24f : 0x1p-126f))
            s = d == MOEC_DTYPE_F16 ? 0x1p-24f : 0x1p-126f;
        if (d == MOEC_DTYPE_F16 && s > 65504.0f)
            s = 65504.0f;
        moec_from_f32_scalar(d, &s, 1, q->scale + at * bytes);
    }
    moec_to_f32_scalar(d, q->scale + at * bytes, 1, &s);
    return s;
}

/* Nearest of 0, .5, 1, 1.5, 2, 3, 4, 6, ties to the even code. */
static uint8_t e2m1_code(float v)
{
    static const float half_way[7] = {0.25f, 0.75f, 1.25f, 1.75f,
                                      2.5f,  3.5f,  5.0f};
    float a = fabsf(v);
    uint8_t code = 0;

    while (code < 7 &&
           (a > half_way[code] || (code % 2 && a == half_way[code])))
        code++;
    return (uint8_t)(code | (signbit(v) ? 8 : 0));
}

static uint8_t int4_code(float v)
{
    float r = rintf(v);

    return (uint8_t)((r < -8.0f ? -8 : r > 7.0f ? 7 : (int)r) + 8);
}

static void put_code(const struct quantize *q, uint32_t row, uint32_t col,
                     float v)
{
    uint8_t *p = q->data + row * q->m.row_bytes, code;

    if (q->m.format == MOEC_WFORMAT_FP8) {
        moec_from_f32_scalar(MOEC_DTYPE_F8_E4M3, &v, 1, p + col);
        return;
    }
    code = q->m.format == MOEC_WFORMAT_INT4 ? int4_code(v) : e2m1_code(v);
    if (col % 2)
        p[col / 2] = (uint8_t)((p[col / 2] & 15) | code << 4);
    else
        p[col / 2] = code; /* the odd one follows */
}

static void add_errors(const struct quantize *q, uint32_t row, uint32_t n_rows,
                       struct quantize_sums *s)
{
    float back[MOEC_TILE_COLS];

    for (uint32_t r = row; r < row + n_rows; r++)
        for (uint32_t c = 0; c < q->m.n_in; c += MOEC_TILE_COLS) {
            uint32_t n = q->m.n_in - c;
            const float *w = q->w + (uint64_t)r * q->m.n_in + c;

            n = n < MOEC_TILE_COLS ? n : MOEC_TILE_COLS;
            moec_tile_scalar(&q->m, r, 1, c, n, back, n);
            for (uint32_t i = 0; i < n; i++) {
                double d = fabs((double)w[i] - (double)back[i]);

                s->max_abs = d > s->max_abs ? d : s->max_abs;
                s->square += d * d;
                s->square_in += (double)w[i] * (double)w[i];
            }
        }
}

/* One row of blocks. */
static void quantize_blocks(void *ctx, size_t item, uint32_t worker)
{
    struct quantize *q = ctx;
    const struct moec_mat *m = &q->m;
    uint32_t part = (uint32_t)(item / m->part_scale_rows);
    uint32_t in = (uint32_t)(item % m->part_scale_rows) * m->block_out;
    uint32_t row = part * m->part_rows + in, n_rows = m->part_rows - in;
    struct quantize_sums *sums = &q->sums[item];

    (void)worker;
    n_rows = n_rows < m->block_out ? n_rows : m->block_out;
    for (uint32_t sc = 0; sc < m->scale_cols; sc++) {
        uint32_t col = sc * m->block_in, n_cols = m->n_in - col;
        float amax, s;

        n_cols = n_cols < m->block_in ? n_cols : m->block_in;
        amax = block_amax(q, row, n_rows, col, n_cols);
        if (isinf(amax)) {
            sums->bad = (uint64_t)row * m->n_in + col + 1;
            return;
        }
        s = put_scale(q, item * m->scale_cols + sc, amax);
        for (uint32_t r = row; r < row + n_rows; r++)
            for (uint32_t c = col; c < col + n_cols; c++)
                put_code(q, r, c, q->w[(uint64_t)r * m->n_in + c] / s);
    }
    add_errors(q, row, n_rows, sums);
}

static moec_status add_up(const struct quantize *q, uint64_t n_items,
                          moec_quant_error *out, moec_error *err)
{
    struct quantize_sums all = {0};
    double n = (double)q->m.n_out * (double)q->m.n_in;

    for (uint64_t i = 0; i < n_items; i++) {
        if (q->sums[i].bad)
            return moec_fail(
                err, MOEC_E_ARG, MOEC_RULE_NONE,
                "the block at row %llu, column %llu has a value that is not "
                "finite",
                (unsigned long long)((q->sums[i].bad - 1) / q->m.n_in),
                (unsigned long long)((q->sums[i].bad - 1) % q->m.n_in));
        all.max_abs =
            q->sums[i].max_abs > all.max_abs ? q->sums[i].max_abs : all.max_abs;
        all.square += q->sums[i].square;
        all.square_in += q->sums[i].square_in;
    }
    if (out)
        *out = (moec_quant_error){.max_abs = all.max_abs,
                                  .rms = sqrt(all.square / n),
                                  .rms_in = sqrt(all.square_in / n),
                                  .n = (uint64_t)q->m.n_out * q->m.n_in};
    return MOEC_OK;
}

moec_status moec_quantize_rows(const moec_kernels *k, const moec_matrix *like,
                               const float *w, void *data, void *scale,
                               moec_quant_error *error_out, moec_error *err)
{
    struct quantize q = {.data = data, .scale = scale, .w = w};
    moec_matrix m;
    uint64_t n_items;
    moec_status st;

    if (!k || !like || like->struct_bytes < sizeof(m) || !w || !data || !scale)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_quantize_rows: NULL");
    if (like->format != MOEC_WFORMAT_FP8 && like->format != MOEC_WFORMAT_INT4 &&
        like->format != MOEC_WFORMAT_MXFP4)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "no quantiser for weight format %u",
                         (unsigned)like->format);
    m = *like;
    m.data = data;
    m.scale = scale;
    m.zeros = NULL;
    m.bias = NULL;
    MOEC_TRY(moec_matrix_check(&m, "matrix", err));
    q.m = moec_mat_of(&m, 0);
    n_items = (uint64_t)(q.m.n_out / q.m.part_rows) * q.m.part_scale_rows;
    q.sums = moec_calloc(n_items, sizeof(*q.sums));
    if (!q.sums)
        return moec_fail_nomem(err, "error sums");
    moec_pool_run(k->pool, n_items, quantize_blocks, &q);
    st = add_up(&q, n_items, error_out, err);
    moec_free(q.sums);
    return st;
}
