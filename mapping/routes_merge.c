/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: several recordings as one, by key: what data-parallel ranks
 *   recorded of the same or of different requests.
 * Refuses: recordings of different shape, and two rows of one key that differ.
 *
 * All tokens are sorted by (request, position, recording); equal keys then
 * stand beside each other. Gaps are joined, and cut where a token is.
 */

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "routes.h"

typedef struct item {
    uint64_t request; /* of the result */
    uint64_t token;
    uint32_t input;
    uint32_t position;
} item;

typedef struct span {
    uint64_t request;
    uint32_t first, end;
} span;

typedef struct merger {
    const moec_routes *const *in;
    size_t n;
    uint64_t n_requests; /* of the result */
    uint64_t n_items, n_spans;
    /* Where request i of the result comes from first. */
    struct origin {
        uint32_t input;
        uint64_t request;
    } * origins;
    item *items;
    span *spans;
    moec_strmap names;
} merger;

static int by_key(const void *a, const void *b)
{
    const item *x = a, *y = b;

    if (x->request != y->request)
        return x->request < y->request ? -1 : 1;
    if (x->position != y->position)
        return x->position < y->position ? -1 : 1;
    return x->input < y->input ? -1 : x->input > y->input;
}

static int by_first(const void *a, const void *b)
{
    const span *x = a, *y = b;

    if (x->request != y->request)
        return x->request < y->request ? -1 : 1;
    return x->first < y->first ? -1 : x->first > y->first;
}

/* ----------------------------------------------------------- gathering */

/* Number in the result of a request. The map's key is the sample and the id,
 * kept in `arena`. */
static moec_status number_of(merger *m, moec_arena *arena, uint32_t input,
                             uint64_t request, uint64_t *out, moec_error *err)
{
    const routes_request *q = &m->in[input]->requests[request];
    size_t n = strlen(q->id);
    char *key = moec_arena_alloc(arena, n + sizeof(q->sample), 1);
    bool existed = false;

    if (!key)
        return moec_fail_nomem(err, "a merged recording");
    memcpy(key, &q->sample, sizeof(q->sample));
    memcpy(key + sizeof(q->sample), q->id, n);
    MOEC_TRY(moec_strmap_put(&m->names, key, n + sizeof(q->sample),
                             m->n_requests, &existed, err));
    if (existed) {
        (void)moec_strmap_get(&m->names, key, n + sizeof(q->sample), out);
        return MOEC_OK;
    }
    m->origins[m->n_requests].input = input;
    m->origins[m->n_requests].request = request;
    *out = m->n_requests++;
    return MOEC_OK;
}

static moec_status gather(merger *m, moec_arena *arena, moec_error *err)
{
    for (uint32_t i = 0; i < m->n; i++) {
        const moec_routes *r = m->in[i];

        for (uint64_t k = 0; k < r->n_requests; k++) {
            const routes_request *q = &r->requests[k];
            uint64_t number = 0;

            MOEC_TRY(number_of(m, arena, i, k, &number, err));
            for (uint64_t t = q->first_token; t < q[1].first_token; t++)
                m->items[m->n_items++] = (item){number, t, i, r->positions[t]};
            for (uint64_t g = q->first_gap; g < q[1].first_gap; g++)
                m->spans[m->n_spans++] =
                    (span){number, r->gaps[g].first, r->gaps[g].end};
        }
    }
    qsort(m->items, (size_t)m->n_items, sizeof(m->items[0]), by_key);
    qsort(m->spans, (size_t)m->n_spans, sizeof(m->spans[0]), by_first);
    return MOEC_OK;
}

/* -------------------------------------------------------------- writing */

/* Lay the token's row over what stands at `to`: equal, or one of the two is an
 * MTP layer's missing row. */
static moec_status lay_over(const merger *m, const item *x, uint8_t *to,
                            moec_error *err)
{
    const moec_routes *r = m->in[x->input];
    uint64_t row_bytes = r->token_bytes / r->shape.n_layers;
    const uint8_t *from = r->ids + x->token * r->token_bytes;
    char name[ROUTES_KEY_BYTES];
    uint8_t none[2 * 64];

    memset(none, 0xff, sizeof(none));
    for (uint32_t l = 0; l < r->shape.n_layers;
         l++, from += row_bytes, to += row_bytes) {
        const struct origin *o = &m->origins[x->request];
        const routes_request *q = &m->in[o->input]->requests[o->request];
        bool mtp = r->shape.keys[l].space == MOEC_SPACE_MTP;

        if (memcmp(from, to, row_bytes) == 0 ||
            (mtp && memcmp(from, none, row_bytes) == 0))
            continue;
        if (!mtp || memcmp(to, none, row_bytes) != 0)
            return moec_fail(
                err, MOEC_E_MAPPING, MOEC_RULE_R05,
                "request '%s', sample %" PRIu32 ", position %" PRIu32
                ", layer %s: recording %" PRIu32
                " has another row than one before it",
                q->id, q->sample, x->position,
                moec_routes_key_text(r->shape.keys[l], name), x->input + 1);
        memcpy(to, from, row_bytes);
    }
    return MOEC_OK;
}

