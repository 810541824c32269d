/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_CONFINE_H
#define MOEC_CONFINE_H

/*
 * What this is: which paths a command line names, and the sandbox around
 *   them. confine.c has a table of what each command writes.
 * Lifetime: until the process ends.
 * Threads: one thread at a time, before any other is started.
 * Errors: no memory; of the kernel none: sandbox.h.
 */

#include "cli.h"

/* Enter the sandbox, unless --no-sandbox or MOEC_NO_SANDBOX was said or a
 * plug-in is asked for. False: no memory for its paths. */
bool moec_cli_confine(const moec_cli *cli);

#endif
