// SPDX-License-Identifier: Apache-2.0
//
// moec_dispatch on the device, for ids of a custom router or of Expert Choice:
// remap, shared columns, identity, counts, waterfill. Equal to
// kernels/dispatch.c.
//
// dispatch_rows: a warp a row (grid-stride), ids and weights of the row in
// shared memory first, so that the outputs may be the inputs. With waterfill
// DYNAMIC each block makes the plan for itself: W numbers. STATIC needs the
// counts of all rows: fill_rows is a node behind, a thread a row.
// clear_counts is the node before, where counts are wanted: nothing in a grid
// could zero them for all blocks without waiting for the others.

#include "dispatch_row.cuh"

#define WARPS   8u
#define THREADS (WARPS * 32u)

__global__ void __launch_bounds__(THREADS) clear_counts(moec_dispatch_args d)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;

    if (d.slot_counts && i < d.n_slots)
        d.slot_counts[i] = 0;
    if (d.rank_counts && i < d.map.topology.n_ranks)
        d.rank_counts[i] = 0;
    if (d.rank_loads && i < d.map.topology.n_ranks)
        d.rank_loads[i] = 0;
}

void moec_dispatch_clear(moec_dispatch_args *d, uint32_t blocks,
                         cudaStream_t s)
{
    d->alone = blocks == 1 && d->counts_in_block;
    if (!d->alone && moec_counters_words(*d) != 0) // W <= P
        MOEC_LAUNCH_KERNEL(clear_counts, moec_blocks(d->n_slots, THREADS),
                           THREADS, 0, s, *d);
}

// -------------------------------------------------------------- waterfill

__global__ void __launch_bounds__(THREADS) fill_rows(const __grid_constant__ moec_dispatch_args d)
{
    MOEC_DYNAMIC_SHARED(uint64_t, wide);
    __shared__ moec_fill_plan plan;
    moec_dispatch_block b = {};
    const moec_topology &topo = d.map.topology;
    uint32_t step = gridDim.x * blockDim.x, n_ranks = topo.n_ranks;
    uint32_t *moved = reinterpret_cast<uint32_t *>(wide + 3 * n_ranks);

    if (threadIdx.x < 32)
        moec_fill_plan_make(&plan, wide, d, d.rank_loads);
    for (uint32_t r = threadIdx.x; r < n_ranks; r += blockDim.x)
        moved[r] = 0;
    __syncthreads();
    b.plan = &plan;
    for (uint32_t t = blockIdx.x * blockDim.x + threadIdx.x; t < d.n_tokens;
         t += step) {
        int32_t *slots = d.slots + static_cast<uint64_t>(t) * d.n_cols;
        uint32_t best;

        if (slots[d.top_k] < 0)
            continue;
        best = moec_fill_best(b, d, t, nullptr); // of all ranks: no collective
        for (uint32_t s = 0; s < topo.n_shared_slots; s++)
            slots[d.top_k + s] =
                static_cast<int32_t>(moec_shared_first(topo, best) + s);
        (void)atomicAdd(&moved[best], 1u);
    }
    __syncthreads();
    for (uint32_t r = threadIdx.x; r < n_ranks; r += blockDim.x) {
        uint32_t n = moved[r];

        if (n == 0)
            continue;
        if (d.rank_counts)
            (void)atomicAdd(&d.rank_counts[r], n * topo.n_shared_slots);
        for (uint32_t s = 0; d.slot_counts && s < topo.n_shared_slots; s++)
            (void)atomicAdd(&d.slot_counts[moec_shared_first(topo, r) + s], n);
    }
}

void moec_dispatch_fill(const moec_dispatch_args &d, cudaStream_t s)
{
    uint32_t blocks = moec_blocks(d.n_tokens, THREADS);
    uint64_t shared = d.map.topology.n_ranks * (3 * 8ull + 4);

    if (d.waterfill.mode == MOEC_WATERFILL_STATIC && d.n_tokens != 0)
        MOEC_LAUNCH_KERNEL(fill_rows, blocks < 256 ? blocks : 256u, THREADS,
                           shared, s, d);
}

// ------------------------------------------------------------------- rows

struct dispatcher {
    moec_dispatch_args d;
    const int32_t *ids;
    const float *weights;
    const uint32_t *on_device;
    uint32_t n_valid;
};

struct row_of_warp {
    int32_t ids[MOEC_TOP_K_MAX];
    float weights[MOEC_TOP_K_MAX];
};

