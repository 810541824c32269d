// SPDX-License-Identifier: Apache-2.0
#ifndef MOEC_ROUTE_ROW_CUH
#define MOEC_ROUTE_ROW_CUH

// What this is: one row as one warp sees it: where its logits stand, how they
//   rank, its scores. route_select.cuh finds the best K, route_weights.cuh
//   weighs them. All of it equals kernels/cpu/route_scalar.c, which says why:
//   ids bit for bit, and weights too, as every operation is the same in the
//   same order.
// Layout: up to 512 columns stand in registers, V adjacent ones in a lane
//   (moec_columns<V>): few wide loads, and a group of experts is a few whole
//   lanes. Beyond that logits stay in global and keys stand in shared memory,
//   column i at lane i % 32 (moec_columns<0>).
// Rules: all 32 lanes of a warp come here together, with the same arguments
//   but for what stands in the columns.

#include <cfloat>
#include <cmath>

#include "common.cuh"
#include "convert.cuh"
#include "route_math.h"

#ifdef MOEC_EMULATE
#  define MOEC_UNROLL
#else
#  define MOEC_UNROLL _Pragma("unroll")
#endif
#define MOEC_RARE(x) __builtin_expect(!!(x), 0)

#define MOEC_ROW_CAND 64u // columns that are ranked; top_k is at most this
#define MOEC_ROW_COLS 80u // K + S
// The least key of a finite number; what is not selectable has a smaller one.
#define MOEC_KEY_LEAST 0x00800000u
#define MOEC_KEY_MOST  0xff7fffffu // of FLT_MAX

// A call, as kernels get it. Pointers are the device's.
struct moec_route_args {
    moec_route_config c; // as a router holds it: normalised
    moec_route_in in;    // bias is NULL where it does not count
    const uint32_t *n_valid;
    uint64_t stride;             // elements between rows
    uint32_t n_choice, n_cols;   // E + Z, K + S
    float shared_weight;         // but for a gate
    int32_t *ids;                // [T][n_cols], or NULL
    float *weights;
};

// Entries of a warp's list, which is also its room for one word a column.
template <int V> struct moec_row_room {
    static constexpr uint32_t n =
        V * 32 > static_cast<int>(MOEC_ROW_CAND) ? V * 32 : MOEC_ROW_CAND;
};

// A gathered column: as one number, larger is better.
struct alignas(8) moec_cand {
    uint32_t not_id, key;
};

// Shared memory of a warp of a kernel with V items a lane.
template <int V> struct moec_row_memory {
    alignas(16) moec_cand cand[moec_row_room<V>::n + 2];
    alignas(16) float s[MOEC_ROW_COLS];
    int32_t ids[MOEC_ROW_COLS];
};

// The same for functions. `cand` is free but in moec_select.
struct moec_row_scratch {
    moec_cand *cand;
    float *s;     // the outcome: K + S columns
    int32_t *ids;

    template <int V>
    __device__ explicit moec_row_scratch(moec_row_memory<V> *m)
        : cand(m->cand), s(m->s), ids(m->ids)
    {
    }
    __device__ uint32_t *words() const
    {
        return reinterpret_cast<uint32_t *>(cand);
    }
    __device__ float *floats() const
    {
        return reinterpret_cast<float *>(cand);
    }
};

__device__ static inline uint32_t moec_lane()
{
    return threadIdx.x % 32;
}

// moec_f32_key in two instructions.
__device__ static inline uint32_t moec_key_of(float x)
{
    uint32_t u = __float_as_uint(x);

    return u ^ (static_cast<uint32_t>(static_cast<int32_t>(u) >> 31) |
                0x80000000u);
}

__device__ static inline float moec_warp_max(float x)
{
    return moec_f32_unkey(__reduce_max_sync(MOEC_FULL_WARP, moec_key_of(x)));
}

__device__ static inline float moec_widen_f16(uint16_t h)
{
#ifdef MOEC_EMULATE
    return moec_widen<5, 10, true>(h);
#else
    float f;

    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h)); // exact
    return f;
#endif
}

// ------------------------------------------------------------------ logits

// -INFINITY where it can never be chosen, at most FLT_MAX, never -0.
__device__ static inline float moec_clean(float x)
{
    if (!(x > -INFINITY))
        return -INFINITY;
    return x > FLT_MAX ? FLT_MAX : x + 0.0f;
}

__device__ static inline float moec_load_any(const void *row, int dtype,
                                             uint32_t i)
{
    if (dtype == MOEC_DTYPE_F32)
        return moec_load<MOEC_DTYPE_F32>(row, i);
    if (dtype == MOEC_DTYPE_BF16)
        return moec_load<MOEC_DTYPE_BF16>(row, i);
    return moec_widen_f16(static_cast<const uint16_t *>(row)[i]);
}

__device__ static inline const void *moec_row_at(const moec_route_args &a,
                                                 uint32_t row)
{
    uint64_t bytes = a.in.logits_dtype == MOEC_DTYPE_F32 ? 4 : 2;

    return static_cast<const char *>(a.in.logits) + row * a.stride * bytes;
}

// The logit of column i as it ranks.
__device__ static inline float moec_raw_at(const moec_route_args &a,
                                           const void *row, uint32_t i)
{
    if (a.in.bias && !(a.in.bias[i] > -INFINITY))
        return -INFINITY;
    return moec_clean(
        moec_load_any(row, static_cast<int>(a.in.logits_dtype), i));
}

// x: the logit after the softcap.
__device__ static inline float moec_capped(const moec_route_args &a, float raw)
{
    float cap = a.c.softcap;

    if (cap == 0.0f || !(raw > -INFINITY))
        return raw;
    return cap * moec_f32_tanh(raw / cap);
}

// ----------------------------------------------------------------- columns

