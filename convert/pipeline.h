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
#include "share.h"
#include "writer.h"

/* What a run works on, all borrowed. */
typedef struct moec_work {
    moec_writer *w; /* file i is file i of the layout */
    moec_digests *d;
    const moec_share *share;
    /* By rank, NULL for ranks of other processes; share->whole: one for all.
     * Their cells are the leaves of `d`. */
    moec_journal *const *journals;
    uint32_t n_journals;
} moec_work;

/* Execute all moves of the input's layout that the ranks with a journal owe,
 * less those that it has of an earlier run. Adds to stats. */
moec_status moec_pipeline_run(moec_input *in, const moec_work *work,
                              moec_convert_stats *stats, moec_error *err);

#endif
