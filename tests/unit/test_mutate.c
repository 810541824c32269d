/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Mutations: each kind, in every fixture that has what it needs, is named by
 * its rule at level headers and at level digests; where it cannot be made it
 * is refused; and nothing is named where nothing is changed.
 */

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/base.h"
#include "convert.h"
#include "plan_fixture.h"

/* -------------------------------------------------------------- the table */

/* Fixtures are named in `only`, or are all but those in `but`. */
static const struct row {
    moec_mutation kind;
    const char *name;
    moec_rule headers, digests;
    const char *only, *but;
} table[] = {
#define NO_SHARED " dbrx gpt_oss mixtral olmoe qwen3_moe "
#define FP8       " deepseek_v3_fp8 deepseek_v3_fp8_ragged "
#define ONE_LAYER " deepseek_v3_fp8_ragged "
#define ROW(kind, name, headers, digests, only, but)                           \
  {                                                                            \
    MOEC_MUTATION_##kind, name, MOEC_RULE_##headers, MOEC_RULE_##digests,      \
        only, but                                                              \
  }
    ROW(SWAP_SLOTS, "swap-slots", T4, T3, NULL, ""),
    ROW(E_FOR_P, "E-for-P", T4, T3, NULL, NO_SHARED),
    ROW(SHARED_FIRST, "shared-first", T4, T3, NULL, NO_SHARED),
    ROW(SHARED_MISSING, "shared-missing", T4, T3, NULL, NO_SHARED),
    ROW(GATE_UP_SWAPPED, "gate-up-swapped", T3, T3, NULL, ""),
    ROW(TRANSPOSED_DOWN, "transposed-down", T5, T3, NULL, ""),
    ROW(REPLICA_STALE, "replica-stale", NONE, T3, NULL, ONE_LAYER),
    ROW(SCALE_DROPPED, "scale-dropped", T1, T3, FP8, NULL),
    ROW(SCALE_OF_NEIGHBOUR, "scale-of-neighbour", T3, T3, FP8, NULL),
    ROW(BIAS_DROPPED, "bias-dropped", T1, T3, " gpt_oss ", NULL),
    ROW(ROUTER_BIAS_DROPPED, "router-bias-dropped", T1, M07,
        " deepseek_v3 glm4_moe gpt_oss " FP8, NULL),
    ROW(LAYER_OFF_BY_ONE, "layer-off-by-one", T3, T3, NULL, ONE_LAYER),
    ROW(RANK_FILES_SWAPPED, "rank-files-swapped", T4, M06, NULL, ""),
    ROW(BF16_AS_F16, "bf16-as-f16", T5, M06, NULL, FP8),
    ROW(MTP_AS_MAIN, "mtp-as-main", T3, T3, " deepseek_v3 ", NULL),
#undef ROW
};
#define N_ROWS (sizeof(table) / sizeof(*table))

static bool holds(const char *list, const char *name)
{
    char word[64];

    snprintf(word, sizeof(word), " %s ", name);
    return strstr(list, word) != NULL;
}

static bool applies(const struct row *r, const char *fixture)
{
    return r->only != NULL ? holds(r->only, fixture) : !holds(r->but, fixture);
}

static const moec_finding *find_rule(const moec_report *r, moec_rule rule)
{
    for (size_t i = 0; i < moec_report_n_findings(r); i++)
        if (moec_report_finding(r, i)->rule == rule)
            return moec_report_finding(r, i);
    return NULL;
}

/* The rule names it, and says where. */
static void check_named(const moec_report *r, int found, moec_rule rule,
                        const char *kind, const char *fixture)
{
    const moec_finding *f = find_rule(r, rule);

    if (!found || f == NULL)
        fail_msg("%s of %s: %zu findings, none that names it; first: %s", kind,
                 fixture, moec_report_n_findings(r),
                 moec_report_n_findings(r) == 0
                     ? "-"
                     : moec_report_finding(r, 0)->message);
    assert_int_equal(f->severity, MOEC_SEVERITY_ERROR);
    assert_int_not_equal(
        f->has & (MOEC_HAS_FILE | MOEC_HAS_TENSOR | MOEC_HAS_LAYER), 0);
    assert_false(moec_report_ok(r));
}

