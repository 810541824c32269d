/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert check: the checks of a CI run. For a source the layout that the
 * options give is proved from headers alone; for a conversion its files are,
 * from headers or from every byte. With --mutate the checks are checked: a
 * layout is made wrong in memory, and the rule that must name it is awaited.
 * Level kernels runs the experts: of a source over slots made in memory, of a
 * conversion against the source it came from, which must be named.
 */
#include <string.h>

#include "cli.h"
#include "print.h"
#include "progress.h"
#include "results.h"
#include "session.h"
#include "verdict.h"

static const moec_cli_opt own_opts[] = {
    {"level", 0, MOEC_KIND_CHOICE, offsetof(moec_cli_args, level),
     "headers|digests|kernels",
     "how far to prove: names and offsets, every byte, or what the experts "
     "compute",
     NULL, "headers for SRC, digests for OUT", 0},
    {"source", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, source), "SRC",
     "of a conversion at level kernels: what was converted", NULL, NULL, 0},
    {"mutate", 0, MOEC_KIND_LIST, offsetof(moec_cli_args, mutate), "KIND,...",
     "make the layout wrong in memory and expect the rule that names it; "
     "list: the kinds; all: those that can be made; may be repeated",
     NULL, NULL, 0},
    {"format", 0, MOEC_KIND_CHOICE, offsetof(moec_cli_args, format),
     "text|json", "form of the report; json is --json", "text", NULL, 0},
};
static const moec_cli_group own = {"Check", own_opts, 4};
static const moec_cli_group *const groups[] = {&own, &moec_group_topology,
                                               &moec_group_common, NULL};

/* What is checked. */
typedef struct subject {
    const moec_cli *cli;
    const char *path;
    bool converted;
    moec_cli_session s; /* of a source; of a conversion its families */
    moec_conversion *c; /* of a conversion, once something needs it */
    moec_ckpt *source;  /* --source */
    moec_cli_json *j;   /* NULL: text */
    bool selected[MOEC_MUTATION_COUNT];
    bool all;
    size_t n_found, n_missed, n_not_made;
} subject;

static void close_subject(subject *x)
{
    moec_conversion_close(x->c);
    moec_ckpt_close(x->source);
    moec_cli_session_close(&x->s);
}

static const char *level_name(moec_level level)
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

static const char *rule_id(moec_rule rule)
{
    const moec_rule_info *info = moec_rule_describe(rule);
    return info != NULL ? info->id : NULL;
}

/* ---------------------------------------------------------- the kinds */

static int list_kinds(const moec_cli *cli)
{
    moec_cli_json j;
    if (cli->args.json) {
        moec_cli_json_begin(&j, cli, true);
        moec_cli_json_array(&j, "kinds");
    }
    for (int i = 0; i < MOEC_MUTATION_COUNT; i++) {
        const moec_mutation_info *k = moec_mutation_describe((moec_mutation)i);
        const char *headers = rule_id(k->headers_rule);
        const char *digests = rule_id(k->digests_rule);
        if (cli->args.json) {
            moec_cli_json_object(&j, NULL);
            moec_cli_json_str(&j, "kind", k->name);
            moec_cli_json_str(&j, "what", k->what);
            moec_cli_json_str(&j, "level", level_name(k->level));
            moec_cli_json_str(&j, "headers_rule", headers);
            moec_cli_json_str(&j, "digests_rule", digests);
            moec_cli_json_str(&j, "kernels_rule", rule_id(k->kernels_rule));
            moec_cli_json_end(&j);
        } else {
            moec_cli_line(stdout, "%-26s  %-7s  %-7s %-7s %-7s %s", k->name,
                          level_name(k->level), headers != NULL ? headers : "-",
                          digests != NULL ? digests : "-",
                          rule_id(k->kernels_rule), k->what);
        }
    }
    if (cli->args.json)
        moec_cli_json_finish(&j);
    return MOEC_EXIT_OK;
}

static int unknown_kind(const moec_cli *cli, const char *word)
{
    const char *nearest = NULL;
    size_t least = SIZE_MAX;
    for (int i = 0; i < MOEC_MUTATION_COUNT; i++) {
        const char *name = moec_mutation_describe((moec_mutation)i)->name;
        size_t d = moec_cli_distance(word, name);
        if (d < least) {
            least = d;
            nearest = name;
        }
    }
    if (nearest != NULL && moec_cli_is_near(word, least))
        return moec_cli_usage(cli, "--mutate: no kind '%s'; did you mean '%s'?",
                              word, nearest);
    return moec_cli_usage(
        cli, "--mutate: no kind '%s'; --mutate list has all of them", word);
}

