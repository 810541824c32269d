/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert routes: recorded routes from engines' forms, back into them,
 * merged and checked. What import, merge and export write is whole or not
 * there; what check finds is data (exit 1), a file that is none exit 3.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "memory_file.h"
#include "option_files.h"
#include "print.h"
#include "session.h"

static const moec_cli_opt out_opts[] = {
    {"out", 'o', MOEC_KIND_TEXT, offsetof(moec_cli_args, out), "FILE",
     "the recording: safetensors", NULL, "required", 0},
    {"force", 'f', MOEC_KIND_FLAG, offsetof(moec_cli_args, force), NULL,
     "replace a file that exists", NULL, NULL, 0},
};
static const moec_cli_group out_group = {"Output", out_opts, 2};

/* Routes of long contexts are gigabytes. */
#define ROUTES_BYTES_MAX (UINT64_C(1) << 40)

static moec_status write_out(const moec_cli *cli, const moec_routes *r,
                             moec_error *err)
{
    return moec_routes_save(r, cli->args.out, cli->args.force, err);
}

static const char *need_out(const moec_cli *cli)
{
    return cli->args.out == NULL ? "--out FILE is missing: the recording to "
                                   "write"
                                 : NULL;
}

/* Members that tell what a recording holds. */
static void json_facts(moec_cli_json *j, const moec_routes *r)
{
    const moec_routes_shape *s = moec_routes_shape_get(r);
    moec_cli_json_u64(j, "requests", moec_routes_n_requests(r));
    moec_cli_json_u64(j, "tokens", moec_routes_n_tokens(r));
    moec_cli_json_u64(j, "n_experts", s->n_experts);
    moec_cli_json_u64(j, "top_k", s->top_k);
    moec_cli_json_str(j, "dtype", moec_routes_width(r) == 1 ? "U8" : "U16");
    moec_cli_json_array_row(j, "layers");
    for (uint32_t i = 0; i < s->n_layers; i++)
        moec_cli_json_layer(j, NULL, s->keys[i]);
    moec_cli_json_end(j);
    moec_cli_json_str(j, "fingerprint", s->fingerprint);
}

static void tell_facts(const char *path, const moec_routes *r)
{
    const moec_routes_shape *s = moec_routes_shape_get(r);
    moec_cli_line(stdout,
                  "%s: %ju requests, %ju tokens, %u MoE layers, top-%u of %u "
                  "experts, %s",
                  path, (uintmax_t)moec_routes_n_requests(r),
                  (uintmax_t)moec_routes_n_tokens(r), s->n_layers, s->top_k,
                  s->n_experts, moec_routes_width(r) == 1 ? "U8" : "U16");
}

static void tell_written(const moec_cli *cli, const moec_routes *r)
{
    moec_cli_json j;
    if (!cli->args.json) {
        if (!cli->args.quiet)
            tell_facts(cli->args.out, r);
        return;
    }
    moec_cli_json_begin(&j, cli, true);
    moec_cli_json_str(&j, "out", cli->args.out);
    json_facts(&j, r);
    moec_cli_json_finish(&j);
}

/* -------------------------------------------------------------- import */

static const moec_cli_opt import_opts[] = {
    {"source", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, source), "SRC",
     "the model that was run: a checkpoint or a conversion", NULL, "required",
     0},
    {"placement", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, placement), "FILE",
     "the ids are slots of this placement, that of the recorded pass", NULL,
     "ids are logical", 0},
    {"request", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, request), "ID",
     "id of the request, where the file says none", NULL, "the file's name", 0},
    {"start", 0, MOEC_KIND_U32, offsetof(moec_cli_args, start), "N",
     "position of the first row, where the file does not say; those before it "
     "become a gap",
     NULL, "0", MOEC_ROUTE_POSITION_MAX},
    {"family", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, family), "FILE",
     "a family description beside the built-in ones", NULL, NULL, 0},
};
static const moec_cli_group import_group = {"Import", import_opts, 5};
static const moec_cli_group *const import_groups[] = {&import_group, &out_group,
                                                      &moec_group_common, NULL};

