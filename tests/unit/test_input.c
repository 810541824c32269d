/* SPDX-License-Identifier: Apache-2.0
 *
 * Both kinds of input say the same of one source: its files, and every byte of
 * its tensors and of a new plan's blocks, wherever a read begins and ends. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "ckpt.h"
#include "converted.h"
#include "input.h"
#include "tmpdir.h"

/* A source, a conversion of it, and what is to be made of either. */
typedef struct world {
    tmpdir dir;
    moec_ckpt *ckpt;
    moec_model *model;
    moec_families *families;
    moec_conversion *store;
    moec_plan *plans[2];
    moec_layout *layouts[2]; /* of the checkpoint, of the conversion */
    moec_input *in[2];
    moec_convert_opts opts[2];
    moec_worker worker;
} world;

static void make_layout(const moec_model *m, const moec_plan_opts *o,
                        moec_plan **plan, moec_layout **layout)
{
    assert_int_equal(moec_plan_create(plan, m, o, NULL), MOEC_OK);
    assert_int_equal(moec_layout_create(layout, *plan, 0, NULL), MOEC_OK);
}

/* Fixture `name`, converted by `first`; the inputs serve `second`. */
static world open_world(const char *name, const moec_plan_opts *first,
                        const moec_plan_opts *second)
{
    world w = {.dir = tmpdir_make()};
    moec_convert_stats stats;
    moec_plan *plan = NULL;
    moec_layout *layout = NULL;
    char path[1024];

    (void)snprintf(path, sizeof(path), "%s/checkpoints/%s", MOEC_TEST_FIXTURES,
                   name);
    assert_int_equal(moec_ckpt_open(&w.ckpt, path, NULL, NULL), MOEC_OK);
    assert_int_equal(moec_families_create(&w.families, NULL), MOEC_OK);
    assert_int_equal(moec_model_open(&w.model, w.ckpt, w.families, NULL),
                     MOEC_OK);
    make_layout(w.model, first, &plan, &layout);
    const char *out = tmpdir_path(&w.dir, "store");
    assert_int_equal(moec_convert(layout, out, &w.opts[0], &stats, NULL),
                     MOEC_OK);
    moec_layout_destroy(layout);
    moec_plan_destroy(plan);
    assert_int_equal(moec_conversion_open(&w.store, out, NULL, NULL), MOEC_OK);
    w.opts[1].source = w.store;
    make_layout(w.model, second, &w.plans[0], &w.layouts[0]);
    make_layout(
        moec_plan_model(moec_layout_plan(moec_conversion_layout(w.store))),
        second, &w.plans[1], &w.layouts[1]);
    return w;
}

static void open_inputs(world *w)
{
    for (int i = 0; i < 2; i++) {
        assert_int_equal(
            moec_input_create(&w->in[i], w->layouts[i], &w->opts[i], NULL),
            MOEC_OK);
        assert_int_equal(w->in[i]->kind->hire(w->in[i], 1, NULL), MOEC_OK);
    }
}

static void close_world(world *w)
{
    for (int i = 0; i < 2; i++) {
        moec_input_destroy(w->in[i]);
        moec_layout_destroy(w->layouts[i]);
        moec_plan_destroy(w->plans[i]);
    }
    moec_io_buf_fini(&w->worker.io);
    moec_scratch_fini(&w->worker.scratch);
    moec_conversion_close(w->store);
    moec_model_destroy(w->model);
    moec_families_destroy(w->families);
    moec_ckpt_close(w->ckpt);
    tmpdir_remove(&w->dir);
}

/* ------------------------------------------------------------------ files */

static void same_headers(const world *w)
{
    for (size_t i = 0; i < moec_ckpt_n_files(w->ckpt); i++) {
        size_t n = (size_t)moec_ckpt_file(w->ckpt, i)->header_bytes;
        char *a = calloc(1, n), *b = calloc(1, n);
        assert_int_equal(w->in[0]->kind->read_header(w->in[0], i, a, NULL),
                         MOEC_OK);
        assert_int_equal(w->in[1]->kind->read_header(w->in[1], i, b, NULL),
                         MOEC_OK);
        assert_memory_equal(a, b, n);
        assert_null(w->in[1]->kind->etag(w->in[1], i));
        free(a);
        free(b);
    }
}

