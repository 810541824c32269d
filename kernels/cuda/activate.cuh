// SPDX-License-Identifier: Apache-2.0
#ifndef MOEC_ACTIVATE_CUH
#define MOEC_ACTIVATE_CUH

// What this is: the activations of kernels/cpu/act_lanes.h, one value at a
//   time, the same operations in the same order: the same bits. NaN passes.
// House rule: compiled with -fmad=false and IEEE division, like everything.

#include "common.cuh"

__device__ static inline float moec_at_most(float x, float limit)
{
    return x > limit ? limit : x;
}
__device__ static inline float moec_at_least(float x, float limit)
{
    return x < limit ? limit : x;
}
__device__ static inline float moec_clamp_both(float x, float limit)
{
    return moec_at_most(moec_at_least(x, -limit), limit);
}

// e^x: 2^n e^r with Cephes' polynomial; 0 below -87, e^88 above 88.
__device__ static inline float moec_act_exp(float x)
{
    const float magic = 12582912.0f;
    bool tiny = x < -87.0f;
    float t, n, r, p;

    x = moec_at_most(moec_at_least(x, -87.0f), 88.0f);
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
    p = p * __uint_as_float((__float_as_uint(t) << 23) + 0x3f800000u);
    return tiny ? 0.0f : p;
}

__device__ static inline float moec_act_sigmoid(float x)
{
    return 1.0f / (moec_act_exp(-x) + 1.0f);
}

__device__ static inline float moec_act_silu(float x)
{
    return x / (moec_act_exp(-x) + 1.0f);
}

__device__ static inline float moec_act_tanh(float x)
{
    float z = x * x, p;

    if (!(z < 0.390625f))
        return 1.0f - 2.0f / (moec_act_exp(x + x) + 1.0f);
    p = z * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    return p * z * x + x;
}

__device__ static inline float moec_act_gelu(float x)
{
    float z = (x < 0.0f ? -x : x) * 0.70710678118654752f;
    float t = 1.0f / (z * 0.5f + 1.0f);
    float p = t * 0.17087277f - 0.82215223f;

    p = p * t + 1.48851587f;
    p = p * t - 1.13520398f;
    p = p * t + 0.27886807f;
    p = p * t - 0.18628806f;
    p = p * t + 0.09678418f;
    p = p * t + 0.37409196f;
    p = p * t + 1.00002368f;
    p = p * t - 1.26551223f;
    p = t * moec_act_exp(p - z * z);
    return x * 0.5f * (x < 0.0f ? p : 2.0f - p);
}

__device__ static inline float moec_act_gelu_tanh(float x)
{
    float u = x * x * x * 0.044715f + x;

    return x / (moec_act_exp(u * -1.59576912160573081f) + 1.0f);
}

// What an activation needs of a configuration.
struct moec_activation {
    int act;
    float limit; // infinite where there is none
    float alpha, beta, linear_beta;
};

static inline moec_activation moec_activation_of(const moec_ffn_config *c)
{
    moec_activation a;

    a.act = c->act;
    a.limit = c->limit > 0.0f ? c->limit : __builtin_huge_valf();
    a.alpha = c->alpha != 0.0f ? c->alpha : 1.702f;
    a.beta = c->beta;
    a.linear_beta = c->linear_beta;
    return a;
}

// A call, by value: 32 copies of every activation in a kernel are minutes of
// compiling.
__device__ MOEC_NOINLINE static inline float moec_activate(moec_activation a,
                                                           float gate, float up)
{
    float s;

    switch (a.act) {
    case MOEC_ACT_SILU:
        return moec_act_silu(gate) * up;
    case MOEC_ACT_SWIGLU_OAI:
        gate = moec_at_most(gate, a.limit);
        up = moec_clamp_both(up, a.limit);
        return gate * moec_act_sigmoid(gate * a.alpha) * (up + 1.0f);
    case MOEC_ACT_RELU2:
        up = up < 0.0f ? 0.0f : up;
        return up * up;
    case MOEC_ACT_GELU_TANH:
        return moec_act_gelu_tanh(gate) * up;
    case MOEC_ACT_GELU:
        return moec_act_gelu(gate) * up;
    case MOEC_ACT_SILU_CLAMP_BEFORE:
        return moec_act_silu(moec_at_most(gate, a.limit)) *
               moec_clamp_both(up, a.limit);
    case MOEC_ACT_SILU_CLAMP_AFTER:
        return moec_at_most(moec_act_silu(gate), a.limit) *
               moec_clamp_both(up, a.limit);
    case MOEC_ACT_SITU:
        s = moec_act_tanh(gate / a.beta) * a.beta * moec_act_sigmoid(gate);
        return s * (moec_act_tanh(up / a.linear_beta) * a.linear_beta);
    }
    return gate;
}

#endif
