/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: EPLB's three arrays as rows, whatever kind of file they came
 *   in: phy2log [moe_layers][P], log2phy [moe_layers][E][X] (slots of each
 *   expert in replica order, then -1), logcnt [moe_layers][E].
 * Refuses: arrays that do not agree with each other (P01), slots that stand in
 *   log2phy twice or not at all (P01), other shapes (P01, P02), logcnt alone,
 *   which names no slots, and load counts (UNSUPPORTED).
 */

#include <inttypes.h>
#include <string.h>

#include "placement_rows.h"

/* --------------------------------------------------------------- arrays */

void moec_int_arrays_fini(moec_int_arrays *a)
{
    for (size_t i = 0; i < a->n; i++)
        moec_free(a->a[i].v);
    *a = (moec_int_arrays){0};
}

moec_status moec_int_arrays_add(moec_int_arrays *a, const char *name,
                                const uint64_t *shape, uint32_t n_dims,
                                size_t max, moec_int_array **out,
                                const char *file, moec_error *err)
{
    moec_int_array *x = &a->a[a->n];
    uint64_t n = 1;

    if (a->n == MOEC_ARRAYS_MAX)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                         "%s: more than %d arrays", file, MOEC_ARRAYS_MAX);
    if (n_dims == 0 || n_dims > MOEC_ARRAY_DIMS)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                         "%s: %s has %" PRIu32 " dimensions, must have 2 or 3",
                         file, name[0] ? name : "the array", n_dims);
    for (uint32_t d = 0; d < n_dims; d++) {
        if (shape[d] == 0 || !moec_mul_u64(n, shape[d], &n) || n > max)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                             "%s: %s: %" PRIu64
                             " elements in dimension %" PRIu32
                             " do not fit a file of this size",
                             file, name[0] ? name : "the array", shape[d], d);
    }
    *x = (moec_int_array){.n_dims = n_dims, .n = (size_t)n};
    snprintf(x->name, sizeof(x->name), "%s", name);
    memcpy(x->shape, shape, n_dims * sizeof(*shape));
    x->v = moec_calloc((size_t)n, sizeof(*x->v));
    if (!x->v)
        return moec_fail_nomem(err, "placement array");
    a->n++;
    *out = x;
    return MOEC_OK;
}

/* -------------------------------------------------------------- log2phy */

/* One layer of log2phy on its way into a row. */
typedef struct turn {
    moec_rows *r;
    size_t layer;
    uint64_t n_experts, width;
    const int64_t *v;  /* [E][X] */
    size_t n_physical; /* entries that are no padding */
    int64_t *p2l;      /* [P], -1: not met yet */
    uint32_t *replica; /* [P] */
} turn;

static moec_status fail_entry(const turn *t, uint64_t e, uint64_t x,
                              const char *what, moec_error *err)
{
    char at[MOEC_ROWS_TEXT_BYTES];

    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                     "%s: log2phy: %s, expert %" PRIu64 ", replica %" PRIu64
                     ": slot %" PRId64 " %s",
                     t->r->name, moec_rows_text(t->r, t->layer, at), e, x,
                     t->v[e * t->width + x], what);
}

static moec_status count_entries(turn *t, moec_error *err)
{
    for (uint64_t e = 0; e < t->n_experts; e++) {
        const int64_t *list = t->v + e * t->width;

        for (uint64_t x = 0; x < t->width; x++) {
            if (list[x] < -1)
                return fail_entry(t, e, x,
                                  "is negative, and not the -1 of "
                                  "padding",
                                  err);
            if (list[x] >= 0 && x > 0 && list[x - 1] < 0)
                return fail_entry(t, e, x, "stands behind padding", err);
            t->n_physical += list[x] >= 0;
        }
    }
    return MOEC_OK;
}

static moec_status turn_layer(turn *t, moec_error *err)
{
    for (uint64_t e = 0; e < t->n_experts; e++) {
        for (uint64_t x = 0; x < t->width; x++) {
            int64_t slot = t->v[e * t->width + x];

            if (slot < 0)
                continue;
            if ((uint64_t)slot >= t->n_physical)
                return fail_entry(t, e, x, "is past the number of entries",
                                  err);
            if (t->p2l[slot] >= 0)
                return fail_entry(t, e, x, "is another expert's already", err);
            t->p2l[slot] = (int64_t)e;
            t->replica[slot] = (uint32_t)x;
        }
    }
    return MOEC_OK;
}

/* The row that phy2log gave must be the same. */
static moec_status agree(const turn *t, moec_error *err)
{
    const moec_rows *r = t->r;
    const moec_rows_row *row = moec_rows_at(r, t->layer);
    const int64_t *ids =
        (const int64_t *)(const void *)r->ids.data + row->first;
    char at[MOEC_ROWS_TEXT_BYTES];

    moec_rows_text(r, t->layer, at);
    if (row->n != t->n_physical)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                         "%s: %s: phy2log has %zu slots, log2phy has %zu",
                         r->name, at, row->n, t->n_physical);
    for (size_t i = 0; i < row->n; i++) {
        if (ids[i] != t->p2l[i])
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                             "%s: %s, slot %zu: phy2log has expert %" PRId64
                             ", log2phy has %" PRId64,
                             r->name, at, i, ids[i], t->p2l[i]);
    }
    return MOEC_OK;
}

