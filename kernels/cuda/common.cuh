// SPDX-License-Identifier: Apache-2.0
#ifndef MOEC_COMMON_CUH
#define MOEC_COMMON_CUH

// What this is: what every .cu file of the plug-in begins with: the runtime,
//   or its emulation on the host (MOEC_EMULATE); statuses; launches.
// Errors: a launch that the driver refuses is a status with its text. Nothing
//   here synchronises, allocates or changes the current device.
// House rule: routing is compiled with -fmad=false, so that a product is
//   rounded before it is added, as everywhere else.

#include "plugin.h"

#ifdef MOEC_EMULATE
#  include "emulate.h"
#  define MOEC_NOINLINE
#  define MOEC_UNROLL
#else
#  include <cuda_runtime.h>
#  define MOEC_NOINLINE __noinline__
#  define MOEC_UNROLL   _Pragma("unroll")
#  define MOEC_LAUNCH_KERNEL(kernel, grid, threads, shared, stream, ...)       \
    kernel<<<grid, threads, shared, stream>>>(__VA_ARGS__)
#  define MOEC_DYNAMIC_SHARED(type, name)                                      \
    extern __shared__ __align__(16) unsigned char moec_dynamic_shared[];      \
    type *name = reinterpret_cast<type *>(moec_dynamic_shared)
#endif

#define MOEC_FULL_WARP 0xffffffffu

// Write the error and return `status`; plug-ins have no libmoec to do it.
moec_status moec_cuda_fail(moec_error *err, moec_status status,
                           const char *fmt, ...) MOEC_PRINTF(3, 4);

// MOEC_OK, or what the last launch met, with the name of the call.
moec_status moec_cuda_launched(const char *what, moec_error *err);

// The caller's stream.
static inline cudaStream_t moec_stream(const moec_launch *l)
{
    return static_cast<cudaStream_t>(l->stream);
}

// Makes a device current for a scope, and the caller's again behind it.
class moec_on_device {
  public:
    explicit moec_on_device(uint32_t ordinal);
    ~moec_on_device();
    moec_on_device(const moec_on_device &) = delete;
    moec_on_device &operator=(const moec_on_device &) = delete;

  private:
    int before_;
    bool changed_;
};

// Real rows: the device's number where the caller gave one, at most `n`.
__device__ static inline uint32_t moec_n_valid(const uint32_t *on_device,
                                               uint32_t n_valid, uint32_t n)
{
    uint32_t v = on_device ? *on_device : n_valid;

    return v < n ? v : n;
}

static inline uint32_t moec_blocks(uint64_t n, uint32_t per_block)
{
    return static_cast<uint32_t>((n + per_block - 1) / per_block);
}

// The entries of the table, one .cu file an area.
// route_topk.cu
uint64_t moec_cuda_route_workspace(const moec_route_config *c,
                                   const moec_dispatch_map *map, uint32_t n);
moec_status moec_cuda_route(uint32_t ordinal, const moec_route_config *c,
                            const moec_route_in *in,
                            const moec_dispatch_map *map,
                            const moec_waterfill *waterfill,
                            const moec_route_out *out,
                            const moec_dispatch_out *dispatch,
                            const moec_launch *launch, moec_error *err);
// route_dispatch.cu
uint64_t moec_cuda_dispatch_workspace(const moec_dispatch_map *map, uint32_t n);
moec_status moec_cuda_dispatch(uint32_t ordinal, const moec_dispatch_map *map,
                               const moec_waterfill *waterfill,
                               const int32_t *ids, const float *weights,
                               uint32_t n_tokens, uint32_t n_valid,
                               uint32_t top_k, const moec_dispatch_out *out,
                               const moec_launch *launch, moec_error *err);
// permute.cu
uint64_t moec_cuda_align_workspace(uint64_t n, uint32_t n_slots);
moec_status moec_cuda_align(uint32_t ordinal, const int32_t *slots, uint64_t n,
                            uint32_t first_slot, uint32_t n_slots,
                            uint32_t block, const moec_align_out *out,
                            const moec_launch *launch, moec_error *err);
moec_status moec_cuda_permute(uint32_t ordinal, const void *x,
                              uint64_t row_bytes, const uint32_t *sorted,
                              const uint64_t *n_sorted, uint64_t n_sorted_max,
                              uint64_t n_columns, uint32_t n_cols, void *out,
                              const moec_launch *launch, moec_error *err);
moec_status moec_cuda_combine(uint32_t ordinal, const moec_combine_in *in,
                              float *out, const moec_launch *launch,
                              moec_error *err);
// digest.cu
moec_status moec_cuda_digests(uint32_t ordinal, int sha256,
                              const void *const *data, const uint64_t *bytes,
                              uint32_t n, uint8_t *out, void *stream,
                              moec_error *err);
// cufile.cu
moec_status moec_cuda_gds_open(uint32_t ordinal, const char *library,
                               int compatible, void **out, moec_error *err);
void moec_cuda_gds_close(uint32_t ordinal, void *p);
void moec_cuda_gds_region(uint32_t ordinal, void *p, void *base,
                          uint64_t bytes);
moec_status moec_cuda_gds_file_open(uint32_t ordinal, void *p, int fd,
                                    void **out, moec_error *err);
void moec_cuda_gds_file_close(uint32_t ordinal, void *p, void *file);
moec_status moec_cuda_gds_read(uint32_t ordinal, void *p, void *file,
                               uint64_t off, void *to, uint64_t bytes,
                               uint64_t *got_out, moec_error *err);
// cast.cu
moec_status moec_cuda_cast(uint32_t ordinal, const void *in,
                           moec_dtype in_dtype, void *out,
                           moec_dtype out_dtype, uint64_t n,
                           const moec_launch *launch, moec_error *err);
// expert_ffn.cu
moec_status moec_cuda_matmul(uint32_t ordinal, const moec_matrix *m,
                             uint32_t index, const float *x, uint64_t x_stride,
                             uint32_t n_tokens, float *out, uint64_t out_stride,
                             const moec_launch *launch, moec_error *err);
uint64_t moec_cuda_ffn_workspace(const moec_ffn_config *config,
                                 uint64_t n_columns_max, uint32_t n_rows);
moec_status moec_cuda_ffn(uint32_t ordinal, const moec_ffn_config *config,
                          const moec_ffn_in *in, uint64_t n_columns_max,
                          float *y, const moec_launch *launch, moec_error *err);

#endif
