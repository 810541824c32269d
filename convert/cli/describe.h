/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_DESCRIBE_H
#define MOEC_DESCRIBE_H

/*
 * What this is: the table of commands and its options in the forms that
 *   systems install: man pages, and completions for bash, zsh and fish. They
 *   come from the rows that --help and the parser come from, so that none of
 *   them can disagree.
 * Lifetime: nothing is kept.
 * Threads: one thread at a time.
 * Errors: of files: false, with errno set.
 */

#include <stdio.h>

#include "cli.h"

/* Write one page a command into directory `dir`: moe-convert.1,
 * moe-convert-check.1, moe-convert-placement-check.1, ... */
bool moec_cli_write_man(const moec_cli_command *const *commands,
                        const char *dir);

/* Write the completion for a shell (bash, zsh, fish). False: no such shell. */
bool moec_cli_write_completion(FILE *f, const moec_cli_command *const *commands,
                               const char *shell);

#endif
