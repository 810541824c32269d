/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many layouts of one source: every combination of --matrix and every target
 * of the policy. The headers are parsed once; plans, layouts and proofs are
 * made by a few threads at a time over the one model, which is immutable, and
 * taken into the report in order. A combination that cannot be (slots that do
 * not divide by the ranks) is a finding of its run, no failure of the command.
 */
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "check_run.h"

enum { MOST_THREADS = 64, MOST_NUMBERS = 256, MOST_COMBINATIONS = 65536 };

static const char shared_words[] = "per-rank|global|none";

typedef struct combination {
    const char *target; /* of the policy, or NULL */
    uint32_t ep, redundant;
    uint32_t shared; /* MOEC_CHOICE_PER_RANK..; 0: what the options say */
    uint32_t w13;    /* MOEC_CHOICE_GATE_UP..; 0: what the options say */
} combination;

/* ------------------------------------------------------------- the words */

/* One list of numbers: "8,16", up to `end`. False where it is none. */
static bool read_numbers(const char *p, const char *end, uint32_t least,
                         uint32_t *out, size_t *n_out)
{
    size_t n = 0;
    while (n < MOST_NUMBERS) {
        char word[16];
        uint64_t v = 0;
        size_t len = strcspn(p, ",:");
        if (len > (size_t)(end - p) || len >= sizeof(word))
            return false;
        memcpy(word, p, len);
        word[len] = '\0';
        if (!moec_cli_parse_u64(word, UINT32_MAX, &v) || v < least)
            return false;
        out[n++] = (uint32_t)v;
        if (p + len == end) {
            *n_out = n;
            return true;
        }
        p += len + 1;
    }
    return false;
}

static bool read_words(const char *p, uint32_t *out, size_t *n_out)
{
    size_t n = 0;
    while (n < 3) {
        char word[16];
        size_t len = strcspn(p, ",");
        if (len >= sizeof(word))
            return false;
        memcpy(word, p, len);
        word[len] = '\0';
        out[n] = moec_cli_parse_choice(shared_words, word);
        if (out[n++] == 0)
            return false;
        if (p[len] == '\0') {
            *n_out = n;
            return true;
        }
        p += len + 1;
    }
    return false;
}

typedef struct axes {
    uint32_t ep[MOST_NUMBERS], redundant[MOST_NUMBERS], shared[3];
    size_t n_ep, n_redundant, n_shared;
} axes;

/* "W,..:R,..:S,..", the last two may be left out. */
static bool read_axes(const char *text, axes *a)
{
    const char *first = text + strcspn(text, ":");
    const char *second =
        *first == ':' ? first + 1 + strcspn(first + 1, ":") : first;
    memset(a, 0, sizeof(*a));
    a->n_redundant = a->n_shared = 1;
    if (!read_numbers(text, first, 1, a->ep, &a->n_ep))
        return false;
    if (*first == ':' &&
        !read_numbers(first + 1, second, 0, a->redundant, &a->n_redundant))
        return false;
    return *second != ':' || read_words(second + 1, a->shared, &a->n_shared);
}

const char *moec_check_wrong_matrix(const moec_cli *cli,
                                    char why[MOEC_OPT_WHY_BYTES])
{
    const moec_cli_list *list = &cli->args.matrix;
    size_t n = 0;
    axes a;
    for (size_t i = 0; i < list->n; i++) {
        if (!read_axes(list->words[i], &a)) {
            (void)snprintf(why, MOEC_OPT_WHY_BYTES,
                           "--matrix wants W,..[:R,..[:S,..]] with S one of "
                           "%s, not '%s'",
                           shared_words, list->words[i]);
            return why;
        }
        n += a.n_ep * a.n_redundant * a.n_shared;
    }
    if (n > MOST_COMBINATIONS)
        return "--matrix: more than 65536 combinations";
    return NULL;
}

bool moec_check_has_matrix(const moec_check *x)
{
    return x->cli->args.matrix.n != 0 ||
           (!x->converted && x->policy.n_targets != 0);
}

static size_t add_axes(combination *out, const axes *a)
{
    size_t n = 0;
    for (size_t s = 0; s < a->n_shared; s++) {
        for (size_t w = 0; w < a->n_ep; w++) {
            for (size_t r = 0; r < a->n_redundant; r++) {
                combination c = {NULL, a->ep[w], a->redundant[r], a->shared[s],
                                 0};
                out[n++] = c;
            }
        }
    }
    return n;
}

