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

enum { MOEC_CLI_N_THEOREMS = 6 };

/* The theorem under which a rule's findings stand: itself, else T6. */
moec_rule moec_cli_theorem_of(moec_rule rule);

/* The members of a theorem's object but its findings; the line of it. */
void moec_cli_json_theorem(moec_cli_json *j, size_t i, const moec_theorem *t,
                           bool ok);
void moec_cli_print_theorem(FILE *f, size_t i, const moec_theorem *t, bool ok);
/* Was nothing found against theorem `i` of the report? */
bool moec_cli_theorem_ok(const moec_report *report, size_t i);

/* The members "theorems" and "findings". */
void moec_cli_json_proof(moec_cli_json *j, const moec_report *report);

/* The theorems, the findings, the verdict over the first path. */
void moec_cli_print_proof(const moec_cli *cli, const moec_report *report,
                          bool ok);

#endif
