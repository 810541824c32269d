/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_ACTIVATIONS_H
#define MOEC_ACTIVATIONS_H

/*
 * What this is: the hidden states that level 3 sends through every MoE layer:
 *   drawn from a seed, recorded in a file, or those of an independent
 *   reference, whose answers lie beside them.
 * Lifetime: open, then batches and answers layer by layer, close. A batch owns
 *   its numbers.
 * Threads: immutable once open: share freely.
 * Errors: FORMAT (a file that is not safetensors, or a tensor of another
 *   shape), IO, NOMEM, those of the files.
 */

#include <moec/kernels.h>
#include <moec/loader.h>

#include "base/base.h"

/* Rows of a recorded tensor that are used: the rest would prove no more. */
#define MOEC_ACTIVATION_ROWS_MAX 1024u
/* References of one layer: t64, t1, ... */
#define MOEC_ACTIVATION_PARTS_MAX 8u

typedef struct moec_activations {
    const moec_kernels *k; /* casts; borrowed */
    uint64_t seed;
    uint32_t n_tokens;
    moec_ckpt *inputs, *golden;
    bool has_tolerance;
    double tolerance; /* absolute, of fixture.json */
} moec_activations;

/* One stretch of a batch's rows that has a reference. */
typedef struct moec_reference {
    char prefix[128]; /* "layers.3.t64." */
    uint32_t first, n;
} moec_reference;

typedef enum moec_batch_kind {
    MOEC_BATCH_SEEDED = 0,
    MOEC_BATCH_RECORDED = 1,
    MOEC_BATCH_GOLDEN = 2
} moec_batch_kind;

typedef struct moec_batch {
    moec_batch_kind kind;
    uint32_t n_rows;
    uint64_t n_left_out; /* recorded rows that are not used */
    uint64_t hidden;
    float *x; /* [n_rows][hidden] */
    size_t n_parts;
    moec_reference parts[MOEC_ACTIVATION_PARTS_MAX];
} moec_batch;

/* Open the files, either of which may be NULL. Close is the caller's, after a
 * failure too. */
moec_status moec_activations_open(moec_activations *a, const char *inputs,
                                  const char *golden, moec_error *err);
void moec_activations_close(moec_activations *a);

/* The rows for one layer; `number` is the layer's in the source's names. */
moec_status moec_batch_make(moec_batch *out, const moec_activations *a,
                            moec_layer_key key, uint32_t number,
                            uint64_t hidden, moec_error *err);
void moec_batch_fini(moec_batch *b);

/* Read answer `what` of a reference: [part->n][n_cols] as float32, or int32
 * where `ids`, into `out`. *found_out is false where the reference has none. */
moec_status moec_reference_read(const moec_activations *a,
                                const moec_reference *part, const char *what,
                                uint64_t n_cols, bool ids, void *out,
                                bool *found_out, moec_error *err);

/* Columns of that answer, 0 where there is none of rank 2. */
uint64_t moec_reference_cols(const moec_activations *a,
                             const moec_reference *part, const char *what);
/* Token ids [part->n] of a reference: "PREFIX" or, of all layers, "t64." or
 * nothing, and "tokens", "token_ids" or "input_ids"; I32 or I64. */
moec_status moec_reference_tokens(const moec_activations *a,
                                  const moec_reference *part, int32_t *out,
                                  bool *found_out, moec_error *err);

/* The largest difference allowed in answer `v` [n]. */
double moec_reference_tolerance(const moec_activations *a, const float *v,
                                uint64_t n);

/* Next number of a stream: splitmix64. */
uint64_t moec_next_random(uint64_t *state);

#endif
