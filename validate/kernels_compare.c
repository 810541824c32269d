/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The two sides of a layer against each other. What must be equal is compared
 * bit for bit: logits, ids, each expert's output, the routed sum. Where the
 * order of a sum may differ, for the shared expert alone, the bound is
 * 4 (K+S) 2^-24 times the sum of the absolute terms. A shared expert cut into
 * S > 1 parts is summed in another order inside its down projection too; the
 * terms of that sum are not kept, and stand here as the root of its length
 * times the row's root mean square.
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

moec_l3_number moec_l3_say(double v)
{
    moec_l3_number n;

    (void)snprintf(n.s, sizeof(n.s), "%.9g", v);
    return n;
}

void moec_l3_expect(moec_finding *f, const moec_l3_number *want,
                    const moec_l3_number *got)
{
    f->has |= MOEC_HAS_EXPECTED | MOEC_HAS_FOUND;
    f->expected = want->s;
    f->found = got->s;
}

static uint32_t bits_of(float f)
{
    uint32_t u;

    memcpy(&u, &f, sizeof(u));
    return u;
}

/* Equal bit for bit; which NaN a sum of NaNs is, is left to each CPU. */
static bool same_bits(const float *a, const float *b, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (bits_of(a[i]) != bits_of(b[i]) && !(isnan(a[i]) && isnan(b[i])))
            return false;
    return true;
}

/* --------------------------------------------------------------- router */

