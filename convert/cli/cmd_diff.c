/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert diff: two placements (files, or those of conversions), two
 * conversions, two checkpoints, or one of each kind: what differs, and which
 * bytes would move between ranks to come from A to B. Exit 1 where something
 * differs. Data files are read for two plain checkpoints alone.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <compare.h>

#include "ci_report.h"
#include "placement_input.h"
#include "print.h"
#include "session.h"

static const moec_cli_opt own_opts[] = {
    {"nodes", 0, MOEC_KIND_U32, offsetof(moec_cli_args, nodes), "N",
     "nodes of the job: links inside a node and between nodes", "1", NULL, 0},
};
static const moec_cli_group own = {"Links", own_opts, 1};
static const moec_cli_group *const groups[] = {
    &moec_group_placed, &own, &moec_group_report, &moec_group_common, NULL};

typedef enum kind { KIND_PLACEMENT, KIND_CONVERSION, KIND_CKPT } kind;

typedef struct side {
    const char *path;
    kind kind;
    moec_cli_placed x;  /* of a placement or a conversion with ranks */
    moec_cli_session s; /* of a checkpoint, or an expert store */
    moec_plan *plan;    /* on the common model */
    uint32_t n_ranks;
} side;

/* What moves to one rank. */
typedef struct rank_sum {
    uint64_t n_slots;
    moec_diff_figures f;
} rank_sum;

typedef struct diff {
    const moec_cli *cli;
    side a, b;
    moec_compare found;
    const moec_model *model; /* that both placements are for, or NULL */
    uint64_t *changed;       /* slots, by layer of b's placement */
    uint32_t n_layers;
    uint64_t n_changed;
    rank_sum *ranks; /* NULL: not known */
    uint32_t n_ranks;
    const char *no_moves; /* why not */
} diff;

/* ------------------------------------------------------------- opening */

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), k = strlen(tail);
    return n >= k && strcmp(s + n - k, tail) == 0;
}

static moec_status find_kind(side *s, moec_error *err)
{
    struct stat sb;
    bool yes = false;
    if (stat(s->path, &sb) == 0 && S_ISREG(sb.st_mode)) {
        s->kind =
            ends_with(s->path, ".safetensors") ? KIND_CKPT : KIND_PLACEMENT;
        return MOEC_OK;
    }
    moec_status st = moec_cli_is_conversion(s->path, &yes, err);
    s->kind = yes ? KIND_CONVERSION : KIND_CKPT;
    return st;
}

/* A placement, for the model of the other side where that is a conversion. */
static moec_status open_placement(diff *d, side *s, const side *other,
                                  moec_error *err)
{
    moec_cli cli = *d->cli;
    if (s->kind == KIND_PLACEMENT && other->kind == KIND_CONVERSION)
        cli.args.source = other->path;
    return moec_cli_placed_open(&s->x, &cli, s->path, err);
}

/* `other` has a placement too, or is compared with this one's content. */
static moec_status open_side(diff *d, side *s, const side *other,
                             moec_error *err)
{
    if (s->kind == KIND_PLACEMENT)
        return open_placement(d, s, other, err);
    moec_status st = moec_cli_open_ckpt(&s->s, d->cli, s->path, err);
    if (st != MOEC_OK || s->kind == KIND_CKPT || other->kind == KIND_CKPT)
        return st;
    const moec_plan *plan =
        moec_layout_plan(moec_conversion_layout(s->s.conversion));
    if (moec_plan_options(plan)->by_expert) {
        d->no_moves = "an expert store has no placement";
        return MOEC_OK;
    }
    return open_placement(d, s, other, err);
}

/* What is not there is what the other side is: then its absence is told. */
static void settle_absent(side *s, const side *other)
{
    struct stat sb;
    if (s->kind == KIND_CKPT && other->kind == KIND_PLACEMENT &&
        stat(s->path, &sb) != 0)
        s->kind = KIND_PLACEMENT;
}

