/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_ROUTE_VEC_RANK_H
#define MOEC_ROUTE_VEC_RANK_H

/*
 * What this is: which columns a block of rows chooses: bounds, candidates, and their
 *   order. Part of route_vec.h.
 */

#include <float.h>
#include <math.h>

#include "cpu/route_nets.h"
#include "cpu/route_vec_block.h"

/* -------------------------------------------------------------- bounds */

/* Maxima of 16 lanes over every step-th chunk from `first` on. */
static inline vf lane_max(const struct block *b, uint32_t i, uint32_t first,
                          uint32_t step)
{
    const float *p = b->value[i];
    uint32_t full = b->width / 16, j;
    vf acc = vf_set(-INFINITY);

    for (j = first; j < full; j += step)
        acc = vf_max(vf_load(p + 16 * j), acc);
    if (j < b->n_chunks)
        acc = vf_max(vf_load_part(p + 16 * j, b->tail, -INFINITY), acc);
    return acc;
}

static inline vf lane_max_grouped(const struct block *b, uint32_t i,
                                  uint32_t first, uint32_t step)
{
    vf acc = vf_set(-INFINITY);
    uint32_t j = 0;

    for (uint32_t left = b->kept[i]; left; left &= left - 1) {
        uint32_t g = (uint32_t)__builtin_ctz(left);
        const float *p = b->value[i] + g * b->width;

        for (uint32_t c = 0; c < b->n_chunks; c++, j++) {
            if (j % step != first)
                continue;
            acc = vf_max(
                load_values(p + 16 * c, c + 1 == b->n_chunks ? b->tail : 16),
                acc);
        }
    }
    return acc;
}

/* The rank-th largest of each row's 16 lanes in b->lanes, a row per lane. */
static inline vf bound_of_lanes(struct block *b, uint32_t rank)
{
    vf v[16];

    load_lanes(b, v);
    vf_transpose(v);
#define CX(x, y)                                                               \
  {                                                                            \
    vf high_ = vf_max(v[x], v[y]);                                             \
    v[y] = vf_min(v[x], v[y]);                                                 \
    v[x] = high_;                                                              \
  }
    MOEC_SORT_16(CX)
#undef CX
    for (int j = 0; j < 16; j++)
        vf_store(b->lanes[j], v[j]);
    return vf_load(b->lanes[rank - 1]);
}

/* b->bound: a number that at least K columns of the row reach, or -FLT_MAX.
 * `parts` sets of lanes: K is well below 16 times that. */
static void find_bounds(struct block *b, uint32_t parts)
{
    uint32_t rank = (b->r->config.top_k + parts - 1) / parts;
    vf bound = vf_set(FLT_MAX);

    for (uint32_t part = 0; part < parts; part++) {
        for (uint32_t i = 0; i < b->n; i++)
            vf_store(b->lanes[i], b->grouped
                                      ? lane_max_grouped(b, i, part, parts)
                                      : lane_max(b, i, part, parts));
        bound = vf_min(bound, bound_of_lanes(b, rank));
    }
    vf_store(b->bound, vf_max(bound, vf_set(-FLT_MAX)));
}

/* ----------------------------------------------------------- screening
 * sigmoid + bias, without the sigmoid of all columns. An estimate of it, by a
 * parabola for 2^f and the processor's rough reciprocal, is wrong by less than
 * SCREEN of itself, or 1e-30; that gives each column a lower and an upper end.
 * The K-th largest lower end bounds the K-th best, and only columns whose
 * upper end reaches it are computed exactly: one or two more than without. */

#define SCREEN 4e-3f /* the parabola 1.8e-3, rcpps 0.4e-3 */

static inline __attribute__((always_inline)) void
screen_row(struct block *b, uint32_t i, moec_dtype dtype)
{
    uint32_t n = b->r->n_choice, stride = (n + 15) / 16 * 16;
    const void *row = moec_route_row(b->r, b->in, b->row + i);
    float *out = b->wide->scratch + i * stride;
    vf acc = vf_set(-INFINITY), shift = vf_set(MOEC_EXP_SHIFT);
    vf scale = vf_set(-MOEC_EXP_LOG2E), one = vf_set(1.0f);

    b->value[i] = out;
    for (uint32_t at = 0; at < n; at += 16) {
        vf x = load_logits(row, dtype, at, n - at), add = vf_load(b->bias + at);
        vf t = vf_min(vf_max(x, vf_set(-80.0f)), vf_set(80.0f)), k, f, p, s;

        k = vf_fma(t, scale, shift);
        f = vf_fma(t, scale, vf_sub(shift, k));
        p = vf_fma(vf_set(0.2384256f), f, vf_set(0.7034462f));
        p = vf_fma(p, f, vf_set(1.0004432f));
        p = vi_as_f(vi_add(vf_as_i(p), vi_sll(vf_as_i(k), 23)));
        s = vf_rcp(vf_add(one, p));
        vf_store(out + at, vf_fma(s, vf_set(1.0f + SCREEN), add));
        s = vf_fma(s, vf_set(1.0f - SCREEN), add);
        acc = vf_sel(vf_gt(x, vf_set(-INFINITY)), vf_max(s, acc), acc);
    }
    vf_store(b->lanes[i], acc);
}

