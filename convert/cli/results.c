/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Results of level 3, as text and as JSON.
 */
#include "results.h"

#include <inttypes.h>
#include <stdio.h>

static const char *const inputs_names[] = {"seeded", "recorded", "golden"};
static const char *const mode_names[] = {"fill-missing", "full-row", "pad",
                                         "balanced"};

moec_validate_opts moec_cli_validate_opts(const moec_cli *cli)
{
    moec_validate_opts o = MOEC_VALIDATE_OPTS_INIT;
    o.n_threads = cli->args.threads;
    o.n_tokens = cli->args.tokens;
    o.seed = cli->args.seed;
    o.isa = (moec_isa)cli->args.cpu;
    o.inputs = cli->args.inputs;
    o.golden = cli->args.golden;
    return o;
}

bool moec_cli_results_passed(const moec_cli *cli, const moec_validation *v)
{
    const moec_report *r = moec_validation_report(v);
    if (!moec_report_ok(r))
        return false;
    for (size_t i = 0; cli->args.strict && i < moec_report_n_findings(r); i++) {
        if (moec_report_finding(r, i)->severity >= MOEC_SEVERITY_WARNING)
            return false;
    }
    return true;
}

/* ----------------------------------------------------------------- JSON */

static void json_load(moec_cli_json *j, const char *key,
                      const moec_load_stats *s)
{
    moec_cli_json_object_row(j, key);
    moec_cli_json_u64(j, "max", s->max);
    moec_cli_json_u64(j, "min", s->min);
    moec_cli_json_u64(j, "sum", s->sum);
    moec_cli_json_f64(j, "mean", s->mean);
    moec_cli_json_f64(j, "deviation", s->deviation);
    moec_cli_json_f64(j, "max_over_mean", s->max_over_mean);
    moec_cli_json_end(j);
}

static bool is_about(const moec_finding *f, const moec_layer_result *l)
{
    return (f->has & MOEC_HAS_LAYER) != 0 && f->layer.space == l->layer.space &&
           f->layer.number == l->layer.number;
}

static void json_ran(moec_cli_json *j, const moec_layer_result *l)
{
    moec_cli_json_u64(j, "pairs", l->pairs);
    moec_cli_json_u64(j, "pairs_forced", l->forced);
    moec_cli_json_u64(j, "slots", l->slots);
    moec_cli_json_u64(j, "choices", l->choices);
    moec_cli_json_hex(j, "output_sha256", l->output_sha256);
    if (l->has_golden != 0) {
        moec_cli_json_u64(j, "golden_answers", l->golden_answers);
        moec_cli_json_f64(j, "golden_max_abs_err", l->golden_max_abs_err);
    }
    moec_cli_json_object(j, "load");
    json_load(j, "expert", &l->expert_load);
    json_load(j, "slot", &l->slot_load);
    json_load(j, "rank", &l->rank_load);
    moec_cli_json_end(j);
    moec_cli_json_array(j, "expert_choice");
    for (uint32_t i = 0; i < l->ec_modes && i < 4; i++) {
        moec_cli_json_object_row(j, NULL);
        moec_cli_json_str(j, "fill", mode_names[i]);
        moec_cli_json_u64(j, "fallback_tokens", l->ec_fallback[i]);
        moec_cli_json_u64(j, "dropped", l->ec_dropped[i]);
        moec_cli_json_end(j);
    }
    moec_cli_json_end(j);
}

/* Bytes between the ranks of layer `i`. */
static uint64_t exchanged(const moec_validation *v, size_t i)
{
    const moec_rank_traffic *t;
    uint64_t n = 0;
    for (uint32_t r = 0; (t = moec_validation_traffic(v, i, r)) != NULL; r++)
        n += t->bytes_sent;
    return n;
}

