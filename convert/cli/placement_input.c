/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the placement commands get their placement from. A directory is a
 * conversion, anything else a file. Without --source a file stands for itself:
 * E is its highest id and one, its rows are all the MoE layers there are; what
 * only a model can say (dense layers, a missing last expert) goes unseen then.
 */
#include "placement_input.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "option_files.h"
#include "web_source.h"

static const moec_cli_opt placed_opts[] = {
    {"source", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, source), "SRC",
     "the model that the placement is for: a checkpoint or a conversion", NULL,
     "rows and experts are as the file has them", 0},
    {"ep", 0, MOEC_KIND_U32, offsetof(moec_cli_args, ep), "W",
     "expert-parallel ranks", NULL, "what the file says", 0},
    {"redundant", 0, MOEC_KIND_U32, offsetof(moec_cli_args, redundant), "R",
     "redundant physical slots in all", NULL, "what the file has", 0},
    {"experts", 0, MOEC_KIND_U32, offsetof(moec_cli_args, experts), "E",
     "experts, where no --source says it", NULL, "the highest id and one",
     1u << 20},
    {"moe-layers", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, moe_layers),
     "A-B", "decoder layers of the file's rows, where no --source says it",
     NULL, NULL, 0},
    {"allow-empty", 0, MOEC_KIND_FLAG, offsetof(moec_cli_args, allow_empty),
     NULL, "id -1 is an empty slot", NULL, NULL, 0},
    {"family", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, family), "FILE",
     "a family description beside the built-in ones", NULL, NULL, 0},
};
const moec_cli_group moec_group_placed = {
    "Model", placed_opts, sizeof(placed_opts) / sizeof(placed_opts[0])};

static bool given(const moec_cli *cli, const char *name)
{
    return moec_cli_given(&cli->args, cli->cmd->groups, name);
}

/* ---------------------------------------------------------- the model */

static moec_status fail_memory(moec_error *err)
{
    return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                          "no memory for layers");
}

static moec_status keys_of_model(moec_cli_placed *x,
                                 moec_placement_target *target, moec_error *err)
{
    x->n_layers = moec_model_facts(x->model)->n_layers;
    x->n_shared = moec_model_facts(x->model)->shared_slots;
    return moec_cli_placement_target(x->model, target, &x->keys, err);
}

/* --moe-layers A-B. */
static moec_status keys_of_option(moec_cli_placed *x, const moec_cli *cli,
                                  moec_placement_target *target,
                                  moec_error *err)
{
    const char *text = cli->args.moe_layers, *dash = strchr(text, '-');
    uint64_t from = 0, to = 0;
    char first[16] = "";
    if (dash != NULL && (size_t)(dash - text) < sizeof(first))
        (void)snprintf(first, sizeof(first), "%.*s", (int)(dash - text), text);
    if (dash == NULL || !moec_cli_parse_u64(first, 65535, &from) ||
        !moec_cli_parse_u64(dash + 1, 65535, &to) || from > to)
        return moec_cli_error(err, MOEC_E_ARG, MOEC_RULE_NONE,
                              "--moe-layers wants A-B, such as 3-60, not '%s'",
                              text);
    target->n_keys = (size_t)(to - from + 1);
    x->keys = calloc(target->n_keys, sizeof(*x->keys));
    if (x->keys == NULL)
        return fail_memory(err);
    for (size_t i = 0; i < target->n_keys; i++)
        x->keys[i].number = (uint32_t)(from + i);
    x->n_layers = (uint32_t)to + 1;
    target->n_layers = x->n_layers;
    target->keys = x->keys;
    return MOEC_OK;
}

static moec_status open_target(moec_cli_placed *x, const moec_cli *cli,
                               moec_placement_target *target, moec_error *err)
{
    const moec_cli_args *a = &cli->args;
    moec_status st = MOEC_OK;
    if (given(cli, "experts"))
        target->n_experts = a->experts;
    target->n_ranks = given(cli, "ep") ? a->ep : 0;
    if (given(cli, "ep") && a->ep == 0)
        return moec_cli_error(err, MOEC_E_MAPPING, MOEC_RULE_P07,
                              "0 ranks: at least one is needed");
    target->allow_empty = a->allow_empty;
    if (a->source != NULL) {
        st = moec_cli_open_model(&x->s, cli, a->source, err);
        x->model = x->s.model;
        if (st == MOEC_OK)
            st = keys_of_model(x, target, err);
    } else if (a->moe_layers != NULL) {
        st = keys_of_option(x, cli, target, err);
    }
    x->has_keys = target->n_keys > 0;
    x->n_ranks = target->n_ranks;
    return st;
}

