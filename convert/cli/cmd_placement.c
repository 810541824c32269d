/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert placement: the list of its commands, and the ones that read and
 * write files. check: does a placement fit a model and a number of ranks? One
 * that does not is refused (exit 3) with layer, slot and value; what is legal
 * but wasteful is a warning, a finding with --strict (exit 1). import, export:
 * from any engine's form to any other's.
 */
#include <stdlib.h>
#include <string.h>

#include "ci_report.h"
#include "cli.h"
#include "option_files.h"
#include "placement_input.h"
#include "print.h"

/* -------------------------------------------------------------- check */

static const moec_cli_group *const check_groups[] = {
    &moec_group_placed, &moec_group_report, &moec_group_common, NULL};

static void add_finding(void *ctx, const moec_finding *f)
{
    moec_ci_report *r = ctx;
    moec_finding plain = *f;
    plain.has |= MOEC_HAS_FILE;
    plain.file = r->path;
    moec_ci_add(r, &plain, NULL, "%s", f->message);
}

static void print_check(const moec_cli *cli, const moec_cli_placed *x, bool ok)
{
    moec_cli_json j;
    moec_cli_json_begin(&j, cli, ok);
    moec_cli_json_str(&j, "placement", moec_cli_path(cli, 0));
    moec_cli_placed_facts(x, &j);
    moec_cli_placed_json(x, &j);
    moec_cli_json_finish(&j);
}

static int report_check(const moec_cli *cli, const moec_cli_placed *x)
{
    const char *path = moec_cli_path(cli, 0);
    moec_error err = MOEC_ERROR_INIT;
    moec_ci_report r;
    moec_ci_init(&r, cli, path);
    r.no_verdict = true;
    (void)moec_ci_begin(&r, NULL);
    moec_cli_placed_each(x, add_finding, &r);
    moec_status st = moec_ci_settle(&r, &err);
    if (st == MOEC_OK && cli->args.json)
        print_check(cli, x, r.ok);
    int code = st == MOEC_OK ? moec_ci_write(&r) : moec_cli_fail(cli, st, &err);
    if (st == MOEC_OK && cli->args.format == MOEC_CHOICE_TEXT &&
        !cli->args.json)
        moec_cli_line(
            stdout, "%s: %s, %u layers, %u experts in %u slots, %zu warning%s",
            path, x->form, moec_placement_n_layers(x->p),
            moec_placement_n_experts(x->p), moec_placement_n_physical(x->p),
            moec_ci_count(&r, MOEC_SEVERITY_WARNING),
            moec_ci_count(&r, MOEC_SEVERITY_WARNING) == 1 ? "" : "s");
    moec_ci_fini(&r);
    return code;
}

static int check(moec_cli *cli)
{
    char why[MOEC_OPT_WHY_BYTES];
    const char *wrong = moec_ci_wrong_reports(cli, why);
    moec_cli_placed x = {0};
    moec_error err = MOEC_ERROR_INIT;
    if (cli->args.format == MOEC_CHOICE_JSON)
        cli->args.json = true;
    if (wrong != NULL)
        return moec_cli_usage(cli, "%s", wrong);
    moec_status st = moec_cli_placed_open(&x, cli, moec_cli_path(cli, 0), &err);
    int code =
        st == MOEC_OK ? report_check(cli, &x) : moec_ci_fail(cli, st, &err);
    moec_cli_placed_close(&x);
    return code;
}

const moec_cli_command moec_cmd_placement_check = {
    .name = "placement check",
    .fn = check,
    .line = "does a placement fit the model and the ranks?",
    .usage = "placement check FILE [--source SRC] [--ep W]",
    .about = "Reads a placement file of any engine and says what is wrong "
             "with it: exit 3 with layer, slot and value where it is refused; "
             "0 with warnings, 1 with --strict. Also what engines let through "
             "without a word: an expert without a slot, rows too few. Without "
             "--source a file can only be held against itself.",
    .examples = "placement check p2l.json --source ./DeepSeek-V3 --ep 32\n"
                "placement check moe_load_balancer.yaml --source ./DeepSeek-V3",
    .groups = check_groups,
    .min_paths = 1,
    .max_paths = 1,
};

/* ----------------------------------------------------- import, export */

