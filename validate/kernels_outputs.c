/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the two sides of a layer compute. What must be equal is compared bit
 * for bit: each expert's output, the routed sum. Where the order of a sum may
 * differ, for the shared expert alone, the bound is 4 (K+S) 2^-24 times the sum
 * of the absolute terms. A shared expert cut into S > 1 parts is summed in
 * another order inside its down projection too; the terms of that sum are not
 * kept, and stand here as the root of its length times the row's root mean
 * square.
 */

#include <inttypes.h>
#include <math.h>

#include "level3.h"

/* -------------------------------------------------------------- experts */

typedef struct tally {
    uint32_t n, n_bad, token, expert;
    uint64_t at;
    float want, got;
} tally;

static void compare_column(moec_l3_layer *l, uint32_t t, uint32_t c,
                           tally *tallies)
{
    const moec_l3_side *a = &l->side[0], *b = &l->side[1];
    size_t pa = (size_t)t * a->cols + c, pb = (size_t)t * b->cols + c;
    const float *want = a->y + pa * l->hidden, *got = b->y + pb * l->hidden;
    uint32_t rank, row;
    moec_finding f;
    tally *x;
    uint64_t i;

    if (l->slots[pb] < 0) {
        f = moec_l3_finding(l, MOEC_RULE_K06, MOEC_SEVERITY_ERROR);
        f.has |= MOEC_HAS_EXPERT;
        f.expert = (uint32_t)a->ids[pa];
        moec_report_add(l->v->r, &f,
                        "token %" PRIu32 ", column %" PRIu32
                        ": its expert has no slot to go to",
                        t, c);
        return;
    }
    moec_l3_place(l, (uint32_t)l->slots[pb], l->home[t], &rank, &row);
    x = &tallies[(size_t)rank * l->n_rows + row];
    x->n++;
    l->result->pairs++;
    i = moec_l3_first_other(want, got, l->hidden);
    if (i == l->hidden)
        return;
    l->slot[(size_t)rank * l->n_rows + row].differs = true;
    if (x->n_bad++ != 0)
        return;
    x->token = t;
    x->expert = (uint32_t)a->ids[pa];
    x->at = i;
    x->want = want[i];
    x->got = got[i];
}

static void tell_slot(moec_l3_layer *l, size_t i, const tally *x)
{
    moec_l3_difference d;
    moec_finding f = moec_l3_slot_finding(
        l, MOEC_RULE_K03, (uint32_t)(i / l->n_rows), (uint32_t)(i % l->n_rows));

    f.has |= MOEC_HAS_EXPERT;
    f.expert = x->expert;
    moec_l3_differ(&d, f, (double)x->want, (double)x->got);
    moec_report_add(l->v->r, &d.f,
                    "the slot does not compute what its expert does: %" PRIu32
                    " of %" PRIu32 " rows differ, first token %" PRIu32
                    " at %" PRIu64,
                    x->n_bad, x->n, x->token, x->at);
}

/* Which slot of each expert is known to be right. */
static void choose_right(moec_l3_layer *l)
{
    const moec_l3_side *b = &l->side[1];

    for (uint32_t t = 0; t < l->rows; t++)
        for (uint32_t c = 0; c < l->top_k; c++) {
            size_t p = (size_t)t * b->cols + c;
            uint32_t rank, row;
            size_t at;

            if (b->ids[p] < 0 || (uint32_t)b->ids[p] >= l->experts ||
                l->slots[p] < 0)
                continue;
            moec_l3_place(l, (uint32_t)l->slots[p], l->home[t], &rank, &row);
            at = (size_t)rank * l->n_rows + row;
            if (!l->slot[at].differs && l->expert_slot[b->ids[p]] == UINT32_MAX)
                l->expert_slot[b->ids[p]] = (uint32_t)at;
        }
}

static moec_status compare_experts(moec_l3_layer *l, moec_error *err)
{
    const moec_l3_side *a = &l->side[0];
    size_t n_slots = (size_t)l->topo.n_ranks * l->n_rows;
    tally *tallies = moec_calloc(n_slots + 1, sizeof(*tallies));

    if (tallies == NULL)
        return moec_fail_nomem(err, "differences of slots");
    for (uint32_t t = 0; t < l->rows; t++)
        for (uint32_t c = 0; moec_l3_same_row(l, t) && c < l->top_k; c++) {
            int32_t id = a->ids[(size_t)t * a->cols + c];

            if (id >= 0 && (uint32_t)id < l->experts)
                compare_column(l, t, c, tallies);
        }
    for (size_t i = 0; i < n_slots; i++)
        if (tallies[i].n_bad != 0)
            tell_slot(l, i, &tallies[i]);
    moec_free(tallies);
    choose_right(l);
    return MOEC_OK;
}