/* All combinations in order, to be freed. NULL: no memory. */
static combination *list_all(const moec_check *x, size_t *n_out)
{
    const moec_cli_list *list = &x->cli->args.matrix;
    size_t n = 0;
    axes a;
    for (size_t i = 0; i < list->n; i++) {
        if (read_axes(list->words[i], &a))
            n += a.n_ep * a.n_redundant * a.n_shared;
    }
    combination *all = calloc(n + x->policy.n_targets + 1, sizeof(*all));
    if (all == NULL)
        return NULL;
    n = 0;
    for (size_t i = 0; i < list->n; i++) {
        if (read_axes(list->words[i], &a))
            n += add_axes(all + n, &a);
    }
    for (size_t i = 0; i < x->policy.n_targets; i++) {
        const moec_ci_target *t = &x->policy.targets[i];
        combination c = {t->name, t->ep, t->redundant, t->shared, t->w13};
        all[n++] = c;
    }
    *n_out = n;
    return all;
}

/* ------------------------------------------------------------ the proofs */

/* One combination at work. */
typedef struct job {
    const moec_check *x;
    combination c;
    moec_plan *plan;
    moec_layout *layout;
    moec_report *report;
    moec_status st;
    moec_error err;
} job;

static void *prove(void *arg)
{
    job *j = arg;
    const moec_cli *cli = j->x->cli;
    moec_plan_opts o = moec_cli_plan_opts(&j->x->s, cli);
    o.n_ranks = j->c.ep;
    o.n_redundant = j->c.redundant;
    o.placement = NULL;
    if (j->c.shared == MOEC_CHOICE_PER_RANK)
        o.shared = MOEC_SHARED_SLOTS_PER_RANK;
    else if (j->c.shared == MOEC_CHOICE_GLOBAL)
        o.shared = MOEC_SHARED_SLOTS_GLOBAL;
    else if (j->c.shared == MOEC_CHOICE_NONE)
        o.shared = MOEC_SHARED_SLOTS_OFF;
    if (j->c.w13 != 0)
        o.w13_order = j->c.w13 == MOEC_CHOICE_UP_GATE ? MOEC_W13_UP_GATE
                                                      : MOEC_W13_GATE_UP;
    j->st = moec_plan_create(&j->plan, j->x->s.model, &o, &j->err);
    if (j->st == MOEC_OK)
        j->st = moec_layout_create(&j->layout, j->plan,
                                   cli->args.max_part_bytes, &j->err);
    if (j->st == MOEC_OK)
        j->st = moec_layout_prove(&j->report, j->layout, &j->err);
    return NULL;
}

static void close_job(job *j)
{
    moec_report_destroy(j->report);
    moec_layout_destroy(j->layout);
    moec_plan_destroy(j->plan);
}

static size_t n_threads(const moec_cli *cli)
{
    cpu_set_t cpus;
    size_t n = cli->args.threads;
    if (n == 0 && sched_getaffinity(0, sizeof(cpus), &cpus) == 0)
        n = (size_t)CPU_COUNT(&cpus);
    return n == 0 ? 1 : n > MOST_THREADS ? MOST_THREADS : n;
}

/* Prove `n` <= MOST_THREADS combinations, each on a thread; the first on this
 * one, and all that no thread could be made for. */
static void prove_some(job *jobs, size_t n)
{
    pthread_t threads[MOST_THREADS];
    bool made[MOST_THREADS] = {false};
    for (size_t i = 1; i < n; i++)
        made[i] = pthread_create(&threads[i], NULL, prove, &jobs[i]) == 0;
    for (size_t i = 0; i < n; i++) {
        if (!made[i])
            (void)prove(&jobs[i]);
    }
    for (size_t i = 1; i < n; i++) {
        if (made[i])
            (void)pthread_join(threads[i], NULL);
    }
}

/* ------------------------------------------------------------ the report */

/* The shared slots that a combination comes to. */
static const char *shared_name(const combination *c, const moec_plan *plan)
{
    static const char *const names[] = {"default", "per-rank", "global",
                                        "none"};
    if (plan == NULL)
        return names[c->shared];
    moec_topology t = moec_plan_topology(plan);
    if (t.n_shared_slots == 0)
        return names[3];
    return t.shared_global != 0 ? names[2] : names[1];
}

/* Wrong numbers are an answer; everything else stops the command. */
static bool is_answer(moec_status st)
{
    return st == MOEC_OK || st == MOEC_E_MAPPING || st == MOEC_E_UNSUPPORTED;
}

static void refused(moec_check *x, const job *j)
{
    moec_finding f = {.rule = j->err.rule, .severity = MOEC_SEVERITY_ERROR};
    const char *text = j->err.text;
    const char *end = text[0] == '[' ? strstr(text, "] ") : NULL;
    moec_ci_add(&x->report, &f, NULL, "%s", end != NULL ? end + 2 : text);
}

