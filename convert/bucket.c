/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A conversion into an object store. See bucket.h.
 *
 * An object is written in parts, each whole and by itself. So the work is
 * turned round: a piece of it is a part of a data file, and its worker makes
 * every byte of it, whatever stands there, digests it and sends it. Memory is a
 * part and a leaf for each worker, the number in flight is that of the workers;
 * files come one after the other. The price is that a replica is read as often
 * as it is written, and up to a leaf more a part: the leaf that reaches over a
 * part's end is made whole by the part in which it begins.
 *
 * Interrupted, the next run makes the parts of the file under way again and
 * sends those that are not there with their SHA-256; complete files have their
 * leaves beside them.
 */

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "bucket_parts.h"
#include "crew.h"
#include "finish.h"
#include "identity.h"
#include "span.h"

#define WORKERS       8u
#define JOB_BYTES_MAX (UINT64_C(64) << 20)

typedef struct item {
    uint32_t file, part;
} item;

/* A data file. */
typedef struct target {
    moec_upload *up;
    pthread_mutex_t lock; /* of `up` */
    atomic_size_t n_left; /* parts */
    uint64_t part_bytes;
    bool mine, done;
} target;

typedef struct bucket {
    moec_prepared p;
    moec_leaf_table leaves;
    const moec_objects *o;
    const moec_convert_opts *opts;
    moec_sha256 job;
    target *targets; /* by data file */
    item *items;
    size_t n_items;
    moec_crew crew;
    _Atomic uint64_t resumed; /* bytes that were there */
    bool ours;                /* the job is: what is there may be removed */
} bucket;

void moec_bucket_leaves_name(char buf[MOEC_BUCKET_NAME_BYTES], const char *file)
{
    (void)snprintf(buf, MOEC_BUCKET_NAME_BYTES, MOEC_BUCKET_LEAVES "%s", file);
}

const moec_store_file *moec_bucket_find(const moec_objects *o, const char *name)
{
    for (size_t i = 0; i < o->there->n_files; i++)
        if (strcmp(o->there->files[i].name, name) == 0)
            return &o->there->files[i];
    return NULL;
}

uint32_t moec_bucket_owner(const moec_prepared *p, size_t i)
{
    const moec_out_file *f = moec_layout_file(p->layout, i);
    uint32_t n = moec_plan_topology(moec_layout_plan(p->layout)).n_ranks;

    return f->kind == MOEC_FILE_RANK
               ? f->rank
               : (uint32_t)((i - p->share.first_common) % (n > 0 ? n : 1));
}

moec_status moec_bucket_tidy(const moec_objects *o, const moec_prepared *p,
                             moec_error *err)
{
    char name[MOEC_BUCKET_NAME_BYTES];

    for (size_t i = 0; i < p->n_files; i++) {
        moec_bucket_leaves_name(name, p->files[i].name);
        MOEC_TRY(o->remove(o->ctx, name, err));
    }
    if (moec_bucket_find(o, MOEC_OUTPUT_BEGUN) != NULL)
        MOEC_TRY(o->remove(o->ctx, MOEC_OUTPUT_BEGUN, err));
    return o->remove(o->ctx, MOEC_OUTPUT_JOB, err);
}

/* ------------------------------------------------------------- the place */

/* The manifest first: without it nothing is a conversion. */
static moec_status remove_old(const bucket *b, moec_error *err)
{
    static const char *const own[] = {MOEC_SLOTS_NAME, MOEC_SOURCES_NAME,
                                      MOEC_INDEX_NAME, MOEC_PROVENANCE_NAME};
    const moec_objects *o = b->o;
    moec_manifest m;
    moec_buf text = {0};
    moec_status st = o->get(o->ctx, MOEC_MANIFEST_NAME, &text, err);

    if (st != MOEC_OK) {
        moec_buf_fini(&text);
        return st;
    }
    st = moec_manifest_decode(&m, text.data ? text.data : "", text.len, NULL);
    moec_buf_fini(&text);
    if (st != MOEC_OK)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%s: manifest.json is none of ours: --force does not "
                         "replace it, remove it yourself",
                         o->there->name);
    st = o->remove(o->ctx, MOEC_MANIFEST_NAME, err);
    for (size_t i = 0; st == MOEC_OK && i < sizeof(own) / sizeof(*own); i++)
        st = o->remove(o->ctx, own[i], err);
    for (size_t i = 0; st == MOEC_OK && i < m.n_files; i++)
        st = o->remove(o->ctx, m.files[i].name, err);
    for (size_t i = 0; st == MOEC_OK && i < m.n_copied; i++)
        st = o->remove(o->ctx, m.copied[i].name, err);
    moec_manifest_fini(&m);
    return st;
}

