/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The way back: the source's files from a converted checkpoint, byte for
 * byte. Headers and index come from sources.bin, small files from their
 * copies, every tensor through the inverse moves (mapping/inverse.h).
 *
 * What is read is checked on the way against the leaves of slots.bin: a
 * damaged slot ends with INTEGRITY naming file, tensor and byte, and with no
 * output. To check a leaf all of it must be read, so a request that takes
 * part of one reads the whole leaf and keeps it for the next request; inverse
 * moves walk a slot forward, so no leaf is read twice but at borders of work.
 *
 * An interrupted run is gone on with as in convert: the journal's cells are the
 * MiB of each block, with nothing to remember of them.
 *
 * Refused: conversions that left tensors out (M09).
 */

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "conversion.h"
#include "crew.h"
#include "identity.h"
#include "inverse.h"
#include "job.h"

typedef struct item {
    uint64_t from_off; /* sort key: first byte in the converted file */
    uint32_t from_file;
    uint32_t tensor;
    uint32_t block;
    uint64_t from, to; /* range of the block */
    uint64_t cell;     /* of the journal: the range's first MiB */
} item;

/* One leaf, checked, kept. */
typedef struct leaf_cache {
    unsigned char data[MOEC_LEAF_BYTES];
    uint64_t slot, leaf; /* UINT64_MAX: none */
} leaf_cache;

typedef struct back {
    const moec_layout *layout;
    const moec_converted *conv;
    const moec_ckpt *src; /* headers alone */
    const moec_convert_opts *opts;
    moec_job job;
    moec_job_file *shards;
    moec_buf identity;
    uint64_t resumed_bytes; /* that an earlier run wrote */
    moec_crew crew;
    leaf_cache *caches; /* by worker */
    size_t n_files;
    moec_io_file *files; /* of the converted checkpoint */
    char **paths;
    size_t n_items, cap_items;
    item *items;
} back;

/* What a read callback needs: the inverse it serves, and for each of its
 * stretches the row of slots.bin. */
typedef struct hand {
    back *b;
    moec_worker *worker;
    leaf_cache *cache;
    moec_inverse inv;
    uint64_t slots[MOEC_INVERSE_MOVES_MAX];
} hand;

/* ------------------------------------------------------ checked reading */

/* Row of slots.bin that begins at `off` of converted file `file`. */
static moec_status find_slot(const back *b, size_t file, uint64_t off,
                             uint64_t *slot_out, moec_error *err)
{
    const moec_slots *s = &b->conv->slots;
    size_t lo = 0, hi = s->n_tensors;

    while (lo < hi) { /* first tensor behind (file, off) */
        size_t mid = lo + (hi - lo) / 2;
        const moec_ct_tensor *t = &s->tensors[mid];
        if (t->file < file || (t->file == file && t->off <= off))
            lo = mid + 1;
        else
            hi = mid;
    }
    /* empty tensors share an offset with their neighbour: step over them */
    while (lo > 0 && s->tensors[lo - 1].n_slots > 0) {
        const moec_ct_tensor *t = &s->tensors[lo - 1];
        uint64_t each = t->bytes / t->n_slots;
        if (t->file != file || off < t->off)
            break;
        if (each != 0 && off - t->off < t->bytes &&
            (off - t->off) % each == 0) {
            *slot_out = t->first_slot + (off - t->off) / each;
            return MOEC_OK;
        }
        lo--;
    }
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M03,
                     "slots.bin has no slot at byte %llu of %s",
                     (unsigned long long)off, b->conv->slots.files[file].name);
}

static moec_status check_leaf(const hand *h, uint32_t from, uint64_t leaf,
                              const void *data, size_t n, moec_error *err)
{
    const moec_slots *s = &h->b->conv->slots;
    const moec_ct_slot *slot = &s->slots[h->slots[from]];
    const moec_leaf *want = &s->leaves[slot->first_leaf + leaf];
    moec_xxh128 got = moec_xxh128_of(data, n);
    const moec_inverse_from *f = &h->inv.from[from];

    if (memcmp(&got, &want->xxh128, sizeof(got)) == 0)
        return MOEC_OK;
    return moec_fail_at(err, MOEC_E_INTEGRITY, MOEC_RULE_T3,
                        f->off + leaf * MOEC_LEAF_BYTES,
                        "%s: the %zu bytes at %llu (logical %d) do not have "
                        "their digest; restore the file or convert again",
                        s->files[f->file].name, n,
                        (unsigned long long)(f->off + leaf * MOEC_LEAF_BYTES),
                        (int)slot->logical);
}