static const moec_cli_opt import_opts[] = {
    {"format", 0, MOEC_KIND_CHOICE, offsetof(moec_cli_args, form),
     MOEC_CLI_FORMS, "form to write", "sglang", NULL, 0},
    {"npy", 0, MOEC_KIND_FLAG, offsetof(moec_cli_args, npy), NULL,
     "write .npy instead of JSON: phy2log, log2phy, logcnt, vllm", NULL, NULL,
     0},
    {"strategy", 0, MOEC_KIND_CHOICE, offsetof(moec_cli_args, strategy),
     "linear|round_robin",
     "instead of FILE: where vLLM puts experts without EPLB", NULL, NULL, 0},
    {"force", 'f', MOEC_KIND_FLAG, offsetof(moec_cli_args, force), NULL,
     "replace a file that exists", NULL, NULL, 0},
};
static const moec_cli_opt export_opts[] = {
    {"format", 0, MOEC_KIND_CHOICE, offsetof(moec_cli_args, form),
     MOEC_CLI_FORMS, "form to write", NULL, "required", 0},
    {"npy", 0, MOEC_KIND_FLAG, offsetof(moec_cli_args, npy), NULL,
     "write .npy instead of JSON: phy2log, log2phy, logcnt, vllm", NULL, NULL,
     0},
    {"force", 'f', MOEC_KIND_FLAG, offsetof(moec_cli_args, force), NULL,
     "replace a file that exists", NULL, NULL, 0},
};
static const moec_cli_group import_group = {"Import", import_opts, 4};
static const moec_cli_group export_group = {"Export", export_opts, 3};
static const moec_cli_group *const import_groups[] = {
    &import_group, &moec_group_placed, &moec_group_common, NULL};
static const moec_cli_group *const export_groups[] = {
    &export_group, &moec_group_placed, &moec_group_common, NULL};

/* By the order of MOEC_CLI_FORMS. */
moec_placement_form moec_cli_form_of(uint32_t choice)
{
    static const moec_placement_form forms[] = {
        MOEC_PLACEMENT_SGLANG,  MOEC_PLACEMENT_SGLANG,
        MOEC_PLACEMENT_TRTLLM,  MOEC_PLACEMENT_VLLM_ASCEND,
        MOEC_PLACEMENT_PHY2LOG, MOEC_PLACEMENT_EPLB,
        MOEC_PLACEMENT_PHY2LOG, MOEC_PLACEMENT_LOG2PHY,
        MOEC_PLACEMENT_LOGCNT,
    };
    return forms[choice];
}

static moec_status make_text(const moec_cli *cli, const moec_cli_placed *x,
                             void **out, size_t *bytes, moec_error *err)
{
    moec_placement_write_opts o = MOEC_PLACEMENT_WRITE_OPTS_INIT;
    o.form = moec_cli_form_of(cli->args.form);
    o.npy = cli->args.npy;
    o.keys = x->has_keys ? x->keys : NULL;
    o.n_layers = x->n_layers;
    o.n_ranks = x->n_ranks;
    o.replica = x->replica;
    if (!x->has_keys &&
        (o.form == MOEC_PLACEMENT_SGLANG || o.form == MOEC_PLACEMENT_TRTLLM))
        return moec_cli_error(err, MOEC_E_MAPPING, MOEC_RULE_P02,
                              "rows of MoE layers, and nothing says which "
                              "decoder layers they are: give --source SRC or "
                              "--moe-layers A-B");
    if (x->n_ranks == 0 && o.form == MOEC_PLACEMENT_VLLM_ASCEND)
        return moec_cli_error(err, MOEC_E_MAPPING, MOEC_RULE_P07,
                              "vllm-ascend files list devices: give --ep W");
    return moec_placement_write(x->p, &o, out, bytes, err);
}

static void report_written(const moec_cli *cli, const moec_cli_placed *x,
                           const char *text)
{
    const char *out = moec_cli_path(cli, 1);
    const char *form =
        moec_placement_form_name(moec_cli_form_of(cli->args.form));
    if (cli->args.json) {
        moec_cli_json j;
        moec_cli_json_begin(&j, cli, true);
        moec_cli_json_str(&j, "placement", moec_cli_path(cli, 0));
        moec_cli_placed_facts(x, &j);
        moec_cli_json_str(&j, "format", form);
        moec_cli_json_str(&j, "out", out);
        if (text != NULL)
            moec_cli_json_str(&j, "text", text);
        moec_cli_placed_json(x, &j);
        moec_cli_json_finish(&j);
        return;
    }
    moec_cli_placed_print(x, cli);
    if (out != NULL && !cli->args.quiet)
        moec_cli_line(stderr, "%s: %u layers of %u slots, %s to %s", out,
                      moec_placement_n_layers(x->p),
                      moec_placement_n_physical(x->p), x->form, form);
}

static void count_warning(void *ctx, const moec_finding *f)
{
    *(size_t *)ctx += f->severity == MOEC_SEVERITY_WARNING;
}

static void print_finding(void *ctx, const moec_finding *f)
{
    moec_cli_print_finding(ctx, f);
}

/* --strict: nothing is written where something was found. */
static int refuse_findings(const moec_cli *cli, const moec_cli_placed *x)
{
    if (cli->args.json) {
        moec_cli_json j;
        moec_cli_json_begin(&j, cli, false);
        moec_cli_json_str(&j, "placement", moec_cli_path(cli, 0));
        moec_cli_placed_facts(x, &j);
        moec_cli_placed_json(x, &j);
        moec_cli_json_finish(&j);
    } else {
        moec_cli_placed_each(x, print_finding, stdout);
    }
    return MOEC_EXIT_FOUND;
}

