/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A re-placement of a conversion. See place.h.
 *
 * Each row of each new file is looked for in the old files: first where it
 * stands now, then elsewhere in the same rank, then anywhere. Neighbours that
 * are neighbours there too become one range, across the fillers between
 * tensors: where nothing changed a range is a whole layer or file. The ranges,
 * cut to pieces, are the cells of the journal. Headers, slots.bin and the rest
 * are written as convert writes them.
 */

#include "place.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ckpt.h"
#include "conversion.h"
#include "crew.h"
#include "finish.h"
#include "inverse.h"
#include "prepare.h"

/* Bytes of one cell: a second or less on any disk. */
#define PLACE_RANGE_BYTES (UINT64_C(64) << 20)

/* Threads where nobody says: copies in the kernel wait for each other's locks
 * (ext4, 2 GB: 4.0 s with 1, 4.2 s with 2, 5.1 s with 8; cp 3.9 s), and sharing
 * blocks takes no time. */
#define COPIERS 1u

typedef struct range {
    uint32_t to_file, from_file;
    uint64_t to, from, bytes;
} range;

typedef struct old_file {
    int fd; /* -1: not open */
    struct stat st;
} old_file;

typedef struct place {
    const moec_layout *layout, *old;
    const moec_plan *plan, *old_plan;
    const moec_converted *conv;
    const moec_convert_opts *opts;
    moec_prepared p;
    moec_out_job job;
    moec_buf identity;
    size_t n_old;
    old_file *files;
    size_t n_ranges, cap;
    range *ranges;
    uint64_t *cells;  /* of the journal: nothing is learned of a range */
    uint32_t *row_of; /* [units] row of the own rank, by unit */
    moec_crew crew;
    _Atomic uint64_t cloned;
    uint64_t resumed;
} place;

/* ------------------------------------------------------------- figures */

static uint32_t n_rows(const moec_plan *plan)
{
    return moec_plan_topology(plan).n_local + moec_plan_shared_rows(plan);
}

moec_place_figures moec_place_count(const moec_plan *old, const moec_plan *now)
{
    uint32_t rows = n_rows(now), n_ranks = moec_plan_topology(now).n_ranks;
    moec_place_figures f = {0};

    for (size_t layer = 0; layer < moec_plan_n_layers(now); layer++) {
        uint64_t bytes = 0;

        for (size_t t = 0; t < moec_plan_n_slot_tensors(now, layer); t++) {
            const moec_slot_tensor *s = moec_plan_slot_tensor(now, layer, t);
            bytes += s->all_slots ? 0 : s->slot_bytes;
        }
        for (uint32_t i = 0; i < n_ranks * rows; i++) {
            moec_local_row row = {i % rows};
            uint32_t rank = i / rows;
            bool there =
                rank < moec_plan_topology(old).n_ranks && row.v < n_rows(old);

            f.n_slots++;
            if (there && moec_plan_unit(old, layer, rank, row) ==
                             moec_plan_unit(now, layer, rank, row))
                continue;
            f.n_changed++;
            f.bytes_changed += bytes;
        }
    }
    return f;
}

/* -------------------------------------------------------------- checks */

static moec_status no_replacement(const char *what, moec_error *err)
{
    return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_NONE,
                     "no re-placement: the two layouts differ in %s", what);
}

/* Same model, same bytes in each block: then only their places differ. */
static moec_status check_layouts(const place *x, moec_error *err)
{
    const moec_plan_opts *a = moec_plan_options(x->old_plan);
    const moec_plan_opts *b = moec_plan_options(x->plan);

    MOEC_TRY(moec_convert_check_source(x->layout, x->opts->source, err));
    if (a->by_expert || b->by_expert)
        return no_replacement("ranks: an expert store has no placement", err);
    if (a->w13_order != b->w13_order)
        return no_replacement("--w13-order", err);
    if (a->no_mtp != b->no_mtp)
        return no_replacement("--no-mtp", err);
    if (a->shared_store_common != b->shared_store_common ||
        moec_plan_shared_rows(x->plan) != moec_plan_shared_rows(x->old_plan) ||
        moec_plan_requantises(x->plan) != moec_plan_requantises(x->old_plan))
        return no_replacement("their shared experts", err);
    for (size_t i = 0; i < moec_plan_n_layers(x->plan); i++) {
        size_t n = moec_plan_n_slot_tensors(x->plan, i);

        if (moec_plan_n_slot_tensors(x->old_plan, i) != n)
            return no_replacement("the tensors of a layer", err);
        for (size_t t = 0; t < n; t++) {
            if (moec_plan_slot_tensor(x->plan, i, t)->slot_bytes !=
                moec_plan_slot_tensor(x->old_plan, i, t)->slot_bytes)
                return no_replacement("the sizes of slots", err);
        }
    }
    return MOEC_OK;
}