static moec_status check_kinds(diff *d, moec_error *err)
{
    settle_absent(&d->a, &d->b);
    settle_absent(&d->b, &d->a);
    if ((d->a.kind == KIND_PLACEMENT && d->b.kind == KIND_CKPT) ||
        (d->b.kind == KIND_PLACEMENT && d->a.kind == KIND_CKPT))
        return moec_cli_error(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                              "a placement and a checkpoint that is not "
                              "converted have nothing to compare; the "
                              "placement's model goes with --source");
    return MOEC_OK;
}

/* --------------------------------------------------------------- moves */

static const moec_plan *plan_of(const side *s)
{
    if (s->x.s.conversion == NULL)
        return NULL;
    return moec_layout_plan(moec_conversion_layout(s->x.s.conversion));
}

/* The side's plan on the common model: options of its own conversion, or of
 * the other one's. */
static moec_status make_plan(const diff *d, side *s, const side *other,
                             moec_error *err)
{
    moec_plan_opts o = MOEC_PLAN_OPTS_INIT;
    if (plan_of(s) != NULL)
        o = *moec_plan_options(plan_of(s));
    else if (plan_of(other) != NULL)
        o = *moec_plan_options(plan_of(other));
    o.n_ranks = s->n_ranks;
    o.placement = s->x.p;
    o.n_redundant = 0;
    return moec_plan_create(&s->plan, d->model, &o, err);
}

static uint32_t ranks_of(const side *s, const side *other)
{
    return s->x.n_ranks != 0 ? s->x.n_ranks : other->x.n_ranks;
}

static moec_status sum_moves(diff *d, moec_error *err)
{
    moec_diff_opts o = MOEC_DIFF_OPTS_INIT;
    uint32_t nodes = d->cli->args.nodes;
    moec_status st = MOEC_OK;
    if (nodes == 0 || d->a.n_ranks % nodes != 0)
        return moec_cli_error(err, MOEC_E_MAPPING, MOEC_RULE_P13,
                              "%" PRIu32 " ranks do not divide by %" PRIu32
                              " nodes",
                              d->a.n_ranks, nodes);
    o.ranks_per_node = nodes > 1 ? d->a.n_ranks / nodes : 0;
    d->n_ranks = d->b.n_ranks;
    d->ranks = calloc((size_t)d->n_ranks + 1, sizeof(*d->ranks));
    if (d->ranks == NULL)
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for ranks");
    for (uint32_t r = 0; r < d->n_ranks && st == MOEC_OK; r++) {
        moec_diff *moves = NULL;
        st = moec_plan_diff(&moves, d->a.plan, d->b.plan, r, &o, err);
        if (st != MOEC_OK)
            break;
        d->ranks[r].f = moec_diff_sums(moves);
        for (size_t i = 0; i < moec_diff_n_moves(moves); i++) {
            const moec_diff_move *m = moec_diff_get(moves, i);
            d->ranks[r].n_slots +=
                m->tensor == MOEC_DIFF_ROWS && m->dst_row != MOEC_DIFF_BOUNCE;
        }
        moec_diff_destroy(moves);
    }
    return st;
}

/* What moves, where both placements are known for one model. Plans that no
 * re-placement joins are no error: the report says why. */
static moec_status find_moves(diff *d, moec_error *err)
{
    moec_error why = MOEC_ERROR_INIT;
    d->model = d->a.x.model != NULL ? d->a.x.model : d->b.x.model;
    d->a.n_ranks = ranks_of(&d->a, &d->b);
    d->b.n_ranks = ranks_of(&d->b, &d->a);
    if (d->model == NULL || d->a.n_ranks == 0) {
        d->no_moves = d->model == NULL
                          ? "bytes need the model: --source SRC"
                          : "links need the number of ranks: --ep W";
        return MOEC_OK;
    }
    moec_status st = make_plan(d, &d->a, &d->b, err);
    if (st == MOEC_OK)
        st = make_plan(d, &d->b, &d->a, err);
    if (st != MOEC_OK)
        return st;
    st = sum_moves(d, &why);
    if (st == MOEC_E_MAPPING && why.rule == MOEC_RULE_NONE) {
        d->no_moves = "the two differ in more than ranks and placement";
        free(d->ranks);
        d->ranks = NULL;
        return MOEC_OK;
    }
    if (st != MOEC_OK)
        *err = why;
    return st;
}

