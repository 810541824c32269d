/* SPDX-License-Identifier: Apache-2.0
 *
 * Choice and weights in plain C: the specification that every other back end
 * equals. One row at a time, nothing clever; route.h lists what it decides
 * where the public header leaves room. */

#include <float.h>
#include <math.h>
#include <string.h>

#include "route.h"
#include "route_math.h"

#define LANES 16u

static float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exp = h >> 10 & 31u;
    moec_f32_bits b;

    b.u = (uint32_t)(h & 0x3ffu) << 13;
    if (exp == 0) { /* a denormal: a multiple of 2^-24 */
        b.f = (float)(h & 0x3ffu) * 0x1p-24f;
        b.u |= sign;
        return b.f;
    }
    b.u |= sign | (exp == 31 ? 255u : exp + 112u) << 23;
    return b.f;
}

/* Logit i as every back end sees it: -INFINITY where it can never be chosen,
 * at most FLT_MAX, never -0. */
static float load_logit(const void *row, moec_dtype dtype, uint32_t i)
{
    moec_f32_bits b;
    uint16_t h;

    if (dtype == MOEC_DTYPE_F32) {
        memcpy(&b.f, (const char *)row + 4 * (size_t)i, 4);
    } else {
        memcpy(&h, (const char *)row + 2 * (size_t)i, 2);
        if (dtype == MOEC_DTYPE_F16)
            b.f = f16_to_f32(h);
        else
            b.u = (uint32_t)h << 16;
    }
    if (!(b.f > -INFINITY))
        return -INFINITY;
    return b.f > FLT_MAX ? FLT_MAX : b.f + 0.0f;
}

/* One row of the call at hand. */
struct row {
    const moec_router *r;
    const moec_route_in *in;
    const void *logits;
    const float *bias; /* NULL: none that counts */
};

static struct row row_of(const moec_router *r, const moec_route_in *in,
                         uint32_t row)
{
    struct row w = {r, in, moec_route_row(r, in, row), in->bias};

    if (r->config.choice == MOEC_CHOICE_HASH)
        w.bias = NULL;
    return w;
}

/* The raw logit that ranks, -INFINITY where column i is not selectable. */
static float raw_of(const struct row *w, uint32_t i)
{
    if (w->bias && !(w->bias[i] > -INFINITY))
        return -INFINITY;
    return load_logit(w->logits, w->in->logits_dtype, i);
}

/* x: the logit after the softcap. */
static float capped(const struct row *w, float raw)
{
    float cap = w->r->config.softcap;

    if (cap == 0.0f || !(raw > -INFINITY))
        return raw;
    return cap * moec_f32_tanh(raw / cap);
}

static float x_of(const struct row *w, uint32_t i)
{
    return capped(w, raw_of(w, i));
}

/* x of the column with the largest raw logit: our tanh need not be monotonic
 * in its last bit, and the choice's first column is known where this is. */
static float row_max(const struct row *w)
{
    float m = -INFINITY;

    for (uint32_t i = 0; i < w->r->n_choice; i++) {
        float raw = raw_of(w, i);

        m = raw > m ? raw : m;
    }
    return capped(w, m);
}

static float sum_lanes(float *lane)
{
    for (uint32_t half = LANES / 2; half; half /= 2)
        for (uint32_t j = 0; j < half; j++)
            lane[j] = lane[j] + lane[j + half];
    return lane[0];
}

/* Sum of e^(x - m) over all selectable columns. */
static float row_sum(const struct row *w, float m)
{
    float lane[LANES] = {0};

    for (uint32_t i = 0; i < w->r->n_choice; i++)
        lane[i % LANES] = lane[i % LANES] + moec_f32_exp(x_of(w, i) - m);
    return sum_lanes(lane);
}

/* Score of a logit, but for softmax. */
static float score_of(moec_score score, float x)
{
    if (!(x > -INFINITY))
        return 0.0f;
    switch (score) {
    case MOEC_SCORE_SIGMOID:
        return moec_f32_sigmoid(x);
    case MOEC_SCORE_SQRT_SOFTPLUS:
        return moec_f32_sqrt_softplus(x);
    case MOEC_SCORE_SOFTMAX:
    case MOEC_SCORE_LOGIT:
        break;
    }
    return x;
}

/* ------------------------------------------------------------- choice */

/* A sum that may have left the finite numbers comes back to the last one. */
static float clamped(float v)
{
    if (v > FLT_MAX)
        return FLT_MAX;
    return v < -FLT_MAX ? -FLT_MAX : v + 0.0f;
}

