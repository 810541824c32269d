/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The way back: output files are made in memory by the forward moves, and
 * every source tensor of every fixture must come back from them.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"
#include "execute.h"
#include "inverse.h"
#include "plan_fixture.h"

typedef struct outputs {
    plan_fixture x;
    unsigned char **files;
} outputs;

static moec_status read_ckpt(void *ctx, uint32_t tensor, uint64_t off,
                             void *buf, size_t n, moec_error *err)
{
    return moec_ckpt_read(ctx, tensor, off, buf, n, err);
}

static void fill_slots(outputs *o, size_t file, const moec_out_tensor *t)
{
    const moec_slot_tensor *s =
        moec_plan_slot_tensor(o->x.plan, t->layer, t->t);
    uint32_t rank = moec_layout_file(o->x.layout, file)->rank;
    moec_error err = MOEC_ERROR_INIT;
    moec_scratch scratch = {0};

    for (uint32_t row = 0; row < s->shape[0]; row++) {
        moec_move moves[MOEC_BLOCK_MOVES_MAX];
        uint32_t unit =
            moec_plan_unit(o->x.plan, t->layer, rank, (moec_local_row){row});
        size_t n =
            moec_plan_block_moves(o->x.plan, t->layer, t->t, unit, moves);

        if (moec_block_read(moves, n, 0, s->slot_bytes,
                            o->files[file] + t->off + row * s->slot_bytes,
                            read_ckpt, o->x.ckpt, &scratch, &err) != MOEC_OK)
            fail_msg("%s", err.text);
    }
    moec_scratch_fini(&scratch);
}

static outputs make(const char *fixture, const moec_plan_opts *opts)
{
    moec_error err = MOEC_ERROR_INIT;
    outputs o = {.x = plan_fixture_open(fixture, opts)};
    size_t n = moec_layout_n_files(o.x.layout);

    o.files = calloc(n, sizeof(*o.files));
    for (size_t i = 0; i < n; i++) {
        const moec_out_file *f = moec_layout_file(o.x.layout, i);

        o.files[i] = malloc((size_t)f->bytes);
        memset(o.files[i], 0xa5, (size_t)f->bytes);
        for (size_t k = 0; k < f->n_tensors; k++) {
            const moec_out_tensor *t = &f->tensors[k];
            if (t->kind == MOEC_OUT_SLOTS)
                fill_slots(&o, i, t);
            else if (t->kind == MOEC_OUT_COMMON)
                assert_int_equal(moec_ckpt_read(o.x.ckpt, (size_t)t->source, 0,
                                                o.files[i] + t->off,
                                                (size_t)t->bytes, &err),
                                 MOEC_OK);
        }
    }
    return o;
}

static void unmake(outputs *o)
{
    for (size_t i = 0; i < moec_layout_n_files(o->x.layout); i++)
        free(o->files[i]);
    free(o->files);
    plan_fixture_close(&o->x);
}

typedef struct reader {
    const outputs *o;
    const moec_inverse *v;
} reader;

static moec_status read_file(void *ctx, uint32_t tensor, uint64_t off,
                             void *buf, size_t n, moec_error *err)
{
    const reader *r = ctx;
    const moec_inverse_from *from = &r->v->from[tensor];

    (void)err;
    assert_true(tensor < r->v->n_moves);
    assert_true(off + n <= from->bytes);
    assert_true(from->off + from->bytes <=
                moec_layout_file(r->o->x.layout, from->file)->bytes);
    memcpy(buf, r->o->files[from->file] + from->off + off, n);
    return MOEC_OK;
}

/* Take tensor `i` back in ranges of `step` bytes and compare. */
static void compare_tensor(const outputs *o, size_t i, uint64_t step)
{
    const moec_tensor *t = moec_ckpt_tensor(o->x.ckpt, i);
    unsigned char *want = malloc((size_t)t->bytes + 1);
    unsigned char *got = malloc((size_t)t->bytes + 1);
    size_t n_blocks = moec_inverse_n_blocks(o->x.layout, i);
    moec_inverse *v = malloc(sizeof(*v));
    moec_error err = MOEC_ERROR_INIT;
    moec_scratch scratch = {0};
    uint64_t at = 0;

    assert_int_equal(
        moec_ckpt_read(o->x.ckpt, i, 0, want, (size_t)t->bytes, &err), 0);
    memset(got, 0x5a, (size_t)t->bytes);
    for (size_t b = 0; b < n_blocks; b++) {
        reader r = {o, v};

        if (moec_inverse_block(o->x.layout, i, b, v, &err) != MOEC_OK)
            fail_msg("%s", err.text);
        assert_int_equal(v->off, at);
        for (uint64_t from = 0; from < v->bytes; from += step) {
            uint64_t to = moec_min_u64(from + step, v->bytes);
            assert_int_equal(moec_block_read(v->moves, v->n_moves, from, to,
                                             got + at + from, read_file, &r,
                                             &scratch, &err),
                             MOEC_OK);
        }
        at += v->bytes;
    }
    assert_int_equal(at, t->bytes);
    if (memcmp(got, want, (size_t)t->bytes) != 0)
        fail_msg("'%s' does not come back", t->name);
    moec_scratch_fini(&scratch);
    free(v);
    free(want);
    free(got);
}

