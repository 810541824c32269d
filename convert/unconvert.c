/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The way back: the source's files from a converted checkpoint, byte for
 * byte. Headers and index come from sources.bin, small files from their
 * copies, every tensor through the inverse moves (mapping/inverse.h).
 *
 * What is read is checked on the way (readback.h): a damaged slot ends with
 * INTEGRITY naming file, tensor and byte, and with no output.
 *
 * An interrupted run is gone on with as in convert: the journal's cells are the
 * MiB of each block, with nothing to remember of them.
 *
 * Tensors that the conversion left out come from the checkpoint itself where
 * that is given (opts->original), unchecked but for its headers; otherwise such
 * conversions are refused (M09).
 */

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ckpt.h"
#include "conversion.h"
#include "crew.h"
#include "identity.h"
#include "inverse.h"
#include "out_job.h"
#include "readback.h"

typedef struct item {
    uint64_t from_off; /* sort key: first byte in the converted file */
    uint32_t from_file;
    uint32_t tensor;
    uint32_t block;
    uint64_t from, to; /* range of the block */
    uint64_t cell;     /* of the journal: the range's first MiB */
} item;

typedef struct back {
    const moec_layout *layout;
    const moec_converted *conv;
    const moec_ckpt *src; /* headers alone */
    const moec_convert_opts *opts;
    moec_out_job job;
    moec_out_job_file *shards;
    moec_buf identity;
    uint64_t resumed_bytes; /* that an earlier run wrote */
    moec_crew crew;
    moec_readback rb;
    size_t n_items, cap_items;
    item *items;
} back;

/* ----------------------------------------------------------------- items */

static moec_status add_item(back *b, const item *it, moec_error *err)
{
    if (!MOEC_GROW(b->items, b->n_items, b->cap_items))
        return moec_fail_nomem(err, "list of work");
    b->items[b->n_items++] = *it;
    return MOEC_OK;
}

static moec_status add_block(back *b, uint32_t tensor, uint32_t block,
                             moec_inverse *inv, moec_error *err)
{
    item it = {.tensor = tensor, .block = block};
    uint64_t range = b->crew.range_bytes;

    MOEC_TRY(moec_inverse_block(b->layout, tensor, block, inv, err));
    if (inv->n_moves > 0) {
        it.from_file = (uint32_t)inv->from[0].file;
        it.from_off = inv->from[0].off + inv->moves[0].src_off;
    }
    if (inv->n_moves == 1 && inv->moves[0].op == MOEC_OP_COPY)
        range = moec_min_u64(range, MOEC_COPY_RANGE_BYTES);
    for (it.from = 0; it.from < inv->bytes; it.from = it.to) {
        it.to = it.from + moec_min_u64(range, inv->bytes - it.from);
        it.cell = b->job.n_cells + it.from / MOEC_LEAF_BYTES;
        MOEC_TRY(add_item(b, &it, err));
    }
    b->job.n_cells += (size_t)moec_ceil_div(inv->bytes, MOEC_LEAF_BYTES);
    return MOEC_OK;
}

/* A tensor that the conversion left out: one block, read from the original
 * behind everything else. */
static moec_status add_left_out(back *b, uint32_t tensor, moec_error *err)
{
    const moec_tensor *t = moec_ckpt_tensor(b->src, tensor);
    item it = {.from_file = UINT32_MAX, .tensor = tensor};

    for (it.from = 0; it.from < t->bytes; it.from = it.to) {
        it.to = it.from + moec_min_u64(b->crew.range_bytes, t->bytes - it.from);
        it.from_off = t->off + it.from;
        it.cell = b->job.n_cells + it.from / MOEC_LEAF_BYTES;
        MOEC_TRY(add_item(b, &it, err));
    }
    b->job.n_cells += (size_t)moec_ceil_div(t->bytes, MOEC_LEAF_BYTES);
    return MOEC_OK;
}

static int item_order(const void *pa, const void *pb)
{
    const item *a = pa, *b = pb;

    if (a->from_file != b->from_file)
        return a->from_file < b->from_file ? -1 : 1;
    if (a->from_off != b->from_off)
        return a->from_off < b->from_off ? -1 : 1;
    if (a->tensor != b->tensor)
        return a->tensor < b->tensor ? -1 : 1;
    return a->from < b->from ? -1 : a->from > b->from;
}