/* Is the job that is there ours? Fail, naming what differs. */
static moec_status join_job(const bucket *b, moec_error *err)
{
    const moec_objects *o = b->o;
    const moec_buf *mine = &b->p.identity;
    moec_buf there = {0};
    moec_status st = o->get(o->ctx, MOEC_OUTPUT_JOB, &there, err);

    if (st == MOEC_OK && (there.len != mine->len ||
                          memcmp(there.data, mine->data, mine->len) != 0))
        st = moec_identity_refuse(o->there->name, there.data ? there.data : "",
                                  there.len, mine->data, mine->len, err);
    moec_buf_fini(&there);
    return st;
}

/* `emptied`: what was there has been removed. */
static moec_status take_place(const bucket *b, bool emptied, moec_error *err)
{
    const moec_objects *o = b->o;
    moec_error why = MOEC_ERROR_INIT;
    moec_status st;

    for (size_t i = 0; i < o->there->n_files && !emptied; i++)
        if (strncmp(o->there->files[i].name, MOEC_OUTPUT_OWN,
                    strlen(MOEC_OUTPUT_OWN)) != 0)
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "%s holds '%s', which is no conversion's under "
                             "way: choose a prefix of its own",
                             o->there->name, o->there->files[i].name);
    st = o->put(o->ctx, MOEC_OUTPUT_JOB, b->p.identity.data, b->p.identity.len,
                true, &why);
    if (st == MOEC_E_LOCKED) /* another process was first, or this one */
        return join_job(b, err);
    if (st != MOEC_OK && err != NULL)
        *err = why;
    return st;
}

/* May we write there? *complete_out: this very conversion is there. */
static moec_status open_place(bucket *b, bool *complete_out, moec_error *err)
{
    bool there = moec_bucket_find(b->o, MOEC_MANIFEST_NAME) != NULL;

    *complete_out = false;
    if (moec_bucket_find(b->o, MOEC_OUTPUT_JOB) != NULL) {
        MOEC_TRY(join_job(b, err));
        b->ours = true;
        *complete_out = there;
        return MOEC_OK;
    }
    if (there) {
        if (!b->opts->force)
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "%s exists: remove it or give --force",
                             b->o->there->name);
        if (b->opts->ranks != NULL)
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "%s exists, and one of several processes does "
                             "not replace it: remove it first",
                             b->o->there->name);
        MOEC_TRY(remove_old(b, err));
    }
    MOEC_TRY(take_place(b, there, err));
    b->ours = true;
    return MOEC_OK;
}

/* ----------------------------------------------------------------- items */

/* A data file that an earlier run, or another process, has completed. */
static moec_status look_at(bucket *b, size_t i, moec_error *err)
{
    const moec_objects *o = b->o;
    const moec_out_job_file *f = &b->p.files[i];
    const moec_store_file *there = moec_bucket_find(o, f->name);
    char name[MOEC_BUCKET_NAME_BYTES];
    moec_buf leaves = {0};
    moec_status st;

    moec_bucket_leaves_name(name, f->name);
    if (there == NULL || there->bytes != f->bytes ||
        moec_bucket_find(o, name) == NULL)
        return MOEC_OK;
    st = o->get(o->ctx, name, &leaves, err);
    if (st == MOEC_OK)
        st = moec_leaves_take(b->p.layout, &b->leaves, i, &b->job, leaves.data,
                              leaves.len, &b->targets[i].done, err);
    moec_buf_fini(&leaves);
    if (st == MOEC_OK && b->targets[i].done)
        atomic_fetch_add(&b->resumed, f->bytes);
    return st;
}

