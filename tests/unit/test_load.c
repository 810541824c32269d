/* SPDX-License-Identifier: Apache-2.0
 *
 * A rank in memory is what convert writes for it: every fixture, from the
 * checkpoint and from a conversion, at several worlds and placements. What it
 * must be is worked out here from the plan's moves alone, block by block, with
 * the executor and plain reads: nothing of load/ and of the engine. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "convert.h"
#include "execute.h"
#include "late_sink.h"
#include "load_case.h"
#include "plan_fixture.h"
#include "tmpdir.h"

/* --------------------------------------------------------- all of a rank */

static void load_all(const load_case *c, uint32_t rank, moec_load_verify verify)
{
    moec_job_opts o = load_opts();
    load_arena arena = {0};
    moec_job *job = NULL;
    moec_job_stats s;
    moec_error err = MOEC_ERROR_INIT;

    o.memory = load_memory;
    o.ctx = &arena;
    o.verify = verify;
    o.common_arena = 1;
    load_ok(moec_job_create(&job, c->plan, c->conversion, rank, &o, &err),
            &err);
    load_ok(moec_job_start(job, &err), &err);
    load_ok(moec_job_wait(job, &err), &err);
    for (size_t i = 0; i < moec_plan_n_layers(c->plan); i++)
        load_compare_layer(c, job, rank, i);
    load_compare_common(c, job);
    moec_job_poll(job, &s);
    assert_int_equal(s.state, MOEC_JOB_DONE);
    assert_int_equal(s.n_layers_ready, s.n_layers);
    assert_true(s.bytes_done == s.bytes_needed);
    if (c->conversion != NULL && verify != MOEC_LOAD_VERIFY_NONE)
        assert_true(s.bytes_verified >= s.bytes_needed);
    moec_job_destroy(job);
    load_arena_free(&arena);
}

static void loads_every_fixture(void **state)
{
    (void)state;
    for (size_t i = 0; i < PLAN_FIXTURES; i++) {
        moec_plan_opts o = plan_fixture_opts();
        plan_fixture x = plan_fixture_open(plan_fixture_names[i], &o);
        tmpdir dir = tmpdir_make();
        load_case c = {.plan = x.plan};

        load_all(&c, 0, MOEC_LOAD_VERIFY_DEFAULT);
        load_all(&c, 1, MOEC_LOAD_VERIFY_NONE);
        load_convert(&c, x.layout, &dir);
        load_all(&c, 0, MOEC_LOAD_VERIFY_DEFAULT);
        load_all(&c, 1, MOEC_LOAD_VERIFY_SHA256);
        moec_conversion_close(c.conversion);
        tmpdir_remove(&dir);
        plan_fixture_close(&x);
    }
}

/* Any world out of an expert store, any placement. */
static void gathers_other_worlds_from_a_store(void **state)
{
    static const char *const names[] = {"deepseek_v3_fp8", "gpt_oss", "llama4"};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        moec_plan_opts o = MOEC_PLAN_OPTS_INIT;
        tmpdir dir = tmpdir_make();
        load_case c = {0};
        plan_fixture x;

        o.by_expert = 1;
        x = plan_fixture_open(names[i], &o);
        load_convert(&c, x.layout, &dir);
        for (uint32_t w = 1; w <= 4; w *= 2) {
            moec_plan_opts p = MOEC_PLAN_OPTS_INIT;
            moec_error err = MOEC_ERROR_INIT;
            moec_plan *plan = NULL;

            p.n_ranks = w;
            p.n_redundant = w == 1 ? 0 : 4;
            load_ok(moec_plan_create(&plan,
                                     moec_plan_model(moec_layout_plan(
                                         moec_conversion_layout(c.conversion))),
                                     &p, &err),
                    &err);
            c.plan = plan;
            c.truth = x.ckpt;
            load_all(&c, w - 1, MOEC_LOAD_VERIFY_DEFAULT);
            moec_plan_destroy(plan);
        }
        moec_conversion_close(c.conversion);
        tmpdir_remove(&dir);
        plan_fixture_close(&x);
    }
}

/* ------------------------------------------------------ caller's tensors */

/* Element (row of the tensor, half, r, byte c) of a dense slot. */
static const unsigned char *dense_at(const moec_slot_shape *p,
                                     const unsigned char *slot, uint32_t h,
                                     uint64_t r)
{
    if (p->half_in_columns)
        return slot + (r * p->n_halves + h) * p->row_bytes;
    return slot + (h * p->n_rows + r) * p->row_bytes;
}

