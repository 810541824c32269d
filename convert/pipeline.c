/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The moving part of a conversion.
 *
 * Work is cut into items: a range, a multiple of the digest leaf, of one
 * block (layer, slot tensor, unit) or of one common tensor. A worker reads
 * the range's source bytes, digests the leaves and writes the range to every
 * rank that holds the unit: redundant copies and shared parts cost writes,
 * never reads. Items are independent and stand in source order, so that the
 * disk sees long runs; which worker does which item changes nothing in the
 * output. Workers block in system calls, so there are more of them than CPUs.
 *
 * What the journals have of an earlier run is no work; an item is noted there
 * once its bytes are in all their places. Of several processes each does the
 * items of its ranks (share.h).
 *
 * Memory: a few buffers a worker, whatever the model's size.
 */

#include <stdlib.h>
#include <string.h>

#include "ckpt.h"
#include "crew.h"
#include "pipeline.h"
#include "readback.h"

typedef struct item {
    uint64_t src_off; /* sort key: first source byte */
    uint32_t src_file;
    moec_share_piece p;
    uint64_t from, to; /* range of the piece */
} item;

typedef struct run {
    moec_input *in;
    const moec_layout *layout;
    const moec_plan *plan;
    const moec_ckpt *ckpt;
    const moec_work *work;
    const moec_share *share;
    const moec_convert_opts *opts;
    moec_crew crew;
    uint64_t resumed_bytes; /* that an earlier run wrote */
    size_t n_items, cap_items;
    item *items;
} run;

typedef struct hand {
    run *run;
    moec_worker *worker;
    uint32_t index; /* of the worker */
} hand;

static moec_hand hand_of(const hand *k)
{
    return (moec_hand){k->index, k->worker};
}

uint64_t moec_convert_memory(const moec_plan *plan,
                             const moec_convert_opts *opts)
{
    moec_crew c = {0};
    uint64_t leaves = 0;
    const moec_ckpt *ck = moec_model_ckpt(moec_plan_model(plan));

    if (moec_crew_choose(&c, moec_crew_range(plan), opts, NULL) != MOEC_OK)
        c.bytes = opts->memory_bytes;
    for (size_t i = 0; i < moec_ckpt_n_tensors(ck); i++)
        leaves += moec_n_leaves(moec_ckpt_tensor(ck, i)->bytes);
    if (opts->source != NULL) /* what the readers keep */
        c.bytes += c.n * (uint64_t)sizeof(moec_reader);
    moec_requant *q = NULL;
    if (moec_requant_create(&q, plan, NULL) == MOEC_OK)
        c.bytes += c.n * moec_requant_memory(q);
    moec_requant_destroy(q);
    return c.bytes + leaves * sizeof(moec_leaf);
}

static void free_run(run *r)
{
    moec_crew_fini(&r->crew);
    moec_free(r->items);
}

/* --------------------------------------------------------------- items */

static moec_status add_item(run *r, const item *it, moec_error *err)
{
    if (!MOEC_GROW(r->items, r->n_items, r->cap_items))
        return moec_fail_nomem(err, "list of work");
    r->items[r->n_items++] = *it;
    return MOEC_OK;
}

static moec_status add_ranges(run *r, item it, uint64_t bytes, uint64_t range,
                              bool advances, moec_error *err)
{
    uint64_t src_off = it.src_off;

    for (it.from = 0; it.from < bytes; it.from = it.to) {
        it.to = it.from + moec_min_u64(range, bytes - it.from);
        if (advances)
            it.src_off = src_off + it.from;
        MOEC_TRY(add_item(r, &it, err));
    }
    return MOEC_OK;
}

