// SPDX-License-Identifier: Apache-2.0
//
// moec_route and moec_route_dispatch on the device: choice, weights, and with
// a map remap, shared columns, identity and counts, in one kernel. Equal to
// kernels/cpu/route_scalar.c and kernels/dispatch.c.
//
// A warp a row, rows grid-stride; route_row.cuh says how a row is chosen,
// dispatch_row.cuh how it is remapped. Two kernels:
// route_rows<V, SCORED, AFTER>: up to 512 columns in registers, top K by
//   logit or (SCORED) by score + bias and in groups; what models do.
// route_any<AFTER>: everything: up to 4096 columns, hash, forced ids, sparse
//   mixer, softcap, thousands of groups. Keys in shared memory, logits are read
//   as often as they are needed (they stay in the first cache).
//
// Ids from outside (forced, hash) that are no column, which the CPU refuses,
// are left out; so is a token that is not below vocab.

#include "dispatch_row.cuh"
#include "expert_choice.cuh"
#include "route_any.cuh"
#include "route_weights.cuh"
#include "shared_weight.h"

#define WARPS     8u
#define THREADS   (WARPS * 32u)
// Blocks of a multiprocessor, up to 256 columns and above. The compiler takes
// as many registers as that leaves it (64, 128): no spills.
#define BLOCKS      4u
#define BLOCKS_WIDE 2u
#define GROUPS    32u // of route_rows
#define KEYS_MAX  (64u << 10) // bytes of keys that a block of route_any takes
#define FREE_MAX  (48u << 10) // shared memory without asking

// What follows the choice of a row in the same kernel.
enum after {
    NOTHING,
    DISPATCH,
    DISPATCH_FILL // with waterfill DYNAMIC
};

struct router {
    moec_route_args a;
    moec_dispatch_args d;
    uint32_t warp_bytes; // of route_any: keys and groups in shared memory
    uint32_t warps;
    uint32_t wide; // rows may be read V elements at a time
};

// Keys of all items where the score or a group decides. `bias` is -INFINITY
// behind the columns.
template <int V>
__device__ static inline void scored_keys(const moec_route_args &a,
                                          moec_columns<V> &c,
                                          const float (&bias)[V],
                                          const moec_row_scratch &w)
{
    float m, sum;

    if (!a.in.bias) {
        MOEC_UNROLL
        for (int v = 0; v < V; v++)
            c.k[v] = moec_raw_key(c.x[v]);
    } else if (a.c.score == MOEC_SCORE_SIGMOID) {
        MOEC_UNROLL
        for (int v = 0; v < V; v++)
            c.k[v] = moec_biased_key(c.x[v], moec_f32_sigmoid(c.x[v]), bias[v]);
    } else if (a.c.score == MOEC_SCORE_SOFTMAX) {
        m = moec_row_max(a, c);
        sum = moec_row_sum(a, c, m, w);
        MOEC_UNROLL
        for (int v = 0; v < V; v++)
            c.k[v] = moec_biased_key(c.x[v], moec_f32_exp(c.x[v] - m) / sum,
                                     bias[v]);
    } else {
        MOEC_UNROLL
        for (int v = 0; v < V; v++)
            c.k[v] = moec_biased_key(c.x[v], moec_score_of(a.c.score, c.x[v]),
                                     bias[v]);
    }
}

// The best two keys of a group, of `lanes` adjacent lanes that each have two.
__device__ static inline void best_two(uint32_t lanes, uint32_t *best,
                                       uint32_t *second)
{
    for (uint32_t d = lanes / 2; d; d /= 2) {
        uint32_t b = __shfl_xor_sync(MOEC_FULL_WARP, *best, d);
        uint32_t s = __shfl_xor_sync(MOEC_FULL_WARP, *second, d);

        *second = max(min(*best, b), max(*second, s));
        *best = max(*best, b);
    }
}

// How a warp finds the best two of each group. Lanes [g * lanes, (g + 1) *
// lanes) are group g's: they hold its columns (whole), or read them from shared
// memory.
struct grouping {
    uint32_t lanes, width;
    bool whole;
};

