/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_SPAN_H
#define MOEC_SPAN_H

/*
 * What this is: a data file by its bytes: what stands at an offset, so that any
 *   range of it can be made without the rest; and the leaves of a file, kept
 *   beside it while others are still missing.
 * Threads: moec_leaf_table_add from any; all else touches nothing.
 * Errors: FORMAT (I13: two readers saw two sources; a file of leaves that is
 *   none), INTERNAL, NOMEM.
 */

#include <pthread.h>

#include "digests.h"
#include "input.h"

typedef enum moec_span_kind {
    MOEC_SPAN_HEADER,
    MOEC_SPAN_PAD,
    MOEC_SPAN_BLOCK, /* a row of a slot tensor */
    MOEC_SPAN_COMMON /* a source tensor */
} moec_span_kind;

typedef struct moec_span {
    moec_span_kind kind;
    uint64_t off, bytes; /* in the file */
    moec_block_id block;
    uint32_t tensor; /* of a common one */
    uint64_t leaf;   /* its first, of blocks and common tensors */
} moec_span;

/* The span that holds byte `at` < bytes of data file `file`. */
moec_span moec_span_at(const moec_layout *layout, const moec_digests *d,
                       size_t file, uint64_t at);

static inline bool moec_span_has_leaves(const moec_span *s)
{
    return s->kind == MOEC_SPAN_BLOCK || s->kind == MOEC_SPAN_COMMON;
}

/* Digests as they become known, some of them several times. */
typedef struct moec_leaf_table {
    moec_digests *d;
    uint8_t *known; /* by leaf */
    pthread_mutex_t lock;
} moec_leaf_table;

moec_status moec_leaf_table_init(moec_leaf_table *t, moec_digests *d,
                                 moec_error *err);
void moec_leaf_table_fini(moec_leaf_table *t);
/* Note leaves [first, first + n): I13 where one is known to be another. */
moec_status moec_leaf_table_add(moec_leaf_table *t, uint64_t first,
                                const moec_leaf *leaves, uint64_t n,
                                moec_error *err);

/* The leaves of data file `i`, of the job `job`. Little endian:
 *   1. 64 bytes: magic "MOECLVS\1", u64 bytes of the data file, u64 n_leaves,
 *      u64 0, 32 job
 *   2. n_leaves x 48: 32 sha256, 16 xxh3-128, in the order of the file
 *   3. 32 sha256 of all before */
moec_status moec_leaves_encode(const moec_layout *layout, const moec_digests *d,
                               size_t i, const moec_sha256 *job, moec_buf *out,
                               moec_error *err);
/* Note what such a file says. *ours_out is false where it is of another job, or
 * none at all: then nothing is noted. */
moec_status moec_leaves_take(const moec_layout *layout, moec_leaf_table *t,
                             size_t i, const moec_sha256 *job, const void *data,
                             size_t n, bool *ours_out, moec_error *err);

#endif
