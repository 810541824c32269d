// SPDX-License-Identifier: Apache-2.0
//
// Expert Choice of a small call in one kernel of one block, all but BALANCED:
// lists have everything, and a warp cuts one in registers.

#include "ec_parts.cuh"

// A list of at most SMALL pairs by one warp.
__device__ static void cut_small(const ec_args &j, uint32_t e)
{
    uint32_t n = j.counts[e], capacity = j.h->capacity, many = n;
    unsigned long long p[SMALL / 32], t = 0;

    if (n <= capacity)
        return; // the threshold is ANY_KEY
    MOEC_UNROLL
    for (uint32_t v = 0; v < SMALL / 32; v++) {
        uint32_t i = 32 * v + moec_lane();

        p[v] = i < n ? j.lists[static_cast<uint64_t>(e) * j.room + i] : 0;
    }
    for (unsigned long long bit = 1ull << 63; bit && many != capacity;
         bit >>= 1) {
        uint32_t mine = 0;

        MOEC_UNROLL
        for (uint32_t v = 0; v < SMALL / 32; v++)
            mine += p[v] >= (t | bit) ? 1 : 0;
        mine = __reduce_add_sync(MOEC_FULL_WARP, mine);
        if (mine >= capacity) {
            t |= bit;
            many = mine;
        }
    }
    if (moec_lane() == 0)
        j.thresholds[e] = t;
}

// All of a small call but BALANCED.
__global__ void __launch_bounds__(SMALL_WARPS * 32)
    ec_small(const __grid_constant__ ec_args j)
{
    MOEC_DYNAMIC_SHARED(unsigned char, shared);
    __shared__ moec_row_memory<0> memory[SMALL_WARPS];
    worker k = worker_of(j, memory, shared);

    begin_block(j);
    __syncthreads();
    if (j.h->plain) {
        plain_rows(j, k);
        __syncthreads();
        if (threadIdx.x == 0)
            measure(j);
        __syncthreads();
    }
    if (j.h->on) {
        stream_rows(j, k);
        __syncthreads();
        for (uint32_t e = k.first; e < j.a.n_choice; e += k.step)
            cut_small(j, e);
        __syncthreads();
    }
    gather_rows(j, k);
}

void moec_ec_launch_small(const ec_args &j, cudaStream_t s)
{
    launch(ec_small, 1, SMALL_WARPS * 32, SMALL_WARPS * j.warp_bytes, s, j);
}
