/* SPDX-License-Identifier: Apache-2.0 */

/*
 * From pieces (engine_pieces.c) to requests: joined, cut.
 *
 * Joining: two stretches are one request where that reads no page more than
 * they would alone, or where the gap costs less than a request would: at most
 * GAP_BYTES, and a hundredth of what is read. Cutting: a piece that is adjacent
 * in the file anywhere, at a page of the file where it can be, or at a leaf
 * where leaves are checked; another by rows, or by columns where a row is too
 * long. Large runs that direct reads can put into their place stay apart from
 * what cannot.
 */

#include <stdlib.h>
#include <string.h>

#include "engine_parts.h"

#define GAP_BYTES     (UINT64_C(64) << 10)
#define GAP_SHARE     128u
#define ROW_GAP_BYTES (UINT64_C(16) << 10)
#define RUN_BYTES     (UINT64_C(1) << 20) /* a run worth its own request */
/* Vectors of one preadv: parts, and the gaps between them. */
#define STRAIGHT_PARTS_MAX 128u

/* --------------------------------------------------------------- atoms
 * What can be cut no further but by the cutter below: whole pieces that are
 * adjacent in the file, bands of rows of others. An atom is a part. */

typedef struct atoms {
    moec_part *a;
    size_t n, cap;
    moec_error *err;
} atoms;

static moec_status push(atoms *v, const moec_part *p)
{
    if (!MOEC_GROW(v->a, v->n, v->cap))
        return moec_fail_nomem(v->err, "the requests of a load");
    v->a[v->n++] = *p;
    return MOEC_OK;
}

static uint64_t row_extent(const moec_engine_piece *g, uint64_t n_cols)
{
    return (n_cols - 1) * g->p.src_col + g->p.elem_bytes;
}

static moec_status add_bands(const moec_engine *e, const moec_engine_piece *g,
                             moec_part p, atoms *out)
{
    uint64_t limit = e->part_bytes / 2, cols = g->p.n_cols, rows = 1;
    uint64_t gap;

    if (row_extent(g, cols) > limit)
        cols = (limit - g->p.elem_bytes) / g->p.src_col + 1;
    uint64_t row = row_extent(g, cols);
    gap = g->p.src_row > row ? g->p.src_row - row : 0;
    if (g->dense || gap <= ROW_GAP_BYTES)
        rows =
            g->p.src_row > 0 ? (limit - row) / g->p.src_row + 1 : g->p.n_rows;
    /* rows that overlap in the file would be more bytes in memory */
    rows =
        moec_min_u64(rows, moec_max_u64(limit / (cols * g->p.elem_bytes), 1));
    for (p.at = 0; p.at < g->p.n_rows; p.at += rows) {
        p.n_rows = moec_min_u64(rows, g->p.n_rows - p.at);
        for (p.c0 = 0; p.c0 < g->p.n_cols; p.c0 += cols) {
            p.n_cols = moec_min_u64(cols, g->p.n_cols - p.c0);
            p.off = g->p.off + p.at * g->p.src_row + p.c0 * g->p.src_col;
            p.bytes = (p.n_rows - 1) * g->p.src_row + row_extent(g, p.n_cols);
            MOEC_TRY(push(out, &p));
        }
    }
    return MOEC_OK;
}

static int part_order(const void *pa, const void *pb)
{
    const moec_part *a = pa, *b = pb;
    int k = moec_engine_order(a->place, b->place);

    k = k != 0 ? k : moec_engine_order(a->off, b->off);
    k = k != 0 ? k : moec_engine_order(a->bytes, b->bytes);
    return k != 0 ? k : moec_engine_order(a->piece, b->piece);
}

static moec_status make_atoms(const moec_engine *e, atoms *out)
{
    uint32_t place = 0;
    bool sorted = true;

    for (size_t i = 0; i < e->n_pieces; i++) {
        const moec_engine_piece *g = &e->pieces[i];
        moec_part p = {.piece = (uint32_t)i, .off = g->p.off};

        if (i > 0 && (g[-1].p.group != g->p.group || g[-1].p.file != g->p.file))
            place++;
        p.place = place;
        p.bytes = g->src_bytes;
        if (g->flat_src) {
            MOEC_TRY(push(out, &p));
        } else {
            sorted = false;
            MOEC_TRY(add_bands(e, g, p, out));
        }
    }
    if (!sorted)
        qsort(out->a, out->n, sizeof(*out->a), part_order);
    return MOEC_OK;
}

/* ------------------------------------------------------------- cutting */

typedef struct cutter {
    moec_engine *e;
    atoms parts;
    size_t cap_requests;
    bool open;
    moec_request cur;
    uint32_t place;
    uint64_t end;       /* of cur, in the file */
    bool run;           /* cur is adjacent in memory too */
    unsigned char *dst; /* of the run's first byte */
    uint64_t waste;     /* gaps in cur */
    moec_error *err;
} cutter;

static uint64_t page_down(uint64_t v)
{
    return v & ~(MOEC_ENGINE_PAGE - 1);
}

