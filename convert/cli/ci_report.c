/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Findings gathered, placed, weighed and fingerprinted. A finding that names
 * no file is given the nearest one, since a CI system shows nothing without a
 * place: the file of its tensor, the rank's file of its layer, config.json.
 */
#include "ci_report.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "memory_file.h"

void moec_ci_init(moec_ci_report *r, const moec_cli *cli, const char *path)
{
    memset(r, 0, sizeof(*r));
    r->cli = cli;
    r->path = path;
    r->what = "proved";
}

void moec_ci_fini(moec_ci_report *r)
{
    for (size_t i = 0; i < r->n_runs; i++)
        moec_report_destroy(r->runs[i].report);
    for (size_t i = 0; i < r->n_texts; i++)
        free(r->texts[i]);
    free(r->runs);
    free(r->texts);
    free(r->found);
    free(r->text);
    memset(r, 0, sizeof(*r));
}

/* Room for one item more in an array of `n`; false: no memory. */
static bool make_room(void **items, size_t n, size_t *cap, size_t bytes)
{
    if (n < *cap)
        return true;
    size_t grown = *cap == 0 ? 16 : *cap * 2;
    void *p = reallocarray(*items, grown, bytes);
    if (p == NULL)
        return false;
    *items = p;
    *cap = grown;
    return true;
}

const char *moec_ci_text(moec_ci_report *r, const char *fmt, ...)
{
    char *text = NULL;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&text, fmt, ap);
    va_end(ap);
    if (n < 0 || !make_room((void **)&r->texts, r->n_texts, &r->cap_texts,
                            sizeof(*r->texts))) {
        if (n >= 0)
            free(text);
        r->oom = true;
        return "";
    }
    r->texts[r->n_texts++] = text;
    return text;
}

moec_ci_run *moec_ci_begin(moec_ci_report *r, const char *name)
{
    static moec_ci_run nowhere; /* what is said to it after OOM is not read */
    if (!make_room((void **)&r->runs, r->n_runs, &r->cap_runs,
                   sizeof(*r->runs))) {
        r->oom = true;
        memset(&nowhere, 0, sizeof(nowhere));
        return &nowhere;
    }
    moec_ci_run *run = &r->runs[r->n_runs++];
    memset(run, 0, sizeof(*run));
    run->name = name != NULL ? moec_ci_text(r, "%s", name) : NULL;
    return run;
}

/* ---------------------------------------------------------------- files */

static const char *file_of_tensor(const moec_layout *layout, const char *name)
{
    const moec_ckpt *ckpt =
        moec_model_ckpt(moec_plan_model(moec_layout_plan(layout)));
    size_t i = moec_ckpt_find(ckpt, name);
    if (i == SIZE_MAX)
        return NULL;
    return moec_ckpt_file(ckpt, moec_ckpt_tensor(ckpt, i)->file)->name;
}

/* The file with the slots of a layer, of its tensor where that is named. */
static const char *file_of_layer(const moec_layout *layout,
                                 const moec_finding *f)
{
    const moec_plan *plan = moec_layout_plan(layout);
    const moec_model *model = moec_plan_model(plan);
    bool ranked = (f->has & MOEC_HAS_RANK) != 0 &&
                  f->rank < moec_plan_topology(plan).n_ranks;
    for (size_t i = 0; i < moec_plan_n_layers(plan); i++) {
        size_t at = moec_plan_model_layer(plan, i), file = 0, t = 0;
        moec_layer_key key = moec_model_layer(model, at)->key;
        size_t n = moec_plan_n_slot_tensors(plan, i);
        uint64_t off = 0;
        if (key.space != f->layer.space || key.number != f->layer.number ||
            n == 0)
            continue;
        for (size_t k = 0; (f->has & MOEC_HAS_TENSOR) != 0 && k < n; k++) {
            if (strcmp(moec_plan_slot_tensor(plan, i, k)->name, f->tensor) == 0)
                t = k;
        }
        moec_layout_find_slots(layout, ranked ? f->rank : 0, i, t, &file, &off);
        return moec_layout_file(layout, file)->name;
    }
    return NULL;
}

static bool is_router_rule(moec_rule rule)
{
    return rule == MOEC_RULE_K01 || rule == MOEC_RULE_K02 ||
           rule == MOEC_RULE_K09;
}

