/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_EC_H
#define MOEC_EC_H

/*
 * What this is: Expert Choice between the choice kernels (route.h) and
 *   moec_route: every expert takes its best C tokens, then every token its
 *   best K of the experts that took it; or the one stable assignment.
 * Keys: two of each (token, expert) pair, both order-preserving uint32, 0 =
 *   not selectable. The ROW key orders the experts of one token, the COLUMN
 *   key the tokens of one expert. They are one and the same but for softmax
 *   without a bias: there a row is ordered by the logit, which does not round
 *   away, and a column by the softmax, because a logit means nothing beside
 *   another row's. A larger row key never has a smaller column key.
 * Refuses: zero experts (capacity of an expert that costs nothing has no
 *   meaning), hash, sparse mixer, forced ids. Never silently plain top-K.
 * Threads: tokens are cut into chunks, one a thread; all steps are exact, so
 *   the cut does not show in the result.
 */

#include <moec/error.h>
#include <moec/kernels.h>

#include "route.h"

/* UNSUPPORTED with the sentence that moec_router_create reports. */
moec_status moec_ec_check(const moec_route_config *config, moec_error *err);

/* moec_route where config.ec.mode is not OFF. */
moec_status moec_ec_route(const moec_router *r, const moec_route_in *in,
                          const moec_route_out *out, void *ws,
                          uint64_t ws_bytes, moec_error *err);
uint64_t moec_ec_workspace_bytes(const moec_router *r, uint32_t n_tokens);

/* A pair of the lists below: its row key, and which token or expert. */
#define MOEC_EC_PAIR(row_key, id) ((uint64_t)(row_key) << 32 | (uint32_t)(id))

/* Samples for fns.floors() lie in groups of so many columns; strides are
 * multiples of it. */
#define MOEC_EC_LANES 16u

/* The scans, by instruction set. Row lengths are `stride`s: multiples of 16,
 * padded with keys of 0. Integer compares only: equal on every back end. */
struct moec_ec_fns {
    /* Column keys of softmax from the row keys of one row whose x are the raw
     * logits: neither groups nor softcap. What route.h's `cols` gives. NULL:
     * use that. */
    void (*softmax)(const uint32_t *keys, uint32_t *cols, uint32_t stride);
    /* Write the ids of the keys above their floor, ascending, and return how
     * many. `ids` has room for stride + 16. */
    uint32_t (*above)(const uint32_t *cols, const uint32_t *floors,
                      uint32_t stride, uint16_t *ids);
    /* How many of the n keys are at least v. */
    uint32_t (*reach)(const uint32_t *keys, uint32_t n, uint32_t v);
    /* Keep, in order, the entries of both lists whose key is above v, and the
     * first *ties of those that equal v; lower *ties by these. Return how many
     * were kept. Both lists have room for n + 16. */
    uint32_t (*keep)(uint32_t *keys, uint64_t *pairs, uint32_t n, uint32_t v,
                     uint32_t *ties);
    /* For each of the 16 columns of keys[n][16] a v that at least `rank` of
     * its keys exceed, about as large as can be, or 0. */
    void (*floors)(const uint32_t *keys, uint32_t n, uint32_t rank,
                   uint32_t *floors);
    /* The ids ~(low half) of the largest min(n, k) pairs, descending. The
     * order of `pairs` is lost. */
    uint32_t (*best)(uint64_t *pairs, uint32_t n, uint32_t k, int32_t *ids);
    /* The best (key, id) of one row behind (last_key, last_id) among those
     * whose open[] is all ones; UINT32_MAX: there is none. */
    uint32_t (*next)(const uint32_t *keys, const uint32_t *open,
                     uint32_t stride, uint32_t last_key, uint32_t last_id);
};

/* What an instruction set leaves to plain C. */
uint32_t moec_ec_keep_scalar(uint32_t *keys, uint64_t *pairs, uint32_t n,
                             uint32_t v, uint32_t *ties);
uint32_t moec_ec_best_scalar(uint64_t *pairs, uint32_t n, uint32_t k,
                             int32_t *ids);

extern const struct moec_ec_fns moec_ec_scalar;
extern const struct moec_ec_fns moec_ec_avx2;
extern const struct moec_ec_fns moec_ec_avx512;
const struct moec_ec_fns *moec_ec_fns_of(moec_isa isa);

/* ------------------------------------------------ between ec.c and the modes */

/* Rows of [0, n) that one thread does: never fewer than 16 of them. */
typedef struct moec_ec_chunks {
    uint32_t rows; /* of each but the last */
    uint32_t n;
} moec_ec_chunks;

/* What one chunk counted. */
typedef struct moec_ec_counts {
    uint64_t short_tokens, fallback_tokens, dropped;
} moec_ec_counts;

/* One call: the first fields by ec.c. */
typedef struct moec_ec_job {
    const moec_router *r;
    const struct moec_ec_fns *fns;
    const moec_route_in *in;
    const moec_route_out *out;
    uint32_t n;        /* real tokens */
    uint32_t capacity; /* below n */
    uint32_t stride;   /* of a row of keys */
    moec_ec_chunks chunks;
    moec_ec_counts *counts; /* [chunks.n], zero */
} moec_ec_job;

/* Carves aligned pieces out of a workspace; with base 0 it only measures. */
typedef struct moec_ec_space {
    char *base;
    uint64_t used;
} moec_ec_space;
void *moec_ec_take(moec_ec_space *space, uint64_t bytes);

/* Column keys are not row keys. */
static inline bool moec_ec_has_cols(const moec_ec_job *job)
{
    return job->r->fns.cols && !job->in->bias;
}

/* Row and column keys of `n` rows from `row`; returns the column keys: `cols`,
 * or `keys` where they are the same. The padding is left as it is. */
const uint32_t *moec_ec_keys(const moec_ec_job *job, uint32_t row, uint32_t n,
                             uint32_t *keys, uint32_t *cols);
/* Rows of one block whose keys fit a first-level cache. */
uint32_t moec_ec_block_rows(uint32_t stride);
uint32_t moec_ec_chunk_end(const moec_ec_job *job, size_t chunk);

/* The fill modes, and BALANCED. `space` has what the third function said. */
void moec_ec_admit(const moec_ec_job *job, moec_ec_space *space);
void moec_ec_balance(const moec_ec_job *job, moec_ec_space *space);
void moec_ec_admit_space(const moec_ec_job *job, moec_ec_space *space);
void moec_ec_balance_space(const moec_ec_job *job, moec_ec_space *space);

#endif
