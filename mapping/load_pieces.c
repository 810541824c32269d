/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Moves into pieces. See load_pieces.h.
 *
 * A block is a matrix of one or two halves (slot_axes.h), and every move fills
 * a rectangle of it. A window takes a rectangle out of each half and gives it
 * strides in memory. So a piece is the intersection of two rectangles, with
 * the move's strides on the file's side and the window's on the memory's; what
 * is adjacent on both sides is joined to one run.
 *
 * Leaves are of whole stretches, every MiB of them: a piece names how far those
 * that it touches reach beyond it.
 */

#include <inttypes.h>
#include <string.h>

#include "load_pieces.h"

void moec_piece_list_fini(moec_piece_list *l)
{
    moec_free(l->v);
    *l = (moec_piece_list){0};
}

static moec_status append(moec_piece_list *l, const moec_piece *p,
                          moec_error *err)
{
    if (!MOEC_GROW(l->v, l->n, l->cap))
        return moec_fail_nomem(err, "pieces of a load");
    l->v[l->n++] = *p;
    return MOEC_OK;
}

/* ------------------------------------------------------------- the window */

/* Features of a half of the layer's weights along I. */
static uint64_t layer_width(const moec_loading *ld, size_t layer)
{
    for (size_t t = 0; t < moec_plan_n_slot_tensors(ld->plan, layer); t++) {
        moec_slot_axes a = moec_plan_slot_axes(ld->plan, layer, t);
        if (!moec_plan_slot_tensor(ld->plan, layer, t)->is_w2)
            return a.cut == MOEC_CUT_COLS ? a.n_cols : a.n_rows;
    }
    return 0;
}

static moec_status refuse_cut(const moec_loading *ld, size_t layer, size_t t,
                              uint64_t n, const char *why, moec_error *err)
{
    return moec_fail(
        err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
        "'%s' cannot be cut into %" PRIu32 " parts: %" PRIu64 " %s",
        moec_plan_slot_tensor(ld->plan, layer, t)->name, ld->tp_size, n, why);
}

/* A part's share of `n` elements along the cut axis, if it can have one. */
static moec_status check_cut(const moec_loading *ld, size_t layer, size_t t,
                             const moec_slot_axes *a, uint64_t n,
                             moec_error *err)
{
    uint64_t width = layer_width(ld, layer);

    if (a->cut == MOEC_CUT_NEVER)
        return refuse_cut(ld, layer, t, n,
                          "of its elements name groups of the whole expert",
                          err);
    if (a->block != 0 &&
        (width % ld->tp_size != 0 || width / ld->tp_size % a->block != 0))
        return refuse_cut(ld, layer, t, width,
                          "features a half, a part of them is no multiple of "
                          "the scale's block",
                          err);
    if (n % ld->tp_size != 0)
        return refuse_cut(ld, layer, t, n,
                          "of its elements along the expert's width do not "
                          "divide",
                          err);
    return MOEC_OK;
}

static void dense_strides(moec_window *w)
{
    uint64_t run = w->n_cols * w->axes.elem;

    w->row_stride = w->axes.half_in_columns ? w->axes.n_halves * run : run;
    w->half_stride = w->axes.half_in_columns ? run : w->n_rows * w->row_stride;
    w->bytes = w->axes.n_halves * w->n_rows * run;
}

moec_status moec_loading_window(const moec_loading *ld, size_t layer, size_t t,
                                moec_window *out, moec_error *err)
{
    const moec_slot_tensor *s = moec_plan_slot_tensor(ld->plan, layer, t);
    moec_slot_axes a = moec_plan_slot_axes(ld->plan, layer, t);
    moec_window w = {.axes = a, .n_rows = a.n_rows, .n_cols = a.n_cols};

    if (a.n_halves * a.n_rows * a.n_cols * a.elem != s->slot_bytes)
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_T5,
                         "'%s': its halves are not its slot", s->name);
    if (ld->tp_size > 1 && a.cut != MOEC_CUT_NONE) {
        uint64_t n = a.cut == MOEC_CUT_COLS ? a.n_cols : a.n_rows;

        MOEC_TRY(check_cut(ld, layer, t, &a, n, err));
        n /= ld->tp_size;
        if (a.cut == MOEC_CUT_COLS) {
            w.n_cols = n;
            w.col_first = ld->tp_rank * n;
        } else {
            w.n_rows = n;
            w.row_first = ld->tp_rank * n;
        }
    }
    dense_strides(&w);
    *out = w;
    return MOEC_OK;
}

