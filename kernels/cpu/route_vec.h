/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_ROUTE_VEC_H
#define MOEC_ROUTE_VEC_H

/*
 * What this is: the choice over blocks of 16 rows, in terms of vectors that
 *   route_avx512.c and route_avx2.c define before they include this: vf, 16
 *   floats; vi, 16 words; vm, a mask of 16; vq, 8 ranks (key and id in one
 *   number, larger is better, 0 is none). Equal to route_scalar.c bit for bit.
 *
 * How: a row is read twice. The first pass keeps only the maxima of 16 lanes;
 * the K-th largest of them is a lower bound of the row's K-th largest value,
 * since K columns reach it. The second pass compresses the columns that reach
 * the bound: 11 of 128 or of 4096 for K = 8, as the number depends on K alone.
 * Everything else happens with a row per lane: the lane maxima of 16 rows are
 * transposed and sorted by a network, which gives 16 bounds at once; so are
 * the candidates, as (key, id) numbers that have no ties; scores, sums in rank
 * order and weights follow without a horizontal step.
 *
 * A bias needs the scores of all columns: they and the bias are added up in a
 * scratch row, which is then read in place of the logits; of a sigmoid only an
 * estimate is, and the candidates' own scores follow. Groups: the best (or
 * best two) of 8 groups are folded together; then only kept groups are read.
 *
 * Left to the scalar code: given ids (forced, hash), more than 32 groups, the
 * best-two rule without a bias, and the weights of JOINT and the mixer.
 * Parts: route_vec_math.h, _block.h (loading, groups), _rank.h (bounds,
 * candidates, order), _weigh.h; here what a router calls. Function length: the
 * phases are kept whole on purpose.
 */

#include <math.h>
#include <string.h>

#include "cpu/route_vec_rank.h"
#include "cpu/route_vec_weigh.h"

/* ------------------------------------------------------------- entries */

/* `wide` may be NULL where the choice reads the logits in place. */
static void block_init(struct block *b, const moec_router *r,
                       const moec_route_in *in, struct wide *wide)
{
    b->wide = wide;
    b->r = r;
    b->in = in;
    b->grouped = r->config.n_group > 1;
    b->width = r->n_choice / r->config.n_group;
    b->n_chunks = (b->width + 15) / 16;
    b->tail = b->width - 16 * (b->n_chunks - 1);
    for (uint32_t i = 0; i < ROWS; i++) { /* lanes without a row */
        b->n_cand[i] = 0;
        b->m[i] = 0.0f;
        b->sum[i] = 1.0f;
    }
    memset(b->lanes, 0, sizeof(b->lanes));
}

/* Rows of a block: all of their scratch fits. */
static uint32_t block_rows(const moec_router *r)
{
    uint32_t n = SCRATCH / ((r->n_choice + 15) / 16 * 16);

    return n < ROWS ? n : ROWS;
}

/* True where the logits themselves rank, as they lie. */
static bool in_place(const moec_route_in *in)
{
    return in->logits_dtype == MOEC_DTYPE_F32 && !in->bias;
}

static uint32_t choice_rows(const moec_router *r, const moec_route_in *in)
{
    return in_place(in) ? ROWS : block_rows(r);
}

static void choose_block(struct block *b)
{
    const moec_route_config *c = &b->r->config;
    uint32_t k = c->top_k, parts = 1;

    while (parts * 10 < k)
        parts *= 2;
    b->screened = b->bias && c->score == MOEC_SCORE_SIGMOID && !b->grouped &&
                  c->softcap == 0.0f && parts == 1 && b->width > 32;
    if (b->screened) {
        b->has_m = false;
        b->has_sum = false;
        screen_rows(b);
    } else {
        make_values(b);
        if (b->grouped)
            make_groups(b);
        if (b->width * c->topk_group <= 16 * parts)
            vf_store(b->bound, vf_set(-FLT_MAX));
        else
            find_bounds(b, parts);
    }
    all_candidates(b);
    rank_candidates(b);
}