typedef struct import {
    const moec_cli *cli;
    moec_cli_session s;
    moec_placement *placement;
    moec_routes_shape shape;
    moec_recorder *recorder;
    moec_routes *routes;
} import;

static moec_status open_placement(import *x, moec_error *err)
{
    const char *path = x->cli->args.placement;
    char *text = NULL;
    size_t n = 0;
    if (path == NULL)
        return MOEC_OK;
    moec_status st = moec_cli_read_file(path, MOEC_RULE_P01,
                                        MOEC_JSON_BYTES_MAX, &text, &n, err);
    if (st == MOEC_OK)
        st =
            moec_placement_parse(&x->placement, x->s.model, path, text, n, err);
    free(text);
    return st;
}

/* The file's name without directories and its last suffix. */
static char *stem_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash != NULL ? slash + 1 : path;
    const char *dot = strrchr(name, '.');
    size_t n = dot != NULL && dot > name ? (size_t)(dot - name) : strlen(name);
    return strndup(name, n);
}

static moec_status import_file(import *x, const char *path, moec_error *err)
{
    const moec_cli_args *a = &x->cli->args;
    moec_routes_import_opts o = MOEC_ROUTES_IMPORT_OPTS_INIT;
    char *text = NULL, *stem = stem_of(path);
    size_t n = 0;
    moec_status st = moec_cli_read_file(path, MOEC_RULE_R01, ROUTES_BYTES_MAX,
                                        &text, &n, err);
    if (st == MOEC_OK && stem == NULL)
        st = moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE, "no memory");
    o.request = a->request != NULL ? a->request : stem;
    o.placement = x->placement;
    if (moec_cli_given(a, import_groups, "start"))
        o.start = a->start;
    if (st == MOEC_OK && n >= 6 && memcmp(text, "\x93NUMPY", 6) == 0)
        st = moec_routes_import_vllm(x->recorder, &o, path, text, n, err);
    else if (st == MOEC_OK)
        st = moec_routes_import_sglang(x->recorder, &o, path, text, n, err);
    free(text);
    free(stem);
    return st;
}

static moec_status import_all(import *x, moec_error *err)
{
    moec_recorder_opts o = MOEC_RECORDER_OPTS_INIT;
    char hex[65];
    moec_status st =
        moec_cli_open_model(&x->s, x->cli, x->cli->args.source, err);
    if (st == MOEC_OK)
        st = moec_routes_shape_of(&x->shape, x->s.model, hex, err);
    if (st == MOEC_OK)
        st = open_placement(x, err);
    /* Engines' forms have no rows of MTP layers. */
    o.shape = x->shape;
    while (st == MOEC_OK && o.shape.n_layers > 1 &&
           o.shape.keys[o.shape.n_layers - 1].space == MOEC_SPACE_MTP)
        o.shape.n_layers--;
    o.max_bytes = x->cli->args.memory;
    if (st == MOEC_OK)
        st = moec_recorder_start(&x->recorder, &o, err);
    for (size_t i = 0; st == MOEC_OK && i < x->cli->args.n_paths; i++)
        st = import_file(x, moec_cli_path(x->cli, i), err);
    if (st == MOEC_OK)
        st = moec_recorder_stop(x->recorder, &x->routes, err);
    if (st == MOEC_OK)
        st = write_out(x->cli, x->routes, err);
    return st;
}

