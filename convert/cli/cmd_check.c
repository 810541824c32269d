/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert check: the checks of a CI run. For a source the layout that the
 * options give is proved from headers alone; for a conversion its files are,
 * from headers or from every byte. Level kernels runs the experts: of a source
 * over slots made in memory, of a conversion against the source it came from,
 * which must be named. What is found is held against a policy and a baseline,
 * and written in the form that the CI system reads (ci_report.h).
 */
#include <fnmatch.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "check_run.h"
#include "progress.h"
#include "results.h"

static const moec_cli_opt own_opts[] = {
    {"level", 0, MOEC_KIND_CHOICE, offsetof(moec_cli_args, level),
     "headers|digests|kernels",
     "how far to prove: names and offsets, every byte, or what the experts "
     "compute",
     NULL, "headers for SRC, digests for OUT", 0},
    {"source", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, source), "SRC",
     "of a conversion: what was converted; its bytes are compared, and level "
     "kernels needs it",
     NULL, "the manifest's digests stand in for it", 0},
    {"policy", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, policy), "FILE",
     "severities, limits and targets (moec.policy/1)", NULL, "none", 0},
    {"baseline", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, baseline), "FILE",
     "an earlier report of --json: only what is not in it fails", NULL, "none",
     0},
    {"matrix", 0, MOEC_KIND_LIST, offsetof(moec_cli_args, matrix), "W:R[:S]",
     "prove every combination of ranks, redundant and shared slots, each a "
     "list (8,16:0,32:per-rank,none), over one parse of the headers; may be "
     "repeated",
     NULL, NULL, 0},
    {"mutate", 0, MOEC_KIND_LIST, offsetof(moec_cli_args, mutate), "KIND,...",
     "make the layout wrong in memory and expect the rule that names it; "
     "list: the kinds; all: those that can be made; may be repeated",
     NULL, NULL, 0},
};
static const moec_cli_group own = {"Check", own_opts, 6};
static const moec_cli_group *const groups[] = {
    &own, &moec_group_report, &moec_group_topology, &moec_group_common, NULL};

const char *moec_check_level_name(moec_level level)
{
    switch (level) {
    case MOEC_LEVEL_HEADERS:
        return "headers";
    case MOEC_LEVEL_DIGESTS:
        return "digests";
    case MOEC_LEVEL_KERNELS:
        break;
    }
    return "kernels";
}

static void close_check(moec_check *x)
{
    moec_ci_fini(&x->report);
    moec_ci_baseline_fini(&x->baseline);
    moec_ci_policy_fini(&x->policy);
    moec_conversion_close(x->c);
    moec_ckpt_close(x->source);
    moec_cli_session_close(&x->s);
}

/* ------------------------------------------------------------ opening */

static moec_status interrupted(moec_status st, moec_error *err)
{
    if (st == MOEC_OK || moec_cli_signal == 0)
        return st;
    memset(err, 0, sizeof(*err));
    return moec_cli_error(err, MOEC_E_CANCELLED, MOEC_RULE_NONE,
                          "interrupted; nothing is proved");
}

moec_status moec_check_open_layout(moec_check *x, const moec_layout **out,
                                   moec_error *err)
{
    moec_status st = MOEC_OK;
    if (!x->converted) {
        if (x->s.layout == NULL)
            st = moec_cli_open_layout(&x->s, x->cli, x->path, err);
        *out = x->s.layout;
        return st;
    }
    if (x->s.families == NULL)
        st = moec_cli_open_families(&x->s, x->cli, err);
    if (st == MOEC_OK && x->c == NULL)
        st = moec_conversion_open(&x->c, x->path, x->s.families, err);
    if (st == MOEC_OK)
        *out = moec_conversion_layout(x->c);
    return st;
}

