// SPDX-License-Identifier: Apache-2.0
//
// moec_matmul and moec_ffn on the device: what they launch. Equal to
// kernels/matrix.c and kernels/ffn.c: EXACT bit for bit, FAST as near as
// bf16 inputs and activations allow.
//
// Three launches, of a geometry that depends on bounds alone: `gather` packs
// the columns' inputs in order of slot_first and lists the pieces (columns of
// one expert); the product with w13 and the activation; the product with w2.
// The products walk pieces times tiles of rows from the device's own list, so
// that nothing is decided on the host and a captured graph serves any routing.
//
// What the host cannot check is bounded where it is used: a slot_first that
// falls or exceeds n_columns_max has no columns there, an entry of `sorted`
// past the last column gives zeros and writes nothing.

#include "ffn.cuh"

#define GATHER_THREADS 256u
#define GATHER_BLOCKS  2048u

struct gatherer {
    const uint64_t *slot_first;
    const uint32_t *sorted;
    uint32_t n_rows, piece_columns, n_cols, hidden, inter;
    uint64_t n_max, n_columns, pieces_max;
    const void *x;
    int x_dtype;
    const float *weights; // NULL: not on the input
    bool fast;
    uint32_t x_order, h_order;
    uint64_t x_pitch, h_pitch;
    void *to, *h;
    moec_piece *pieces;
    uint32_t *n_pieces;
};

// Columns of expert e, and where they begin.
__device__ static uint64_t run_of(const gatherer &g, uint32_t e,
                                  uint64_t *first)
{
    uint64_t base = g.slot_first[0], lo = g.slot_first[e],
             hi = g.slot_first[e + 1];

    *first = lo - base;
    if (lo < base || hi < lo || hi - base > g.n_max)
        return 0;
    return hi - lo;
}

// One block: each thread lists the pieces of some adjacent experts, behind
// those of the threads before it.
__device__ static void list_pieces(const gatherer &g)
{
    __shared__ uint32_t before[GATHER_THREADS];
    uint32_t each = (g.n_rows + GATHER_THREADS - 1) / GATHER_THREADS;
    uint32_t lo = threadIdx.x * each, hi = lo + each, at = 0;
    uint64_t first;

    if (hi > g.n_rows)
        hi = g.n_rows;
    for (uint32_t e = lo; e < hi; e++)
        at += static_cast<uint32_t>(
            (run_of(g, e, &first) + g.piece_columns - 1) / g.piece_columns);
    before[threadIdx.x] = at;
    __syncthreads();
    for (uint32_t d = 1; d < GATHER_THREADS; d *= 2) {
        uint32_t other = threadIdx.x >= d ? before[threadIdx.x - d] : 0;

        __syncthreads();
        before[threadIdx.x] += other;
        __syncthreads();
    }
    at = before[threadIdx.x] - at;
    for (uint32_t e = lo; e < hi; e++) {
        uint64_t n = run_of(g, e, &first);

        for (; n > 0 && at < g.pieces_max; at++) {
            moec_piece s;

            s.expert = e;
            s.n = static_cast<uint32_t>(n < g.piece_columns ? n
                                                            : g.piece_columns);
            s.first = first;
            g.pieces[at] = s;
            first += s.n;
            n -= s.n;
        }
    }
    if (threadIdx.x == GATHER_THREADS - 1)
        *g.n_pieces = before[threadIdx.x] < g.pieces_max
                          ? before[threadIdx.x]
                          : static_cast<uint32_t>(g.pieces_max);
}

__device__ static void pack(const gatherer &g, uint64_t at)
{
    uint32_t column = g.sorted[at];
    bool real = column < g.n_columns;
    uint64_t token = real ? column / g.n_cols : 0;
    float weight = real && g.weights ? g.weights[column] : 1.0f;

    for (uint64_t i = threadIdx.x; i < g.x_pitch; i += blockDim.x) {
        float v = 0.0f;

        if (real && i < g.hidden)
            v = moec_scalar(g.x_dtype, g.x, token * g.hidden + i);
        if (g.weights)
            v = __fmul_rn(v, weight);
        if (g.fast)
            moec_store<MOEC_DTYPE_BF16>(
                g.to, at * g.x_pitch + moec_ordered(g.x_order, i), v);
        else
            static_cast<float *>(g.to)[at * g.x_pitch + i] = v;
    }
    // What the first phase does not write of h, and the second reads.
    if (g.fast)
        for (uint64_t i = g.inter + threadIdx.x; i < g.h_pitch; i += blockDim.x)
            static_cast<uint16_t *>(
                g.h)[at * g.h_pitch + moec_ordered(g.h_order, i)] = 0;
}

