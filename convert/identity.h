/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_IDENTITY_H
#define MOEC_IDENTITY_H

/*
 * What this is: everything that decides the bytes of an output, as lines of
 *   text: for the journal, which compares it and quotes the line that differs.
 *   Threads, memory, --no-direct and the names of input and output directory
 *   decide nothing and are not in it.
 * Errors: IO, NOMEM.
 */

#include "convert.h"
#include "converted.h"

/* Of a conversion: program, options, family, what the input is, the moves,
 * placement and layout. `header_sha256` are those of the output's data files.
 * Appends to `out`. */
struct moec_input;
moec_status moec_identity_convert(const struct moec_input *in,
                                  const moec_sha256 *header_sha256,
                                  moec_buf *out, moec_error *err);

/* Of the way back from `c`. */
moec_status moec_identity_unconvert(const moec_converted *c, moec_buf *out,
                                    moec_error *err);

/* What is read, for either: a conversion (its three files by digest, its data
 * files by size, inode and time); an open file; a digest behind `what`. */
moec_status moec_identity_conversion(const moec_converted *c, moec_buf *out,
                                     moec_error *err);
moec_status moec_identity_file(moec_buf *out, const char *name, int fd,
                               moec_error *err);
/* A file behind a source, by what that says of it. */
void moec_identity_version(moec_buf *out, const char *name, uint64_t bytes,
                           const char *etag);
void moec_identity_hex(moec_buf *out, const char *what, const moec_sha256 *sum);

/* Refuse (ARG) what stands at `where` for being of another identity, naming the
 * first line in which the two differ. */
moec_status moec_identity_refuse(const char *where, const char *then,
                                 size_t n_then, const char *now, size_t n_now,
                                 moec_error *err);

#endif
