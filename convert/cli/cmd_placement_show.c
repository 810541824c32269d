/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert placement show: a placement as a table on the terminal, and as a
 * page with a heat map (--html). With load counts: what ranks carry before and
 * after, where "before" is --from or the trivial placement. A slot's load is
 * its expert's over the number of its replicas, as EPLB counts.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "balance.h"
#include "cli.h"
#include "option_files.h"
#include "placement_html.h"
#include "placement_input.h"
#include "print.h"

static const moec_cli_opt show_opts[] = {
    {"layer", 'l', MOEC_KIND_TEXT, offsetof(moec_cli_args, layer), "I|mtp.K",
     "show the slots of one layer, rank by rank", NULL, "a line for each layer",
     0},
    {"html", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, html), "FILE",
     "write a page with a heat map; nothing in it is loaded from elsewhere",
     NULL, NULL, 0},
    {"logical-count", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, logical_count),
     "FILE", "load counts of the experts", NULL, NULL, 0},
    {"from", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, from), "FILE",
     "the placement of before, to compare loads with", NULL, "trivial", 0},
    {"nodes", 0, MOEC_KIND_U32, offsetof(moec_cli_args, nodes), "N",
     "nodes that the ranks are on, to outline them", "1", NULL, 0},
    {"shared", 0, MOEC_KIND_U32, offsetof(moec_cli_args, shared), "S",
     "fused shared slots of each rank", NULL, "of the model, else 0", 64},
    {"force", 'f', MOEC_KIND_FLAG, offsetof(moec_cli_args, force), NULL,
     "replace a page that exists", NULL, NULL, 0},
};
static const moec_cli_group show_group = {"Show", show_opts, 7};
static const moec_cli_group *const groups[] = {&show_group, &moec_group_placed,
                                               &moec_group_common, NULL};

typedef struct show {
    const moec_cli *cli;
    moec_cli_placed x;
    moec_counts *counts;    /* or NULL */
    moec_placement *before; /* or NULL */
    uint32_t only;          /* layer to show, or UINT32_MAX */
} show;

/* ------------------------------------------------------------- loading */

static moec_status check_counts(const show *s, moec_error *err)
{
    const moec_placement *p = s->x.p;
    if (moec_counts_n_layers(s->counts) != moec_placement_n_layers(p))
        return moec_cli_error(
            err, MOEC_E_FORMAT, MOEC_RULE_P02,
            "%s: %" PRIu32 " layers of counts, the placement has %" PRIu32
            ": --source says which belong together",
            s->cli->args.logical_count, moec_counts_n_layers(s->counts),
            moec_placement_n_layers(p));
    if (moec_counts_n_experts(s->counts) != moec_placement_n_experts(p))
        return moec_cli_error(
            err, MOEC_E_FORMAT, MOEC_RULE_P03,
            "%s: counts of %" PRIu32 " experts, the placement has %" PRIu32,
            s->cli->args.logical_count, moec_counts_n_experts(s->counts),
            moec_placement_n_experts(p));
    return MOEC_OK;
}

static moec_status open_before(show *s, moec_error *err)
{
    const moec_placement *p = s->x.p;
    uint32_t E = moec_placement_n_experts(p);
    uint32_t R = moec_placement_n_physical(p) - E;
    if (s->cli->args.from == NULL)
        return moec_placement_trivial(&s->before, moec_placement_n_layers(p), E,
                                      R, err);
    return moec_cli_read_placement(&s->before, s->x.model, s->counts,
                                   s->cli->args.from, err);
}

static moec_status open_loads(show *s, moec_error *err)
{
    const moec_cli_args *a = &s->cli->args;
    if (a->logical_count == NULL)
        return MOEC_OK;
    moec_status st =
        moec_cli_read_counts(&s->counts, s->x.model, a->logical_count, err);
    if (st == MOEC_OK)
        st = check_counts(s, err);
    if (st == MOEC_OK)
        st = open_before(s, err);
    if (st != MOEC_OK)
        return st;
    if (moec_placement_n_layers(s->before) != moec_placement_n_layers(s->x.p) ||
        moec_placement_n_physical(s->before) % s->x.n_ranks != 0)
        return moec_cli_error(err, MOEC_E_MAPPING, MOEC_RULE_P06,
                              "%s: %" PRIu32 " layers of %" PRIu32
                              " slots do not fit %" PRIu32 " ranks",
                              a->from, moec_placement_n_layers(s->before),
                              moec_placement_n_physical(s->before),
                              s->x.n_ranks);
    return MOEC_OK;
}