/* A zero block needs its digests too. */
static moec_status add_block(run *r, moec_share_piece p, moec_error *err)
{
    const moec_slot_tensor *s = moec_plan_slot_tensor(r->plan, p.layer, p.t);
    item it = {.p = p};
    uint64_t range = r->crew.range_bytes;
    moec_spot spot = {0};

    MOEC_TRY(r->in->kind->block_spot(
        r->in, (moec_block_id){p.layer, p.t, p.unit}, &spot, err));
    it.src_file = spot.file;
    it.src_off = spot.off;
    if (s->op == MOEC_OP_COPY)
        range = moec_min_u64(range, MOEC_COPY_RANGE_BYTES);
    return add_ranges(r, it, s->slot_bytes, range, s->op == MOEC_OP_COPY, err);
}

static moec_status add_common(run *r, moec_share_piece p, moec_error *err)
{
    item it = {.p = p};
    moec_spot spot = {0};

    MOEC_TRY(r->in->kind->tensor_spot(r->in, p.unit, &spot, err));
    it.src_file = spot.file;
    it.src_off = spot.off;
    return add_ranges(r, it, moec_ckpt_tensor(r->ckpt, p.unit)->bytes,
                      moec_min_u64(r->crew.range_bytes, MOEC_COPY_RANGE_BYTES),
                      true, err);
}

/* Of the pieces, those that one of our ranks owes. */
static moec_status add_piece(void *ctx, moec_share_piece p, moec_error *err)
{
    run *r = ctx;
    bool ours = false;

    for (uint32_t k = 0; !ours && k < r->work->n_journals; k++)
        ours = r->work->journals[k] != NULL && moec_share_owes(r->share, k, p);
    if (!ours)
        return MOEC_OK;
    return p.layer == MOEC_NO_BLOCK ? add_common(r, p, err)
                                    : add_block(r, p, err);
}

static int item_order(const void *pa, const void *pb)
{
    const item *a = pa, *b = pb;

    if (a->src_file != b->src_file)
        return a->src_file < b->src_file ? -1 : 1;
    if (a->src_off != b->src_off)
        return a->src_off < b->src_off ? -1 : 1;
    if (a->from != b->from)
        return a->from < b->from ? -1 : 1;
    return a->p.unit < b->p.unit ? -1 : a->p.unit > b->p.unit;
}

static uint64_t first_leaf(const run *r, const item *it)
{
    uint64_t n;

    return moec_share_leaf(r->share, it->p, &n) + it->from / MOEC_LEAF_BYTES;
}

/* -------------------------------------------------------------- places */

/* Is rank `k` ours, with this item still to be done? */
static bool is_open(const run *r, const item *it, uint32_t k)
{
    const moec_journal *j = r->work->journals[k];

    return j != NULL && !moec_journal_has(j, first_leaf(r, it),
                                          moec_n_leaves(it->to - it->from));
}

/* Row `row` of rank `rank` wants the bytes of an item. */
typedef moec_status (*place_fn)(void *ctx, const item *it, uint32_t rank,
                                uint32_t row, moec_error *err);

/* Local row `row` of rank `rank`: the same in the tables of all ranks where the
 * slot tensor is a table over all slots. */
static moec_status each_row(const run *r, const item *it, uint32_t rank,
                            uint32_t row, place_fn fn, void *ctx,
                            moec_error *err)
{
    const moec_share_piece *p = &it->p;

    if (!moec_plan_slot_tensor(r->plan, p->layer, p->t)->all_slots)
        return fn(ctx, it, rank, row, err);
    row = moec_plan_row(r->plan, p->layer, p->t, rank, (moec_local_row){row});
    for (uint32_t k = 0; k < moec_plan_topology(r->plan).n_ranks; k++)
        MOEC_TRY(fn(ctx, it, k, row, err));
    return MOEC_OK;
}

/* Rows that a shared part has: one a rank, but one for all ranks in a table
 * over slots that number it once. */
static uint32_t n_shared_places(const run *r, const item *it)
{
    moec_topology topo = moec_plan_topology(r->plan);
    bool once = topo.shared_global &&
                moec_plan_slot_tensor(r->plan, it->p.layer, it->p.t)->all_slots;

    return once ? 1 : topo.n_ranks;
}

