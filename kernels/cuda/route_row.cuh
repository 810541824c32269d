// SPDX-License-Identifier: Apache-2.0
#ifndef MOEC_ROUTE_ROW_CUH
#define MOEC_ROUTE_ROW_CUH

// What this is: the choice of one row by one warp: logits, scores, keys,
//   groups, the best K, their weights. Equal to kernels/cpu/route_scalar.c,
//   which says why: ids bit for bit, and weights too, as every operation is
//   the same in the same order.
// Layout: up to 512 columns stand in registers, V adjacent ones in a lane
//   (moec_columns<V>): few wide loads, and a group of experts is a few whole
//   lanes. Beyond that logits stay in global and keys stand in shared memory,
//   column i at lane i % 32 (moec_columns<0>).
// Rules: all 32 lanes of a warp come here together, with the same arguments
//   but for what stands in the columns.
//
// The best K (moec_select): K rounds of a warp maximum over the LANES' best
// give a bound that at least K columns reach and few more do; those are
// gathered, and each counts how many rank before it. Where too many reach the
// bound (ties, K near 32) the exact key of the K-th is bisected. No order of
// execution decides anything.

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

// --------------------------------------------------------------- selection

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

// ----------------------------------------------------------------- weights

// Sigmoids of the shared experts' logits, behind the others.
__device__ static inline float moec_shared_score(const moec_route_args &a,
                                                 const void *row, uint32_t s)
{
    return moec_score_of(
        MOEC_SCORE_SIGMOID,
        moec_clean(moec_load_any(row, static_cast<int>(a.in.logits_dtype),
                                 a.n_choice + s)));
}

// Sum of what the norm adds up of w.s[0, K), in rank order.
__device__ static inline float moec_chosen_sum(const moec_route_args &a,
                                               const moec_row_scratch &w)
{
    bool square = a.c.norm == MOEC_NORM_P && a.c.norm_arg == 2.0f;
    bool absolute = a.c.norm == MOEC_NORM_P && !square;
    float sum = 0.0f;

    for (uint32_t k = 0; k < a.c.top_k; k += 4) {
        float4 v = *reinterpret_cast<const float4 *>(&w.s[k]);
        float q[4] = {v.x, v.y, v.z, v.w};

        MOEC_UNROLL
        for (uint32_t i = 0; i < 4; i++) {
            float x = square ? q[i] * q[i] : q[i];

            if (absolute)
                x = fabsf(x);
            sum = k + i < a.c.top_k ? sum + x : sum;
        }
    }
    return sum;
}

// The same and the shared experts' scores, which stay in w.floats().
__device__ static inline float moec_joint_sum(const moec_route_args &a,
                                              const void *row, float sum,
                                              const moec_row_scratch &w)
{
    float *shared = w.floats();

    for (uint32_t j = moec_lane(); j < a.c.n_shared_logits; j += 32)
        shared[j] = moec_shared_score(a, row, j);
    __syncwarp();
    for (uint32_t j = 0; j < a.c.n_shared_logits; j++)
        sum = sum + shared[j];
    return sum;
}

// What the scores in w.s are divided by; 0 makes all weights 0.
template <int V>
__device__ static inline float
moec_divisor(const moec_route_args &a, const moec_columns<V> &c,
             const void *row, float m, const moec_row_scratch &w)
{
    bool softmax = a.c.score == MOEC_SCORE_SOFTMAX &&
                   a.c.choice != MOEC_CHOICE_SPARSE_MIXER;
    moec_route_norm norm = a.c.norm;
    float sum = norm == MOEC_NORM_NONE ? 1.0f : moec_chosen_sum(a, w);
    float all = 1.0f; // sum over all columns, where it counts

    if (softmax && (norm == MOEC_NORM_NONE || norm == MOEC_NORM_FLOOR ||
                    (norm == MOEC_NORM_SUM && MOEC_RARE(sum < 1e-8f))))
        all = moec_row_sum(a, c, m, w);
    if (norm == MOEC_NORM_NONE)
        return all;
    if (norm == MOEC_NORM_SUM)
        return sum == 0.0f ? 0.0f : sum + 1e-20f * all;
    if (norm == MOEC_NORM_FLOOR) {
        all = a.c.norm_arg * all;
        return sum > all ? sum : all;
    }
    if (norm == MOEC_NORM_P)
        return a.c.norm_arg == 2.0f ? sqrtf(sum) : sum;
    return norm == MOEC_NORM_JOINT ? moec_joint_sum(a, row, sum, w) : sum;
}

// Ids and weights of the shared columns of a row that has an expert.
__device__ static inline void moec_shared_columns(const moec_route_args &a,
                                                  uint32_t row, float d,
                                                  const moec_row_scratch &w)
{
    const float *joint = w.floats();

    for (uint32_t j = moec_lane(); j < a.c.n_shared; j += 32) {
        float v = a.shared_weight;

        if (a.c.norm == MOEC_NORM_JOINT) {
            v = d == 0.0f ? 0.0f : joint[j] / d;
            if (a.c.rsf_on == MOEC_RSF_ON_WEIGHTS)
                v = v * a.c.rsf;
            v = v / static_cast<float>(a.c.shared_ranks);
        } else if (a.c.shared_kind == MOEC_SHARED_SIGMOID) {
            v = v * moec_f32_sigmoid(a.in.shared_gate[row]);
        }
        w.s[a.c.top_k + j] = v;
        w.ids[a.c.top_k + j] = static_cast<int32_t>(a.n_choice + j);
    }
}

