/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert stats: the load that recorded routes or load counts put on
 * experts, slots, ranks and nodes, before and after a placement, with the
 * shared experts at home or moved by waterfill.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "option_files.h"
#include "placement_html.h"
#include "print.h"
#include "stats_input.h"

static const moec_cli_opt own_opts[] = {
    {"ep", 0, MOEC_KIND_U32, offsetof(moec_cli_args, ep), "W",
     "expert-parallel ranks", "1", NULL, 1024},
    {"nodes", 0, MOEC_KIND_U32, offsetof(moec_cli_args, nodes), "N",
     "nodes of the job", "1", NULL, 0},
    {"source", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, source), "SRC",
     "the model: its layers, top-k and shared slots", NULL,
     "what the file says", 0},
    {"redundant", 0, MOEC_KIND_U32, offsetof(moec_cli_args, redundant), "R",
     "redundant slots of the trivial placement", "0", NULL, 0},
    {"placement", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, placement), "FILE",
     "today's placement", NULL, "trivial", 0},
    {"placement-after", 0, MOEC_KIND_TEXT,
     offsetof(moec_cli_args, placement_after), "FILE",
     "another one, to compare with", NULL, NULL, 0},
    {"replica", 0, MOEC_KIND_CHOICE, offsetof(moec_cli_args, replica),
     "static|dynamic|row|nearest",
     "which replica a rank sends to: SGLang's table; (row + rank + layer) % "
     "count; row % count; the nearest",
     "static", NULL, 0},
    {"shared", 0, MOEC_KIND_U32, offsetof(moec_cli_args, shared), "S",
     "shared slots of each rank", NULL, "the model's, or 0", 16},
    {"waterfill", 0, MOEC_KIND_FLAG, offsetof(moec_cli_args, waterfill), NULL,
     "also with waterfill, static and dynamic", NULL, NULL, 0},
    {"batch", 0, MOEC_KIND_U32, offsetof(moec_cli_args, batch), "T",
     "tokens of a rank in a step; under 64 waterfill stays at home", "128",
     NULL, 1u << 20},
    {"counts", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, counts_out), "FILE",
     "write the recording's logical counts, for placement eplb", NULL, NULL, 0},
    {"html", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, html), "FILE",
     "write a page with the heat map", NULL, NULL, 0},
    {"force", 'f', MOEC_KIND_FLAG, offsetof(moec_cli_args, force), NULL,
     "replace files that exist", NULL, NULL, 0},
    {"family", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, family), "FILE",
     "a family description beside the built-in ones", NULL, NULL, 0},
};
static const moec_cli_group own = {"Load", own_opts,
                                   sizeof(own_opts) / sizeof(own_opts[0])};
static const moec_cli_group *const groups[] = {&own, &moec_group_common, NULL};

enum { MODES = 3, MAX_STUDIES = 2 * MODES };

static const char *const place_names[MOEC_STUDY_PLACES] = {"expert", "slot",
                                                           "rank", "node"};
static const char *const mode_names[MODES] = {"off", "static", "dynamic"};

typedef struct one {
    const char *when; /* "before", "after" */
    moec_waterfill_mode mode;
    moec_study *study;
} one;

typedef struct stats {
    const moec_cli *cli;
    moec_cli_stats_input in;
    one studies[MAX_STUDIES];
    size_t n;
} stats;

/* ------------------------------------------------------------- the work */

static moec_study_replica replica_of(uint32_t choice)
{
    switch (choice) {
    case MOEC_CHOICE_REPLICA_DYNAMIC:
        return MOEC_STUDY_DYNAMIC;
    case MOEC_CHOICE_REPLICA_ROW:
        return MOEC_STUDY_ROW;
    case MOEC_CHOICE_REPLICA_NEAREST:
        return MOEC_STUDY_NEAREST;
    default: /* the option's words */
        return MOEC_STUDY_STATIC;
    }
}

