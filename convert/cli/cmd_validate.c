/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert validate: level 3. The same hidden states through the source's
 * experts and through the converted slots; what differs is data (stdout, exit
 * 1). A layer whose router is not implemented is a warning: exit 0, and 1 under
 * --strict. With --mpi it is one of as many processes as OUT has ranks: rank 0
 * prints for all, and all end with the same code.
 */
#include <inttypes.h>
#include <string.h>

#include "ci_report.h"
#include "cli.h"
#include "print.h"
#include "progress.h"
#include "results.h"
#include "session.h"
#include "web_source.h"

static const moec_cli_opt own_opts[] = {
    {"source", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, source), "SRC",
     "what was converted", NULL, "required", 0},
    {"golden", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, golden), "FILE",
     "compare with an independent reference too: its inputs, logits, ids, "
     "weights and outputs; fixture.json beside it has the tolerance",
     NULL, NULL, 0},
    {"inputs", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, inputs), "FILE",
     "recorded hidden states: safetensors with layers.N.input [T, H]", NULL,
     "seeded normal numbers", 0},
    {"tokens", 0, MOEC_KIND_U32, offsetof(moec_cli_args, tokens), "T",
     "seeded tokens a layer", "64", NULL, 4096},
    {"seed", 0, MOEC_KIND_U32, offsetof(moec_cli_args, seed), "N",
     "of the inputs; 0: the usual one", "0", NULL, 0},
    {"cpu", 0, MOEC_KIND_CHOICE, offsetof(moec_cli_args, cpu),
     "scalar|avx2|avx512", "back end of the converted side", NULL,
     "the widest that this CPU does well", 0},
    {"device", 0, MOEC_KIND_CHOICE, offsetof(moec_cli_args, device), "cpu|cuda",
     "where the converted side runs", "cpu", NULL, 0},
    {"plugin", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, plugin), "PATH",
     "the plug-in of --device cuda, or of --mpi", NULL,
     "beside the library, then where it is installed", 0},
    {"mpi", 0, MOEC_KIND_FLAG, offsetof(moec_cli_args, mpi), NULL,
     "be one of OUT's ranks, each a process that mpirun or srun started: reads "
     "its own rank's files alone, tokens go all-to-all",
     NULL, NULL, 0},
    {"family", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, family), "FILE",
     "a family description beside the built-in ones", NULL, NULL, 0},
};
static const moec_cli_group own = {"Validate", own_opts, 10};
static const moec_cli_group *const groups[] = {&own, &moec_group_report,
                                               &moec_group_common, NULL};

/* What a run needs; any of it may be NULL. */
typedef struct needs {
    moec_cli_session s;
    moec_ckpt *source;
    moec_device *device;
    moec_exchange *exchange;
} needs;

static moec_status open_needs(needs *n, const moec_cli *cli, moec_error *err)
{
    moec_device_opts device = MOEC_DEVICE_OPTS_INIT;
    moec_status st = moec_cli_open_families(&n->s, cli, err);
    device.plugin = cli->args.plugin;
    if (st == MOEC_OK && cli->args.device == MOEC_CHOICE_DEVICE_CUDA)
        st = moec_device_open(&n->device, &device, err);
    if (st == MOEC_OK)
        st = moec_cli_open_source(&n->source, cli, cli->args.source, err);
    return st;
}

static void close_needs(needs *n)
{
    moec_device_close(n->device);
    moec_ckpt_close(n->source);
    moec_cli_session_close(&n->s);
    moec_exchange_close(n->exchange);
}

static moec_status run(const moec_cli *cli, const needs *n,
                       moec_validation **out, moec_error *err)
{
    moec_validate_opts opts = moec_cli_validate_opts(cli);
    moec_cli_progress progress;
    moec_status st =
        moec_cli_web_store(&opts.store, moec_cli_path(cli, 0), err);
    if (st != MOEC_OK)
        return st;
    opts.source = n->source;
    opts.device = n->device;
    opts.exchange = n->exchange;
    opts.families = n->s.families;
    opts.progress = moec_cli_progress_step;
    opts.progress_ctx = &progress;
    moec_cli_progress_begin(&progress, cli);
    st = moec_cli_progress_step(&progress, 0, 0) != 0 && n->exchange == NULL
             ? MOEC_E_CANCELLED
             : moec_validate(out, moec_cli_path(cli, 0), &opts, err);
    moec_cli_progress_end(&progress);
    if (st == MOEC_OK || moec_cli_signal == 0)
        return st;
    memset(err, 0, sizeof(*err));
    return moec_cli_error(err, MOEC_E_CANCELLED, MOEC_RULE_NONE,
                          "interrupted; nothing is proved");
}

