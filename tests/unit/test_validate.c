/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Level 3: what is right is found right, whatever the threads and the back end,
 * and every mutation is named by its rule. Slots are made in memory where that
 * is enough; bytes are changed over a conversion.
 */

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "activations.h"
#include "base/base.h"
#include "convert.h"
#include "plan_fixture.h"

/* ---------------------------------------------------------------- tools */

static moec_validation *validate(const char *dir, const moec_validate_opts *o)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_validation *v = NULL;

    if (moec_validate(&v, dir, o, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    return v;
}

static void expect_right(const moec_validation *v, const char *what)
{
    const moec_report *r = moec_validation_report(v);

    if (moec_report_n_findings(r) != 0)
        fail_msg("%s: %s", what, moec_report_finding(r, 0)->message);
    for (size_t i = 0; i < moec_validation_n_layers(v); i++) {
        const moec_layer_result *l = moec_validation_layer(v, i);

        assert_int_equal(l->validated, 1);
        assert_int_equal(l->ids_equal, 1);
        assert_int_equal(l->n_errors, 0);
        assert_true(l->pairs >= l->tokens);
        assert_true(l->expert_load.sum <= l->pairs);
    }
    assert_null(moec_validation_layer(v, moec_validation_n_layers(v)));
    assert_true(moec_validation_n_limits(v) > 0);
    assert_null(moec_validation_limit(v, moec_validation_n_limits(v)));
}

static moec_validate_opts memory_opts(const plan_fixture *x)
{
    moec_validate_opts o = MOEC_VALIDATE_OPTS_INIT;

    o.layout = x->layout;
    o.n_threads = 1;
    return o;
}

/* ------------------------------------------------------------ what is right */

static void every_fixture_is_right_in_memory(void **state)
{
    (void)state;
    for (size_t i = 0; i < PLAN_FIXTURES; i++) {
        moec_plan_opts p = plan_fixture_opts();
        plan_fixture x = plan_fixture_open(plan_fixture_names[i], &p);
        moec_validate_opts o = memory_opts(&x);
        moec_validation *v = validate(NULL, &o);

        expect_right(v, plan_fixture_names[i]);
        moec_validation_destroy(v);
        plan_fixture_close(&x);
    }
}

/* Layouts of all kinds of one model with everything: MTP, bias, shared. */
static void every_topology_is_right(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 48; i++) {
        moec_plan_opts p = MOEC_PLAN_OPTS_INIT;
        plan_fixture x;
        moec_validate_opts o;
        moec_validation *v;
        char what[64];

        p.n_ranks = 1 + i % 4;
        p.n_redundant = i / 4 % 4;
        p.allow_empty = 1;
        p.shared =
            i % 3 == 0 ? MOEC_SHARED_SLOTS_GLOBAL : MOEC_SHARED_SLOTS_PER_RANK;
        p.w13_order = i % 2 ? MOEC_W13_UP_GATE : MOEC_W13_GATE_UP;
        p.no_mtp = i % 5 == 0;
        x = plan_fixture_open(i % 2 ? "deepseek_v3" : "qwen2_moe", &p);
        o = memory_opts(&x);
        o.n_tokens = 1 + i * 3;
        o.seed = i;
        v = validate(NULL, &o);
        snprintf(what, sizeof(what), "W %u R %u", p.n_ranks, p.n_redundant);
        expect_right(v, what);
        moec_validation_destroy(v);
        plan_fixture_close(&x);
    }
}

/* Figures depend on the seed, and on nothing else. */
static void threads_and_back_ends_give_the_same_figures(void **state)
{
    static const moec_isa isas[] = {MOEC_ISA_SCALAR, MOEC_ISA_AVX2,
                                    MOEC_ISA_AVX512, MOEC_ISA_AUTO};
    moec_plan_opts p = plan_fixture_opts();
    plan_fixture x = plan_fixture_open("deepseek_v2", &p);
    moec_layer_result first = {0};

    (void)state;
    for (size_t i = 0; i < 8; i++) {
        moec_validate_opts o = memory_opts(&x);
        moec_error err = MOEC_ERROR_INIT;
        moec_validation *v = NULL;
        moec_status st;

        o.isa = isas[i / 2];
        o.n_threads = i % 2 ? 5 : 1;
        st = moec_validate(&v, NULL, &o, &err);
        if (st == MOEC_E_UNSUPPORTED)
            continue; /* this CPU has no such back end */
        assert_int_equal(st, MOEC_OK);
        expect_right(v, moec_isa_name(o.isa));
        if (first.tokens == 0)
            first = *moec_validation_layer(v, 0);
        assert_memory_equal(&first, moec_validation_layer(v, 0), sizeof(first));
        moec_validation_destroy(v);
    }
    plan_fixture_close(&x);
}

