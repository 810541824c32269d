// SPDX-License-Identifier: Apache-2.0
//
// The fast product of the expert FFN: weights as they are stored, activations
// in bf16, float32 sums on the tensor cores. Near moec_product_exact, not
// equal to it; a column's result does not depend on the other columns.
//
// A decode step reads every weight of the experts in use once and does next
// to nothing with it: what counts is bytes in flight. So every warp is on its
// own, without a barrier: it walks units of 32 output rows (two m16 tiles) and
// up to 16 columns (two n8 tiles, the second skipped where it has none) over a
// fixed grid, and keeps STAGES chunks of 32 rows times 128 bytes in flight by
// cp.async into its own part of shared memory, across units. Twelve warps of a
// multiprocessor have 192 KiB under way; 40 KiB are what latency times
// bandwidth asks for on an H200.
//
// Lane 4g + q decodes eight adjacent k of rows g and g + 8: 32 k of a row a
// quad, the a fragments of two products. Values become bf16 without their
// scale, exactly; the scale multiplies float32 sums at the end of its group of
// 32, 64, 128 or more k. So weights are not rounded at all. What does not fit
// (ragged blocks, rows not at multiples of 16 bytes, f16, f32, nvfp4, AWQ,
// GPTQ) is decoded by moec_decode8 and split into two bf16, 16 bits of its
// significand, and reads memory without staging: right, and slower.
//
// Activations and scales are read a step of 32 k before they are used: their
// latency, of the second-level cache, would else be met in every step.
//
// E2M1 becomes bf16 by placing exponent and mantissa where bf16 has its own
// and one multiplication by a power of two, which also makes its denormal
// right.

#include <cmath>

#include "ffn.cuh"
#include "tensor.cuh"

#define WARPS   4u
#define THREADS (WARPS * 32u)
#define STAGES  4
#define N_TILES 2 // of eight columns
#define CHUNK   128u // bytes of a row
#define STAGE   (MOEC_TILE_OUT * CHUNK)
#define SHARED  (WARPS * STAGES * STAGE)
// A block an SM has beside others costs it 1 KiB more.
#define SHARED_COST (SHARED + 1024u)

// What the kernel wants to know besides the phase.
struct fast_params {
    uint32_t n_chunks;
    uint32_t group_shift; // steps of 32 k to a scale, log2
};

// --------------------------------------------------------------- decoders
// load(): eight adjacent values of a row from a stage, as four pairs in the
// order that ORDER says. swizzle(): what a row's 16-byte parts are permuted
// by, so that a warp's reads hit all banks once.

struct decode_bf16 {
    static const bool STAGED = true, SCALED = false, ZEROS = false;
    static const int STEPS = 2, GROUP = 2, PARTS = 1;
    static const int SCALE = MOEC_DTYPE_F32;
    static const uint32_t ORDER = MOEC_ORDER_PLAIN;

    __device__ static uint32_t swizzle(uint32_t row)
    {
        return (row & 1u) << 2;
    }
    __device__ static void load(const uint8_t *row, uint32_t swizzled,
                                uint32_t step, uint32_t q, uint32_t,
                                uint32_t v[4])
    {
        uint4 w = *reinterpret_cast<const uint4 *>(
            row + ((4 * step + q) ^ swizzled) * 16);

        v[0] = w.x;
        v[1] = w.y;
        v[2] = w.z;
        v[3] = w.w;
    }
};

// G: steps to a scale at least, 1 or 4; S: the dtype of scales.
template <int S, int G> struct decode_e4m3 {
    static const bool STAGED = true, SCALED = true, ZEROS = false;
    static const int STEPS = 4, GROUP = G, PARTS = 1, SCALE = S;
    static const uint32_t ORDER = MOEC_ORDER_PLAIN;

    __device__ static uint32_t swizzle(uint32_t row)
    {
        return (row & 3u) << 1;
    }
    __device__ static void load(const uint8_t *row, uint32_t swizzled,
                                uint32_t step, uint32_t q, uint32_t,
                                uint32_t v[4])
    {
        uint2 w = *reinterpret_cast<const uint2 *>(
            row + ((2 * step + q / 2) ^ swizzled) * 16 + q % 2 * 8);

        v[0] = moec_bf16_of_e4m3(w.x);
        v[1] = moec_bf16_of_e4m3(w.x >> 16);
        v[2] = moec_bf16_of_e4m3(w.y);
        v[3] = moec_bf16_of_e4m3(w.y >> 16);
    }
};

