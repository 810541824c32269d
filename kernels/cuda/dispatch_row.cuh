// SPDX-License-Identifier: Apache-2.0
#ifndef MOEC_DISPATCH_ROW_CUH
#define MOEC_DISPATCH_ROW_CUH

// What this is: one row from logical ids to dispatch slots by one warp, its
//   shared columns (at home, or where waterfill says), and the counts. Equal to
//   kernels/remap.c, dispatch.c and waterfill.c; all of it is integers.
// Counts: integer atomics, whose sum does not depend on their order: in shared
//   memory, added to the caller's arrays at the end of a block; with very many
//   slots right there. The arrays are zeroed by a node before (clear_counts),
//   but for a block that is alone, which stores all counts.
// Refuses nothing: a column whose id the map does not have, which moec_dispatch
//   refuses, is slot -1 here and no valid id.

#include "common.cuh"
#include "remap_limits.h"

// A call, as kernels get it. Pointers are the device's.
struct moec_dispatch_args {
    moec_dispatch_map map;
    moec_waterfill waterfill; // OFF, or nothing of it is read but DYNAMIC's
    int32_t *slots;
    float *weights, *identity;
    // NULL: not wanted. rank_loads: routed columns, for waterfill STATIC.
    uint32_t *slot_counts, *rank_counts, *rank_loads;
    uint64_t by_local; // divides a physical id by L
    uint32_t n_slots, gap, row_base, top_k, n_cols, n_tokens;
    uint32_t counts_in_block; // counters stand in shared memory
    uint32_t alone;           // one block: its counts are all there are
};

// Where shared experts go: waterfill.c's plan. The arrays are shared memory.
struct moec_fill_plan {
    uint64_t *load, *room, *upto; // [W]
    uint64_t target;              // 0: all stay at home
    uint32_t home, n_ranks, emptiest, all_ranks, by_rank;
};

// Counters of a block, or the caller's own.
struct moec_counters {
    uint32_t *slots, *ranks, *loads; // NULL: not wanted
};

struct moec_dispatch_block {
    moec_counters counters;
    const moec_fill_plan *plan; // shared
    uint32_t *visited; // [warps][32], shared: ranks of a row, one bit each
};

// ------------------------------------------------------------------ slots

// Slot of shared column 0 at rank r: moec_shared_slot.
__device__ static inline uint32_t moec_shared_first(const moec_topology &t,
                                                    uint32_t r)
{
    return t.shared_global ? t.n_physical
                           : r * (t.n_local + t.n_shared_slots) + t.n_local;
}

// Slot of expert e < E for row number `row`, or -1 where the map has none.
__device__ static inline int32_t moec_slot_of(const moec_dispatch_args &d,
                                              uint32_t e, uint32_t row,
                                              uint32_t *rank)
{
    uint32_t p;

    if (d.map.rule == MOEC_REPLICA_TABLE) {
        p = d.map.table[e];
    } else {
        uint32_t first = d.map.cand_first[e], n = d.map.cand_first[e + 1];

        if (first >= n)
            return -1;
        n -= first;
        p = d.map.cand[first + (n > 1 ? row % n : 0)];
    }
    if (p >= d.map.topology.n_physical)
        return -1;
    *rank = static_cast<uint32_t>(p * d.by_local >> 40);
    return static_cast<int32_t>(p + *rank * d.gap);
}

__device__ static inline void moec_count(uint32_t *counts, uint32_t at,
                                         uint32_t n)
{
    if (counts)
        (void)atomicAdd(&counts[at], n);
}

// -------------------------------------------------------------- waterfill

#define MOEC_KEEP_NUM 11u // remote work must be under 10/11 of home's to move
#define MOEC_KEEP_DEN 10u

__device__ static inline uint64_t moec_warp_sum(uint64_t v)
{
    for (int d = 16; d; d /= 2)
        v += __shfl_xor_sync(MOEC_FULL_WARP, v, d);
    return v;
}

