/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TESTS_LOAD_CASE_H
#define MOEC_TESTS_LOAD_CASE_H

/*
 * What tests of loads share: a plan and what holds its bytes, memory, and what
 * a slot must hold, worked out from the plan's moves by the executor. Include
 * after cmocka.h.
 */

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <moec/moec.h>

#include "convert.h"
#include "execute.h"
#include "tmpdir.h"

typedef struct load_case {
    const moec_plan *plan;
    moec_conversion *conversion; /* NULL: the plan's checkpoint */
    const moec_ckpt *truth;      /* NULL: the plan's checkpoint */
} load_case;

#define load_ok(st, err) load_ok_at((st), (err), __FILE__, __LINE__)
static inline void load_ok_at(moec_status st, const moec_error *err,
                              const char *file, int line)
{
    if (st == MOEC_OK)
        return;
    print_error("%s\n", err->text);
    _assert_true(0, moec_status_name(st), file, line);
}

/* Conversions are synced file by file: memory is quicker than a busy disk. */
static inline void load_scratch(void)
{
    if (getenv("TMPDIR") == NULL && access("/dev/shm", W_OK) == 0)
        (void)setenv("TMPDIR", "/dev/shm", 1);
}

/* ---------------------------------------------------------------- memory */

#define LOAD_ARENAS 64

typedef struct load_arena {
    void *v[LOAD_ARENAS];
    uint64_t bytes[LOAD_ARENAS];
    size_t n;
} load_arena;

static inline moec_status load_memory(void *ctx,
                                      const moec_memory_request *want,
                                      void **out, moec_error *err)
{
    load_arena *a = ctx;

    (void)err;
    assert_int_equal(want->struct_bytes, sizeof(*want));
    assert_true(a->n < LOAD_ARENAS);
    if (posix_memalign(out, (size_t)want->alignment, (size_t)want->bytes) != 0)
        return MOEC_E_NOMEM;
    memset(*out, 0xA5, (size_t)want->bytes);
    a->bytes[a->n] = want->bytes;
    a->v[a->n++] = *out;
    return MOEC_OK;
}

static inline void load_arena_free(load_arena *a)
{
    while (a->n > 0)
        free(a->v[--a->n]);
}

static inline moec_job_opts load_opts(void)
{
    moec_job_opts o = MOEC_JOB_OPTS_INIT;

    o.n_threads = 2;
    o.ring_bytes = 4u << 20;
    return o;
}

/* ------------------------------------------------------------- the truth */

static inline const moec_ckpt *load_truth(const load_case *c)
{
    return c->truth != NULL ? c->truth
                            : moec_model_ckpt(moec_plan_model(c->plan));
}

static inline moec_status load_read(void *ctx, uint32_t tensor, uint64_t off,
                                    void *buf, size_t n, moec_error *err)
{
    return moec_ckpt_read(ctx, tensor, off, buf, n, err);
}

/* The block of (layer, t) with `unit`, dense; to be freed. */
static inline unsigned char *load_block(const load_case *c, size_t layer,
                                        size_t t, uint32_t unit)
{
    const moec_slot_tensor *s = moec_plan_slot_tensor(c->plan, layer, t);
    unsigned char *out = calloc(1, (size_t)s->slot_bytes + 1);
    moec_move moves[MOEC_BLOCK_MOVES_MAX];
    moec_error err = MOEC_ERROR_INIT;
    moec_scratch scratch = {0};
    size_t n = moec_plan_block_moves(c->plan, layer, t, unit, moves);

    assert_non_null(out);
    load_ok(moec_block_read(moves, n, 0, s->slot_bytes, out, load_read,
                            (void *)(uintptr_t)load_truth(c), &scratch, &err),
            &err);
    moec_scratch_fini(&scratch);
    return out;
}

/* Row 0 of the tensor is at data, rows follow densely. */
static inline void load_compare_slots(const load_case *c, uint32_t rank,
                                      size_t layer, size_t t,
                                      const unsigned char *data)
{
    const moec_slot_tensor *s = moec_plan_slot_tensor(c->plan, layer, t);

    assert_non_null(data);
    for (uint32_t row = 0; row < s->shape[0]; row++) {
        uint32_t unit = moec_plan_row_unit(c->plan, layer, t, rank, row);
        unsigned char *want = load_block(c, layer, t, unit);

        if (memcmp(data + row * s->slot_bytes, want, (size_t)s->slot_bytes))
            fail_msg("%s row %u (unit %u) differs", s->name, row, unit);
        free(want);
    }
}

static inline void load_compare_layer(const load_case *c, const moec_job *job,
                                      uint32_t rank, size_t layer)
{
    for (size_t t = 0; t < moec_plan_n_slot_tensors(c->plan, layer); t++)
        load_compare_slots(c, rank, layer, t,
                           moec_job_slots_data(job, layer, t));
}

static inline void load_compare_tensor(const load_case *c, size_t tensor,
                                       const void *data)
{
    const moec_tensor *t = moec_ckpt_tensor(load_truth(c), tensor);
    unsigned char *want = malloc((size_t)t->bytes + 1);
    moec_error err = MOEC_ERROR_INIT;

    assert_non_null(want);
    load_ok(
        moec_ckpt_read(load_truth(c), tensor, 0, want, (size_t)t->bytes, &err),
        &err);
    if (memcmp(data, want, (size_t)t->bytes) != 0)
        fail_msg("tensor %s differs", t->name);
    free(want);
}

static inline void load_compare_common(const load_case *c, const moec_job *job)
{
    for (size_t i = 0; i < moec_ckpt_n_tensors(load_truth(c)); i++)
        if (moec_plan_fate(c->plan, i) == MOEC_FATE_COMMON)
            load_compare_tensor(c, i, moec_job_tensor_data(job, i));
}

/* Convert into dir/out and open that; the plan stays the layout's, the bytes
 * come from the files from now on. */
static inline void load_convert(load_case *c, const moec_layout *layout,
                                const tmpdir *dir)
{
    moec_convert_opts o = {.n_threads = 2};
    moec_convert_stats stats;
    moec_error err = MOEC_ERROR_INIT;

    load_ok(moec_convert(layout, tmpdir_path(dir, "out"), &o, &stats, &err),
            &err);
    load_ok(moec_conversion_open(&c->conversion, tmpdir_path(dir, "out"), NULL,
                                 &err),
            &err);
    c->truth = moec_model_ckpt(moec_plan_model(moec_layout_plan(layout)));
    c->plan = moec_layout_plan(moec_conversion_layout(c->conversion));
}

#endif
