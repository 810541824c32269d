/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert placement eplb: a placement by load counts, and what it does for
 * the balance of the ranks. The placement goes to --out, or to stdout with the
 * report on stderr; with --json it is part of the document.
 */
#include <stdlib.h>
#include <string.h>

#include "balance.h"
#include "option_files.h"
#include "placement_input.h"
#include "print.h"
#include "session.h"

static const moec_cli_opt own_opts[] = {
    {"source", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, source), "SRC",
     "the model of the counts: a checkpoint or a conversion; its layers and "
     "groups",
     NULL, "rows and columns are as the file has them", 0},
    {"out", 'o', MOEC_KIND_TEXT, offsetof(moec_cli_args, out), "FILE",
     "write the placement there", NULL, "stdout", 0},
    {"format", 0, MOEC_KIND_CHOICE, offsetof(moec_cli_args, form),
     MOEC_CLI_FORMS, "form to write", "sglang", NULL, 0},
    {"npy", 0, MOEC_KIND_FLAG, offsetof(moec_cli_args, npy), NULL,
     "write .npy instead of JSON: phy2log, log2phy, logcnt, vllm", NULL, NULL,
     0},
    {"force", 'f', MOEC_KIND_FLAG, offsetof(moec_cli_args, force), NULL,
     "replace a file that exists", NULL, NULL, 0},
    {"family", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, family), "FILE",
     "a family description beside the built-in ones", NULL, NULL, 0},
};
static const moec_cli_group own = {"Placement", own_opts,
                                   sizeof(own_opts) / sizeof(own_opts[0])};
static const moec_cli_group *const groups[] = {&moec_group_balance, &own,
                                               &moec_group_common, NULL};

typedef struct eplb {
    const moec_cli *cli;
    moec_cli_session s;
    const moec_model *model; /* NULL without --source */
    moec_counts *counts;
    moec_placement *before; /* --from, or the trivial one */
    moec_placement *plain;  /* EPLB's, where the planner is another */
    moec_placement *after;
    uint32_t *replica; /* order of EPLB's copies, or NULL */
} eplb;

/* ------------------------------------------------------------ the work */

static moec_status open_all(eplb *x, moec_error *err)
{
    const moec_cli_args *a = &x->cli->args;
    moec_status st = MOEC_OK;
    if (a->source != NULL) {
        st = moec_cli_open_model(&x->s, x->cli, a->source, err);
        x->model = x->s.model;
    }
    if (st == MOEC_OK)
        st = moec_cli_read_counts(&x->counts, x->model, a->logical_count, err);
    return st;
}

static moec_status place(eplb *x, moec_error *err)
{
    const moec_cli_args *a = &x->cli->args;
    uint32_t n_layers = moec_counts_n_layers(x->counts);
    uint32_t n_experts = moec_counts_n_experts(x->counts);
    moec_eplb_opts o = moec_cli_eplb_opts(x->cli, x->model);
    moec_status st = moec_cli_balance(&x->after, &x->replica, x->cli, x->model,
                                      x->counts, err);
    if (st == MOEC_OK && a->planner == MOEC_CHOICE_PLANNER_MOEC)
        st = moec_eplb(&x->plain, NULL, &o, moec_counts_loads(x->counts),
                       n_layers, n_experts, err);
    if (st != MOEC_OK)
        return st;
    if (a->from != NULL)
        return moec_cli_read_placement(&x->before, x->model, x->counts, a->from,
                                       err);
    return moec_placement_trivial(&x->before, n_layers, n_experts, a->redundant,
                                  err);
}

/* ---------------------------------------------------------- the report */

typedef struct line {
    moec_balance before, plain, after;
    uint64_t moves;
} line;

static moec_status weigh(const eplb *x, uint32_t layer, line *out,
                         moec_error *err)
{
    const float *load = moec_counts_loads(x->counts) +
                        (size_t)layer * moec_counts_n_experts(x->counts);
    uint32_t ep = x->cli->args.ep;
    moec_status st =
        moec_placement_balance(x->before, layer, ep, load, &out->before, err);
    if (st == MOEC_OK)
        st =
            moec_placement_balance(x->after, layer, ep, load, &out->after, err);
    if (st == MOEC_OK && x->plain != NULL)
        st =
            moec_placement_balance(x->plain, layer, ep, load, &out->plain, err);
    out->moves = moec_placement_moves(x->before, x->after, layer);
    return st;
}

static moec_layer_key key_of(const eplb *x, uint32_t layer)
{
    if (x->model != NULL)
        return moec_model_layer(x->model, layer)->key;
    return (moec_layer_key){MOEC_SPACE_MAIN, layer};
}

