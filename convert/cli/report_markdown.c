/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A summary in Markdown: verdict, what was proved, the worst findings. Names
 * come from files: whatever Markdown or HTML would take for markup, and @,
 * which would call somebody, is escaped.
 */
#include "ci_report.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Rows of a table that a person reads; the rest is counted. */
enum { MOST = 50 };

static void put(FILE *f, const char *s)
{
    while (*s != '\0') {
        size_t n = moec_cli_utf8(s);
        if (moec_cli_put_odd(f, &s)) {
            continue;
        } else if (n == 1 && strchr("<>&@\"", *s) != NULL) {
            (void)fprintf(f, "&#%d;", *s++);
        } else if (n == 1 && strchr("\\`*_{}[]#|~!$:", *s) != NULL) {
            (void)fprintf(f, "\\%c", *s++);
        } else {
            (void)fwrite(s, 1, n, f);
            s += n;
        }
    }
}

static const char *mark(bool ok)
{
    return ok ? "ok" : "**FAILED**";
}

static void theorems(FILE *f, const moec_ci_report *r, size_t run)
{
    const moec_report *report = r->runs[run].report;
    (void)fputs("| theorem | result | checked |\n|---|---|---|\n", f);
    for (size_t t = 0; t < MOEC_CLI_N_THEOREMS; t++) {
        const moec_theorem *th = moec_report_theorem(report, t);
        const moec_rule_info *info = moec_rule_describe(th->rule);
        bool ok = moec_ci_theorem_ok(r, run, t);
        (void)fprintf(f, "| T%zu ", t + 1);
        put(f, info != NULL ? info->name : "");
        (void)fprintf(f, " | %s | %" PRIu64 " |\n",
                      ok && th->ran == 0 ? "not run" : mark(ok), th->checked);
    }
    (void)fputc('\n', f);
}

static void runs(FILE *f, const moec_ci_report *r)
{
    bool headed = false;
    for (size_t i = 0; i < r->n_runs; i++) {
        const moec_ci_run *run = &r->runs[i];
        if (run->name == NULL && run->report != NULL)
            theorems(f, r, i);
        if (run->name == NULL)
            continue;
        if (!headed)
            (void)fputs("| checked | result |\n|---|---|\n", f);
        headed = true;
        (void)fputs("| ", f);
        put(f, run->name);
        (void)fprintf(f, " | %s |\n", run->skipped ? "skipped" : mark(run->ok));
    }
    if (headed)
        (void)fputc('\n', f);
}

static void found(FILE *f, const moec_ci_report *r)
{
    const moec_ci_found **worst = moec_ci_worst_first(r);
    if (r->n_found != 0)
        (void)fputs("| severity | rule | where | what |\n|---|---|---|---|\n",
                    f);
    for (size_t i = 0; worst != NULL && i < r->n_found && i < MOST; i++) {
        const moec_ci_found *x = worst[i];
        char *path = moec_ci_path(r, x), *message = moec_ci_message(r, x);
        (void)fprintf(f, "| %s%s | %s ", moec_cli_severity_name(x->f.severity),
                      x->known ? ", known" : "", moec_ci_rule_id(x->f.rule));
        put(f, moec_ci_rule_name(x->f.rule));
        (void)fputs(" | ", f);
        put(f, path != NULL ? path : x->file);
        (void)fputs(" | ", f);
        put(f, message != NULL ? message : x->f.message);
        (void)fputs(" |\n", f);
        free(path);
        free(message);
    }
    if (r->n_found > MOST)
        (void)fprintf(f, "\nand %zu more\n", r->n_found - MOST);
    if (r->n_found != 0)
        (void)fputc('\n', f);
    free(worst);
}

void moec_ci_write_markdown(FILE *f, const moec_ci_report *r)
{
    (void)fprintf(f, "### moe-convert %s: ", r->cli->cmd->name);
    put(f, r->path);
    (void)fprintf(f, "\n\n%s: %zu errors, %zu warnings, %zu notes",
                  r->failed ? "**could not be checked**"
                  : r->ok   ? "passed"
                            : "**FAILED**",
                  moec_ci_count(r, MOEC_SEVERITY_ERROR),
                  moec_ci_count(r, MOEC_SEVERITY_WARNING),
                  moec_ci_count(r, MOEC_SEVERITY_NOTE));
    if (r->level != NULL)
        (void)fprintf(f, "; level %s", r->level);
    (void)fputs("\n\n", f);
    runs(f, r);
    found(f, r);
}
