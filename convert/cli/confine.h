/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_CONFINE_H
#define MOEC_CONFINE_H

/*
 * What this is: which paths a command line names, and the sandbox around
 *   them. A command says in its row of the table what it writes.
 * Lifetime: until the process ends.
 * Threads: one thread at a time, before any other is started.
 * Errors: none: sandbox.h.
 */

#include "cli.h"

/* Enter the sandbox, unless the command has none or --no-sandbox was said. */
void moec_cli_confine(const moec_cli *cli);

#endif
