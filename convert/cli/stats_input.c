/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Recordings, counts and placements for `stats`. Refuses: a recording of
 * another model than --source, placements that do not fit its layers.
 */
#include "stats_input.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "balance.h"
#include "memory_file.h"
#include "option_files.h"
#include "print.h"

static moec_status no_memory(moec_error *err)
{
    return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE, "no memory");
}

/* Counts are JSON or .npy; a recording begins with a header's length, whose
 * high bytes are 0. What cannot be opened is for the reader to refuse. */
static bool is_recording(const char *path)
{
    unsigned char head[9] = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    bool is = false;
    if (fd < 0)
        return false;
    if (read(fd, head, sizeof(head)) == (ssize_t)sizeof(head))
        is = head[5] == 0 && head[6] == 0 && head[7] == 0 && head[8] == '{';
    (void)close(fd);
    return is;
}

/* ---------------------------------------------------------------- input */

/* Keys of the placements' rows: the model's layers, else those given, else
 * numbers. */
static moec_status make_keys(moec_cli_stats_input *x, const moec_layer_key *k,
                             moec_error *err)
{
    x->n_placed = x->model != NULL ? (uint32_t)moec_model_n_layers(x->model)
                                   : x->n_layers;
    x->keys = calloc(x->n_placed + 1, sizeof(x->keys[0]));
    if (x->keys == NULL)
        return no_memory(err);
    for (uint32_t i = 0; i < x->n_placed; i++) {
        x->keys[i] = (moec_layer_key){MOEC_SPACE_MAIN, i};
        if (x->model != NULL)
            x->keys[i] = moec_model_layer(x->model, i)->key;
        else if (k != NULL)
            x->keys[i] = k[i];
    }
    return MOEC_OK;
}

/* The recording's layers are the model's first ones. */
static bool is_of_model(const moec_cli_stats_input *x,
                        const moec_routes_shape *s)
{
    bool same = x->n_layers <= x->n_placed;
    for (uint32_t i = 0; same && i < x->n_layers; i++)
        same = x->keys[i].space == s->keys[i].space &&
               x->keys[i].number == s->keys[i].number;
    return same && (x->model == NULL ||
                    moec_model_facts(x->model)->n_experts == s->n_experts);
}

static moec_status open_routes(moec_cli_stats_input *x, const char *path,
                               moec_error *err)
{
    moec_status st = moec_routes_open(&x->routes, path, err);
    if (st != MOEC_OK)
        return st;
    const moec_routes_shape *s = moec_routes_shape_get(x->routes);
    x->n_layers = s->n_layers;
    x->n_experts = s->n_experts;
    x->top_k = s->top_k;
    x->n_decoder = s->n_decoder;
    st = make_keys(x, s->keys, err);
    if (st == MOEC_OK && !is_of_model(x, s))
        st = moec_cli_error(err, MOEC_E_MAPPING, MOEC_RULE_R02,
                            "%s: its MoE layers or its %u experts are not "
                            "those of the model",
                            path, s->n_experts);
    return st;
}

static moec_status open_counts(moec_cli_stats_input *x, const char *path,
                               moec_error *err)
{
    moec_status st = moec_cli_read_counts(&x->counts, x->model, path, err);
    if (st != MOEC_OK)
        return st;
    x->n_layers = moec_counts_n_layers(x->counts);
    x->n_experts = moec_counts_n_experts(x->counts);
    if (x->model != NULL) {
        x->top_k = moec_model_facts(x->model)->top_k;
        x->n_decoder = moec_model_facts(x->model)->n_layers;
    }
    return make_keys(x, NULL, err);
}

/* ----------------------------------------------------------- placements */

static moec_status open_placement(moec_cli_stats_input *x, const moec_cli *cli,
                                  const char *path, int i, moec_error *err)
{
    moec_placement_target t = MOEC_PLACEMENT_TARGET_INIT;
    char *text = NULL;
    size_t n = 0;
    moec_status st = moec_cli_read_file(path, MOEC_RULE_P01,
                                        MOEC_JSON_BYTES_MAX, &text, &n, err);
    t.n_experts = x->n_experts;
    t.n_ranks = cli->args.ep;
    if (x->routes != NULL || x->model != NULL) {
        t.n_layers = x->n_decoder;
        t.keys = x->keys;
        t.n_keys = x->n_placed;
    }
    if (st == MOEC_OK)
        st = moec_placement_file_read(&x->files[i], &t, path, text, n, err);
    free(text);
    if (st != MOEC_OK)
        return st;
    const moec_placement *p = moec_placement_file_placement(x->files[i]);
    if (moec_placement_n_layers(p) != x->n_placed ||
        moec_placement_n_experts(p) != x->n_experts)
        return moec_cli_error(err, MOEC_E_MAPPING, MOEC_RULE_P02,
                              "%s: %u layers of %u experts, must be %u of %u",
                              path, moec_placement_n_layers(p),
                              moec_placement_n_experts(p), x->n_placed,
                              x->n_experts);
    return MOEC_OK;
}