/* ----------------------------------------------------------------- sums */

/* Any slot's output was wrong: sums of it need no finding of their own. */
static bool any_differs(const moec_l3_layer *l)
{
    for (size_t i = 0; i < (size_t)l->topo.n_ranks * l->n_rows; i++)
        if (l->slot[i].differs)
            return true;
    return false;
}

static void compare_routed(moec_l3_layer *l)
{
    const moec_l3_side *a = &l->side[0], *b = &l->side[1];
    moec_l3_difference d;

    if (!l->weights_ok || any_differs(l))
        return;
    for (uint32_t t = 0; t < l->tokens; t++) {
        const float *x = a->routed + (size_t)t * l->width;
        const float *y = b->routed + (size_t)t * l->width;
        uint64_t i = moec_l3_first_other(x, y, l->width);

        if (!moec_l3_same_row(l, t) || i == l->width)
            continue;
        moec_l3_differ(&d,
                       moec_l3_finding(l, MOEC_RULE_K03, MOEC_SEVERITY_ERROR),
                       (double)x[i], (double)y[i]);
        moec_report_add(l->v->r, &d.f,
                        "the sum over the experts differs, first for token "
                        "%" PRIu32 " at %" PRIu64,
                        t, i);
        return;
    }
}

/* Sum of the absolute terms of one output of the converted side. */
static double absolute_terms(const moec_l3_layer *l, uint32_t t, uint64_t h,
                             uint32_t from)
{
    const moec_l3_side *b = &l->side[1];
    double sum = 0.0;

    for (uint32_t c = from; c < b->cols; c++) {
        size_t p = (size_t)t * b->cols + c;

        if (l->slots[p] >= 0)
            sum += fabs((double)moec_l3_effective(b, b->weights[p]) *
                        (double)b->y[p * l->hidden + h]);
    }
    return sum;
}

/* What the sums inside a cut down projection add to the terms. */
static double inner_terms(const moec_l3_layer *l, uint32_t t)
{
    const moec_l3_side *a = &l->side[0];
    const float *row = a->shared + (size_t)t * l->width;
    double sum = 0.0;

    if (l->shared < 2)
        return 0.0;
    for (uint64_t i = 0; i < l->width; i++)
        sum += (double)row[i] * (double)row[i];
    return sqrt(sum / l->width * a->facts.shared_ffn.inter);
}

/* Rows of the shared part, or of the whole output, against the bound. */
static void compare_bound(moec_l3_layer *l, const float *want, const float *got,
                          uint32_t from, const char *what)
{
    uint32_t n_bad = 0, token = 0;
    uint64_t at = 0;
    double factor = 4.0 * (l->top_k + l->shared) * 0x1p-24;
    moec_l3_difference d;
    moec_finding f;

    for (uint32_t t = 0; t < l->tokens; t++) {
        double inner = inner_terms(l, t);

        for (uint64_t h = 0; moec_l3_same_row(l, t) && h < l->width; h++) {
            size_t p = (size_t)t * l->width + h;
            double terms = absolute_terms(l, t, h, from) + inner;

            if (fabs((double)want[p] - (double)got[p]) <= factor * terms ||
                moec_l3_first_other(want + p, got + p, 1) == 1)
                continue;
            l->shared_bad[t] = true;
            if (n_bad++ == 0) {
                token = t;
                at = h;
            }
            break;
        }
    }
    if (n_bad == 0)
        return;
    f = moec_l3_slot_finding(l, MOEC_RULE_K04, l->home[token], l->topo.n_local);
    f.has |= MOEC_HAS_EXPERT;
    f.expert = l->experts;
    moec_l3_differ(&d, f, (double)want[(size_t)token * l->width + at],
                   (double)got[(size_t)token * l->width + at]);
    moec_report_add(l->v->r, &d.f,
                    "%s: %" PRIu32 " of %" PRIu32
                    " tokens differ by more than rounding, first token %" PRIu32
                    " at %" PRIu64,
                    what, n_bad, l->tokens, token, at);
}