static void same_extras(const world *w)
{
    assert_int_equal(w->in[0]->n_extra, w->in[1]->n_extra);
    for (size_t i = 0; i < w->in[0]->n_extra; i++) {
        moec_extra x[2];
        char data[2][64] = {{0}};
        for (int k = 0; k < 2; k++) {
            const moec_input *in = w->in[k];
            assert_int_equal(in->kind->open_extra(in, i, &x[k], NULL), MOEC_OK);
            assert_int_equal(moec_extra_read(&x[k], 1, data[k], 10, NULL),
                             MOEC_OK);
        }
        assert_string_equal(x[0].name, x[1].name);
        assert_int_equal(x[0].bytes, x[1].bytes);
        assert_memory_equal(data[0], data[1], sizeof(data[0]));
        moec_extra_close(&x[0]);
        moec_extra_close(&x[1]);
    }
}

static void gives_the_sources_files(void **state)
{
    moec_plan_opts first = MOEC_PLAN_OPTS_INIT, second = MOEC_PLAN_OPTS_INIT;
    moec_buf index[2] = {{0}, {0}};

    (void)state;
    first.by_expert = 1;
    second.n_ranks = 2;
    world w = open_world("qwen2_moe", &first, &second);
    open_inputs(&w);
    same_headers(&w);
    same_extras(&w);
    assert_string_equal(w.in[0]->index_name, w.in[1]->index_name);
    for (int k = 0; k < 2; k++)
        assert_int_equal(w.in[k]->kind->read_index(w.in[k], &index[k], NULL),
                         MOEC_OK);
    assert_int_equal(index[0].len, index[1].len);
    assert_memory_equal(index[0].data, index[1].data, index[0].len);
    moec_buf_fini(&index[0]);
    moec_buf_fini(&index[1]);
    close_world(&w);
}

/* ------------------------------------------------------------------ bytes */

/* Bytes [from, to), of a tensor where b is NULL, else of a block. */
static void same_range(world *w, uint32_t tensor, const moec_block_id *b,
                       uint64_t from, uint64_t to)
{
    size_t n = (size_t)(to - from);
    unsigned char *data[2];

    for (int k = 0; k < 2; k++) {
        moec_hand h = {0, &w->worker};
        moec_input *in = w->in[k];
        data[k] = calloc(1, n + 1);
        assert_non_null(data[k]);
        if (b != NULL)
            assert_int_equal(
                in->kind->read_block(in, h, *b, from, to, data[k], NULL),
                MOEC_OK);
        else
            assert_int_equal(
                in->kind->read_tensor(in, h, tensor, from, data[k], n, NULL),
                MOEC_OK);
    }
    assert_memory_equal(data[0], data[1], n);
    free(data[0]);
    free(data[1]);
}

/* Whole, and pieces that begin and end inside experts, on 8-byte borders. */
static void same_pieces(world *w, uint32_t tensor, const moec_block_id *b,
                        uint64_t bytes)
{
    uint64_t third = bytes / 3 / 8 * 8;

    same_range(w, tensor, b, 0, bytes);
    same_range(w, tensor, b, third, bytes);
    same_range(w, tensor, b, third, 2 * third);
}

static void same_everything(world *w)
{
    uint32_t n_units = moec_model_facts(w->model)->n_experts +
                       moec_plan_shared_rows(w->plans[0]);

    for (uint32_t i = 0; i < moec_ckpt_n_tensors(w->ckpt); i++)
        same_pieces(w, i, NULL, moec_ckpt_tensor(w->ckpt, i)->bytes);
    for (uint32_t l = 0; l < moec_plan_n_layers(w->plans[0]); l++)
        for (uint32_t t = 0; t < moec_plan_n_slot_tensors(w->plans[0], l); t++)
            for (uint32_t u = 0; u < n_units; u++) {
                moec_block_id b = {l, t, u};
                same_pieces(
                    w, 0, &b,
                    moec_plan_slot_tensor(w->plans[0], l, t)->slot_bytes);
            }
}

