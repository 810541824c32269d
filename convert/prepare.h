/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_PREPARE_H
#define MOEC_PREPARE_H

/*
 * What this is: what is known of a conversion before the output is touched:
 *   its data files and their headers, where digests will stand, who owes what,
 *   where bytes come from, and what decides them. convert.c.
 * Lifetime: init, fini; the layout and the options are borrowed.
 */

#include "digests.h"
#include "input.h"
#include "out_job.h"
#include "share.h"

typedef struct moec_prepared {
    const moec_layout *layout;
    const moec_convert_opts *opts;
    moec_input *in; /* NULL without options */
    size_t n_files;
    moec_out_job_file *files;
    moec_sha256 *headers; /* digests, by data file */
    moec_digests digests;
    moec_share share;
    moec_buf identity; /* empty without options */
} moec_prepared;

/* `opts` is NULL where nothing will be read. On failure too, fini is the
 * caller's. */
moec_status moec_prepare(moec_prepared *p, const moec_layout *layout,
                         const moec_convert_opts *opts, moec_error *err);
void moec_prepared_fini(moec_prepared *p);

/* Write the headers of all data files. */
moec_status moec_prepared_headers(const moec_prepared *p, moec_writer *w,
                                  moec_error *err);

/* Fail unless the layout proves (T1, T2, T4, T5). */
moec_status moec_prove_layout(const moec_layout *layout, moec_error *err);

/* Of a clock that is not set. */
double moec_seconds_now(void);

/* ranks.c: moec_convert where opts->ranks is given. The layout is proved. */
moec_status moec_convert_ranks(const moec_layout *layout, const char *out_dir,
                               const moec_convert_opts *opts,
                               moec_convert_stats *stats, moec_error *err);

/* ------------------------------------------- what several processes share */

/* Names in OUT.partial of rank `rank`'s journal and lock, into buf. */
#define MOEC_RANK_NAME_BYTES 32
void moec_rank_journal_name(char buf[MOEC_RANK_NAME_BYTES], uint32_t rank);
void moec_rank_lock_name(char buf[MOEC_RANK_NAME_BYTES], uint32_t rank);

/* M05: ranks are missing; names them. */
moec_status moec_fail_missing(const char *where, const uint8_t *missing,
                              uint32_t n_ranks, moec_error *err);

/* Last line of the job's identity. */
#define MOEC_LINE_ONCE  "ranks read once\n"
#define MOEC_LINE_FILES "ranks write their own files\n"

#endif
