/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: a re-placement of what ranks hold in memory: for one rank the
 *   moves that turn the rows of the old plan into those of the new one, where
 *   each comes from, and in which order. Opens nothing, moves nothing.
 * Refuses: plans that differ in more than ranks and placement (MAPPING), and
 *   expert stores.
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

#include <inttypes.h>
#include <string.h>

#include <moec/mapping.h>

#include "base/base.h"

#define NONE UINT32_MAX

struct moec_diff {
    size_t n, cap;
    moec_diff_move *moves;
    moec_diff_figures figures;
};

/* ----------------------------------------------------------- one problem
 * A layer, or one table over all slots, as cells. */

typedef struct problem {
    uint32_t n_ranks, n_rows;         /* new cells: rank * n_rows + row */
    uint32_t n_old_ranks, n_old_rows; /* the same of the old ones */
    uint32_t n_units;
    uint32_t *want;        /* [new cells] unit, or MOEC_UNIT_EMPTY */
    uint32_t *had;         /* [old cells] */
    uint32_t *old_of;      /* [new ranks] old rank of the process, or NONE */
    uint32_t *first, *old; /* old cells by unit: [units + 1], [old cells] */
    uint8_t *gone;         /* [old ranks] */
    /* of new cells */
    uint8_t *source;    /* moec_diff_source; SOURCE_STAYS: nothing to do */
    uint32_t *from;     /* old cell, where the source is one */
    uint32_t *waits;    /* reads that must come before it is written */
    uint32_t *ready;    /* first round in which it may be written */
    uint32_t *todo;     /* stack */
    uint32_t *free_at;  /* [new ranks] round in which the bounce row is free */
    uint8_t *done;      /* is written */
    uint32_t *new_cell; /* [old cells] the same memory, or NONE */
} problem;

#define SOURCE_STAYS 255u

typedef struct differ {
    const moec_plan *old, *now;
    const moec_diff_opts *opts;
    uint32_t rank;
    moec_topology was, is;
    uint32_t n_shared, n_experts;
    problem p;
    moec_arena arena;
    size_t layer, old_layer;
    uint32_t t; /* of a table, or MOEC_DIFF_ROWS */
    uint64_t row_bytes;
    moec_diff *d;
} differ;

static uint32_t rank_of(const problem *p, uint32_t cell)
{
    return cell / p->n_rows;
}

static uint32_t node_of(const differ *f, uint32_t old_rank)
{
    uint32_t each = f->opts->ranks_per_node;

    return each == 0 ? 0 : old_rank / each;
}

/* The node of a new rank's process, also of one that lost its memory. */
static uint32_t home_of(const differ *f, uint32_t rank)
{
    uint32_t was = f->opts->old_rank ? f->opts->old_rank[rank] : rank;

    return node_of(f, was != NONE ? was : rank);
}

/* Does the old cell keep its content? Then it is read at any time. */
static bool keeps(const problem *p, uint32_t old_cell)
{
    uint32_t c = p->new_cell[old_cell];

    return c == NONE || p->want[c] == p->had[old_cell];
}

/* ------------------------------------------------------------- sources */

/* Lower is nearer; among equals what stays is better than what changes. */
static uint32_t distance(const differ *f, uint32_t rank, uint32_t old_cell)
{
    const problem *p = &f->p;
    uint32_t me = p->old_of[rank], owner = old_cell / p->n_old_rows;
    uint32_t d = 4;

    if (p->gone[owner])
        return NONE;
    if (owner == me)
        d = 0;
    else if (f->opts->no_peers)
        return NONE;
    else if (node_of(f, owner) == home_of(f, rank))
        d = 2;
    return 2 * d + !keeps(p, old_cell);
}

static bool in_host(const differ *f, uint32_t unit)
{
    return f->opts->in_host &&
           f->opts->in_host(f->opts->ctx, f->layer, unit) != 0;
}

/* The nearest old cell, and host memory between the own node and others.
 * Equal peers take turns by the asking rank, lest one serves all. */
