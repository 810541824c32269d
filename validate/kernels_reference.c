/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The converted side against an independent reference: logits, ids, weights,
 * routed, shared and whole output of each stretch of rows that has answers.
 * Ids must be equal: a reference is made so that no choice is a near tie.
 * What references may differ in is allowed for: columns of shared experts that
 * the router weighs, there or not; the order of a table's experts; weights with
 * the scale of the sum, or without it.
 */

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "level3.h"

#define TOP_K_MAX 64u /* moec_router_create's */

/* One answer of one reference against what a side has. */
static moec_status compare_answer(moec_l3_layer *l, const moec_reference *part,
                                  const char *what, const float *mine,
                                  uint64_t stride, uint64_t cols,
                                  moec_error *err)
{
    float *want =
        moec_calloc((size_t)part->n + 1, (size_t)cols * sizeof(float));
    bool found = false;
    moec_status st = want == NULL
                         ? moec_fail_nomem(err, "answers of a reference")
                         : moec_reference_read(&l->v->act, part, what, cols,
                                               false, want, &found, err);
    double limit = 0.0, worst = -1.0;
    uint64_t at = 0, n = part->n * cols;

    if (st == MOEC_OK && found) {
        limit = moec_reference_tolerance(&l->v->act, want, n);
        l->result->golden_answers++;
    }
    for (uint64_t i = 0; st == MOEC_OK && found && i < n; i++) {
        double d =
            fabs((double)mine[(part->first + i / cols) * stride + i % cols] -
                 (double)want[i]);

        if (!(d <= worst)) {
            worst = d;
            at = i;
        }
    }
    if (st == MOEC_OK && found) {
        l->result->golden_max_abs_err =
            fmax(l->result->golden_max_abs_err, worst);
        if (!(worst <= limit)) {
            moec_l3_difference d;

            moec_l3_differ(
                &d, moec_l3_finding(l, MOEC_RULE_K07, MOEC_SEVERITY_ERROR),
                (double)want[at],
                (double)mine[(part->first + at / cols) * stride + at % cols]);
            moec_report_add(l->v->r, &d.f,
                            "%s%s: differs by %.3g at token %" PRIu64
                            ", %" PRIu64 "; %.3g is allowed",
                            part->prefix, what, worst, at / cols, at % cols,
                            limit);
        }
    }
    moec_free(want);
    return st;
}

/* Columns of an answer that may come with `more` behind its first n. */
static uint64_t cols_of(const moec_l3_layer *l, const moec_reference *part,
                        const char *what, uint64_t n, uint64_t more)
{
    return moec_reference_cols(&l->v->act, part, what) == n + more ? n + more
                                                                   : n;
}

/* A table of experts has its own order, a reference may rank them: put the
 * weights of a row in the reference's. False: other experts. */
static bool put_in_order(moec_l3_layer *l, uint32_t t, const int32_t *want)
{
    const moec_l3_side *b = &l->side[1];
    const int32_t *mine = b->ids + (size_t)t * b->cols;
    float *weights = l->effective + (size_t)t * (l->top_k + b->n_weighed);
    float row[TOP_K_MAX];
    uint64_t used = 0;

    for (uint32_t c = 0; c < l->top_k; c++) {
        uint32_t i = 0;

        while (i < l->top_k && (mine[i] != want[c] || (used >> i & 1) != 0))
            i++;
        if (i == l->top_k)
            return false;
        used |= UINT64_C(1) << i;
        row[c] = weights[i];
    }
    memcpy(weights, row, l->top_k * sizeof(*row));
    return true;
}

/* Where the scale stands on the sum, a reference's weights may be without it:
 * those of the two that are nearer are compared. */
