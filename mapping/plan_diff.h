/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_PLAN_DIFF_H
#define MOEC_PLAN_DIFF_H

/*
 * What this is: the inside of a moec_diff while it is made: plan_diff.c reads
 *   two plans into problems, diff_order.c solves one.
 */

#include <moec/mapping.h>

#include "base/base.h"

#define MOEC_DIFF_NONE UINT32_MAX

struct moec_diff {
    size_t n, cap;
    moec_diff_move *moves;
    moec_diff_figures figures;
};

/* ----------------------------------------------------------- one problem
 * A layer, or one table over all slots, as cells. */

typedef struct moec_diff_problem {
    uint32_t n_ranks, n_rows;         /* new cells: rank * n_rows + row */
    uint32_t n_old_ranks, n_old_rows; /* the same of the old ones */
    uint32_t n_units;
    uint32_t *want;        /* [new cells] unit, or MOEC_UNIT_EMPTY */
    uint32_t *had;         /* [old cells] */
    uint32_t *old_of;      /* [new ranks] the process's old rank, or NONE */
    uint32_t *first, *old; /* old cells by unit: [units + 1], [old cells] */
    uint8_t *gone;         /* [old ranks] */
    /* of new cells */
    uint8_t *source;    /* moec_diff_source, or that it stays */
    uint32_t *from;     /* old cell, where the source is one */
    uint32_t *waits;    /* reads that must come before it is written */
    uint32_t *ready;    /* first round in which it may be written */
    uint32_t *todo;     /* stack */
    uint32_t *free_at;  /* [new ranks] round in which the bounce row is free */
    uint8_t *done;      /* is written */
    uint32_t *new_cell; /* [old cells] the same memory, or NONE */
} moec_diff_problem;

typedef struct moec_differ {
    const moec_plan *old, *now;
    const moec_diff_opts *opts;
    uint32_t rank;
    moec_topology was, is;
    uint32_t n_shared, n_experts;
    moec_diff_problem p;
    moec_arena arena;
    size_t layer, old_layer;
    uint32_t t; /* of a table, or MOEC_DIFF_ROWS */
    uint64_t row_bytes;
    moec_diff *d;
} moec_differ;

/* Append this rank's moves of f->p to f->d, in an order in which no row is
 * overwritten before all have read it. */
moec_status moec_diff_solve(moec_differ *f, moec_error *err);

#endif
