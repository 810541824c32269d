// SPDX-License-Identifier: Apache-2.0
//
// After the dispatch: columns sorted by slot (moec_align), rows gathered in
// that order (moec_permute), the experts' outputs summed back (moec_combine).
// Equal to kernels/align.c and kernels/combine.c, bit for bit.
//
// Align: slots[n] (n up to 2^32 - 2, some 10^6 in practice) over n_slots. A
// counting sort without atomics, so that the order inside a slot is by
// position on every run. A warp owns a stretch of adjacent columns; its lanes
// find equals among 32 columns by __match_any_sync, and the lowest lane of a
// group counts for all. Up to ONE_MAX columns: one block does everything in
// one launch. More: align_count (stretches side by side), align_scan (one
// block: prefix over slot and block), align_place. Counts of warps lie in
// shared memory, [warps][n_slots]; where that does not fit in the workspace.
//
// All threads of a block stay until its last barrier; all lanes of a warp are
// active in every collective.

#include "common.cuh"

#define ONE_WARPS   32u
#define ONE_THREADS (ONE_WARPS * 32u)
#define ONE_MAX     8192u // columns
#define WARPS       8u
#define THREADS     (WARPS * 32u)
#define BLOCKS_MAX  64u // the scan reads one row of counts a block
// What a block may have without asking (48 KiB), and with (sm_80: 163 KiB).
#define SHARED_MAX (160u << 10)

struct aligner {
    const int32_t *slots;
    uint64_t n;
    uint32_t first_slot, n_slots, block;
    uint32_t n_blocks;
    uint64_t per_warp; // columns of a stretch, a multiple of 32
    uint32_t *sorted, *expert_ids;
    uint64_t *slot_first, *n_padded;
    // workspace
    uint32_t *at;       // [n_blocks][n_slots]: counts, then first places
    uint32_t *begin;    // [n_slots + 1]: where each slot's run begins
    uint32_t *of_warps; // [n_blocks][warps][n_slots], NULL: shared memory
};

__device__ static uint32_t slot_of(const aligner &a, uint64_t i)
{
    return i < a.n ? static_cast<uint32_t>(a.slots[i]) - a.first_slot
                   : 0xffffffffu;
}

// Count the warp's stretch into mine[n_slots].
__device__ static void count_stretch(const aligner &a, uint32_t warp,
                                     uint32_t *mine)
{
    uint32_t lane = threadIdx.x % 32;
    uint64_t lo = warp * a.per_warp, hi = lo + a.per_warp;

    for (uint32_t q = lane; q < a.n_slots; q += 32)
        mine[q] = 0;
    __syncwarp();
    for (; lo < hi && lo < a.n; lo += 32) {
        uint32_t q = slot_of(a, lo + lane);
        uint32_t equal = __match_any_sync(MOEC_FULL_WARP, q);

        if (q < a.n_slots && lane == static_cast<uint32_t>(__ffs(equal)) - 1)
            mine[q] += static_cast<uint32_t>(__popc(equal));
        __syncwarp();
    }
}

// Put the warp's columns to their places; mine[q] is the next one of slot q.
__device__ static void place_stretch(const aligner &a, uint32_t warp,
                                     uint32_t *mine)
{
    uint32_t lane = threadIdx.x % 32;
    uint64_t lo = warp * a.per_warp, hi = lo + a.per_warp;

    for (; lo < hi && lo < a.n; lo += 32) {
        uint32_t q = slot_of(a, lo + lane);
        uint32_t equal = __match_any_sync(MOEC_FULL_WARP, q);
        uint32_t before = equal & ((1u << lane) - 1u), at = 0;

        if (q < a.n_slots)
            at = mine[q];
        __syncwarp(); // all have read before one writes
        if (q < a.n_slots) {
            a.sorted[at + static_cast<uint32_t>(__popc(before))] =
                static_cast<uint32_t>(lo + lane);
            if (before == 0)
                mine[q] = at + static_cast<uint32_t>(__popc(equal));
        }
        __syncwarp();
    }
}

