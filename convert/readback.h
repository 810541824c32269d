/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_READBACK_H
#define MOEC_READBACK_H

/*
 * What this is: the data files of a conversion, read by slots. Every byte is
 *   checked on the way against the leaves of slots.bin: a damaged slot is
 *   INTEGRITY (T3) naming file and byte, never data.
 * Lifetime: open, hire, then one reader for each worker, close.
 * Threads: a moec_readback is immutable once hired; a reader is one thread's.
 * Errors: FORMAT, INTEGRITY (M05, T3), IO, NOMEM.
 */

#include "converted.h"
#include "execute.h"
#include "inverse.h"
#include "io.h"

/* One worker's reading. To check a leaf all of it must be read, so a request
 * that takes part of one reads the whole leaf and keeps it for the next
 * request; inverse moves walk a slot forward, so no leaf is read twice but at
 * borders of work. */
typedef struct moec_reader {
    struct moec_readback *rb;
    moec_inverse inv; /* what to read: the caller's to fill before _aim */
    uint64_t slots[MOEC_INVERSE_MOVES_MAX]; /* of inv.from, in slots.bin */
    moec_io_buf *io;                        /* of the fill under way */
    moec_scratch scratch;
    uint64_t slot, leaf; /* that `data` holds; UINT64_MAX: none */
    unsigned char data[MOEC_LEAF_BYTES];
} moec_reader;

typedef struct moec_readback {
    const moec_layout *layout;  /* of the conversion */
    const moec_converted *conv; /* its files; both borrowed */
    size_t n_files;
    moec_io_file *files;
    char **paths;
    uint32_t n_readers;
    moec_reader *readers;
} moec_readback;

/* Open the data files of `conv`, whose layout is `layout`. On failure too,
 * close is the caller's. */
moec_status moec_readback_open(moec_readback *rb, const moec_layout *layout,
                               const moec_converted *conv, bool no_direct,
                               moec_error *err);
/* Make `n` readers. */
moec_status moec_readback_hire(moec_readback *rb, uint32_t n, moec_error *err);
/* Zero-initialised is fine. */
void moec_readback_close(moec_readback *rb);

/* Find the slots that r->inv reads. */
moec_status moec_reader_aim(moec_reader *r, moec_error *err);

/* Fill dst[0, to - from) with bytes [from, to) of the block r->inv, which was
 * aimed. */
moec_status moec_reader_fill(moec_reader *r, moec_io_buf *io, uint64_t from,
                             uint64_t to, void *dst, moec_error *err);

#endif
