/* SPDX-License-Identifier: Apache-2.0 */

/* The life of an engine: made, started, awaited. See engine.h. */

#include <signal.h>
#include <string.h>

#include "engine_parts.h"

#define THREADS_MAX   64u
#define THREADS_USUAL 8u
#define BLOCKING      8u /* reads under way without io_uring, at least */
#define RING_BYTES    (UINT64_C(64) << 20)
/* Reads into their place, half of them under way, half of them being digested:
 * of 4 MiB each what disks like to have queued. */
#define PLACES 32u

static void free_engine(moec_engine *e)
{
    moec_engine_close_files(e);
    if (e->workers != NULL)
        for (uint32_t i = 0; i < e->n_threads; i++)
            moec_free(e->workers[i].ops);
    moec_free(e->workers);
    if (e->o.sink == NULL)
        moec_free_aligned(e->ring);
    moec_free_aligned(e->pages);
    moec_free(e->tickets);
    moec_free(e->left);
    moec_free(e->requests);
    moec_free(e->parts);
    moec_free(e->pieces);
    moec_free(e->files);
    pthread_mutex_destroy(&e->sink_lock);
    pthread_mutex_destroy(&e->lock);
    moec_free(e);
}

/* Threads that read through io_uring need no more than the CPUs; those that
 * block in a read do, a sink's reader too. Whether the kernel has it, a thread knows that tries:
 * here and now, as the ring is cut for the number of threads. */
static uint32_t choose_threads(const moec_engine_opts *o)
{
    uint32_t n = o->n_threads;
    moec_uring probe;

    if (n == 0) {
        bool uring = !o->no_uring && moec_uring_open(&probe, 1);

        n = (uint32_t)moec_min_u64(moec_cpu_count(), THREADS_USUAL);
        if (uring)
            moec_uring_close(&probe);
        if (!uring || (o->sink != NULL && o->sink->reader != NULL))
            n = (uint32_t)moec_max_u64(2 * n, BLOCKING);
    }
    return (uint32_t)moec_min_u64(n, THREADS_MAX);
}

static moec_status fill(moec_engine *e, const moec_engine_file *files,
                        const moec_piece *pieces, size_t n_pieces,
                        moec_error *err)
{
    e->files = moec_calloc(e->n_files + 1, sizeof(*e->files));
    if (e->files == NULL) {
        e->n_files = 0;
        return moec_fail_nomem(err, "the files of a load");
    }
    for (size_t i = 0; i < e->n_files; i++) {
        e->files[i].f = &files[i];
        e->files[i].direct_fd = -1;
    }
    e->left = moec_calloc(e->n_groups + 1, sizeof(*e->left));
    e->tickets = moec_calloc(e->n_groups + 1, sizeof(*e->tickets));
    if (e->left == NULL || e->tickets == NULL)
        return moec_fail_nomem(err, "the groups of a load");
    return moec_engine_make_plan(e, pieces, n_pieces, err);
}

moec_status moec_engine_create(moec_engine **out, const moec_engine_file *files,
                               size_t n_files, const moec_piece *pieces,
                               size_t n_pieces, uint32_t n_groups,
                               const moec_engine_opts *opts, moec_error *err)
{
    double t = moec_engine_now();
    moec_engine *e = moec_calloc(1, sizeof(*e));
    moec_status st;

    if (e == NULL)
        return moec_fail_nomem(err, "a load");
    e->o = *opts;
    if (e->o.ring_bytes == 0)
        e->o.ring_bytes = RING_BYTES;
    e->n_files = n_files;
    e->n_groups = n_groups;
    e->n_threads = choose_threads(opts);
    pthread_mutex_init(&e->lock, NULL);
    pthread_mutex_init(&e->sink_lock, NULL);
    st = fill(e, files, pieces, n_pieces, err);
    if (st != MOEC_OK) {
        free_engine(e);
        return st;
    }
    e->t_open = moec_engine_now() - t;
    *out = e;
    return MOEC_OK;
}

/* --------------------------------------------------------------- start */

static moec_status hire(moec_engine *e, moec_error *err)
{
    /* with a sink, one slot of each thread is for turning pieces in */
    uint32_t turn = e->o.sink != NULL ? 1 : 0;
    size_t each = (size_t)(e->n_slots * e->part_bytes);

    e->workers = moec_calloc(e->n_threads, sizeof(*e->workers));
    e->ring = e->o.sink != NULL
                  ? e->o.sink->ring
                  : moec_alloc_aligned(e->n_threads * each, MOEC_ENGINE_PAGE);
    if (e->workers == NULL || e->ring == NULL)
        return moec_fail_nomem(err, "the ring of a load");
    e->n_slots -= turn;
    if (e->o.sink == NULL) {
        e->n_places = (uint32_t)moec_ceil_div(PLACES, e->n_threads);
        e->pages = moec_alloc_aligned((size_t)e->n_threads * e->n_places * 2 *
                                          MOEC_ENGINE_PAGE,
                                      MOEC_ENGINE_PAGE);
        if (e->pages == NULL)
            return moec_fail_nomem(err, "the ring of a load");
    }
    for (uint32_t i = 0; i < e->n_threads; i++) {
        moec_engine_worker *w = &e->workers[i];

        w->e = e;
        w->number = i;
        w->ops = moec_calloc(e->n_slots + e->n_places, sizeof(*w->ops));
        if (w->ops == NULL)
            return moec_fail_nomem(err, "the ring of a load");
        for (uint32_t k = 0; k < e->n_slots; k++)
            w->ops[k].slot = e->ring + i * each + k * e->part_bytes;
        for (uint32_t k = 0; k < e->n_places; k++)
            w->ops[e->n_slots + k].slot =
                e->pages + ((size_t)i * e->n_places + k) * 2 * MOEC_ENGINE_PAGE;
    }
    return MOEC_OK;
}