static const char *nearest_file(const moec_ci_report *r,
                                const moec_layout *layout,
                                const moec_finding *f)
{
    const char *file = NULL;
    if ((f->has & MOEC_HAS_FILE) != 0)
        return f->file;
    if (f->rule == MOEC_RULE_L01)
        return r->cli->args.policy;
    if (f->rule >= MOEC_RULE_P01 && f->rule < MOEC_RULE_T1 &&
        r->cli->args.placement != NULL)
        return r->cli->args.placement;
    /* What a router computes stands in config.json. */
    if (is_router_rule(f->rule))
        return "config.json";
    if (layout != NULL && (f->has & MOEC_HAS_TENSOR) != 0)
        file = file_of_tensor(layout, f->tensor);
    if (file == NULL && layout != NULL && (f->has & MOEC_HAS_LAYER) != 0)
        file = file_of_layer(layout, f);
    if (file != NULL)
        return file;
    if (f->rule >= MOEC_RULE_M01 && f->rule <= MOEC_RULE_M09)
        return "manifest.json";
    return "config.json";
}

/* The file that an error's text begins with: "[rule] FILE: ...", or
 * "[rule] DIR: FILE: ..." where DIR is what is checked. */
static const char *file_of_error(moec_ci_report *r, const char *text)
{
    const char *at = text, *end;
    if (*at == '[' && strstr(at, "] ") != NULL)
        at = strstr(at, "] ") + 2;
    for (end = strstr(at, ": "); end != NULL; end = strstr(end + 1, ": ")) {
        const char *name = moec_ci_text(r, "%.*s", (int)(end - at), at);
        const char *below = moec_ci_text(r, "%s/%s", r->path, name);
        if (strcmp(name, r->path) == 0)
            at = end + 2;
        else if (access(name, F_OK) == 0 || access(below, F_OK) == 0)
            return name;
    }
    return r->path;
}

/* --------------------------------------------------------------- adding */

static moec_ci_found *append(moec_ci_report *r, const moec_finding *f,
                             const moec_layout *layout)
{
    static moec_ci_found nowhere;
    if (!make_room((void **)&r->found, r->n_found, &r->cap_found,
                   sizeof(*r->found))) {
        r->oom = true;
        return &nowhere;
    }
    moec_ci_found *x = &r->found[r->n_found++];
    memset(x, 0, sizeof(*x));
    x->f = *f;
    x->run = r->n_runs - 1;
    x->file = nearest_file(r, layout, f);
    return x;
}

void moec_ci_take(moec_ci_report *r, moec_report *report,
                  const moec_layout *layout)
{
    if (r->n_runs == 0 || r->runs[r->n_runs - 1].report != NULL) {
        moec_report_destroy(report);
        r->oom = true;
        return;
    }
    r->runs[r->n_runs - 1].report = report;
    for (size_t i = 0; i < moec_report_n_findings(report); i++)
        (void)append(r, moec_report_finding(report, i), layout);
}

void moec_ci_take_results(moec_ci_report *r, const moec_validation *v,
                          const moec_layout *layout)
{
    const moec_report *report = moec_validation_report(v);
    if (r->n_runs == 0)
        return;
    r->runs[r->n_runs - 1].v = v;
    for (size_t i = 0; i < moec_report_n_findings(report); i++)
        (void)append(r, moec_report_finding(report, i), layout);
}

static const char *copy(moec_ci_report *r, const moec_finding *f, uint32_t bit,
                        const char *s)
{
    return (f->has & bit) != 0 ? moec_ci_text(r, "%s", s) : NULL;
}

void moec_ci_add(moec_ci_report *r, const moec_finding *like,
                 const moec_layout *layout, const char *fmt, ...)
{
    moec_finding f = *like;
    char *message = NULL;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&message, fmt, ap);
    va_end(ap);
    r->oom |= n < 0;
    f.message = moec_ci_text(r, "%s", n >= 0 ? message : "");
    if (n >= 0)
        free(message);
    f.file = copy(r, like, MOEC_HAS_FILE, like->file);
    f.tensor = copy(r, like, MOEC_HAS_TENSOR, like->tensor);
    f.expected = copy(r, like, MOEC_HAS_EXPECTED, like->expected);
    f.found = copy(r, like, MOEC_HAS_FOUND, like->found);
    (void)append(r, &f, layout);
}

