/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The pieces of an engine: checked, turned, sorted by (group, file, offset).
 * Refuses what leaves its file or 64 bits, digests over columns that are not
 * adjacent in the file, and places where there is a visitor.
 */

#include <stdlib.h>

#include "engine_parts.h"

#define ELEM_BYTES_MAX 4096u

static void swap_axes(moec_piece *p)
{
    uint64_t n = p->n_rows, s = p->src_row, d = p->dst_row;

    p->n_rows = p->n_cols;
    p->src_row = p->src_col;
    p->dst_row = p->dst_col;
    p->n_cols = n;
    p->src_col = s;
    p->dst_col = d;
}

/* Bytes from the first to the last of n rows and m columns. */
static bool extent(uint64_t n, uint64_t row, uint64_t m, uint64_t col,
                   uint64_t elem, uint64_t *out)
{
    uint64_t a, b;

    return moec_mul_u64(n - 1, row, &a) && moec_mul_u64(m - 1, col, &b) &&
           moec_add_u64(a, b, &a) && moec_add_u64(a, elem, out);
}

/* False where strides or sizes do not fit into 64 bits. */
static bool settle(moec_engine_piece *g)
{
    moec_piece *p = &g->p;
    uint64_t bytes, src, dst;

    if (p->n_cols == 1 || (p->n_rows > 1 && p->src_col > p->src_row))
        swap_axes(p);
    if (p->n_cols == 1) {
        p->src_col = p->elem_bytes;
        p->dst_col = p->elem_bytes;
    }
    if (!moec_mul_u64(p->n_rows, p->n_cols, &bytes) ||
        !moec_mul_u64(bytes, p->elem_bytes, &bytes) ||
        !extent(p->n_rows, p->n_rows > 1 ? p->src_row : 0, p->n_cols,
                p->src_col, p->elem_bytes, &g->src_bytes) ||
        !extent(p->n_rows, p->n_rows > 1 ? p->dst_row : 0, p->n_cols,
                p->dst_col, p->elem_bytes, &dst) ||
        (p->dst != NULL && dst > UINTPTR_MAX - (uintptr_t)p->dst) ||
        !moec_mul_u64(p->n_cols, p->src_col, &src) ||
        !moec_mul_u64(p->n_cols, p->dst_col, &dst))
        return false;
    if (p->n_rows > 1 && p->src_row == src && p->dst_row == dst) {
        p->n_cols *= p->n_rows;
        p->n_rows = 1;
    }
    if (p->src_col == p->elem_bytes && p->dst_col == p->elem_bytes) {
        p->n_cols *= p->elem_bytes;
        p->src_col = p->dst_col = 1;
        p->elem_bytes = 1;
    }
    if (p->n_rows == 1) {
        p->src_row = p->n_cols * p->src_col;
        p->dst_row = p->n_cols * p->dst_col;
    }
    g->flat_src =
        p->src_col == p->elem_bytes && p->src_row == p->n_cols * p->src_col;
    g->flat = g->flat_src && p->n_rows == 1 && p->dst_col == p->elem_bytes;
    return true;
}

/* A piece whose leaves cover more than it: the stretch of them instead. False
 * where it is none, or a leaf would cut an element. */
static bool settle_hull(moec_engine_piece *g, const moec_piece *in)
{
    moec_piece *p = &g->p;
    uint64_t run, bytes, elem = in->elem_bytes;

    *p = *in;
    g->hull = g->flat_src = true;
    g->flat = false;
    g->skip = p->lead;
    if (p->n_cols > 1 && p->src_col != elem)
        return false;
    if (p->n_cols == 1 || p->dst_col == elem) { /* bytes */
        if (!moec_mul_u64(p->n_cols, elem, &p->n_cols))
            return false;
        p->elem_bytes = 1;
        p->dst_col = elem = 1;
    }
    if (!moec_mul_u64(p->n_cols, elem, &run))
        return false;
    if (p->n_rows == 1)
        p->src_row = run;
    if (p->src_row < run || p->src_row % elem != 0 || p->lead % elem != 0 ||
        p->lead > p->off || !extent(p->n_rows, p->src_row, 1, 0, run, &bytes) ||
        !moec_add_u64(bytes, p->lead, &bytes) ||
        !moec_add_u64(bytes, p->trail, &g->src_bytes))
        return false;
    p->off -= p->lead;
    p->src_col = elem;
    return true;
}