static void every_expert_runs_however_few_the_tokens(void **state)
{
    moec_plan_opts p = plan_fixture_opts();
    plan_fixture x = plan_fixture_open("deepseek_v3", &p);
    moec_validate_opts o = memory_opts(&x);
    moec_validation *v;
    const moec_layer_result *l;

    (void)state;
    o.n_tokens = 1;
    v = validate(NULL, &o);
    expect_right(v, "one token");
    l = moec_validation_layer(v, 0);
    assert_int_equal(l->tokens, 1);
    assert_int_equal(l->pairs, 16); /* 4 chosen, 12 forced */
    assert_int_equal(l->forced, 12);
    assert_int_equal(l->slots, 20); /* 16 + 2 redundant, 2 shared */
    moec_validation_destroy(v);
    plan_fixture_close(&x);
}

/* --------------------------------------------------------------- arguments */

static int stop(void *ctx, uint64_t done, uint64_t total)
{
    (void)ctx;
    (void)total;
    return done > 100000;
}

static void refuses_what_it_cannot_begin(void **state)
{
    moec_plan_opts p = plan_fixture_opts();
    plan_fixture x = plan_fixture_open("mixtral", &p);
    moec_validate_opts o = MOEC_VALIDATE_OPTS_INIT;
    moec_validation *v = NULL;
    int found = -1;

    (void)state;
    assert_int_equal(moec_validate(&v, NULL, &o, NULL), MOEC_E_ARG);
    assert_int_equal(moec_validate(&v, "/nonexistent", &o, NULL), MOEC_E_ARG);
    o.source = x.ckpt;
    assert_int_not_equal(moec_validate(&v, "/nonexistent", &o, NULL), MOEC_OK);
    o = memory_opts(&x);
    o.inputs = "/nonexistent";
    assert_int_not_equal(moec_validate(&v, NULL, &o, NULL), MOEC_OK);
    o = memory_opts(&x);
    o.progress = stop;
    assert_int_equal(moec_validate(&v, NULL, &o, NULL), MOEC_E_CANCELLED);
    assert_int_equal(
        moec_validate_mutation(&v, &found, NULL, MOEC_MUTATION_COUNT, &o, NULL),
        MOEC_E_ARG);
    assert_int_equal(moec_validate_mutation(&v, &found, NULL,
                                            MOEC_MUTATION_SWAP_SLOTS, NULL,
                                            NULL),
                     MOEC_E_ARG);
    assert_null(v);
    assert_int_equal(found, -1);
    plan_fixture_close(&x);
}

static void survives_failing_allocations(void **state)
{
    moec_plan_opts p = plan_fixture_opts();
    plan_fixture x = plan_fixture_open("deepseek_v2", &p);
    moec_validate_opts o = memory_opts(&x);
    moec_status st = MOEC_E_NOMEM;

    (void)state;
    o.n_tokens = 3;
    for (uint64_t n = 1; st == MOEC_E_NOMEM; n += 1 + n / 16) {
        moec_error err = MOEC_ERROR_INIT;
        moec_validation *v = NULL;

        moec_alloc_fail_at(n);
        st = moec_validate(&v, NULL, &o, &err);
        moec_alloc_fail_at(0);
        assert_int_equal(v != NULL, st == MOEC_OK);
        moec_validation_destroy(v);
    }
    assert_int_equal(st, MOEC_OK);
    plan_fixture_close(&x);
}

/* ---------------------------------------------------------------- mutations */

#define ALL  "*"
#define ROWS (sizeof(table) / sizeof(*table))

