/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_BUCKET_H
#define MOEC_BUCKET_H

/*
 * What this is: a conversion written into an object store (objects.h) without
 *   a local copy: the same bytes as moec_convert and moec_finalize write into a
 *   directory. bucket.c, bucket_finalize.c.
 * Threads: one thread at a time.
 * Errors: as convert.h says of moec_convert, and the store's.
 *
 * What stands there while it is under way, besides the data files:
 *   .moec-job             identity: source and options of all who work there
 *   .moec-leaves-FILE     digests of a data file that is complete (span.h)
 *   .moec-manifest        manifest.json without digests, of several processes
 * manifest.json comes last and only where none is; then these go.
 */

#include "convert.h"

struct moec_objects;

/* Convert into `to`, or with opts->ranks its files of those ranks. A file that
 * no rank owns is one rank's, in turn. Parts that an interrupted run left are
 * kept where their bytes are the right ones. Without opts->ranks and with wrong
 * input nothing stays. */
moec_status moec_convert_objects(const moec_layout *layout,
                                 const struct moec_objects *to,
                                 const moec_convert_opts *opts,
                                 moec_convert_stats *stats, moec_error *err);

/* Buffer memory that it takes. */
uint64_t moec_convert_objects_memory(const moec_layout *layout,
                                     const moec_convert_opts *opts);

/* Make a conversion of what several processes wrote. Where it is one already,
 * *before_out is set, and what was under way is tidied up. */
moec_status moec_finalize_objects(const struct moec_objects *to,
                                  moec_convert_stats *stats, bool *before_out,
                                  moec_error *err);

#endif