static void json_exchange(moec_cli_json *j, const moec_validation *v, size_t i)
{
    const moec_rank_traffic *t;
    if (moec_validation_traffic(v, i, 0) == NULL)
        return;
    moec_cli_json_object(j, "exchange");
    moec_cli_json_u64(j, "bytes", exchanged(v, i));
    moec_cli_json_array(j, "ranks");
    for (uint32_t r = 0; (t = moec_validation_traffic(v, i, r)) != NULL; r++) {
        moec_cli_json_object_row(j, NULL);
        moec_cli_json_u64(j, "rank", r);
        moec_cli_json_u64(j, "tokens", t->tokens);
        moec_cli_json_u64(j, "received", t->received);
        moec_cli_json_u64(j, "columns", t->columns);
        moec_cli_json_u64(j, "bytes_sent", t->bytes_sent);
        moec_cli_json_u64(j, "bytes_received", t->bytes_received);
        moec_cli_json_end(j);
    }
    moec_cli_json_end(j);
    moec_cli_json_end(j);
}

static void json_layer(moec_cli_json *j, const moec_validation *v, size_t i)
{
    const moec_report *r = moec_validation_report(v);
    const moec_layer_result *l = moec_validation_layer(v, i);
    moec_cli_json_object(j, NULL);
    moec_cli_json_u64(j, "layer", l->layer.number);
    moec_cli_json_str(j, "space",
                      l->layer.space == MOEC_SPACE_MTP ? "mtp" : "main");
    moec_cli_json_u64(j, "source_number", l->source_number);
    moec_cli_json_bool(j, "validated", l->validated != 0);
    moec_cli_json_str(j, "why_not", l->why_not);
    moec_cli_json_u64(j, "tokens", l->tokens);
    moec_cli_json_str(j, "inputs", inputs_names[l->inputs]);
    moec_cli_json_bool(j, "ids_equal", l->ids_equal != 0);
    moec_cli_json_f64(j, "max_abs_err", l->max_abs_err);
    moec_cli_json_f64(j, "max_rel_err", l->max_rel_err);
    if (l->validated != 0) {
        json_ran(j, l);
        json_exchange(j, v, i);
    }
    moec_cli_json_array(j, "findings");
    for (size_t k = 0; k < moec_report_n_findings(r); k++) {
        if (is_about(moec_report_finding(r, k), l))
            moec_cli_json_finding(j, moec_report_finding(r, k));
    }
    moec_cli_json_end(j);
    moec_cli_json_end(j);
}

void moec_cli_json_results(moec_cli_json *j, const moec_validation *v)
{
    const moec_report *r = moec_validation_report(v);
    moec_cli_json_array(j, "layers");
    for (size_t i = 0; i < moec_validation_n_layers(v); i++)
        json_layer(j, v, i);
    moec_cli_json_end(j);
    moec_cli_json_array(j, "not_proved");
    for (size_t i = 0; i < moec_validation_n_limits(v); i++)
        moec_cli_json_str(j, NULL, moec_validation_limit(v, i));
    moec_cli_json_end(j);
    moec_cli_json_array(j, "findings");
    for (size_t i = 0; i < moec_report_n_findings(r); i++)
        moec_cli_json_finding(j, moec_report_finding(r, i));
    moec_cli_json_end(j);
}

/* ----------------------------------------------------------------- text */

static void print_rank(FILE *f, const char *margin, uint32_t rank,
                       const moec_rank_traffic *t)
{
    char sent[24], received[24];
    moec_cli_line(f,
                  "%srank %-4" PRIu32 " %" PRIu64 " tokens, received %" PRIu64
                  ", computed %" PRIu64 " columns, %s sent, %s received",
                  margin, rank, t->tokens, t->received, t->columns,
                  moec_cli_size(sent, t->bytes_sent),
                  moec_cli_size(received, t->bytes_received));
}