moec_status moec_window_stride(moec_window *w, uint64_t row_stride,
                               uint64_t half_stride, moec_error *err)
{
    uint64_t run = w->n_cols * w->axes.elem, rows;
    bool columns = w->axes.half_in_columns;

    if (row_stride != 0)
        w->row_stride = row_stride;
    if (columns && half_stride == 0 && row_stride != 0)
        half_stride = run;
    if (!moec_mul_u64(w->n_rows, w->row_stride, &rows))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "strides of %" PRIu64 " rows leave 64 bits",
                         w->n_rows);
    w->half_stride = half_stride != 0 ? half_stride : columns ? run : rows;
    bool apart = columns ? w->half_stride >= run &&
                               w->row_stride >=
                                   (w->axes.n_halves - 1) * w->half_stride + run
                         : w->row_stride >= run &&
                               (w->axes.n_halves == 1 ||
                                w->half_stride >= rows - w->row_stride + run);
    if (!apart)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "rows of %" PRIu64 " bytes overlap: row_stride "
                         "%" PRIu64 ", half_stride %" PRIu64,
                         run, w->row_stride, w->half_stride);
    return MOEC_OK;
}

/* ------------------------------------------------------------- the pieces */

/* A rectangle of a half that a move fills, and where its bytes come from. */
typedef struct cutting {
    const moec_loading *ld;
    const moec_window *w;
    const moec_stretch *from;
    const moec_move *m;
    unsigned char *data;
    uint32_t group, tag;
    moec_piece_list *out;
    bool slow;
} cutting;

static uint64_t clip(uint64_t a, uint64_t a_n, uint64_t b, uint64_t b_n,
                     uint64_t *begin)
{
    uint64_t lo = moec_max_u64(a, b), hi = moec_min_u64(a + a_n, b + b_n);

    *begin = lo;
    return hi > lo ? hi - lo : 0;
}

/* One run where both sides are adjacent; one row of it where there is one. */
static void settle(moec_piece *p)
{
    uint64_t run = p->n_cols * p->elem_bytes;

    if (p->n_cols == 1) {
        p->src_col = p->dst_col = p->elem_bytes;
        if (p->n_rows > 1 && p->src_row == p->elem_bytes &&
            p->dst_row == p->elem_bytes) {
            p->n_cols = p->n_rows;
            p->n_rows = 1;
        }
    } else if (p->n_rows > 1 && p->src_col == p->elem_bytes &&
               p->dst_col == p->elem_bytes && p->src_row == run &&
               p->dst_row == run) {
        p->n_cols *= p->n_rows;
        p->n_rows = 1;
    }
    if (p->n_rows == 1) {
        p->src_row = p->n_cols * p->src_col;
        p->dst_row = p->n_cols * p->dst_col;
    }
}

/* Give the piece its leaves, or say that it cannot have them: its columns are
 * not adjacent in the file. */
static bool take_leaves(const cutting *k, moec_piece *p)
{
    uint64_t run = p->n_cols * p->elem_bytes;
    uint64_t begin = p->off - k->from->off;
    uint64_t end = begin + (p->n_rows - 1) * p->src_row + run;
    uint64_t last = moec_min_u64(
        k->from->bytes, moec_ceil_div(end, MOEC_LEAF_BYTES) * MOEC_LEAF_BYTES);

    if (!k->ld->verify || k->from->leaves == NULL)
        return true;
    if (p->src_col != p->elem_bytes || p->src_row < run)
        return false;
    p->lead = begin % MOEC_LEAF_BYTES;
    p->trail = last - end;
    p->leaves = k->from->leaves + begin / MOEC_LEAF_BYTES;
    return true;
}

/* The move's rectangle and the window's, in half `h`. `r0`, `c0`: where the
 * move begins in the half; it may begin in the half before. */
static moec_status cut_half(cutting *k, uint32_t h, uint64_t row, uint64_t col,
                            moec_error *err)
{
    const moec_move *m = k->m;
    const moec_window *w = k->w;
    const moec_slot_axes *a = &w->axes;
    bool columns = a->half_in_columns;
    uint64_t rows_at = columns ? 0 : h * a->n_rows;
    uint64_t cols_at = columns ? h * a->n_cols : 0;
    uint64_t r, c, nr, nc;

    nr = clip(row, m->n_rows, rows_at + w->row_first, w->n_rows, &r);
    nc = clip(col, m->n_cols, cols_at + w->col_first, w->n_cols, &c);
    if (nr == 0 || nc == 0)
        return MOEC_OK;
    moec_piece p = {.file = k->from->file,
                    .group = k->group,
                    .off = k->from->off + m->src_off + (r - row) * m->src_row +
                           (c - col) * m->src_col,
                    .elem_bytes = a->elem,
                    .n_rows = nr,
                    .n_cols = nc,
                    .src_row = m->src_row,
                    .src_col = m->src_col,
                    .dst_row = w->row_stride,
                    .dst_col = a->elem,
                    .tag = k->tag};
    p.dst = k->data + h * w->half_stride +
            (r - rows_at - w->row_first) * w->row_stride +
            (c - cols_at - w->col_first) * a->elem;
    settle(&p);
    return append(k->out, &p, err);
}