/* Bytes [off, off + n) of one leaf that the request does not fill. */
static moec_status read_part(hand *h, uint32_t from, uint64_t leaf,
                             uint64_t off, void *buf, size_t n, moec_error *err)
{
    const moec_inverse_from *f = &h->inv.from[from];
    leaf_cache *c = h->cache;
    uint64_t begin = leaf * MOEC_LEAF_BYTES;
    size_t bytes = (size_t)moec_min_u64(MOEC_LEAF_BYTES, f->bytes - begin);

    if (c->slot != h->slots[from] || c->leaf != leaf) {
        c->slot = UINT64_MAX;
        MOEC_TRY(moec_io_read(&h->b->files[f->file], &h->worker->io,
                              f->off + begin, c->data, bytes, err));
        MOEC_TRY(check_leaf(h, from, leaf, c->data, bytes, err));
        c->slot = h->slots[from];
        c->leaf = leaf;
    }
    memcpy(buf, c->data + (off - begin), n);
    return MOEC_OK;
}

/* Whole leaves, straight into the destination. */
static moec_status read_leaves(hand *h, uint32_t from, uint64_t off, void *buf,
                               size_t n, moec_error *err)
{
    const moec_inverse_from *f = &h->inv.from[from];
    unsigned char *p = buf;

    MOEC_TRY(moec_io_read(&h->b->files[f->file], &h->worker->io, f->off + off,
                          buf, n, err));
    for (size_t done = 0; done < n; done += MOEC_LEAF_BYTES) {
        size_t k = (size_t)moec_min_u64(MOEC_LEAF_BYTES, n - done);
        MOEC_TRY(check_leaf(h, from, (off + done) / MOEC_LEAF_BYTES, p + done,
                            k, err));
    }
    return MOEC_OK;
}

static moec_status read_slot(void *ctx, uint32_t from, uint64_t off, void *buf,
                             size_t n, moec_error *err)
{
    hand *h = ctx;
    unsigned char *p = buf;
    uint64_t end = off + n, bytes = h->inv.from[from].bytes;

    while (off < end) {
        uint64_t leaf = off / MOEC_LEAF_BYTES;
        uint64_t leaf_end = moec_min_u64((leaf + 1) * MOEC_LEAF_BYTES, bytes);
        bool whole = off % MOEC_LEAF_BYTES == 0 && end >= leaf_end;
        uint64_t stop = moec_min_u64(leaf_end, end);

        if (whole) { /* and all whole ones behind it */
            stop = end == bytes ? end : end / MOEC_LEAF_BYTES * MOEC_LEAF_BYTES;
            MOEC_TRY(read_leaves(h, from, off, p, (size_t)(stop - off), err));
        } else {
            MOEC_TRY(
                read_part(h, from, leaf, off, p, (size_t)(stop - off), err));
        }
        p += stop - off;
        off = stop;
    }
    return MOEC_OK;
}

/* ----------------------------------------------------------------- items */

static moec_status add_item(back *b, const item *it, moec_error *err)
{
    if (b->n_items == b->cap_items) {
        size_t cap = b->cap_items ? 2 * b->cap_items : 1024;
        item *p = moec_realloc_array(b->items, cap, sizeof(*p));
        if (p == NULL)
            return moec_fail_nomem(err, "list of work");
        b->items = p;
        b->cap_items = cap;
    }
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
        const moec_tensor *t = moec_ckpt_tensor(b->src, i);
        size_t n_blocks = moec_inverse_n_blocks(b->layout, i);

        if (moec_plan_fate(plan, i) == MOEC_FATE_SKIPPED)
            st = moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M09,
                           "tensor '%s' was left out of this conversion "
                           "(--no-mtp): its bytes are not here",
                           t->name);
        for (size_t k = 0; st == MOEC_OK && k < n_blocks; k++)
            st = add_block(b, (uint32_t)i, (uint32_t)k, inv, err);
        b->crew.total_bytes += t->bytes;
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

static moec_status do_item(void *ctx, size_t i, uint32_t worker,
                           moec_error *err)
{
    back *b = ctx;
    const item *it = &b->items[i];
    const moec_tensor *t = moec_ckpt_tensor(b->src, it->tensor);
    size_t n = (size_t)(it->to - it->from);
    hand h = {.b = b,
              .worker = &b->crew.workers[worker],
              .cache = &b->caches[worker]};

    MOEC_TRY(moec_inverse_block(b->layout, it->tensor, it->block, &h.inv, err));
    for (size_t k = 0; k < h.inv.n_moves; k++)
        MOEC_TRY(find_slot(b, h.inv.from[k].file, h.inv.from[k].off,
                           &h.slots[k], err));
    moec_status st =
        moec_block_read(h.inv.moves, h.inv.n_moves, it->from, it->to,
                        h.worker->buf, read_slot, &h, &h.worker->scratch, err);
    if (st != MOEC_OK) {
        moec_error_prefix(err, "tensor '%s'", t->name);
        return st;
    }
    MOEC_TRY(moec_writer_write(b->job.w, t->file, t->off + h.inv.off + it->from,
                               h.worker->buf, n, err));
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
        b->shards[shard++] = (moec_job_file){e->name, e->file_bytes};
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
    moec_sha256 got;
    moec_status st =
        moec_read_file(b->conv->dirfd, c->name, c->bytes, &data, err);

    if (st == MOEC_OK)
        st = moec_sha256_of(data.data, data.len, &got, err);
    if (st == MOEC_OK &&
        (data.len != c->bytes || memcmp(&got, &c->sha256, sizeof(got)) != 0))
        st = moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_M08,
                       "%s: the copied file was changed after the conversion",
                       c->name);
    if (st == MOEC_OK)
        st = moec_output_write(&b->job.out, c->name, data.data, data.len, err);
    moec_buf_fini(&data);
    return st;
}

