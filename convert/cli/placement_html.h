/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_PLACEMENT_HTML_H
#define MOEC_PLACEMENT_HTML_H

/*
 * What this is: one self-contained page with a heat map of a placement:
 *   layers by slots, ranks and nodes outlined, replicas and shared slots
 *   marked, and with load counts what slots and ranks carry before and after.
 *   Style and script are in placement.html; nothing is loaded from elsewhere,
 *   and the page says so to the browser (Content-Security-Policy).
 * Lifetime: borrows all of it during the call; the text is the caller's.
 * Threads: one thread at a time.
 * Errors: NOMEM. Texts come from files and options: all of them are escaped.
 */

#include "cli.h"

typedef struct moec_cli_page {
    const char *title;       /* name of the placement */
    const char *form;        /* "sglang", ... */
    const char *before_name; /* NULL: trivial */
    const char *counts_name; /* NULL without counts */
    const moec_placement *p;
    const moec_placement *before; /* of as many layers; NULL: none */
    const moec_counts *counts;    /* of as many layers and experts; or NULL */
    const moec_layer_key *keys;   /* of the rows */
    uint32_t n_ranks, n_nodes;    /* both divide what they must */
    uint32_t n_shared;
} moec_cli_page;

/* Make the page; *out is to be freed with free(3). */
moec_status moec_cli_placement_page(const moec_cli_page *page, char **out,
                                    size_t *bytes_out, moec_error *err);

#endif
