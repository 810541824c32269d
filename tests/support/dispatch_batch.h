/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_DISPATCH_BATCH_H
#define MOEC_DISPATCH_BATCH_H

/*
 * What this is: batches for dispatch, for the CPU's tests and the device's: a
 *   chain of the vectors, or a random one. All memory ends at guard pages.
 */

#include "vectors.h"

#include <moec/kernels.h>

#include "guarded.h"

/* ------------------------------------------------------------- a batch */

/* One call and all its memory. */
struct batch {
    moec_dispatch_map map;
    moec_waterfill waterfill;
    uint32_t n_tokens, n_valid, top_k, n_zero, n_slots;
    int32_t *ids; /* [T][C] */
    float *weights;
    moec_dispatch_out out;
};

static inline uint32_t n_cols(const struct batch *b)
{
    return b->top_k + b->map.topology.n_shared_slots;
}

static inline void alloc_outputs(struct batch *b)
{
    size_t n = (size_t)b->n_tokens * n_cols(b);
    const moec_topology *t = &b->map.topology;

    b->n_slots =
        t->n_physical + t->n_shared_slots * (t->shared_global ? 1 : t->n_ranks);
    b->out.struct_bytes = sizeof(b->out);
    b->out.slots = guarded(n * sizeof(int32_t));
    b->out.weights = guarded(n * sizeof(float));
    b->out.identity = b->n_zero ? guarded(b->n_tokens * sizeof(float)) : NULL;
    b->out.slot_counts = guarded(b->n_slots * sizeof(uint32_t));
    b->out.rank_counts = guarded(t->n_ranks * sizeof(uint32_t));
}

/* ------------------------------------------------------------- vectors */

static const json_t *find_map(const json_t *root, const char *id)
{
    const json_t *m;
    size_t i;

    json_array_foreach (json_object_get(root, "maps"), i, m)
        if (strcmp(vectors_text(m, "id"), id) == 0)
            return m;
    fail_msg("no map %s", id);
    return NULL;
}

/* Candidates of one layer: the map's own lists, or ascending. */
static inline void take_candidates(struct batch *b, const json_t *m,
                                   uint32_t layer)
{
    const json_t *own = json_object_get(m, "candidates"), *list;
    uint32_t n_experts = vectors_u32(m, "E"), n = 0;
    uint32_t n_physical = b->map.topology.n_physical;
    uint32_t *first = guarded((n_experts + 1) * sizeof(*first));
    uint32_t *cand = guarded(n_physical * sizeof(*cand));
    int32_t *p2l =
        vectors_i32(json_array_get(json_object_get(m, "p2l"), layer), NULL);

    for (uint32_t e = 0; e < n_experts; e++) {
        first[e] = n;
        if (own) {
            list = json_array_get(json_array_get(own, layer), e);
            for (size_t i = 0; i < json_array_size(list); i++)
                cand[n++] =
                    (uint32_t)json_integer_value(json_array_get(list, i));
            continue;
        }
        for (uint32_t p = 0; p < n_physical; p++)
            if (p2l[p] == (int32_t)e)
                cand[n++] = p;
    }
    first[n_experts] = n;
    assert_int_equal(n, n_physical);
    b->map.cand_first = first;
    b->map.cand = cand;
    free(p2l);
}

static inline void take_static(struct batch *b, const json_t *m, uint32_t layer)
{
    const json_t *r;
    size_t i;

    json_array_foreach (json_object_get(m, "ranks"), i, r) {
        if (vectors_u32(r, "rank") != b->map.rank)
            continue;
        b->map.table = (uint32_t *)vectors_i32(
            json_array_get(json_object_get(r, "static"), layer), NULL);
        return;
    }
    fail_msg("map %s has no rank %u", vectors_text(m, "id"), b->map.rank);
}

static inline void take_map(struct batch *b, const json_t *c, const json_t *m)
{
    const char *algorithm = vectors_text(c, "algorithm");
    uint32_t layer = vectors_u32(c, "layer");
    moec_topology *t = &b->map.topology;

    b->map.struct_bytes = sizeof(b->map);
    b->map.n_experts = vectors_u32(m, "E");
    b->map.rank = vectors_u32(c, "rank");
    b->map.layer = layer;
    t->n_ranks = vectors_u32(m, "W");
    t->n_physical = vectors_u32(m, "E") + vectors_u32(m, "R");
    t->n_local = t->n_physical / t->n_ranks;
    t->n_shared_slots = vectors_u32(c, "S");
    t->shared_global = strcmp(vectors_text(c, "shared_slots"), "global") == 0;
    take_candidates(b, m, layer);
    if (strcmp(algorithm, "row") == 0) {
        b->map.rule = MOEC_REPLICA_ROW;
    } else if (strcmp(algorithm, "row+rank+layer") == 0) {
        b->map.rule = MOEC_REPLICA_ROW_RANK_LAYER;
    } else if (strcmp(algorithm, "identity") == 0) {
        uint32_t *table = calloc(t->n_physical, sizeof(*table));

        assert_non_null(table);
        for (uint32_t p = 0; p < t->n_physical; p++)
            table[p] = p;
        b->map.n_experts = t->n_physical;
        b->map.table = table;
    } else {
        assert_string_equal(algorithm, "static");
        take_static(b, m, layer);
    }
}