static moec_status choose_scale(moec_l3_layer *l, const moec_reference *part,
                                uint64_t cols, moec_error *err)
{
    const moec_l3_side *b = &l->side[1];
    const moec_route_config *c = moec_router_config(b->router);
    uint32_t n = l->top_k + b->n_weighed;
    double with = 0.0, without = 0.0;
    bool found = false;
    float *want;
    moec_status st;

    if (c->rsf_on != MOEC_RSF_ON_OUTPUT)
        return MOEC_OK;
    want = moec_calloc((size_t)part->n + 1, (size_t)cols * sizeof(*want));
    if (want == NULL)
        return moec_fail_nomem(err, "answers of a reference");
    st = moec_reference_read(&l->v->act, part, "topk_weights", cols, false,
                             want, &found, err);
    for (uint64_t i = 0; st == MOEC_OK && found && i < part->n * cols; i++) {
        float w = l->effective[(part->first + i / cols) * n + i % cols];

        with += fabs((double)w - (double)want[i]);
        without += fabs((double)w / (double)c->rsf - (double)want[i]);
    }
    for (uint64_t i = 0; without < with && i < (uint64_t)part->n * l->top_k;
         i++)
        l->effective[(part->first + i / l->top_k) * n + i % l->top_k] /= c->rsf;
    moec_free(want);
    return st;
}

static moec_status compare_chosen(moec_l3_layer *l, const moec_reference *part,
                                  moec_error *err)
{
    const moec_l3_side *b = &l->side[1];
    uint64_t cols = cols_of(l, part, "topk_ids", l->top_k, b->n_weighed);
    int32_t *want =
        moec_calloc((size_t)part->n + 1, (size_t)cols * sizeof(*want));
    char a[512], c[512];
    bool found = false;
    moec_status st = want == NULL
                         ? moec_fail_nomem(err, "answers of a reference")
                         : moec_reference_read(&l->v->act, part, "topk_ids",
                                               cols, true, want, &found, err);

    if (st == MOEC_OK && found)
        l->result->golden_answers++;
    for (uint32_t t = 0; st == MOEC_OK && found && t < part->n; t++) {
        const int32_t *mine = b->ids + (size_t)(part->first + t) * b->cols;
        moec_finding f;

        if (memcmp(mine, want + t * cols, l->top_k * sizeof(*mine)) == 0 ||
            (b->table != NULL &&
             put_in_order(l, part->first + t, want + t * cols)))
            continue;
        f = moec_l3_finding(l, MOEC_RULE_K07, MOEC_SEVERITY_ERROR);
        moec_l3_say_ids(a, sizeof(a), want + t * cols, l->top_k);
        moec_l3_say_ids(c, sizeof(c), mine, l->top_k);
        f.has |= MOEC_HAS_EXPECTED | MOEC_HAS_FOUND;
        f.expected = a;
        f.found = c;
        moec_report_add(l->v->r, &f,
                        "%stopk_ids: other experts, first for token %" PRIu32,
                        part->prefix, t);
        break;
    }
    moec_free(want);
    return st;
}

static moec_status compare_part(moec_l3_layer *l, const moec_reference *part,
                                moec_error *err)
{
    const moec_l3_side *b = &l->side[1];

    uint64_t k = cols_of(l, part, "topk_weights", l->top_k, b->n_weighed);
    uint64_t n =
        cols_of(l, part, "router_logits", l->experts + l->zero, b->n_weighed);

    MOEC_TRY(compare_answer(l, part, "router_logits", b->logits, l->n_logits, n,
                            err));
    MOEC_TRY(compare_chosen(l, part, err));
    MOEC_TRY(choose_scale(l, part, k, err));
    MOEC_TRY(compare_answer(l, part, "topk_weights", l->effective,
                            l->top_k + b->n_weighed, k, err));
    MOEC_TRY(compare_answer(l, part, "routed_output", b->routed, l->width,
                            l->width, err));
    if (b->shared != NULL)
        MOEC_TRY(compare_answer(l, part, "shared_output", b->shared, l->width,
                                l->width, err));
    return compare_answer(l, part, "output", b->whole, l->width, l->width, err);
}

moec_status moec_l3_compare_reference(moec_l3_layer *l, moec_error *err)
{
    if (l->v->act.golden == NULL || l->batch.kind != MOEC_BATCH_GOLDEN)
        return MOEC_OK;
    l->result->has_golden = 1;
    for (size_t i = 0; i < l->batch.n_parts; i++)
        MOEC_TRY(compare_part(l, &l->batch.parts[i], err));
    return MOEC_OK;
}
