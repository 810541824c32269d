/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_MODEL_H
#define MOEC_MODEL_H

/*
 * What this is: what model.c knows and plan.c builds on: per MoE layer, the
 *   source tensors of each (role, part, component), proved complete and
 *   uniform. One slice is the share of ONE expert in such a source.
 * Lifetime: owned by the model. Threads: immutable.
 */

#include <moec/mapping.h>

typedef enum moec_part {
    MOEC_PART_GATE = 0,
    MOEC_PART_UP = 1,
    MOEC_PART_DOWN = 2,
    MOEC_PART_GATE_UP = 3 /* both in one source, gate first or interleaved */
} moec_part;

/* How a component's slice is cut and joined. "out" is the axis of output
 * features (I for gate and up, H for down), "in" the other one. */
typedef enum moec_geometry {
    MOEC_GEO_MATRIX = 0, /* [out, in...]; [in, out] where in_out is set, and
                            then transposed on the way. Weights, packed
                            weights, block, group and row scales */
    MOEC_GEO_MATRIX_KEPT = 1, /* [in, out] and stays so (AWQ, GPTQ): gate and
                                 up join on the last axis */
    MOEC_GEO_OUT_VECTOR = 2,  /* [out]: a bias */
    MOEC_GEO_SCALAR = 3,      /* [] or [1]: one number per projection */
    MOEC_GEO_RECORD = 4       /* a small array about the whole projection, as
                                weight_shape [2]: stacked, never cut */
} moec_geometry;

/* One source of a layer: a (role, part, component). */
typedef struct moec_slice {
    uint8_t role;        /* MOEC_ROLE_ROUTED or MOEC_ROLE_SHARED */
    uint8_t part;        /* moec_part */
    uint8_t geometry;    /* moec_geometry */
    uint8_t in_out;      /* MATRIX only: the source is [in, out] */
    uint8_t interleaved; /* GATE_UP only: gate, up, gate, up along out */
    uint8_t stacked;     /* 1: tensors[0] holds all experts, one slice after
                             the other (leading axis, or row blocks) */
    uint8_t dtype;       /* moec_dtype */
    uint8_t all_slots;   /* 1: every rank needs it of all slots */
    uint8_t by_block;    /* 1: a scale of the config's weight_block_size */
    uint8_t of_packed;   /* 1: a scale of weights below 8 bits */
    uint8_t reserved[6];
    uint32_t block[2];     /* features out and in, where by_block */
    const char *component; /* suffix behind w13_ and w2_: "weight", "bias",
                              "weight_scale_inv" ...; equal strings are one
                              pointer within a model */
    uint32_t rank;         /* of ONE expert's slice as the source has it: the
                              leading axis of a stacked source is gone, row
                              blocks are divided */
    uint64_t shape[MOEC_RANK_MAX];
    uint64_t bytes;          /* of one slice */
    uint32_t n_tensors;      /* 1 where stacked or shared, else E */
    const uint32_t *tensors; /* ckpt tensor indices, by logical expert */
} moec_slice;

typedef struct moec_layer_slices {
    moec_moe_layer layer;
    size_t n_slices;
    const moec_slice *slices; /* routed ones first; sorted by (role,
                                 component order of the family, part) */
} moec_layer_slices;

/* Where the moec_fact was found, as moec_config_origin says it. */
const char *moec_model_origin(const moec_model *model, uint32_t fact);

/* Slices of MoE layer `i`. */
const moec_layer_slices *moec_model_slices(const moec_model *model, size_t i);

#endif
