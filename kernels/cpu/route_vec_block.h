/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_ROUTE_VEC_BLOCK_H
#define MOEC_ROUTE_VEC_BLOCK_H

/*
 * What this is: sixteen rows at work: their logits, the values that rank, and the
 *   groups that each row keeps. Part of route_vec.h.
 */

#include <float.h>
#include <math.h>

#include "cpu/route_vec_math.h"
#include "route.h"

#define ROWS     MOEC_ROUTE_BLOCK
#define CAND_MAX 128u
#define SCRATCH  8192u /* floats: 16 rows of 512 columns, 2 of 4096 */
#define GROUPS   32u

struct wide;

/* Sixteen rows at work. All arrays [..][ROWS] have a row per lane. */
struct block {
    const moec_router *r;
    const moec_route_in *in;
    uint32_t row, n;   /* first row, rows */
    uint32_t width;    /* columns of a group; without groups, of the row */
    uint32_t n_chunks; /* vectors of a group */
    uint32_t tail;     /* columns of its last vector, 1 .. 16 */
    bool grouped, has_m, has_sum, screened;
    const float *bias;        /* in->bias made fit for sums, or NULL */
    const float *value[ROWS]; /* what ranks: logits or scratch */
    uint32_t kept[ROWS];      /* bits of groups */
    uint32_t n_cand[ROWS];
    _Alignas(64) float m[ROWS];   /* x of the row's largest logit */
    _Alignas(64) float sum[ROWS]; /* of all e^(x - m) */
    _Alignas(64) float bound[ROWS];
    _Alignas(64) float lanes[ROWS][16];
    _Alignas(64) uint32_t key[MOEC_ROUTE_K_MAX][ROWS];
    _Alignas(64) int32_t id[MOEC_ROUTE_K_MAX][ROWS];
    _Alignas(64) float s[MOEC_ROUTE_K_MAX][ROWS]; /* x, score, weight */
    _Alignas(64) float cand[ROWS][CAND_MAX + 16];
    _Alignas(64) uint32_t cand_id[ROWS][CAND_MAX + 16];
    struct wide *wide; /* where values are not the logits in place */
};

/* Apart, since a hardened build touches every page of a stack frame. */
struct wide {
    _Alignas(64) float scratch[SCRATCH];
    _Alignas(64) float bias[MOEC_ROUTE_E_MAX];
};

static inline vf capped(const struct block *b, vf x)
{
    return capped_by(b->r->config.softcap, x);
}

/* ------------------------------------------------------------- loading */

/* 16 logits, or the first n of them and -inf behind: nothing is read past. */
static inline vf load_logits(const void *row, moec_dtype dtype, uint32_t at,
                             uint32_t n)
{
    if (dtype == MOEC_DTYPE_F32) {
        const float *p = (const float *)row + at;

        return n >= 16 ? vf_load(p) : vf_load_part(p, n, -INFINITY);
    } else {
        const uint16_t *p = (const uint16_t *)row + at;
        uint16_t part[16];

        if (n < 16) { /* 0xfc00 is -inf in f16, 0xff80 in bf16 */
            for (uint32_t i = 0; i < 16; i++)
                part[i] = i < n ? p[i]
                                : (dtype == MOEC_DTYPE_F16 ? 0xfc00u : 0xff80u);
            p = part;
        }
        return dtype == MOEC_DTYPE_F16 ? vf_load_f16(p) : vf_load_bf16(p);
    }
}

static inline vf load_values(const float *p, uint32_t n)
{
    return n >= 16 ? vf_load(p) : vf_load_part(p, n, -INFINITY);
}

/* Vertical sum, rows being lanes: the fixed tree of 16 partial sums. */
static inline vf sum_tree(vf v[16])
{
    vf_transpose(v);
    for (int half = 8; half; half /= 2)
        for (int j = 0; j < half; j++)
            v[j] = vf_add(v[j], v[j + half]);
    return v[0];
}

static inline vf max_tree(vf v[16])
{
    vf_transpose(v);
    for (int half = 8; half; half /= 2)
        for (int j = 0; j < half; j++)
            v[j] = vf_max(v[j], v[j + half]);
    return v[0];
}

static inline void load_lanes(const struct block *b, vf v[16])
{
    for (int j = 0; j < 16; j++)
        v[j] = vf_load(b->lanes[j]);
}

/* b->m: x of the largest selectable logit of each row. */
static void find_m(struct block *b, const float *bias)
{
    uint32_t n = b->r->n_choice;
    vf v[16];

    for (uint32_t i = 0; i < b->n; i++) {
        const void *row = moec_route_row(b->r, b->in, b->row + i);
        vf m = vf_set(-INFINITY);

        for (uint32_t at = 0; at < n; at += 16) {
            vf x = load_logits(row, b->in->logits_dtype, at, n - at);

            if (bias) {
                vf add = load_values(bias + at, n - at);

                x = vf_sel(vf_gt(add, vf_set(-INFINITY)), x, vf_set(-INFINITY));
            }
            m = vf_max(x, m); /* the second where the first is NaN */
        }
        vf_store(b->lanes[i], m);
    }
    load_lanes(b, v);
    vf_store(b->m, capped(b, canonical(max_tree(v))));
    b->has_m = true;
}

