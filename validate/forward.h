/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_FORWARD_H
#define MOEC_FORWARD_H

/*
 * What this is: the source's side of level 3. Logical experts and the unfused
 *   shared expert, read from the source's own tensors as its names, shapes and
 *   orientation say, and run through the scalar kernels. Nothing here knows of
 *   plans, moves, placements or slots: the converted side (serve.h) must come
 *   to the same numbers on another road.
 * Lifetime: a moec_plain owns its buffers and may be filled again and again.
 * Threads: one moec_plain, one thread; the read callback must be safe from any.
 * Errors: UNSUPPORTED (a storage format that no kernel here reads), the
 *   callback's, NOMEM, INTERNAL.
 */

#include <moec/kernels.h>

#include "base/base.h"
#include "execute.h"
#include "model.h"

/* A buffer that only grows. */
typedef struct moec_room {
    unsigned char *data;
    uint64_t cap;
} moec_room;
moec_status moec_room_get(moec_room *r, uint64_t bytes, moec_error *err);
void moec_room_fini(moec_room *r);

/* One expert as plain numbers: gate, then up, then down, each [out][in]. */
typedef struct moec_plain {
    moec_matrix w13, w2; /* one matrix each, F32, BF16 or F16 */
    uint64_t hidden, inter;
    bool gated;
    moec_room w13_data, w2_data, w13_bias, w2_bias;
    moec_room raw[8]; /* components of one projection, as the source has them */
    moec_room cut[8]; /* the same, [out][in] */
} moec_plain;
void moec_plain_fini(moec_plain *p);

/* One component of one projection, turned to [out][in], gate and up apart. */
typedef struct moec_component {
    const char *name;
    moec_dtype dtype;
    uint8_t geometry; /* moec_geometry */
    uint32_t rank;
    uint64_t dim[3]; /* MATRIX: out, in, rest; KEPT: in, out */
    uint64_t bytes;
    const unsigned char *data;
} moec_component;

/* A projection of `out` features from `in`, as its components have it. */
typedef struct moec_projection {
    uint64_t out, in;
    size_t n;
    moec_component part[8];
    float scale2; /* NVFP4: what the group scales are multiplied by */
} moec_projection;

/* Say how the kernels read `p`: format, scales and blocks, from dtypes and
 * shapes alone. `p` must stay where it is while `out` is used. */
moec_status moec_projection_matrix(moec_projection *p, moec_matrix *out,
                                   moec_error *err);

/* Where experts of one layer and role are read from. */
typedef struct moec_plain_source {
    const moec_layer_slices *l;
    moec_role role;
    uint64_t hidden, inter; /* of one expert, or of the whole shared one */
    moec_read_fn read;
    void *ctx;
} moec_plain_source;

/* Read expert `expert` (0 of the shared one) into `p`. Dequantises with `k`. */
moec_status moec_plain_read(moec_plain *p, const moec_kernels *k,
                            const moec_plain_source *source, uint32_t expert,
                            moec_error *err);

/* Bytes of the largest expert of `role` once it is plain, its raw bytes
 * included: what one worker needs. */
uint64_t moec_plain_bytes(const moec_layer_slices *l, moec_role role,
                          uint64_t hidden, uint64_t inter);

#endif
