/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_CLI_BALANCE_H
#define MOEC_CLI_BALANCE_H

/*
 * What this is: from --logical-count and the options beside it to a
 *   placement, for every command that takes them.
 * Lifetime: what is made is the caller's.
 * Threads: one thread at a time.
 * Errors: the library's.
 */

#include "cli.h"

/* Usage rules of these options. Returns NULL or the complaint. */
const char *moec_cli_check_balance(const moec_cli *cli);

/* Read a file of load counts; `model` may be NULL. */
moec_status moec_cli_read_counts(moec_counts **out, const moec_model *model,
                                 const char *path, moec_error *err);

/* The options as the library takes them; groups of the model where the option
 * does not say. */
moec_eplb_opts moec_cli_eplb_opts(const moec_cli *cli, const moec_model *model);

/* Read a placement file, for `model` or, with NULL, by itself for `counts`. */
moec_status moec_cli_read_placement(moec_placement **out,
                                    const moec_model *model,
                                    const moec_counts *counts, const char *path,
                                    moec_error *err);

/* Place by the counts. Layers that the file has no row for (MTP layers) get
 * the trivial row. EPLB's order of copies (moec_eplb) goes to *replica, which
 * may be NULL; free(3); the planner has none. */
moec_status moec_cli_balance(moec_placement **out, uint32_t **replica,
                             const moec_cli *cli, const moec_model *model,
                             const moec_counts *counts, moec_error *err);

#endif
