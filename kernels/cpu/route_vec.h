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
 * scratch row, which is then read in place of the logits. Groups: the best (or
 * best two) of 8 groups are folded together; then only kept groups are read.
 *
 * Left to the scalar code: given ids (forced, hash), more than 32 groups, the
 * best-two rule without a bias, and the weights of JOINT and the mixer.
 * Function length: the phases are kept whole on purpose.
 */

#include <float.h>
#include <math.h>
#include <string.h>

#include "cpu/route_nets.h"
#include "route.h"
#include "route_math.h"

#define ROWS     MOEC_ROUTE_BLOCK
#define CAND_MAX 128u
#define SCRATCH  8192u /* floats: 16 rows of 512 columns, 2 of 4096 */
#define GROUPS   32u

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
    _Alignas(64) float scratch[SCRATCH];
    _Alignas(64) float bias_of[MOEC_ROUTE_E_MAX];
};

/* ---------------------------------------------------------------- math
 * route_math.h, sixteen at a time: the same operations in the same order. */

static inline vf exp_v(vf x)
{
    vm ok = vf_ge(x, vf_set(MOEC_EXP_LOW)); /* x <= 88: all callers */
    vf n = vf_add(vf_mul(x, vf_set(MOEC_EXP_LOG2E)), vf_set(MOEC_EXP_SHIFT));
    vf k = vf_sub(n, vf_set(MOEC_EXP_SHIFT));
    vf r = vf_sub(x, vf_mul(k, vf_set(MOEC_EXP_LN2_A)));
    vf p = vf_set(MOEC_EXP_P0);

    r = vf_sub(r, vf_mul(k, vf_set(MOEC_EXP_LN2_B)));
    p = vf_add(vf_mul(p, r), vf_set(MOEC_EXP_P1));
    p = vf_add(vf_mul(p, r), vf_set(MOEC_EXP_P2));
    p = vf_add(vf_mul(p, r), vf_set(MOEC_EXP_P3));
    p = vf_add(vf_mul(p, r), vf_set(MOEC_EXP_P4));
    p = vf_add(vf_mul(p, r), vf_set(MOEC_EXP_P5));
    p = vf_add(vf_mul(p, vf_mul(r, r)), r);
    p = vf_add(p, vf_set(1.0f));
    return vf_maskz(ok, vf_mul(p, vi_as_f(vi_add(vi_sll(vf_as_i(n), 23),
                                                 vi_set(0x3f800000u)))));
}

static inline vf minus_abs(vf x)
{
    return vi_as_f(vi_or(vf_as_i(x), vi_set(0x80000000u)));
}

static inline vf sigmoid_v(vf x)
{
    vf one = vf_set(1.0f), e = exp_v(minus_abs(x));

    return vf_div(vf_sel(vf_ge(x, vf_set(0.0f)), one, e), vf_add(one, e));
}

static inline vf log1p_v(vf u)
{
    vf t = vf_div(u, vf_add(vf_set(2.0f), u));
    vf z = vf_mul(t, t);
    vf p = vf_set(MOEC_LOG1P_P0);

    p = vf_add(vf_mul(p, z), vf_set(MOEC_LOG1P_P1));
    p = vf_add(vf_mul(p, z), vf_set(MOEC_LOG1P_P2));
    p = vf_add(vf_mul(p, z), vf_set(MOEC_LOG1P_P3));
    p = vf_add(vf_mul(p, z), vf_set(MOEC_LOG1P_P4));
    t = vf_add(t, t);
    return vf_add(vf_mul(t, vf_mul(z, p)), t);
}

static inline vf sqrt_softplus_v(vf x)
{
    vm high = vf_ge(x, vf_set(MOEC_SOFTPLUS_LOW));
    vf half = vf_mul(x, vf_set(0.5f));
    vf e = exp_v(vf_sel(high, minus_abs(x), half));
    vf sum = vf_add(vf_max(x, vf_set(0.0f)), log1p_v(e));

    return vf_sel(high, vf_sqrt(sum), e);
}

