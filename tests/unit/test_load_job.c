/* SPDX-License-Identifier: Apache-2.0
 *
 * What a job promises beside the bytes: order, readiness, caps, cancel, what
 * it says of damage, sources by callback, one expert, a re-placement, several
 * processes, forks, and memory that is refused at every allocation. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <jansson.h>

#include "base/base.h"
#include "file_store.h"
#include "load_case.h"
#include "plan_fixture.h"
#include "threads_left.h"

/* -------------------------------------------------------------- watching */

typedef struct watch {
    load_arena arena;
    const load_case *c;
    moec_job *job;
    uint32_t rank;
    uint32_t seen[32];
    size_t n;
    uint32_t fail_at; /* 1: the first ready */
    uint64_t last_done;
    int stop, n_told;
    atomic_bool *held; /* let go when progress is told again */
} watch;

static moec_status watch_memory(void *ctx, const moec_memory_request *want,
                                void **out, moec_error *err)
{
    return load_memory(&((watch *)ctx)->arena, want, out, err);
}

/* The layer must be complete when it is said to be. */
static moec_status watch_ready(void *ctx, uint32_t layer, uint64_t ticket,
                               moec_error *err)
{
    watch *w = ctx;

    (void)ticket;
    assert_true(w->n < 32);
    w->seen[w->n++] = layer;
    if (w->n == w->fail_at)
        return moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE, "the caller fails");
    if (layer != MOEC_NO_LAYER)
        load_compare_layer(w->c, w->job, w->rank, layer);
    else
        load_compare_common(w->c, w->job);
    return MOEC_OK;
}

static int watch_progress(void *ctx, uint64_t done, uint64_t total)
{
    watch *w = ctx;

    assert_true(done >= w->last_done && done <= total);
    w->last_done = done;
    if (w->held != NULL && w->n_told++ > 0)
        atomic_store(w->held, false);
    return w->stop;
}

static moec_job_opts watch_opts(watch *w)
{
    moec_job_opts o = load_opts();

    o.memory = watch_memory;
    o.ready = watch_ready;
    o.progress = watch_progress;
    o.ctx = w;
    return o;
}

static moec_status watch_run(watch *w, const moec_job_opts *o, moec_error *err)
{
    moec_status st =
        moec_job_create(&w->job, w->c->plan, w->c->conversion, w->rank, o, err);

    if (st == MOEC_OK)
        st = moec_job_start(w->job, err);
    if (st == MOEC_OK)
        st = moec_job_wait(w->job, err);
    return st;
}

static void watch_end(watch *w)
{
    moec_job_destroy(w->job);
    load_arena_free(&w->arena);
}

static load_fixture t;

static int set_up(void **state)
{
    (void)state;
    load_fixture_open(&t);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    load_fixture_close(&t);
    return 0;
}

/* ----------------------------------------------------------------- order */

static void layers_become_ready_in_the_order_asked(void **state)
{
    const load_case *both[] = {&t.hf, &t.conv};
    uint32_t n = (uint32_t)moec_plan_n_layers(t.x.plan);

    (void)state;
    assert_true(n >= 2);
    for (int k = 0; k < 4; k++) {
        uint32_t order[2] = {n - 1, 0};
        watch w = {.c = both[k % 2], .rank = 1};
        moec_job_opts o = watch_opts(&w);
        moec_error err = MOEC_ERROR_INIT;

        o.layers = order;
        o.n_layers = 2;
        o.common_arena = 1;
        o.common_last = k >= 2;
        o.layer_arenas = k == 3;
        load_ok(watch_run(&w, &o, &err), &err);
        assert_int_equal(w.n, 3);
        assert_int_equal(w.seen[k < 2 ? 0 : 2], MOEC_NO_LAYER);
        assert_int_equal(w.seen[k < 2 ? 1 : 0], n - 1);
        assert_int_equal(w.seen[k < 2 ? 2 : 1], 0);
        assert_int_equal(w.arena.n, k == 3 ? 3 : 1);
        for (uint32_t i = 1; i + 1 < n; i++)
            assert_null(moec_job_slots_data(w.job, i, 0));
        assert_int_equal(threads_left(), 0);
        watch_end(&w);
    }
}