static void gives_every_byte_from_a_store(void **state)
{
    static const char *const names[] = {"qwen2_moe", "gpt_oss", "llama4",
                                        "deepseek_v3"};

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        moec_plan_opts first = MOEC_PLAN_OPTS_INIT;
        moec_plan_opts second = MOEC_PLAN_OPTS_INIT;
        first.by_expert = 1;
        second.n_ranks = 2;
        second.w13_order = MOEC_W13_UP_GATE;
        world w = open_world(names[i], &first, &second);
        open_inputs(&w);
        same_everything(&w);
        close_world(&w);
    }
}

/* Shared slots out of tensors, where no slot pairs with one. */
static void gives_shared_slots_out_of_tensors(void **state)
{
    moec_plan_opts first = MOEC_PLAN_OPTS_INIT, second = MOEC_PLAN_OPTS_INIT;

    (void)state;
    first.n_ranks = 2;
    first.shared = MOEC_SHARED_SLOTS_OFF;
    second.n_ranks = 4;
    world w = open_world("qwen2_moe", &first, &second);
    assert_true(moec_plan_shared_rows(w.plans[0]) > 0);
    open_inputs(&w);
    same_everything(&w);
    close_world(&w);
}

/* ---------------------------------------------------------------- refused */

static void refuses_what_was_left_out(void **state)
{
    moec_plan_opts first = MOEC_PLAN_OPTS_INIT, second = MOEC_PLAN_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    first.by_expert = 1;
    first.no_mtp = 1;
    second.n_ranks = 2;
    world w = open_world("deepseek_v3", &first, &second);
    assert_int_equal(
        moec_input_create(&w.in[1], w.layouts[1], &w.opts[1], &err),
        MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_M09);
    assert_null(w.in[1]);
    close_world(&w);
}

static void refuses_a_layout_of_another_model(void **state)
{
    moec_plan_opts first = MOEC_PLAN_OPTS_INIT, second = MOEC_PLAN_OPTS_INIT;

    (void)state;
    first.by_expert = 1;
    second.n_ranks = 2;
    world w = open_world("mixtral", &first, &second);
    assert_int_equal(moec_convert_check_source(w.layouts[0], w.store, NULL),
                     MOEC_E_ARG);
    assert_int_equal(moec_convert_check_source(w.layouts[1], w.store, NULL),
                     MOEC_OK);
    close_world(&w);
}

/* One changed byte in a slot is an error and never data. */
static void refuses_a_changed_byte(void **state)
{
    moec_plan_opts first = MOEC_PLAN_OPTS_INIT, second = MOEC_PLAN_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    moec_block_id b = {0, 0, 3};
    moec_hand h;
    size_t file;
    uint64_t off;
    char path[1100], byte;

    (void)state;
    first.by_expert = 1;
    second.n_ranks = 2;
    world w = open_world("mixtral", &first, &second);
    open_inputs(&w);
    const moec_layout *old = moec_conversion_layout(w.store);
    const moec_slot_tensor *s =
        moec_plan_slot_tensor(moec_layout_plan(old), 0, 0);
    moec_layout_find_slots(old, 0, 0, 0, &file, &off);
    off += 3 * s->slot_bytes + 17;
    (void)snprintf(path, sizeof(path), "%s/store/%s", w.dir.path,
                   moec_layout_file(old, file)->name);
    int fd = open(path, O_RDWR);
    assert_int_equal(pread(fd, &byte, 1, (off_t)off), 1);
    byte = (char)(byte ^ 1);
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)off), 1);
    close(fd);
    void *data = calloc(1, (size_t)s->slot_bytes);
    h = (moec_hand){0, &w.worker};
    assert_int_equal(
        w.in[1]->kind->read_block(w.in[1], h, b, 0, s->slot_bytes, data, &err),
        MOEC_E_INTEGRITY);
    assert_int_equal(err.rule, MOEC_RULE_T3);
    b.unit = 2; /* its neighbour is as it was */
    assert_int_equal(
        w.in[1]->kind->read_block(w.in[1], h, b, 0, s->slot_bytes, data, NULL),
        MOEC_OK);
    free(data);
    close_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gives_the_sources_files),
        cmocka_unit_test(gives_every_byte_from_a_store),
        cmocka_unit_test(gives_shared_slots_out_of_tensors),
        cmocka_unit_test(refuses_what_was_left_out),
        cmocka_unit_test(refuses_a_layout_of_another_model),
        cmocka_unit_test(refuses_a_changed_byte),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