static void print_json(const moec_cli *cli, const moec_validation *v, bool ok)
{
    moec_cli_json j;
    moec_cli_json_begin(&j, cli, ok);
    moec_cli_json_str(&j, "out", moec_cli_path(cli, 0));
    moec_cli_json_str(&j, "source", cli->args.source);
    moec_cli_json_str(&j, "golden", cli->args.golden);
    moec_cli_json_str(&j, "inputs", cli->args.inputs);
    moec_cli_json_results(&j, v);
    moec_cli_json_finish(&j);
}

static const char *wrong_usage(const moec_cli *cli,
                               char why[MOEC_OPT_WHY_BYTES])
{
    const char *wrong = moec_ci_wrong_reports(cli, why);
    bool cuda = cli->args.device == MOEC_CHOICE_DEVICE_CUDA;
    if (wrong != NULL)
        return wrong;
    if (cli->args.source == NULL)
        return "--source SRC is missing: what OUT was converted from";
    if (!cuda && !cli->args.mpi && cli->args.plugin != NULL)
        return "--plugin is for --device cuda and --mpi";
    if (cli->args.mpi && (cuda || cli->args.golden != NULL))
        return cuda ? "--mpi and --device cuda do not go together"
                    : "--golden is for one process, not for --mpi";
    return NULL;
}

/* One of several processes: the first one prints, and so does one that could
 * not tell the others why it failed, and then takes them along. */
static int settle(const moec_cli *cli, const needs *n, moec_status st,
                  const moec_error *err, const moec_validation *v)
{
    bool first = n->exchange == NULL || moec_exchange_rank(n->exchange) == 0;
    bool alone = n->exchange != NULL && st != MOEC_OK &&
                 !moec_exchange_agreed(n->exchange);
    int code;
    if (!first && !alone) {
        if (st != MOEC_OK)
            return moec_cli_exit_of(st, err);
        return moec_cli_results_passed(cli, v) ? MOEC_EXIT_OK : MOEC_EXIT_FOUND;
    }
    if (st != MOEC_OK) {
        code = moec_ci_fail(cli, st, err);
        if (alone) {
            (void)fflush(stdout);
            moec_exchange_abandon(n->exchange, code);
        }
        return code;
    }
    if (cli->args.json)
        print_json(cli, v, moec_cli_results_passed(cli, v));
    return moec_ci_write_findings(cli, NULL, v);
}

/* The first one shows the progress of all; and each has a token, where nobody
 * said how many there are. */
static void be_a_rank(moec_cli *cli, const moec_exchange *x)
{
    if (moec_exchange_rank(x) != 0)
        cli->args.progress = MOEC_CHOICE_PROGRESS_NONE;
    if (!moec_cli_given(&cli->args, groups, "tokens") &&
        cli->args.tokens < moec_exchange_size(x))
        cli->args.tokens = moec_exchange_size(x);
}

static int validate(moec_cli *cli)
{
    char why[MOEC_OPT_WHY_BYTES];
    moec_error err = MOEC_ERROR_INIT;
    moec_validation *v = NULL;
    needs n = {0};
    moec_status st = MOEC_OK;
    const char *wrong;
    int code;
    if (cli->args.format == MOEC_CHOICE_JSON)
        cli->args.json = true;
    wrong = wrong_usage(cli, why);
    if (wrong != NULL)
        return moec_cli_usage(cli, "%s", wrong);
    if (cli->args.mpi)
        st = moec_exchange_open(&n.exchange, cli->args.plugin, &err);
    if (n.exchange != NULL)
        be_a_rank(cli, n.exchange);
    if (st == MOEC_OK)
        st = open_needs(&n, cli, &err);
    if (n.exchange != NULL)
        st = moec_exchange_agree(n.exchange, st, &err);
    if (st == MOEC_OK)
        st = run(cli, &n, &v, &err);
    code = settle(cli, &n, st, &err, v);
    moec_validation_destroy(v);
    close_needs(&n);
    return code;
}

const moec_cli_command moec_cmd_validate = {
    .name = "validate",
    .fn = validate,
    .line = "routing kernels end to end, converted against source",
    .usage = "validate OUT --source SRC [--golden FILE] [--inputs FILE]",
    .about =
        "Sends the same hidden states through the source's experts, one by "
        "one, and through the converted slots of all ranks: choice, dispatch, "
        "alignment, expert FFN, combine. Ids and routed outputs must be equal "
        "bit for bit, the shared expert within rounding; then every replica "
        "rule, every source rank, padding, waterfill and Expert Choice must "
        "come to the same slots. Exit 1 where something is found; a router "
        "that is not implemented is a warning. With --mpi (mpirun -n W "
        "moe-convert "
        "validate OUT --source SRC --mpi) each of OUT's W ranks is a process.",
    .examples =
        "validate ./V3-ep32 --source ./DeepSeek-V3\n"
        "validate ./V3-ep32 --source ./DeepSeek-V3 --inputs hidden.safetensors "
        "--json\n"
        "validate ./out --source ./fixture --golden "
        "./fixture/golden.safetensors",
    .groups = groups,
    .min_paths = 1,
    .max_paths = 1,
    .url_paths = 1u,
};
