/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert verify: theorems T1..T6 and the digests of a conversion. What
 * it finds is data (stdout, exit 1); only a manifest or a slots.bin that
 * cannot be read is an error.
 */
#include <inttypes.h>
#include <string.h>

#include "cli.h"
#include "print.h"
#include "progress.h"
#include "session.h"

static const moec_cli_opt own_opts[] = {
    {"source", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, source), "SRC",
     "compare with the source's bytes too", NULL,
     "the manifest's digests stand in for it", 0},
    {"format", 0, MOEC_KIND_CHOICE, offsetof(moec_cli_args, format),
     "text|json", "form of the report; json is --json", "text", NULL, 0},
};
static const moec_cli_group own = {"Verify", own_opts, 2};
static const moec_cli_group *const groups[] = {&own, &moec_group_common, NULL};

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

static void print_json(const moec_cli *cli, const moec_report *report, bool ok)
{
    moec_cli_json j;
    moec_cli_json_begin(&j, cli, ok);
    moec_cli_json_str(&j, "out", moec_cli_path(cli, 0));
    moec_cli_json_str(&j, "source", cli->args.source);
    moec_cli_json_array(&j, "theorems");
    for (size_t i = 0; i < N_THEOREMS; i++)
        json_theorem(&j, report, i);
    moec_cli_json_end(&j);
    /* All of them once more, in the report's order. */
    moec_cli_json_array(&j, "findings");
    for (size_t k = 0; k < moec_report_n_findings(report); k++)
        moec_cli_json_finding(&j, moec_report_finding(report, k));
    moec_cli_json_end(&j);
    moec_cli_json_finish(&j);
}

static void print_text(const moec_cli *cli, const moec_report *report, bool ok)
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

/* True where nothing was found that makes this run fail. */
static bool passed(const moec_cli *cli, const moec_report *report)
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

static int verify(moec_cli *cli)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_verify_opts opts = MOEC_VERIFY_OPTS_INIT;
    moec_cli_progress progress;
    moec_report *report = NULL;
    moec_ckpt *source = NULL;
    moec_status st = MOEC_OK;
    int code;
    if (cli->args.format == MOEC_CHOICE_JSON)
        cli->args.json = true;
    if (cli->args.source != NULL)
        st = moec_cli_open_source(&source, cli, cli->args.source, &err);
    if (st == MOEC_OK) {
        opts.n_threads = cli->args.threads;
        opts.source = source;
        opts.progress = moec_cli_progress_step;
        opts.progress_ctx = &progress;
        moec_cli_progress_begin(&progress, cli);
        /* A small conversion is read before the library asks once. */
        st = moec_cli_progress_step(&progress, 0, 0) != 0
                 ? MOEC_E_CANCELLED
                 : moec_verify(&report, moec_cli_path(cli, 0), &opts, &err);
        moec_cli_progress_end(&progress);
    }
    if (st != MOEC_OK) {
        if (moec_cli_signal != 0) {
            memset(&err, 0, sizeof(err));
            st = moec_cli_error(&err, MOEC_E_CANCELLED, MOEC_RULE_NONE,
                                "interrupted; nothing is proved");
        }
        code = moec_cli_fail(cli, st, &err);
    } else {
        bool ok = passed(cli, report);
        if (cli->args.json)
            print_json(cli, report, ok);
        else
            print_text(cli, report, ok);
        code = ok ? MOEC_EXIT_OK : MOEC_EXIT_FOUND;
    }
    moec_report_destroy(report);
    moec_ckpt_close(source);
    return code;
}

const moec_cli_command moec_cmd_verify = {
    .name = "verify",
    .fn = verify,
    .line = "digests and theorems T1..T6",
    .usage = "verify OUT [--source SRC]",
    .about = "Proves that every slot holds its expert: T1 every source tensor "
             "is used, T2 every byte is written once, T3 the bytes are the "
             "source's, T4 the map is total, T5 types agree, T6 the way back "
             "exists. Reads every byte once. Exit 1 where something is found.",
    .examples = "verify ./V3-ep32\n"
                "verify ./V3-ep32 --source ./DeepSeek-V3 --json",
    .groups = groups,
    .min_paths = 1,
    .max_paths = 1,
};
