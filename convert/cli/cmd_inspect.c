/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert inspect: what is in a checkpoint, from its headers and its
 * config. A bare .safetensors file without config.json has its header checked
 * and no family; every other source must be a model we know. Of a conversion
 * it says what was converted, and into what.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "print.h"
#include "session.h"

static const moec_cli_opt own_opts[] = {
    {"list-families", 0, MOEC_KIND_FLAG, offsetof(moec_cli_args, list_families),
     NULL, "list the families that are known, and do no more", NULL, NULL, 0},
    {"family", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, family), "FILE",
     "a family description beside the built-in ones", NULL, NULL, 0},
};
static const moec_cli_group own = {"Inspect", own_opts, 2};
static const moec_cli_group *const groups[] = {&own, &moec_group_common, NULL};

/* Sums over the tensor table. */
typedef struct census {
    uint64_t bytes;
    uint64_t role_bytes[MOEC_ROLE_SHARED_GATE + 1];
    uint64_t dtype_tensors[MOEC_DTYPE_COUNT];
    uint64_t dtype_bytes[MOEC_DTYPE_COUNT];
} census;

static void count(census *c, const moec_ckpt *ckpt, const moec_model *model)
{
    memset(c, 0, sizeof(*c));
    for (size_t i = 0; i < moec_ckpt_n_tensors(ckpt); i++) {
        const moec_tensor *t = moec_ckpt_tensor(ckpt, i);
        c->bytes += t->bytes;
        c->dtype_tensors[t->dtype]++;
        c->dtype_bytes[t->dtype] += t->bytes;
        if (model != NULL)
            c->role_bytes[moec_model_use(model, i).role] += t->bytes;
    }
}

/* ------------------------------------------------------------- router */

static const char *const score_names[] = {"softmax", "sigmoid", "sqrtsoftplus",
                                          "logit"};
static const char *const choice_names[] = {"topk", "hash", "sparse_mixer"};
static const char *const group_names[] = {"max", "top2"};
static const char *const norm_names[] = {"none", "sum",     "floor",
                                         "p",    "softmax", "joint"};

/* The router of the last decoder layer, which no table routes, and of how many
 * layers a table does. */
typedef struct router {
    moec_moe_facts f;
    uint32_t n_hash;
} router;

static router router_of(const moec_model *model)
{
    router r = {.n_hash = 0};
    moec_moe_facts f;
    for (size_t i = 0; i < moec_model_n_layers(model); i++) {
        if (moec_model_layer(model, i)->key.space != MOEC_SPACE_MAIN ||
            moec_model_moe(model, i, &f, NULL) != MOEC_OK)
            continue;
        r.n_hash += f.route.choice == MOEC_CHOICE_HASH;
        r.f = f;
    }
    return r;
}

static const char *bias_name(const moec_moe_facts *f)
{
    if (f->choice_bias != MOEC_NO_TENSOR)
        return "choice";
    return f->logit_bias != MOEC_NO_TENSOR ? "logit" : NULL;
}

/* Validation does all steps that there are. */
static const char *why_not(const moec_moe_facts *f)
{
    return f->steps == 0 ? f->why_not : NULL;
}

static const char *scale_place(const moec_moe_facts *f)
{
    return f->route.rsf_on == MOEC_RSF_ON_OUTPUT ? "output" : "weights";
}

/* --------------------------------------------------------------- JSON */