template <int V>
__device__ static inline grouping grouping_of(const moec_route_args &a)
{
    grouping g = {1, a.c.n_experts / a.c.n_group, false};

    while (g.lanes * 2 * a.c.n_group <= 32)
        g.lanes *= 2;
    g.whole = g.lanes * V == g.width;
    return g;
}

// Clear the keys of the groups that are not kept: up to 32 groups, by score +
// bias or by their best.
template <int V>
__device__ static inline void keep_groups(const moec_route_args &a,
                                          moec_columns<V> &c,
                                          const grouping &how,
                                          const moec_row_scratch &w)
{
    uint32_t lane = moec_lane(), lanes = how.lanes, g = lane / lanes;
    uint32_t best = 0, second = 0, mine, better = 0, kept, mine_kept;

    if (how.whole) {
        MOEC_UNROLL
        for (int v = 0; v < V; v++) {
            second = max(second, min(best, c.k[v]));
            best = max(best, c.k[v]);
        }
    } else {
        moec_store_items(w.words(), c.k);
        __syncwarp();
        for (uint32_t i = lane % lanes; i < how.width; i += lanes) {
            uint32_t key = g < a.c.n_group ? w.words()[g * how.width + i] : 0;

            second = max(second, min(best, key));
            best = max(best, key);
        }
        __syncwarp();
    }
    best_two(lanes, &best, &second);
    mine = g < a.c.n_group ? moec_group_key(a, best, second) : 0;
    for (uint32_t o = 0; o < a.c.n_group; o++) {
        uint32_t other =
            __shfl_sync(MOEC_FULL_WARP, mine, static_cast<int>(o * lanes));

        better += other > mine || (other == mine && o < g) ? 1 : 0;
    }
    mine_kept = mine != 0 && better < a.c.topk_group;
    kept = __ballot_sync(MOEC_FULL_WARP, mine_kept != 0);
    MOEC_UNROLL
    for (int v = 0; v < V; v++) {
        if (!how.whole)
            mine_kept = kept >> c.id(v) / how.width * lanes % 32 & 1u;
        c.k[v] = mine_kept ? c.k[v] : 0;
    }
}

// Remap a chosen row, and store what is wanted of it.
template <int AFTER>
__device__ static inline void finish_row(const router &r,
                                         const moec_dispatch_block &b,
                                         uint32_t row, const moec_row_scratch &w)
{
    if (AFTER == NOTHING || r.a.ids)
        moec_store_row(r.a, row, w);
    if (AFTER != NOTHING) {
        __syncwarp();
        moec_dispatch_row<AFTER == DISPATCH_FILL>(
            r.d, b, row, w.ids, w.s, w.s + r.a.c.top_k);
    }
    __syncwarp(); // the next row writes there
}

// The lane's V logits as one load or a few: how wide the row's place allows.
// Elements of T, `at` the lane's first.
template <int V, class T>
__device__ static inline void load_wide(const T *at, T (&to)[V])
{
    constexpr int bytes = V * sizeof(T) % 16 == 0  ? 16
                          : V * sizeof(T) % 8 == 0 ? 8
                          : V * sizeof(T) % 4 == 0 ? 4
                                                   : 2;
    struct alignas(bytes) word {
        T v[bytes / sizeof(T)];
    };
    constexpr int n = bytes / static_cast<int>(sizeof(T));

    MOEC_UNROLL
    for (int v = 0; v < V; v += n) {
        word x = *reinterpret_cast<const word *>(at + v);

        MOEC_UNROLL
        for (int i = 0; i < n; i++)
            to[v + i] = x.v[i];
    }
}

template <int V, class T>
__device__ static inline void load_items(const router &r, const T *row, T none,
                                         T (&to)[V])
{
    uint32_t first = moec_lane() * V;

    MOEC_UNROLL
    for (int v = 0; v < V; v++)
        to[v] = none;
    if (r.wide) { // V divides the columns: all of the lane's are, or none
        if (first < r.a.n_choice)
            load_wide(row + first, to);
        return;
    }
    MOEC_UNROLL
    for (int v = 0; v < V; v++)
        if (first + static_cast<uint32_t>(v) < r.a.n_choice)
            to[v] = row[first + static_cast<uint32_t>(v)];
}