#define BF16X2_2_126 0x7e807e80u // 2^126 twice
#define BF16X2_ONE   0x3f803f80u
#define BF16X2_NIL   0x80008000u // -0: adding it changes nothing

// Nibbles: pairs are 0 4, 1 5, 2 6, 3 7.
struct decode_4bit {
    static const bool STAGED = true, SCALED = true;
    static const int STEPS = 8, GROUP = 1, PARTS = 1;
    static const uint32_t ORDER = 0x75316420u;

    __device__ static uint32_t swizzle(uint32_t row)
    {
        return row & 7u;
    }
    __device__ static uint32_t word(const uint8_t *row, uint32_t swizzled,
                                    uint32_t step, uint32_t q)
    {
        return *reinterpret_cast<const uint32_t *>(row + (step ^ swizzled) * 16 +
                                                   q * 4);
    }
};

struct decode_e2m1 : decode_4bit {
    static const bool ZEROS = false;
    static const int SCALE = MOEC_DTYPE_F8_E8M0;

    __device__ static void load(const uint8_t *row, uint32_t swizzled,
                                uint32_t step, uint32_t q, uint32_t,
                                uint32_t v[4])
    {
        uint32_t w = word(row, swizzled, step, q), u = w >> 8;

        // Sign to bit 15, the other three bits to 8, 7, 6.
        v[0] = (w & 0x000f000fu) * 64u + (w & 0x00080008u) * 4032u;
        v[1] = (w & 0x00f000f0u) * 4u + (w & 0x00800080u) * 252u;
        v[2] = (u & 0x000f000fu) * 64u + (u & 0x00080008u) * 4032u;
        v[3] = (u & 0x00f000f0u) * 4u + (u & 0x00800080u) * 252u;
        for (int i = 0; i < 4; i++)
            v[i] = moec_bf16_fma(v[i], BF16X2_2_126, BF16X2_NIL);
    }
};

template <int S> struct decode_int4 : decode_4bit {
    static const bool ZEROS = true;
    static const int SCALE = S;

    // `zero` is -(128 + zero point) twice.
    __device__ static void load(const uint8_t *row, uint32_t swizzled,
                                uint32_t step, uint32_t q, uint32_t zero,
                                uint32_t v[4])
    {
        uint32_t w = decode_4bit::word(row, swizzled, step, q);

        for (int i = 0; i < 4; i++) // 128 + the nibble, less 128 + zero
            v[i] = moec_bf16_fma((w >> (4 * i) & 0x000f000fu) | 0x43004300u,
                                 BF16X2_ONE, zero);
    }
};

struct decode_any {
    static const bool STAGED = false, SCALED = false, ZEROS = false;
    static const int STEPS = 1, GROUP = 1, PARTS = 2;
    static const int SCALE = MOEC_DTYPE_F32;
    static const uint32_t ORDER = MOEC_ORDER_PLAIN;

    __device__ static uint32_t swizzle(uint32_t)
    {
        return 0;
    }
    __device__ static void load(const uint8_t *, uint32_t, uint32_t, uint32_t,
                                uint32_t, uint32_t *)
    {
    }
};

// ----------------------------------------------------------------- stream

// What a warp copies next: a chunk of 32 rows of some unit, ahead of the one
// that it multiplies.
struct stream {
    uint64_t unit;
    uint32_t chunk;
    const uint8_t *data;             // of the unit's expert
    uint32_t row[MOEC_TILE_OUT / 4]; // bytes to each row that the lane copies
};

__device__ static void seek(const moec_phase &p, uint64_t n_units, stream *s)
{
    uint32_t tile;

    if (s->unit >= n_units)
        return;
    s->chunk = 0;
    tile = static_cast<uint32_t>(s->unit % p.n_tiles);
    s->data = p.m.data +
              p.pieces[s->unit / p.n_tiles].expert * p.m.data_stride;
    MOEC_UNROLL
    for (uint32_t i = 0; i < MOEC_TILE_OUT / 4; i++) {
        uint32_t row;

        (void)moec_phase_row(p, tile, threadIdx.x % 32 / 8 + 4 * i, &row);
        s->row[i] = row * static_cast<uint32_t>(p.m.row_bytes);
    }
}

