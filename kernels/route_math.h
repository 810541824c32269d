/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_ROUTE_MATH_H
#define MOEC_ROUTE_MATH_H

/*
 * What this is: the functions whose last bit decides which expert is chosen:
 *   exp, log1p of an exp, sigmoid, tanh, in float32. Scalar C here; the SIMD
 *   files and the CUDA files do THE SAME additions and multiplications in the
 *   same order, without fused multiply-add, so that the bits are equal. C and
 *   CUDA C++ compile this file.
 * Errors: below 1.5 ulp of the true value (tests/unit/test_route_math.c); the
 *   equality matters more than the ulp.
 *
 * exp(x) = 2^n * e^r, n = round(x / ln 2), r = x - n ln 2 in two steps, and a
 * polynomial of degree 6 (Cephes expf). Below EXP_LOW the result is 0: no
 * denormals, which back ends treat differently.
 */

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

#endif
