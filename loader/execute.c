/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The executor of moves.
 *
 * A move is a 2-D region with one stride per axis and side (types.h). Every
 * request here is "fill these destination bytes", so a move is first turned
 * until its destination runs along the columns, then clipped to the range
 * (at most a head row, whole rows, a tail row), and each clipped region is
 * read in the way its SOURCE likes:
 *   - adjacent on both sides: straight into the destination, no copy;
 *   - rows of one run each: row by row, or through the scratch where rows are
 *     so short that a call each would cost more than the copy;
 *   - columns of the source (transposed, interleaved): whole source rows into
 *     the scratch, from there element by element in cache-sized tiles.
 * Nothing here knows experts; the moves were proved before they came here.
 */

#include <string.h>

#include "base/base.h"
#include "execute.h"
#include "scatter.h"

/* Rows at least this long are read one by one; shorter ones in spans. A pread
 * from the page cache costs about as much as copying this many bytes. */
#define ROW_READ_BYTES 4096u

/* A region with the destination's smaller stride on the columns. */
typedef struct region {
    uint32_t tensor;
    uint32_t elem;
    uint64_t n_rows, n_cols;
    uint64_t src, src_row, src_col;
    uint64_t dst, dst_row, dst_col;
} region;

typedef struct sink {
    unsigned char *dst; /* byte `from` of the block */
    moec_read_fn read;
    void *ctx;
    moec_scratch *scratch;
    moec_error *err;
} sink;

void moec_scratch_fini(moec_scratch *s)
{
    moec_free(s->data);
    s->data = NULL;
    s->bytes = 0;
}

static moec_status scratch_get(const sink *k, size_t bytes, unsigned char **out)
{
    moec_scratch *s = k->scratch;

    if (s->bytes < bytes) {
        moec_scratch_fini(s);
        s->data = moec_alloc(bytes);
        if (s->data == NULL)
            return moec_fail_nomem(k->err, "scratch of the executor");
        s->bytes = bytes;
    }
    *out = s->data;
    return MOEC_OK;
}

static void swap_axes(region *g)
{
    uint64_t t;

    t = g->n_rows;
    g->n_rows = g->n_cols;
    g->n_cols = t;
    t = g->src_row;
    g->src_row = g->src_col;
    g->src_col = t;
    t = g->dst_row;
    g->dst_row = g->dst_col;
    g->dst_col = t;
}

/* One axis of length 1 has no meaningful stride: give it the one that lets
 * the other tests see adjacency. */
static void settle(region *g)
{
    if (g->n_cols == 1) {
        g->src_col = g->elem;
        g->dst_col = g->elem;
    }
    if (g->n_rows == 1) {
        g->src_row = g->n_cols * g->src_col;
        g->dst_row = g->n_cols * g->dst_col;
    }
}

/* Rows that follow each other on both sides are one long row: a range of it
 * is then one read. */
static void join_rows(region *g)
{
    if (g->n_rows > 1 && g->src_row == g->n_cols * g->src_col &&
        g->dst_row == g->n_cols * g->dst_col) {
        g->n_cols *= g->n_rows;
        g->n_rows = 1;
    }
    settle(g);
}

static region region_of(const moec_move *m)
{
    region g = {.tensor = m->tensor,
                .elem = m->elem_bytes,
                .n_rows = m->n_rows,
                .n_cols = m->n_cols,
                .src = m->src_off,
                .src_row = m->src_row,
                .src_col = m->src_col,
                .dst = m->dst_off,
                .dst_row = m->dst_row,
                .dst_col = m->dst_col};
    if (g.n_cols == 1 || (g.n_rows > 1 && g.dst_col > g.dst_row))
        swap_axes(&g);
    settle(&g);
    join_rows(&g);
    return g;
}

/* The region's elements from `src`, whose strides are the buffer's. */
static void scatter(const region *g, unsigned char *dst,
                    const unsigned char *src, uint64_t src_row,
                    uint64_t src_col, uint64_t n_rows, uint64_t n_cols)
{
    moec_grid d = {.elem_bytes = g->elem,
                   .n_rows = n_rows,
                   .n_cols = n_cols,
                   .src_row = src_row,
                   .src_col = src_col,
                   .dst_row = g->dst_row,
                   .dst_col = g->dst_col};

    moec_scatter(&d, dst, src);
}

/* ------------------------------------------------ rows of adjacent bytes */