// Sum of `v` over the threads before this one, and over all in *all. `sums` is
// shared, one for each warp and one more.
__device__ static uint32_t block_prefix(uint32_t v, uint32_t *sums,
                                        uint32_t *all)
{
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t inclusive = v;

    for (uint32_t d = 1; d < 32; d *= 2) {
        uint32_t other = __shfl_up_sync(MOEC_FULL_WARP, inclusive, d);

        if (lane >= d)
            inclusive += other;
    }
    if (lane == 31)
        sums[warp] = inclusive;
    __syncthreads();
    if (warp == 0) {
        uint32_t s = lane < blockDim.x / 32 ? sums[lane] : 0, total = s;

        for (uint32_t d = 1; d < 32; d *= 2) {
            uint32_t other = __shfl_up_sync(MOEC_FULL_WARP, total, d);

            if (lane >= d)
                total += other;
        }
        sums[lane] = total - s;
        if (lane == 31)
            sums[32] = total;
    }
    __syncthreads();
    *all = sums[32];
    inclusive += sums[warp] - v;
    __syncthreads(); // sums may be used again
    return inclusive;
}

// Turn the counts rows[n_rows][n_slots] into first places, slot by slot; say
// where each slot's run begins, and fill up the padding.
__device__ static void lay_out(const aligner &a, uint32_t *rows,
                               uint32_t n_rows, uint32_t *sums)
{
    uint32_t done = 0; // entries of the slots before this tile

    for (uint32_t tile = 0; tile < a.n_slots; tile += blockDim.x) {
        uint32_t q = tile + threadIdx.x, count = 0, padded = 0, all, at;

        if (q < a.n_slots) {
            for (uint32_t r = 0; r < n_rows; r++)
                count += rows[static_cast<uint64_t>(r) * a.n_slots + q];
            padded = (count + a.block - 1) / a.block * a.block;
        }
        at = done + block_prefix(padded, sums, &all);
        done += all;
        if (q >= a.n_slots)
            continue; // behind the block's last barrier of this tile
        a.begin[q] = at;
        if (a.slot_first)
            a.slot_first[q] = at;
        for (uint32_t i = count; i < padded; i++)
            a.sorted[at + i] = static_cast<uint32_t>(a.n);
        for (uint32_t r = 0; r < n_rows; r++) {
            uint32_t *row = &rows[static_cast<uint64_t>(r) * a.n_slots + q];
            uint32_t n = *row;

            *row = at;
            at += n;
        }
    }
    if (threadIdx.x == 0) {
        a.begin[a.n_slots] = done;
        if (a.slot_first)
            a.slot_first[a.n_slots] = done;
        *a.n_padded = done;
    }
}

// Name the slot of each block of entries: the last whose run begins at or
// before it. Slots without a column begin where the next one does.
__device__ static void name_blocks(const aligner &a, uint32_t first,
                                   uint32_t step)
{
    uint32_t n = a.begin[a.n_slots] / a.block;

    if (!a.expert_ids)
        return;
    for (uint32_t b = first; b < n; b += step) {
        uint32_t low = 0, high = a.n_slots; // begin[low] <= at < begin[high]

        while (high - low > 1) {
            uint32_t mid = low + (high - low) / 2;

            if (a.begin[mid] <= b * a.block)
                low = mid;
            else
                high = mid;
        }
        a.expert_ids[b] = low;
    }
}

__global__ void __launch_bounds__(ONE_THREADS) align_one(aligner a)
{
    MOEC_DYNAMIC_SHARED(uint32_t, counts);
    __shared__ uint32_t sums[33];
    uint32_t warp = threadIdx.x / 32;
    uint32_t *rows = a.of_warps ? a.of_warps : counts;
    uint32_t *mine = rows + static_cast<uint64_t>(warp) * a.n_slots;

    count_stretch(a, warp, mine);
    __syncthreads();
    lay_out(a, rows, ONE_WARPS, sums);
    __syncthreads();
    place_stretch(a, warp, mine);
    name_blocks(a, threadIdx.x, blockDim.x);
}

