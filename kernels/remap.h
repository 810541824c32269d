/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_REMAP_H
#define MOEC_REMAP_H

/*
 * What this is: one batch on its way from logical ids to dispatch slots, row
 *   by row, and where its shared experts are computed (waterfill).
 * Refuses: ids that the map has no slot for; it never guesses one.
 * Threads: rows are independent; counts are each worker's own.
 */

#include <stdbool.h>

#include <moec/kernels.h>

#include "base/base.h"
#include "remap_limits.h"

static inline uint32_t moec_divide(uint32_t x, uint64_t divider)
{
    return (uint32_t)(x * divider >> 40);
}

/* Sizes agree: P = W * L, at least one slot, slots within SLOTS_MAX. */
moec_status moec_topology_check(const moec_topology *t, moec_error *err);
/* P + S*W, or P + S where shared slots are global. */
uint32_t moec_topology_n_slots(const moec_topology *t);

/* Slots ready to look up. 64 KiB at most, of which a model of E experts touches
 * 4 E to 8 E bytes. */
#define MOEC_TABLE_EXPERTS  4096u
#define MOEC_TABLE_SLOTS    12288u
#define MOEC_TABLE_REPLICAS 16u
typedef struct moec_remap_tables {
    int32_t slots[MOEC_TABLE_SLOTS];    /* of an expert, or of a candidate */
    uint32_t lists[MOEC_TABLE_EXPERTS]; /* first candidate << 4 | count - 1 */
} moec_remap_tables;

/* A batch. The outputs may be the inputs: each column is read before it is
 * written, and nothing of it is read again. */
typedef struct moec_remap {
    const moec_dispatch_map *map;
    const int32_t *ids;   /* [T][n_cols] */
    const float *weights; /* [T][n_cols] */
    int32_t *slots;       /* [T][n_cols] */
    float *out_weights;   /* [T][n_cols] */
    float *identity;      /* [T]; NULL: ids >= E are refused */
    uint32_t n_valid;
    uint32_t top_k, n_cols;
    /* Derived by moec_remap_init. */
    uint64_t by_local; /* divides a physical id by L */
    uint32_t gap;      /* slots between ranks: S, or 0 where global */
    uint32_t n_slots;
    uint32_t row_base; /* of the candidate rules: (row_base + t) % n */
    uint32_t n_cand;
    int32_t shared_first;            /* slot of shared column 0 at home */
    const moec_remap_tables *tables; /* NULL: the map serves */
} moec_remap;

/* Fill the derived fields and check map and sizes. */
moec_status moec_remap_init(moec_remap *m, uint32_t n_tokens, moec_error *err);

/* Whether tables have room for the map and the batch is large enough. */
bool moec_remap_wants_tables(const moec_remap *m, uint32_t n_tokens);
/* Make them, the caller's, for the rows to come. A map with more replicas of
 * one expert, or with an entry that is no slot, goes without. */
void moec_remap_prepare(moec_remap *m, moec_remap_tables *tables);

/* No bad column: larger than any. */
#define MOEC_REMAP_FINE UINT64_MAX

/* Remap rows [lo, hi). Adds routed columns to counts[n_slots] and rows with a
 * valid id to *n_rows; counts may be NULL. Returns the first bad column as
 * row << 32 | column, which is then not written, or MOEC_REMAP_FINE. */
uint64_t moec_remap_rows(const moec_remap *m, uint32_t lo, uint32_t hi,
                         uint32_t *counts, uint32_t *n_rows);

/* Say what is wrong with that column. */
moec_status moec_remap_refuse(const moec_remap *m, uint64_t where,
                              moec_error *err);

/* Where shared experts go, for all rows of a batch. */
typedef struct moec_waterfill_plan {
    uint64_t load[MOEC_WATERFILL_MAX];
    uint64_t room[MOEC_WATERFILL_MAX]; /* weight of each rank */
    uint64_t upto[MOEC_WATERFILL_MAX]; /* its running sum */
    uint64_t target;                   /* 0: all stay at home */
    uint32_t n_ranks, home;
    uint32_t emptiest; /* what the scan of all ranks finds */
    bool all_ranks;    /* else home and the ranks a row visits */
    bool by_rank;      /* order of that scan */
} moec_waterfill_plan;

/* Check the sizes. */
moec_status moec_waterfill_check(const moec_topology *t,
                                 const moec_waterfill *w, uint32_t rank,
                                 moec_error *err);
/* Plan for n_tokens rows. STATIC: p->load holds the routed counts. */
moec_status moec_waterfill_plan_make(moec_waterfill_plan *p,
                                     const moec_topology *t,
                                     const moec_waterfill *w, uint32_t rank,
                                     uint32_t n_tokens, uint32_t top_k,
                                     moec_error *err);
/* Rank for row `row`, which has a valid id and visits ranks[n], column by
 * column. */
uint32_t moec_waterfill_best(const moec_waterfill_plan *p, uint32_t row,
                             const uint32_t *ranks, uint32_t n);

#endif