static moec_status read_rows(const sink *k, const region *g)
{
    uint64_t run = g->n_cols * g->elem;
    bool spans = run < ROW_READ_BYTES && g->src_row <= MOEC_SCRATCH_BYTES_MAX;
    unsigned char *tmp;

    if (g->src_row == run && g->dst_row == run)
        return k->read(k->ctx, g->tensor, g->src, k->dst + g->dst,
                       (size_t)(g->n_rows * run), k->err);
    if (!spans) {
        for (uint64_t r = 0; r < g->n_rows; r++)
            MOEC_TRY(k->read(k->ctx, g->tensor, g->src + r * g->src_row,
                             k->dst + g->dst + r * g->dst_row, (size_t)run,
                             k->err));
        return MOEC_OK;
    }
    uint64_t batch = moec_max_u64(MOEC_SCRATCH_BYTES_MAX / g->src_row, 1);
    for (uint64_t r = 0; r < g->n_rows; r += batch) {
        uint64_t n = moec_min_u64(batch, g->n_rows - r);
        size_t bytes = (size_t)((n - 1) * g->src_row + run);

        MOEC_TRY(scratch_get(k, bytes, &tmp));
        MOEC_TRY(k->read(k->ctx, g->tensor, g->src + r * g->src_row, tmp, bytes,
                         k->err));
        for (uint64_t i = 0; i < n; i++)
            memcpy(k->dst + g->dst + (r + i) * g->dst_row, tmp + i * g->src_row,
                   (size_t)run);
    }
    return MOEC_OK;
}

/* -------------------------------------------- columns of the source
 * `g` has been turned so that the source's small stride is on the columns. */

/* Source bytes of one row of `g`. */
static uint64_t source_run(const region *g)
{
    return (g->n_cols - 1) * g->src_col + g->elem;
}

/* Read source rows [r, r+n) of the columns of `g` into tmp, `pitch` apart. */
static moec_status read_source_rows(const sink *k, const region *g, uint64_t r,
                                    uint64_t n, uint64_t pitch,
                                    unsigned char *tmp)
{
    uint64_t run = source_run(g);

    if (pitch == g->src_row)
        return k->read(k->ctx, g->tensor, g->src + r * g->src_row, tmp,
                       (size_t)((n - 1) * pitch + run), k->err);
    for (uint64_t i = 0; i < n; i++)
        MOEC_TRY(k->read(k->ctx, g->tensor, g->src + (r + i) * g->src_row,
                         tmp + i * pitch, (size_t)run, k->err));
    return MOEC_OK;
}

/* Run `g`, and `twin` where it is not NULL: a region with the same source rows
 * whose elements lie between those of `g`. */
static moec_status read_columns_band(const sink *k, const region *g,
                                     const region *twin)
{
    region wide = *g;
    uint64_t shift = 0;

    if (twin != NULL) {
        shift = twin->src > g->src ? twin->src - g->src : g->src - twin->src;
        wide.src = moec_min_u64(g->src, twin->src);
        wide.elem = (uint32_t)(g->elem + shift);
    }
    uint64_t run = source_run(&wide);
    bool dense = run * 2 >= g->src_row || run < 512;
    uint64_t pitch = dense && g->n_rows > 1 ? g->src_row : run;
    uint64_t batch = 1;
    if (pitch < MOEC_SCRATCH_BYTES_MAX)
        batch = MOEC_SCRATCH_BYTES_MAX / moec_max_u64(pitch, 1);

    for (uint64_t r = 0; r < g->n_rows; r += batch) {
        uint64_t n = moec_min_u64(batch, g->n_rows - r);
        unsigned char *tmp;

        MOEC_TRY(scratch_get(k, (size_t)((n - 1) * pitch + run), &tmp));
        MOEC_TRY(read_source_rows(k, &wide, r, n, pitch, tmp));
        scatter(g, k->dst + g->dst + r * g->dst_row, tmp + (g->src - wide.src),
                pitch, g->src_col, n, g->n_cols);
        if (twin != NULL)
            scatter(twin, k->dst + twin->dst + r * twin->dst_row,
                    tmp + (twin->src - wide.src), pitch, twin->src_col, n,
                    twin->n_cols);
    }
    return MOEC_OK;
}

static void turn_to_source(region *g)
{
    if (g->n_rows > 1 && g->src_col > g->src_row)
        swap_axes(g);
}

/* The band's columns may be too many for the scratch: cut them. */
static moec_status read_columns(const sink *k, region g, const region *twin_in)
{
    region twin;
    uint64_t limit = MOEC_SCRATCH_BYTES_MAX / 4;

    turn_to_source(&g);
    if (twin_in != NULL) {
        twin = *twin_in;
        turn_to_source(&twin);
    }
    uint64_t step = moec_max_u64(limit / g.src_col, 1);
    for (uint64_t c = 0; c < g.n_cols; c += step) {
        region part = g;
        part.n_cols = moec_min_u64(step, g.n_cols - c);
        part.src += c * g.src_col;
        part.dst += c * g.dst_col;
        if (twin_in == NULL) {
            MOEC_TRY(read_columns_band(k, &part, NULL));
            continue;
        }
        region other = twin;
        other.n_cols = part.n_cols;
        other.src += c * twin.src_col;
        other.dst += c * twin.dst_col;
        MOEC_TRY(read_columns_band(k, &part, &other));
    }
    return MOEC_OK;
}