// Sum over the lanes up to this one.
__device__ static inline uint64_t moec_warp_prefix(uint64_t v)
{
    for (uint32_t d = 1; d < 32; d *= 2) {
        uint64_t other = __shfl_up_sync(MOEC_FULL_WARP, v, d);

        if (threadIdx.x % 32 >= d)
            v += other;
    }
    return v;
}

// Load of a rank; *bad where it cannot be one.
__device__ static inline uint64_t moec_given_load(const moec_dispatch_args &d,
                                                  uint32_t r, uint32_t *bad)
{
    const uint64_t most = 1ull << 48;
    uint32_t n_shared = d.map.topology.n_shared_slots;
    uint64_t routed = d.waterfill.routed[r], tokens = d.waterfill.tokens[r];

    if (routed > most || tokens > most / n_shared)
        *bad = 1;
    return routed + tokens * n_shared;
}

// Under the target by 10/11 of it for others than home: what rank r may take.
__device__ static inline uint64_t moec_room_of(const moec_fill_plan &p,
                                               uint32_t r)
{
    uint64_t room = p.load[r] < p.target ? p.target - p.load[r] : 0;

    return r == p.home ? room : room * MOEC_KEEP_DEN / MOEC_KEEP_NUM;
}

// The plan of a batch, by one warp, its arrays at wide[3 W]; the caller's
// barrier shows it to others. `loads` are the routed columns of STATIC. Loads that no batch has (2^48)
// keep all at home, where the CPU refuses.
__device__ static __noinline__ void
moec_fill_plan_make(moec_fill_plan *p, uint64_t *wide,
                    const moec_dispatch_args &d, const uint32_t *loads)
{
    bool dynamic = d.waterfill.mode == MOEC_WATERFILL_DYNAMIC;
    uint32_t lane = threadIdx.x % 32, n = d.map.topology.n_ranks, bad = 0;
    uint32_t per = (n + 31) / 32, lo = lane * per;
    uint32_t hi = lo + per < n ? lo + per : n;
    uint64_t routed = 0, sum = 0, max = 0, mine = 0, upto;
    moec_fill_plan q = {};

    q.load = wide;
    q.room = wide + n;
    q.upto = wide + 2 * n;
    q.home = d.map.rank;
    q.n_ranks = n;
    q.by_rank = d.waterfill.by_rank != 0;
    q.target = 0;
    for (uint32_t r = lo; r < hi; r++) {
        uint64_t load = dynamic ? moec_given_load(d, r, &bad) : loads[r];

        q.load[r] = load;
        routed += dynamic ? d.waterfill.routed[r] : load;
        sum += load;
        max = load > max ? load : max;
    }
    routed = moec_warp_sum(routed);
    sum = moec_warp_sum(sum);
    for (int s = 16; s; s /= 2) {
        uint64_t other = __shfl_xor_sync(MOEC_FULL_WARP, max, s);

        max = other > max ? other : max;
    }
    bad = static_cast<uint32_t>(__any_sync(MOEC_FULL_WARP, bad != 0));
    // Ranks up to 2^10 of loads up to 2^49, and S up to 2^20.
    if (routed / d.top_k > (1ull << 60) / d.map.topology.n_shared_slots)
        bad = 1;
    sum += routed / d.top_k * d.map.topology.n_shared_slots;
    if (!bad && sum <= 1ull << 60 && d.n_tokens >= MOEC_WATERFILL_ROWS)
        q.target = (sum + n - 1) / n;
    q.all_ranks = !dynamic || max <= q.target;
    for (uint32_t r = lo; r < hi; r++)
        mine += moec_room_of(q, r);
    upto = moec_warp_prefix(mine) - mine;
    for (uint32_t r = lo; r < hi; r++) {
        q.room[r] = moec_room_of(q, r);
        upto += q.room[r];
        q.upto[r] = upto;
    }
    __syncwarp();
    q.emptiest = q.home;
    if (q.upto[n - 1] == 0) // nobody has room: the scan decides
        for (uint32_t r = 0; r < n; r++)
            if (q.load[r] * MOEC_KEEP_NUM < q.load[q.emptiest] * MOEC_KEEP_DEN)
                q.emptiest = r;
    if (lane == 0)
        *p = q;
}

