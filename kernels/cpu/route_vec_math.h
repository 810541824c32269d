/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_ROUTE_VEC_MATH_H
#define MOEC_ROUTE_VEC_MATH_H

/*
 * What this is: route_math.h sixteen numbers at a time: the same operations in the
 *   same order, so the same bits. Part of route_vec.h.
 */

#include <float.h>
#include <math.h>

#include "route_math.h"

static inline vf exp_v(vf x)
{
    vm ok = vf_ge(x, vf_set(MOEC_EXP_LOW)); /* x <= 88: all callers */
    vf n = vf_add(vf_mul(x, vf_set(MOEC_EXP_LOG2E)), vf_set(MOEC_EXP_SHIFT));
    vf k = vf_sub(n, vf_set(MOEC_EXP_SHIFT));
    vf r = vf_sub(x, vf_mul(k, vf_set(MOEC_EXP_LN2_A)));
    vf p = vf_set(MOEC_EXP_P0);

    r = vf_sub(r, vf_mul(k, vf_set(MOEC_EXP_LN2_B)));
    p = vf_add(vf_mul(p, r), vf_set(MOEC_EXP_P1));
    p = vf_add(vf_mul(p, r), vf_set(MOEC_EXP_P2));
    p = vf_add(vf_mul(p, r), vf_set(MOEC_EXP_P3));
    p = vf_add(vf_mul(p, r), vf_set(MOEC_EXP_P4));
    p = vf_add(vf_mul(p, r), vf_set(MOEC_EXP_P5));
    p = vf_add(vf_mul(p, vf_mul(r, r)), r);
    p = vf_add(p, vf_set(1.0f));
    return vf_maskz(ok, vf_mul(p, vi_as_f(vi_add(vi_sll(vf_as_i(n), 23),
                                                 vi_set(0x3f800000u)))));
}

static inline vf minus_abs(vf x)
{
    return vi_as_f(vi_or(vf_as_i(x), vi_set(0x80000000u)));
}

static inline vf sigmoid_v(vf x)
{
    vf one = vf_set(1.0f), e = exp_v(minus_abs(x));

    return vf_div(vf_sel(vf_ge(x, vf_set(0.0f)), one, e), vf_add(one, e));
}

static inline vf log1p_v(vf u)
{
    vf t = vf_div(u, vf_add(vf_set(2.0f), u));
    vf z = vf_mul(t, t);
    vf p = vf_set(MOEC_LOG1P_P0);

    p = vf_add(vf_mul(p, z), vf_set(MOEC_LOG1P_P1));
    p = vf_add(vf_mul(p, z), vf_set(MOEC_LOG1P_P2));
    p = vf_add(vf_mul(p, z), vf_set(MOEC_LOG1P_P3));
    p = vf_add(vf_mul(p, z), vf_set(MOEC_LOG1P_P4));
    t = vf_add(t, t);
    return vf_add(vf_mul(t, vf_mul(z, p)), t);
}

static inline vf sqrt_softplus_v(vf x)
{
    vm high = vf_ge(x, vf_set(MOEC_SOFTPLUS_LOW));
    vf half = vf_mul(x, vf_set(0.5f));
    vf e = exp_v(vf_sel(high, minus_abs(x), half));
    vf sum = vf_add(vf_max(x, vf_set(0.0f)), log1p_v(e));

    return vf_sel(high, vf_sqrt(sum), e);
}

static inline vf tanh_v(vf y)
{
    vf one = vf_set(1.0f), z = vf_mul(y, y), p = vf_set(MOEC_TANH_P0), e, big;
    vi sign = vi_and(vf_as_i(y), vi_set(0x80000000u));
    vf a = vi_as_f(vi_xor(vf_as_i(y), sign));

    p = vf_add(vf_mul(p, z), vf_set(MOEC_TANH_P1));
    p = vf_add(vf_mul(p, z), vf_set(MOEC_TANH_P2));
    p = vf_add(vf_mul(p, z), vf_set(MOEC_TANH_P3));
    p = vf_add(vf_mul(p, z), vf_set(MOEC_TANH_P4));
    p = vf_add(vf_mul(p, z), vf_set(MOEC_TANH_P5));
    p = vf_add(vf_mul(y, vf_mul(z, p)), y);
    e = exp_v(vf_mul(vf_set(-2.0f), a));
    big = vf_div(vf_sub(one, e), vf_add(one, e));
    big = vi_as_f(vi_or(vf_as_i(big), sign));
    return vf_sel(vf_ge(a, vf_set(MOEC_TANH_SMALL)), big, p);
}

/* A logit as all code sees it: see load_logit in route_scalar.c. */
static inline vf canonical(vf x)
{
    vf none = vf_set(-INFINITY);
    vf v = vf_add(vf_min(x, vf_set(FLT_MAX)), vf_set(0.0f));

    return vf_sel(vf_gt(x, none), v, none);
}

static inline vf capped_by(float cap, vf x)
{
    if (cap == 0.0f)
        return x;
    return vf_sel(vf_gt(x, vf_set(-INFINITY)),
                  vf_mul(vf_set(cap), tanh_v(vf_div(x, vf_set(cap)))), x);
}

/* Score of a finite x, but for softmax. */
static inline vf score_v(moec_score score, vf x)
{
    switch (score) {
    case MOEC_SCORE_SIGMOID:
        return sigmoid_v(x);
    case MOEC_SCORE_SQRT_SOFTPLUS:
        return sqrt_softplus_v(x);
    case MOEC_SCORE_SOFTMAX:
    case MOEC_SCORE_LOGIT:
        break;
    }
    return x;
}

static inline vi key_v(vf x)
{
    vi i = vf_as_i(x);

    return vi_xor(i, vi_or(vi_sra(i, 31), vi_set(0x80000000u)));
}

static inline vf unkey_v(vi key)
{
    vi flip = vi_or(vi_xor(vi_sra(key, 31), vi_set(0xffffffffu)),
                    vi_set(0x80000000u));

    return vi_as_f(vi_xor(key, flip));
}

#endif
