/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From SRC and options to a layout. Refuses, before anything is opened:
 * topology options that contradict each other. Reads the environment, which
 * the library never does: HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME, HOME.
 */
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <convert.h>

#include "balance.h"
#include "option_files.h"
#include "print.h"
#include "web_source.h"

/* ------------------------------------------------------------ opening */

/* The order is that of huggingface_hub. */
bool moec_cli_hf_cache(char **out)
{
    static const struct {
        const char *variable, *below;
    } places[] = {{"HF_HUB_CACHE", ""},
                  {"HF_HOME", "/hub"},
                  {"XDG_CACHE_HOME", "/huggingface/hub"},
                  {"HOME", "/.cache/huggingface/hub"}};
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        const char *value = getenv(places[i].variable);
        if (value != NULL && value[0] != '\0')
            return asprintf(out, "%s%s", value, places[i].below) >= 0;
    }
    *out = NULL;
    return true;
}

moec_status moec_cli_open_source(moec_ckpt **out, const moec_cli *cli,
                                 const char *src, moec_error *err)
{
    moec_ckpt_opts opts = MOEC_CKPT_OPTS_INIT;
    const moec_store *store = NULL;
    moec_status st = moec_cli_web_store(&store, src, err);
    opts.n_threads = cli->args.threads;
    if (st != MOEC_OK || store != NULL)
        return st == MOEC_OK ? moec_ckpt_open_source(out, store, &opts, err)
                             : st;
    char *cache = NULL;
    if (!moec_cli_hf_cache(&cache))
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for the cache's path");
    opts.hf_cache = cache;
    st = moec_ckpt_open(out, src, &opts, err);
    free(cache);
    return st;
}

moec_status moec_cli_open_families(moec_cli_session *s, const moec_cli *cli,
                                   moec_error *err)
{
    size_t bytes = 0;
    moec_status st = moec_families_create(&s->families, err);
    if (st != MOEC_OK || cli->args.family == NULL)
        return st;
    st = moec_cli_read_file(cli->args.family, MOEC_RULE_C09,
                            MOEC_JSON_BYTES_MAX, &s->family_text, &bytes, err);
    if (st != MOEC_OK)
        return st;
    return moec_families_add(s->families, cli->args.family, s->family_text,
                             bytes, err);
}

/* The description that the conversion was made with is the model's; another
 * one would be another model. */
static moec_status take_family(moec_cli_session *s, const char *src,
                               moec_error *err)
{
    const char *own = moec_convert_family_text(s->conversion);
    if (own != NULL && s->family_text != NULL &&
        strcmp(own, s->family_text) != 0)
        return moec_cli_error(err, MOEC_E_ARG, MOEC_RULE_NONE,
                              "--family: %s is converted, with another family "
                              "description in its manifest",
                              src);
    s->family = own != NULL ? own : s->family_text;
    return MOEC_OK;
}

moec_status moec_cli_open_conversion(moec_conversion **out, const char *path,
                                     const moec_families *families,
                                     moec_error *err)
{
    const moec_store *store = NULL;
    moec_status st = moec_cli_web_store(&store, path, err);
    if (st != MOEC_OK)
        return st;
    return store != NULL
               ? moec_conversion_open_source(out, store, families, err)
               : moec_conversion_open(out, path, families, err);
}

static moec_status open_conversion(moec_cli_session *s, const char *src,
                                   moec_error *err)
{
    moec_status st =
        moec_cli_open_conversion(&s->conversion, src, s->families, err);
    if (st != MOEC_OK)
        return st;
    const moec_layout *layout = moec_conversion_layout(s->conversion);
    s->model = moec_plan_model(moec_layout_plan(layout));
    s->ckpt = moec_model_ckpt(s->model);
    return take_family(s, src, err);
}

moec_status moec_cli_open_ckpt(moec_cli_session *s, const moec_cli *cli,
                               const char *src, moec_error *err)
{
    bool converted = false;
    moec_status st = moec_cli_open_families(s, cli, err);
    if (st == MOEC_OK)
        st = moec_cli_is_conversion(src, &converted, err);
    if (st != MOEC_OK)
        return st;
    if (converted)
        return open_conversion(s, src, err);
    s->family = s->family_text;
    st = moec_cli_open_source(&s->own_ckpt, cli, src, err);
    s->ckpt = s->own_ckpt;
    return st;
}