__global__ void __launch_bounds__(THREADS) dispatch_rows(const __grid_constant__ dispatcher j)
{
    MOEC_DYNAMIC_SHARED(unsigned char, shared);
    __shared__ row_of_warp rows[WARPS];
    row_of_warp &w = rows[threadIdx.x / 32];
    uint32_t lane = threadIdx.x % 32;
    uint32_t valid = moec_n_valid(j.on_device, j.n_valid, j.d.n_tokens);
    moec_dispatch_block b;

    moec_dispatch_begin<true>(j.d, shared, &b);
    for (uint32_t t = blockIdx.x * WARPS + threadIdx.x / 32; t < j.d.n_tokens;
         t += gridDim.x * WARPS) {
        uint64_t at = static_cast<uint64_t>(t) * j.d.n_cols;

        for (uint32_t k = lane; k < j.d.top_k; k += 32) {
            w.ids[k] = t < valid ? j.ids[at + k] : -1;
            w.weights[k] = t < valid ? j.weights[at + k] : 0.0f;
        }
        __syncwarp();
        moec_dispatch_row<true>(j.d, b, t, w.ids, w.weights,
                                j.weights + at + j.d.top_k);
        __syncwarp();
    }
    moec_dispatch_end(j.d, b);
}

// -------------------------------------------------------------- host side

static moec_status check_topology(const moec_topology *t, moec_error *err)
{
    uint64_t slots = t->n_physical;

    slots += t->shared_global
                 ? t->n_shared_slots
                 : static_cast<uint64_t>(t->n_shared_slots) * t->n_ranks;
    if (t->n_physical == 0 || t->n_ranks == 0 || slots > MOEC_SLOTS_MAX ||
        static_cast<uint64_t>(t->n_ranks) * t->n_local != t->n_physical)
        return moec_cuda_fail(err, MOEC_E_ARG,
                              "topology: %u physical slots on %u ranks of %u, "
                              "%u shared",
                              t->n_physical, t->n_ranks, t->n_local,
                              t->n_shared_slots);
    return MOEC_OK;
}

// What is added to a row number before the modulo; no rule: 2^32.
static uint64_t row_offset(const moec_dispatch_map *map)
{
    uint64_t row = map->row0;

    switch (map->rule) {
    case MOEC_REPLICA_TABLE:
        return 0;
    case MOEC_REPLICA_ROW:
        return row;
    case MOEC_REPLICA_ROW_LAYER:
        return row + map->layer;
    case MOEC_REPLICA_ROW_RANK_LAYER:
        return row + map->layer + map->rank;
    }
    return 1ull << 32;
}

static moec_status check_map(const moec_dispatch_map *map, uint32_t n_tokens,
                             uint32_t top_k, moec_error *err)
{
    const moec_topology *t = &map->topology;
    bool table = map->rule == MOEC_REPLICA_TABLE;

    if (map->struct_bytes < sizeof(*map))
        return moec_cuda_fail(err, MOEC_E_ARG, "dispatch map: struct_bytes %u",
                              map->struct_bytes);
    if (check_topology(t, err) != MOEC_OK)
        return MOEC_E_ARG;
    if (map->rank >= t->n_ranks || map->n_experts == 0 ||
        map->n_experts > t->n_physical)
        return moec_cuda_fail(err, MOEC_E_ARG,
                              "dispatch map: rank %u of %u, %u experts in %u "
                              "physical slots",
                              map->rank, t->n_ranks, map->n_experts,
                              t->n_physical);
    if (top_k == 0 || top_k > MOEC_TOP_K_MAX)
        return moec_cuda_fail(err, MOEC_E_ARG,
                              "dispatch: top_k %u, not 1 to %u", top_k,
                              MOEC_TOP_K_MAX);
    if (row_offset(map) > UINT32_MAX - n_tokens)
        return moec_cuda_fail(err, MOEC_E_ARG,
                              "dispatch map: rule %d with row0 %u, layer %u "
                              "and rank %u: no such rule, or past 2^32",
                              static_cast<int>(map->rule), map->row0,
                              map->layer, map->rank);
    if (table ? !map->table : !map->cand_first || !map->cand)
        return moec_cuda_fail(err, MOEC_E_ARG,
                              "dispatch map: no %s, but its rule is %d",
                              table ? "table" : "candidates",
                              static_cast<int>(map->rule));
    return MOEC_OK;
}

static moec_status check_waterfill(const moec_topology *t,
                                   const moec_waterfill *w, moec_error *err)
{
    if (t->n_ranks > MOEC_WATERFILL_MAX)
        return moec_cuda_fail(err, MOEC_E_UNSUPPORTED,
                              "waterfill: %u ranks, more than %u", t->n_ranks,
                              MOEC_WATERFILL_MAX);
    if (static_cast<unsigned>(w->mode) > MOEC_WATERFILL_DYNAMIC)
        return moec_cuda_fail(err, MOEC_E_ARG, "waterfill: mode %d",
                              static_cast<int>(w->mode));
    if (w->mode == MOEC_WATERFILL_DYNAMIC && (!w->routed || !w->tokens))
        return moec_cuda_fail(err, MOEC_E_ARG,
                              "waterfill: DYNAMIC without %s",
                              w->routed ? "tokens" : "routed counts");
    if (t->shared_global && t->n_shared_slots)
        return moec_cuda_fail(err, MOEC_E_UNSUPPORTED,
                              "waterfill: slots of shared experts that are "
                              "global name no rank");
    return MOEC_OK;
}