static void json_router(moec_cli_json *j, const moec_model *model)
{
    const moec_facts *f = moec_model_facts(model);
    router r = router_of(model);
    const moec_route_config *c = &r.f.route;
    moec_cli_json_object(j, "router");
    moec_cli_json_str(j, "score", f->score);
    moec_cli_json_str(j, "choice", choice_names[c->choice]);
    moec_cli_json_str(j, "weight", score_names[c->score]);
    moec_cli_json_str(j, "bias", bias_name(&r.f));
    moec_cli_json_u64(j, "n_group", f->n_group);
    moec_cli_json_u64(j, "topk_group", f->topk_group);
    moec_cli_json_str(j, "group_score",
                      c->n_group > 1 ? group_names[c->group_score] : NULL);
    if (f->norm_topk >= 0)
        moec_cli_json_bool(j, "norm_topk_prob", f->norm_topk != 0);
    else
        moec_cli_json_str(j, "norm_topk_prob", NULL);
    moec_cli_json_str(j, "norm", norm_names[c->norm]);
    moec_cli_json_f64(j, "norm_arg", (double)c->norm_arg);
    moec_cli_json_f64(j, "routed_scaling_factor", f->routed_scale);
    moec_cli_json_str(j, "scale_on", scale_place(&r.f));
    moec_cli_json_f64(j, "softcap", (double)c->softcap);
    moec_cli_json_u64(j, "zero_experts", c->n_zero);
    moec_cli_json_u64(j, "hash_layers", r.n_hash);
    moec_cli_json_bool(j, "expert_scale", r.f.expert_scale != MOEC_NO_TENSOR);
    moec_cli_json_bool(j, "weight_on_input", r.f.ffn.weight_on_input != 0);
    moec_cli_json_bool(j, "input_norm",
                       (r.f.steps & MOEC_STEP_ROUTER_NORM) != 0);
    moec_cli_json_bool(j, "latent", (r.f.steps & MOEC_STEP_LATENT) != 0);
    moec_cli_json_str(j, "why_not", why_not(&r.f));
    moec_cli_json_end(j);
}

static void json_layers(moec_cli_json *j, const char *key,
                        const moec_model *model, moec_space space)
{
    moec_cli_json_array_row(j, key);
    for (size_t i = 0; model != NULL && i < moec_model_n_layers(model); i++) {
        const moec_moe_layer *l = moec_model_layer(model, i);
        if (l->key.space == space)
            moec_cli_json_u64(j, NULL, l->source_number);
    }
    moec_cli_json_end(j);
}

static void json_facts(moec_cli_json *j, const moec_model *model,
                       const moec_facts *f)
{
    moec_cli_json_str(j, "family", f->family);
    moec_cli_json_str(j, "model_type", f->model_type);
    moec_cli_json_u64(j, "n_routed_experts", f->n_experts);
    moec_cli_json_u64(j, "n_shared_experts", f->shared_slots);
    moec_cli_json_u64(j, "top_k", f->top_k);
    moec_cli_json_u64(j, "hidden_size", f->hidden);
    moec_cli_json_u64(j, "moe_intermediate_size", f->inter);
    moec_cli_json_u64(j, "n_layers", f->n_layers);
    json_layers(j, "moe_layers", model, MOEC_SPACE_MAIN);
    json_layers(j, "mtp_layers", model, MOEC_SPACE_MTP);
    moec_cli_json_str(j, "expert_dtype", moec_dtype_name(f->expert_dtype));
    moec_cli_json_str(j, "activation", f->activation);
    moec_cli_json_bool(j, "gated", f->gated != 0);
    json_router(j, model);
    moec_cli_json_object_row(j, "shared");
    moec_cli_json_str(j, "kind", moec_shared_kind_name(f->shared_kind));
    moec_cli_json_u64(j, "n_shared", f->n_shared);
    moec_cli_json_u64(j, "width", f->shared_width);
    moec_cli_json_u64(j, "slots", f->shared_slots);
    moec_cli_json_str(j, "no_fuse", f->no_fuse_why);
    moec_cli_json_end(j);
}

