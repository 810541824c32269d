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

/* A pair in a list: its key, and which token, or ~ which expert. Larger is
 * better in an expert's list but for the token, and in a token's altogether. */
#define MOEC_EC_PAIR(key, id) ((uint64_t)(key) << 32 | (uint32_t)(id))
#define MOEC_EC_KEY(pair)     ((uint32_t)((pair) >> 32))

/* Samples for fns.floors() lie in groups of so many columns; strides are
 * multiples of it. */
#define MOEC_EC_LANES 16u

/* The scans, by instruction set. Row lengths are `stride`s: multiples of 16,
 * padded with keys of 0. Integer compares only: equal on every back end. */
struct moec_ec_fns {
    /* Write the ids of the keys above their floor, ascending, and return how
     * many. `ids` has room for stride + 16. */
    uint32_t (*above)(const uint32_t *cols, const uint32_t *floors,
                      uint32_t stride, uint16_t *ids);
    /* How many of the n pairs are at least v, and the largest; 0 for none. */
    uint32_t (*reach)(const uint64_t *pairs, uint32_t n, uint64_t v);
    uint64_t (*largest)(const uint64_t *pairs, uint32_t n);
    /* Keep, in order, the pairs whose key is above v, and the first *ties of
     * those whose key is v; lower *ties by these. Return how many were kept.
     * There is room for n + 8. */
    uint32_t (*keep)(uint64_t *pairs, uint32_t n, uint32_t v, uint32_t *ties);
    /* For each of the 16 columns of keys[n][16] a v that at least `rank` of
     * its keys exceed, about as large as can be, or 0. */
    void (*floors)(const uint32_t *keys, uint32_t n, uint32_t rank,
                   uint32_t *floors);
    /* Bring the largest min(n, k) pairs to the front, descending, the others
     * behind them. All pairs are different. Return how many. */
    uint32_t (*best)(uint64_t *pairs, uint32_t n, uint32_t k);
    /* The best (key, id) of one row behind (last_key, last_id) among those
     * whose open[] is all ones; UINT32_MAX: there is none. */
    uint32_t (*next)(const uint32_t *keys, const uint32_t *open,
                     uint32_t stride, uint32_t last_key, uint32_t last_id);
};

/* What an instruction set leaves to plain C. */
uint32_t moec_ec_keep_scalar(uint64_t *pairs, uint32_t n, uint32_t v,
                             uint32_t *ties);
uint32_t moec_ec_best_scalar(uint64_t *pairs, uint32_t n, uint32_t k);

extern const struct moec_ec_fns moec_ec_scalar;
extern const struct moec_ec_fns moec_ec_avx2;
extern const struct moec_ec_fns moec_ec_avx512;
const struct moec_ec_fns *moec_ec_fns_of(moec_isa isa);

/* ------------------------------------------- between ec.c and the modes */

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

/* Column keys of `n` rows from `row`, which are the row keys where it has no
 * others. Padding is left as it is. `scales` [n] is written where it has. */
static inline void moec_ec_cols(const moec_ec_job *job, uint32_t row,
                                uint32_t n, uint32_t *cols,
                                moec_row_scale *scales)
{
    const struct moec_route_fns *fns = &job->r->fns;

    if (moec_ec_has_cols(job))
        fns->cols(job->r, job->in, row, n, cols, job->stride, scales);
    else
        fns->keys(job->r, job->in, row, n, cols, job->stride);
}

/* Shared ids behind the K; -1 all along where the first is. */
static inline void moec_ec_finish_ids(const moec_router *r, int32_t *ids)
{
    if (ids[0] >= 0)
        moec_route_shared_ids(r, ids);
    else
        for (uint32_t i = r->config.top_k; i < r->n_columns; i++)
            ids[i] = -1;
}

/* Rows of one block whose keys fit a first-level cache. */
uint32_t moec_ec_block_rows(uint32_t stride);
uint32_t moec_ec_chunk_end(const moec_ec_job *job, size_t chunk);

/* The fill modes, and BALANCED. `space` has what the third function said. */
void moec_ec_admit(const moec_ec_job *job, moec_ec_space *space);
void moec_ec_balance(const moec_ec_job *job, moec_ec_space *space);
void moec_ec_admit_space(const moec_ec_job *job, moec_ec_space *space);
void moec_ec_balance_space(const moec_ec_job *job, moec_ec_space *space);

#endif