static moec_status list_items(bucket *b, moec_error *err)
{
    const uint8_t *ranks = b->opts->ranks;
    uint64_t n = 0;

    b->targets = moec_calloc(b->p.n_files + 1, sizeof(*b->targets));
    if (b->targets == NULL)
        return moec_fail_nomem(err, "data files");
    for (size_t i = 0; i < b->p.n_files; i++) {
        target *t = &b->targets[i];
        uint64_t bytes = b->p.files[i].bytes;

        pthread_mutex_init(&t->lock, NULL);
        t->part_bytes = moec_part_bytes(bytes, b->opts->upload_part_bytes);
        atomic_init(&t->n_left, moec_n_parts(bytes, t->part_bytes));
        t->mine = ranks == NULL || ranks[moec_bucket_owner(&b->p, i)] != 0;
        if (!t->mine)
            continue;
        n += atomic_load(&t->n_left);
        b->crew.total_bytes += bytes;
        b->crew.range_bytes =
            moec_max_u64(b->crew.range_bytes,
                         moec_min_u64(t->part_bytes, bytes) + MOEC_LEAF_BYTES);
    }
    b->items = moec_calloc((size_t)n + 1, sizeof(*b->items));
    if (b->items == NULL)
        return moec_fail_nomem(err, "parts of data files");
    for (size_t i = 0; i < b->p.n_files; i++) {
        if (!b->targets[i].mine)
            continue;
        MOEC_TRY(look_at(b, i, err));
        if (b->targets[i].done)
            continue;
        for (uint32_t k = 0; k < atomic_load(&b->targets[i].n_left); k++)
            b->items[b->n_items++] = (item){(uint32_t)i, k};
    }
    return MOEC_OK;
}

/* As many workers as parts may be in flight. */
static uint32_t n_workers(const moec_convert_opts *opts, uint64_t each)
{
    uint32_t n = opts->n_threads ? opts->n_threads : WORKERS;

    while (opts->memory_bytes != 0 && n > 1 && n * each > opts->memory_bytes)
        n--;
    return n;
}

uint64_t moec_convert_objects_memory(const moec_layout *layout,
                                     const moec_convert_opts *opts)
{
    uint64_t each = 0;

    for (size_t i = 0; i < moec_layout_n_files(layout); i++) {
        uint64_t bytes = moec_layout_file(layout, i)->bytes;
        each = moec_max_u64(
            each, moec_min_u64(
                      bytes, moec_part_bytes(bytes, opts->upload_part_bytes)) +
                      MOEC_LEAF_BYTES);
    }
    return n_workers(opts, each) * each;
}

static moec_status choose_crew(bucket *b, moec_error *err)
{
    moec_crew *c = &b->crew;
    uint64_t cap = b->opts->memory_bytes;

    c->opts = b->opts;
    c->n = n_workers(b->opts, c->range_bytes);
    if (cap != 0 && c->range_bytes > cap)
        return moec_fail(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                         "--memory %llu is too little: a part and a leaf need "
                         "%llu bytes (--part-bytes)",
                         (unsigned long long)cap,
                         (unsigned long long)c->range_bytes);
    c->bytes = c->n * c->range_bytes;
    MOEC_TRY(moec_input_hire(b->p.in, c->n, err));
    return moec_crew_hire(c, err);
}

/* -------------------------------------------------------------- one part */

typedef struct making {
    bucket *b;
    moec_hand hand;
    size_t file;
    uint64_t from, end; /* of the part */
    uint64_t to;        /* end of what is made: behind `end`, a leaf's */
} making;

static moec_status fill_header(const making *m, uint64_t at, uint64_t n,
                               unsigned char *dst, moec_error *err)
{
    void *header = NULL;
    uint64_t bytes = 0;

    MOEC_TRY(moec_layout_header(m->b->p.layout, m->file, &header, &bytes, err));
    memcpy(dst, (const unsigned char *)header + at, (size_t)n);
    free(header);
    return MOEC_OK;
}

/* Bytes [at, at + n) of a span. */
static moec_status fill(const making *m, const moec_span *s, uint64_t at,
                        uint64_t n, unsigned char *dst, moec_error *err)
{
    moec_input *in = m->b->p.in;

    switch (s->kind) {
    case MOEC_SPAN_HEADER:
        return fill_header(m, at, n, dst, err);
    case MOEC_SPAN_PAD:
        break;
    case MOEC_SPAN_BLOCK:
        if (s->block.unit == MOEC_UNIT_EMPTY)
            break;
        return moec_input_block(in, m->hand, s->block, at, at + n, dst, err);
    case MOEC_SPAN_COMMON:
        return in->kind->read_tensor(in, m->hand, s->tensor, at, dst, (size_t)n,
                                     err);
    }
    memset(dst, 0, (size_t)n);
    return MOEC_OK;
}

