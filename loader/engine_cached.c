/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Requests through the page cache, at once: into the destination where the
 * parts allow it, leaf by leaf where leaves are checked; else into the slot.
 */

#include <errno.h>
#include <sys/mman.h>
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
/* Of each leaf of a pair at a time: twice that, and as much that is fetched
 * ahead, stay in a core's own cache. 32 KiB to 128 make no difference. */
#define BLOCK_BYTES (UINT64_C(64) << 10)
#define HUGE_BYTES  (UINT64_C(2) << 20) /* what the kernel maps at once */

#ifndef MADV_POPULATE_READ
#  define MADV_POPULATE_READ 22 /* Linux 5.14 */
#endif

/* The cached pages of a request, in a mapping that nobody reads: prefetch
 * instructions bring them into this core's cache before pread copies them.
 * Those cannot fault, so a file that is shortened meanwhile is pread's to say;
 * a load through the mapping would be SIGBUS. Nothing is populated from the
 * disk, and failing to have a window is no error. */
typedef struct window {
    unsigned char *map;
    size_t bytes;
    const unsigned char *data; /* the request's first byte; NULL: no window */
} window;

static window open_window(const moec_engine *e, const moec_request *r)
{
    int fd = e->files[r->file].f->fd;
    uint64_t begin = r->off / HUGE_BYTES * HUGE_BYTES;
    uint64_t first = r->off / BLOCK_BYTES * BLOCK_BYTES; /* a page's, too */
    uint64_t end = r->off + r->bytes;
    window v = {.bytes = (size_t)(end - begin)};
    void *p;

    if (fd < 0 || e->o.verify != MOEC_ENGINE_SHA256 || r->bytes < PAIR_BYTES ||
        !moec_io_is_cached(fd, first, end - first))
        return v;
    p = mmap(NULL, v.bytes, PROT_READ, MAP_SHARED, fd, (off_t)begin);
    if (p == MAP_FAILED)
        return v;
    v.map = p;
    if (madvise(v.map + (first - begin), (size_t)(end - first),
                MADV_POPULATE_READ) == 0)
        v.data = v.map + (r->off - begin);
    return v;
}

static void close_window(const window *v)
{
    if (v->map != NULL)
        munmap(v->map, v->bytes);
}

/* A slot of the ring that has room for the blocks of a pair and that nothing is
 * read into, or NULL. */
static unsigned char *room_for_pair(const moec_engine_worker *w)
{
    const moec_engine *e = w->e;

    for (uint32_t i = 0; e->part_bytes >= 2 * BLOCK_BYTES && i < e->n_slots;
         i++)
        if (w->ops[i].state == MOEC_OP_FREE)
            return w->ops[i].slot;
    return NULL;
}

/* Two leaves from byte `at` of the part on: block by block through `room`, from
 * where SHA-256 copies on the way, at no cost. */
static moec_status read_pair(moec_engine_worker *w, const moec_request *r,
                             const moec_part *p, uint64_t at,
                             moec_sha256_pair *h, unsigned char *room,
                             const window *v)
{
    moec_engine *e = w->e;
    unsigned char *to = moec_engine_place(e, p) + at;
    uint64_t from = p->off + at, end = r->off + r->bytes;
    moec_sha256 found[2];
    double t, seconds = 0;

    for (uint64_t k = 0; k < MOEC_LEAF_BYTES; k += BLOCK_BYTES) {
        bool last = k + BLOCK_BYTES == MOEC_LEAF_BYTES;
        moec_sha256_block b[2];

        for (uint64_t m = 0; m < 2; m++) {
            uint64_t off = from + m * MOEC_LEAF_BYTES + k;
            uint64_t next = off + BLOCK_BYTES + (last ? MOEC_LEAF_BYTES : 0);
            unsigned char *block = room + m * BLOCK_BYTES;

            MOEC_TRY(moec_engine_read_plain(e, r->file, off, block,
                                            (size_t)BLOCK_BYTES, &w->err));
            b[m] =
                (moec_sha256_block){block, block, to + m * MOEC_LEAF_BYTES + k};
            if (v->data != NULL && next + BLOCK_BYTES <= end)
                b[m].ahead = v->data + (next - r->off);
        }
        t = moec_engine_now();
        moec_sha256_pair_update(h, b, (size_t)BLOCK_BYTES);
        seconds += moec_engine_now() - t;
    }
    moec_sha256_pair_final(h, found);
    atomic_fetch_add(&e->digest_ns, (uint64_t)(seconds * 1e9));
    atomic_fetch_add(&e->bytes_verified, PAIR_BYTES);
    if (v->data != NULL)
        atomic_fetch_add(&e->bytes_ahead, PAIR_BYTES);
    return moec_engine_compare(w, p, (p->at + at) / MOEC_LEAF_BYTES, found, 2);
}

/* Into its place, and digested while it is in this core's cache. */
static moec_status read_leaf(moec_engine_worker *w, const moec_request *r,
                             const moec_part *p, uint64_t at, uint64_t n,
                             const window *v)
{
    moec_engine *e = w->e;
    unsigned char *to = moec_engine_place(e, p) + at, *room = NULL;
    moec_sha256_pair h;

    if (n == PAIR_BYTES && e->files[r->file].f->fd >= 0)
        room = room_for_pair(w);
    if (room != NULL && moec_sha256_pair_begin(&h))
        return read_pair(w, r, p, at, &h, room, v);
    MOEC_TRY(moec_engine_read_plain(e, r->file, p->off + at, to, (size_t)n,
                                    &w->err));
    return moec_engine_check(w, p, at, to, n);
}

static moec_status read_part(moec_engine_worker *w, const moec_request *r,
                             const moec_part *p, const window *v)
{
    moec_engine *e = w->e;
    uint64_t step =
        e->o.verify == MOEC_ENGINE_SHA256 ? PAIR_BYTES : MOEC_LEAF_BYTES;

    if (!e->pieces[p->piece].checked)
        return moec_engine_read_plain(e, r->file, p->off,
                                      moec_engine_place(e, p), (size_t)p->bytes,
                                      &w->err);
    for (uint64_t at = 0; at < p->bytes; at += step)
        MOEC_TRY(read_leaf(w, r, p, at, moec_min_u64(step, p->bytes - at), v));
    return MOEC_OK;
}

static moec_status read_leaves(moec_engine_worker *w, const moec_request *r)
{
    window v = open_window(w->e, r);
    moec_status st = MOEC_OK;

    for (uint32_t i = 0; st == MOEC_OK && i < r->n_parts; i++)
        if (!w->e->parts[r->first + i].same)
            st = read_part(w, r, &w->e->parts[r->first + i], &v);
    close_window(&v);
    return st;
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
