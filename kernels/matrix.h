/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_MATRIX_H
#define MOEC_MATRIX_H

/*
 * What this is: stored matrices as kernels see them, and the table of
 *   functions that each instruction set fills: decoding tiles, the exact dot
 *   product, casts, activations, and the fast products of ffn.c.
 * Lifetime: a moec_mat borrows the caller's arrays for one call.
 * Exactness: `tile`, `dot16`, `to_f32`, `from_f32` and `act` return the same
 *   bits in every table; `fast` need not.
 */

#include "backend.h"

/* Rows and columns of a tile of float32 weights on the stack (32 KiB: half
 * of an L1 cache and more than one row of most scales), and tokens that
 * share it. */
#define MOEC_TILE_ROWS   8u
#define MOEC_TILE_COLS   1024u
#define MOEC_TILE_TOKENS 64u

/* One matrix of a moec_matrix, pointers and defaults resolved. */
struct moec_mat {
    moec_wformat format;
    moec_dtype scale_dtype, bias_dtype;
    uint32_t n_out, n_in;
    uint64_t row_bytes; /* of a stored row: [out] but for AWQ, GPTQ */
    const uint8_t *data, *scale, *zeros, *bias;
    const float *scale2;
    uint32_t block_out, block_in;
    uint32_t part_rows;       /* rows after which blocks begin anew */
    uint32_t part_scale_rows; /* rows of scales of such a part */
    uint32_t part_zero_rows;  /* rows of packed zeros of such a part */
    uint32_t scale_cols;      /* scales of one row */
    uint32_t scale2_rows;
};

struct moec_matrix_fns;

/* Packed activations of n tokens, `bytes` from one to the next; and the
 * weights that are read after these, to be prefetched, or NULL. */
struct moec_acts {
    const void *x;
    size_t bytes;
    uint64_t n;
    const uint8_t *then;
};

/* How the expert FFN multiplies: activations of one token packed into a row of
 * `x_bytes`, and products of them with rows of a matrix. */
struct moec_product {
    /* Bytes of a packed row of n_in values: a multiple of 64, at most 4 for
     * each of n_in rounded up to 128. */
    size_t (*x_bytes)(uint32_t n_in);
    /* Put x[0 .. n) into a packed row at values [first, first + n) of n_in;
     * what ends the row also fills it up. Calls for different values of one
     * row may run at the same time where `first` is a multiple of 32. */
    void (*pack)(const float *x, uint32_t first, uint32_t n, uint32_t n_in,
                 void *row);
    /* out[t][r] = dot(x[t], row + r) + bias, for r < n_rows. */
    void (*rows)(const struct moec_matrix_fns *f, const struct moec_mat *m,
                 uint32_t row, uint32_t n_rows, const struct moec_acts *x,
                 float *out, size_t out_stride);
};

struct moec_matrix_fns {
    /* out[r][c] = element (row + r, col + c); `col` is a multiple of 8, or of
     * a whole stored word. */
    void (*tile)(const struct moec_mat *m, uint32_t row, uint32_t n_rows,
                 uint32_t col, uint32_t n_cols, float *out, size_t stride);
    /* acc[t][r][l] += sum of x[t][i] * w[r][i] over i mod 16 == l, in order;
     * every product rounded. w is [n_rows][w_stride], `acc` aligned to 64. */
    void (*dot16)(const float *w, size_t w_stride, uint32_t n_rows,
                  const float *x, size_t x_stride, uint32_t n_tokens,
                  uint32_t n, float *acc);
    /* Widen and narrow F32, BF16, F16, F8_E4M3, F8_E5M2. */
    void (*to_f32)(moec_dtype dtype, const void *in, uint64_t n, float *out);
    void (*from_f32)(moec_dtype dtype, const float *in, uint64_t n, void *out);
    /* out[i] = activation of gate[i], up[i]; gate is not read where the
     * activation has none. `out` may be `up`. */
    void (*act)(const moec_ffn_config *c, const float *gate, const float *up,
                uint64_t n, float *out);
    /* How to multiply fast by a matrix like m; `bf16_dot` as in
     * moec_kernels. */
    const struct moec_product *(*fast)(const struct moec_mat *m, bool bf16_dot);
};

extern const struct moec_matrix_fns moec_matrix_scalar;
extern const struct moec_matrix_fns moec_matrix_avx2;
extern const struct moec_matrix_fns moec_matrix_avx512;

/* The table of a back end. */
const struct moec_matrix_fns *moec_matrix_fns_of(moec_isa isa);

/* Check a moec_matrix; `what` names it in the error. */
moec_status moec_matrix_check(const moec_matrix *m, const char *what,
                              moec_error *err);
/* Resolve matrix `index` of a checked one. */
struct moec_mat moec_mat_of(const moec_matrix *m, uint32_t index);
/* A checked matrix with the numbers that may be left out filled in, which is
 * how plug-ins get it. */
moec_matrix moec_matrix_filled(const moec_matrix *m);
/* Check configuration, matrices and dtypes of an expert FFN: all that needs no
 * look at arrays, which may be on a device. */
moec_status moec_ffn_check(const moec_ffn_config *c, const moec_ffn_in *in,
                           moec_error *err);

/* The scale of scale column `sc` in output row `row`; NVFP4's two scales are
 * multiplied, and rounded, here. */
float moec_mat_scale(const struct moec_mat *m, uint32_t row, uint32_t sc);
/* Number of the first scale of output row `row`. */
uint64_t moec_mat_scale_row(const struct moec_mat *m, uint32_t row);
float moec_mat_bias(const struct moec_mat *m, uint32_t row);

/* What MOEC_PRECISION_EXACT multiplies with, on packed rows of float32: the
 * dot product that moec_matmul is documented with. */
extern const struct moec_product moec_product_exact;
void moec_dot_rows(const struct moec_matrix_fns *f, const struct moec_mat *m,
                   uint32_t row, uint32_t n_rows, const struct moec_acts *x,
                   float *out, size_t out_stride);
size_t moec_x_bytes_f32(uint32_t n_in);
void moec_pack_f32(const float *x, uint32_t first, uint32_t n, uint32_t n_in,
                   void *row);

/* Parts of the scalar table that wider ones have no better form of. */
void moec_tile_scalar(const struct moec_mat *m, uint32_t row, uint32_t n_rows,
                      uint32_t col, uint32_t n_cols, float *out, size_t stride);
void moec_to_f32_scalar(moec_dtype dtype, const void *in, uint64_t n,
                        float *out);
void moec_from_f32_scalar(moec_dtype dtype, const float *in, uint64_t n,
                          void *out);
void moec_act_scalar(const moec_ffn_config *c, const float *gate,
                     const float *up, uint64_t n, float *out);
const struct moec_product *moec_fast_scalar(const struct moec_mat *m,
                                            bool bf16_dot);
/* The fast product by vdpbf16ps, or NULL where it has none for m. */
const struct moec_product *moec_fast_bf16(const struct moec_mat *m);
void moec_act_avx2(const moec_ffn_config *c, const float *gate, const float *up,
                   uint64_t n, float *out);
void moec_act_avx512(const moec_ffn_config *c, const float *gate,
                     const float *up, uint64_t n, float *out);

#endif