// Logits as they come, -INFINITY behind the columns. All loads are under way
// before the first is looked at.
template <int V>
__device__ static inline void load_columns(const router &r, uint32_t row,
                                           moec_columns<V> &c)
{
    const void *at = moec_row_at(r.a, row);
    bool bf16 = r.a.in.logits_dtype == MOEC_DTYPE_BF16;
    uint16_t h[V];

    if (r.a.in.logits_dtype == MOEC_DTYPE_F32) {
        load_items(r, static_cast<const float *>(at), -INFINITY, c.x);
        return;
    }
    load_items(r, static_cast<const uint16_t *>(at),
               static_cast<uint16_t>(bf16 ? 0xff80 : 0xfc00), h);
    MOEC_UNROLL
    for (int v = 0; v < V; v++)
        c.x[v] = bf16 ? __uint_as_float(static_cast<uint32_t>(h[v]) << 16)
                      : moec_widen_f16(h[v]);
}

template <int V>
__device__ static inline void clean_columns(moec_columns<V> &c)
{
    MOEC_UNROLL
    for (int v = 0; v < V; v++) {
        c.x[v] = moec_clean(c.x[v]);
        c.k[v] = moec_key_of(c.x[v]);
    }
}

// Top K by logit. -inf has a key below MOEC_KEY_LEAST, and so has a NaN with a
// sign; the keys of +inf and of other NaNs are above MOEC_KEY_MOST, so that one
// look at the best finds the rare row that has to be cleaned. *best: the best
// key.
template <int V>
__device__ static inline uint32_t choose_by_logit(const moec_route_args &a,
                                                  moec_columns<V> &c,
                                                  const moec_row_scratch &w,
                                                  uint32_t *best)
{
    uint32_t mine;

    MOEC_UNROLL
    for (int v = 0; v < V; v++)
        c.k[v] = moec_key_of(c.x[v] + 0.0f);
    mine = moec_lane_best(c);
    *best = __reduce_max_sync(MOEC_FULL_WARP, mine);
    if (MOEC_RARE(*best > MOEC_KEY_MOST)) {
        clean_columns(c);
        mine = moec_lane_best(c);
        *best = __reduce_max_sync(MOEC_FULL_WARP, mine);
    }
    return moec_select<true>(c, a.c.top_k, mine, *best, w);
}

template <int V>
__device__ static inline uint32_t
choose_by_score(const moec_route_args &a, moec_columns<V> &c,
                const float (&bias)[V], const grouping &how,
                const moec_row_scratch &w)
{
    uint32_t mine;

    MOEC_UNROLL
    for (int v = 0; v < V; v++) {
        c.x[v] = moec_clean(c.x[v]);
        if (a.in.bias && !(bias[v] > -INFINITY))
            c.x[v] = -INFINITY;
    }
    scored_keys(a, c, bias, w);
    if (a.c.n_group > 1)
        keep_groups(a, c, how, w);
    mine = moec_lane_best(c);
    return moec_select<false>(c, a.c.top_k, mine,
                              __reduce_max_sync(MOEC_FULL_WARP, mine), w);
}