/* b->sum, and in scratch, where `keep`, each e^(x - m). */
static void find_sum(struct block *b, const float *bias, bool keep)
{
    uint32_t n = b->r->n_choice, stride = (n + 15) / 16 * 16;
    vf none = vf_set(-INFINITY), v[16];

    for (uint32_t i = 0; i < b->n; i++) {
        const void *row = moec_route_row(b->r, b->in, b->row + i);
        vf m = vf_set(b->m[i]), sum = vf_set(0.0f);

        for (uint32_t at = 0; at < n; at += 16) {
            vf x = load_logits(row, b->in->logits_dtype, at, n - at), e;

            x = capped(b, canonical(x));
            if (bias) {
                vf add = load_values(bias + at, n - at);

                x = vf_sel(vf_gt(add, none), x, none);
            }
            e = vf_maskz(vf_gt(x, none), exp_v(vf_sub(x, m)));
            sum = vf_add(sum, e);
            if (keep)
                vf_store(b->wide->scratch + i * stride + at,
                         vf_sel(vf_gt(x, none), e, none));
        }
        vf_store(b->lanes[i], sum);
    }
    load_lanes(b, v);
    vf_store(b->sum, sum_tree(v));
    b->has_sum = true;
}

/* ---------------------------------------------- the values that rank */

/* The bias with -inf for NaN: sums with it need no look at it any more.
 * Padded with -inf to whole vectors. */
static void take_bias(struct block *b)
{
    uint32_t n = b->r->n_choice;
    vf none = vf_set(-INFINITY);

    b->bias = NULL;
    if (!b->in->bias)
        return;
    b->bias = b->wide->bias;
    for (uint32_t at = 0; at < n; at += 16) {
        vf v = load_values(b->in->bias + at, n - at);

        vf_store(b->wide->bias + at, vf_sel(vf_gt(v, none), v, none));
    }
}

/* score + bias of row i into its scratch, -inf where a column is not
 * selectable. For softmax, e^(x - m) is there already. */
static inline __attribute__((always_inline)) void
biased_row(struct block *b, uint32_t i, moec_score score, moec_dtype dtype,
           bool cap)
{
    uint32_t n = b->r->n_choice, stride = (n + 15) / 16 * 16;
    vf none = vf_set(-INFINITY), top = vf_set(FLT_MAX);
    const void *row = moec_route_row(b->r, b->in, b->row + i);
    float *out = b->wide->scratch + i * stride;
    vf sum = vf_set(b->sum[i]);

    b->value[i] = out;
    for (uint32_t at = 0; at < n; at += 16) {
        vf add = vf_load(b->bias + at), s;
        vm ok;

        if (score == MOEC_SCORE_SOFTMAX) {
            s = vf_load(out + at);
            ok = vf_gt(s, none);
            s = vf_div(s, sum);
        } else {
            vf x = canonical(load_logits(row, dtype, at, n - at));

            ok = vf_gt(x, none);
            s = score_v(score, cap ? capped(b, x) : x);
        }
        s = vf_min(vf_add(s, add), top);
        vf_store(out + at, vf_sel(ok, s, none));
    }
}

static void make_biased(struct block *b)
{
    moec_score score = b->r->config.score;
    moec_dtype dtype = b->in->logits_dtype;
    bool cap = b->r->config.softcap != 0.0f;

    if (score == MOEC_SCORE_SOFTMAX) {
        find_m(b, b->bias);
        find_sum(b, b->bias, true);
    }
    for (uint32_t i = 0; i < b->n; i++) {
        if (score == MOEC_SCORE_SIGMOID && dtype == MOEC_DTYPE_F32 && !cap)
            biased_row(b, i, MOEC_SCORE_SIGMOID, MOEC_DTYPE_F32, false);
        else if (score == MOEC_SCORE_SIGMOID && dtype == MOEC_DTYPE_BF16 &&
                 !cap)
            biased_row(b, i, MOEC_SCORE_SIGMOID, MOEC_DTYPE_BF16, false);
        else
            biased_row(b, i, score, dtype, true);
    }
}

/* Point b->value at what ranks. */
static void make_values(struct block *b)
{
    uint32_t n = b->r->n_choice, stride = (n + 15) / 16 * 16;

    b->has_m = false;
    b->has_sum = false;
    if (b->bias) {
        make_biased(b);
        return;
    }
    for (uint32_t i = 0; i < b->n; i++) {
        const void *row = moec_route_row(b->r, b->in, b->row + i);

        b->value[i] = row;
        if (b->in->logits_dtype == MOEC_DTYPE_F32)
            continue;
        b->value[i] = b->wide->scratch + i * stride;
        for (uint32_t at = 0; at < n; at += 16)
            vf_store(b->wide->scratch + i * stride + at,
                     load_logits(row, b->in->logits_dtype, at, n - at));
    }
}