/* --------------------------------------------------------- level headers */

static void each_kind_is_named_from_headers(void **state)
{
    (void)state;
    for (size_t i = 0; i < PLAN_FIXTURES; i++) {
        const char *fixture = plan_fixture_names[i];
        moec_plan_opts o = plan_fixture_opts();
        plan_fixture x = plan_fixture_open(fixture, &o);

        for (size_t k = 0; k < N_ROWS; k++) {
            const struct row *row = &table[k];
            moec_error err = MOEC_ERROR_INIT;
            moec_report *r = NULL;
            int found = -1;
            moec_status st =
                moec_check_mutation(&r, &found, x.layout, row->kind, &err);

            if (!applies(row, fixture) || row->headers == MOEC_RULE_NONE) {
                if (st != MOEC_E_UNSUPPORTED)
                    fail_msg("%s of %s: %d", row->name, fixture, st);
                assert_null(r);
                assert_non_null(strstr(err.text, row->name));
                continue;
            }
            if (st != MOEC_OK)
                fail_msg("%s of %s: %s", row->name, fixture, err.text);
            check_named(r, found, row->headers, row->name, fixture);
            moec_report_destroy(r);
        }
        plan_fixture_close(&x);
    }
}

/* Topologies and layouts that the fixtures' own do not have. */
static moec_plan_opts other_topology(uint32_t i)
{
    moec_plan_opts o = plan_fixture_opts();

    o.w13_order = MOEC_W13_UP_GATE;
    switch (i) {
    case 0:
        o.n_ranks = 5;
        o.allow_empty = 1;
        break;
    case 1:
        o.shared = MOEC_SHARED_SLOTS_GLOBAL;
        break;
    case 2:
        o.shared = MOEC_SHARED_SLOTS_OFF;
        o.no_mtp = 1;
        break;
    default:
        o.by_expert = 1;
        o.n_redundant = 0;
    }
    return o;
}

static void each_kind_is_named_in_other_topologies(void **state)
{
    static const char *const names[] = {"deepseek_v3", "qwen2_moe", "gpt_oss"};
    size_t n_found = 0;

    (void)state;
    for (uint32_t i = 0; i < 3 * 4; i++) {
        moec_plan_opts o = other_topology(i / 3);
        plan_fixture x = plan_fixture_open(names[i % 3], &o);

        for (size_t k = 0; k < N_ROWS; k++) {
            moec_error err = MOEC_ERROR_INIT;
            moec_report *r = NULL;
            int found = -1;
            moec_status st =
                moec_check_mutation(&r, &found, x.layout, table[k].kind, &err);

            if (st == MOEC_E_UNSUPPORTED)
                continue;
            if (st != MOEC_OK)
                fail_msg("%s of %s: %s", table[k].name, names[i % 3], err.text);
            check_named(r, found, table[k].headers, table[k].name,
                        names[i % 3]);
            moec_report_destroy(r);
            n_found++;
        }
        plan_fixture_close(&x);
    }
    assert_int_equal(n_found, 38 + 31 + 31); /* of each fixture */
}

static void a_layout_as_it_is_has_no_finding(void **state)
{
    (void)state;
    for (size_t i = 0; i < PLAN_FIXTURES; i++) {
        moec_plan_opts o = plan_fixture_opts();
        plan_fixture x = plan_fixture_open(plan_fixture_names[i], &o);
        moec_error err = MOEC_ERROR_INIT;
        moec_report *r = NULL;

        assert_int_equal(moec_layout_prove(&r, x.layout, &err), MOEC_OK);
        assert_true(moec_report_ok(r));
        assert_int_equal(moec_report_n_findings(r), 0);
        moec_report_destroy(r);
        plan_fixture_close(&x);
    }
}