/* score[i] of all columns. Those that are not selectable: anything. */
static void row_scores(const struct row *w, float *score)
{
    uint32_t n = w->r->n_choice;
    float m = 0.0f, sum = 1.0f;

    if (w->r->config.score != MOEC_SCORE_SOFTMAX) {
        for (uint32_t i = 0; i < n; i++)
            score[i] = score_of(w->r->config.score, x_of(w, i));
        return;
    }
    m = row_max(w);
    sum = row_sum(w, m);
    for (uint32_t i = 0; i < n; i++)
        score[i] = moec_f32_exp(x_of(w, i) - m) / sum;
}

/* Key of the choice score: the raw logit, or score + bias. */
static uint32_t choice_key(const struct row *w, const float *score, uint32_t i)
{
    float c = raw_of(w, i);

    if (!(c > -INFINITY))
        return 0;
    if (w->bias) {
        c = score[i] + w->bias[i];
        if (!(c > -INFINITY))
            return 0;
    }
    return moec_f32_key(clamped(c));
}

/* Key of a group's score; 0 where it must not be kept. */
static uint32_t group_key(const struct row *w, const uint32_t *keys,
                          const float *score, uint32_t first, uint32_t n)
{
    bool top2 = w->r->config.group_score == MOEC_GROUP_TOP2;
    uint32_t best = 0, n_ok = 0;
    float a = -INFINITY, b = -INFINITY; /* the best two, a >= b */

    for (uint32_t i = first; i < first + n; i++) {
        float v;

        if (keys[i] == 0)
            continue;
        best = keys[i] > best ? keys[i] : best;
        n_ok++;
        if (!top2) /* nor has anybody written `score` */
            continue;
        v = w->bias ? moec_f32_unkey(keys[i]) : score[i];
        if (v > a) {
            b = a;
            a = v;
        } else if (v > b) {
            b = v;
        }
    }
    if (!top2)
        return best;
    return n_ok < 2 ? 0 : moec_f32_key(clamped(a + b));
}

/* Clear the keys of the groups that are not kept. */
static void keep_groups(const struct row *w, uint32_t *keys, const float *score)
{
    const moec_route_config *c = &w->r->config;
    uint32_t width = c->n_experts / c->n_group;
    uint32_t group[MOEC_ROUTE_E_MAX];
    bool kept[MOEC_ROUTE_E_MAX] = {false};

    for (uint32_t g = 0; g < c->n_group; g++)
        group[g] = group_key(w, keys, score, g * width, width);
    for (uint32_t n = 0; n < c->topk_group; n++) {
        uint32_t best = 0;

        for (uint32_t g = 1; g < c->n_group; g++)
            if (group[g] > group[best])
                best = g;
        if (group[best] == 0)
            break;
        group[best] = 0;
        kept[best] = true;
    }
    for (uint32_t i = 0; i < c->n_experts; i++)
        if (!kept[i / width])
            keys[i] = 0;
}

static void row_keys(const struct row *w, uint32_t *keys)
{
    const moec_route_config *c = &w->r->config;
    float score[MOEC_ROUTE_E_MAX];

    if (w->bias || (c->n_group > 1 && c->group_score == MOEC_GROUP_TOP2))
        row_scores(w, score);
    for (uint32_t i = 0; i < w->r->n_choice; i++)
        keys[i] = choice_key(w, score, i);
    if (c->n_group > 1)
        keep_groups(w, keys, score);
}

/* The best k columns, best first, the lower id where keys are equal. */
static void select_best(const uint32_t *keys, uint32_t n, uint32_t k,
                        int32_t *ids)
{
    uint32_t best[MOEC_ROUTE_K_MAX], n_best = 0;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t at;

        if (keys[i] == 0 || (n_best == k && keys[i] <= best[k - 1]))
            continue;
        at = n_best < k ? n_best++ : k - 1;
        for (; at > 0 && best[at - 1] < keys[i]; at--) {
            best[at] = best[at - 1];
            ids[at] = ids[at - 1];
        }
        best[at] = keys[i];
        ids[at] = (int32_t)i;
    }
    for (; n_best < k; n_best++)
        ids[n_best] = -1;
}

/* ------------------------------------------------------------- weights */

/* Scores of the sparse mixer: each round its own softmax over the columns not
 * taken by earlier rounds and close enough to the round's best. */
