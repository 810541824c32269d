/* SPDX-License-Identifier: Apache-2.0 */

/* Workers, their buffers and their progress. See crew.h. */

#include "crew.h"
#include "converted.h"

/* Buffers of all workers where --memory does not say. */
#define BUDGET_BYTES (UINT64_C(192) << 20)

/* Least range under a tight --memory. */
#define LEAST_RANGE_BYTES MOEC_LEAF_BYTES

static uint64_t worker_bytes(uint64_t range)
{
    return range + MOEC_IO_REQUEST_BYTES + UINT64_C(2) * MOEC_ALIGN +
           MOEC_SCRATCH_BYTES_MAX;
}

uint64_t moec_crew_range(const moec_plan *p)
{
    uint64_t most = MOEC_COPY_RANGE_BYTES;

    for (size_t i = 0; i < moec_plan_n_layers(p); i++)
        for (size_t t = 0; t < moec_plan_n_slot_tensors(p, i); t++) {
            const moec_slot_tensor *s = moec_plan_slot_tensor(p, i, t);
            if (s->op != MOEC_OP_COPY)
                most = moec_max_u64(
                    most, moec_min_u64(s->slot_bytes, MOEC_TURN_RANGE_BYTES));
        }
    return moec_ceil_div(most, MOEC_LEAF_BYTES) * MOEC_LEAF_BYTES;
}

moec_status moec_crew_choose(moec_crew *c, uint64_t range,
                             const moec_convert_opts *opts, moec_error *err)
{
    uint64_t cap = opts->memory_bytes ? opts->memory_bytes : BUDGET_BYTES;
    uint64_t least = moec_min_u64(range, MOEC_COPY_RANGE_BYTES);
    uint32_t n = opts->n_threads;

    /* they block in system calls: more of them than CPUs, and enough requests
     * in flight for the disk */
    if (n == 0)
        n = (uint32_t)moec_min_u64(
            moec_max_u64(8, 2 * (uint64_t)moec_cpu_count()), 16);
    while (range > least && n * worker_bytes(range) > cap)
        range -= MOEC_LEAF_BYTES;
    if (opts->memory_bytes == 0) /* so many threads were asked for */
        cap = moec_max_u64(cap, n * worker_bytes(range));
    while (n > 1 && n * worker_bytes(range) > cap)
        n--;
    while (range > LEAST_RANGE_BYTES && worker_bytes(range) > cap)
        range -= MOEC_LEAF_BYTES;
    if (worker_bytes(range) > cap)
        return moec_fail(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                         "--memory %llu is too little: one thread needs "
                         "%llu bytes of buffers",
                         (unsigned long long)cap,
                         (unsigned long long)worker_bytes(range));
    c->n = n;
    c->range_bytes = range;
    c->bytes = n * worker_bytes(range);
    c->opts = opts;
    return MOEC_OK;
}

moec_status moec_crew_hire(moec_crew *c, moec_error *err)
{
    pthread_mutex_init(&c->progress_lock, NULL);
    c->workers = moec_calloc(c->n, sizeof(*c->workers));
    if (c->workers == NULL)
        return moec_fail_nomem(err, "workers");
    for (uint32_t i = 0; i < c->n; i++) {
        c->workers[i].buf =
            moec_alloc_aligned((size_t)c->range_bytes, MOEC_ALIGN);
        if (c->workers[i].buf == NULL)
            return moec_fail_nomem(err, "buffers of a worker");
    }
    return MOEC_OK;
}

void moec_crew_fini(moec_crew *c)
{
    for (uint32_t i = 0; c->workers != NULL && i < c->n; i++) {
        moec_free_aligned(c->workers[i].buf);
        moec_scratch_fini(&c->workers[i].scratch);
        moec_io_buf_fini(&c->workers[i].io);
    }
    moec_free(c->workers);
    c->workers = NULL;
}

void moec_crew_resumed(moec_crew *c, uint64_t bytes)
{
    atomic_fetch_add(&c->done_bytes, bytes);
    if (c->opts->resumed != NULL)
        c->opts->resumed(c->opts->progress_ctx, bytes, c->total_bytes);
}

moec_status moec_crew_done(moec_crew *c, uint64_t bytes, moec_error *err)
{
    const moec_convert_opts *o = c->opts;
    uint64_t done = atomic_fetch_add(&c->done_bytes, bytes) + bytes;
    bool stop = o->stop != NULL && *o->stop != 0;

    if (!stop && o->progress != NULL &&
        pthread_mutex_trylock(&c->progress_lock) == 0) {
        stop = o->progress(o->progress_ctx, done, c->total_bytes) != 0;
        pthread_mutex_unlock(&c->progress_lock);
    }
    if (stop)
        return moec_fail(err, MOEC_E_CANCELLED, MOEC_RULE_NONE,
                         "interrupted after %llu bytes",
                         (unsigned long long)done);
    return MOEC_OK;
}

uint64_t moec_crew_bytes_read(const moec_crew *c)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; c->workers != NULL && i < c->n; i++)
        sum += c->workers[i].io.n_bytes_read;
    return sum;
}
