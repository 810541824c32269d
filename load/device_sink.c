/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Copies of a load to a device. See device_load.h.
 *
 * Ticket t is the t-th copy, and an event behind it; events are a ring. Before
 * one is recorded again its copy is waited for, so a ticket whose event has
 * been taken by a later one is done. Copies are on one stream and end in their
 * order.
 */

#include <moec/device_load.h>
#include <pthread.h>
#include <string.h>

#include "base/base.h"
#include "device_gds.h"

#define EVENTS     256u
#define RING_BYTES (UINT64_C(512) << 20)

struct moec_device_sink {
    moec_device *device;
    moec_device_sink_opts o;
    moec_load_sink load;
    moec_device_gds *gds;
    char no_gds[sizeof(((moec_error *)0)->text)];
    pthread_mutex_t lock; /* of what follows: copy, poll and wait_on */
    void *events[EVENTS];
    uint64_t n_copies; /* tickets 1 .. n_copies were given */
    uint64_t n_done;   /* known to be done: 1 .. n_done */
};

/* Wait for, or look at, one ticket that was given. */
static moec_status look(moec_device_sink *s, uint64_t ticket, int block,
                        moec_error *err)
{
    int done = 0;

    if (ticket <= s->n_done)
        return MOEC_OK;
    MOEC_TRY(moec_device_event_done(s->device, s->events[ticket % EVENTS],
                                    block, &done, err));
    if (done)
        s->n_done = ticket;
    return MOEC_OK;
}

static moec_status copy_locked(moec_device_sink *s, void *dst, uint64_t dst_row,
                               const void *src, uint64_t src_row,
                               uint64_t row_bytes, uint64_t rows,
                               moec_error *err)
{
    uint64_t ticket = s->n_copies + 1;

    if (ticket > EVENTS)
        MOEC_TRY(look(s, ticket - EVENTS, 1, err));
    MOEC_TRY(moec_device_copy_rows(s->device, dst, dst_row, src, src_row,
                                   row_bytes, rows, s->o.stream, err));
    MOEC_TRY(moec_device_event_record(s->device, s->events[ticket % EVENTS],
                                      s->o.stream, err));
    s->n_copies = ticket;
    return MOEC_OK;
}

/* NOLINTNEXTLINE(readability-function-size): the contract's parameters */
static moec_status copy(void *ctx, void *dst, uint64_t dst_row, const void *src,
                        uint64_t src_row, uint64_t row_bytes, uint64_t rows,
                        uint64_t *ticket_out, moec_error *err)
{
    moec_device_sink *s = ctx;
    moec_status st;

    pthread_mutex_lock(&s->lock);
    st = copy_locked(s, dst, dst_row, src, src_row, row_bytes, rows, err);
    if (st == MOEC_OK)
        *ticket_out = s->n_copies;
    pthread_mutex_unlock(&s->lock);
    return st;
}

static moec_status poll(void *ctx, uint64_t ticket, int block, int *done_out,
                        moec_error *err)
{
    moec_device_sink *s = ctx;
    moec_status st;

    pthread_mutex_lock(&s->lock);
    st = look(s, ticket, block, err);
    *done_out = ticket <= s->n_done;
    pthread_mutex_unlock(&s->lock);
    return st;
}

moec_status moec_device_sink_wait_on(moec_device_sink *s, uint64_t ticket,
                                     void *stream, moec_error *err)
{
    moec_status st = MOEC_OK;

    pthread_mutex_lock(&s->lock);
    if (ticket > s->n_copies)
        st = moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                       "ticket %llu of %llu was not given",
                       (unsigned long long)ticket,
                       (unsigned long long)s->n_copies);
    else if (ticket > s->n_done)
        st = moec_device_stream_wait(s->device, stream,
                                     s->events[ticket % EVENTS], err);
    pthread_mutex_unlock(&s->lock);
    return st;
}

/* Without it everything goes by the ring; only ON fails. */
static moec_status open_gds(moec_device_sink *s, moec_error *err)
{
    moec_error why = MOEC_ERROR_INIT;
    bool on = s->o.gds == MOEC_GDS_ON;
    moec_status st;

    if (s->o.gds == MOEC_GDS_OFF) {
        (void)snprintf(s->no_gds, sizeof(s->no_gds), "it is off");
        return MOEC_OK;
    }
    st = moec_device_gds_open(&s->gds, s->device, s->o.stream, s->o.cufile, on,
                              on ? err : &why);
    if (st == MOEC_OK)
        s->load.reader = moec_device_gds_reader(s->gds);
    else
        (void)snprintf(s->no_gds, sizeof(s->no_gds), "%s", why.text);
    return on ? st : MOEC_OK;
}

moec_status moec_device_sink_create(moec_device_sink **out, moec_device *device,
                                    const moec_device_sink_opts *opts,
                                    moec_error *err)
{
    moec_device_sink *s = moec_calloc(1, sizeof(*s));
    moec_status st;

    if (!s)
        return moec_fail_nomem(err, "a sink");
    pthread_mutex_init(&s->lock, NULL);
    s->device = device;
    if (opts) /* callers of an older library have a shorter struct */
        memcpy(&s->o, opts,
               opts->struct_bytes < sizeof(s->o) ? opts->struct_bytes
                                                 : sizeof(s->o));
    if (s->o.ring_bytes == 0)
        s->o.ring_bytes = RING_BYTES;
    s->load = (moec_load_sink){.struct_bytes = sizeof(s->load),
                               .copies_within = 1,
                               .ctx = s,
                               .copy = copy,
                               .poll = poll};
    st = moec_device_alloc_host(device, &s->load.ring, s->o.ring_bytes, err);
    for (uint32_t i = 0; st == MOEC_OK && i < EVENTS; i++)
        st = moec_device_event_create(device, &s->events[i], err);
    if (st == MOEC_OK)
        st = open_gds(s, err);
    if (st != MOEC_OK) {
        moec_device_sink_destroy(s);
        return st;
    }
    *out = s;
    return MOEC_OK;
}

void moec_device_sink_destroy(moec_device_sink *s)
{
    if (!s)
        return;
    if (s->n_copies > s->n_done)
        (void)look(s, s->n_copies, 1, NULL);
    moec_device_gds_close(s->gds);
    for (uint32_t i = 0; i < EVENTS; i++)
        moec_device_event_destroy(s->device, s->events[i]);
    moec_device_free_host(s->device, s->load.ring);
    pthread_mutex_destroy(&s->lock);
    moec_free(s);
}

const moec_load_sink *moec_device_sink_load(const moec_device_sink *s)
{
    return &s->load;
}

const char *moec_device_sink_no_gds(const moec_device_sink *s)
{
    return s->gds != NULL ? NULL : s->no_gds;
}

uint64_t moec_device_sink_ring_bytes(const moec_device_sink *s)
{
    return s->o.ring_bytes;
}
