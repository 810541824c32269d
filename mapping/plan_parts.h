/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_PLAN_PARTS_H
#define MOEC_PLAN_PARTS_H

/*
 * What this is: the inside of a moec_plan, shared by plan.c (topology, fates,
 *   access), plan_slots.c (slot tensors of a layer) and plan_moves.c (what
 *   fills one block of them), and by nobody else.
 * Lifetime: all is the plan's; slices are borrowed from the model.
 */

#include <moec/mapping.h>

#include "base/base.h"
#include "model.h"

/* A slot tensor and where its rows come from. Halves of w13 are gate (0) and
 * up (1); both point to one slice where the source holds both. */
typedef struct moec_slot_spec {
    moec_slot_tensor pub;
    const moec_slice *routed[2];
    const moec_slice *shared[2];
    uint32_t n_halves; /* 2: gated w13; 1: ungated w13, w2 */
    uint64_t largest;  /* bytes of the component's largest slice */
} moec_slot_spec;

typedef struct moec_plan_layer {
    size_t model_layer;
    size_t n_specs;
    moec_slot_spec *specs;
} moec_plan_layer;

struct moec_plan {
    const moec_model *model;
    moec_plan_opts opts;
    moec_placement *placement;
    moec_topology topo;
    uint32_t n_experts;
    uint32_t shared_rows;
    bool requantises;
    size_t n_layers;
    moec_plan_layer *layers;
    uint8_t *fates; /* moec_fate by source tensor */
    size_t n_notes, cap_notes;
    moec_note *notes;
    moec_arena arena;
};

/* A slice as a matrix: `out` features, each of `in` elements of `elem` bytes.
 * Sub-byte elements count as bytes: they are never turned. */
typedef struct moec_slice_dims {
    uint64_t out, in;
    uint32_t elem;
} moec_slice_dims;

/* ---------------------------------------------------------- plan_slots.c */

moec_slice_dims moec_slice_dims_of(const moec_slice *s);
/* Outputs of one half of a slice, which `m` is as a matrix: a source of gate
 * and up holds both. */
uint64_t moec_slice_half(const moec_slice *s, const moec_slice_dims *m);
uint8_t moec_slice_op(const moec_slice *s);

/* Make the slot tensors of the layer. */
moec_status moec_plan_make_layer(moec_plan *p, moec_plan_layer *pl,
                                 moec_error *err);

#endif
