/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The theorems of level 1: they hold for every fixture under every kind of
 * topology, and each of them can fail. A mutation changes the snapshot that is
 * proved, never the plan; its row says which rule must name it.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "origin.h"
#include "plan_fixture.h"
#include "report.h"
#include "theorems.h"

/* --------------------------------------------------------------- proving */

typedef struct subject {
    plan_fixture x;
    moec_proof p;
    moec_proof_layer l; /* the first planned layer */
    moec_out_file *files;
    moec_out_tensor *tensors; /* of files[0] */
    size_t n_files;
} subject;

static subject open_subject(const char *name, const moec_plan_opts *opts)
{
    moec_error err = MOEC_ERROR_INIT;
    subject s = {.x = plan_fixture_open(name, opts)};

    if (moec_proof_open(&s.p, s.x.plan, &err) != MOEC_OK ||
        moec_proof_layer_open(&s.l, s.x.plan, 0, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    s.n_files = moec_layout_n_files(s.x.layout);
    s.files = calloc(s.n_files, sizeof(*s.files));
    for (size_t i = 0; i < s.n_files; i++)
        s.files[i] = *moec_layout_file(s.x.layout, i);
    s.tensors = calloc(s.files[0].n_tensors, sizeof(*s.tensors));
    memcpy(s.tensors, s.files[0].tensors,
           s.files[0].n_tensors * sizeof(*s.tensors));
    s.files[0].tensors = s.tensors;
    return s;
}

static void close_subject(subject *s)
{
    moec_proof_layer_close(&s->l);
    moec_proof_close(&s->p);
    plan_fixture_close(&s->x);
    free(s->files);
    free(s->tensors);
}

static moec_report *prove(subject *s)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_report *r = NULL;
    moec_status st = moec_report_create(&r, &err);

    for (size_t i = 0; st == MOEC_OK && i < s->p.n_layers; i++) {
        moec_proof_layer l;

        if (i == 0) {
            st = moec_prove_layer(r, &s->p, &s->l, &err);
            continue;
        }
        st = moec_proof_layer_open(&l, s->x.plan, i, &err);
        if (st == MOEC_OK)
            st = moec_prove_layer(r, &s->p, &l, &err);
        moec_proof_layer_close(&l);
    }
    if (st == MOEC_OK)
        moec_prove_sources(r, &s->p);
    if (st == MOEC_OK)
        st = moec_prove_files(r, &s->p, s->x.plan, s->files, s->n_files, &err);
    if (st == MOEC_OK)
        st = moec_report_finish(r, &err);
    if (st != MOEC_OK)
        fail_msg("%s", err.text);
    return r;
}

static const moec_finding *find_rule(const moec_report *r, moec_rule rule)
{
    for (size_t i = 0; i < moec_report_n_findings(r); i++)
        if (moec_report_finding(r, i)->rule == rule)
            return moec_report_finding(r, i);
    return NULL;
}

/* ------------------------------------------------------------- they hold */

static moec_plan_opts topology(uint32_t i)
{
    moec_plan_opts o = plan_fixture_opts();

    o.w13_order = i % 2 ? MOEC_W13_UP_GATE : MOEC_W13_GATE_UP;
    switch (i) {
    case 0: /* one rank, no replicas */
        o.n_ranks = 1;
        o.n_redundant = 0;
        break;
    case 1:
        break;
    case 2: /* E is not a multiple of 3 in any fixture but 12 */
        o.n_ranks = 3;
        o.n_redundant = 0;
        o.allow_empty = 1;
        break;
    case 3:
        o.shared = MOEC_SHARED_SLOTS_OFF;
        break;
    case 4:
        o.no_mtp = 1;
        break;
    default: /* the expert store */
        o.by_expert = 1;
        o.n_redundant = 0;
    }
    return o;
}

static void hold_for_every_fixture_and_topology(void **state)
{
    (void)state;
    for (size_t i = 0; i < PLAN_FIXTURES; i++)
        for (uint32_t k = 0; k < 6; k++) {
            moec_plan_opts o = topology(k);
            subject s = open_subject(plan_fixture_names[i], &o);
            moec_report *r = prove(&s);
            static const int ran[] = {1, 1, 0, 1, 1, 0};

            if (moec_report_n_findings(r) != 0)
                fail_msg("%s, topology %u: %s", plan_fixture_names[i], k,
                         moec_report_finding(r, 0)->message);
            for (size_t t = 0; t < 6; t++) {
                assert_int_equal(moec_report_theorem(r, t)->ran, ran[t]);
                assert_int_equal(moec_report_theorem(r, t)->ok, ran[t]);
            }
            assert_int_equal(moec_report_theorem(r, 0)->checked,
                             moec_ckpt_n_tensors(s.x.ckpt));
            moec_report_destroy(r);
            close_subject(&s);
        }
}

/* A shared expert kept once, where the family has one that fuses. */
static void hold_for_a_common_shared_store(void **state)
{
    static const char *const names[] = {"deepseek_v2", "deepseek_v3",
                                        "qwen2_moe", "llama4"};

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        moec_plan_opts o = plan_fixture_opts();
        subject s;
        moec_report *r;

        o.shared_store_common = 1;
        s = open_subject(names[i], &o);
        r = prove(&s);
        assert_int_equal(moec_report_n_findings(r), 0);
        moec_report_destroy(r);
        close_subject(&s);
    }
}

