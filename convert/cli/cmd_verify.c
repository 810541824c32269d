/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert verify: theorems T1..T6 and the digests of a conversion. What
 * it finds is data (stdout, exit 1); only a manifest or a slots.bin that
 * cannot be read is an error.
 */
#include <string.h>

#include "ci_report.h"
#include "cli.h"
#include "print.h"
#include "progress.h"
#include "session.h"
#include "verdict.h"
#include "web_source.h"

static const moec_cli_opt own_opts[] = {
    {"source", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, source), "SRC",
     "compare with the source's bytes too", NULL,
     "the manifest's digests stand in for it", 0},
};
static const moec_cli_group own = {"Verify", own_opts, 1};
static const moec_cli_group *const groups[] = {&own, &moec_group_report,
                                               &moec_group_common, NULL};

static void print_json(const moec_cli *cli, const moec_report *report, bool ok)
{
    moec_cli_json j;
    moec_cli_json_begin(&j, cli, ok);
    moec_cli_json_str(&j, "out", moec_cli_path(cli, 0));
    moec_cli_json_str(&j, "source", cli->args.source);
    moec_cli_json_proof(&j, report);
    moec_cli_json_finish(&j);
}

static int verify(moec_cli *cli)
{
    char why[MOEC_OPT_WHY_BYTES];
    const char *wrong = moec_ci_wrong_reports(cli, why);
    moec_error err = MOEC_ERROR_INIT;
    moec_verify_opts opts = MOEC_VERIFY_OPTS_INIT;
    moec_cli_progress progress;
    moec_report *report = NULL;
    moec_ckpt *source = NULL;
    moec_status st = MOEC_OK;
    int code;
    if (cli->args.format == MOEC_CHOICE_JSON)
        cli->args.json = true;
    if (wrong != NULL)
        return moec_cli_usage(cli, "%s", wrong);
    if (cli->args.source != NULL)
        st = moec_cli_open_source(&source, cli, cli->args.source, &err);
    if (st == MOEC_OK)
        st = moec_cli_web_store(&opts.store, moec_cli_path(cli, 0), &err);
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
        code = moec_ci_fail(cli, st, &err);
    } else {
        if (cli->args.json)
            print_json(cli, report, moec_cli_proof_passed(cli, report));
        code = moec_ci_write_findings(cli, report, NULL);
        report = NULL;
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
                "verify ./V3-ep32 --source ./DeepSeek-V3 --json\n"
                "verify s3://models/V3-ep32",
    .groups = groups,
    .min_paths = 1,
    .max_paths = 1,
    .url_paths = 1u,
};
