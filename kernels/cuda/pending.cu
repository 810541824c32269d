// SPDX-License-Identifier: Apache-2.0
//
// Entries whose kernels are not written yet: UNSUPPORTED, in words.

#include "common.cuh"

static moec_status pending(const char *what, moec_error *err)
{
    return moec_cuda_fail(err, MOEC_E_UNSUPPORTED,
                          "%s: no kernel for this device yet", what);
}

moec_status moec_cuda_matmul(uint32_t, const moec_matrix *, uint32_t,
                             const float *, uint64_t, uint32_t, float *,
                             uint64_t, const moec_launch *, moec_error *err)
{
    return pending("matmul", err);
}
uint64_t moec_cuda_ffn_workspace(const moec_ffn_config *, uint64_t, uint32_t)
{
    return 0;
}
moec_status moec_cuda_ffn(uint32_t, const moec_ffn_config *,
                          const moec_ffn_in *, uint64_t, float *,
                          const moec_launch *, moec_error *err)
{
    return pending("ffn", err);
}