static void loads_nothing_twice_and_no_more_than_asked(void **state)
{
    watch w = {.c = &t.conv};
    moec_job_opts o = watch_opts(&w);
    moec_error err = MOEC_ERROR_INIT;
    uint32_t bad[2] = {1, 1};
    moec_slot_tensor s;
    moec_job *job = NULL;

    (void)state;
    o.layers = bad;
    o.n_layers = 2;
    assert_int_equal(
        moec_job_create(&job, t.conv.plan, t.conv.conversion, 0, &o, &err),
        MOEC_E_ARG);
    bad[1] = 1000;
    assert_int_equal(
        moec_job_create(&job, t.conv.plan, t.conv.conversion, 0, &o, NULL),
        MOEC_E_ARG);
    assert_int_equal(
        moec_job_create(&job, NULL, t.conv.conversion, 2, NULL, NULL),
        MOEC_E_ARG);
    assert_int_equal(moec_job_create(&job, NULL, NULL, 0, NULL, NULL),
                     MOEC_E_ARG);
    assert_null(job);
    o.layers = NULL;
    load_ok(moec_job_create(&job, NULL, t.conv.conversion, 0, &o, &err), &err);
    w.job = job;
    assert_int_equal(moec_job_slot_tensor(job, 0, 99, &s, NULL), MOEC_E_ARG);
    assert_int_equal(moec_job_wait(job, NULL), MOEC_E_ARG);
    load_ok(moec_job_start(job, &err), &err);
    assert_int_equal(moec_job_start(job, NULL), MOEC_E_ARG);
    assert_int_equal(
        moec_job_place_slots(job, 0, 0, &(moec_slot_dst){.data = NULL}, NULL),
        MOEC_E_ARG);
    load_ok(moec_job_wait(job, &err), &err);
    load_ok(moec_job_wait(job, &err), &err); /* again, the same */
    watch_end(&w);
}

static void a_slot_tensor_may_be_left_out(void **state)
{
    moec_slot_dst none = {.data = NULL};
    moec_error err = MOEC_ERROR_INIT;
    moec_job_opts o = load_opts();
    load_arena arena = {0};
    moec_job *job = NULL;
    uint64_t all;

    (void)state;
    o.memory = load_memory;
    o.ctx = &arena;
    load_ok(moec_job_create(&job, NULL, t.conv.conversion, 0, &o, &err), &err);
    all = moec_job_arena_bytes(job);
    load_ok(moec_job_place_slots(job, 0, 1, &none, &err), &err);
    assert_true(moec_job_arena_bytes(job) < all);
    load_ok(moec_job_start(job, &err), &err);
    load_ok(moec_job_wait(job, &err), &err);
    assert_null(moec_job_slots_data(job, 0, 1));
    load_compare_slots(&t.conv, 0, 0, 0, moec_job_slots_data(job, 0, 0));
    load_compare_layer(&t.conv, job, 0, 1);
    moec_job_destroy(job);
    load_arena_free(&arena);
}

static void refuses_places_that_overlap(void **state)
{
    static unsigned char place[64];
    moec_error err = MOEC_ERROR_INIT;
    moec_slot_shape p;
    moec_job *job = NULL;
    moec_slot_dst d = {.data = place};

    (void)state;
    load_ok(moec_job_create(&job, NULL, t.conv.conversion, 0, NULL, &err),
            &err);
    load_ok(moec_job_slot_shape(job, 0, 0, &p, &err), &err);
    assert_int_equal(p.n_halves, 2);
    d.row_stride = p.row_bytes - 1;
    assert_int_equal(moec_job_place_slots(job, 0, 0, &d, NULL), MOEC_E_ARG);
    d.row_stride = 0;
    d.half_stride = p.n_rows * p.row_bytes - 1;
    assert_int_equal(moec_job_place_slots(job, 0, 0, &d, NULL), MOEC_E_ARG);
    d.half_stride = 0;
    d.slot_stride = 2 * p.n_rows * p.row_bytes - 1;
    assert_int_equal(moec_job_place_slots(job, 0, 0, &d, NULL), MOEC_E_ARG);
    d.slot_stride = 0;
    d.row_stride = UINT64_MAX / 2;
    assert_int_equal(moec_job_place_slots(job, 0, 0, &d, NULL), MOEC_E_ARG);
    /* nothing to put the rest into */
    assert_int_equal(moec_job_start(job, &err), MOEC_E_ARG);
    moec_job_destroy(job);
}

/* ------------------------------------------------------------------- cap */