static void compare_all(const char *fixture, const moec_plan_opts *opts)
{
    outputs o = make(fixture, opts);

    for (size_t i = 0; i < moec_ckpt_n_tensors(o.x.ckpt); i++) {
        compare_tensor(&o, i, UINT64_MAX / 2);
        compare_tensor(&o, i, 1000);
    }
    unmake(&o);
}

static void every_fixture_comes_back(void **state)
{
    moec_plan_opts o = plan_fixture_opts();

    (void)state;
    for (size_t i = 0; i < PLAN_FIXTURES; i++)
        compare_all(plan_fixture_names[i], &o);
}

static void up_before_gate_comes_back(void **state)
{
    moec_plan_opts o = plan_fixture_opts();

    (void)state;
    o.w13_order = MOEC_W13_UP_GATE;
    compare_all("gpt_oss", &o);
    compare_all("llama4", &o);
    compare_all("qwen2_moe", &o);
}

static void the_expert_store_and_the_shared_store_come_back(void **state)
{
    moec_plan_opts o = plan_fixture_opts();

    (void)state;
    o.shared_store_common = 1;
    compare_all("qwen2_moe", &o);
    o.n_redundant = 0;
    o.by_expert = 1;
    o.shared_store_common = 0;
    compare_all("deepseek_v3", &o);
    compare_all("dbrx", &o);
}

static void stacked_tensors_have_a_block_per_expert(void **state)
{
    moec_plan_opts o = plan_fixture_opts();
    plan_fixture x = plan_fixture_open("dbrx", &o);
    size_t w1 =
        moec_ckpt_find(x.ckpt, "transformer.blocks.0.ffn.experts.mlp.w1");
    size_t router =
        moec_ckpt_find(x.ckpt, "transformer.blocks.0.ffn.router.layer.weight");

    (void)state;
    assert_int_equal(moec_inverse_n_blocks(x.layout, w1), 8);
    assert_int_equal(moec_inverse_n_blocks(x.layout, router), 1);
    plan_fixture_close(&x);
}

/* Expert 0 stands in physical slots 0 and 16: slot 0 is on rank 0. */
static void the_first_replica_serves(void **state)
{
    moec_plan_opts o = plan_fixture_opts();
    plan_fixture x = plan_fixture_open("deepseek_v3", &o);
    size_t i =
        moec_ckpt_find(x.ckpt, "model.layers.1.mlp.experts.0.down_proj.weight");
    moec_inverse *v = malloc(sizeof(*v));
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    assert_int_equal(moec_placement_row(moec_plan_placement(x.plan), 0)[16], 0);
    assert_int_equal(moec_inverse_block(x.layout, i, 0, v, &err), MOEC_OK);
    assert_int_equal(v->n_moves, 1);
    assert_int_equal(moec_layout_file(x.layout, v->from[0].file)->rank, 0);
    free(v);
    plan_fixture_close(&x);
}

/* Gate and up of the shared expert: four parts of one tensor. */
static void a_split_shared_expert_is_one_block_of_its_parts(void **state)
{
    moec_plan_opts o = plan_fixture_opts();
    plan_fixture x = plan_fixture_open("qwen2_moe", &o);
    size_t i = moec_ckpt_find(
        x.ckpt, "model.layers.0.mlp.shared_expert.down_proj.weight");
    moec_inverse *v = malloc(sizeof(*v));
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    assert_int_equal(moec_inverse_n_blocks(x.layout, i), 1);
    assert_int_equal(moec_inverse_block(x.layout, i, 0, v, &err), MOEC_OK);
    assert_int_equal(v->n_moves, 4);
    assert_int_equal(v->bytes, 64 * 128 * 2);
    free(v);
    plan_fixture_close(&x);
}

static void refuses_what_was_left_out(void **state)
{
    moec_plan_opts o = plan_fixture_opts();
    moec_inverse *v = malloc(sizeof(*v));
    moec_error err = MOEC_ERROR_INIT;
    plan_fixture x;
    size_t i;

    (void)state;
    o.no_mtp = 1;
    x = plan_fixture_open("deepseek_v3", &o);
    i = moec_ckpt_find(x.ckpt, "model.layers.3.mlp.experts.0.down_proj.weight");
    assert_true(i != SIZE_MAX);
    assert_int_equal(moec_inverse_n_blocks(x.layout, i), 0);
    assert_int_equal(moec_inverse_block(x.layout, i, 0, v, &err),
                     MOEC_E_UNSUPPORTED);
    assert_int_equal(err.rule, MOEC_RULE_M09);
    free(v);
    plan_fixture_close(&x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_fixture_comes_back),
        cmocka_unit_test(up_before_gate_comes_back),
        cmocka_unit_test(the_expert_store_and_the_shared_store_come_back),
        cmocka_unit_test(stacked_tensors_have_a_block_per_expert),
        cmocka_unit_test(the_first_replica_serves),
        cmocka_unit_test(a_split_shared_expert_is_one_block_of_its_parts),
        cmocka_unit_test(refuses_what_was_left_out),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