static moec_status add_study(stats *x, const char *when,
                             const moec_placement *p, moec_waterfill_mode mode,
                             moec_error *err)
{
    const moec_cli_args *a = &x->cli->args;
    moec_study_opts o = MOEC_STUDY_OPTS_INIT;
    one *s = &x->studies[x->n];
    moec_status st;
    o.n_ranks = a->ep;
    o.n_nodes = a->nodes;
    o.n_shared = x->in.n_shared;
    o.top_k = x->in.top_k;
    o.batch = a->batch;
    o.replica = replica_of(a->replica);
    o.waterfill = mode;
    o.n_threads = a->threads;
    o.placement = p;
    o.keys = x->in.keys;
    o.n_decoder = x->in.n_decoder;
    if (x->in.routes != NULL)
        st = moec_study_routes(&s->study, x->in.routes, &o, err);
    else
        st = moec_study_counts(&s->study, moec_counts_sums(x->in.counts), &o,
                               err);
    if (st != MOEC_OK)
        return st;
    s->when = when;
    s->mode = mode;
    x->n++;
    return MOEC_OK;
}

static moec_status run_all(stats *x, moec_error *err)
{
    const moec_placement *p[2] = {x->in.before, x->in.after};
    int modes = x->cli->args.waterfill ? MODES : 1;
    for (int i = 0; i < 2; i++) {
        for (int mode = 0; mode < modes && p[i] != NULL; mode++) {
            moec_status st = add_study(x, i == 0 ? "before" : "after", p[i],
                                       (moec_waterfill_mode)mode, err);
            if (st != MOEC_OK)
                return st;
        }
    }
    return MOEC_OK;
}

static moec_status write_counts(const stats *x, moec_error *err)
{
    const moec_cli_args *a = &x->cli->args;
    char *text = NULL;
    size_t n = 0;
    moec_status st = moec_cli_stats_counts(&x->in, true, &text, &n, err);
    if (st == MOEC_OK)
        st = moec_cli_write_file(a->counts_out, text, n, a->force, err);
    free(text);
    return st;
}

/* The page of `placement show`, with the loads of this input. */
static moec_status write_page(stats *x, moec_error *err)
{
    const moec_cli_args *a = &x->cli->args;
    const char *path = moec_cli_path(x->cli, 0);
    moec_counts *made = NULL;
    moec_cli_page page = {
        .form = "stats",
        .counts_name = path,
        .title = a->placement_after != NULL ? a->placement_after
                 : a->placement != NULL     ? a->placement
                                            : "trivial placement",
        .before_name = a->placement,
        .p = x->in.after != NULL ? x->in.after : x->in.before,
        .before = x->in.after != NULL ? x->in.before : NULL,
        .counts = x->in.counts,
        .keys = x->in.keys,
        .n_ranks = a->ep,
        .n_nodes = a->nodes,
        .n_shared = x->in.n_shared,
    };
    char *text = NULL;
    size_t n = 0;
    moec_status st = MOEC_OK;
    if (x->in.routes != NULL) {
        st = moec_cli_stats_counts(&x->in, false, &text, &n, err);
        if (st == MOEC_OK)
            st = moec_counts_parse(&made, NULL, path, text, n, err);
        free(text);
        text = NULL;
        page.counts = made;
    }
    if (st == MOEC_OK)
        st = moec_cli_placement_page(&page, &text, &n, err);
    if (st == MOEC_OK)
        st = moec_cli_write_file(a->html, text, n, a->force, err);
    free(text);
    moec_counts_destroy(made);
    return st;
}

/* ----------------------------------------------------------------- JSON */

static void json_figures(moec_cli_json *j, const moec_study *s, uint32_t layer)
{
    for (int p = 0; p < MOEC_STUDY_PLACES; p++) {
        moec_study_figures f =
            moec_study_figures_of(s, layer, (moec_study_place)p);
        moec_cli_json_object_row(j, place_names[p]);
        moec_cli_json_f64(j, "max", f.max);
        moec_cli_json_f64(j, "min", f.min);
        moec_cli_json_f64(j, "mean", f.mean);
        moec_cli_json_f64(j, "deviation", f.deviation);
        moec_cli_json_f64(j, "max_over_mean", f.max_over_mean);
        moec_cli_json_f64(j, "step_max_over_mean", f.step_max_over_mean);
        moec_cli_json_end(j);
    }
}