/* b->value and b->bound of the upper ends. */
static void screen_rows(struct block *b)
{
    vf bound, slack;

    for (uint32_t i = 0; i < b->n; i++) {
        if (b->in->logits_dtype == MOEC_DTYPE_F32)
            screen_row(b, i, MOEC_DTYPE_F32);
        else
            screen_row(b, i, b->in->logits_dtype);
    }
    bound = bound_of_lanes(b, b->r->config.top_k);
    /* The sums above and the exact ones are rounded. */
    slack = vf_add(vf_mul(vi_as_f(vi_and(vf_as_i(bound), vi_set(0x7fffffffu))),
                          vf_set(0x1p-21f)),
                   vf_set(1e-30f));
    vf_store(b->bound, vf_max(vf_sub(bound, slack), vf_set(-FLT_MAX)));
}

/* ---------------------------------------------------------- candidates */

/* Columns of the row that reach `bound`. */
static uint32_t count_from(const struct block *b, uint32_t i, vf bound)
{
    uint32_t kept = b->grouped ? b->kept[i] : 1, n = 0;

    for (; kept; kept &= kept - 1) {
        const float *p = b->value[i] + (uint32_t)__builtin_ctz(kept) * b->width;

        for (uint32_t c = 0; c < b->n_chunks; c++)
            n += vm_count(vf_ge(
                load_values(p + 16 * c, c + 1 == b->n_chunks ? b->tail : 16),
                bound));
    }
    return n;
}

/* Bisect the order of floats for a bound of a row that has too many
 * candidates, which is common where K is a large part of E. False where ties
 * leave none that K columns reach and not more than CAND_MAX. */
static bool raise_bound(struct block *b, uint32_t i)
{
    uint32_t low = moec_f32_key(b->bound[i]), high = moec_f32_key(FLT_MAX);

    while (high - low > 1) {
        uint32_t mid = low + (high - low) / 2;
        float bound = moec_f32_unkey(mid);
        uint32_t n = count_from(b, i, vf_set(bound));

        if (n < b->r->config.top_k) {
            high = mid;
        } else {
            low = mid;
            b->bound[i] = bound;
            if (n <= CAND_MAX)
                return true;
        }
    }
    return false;
}

/* The exact K best of a row that has too many candidates: long ties. */
static uint32_t best_of_many(struct block *b, uint32_t i)
{
    uint32_t k = b->r->config.top_k, n = 0, best[MOEC_ROUTE_K_MAX];
    const float *v = b->value[i];

    for (uint32_t e = 0; e < b->r->n_choice; e++) {
        uint32_t at, key;

        if (b->grouped && !(b->kept[i] >> e / b->width & 1u))
            continue;
        if (!(v[e] > -INFINITY))
            continue;
        key = moec_f32_key((v[e] > FLT_MAX ? FLT_MAX : v[e]) + 0.0f);
        if (n == k && key <= best[k - 1])
            continue;
        at = n < k ? n++ : k - 1;
        for (; at > 0 && best[at - 1] < key; at--) {
            best[at] = best[at - 1];
            b->cand_id[i][at] = b->cand_id[i][at - 1];
        }
        best[at] = key;
        b->cand_id[i][at] = e;
    }
    for (uint32_t j = 0; j < n; j++)
        b->cand[i][j] = v[b->cand_id[i][j]];
    return n;
}

static inline uint32_t take(struct block *b, uint32_t i, uint32_t n, vf v,
                            vf bound, uint32_t first, bool values)
{
    uint32_t at = n < CAND_MAX ? n : CAND_MAX;
    vm m = vf_ge(v, bound);

    if (values)
        vf_compress(b->cand[i] + at, m, v);
    vi_compress(b->cand_id[i] + at, m, vi_add(vi_iota(), vi_set(first)));
    return n + vm_count(m);
}