static int import_routes(moec_cli *cli)
{
    moec_error err = MOEC_ERROR_INIT;
import x = {.cli = cli };
    if (need_out(cli) != NULL)
        return moec_cli_usage(cli, "%s", need_out(cli));
    if (cli->args.source == NULL)
        return moec_cli_usage(cli, "--source SRC is missing: the model that "
                                   "was run");
    moec_status st = import_all(&x, &err);
    int code = st == MOEC_OK ? MOEC_EXIT_OK : moec_cli_fail(cli, st, &err);
    if (st == MOEC_OK)
        tell_written(cli, x.routes);
    moec_routes_destroy(x.routes);
    moec_recorder_destroy(x.recorder);
    moec_placement_destroy(x.placement);
    moec_routes_shape_release(&x.shape);
    moec_cli_session_close(&x.s);
    return code;
}

static const moec_cli_command cmd_import = {
    .name = "routes import",
    .fn = import_routes,
    .line = "what SGLang or vLLM returned, as a recording",
    .usage = "routes import FILE... --source SRC --out FILE",
    .about =
        "Reads SGLang's responses to return_routed_experts (JSON, or the bare "
        "base64) and vLLM's routed_experts (.npy), recognised by content. Rows "
        "of dense layers are left out; 255 of vLLM's uint8 is an expert. "
        "Several files become one recording.",
    .examples =
        "routes import response.json --source ./DeepSeek-V3 --out r.safetensors"
        "\nroutes import routed.npy --source ./Qwen3-30B --request chat-1 -o r"
        ".safetensors",
    .groups = import_groups,
    .min_paths = 1,
    .max_paths = SIZE_MAX,
};

/* --------------------------------------------------------------- merge */

static const moec_cli_group *const merge_groups[] = {&out_group,
                                                     &moec_group_common, NULL};

static int merge_routes(moec_cli *cli)
{
    moec_error err = MOEC_ERROR_INIT;
    size_t n = cli->args.n_paths;
    moec_routes **in, *out = NULL;
    moec_status st = MOEC_OK;
    if (need_out(cli) != NULL)
        return moec_cli_usage(cli, "%s", need_out(cli));
    in = calloc(n, sizeof(in[0]));
    if (in == NULL)
        st = moec_cli_error(&err, MOEC_E_NOMEM, MOEC_RULE_NONE, "no memory");
    for (size_t i = 0; st == MOEC_OK && i < n; i++)
        st = moec_routes_open(&in[i], moec_cli_path(cli, i), &err);
    if (st == MOEC_OK)
        st = moec_routes_merge(&out, (const moec_routes *const *)in, n, &err);
    if (st == MOEC_OK)
        st = write_out(cli, out, &err);
    int code = st == MOEC_OK ? MOEC_EXIT_OK : moec_cli_fail(cli, st, &err);
    if (st == MOEC_OK)
        tell_written(cli, out);
    for (size_t i = 0; in != NULL && i < n; i++)
        moec_routes_destroy(in[i]);
    free(in);
    moec_routes_destroy(out);
    return code;
}

static const moec_cli_command cmd_merge = {
    .name = "routes merge",
    .fn = merge_routes,
    .line = "recordings of data-parallel ranks as one",
    .usage = "routes merge ROUTES... --out FILE",
    .about = "Merges recordings of one model by request, sample and position. "
             "A row that two of them have must be the same; a gap of one is "
             "filled by rows of another.",
    .examples = "routes merge rank0.safetensors rank1.safetensors -o all"
                ".safetensors",
    .groups = merge_groups,
    .min_paths = 1,
    .max_paths = SIZE_MAX,
};

/* --------------------------------------------------------------- check */

static const moec_cli_opt check_opts[] = {
    {"source", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, source), "SRC",
     "the model that was recorded: sizes and layers must be its own", NULL,
     "only the recording itself is checked", 0},
    {"logits", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, logits), "FILE",
     "replay: live router logits, safetensors with layers.N.router_logits "
     "[tokens, E] in the recording's order",
     NULL, "no replay", 0},
    {"family", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, family), "FILE",
     "a family description beside the built-in ones", NULL, NULL, 0},
    {"format", 0, MOEC_KIND_CHOICE, offsetof(moec_cli_args, format),
     "text|json", "form of the report; json is --json", "text", NULL, 0},
};
static const moec_cli_group check_group = {"Check", check_opts, 4};
static const moec_cli_group *const check_groups[] = {&check_group,
                                                     &moec_group_common, NULL};