/* Nine points of a move stand for all: here are all of them. */
static void check_every_byte(const subject *s, size_t t, uint32_t unit,
                             const moec_move *m)
{
    const moec_slice *sl = s->p.sources[m->tensor].slice;
    bool shared = unit >= s->p.n_experts;
    moec_origin o;
    uint32_t halves = 1;

    for (size_t i = 0; i < s->l.slices->n_slices; i++) {
        const moec_slice *a = &s->l.slices->slices[i];
        if (!s->l.tensors[t].is_w2 && a->role == sl->role &&
            strcmp(a->component, sl->component) == 0 &&
            (a->part == MOEC_PART_UP || a->part == MOEC_PART_GATE_UP))
            halves = 2;
    }
    assert_null(moec_origin_init(&o, &s->l.tensors[t], sl, halves,
                                 shared ? s->p.topo.n_shared_slots : 1,
                                 s->p.w13_order));
    for (uint64_t r = 0; r < m->n_rows; r++)
        for (uint64_t c = 0; c < m->n_cols; c++)
            for (uint64_t b = 0; b < m->elem_bytes; b++) {
                uint64_t dst = m->dst_off + r * m->dst_row + c * m->dst_col;
                uint64_t src = m->src_off + r * m->src_row + c * m->src_col;
                uint64_t base = !shared && sl->stacked ? unit * sl->bytes : 0,
                         want;

                if (!moec_origin_of(&o, shared ? unit - s->p.n_experts : 0,
                                    dst + b, &want) ||
                    base + want != src + b)
                    fail_msg("%s unit %u: byte %ju is from %ju",
                             s->l.tensors[t].name, unit, (uintmax_t)(dst + b),
                             (uintmax_t)(src + b));
            }
}

static void every_byte_of_every_move_has_its_origin(void **state)
{
    (void)state;
    for (size_t i = 0; i < PLAN_FIXTURES; i++) {
        moec_plan_opts o = topology(i % 2);
        subject s = open_subject(plan_fixture_names[i], &o);
        uint32_t units[] = {0, s.p.n_experts - 1, s.l.n_units - 1};

        for (size_t t = 0; t < s.l.n_tensors; t++)
            for (size_t k = 0; k < 3; k++) {
                const moec_proof_block *b =
                    &s.l.blocks[t * (s.l.n_units + 1u) + units[k]];
                for (size_t m = 0; m < b->n; m++)
                    check_every_byte(&s, t, units[k], &s.l.moves[b->first + m]);
            }
        close_subject(&s);
    }
}

/* -------------------------------------------------------------- mutations */

static moec_proof_block *block(subject *s, size_t t, uint32_t unit)
{
    return &s->l.blocks[t * (s->l.n_units + 1u) + unit];
}

static moec_move *move(subject *s, size_t t, uint32_t unit, size_t i)
{
    assert_true(i < block(s, t, unit)->n);
    return &s->l.moves[block(s, t, unit)->first + i];
}

/* Slot tensor by the end of its name. */
static size_t slot_tensor(const subject *s, const char *tail)
{
    for (size_t t = 0; t < s->l.n_tensors; t++) {
        const char *name = s->l.tensors[t].name;
        size_t n = strlen(name), k = strlen(tail);
        if (n >= k && strcmp(name + n - k, tail) == 0)
            return t;
    }
    fail_msg("no slot tensor '%s'", tail);
    return 0;
}