moec_status moec_cli_open_model(moec_cli_session *s, const moec_cli *cli,
                                const char *src, moec_error *err)
{
    moec_status st = moec_cli_open_ckpt(s, cli, src, err);
    if (st != MOEC_OK || s->conversion != NULL)
        return st;
    st = moec_model_open(&s->own_model, s->own_ckpt, s->families, err);
    s->model = s->own_model;
    return st;
}

moec_status moec_cli_placement_target(const moec_model *model,
                                      moec_placement_target *target,
                                      moec_layer_key **keys, moec_error *err)
{
    const moec_facts *facts = moec_model_facts(model);
    size_t n = moec_model_n_layers(model);
    *keys = calloc(n + 1, sizeof(**keys));
    if (*keys == NULL)
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for layers");
    for (size_t i = 0; i < n; i++)
        (*keys)[i] = moec_model_layer(model, i)->key;
    target->n_experts = facts->n_experts;
    target->n_layers = facts->n_layers;
    target->keys = *keys;
    target->n_keys = n;
    return MOEC_OK;
}

/* The ranks that a file which says its own (vllm-ascend) must agree with. */
static uint32_t ranks_of_job(const moec_cli_session *s, const moec_cli *cli)
{
    if (moec_cli_given(&cli->args, cli->cmd->groups, "ep"))
        return cli->args.ep;
    if (s->conversion == NULL)
        return 0;
    const moec_layout *layout = moec_conversion_layout(s->conversion);
    return moec_plan_topology(moec_layout_plan(layout)).n_ranks;
}

static moec_status parse_placement(moec_cli_session *s, const moec_cli *cli,
                                   const char *name, const char *text,
                                   size_t bytes, moec_error *err)
{
    moec_placement_target target = MOEC_PLACEMENT_TARGET_INIT;
    moec_placement_file *file = NULL;
    moec_layer_key *keys = NULL;
    moec_status st = moec_cli_placement_target(s->model, &target, &keys, err);
    target.n_ranks = ranks_of_job(s, cli);
    target.allow_empty = cli->args.allow_empty;
    if (st == MOEC_OK)
        st = moec_placement_file_read(&file, &target, name, text, bytes, err);
    if (st == MOEC_OK)
        s->placement = moec_placement_file_take(file);
    moec_placement_file_close(file);
    free(keys);
    return st;
}

moec_status moec_cli_check_redundant(const moec_cli *cli,
                                     const moec_placement *placement,
                                     const char *path, moec_error *err)
{
    uint32_t e = moec_placement_n_experts(placement);
    uint32_t p = moec_placement_n_physical(placement);
    if (!moec_cli_given(&cli->args, cli->cmd->groups, "redundant") ||
        p - e == cli->args.redundant)
        return MOEC_OK;
    return moec_cli_error(err, MOEC_E_MAPPING, MOEC_RULE_P08,
                          "%s: %" PRIu32 " slots for %" PRIu32
                          " experts make %" PRIu32
                          " redundant ones, --redundant says %" PRIu32,
                          path, p, e, p - e, cli->args.redundant);
}

moec_status moec_cli_open_placement(moec_cli_session *s, const moec_cli *cli,
                                    moec_error *err)
{
    const char *path = cli->args.placement;
    char *text = NULL;
    size_t bytes = 0;
    moec_status st = moec_cli_read_placement_file(&path, &text, &bytes, err);
    if (st != MOEC_OK)
        return st;
    st = parse_placement(s, cli, path, text, bytes, err);
    free(text);
    return st == MOEC_OK
               ? moec_cli_check_redundant(cli, s->placement, path, err)
               : st;
}

/* A placement by the loads that --logical-count has. */
static moec_status open_counts(moec_cli_session *s, const moec_cli *cli,
                               moec_error *err)
{
    moec_counts *counts = NULL;
    moec_status st =
        moec_cli_read_counts(&counts, s->model, cli->args.logical_count, err);
    if (st == MOEC_OK)
        st = moec_cli_balance(&s->placement, NULL, cli, s->model, counts, err);
    moec_counts_destroy(counts);
    return st;
}

