/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: the recorder. Rows of many requests, appended by many threads,
 *   forgotten again. What comes out is recorder_take.c's.
 * Refuses: ids that are no expert, handles that ended, more memory than its
 *   cap.
 *
 * Tokens live in chunks of CHUNK positions of one request: for each token and
 * layer a mark, whether the row is there, and K narrow ids. An append finds
 * its chunk without a lock: handle -> request in a table whose blocks never
 * move, position -> chunk in a directory that is replaced when it grows and
 * kept until the request ends, for those who still read the old one. Only a
 * position whose chunk is not there yet takes the lock. Marks are bytes, so
 * that rows of one token in two layers, written by two threads, share no
 * memory location. First every chunk of a call is made and every id looked
 * at, then the rows are stored: a call that fails stored nothing.
 */

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/siphash.h"
#include "recorder.h"

/* --------------------------------------------------------------- memory */

static moec_status take_bytes(moec_recorder *r, uint64_t n, moec_error *err)
{
    uint64_t held = atomic_fetch_add(&r->bytes, n);

    if (r->max_bytes == 0 || held + n <= r->max_bytes)
        return MOEC_OK;
    atomic_fetch_sub(&r->bytes, n);
    return moec_fail(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                     "recorder: %" PRIu64 " bytes held and %" PRIu64
                     " more are above its cap of %" PRIu64,
                     held, n, r->max_bytes);
}

static void give_bytes(moec_recorder *r, uint64_t n)
{
    atomic_fetch_sub(&r->bytes, n);
}

static uint64_t directory_bytes(uint32_t n)
{
    return sizeof(directory) + n * sizeof(_Atomic(chunk *));
}

static void free_chunks(moec_recorder *r, request *q)
{
    directory *d = atomic_load(&q->dir);

    for (uint32_t i = 0; d && i < d->n; i++) {
        chunk *c = atomic_load(&d->chunks[i]);

        if (c) {
            moec_free(c);
            give_bytes(r, r->chunk_bytes);
        }
    }
    while (d) {
        directory *old = d->old;

        give_bytes(r, directory_bytes(d->n));
        moec_free(d);
        d = old;
    }
    atomic_store(&q->dir, NULL);
}

void moec_recorder_clear(moec_recorder *r, request *q)
{
    free_chunks(r, q);
    moec_free(q->id);
    moec_free(q->gaps);
    q->id = NULL;
    q->gaps = NULL;
    q->n_gaps = 0;
}

/* --------------------------------------------------------------- begin */

moec_status moec_recorder_start(moec_recorder **out,
                                const moec_recorder_opts *opts, moec_error *err)
{
    moec_recorder *r;
    moec_status st;

    if (!out || !opts || opts->struct_bytes < sizeof(*opts))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "recorder: out or opts is NULL or too short");
    MOEC_TRY(moec_routes_shape_check(&opts->shape, err));
    r = moec_calloc(1, sizeof(*r));
    if (!r)
        return moec_fail_nomem(err, "a recorder");
    r->buckets = moec_calloc(BUCKETS_FIRST, sizeof(r->buckets[0]));
    if (!r->buckets) {
        moec_free(r);
        return moec_fail_nomem(err, "a recorder");
    }
    r->n_buckets = BUCKETS_FIRST;
    st = moec_routes_shape_copy(&r->shape, &opts->shape, err);
    if (st != MOEC_OK) {
        moec_free(r->buckets);
        moec_free(r);
        return st;
    }
    r->width = moec_routes_id_bytes(&r->shape);
    r->row_ids_bytes = (uint64_t)r->shape.top_k * r->width;
    r->marks_bytes = (uint64_t)CHUNK * r->shape.n_layers;
    r->chunk_bytes = r->marks_bytes * (1 + r->row_ids_bytes);
    r->max_bytes = opts->max_bytes;
    /* A table without a secret is slow under attack and no worse. */
    if (getrandom(r->secret, sizeof(r->secret), GRND_NONBLOCK) < 0)
        r->secret[0] = (uintptr_t)r;
    (void)pthread_mutex_init(&r->lock, NULL); /* cannot fail with NULL */
    *out = r;
    return MOEC_OK;
}

