/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the two routers of a layer say: logits and ids bit for bit, weights
 * within two ulp.
 */

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "level3.h"

enum { PROBES = 4, WEIGHT_ULP = 2 };

/* -------------------------------------------------------------- findings */

moec_finding moec_l3_finding(const moec_l3_layer *l, moec_rule rule,
                             moec_severity severity)
{
    moec_finding f = {.rule = rule,
                      .severity = severity,
                      .has = MOEC_HAS_LAYER,
                      .layer = l->result->layer};

    if (severity == MOEC_SEVERITY_ERROR)
        l->result->n_errors++;
    return f;
}

moec_finding moec_l3_slot_finding(const moec_l3_layer *l, moec_rule rule,
                                  uint32_t rank, uint32_t row)
{
    const moec_level3 *v = l->v;
    moec_finding f = moec_l3_finding(l, rule, MOEC_SEVERITY_ERROR);
    const moec_slot_tensor *t = moec_plan_slot_tensor(v->plan, l->layer, 0);
    uint64_t off;
    size_t file;

    f.has |= MOEC_HAS_RANK | MOEC_HAS_SLOT | MOEC_HAS_TENSOR;
    f.rank = rank;
    f.slot = row;
    f.tensor = t->name;
    if (v->dir == NULL)
        return f;
    moec_layout_find_slots(v->layout, rank, l->layer, 0, &file, &off);
    f.has |= MOEC_HAS_FILE | MOEC_HAS_OFFSET;
    f.file = moec_layout_file(v->layout, file)->name;
    f.offset = off + row * t->slot_bytes;
    return f;
}

void moec_l3_differ(moec_l3_difference *out, moec_finding f, double want,
                    double found)
{
    (void)snprintf(out->want, sizeof(out->want), "%.9g", want);
    (void)snprintf(out->found, sizeof(out->found), "%.9g", found);
    out->f = f;
    out->f.has |= MOEC_HAS_EXPECTED | MOEC_HAS_FOUND;
    out->f.expected = out->want;
    out->f.found = out->found;
}

static uint32_t bits_of(float f)
{
    uint32_t u;

    memcpy(&u, &f, sizeof(u));
    return u;
}

uint64_t moec_l3_first_other(const float *a, const float *b, uint64_t n)
{
    uint64_t i = 0;

    while (i < n &&
           (bits_of(a[i]) == bits_of(b[i]) || (isnan(a[i]) && isnan(b[i]))))
        i++;
    return i;
}

/* --------------------------------------------------------------- router */

static void compare_logits(moec_l3_layer *l)
{
    const moec_l3_side *a = &l->side[0], *b = &l->side[1];
    uint64_t n = (uint64_t)l->tokens * l->n_logits;
    uint64_t i = moec_l3_first_other(a->logits, b->logits, n);
    moec_l3_difference d;

    if (i == n)
        return;
    moec_l3_differ(&d, moec_l3_finding(l, MOEC_RULE_K01, MOEC_SEVERITY_ERROR),
                   (double)a->logits[i], (double)b->logits[i]);
    moec_report_add(l->v->r, &d.f,
                    "the two routers give different logits, first for token "
                    "%" PRIu64 ", expert %" PRIu64,
                    i / l->n_logits, i % l->n_logits);
}

void moec_l3_say_ids(char *buf, size_t n, const int32_t *ids, uint32_t k)
{
    size_t at = 0;

    buf[0] = '\0';
    for (uint32_t i = 0; i < k && at + 16 < n; i++)
        at += (size_t)snprintf(buf + at, n - at, "%s%" PRId32, i ? " " : "",
                               ids[i]);
}