static moec_status make_items(back *b, moec_error *err)
{
    const moec_plan *plan = moec_layout_plan(b->layout);
    size_t n = moec_ckpt_n_tensors(b->src);
    moec_inverse *inv = moec_alloc(sizeof(*inv));
    moec_status st = MOEC_OK;

    if (inv == NULL)
        return moec_fail_nomem(err, "an inverse");
    for (size_t i = 0; st == MOEC_OK && i < n; i++) {
        bool left_out = moec_plan_fate(plan, i) == MOEC_FATE_SKIPPED;
        size_t n_blocks = left_out ? 0 : moec_inverse_n_blocks(b->layout, i);

        if (left_out)
            st = add_left_out(b, (uint32_t)i, err);
        for (size_t k = 0; st == MOEC_OK && k < n_blocks; k++)
            st = add_block(b, (uint32_t)i, (uint32_t)k, inv, err);
        b->crew.total_bytes += moec_ckpt_tensor(b->src, i)->bytes;
    }
    moec_free(inv);
    if (st == MOEC_OK)
        qsort(b->items, b->n_items, sizeof(*b->items), item_order);
    return st;
}

static uint64_t n_cells(const item *it)
{
    return moec_ceil_div(it->to - it->from, MOEC_LEAF_BYTES);
}

/* Leave out what an earlier run has done. */
static void drop_done(back *b)
{
    size_t n = 0;

    for (size_t i = 0; i < b->n_items; i++) {
        const item *it = &b->items[i];
        if (moec_journal_has(b->job.journal, it->cell, n_cells(it)))
            b->resumed_bytes += it->to - it->from;
        else
            b->items[n++] = *it;
    }
    b->n_items = n;
    if (b->resumed_bytes > 0)
        moec_crew_resumed(&b->crew, b->resumed_bytes);
}

/* The item's bytes into the worker's buffer; *off_out: of the first one in its
 * tensor. */
static moec_status read_item(back *b, const item *it, uint32_t worker,
                             uint64_t *off_out, moec_error *err)
{
    moec_worker *w = &b->crew.workers[worker];
    moec_reader *r = &b->rb.readers[worker];
    const char *name = moec_ckpt_tensor(b->src, it->tensor)->name;

    *off_out = it->from;
    if (it->from_file == UINT32_MAX) {
        w->io.n_bytes_read += it->to - it->from;
        return moec_ckpt_read(b->opts->original,
                              moec_ckpt_find(b->opts->original, name), it->from,
                              w->buf, (size_t)(it->to - it->from), err);
    }
    MOEC_TRY(
        moec_inverse_block(b->layout, it->tensor, it->block, &r->inv, err));
    *off_out += r->inv.off;
    MOEC_TRY(moec_reader_aim(r, err));
    moec_status st = moec_reader_fill(r, &w->io, it->from, it->to, w->buf, err);
    if (st != MOEC_OK)
        moec_error_prefix(err, "tensor '%s'", name);
    return st;
}

static moec_status do_item(void *ctx, size_t i, uint32_t worker,
                           moec_error *err)
{
    back *b = ctx;
    const item *it = &b->items[i];
    const moec_tensor *t = moec_ckpt_tensor(b->src, it->tensor);
    size_t n = (size_t)(it->to - it->from);
    moec_worker *w = &b->crew.workers[worker];
    uint64_t off;

    MOEC_TRY(read_item(b, it, worker, &off, err));
    MOEC_TRY(
        moec_writer_write(b->job.w, t->file, t->off + off, w->buf, n, err));
    MOEC_TRY(moec_crew_done(&b->crew, n, err));
    return moec_journal_add(b->job.journal, it->cell, n_cells(it), err);
}

/* -------------------------------------------------------- whole files */

/* The shards, in the order of the source's table. */
static moec_status list_shards(back *b, moec_error *err)
{
    const moec_sources *s = &b->conv->sources;
    size_t shard = 0, n = moec_ckpt_n_files(b->src);

    b->shards = moec_calloc(n + 1, sizeof(*b->shards));
    if (b->shards == NULL)
        return moec_fail_nomem(err, "the list of shards");
    for (size_t i = 0; i < s->n_entries; i++) {
        const moec_source_entry *e = &s->entries[i];
        if (e->kind != MOEC_SRC_SHARD)
            continue;
        if (shard >= n ||
            strcmp(moec_ckpt_file(b->src, shard)->name, e->name) != 0)
            return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_M04,
                             "shard '%s' is not where it is expected", e->name);
        b->shards[shard++] = (moec_out_job_file){e->name, e->file_bytes};
    }
    b->job.opts = b->opts;
    b->job.files = b->shards;
    b->job.n_files = shard;
    b->job.identity = &b->identity;
    return moec_identity_unconvert(b->conv, &b->identity, err);
}

static moec_status write_headers(back *b, moec_error *err)
{
    const moec_sources *s = &b->conv->sources;
    size_t shard = 0;

    for (size_t i = 0; i < s->n_entries; i++) {
        const moec_source_entry *e = &s->entries[i];
        if (e->kind != MOEC_SRC_SHARD) {
            MOEC_TRY(moec_output_write(&b->job.out, e->name, e->data,
                                       (size_t)e->data_bytes, err));
            continue;
        }
        MOEC_TRY(moec_writer_write(b->job.w, shard, 0, e->data,
                                   (size_t)e->data_bytes, err));
        shard++;
    }
    return MOEC_OK;
}