static const struct row {
    moec_mutation kind;
    moec_rule rule;
    bool needs_files;
    const char *where; /* fixtures that it can be made of, or ALL */
} table[] = {
    {MOEC_MUTATION_SWAP_SLOTS, MOEC_RULE_K03, true, ALL},
    {MOEC_MUTATION_E_FOR_P, MOEC_RULE_K03, false,
     "deepseek_v3 deepseek_v3_fp8 qwen2_moe"},
    {MOEC_MUTATION_SHARED_FIRST, MOEC_RULE_K03, true,
     "deepseek_v3 deepseek_v3_fp8 qwen2_moe"},
    {MOEC_MUTATION_SHARED_MISSING, MOEC_RULE_K04, true,
     "deepseek_v3 deepseek_v3_fp8 qwen2_moe"},
    {MOEC_MUTATION_GATE_UP_SWAPPED, MOEC_RULE_K03, true, ALL},
    {MOEC_MUTATION_TRANSPOSED_DOWN, MOEC_RULE_K03, true, ALL},
    {MOEC_MUTATION_REPLICA_STALE, MOEC_RULE_K05, true, ALL},
    {MOEC_MUTATION_SCALE_DROPPED, MOEC_RULE_K03, true, "deepseek_v3_fp8"},
    {MOEC_MUTATION_SCALE_OF_NEIGHBOUR, MOEC_RULE_K03, true, "deepseek_v3_fp8"},
    {MOEC_MUTATION_BIAS_DROPPED, MOEC_RULE_K03, true, "gpt_oss"},
    {MOEC_MUTATION_ROUTER_BIAS_DROPPED, MOEC_RULE_K01, false,
     "deepseek_v3 deepseek_v3_fp8 gpt_oss"},
    {MOEC_MUTATION_LAYER_OFF_BY_ONE, MOEC_RULE_K03, true, ALL},
    {MOEC_MUTATION_RANK_FILES_SWAPPED, MOEC_RULE_K03, true, ALL},
    {MOEC_MUTATION_BF16_AS_F16, MOEC_RULE_K03, false,
     "deepseek_v3 qwen2_moe gpt_oss"},
    {MOEC_MUTATION_MTP_AS_MAIN, MOEC_RULE_K03, true, "deepseek_v3"},
    {MOEC_MUTATION_WRONG_NORM_TOPK, MOEC_RULE_K02, false, ALL},
    {MOEC_MUTATION_RSF_TWICE, MOEC_RULE_K02, false,
     "deepseek_v3 deepseek_v3_fp8"},
    {MOEC_MUTATION_RSF_MISSING, MOEC_RULE_K02, false,
     "deepseek_v3 deepseek_v3_fp8"},
    {MOEC_MUTATION_SHARED_WEIGHT_RENORMALISED, MOEC_RULE_K04, false,
     "deepseek_v3 deepseek_v3_fp8 qwen2_moe"},
};

static bool applies(const struct row *row, const char *fixture)
{
    size_t n = strlen(fixture);

    if (strcmp(row->where, ALL) == 0)
        return true;
    for (const char *p = row->where; (p = strstr(p, fixture)) != NULL; p += n)
        if ((p == row->where || p[-1] == ' ') && (p[n] == ' ' || p[n] == '\0'))
            return true;
    return false;
}

static bool is_named(const moec_validation *v, moec_rule rule)
{
    const moec_report *r = moec_validation_report(v);

    for (size_t i = 0; i < moec_report_n_findings(r); i++) {
        const moec_finding *f = moec_report_finding(r, i);

        if (f->rule == rule && f->severity == MOEC_SEVERITY_ERROR &&
            (f->has & MOEC_HAS_LAYER) != 0)
            return true;
    }
    return false;
}