__global__ void __launch_bounds__(GATHER_THREADS) gather(gatherer g)
{
    uint64_t base = g.slot_first[0], n = g.slot_first[g.n_rows];

    n = n < base ? 0 : n - base;
    if (n > g.n_max)
        n = g.n_max;
    g.sorted += base;
    if (blockIdx.x == 0)
        list_pieces(g);
    else
        for (uint64_t at = blockIdx.x - 1; at < n; at += gridDim.x - 1)
            pack(g, at);
}

// ------------------------------------------------------------------- host

void moec_device_shape(uint32_t *multiprocessors, uint32_t *shared)
{
    int device = 0, n = 0, bytes = 0;

    (void)cudaGetDevice(&device);
    (void)cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device);
    (void)cudaDeviceGetAttribute(
        &bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    *multiprocessors = n > 0 ? static_cast<uint32_t>(n) : 1;
    *shared = bytes > 0 ? static_cast<uint32_t>(bytes) : 48u << 10;
}

static uint64_t padded(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

// Where things lie in the workspace.
struct layout {
    uint64_t pieces_max, x_pitch, h_pitch;
    uint64_t pieces_at, x_at, h_at, bytes;
};

// False where no number holds it.
static bool lay_out(const moec_ffn_config *c, uint64_t n, uint32_t n_rows,
                    layout *l)
{
    bool fast = c->precision == MOEC_PRECISION_FAST;
    uint64_t element = fast ? 2 : 4, pad = fast ? MOEC_FAST_PAD : 1;
    uint64_t per, row;

    per = fast ? MOEC_FAST_COLUMNS : MOEC_EXACT_COLUMNS;
    l->pieces_max = n / per + (n < n_rows ? n : n_rows);
    l->x_pitch = padded(c->hidden, pad);
    l->h_pitch = padded(c->inter, pad);
    row = (l->x_pitch + l->h_pitch) * element + sizeof(moec_piece);
    if (n > (UINT64_MAX >> 8) / (row + sizeof(moec_piece)))
        return false;
    l->pieces_at = 256;
    l->x_at = padded(l->pieces_at + l->pieces_max * sizeof(moec_piece), 256);
    l->h_at = padded(l->x_at + n * l->x_pitch * element, 256);
    l->bytes = padded(l->h_at + n * l->h_pitch * element, 256);
    return true;
}

uint64_t moec_cuda_ffn_workspace(const moec_ffn_config *config,
                                 uint64_t n_columns_max, uint32_t n_rows)
{
    layout l;

    if (n_columns_max == 0)
        return 0;
    return lay_out(config, n_columns_max, n_rows, &l) ? l.bytes : UINT64_MAX;
}

// The tiles of a matrix: gate and up side by side, or all rows.
static void tile_rows(moec_phase *p, const moec_ffn_config *c)
{
    p->within[1] = 16;
    p->limit = p->m.n_out;
    p->step = MOEC_TILE_OUT;
    if (p->kind == MOEC_PHASE_GATED) {
        p->half[c->up_first ? 0 : 1] = c->inter;
        p->within[1] = 0;
        p->limit = c->inter;
        p->step = MOEC_TILE_OUT / 2;
    }
    p->n_tiles = moec_blocks(p->limit, p->step);
}

moec_status moec_cuda_matmul(uint32_t ordinal, const moec_matrix *m,
                             uint32_t index, const float *x, uint64_t x_stride,
                             uint32_t n_tokens, float *out, uint64_t out_stride,
                             const moec_launch *launch, moec_error *err)
{
    moec_on_device on(ordinal);
    uint64_t units;
    moec_phase p = {};
    moec_status st = moec_dmat_of(m, "matrix", &p.m, err);

    if (st != MOEC_OK)
        return st;
    p.kind = MOEC_PHASE_MATMUL;
    p.x = x;
    p.x_pitch = x_stride;
    p.out = out;
    p.out_pitch = out_stride;
    p.index = index;
    p.n_tokens = n_tokens;
    tile_rows(&p, nullptr);
    units = static_cast<uint64_t>(p.n_tiles) *
            moec_blocks(n_tokens, MOEC_EXACT_COLUMNS);
    moec_product_exact(p, units < 65536 ? static_cast<uint32_t>(units) : 65536u,
                       moec_stream(launch));
    return moec_cuda_launched("matmul", err);
}

static moec_status check_workspace(const moec_launch *l, uint64_t need,
                                   moec_error *err)
{
    if (l->workspace && l->workspace_bytes >= need &&
        reinterpret_cast<uintptr_t>(l->workspace) % 256 == 0)
        return MOEC_OK;
    return moec_cuda_fail(err, MOEC_E_ARG,
                          "ffn: a workspace of %llu bytes, %llu at 256 are "
                          "needed",
                          static_cast<unsigned long long>(l->workspace_bytes),
                          static_cast<unsigned long long>(need));
}

static void launch_gather(const moec_ffn_config *c, const moec_ffn_in *in,
                          uint64_t n, const layout &l, const moec_phase &p13,
                          const moec_phase &p2, cudaStream_t s)
{
    uint64_t blocks = n < GATHER_BLOCKS ? n : GATHER_BLOCKS;
    gatherer g = {};

    g.slot_first = in->slot_first;
    g.sorted = in->sorted;
    g.n_rows = in->n_rows;
    g.fast = c->precision == MOEC_PRECISION_FAST;
    g.piece_columns = g.fast ? MOEC_FAST_COLUMNS : MOEC_EXACT_COLUMNS;
    g.n_cols = in->n_cols;
    g.hidden = c->hidden;
    g.inter = c->inter;
    g.n_max = n;
    g.n_columns = static_cast<uint64_t>(in->n_tokens) * in->n_cols;
    g.pieces_max = l.pieces_max;
    g.x = in->x;
    g.x_dtype = in->x_dtype;
    g.weights = c->weight_on_input ? in->weights : nullptr;
    g.x_order = moec_fast_order(p13.m);
    g.h_order = p13.h_order;
    g.x_pitch = l.x_pitch;
    g.h_pitch = l.h_pitch;
    g.to = const_cast<void *>(p13.x);
    g.h = const_cast<void *>(p2.x);
    g.pieces = const_cast<moec_piece *>(p13.pieces);
    g.n_pieces = const_cast<uint32_t *>(p13.n_pieces);
    MOEC_LAUNCH_KERNEL(gather, static_cast<uint32_t>(blocks + 1),
                       GATHER_THREADS, 0, s, g);
}

moec_status moec_cuda_ffn(uint32_t ordinal, const moec_ffn_config *config,
                          const moec_ffn_in *in, uint64_t n_columns_max,
                          float *y, const moec_launch *launch, moec_error *err)
{
    moec_on_device on(ordinal);
    cudaStream_t s = moec_stream(launch);
    uint8_t *ws = static_cast<uint8_t *>(launch->workspace);
    uint64_t columns = static_cast<uint64_t>(in->n_tokens) * in->n_cols;
    moec_phase p13 = {}, p2 = {};
    uint32_t blocks, shared;
    layout l = {};
    moec_status st;

    if (!lay_out(config, n_columns_max, in->n_rows, &l))
        l.bytes = UINT64_MAX;
    if ((st = check_workspace(launch, l.bytes, err)) != MOEC_OK ||
        (st = moec_dmat_of(in->w13, "w13", &p13.m, err)) != MOEC_OK ||
        (st = moec_dmat_of(in->w2, "w2", &p2.m, err)) != MOEC_OK)
        return st;
    p13.kind = config->gated ? MOEC_PHASE_GATED : MOEC_PHASE_PLAIN;
    p13.act = moec_activation_of(config);
    p13.n_pieces = reinterpret_cast<const uint32_t *>(ws);
    p13.pieces = reinterpret_cast<const moec_piece *>(ws + l.pieces_at);
    p13.x = ws + l.x_at;
    p13.x_pitch = l.x_pitch;
    p13.h = ws + l.h_at;
    p13.h_pitch = l.h_pitch;
    p13.h_order = moec_fast_order(p2.m);
    p2.kind = MOEC_PHASE_OUT;
    p2.n_pieces = p13.n_pieces;
    p2.pieces = p13.pieces;
    p2.x = p13.h;
    p2.x_pitch = l.h_pitch;
    p2.out = y;
    p2.out_pitch = config->hidden;
    p2.columns = in->sorted;
    p2.slot_first = in->slot_first;
    p2.n_columns = columns;
    tile_rows(&p13, config);
    tile_rows(&p2, config);
    launch_gather(config, in, n_columns_max, l, p13, p2, s);
    if (config->precision == MOEC_PRECISION_FAST) {
        moec_product_fast(p13, s);
        moec_product_fast(p2, s);
    } else {
        moec_device_shape(&blocks, &shared);
        moec_product_exact(p13, blocks * 4, s);
        moec_product_exact(p2, blocks * 4, s);
    }
    return moec_cuda_launched("ffn", err);
}