static moec_status open_placements(moec_cli_stats_input *x, const moec_cli *cli,
                                   moec_error *err)
{
    const moec_cli_args *a = &cli->args;
    moec_status st = MOEC_OK;
    if (a->placement != NULL) {
        st = open_placement(x, cli, a->placement, 0, err);
        if (st == MOEC_OK)
            x->before = moec_placement_file_placement(x->files[0]);
    } else {
        st = moec_placement_trivial(&x->trivial, x->n_placed, x->n_experts,
                                    a->redundant, err);
        x->before = x->trivial;
    }
    if (st == MOEC_OK && a->placement_after != NULL) {
        st = open_placement(x, cli, a->placement_after, 1, err);
        if (st == MOEC_OK)
            x->after = moec_placement_file_placement(x->files[1]);
    }
    return st;
}

moec_status moec_cli_stats_open(moec_cli_stats_input *x, const moec_cli *cli,
                                moec_error *err)
{
    const moec_cli_args *a = &cli->args;
    const char *path = moec_cli_path(cli, 0);
    moec_status st = MOEC_OK;
    if (a->source != NULL) {
        st = moec_cli_open_model(&x->s, cli, a->source, err);
        x->model = x->s.model;
    }
    if (st == MOEC_OK)
        st = is_recording(path) ? open_routes(x, path, err)
                                : open_counts(x, path, err);
    if (st == MOEC_OK)
        st = open_placements(x, cli, err);
    x->n_shared = a->shared;
    if (x->model != NULL && !moec_cli_given(a, cli->cmd->groups, "shared"))
        x->n_shared = moec_model_facts(x->model)->shared_slots;
    return st;
}

void moec_cli_stats_close(moec_cli_stats_input *x)
{
    for (int i = 0; i < 2; i++)
        moec_placement_file_close(x->files[i]);
    moec_placement_destroy(x->trivial);
    moec_counts_destroy(x->counts);
    moec_routes_destroy(x->routes);
    free(x->keys);
    moec_cli_session_close(&x->s);
}

/* --------------------------------------------------------------- counts */

static void put_row(FILE *f, const uint64_t *counts, uint32_t n, bool first)
{
    (void)fputs(first ? "\n  [" : ",\n  [", f);
    for (uint32_t e = 0; e < n; e++)
        (void)fprintf(f, "%s%" PRIu64, e > 0 ? ", " : "",
                      counts != NULL ? counts[e] : 0);
    (void)fputc(']', f);
}

moec_status moec_cli_stats_counts(const moec_cli_stats_input *x, bool all,
                                  char **out, size_t *n_out, moec_error *err)
{
    uint32_t n_rows = x->n_placed, row = 0;
    bool dense = all && x->n_decoder > 0;
    uint64_t *counts;
    FILE *f;
    if (dense) {
        n_rows = x->n_decoder;
        for (uint32_t i = 0; i < x->n_layers; i++)
            n_rows += x->keys[i].space == MOEC_SPACE_MTP;
    }
    counts = calloc((size_t)x->n_layers * x->n_experts, sizeof(counts[0]));
    f = counts != NULL ? moec_cli_memory_file(out, n_out) : NULL;
    if (f == NULL) {
        free(counts);
        return no_memory(err);
    }
    moec_routes_counts(x->routes, counts);
    (void)fputs(all ? "{\"logical_count\": [" : "[", f);
    for (uint32_t i = 0; i < x->n_layers; i++, row++) {
        /* Dense layers stand between, as rows of zeros. */
        while (dense && x->keys[i].space == MOEC_SPACE_MAIN &&
               row < x->keys[i].number)
            put_row(f, NULL, x->n_experts, row++ == 0);
        while (dense && x->keys[i].space == MOEC_SPACE_MTP &&
               row < x->n_decoder)
            put_row(f, NULL, x->n_experts, row++ == 0);
        put_row(f, counts + (size_t)i * x->n_experts, x->n_experts, row == 0);
    }
    while (row < n_rows)
        put_row(f, NULL, x->n_experts, row++ == 0);
    (void)fputs(all ? "\n]}\n" : "\n]\n", f);
    free(counts);
    if (fclose(f) != 0)
        return no_memory(err);
    return MOEC_OK;
}