static void mutate(const char *dir, const moec_validate_opts *o,
                   const char *fixture)
{
    for (size_t i = 0; i < ROWS; i++) {
        const moec_mutation_info *info = moec_mutation_describe(table[i].kind);
        moec_error err = MOEC_ERROR_INIT;
        moec_validation *v = NULL;
        int found = -1;
        moec_status st =
            moec_validate_mutation(&v, &found, dir, table[i].kind, o, &err);

        if (!applies(&table[i], fixture) ||
            (dir == NULL && table[i].needs_files)) {
            if (st != MOEC_E_UNSUPPORTED)
                fail_msg("%s of %s: %d", info->name, fixture, st);
            assert_null(v);
            assert_int_equal(found, -1);
            assert_non_null(strstr(err.text, info->name));
            continue;
        }
        if (st != MOEC_OK)
            fail_msg("%s of %s: %s", info->name, fixture, err.text);
        if (found != 1 || !is_named(v, table[i].rule))
            fail_msg("%s of %s is not named", info->name, fixture);
        moec_validation_destroy(v);
    }
}

static const char *const mutated[] = {"deepseek_v3", "deepseek_v3_fp8",
                                      "gpt_oss", "qwen2_moe"};

static void kinds_are_named_in_memory(void **state)
{
    (void)state;
    for (size_t i = 0; i < 4; i++) {
        moec_plan_opts p = plan_fixture_opts();
        plan_fixture x = plan_fixture_open(mutated[i], &p);
        moec_validate_opts o = memory_opts(&x);

        mutate(NULL, &o, mutated[i]);
        plan_fixture_close(&x);
    }
}

/* 16 experts on 20 ranks: E / W is no slot at all, and P / W is one. */
static void e_for_p_is_nothing_with_one_slot_a_rank(void **state)
{
    moec_plan_opts p = MOEC_PLAN_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    moec_validation *v = NULL;
    int found = -1;

    (void)state;
    p.n_ranks = 20;
    p.n_redundant = 4;
    plan_fixture x = plan_fixture_open("deepseek_v3", &p);
    moec_validate_opts o = memory_opts(&x);
    assert_int_equal(moec_validate_mutation(&v, &found, NULL,
                                            MOEC_MUTATION_E_FOR_P, &o, &err),
                     MOEC_E_UNSUPPORTED);
    assert_null(v);
    plan_fixture_close(&x);
}

static void remove_all(const char *root, const char *out)
{
    DIR *d = opendir(out);
    const struct dirent *e;

    assert_non_null(d);
    while ((e = readdir(d)) != NULL)
        if (e->d_name[0] != '.')
            unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
    assert_int_equal(rmdir(out) | rmdir(root), 0);
}

static void kinds_are_named_over_a_conversion(void **state)
{
    (void)state;
    for (size_t i = 0; i < 4; i++) {
        moec_plan_opts p = plan_fixture_opts();
        plan_fixture x = plan_fixture_open(mutated[i], &p);
        moec_validate_opts o = MOEC_VALIDATE_OPTS_INIT;
        moec_convert_opts c = {.n_threads = 1};
        char root[] = "/tmp/moec-validate-XXXXXX", out[64];
        moec_convert_stats stats;
        moec_error err = MOEC_ERROR_INIT;
        moec_validation *v;

        assert_non_null(mkdtemp(root));
        snprintf(out, sizeof(out), "%s/out", root);
        if (moec_convert(x.layout, out, &c, &stats, &err) != MOEC_OK)
            fail_msg("%s", err.text);
        o.source = x.ckpt;
        o.n_threads = 1;
        mutate(out, &o, mutated[i]);
        v = validate(out, &o); /* the files are as they were */
        expect_right(v, mutated[i]);
        moec_validation_destroy(v);
        plan_fixture_close(&x);
        remove_all(root, out);
    }
}

static void the_table_says_the_stated_rules(void **state)
{
    (void)state;
    assert_int_equal(ROWS, MOEC_MUTATION_COUNT);
    for (size_t i = 0; i < ROWS; i++) {
        const moec_mutation_info *k = moec_mutation_describe(table[i].kind);

        assert_int_equal(table[i].kind, i);
        assert_int_equal(k->kernels_rule, table[i].rule);
    }
}

/* --------------------------------------------------------------- inputs */