static size_t source(const subject *s, const char *tail)
{
    for (size_t i = 0; i < s->p.n_sources; i++) {
        const char *name = moec_ckpt_tensor(s->p.ckpt, i)->name;
        size_t n = strlen(name), k = strlen(tail);
        if (n >= k && strcmp(name + n - k, tail) == 0)
            return i;
    }
    fail_msg("no tensor '%s'", tail);
    return 0;
}

static uint32_t n_rows(const subject *s)
{
    return s->p.topo.n_local + s->p.shared_rows;
}

static void swap_u32(uint32_t *a, uint32_t *b)
{
    uint32_t t = *a;

    *a = *b;
    *b = t;
}

static void swap_slots(subject *s)
{
    swap_u32(&s->l.units[0], &s->l.units[1]);
}

static void swap_rank_files(subject *s)
{
    for (uint32_t i = 0; i < n_rows(s); i++)
        swap_u32(&s->l.units[i], &s->l.units[n_rows(s) + i]);
}

/* The defect of SGLang before PR 25367: an id counts as shared from E on,
 * where P is meant, so that redundant slots get the shared expert. */
static void e_for_p(subject *s)
{
    for (uint32_t p = s->p.n_experts; p < s->p.topo.n_physical; p++)
        s->l.units[p / s->p.topo.n_local * n_rows(s) + p % s->p.topo.n_local] =
            s->p.n_experts;
}

static void shared_first(subject *s)
{
    memmove(s->l.units + 1, s->l.units, (n_rows(s) - 1) * sizeof(*s->l.units));
    s->l.units[0] = s->p.n_experts;
}

static void shared_missing(subject *s)
{
    s->l.units[s->p.topo.n_local] = 0;
}

static void shared_parts_swapped(subject *s)
{
    swap_u32(&s->l.units[s->p.topo.n_local],
             &s->l.units[s->p.topo.n_local + 1]);
}

/* The placement itself forgets expert 3. */
static void expert_without_slot(subject *s)
{
    for (uint32_t i = 0; i < s->p.topo.n_ranks * n_rows(s); i++)
        if (s->l.units[i] == 3)
            s->l.units[i] = 4;
    for (uint32_t p = 0; p < s->l.n_p2l; p++)
        if (s->l.p2l[p] == 3)
            s->l.p2l[p] = 4;
}

static void unexpected_empty_slot(subject *s)
{
    s->l.units[0] = MOEC_UNIT_EMPTY;
}

static void wrong_n_physical(subject *s)
{
    s->p.topo.n_physical--;
}

static void wrong_number_of_rows(subject *s)
{
    s->l.tensors[0].shape[0]++;
}

static void drop_move(subject *s)
{
    block(s, 0, 2)->n--;
}

static void double_move(subject *s)
{
    *move(s, 0, 2, 1) = *move(s, 0, 2, 0);
}

static void move_beyond_the_slot(subject *s)
{
    move(s, 0, 2, 0)->n_rows++;
}

static void huge_move(subject *s)
{
    move(s, 0, 2, 0)->n_rows = UINT64_MAX;
    move(s, 0, 2, 0)->dst_row = UINT64_MAX / 3;
}

static void zero_strides(subject *s)
{
    move(s, 0, 2, 0)->dst_row = 0;
}

static void shift_source(subject *s)
{
    moec_move *m = move(s, slot_tensor(s, ".w2_weight"), 2, 0);

    m->src_off += m->elem_bytes;
}

static void source_beyond_the_tensor(subject *s)
{
    move(s, slot_tensor(s, ".w2_weight"), s->p.n_experts - 1, 0)->src_off +=
        move(s, slot_tensor(s, ".w2_weight"), 0, 0)->elem_bytes;
}

static void no_such_source(subject *s)
{
    move(s, 0, 2, 0)->tensor = (uint32_t)s->p.n_sources;
}

static void other_experts_tensor(subject *s)
{
    move(s, 0, 2, 0)->tensor = move(s, 0, 5, 0)->tensor;
}

static void other_experts_slice(subject *s)
{
    move(s, 0, 2, 0)->src_off = move(s, 0, 5, 0)->src_off;
}