/* Errors and notes have their rule in front: a finding has a field for it. */
static const char *without_rule(const char *text)
{
    const char *end = strstr(text, "] ");
    return text[0] == '[' && end != NULL ? end + 2 : text;
}

void moec_ci_add_notes(moec_ci_report *r, const moec_ckpt *ckpt)
{
    if (r->n_runs == 0)
        (void)moec_ci_begin(r, NULL);
    for (size_t i = 0; ckpt != NULL && i < moec_ckpt_n_notes(ckpt); i++) {
        const moec_note *note = moec_ckpt_note(ckpt, i);
        moec_finding f = {.rule = note->rule,
                          .severity = moec_cli_note_severity(note),
                          .has = MOEC_HAS_FILE};
        f.file = file_of_error(r, note->text);
        f.message = moec_ci_text(r, "%s", without_rule(note->text));
        append(r, &f, NULL)->problem = true;
    }
}

void moec_ci_add_error(moec_ci_report *r, moec_status st, const moec_error *err,
                       bool stops)
{
    moec_finding f = {.rule = err->rule,
                      .severity = MOEC_SEVERITY_ERROR,
                      .has = MOEC_HAS_FILE};
    if (r->n_runs == 0)
        (void)moec_ci_begin(r, NULL);
    f.file = file_of_error(r, err->text);
    f.message = moec_ci_text(r, "%s",
                             err->text[0] != '\0' ? without_rule(err->text)
                                                  : moec_status_name(st));
    if (err->has_off != 0) {
        f.has |= MOEC_HAS_OFFSET;
        f.offset = err->file_off;
    }
    (void)append(r, &f, NULL);
    if (stops) {
        r->failed = true;
        r->code = moec_cli_exit_of(st, err);
    }
}

/* -------------------------------------------------------------- settling */

/* Drop what the policy switches off, and give the rest its severity. What
 * stopped the command is no matter of policy. */
static void apply_policy(moec_ci_report *r)
{
    size_t kept = 0;
    for (size_t i = 0; i < r->n_found; i++) {
        moec_ci_found *x = &r->found[i];
        uint8_t word = r->policy != NULL && (size_t)x->f.rule < MOEC_RULE_COUNT
                           ? r->policy->severity[x->f.rule]
                           : 0;
        if (r->failed && i + 1 == r->n_found)
            word = 0;
        if (word == MOEC_CI_OFF)
            continue;
        if (word == MOEC_CI_NOTE)
            x->f.severity = MOEC_SEVERITY_NOTE;
        else if (word == MOEC_CI_WARNING)
            x->f.severity = MOEC_SEVERITY_WARNING;
        else if (word == MOEC_CI_ERROR)
            x->f.severity = MOEC_SEVERITY_ERROR;
        r->found[kept++] = *x;
    }
    r->n_found = kept;
}

/* What a finding is about, in one text. Numbers within the message are left
 * out: "256 weights differ" is the same finding as "255 weights differ". */
static moec_status fingerprint(const moec_ci_report *r, moec_ci_found *x,
                               moec_error *err)
{
    const moec_finding *f = &x->f;
    const char *run = r->runs[x->run].name;
    char *text = NULL;
    size_t n = 0;
    uint8_t digest[32];
    FILE *s = moec_cli_memory_file(&text, &n);
    if (s == NULL)
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for a fingerprint");
    (void)fprintf(s, "moec/1%c%s%c%s%c", 0, moec_ci_rule_id(f->rule), 0,
                  x->file, 0);
    if ((f->has & MOEC_HAS_TENSOR) != 0)
        (void)fprintf(s, "tensor%s", f->tensor);
    (void)fputc(0, s);
    if ((f->has & MOEC_HAS_LAYER) != 0)
        (void)fprintf(s, "layer%d.%" PRIu32, (int)f->layer.space,
                      f->layer.number);
    if ((f->has & MOEC_HAS_RANK) != 0)
        (void)fprintf(s, "rank%" PRIu32, f->rank);
    if ((f->has & MOEC_HAS_SLOT) != 0)
        (void)fprintf(s, "slot%" PRIu32, f->slot);
    if ((f->has & MOEC_HAS_EXPERT) != 0)
        (void)fprintf(s, "expert%" PRIu32, f->expert);
    if ((f->has & MOEC_HAS_OFFSET) != 0)
        (void)fprintf(s, "offset%" PRIu64, f->offset);
    (void)fprintf(s, "%c%s%c", 0, run != NULL ? run : "", 0);
    for (const char *p = f->message; *p != '\0'; p++) {
        if (*p < '0' || *p > '9')
            (void)fputc(*p, s);
        else if (p == f->message || p[-1] < '0' || p[-1] > '9')
            (void)fputc('#', s);
    }
    if (fclose(s) != 0) {
        free(text);
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for a fingerprint");
    }
    moec_status st = moec_digest_memory(text, n, digest, err);
    free(text);
    for (size_t i = 0; st == MOEC_OK && i < 16; i++)
        (void)snprintf(x->print + 2 * i, 3, "%02x", digest[i]);
    return st;
}