static moec_status find_layer(show *s, moec_error *err)
{
    const char *word = s->cli->args.layer;
    char name[24];
    s->only = UINT32_MAX;
    for (uint32_t i = 0; word != NULL && i < moec_placement_n_layers(s->x.p);
         i++) {
        if (strcmp(moec_cli_layer_name(name, s->x.keys[i]), word) == 0)
            s->only = i;
    }
    if (word != NULL && s->only == UINT32_MAX)
        return moec_cli_error(err, MOEC_E_ARG, MOEC_RULE_NONE,
                              "layer %s is none of the placement's", word);
    return MOEC_OK;
}

static moec_status open_all(show *s, moec_error *err)
{
    const moec_cli *cli = s->cli;
    moec_status st =
        moec_cli_placed_open(&s->x, cli, moec_cli_path(cli, 0), err);
    if (st != MOEC_OK)
        return st;
    if (moec_cli_given(&cli->args, cli->cmd->groups, "shared"))
        s->x.n_shared = cli->args.shared;
    if (s->x.n_ranks == 0)
        s->x.n_ranks = 1;
    if (moec_placement_n_physical(s->x.p) % s->x.n_ranks != 0)
        return moec_cli_error(err, MOEC_E_MAPPING, MOEC_RULE_P06,
                              "%" PRIu32 " slots do not divide by %" PRIu32
                              " ranks",
                              moec_placement_n_physical(s->x.p), s->x.n_ranks);
    if (cli->args.nodes == 0 || s->x.n_ranks % cli->args.nodes != 0)
        return moec_cli_error(err, MOEC_E_MAPPING, MOEC_RULE_P13,
                              "%" PRIu32 " ranks do not divide by %" PRIu32
                              " nodes",
                              s->x.n_ranks, cli->args.nodes);
    st = find_layer(s, err);
    return st == MOEC_OK ? open_loads(s, err) : st;
}

/* ------------------------------------------------------- one line a layer */

typedef struct layer_facts {
    uint32_t replicated; /* experts with more than one slot */
    uint32_t most;       /* slots of the expert that has most */
    uint32_t empty;
    uint32_t same_rank;   /* slots that repeat an expert of their rank */
    double before, after; /* largest load of a rank over the mean; 0: none */
} layer_facts;

static moec_status learn(const show *s, uint32_t layer, layer_facts *f,
                         moec_error *err)
{
    const moec_placement *p = s->x.p;
    uint32_t E = moec_placement_n_experts(p), P = moec_placement_n_physical(p);
    uint32_t L = P / s->x.n_ranks;
    const int32_t *row = moec_placement_row(p, layer);
    uint32_t *n = calloc((size_t)E * 2, sizeof(*n)), *last;
    moec_status st = MOEC_OK;
    if (n == NULL)
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for the table");
    last = n + E;
    *f = (layer_facts){0};
    for (uint32_t i = 0; i < P; i++) {
        if (row[i] < 0) {
            f->empty++;
            continue;
        }
        n[row[i]]++;
        f->replicated += n[row[i]] == 2;
        f->most = n[row[i]] > f->most ? n[row[i]] : f->most;
        f->same_rank += last[row[i]] == i / L + 1;
        last[row[i]] = i / L + 1;
    }
    free(n);
    if (s->counts != NULL) {
        const float *load = moec_counts_loads(s->counts) + (size_t)layer * E;
        moec_balance b;
        st = moec_placement_balance(s->before, layer, s->x.n_ranks, load, &b,
                                    err);
        f->before = st == MOEC_OK ? b.ratio : 0;
        if (st == MOEC_OK)
            st = moec_placement_balance(p, layer, s->x.n_ranks, load, &b, err);
        f->after = st == MOEC_OK ? b.ratio : 0;
    }
    return st;
}