/* Two halves that follow each other on both sides are one piece: those of one
 * move, from `first` on. What stands beside them has other leaves. */
static void join_last(moec_piece_list *l, size_t first)
{
    moec_piece *a, *b;
    uint64_t run;

    if (l->n < first + 2)
        return;
    a = &l->v[l->n - 2];
    b = &l->v[l->n - 1];
    if (a->file != b->file || a->elem_bytes != b->elem_bytes ||
        a->src_col != b->src_col || a->dst_col != b->dst_col)
        return;
    run = a->n_cols * a->elem_bytes;
    if (a->n_rows == b->n_rows && a->src_col == a->elem_bytes &&
        a->dst_col == a->elem_bytes && b->off == a->off + run &&
        b->dst == a->dst + run &&
        (a->n_rows == 1 ||
         (a->src_row == b->src_row && a->dst_row == b->dst_row))) {
        a->n_cols += b->n_cols;
        settle(a);
        l->n--;
    } else if (a->n_rows > 1 && a->n_cols == b->n_cols && b->n_rows > 1 &&
               a->src_row == b->src_row && a->dst_row == b->dst_row &&
               b->off == a->off + a->n_rows * a->src_row &&
               b->dst == a->dst + a->n_rows * a->dst_row) {
        a->n_rows += b->n_rows;
        l->n--;
    }
}

/* All that one move brings into the window. */
static moec_status cut_move(cutting *k, moec_error *err)
{
    const moec_slot_axes *a = &k->w->axes;
    uint64_t pitch =
        (a->half_in_columns ? a->n_halves : 1) * a->n_cols * a->elem;
    uint64_t row = k->m->dst_off / pitch;
    uint64_t col = k->m->dst_off % pitch / a->elem;
    size_t begin = k->out->n;

    for (uint32_t h = 0; h < a->n_halves; h++)
        MOEC_TRY(cut_half(k, h, row, col, err));
    join_last(k->out, begin);
    return MOEC_OK;
}

/* The block as it is, as one move. */
static moec_move whole_block(const moec_slot_axes *a)
{
    bool columns = a->half_in_columns;
    moec_move m = {.op = MOEC_OP_COPY,
                   .elem_bytes = (uint16_t)a->elem,
                   .n_rows = (columns ? 1 : a->n_halves) * a->n_rows,
                   .n_cols = (columns ? a->n_halves : 1) * a->n_cols,
                   .src_col = a->elem,
                   .dst_col = a->elem};

    m.src_row = m.dst_row = m.n_cols * a->elem;
    return m;
}

/* Moves of one block: each from its stretch. */
static moec_status cut_moves(cutting *k, const moec_move *moves, size_t n,
                             moec_error *err)
{
    size_t first = k->out->n;

    for (size_t i = 0; i < n && !k->slow; i++) {
        size_t before = k->out->n;
        moec_stretch from;

        if (!moec_loading_tensor(k->ld, moves[i].tensor, &from))
            return moec_fail(
                err, MOEC_E_MAPPING, MOEC_RULE_T1,
                "the conversion does not hold the bytes of "
                "tensor '%s' in one stretch",
                moec_ckpt_tensor(moec_model_ckpt(moec_plan_model(k->ld->plan)),
                                 moves[i].tensor)
                    ->name);
        k->from = &from;
        k->m = &moves[i];
        MOEC_TRY(cut_move(k, err));
        for (size_t j = before; j < k->out->n; j++)
            k->slow = k->slow || !take_leaves(k, &k->out->v[j]);
    }
    if (k->slow)
        k->out->n = first;
    return MOEC_OK;
}

