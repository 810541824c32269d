/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GPUDirect Storage: the device's digests against the host's; loads whose bytes
 * cuFile brings, and what becomes of them where it does not. Over a stand-in
 * for libcufile, or on a real device over the real one, where it is there.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include <moec/device_load.h>

#include "cufile_standin.h"
#include "device_gds.h"
#include "device_test.h"
#include "load_case.h"
#include "plugin.h"

#ifndef MOEC_CUFILE_STANDIN
#  define MOEC_CUFILE_STANDIN ""
#endif
#define RING (16u << 20)

static struct {
    moec_device *device;
    cufile_standin_t *standin; /* NULL: the real one */
    const char *library;
    tmpdir dir;
    plan_fixture x;
    load_case conv;
    bool direct; /* the directory has direct reads */
} t;

static int set_up(void **state)
{
    moec_error err = MOEC_ERROR_INIT;
    const char *real = getenv("MOEC_TEST_PLUGIN");

    (void)state;
    if (test_device_open(&t.device, &err) != MOEC_OK)
        return -1;
    if ((real == NULL || strstr(real, "emulated") != NULL) &&
        MOEC_CUFILE_STANDIN[0] != '\0') {
        void *h = dlopen(MOEC_CUFILE_STANDIN, RTLD_NOW | RTLD_LOCAL);
        assert_non_null(h);
        t.library = MOEC_CUFILE_STANDIN;
        t.standin = dlsym(h, "cufile_standin");
        assert_non_null(t.standin);
    } else if (real == NULL || strstr(real, "emulated") != NULL) {
        t.library = "/nonexistent/libcufile.so.0"; /* none was built */
    }
    t.dir = tmpdir_make();
    load_long_tree(&t.dir);
    t.x = load_long_open(&t.dir);
    t.conv.plan = t.x.plan;
    load_convert(&t.conv, t.x.layout, &t.dir);
    int fd = open(tmpdir_path(&t.dir, "src/model.safetensors"),
                  O_RDONLY | O_DIRECT | O_CLOEXEC);
    t.direct = fd >= 0;
    if (fd >= 0)
        close(fd);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    moec_conversion_close(t.conv.conversion);
    plan_fixture_close(&t.x);
    tmpdir_remove(&t.dir);
    moec_device_close(t.device);
    return 0;
}

static int forget(void **state)
{
    (void)state;
    if (t.standin != NULL)
        *t.standin = (cufile_standin_t){0};
    return 0;
}

/* ------------------------------------------------------------- digests */

/* By the reader, or where there is no cuFile by the device's table. */
static moec_status digest(moec_device_gds *g, int sha256,
                          const void *const *data, const uint64_t *bytes,
                          size_t n, uint8_t *out, moec_error *err)
{
    size_t each = sha256 ? 32 : 16;
    uint32_t ordinal;
    const moec_backend *b = moec_device_backend(t.device, &ordinal);
    uint64_t at_least[64];
    void *d, *l, *o;
    moec_status st;

    if (g != NULL)
        return moec_device_gds_reader(g)->digest(g, sha256, data, bytes, n, out,
                                                 err);
    assert_true(n <= 64);
    for (size_t i = 0; i < n; i++) /* there is no shorter XXH3 */
        at_least[i] = sha256 ? bytes[i] : moec_max_u64(bytes[i], 241);
    d = test_to_device(t.device, data, n * sizeof(*data));
    l = test_to_device(t.device, at_least, n * sizeof(*at_least));
    o = test_to_device(t.device, NULL, n * each);
    st = b->digests(ordinal, sha256, d, l, (uint32_t)n, o, NULL, err);
    test_from_device(t.device, out, o, n * each);
    moec_device_free(t.device, d);
    moec_device_free(t.device, l);
    moec_device_free(t.device, o);
    return st;
}

