/* SPDX-License-Identifier: Apache-2.0
 *
 * Activations in sixteen lanes. */

#define LANES 16
#include "act_lanes.h"

void moec_act_avx512(const moec_ffn_config *c, const float *gate,
                     const float *up, uint64_t n, float *out)
{
    act_lanes(c, gate, up, n, out);
}
