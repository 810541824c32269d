// SPDX-License-Identifier: Apache-2.0
#ifndef MOEC_EC_PARTS_CUH
#define MOEC_EC_PARTS_CUH

// What this is: what the files of Expert Choice share: expert_choice.cu (the
//   call), ec_one_kernel.cu (small calls), ec_two_pass.cu (lists above floors),
//   ec_rounds.cu (BALANCED). Nobody else includes it.
//
// Expert Choice on the device. Equal to kernels/ec.c, ec_admit.c, ec_balance.c.
//
// A pair is (column key, ~token) in 64 bits, so that all pairs of an expert are
// different. What an expert admits is therefore ONE number: the C-th largest of
// its pairs. No table of pairs is made; rows are read twice:
//
//   begin   n, capacity, on or off; counters
//   plain, measure            AUTO only: plain choice and its imbalance
//   sample, floors            from 1024 rows on: a floor for each expert that
//                             some 2.4 times C of its pairs exceed
//   stream  row scales and groups; pairs above the floors go to lists
//   cut     the C-th largest of each list, by digits, a block an expert. Where
//           the floor was too high, or the list too short, of all rows
//   gather  keys again, K best of the admitting experts, fill, weights
//
// BALANCED is deferred acceptance by these same thresholds: a token asks its K
// best experts that have not turned it down, an expert that is asked by more
// than C raises its threshold to the C-th best of them. Nothing is ever taken
// back, so that the end does not depend on the order; first ROUNDS rounds by
// the whole device, then rounds by one block until no expert is over capacity.
//
// The order in which lists are filled is the device's, the C-th largest is not.
// Up to SMALL rows one block does it all: one node. Nodes whose work is not
// wanted (state of AUTO, number of rows) return at once.

#ifdef MOEC_EMULATE // of these functions a file needs some
#  pragma GCC diagnostic ignored "-Wunused-function"
#endif

#include "ec_capacity.h"
#include "expert_choice.cuh"
#include "route_any.cuh"
#include "route_weights.cuh"

#define WARPS       8u
#define THREADS     (WARPS * 32u)
#define SMALL       256u // rows of the one-block kernel
#define SMALL_WARPS 16u
#define ROUNDS      12u
#define SAMPLE      256u
#define SAMPLE_FROM 1024u // rows
#define KEYS_MAX    (64u << 10) // bytes of keys of a block
#define FREE_MAX    (24u << 10) // shared memory without asking
#define ANY_KEY     (1ull << 32) // threshold that every selectable pair reaches

// What of the call is known on the device only.
struct head {
    uint32_t n, capacity;
    uint32_t on, plain, measure; // plain: AUTO wants the plain choice
    uint32_t rank;               // of the floor in the sample; 0: no sample
    uint32_t over[ROUNDS + 1];   // BALANCED: round r turned somebody down
};

// The softmax of a row; rest: its sum with a bias, else 1 / sum.
struct scale {
    float max, rest;
};

struct ec_args {
    moec_route_args a;
    moec_ec_stats *stats;
    head *h;
    unsigned long long *thresholds; // [E]
    uint32_t *floors;               // [E] a list has what is above
    uint32_t *counts;               // [E] of the list; asking tokens
    uint32_t *loads;                // [E] of the plain choice
    scale *scales;                  // [T]
    uint32_t *kept;                 // [T][kept_words] groups of a row
    uint32_t *sampled;              // [SAMPLE][E]
    unsigned long long *lists;      // [E][room]
    uint32_t *held;                 // [T][K] BALANCED: column keys of ids
    uint32_t room, kept_words;
    uint32_t warp_bytes, warps; // shared memory of a warp; warps of a block
};

// A warp at work on rows first, first + step, ...
struct worker {
    moec_row_scratch w;
    uint32_t *keys, *groups;
    uint32_t first, step;
};

struct counted {
    uint64_t short_tokens, fallback_tokens, dropped;
};

__device__ static inline bool is_softmax(const moec_route_args &a)
{
    return a.c.score == MOEC_SCORE_SOFTMAX;
}

__device__ static inline moec_columns<0> columns_of(const ec_args &j,
                                                    const worker &k,
                                                    uint32_t row)
{
    return {&j.a, moec_row_at(j.a, row), k.keys, j.a.n_choice};
}