static void digests_are_the_hosts(void **state)
{
    static const size_t sizes[] = {1,    16,   17,   128,  240,  241,  255,
                                   256,  257,  1023, 1024, 1025, 1087, 1088,
                                   1089, 2048, 2049, 4095, 70001};
    enum { N = sizeof(sizes) / sizeof(sizes[0]), BYTES = 300000 };
    unsigned char *from = malloc(BYTES), found[2 * N * 32];
    moec_error err = MOEC_ERROR_INIT;
    moec_device_gds *g = NULL;
    const void *data[2 * N];
    uint64_t bytes[2 * N];
    size_t at = 0;

    (void)state;
    (void)moec_device_gds_open(&g, t.device, NULL, t.library, true, &err);
    err = (moec_error)MOEC_ERROR_INIT;
    assert_non_null(from);
    for (size_t i = 0; i < BYTES; i++)
        from[i] = (unsigned char)(i * 2654435761u >> 13);
    unsigned char *there = test_to_device(t.device, from, BYTES);
    for (size_t i = 0; i < 2 * N; i++) { /* aligned, and not */
        data[i] = there + at;
        bytes[i] = sizes[i % N];
        at += (size_t)bytes[i] + (i < N ? (8 - bytes[i] % 8) % 8 : i % 8);
    }
    assert_true(at <= BYTES);
    for (int sha256 = 0; sha256 < 2; sha256++) {
        size_t each = sha256 ? 32 : 16;

        load_ok(digest(g, sha256, data, bytes, 2 * N, found, &err), &err);
        for (size_t i = 0; i < 2 * N; i++) {
            const unsigned char *p =
                from + ((const unsigned char *)data[i] - there);
            moec_xxh128 x = moec_xxh128_of(p, (size_t)bytes[i]);
            moec_sha256 s;

            load_ok(moec_sha256_of(p, (size_t)bytes[i], &s, &err), &err);
            if (g == NULL && !sha256 && bytes[i] < 241)
                continue; /* have formulas of their own */
            if (memcmp(found + i * each, sha256 ? s.b : x.b, each) != 0)
                fail_msg("%zu bytes, sha256 %d", (size_t)bytes[i], sha256);
        }
    }
    moec_device_free(t.device, there);
    moec_device_gds_close(g);
    free(from);
}

/* --------------------------------------------------------------- loads */

typedef struct loaded {
    moec_device_sink *sink;
    unsigned char *there;
    uint64_t bytes;
    moec_job_stats stats;
    moec_error err;
    uint32_t n_ready;
} loaded;

static moec_status give(void *ctx, const moec_memory_request *want, void **out,
                        moec_error *err)
{
    loaded *l = ctx;
    moec_status st = moec_device_alloc(t.device, out, want->bytes, err);

    assert_null(l->there);
    l->there = *out;
    l->bytes = want->bytes;
    return st;
}

static moec_status ready(void *ctx, uint32_t layer, uint64_t ticket,
                         moec_error *err)
{
    loaded *l = ctx;

    (void)layer;
    l->n_ready++;
    return moec_device_sink_wait_on(l->sink, ticket, NULL, err);
}

/* Slots of rank 1 on the device are what they must be. */
static void compare(const loaded *l, const load_case *c, const moec_job *job)
{
    unsigned char *back = malloc((size_t)l->bytes);

    assert_non_null(back);
    test_from_device(t.device, back, l->there, (size_t)l->bytes);
    for (size_t i = 0; i < moec_plan_n_layers(c->plan); i++)
        for (size_t k = 0; k < moec_plan_n_slot_tensors(c->plan, i); k++) {
            const unsigned char *p = moec_job_slots_data(job, i, k);
            load_compare_slots(c, 1, i, k, back + (p - l->there));
        }
    free(back);
}

