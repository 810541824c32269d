/* SPDX-License-Identifier: Apache-2.0
 *
 * The parallel loop, and how many CPUs it may use. One loop at a time makes
 * its threads and joins them: all our items are of a megabyte or more, so a
 * standing pool would save nothing that can be measured. */

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"

/* ------------------------------------------------------------ CPUs */

/* Read a small file of the kernel as text. False where it cannot be. */
static bool read_small(const char *path, char *out, size_t cap)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n;

    if (fd < 0)
        return false;
    do
        n = read(fd, out, cap - 1);
    while (n < 0 && errno == EINTR);
    close(fd);
    out[n > 0 ? n : 0] = '\0';
    return n > 0;
}

/* CPUs of one cpu.max ("QUOTA PERIOD" in microseconds, or "max PERIOD"),
 * rounded up; `all` where it sets no limit. */
static uint32_t quota_cpus(const char *path, uint32_t all)
{
    char text[64], *end;
    unsigned long long quota, period;

    if (!read_small(path, text, sizeof(text)) || text[0] < '0' || text[0] > '9')
        return all;
    quota = strtoull(text, &end, 10);
    period = strtoull(end, NULL, 10);
    if (quota == 0 || period == 0 || moec_ceil_div(quota, period) > all)
        return all;
    return (uint32_t)moec_ceil_div(quota, period);
}

/* The least quota of our cgroup (version 2) and those above it. In a
 * container the path is usually "/" and the loop one step. */
static uint32_t cgroup_cpus(uint32_t all)
{
    static const char root[] = "/sys/fs/cgroup";
    char text[1024], path[sizeof(root) + sizeof(text) + 16];
    char *line, *slash;

    if (!read_small("/proc/self/cgroup", text, sizeof(text)))
        return all;
    line = strncmp(text, "0::", 3) == 0 ? text : strstr(text, "\n0::");
    if (!line)
        return all;
    line = strchr(line, '/');
    if (!line)
        return all;
    line[strcspn(line, "\n")] = '\0';
    if (line[1] == '\0')
        line[0] = '\0';
    for (;;) {
        snprintf(path, sizeof(path), "%s%s/cpu.max", root, line);
        all = quota_cpus(path, all);
        slash = strrchr(line, '/');
        if (!slash)
            return all;
        *slash = '\0';
    }
}

uint32_t moec_cpu_count(void)
{
    cpu_set_t sets[8]; /* 8192 CPUs: what Linux can be built for */
    uint32_t n = 1;

    memset(sets, 0, sizeof(sets));
    if (sched_getaffinity(0, sizeof(sets), sets) == 0) {
        int count = CPU_COUNT_S(sizeof(sets), sets);
        if (count > 1)
            n = (uint32_t)count;
    }
    return n > 1 ? cgroup_cpus(n) : n;
}

/* ------------------------------------------------------------ loop */

struct loop {
    moec_item_fn fn;
    void *ctx;
    atomic_size_t next;
    /* The lowest item that failed so far; n while none has. Written under
     * the lock, together with `error`. */
    atomic_size_t bad;
    pthread_mutex_t lock;
    moec_status status;
    moec_error error;
};

struct worker {
    struct loop *loop;
    pthread_t thread;
    uint32_t number;
};

static void note_failure(struct loop *l, size_t item, moec_status status,
                         const moec_error *err)
{
    pthread_mutex_lock(&l->lock);
    if (item < atomic_load(&l->bad)) {
        l->status = status;
        l->error = *err;
        atomic_store(&l->bad, item);
    }
    pthread_mutex_unlock(&l->lock);
}

/* An item is given up only where a LOWER one has failed. As items are handed
 * out in order, the lowest failing item always runs, and its error is the
 * one reported, however the threads were timed. */
static void work(struct loop *l, uint32_t number)
{
    for (;;) {
        moec_error err = MOEC_ERROR_INIT;
        size_t item = atomic_fetch_add(&l->next, 1);
        moec_status status;

        if (item >= atomic_load(&l->bad))
            return;
        status = l->fn(l->ctx, item, number, &err);
        if (status != MOEC_OK)
            note_failure(l, item, status, &err);
    }
}

static void *thread_main(void *arg)
{
    struct worker *w = arg;
    char name[16];

    snprintf(name, sizeof(name), "moec/%u", (unsigned)w->number);
    pthread_setname_np(pthread_self(), name);
    work(w->loop, w->number);
    return NULL;
}

/* The caller is worker 0; the others are made with all signals blocked, so
 * that handlers run on threads of the program's own. */
static void run_threads(struct loop *l, uint32_t n_threads)
{
    struct worker workers[MOEC_THREADS_MAX];
    sigset_t all, before;
    uint32_t made = 1;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; made < n_threads; made++) {
        struct worker *w = &workers[made];
        w->loop = l;
        w->number = made;
        if (pthread_create(&w->thread, NULL, thread_main, w) != 0)
            break;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    work(l, 0);
    for (uint32_t i = 1; i < made; i++)
        pthread_join(workers[i].thread, NULL);
}

moec_status moec_parallel(uint32_t n_threads, size_t n, moec_item_fn fn,
                          void *ctx, moec_error *err)
{
    struct loop l = {.fn = fn, .ctx = ctx};

    if (n == 0)
        return MOEC_OK;
    atomic_init(&l.next, 0);
    atomic_init(&l.bad, n);
    if (n_threads == 0)
        n_threads = moec_cpu_count();
    if (n_threads > n)
        n_threads = (uint32_t)n;
    if (n_threads > MOEC_THREADS_MAX)
        n_threads = MOEC_THREADS_MAX;
    pthread_mutex_init(&l.lock, NULL);
    if (n_threads == 1)
        work(&l, 0);
    else
        run_threads(&l, n_threads);
    pthread_mutex_destroy(&l.lock);
    return moec_hand_on(err, l.status, &l.error);
}