moec_status moec_check_read_files(moec_check *x, moec_level level,
                                  moec_mutation kind, int *found,
                                  moec_report **out, moec_error *err)
{
    moec_verify_opts opts = MOEC_VERIFY_OPTS_INIT;
    moec_cli_progress progress;
    moec_status st = MOEC_OK;
    bool compare = found == NULL && level == MOEC_LEVEL_DIGESTS &&
                   x->cli->args.source != NULL;
    if (x->s.families == NULL)
        st = moec_cli_open_families(&x->s, x->cli, err);
    if (st == MOEC_OK && compare && x->source == NULL)
        st = moec_cli_open_source(&x->source, x->cli, x->cli->args.source, err);
    if (st != MOEC_OK)
        return st;
    opts.source = compare ? x->source : NULL;
    opts.n_threads = x->cli->args.threads;
    opts.families = x->s.families;
    opts.level = level;
    opts.progress = moec_cli_progress_step;
    opts.progress_ctx = &progress;
    moec_cli_progress_begin(&progress, x->cli);
    if (moec_cli_progress_step(&progress, 0, 0) != 0)
        st = MOEC_E_CANCELLED;
    else if (found == NULL)
        st = moec_verify(out, x->path, &opts, err);
    else
        st = moec_verify_mutation(out, found, x->path, kind, &opts, err);
    moec_cli_progress_end(&progress);
    return interrupted(st, err);
}

moec_status moec_check_run_kernels(moec_check *x, moec_mutation kind,
                                   int *found, moec_validation **out,
                                   moec_error *err)
{
    moec_validate_opts opts = moec_cli_validate_opts(x->cli);
    const char *dir = x->converted ? x->path : NULL;
    moec_cli_progress progress;
    moec_status st = MOEC_OK;
    if (x->s.families == NULL)
        st = moec_cli_open_families(&x->s, x->cli, err);
    if (st == MOEC_OK && x->converted && x->source == NULL)
        st = moec_cli_open_source(&x->source, x->cli, x->cli->args.source, err);
    if (st == MOEC_OK && !x->converted)
        st = moec_check_open_layout(x, &opts.layout, err);
    if (st != MOEC_OK)
        return st;
    opts.source = x->source;
    opts.families = x->s.families;
    opts.progress = moec_cli_progress_step;
    opts.progress_ctx = &progress;
    moec_cli_progress_begin(&progress, x->cli);
    if (moec_cli_progress_step(&progress, 0, 0) != 0)
        st = MOEC_E_CANCELLED;
    else if (found == NULL)
        st = moec_validate(out, dir, &opts, err);
    else
        st = moec_validate_mutation(out, found, dir, kind, &opts, err);
    moec_cli_progress_end(&progress);
    return interrupted(st, err);
}

/* --------------------------------------------------------------- limits */

/* The load of the fullest rank over the mean, in the worst layer: every expert
 * is loaded alike and spreads its load evenly over its replicas. */
static double imbalance_of(const moec_plan *plan, double *load,
                           uint32_t *replicas, size_t *layer_out)
{
    moec_topology topo = moec_plan_topology(plan);
    uint32_t e = moec_model_facts(moec_plan_model(plan))->n_experts;
    double worst = 1.0;
    *layer_out = 0;
    for (size_t l = 0; l < moec_plan_n_layers(plan); l++) {
        double most = 0.0, sum = 0.0;
        memset(replicas, 0, e * sizeof(*replicas));
        memset(load, 0, topo.n_ranks * sizeof(*load));
        for (uint32_t pass = 0; pass < 2; pass++) {
            for (uint32_t p = 0; p < topo.n_physical; p++) {
                moec_local_row row = {p % topo.n_local};
                uint32_t rank = p / topo.n_local;
                uint32_t unit = moec_plan_unit(plan, l, rank, row);
                if (unit >= e)
                    continue;
                if (pass == 0)
                    replicas[unit]++;
                else
                    load[rank] += 1.0 / replicas[unit];
            }
        }
        for (uint32_t i = 0; i < topo.n_ranks; i++) {
            most = load[i] > most ? load[i] : most;
            sum += load[i];
        }
        if (sum > 0.0 && most * topo.n_ranks / sum > worst) {
            worst = most * topo.n_ranks / sum;
            *layer_out = l;
        }
    }
    return worst;
}

