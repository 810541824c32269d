/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What happens to bytes that have been read: each leaf is digested while it is
 * in this core's cache, then copied to its places.
 */

#include <string.h>
#include <time.h>

#include "engine_parts.h"

#define LEAVES_AT_ONCE 2u /* SHA-256 has two lanes */

double moec_engine_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

unsigned char *moec_engine_place(const moec_engine *e, const moec_part *p)
{
    const moec_engine_piece *g = &e->pieces[p->piece];

    if (g->p.dst == NULL)
        return NULL;
    if (g->flat)
        return g->p.dst + p->at;
    if (g->flat_src || p->n_rows != 1 || g->p.src_col != 1 || g->p.dst_col != 1)
        return NULL;
    return g->p.dst + p->at * g->p.dst_row + p->c0;
}

/* ------------------------------------------------------------- digests */

moec_status moec_engine_wrong_leaf(moec_engine_worker *w, const moec_part *p,
                                   uint64_t leaf, bool sha256,
                                   const void *expected, const void *found)
{
    size_t n = sha256 ? sizeof(moec_sha256) : sizeof(moec_xxh128);
    const moec_engine *e = w->e;
    const moec_engine_piece *g = &e->pieces[p->piece];
    char what[256] = "", want[65], have[65];

    moec_hex(expected, n, want);
    moec_hex(found, n, have);
    if (e->o.describe != NULL)
        e->o.describe(e->o.ctx, &g->p, what, sizeof(what));
    else
        snprintf(what, sizeof(what), "piece %u", g->p.tag);
    return moec_fail_at(&w->err, MOEC_E_INTEGRITY,
                        g->p.leaf_rule != MOEC_RULE_NONE ? g->p.leaf_rule
                                                         : MOEC_RULE_T3,
                        g->p.off + leaf * MOEC_LEAF_BYTES,
                        "%s: %s: leaf %ju, from byte %ju of the file on, has "
                        "%s %s, must have %s",
                        e->files[g->p.file].f->name, what, (uintmax_t)leaf,
                        (uintmax_t)(g->p.off + leaf * MOEC_LEAF_BYTES),
                        sha256 ? "SHA-256" : "XXH3-128", have, want);
}

static moec_status check_xxh3(moec_engine_worker *w, const moec_part *p,
                              uint64_t leaf, const unsigned char *data,
                              uint64_t n)
{
    const moec_leaf *l = &w->e->pieces[p->piece].p.leaves[leaf];

    for (uint64_t k; n > 0; n -= k, data += k, l++, leaf++) {
        moec_xxh128 h;

        k = moec_min_u64(n, MOEC_LEAF_BYTES);
        h = moec_xxh128_of(data, (size_t)k);
        if (memcmp(h.b, l->xxh128.b, sizeof(h.b)) != 0)
            return moec_engine_wrong_leaf(w, p, leaf, false, l->xxh128.b, h.b);
    }
    return MOEC_OK;
}

moec_status moec_engine_compare(moec_engine_worker *w, const moec_part *p,
                                uint64_t leaf, const moec_sha256 *found,
                                size_t n)
{
    const moec_leaf *l = &w->e->pieces[p->piece].p.leaves[leaf];

    for (size_t i = 0; i < n; i++)
        if (memcmp(found[i].b, l[i].sha256.b, sizeof(found[i].b)) != 0)
            return moec_engine_wrong_leaf(w, p, leaf + i, true, l[i].sha256.b,
                                          found[i].b);
    return MOEC_OK;
}

static moec_status check_sha256(moec_engine_worker *w, const moec_part *p,
                                uint64_t leaf, const unsigned char *data,
                                uint64_t n)
{
    for (uint64_t k; n > 0; n -= k, data += k, leaf += LEAVES_AT_ONCE) {
        moec_sha256 h[LEAVES_AT_ONCE];

        k = moec_min_u64(n, LEAVES_AT_ONCE * MOEC_LEAF_BYTES);
        MOEC_TRY(
            moec_sha256_leaves(data, (size_t)k, MOEC_LEAF_BYTES, h, &w->err));
        MOEC_TRY(moec_engine_compare(
            w, p, leaf, h, (size_t)moec_ceil_div(k, MOEC_LEAF_BYTES)));
    }
    return MOEC_OK;
}

moec_status moec_engine_check(moec_engine_worker *w, const moec_part *p,
                              uint64_t at, const unsigned char *data,
                              uint64_t n)
{
    moec_engine *e = w->e;
    uint64_t leaf = (p->at + at) / MOEC_LEAF_BYTES;
    double t = moec_engine_now();
    moec_status st;

    if (!e->pieces[p->piece].checked)
        return MOEC_OK;
    if (e->o.verify == MOEC_ENGINE_SHA256)
        st = check_sha256(w, p, leaf, data, n);
    else
        st = check_xxh3(w, p, leaf, data, n);
    atomic_fetch_add(&e->digest_ns, (uint64_t)((moec_engine_now() - t) * 1e9));
    atomic_fetch_add(&e->bytes_verified, n);
    return st;
}

