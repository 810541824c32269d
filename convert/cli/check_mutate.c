/* SPDX-License-Identifier: Apache-2.0 */
/*
 * check --mutate: the checks are checked. A layout is made wrong in memory, in
 * one known way, and the rule that must name it is awaited. In all forms but
 * --json's (and text with -v) the one finding that names a mutation stands for
 * it: that is what a CI run would show of such a layout.
 */
#include <stdlib.h>
#include <string.h>

#include "memory_file.h"

#include "check_run.h"

/* What --mutate asks for, and what came of it. */
typedef struct mutations {
    const moec_check *x;
    bool selected[MOEC_MUTATION_COUNT];
    bool all;
    size_t n_found, n_missed, n_not_made;
} mutations;

/* One mutation, made. */
typedef struct outcome {
    const moec_mutation_info *info;
    moec_level level;
    moec_rule rule; /* that must name it */
    int found;
    const moec_report *report;
} outcome;

static const char *rule_id(moec_rule rule)
{
    const moec_rule_info *info = moec_rule_describe(rule);
    return info != NULL ? info->id : NULL;
}

/* ---------------------------------------------------------- the kinds */

int moec_check_list_kinds(const moec_cli *cli)
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
            moec_cli_json_str(&j, "level", moec_check_level_name(k->level));
            moec_cli_json_str(&j, "headers_rule", headers);
            moec_cli_json_str(&j, "digests_rule", digests);
            moec_cli_json_str(&j, "kernels_rule", rule_id(k->kernels_rule));
            moec_cli_json_end(&j);
        } else {
            moec_cli_line(stdout, "%-26s  %-7s  %-7s %-7s %-7s %s", k->name,
                          moec_check_level_name(k->level),
                          headers != NULL ? headers : "-",
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
static int take_kind(mutations *m, const char *word)
{
    const moec_check *x = m->x;
    moec_mutation kind = moec_mutation_find(word);
    if (strcmp(word, "all") == 0) {
        m->all = true;
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
    m->selected[kind] = true;
    return MOEC_EXIT_OK;
}

/* "a,b" and repeated options are the same. */
static int take_kinds(mutations *m)
{
    const moec_cli_list *list = &m->x->cli->args.mutate;
    for (size_t i = 0; i < list->n; i++) {
        const char *p = list->words[i];
        for (;;) {
            size_t n = strcspn(p, ",");
            char word[64];
            if (n >= sizeof(word))
                return unknown_kind(m->x->cli, p);
            memcpy(word, p, n);
            word[n] = '\0';
            int code = take_kind(m, word);
            if (code != MOEC_EXIT_OK)
                return code;
            if (p[n] == '\0')
                break;
            p += n + 1;
        }
    }
    return MOEC_EXIT_OK;
}

bool moec_check_wants_kinds(const moec_cli *cli)
{
    for (size_t i = 0; i < cli->args.mutate.n; i++) {
        if (strcmp(cli->args.mutate.words[i], "list") == 0)
            return true;
    }
    return false;
}

int moec_check_wrong_kinds(const moec_check *x)
{
    mutations m = {.x = x};
    return take_kinds(&m);
}

/* -------------------------------------------------------------- outcomes */

/* The finding that names the mutation: the first of the rule. */
static const moec_finding *naming(const outcome *o)
{
    for (size_t i = 0; i < moec_report_n_findings(o->report); i++) {
        const moec_finding *f = moec_report_finding(o->report, i);
        if (f->rule == o->rule && f->severity == MOEC_SEVERITY_ERROR)
            return f;
    }
    return NULL;
}

/* A run of the report: the finding that names it, with -v all of them. */
static void report_outcome(moec_check *x, const outcome *o,
                           const moec_layout *layout)
{
    moec_ci_report *r = &x->report;
    const moec_finding *f = naming(o);
    size_t n = moec_report_n_findings(o->report);
    moec_ci_run *run = moec_ci_begin(r, o->info->name);
    run->title =
        moec_ci_text(r, "%s: %s: %s by %s at level %s", o->info->name,
                     o->info->what, o->found ? "found" : "NOT FOUND",
                     rule_id(o->rule), moec_check_level_name(o->level));
    for (size_t i = 0; i < n; i++) {
        const moec_finding *g = moec_report_finding(o->report, i);
        if (g != NULL && (x->cli->args.verbose > 0 || g == f))
            moec_ci_add(r, g, layout, "%s", g->message);
    }
    if (x->cli->args.verbose == 0 && n > 1)
        run->tail =
            moec_ci_text(r, "    and %zu more (-v)", n - (f != NULL ? 1 : 0));
    if (!o->found) {
        moec_finding missed = {.severity = MOEC_SEVERITY_ERROR};
        moec_ci_add(r, &missed, layout, "the mutation %s was not found",
                    o->info->name);
    }
}

static void json_outcome(moec_cli_json *j, const outcome *o)
{
    moec_cli_json_bool(j, "found", o->found != 0);
    moec_cli_json_array(j, "findings");
    for (size_t i = 0; i < moec_report_n_findings(o->report); i++)
        moec_cli_json_finding(j, moec_report_finding(o->report, i));
    moec_cli_json_end(j);
}

/* A kind that cannot be made here. With `all` that is no complaint. */
static void not_made(mutations *m, moec_check *x, moec_cli_json *j,
                     const outcome *o, const moec_error *err)
{
    m->n_not_made++;
    moec_cli_json_bool(j, "found", false);
    moec_cli_json_error(j, MOEC_E_UNSUPPORTED, err);
    moec_ci_run *run = moec_ci_begin(&x->report, o->info->name);
    run->skipped = true;
    if (m->all)
        run->title = moec_ci_text(&x->report, "%s", err->text);
    else
        moec_cli_line(stderr, "moe-convert check: %s", err->text);
}

/* The proof itself could not be run. */
static int failed(moec_check *x, moec_cli_json *j, moec_status st,
                  const moec_error *err)
{
    moec_cli_json_bool(j, "found", false);
    moec_cli_json_error(j, st, err);
    moec_ci_add_error(&x->report, st, err, true);
    if (!x->cli->args.json)
        return moec_cli_fail(x->cli, st, err);
    moec_cli_line(stderr, "%s", err->text);
    return moec_cli_exit_of(st, err);
}

/* The level that a kind is made at: the one asked for, else the lowest that
 * sees it, over every byte where there is a conversion. */
static moec_level level_of(const moec_check *x, const moec_mutation_info *info)
{
    if (x->cli->args.level != 0)
        return (moec_level)x->cli->args.level;
    if (x->converted || info->level == MOEC_LEVEL_KERNELS)
        return info->level;
    return MOEC_LEVEL_HEADERS;
}

/* Make one mutation. Returns MOEC_EXIT_OK to go on. */
static int mutate(mutations *m, moec_check *x, moec_cli_json *j,
                  const moec_layout *layout, moec_mutation kind)
{
    outcome o = {.info = moec_mutation_describe(kind)};
    moec_error err = MOEC_ERROR_INIT;
    moec_report *made = NULL;
    moec_validation *v = NULL;
    int code = MOEC_EXIT_OK;
    moec_status st;
    o.level = level_of(x, o.info);
    o.rule = o.info->headers_rule;
    if (o.level == MOEC_LEVEL_KERNELS) {
        o.rule = o.info->kernels_rule;
        st = moec_check_run_kernels(x, kind, &o.found, &v, &err);
    } else if (o.level == MOEC_LEVEL_DIGESTS) {
        o.rule = o.info->digests_rule;
        st = moec_check_read_files(x, o.level, kind, &o.found, &made, &err);
    } else {
        st = moec_check_mutation(&made, &o.found, layout, kind, &err);
    }
    o.report = v != NULL ? moec_validation_report(v) : made;
    moec_cli_json_object(j, NULL);
    moec_cli_json_str(j, "kind", o.info->name);
    moec_cli_json_str(j, "level", moec_check_level_name(o.level));
    moec_cli_json_str(j, "rule", rule_id(o.rule));
    if (st == MOEC_OK) {
        json_outcome(j, &o);
        report_outcome(x, &o, layout);
        m->n_found += o.found != 0;
        m->n_missed += o.found == 0;
    } else if (st == MOEC_E_UNSUPPORTED) {
        not_made(m, x, j, &o, &err);
    } else {
        code = failed(x, j, st, &err);
    }
    moec_cli_json_end(j);
    moec_validation_destroy(v);
    moec_report_destroy(made);
    return code;
}

static int verdict(const mutations *m)
{
    if (m->n_missed != 0) {
        moec_cli_line(stderr,
                      "moe-convert check: %zu mutation%s not found: this is a "
                      "bug in moe-convert, please report it",
                      m->n_missed, m->n_missed == 1 ? "" : "s");
        return MOEC_EXIT_INTERNAL;
    }
    if (m->n_found == 0 || (m->n_not_made != 0 && !m->all))
        return MOEC_EXIT_INPUT;
    return MOEC_EXIT_FOUND;
}

/* Write the document, and the report in the other forms; `code` is the
 * command's. */
static int write_report(moec_check *x, const char *text, size_t bytes, int code)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_status st = moec_ci_settle(&x->report, &err);
    if (st != MOEC_OK)
        return moec_cli_fail(x->cli, st, &err);
    if (x->cli->args.json)
        (void)fwrite(text, 1, bytes, stdout);
    x->report.no_verdict = true;
    x->report.code = code;
    return moec_ci_write(&x->report);
}

int moec_check_mutate(moec_check *x)
{
    mutations m = {.x = x};
    moec_error err = MOEC_ERROR_INIT;
    const moec_layout *layout = NULL;
    char *text = NULL;
    size_t bytes = 0;
    moec_cli_json j = {0};
    int code = take_kinds(&m);
    moec_status st = moec_check_open_layout(x, &layout, &err);
    if (st != MOEC_OK)
        return moec_ci_fail(x->cli, st, &err);
    FILE *document = moec_cli_memory_file(&text, &bytes);
    if (document == NULL)
        return moec_cli_no_memory(x->cli, "the document");
    moec_cli_json_begin_in(&j, document, x->cli, false);
    moec_cli_json_str(&j, "path", x->path);
    moec_cli_json_array(&j, "mutations");
    for (int i = 0; code == MOEC_EXIT_OK && i < MOEC_MUTATION_COUNT; i++) {
        const moec_mutation_info *k = moec_mutation_describe((moec_mutation)i);
        bool here = k->level != MOEC_LEVEL_KERNELS || !x->converted ||
                    x->cli->args.source != NULL;
        if (m.selected[i] || (m.all && here))
            code = mutate(&m, x, &j, layout, (moec_mutation)i);
    }
    moec_cli_json_finish(&j);
    code = code != MOEC_EXIT_OK ? code : verdict(&m);
    if (fclose(document) != 0)
        return moec_cli_no_memory(x->cli, "the document");
    code = write_report(x, text, bytes, code);
    free(text);
    return code;
}