static bool passed(const moec_cli *cli, const moec_report *report)
{
    for (size_t i = 0; i < moec_report_n_findings(report); i++) {
        moec_severity s = moec_report_finding(report, i)->severity;
        if (s == MOEC_SEVERITY_ERROR ||
            (s == MOEC_SEVERITY_WARNING && cli->args.strict))
            return false;
    }
    return true;
}

static void json_check(const moec_cli *cli, const moec_routes *r,
                       const moec_report *report,
                       const moec_routes_check_result *x, bool ok)
{
    moec_cli_json j;
    moec_cli_json_begin(&j, cli, ok);
    moec_cli_json_str(&j, "routes", moec_cli_path(cli, 0));
    moec_cli_json_str(&j, "source", cli->args.source);
    moec_cli_json_str(&j, "logits", cli->args.logits);
    json_facts(&j, r);
    moec_cli_json_u64(&j, "rows", x->rows);
    moec_cli_json_u64(&j, "gap_positions", x->gap_positions);
    moec_cli_json_u64(&j, "layers_replayed", x->layers_replayed);
    moec_cli_json_u64(&j, "rows_replayed", x->rows_replayed);
    moec_cli_json_u64(&j, "rows_differ", x->rows_differ);
    moec_cli_json_array(&j, "findings");
    for (size_t i = 0; i < moec_report_n_findings(report); i++)
        moec_cli_json_finding(&j, moec_report_finding(report, i));
    moec_cli_json_end(&j);
    moec_cli_json_finish(&j);
}

static void tell_check(const moec_cli *cli, const moec_routes *r,
                       const moec_report *report,
                       const moec_routes_check_result *x)
{
    for (size_t i = 0; i < moec_report_n_findings(report); i++)
        if (!cli->args.quiet ||
            moec_report_finding(report, i)->severity != MOEC_SEVERITY_NOTE)
            moec_cli_print_finding(stdout, moec_report_finding(report, i));
    tell_facts(moec_cli_path(cli, 0), r);
    moec_cli_line(stdout, "%ju rows, %ju positions in gaps", (uintmax_t)x->rows,
                  (uintmax_t)x->gap_positions);
    if (cli->args.logits != NULL)
        moec_cli_line(stdout,
                      "replayed %ju rows of %u layers: the live logits choose "
                      "others in %ju",
                      (uintmax_t)x->rows_replayed, x->layers_replayed,
                      (uintmax_t)x->rows_differ);
}

static int check_routes(moec_cli *cli)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_routes_check_opts o = MOEC_ROUTES_CHECK_OPTS_INIT;
    moec_routes_check_result result = {0};
    moec_cli_session s = {0};
    moec_report *report = NULL;
    moec_routes *r = NULL;
    int code;
    if (cli->args.format == MOEC_CHOICE_JSON)
        cli->args.json = true;
    if (cli->args.logits != NULL && cli->args.source == NULL)
        return moec_cli_usage(cli, "--logits needs --source SRC: its router");
    moec_status st = moec_routes_open(&r, moec_cli_path(cli, 0), &err);
    if (st == MOEC_OK && cli->args.source != NULL)
        st = moec_cli_open_model(&s, cli, cli->args.source, &err);
    o.model = s.model;
    o.logits = cli->args.logits;
    if (st == MOEC_OK)
        st = moec_routes_check(&report, r, &o, &result, &err);
    if (st != MOEC_OK) {
        code = moec_cli_fail(cli, st, &err);
    } else {
        bool ok = passed(cli, report);
        if (cli->args.json)
            json_check(cli, r, report, &result, ok);
        else
            tell_check(cli, r, report, &result);
        code = ok ? MOEC_EXIT_OK : MOEC_EXIT_FOUND;
    }
    moec_report_destroy(report);
    moec_routes_destroy(r);
    moec_cli_session_close(&s);
    return code;
}