/* ------------------------------------------------------------ the file */

static moec_status take_file(moec_cli_placed *x, moec_error *err)
{
    const moec_placement_file *f = x->file;
    x->p = moec_placement_file_placement(f);
    x->form = moec_placement_form_name(moec_placement_file_form(f));
    x->replica = moec_placement_file_replica(f);
    x->has_keys = moec_placement_file_has_keys(f) != 0;
    if (x->n_ranks == 0)
        x->n_ranks = moec_placement_file_n_ranks(f);
    if (x->keys != NULL)
        return MOEC_OK;
    uint32_t n = moec_placement_n_layers(x->p);
    x->keys = calloc((size_t)n + 1, sizeof(*x->keys));
    if (x->keys == NULL)
        return fail_memory(err);
    for (uint32_t i = 0; i < n; i++)
        x->keys[i] = moec_placement_file_key(f, i);
    return MOEC_OK;
}

/* -------------------------------------------------------- a conversion */

/* A conversion says all of it itself. */
static moec_status refuse_options(const moec_cli *cli, const char *path,
                                  moec_error *err)
{
    for (size_t i = 0; i < moec_group_placed.n; i++) {
        const char *name = moec_group_placed.opts[i].name;
        if (given(cli, name) && strcmp(name, "family") != 0)
            return moec_cli_error(err, MOEC_E_ARG, MOEC_RULE_NONE,
                                  "--%s: %s is a directory: a conversion has "
                                  "its model and ranks in its manifest",
                                  name, path);
    }
    return MOEC_OK;
}

static moec_status open_conversion(moec_cli_placed *x, const moec_cli *cli,
                                   const char *path, moec_error *err)
{
    moec_status st = refuse_options(cli, path, err);
    if (st == MOEC_OK)
        st = moec_cli_open_model(&x->s, cli, path, err);
    if (st != MOEC_OK)
        return st;
    if (x->s.conversion == NULL)
        return moec_cli_error(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                              "%s: a checkpoint that is not converted has no "
                              "placement",
                              path);
    const moec_plan *plan =
        moec_layout_plan(moec_conversion_layout(x->s.conversion));
    moec_topology t = moec_plan_topology(plan);
    size_t n = moec_plan_n_layers(plan);
    if (moec_plan_options(plan)->by_expert)
        return moec_cli_error(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                              "%s: an expert store has no placement", path);
    x->model = moec_plan_model(plan);
    x->p = moec_plan_placement(plan);
    x->n_layers = moec_model_facts(x->model)->n_layers;
    x->n_ranks = t.n_ranks;
    x->n_shared = t.n_shared_slots;
    x->form = "conversion";
    x->has_keys = true;
    x->keys = calloc(n + 1, sizeof(*x->keys));
    if (x->keys == NULL)
        return fail_memory(err);
    for (size_t i = 0; i < n && i < moec_placement_n_layers(x->p); i++)
        x->keys[i] =
            moec_model_layer(x->model, moec_plan_model_layer(plan, i))->key;
    return MOEC_OK;
}

moec_status moec_cli_placed_open(moec_cli_placed *x, const moec_cli *cli,
                                 const char *path, moec_error *err)
{
    moec_placement_target target = MOEC_PLACEMENT_TARGET_INIT;
    char *text = NULL;
    size_t bytes = 0;
    struct stat sb;
    if (moec_web_is_url(path) || (stat(path, &sb) == 0 && S_ISDIR(sb.st_mode)))
        return open_conversion(x, cli, path, err);
    moec_status st = open_target(x, cli, &target, err);
    if (st == MOEC_OK)
        st = moec_cli_read_placement_file(&path, &text, &bytes, err);
    if (st == MOEC_OK)
        st =
            moec_placement_file_read(&x->file, &target, path, text, bytes, err);
    free(text);
    if (st == MOEC_OK)
        st = take_file(x, err);
    return st == MOEC_OK ? moec_cli_check_redundant(cli, x->p, path, err) : st;
}