static moec_status load(loaded *l, const load_case *c, moec_gds gds,
                        moec_load_verify verify)
{
    moec_device_sink_opts so = MOEC_DEVICE_SINK_OPTS_INIT;
    moec_job_opts o = MOEC_JOB_OPTS_INIT;
    moec_job *job = NULL;
    moec_status st;

    *l = (loaded){.err = MOEC_ERROR_INIT};
    so.ring_bytes = RING;
    so.gds = gds;
    so.cufile = t.library;
    MOEC_TRY(moec_device_sink_create(&l->sink, t.device, &so, &l->err));
    o.sink = moec_device_sink_load(l->sink);
    o.ring_bytes = moec_device_sink_ring_bytes(l->sink);
    o.memory = give;
    o.memory_kind = MOEC_MEMORY_DEVICE;
    o.ready = ready;
    o.ctx = l;
    o.verify = verify;
    o.n_threads = 3;
    st = moec_job_create(&job, c->plan, c->conversion, 1, &o, &l->err);
    if (st == MOEC_OK)
        st = moec_job_start(job, &l->err);
    if (st == MOEC_OK)
        st = moec_job_wait(job, &l->err);
    if (st == MOEC_OK) {
        compare(l, c, job);
        assert_int_equal(l->n_ready, moec_plan_n_layers(c->plan));
    }
    if (job != NULL)
        moec_job_poll(job, &l->stats);
    moec_job_destroy(job);
    if (t.standin != NULL) { /* nothing stays registered */
        assert_int_equal(t.standin->n_files_now, 0);
        assert_int_equal(t.standin->n_regions_now, 0);
    }
    moec_device_free(t.device, l->there);
    moec_device_sink_destroy(l->sink);
    l->sink = NULL;
    return st;
}

static void need_standin(void)
{
    if (t.standin == NULL || !t.direct) {
        print_message("%s\n", t.direct ? "no stand-in for cuFile here"
                                       : "no direct reads in this directory");
        skip();
    }
}

static void brings_a_rank_and_digests_it_there(void **state)
{
    static const moec_load_verify how[] = {
        MOEC_LOAD_VERIFY_NONE, MOEC_LOAD_VERIFY_XXH3, MOEC_LOAD_VERIFY_SHA256};
    loaded l;

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        moec_status st = load(&l, &t.conv, MOEC_GDS_ON, how[i]);
        if (st == MOEC_E_NO_DEVICE || !t.direct) {
            print_message("%s\n", l.err.text);
            skip();
        }
        load_ok(st, &l.err);
        assert_true(l.stats.bytes_by_reader * 10 > l.stats.bytes_needed * 9 ||
                    t.standin == NULL);
        if (how[i] != MOEC_LOAD_VERIFY_NONE)
            assert_int_equal(l.stats.bytes_verified, l.stats.bytes_needed);
        if (t.standin == NULL)
            continue;
        assert_int_equal(l.stats.n_reader_failed, 0);
        assert_true(t.standin->n_reads > 0);
        assert_int_equal(t.standin->n_unaligned, 0);
        assert_int_equal(t.standin->n_unregistered, 0);
        assert_int_equal(t.standin->n_regions, i + 1); /* one arena, once */
    }
}

/* Auto leaves what the page cache has to the ring; no cuFile, no driver, no
 * nvidia-fs, no such file system: the ring has it all. */