static void json_layer(moec_cli_json *j, const stats *x, const moec_study *s,
                       uint32_t layer)
{
    moec_cli_json_object(j, NULL);
    moec_cli_json_layer(j, "layer", x->in.keys[layer]);
    json_figures(j, s, layer);
    moec_cli_json_object(j, "loads");
    for (int p = 0; p < MOEC_STUDY_PLACES; p++) {
        uint32_t n = 0;
        const double *loads =
            moec_study_loads(s, layer, (moec_study_place)p, &n);
        moec_cli_json_array_row(j, place_names[p]);
        for (uint32_t i = 0; i < n; i++)
            moec_cli_json_f64(j, NULL, loads[i]);
        moec_cli_json_end(j);
    }
    moec_cli_json_end(j);
    moec_cli_json_end(j);
}

static void print_json(const stats *x)
{
    const moec_cli_args *a = &x->cli->args;
    moec_cli_json j;
    moec_cli_json_begin(&j, x->cli, true);
    moec_cli_json_str(&j, "input", moec_cli_path(x->cli, 0));
    moec_cli_json_str(&j, "kind", x->in.routes != NULL ? "routes" : "counts");
    if (x->in.routes != NULL)
        moec_cli_json_u64(&j, "tokens", moec_routes_n_tokens(x->in.routes));
    moec_cli_json_u64(&j, "n_experts", x->in.n_experts);
    moec_cli_json_u64(&j, "n_ranks", a->ep);
    moec_cli_json_u64(&j, "n_nodes", a->nodes);
    moec_cli_json_u64(&j, "n_shared_slots", x->in.n_shared);
    moec_cli_json_array(&j, "studies");
    for (size_t i = 0; i < x->n; i++) {
        const one *s = &x->studies[i];
        moec_cli_json_object(&j, NULL);
        moec_cli_json_str(&j, "when", s->when);
        moec_cli_json_str(&j, "placement",
                          strcmp(s->when, "after") == 0 ? a->placement_after
                                                        : a->placement);
        moec_cli_json_str(&j, "waterfill", mode_names[s->mode]);
        moec_cli_json_u64(&j, "n_steps", moec_study_n_steps(s->study));
        moec_cli_json_u64(&j, "shared_moved", moec_study_n_moved(s->study));
        json_figures(&j, s->study, MOEC_STUDY_ALL);
        moec_cli_json_array(&j, "layers");
        for (uint32_t l = 0; l < x->in.n_layers; l++)
            json_layer(&j, x, s->study, l);
        moec_cli_json_end(&j);
        moec_cli_json_end(&j);
    }
    moec_cli_json_end(&j);
    moec_cli_json_finish(&j);
}

/* ----------------------------------------------------------------- text */

static void print_line(const stats *x, const one *s, uint32_t layer,
                       const char *name)
{
    moec_study_figures f[MOEC_STUDY_PLACES];
    char step[16] = "-";
    for (int p = 0; p < MOEC_STUDY_PLACES; p++)
        f[p] = moec_study_figures_of(s->study, layer, (moec_study_place)p);
    if (x->in.routes != NULL)
        (void)snprintf(step, sizeof(step), "%.3f",
                       f[MOEC_STUDY_RANK].step_max_over_mean);
    moec_cli_line(
        stdout, "%-10s %-7s %-8s %8.3f %8.3f %8.3f %8.3f %8s", name, s->when,
        mode_names[s->mode], f[MOEC_STUDY_EXPERT].max_over_mean,
        f[MOEC_STUDY_SLOT].max_over_mean, f[MOEC_STUDY_RANK].max_over_mean,
        f[MOEC_STUDY_NODE].max_over_mean, step);
}

