/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Requests through the page cache, at once: into the destination where the
 * parts allow it, leaf by leaf where leaves are checked; else into the slot.
 */

#include <errno.h>
#include <sys/uio.h>

#include "engine_parts.h"

#define VECTORS 256u /* parts and gaps of a straight request */

/* preadv of all of `v`, which changes. */
static moec_status read_vectors(moec_engine_worker *w, const moec_request *r,
                                struct iovec *v, int n)
{
    moec_engine *e = w->e;
    const moec_engine_fd *f = &e->files[r->file];
    uint64_t off = r->off;

    atomic_fetch_add(&e->n_asked, 1);
    atomic_fetch_add(&e->bytes_read, r->bytes);
    while (n > 0) {
        ssize_t k = preadv(f->f->fd, v, n, (off_t)off);

        if (k < 0 && (errno == EINTR || errno == EAGAIN)) {
            atomic_fetch_add(&e->n_retries, 1);
            continue;
        }
        if (k < 0)
            return moec_fail_os(&w->err, errno, "%s: cannot read at byte %ju",
                                f->f->name, (uintmax_t)off);
        if (k == 0) /* it has become shorter: the words for that are there */
            return moec_pread_full(f->f->fd, f->f->name, v->iov_base,
                                   v->iov_len, off, &w->err);
        off += (uint64_t)k;
        while (n > 0 && (size_t)k >= v->iov_len) {
            k -= (ssize_t)v->iov_len;
            v++;
            n--;
        }
        if (n > 0 && k > 0) {
            v->iov_base = (unsigned char *)v->iov_base + k;
            v->iov_len -= (size_t)k;
            atomic_fetch_add(&e->n_retries, 1);
        }
    }
    return MOEC_OK;
}

/* All parts at once; gaps go to the slot. */
static moec_status read_straight(moec_engine_worker *w, moec_engine_op *op)
{
    const moec_engine *e = w->e;
    const moec_request *r = op->r;
    struct iovec v[VECTORS];
    uint64_t at = r->off;
    int n = 0;

    for (uint32_t i = 0; i < r->n_parts; i++) {
        const moec_part *p = &e->parts[r->first + i];
        unsigned char *to = moec_engine_place(e, p);

        if (p->same)
            continue;
        if (p->off > at)
            v[n++] = (struct iovec){op->slot, (size_t)(p->off - at)};
        if (n > 0 && p->off == at &&
            (unsigned char *)v[n - 1].iov_base + v[n - 1].iov_len == to)
            v[n - 1].iov_len += (size_t)p->bytes;
        else
            v[n++] = (struct iovec){to, (size_t)p->bytes};
        at = p->off + p->bytes;
    }
    return read_vectors(w, r, v, n);
}

/* Leaf by leaf: digested while the copy is in this core's cache. */
static moec_status read_leaves(moec_engine_worker *w, const moec_request *r)
{
    moec_engine *e = w->e;
    uint64_t step = e->o.verify == MOEC_ENGINE_SHA256 ? 2 * MOEC_LEAF_BYTES
                                                      : MOEC_LEAF_BYTES;

    for (uint32_t i = 0; i < r->n_parts; i++) {
        const moec_part *p = &e->parts[r->first + i];
        unsigned char *to = moec_engine_place(e, p);
        uint64_t n;

        for (uint64_t at = 0; !p->same && at < p->bytes; at += n) {
            n = p->bytes - at;
            if (e->pieces[p->piece].checked)
                n = moec_min_u64(step, n);
            MOEC_TRY(moec_engine_read_plain(e, r->file, p->off + at, to + at,
                                            (size_t)n, &w->err));
            MOEC_TRY(moec_engine_check(w, p, at, to + at, n));
        }
    }
    return MOEC_OK;
}

static bool has_leaves(const moec_engine *e, const moec_request *r)
{
    for (uint32_t i = 0; i < r->n_parts; i++)
        if (e->pieces[e->parts[r->first + i].piece].checked)
            return true;
    return false;
}

moec_status moec_engine_read_cached(moec_engine_worker *w, moec_engine_op *op)
{
    moec_engine *e = w->e;
    const moec_request *r = op->r;
    bool by_fd = e->files[r->file].f->fd >= 0;

    if (by_fd)
        atomic_fetch_add(&e->bytes_cached, r->bytes);
    if (r->straight && (by_fd || r->n_parts == 1)) {
        bool leaves = has_leaves(e, r);

        if (leaves || !by_fd)
            MOEC_TRY(read_leaves(w, r));
        else
            MOEC_TRY(read_straight(w, op));
        return moec_engine_settle(w, r, false);
    }
    MOEC_TRY(moec_engine_read_plain(e, r->file, r->off, op->slot,
                                    (size_t)r->bytes, &w->err));
    return moec_engine_place_all(w, op, op->slot);
}
