/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_PLACEMENT_H
#define MOEC_PLACEMENT_H

/*
 * What this is: what plan.c asks of a placement beyond the public mapping.h,
 *   and the seam between placement_formats.c (text) and placement.c (rows).
 * Lifetime: as in mapping.h; nothing here is borrowed after return.
 * Threads: a placement is immutable once made: share freely.
 * Errors: MAPPING (P03..P07), FORMAT (P01..P04), UNSUPPORTED (P01), NOMEM.
 */

#include <moec/mapping.h>

#include "base/base.h"

/* Most physical slots of a layer that we accept: far above any known job
 * (Kimi-K3 has 3,584), low enough that a mistyped --redundant is refused and
 * not allocated. */
#define MOEC_PLACEMENT_SLOTS_MAX (1u << 20)

/* Room for the text of moec_layer_text. */
#define MOEC_LAYER_TEXT_BYTES 24

/* Write "layer 3" or "mtp layer 0" into `buf` and return it. */
const char *moec_layer_text(moec_layer_key key,
                            char buf[MOEC_LAYER_TEXT_BYTES]);

/* moec_placement_from_rows with the layers' names for messages: `keys` has
 * `n_layers` entries, or is NULL (then layers are named by their row). */
moec_status moec_placement_make(moec_placement **out, uint32_t n_experts,
                                uint32_t n_physical, const int32_t *p2l,
                                const moec_layer_key *keys, size_t n_layers,
                                moec_error *err);

/* Refuse a placement that does not fit `n_ranks` ranks (P06, P07: the message
 * names the smallest R that does), has not one row for each of the `n_keys`
 * layers (P02), or leaves a logical expert without a slot (P05). */
moec_status moec_placement_fits(const moec_placement *p, uint32_t n_ranks,
                                const moec_layer_key *keys, size_t n_keys,
                                moec_error *err);

/* Make a copy of `p` whose rows end in as many MOEC_EMPTY_SLOT as bring P to
 * a multiple of `n_ranks` (--allow-empty); none where it is one already.
 * More ranks than filled slots are still refused (P07). */
moec_status moec_placement_padded(moec_placement **out, const moec_placement *p,
                                  uint32_t n_ranks, moec_error *err);

/* Replicas that balance nothing: slots of a rank whose expert the same rank
 * holds in a lower slot already. */
typedef struct moec_same_rank {
    uint32_t n_slots; /* such slots in the layer; 0: the rest is not set */
    uint32_t rank;    /* of the first one */
    moec_logical_id expert;
    moec_physical_id first, second; /* the two slots, ascending */
} moec_same_rank;

/* Count them in row `layer` < n_layers. P must divide by `n_ranks`. */
moec_status moec_placement_same_rank(const moec_placement *p, uint32_t layer,
                                     uint32_t n_ranks, moec_same_rank *out,
                                     moec_error *err);

/* moec_placement_parse without a model. */
moec_status moec_placement_parse_for(moec_placement **out,
                                     const moec_placement_target *target,
                                     const char *name, const char *text,
                                     size_t n, moec_error *err);

#endif