static moec_status open_old(place *x, moec_error *err)
{
    x->n_old = moec_layout_n_files(x->old);
    x->files = moec_calloc(x->n_old + 1, sizeof(*x->files));
    if (x->files == NULL)
        return moec_fail_nomem(err, "files of the conversion");
    for (size_t i = 0; i < x->n_old; i++)
        x->files[i].fd = -1;
    for (size_t i = 0; i < x->n_old; i++) {
        const moec_out_file *f = moec_layout_file(x->old, i);
        uint64_t bytes;

        MOEC_TRY(moec_converted_data(x->conv, f->name, &x->files[i].fd, &bytes,
                                     err));
        if (fstat(x->files[i].fd, &x->files[i].st) != 0)
            return moec_fail_os(err, errno, "%s: cannot look at it", f->name);
        if (bytes != f->bytes)
            return moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_M05,
                             "%s: %llu bytes, expected %llu", f->name,
                             (unsigned long long)bytes,
                             (unsigned long long)f->bytes);
    }
    return MOEC_OK;
}

/* Nobody read the bytes, so nobody compared them: at least the files are
 * still those that were opened. */
static moec_status check_unchanged(const place *x, moec_error *err)
{
    for (size_t i = 0; i < x->n_old; i++) {
        const struct stat *a = &x->files[i].st;
        struct stat b;

        if (fstat(x->files[i].fd, &b) != 0)
            return moec_fail_os(err, errno, "%s: cannot look at it",
                                moec_layout_file(x->old, i)->name);
        if (a->st_size != b.st_size || a->st_mtim.tv_sec != b.st_mtim.tv_sec ||
            a->st_mtim.tv_nsec != b.st_mtim.tv_nsec)
            return moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_M05,
                             "%s was changed while it was read",
                             moec_layout_file(x->old, i)->name);
    }
    return MOEC_OK;
}

/* -------------------------------------------------------------- ranges */

/* Both files are of ranks, whose tensors begin at multiples of 4096 with
 * nothing but zeros between: a short gap is the same on both sides. */
static bool bridges(const place *x, const range *last, const range *next)
{
    uint64_t gap = next->to - (last->to + last->bytes);

    return gap < MOEC_ALIGN &&
           moec_layout_file(x->layout, last->to_file)->kind == MOEC_FILE_RANK &&
           moec_layout_file(x->old, last->from_file)->kind == MOEC_FILE_RANK;
}

static moec_status append(place *x, range r, moec_error *err)
{
    if (!MOEC_GROW(x->ranges, x->n_ranges, x->cap))
        return moec_fail_nomem(err, "ranges to copy");
    x->ranges[x->n_ranges++] = r;
    return MOEC_OK;
}

static moec_status add_range(place *x, range r, moec_error *err)
{
    range *last = x->n_ranges > 0 ? &x->ranges[x->n_ranges - 1] : NULL;

    if (r.bytes == 0)
        return MOEC_OK;
    if (last != NULL && last->to_file == r.to_file &&
        last->from_file == r.from_file && last->to + last->bytes <= r.to &&
        last->from + last->bytes <= r.from &&
        r.to - last->to == r.from - last->from &&
        (last->to + last->bytes == r.to || bridges(x, last, &r))) {
        last->bytes = r.to + r.bytes - last->to;
        return MOEC_OK;
    }
    return append(x, r, err);
}

