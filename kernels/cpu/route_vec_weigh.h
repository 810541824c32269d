/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_ROUTE_VEC_WEIGH_H
#define MOEC_ROUTE_VEC_WEIGH_H

/*
 * What this is: the weights of the chosen columns, a row per lane, and the rows as
 *   they are written. Part of route_vec.h.
 */

#include <math.h>

#include "cpu/route_vec_block.h"

/* ------------------------------------------------------------- weights */

/* b->s: x of each chosen column, -inf for none. */
static void gather_x(struct block *b)
{
    uint32_t k = b->r->config.top_k;

    for (uint32_t j = 0; b->n < ROWS && j < k; j++)
        vf_store(b->s[j], vf_set(-INFINITY));
    for (uint32_t i = 0; i < b->n; i++) {
        const void *row = moec_route_row(b->r, b->in, b->row + i);

        for (uint32_t j = 0; j < k; j++) {
            int32_t id = b->id[j][i];

            if (id < 0)
                b->s[j][i] = -INFINITY;
            else if (b->in->logits_dtype == MOEC_DTYPE_F32)
                b->s[j][i] = ((const float *)row)[id];
            else
                b->s[j][i] =
                    vf_one(((const uint16_t *)row)[id], b->in->logits_dtype);
        }
    }
    for (uint32_t j = 0; j < k; j++)
        vf_store(b->s[j], capped(b, canonical(vf_load(b->s[j]))));
}

/* b->s from x to score, or e^(x - m) where a softmax follows. */
static void scores_of_chosen(struct block *b)
{
    const moec_route_config *c = &b->r->config;
    uint32_t k = c->top_k;
    vf none = vf_set(-INFINITY), m = none;

    if (c->norm == MOEC_NORM_SOFTMAX) {
        for (uint32_t j = 0; j < k; j++)
            m = vf_max(m, vf_load(b->s[j]));
    } else if (c->score == MOEC_SCORE_SOFTMAX) {
        m = vf_load(b->m);
    } else {
        for (uint32_t j = 0; j < k; j++) {
            vf x = vf_load(b->s[j]);

            vf_store(b->s[j], vf_maskz(vf_gt(x, none), score_v(c->score, x)));
        }
        return;
    }
    for (uint32_t j = 0; j < k; j++) {
        vf x = vf_load(b->s[j]);

        vf_store(b->s[j], vf_maskz(vf_gt(x, none), exp_v(vf_sub(x, m))));
    }
}

/* The others hold whatever lay there, which must decide nothing. */
static inline vm lanes_with_rows(const struct block *b)
{
    static const _Alignas(64) float lane[ROWS] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                  8, 9, 10, 11, 12, 13, 14, 15};

    return vf_gt(vf_set((float)b->n), vf_load(lane));
}

/* See divisor in route_scalar.c. */
static vf divisor(struct block *b)
{
    const moec_route_config *c = &b->r->config;
    bool softmax = c->score == MOEC_SCORE_SOFTMAX;
    vf sum = vf_set(0.0f), all = vf_set(1.0f);

    if (c->norm == MOEC_NORM_NONE) {
        if (!softmax)
            return all;
        if (!b->has_sum)
            find_sum(b, b->bias, false);
        return vf_load(b->sum);
    }
    for (uint32_t j = 0; j < c->top_k; j++) {
        vf v = vf_load(b->s[j]);

        if (c->norm == MOEC_NORM_P)
            v = c->norm_arg == 2.0f
                    ? vf_mul(v, v)
                    : vi_as_f(vi_and(vf_as_i(v), vi_set(0x7fffffffu)));
        sum = vf_add(sum, v);
    }
    if (c->norm == MOEC_NORM_SUM) {
        vm zero = vf_eq0(sum);
        vm small = vm_and(vf_gt(vf_set(1e-8f), sum), vf_gt(sum, vf_set(0.0f)));

        small = vm_and(small, lanes_with_rows(b));
        if (softmax && vm_count(small) != 0) {
            if (!b->has_sum)
                find_sum(b, b->bias, false);
            all = vf_sel(small, vf_load(b->sum), all);
        }
        all = vf_add(sum, vf_mul(vf_set(1e-20f), all));
        return vf_sel(zero, vf_set(0.0f), all);
    }
    if (c->norm == MOEC_NORM_FLOOR) {
        if (softmax && !b->has_sum)
            find_sum(b, b->bias, false);
        if (softmax)
            all = vf_load(b->sum);
        return vf_max(sum, vf_mul(vf_set(c->norm_arg), all));
    }
    if (c->norm == MOEC_NORM_P && c->norm_arg == 2.0f)
        return vf_sqrt(sum);
    return sum;
}

/* b->s from x to weight; b->m is known where a softmax needs it. */
static void weigh(struct block *b)
{
    const moec_route_config *c = &b->r->config;
    const float *scale = b->in->expert_scale;
    vf d, rsf = vf_set(c->rsf);
    vm zero;

    scores_of_chosen(b);
    d = divisor(b);
    zero = vf_eq0(d);
    for (uint32_t j = 0; j < c->top_k; j++) {
        vf w = vf_div(vf_load(b->s[j]), d);

        if (c->rsf_on == MOEC_RSF_ON_WEIGHTS)
            w = vf_mul(w, rsf);
        w = vf_sel(zero, vf_set(0.0f), w);
        w = vf_sel(vi_lt(vi_load(b->id[j]), vi_set(0)), vf_set(0.0f), w);
        vf_store(b->s[j], w);
    }
    for (uint32_t j = 0; scale && j < c->top_k; j++)
        for (uint32_t i = 0; i < b->n; i++) {
            int32_t id = b->id[j][i];

            if (id >= 0 && (uint32_t)id < c->n_experts)
                b->s[j][i] *= scale[id];
        }
}

/* -------------------------------------------------------------- output */

/* Rows of ids and weights from columns 8 at a time: one transposition turns
 * eight columns of both. */
static void write_rows(const struct block *b, int32_t *ids, float *weights,
                       bool with_ids)
{
    uint32_t k = b->r->config.top_k, stride = b->r->n_columns;

    for (uint32_t at = 0; at < k; at += 8) {
        uint32_t n = k - at < 8 ? k - at : 8;
        vf v[16];

        for (uint32_t j = 0; j < 8; j++) {
            v[j] = j < n ? vi_as_f(vi_load(b->id[at + j])) : vf_set(0.0f);
            v[j + 8] = j < n ? vf_load(b->s[at + j]) : vf_set(0.0f);
        }
        vf_transpose(v);
        for (uint32_t i = 0; i < b->n; i++) {
            uint64_t to = (uint64_t)i * stride + at;

            if (with_ids)
                vf_store_low(ids + to, v[i], n);
            vf_store_high(weights + to, v[i], n);
        }
    }
}

static void write_shared(const struct block *b, int32_t *ids, float *weights,
                         bool with_ids)
{
    const moec_route_config *c = &b->r->config;
    float w = b->r->shared_weight;

    for (uint32_t i = 0; i < b->n && c->n_shared; i++) {
        uint64_t to = (uint64_t)i * b->r->n_columns + c->top_k;
        bool none = b->id[0][i] < 0;

        if (c->shared_kind == MOEC_SHARED_SIGMOID)
            w = moec_shared_weight(c, b->in->shared_gate[b->row + i]);
        for (uint32_t s = 0; s < c->n_shared; s++) {
            if (with_ids)
                ids[to + s] = none ? -1 : (int32_t)(b->r->n_choice + s);
            weights[to + s] = none ? 0.0f : w;
        }
    }
}

#endif