// Scores of the sparse mixer: each round its own softmax over the columns not
// taken by earlier rounds and close enough to the round's best. c.keys is no
// longer needed and holds x.
__device__ static __noinline__ void
moec_mixer_scores(const moec_route_args &a, const moec_columns<0> &c,
                  uint32_t n_ids, const moec_row_scratch &w)
{
    float *xs = reinterpret_cast<float *>(c.keys);
    float limit = 2.0f * a.c.mixer_eps;
    uint32_t lane = moec_lane(), items = (a.n_choice + 31) / 32;

    for (uint32_t i = lane; i < a.n_choice; i += 32)
        xs[i] = moec_capped(a, moec_raw_at(a, c.row, i));
    for (uint32_t k = 0; k < n_ids; k++) {
        uint32_t taken = static_cast<uint32_t>(w.ids[k]);
        float m = -INFINITY, mine = 0.0f, total;
        moec_sum16 sum;

        for (uint32_t i = lane; i < a.n_choice; i += 32)
            m = xs[i] > m ? xs[i] : m;
        m = moec_warp_max(m);
        for (uint32_t v = 0; v < items; v++) {
            uint32_t i = lane + 32 * v;
            float x = i < a.n_choice ? xs[i] : -INFINITY;
            float size = fabsf(x), e = 0.0f;

            if (x > -INFINITY && !((m - x) / (size > m ? size : m) > limit))
                e = moec_f32_exp(x - m);
            if (i == taken) {
                mine = e;
                xs[i] = -INFINITY;
            }
            sum.add(e);
        }
        mine = __shfl_sync(MOEC_FULL_WARP, mine, static_cast<int>(taken % 32));
        total = sum.total();
        if (lane == 0)
            w.s[k] = mine > 0.0f ? mine / total : 0.0f;
    }
    for (uint32_t k = n_ids + lane; k < a.c.top_k; k += 32)
        w.s[k] = 0.0f;
}

// w.s[0, K): score, or for softmax e^(x - m), of each chosen id; 0 for none.
// `m` is the row's maximum where the caller knows it, else NaN. LOGITS: w.s
// has the chosen logits, else they are read again. Returns m.
template <bool LOGITS, int V>
__device__ static inline float
moec_chosen_scores(const moec_route_args &a, const moec_columns<V> &c,
                   const void *row, uint32_t n_ids, float m,
                   const moec_row_scratch &w)
{
    bool of_chosen = a.c.norm == MOEC_NORM_SOFTMAX;
    bool exps = of_chosen || a.c.score == MOEC_SCORE_SOFTMAX;
    float best = -INFINITY;

    for (uint32_t k = moec_lane(); k < a.c.top_k; k += 32) {
        float x = -INFINITY;

        if (LOGITS && k < n_ids)
            x = w.s[k];
        else if (k < n_ids)
            x = moec_raw_at(a, row, static_cast<uint32_t>(w.ids[k]));
        if (!LOGITS && moec_columns<V>::capped)
            x = moec_capped(a, x);
        w.s[k] = x;
        best = x > best ? x : best;
    }
    if (of_chosen)
        m = moec_warp_max(best);
    else if (exps && !(m == m))
        m = moec_row_max(a, c);
    for (uint32_t k = moec_lane(); k < a.c.top_k; k += 32) {
        float x = w.s[k];

        if (!(x > -INFINITY))
            w.s[k] = 0.0f;
        else
            w.s[k] = exps ? moec_f32_exp(x - m) : moec_score_of(a.c.score, x);
    }
    return m;
}

// Divide, scale, and append the shared columns: w.ids and w.s are whole.
template <int V>
__device__ static inline void
moec_finish_weights(const moec_route_args &a, const moec_columns<V> &c,
                    const void *row_at, uint32_t row, float m,
                    const moec_row_scratch &w)
{
    float d;

    __syncwarp();
    d = moec_divisor(a, c, row_at, m, w);
    __syncwarp();
    for (uint32_t k = moec_lane(); k < a.c.top_k; k += 32) {
        int32_t id = w.ids[k];
        float v = d == 0.0f || id < 0 ? 0.0f : w.s[k] / d;

        if (a.c.rsf_on == MOEC_RSF_ON_WEIGHTS)
            v = v * a.c.rsf;
        if (a.in.expert_scale && id >= 0 &&
            static_cast<uint32_t>(id) < a.c.n_experts)
            v = v * a.in.expert_scale[id];
        w.s[k] = v;
    }
    moec_shared_columns(a, row, d, w);
    __syncwarp();
}

// Weights of K + S columns of a row whose n_ids > 0 ids are in w.ids, in rank
// order, -1 behind them (LOGITS: and their logits in w.s). Not for the sparse
// mixer.
template <bool LOGITS, int V>
__device__ static inline void
moec_row_weights(const moec_route_args &a, const moec_columns<V> &c,
                 const void *row_at, uint32_t row, uint32_t n_ids, float m,
                 const moec_row_scratch &w)
{
    m = moec_chosen_scores<LOGITS>(a, c, row_at, n_ids, m, w);
    moec_finish_weights(a, c, row_at, row, m, w);
}

// No expert: id -1 and weight 0 in all columns.
__device__ static inline void moec_no_row(const moec_route_args &a,
                                          const moec_row_scratch &w)
{
    for (uint32_t k = moec_lane(); k < a.n_cols; k += 32) {
        w.ids[k] = -1;
        w.s[k] = 0.0f;
    }
    __syncwarp();
}

__device__ static inline void moec_store_row(const moec_route_args &a,
                                             uint32_t row,
                                             const moec_row_scratch &w)
{
    uint64_t at = static_cast<uint64_t>(row) * a.n_cols;

    for (uint32_t k = moec_lane(); k < a.n_cols; k += 32) {
        a.ids[at + k] = w.ids[k];
        a.weights[at + k] = w.s[k];
    }
}

#endif