static void compare_logits(moec_l3_layer *l)
{
    const moec_l3_side *a = &l->side[0], *b = &l->side[1];
    uint64_t n = (uint64_t)l->tokens * l->n_logits, i = 0;
    moec_finding f;
    moec_l3_number want, got;

    if (same_bits(a->logits, b->logits, n))
        return;
    while (same_bits(a->logits + i, b->logits + i, 1))
        i++;
    want = moec_l3_say((double)a->logits[i]);
    got = moec_l3_say((double)b->logits[i]);
    f = moec_l3_finding(l, MOEC_RULE_K01, MOEC_SEVERITY_ERROR);
    moec_l3_expect(&f, &want, &got);
    moec_report_add(l->v->r, &f,
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

/* What a column counts in the output: the weight, and the scale on the sum. */
static float effective(const moec_l3_side *s, float w)
{
    const moec_route_config *c = moec_router_config(s->router);

    return c->rsf_on == MOEC_RSF_ON_OUTPUT && c->rsf != 0.0f ? w * c->rsf : w;
}

static void compare_weights(moec_l3_layer *l)
{
    moec_l3_side *a = &l->side[0], *b = &l->side[1];
    moec_l3_number want, got;
    moec_finding f;
    uint64_t n_bad = 0;
    uint32_t token = 0, col = 0;

    for (uint32_t t = 0; t < l->tokens; t++)
        for (uint32_t c = 0; c < l->top_k; c++) {
            size_t pa = (size_t)t * a->cols + c, pb = (size_t)t * b->cols + c;
            int64_t d = order_of(effective(a, a->weights[pa])) -
                        order_of(effective(b, b->weights[pb]));

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
    want = moec_l3_say(
        (double)effective(a, a->weights[(size_t)token * a->cols + col]));
    got = moec_l3_say(
        (double)effective(b, b->weights[(size_t)token * b->cols + col]));
    f = moec_l3_finding(l, MOEC_RULE_K02, MOEC_SEVERITY_ERROR);
    f.has |= MOEC_HAS_EXPERT;
    f.expert = (uint32_t)a->ids[(size_t)token * a->cols + col];
    moec_l3_expect(&f, &want, &got);
    moec_report_add(l->v->r, &f,
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
    moec_l3_number want, got;
    moec_finding f;

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
    want = moec_l3_say((double)a->shared_weights[at]);
    got = moec_l3_say((double)b->shared_weights[at]);
    f = moec_l3_finding(l, MOEC_RULE_K02, MOEC_SEVERITY_ERROR);
    moec_l3_expect(&f, &want, &got);
    moec_report_add(l->v->r, &f,
                    "%" PRIu64
                    " weights of shared experts differ by more than %d ulp, "
                    "first that of token %" PRIu64 ", shared expert %" PRIu64,
                    n_bad, WEIGHT_ULP, at / a->n_weighed, at % a->n_weighed);
}

/* Two ulp are allowed to a back end, and no more are: where all weights are
 * within them both sides go on with the same ones, so that outputs can be
 * compared bit for bit. */
static void agree_on_weights(moec_l3_layer *l)
{
    const moec_l3_side *a = &l->side[0];
    moec_l3_side *b = &l->side[1];

    for (uint32_t t = 0; l->weights_ok && t < l->tokens; t++)
        if (memcmp(a->ids + (size_t)t * a->cols, b->ids + (size_t)t * b->cols,
                   l->top_k * sizeof(*a->ids)) == 0)
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
                c < l->top_k ? effective(b, b->weights[(size_t)t * b->cols + c])
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
    uint64_t i = 0;

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
    if (same_bits(want, got, l->hidden))
        return;
    l->slot[(size_t)rank * l->n_rows + row].differs = true;
    if (x->n_bad++ != 0)
        return;
    while (same_bits(want + i, got + i, 1))
        i++;
    x->token = t;
    x->expert = (uint32_t)a->ids[pa];
    x->at = i;
    x->want = want[i];
    x->got = got[i];
}

static void tell_slot(moec_l3_layer *l, size_t i, const tally *x)
{
    moec_l3_number want = moec_l3_say((double)x->want),
                   got = moec_l3_say((double)x->got);
    moec_finding f = moec_l3_slot_finding(
        l, MOEC_RULE_K03, (uint32_t)(i / l->n_rows), (uint32_t)(i % l->n_rows));

    f.has |= MOEC_HAS_EXPERT;
    f.expert = x->expert;
    moec_l3_expect(&f, &want, &got);
    moec_report_add(l->v->r, &f,
                    "the slot does not compute what its expert does: %" PRIu32
                    " of %" PRIu32 " rows differ, first token %" PRIu32
                    " at %" PRIu64,
                    x->n_bad, x->n, x->token, x->at);
}

static bool same_row(const moec_l3_layer *l, uint32_t t)
{
    const moec_l3_side *a = &l->side[0], *b = &l->side[1];

    return memcmp(a->ids + (size_t)t * a->cols, b->ids + (size_t)t * b->cols,
                  l->top_k * sizeof(*a->ids)) == 0;
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
        for (uint32_t c = 0; same_row(l, t) && c < l->top_k; c++) {
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
    bool told = !l->weights_ok || any_differs(l);
    moec_l3_number want, got;
    moec_finding f;

    for (uint32_t t = 0; t < l->tokens && !told; t++) {
        const float *x = a->routed + (size_t)t * l->width;
        const float *y = b->routed + (size_t)t * l->width;
        uint64_t i = 0;

        if (!same_row(l, t) || same_bits(x, y, l->width))
            continue;
        while (same_bits(x + i, y + i, 1))
            i++;
        want = moec_l3_say((double)x[i]);
        got = moec_l3_say((double)y[i]);
        f = moec_l3_finding(l, MOEC_RULE_K03, MOEC_SEVERITY_ERROR);
        moec_l3_expect(&f, &want, &got);
        moec_report_add(l->v->r, &f,
                        "the sum over the experts differs, first for token "
                        "%" PRIu32 " at %" PRIu64,
                        t, i);
        told = true;
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
            sum += fabs((double)effective(b, b->weights[p]) *
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
    moec_l3_number a, b;
    moec_finding f;

    for (uint32_t t = 0; t < l->tokens; t++) {
        double inner = inner_terms(l, t);

        for (uint64_t h = 0; same_row(l, t) && h < l->width; h++) {
            size_t p = (size_t)t * l->width + h;
            double terms = absolute_terms(l, t, h, from) + inner;

            if (fabs((double)want[p] - (double)got[p]) <= factor * terms ||
                same_bits(want + p, got + p, 1))
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
    a = moec_l3_say((double)want[(size_t)token * l->width + at]);
    b = moec_l3_say((double)got[(size_t)token * l->width + at]);
    f.has |= MOEC_HAS_EXPERT;
    f.expert = l->experts;
    moec_l3_expect(&f, &a, &b);
    moec_report_add(l->v->r, &f,
                    "%s: %" PRIu32 " of %" PRIu32
                    " tokens differ by more than rounding, first token %" PRIu32
                    " at %" PRIu64,
                    what, n_bad, l->tokens, token, at);
}

/* The shared expert as a tensor of its own: the same bytes, the same kernel. */
static void compare_apart(moec_l3_layer *l)
{
    const moec_l3_side *a = &l->side[0], *b = &l->side[1];
    moec_finding f;

    if (b->shared != NULL &&
        same_bits(a->shared, b->shared, (uint64_t)l->tokens * l->width))
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
