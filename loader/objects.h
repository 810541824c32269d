/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_OBJECTS_H
#define MOEC_OBJECTS_H

/*
 * What this is: a place that whole objects are written to, as an object store
 *   is one: small ones at once, large ones in parts of equal size, of which
 *   nothing is seen until the last call. store/ has one of S3; convert/ writes
 *   a conversion into it.
 * Lifetime: the implementation's.
 * Threads: all calls from any thread; of one upload, part alone.
 * Errors: FORMAT (I01: no such object), LOCKED (it is there already), IO with
 *   the store's own words, NOMEM.
 */

#include <stdbool.h>

#include <moec/loader.h>

#include "base/base.h"

typedef struct moec_upload moec_upload;

typedef struct moec_objects {
    const moec_store *there; /* what was there when it was opened */
    moec_status (*get)(void *ctx, const char *name, moec_buf *out,
                       moec_error *err);
    /* With `fresh`, only where nothing has the name. */
    moec_status (*put)(void *ctx, const char *name, const void *data, size_t n,
                       bool fresh, moec_error *err);
    /* Absent is fine. */
    moec_status (*remove)(void *ctx, const char *name, moec_error *err);
    /* Go on with an upload of this name that has parts, or begin one: of
     * `bytes`, in parts of `part_bytes`. Others of the name are given up. */
    moec_status (*begin)(void *ctx, const char *name, uint64_t bytes,
                         uint64_t part_bytes, moec_upload **out,
                         moec_error *err);
    /* Send part `i`, or leave it where the very same bytes are there. */
    moec_status (*part)(moec_upload *u, size_t i, const void *data, size_t n,
                        bool *there_out, moec_error *err);
    /* All parts are there: make the object of them. */
    moec_status (*complete)(moec_upload *u, moec_error *err);
    /* Free it; with `give_up` its parts go too. NULL is fine. */
    void (*end)(moec_upload *u, bool give_up);
    void *ctx;
} moec_objects;

#define MOEC_PART_BYTES (UINT64_C(16) << 20)
#define MOEC_PARTS_MAX  UINT64_C(10000) /* of S3 */
#define MOEC_PART_ALIGN UINT64_C(4096)

/* Bytes of all parts but the last of an object of `bytes`; `least` is 0 for
 * the default. */
static inline uint64_t moec_part_bytes(uint64_t bytes, uint64_t least)
{
    uint64_t each = moec_max_u64(least ? least : MOEC_PART_BYTES,
                                 moec_ceil_div(bytes, MOEC_PARTS_MAX));

    return moec_ceil_div(each, MOEC_PART_ALIGN) * MOEC_PART_ALIGN;
}

static inline size_t moec_n_parts(uint64_t bytes, uint64_t part_bytes)
{
    return bytes == 0 ? 1 : (size_t)moec_ceil_div(bytes, part_bytes);
}

#endif
