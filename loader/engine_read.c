/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The threads of an engine. Each takes the next request, in order, while it
 * has a slot of the ring free for it, and
 *   - reads it through the page cache, at once, where its pages are there or
 *     direct reads are not to be had: into the destination where the parts
 *     allow it, else into the slot;
 *   - else starts direct reads: of the aligned middle into the destination
 *     where it fits, head and tail into the slot; or of all into the slot;
 * and digests and copies what has come. With io_uring the started reads of
 * one thread go on while it copies; without, each thread waits for its own,
 * and there are more threads.
 */

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "engine_parts.h"

static bool stopped(const moec_engine *e)
{
    return atomic_load_explicit(&e->stop, memory_order_relaxed);
}

/* The first failure is the engine's; the others are for nobody. */
static void fail(moec_engine_worker *w, moec_status st)
{
    moec_engine *e = w->e;

    pthread_mutex_lock(&e->lock);
    if (e->status == MOEC_OK) {
        e->status = st;
        e->error = w->err;
    }
    pthread_mutex_unlock(&e->lock);
    atomic_store(&e->stop, true);
    w->err = (moec_error)MOEC_ERROR_INIT;
}

/* ------------------------------------------------------------ groups */

size_t moec_engine_first_request(const moec_engine *e, uint32_t group)
{
    size_t lo = 0, hi = e->n_requests;

    while (lo < hi) { /* requests stand in the order of groups */
        size_t mid = lo + (hi - lo) / 2;
        if (e->requests[mid].group < group)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* The files of group g, which has been read, are those that were opened. */
static moec_status check_files(moec_engine_worker *w, uint32_t g)
{
    const moec_engine *e = w->e;
    uint32_t last = UINT32_MAX;

    for (size_t i = moec_engine_first_request(e, g);
         i < e->n_requests && e->requests[i].group == g; i++) {
        uint32_t file = e->requests[i].file;
        if (file != last)
            MOEC_TRY(moec_engine_check_file(e, file, &w->err));
        last = file;
    }
    return MOEC_OK;
}

static moec_status tell(moec_engine_worker *w, uint32_t g)
{
    moec_engine *e = w->e;

    MOEC_TRY(check_files(w, g));
    MOEC_TRY(moec_engine_prove(w, g));
    if (e->o.ready != NULL)
        MOEC_TRY(e->o.ready(e->o.ctx, g, e->tickets[g], &w->err));
    if (g == 0)
        atomic_store(&e->t_first, moec_engine_now());
    atomic_fetch_add(&e->groups_ready, 1);
    return MOEC_OK;
}

/* Tell of the groups that are complete, in order. One thread does; what others
 * complete meanwhile it finds. */
static void tell_ready(moec_engine_worker *w)
{
    moec_engine *e = w->e;
    moec_status st = MOEC_OK;

    pthread_mutex_lock(&e->lock);
    if (e->telling) {
        pthread_mutex_unlock(&e->lock);
        return;
    }
    e->telling = true;
    while (st == MOEC_OK && !stopped(e) && e->n_ready < e->n_groups &&
           e->left[e->n_ready] == 0) {
        uint32_t g = e->n_ready;

        pthread_mutex_unlock(&e->lock);
        st = tell(w, g);
        if (st != MOEC_OK)
            fail(w, st);
        pthread_mutex_lock(&e->lock);
        e->n_ready++;
    }
    e->telling = false;
    pthread_mutex_unlock(&e->lock);
}

static void request_done(moec_engine_worker *w, moec_engine_op *op)
{
    moec_engine *e = w->e;
    const moec_request *r = op->r;

    atomic_fetch_add(&e->bytes_done, r->needed);
    pthread_mutex_lock(&e->lock);
    e->left[r->group]--;
    e->tickets[r->group] = moec_max_u64(e->tickets[r->group], op->ticket);
    pthread_mutex_unlock(&e->lock);
    tell_ready(w);
}

/* -------------------------------------------------------------- direct */

static uint64_t align_down(uint64_t v, uint64_t a)
{
    return v & ~(a - 1);
}

static uint64_t align_up(uint64_t v, uint64_t a)
{
    return (v + a - 1) & ~(a - 1);
}

static void add_read(moec_engine_op *op, uint64_t off, uint64_t end,
                     unsigned char *to)
{
    if (off < end)
        op->reads[op->n_reads++] =
            (moec_engine_read){off, to, (uint32_t)(end - off)};
}

/* Where the request's middle is read to, its head lies in the slot's first
 * page and its tail in the second. */
static void plan_reads(const moec_engine *e, moec_engine_op *op)
{
    const moec_request *r = op->r;
    const moec_engine_fd *f = &e->files[r->file];
    uint64_t end = r->off + r->bytes, a = f->off_align;
    uint64_t first = align_up(r->off, a), last = align_down(end, a);
    unsigned char *dst;

    op->n_reads = 0;
    op->in_place = r->in_place;
    if (!op->in_place) {
        add_read(op, align_down(r->off, MOEC_ENGINE_PAGE),
                 align_up(end, MOEC_ENGINE_PAGE), op->slot);
        return;
    }
    dst = moec_engine_place(e, &e->parts[r->first]);
    add_read(op, first, last, dst + (first - r->off));
    if (r->off < first)
        add_read(op, first - a, first, op->slot);
    if (last < end)
        add_read(op, last, last + a, op->slot + MOEC_ENGINE_PAGE);
}

/* A direct read ended: `res` bytes or -errno. What it left goes through the
 * cache: a refusal, a short read, an interruption. */
static moec_status read_ended(moec_engine_worker *w, moec_engine_op *op,
                              const moec_engine_read *d, int res)
{
    moec_engine *e = w->e;
    moec_engine_fd *f = &e->files[op->r->file];
    uint64_t end = moec_min_u64(d->off + d->len, op->r->off + op->r->bytes);
    uint64_t got = res > 0 ? (uint64_t)res : 0;

    if (res == -EINVAL || res == -EOPNOTSUPP)
        atomic_store(&f->direct, false);
    else if (res < 0 && res != -EINTR && res != -EAGAIN)
        return moec_fail_os(&w->err, -res, "%s: cannot read at byte %ju",
                            f->f->name, (uintmax_t)d->off);
    atomic_fetch_add(&e->bytes_read, got);
    if (d->off + got >= end)
        return MOEC_OK;
    atomic_fetch_add(&e->n_retries, 1);
    return moec_engine_read_plain(e, op->r->file, d->off + got, d->to + got,
                                  (size_t)(end - d->off - got), &w->err);
}

/* All reads of a direct request are done. */
static moec_status finish_direct(moec_engine_worker *w, moec_engine_op *op)
{
    const moec_engine *e = w->e;
    const moec_request *r = op->r;
    uint64_t a = e->files[r->file].off_align, end = r->off + r->bytes;
    uint64_t first = align_up(r->off, a), last = align_down(end, a);
    unsigned char *dst;

    if (!op->in_place)
        return moec_engine_place_all(w, op,
                                     op->slot + r->off % MOEC_ENGINE_PAGE);
    dst = moec_engine_place(e, &e->parts[r->first]);
    if (r->off < first)
        memcpy(dst, op->slot + (a - (first - r->off)),
               (size_t)(first - r->off));
    if (last < end)
        memcpy(dst + (last - r->off), op->slot + MOEC_ENGINE_PAGE,
               (size_t)(end - last));
    return moec_engine_settle(w, r, true);
}

/* --------------------------------------------------------------- requests */

static void op_done(moec_engine_worker *w, moec_engine_op *op, moec_status st)
{
    if (st != MOEC_OK)
        fail(w, st);
    else
        request_done(w, op);
    op->state = op->ticket != 0 ? MOEC_OP_DRAINS : MOEC_OP_FREE;
}

static void queue_reads(moec_engine_worker *w, moec_engine_op *op)
{
    uint32_t i = (uint32_t)(op - w->ops);
    uint64_t bytes = w->e->part_bytes;

    /* a slot that is never used is never touched */
    if (!op->in_place && !op->registered)
        op->registered =
            moec_uring_register(&w->uring, i, op->slot, (size_t)bytes);
    for (uint32_t k = 0; k < op->n_reads; k++) {
        const moec_engine_read *d = &op->reads[k];
        bool fixed =
            op->registered && d->to >= op->slot && d->to < op->slot + bytes;

        moec_uring_read(&w->uring, w->e->files[op->r->file].direct_fd, d->off,
                        d->to, d->len, fixed ? i : MOEC_URING_NO_BUFFER,
                        (uint64_t)i * 4 + k);
    }
    op->n_pending = op->n_reads;
    op->bad = false;
    op->state = MOEC_OP_READS;
    w->n_reading++;
    w->n_reading_slots += !op->in_place;
    /* at once: making the next slot ready may take longer than the read */
    (void)moec_uring_enter(&w->uring, false);
}

static void begin(moec_engine_worker *w, moec_engine_op *op)
{
    moec_engine *e = w->e;
    moec_engine_fd *f = &e->files[op->r->file];
    moec_status st = MOEC_OK;

    op->ticket = 0;
    if (moec_engine_offer(w, op, &st)) {
        op_done(w, op, st);
        return;
    }
    if (!atomic_load(&f->direct) ||
        moec_io_is_cached(f->f->fd, op->r->off, op->r->bytes)) {
        st = moec_engine_read_cached(w, op);
        op_done(w, op, st);
        return;
    }
    atomic_store(&e->uses_direct, true);
    plan_reads(e, op);
    atomic_fetch_add(&e->n_asked, op->n_reads);
    if (w->uring.fd >= 0) {
        queue_reads(w, op);
        return;
    }
    for (uint32_t k = 0; st == MOEC_OK && k < op->n_reads; k++) {
        const moec_engine_read *d = &op->reads[k];
        ssize_t n = pread(f->direct_fd, d->to, d->len, (off_t)d->off);

        st = read_ended(w, op, d, n < 0 ? -errno : (int)n);
    }
    if (st == MOEC_OK)
        st = finish_direct(w, op);
    op_done(w, op, st);
}

/* Hand over what is queued, wait for a read if there is nothing else to do
 * (`idle`), and note the requests whose last read has come. */
static void reap(moec_engine_worker *w, bool idle)
{
    int e = moec_uring_enter(&w->uring, idle && w->n_waiting == 0);
    uint64_t tag;
    int res;

    if (e != 0 && !stopped(w->e))
        fail(w, moec_fail_os(&w->err, e, "io_uring"));
    if (e != 0) /* the reads may still write: wait for them, at leisure */
        (void)usleep(1000);
    while (moec_uring_next(&w->uring, &tag, &res)) {
        moec_engine_op *op = &w->ops[tag / 4];
        moec_status st = MOEC_OK;

        if (!stopped(w->e) && !op->bad)
            st = read_ended(w, op, &op->reads[tag % 4], res);
        if (st != MOEC_OK) {
            op->bad = true;
            fail(w, st);
        }
        if (--op->n_pending > 0)
            continue;
        w->n_reading--;
        w->n_reading_slots -= !op->in_place;
        w->n_waiting++;
        op->came = w->n_came++;
        op->state = MOEC_OP_CAME;
    }
}

/* Digest and copy the request that came first. */
static void finish_one(moec_engine_worker *w)
{
    moec_engine_op *first = NULL;

    for (uint32_t i = 0; i < w->e->n_slots + w->e->n_places; i++)
        if (w->ops[i].state == MOEC_OP_CAME &&
            (first == NULL || w->ops[i].came < first->came))
            first = &w->ops[i];
    if (first == NULL)
        return;
    w->n_waiting--;
    first->state = MOEC_OP_FREE;
    if (!stopped(w->e) && !first->bad)
        op_done(w, first, finish_direct(w, first));
}

/* Copies of a sink that read a slot: is it free again? */
static bool drained(moec_engine_worker *w, moec_engine_op *op, bool block)
{
    moec_engine *e = w->e;
    const moec_engine_sink *s = e->o.sink;
    int done = 0;
    moec_status st;

    pthread_mutex_lock(&e->sink_lock);
    st = s->poll(s->ctx, op->ticket, block, &done, &w->err);
    pthread_mutex_unlock(&e->sink_lock);
    if (st != MOEC_OK)
        fail(w, st);
    if (st == MOEC_OK && !done)
        return false;
    op->state = MOEC_OP_FREE;
    op->ticket = 0;
    return true;
}

/* Room for a read into its place. */
static moec_engine_op *free_place(moec_engine_worker *w)
{
    const moec_engine *e = w->e;

    for (uint32_t i = 0; i < e->n_places; i++)
        if (w->ops[e->n_slots + i].state == MOEC_OP_FREE)
            return &w->ops[e->n_slots + i];
    return NULL;
}

/* A slot, or NULL while all are in use. The first that is free, so that few are
 * touched. */
static moec_engine_op *free_slot(moec_engine_worker *w)
{
    moec_engine_op *oldest = NULL;

    for (uint32_t i = 0; i < w->e->n_slots; i++) {
        moec_engine_op *op = &w->ops[i];

        if (op->state == MOEC_OP_DRAINS && !drained(w, op, false) &&
            (oldest == NULL || op->ticket < oldest->ticket))
            oldest = op;
        if (op->state == MOEC_OP_FREE)
            return op;
    }
    if (w->n_reading + w->n_waiting == 0 && oldest != NULL &&
        drained(w, oldest, true))
        return oldest;
    atomic_fetch_add(&w->e->n_waits, 1);
    return NULL;
}

/* The ring is the sink's: no copy may read it when we are gone. */
static void drain(moec_engine_worker *w)
{
    for (uint32_t i = 0; i < w->e->n_slots; i++)
        while (w->ops[i].state == MOEC_OP_DRAINS)
            if (!drained(w, &w->ops[i], true))
                break;
}

/* Towards the end fewer and fewer reads: what comes last is digested when the
 * disk has nothing left to do. */
static uint32_t most_reading(const moec_engine *e)
{
    size_t left =
        e->n_requests - moec_min_u64(atomic_load(&e->next), e->n_requests);

    return (uint32_t)moec_min_u64(left / e->n_threads + 2, UINT32_MAX);
}

/* Room for the request, or NULL: something must be finished first. New reads go
 * out before what has come is copied, so some of the room is kept from reads
 * that are under way: devices that serve all reads alike end them all at once,
 * and with all the room being read into the disk would rest while we copy. */
static moec_engine_op *room_for(moec_engine_worker *w, const moec_request *r)
{
    const moec_engine *e = w->e;

    if (w->n_reading >= most_reading(e))
        return NULL;
    if (!r->in_place)
        return w->n_reading_slots < (3 * e->n_slots + 3) / 4 ? free_slot(w)
                                                             : NULL;
    return w->n_reading - w->n_reading_slots < (e->n_places + 1) / 2
               ? free_place(w)
               : NULL;
}

static const moec_request *take(moec_engine *e)
{
    size_t i = atomic_fetch_add(&e->next, 1);

    return i < e->n_requests ? &e->requests[i] : NULL;
}

/* Begin what there is room for. Before what came is digested: some disks end
 * all their reads at once, and rest until the next is there. True after a
 * request that was done at once (its pages were cached) while others are under
 * way: look at those before the next. */
static bool start_reads(moec_engine_worker *w)
{
    moec_engine *e = w->e;
    moec_engine_op *op;

    while (w->held != NULL && !stopped(e) &&
           (op = room_for(w, w->held)) != NULL) {
        op->r = w->held;
        begin(w, op);
        w->held = take(e);
        if (op->state != MOEC_OP_READS && w->n_reading > 0)
            return true;
    }
    return false;
}

void moec_engine_work(moec_engine_worker *w)
{
    moec_engine *e = w->e;
    uint32_t n = e->n_slots + e->n_places;
    bool more;

    w->uring.fd = -1;
    if (!e->o.no_uring && moec_uring_open(&w->uring, 3 * n)) {
        atomic_store(&e->uses_uring, true);
        moec_uring_table(&w->uring, e->n_slots);
    }
    tell_ready(w); /* groups without pieces */
    w->held = take(e);
    more = start_reads(w);
    while ((w->held != NULL && !stopped(e)) ||
           w->n_reading + w->n_waiting > 0) {
        if (w->n_reading > 0)
            reap(w, !more);
        more = start_reads(w);
        finish_one(w);
    }
    if (e->o.sink != NULL)
        drain(w);
    moec_uring_close(&w->uring);
}