/* Are the leaves of this part those of the part before, with its source? */
static bool checked_before(const moec_engine *e, const moec_part *p)
{
    return p->same && e->pieces[p->piece].checked &&
           e->pieces[p->piece].p.leaves == e->pieces[p[-1].piece].p.leaves;
}

/* -------------------------------------------------------------- copies */

moec_status moec_engine_sink_copy(moec_engine_worker *w, moec_engine_op *op,
                                  unsigned char *dst, const moec_grid *g,
                                  const unsigned char *src)
{
    moec_engine *e = w->e;
    const moec_engine_sink *s = e->o.sink;
    uint64_t ticket = 0;
    moec_status st;

    pthread_mutex_lock(&e->sink_lock);
    st = s->copy(s->ctx, dst, g->dst_row, src, g->src_row,
                 g->n_cols * g->elem_bytes, g->n_rows, &ticket, &w->err);
    pthread_mutex_unlock(&e->sink_lock);
    op->ticket = moec_max_u64(op->ticket, ticket);
    return st;
}

/* A device copies rows, not elements: turn them in the slot behind the ops',
 * so that their smaller stride in memory is adjacent there. */
static moec_status sink_turned(moec_engine_worker *w, moec_engine_op *op,
                               unsigned char *dst, const moec_grid *g,
                               const unsigned char *src)
{
    moec_engine *e = w->e;
    const moec_engine_sink *s = e->o.sink;
    unsigned char *room = w->ops[0].slot + e->n_slots * e->part_bytes;
    moec_grid turned = *g;
    int done = 0;

    if (g->n_rows > 1 && (g->n_cols == 1 || g->dst_col > g->dst_row))
        turned = (moec_grid){g->elem_bytes, g->n_cols,  g->n_rows, g->src_col,
                             g->src_row,    g->dst_col, g->dst_row};
    moec_grid rows = turned;
    if (w->bounce_ticket != 0) {
        moec_status st;

        pthread_mutex_lock(&e->sink_lock);
        st = s->poll(s->ctx, w->bounce_ticket, 1, &done, &w->err);
        pthread_mutex_unlock(&e->sink_lock);
        MOEC_TRY(st);
    }
    turned.dst_col = g->elem_bytes;
    turned.dst_row = turned.n_cols * g->elem_bytes;
    moec_scatter(&turned, room, src);
    if (rows.n_cols > 1 && rows.dst_col != g->elem_bytes) {
        /* gaps on both axes: an element is a row */
        for (uint64_t r = 0; r < rows.n_rows; r++) {
            moec_grid one = {.elem_bytes = g->elem_bytes,
                             .n_rows = rows.n_cols,
                             .n_cols = 1,
                             .src_row = g->elem_bytes,
                             .dst_row = rows.dst_col};
            MOEC_TRY(moec_engine_sink_copy(w, op, dst + r * rows.dst_row, &one,
                                           room + r * turned.dst_row));
        }
    } else {
        rows.src_row = turned.dst_row;
        MOEC_TRY(moec_engine_sink_copy(w, op, dst, &rows, room));
    }
    w->bounce_ticket = op->ticket;
    return MOEC_OK;
}

static moec_status put(moec_engine_worker *w, moec_engine_op *op,
                       unsigned char *dst, const moec_grid *g,
                       const unsigned char *src)
{
    if (g->n_rows == 0 || g->n_cols == 0)
        return MOEC_OK;
    if (w->e->o.sink == NULL) {
        moec_scatter(g, dst, src);
        return MOEC_OK;
    }
    if (g->src_col == g->elem_bytes && g->dst_col == g->elem_bytes)
        return moec_engine_sink_copy(w, op, dst, g, src);
    return sink_turned(w, op, dst, g, src);
}

/* Elements [a, b) of a piece that is adjacent in the file: a head row, whole
 * rows, a tail row. */
static moec_status put_range(moec_engine_worker *w, moec_engine_op *op,
                             const moec_piece *q, uint64_t a, uint64_t b,
                             const unsigned char *src)
{
    moec_grid g = {.elem_bytes = q->elem_bytes,
                   .src_row = q->src_row,
                   .src_col = q->src_col,
                   .dst_row = q->dst_row,
                   .dst_col = q->dst_col};

    while (a < b) {
        uint64_t row = a / q->n_cols, col = a % q->n_cols;

        g.n_rows = 1;
        g.n_cols = moec_min_u64(q->n_cols - col, b - a);
        if (col == 0 && b - a >= q->n_cols)
            g.n_rows = (b - a) / q->n_cols;
        MOEC_TRY(
            put(w, op, q->dst + row * q->dst_row + col * q->dst_col, &g, src));
        a += g.n_rows * g.n_cols;
        src += g.n_rows * g.n_cols * q->elem_bytes;
    }
    return MOEC_OK;
}