/* Digest the leaves of a span that begin in the part: they are made whole. */
static moec_status digest(const making *m, const moec_span *s, moec_error *err)
{
    uint64_t skip = m->from > s->off ? m->from - s->off : 0;
    uint64_t first = moec_ceil_div(skip, MOEC_LEAF_BYTES);
    uint64_t begin = first * MOEC_LEAF_BYTES;
    uint64_t end = moec_min_u64(s->bytes, m->to - s->off);
    moec_leaf leaf[16];
    moec_digests some = {.leaves = leaf};
    const size_t room = sizeof(leaf) / sizeof(*leaf) * MOEC_LEAF_BYTES;

    if (s->off + begin >= m->end)
        return MOEC_OK;
    for (uint64_t at = begin, n; at < end; at += n, first += moec_n_leaves(n)) {
        n = moec_min_u64(room, end - at);
        MOEC_TRY(moec_digests_leaves(
            &some, 0, 0, m->hand.worker->buf + (s->off + at - m->from),
            (size_t)n, err));
        MOEC_TRY(moec_leaf_table_add(&m->b->leaves, s->leaf + first, leaf,
                                     moec_n_leaves(n), err));
    }
    return MOEC_OK;
}

/* The leaf that begins in the part and reaches over its end. */
static uint64_t end_of_leaf(const making *m)
{
    const bucket *b = m->b;
    moec_span s;
    uint64_t leaf;

    if (m->end >= b->p.files[m->file].bytes)
        return m->end;
    s = moec_span_at(b->p.layout, b->leaves.d, m->file, m->end);
    leaf = s.off + (m->end - s.off) / MOEC_LEAF_BYTES * MOEC_LEAF_BYTES;
    if (!moec_span_has_leaves(&s) || leaf == m->end || leaf < m->from)
        return m->end;
    return moec_min_u64(leaf + MOEC_LEAF_BYTES, s.off + s.bytes);
}

static moec_status make_part(making *m, moec_error *err)
{
    const bucket *b = m->b;
    unsigned char *buf = m->hand.worker->buf;
    moec_span s;

    m->to = end_of_leaf(m);
    for (uint64_t at = m->from, stop; at < m->to; at = stop) {
        s = moec_span_at(b->p.layout, b->leaves.d, m->file, at);
        stop = moec_min_u64(m->to, s.off + s.bytes);
        MOEC_TRY(fill(m, &s, at - s.off, stop - at, buf + (at - m->from), err));
        if (moec_span_has_leaves(&s))
            MOEC_TRY(digest(m, &s, err));
    }
    return MOEC_OK;
}

static moec_status begin_upload(bucket *b, size_t file, moec_error *err)
{
    target *t = &b->targets[file];
    const moec_out_job_file *f = &b->p.files[file];
    moec_status st = MOEC_OK;

    pthread_mutex_lock(&t->lock);
    if (t->up == NULL)
        st = b->o->begin(b->o->ctx, f->name, f->bytes, t->part_bytes, &t->up,
                         err);
    pthread_mutex_unlock(&t->lock);
    return st;
}

/* Its parts are there: its leaves, and then the object, so that no object is
 * without them. */
static moec_status complete_file(bucket *b, size_t file, moec_error *err)
{
    target *t = &b->targets[file];
    char name[MOEC_BUCKET_NAME_BYTES];
    moec_buf leaves = {0};
    moec_status st = moec_leaves_encode(b->p.layout, b->leaves.d, file, &b->job,
                                        &leaves, err);

    moec_bucket_leaves_name(name, b->p.files[file].name);
    if (st == MOEC_OK)
        st = b->o->put(b->o->ctx, name, leaves.data, leaves.len, false, err);
    moec_buf_fini(&leaves);
    if (st == MOEC_OK)
        st = b->o->complete(t->up, err);
    if (st != MOEC_OK)
        return st;
    b->o->end(t->up, false);
    t->up = NULL;
    t->done = true;
    return MOEC_OK;
}

static moec_status do_part(void *ctx, size_t i, uint32_t worker,
                           moec_error *err)
{
    bucket *b = ctx;
    const item *it = &b->items[i];
    target *t = &b->targets[it->file];
    uint64_t bytes = b->p.files[it->file].bytes;
    making m = {.b = b,
                .hand = {worker, &b->crew.workers[worker]},
                .file = it->file,
                .from = it->part * t->part_bytes};
    bool there = false;
    size_t n;

    m.end = moec_min_u64(bytes, m.from + t->part_bytes);
    n = (size_t)(m.end - m.from);
    MOEC_TRY(begin_upload(b, it->file, err));
    MOEC_TRY(make_part(&m, err));
    MOEC_TRY(b->o->part(t->up, it->part, m.hand.worker->buf, n, &there, err));
    if (there)
        atomic_fetch_add(&b->resumed, n);
    MOEC_TRY(moec_crew_done(&b->crew, n, err));
    if (atomic_fetch_sub(&t->n_left, 1) > 1)
        return MOEC_OK;
    return complete_file(b, it->file, err);
}