__device__ static inline uint32_t select(const moec_columns<0> &c, uint32_t n,
                                         const worker &k)
{
    uint32_t mine, best;

    __syncwarp();
    mine = moec_lane_best(c);
    best = __reduce_max_sync(MOEC_FULL_WARP, mine);
    return moec_select<false>(c, n, mine, best, k.w);
}

// Weights of the n ids in the worker's memory, and all of it to the outputs.
__device__ static inline void store_row(const ec_args &j, const worker &k,
                                        const moec_columns<0> &c, uint32_t row,
                                        uint32_t n, scale s)
{
    if (n == 0)
        moec_no_row(j.a, k.w);
    else
        moec_row_weights<false>(j.a, c, c.row, row, n,
                                is_softmax(j.a) ? s.max : NAN, k.w);
    moec_store_row(j.a, row, k.w);
    __syncwarp();
}

// -------------------------------------------------------------------- keys

// Row keys of a row into k.keys, and what tells them again.
__device__ static inline scale prepare_row(const ec_args &j, const worker &k,
                                           const moec_columns<0> &c,
                                           uint32_t row)
{
    scale s = {0.0f, 1.0f};
    float sum = 1.0f;

    if (is_softmax(j.a)) {
        s.max = moec_row_max(j.a, c);
        sum = moec_row_sum(j.a, c, s.max, k.w);
        s.rest = j.a.in.bias ? sum : 1.0f / sum;
    }
    moec_keys_any(j.a, c, k.groups, s.max, sum);
    if (moec_lane() == 0)
        j.scales[row] = s;
    for (uint32_t v = 0; v < j.kept_words; v++) {
        uint32_t g = 32 * v + moec_lane();
        uint32_t bits = __ballot_sync(MOEC_FULL_WARP, g < j.a.c.n_group &&
                                                          k.groups[g] != 0);

        if (moec_lane() == 0)
            j.kept[static_cast<uint64_t>(row) * j.kept_words + v] = bits;
    }
    return s;
}

__device__ static inline uint32_t row_key(const ec_args &j, const void *at,
                                          uint32_t row, scale s, uint32_t e)
{
    uint32_t g;

    if (j.kept_words != 0) {
        g = e / (j.a.c.n_experts / j.a.c.n_group);
        if ((j.kept[static_cast<uint64_t>(row) * j.kept_words + g / 32] >>
                 g % 32 &
             1u) == 0)
            return 0;
    }
    return moec_key_any(j.a, at, e, s.max, s.rest);
}

// The column key where the row key is `key`.
__device__ static inline uint32_t col_key(const ec_args &j, const void *at,
                                          scale s, uint32_t e, uint32_t key)
{
    if (!is_softmax(j.a) || j.a.in.bias || key == 0)
        return key;
    return moec_f32_key(
        moec_f32_exp(moec_capped(j.a, moec_raw_at(j.a, at, e)) - s.max) *
        s.rest);
}

__device__ static inline unsigned long long pair_of(uint32_t col, uint32_t row)
{
    return static_cast<unsigned long long>(col) << 32 |
           static_cast<uint32_t>(~row);
}

enum which {
    ADMITTED,
    OTHERS,
    ALL
};

// k.keys: row keys of the experts that admit the row, or do not, or all; 0 for
// the others.
__device__ static inline void fill_keys(const ec_args &j, const worker &k,
                                        const moec_columns<0> &c, uint32_t row,
                                        scale s, which w)
{
    __syncwarp();
    for (uint32_t e = moec_lane(); e < j.a.n_choice; e += 32) {
        uint32_t key = row_key(j, c.row, row, s, e);

        if (key != 0 && w != ALL) {
            uint32_t col = col_key(j, c.row, s, e, key);

            if ((pair_of(col, row) >= j.thresholds[e]) != (w == ADMITTED))
                key = 0;
        }
        k.keys[e] = key;
    }
    __syncwarp();
}

// ------------------------------------------------------------------- begin