static void take(moec_check *x, job *j)
{
    moec_ci_report *r = &x->report;
    const char *shared = shared_name(&j->c, j->plan);
    char name[256], size[24];
    (void)snprintf(name, sizeof(name),
                   "%.150s%sep %" PRIu32 ", redundant %" PRIu32 ", shared %s",
                   j->c.target != NULL ? j->c.target : "",
                   j->c.target != NULL ? ": " : "", j->c.ep, j->c.redundant,
                   shared);
    moec_ci_run *run = moec_ci_begin(r, name);
    run->ep = j->c.ep;
    run->redundant = j->c.redundant;
    run->shared = shared;
    if (j->st != MOEC_OK) {
        refused(x, j);
        run->title = moec_ci_text(r, "%s: no layout", name);
        return;
    }
    bool ok = moec_report_ok(j->report) != 0;
    moec_ci_take(r, j->report, j->layout);
    j->report = NULL; /* the run's now */
    moec_check_limits(x, j->layout);
    run->title = moec_ci_text(
        r,
        "%s: %s, %" PRIu32 " + %" PRIu32 " slots a rank, %s a rank, "
        "imbalance %.3f",
        name, ok ? "proved" : "NOT proved", run->topology.n_local,
        moec_plan_shared_rows(j->plan), moec_cli_size(size, run->rank_bytes),
        run->imbalance);
}

/* Prove `n` combinations with up to `step` <= MOST_THREADS at a time. */
static moec_status prove_all(moec_check *x, const combination *all, size_t n,
                             size_t step, moec_error *err)
{
    job *jobs = calloc(step, sizeof(*jobs));
    moec_status st = MOEC_OK;
    if (jobs == NULL)
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for the combinations");
    for (size_t at = 0; st == MOEC_OK && at < n; at += step) {
        size_t some = n - at < step ? n - at : step;
        memset(jobs, 0, step * sizeof(*jobs));
        for (size_t i = 0; i < some; i++) {
            jobs[i].x = x;
            jobs[i].c = all[at + i];
        }
        prove_some(jobs, some);
        for (size_t i = 0; i < some; i++) {
            if (st == MOEC_OK && !is_answer(jobs[i].st)) {
                *err = jobs[i].err;
                st = jobs[i].st;
            }
            if (st == MOEC_OK)
                take(x, &jobs[i]);
            close_job(&jobs[i]);
        }
    }
    free(jobs);
    return st;
}

moec_status moec_check_matrix(moec_check *x, moec_error *err)
{
    size_t n = 0;
    moec_status st = MOEC_OK;
    if (x->s.model == NULL) {
        st = moec_cli_open_model(&x->s, x->cli, x->path, err);
        if (st != MOEC_OK)
            return st;
        (void)moec_ci_begin(&x->report, NULL);
        moec_ci_add_notes(&x->report, x->s.ckpt);
    }
    combination *all = list_all(x, &n);
    if (all == NULL)
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for the combinations");
    st = prove_all(x, all, n, n_threads(x->cli), err);
    free(all);
    return st;
}

/* --------------------------------------------------------------- targets */

static void target_differs(moec_check *x, const moec_ci_target *t,
                           const char *what, const char *want, const char *got)
{
    moec_finding f = {.rule = MOEC_RULE_L06,
                      .severity = MOEC_SEVERITY_ERROR,
                      .has = MOEC_HAS_FILE | MOEC_HAS_EXPECTED | MOEC_HAS_FOUND,
                      .file = "manifest.json",
                      .expected = want,
                      .found = got};
    moec_ci_add(&x->report, &f, NULL, "target '%s' cannot load it: %s differ",
                t->name, what);
}

static void number_differs(moec_check *x, const moec_ci_target *t,
                           const char *what, uint32_t want, uint32_t got)
{
    char a[16], b[16];
    if (want == got)
        return;
    (void)snprintf(a, sizeof(a), "%" PRIu32, want);
    (void)snprintf(b, sizeof(b), "%" PRIu32, got);
    target_differs(x, t, what, a, b);
}

/* An expert store serves every number of ranks and slots. */
void moec_check_targets(moec_check *x, const moec_layout *layout)
{
    static const char *const orders[] = {"gate-up", "up-gate"};
    const moec_plan *plan = moec_layout_plan(layout);
    const moec_plan_opts *o = moec_plan_options(plan);
    moec_topology topo = moec_plan_topology(plan);
    uint32_t e = moec_model_facts(moec_plan_model(plan))->n_experts;
    for (size_t i = 0; i < x->policy.n_targets; i++) {
        const moec_ci_target *t = &x->policy.targets[i];
        const combination c = {NULL, 0, 0, t->shared, 0};
        const char *shared = shared_name(&c, plan);
        if (!o->by_expert) {
            number_differs(x, t, "numbers of ranks", t->ep, topo.n_ranks);
            number_differs(x, t, "numbers of redundant slots", t->redundant,
                           topo.n_physical - e);
        }
        if (t->shared != 0 && strcmp(shared_name(&c, NULL), shared) != 0)
            target_differs(x, t, "shared slots", shared_name(&c, NULL), shared);
        if (t->w13 != 0 && t->w13 - 1 != (uint32_t)o->w13_order)
            target_differs(x, t, "orders of w13", orders[t->w13 - 1],
                           orders[o->w13_order == MOEC_W13_UP_GATE]);
    }
}
