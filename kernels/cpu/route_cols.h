/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_ROUTE_COLS_H
#define MOEC_ROUTE_COLS_H

/*
 * What this is: column keys of softmax (route.h, `cols`) with the vectors of
 *   route_vec.h. Expert Choice makes them of every pair, and they are half of
 *   its time: all exponentials of a row, where plain top-K needs K.
 *
 * How: up to 16 rows in three passes: the maxima, which bring the rows into
 * the first-level cache; e^(x - max) into the rows of the result, and their
 * sums; keys of e * (1 / sum). The second pass asks for the rows behind these:
 * it is the one that has the time. Maxima and sums are reduced sixteen rows at
 * once, by a transposition, which keeps the order of the additions.
 */

#include "cpu/route_vec.h"

struct col_rows {
    _Alignas(64) float m[ROWS];
    _Alignas(64) float sum[ROWS];
    _Alignas(64) float lanes[ROWS][16];
};

static inline void col_lanes(const struct col_rows *c, vf v[16])
{
    for (int j = 0; j < 16; j++)
        v[j] = vf_load(c->lanes[j]);
}

/* x of a logit: NaN stays, which every compare below refuses; -0 may stay. */
static inline vf col_x(vf logit, float cap)
{
    vf x = vf_min(vf_set(FLT_MAX), logit);

    if (cap == 0.0f)
        return x;
    return vf_mul(vf_set(cap), tanh_v(vf_div(x, vf_set(cap))));
}

static inline __attribute__((always_inline)) vf
col_lane_max(const void *row, moec_dtype dtype, uint32_t n)
{
    vf m = vf_set(-INFINITY);
    uint32_t at = 0;

    for (; at + 16 <= n; at += 16)
        m = vf_max(load_logits(row, dtype, at, 16), m);
    if (at < n)
        m = vf_max(load_logits(row, dtype, at, n - at), m);
    return m; /* the second operand where the first is NaN */
}

/* e^(x - m) of 16 logits, stored with -inf where one is not selectable. */
static inline __attribute__((always_inline)) vf col_exp(vf logit, vf m,
                                                        float cap, float *out)
{
    vf none = vf_set(-INFINITY);
    vm ok = vf_gt(logit, none);
    vf e = exp_v(vf_sub(col_x(logit, cap), m));

    if (cap != 0.0f)
        e = vf_maskz(ok, e); /* tanh of -inf is finite */
    vf_store(out, vf_sel(ok, e, none));
    return e;
}

/* `out` has room for whole vectors. */
static inline __attribute__((always_inline)) vf
col_row_exp(const void *row, const void *ahead, moec_dtype dtype, float cap,
            uint32_t n, vf m, float *out)
{
    uint32_t at = 0, bytes = dtype == MOEC_DTYPE_F32 ? 4 : 2;
    vf sum = vf_set(0.0f);

    for (; at + 16 <= n; at += 16) {
        __builtin_prefetch((const char *)ahead + (size_t)at * bytes);
        sum = vf_add(
            sum, col_exp(load_logits(row, dtype, at, 16), m, cap, out + at));
    }
    if (at < n)
        sum = vf_add(sum, col_exp(load_logits(row, dtype, at, n - at), m, cap,
                                  out + at));
    return sum;
}

static inline void col_row_keys(uint32_t *cols, uint32_t n, float inverse)
{
    vf none = vf_set(-INFINITY);

    for (uint32_t at = 0; at < n; at += 16) {
        vf e = vf_load(cols + at);
        vi key = key_v(vf_mul(e, vf_set(inverse)));

        vi_store(cols + at, vi_maskz(vf_gt(e, none), key));
    }
}

/* n <= ROWS rows. */
static inline __attribute__((always_inline)) void
col_block(const moec_router *r, const moec_route_in *in, moec_dtype dtype,
          float cap, uint32_t row, uint32_t n, uint32_t *cols, uint64_t stride,
          struct col_rows *c)
{
    uint32_t width = r->n_choice;
    vf v[16];

    for (uint32_t i = 0; i < n; i++)
        vf_store(c->lanes[i],
                 col_lane_max(moec_route_row(r, in, row + i), dtype, width));
    col_lanes(c, v);
    v[0] = canonical(max_tree(v));
    vf_store(c->m, capped_by(cap, v[0]));
    for (uint32_t i = 0; i < n; i++) {
        const void *x = moec_route_row(r, in, row + i), *ahead = x;
        vf m = vf_set(c->m[i]);

        if (row + i + ROWS < in->n_valid)
            ahead = moec_route_row(r, in, row + i + ROWS);
        vf_store(c->lanes[i], col_row_exp(x, ahead, dtype, cap, width, m,
                                          (float *)(cols + i * stride)));
    }
    col_lanes(c, v);
    vf_store(c->sum, sum_tree(v));
}

/* Groups that row's choice does not keep: none of their columns. */
static __attribute__((noinline)) void
col_clear_groups(const moec_router *r, const moec_route_in *in, uint32_t row,
                 uint32_t n, uint32_t *cols, uint64_t stride)
{
    uint32_t step = block_rows(r);
    struct wide wide;
    struct block b;

    block_init(&b, r, in, &wide);
    take_bias(&b);
    for (uint32_t at = 0; at < n; at += step) {
        b.row = row + at;
        b.n = n - at < step ? n - at : step;
        make_values(&b);
        make_groups(&b);
        for (uint32_t i = 0; i < b.n; i++)
            for (uint32_t g = 0; g < r->config.n_group; g++)
                if ((b.kept[i] >> g & 1u) == 0)
                    memset(cols + (at + i) * stride + g * b.width, 0,
                           b.width * sizeof(*cols));
    }
}

/* No bias here: see route.h. */
static void cols_vec(const moec_router *r, const moec_route_in *in,
                     uint32_t row, uint32_t n, uint32_t *cols, uint64_t stride,
                     moec_row_scale *scales)
{
    float cap = r->config.softcap;
    struct col_rows c;

    if (!chooses(r, in)) {
        moec_route_cols_scalar(r, in, row, n, cols, stride, scales);
        return;
    }
    memset(&c, 0, sizeof(c));
    for (uint32_t at = 0; at < n; at += ROWS) {
        uint32_t left = n - at < ROWS ? n - at : ROWS;
        uint32_t *to = cols + at * stride;

        if (in->logits_dtype == MOEC_DTYPE_F32 && cap == 0.0f)
            col_block(r, in, MOEC_DTYPE_F32, 0.0f, row + at, left, to, stride,
                      &c);
        else
            col_block(r, in, in->logits_dtype, cap, row + at, left, to, stride,
                      &c);
        for (uint32_t i = 0; i < left; i++) {
            float inverse = 1.0f / c.sum[i];

            col_row_keys(to + i * stride, r->n_choice, inverse);
            if (scales)
                scales[at + i] = (moec_row_scale){c.m[i], inverse};
        }
        if (r->config.n_group > 1)
            col_clear_groups(r, in, row + at, left, to, stride);
    }
}

#endif
