// SPDX-License-Identifier: Apache-2.0
#ifndef MOEC_ROUTE_SELECT_CUH
#define MOEC_ROUTE_SELECT_CUH

// What this is: the best K columns of a row by their keys. Sees keys and ids,
//   neither scores nor models.
//
// The best K (moec_select): K rounds of a warp maximum over the LANES' best
// give a bound that at least K columns reach and few more do; those are
// gathered, and each counts how many rank before it. Where too many reach the
// bound (ties, K near 32) the exact key of the K-th is bisected. No order of
// execution decides anything.

#include "route_row.cuh"

// Entries of all lanes whose key is at least t.
template <int V>
__device__ static inline uint32_t moec_count_from(const moec_columns<V> &c,
                                                  uint32_t t)
{
    uint32_t n = 0;

    MOEC_UNROLL
    for (int v = 0; v < c.n(); v++)
        n += c.key(v) >= t;
    return __reduce_add_sync(MOEC_FULL_WARP, n);
}

// The largest t that k keys reach, or MOEC_KEY_LEAST where fewer than k are
// selectable.
template <int V>
__device__ static inline uint32_t moec_kth_key(const moec_columns<V> &c,
                                               uint32_t k)
{
    uint32_t low = MOEC_KEY_LEAST, high = 0xff800000u; // +inf: nobody's

    while (high - low > 1) {
        uint32_t mid = low + (high - low) / 2;

        if (moec_count_from(c, mid) >= k)
            low = mid;
        else
            high = mid;
    }
    return low;
}

// Sum over the lanes up to this one.
__device__ static inline uint32_t moec_upto(uint32_t n)
{
#ifdef MOEC_EMULATE
    for (uint32_t d = 1; d < 32; d *= 2) {
        uint32_t other = __shfl_up_sync(MOEC_FULL_WARP, n, d);

        n += moec_lane() >= d ? other : 0;
    }
#else // a shuffle says itself whether its source is there
    MOEC_UNROLL
    for (uint32_t d = 1; d < 32; d *= 2)
        asm volatile("{\n\t"
                     ".reg .pred p;\n\t"
                     ".reg .u32 r;\n\t"
                     "shfl.sync.up.b32 r|p, %0, %1, 0, 0xffffffff;\n\t"
                     "@p add.u32 %0, %0, r;\n\t"
                     "}"
                     : "+r"(n)
                     : "r"(d));
#endif
    return n;
}

// n += key >= t
__device__ static inline void moec_count_one(uint32_t *n, uint32_t key,
                                             uint32_t t)
{
#ifdef MOEC_EMULATE
    *n += key >= t ? 1 : 0;
#else
    asm("{\n\t"
        ".reg .pred p;\n\t"
        "setp.ge.u32 p, %1, %2;\n\t"
        "@p add.u32 %0, %0, 1;\n\t"
        "}"
        : "+r"(*n)
        : "r"(key), "r"(t));
#endif
}

// Where a lane puts what it gathers, one behind the other. On the device an
// address of shared memory that the compiler cannot compute anew in every
// branch, and no branches.
struct moec_put {
#ifdef MOEC_EMULATE
    moec_cand *at;
#else
    uint32_t at;
#endif
    __device__ moec_put(moec_cand *list, uint32_t first)
    {
#ifdef MOEC_EMULATE
        at = list + first;
#else
        at = static_cast<uint32_t>(__cvta_generic_to_shared(list)) + first * 8;
        asm volatile("" : "+r"(at));
#endif
    }
    // Put column `id` where its key is at least t.
    __device__ void from(uint32_t t, uint32_t id, uint32_t key)
    {
#ifdef MOEC_EMULATE
        if (key >= t)
            *at++ = {~id, key};
#else
        asm volatile("{\n\t"
                     ".reg .pred p;\n\t"
                     "setp.ge.u32 p, %1, %2;\n\t"
                     "@p st.shared.v2.u32 [%0], {%3, %1};\n\t"
                     "@p add.u32 %0, %0, 8;\n\t"
                     "}"
                     : "+r"(at)
                     : "r"(key), "r"(t), "r"(~id)
                     : "memory");
#endif
    }
};

