/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JUnit's XML: a suite for each run, a test for each theorem and for each
 * other rule that something was found of. Refuses to write what XML 1.0 cannot
 * hold: control characters come as \xNN, bytes that are no UTF-8 as U+FFFD.
 */
#include "ci_report.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* U+FFFE and U+FFFF are UTF-8 but no XML. */
static bool is_noncharacter(const char *s)
{
    return memcmp(s, "\xef\xbf\xbe", 3) == 0 ||
           memcmp(s, "\xef\xbf\xbf", 3) == 0;
}

static void put_xml(FILE *f, const char *s)
{
    while (*s != '\0') {
        size_t n = moec_cli_utf8(s);
        if (n == 0 || (n == 3 && is_noncharacter(s))) {
            (void)fputs("\xef\xbf\xbd", f);
            s += n != 0 ? n : 1;
            continue;
        }
        if (moec_cli_is_control(s)) {
            for (; n > 0; n--)
                (void)fprintf(f, "\\x%02x", (unsigned)(unsigned char)*s++);
            continue;
        }
        if (n == 1 && strchr("&<>\"'", *s) != NULL)
            (void)fprintf(f, "&#%d;", *s);
        else
            (void)fwrite(s, 1, n, f);
        s += n;
    }
}

static void attribute(FILE *f, const char *name, const char *value)
{
    (void)fprintf(f, " %s=\"", name);
    put_xml(f, value);
    (void)fputc('"', f);
}

/* Does the finding stand in the case of `rule` of its run? Where theorems were
 * proved, damage stands under T6 as in all reports. */
static bool is_of(const moec_ci_report *r, const moec_ci_found *x, size_t run,
                  moec_rule rule)
{
    bool theorem = rule >= MOEC_RULE_T1 && rule <= MOEC_RULE_T6;
    if (x->run != run)
        return false;
    if (theorem && r->runs[run].report != NULL)
        return moec_ci_under_theorem(x, rule);
    return x->f.rule == rule;
}

static size_t count_of(const moec_ci_report *r, size_t run, moec_rule rule,
                       bool failing)
{
    size_t n = 0;
    for (size_t i = 0; i < r->n_found; i++)
        n += is_of(r, &r->found[i], run, rule) &&
             (!failing || r->found[i].fails);
    return n;
}

static void write_found(FILE *f, const moec_ci_report *r, size_t run,
                        moec_rule rule, bool failing)
{
    for (size_t i = 0; i < r->n_found; i++) {
        const moec_ci_found *x = &r->found[i];
        if (!is_of(r, x, run, rule) || x->fails != failing)
            continue;
        char *path = moec_ci_path(r, x), *message = moec_ci_message(r, x);
        put_xml(f, moec_ci_rule_id(x->f.rule));
        (void)fputs(" ", f);
        put_xml(f, path != NULL ? path : x->file);
        (void)fputs(": ", f);
        put_xml(f, message != NULL ? message : x->f.message);
        (void)fprintf(f, " (%s%s)\n", moec_cli_severity_name(x->f.severity),
                      x->known ? ", in the baseline" : "");
        free(path);
        free(message);
    }
}

static void write_case(FILE *f, const moec_ci_report *r, size_t run,
                       moec_rule rule, bool ran)
{
    size_t bad = count_of(r, run, rule, true);
    size_t all = count_of(r, run, rule, false);
    char name[128], count[64];
    (void)snprintf(name, sizeof(name), "%s %s", moec_ci_rule_id(rule),
                   moec_ci_rule_name(rule));
    (void)fputs("    <testcase", f);
    attribute(f, "classname", moec_ci_run_name(r, run));
    attribute(f, "name", name);
    (void)fputs(">\n", f);
    if (bad != 0) {
        (void)snprintf(count, sizeof(count), "%zu finding%s", bad,
                       bad == 1 ? "" : "s");
        (void)fprintf(f, "      <%s", r->failed ? "error" : "failure");
        attribute(f, "message", count);
        attribute(f, "type", moec_ci_rule_id(rule));
        (void)fputc('>', f);
        write_found(f, r, run, rule, true);
        (void)fprintf(f, "</%s>\n", r->failed ? "error" : "failure");
    } else if (!ran && all == 0) {
        (void)fputs("      <skipped/>\n", f);
    }
    if (all != bad) {
        (void)fputs("      <system-out>", f);
        write_found(f, r, run, rule, false);
        (void)fputs("</system-out>\n", f);
    }
    (void)fputs("    </testcase>\n", f);
}