static moec_status each_place(const run *r, const item *it, place_fn fn,
                              void *ctx, moec_error *err)
{
    moec_topology topo = moec_plan_topology(r->plan);
    const moec_places *pl = &r->share->places[it->p.layer];
    uint32_t n_experts = moec_model_facts(moec_plan_model(r->plan))->n_experts;
    uint32_t u = it->p.unit;

    if (u == MOEC_UNIT_EMPTY)
        return MOEC_OK; /* new files are zeros */
    for (uint32_t k = 0; u >= n_experts && k < n_shared_places(r, it); k++)
        MOEC_TRY(
            each_row(r, it, k, topo.n_local + u - n_experts, fn, ctx, err));
    for (uint32_t i = 0; u < n_experts && i < pl->first[u + 1] - pl->first[u];
         i++) {
        moec_physical_id p = {pl->slots[pl->first[u] + i]};
        MOEC_TRY(each_row(r, it, moec_physical_rank(topo, p),
                          moec_physical_local(topo, p).v, fn, ctx, err));
    }
    return MOEC_OK;
}

/* How often our ranks write an item, and have written it before. */
typedef struct tally {
    const run *r;
    uint64_t all, done;
} tally;

static moec_status count_place(void *ctx, const item *it, uint32_t rank,
                               uint32_t row, moec_error *err)
{
    tally *n = ctx;
    uint32_t k = moec_share_debtor(n->r->share, it->p, rank);

    (void)row;
    (void)err;
    if (n->r->work->journals[k] != NULL) {
        n->all++;
        n->done += !is_open(n->r, it, k);
    }
    return MOEC_OK;
}

static tally count_places(const run *r, const item *it)
{
    tally n = {.r = r};

    if (it->p.layer == MOEC_NO_BLOCK)
        (void)count_place(&n, it, 0, 0, NULL);
    else
        (void)each_place(r, it, count_place, &n, NULL);
    return n;
}

/* Leave out what an earlier run has done. */
static void drop_done(run *r)
{
    size_t n = 0;

    for (size_t i = 0; i < r->n_items; i++) {
        const item *it = &r->items[i];
        uint64_t bytes = it->to - it->from;
        tally t = count_places(r, it);
        bool open = false;

        for (uint32_t k = 0; !open && k < r->work->n_journals; k++)
            open = is_open(r, it, k) && moec_share_owes(r->share, k, it->p);
        r->resumed_bytes += bytes * t.done;
        if (!r->share->whole)
            r->crew.total_bytes += bytes * t.all;
        if (open)
            r->items[n++] = *it;
    }
    r->n_items = n;
}

static moec_status make_items(run *r, moec_error *err)
{
    MOEC_TRY(moec_share_each(r->share, add_piece, r, err));
    if (r->n_items > 0)
        qsort(r->items, r->n_items, sizeof(*r->items), item_order);
    for (size_t i = 0; r->share->whole && i < moec_layout_n_files(r->layout);
         i++)
        r->crew.total_bytes += moec_layout_file(r->layout, i)->bytes;
    drop_done(r);
    return MOEC_OK;
}

/* ----------------------------------------------------------- execution */

/* Write the range to row `row` of rank `rank`, if that is still to be done. */
static moec_status write_row(void *ctx, const item *it, uint32_t rank,
                             uint32_t row, moec_error *err)
{
    hand *k = ctx;
    run *r = k->run;
    const moec_share_piece *p = &it->p;
    const moec_slot_tensor *s = moec_plan_slot_tensor(r->plan, p->layer, p->t);
    size_t file, n = (size_t)(it->to - it->from);
    uint64_t off;

    if (!is_open(r, it, moec_share_debtor(r->share, *p, rank)))
        return MOEC_OK;
    moec_layout_find_slots(r->layout, rank, p->layer, p->t, &file, &off);
    MOEC_TRY(moec_writer_write(r->work->w, file,
                               off + row * s->slot_bytes + it->from,
                               k->worker->buf, n, err));
    return moec_crew_done(&r->crew, n, err);
}