moec_plan_opts moec_cli_plan_opts(const moec_cli_session *s,
                                  const moec_cli *cli)
{
    const moec_cli_args *a = &cli->args;
    moec_plan_opts o = MOEC_PLAN_OPTS_INIT;
    if (moec_cli_given(a, cli->cmd->groups, "ep"))
        o.n_ranks = a->ep;
    o.n_redundant = a->redundant;
    o.placement = s->placement;
    o.allow_empty = a->allow_empty;
    o.no_mtp = a->no_mtp;
    o.requantise_shared = a->requantize_shared;
    o.shared_store_common = a->shared_store == MOEC_CHOICE_STORE_COMMON;
    o.by_expert = a->shard_by == MOEC_CHOICE_BY_EXPERT;
    if (a->w13_order == MOEC_CHOICE_UP_GATE)
        o.w13_order = MOEC_W13_UP_GATE;
    if (a->shared_slots == MOEC_CHOICE_PER_RANK)
        o.shared = MOEC_SHARED_SLOTS_PER_RANK;
    else if (a->shared_slots == MOEC_CHOICE_GLOBAL)
        o.shared = MOEC_SHARED_SLOTS_GLOBAL;
    else if (a->shared_slots == MOEC_CHOICE_NONE)
        o.shared = MOEC_SHARED_SLOTS_OFF;
    return o;
}

moec_status moec_cli_open_layout(moec_cli_session *s, const moec_cli *cli,
                                 const char *src, moec_error *err)
{
    moec_status st = moec_cli_open_model(s, cli, src, err);
    return st == MOEC_OK ? moec_cli_make_layout(s, cli, err) : st;
}

moec_status moec_cli_make_layout(moec_cli_session *s, const moec_cli *cli,
                                 moec_error *err)
{
    moec_status st = MOEC_OK;
    if (cli->args.placement != NULL)
        st = moec_cli_open_placement(s, cli, err);
    if (st == MOEC_OK && cli->args.logical_count != NULL)
        st = open_counts(s, cli, err);
    if (st != MOEC_OK)
        return st;
    moec_plan_opts opts = moec_cli_plan_opts(s, cli);
    st = moec_plan_create(&s->plan, s->model, &opts, err);
    if (st != MOEC_OK)
        return st;
    st = moec_layout_create(&s->layout, s->plan, cli->args.max_part_bytes, err);
    if (st == MOEC_OK && s->conversion != NULL)
        st = moec_convert_check_source(s->layout, s->conversion, err);
    return st;
}

void moec_cli_session_close(moec_cli_session *s)
{
    moec_layout_destroy(s->layout);
    moec_plan_destroy(s->plan);
    moec_placement_destroy(s->placement);
    moec_model_destroy(s->own_model);
    moec_ckpt_close(s->own_ckpt);
    moec_conversion_close(s->conversion);
    moec_families_destroy(s->families);
    free(s->family_text);
    memset(s, 0, sizeof(*s));
}

static bool has_file(const moec_store *store, const char *name)
{
    for (size_t i = 0; i < store->n_files; i++) {
        if (strcmp(store->files[i].name, name) == 0)
            return true;
    }
    return false;
}

moec_status moec_cli_is_conversion(const char *dir, bool *yes, moec_error *err)
{
    static const char *const own[] = {"slots.bin", "manifest.json",
                                      "sources.bin"};
    const moec_store *store = NULL;
    moec_status st = moec_cli_web_store(&store, dir, err);
    bool there[3] = {false, false, false};
    if (st == MOEC_OK && store != NULL) {
        *yes = has_file(store, own[0]) &&
               (has_file(store, own[1]) || has_file(store, own[2]));
        return MOEC_OK;
    }
    if (st == MOEC_OK)
        st = moec_convert_is_output(dir, yes, err);
    if (st != MOEC_OK || *yes)
        return st;
    /* A damaged one is still no source: say what is wrong with it. */
    for (size_t i = 0; i < 3; i++) {
        char *path = NULL;
        if (asprintf(&path, "%s/%s", dir, own[i]) < 0)
            return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                                  "no memory for a path");
        there[i] = access(path, F_OK) == 0;
        free(path);
    }
    *yes = there[0] && (there[1] || there[2]);
    return MOEC_OK;
}

const char *moec_cli_topology_given(const moec_cli *cli)
{
    for (size_t i = 0; i < moec_group_topology.n; i++) {
        const char *name = moec_group_topology.opts[i].name;
        if (strcmp(name, "family") != 0 &&
            moec_cli_given(&cli->args, cli->cmd->groups, name))
            return name;
    }
    return NULL;
}