__global__ void __launch_bounds__(THREADS) align_count(aligner a)
{
    MOEC_DYNAMIC_SHARED(uint32_t, counts);
    uint32_t warp = threadIdx.x / 32;
    uint32_t *rows = a.of_warps ? a.of_warps + static_cast<uint64_t>(
                                                   blockIdx.x) *
                                                   WARPS * a.n_slots
                                : counts;

    count_stretch(a, blockIdx.x * WARPS + warp,
                  rows + static_cast<uint64_t>(warp) * a.n_slots);
    __syncthreads();
    for (uint32_t q = threadIdx.x; q < a.n_slots; q += blockDim.x) {
        uint32_t sum = 0;

        for (uint32_t w = 0; w < WARPS; w++)
            sum += rows[static_cast<uint64_t>(w) * a.n_slots + q];
        a.at[static_cast<uint64_t>(blockIdx.x) * a.n_slots + q] = sum;
    }
}

__global__ void __launch_bounds__(ONE_THREADS) align_scan(aligner a)
{
    __shared__ uint32_t sums[33];

    lay_out(a, a.at, a.n_blocks, sums);
}

__global__ void __launch_bounds__(THREADS) align_place(aligner a)
{
    MOEC_DYNAMIC_SHARED(uint32_t, counts);
    uint32_t warp = threadIdx.x / 32;
    uint32_t *rows = a.of_warps ? a.of_warps + static_cast<uint64_t>(
                                                   blockIdx.x) *
                                                   WARPS * a.n_slots
                                : counts;
    uint32_t *mine = rows + static_cast<uint64_t>(warp) * a.n_slots;

    if (!a.of_warps) // counted again: cheaper than writing and reading it
        count_stretch(a, blockIdx.x * WARPS + warp, mine);
    __syncthreads();
    for (uint32_t q = threadIdx.x; q < a.n_slots; q += blockDim.x) {
        uint32_t at = a.at[static_cast<uint64_t>(blockIdx.x) * a.n_slots + q];

        for (uint32_t w = 0; w < WARPS; w++) {
            uint32_t *row = &rows[static_cast<uint64_t>(w) * a.n_slots + q];
            uint32_t n = *row;

            *row = at;
            at += n;
        }
    }
    __syncthreads();
    place_stretch(a, blockIdx.x * WARPS + warp, mine);
    name_blocks(a, blockIdx.x * blockDim.x + threadIdx.x,
                gridDim.x * blockDim.x);
}

static uint32_t blocks_of(uint64_t n)
{
    uint32_t b = moec_blocks(n, THREADS * 16);

    return b < BLOCKS_MAX ? (b ? b : 1) : BLOCKS_MAX;
}

static bool is_small(uint64_t n, uint32_t n_slots)
{
    return n <= ONE_MAX && ONE_WARPS * n_slots * sizeof(uint32_t) <= SHARED_MAX;
}

uint64_t moec_cuda_align_workspace(uint64_t n, uint32_t n_slots)
{
    uint64_t rows = static_cast<uint64_t>(n_slots) * sizeof(uint32_t);
    uint64_t bytes = (n_slots + 1ull) * sizeof(uint32_t);

    if (is_small(n, n_slots))
        return bytes;
    bytes += blocks_of(n) * rows;
    if (WARPS * rows > SHARED_MAX)
        bytes += blocks_of(n) * WARPS * rows;
    return bytes;
}

static moec_status launch_large(aligner a, uint32_t *rest, cudaStream_t s)
{
    uint64_t shared = WARPS * static_cast<uint64_t>(a.n_slots) * 4;
    uint64_t per;

    a.n_blocks = blocks_of(a.n);
    per = (a.n + a.n_blocks * WARPS - 1) / (a.n_blocks * WARPS);
    a.per_warp = (per + 31) / 32 * 32;
    a.at = rest;
    if (shared > SHARED_MAX) {
        a.of_warps = rest + static_cast<uint64_t>(a.n_blocks) * a.n_slots;
        shared = 0;
    } else if (shared > 48 << 10) {
        (void)cudaFuncSetAttribute(align_count,
                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   SHARED_MAX);
        (void)cudaFuncSetAttribute(align_place,
                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   SHARED_MAX);
    }
    MOEC_LAUNCH_KERNEL(align_count, a.n_blocks, THREADS, shared, s, a);
    MOEC_LAUNCH_KERNEL(align_scan, 1, ONE_THREADS, 0, s, a);
    MOEC_LAUNCH_KERNEL(align_place, a.n_blocks, THREADS, shared, s, a);
    return MOEC_OK;
}

