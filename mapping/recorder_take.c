/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: recordings out of a recorder: one request or all.
 * Refuses: a request with a position that neither has its rows nor lies in a
 *   gap. The first one is named, and the request stays as it is.
 */

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "recorder.h"

/* Marks of the token, or NULL where its chunk was never made. */
static const uint8_t *marks_of(const moec_recorder *r, const request *q,
                               uint32_t position)
{
    const chunk *c = moec_recorder_chunk(q, position);

    return c ? c->bytes + (uint64_t)(position & (CHUNK - 1)) * r->shape.n_layers
             : NULL;
}

/* 0: no row of it; 1: recorded; -1: some layers only, *layer_out the first
 * without. MTP layers run on some tokens only and cannot be missing. */
static int state_of(const moec_recorder *r, const uint8_t *marks,
                    uint32_t *layer_out)
{
    uint32_t n = 0, n_missing = 0, first = 0;

    for (uint32_t l = 0; marks && l < r->shape.n_layers; l++) {
        n += marks[l];
        if (marks[l] || r->shape.keys[l].space == MOEC_SPACE_MTP)
            continue;
        if (n_missing++ == 0)
            first = l;
    }
    *layer_out = first;
    return n == 0 ? 0 : n_missing == 0 ? 1 : -1;
}

static moec_status missing(const moec_recorder *r, const request *q,
                           uint32_t position, uint32_t layer, uint64_t n,
                           moec_error *err)
{
    char name[ROUTES_KEY_BYTES];

    return moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_R04,
                     "request '%s', sample %" PRIu32 ": %" PRIu64
                     " positions lack rows, the first is %" PRIu32
                     ", in layer %s",
                     q->id, q->sample, n, position,
                     moec_routes_key_text(r->shape.keys[layer], name));
}

/* Positions up to which the request has rows or gaps. */
static uint32_t end_of(const moec_recorder *r, const request *q)
{
    directory *d = atomic_load((_Atomic(directory *) *)(uintptr_t)&q->dir);
    uint32_t gap_end = q->n_gaps ? q->gaps[q->n_gaps - 1].end : 0, unused;

    for (uint32_t i = d ? d->n : 0; i-- > 0;) {
        for (uint32_t k = CHUNK; k-- > 0 && atomic_load(&d->chunks[i]);) {
            uint32_t position = i * CHUNK + k;

            if (state_of(r, marks_of(r, q, position), &unused) != 0)
                return position + 1 > gap_end ? position + 1 : gap_end;
        }
    }
    return gap_end;
}

/* One pass over the positions of a request: counts, and with `to` writes. */
typedef struct walk {
    const moec_recorder *r;
    const request *q;
    moec_routes *to;
    uint64_t token, gap; /* the next of the recording */
    bool in_gap;
    uint64_t n_bad;
    uint32_t bad_position, bad_layer;
} walk;

static void on_token(walk *w, uint32_t position, const uint8_t *marks)
{
    const moec_recorder *r = w->r;
    uint64_t token_bytes = r->row_ids_bytes * r->shape.n_layers;
    uint64_t t = w->token++;
    uint8_t *ids;

    w->in_gap = false;
    if (!w->to)
        return;
    ids = w->to->ids + t * token_bytes;
    w->to->positions[t] = position;
    memcpy(ids,
           moec_recorder_chunk(w->q, position)->bytes + r->marks_bytes +
               (position & (CHUNK - 1)) * token_bytes,
           (size_t)token_bytes);
    for (uint32_t l = 0; l < r->shape.n_layers; l++)
        if (!marks[l])
            memset(ids + l * r->row_ids_bytes, 0xff, (size_t)r->row_ids_bytes);
}

static void on_gap(walk *w, uint32_t position, uint32_t end)
{
    if (!w->in_gap && w->to)
        w->to->gaps[w->gap].first = position;
    w->gap += !w->in_gap;
    w->in_gap = true;
    if (w->to)
        w->to->gaps[w->gap - 1].end = end;
}

/* Positions from p on, up to `end`, that are as p: one where it has a chunk,
 * else all to the end of the chunk that is not there or to the border of gap
 * `g`. Cached prefixes are long. */
static uint32_t run_of(const request *q, const uint8_t *marks, uint32_t p,
                       uint32_t end, size_t g)
{
    uint32_t stop = (p | (CHUNK - 1)) + 1;

    if (marks)
        return p + 1;
    stop = stop < end ? stop : end;
    if (g < q->n_gaps) {
        uint32_t border =
            q->gaps[g].first <= p ? q->gaps[g].end : q->gaps[g].first;

        stop = stop < border ? stop : border;
    }
    return stop;
}

