/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_STATS_INPUT_H
#define MOEC_STATS_INPUT_H

/*
 * What this is: what `stats` looks at: a recording or load counts, told apart
 *   by content, the model of --source, and the placements before and after.
 * Lifetime: zero-initialise, close once; pointers die with it.
 * Threads: one thread at a time.
 * Errors: the library's; MAPPING (R02) where input and model differ.
 */

#include "cli.h"
#include "session.h"

typedef struct moec_cli_stats_input {
    moec_cli_session s;
    const moec_model *model; /* NULL without --source */
    moec_routes *routes;     /* or */
    moec_counts *counts;
    moec_placement *trivial;
    moec_placement_file *files[2];        /* --placement, --placement-after */
    const moec_placement *before, *after; /* after: NULL without */
    moec_layer_key *keys;                 /* of the placements' rows */
    uint32_t n_placed; /* those rows: n_layers, and MTP layers of the model
                          that the recording lacks */
    uint32_t n_layers, n_experts, top_k; /* top_k 0: not known */
    uint32_t n_decoder;                  /* 0: not known */
    uint32_t n_shared;                   /* S */
} moec_cli_stats_input;

moec_status moec_cli_stats_open(moec_cli_stats_input *x, const moec_cli *cli,
                                moec_error *err);
void moec_cli_stats_close(moec_cli_stats_input *x);

/* Logical counts of a recording as JSON, to be freed with free(3). `all`:
 * SGLang's form, a row for every decoder layer; else one for every MoE layer. */
moec_status moec_cli_stats_counts(const moec_cli_stats_input *x, bool all,
                                  char **out, size_t *n_out, moec_error *err);

#endif
