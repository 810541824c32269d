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

#include <sys/stat.h>

#include "base/base.h"
#include "convert.h"
#include "execute.h"
#include "plan_fixture.h"
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

/* ------------------------------------------------------------ long slots */

#define LOAD_LONG_E 4
#define LOAD_LONG_H 1024
#define LOAD_LONG_I 600

/* Append a BF16 tensor of r x c to the header. */
static inline void load_long_entry(moec_buf *b, const char *name, uint64_t r,
                                   uint64_t c, uint64_t *at)
{
    moec_buf_printf(b,
                    "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":[%llu,%llu],"
                    "\"data_offsets\":[%llu,%llu]}",
                    *at == 0 ? "" : ",", name, (unsigned long long)r,
                    (unsigned long long)c, (unsigned long long)*at,
                    (unsigned long long)(*at + 2 * r * c));
    *at += 2 * r * c;
}

/* A checkpoint in dir/src whose slots and one common tensor have several
 * leaves, begin at odd places of the file, and repeat no bytes. */
static inline void load_long_tree(const tmpdir *dir)
{
    static const char config[] =
        "{\"model_type\":\"qwen3_moe\",\"num_experts\":4,"
        "\"num_experts_per_tok\":2,\"hidden_size\":1024,"
        "\"moe_intermediate_size\":600,\"num_hidden_layers\":1,"
        "\"decoder_sparse_step\":1,\"mlp_only_layers\":[],"
        "\"norm_topk_prob\":true,\"hidden_act\":\"silu\"}";
    static const char *const part[] = {"gate", "up", "down"};
    moec_buf b = {0}, path = {0};
    uint64_t at = 0, x = 88172645463325252u, n;
    unsigned char *data;
    FILE *f;

    moec_buf_puts(&b, "{");
    load_long_entry(&b, "model.embed_tokens.weight", 1301, LOAD_LONG_H, &at);
    load_long_entry(&b, "model.layers.0.mlp.gate.weight", LOAD_LONG_E,
                    LOAD_LONG_H, &at);
    for (int e = 0; e < LOAD_LONG_E; e++)
        for (int k = 0; k < 3; k++) {
            char name[128];
            snprintf(name, sizeof(name),
                     "model.layers.0.mlp.experts.%d.%s_proj.weight", e,
                     part[k]);
            load_long_entry(&b, name, k < 2 ? LOAD_LONG_I : LOAD_LONG_H,
                            k < 2 ? LOAD_LONG_H : LOAD_LONG_I, &at);
        }
    moec_buf_puts(&b, "}");
    assert_int_equal(mkdir(tmpdir_path(dir, "src"), 0777), 0);
    moec_buf_printf(&path, "%s/model.safetensors", tmpdir_path(dir, "src"));
    f = fopen(path.data, "wb");
    assert_non_null(f);
    n = b.len;
    fwrite(&n, 8, 1, f);
    fwrite(b.data, 1, b.len, f);
    data = malloc((size_t)at);
    assert_non_null(data);
    for (uint64_t i = 0; i < at; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        data[i] = (unsigned char)x;
    }
    fwrite(data, 1, (size_t)at, f);
    assert_int_equal(fclose(f), 0);
    free(data);
    path.len = 0;
    moec_buf_printf(&path, "%s/config.json", tmpdir_path(dir, "src"));
    f = fopen(path.data, "wb");
    assert_non_null(f);
    fputs(config, f);
    assert_int_equal(fclose(f), 0);
    moec_buf_fini(&path);
    moec_buf_fini(&b);
}

/* Open it down to its layout. */
static inline plan_fixture load_long_open(const tmpdir *dir)
{
    moec_plan_opts o = plan_fixture_opts();
    moec_error err = MOEC_ERROR_INIT;
    moec_families *families = NULL;
    plan_fixture x = {0};

    load_ok(moec_families_create(&families, &err), &err);
    load_ok(moec_ckpt_open(&x.ckpt, tmpdir_path(dir, "src"), NULL, &err), &err);
    load_ok(moec_model_open(&x.model, x.ckpt, families, &err), &err);
    load_ok(moec_plan_create(&x.plan, x.model, &o, &err), &err);
    load_ok(moec_layout_create(&x.layout, x.plan, 0, &err), &err);
    moec_families_destroy(families);
    return x;
}

/* ----------------------------------------------------- a fixture, converted */

/* One fixture with its conversion, for all tests of a program. */
typedef struct load_fixture {
    plan_fixture x;
    tmpdir dir;
    load_case hf, conv;
} load_fixture;

static inline void load_fixture_open(load_fixture *t)
{
    moec_plan_opts o = plan_fixture_opts();

    t->x = plan_fixture_open("deepseek_v3_fp8", &o);
    t->dir = tmpdir_make();
    t->hf.plan = t->x.plan;
    load_convert(&t->conv, t->x.layout, &t->dir);
}

static inline void load_fixture_close(load_fixture *t)
{
    moec_conversion_close(t->conv.conversion);
    tmpdir_remove(&t->dir);
    plan_fixture_close(&t->x);
}

#endif