static moec_status take_layer(turn *t, bool have_rows, moec_error *err)
{
    moec_rows *r = t->r;

    MOEC_TRY(turn_layer(t, err));
    if (have_rows) {
        MOEC_TRY(agree(t, err));
    } else {
        moec_rows_begin(r, t->layer);
        for (size_t i = 0; i < t->n_physical; i++)
            moec_rows_push(r, t->p2l[i]);
    }
    moec_buf_append(&r->replica, t->replica,
                    t->n_physical * sizeof(*t->replica));
    return MOEC_OK;
}

static moec_status run_turn(turn *t, bool have_rows, moec_error *err)
{
    moec_status st = count_entries(t, err);

    if (st != MOEC_OK)
        return st;
    t->p2l = moec_calloc(t->n_physical + 1, sizeof(*t->p2l));
    t->replica = moec_calloc(t->n_physical + 1, sizeof(*t->replica));
    if (t->p2l && t->replica) {
        memset(t->p2l, 0xff, t->n_physical * sizeof(*t->p2l));
        st = take_layer(t, have_rows, err);
    } else {
        st = moec_fail_nomem(err, "log2phy");
    }
    moec_free(t->replica);
    moec_free(t->p2l);
    return st;
}

static moec_status check_experts(const moec_rows *r, const moec_int_array *a,
                                 const char *name, moec_error *err)
{
    uint32_t E = r->target->n_experts;

    if (E > 0 && a->shape[1] != E)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                         "%s: %s has %" PRIu64 " experts, must have %" PRIu32,
                         r->name, name, a->shape[1], E);
    return MOEC_OK;
}

static moec_status check_layers(const moec_rows *r, const moec_int_array *a,
                                const char *name, moec_error *err)
{
    if (a->shape[0] != moec_rows_count(r))
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P02,
                         "%s: %s has %" PRIu64 " layers, the placement has %zu",
                         r->name, name, a->shape[0], moec_rows_count(r));
    return MOEC_OK;
}

moec_status moec_rows_take_log2phy(moec_rows *r, const moec_int_array *a,
                                   moec_error *err)
{
    bool have_rows = moec_rows_count(r) > 0;

    /* An id that is no integer is reported as such, not as a disagreement. */
    if (r->bad || r->rows.oom || r->ids.oom)
        return MOEC_OK;
    MOEC_TRY(check_experts(r, a, "log2phy", err));
    if (have_rows)
        MOEC_TRY(check_layers(r, a, "log2phy", err));
    for (size_t i = 0; i < a->shape[0]; i++) {
        turn t = {.r = r,
                  .layer = i,
                  .n_experts = a->shape[1],
                  .width = a->shape[2],
                  .v = a->v + i * a->shape[1] * a->shape[2]};

        MOEC_TRY(run_turn(&t, have_rows, err));
        if (r->rows.oom || r->ids.oom || r->replica.oom)
            return moec_fail_nomem(err, "log2phy");
    }
    return MOEC_OK;
}

/* --------------------------------------------------------------- logcnt */

moec_status moec_rows_fail_logcnt(const moec_rows *r, moec_error *err)
{
    return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_P01,
                     "%s: logcnt alone says how many slots an expert has, and "
                     "not which: give phy2log or log2phy with it",
                     r->name);
}

static moec_status check_counts(const moec_rows *r, size_t layer,
                                const int64_t *want, int64_t *got,
                                uint64_t n_experts, moec_error *err)
{
    const moec_rows_row *row = moec_rows_at(r, layer);
    const int64_t *ids =
        (const int64_t *)(const void *)r->ids.data + row->first;
    char at[MOEC_ROWS_TEXT_BYTES];

    memset(got, 0, (size_t)n_experts * sizeof(*got));
    for (size_t i = 0; i < row->n; i++) {
        if (ids[i] >= 0 && (uint64_t)ids[i] < n_experts)
            got[ids[i]]++;
    }
    for (uint64_t e = 0; e < n_experts; e++) {
        if (got[e] != want[e])
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                             "%s: %s, expert %" PRIu64 ": logcnt says %" PRId64
                             " slots, the placement has %" PRId64,
                             r->name, moec_rows_text(r, layer, at), e, want[e],
                             got[e]);
    }
    return MOEC_OK;
}

