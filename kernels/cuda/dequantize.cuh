// SPDX-License-Identifier: Apache-2.0
#ifndef MOEC_DEQUANTIZE_CUH
#define MOEC_DEQUANTIZE_CUH

// What this is: stored matrices on the device, and the general decoder of
//   every format: eight adjacent values of an output row as float32, the bits
//   of kernels/cpu/matrix_scalar.c. The exact product decodes with it alone,
//   the fast one where its own decoders do not fit.
// Alignment: arrays of 2- and 4-byte elements must lie at multiples of them;
//   moec_dmat_of refuses others. (The CPU reads them anywhere.)

#include "common.cuh"
#include "convert.cuh"

// A moec_matrix for kernels; defaults are filled in before it comes here.
struct moec_dmat {
    int format, scale_dtype, bias_dtype;
    uint32_t n_out, n_in, block_out, block_in;
    uint32_t part_rows, part_scale_rows, part_zero_rows;
    uint32_t scale_cols, scale2_rows;
    uint32_t used_bytes; // of a row, those with values
    uint64_t row_bytes;
    const uint8_t *data, *scale, *scale2, *zeros, *bias;
    uint64_t data_stride, scale_stride, scale2_stride, zeros_stride;
    uint64_t bias_stride;
};

static inline uint32_t moec_scalar_bytes(int dtype)
{
    return dtype == MOEC_DTYPE_F32                                 ? 4
           : dtype == MOEC_DTYPE_BF16 || dtype == MOEC_DTYPE_F16 ? 2
                                                                   : 1;
}

static inline bool moec_misaligned(const void *p, uint64_t stride, uint64_t to)
{
    return p && (reinterpret_cast<uintptr_t>(p) % to || stride % to);
}

// A checked and filled matrix as kernels take it. ARG where an array is not
// aligned to its elements.
static inline moec_status moec_dmat_of(const moec_matrix *m, const char *what,
                                       moec_dmat *out, moec_error *err)
{
    static const uint32_t bits[] = {32, 16, 16, 8, 4, 4, 4, 4, 4};
    static const uint32_t element[] = {4, 2, 2, 1, 1, 1, 1, 4, 4};
    uint32_t part_in = m->block_in ? m->block_in : 1;
    moec_dmat r = {};

    r.format = m->format;
    r.scale_dtype = m->scale_dtype;
    r.bias_dtype = m->bias_dtype;
    r.n_out = m->n_out;
    r.n_in = m->n_in;
    r.block_out = m->block_out;
    r.block_in = part_in;
    r.part_rows = m->part_rows;
    r.part_scale_rows = (m->part_rows - 1) / m->block_out + 1;
    r.part_zero_rows = (m->part_rows - 1) / 8 + 1;
    r.scale_cols = (m->n_in - 1) / part_in + 1;
    r.scale2_rows = m->scale2_rows;
    r.used_bytes = static_cast<uint32_t>(
        (static_cast<uint64_t>(m->n_in) * bits[m->format] + 7) / 8);
    r.row_bytes = m->row_bytes;
    r.data = static_cast<const uint8_t *>(m->data);
    r.scale = static_cast<const uint8_t *>(m->scale);
    r.scale2 = reinterpret_cast<const uint8_t *>(m->scale2);
    r.zeros = static_cast<const uint8_t *>(m->zeros);
    r.bias = static_cast<const uint8_t *>(m->bias);
    r.data_stride = m->data_stride;
    r.scale_stride = m->scale_stride;
    r.scale2_stride = m->scale2_stride;
    r.zeros_stride = m->zeros_stride;
    r.bias_stride = m->bias_stride;
    if (m->n_in > 1u << 28 || m->n_out > 1u << 28)
        return moec_cuda_fail(err, MOEC_E_UNSUPPORTED,
                              "%s: %u x %u is more than kernels number", what,
                              m->n_out, m->n_in);
    if (moec_misaligned(r.data, r.data_stride | r.row_bytes,
                        element[m->format]) ||
        moec_misaligned(r.scale, r.scale_stride,
                        moec_scalar_bytes(r.scale_dtype)) ||
        moec_misaligned(r.scale2, r.scale2_stride, 4) ||
        moec_misaligned(r.zeros, r.zeros_stride, 4) ||
        moec_misaligned(r.bias, r.bias_stride,
                        moec_scalar_bytes(r.bias_dtype)))
        return moec_cuda_fail(err, MOEC_E_ARG,
                              "%s: an array is not aligned to its elements",
                              what);
    *out = r;
    return MOEC_OK;
}

// The matrix of one expert.
__device__ static inline moec_dmat moec_dmat_at(const moec_dmat &all,
                                                uint64_t index)
{
    moec_dmat m = all;

    m.data += index * m.data_stride;
    if (m.scale)
        m.scale += index * m.scale_stride;
    if (m.scale2)
        m.scale2 += index * m.scale2_stride;
    if (m.zeros)
        m.zeros += index * m.zeros_stride;
    if (m.bias)
        m.bias += index * m.bias_stride;
    return m;
}

__device__ static inline float moec_e8m0(uint32_t c)
{
    return __uint_as_float(c == 0     ? 0x00400000u
                           : c == 255 ? 0x7fc00000u
                                      : c << 23);
}

__device__ static inline float moec_scalar(int dtype, const void *p, uint64_t i)
{
    switch (dtype) {
    case MOEC_DTYPE_F32:
        return moec_load<MOEC_DTYPE_F32>(p, i);
    case MOEC_DTYPE_BF16:
        return moec_load<MOEC_DTYPE_BF16>(p, i);
    case MOEC_DTYPE_F16:
        return moec_load<MOEC_DTYPE_F16>(p, i);
    case MOEC_DTYPE_F8_E4M3:
        return moec_load<MOEC_DTYPE_F8_E4M3>(p, i);
    }
    return moec_e8m0(static_cast<const uint8_t *>(p)[i]);
}

