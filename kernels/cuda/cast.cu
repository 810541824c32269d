// SPDX-License-Identifier: Apache-2.0
//
// moec_cast on the device: n elements, one thread each (grid-stride), the bits
// of kernels/matrix.c. Rounding is by integer arithmetic on the float's bits
// (nearest even, fp8 saturating, NaN kept), so that neither the toolkit's
// conversions nor the compute capability matter.

#include "common.cuh"
#include "convert.cuh"

template <int IN, int OUT>
__global__ void cast_kernel(const void *in, void *out, uint64_t n)
{
    uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x;

    for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x +
                      threadIdx.x;
         i < n; i += step)
        moec_store<OUT>(out, i, moec_load<IN>(in, i));
}

template <int IN>
static bool cast_from(const void *in, void *out, moec_dtype to, uint64_t n,
                      cudaStream_t stream)
{
    dim3 grid(moec_blocks(n, 256) < 4096u ? moec_blocks(n, 256) : 4096u);

    switch (static_cast<int>(to)) {
    case MOEC_DTYPE_F32:
        MOEC_LAUNCH_KERNEL((cast_kernel<IN, MOEC_DTYPE_F32>), grid, 256, 0,
                           stream, in, out, n);
        return true;
    case MOEC_DTYPE_BF16:
        MOEC_LAUNCH_KERNEL((cast_kernel<IN, MOEC_DTYPE_BF16>), grid, 256, 0,
                           stream, in, out, n);
        return true;
    case MOEC_DTYPE_F16:
        MOEC_LAUNCH_KERNEL((cast_kernel<IN, MOEC_DTYPE_F16>), grid, 256, 0,
                           stream, in, out, n);
        return true;
    case MOEC_DTYPE_F8_E4M3:
        MOEC_LAUNCH_KERNEL((cast_kernel<IN, MOEC_DTYPE_F8_E4M3>), grid, 256, 0,
                           stream, in, out, n);
        return true;
    case MOEC_DTYPE_F8_E5M2:
        MOEC_LAUNCH_KERNEL((cast_kernel<IN, MOEC_DTYPE_F8_E5M2>), grid, 256, 0,
                           stream, in, out, n);
        return true;
    }
    return false;
}

moec_status moec_cuda_cast(uint32_t ordinal, const void *in,
                           moec_dtype in_dtype, void *out,
                           moec_dtype out_dtype, uint64_t n,
                           const moec_launch *launch, moec_error *err)
{
    moec_on_device on(ordinal);
    cudaStream_t s = moec_stream(launch);
    bool known = false;

    if (n == 0)
        return MOEC_OK;
    switch (static_cast<int>(in_dtype)) {
    case MOEC_DTYPE_F32:
        known = cast_from<MOEC_DTYPE_F32>(in, out, out_dtype, n, s);
        break;
    case MOEC_DTYPE_BF16:
        known = cast_from<MOEC_DTYPE_BF16>(in, out, out_dtype, n, s);
        break;
    case MOEC_DTYPE_F16:
        known = cast_from<MOEC_DTYPE_F16>(in, out, out_dtype, n, s);
        break;
    case MOEC_DTYPE_F8_E4M3:
        known = cast_from<MOEC_DTYPE_F8_E4M3>(in, out, out_dtype, n, s);
        break;
    case MOEC_DTYPE_F8_E5M2:
        known = cast_from<MOEC_DTYPE_F8_E5M2>(in, out, out_dtype, n, s);
        break;
    }
    if (!known)
        return moec_cuda_fail(err, MOEC_E_UNSUPPORTED,
                              "a cast from dtype %d to dtype %d",
                              static_cast<int>(in_dtype),
                              static_cast<int>(out_dtype));
    return moec_cuda_launched("cast", err);
}
