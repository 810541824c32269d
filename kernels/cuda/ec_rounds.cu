// SPDX-License-Identifier: Apache-2.0
//
// Expert Choice BALANCED, by rounds of asking and turning down.

#include "ec_parts.cuh"

// Let a token ask its K best experts that have not turned it down; `first`:
// it has not asked yet. Counts follow.
__device__ static void ask_row(const ec_args &j, const worker &k, uint32_t row,
                               bool first)
{
    moec_columns<0> c = columns_of(j, k, row);
    int32_t *ids = j.a.ids + static_cast<uint64_t>(row) * j.a.n_cols;
    uint32_t *held = j.held + static_cast<uint64_t>(row) * j.a.c.top_k;
    uint32_t K = j.a.c.top_k;
    bool lost = first;
    scale s;

    for (uint32_t i = moec_lane(); !first && i < K; i += 32)
        lost = lost || (ids[i] >= 0 &&
                        pair_of(held[i], row) < j.thresholds[ids[i]]);
    if (!__any_sync(MOEC_FULL_WARP, lost))
        return;
    s = first ? prepare_row(j, k, c, row) : j.scales[row];
    for (uint32_t i = moec_lane(); !first && i < K; i += 32)
        if (ids[i] >= 0)
            (void)atomicAdd(&j.counts[ids[i]], ~0u); // one less
    fill_keys(j, k, c, row, s, ADMITTED);
    (void)select(c, K, k);
    for (uint32_t i = moec_lane(); i < K; i += 32) {
        int32_t id = k.w.ids[i];

        ids[i] = id;
        if (id < 0)
            continue;
        held[i] = col_key(j, c.row, s, static_cast<uint32_t>(id), k.keys[id]);
        (void)atomicAdd(&j.counts[id], 1u);
    }
    __syncwarp();
}

__device__ static void ask_rows(const ec_args &j, const worker &k, bool first)
{
    for (uint32_t row = k.first; row < j.h->n; row += k.step)
        ask_row(j, k, row, first);
}

// Whether the expert was asked by too many; it has turned the worst down.
__device__ static bool turn_down(const ec_args &j, uint32_t e)
{
    unsigned long long t;

    if (j.counts[e] <= j.h->capacity)
        return false;
    t = nth_pair(j, ASKING, e, j.h->n, j.h->capacity);
    if (threadIdx.x == 0)
        j.thresholds[e] = t;
    return true;
}

// Rounds of one block until no expert is over its capacity: each round raises
// a threshold, so there is an end.
__device__ static void settle_block(const ec_args &j, const worker &k)
{
    bool again = true;

    while (again) {
        again = false;
        for (uint32_t e = 0; e < j.a.n_choice; e++)
            again = turn_down(j, e) || again; // the same in all threads
        __syncthreads();
        if (again)
            ask_rows(j, k, false);
        __syncthreads();
    }
}

__device__ static void settled_rows(const ec_args &j, const worker &k)
{
    uint32_t K = j.a.c.top_k;
    counted sum = {};

    for (uint32_t row = k.first; j.h->on && row < j.h->n; row += k.step) {
        moec_columns<0> c = columns_of(j, k, row);
        const int32_t *ids = j.a.ids + static_cast<uint64_t>(row) * j.a.n_cols;
        uint32_t n = 0;

        for (uint32_t i = moec_lane(); i < K; i += 32) {
            k.w.ids[i] = ids[i];
            n += ids[i] >= 0 ? 1 : 0;
        }
        n = __reduce_add_sync(MOEC_FULL_WARP, n);
        __syncwarp();
        sum.short_tokens += n < K;
        sum.dropped += K - n;
        store_row(j, k, c, row, n, j.scales[row]);
    }
    add_counts(j, sum);
    pad_rows(j, k);
}

__global__ void __launch_bounds__(THREADS)
    ec_ask(const __grid_constant__ ec_args j, uint32_t round)
{
    EC_WORKER(k);
    if (j.h->on && (round == 0 || j.h->over[round]))
        ask_rows(j, k, round == 0);
}

__global__ void __launch_bounds__(THREADS)
    ec_turn_down(const __grid_constant__ ec_args j, uint32_t round)
{
    if (!j.h->on || (round > 1 && !j.h->over[round - 1]))
        return;
    if (turn_down(j, blockIdx.x) && threadIdx.x == 0)
        (void)atomicOr(&j.h->over[round], 1u); // many blocks may
}

EC_KERNEL(ec_settle)
{
    EC_WORKER(k);
    if (j.h->on && (j.a.in.n_tokens <= SMALL || j.h->over[ROUNDS]))
        settle_block(j, k);
}

EC_KERNEL(ec_settled)
{
    EC_WORKER(k);
    settled_rows(j, k);
}

void moec_ec_launch_rounds(const ec_args &j, const shape &g, uint32_t threads,
                           cudaStream_t s)
{
    launch(ec_ask, g.rows, threads, g.shared, s, j, 0u);
    for (uint32_t round = 1; j.a.in.n_tokens > SMALL && round <= ROUNDS;
         round++) {
        launch(ec_turn_down, g.experts, THREADS, 0, s, j, round);
        launch(ec_ask, g.rows, threads, g.shared, s, j, round);
    }
    launch(ec_settle, 1, threads, g.shared, s, j);
    launch(ec_settled, g.rows, threads, g.shared, s, j);
}
