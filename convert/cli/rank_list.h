/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_RANK_LIST_H
#define MOEC_RANK_LIST_H

/*
 * What this is: --ranks: a list of ranks ("0-3,8"), or this process's share of
 *   all, by the variables that its launcher set. Reads the environment, which
 *   the library never does.
 * Lifetime: zero-initialise, free once.
 * Threads: one thread at a time.
 * Errors: a sentence for a usage error.
 */

#include "cli.h"

typedef struct moec_cli_ranks {
    uint8_t *mine;       /* by rank: 1 for ours; NULL: all ranks */
    uint32_t n, n_ranks; /* ours, all */
    char said[96];       /* "process 1 of 4 (SLURM_PROCID)"; or empty */
} moec_cli_ranks;

/* Read --ranks for `n_ranks` ranks. Without the option, and where the list
 * names all of them, mine is NULL. Another exit code than 0: it has said why. */
int moec_cli_ranks_read(moec_cli_ranks *r, const moec_cli *cli,
                        uint32_t n_ranks);
void moec_cli_ranks_free(moec_cli_ranks *r);

/* "0-3,8", to be freed; NULL without memory. */
char *moec_cli_ranks_text(const moec_cli_ranks *r);

extern const moec_cli_group moec_group_ranks;

#endif