static moec_status do_block(hand *k, const item *it, moec_error *err)
{
    run *r = k->run;
    moec_block_id b = {it->p.layer, it->p.t, it->p.unit};
    moec_digests *d = r->work->d;

    MOEC_TRY(moec_input_block(r->in, hand_of(k), b, it->from, it->to,
                              k->worker->buf, err));
    MOEC_TRY(moec_digests_leaves(d, moec_digests_block(d, b.layer, b.t, b.unit),
                                 it->from, k->worker->buf,
                                 (size_t)(it->to - it->from), err));
    return each_place(r, it, write_row, k, err);
}

static moec_status do_common(hand *k, const item *it, moec_error *err)
{
    run *r = k->run;
    moec_digests *d = r->work->d;
    uint32_t tensor = it->p.unit;
    size_t file, n = (size_t)(it->to - it->from);
    uint64_t off;

    MOEC_TRY(r->in->kind->read_tensor(r->in, hand_of(k), tensor, it->from,
                                      k->worker->buf, n, err));
    MOEC_TRY(moec_digests_leaves(d, d->common_base[tensor], it->from,
                                 k->worker->buf, n, err));
    if (!moec_layout_find_common(r->layout, tensor, &file, &off))
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_T1,
                         "tensor '%s' is common and in no file",
                         moec_ckpt_tensor(r->ckpt, tensor)->name);
    MOEC_TRY(moec_writer_write(r->work->w, file, off + it->from, k->worker->buf,
                               n, err));
    return moec_crew_done(&r->crew, n, err);
}

/* What was open when the item began is done now. */
static moec_status note_done(run *r, const item *it, moec_error *err)
{
    uint64_t n = moec_n_leaves(it->to - it->from);

    for (uint32_t k = 0; k < r->work->n_journals; k++)
        if (is_open(r, it, k) && moec_share_owes(r->share, k, it->p))
            MOEC_TRY(moec_journal_add(r->work->journals[k], first_leaf(r, it),
                                      n, err));
    return MOEC_OK;
}

static moec_status do_item(void *ctx, size_t i, uint32_t worker_index,
                           moec_error *err)
{
    run *r = ctx;
    const item *it = &r->items[i];
    hand h = {r, &r->crew.workers[worker_index], worker_index};

    MOEC_TRY(it->p.layer == MOEC_NO_BLOCK ? do_common(&h, it, err)
                                          : do_block(&h, it, err));
    return note_done(r, it, err);
}

static moec_status prepare(run *r, moec_error *err)
{
    MOEC_TRY(
        moec_crew_choose(&r->crew, moec_crew_range(r->plan), r->opts, err));
    MOEC_TRY(make_items(r, err));
    MOEC_TRY(moec_input_hire(r->in, r->crew.n, err));
    return moec_crew_hire(&r->crew, err);
}

moec_status moec_pipeline_run(moec_input *in, const moec_work *work,
                              moec_convert_stats *stats, moec_error *err)
{
    run r = {.in = in,
             .layout = in->layout,
             .plan = in->plan,
             .work = work,
             .share = work->share,
             .opts = in->opts,
             .ckpt = in->ckpt};

    moec_status st = prepare(&r, err);
    if (st == MOEC_OK && r.resumed_bytes > 0)
        moec_crew_resumed(&r.crew, r.resumed_bytes);
    if (st == MOEC_OK)
        st = moec_parallel(r.crew.n, r.n_items, do_item, &r, err);
    if (st == MOEC_OK)
        st = in->kind->check_unchanged(in, err);
    stats->n_threads = r.crew.n;
    stats->bytes_resumed = r.resumed_bytes;
    stats->bytes_written += atomic_load(&r.crew.done_bytes) - r.resumed_bytes;
    stats->bytes_read += moec_crew_bytes_read(&r.crew);
    free_run(&r);
    return st;
}