static void mixer_scores(const struct row *w, const int32_t *ids, float *s)
{
    float x[MOEC_ROUTE_E_MAX], limit = 2.0f * w->r->config.mixer_eps;
    uint32_t n = w->r->n_choice;

    for (uint32_t i = 0; i < n; i++)
        x[i] = x_of(w, i);
    for (uint32_t k = 0; k < w->r->config.top_k; k++) {
        float m = -INFINITY, lane[LANES] = {0}, mine = 0.0f;

        s[k] = 0.0f;
        if (ids[k] < 0)
            continue;
        for (uint32_t i = 0; i < n; i++)
            m = x[i] > m ? x[i] : m;
        for (uint32_t i = 0; i < n; i++) {
            float a = fabsf(x[i]), e;

            if (!(x[i] > -INFINITY) || (m - x[i]) / (a > m ? a : m) > limit)
                continue;
            e = moec_f32_exp(x[i] - m);
            lane[i % LANES] = lane[i % LANES] + e;
            if ((int32_t)i == ids[k])
                mine = e;
        }
        x[ids[k]] = -INFINITY;
        if (mine > 0.0f)
            s[k] = mine / sum_lanes(lane);
    }
}

/* Score, or for softmax e^(x - *m_out), of each chosen id; 0 for none. */
static void chosen_scores(const struct row *w, const int32_t *ids, float *s,
                          float *m_out)
{
    const moec_route_config *c = &w->r->config;
    bool of_chosen = c->norm == MOEC_NORM_SOFTMAX;
    float m = -INFINITY;

    for (uint32_t k = 0; k < c->top_k; k++) {
        s[k] = ids[k] < 0 ? -INFINITY : x_of(w, (uint32_t)ids[k]);
        m = s[k] > m ? s[k] : m;
    }
    if (!of_chosen && c->score == MOEC_SCORE_SOFTMAX)
        m = row_max(w);
    for (uint32_t k = 0; k < c->top_k; k++) {
        if (!(s[k] > -INFINITY))
            s[k] = 0.0f;
        else if (of_chosen || c->score == MOEC_SCORE_SOFTMAX)
            s[k] = moec_f32_exp(s[k] - m);
        else
            s[k] = score_of(c->score, s[k]);
    }
    *m_out = m;
}

/* Sigmoids of the shared experts' logits, behind the others. */
static float shared_score(const struct row *w, uint32_t s)
{
    return score_of(
        MOEC_SCORE_SIGMOID,
        load_logit(w->logits, w->in->logits_dtype, w->r->n_choice + s));
}

/* What the scores are divided by; 0 makes all weights 0. */
static float divisor(const struct row *w, const float *s, float m)
{
    const moec_route_config *c = &w->r->config;
    bool softmax =
        c->score == MOEC_SCORE_SOFTMAX && c->choice != MOEC_CHOICE_SPARSE_MIXER;
    float sum = 0.0f, all = 1.0f;

    for (uint32_t k = 0; k < c->top_k; k++) {
        float v = s[k];

        if (c->norm == MOEC_NORM_P)
            v = c->norm_arg == 2.0f ? v * v : fabsf(v);
        sum = sum + v;
    }
    switch (c->norm) {
    case MOEC_NORM_NONE:
        return softmax ? row_sum(w, m) : 1.0f;
    case MOEC_NORM_SUM:
        if (sum == 0.0f)
            return 0.0f;
        if (softmax && sum < 1e-8f)
            all = row_sum(w, m);
        return sum + 1e-20f * all;
    case MOEC_NORM_FLOOR:
        if (softmax)
            all = row_sum(w, m);
        all = c->norm_arg * all;
        return sum > all ? sum : all;
    case MOEC_NORM_P:
        return c->norm_arg == 2.0f ? sqrtf(sum) : sum;
    case MOEC_NORM_SOFTMAX:
        return sum;
    case MOEC_NORM_JOINT:
        for (uint32_t j = 0; j < c->n_shared_logits; j++)
            sum = sum + shared_score(w, j);
        return sum;
    }
    return 0.0f;
}

static void shared_weights(const struct row *w, uint32_t row, float d,
                           float *weights)
{
    const moec_route_config *c = &w->r->config;
    float gate = 0.0f;

    if (c->n_shared && c->shared_kind == MOEC_SHARED_SIGMOID)
        gate = w->in->shared_gate[row];
    for (uint32_t j = 0; j < c->n_shared; j++) {
        if (c->norm == MOEC_NORM_JOINT) {
            weights[j] = d == 0.0f ? 0.0f : shared_score(w, j) / d;
            if (c->rsf_on == MOEC_RSF_ON_WEIGHTS)
                weights[j] *= c->rsf;
            weights[j] /= (float)c->shared_ranks;
        } else {
            weights[j] = moec_shared_weight(c, gate);
        }
    }
}

