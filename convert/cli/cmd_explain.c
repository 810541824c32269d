/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert explain: one expert's way from the source's files to the slots
 * of the ranks, or what a rule checks. For a source the topology comes from
 * the options; for a conversion it comes from its manifest, and options that
 * would contradict it are refused.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "print.h"
#include "session.h"
#include "trace.h"
#include "web_source.h"

static const moec_cli_opt own_opts[] = {
    {"layer", 'l', MOEC_KIND_TEXT, offsetof(moec_cli_args, layer), "I|mtp.K",
     "the layer, as the decoder counts; mtp.K: MTP layer K from 0", NULL, NULL,
     0},
    {"expert", 'e', MOEC_KIND_TEXT, offsetof(moec_cli_args, expert), "E|shared",
     "the logical expert, or the shared one", NULL, NULL, 0},
    {"list", 0, MOEC_KIND_FLAG, offsetof(moec_cli_args, list_rules), NULL,
     "list all rules, and do no more", NULL, NULL, 0},
};
static const moec_cli_group own = {"Explain", own_opts, 3};
static const moec_cli_group *const groups[] = {&own, &moec_group_topology,
                                               &moec_group_common, NULL};

/* -------------------------------------------------------------- rules */

static void json_rule(moec_cli_json *j, const moec_rule_info *r)
{
    moec_cli_json_str(j, "rule", r->id);
    moec_cli_json_str(j, "name", r->name);
    moec_cli_json_str(j, "what", r->what);
    moec_cli_json_str(j, "why", r->why);
    moec_cli_json_str(j, "mend", r->mend);
}

static int list_rules(const moec_cli *cli)
{
    moec_cli_json j;
    if (cli->args.json) {
        moec_cli_json_begin(&j, cli, true);
        moec_cli_json_array(&j, "rules");
    }
    for (int i = MOEC_RULE_NONE + 1; i < MOEC_RULE_COUNT; i++) {
        const moec_rule_info *r = moec_rule_describe((moec_rule)i);
        if (cli->args.json) {
            moec_cli_json_object(&j, NULL);
            json_rule(&j, r);
            moec_cli_json_end(&j);
        } else {
            moec_cli_line(stdout, "%-8s %-22s %s", r->id, r->name, r->what);
        }
    }
    if (cli->args.json)
        moec_cli_json_finish(&j);
    return MOEC_EXIT_OK;
}

static int unknown_rule(const moec_cli *cli, const char *word)
{
    const char *nearest = NULL;
    size_t least = SIZE_MAX;
    for (int i = MOEC_RULE_NONE + 1; i < MOEC_RULE_COUNT; i++) {
        const moec_rule_info *r = moec_rule_describe((moec_rule)i);
        const char *names[] = {r->id, r->name};
        for (size_t k = 0; k < 2; k++) {
            size_t d = moec_cli_distance(word, names[k]);
            if (d < least) {
                least = d;
                nearest = names[k];
            }
        }
    }
    if (access(word, F_OK) == 0)
        return moec_cli_usage(cli,
                              "--layer and --expert are missing: which "
                              "expert of %s?",
                              word);
    if (nearest != NULL && moec_cli_is_near(word, least))
        return moec_cli_usage(cli, "no rule '%s'; did you mean '%s'?", word,
                              nearest);
    return moec_cli_usage(cli, "no rule '%s'; explain --list has all of them",
                          word);
}

static int explain_rule(const moec_cli *cli, const char *word)
{
    const moec_rule_info *r = moec_rule_describe(moec_rule_find(word));
    if (r == NULL)
        return unknown_rule(cli, word);
    if (cli->args.json) {
        moec_cli_json j;
        moec_cli_json_begin(&j, cli, true);
        json_rule(&j, r);
        moec_cli_json_finish(&j);
        return MOEC_EXIT_OK;
    }
    moec_cli_line(stdout, "%s %s", r->id, r->name);
    moec_cli_line(stdout, "checks: %s", r->what);
    moec_cli_line(stdout, "why:    %s", r->why);
    moec_cli_line(stdout, "mend:   %s", r->mend);
    return MOEC_EXIT_OK;
}

/* ----------------------------------------------------------- printing */