static inline vf tanh_v(vf y)
{
    vf one = vf_set(1.0f), z = vf_mul(y, y), p = vf_set(MOEC_TANH_P0), e, big;
    vi sign = vi_and(vf_as_i(y), vi_set(0x80000000u));
    vf a = vi_as_f(vi_xor(vf_as_i(y), sign));

    p = vf_add(vf_mul(p, z), vf_set(MOEC_TANH_P1));
    p = vf_add(vf_mul(p, z), vf_set(MOEC_TANH_P2));
    p = vf_add(vf_mul(p, z), vf_set(MOEC_TANH_P3));
    p = vf_add(vf_mul(p, z), vf_set(MOEC_TANH_P4));
    p = vf_add(vf_mul(p, z), vf_set(MOEC_TANH_P5));
    p = vf_add(vf_mul(y, vf_mul(z, p)), y);
    e = exp_v(vf_mul(vf_set(-2.0f), a));
    big = vf_div(vf_sub(one, e), vf_add(one, e));
    big = vi_as_f(vi_or(vf_as_i(big), sign));
    return vf_sel(vf_ge(a, vf_set(MOEC_TANH_SMALL)), big, p);
}

/* A logit as all code sees it: see load_logit in route_scalar.c. */
static inline vf canonical(vf x)
{
    vf none = vf_set(-INFINITY);
    vf v = vf_add(vf_min(x, vf_set(FLT_MAX)), vf_set(0.0f));

    return vf_sel(vf_gt(x, none), v, none);
}

static inline vf capped_by(float cap, vf x)
{
    if (cap == 0.0f)
        return x;
    return vf_sel(vf_gt(x, vf_set(-INFINITY)),
                  vf_mul(vf_set(cap), tanh_v(vf_div(x, vf_set(cap)))), x);
}

static inline vf capped(const struct block *b, vf x)
{
    return capped_by(b->r->config.softcap, x);
}

/* Score of a finite x, but for softmax. */
static inline vf score_v(moec_score score, vf x)
{
    switch (score) {
    case MOEC_SCORE_SIGMOID:
        return sigmoid_v(x);
    case MOEC_SCORE_SQRT_SOFTPLUS:
        return sqrt_softplus_v(x);
    case MOEC_SCORE_SOFTMAX:
    case MOEC_SCORE_LOGIT:
        break;
    }
    return x;
}

static inline vi key_v(vf x)
{
    vi i = vf_as_i(x);

    return vi_xor(i, vi_or(vi_sra(i, 31), vi_set(0x80000000u)));
}