// By one block.
__device__ static inline void begin_block(const ec_args &j)
{
    const moec_ec_config &ec = j.a.c.ec;
    uint32_t min = ec.min_tokens ? ec.min_tokens : 32;
    uint32_t max = ec.max_tokens ? ec.max_tokens : 128;

    for (uint32_t e = threadIdx.x; e < j.a.n_choice; e += blockDim.x) {
        j.thresholds[e] = ANY_KEY;
        j.floors[e] = 0;
        j.counts[e] = 0;
        j.loads[e] = 0;
    }
    if (threadIdx.x == 0) {
        head h = {};

        h.n = moec_n_valid(j.a.n_valid, j.a.in.n_valid, j.a.in.n_tokens);
        h.capacity = moec_ec_capacity_of(&j.a.c, h.n);
        h.on = h.n != 0;
        if (ec.mode == MOEC_EC_AUTO) {
            h.on = h.n >= min && h.n > max;
            h.plain = !h.on;
            h.measure = h.n >= min && h.n <= max && h.n != 0;
        }
        // Four deviations above what is expected: ec_admit.c.
        if (h.n >= SAMPLE_FROM && h.capacity <= h.n / 4) {
            float expect = static_cast<float>(h.capacity) * SAMPLE /
                           static_cast<float>(h.n);

            h.rank = static_cast<uint32_t>(expect + 4.0f * sqrtf(expect) + 2.0f);
        }
        *j.h = h;
        if (j.stats) {
            moec_ec_stats zero = {};

            zero.on = h.on;
            zero.capacity = h.on ? h.capacity : 0;
            *j.stats = zero;
        }
    }
}

// -------------------------------------------------------------------- AUTO

__device__ static inline void plain_rows(const ec_args &j, const worker &k)
{
    for (uint32_t row = k.first; j.h->plain && row < j.h->n; row += k.step) {
        moec_columns<0> c = columns_of(j, k, row);
        scale s = prepare_row(j, k, c, row);
        uint32_t n = select(c, j.a.c.top_k, k);

        for (uint32_t i = moec_lane(); i < n; i += 32)
            (void)atomicAdd(&j.loads[k.w.ids[i]], 1u);
        store_row(j, k, c, row, n, s);
    }
}

// Deviation / mean as moec_load_stats_of computes it, in the order of experts.
__device__ static inline float imbalance_of(const uint32_t *loads, uint32_t n)
{
    double mean, var = 0.0;
    uint64_t sum = 0;

    for (uint32_t e = 0; e < n; e++)
        sum += loads[e];
    if (sum == 0)
        return 0.0f;
    mean = static_cast<double>(sum) / static_cast<double>(n);
    for (uint32_t e = 0; e < n; e++) {
        double d = loads[e] - mean;

        var += d * d;
    }
    return static_cast<float>(sqrt(var / static_cast<double>(n)) / mean);
}

// By one thread.
__device__ static inline void measure(const ec_args &j)
{
    const moec_ec_config &ec = j.a.c.ec;
    float now, weight = ec.ema > 0.0f ? ec.ema : 0.1f;
    moec_ec_state st;

    if (!j.h->measure)
        return;
    st = *j.a.in.ec_state;
    now = imbalance_of(j.loads, j.a.n_choice);
    if (st.seen > 0)
        now = st.imbalance + weight * (now - st.imbalance);
    st.imbalance = now;
    if (st.seen < UINT32_MAX)
        st.seen++;
    if (now > (ec.threshold > 0.0f ? ec.threshold : 0.20f))
        st.on = 1;
    else if (now < (ec.threshold_off > 0.0f ? ec.threshold_off : 0.15f))
        st.on = 0;
    *j.a.in.ec_state = st;
    j.h->on = st.on != 0;
    if (j.stats && st.on) {
        j.stats->on = 1;
        j.stats->capacity = j.h->capacity;
    }
}

// ------------------------------------------------------------------ stream

__device__ static inline void stream_rows(const ec_args &j, const worker &k)
{
    for (uint32_t row = k.first; row < j.h->n; row += k.step) {
        moec_columns<0> c = columns_of(j, k, row);
        scale s = prepare_row(j, k, c, row);

        for (uint32_t e = moec_lane(); e < j.a.n_choice; e += 32) {
            uint32_t col = col_key(j, c.row, s, e, k.keys[e]), at;

            if (col <= j.floors[e])
                continue;
            at = atomicAdd(&j.counts[e], 1u);
            if (at < j.room)
                j.lists[static_cast<uint64_t>(e) * j.room + at] =
                    pair_of(col, row);
        }
        __syncwarp(); // keys are written again in the next row
    }
}