static moec_status diff_placements(diff *d, moec_error *err)
{
    const moec_placement *a = d->a.x.p, *b = d->b.x.p;
    d->n_layers = moec_placement_n_layers(b);
    if (moec_placement_n_layers(a) != d->n_layers ||
        moec_placement_n_experts(a) != moec_placement_n_experts(b))
        return moec_cli_error(
            err, MOEC_E_MAPPING, MOEC_RULE_P02,
            "placements of two models: %" PRIu32 " layers of %" PRIu32
            " experts, and %" PRIu32 " of %" PRIu32,
            moec_placement_n_layers(a), moec_placement_n_experts(a),
            d->n_layers, moec_placement_n_experts(b));
    d->changed = calloc((size_t)d->n_layers + 1, sizeof(*d->changed));
    if (d->changed == NULL)
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for layers");
    for (uint32_t i = 0; i < d->n_layers; i++) {
        d->changed[i] = moec_placement_moves(a, b, i);
        d->n_changed += d->changed[i];
    }
    return find_moves(d, err);
}

/* Both files' own numbers of slots are part of what differs. */
static bool same_size(const diff *d)
{
    return d->a.x.p == NULL || d->b.x.p == NULL ||
           (moec_placement_n_physical(d->a.x.p) ==
                moec_placement_n_physical(d->b.x.p) &&
            (d->a.n_ranks == d->b.n_ranks || d->ranks == NULL));
}

/* Tensors with other names or shapes: slots of one are none of the other. */
static bool two_models(const diff *d)
{
    for (size_t i = 0; i < d->found.n; i++) {
        if (strcmp(d->found.list[i].about, "tensor") == 0)
            return true;
    }
    return false;
}

static moec_status run(diff *d, moec_error *err)
{
    const moec_conversion *ca, *cb;
    moec_status st = find_kind(&d->a, err);
    if (st == MOEC_OK)
        st = find_kind(&d->b, err);
    if (st == MOEC_OK)
        st = check_kinds(d, err);
    if (st == MOEC_OK)
        st = open_side(d, &d->a, &d->b, err);
    if (st == MOEC_OK)
        st = open_side(d, &d->b, &d->a, err);
    if (st != MOEC_OK)
        return st;
    ca = d->a.s.conversion;
    cb = d->b.s.conversion;
    if (ca != NULL && cb != NULL)
        st = moec_compare_conversions(&d->found, ca, cb, err);
    else if (d->a.kind == KIND_CKPT || d->b.kind == KIND_CKPT)
        st = moec_compare_tensors(&d->found, d->a.s.ckpt, d->b.s.ckpt, err);
    if (st == MOEC_OK && d->a.kind == KIND_CKPT && d->b.kind == KIND_CKPT)
        st = moec_compare_bytes(&d->found, d->a.s.ckpt, d->b.s.ckpt, NULL, err);
    else if (st == MOEC_OK && d->a.kind == KIND_CKPT && cb != NULL)
        st = moec_compare_source(&d->found, d->a.s.ckpt, cb, err);
    else if (st == MOEC_OK && d->b.kind == KIND_CKPT && ca != NULL)
        st = moec_compare_source(&d->found, d->b.s.ckpt, ca, err);
    if (st == MOEC_OK && (ca != NULL || d->a.kind == KIND_CKPT) &&
        (cb != NULL || d->b.kind == KIND_CKPT))
        st = moec_compare_files(&d->found, (moec_compared){d->a.s.ckpt, ca},
                                (moec_compared){d->b.s.ckpt, cb}, err);
    if (st != MOEC_OK || d->a.x.p == NULL || d->b.x.p == NULL)
        return st;
    if (two_models(d)) {
        d->no_moves = "the two are of two models";
        return MOEC_OK;
    }
    return diff_placements(d, err);
}

/* ---------------------------------------------------------- the report */