__device__ static inline uint32_t moec_fill_seed(uint32_t row, uint32_t home)
{
    return (row ^ home * 0x9E3779B9u) * 1664525u + 1013904223u;
}

// The rank whose part of the running sum holds x: the first above it.
__device__ static inline uint32_t moec_find_upto(const moec_fill_plan &p,
                                                 uint64_t x)
{
    uint32_t lo = 0, n = p.n_ranks;

    while (n > 1) {
        uint32_t half = n / 2;

        lo += p.upto[lo + half - 1] <= x ? half : 0;
        n -= half;
    }
    return lo;
}

// Where nobody in sight has room: the first that is under 10/11 of the best so
// far, home first, then by rank or in the order of the columns (`slots` of the
// row; `by_rank` divides one by L + S).
__device__ static inline uint32_t moec_scan_visited(const moec_fill_plan &p,
                                                    const uint32_t *visited,
                                                    const int32_t *slots,
                                                    uint32_t k, uint32_t width)
{
    uint32_t best = p.home;

    if (p.by_rank) {
        for (uint32_t r = 0; r < p.n_ranks; r++)
            if ((visited[r / 32] >> r % 32 & 1u) != 0 &&
                p.load[r] * MOEC_KEEP_NUM < p.load[best] * MOEC_KEEP_DEN)
                best = r;
        return best;
    }
    for (uint32_t c = 0; c < k; c++) {
        uint32_t r = static_cast<uint32_t>(slots[c]) / width;

        if (slots[c] >= 0 &&
            p.load[r] * MOEC_KEEP_NUM < p.load[best] * MOEC_KEEP_DEN)
            best = r;
    }
    return best;
}

// Among home and the ranks that the row visits, at random by room. Lane l has
// ranks [32 l, 32 l + 32) of `visited`.
__device__ static __noinline__ uint32_t
moec_fill_visited(const moec_fill_plan &p, uint32_t row, const int32_t *slots,
                  uint32_t k, uint32_t width, uint32_t *visited)
{
    uint32_t lane = threadIdx.x % 32, bits, best = 0, holder;
    uint64_t mine = 0, upto, sum, x;

    visited[lane] = lane == p.home / 32 ? 1u << p.home % 32 : 0;
    __syncwarp();
    for (uint32_t c = lane; c < k; c += 32) {
        uint32_t r = static_cast<uint32_t>(slots[c]) / width;

        if (slots[c] >= 0)
            (void)atomicOr(&visited[r / 32], 1u << r % 32);
    }
    __syncwarp();
    bits = visited[lane];
    for (uint32_t b = bits; b; b &= b - 1)
        mine += p.room[lane * 32 + static_cast<uint32_t>(__ffs(b)) - 1];
    upto = moec_warp_prefix(mine);
    sum = __shfl_sync(MOEC_FULL_WARP, upto, 31);
    if (sum == 0) {
        best = moec_scan_visited(p, visited, slots, k, width);
        __syncwarp(); // before the next row writes there
        return best;
    }
    x = moec_fill_seed(row, p.home) % sum;
    holder = static_cast<uint32_t>(
                 __ffs(__ballot_sync(MOEC_FULL_WARP, x < upto))) - 1;
    x -= upto - mine; // of use in `holder` alone
    for (uint32_t b = bits; lane == holder && b; b &= b - 1) {
        best = lane * 32 + static_cast<uint32_t>(__ffs(b)) - 1;
        if (x < p.room[best])
            break;
        x -= p.room[best];
    }
    return __shfl_sync(MOEC_FULL_WARP, best, static_cast<int>(holder));
}