static void json_slot(moec_cli_json *j, const moec_trace *t, size_t i)
{
    const moec_trace_slot *slot = &t->slots[i];
    moec_cli_json_object(j, NULL);
    moec_cli_json_u64(j, "rank", slot->rank);
    moec_cli_json_u64(j, "local", slot->local.v);
    moec_cli_json_u64(j, "slot", slot->slot.v);
    if (t->shared)
        moec_cli_json_u64(j, "part", slot->part);
    moec_cli_json_str(j, "file", slot->file);
    if (slot->file != NULL) {
        moec_cli_json_u64(j, "offset", slot->off);
        moec_cli_json_array(j, "tensors");
        for (size_t k = 0; k < moec_trace_n_pieces(t); k++) {
            moec_trace_piece piece = moec_trace_piece_of(t, slot, k);
            moec_cli_json_object_row(j, NULL);
            moec_cli_json_str(j, "tensor", piece.tensor);
            moec_cli_json_u64(j, "offset", piece.off);
            moec_cli_json_u64(j, "bytes", piece.bytes);
            moec_cli_json_end(j);
        }
        moec_cli_json_end(j);
    } else {
        moec_cli_json_str(j, "offset", NULL);
    }
    moec_cli_json_end(j);
}

static void json_source(moec_cli_json *j, const moec_trace *t, const char *key,
                        bool kept)
{
    moec_cli_json_array(j, key);
    for (size_t i = 0; i < t->n_regions; i++) {
        const moec_trace_region *r = &t->regions[i];
        if (kept && r->kept_file == NULL)
            continue;
        moec_cli_json_object_row(j, NULL);
        moec_cli_json_str(j, "tensor", r->name);
        moec_cli_json_str(j, "file", kept ? r->kept_file : r->file);
        moec_cli_json_u64(j, "offset", kept ? r->kept_off : r->off);
        moec_cli_json_u64(j, "bytes", r->bytes);
        if (!kept)
            moec_cli_json_hex(j, "sha256", r->sha256);
        moec_cli_json_end(j);
    }
    moec_cli_json_end(j);
}

static void print_json(const moec_cli *cli, const moec_trace *t)
{
    moec_cli_json j;
    moec_cli_json_begin(&j, cli, true);
    moec_cli_json_layer(&j, "layer", t->key);
    if (t->shared)
        moec_cli_json_str(&j, "expert", "shared");
    else
        moec_cli_json_u64(&j, "expert", t->expert);
    moec_cli_json_str(&j, "experts_prefix", t->prefix);
    moec_cli_json_bool(&j, "converted", t->dir != NULL);
    json_source(&j, t, "source", false);
    moec_cli_json_array(&j, "slots");
    for (size_t i = 0; i < t->n_slots; i++)
        json_slot(&j, t, i);
    moec_cli_json_end(&j);
    /* Where an expert that takes no slot of a rank's files is kept. */
    json_source(&j, t, "kept", true);
    moec_cli_json_finish(&j);
}

static void print_text(const moec_trace *t)
{
    char layer[24], size[24];
    (void)moec_cli_layer_name(layer, t->key);
    if (t->shared)
        moec_cli_line(stdout, "layer %s, shared expert (%s)", layer, t->prefix);
    else
        moec_cli_line(stdout, "layer %s, expert %" PRIu32 " (%s)", layer,
                      t->expert, t->prefix);
    moec_cli_line(stdout, "source");
    for (size_t i = 0; i < t->n_regions; i++) {
        const moec_trace_region *r = &t->regions[i];
        char hex[17];
        for (size_t k = 0; k < 8; k++)
            (void)snprintf(hex + 2 * k, 3, "%02x", r->sha256[k]);
        moec_cli_line(stdout, "  %s", r->name);
        moec_cli_line(stdout, "    %s at %" PRIu64 ", %s, sha256 %s...",
                      r->file, r->off, moec_cli_size(size, r->bytes), hex);
        if (r->kept_file != NULL)
            moec_cli_line(stdout, "    -> %s at %" PRIu64, r->kept_file,
                          r->kept_off);
    }
    moec_cli_line(stdout, "slots");
    for (size_t i = 0; i < t->n_slots; i++) {
        const moec_trace_slot *s = &t->slots[i];
        if (s->file == NULL)
            moec_cli_line(stdout,
                          "  rank %" PRIu32 ", local %" PRIu32 ", slot %" PRIu32
                          ": filled by the loader",
                          s->rank, s->local.v, s->slot.v);
        else
            moec_cli_line(stdout,
                          "  rank %" PRIu32 ", local %" PRIu32 ", slot %" PRIu32
                          ": %s at %" PRIu64,
                          s->rank, s->local.v, s->slot.v, s->file, s->off);
    }
    if (t->n_slots == 0)
        moec_cli_line(stdout, "  none");
}