/* Where row `row` of the new tensor stands in the old files. */
static moec_status find_row(const place *x, const moec_out_tensor *o,
                            uint32_t rank, uint32_t row, range *r,
                            moec_error *err)
{
    uint32_t unit = moec_plan_row_unit(x->plan, o->layer, o->t, rank, row);
    uint64_t each = moec_plan_slot_tensor(x->plan, o->layer, o->t)->slot_bytes;
    const moec_slot_tensor *s =
        moec_plan_slot_tensor(x->old_plan, o->layer, o->t);
    uint32_t at = UINT32_MAX;
    moec_inverse_from from;
    size_t file;

    r->bytes = unit == MOEC_UNIT_EMPTY ? 0 : each; /* new files are zeros */
    if (r->bytes == 0)
        return MOEC_OK;
    if (rank < moec_plan_topology(x->old_plan).n_ranks) {
        at = x->row_of[unit];
        if (row < s->shape[0] &&
            moec_plan_row_unit(x->old_plan, o->layer, o->t, rank, row) == unit)
            at = row;
    }
    if (at != UINT32_MAX) {
        moec_layout_find_slots(x->old, rank, o->layer, o->t, &file, &r->from);
        r->from += at * each;
        r->from_file = (uint32_t)file;
        return MOEC_OK;
    }
    if (!moec_inverse_slot(x->old, o->layer, o->t, unit, &from))
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_T1,
                         "'%s' has no slot of unit %u", s->name, unit);
    r->from = from.off;
    r->from_file = (uint32_t)from.file;
    return MOEC_OK;
}

static moec_status add_slots(place *x, uint32_t to_file,
                             const moec_out_tensor *o, uint32_t rank,
                             moec_error *err)
{
    const moec_slot_tensor *s = moec_plan_slot_tensor(x->plan, o->layer, o->t);
    const moec_slot_tensor *was =
        moec_plan_slot_tensor(x->old_plan, o->layer, o->t);
    uint32_t n_units = moec_share_units(&x->p.share);

    memset(x->row_of, 0xff, n_units * sizeof(*x->row_of));
    for (uint32_t row = (uint32_t)was->shape[0];
         rank < moec_plan_topology(x->old_plan).n_ranks && row-- > 0;) {
        uint32_t unit =
            moec_plan_row_unit(x->old_plan, o->layer, o->t, rank, row);

        if (unit < n_units)
            x->row_of[unit] = row;
    }
    for (uint32_t row = 0; row < s->shape[0]; row++) {
        range r = {.to_file = to_file, .to = o->off + row * s->slot_bytes};

        MOEC_TRY(find_row(x, o, rank, row, &r, err));
        MOEC_TRY(add_range(x, r, err));
    }
    return MOEC_OK;
}

static moec_status add_common(place *x, uint32_t to_file,
                              const moec_out_tensor *o, moec_error *err)
{
    range r = {.to_file = to_file, .to = o->off, .bytes = o->bytes};
    size_t file;

    if (!moec_layout_find_common(x->old, (size_t)o->source, &file, &r.from))
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_T1,
                         "a common tensor is in no file");
    r.from_file = (uint32_t)file;
    return add_range(x, r, err);
}

/* Cut to pieces that end at multiples of 4096 in the new file, so that a
 * piece can be shared. */
static moec_status cut_ranges(place *x, moec_error *err)
{
    range *whole = x->ranges;
    size_t n = x->n_ranges;
    moec_status st = MOEC_OK;

    x->ranges = NULL;
    x->n_ranges = x->cap = 0;
    for (size_t i = 0; st == MOEC_OK && i < n; i++) {
        range r = whole[i];
        uint64_t end = r.to + r.bytes;

        while (st == MOEC_OK && r.to < end) {
            uint64_t stop = (r.to + PLACE_RANGE_BYTES) & ~(MOEC_ALIGN - 1ull);

            r.bytes = moec_min_u64(end, stop) - r.to;
            st = append(x, r, err);
            r.to += r.bytes;
            r.from += r.bytes;
        }
    }
    moec_free(whole);
    return st;
}