/* ------------------------------------------------------------- the whole */

static moec_status write_files(bucket *b, moec_error *err)
{
    MOEC_TRY(list_items(b, err));
    MOEC_TRY(choose_crew(b, err));
    if (atomic_load(&b->resumed) > 0)
        moec_crew_resumed(&b->crew, atomic_load(&b->resumed));
    MOEC_TRY(moec_parallel(b->crew.n, b->n_items, do_part, b, err));
    return b->p.in->kind->check_unchanged(b->p.in, err);
}

static moec_status write_rest(bucket *b, moec_convert_stats *stats,
                              moec_error *err)
{
    moec_finish_to to = {.objects = b->o};

    if (b->opts->ranks != NULL)
        return b->opts->ranks[0] &&
                       moec_bucket_find(b->o, MOEC_OUTPUT_BEGUN) == NULL
                   ? moec_finish_begin(b->p.in, to, stats, err)
                   : MOEC_OK;
    MOEC_TRY(moec_finish_write(b->p.in, &b->p.digests, b->p.headers, to, stats,
                               err));
    return moec_bucket_tidy(b->o, &b->p, err);
}

static moec_status convert_into(bucket *b, moec_convert_stats *stats,
                                moec_error *err)
{
    bool complete = false;
    moec_status st;

    MOEC_TRY(
        moec_sha256_of(b->p.identity.data, b->p.identity.len, &b->job, err));
    MOEC_TRY(moec_leaf_table_init(&b->leaves, &b->p.digests, err));
    MOEC_TRY(open_place(b, &complete, err));
    if (complete) {
        for (size_t i = 0; i < b->p.n_files; i++)
            stats->bytes_resumed += b->p.files[i].bytes;
        return moec_bucket_tidy(b->o, &b->p, err);
    }
    st = write_files(b, err);
    stats->bytes_resumed = atomic_load(&b->resumed);
    stats->bytes_written = atomic_load(&b->crew.done_bytes);
    stats->bytes_written -=
        moec_min_u64(stats->bytes_written, stats->bytes_resumed);
    stats->bytes_read = moec_crew_bytes_read(&b->crew);
    return st == MOEC_OK ? write_rest(b, stats, err) : st;
}

/* What may pass by itself may be run again, and goes on; what cannot leaves
 * nothing, unless others work there. */
static void leave(bucket *b, moec_status st)
{
    bool discard = b->ours && b->opts->ranks == NULL && st != MOEC_OK &&
                   st != MOEC_E_CANCELLED && st != MOEC_E_IO &&
                   st != MOEC_E_NOMEM && st != MOEC_E_LOCKED;

    for (size_t i = 0; b->targets != NULL && i < b->p.n_files; i++) {
        b->o->end(b->targets[i].up, discard);
        if (discard && b->targets[i].done)
            (void)b->o->remove(b->o->ctx, b->p.files[i].name, NULL);
        pthread_mutex_destroy(&b->targets[i].lock);
    }
    if (discard)
        (void)moec_bucket_tidy(b->o, &b->p, NULL);
}

static void add_advice(moec_error *err)
{
    static const char advice[] = "; run the same command again: it goes on "
                                 "where it was";
    size_t n = err != NULL ? strlen(err->text) : sizeof(err->text);

    if (n + sizeof(advice) <= sizeof(err->text))
        memcpy(err->text + n, advice, sizeof(advice));
}

moec_status moec_convert_objects(const moec_layout *layout,
                                 const moec_objects *to,
                                 const moec_convert_opts *opts,
                                 moec_convert_stats *stats, moec_error *err)
{
    double begin = moec_seconds_now();
    bucket b = {.o = to, .opts = opts};
    moec_convert_stats none = {0};
    moec_status st;

    *stats = none;
    MOEC_TRY(moec_prove_layout(layout, err));
    st = moec_prepare(&b.p, layout, opts, err);
    if (st == MOEC_OK)
        st = convert_into(&b, stats, err);
    leave(&b, st);
    if (st == MOEC_E_IO)
        add_advice(err);
    for (size_t i = 0; b.targets != NULL && i < b.p.n_files; i++)
        stats->n_files += b.targets[i].mine;
    stats->n_threads = b.crew.n;
    moec_crew_fini(&b.crew);
    moec_free(b.targets);
    moec_free(b.items);
    moec_leaf_table_fini(&b.leaves);
    moec_prepared_fini(&b.p);
    stats->seconds = moec_seconds_now() - begin;
    return st;
}