static bool is_same(const diff *d)
{
    return d->found.n == 0 && d->n_changed == 0 && same_size(d);
}

static const char *kind_name(const diff *d)
{
    if (d->a.kind == KIND_CKPT && d->b.kind == KIND_CKPT)
        return "checkpoints";
    if (d->a.kind == KIND_CONVERSION && d->b.kind == KIND_CONVERSION)
        return "conversions";
    return d->a.x.p != NULL ? "placements" : "source";
}

/* "option --ep: 2, then 4"; contents have one sentence for both sides. */
static void difference_text(const moec_difference *x, char *buf, size_t n)
{
    if (strcmp(x->about, "content") == 0)
        (void)snprintf(buf, n, "%s: %s", x->name, x->b);
    else if (x->a == NULL || x->b == NULL)
        (void)snprintf(buf, n, "%s %s: %s only in %s", x->about, x->name,
                       x->a != NULL ? x->a : x->b, x->a != NULL ? "A" : "B");
    else
        (void)snprintf(buf, n, "%s %s: %s in A, %s in B", x->about, x->name,
                       x->a, x->b);
}

static uint64_t sum_bytes(const moec_diff_figures *f)
{
    return f->bytes_local + f->bytes_same_node + f->bytes_other_node +
           f->bytes_disk + f->bytes_host;
}

static moec_diff_figures sum_ranks(const diff *d)
{
    moec_diff_figures all = {0};
    for (uint32_t r = 0; r < d->n_ranks && d->ranks != NULL; r++) {
        const moec_diff_figures *f = &d->ranks[r].f;
        all.bytes_local += f->bytes_local;
        all.bytes_same_node += f->bytes_same_node;
        all.bytes_other_node += f->bytes_other_node;
        all.bytes_disk += f->bytes_disk;
        if (f->bounce_bytes > all.bounce_bytes)
            all.bounce_bytes = f->bounce_bytes;
        if (f->n_rounds > all.n_rounds)
            all.n_rounds = f->n_rounds;
    }
    return all;
}

static void print_layers(const diff *d)
{
    char name[24];
    for (uint32_t i = 0; i < d->n_layers; i++) {
        if (d->changed[i] == 0)
            continue;
        moec_layer_key key = {MOEC_SPACE_MAIN, i};
        if (d->b.x.keys != NULL)
            key = d->b.x.keys[i];
        moec_cli_line(stdout,
                      "layer %s: %" PRIu64 " of %" PRIu32
                      " slots hold another expert",
                      moec_cli_layer_name(name, key), d->changed[i],
                      moec_placement_n_physical(d->b.x.p));
    }
}

static void print_moves(const diff *d)
{
    moec_diff_figures all = sum_ranks(d);
    char a[24], b[24], c[24], e[24];
    if (d->ranks == NULL || sum_bytes(&all) == 0)
        return;
    moec_cli_line(stdout, "rank     slots       local   same node  other node"
                          "        disk");
    for (uint32_t r = 0; r < d->n_ranks; r++) {
        const moec_diff_figures *f = &d->ranks[r].f;
        moec_cli_line(stdout,
                      "%4" PRIu32 "  %8" PRIu64 "  %10s  %10s  %10s"
                      "  %10s",
                      r, d->ranks[r].n_slots, moec_cli_size(a, f->bytes_local),
                      moec_cli_size(b, f->bytes_same_node),
                      moec_cli_size(c, f->bytes_other_node),
                      moec_cli_size(e, f->bytes_disk));
    }
    moec_cli_line(stdout,
                  "moves: %s, of them %s between ranks and %s between "
                  "nodes; bounce row %s",
                  moec_cli_size(a, sum_bytes(&all)),
                  moec_cli_size(b, all.bytes_same_node + all.bytes_other_node),
                  moec_cli_size(c, all.bytes_other_node),
                  moec_cli_size(e, all.bounce_bytes));
}