// --------------------------------------------------------------------- cut

// Where the pairs of an expert are found.
enum source {
    LIST,
    ROWS,  // all of them, computed again
    ASKING // BALANCED: the tokens whose ids have the expert
};

__device__ static inline unsigned long long
pair_in_row(const ec_args &j, source from, uint32_t e, uint32_t row)
{
    const void *at = moec_row_at(j.a, row);
    uint32_t col = 0;

    if (from == ASKING) {
        const int32_t *ids = j.a.ids + static_cast<uint64_t>(row) * j.a.n_cols;

        for (uint32_t i = 0; i < j.a.c.top_k; i++)
            if (ids[i] == static_cast<int32_t>(e))
                col = j.held[static_cast<uint64_t>(row) * j.a.c.top_k + i];
    } else {
        scale s = j.scales[row];

        col = col_key(j, at, s, e, row_key(j, at, row, s, e));
    }
    return col != 0 ? pair_of(col, row) : 0;
}

// Warp 0: the digit of hist[256] where the rank-th largest lies. out: digit,
// rank in it, how many are in it.
__device__ static inline void find_digit(const uint32_t *hist, uint32_t rank,
                                  uint32_t *out)
{
    uint32_t lane = moec_lane(), mine = 0, upto;

    for (uint32_t i = 0; i < 8; i++)
        mine += hist[255 - 8 * lane - i];
    upto = mine;
    for (uint32_t d = 1; d < 32; d *= 2) {
        uint32_t other = __shfl_up_sync(MOEC_FULL_WARP, upto, d);

        upto += lane >= d ? other : 0;
    }
    if (upto < rank || upto - mine >= rank)
        return;
    rank -= upto - mine;
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t digit = 255 - 8 * lane - i;

        if (hist[digit] >= rank) {
            out[0] = digit;
            out[1] = rank;
            out[2] = hist[digit];
            return;
        }
        rank -= hist[digit];
    }
}

// The rank-th largest of an expert's pairs, or less where none lies between.
// By a block; there are at least `rank` pairs.
__device__ static inline unsigned long long
nth_pair(const ec_args &j, source from, uint32_t e, uint32_t n, uint32_t rank)
{
    __shared__ uint32_t hist[256], found[3];
    const unsigned long long *list =
        from == LIST ? j.lists + static_cast<uint64_t>(e) * j.room : nullptr;
    unsigned long long prefix = 0;

    for (int shift = 56; shift >= 0; shift -= 8) {
        for (uint32_t i = threadIdx.x; i < 256; i += blockDim.x)
            hist[i] = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
            unsigned long long p =
                list ? list[i] : pair_in_row(j, from, e, i);

            if (p != 0 && (shift == 56 || p >> (shift + 8) == prefix))
                (void)atomicAdd(&hist[p >> shift & 255u], 1u);
        }
        __syncthreads();
        if (threadIdx.x < 32)
            find_digit(hist, rank, found);
        __syncthreads();
        prefix = prefix << 8 | found[0];
        rank = found[1];
        if (found[2] == rank)
            return prefix << shift; // all with these digits are taken
    }
    return prefix;
}

// ------------------------------------------------------------------ gather

// A row that n < K experts admit, by its best others: how many it has then.
__device__ static __noinline__ uint32_t
fill_missing(const ec_args &j, const worker &k, const moec_columns<0> &c,
             uint32_t row, scale s, uint32_t n)
{
    uint32_t lane = moec_lane(), more = j.a.c.top_k - n;
    int32_t id[2];

    fill_keys(j, k, c, row, s, OTHERS);
    more = select(c, more, k);
    for (uint32_t i = 0; i < 2; i++)
        id[i] = lane + 32 * i < more ? k.w.ids[lane + 32 * i] : -1;
    fill_keys(j, k, c, row, s, ADMITTED);
    for (uint32_t i = 0; i < 2; i++)
        if (id[i] >= 0)
            k.keys[id[i]] =
                row_key(j, c.row, row, s, static_cast<uint32_t>(id[i]));
    return select(c, j.a.c.top_k, k);
}