/* x of the chosen from their keys, where no bias is in them. */
static void take_x(struct block *b)
{
    for (uint32_t j = 0; j < b->r->config.top_k; j++) {
        vi key = vi_load(b->key[j]);
        vf x = vf_sel(vi_as_mask(vi_ones_where_zero(key)), vf_set(-INFINITY),
                      unkey_v(key));

        vf_store(b->s[j], capped(b, x));
    }
    memcpy(b->m, b->s[0], sizeof(b->m)); /* the best column is the maximum */
    b->has_m = true;
}

static bool weighs(const moec_router *r)
{
    return r->config.norm != MOEC_NORM_JOINT &&
           r->config.choice == MOEC_CHOICE_TOPK;
}

static bool chooses(const moec_router *r, const moec_route_in *in)
{
    const moec_route_config *c = &r->config;

    if (in->forced_ids || c->choice == MOEC_CHOICE_HASH || c->n_group > GROUPS)
        return false;
    return c->n_group == 1 || in->bias || c->group_score == MOEC_GROUP_MAX;
}

static __attribute__((noinline)) void
rows_of_blocks(struct wide *wide, const moec_router *r, const moec_route_in *in,
               uint32_t row, uint32_t n, int32_t *ids, float *weights)
{
    uint32_t step = choice_rows(r, in);
    struct block b;

    block_init(&b, r, in, wide);
    take_bias(&b);
    for (uint32_t at = 0; at < n; at += step) {
        int32_t *to = ids + (uint64_t)at * r->n_columns;
        float *w = weights + (uint64_t)at * r->n_columns;

        b.row = row + at;
        b.n = n - at < step ? n - at : step;
        for (uint32_t i = b.n; i < ROWS; i++)
            b.n_cand[i] = 0;
        choose_block(&b);
        if (weighs(r)) {
            if (in->bias)
                gather_x(&b);
            else
                take_x(&b);
            weigh(&b);
        }
        write_rows(&b, to, w, true);
        write_shared(&b, to, w, true);
        if (!weighs(r))
            moec_route_weights_scalar(r, in, b.row, b.n, to, NULL, w);
    }
}

static __attribute__((noinline)) void rows_wide(const moec_router *r,
                                                const moec_route_in *in,
                                                uint32_t row, uint32_t n,
                                                int32_t *ids, float *weights)
{
    struct wide wide;

    rows_of_blocks(&wide, r, in, row, n, ids, weights);
}

static void rows_vec(const moec_router *r, const moec_route_in *in,
                     uint32_t row, uint32_t n, int32_t *ids, float *weights)
{
    if (!chooses(r, in))
        moec_route_rows_scalar(r, in, row, n, ids, weights);
    else if (in_place(in))
        rows_of_blocks(NULL, r, in, row, n, ids, weights);
    else
        rows_wide(r, in, row, n, ids, weights);
}

/* With a bias, or groups. */
static __attribute__((noinline)) void
keys_of_blocks(const moec_router *r, const moec_route_in *in, uint32_t row,
               uint32_t n, uint32_t *keys, uint64_t stride)
{
    uint32_t step = choice_rows(r, in);
    struct wide wide;
    struct block b;

    block_init(&b, r, in, &wide);
    take_bias(&b);
    for (uint32_t at = 0; at < n; at += step) {
        b.row = row + at;
        b.n = n - at < step ? n - at : step;
        make_values(&b);
        if (b.grouped)
            make_groups(&b);
        for (uint32_t i = 0; i < b.n; i++) {
            uint32_t *to = keys + (at + i) * stride;

            for (uint32_t g = 0; g < r->config.n_group; g++) {
                bool kept = !b.grouped || (b.kept[i] >> g & 1u);
                uint32_t first = g * b.width;

                for (uint32_t c = 0; c < b.n_chunks; c++) {
                    uint32_t len = c + 1 == b.n_chunks ? b.tail : 16;
                    vf v = load_values(b.value[i] + first + 16 * c, len);
                    vi key = key_v(canonical(v));

                    key = vi_maskz(vf_gt(v, vf_set(-INFINITY)), key);
                    if (!kept)
                        key = vi_set(0);
                    vi_store_part(to + first + 16 * c, key, len);
                }
            }
        }
    }
}