static void *thread_main(void *arg)
{
    moec_engine_worker *w = arg;
    char name[16];

    snprintf(name, sizeof(name), "moec-load/%u", (unsigned)w->number);
    pthread_setname_np(pthread_self(), name);
    moec_engine_work(w);
    return NULL;
}

/* What could not start has failed: wait says so too. */
static moec_status give_up(moec_engine *e, moec_status st,
                           const moec_error *err)
{
    e->done = true;
    e->status = st;
    if (err != NULL)
        e->error = *err;
    return st;
}

moec_status moec_engine_start(moec_engine *e, moec_error *err)
{
    sigset_t all, before;
    moec_status st;
    int failed = 0;

    if (e->workers != NULL || e->done)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "this load was started before");
    st = hire(e, err);
    if (st != MOEC_OK)
        return give_up(e, st, err);
    atomic_store(&e->t_begin, moec_engine_now());
    /* signals are blocked in our threads: handlers run on the program's own */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; failed == 0 && e->n_started < e->n_threads; e->n_started++) {
        moec_engine_worker *w = &e->workers[e->n_started];

        failed = pthread_create(&w->thread, NULL, thread_main, w);
        if (failed != 0)
            break;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (e->n_started == 0)
        return give_up(e, moec_fail_os(err, failed, "no thread for a load"),
                       err);
    return MOEC_OK; /* fewer threads do the same */
}

moec_status moec_engine_wait(moec_engine *e, moec_error *err)
{
    if (e->workers == NULL && !e->done)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "this load was not started");
    if (!e->done) {
        moec_status st = MOEC_OK;
        moec_error own = MOEC_ERROR_INIT;

        for (uint32_t i = 0; i < e->n_started; i++)
            pthread_join(e->workers[i].thread, NULL);
        e->done = true;
        for (size_t i = 0;
             e->status == MOEC_OK && st == MOEC_OK && i < e->n_files; i++)
            st = moec_engine_check_file(e, (uint32_t)i, &own);
        if (st != MOEC_OK) {
            e->status = st;
            e->error = own;
        }
        atomic_store(&e->t_end, moec_engine_now());
        if (e->o.sink == NULL)
            moec_free_aligned(e->ring);
        e->ring = NULL;
    }
    return moec_hand_on(err, e->status, &e->error);
}

void moec_engine_poll(moec_engine *e, moec_engine_stats *out)
{
    double begin = atomic_load(&e->t_begin), end = atomic_load(&e->t_end);
    double first = atomic_load(&e->t_first);

    if (end == 0 && begin != 0)
        end = moec_engine_now();
    *out = (moec_engine_stats){
        .bytes_needed = e->bytes_needed,
        .bytes_done = atomic_load(&e->bytes_done),
        .bytes_read = atomic_load(&e->bytes_read),
        .bytes_cached = atomic_load(&e->bytes_cached),
        .bytes_ahead = atomic_load(&e->bytes_ahead),
        .bytes_verified = atomic_load(&e->bytes_verified),
        .n_requests = atomic_load(&e->n_asked),
        .n_retries = atomic_load(&e->n_retries),
        .n_ring_waits = atomic_load(&e->n_waits),
        .bytes_by_reader = atomic_load(&e->bytes_by_reader),
        .n_reader_failed = atomic_load(&e->n_reader_failed),
        .n_groups_ready = (uint32_t)atomic_load(&e->groups_ready),
        .uses_uring = atomic_load(&e->uses_uring),
        .uses_direct = atomic_load(&e->uses_direct),
        .seconds = end - begin,
        .seconds_open = e->t_open,
        .seconds_first_group = first != 0 ? first - begin : 0,
        .seconds_digest = (double)atomic_load(&e->digest_ns) * 1e-9};
}

void moec_engine_cancel(moec_engine *e)
{
    pthread_mutex_lock(&e->lock);
    if (e->status == MOEC_OK && e->n_ready < e->n_groups)
        e->status = moec_fail(&e->error, MOEC_E_CANCELLED, MOEC_RULE_NONE,
                              "the load was cancelled");
    atomic_store(&e->stop, true);
    pthread_mutex_unlock(&e->lock);
}

void moec_engine_destroy(moec_engine *e)
{
    if (e == NULL)
        return;
    if (e->workers != NULL && !e->done) {
        moec_engine_cancel(e);
        (void)moec_engine_wait(e, NULL);
    }
    free_engine(e);
}