__device__ static inline void add_counts(const ec_args &j, const counted &n)
{
    if (!j.stats || moec_lane() != 0)
        return;
    if (n.short_tokens)
        (void)atomicAdd(
            reinterpret_cast<unsigned long long *>(&j.stats->short_tokens),
            static_cast<unsigned long long>(n.short_tokens));
    if (n.fallback_tokens)
        (void)atomicAdd(
            reinterpret_cast<unsigned long long *>(&j.stats->fallback_tokens),
            static_cast<unsigned long long>(n.fallback_tokens));
    if (n.dropped)
        (void)atomicAdd(
            reinterpret_cast<unsigned long long *>(&j.stats->dropped),
            static_cast<unsigned long long>(n.dropped));
}

__device__ static inline void gather_row(const ec_args &j, const worker &k,
                                  uint32_t row, counted *sum)
{
    moec_columns<0> c = columns_of(j, k, row);
    scale s = j.scales[row];
    uint32_t n, m;

    fill_keys(j, k, c, row, s, ADMITTED);
    n = m = select(c, j.a.c.top_k, k);
    if (n < j.a.c.top_k) {
        if (j.a.c.ec.fill == MOEC_EC_FILL_MISSING) {
            n = fill_missing(j, k, c, row, s, n);
        } else if (j.a.c.ec.fill == MOEC_EC_FULL_ROW) {
            fill_keys(j, k, c, row, s, ALL);
            n = select(c, j.a.c.top_k, k);
        }
        sum->short_tokens++;
        sum->fallback_tokens += n > m;
        sum->dropped += j.a.c.top_k - n;
    }
    store_row(j, k, c, row, n, s);
}

// The rows behind the real ones.
__device__ static inline void pad_rows(const ec_args &j, const worker &k)
{
    for (uint32_t row = k.first; row < j.a.in.n_tokens; row += k.step)
        if (row >= j.h->n) {
            moec_no_row(j.a, k.w);
            moec_store_row(j.a, row, k.w);
            __syncwarp();
        }
}

__device__ static inline void gather_rows(const ec_args &j, const worker &k)
{
    counted sum = {};

    for (uint32_t row = k.first; j.h->on && row < j.h->n; row += k.step)
        gather_row(j, k, row, &sum);
    add_counts(j, sum);
    pad_rows(j, k);
}

// ----------------------------------------------------------------- kernels

__device__ static inline worker worker_of(const ec_args &j,
                                          moec_row_memory<0> *memory,
                                          unsigned char *shared)
{
    uint32_t warp = threadIdx.x / 32;
    uint32_t *keys =
        reinterpret_cast<uint32_t *>(shared + warp * j.warp_bytes);

    return {moec_row_scratch(&memory[warp]), keys, keys + j.a.n_choice,
            blockIdx.x * j.warps + warp, gridDim.x * j.warps};
}

#define EC_KERNEL(name)                                                        \
    __global__ void __launch_bounds__(THREADS)                                 \
        name(const __grid_constant__ ec_args j)
#define EC_WORKER(k)                                                           \
    MOEC_DYNAMIC_SHARED(unsigned char, shared);                                \
    __shared__ moec_row_memory<0> memory[WARPS];                               \
    worker k = worker_of(j, memory, shared)

// Blocks of the device, and warps whose keys fit a block's shared memory.
struct shape {
    uint32_t rows, experts, sample;
    uint64_t shared;
};

template <class K, class... Args>
static inline void launch(K kernel, uint32_t grid, uint32_t threads,
                          uint64_t shared, cudaStream_t s, const Args &...args)
{
    if (shared > FREE_MAX)
        (void)cudaFuncSetAttribute(kernel,
                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared));
    MOEC_LAUNCH_KERNEL(kernel, grid, threads, shared, s, args...);
}

void moec_ec_launch_small(const ec_args &j, cudaStream_t s);
void moec_ec_launch_two_pass(const ec_args &j, const shape &g, uint32_t threads,
                             cudaStream_t s);
void moec_ec_launch_rounds(const ec_args &j, const shape &g, uint32_t threads,
                           cudaStream_t s);

#endif
