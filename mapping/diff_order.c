/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: where each changed row comes from, and in which order. It sees
 *   cells of ranks, numbers of units and no plan.
 *
 * Think of a cell for each row of each rank. A cell that changes has one
 * source: a cell of the old plan, host memory, the disk, or zeros. Where the
 * source cell changes too, it may be written only when it has been read. So
 * cells that nobody reads any more are written first, which sets others free.
 * What is left then are rings in which each cell waits for the next one: one
 * cell of a ring gets its new content into the bounce row of its rank first,
 * which opens the ring.
 *
 * Reads by another rank are no matter of order in a list but of time: a move
 * has a round, and rounds of a layer are kept apart on all ranks. Everybody
 * computes the whole layer, so everybody comes to the same rounds.
 */

#include <string.h>

#include "plan_diff.h"

#define SOURCE_STAYS 255u

static uint32_t rank_of(const moec_diff_problem *p, uint32_t cell)
{
    return cell / p->n_rows;
}

static uint32_t node_of(const moec_differ *f, uint32_t old_rank)
{
    uint32_t each = f->opts->ranks_per_node;

    return each == 0 ? 0 : old_rank / each;
}

/* The node of a new rank's process, also of one that lost its memory. */
static uint32_t home_of(const moec_differ *f, uint32_t rank)
{
    uint32_t was = f->opts->old_rank ? f->opts->old_rank[rank] : rank;

    return node_of(f, was != MOEC_DIFF_NONE ? was : rank);
}

/* Does the old cell keep its content? Then it is read at any time. */
static bool keeps(const moec_diff_problem *p, uint32_t old_cell)
{
    uint32_t c = p->new_cell[old_cell];

    return c == MOEC_DIFF_NONE || p->want[c] == p->had[old_cell];
}

/* ------------------------------------------------------------- sources */

/* Lower is nearer; among equals what stays is better than what changes. */
static uint32_t distance(const moec_differ *f, uint32_t rank, uint32_t old_cell)
{
    const moec_diff_problem *p = &f->p;
    uint32_t me = p->old_of[rank], owner = old_cell / p->n_old_rows;
    uint32_t d = 4;

    if (p->gone[owner])
        return MOEC_DIFF_NONE;
    if (owner == me)
        d = 0;
    else if (f->opts->no_peers)
        return MOEC_DIFF_NONE;
    else if (node_of(f, owner) == home_of(f, rank))
        d = 2;
    return 2 * d + !keeps(p, old_cell);
}

static bool in_host(const moec_differ *f, uint32_t unit)
{
    return f->opts->in_host &&
           f->opts->in_host(f->opts->ctx, f->layer, unit) != 0;
}

/* The nearest old cell, and host memory between the own node and others.
 * Equal peers take turns by the asking rank, lest one serves all. */
static void choose_source(const moec_differ *f, uint32_t cell)
{
    const moec_diff_problem *p = &f->p;
    uint32_t unit = p->want[cell], rank = rank_of(p, cell);
    uint32_t n = p->first[unit + 1] - p->first[unit];
    uint32_t best = MOEC_DIFF_NONE, least = MOEC_DIFF_NONE;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = p->old[p->first[unit] + (i + rank) % n];
        uint32_t d = distance(f, rank, at);

        if (d < least) {
            least = d;
            best = at;
        }
    }
    p->from[cell] = best;
    if (best != MOEC_DIFF_NONE && least < 2)
        p->source[cell] = MOEC_DIFF_LOCAL;
    else if (best != MOEC_DIFF_NONE && least < 6)
        p->source[cell] = MOEC_DIFF_PEER;
    else if (in_host(f, unit))
        p->source[cell] = MOEC_DIFF_HOST;
    else
        p->source[cell] =
            best != MOEC_DIFF_NONE ? MOEC_DIFF_PEER : MOEC_DIFF_DISK;
    if (p->source[cell] != MOEC_DIFF_LOCAL && p->source[cell] != MOEC_DIFF_PEER)
        p->from[cell] = MOEC_DIFF_NONE;
}