// Begin the copy of a chunk to `stage`, and go to the next. A group is closed
// also where nothing is left, so that groups count stages.
template <class D>
__device__ static void fetch(const moec_phase &p, const fast_params &f,
                             uint64_t n_units, uint64_t step, uint8_t *stage,
                             stream *s)
{
    uint32_t r = threadIdx.x % 32 / 8, part = threadIdx.x % 8;

    if (s->unit < n_units) {
        uint32_t at = s->chunk * CHUNK + part * 16;
        uint32_t bytes = at < p.m.used_bytes ? p.m.used_bytes - at : 0;
        // Nothing is read of a part past the end, but its address must be one.
        const uint8_t *from = s->data + (bytes ? at : 0);

        bytes = bytes < 16 ? bytes : 16;
        MOEC_UNROLL
        for (uint32_t i = 0; i < MOEC_TILE_OUT / 4; i++)
            moec_copy16(stage + (r + 4 * i) * CHUNK +
                            (part ^ D::swizzle(r + 4 * (i % 2))) * 16,
                        from + s->row[i], bytes);
        if (++s->chunk == f.n_chunks) {
            s->unit += step;
            seek(p, n_units, s);
        }
    }
    moec_copy_commit();
}

// ---------------------------------------------------------------- product

struct sums {
    float at[2][N_TILES][4]; // [m16 tile][n8 tile][c fragment]
};

// The four rows of a lane, g and g + 8 of two tiles, and its columns, g of each
// n8 tile: where the piece has less, the last one again, whose products are
// dropped; so that nothing is asked in the loop.
struct lane_rows {
    uint32_t row[2][2];
    uint64_t scale[2][2], zero[2][2]; // first index of the row's
    const uint16_t *x[N_TILES];
};

// What a step of 32 k needs besides weights, read one step ahead.
struct ahead {
    uint4 b[N_TILES]; // lane 4g + q: eight k of column g of each tile
    float s[2][2];    // scales of the lane's rows
    uint32_t z[2][2]; // what INT4 adds
};

template <class D>
__device__ static void begin_rows(const moec_phase &p, const moec_dmat &m,
                                  const moec_piece &s, uint32_t tile,
                                  lane_rows *l)
{
    uint32_t g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;

    MOEC_UNROLL
    for (uint32_t j = 0; j < N_TILES; j++)
        l->x[j] = static_cast<const uint16_t *>(p.x) + q * 8 +
                  (s.first + (j * 8 + g < s.n ? j * 8 + g : s.n - 1)) *
                      p.x_pitch;
    MOEC_UNROLL
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t t = i / 2, h = i % 2;

        (void)moec_phase_row(p, tile, 16 * t + 8 * h + g, &l->row[t][h]);
        if (D::SCALED)
            l->scale[t][h] = moec_scale_row(m, l->row[t][h]);
        if (D::ZEROS && m.zeros)
            l->zero[t][h] = moec_zero_row(m, l->row[t][h]);
    }
}

template <class D>
__device__ static void read_scales(const moec_dmat &m, const fast_params &f,
                                   uint32_t step, const lane_rows &l, ahead *a)
{
    uint32_t sc = step >> f.group_shift;

    if (sc >= m.scale_cols) // zeros behind the end of the row
        sc = m.scale_cols - 1;
    MOEC_UNROLL
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t t = i / 2, h = i % 2;
        uint64_t at = l.scale[t][h] + sc;

        if constexpr (D::SCALE == MOEC_DTYPE_F8_E8M0)
            a->s[t][h] = moec_e8m0(m.scale[at]);
        else
            a->s[t][h] = moec_load<D::SCALE>(m.scale, at);
        if (D::ZEROS) {
            a->z[t][h] = 0xc308c308u; // -136
            if (m.zeros)
                a->z[t][h] =
                    0xc300c300u |
                    moec_zero_at(m, l.zero[t][h] + sc, l.row[t][h]) * 0x10001u;
        }
    }
}

