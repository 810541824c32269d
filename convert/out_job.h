/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_OUT_JOB_H
#define MOEC_OUT_JOB_H

/*
 * What this is: what convert and unconvert share of one output under way: its
 *   directory, its data files, its journal, and what becomes of them at the
 *   end, good or bad.
 * Lifetime: zero-initialise, fill the first block, begin, end once; the first
 *   block is borrowed until then. Where begin fails there is nothing to end.
 * Threads: one; writer and journal from workers as their headers say.
 * Errors: those of outdir.h, writer.h and journal.h.
 */

#include "convert.h"
#include "journal.h"
#include "outdir.h"
#include "writer.h"

typedef struct moec_out_job_file {
    const char *name;
    uint64_t bytes;
} moec_out_job_file;

typedef struct moec_out_job {
    const moec_convert_opts *opts;
    const moec_out_job_file *files; /* the data files */
    size_t n_files;
    const moec_buf *identity; /* identity.h */
    void *cells;              /* of the journal */
    size_t cell_bytes, n_cells;
    bool sparse; /* take no disk space for data files before it is written */
    /* made by begin */
    moec_output out;
    moec_writer *w;
    moec_journal *journal;
    moec_buf where; /* OUT.partial, for messages */
} moec_out_job;

/* Take OUT.partial, go on with what its journal proves or start over, and open
 * all data files in the writer. */
moec_status moec_out_job_begin(moec_out_job *j, const char *out_dir,
                               moec_error *err);

/* All that is not in the journal (headers) is written: begin it. */
moec_status moec_out_job_work(moec_out_job *j, moec_error *err);

/* All cells are written: make the data files durable. */
moec_status moec_out_job_sync(moec_out_job *j, moec_error *err);

/* Everything is written, or `st` is why not: commit, keep for the same command
 * to go on, or discard (wrong input leaves nothing). Returns the status of the
 * whole. */
moec_status moec_out_job_end(moec_out_job *j, moec_status st, moec_error *err);

#endif