static moec_status check_out(const moec_dispatch_out *out, uint32_t n_tokens,
                             moec_error *err)
{
    if (!out || out->struct_bytes < sizeof(*out) ||
        (n_tokens && (!out->slots || !out->weights)))
        return moec_cuda_fail(err, MOEC_E_ARG,
                              "dispatch: out, slots or weights is NULL, or "
                              "struct_bytes too small");
    return MOEC_OK;
}

// Loads of STATIC waterfill; the other modes need none.
uint64_t moec_cuda_dispatch_workspace(const moec_dispatch_map *map, uint32_t)
{
    return map ? map->topology.n_ranks * sizeof(uint32_t) : 0;
}

static moec_status take_workspace(moec_dispatch_args *d,
                                  const moec_launch *launch, moec_error *err)
{
    uint64_t need = moec_cuda_dispatch_workspace(&d->map, 0);

    if (d->waterfill.mode != MOEC_WATERFILL_STATIC)
        return MOEC_OK;
    if (!launch->workspace || launch->workspace_bytes < need)
        return moec_cuda_fail(err, MOEC_E_ARG,
                              "dispatch: a workspace of %llu bytes, %llu are "
                              "needed",
                              static_cast<unsigned long long>(
                                  launch->workspace_bytes),
                              static_cast<unsigned long long>(need));
    d->rank_loads = static_cast<uint32_t *>(launch->workspace);
    return MOEC_OK;
}

moec_status moec_dispatch_args_make(moec_dispatch_args *d,
                                    const moec_dispatch_map *map,
                                    const moec_waterfill *waterfill,
                                    const moec_dispatch_out *out,
                                    uint32_t n_tokens, uint32_t top_k,
                                    const moec_launch *launch, moec_error *err)
{
    const moec_topology *t = &map->topology;
    moec_status st = check_map(map, n_tokens, top_k, err);

    if (st == MOEC_OK && waterfill && waterfill->mode != MOEC_WATERFILL_OFF)
        st = check_waterfill(t, waterfill, err);
    if (st == MOEC_OK)
        st = check_out(out, n_tokens, err);
    if (st != MOEC_OK)
        return st;
    *d = {};
    d->map = *map;
    if (waterfill && t->n_shared_slots)
        d->waterfill = *waterfill;
    d->slots = out->slots;
    d->weights = out->weights;
    d->identity = out->identity;
    d->slot_counts = out->slot_counts;
    d->rank_counts = out->rank_counts;
    d->by_local = moec_divider(t->n_local);
    d->gap = t->shared_global ? 0 : t->n_shared_slots;
    d->n_slots = t->n_physical +
                 (t->shared_global ? 1 : t->n_ranks) * t->n_shared_slots;
    d->row_base = static_cast<uint32_t>(row_offset(map));
    d->top_k = top_k;
    d->n_cols = top_k + t->n_shared_slots;
    d->n_tokens = n_tokens;
    return take_workspace(d, launch, err);
}

moec_status moec_cuda_dispatch(uint32_t ordinal, const moec_dispatch_map *map,
                               const moec_waterfill *waterfill,
                               const int32_t *ids, const float *weights,
                               uint32_t n_tokens, uint32_t n_valid,
                               uint32_t top_k, const moec_dispatch_out *out,
                               const moec_launch *launch, moec_error *err)
{
    moec_on_device on(ordinal);
    cudaStream_t s = moec_stream(launch);
    uint32_t blocks = moec_blocks(n_tokens, WARPS);
    dispatcher j = {};
    uint64_t shared;
    moec_status st;

    if (!map)
        return moec_cuda_fail(err, MOEC_E_ARG, "dispatch: map is NULL");
    st = moec_dispatch_args_make(&j.d, map, waterfill, out, n_tokens, top_k,
                                 launch, err);
    if (st != MOEC_OK)
        return st;
    if (n_valid > n_tokens || (n_tokens && (!ids || !weights)))
        return moec_cuda_fail(err, MOEC_E_ARG,
                              "dispatch: %u valid rows of %u, or ids or "
                              "weights is NULL",
                              n_valid, n_tokens);
    j.ids = ids;
    j.weights = weights;
    j.on_device = launch->n_valid;
    j.n_valid = n_valid;
    shared = moec_dispatch_shared(&j.d, WARPS);
    moec_dispatch_clear(&j.d, blocks, s);
    if (n_tokens == 0)
        return moec_cuda_launched("dispatch", err);
    if (shared > 40 << 10) // beside the rows
        (void)cudaFuncSetAttribute(dispatch_rows,
                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared));
    MOEC_LAUNCH_KERNEL(dispatch_rows, blocks < 1024 ? blocks : 1024u, THREADS,
                       shared, s, j);
    moec_dispatch_fill(j.d, s);
    return moec_cuda_launched("dispatch", err);
}