// Read ahead for step `step` of the row.
template <class D>
__device__ static void look_ahead(const moec_dmat &m, const fast_params &f,
                                  uint32_t n_tiles, uint32_t step, bool scales,
                                  const lane_rows &l, ahead *a)
{
    MOEC_UNROLL
    for (uint32_t j = 0; j < N_TILES; j++)
        if (j == 0 || j < n_tiles)
            a->b[j] = *reinterpret_cast<const uint4 *>(l.x[j] + step * 32);
    if (D::SCALED && (D::GROUP == 1 || scales))
        read_scales<D>(m, f, step, l, a);
}

__device__ static void end_group(const float s[2][2], sums *group, sums *all)
{
    MOEC_UNROLL
    for (int i = 0; i < 2 * N_TILES * 4; i++) {
        int t = i / (N_TILES * 4), j = i / 4 % N_TILES, c = i % 4;

        all->at[t][j][c] =
            fmaf(group->at[t][j][c], s[t][c / 2], all->at[t][j][c]);
        group->at[t][j][c] = 0.0f;
    }
}

// The fragments of one tile and 32 k, and their products.
template <class D>
__device__ static void multiply(const moec_dmat &m, const uint8_t *stage,
                                uint32_t t, uint32_t step, uint32_t n_tiles,
                                const ahead &now, const lane_rows &l, sums *to)
{
    uint32_t g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    uint32_t v[D::PARTS][2][4];

    MOEC_UNROLL
    for (uint32_t h = 0; h < 2; h++) {
        if (D::STAGED) {
            uint32_t r = 16 * t + 8 * h + g;

            D::load(stage + r * CHUNK, D::swizzle(r), step % D::STEPS, q,
                    now.z[t][h], v[0][h]);
        } else {
            float x[8];

            moec_decode8(m, l.row[t][h], step * 32 + q * 8, x);
            MOEC_UNROLL
            for (int i = 0; i < 4; i++)
                moec_bf16_split(x[2 * i], x[2 * i + 1], &v[0][h][i],
                                &v[D::PARTS - 1][h][i]);
        }
    }
    MOEC_UNROLL
    for (int part = 0; part < D::PARTS; part++) {
        uint32_t a[2][4] = {
            {v[part][0][0], v[part][1][0], v[part][0][1], v[part][1][1]},
            {v[part][0][2], v[part][1][2], v[part][0][3], v[part][1][3]}};

        MOEC_UNROLL
        for (int j = 0; j < N_TILES; j++)
            if (j == 0 || j < static_cast<int>(n_tiles)) {
                moec_mma(to->at[t][j], a[0], now.b[j].x, now.b[j].y);
                moec_mma(to->at[t][j], a[1], now.b[j].z, now.b[j].w);
            }
    }
}

// A chunk; `now` is what its first step needs, and becomes the next one's.
template <class D>
__device__ static void multiply_chunk(const moec_dmat &m, const fast_params &f,
                                      uint32_t n_tiles, uint32_t chunk,
                                      const uint8_t *stage, const lane_rows &l,
                                      ahead *now, sums *group, sums *all)
{
    uint32_t first = chunk * D::STEPS;
    // Behind the last step the row's first is read again, for nothing.
    uint32_t behind = chunk + 1 < f.n_chunks ? first + D::STEPS : 0;

    MOEC_UNROLL
    for (uint32_t i = 0; i < D::STEPS; i++) {
        uint32_t after = i + 1 < D::STEPS ? first + i + 1 : behind;
        ahead next = *now;

        // Scales of a whole chunk are read when this one's have been used.
        if (D::GROUP == 1 || i + 1 < D::STEPS)
            look_ahead<D>(m, f, n_tiles, after, i + 1 == D::STEPS, l, &next);
        MOEC_UNROLL
        for (uint32_t t = 0; t < 2; t++)
            multiply<D>(m, stage, t, first + i, n_tiles, *now, l,
                        D::SCALED ? group : all);
        if (D::SCALED && (i + 1) % D::GROUP == 0)
            end_group(now->s, group, all);
        if (D::GROUP != 1 && i + 1 == D::STEPS)
            look_ahead<D>(m, f, n_tiles, after, i + 1 == D::STEPS, l, &next);
        *now = next;
    }
}

