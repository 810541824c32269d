// SPDX-License-Identifier: Apache-2.0
#ifndef MOEC_EXPERT_CHOICE_CUH
#define MOEC_EXPERT_CHOICE_CUH

// What this is: Expert Choice on the device, in all modes and fills: ids,
//   weights and figures of a whole call, logical. What comes behind it (remap,
//   counts) is the caller's.
// Refuses: AUTO without a state, and 2^32 pairs.

#include "route_row.cuh"

uint64_t moec_cuda_expert_choice_workspace(const moec_route_config *c,
                                           uint32_t n);
// `ws` is aligned to 256 bytes and has as many as said above; `stats` (NULL:
// not wanted) and a.in.ec_state are the device's.
moec_status moec_cuda_expert_choice(uint32_t ordinal, const moec_route_args &a,
                                    moec_ec_stats *stats, void *ws,
                                    cudaStream_t s, moec_error *err);

#endif