static void choose_source(const differ *f, uint32_t cell)
{
    const problem *p = &f->p;
    uint32_t unit = p->want[cell], rank = rank_of(p, cell);
    uint32_t n = p->first[unit + 1] - p->first[unit];
    uint32_t best = NONE, least = NONE;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = p->old[p->first[unit] + (i + rank) % n];
        uint32_t d = distance(f, rank, at);

        if (d < least) {
            least = d;
            best = at;
        }
    }
    p->from[cell] = best;
    if (best != NONE && least < 2)
        p->source[cell] = MOEC_DIFF_LOCAL;
    else if (best != NONE && least < 6)
        p->source[cell] = MOEC_DIFF_PEER;
    else if (in_host(f, unit))
        p->source[cell] = MOEC_DIFF_HOST;
    else
        p->source[cell] = best != NONE ? MOEC_DIFF_PEER : MOEC_DIFF_DISK;
    if (p->source[cell] != MOEC_DIFF_LOCAL && p->source[cell] != MOEC_DIFF_PEER)
        p->from[cell] = NONE;
}

static void choose_sources(const differ *f)
{
    const problem *p = &f->p;
    uint32_t n = p->n_ranks * p->n_rows;

    for (uint32_t c = 0; c < n; c++) {
        uint32_t old_rank = p->old_of[rank_of(p, c)];
        uint32_t row = c % p->n_rows;

        p->from[c] = NONE;
        if (old_rank != NONE && row < p->n_old_rows &&
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
static uint32_t reads(const problem *p, uint32_t cell)
{
    uint32_t c = p->from[cell] == NONE ? NONE : p->new_cell[p->from[cell]];

    return c != NONE && p->source[c] != SOURCE_STAYS ? c : NONE;
}

static moec_status emit(differ *f, uint32_t cell, uint32_t round, bool to,
                        bool from, moec_error *err)
{
    const problem *p = &f->p;
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
    else if (source != NONE)
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
static void was_read(problem *p, uint32_t cell, uint32_t reader, uint32_t round)
{
    uint32_t at = reader == rank_of(p, cell) ? round : round + 1;

    if (at > p->ready[cell])
        p->ready[cell] = at;
    p->waits[cell]--;
}

/* Write `cell`, and all that it sets free. */
static moec_status write_from(differ *f, uint32_t cell, moec_error *err)
{
    problem *p = &f->p;
    uint32_t n = 0;

    p->todo[n++] = cell;
    while (n > 0) {
        uint32_t c = p->todo[--n], next = reads(p, c);

        MOEC_TRY(emit(f, c, p->ready[c], false, false, err));
        p->done[c] = 1;
        if (next == NONE)
            continue;
        was_read(p, next, rank_of(p, c), p->ready[c]);
        if (p->waits[next] == 0)
            p->todo[n++] = next;
    }
    return MOEC_OK;
}

/* The cell of the ring whose rank's bounce row is free first. */
static uint32_t best_of_ring(const problem *p, uint32_t cell)
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

static moec_status open_ring(differ *f, uint32_t cell, moec_error *err)
{
    problem *p = &f->p;
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

static moec_status order(differ *f, moec_error *err)
{
    problem *p = &f->p;
    uint32_t n = p->n_ranks * p->n_rows;

    memset(p->waits, 0, n * sizeof(*p->waits));
    memset(p->ready, 0, n * sizeof(*p->ready));
    memset(p->done, 0, n);
    memset(p->free_at, 0, p->n_ranks * sizeof(*p->free_at));
    for (uint32_t c = 0; c < n; c++) {
        p->done[c] = p->source[c] == SOURCE_STAYS;
        if (!p->done[c] && reads(p, c) != NONE)
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

static moec_status solve(differ *f, moec_error *err)
{
    problem *p = &f->p;
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
        p->new_cell[i] = NONE;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        for (uint32_t row = 0;
             p->old_of[r] != NONE && row < p->n_rows && row < p->n_old_rows;
             row++)
            p->new_cell[p->old_of[r] * p->n_old_rows + row] =
                r * p->n_rows + row;
    }
    choose_sources(f);
    MOEC_TRY(order(f, err));
    return sort_rounds(f->d->moves + begin, f->d->n - begin, err);
}

/* ------------------------------------------------------------ the plans */

static moec_status other(moec_error *err, const char *what)
{
    return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_NONE,
                     "the two plans differ in %s: no re-placement leads from "
                     "one to the other",
                     what);
}

static bool same_tensors(const differ *f, uint64_t *bytes_out)
{
    size_t n = moec_plan_n_slot_tensors(f->now, f->layer);
    uint64_t bytes = 0;

    if (moec_plan_n_slot_tensors(f->old, f->old_layer) != n)
        return false;
    for (size_t t = 0; t < n; t++) {
        const moec_slot_tensor *a =
            moec_plan_slot_tensor(f->old, f->old_layer, t);
        const moec_slot_tensor *b = moec_plan_slot_tensor(f->now, f->layer, t);

        if (strcmp(a->name, b->name) != 0 || a->dtype != b->dtype ||
            a->slot_bytes != b->slot_bytes || a->all_slots != b->all_slots)
            return false;
        if (!b->all_slots)
            bytes += b->slot_bytes;
    }
    *bytes_out = bytes;
    return true;
}

static moec_status check_plans(const differ *f, moec_error *err)
{
    const moec_plan_opts *a = moec_plan_options(f->old);
    const moec_plan_opts *b = moec_plan_options(f->now);

    if (moec_plan_model(f->old) != moec_plan_model(f->now))
        return other(err, "their models");
    if (a->by_expert || b->by_expert)
        return other(err, "ranks: one is an expert store");
    if (a->w13_order != b->w13_order)
        return other(err, "the order inside w13");
    if (moec_plan_shared_rows(f->old) != moec_plan_shared_rows(f->now) ||
        moec_plan_requantises(f->old) != moec_plan_requantises(f->now))
        return other(err, "their shared experts");
    if (moec_plan_n_layers(f->old) != moec_plan_n_layers(f->now))
        return other(err, "their layers");
    if (f->rank >= f->is.n_ranks)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "rank %" PRIu32 " of %" PRIu32, f->rank,
                         f->is.n_ranks);
    for (uint32_t r = 0; f->opts->old_rank && r < f->is.n_ranks; r++) {
        if (f->opts->old_rank[r] != NONE &&
            f->opts->old_rank[r] >= f->was.n_ranks)
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "rank %" PRIu32 " was rank %" PRIu32
                             " of %" PRIu32,
                             r, f->opts->old_rank[r], f->was.n_ranks);
        for (uint32_t k = 0; k < r; k++) {
            if (f->opts->old_rank[r] != NONE &&
                f->opts->old_rank[r] == f->opts->old_rank[k])
                return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                                 "ranks %" PRIu32 " and %" PRIu32
                                 " were both rank %" PRIu32,
                                 k, r, f->opts->old_rank[r]);
        }
    }
    return MOEC_OK;
}

static void aim_layer(differ *f)
{
    problem *p = &f->p;

    f->t = MOEC_DIFF_ROWS;
    p->n_ranks = f->is.n_ranks;
    p->n_rows = f->is.n_local + f->n_shared;
    p->n_old_ranks = f->was.n_ranks;
    p->n_old_rows = f->was.n_local + f->n_shared;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        p->old_of[r] = r < p->n_old_ranks ? r : NONE;
        if (f->opts->old_rank)
            p->old_of[r] = f->opts->old_rank[r];
        if (p->old_of[r] != NONE && p->gone[p->old_of[r]])
            p->old_of[r] = NONE;
        for (uint32_t row = 0; row < p->n_rows; row++)
            p->want[r * p->n_rows + row] =
                moec_plan_unit(f->now, f->layer, r, (moec_local_row){row});
    }
    for (uint32_t r = 0; r < p->n_old_ranks; r++) {
        for (uint32_t row = 0; row < p->n_old_rows; row++)
            p->had[r * p->n_old_rows + row] =
                moec_plan_unit(f->old, f->old_layer, r, (moec_local_row){row});
    }
}

/* A table over all slots: every rank has one of its own, so it is a problem
 * of this rank alone, as rank 0 of 1. */
static void aim_table(differ *f, uint32_t t)
{
    problem *p = &f->p;
    uint32_t me = f->opts->old_rank ? f->opts->old_rank[f->rank] : f->rank;

    f->t = t;
    p->n_rows = (uint32_t)moec_plan_slot_tensor(f->now, f->layer, t)->shape[0];
    p->n_old_rows =
        (uint32_t)moec_plan_slot_tensor(f->old, f->old_layer, t)->shape[0];
    p->n_ranks = p->n_old_ranks = 1;
    p->old_of[0] = me < f->was.n_ranks && !p->gone[me] ? 0 : NONE;
    for (uint32_t row = 0; row < p->n_rows; row++)
        p->want[row] = moec_plan_row_unit(f->now, f->layer, t, f->rank, row);
    for (uint32_t row = 0; row < p->n_old_rows; row++)
        p->had[row] = moec_plan_row_unit(f->old, f->old_layer, t, 0, row);
}

static moec_status diff_table(differ *f, uint32_t t, moec_error *err)
{
    uint32_t rank = f->rank;
    uint8_t gone = f->p.gone[0];
    moec_status st;

    aim_table(f, t);
    f->rank = 0; /* of the problem */
    f->p.gone[0] = f->p.old_of[0] == NONE;
    f->row_bytes = moec_plan_slot_tensor(f->now, f->layer, t)->slot_bytes;
    st = solve(f, err);
    f->rank = rank;
    f->p.gone[0] = gone;
    return st;
}

static moec_status diff_layer(differ *f, moec_error *err)
{
    f->old_layer = f->layer;
    if (moec_plan_model_layer(f->old, f->old_layer) !=
        moec_plan_model_layer(f->now, f->layer))
        return other(err, "their layers");
    if (!same_tensors(f, &f->row_bytes))
        return other(err, "the tensors of a layer");
    if (f->row_bytes > f->d->figures.bounce_bytes)
        f->d->figures.bounce_bytes = f->row_bytes;
    aim_layer(f);
    MOEC_TRY(solve(f, err));
    for (uint32_t t = 0; t < moec_plan_n_slot_tensors(f->now, f->layer); t++) {
        if (moec_plan_slot_tensor(f->now, f->layer, t)->all_slots)
            MOEC_TRY(diff_table(f, t, err));
    }
    return MOEC_OK;
}

/* ----------------------------------------------------------- the object */

static void *take_memory(differ *f, uint64_t n, size_t size)
{
    uint64_t bytes;

    if (!moec_mul_u64(n + 1, size, &bytes) || bytes > SIZE_MAX)
        return NULL;
    return moec_arena_alloc(&f->arena, (size_t)bytes, 16);
}

static moec_status problem_init(differ *f, moec_error *err)
{
    problem *p = &f->p;
    /* A table has as many rows as the layer has cells, or fewer. */
    uint64_t n = (uint64_t)f->is.n_ranks * (f->is.n_local + f->n_shared);
    uint64_t n_old = (uint64_t)f->was.n_ranks * (f->was.n_local + f->n_shared);

    p->n_units = f->n_experts + f->n_shared;
    p->want = take_memory(f, n, sizeof(*p->want));
    p->had = take_memory(f, n_old, sizeof(*p->had));
    p->old_of = take_memory(f, f->is.n_ranks, sizeof(*p->old_of));
    p->first = take_memory(f, p->n_units + 1, sizeof(*p->first));
    p->old = take_memory(f, n_old, sizeof(*p->old));
    p->gone = take_memory(f, f->was.n_ranks, 1);
    p->source = take_memory(f, n, 1);
    p->from = take_memory(f, n, sizeof(*p->from));
    p->waits = take_memory(f, n, sizeof(*p->waits));
    p->ready = take_memory(f, n, sizeof(*p->ready));
    p->todo = take_memory(f, n, sizeof(*p->todo));
    p->free_at = take_memory(f, f->is.n_ranks, sizeof(*p->free_at));
    p->done = take_memory(f, n, 1);
    p->new_cell = take_memory(f, n_old, sizeof(*p->new_cell));
    if (!p->want || !p->had || !p->old_of || !p->first || !p->old || !p->gone ||
        !p->source || !p->from || !p->waits || !p->ready || !p->todo ||
        !p->free_at || !p->done || !p->new_cell)
        return moec_fail_nomem(err, "the rows of all ranks");
    memset(p->gone, 0, f->was.n_ranks);
    if (f->opts->lost)
        memcpy(p->gone, f->opts->lost, f->was.n_ranks);
    return MOEC_OK;
}

static void sum_up(moec_diff *d)
{
    moec_diff_figures *s = &d->figures;
    bool bounces = false;

    for (size_t i = 0; i < d->n; i++) {
        const moec_diff_move *m = &d->moves[i];

        s->n_rounds = m->round >= s->n_rounds ? m->round + 1 : s->n_rounds;
        bounces = bounces || m->dst_row == MOEC_DIFF_BOUNCE;
        switch ((moec_diff_source)m->source) {
        case MOEC_DIFF_LOCAL:
            s->bytes_local += m->bytes;
            break;
        case MOEC_DIFF_HOST:
            s->bytes_host += m->bytes;
            break;
        case MOEC_DIFF_PEER:
            *(m->same_node ? &s->bytes_same_node : &s->bytes_other_node) +=
                m->bytes;
            break;
        case MOEC_DIFF_DISK:
            s->bytes_disk += m->bytes;
            break;
        case MOEC_DIFF_ZEROS:
            break;
        }
    }
    if (!bounces)
        s->bounce_bytes = 0;
}

moec_status moec_plan_diff(moec_diff **out, const moec_plan *old,
                           const moec_plan *now, uint32_t rank,
                           const moec_diff_opts *opts, moec_error *err)
{
    static const moec_diff_opts none = MOEC_DIFF_OPTS_INIT;
    differ f = {.old = old,
                .now = now,
                .opts = opts ? opts : &none,
                .rank = rank,
                .was = moec_plan_topology(old),
                .is = moec_plan_topology(now),
                .n_shared = moec_plan_shared_rows(now),
                .n_experts = moec_model_facts(moec_plan_model(now))->n_experts};
    moec_status st;

    MOEC_TRY(moec_check_struct("moec_diff_opts", f.opts->struct_bytes,
                               sizeof(none), err));
    MOEC_TRY(check_plans(&f, err));
    f.d = moec_calloc(1, sizeof(*f.d));
    if (!f.d)
        return moec_fail_nomem(err, "moves of a rank");
    st = problem_init(&f, err);
    for (f.layer = 0; st == MOEC_OK && f.layer < moec_plan_n_layers(now);
         f.layer++)
        st = diff_layer(&f, err);
    moec_arena_fini(&f.arena);
    if (st != MOEC_OK) {
        moec_diff_destroy(f.d);
        return st;
    }
    sum_up(f.d);
    *out = f.d;
    return MOEC_OK;
}

void moec_diff_destroy(moec_diff *d)
{
    if (!d)
        return;
    moec_free(d->moves);
    moec_free(d);
}

size_t moec_diff_n_moves(const moec_diff *d)
{
    return d->n;
}

const moec_diff_move *moec_diff_get(const moec_diff *d, size_t i)
{
    return &d->moves[i];
}

moec_diff_figures moec_diff_sums(const moec_diff *d)
{
    return d->figures;
}