template <int V, bool SCORED, int AFTER>
__global__ void __launch_bounds__(THREADS, V <= 8 ? BLOCKS : BLOCKS_WIDE)
    route_rows(const __grid_constant__ router r)
{
    MOEC_DYNAMIC_SHARED(unsigned char, shared);
    __shared__ moec_row_memory<V> memory[WARPS];
    uint32_t warp = threadIdx.x / 32;
    moec_row_scratch w(&memory[warp]);
    uint32_t valid = moec_n_valid(r.a.n_valid, r.a.in.n_valid, r.a.in.n_tokens);
    uint32_t row = blockIdx.x * WARPS + warp, step = gridDim.x * WARPS;
    grouping how = grouping_of<V>(r.a);
    moec_dispatch_block b;
    moec_columns<V> c;
    float bias[V];

    if (AFTER != NOTHING)
        moec_dispatch_begin<AFTER == DISPATCH_FILL>(r.d, shared, &b);
    MOEC_UNROLL
    for (int v = 0; SCORED && v < V; v++)
        bias[v] = r.a.in.bias && c.id(v) < r.a.n_choice ? r.a.in.bias[c.id(v)]
                                                        : -INFINITY;
    // The first one before `valid` is here: rows behind it have memory too.
    if (row < r.a.in.n_tokens)
        load_columns(r, row, c);
    for (; row < r.a.in.n_tokens; row += step) {
        uint32_t n = 0, best = 0;

        if (row < valid)
            n = SCORED ? choose_by_score(r.a, c, bias, how, w)
                       : choose_by_logit(r.a, c, w, &best);
        if (n == 0)
            moec_no_row(r.a, w);
        else
            moec_row_weights<!SCORED>(r.a, c, moec_row_at(r.a, row), row, n,
                                      SCORED ? NAN : moec_f32_unkey(best), w);
        finish_row<AFTER>(r, b, row, w);
        if (row + step < valid)
            load_columns(r, row + step, c);
    }
    if (AFTER != NOTHING)
        moec_dispatch_end(r.d, b);
}

// --------------------------------------------------------------- anything

// c.keys of a row. groups[n_group] is shared.
__device__ static inline void make_keys_any(const moec_route_args &a,
                                            const moec_columns<0> &c,
                                            uint32_t *groups,
                                            const moec_row_scratch &w)
{
    bool top2 = a.c.n_group > 1 && a.c.group_score == MOEC_GROUP_TOP2;
    float m = 0.0f, sum = 1.0f;

    if (a.c.score == MOEC_SCORE_SOFTMAX && (a.in.bias || top2)) {
        m = moec_row_max(a, c);
        sum = moec_row_sum(a, c, m, w);
    }
    moec_keys_any(a, c, groups, m, sum);
}

// w.ids: the ids of `from` that count, in their order, then -1. Returns how
// many there are.
__device__ static inline uint32_t take_given(const moec_route_args &a,
                                             const void *row,
                                             const int32_t *from,
                                             const moec_row_scratch &w)
{
    uint32_t lane = moec_lane(), n = 0;

    for (uint32_t first = 0; first < a.c.top_k; first += 32) {
        int32_t id = first + lane < a.c.top_k ? from[first + lane] : -1;
        bool ok = static_cast<uint32_t>(id) < a.n_choice;
        uint32_t all;

        if (ok && !a.in.forced_ids)
            ok = moec_raw_at(a, row, static_cast<uint32_t>(id)) > -INFINITY;
        all = __ballot_sync(MOEC_FULL_WARP, ok);
        if (ok)
            w.ids[n + static_cast<uint32_t>(
                           __popc(all & ((1u << lane) - 1u)))] = id;
        n += static_cast<uint32_t>(__popc(all));
    }
    for (uint32_t k = n + lane; k < a.c.top_k; k += 32)
        w.ids[k] = -1;
    __syncwarp();
    return n;
}

__device__ static inline uint32_t choose_any(const moec_route_args &a,
                                             const moec_columns<0> &c,
                                             uint32_t row, uint32_t *groups,
                                             const moec_row_scratch &w)
{
    uint32_t mine, token;

    if (a.in.forced_ids)
        return take_given(
            a, c.row, a.in.forced_ids + static_cast<uint64_t>(row) * a.c.top_k,
            w);
    if (a.c.choice == MOEC_CHOICE_HASH) {
        token = static_cast<uint32_t>(a.in.tokens[row]);
        if (token >= a.in.vocab)
            return 0;
        return take_given(a, c.row,
                          a.in.hash_table +
                              static_cast<uint64_t>(token) * a.c.top_k,
                          w);
    }
    make_keys_any(a, c, groups, w);
    mine = moec_lane_best(c);
    return moec_select<false>(c, a.c.top_k, mine,
                              __reduce_max_sync(MOEC_FULL_WARP, mine), w);
}

