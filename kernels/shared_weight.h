/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_SHARED_WEIGHT_H
#define MOEC_SHARED_WEIGHT_H

/*
 * What this is: the weight of a shared column but for its gate, once for the
 *   CPU and for CUDA: moec_shared_weight is this times the gate's sigmoid.
 */

#include <moec/kernels.h>

static inline float moec_shared_weight_ungated(const moec_route_config *c)
{
    float w = 1.0f;

    if (c->rsf_on == MOEC_RSF_ON_OUTPUT && c->rsf != 0.0f)
        w = 1.0f / c->rsf;
    if (c->shared_ranks > 1)
        w = w / (float)c->shared_ranks;
    return w;
}

#endif