static moec_status read_region(const sink *k, const region *in)
{
    region g = *in;

    if (g.n_rows == 0 || g.n_cols == 0)
        return MOEC_OK;
    settle(&g);
    if (g.tensor == UINT32_MAX) { /* FILL: rows are adjacent by construction */
        for (uint64_t r = 0; r < g.n_rows; r++)
            memset(k->dst + g.dst + r * g.dst_row, 0,
                   (size_t)(g.n_cols * g.elem));
        return MOEC_OK;
    }
    if (g.src_col == g.elem && g.dst_col == g.elem)
        return read_rows(k, &g);
    return read_columns(k, g, NULL);
}

/* -------------------------------------------------------------- clipping */

/* Columns [c0, c1) of rows [r0, r1), destination relative to `from`. */
static moec_status read_part(const sink *k, const region *g, uint64_t from,
                             uint64_t r0, uint64_t r1, uint64_t c0, uint64_t c1)
{
    region p = *g;

    if (r0 >= r1 || c0 >= c1)
        return MOEC_OK;
    p.n_rows = r1 - r0;
    p.n_cols = c1 - c0;
    p.src += r0 * g->src_row + c0 * g->src_col;
    p.dst += r0 * g->dst_row + c0 * g->dst_col - from;
    return read_region(k, &p);
}

/* First column of row `r` whose element begins at or behind `at`. */
static uint64_t first_col(const region *g, uint64_t r, uint64_t at)
{
    uint64_t begin = g->dst + r * g->dst_row;

    if (at <= begin)
        return 0;
    return moec_min_u64(moec_ceil_div(at - begin, g->dst_col), g->n_cols);
}

/* Rows do not reach into each other: dst_row >= n_cols * dst_col holds for
 * every region of a proved set of moves once it is turned. */
static moec_status read_clipped(const sink *k, const region *g, uint64_t from,
                                uint64_t to)
{
    uint64_t extent = (g->n_cols - 1) * g->dst_col + g->elem;
    uint64_t end = g->dst + (g->n_rows - 1) * g->dst_row + extent;

    if (end <= from || g->dst >= to)
        return MOEC_OK;
    uint64_t r0 = from > g->dst ? (from - g->dst) / g->dst_row : 0;
    uint64_t r1 = to > g->dst ? moec_ceil_div(to - g->dst, g->dst_row) : 0;
    r1 = moec_min_u64(r1, g->n_rows);
    uint64_t head = first_col(g, r0, from);
    uint64_t tail = first_col(g, r1 - 1, to);

    if (r1 - r0 == 1)
        return read_part(k, g, from, r0, r1, head, tail);
    if (head != 0) {
        MOEC_TRY(read_part(k, g, from, r0, r0 + 1, head, g->n_cols));
        r0++;
    }
    if (tail != g->n_cols) {
        MOEC_TRY(read_part(k, g, from, r1 - 1, r1, 0, tail));
        r1--;
    }
    return read_part(k, g, from, r0, r1, 0, g->n_cols);
}

/* Are a and b the two halves of one interleaved source, both wholly inside
 * [from, to)? */
static bool are_twins(const region *a, const region *b, uint64_t from,
                      uint64_t to)
{
    uint64_t shift = a->src > b->src ? a->src - b->src : b->src - a->src;
    uint64_t bytes = a->n_rows * a->n_cols * a->elem;
    uint64_t gap = a->src_col == a->elem ? a->src_row /* alternating rows */
                                         : moec_min_u64(a->src_row, a->src_col);

    return a->tensor == b->tensor && a->tensor != UINT32_MAX &&
           a->elem == b->elem && a->n_rows == b->n_rows &&
           a->n_cols == b->n_cols && a->src_row == b->src_row &&
           a->src_col == b->src_col && a->dst_row == b->dst_row &&
           a->dst_col == b->dst_col && shift != 0 && shift < gap &&
           moec_min_u64(a->dst, b->dst) >= from &&
           moec_max_u64(a->dst, b->dst) + bytes <= to &&
           a->dst_row == a->n_cols * a->dst_col;
}

/* NOLINTNEXTLINE(readability-function-size): what, where from, where to */
moec_status moec_block_read(const moec_move *moves, size_t n_moves,
                            uint64_t from, uint64_t to, void *dst,
                            moec_read_fn read, void *ctx, moec_scratch *scratch,
                            moec_error *err)
{
    sink k = {dst, read, ctx, scratch, err};

    for (size_t i = 0; i < n_moves; i++) {
        region g = region_of(&moves[i]);

        if (g.n_rows == 0 || g.n_cols == 0)
            continue;
        if (i + 1 < n_moves) {
            region next = region_of(&moves[i + 1]);
            if (are_twins(&g, &next, from, to)) {
                g.dst -= from;
                next.dst -= from;
                MOEC_TRY(read_columns(&k, g, &next));
                i++;
                continue;
            }
        }
        MOEC_TRY(read_clipped(&k, &g, from, to));
    }
    return MOEC_OK;
}