static void check_imbalance(moec_check *x, const moec_layout *layout,
                            moec_ci_run *run)
{
    const moec_plan *plan = moec_layout_plan(layout);
    uint32_t e = moec_model_facts(moec_plan_model(plan))->n_experts;
    double *load = calloc((size_t)run->topology.n_ranks + 1, sizeof(*load));
    uint32_t *replicas = calloc((size_t)e + 1, sizeof(*replicas));
    size_t layer = 0;
    if (load == NULL || replicas == NULL) {
        x->report.oom = true;
    } else {
        run->imbalance = imbalance_of(plan, load, replicas, &layer);
        /* The last digits of a sum are no finding. */
        if (x->policy.max_imbalance > 0.0 &&
            run->imbalance > x->policy.max_imbalance * (1.0 + 1e-9)) {
            moec_finding f = {.rule = MOEC_RULE_L04,
                              .severity = MOEC_SEVERITY_ERROR,
                              .has = MOEC_HAS_LAYER};
            size_t at = moec_plan_model_layer(plan, layer);
            f.layer = moec_model_layer(moec_plan_model(plan), at)->key;
            moec_ci_add(&x->report, &f, layout,
                        "the fullest rank has %.4f times the mean load, the "
                        "policy allows %.4f",
                        run->imbalance, x->policy.max_imbalance);
        }
    }
    free(load);
    free(replicas);
}

static void check_rank_bytes(moec_check *x, const moec_layout *layout,
                             moec_ci_run *run)
{
    uint64_t *bytes = calloc((size_t)run->topology.n_ranks + 1, sizeof(*bytes));
    if (bytes == NULL) {
        x->report.oom = true;
        return;
    }
    for (size_t i = 0; i < moec_layout_n_files(layout); i++) {
        const moec_out_file *f = moec_layout_file(layout, i);
        if (f->kind == MOEC_FILE_RANK && f->rank < run->topology.n_ranks)
            bytes[f->rank] += f->bytes;
    }
    for (uint32_t i = 0; i < run->topology.n_ranks; i++) {
        run->rank_bytes =
            bytes[i] > run->rank_bytes ? bytes[i] : run->rank_bytes;
        if (x->policy.max_rank_bytes == 0 ||
            bytes[i] <= x->policy.max_rank_bytes)
            continue;
        moec_finding f = {.rule = MOEC_RULE_L03,
                          .severity = MOEC_SEVERITY_ERROR,
                          .has = MOEC_HAS_RANK,
                          .rank = i};
        moec_ci_add(&x->report, &f, layout,
                    "the rank's expert files have %" PRIu64
                    " bytes, the policy allows %" PRIu64,
                    bytes[i], x->policy.max_rank_bytes);
    }
    free(bytes);
}

static void check_skipped(moec_check *x, const moec_layout *layout)
{
    const moec_plan *plan = moec_layout_plan(layout);
    const moec_ckpt *ckpt = moec_model_ckpt(moec_plan_model(plan));
    const moec_tensor *first = NULL;
    size_t n = 0;
    for (size_t i = 0; i < moec_ckpt_n_tensors(ckpt); i++) {
        const moec_tensor *t = moec_ckpt_tensor(ckpt, i);
        bool allowed = moec_plan_fate(plan, i) != MOEC_FATE_SKIPPED;
        for (size_t k = 0; !allowed && k < x->policy.n_skip; k++)
            allowed = fnmatch(x->policy.skip[k], t->name, 0) == 0;
        if (allowed)
            continue;
        first = first != NULL ? first : t;
        n++;
    }
    if (n == 0)
        return;
    moec_finding f = {.rule = MOEC_RULE_L05,
                      .severity = MOEC_SEVERITY_ERROR,
                      .has = MOEC_HAS_TENSOR,
                      .tensor = first->name};
    moec_ci_add(&x->report, &f, layout,
                "left out, and not in the policy's skip; %zu such tensors in "
                "all",
                n);
}

void moec_check_limits(moec_check *x, const moec_layout *layout)
{
    moec_ci_report *r = &x->report;
    if (layout == NULL || r->n_runs == 0)
        return;
    moec_ci_run *run = &r->runs[r->n_runs - 1];
    run->has_topology = true;
    run->topology = moec_plan_topology(moec_layout_plan(layout));
    check_rank_bytes(x, layout, run);
    check_imbalance(x, layout, run);
    if (x->policy.limits_skipped)
        check_skipped(x, layout);
}

/* ------------------------------------------------------ the plain check */

