// SPDX-License-Identifier: Apache-2.0
//
// Digests of stretches of device memory: what a load brought there past the
// host is proved where it stands. Formulas are those of XXH3-128 (default
// secret, from 241 bytes on) and of FIPS 180-4.
//
// XXH3: a warp a stretch. Inside a block of 1 KiB the sums of its 16 stripes do
// not depend on each other: lane (g, i) adds stripes g, g + 4, ... of
// accumulator i; what follows (the scramble) is the same in all four g. Loads
// of a step are 256 adjacent bytes. SHA-256 is a chain: a thread a stretch.

#include "common.cuh"

#define THREADS 128u

__constant__ const uint64_t secret[24] = {
    0xbe4ba423396cfeb8, 0x1cad21f72c81017c, 0xdb979083e96dd4de,
    0x1f67b3b7a4a44072, 0x78e5c0cc4ee679cb, 0x2172ffcc7dd05a82,
    0x8e2443f7744608b8, 0x4c263a81e69035e0, 0xcb00c391bb52283c,
    0xa32e531b8b65d088, 0x4ef90da297486471, 0xd8acdea946ef1938,
    0x3f349ce33f76faa8, 0x1d4f0bc7c7bbdcf9, 0x3159b4cd4be0518a,
    0x647378d9c97e9fc8, 0xc3ebd33483acc5ea, 0xeb6313faffa081c5,
    0x49daf0b751dd0d17, 0x9e68d429265516d3, 0xfca1477d58be162b,
    0xce31d07ad1b8f88f, 0x280416958f3acb45, 0x7e404bbbcafbd7af,
};

