/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: a re-placement of what ranks hold in memory: for one rank the
 *   moves that turn the rows of the old plan into those of the new one, where
 *   each comes from, and in which order. Opens nothing, moves nothing.
 * Refuses: plans that differ in more than ranks and placement (MAPPING), and
 *   expert stores.
 */

#include <inttypes.h>
#include <string.h>

#include "plan_diff.h"

/* ------------------------------------------------------------ the plans */

static moec_status other(moec_error *err, const char *what)
{
    return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_NONE,
                     "the two plans differ in %s: no re-placement leads from "
                     "one to the other",
                     what);
}

static bool same_tensors(const moec_differ *f, uint64_t *bytes_out)
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

static moec_status check_plans(const moec_differ *f, moec_error *err)
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
        if (f->opts->old_rank[r] != MOEC_DIFF_NONE &&
            f->opts->old_rank[r] >= f->was.n_ranks)
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "rank %" PRIu32 " was rank %" PRIu32
                             " of %" PRIu32,
                             r, f->opts->old_rank[r], f->was.n_ranks);
        for (uint32_t k = 0; k < r; k++) {
            if (f->opts->old_rank[r] != MOEC_DIFF_NONE &&
                f->opts->old_rank[r] == f->opts->old_rank[k])
                return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                                 "ranks %" PRIu32 " and %" PRIu32
                                 " were both rank %" PRIu32,
                                 k, r, f->opts->old_rank[r]);
        }
    }
    return MOEC_OK;
}

static void aim_layer(moec_differ *f)
{
    moec_diff_problem *p = &f->p;

    f->t = MOEC_DIFF_ROWS;
    p->n_ranks = f->is.n_ranks;
    p->n_rows = f->is.n_local + f->n_shared;
    p->n_old_ranks = f->was.n_ranks;
    p->n_old_rows = f->was.n_local + f->n_shared;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        p->old_of[r] = r < p->n_old_ranks ? r : MOEC_DIFF_NONE;
        if (f->opts->old_rank)
            p->old_of[r] = f->opts->old_rank[r];
        if (p->old_of[r] != MOEC_DIFF_NONE && p->gone[p->old_of[r]])
            p->old_of[r] = MOEC_DIFF_NONE;
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
static void aim_table(moec_differ *f, uint32_t t)
{
    moec_diff_problem *p = &f->p;
    uint32_t me = f->opts->old_rank ? f->opts->old_rank[f->rank] : f->rank;

    f->t = t;
    p->n_rows = (uint32_t)moec_plan_slot_tensor(f->now, f->layer, t)->shape[0];
    p->n_old_rows =
        (uint32_t)moec_plan_slot_tensor(f->old, f->old_layer, t)->shape[0];
    p->n_ranks = p->n_old_ranks = 1;
    p->old_of[0] = me < f->was.n_ranks && !p->gone[me] ? 0 : MOEC_DIFF_NONE;
    for (uint32_t row = 0; row < p->n_rows; row++)
        p->want[row] = moec_plan_row_unit(f->now, f->layer, t, f->rank, row);
    for (uint32_t row = 0; row < p->n_old_rows; row++)
        p->had[row] = moec_plan_row_unit(f->old, f->old_layer, t, 0, row);
}

static moec_status diff_table(moec_differ *f, uint32_t t, moec_error *err)
{
    uint32_t rank = f->rank;
    uint8_t gone = f->p.gone[0];
    moec_status st;

    aim_table(f, t);
    f->rank = 0; /* of the moec_diff_problem */
    f->p.gone[0] = f->p.old_of[0] == MOEC_DIFF_NONE;
    f->row_bytes = moec_plan_slot_tensor(f->now, f->layer, t)->slot_bytes;
    st = moec_diff_solve(f, err);
    f->rank = rank;
    f->p.gone[0] = gone;
    return st;
}

static moec_status diff_layer(moec_differ *f, moec_error *err)
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
    MOEC_TRY(moec_diff_solve(f, err));
    for (uint32_t t = 0; t < moec_plan_n_slot_tensors(f->now, f->layer); t++) {
        if (moec_plan_slot_tensor(f->now, f->layer, t)->all_slots)
            MOEC_TRY(diff_table(f, t, err));
    }
    return MOEC_OK;
}

/* ----------------------------------------------------------- the object */

static void *take_memory(moec_differ *f, uint64_t n, size_t size)
{
    uint64_t bytes;

    if (!moec_mul_u64(n + 1, size, &bytes) || bytes > SIZE_MAX)
        return NULL;
    return moec_arena_alloc(&f->arena, (size_t)bytes, 16);
}

static moec_status problem_init(moec_differ *f, moec_error *err)
{
    moec_diff_problem *p = &f->p;
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
    moec_differ f = {.old = old,
                     .now = now,
                     .opts = opts ? opts : &none,
                     .rank = rank,
                     .was = moec_plan_topology(old),
                     .is = moec_plan_topology(now),
                     .n_shared = moec_plan_shared_rows(now),
                     .n_experts =
                         moec_model_facts(moec_plan_model(now))->n_experts};
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