static void a_cap_that_is_too_small_starts_nothing(void **state)
{
    watch w = {.c = &t.hf};
    moec_job_opts o = watch_opts(&w);
    moec_error err = MOEC_ERROR_INIT;
    uint64_t takes;

    (void)state;
    load_ok(moec_job_create(&w.job, t.hf.plan, NULL, 0, &o, &err), &err);
    takes = moec_job_memory_bytes(w.job);
    moec_job_destroy(w.job);
    o.memory_bytes = takes - 1;
    load_ok(moec_job_create(&w.job, t.hf.plan, NULL, 0, &o, &err), &err);
    assert_int_equal(moec_job_start(w.job, &err), MOEC_E_NOMEM);
    assert_non_null(strstr(err.text, "the cap is"));
    assert_int_equal(w.arena.n, 0);
    watch_end(&w);
    o.memory_bytes = takes;
    memset(&err, 0, sizeof(err));
    load_ok(watch_run(&w, &o, &err), &err);
    watch_end(&w);
}

/* --------------------------------------------------------------- sources */

static void open_fixture(store *s, const char *fixture)
{
    char path[512];

    plan_fixture_path(path, sizeof(path), fixture);
    store_open(s, path);
}

/* From the source down to a plan of two ranks. */
static plan_fixture store_plan(store *s)
{
    moec_plan_opts o = plan_fixture_opts();
    moec_error err = MOEC_ERROR_INIT;
    moec_families *families = NULL;
    plan_fixture x = {0};

    load_ok(moec_families_create(&families, &err), &err);
    load_ok(moec_ckpt_open_source(&x.ckpt, &s->pub, NULL, &err), &err);
    load_ok(moec_model_open(&x.model, x.ckpt, families, &err), &err);
    load_ok(moec_plan_create(&x.plan, x.model, &o, &err), &err);
    moec_families_destroy(families);
    return x;
}

static void loads_from_a_callers_source(void **state)
{
    static const char *const names[] = {"deepseek_v3_fp8", "gpt_oss",
                                        "qwen3_moe"};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        moec_plan_opts o = plan_fixture_opts();
        plan_fixture real = plan_fixture_open(names[i], &o), x;
        load_case c = {.truth = real.ckpt};
        watch w = {.c = &c, .rank = 1};
        moec_job_opts jo = watch_opts(&w);
        moec_error err = MOEC_ERROR_INIT;
        store s;

        open_fixture(&s, names[i]);
        x = store_plan(&s);
        c.plan = x.plan;
        assert_int_equal(moec_ckpt_n_tensors(x.ckpt),
                         moec_ckpt_n_tensors(real.ckpt));
        assert_string_equal(moec_ckpt_file(x.ckpt, 0)->etag, "tag");
        jo.common_arena = 1;
        load_ok(watch_run(&w, &jo, &err), &err);
        watch_end(&w);
        plan_fixture_close(&x);
        plan_fixture_close(&real);
        store_close(&s);
    }
}

static void opening_a_source_may_lack_memory(void **state)
{
    moec_ckpt_opts o = MOEC_CKPT_OPTS_INIT;
    moec_ckpt *ckpt = NULL;
    moec_status st = MOEC_E_NOMEM;
    store s;

    (void)state;
    o.n_threads = 1;
    open_fixture(&s, "qwen3_moe");
    for (uint64_t i = 1; st == MOEC_E_NOMEM; i++) {
        (void)moec_alloc_fail_at(i);
        st = moec_ckpt_open_source(&ckpt, &s.pub, &o, NULL);
        (void)moec_alloc_fail_at(0);
        assert_true((st == MOEC_OK) == (ckpt != NULL));
        assert_true(i < 100000);
    }
    assert_int_equal(st, MOEC_OK);
    moec_ckpt_close(ckpt);
    store_close(&s);
}