template <int AFTER>
__global__ void __launch_bounds__(THREADS) route_any(const __grid_constant__ router r)
{
    MOEC_DYNAMIC_SHARED(unsigned char, shared);
    __shared__ moec_row_memory<0> memory[WARPS];
    uint32_t warp = threadIdx.x / 32;
    moec_row_scratch w(&memory[warp]);
    uint32_t *keys =
        reinterpret_cast<uint32_t *>(shared + warp * r.warp_bytes);
    uint32_t valid = moec_n_valid(r.a.n_valid, r.a.in.n_valid, r.a.in.n_tokens);
    moec_dispatch_block b;

    if (AFTER != NOTHING)
        moec_dispatch_begin<AFTER == DISPATCH_FILL>(
            r.d, shared + r.warps * r.warp_bytes, &b);
    for (uint32_t row = blockIdx.x * r.warps + warp; row < r.a.in.n_tokens;
         row += gridDim.x * r.warps) {
        moec_columns<0> c = {&r.a, nullptr, keys, r.a.n_choice};
        uint32_t n = 0;

        if (row < valid) {
            c.row = moec_row_at(r.a, row);
            n = choose_any(r.a, c, row, keys + r.a.n_choice, w);
        }
        if (n == 0) {
            moec_no_row(r.a, w);
        } else if (r.a.c.choice == MOEC_CHOICE_SPARSE_MIXER) {
            moec_mixer_scores(r.a, c, n, w);
            moec_finish_weights(r.a, c, c.row, row, 0.0f, w);
        } else {
            moec_row_weights<false>(r.a, c, c.row, row, n, NAN, w);
        }
        finish_row<AFTER>(r, b, row, w);
    }
    if (AFTER != NOTHING)
        moec_dispatch_end(r.d, b);
}

// ------------------------------------------------------------- host side

static bool is_fast(const moec_route_args &a)
{
    return a.c.choice == MOEC_CHOICE_TOPK && !a.in.forced_ids &&
           a.c.softcap == 0.0f && a.n_choice <= 512 && a.c.n_group <= GROUPS &&
           a.in.logits &&
           (a.c.n_group == 1 || a.in.bias ||
            a.c.group_score == MOEC_GROUP_MAX);
}

// As many blocks as run at a time: each takes rows as long as there are any.
static uint32_t grid_of(uint32_t ordinal, uint32_t n_tokens, uint32_t warps,
                        uint32_t per_sm)
{
    uint32_t rows = moec_blocks(n_tokens, warps), most;
    int sm = 0;

    if (cudaDeviceGetAttribute(&sm, cudaDevAttrMultiProcessorCount,
                               static_cast<int>(ordinal)) != cudaSuccess ||
        sm < 1)
        sm = 128;
    most = static_cast<uint32_t>(sm) * per_sm;
    return rows < most ? rows : most;
}

template <class K>
static void launch(K kernel, const router &r, uint32_t grid, uint64_t fixed,
                   uint64_t shared, cudaStream_t s)
{
    if (fixed + shared > FREE_MAX)
        (void)cudaFuncSetAttribute(kernel,
                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared));
    MOEC_LAUNCH_KERNEL(kernel, grid, r.warps * 32, shared, s, r);
}

template <int V, int AFTER>
static void launch_fast(router r, uint32_t grid, uint64_t shared,
                        cudaStream_t s)
{
    uint64_t elem = r.a.in.logits_dtype == MOEC_DTYPE_F32 ? 4 : 2;
    uint64_t row = reinterpret_cast<uintptr_t>(r.a.in.logits) |
                   r.a.stride * elem;
    uint64_t fixed = sizeof(moec_row_memory<V>) * WARPS;

    // V * elem bytes of a lane, 16 at a time where that divides them.
    r.wide = r.a.n_choice % V == 0 &&
             row % (V * elem % 16 == 0 ? 16 : V * elem % 8 == 0 ? 8 : V * elem)
                 == 0;
    if (r.a.in.bias || r.a.c.n_group > 1)
        launch(route_rows<V, true, AFTER>, r, grid, fixed, shared, s);
    else
        launch(route_rows<V, false, AFTER>, r, grid, fixed, shared, s);
}

