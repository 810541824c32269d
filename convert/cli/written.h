/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_WRITTEN_H
#define MOEC_WRITTEN_H

/*
 * What this is: what the commands that write a directory share: their options
 *   for the library, and the report of what came of it.
 * Lifetime: as convert.h says of moec_convert_opts.
 * Threads: one thread at a time.
 * Errors: exit codes.
 */

#include <convert.h>

#include "cli.h"
#include "progress.h"
#include "rank_list.h"

/* Options of convert.h out of the arguments. `progress` may be NULL. */
moec_convert_opts moec_cli_convert_opts(const moec_cli *cli,
                                        moec_cli_progress *progress);

/* The command line, quoted for a shell; to be freed; NULL without memory. */
char *moec_cli_command_line(const moec_cli *cli);

/* Report how writing `out` ended: figures, the interruption, or the error.
 * `ranks` are those that were written; NULL, or all of them: `out` is there.
 * Returns the exit code. */
int moec_cli_report_written(const moec_cli *cli, const char *out,
                            const moec_convert_stats *stats,
                            const moec_cli_ranks *ranks, moec_status status,
                            const moec_error *err);

#endif