/* Take one word of --mutate. MOEC_EXIT_OK, or the exit code of a complaint. */
static int take_kind(subject *x, const char *word)
{
    moec_mutation kind = moec_mutation_find(word);
    if (strcmp(word, "all") == 0) {
        x->all = true;
        return MOEC_EXIT_OK;
    }
    if (kind == MOEC_MUTATION_COUNT)
        return unknown_kind(x->cli, word);
    if (moec_mutation_describe(kind)->level == MOEC_LEVEL_KERNELS &&
        x->converted && x->cli->args.source == NULL)
        return moec_cli_usage(x->cli,
                              "--mutate %s needs --source SRC: what %s was "
                              "converted from",
                              word, x->path);
    x->selected[kind] = true;
    return MOEC_EXIT_OK;
}

/* "a,b" and repeated options are the same. */
static int take_kinds(subject *x)
{
    const moec_cli_list *list = &x->cli->args.mutate;
    for (size_t i = 0; i < list->n; i++) {
        const char *p = list->words[i];
        for (;;) {
            size_t n = strcspn(p, ",");
            char word[64];
            if (n >= sizeof(word))
                return unknown_kind(x->cli, p);
            memcpy(word, p, n);
            word[n] = '\0';
            int code = take_kind(x, word);
            if (code != MOEC_EXIT_OK)
                return code;
            if (p[n] == '\0')
                break;
            p += n + 1;
        }
    }
    return MOEC_EXIT_OK;
}