/* Rows of ids that differ; one finding for all. */
static uint32_t compare_ids(moec_l3_layer *l, const int32_t *a,
                            const int32_t *b, uint32_t rows, const char *what,
                            moec_rule rule)
{
    uint32_t ca = l->side[0].cols, cb = l->side[1].cols, n = 0, first = 0;
    char want[512], got[512];
    moec_finding f;

    for (uint32_t t = 0; t < rows; t++)
        if (memcmp(a + (size_t)t * ca, b + (size_t)t * cb,
                   l->top_k * sizeof(*a)) != 0 &&
            n++ == 0)
            first = t;
    if (n == 0)
        return 0;
    f = moec_l3_finding(l, rule, MOEC_SEVERITY_ERROR);
    moec_l3_say_ids(want, sizeof(want), a + (size_t)first * ca, l->top_k);
    moec_l3_say_ids(got, sizeof(got), b + (size_t)first * cb, l->top_k);
    f.has |= MOEC_HAS_EXPECTED | MOEC_HAS_FOUND;
    f.expected = want;
    f.found = got;
    moec_report_add(l->v->r, &f,
                    "%s: the two routers choose different experts for %" PRIu32
                    " of %" PRIu32 " tokens, first for token %" PRIu32,
                    what, n, rows, first);
    return n;
}

uint32_t moec_l3_compare_ids(moec_l3_layer *l, const int32_t *a,
                             const int32_t *b, const char *what, moec_rule rule)
{
    return compare_ids(l, a, b, l->tokens, what, rule);
}

/* The same logits into both: equal ones, where only a bias can tell experts
 * apart, and some drawn at random. */
static moec_status compare_probes(moec_l3_layer *l, moec_error *err)
{
    uint32_t n = (uint32_t)moec_min_u64(PROBES, l->tokens);
    size_t cols = l->side[1].cols;
    float *logits = moec_calloc((size_t)n + 1, l->n_logits * sizeof(*logits));
    float *weights = moec_calloc((size_t)n + 1, cols * sizeof(*weights));
    int32_t *ids = moec_calloc(2 * ((size_t)n + 1), cols * sizeof(*ids));
    uint64_t state = l->v->act.seed + 1;
    moec_status st = MOEC_OK;

    if (logits == NULL || weights == NULL || ids == NULL)
        st = moec_fail_nomem(err, "probes of the router");
    for (uint64_t i = l->n_logits;
         st == MOEC_OK && i < (uint64_t)n * l->n_logits; i++)
        logits[i] = (float)(int32_t)(moec_next_random(&state) >> 40) * 0x1p-22f;
    for (int side = 0; st == MOEC_OK && side < 2; side++) {
        moec_route_in in = moec_l3_route_in(l, side);

        in.logits = logits;
        in.n_tokens = in.n_valid = n;
        st = moec_l3_run_router(l->v->device[side], l->side[side].router, &in,
                                ids + (size_t)side * n * cols, weights, NULL,
                                err);
    }
    if (st == MOEC_OK)
        (void)compare_ids(l, ids, ids + n * cols, n, "made-up logits",
                          MOEC_RULE_K01);
    moec_free(ids);
    moec_free(weights);
    moec_free(logits);
    return st;
}

static int64_t order_of(float f)
{
    uint32_t u = bits_of(f);

    return (u & 0x80000000u) != 0 ? -(int64_t)(u & 0x7fffffffu) : (int64_t)u;
}

float moec_l3_effective(const moec_l3_side *s, float w)
{
    const moec_route_config *c = moec_router_config(s->router);

    return c->rsf_on == MOEC_RSF_ON_OUTPUT && c->rsf != 0.0f ? w * c->rsf : w;
}

static void compare_weights(moec_l3_layer *l)
{
    moec_l3_side *a = &l->side[0], *b = &l->side[1];
    moec_l3_difference diff;
    moec_finding f;
    uint64_t n_bad = 0;
    uint32_t token = 0, col = 0;

    for (uint32_t t = 0; t < l->tokens; t++)
        for (uint32_t c = 0; c < l->top_k; c++) {
            size_t pa = (size_t)t * a->cols + c, pb = (size_t)t * b->cols + c;
            int64_t d = order_of(moec_l3_effective(a, a->weights[pa])) -
                        order_of(moec_l3_effective(b, b->weights[pb]));

            if (a->ids[pa] != b->ids[pb])
                continue;
            if ((d < -WEIGHT_ULP || d > WEIGHT_ULP) && n_bad++ == 0) {
                token = t;
                col = c;
            }
        }
    l->weights_ok = n_bad == 0;
    if (n_bad == 0)
        return;
    f = moec_l3_finding(l, MOEC_RULE_K02, MOEC_SEVERITY_ERROR);
    f.has |= MOEC_HAS_EXPERT;
    f.expert = (uint32_t)a->ids[(size_t)token * a->cols + col];
    moec_l3_differ(
        &diff, f,
        (double)moec_l3_effective(a, a->weights[(size_t)token * a->cols + col]),
        (double)moec_l3_effective(b,
                                  b->weights[(size_t)token * b->cols + col]));
    moec_report_add(l->v->r, &diff.f,
                    "%" PRIu64
                    " weights differ by more than %d ulp, first that "
                    "of token %" PRIu32 ", column %" PRIu32,
                    n_bad, WEIGHT_ULP, token, col);
}

