/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_ROUTES_H
#define MOEC_ROUTES_H

/*
 * What this is: a recording from the inside, shared by those that make one:
 *   the recorder, the file reader, the merger.
 * Lifetime: moec_routes_alloc gives arrays of their final size, the maker
 *   fills them; from then on the recording is immutable.
 * Threads: one thread while it is made.
 * Errors: ARG, NOMEM.
 */

#include <moec/record.h>

#include "base/base.h"

typedef struct routes_request {
    char *id; /* owned */
    uint32_t sample;
    uint64_t first_token; /* its end is the next one's begin */
    uint64_t first_gap;
} routes_request;

struct moec_routes {
    moec_routes_shape shape; /* keys and fingerprint owned */
    uint32_t width;          /* bytes of an id */
    uint64_t token_bytes;    /* N * K * width */
    uint64_t n_requests, n_tokens, n_gaps;
    routes_request *requests; /* [n_requests + 1], the last one the ends */
    uint32_t *positions;      /* [n_tokens] */
    uint8_t *ids;             /* [n_tokens][N][K] of width */
    moec_route_gap *gaps;     /* [n_gaps] */
};

/* Bytes of an id: the all-ones value must be no expert. */
static inline uint32_t moec_routes_id_bytes(const moec_routes_shape *s)
{
    return s->n_experts + s->n_zero <= 255 ? 1 : 2;
}

/* Refuse a shape out of range; the text names the field. */
moec_status moec_routes_shape_check(const moec_routes_shape *s,
                                    moec_error *err);
/* Deep copy, and its end. */
moec_status moec_routes_shape_copy(moec_routes_shape *out,
                                   const moec_routes_shape *s, moec_error *err);
void moec_routes_shape_fini(moec_routes_shape *s);

/* Make an empty recording of these sizes; ids are all "none". The counts may
 * come from a file. */
moec_status moec_routes_alloc(moec_routes **out, const moec_routes_shape *shape,
                              uint64_t n_requests, uint64_t n_tokens,
                              uint64_t n_gaps, moec_error *err);

/* Name of the layer with this key: "3", "mtp.0". */
#define ROUTES_KEY_BYTES 24
const char *moec_routes_key_text(moec_layer_key key,
                                 char buf[ROUTES_KEY_BYTES]);

/* True where `id` is a request id that we take: strict UTF-8, 1 to 512 bytes. */
bool moec_routes_id_ok(const char *id, size_t n);

/* Refuse (R02) where two shapes differ; `a` and `b` name them. The fingerprint
 * counts where both have one. */
moec_status moec_routes_same_shape(const moec_routes_shape *x,
                                   const moec_routes_shape *y, const char *a,
                                   const char *b, moec_error *err);

/* The recorder's own copy. */
const moec_routes_shape *moec_recorder_shape(const moec_recorder *r);

#endif