template <int AFTER>
static void launch_any(const router &r, uint32_t grid, uint64_t shared,
                       cudaStream_t s)
{
    launch(route_any<AFTER>, r, grid, sizeof(moec_row_memory<0>) * WARPS,
           shared, s);
}

template <int AFTER>
static void launch_after(const router &r, uint32_t grid, uint64_t shared,
                         cudaStream_t s)
{
    uint32_t n = r.a.n_choice;

    if (!is_fast(r.a))
        launch_any<AFTER>(r, grid, shared, s);
    else if (n <= 32)
        launch_fast<1, AFTER>(r, grid, shared, s);
    else if (n <= 64)
        launch_fast<2, AFTER>(r, grid, shared, s);
    else if (n <= 128)
        launch_fast<4, AFTER>(r, grid, shared, s);
    else if (n <= 256)
        launch_fast<8, AFTER>(r, grid, shared, s);
    else if (n <= 384)
        launch_fast<12, AFTER>(r, grid, shared, s);
    else
        launch_fast<16, AFTER>(r, grid, shared, s);
}

static void launch_route(router *r, uint32_t ordinal, bool dispatch,
                         cudaStream_t s)
{
    bool fast = is_fast(r->a), groups = r->a.c.n_group > 1;
    uint32_t n = r->a.n_choice, grid;
    uint64_t shared;

    r->warps = WARPS;
    if (!fast) {
        r->warp_bytes =
            ((groups ? n + r->a.c.n_group : n) * 4 + 15) / 16 * 16;
        while (r->warps > 1 && r->warps * r->warp_bytes > KEYS_MAX)
            r->warps /= 2;
    }
    shared = static_cast<uint64_t>(r->warps) * r->warp_bytes;
    if (dispatch)
        shared += moec_dispatch_shared(&r->d, r->warps);
    grid = grid_of(ordinal, r->a.in.n_tokens, r->warps,
                   fast && n > 256 ? BLOCKS_WIDE : BLOCKS);
    if (dispatch)
        moec_dispatch_clear(&r->d, grid, s);
    if (r->a.in.n_tokens == 0)
        return;
    if (!dispatch)
        launch_after<NOTHING>(*r, grid, shared, s);
    else if (r->d.waterfill.mode != MOEC_WATERFILL_DYNAMIC)
        launch_after<DISPATCH>(*r, grid, shared, s);
    else if (fast && n <= 256) // two widths are enough for what is rare
        launch_fast<8, DISPATCH_FILL>(*r, grid, shared, s);
    else if (fast)
        launch_fast<16, DISPATCH_FILL>(*r, grid, shared, s);
    else
        launch_any<DISPATCH_FILL>(*r, grid, shared, s);
}

static moec_status check_out(const moec_route_out *out, uint32_t n_tokens,
                             bool needed, moec_error *err)
{
    if (!out && !needed)
        return MOEC_OK;
    if (!out || out->struct_bytes < sizeof(*out) ||
        !out->ids != !out->weights || (needed && n_tokens && !out->ids))
        return moec_cuda_fail(err, MOEC_E_ARG,
                              "route: out, ids or weights is NULL, or "
                              "struct_bytes too small");
    return MOEC_OK;
}

// Expert Choice, and the ids and weights that it hands to the dispatch; with
// what aligns them behind the dispatch's own.
static uint64_t ec_bytes(const moec_route_config *c,
                         const moec_dispatch_map *map, uint32_t n)
{
    uint64_t out = map ? 8ull * n * (c->top_k + c->n_shared) : 0;

    if (c->ec.mode == MOEC_EC_OFF)
        return 0;
    return 256 + (out + 255) / 256 * 256 +
           moec_cuda_expert_choice_workspace(c, n);
}