moec_status moec_cuda_align(uint32_t ordinal, const int32_t *slots, uint64_t n,
                            uint32_t first_slot, uint32_t n_slots,
                            uint32_t block, const moec_align_out *out,
                            const moec_launch *launch, moec_error *err)
{
    moec_on_device on(ordinal);
    uint64_t need = moec_cuda_align_workspace(n, n_slots);
    cudaStream_t s = moec_stream(launch);
    aligner a = {};

    if (n_slots == 0 || n_slots > 1u << 20 || block == 0 || n >= UINT32_MAX ||
        moec_align_capacity(n, n_slots, block) > UINT32_MAX)
        return moec_cuda_fail(err, MOEC_E_ARG,
                              "align: %llu columns over %u slots in blocks of "
                              "%u",
                              static_cast<unsigned long long>(n), n_slots,
                              block);
    if (!launch->workspace || launch->workspace_bytes < need)
        return moec_cuda_fail(err, MOEC_E_ARG,
                              "align: a workspace of %llu bytes, %llu are "
                              "needed",
                              static_cast<unsigned long long>(
                                  launch->workspace_bytes),
                              static_cast<unsigned long long>(need));
    a.slots = slots;
    a.n = n;
    a.first_slot = first_slot;
    a.n_slots = n_slots;
    a.block = block;
    a.sorted = out->sorted;
    a.expert_ids = out->expert_ids;
    a.slot_first = out->slot_first;
    a.n_padded = out->n_padded;
    a.begin = static_cast<uint32_t *>(launch->workspace);
    if (is_small(n, n_slots)) {
        uint64_t shared = ONE_WARPS * static_cast<uint64_t>(n_slots) * 4;

        a.n_blocks = 1;
        a.per_warp = ((n + ONE_WARPS - 1) / ONE_WARPS + 31) / 32 * 32;
        if (shared > 48 << 10)
            (void)cudaFuncSetAttribute(
                align_one, cudaFuncAttributeMaxDynamicSharedMemorySize,
                SHARED_MAX);
        MOEC_LAUNCH_KERNEL(align_one, 1, ONE_THREADS, shared, s, a);
    } else {
        (void)launch_large(a, a.begin + n_slots + 1, s);
    }
    return moec_cuda_launched("align", err);
}

// ---------------------------------------------------------------- permute
// One block a row (grid-stride); T is the widest word that row_bytes and the
// pointers' alignment allow.

template <class T>
__global__ void permute_rows(const T *x, uint32_t row, const uint32_t *sorted,
                             const uint64_t *n_sorted, uint64_t n_columns,
                             uint32_t n_cols, T *out)
{
    uint64_t n = *n_sorted;

    for (uint64_t i = blockIdx.x; i < n; i += gridDim.x) {
        uint32_t p = sorted[i];
        T zero = {};

        for (uint32_t k = threadIdx.x; k < row; k += blockDim.x)
            out[i * row + k] =
                p < n_columns
                    ? x[static_cast<uint64_t>(p / n_cols) * row + k]
                    : zero;
    }
}

template <class T>
static void launch_permute(const void *x, uint64_t row_bytes,
                           const uint32_t *sorted, const uint64_t *n_sorted,
                           uint64_t n_max, uint64_t n_columns, uint32_t n_cols,
                           void *out, cudaStream_t s)
{
    uint32_t grid = n_max < 65536 ? static_cast<uint32_t>(n_max) : 65536u;

    MOEC_LAUNCH_KERNEL(permute_rows<T>, grid, 256, 0, s,
                       static_cast<const T *>(x),
                       static_cast<uint32_t>(row_bytes / sizeof(T)), sorted,
                       n_sorted, n_columns, n_cols, static_cast<T *>(out));
}