static void gate_and_up_swapped(subject *s)
{
    swap_u32(&move(s, 0, 2, 0)->tensor, &move(s, 0, 2, 1)->tensor);
}

static void wrong_w13_order(subject *s)
{
    s->p.w13_order = MOEC_W13_UP_GATE;
}

static void interleaving_kept(subject *s)
{
    size_t t = slot_tensor(s, ".w13_bias");
    moec_move *a = move(s, t, 1, 0), *b = move(s, t, 1, 1);
    uint64_t half = b->dst_off - a->dst_off;

    a->src_row = a->src_row / 2;
    b->src_row = b->src_row / 2;
    b->src_off = a->src_off + half;
}

static void transposed_down(subject *s)
{
    moec_move *m = move(s, slot_tensor(s, ".w2_weight"), 2, 0);
    uint64_t h = s->l.tensors[slot_tensor(s, ".w2_weight")].shape[1];
    uint64_t i = s->l.tensors[slot_tensor(s, ".w2_weight")].shape[2];

    m->op = MOEC_OP_TRANSPOSE;
    m->n_rows = h;
    m->n_cols = i;
    m->src_row = m->elem_bytes;
    m->src_col = h * m->elem_bytes;
    m->dst_row = i * m->elem_bytes;
    m->dst_col = m->elem_bytes;
}

static void transposed_down_as_copy(subject *s)
{
    transposed_down(s);
    move(s, slot_tensor(s, ".w2_weight"), 2, 0)->op = MOEC_OP_COPY;
}

/* The other way round: a transposition is left out. I == H: no shape tells. */
static void transposition_forgotten(subject *s)
{
    moec_move *m = move(s, slot_tensor(s, ".w2_weight"), 2, 0);
    uint64_t t = m->src_row;

    m->src_row = m->src_col;
    m->src_col = t;
}

static void elements_cut(subject *s)
{
    moec_move *m = move(s, slot_tensor(s, ".w2_weight"), 2, 0);

    m->elem_bytes = 1;
    m->src_col = 1;
    m->dst_col = 1;
    m->n_cols *= 2;
}

static void bf16_as_f16(subject *s)
{
    s->l.tensors[0].dtype = MOEC_DTYPE_F16;
}

static void wrong_shape(subject *s)
{
    s->l.tensors[0].shape[1] /= 2;
    s->l.tensors[0].shape[2] *= 2;
}

static void wrong_slot_bytes(subject *s)
{
    s->l.tensors[0].slot_bytes *= 2;
}

static void wrong_name(subject *s)
{
    s->l.tensors[0].name = "model.layers.7.mlp.experts.w13_weight";
}

static void scale_dropped(subject *s)
{
    assert_int_equal(slot_tensor(s, ".w2_weight_scale_inv"),
                     s->l.n_tensors - 1);
    s->l.n_tensors--;
}

static void scale_of_neighbour(subject *s)
{
    size_t t = slot_tensor(s, ".w2_weight_scale_inv");

    move(s, t, 2, 0)->tensor = move(s, t, 3, 0)->tensor;
}

static void zeros_for_an_expert(subject *s)
{
    *move(s, 0, 2, 0) = *move(s, 0, s->l.n_units, 0);
    block(s, 0, 2)->n = 1;
}

static void layer_off_by_one(subject *s)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_proof_layer next;

    assert_int_equal(moec_proof_layer_open(&next, s->x.plan, 1, &err), MOEC_OK);
    assert_int_equal(next.n_moves, s->l.n_moves);
    memcpy(s->l.moves, next.moves, next.n_moves * sizeof(*next.moves));
    moec_proof_layer_close(&next);
}

static void mtp_as_main(subject *s)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_proof_layer mtp;

    assert_int_equal(
        moec_proof_layer_open(&mtp, s->x.plan, s->p.n_layers - 1, &err),
        MOEC_OK);
    assert_int_equal(mtp.key.space, MOEC_SPACE_MTP);
    memcpy(s->l.moves, mtp.moves, mtp.n_moves * sizeof(*mtp.moves));
    moec_proof_layer_close(&mtp);
}

static void router_bias_dropped(subject *s)
{
    s->p.sources[source(s, "e_score_correction_bias")].fate = MOEC_FATE_SKIPPED;
}