static void json_census(moec_cli_json *j, const census *c, bool has_model)
{
    if (has_model) {
        moec_cli_json_object_row(j, "bytes_by_role");
        moec_cli_json_u64(j, "routed", c->role_bytes[MOEC_ROLE_ROUTED]);
        moec_cli_json_u64(j, "shared", c->role_bytes[MOEC_ROLE_SHARED]);
        moec_cli_json_u64(j, "router", c->role_bytes[MOEC_ROLE_ROUTER]);
        moec_cli_json_u64(j, "shared_gate",
                          c->role_bytes[MOEC_ROLE_SHARED_GATE]);
        moec_cli_json_u64(j, "common", c->role_bytes[MOEC_ROLE_COMMON]);
        moec_cli_json_end(j);
    }
    moec_cli_json_object(j, "dtypes");
    for (int d = 1; d < MOEC_DTYPE_COUNT; d++) {
        if (c->dtype_tensors[d] == 0)
            continue;
        moec_cli_json_object_row(j, moec_dtype_name((moec_dtype)d));
        moec_cli_json_u64(j, "n_tensors", c->dtype_tensors[d]);
        moec_cli_json_u64(j, "bytes", c->dtype_bytes[d]);
        moec_cli_json_end(j);
    }
    moec_cli_json_end(j);
}

static void print_json(const moec_cli *cli, const moec_cli_session *s,
                       const census *c, bool ok)
{
    moec_cli_json j;
    moec_cli_json_begin(&j, cli, ok);
    if (s->model != NULL)
        json_facts(&j, s->model, moec_model_facts(s->model));
    else
        moec_cli_json_str(&j, "family", NULL);
    moec_cli_json_bool(&j, "converted", s->conversion != NULL);
    if (s->conversion != NULL)
        moec_cli_json_topology(
            &j, moec_layout_plan(moec_conversion_layout(s->conversion)));
    moec_cli_json_u64(&j, "n_tensors", moec_ckpt_n_tensors(s->ckpt));
    moec_cli_json_u64(&j, "n_files", moec_ckpt_n_files(s->ckpt));
    moec_cli_json_u64(&j, "bytes", c->bytes);
    json_census(&j, c, s->model != NULL);
    moec_cli_json_array(&j, "files");
    for (size_t i = 0; i < moec_ckpt_n_files(s->ckpt); i++) {
        const moec_file *f = moec_ckpt_file(s->ckpt, i);
        moec_cli_json_object_row(&j, NULL);
        moec_cli_json_str(&j, "name", f->name);
        moec_cli_json_u64(&j, "bytes", f->bytes);
        moec_cli_json_u64(&j, "header_bytes", f->header_bytes);
        moec_cli_json_hex(&j, "header_sha256", f->header_sha256);
        moec_cli_json_end(&j);
    }
    moec_cli_json_end(&j);
    moec_cli_json_problems(&j, s->ckpt, NULL);
    moec_cli_json_finish(&j);
}

/* --------------------------------------------------------------- text */

static void print_router(const moec_model *model)
{
    static const char *const norms[] = {
        "not renormalised",      "renormalised",
        "renormalised (floor)",  "renormalised (p-norm)",
        "softmax of the chosen", "renormalised with the shared"};
    const moec_facts *f = moec_model_facts(model);
    router r = router_of(model);
    const moec_route_config *c = &r.f.route;
    const char *bias = bias_name(&r.f);
    char groups_text[80] = "", hash_text[48] = "";
    if (c->n_group > 1)
        (void)snprintf(groups_text, sizeof(groups_text),
                       ", %" PRIu32 " groups by %s of which %" PRIu32
                       " are kept",
                       c->n_group, group_names[c->group_score], c->topk_group);
    if (r.n_hash != 0)
        (void)snprintf(hash_text, sizeof(hash_text),
                       ", %" PRIu32 " layer%s by table", r.n_hash,
                       r.n_hash == 1 ? "" : "s");
    moec_cli_line(stdout,
                  "router     %s%s%s%s, top %" PRIu32 "%s%s, %s, scale %g on "
                  "the %s",
                  f->score, bias != NULL ? ", " : "", bias != NULL ? bias : "",
                  bias != NULL ? " bias" : "", f->top_k, groups_text, hash_text,
                  norms[c->norm], f->routed_scale, scale_place(&r.f));
    if (why_not(&r.f) != NULL)
        moec_cli_line(stdout, "           not run by validate: %s",
                      why_not(&r.f));
}

