// SPDX-License-Identifier: Apache-2.0
#ifndef MOEC_TENSOR_CUH
#define MOEC_TENSOR_CUH

// What this is: the instructions that C++ has no words for, of sm_80 and
//   later: the tensor cores' m16n8k16 product, copies to shared memory that do
//   not pass through registers, pairs of bf16. Under MOEC_EMULATE the same on
//   the host: the product gathers its fragments over the 32 lanes.
// Fragments (PTX ISA, m16n8k16 .bf16): lane = 4 * g + q. a[0], a[1]: rows g
//   and g + 8 at k 2q, 2q+1; a[2], a[3]: the same rows at k 2q+8, 2q+9. b[0],
//   b[1]: column g at the same k. c: rows g, g, g+8, g+8; columns 2q, 2q+1.
//   The order of k is anyone's, if a and b agree: ours give each lane eight
//   adjacent values of a row in two products.

#include "common.cuh"
#include "convert.cuh"

#ifdef MOEC_EMULATE

__device__ static inline float moec_bf16_low(uint32_t pair)
{
    return __uint_as_float(pair << 16);
}
__device__ static inline float moec_bf16_high(uint32_t pair)
{
    return __uint_as_float(pair & 0xffff0000u);
}
__device__ static inline uint32_t moec_bf16_pair(float low, float high)
{
    uint16_t r[2];

    moec_store<MOEC_DTYPE_BF16>(r, 0, low);
    moec_store<MOEC_DTYPE_BF16>(r, 1, high);
    return r[0] | static_cast<uint32_t>(r[1]) << 16;
}
// a * b + c in each half, rounded once; exact here: no product of ours needs
// more bits than float64 has.
__device__ static inline uint32_t moec_bf16_fma(uint32_t a, uint32_t b,
                                                uint32_t c)
{
    double low = static_cast<double>(moec_bf16_low(a)) * moec_bf16_low(b) +
                 moec_bf16_low(c);
    double high = static_cast<double>(moec_bf16_high(a)) * moec_bf16_high(b) +
                  moec_bf16_high(c);

    return moec_bf16_pair(static_cast<float>(low), static_cast<float>(high));
}

// Two E4M3 in the low half of `w` as a pair, exactly; NaN is NaN.
__device__ static inline uint32_t moec_bf16_of_e4m3(uint32_t w)
{
    return moec_bf16_pair(moec_widen<4, 3, false>(w & 0xffu),
                          moec_widen<4, 3, false>(w >> 8 & 0xffu));
}

// What half `k` % 2 of a pair stands for.
static inline float moec_emulated_half(uint64_t pairs, int reg, int half)
{
    uint32_t pair = static_cast<uint32_t>(pairs >> (32 * reg));

    return half ? moec_bf16_high(pair) : moec_bf16_low(pair);
}

static inline void moec_mma(float c[4], const uint32_t a[4], uint32_t b0,
                            uint32_t b1)
{
    uint64_t low[32], high[32], b[32];
    int lane = static_cast<int>(emu::lane());

    emu::gather(MOEC_FULL_WARP, a[0] | static_cast<uint64_t>(a[1]) << 32, low);
    emu::gather(MOEC_FULL_WARP, a[2] | static_cast<uint64_t>(a[3]) << 32, high);
    emu::gather(MOEC_FULL_WARP, b0 | static_cast<uint64_t>(b1) << 32, b);
    for (int i = 0; i < 4; i++) {
        int row = lane / 4, column = lane % 4 * 2 + i % 2;
        float sum = c[i];

        for (int k = 0; k < 16; k++) {
            int q = k % 8 / 2;

            sum += moec_emulated_half((k < 8 ? low : high)[row * 4 + q], i / 2,
                                      k % 2) *
                   moec_emulated_half(b[column * 4 + q], k / 8, k % 2);
        }
        c[i] = sum;
    }
}

// Up to 16 bytes, zeros behind `bytes`. Both addresses at multiples of 16.
static inline void moec_copy16(void *shared, const void *global, uint32_t bytes)
{
    emu::copy_later(shared, global, bytes);
}
static inline void moec_copy_commit()
{
    emu::copy_commit();
}
template <int N> static inline void moec_copy_wait()
{
    emu::copy_wait(N);
}

#else

__device__ static inline uint32_t moec_bf16_pair(float low, float high)
{
    uint32_t r;

    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
__device__ static inline uint32_t moec_bf16_fma(uint32_t a, uint32_t b,
                                                uint32_t c)
{
    uint32_t r;

    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

// Two E4M3 in the low half of `w` as a pair, exactly; NaN is NaN. sm_80 has no
// instruction for it: exponent and mantissa go where bf16 has its own, and a
// multiplication by 2^120 moves the bias, of denormals too.
__device__ static inline uint32_t moec_bf16_of_e4m3(uint32_t w)
{
#  if __CUDA_ARCH__ >= 890
    uint32_t halves;
    float low, high;

    asm("cvt.rn.f16x2.e4m3x2 %0, %1;"
        : "=r"(halves)
        : "h"(static_cast<uint16_t>(w)));
    asm("{ .reg .f16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; "
        "cvt.f32.f16 %1, h; }"
        : "=f"(low), "=f"(high)
        : "r"(halves));
    return moec_bf16_pair(low, high);
#  else
    uint32_t v = __byte_perm(w, 0, 0x1404);
    uint32_t r = moec_bf16_fma((v >> 4 & 0x07f007f0u) | (v & 0x80008000u),
                               0x7b807b80u, 0x80008000u);

    if ((v & 0x7f00u) == 0x7f00u)
        r |= 0x7fc0u;
    if ((v & 0x7f000000u) == 0x7f000000u)
        r |= 0x7fc00000u;
    return r;
#  endif
}

__device__ static inline void moec_mma(float c[4], const uint32_t a[4],
                                       uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ static inline void moec_copy16(void *shared, const void *global,
                                          uint32_t bytes)
{
    uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));

    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to),
                 "l"(__cvta_generic_to_global(global)), "r"(bytes)
                 : "memory");
}
__device__ static inline void moec_copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until all but the newest N groups of this thread's copies are there.
template <int N> __device__ static inline void moec_copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#endif

// A float as two bf16, high + low, 16 bits of its significand; as the same
// halves of two pairs. Infinity and NaN stay what they are.
__device__ static inline void moec_bf16_split(float x0, float x1,
                                              uint32_t *high, uint32_t *low)
{
    uint32_t h = moec_bf16_pair(x0, x1);
    float r0 = x0 - __uint_as_float(h << 16);
    float r1 = x1 - __uint_as_float(h & 0xffff0000u);

    *high = h;
    // Of an infinity the rest is NaN, of a number next to it the other sign's
    // infinity: neither has a rest that counts.
    *low = moec_bf16_pair(r0 - r0 == 0.0f ? r0 : 0.0f,
                          r1 - r1 == 0.0f ? r1 : 0.0f);
}

#endif
