/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TEST_THREAD_EXCHANGE_H
#define MOEC_TEST_THREAD_EXCHANGE_H

/*
 * Ranks as threads of one process: moec/exchange.h's table by memcpy. Each call
 * is a meeting of all threads before and after; one that leaves for good
 * (abandon) ends the waiting of the others, who then fail.
 */

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <moec/exchange.h>

#define THREAD_RANKS_MAX 16u

typedef struct thread_world {
    pthread_mutex_t lock;
    pthread_cond_t met;
    uint32_t size, here;
    uint64_t meeting;
    bool dead;
    const void *send[THREAD_RANKS_MAX];
    const uint64_t *first[THREAD_RANKS_MAX];
    uint64_t n[THREAD_RANKS_MAX];
} thread_world;

typedef struct thread_member {
    thread_world *w;
    uint32_t rank;
} thread_member;

static inline void thread_world_init(thread_world *w, uint32_t size)
{
    memset(w, 0, sizeof(*w));
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->met, NULL);
    w->size = size;
}

static inline void thread_world_fini(thread_world *w)
{
    pthread_cond_destroy(&w->met);
    pthread_mutex_destroy(&w->lock);
}

static inline bool thread_meet(thread_world *w)
{
    uint64_t mine;
    bool ok;

    pthread_mutex_lock(&w->lock);
    mine = w->meeting;
    if (++w->here == w->size) {
        w->here = 0;
        w->meeting++;
        pthread_cond_broadcast(&w->met);
    }
    while (!w->dead && w->meeting == mine)
        pthread_cond_wait(&w->met, &w->lock);
    ok = w->meeting != mine;
    pthread_mutex_unlock(&w->lock);
    return ok;
}

static inline moec_status thread_lost(moec_error *err)
{
    if (err != NULL && err->status == MOEC_OK) {
        err->status = MOEC_E_IO;
        strcpy(err->text, "a rank has left");
    }
    return MOEC_E_IO;
}

static inline moec_status thread_all_to_all(void *ctx, const uint64_t *send,
                                            uint64_t *recv, uint64_t n,
                                            moec_error *err)
{
    const thread_member *m = ctx;
    thread_world *w = m->w;

    w->send[m->rank] = send;
    if (!thread_meet(w))
        return thread_lost(err);
    for (uint32_t p = 0; p < w->size; p++)
        memcpy(recv + p * n, (const uint64_t *)w->send[p] + m->rank * n,
               (size_t)n * sizeof(*recv));
    return thread_meet(w) ? MOEC_OK : thread_lost(err);
}

static inline moec_status
thread_all_to_all_v(void *ctx, const uint32_t *send, const uint64_t *send_first,
                    uint32_t *recv, const uint64_t *recv_first, moec_error *err)
{
    const thread_member *m = ctx;
    thread_world *w = m->w;

    w->send[m->rank] = send;
    w->first[m->rank] = send_first;
    if (!thread_meet(w))
        return thread_lost(err);
    for (uint32_t p = 0; p < w->size; p++) {
        uint64_t from = w->first[p][m->rank];
        uint64_t n = w->first[p][m->rank + 1] - from;

        if (n != recv_first[p + 1] - recv_first[p])
            abort(); /* the two sides count otherwise */
        memcpy(recv + recv_first[p], (const uint32_t *)w->send[p] + from,
               (size_t)n * sizeof(*recv));
    }
    return thread_meet(w) ? MOEC_OK : thread_lost(err);
}

static inline moec_status thread_all_gather_v(void *ctx, const uint32_t *send,
                                              uint64_t n, uint32_t *recv,
                                              const uint64_t *recv_first,
                                              moec_error *err)
{
    const thread_member *m = ctx;
    thread_world *w = m->w;

    w->send[m->rank] = send;
    w->n[m->rank] = n;
    if (!thread_meet(w))
        return thread_lost(err);
    for (uint32_t p = 0; p < w->size; p++) {
        if (w->n[p] != recv_first[p + 1] - recv_first[p])
            abort();
        if (w->n[p] != 0)
            memcpy(recv + recv_first[p], w->send[p],
                   (size_t)w->n[p] * sizeof(*recv));
    }
    return thread_meet(w) ? MOEC_OK : thread_lost(err);
}

static inline moec_status thread_all_reduce(void *ctx, uint64_t *v, uint64_t n,
                                            moec_reduce op, moec_error *err)
{
    const thread_member *m = ctx;
    thread_world *w = m->w;
    uint64_t *sum = calloc((size_t)n + 1, sizeof(*sum));
    bool ok;

    w->send[m->rank] = v;
    ok = thread_meet(w);
    for (uint64_t i = 0; ok && i < n; i++)
        for (uint32_t p = 0; p < w->size; p++) {
            uint64_t x = ((const uint64_t *)w->send[p])[i];

            if (p == 0)
                sum[i] = x;
            else if (op == MOEC_REDUCE_SUM)
                sum[i] += x;
            else if (op == MOEC_REDUCE_MIN ? x < sum[i] : x > sum[i])
                sum[i] = x;
        }
    ok = ok && thread_meet(w);
    if (ok)
        memcpy(v, sum, (size_t)n * sizeof(*v));
    free(sum);
    return ok ? MOEC_OK : thread_lost(err);
}

static inline void thread_abandon(void *ctx, int exit_code)
{
    const thread_member *m = ctx;

    (void)exit_code;
    pthread_mutex_lock(&m->w->lock);
    m->w->dead = true;
    pthread_cond_broadcast(&m->w->met);
    pthread_mutex_unlock(&m->w->lock);
}

static inline moec_exchange_table thread_table(thread_member *m)
{
    moec_exchange_table t = MOEC_EXCHANGE_TABLE_INIT;

    t.rank = m->rank;
    t.size = m->w->size;
    t.ctx = m;
    t.all_to_all = thread_all_to_all;
    t.all_to_all_v = thread_all_to_all_v;
    t.all_gather_v = thread_all_gather_v;
    t.all_reduce = thread_all_reduce;
    t.abandon = thread_abandon;
    return t;
}

#endif