static moec_status make_ranges(place *x, moec_error *err)
{
    x->row_of =
        moec_calloc(moec_share_units(&x->p.share) + 1u, sizeof(*x->row_of));
    if (x->row_of == NULL)
        return moec_fail_nomem(err, "rows of a rank");
    for (size_t i = 0; i < moec_layout_n_files(x->layout); i++) {
        const moec_out_file *f = moec_layout_file(x->layout, i);

        for (size_t k = 0; k < f->n_tensors; k++) {
            const moec_out_tensor *o = &f->tensors[k];

            switch (o->kind) {
            case MOEC_OUT_SLOTS:
                MOEC_TRY(add_slots(x, (uint32_t)i, o, f->rank, err));
                break;
            case MOEC_OUT_COMMON:
                MOEC_TRY(add_common(x, (uint32_t)i, o, err));
                break;
            case MOEC_OUT_PAD:
                break;
            }
        }
    }
    MOEC_TRY(cut_ranges(x, err));
    x->cells = moec_calloc(x->n_ranges + 1, sizeof(*x->cells));
    return x->cells ? MOEC_OK : moec_fail_nomem(err, "ranges to copy");
}

/* ------------------------------------------------------------- digests */

/* Leaves of an empty slot: zeros, which the old files may not have. */
static moec_status zero_leaves(place *x, uint64_t leaf, uint64_t bytes,
                               moec_error *err)
{
    size_t n = (size_t)moec_min_u64(bytes, MOEC_LEAF_BYTES);
    void *zeros = moec_calloc(n + 1, 1);
    moec_status st = MOEC_OK;

    if (zeros == NULL)
        return moec_fail_nomem(err, "zeros");
    for (uint64_t at = 0; st == MOEC_OK && at < bytes; at += MOEC_LEAF_BYTES)
        st = moec_digests_leaves(
            &x->p.digests, leaf, at, zeros,
            (size_t)moec_min_u64(bytes - at, MOEC_LEAF_BYTES), err);
    moec_free(zeros);
    return st;
}

static moec_status carry_leaves(void *ctx, moec_share_piece p, moec_error *err)
{
    place *x = ctx;
    const moec_slots *s = &x->conv->slots;
    moec_inverse_from from = {0};
    uint64_t n = 0, leaf = moec_share_leaf(&x->p.share, p, &n), slot = 0;

    if (n == 0)
        return MOEC_OK;
    if (p.layer != MOEC_NO_BLOCK && p.unit == MOEC_UNIT_EMPTY)
        return zero_leaves(
            x, leaf, moec_plan_slot_tensor(x->plan, p.layer, p.t)->slot_bytes,
            err);
    if (p.layer == MOEC_NO_BLOCK
            ? !moec_layout_find_common(x->old, p.unit, &from.file, &from.off)
            : !moec_inverse_slot(x->old, p.layer, p.t, p.unit, &from))
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_T1,
                         "a piece of the new files is in no old file");
    if (!moec_slots_find(s, from.file, from.off, &slot) ||
        s->slots[slot].n_leaves != n)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M03,
                         "slots.bin has no slot at byte %llu of %s",
                         (unsigned long long)from.off,
                         s->files[from.file].name);
    memcpy(&x->p.digests.leaves[leaf], &s->leaves[s->slots[slot].first_leaf],
           (size_t)n * sizeof(moec_leaf));
    return MOEC_OK;
}

/* ------------------------------------------------------------- copying */

static moec_status do_range(void *ctx, size_t i, uint32_t worker,
                            moec_error *err)
{
    place *x = ctx;
    const range *r = &x->ranges[i];
    uint64_t cloned = 0;

    (void)worker;
    if (moec_journal_has(x->job.journal, i, 1))
        return MOEC_OK;
    MOEC_TRY(moec_writer_copy(x->job.w, r->to_file, r->to,
                              x->files[r->from_file].fd, r->from, r->bytes,
                              &cloned, err));
    atomic_fetch_add(&x->cloned, cloned);
    MOEC_TRY(moec_journal_add(x->job.journal, i, 1, err));
    return moec_crew_done(&x->crew, r->bytes, err);
}

static moec_status copy_ranges(place *x, moec_error *err)
{
    for (size_t i = 0; i < x->n_ranges; i++) {
        x->crew.total_bytes += x->ranges[i].bytes;
        if (moec_journal_has(x->job.journal, i, 1))
            x->resumed += x->ranges[i].bytes;
    }
    pthread_mutex_init(&x->crew.progress_lock, NULL);
    if (x->resumed > 0)
        moec_crew_resumed(&x->crew, x->resumed);
    return moec_parallel(x->crew.n, x->n_ranges, do_range, x, err);
}