/* The level and those before it; *v_out stays NULL below level kernels. */
static moec_status prove_levels(moec_check *x, moec_validation **v_out,
                                moec_error *err)
{
    bool kernels = x->level == MOEC_LEVEL_KERNELS;
    const moec_layout *layout = NULL;
    moec_report *report = NULL;
    moec_status st;
    if (x->converted) {
        st = moec_check_read_files(x, kernels ? MOEC_LEVEL_DIGESTS : x->level,
                                   MOEC_MUTATION_COUNT, NULL, &report, err);
        /* Where the files stand is told by the layout; a conversion whose
         * layout cannot be decided again has findings that say so. */
        moec_error ignored = MOEC_ERROR_INIT;
        if (st == MOEC_OK)
            (void)moec_check_open_layout(x, &layout, &ignored);
    } else {
        st = moec_check_open_layout(x, &layout, err);
        if (st == MOEC_OK)
            st = moec_layout_prove(&report, layout, err);
    }
    if (st != MOEC_OK)
        return st;
    (void)moec_ci_begin(&x->report, NULL);
    moec_ci_take(&x->report, report, layout);
    moec_check_limits(x, layout);
    if (x->converted && layout != NULL)
        moec_check_targets(x, layout);
    moec_ci_add_notes(&x->report, x->s.ckpt);
    if (!kernels)
        return MOEC_OK;
    st = moec_check_run_kernels(x, MOEC_MUTATION_COUNT, NULL, v_out, err);
    if (st != MOEC_OK)
        return st;
    (void)moec_ci_begin(&x->report, NULL);
    moec_ci_take_results(&x->report, *v_out, layout);
    return MOEC_OK;
}

static moec_status read_rules(moec_check *x, moec_error *err)
{
    const moec_cli_args *a = &x->cli->args;
    moec_status st = MOEC_OK;
    if (a->policy != NULL)
        st = moec_ci_policy_read(&x->policy, a->policy, err);
    if (st == MOEC_OK && a->baseline != NULL)
        st = moec_ci_baseline_read(&x->baseline, a->baseline, err);
    if (st != MOEC_OK)
        return st;
    x->report.policy = a->policy != NULL ? &x->policy : NULL;
    x->report.baseline = a->baseline != NULL ? &x->baseline : NULL;
    return MOEC_OK;
}

static int prove(moec_check *x)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_validation *v = NULL;
    moec_status st = read_rules(x, &err);
    int code;
    if (st == MOEC_OK && x->cli->args.matrix.n == 0)
        st = prove_levels(x, &v, &err);
    if (st == MOEC_OK && moec_check_has_matrix(x))
        st = moec_check_matrix(x, &err);
    if (st == MOEC_OK)
        st = moec_ci_settle(&x->report, &err);
    if (st != MOEC_OK) {
        code = moec_ci_fail(x->cli, st, &err);
    } else {
        code = moec_ci_write(&x->report);
        if (x->cli->args.json)
            moec_ci_write_json(stdout, &x->report);
    }
    moec_validation_destroy(v);
    return code;
}

/* ------------------------------------------------------------ command */

/* Usage rules beyond the topology's. NULL, or the complaint. */
static const char *wrong_level(const moec_check *x)
{
    uint32_t level = x->cli->args.level;
    if (level == MOEC_CHOICE_KERNELS && x->converted &&
        x->cli->args.source == NULL)
        return "--level kernels needs --source SRC: what the conversion was "
               "made from";
    if (x->cli->args.source != NULL && !x->converted)
        return "--source is for a conversion";
    if (level == MOEC_CHOICE_DIGESTS && !x->converted)
        return "--level digests needs a conversion: a source has only headers "
               "to prove";
    return NULL;
}

