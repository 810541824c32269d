/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_REQUANT_H
#define MOEC_REQUANT_H

/*
 * What this is: the shared expert in the routed experts' format, where the
 *   plan was told to requantise it (--requantize-shared): its slots hold bytes
 *   that no move brings. They are made of the source tensors by kernels.h's
 *   quantiser, any range of any of them alone, the same bytes on every machine.
 *   The source tensors stay common tensors beside them: this is the one
 *   operation that the way back does not undo.
 * Lifetime: the plan is borrowed.
 * Threads: immutable once made: share freely.
 * Errors: MAPPING (P10: formats or shapes that cannot be requantised), FORMAT
 *   (P10: a weight that is not finite), NOMEM, and those of the read callback.
 */

#include <moec/kernels.h>
#include <moec/mapping.h>

#include "execute.h"

typedef struct moec_requant moec_requant;

/* Make it for a plan; *out is NULL where the plan requantises nothing. */
moec_status moec_requant_create(moec_requant **out, const moec_plan *plan,
                                moec_error *err);
void moec_requant_destroy(moec_requant *q); /* NULL is fine */

/* Bytes of buffers that one read takes at most; 0 for NULL. */
uint64_t moec_requant_memory(const moec_requant *q);

/* Fill dst[0, to - from) with bytes [from, to) of the block of slot tensor `t`
 * with the shared part `unit`. `read` reads source tensors. */
moec_status moec_requant_read(const moec_requant *q, size_t layer, size_t t,
                              uint32_t unit, uint64_t from, uint64_t to,
                              void *dst, moec_read_fn read, void *ctx,
                              moec_error *err);

/* What is lost in one projection of a layer, over all its parts. */
typedef enum moec_projection {
    MOEC_PROJECTION_GATE = 0, /* or the only one */
    MOEC_PROJECTION_UP = 1,
    MOEC_PROJECTION_DOWN = 2
} moec_projection;

/* False where the layer has no such projection. */
bool moec_requant_has(const moec_requant *q, size_t layer, moec_projection p);
moec_status moec_requant_error(const moec_requant *q, size_t layer,
                               moec_projection p, moec_read_fn read, void *ctx,
                               moec_quant_error *out, moec_error *err);

/* Source tensor of the projection's weights. */
uint32_t moec_requant_source(const moec_requant *q, size_t layer,
                             moec_projection p);

#endif
