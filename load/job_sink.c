/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Where bytes go: host memory, or by a sink into a device's. The one place that
 * knows the difference; what copies (slow.c, job_follow.c) asks here, and the
 * engine gets the same sink. Its last MiB is slow.c's, whose copies and the
 * engine's take turns.
 */

#include <string.h>

#include "job_parts.h"

moec_status moec_job_take_sink(moec_job *j, moec_error *err)
{
    const moec_load_sink *s = j->o.sink;

    if (s == NULL)
        return MOEC_OK;
    if (s->struct_bytes < offsetof(moec_load_sink, poll) + sizeof(s->poll) ||
        j->o.ring_bytes == 0 || s->ring == NULL || s->copy == NULL ||
        s->poll == NULL)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "a sink has a ring of ring_bytes, copy and poll: use "
                         "MOEC_LOAD_SINK_INIT");
    memcpy(&j->load_sink, s, (size_t)moec_min_u64(s->struct_bytes, sizeof(*s)));
    j->o.sink = &j->load_sink;
    return MOEC_OK;
}

/* The engine's threads and ours take turns. */
/* NOLINTNEXTLINE(readability-function-size): the contract's parameters */
static moec_status sink_copy(void *ctx, void *dst, uint64_t dst_row,
                             const void *src, uint64_t src_row,
                             uint64_t row_bytes, uint64_t rows,
                             uint64_t *ticket_out, moec_error *err)
{
    moec_job *j = ctx;
    moec_status st;

    (void)pthread_mutex_lock(&j->sink_lock);
    st = j->o.sink->copy(j->o.sink->ctx, dst, dst_row, src, src_row, row_bytes,
                         rows, ticket_out, err);
    (void)pthread_mutex_unlock(&j->sink_lock);
    return st;
}

static moec_status sink_poll(void *ctx, uint64_t ticket, int block,
                             int *done_out, moec_error *err)
{
    moec_job *j = ctx;
    moec_status st;

    (void)pthread_mutex_lock(&j->sink_lock);
    st = j->o.sink->poll(j->o.sink->ctx, ticket, block, done_out, err);
    (void)pthread_mutex_unlock(&j->sink_lock);
    return st;
}

/* The sink's reader, where what it brings can be checked as the job wants. */
static const moec_engine_reader *usable_reader(moec_job *j)
{
    const moec_load_reader *r = j->o.sink->reader;

    if (r == NULL || r->struct_bytes < sizeof(*r) || j->o.no_direct ||
        (j->verify != MOEC_ENGINE_NONE && r->digest == NULL))
        return NULL;
    j->reader = (moec_engine_reader){.ctx = r->ctx,
                                     .always = r->always != 0,
                                     .open = r->open,
                                     .close = r->close,
                                     .read = r->read,
                                     .digest = r->digest};
    return &j->reader;
}

static bool tells_regions(const moec_job *j)
{
    const moec_load_reader *r = j->o.sink != NULL ? j->o.sink->reader : NULL;

    return r != NULL && r->struct_bytes >= sizeof(*r) && r->regions != NULL;
}

moec_status moec_job_add_region(moec_job *j, void *base, uint64_t bytes,
                                moec_error *err)
{
    if (!tells_regions(j) || base == NULL || bytes == 0)
        return MOEC_OK;
    if (j->n_regions == j->cap_regions) {
        size_t cap = j->cap_regions == 0 ? 16 : j->cap_regions * 2;
        moec_load_region *v = moec_realloc_array(j->regions, cap, sizeof(*v));
        if (v == NULL)
            return moec_fail_nomem(err, "places of a job");
        j->regions = v;
        j->cap_regions = cap;
    }
    j->regions[j->n_regions++] = (moec_load_region){base, bytes};
    return MOEC_OK;
}

moec_status moec_job_tell_regions(moec_job *j, moec_error *err)
{
    if (!tells_regions(j))
        return MOEC_OK;
    for (size_t i = 0; i < j->n_tensors; i++)
        if (j->tensors[i].placed)
            MOEC_TRY(moec_job_add_region(
                j, j->tensors[i].data,
                j->tensors[i].w.rows * j->tensors[i].w.row_stride, err));
    for (size_t i = 0; i < j->n_layers; i++)
        for (size_t t = 0; t < j->layers[i].n; t++) {
            const moec_job_slots *s = &j->layers[i].slots[t];
            if (s->placed)
                MOEC_TRY(moec_job_add_region(
                    j, s->data, (s->n_slots - 1) * s->slot_stride + s->extent,
                    err));
        }
    j->o.sink->reader->regions(j->o.sink->reader->ctx, j->regions,
                               j->n_regions);
    j->has_regions = true;
    return MOEC_OK;
}

void moec_job_leave_sink(moec_job *j)
{
    if (j->has_regions)
        j->o.sink->reader->regions(j->o.sink->reader->ctx, NULL, 0);
    j->has_regions = false;
}

unsigned char *moec_job_slow_ring(const moec_job *j)
{
    if (j->o.sink == NULL || j->ring_bytes <= 2 * MOEC_LEAF_BYTES)
        return NULL;
    return (unsigned char *)j->o.sink->ring + (j->ring_bytes - MOEC_LEAF_BYTES);
}

moec_engine_opts moec_job_engine_opts(moec_job *j)
{
    moec_engine_opts e = {.n_threads = j->o.n_threads,
                          .ring_bytes = j->ring_bytes,
                          .verify = j->verify,
                          .no_direct = j->o.no_direct != 0,
                          .no_uring = j->o.no_uring != 0,
                          .read_at = moec_job_read_at,
                          .read_ctx = j,
                          .ctx = j};

    if (j->o.sink == NULL)
        return e;
    j->sink = (moec_engine_sink){.ctx = j,
                                 .ring = j->o.sink->ring,
                                 .copy = sink_copy,
                                 .poll = sink_poll,
                                 .copies_within = j->o.sink->copies_within != 0,
                                 .reader = usable_reader(j)};
    e.sink = &j->sink;
    if (moec_job_slow_ring(j) != NULL)
        e.ring_bytes -= MOEC_LEAF_BYTES;
    return e;
}

moec_status moec_job_copy(moec_job *j, void *dst, uint64_t dst_row,
                          const void *src, uint64_t src_row, uint64_t row_bytes,
                          uint64_t rows, moec_error *err)
{
    unsigned char *to = dst;
    const unsigned char *from = src;

    if (j->o.sink != NULL)
        return sink_copy(j, dst, dst_row, src, src_row, row_bytes, rows,
                         &j->last_ticket, err);
    for (uint64_t r = 0; r < rows; r++)
        memcpy(to + r * dst_row, from + r * src_row, (size_t)row_bytes);
    return MOEC_OK;
}

moec_status moec_job_settle(moec_job *j, moec_error *err)
{
    int done = 0;

    if (j->o.sink == NULL || j->last_ticket == 0)
        return MOEC_OK;
    return sink_poll(j, j->last_ticket, 1, &done, err);
}