// Gather columns with a key from t on, in any order: all, but with V = 0 only
// where they fit. Returns how many there are.
template <int V>
__device__ static inline uint32_t moec_gather(const moec_columns<V> &c,
                                              uint32_t t,
                                              const moec_row_scratch &w)
{
    uint32_t n = 0, upto, all;

    MOEC_UNROLL
    for (int v = 0; v < c.n(); v++)
        moec_count_one(&n, c.key(v), t);
    upto = moec_upto(n);
    all = __shfl_sync(MOEC_FULL_WARP, upto, 31);
    if (V == 0 && all > MOEC_ROW_CAND)
        return all;
    moec_put put(w.cand, upto - n);
    MOEC_UNROLL
    for (int v = 0; v < c.n(); v++)
        put.from(t, c.id(v), c.key(v));
    return all;
}

// The same of at most k columns: those above t, then those equal to it from
// the lowest id on.
template <int V>
__device__ static inline uint32_t
moec_gather_exact(const moec_columns<V> &c, uint32_t t, uint32_t k,
                  const moec_row_scratch &w)
{
    uint32_t above = moec_gather(c, t + 1, w), n = 0, at = 0, all = 0;
    uint32_t ties = k > above ? k - above : 0;

    if (V != 0) { // ids ascend with the lanes
        MOEC_UNROLL
        for (int v = 0; v < c.n(); v++)
            n += c.key(v) == t ? 1 : 0;
        at = moec_upto(n);
        all = __shfl_sync(MOEC_FULL_WARP, at, 31);
        at -= n;
    }
    MOEC_UNROLL
    for (int v = 0; v < c.n(); v++) {
        bool tie = c.key(v) == t;

        if (V == 0) { // with the items
            uint32_t ballot = __ballot_sync(MOEC_FULL_WARP, tie);

            at = n + static_cast<uint32_t>(
                         __popc(ballot & ((1u << moec_lane()) - 1u)));
            n += static_cast<uint32_t>(__popc(ballot));
        }
        if (tie && at < ties)
            w.cand[above + at] = {~c.id(v), t};
        if (V != 0 && tie)
            at++;
    }
    if (V == 0)
        all = n;
    return above + (all < ties ? all : ties);
}

// The lane's best key.
template <int V>
__device__ static inline uint32_t moec_lane_best(const moec_columns<V> &c)
{
    uint32_t mine = 0;

    MOEC_UNROLL
    for (int v = 0; v < c.n(); v++)
        mine = max(mine, c.key(v));
    return mine;
}

// w.ids[0, k): the best k columns, best first, the lower id where keys are
// equal, then -1. Returns how many there are. `mine` is the lane's best key,
// `best` the warp's. LOGITS: keys are of logits; w.s[0, k) gets those.
template <bool LOGITS, int V>
__device__ static inline uint32_t
moec_select(const moec_columns<V> &c, uint32_t k, uint32_t mine, uint32_t best,
            const moec_row_scratch &w)
{
    uint32_t lane = moec_lane(), t = MOEC_KEY_LEAST, n;

    if (k <= 32) {
        t = best;
        for (uint32_t r = 1; r < k; r++) {
            mine = mine == t ? 0 : mine;
            t = __reduce_max_sync(MOEC_FULL_WARP, mine);
        }
        t = max(t, MOEC_KEY_LEAST);
    }
    n = moec_gather(c, t, w);
    if (MOEC_RARE(n > MOEC_ROW_CAND)) {
        t = moec_kth_key(c, k);
        __syncwarp(); // before others write there again
        n = moec_gather_exact(c, t, k, w);
    }
    if (lane == 0)
        w.cand[n] = {0, 0}; // two are read at a time
    for (uint32_t i = n + lane; i < k; i += 32)
        w.ids[i] = -1;
    __syncwarp();
    for (uint32_t j = lane; j < n; j += 32) {
        const uint64_t *all = reinterpret_cast<const uint64_t *>(w.cand);
        uint64_t me = all[j];
        uint32_t rank = 0;

        for (uint32_t i = 0; i < n; i += 2) {
            ulonglong2 q = *reinterpret_cast<const ulonglong2 *>(&all[i]);

            rank += q.x > me ? 1 : 0;
            rank += q.y > me ? 1 : 0;
        }
        if (rank < k) {
            w.ids[rank] = static_cast<int32_t>(~static_cast<uint32_t>(me));
            if (LOGITS)
                w.s[rank] = moec_f32_unkey(static_cast<uint32_t>(me >> 32));
        }
    }
    __syncwarp();
    return n < k ? n : k;
}

#endif