static void print_head(const show *s)
{
    const moec_placement *p = s->x.p;
    uint32_t P = moec_placement_n_physical(p);
    moec_cli_line(stdout,
                  "%s: %s, %" PRIu32 " layers, %" PRIu32 " experts in %" PRIu32
                  " slots, %" PRIu32 " on each of %" PRIu32 " ranks%s",
                  moec_cli_path(s->cli, 0), s->x.form,
                  moec_placement_n_layers(p), moec_placement_n_experts(p), P,
                  P / s->x.n_ranks, s->x.n_ranks,
                  moec_placement_is_trivial(p) ? ", trivial" : "");
    if (s->x.n_shared != 0)
        moec_cli_line(stdout,
                      "%" PRIu32 " shared slot%s behind those of each rank",
                      s->x.n_shared, s->x.n_shared == 1 ? "" : "s");
}

static moec_status print_layers(const show *s, moec_error *err)
{
    moec_cli_line(stdout, "layer    replicated  most slots  same rank  empty%s",
                  s->counts ? "  max/mean before   after" : "");
    for (uint32_t i = 0; i < moec_placement_n_layers(s->x.p); i++) {
        char name[24], load[48] = "";
        layer_facts f;
        moec_status st = learn(s, i, &f, err);
        if (st != MOEC_OK)
            return st;
        if (s->counts != NULL)
            (void)snprintf(load, sizeof(load), "  %15.4f  %6.4f", f.before,
                           f.after);
        moec_cli_line(stdout,
                      "%-7s  %10" PRIu32 "  %10" PRIu32 "  %9" PRIu32
                      "  %5" PRIu32 "%s",
                      moec_cli_layer_name(name, s->x.keys[i]), f.replicated,
                      f.most, f.same_rank, f.empty, load);
    }
    return MOEC_OK;
}

/* ------------------------------------------------------------ one layer */

/* Room for the widest id and its mark. */
static int id_width(uint32_t n_experts)
{
    int w = 1;
    for (; n_experts > 10; n_experts /= 10)
        w++;
    return w + 1;
}

static moec_status print_slots(const show *s, uint32_t layer, moec_error *err)
{
    const moec_placement *p = s->x.p;
    uint32_t E = moec_placement_n_experts(p), P = moec_placement_n_physical(p);
    uint32_t L = P / s->x.n_ranks;
    const int32_t *row = moec_placement_row(p, layer);
    uint32_t *n = calloc(E, sizeof(*n));
    int w = id_width(E);
    char name[24];
    if (n == NULL)
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for the table");
    for (uint32_t i = 0; i < P; i++) {
        if (row[i] >= 0)
            n[row[i]]++;
    }
    moec_cli_line(stdout, "layer %s; * has several slots, - is empty%s",
                  moec_cli_layer_name(name, s->x.keys[layer]),
                  s->x.n_shared ? ", S is shared" : "");
    for (uint32_t r = 0; r < s->x.n_ranks; r++) {
        (void)fprintf(stdout, "rank %-4" PRIu32 " |", r);
        for (uint32_t i = r * L; i < (r + 1) * L; i++) {
            if (row[i] < 0)
                (void)fprintf(stdout, " %*s", w, "- ");
            else
                (void)fprintf(stdout, " %*" PRId32 "%c", w - 1, row[i],
                              n[row[i]] > 1 ? '*' : ' ');
        }
        for (uint32_t k = 0; k < s->x.n_shared; k++)
            (void)fputs(k == 0 ? " | S" : " S", stdout);
        (void)fputc('\n', stdout);
    }
    free(n);
    return MOEC_OK;
}

/* ---------------------------------------------------------------- JSON */

static moec_status json_layer(const show *s, uint32_t i, moec_cli_json *j,
                              moec_error *err)
{
    const int32_t *row = moec_placement_row(s->x.p, i);
    layer_facts f;
    moec_status st = learn(s, i, &f, err);
    if (st != MOEC_OK)
        return st;
    moec_cli_json_object_row(j, NULL);
    moec_cli_json_layer(j, "layer", s->x.keys[i]);
    moec_cli_json_u64(j, "replicated", f.replicated);
    moec_cli_json_u64(j, "most_slots", f.most);
    moec_cli_json_u64(j, "same_rank", f.same_rank);
    moec_cli_json_u64(j, "empty", f.empty);
    if (s->counts != NULL) {
        moec_cli_json_f64(j, "before", f.before);
        moec_cli_json_f64(j, "after", f.after);
    }
    moec_cli_json_array_row(j, "experts");
    for (uint32_t k = 0; k < moec_placement_n_physical(s->x.p); k++) {
        if (row[k] < 0)
            moec_cli_json_str(j, NULL, NULL);
        else
            moec_cli_json_u64(j, NULL, (uint64_t)row[k]);
    }
    moec_cli_json_end(j);
    moec_cli_json_end(j);
    return MOEC_OK;
}