static bool wants_list(const moec_cli *cli)
{
    for (size_t i = 0; i < cli->args.mutate.n; i++) {
        if (strcmp(cli->args.mutate.words[i], "list") == 0)
            return true;
    }
    return false;
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

static moec_status open_layout(subject *x, const moec_layout **out,
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

/* moec_verify, or moec_verify_mutation where `found` is not NULL. */
static moec_status read_files(subject *x, moec_level level, moec_mutation kind,
                              int *found, moec_report **out, moec_error *err)
{
    moec_verify_opts opts = MOEC_VERIFY_OPTS_INIT;
    moec_cli_progress progress;
    moec_status st = MOEC_OK;
    if (x->s.families == NULL)
        st = moec_cli_open_families(&x->s, x->cli, err);
    if (st != MOEC_OK)
        return st;
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

/* moec_validate, or moec_validate_mutation where `found` is not NULL. */
static moec_status run_kernels(subject *x, moec_mutation kind, int *found,
                               moec_validation **out, moec_error *err)
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
        st = open_layout(x, &opts.layout, err);
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

/* ------------------------------------------------------ the plain check */

/* The level and those before it; *v_out stays NULL below level kernels. */
static moec_status prove_levels(subject *x, moec_level level,
                                moec_report **report_out,
                                moec_validation **v_out, moec_error *err)
{
    bool kernels = level == MOEC_LEVEL_KERNELS;
    const moec_layout *layout = NULL;
    moec_status st;
    if (x->converted) {
        st = read_files(x, kernels ? MOEC_LEVEL_DIGESTS : level,
                        MOEC_MUTATION_COUNT, NULL, report_out, err);
    } else {
        st = open_layout(x, &layout, err);
        if (st == MOEC_OK)
            st = moec_layout_prove(report_out, layout, err);
    }
    if (st == MOEC_OK && kernels)
        st = run_kernels(x, MOEC_MUTATION_COUNT, NULL, v_out, err);
    return st;
}

static void print_proofs(subject *x, moec_level level,
                         const moec_report *report, const moec_validation *v,
                         bool ok)
{
    if (x->cli->args.json) {
        moec_cli_json j;
        moec_cli_json_begin(&j, x->cli, ok);
        moec_cli_json_str(&j, "path", x->path);
        moec_cli_json_str(&j, "level", level_name(level));
        moec_cli_json_proof(&j, report);
        if (v != NULL) {
            moec_cli_json_object(&j, "kernels");
            moec_cli_json_results(&j, v);
            moec_cli_json_end(&j);
        }
        moec_cli_json_problems(&j, x->s.ckpt, NULL);
        moec_cli_json_finish(&j);
        return;
    }
    moec_cli_print_proof(
        x->cli, report, v != NULL ? moec_cli_proof_passed(x->cli, report) : ok);
    if (v != NULL)
        moec_cli_print_results(x->cli, v, ok);
}

static int prove(subject *x, moec_level level)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_report *report = NULL;
    moec_validation *v = NULL;
    moec_status st = prove_levels(x, level, &report, &v, &err);
    bool ok;
    if (st != MOEC_OK) {
        moec_report_destroy(report);
        return moec_cli_fail(x->cli, st, &err);
    }
    ok = moec_cli_proof_passed(x->cli, report) &&
         (v == NULL || moec_cli_results_passed(x->cli, v));
    /* The plan's warnings are findings of the report; the source's are not. */
    if (x->cli->args.strict && moec_cli_n_warnings(x->s.ckpt, NULL) != 0)
        ok = false;
    print_proofs(x, level, report, v, ok);
    moec_cli_print_problems(x->cli, x->s.ckpt, NULL);
    moec_validation_destroy(v);
    moec_report_destroy(report);
    return ok ? MOEC_EXIT_OK : MOEC_EXIT_FOUND;
}

/* --------------------------------------------------------- mutations */

/* The finding that names the mutation: the first of the rule. */
static const moec_finding *naming(const moec_report *report, moec_rule rule)
{
    for (size_t i = 0; i < moec_report_n_findings(report); i++) {
        const moec_finding *f = moec_report_finding(report, i);
        if (f->rule == rule && f->severity == MOEC_SEVERITY_ERROR)
            return f;
    }
    return NULL;
}

static void print_outcome(subject *x, const moec_mutation_info *info,
                          moec_level level, moec_rule rule, int found,
                          const moec_report *report)
{
    size_t n = moec_report_n_findings(report);
    const moec_finding *f = naming(report, rule);
    if (x->j != NULL) {
        moec_cli_json_bool(x->j, "found", found != 0);
        moec_cli_json_array(x->j, "findings");
        for (size_t i = 0; i < n; i++)
            moec_cli_json_finding(x->j, moec_report_finding(report, i));
        moec_cli_json_end(x->j);
        return;
    }
    moec_cli_line(stdout, "%s: %s: %s by %s at level %s", info->name,
                  info->what, found ? "found" : "NOT FOUND", rule_id(rule),
                  level_name(level));
    for (size_t i = 0; i < n; i++) {
        if (x->cli->args.verbose > 0 || moec_report_finding(report, i) == f)
            moec_cli_print_finding(stdout, moec_report_finding(report, i));
    }
    if (x->cli->args.verbose == 0 && n > 1)
        moec_cli_line(stdout, "    and %zu more (-v)", n - (f != NULL));
}

/* A kind that cannot be made here. With `all` that is no complaint. */
static void print_not_made(subject *x, const moec_error *err)
{
    x->n_not_made++;
    if (x->j != NULL) {
        moec_cli_json_bool(x->j, "found", false);
        moec_cli_json_error(x->j, MOEC_E_UNSUPPORTED, err);
    } else if (x->all) {
        moec_cli_line(stdout, "%s", err->text);
    }
    if (!x->all)
        moec_cli_line(stderr, "moe-convert check: %s", err->text);
}

/* The proof itself could not be run. */
static int print_failure(subject *x, moec_status st, const moec_error *err)
{
    if (x->j == NULL)
        return moec_cli_fail(x->cli, st, err);
    moec_cli_json_bool(x->j, "found", false);
    moec_cli_json_error(x->j, st, err);
    moec_cli_line(stderr, "%s", err->text);
    return moec_cli_exit_of(st, err);
}

/* The level that a kind is made at: the one asked for, else the lowest that
 * sees it, over every byte where there is a conversion. */
static moec_level level_of(const subject *x, const moec_mutation_info *info)
{
    if (x->cli->args.level != 0)
        return (moec_level)x->cli->args.level;
    if (x->converted || info->level == MOEC_LEVEL_KERNELS)
        return info->level;
    return MOEC_LEVEL_HEADERS;
}

/* Make one mutation. Returns MOEC_EXIT_OK to go on. */
static int mutate(subject *x, const moec_layout *layout, moec_mutation kind)
{
    const moec_mutation_info *info = moec_mutation_describe(kind);
    moec_level level = level_of(x, info);
    moec_error err = MOEC_ERROR_INIT;
    moec_report *made = NULL;
    moec_validation *v = NULL;
    const moec_report *report = NULL;
    int found = 0, code = MOEC_EXIT_OK;
    moec_rule rule = info->headers_rule;
    moec_status st;
    if (level == MOEC_LEVEL_KERNELS) {
        rule = info->kernels_rule;
        st = run_kernels(x, kind, &found, &v, &err);
        report = v != NULL ? moec_validation_report(v) : NULL;
    } else if (level == MOEC_LEVEL_DIGESTS) {
        rule = info->digests_rule;
        st = read_files(x, level, kind, &found, &made, &err);
        report = made;
    } else {
        st = moec_check_mutation(&made, &found, layout, kind, &err);
        report = made;
    }
    if (x->j != NULL) {
        moec_cli_json_object(x->j, NULL);
        moec_cli_json_str(x->j, "kind", info->name);
        moec_cli_json_str(x->j, "level", level_name(level));
        moec_cli_json_str(x->j, "rule", rule_id(rule));
    }
    if (st == MOEC_OK) {
        print_outcome(x, info, level, rule, found, report);
        x->n_found += found != 0;
        x->n_missed += found == 0;
    } else if (st == MOEC_E_UNSUPPORTED) {
        print_not_made(x, &err);
    } else {
        code = print_failure(x, st, &err);
    }
    if (x->j != NULL)
        moec_cli_json_end(x->j);
    moec_validation_destroy(v);
    moec_report_destroy(made);
    return code;
}

static int verdict(const subject *x)
{
    if (x->n_missed != 0) {
        moec_cli_line(stderr,
                      "moe-convert check: %zu mutation%s not found: this is a "
                      "bug in moe-convert, please report it",
                      x->n_missed, x->n_missed == 1 ? "" : "s");
        return MOEC_EXIT_INTERNAL;
    }
    if (x->n_found == 0 || (x->n_not_made != 0 && !x->all))
        return MOEC_EXIT_INPUT;
    return MOEC_EXIT_FOUND;
}

static int run_mutations(subject *x)
{
    moec_error err = MOEC_ERROR_INIT;
    const moec_layout *layout = NULL;
    moec_cli_json j;
    int code = MOEC_EXIT_OK;
    moec_status st = open_layout(x, &layout, &err);
    if (st != MOEC_OK)
        return moec_cli_fail(x->cli, st, &err);
    if (x->cli->args.json) {
        x->j = &j;
        moec_cli_json_begin(&j, x->cli, false);
        moec_cli_json_str(&j, "path", x->path);
        moec_cli_json_array(&j, "mutations");
    }
    for (int i = 0; code == MOEC_EXIT_OK && i < MOEC_MUTATION_COUNT; i++) {
        const moec_mutation_info *k = moec_mutation_describe((moec_mutation)i);
        bool here = k->level != MOEC_LEVEL_KERNELS || !x->converted ||
                    x->cli->args.source != NULL;
        if (x->selected[i] || (x->all && here))
            code = mutate(x, layout, (moec_mutation)i);
    }
    if (x->j != NULL)
        moec_cli_json_finish(&j);
    return code != MOEC_EXIT_OK ? code : verdict(x);
}

/* ------------------------------------------------------------ command */

/* Usage rules beyond the topology's. NULL, or the complaint. */
static const char *wrong_level(const subject *x)
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

static int check(moec_cli *cli)
{
    subject x = {.cli = cli, .path = moec_cli_path(cli, 0)};
    if (cli->args.format == MOEC_CHOICE_JSON)
        cli->args.json = true;
    if (wants_list(cli))
        return list_kinds(cli);
    if (x.path == NULL)
        return moec_cli_usage(cli, "SRC or OUT is missing");
    moec_error err = MOEC_ERROR_INIT;
    moec_status st = moec_cli_is_conversion(x.path, &x.converted, &err);
    if (st != MOEC_OK)
        return moec_cli_fail(cli, st, &err);
    int code = take_kinds(&x);
    if (code != MOEC_EXIT_OK)
        return code;
    const char *extra = moec_cli_topology_given(cli);
    if (x.converted && extra != NULL)
        return moec_cli_usage(cli,
                              "--%s: %s is converted, its topology is in its "
                              "manifest",
                              extra, x.path);
    const char *wrong = moec_cli_check_topology(cli, false);
    if (wrong == NULL)
        wrong = wrong_level(&x);
    if (wrong != NULL)
        return moec_cli_usage(cli, "%s", wrong);
    moec_level level = x.converted ? MOEC_LEVEL_DIGESTS : MOEC_LEVEL_HEADERS;
    if (cli->args.level != 0)
        level = (moec_level)cli->args.level;
    code = cli->args.mutate.n != 0 ? run_mutations(&x) : prove(&x, level);
    close_subject(&x);
    return code;
}

const moec_cli_command moec_cmd_check = {
    .name = "check",
    .fn = check,
    .line = "the checks of a CI run in one; --mutate checks the checks",
    .usage = "check SRC [--ep W] [TOPOLOGY] [--level kernels] [--mutate KIND]\n"
             "check OUT [--level headers|digests] [--mutate KIND]\n"
             "check OUT --level kernels --source SRC [--mutate KIND]\n"
             "check --mutate list",
    .about = "Proves the layout of a source from headers alone, or a "
             "conversion from its headers and every byte; with --level kernels "
             "also what the experts compute, as validate does. Exit 1 where "
             "something is found. With --mutate a layout is made wrong in one "
             "known way, in memory: exit 1 and the finding where the rule "
             "names it, 3 where the kind cannot be made of this layout, 70 "
             "where it is not found.",
    .examples = "check ./DeepSeek-V3 --ep 32 --redundant 32\n"
                "check ./V3-ep32 --level headers --json\n"
                "check ./DeepSeek-V3 --ep 32 --redundant 32 --mutate E-for-P\n"
                "check ./V3-ep32 --level digests --mutate all",
    .groups = groups,
    .min_paths = 0,
    .max_paths = 1,
};
