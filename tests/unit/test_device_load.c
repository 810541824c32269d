/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loads into device memory: the same bytes as into host memory, layer by layer
 * behind events, over a copy engine that is late on purpose (or a real one).
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <moec/device_load.h>

#include "device_test.h"

#define RING (8u << 20)

typedef struct world {
    moec_device *device;
    moec_device_sink *sink;
    void *arena;
    uint64_t bytes;
    bool on_device;
    uint32_t n_ready;
} world;

static moec_status give(void *ctx, const moec_memory_request *want, void **out,
                        moec_error *err)
{
    world *w = ctx;

    assert_null(w->arena);
    w->bytes = want->bytes;
    if (!w->on_device) {
        *out = w->arena =
            aligned_alloc(4096, (want->bytes + 4095) / 4096 * 4096);
        return *out ? MOEC_OK : MOEC_E_NOMEM;
    }
    assert_int_equal(want->kind, MOEC_MEMORY_DEVICE);
    moec_status st = moec_device_alloc(w->device, out, want->bytes, err);
    w->arena = *out;
    return st;
}

static moec_status ready(void *ctx, uint32_t layer, uint64_t ticket,
                         moec_error *err)
{
    world *w = ctx;

    (void)layer;
    w->n_ready++;
    return w->on_device ? moec_device_sink_wait_on(w->sink, ticket, NULL, err)
                        : MOEC_OK;
}

/* Load all of rank 1 into one arena. */
static void load(world *w, const moec_plan *plan)
{
    moec_job_opts o = MOEC_JOB_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    moec_job *job = NULL;

    o.memory = give;
    o.ready = ready;
    o.ctx = w;
    o.common_arena = 1;
    o.ring_bytes = RING;
    if (w->on_device) {
        moec_device_sink_opts s = MOEC_DEVICE_SINK_OPTS_INIT;
        s.ring_bytes = RING;
        assert_int_equal(moec_device_sink_create(&w->sink, w->device, &s, &err),
                         MOEC_OK);
        o.sink = moec_device_sink_load(w->sink);
        o.ring_bytes = moec_device_sink_ring_bytes(w->sink);
        o.memory_kind = MOEC_MEMORY_DEVICE;
    }
    moec_status st = moec_job_create(&job, plan, NULL, 1, &o, &err);
    if (st == MOEC_OK)
        st = moec_job_start(job, &err);
    if (st == MOEC_OK)
        st = moec_job_wait(job, &err);
    if (st != MOEC_OK)
        fail_msg("%s", err.text);
    moec_job_destroy(job);
    moec_device_sink_destroy(w->sink);
    w->sink = NULL;
}

static void gives_the_device_the_hosts_bytes(void **state)
{
    static const char *const names[] = {"deepseek_v3", "deepseek_v3_fp8",
                                        "gpt_oss", "qwen3_next"};

    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        world host = {0}, dev = {.device = *state, .on_device = true};
        moec_plan_opts o = MOEC_PLAN_OPTS_INIT;
        moec_error err = MOEC_ERROR_INIT;
        moec_families *families = NULL;
        moec_ckpt *ckpt = NULL;
        moec_model *model = NULL;
        moec_plan *plan = NULL;
        char path[512];

        (void)snprintf(path, sizeof(path), "%s/checkpoints/%s",
                       MOEC_TEST_FIXTURES, names[i]);
        o.n_ranks = 2;
        assert_int_equal(moec_families_create(&families, &err), MOEC_OK);
        assert_int_equal(moec_ckpt_open(&ckpt, path, NULL, &err), MOEC_OK);
        assert_int_equal(moec_model_open(&model, ckpt, families, &err),
                         MOEC_OK);
        assert_int_equal(moec_plan_create(&plan, model, &o, &err), MOEC_OK);
        load(&host, plan);
        load(&dev, plan);
        assert_int_equal(host.bytes, dev.bytes);
        assert_int_equal(host.n_ready, dev.n_ready);
        unsigned char *back = malloc(dev.bytes);
        assert_int_equal(moec_device_download(dev.device, back, dev.arena,
                                              dev.bytes, NULL, &err),
                         MOEC_OK);
        size_t bad = 0;
        for (uint64_t b = 0; b < dev.bytes; b++) /* gaps are not written */
            bad +=
                back[b] != ((unsigned char *)host.arena)[b] && back[b] != 0xa5;
        assert_int_equal(bad, 0);
        free(back);
        free(host.arena);
        moec_device_free(dev.device, dev.arena);
        moec_plan_destroy(plan);
        moec_model_destroy(model);
        moec_ckpt_close(ckpt);
        moec_families_destroy(families);
    }
}

