/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Placements by load. Refuses, before anything is opened: options that mean
 * nothing without --logical-count or without the planner.
 */
#include "balance.h"

#include <stdlib.h>
#include <string.h>

#include "option_files.h"
#include "print.h"

moec_status moec_cli_read_counts(moec_counts **out, const moec_model *model,
                                 const char *path, moec_error *err)
{
    char *text = NULL;
    size_t bytes = 0;
    moec_status st = moec_cli_read_file(
        path, MOEC_RULE_P12, MOEC_CLI_COUNTS_BYTES_MAX, &text, &bytes, err);
    if (st == MOEC_OK)
        st = moec_counts_parse(out, model, path, text, bytes, err);
    free(text);
    return st;
}

const char *moec_cli_check_balance(const moec_cli *cli)
{
    static const char *const needs_counts[] = {
        "nodes", "groups", "eplb-accum", "eplb-ties", "planner", "from"};
    const moec_cli_group *const *groups = cli->cmd->groups;
    const moec_cli_args *a = &cli->args;
    static char why[96];
    if (a->logical_count != NULL && a->placement != NULL)
        return "--placement and --logical-count: which of the two?";
    for (size_t i = 0; i < sizeof(needs_counts) / sizeof(needs_counts[0]);
         i++) {
        if (a->logical_count != NULL ||
            !moec_cli_given(a, groups, needs_counts[i]))
            continue;
        (void)snprintf(why, sizeof(why),
                       "--%s means nothing without --logical-count",
                       needs_counts[i]);
        return why;
    }
    if (!moec_cli_given(a, groups, "max-moves"))
        return NULL;
    if (a->planner != MOEC_CHOICE_PLANNER_MOEC || a->from == NULL)
        return "--max-moves wants --planner moec and --from FILE";
    return NULL;
}

moec_eplb_opts moec_cli_eplb_opts(const moec_cli *cli, const moec_model *model)
{
    const moec_cli_args *a = &cli->args;
    moec_eplb_opts o = MOEC_EPLB_OPTS_INIT;
    o.n_redundant = a->redundant;
    o.n_ranks = a->ep;
    o.n_nodes = a->nodes;
    if (moec_cli_given(a, cli->cmd->groups, "groups"))
        o.n_groups = a->groups;
    else if (model != NULL && moec_model_facts(model)->n_group != 0)
        o.n_groups = moec_model_facts(model)->n_group;
    o.accum = a->eplb_accum == MOEC_CHOICE_F32 ? MOEC_EPLB_F32 : MOEC_EPLB_F64;
    o.ties = a->eplb_ties == MOEC_CHOICE_STABLE ? MOEC_EPLB_STABLE
                                                : MOEC_EPLB_INTROSORT;
    return o;
}

/* A file without a model: E is the counts', rows are what they are. */
static moec_status read_alone(moec_placement **out, const moec_counts *counts,
                              const char *path, const char *text, size_t bytes,
                              moec_error *err)
{
    moec_placement_target target = MOEC_PLACEMENT_TARGET_INIT;
    moec_placement_file *file = NULL;
    target.n_experts = moec_counts_n_experts(counts);
    moec_status st =
        moec_placement_file_read(&file, &target, path, text, bytes, err);
    if (st != MOEC_OK)
        return st;
    const moec_placement *p = moec_placement_file_placement(file);
    uint32_t n = moec_placement_n_layers(p);
    uint32_t n_physical = moec_placement_n_physical(p);
    if (n == moec_counts_n_layers(counts))
        st = moec_placement_from_rows(out, n, target.n_experts, n_physical,
                                      moec_placement_row(p, 0), err);
    else
        st = moec_cli_error(err, MOEC_E_FORMAT, MOEC_RULE_P02,
                            "%s: %u rows, the counts have %u", path, n,
                            moec_counts_n_layers(counts));
    moec_placement_file_close(file);
    return st;
}

