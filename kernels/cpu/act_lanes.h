/* SPDX-License-Identifier: Apache-2.0
 *
 * Activations, once for all instruction sets: each ffn_*.c says how many LANES
 * its vectors have and includes this. All is plain arithmetic of the
 * compiler's vectors in a written order, without fused multiply-add, so the
 * bits do not depend on the width. Everything here is static: nothing can be
 * shared between files with different flags.
 *
 * Errors, measured against float64 by tests/unit/test_ffn.c: silu and
 * gelu_tanh below 2e-7 of |x|, gelu (erf) below 3e-7 of |x|. */

#ifndef LANES
#  error "LANES must say how many floats a vector has"
#endif

#include <string.h>

#include "matrix.h"

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));

static inline vf splat(float x)
{
    return (vf){0} + x; /* -0 becomes 0: no constant here is one */
}

/* mask ? a : b, for masks of 0 and -1. */
static inline vf pick(vi mask, vf a, vf b)
{
    return (vf)((mask & (vi)a) | (~mask & (vi)b));
}

/* NaN passes: it compares false. */
static inline vf at_most(vf x, float limit)
{
    return pick(x > splat(limit), splat(limit), x);
}

static inline vf at_least(vf x, float limit)
{
    return pick(x < splat(limit), splat(limit), x);
}

/* e^x: 2^n e^r with Cephes' polynomial; 0 below -87, e^88 above 88. */
static inline vf vexp(vf x)
{
    const vf magic = splat(0x1.8p23f);
    vi tiny = x < splat(-87.0f);
    vf t, n, r, p;

    x = at_most(at_least(x, -87.0f), 88.0f);
    t = x * 1.44269504088896341f + magic;
    n = t - magic;
    r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    p = p * (vf)(((vi)t << 23) + 0x3f800000);
    return (vf)(~tiny & (vi)p);
}

static inline vf vsigmoid(vf x)
{
    return splat(1.0f) / (vexp(-x) + 1.0f);
}

static inline vf vsilu(vf x)
{
    return x / (vexp(-x) + 1.0f);
}

/* Cephes: a polynomial near 0, where 1 - 2 / (e^2x + 1) would cancel. */
static inline vf vtanh(vf x)
{
    vf z = x * x, p, big;
    vi small = (z < splat(0.390625f));

    p = z * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    p = p * z * x + x;
    big = splat(1.0f) - splat(2.0f) / (vexp(x + x) + 1.0f);
    return pick(small, p, big);
}

/* x * Phi(x) with erfc by the Chebyshev fit of Numerical Recipes (erfcc,
 * relative error 1.2e-7 everywhere): the small side is never a difference. */
static inline vf vgelu(vf x)
{
    vf z = pick(x < splat(0.0f), -x, x) * 0.70710678118654752f;
    vf t = splat(1.0f) / (z * 0.5f + 1.0f);
    vf p = t * 0.17087277f - 0.82215223f;

    p = p * t + 1.48851587f;
    p = p * t - 1.13520398f;
    p = p * t + 0.27886807f;
    p = p * t - 0.18628806f;
    p = p * t + 0.09678418f;
    p = p * t + 0.37409196f;
    p = p * t + 1.00002368f;
    p = p * t - 1.26551223f;
    p = t * vexp(p - z * z); /* erfc(|x| / sqrt 2) */
    return x * 0.5f * pick(x < splat(0.0f), p, splat(2.0f) - p);
}

static inline vf vgelu_tanh(vf x)
{
    vf u = x * x * x * 0.044715f + x;

    return x / (vexp(u * -1.59576912160573081f) + 1.0f);
}

static inline vf clamp_both(vf x, float limit)
{
    return at_most(at_least(x, -limit), limit);
}

/* `limit` is infinite where the configuration has none. */
static inline vf activate(const moec_ffn_config *c, float limit, vf gate, vf up)
{
    vf s;

    switch (c->act) {
    case MOEC_ACT_SILU:
        return vsilu(gate) * up;
    case MOEC_ACT_SWIGLU_OAI:
        gate = at_most(gate, limit);
        up = clamp_both(up, limit);
        return gate * vsigmoid(gate * (c->alpha != 0.0f ? c->alpha : 1.702f)) *
               (up + 1.0f);
    case MOEC_ACT_RELU2:
        up = pick(up < splat(0.0f), splat(0.0f), up);
        return up * up;
    case MOEC_ACT_GELU_TANH:
        return vgelu_tanh(gate) * up;
    case MOEC_ACT_GELU:
        return vgelu(gate) * up;
    case MOEC_ACT_SILU_CLAMP_BEFORE:
        return vsilu(at_most(gate, limit)) * clamp_both(up, limit);
    case MOEC_ACT_SILU_CLAMP_AFTER:
        return at_most(vsilu(gate), limit) * clamp_both(up, limit);
    case MOEC_ACT_SITU:
        s = vtanh(gate / c->beta) * c->beta * vsigmoid(gate);
        return s * (vtanh(up / c->linear_beta) * c->linear_beta);
    }
    return gate;
}

static void act_lanes(const moec_ffn_config *c, const float *gate,
                      const float *up, uint64_t n, float *out)
{
    float limit = c->limit > 0.0f ? c->limit : __builtin_inff();

    for (uint64_t i = 0; i < n; i += LANES) {
        uint64_t m = n - i < LANES ? n - i : LANES;
        vf g = {0}, u = {0}, r;

        if (c->gated)
            memcpy(&g, gate + i, m * sizeof(float));
        memcpy(&u, up + i, m * sizeof(float));
        r = activate(c, limit, g, u);
        memcpy(out + i, &r, m * sizeof(float));
    }
}