static const moec_cli_command cmd_check = {
    .name = "routes check",
    .fn = check_routes,
    .line = "is a recording complete, the model's, and does it replay?",
    .usage = "routes check ROUTES [--source SRC [--logits FILE]]",
    .about =
        "Checks that every position has its rows or lies in a gap, that no row "
        "has an expert twice, and with --source that the recording is the "
        "model's. With --logits it replays: recorded ids forced, weights from "
        "the live logits, and rows where these would have chosen other experts "
        "are warnings (exit 1 with --strict).",
    .examples = "routes check r.safetensors --source ./DeepSeek-V3\n"
                "routes check r.safetensors --source ./DeepSeek-V3 --logits "
                "live.safetensors --strict",
    .groups = check_groups,
    .min_paths = 1,
    .max_paths = 1,
};

/* -------------------------------------------------------------- export */

static const moec_cli_opt export_opts[] = {
    {"format", 0, MOEC_KIND_CHOICE, offsetof(moec_cli_args, engine),
     "sglang|vllm", "whose form", NULL, "required", 0},
    {"out", 'o', MOEC_KIND_TEXT, offsetof(moec_cli_args, out), "FILE",
     "write there", NULL, "stdout (sglang)", 0},
    {"request", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, request), "ID",
     "this request alone; vLLM's form holds one", NULL, "all", 0},
    {"sample", 0, MOEC_KIND_U32, offsetof(moec_cli_args, sample), "N",
     "its sample", "0", NULL, INT32_MAX},
    {"force", 'f', MOEC_KIND_FLAG, offsetof(moec_cli_args, force), NULL,
     "replace a file that exists", NULL, NULL, 0},
};
static const moec_cli_group export_group = {"Export", export_opts, 5};
static const moec_cli_group *const export_groups[] = {&export_group,
                                                      &moec_group_common, NULL};

static bool is_wanted(const moec_cli *cli, const moec_routes_request *q)
{
    return cli->args.request == NULL ||
           (strcmp(cli->args.request, q->id) == 0 &&
            cli->args.sample == q->sample);
}

/* One response of SGLang's, as it would have given it. */
static moec_status put_response(FILE *f, const moec_routes *r, uint64_t i,
                                bool first, moec_error *err)
{
    moec_routes_request q = moec_routes_get_request(r, i);
    moec_cli_json j = {.f = f};
    char *text = NULL;
    size_t n = 0;
    moec_status st = moec_routes_export_sglang(r, i, &text, &n, err);
    if (st != MOEC_OK)
        return st;
    (void)fputs(first ? "\n" : ",\n", f);
    (void)fputc('{', f);
    j.depth = 1;
    moec_cli_json_object_row(&j, "meta_info");
    moec_cli_json_str(&j, "id", q.id);
    moec_cli_json_u64(&j, "sample", q.sample);
    moec_cli_json_u64(&j, "routed_experts_start_len",
                      q.n_gaps > 0 ? q.gaps[0].end : 0);
    moec_cli_json_str(&j, "routed_experts", text);
    moec_cli_json_end(&j);
    (void)fputc('}', f);
    free(text);
    return MOEC_OK;
}

static moec_status export_sglang(const moec_cli *cli, const moec_routes *r,
                                 char **out, size_t *n_out, moec_error *err)
{
    FILE *f = moec_cli_memory_file(out, n_out);
    moec_status st = MOEC_OK;
    uint64_t n = 0;
    if (f == NULL)
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE, "no memory");
    (void)fputc('[', f);
    for (uint64_t i = 0; st == MOEC_OK && i < moec_routes_n_requests(r); i++) {
        moec_routes_request q = moec_routes_get_request(r, i);
        if (is_wanted(cli, &q))
            st = put_response(f, r, i, n++ == 0, err);
    }
    (void)fputs("\n]\n", f);
    if (fclose(f) != 0 && st == MOEC_OK)
        st = moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE, "no memory");
    if (st == MOEC_OK && n == 0 && cli->args.request != NULL)
        st = moec_cli_error(err, MOEC_E_ARG, MOEC_RULE_NONE,
                            "no request '%s', sample %u", cli->args.request,
                            cli->args.sample);
    return st;
}