/* Many small copies: events are used again. */
static void tickets_end_in_their_order(void **state)
{
    enum { N = 1000, BYTES = 64 };
    moec_device *d = *state;
    moec_device_sink_opts o = MOEC_DEVICE_SINK_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    moec_device_sink *sink = NULL;
    unsigned char *ring, back[N * BYTES];
    uint64_t ticket = 0, last = 0;
    void *to = test_to_device(d, NULL, sizeof(back));
    int done = 1;

    o.ring_bytes = sizeof(back);
    assert_int_equal(moec_device_sink_create(&sink, d, &o, &err), MOEC_OK);
    const moec_load_sink *s = moec_device_sink_load(sink);
    ring = s->ring;
    for (size_t i = 0; i < sizeof(back); i++)
        ring[i] = (unsigned char)(i * 7 + i / 251);
    for (size_t i = 0; i < N; i++) { /* two rows each, the halves swapped */
        assert_int_equal(s->copy(s->ctx, (char *)to + i * BYTES + BYTES / 2,
                                 BYTES, ring + i * BYTES, BYTES / 2, BYTES / 2,
                                 1, &ticket, &err),
                         MOEC_OK);
        assert_true(ticket > last);
        last = ticket;
        assert_int_equal(s->copy(s->ctx, (char *)to + i * BYTES, BYTES,
                                 ring + i * BYTES + BYTES / 2, BYTES, BYTES / 2,
                                 1, &ticket, &err),
                         MOEC_OK);
        last = ticket;
    }
    assert_int_equal(s->poll(s->ctx, 1, 0, &done, &err), MOEC_OK);
    assert_int_equal(done, 1); /* its event was taken long ago */
    assert_int_equal(moec_device_sink_wait_on(sink, last + 1, NULL, &err),
                     MOEC_E_ARG);
    assert_int_equal(moec_device_sink_wait_on(sink, last, NULL, &err), MOEC_OK);
    assert_int_equal(s->poll(s->ctx, last, 1, &done, &err), MOEC_OK);
    assert_int_equal(done, 1);
    test_from_device(d, back, to, sizeof(back));
    for (size_t i = 0; i < N; i++) {
        assert_memory_equal(back + i * BYTES, ring + i * BYTES + BYTES / 2,
                            BYTES / 2);
        assert_memory_equal(back + i * BYTES + BYTES / 2, ring + i * BYTES,
                            BYTES / 2);
    }
    moec_device_sink_destroy(sink);
    moec_device_free(d, to);
}

static void copies_rows_apart(void **state)
{
    enum { ROWS = 5, FROM = 48, TO = 80, N = 32 };
    moec_device *d = *state;
    moec_error err = MOEC_ERROR_INIT;
    unsigned char back[ROWS * TO], *from = NULL;
    void *to = test_to_device(d, NULL, sizeof(back)), *event = NULL;
    int done = 0;

    memset(back, 0xee, sizeof(back));
    assert_int_equal(moec_device_upload(d, to, back, sizeof(back), NULL, &err),
                     MOEC_OK);
    assert_int_equal(
        moec_device_alloc_host(d, (void **)&from, ROWS * FROM, &err), MOEC_OK);
    for (size_t i = 0; i < ROWS * FROM; i++)
        from[i] = (unsigned char)i;
    assert_int_equal(moec_device_event_create(d, &event, &err), MOEC_OK);
    assert_int_equal(
        moec_device_copy_rows(d, to, TO, from, FROM, N, ROWS, NULL, &err),
        MOEC_OK);
    assert_int_equal(moec_device_event_record(d, event, NULL, &err), MOEC_OK);
    while (!done)
        assert_int_equal(moec_device_event_done(d, event, 0, &done, &err),
                         MOEC_OK);
    test_from_device(d, back, to, sizeof(back));
    for (size_t r = 0; r < ROWS; r++)
        for (size_t c = 0; c < TO; c++)
            assert_int_equal(back[r * TO + c],
                             c < N ? (unsigned char)(r * FROM + c) : 0xee);
    moec_device_event_destroy(d, event);
    moec_device_free_host(d, from);
    moec_device_free(d, to);
}

static int open_device(void **state)
{
    moec_error err = MOEC_ERROR_INIT;

    return test_device_open((moec_device **)state, &err) == MOEC_OK ? 0 : -1;
}

static int close_device(void **state)
{
    moec_device_close(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gives_the_device_the_hosts_bytes),
        cmocka_unit_test(tickets_end_in_their_order),
        cmocka_unit_test(copies_rows_apart),
    };

    return cmocka_run_group_tests(tests, open_device, close_device);
}