/* More than 10,000 findings are counted, not listed: an error may be among
 * those that are not. */
static bool hides_errors(const moec_ci_report *r, const moec_ci_run *run)
{
    for (size_t t = 0; run->report != NULL && t < MOEC_CLI_N_THEOREMS; t++) {
        const moec_theorem *th = moec_report_theorem(run->report, t);
        bool listed = false;
        for (size_t k = 0; k < moec_report_n_findings(run->report); k++) {
            const moec_finding *f = moec_report_finding(run->report, k);
            listed = listed || (f->rule == th->rule &&
                                f->severity == MOEC_SEVERITY_ERROR);
        }
        if (th->ran != 0 && th->ok == 0 && !listed)
            return true;
    }
    return r->oom;
}

moec_status moec_ci_settle(moec_ci_report *r, moec_error *err)
{
    moec_severity bar =
        r->cli->args.strict ? MOEC_SEVERITY_WARNING : MOEC_SEVERITY_ERROR;
    apply_policy(r);
    if (r->oom)
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for the findings");
    for (size_t i = 0; i < r->n_runs; i++)
        r->runs[i].ok = !hides_errors(r, &r->runs[i]);
    for (size_t i = 0; i < r->n_found; i++) {
        moec_ci_found *x = &r->found[i];
        moec_status st = fingerprint(r, x, err);
        if (st != MOEC_OK)
            return st;
        x->known =
            r->baseline != NULL && moec_ci_baseline_take(r->baseline, x->print);
        x->fails = !x->known && x->f.severity >= bar;
        if (x->fails)
            r->runs[x->run].ok = false;
    }
    r->ok = !r->failed;
    for (size_t i = 0; i < r->n_runs; i++)
        r->ok = r->ok && r->runs[i].ok;
    if (!r->failed)
        r->code = r->ok ? MOEC_EXIT_OK : MOEC_EXIT_FOUND;
    return MOEC_OK;
}

/* -------------------------------------------------------------- for writers */

const char *moec_ci_rule_id(moec_rule rule)
{
    const moec_rule_info *info = moec_rule_describe(rule);
    return info != NULL ? info->id : "MOE-NONE";
}

const char *moec_ci_rule_name(moec_rule rule)
{
    const moec_rule_info *info = moec_rule_describe(rule);
    return info != NULL ? info->name : "failure";
}

char *moec_ci_path(const moec_ci_report *r, const moec_ci_found *x)
{
    char *path = NULL;
    const char *slash =
        r->path[strlen(r->path) - (*r->path != '\0')] == '/' ? "" : "/";
    if (asprintf(&path, "%s%s%s", r->path, slash, x->file) < 0) {
        moec_cli_cut();
        return NULL;
    }
    /* What a finding names itself and is not there is missing below. */
    bool named = (x->f.has & MOEC_HAS_FILE) != 0 && x->file[0] != '/';
    if (strcmp(x->file, r->path) != 0 &&
        (access(path, F_OK) == 0 || (named && access(x->file, F_OK) != 0)))
        return path;
    free(path);
    path = strdup(x->file);
    if (path == NULL)
        moec_cli_cut();
    return path;
}

static void put_number(FILE *s, const char **lead, const char *word, uint64_t v)
{
    (void)fprintf(s, "%s%s %" PRIu64, *lead, word, v);
    *lead = ", ";
}