static void print_text(const diff *d)
{
    const char *same = "nothing differs";
    char text[1200];
    /* Say what was not looked at. */
    if (d->a.s.conversion != NULL && d->b.s.conversion != NULL)
        same = "nothing differs by the digests (verify reads the bytes)";
    else if ((d->a.s.conversion != NULL && d->b.kind == KIND_CKPT) ||
             (d->b.s.conversion != NULL && d->a.kind == KIND_CKPT))
        same = "nothing differs by the headers (verify --source reads the "
               "bytes)";
    for (size_t i = 0; i < d->found.n; i++) {
        difference_text(&d->found.list[i], text, sizeof(text));
        moec_cli_line(stdout, "%s", text);
    }
    print_layers(d);
    print_moves(d);
    if (d->no_moves != NULL && !d->cli->args.quiet && !is_same(d))
        moec_cli_line(stderr, "moe-convert diff: no moves: %s", d->no_moves);
    moec_cli_line(stdout, "%s and %s: %s", d->a.path, d->b.path,
                  is_same(d) ? same : "they differ");
}

static void json_moves(const diff *d, moec_cli_json *j)
{
    moec_diff_figures all = sum_ranks(d);
    moec_cli_json_array(j, "ranks");
    for (uint32_t r = 0; r < d->n_ranks && d->ranks != NULL; r++) {
        const moec_diff_figures *f = &d->ranks[r].f;
        moec_cli_json_object_row(j, NULL);
        moec_cli_json_u64(j, "rank", r);
        moec_cli_json_u64(j, "n_slots_changed", d->ranks[r].n_slots);
        moec_cli_json_u64(j, "bytes_local", f->bytes_local);
        moec_cli_json_u64(j, "bytes_same_node", f->bytes_same_node);
        moec_cli_json_u64(j, "bytes_other_node", f->bytes_other_node);
        moec_cli_json_u64(j, "bytes_disk", f->bytes_disk);
        moec_cli_json_u64(j, "n_rounds", f->n_rounds);
        moec_cli_json_end(j);
    }
    moec_cli_json_end(j);
    if (d->ranks != NULL) {
        moec_cli_json_u64(j, "bytes_moved", sum_bytes(&all));
        moec_cli_json_u64(j, "bytes_between_ranks",
                          all.bytes_same_node + all.bytes_other_node);
        moec_cli_json_u64(j, "bytes_between_nodes", all.bytes_other_node);
        moec_cli_json_u64(j, "bounce_bytes", all.bounce_bytes);
    } else {
        moec_cli_json_str(j, "no_moves", d->no_moves);
    }
}

static void print_json(const diff *d)
{
    moec_cli_json j;
    moec_cli_json_begin(&j, d->cli, is_same(d));
    moec_cli_json_str(&j, "kind", kind_name(d));
    moec_cli_json_str(&j, "a", d->a.path);
    moec_cli_json_str(&j, "b", d->b.path);
    moec_cli_json_bool(&j, "same", is_same(d));
    moec_cli_json_array(&j, "differences");
    for (size_t i = 0; i < d->found.n; i++) {
        const moec_difference *x = &d->found.list[i];
        moec_cli_json_object_row(&j, NULL);
        moec_cli_json_str(&j, "about", x->about);
        moec_cli_json_str(&j, "name", x->name);
        moec_cli_json_str(&j, "a", x->a);
        moec_cli_json_str(&j, "b", x->b);
        moec_cli_json_end(&j);
    }
    moec_cli_json_end(&j);
    moec_cli_json_u64(&j, "n_compared", d->found.n_compared);
    moec_cli_json_u64(&j, "bytes_compared", d->found.bytes_compared);
    if (d->changed != NULL) {
        moec_cli_json_u64(&j, "n_slots_changed", d->n_changed);
        moec_cli_json_array(&j, "layers");
        for (uint32_t i = 0; i < d->n_layers; i++) {
            moec_layer_key key = {MOEC_SPACE_MAIN, i};
            if (d->b.x.keys != NULL)
                key = d->b.x.keys[i];
            moec_cli_json_object_row(&j, NULL);
            moec_cli_json_layer(&j, "layer", key);
            moec_cli_json_u64(&j, "n_slots_changed", d->changed[i]);
            moec_cli_json_end(&j);
        }
        moec_cli_json_end(&j);
        json_moves(d, &j);
    }
    moec_cli_json_finish(&j);
}