static void common_tensor_as_moved(subject *s)
{
    s->p.sources[source(s, "lm_head.weight")].fate = MOEC_FATE_MOVED;
}

static void routed_tensor_as_common(subject *s)
{
    s->p.sources[source(s, ".experts.0.down_proj.weight")].fate =
        MOEC_FATE_COMMON;
}

static void file_tensor_moved(subject *s)
{
    s->tensors[1].off += 4096;
}

static void file_tensor_dropped(subject *s)
{
    s->files[0].n_tensors--;
}

static void file_tensor_of_another_layer(subject *s)
{
    assert_int_equal(s->tensors[0].kind, MOEC_OUT_SLOTS);
    s->tensors[0].layer++;
}

static void file_of_another_rank(subject *s)
{
    s->files[0].rank = 1;
}

static void file_cut(subject *s)
{
    s->files[0].bytes--;
}

static void common_file_dropped(subject *s)
{
    s->n_files--;
}

/* ------------------------------------------------------------- the table */

static const struct mutation {
    const char *name, *fixture;
    void (*change)(subject *s);
    moec_rule rule;
} mutations[] = {
#define ROW(change, fixture, rule)                                             \
  {                                                                            \
#    change, fixture, change, MOEC_RULE_##rule                                 \
  }
    ROW(swap_slots, "mixtral", T4),
    ROW(swap_rank_files, "mixtral", T4),
    ROW(e_for_p, "deepseek_v3", T4),
    ROW(shared_first, "deepseek_v3", T4),
    ROW(shared_missing, "deepseek_v3", T4),
    ROW(shared_parts_swapped, "qwen2_moe", T4),
    ROW(expert_without_slot, "mixtral", T4),
    ROW(expert_without_slot, "mixtral", T1),
    ROW(unexpected_empty_slot, "mixtral", T4),
    ROW(wrong_n_physical, "mixtral", T4),
    ROW(wrong_number_of_rows, "mixtral", T4),
    ROW(drop_move, "deepseek_v3", T2),
    ROW(drop_move, "gpt_oss", T2),
    ROW(double_move, "deepseek_v3", T2),
    ROW(move_beyond_the_slot, "deepseek_v3", T2),
    ROW(huge_move, "deepseek_v3", T2),
    ROW(zero_strides, "deepseek_v3", T2),
    ROW(shift_source, "dbrx", T3),
    ROW(shift_source, "dbrx", T1),
    ROW(shift_source, "gpt_oss", T1),
    ROW(source_beyond_the_tensor, "dbrx", T5),
    ROW(source_beyond_the_tensor, "deepseek_v3", T5),
    ROW(no_such_source, "mixtral", T5),
    ROW(other_experts_tensor, "deepseek_v3", T3),
    ROW(other_experts_tensor, "deepseek_v3", T1),
    ROW(other_experts_slice, "dbrx", T3),
    ROW(other_experts_slice, "llama4", T3),
    ROW(other_experts_slice, "llama4", T1),
    ROW(gate_and_up_swapped, "deepseek_v3", T3),
    ROW(wrong_w13_order, "deepseek_v3", T3),
    ROW(wrong_w13_order, "gpt_oss", T3),
    ROW(wrong_w13_order, "llama4", T3),
    ROW(interleaving_kept, "gpt_oss", T3),
    ROW(transposed_down, "deepseek_v3", T5),
    ROW(transposed_down_as_copy, "deepseek_v3", T5),
    ROW(transposition_forgotten, "gpt_oss", T3),
    ROW(elements_cut, "deepseek_v3", T5),
    ROW(bf16_as_f16, "mixtral", T5),
    ROW(wrong_shape, "deepseek_v3", T5),
    ROW(wrong_slot_bytes, "deepseek_v3", T2),
    ROW(wrong_slot_bytes, "deepseek_v3", T5),
    ROW(wrong_name, "deepseek_v3", T5),
    ROW(scale_dropped, "deepseek_v3_fp8", T1),
    ROW(scale_of_neighbour, "deepseek_v3_fp8", T3),
    ROW(zeros_for_an_expert, "mixtral", T3),
    ROW(layer_off_by_one, "deepseek_v3", T3),
    ROW(layer_off_by_one, "deepseek_v3", T1),
    ROW(mtp_as_main, "deepseek_v3", T3),
    ROW(router_bias_dropped, "deepseek_v3", T1),
    ROW(common_tensor_as_moved, "deepseek_v3", T1),
    ROW(routed_tensor_as_common, "deepseek_v3", T1),
    ROW(file_tensor_moved, "deepseek_v3", T2),
    ROW(file_tensor_dropped, "deepseek_v3", T2),
    ROW(file_tensor_of_another_layer, "deepseek_v3", T2),
    ROW(file_of_another_rank, "deepseek_v3", T2),
    ROW(file_cut, "deepseek_v3", T2),
    ROW(common_file_dropped, "deepseek_v3", T1),
#undef ROW
};

