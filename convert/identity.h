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

/* Of a conversion: program, options, family, source files (size, inode, time,
 * header), the moves, placement and layout. `header_sha256` are those of the
 * output's data files. Appends to `out`. */
moec_status moec_identity_convert(const moec_layout *layout,
                                  const moec_sha256 *header_sha256,
                                  const moec_convert_opts *opts, moec_buf *out,
                                  moec_error *err);

/* Of the way back from `c`. */
moec_status moec_identity_unconvert(const moec_converted *c, moec_buf *out,
                                    moec_error *err);

#endif
