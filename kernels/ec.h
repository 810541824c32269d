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

/* UNSUPPORTED with the sentence that moec_router_create reports. */
moec_status moec_ec_check(const moec_route_config *config, moec_error *err);

/* moec_route where config.ec.mode is not OFF. */
moec_status moec_ec_route(const moec_router *r, const moec_route_in *in,
                          const moec_route_out *out, void *ws,
                          uint64_t ws_bytes, moec_error *err);
uint64_t moec_ec_workspace_bytes(const moec_router *r, uint32_t n_tokens);

/* A pair of the lists below: its row key, and which token or expert. */
#define MOEC_EC_PAIR(row_key, id) ((uint64_t)(row_key) << 32 | (uint32_t)(id))

/* The scans, by instruction set. Row lengths are `stride`s: multiples of 16,
 * padded with keys of 0. Integer compares only: equal on every back end. */
struct moec_ec_fns {
    /* Write the ids of the keys above their floor, ascending, and return how
     * many. `ids` has room for stride + 16. */
    uint32_t (*above)(const uint32_t *cols, const uint32_t *floors,
                      uint32_t stride, uint16_t *ids);
    /* The largest v that at least c of the n keys reach; 1 <= c <= n. */
    uint32_t (*cutoff)(const uint32_t *keys, uint32_t n, uint32_t c);
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

extern const struct moec_ec_fns moec_ec_scalar;
#if defined(__x86_64__)
extern const struct moec_ec_fns moec_ec_avx2;
extern const struct moec_ec_fns moec_ec_avx512;
#endif

#endif
