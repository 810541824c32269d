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
 * What the journal has of an earlier run is no work; an item is noted there
 * once its bytes are in all their places.
 *
 * Memory: a few buffers a worker, whatever the model's size.
 */

#include <stdlib.h>
#include <string.h>

#include "ckpt.h"
#include "crew.h"
#include "pipeline.h"
#include "readback.h"

#define NO_BLOCK UINT32_MAX

typedef struct item {
    uint64_t src_off; /* sort key: first source byte */
    uint32_t src_file;
    uint32_t layer, t; /* planned layer and slot tensor; NO_BLOCK: common */
    uint32_t unit;     /* unit, or index of the common tensor */
    uint64_t from, to; /* range of the block or tensor */
} item;

/* Places of a unit within one planned layer: physical ids by unit. */
typedef struct places {
    uint32_t *first; /* n_experts + 1 */
    uint32_t *slots; /* physical ids */
    uint32_t *empty; /* physical ids of empty slots */
    uint32_t n_empty;
} places;

typedef struct run {
    moec_input *in;
    const moec_layout *layout;
    const moec_plan *plan;
    const moec_ckpt *ckpt;
    moec_writer *w;
    moec_digests *d;
    moec_journal *journal;
    const moec_convert_opts *opts;
    moec_crew crew;
    uint64_t resumed_bytes; /* that an earlier run wrote */
    size_t n_items, cap_items;
    item *items;
    places *places; /* by planned layer */
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
    return c.bytes + leaves * sizeof(moec_leaf);
}

static void free_run(run *r)
{
    moec_crew_fini(&r->crew);
    for (size_t i = 0; r->places != NULL && i < moec_plan_n_layers(r->plan);
         i++) {
        moec_free(r->places[i].first);
        moec_free(r->places[i].slots);
        moec_free(r->places[i].empty);
    }
    moec_free(r->places);
    moec_free(r->items);
}

/* -------------------------------------------------------------- places */

static moec_status place_layer(run *r, size_t layer, places *pl,
                               moec_error *err)
{
    moec_topology topo = moec_plan_topology(r->plan);
    uint32_t n = moec_model_facts(moec_plan_model(r->plan))->n_experts;
    uint32_t at = 0;

    pl->first = moec_calloc(n + 2u, sizeof(*pl->first));
    pl->slots = moec_calloc(topo.n_physical + 1u, sizeof(*pl->slots));
    pl->empty = moec_calloc(topo.n_physical + 1u, sizeof(*pl->empty));
    if (pl->first == NULL || pl->slots == NULL || pl->empty == NULL)
        return moec_fail_nomem(err, "slots of a layer");
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t p = 0; p < topo.n_physical; p++) {
            moec_physical_id id = {p};
            uint32_t u =
                moec_plan_unit(r->plan, layer, moec_physical_rank(topo, id),
                               moec_physical_local(topo, id));
            if (u == MOEC_UNIT_EMPTY && pass == 0)
                pl->empty[pl->n_empty++] = p;
            else if (u != MOEC_UNIT_EMPTY && pass == 0)
                pl->first[u + 1]++;
            else if (u != MOEC_UNIT_EMPTY)
                pl->slots[pl->first[u]++] = p;
        }
        for (uint32_t e = 0; pass == 0 && e <= n; e++) {
            at += pl->first[e];
            pl->first[e] = at;
        }
    }
    /* the second pass moved each begin to the next one's */
    memmove(pl->first + 1, pl->first, n * sizeof(*pl->first));
    pl->first[0] = 0;
    return MOEC_OK;
}

static moec_status place_all(run *r, moec_error *err)
{
    size_t n = moec_plan_n_layers(r->plan);

    r->places = moec_calloc(n + 1, sizeof(*r->places));
    if (r->places == NULL)
        return moec_fail_nomem(err, "slots of all layers");
    for (size_t i = 0; i < n; i++)
        MOEC_TRY(place_layer(r, i, &r->places[i], err));
    return MOEC_OK;
}

/* --------------------------------------------------------------- items */