moec_status moec_cuda_permute(uint32_t ordinal, const void *x,
                              uint64_t row_bytes, const uint32_t *sorted,
                              const uint64_t *n_sorted, uint64_t n_sorted_max,
                              uint64_t n_columns, uint32_t n_cols, void *out,
                              const moec_launch *launch, moec_error *err)
{
    moec_on_device on(ordinal);
    uint64_t low = row_bytes | reinterpret_cast<uintptr_t>(x) |
                   reinterpret_cast<uintptr_t>(out);
    cudaStream_t s = moec_stream(launch);

    if (row_bytes == 0 || row_bytes > UINT32_MAX || n_cols == 0 || !n_sorted)
        return moec_cuda_fail(err, MOEC_E_ARG,
                              "permute: rows of %llu bytes, %u columns a token",
                              static_cast<unsigned long long>(row_bytes),
                              n_cols);
    if (n_sorted_max == 0)
        return MOEC_OK;
    if (low % 16 == 0)
        launch_permute<uint4>(x, row_bytes, sorted, n_sorted, n_sorted_max,
                              n_columns, n_cols, out, s);
    else if (low % 4 == 0)
        launch_permute<uint32_t>(x, row_bytes, sorted, n_sorted, n_sorted_max,
                                 n_columns, n_cols, out, s);
    else
        launch_permute<uint8_t>(x, row_bytes, sorted, n_sorted, n_sorted_max,
                                n_columns, n_cols, out, s);
    return moec_cuda_launched("permute", err);
}

// ---------------------------------------------------------------- combine
// out[t][h] for a token (block y) and V adjacent h (a thread): columns in
// order, a product rounded before it is added. Reads each y row once; slots
// and weights of a token come from the cache.

struct combiner {
    moec_combine_in in;
    float *out;
    float scale;
};

template <int V> struct alignas(4 * V) floats {
    float v[V];
};

template <int V> __global__ void combine_rows(combiner c)
{
    const moec_combine_in &in = c.in;
    uint32_t h = (blockIdx.x * blockDim.x + threadIdx.x) * V;

    if (h >= in.hidden)
        return;
    for (uint32_t t = blockIdx.y; t < in.n_tokens; t += gridDim.y) {
        uint64_t at = static_cast<uint64_t>(t) * in.n_cols;
        floats<V> acc;

        for (int i = 0; i < V; i++)
            acc.v[i] = 0.0f;
        if (in.identity)
            for (int i = 0; i < V; i++)
                acc.v[i] = __fmul_rn(
                    in.identity[t],
                    in.x[static_cast<uint64_t>(t) * in.hidden + h + i]);
        for (uint32_t k = 0; k < in.n_cols; k++) {
            if (k == in.scaled_cols)
                for (int i = 0; i < V; i++)
                    acc.v[i] = __fmul_rn(acc.v[i], c.scale);
            if (in.slots[at + k] < 0)
                continue;
            float w = in.weights[at + k];
            floats<V> y = *reinterpret_cast<const floats<V> *>(
                in.y + (at + k) * in.hidden + h);
            for (int i = 0; i < V; i++)
                acc.v[i] = __fadd_rn(acc.v[i], __fmul_rn(w, y.v[i]));
        }
        if (in.scaled_cols == in.n_cols)
            for (int i = 0; i < V; i++)
                acc.v[i] = __fmul_rn(acc.v[i], c.scale);
        *reinterpret_cast<floats<V> *>(
            c.out + static_cast<uint64_t>(t) * in.hidden + h) = acc;
    }
}

moec_status moec_cuda_combine(uint32_t ordinal, const moec_combine_in *in,
                              float *out, const moec_launch *launch,
                              moec_error *err)
{
    moec_on_device on(ordinal);
    cudaStream_t s = moec_stream(launch);
    combiner c = {*in, out, in->scale == 0.0f ? 1.0f : in->scale};
    uintptr_t low = reinterpret_cast<uintptr_t>(in->y) |
                    reinterpret_cast<uintptr_t>(out);
    uint32_t rows = in->n_tokens < 65535 ? in->n_tokens : 65535u;

    if (in->hidden == 0 || in->scaled_cols > in->n_cols)
        return moec_cuda_fail(err, MOEC_E_ARG,
                              "combine: %u columns, %u of them scaled, of %u "
                              "elements",
                              in->n_cols, in->scaled_cols, in->hidden);
    if (in->n_tokens == 0)
        return MOEC_OK;
    if (in->hidden % 4 == 0 && low % 16 == 0)
        MOEC_LAUNCH_KERNEL(combine_rows<4>,
                           dim3(moec_blocks(in->hidden, 256 * 4), rows), 256,
                           0, s, c);
    else
        MOEC_LAUNCH_KERNEL(combine_rows<1>,
                           dim3(moec_blocks(in->hidden, 256), rows), 256, 0, s,
                           c);
    return moec_cuda_launched("combine", err);
}