void moec_recorder_destroy(moec_recorder *r)
{
    if (!r)
        return;
    for (uint32_t i = 0; i < BLOCKS_MAX; i++) {
        request *block = atomic_load(&r->blocks[i]);

        if (!block)
            break;
        for (uint32_t k = 0; k < BLOCK; k++)
            moec_recorder_clear(r, &block[k]);
        moec_free(block);
    }
    moec_routes_shape_fini(&r->shape);
    moec_free(r->buckets);
    (void)pthread_mutex_destroy(&r->lock);
    moec_free(r);
}

const moec_routes_shape *moec_recorder_shape(const moec_recorder *r)
{
    return &r->shape;
}

moec_recorder_stats moec_recorder_stats_of(const moec_recorder *r)
{
    moec_recorder *w = (moec_recorder *)(uintptr_t)r;
    moec_recorder_stats s;

    (void)pthread_mutex_lock(&w->lock);
    s.requests = r->n_held;
    (void)pthread_mutex_unlock(&w->lock);
    s.rows = atomic_load(&w->rows);
    s.bytes = atomic_load(&w->bytes);
    return s;
}

/* ------------------------------------------------------------- requests */

static uint64_t hash_of(const moec_recorder *r, const char *id, size_t n,
                        uint32_t sample)
{
    uint64_t v[4];

    moec_sip_begin(v, r->secret);
    for (size_t i = 0; i < n; i += 8) {
        uint64_t w = 0;

        memcpy(&w, id + i, n - i < 8 ? n - i : 8);
        moec_sip_word(v, w);
    }
    moec_sip_word(v, (uint64_t)n << 32 | sample);
    return moec_sip_end(v);
}

static uint64_t handle_of(const request *q)
{
    return (uint64_t)atomic_load_explicit(&q->generation, memory_order_relaxed)
               << 32 |
           q->index;
}

/* The request of a handle, or NULL where it ended. */
request *moec_recorder_find(const moec_recorder *r, uint64_t handle)
{
    uint32_t index = (uint32_t)handle, block = index >> BLOCK_BITS;
    request *q;

    if (block >= BLOCKS_MAX || (handle >> 32 & 1) == 0)
        return NULL;
    q = atomic_load_explicit((_Atomic(request *) *)(uintptr_t)&r->blocks[block],
                             memory_order_acquire);
    if (!q)
        return NULL;
    q += index & (BLOCK - 1);
    if (atomic_load_explicit(&q->generation, memory_order_acquire) !=
        handle >> 32)
        return NULL;
    return q;
}

moec_status moec_recorder_stale(uint64_t handle, moec_error *err)
{
    return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                     "recorder: handle %#" PRIx64
                     " is of no request, or of one that was taken",
                     handle);
}

/* A request that is not held. Under the lock. */
static request *free_request(moec_recorder *r, moec_error *err)
{
    request *q = r->free_ones, *block;

    if (q)
        return q;
    if (r->n_made == BLOCKS_MAX * BLOCK) {
        (void)moec_fail(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                        "recorder: %u requests are held, the most it can",
                        BLOCKS_MAX * BLOCK);
        return NULL;
    }
    block = moec_calloc(BLOCK, sizeof(block[0]));
    if (!block) {
        (void)moec_fail_nomem(err, "requests of a recorder");
        return NULL;
    }
    for (uint32_t i = BLOCK; i-- > 0;) {
        block[i].index = r->n_made + i;
        block[i].next = r->free_ones;
        r->free_ones = &block[i];
    }
    atomic_store_explicit(&r->blocks[r->n_made >> BLOCK_BITS], block,
                          memory_order_release);
    r->n_made += BLOCK;
    return r->free_ones;
}

/* More buckets than requests; where memory lacks, longer chains do. */
static void grow_buckets(moec_recorder *r)
{
    size_t n = r->n_buckets * 2;
    request **more;

    if (r->n_held < r->n_buckets)
        return;
    more = moec_calloc(n, sizeof(more[0]));
    if (!more)
        return;
    for (size_t i = 0; i < r->n_buckets; i++) {
        for (request *q = r->buckets[i], *next; q; q = next) {
            next = q->next;
            q->next = more[q->hash & (n - 1)];
            more[q->hash & (n - 1)] = q;
        }
    }
    moec_free(r->buckets);
    r->buckets = more;
    r->n_buckets = n;
}

