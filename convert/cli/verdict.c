/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reports of the theorems, as text and as JSON.
 */
#include "verdict.h"

#include <inttypes.h>

/* Damage to the converted form (MOE-M..) stands under T6: what is damaged
 * cannot give the source back. */
moec_rule moec_cli_theorem_of(moec_rule rule)
{
    return rule >= MOEC_RULE_T1 && rule <= MOEC_RULE_T6 ? rule : MOEC_RULE_T6;
}

bool moec_cli_theorem_ok(const moec_report *report, size_t i)
{
    const moec_theorem *t = moec_report_theorem(report, i);
    if (t->ran != 0 && t->ok == 0)
        return false;
    for (size_t k = 0; k < moec_report_n_findings(report); k++) {
        const moec_finding *f = moec_report_finding(report, k);
        if (moec_cli_theorem_of(f->rule) == t->rule &&
            f->severity == MOEC_SEVERITY_ERROR)
            return false;
    }
    return true;
}

void moec_cli_json_theorem(moec_cli_json *j, size_t i, const moec_theorem *t,
                           bool ok)
{
    const moec_rule_info *rule = moec_rule_describe(t->rule);
    char id[8];
    (void)snprintf(id, sizeof(id), "T%zu", i + 1);
    moec_cli_json_str(j, "id", id);
    moec_cli_json_str(j, "rule", rule != NULL ? rule->id : NULL);
    moec_cli_json_str(j, "what", rule != NULL ? rule->what : NULL);
    moec_cli_json_bool(j, "ok", ok);
    moec_cli_json_bool(j, "ran", t->ran != 0);
    moec_cli_json_u64(j, "checked", t->checked);
    moec_cli_json_str(j, "note", t->note);
}

static void json_theorem(moec_cli_json *j, const moec_report *report, size_t i)
{
    const moec_theorem *t = moec_report_theorem(report, i);
    moec_cli_json_object(j, NULL);
    moec_cli_json_theorem(j, i, t, moec_cli_theorem_ok(report, i));
    moec_cli_json_array(j, "findings");
    for (size_t k = 0; k < moec_report_n_findings(report); k++) {
        const moec_finding *f = moec_report_finding(report, k);
        if (moec_cli_theorem_of(f->rule) == t->rule)
            moec_cli_json_finding(j, f);
    }
    moec_cli_json_end(j);
    moec_cli_json_end(j);
}

void moec_cli_json_proof(moec_cli_json *j, const moec_report *report)
{
    moec_cli_json_array(j, "theorems");
    for (size_t i = 0; i < MOEC_CLI_N_THEOREMS; i++)
        json_theorem(j, report, i);
    moec_cli_json_end(j);
    /* All of them once more, in the report's order. */
    moec_cli_json_array(j, "findings");
    for (size_t k = 0; k < moec_report_n_findings(report); k++)
        moec_cli_json_finding(j, moec_report_finding(report, k));
    moec_cli_json_end(j);
}

void moec_cli_print_theorem(FILE *f, size_t i, const moec_theorem *t, bool ok)
{
    const moec_rule_info *rule = moec_rule_describe(t->rule);
    moec_cli_line(f, "T%zu %-12s %s  %" PRIu64 " checked%s%s", i + 1,
                  rule != NULL ? rule->name : "",
                  !ok           ? "FAILED "
                  : t->ran == 0 ? "not run"
                                : "ok     ",
                  t->checked, t->note != NULL ? "; " : "",
                  t->note != NULL ? t->note : "");
}

void moec_cli_print_proof(const moec_cli *cli, const moec_report *report,
                          bool ok)
{
    size_t n = moec_report_n_findings(report);
    for (size_t i = 0; i < MOEC_CLI_N_THEOREMS; i++)
        moec_cli_print_theorem(stdout, i, moec_report_theorem(report, i),
                               moec_cli_theorem_ok(report, i));
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
    for (size_t i = 0; i < MOEC_CLI_N_THEOREMS; i++) {
        if (!moec_cli_theorem_ok(report, i))
            return false;
    }
    for (size_t k = 0; cli->args.strict && k < moec_report_n_findings(report);
         k++) {
        if (moec_report_finding(report, k)->severity >= MOEC_SEVERITY_WARNING)
            return false;
    }
    return true;
}