static uint64_t page_up(uint64_t v)
{
    return page_down(v + MOEC_ENGINE_PAGE - 1); /* file sizes are int64 */
}

/* Can direct reads put the run into its place? */
static bool can_place(const cutter *c)
{
    const moec_engine_fd *f = &c->e->files[c->cur.file];
    uint64_t head;

    if (!c->run || f->direct_fd < 0 || (c->e->o.sink != NULL && f->own == NULL))
        return false;
    head = -c->cur.off & (f->off_align - 1);
    return ((uintptr_t)c->dst + head) % f->mem_align == 0;
}

static moec_status close_request(cutter *c)
{
    moec_engine *e = c->e;
    moec_request *r = &c->cur;
    bool fits;

    if (!c->open)
        return MOEC_OK;
    c->open = false;
    r->bytes = c->end - r->off;
    fits = can_place(c) && r->bytes >= 4 * MOEC_ENGINE_PAGE;
    r->in_place = fits && e->o.sink == NULL;
    r->offered = fits && e->o.sink != NULL;
    r->n_parts = (uint32_t)(c->parts.n - r->first);
    if (e->o.sink != NULL || r->n_parts > STRAIGHT_PARTS_MAX)
        r->straight = false;
    if (!MOEC_GROW(e->requests, e->n_requests, c->cap_requests))
        return moec_fail_nomem(c->err, "the requests of a load");
    e->requests[e->n_requests++] = *r;
    return MOEC_OK;
}

/* Does a stretch at `off` belong into the request that is open? */
static bool joins(const cutter *c, const moec_part *p, uint64_t off,
                  const unsigned char *dst)
{
    uint64_t gap, pages;
    bool runs_on;

    if (!c->open || p->place != c->place || off < c->cur.off)
        return false;
    runs_on = c->run && dst != NULL && off == c->end &&
              dst == c->dst + (c->end - c->cur.off);
    if (!runs_on && c->end - c->cur.off >= RUN_BYTES && can_place(c))
        return false;
    if (off <= c->end)
        return true;
    gap = off - c->end;
    pages =
        page_down(off) > page_up(c->end) ? page_down(off) - page_up(c->end) : 0;
    return pages <= MOEC_ENGINE_PAGE ||
           (gap <= GAP_BYTES &&
            (c->waste + gap) * GAP_SHARE <= c->end - c->cur.off + p->bytes);
}

/* How much of a piece that is adjacent in the file fits from `off` on. */
static uint64_t fitting(const cutter *c, const moec_engine_piece *g,
                        uint64_t off, uint64_t at, uint64_t left)
{
    uint64_t begin = page_down(c->open ? c->cur.off : off);
    uint64_t end = begin + c->e->part_bytes;

    if (end <= off)
        return 0;
    if (end - off >= left)
        return left;
    return (at + (end - off)) / g->unit * g->unit - at;
}

static void begin_request(cutter *c, const moec_part *p, uint64_t off,
                          unsigned char *dst)
{
    const moec_piece *q = &c->e->pieces[p->piece].p;

    c->open = true;
    c->place = p->place;
    c->cur = (moec_request){.off = off,
                            .first = c->parts.n,
                            .file = q->file,
                            .group = q->group,
                            .straight = true};
    c->end = off;
    c->run = dst != NULL;
    c->dst = dst;
    c->waste = 0;
}

/* Put a part into the open request, of which it needs so many bytes more;
 * `same`: its source is that of the part before. */
static moec_status add_part(cutter *c, moec_part p, uint64_t needed, bool same)
{
    unsigned char *dst = moec_engine_place(c->e, &p);

    p.same = same;
    c->cur.needed += needed;
    if (!same) {
        if (dst == NULL || p.off < c->end)
            c->cur.straight = false;
        if (p.off > c->end)
            c->waste += p.off - c->end;
        if (dst == NULL || p.off != c->end ||
            dst != c->dst + (c->end - c->cur.off))
            c->run = false;
        c->end = moec_max_u64(c->end, p.off + p.bytes);
    } else if (dst == NULL) {
        c->cur.straight = false;
        c->run = false;
    }
    return push(&c->parts, &p);
}

/* A bundle of atoms with the same source, adjacent in the file. */
static moec_status cut_flat(cutter *c, const moec_part *a, size_t n)
{
    moec_part p = a[0];
    const moec_engine_piece *g = NULL;

    /* all cut alike: at leaves if one of them must be */
    for (size_t i = 0; i < n; i++) {
        const moec_engine_piece *h = &c->e->pieces[a[i].piece];
        if (g == NULL || h->unit > g->unit)
            g = h;
    }
    for (uint64_t at = 0; at < a[0].bytes; at += p.bytes) {
        unsigned char *dst;
        uint64_t take;

        p.at = at;
        p.off = a[0].off + at;
        p.bytes = a[0].bytes - at;
        dst = moec_engine_place(c->e, &p);
        take = fitting(c, g, p.off, at, p.bytes);
        if (!joins(c, &p, p.off, dst) || take == 0) {
            MOEC_TRY(close_request(c));
            begin_request(c, &p, p.off, dst);
            take = fitting(c, g, p.off, at, p.bytes);
        }
        p.bytes = take;
        for (size_t i = 0; i < n; i++) {
            const moec_engine_piece *h = &c->e->pieces[a[i].piece];
            uint64_t needed = 0;

            p.piece = a[i].piece;
            if (i == 0 ||
                !moec_engine_same_wanted(&c->e->pieces[a[i - 1].piece], h))
                needed = h->hull ? moec_engine_of_hull(h, at, at + take) : take;
            MOEC_TRY(add_part(c, p, needed, i > 0));
        }
    }
    return MOEC_OK;
}