static moec_status add_item(run *r, const item *it, moec_error *err)
{
    if (r->n_items == r->cap_items) {
        size_t cap = r->cap_items ? 2 * r->cap_items : 1024;
        item *p = moec_realloc_array(r->items, cap, sizeof(*p));
        if (p == NULL)
            return moec_fail_nomem(err, "list of work");
        r->items = p;
        r->cap_items = cap;
    }
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

/* Items of one block. A zero block needs its digests too. */
static moec_status add_block(run *r, uint32_t layer, uint32_t t, uint32_t unit,
                             moec_error *err)
{
    const moec_slot_tensor *s = moec_plan_slot_tensor(r->plan, layer, t);
    item it = {.layer = layer, .t = t, .unit = unit};
    uint64_t range = r->crew.range_bytes;
    moec_spot spot = {0};

    MOEC_TRY(r->in->kind->block_spot(r->in, (moec_block_id){layer, t, unit},
                                     &spot, err));
    it.src_file = spot.file;
    it.src_off = spot.off;
    if (s->op == MOEC_OP_COPY)
        range = moec_min_u64(range, MOEC_COPY_RANGE_BYTES);
    return add_ranges(r, it, s->slot_bytes, range, s->op == MOEC_OP_COPY, err);
}

static moec_status add_layer(run *r, uint32_t layer, moec_error *err)
{
    uint32_t n = moec_model_facts(moec_plan_model(r->plan))->n_experts +
                 moec_plan_shared_rows(r->plan);
    size_t n_tensors = moec_plan_n_slot_tensors(r->plan, layer);

    for (uint32_t t = 0; t < n_tensors; t++) {
        for (uint32_t u = 0; u < n; u++)
            MOEC_TRY(add_block(r, layer, t, u, err));
        if (r->places[layer].n_empty > 0)
            MOEC_TRY(add_block(r, layer, t, MOEC_UNIT_EMPTY, err));
    }
    return MOEC_OK;
}

static moec_status add_common(run *r, moec_error *err)
{
    for (size_t i = 0; i < moec_ckpt_n_tensors(r->ckpt); i++) {
        const moec_tensor *src = moec_ckpt_tensor(r->ckpt, i);
        moec_fate fate = moec_plan_fate(r->plan, i);
        item it = {.layer = NO_BLOCK, .unit = (uint32_t)i};

        if (fate != MOEC_FATE_COMMON && fate != MOEC_FATE_SHARED)
            continue;
        moec_spot spot = {0};
        MOEC_TRY(r->in->kind->tensor_spot(r->in, (uint32_t)i, &spot, err));
        it.src_file = spot.file;
        it.src_off = spot.off;
        MOEC_TRY(
            add_ranges(r, it, src->bytes,
                       moec_min_u64(r->crew.range_bytes, MOEC_COPY_RANGE_BYTES),
                       true, err));
    }
    return MOEC_OK;
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
    return a->unit < b->unit ? -1 : a->unit > b->unit;
}

static uint64_t first_leaf(const run *r, const item *it)
{
    uint64_t base = it->layer == NO_BLOCK
                        ? r->d->common_base[it->unit]
                        : moec_digests_block(r->d, it->layer, it->t, it->unit);

    return base + it->from / MOEC_LEAF_BYTES;
}

/* Rows that a shared part has: one a rank, but one for all ranks in a table
 * over slots that number it once. */
static uint32_t n_shared_places(const run *r, const item *it)
{
    moec_topology topo = moec_plan_topology(r->plan);
    bool once = topo.shared_global &&
                moec_plan_slot_tensor(r->plan, it->layer, it->t)->all_slots;

    return once ? 1 : topo.n_ranks;
}

/* How often the item's bytes are written. */
static uint64_t n_places(const run *r, const item *it)
{
    const moec_model *m = moec_plan_model(r->plan);
    uint64_t n_ranks = moec_plan_topology(r->plan).n_ranks, tables = 1;
    const places *pl;

    if (it->layer == NO_BLOCK)
        return 1;
    if (it->unit == MOEC_UNIT_EMPTY)
        return 0;
    if (moec_plan_slot_tensor(r->plan, it->layer, it->t)->all_slots)
        tables = n_ranks;
    if (it->unit >= moec_model_facts(m)->n_experts)
        return n_shared_places(r, it) * tables;
    pl = &r->places[it->layer];
    return (pl->first[it->unit + 1] - pl->first[it->unit]) * tables;
}

/* Leave out what an earlier run has done. */
static void drop_done(run *r)
{
    size_t n = 0;

    for (size_t i = 0; i < r->n_items; i++) {
        const item *it = &r->items[i];
        uint64_t bytes = it->to - it->from;

        if (moec_journal_has(r->journal, first_leaf(r, it),
                             moec_n_leaves(bytes)))
            r->resumed_bytes += bytes * n_places(r, it);
        else
            r->items[n++] = *it;
    }
    r->n_items = n;
}

static moec_status make_items(run *r, moec_error *err)
{
    size_t n = moec_plan_n_layers(r->plan);

    for (size_t i = 0; i < n; i++)
        MOEC_TRY(add_layer(r, (uint32_t)i, err));
    MOEC_TRY(add_common(r, err));
    qsort(r->items, r->n_items, sizeof(*r->items), item_order);
    for (size_t i = 0; i < moec_layout_n_files(r->layout); i++)
        r->crew.total_bytes += moec_layout_file(r->layout, i)->bytes;
    drop_done(r);
    return MOEC_OK;
}

/* ----------------------------------------------------------- execution */

/* Write the range to row `row` of rank `rank`. */
static moec_status write_row(hand *k, const item *it, uint32_t rank,
                             uint32_t row, moec_error *err)
{
    run *r = k->run;
    const moec_slot_tensor *s =
        moec_plan_slot_tensor(r->plan, it->layer, it->t);
    size_t file, n = (size_t)(it->to - it->from);
    uint64_t off;

    moec_layout_find_slots(r->layout, rank, it->layer, it->t, &file, &off);
    MOEC_TRY(moec_writer_write(r->w, file, off + row * s->slot_bytes + it->from,
                               k->worker->buf, n, err));
    return moec_crew_done(&r->crew, n, err);
}

/* The same for local row `row`, in the tables of all ranks where the slot
 * tensor is a table over all slots. */
static moec_status write_local(hand *k, const item *it, uint32_t rank,
                               uint32_t row, moec_error *err)
{
    const moec_plan *p = k->run->plan;
    moec_local_row local = {row};

    if (!moec_plan_slot_tensor(p, it->layer, it->t)->all_slots)
        return write_row(k, it, rank, row, err);
    row = moec_plan_row(p, it->layer, it->t, rank, local);
    for (uint32_t r = 0; r < moec_plan_topology(p).n_ranks; r++)
        MOEC_TRY(write_row(k, it, r, row, err));
    return MOEC_OK;
}

static moec_status write_block(hand *k, const item *it, moec_error *err)
{
    run *r = k->run;
    moec_topology topo = moec_plan_topology(r->plan);
    const places *pl = &r->places[it->layer];
    uint32_t n_experts = moec_model_facts(moec_plan_model(r->plan))->n_experts;

    if (it->unit == MOEC_UNIT_EMPTY)
        return MOEC_OK; /* new files are zeros */
    if (it->unit >= n_experts) {
        uint32_t row = topo.n_local + it->unit - n_experts;
        for (uint32_t rank = 0; rank < n_shared_places(r, it); rank++)
            MOEC_TRY(write_local(k, it, rank, row, err));
        return MOEC_OK;
    }
    for (uint32_t i = pl->first[it->unit]; i < pl->first[it->unit + 1]; i++) {
        moec_physical_id p = {pl->slots[i]};
        MOEC_TRY(write_local(k, it, moec_physical_rank(topo, p),
                             moec_physical_local(topo, p).v, err));
    }
    return MOEC_OK;
}

static moec_status do_block(hand *k, const item *it, moec_error *err)
{
    run *r = k->run;
    moec_block_id b = {it->layer, it->t, it->unit};

    MOEC_TRY(r->in->kind->read_block(r->in, hand_of(k), b, it->from, it->to,
                                     k->worker->buf, err));
    MOEC_TRY(moec_digests_leaves(
        r->d, moec_digests_block(r->d, it->layer, it->t, it->unit), it->from,
        k->worker->buf, (size_t)(it->to - it->from), err));
    return write_block(k, it, err);
}

static moec_status do_common(hand *k, const item *it, moec_error *err)
{
    run *r = k->run;
    size_t file, n = (size_t)(it->to - it->from);
    uint64_t off;

    MOEC_TRY(r->in->kind->read_tensor(r->in, hand_of(k), it->unit, it->from,
                                      k->worker->buf, n, err));
    MOEC_TRY(moec_digests_leaves(r->d, r->d->common_base[it->unit], it->from,
                                 k->worker->buf, n, err));
    if (!moec_layout_find_common(r->layout, it->unit, &file, &off))
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_T1,
                         "tensor '%s' is common and in no file",
                         moec_ckpt_tensor(r->ckpt, it->unit)->name);
    MOEC_TRY(
        moec_writer_write(r->w, file, off + it->from, k->worker->buf, n, err));
    return moec_crew_done(&r->crew, n, err);
}

static moec_status do_item(void *ctx, size_t i, uint32_t worker_index,
                           moec_error *err)
{
    run *r = ctx;
    const item *it = &r->items[i];
    hand h = {r, &r->crew.workers[worker_index], worker_index};

    MOEC_TRY(it->layer == NO_BLOCK ? do_common(&h, it, err)
                                   : do_block(&h, it, err));
    return moec_journal_add(r->journal, first_leaf(r, it),
                            moec_n_leaves(it->to - it->from), err);
}

static moec_status prepare(run *r, moec_error *err)
{
    MOEC_TRY(
        moec_crew_choose(&r->crew, moec_crew_range(r->plan), r->opts, err));
    MOEC_TRY(place_all(r, err));
    MOEC_TRY(make_items(r, err));
    MOEC_TRY(r->in->kind->hire(r->in, r->crew.n, err));
    return moec_crew_hire(&r->crew, err);
}

moec_status moec_pipeline_run(moec_input *in, moec_writer *w, moec_digests *d,
                              moec_journal *journal, moec_convert_stats *stats,
                              moec_error *err)
{
    run r = {.in = in,
             .layout = in->layout,
             .plan = in->plan,
             .w = w,
             .d = d,
             .journal = journal,
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
