/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_STUDY_H
#define MOEC_STUDY_H

/*
 * What this is: what load a placement gives: recorded routes sent through the
 *   dispatch kernels as W ranks with an all-to-all would, any replica choice,
 *   with or without waterfill; or load counts spread over the slots. Counts
 *   load per expert, slot, rank and node.
 * Lifetime: a study owns its numbers and copies what it needs.
 * Threads: a study is immutable once made: share freely.
 * Errors: ARG, MAPPING (R02: placement and recording differ; P06, P07),
 *   UNSUPPORTED (waterfill of counts, which have no rows), NOMEM.
 *
 * Steps: the recorded tokens, in the recording's order, are dealt to the ranks
 * in runs of `batch`, W of them a step; the last step is shared out evenly.
 * Loads are columns: a token adds K to its layer, and S shared ones.
 */

#include <moec/error.h>
#include <moec/kernels.h>
#include <moec/mapping.h>
#include <moec/record.h>
#include <moec/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Which replica a rank sends to. */
typedef enum moec_study_replica {
    MOEC_STUDY_STATIC = 0,  /* SGLang's table, bit for bit */
    MOEC_STUDY_DYNAMIC = 1, /* (row + rank + layer) % candidates */
    MOEC_STUDY_ROW = 2,     /* row % candidates: SGLang, vLLM */
    MOEC_STUDY_NEAREST = 3  /* the nearest one; where none is, as DYNAMIC */
} moec_study_replica;

typedef struct moec_study_opts {
    uint32_t struct_bytes; /* sizeof(moec_study_opts) */
    uint32_t n_ranks;      /* W */
    uint32_t n_nodes;      /* 0: not known, counted as one; else divides W */
    uint32_t n_shared;     /* S, shared slots of a rank */
    uint32_t top_k;        /* of counts, for their shared columns; else 0 */
    uint32_t batch;        /* tokens of a rank in a step; 0: 128 */
    moec_study_replica replica;
    moec_waterfill_mode waterfill; /* where the shared columns go */
    uint32_t by_rank;              /* moec_waterfill.by_rank */
    uint32_t n_threads;            /* 0: one per CPU allowed */
    const moec_placement *placement;
    const moec_layer_key *keys; /* of the placement's layers; NULL: none known.
                                   With n_decoder as in moec_replicas_opts */
    uint32_t n_decoder;
    uint32_t reserved;
} moec_study_opts;
#define MOEC_STUDY_OPTS_INIT                                                   \
  {                                                                            \
    .struct_bytes = sizeof(moec_study_opts), .n_ranks = 1                      \
  }

typedef struct moec_study moec_study;

/* Study recorded routes; the placement's first layers are the recording's. */
MOEC_API moec_status moec_study_routes(moec_study **out,
                                       const moec_routes *routes,
                                       const moec_study_opts *opts,
                                       moec_error *err);
/* Study counts [n_layers][E] >= 0 of the placement's layers and experts. They
 * are spread: every rank sends the same share of each expert, to one replica
 * by STATIC, else evenly to those it may choose. */
MOEC_API moec_status moec_study_counts(moec_study **out, const double *counts,
                                       const moec_study_opts *opts,
                                       moec_error *err);
MOEC_API void moec_study_destroy(moec_study *study);

/* What load is counted by. */
typedef enum moec_study_place {
    MOEC_STUDY_EXPERT = 0, /* [E] logical */
    MOEC_STUDY_SLOT = 1,   /* [P + S*W] dispatch slots */
    MOEC_STUDY_RANK = 2,   /* [W] */
    MOEC_STUDY_NODE = 3    /* [nodes] */
} moec_study_place;
#define MOEC_STUDY_PLACES 4

typedef struct moec_study_figures {
    double max, min, mean, deviation; /* of the population */
    double max_over_mean;             /* 0 where the mean is 0 */
    /* The same within steps: sum of every step's largest load over the sum of
     * every step's mean: how much longer a step takes than if it were even. 0
     * for counts. */
    double step_max_over_mean;
} moec_study_figures;

#define MOEC_STUDY_ALL UINT32_MAX

MOEC_API uint32_t moec_study_n_layers(const moec_study *s);
MOEC_API uint64_t moec_study_n_steps(const moec_study *s);
/* Tokens per layer whose shared columns left their own rank, in all layers. */
MOEC_API uint64_t moec_study_n_moved(const moec_study *s);
/* Loads of one layer, or of all layers added up; *n_out: how many. */
MOEC_API const double *moec_study_loads(const moec_study *s, uint32_t layer,
                                        moec_study_place place,
                                        uint32_t *n_out);
/* Figures of those. Of all layers: max and mean added over layers, as layers
 * run one after the other; min and deviation of the added loads. */
MOEC_API moec_study_figures moec_study_figures_of(const moec_study *s,
                                                  uint32_t layer,
                                                  moec_study_place place);

#ifdef __cplusplus
}
#endif
#endif