static void print_facts(const moec_model *model)
{
    const moec_facts *f = moec_model_facts(model);
    char main_layers[400], mtp_layers[100];
    moec_cli_layer_ranges(main_layers, sizeof(main_layers), model,
                          MOEC_SPACE_MAIN);
    moec_cli_layer_ranges(mtp_layers, sizeof(mtp_layers), model,
                          MOEC_SPACE_MTP);
    moec_cli_line(stdout, "family     %s (model_type %s)", f->family,
                  f->model_type);
    moec_cli_line(stdout,
                  "experts    E %" PRIu32 ", K %" PRIu32 ", I %" PRIu64
                  ", H %" PRIu64 ", %s, %s%s",
                  f->n_experts, f->top_k, f->inter, f->hidden,
                  moec_dtype_name(f->expert_dtype), f->activation,
                  f->gated ? ", gated" : "");
    if (f->shared_kind == MOEC_SHARED_NONE)
        moec_cli_line(stdout, "shared     none");
    else if (f->no_fuse_why != NULL)
        moec_cli_line(stdout,
                      "shared     width %" PRIu64 ", cannot take slots: %s",
                      f->shared_width, f->no_fuse_why);
    else
        moec_cli_line(stdout,
                      "shared     width %" PRIu64 ", %s weight, takes %" PRIu32
                      " slot%s a rank",
                      f->shared_width, moec_shared_kind_name(f->shared_kind),
                      f->shared_slots, f->shared_slots == 1 ? "" : "s");
    print_router(model);
    moec_cli_line(stdout, "layers     %" PRIu32 ", MoE in %s%s%s", f->n_layers,
                  main_layers, mtp_layers[0] != '\0' ? ", MTP " : "",
                  mtp_layers);
}

/* What was made of the source whose tensors follow. */
static void print_converted(const moec_layout *layout)
{
    const moec_plan *plan = moec_layout_plan(layout);
    moec_topology t = moec_plan_topology(plan);
    uint64_t bytes = 0;
    char size[24];
    for (size_t i = 0; i < moec_layout_n_files(layout); i++)
        bytes += moec_layout_file(layout, i)->bytes;
    if (moec_plan_options(plan)->by_expert)
        moec_cli_line(stdout, "converted  expert store, %zu files, %s",
                      moec_layout_n_files(layout), moec_cli_size(size, bytes));
    else
        moec_cli_line(stdout,
                      "converted  EP %" PRIu32 ", %" PRIu32
                      " slots a rank, %zu files, %s",
                      t.n_ranks, t.n_local + t.n_shared_slots,
                      moec_layout_n_files(layout), moec_cli_size(size, bytes));
}

static void print_text(const moec_cli_session *s, const census *c)
{
    char all[24], routed[24], shared[24];
    if (s->conversion != NULL)
        print_converted(moec_conversion_layout(s->conversion));
    if (s->model != NULL)
        print_facts(s->model);
    else
        moec_cli_line(stdout, "family     unknown: one file without a config");
    moec_cli_line(stdout, "%s    %zu in %zu file%s, %s",
                  s->conversion != NULL ? "source " : "tensors",
                  moec_ckpt_n_tensors(s->ckpt), moec_ckpt_n_files(s->ckpt),
                  moec_ckpt_n_files(s->ckpt) == 1 ? "" : "s",
                  moec_cli_size(all, c->bytes));
    if (s->model != NULL)
        moec_cli_line(stdout, "sizes      routed experts %s, shared experts %s",
                      moec_cli_size(routed, c->role_bytes[MOEC_ROLE_ROUTED]),
                      moec_cli_size(shared, c->role_bytes[MOEC_ROLE_SHARED]));
    for (int d = 1; d < MOEC_DTYPE_COUNT; d++) {
        if (c->dtype_tensors[d] != 0)
            moec_cli_line(stdout, "dtype      %-12s %8" PRIu64 " tensors, %s",
                          moec_dtype_name((moec_dtype)d), c->dtype_tensors[d],
                          moec_cli_size(all, c->dtype_bytes[d]));
    }
}