static void seeded_inputs_are_normal_bf16_numbers(void **state)
{
    moec_activations a = {.seed = 1, .n_tokens = 512};
    moec_layer_key key = {MOEC_SPACE_MAIN, 3}, other = {MOEC_SPACE_MTP, 3};
    moec_batch b, again, c;
    double sum = 0.0, square = 0.0;
    size_t n;

    (void)state;
    assert_int_equal(moec_batch_make(&b, &a, key, 3, 64, NULL), MOEC_OK);
    assert_int_equal(moec_batch_make(&again, &a, key, 3, 64, NULL), MOEC_OK);
    assert_int_equal(moec_batch_make(&c, &a, other, 3, 64, NULL), MOEC_OK);
    n = (size_t)b.n_rows * 64;
    assert_memory_equal(b.x, again.x, n * sizeof(*b.x));
    assert_memory_not_equal(b.x, c.x, n * sizeof(*b.x));
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;

        memcpy(&bits, &b.x[i], sizeof(bits));
        assert_int_equal(bits & 0xffff, 0);
        sum += (double)b.x[i];
        square += (double)b.x[i] * (double)b.x[i];
    }
    assert_true(sum / (double)n < 0.02 && sum / (double)n > -0.02);
    assert_true(square / (double)n < 1.05 && square / (double)n > 0.95);
    moec_batch_fini(&b);
    moec_batch_fini(&again);
    moec_batch_fini(&c);
}

/* A fixture's golden file as recorded inputs: other layers stay seeded. */
static void recorded_inputs_are_used_where_there_are_some(void **state)
{
    moec_plan_opts p = plan_fixture_opts();
    plan_fixture x = plan_fixture_open("deepseek_v3", &p);
    moec_validate_opts o = memory_opts(&x);
    char path[512];
    moec_validation *v;

    (void)state;
    /* of glm4_moe: layers 1 and 2, equally wide */
    snprintf(path, sizeof(path), "%s/checkpoints/glm4_moe/golden.safetensors",
             MOEC_TEST_FIXTURES);
    o.inputs = path;
    v = validate(NULL, &o);
    expect_right(v, "recorded");
    assert_int_equal(moec_validation_layer(v, 0)->inputs, MOEC_INPUTS_RECORDED);
    assert_int_equal(moec_validation_layer(v, 0)->tokens, 65);
    assert_int_equal(moec_validation_layer(v, 2)->inputs, MOEC_INPUTS_SEEDED);
    moec_validation_destroy(v);
    plan_fixture_close(&x);
}

/* The answers of another model are not this one's. */
static void a_reference_of_another_model_is_found_out(void **state)
{
    moec_plan_opts p = plan_fixture_opts();
    plan_fixture x = plan_fixture_open("qwen3_moe", &p);
    moec_validate_opts o = memory_opts(&x);
    moec_validation *v;
    char path[512];

    (void)state;
    snprintf(path, sizeof(path), "%s/checkpoints/qwen3_moe/golden.safetensors",
             MOEC_TEST_FIXTURES);
    o.golden = path;
    v = validate(NULL, &o);
    expect_right(v, "golden");
    assert_int_equal(moec_validation_layer(v, 0)->golden_answers, 10);
    moec_validation_destroy(v);
    plan_fixture_close(&x);
    x = plan_fixture_open("olmoe", &p);
    o = memory_opts(&x);
    snprintf(path, sizeof(path), "%s/checkpoints/gpt_oss/golden.safetensors",
             MOEC_TEST_FIXTURES);
    o.golden = path;
    v = NULL;
    assert_int_equal(moec_validate(&v, NULL, &o, NULL), MOEC_E_FORMAT);
    plan_fixture_close(&x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_fixture_is_right_in_memory),
        cmocka_unit_test(every_topology_is_right),
        cmocka_unit_test(threads_and_back_ends_give_the_same_figures),
        cmocka_unit_test(every_expert_runs_however_few_the_tokens),
        cmocka_unit_test(refuses_what_it_cannot_begin),
        cmocka_unit_test(survives_failing_allocations),
        cmocka_unit_test(kinds_are_named_in_memory),
        cmocka_unit_test(e_for_p_is_nothing_with_one_slot_a_rank),
        cmocka_unit_test(kinds_are_named_over_a_conversion),
        cmocka_unit_test(the_table_says_the_stated_rules),
        cmocka_unit_test(seeded_inputs_are_normal_bf16_numbers),
        cmocka_unit_test(recorded_inputs_are_used_where_there_are_some),
        cmocka_unit_test(a_reference_of_another_model_is_found_out),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