static moec_status cut_band(cutter *c, const moec_part *p, bool same)
{
    const moec_engine_piece *g = &c->e->pieces[p->piece];
    unsigned char *dst = moec_engine_place(c->e, p);

    if (!joins(c, p, p->off, dst) ||
        p->off + p->bytes > page_down(c->cur.off) + c->e->part_bytes) {
        MOEC_TRY(close_request(c));
        begin_request(c, p, p->off, dst);
        same = false;
    }
    return add_part(c, *p, same ? 0 : p->n_rows * p->n_cols * g->p.elem_bytes,
                    same);
}

static moec_status cut(cutter *c, const atoms *v)
{
    const moec_engine_piece *pieces = c->e->pieces;
    size_t n;

    for (size_t i = 0; i < v->n; i += n) {
        const moec_part *a = &v->a[i];

        n = 1;
        if (!pieces[a->piece].flat_src) {
            bool same = i > 0 && a[-1].place == a->place && a[-1].at == a->at &&
                        a[-1].c0 == a->c0 &&
                        moec_engine_same_source(&pieces[a[-1].piece],
                                                &pieces[a->piece]);
            MOEC_TRY(cut_band(c, a, same));
            continue;
        }
        while (i + n < v->n && a[n].place == a->place &&
               moec_engine_same_source(&pieces[a->piece], &pieces[a[n].piece]))
            n++;
        MOEC_TRY(cut_flat(c, a, n));
    }
    return close_request(c);
}

/* --------------------------------------------------------- the ring's cut */

/* Cold reads of the same ranges took 1.09 times the limit with 2 MiB, 1.17
 * with 4; where leaves are checked there must be two for SHA-256's lanes. */
#define PART_BYTES         (UINT64_C(2) << 20)
#define PART_BYTES_CHECKED (UINT64_C(4) << 20)
#define PART_LEAST         (UINT64_C(128) << 10)

/* Threads, slots and their size from the memory there is. */
static moec_status choose_ring(moec_engine *e, moec_error *err)
{
    uint64_t least = PART_LEAST, part = PART_BYTES, slots;
    uint32_t extra = e->o.sink != NULL ? 1 : 0; /* to turn pieces in */

    for (size_t i = 0; i < e->n_pieces; i++)
        if (e->pieces[i].checked || e->o.visit != NULL) {
            least = MOEC_LEAF_BYTES + MOEC_ENGINE_PAGE;
            part = PART_BYTES_CHECKED;
        }
    if (e->o.ring_bytes < least * (1 + extra))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "a ring of %ju bytes is too small for this load: it "
                         "takes %ju",
                         (uintmax_t)e->o.ring_bytes,
                         (uintmax_t)(least * (1 + extra)));
    while (part / 2 >= least &&
           e->o.ring_bytes / part < (2 + extra) * e->n_threads)
        part /= 2;
    if (part > least && e->o.ring_bytes / part < (1 + extra) * e->n_threads)
        part = least;
    slots = e->o.ring_bytes / part;
    if (slots < (1 + extra) * (uint64_t)e->n_threads)
        e->n_threads = (uint32_t)(slots / (1 + extra));
    e->part_bytes = part;
    e->n_slots = (uint32_t)moec_min_u64(slots / e->n_threads, 64);
    return MOEC_OK;
}

/* NOLINTNEXTLINE(readability-function-size) */
moec_status moec_engine_make_plan(moec_engine *e, const moec_piece *pieces,
                                  size_t n, moec_error *err)
{
    cutter c = {.e = e, .err = err};
    atoms v = {.err = err};
    moec_status st;

    c.parts.err = err;
    MOEC_TRY(moec_engine_take_pieces(e, pieces, n, err));
    for (size_t i = 0; i < e->n_pieces; i++)
        e->files[e->pieces[i].p.file].used = true;
    MOEC_TRY(choose_ring(e, err));
    MOEC_TRY(moec_engine_open_files(e, err));
    st = make_atoms(e, &v);
    if (st == MOEC_OK)
        st = cut(&c, &v);
    e->parts = c.parts.a;
    e->n_parts = c.parts.n;
    moec_free(v.a);
    if (st != MOEC_OK)
        return st;
    for (size_t i = 0; i < e->n_requests; i++)
        e->left[e->requests[i].group]++;
    return MOEC_OK;
}
