/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_CHECK_RUN_H
#define MOEC_CHECK_RUN_H

/*
 * What this is: what the three forms of check share: the plain check
 *   (cmd_check.c), many layouts from one parse of the headers (check_matrix.c),
 *   wrong layouts in memory (check_mutate.c).
 * Lifetime: one command.
 * Threads: one thread at a time; the matrix has its own within.
 * Errors: the library's.
 */

#include "ci_report.h"
#include "cli.h"
#include "session.h"

typedef struct moec_check {
    const moec_cli *cli;
    const char *path;
    bool converted;
    moec_level level;
    moec_cli_session s; /* of a source; of a conversion its families */
    moec_conversion *c; /* of a conversion, once something needs it */
    moec_ckpt *source;  /* --source */
    moec_ci_policy policy;
    moec_ci_baseline baseline;
    moec_ci_report report;
} moec_check;

const char *moec_check_level_name(moec_level level);

/* The layout that is checked: the options' of a source, a conversion's own.
 * Borrowed. */
moec_status moec_check_open_layout(moec_check *x, const moec_layout **out,
                                   moec_error *err);
/* moec_verify, or moec_verify_mutation where `found` is not NULL. */
moec_status moec_check_read_files(moec_check *x, moec_level level,
                                  moec_mutation kind, int *found,
                                  moec_report **out, moec_error *err);
/* moec_validate, or moec_validate_mutation where `found` is not NULL. */
moec_status moec_check_run_kernels(moec_check *x, moec_mutation kind,
                                   int *found, moec_validation **out,
                                   moec_error *err);

/* Add what the policy's limits find in a layout to the run that is open, and
 * fill in the run's figures. */
void moec_check_limits(moec_check *x, const moec_layout *layout);
/* A conversion against each of the policy's targets. */
void moec_check_targets(moec_check *x, const moec_layout *layout);

/* Usage of --matrix: NULL, or the complaint. */
const char *moec_check_wrong_matrix(const moec_cli *cli,
                                    char why[MOEC_OPT_WHY_BYTES]);
/* Is there more than one layout to prove? */
bool moec_check_has_matrix(const moec_check *x);
/* Prove every combination of --matrix and every target of the policy, each a
 * run of the report. */
moec_status moec_check_matrix(moec_check *x, moec_error *err);

/* --mutate. `list`: the kinds and no more. */
bool moec_check_wants_kinds(const moec_cli *cli);
int moec_check_list_kinds(const moec_cli *cli);
/* Exit code of a complaint about the words of --mutate, or MOEC_EXIT_OK. */
int moec_check_wrong_kinds(const moec_check *x);
int moec_check_mutate(moec_check *x);

#endif