/* The bytes of a hull before byte `at` of it that are its piece's. */
static uint64_t before(const moec_engine_piece *g, uint64_t at)
{
    const moec_piece *q = &g->p;
    uint64_t run = q->n_cols * q->elem_bytes, row;

    if (at <= g->skip)
        return 0;
    row = (at - g->skip) / q->src_row;
    if (row >= q->n_rows)
        return q->n_rows * run;
    return row * run + moec_min_u64((at - g->skip) % q->src_row, run);
}

uint64_t moec_engine_of_hull(const moec_engine_piece *g, uint64_t from,
                             uint64_t to)
{
    return before(g, to) - before(g, from);
}

/* What of bytes [at, end) of a hull, whose first stands at `src`, is the
 * piece's: a head row, whole rows, a tail row. */
static moec_status put_hull(moec_engine_worker *w, moec_engine_op *op,
                            const moec_engine_piece *h, uint64_t at,
                            uint64_t end, const unsigned char *src)
{
    const moec_piece *q = &h->p;
    uint64_t run = q->n_cols * q->elem_bytes, begin = at;
    moec_grid g = {q->elem_bytes, 1,          q->n_cols, q->src_row,
                   q->src_col,    q->dst_row, q->dst_col};

    at = moec_max_u64(at, h->skip);
    while (at < end) {
        uint64_t row = (at - h->skip) / q->src_row;
        uint64_t col = (at - h->skip) % q->src_row, step = q->src_row - col;

        if (row >= q->n_rows)
            break;
        g.n_rows = 1;
        g.n_cols = 0;
        if (col == 0 && end - at >= run) {
            g.n_rows = moec_min_u64(q->n_rows - row,
                                    (end - at - run) / q->src_row + 1);
            g.n_cols = q->n_cols;
            step = g.n_rows * q->src_row;
        } else if (col < run) {
            g.n_cols = moec_min_u64(run - col, end - at) / q->elem_bytes;
        }
        MOEC_TRY(put(
            w, op, q->dst + row * q->dst_row + col / q->elem_bytes * q->dst_col,
            &g, src + (at - begin)));
        at += step;
    }
    return MOEC_OK;
}

/* Copy bytes [from, from + n) of a part, whose first stands at `src`. */
static moec_status put_part(moec_engine_worker *w, moec_engine_op *op,
                            const moec_part *p, uint64_t from, uint64_t n,
                            const unsigned char *src)
{
    const moec_engine_piece *h = &w->e->pieces[p->piece];
    const moec_piece *q = &h->p;
    moec_grid g = {q->elem_bytes, p->n_rows,  p->n_cols, q->src_row,
                   q->src_col,    q->dst_row, q->dst_col};

    if (h->hull)
        return put_hull(w, op, h, p->at + from, p->at + from + n, src);
    if (h->flat_src)
        return put_range(w, op, q, (p->at + from) / q->elem_bytes,
                         (p->at + from + n) / q->elem_bytes, src);
    return put(w, op, q->dst + p->at * q->dst_row + p->c0 * q->dst_col, &g,
               src);
}

/* Bytes to digest and copy in one go: what stays in a core's cache. */
static uint64_t step_of(const moec_engine *e, const moec_part *p)
{
    if (!e->pieces[p->piece].checked)
        return p->bytes;
    return e->o.verify == MOEC_ENGINE_SHA256 ? LEAVES_AT_ONCE * MOEC_LEAF_BYTES
                                             : MOEC_LEAF_BYTES;
}

moec_status moec_engine_place_all(moec_engine_worker *w, moec_engine_op *op,
                                  unsigned char *data)
{
    const moec_engine *e = w->e;
    const moec_request *r = op->r;

    for (uint32_t i = 0; i < r->n_parts; i++) {
        const moec_part *p = &e->parts[r->first + i];
        unsigned char *src = data + (p->off - r->off);
        uint64_t step = step_of(e, p), n;

        if (e->o.visit != NULL) {
            MOEC_TRY(e->o.visit(e->o.ctx, &e->pieces[p->piece].p, p->at, src,
                                p->bytes, &w->err));
            continue;
        }
        for (uint64_t at = 0; at < p->bytes; at += n) {
            n = moec_min_u64(step, p->bytes - at);
            if (!checked_before(e, p))
                MOEC_TRY(moec_engine_check(w, p, at, src + at, n));
            MOEC_TRY(put_part(w, op, p, at, n, src + at));
        }
    }
    return MOEC_OK;
}

moec_status moec_engine_settle(moec_engine_worker *w, const moec_request *r,
                               bool check)
{
    const moec_engine *e = w->e;
    const unsigned char *first = NULL;

    for (uint32_t i = 0; i < r->n_parts; i++) {
        const moec_part *p = &e->parts[r->first + i];

        if (p->same)
            memcpy(moec_engine_place(e, p), first, (size_t)p->bytes);
        else
            first = moec_engine_place(e, p);
        if ((check || p->same) && !checked_before(e, p))
            MOEC_TRY(moec_engine_check(w, p, 0, first, p->bytes));
    }
    return MOEC_OK;
}