static moec_status take_piece(const moec_engine *e, const moec_piece *in,
                              size_t i, moec_engine_piece *g, moec_error *err)
{
    const moec_engine_fd *f;
    uint64_t end;
    bool ok, hull;

    *g = (moec_engine_piece){.p = *in};
    if (in->file >= e->n_files || in->group >= e->n_groups ||
        (in->dst == NULL) != (e->o.visit != NULL) || in->elem_bytes == 0 ||
        in->elem_bytes > ELEM_BYTES_MAX)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "piece %zu of a load: file %u of %zu, group %u of %u, "
                         "%u bytes an element",
                         i, in->file, e->n_files, in->group, e->n_groups,
                         in->elem_bytes);
    f = &e->files[in->file];
    g->checked = in->leaves != NULL && e->o.verify != MOEC_ENGINE_NONE;
    ok = settle(g);
    hull = g->checked && (in->lead > 0 || in->trail > 0 || !g->flat_src);
    if (ok && hull)
        ok = e->o.visit == NULL && settle_hull(g, in);
    if (!ok || !moec_add_u64(g->p.off, g->src_bytes, &end) || end > f->f->bytes)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%s: piece %zu of a load reaches beyond the file's "
                         "%ju bytes",
                         f->f->name, i, (uintmax_t)f->f->bytes);
    if (g->checked && MOEC_LEAF_BYTES % g->p.elem_bytes != 0)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%s: piece %zu of a load has elements of %u bytes, "
                         "which its digests cut",
                         f->f->name, i, in->elem_bytes);
    g->unit = g->checked ? (uint32_t)MOEC_LEAF_BYTES : g->p.elem_bytes;
    if (e->o.visit == NULL)
        return MOEC_OK;
    g->unit = in->unit;
    if (!g->flat_src || in->unit == 0 || in->unit > MOEC_LEAF_BYTES)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%s: piece %zu of a load is to be visited by %u "
                         "bytes",
                         f->f->name, i, in->unit);
    return MOEC_OK;
}

static int piece_order(const void *pa, const void *pb)
{
    const moec_engine_piece *a = pa, *b = pb;
    int k = moec_engine_order(a->p.group, b->p.group);

    k = k != 0 ? k : moec_engine_order(a->p.file, b->p.file);
    k = k != 0 ? k : moec_engine_order(a->p.off, b->p.off);
    k = k != 0 ? k : moec_engine_order(a->src_bytes, b->src_bytes);
    k = k != 0 ? k : moec_engine_order(a->p.n_cols, b->p.n_cols);
    k = k != 0 ? k : moec_engine_order(a->skip, b->skip);
    return k != 0 ? k
                  : moec_engine_order((uintptr_t)a->p.dst, (uintptr_t)b->p.dst);
}

bool moec_engine_same_source(const moec_engine_piece *a,
                             const moec_engine_piece *b)
{
    return a->p.group == b->p.group && a->p.file == b->p.file &&
           a->p.off == b->p.off && a->src_bytes == b->src_bytes &&
           a->flat_src == b->flat_src &&
           (a->flat_src ||
            (a->p.n_cols == b->p.n_cols && a->p.n_rows == b->p.n_rows &&
             a->p.src_col == b->p.src_col && a->p.src_row == b->p.src_row &&
             a->p.elem_bytes == b->p.elem_bytes));
}

/* Do the rows of b lie in the gaps between those of a? */
static bool fills(const moec_engine_piece *a, const moec_engine_piece *b)
{
    return a->p.group == b->p.group && a->p.file == b->p.file && !a->flat_src &&
           !b->flat_src && a->p.src_row == b->p.src_row &&
           b->p.off - a->p.off < a->p.src_row;
}

static uint64_t piece_bytes(const moec_engine_piece *g)
{
    return g->p.n_rows * g->p.n_cols * g->p.elem_bytes;
}

bool moec_engine_same_wanted(const moec_engine_piece *before,
                             const moec_engine_piece *g)
{
    const moec_piece *a = &before->p, *b = &g->p;

    return !before->hull ||
           (g->hull && before->skip == g->skip && a->n_rows == b->n_rows &&
            a->src_row == b->src_row && piece_bytes(before) == piece_bytes(g));
}

moec_status moec_engine_take_pieces(moec_engine *e, const moec_piece *pieces,
                                    size_t n, moec_error *err)
{
    size_t m = 0;

    e->pieces = moec_calloc(n + 1, sizeof(*e->pieces));
    if (e->pieces == NULL || n >= UINT32_MAX)
        return moec_fail_nomem(err, "the pieces of a load");
    for (size_t i = 0; i < n; i++)
        if (pieces[i].n_rows > 0 && pieces[i].n_cols > 0)
            MOEC_TRY(take_piece(e, &pieces[i], i, &e->pieces[m++], err));
    e->n_pieces = m;
    if (m > 1)
        qsort(e->pieces, m, sizeof(*e->pieces), piece_order);
    for (size_t i = 0; i < m; i++) {
        moec_engine_piece *g = &e->pieces[i];

        if (i == 0 || !moec_engine_same_source(g - 1, g) ||
            !moec_engine_same_wanted(g - 1, g))
            e->bytes_needed += piece_bytes(g);
        if (i > 0 && fills(g - 1, g))
            g[-1].dense = g->dense = true;
    }
    return MOEC_OK;
}