static inline __attribute__((always_inline)) void
find_candidates(struct block *b, uint32_t i, bool values)
{
    const float *p = b->value[i];
    uint32_t n = 0, full = b->width / 16;
    vf bound = vf_set(b->bound[i]);

    for (uint32_t j = 0; j < full; j++)
        n = take(b, i, n, vf_load(p + 16 * j), bound, 16 * j, values);
    if (full < b->n_chunks)
        n = take(b, i, n, vf_load_part(p + 16 * full, b->tail, -INFINITY),
                 bound, 16 * full, values);
    b->n_cand[i] = n;
}

static void find_candidates_grouped(struct block *b, uint32_t i)
{
    const float *p = b->value[i];
    vf bound = vf_set(b->bound[i]);
    uint32_t n = 0;

    for (uint32_t left = b->kept[i]; left; left &= left - 1) {
        uint32_t first = (uint32_t)__builtin_ctz(left) * b->width;

        for (uint32_t c = 0; c < b->n_chunks; c++)
            n = take(b, i, n,
                     load_values(p + first + 16 * c,
                                 c + 1 == b->n_chunks ? b->tail : 16),
                     bound, first + 16 * c, true);
    }
    b->n_cand[i] = n;
}

/* The exact values of a screened row's candidates. */
static void refine(struct block *b, uint32_t i)
{
    const void *row = moec_route_row(b->r, b->in, b->row + i);
    uint32_t n = b->n_cand[i];
    float *x = b->cand[i], add[CAND_MAX];

    if (b->in->logits_dtype == MOEC_DTYPE_F32) {
        for (uint32_t j = 0; j < n; j++)
            x[j] = ((const float *)row)[b->cand_id[i][j]];
    } else {
        for (uint32_t j = 0; j < n; j++)
            x[j] = vf_one(((const uint16_t *)row)[b->cand_id[i][j]],
                          b->in->logits_dtype);
    }
    for (uint32_t j = 0; j < n; j++)
        add[j] = b->bias[b->cand_id[i][j]];
    for (uint32_t at = 0; at < n; at += 16) { /* the last lanes are idle */
        vf v = canonical(vf_load(x + at));
        vf c = vf_min(vf_add(sigmoid_v(v), vf_load(add + at)), vf_set(FLT_MAX));

        vf_store(x + at,
                 vf_sel(vf_gt(v, vf_set(-INFINITY)), c, vf_set(-INFINITY)));
    }
}

static inline void row_candidates(struct block *b, uint32_t i, bool values)
{
    if (b->grouped)
        find_candidates_grouped(b, i);
    else
        find_candidates(b, i, values);
}

static void all_candidates(struct block *b)
{
    for (uint32_t i = 0; i < b->n; i++) {
        row_candidates(b, i, !b->screened);
        if (b->n_cand[i] > CAND_MAX) {
            if (b->screened)
                biased_row(b, i, MOEC_SCORE_SIGMOID, b->in->logits_dtype,
                           false);
            if (raise_bound(b, i))
                row_candidates(b, i, true);
            else
                b->n_cand[i] = best_of_many(b, i);
        } else if (b->screened) {
            refine(b, i);
        }
    }
}

/* ------------------------------------------------------------- ranking */

#define CX(x, y)                                                               \
  {                                                                            \
    vq high_ = vq_max(V[x], V[y]);                                             \
    V[y] = vq_min(V[x], V[y]);                                                 \
    V[x] = high_;                                                              \
  }

/* Candidates [16 at, 16 at + 16) of the 8 rows from `first`, a row per lane. */
static inline __attribute__((always_inline)) void
load_ranks(const struct block *b, uint32_t first, uint32_t at, vq lo[8],
           vq hi[8])
{
    for (uint32_t j = 0; j < 8; j++) {
        uint32_t i = first + j, have = b->n_cand[i];
        vf v = vf_load(b->cand[i] + 16 * at);
        vi id = vi_load(b->cand_id[i] + 16 * at), key;
        vm is;

        have = have > 16 * at ? have - 16 * at : 0;
        key = key_v(vf_add(vf_min(v, vf_set(FLT_MAX)), vf_set(0.0f)));
        is =
            vm_and(vi_lt(vi_iota(), vi_set(have)), vf_gt(v, vf_set(-INFINITY)));
        vq_pack(vi_maskz(is, key), vi_maskz(is, id), &lo[j], &hi[j]);
    }
    vq_transpose(lo);
    vq_transpose(hi);
}

static inline __attribute__((always_inline)) void sort8(vq V[8])
{
    MOEC_SORT_8(CX)
}