uint64_t moec_cuda_route_workspace(const moec_route_config *c,
                                   const moec_dispatch_map *map, uint32_t n)
{
    return moec_cuda_dispatch_workspace(map, n) + ec_bytes(c, map, n);
}

static void fill_args(moec_route_args *a, const moec_route_config *c,
                      const moec_route_in *in, const moec_route_out *out,
                      const moec_launch *launch)
{
    *a = {};
    a->c = *c;
    a->in = *in;
    if (c->choice == MOEC_CHOICE_HASH)
        a->in.bias = nullptr;
    a->n_valid = launch->n_valid;
    a->n_choice = c->n_experts + c->n_zero;
    a->n_cols = c->top_k + c->n_shared;
    a->stride = in->logits_stride ? in->logits_stride
                                  : a->n_choice + c->n_shared_logits;
    a->shared_weight = moec_shared_weight_ungated(c);
    if (out) {
        a->ids = out->ids;
        a->weights = out->weights;
    }
}

// Expert Choice, then the dispatch as a call of its own: an expert's choice is
// known when all rows have been seen.
static moec_status route_by_experts(uint32_t ordinal, moec_route_args *a,
                                    const moec_dispatch_map *map,
                                    const moec_waterfill *waterfill,
                                    moec_ec_stats *stats,
                                    const moec_dispatch_out *dispatch,
                                    const moec_launch *launch, moec_error *err)
{
    uint32_t n = a->in.n_tokens;
    uint64_t own = moec_cuda_dispatch_workspace(map, n), used;
    uint64_t cells = static_cast<uint64_t>(n) * a->n_cols;
    char *ws = static_cast<char *>(launch->workspace);
    moec_status st;

    if (!ws || launch->workspace_bytes < own + ec_bytes(&a->c, map, n))
        return moec_cuda_fail(err, MOEC_E_ARG,
                              "expert choice: a workspace of %llu bytes, %llu "
                              "are needed",
                              static_cast<unsigned long long>(
                                  ws ? launch->workspace_bytes : 0),
                              static_cast<unsigned long long>(
                                  own + ec_bytes(&a->c, map, n)));
    used = (own + 255) / 256 * 256;
    if (map && !a->ids) {
        a->ids = reinterpret_cast<int32_t *>(ws + used);
        a->weights = reinterpret_cast<float *>(a->ids + cells);
        used += (8 * cells + 255) / 256 * 256;
    }
    st = moec_cuda_expert_choice(ordinal, *a, stats, ws + used,
                                 moec_stream(launch), err);
    if (st != MOEC_OK || !map)
        return st;
    return moec_cuda_dispatch(ordinal, map, waterfill, a->ids, a->weights, n,
                              a->in.n_valid, a->c.top_k, dispatch, launch, err);
}

moec_status moec_cuda_route(uint32_t ordinal, const moec_route_config *c,
                            const moec_route_in *in,
                            const moec_dispatch_map *map,
                            const moec_waterfill *waterfill,
                            const moec_route_out *out,
                            const moec_dispatch_out *dispatch,
                            const moec_launch *launch, moec_error *err)
{
    moec_on_device on(ordinal);
    cudaStream_t s = moec_stream(launch);
    router r = {};
    moec_status st = check_out(out, in->n_tokens, !map, err);

    if (st == MOEC_OK && map)
        st = moec_dispatch_args_make(&r.d, map, waterfill, dispatch,
                                     in->n_tokens, c->top_k, launch, err);
    if (st != MOEC_OK)
        return st;
    fill_args(&r.a, c, in, out, launch);
    if (c->ec.mode != MOEC_EC_OFF)
        return route_by_experts(ordinal, &r.a, map, waterfill,
                                out ? out->ec : nullptr, dispatch, launch, err);
    if (out && out->ec)
        (void)cudaMemsetAsync(out->ec, 0, sizeof(*out->ec), s);
    launch_route(&r, ordinal, map != nullptr, s);
    if (map)
        moec_dispatch_fill(r.d, s);
    return moec_cuda_launched("route", err);
}