moec_move moec_move_inverse(const moec_move *m, uint32_t tensor,
                            uint64_t block_off)
{
    moec_move v = *m;

    v.tensor = tensor;
    v.src_off = m->dst_off;
    v.src_row = m->dst_row;
    v.src_col = m->dst_col;
    v.dst_off = m->src_off - block_off;
    v.dst_row = m->src_row;
    v.dst_col = m->src_col;
    return v;
}

/* --------------------------------------------------------------- tiling
 * A set of moves tiles [0, bytes) when, taken by offset, each either begins
 * where the last ended and is one run, or belongs to a group of equal
 * (count, stride) whose members tile one stride. Two levels of groups are
 * what a 2-D region has. */

#define TILE_MOVES_MAX 256u

/* Groups at `level` 2 repeat n_rows times dst_row, at level 1 n_cols times
 * dst_col, at level 0 nothing repeats. */
static uint64_t level_count(const region *g, int level)
{
    return level == 2 ? g->n_rows : level == 1 ? g->n_cols : 1;
}

static uint64_t level_stride(const region *g, int level)
{
    return level == 2 ? g->dst_row : level == 1 ? g->dst_col : g->elem;
}

/* One run, however it was written: fold rows into columns into elements. */
static void fold(region *g)
{
    settle(g);
    if (g->n_rows > 1 && g->dst_row == g->n_cols * g->dst_col) {
        g->n_cols *= g->n_rows;
        g->n_rows = 1;
    }
    settle(g);
}

/* Does the run of bytes of `g` within one repetition of `level` cover
 * everything? Then its length, else 0. */
static uint64_t run_length(const region *g, int level)
{
    if (level == 0)
        return g->elem;
    if (g->dst_col == g->elem && (level == 1 || g->n_rows == 1))
        return g->n_cols * g->elem;
    return 0;
}

/* Move regions [i, n) begin at `at` and later: how far do they tile? Takes the
 * first group apart. Returns the number of regions used, 0 where not tiled;
 * *end_out is where the tiled part ends. */
static size_t tile_group(const region *g, size_t n, int level, uint64_t at,
                         uint64_t *end_out);

/* NOLINTNEXTLINE(misc-no-recursion): each round is one level lower, of three */
static bool tile_run(const region *g, size_t n, int level, uint64_t at,
                     uint64_t end, uint64_t *off_out)
{
    size_t i = 0;

    while (at < end) {
        uint64_t next = at;
        size_t used = i < n ? tile_group(g + i, n - i, level, at, &next) : 0;
        if (used == 0 || next <= at || next > end) {
            *off_out = at;
            return false;
        }
        i += used;
        at = next;
    }
    *off_out = at;
    return i == n;
}

/* NOLINTNEXTLINE(misc-no-recursion): see tile_run */
static size_t tile_group(const region *g, size_t n, int level, uint64_t at,
                         uint64_t *end_out)
{
    uint64_t off;

    if (g[0].dst != at)
        return 0;
    uint64_t run = run_length(&g[0], level);
    if (run != 0) {
        *end_out = at + run;
        return 1;
    }
    if (level_count(&g[0], level) == 1) {
        /* nothing repeats here: look one level down at this region alone */
        return level > 0 ? tile_group(g, n, level - 1, at, end_out) : 0;
    }
    uint64_t stride = level_stride(&g[0], level);
    uint64_t count = level_count(&g[0], level);
    size_t m = 0;
    while (m < n && level_count(&g[m], level) == count &&
           level_stride(&g[m], level) == stride && g[m].dst < at + stride)
        m++;
    if (!tile_run(g, m, level - 1, at, at + stride, &off))
        return 0;
    *end_out = at + stride * count;
    return m;
}

bool moec_moves_tile(const moec_move *moves, size_t n_moves, uint64_t bytes,
                     uint64_t *off_out)
{
    region g[TILE_MOVES_MAX];
    size_t n = 0;

    *off_out = 0;
    if (n_moves > TILE_MOVES_MAX)
        return false;
    for (size_t i = 0; i < n_moves; i++) {
        if (moves[i].n_rows == 0 || moves[i].n_cols == 0)
            continue;
        region r = region_of(&moves[i]);
        size_t at = n++;
        fold(&r);
        for (; at > 0 && g[at - 1].dst > r.dst; at--)
            g[at] = g[at - 1];
        g[at] = r;
    }
    return tile_run(g, n, 2, 0, bytes, off_out);
}