/* One slot tensor with gaps everywhere; every gap must stay as it was. */
typedef struct strided {
    unsigned char *data;
    uint64_t bytes;
    moec_slot_dst dst;
    moec_slot_shape shape;
} strided;

static strided place_strided(moec_job *job, size_t layer, size_t t)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_slot_tensor s;
    strided x = {0};
    uint64_t halves;

    load_ok(moec_job_slot_tensor(job, layer, t, &s, &err), &err);
    load_ok(moec_job_slot_shape(job, layer, t, &x.shape, &err), &err);
    halves = x.shape.half_in_columns ? x.shape.n_halves : 1;
    if (x.shape.half_in_columns)
        x.dst.half_stride = x.shape.row_bytes + 3;
    x.dst.row_stride = halves * (x.shape.row_bytes + 3) + 5;
    if (!x.shape.half_in_columns)
        x.dst.half_stride = x.shape.n_rows * x.dst.row_stride + 64;
    x.dst.slot_stride = x.shape.n_halves * x.dst.half_stride +
                        x.shape.n_rows * x.dst.row_stride + 7;
    x.bytes = s.shape[0] * x.dst.slot_stride;
    x.data = malloc((size_t)x.bytes);
    assert_non_null(x.data);
    memset(x.data, 0xA5, (size_t)x.bytes);
    x.dst.data = x.data;
    load_ok(moec_job_place_slots(job, layer, t, &x.dst, &err), &err);
    return x;
}

static void check_strided(const load_case *c, uint32_t rank, size_t layer,
                          size_t t, const strided *x)
{
    const moec_slot_tensor *s = moec_plan_slot_tensor(c->plan, layer, t);
    unsigned char *want = malloc((size_t)x->bytes);

    assert_non_null(want);
    memset(want, 0xA5, (size_t)x->bytes);
    for (uint32_t row = 0; row < s->shape[0]; row++) {
        unsigned char *slot = load_block(
            c, layer, t, moec_plan_row_unit(c->plan, layer, t, rank, row));
        for (uint32_t h = 0; h < x->shape.n_halves; h++)
            for (uint64_t r = 0; r < x->shape.n_rows; r++)
                memcpy(want + row * x->dst.slot_stride +
                           h * x->dst.half_stride + r * x->dst.row_stride,
                       dense_at(&x->shape, slot, h, r),
                       (size_t)x->shape.row_bytes);
        free(slot);
    }
    if (memcmp(want, x->data, (size_t)x->bytes) != 0)
        fail_msg("%s differs between its gaps", s->name);
    free(want);
}

static void load_strided(const load_case *c, uint32_t rank)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_job_opts o = load_opts();
    size_t layer = moec_plan_n_layers(c->plan) - 1;
    uint32_t only = (uint32_t)layer;
    strided x[32];
    moec_job *job = NULL;
    size_t n = moec_plan_n_slot_tensors(c->plan, layer);

    o.layers = &only;
    o.n_layers = 1;
    load_ok(moec_job_create(&job, c->plan, c->conversion, rank, &o, &err),
            &err);
    for (size_t t = 0; t < n; t++)
        x[t] = place_strided(job, layer, t);
    assert_true(moec_job_arena_bytes(job) == 0);
    load_ok(moec_job_start(job, &err), &err);
    load_ok(moec_job_wait(job, &err), &err);
    moec_job_destroy(job);
    for (size_t t = 0; t < n; t++) {
        check_strided(c, rank, layer, t, &x[t]);
        free(x[t].data);
    }
}

static void fills_tensors_with_gaps(void **state)
{
    (void)state;
    for (size_t i = 0; i < PLAN_FIXTURES; i++) {
        moec_plan_opts o = plan_fixture_opts();
        plan_fixture x = plan_fixture_open(plan_fixture_names[i], &o);
        load_case c = {.plan = x.plan};
        tmpdir dir;

        load_strided(&c, i % 2);
        if (i % 4 == 1) {
            dir = tmpdir_make();
            load_convert(&c, x.layout, &dir);
            load_strided(&c, 1);
            moec_conversion_close(c.conversion);
            tmpdir_remove(&dir);
        }
        plan_fixture_close(&x);
    }
}

/* ------------------------------------------------------- tensor parallel */