moec_status moec_cli_read_placement(moec_placement **out,
                                    const moec_model *model,
                                    const moec_counts *counts, const char *path,
                                    moec_error *err)
{
    char *text = NULL;
    size_t bytes = 0;
    moec_status st = moec_cli_read_file(
        path, MOEC_RULE_P01, MOEC_JSON_BYTES_MAX, &text, &bytes, err);
    if (st != MOEC_OK)
        return st;
    if (model != NULL)
        st = moec_placement_parse(out, model, path, text, bytes, err);
    else
        st = read_alone(out, counts, path, text, bytes, err);
    free(text);
    return st;
}

/* The rows of layers without counts made trivial. */
static moec_status fill_rows(moec_placement **p, const moec_counts *counts,
                             moec_error *err)
{
    uint32_t n = moec_placement_n_layers(*p);
    uint32_t n_physical = moec_placement_n_physical(*p);
    uint32_t n_experts = moec_placement_n_experts(*p);
    int32_t *rows = calloc((size_t)n * n_physical + 1, sizeof(*rows));
    moec_placement *filled = NULL;
    if (rows == NULL)
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for a placement");
    for (uint32_t i = 0; i < n; i++) {
        int32_t *row = rows + (size_t)i * n_physical;
        memcpy(row, moec_placement_row(*p, i), n_physical * sizeof(*row));
        for (uint32_t k = 0; k < n_physical && !moec_counts_has(counts, i); k++)
            row[k] = (int32_t)(k % n_experts);
    }
    moec_status st =
        moec_placement_from_rows(&filled, n, n_experts, n_physical, rows, err);
    free(rows);
    if (st != MOEC_OK)
        return st;
    moec_placement_destroy(*p);
    *p = filled;
    return MOEC_OK;
}

/* EPLB, and in which order it made the copies. */
static moec_status run_eplb(moec_placement **out, uint32_t **replica,
                            const moec_eplb_opts *o, const moec_counts *counts,
                            moec_error *err)
{
    uint32_t n = moec_counts_n_layers(counts);
    uint32_t n_experts = moec_counts_n_experts(counts);
    uint64_t n_physical = (uint64_t)n_experts + o->n_redundant;
    uint32_t *order = NULL;
    if (replica != NULL) {
        order = calloc(n * n_physical + 1, sizeof(*order));
        if (order == NULL)
            return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                                  "no memory for a placement");
    }
    moec_status st =
        moec_eplb(out, order, o, moec_counts_loads(counts), n, n_experts, err);
    /* Layers without counts become trivial. */
    for (uint64_t i = 0; st == MOEC_OK && order != NULL && i < n * n_physical;
         i++) {
        if (!moec_counts_has(counts, (uint32_t)(i / n_physical)))
            order[i] = (uint32_t)(i % n_physical) / n_experts;
    }
    if (st == MOEC_OK && replica != NULL)
        *replica = order;
    else
        free(order);
    return st;
}

moec_status moec_cli_balance(moec_placement **out, uint32_t **replica,
                             const moec_cli *cli, const moec_model *model,
                             const moec_counts *counts, moec_error *err)
{
    uint32_t n_layers = moec_counts_n_layers(counts);
    uint32_t n_experts = moec_counts_n_experts(counts);
    const float *loads = moec_counts_loads(counts);
    moec_planner_opts o = MOEC_PLANNER_OPTS_INIT;
    moec_placement *from = NULL;
    moec_status st = MOEC_OK;
    o.eplb = moec_cli_eplb_opts(cli, model);
    if (cli->args.planner != MOEC_CHOICE_PLANNER_MOEC) {
        st = run_eplb(out, replica, &o.eplb, counts, err);
    } else {
        if (cli->args.from != NULL)
            st = moec_cli_read_placement(&from, model, counts, cli->args.from,
                                         err);
        o.from = from;
        if (moec_cli_given(&cli->args, cli->cmd->groups, "max-moves"))
            o.max_moves = cli->args.max_moves;
        if (st == MOEC_OK)
            st = moec_planner(out, &o, loads, n_layers, n_experts, err);
        moec_placement_destroy(from);
    }
    return st == MOEC_OK ? fill_rows(out, counts, err) : st;
}
