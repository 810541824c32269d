/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_CLI_RESULTS_H
#define MOEC_CLI_RESULTS_H

/*
 * What this is: level 3's results as validate and check print them.
 * Lifetime: borrows the validation.
 * Threads: one thread at a time.
 * Errors: none.
 */

#include "cli.h"
#include "print.h"

/* The library's options out of the arguments; source, layout, families and
 * progress are the caller's. */
moec_validate_opts moec_cli_validate_opts(const moec_cli *cli);

/* True where nothing was found that makes this run fail. */
bool moec_cli_results_passed(const moec_cli *cli, const moec_validation *v);

/* The members "layers", "not_proved" and "findings". */
void moec_cli_json_results(moec_cli_json *j, const moec_validation *v);

/* A line a layer; what was not proved, and the verdict. */
void moec_cli_print_layers(FILE *f, const moec_cli *cli,
                           const moec_validation *v);
void moec_cli_print_limits(FILE *f, const moec_cli *cli,
                           const moec_validation *v, bool ok);

#endif
