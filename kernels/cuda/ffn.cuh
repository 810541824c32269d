// SPDX-License-Identifier: Apache-2.0
#ifndef MOEC_FFN_CUH
#define MOEC_FFN_CUH

// What this is: what expert_ffn.cu, product_exact.cu and product_fast.cu say
//   to each other: one phase (w13 with the activation, or w2, or a plain
//   product) as a list of pieces times tiles of output rows.

#include "activate.cuh"
#include "common.cuh"
#include "dequantize.cuh"

// Output rows of a tile: 16 of gate and the same 16 of up, or 32 adjacent.
#define MOEC_TILE_OUT 32u
// Columns of a piece.
#define MOEC_EXACT_COLUMNS 16u
#define MOEC_FAST_COLUMNS  16u
// Padded columns of packed activations in FAST: of the longest chunk.
#define MOEC_FAST_PAD 256u

// Columns of one expert: positions in the packed activations.
struct moec_piece {
    uint32_t expert, n;
    uint64_t first;
};

enum moec_phase_kind {
    MOEC_PHASE_GATED,  // h = act(gate, up)
    MOEC_PHASE_PLAIN,  // h = act(0, up)
    MOEC_PHASE_OUT,    // y by column
    MOEC_PHASE_MATMUL  // out by token; the expert is `index`
};

struct moec_phase {
    moec_dmat m;
    moec_activation act;
    int kind;
    uint32_t limit;    // output rows of each half
    uint32_t half[2];  // first row of rows 0-15 and 16-31 of tile 0
    uint32_t within[2]; // the same inside the half
    uint32_t step;     // rows of a half from tile to tile
    uint32_t n_tiles;  // of rows
    const moec_piece *pieces;
    const uint32_t *n_pieces; // on the device
    const void *x;            // packed: f32 in EXACT, bf16 in FAST
    uint64_t x_pitch;         // elements
    void *h;                  // likewise
    uint64_t h_pitch;
    uint32_t h_order;    // where element i of eight stands, 4 bits each
    float *out;          // y, or the product
    uint64_t out_pitch;
    const uint32_t *columns;    // rows of y by position, from slot_first[0]
    const uint64_t *slot_first;
    uint64_t n_columns;      // rows that y has
    uint32_t index, n_tokens; // MATMUL
};

// Row r (0 .. 31) of tile `tile`, and whether there is one: rows past the end
// are read as the last.
__device__ static inline bool moec_phase_row(const moec_phase &p, uint32_t tile,
                                             uint32_t r, uint32_t *row)
{
    uint32_t t = r / 16, in = p.within[t] + tile * p.step + r % 16;
    bool ok = in < p.limit;

    *row = p.half[t] + (ok ? in : p.limit - 1);
    return ok;
}

__device__ static inline moec_piece moec_phase_piece(const moec_phase &p,
                                                     uint64_t i)
{
    moec_piece s;

    if (p.pieces)
        return p.pieces[i];
    s.expert = p.index;
    s.first = i * MOEC_EXACT_COLUMNS;
    s.n = static_cast<uint32_t>(p.n_tokens - s.first);
    if (s.n > MOEC_EXACT_COLUMNS)
        s.n = MOEC_EXACT_COLUMNS;
    return s;
}

// The place of element i where eights are reordered.
__device__ static inline uint64_t moec_ordered(uint32_t order, uint64_t i)
{
    return (i & ~7ull) | (order >> (4 * (i & 7)) & 7u);
}

// The row of y of a position; false where `sorted` says none that there is.
__device__ static inline bool moec_phase_out(const moec_phase &p, uint64_t at,
                                             uint64_t *row)
{
    *row = at;
    if (p.kind == MOEC_PHASE_OUT)
        *row = p.columns[p.slot_first[0] + at];
    return p.kind != MOEC_PHASE_OUT || *row < p.n_columns;
}

#define MOEC_ORDER_PLAIN 0x76543210u

// How a matrix is multiplied fast: the order in which its kernel wants the
// activations.
uint32_t moec_fast_order(const moec_dmat &m);
void moec_product_exact(const moec_phase &p, uint32_t n_blocks, cudaStream_t s);
void moec_product_fast(const moec_phase &p, cudaStream_t s);
// Multiprocessors of the current device, and shared memory a block may have.
void moec_device_shape(uint32_t *multiprocessors, uint32_t *shared);

#endif