static uint64_t count_tokens(const merger *m)
{
    uint64_t n = 0;

    for (uint64_t i = 0; i < m->n_items; i++)
        n += i == 0 || m->items[i].request != m->items[i - 1].request ||
             m->items[i].position != m->items[i - 1].position;
    return n;
}

static moec_status write_tokens(const merger *m, moec_routes *out,
                                moec_error *err)
{
    uint64_t t = 0, request = 0;

    for (uint64_t i = 0; i < m->n_items; i++) {
        const item *x = &m->items[i];
        const moec_routes *r = m->in[x->input];

        for (; request <= x->request; request++)
            out->requests[request].first_token = t;
        if (t > 0 && i > 0 && x->request == m->items[i - 1].request &&
            x->position == m->items[i - 1].position) {
            MOEC_TRY(
                lay_over(m, x, out->ids + (t - 1) * out->token_bytes, err));
            continue;
        }
        out->positions[t] = x->position;
        memcpy(out->ids + t * out->token_bytes,
               r->ids + x->token * r->token_bytes, (size_t)r->token_bytes);
        t++;
    }
    for (; request < m->n_requests; request++)
        out->requests[request].first_token = t;
    return MOEC_OK;
}

/* Gaps joined and cut by the tokens: count them, or with `out`, whose tokens
 * are there, write them. Both lists are walked once. */
static uint64_t write_gaps(const merger *m, moec_routes *out)
{
    uint64_t n = 0, i = 0, request = 0;
    uint64_t covered_request = UINT64_MAX;
    uint32_t covered = 0; /* end of what was walked of that request */

    for (uint64_t s = 0; s < m->n_spans; s++) {
        const span *x = &m->spans[s];
        uint32_t at = x->first;

        if (covered_request != x->request)
            covered = 0;
        covered_request = x->request;
        at = at > covered ? at : covered;
        covered = x->end > covered ? x->end : covered;
        for (; out && request <= x->request; request++)
            out->requests[request].first_gap = n;
        while (at < x->end) {
            uint32_t stop = x->end;

            while (i < m->n_items && (m->items[i].request < x->request ||
                                      (m->items[i].request == x->request &&
                                       m->items[i].position < at)))
                i++;
            if (i < m->n_items && m->items[i].request == x->request &&
                m->items[i].position < stop)
                stop = m->items[i].position;
            if (stop > at) {
                if (out)
                    out->gaps[n] = (moec_route_gap){at, stop};
                n++;
            }
            at = stop + 1;
        }
    }
    for (; out && request < m->n_requests; request++)
        out->requests[request].first_gap = n;
    return n;
}

static moec_status write_names(const merger *m, moec_routes *out,
                               moec_error *err)
{
    for (uint64_t i = 0; i < m->n_requests; i++) {
        const struct origin *o = &m->origins[i];
        const routes_request *q = &m->in[o->input]->requests[o->request];
        size_t bytes = strlen(q->id) + 1;

        out->requests[i].id = moec_alloc(bytes);
        if (!out->requests[i].id)
            return moec_fail_nomem(err, "a merged recording");
        memcpy(out->requests[i].id, q->id, bytes);
        out->requests[i].sample = q->sample;
    }
    return MOEC_OK;
}

static moec_status make(merger *m, moec_routes **out, moec_error *err)
{
    moec_arena arena = {0};
    moec_routes *r = NULL;
    moec_status st = gather(m, &arena, err);

    if (st == MOEC_OK)
        st = moec_routes_alloc(&r, &m->in[0]->shape, m->n_requests,
                               count_tokens(m), write_gaps(m, NULL), err);
    if (st == MOEC_OK)
        st = write_names(m, r, err);
    if (st == MOEC_OK)
        st = write_tokens(m, r, err);
    if (st == MOEC_OK) {
        (void)write_gaps(m, r);
        *out = r;
    } else {
        moec_routes_destroy(r);
    }
    moec_arena_fini(&arena);
    return st;
}

moec_status moec_routes_merge(moec_routes **out, const moec_routes *const *in,
                              size_t n, moec_error *err)
{
    merger m = {.in = in, .n = n};
    uint64_t n_requests = 0, n_items = 0, n_spans = 0;
    moec_status st = MOEC_OK;

    if (!out || !in || n == 0 || n > UINT32_MAX)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "merge: no recordings");
    for (size_t i = 0; i < n; i++) {
        char name[48];

        snprintf(name, sizeof(name), "recording %zu", i + 1);
        MOEC_TRY(moec_routes_same_shape(&in[0]->shape, &in[i]->shape,
                                        "recording 1", name, err));
        n_requests += in[i]->n_requests;
        n_items += in[i]->n_tokens;
        n_spans += in[i]->n_gaps;
    }
    MOEC_TRY(moec_strmap_init(&m.names, (size_t)n_requests, err));
    m.origins = moec_calloc((size_t)n_requests, sizeof(m.origins[0]));
    m.items = moec_calloc((size_t)n_items, sizeof(m.items[0]));
    m.spans = moec_calloc((size_t)n_spans, sizeof(m.spans[0]));
    if (!m.origins || !m.items || !m.spans)
        st = moec_fail_nomem(err, "a merged recording");
    if (st == MOEC_OK)
        st = make(&m, out, err);
    moec_strmap_fini(&m.names);
    moec_free(m.origins);
    moec_free(m.items);
    moec_free(m.spans);
    return st;
}