/* ------------------------------------------------------------ command */

static bool parse_layer(const char *text, moec_layer_key *out)
{
    uint64_t v = 0;
    out->space = MOEC_SPACE_MAIN;
    if (strncmp(text, "mtp.", 4) == 0) {
        out->space = MOEC_SPACE_MTP;
        text += 4;
    }
    if (!moec_cli_parse_u64(text, UINT32_MAX - 1, &v))
        return false;
    out->number = (uint32_t)v;
    return true;
}

static moec_status run_trace(moec_trace *t, const moec_cli *cli, bool converted,
                             moec_cli_session *s, moec_conversion **c,
                             moec_error *err)
{
    const char *path = moec_cli_path(cli, 0);
    moec_status st;
    if (!converted) {
        st = moec_cli_open_layout(s, cli, path, err);
        if (st == MOEC_OK)
            st = moec_trace_run(t, s->layout, NULL, err);
        return st;
    }
    st = moec_cli_open_families(s, cli, err);
    if (st == MOEC_OK)
        st = moec_cli_open_conversion(c, path, s->families, err);
    if (st == MOEC_OK)
        st = moec_cli_web_store(&t->store, path, err);
    if (st == MOEC_OK)
        st = moec_trace_run(t, moec_conversion_layout(*c), path, err);
    return st;
}

static int explain_expert(const moec_cli *cli)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_cli_session s = {0};
    moec_conversion *c = NULL;
    moec_trace t = {0};
    uint64_t expert = 0;
    bool converted = false;
    const char *path = moec_cli_path(cli, 0);
    const char *extra = moec_cli_topology_given(cli);
    const char *wrong = moec_cli_check_topology(cli, false);
    if (!parse_layer(cli->args.layer, &t.key))
        return moec_cli_usage(cli, "--layer wants I or mtp.K, not '%s'",
                              cli->args.layer);
    t.shared = strcmp(cli->args.expert, "shared") == 0;
    if (!t.shared &&
        !moec_cli_parse_u64(cli->args.expert, UINT32_MAX - 1, &expert))
        return moec_cli_usage(cli, "--expert wants E or shared, not '%s'",
                              cli->args.expert);
    t.expert = (uint32_t)expert;
    moec_status st = moec_cli_is_conversion(path, &converted, &err);
    if (st == MOEC_OK && converted && extra != NULL)
        return moec_cli_usage(cli,
                              "--%s: %s is converted, its topology is in its "
                              "manifest",
                              extra, path);
    if (wrong != NULL)
        return moec_cli_usage(cli, "%s", wrong);
    if (st == MOEC_OK)
        st = run_trace(&t, cli, converted, &s, &c, &err);
    int code = MOEC_EXIT_OK;
    if (st != MOEC_OK)
        code = moec_cli_fail(cli, st, &err);
    else if (cli->args.json)
        print_json(cli, &t);
    else
        print_text(&t);
    moec_trace_fini(&t);
    moec_conversion_close(c);
    moec_cli_session_close(&s);
    return code;
}

static int explain(moec_cli *cli)
{
    const char *what = moec_cli_path(cli, 0);
    if (cli->args.list_rules)
        return list_rules(cli);
    if (what == NULL)
        return moec_cli_usage(cli, "SRC, OUT or a rule is missing");
    if (cli->args.layer == NULL && cli->args.expert == NULL)
        return explain_rule(cli, what);
    if (cli->args.layer == NULL || cli->args.expert == NULL)
        return moec_cli_usage(cli, "--%s is missing",
                              cli->args.layer == NULL ? "layer" : "expert");
    return explain_expert(cli);
}

const moec_cli_command moec_cmd_explain = {
    .name = "explain",
    .fn = explain,
    .line = "one expert's way from files to slots; or what a rule checks",
    .usage = "explain SRC|OUT --layer I --expert E [TOPOLOGY]\n"
             "explain RULE\n"
             "explain --list",
    .about = "Shows where one expert's bytes lie in the source and where they "
             "go: rank, local row, slot, file and offset, with digests. Or "
             "what a rule (MOE-H07, duplicate-key) checks, why, and how to "
             "mend what breaks it.",
    .examples = "explain ./V3-ep32 --layer 3 --expert 17\n"
                "explain ./DeepSeek-V3 --ep 8 --layer mtp.0 --expert shared\n"
                "explain MOE-H07",
    .groups = groups,
    .min_paths = 0,
    .max_paths = 1,
    .url_paths = 1u,
};