static void json_rows(const eplb *x, moec_cli_json *j)
{
    moec_cli_json_array(j, "placement");
    for (uint32_t i = 0; i < moec_placement_n_layers(x->after); i++) {
        moec_cli_json_array_row(j, NULL);
        for (uint32_t k = 0; k < moec_placement_n_physical(x->after); k++)
            moec_cli_json_u64(j, NULL,
                              (uint64_t)moec_placement_row(x->after, i)[k]);
        moec_cli_json_end(j);
    }
    moec_cli_json_end(j);
}

static void json_line(const eplb *x, moec_cli_json *j, uint32_t layer,
                      const line *l)
{
    moec_cli_json_object_row(j, NULL);
    moec_cli_json_layer(j, "layer", key_of(x, layer));
    moec_cli_json_bool(j, "counted", moec_counts_has(x->counts, layer) != 0);
    moec_cli_json_f64(j, "mean", l->after.mean);
    moec_cli_json_f64(j, "max_before", l->before.most);
    moec_cli_json_f64(j, "max_after", l->after.most);
    moec_cli_json_f64(j, "before", l->before.ratio);
    moec_cli_json_f64(j, "after", l->after.ratio);
    if (x->plain != NULL)
        moec_cli_json_f64(j, "eplb", l->plain.ratio);
    moec_cli_json_u64(j, "moves", l->moves);
    moec_cli_json_end(j);
}

/* Does EPLB pack groups onto nodes? */
static bool is_by_node(const moec_eplb_opts *o)
{
    return o->n_nodes > 1 && o->n_groups % o->n_nodes == 0;
}

static void json_head(const eplb *x, moec_cli_json *j)
{
    const moec_cli_args *a = &x->cli->args;
    moec_eplb_opts o = moec_cli_eplb_opts(x->cli, x->model);
    moec_cli_json_str(j, "planner",
                      a->planner == MOEC_CHOICE_PLANNER_MOEC ? "moec" : "eplb");
    moec_cli_json_str(j, "policy", is_by_node(&o) ? "hierarchical" : "global");
    moec_cli_json_u64(j, "n_ranks", a->ep);
    moec_cli_json_u64(j, "n_nodes", o.n_nodes);
    moec_cli_json_u64(j, "n_groups", o.n_groups);
    moec_cli_json_u64(j, "n_experts", moec_counts_n_experts(x->counts));
    moec_cli_json_u64(j, "n_redundant", a->redundant);
    moec_cli_json_u64(j, "n_steps", moec_counts_n_steps(x->counts));
    if (a->out != NULL)
        moec_cli_json_str(j, "out", a->out);
}

static moec_status report_json(const eplb *x, moec_error *err)
{
    uint32_t n = moec_counts_n_layers(x->counts);
    line *lines = calloc((size_t)n + 1, sizeof(*lines));
    moec_status st = MOEC_OK;
    moec_cli_json j;
    if (lines == NULL)
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for the report");
    for (uint32_t i = 0; i < n && st == MOEC_OK; i++)
        st = weigh(x, i, &lines[i], err);
    if (st == MOEC_OK) {
        moec_cli_json_begin(&j, x->cli, true);
        json_head(x, &j);
        moec_cli_json_array(&j, "layers");
        for (uint32_t i = 0; i < n; i++)
            json_line(x, &j, i, &lines[i]);
        moec_cli_json_end(&j);
        if (x->cli->args.out == NULL)
            json_rows(x, &j);
        moec_cli_json_finish(&j);
    }
    free(lines);
    return st;
}

static moec_status report_text(const eplb *x, FILE *f, moec_error *err)
{
    const char *plain = x->plain != NULL ? "      EPLB" : "";
    double worst[2] = {0};
    uint64_t moves = 0;
    moec_eplb_opts o = moec_cli_eplb_opts(x->cli, x->model);
    if (is_by_node(&o))
        moec_cli_line(f, "%u groups of experts on %u nodes", o.n_groups,
                      o.n_nodes);
    moec_cli_line(f, "largest load of %u ranks over the mean", o.n_ranks);
    moec_cli_line(f, "layer        before%s     after   slots that change",
                  plain);
    for (uint32_t i = 0; i < moec_counts_n_layers(x->counts); i++) {
        line l = {0};
        char name[24], middle[24] = "";
        moec_status st = weigh(x, i, &l, err);
        if (st != MOEC_OK)
            return st;
        if (x->plain != NULL)
            (void)snprintf(middle, sizeof(middle), "  %8.4f", l.plain.ratio);
        moec_cli_line(f, "%-9s  %8.4f%s  %8.4f   %llu%s",
                      moec_cli_layer_name(name, key_of(x, i)), l.before.ratio,
                      middle, l.after.ratio, (unsigned long long)l.moves,
                      moec_counts_has(x->counts, i) ? "" : "  (no counts)");
        moves += l.moves;
        if (l.before.ratio > worst[0])
            worst[0] = l.before.ratio;
        if (l.after.ratio > worst[1])
            worst[1] = l.after.ratio;
    }
    moec_cli_line(f, "worst layer %.4f before, %.4f after; %llu slots change",
                  worst[0], worst[1], (unsigned long long)moves);
    return MOEC_OK;
}