static void choose_sources(const moec_differ *f)
{
    const moec_diff_problem *p = &f->p;
    uint32_t n = p->n_ranks * p->n_rows;

    for (uint32_t c = 0; c < n; c++) {
        uint32_t old_rank = p->old_of[rank_of(p, c)];
        uint32_t row = c % p->n_rows;

        p->from[c] = MOEC_DIFF_NONE;
        if (old_rank != MOEC_DIFF_NONE && row < p->n_old_rows &&
            p->had[old_rank * p->n_old_rows + row] == p->want[c])
            p->source[c] = SOURCE_STAYS;
        else if (p->want[c] == MOEC_UNIT_EMPTY)
            p->source[c] = MOEC_DIFF_ZEROS;
        else
            choose_source(f, c);
    }
}

/* --------------------------------------------------------------- order */

/* The new cell that `cell` reads, if that is to be written too. */
static uint32_t reads(const moec_diff_problem *p, uint32_t cell)
{
    uint32_t c = p->from[cell] == MOEC_DIFF_NONE ? MOEC_DIFF_NONE
                                                 : p->new_cell[p->from[cell]];

    return c != MOEC_DIFF_NONE && p->source[c] != SOURCE_STAYS ? c
                                                               : MOEC_DIFF_NONE;
}

static moec_status emit(moec_differ *f, uint32_t cell, uint32_t round, bool to,
                        bool from, moec_error *err)
{
    const moec_diff_problem *p = &f->p;
    uint32_t rank = rank_of(p, cell), source = p->from[cell];
    moec_diff_move m = {.layer = (uint32_t)f->layer,
                        .tensor = f->t,
                        .unit = p->want[cell],
                        .round = round,
                        .dst_row = to ? MOEC_DIFF_BOUNCE : cell % p->n_rows,
                        .src_row = MOEC_DIFF_BOUNCE,
                        .peer = MOEC_DIFF_NO_PEER,
                        .source = p->source[cell],
                        .bytes = f->row_bytes};

    if (rank != f->rank)
        return MOEC_OK;
    if (from)
        m.source = MOEC_DIFF_LOCAL;
    else if (source != MOEC_DIFF_NONE)
        m.src_row = source % p->n_old_rows;
    if (m.source == MOEC_DIFF_PEER) {
        m.peer = source / p->n_old_rows;
        m.same_node = node_of(f, m.peer) == home_of(f, rank);
    }
    if (!MOEC_GROW(f->d->moves, f->d->n, f->d->cap))
        return moec_fail_nomem(err, "moves of a rank");
    f->d->moves[f->d->n++] = m;
    return MOEC_OK;
}

/* `cell` was read in `round` by a cell of rank `reader`. Another rank must
 * have come to its end; the own one only be first in the list. */
static void was_read(moec_diff_problem *p, uint32_t cell, uint32_t reader,
                     uint32_t round)
{
    uint32_t at = reader == rank_of(p, cell) ? round : round + 1;

    if (at > p->ready[cell])
        p->ready[cell] = at;
    p->waits[cell]--;
}

/* Write `cell`, and all that it sets free. */
static moec_status write_from(moec_differ *f, uint32_t cell, moec_error *err)
{
    moec_diff_problem *p = &f->p;
    uint32_t n = 0;

    p->todo[n++] = cell;
    while (n > 0) {
        uint32_t c = p->todo[--n], next = reads(p, c);

        MOEC_TRY(emit(f, c, p->ready[c], false, false, err));
        p->done[c] = 1;
        if (next == MOEC_DIFF_NONE)
            continue;
        was_read(p, next, rank_of(p, c), p->ready[c]);
        if (p->waits[next] == 0)
            p->todo[n++] = next;
    }
    return MOEC_OK;
}

/* The cell of the ring whose rank's bounce row is free first. */
static uint32_t best_of_ring(const moec_diff_problem *p, uint32_t cell)
{
    uint32_t best = cell;

    for (uint32_t c = reads(p, cell); c != cell; c = reads(p, c)) {
        uint32_t a = p->free_at[rank_of(p, c)];
        uint32_t b = p->free_at[rank_of(p, best)];

        if (a < b || (a == b && c < best))
            best = c;
    }
    return best;
}

