/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_REQUANT_PARTS_H
#define MOEC_REQUANT_PARTS_H

/*
 * What this is: the inside of a moec_requant: requant_find.c says what each
 *   slot tensor is made of, requant.c makes it.
 */

#include "base/base.h"
#include "model.h"
#include "requant.h"

/* One projection of the shared expert, as it is stored. */
typedef struct moec_requant_from {
    uint32_t weight, scale; /* tensors; scale UINT32_MAX: none */
    uint64_t first_row;     /* of the projection within the tensor */
    uint64_t out, in;       /* of the projection, whole */
    uint64_t row_bytes, scale_cols;
    uint64_t tensor_rows;
    moec_wformat format;
    moec_dtype scale_dtype;
    uint64_t block_out, block_in;
} moec_requant_from;

/* w13 or w2 of a layer. */
typedef struct moec_requant_to {
    moec_matrix like; /* one whole slot */
    size_t data, scale;
    uint32_t n_halves;
    uint64_t half_out;
    uint64_t data_row, scale_row; /* bytes */
} moec_requant_to;

typedef struct moec_requant_layer {
    moec_requant_to to[2];     /* w13, w2 */
    moec_requant_from from[3]; /* by projection */
    bool has_up, both;         /* both: gate and up in one source */
} moec_requant_layer;

struct moec_requant {
    const moec_plan *plan;
    moec_kernels *k;
    uint32_t n_experts, n_parts;
    size_t n_layers;
    moec_requant_layer *layers;
};

/* Fill q->layers[i], or refuse (P10). */
moec_status moec_requant_find(moec_requant *q, size_t i, moec_error *err);

#endif