static void print_text(const stats *x)
{
    const moec_cli_args *a = &x->cli->args;
    if (x->in.routes != NULL)
        moec_cli_line(stdout,
                      "%s: %ju tokens, %u MoE layers, top-%u of %u experts",
                      moec_cli_path(x->cli, 0),
                      (uintmax_t)moec_routes_n_tokens(x->in.routes),
                      x->in.n_layers, x->in.top_k, x->in.n_experts);
    else
        moec_cli_line(stdout, "%s: load counts of %u layers, %u experts",
                      moec_cli_path(x->cli, 0), x->in.n_layers,
                      x->in.n_experts);
    moec_cli_line(stdout,
                  "%u ranks, %u nodes, %u shared slots a rank; largest load "
                  "over mean load",
                  a->ep, a->nodes, x->in.n_shared);
    moec_cli_line(stdout, "%-10s %-7s %-8s %8s %8s %8s %8s %8s", "layer", "",
                  "waterf.", "expert", "slot", "rank", "node", "step");
    for (uint32_t l = 0; l < x->in.n_layers && a->verbose > 0; l++) {
        char name[24];
        for (size_t i = 0; i < x->n; i++)
            print_line(x, &x->studies[i], l,
                       moec_cli_layer_name(name, x->in.keys[l]));
    }
    for (size_t i = 0; i < x->n; i++)
        print_line(x, &x->studies[i], MOEC_STUDY_ALL, "all");
}

/* ----------------------------------------------------------- the command */

static const char *check_args(const moec_cli *cli)
{
    const moec_cli_args *a = &cli->args;
    if (a->ep == 0)
        return "--ep 0: there is at least one rank";
    if (a->batch == 0)
        return "--batch 0: a step has at least one token";
    if (a->nodes == 0 || a->ep % a->nodes != 0)
        return "--nodes N must divide --ep W";
    if (a->placement != NULL && moec_cli_given(a, groups, "redundant"))
        return "--redundant is for the trivial placement, not for --placement";
    return NULL;
}

static moec_status work(stats *x, moec_error *err)
{
    const moec_cli_args *a = &x->cli->args;
    moec_status st = moec_cli_stats_open(&x->in, x->cli, err);
    if (st != MOEC_OK)
        return st;
    if (x->in.routes == NULL && a->counts_out != NULL)
        return moec_cli_error(err, MOEC_E_FORMAT, MOEC_RULE_R01,
                              "%s: load counts already; --counts is for "
                              "recorded routes",
                              moec_cli_path(x->cli, 0));
    if (x->in.routes == NULL && x->in.top_k == 0 && x->in.n_shared > 0)
        return moec_cli_error(err, MOEC_E_FORMAT, MOEC_RULE_R02,
                              "shared slots of counts need the model's top-k: "
                              "--source SRC");
    st = run_all(x, err);
    if (st == MOEC_OK && a->counts_out != NULL)
        st = write_counts(x, err);
    if (st == MOEC_OK && a->html != NULL)
        st = write_page(x, err);
    return st;
}

static int run(moec_cli *cli)
{
    moec_error err = MOEC_ERROR_INIT;
    stats x = {.cli = cli};
    const char *why = check_args(cli);
    if (why != NULL)
        return moec_cli_usage(cli, "%s", why);
    moec_status st = work(&x, &err);
    int code = st == MOEC_OK ? MOEC_EXIT_OK : moec_cli_fail(cli, st, &err);
    if (st == MOEC_OK && cli->args.waterfill && x.in.n_shared == 0 &&
        !cli->args.quiet)
        moec_cli_line(stderr, "no shared slots: waterfill has nothing to move "
                              "(--shared S)");
    if (st == MOEC_OK && cli->args.json)
        print_json(&x);
    else if (st == MOEC_OK)
        print_text(&x);
    for (size_t i = 0; i < x.n; i++)
        moec_study_destroy(x.studies[i].study);
    moec_cli_stats_close(&x.in);
    return code;
}

const moec_cli_command moec_cmd_stats = {
    .name = "stats",
    .fn = run,
    .line = "load per expert, slot, rank and node; before and after",
    .usage = "stats ROUTES|COUNTS --ep W [--placement A] [--placement-after B] "
             "[--waterfill] [--html FILE]",
    .about =
        "Sends recorded routes through the dispatch kernels as W ranks with an "
        "all-to-all would, or spreads load counts, and prints the largest load "
        "over the mean, of all tokens and (step) within steps of --batch "
        "tokens a rank, added over steps and layers. -v has every layer, "
        "--json every load.",
    .examples = "stats r.safetensors --ep 32 --redundant 32\n"
                "stats r.safetensors --ep 32 --placement a.json "
                "--placement-after b.json --shared 1 --waterfill --json\n"
                "stats r.safetensors --ep 32 --counts counts.json",
    .groups = groups,
    .min_paths = 1,
    .max_paths = 1,
};
