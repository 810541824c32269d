/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reports of the theorems, as text and as JSON.
 */
#include "verdict.h"

#include <inttypes.h>

enum { N_THEOREMS = 6 };

/* The theorem under which a finding stands. Damage to the converted form
 * (MOE-M..) stands under T6: what is damaged cannot give the source back. */
static moec_rule theorem_of(const moec_finding *f)
{
    return f->rule >= MOEC_RULE_T1 && f->rule <= MOEC_RULE_T6 ? f->rule
                                                              : MOEC_RULE_T6;
}

static bool theorem_ok(const moec_report *report, const moec_theorem *t)
{
    if (t->ran != 0 && t->ok == 0)
        return false;
    for (size_t k = 0; k < moec_report_n_findings(report); k++) {
        const moec_finding *f = moec_report_finding(report, k);
        if (theorem_of(f) == t->rule && f->severity == MOEC_SEVERITY_ERROR)
            return false;
    }
    return true;
}

static void json_theorem(moec_cli_json *j, const moec_report *report, size_t i)
{
    const moec_theorem *t = moec_report_theorem(report, i);
    const moec_rule_info *rule = moec_rule_describe(t->rule);
    char id[8];
    (void)snprintf(id, sizeof(id), "T%zu", i + 1);
    moec_cli_json_object(j, NULL);
    moec_cli_json_str(j, "id", id);
    moec_cli_json_str(j, "rule", rule != NULL ? rule->id : NULL);
    moec_cli_json_str(j, "what", rule != NULL ? rule->what : NULL);
    moec_cli_json_bool(j, "ok", theorem_ok(report, t));
    moec_cli_json_bool(j, "ran", t->ran != 0);
    moec_cli_json_u64(j, "checked", t->checked);
    moec_cli_json_str(j, "note", t->note);
    moec_cli_json_array(j, "findings");
    for (size_t k = 0; k < moec_report_n_findings(report); k++) {
        const moec_finding *f = moec_report_finding(report, k);
        if (theorem_of(f) == t->rule)
            moec_cli_json_finding(j, f);
    }
    moec_cli_json_end(j);
    moec_cli_json_end(j);
}

void moec_cli_json_proof(moec_cli_json *j, const moec_report *report)
{
    moec_cli_json_array(j, "theorems");
    for (size_t i = 0; i < N_THEOREMS; i++)
        json_theorem(j, report, i);
    moec_cli_json_end(j);
    /* All of them once more, in the report's order. */
    moec_cli_json_array(j, "findings");
    for (size_t k = 0; k < moec_report_n_findings(report); k++)
        moec_cli_json_finding(j, moec_report_finding(report, k));
    moec_cli_json_end(j);
}

void moec_cli_print_proof(const moec_cli *cli, const moec_report *report,
                          bool ok)
{
    size_t n = moec_report_n_findings(report);
    for (size_t i = 0; i < N_THEOREMS; i++) {
        const moec_theorem *t = moec_report_theorem(report, i);
        const moec_rule_info *rule = moec_rule_describe(t->rule);
        moec_cli_line(stdout, "T%zu %-12s %s  %" PRIu64 " checked%s%s", i + 1,
                      rule != NULL ? rule->name : "",
                      !theorem_ok(report, t) ? "FAILED "
                      : t->ran == 0          ? "not run"
                                             : "ok     ",
                      t->checked, t->note != NULL ? "; " : "",
                      t->note != NULL ? t->note : "");
    }
    for (size_t k = 0; k < n; k++)
        moec_cli_print_finding(stdout, moec_report_finding(report, k));
    moec_cli_line(stdout, "%s: %s%s", moec_cli_path(cli, 0),
                  ok ? "proved" : "NOT proved",
                  ok && n > 0 ? ", with notes" : "");
}

bool moec_cli_proof_passed(const moec_cli *cli, const moec_report *report)
{
    if (!moec_report_ok(report))
        return false;
    for (size_t i = 0; i < N_THEOREMS; i++) {
        if (!theorem_ok(report, moec_report_theorem(report, i)))
            return false;
    }
    for (size_t k = 0; cli->args.strict && k < moec_report_n_findings(report);
         k++) {
        if (moec_report_finding(report, k)->severity >= MOEC_SEVERITY_WARNING)
            return false;
    }
    return true;
}
