/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_VERIFY_H
#define MOEC_VERIFY_H

/*
 * What this is: what the passes of moec_verify share: the opened conversion,
 *   its data files, one set of buffers for each worker, the progress.
 * Threads: a worker uses its own buffers; the rest is immutable while a
 *   parallel loop runs, but for the report and the progress, which lock.
 */

#include <pthread.h>

#include <moec/validate.h>

#include "base/base.h"
#include "conversion.h"
#include "execute.h"
#include "inverse.h"
#include "io.h"
#include "mutate.h"
#include "report.h"

/* Bytes that a worker reads at a time: whole leaves. */
#define MOEC_VERIFY_RANGE_BYTES ((size_t)4 << 20)
/* Blocks that a worker keeps while it takes transposed ones back: gate and up
 * may be two sources of one slot. */
#define MOEC_VERIFY_KEPT 2u
/* Memory for all kept blocks together; one worker may always keep its own. */
#define MOEC_VERIFY_KEPT_BYTES (UINT64_C(512) << 20)

/* One block of a source tensor, taken back from the output files. */
typedef struct moec_kept_block {
    size_t tensor, block;
    bool valid;
    bool whole; /* `data` has its bytes; else they are read when asked for */
    moec_inverse inverse;
    unsigned char *data;
    uint64_t cap;
} moec_kept_block;

typedef struct moec_verify_worker {
    unsigned char *a, *b; /* MOEC_VERIFY_RANGE_BYTES each, aligned */
    moec_io_buf io;
    moec_scratch scratch, inner;
    moec_kept_block kept[MOEC_VERIFY_KEPT];
    uint32_t next_kept;
} moec_verify_worker;

typedef struct moec_verifier {
    moec_report *r;
    const moec_verify_opts *opts;
    moec_level level;
    moec_patches *patches; /* a mutation, or NULL */
    moec_conversion *c;
    const moec_converted *files;
    const moec_layout *layout; /* NULL: could not be decided again */
    const moec_plan *plan;     /* of the layout */
    bool table_ok;             /* slots.bin has the layout's tables */
    bool source_ok;            /* opts->source is the one converted */
    uint64_t n_skipped;        /* sources left out of the conversion */
    moec_io_file *io;          /* by data file; fd -1: not fit to be read */
    moec_io_file *source_io;   /* by file of opts->source */
    size_t *file_first;        /* by file: its first tensor in slots.bin */
    uint32_t n_rows;           /* slots of a rank */
    uint32_t n_units;          /* of a layer, without the empty one */
    size_t *layer_first;       /* planned layer -> first of its tensors */
    size_t n_slot_tensors;     /* of all layers */
    size_t *slot_tensor;       /* [rank][layer_first + t]: in slots.bin */
    uint32_t *first_slot;      /* [layer][unit]: rank * n_rows + row */
    uint32_t n_workers;
    moec_verify_worker *workers;
    pthread_mutex_t lock; /* of the progress */
    uint64_t done, total, told;
    bool cancelled;
} moec_verifier;

/* moec_verify with a mutation: what concerns other files than the changed ones
 * is not read, and neither source nor way back are looked at. */
moec_status moec_verify_patched(moec_report **out, const char *dir,
                                const moec_verify_opts *opts,
                                moec_patches *patches, moec_error *err);

/* Structure: data files (M05, M06), copied files (M08), the index (I08), and
 * slots.bin against the layout (M03). verify_files.c */
moec_status moec_verify_copied(moec_verifier *v, moec_error *err);
moec_status moec_verify_files(moec_verifier *v, moec_error *err);
moec_status moec_verify_table(moec_verifier *v, moec_error *err);

/* Every byte of the data files against slots.bin: T3, M07. verify_bytes.c */
moec_status moec_verify_bytes(moec_verifier *v, moec_error *err);

/* Slots and common tensors against the source: T3. verify_source.c */
moec_status moec_verify_identity(moec_verifier *v, moec_error *err);
moec_status moec_verify_source(moec_verifier *v, moec_error *err);
/* The way back: T6. verify_inverse.c */
moec_status moec_verify_inverse(moec_verifier *v, moec_error *err);

/* Requantised slots, made once more: T3. verify_requant.c */
moec_status moec_verify_requantised(moec_verifier *v, moec_error *err);

/* Read bytes of data file `file`: every data byte that a pass looks at comes
 * through here. */
moec_status moec_verify_read(const moec_verifier *v, moec_verify_worker *w,
                             size_t file, uint64_t off, void *buf, size_t n,
                             moec_error *err);

/* Read bytes of source tensor `tensor` from opts->source. */
moec_status moec_verify_read_source(const moec_verifier *v,
                                    moec_verify_worker *w, size_t tensor,
                                    uint64_t off, void *buf, size_t n,
                                    moec_error *err);

/* Rows of a small block that fit one range, at least 1. */
uint64_t moec_verify_batch(uint64_t block_bytes);

/* Count `bytes` more as done; CANCELLED where the caller asks to stop. */
moec_status moec_verify_progress(moec_verifier *v, uint64_t bytes,
                                 moec_error *err);

/* Compare bytes of one block with its leaves in slots.bin, from leaf `leaf`
 * on. Returns the first that differs in *bad_out (SIZE_MAX: none), its digest
 * in *found_out. */
moec_status moec_verify_leaves(const moec_verifier *v, const moec_ct_slot *slot,
                               uint64_t leaf, const void *data, size_t n,
                               size_t *bad_out, moec_sha256 *found_out,
                               moec_error *err);

/* A finding of rule T3, T6 or M07 about slot `row` of tensor `t` of slots.bin,
 * with the byte `at` of the slot. */
moec_finding moec_verify_finding(const moec_verifier *v, moec_rule rule,
                                 const moec_ct_tensor *t, uint64_t row,
                                 uint64_t at);

/* Report that leaf `bad` of slot `row` of `t` has the digest `found`, not the
 * one in slots.bin: T3. The bytes that should stand there have `found`, the
 * ones that do the digest in slots.bin; "leaf 3 `what`". */
void moec_verify_add_leaf(const moec_verifier *v, const moec_ct_tensor *t,
                          uint32_t row, size_t bad, const moec_sha256 *found,
                          const char *what);

/* The slot of slots.bin that is the first to hold (layer, t, unit), or NULL
 * where none does. */
const moec_ct_slot *moec_verify_first(const moec_verifier *v, size_t layer,
                                      size_t t, uint32_t unit,
                                      const moec_ct_tensor **tensor_out,
                                      uint32_t *row_out);

/* Is the unit a shared part that was requantised? No move brings its bytes. */
bool moec_verify_is_made(const moec_verifier *v, uint32_t unit);

/* A piece of work: blocks [first, first + n) of (layer, t), or of a source
 * tensor where `layer` is SIZE_MAX. */
typedef struct moec_verify_piece {
    size_t layer, t;
    uint64_t first, n;
} moec_verify_piece;

/* Pieces over all units that have a slot, of every layer's slot tensors; each
 * small enough for one range, or one block. */
moec_status moec_verify_unit_pieces(const moec_verifier *v,
                                    moec_verify_piece **out, size_t *n_out,
                                    moec_error *err);

#endif