/* The best eight of two descending eights, descending, into V. */
static inline __attribute__((always_inline)) void merge8(vq V[8], vq w[8])
{
    for (int j = 0; j < 8; j++)
        V[j] = vq_max(V[j], w[7 - j]);
    MOEC_MERGE_8(CX)
}

static inline __attribute__((always_inline)) void sort16(vq V[16])
{
    MOEC_SORT_16(CX)
}

static inline __attribute__((always_inline)) void merge16(vq V[16], vq w[16])
{
    for (int j = 0; j < 16; j++)
        V[j] = vq_max(V[j], w[15 - j]);
    MOEC_MERGE_16(CX)
}

static void rank_8(const struct block *b, uint32_t first, uint32_t n16,
                   vq *ranks)
{
    vq top[8], lo[8], hi[8];

    load_ranks(b, first, 0, top, hi);
    sort8(top);
    sort8(hi);
    merge8(top, hi);
    for (uint32_t at = 1; at < n16; at++) {
        load_ranks(b, first, at, lo, hi);
        sort8(lo);
        sort8(hi);
        merge8(lo, hi);
        merge8(top, lo);
    }
    for (int j = 0; j < 8; j++)
        ranks[j] = top[j];
}

static void rank_16(const struct block *b, uint32_t first, uint32_t n16,
                    vq *ranks)
{
    vq top[16], more[16];

    load_ranks(b, first, 0, top, top + 8);
    sort16(top);
    for (uint32_t at = 1; at < n16; at++) {
        load_ranks(b, first, at, more, more + 8);
        sort16(more);
        merge16(top, more);
    }
    for (int j = 0; j < 16; j++)
        ranks[j] = top[j];
}

/* Batcher's odd-even merge sort, descending, of n = 2^i ranks in memory. */
static void sort_many(vq *V, uint32_t n)
{
    for (uint32_t p = 1; p < n; p *= 2)
        for (uint32_t k = p; k >= 1; k /= 2)
            for (uint32_t j = k % p; j + k < n; j += 2 * k)
                for (uint32_t i = 0; i < k && i + j + k < n; i++)
                    if (((i + j) ^ (i + j + k)) < 2 * p)
                        CX(i + j, i + j + k)
}

static void rank_many(const struct block *b, uint32_t first, uint32_t n16,
                      vq *ranks)
{
    uint32_t n = 32;

    while (n < 16 * n16)
        n *= 2;
    for (uint32_t at = 0; 16 * at < n; at++)
        load_ranks(b, first, at, ranks + 16 * at, ranks + 16 * at + 8);
    for (uint32_t j = n; j < MOEC_ROUTE_K_MAX; j++)
        ranks[j] = vq_zero();
    sort_many(ranks, n);
}
#undef CX

/* The first k of ranks into b->key and b->id; key 0 and id -1 for none. */
static inline void put_ranks(struct block *b, const vq *low, const vq *high)
{
    for (uint32_t j = 0; j < b->r->config.top_k; j++) {
        vi key, id;

        vq_unpack(low[j], high[j], &key, &id);
        id = vi_or(id, vi_ones_where_zero(key));
        vi_store(b->key[j], key);
        vi_store(b->id[j], id);
    }
}

static __attribute__((noinline)) void put_many(struct block *b,
                                               const uint32_t n16[2])
{
    vq ranks[2][CAND_MAX];

    rank_many(b, 0, n16[0], ranks[0]);
    if (b->n > 8)
        rank_many(b, 8, n16[1], ranks[1]);
    for (uint32_t j = 0; b->n <= 8 && j < b->r->config.top_k; j++)
        ranks[1][j] = vq_zero();
    put_ranks(b, ranks[0], ranks[1]);
}

/* b->key and b->id, best first. */
static void rank_candidates(struct block *b)
{
    uint32_t k = b->r->config.top_k, n16[2] = {1, 1};
    vq ranks[2][16];

    for (uint32_t i = 0; i < b->n; i++) {
        uint32_t n = (b->n_cand[i] + 15) / 16;

        n16[i / 8] = n > n16[i / 8] ? n : n16[i / 8];
    }
    if (k > 16) {
        put_many(b, n16);
        return;
    }
    for (uint32_t half = 0; half < 2; half++) {
        if (half * 8 >= b->n)
            for (uint32_t j = 0; j < k; j++)
                ranks[half][j] = vq_zero();
        else if (k <= 8)
            rank_8(b, 8 * half, n16[half], ranks[half]);
        else
            rank_16(b, 8 * half, n16[half], ranks[half]);
    }
    put_ranks(b, ranks[0], ranks[1]);
}

#endif