/* NOLINTNEXTLINE(readability-function-size): what, where from, where to */
moec_status moec_loading_block(const moec_loading *ld, size_t layer, size_t t,
                               uint32_t row, uint32_t unit,
                               const moec_window *w, unsigned char *data,
                               uint32_t group, uint32_t tag,
                               moec_piece_list *out, bool *slow_out,
                               moec_error *err)
{
    moec_move moves[MOEC_BLOCK_MOVES_MAX], whole = whole_block(&w->axes);
    cutting k = {
        .ld = ld, .w = w, .data = data, .group = group, .tag = tag, .out = out};
    size_t first = out->n;
    moec_stretch from;

    *slow_out = true;
    if (unit == MOEC_UNIT_EMPTY)
        return MOEC_OK;
    if (ld->old != NULL && moec_loading_slot(ld, layer, t, row, unit, &from)) {
        k.from = &from;
        k.m = &whole;
        MOEC_TRY(cut_move(&k, err));
        for (size_t i = first; i < out->n; i++)
            k.slow = k.slow || !take_leaves(&k, &out->v[i]);
        if (k.slow)
            out->n = first;
    } else if (unit >= moec_model_facts(moec_plan_model(ld->plan))->n_experts &&
               moec_plan_requantises(ld->plan)) {
        k.slow = true;
    } else {
        size_t n = moec_plan_block_moves(ld->plan, layer, t, unit, moves);
        MOEC_TRY(cut_moves(&k, moves, n, err));
    }
    *slow_out = k.slow;
    return MOEC_OK;
}

moec_status moec_loading_tensor_piece(const moec_loading *ld, size_t tensor,
                                      const moec_tensor_window *w,
                                      unsigned char *data, uint32_t group,
                                      uint32_t tag, moec_piece_list *out,
                                      bool *slow_out, moec_error *err)
{
    moec_stretch from;
    cutting k = {.ld = ld, .from = &from};

    *slow_out = true;
    if (!moec_loading_tensor(ld, tensor, &from))
        return MOEC_OK;
    moec_piece p = {.file = from.file,
                    .group = group,
                    .off = from.off + w->row_first * w->row_bytes +
                           w->col_first_bytes,
                    .dst = data,
                    .elem_bytes = 1,
                    .n_rows = w->rows,
                    .n_cols = w->col_bytes,
                    .src_row = w->row_bytes,
                    .src_col = 1,
                    .dst_row = w->row_stride,
                    .dst_col = 1,
                    .leaf_rule = MOEC_RULE_M07,
                    .tag = tag};
    *slow_out = false;
    if (w->rows == 0 || w->col_bytes == 0)
        return MOEC_OK;
    settle(&p);
    *slow_out = !take_leaves(&k, &p);
    if (*slow_out)
        return MOEC_OK;
    return append(out, &p, err);
}

/* ------------------------------------------------------- block by block */

/* Columns [c0, c1) of dense rows [r0, r1), from `src` on. */
typedef struct putting {
    const moec_window *w;
    moec_put_fn put;
    void *ctx;
    uint64_t pitch, from;
    const unsigned char *src; /* byte `from` of the slot */
} putting;

static moec_status put_rows(const putting *k, uint64_t r0, uint64_t r1,
                            uint64_t c0, uint64_t c1, moec_error *err)
{
    const moec_window *w = k->w;
    const moec_slot_axes *a = &w->axes;

    if (r0 >= r1 || c0 >= c1)
        return MOEC_OK;
    for (uint32_t h = 0; h < a->n_halves; h++) {
        uint64_t rows_at = a->half_in_columns ? 0 : h * a->n_rows;
        uint64_t cols_at = a->half_in_columns ? h * a->n_cols : 0;
        uint64_t r, c;
        uint64_t nr = clip(r0, r1 - r0, rows_at + w->row_first, w->n_rows, &r);
        uint64_t nc = clip(c0, c1 - c0, cols_at + w->col_first, w->n_cols, &c);

        if (nr == 0 || nc == 0)
            continue;
        MOEC_TRY(k->put(
            k->ctx,
            h * w->half_stride + (r - rows_at - w->row_first) * w->row_stride +
                (c - cols_at - w->col_first) * a->elem,
            w->row_stride, k->src + (r * k->pitch + c * a->elem - k->from),
            k->pitch, nc * a->elem, nr, err));
    }
    return MOEC_OK;
}

moec_status moec_window_put(const moec_window *w, uint64_t from, uint64_t n,
                            const unsigned char *src, moec_put_fn put,
                            void *ctx, moec_error *err)
{
    const moec_slot_axes *a = &w->axes;
    uint64_t cols = (a->half_in_columns ? a->n_halves : 1) * a->n_cols;
    putting k = {w, put, ctx, cols * a->elem, from, src};
    uint64_t begin = from / a->elem, end = (from + n) / a->elem;
    uint64_t r0 = begin / cols, r1 = end / cols;

    if (r0 == r1)
        return put_rows(&k, r0, r0 + 1, begin % cols, end % cols, err);
    if (begin % cols != 0) {
        MOEC_TRY(put_rows(&k, r0, r0 + 1, begin % cols, cols, err));
        r0++;
    }
    MOEC_TRY(put_rows(&k, r0, r1, 0, cols, err));
    return put_rows(&k, r1, r1 + 1, 0, end % cols, err);
}
