/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_BACKEND_H
#define MOEC_BACKEND_H

/*
 * What this is: an opened back end: which instruction set, and for each area
 *   a table of functions. An area's source files fill its table, scalar first;
 *   each wider set overrides what it has. Choice is not here: a router holds
 *   the functions for its own configuration (route.h).
 * Threads: immutable once open, but for the pool.
 */

#include <stdbool.h>

#include <moec/kernels.h>

#include "base/base.h"

struct moec_ec_fns;     /* ec.h: Expert Choice */
struct moec_matrix_fns; /* matrix.h: dequantise, dot products */

struct moec_kernels {
    moec_isa isa;    /* never AUTO */
    bool bf16_dot;   /* vdpbf16ps may be used */
    moec_pool *pool; /* NULL: one thread */
    const struct moec_ec_fns *ec;
    const struct moec_matrix_fns *matrix;
};

/* What the CPU and its kernel allow. */
typedef struct moec_cpu {
    bool avx2;        /* with FMA, F16C, BMI1, BMI2 */
    bool avx512;      /* F, BW, CD, DQ, VL, VBMI, VBMI2 */
    bool avx512_bf16; /* and vdpbf16ps */
} moec_cpu;
moec_cpu moec_cpu_query(void);

#endif
