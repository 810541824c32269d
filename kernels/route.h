/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_ROUTE_H
#define MOEC_ROUTE_H

/*
 * What this is: a router inside the library: its configuration made ready,
 *   and the functions of its back end over ranges of rows. Expert Choice
 *   (ec.c) and the fused call (dispatch.c) are built on these.
 * Contract of all of them: `in` has passed moec_route_check_in, the rows are
 *   in [0, n_valid), the outputs have room. They cannot fail, do not allocate,
 *   use no thread but the caller's and at most 112 KiB of its stack, 40 where
 *   F32 logits have no bias.
 *
 * Decisions that the public header leaves to the scalar code:
 * - The choice without a bias is by the logit as given, before the softcap:
 *   tanh saturates like every score.
 * - A logit is taken as x = logit + 0 (no -0), at most the largest float.
 * - The weights are a function of the row and of the chosen ids in their
 *   order, whoever chose them: Expert Choice with room for all, and replay,
 *   give plain top-K's weights bit for bit.
 * - Softmax with SUM is e / (sum of the chosen e + 1e-20 * sum of all e),
 *   e = exp(x - max of the row): the same quotient without the rounding in
 *   between. Where the chosen e sum to 1e-8 or more the second summand is
 *   below half an ulp and the sum over all is not computed.
 * - Sums over all columns are 16 partial sums, column i in sum i % 16, then
 *   pairwise: i + 8, + 4, + 2, + 1.
 * - A forced id whose logit is NaN or -inf stays, with weight 0; a hash
 *   table's is left out. NaN as the logit of a shared expert or gate is
 *   weight 0. shared_kind NONE with shared columns means PLAIN.
 * - No selectable expert is left out for want of kept groups: groups that
 *   score -inf are never kept.
 */

#include <stdbool.h>

#include <moec/kernels.h>

#include "backend.h"

#define MOEC_ROUTE_E_MAX 4096u
#define MOEC_ROUTE_K_MAX 64u
#define MOEC_ROUTE_S_MAX 16u
/* Width of the SIMD blocks: a caller that works in chunks of rows does well
 * to take multiples of it. */
#define MOEC_ROUTE_BLOCK 16u

/* A key per column: larger is better, 0 is not selectable. Unlike floats,
 * keys have no NaN and no second zero. Ties (lower id first) are the
 * caller's. */
typedef void (*moec_keys_fn)(const moec_router *r, const moec_route_in *in,
                             uint32_t row, uint32_t n, uint32_t *keys,
                             uint64_t stride);
/* Plain choice of rows [row, row + n): K + S columns each, without a gap.
 * With forced_ids or HASH these are the choice. */
typedef void (*moec_rows_fn)(const moec_router *r, const moec_route_in *in,
                             uint32_t row, uint32_t n, int32_t *ids,
                             float *weights);
/* The softmax of x in a row is e^(x - max) * inverse. */
typedef struct moec_row_scale {
    float max, inverse;
} moec_row_scale;

/* Column keys: see cols below. Rows are `stride` apart, at least n_choice
 * rounded up to 16, and are written 0 up to there. `scales` [n] may be NULL. */
typedef void (*moec_cols_fn)(const moec_router *r, const moec_route_in *in,
                             uint32_t row, uint32_t n, uint32_t *cols,
                             uint64_t stride, moec_row_scale *scales);
/* Weights of K + S columns of rows [row, row + n), without a gap, whose K ids
 * are given in rank order, -1 last; the ids of shared columns are not read.
 * `scales` are what `cols` wrote for these rows, or NULL: they save looking
 * for the maxima. */
typedef void (*moec_weights_fn)(const moec_router *r, const moec_route_in *in,
                                uint32_t row, uint32_t n, const int32_t *ids,
                                const moec_row_scale *scales, float *weights);

struct moec_route_fns {
    moec_rows_fn rows;
    moec_keys_fn keys; /* [n][E + Z], rows `stride` apart; groups that a row
                          does not keep are 0 */
    /* The same for comparing the rows of one column (Expert Choice): the
     * softmax without a bias, e * (1 / sum of all e); groups that a row does
     * not keep are 0 here too. A logit means nothing beside another row's.
     * NULL but for softmax; with in->bias `keys` compare across rows. */
    moec_cols_fn cols;
    moec_weights_fn weights;
};

struct moec_router {
    moec_route_config config; /* normalised: rsf, shared_ranks and n_group are
                                 at least 1, topk_group at most n_group */
    const moec_kernels *k;
    struct moec_route_fns fns;
    uint32_t n_choice;   /* E + Z */
    uint32_t n_columns;  /* C = K + S */
    uint32_t n_logits;   /* E + Z + n_shared_logits */
    float shared_weight; /* of a shared column, but for gates */
};

/* Override in `r->fns` what this instruction set does for r->config. */
void moec_route_fill_scalar(moec_router *r);
void moec_route_fill_avx2(moec_router *r);
void moec_route_fill_avx512(moec_router *r);

/* The scalar functions, for what a wider set leaves to them. */
void moec_route_rows_scalar(const moec_router *r, const moec_route_in *in,
                            uint32_t row, uint32_t n, int32_t *ids,
                            float *weights);
void moec_route_keys_scalar(const moec_router *r, const moec_route_in *in,
                            uint32_t row, uint32_t n, uint32_t *keys,
                            uint64_t stride);
void moec_route_cols_scalar(const moec_router *r, const moec_route_in *in,
                            uint32_t row, uint32_t n, uint32_t *cols,
                            uint64_t stride, moec_row_scale *scales);
void moec_route_weights_scalar(const moec_router *r, const moec_route_in *in,
                               uint32_t row, uint32_t n, const int32_t *ids,
                               const moec_row_scale *scales, float *weights);

/* What every back end refuses of a call, without a look at its rows, which may
 * be the device's. `rows`: some are routed. */
moec_status moec_route_check_call(const moec_router *r, const moec_route_in *in,
                                  bool rows, moec_error *err);
/* The same of what is dispatched with it. */
moec_status moec_route_check_fused(const moec_router *router,
                                   const moec_dispatch_map *map,
                                   const moec_dispatch_out *dispatch,
                                   moec_error *err);
/* What moec_route refuses of its input; all pointers that it needs are there
 * and every token, table entry and forced id is in range. */
moec_status moec_route_check_in(const moec_router *r, const moec_route_in *in,
                                moec_error *err);

/* fns.rows for rows [row, row + n) of [0, n_tokens): rows at or past n_valid
 * get -1 and 0. What moec_route does, on the caller's thread. */
void moec_route_rows(const moec_router *r, const moec_route_in *in,
                     uint32_t row, uint32_t n, int32_t *ids, float *weights);

/* Id -1 and weight 0 in all columns of n rows. */
void moec_route_no_rows(const moec_router *r, uint32_t n, int32_t *ids,
                        float *weights);

/* Ids of the shared columns of a row that has a valid id. */
static inline void moec_route_shared_ids(const moec_router *r, int32_t *ids)
{
    for (uint32_t s = 0; s < r->config.n_shared; s++)
        ids[r->config.top_k + s] = (int32_t)(r->n_choice + s);
}

/* First element of a row of the logits. */
static inline const void *moec_route_row(const moec_router *r,
                                         const moec_route_in *in, uint32_t row)
{
    uint64_t stride = in->logits_stride ? in->logits_stride : r->n_logits;
    uint64_t bytes = in->logits_dtype == MOEC_DTYPE_F32 ? 4 : 2;

    return (const char *)in->logits + row * stride * bytes;
}

#endif