static moec_status open_inputs(back *b, moec_error *err)
{
    size_t n = moec_layout_n_files(b->layout);

    b->files = moec_calloc(n + 1, sizeof(*b->files));
    b->paths = moec_calloc(n + 1, sizeof(*b->paths));
    if (b->files == NULL || b->paths == NULL)
        return moec_fail_nomem(err, "files of the conversion");
    for (size_t i = 0; i < n; i++) {
        const moec_out_file *f = moec_layout_file(b->layout, i);
        moec_buf path = {0};
        uint64_t bytes;
        int fd;

        MOEC_TRY(moec_open_regular(b->conv->dirfd, f->name, &fd, &bytes, err));
        moec_buf_printf(&path, "%s/%s", b->conv->dir, f->name);
        b->paths[i] = path.data;
        moec_io_open(&b->files[i], f->name, path.oom ? NULL : path.data, fd,
                     bytes, b->opts->no_direct);
        b->n_files = i + 1;
        if (bytes != f->bytes)
            return moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_M05,
                             "%s: %llu bytes, expected %llu", f->name,
                             (unsigned long long)bytes,
                             (unsigned long long)f->bytes);
    }
    return MOEC_OK;
}

static moec_status hire(back *b, moec_error *err)
{
    const moec_plan *plan = moec_layout_plan(b->layout);

    MOEC_TRY(moec_crew_choose(&b->crew, moec_crew_range(plan), b->opts, err));
    MOEC_TRY(moec_crew_hire(&b->crew, err));
    b->caches = moec_calloc(b->crew.n, sizeof(*b->caches));
    if (b->caches == NULL)
        return moec_fail_nomem(err, "leaf caches");
    for (uint32_t i = 0; i < b->crew.n; i++)
        b->caches[i].slot = UINT64_MAX;
    return MOEC_OK;
}

static void free_back(back *b)
{
    moec_crew_fini(&b->crew);
    for (size_t i = 0; i < b->n_files; i++) {
        moec_io_close(&b->files[i]);
        close(b->files[i].fd);
    }
    for (size_t i = 0; b->paths != NULL && i < moec_layout_n_files(b->layout);
         i++)
        moec_free(b->paths[i]);
    moec_free(b->paths);
    moec_free(b->files);
    moec_free(b->caches);
    moec_free(b->items);
    moec_free(b->shards);
    moec_buf_fini(&b->identity);
}

static moec_status write_all(back *b, moec_error *err)
{
    MOEC_TRY(write_headers(b, err));
    for (size_t i = 0; i < b->conv->manifest.n_copied; i++)
        MOEC_TRY(copy_back(b, &b->conv->manifest.copied[i], err));
    MOEC_TRY(moec_job_work(&b->job, err));
    drop_done(b);
    MOEC_TRY(moec_parallel(b->crew.n, b->n_items, do_item, b, err));
    return moec_job_sync(&b->job, err);
}

static moec_status unconvert_into(back *b, const char *out_dir, moec_error *err)
{
    /* all that can be wrong without reading a weight comes first */
    MOEC_TRY(open_inputs(b, err));
    MOEC_TRY(hire(b, err));
    MOEC_TRY(make_items(b, err));
    MOEC_TRY(list_shards(b, err));
    MOEC_TRY(moec_job_begin(&b->job, out_dir, err));
    return moec_job_end(&b->job, write_all(b, err), err);
}

moec_status moec_unconvert(const char *dir, const char *out_dir,
                           const moec_convert_opts *opts,
                           moec_convert_stats *stats, moec_error *err)
{
    moec_conversion *c = NULL;
    moec_convert_stats none = {0};
    struct timespec begin, end;

    *stats = none;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    MOEC_TRY(moec_conversion_open(&c, dir, NULL, err));
    back b = {.layout = moec_conversion_layout(c),
              .conv = moec_conversion_files(c),
              .opts = opts};
    b.src = moec_model_ckpt(moec_plan_model(moec_layout_plan(b.layout)));
    moec_status st = unconvert_into(&b, out_dir, err);
    stats->n_threads = b.crew.n;
    stats->n_files = (uint32_t)moec_ckpt_n_files(b.src);
    stats->bytes_read = moec_crew_bytes_read(&b.crew);
    stats->bytes_resumed = b.resumed_bytes;
    stats->bytes_written = atomic_load(&b.crew.done_bytes) - b.resumed_bytes;
    stats->durability_uncertain = st == MOEC_E_DURABILITY;
    free_back(&b);
    moec_conversion_close(c);
    clock_gettime(CLOCK_MONOTONIC, &end);
    stats->seconds = (double)(end.tv_sec - begin.tv_sec) +
                     (double)(end.tv_nsec - begin.tv_nsec) * 1e-9;
    return st;
}