static void goes_by_the_ring_where_there_is_none(void **state)
{
    cufile_standin_t *s = t.standin;
    loaded l;

    (void)state;
    need_standin();
    load_ok(load(&l, &t.conv, MOEC_GDS_OFF, MOEC_LOAD_VERIFY_XXH3), &l.err);
    assert_int_equal(s->n_opened, 0);
    assert_int_equal(l.stats.bytes_by_reader, 0);
    s->open_error = 5001;
    load_ok(load(&l, &t.conv, MOEC_GDS_AUTO, MOEC_LOAD_VERIFY_XXH3), &l.err);
    assert_int_equal(l.stats.bytes_by_reader, 0);
    assert_int_equal(load(&l, &t.conv, MOEC_GDS_ON, MOEC_LOAD_VERIFY_XXH3),
                     MOEC_E_NO_DEVICE);
    assert_non_null(strstr(l.err.text, "nvidia-fs is not loaded"));
    s->open_error = 0;
    s->no_nvidia_fs = 1;
    load_ok(load(&l, &t.conv, MOEC_GDS_AUTO, MOEC_LOAD_VERIFY_XXH3), &l.err);
    assert_int_equal(s->n_files, 0);
    load_ok(load(&l, &t.conv, MOEC_GDS_ON, MOEC_LOAD_VERIFY_XXH3), &l.err);
    assert_true(l.stats.bytes_by_reader > 0);
    s->file_error = 1;
    load_ok(load(&l, &t.conv, MOEC_GDS_ON, MOEC_LOAD_VERIFY_XXH3), &l.err);
    assert_int_equal(l.stats.bytes_by_reader, 0);
    t.library = "/nonexistent/libcufile.so.0";
    load_ok(load(&l, &t.conv, MOEC_GDS_AUTO, MOEC_LOAD_VERIFY_XXH3), &l.err);
    assert_int_equal(load(&l, &t.conv, MOEC_GDS_ON, MOEC_LOAD_VERIFY_XXH3),
                     MOEC_E_NO_DEVICE);
    assert_non_null(strstr(l.err.text, "/nonexistent/libcufile.so.0"));
    t.library = MOEC_CUFILE_STANDIN;
}

static void the_ring_brings_what_fails(void **state)
{
    loaded l;

    (void)state;
    need_standin();
    for (int how = 0; how < 3; how++) {
        *t.standin = (cufile_standin_t){.fail_from = how == 0 ? 3 : 0,
                                        .refuse_from = how == 1 ? 3 : 0,
                                        .short_from = how == 2 ? 3 : 0};
        load_ok(load(&l, &t.conv, MOEC_GDS_ON, MOEC_LOAD_VERIFY_XXH3), &l.err);
        assert_true(l.stats.n_reader_failed > 0);
        assert_true(l.stats.bytes_by_reader > 0);
        assert_int_equal(l.stats.bytes_verified, l.stats.bytes_needed);
    }
}

static void finds_what_arrived_wrong(void **state)
{
    loaded l;

    (void)state;
    need_standin();
    for (int sha256 = 0; sha256 < 2; sha256++) {
        *t.standin = (cufile_standin_t){.corrupt = 1};
        assert_int_equal(
            load(&l, &t.conv, MOEC_GDS_ON,
                 sha256 ? MOEC_LOAD_VERIFY_SHA256 : MOEC_LOAD_VERIFY_XXH3),
            MOEC_E_INTEGRITY);
        assert_non_null(strstr(l.err.text, sha256 ? "SHA-256" : "XXH3-128"));
        assert_non_null(strstr(l.err.text, "slot "));
    }
}

/* A published checkpoint's tensors stand anywhere: nothing is aligned. */
static void leaves_unaligned_sources_to_the_ring(void **state)
{
    load_case hf = {.plan = t.x.plan};
    loaded l;

    (void)state;
    need_standin();
    load_ok(load(&l, &hf, MOEC_GDS_ON, MOEC_LOAD_VERIFY_NONE), &l.err);
    assert_int_equal(t.standin->n_unaligned, 0);
}

/* ---------------------------------------------------------- re-placement */

/* Another bounce row than the arena. */
static moec_status give_row(void *ctx, const moec_memory_request *want,
                            void **out, moec_error *err)
{
    moec_status st = moec_device_alloc(t.device, out, want->bytes, err);

    *(void **)ctx = *out;
    return st;
}