static moec_status export_vllm(const moec_cli *cli, const moec_routes *r,
                               char **out, size_t *n_out, moec_error *err)
{
    uint64_t found = 0, n = 0;
    for (uint64_t i = 0; i < moec_routes_n_requests(r); i++) {
        moec_routes_request q = moec_routes_get_request(r, i);
        if (!is_wanted(cli, &q))
            continue;
        found = i;
        n++;
    }
    if (n != 1)
        return moec_cli_error(err, MOEC_E_ARG, MOEC_RULE_NONE,
                              "vLLM's form holds one request, of %ju: name "
                              "it with --request ID and --sample N",
                              (uintmax_t)n);
    return moec_routes_export_vllm(r, found, (void **)out, n_out, err);
}

static int export_routes(moec_cli *cli)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_routes *r = NULL;
    char *data = NULL;
    size_t n = 0;
    bool vllm = cli->args.engine == MOEC_CHOICE_ENGINE_VLLM;
    if (cli->args.n_paths > 1 && cli->args.out != NULL)
        return moec_cli_usage(cli, "OUT and --out: which of the two?");
    if (cli->args.n_paths > 1)
        cli->args.out = moec_cli_path(cli, 1);
    if (cli->args.engine == 0)
        return moec_cli_usage(cli, "--format sglang|vllm is missing");
    if (cli->args.out == NULL && (vllm || cli->args.json))
        return moec_cli_usage(cli, "OUT is missing: %s",
                              vllm ? ".npy is binary"
                                   : "--json prints its own document");
    moec_status st = moec_routes_open(&r, moec_cli_path(cli, 0), &err);
    if (st == MOEC_OK)
        st = vllm ? export_vllm(cli, r, &data, &n, &err)
                  : export_sglang(cli, r, &data, &n, &err);
    if (st == MOEC_OK && cli->args.out != NULL)
        st = moec_cli_write_file(cli->args.out, data, n, cli->args.force, &err);
    else if (st == MOEC_OK)
        (void)fwrite(data, 1, n, stdout);
    int code = st == MOEC_OK ? MOEC_EXIT_OK : moec_cli_fail(cli, st, &err);
    if (st == MOEC_OK && cli->args.json)
        tell_written(cli, r);
    free(data);
    moec_routes_destroy(r);
    return code;
}

static const moec_cli_command cmd_export = {
    .name = "routes export",
    .fn = export_routes,
    .line = "a recording in SGLang's or vLLM's form",
    .usage = "routes export ROUTES [OUT] --format sglang|vllm [--request ID]",
    .about = "Writes SGLang's responses (meta_info.routed_experts: base64 of "
             "int32, all decoder layers) or vLLM's array (.npy, uint8 up to "
             "256 experts, else uint16). What a form cannot say is refused.",
    .examples =
        "routes export r.safetensors responses.json --format sglang\n"
        "routes export r.safetensors chat-1.npy --format vllm --request "
        "chat-1",
    .groups = export_groups,
    .min_paths = 1,
    .max_paths = 2,
};

static const moec_cli_command *const subs[] = {&cmd_import, &cmd_export,
                                               &cmd_check, &cmd_merge, NULL};

const moec_cli_command moec_cmd_routes = {
    .name = "routes",
    .line = "recorded routes: import, export, check, merge",
    .about = "Recorded routes say which experts every token chose in every MoE "
             "layer: logical ids, before placement, without shared experts.",
    .subs = subs,
};
