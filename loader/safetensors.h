/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_SAFETENSORS_H
#define MOEC_SAFETENSORS_H

/*
 * What this is: the header of one safetensors file, checked and turned into a
 *   flat table.
 *     1. 8 bytes: N, little endian, at most 100,000,000
 *     2. N bytes: one JSON object, NAME -> {"dtype", "shape",
 *        "data_offsets": [begin, end] from the begin of the data}, beside an
 *        optional "__metadata__" of strings; JSON whitespace around it
 *     3. data, tiled by the tensors without hole or overlap, to the last byte
 * Lifetime: moec_header owns its tensors, names and shapes until _fini, but
 *   where moec_header_read was given an arena: then they are that one's.
 * Threads: one header, one thread; several headers may be read side by side.
 * Errors: FORMAT (H01..H23), IO, NOMEM. On failure nothing is left to free.
 */

#include <moec/loader.h>

#include "base/base.h"
#include "table.h"

typedef struct moec_header {
    moec_tensor *tensors; /* in the header's order; `file` is 0 */
    size_t n_tensors;
    uint32_t *breaks; /* tensors that stand, by name, before the one before */
    size_t n_breaks;
    uint64_t header_bytes; /* 8 + N */
    uint64_t data_bytes;   /* sum of all tensors */
    moec_sha256 sha256;    /* of the first 8 + N bytes */
    uint64_t names_sum;    /* moec_nameset_hash of all names, added up */
    moec_arena arena;      /* names and shapes */
    bool lent;             /* tensors, names and shapes are the caller's */
    /* Legal, and worth a word. */
    bool leading_space;        /* whitespace before the object */
    const char *unknown_field; /* first field that the format does not have */
    const char *unknown_in;    /* ... and the tensor that has it */
} moec_header;

/* Read the header of `fd`, a file of `file_bytes` bytes. `name` is for the
 * messages, `secret` for names_sum (NULL: a random one). What the table is of
 * goes to `arena`, which many headers may share, or with NULL to the header's
 * own; a failure leaves there what it had read. Memory: a window of at most
 * 256 KiB beside the table. */
moec_status moec_header_read(moec_header *out, int fd, uint64_t file_bytes,
                             const char *name, const uint64_t secret[2],
                             moec_arena *arena, moec_error *err);

/* The same for a header in memory: `n` bytes from the begin of a file that
 * has `file_bytes`. Bytes behind the header are not looked at. */
moec_status moec_header_parse(moec_header *out, const void *data, size_t n,
                              uint64_t file_bytes, const char *name,
                              moec_error *err);

void moec_header_fini(moec_header *h);

/* The runs of the table, in its order, to `out`. Returns how many. */
size_t moec_header_n_runs(const moec_header *h);
size_t moec_header_runs(const moec_header *h, moec_run *out);

#endif