/* Without a block: to probe its 80 KiB of stack costs more than a row. */
static void keys_vec(const moec_router *r, const moec_route_in *in,
                     uint32_t row, uint32_t n, uint32_t *keys, uint64_t stride)
{
    if (!chooses(r, in)) {
        moec_route_keys_scalar(r, in, row, n, keys, stride);
        return;
    }
    if (in->bias || r->config.n_group > 1) {
        keys_of_blocks(r, in, row, n, keys, stride);
        return;
    }
    for (uint32_t i = 0; i < n; i++, keys += stride) {
        const void *x = moec_route_row(r, in, row + i);

        for (uint32_t at = 0; at < r->n_choice; at += 16) {
            uint32_t left = r->n_choice - at;
            vf v = load_logits(x, in->logits_dtype, at, left);
            vi key = vi_maskz(vf_gt(v, vf_set(-INFINITY)), key_v(canonical(v)));

            if (left >= 16)
                vi_store(keys + at, key);
            else
                vi_store_part(keys + at, key, left);
        }
    }
}

/* The given ids of a block, row by row, into its lanes. */
static void take_ids(struct block *b, const int32_t *ids)
{
    uint32_t k = b->r->config.top_k;

    for (uint32_t j = 0; b->n < ROWS && j < k; j++)
        vi_store(b->id[j], vi_set(UINT32_MAX));
    for (uint32_t i = 0; i < b->n; i++, ids += b->r->n_columns)
        for (uint32_t j = 0; j < k; j++)
            b->id[j][i] = ids[j];
}

/* x of given ids, -inf where the bias forbids them. */
static void gather_given_x(struct block *b)
{
    const float *bias = b->in->bias;

    gather_x(b);
    for (uint32_t j = 0; bias && j < b->r->config.top_k; j++)
        for (uint32_t i = 0; i < b->n; i++)
            if (b->id[j][i] >= 0 && !(bias[b->id[j][i]] > -INFINITY))
                b->s[j][i] = -INFINITY;
}

static __attribute__((noinline)) void
weights_of_blocks(struct wide *wide, const moec_router *r,
                  const moec_route_in *in, uint32_t row, uint32_t n,
                  const int32_t *ids, const moec_row_scale *scales,
                  float *weights)
{
    bool needs_m = r->config.score == MOEC_SCORE_SOFTMAX &&
                   r->config.norm != MOEC_NORM_SOFTMAX;
    struct block b;

    block_init(&b, r, in, wide);
    take_bias(&b);
    for (uint32_t at = 0; at < n; at += ROWS) {
        uint64_t to = (uint64_t)at * r->n_columns;

        b.row = row + at;
        b.n = n - at < ROWS ? n - at : ROWS;
        b.has_sum = false;
        take_ids(&b, ids + to);
        gather_given_x(&b);
        if (needs_m && scales)
            for (uint32_t i = 0; i < b.n; i++)
                b.m[i] = scales[at + i].max;
        else if (needs_m)
            find_m(&b, b.bias);
        weigh(&b);
        write_rows(&b, NULL, weights + to, false);
        write_shared(&b, NULL, weights + to, false);
    }
}

static __attribute__((noinline)) void
weights_wide(const moec_router *r, const moec_route_in *in, uint32_t row,
             uint32_t n, const int32_t *ids, const moec_row_scale *scales,
             float *weights)
{
    struct wide wide;

    weights_of_blocks(&wide, r, in, row, n, ids, scales, weights);
}

static void weights_vec(const moec_router *r, const moec_route_in *in,
                        uint32_t row, uint32_t n, const int32_t *ids,
                        const moec_row_scale *scales, float *weights)
{
    if (!weighs(r))
        moec_route_weights_scalar(r, in, row, n, ids, scales, weights);
    else if (!in->bias)
        weights_of_blocks(NULL, r, in, row, n, ids, scales, weights);
    else
        weights_wide(r, in, row, n, ids, scales, weights);
}

#endif
