/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_COMPARE_H
#define MOEC_COMPARE_H

/*
 * What this is: what differs between two checkpoints, two conversions, or one
 *   of each: tensors by their headers, contents by bytes or by digests.
 * Lifetime: zero-initialise, fill, fini; texts are the object's.
 * Threads: one thread at a time.
 * Errors: IO, FORMAT (I13), NOMEM, CANCELLED.
 */

#include "convert.h"

/* One difference. A side that has nothing there is NULL. */
typedef struct moec_difference {
    const char *about; /* "option", "tensor", "content", "file" */
    const char *name;  /* of the option, the tensor, the file */
    const char *a, *b;
} moec_difference;

typedef struct moec_compare {
    size_t n, cap;
    moec_difference *list;
    uint64_t n_compared;     /* tensors, and slots of slot tensors */
    uint64_t bytes_compared; /* by content */
    struct moec_arena_block *texts;
} moec_compare;

/* Tensors of both by name: those that only one has, other dtypes and shapes. */
moec_status moec_compare_tensors(moec_compare *c, const moec_ckpt *a,
                                 const moec_ckpt *b, moec_error *err);
/* The bytes of tensors that both have with one shape: reads both. */
moec_status moec_compare_bytes(moec_compare *c, const moec_ckpt *a,
                               const moec_ckpt *b,
                               const volatile sig_atomic_t *stop,
                               moec_error *err);
/* Options, and contents by digest: experts slot tensor by slot tensor,
 * wherever they stand, and common tensors. Reads no data file. */
moec_status moec_compare_conversions(moec_compare *c, const moec_conversion *a,
                                     const moec_conversion *b, moec_error *err);
/* Shards of a checkpoint and the ones that a conversion was made from: names,
 * sizes, headers. */
moec_status moec_compare_source(moec_compare *c, const moec_ckpt *source,
                                const moec_conversion *conversion,
                                moec_error *err);
/* The files beside the tensors (config.json, tokenizer files), by SHA-256; of a
 * conversion as its manifest has them. `ckpt` is not looked at where there is a
 * conversion. */
typedef struct moec_compared {
    const moec_ckpt *ckpt;
    const moec_conversion *conversion;
} moec_compared;
moec_status moec_compare_files(moec_compare *c, moec_compared a,
                               moec_compared b, moec_error *err);
void moec_compare_fini(moec_compare *c);

#endif