static void row_weights(const moec_router *r, const moec_route_in *in,
                        uint32_t row, const int32_t *ids, float *weights)
{
    const moec_route_config *c = &r->config;
    struct row w = row_of(r, in, row);
    float s[MOEC_ROUTE_K_MAX], m = 0.0f, d;

    if (ids[0] < 0) {
        memset(weights, 0, r->n_columns * sizeof(*weights));
        return;
    }
    if (c->choice == MOEC_CHOICE_SPARSE_MIXER)
        mixer_scores(&w, ids, s);
    else
        chosen_scores(&w, ids, s, &m);
    d = divisor(&w, s, m);
    for (uint32_t k = 0; k < c->top_k; k++) {
        float v = d == 0.0f || ids[k] < 0 ? 0.0f : s[k] / d;

        if (c->rsf_on == MOEC_RSF_ON_WEIGHTS)
            v = v * c->rsf;
        if (in->expert_scale && ids[k] >= 0 && (uint32_t)ids[k] < c->n_experts)
            v = v * in->expert_scale[ids[k]];
        weights[k] = v;
    }
    shared_weights(&w, row, d, weights + c->top_k);
}

void moec_route_weights_scalar(const moec_router *r, const moec_route_in *in,
                               uint32_t row, uint32_t n, const int32_t *ids,
                               const moec_row_scale *scales, float *weights)
{
    (void)scales;
    for (uint32_t i = 0; i < n; i++) {
        row_weights(r, in, row + i, ids, weights);
        ids += r->n_columns;
        weights += r->n_columns;
    }
}

/* ---------------------------------------------------------------- rows */

/* The ids of `from` that count, in their order, then -1. */
static void take_given(const struct row *w, const int32_t *from, int32_t *ids)
{
    uint32_t k = w->r->config.top_k, n = 0;

    for (uint32_t i = 0; i < k; i++) {
        if (from[i] < 0)
            continue;
        if (!w->in->forced_ids && !(raw_of(w, (uint32_t)from[i]) > -INFINITY))
            continue;
        ids[n++] = from[i];
    }
    for (; n < k; n++)
        ids[n] = -1;
}

static void choose(const struct row *w, uint32_t row, int32_t *ids)
{
    uint32_t keys[MOEC_ROUTE_E_MAX], k = w->r->config.top_k;

    if (w->in->forced_ids) {
        take_given(w, w->in->forced_ids + (uint64_t)row * k, ids);
    } else if (w->r->config.choice == MOEC_CHOICE_HASH) {
        uint32_t token = (uint32_t)w->in->tokens[row];

        take_given(w, w->in->hash_table + (uint64_t)token * k, ids);
    } else {
        row_keys(w, keys);
        select_best(keys, w->r->n_choice, k, ids);
    }
}

void moec_route_rows_scalar(const moec_router *r, const moec_route_in *in,
                            uint32_t row, uint32_t n, int32_t *ids,
                            float *weights)
{
    for (uint32_t i = 0; i < n; i++) {
        struct row w = row_of(r, in, row + i);

        choose(&w, row + i, ids);
        if (ids[0] < 0) {
            moec_route_no_rows(r, 1, ids, weights);
        } else {
            moec_route_shared_ids(r, ids);
            row_weights(r, in, row + i, ids, weights);
        }
        ids += r->n_columns;
        weights += r->n_columns;
    }
}

void moec_route_keys_scalar(const moec_router *r, const moec_route_in *in,
                            uint32_t row, uint32_t n, uint32_t *keys,
                            uint64_t stride)
{
    for (uint32_t i = 0; i < n; i++) {
        struct row w = row_of(r, in, row + i);

        row_keys(&w, keys + i * stride);
    }
}

void moec_route_cols_scalar(const moec_router *r, const moec_route_in *in,
                            uint32_t row, uint32_t n, uint32_t *cols,
                            uint64_t stride, moec_row_scale *scales)
{
    moec_route_keys_scalar(r, in, row, n, cols, stride);
    for (uint32_t i = 0; i < n; i++, cols += stride) {
        struct row w = row_of(r, in, row + i);
        float m = row_max(&w), inverse = 1.0f / row_sum(&w, m);

        for (uint32_t e = 0; e < r->n_choice; e++)
            if (cols[e] != 0)
                cols[e] = moec_f32_key(moec_f32_exp(x_of(&w, e) - m) * inverse);
        for (uint32_t e = r->n_choice; e % LANES != 0; e++)
            cols[e] = 0;
        if (scales)
            scales[i] = (moec_row_scale){m, inverse};
    }
}

void moec_route_fill_scalar(moec_router *r)
{
    if (r->config.score == MOEC_SCORE_SOFTMAX)
        r->fns.cols = moec_route_cols_scalar;
    r->fns.rows = moec_route_rows_scalar;
    r->fns.keys = moec_route_keys_scalar;
    r->fns.weights = moec_route_weights_scalar;
}
