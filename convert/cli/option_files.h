/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_OPTION_FILES_H
#define MOEC_OPTION_FILES_H

/*
 * What this is: files that options and arguments name, whole: read into
 *   memory, written so that others see all of it or nothing.
 * Lifetime: *out is the caller's, free(3).
 * Threads: one thread at a time.
 * Errors: FORMAT (absent, no regular file, too large), ARG (exists, no
 *   force), IO, NOMEM.
 */

#include "cli.h"

/* Load counts of many steps are larger than other small documents. */
#define MOEC_CLI_COUNTS_BYTES_MAX (UINT64_C(1) << 30)

/* Read a whole regular file of at most `max` bytes, NUL-terminated. `rule` is
 * the one that its absence breaks. */
moec_status moec_cli_read_file(const char *path, moec_rule rule, uint64_t max,
                               char **out, size_t *bytes_out, moec_error *err);

/* The same of a placement: `*path` may be JSON itself, as SGLang takes it; it
 * is then replaced with what messages call it. */
moec_status moec_cli_read_placement_file(const char **path, char **out,
                                         size_t *bytes_out, moec_error *err);

/* Write `n` bytes as `path`; one that exists is replaced with `force` only. */
moec_status moec_cli_write_file(const char *path, const void *data, size_t n,
                                bool force, moec_error *err);

#endif