static moec_status add_request(moec_recorder *r, const char *id, size_t n,
                               uint32_t sample, uint64_t hash, uint64_t *out,
                               moec_error *err)
{
    request *q = free_request(r, err);
    char *copy;

    if (!q)
        return MOEC_E_NOMEM;
    copy = moec_alloc(n + 1);
    if (!copy)
        return moec_fail_nomem(err, "a request of a recorder");
    memcpy(copy, id, n + 1);
    r->free_ones = q->next;
    r->n_held++;
    grow_buckets(r);
    q->id = copy;
    q->sample = sample;
    q->hash = hash;
    q->serial = r->serial++;
    q->next = r->buckets[hash & (r->n_buckets - 1)];
    r->buckets[hash & (r->n_buckets - 1)] = q;
    atomic_fetch_add_explicit(&q->generation, 1, memory_order_release);
    *out = handle_of(q);
    return MOEC_OK;
}

moec_status moec_recorder_request(moec_recorder *r, const char *id,
                                  uint32_t sample, uint64_t *out,
                                  moec_error *err)
{
    moec_status st = MOEC_OK;
    uint64_t hash;
    request *q;
    size_t n;

    if (!r || !id || !out)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "recorder: recorder, id or out is NULL");
    n = strnlen(id, MOEC_ROUTE_ID_BYTES_MAX + 1);
    if (!moec_routes_id_ok(id, n) || sample > INT32_MAX)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "recorder: request '%.64s', sample %" PRIu32
                         ": an id is UTF-8 of 1 to %u bytes, a sample below "
                         "2^31",
                         id, sample, MOEC_ROUTE_ID_BYTES_MAX);
    hash = hash_of(r, id, n, sample);
    (void)pthread_mutex_lock(&r->lock);
    for (q = r->buckets[hash & (r->n_buckets - 1)]; q; q = q->next)
        if (q->hash == hash && q->sample == sample && strcmp(q->id, id) == 0)
            break;
    if (r->stopped)
        st = moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                       "recorder: it was stopped");
    else if (q)
        *out = handle_of(q);
    else
        st = add_request(r, id, n, sample, hash, out, err);
    (void)pthread_mutex_unlock(&r->lock);
    return st;
}

/* --------------------------------------------------------------- chunks */

chunk *moec_recorder_chunk(const request *q, uint32_t position)
{
    directory *d = atomic_load_explicit(
        (_Atomic(directory *) *)(uintptr_t)&q->dir, memory_order_acquire);
    uint32_t i = position >> CHUNK_BITS;

    if (!d || i >= d->n)
        return NULL;
    return atomic_load_explicit(&d->chunks[i], memory_order_acquire);
}

/* A directory with place for chunk `i`. Under the lock. */
static moec_status grow_directory(moec_recorder *r, request *q, uint32_t i,
                                  moec_error *err)
{
    directory *old = atomic_load(&q->dir), *d;
    uint32_t n = old ? old->n : 0;

    if (i < n)
        return MOEC_OK;
    n = n ? n : DIR_MIN;
    while (n <= i)
        n *= 2;
    MOEC_TRY(take_bytes(r, directory_bytes(n), err));
    d = moec_calloc(1, (size_t)directory_bytes(n));
    if (!d) {
        give_bytes(r, directory_bytes(n));
        return moec_fail_nomem(err, "a directory of a recorder");
    }
    d->n = n;
    d->old = old;
    for (uint32_t k = 0; old && k < old->n; k++)
        atomic_store(&d->chunks[k], atomic_load(&old->chunks[k]));
    atomic_store_explicit(&q->dir, d, memory_order_release);
    return MOEC_OK;
}

static moec_status make_chunk(moec_recorder *r, request *q, uint32_t position,
                              moec_error *err)
{
    uint32_t i = position >> CHUNK_BITS;
    moec_status st;
    chunk *c;

    (void)pthread_mutex_lock(&r->lock);
    st = grow_directory(r, q, i, err);
    if (st == MOEC_OK && !moec_recorder_chunk(q, position)) {
        st = take_bytes(r, r->chunk_bytes, err);
        c = st == MOEC_OK ? moec_alloc((size_t)r->chunk_bytes) : NULL;
        if (c) {
            memset(c, 0, (size_t)r->marks_bytes);
            atomic_store_explicit(&atomic_load(&q->dir)->chunks[i], c,
                                  memory_order_release);
        } else if (st == MOEC_OK) {
            give_bytes(r, r->chunk_bytes);
            st = moec_fail_nomem(err, "rows of a recorder");
        }
    }
    (void)pthread_mutex_unlock(&r->lock);
    return st;
}

