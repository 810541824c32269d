// SPDX-License-Identifier: Apache-2.0
//
// Expert Choice in two passes over the rows: lists of the pairs above floors
// that a sample gave, cut at the C-th largest; then what each row has of them.

#include "ec_parts.cuh"

// One row of each stretch, scattered in it.
__device__ static void sample_rows(const ec_args &j, const worker &k)
{
    uint32_t stretch = j.h->n / SAMPLE;

    for (uint32_t i = k.first; i < SAMPLE; i += k.step) {
        uint32_t row = i * stretch + ((i * 2654435761u) >> 16) % stretch;
        moec_columns<0> c = columns_of(j, k, row);
        scale s = prepare_row(j, k, c, row);

        for (uint32_t e = moec_lane(); e < j.a.n_choice; e += 32)
            j.sampled[i * j.a.n_choice + e] =
                col_key(j, c.row, s, e, k.keys[e]);
        __syncwarp();
    }
}

// The `rank`-th largest of an expert's sample, less one. A warp.
__device__ static uint32_t floor_of(const ec_args &j, uint32_t e, uint32_t rank)
{
    uint32_t key[SAMPLE / 32], low = 0;

    MOEC_UNROLL
    for (uint32_t v = 0; v < SAMPLE / 32; v++)
        key[v] = j.sampled[(32 * v + moec_lane()) * j.a.n_choice + e];
    for (uint32_t bit = 1u << 31; bit != 0; bit >>= 1) {
        uint32_t n = 0;

        MOEC_UNROLL
        for (uint32_t v = 0; v < SAMPLE / 32; v++)
            n += key[v] >= (low | bit) ? 1 : 0;
        if (__reduce_add_sync(MOEC_FULL_WARP, n) >= rank)
            low |= bit;
    }
    return low != 0 ? low - 1 : 0;
}

// How many rows have a key for the expert, up to `enough`. By a block.
__device__ static bool has_pairs(const ec_args &j, uint32_t e, uint32_t enough)
{
    __shared__ uint32_t all;
    uint32_t mine = 0;

    if (threadIdx.x == 0)
        all = 0;
    __syncthreads();
    for (uint32_t row = threadIdx.x; row < j.h->n; row += blockDim.x)
        mine += pair_in_row(j, ROWS, e, row) != 0 ? 1 : 0;
    (void)atomicAdd(&all, mine);
    __syncthreads();
    return all >= enough;
}

__device__ static void cut_expert(const ec_args &j, uint32_t e)
{
    uint32_t n = j.counts[e], capacity = j.h->capacity;
    unsigned long long t = ANY_KEY;

    if (n > j.room || (n < capacity && j.floors[e] != 0)) {
        if (has_pairs(j, e, capacity))
            t = nth_pair(j, ROWS, e, j.h->n, capacity);
    } else if (n > capacity) {
        t = nth_pair(j, LIST, e, n, capacity);
    }
    if (threadIdx.x == 0)
        j.thresholds[e] = t;
}

EC_KERNEL(ec_sample)
{
    EC_WORKER(k);
    if (j.h->on && j.h->rank != 0)
        sample_rows(j, k);
}

EC_KERNEL(ec_floors)
{
    uint32_t e = (blockIdx.x * blockDim.x + threadIdx.x) / 32, v;

    if (!j.h->on || j.h->rank == 0 || e >= j.a.n_choice)
        return;
    v = floor_of(j, e, j.h->rank);
    if (moec_lane() == 0)
        j.floors[e] = v;
}

EC_KERNEL(ec_stream)
{
    EC_WORKER(k);
    if (j.h->on)
        stream_rows(j, k);
}

EC_KERNEL(ec_cut)
{
    if (j.h->on)
        cut_expert(j, blockIdx.x);
}

EC_KERNEL(ec_gather)
{
    EC_WORKER(k);
    gather_rows(j, k);
}

void moec_ec_launch_two_pass(const ec_args &j, const shape &g, uint32_t threads,
                             cudaStream_t s)
{
    if (j.a.in.n_tokens >= SAMPLE_FROM) {
        launch(ec_sample, g.sample, threads, g.shared, s, j);
        launch(ec_floors, moec_blocks(g.experts, WARPS), THREADS, 0, s, j);
    }
    launch(ec_stream, g.rows, threads, g.shared, s, j);
    launch(ec_cut, g.experts, THREADS, 0, s, j);
    launch(ec_gather, g.rows, threads, g.shared, s, j);
}
