/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_PLACE_H
#define MOEC_PLACE_H

/*
 * What this is: another placement for a conversion, made of its own bytes.
 * Threads: one call, one output directory; the call blocks.
 * Errors: those of convert.h; MAPPING (the layout is no re-placement of the
 *   source), INTEGRITY (M05: files of other sizes; a file changed meanwhile).
 */

#include "convert.h"

/* What changes from one placement to the other. */
typedef struct moec_place_figures {
    uint64_t n_slots;       /* in all layers, shared ones too */
    uint64_t n_changed;     /* that hold another expert than before */
    uint64_t bytes_changed; /* of those */
} moec_place_figures;

moec_place_figures moec_place_count(const moec_plan *old, const moec_plan *now);

/* Write the conversion that `layout` says into `out_dir`, byte for byte what a
 * fresh conversion of the source would be, provenance.json apart. `layout` is
 * of opts->source's model, with the same options but for placement and ranks.
 *
 * Bytes come out of opts->source's files: shared (reflink) where the file
 * system can and they are aligned alike, else copied in the kernel. Digests
 * are carried over, not computed: bytes that are damaged there are damaged
 * here, and verify says so. With opts->force `out_dir` may be the source
 * itself: it is exchanged once the new one is complete. Goes on after an
 * interruption as moec_convert does. */
moec_status moec_place(const moec_layout *layout, const char *out_dir,
                       const moec_convert_opts *opts, moec_convert_stats *stats,
                       moec_error *err);

/* Where `out_dir` was replaced and the process died before it removed the old
 * one: remove that. What an interrupted job left is left to it. */
moec_status moec_place_tidy(const char *out_dir, moec_error *err);

#endif
