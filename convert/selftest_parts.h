/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_SELFTEST_PARTS_H
#define MOEC_SELFTEST_PARTS_H

/*
 * What this is: what the files of the self-test share: vector files as typed
 *   arrays, and the verdict on a case.
 * Lifetime: arrays of a case die with its arena.
 */

#include <moec/mapping.h>

#include "base/json.h"
#include "selftest.h"

/* ----------------------------------------------------- numbers of JSON */

/* Read member `key` of `obj`, nested lists of exactly these dimensions, as
 * one array. Numbers must be integers of int32; in _f32 null is NaN. */
moec_status moec_vec_i32(const moec_json *obj, const char *key,
                         const uint32_t *dims, uint32_t rank, moec_arena *arena,
                         int32_t **out, moec_error *err);
moec_status moec_vec_f32(const moec_json *obj, const char *key,
                         const uint32_t *dims, uint32_t rank, moec_arena *arena,
                         float **out, moec_error *err);
moec_status moec_vec_i64(const moec_json *obj, const char *key,
                         const uint32_t *dims, uint32_t rank, moec_arena *arena,
                         int64_t **out, moec_error *err);

/* The same for a value that is at hand. */
moec_status moec_vec_i32_of(const moec_json *v, const uint32_t *dims,
                            uint32_t rank, moec_arena *arena, int32_t **out,
                            moec_error *err);

/* The first of the keys in "a|b|c" that the object has, or NULL. */
const char *moec_vec_key(const moec_json *obj, const char *keys);

/* Optional members under any of several spellings; *out is left where none of
 * them is there. */
moec_status moec_vec_opt_u32(const moec_json *obj, const char *keys,
                             uint32_t max, uint32_t *out, moec_error *err);
moec_status moec_vec_opt_f32(const moec_json *obj, const char *keys, float *out,
                             moec_error *err);
/* true and false, or 1 and 0. */
moec_status moec_vec_opt_bool(const moec_json *obj, const char *keys, bool *out,
                              moec_error *err);
/* *out is NULL where none is there. */
moec_status moec_vec_opt_text(const moec_json *obj, const char *keys,
                              const char **out, moec_error *err);

/* `n` zeroed elements of `bytes` each. */
moec_status moec_vec_room(moec_arena *arena, uint64_t n, size_t bytes,
                          void *out, moec_error *err);

/* ------------------------------------------------------------- tensors */

/* The safetensors file beside routing.json, in memory. */
typedef struct moec_vec_tensors {
    const char *name; /* of the file */
    const uint8_t *data;
    size_t bytes;
    const moec_tensor *tensors;
    size_t n_tensors;
} moec_vec_tensors;

/* Tensor "ID.NAME" for the first NAME of "a|b|c", or NULL. */
const moec_tensor *moec_vec_find(const moec_vec_tensors *t, const char *id,
                                 const char *names);
/* Copy its bytes to aligned memory. `out` is the address of a pointer, here
 * and in moec_vec_room. */
moec_status moec_vec_bytes(const moec_vec_tensors *t, const moec_tensor *x,
                           moec_arena *arena, void *out, moec_error *err);
/* The same as numbers: I32 or I64; F32 or F64. */
moec_status moec_vec_tensor_i32(const moec_vec_tensors *t, const moec_tensor *x,
                                moec_arena *arena, int32_t **out,
                                moec_error *err);
moec_status moec_vec_tensor_f64(const moec_vec_tensors *t, const moec_tensor *x,
                                moec_arena *arena, double **out,
                                moec_error *err);
moec_status moec_vec_tensor_f32(const moec_vec_tensors *t, const moec_tensor *x,
                                moec_arena *arena, float **out,
                                moec_error *err);
/* Refuse a tensor that is not [rows][cols] ([cols] where rows is UINT64_MAX). */
moec_status moec_vec_want_shape(const moec_vec_tensors *t, const moec_tensor *x,
                                uint64_t rows, uint64_t cols, moec_error *err);

/* --------------------------------------------------------------- cases */

/* One file at work and the verdict on the case at hand. */
typedef struct moec_self {
    const moec_selftest_opts *opts;
    const moec_vec_tensors *tensors; /* of routing */
    const moec_json *root;           /* of the file */
    moec_arena *arena;               /* of the case */
    moec_case_result result;
    const char *backend;
    char text[MOEC_ERROR_TEXT_BYTES];
} moec_self;

/* Say that the case differs; the first word stays. `k` may be NULL. */
void moec_self_differs(moec_self *s, const moec_kernels *k, const char *fmt,
                       ...) MOEC_PRINTF(3, 4);
/* Say that it cannot be run. */
void moec_self_skip(moec_self *s, const char *fmt, ...) MOEC_PRINTF(2, 3);
/* Judge a call that did not succeed: UNSUPPORTED skips the case, NOMEM is
 * returned, everything else differs. */
moec_status moec_self_refused(moec_self *s, const moec_kernels *k,
                              moec_status status, moec_error *got,
                              moec_error *err);

/* Compare [rows][cols] ids; the first difference is the verdict. */
bool moec_self_same_ids(moec_self *s, const moec_kernels *k, const char *what,
                        const int32_t *got, const int32_t *want, uint32_t rows,
                        uint32_t cols);
/* Compare weights within the relative tolerance, or what float32 leaves of one
 * that is small; exactly 0 where the id is -1. */
bool moec_self_same_weights(moec_self *s, const moec_kernels *k,
                            const float *got, const double *want,
                            const int32_t *ids, uint32_t rows, uint32_t cols,
                            double tolerance);

/* ---------------------------------------------------------------- maps */

#define MOEC_SELF_SIZE_MAX 65536u /* experts, ranks, columns */

/* Sizes that most cases have. */
typedef struct moec_self_sizes {
    uint32_t n_experts, n_physical, n_ranks; /* E, P, W */
} moec_self_sizes;
moec_status moec_self_read_sizes(const moec_json *c, moec_self_sizes *out,
                                 moec_error *err);

/* A map of dispatch.json and what is derived from it. */
typedef struct moec_self_map_case {
    const char *id;
    moec_self_sizes n;
    uint32_t n_layers;
    moec_placement *placement;
    moec_replicas_opts opts;
} moec_self_map_case;

/* Read a map; x->placement is the caller's to destroy, NULL on failure. */
moec_status moec_self_read_map(moec_self *s, const moec_json *map,
                               moec_self_map_case *x, moec_error *err);

/* --------------------------------------------------------------- kinds */

/* Run one case. Not MOEC_OK: the file is malformed, or there is no memory. */
typedef moec_status (*moec_self_fn)(moec_self *s, const moec_json *c,
                                    moec_error *err);
moec_status moec_self_routing(moec_self *s, const moec_json *c,
                              moec_error *err);
moec_status moec_self_expert_choice(moec_self *s, const moec_json *c,
                                    moec_error *err);
moec_status moec_self_map(moec_self *s, const moec_json *c, moec_error *err);
moec_status moec_self_chain(moec_self *s, const moec_json *c, moec_error *err);
moec_status moec_self_bad_map(moec_self *s, const moec_json *c,
                              moec_error *err);
moec_status moec_self_waterfill(moec_self *s, const moec_json *c,
                                moec_error *err);
moec_status moec_self_eplb(moec_self *s, const moec_json *c, moec_error *err);

#endif