static void refuses_a_source_that_is_none(void **state)
{
    moec_store_file twice[] = {{"a", 1, NULL}, {"a", 1, NULL}};
    moec_store_file path = {"a/b", 1, NULL};
    moec_store bad = MOEC_STORE_INIT;
    moec_ckpt *ckpt = NULL;

    (void)state;
    assert_int_equal(moec_ckpt_open_source(&ckpt, NULL, NULL, NULL),
                     MOEC_E_ARG);
    assert_int_equal(moec_ckpt_open_source(&ckpt, &bad, NULL, NULL),
                     MOEC_E_ARG);
    bad.name = "memory";
    bad.read_at = store_read;
    assert_int_equal(moec_ckpt_open_source(&ckpt, &bad, NULL, NULL),
                     MOEC_E_FORMAT); /* nothing in it */
    bad.files = twice;
    bad.n_files = 2;
    assert_int_equal(moec_ckpt_open_source(&ckpt, &bad, NULL, NULL),
                     MOEC_E_ARG);
    bad.files = &path;
    bad.n_files = 1;
    assert_int_equal(moec_ckpt_open_source(&ckpt, &bad, NULL, NULL),
                     MOEC_E_ARG);
    assert_null(ckpt);
}

static void says_what_a_failing_source_said(void **state)
{
    load_case c = {0};
    watch w = {.c = &c};
    moec_job_opts o = watch_opts(&w);
    moec_error err = MOEC_ERROR_INIT;
    plan_fixture x;
    store s;

    (void)state;
    o.ready = NULL;
    open_fixture(&s, "deepseek_v3_fp8");
    x = store_plan(&s);
    c.plan = x.plan;
    s.fail_at = atomic_load(&s.n_reads) + 5;
    assert_int_equal(watch_run(&w, &o, &err), MOEC_E_IO);
    assert_non_null(strstr(err.text, "no such object"));
    assert_non_null(strstr(err.text, ".safetensors"));
    watch_end(&w);
    memset(&err, 0, sizeof(err));
    s.changes = true;
    assert_int_equal(watch_run(&w, &o, &err), MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_I13);
    watch_end(&w);
    plan_fixture_close(&x);
    store_close(&s);
}

static void cancel_ends_a_load_soon(void **state)
{
    load_case c = {0};
    watch w = {.c = &c};
    moec_job_opts o = watch_opts(&w);
    moec_error err = MOEC_ERROR_INIT;
    moec_job_stats st;
    plan_fixture x;
    unsigned n;
    store s;

    (void)state;
    open_fixture(&s, "deepseek_v3_fp8");
    x = store_plan(&s);
    c.plan = x.plan;
    o.ready = NULL;
    o.n_threads = 2;
    n = atomic_load(&s.n_reads);
    atomic_store(&s.held, true);
    load_ok(moec_job_create(&w.job, c.plan, NULL, 0, &o, &err), &err);
    load_ok(moec_job_start(w.job, &err), &err);
    while (atomic_load(&s.n_reads) == n)
        usleep(1000);
    moec_job_cancel(w.job);
    n = atomic_load(&s.n_reads);
    atomic_store(&s.held, false);
    assert_int_equal(moec_job_wait(w.job, &err), MOEC_E_CANCELLED);
    /* each thread ends the read that it is in, and begins at most one */
    assert_true(atomic_load(&s.n_reads) <= n + 2 * 2);
    moec_job_poll(w.job, &st);
    assert_int_equal(st.state, MOEC_JOB_FAILED);
    assert_true(st.n_layers_ready < st.n_layers);
    assert_int_equal(threads_left(), 0);
    watch_end(&w);
    /* the same by the progress callback; and destroy alone */
    w.stop = 1;
    w.last_done = 0;
    w.n_told = 0;
    w.held = &s.held;
    atomic_store(&s.held, true);
    assert_int_equal(watch_run(&w, &o, NULL), MOEC_E_CANCELLED);
    watch_end(&w);
    load_ok(moec_job_create(&w.job, c.plan, NULL, 0, &o, &err), &err);
    load_ok(moec_job_start(w.job, &err), &err);
    watch_end(&w);
    assert_int_equal(threads_left(), 0);
    plan_fixture_close(&x);
    store_close(&s);
}

/* ---------------------------------------------------------------- damage */

/* Change byte `off` of the file; `by` 0 gives it back as it was. */
static void bend(const char *path, uint64_t off, unsigned char by)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    unsigned char b;

    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &b, 1, (off_t)off), 1);
    b ^= by;
    assert_int_equal(pwrite(fd, &b, 1, (off_t)off), 1);
    close(fd);
}