// Rank for the shared columns of row t, which has a valid id.
__device__ static inline uint32_t
moec_fill_best(const moec_dispatch_block &b, const moec_dispatch_args &d,
               uint32_t t, const int32_t *slots)
{
    const moec_fill_plan &p = *b.plan;
    uint32_t row = d.map.row0 + t;
    uint64_t sum;

    if (p.target == 0)
        return p.home;
    if (!p.all_ranks)
        return moec_fill_visited(p, row, slots, d.top_k,
                                 d.map.topology.n_local + d.gap,
                                 b.visited + threadIdx.x / 32 * 32);
    sum = p.upto[p.n_ranks - 1];
    if (sum == 0)
        return p.emptiest;
    return moec_find_upto(p, moec_fill_seed(row, p.home) % sum);
}

// -------------------------------------------------------------------- row

// Remap row t (FILL: waterfill may be DYNAMIC), whose K ids and weights stand in shared memory and are
// overwritten, and store it. shared_weights[S] are of the shared columns.
template <bool FILL>
__device__ static inline void moec_dispatch_row(const moec_dispatch_args &d,
                                                const moec_dispatch_block &b,
                                                uint32_t t, int32_t *ids,
                                                float *weights,
                                                const float *shared_weights)
{
    const moec_topology &topo = d.map.topology;
    uint32_t lane = threadIdx.x % 32, home = d.map.rank;
    uint64_t at = static_cast<uint64_t>(t) * d.n_cols;
    bool valid = false, zeros = false;

    for (uint32_t k = lane; k < d.top_k; k += 32) {
        int32_t id = ids[k], slot = -1;
        uint32_t rank = 0;

        if (static_cast<uint32_t>(id) < d.map.n_experts)
            slot = moec_slot_of(d, static_cast<uint32_t>(id), d.row_base + t,
                                &rank);
        else if (id >= 0)
            zeros = d.identity != nullptr;
        valid = valid || slot >= 0 || zeros;
        if (slot >= 0) {
            moec_count(b.counters.slots, static_cast<uint32_t>(slot), 1);
            moec_count(b.counters.ranks, rank, 1);
            moec_count(b.counters.loads, rank, 1);
        }
        ids[k] = slot;
        d.slots[at + k] = slot;
        d.weights[at + k] = slot >= 0 ? weights[k] : 0.0f;
        // What is left is what identity sums up.
        if (id < 0 || static_cast<uint32_t>(id) < d.map.n_experts)
            weights[k] = 0.0f;
    }
    valid = __any_sync(MOEC_FULL_WARP, valid) != 0;
    __syncwarp();
    if (d.identity) {
        float sum = 0.0f;

        if (__any_sync(MOEC_FULL_WARP, zeros))
            for (uint32_t k = 0; k < d.top_k; k++)
                sum = sum + weights[k];
        if (lane == 0)
            d.identity[t] = sum;
    }
    if (topo.n_shared_slots == 0)
        return;
    if (FILL && valid && d.waterfill.mode == MOEC_WATERFILL_DYNAMIC)
        home = moec_fill_best(b, d, t, ids);
    for (uint32_t s = lane; s < topo.n_shared_slots; s += 32) {
        uint32_t q = moec_shared_first(topo, home) + s;

        d.slots[at + d.top_k + s] = valid ? static_cast<int32_t>(q) : -1;
        d.weights[at + d.top_k + s] = valid ? shared_weights[s] : 0.0f;
        if (valid && d.waterfill.mode != MOEC_WATERFILL_STATIC)
            moec_count(b.counters.slots, q, 1);
    }
    if (lane == 0 && valid && d.waterfill.mode != MOEC_WATERFILL_STATIC)
        moec_count(b.counters.ranks, home, topo.n_shared_slots);
}

// ------------------------------------------------------------------ block

static inline uint64_t moec_counters_words(const moec_dispatch_args &d)
{
    uint64_t n = 0;

    if (d.slot_counts)
        n += d.n_slots;
    if (d.rank_counts)
        n += d.map.topology.n_ranks;
    if (d.rank_loads)
        n += d.map.topology.n_ranks;
    return n;
}

