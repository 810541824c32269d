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

/* ---------------------------------------------------------- leaf by leaf */

#define PAIR_BYTES (2 * MOEC_LEAF_BYTES) /* SHA-256 has two lanes */

/* The request's bytes in the page cache itself, or NULL: they are read. Cached
 * pages alone: a read that fails has words, a mapping has none. A file that is
 * shorter by now is found here. */
static moec_status find_mapped(moec_engine_worker *w, const moec_request *r,
                               const unsigned char **out)
{
    const moec_engine_fd *f = &w->e->files[r->file];

    *out = NULL;
    if (f->map == NULL || !moec_io_is_cached(f->f->fd, r->off, r->bytes))
        return MOEC_OK;
    MOEC_TRY(moec_engine_check_file(w->e, r->file, &w->err));
    *out = f->map + r->off;
    return MOEC_OK;
}

/* A slot of the ring that has room for a pair and that nothing is read into,
 * or NULL. */
static unsigned char *room_for_pair(const moec_engine_worker *w)
{
    const moec_engine *e = w->e;

    for (uint32_t i = 0; e->part_bytes >= PAIR_BYTES && i < e->n_slots; i++)
        if (w->ops[i].state == MOEC_OP_FREE)
            return w->ops[i].slot;
    return NULL;
}

/* XXH3: into its place, and digested while it is in this core's cache. SHA-256
 * copies on the way, at no cost: out of the mapping, or out of a slot that stays
 * in the cache. `mapped`: the part's bytes, or NULL. */
static moec_status read_leaf(moec_engine_worker *w, const moec_request *r,
                             const moec_part *p, uint64_t at, uint64_t n,
                             const unsigned char *mapped)
{
    moec_engine *e = w->e;
    unsigned char *to = moec_engine_place(e, p) + at, *room = NULL;

    if (mapped != NULL) {
        atomic_fetch_add(&e->bytes_read, n);
        atomic_fetch_add(&e->bytes_mapped, n);
        return moec_engine_check_copy(w, p, at, to, mapped + at, n);
    }
    if (e->o.verify == MOEC_ENGINE_SHA256)
        room = room_for_pair(w);
    MOEC_TRY(moec_engine_read_plain(
        e, r->file, p->off + at, room != NULL ? room : to, (size_t)n, &w->err));
    return room != NULL ? moec_engine_check_copy(w, p, at, to, room, n)
                        : moec_engine_check(w, p, at, to, n);
}

static moec_status read_leaves(moec_engine_worker *w, const moec_request *r)
{
    moec_engine *e = w->e;
    uint64_t step =
        e->o.verify == MOEC_ENGINE_SHA256 ? PAIR_BYTES : MOEC_LEAF_BYTES;
    const unsigned char *mapped;

    MOEC_TRY(find_mapped(w, r, &mapped));
    for (uint32_t i = 0; i < r->n_parts; i++) {
        const moec_part *p = &e->parts[r->first + i];

        if (p->same)
            continue;
        if (!e->pieces[p->piece].checked) {
            MOEC_TRY(moec_engine_read_plain(e, r->file, p->off,
                                            moec_engine_place(e, p),
                                            (size_t)p->bytes, &w->err));
            continue;
        }
        for (uint64_t at = 0; at < p->bytes; at += step)
            MOEC_TRY(
                read_leaf(w, r, p, at, moec_min_u64(step, p->bytes - at),
                          mapped != NULL ? mapped + (p->off - r->off) : NULL));
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