/* Weights 1, 2, .. for routed columns, the vector's own for shared ones. */
static inline void take_ids(struct batch *b, const json_t *c)
{
    int32_t *ids = vectors_i32(json_object_get(c, "ids"), NULL);
    float shared =
        (float)json_number_value(json_object_get(c, "shared_weight"));

    b->n_tokens = (uint32_t)json_array_size(json_object_get(c, "ids"));
    b->n_valid = vectors_u32(c, "non_padded");
    b->top_k =
        (uint32_t)json_array_size(json_array_get(json_object_get(c, "ids"), 0));
    b->ids = guarded((size_t)b->n_tokens * n_cols(b) * sizeof(int32_t));
    b->weights = guarded((size_t)b->n_tokens * n_cols(b) * sizeof(float));
    for (uint32_t i = 0; i < b->n_tokens * n_cols(b); i++) {
        uint32_t t = i / n_cols(b), col = i % n_cols(b);

        if (col < b->top_k)
            b->ids[i] = ids[t * b->top_k + col];
        b->weights[i] = col < b->top_k ? (float)(i + 1) : shared;
    }
    free(ids);
}

/* ------------------------------------------------------ random batches */

/* Every expert has a slot, the rest are replicas of any. */
static inline void random_candidates(uint64_t *seed, struct batch *b)
{
    uint32_t n_experts = b->map.n_experts;
    uint32_t n_physical = b->map.topology.n_physical;
    uint32_t *owner = calloc(n_physical, sizeof(*owner)), n = 0;
    uint32_t *first = guarded((n_experts + 1) * sizeof(*first));
    uint32_t *cand = guarded(n_physical * sizeof(*cand));
    uint32_t *table = guarded(n_experts * sizeof(*table));
    /* Now and then one expert has nearly all replicas. */
    uint32_t spread = random_below(seed, 4) ? n_experts : 1;

    assert_non_null(owner);
    for (uint32_t p = 0; p < n_physical; p++)
        owner[p] = p < n_experts ? p : random_below(seed, spread);
    for (uint32_t e = 0; e < n_experts; e++) {
        first[e] = n;
        for (uint32_t p = 0; p < n_physical; p++)
            if (owner[p] == e)
                cand[n++] = p;
        table[e] = cand[first[e] + random_below(seed, n - first[e])];
    }
    first[n_experts] = n;
    b->map.cand_first = first;
    b->map.cand = cand;
    b->map.table = table;
    free(owner);
}

static inline void random_waterfill(uint64_t *seed, struct batch *b)
{
    uint32_t n_ranks = b->map.topology.n_ranks;
    uint64_t *routed = guarded(n_ranks * sizeof(*routed));
    uint64_t *tokens = guarded(n_ranks * sizeof(*tokens));

    b->waterfill.mode = (moec_waterfill_mode)random_below(seed, 3);
    if (b->map.topology.shared_global)
        b->waterfill.mode = MOEC_WATERFILL_OFF;
    b->waterfill.by_rank = random_below(seed, 2);
    for (uint32_t r = 0; r < n_ranks; r++) {
        routed[r] = random_below(seed, 3) * random_below(seed, 400);
        tokens[r] = random_below(seed, 100);
    }
    b->waterfill.routed = routed;
    b->waterfill.tokens = tokens;
    if (b->waterfill.mode != MOEC_WATERFILL_OFF)
        b->map.row0 = 0; /* moec_waterfill_ranks counts rows from 0 */
}

static inline void random_ids(uint64_t *seed, struct batch *b)
{
    size_t n = (size_t)b->n_tokens * n_cols(b);
    uint32_t n_ids = b->map.n_experts + b->n_zero;

    b->ids = guarded(n * sizeof(int32_t));
    b->weights = guarded(n * sizeof(float));
    for (uint32_t t = 0; t < b->n_tokens; t++) {
        uint32_t kind = random_below(seed, 8);

        for (uint32_t c = 0; c < b->top_k; c++) {
            size_t at = (size_t)t * n_cols(b) + c;

            b->ids[at] = (int32_t)random_below(seed, n_ids);
            if (kind == 0 || (kind < 3 && random_below(seed, 2)))
                b->ids[at] = -1 - (int32_t)random_below(seed, 300);
            else if (kind == 3 && b->n_zero)
                b->ids[at] =
                    (int32_t)(b->map.n_experts + random_below(seed, b->n_zero));
        }
    }
    for (size_t i = 0; i < n; i++)
        b->weights[i] = 0.25f + 0.5f * (float)random_below(seed, 1000);
}

static inline void random_batch(uint64_t *seed, struct batch *b,
                                uint32_t n_tokens)
{
    static const uint32_t ranks[] = {1, 2, 3, 8, 12, 64, 200, 1024};
    moec_topology *t = &b->map.topology;

    memset(b, 0, sizeof(*b));
    b->map.struct_bytes = sizeof(b->map);
    t->n_ranks = ranks[random_below(seed, 8)];
    t->n_local = 1 + random_below(seed, t->n_ranks > 100 ? 2 : 40);
    t->n_physical = t->n_ranks * t->n_local;
    t->n_shared_slots = random_below(seed, 5);
    t->shared_global = random_below(seed, 4) == 0;
    b->map.n_experts = 1 + random_below(seed, t->n_physical);
    b->map.rule = (moec_replica_rule)random_below(seed, 4);
    b->map.rank = random_below(seed, t->n_ranks);
    b->map.layer = random_below(seed, 61);
    b->map.row0 = random_below(seed, 2) * random_below(seed, 1u << 31);
    b->n_tokens = n_tokens;
    b->n_valid = n_tokens ? n_tokens - random_below(seed, n_tokens / 4 + 1) : 0;
    b->top_k = 1 + random_below(seed, random_below(seed, 4) ? 10 : 64);
    b->n_zero = random_below(seed, 3) == 0 ? 1 + random_below(seed, 9) : 0;
    random_candidates(seed, b);
    random_ids(seed, b);
    random_waterfill(seed, b);
    alloc_outputs(b);
}

#endif
