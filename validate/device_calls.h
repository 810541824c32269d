/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_DEVICE_CALLS_H
#define MOEC_DEVICE_CALLS_H

/*
 * What this is: calls of kernels.h on a device from the host's arrays and into
 *   them: each copies its arrays there, runs, and copies what was written
 *   back. For proofs, which compare on the host; what serves keeps its arrays
 *   on the device.
 * Lifetime: nothing outlives a call.
 * Errors: the device's. Outputs go there as they are, so that what no kernel
 *   writes shows.
 */

#include <moec/device.h>

moec_status moec_on_device_route(moec_device *d, const moec_router *r,
                                 const moec_route_in *in,
                                 const moec_route_out *out, moec_error *err);

typedef struct moec_dispatch_call {
    const moec_dispatch_map *map;
    const moec_waterfill *waterfill; /* or NULL */
    const int32_t *ids;
    const float *weights;
    uint32_t n_rows, n_valid, top_k;
    moec_dispatch_out out;
} moec_dispatch_call;
moec_status moec_on_device_dispatch(moec_device *d, const moec_dispatch_call *x,
                                    moec_error *err);

/* Matrix 0 of `m`, which is alone, times x [n][n_in] into out [n][n_out]. */
moec_status moec_on_device_matmul(moec_device *d, const moec_matrix *m,
                                  const float *x, uint32_t n, float *out,
                                  moec_error *err);
/* One local row: in->n_rows is 1, x is F32; n is in->slot_first[1]. */
moec_status moec_on_device_ffn(moec_device *d, const moec_ffn_config *c,
                               const moec_ffn_in *in, uint64_t n, float *y,
                               moec_error *err);
moec_status moec_on_device_combine(moec_device *d, const moec_combine_in *in,
                                   float *out, moec_error *err);

#endif
