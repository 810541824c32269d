/* SPDX-License-Identifier: Apache-2.0 */

/* The report: order, limit, theorems, texts. */

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "report.h"

static moec_report *make(void)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_report *r = NULL;

    assert_int_equal(moec_report_create(&r, &err), MOEC_OK);
    return r;
}

static void finish(moec_report *r)
{
    moec_error err = MOEC_ERROR_INIT;

    assert_int_equal(moec_report_finish(r, &err), MOEC_OK);
}

static moec_finding at(moec_rule rule, uint32_t layer, uint32_t rank,
                       uint32_t slot, const char *file, uint64_t offset)
{
    moec_finding f = {.rule = rule,
                      .severity = MOEC_SEVERITY_ERROR,
                      .has = MOEC_HAS_LAYER | MOEC_HAS_RANK | MOEC_HAS_SLOT |
                             MOEC_HAS_FILE | MOEC_HAS_OFFSET,
                      .layer = {MOEC_SPACE_MAIN, layer},
                      .rank = rank,
                      .slot = slot,
                      .file = file,
                      .offset = offset};
    return f;
}

static void sorts_by_rule_layer_rank_slot_file_offset_message(void **state)
{
    const moec_finding in_order[] = {
        at(MOEC_RULE_T2, 9, 9, 9, "z", 9), at(MOEC_RULE_T3, 0, 9, 9, "z", 9),
        at(MOEC_RULE_T3, 1, 0, 9, "z", 9), at(MOEC_RULE_T3, 1, 1, 0, "z", 9),
        at(MOEC_RULE_T3, 1, 1, 1, "a", 9), at(MOEC_RULE_T3, 1, 1, 1, "b", 0),
        at(MOEC_RULE_T3, 1, 1, 1, "b", 1), at(MOEC_RULE_T3, 1, 1, 1, "b", 1)};
    const size_t n = sizeof(in_order) / sizeof(*in_order);
    moec_report *r = make();

    (void)state;
    for (size_t i = n; i > 0; i--)
        moec_report_add(r, &in_order[i - 1], "%c", (char)('a' + (int)i));
    finish(r);
    assert_int_equal(moec_report_n_findings(r), n);
    for (size_t i = 0; i < n; i++) {
        const moec_finding *f = moec_report_finding(r, i);
        assert_int_equal(f->message[0], (char)('b' + (int)i));
        assert_string_equal(f->file, in_order[i].file);
    }
    assert_null(moec_report_finding(r, n));
    moec_report_destroy(r);
}

static void main_layers_come_before_mtp_layers(void **state)
{
    moec_finding f = at(MOEC_RULE_T3, 0, 0, 0, "f", 0);
    moec_report *r = make();

    (void)state;
    f.layer.space = MOEC_SPACE_MTP;
    moec_report_add(r, &f, "mtp");
    f.layer = (moec_layer_key){MOEC_SPACE_MAIN, 60};
    moec_report_add(r, &f, "main");
    finish(r);
    assert_string_equal(moec_report_finding(r, 0)->message, "main");
    moec_report_destroy(r);
}

static void keeps_the_first_by_order_and_counts_the_rest(void **state)
{
    const uint32_t n = 3 * MOEC_FINDINGS_MAX + 7;
    const moec_finding *last;
    moec_report *r = make();

    (void)state;
    for (uint32_t i = n; i > 0; i--) {
        moec_finding f = at(MOEC_RULE_T3, 0, 0, i - 1, "f", 0);
        moec_report_add(r, &f, "slot %u", i - 1);
    }
    finish(r);
    assert_int_equal(moec_report_n_findings(r), MOEC_FINDINGS_MAX + 1);
    for (uint32_t i = 0; i < MOEC_FINDINGS_MAX; i++)
        assert_int_equal(moec_report_finding(r, i)->slot, i);
    last = moec_report_finding(r, MOEC_FINDINGS_MAX);
    assert_int_equal(last->severity, MOEC_SEVERITY_NOTE);
    assert_non_null(strstr(last->message, "20007 findings more"));
    moec_report_destroy(r);
}

static void an_error_breaks_its_theorem_and_the_report(void **state)
{
    moec_finding f = {.rule = MOEC_RULE_T4, .severity = MOEC_SEVERITY_ERROR};
    moec_report *r = make();

    (void)state;
    moec_report_ran(r, MOEC_RULE_T2, 3);
    moec_report_ran(r, MOEC_RULE_T2, 4);
    moec_report_add(r, &f, "x");
    moec_report_note(r, MOEC_RULE_T6, "first");
    moec_report_note(r, MOEC_RULE_T6, "second");
    finish(r);
    assert_false(moec_report_ok(r));
    assert_int_equal(moec_report_theorem(r, 1)->ok, 1);
    assert_int_equal(moec_report_theorem(r, 1)->checked, 7);
    assert_int_equal(moec_report_theorem(r, 3)->rule, MOEC_RULE_T4);
    assert_int_equal(moec_report_theorem(r, 3)->ok, 0);
    assert_int_equal(moec_report_theorem(r, 3)->ran, 1);
    assert_int_equal(moec_report_theorem(r, 5)->ran, 0);
    assert_int_equal(moec_report_theorem(r, 5)->ok, 0);
    assert_string_equal(moec_report_theorem(r, 5)->note, "first");
    assert_null(moec_report_theorem(r, 6));
    moec_report_destroy(r);
}