// ---------------------------------------------------------------- results

// One element of the result: `up` only where it has a gate.
__device__ static void store_one(const moec_phase &p, const moec_piece &s,
                                 uint32_t row, float value, float up,
                                 uint32_t column)
{
    uint64_t at = s.first + column, to;

    if (p.kind == MOEC_PHASE_OUT) {
        if (moec_phase_out(p, at, &to))
            p.out[to * p.out_pitch + row] = value;
        return;
    }
    value = p.kind == MOEC_PHASE_GATED ? moec_activate(p.act, value, up)
                                       : moec_activate(p.act, 0.0f, value);
    moec_store<MOEC_DTYPE_BF16>(
        p.h, at * p.h_pitch + moec_ordered(p.h_order, row - p.half[0]), value);
}

__device__ static void store(const moec_phase &p, const moec_dmat &m,
                             const moec_piece &s, uint32_t tile,
                             const lane_rows &l, const sums &all)
{
    uint32_t g = threadIdx.x % 32 / 4, q = threadIdx.x % 4, ignore;
    bool gated = p.kind == MOEC_PHASE_GATED;

    MOEC_UNROLL
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t t = i / 2, h = i % 2;
        float bias = moec_bias_at(m, l.row[t][h]), up_bias = 0.0f;

        if ((gated && t == 1) ||
            !moec_phase_row(p, tile, 16 * t + 8 * h + g, &ignore))
            continue;
        if (gated)
            up_bias = moec_bias_at(m, l.row[1][h]);
        MOEC_UNROLL
        for (uint32_t j = 0; j < N_TILES; j++)
            MOEC_UNROLL
            for (uint32_t c = 0; c < 2; c++)
                if (j * 8 + q * 2 + c < s.n)
                    store_one(p, s, l.row[t][h],
                              all.at[t][j][2 * h + c] + bias,
                              all.at[1][j][2 * h + c] + up_bias,
                              j * 8 + q * 2 + c);
    }
}

// Above 40 lines: the loop that is the kernel.
template <class D>
__global__ void __launch_bounds__(THREADS, 3) product_fast(moec_phase p,
                                                           fast_params f)
{
    MOEC_DYNAMIC_SHARED(uint8_t, all_stages);
    uint32_t warp = threadIdx.x / 32;
    uint8_t *stages = all_stages + warp * STAGES * STAGE;
    uint64_t step = static_cast<uint64_t>(gridDim.x) * WARPS;
    uint64_t n_units = static_cast<uint64_t>(*p.n_pieces) * p.n_tiles;
    stream next = {};
    uint64_t unit = blockIdx.x * WARPS + warp;
    int stage = 0;

    next.unit = unit;
    if (D::STAGED) {
        seek(p, n_units, &next);
        for (int i = 0; i < STAGES; i++)
            fetch<D>(p, f, n_units, step, stages + i * STAGE, &next);
    }
    for (; unit < n_units; unit += step) {
        moec_piece s = p.pieces[unit / p.n_tiles];
        uint32_t tile = static_cast<uint32_t>(unit % p.n_tiles);
        uint32_t n_tiles = (s.n + 7) / 8;
        moec_dmat m = moec_dmat_at(p.m, s.expert);
        sums all = {}, group = {};
        lane_rows l = {};
        ahead now = {};

        begin_rows<D>(p, m, s, tile, &l);
        look_ahead<D>(m, f, n_tiles, 0, true, l, &now);
        for (uint32_t chunk = 0; chunk < f.n_chunks; chunk++) {
            uint8_t *at = stages + stage * STAGE;

            if (D::STAGED) {
                moec_copy_wait<STAGES - 1>();
                __syncwarp(); // what other lanes copied is there too
            }
            multiply_chunk<D>(m, f, n_tiles, chunk, at, l, &now, &group, &all);
            if (D::STAGED) {
                __syncwarp(); // all have read before it is written again
                fetch<D>(p, f, n_units, step, at, &next);
                stage = stage + 1 == STAGES ? 0 : stage + 1;
            }
        }
        store(p, m, s, tile, l, all);
    }
}