/* Escaped as moec_cli_line does it; takes `raw`. */
static char *escaped(char *raw)
{
    char *text = NULL;
    size_t n = 0;
    FILE *s = moec_cli_memory_file(&text, &n);
    if (s == NULL) {
        free(raw);
        return NULL;
    }
    moec_cli_line(s, "%s", raw);
    free(raw);
    if (fclose(s) != 0) {
        free(text);
        return NULL;
    }
    text[n - 1] = '\0'; /* the line's end */
    return text;
}

char *moec_ci_message(const moec_ci_report *r, const moec_ci_found *x)
{
    const moec_finding *f = &x->f;
    const char *lead = ": ";
    char *text = NULL, layer[24];
    size_t n = 0;
    FILE *s = moec_cli_memory_file(&text, &n);
    if (s == NULL)
        return NULL;
    if ((f->has & MOEC_HAS_TENSOR) != 0 &&
        strstr(f->message, f->tensor) == NULL)
        (void)fprintf(s, "'%s': ", f->tensor);
    (void)fputs(f->message, s);
    if ((f->has & MOEC_HAS_LAYER) != 0) {
        (void)fprintf(s, "%slayer %s", lead,
                      moec_cli_layer_name(layer, f->layer));
        lead = ", ";
    }
    if ((f->has & MOEC_HAS_RANK) != 0)
        put_number(s, &lead, "rank", f->rank);
    if ((f->has & MOEC_HAS_SLOT) != 0)
        put_number(s, &lead, "slot", f->slot);
    if ((f->has & MOEC_HAS_EXPERT) != 0)
        put_number(s, &lead, "expert", f->expert);
    if ((f->has & MOEC_HAS_OFFSET) != 0)
        put_number(s, &lead, "offset", f->offset);
    if ((f->has & MOEC_HAS_EXPECTED) != 0)
        (void)fprintf(s, "; expected %s", f->expected);
    if ((f->has & MOEC_HAS_FOUND) != 0)
        (void)fprintf(s, "; found %s", f->found);
    if (r->runs[x->run].name != NULL)
        (void)fprintf(s, " (%s)", r->runs[x->run].name);
    if (fclose(s) != 0) {
        free(text);
        return NULL;
    }
    return escaped(text);
}

static int by_severity(const void *pa, const void *pb)
{
    const moec_ci_found *a = *(const moec_ci_found *const *)pa;
    const moec_ci_found *b = *(const moec_ci_found *const *)pb;
    if (a->fails != b->fails)
        return a->fails ? -1 : 1;
    if (a->f.severity != b->f.severity)
        return a->f.severity > b->f.severity ? -1 : 1;
    return (a > b) - (a < b); /* one array: its order */
}

const moec_ci_found **moec_ci_worst_first(const moec_ci_report *r)
{
    /* NOLINTNEXTLINE(bugprone-sizeof-expression): an array of pointers */
    const moec_ci_found **list = calloc(r->n_found + 1, sizeof(*list));
    if (list == NULL) {
        moec_cli_cut();
        return NULL;
    }
    for (size_t i = 0; i < r->n_found; i++)
        list[i] = &r->found[i];
    /* NOLINTNEXTLINE(bugprone-sizeof-expression): sorts pointers */
    qsort(list, r->n_found, sizeof(*list), by_severity);
    return list;
}

const char *moec_ci_run_name(const moec_ci_report *r, size_t i)
{
    if (r->runs[i].name != NULL)
        return r->runs[i].name;
    return r->runs[i].v != NULL ? "kernels" : "layout";
}

bool moec_ci_under_theorem(const moec_ci_found *x, moec_rule theorem)
{
    return !x->problem && x->f.rule < MOEC_RULE_K01 &&
           moec_cli_theorem_of(x->f.rule) == theorem;
}

bool moec_ci_theorem_ok(const moec_ci_report *r, size_t run, size_t t)
{
    const moec_report *report = r->runs[run].report;
    const moec_theorem *th = moec_report_theorem(report, t);
    for (size_t i = 0; i < r->n_found; i++) {
        const moec_ci_found *x = &r->found[i];
        if (x->run == run && x->f.severity == MOEC_SEVERITY_ERROR &&
            moec_ci_under_theorem(x, th->rule))
            return false;
    }
    return th->ran == 0 || th->ok != 0;
}

size_t moec_ci_count(const moec_ci_report *r, moec_severity severity)
{
    size_t n = 0;
    for (size_t i = 0; i < r->n_found; i++)
        n += !r->found[i].known && r->found[i].f.severity == severity;
    return n;
}