static void damage_is_named_and_its_layer_not_ready(void **state)
{
    const moec_layout *l = moec_conversion_layout(t.conv.conversion);
    size_t layer = moec_plan_n_layers(t.conv.plan) - 1, file;
    const moec_slot_tensor *s = moec_plan_slot_tensor(t.conv.plan, layer, 0);
    char path[1024], slot[64];
    uint64_t off;

    (void)state;
    moec_layout_find_slots(l, 1, layer, 0, &file, &off);
    snprintf(path, sizeof(path), "%s/%s", tmpdir_path(&t.dir, "out"),
             moec_layout_file(l, file)->name);
    off += 3 * s->slot_bytes + 17;
    bend(path, off, 4);
    for (int k = 0; k < 2; k++) {
        watch w = {.c = &t.conv, .rank = 1};
        moec_job_opts o = watch_opts(&w);
        moec_error err = MOEC_ERROR_INIT;

        o.verify = k ? MOEC_LOAD_VERIFY_SHA256 : MOEC_LOAD_VERIFY_XXH3;
        assert_int_equal(watch_run(&w, &o, &err), MOEC_E_INTEGRITY);
        assert_int_equal(err.rule, MOEC_RULE_T3);
        snprintf(slot, sizeof(slot), "slot 3 (expert %u)",
                 moec_plan_unit(t.conv.plan, layer, 1, (moec_local_row){3}));
        assert_non_null(strstr(err.text, moec_layout_file(l, file)->name));
        assert_non_null(strstr(err.text, s->name));
        assert_non_null(strstr(err.text, slot));
        assert_non_null(strstr(err.text, "leaf 0"));
        for (size_t i = 0; i < w.n; i++)
            assert_true(w.seen[i] != layer);
        assert_int_equal(threads_left(), 0);
        watch_end(&w);
        /* the other rank is none the worse; nor is one who does not look */
        w = (watch){.c = &t.conv, .rank = 0};
        load_ok(watch_run(&w, &o, &err), &err);
        watch_end(&w);
    }
    /* in a part of a slot, block by block */
    {
        watch w = {.c = &t.conv, .rank = 1};
        moec_job_opts o = load_opts();
        moec_error err = MOEC_ERROR_INIT;

        o.memory = watch_memory;
        o.ctx = &w;
        o.tp_size = 2;
        if (watch_run(&w, &o, &err) != MOEC_E_UNSUPPORTED)
            assert_int_equal(err.status, MOEC_E_INTEGRITY);
        watch_end(&w);
    }
    bend(path, off, 4);
}

static void damaged_common_tensors_are_named(void **state)
{
    const moec_layout *l = moec_conversion_layout(t.conv.conversion);
    size_t i = moec_ckpt_find(t.x.ckpt, "model.embed_tokens.weight"), file;
    watch w = {.c = &t.conv};
    moec_job_opts o = watch_opts(&w);
    moec_error err = MOEC_ERROR_INIT;
    char path[1024];
    uint64_t off;

    (void)state;
    assert_true(moec_layout_find_common(l, i, &file, &off));
    snprintf(path, sizeof(path), "%s/%s", tmpdir_path(&t.dir, "out"),
             moec_layout_file(l, file)->name);
    bend(path, off + 99, 1);
    o.common_arena = 1;
    assert_int_equal(watch_run(&w, &o, &err), MOEC_E_INTEGRITY);
    assert_int_equal(err.rule, MOEC_RULE_M07);
    assert_non_null(strstr(err.text, "model.embed_tokens.weight"));
    assert_int_equal(w.n, 0);
    watch_end(&w);
    bend(path, off + 99, 1);
}

/* A copy of the fixture that may be changed. */
static void copy_fixture(const tmpdir *dir, const char *name)
{
    char from[512], cmd[1400];

    plan_fixture_path(from, sizeof(from), name);
    snprintf(cmd, sizeof(cmd), "cp -r '%s' '%s' && chmod -R u+w '%s'", from,
             tmpdir_path(dir, "src"), tmpdir_path(dir, "src"));
    assert_int_equal(system(cmd), 0); /* NOLINT(cert-env33-c): a test */
}

