/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_THEOREMS_H
#define MOEC_THEOREMS_H

/*
 * What this is: the theorems of level 1 over moves, units, fates and file
 *   tables that are given as DATA. The snapshots below are filled from a plan
 *   by the _open functions and may be changed before they are proved: that is
 *   how the tests show that each theorem can fail.
 * Lifetime: a snapshot owns its arrays and borrows names and slices from the
 *   plan, which must outlive it.
 * Threads: one thread at a time.
 * Errors: only NOMEM; everything else is a finding.
 */

#include <moec/mapping.h>
#include <moec/validate.h>

#include "base/base.h"
#include "model.h"

/* What the plan says becomes of a source tensor. What the tensor itself is, no
 * plan decides: the checkpoint and the model are asked (16 bytes a tensor, not
 * 48, of half a million). */
typedef struct moec_proof_source {
    const moec_slice *slice; /* NULL: holds no expert's bytes */
    moec_fate fate;
    uint8_t covered; /* set by the proofs: bytes all used by moves */
} moec_proof_source;

/* Facts that all layers share. */
typedef struct moec_proof {
    const moec_ckpt *ckpt;
    const moec_model *model;
    moec_topology topo;
    moec_w13_order w13_order;
    uint32_t n_experts;
    uint32_t shared_rows; /* rows behind the routed ones in every tensor */
    bool allow_empty, no_mtp, shared_store_common;
    bool requantises; /* shared slots are made, not moved */
    size_t n_layers;  /* planned */
    size_t n_sources;
    moec_proof_source *sources; /* by index of the checkpoint's tensor */
    size_t n_notes;
    const moec_note *notes; /* the plan's warnings */
} moec_proof;

/* One planned layer. Unit n_units stands for the empty slot. */
typedef struct moec_proof_layer {
    moec_layer_key key;
    uint32_t model_layer;
    const moec_layer_slices *slices;
    uint32_t n_units; /* E + shared_rows */
    size_t n_tensors;
    moec_slot_tensor *tensors;
    uint32_t *units; /* [n_ranks][n_local + shared_rows] */
    /* What rank 0's rows of a table over all slots hold, one table after the
     * other in the order of `tensors`; NULL where there is none. */
    uint32_t *table_units;
    size_t n_table_units;
    int32_t *p2l;   /* what the placement says, by physical slot */
    uint32_t n_p2l; /* P */
    /* Moves of (tensor t, unit u): [first, first + n) of `moves`. */
    struct moec_proof_block {
        size_t first, n;
    } * blocks; /* [n_tensors][n_units + 1] */
    moec_move *moves;
    size_t n_moves;
} moec_proof_layer;

typedef struct moec_proof_block moec_proof_block;

moec_status moec_proof_open(moec_proof *out, const moec_plan *plan,
                            moec_error *err);
void moec_proof_close(moec_proof *p);

moec_status moec_proof_layer_open(moec_proof_layer *out, const moec_plan *plan,
                                  size_t layer, moec_error *err);
void moec_proof_layer_close(moec_proof_layer *l);

/* Prove T2, T4, T5 and the by-name half of T3 over one layer, and mark the
 * sources that its moves use whole (T1). */
moec_status moec_prove_layer(moec_report *r, moec_proof *p,
                             const moec_proof_layer *l, moec_error *err);

/* End of a move's region on one side, given its offset and strides there.
 * False where it is empty or overflows. */
bool moec_region_end(const moec_move *m, uint64_t off, uint64_t row,
                     uint64_t col, uint64_t *end);

/* Does the move read an existing tensor, and within it? */
bool moec_source_fits(const moec_proof *p, const moec_move *m);

/* T1 over the tensors that one layer's moves read; `placed`[n_units + 1] says
 * which units some row holds: others use nothing. */
moec_status moec_prove_used(moec_report *r, moec_proof *p,
                            const moec_proof_layer *l, const uint8_t *placed,
                            moec_error *err);

/* After all layers: T1 over every source tensor. */
void moec_prove_sources(moec_report *r, const moec_proof *p);

/* Prove over the table of output files that tensors tile each file's data
 * (T2), that every (rank, layer, slot tensor) and every common tensor has
 * exactly one place (T1, T2). `plan` gives the slot tensors' sizes. */
moec_status moec_prove_files(moec_report *r, const moec_proof *p,
                             const moec_plan *plan, const moec_out_file *files,
                             size_t n_files, moec_error *err);

/* All of the above over a plan, and over a layout of it where that is not
 * NULL, into an unfinished report. */
moec_status moec_prove_into(moec_report *r, const moec_plan *plan,
                            const moec_layout *layout, moec_error *err);

#endif