/* The dimension that was cut, or UINT32_MAX. */
static uint32_t cut_of(const moec_slot_tensor *whole,
                       const moec_slot_tensor *part)
{
    for (uint32_t d = 0; d < whole->rank; d++)
        if (whole->shape[d] != part->shape[d])
            return d;
    return UINT32_MAX;
}

/* Put part `k` of `n` into `out`, slot after slot, by the shapes alone: w13 of
 * two halves is [2][I] where the plan says [2*I]. */
static void put_part(const moec_slot_tensor *whole,
                     const moec_slot_tensor *part, uint32_t k,
                     uint32_t n_halves, const unsigned char *src,
                     unsigned char *out)
{
    uint32_t d = cut_of(whole, part);
    uint64_t before = 1, after, halves = 1, len;

    if (d == UINT32_MAX) {
        memcpy(out, src, (size_t)(whole->shape[0] * whole->slot_bytes));
        return;
    }
    for (uint32_t i = 0; i < d; i++)
        before *= whole->shape[i];
    if (!whole->is_w2)
        halves = n_halves;
    len = part->shape[d] / halves;
    after = part->shape[0] * part->slot_bytes / before / part->shape[d];
    for (uint64_t b = 0; b < before * halves; b++)
        memcpy(out + (b * whole->shape[d] / halves + k * len) * after,
               src + b * len * after, (size_t)(len * after));
}

static moec_job *load_part(const load_case *c, uint32_t rank, uint32_t k,
                           uint32_t n, load_arena *arena)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_job_opts o = load_opts();
    moec_job *job = NULL;
    moec_status st;

    o.memory = load_memory;
    o.ctx = arena;
    o.tp_rank = k;
    o.tp_size = n;
    st = moec_job_create(&job, c->plan, c->conversion, rank, &o, &err);
    if (st == MOEC_E_UNSUPPORTED) {
        assert_non_null(strstr(err.text, "cannot be cut into"));
        return NULL;
    }
    load_ok(st, &err);
    load_ok(moec_job_start(job, &err), &err);
    load_ok(moec_job_wait(job, &err), &err);
    return job;
}

static bool parts_are_the_whole(const load_case *c, uint32_t rank, uint32_t n)
{
    load_arena arena = {0};
    moec_job *jobs[4] = {NULL};

    for (uint32_t k = 0; k < n; k++) {
        jobs[k] = load_part(c, rank, k, n, &arena);
        if (jobs[k] == NULL)
            return false;
    }
    for (size_t i = 0; i < moec_plan_n_layers(c->plan); i++)
        for (size_t t = 0; t < moec_plan_n_slot_tensors(c->plan, i); t++) {
            const moec_slot_tensor *s = moec_plan_slot_tensor(c->plan, i, t);
            unsigned char *got =
                malloc((size_t)(s->shape[0] * s->slot_bytes) + 1);
            moec_slot_shape shape;
            moec_slot_tensor part;

            assert_non_null(got);
            for (uint32_t k = 0; k < n; k++) {
                moec_job_slot_tensor(jobs[k], i, t, &part, NULL);
                moec_job_slot_shape(jobs[k], i, t, &shape, NULL);
                put_part(s, &part, k, shape.n_halves,
                         moec_job_slots_data(jobs[k], i, t), got);
            }
            load_compare_slots(c, rank, i, t, got);
            free(got);
        }
    for (uint32_t k = 0; k < n; k++)
        moec_job_destroy(jobs[k]);
    load_arena_free(&arena);
    return true;
}

static void parts_of_a_slot_make_the_whole(void **state)
{
    size_t n_cut = 0;

    (void)state;
    for (size_t i = 0; i < PLAN_FIXTURES; i++) {
        moec_plan_opts o = plan_fixture_opts();
        plan_fixture x = plan_fixture_open(plan_fixture_names[i], &o);
        load_case c = {.plan = x.plan};
        tmpdir dir;

        n_cut += parts_are_the_whole(&c, 0, 2);
        n_cut += parts_are_the_whole(&c, 1, 4);
        if (i % 3 == 2) {
            dir = tmpdir_make();
            load_convert(&c, x.layout, &dir);
            n_cut += parts_are_the_whole(&c, 1, 2);
            moec_conversion_close(c.conversion);
            tmpdir_remove(&dir);
        }
        plan_fixture_close(&x);
    }
    assert_true(n_cut > PLAN_FIXTURES);
}

