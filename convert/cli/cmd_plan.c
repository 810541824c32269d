/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert plan: what convert and a loader would do, proved (T1, T2, T4,
 * T5). Reads headers only; refuses what convert would refuse.
 */
#include "cli.h"
#include "print.h"
#include "rank_list.h"
#include "session.h"
#include "verdict.h"
#include "written.h"

static const moec_cli_group *const groups[] = {
    &moec_group_topology, &moec_group_ranks, &moec_group_common, NULL};

/* What it came to, once it is known. */
static int tell(moec_cli *cli, const moec_cli_session *s,
                const moec_cli_ranks *ranks, const moec_report *report)
{
    moec_convert_opts opts = moec_cli_convert_opts(cli, NULL);
    opts.source = s->conversion;
    uint64_t memory = moec_convert_memory(s->plan, &opts);
    bool proved = moec_report_ok(report);
    bool ok = proved &&
              (!cli->args.strict || moec_cli_n_warnings(s->ckpt, s->plan) == 0);
    if (cli->args.json) {
        moec_cli_json j;
        moec_cli_json_begin(&j, cli, ok);
        moec_cli_json_plan(&j, s->layout, ranks->mine, memory);
        moec_cli_json_proof(&j, report);
        moec_cli_json_finish(&j);
    } else {
        moec_cli_print_plan(s->layout, ranks->mine, memory);
        if (!proved) /* convert would refuse it, too */
            moec_cli_print_proof(cli, report, false);
    }
    moec_cli_print_problems(cli, s->ckpt, s->plan);
    if (!proved)
        return MOEC_EXIT_INPUT;
    return ok ? MOEC_EXIT_OK : MOEC_EXIT_FOUND;
}

static int plan(moec_cli *cli)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_cli_session s = {0};
    moec_report *report = NULL;
    moec_cli_ranks ranks = {0};
    int code;
    const char *wrong = moec_cli_check_topology(cli, true);
    if (wrong != NULL)
        return moec_cli_usage(cli, "%s", wrong);
    moec_status st = moec_cli_open_layout(&s, cli, moec_cli_path(cli, 0), &err);
    if (st == MOEC_OK)
        st = moec_layout_prove(&report, s.layout, &err);
    if (st != MOEC_OK)
        code = moec_cli_fail(cli, st, &err);
    else
        code = moec_cli_ranks_read(&ranks, cli,
                                   moec_plan_topology(s.plan).n_ranks);
    if (code == MOEC_EXIT_OK)
        code = tell(cli, &s, &ranks, report);
    moec_cli_ranks_free(&ranks);
    moec_report_destroy(report);
    moec_cli_session_close(&s);
    return code;
}

const moec_cli_command moec_cmd_plan = {
    .name = "plan",
    .fn = plan,
    .line = "what convert and a loader would do; reads headers only",
    .usage = "plan SRC --ep W [TOPOLOGY]",
    .about = "Says how many slots each rank gets, what is read and written "
             "for it, which files come out and how much memory the conversion "
             "takes. No weight is read.",
    .examples = "plan ./DeepSeek-V3 --ep 32 --redundant 32\n"
                "plan ./DeepSeek-V3 --ep 8 --placement eplb.json --json",
    .groups = groups,
    .min_paths = 1,
    .max_paths = 1,
    .url_paths = 1u,
};