static void walk_request(walk *w)
{
    const moec_recorder *r = w->r;
    const request *q = w->q;
    uint32_t end = end_of(r, q), layer;
    size_t g = 0;

    w->in_gap = false;
    for (uint32_t p = 0, next; p < end; p = next) {
        const uint8_t *marks = marks_of(r, q, p);
        int state = state_of(r, marks, &layer);

        while (g < q->n_gaps && q->gaps[g].end <= p)
            g++;
        next = run_of(q, marks, p, end, g);
        if (state == 1) {
            on_token(w, p, marks);
        } else if (state == 0 && g < q->n_gaps && q->gaps[g].first <= p) {
            on_gap(w, p, next);
        } else {
            if (w->n_bad == 0) {
                w->bad_position = p;
                w->bad_layer = layer;
            }
            w->n_bad += next - p;
        }
    }
}

/* Make a recording of n requests, which stay as they are. */
static moec_status collect(const moec_recorder *r, request *const *qs, size_t n,
                           moec_routes **out, moec_error *err)
{
    walk w = {.r = r};
    moec_routes *to;

    for (size_t i = 0; i < n; i++) {
        w.q = qs[i];
        walk_request(&w);
        if (w.n_bad)
            return missing(r, w.q, w.bad_position, w.bad_layer, w.n_bad, err);
    }
    MOEC_TRY(moec_routes_alloc(&to, &r->shape, n, w.token, w.gap, err));
    w = (walk){.r = r, .to = to};
    for (size_t i = 0; i < n; i++) {
        size_t bytes = strlen(qs[i]->id) + 1;

        to->requests[i].id = moec_alloc(bytes);
        if (!to->requests[i].id) {
            moec_routes_destroy(to);
            return moec_fail_nomem(err, "a recording");
        }
        memcpy(to->requests[i].id, qs[i]->id, bytes);
        to->requests[i].sample = qs[i]->sample;
        to->requests[i].first_token = w.token;
        to->requests[i].first_gap = w.gap;
        w.q = qs[i];
        walk_request(&w);
    }
    *out = to;
    return MOEC_OK;
}

/* End a request's handle and free what it holds. Under the lock. */
static void end_request(moec_recorder *r, request *q)
{
    request **at = &r->buckets[q->hash & (r->n_buckets - 1)];

    while (*at != q)
        at = &(*at)->next;
    *at = q->next;
    atomic_fetch_add_explicit(&q->generation, 1, memory_order_release);
    moec_recorder_clear(r, q);
    q->next = r->free_ones;
    r->free_ones = q;
    r->n_held--;
}

moec_status moec_recorder_take(moec_recorder *r, uint64_t handle,
                               moec_routes **out, moec_error *err)
{
    request *q = r && out ? moec_recorder_find(r, handle) : NULL;
    moec_status st;

    if (!q)
        return moec_recorder_stale(handle, err);
    (void)pthread_mutex_lock(&r->lock);
    st = collect(r, &q, 1, out, err);
    if (st == MOEC_OK)
        end_request(r, q);
    (void)pthread_mutex_unlock(&r->lock);
    return st;
}

static int by_serial(const void *a, const void *b)
{
    uint64_t x = (*(request *const *)a)->serial;
    uint64_t y = (*(request *const *)b)->serial;

    return x < y ? -1 : x > y;
}

/* The requests held, in the order of their arrival. Under the lock. */
static request **list_requests(const moec_recorder *r)
{
    request **qs = moec_calloc((size_t)r->n_held, sizeof(qs[0]));
    size_t n = 0;

    for (size_t i = 0; qs && i < r->n_buckets; i++)
        for (request *q = r->buckets[i]; q; q = q->next)
            qs[n++] = q;
    if (qs)
        qsort(qs, n, sizeof(qs[0]), by_serial);
    return qs;
}

moec_status moec_recorder_stop(moec_recorder *r, moec_routes **out,
                               moec_error *err)
{
    moec_status st;
    request **qs;
    size_t n;

    if (!r || !out)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "recorder: recorder or out is NULL");
    (void)pthread_mutex_lock(&r->lock);
    n = (size_t)r->n_held;
    qs = list_requests(r);
    if (r->stopped)
        st = moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                       "recorder: it was stopped");
    else if (!qs)
        st = moec_fail_nomem(err, "a recording");
    else
        st = collect(r, qs, n, out, err);
    for (size_t i = 0; st == MOEC_OK && i < n; i++)
        end_request(r, qs[i]);
    r->stopped |= st == MOEC_OK;
    (void)pthread_mutex_unlock(&r->lock);
    moec_free(qs);
    return st;
}