/* Slots of several leaves: whole, with gaps, in parts, through small rings. */
static void loads_slots_of_many_leaves(void **state)
{
    tmpdir dir = tmpdir_make();
    load_case c = {0};
    plan_fixture x;

    (void)state;
    load_long_tree(&dir);
    x = load_long_open(&dir);
    c.plan = x.plan;
    for (int k = 0; k < 2; k++) {
        load_all(&c, 0, MOEC_LOAD_VERIFY_DEFAULT);
        load_all(&c, 1, MOEC_LOAD_VERIFY_NONE);
        load_strided(&c, 1);
        assert_true(parts_are_the_whole(&c, 0, 2));
        assert_true(parts_are_the_whole(&c, 1, 4));
        if (k == 0)
            load_convert(&c, x.layout, &dir);
    }
    load_all(&c, 0, MOEC_LOAD_VERIFY_SHA256);
    moec_conversion_close(c.conversion);
    plan_fixture_close(&x);
    tmpdir_remove(&dir);
}

/* ----------------------------------------------------- source tensors */

/* Tensors of shared experts, though they are fused into slots, and a view of
 * each. */
static void load_shared(const load_case *c)
{
    const moec_ckpt *ckpt = load_truth(c);
    const moec_model *model = moec_plan_model(c->plan);
    moec_error err = MOEC_ERROR_INIT;
    moec_job_opts o = load_opts();
    load_arena arena = {0};
    moec_job *job = NULL;
    size_t n = 0;

    o.memory = load_memory;
    o.ctx = &arena;
    o.common_last = 1;
    load_ok(moec_job_create(&job, c->plan, c->conversion, 0, &o, &err), &err);
    for (size_t i = 0; i < moec_ckpt_n_tensors(ckpt); i++) {
        moec_role role = moec_model_use(model, i).role;
        if (role == MOEC_ROLE_ROUTED) {
            assert_int_equal(moec_job_place_tensor(job, i, NULL, NULL),
                             MOEC_E_ARG);
            continue;
        }
        if (role != MOEC_ROLE_SHARED)
            continue;
        load_ok(moec_job_place_tensor(job, i, NULL, &err), &err);
        n++;
    }
    assert_true(n > 0);
    load_ok(moec_job_start(job, &err), &err);
    load_ok(moec_job_wait(job, &err), &err);
    for (size_t i = 0; i < moec_ckpt_n_tensors(ckpt); i++)
        if (moec_model_use(model, i).role == MOEC_ROLE_SHARED)
            load_compare_tensor(c, i, moec_job_tensor_data(job, i));
    load_compare_layer(c, job, 0, 0);
    moec_job_destroy(job);
    load_arena_free(&arena);
}

/* A common tensor with rows and columns to spare. */
static size_t find_matrix(const load_case *c)
{
    const moec_ckpt *ckpt = load_truth(c);

    for (size_t i = 0; i < moec_ckpt_n_tensors(ckpt); i++) {
        const moec_tensor *t = moec_ckpt_tensor(ckpt, i);
        if (moec_plan_fate(c->plan, i) == MOEC_FATE_COMMON && t->rank == 2 &&
            t->shape[0] > 30 && t->shape[1] > 10)
            return i;
    }
    fail_msg("no matrix");
    return 0;
}

/* Rows and columns of one tensor into padded rows. */
static void load_view(const load_case *c)
{
    const moec_ckpt *ckpt = load_truth(c);
    size_t i = find_matrix(c);
    const moec_tensor *t = moec_ckpt_tensor(ckpt, i);
    uint64_t elem = moec_dtype_bits((moec_dtype)t->dtype) / 8;
    moec_tensor_dst d = {.row_first = 5,
                         .n_rows = 17,
                         .col_first = 3,
                         .n_cols = t->shape[1] - 7};
    unsigned char *whole = malloc((size_t)t->bytes), *got;
    moec_error err = MOEC_ERROR_INIT;
    moec_job_opts o = load_opts();
    moec_job *job = NULL;

    o.layers = &(const uint32_t){0};
    o.n_layers = 0;
    d.row_stride = d.n_cols * elem + 11;
    got = d.data = malloc((size_t)(d.n_rows * d.row_stride));
    assert_true(whole != NULL && got != NULL);
    load_ok(moec_job_create(&job, c->plan, c->conversion, 0, &o, &err), &err);
    load_ok(moec_job_place_tensor(job, i, &d, &err), &err);
    load_ok(moec_job_start(job, &err), &err);
    load_ok(moec_job_wait(job, &err), &err);
    load_ok(moec_ckpt_read(ckpt, i, 0, whole, (size_t)t->bytes, &err), &err);
    for (uint64_t r = 0; r < d.n_rows; r++)
        assert_memory_equal(
            got + r * d.row_stride,
            whole + ((r + d.row_first) * t->shape[1] + d.col_first) * elem,
            (size_t)(d.n_cols * elem));
    d.n_rows = t->shape[0];
    assert_int_equal(moec_job_place_tensor(job, i, &d, NULL), MOEC_E_ARG);
    moec_job_destroy(job);
    free(whole);
    free(got);
}