/* Has the rule a case in this run? */
static bool has_case(const moec_ci_report *r, size_t run, moec_rule rule)
{
    const moec_report *report = r->runs[run].report;
    bool theorem = rule >= MOEC_RULE_T1 && rule <= MOEC_RULE_T6;
    if (theorem && report != NULL)
        return true;
    for (size_t i = 0; i < r->n_found; i++) {
        const moec_ci_found *x = &r->found[i];
        if (x->run == run && x->f.rule == rule &&
            (report == NULL ||
             !moec_ci_under_theorem(x, moec_cli_theorem_of(rule))))
            return true;
    }
    return false;
}

static bool did_run(const moec_ci_report *r, size_t run, moec_rule rule)
{
    const moec_report *report = r->runs[run].report;
    if (report == NULL || rule < MOEC_RULE_T1 || rule > MOEC_RULE_T6)
        return true;
    return moec_report_theorem(report, (size_t)(rule - MOEC_RULE_T1))->ran != 0;
}

/* A run of which nothing is to be told but that it was, or that it was not. */
static void write_bare_case(FILE *f, const moec_ci_report *r, size_t run)
{
    (void)fputs("    <testcase", f);
    attribute(f, "classname", moec_ci_run_name(r, run));
    attribute(f, "name", "all");
    if (r->runs[run].skipped) {
        (void)fputs("><skipped", f);
        attribute(f, "message",
                  r->runs[run].title != NULL ? r->runs[run].title : "");
        (void)fputs("/></testcase>\n", f);
    } else {
        (void)fputs("/>\n", f);
    }
}

typedef struct counts {
    size_t tests, failures, skipped;
} counts;

static counts count_run(const moec_ci_report *r, size_t run)
{
    counts c = {0};
    for (int i = 0; i < MOEC_RULE_COUNT; i++) {
        if (!has_case(r, run, (moec_rule)i))
            continue;
        c.tests++;
        if (count_of(r, run, (moec_rule)i, true) != 0)
            c.failures++;
        else if (!did_run(r, run, (moec_rule)i) &&
                 count_of(r, run, (moec_rule)i, false) == 0)
            c.skipped++;
    }
    if (c.tests == 0) {
        c.tests = 1;
        c.skipped = r->runs[run].skipped;
    }
    return c;
}

static void write_counts(FILE *f, const moec_ci_report *r, counts c)
{
    (void)fprintf(f, " tests=\"%zu\" failures=\"%zu\" errors=\"%zu\"", c.tests,
                  r->failed ? 0 : c.failures, r->failed ? c.failures : 0);
}

static void write_suite(FILE *f, const moec_ci_report *r, size_t run)
{
    counts c = count_run(r, run);
    bool any = false;
    (void)fputs("  <testsuite", f);
    attribute(f, "name", moec_ci_run_name(r, run));
    write_counts(f, r, c);
    (void)fprintf(f, " skipped=\"%zu\">\n", c.skipped);
    for (int i = 0; i < MOEC_RULE_COUNT; i++) {
        if (!has_case(r, run, (moec_rule)i))
            continue;
        write_case(f, r, run, (moec_rule)i, did_run(r, run, (moec_rule)i));
        any = true;
    }
    if (!any)
        write_bare_case(f, r, run);
    (void)fputs("  </testsuite>\n", f);
}

void moec_ci_write_junit(FILE *f, const moec_ci_report *r)
{
    counts all = {0};
    for (size_t i = 0; i < r->n_runs; i++) {
        counts c = count_run(r, i);
        all.tests += c.tests;
        all.failures += c.failures;
    }
    (void)fputs("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites", f);
    attribute(f, "name", "moe-convert");
    write_counts(f, r, all);
    (void)fputs(">\n", f);
    for (size_t i = 0; i < r->n_runs; i++)
        write_suite(f, r, i);
    (void)fputs("</testsuites>\n", f);
}