static void a_file_that_changed_is_refused(void **state)
{
    moec_plan_opts po = plan_fixture_opts();

    (void)state;
    for (int k = 0; k < 2; k++) {
        tmpdir dir = tmpdir_make();
        moec_error err = MOEC_ERROR_INIT;
        moec_families *families = NULL;
        load_case c = {0};
        watch w = {.c = &c};
        moec_job_opts o = watch_opts(&w);
        plan_fixture x = {0};
        char path[2048];

        o.ready = NULL;
        copy_fixture(&dir, "olmoe");
        load_ok(moec_families_create(&families, &err), &err);
        load_ok(moec_ckpt_open(&x.ckpt, tmpdir_path(&dir, "src"), NULL, &err),
                &err);
        load_ok(moec_model_open(&x.model, x.ckpt, families, &err), &err);
        load_ok(moec_plan_create(&x.plan, x.model, &po, &err), &err);
        c.plan = x.plan;
        snprintf(path, sizeof(path), "%s/%s", tmpdir_path(&dir, "src"),
                 moec_ckpt_file(x.ckpt, 0)->name);
        if (k == 0)
            assert_int_equal(truncate(path, 5000), 0);
        else
            bend(path, 5000, 0); /* written to */
        assert_int_equal(watch_run(&w, &o, &err), MOEC_E_FORMAT);
        assert_int_equal(err.rule, MOEC_RULE_I13);
        watch_end(&w);
        moec_families_destroy(families);
        plan_fixture_close(&x);
        tmpdir_remove(&dir);
    }
}

static void a_rank_file_cut_short_is_refused(void **state)
{
    const moec_layout *l = moec_conversion_layout(t.conv.conversion);
    watch w = {.c = &t.conv, .rank = 1};
    moec_job_opts o = watch_opts(&w);
    moec_error err = MOEC_ERROR_INIT;
    char path[1024], away[1100];
    size_t file;
    uint64_t off;

    (void)state;
    moec_layout_find_slots(l, 1, 0, 0, &file, &off);
    snprintf(path, sizeof(path), "%s/%s", tmpdir_path(&t.dir, "out"),
             moec_layout_file(l, file)->name);
    snprintf(away, sizeof(away), "%s.away", path);
    assert_int_equal(rename(path, away), 0);
    assert_int_equal(watch_run(&w, &o, &err), MOEC_E_FORMAT); /* not there */
    assert_int_equal(err.rule, MOEC_RULE_M05);
    watch_end(&w);
    assert_int_equal(link(away, path), 0);
    assert_int_equal(
        truncate(path, (off_t)moec_layout_file(l, file)->bytes + 4096), 0);
    memset(&err, 0, sizeof(err));
    assert_int_equal(watch_run(&w, &o, &err), MOEC_E_INTEGRITY);
    assert_int_equal(err.rule, MOEC_RULE_M05);
    watch_end(&w);
    assert_int_equal(truncate(path, (off_t)moec_layout_file(l, file)->bytes),
                     0);
    assert_int_equal(unlink(away), 0);
    memset(&err, 0, sizeof(err));
    load_ok(watch_run(&w, &o, &err), &err);
    watch_end(&w);
}

static void failing_callbacks_end_the_load(void **state)
{
    (void)state;
    for (uint32_t k = 1; k <= 3; k++) {
        watch w = {.c = &t.conv, .rank = 1, .fail_at = k};
        moec_job_opts o = watch_opts(&w);
        moec_error err = MOEC_ERROR_INIT;

        o.common_arena = 1;
        assert_int_equal(watch_run(&w, &o, &err), MOEC_E_IO);
        assert_non_null(strstr(err.text, "the caller fails"));
        assert_int_equal(w.n, k);
        watch_end(&w);
        assert_int_equal(threads_left(), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_become_ready_in_the_order_asked),
        cmocka_unit_test(loads_nothing_twice_and_no_more_than_asked),
        cmocka_unit_test(a_slot_tensor_may_be_left_out),
        cmocka_unit_test(refuses_places_that_overlap),
        cmocka_unit_test(a_cap_that_is_too_small_starts_nothing),
        cmocka_unit_test(loads_from_a_callers_source),
        cmocka_unit_test(opening_a_source_may_lack_memory),
        cmocka_unit_test(refuses_a_source_that_is_none),
        cmocka_unit_test(says_what_a_failing_source_said),
        cmocka_unit_test(cancel_ends_a_load_soon),
        cmocka_unit_test(damage_is_named_and_its_layer_not_ready),
        cmocka_unit_test(damaged_common_tensors_are_named),
        cmocka_unit_test(a_file_that_changed_is_refused),
        cmocka_unit_test(a_rank_file_cut_short_is_refused),
        cmocka_unit_test(failing_callbacks_end_the_load),
    };

    load_scratch();
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