__constant__ const uint32_t round_words[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
    0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
    0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
    0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
    0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
    0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
    0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

#define PRIME32_1 0x9e3779b1u
#define PRIME32_2 0x85ebca77u
#define PRIME32_3 0xc2b2ae3du
#define PRIME64_1 0x9e3779b185ebca87ull
#define PRIME64_2 0xc2b2ae3d27d4eb4full
#define PRIME64_3 0x165667b19e3779f9ull
#define PRIME64_4 0x85ebca77c2b2ae63ull
#define PRIME64_5 0x27d4eb2f165667c5ull

// Little endian, of any alignment.
__device__ static inline uint64_t load64(const uint8_t *p)
{
    uint64_t v = 0;

    if ((reinterpret_cast<uintptr_t>(p) & 7) == 0)
        return *reinterpret_cast<const uint64_t *>(p);
    for (unsigned i = 0; i < 8; i++)
        v |= static_cast<uint64_t>(p[i]) << (8 * i);
    return v;
}

__device__ static inline uint64_t secret_at(uint32_t byte)
{
    uint32_t word = byte / 8, shift = byte % 8 * 8;

    if (shift == 0)
        return secret[word];
    return secret[word] >> shift | secret[word + 1] << (64 - shift);
}

// ------------------------------------------------------------------- XXH3

__device__ static inline uint64_t product32(uint64_t v)
{
    return (v & 0xffffffffu) * (v >> 32);
}

// Both halves of the 128-bit product, folded.
__device__ static inline uint64_t fold64(uint64_t a, uint64_t b)
{
    uint64_t a0 = a & 0xffffffffu, a1 = a >> 32;
    uint64_t b0 = b & 0xffffffffu, b1 = b >> 32;
    uint64_t low = a0 * b0, m1 = a1 * b0, m2 = a0 * b1;
    uint64_t mid = (low >> 32) + (m1 & 0xffffffffu) + (m2 & 0xffffffffu);
    uint64_t high = a1 * b1 + (m1 >> 32) + (m2 >> 32) + (mid >> 32);

    return (a * b) ^ high;
}

__device__ static inline uint64_t first_sum(uint32_t i)
{
    switch (i) {
    case 0:
        return PRIME32_3;
    case 1:
        return PRIME64_1;
    case 2:
        return PRIME64_2;
    case 3:
        return PRIME64_3;
    case 4:
        return PRIME64_4;
    case 5:
        return PRIME32_2;
    case 6:
        return PRIME64_5;
    default:
        return PRIME32_1;
    }
}

// Eight sums to 64 bits; all lanes take part, lane 0 has the result.
__device__ static inline uint64_t merge(uint64_t sum, uint32_t lane,
                                        uint32_t at, uint64_t start)
{
    uint64_t next = __shfl_xor_sync(MOEC_FULL_WARP, sum, 1), h = 0;

    if (lane < 8 && lane % 2 == 0)
        h = fold64(sum ^ secret_at(at + 8 * lane),
                   next ^ secret_at(at + 8 * lane + 8));
    h += __shfl_xor_sync(MOEC_FULL_WARP, h, 2);
    h += __shfl_xor_sync(MOEC_FULL_WARP, h, 4);
    h += start;
    h ^= h >> 37;
    h *= 0x165667919e3779f9ull;
    return h ^ h >> 32;
}

__device__ static inline void store_be64(uint8_t *p, uint64_t v)
{
    for (unsigned i = 0; i < 8; i++)
        p[i] = static_cast<uint8_t>(v >> (56 - 8 * i));
}

// All threads of a warp have the same stretch.
__global__ void __launch_bounds__(THREADS)
    xxh3_stretches(const void *const *data, const uint64_t *bytes, uint32_t n,
                   uint8_t *out)
{
    uint32_t w = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    uint32_t lane = threadIdx.x % 32, i = lane % 8, g = lane / 8;
    uint64_t sum = first_sum(i), key[4];

    if (w >= n)
        return;
    const uint8_t *p = static_cast<const uint8_t *>(data[w]);
    uint64_t len = bytes[w], n_blocks = (len - 1) / 1024, low, high;
    uint64_t scramble = secret_at(128 + 8 * i);
    for (uint32_t k = 0; k < 4; k++)
        key[k] = secret_at(8 * (g + 4 * k + i));
    for (uint64_t b = 0; b <= n_blocks; b++) {
        const uint8_t *at = p + 1024 * b;
        uint64_t mine = 0, plain = 0;
        uint32_t stripes = 16;

        if (b == n_blocks) // what is left of full stripes before the last
            stripes = static_cast<uint32_t>((len - 1 - 1024 * b) / 64);
        for (uint32_t k = 0; k < 4; k++) {
            if (g + 4 * k >= stripes)
                continue;
            uint64_t v = load64(at + 64 * (g + 4 * k) + 8 * i);
            mine += product32(v ^ key[k]);
            plain += v;
        }
        mine += __shfl_xor_sync(MOEC_FULL_WARP, plain, 1);
        mine += __shfl_xor_sync(MOEC_FULL_WARP, mine, 8);
        mine += __shfl_xor_sync(MOEC_FULL_WARP, mine, 16);
        sum += mine;
        if (b < n_blocks) {
            sum ^= sum >> 47;
            sum ^= scramble;
            sum *= PRIME32_1;
        }
    }
    uint64_t v = load64(p + len - 64 + 8 * i);
    sum += product32(v ^ secret_at(121 + 8 * i));
    sum += __shfl_xor_sync(MOEC_FULL_WARP, v, 1);
    low = merge(sum, lane, 11, len * PRIME64_1);
    high = merge(sum, lane, 117, ~(len * PRIME64_2));
    if (lane == 0) {
        store_be64(out + 16 * static_cast<uint64_t>(w), high);
        store_be64(out + 16 * static_cast<uint64_t>(w) + 8, low);
    }
}

// ---------------------------------------------------------------- SHA-256

__device__ static inline uint32_t rotate(uint32_t v, unsigned n)
{
    return v >> n | v << (32 - n);
}

__device__ static inline uint32_t swap32(uint32_t v)
{
    return v >> 24 | (v >> 8 & 0xff00u) | (v << 8 & 0xff0000u) | v << 24;
}

// The 64 bytes in w into the state h.
__device__ static void sha256_block(uint32_t h[8], uint32_t w[16])
{
    uint32_t s[8];

    for (unsigned i = 0; i < 8; i++)
        s[i] = h[i];
    MOEC_UNROLL
    for (unsigned t = 0; t < 64; t++) {
        uint32_t x = w[t % 16];

        if (t >= 16) {
            uint32_t a = w[(t + 1) % 16], b = w[(t + 14) % 16];

            x += (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + w[(t + 9) % 16] +
                 (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
            w[t % 16] = x;
        }
        x += s[7] + (rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25)) +
             ((s[4] & s[5]) ^ (~s[4] & s[6])) + round_words[t];
        uint32_t y = (rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22)) +
                     ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        for (unsigned i = 7; i > 0; i--)
            s[i] = s[i - 1];
        s[4] += x;
        s[0] = x + y;
    }
    for (unsigned i = 0; i < 8; i++)
        h[i] += s[i];
}

__global__ void __launch_bounds__(THREADS)
    sha256_stretches(const void *const *data, const uint64_t *bytes, uint32_t n,
                     uint8_t *out)
{
    uint32_t me = blockIdx.x * THREADS + threadIdx.x;
    uint32_t h[8] = {0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au,
                     0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u};
    uint32_t w[16];

    if (me >= n)
        return;
    const uint8_t *p = static_cast<const uint8_t *>(data[me]);
    uint64_t len = bytes[me], at = 0;
    for (; at + 64 <= len; at += 64) {
        for (unsigned i = 0; i < 8; i++) {
            uint64_t v = load64(p + at + 8 * i);

            w[2 * i] = swap32(static_cast<uint32_t>(v));
            w[2 * i + 1] = swap32(static_cast<uint32_t>(v >> 32));
        }
        sha256_block(h, w);
    }
    // the rest, one bit and zeros, up to the length: one block, or two
    for (uint64_t end = (len + 8) / 64 * 64; at <= end; at += 64) {
        for (unsigned i = 0; i < 16; i++)
            w[i] = 0;
        for (unsigned i = 0; i < 64; i++) {
            uint64_t b = at + i;
            uint32_t v = b < len ? p[b] : b == len ? 0x80u : 0u;

            w[i / 4] |= v << (24 - i % 4 * 8);
        }
        if (at == end) {
            w[14] = static_cast<uint32_t>(len >> 29);
            w[15] = static_cast<uint32_t>(len << 3);
        }
        sha256_block(h, w);
    }
    for (unsigned i = 0; i < 32; i++)
        out[32 * static_cast<uint64_t>(me) + i] =
            static_cast<uint8_t>(h[i / 4] >> (24 - i % 4 * 8));
}

moec_status moec_cuda_digests(uint32_t ordinal, int sha256,
                              const void *const *data, const uint64_t *bytes,
                              uint32_t n, uint8_t *out, void *stream,
                              moec_error *err)
{
    moec_on_device on(ordinal);
    cudaStream_t s = static_cast<cudaStream_t>(stream);

    if (n == 0)
        return MOEC_OK;
    if (sha256)
        MOEC_LAUNCH_KERNEL(sha256_stretches, moec_blocks(n, THREADS), THREADS,
                           0, s, data, bytes, n, out);
    else
        MOEC_LAUNCH_KERNEL(xxh3_stretches, moec_blocks(n, THREADS / 32),
                           THREADS, 0, s, data, bytes, n, out);
    return moec_cuda_launched("digests", err);
}