/* --------------------------------------------------------------- append */

/* The last request and chunk of a call: rows of one request come together. */
typedef struct cursor {
    uint64_t handle;
    request *q;
    uint32_t chunk_number;
    chunk *c;
} cursor;

/* Point the cursor at the row's chunk; c is NULL where there is none yet. */
static bool seek(const moec_recorder *r, const moec_route_key *key, cursor *at)
{
    if (at->handle != key->request) {
        at->q = moec_recorder_find(r, key->request);
        at->handle = key->request;
        at->c = NULL;
        if (!at->q)
            return false;
    }
    if (!at->c || at->chunk_number != key->position >> CHUNK_BITS) {
        at->c = moec_recorder_chunk(at->q, key->position);
        at->chunk_number = key->position >> CHUNK_BITS;
    }
    return at->q != NULL;
}

static moec_status bad_id(const moec_recorder *r, const int32_t *ids,
                          uint64_t row, moec_error *err)
{
    uint32_t c = 0;

    while (ids[c] < 0 ||
           (uint32_t)ids[c] < r->shape.n_experts + r->shape.n_zero)
        c++;
    return moec_fail(err, MOEC_E_ARG, MOEC_RULE_R03,
                     "row %" PRIu64 ", column %" PRIu32 ": id %" PRId32
                     " of %" PRIu32 " experts: ids are logical and routed",
                     row, c, ids[c], r->shape.n_experts + r->shape.n_zero);
}

/* Decoding, every row of a call is of another request, and none of the lines
 * that it will be stored to is near: ask for them all before the first. */
static void touch(const moec_recorder *r, uint32_t layer, uint32_t position,
                  const chunk *c)
{
    uint64_t cell =
        (uint64_t)(position & (CHUNK - 1)) * r->shape.n_layers + layer;

    __builtin_prefetch(c->bytes + cell, 1);
    __builtin_prefetch(c->bytes + r->marks_bytes + cell * r->row_ids_bytes, 1);
}

/* Make what is missing, and look at every id. */
static moec_status prepare(moec_recorder *r, uint32_t layer,
                           const moec_route_key *keys, const int32_t *ids,
                           uint64_t stride, uint64_t n_rows, moec_error *err)
{
    int32_t limit = (int32_t)(r->shape.n_experts + r->shape.n_zero);
    uint32_t k = r->shape.top_k;
    cursor at = {0};

    for (uint64_t t = 0; t < n_rows; t++, ids += stride) {
        int bad = 0;

        if (keys[t].request == 0)
            continue;
        if (!seek(r, &keys[t], &at))
            return moec_recorder_stale(keys[t].request, err);
        if (keys[t].position > MOEC_ROUTE_POSITION_MAX)
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "row %" PRIu64 ": position %" PRIu32
                             " is above %" PRIu32,
                             t, keys[t].position, MOEC_ROUTE_POSITION_MAX);
        for (uint32_t c = 0; c < k; c++)
            bad |= ids[c] >= limit;
        if (bad)
            return bad_id(r, ids, t, err);
        if (!at.c) {
            MOEC_TRY(make_chunk(r, at.q, keys[t].position, err));
            at.c = NULL;
        } else {
            touch(r, layer, keys[t].position, at.c);
        }
    }
    return MOEC_OK;
}

/* -1 and all below are the all-ones value, whatever the width. */
static void narrow(uint8_t *to, const int32_t *ids, uint32_t k, uint32_t width)
{
    if (width == 1) {
        for (uint32_t c = 0; c < k; c++)
            to[c] = (uint8_t)(ids[c] | ids[c] >> 31);
        return;
    }
    for (uint32_t c = 0; c < k; c++) {
        uint16_t v = (uint16_t)(ids[c] | ids[c] >> 31);

        memcpy(to + 2 * (size_t)c, &v, sizeof(v));
    }
}