static void warnings_do_not_break_anything(void **state)
{
    moec_finding f = {.rule = MOEC_RULE_T4, .severity = MOEC_SEVERITY_WARNING};
    moec_report *r = make();

    (void)state;
    moec_report_ran(r, MOEC_RULE_T4, 1);
    moec_report_add(r, &f, "x");
    finish(r);
    assert_true(moec_report_ok(r));
    assert_int_equal(moec_report_theorem(r, 3)->ok, 1);
    moec_report_destroy(r);
}

static void copies_texts_and_escapes_control_characters(void **state)
{
    char name[] = "evil\n", expected[] = "aa", found[] = "bb";
    moec_finding f = {.rule = MOEC_RULE_T5,
                      .has =
                          MOEC_HAS_TENSOR | MOEC_HAS_EXPECTED | MOEC_HAS_FOUND,
                      .tensor = name,
                      .expected = expected,
                      .found = found,
                      .file = "not named by has"};
    moec_report *r = make();
    const moec_finding *g;

    (void)state;
    moec_report_add(r, &f, "'%s' \033[31m", name);
    memset(name, 'x', sizeof(name) - 1);
    memset(expected, 'x', sizeof(expected) - 1);
    finish(r);
    g = moec_report_finding(r, 0);
    assert_string_equal(g->message, "'evil\\x0a' \\x1b[31m");
    assert_string_equal(g->tensor, "evil\n");
    assert_string_equal(g->expected, "aa");
    assert_string_equal(g->found, "bb");
    assert_null(g->file);
    moec_report_destroy(r);
}

static void an_error_of_the_library_becomes_a_finding(void **state)
{
    moec_error e = MOEC_ERROR_INIT;
    moec_report *r = make();
    const moec_finding *f;

    (void)state;
    moec_fail_at(&e, MOEC_E_FORMAT, MOEC_RULE_M04, 17, "too short");
    moec_report_add_error(r, "sources.bin", MOEC_RULE_M05, &e);
    finish(r);
    f = moec_report_finding(r, 0);
    assert_int_equal(f->rule, MOEC_RULE_M04);
    assert_string_equal(f->message, "too short");
    assert_string_equal(f->file, "sources.bin");
    assert_int_equal(f->offset, 17);
    moec_report_destroy(r);
}

static void *add_many(void *arg)
{
    for (uint32_t i = 0; i < 2000; i++) {
        moec_finding f = at(MOEC_RULE_T3, 0, i % 7, i, "f", 0);
        moec_report_add(arg, &f, "x");
        moec_report_ran(arg, MOEC_RULE_T3, 1);
    }
    return NULL;
}

static void many_threads_may_add(void **state)
{
    moec_report *r = make();
    pthread_t t[4];

    (void)state;
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&t[i], NULL, add_many, r), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    finish(r);
    assert_int_equal(moec_report_n_findings(r), 8000);
    assert_int_equal(moec_report_theorem(r, 2)->checked, 8000);
    moec_report_destroy(r);
}

static void memory_that_ran_out_is_told_at_the_end(void **state)
{
    moec_finding f = {.rule = MOEC_RULE_T1, .severity = MOEC_SEVERITY_ERROR};
    moec_error err = MOEC_ERROR_INIT;
    moec_report *r = make();

    (void)state;
    moec_alloc_fail_at(1);
    moec_report_add(r, &f, "lost");
    moec_alloc_fail_at(0);
    assert_int_equal(moec_report_finish(r, &err), MOEC_E_NOMEM);
    assert_false(moec_report_ok(r));
    moec_report_destroy(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sorts_by_rule_layer_rank_slot_file_offset_message),
        cmocka_unit_test(main_layers_come_before_mtp_layers),
        cmocka_unit_test(keeps_the_first_by_order_and_counts_the_rest),
        cmocka_unit_test(an_error_breaks_its_theorem_and_the_report),
        cmocka_unit_test(warnings_do_not_break_anything),
        cmocka_unit_test(copies_texts_and_escapes_control_characters),
        cmocka_unit_test(an_error_of_the_library_becomes_a_finding),
        cmocka_unit_test(many_threads_may_add),
        cmocka_unit_test(memory_that_ran_out_is_told_at_the_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
