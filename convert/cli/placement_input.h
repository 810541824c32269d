/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_PLACEMENT_INPUT_H
#define MOEC_PLACEMENT_INPUT_H

/*
 * What this is: from the FILE of `placement import|export|check|show` and the
 *   options beside it to a placement: a file of any engine, for the model of
 *   --source or by itself, or the placement that a conversion was made with.
 * Lifetime: zero-initialise, close once; pointers die with it.
 * Threads: one thread at a time.
 * Errors: the library's; MAPPING (P08) where --redundant says another R.
 */

#include "cli.h"
#include "session.h"

typedef struct moec_cli_placed {
    moec_cli_session s;
    moec_placement_file *file; /* NULL for a conversion */
    moec_placement *made;      /* of --strategy */
    const moec_model *model;   /* NULL without --source */
    const moec_placement *p;
    moec_layer_key *keys;    /* of p's rows */
    bool has_keys;           /* keys are decoder layers' numbers */
    uint32_t n_layers;       /* decoder layers; 0: unknown */
    uint32_t n_ranks;        /* W; 0: unknown */
    uint32_t n_shared;       /* S, fused shared slots of each rank */
    const uint32_t *replica; /* as of moec_placement_file_replica */
    const char *form;        /* "sglang", ..., "conversion" */
} moec_cli_placed;

/* Forms that placements are written in; the choice of one as the library
 * names it: cmd_placement.c. */
#define MOEC_CLI_FORMS                                                         \
  "sglang|trtllm|vllm-ascend|vllm|eplb|phy2log|log2phy|logcnt"
moec_placement_form moec_cli_form_of(uint32_t choice);

/* --source, --family, --ep, --redundant, --experts, --moe-layers,
 * --allow-empty. */
extern const moec_cli_group moec_group_placed;

/* Open what `path` names. */
moec_status moec_cli_placed_open(moec_cli_placed *x, const moec_cli *cli,
                                 const char *path, moec_error *err);
/* The placement of --strategy, without a file. */
moec_status moec_cli_placed_strategy(moec_cli_placed *x, const moec_cli *cli,
                                     moec_error *err);
void moec_cli_placed_close(moec_cli_placed *x);

/* Notes of the file, and P09 for each layer, as findings: each in turn, as
 * lines on stderr unless --quiet, as the member "findings". */
typedef void (*moec_cli_finding_fn)(void *ctx, const moec_finding *f);
void moec_cli_placed_each(const moec_cli_placed *x, moec_cli_finding_fn fn,
                          void *ctx);
void moec_cli_placed_print(const moec_cli_placed *x, const moec_cli *cli);
void moec_cli_placed_json(const moec_cli_placed *x, moec_cli_json *j);

/* Members "form" .. "n_layers" of a document. */
void moec_cli_placed_facts(const moec_cli_placed *x, moec_cli_json *j);

#endif
