// SPDX-License-Identifier: Apache-2.0
//
// The exact product: out[t][o] = dot(x[t], w[o]) + bias[o] in float32 by 16
// partial sums, moec_matmul and the phases of moec_ffn with EXACT. Equal to
// moec_dot_rows of kernels/matrix.c, bit for bit.
//
// A block takes units of 32 output rows and 16 columns, grid-stride over
// pieces times tiles of rows. 128 values of k at a time are decoded to
// float32 in shared memory; of the 256 threads sixteen share four rows and
// eight columns, each the partial sum k % 16 of all 32 dots, in the order of
// k; at the end the sums lie in shared memory, and a thread adds the sixteen of
// one dot. Zeros behind the last k change nothing: a sum that began at +0 is
// never -0.

#include "ffn.cuh"

#define THREADS 256u
#define KS      128u
// Two groups of sixteen lanes read rows of x that lie eight apart: with a
// pitch of 2 modulo 4 in other banks.
#define PITCH   (KS + 2u)
#define ROWS    4 // of a thread
#define COLUMNS 8

#define SUMS    17u // sixteen sums and a word, so that threads meet all banks

union exact_tile {
    struct {
        float w[MOEC_TILE_OUT * PITCH];
        float x[MOEC_EXACT_COLUMNS * PITCH];
    };
    float sums[MOEC_TILE_OUT * MOEC_EXACT_COLUMNS * SUMS];
};

__device__ static void load_tile(const moec_phase &p, const moec_dmat &m,
                                 const moec_piece &s, uint32_t tile,
                                 uint32_t k0, exact_tile *to)
{
    const float *x = static_cast<const float *>(p.x);

    for (uint32_t i = threadIdx.x; i < MOEC_TILE_OUT * KS / 8; i += THREADS) {
        uint32_t r = i / (KS / 8), c = i % (KS / 8) * 8, row;
        float v[8];

        (void)moec_phase_row(p, tile, r, &row);
        moec_decode8(m, row, k0 + c, v);
        for (uint32_t j = 0; j < 8; j++)
            to->w[r * PITCH + c + j] = v[j];
    }
    for (uint32_t i = threadIdx.x; i < s.n * KS; i += THREADS) {
        uint32_t t = i / KS, k = k0 + i % KS;

        to->x[t * PITCH + i % KS] =
            k < m.n_in ? x[(s.first + t) * p.x_pitch + k] : 0.0f;
    }
}

// The sixteen partial sums of row r and column t, pairwise.
__device__ static float sum16(const exact_tile &tile, uint32_t r, uint32_t t)
{
    const float *s = tile.sums + (r * MOEC_EXACT_COLUMNS + t) * SUMS;
    float a[8];

    for (int i = 0; i < 8; i++)
        a[i] = __fadd_rn(s[i], s[i + 8]);
    for (int i = 0; i < 4; i++)
        a[i] = __fadd_rn(a[i], a[i + 4]);
    return __fadd_rn(__fadd_rn(a[0], a[2]), __fadd_rn(a[1], a[3]));
}

// Bias, activation and store of one row and one column.
__device__ static void finish(const moec_phase &p, const moec_dmat &m,
                              const moec_piece &s, uint32_t tile, uint32_t r,
                              uint32_t t, float value, float up)
{
    uint64_t at = s.first + t, to;
    uint32_t row, up_row;

    if (!moec_phase_row(p, tile, r, &row))
        return;
    value = __fadd_rn(value, moec_bias_at(m, row));
    if (p.kind <= MOEC_PHASE_PLAIN) {
        if (p.kind == MOEC_PHASE_GATED) {
            (void)moec_phase_row(p, tile, r + 16, &up_row);
            up = __fadd_rn(up, moec_bias_at(m, up_row));
        } else {
            up = value;
            value = 0.0f;
        }
        static_cast<float *>(p.h)[at * p.h_pitch + row - p.half[0]] =
            moec_activate(p.act, value, up);
    } else if (moec_phase_out(p, at, &to)) {
        p.out[to * p.out_pitch + row] = value;
    }
}

__global__ void __launch_bounds__(THREADS) product_exact(moec_phase p)
{
    __shared__ exact_tile tile;
    uint32_t lane = threadIdx.x % 16, t0 = threadIdx.x / 16 % 2 * COLUMNS;
    uint32_t r0 = threadIdx.x / 32 * ROWS;
    uint64_t n_pieces = p.pieces ? *p.n_pieces
                                 : (p.n_tokens - 1) / MOEC_EXACT_COLUMNS + 1;

    for (uint64_t u = blockIdx.x; u < n_pieces * p.n_tiles; u += gridDim.x) {
        moec_piece s = moec_phase_piece(p, u / p.n_tiles);
        uint32_t tile_at = static_cast<uint32_t>(u % p.n_tiles);
        moec_dmat m = moec_dmat_at(p.m, s.expert);
        float acc[ROWS][COLUMNS] = {};

        for (uint32_t k0 = 0; k0 < m.n_in; k0 += KS) {
            __syncthreads(); // the last tile, or the sums, have been read
            load_tile(p, m, s, tile_at, k0, &tile);
            __syncthreads();
            for (uint32_t k = lane; k < KS; k += 16) {
                float w[ROWS];

                for (int r = 0; r < ROWS; r++)
                    w[r] = tile.w[(r0 + r) * PITCH + k];
                MOEC_UNROLL
                for (int t = 0; t < COLUMNS; t++) {
                    if (t0 + t >= s.n)
                        break;
                    float x = tile.x[(t0 + t) * PITCH + k];

                    MOEC_UNROLL
                    for (int r = 0; r < ROWS; r++)
                        acc[r][t] = __fadd_rn(acc[r][t], __fmul_rn(x, w[r]));
                }
            }
        }
        __syncthreads(); // the last tile has been read
        MOEC_UNROLL
        for (int t = 0; t < COLUMNS; t++)
            MOEC_UNROLL
            for (int r = 0; r < ROWS; r++)
                tile.sums[((r0 + r) * MOEC_EXACT_COLUMNS + t0 + t) * SUMS +
                          lane] = acc[r][t];
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < MOEC_TILE_OUT * s.n; i += THREADS) {
            uint32_t r = i / s.n, t = i % s.n;
            bool gated = p.kind == MOEC_PHASE_GATED;

            if (gated && r >= 16)
                break;
            finish(p, m, s, tile_at, r, t, sum16(tile, r, t),
                   gated ? sum16(tile, r + 16, t) : 0.0f);
        }
    }
}

void moec_product_exact(const moec_phase &p, uint32_t n_blocks, cudaStream_t s)
{
    MOEC_LAUNCH_KERNEL(product_exact, n_blocks, THREADS, 0, s, p);
}
