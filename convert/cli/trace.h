/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TRACE_H
#define MOEC_TRACE_H

/*
 * What this is: one expert followed through a layout: the stretches of the
 *   source that it is made of, and the slots that hold it.
 * Lifetime: fill in key, expert and shared, run, read, fini. Strings are
 *   borrowed from the layout.
 * Threads: one thread at a time.
 * Errors: MAPPING where there is no such layer or expert; the library's.
 */

#include "cli.h"

/* A stretch of one source tensor. */
typedef struct moec_trace_region {
    size_t tensor;
    uint64_t from, bytes; /* from: from the begin of the tensor */
    const char *name, *file;
    uint64_t off; /* from the begin of the file */
    uint8_t sha256[32];
    const char *kept_file; /* where it stays a tensor of its own, or NULL */
    uint64_t kept_off;
} moec_trace_region;

typedef struct moec_trace_slot {
    uint32_t rank;
    moec_local_row local;
    moec_slot_id slot;
    uint32_t part;    /* of the shared expert */
    const char *file; /* NULL where the loader fills the row */
    uint64_t off;     /* of the row in the first slot tensor */
} moec_trace_slot;

typedef struct moec_trace {
    moec_layer_key key;
    uint32_t expert;
    bool shared;
    const moec_store *store; /* where the conversion is; NULL: a directory */
    /* filled in by moec_trace_run */
    const moec_layout *layout;
    const char *dir;    /* of a conversion; NULL: the source is at hand */
    const char *prefix; /* "model.layers.3.mlp.experts" */
    size_t layer;       /* planned layer */
    moec_trace_region *regions;
    size_t n_regions, cap_regions;
    moec_trace_slot *slots;
    size_t n_slots, cap_slots;
} moec_trace;

/* One row of one slot tensor. */
typedef struct moec_trace_piece {
    const char *tensor, *file;
    uint64_t off, bytes;
} moec_trace_piece;

/* Follow the expert. `dir` is the conversion's directory where the source
 * itself is not at hand: digests are then taken of its slots, taken back. */
moec_status moec_trace_run(moec_trace *t, const moec_layout *layout,
                           const char *dir, moec_error *err);

/* Slot tensors of the layer, and one slot's row in the k-th. */
size_t moec_trace_n_pieces(const moec_trace *t);
moec_trace_piece moec_trace_piece_of(const moec_trace *t,
                                     const moec_trace_slot *slot, size_t k);
void moec_trace_fini(moec_trace *t);

#endif
