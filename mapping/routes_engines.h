/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_ROUTES_ENGINES_H
#define MOEC_ROUTES_ENGINES_H

/*
 * What this is: what the forms of several engines share.
 * Lifetime: nothing is kept.
 * Threads: one thread, one call.
 * Errors: as moec/record.h says of imports and exports.
 */

#include "npy.h"
#include "routes.h"

#define ROUTES_K_MAX 64u

/* Layers that engines have rows for: all but the MTP ones. */
uint32_t moec_form_main_layers(const moec_routes_shape *s);

/* Refuse (ARG) what a caller must not pass. */
moec_status moec_form_check(const moec_recorder *r,
                            const moec_routes_import_opts *opts,
                            const char *name, const void *data,
                            moec_error *err);
/* Id of a request that has none of its own. */
const char *moec_form_id(const moec_routes_import_opts *opts);

/* Import an array [rows][layers][K] as rows of request `id` from position
 * `start` on (UINT64_MAX: 0). */
moec_status moec_form_import(moec_recorder *r,
                             const moec_routes_import_opts *opts,
                             const char *name, const char *id, uint32_t sample,
                             uint64_t start, const moec_npy *array,
                             moec_error *err);

/* The request, once it is clear that its rows have no hole and no gap behind
 * the first. */
moec_status moec_form_exportable(const moec_routes *r, uint64_t request,
                                 moec_routes_request *out, moec_error *err);
/* Zeros for `head` bytes and the request's array of elements of `elem` bytes,
 * and one more; free(3). *data_bytes: of the array. NULL: no memory. */
void *moec_form_room(size_t head, const moec_routes *r,
                     const moec_routes_request *q, size_t elem,
                     size_t *data_bytes);

#endif
