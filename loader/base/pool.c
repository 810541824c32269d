/* SPDX-License-Identifier: Apache-2.0
 *
 * A standing pool of threads, for loops that are over before a new thread
 * would have started: a token's experts are computed in a millisecond, and
 * each of its phases is a loop. A waiting thread spins for about 20
 * microseconds, then sleeps on a condition variable.
 *
 * One word says everything: `turn` counts the calls. A call fills in the
 * work, raises `turn` and works along; each thread that sees a new turn takes
 * items until none is left, then counts itself out in `busy`. The call
 * returns when all have, so no thread ever sees another call's work. */

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>

#include "base/base.h"

#define POOL_THREADS_MAX 256u
#define SPINS            4000

#if defined(__x86_64__)
#  define RELAX() __builtin_ia32_pause()
#else
#  define RELAX() atomic_signal_fence(memory_order_seq_cst)
#endif

struct pool_thread {
    struct moec_pool *pool;
    pthread_t thread;
    uint32_t number;
};

struct moec_pool {
    moec_work_fn fn;
    void *ctx;
    size_t n;
    atomic_size_t next;
    atomic_uint turn;
    atomic_uint busy; /* threads that have not counted themselves out */
    atomic_bool stop;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    uint32_t n_threads; /* with the caller */
    uint32_t made;
    struct pool_thread threads[];
};

static void take_items(moec_pool *p, uint32_t worker)
{
    size_t item;

    while ((item = atomic_fetch_add_explicit(&p->next, 1,
                                             memory_order_relaxed)) < p->n)
        p->fn(p->ctx, item, worker);
}

/* Wait until `turn` is not `seen`; false when the pool ends. */
static bool await_turn(moec_pool *p, unsigned seen)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&p->turn, memory_order_acquire) != seen)
            return !atomic_load(&p->stop);
        RELAX();
    }
    pthread_mutex_lock(&p->lock);
    while (atomic_load(&p->turn) == seen)
        pthread_cond_wait(&p->wake, &p->lock);
    pthread_mutex_unlock(&p->lock);
    return !atomic_load(&p->stop);
}

static void *pool_main(void *arg)
{
    struct pool_thread *t = arg;
    moec_pool *p = t->pool;
    unsigned seen = 0;
    char name[16];

    snprintf(name, sizeof(name), "moec/%u", (unsigned)t->number);
    pthread_setname_np(pthread_self(), name);
    while (await_turn(p, seen)) {
        seen++;
        take_items(p, t->number);
        atomic_fetch_sub_explicit(&p->busy, 1, memory_order_release);
    }
    return NULL;
}

/* Let every thread go: under the lock, or a thread that is about to sleep
 * would miss it. */
static void next_turn(moec_pool *p)
{
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add_explicit(&p->turn, 1, memory_order_release);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

void moec_pool_run(moec_pool *p, size_t n, moec_work_fn fn, void *ctx)
{
    if (!p || p->made == 0 || n < 2) {
        for (size_t i = 0; i < n; i++)
            fn(ctx, i, 0);
        return;
    }
    p->fn = fn;
    p->ctx = ctx;
    p->n = n;
    atomic_store_explicit(&p->next, 0, memory_order_relaxed);
    atomic_store_explicit(&p->busy, p->made, memory_order_relaxed);
    next_turn(p);
    take_items(p, 0);
    for (int i = 0; atomic_load_explicit(&p->busy, memory_order_acquire) != 0;
         i++)
        if (i < SPINS)
            RELAX();
        else
            sched_yield();
}

/* Signals are blocked in our threads: handlers run on the program's own. */
static void start(moec_pool *p)
{
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (p->made + 1 < p->n_threads) {
        struct pool_thread *t = &p->threads[p->made];

        t->pool = p;
        t->number = p->made + 1;
        if (pthread_create(&t->thread, NULL, pool_main, t) != 0)
            break; /* fewer threads, same results */
        p->made++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

moec_status moec_pool_create(moec_pool **out, uint32_t n_threads,
                             moec_error *err)
{
    moec_pool *p;

    if (n_threads == 0)
        n_threads = moec_cpu_count();
    if (n_threads > POOL_THREADS_MAX)
        n_threads = POOL_THREADS_MAX;
    p = moec_calloc(1, sizeof(*p) + n_threads * sizeof(p->threads[0]));
    if (!p)
        return moec_fail_nomem(err, "a pool of threads");
    p->n_threads = n_threads;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    start(p);
    *out = p;
    return MOEC_OK;
}

void moec_pool_destroy(moec_pool *p)
{
    if (!p)
        return;
    atomic_store(&p->stop, true);
    next_turn(p);
    for (uint32_t i = 0; i < p->made; i++)
        pthread_join(p->threads[i].thread, NULL);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    moec_free(p);
}

uint32_t moec_pool_n_threads(const moec_pool *p)
{
    return p ? p->made + 1 : 1;
}