/* ------------------------------------------------------- the placement */

/* Keys of the rows: the model's, or their numbers. To be freed. */
static moec_layer_key *make_keys(const eplb *x, uint32_t *n_decoder)
{
    uint32_t n = moec_placement_n_layers(x->after);
    moec_layer_key *keys = calloc((size_t)n + 1, sizeof(*keys));
    for (uint32_t i = 0; keys != NULL && i < n; i++)
        keys[i] = key_of(x, i);
    *n_decoder = x->model != NULL ? moec_model_facts(x->model)->n_layers : n;
    return keys;
}

static moec_status write_placement(const eplb *x, moec_error *err)
{
    const moec_cli_args *a = &x->cli->args;
    moec_placement_write_opts o = MOEC_PLACEMENT_WRITE_OPTS_INIT;
    moec_layer_key *keys = make_keys(x, &o.n_layers);
    void *text = NULL;
    size_t bytes = 0;
    if (keys == NULL)
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for the placement");
    o.form = moec_cli_form_of(a->form);
    o.keys = keys;
    o.n_ranks = a->ep;
    o.replica = x->replica;
    o.npy = a->npy;
    moec_status st = moec_placement_write(x->after, &o, &text, &bytes, err);
    if (st == MOEC_OK && a->out != NULL)
        st = moec_cli_write_file(a->out, text, bytes, a->force, err);
    else if (st == MOEC_OK && !a->json)
        (void)fwrite(text, 1, bytes, stdout);
    free(text);
    free(keys);
    return st;
}

static int run(moec_cli *cli)
{
    moec_error err = MOEC_ERROR_INIT;
    eplb x = {.cli = cli};
    const moec_cli_args *a = &cli->args;
    const char *wrong = moec_cli_check_balance(cli);
    if (wrong == NULL && a->logical_count == NULL)
        wrong = "--logical-count FILE is missing: the load counts";
    if (wrong == NULL && !moec_cli_given(a, cli->cmd->groups, "ep"))
        wrong = "--ep W is missing: the number of expert-parallel ranks";
    if (wrong != NULL)
        return moec_cli_usage(cli, "%s", wrong);
    moec_status st = open_all(&x, &err);
    if (st == MOEC_OK)
        st = place(&x, &err);
    if (st == MOEC_OK)
        st = write_placement(&x, &err);
    if (st == MOEC_OK && a->json)
        st = report_json(&x, &err);
    else if (st == MOEC_OK && !a->quiet)
        st = report_text(&x, a->out != NULL ? stdout : stderr, &err);
    int code = st == MOEC_OK ? MOEC_EXIT_OK : moec_cli_fail(cli, st, &err);
    moec_placement_destroy(x.before);
    moec_placement_destroy(x.plain);
    moec_placement_destroy(x.after);
    free(x.replica);
    moec_counts_destroy(x.counts);
    moec_cli_session_close(&x.s);
    return code;
}

const moec_cli_command moec_cmd_placement_eplb = {
    .name = "placement eplb",
    .fn = run,
    .line = "a placement by load counts, with EPLB or better",
    .usage = "placement eplb --logical-count FILE --ep W [--source SRC]",
    .about = "Places experts by the load counts of a running engine and says "
             "for each layer how far the most loaded rank is above the mean, "
             "before and after. Writes SGLang's form, or another engine's "
             "(--format). With --planner moec no "
             "layer is worse than EPLB's; with --from few slots change.",
    .examples =
        "placement eplb --logical-count counts.json --ep 32 --redundant 32 "
        "--source ./DeepSeek-V3 --out new.json\n"
        "placement eplb --logical-count counts.npy --ep 8 --planner moec "
        "--from today.json --max-moves 64",
    .groups = groups,
    .min_paths = 0,
    .max_paths = 0,
};