const char *moec_cli_check_topology(const moec_cli *cli, bool need_ep)
{
    const moec_cli_group *const *groups = cli->cmd->groups;
    const moec_cli_args *a = &cli->args;
    const char *wrong = moec_cli_check_balance(cli);
    if (wrong != NULL)
        return wrong;
    if (a->shard_by == MOEC_CHOICE_BY_EXPERT) {
        if (a->logical_count != NULL)
            return "--logical-count means nothing with --shard-by expert: the "
                   "store has no placement";
        if (a->placement != NULL)
            return "--placement means nothing with --shard-by expert: the "
                   "store has no placement";
        if (a->redundant != 0)
            return "--redundant means nothing with --shard-by expert: the "
                   "store holds each expert once";
        return NULL;
    }
    if (need_ep && !moec_cli_given(a, groups, "ep"))
        return "--ep W is missing: the number of expert-parallel ranks";
    return NULL;
}

/* --------------------------------------------------------------- plan */

static const char *kind_name(moec_out_file_kind kind)
{
    switch (kind) {
    case MOEC_FILE_RANK:
        return "rank";
    case MOEC_FILE_COMMON:
        return "common";
    case MOEC_FILE_SHARED:
        return "shared";
    case MOEC_FILE_STORE:
        return "store";
    }
    return "?";
}

/* Bytes of the files that no rank owns, and of all. */
static void sum_files(const moec_layout *layout, uint64_t *common,
                      uint64_t *total)
{
    *common = 0;
    *total = 0;
    for (size_t i = 0; i < moec_layout_n_files(layout); i++) {
        const moec_out_file *f = moec_layout_file(layout, i);
        *total += f->bytes;
        if (f->kind == MOEC_FILE_COMMON || f->kind == MOEC_FILE_SHARED)
            *common += f->bytes;
    }
}

void moec_cli_json_topology(moec_cli_json *j, const moec_plan *plan)
{
    moec_topology t = moec_plan_topology(plan);
    const moec_plan_opts *o = moec_plan_options(plan);
    const moec_facts *facts = moec_model_facts(moec_plan_model(plan));
    const char *slots = t.n_shared_slots == 0 ? "none"
                        : t.shared_global     ? "global"
                                              : "per-rank";
    moec_cli_json_object(j, "topology");
    moec_cli_json_u64(j, "n_ranks", t.n_ranks);
    moec_cli_json_u64(j, "n_experts", facts->n_experts);
    moec_cli_json_u64(j, "n_physical", t.n_physical);
    moec_cli_json_u64(j, "n_redundant", t.n_physical - facts->n_experts);
    moec_cli_json_u64(j, "n_local", t.n_local);
    moec_cli_json_u64(j, "n_shared_slots", t.n_shared_slots);
    moec_cli_json_str(j, "shared_slots", slots);
    moec_cli_json_str(j, "shared_store",
                      o->shared_store_common ? "common" : "rank");
    moec_cli_json_str(j, "shard_by", o->by_expert ? "expert" : "rank");
    moec_cli_json_str(j, "w13_order",
                      o->w13_order == MOEC_W13_UP_GATE ? "up-gate" : "gate-up");
    moec_cli_json_bool(j, "mtp", o->no_mtp == 0);
    moec_cli_json_bool(j, "allow_empty", o->allow_empty != 0);
    const char *placement = moec_placement_is_trivial(moec_plan_placement(plan))
                                ? "trivial"
                                : "file";
    moec_cli_json_str(j, "placement", placement);
    moec_cli_json_u64(j, "n_layers", moec_plan_n_layers(plan));
    moec_cli_json_end(j);
}

static void json_files(moec_cli_json *j, const moec_layout *layout)
{
    moec_cli_json_array(j, "files");
    for (size_t i = 0; i < moec_layout_n_files(layout); i++) {
        const moec_out_file *f = moec_layout_file(layout, i);
        moec_cli_json_object_row(j, NULL);
        moec_cli_json_str(j, "name", f->name);
        moec_cli_json_str(j, "kind", kind_name(f->kind));
        if (f->kind == MOEC_FILE_RANK)
            moec_cli_json_u64(j, "rank", f->rank);
        moec_cli_json_u64(j, "bytes", f->bytes);
        moec_cli_json_u64(j, "n_tensors", f->n_tensors);
        moec_cli_json_end(j);
    }
    moec_cli_json_end(j);
}

