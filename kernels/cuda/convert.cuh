// SPDX-License-Identifier: Apache-2.0
#ifndef MOEC_CONVERT_CUH
#define MOEC_CONVERT_CUH

// What this is: one element of a dtype to float32 and back, by integer
//   arithmetic: the bits of the CPU's moec_cast on every device.

#include "common.cuh"

// A minifloat of EXP exponent bits and MAN mantissa bits, sign above, to
// float32: exact. IEEE says where an exponent of ones means infinity or NaN;
// E4M3 has no infinity, and NaN only with a mantissa of ones.
template <int EXP, int MAN, bool IEEE>
__device__ static inline float moec_widen(uint32_t v)
{
    uint32_t sign = (v >> (EXP + MAN) & 1u) << 31;
    uint32_t e = v >> MAN & ((1u << EXP) - 1u), m = v & ((1u << MAN) - 1u);
    const uint32_t bias = 127u - ((1u << (EXP - 1)) - 1u);

    if (IEEE ? e == (1u << EXP) - 1u
             : e == (1u << EXP) - 1u && m == (1u << MAN) - 1u)
        return __uint_as_float(sign | 0x7f800000u |
                               (IEEE && m == 0 ? 0u : 0x400000u) |
                               m << (23 - MAN));
    if (e != 0)
        return __uint_as_float(sign | (e + bias) << 23 | m << (23 - MAN));
    // A denormal: an integer times a power of two, exact in float32.
    return __uint_as_float(
        __float_as_uint(__fmul_rn(
            static_cast<float>(static_cast<int>(m)),
            __uint_as_float((bias + 1u - MAN) << 23))) |
        sign);
}

// float32 to a minifloat, nearest even. IEEE: beyond the range is infinity;
// else, and where `saturate`, the largest finite value.
template <int EXP, int MAN, bool IEEE, bool SATURATE>
__device__ static inline uint32_t moec_narrow(float f)
{
    uint32_t u = __float_as_uint(f), a = u & 0x7fffffffu;
    uint32_t sign = u >> 31 << (EXP + MAN);
    const int bias = 127 - ((1 << (EXP - 1)) - 1);
    const uint32_t nan = (1u << (EXP + MAN)) - 1u;
    const uint32_t inf = ((1u << EXP) - 1u) << MAN;
    const uint32_t largest = IEEE ? inf - 1u : nan - 1u;
    const uint32_t above = SATURATE || !IEEE ? largest : inf;
    uint32_t r;

    if (a > 0x7f800000u)
        return sign | (IEEE ? inf | 1u << (MAN - 1) : nan);
    if (a == 0x7f800000u)
        return sign | above;
    int e = static_cast<int>(a >> 23) - bias; // the minifloat's exponent
    uint32_t m = (a & 0x7fffffu) | 0x800000u;
    int shift = 23 - MAN + (e < 1 ? 1 - e : 0);
    if (shift > 25)
        return sign; // below half of the least denormal
    r = m >> shift;
    uint32_t rest = m & ((1u << shift) - 1u), half = 1u << (shift - 1);
    if (rest > half || (rest == half && (r & 1u) != 0))
        r++;
    // The hidden bit adds itself to the exponent; a carry does the rest.
    if (e >= 1)
        r += static_cast<uint32_t>(e - 1) << MAN;
    return sign | (r > largest ? above : r);
}

template <int DTYPE>
__device__ static inline float moec_load(const void *p, uint64_t i)
{
    switch (DTYPE) {
    case MOEC_DTYPE_BF16:
        return __uint_as_float(
            static_cast<uint32_t>(static_cast<const uint16_t *>(p)[i]) << 16);
    case MOEC_DTYPE_F16:
        return moec_widen<5, 10, true>(static_cast<const uint16_t *>(p)[i]);
    case MOEC_DTYPE_F8_E4M3:
        return moec_widen<4, 3, false>(static_cast<const uint8_t *>(p)[i]);
    case MOEC_DTYPE_F8_E5M2:
        return moec_widen<5, 2, true>(static_cast<const uint8_t *>(p)[i]);
    case MOEC_DTYPE_F32:
        break;
    }
    return static_cast<const float *>(p)[i];
}

template <int DTYPE>
__device__ static inline void moec_store(void *p, uint64_t i, float f)
{
    uint32_t u = __float_as_uint(f);

    switch (DTYPE) {
    case MOEC_DTYPE_BF16: // infinities and carries fall out of the addition
        static_cast<uint16_t *>(p)[i] = static_cast<uint16_t>(
            (u & 0x7fffffffu) > 0x7f800000u
                ? u >> 16 | 0x40u
                : (u + 0x7fffu + (u >> 16 & 1u)) >> 16);
        return;
    case MOEC_DTYPE_F16:
        static_cast<uint16_t *>(p)[i] =
            static_cast<uint16_t>(moec_narrow<5, 10, true, false>(f));
        return;
    case MOEC_DTYPE_F8_E4M3:
        static_cast<uint8_t *>(p)[i] =
            static_cast<uint8_t>(moec_narrow<4, 3, false, true>(f));
        return;
    case MOEC_DTYPE_F8_E5M2:
        static_cast<uint8_t *>(p)[i] =
            static_cast<uint8_t>(moec_narrow<5, 2, true, true>(f));
        return;
    case MOEC_DTYPE_F32:
        break;
    }
    static_cast<float *>(p)[i] = f;
}

#endif