// Bytes of shared memory that a block of `warps` needs; sets counts_in_block.
static inline uint64_t moec_dispatch_shared(moec_dispatch_args *d,
                                            uint32_t warps)
{
    uint64_t words = moec_counters_words(*d), bytes = 0;

    d->counts_in_block = words <= 8192;
    if (d->waterfill.mode == MOEC_WATERFILL_DYNAMIC)
        bytes += 3 * 8ull * d->map.topology.n_ranks + 128ull * warps;
    if (d->counts_in_block)
        bytes += words * 4;
    return bytes;
}

// The block's part of shared memory, 8-byte aligned: zeroed counters, the
// plan. All threads of the block come here.
template <bool FILL>
__device__ static inline void moec_dispatch_begin(const moec_dispatch_args &d,
                                                  unsigned char *shared,
                                                  moec_dispatch_block *b)
{
    __shared__ moec_fill_plan plan;
    uint32_t *words, n_ranks = d.map.topology.n_ranks, n = 0;

    b->counters = {d.slot_counts, d.rank_counts, d.rank_loads};
    b->plan = &plan;
    b->visited = nullptr;
    if (FILL && d.waterfill.mode == MOEC_WATERFILL_DYNAMIC) {
        uint64_t *wide = reinterpret_cast<uint64_t *>(shared);

        if (threadIdx.x < 32)
            moec_fill_plan_make(&plan, wide, d, nullptr);
        b->visited = reinterpret_cast<uint32_t *>(wide + 3 * n_ranks);
        shared = reinterpret_cast<unsigned char *>(b->visited + blockDim.x);
    }
    words = reinterpret_cast<uint32_t *>(shared);
    if (d.counts_in_block) {
        if (d.slot_counts) {
            b->counters.slots = words;
            n += d.n_slots;
        }
        if (d.rank_counts) {
            b->counters.ranks = words + n;
            n += n_ranks;
        }
        if (d.rank_loads) {
            b->counters.loads = words + n;
            n += n_ranks;
        }
        for (uint32_t i = threadIdx.x; i < n; i += blockDim.x)
            words[i] = 0;
    }
    __syncthreads();
}

__device__ static inline void moec_add_counts(uint32_t *to,
                                              const uint32_t *from, uint32_t n,
                                              uint32_t alone)
{
    for (uint32_t i = threadIdx.x; to && i < n; i += blockDim.x) {
        if (alone)
            to[i] = from[i];
        else if (from[i] != 0)
            (void)atomicAdd(&to[i], from[i]);
    }
}

// Add the block's counts to the caller's. All threads of the block come here.
__device__ static inline void moec_dispatch_end(const moec_dispatch_args &d,
                                                const moec_dispatch_block &b)
{
    uint32_t n_ranks = d.map.topology.n_ranks;

    if (!d.counts_in_block)
        return;
    __syncthreads();
    moec_add_counts(d.slot_counts, b.counters.slots, d.n_slots, d.alone);
    moec_add_counts(d.rank_counts, b.counters.ranks, n_ranks, d.alone);
    moec_add_counts(d.rank_loads, b.counters.loads, n_ranks, d.alone);
}

// -------------------------------------------------------------- host side
// route_dispatch.cu

// Check a dispatch and make its arguments. `ws` has room for
// moec_cuda_dispatch_workspace bytes.
moec_status moec_dispatch_args_make(moec_dispatch_args *d,
                                    const moec_dispatch_map *map,
                                    const moec_waterfill *waterfill,
                                    const moec_dispatch_out *out,
                                    uint32_t n_tokens, uint32_t top_k,
                                    const moec_launch *launch, moec_error *err);
// Before the rows, which `blocks` blocks take: the node that zeroes the counts
// that are wanted, where one is needed.
void moec_dispatch_clear(moec_dispatch_args *d, uint32_t blocks,
                         cudaStream_t s);
// The node behind them: waterfill STATIC.
void moec_dispatch_fill(const moec_dispatch_args &d, cudaStream_t s);

#endif