static void each_mutation_is_named_by_its_rule(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(mutations) / sizeof(*mutations); i++) {
        const struct mutation *m = &mutations[i];
        moec_plan_opts o = plan_fixture_opts();
        subject s = open_subject(m->fixture, &o);
        moec_report *r;

        m->change(&s);
        r = prove(&s);
        if (find_rule(r, m->rule) == NULL)
            fail_msg("%s of %s: %zu findings, none of them %s; first: %s",
                     m->name, m->fixture, moec_report_n_findings(r),
                     moec_rule_describe(m->rule)->id,
                     moec_report_n_findings(r) == 0
                         ? "-"
                         : moec_report_finding(r, 0)->message);
        assert_false(moec_report_ok(r));
        moec_report_destroy(r);
        close_subject(&s);
    }
}

static void a_finding_says_where(void **state)
{
    moec_plan_opts o = plan_fixture_opts();
    subject s = open_subject("deepseek_v3", &o);
    const moec_finding *f;
    moec_report *r;

    (void)state;
    other_experts_tensor(&s);
    r = prove(&s);
    f = find_rule(r, MOEC_RULE_T3);
    assert_non_null(f);
    assert_int_equal(f->layer.number, 1);
    assert_int_equal(f->expert, 2);
    assert_string_equal(f->tensor, "model.layers.1.mlp.experts.w13_weight");
    assert_string_equal(f->found,
                        "model.layers.1.mlp.experts.5.gate_proj.weight");
    moec_report_destroy(r);
    close_subject(&s);
}

static void the_public_entry_gives_the_plans_warnings(void **state)
{
    moec_plan_opts o = plan_fixture_opts();
    moec_error err = MOEC_ERROR_INIT;
    moec_report *r = NULL;
    plan_fixture x;

    (void)state;
    o.n_ranks = 1; /* every replica is on its expert's own rank */
    x = plan_fixture_open("mixtral", &o);
    assert_int_equal(moec_plan_prove(&r, x.plan, &err), MOEC_OK);
    assert_true(moec_report_ok(r));
    assert_non_null(find_rule(r, MOEC_RULE_P09));
    assert_int_equal(find_rule(r, MOEC_RULE_P09)->severity,
                     MOEC_SEVERITY_WARNING);
    assert_non_null(moec_report_theorem(r, 2)->note);
    moec_report_destroy(r);
    plan_fixture_close(&x);
}

/* Out of memory at every allocation: an error each time, never a crash, never
 * a report that says less. */
static void survives_every_failing_allocation(void **state)
{
    moec_plan_opts o = plan_fixture_opts();
    plan_fixture x = plan_fixture_open("deepseek_v2", &o);
    uint64_t n = 1;

    (void)state;
    for (;; n++) {
        moec_error err = MOEC_ERROR_INIT;
        moec_report *r = NULL;
        moec_status st;

        moec_alloc_fail_at(n);
        st = moec_plan_prove(&r, x.plan, &err);
        moec_alloc_fail_at(0);
        if (st == MOEC_OK) {
            moec_report_destroy(r);
            break;
        }
        assert_int_equal(st, MOEC_E_NOMEM);
        assert_null(r);
    }
    assert_true(n > 10);
    plan_fixture_close(&x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hold_for_every_fixture_and_topology),
        cmocka_unit_test(hold_for_a_common_shared_store),
        cmocka_unit_test(every_byte_of_every_move_has_its_origin),
        cmocka_unit_test(each_mutation_is_named_by_its_rule),
        cmocka_unit_test(a_finding_says_where),
        cmocka_unit_test(the_public_entry_gives_the_plans_warnings),
        cmocka_unit_test(survives_every_failing_allocation),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
