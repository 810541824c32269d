/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_EC_CAPACITY_H
#define MOEC_EC_CAPACITY_H

/*
 * What this is: the capacity of Expert Choice in integers, for the CPU and for
 *   the device, which knows the number of real tokens only when it runs.
 */

#include <moec/kernels.h>

#ifdef __CUDACC__
#  define MOEC_EC_HD __host__ __device__ static inline
#else
#  define MOEC_EC_HD static inline
#endif

MOEC_EC_HD uint32_t moec_ec_auto_ppm(uint32_t n_experts, uint32_t n_valid)
{
    uint32_t ppm = 1100000;

    if (n_experts <= 8)
        ppm = 1500000;
    else if (n_experts <= 32)
        ppm = 1250000;
    if (n_valid < 32 && ppm < 1500000)
        ppm = 1500000;
    if (n_valid > 128 && ppm > 1200000)
        ppm = 1200000;
    return ppm;
}

/* ceil(n * K * ppm / (E * 10^6)) where that is below n: then K * ppm is below
 * E * 10^6, that is below 2^32, and the product with n fits 64 bits. */
MOEC_EC_HD uint32_t moec_ec_capacity_of(const moec_route_config *config,
                                        uint32_t n_valid)
{
    uint64_t ppm = config->ec.capacity_ppm;
    uint64_t num, den = (uint64_t)config->n_experts * 1000000;
    uint64_t c = n_valid, lo = 1;

    if (ppm == 0)
        ppm = moec_ec_auto_ppm(config->n_experts, n_valid);
    num = ppm * config->top_k;
    if (num < den)
        c = (num * n_valid + den - 1) / den;
    if (config->ec.fill != MOEC_EC_PAD && config->ec.fill != MOEC_EC_BALANCED)
        lo = config->top_k;
    c = c > lo ? c : lo;
    return (uint32_t)(c < n_valid ? c : n_valid);
}

#endif