template <int V> struct moec_columns {
    static constexpr bool capped = false; // none of these has a softcap
    float x[V];
    uint32_t k[V];

    __device__ int n() const
    {
        return V;
    }
    __device__ static uint32_t id(int v)
    {
        return moec_lane() * V + static_cast<uint32_t>(v);
    }
    __device__ float raw(int v) const
    {
        return x[v];
    }
    __device__ uint32_t key(int v) const
    {
        return k[v];
    }
};

template <> struct moec_columns<0> {
    static constexpr bool capped = true;
    const moec_route_args *a;
    const void *row;
    uint32_t *keys; // [n_choice], shared
    uint32_t count; // n_choice, or groups

    __device__ int n() const
    {
        return static_cast<int>((count + 31) / 32);
    }
    __device__ static uint32_t id(int v)
    {
        return moec_lane() + 32u * static_cast<uint32_t>(v);
    }
    __device__ float raw(int v) const
    {
        return id(v) < count ? moec_raw_at(*a, row, id(v)) : -INFINITY;
    }
    __device__ uint32_t key(int v) const
    {
        return id(v) < count ? keys[id(v)] : 0;
    }
};

template <int V>
__device__ static inline float moec_x(const moec_route_args &a,
                                      const moec_columns<V> &c, int v)
{
    return moec_columns<V>::capped ? moec_capped(a, c.raw(v)) : c.raw(v);
}

// x of the column with the largest raw logit, as on the CPU: tanh need not be
// monotonic in its last bit.
template <int V>
__device__ static inline float moec_row_max(const moec_route_args &a,
                                            const moec_columns<V> &c)
{
    float m = -INFINITY;

    MOEC_UNROLL
    for (int v = 0; v < c.n(); v++) {
        float raw = c.raw(v);

        m = raw > m ? raw : m;
    }
    m = moec_warp_max(m);
    return moec_columns<V>::capped ? moec_capped(a, m) : m;
}

// The sum over all columns of e in the order of route.h: columns i % 16 by
// themselves, then pairwise. Here for columns that stand at lane i % 32: lanes
// l and l + 16 in turn.
struct moec_sum16 {
    float sum;
    bool high;

    __device__ moec_sum16() : sum(0.0f), high((moec_lane() & 16u) != 0)
    {
    }
    // Item v of all lanes, v ascending.
    __device__ void add(float e)
    {
        float other = __shfl_xor_sync(MOEC_FULL_WARP, e, 16);

        sum = sum + (high ? other : e);
        sum = sum + (high ? e : other);
    }
    __device__ float total() const
    {
        float t = sum;

        for (int d = 8; d; d /= 2)
            t = t + __shfl_xor_sync(MOEC_FULL_WARP, t, d);
        return t;
    }
};

// Store V adjacent words of each lane, 16 bytes at a time where they are.
template <int V, class T>
__device__ static inline void moec_store_items(T *to, const T (&from)[V])
{
    static_assert(sizeof(T) == 4, "words");
    MOEC_UNROLL
    for (int v = 0; v + 4 <= V; v += 4) {
        struct alignas(16) four {
            T v[4];
        };

        *reinterpret_cast<four *>(&to[moec_lane() * V + v]) = {
            {from[v], from[v + 1], from[v + 2], from[v + 3]}};
    }
    MOEC_UNROLL
    for (int v = V / 4 * 4; v < V; v++)
        to[moec_lane() * V + v] = from[v];
}

// Sum of e^(x - m) over all selectable columns.
template <int V>
__device__ static inline float moec_row_sum(const moec_route_args &,
                                            const moec_columns<V> &c, float m,
                                            const moec_row_scratch &w)
{
    const float *all = w.floats();
    uint32_t lane = moec_lane();
    moec_sum16 sum;
    float e[V];

    MOEC_UNROLL
    for (int v = 0; v < V; v++)
        e[v] = moec_f32_exp(c.x[v] - m);
    moec_store_items(w.floats(), e);
    __syncwarp();
    MOEC_UNROLL // what is behind the columns is 0
    for (uint32_t i = 0; i < 2 * V; i++)
        sum.sum = sum.sum + all[16 * i + lane % 16];
    __syncwarp();
    return sum.total();
}

__device__ static inline float moec_row_sum(const moec_route_args &a,
                                            const moec_columns<0> &c, float m,
                                            const moec_row_scratch &)
{
    moec_sum16 sum;

    for (int v = 0; v < c.n(); v++)
        sum.add(moec_f32_exp(moec_x(a, c, v) - m));
    return sum.total();
}

// ------------------------------------------------------------------ scores

// Score of a logit, but for softmax.
__device__ static inline float moec_score_of(moec_score score, float x)
{
    if (!(x > -INFINITY))
        return 0.0f;
    if (score == MOEC_SCORE_SIGMOID)
        return moec_f32_sigmoid(x);
    if (score == MOEC_SCORE_SQRT_SOFTPLUS)
        return moec_f32_sqrt_softplus(x);
    return x;
}

// A sum that may have left the finite numbers comes back to the last one.
__device__ static inline float moec_clamped(float v)
{
    if (v > FLT_MAX)
        return FLT_MAX;
    return v < -FLT_MAX ? -FLT_MAX : v + 0.0f;
}

// Key of the choice score of a column whose logit is `raw`; `bias` is
// -INFINITY or NaN where the column must not be chosen.
__device__ static inline uint32_t moec_biased_key(float raw, float score,
                                                  float bias)
{
    float c = score + bias;

    if (!(raw > -INFINITY) || !(c > -INFINITY))
        return 0;
    return moec_key_of(moec_clamped(c));
}

__device__ static inline uint32_t moec_raw_key(float raw)
{
    return raw > -INFINITY ? moec_key_of(raw) : 0;
}

#endif