/* The shared expert as a tensor of its own: the same bytes, the same kernel. */
static void compare_apart(moec_l3_layer *l)
{
    const moec_l3_side *a = &l->side[0], *b = &l->side[1];
    uint64_t n = (uint64_t)l->tokens * l->width;
    moec_finding f;

    if (b->shared != NULL && moec_l3_first_other(a->shared, b->shared, n) == n)
        return;
    f = moec_l3_finding(l, MOEC_RULE_K04, MOEC_SEVERITY_ERROR);
    moec_report_add(l->v->r, &f,
                    b->shared == NULL
                        ? "the conversion has no shared expert"
                        : "the shared expert, kept as it was, gives other "
                          "outputs");
}

/* Every rank has the shared parts: one whose tokens came out right has them
 * right. */
static void choose_shared(moec_l3_layer *l)
{
    uint32_t rank = l->home[0];

    for (uint32_t t = 0; t < l->tokens; t++)
        if (!l->shared_bad[t]) {
            rank = l->home[t];
            break;
        }
    for (uint32_t s = 0; s < l->shared; s++)
        l->expert_slot[l->experts + s] = rank * l->n_rows + l->topo.n_local + s;
}

/* A requantised shared expert has other values: its error is said and not
 * judged. That its slots are what the quantiser makes is level 2's to show. */
static void report_lossy(moec_l3_layer *l)
{
    const moec_l3_side *a = &l->side[0], *b = &l->side[1];
    moec_finding f = moec_l3_finding(l, MOEC_RULE_K04, MOEC_SEVERITY_NOTE);
    double square = 0.0, square_in = 0.0, most = 0.0;

    for (uint64_t i = 0; i < (uint64_t)l->tokens * l->width; i++) {
        double d = (double)b->shared[i] - (double)a->shared[i];

        square += d * d;
        square_in += (double)a->shared[i] * (double)a->shared[i];
        most = fmax(most, fabs(d));
    }
    moec_report_add(l->v->r, &f,
                    "the shared expert is requantised: its output differs by "
                    "at most %.3g, by %.3g of it in the mean (rms)",
                    most, square_in > 0.0 ? sqrt(square / square_in) : 0.0);
}

static void compare_shared(moec_l3_layer *l)
{
    const moec_l3_side *a = &l->side[0], *b = &l->side[1];

    if (a->shared == NULL)
        return;
    if (l->shared == 0) {
        compare_apart(l);
        return;
    }
    if (moec_plan_requantises(l->v->plan)) {
        report_lossy(l);
        choose_shared(l);
        return;
    }
    compare_bound(l, a->shared, b->shared, l->top_k, "shared expert");
    choose_shared(l);
    if (l->weights_ok && !any_differs(l) && l->result->ids_equal)
        compare_bound(l, a->whole, b->whole, 0, "whole output");
}

static void measure(moec_l3_layer *l)
{
    const moec_l3_side *a = &l->side[0], *b = &l->side[1];
    double most = 0.0, err = 0.0;

    for (uint64_t i = 0; i < (uint64_t)l->tokens * l->width; i++) {
        l->not_finite = l->not_finite || !isfinite(a->whole[i]);
        most = fmax(most, fabs((double)a->whole[i]));
        err = fmax(err, fabs((double)a->whole[i] - (double)b->whole[i]));
    }
    l->largest = most;
    l->result->max_abs_err = err;
    l->result->max_rel_err = most > 0.0 ? err / most : err;
}

moec_status moec_l3_compare(moec_l3_layer *l, moec_error *err)
{
    size_t n = (size_t)l->experts + l->shared;

    l->expert_slot = moec_calloc(n + 1, sizeof(*l->expert_slot));
    l->shared_bad = moec_calloc((size_t)l->tokens + 1, sizeof(bool));
    if (l->expert_slot == NULL || l->shared_bad == NULL)
        return moec_fail_nomem(err, "slots of a layer");
    for (size_t i = 0; i < n; i++)
        l->expert_slot[i] = UINT32_MAX;
    MOEC_TRY(compare_experts(l, err));
    compare_routed(l);
    compare_shared(l);
    measure(l);
    return MOEC_OK;
}