static moec_status put_text(const moec_cli *cli, const moec_cli_placed *x,
                            const void *text, size_t bytes, moec_error *err)
{
    const char *out = moec_cli_path(cli, 1);
    moec_status st = MOEC_OK;
    if (out != NULL)
        st = moec_cli_write_file(out, text, bytes, cli->args.force, err);
    else if (!cli->args.json)
        (void)fwrite(text, 1, bytes, stdout);
    if (st == MOEC_OK)
        report_written(cli, x, out == NULL && !cli->args.npy ? text : NULL);
    return st;
}

static int transform(moec_cli *cli)
{
    moec_cli_placed x = {0};
    moec_error err = MOEC_ERROR_INIT;
    void *text = NULL;
    size_t bytes = 0;
    moec_status st;
    if (cli->args.form == 0)
        return moec_cli_usage(cli,
                              "--format is missing: one of " MOEC_CLI_FORMS);
    if (cli->args.strategy != 0)
        st = moec_cli_placed_strategy(&x, cli, &err);
    else
        st = moec_cli_placed_open(&x, cli, moec_cli_path(cli, 0), &err);
    size_t warnings = 0;
    if (st == MOEC_OK && cli->args.strict)
        moec_cli_placed_each(&x, count_warning, &warnings);
    if (st == MOEC_OK && warnings == 0)
        st = make_text(cli, &x, &text, &bytes, &err);
    if (st == MOEC_OK && warnings == 0)
        st = put_text(cli, &x, text, bytes, &err);
    free(text);
    int code = st != MOEC_OK   ? moec_cli_fail(cli, st, &err)
               : warnings != 0 ? refuse_findings(cli, &x)
                               : MOEC_EXIT_OK;
    moec_cli_placed_close(&x);
    return code;
}

static int import(moec_cli *cli)
{
    const moec_cli_args *a = &cli->args;
    if (a->strategy == 0 && a->n_paths == 0)
        return moec_cli_usage(cli, "FILE is missing, or --strategy");
    if (a->strategy != 0) {
        if (a->n_paths > 1)
            return moec_cli_usage(cli, "--strategy stands instead of FILE: OUT "
                                       "alone may follow");
        if (!moec_cli_given(a, cli->cmd->groups, "ep") || a->ep == 0)
            return moec_cli_usage(cli, "--strategy needs --ep W");
        if (a->source == NULL &&
            (a->moe_layers == NULL ||
             !moec_cli_given(a, cli->cmd->groups, "experts")))
            return moec_cli_usage(cli, "--strategy needs --source SRC, or "
                                       "--experts E and --moe-layers A-B");
        /* OUT is the second path everywhere else. */
        a->paths[1] = a->paths[0];
        a->paths[0] =
            a->strategy == MOEC_CHOICE_VLLM_LINEAR ? "linear" : "round_robin";
        cli->args.n_paths++;
    }
    return transform(cli);
}

const moec_cli_command moec_cmd_placement_import = {
    .name = "placement import",
    .fn = import,
    .line = "any engine's placement as SGLang's, which convert reads too",
    .usage = "placement import FILE [OUT] [--source SRC]\n"
             "placement import --strategy linear|round_robin [OUT] --ep W",
    .about = "Reads a placement by its content (SGLang JSON or .pt, "
             "TensorRT-LLM YAML, vllm-ascend JSON, EPLB's phy2log and log2phy "
             "as JSON, .npy, .npz or .pt, a conversion's own) and writes it "
             "as OUT, or to stdout. A .pt file's pickle is read as data and "
             "never run.",
    .examples =
        "placement import moe_load_balancer.yaml p2l.json\n"
        "placement import phy2log.npy p2l.json --source ./DeepSeek-V3\n"
        "placement import --strategy round_robin p2l.json --ep 32 --source "
        "./DeepSeek-V3",
    .groups = import_groups,
    .min_paths = 0,
    .max_paths = 2,
};

const moec_cli_command moec_cmd_placement_export = {
    .name = "placement export",
    .fn = transform,
    .line = "a placement in the form of another engine",
    .usage = "placement export FILE|OUT [TO] --format FORM [--source SRC]",
    .about = "The other way round: from any form to the one that --format "
             "names. Forms with decoder layers (sglang, trtllm) need to know "
             "them, by --source or --moe-layers, where the file has rows of "
             "MoE layers alone.",
    .examples = "placement export p2l.json moe_load_balancer.yaml --format "
                "trtllm --source ./DeepSeek-V3\n"
                "placement export ./V3-ep32 phy2log.npy --format phy2log --npy",
    .groups = export_groups,
    .min_paths = 1,
    .max_paths = 2,
};

/* --------------------------------------------------------------- list */

static const moec_cli_command *const subs[] = {
    &moec_cmd_placement_import, &moec_cmd_placement_export,
    &moec_cmd_placement_eplb,   &moec_cmd_placement_check,
    &moec_cmd_placement_show,   NULL};

const moec_cli_command moec_cmd_placement = {
    .name = "placement",
    .line = "placement files of several engines; EPLB from load counts",
    .about = "Placements say which expert stands in which slot.",
    .subs = subs,
};