static void shared_parts_are_addressable_apart(void **state)
{
    static const char *const names[] = {"deepseek_v2", "deepseek_v3_fp8",
                                        "glm4_moe", "llama4"};

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        moec_plan_opts o = plan_fixture_opts();
        plan_fixture x = plan_fixture_open(names[i], &o);
        load_case c = {.plan = x.plan};
        tmpdir dir = tmpdir_make();

        load_shared(&c);
        load_view(&c);
        load_convert(&c, x.layout, &dir);
        load_shared(&c);
        load_view(&c);
        moec_conversion_close(c.conversion);
        tmpdir_remove(&dir);
        plan_fixture_close(&x);
    }
}

/* Without a plan the rows are there, too, and no other rank's file is read. */
static void fills_shared_rows_unasked(const load_case *c)
{
    moec_job_opts o = load_opts();
    moec_error err = MOEC_ERROR_INIT;
    load_arena arena = {0};
    moec_job *job = NULL;

    o.memory = load_memory;
    o.ctx = &arena;
    load_ok(moec_job_create(&job, NULL, c->conversion, 1, &o, &err), &err);
    assert_int_equal(moec_plan_shared_rows(moec_job_plan(job)),
                     moec_plan_shared_rows(c->plan));
    load_ok(moec_job_start(job, &err), &err);
    load_ok(moec_job_wait(job, &err), &err);
    load_compare_layer(c, job, 1, 0);
    moec_job_destroy(job);
    load_arena_free(&arena);
}

/* Shared experts that the conversion has in a file of their own go into rows
 * where the plan wants them there. */
static void shared_rows_are_filled_from_a_common_store(void **state)
{
    static const char *const names[] = {"deepseek_v2", "deepseek_v3_fp8"};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        moec_plan_opts o = plan_fixture_opts(), p = plan_fixture_opts();
        moec_error err = MOEC_ERROR_INIT;
        moec_plan *plan = NULL;
        load_case c = {0};
        tmpdir dir = tmpdir_make();
        plan_fixture x;

        o.shared_store_common = 1;
        x = plan_fixture_open(names[i], &o);
        load_convert(&c, x.layout, &dir);
        load_ok(moec_plan_create(&plan, moec_plan_model(c.plan), &p, &err),
                &err);
        assert_true(moec_plan_shared_rows(plan) > 0);
        c.plan = plan;
        load_all(&c, 1, MOEC_LOAD_VERIFY_DEFAULT);
        fills_shared_rows_unasked(&c);
        moec_plan_destroy(plan);
        moec_conversion_close(c.conversion);
        tmpdir_remove(&dir);
        plan_fixture_close(&x);
    }
}

/* ------------------------------------------------------------------ sink */

typedef struct sunk {
    load_arena arena;
    late_sink *d;
    uint32_t n_ready;
} sunk;

static moec_status sunk_memory(void *ctx, const moec_memory_request *want,
                               void **out, moec_error *err)
{
    assert_int_equal(want->kind, MOEC_MEMORY_DEVICE);
    return load_memory(&((sunk *)ctx)->arena, want, out, err);
}

static moec_status sunk_ready(void *ctx, uint32_t layer, uint64_t ticket,
                              moec_error *err)
{
    sunk *x = ctx;
    int done = 0;

    (void)layer;
    x->n_ready++;
    return late_sink_poll(x->d, ticket, 1, &done, err);
}