/* The forms of CI systems: each difference is a finding. */
static int print_ci(const diff *d)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_ci_report r;
    char text[1200];
    moec_ci_init(&r, d->cli, d->b.path);
    (void)moec_ci_begin(&r, NULL);
    for (size_t i = 0; i < d->found.n; i++) {
        moec_finding f = {.severity = MOEC_SEVERITY_ERROR};
        difference_text(&d->found.list[i], text, sizeof(text));
        moec_ci_add(&r, &f, NULL, "%s", text);
    }
    for (uint32_t i = 0; i < d->n_layers; i++) {
        moec_finding f = {.severity = MOEC_SEVERITY_ERROR,
                          .has = MOEC_HAS_LAYER,
                          .layer = {MOEC_SPACE_MAIN, i}};
        if (d->changed[i] == 0)
            continue;
        if (d->b.x.keys != NULL)
            f.layer = d->b.x.keys[i];
        if (d->b.kind == KIND_PLACEMENT) {
            f.has |= MOEC_HAS_FILE;
            f.file = d->b.path;
        }
        moec_ci_add(&r, &f, NULL, "%" PRIu64 " slots hold another expert",
                    d->changed[i]);
    }
    moec_status st = moec_ci_settle(&r, &err);
    int code =
        st == MOEC_OK ? moec_ci_write(&r) : moec_cli_fail(d->cli, st, &err);
    moec_ci_fini(&r);
    return code;
}

static int report(const diff *d)
{
    const moec_cli_args *a = &d->cli->args;
    if (a->json)
        print_json(d);
    else if (a->format == MOEC_CHOICE_TEXT)
        print_text(d);
    else
        return print_ci(d);
    return is_same(d) ? MOEC_EXIT_OK : MOEC_EXIT_FOUND;
}

static void close_side(side *s)
{
    moec_plan_destroy(s->plan);
    moec_cli_placed_close(&s->x);
    moec_cli_session_close(&s->s);
}

static int diff_command(moec_cli *cli)
{
    diff d = {.cli = cli};
    moec_error err = MOEC_ERROR_INIT;
    char why[MOEC_OPT_WHY_BYTES];
    const char *wrong = moec_ci_wrong_reports(cli, why);
    if (wrong != NULL)
        return moec_cli_usage(cli, "%s", wrong);
    if (cli->args.format == MOEC_CHOICE_JSON)
        cli->args.json = true;
    d.a.path = moec_cli_path(cli, 0);
    d.b.path = moec_cli_path(cli, 1);
    moec_status st = run(&d, &err);
    int code = st == MOEC_OK ? report(&d) : moec_ci_fail(cli, st, &err);
    moec_compare_fini(&d.found);
    free(d.changed);
    free(d.ranks);
    close_side(&d.a);
    close_side(&d.b);
    return code;
}

const moec_cli_command moec_cmd_diff = {
    .name = "diff",
    .fn = diff_command,
    .line = "what differs between two, and which bytes move",
    .usage = "diff A B [--source SRC] [--ep W] [--nodes N]",
    .about = "A and B are placement files, conversions or checkpoints. "
             "Placements: slots that change, and for each rank the bytes that "
             "come from itself, from its node and from other nodes. "
             "Conversions: options too, and contents by digest. A checkpoint "
             "and a conversion: is this its source, by headers (verify "
             "--source compares the bytes). Two checkpoints: tensors and "
             "their bytes. Of all, config.json and the files beside it. Exit "
             "1 where something differs.",
    .examples = "diff today.json new.json --source ./DeepSeek-V3 --ep 32 "
                "--nodes 4\n"
                "diff ./V3-ep32 new.json --nodes 4\n"
                "diff ./V3-ep32 ./V3-ep64 --json\n"
                "diff ./Mixtral ./Mixtral-tuned",
    .groups = groups,
    .min_paths = 2,
    .max_paths = 2,
    .url_paths = 3u,
};