static uint64_t store(moec_recorder *r, uint32_t layer,
                      const moec_route_key *keys, const int32_t *ids,
                      uint64_t stride, uint64_t n_rows)
{
    uint64_t n_layers = r->shape.n_layers, n = 0;
    cursor at = {0};

    for (uint64_t t = 0; t < n_rows; t++, ids += stride) {
        uint64_t cell;

        if (keys[t].request == 0)
            continue;
        (void)seek(r, &keys[t], &at); /* prepare saw it */
        cell = (keys[t].position & (CHUNK - 1)) * n_layers + layer;
        narrow(at.c->bytes + r->marks_bytes + cell * r->row_ids_bytes, ids,
               r->shape.top_k, r->width);
        at.c->bytes[cell] = 1;
        n++;
    }
    return n;
}

moec_status moec_recorder_append(moec_recorder *r, uint32_t layer,
                                 const moec_route_key *keys, const int32_t *ids,
                                 uint64_t stride, uint64_t n_rows,
                                 moec_error *err)
{
    if (!r || (n_rows && (!keys || !ids)))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "recorder: recorder, keys or ids is NULL");
    if (layer >= r->shape.n_layers || (stride && stride < r->shape.top_k))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "recorder: layer %" PRIu32 " of %" PRIu32
                         ", stride %" PRIu64 " for %" PRIu32 " columns",
                         layer, r->shape.n_layers, stride, r->shape.top_k);
    stride = stride ? stride : r->shape.top_k;
    MOEC_TRY(prepare(r, layer, keys, ids, stride, n_rows, err));
    atomic_fetch_add_explicit(&r->rows,
                              store(r, layer, keys, ids, stride, n_rows),
                              memory_order_relaxed);
    return MOEC_OK;
}

/* ---------------------------------------------------- gaps, retraction */

/* Put [first, end) into the list, joined with those it touches. */
static void join_gap(request *q, uint32_t first, uint32_t end)
{
    size_t at = 0, upto;

    while (at < q->n_gaps && q->gaps[at].end < first)
        at++;
    for (upto = at; upto < q->n_gaps && q->gaps[upto].first <= end; upto++) {
        first = first < q->gaps[upto].first ? first : q->gaps[upto].first;
        end = end > q->gaps[upto].end ? end : q->gaps[upto].end;
    }
    memmove(q->gaps + at + 1, q->gaps + upto,
            (q->n_gaps - upto) * sizeof(q->gaps[0]));
    q->gaps[at] = (moec_route_gap){first, end};
    q->n_gaps = q->n_gaps - (upto - at) + 1;
}

moec_status moec_recorder_gap(moec_recorder *r, uint64_t handle, uint32_t first,
                              uint32_t end, moec_error *err)
{
    request *q = r ? moec_recorder_find(r, handle) : NULL;
    moec_route_gap *more;

    if (!q)
        return moec_recorder_stale(handle, err);
    if (first > end || end > MOEC_ROUTE_POSITION_MAX)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "recorder: gap from %" PRIu32 " to %" PRIu32, first,
                         end);
    if (first == end)
        return MOEC_OK;
    (void)pthread_mutex_lock(&r->lock);
    more = moec_realloc_array(q->gaps, q->n_gaps + 1, sizeof(more[0]));
    if (more) {
        q->gaps = more;
        join_gap(q, first, end);
    }
    (void)pthread_mutex_unlock(&r->lock);
    return more ? MOEC_OK : moec_fail_nomem(err, "a gap of a recorder");
}

moec_status moec_recorder_retract(moec_recorder *r, uint64_t handle,
                                  uint32_t from, moec_error *err)
{
    request *q = r ? moec_recorder_find(r, handle) : NULL;
    directory *d;

    if (!q)
        return moec_recorder_stale(handle, err);
    (void)pthread_mutex_lock(&r->lock);
    d = atomic_load(&q->dir);
    for (uint32_t i = from >> CHUNK_BITS; d && i < d->n; i++) {
        uint32_t keep = i == from >> CHUNK_BITS ? from & (CHUNK - 1) : 0;
        chunk *c = atomic_load(&d->chunks[i]);

        if (c)
            memset(c->bytes + (uint64_t)keep * r->shape.n_layers, 0,
                   (size_t)(CHUNK - keep) * r->shape.n_layers);
    }
    while (q->n_gaps > 0 && q->gaps[q->n_gaps - 1].end > from) {
        q->gaps[q->n_gaps - 1].end = from;
        if (q->gaps[q->n_gaps - 1].first >= from)
            q->n_gaps--;
    }
    (void)pthread_mutex_unlock(&r->lock);
    return MOEC_OK;
}
