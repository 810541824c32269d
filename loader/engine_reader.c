/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Requests that a sink's own reader brings from the file to the destination.
 * Host memory never sees these bytes, so they are digested where they arrived,
 * a group at a time, before it is ready: what is proved is what will be used.
 *
 * Pages go the reader's way; the bytes before the first and behind the last
 * page of a request, and places of further replicas, are copied. A request
 * that fails or comes short comes by the ring, all of it; a file that failed
 * is not offered again.
 */

#include <string.h>

#include "engine_parts.h"

/* Digests asked for at once. */
#define BATCH 256u

static moec_grid one_row(uint64_t n)
{
    return (moec_grid){.elem_bytes = 1, .n_rows = 1, .n_cols = n};
}

static bool has_replicas(const moec_engine *e, const moec_request *r)
{
    for (uint32_t i = 0; i < r->n_parts; i++)
        if (e->parts[r->first + i].same)
            return true;
    return false;
}

/* The ends of the request that are no pages: bytes [from, to) of the file. */
static moec_status copy_end(moec_engine_worker *w, moec_engine_op *op,
                            unsigned char *dst, unsigned char *room,
                            uint64_t from, uint64_t to)
{
    moec_grid g = one_row(to - from);

    if (from == to)
        return MOEC_OK;
    MOEC_TRY(moec_engine_read_plain(w->e, op->r->file, from, room,
                                    (size_t)(to - from), &w->err));
    return moec_engine_sink_copy(w, op, dst + (from - op->r->off), &g, room);
}

static moec_status copy_replicas(moec_engine_worker *w, moec_engine_op *op)
{
    const moec_engine *e = w->e;
    const unsigned char *first = NULL;

    for (uint32_t i = 0; i < op->r->n_parts; i++) {
        const moec_part *p = &e->parts[op->r->first + i];
        moec_grid g = one_row(p->bytes);

        if (!p->same)
            first = moec_engine_place(e, p);
        else
            MOEC_TRY(moec_engine_sink_copy(w, op, moec_engine_place(e, p), &g,
                                           first));
    }
    return MOEC_OK;
}

bool moec_engine_offer(moec_engine_worker *w, moec_engine_op *op,
                       moec_status *st_out)
{
    moec_engine *e = w->e;
    const moec_request *r = op->r;
    moec_engine_fd *f = &e->files[r->file];
    uint64_t end = r->off + r->bytes, page = MOEC_ENGINE_PAGE, got = 0;
    uint64_t first = (r->off + page - 1) & ~(page - 1);
    uint64_t last = end & ~(page - 1);
    const moec_engine_reader *d;
    moec_error ignored = MOEC_ERROR_INIT;
    unsigned char *dst;
    moec_status st;

    if (!r->offered || !atomic_load(&f->own_way))
        return false;
    d = e->o.sink->reader;
    if ((!d->always && moec_io_is_cached(f->f->fd, r->off, r->bytes)) ||
        (!e->o.sink->copies_within && has_replicas(e, r)))
        return false;
    dst = moec_engine_place(e, &e->parts[r->first]);
    st = d->read(d->ctx, f->own, first, dst + (first - r->off), last - first,
                 &got, &ignored);
    if (st != MOEC_OK || got != last - first) {
        if (st != MOEC_OK)
            atomic_store(&f->own_way, false);
        atomic_fetch_add(&e->n_reader_failed, 1);
        return false;
    }
    atomic_fetch_add(&e->n_asked, 1);
    atomic_fetch_add(&e->bytes_read, got);
    atomic_fetch_add(&e->bytes_by_reader, got);
    e->requests[r - e->requests].taken = true; /* its group waits for it */
    st = copy_end(w, op, dst, op->slot, r->off, first);
    if (st == MOEC_OK)
        st = copy_end(w, op, dst, op->slot + page, last, end);
    if (st == MOEC_OK)
        st = copy_replicas(w, op);
    *st_out = st;
    return true;
}

/* ------------------------------------------------------------- digests */

/* Leaves whose digests are wanted. */
typedef struct batch {
    size_t n;
    const void *data[BATCH];
    uint64_t bytes[BATCH];
    const moec_part *part[BATCH];
    uint64_t leaf[BATCH];
    uint8_t found[BATCH * sizeof(moec_sha256)];
} batch;

static moec_status check_batch(moec_engine_worker *w, batch *b)
{
    moec_engine *e = w->e;
    const moec_engine_reader *d = e->o.sink->reader;
    bool sha256 = e->o.verify == MOEC_ENGINE_SHA256;
    size_t each = sha256 ? sizeof(moec_sha256) : sizeof(moec_xxh128);
    double t = moec_engine_now();

    if (b->n == 0)
        return MOEC_OK;
    MOEC_TRY(
        d->digest(d->ctx, sha256, b->data, b->bytes, b->n, b->found, &w->err));
    for (size_t i = 0; i < b->n; i++) {
        const moec_leaf *l = &e->pieces[b->part[i]->piece].p.leaves[b->leaf[i]];
        const void *want = sha256 ? (const void *)l->sha256.b : l->xxh128.b;

        if (memcmp(b->found + i * each, want, each) != 0)
            return moec_engine_wrong_leaf(w, b->part[i], b->leaf[i], sha256,
                                          want, b->found + i * each);
        atomic_fetch_add(&e->bytes_verified, b->bytes[i]);
    }
    atomic_fetch_add(&e->digest_ns, (uint64_t)((moec_engine_now() - t) * 1e9));
    b->n = 0;
    return MOEC_OK;
}

static moec_status check_part(moec_engine_worker *w, const moec_part *p,
                              batch *b)
{
    const moec_engine *e = w->e;
    unsigned char *data = moec_engine_place(e, p);

    if (!e->pieces[p->piece].checked)
        return MOEC_OK;
    for (uint64_t at = 0; at < p->bytes; at += MOEC_LEAF_BYTES) {
        if (b->n == BATCH)
            MOEC_TRY(check_batch(w, b));
        b->data[b->n] = data + at;
        b->bytes[b->n] = moec_min_u64(MOEC_LEAF_BYTES, p->bytes - at);
        b->part[b->n] = p;
        b->leaf[b->n++] = (p->at + at) / MOEC_LEAF_BYTES;
    }
    return MOEC_OK;
}

moec_status moec_engine_prove(moec_engine_worker *w, uint32_t group)
{
    const moec_engine *e = w->e;
    moec_status st = MOEC_OK;
    batch *b;

    if (e->o.sink == NULL || e->o.sink->reader == NULL ||
        e->o.verify == MOEC_ENGINE_NONE)
        return MOEC_OK;
    b = moec_calloc(1, sizeof(*b));
    if (b == NULL)
        return moec_fail_nomem(&w->err, "digests of a load");
    for (size_t i = moec_engine_first_request(e, group);
         st == MOEC_OK && i < e->n_requests && e->requests[i].group == group;
         i++)
        for (uint32_t k = 0; st == MOEC_OK && k < e->requests[i].n_parts; k++)
            if (e->requests[i].taken)
                st = check_part(w, &e->parts[e->requests[i].first + k], b);
    if (st == MOEC_OK)
        st = check_batch(w, b);
    moec_free(b);
    return st;
}