/* The layer's exchange; with -v every rank's. */
static void print_exchange(FILE *f, const moec_cli *cli,
                           const moec_validation *v, size_t i)
{
    const moec_layer_result *l = moec_validation_layer(v, i);
    const moec_rank_traffic *t;
    char all[24];
    if (l->validated == 0 || moec_validation_traffic(v, i, 0) == NULL)
        return;
    moec_cli_line(f,
                  "             exchanged %s; columns by rank: %" PRIu64
                  " to %" PRIu64 ", max/mean %.3f",
                  moec_cli_size(all, exchanged(v, i)), l->rank_load.min,
                  l->rank_load.max, l->rank_load.max_over_mean);
    for (uint32_t r = 0; cli->args.verbose != 0 &&
                         (t = moec_validation_traffic(v, i, r)) != NULL;
         r++)
        print_rank(f, "             ", r, t);
}

/* Every rank's over all layers. */
static void print_ranks(FILE *f, const moec_validation *v)
{
    for (uint32_t r = 0; moec_validation_traffic(v, 0, r) != NULL; r++) {
        moec_rank_traffic sum = {0};
        for (size_t i = 0; i < moec_validation_n_layers(v); i++) {
            const moec_rank_traffic *t = moec_validation_traffic(v, i, r);
            sum.tokens += t->tokens;
            sum.received += t->received;
            sum.columns += t->columns;
            sum.bytes_sent += t->bytes_sent;
            sum.bytes_received += t->bytes_received;
        }
        if (sum.tokens != 0)
            print_rank(f, "all layers, ", r, &sum);
    }
}

static void print_layer(FILE *f, const moec_cli *cli,
                        const moec_layer_result *l)
{
    char name[24], golden[64] = "";
    moec_cli_layer_name(name, l->layer);
    if (l->validated == 0) {
        moec_cli_line(f, "layer %-6s not validated%s%s", name,
                      l->why_not != NULL ? ": " : "",
                      l->why_not != NULL ? l->why_not : "");
        return;
    }
    if (l->has_golden != 0)
        (void)snprintf(golden, sizeof(golden), "; reference within %.2g",
                       l->golden_max_abs_err);
    moec_cli_line(f,
                  "layer %-6s %s  %" PRIu32 " tokens, ids %s, %" PRIu64
                  " expert outputs, %" PRIu64 " slots, %" PRIu64
                  " choices, output within %.2g%s",
                  name, l->n_errors != 0 ? "FAILED" : "ok    ", l->tokens,
                  l->ids_equal != 0 ? "equal" : "DIFFER", l->pairs, l->slots,
                  l->choices, l->max_rel_err, golden);
    if (cli->args.verbose == 0)
        return;
    moec_cli_line(f,
                  "             load max/mean: expert %.3f, slot %.3f, rank "
                  "%.3f",
                  l->expert_load.max_over_mean, l->slot_load.max_over_mean,
                  l->rank_load.max_over_mean);
    for (uint32_t i = 0; i < l->ec_modes && i < 4; i++)
        moec_cli_line(f,
                      "             expert choice, %s: %" PRIu64
                      " tokens re-routed or filled up, %" PRIu64
                      " columns empty",
                      mode_names[i], l->ec_fallback[i], l->ec_dropped[i]);
}

void moec_cli_print_layers(FILE *f, const moec_cli *cli,
                           const moec_validation *v)
{
    for (size_t i = 0; i < moec_validation_n_layers(v); i++) {
        print_layer(f, cli, moec_validation_layer(v, i));
        print_exchange(f, cli, v, i);
    }
    print_ranks(f, v);
}

void moec_cli_print_limits(FILE *f, const moec_cli *cli,
                           const moec_validation *v, bool ok)
{
    size_t n = moec_validation_n_layers(v), n_run = 0;
    for (size_t i = 0; i < n; i++)
        n_run += moec_validation_layer(v, i)->validated != 0;
    for (size_t i = 0; i < moec_validation_n_limits(v); i++)
        moec_cli_line(f, "not proved: %s", moec_validation_limit(v, i));
    moec_cli_line(f, "%s: %s, %zu of %zu layers", moec_cli_path(cli, 0),
                  !ok          ? "NOT validated"
                  : n_run == 0 ? "nothing validated"
                               : "validated",
                  n_run, n);
}