/* -------------------------------------------------------------- groups */

struct best2 {
    vf a, b; /* the best of each lane, and its second */
};

static inline struct best2 merge2(struct best2 x, struct best2 y)
{
    struct best2 z;

    z.a = vf_max(x.a, y.a);
    z.b = vf_max(vf_min(x.a, y.a), vf_max(x.b, y.b));
    return z;
}

/* Best two of each lane of group g of a row. */
static inline struct best2 scan_group(const struct block *b, uint32_t i,
                                      uint32_t g)
{
    struct best2 t = {vf_set(-INFINITY), vf_set(-INFINITY)};

    if (g >= b->r->config.n_group)
        return t;
    for (uint32_t c = 0; c < b->n_chunks; c++) {
        const float *p = b->value[i] + g * b->width + 16 * c;
        vf v = load_values(p, c + 1 == b->n_chunks ? b->tail : 16);

        v = vf_max(v, vf_set(-INFINITY)); /* no NaN from here on */
        t.b = vf_max(t.b, vf_min(t.a, v));
        t.a = vf_max(t.a, v);
    }
    return t;
}

/* Fold the lanes of eight groups: group g's two in lane g of the result. */
static inline struct best2 fold8(struct best2 t[8])
{
    for (int j = 0; j < 4; j++) { /* 16 lanes to 8 */
        struct best2 x, y;

        x.a = vf_low_halves(t[j].a, t[j + 4].a);
        x.b = vf_low_halves(t[j].b, t[j + 4].b);
        y.a = vf_high_halves(t[j].a, t[j + 4].a);
        y.b = vf_high_halves(t[j].b, t[j + 4].b);
        t[j] = merge2(x, y);
    }
    for (int j = 0; j < 2; j++) { /* 8 to 4: groups j, j+4, j+2, j+6 */
        struct best2 x, y;

        x.a = vf_even_quarters(t[j].a, t[j + 2].a);
        x.b = vf_even_quarters(t[j].b, t[j + 2].b);
        y.a = vf_odd_quarters(t[j].a, t[j + 2].a);
        y.b = vf_odd_quarters(t[j].b, t[j + 2].b);
        t[j] = merge2(x, y);
    }
    {
        struct best2 x, y; /* 4 to 2, then to 1 */

        x.a = vf_unpack_low(t[0].a, t[1].a);
        x.b = vf_unpack_low(t[0].b, t[1].b);
        y.a = vf_unpack_high(t[0].a, t[1].a);
        y.b = vf_unpack_high(t[0].b, t[1].b);
        x = merge2(x, y);
        y.a = vf_swap_pairs(x.a);
        y.b = vf_swap_pairs(x.b);
        x = merge2(x, y);
        x.a = vf_order_groups(x.a);
        x.b = vf_order_groups(x.b);
        return x;
    }
}

/* b->kept, a bit for each group, from the scores of up to 32 groups. */
static void keep_best(struct block *b, const float score[][ROWS])
{
    uint32_t n = b->r->config.n_group;
    vi kept = vi_set(0);

    for (uint32_t g = 0; g < n; g++) {
        vf mine = vf_load(score[g]);
        vi rank = vi_set(0);
        vm ok;

        for (uint32_t j = 0; j < g; j++)
            rank = vi_sub_mask(rank, vf_ge(vf_load(score[j]), mine));
        for (uint32_t j = g + 1; j < n; j++)
            rank = vi_sub_mask(rank, vf_gt(vf_load(score[j]), mine));
        ok = vm_and(vi_lt(rank, vi_set(b->r->config.topk_group)),
                    vf_gt(mine, vf_set(-INFINITY)));
        kept = vi_or(kept, vi_maskz(ok, vi_set(1u << g)));
    }
    vi_store(b->kept, kept);
}

static void make_groups(struct block *b)
{
    bool top2 = b->r->config.group_score == MOEC_GROUP_TOP2;
    uint32_t n = b->r->config.n_group;
    _Alignas(64) float score[GROUPS][ROWS];
    vf low = vf_set(-FLT_MAX), top = vf_set(FLT_MAX), v[16];

    for (uint32_t first = 0; first < n; first += 8) {
        for (uint32_t i = 0; i < b->n; i++) {
            struct best2 t[8], f;
            vf s;

            for (uint32_t j = 0; j < 8; j++)
                t[j] = scan_group(b, i, first + j);
            f = fold8(t);
            s = vf_min(f.a, top);
            if (top2) /* the smaller is -inf in a short group */
                s = vf_sel(vf_gt(f.b, vf_set(-INFINITY)),
                           vf_max(vf_min(vf_add(s, f.b), top), low),
                           vf_set(-INFINITY));
            vf_store(b->lanes[i], s);
        }
        load_lanes(b, v);
        vf_transpose(v);
        for (uint32_t j = 0; j < 8; j++)
            vf_store(score[first + j], v[j]);
    }
    keep_best(b, (const float(*)[ROWS])score);
}

#endif