static moec_status open_ring(moec_differ *f, uint32_t cell, moec_error *err)
{
    moec_diff_problem *p = &f->p;
    uint32_t first = best_of_ring(p, cell), rank = rank_of(p, first);
    uint32_t round = p->free_at[rank];

    MOEC_TRY(emit(f, first, round, true, false, err));
    was_read(p, reads(p, first), rank, round);
    for (uint32_t c = reads(p, first); c != first; c = reads(p, c)) {
        MOEC_TRY(emit(f, c, p->ready[c], false, false, err));
        p->done[c] = 1;
        was_read(p, reads(p, c), rank_of(p, c), p->ready[c]);
    }
    /* The list has it behind the bounce row's filling, whatever the ring
     * took. */
    if (p->ready[first] < round)
        p->ready[first] = round;
    MOEC_TRY(emit(f, first, p->ready[first], false, true, err));
    p->done[first] = 1;
    p->free_at[rank] = p->ready[first];
    return MOEC_OK;
}

static moec_status order(moec_differ *f, moec_error *err)
{
    moec_diff_problem *p = &f->p;
    uint32_t n = p->n_ranks * p->n_rows;

    memset(p->waits, 0, n * sizeof(*p->waits));
    memset(p->ready, 0, n * sizeof(*p->ready));
    memset(p->done, 0, n);
    memset(p->free_at, 0, p->n_ranks * sizeof(*p->free_at));
    for (uint32_t c = 0; c < n; c++) {
        p->done[c] = p->source[c] == SOURCE_STAYS;
        if (!p->done[c] && reads(p, c) != MOEC_DIFF_NONE)
            p->waits[reads(p, c)]++;
    }
    for (uint32_t c = 0; c < n; c++) {
        if (!p->done[c] && p->waits[c] == 0)
            MOEC_TRY(write_from(f, c, err));
    }
    for (uint32_t c = 0; c < n; c++) {
        if (!p->done[c])
            MOEC_TRY(open_ring(f, c, err));
    }
    return MOEC_OK;
}

/* A counting sort, as it is stable: the order of the list within a round is
 * one of reads and writes. */
static moec_status sort_rounds(moec_diff_move *moves, size_t n, moec_error *err)
{
    moec_diff_move *sorted;
    size_t *at;
    uint32_t most = 0;

    for (size_t i = 0; i < n; i++)
        most = moves[i].round > most ? moves[i].round : most;
    if (most == 0)
        return MOEC_OK;
    sorted = moec_calloc(n, sizeof(*sorted));
    at = moec_calloc((size_t)most + 2, sizeof(*at));
    if (sorted && at) {
        for (size_t i = 0; i < n; i++)
            at[moves[i].round + 1]++;
        for (uint32_t r = 0; r < most; r++)
            at[r + 1] += at[r];
        for (size_t i = 0; i < n; i++)
            sorted[at[moves[i].round]++] = moves[i];
        memcpy(moves, sorted, n * sizeof(*moves));
    }
    moec_free(sorted);
    moec_free(at);
    return sorted && at ? MOEC_OK : moec_fail_nomem(err, "moves of a rank");
}

moec_status moec_diff_solve(moec_differ *f, moec_error *err)
{
    moec_diff_problem *p = &f->p;
    uint32_t n_old = p->n_old_ranks * p->n_old_rows;
    size_t begin = f->d->n;

    memset(p->first, 0, (p->n_units + 1) * sizeof(*p->first));
    for (uint32_t i = 0; i < n_old; i++) {
        if (p->had[i] < p->n_units)
            p->first[p->had[i] + 1]++;
    }
    for (uint32_t u = 0; u < p->n_units; u++)
        p->first[u + 1] += p->first[u];
    for (uint32_t i = 0; i < n_old; i++) {
        if (p->had[i] < p->n_units)
            p->old[p->first[p->had[i]]++] = i;
    }
    for (uint32_t u = p->n_units; u > 0; u--)
        p->first[u] = p->first[u - 1];
    p->first[0] = 0;
    for (uint32_t i = 0; i < n_old; i++)
        p->new_cell[i] = MOEC_DIFF_NONE;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        for (uint32_t row = 0; p->old_of[r] != MOEC_DIFF_NONE &&
                               row < p->n_rows && row < p->n_old_rows;
             row++)
            p->new_cell[p->old_of[r] * p->n_old_rows + row] =
                r * p->n_rows + row;
    }
    choose_sources(f);
    MOEC_TRY(order(f, err));
    return sort_rounds(f->d->moves + begin, f->d->n - begin, err);
}