// ------------------------------------------------------------------- host

static uint32_t log2_of(uint32_t v)
{
    uint32_t n = 0;

    while (v > 1) {
        v /= 2;
        n++;
    }
    return n;
}

// Whether the matrix is D's: aligned, its scales of D's dtype, and a group of
// them a power of two of steps, or of chunks where D wants that.
template <class D> static bool fits(const moec_dmat &m, fast_params *f)
{
    uint32_t g = m.block_in, of = D::GROUP * 32;
    int scale = m.scale_dtype == MOEC_DTYPE_U8
                    ? static_cast<int>(MOEC_DTYPE_F8_E8M0)
                    : m.scale_dtype;
    bool one = g >= m.n_in;

    *f = {};
    f->n_chunks = moec_blocks(m.n_in, D::STEPS * 32);
    f->group_shift = one ? 31 : log2_of(g / 32);
    if (moec_misaligned(m.data, m.data_stride | m.row_bytes, 16) ||
        m.n_out * m.row_bytes > UINT32_MAX)
        return false;
    if (!D::SCALED || (one && scale == D::SCALE))
        return true;
    return scale == D::SCALE && g % of == 0 && (g & (g - 1)) == 0;
}

uint32_t moec_fast_order(const moec_dmat &m)
{
    fast_params f;

    if (m.format == MOEC_WFORMAT_MXFP4 && fits<decode_e2m1>(m, &f))
        return decode_4bit::ORDER;
    if (m.format == MOEC_WFORMAT_INT4 &&
        (fits<decode_int4<MOEC_DTYPE_BF16>>(m, &f) ||
         fits<decode_int4<MOEC_DTYPE_F16>>(m, &f) ||
         fits<decode_int4<MOEC_DTYPE_F32>>(m, &f)))
        return decode_4bit::ORDER;
    return MOEC_ORDER_PLAIN;
}

template <class D>
static void launch(const moec_phase &p, const fast_params &f, cudaStream_t s)
{
    uint32_t multiprocessors, shared, each;

    moec_device_shape(&multiprocessors, &shared);
    each = D::STAGED ? shared / SHARED_COST : 3;
    if (each < 1)
        each = 1;
    if (D::STAGED)
        (void)cudaFuncSetAttribute(product_fast<D>,
                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   SHARED);
    MOEC_LAUNCH_KERNEL(product_fast<D>, multiprocessors * each, THREADS,
                       D::STAGED ? SHARED : 0, s, p, f);
}

template <class D>
static bool launched(const moec_phase &p, int format, cudaStream_t s)
{
    fast_params f;

    if (p.m.format != format || !fits<D>(p.m, &f))
        return false;
    launch<D>(p, f, s);
    return true;
}

void moec_product_fast(const moec_phase &p, cudaStream_t s)
{
    const int bf16 = MOEC_DTYPE_BF16, f16 = MOEC_DTYPE_F16;
    const int f32 = MOEC_DTYPE_F32, e8m0 = MOEC_DTYPE_F8_E8M0;
    fast_params f = {};

    if (launched<decode_bf16>(p, MOEC_WFORMAT_BF16, s) ||
        launched<decode_e4m3<f32, 4>>(p, MOEC_WFORMAT_FP8, s) ||
        launched<decode_e4m3<bf16, 4>>(p, MOEC_WFORMAT_FP8, s) ||
        launched<decode_e4m3<e8m0, 4>>(p, MOEC_WFORMAT_FP8, s) ||
        launched<decode_e4m3<e8m0, 1>>(p, MOEC_WFORMAT_FP8, s) ||
        launched<decode_e2m1>(p, MOEC_WFORMAT_MXFP4, s) ||
        launched<decode_int4<bf16>>(p, MOEC_WFORMAT_INT4, s) ||
        launched<decode_int4<f16>>(p, MOEC_WFORMAT_INT4, s) ||
        launched<decode_int4<f32>>(p, MOEC_WFORMAT_INT4, s))
        return;
    f.n_chunks = moec_blocks(p.m.n_in, decode_any::STEPS * 32);
    launch<decode_any>(p, f, s);
}