static moec_status print_json(const show *s, moec_error *err)
{
    moec_status st = MOEC_OK;
    moec_cli_json j;
    moec_cli_json_begin(&j, s->cli, true);
    moec_cli_json_str(&j, "placement", moec_cli_path(s->cli, 0));
    moec_cli_placed_facts(&s->x, &j);
    moec_cli_json_u64(&j, "n_shared_slots", s->x.n_shared);
    if (s->cli->args.html != NULL)
        moec_cli_json_str(&j, "html", s->cli->args.html);
    moec_cli_json_array(&j, "layers");
    for (uint32_t i = 0; i < moec_placement_n_layers(s->x.p) && st == MOEC_OK;
         i++) {
        if (s->only == UINT32_MAX || s->only == i)
            st = json_layer(s, i, &j, err);
    }
    moec_cli_json_end(&j);
    moec_cli_placed_json(&s->x, &j);
    moec_cli_json_finish(&j);
    return st;
}

/* --------------------------------------------------------------- page */

static moec_status write_page(const show *s, moec_error *err)
{
    const moec_cli_args *a = &s->cli->args;
    moec_cli_page page = {.title = moec_cli_path(s->cli, 0),
                          .form = s->x.form,
                          .before_name = a->from,
                          .counts_name = a->logical_count,
                          .p = s->x.p,
                          .before = s->before,
                          .counts = s->counts,
                          .keys = s->x.keys,
                          .n_ranks = s->x.n_ranks,
                          .n_nodes = a->nodes,
                          .n_shared = s->x.n_shared};
    char *text = NULL;
    size_t bytes = 0;
    if (a->html == NULL)
        return MOEC_OK;
    moec_status st = moec_cli_placement_page(&page, &text, &bytes, err);
    if (st == MOEC_OK)
        st = moec_cli_write_file(a->html, text, bytes, a->force, err);
    free(text);
    return st;
}

static moec_status print_all(const show *s, moec_error *err)
{
    if (s->cli->args.json)
        return print_json(s, err);
    moec_cli_placed_print(&s->x, s->cli);
    print_head(s);
    return s->only == UINT32_MAX ? print_layers(s, err)
                                 : print_slots(s, s->only, err);
}

static int run(moec_cli *cli)
{
    moec_error err = MOEC_ERROR_INIT;
    show s = {.cli = cli};
    if (cli->args.from != NULL && cli->args.logical_count == NULL)
        return moec_cli_usage(cli, "--from compares loads: --logical-count "
                                   "FILE is missing");
    moec_status st = open_all(&s, &err);
    if (st == MOEC_OK)
        st = write_page(&s, &err);
    if (st == MOEC_OK)
        st = print_all(&s, &err);
    int code = st == MOEC_OK ? MOEC_EXIT_OK : moec_cli_fail(cli, st, &err);
    moec_placement_destroy(s.before);
    moec_counts_destroy(s.counts);
    moec_cli_placed_close(&s.x);
    return code;
}

const moec_cli_command moec_cmd_placement_show = {
    .name = "placement show",
    .fn = run,
    .line = "a placement as a table, or as a page with a heat map",
    .usage = "placement show FILE|OUT [--source SRC] [--ep W] [--html PAGE]",
    .about = "Shows where experts stand: a line for each layer, the slots of "
             "one layer rank by rank, or a page for the browser with all "
             "layers and slots, replicas and shared slots marked. With load "
             "counts it shows what each rank carries before and after.",
    .examples = "placement show p2l.json --ep 32 --source ./DeepSeek-V3\n"
                "placement show ./V3-ep32 --layer 3\n"
                "placement show new.json --from old.json --ep 32 "
                "--logical-count counts.json --html map.html",
    .groups = groups,
    .min_paths = 1,
    .max_paths = 1,
};