/* What --matrix and --mutate exclude. */
static const char *wrong_form(const moec_check *x)
{
    const moec_cli_args *a = &x->cli->args;
    if (a->matrix.n != 0 && x->converted)
        return "--matrix is for a source: a conversion has one topology";
    if (a->matrix.n != 0 && a->mutate.n != 0)
        return "--matrix and --mutate exclude each other";
    if (a->matrix.n != 0 && x->level != MOEC_LEVEL_HEADERS)
        return "--matrix is for level headers";
    if (a->matrix.n != 0 && a->shard_by == MOEC_CHOICE_BY_EXPERT)
        return "--matrix means nothing with --shard-by expert: the store has "
               "no ranks";
    if (a->matrix.n != 0 && (a->placement != NULL || a->logical_count != NULL))
        return "--matrix has trivial placements: prove a --placement by itself";
    if (a->mutate.n != 0 && (a->policy != NULL || a->baseline != NULL))
        return "--policy and --baseline mean nothing with --mutate";
    return NULL;
}

static const char *wrong_usage(const moec_check *x,
                               char why[MOEC_OPT_WHY_BYTES])
{
    const char *wrong = moec_cli_check_topology(x->cli, false);
    if (wrong == NULL)
        wrong = wrong_level(x);
    if (wrong == NULL)
        wrong = wrong_form(x);
    if (wrong == NULL)
        wrong = moec_check_wrong_matrix(x->cli, why);
    return wrong != NULL ? wrong : moec_ci_wrong_reports(x->cli, why);
}

static int check(moec_cli *cli)
{
    moec_check x = {.cli = cli, .path = moec_cli_path(cli, 0)};
    char why[MOEC_OPT_WHY_BYTES] = "";
    if (cli->args.format == MOEC_CHOICE_JSON)
        cli->args.json = true;
    if (moec_check_wants_kinds(cli))
        return moec_check_list_kinds(cli);
    if (x.path == NULL)
        return moec_cli_usage(cli, "SRC or OUT is missing");
    moec_error err = MOEC_ERROR_INIT;
    moec_status st = moec_cli_is_conversion(x.path, &x.converted, &err);
    if (st != MOEC_OK)
        return moec_ci_fail(cli, st, &err);
    x.level = x.converted ? MOEC_LEVEL_DIGESTS : MOEC_LEVEL_HEADERS;
    if (cli->args.level != 0)
        x.level = (moec_level)cli->args.level;
    int code = moec_check_wrong_kinds(&x);
    if (code != MOEC_EXIT_OK)
        return code;
    const char *extra = moec_cli_topology_given(cli);
    if (x.converted && extra != NULL)
        return moec_cli_usage(cli,
                              "--%s: %s is converted, its topology is in its "
                              "manifest",
                              extra, x.path);
    const char *wrong = wrong_usage(&x, why);
    if (wrong != NULL)
        return moec_cli_usage(cli, "%s", wrong);
    moec_ci_init(&x.report, cli, x.path);
    x.report.level = moec_check_level_name(x.level);
    code = cli->args.mutate.n != 0 ? moec_check_mutate(&x) : prove(&x);
    close_check(&x);
    return code;
}

const moec_cli_command moec_cmd_check = {
    .name = "check",
    .fn = check,
    .line = "the checks of a CI run in one; --mutate checks the checks",
    .usage = "check SRC [--ep W] [TOPOLOGY] [--level kernels] [--mutate KIND]\n"
             "check SRC --matrix W:R[:S]\n"
             "check OUT [--level headers|digests] [--mutate KIND]\n"
             "check OUT --level kernels --source SRC [--mutate KIND]\n"
             "check --mutate list",
    .about = "Proves the layout of a source from headers alone, or a "
             "conversion from its headers and every byte; with --level kernels "
             "also what the experts compute, as validate does. Exit 1 where "
             "something is found that the policy does not allow and the "
             "baseline does not have. With --mutate a layout is made wrong in "
             "one known way, in memory: exit 1 and the finding where the rule "
             "names it, 3 where the kind cannot be made of this layout, 70 "
             "where it is not found.",
    .examples = "check ./DeepSeek-V3 --ep 32 --redundant 32\n"
                "check ./DeepSeek-V3 --matrix 8,16,32,64:0,32,64\n"
                "check ./V3-ep32 --policy ci/policy.json --format github "
                "--report sarif=moec.sarif\n"
                "check ./V3-ep32 --level headers --json\n"
                "check ./DeepSeek-V3 --ep 32 --redundant 32 --mutate E-for-P\n"
                "check ./V3-ep32 --level digests --mutate all",
    .groups = groups,
    .min_paths = 0,
    .max_paths = 1,
};
