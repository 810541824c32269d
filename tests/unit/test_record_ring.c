/* SPDX-License-Identifier: Apache-2.0
 *
 * The device ring's host side. A thread stands in for the captured graph: it
 * counts passes itself and asks nobody. Run under the thread sanitizer too. */

#include "route_recording.h"

#include <pthread.h>

#include "base/base.h"

#define E 16u
#define K 3u

typedef struct ring_case {
    moec_recorder *r;
    moec_record_ring *ring;
    moec_record_ring_opts opts;
    void *memory;
    uint64_t handle;
} ring_case;

static ring_case start(uint32_t n_slots, uint32_t max_rows)
{
    ring_case c = {.opts = MOEC_RECORD_RING_OPTS_INIT};

    c.r = rr_start(E, K, 3);
    c.handle = rr_request(c.r, "a", 0);
    c.opts.n_slots = n_slots;
    c.opts.max_rows = max_rows;
    c.memory =
        moec_alloc_aligned((size_t)moec_record_ring_bytes(c.r, &c.opts), 64);
    assert_non_null(c.memory);
    assert_int_equal(
        moec_record_ring_create(&c.ring, c.r, &c.opts, c.memory, NULL),
        MOEC_OK);
    return c;
}

static void end(ring_case *c)
{
    moec_record_ring_destroy(c->ring);
    moec_recorder_destroy(c->r);
    moec_free_aligned(c->memory);
}

/* What the graph does in pass n, whose rows are positions from n * rows on. */
static void device_pass(const ring_case *c, uint64_t n, uint32_t rows)
{
    unsigned char *slot =
        (unsigned char *)c->memory +
        n % c->opts.n_slots * moec_record_ring_slot_bytes(c->r, &c->opts);
    int32_t *ids = (int32_t *)(void *)(slot + 64);

    for (uint32_t l = 0; l < 3; l++)
        for (uint32_t t = 0; t < c->opts.max_rows; t++)
            for (uint32_t k = 0; k < K; k++)
                ids[(l * c->opts.max_rows + t) * K + k] =
                    t < rows ? rr_id(1, (uint32_t)n * rows + t, l, k, E, K)
                             : 1 << 20;
    __atomic_store_n((uint64_t *)(void *)slot, n + 1, __ATOMIC_RELEASE);
}

static moec_status begin(ring_case *c, uint64_t n, uint32_t rows)
{
    moec_route_key keys[64];

    for (uint32_t t = 0; t < rows; t++)
        keys[t] = (moec_route_key){c->handle, (uint32_t)n * rows + t, 0};
    return moec_record_ring_begin(c->ring, keys, rows, NULL);
}

typedef struct graph {
    ring_case *c;
    uint64_t n_passes;
    uint64_t launched; /* by the host, as a stream knows it */
} graph;

static void *run_graph(void *arg)
{
    graph *g = arg;

    for (uint64_t n = 0; n < g->n_passes; n++) {
        while (__atomic_load_n(&g->launched, __ATOMIC_ACQUIRE) <= n)
            ;
        device_pass(g->c, n, 5);
    }
    return NULL;
}

static void every_pass_arrives_in_order(void **state)
{
    ring_case c = start(3, 8);
    graph g = {&c, 300, 0};
    moec_routes *out = NULL;
    pthread_t thread;
    uint64_t n = 0;

    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, run_graph, &g), 0);
    while (n < g.n_passes) {
        moec_status st = begin(&c, n, 5);

        if (st == MOEC_OK)
            __atomic_store_n(&g.launched, ++n, __ATOMIC_RELEASE);
        else
            assert_int_equal(st, MOEC_E_LOCKED);
        if (st != MOEC_OK || n % 2 == 0)
            assert_int_equal(moec_record_ring_drain(c.ring, NULL, NULL),
                             MOEC_OK);
    }
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(moec_record_ring_drain(c.ring, NULL, NULL), MOEC_OK);
    assert_int_equal(moec_record_ring_pending(c.ring), 0);
    assert_int_equal(moec_recorder_stop(c.r, &out, NULL), MOEC_OK);
    assert_int_equal(moec_routes_n_tokens(out), 1500);
    for (uint32_t p = 0; p < 1500; p++)
        rr_expect(out, 0, p, 1, p);
    moec_routes_destroy(out);
    end(&c);
}

static void a_full_ring_refuses_a_launch(void **state)
{
    ring_case c = start(2, 8);
    uint64_t n = 9;

    (void)state;
    assert_int_equal(begin(&c, 0, 5), MOEC_OK);
    assert_int_equal(begin(&c, 1, 5), MOEC_OK);
    assert_int_equal(begin(&c, 2, 5), MOEC_E_LOCKED);
    assert_int_equal(moec_record_ring_drain(c.ring, &n, NULL), MOEC_OK);
    assert_int_equal(n, 0); /* nothing is there yet */
    device_pass(&c, 0, 5);
    assert_int_equal(moec_record_ring_drain(c.ring, &n, NULL), MOEC_OK);
    assert_int_equal(n, 1);
    assert_int_equal(moec_record_ring_pending(c.ring), 1);
    assert_int_equal(begin(&c, 2, 5), MOEC_OK);
    assert_int_equal(begin(&c, 3, 9), MOEC_E_ARG); /* more than max_rows */
    end(&c);
}

static void an_overrun_is_named(void **state)
{
    ring_case c = start(2, 8);
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    assert_int_equal(begin(&c, 0, 5), MOEC_OK);
    device_pass(&c, 0, 5);
    device_pass(&c, 2, 5); /* launched without asking */
    assert_int_equal(moec_record_ring_drain(c.ring, NULL, &err),
                     MOEC_E_INTEGRITY);
    assert_non_null(strstr(err.text, "holds pass 2, must hold pass 0"));
    end(&c);
}

static void a_pass_that_was_refused_stays(void **state)
{
    ring_case c = start(2, 8);
    moec_routes *out = NULL;
    uint64_t n = 9;

    (void)state;
    assert_int_equal(begin(&c, 0, 5), MOEC_OK);
    device_pass(&c, 0, 5);
    (void)moec_alloc_fail_at(1);
    assert_int_equal(moec_record_ring_drain(c.ring, &n, NULL), MOEC_E_NOMEM);
    (void)moec_alloc_fail_at(0);
    assert_int_equal(n, 0);
    assert_int_equal(moec_record_ring_drain(c.ring, &n, NULL), MOEC_OK);
    assert_int_equal(n, 1);
    assert_int_equal(moec_recorder_stop(c.r, &out, NULL), MOEC_OK);
    assert_int_equal(moec_routes_n_tokens(out), 5);
    moec_routes_destroy(out);
    end(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_pass_arrives_in_order),
        cmocka_unit_test(a_full_ring_refuses_a_launch),
        cmocka_unit_test(an_overrun_is_named),
        cmocka_unit_test(a_pass_that_was_refused_stays),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