// Index of the first scale of a row; of its first word of INT4 zeros.
__device__ static inline uint64_t moec_scale_row(const moec_dmat &m,
                                                 uint32_t row)
{
    uint64_t at = static_cast<uint64_t>(row / m.part_rows) * m.part_scale_rows +
                  row % m.part_rows / m.block_out;

    return at * m.scale_cols;
}
__device__ static inline uint64_t moec_zero_row(const moec_dmat &m,
                                                uint32_t row)
{
    uint64_t at = static_cast<uint64_t>(row / m.part_rows) * m.part_zero_rows +
                  row % m.part_rows / 8;

    return at * m.scale_cols;
}
__device__ static inline uint32_t moec_zero_at(const moec_dmat &m,
                                               uint64_t word, uint32_t row)
{
    return reinterpret_cast<const uint32_t *>(m.zeros)[word] >>
               (row % m.part_rows % 8 * 4) &
           15u;
}

__device__ static inline float moec_scale_at(const moec_dmat &m, uint32_t row,
                                             uint32_t sc)
{
    float s = moec_scalar(m.scale_dtype, m.scale, moec_scale_row(m, row) + sc);

    if (!m.scale2)
        return s;
    return __fmul_rn(
        s, reinterpret_cast<const float *>(m.scale2)[row / m.scale2_rows]);
}

__device__ static inline float moec_bias_at(const moec_dmat &m, uint32_t row)
{
    return m.bias ? moec_scalar(m.bias_dtype, m.bias, row) : 0.0f;
}

__device__ static inline float moec_e2m1(uint32_t c)
{
    // 0 .5 1 1.5 2 3 4 6: the exponent and mantissa bits in float32's places,
    // times 2^126; the denormal is one in both.
    return __fmul_rn(__uint_as_float((c & 8u) << 28 | (c & 7u) << 22),
                     __uint_as_float((126u + 127u) << 23));
}

// AWQ and GPTQ: packed words [in][out], zeros along out.
__device__ static inline float moec_in_out_at(const moec_dmat &m, uint32_t row,
                                              uint32_t c)
{
    bool awq = m.format == MOEC_WFORMAT_AWQ;
    uint64_t g = c / m.block_in;
    uint32_t at = awq ? 0x73625140u >> (row % 8 * 4) & 15u : row % 8;
    const uint32_t *words = reinterpret_cast<const uint32_t *>(
        m.data + static_cast<uint64_t>(awq ? c : c / 8) * m.row_bytes);
    uint32_t w = awq ? words[row / 8] >> (4 * at) : words[row] >> (4 * (c % 8));
    float zero = 8.0f;

    if (m.zeros) {
        uint32_t z = reinterpret_cast<const uint32_t *>(
                         m.zeros)[g * (m.n_out / 8) + row / 8] >>
                         (4 * at) &
                     15u;

        zero = static_cast<float>(static_cast<int>(z + (awq ? 0u : 1u)));
    }
    return __fmul_rn(
        __fsub_rn(static_cast<float>(static_cast<int>(w & 15u)), zero),
        moec_scalar(m.scale_dtype, m.scale, g * m.n_out + row));
}

// Value (row, c) before its scale; formats of one scale a run of columns.
__device__ static inline float moec_code_at(const moec_dmat &m,
                                            const uint8_t *p, uint32_t c,
                                            float zero)
{
    uint32_t nibble;

    if (m.format == MOEC_WFORMAT_FP8)
        return moec_load<MOEC_DTYPE_F8_E4M3>(p, c);
    nibble = static_cast<uint32_t>(p[c / 2]) >> (c % 2 * 4) & 15u;
    if (m.format == MOEC_WFORMAT_INT4)
        return __fsub_rn(static_cast<float>(static_cast<int>(nibble)), zero);
    return moec_e2m1(nibble);
}

// out[i] = element (row, col + i) for i < 8, `col` a multiple of 8; 0 where
// that is past the end of the row.
__device__ static inline void moec_decode8(const moec_dmat &m, uint32_t row,
                                           uint32_t col, float out[8])
{
    const uint8_t *p = m.data + row * m.row_bytes;
    uint32_t n = col < m.n_in ? m.n_in - col : 0, last = 0xffffffffu;
    float s = 0.0f, zero = 8.0f;

    for (uint32_t i = 0; i < 8; i++) {
        uint32_t c = col + i;

        if (i >= n) {
            out[i] = 0.0f;
        } else if (m.format == MOEC_WFORMAT_F32) {
            out[i] = moec_load<MOEC_DTYPE_F32>(p, c);
        } else if (m.format == MOEC_WFORMAT_BF16) {
            out[i] = moec_load<MOEC_DTYPE_BF16>(p, c);
        } else if (m.format == MOEC_WFORMAT_F16) {
            out[i] = moec_load<MOEC_DTYPE_F16>(p, c);
        } else if (m.format >= MOEC_WFORMAT_AWQ) {
            out[i] = moec_in_out_at(m, row, c);
        } else {
            uint32_t sc = c / m.block_in;

            if (sc != last) {
                last = sc;
                s = moec_scale_at(m, row, sc);
                if (m.zeros)
                    zero = static_cast<float>(static_cast<int>(
                        moec_zero_at(m, moec_zero_row(m, row) + sc, row)));
            }
            out[i] = __fmul_rn(moec_code_at(m, p, c, zero), s);
        }
    }
}

#endif
