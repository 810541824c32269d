/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert placement: the list of its commands, and `placement check`:
 * does a placement file fit a model and a number of ranks? A file that does
 * not is refused (exit 3) with layer, slot and value; what is legal but
 * wasteful is a warning, a finding with --strict (exit 1).
 */
#include <string.h>

#include "cli.h"
#include "print.h"
#include "session.h"

static const moec_cli_opt own_opts[] = {
    {"source", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, source), "SRC",
     "the model that the file is for: a checkpoint or a conversion", NULL,
     "required", 0},
    {"format", 0, MOEC_KIND_CHOICE, offsetof(moec_cli_args, format),
     "text|json", "form of the report; json is --json", "text", NULL, 0},
};
static const moec_cli_group own = {"Check", own_opts, 2};
static const moec_cli_group *const groups[] = {&own, &moec_group_topology,
                                               &moec_group_common, NULL};

static int report(const moec_cli *cli, const moec_cli_session *s)
{
    size_t n = moec_cli_n_warnings(NULL, s->plan);
    bool ok = !cli->args.strict || n == 0;
    moec_topology t = moec_plan_topology(s->plan);
    if (cli->args.json) {
        moec_cli_json j;
        moec_cli_json_begin(&j, cli, ok);
        moec_cli_json_str(&j, "placement", cli->args.placement);
        moec_cli_json_topology(&j, s->plan);
        moec_cli_json_problems(&j, NULL, s->plan);
        moec_cli_json_finish(&j);
    } else {
        moec_cli_print_problems(cli, NULL, s->plan);
        moec_cli_line(stdout,
                      "%s: fits %zu MoE layers, %u slots on %u ranks, %zu "
                      "warning%s",
                      cli->args.placement, moec_plan_n_layers(s->plan),
                      t.n_physical, t.n_ranks, n, n == 1 ? "" : "s");
    }
    return ok ? MOEC_EXIT_OK : MOEC_EXIT_FOUND;
}

static int check(moec_cli *cli)
{
    moec_cli_session s = {0};
    moec_error err = MOEC_ERROR_INIT;
    const char *why = moec_cli_check_topology(cli, false);
    if (why != NULL)
        return moec_cli_usage(cli, "%s", why);
    if (cli->args.source == NULL)
        return moec_cli_usage(cli, "--source SRC is missing: the model that "
                                   "the placement is for");
    if (cli->args.format == MOEC_CHOICE_JSON)
        cli->args.json = true;
    cli->args.placement = moec_cli_path(cli, 0);
    moec_status st = moec_cli_open_layout(&s, cli, cli->args.source, &err);
    int code = st == MOEC_OK ? report(cli, &s) : moec_cli_fail(cli, st, &err);
    moec_cli_session_close(&s);
    return code;
}

const moec_cli_command moec_cmd_placement_check = {
    .name = "placement check",
    .fn = check,
    .line = "does a placement fit the model and the ranks?",
    .usage = "placement check FILE --source SRC [--ep W]",
    .about = "Reads a placement file as convert would and says what is wrong "
             "with it: exit 3 with layer, slot and value where it is refused, "
             "0 with warnings, 1 with --strict.",
    .examples = "placement check p2l.json --source ./DeepSeek-V3 --ep 32",
    .groups = groups,
    .min_paths = 1,
    .max_paths = 1,
};

static const moec_cli_command *const subs[] = {&moec_cmd_placement_check,
                                               &moec_cmd_placement_eplb, NULL};

const moec_cli_command moec_cmd_placement = {
    .name = "placement",
    .line = "placement files of several engines",
    .about = "Placements say which expert stands in which slot.",
    .subs = subs,
};