static inline vf unkey_v(vi key)
{
    vi flip = vi_or(vi_xor(vi_sra(key, 31), vi_set(0xffffffffu)),
                    vi_set(0x80000000u));

    return vi_as_f(vi_xor(key, flip));
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
                vf_store(b->scratch + i * stride + at,
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
    b->bias = b->bias_of;
    for (uint32_t at = 0; at < n; at += 16) {
        vf v = load_values(b->in->bias + at, n - at);

        vf_store(b->bias_of + at, vf_sel(vf_gt(v, none), v, none));
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
    float *out = b->scratch + i * stride;
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
        b->value[i] = b->scratch + i * stride;
        for (uint32_t at = 0; at < n; at += 16)
            vf_store(b->scratch + i * stride + at,
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
    float *out = b->scratch + i * stride;
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

static void all_candidates(struct block *b)
{
    for (uint32_t i = 0; i < b->n; i++) {
        if (b->grouped)
            find_candidates_grouped(b, i);
        else if (b->screened)
            find_candidates(b, i, false);
        else
            find_candidates(b, i, true);
        if (b->n_cand[i] > CAND_MAX) {
            if (b->screened)
                biased_row(b, i, MOEC_SCORE_SIGMOID, b->in->logits_dtype,
                           false);
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

        have = have > 16 * at ? have - 16 * at : 0;
        key = key_v(vf_add(vf_min(v, vf_set(FLT_MAX)), vf_set(0.0f)));
        key = vi_maskz(
            vm_and(vi_lt(vi_iota(), vi_set(have)), vf_gt(v, vf_set(-INFINITY))),
            key);
        vq_pack(key, id, &lo[j], &hi[j]);
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

/* b->key and b->id, best first; key 0 and id -1 where there is none. */
static void rank_candidates(struct block *b)
{
    uint32_t k = b->r->config.top_k, n16[2] = {1, 1};
    vq ranks[2][CAND_MAX];

    for (uint32_t i = 0; i < b->n; i++) {
        uint32_t n = (b->n_cand[i] + 15) / 16;

        n16[i / 8] = n > n16[i / 8] ? n : n16[i / 8];
    }
    for (uint32_t half = 0; half < 2; half++) {
        if (half * 8 >= b->n) {
            for (uint32_t j = 0; j < k; j++)
                ranks[half][j] = vq_zero();
        } else if (k <= 8) {
            rank_8(b, 8 * half, n16[half], ranks[half]);
        } else if (k <= 16) {
            rank_16(b, 8 * half, n16[half], ranks[half]);
        } else {
            rank_many(b, 8 * half, n16[half], ranks[half]);
        }
    }
    for (uint32_t j = 0; j < k; j++) {
        vi key, id;

        vq_unpack(ranks[0][j], ranks[1][j], &key, &id);
        id = vi_or(id, vi_ones_where_zero(key));
        vi_store(b->key[j], key);
        vi_store(b->id[j], id);
    }
}

/* ------------------------------------------------------------- weights */

/* b->s: x of each chosen column, -inf for none. */
static void gather_x(struct block *b)
{
    uint32_t k = b->r->config.top_k;

    for (uint32_t j = 0; b->n < ROWS && j < k; j++)
        vf_store(b->s[j], vf_set(-INFINITY));
    for (uint32_t i = 0; i < b->n; i++) {
        const void *row = moec_route_row(b->r, b->in, b->row + i);

        for (uint32_t j = 0; j < k; j++) {
            int32_t id = b->id[j][i];

            if (id < 0)
                b->s[j][i] = -INFINITY;
            else if (b->in->logits_dtype == MOEC_DTYPE_F32)
                b->s[j][i] = ((const float *)row)[id];
            else
                b->s[j][i] =
                    vf_one(((const uint16_t *)row)[id], b->in->logits_dtype);
        }
    }
    for (uint32_t j = 0; j < k; j++)
        vf_store(b->s[j], capped(b, canonical(vf_load(b->s[j]))));
}

/* b->s from x to score, or e^(x - m) where a softmax follows. */
static void scores_of_chosen(struct block *b)
{
    const moec_route_config *c = &b->r->config;
    uint32_t k = c->top_k;
    vf none = vf_set(-INFINITY), m = none;

    if (c->norm == MOEC_NORM_SOFTMAX) {
        for (uint32_t j = 0; j < k; j++)
            m = vf_max(m, vf_load(b->s[j]));
    } else if (c->score == MOEC_SCORE_SOFTMAX) {
        m = vf_load(b->m);
    } else {
        for (uint32_t j = 0; j < k; j++) {
            vf x = vf_load(b->s[j]);

            vf_store(b->s[j], vf_maskz(vf_gt(x, none), score_v(c->score, x)));
        }
        return;
    }
    for (uint32_t j = 0; j < k; j++) {
        vf x = vf_load(b->s[j]);

        vf_store(b->s[j], vf_maskz(vf_gt(x, none), exp_v(vf_sub(x, m))));
    }
}

/* See divisor in route_scalar.c. */
static vf divisor(struct block *b)
{
    const moec_route_config *c = &b->r->config;
    bool softmax = c->score == MOEC_SCORE_SOFTMAX;
    vf sum = vf_set(0.0f), all = vf_set(1.0f);

    if (c->norm == MOEC_NORM_NONE) {
        if (!softmax)
            return all;
        if (!b->has_sum)
            find_sum(b, b->bias, false);
        return vf_load(b->sum);
    }
    for (uint32_t j = 0; j < c->top_k; j++) {
        vf v = vf_load(b->s[j]);

        if (c->norm == MOEC_NORM_P)
            v = c->norm_arg == 2.0f
                    ? vf_mul(v, v)
                    : vi_as_f(vi_and(vf_as_i(v), vi_set(0x7fffffffu)));
        sum = vf_add(sum, v);
    }
    if (c->norm == MOEC_NORM_SUM) {
        vm zero = vf_eq0(sum);
        vm small = vm_and(vf_gt(vf_set(1e-8f), sum), vf_gt(sum, vf_set(0.0f)));

        if (softmax && vm_count(small) != 0) {
            if (!b->has_sum)
                find_sum(b, b->bias, false);
            all = vf_sel(small, vf_load(b->sum), all);
        }
        all = vf_add(sum, vf_mul(vf_set(1e-20f), all));
        return vf_sel(zero, vf_set(0.0f), all);
    }
    if (c->norm == MOEC_NORM_FLOOR) {
        if (softmax && !b->has_sum)
            find_sum(b, b->bias, false);
        if (softmax)
            all = vf_load(b->sum);
        return vf_max(sum, vf_mul(vf_set(c->norm_arg), all));
    }
    if (c->norm == MOEC_NORM_P && c->norm_arg == 2.0f)
        return vf_sqrt(sum);
    return sum;
}

/* b->s from x to weight; b->m is known where a softmax needs it. */
static void weigh(struct block *b)
{
    const moec_route_config *c = &b->r->config;
    const float *scale = b->in->expert_scale;
    vf d, rsf = vf_set(c->rsf);
    vm zero;

    scores_of_chosen(b);
    d = divisor(b);
    zero = vf_eq0(d);
    for (uint32_t j = 0; j < c->top_k; j++) {
        vf w = vf_div(vf_load(b->s[j]), d);

        if (c->rsf_on == MOEC_RSF_ON_WEIGHTS)
            w = vf_mul(w, rsf);
        w = vf_sel(zero, vf_set(0.0f), w);
        w = vf_sel(vi_lt(vi_load(b->id[j]), vi_set(0)), vf_set(0.0f), w);
        vf_store(b->s[j], w);
    }
    for (uint32_t j = 0; scale && j < c->top_k; j++)
        for (uint32_t i = 0; i < b->n; i++) {
            int32_t id = b->id[j][i];

            if (id >= 0 && (uint32_t)id < c->n_experts)
                b->s[j][i] *= scale[id];
        }
}

/* -------------------------------------------------------------- output */

/* Rows of ids and weights from columns 8 at a time: one transposition turns
 * eight columns of both. */
static void write_rows(const struct block *b, int32_t *ids, float *weights,
                       bool with_ids)
{
    uint32_t k = b->r->config.top_k, stride = b->r->n_columns;

    for (uint32_t at = 0; at < k; at += 8) {
        uint32_t n = k - at < 8 ? k - at : 8;
        vf v[16];

        for (uint32_t j = 0; j < 8; j++) {
            v[j] = j < n ? vi_as_f(vi_load(b->id[at + j])) : vf_set(0.0f);
            v[j + 8] = j < n ? vf_load(b->s[at + j]) : vf_set(0.0f);
        }
        vf_transpose(v);
        for (uint32_t i = 0; i < b->n; i++) {
            uint64_t to = (uint64_t)i * stride + at;

            if (with_ids)
                vf_store_low(ids + to, v[i], n);
            vf_store_high(weights + to, v[i], n);
        }
    }
}

static void write_shared(const struct block *b, int32_t *ids, float *weights,
                         bool with_ids)
{
    const moec_route_config *c = &b->r->config;
    float w = b->r->shared_weight;

    for (uint32_t i = 0; i < b->n && c->n_shared; i++) {
        uint64_t to = (uint64_t)i * b->r->n_columns + c->top_k;
        bool none = b->id[0][i] < 0;

        if (c->shared_kind == MOEC_SHARED_SIGMOID)
            w = moec_shared_weight(c, b->in->shared_gate[b->row + i]);
        for (uint32_t s = 0; s < c->n_shared; s++) {
            if (with_ids)
                ids[to + s] = none ? -1 : (int32_t)(b->r->n_choice + s);
            weights[to + s] = none ? 0.0f : w;
        }
    }
}

/* ------------------------------------------------------------- entries */

static void block_init(struct block *b, const moec_router *r,
                       const moec_route_in *in)
{
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

/* The same where the choice may read the logits in place. */
static uint32_t choice_rows(const moec_router *r, const moec_route_in *in)
{
    bool in_place = in->logits_dtype == MOEC_DTYPE_F32 && !in->bias;

    return in_place ? ROWS : block_rows(r);
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

static void rows_vec(const moec_router *r, const moec_route_in *in,
                     uint32_t row, uint32_t n, int32_t *ids, float *weights)
{
    uint32_t step = choice_rows(r, in);
    struct block b;

    if (!chooses(r, in)) {
        moec_route_rows_scalar(r, in, row, n, ids, weights);
        return;
    }
    block_init(&b, r, in);
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

/* With a bias, or groups. */
static __attribute__((noinline)) void
keys_of_blocks(const moec_router *r, const moec_route_in *in, uint32_t row,
               uint32_t n, uint32_t *keys, uint64_t stride)
{
    uint32_t step = choice_rows(r, in);
    struct block b;

    block_init(&b, r, in);
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

static void weights_vec(const moec_router *r, const moec_route_in *in,
                        uint32_t row, uint32_t n, const int32_t *ids,
                        const moec_row_scale *scales, float *weights)
{
    bool needs_m = r->config.score == MOEC_SCORE_SOFTMAX &&
                   r->config.norm != MOEC_NORM_SOFTMAX;
    struct block b;

    if (!weighs(r)) {
        moec_route_weights_scalar(r, in, row, n, ids, scales, weights);
        return;
    }
    block_init(&b, r, in);
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

#endif
