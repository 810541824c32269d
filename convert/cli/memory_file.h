/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_MEMORY_FILE_H
#define MOEC_MEMORY_FILE_H

/*
 * What this is: open_memstream, but with an end that can be trusted: glibc's
 *   drops what it has no memory for, and fclose says nothing.
 * Lifetime: *text is the caller's once the stream is closed.
 * Threads: one thread at a time.
 * Errors: NULL, or an fclose that is not 0, without memory: *text is NULL then,
 *   and the process ends with 4 (moec_cli_cut), whatever the caller does.
 */

#include <stddef.h>
#include <stdio.h>

FILE *moec_cli_memory_file(char **text, size_t *bytes);

#endif