void moec_cli_json_plan(moec_cli_json *j, const moec_layout *layout,
                        const uint8_t *ranks, uint64_t memory)
{
    const moec_plan *plan = moec_layout_plan(layout);
    const moec_model *model = moec_plan_model(plan);
    moec_topology t = moec_plan_topology(plan);
    uint64_t common, total;
    sum_files(layout, &common, &total);
    moec_cli_json_str(j, "family", moec_model_facts(model)->family);
    moec_cli_json_topology(j, plan);
    moec_cli_json_array(j, "ranks");
    for (uint32_t r = 0; r < t.n_ranks; r++) {
        if (ranks != NULL && !ranks[r])
            continue;
        moec_rank_figures f = moec_layout_figures(layout, r);
        moec_cli_json_object_row(j, NULL);
        moec_cli_json_u64(j, "rank", r);
        moec_cli_json_u64(j, "bytes_read", f.bytes_read);
        moec_cli_json_u64(j, "bytes_written", f.bytes_written);
        moec_cli_json_u64(j, "n_moves", f.n_moves);
        moec_cli_json_end(j);
    }
    moec_cli_json_end(j);
    moec_cli_json_u64(j, "bytes_common", common);
    moec_cli_json_u64(j, "bytes_total", total);
    moec_cli_json_u64(j, "peak_memory_bytes", memory);
    moec_cli_json_u64(j, "n_files", moec_layout_n_files(layout));
    json_files(j, layout);
    moec_cli_json_problems(j, moec_model_ckpt(model), plan);
}

static void print_topology(const moec_plan *plan)
{
    moec_topology t = moec_plan_topology(plan);
    const moec_plan_opts *o = moec_plan_options(plan);
    const moec_facts *facts = moec_model_facts(moec_plan_model(plan));
    moec_cli_line(stdout, "family       %s, %zu MoE layers", facts->family,
                  moec_plan_n_layers(plan));
    if (o->by_expert)
        moec_cli_line(stdout,
                      "store        %" PRIu32 " logical experts a layer",
                      facts->n_experts);
    else
        moec_cli_line(stdout,
                      "slots        %" PRIu32 " experts + %" PRIu32
                      " more = %" PRIu32 " over %" PRIu32 " ranks: %" PRIu32
                      " a rank",
                      facts->n_experts, t.n_physical - facts->n_experts,
                      t.n_physical, t.n_ranks, t.n_local);
    if (t.n_shared_slots != 0)
        moec_cli_line(stdout, "shared       %" PRIu32 " slot%s%s%s",
                      t.n_shared_slots, t.n_shared_slots == 1 ? "" : "s",
                      t.shared_global ? ", numbered once" : " a rank",
                      o->shared_store_common ? ", stored once" : "");
    else if (facts->no_fuse_why != NULL)
        moec_cli_line(stdout, "shared       kept out of the slots: %s",
                      facts->no_fuse_why);
    else if (facts->shared_kind != MOEC_SHARED_NONE)
        moec_cli_line(stdout, "shared       kept out of the slots");
}

void moec_cli_print_plan(const moec_layout *layout, const uint8_t *ranks,
                         uint64_t memory)
{
    const moec_plan *plan = moec_layout_plan(layout);
    moec_topology t = moec_plan_topology(plan);
    uint64_t common, total;
    char a[24], b[24], c[24];
    sum_files(layout, &common, &total);
    print_topology(plan);
    moec_cli_line(stdout, "rank        reads       writes      moves");
    for (uint32_t r = 0; r < t.n_ranks; r++) {
        if (ranks != NULL && !ranks[r])
            continue;
        moec_rank_figures f = moec_layout_figures(layout, r);
        moec_cli_line(stdout, "%4" PRIu32 "  %11s  %11s  %9" PRIu64, r,
                      moec_cli_size(a, f.bytes_read),
                      moec_cli_size(b, f.bytes_written), f.n_moves);
    }
    moec_cli_line(stdout, "common %s, in all %s in %zu files",
                  moec_cli_size(a, common), moec_cli_size(b, total),
                  moec_layout_n_files(layout));
    moec_cli_line(stdout, "peak memory  %s of buffers",
                  moec_cli_size(c, memory));
}
