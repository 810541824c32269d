/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_CLI_VERDICT_H
#define MOEC_CLI_VERDICT_H

/*
 * What this is: a report of the theorems as verify and check print it.
 * Lifetime: borrows the report.
 * Threads: one thread at a time.
 * Errors: none.
 */

#include "cli.h"
#include "print.h"

/* True where nothing was found that makes this run fail. */
bool moec_cli_proof_passed(const moec_cli *cli, const moec_report *report);

/* The members "theorems" and "findings". */
void moec_cli_json_proof(moec_cli_json *j, const moec_report *report);

/* The theorems, the findings, the verdict over the first path. */
void moec_cli_print_proof(const moec_cli *cli, const moec_report *report,
                          bool ok);

#endif