/* ------------------------------------------------------------ command */

/* What the family's test trees were made by, in words. */
static const char *how_tested(const char *tested)
{
    if (strcmp(tested, "fixture") == 0)
        return "tested against a reference implementation";
    if (strcmp(tested, "generated") == 0)
        return "tested against generated checkpoints only";
    return "not tested";
}

static int list_families(const moec_cli *cli)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_cli_session s = {0};
    moec_status st = moec_cli_open_families(&s, cli, &err);
    if (st != MOEC_OK) {
        moec_cli_session_close(&s);
        return moec_cli_fail(cli, st, &err);
    }
    size_t n = moec_families_count(s.families);
    if (cli->args.json) {
        moec_cli_json j;
        moec_cli_json_begin(&j, cli, true);
        moec_cli_json_array(&j, "families");
        for (size_t i = 0; i < n; i++)
            moec_cli_json_str(&j, NULL, moec_families_name(s.families, i));
        moec_cli_json_end(&j);
        moec_cli_json_object(&j, "tested");
        for (size_t i = 0; i < n; i++)
            moec_cli_json_str(&j, moec_families_name(s.families, i),
                              moec_families_tested(s.families, i));
        moec_cli_json_end(&j);
        moec_cli_json_finish(&j);
    } else {
        for (size_t i = 0; i < n; i++)
            moec_cli_line(stdout, "%-16s %s", moec_families_name(s.families, i),
                          how_tested(moec_families_tested(s.families, i)));
    }
    moec_cli_session_close(&s);
    return MOEC_EXIT_OK;
}

/* The checkpoint, and its model but for one bare file. */
static moec_status open_all(moec_cli_session *s, const moec_cli *cli,
                            moec_error *err)
{
    moec_status st = moec_cli_open_model(s, cli, moec_cli_path(cli, 0), err);
    if (st != MOEC_OK && s->own_ckpt != NULL && err->rule == MOEC_RULE_C01 &&
        moec_ckpt_is_bare_file(s->ckpt))
        return MOEC_OK;
    return st;
}

static int inspect(moec_cli *cli)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_cli_session s = {0};
    census c;
    if (cli->args.list_families)
        return list_families(cli);
    if (cli->args.n_paths == 0)
        return moec_cli_usage(cli, "SRC is missing");
    moec_status st = open_all(&s, cli, &err);
    if (st != MOEC_OK) {
        moec_cli_session_close(&s);
        return moec_cli_fail(cli, st, &err);
    }
    bool ok = !cli->args.strict || moec_cli_n_warnings(s.ckpt, NULL) == 0;
    count(&c, s.ckpt, s.model);
    if (cli->args.json)
        print_json(cli, &s, &c, ok);
    else
        print_text(&s, &c);
    moec_cli_print_problems(cli, s.ckpt, NULL);
    moec_cli_session_close(&s);
    return ok ? MOEC_EXIT_OK : MOEC_EXIT_FOUND;
}

const moec_cli_command moec_cmd_inspect = {
    .name = "inspect",
    .fn = inspect,
    .line = "what is in it: family, sizes, layers, dtypes, router, problems",
    .usage = "inspect SRC\ninspect --list-families",
    .about = "Reads the headers and config.json of SRC: a directory with "
             "safetensors, one .safetensors file, a Hugging Face cache "
             "snapshot, or org/name[@revision] in the local cache. No weight "
             "is read and nothing is downloaded. Of a converted checkpoint it "
             "tells the source it was made from, and its topology.",
    .examples = "inspect ./DeepSeek-V3\n"
                "inspect --json deepseek-ai/DeepSeek-V3@main\n"
                "inspect model-00001-of-00163.safetensors",
    .groups = groups,
    .min_paths = 0,
    .max_paths = 1,
    .url_paths = 1u,
};