/* With R = 0 the defect of SGLang does not show: E is P. */
static void what_the_topology_lacks_is_said(void **state)
{
    static const struct {
        moec_mutation kind;
        uint32_t n_ranks, n_redundant;
        const char *why;
    } rows[] = {
        {MOEC_MUTATION_E_FOR_P, 2, 0, "redundant"},
        {MOEC_MUTATION_RANK_FILES_SWAPPED, 1, 2, "one rank"},
        {MOEC_MUTATION_RANK_FILES_SWAPPED, 2, 16, "the same experts"},
        {MOEC_MUTATION_REPLICA_STALE, 2, 0, "second slot"},
        {MOEC_MUTATION_REPLICA_STALE, 2, 2, "level digests"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        moec_plan_opts o = plan_fixture_opts();
        moec_error err = MOEC_ERROR_INIT;
        moec_report *r = NULL;
        plan_fixture x;
        int found = -1;

        o.n_ranks = rows[i].n_ranks;
        o.n_redundant = rows[i].n_redundant;
        x = plan_fixture_open("deepseek_v3", &o);
        assert_int_equal(
            moec_check_mutation(&r, &found, x.layout, rows[i].kind, &err),
            MOEC_E_UNSUPPORTED);
        if (strstr(err.text, rows[i].why) == NULL)
            fail_msg("%s: not '%s'", err.text, rows[i].why);
        plan_fixture_close(&x);
    }
}

static void kinds_that_need_kernels_are_refused(void **state)
{
    moec_plan_opts o = plan_fixture_opts();
    plan_fixture x = plan_fixture_open("deepseek_v3", &o);

    (void)state;
    for (int i = MOEC_MUTATION_WRONG_NORM_TOPK; i < MOEC_MUTATION_COUNT; i++) {
        const moec_mutation_info *k = moec_mutation_describe((moec_mutation)i);
        moec_error err = MOEC_ERROR_INIT;
        moec_report *r = NULL;
        int found = -1;

        assert_int_equal(k->level, MOEC_LEVEL_KERNELS);
        assert_int_equal(
            moec_check_mutation(&r, &found, x.layout, (moec_mutation)i, &err),
            MOEC_E_UNSUPPORTED);
        assert_non_null(strstr(err.text, "needs level kernels"));
        assert_int_equal(found, -1);
    }
    plan_fixture_close(&x);
}

/* The public table is the one of this file, and no kind is missing here. */
static void the_table_says_the_stated_rules(void **state)
{
    (void)state;
    assert_int_equal(N_ROWS, MOEC_MUTATION_WRONG_NORM_TOPK);
    for (size_t i = 0; i < N_ROWS; i++) {
        const moec_mutation_info *k = moec_mutation_describe(table[i].kind);

        assert_int_equal(table[i].kind, i);
        assert_string_equal(k->name, table[i].name);
        assert_int_equal(k->headers_rule, table[i].headers);
        assert_int_equal(k->digests_rule, table[i].digests);
        assert_int_equal(k->level, table[i].headers == MOEC_RULE_NONE
                                       ? MOEC_LEVEL_DIGESTS
                                       : MOEC_LEVEL_HEADERS);
        assert_int_equal(moec_mutation_find(k->name), i);
    }
    assert_int_equal(moec_mutation_find("swap"), MOEC_MUTATION_COUNT);
    assert_null(moec_mutation_describe(MOEC_MUTATION_COUNT));
}

/* --------------------------------------------------------- level digests */

typedef struct place {
    char root[64];
    char out[96];
} place;

static place make_place(void)
{
    place p;

    snprintf(p.root, sizeof(p.root), "/tmp/moec-mutate-XXXXXX");
    assert_non_null(mkdtemp(p.root));
    snprintf(p.out, sizeof(p.out), "%s/out", p.root);
    return p;
}

static void remove_place(const place *p)
{
    DIR *d = opendir(p->out);
    const struct dirent *e;

    assert_non_null(d);
    while ((e = readdir(d)) != NULL)
        if (e->d_name[0] != '.')
            unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
    assert_int_equal(rmdir(p->out) | rmdir(p->root), 0);
}

static plan_fixture convert(const place *p, const char *fixture)
{
    moec_plan_opts opts = plan_fixture_opts();
    plan_fixture x = plan_fixture_open(fixture, &opts);
    moec_convert_opts o = {.n_threads = 1};
    moec_convert_stats stats;
    moec_error err = MOEC_ERROR_INIT;

    if (moec_convert(x.layout, p->out, &o, &stats, &err) != MOEC_OK)
        fail_msg("%s: %s", fixture, err.text);
    return x;
}

static moec_report *verify(const place *p, moec_level level)
{
    moec_verify_opts o = MOEC_VERIFY_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    moec_report *r = NULL;

    o.n_threads = 1;
    o.level = level;
    if (moec_verify(&r, p->out, &o, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    return r;
}

static moec_status mutate(const place *p, moec_mutation kind, int *found,
                          moec_report **r, moec_error *err)
{
    moec_verify_opts o = MOEC_VERIFY_OPTS_INIT;

    o.n_threads = 1;
    *r = NULL;
    *found = -1;
    return moec_verify_mutation(r, found, p->out, kind, &o, err);
}

static void each_kind_is_named_from_bytes(void **state)
{
    (void)state;
    for (size_t i = 0; i < PLAN_FIXTURES; i++) {
        const char *fixture = plan_fixture_names[i];
        place p = make_place();
        plan_fixture x = convert(&p, fixture);
        moec_report *r;

        for (size_t k = 0; k < N_ROWS; k++) {
            moec_error err = MOEC_ERROR_INIT;
            int found;
            moec_status st = mutate(&p, table[k].kind, &found, &r, &err);

            if (!applies(&table[k], fixture)) {
                if (st != MOEC_E_UNSUPPORTED)
                    fail_msg("%s of %s: %d", table[k].name, fixture, st);
                continue;
            }
            if (st != MOEC_OK)
                fail_msg("%s of %s: %s", table[k].name, fixture, err.text);
            check_named(r, found, table[k].digests, table[k].name, fixture);
            moec_report_destroy(r);
        }
        /* the files are as they were */
        r = verify(&p, MOEC_LEVEL_DIGESTS);
        assert_int_equal(moec_report_n_findings(r), 0);
        moec_report_destroy(r);
        plan_fixture_close(&x);
        remove_place(&p);
    }
}

/* 16 experts, 18 slots, 2 ranks: slots 16 and 17 are rows 7 and 8 of rank 1. */
static void a_stale_replica_is_named_by_its_place(void **state)
{
    moec_error err = MOEC_ERROR_INIT;
    place p = make_place();
    plan_fixture x = convert(&p, "deepseek_v3");
    const moec_finding *f;
    moec_report *r;
    int found;

    (void)state;
    assert_int_equal(mutate(&p, MOEC_MUTATION_REPLICA_STALE, &found, &r, &err),
                     MOEC_OK);
    assert_int_equal(found, 1);
    f = find_rule(r, MOEC_RULE_T3);
    assert_int_equal(f->layer.number, 1);
    assert_int_equal(f->rank, 1);
    assert_int_equal(f->slot, 7);
    assert_int_equal(f->expert, 0);
    assert_string_equal(f->tensor, "model.layers.1.mlp.experts.w13_weight");
    /* w13 and w2 of one slot, and nothing else */
    assert_int_equal(moec_report_n_findings(r), 2);
    moec_report_destroy(r);
    plan_fixture_close(&x);
    remove_place(&p);
}

/* Flip a byte of the first slot. */
static void damage(const place *p, const plan_fixture *x)
{
    char path[512];
    unsigned char c;
    uint64_t off;
    size_t file;
    int fd;

    moec_layout_find_slots(x->layout, 0, 0, 0, &file, &off);
    snprintf(path, sizeof(path), "%s/%s", p->out,
             moec_layout_file(x->layout, file)->name);
    fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &c, 1, (off_t)off), 1);
    c ^= 1;
    assert_int_equal(pwrite(fd, &c, 1, (off_t)off), 1);
    close(fd);
}

static void level_headers_reads_no_weight(void **state)
{
    place p = make_place();
    plan_fixture x = convert(&p, "mixtral");
    moec_report *r;

    (void)state;
    damage(&p, &x);
    r = verify(&p, MOEC_LEVEL_HEADERS);
    assert_int_equal(moec_report_n_findings(r), 0);
    assert_int_equal(moec_report_theorem(r, 0)->ok, 1);
    assert_int_equal(moec_report_theorem(r, 2)->ran, 0);
    assert_int_equal(moec_report_theorem(r, 5)->ran, 0);
    assert_non_null(moec_report_theorem(r, 2)->note);
    moec_report_destroy(r);
    r = verify(&p, MOEC_LEVEL_DIGESTS);
    assert_non_null(find_rule(r, MOEC_RULE_T3));
    moec_report_destroy(r);
    plan_fixture_close(&x);
    remove_place(&p);
}

/* Otherwise the damage would pass for the mutation. */
static void a_conversion_that_is_wrong_already_is_refused(void **state)
{
    moec_error err = MOEC_ERROR_INIT;
    place p = make_place();
    plan_fixture x = convert(&p, "mixtral");
    moec_report *r;
    int found;

    (void)state;
    damage(&p, &x);
    assert_int_equal(mutate(&p, MOEC_MUTATION_SWAP_SLOTS, &found, &r, &err),
                     MOEC_E_INTEGRITY);
    assert_null(r);
    assert_int_equal(found, -1);
    plan_fixture_close(&x);
    remove_place(&p);
}

static void level_kernels_and_unknown_levels_are_refused(void **state)
{
    moec_verify_opts o = MOEC_VERIFY_OPTS_INIT;
    moec_report *r = NULL;

    (void)state;
    o.level = MOEC_LEVEL_KERNELS;
    assert_int_equal(moec_verify(&r, "/nonexistent", &o, NULL),
                     MOEC_E_UNSUPPORTED);
    /* A caller from before the field: both levels. */
    o.struct_bytes = offsetof(moec_verify_opts, level);
    assert_int_not_equal(moec_verify(&r, "/nonexistent", &o, NULL),
                         MOEC_E_UNSUPPORTED);
    assert_null(r);
}

static void survives_failing_allocations(void **state)
{
    static const moec_mutation kinds[] = {MOEC_MUTATION_GATE_UP_SWAPPED,
                                          MOEC_MUTATION_LAYER_OFF_BY_ONE,
                                          MOEC_MUTATION_BF16_AS_F16};
    place p = make_place();
    plan_fixture x = convert(&p, "gpt_oss");

    (void)state;
    for (size_t i = 0; i < 2 * sizeof(kinds) / sizeof(*kinds); i++) {
        moec_status st = MOEC_E_NOMEM;

        for (uint64_t n = 1; st == MOEC_E_NOMEM; n += 1 + n / 8) {
            moec_mutation kind = kinds[i / 2];
            moec_error err = MOEC_ERROR_INIT;
            moec_report *r = NULL;
            int found = -1;

            moec_alloc_fail_at(n);
            st = i % 2 ? mutate(&p, kind, &found, &r, &err)
                       : moec_check_mutation(&r, &found, x.layout, kind, &err);
            moec_alloc_fail_at(0);
            assert_int_equal(found, st == MOEC_OK ? 1 : -1);
            moec_report_destroy(r);
        }
        assert_int_equal(st, MOEC_OK);
    }
    plan_fixture_close(&x);
    remove_place(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_kind_is_named_from_headers),
        cmocka_unit_test(each_kind_is_named_in_other_topologies),
        cmocka_unit_test(a_layout_as_it_is_has_no_finding),
        cmocka_unit_test(what_the_topology_lacks_is_said),
        cmocka_unit_test(kinds_that_need_kernels_are_refused),
        cmocka_unit_test(the_table_says_the_stated_rules),
        cmocka_unit_test(each_kind_is_named_from_bytes),
        cmocka_unit_test(a_stale_replica_is_named_by_its_place),
        cmocka_unit_test(level_headers_reads_no_weight),
        cmocka_unit_test(a_conversion_that_is_wrong_already_is_refused),
        cmocka_unit_test(level_kernels_and_unknown_levels_are_refused),
        cmocka_unit_test(survives_failing_allocations),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
