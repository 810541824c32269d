/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Prometheus' text format, for node_exporter's textfile collector: did it
 * pass, what was found of each rule. No time of its own: the collector has the
 * file's.
 */
#include "ci_report.h"

#include <inttypes.h>
#include <string.h>

static void put_label(FILE *f, const char *s)
{
    while (*s != '\0') {
        size_t n = moec_cli_utf8(s);
        if (moec_cli_put_odd(f, &s)) {
            continue;
        } else if (*s == '"' || *s == '\\') {
            (void)fprintf(f, "\\%c", *s++);
        } else {
            (void)fwrite(s, 1, n, f);
            s += n;
        }
    }
}

static void head(FILE *f, const char *name, const char *help)
{
    (void)fprintf(f, "# HELP %s %s\n# TYPE %s gauge\n", name, help, name);
}

/* NAME{command="check",path="...": the labels that all have. */
static void begin(FILE *f, const moec_ci_report *r, const char *name)
{
    (void)fprintf(f, "%s{command=\"", name);
    put_label(f, r->cli->cmd->name);
    (void)fputs("\",path=\"", f);
    put_label(f, r->path);
    (void)fputc('"', f);
}

static size_t count(const moec_ci_report *r, moec_rule rule,
                    moec_severity severity, bool known)
{
    size_t n = 0;
    for (size_t i = 0; i < r->n_found; i++) {
        const moec_ci_found *x = &r->found[i];
        n +=
            x->f.rule == rule && x->f.severity == severity && x->known == known;
    }
    return n;
}

static void findings(FILE *f, const moec_ci_report *r, moec_rule rule,
                     moec_severity severity)
{
    for (int known = 0; known < 2; known++) {
        size_t n = count(r, rule, severity, known != 0);
        if (n == 0)
            continue;
        begin(f, r, "moec_findings");
        (void)fprintf(f, ",rule=\"%s\",severity=\"%s\",known=\"%s\"} %zu\n",
                      moec_ci_rule_id(rule), moec_cli_severity_name(severity),
                      known != 0 ? "true" : "false", n);
    }
}

void moec_ci_write_prometheus(FILE *f, const moec_ci_report *r)
{
    head(f, "moec_ok", "1 where nothing that was found makes the check fail");
    begin(f, r, "moec_ok");
    (void)fprintf(f, "} %d\n", r->ok);
    head(f, "moec_exit_code", "what the command ended with");
    begin(f, r, "moec_exit_code");
    (void)fprintf(f, "} %d\n", r->code);
    head(f, "moec_run_ok", "the same of each layout that was proved");
    for (size_t i = 0; i < r->n_runs; i++) {
        if (r->runs[i].skipped)
            continue;
        begin(f, r, "moec_run_ok");
        (void)fputs(",run=\"", f);
        put_label(f, moec_ci_run_name(r, i));
        (void)fprintf(f, "\"} %d\n", r->runs[i].ok);
    }
    head(f, "moec_findings", "findings by rule and severity");
    for (int i = 0; i < MOEC_RULE_COUNT; i++) {
        findings(f, r, (moec_rule)i, MOEC_SEVERITY_ERROR);
        findings(f, r, (moec_rule)i, MOEC_SEVERITY_WARNING);
        findings(f, r, (moec_rule)i, MOEC_SEVERITY_NOTE);
    }
}