/* Weights that the router gives to shared experts: they have no columns. */
static void compare_shared_weights(moec_l3_layer *l)
{
    moec_l3_side *a = &l->side[0], *b = &l->side[1];
    uint64_t n = (uint64_t)l->tokens * a->n_weighed, n_bad = 0, at = 0;
    moec_l3_difference diff;

    for (uint64_t i = 0; i < n; i++) {
        int64_t d =
            order_of(a->shared_weights[i]) - order_of(b->shared_weights[i]);

        if ((d < -WEIGHT_ULP || d > WEIGHT_ULP) && n_bad++ == 0)
            at = i;
    }
    if (n_bad == 0) {
        if (n != 0)
            memcpy(b->shared_weights, a->shared_weights,
                   (size_t)n * sizeof(*a->shared_weights));
        return;
    }
    moec_l3_differ(
        &diff, moec_l3_finding(l, MOEC_RULE_K02, MOEC_SEVERITY_ERROR),
        (double)a->shared_weights[at], (double)b->shared_weights[at]);
    moec_report_add(l->v->r, &diff.f,
                    "%" PRIu64
                    " weights of shared experts differ by more than %d ulp, "
                    "first that of token %" PRIu64 ", shared expert %" PRIu64,
                    n_bad, WEIGHT_ULP, at / a->n_weighed, at % a->n_weighed);
}

bool moec_l3_same_row(const moec_l3_layer *l, uint32_t t)
{
    const moec_l3_side *a = &l->side[0], *b = &l->side[1];

    return memcmp(a->ids + (size_t)t * a->cols, b->ids + (size_t)t * b->cols,
                  l->top_k * sizeof(*a->ids)) == 0;
}

/* Two ulp are allowed to a back end, and no more are: where all weights are
 * within them both sides go on with the same ones, so that outputs can be
 * compared bit for bit. */
static void agree_on_weights(moec_l3_layer *l)
{
    const moec_l3_side *a = &l->side[0];
    moec_l3_side *b = &l->side[1];

    for (uint32_t t = 0; l->weights_ok && t < l->tokens; t++)
        if (moec_l3_same_row(l, t))
            memcpy(b->weights + (size_t)t * b->cols,
                   a->weights + (size_t)t * a->cols,
                   l->top_k * sizeof(*a->weights));
}

/* Kept apart: dispatch clears the weights of columns without a slot. Shared
 * experts that the router weighs stand behind the K. */
static moec_status keep_effective(moec_l3_layer *l, moec_error *err)
{
    const moec_l3_side *b = &l->side[1];
    uint32_t n = l->top_k + b->n_weighed;

    l->effective = moec_calloc((size_t)l->tokens + 1, n * sizeof(float));
    if (l->effective == NULL)
        return moec_fail_nomem(err, "weights of a layer");
    for (uint32_t t = 0; t < l->tokens; t++)
        for (uint32_t c = 0; c < n; c++)
            l->effective[(size_t)t * n + c] =
                c < l->top_k
                    ? moec_l3_effective(b, b->weights[(size_t)t * b->cols + c])
                    : b->shared_weights[(size_t)t * b->n_weighed + c -
                                        l->top_k];
    return MOEC_OK;
}

moec_status moec_l3_compare_routing(moec_l3_layer *l, moec_error *err)
{
    const moec_l3_side *a = &l->side[0], *b = &l->side[1];

    compare_logits(l);
    l->result->ids_equal =
        compare_ids(l, a->ids, b->ids, l->tokens, "router", MOEC_RULE_K01) == 0;
    compare_weights(l);
    compare_shared_weights(l);
    MOEC_TRY(keep_effective(l, err));
    agree_on_weights(l);
    if (a->table != NULL)
        return MOEC_OK;
    return compare_probes(l, err);
}