static void load_sunk(const load_case *c)
{
    moec_load_sink sink = {.struct_bytes = sizeof(sink),
                           .copy = late_sink_copy,
                           .poll = late_sink_poll};
    moec_error err = MOEC_ERROR_INIT;
    moec_job_opts o = load_opts();
    late_sink *d = calloc(1, sizeof(*d));
    void *ring = NULL;
    sunk x = {.d = d};
    moec_job *job = NULL;

    assert_non_null(d);
    o.n_threads = 1;
    o.ring_bytes = 8u << 20;
    assert_int_equal(posix_memalign(&ring, 4096, (size_t)o.ring_bytes), 0);
    sink.ctx = d;
    sink.ring = ring;
    o.sink = &sink;
    o.memory = sunk_memory;
    o.memory_kind = MOEC_MEMORY_DEVICE;
    o.ready = sunk_ready;
    o.ctx = &x;
    load_ok(moec_job_create(&job, c->plan, c->conversion, 1, &o, &err), &err);
    load_ok(moec_job_start(job, &err), &err);
    load_ok(moec_job_wait(job, &err), &err);
    assert_int_equal(x.n_ready, moec_plan_n_layers(c->plan));
    for (size_t i = 0; i < moec_plan_n_layers(c->plan); i++)
        load_compare_layer(c, job, 1, i);
    moec_job_destroy(job);
    load_arena_free(&x.arena);
    free(ring);
    free(d);
}

static void loads_through_a_sink(void **state)
{
    static const char *const names[] = {"gpt_oss", "deepseek_v3_fp8", "dbrx"};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        moec_plan_opts o = plan_fixture_opts();
        plan_fixture x;
        load_case c = {0};
        tmpdir dir = tmpdir_make();

        o.allow_empty = 1;
        o.n_ranks = 3; /* empty slots */
        x = plan_fixture_open(names[i], &o);
        c.plan = x.plan;
        load_sunk(&c);
        load_convert(&c, x.layout, &dir);
        load_sunk(&c);
        moec_conversion_close(c.conversion);
        tmpdir_remove(&dir);
        plan_fixture_close(&x);
    }
}

/* Checkpoints of the caller's, such as make_family_trees.py's: each from its
 * files and from a conversion of two ranks, in parts too. */
static void load_paths(int n, char **paths)
{
    moec_plan_opts o = plan_fixture_opts();

    for (int i = 0; i < n; i++) {
        moec_error err = MOEC_ERROR_INIT;
        moec_families *families = NULL;
        tmpdir dir = tmpdir_make();
        plan_fixture x = {0};
        load_case c = {0};

        o.n_redundant = 0;
        load_ok(moec_families_create(&families, &err), &err);
        if (moec_ckpt_open(&x.ckpt, paths[i], NULL, &err) != MOEC_OK ||
            moec_model_open(&x.model, x.ckpt, families, &err) != MOEC_OK ||
            moec_plan_create(&x.plan, x.model, &o, &err) != MOEC_OK ||
            moec_layout_create(&x.layout, x.plan, 0, &err) != MOEC_OK) {
            print_message("%s: %s\n", paths[i], err.text);
        } else {
            print_message("%s\n", paths[i]);
            c.plan = x.plan;
            load_all(&c, 1, MOEC_LOAD_VERIFY_DEFAULT);
            load_strided(&c, 0);
            (void)parts_are_the_whole(&c, 0, 2);
            load_convert(&c, x.layout, &dir);
            load_all(&c, 1, MOEC_LOAD_VERIFY_SHA256);
            load_strided(&c, 0);
            (void)parts_are_the_whole(&c, 0, 2);
            moec_conversion_close(c.conversion);
        }
        moec_families_destroy(families);
        plan_fixture_close(&x);
        tmpdir_remove(&dir);
    }
}

static struct {
    int n;
    char **paths;
} given;

static void loads_what_is_given(void **state)
{
    (void)state;
    load_paths(given.n, given.paths);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest paths[] = {cmocka_unit_test(loads_what_is_given)};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loads_every_fixture),
        cmocka_unit_test(gathers_other_worlds_from_a_store),
        cmocka_unit_test(fills_tensors_with_gaps),
        cmocka_unit_test(parts_of_a_slot_make_the_whole),
        cmocka_unit_test(loads_slots_of_many_leaves),
        cmocka_unit_test(shared_parts_are_addressable_apart),
        cmocka_unit_test(shared_rows_are_filled_from_a_common_store),
        cmocka_unit_test(loads_through_a_sink),
    };

    load_scratch();
    given.n = argc - 1;
    given.paths = argv + 1;
    if (argc > 1)
        return cmocka_run_group_tests(paths, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
