/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TESTS_LATE_SINK_H
#define MOEC_TESTS_LATE_SINK_H

/*
 * A sink of host memory whose copies happen only when somebody asks whether
 * they have: what is read or used again too early shows. Calls must come one
 * at a time. Include after cmocka.h.
 */

#include <string.h>

#include "base/base.h"

#define LATE_COPIES 4096u

typedef struct late_copy {
    unsigned char *dst;
    const unsigned char *src;
    uint64_t dst_row, src_row, row_bytes, rows;
} late_copy;

/* Ticket t is the t-th copy. Zero-initialise. */
typedef struct late_sink {
    late_copy queue[LATE_COPIES];
    uint64_t n, done;
    int busy; /* in a call */
    uint64_t fail_at;
} late_sink;

static inline void late_sink_catch_up(late_sink *d, uint64_t ticket)
{
    while (d->done < ticket) {
        const late_copy *c = &d->queue[d->done++ % LATE_COPIES];
        for (uint64_t r = 0; r < c->rows; r++)
            memcpy(c->dst + r * c->dst_row, c->src + r * c->src_row,
                   (size_t)c->row_bytes);
    }
}

static inline moec_status late_sink_copy(void *ctx, void *dst, uint64_t dst_row,
                                         const void *src, uint64_t src_row,
                                         uint64_t row_bytes, uint64_t rows,
                                         uint64_t *ticket_out, moec_error *err)
{
    late_sink *d = ctx;

    assert_int_equal(__atomic_add_fetch(&d->busy, 1, __ATOMIC_SEQ_CST), 1);
    if (d->n >= LATE_COPIES)
        late_sink_catch_up(d, d->n - LATE_COPIES + 1);
    d->queue[d->n++ % LATE_COPIES] =
        (late_copy){dst, src, dst_row, src_row, row_bytes, rows};
    *ticket_out = d->n;
    __atomic_sub_fetch(&d->busy, 1, __ATOMIC_SEQ_CST);
    if (d->n == d->fail_at)
        return moec_fail(err, MOEC_E_NO_DEVICE, MOEC_RULE_NONE, "it fell off");
    return MOEC_OK;
}

static inline moec_status late_sink_poll(void *ctx, uint64_t ticket, int block,
                                         int *done_out, moec_error *err)
{
    late_sink *d = ctx;

    (void)err;
    assert_int_equal(__atomic_add_fetch(&d->busy, 1, __ATOMIC_SEQ_CST), 1);
    if (block || d->n - d->done > 3)
        late_sink_catch_up(d, ticket);
    *done_out = d->done >= ticket;
    __atomic_sub_fetch(&d->busy, 1, __ATOMIC_SEQ_CST);
    return MOEC_OK;
}

#endif