moec_status moec_cli_placed_strategy(moec_cli_placed *x, const moec_cli *cli,
                                     moec_error *err)
{
    moec_placement_target target = MOEC_PLACEMENT_TARGET_INIT;
    moec_vllm_strategy s = cli->args.strategy == MOEC_CHOICE_VLLM_LINEAR
                               ? MOEC_VLLM_LINEAR
                               : MOEC_VLLM_ROUND_ROBIN;
    moec_status st = open_target(x, cli, &target, err);
    if (st != MOEC_OK)
        return st;
    st = moec_placement_vllm(&x->made, s, (uint32_t)target.n_keys,
                             target.n_experts, target.n_ranks, err);
    x->p = x->made;
    x->form = "vllm";
    return st;
}

void moec_cli_placed_close(moec_cli_placed *x)
{
    moec_placement_file_close(x->file);
    moec_placement_destroy(x->made);
    free(x->keys);
    moec_cli_session_close(&x->s);
    memset(x, 0, sizeof(*x));
}

/* ----------------------------------------------------------- findings */

/* P09 of one layer: how many slots repeat an expert of their rank, and the
 * first of them. */
static bool find_same_rank(const moec_cli_placed *x, uint32_t layer, char *text,
                           size_t bytes, moec_finding *f)
{
    const int32_t *row = moec_placement_row(x->p, layer);
    uint32_t n_local = moec_placement_n_physical(x->p) / x->n_ranks, n = 0;
    uint32_t first = 0;
    for (uint32_t i = 0; i < n_local * x->n_ranks; i++) {
        uint32_t k = i - i % n_local;
        while (k < i && row[k] != row[i])
            k++;
        if (k == i || row[i] < 0)
            continue;
        if (n++ == 0) {
            f->rank = i / n_local;
            f->slot = i;
            f->expert = (uint32_t)row[i];
            first = k;
        }
    }
    (void)snprintf(
        text, bytes,
        "%" PRIu32 " slot%s own rank, the first in physical slots "
        "%" PRIu32 " and %" PRIu32,
        n, n == 1 ? " repeats an expert of its" : "s repeat an expert of their",
        first, f->slot);
    return n > 0;
}

void moec_cli_placed_each(const moec_cli_placed *x, moec_cli_finding_fn fn,
                          void *ctx)
{
    uint32_t W = x->n_ranks, P = moec_placement_n_physical(x->p);
    for (size_t i = 0;
         x->file != NULL && i < moec_placement_file_n_notes(x->file); i++) {
        const moec_note *note = moec_placement_file_note(x->file, i);
        moec_finding f = {.rule = note->rule,
                          .severity = MOEC_SEVERITY_NOTE,
                          .message = note->text};
        if (note->rule != MOEC_RULE_P09)
            fn(ctx, &f);
    }
    for (uint32_t i = 0;
         W != 0 && P % W == 0 && i < moec_placement_n_layers(x->p); i++) {
        char text[192];
        moec_finding f = {.rule = MOEC_RULE_P09,
                          .severity = MOEC_SEVERITY_WARNING,
                          .has = MOEC_HAS_LAYER | MOEC_HAS_RANK |
                                 MOEC_HAS_SLOT | MOEC_HAS_EXPERT,
                          .layer = x->keys[i],
                          .message = text};
        if (!find_same_rank(x, i, text, sizeof(text), &f))
            continue;
        fn(ctx, &f);
    }
}

static void print_one(void *ctx, const moec_finding *f)
{
    moec_cli_print_finding(ctx, f);
}

void moec_cli_placed_print(const moec_cli_placed *x, const moec_cli *cli)
{
    if (!cli->args.quiet)
        moec_cli_placed_each(x, print_one, stderr);
}

static void json_one(void *ctx, const moec_finding *f)
{
    moec_cli_json_finding(ctx, f);
}

void moec_cli_placed_json(const moec_cli_placed *x, moec_cli_json *j)
{
    moec_cli_json_array(j, "findings");
    moec_cli_placed_each(x, json_one, j);
    moec_cli_json_end(j);
}

void moec_cli_placed_facts(const moec_cli_placed *x, moec_cli_json *j)
{
    uint32_t e = moec_placement_n_experts(x->p);
    uint32_t p = moec_placement_n_physical(x->p);
    moec_cli_json_str(j, "form", x->form);
    moec_cli_json_u64(j, "n_layers", moec_placement_n_layers(x->p));
    moec_cli_json_u64(j, "n_experts", e);
    moec_cli_json_u64(j, "n_physical", p);
    moec_cli_json_u64(j, "n_redundant", p - e);
    if (x->n_ranks != 0)
        moec_cli_json_u64(j, "n_ranks", x->n_ranks);
    moec_cli_json_bool(j, "trivial", moec_placement_is_trivial(x->p) != 0);
}