static moec_status fill_output(place *x, moec_convert_stats *stats,
                               moec_error *err)
{
    MOEC_TRY(moec_prepared_headers(&x->p, x->job.w, err));
    MOEC_TRY(moec_out_job_work(&x->job, err));
    MOEC_TRY(copy_ranges(x, err));
    MOEC_TRY(moec_out_job_sync(&x->job, err));
    MOEC_TRY(check_unchanged(x, err));
    x->p.in->carried = &x->conv->manifest;
    return moec_finish_write(x->p.in, &x->p.digests, x->p.headers,
                             (moec_finish_to){.dir = &x->job.out}, stats, err);
}

/* The journal of a convert is none of ours. */
static moec_status make_identity(place *x, moec_error *err)
{
    moec_buf_puts(&x->identity, "command place\n");
    moec_buf_append(&x->identity, x->p.identity.data, x->p.identity.len);
    return x->identity.oom ? moec_fail_nomem(err, "identity of the output")
                           : MOEC_OK;
}

static moec_status prepare(place *x, moec_error *err)
{
    MOEC_TRY(check_layouts(x, err));
    MOEC_TRY(moec_prepare(&x->p, x->layout, x->opts, err));
    x->p.share.whole = true;
    MOEC_TRY(make_identity(x, err));
    MOEC_TRY(open_old(x, err));
    MOEC_TRY(make_ranges(x, err));
    MOEC_TRY(moec_share_each(&x->p.share, carry_leaves, x, err));
    MOEC_TRY(moec_crew_choose(&x->crew, MOEC_COPY_RANGE_BYTES, x->opts, err));
    if (x->opts->n_threads == 0)
        x->crew.n = COPIERS;
    x->job.files = x->p.files;
    x->job.n_files = x->p.n_files;
    x->job.identity = &x->identity;
    x->job.cells = x->cells;
    x->job.cell_bytes = sizeof(*x->cells);
    x->job.n_cells = x->n_ranges;
    x->job.sparse = true;
    return MOEC_OK;
}

static void place_fini(place *x)
{
    for (size_t i = 0; x->files != NULL && i < x->n_old; i++) {
        if (x->files[i].fd >= 0)
            close(x->files[i].fd);
    }
    moec_free(x->files);
    moec_free(x->ranges);
    moec_free(x->cells);
    moec_free(x->row_of);
    moec_buf_fini(&x->identity);
    moec_prepared_fini(&x->p);
}

moec_status moec_place(const moec_layout *layout, const char *out_dir,
                       const moec_convert_opts *opts, moec_convert_stats *stats,
                       moec_error *err)
{
    place x = {.layout = layout,
               .plan = moec_layout_plan(layout),
               .opts = opts,
               .job = {.opts = opts}};
    double begin = moec_seconds_now();
    moec_convert_stats none = {0};
    moec_status st;

    *stats = none;
    if (opts->source == NULL || opts->ranks != NULL)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "place works on a whole conversion");
    x.old = moec_conversion_layout(opts->source);
    x.old_plan = moec_layout_plan(x.old);
    x.conv = moec_conversion_files(opts->source);
    MOEC_TRY(moec_prove_layout(layout, err));
    st = prepare(&x, err);
    stats->n_threads = x.crew.n;
    if (st == MOEC_OK)
        st = moec_out_job_begin(&x.job, out_dir, err);
    if (st == MOEC_OK)
        st = moec_out_job_end(&x.job, fill_output(&x, stats, err), err);
    stats->bytes_resumed = x.resumed;
    stats->bytes_written = atomic_load(&x.crew.done_bytes) - x.resumed;
    stats->bytes_cloned = atomic_load(&x.cloned);
    stats->bytes_read = stats->bytes_written - stats->bytes_cloned;
    stats->n_files = (uint32_t)moec_layout_n_files(layout);
    stats->durability_uncertain = st == MOEC_E_DURABILITY;
    stats->seconds = moec_seconds_now() - begin;
    place_fini(&x);
    return st;
}

moec_status moec_place_tidy(const char *out_dir, moec_error *err)
{
    moec_output out = MOEC_OUTPUT_INIT;
    bool found = false;

    MOEC_TRY(moec_output_resume(&out, out_dir, true, &found, err));
    if (found)
        moec_output_abandon(&out);
    else if (!moec_output_discard(&out))
        return moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE,
                         "%s.partial cannot be removed", out_dir);
    return MOEC_OK;
}