static moec_status copy_back(back *b, const moec_mf_copied *c, moec_error *err)
{
    moec_buf data = {0};
    moec_status st =
        moec_converted_copied(b->conv, c, MOEC_RULE_M08, &data, err);

    if (st == MOEC_OK)
        st = moec_output_write(&b->job.out, c->name, data.data, data.len, err);
    moec_buf_fini(&data);
    return st;
}

static moec_status hire(back *b, moec_error *err)
{
    const moec_plan *plan = moec_layout_plan(b->layout);

    MOEC_TRY(moec_crew_choose(&b->crew, moec_crew_range(plan), b->opts, err));
    MOEC_TRY(moec_crew_hire(&b->crew, err));
    return moec_readback_hire(&b->rb, b->crew.n, err);
}

static void free_back(back *b)
{
    moec_crew_fini(&b->crew);
    moec_readback_close(&b->rb);
    moec_free(b->items);
    moec_free(b->shards);
    moec_buf_fini(&b->identity);
}

static moec_status write_all(back *b, moec_error *err)
{
    const moec_ckpt *original = b->opts->original;

    MOEC_TRY(write_headers(b, err));
    for (size_t i = 0; i < b->conv->manifest.n_copied; i++)
        MOEC_TRY(copy_back(b, &b->conv->manifest.copied[i], err));
    MOEC_TRY(moec_out_job_work(&b->job, err));
    drop_done(b);
    MOEC_TRY(moec_parallel(b->crew.n, b->n_items, do_item, b, err));
    if (original != NULL)
        MOEC_TRY(moec_ckpt_check_unchanged(original, err));
    return moec_out_job_sync(&b->job, err);
}

moec_status moec_unconvert_check(const moec_conversion *c,
                                 const moec_ckpt *original, moec_error *err)
{
    const moec_plan *plan = moec_layout_plan(moec_conversion_layout(c));
    const moec_ckpt *src = moec_model_ckpt(moec_plan_model(plan));
    const char *why = NULL;

    for (size_t i = 0; original == NULL && i < moec_ckpt_n_tensors(src); i++)
        if (moec_plan_fate(plan, i) == MOEC_FATE_SKIPPED)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M09,
                             "tensor '%s' was left out of this conversion "
                             "(--no-mtp): its bytes are not here",
                             moec_ckpt_tensor(src, i)->name);
    if (original != NULL)
        why = moec_conversion_other_source(moec_conversion_files(c), original);
    if (why != NULL)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M09,
                         "another source: this is not the checkpoint that was "
                         "converted (%s)",
                         why);
    return MOEC_OK;
}

static moec_status unconvert_into(back *b, const char *out_dir, moec_error *err)
{
    /* all that can be wrong without reading a weight comes first */
    MOEC_TRY(moec_readback_open(&b->rb, b->layout, b->conv, b->opts->no_direct,
                                err));
    MOEC_TRY(hire(b, err));
    MOEC_TRY(make_items(b, err));
    MOEC_TRY(list_shards(b, err));
    MOEC_TRY(moec_out_job_begin(&b->job, out_dir, err));
    return moec_out_job_end(&b->job, write_all(b, err), err);
}

moec_status moec_unconvert(const char *out_dir, const moec_convert_opts *opts,
                           moec_convert_stats *stats, moec_error *err)
{
    moec_convert_stats none = {0};
    struct timespec begin, end;

    *stats = none;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    back b = {.layout = moec_conversion_layout(opts->source),
              .conv = moec_conversion_files(opts->source),
              .opts = opts};
    b.src = moec_model_ckpt(moec_plan_model(moec_layout_plan(b.layout)));
    moec_status st = moec_unconvert_check(opts->source, opts->original, err);
    if (st == MOEC_OK)
        st = unconvert_into(&b, out_dir, err);
    stats->n_threads = b.crew.n;
    stats->n_files = (uint32_t)moec_ckpt_n_files(b.src);
    stats->bytes_read = moec_crew_bytes_read(&b.crew);
    stats->bytes_resumed = b.resumed_bytes;
    stats->bytes_written = atomic_load(&b.crew.done_bytes) - b.resumed_bytes;
    stats->durability_uncertain = st == MOEC_E_DURABILITY;
    free_back(&b);
    clock_gettime(CLOCK_MONOTONIC, &end);
    stats->seconds = (double)(end.tv_sec - begin.tv_sec) +
                     (double)(end.tv_nsec - begin.tv_nsec) * 1e-9;
    return st;
}
