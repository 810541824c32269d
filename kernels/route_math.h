/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_ROUTE_MATH_H
#define MOEC_ROUTE_MATH_H

/*
 * What this is: the functions whose last bit decides which expert is chosen:
 *   exp, log1p of an exp, sigmoid, tanh, in float32. Scalar C here; the SIMD
 *   files and the CUDA files do THE SAME additions and multiplications in the
 *   same order, without fused multiply-add, so that the bits are equal. C and
 *   CUDA C++ compile this file.
 * Errors: below 2.5 ulp of the true value (tests/unit/test_route_math.c); the
 *   equality matters more than the ulp. NaN in gives 0 out, but for tanh.
 *
 * exp(x) = 2^n * e^r, n = round(x / ln 2), r = x - n ln 2 in two steps, and a
 * polynomial of degree 6 (Cephes expf). Below EXP_LOW the result is 0: no
 * denormals, which back ends treat differently.
 *
 * log1p(u), u in [0,1], = 2 atanh(t), t = u / (2 + u) <= 1/3: one division and
 * a minimax polynomial in t^2 (error 0.007 * 2^-24). tanh(y) is (1 - e) /
 * (1 + e), e = exp(-2|y|), but an odd polynomial below 0.625, where 1 - e
 * cancels (0.01 * 2^-24). Both fitted with mpmath's chebyfit.
 */

#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#  define MOEC_HD __host__ __device__ static inline
#else
#  define MOEC_HD static inline
#endif

typedef union moec_f32_bits {
    float f;
    uint32_t u;
    int32_t i;
} moec_f32_bits;

#define MOEC_EXP_HIGH 88.0f
#define MOEC_EXP_LOW  (-87.0f)

/* Adding 1.5 * 2^23 rounds to the nearest integer, which then stands in the
 * low bits. */
#define MOEC_EXP_SHIFT  12582912.0f
#define MOEC_EXP_LOG2E  1.44269504088896341f
#define MOEC_EXP_LN2_A  0.693359375f /* 9 bits: n times this is exact */
#define MOEC_EXP_LN2_B  (-2.12194440e-4f)
#define MOEC_EXP_P0     1.9875691500e-4f
#define MOEC_EXP_P1     1.3981999507e-3f
#define MOEC_EXP_P2     8.3334519073e-3f
#define MOEC_EXP_P3     4.1665795894e-2f
#define MOEC_EXP_P4     1.6666665459e-1f
#define MOEC_EXP_P5     5.0000001201e-1f

#define MOEC_LOG1P_P0   0.11612164612f
#define MOEC_LOG1P_P1   0.108532879004f
#define MOEC_LOG1P_P2   0.142961789972f
#define MOEC_LOG1P_P3   0.19999853166f
#define MOEC_LOG1P_P4   0.333333336603f

#define MOEC_TANH_SMALL 0.625f
#define MOEC_TANH_P0    0.00229274481618f
#define MOEC_TANH_P1    (-0.00834394551584f)
#define MOEC_TANH_P2    0.021768918651f
#define MOEC_TANH_P3    (-0.0539592595772f)
#define MOEC_TANH_P4    0.133333035569f
#define MOEC_TANH_P5    (-0.333333331721f)

/* Below this sqrt(log(1 + e^x)) is e^(x/2) to less than half an ulp. */
#define MOEC_SOFTPLUS_LOW (-16.0f)

MOEC_HD float moec_f32_exp(float x)
{
    moec_f32_bits n, scale;
    float r, k, p;

    if (!(x >= MOEC_EXP_LOW))
        return 0.0f;
    if (x > MOEC_EXP_HIGH)
        x = MOEC_EXP_HIGH;
    n.f = x * MOEC_EXP_LOG2E + MOEC_EXP_SHIFT;
    k = n.f - MOEC_EXP_SHIFT;
    r = x - k * MOEC_EXP_LN2_A;
    r = r - k * MOEC_EXP_LN2_B;
    p = MOEC_EXP_P0;
    p = p * r + MOEC_EXP_P1;
    p = p * r + MOEC_EXP_P2;
    p = p * r + MOEC_EXP_P3;
    p = p * r + MOEC_EXP_P4;
    p = p * r + MOEC_EXP_P5;
    p = p * (r * r) + r;
    p = p + 1.0f;
    scale.u = (n.u << 23) + 0x3f800000u;
    return p * scale.f;
}

/* a / b, rounded once as everywhere, for what stands below: 0 <= a <= b, 1 <= b
 * <= 3, and b is 1 or 2 where a is tiny. nvcc's own division is these steps and
 * a branch to another one for numbers that do not occur here; without it the
 * divisions of a row run side by side. */
MOEC_HD float moec_f32_div(float a, float b)
{
#ifdef __CUDA_ARCH__
    float y, q;

    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(b));
    y = __fmaf_rn(y, __fmaf_rn(-b, y, 1.0f), y);
    q = __fmul_rn(a, y);
    q = __fmaf_rn(__fmaf_rn(-b, q, a), y, q);
    return __fmaf_rn(__fmaf_rn(-b, q, a), y, q);
#else
    return a / b;
#endif
}

/* 1 / (1 + e^-x), from the side where the exponential is at most 1. */
MOEC_HD float moec_f32_sigmoid(float x)
{
    float e = moec_f32_exp(-fabsf(x));

    return moec_f32_div(x >= 0.0f ? 1.0f : e, 1.0f + e);
}

/* log(1 + u) for u in [0, 1]. */
MOEC_HD float moec_f32_log1p(float u)
{
    float t = moec_f32_div(u, 2.0f + u);
    float z = t * t;
    float p = MOEC_LOG1P_P0;

    p = p * z + MOEC_LOG1P_P1;
    p = p * z + MOEC_LOG1P_P2;
    p = p * z + MOEC_LOG1P_P3;
    p = p * z + MOEC_LOG1P_P4;
    t = t + t;
    return t * (z * p) + t;
}

/* sqrt(log(1 + e^x)); sqrt itself is exact everywhere. */
MOEC_HD float moec_f32_sqrt_softplus(float x)
{
    float e;

    if (!(x >= MOEC_SOFTPLUS_LOW))
        return moec_f32_exp(x * 0.5f);
    e = moec_f32_exp(-fabsf(x));
    return sqrtf((x > 0.0f ? x : 0.0f) + moec_f32_log1p(e));
}

MOEC_HD float moec_f32_tanh(float y)
{
    float a = fabsf(y), e, z, p;

    if (a < MOEC_TANH_SMALL) {
        z = y * y;
        p = MOEC_TANH_P0;
        p = p * z + MOEC_TANH_P1;
        p = p * z + MOEC_TANH_P2;
        p = p * z + MOEC_TANH_P3;
        p = p * z + MOEC_TANH_P4;
        p = p * z + MOEC_TANH_P5;
        return y * (z * p) + y;
    }
    e = moec_f32_exp(-2.0f * a);
    return copysignf(moec_f32_div(1.0f - e, 1.0f + e), y);
}

/* Order-preserving: a < b as floats is key(a) < key(b). Not for NaN or -0;
 * 0 is below every key of a finite number. */
MOEC_HD uint32_t moec_f32_key(float x)
{
    moec_f32_bits b;

    b.f = x;
    return b.i < 0 ? ~b.u : b.u | 0x80000000u;
}

MOEC_HD float moec_f32_unkey(uint32_t key)
{
    moec_f32_bits b;

    b.u = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    return b.f;
}

#endif