/* A load, or with `diff` a re-placement, of rank 0 into rows that are there. */
static void into_rows(const moec_plan *plan, const moec_diff *diff,
                      void *rows[][8])
{
    moec_device_sink_opts so = MOEC_DEVICE_SINK_OPTS_INIT;
    moec_job_opts o = MOEC_JOB_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    moec_device_sink *sink = NULL;
    moec_job *job = NULL;
    void *bounce = NULL;

    so.ring_bytes = RING;
    so.cufile = t.library;
    load_ok(moec_device_sink_create(&sink, t.device, &so, &err), &err);
    o.sink = moec_device_sink_load(sink);
    o.ring_bytes = moec_device_sink_ring_bytes(sink);
    o.memory = give_row;
    o.memory_kind = MOEC_MEMORY_DEVICE;
    o.ctx = &bounce;
    load_ok(moec_job_create(&job, plan, t.conv.conversion, 0, &o, &err), &err);
    for (size_t i = 0; i < moec_plan_n_layers(plan); i++)
        for (size_t k = 0; k < moec_plan_n_slot_tensors(plan, i); k++) {
            moec_slot_dst d = {.data = rows[i][k]};
            load_ok(moec_job_place_slots(job, i, k, &d, &err), &err);
        }
    if (diff != NULL)
        load_ok(moec_job_follow(job, diff, NULL, &err), &err);
    load_ok(moec_job_start(job, &err), &err);
    load_ok(moec_job_wait(job, &err), &err);
    moec_job_destroy(job);
    moec_device_free(t.device, bounce);
    moec_device_sink_destroy(sink);
}

/* Rows of the first rank change places, a cycle; then some come from files. */
static void follows_in_the_devices_memory(void **state)
{
    static const int32_t after[2][6] = {{1, 0, 2, 3, 0, 1}, {2, 3, 0, 1, 3, 2}};
    moec_diff_opts o = MOEC_DIFF_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    const moec_plan *plan = t.conv.plan;
    void *rows[2][8] = {{NULL}};

    (void)state;
    o.no_peers = 1;
    assert_true(moec_plan_n_layers(plan) <= 2);
    assert_int_equal(moec_plan_topology(plan).n_ranks, 2);
    for (size_t i = 0; i < moec_plan_n_layers(plan); i++)
        for (size_t k = 0; k < moec_plan_n_slot_tensors(plan, i); k++) {
            const moec_slot_tensor *s = moec_plan_slot_tensor(plan, i, k);
            rows[i][k] = test_to_device(t.device, NULL,
                                        (size_t)(s->shape[0] * s->slot_bytes));
        }
    for (size_t n = 0; n < 2; n++) {
        moec_plan_opts po = plan_fixture_opts();
        moec_placement *p = NULL;
        moec_plan *now = NULL;
        moec_diff *diff = NULL;
        int32_t p2l[12];

        for (size_t i = 0; i < 12; i++)
            p2l[i] = after[n][i % 6];
        load_ok(moec_placement_from_rows(&p, (uint32_t)moec_plan_n_layers(plan),
                                         4, 6, p2l, &err),
                &err);
        po.placement = p;
        load_ok(moec_plan_create(&now, moec_plan_model(plan), &po, &err), &err);
        load_ok(moec_plan_diff(&diff, plan, now, 0, &o, &err), &err);
        into_rows(plan, NULL, rows);
        into_rows(now, diff, rows);
        load_case c = {now, t.conv.conversion, t.x.ckpt};
        for (size_t i = 0; i < moec_plan_n_layers(now); i++)
            for (size_t k = 0; k < moec_plan_n_slot_tensors(now, i); k++) {
                const moec_slot_tensor *s = moec_plan_slot_tensor(now, i, k);
                size_t bytes = (size_t)(s->shape[0] * s->slot_bytes);
                unsigned char *back = malloc(bytes);

                assert_non_null(back);
                test_from_device(t.device, back, rows[i][k], bytes);
                load_compare_slots(&c, 0, i, k, back);
                free(back);
            }
        moec_diff_destroy(diff);
        moec_plan_destroy(now);
        moec_placement_destroy(p);
    }
    for (size_t i = 0; i < 16; i++)
        moec_device_free(t.device, rows[i / 8][i % 8]);
}

#define CASE(f) cmocka_unit_test_setup(f, forget)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(digests_are_the_hosts),
        CASE(brings_a_rank_and_digests_it_there),
        CASE(goes_by_the_ring_where_there_is_none),
        CASE(the_ring_brings_what_fails),
        CASE(finds_what_arrived_wrong),
        CASE(leaves_unaligned_sources_to_the_ring),
        CASE(follows_in_the_devices_memory),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