moec_status moec_rows_check_logcnt(const moec_rows *r, const moec_int_array *a,
                                   moec_error *err)
{
    moec_status st = MOEC_OK;
    int64_t *got;

    if (r->bad || r->rows.oom || r->ids.oom)
        return MOEC_OK;
    MOEC_TRY(check_experts(r, a, "logcnt", err));
    MOEC_TRY(check_layers(r, a, "logcnt", err));
    got = moec_calloc((size_t)a->shape[1], sizeof(*got));
    if (!got)
        return moec_fail_nomem(err, "logcnt");
    for (size_t i = 0; i < a->shape[0] && st == MOEC_OK; i++)
        st = check_counts(r, i, a->v + i * a->shape[1], got, a->shape[1], err);
    moec_free(got);
    return st;
}

/* ------------------------------------------------------ arrays of a file */

static void push_array(moec_rows *r, const moec_int_array *a)
{
    for (size_t i = 0; i < a->shape[0]; i++) {
        moec_rows_begin(r, i);
        for (size_t j = 0; j < a->shape[1]; j++)
            moec_rows_push(r, a->v[i * a->shape[1] + j]);
    }
}

static const moec_int_array *named(const moec_int_arrays *a, const char *name)
{
    for (size_t i = 0; i < a->n; i++) {
        if (strcmp(a->a[i].name, name) == 0)
            return &a->a[i];
    }
    return NULL;
}

static moec_status want_dims(const moec_rows *r, const moec_int_array *a,
                             const char *name, uint32_t n_dims, moec_error *err)
{
    if (a && a->n_dims != n_dims)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                         "%s: %s has %" PRIu32
                         " dimensions, must have %" PRIu32,
                         r->name, name, a->n_dims, n_dims);
    return MOEC_OK;
}

static moec_status from_sglang(moec_rows *r, const moec_int_arrays *a,
                               const moec_int_array *map, moec_error *err)
{
    if (a->n != 1)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                         "%s: %zu arrays beside physical_to_logical_map, with "
                         "which SGLang fails",
                         r->name, a->n - 1);
    MOEC_TRY(want_dims(r, map, map->name, 2, err));
    r->kind = MOEC_ROWS_DECODER;
    r->form = MOEC_PLACEMENT_SGLANG;
    push_array(r, map);
    return MOEC_OK;
}

typedef struct eplb_arrays {
    const moec_int_array *phy2log, *log2phy, *logcnt;
} eplb_arrays;

static moec_status from_eplb(moec_rows *r, const eplb_arrays *e,
                             moec_error *err)
{
    MOEC_TRY(want_dims(r, e->phy2log, "phy2log", 2, err));
    MOEC_TRY(want_dims(r, e->log2phy, "log2phy", 3, err));
    MOEC_TRY(want_dims(r, e->logcnt, "logcnt", 2, err));
    if (!e->phy2log && !e->log2phy)
        return moec_rows_fail_logcnt(r, err);
    r->kind = MOEC_ROWS_MOE;
    if (e->phy2log)
        push_array(r, e->phy2log);
    if (e->log2phy)
        MOEC_TRY(moec_rows_take_log2phy(r, e->log2phy, err));
    return e->logcnt ? moec_rows_check_logcnt(r, e->logcnt, err) : MOEC_OK;
}

static moec_status from_unnamed(moec_rows *r, const moec_int_arrays *a,
                                moec_error *err)
{
    eplb_arrays e = {0};

    if (a->n == 1 && a->a[0].n_dims == 2) {
        r->form = MOEC_PLACEMENT_PHY2LOG;
        e.phy2log = &a->a[0];
    } else if (a->n == 1 && a->a[0].n_dims == 3) {
        r->form = MOEC_PLACEMENT_LOG2PHY;
        e.log2phy = &a->a[0];
    } else if (a->n == 3) {
        r->form = MOEC_PLACEMENT_EPLB;
        e = (eplb_arrays){&a->a[0], &a->a[1], &a->a[2]};
    } else {
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                         "%s: %zu arrays of no known form: give phy2log of 2 "
                         "dimensions, log2phy of 3, or EPLB's three",
                         r->name, a->n);
    }
    return from_eplb(r, &e, err);
}

moec_status moec_rows_from_arrays(moec_rows *r, const moec_int_arrays *a,
                                  moec_error *err)
{
    const moec_int_array *map = named(a, "physical_to_logical_map");
    eplb_arrays e = {named(a, "phy2log"), named(a, "log2phy"),
                     named(a, "logcnt")};
    size_t known = 0;

    known += e.phy2log != NULL;
    known += e.log2phy != NULL;
    known += e.logcnt != NULL;
    if (!a->named)
        return from_unnamed(r, a, err);
    if (map)
        return from_sglang(r, a, map, err);
    if (named(a, "logical_count"))
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_P01,
                         "%s: 'logical_count' is loads, not a placement: "
                         "`placement eplb --logical-count` makes one of them",
                         r->name);
    if (known == 0 || known != a->n)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                         "%s: must hold physical_to_logical_map, or phy2log, "
                         "log2phy and logcnt, and nothing else",
                         r->name);
    r->form = MOEC_PLACEMENT_EPLB;
    return from_eplb(r, &e, err);
}
