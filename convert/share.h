/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_SHARE_H
#define MOEC_SHARE_H

/*
 * What this is: who does what of a conversion: the pieces that are moved, the
 *   rows that hold each, and which ranks owe it. One process that converts
 *   everything owes every piece; of several, each owes those of its ranks.
 * Lifetime: init, fini. Plan, layout and digests are borrowed.
 * Threads: immutable once made: share freely.
 * Errors: NOMEM.
 *
 * How a job is divided among ranks. Files that no rank owns (common, shared)
 * go round the ranks, whole. For slots there are two ways, and all processes
 * of a job take the same one:
 *   once       a piece is read by the first rank that holds it, which writes
 *              it into the files of the others too: each source byte is read
 *              once in the whole job. Shared parts go round the ranks by layer.
 *   each file  a rank writes its own file and nothing else: replicas and
 *              shared parts are read by every rank's process. For file systems
 *              on which two hosts that write neighbouring bytes of one page
 *              lose some (NFS without locks).
 */

#include <stdbool.h>

#include <moec/mapping.h>

#include "digests.h"

#define MOEC_NO_BLOCK UINT32_MAX

/* One thing to move: a block (planned layer, slot tensor, unit), or, with
 * layer MOEC_NO_BLOCK, the common tensor `unit`. */
typedef struct moec_share_piece {
    uint32_t layer, t, unit;
} moec_share_piece;

/* Slots of one planned layer: physical ids by unit, ascending. */
typedef struct moec_places {
    uint32_t *first; /* n_experts + 1 */
    uint32_t *slots;
    uint32_t *empty; /* physical ids of empty slots */
    uint32_t n_empty;
} moec_places;

typedef struct moec_share {
    const moec_layout *layout;
    const moec_plan *plan;
    const moec_digests *d;
    bool once;           /* see above */
    bool whole;          /* there is one process, and it owes everything */
    moec_places *places; /* by planned layer */
    size_t first_common; /* first file that no rank owns */
} moec_share;

moec_status moec_share_init(moec_share *s, const moec_layout *layout,
                            const moec_digests *d, moec_error *err);
void moec_share_fini(moec_share *s);

/* The rank that owes the piece in a place on rank `place`; 0 where whole. */
uint32_t moec_share_debtor(const moec_share *s, moec_share_piece p,
                           uint32_t place);

/* Does rank `rank` owe the piece in some place? */
bool moec_share_owes(const moec_share *s, uint32_t rank, moec_share_piece p);

/* The piece's leaves: the first one, and how many. */
uint64_t moec_share_leaf(const moec_share *s, moec_share_piece p,
                         uint64_t *n_out);

/* Call fn for every piece of the layout until one call fails. */
typedef moec_status (*moec_share_piece_fn)(void *ctx, moec_share_piece p,
                                           moec_error *err);
moec_status moec_share_each(const moec_share *s, moec_share_piece_fn fn,
                            void *ctx, moec_error *err);

/* Units of a layer: experts, then shared rows. */
uint32_t moec_share_units(const moec_share *s);

#endif
