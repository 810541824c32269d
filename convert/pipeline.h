/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_PIPELINE_H
#define MOEC_PIPELINE_H

/*
 * What this is: the moving part of a conversion: every source byte is read
 *   once, digested once and written to each place that needs it.
 */

#include "convert.h"
#include "digests.h"
#include "input.h"
#include "journal.h"
#include "writer.h"

/* Execute all moves of the input's layout into the files of `w` (file i of the
 * writer is file i of the layout), filling `d`, less those that `journal` (whose cells
 * are the leaves of `d`) has of an earlier run. Adds to stats. */
moec_status moec_pipeline_run(moec_input *in, moec_writer *w, moec_digests *d,
                              moec_journal *journal, moec_convert_stats *stats,
                              moec_error *err);

/* Everything besides the data files: common index, copied files, slots.bin,
 * sources.bin, provenance.json, and manifest.json LAST. finish.c. */
struct moec_output;
moec_status moec_finish_write(const moec_input *in, const moec_digests *d,
                              const moec_sha256 *header_sha256,
                              struct moec_output *out,
                              const moec_convert_stats *stats, moec_error *err);

#endif
