/* SPDX-License-Identifier: Apache-2.0
 *
 * From logical ids to slots: the vectors' chains, and every combination of
 * rule, topology and waterfill against the rule written down once more.
 * Outputs are poisoned and end at guard pages. */

#include "vectors.h"

#include <moec/kernels.h>

#include "base/base.h"
#include "guarded.h"

static moec_kernels *open_kernels(moec_isa isa, uint32_t n_threads)
{
    moec_kernels_opts o = MOEC_KERNELS_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    moec_kernels *k = NULL;

    o.isa = isa;
    o.n_threads = n_threads;
    if (moec_kernels_open(&k, &o, &err) != MOEC_OK)
        return NULL; /* this CPU lacks it */
    return k;
}

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

static uint32_t n_cols(const struct batch *b)
{
    return b->top_k + b->map.topology.n_shared_slots;
}

static void alloc_outputs(struct batch *b)
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

static moec_status dispatch(const moec_kernels *k, const struct batch *b,
                            moec_error *err)
{
    uint64_t bytes = moec_dispatch_workspace_bytes(k, &b->map, b->n_tokens);
    unsigned char *ws = guarded(bytes);

    assert_int_equal(bytes % 64, 0);
    return moec_dispatch(k, &b->map, &b->waterfill, b->ids, b->weights,
                         b->n_tokens, b->n_valid, b->top_k, &b->out, ws, bytes,
                         err);
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
static void take_candidates(struct batch *b, const json_t *m, uint32_t layer)
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

static void take_static(struct batch *b, const json_t *m, uint32_t layer)
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

static void take_map(struct batch *b, const json_t *c, const json_t *m)
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
static void take_ids(struct batch *b, const json_t *c)
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

static void check_chain(const moec_kernels *k, const json_t *root,
                        const json_t *c)
{
    int32_t *want = vectors_i32(json_object_get(c, "out"), NULL);
    moec_error err = MOEC_ERROR_INIT;
    struct batch b = {0};

    take_map(&b, c, find_map(root, vectors_text(c, "map")));
    take_ids(&b, c);
    alloc_outputs(&b);
    if (dispatch(k, &b, &err) != MOEC_OK)
        fail_msg("%s: %s", vectors_text(c, "id"), err.text);
    for (uint32_t i = 0; i < b.n_tokens * n_cols(&b); i++) {
        if (b.out.slots[i] != want[i])
            fail_msg("%s: row %u, column %u: slot %d, not %d",
                     vectors_text(c, "id"), i / n_cols(&b), i % n_cols(&b),
                     b.out.slots[i], want[i]);
        assert_true(b.out.weights[i] == (want[i] < 0 ? 0.0f : b.weights[i]));
    }
    free((void *)(uintptr_t)b.map.table);
    free(want);
}

static void agrees_with_every_chain(void **state)
{
    moec_kernels *k = open_kernels(MOEC_ISA_AUTO, 1);
    json_t *root = vectors_load("dispatch.json"), *c;
    size_t i;

    (void)state;
    json_array_foreach (json_object_get(root, "chains"), i, c)
        check_chain(k, root, c);
    assert_true(i >= 36);
    guarded_free_all();
    json_decref(root);
    moec_kernels_close(k);
}

/* SGLang PR 25367: E where P is meant gives 271 and 131 here. */
static void known_answer_of_the_shared_slot_defect(void **state)
{
    moec_kernels *k = open_kernels(MOEC_ISA_AUTO, 1);
    moec_error err = MOEC_ERROR_INIT;
    int32_t ids[] = {0, 33, 263, 12345};
    float weights[] = {1, 2, 3, 4};
    uint32_t table[264];
    struct batch b = {.ids = ids, .weights = weights};

    (void)state;
    for (uint32_t p = 0; p < 264; p++)
        table[p] = p;
    b.map = (moec_dispatch_map){.struct_bytes = sizeof(b.map),
                                .topology = {264, 8, 33, 1, 0},
                                .n_experts = 264,
                                .rank = 3,
                                .table = table};
    b.n_tokens = b.n_valid = 1;
    b.top_k = 3;
    alloc_outputs(&b);
    assert_int_equal(dispatch(k, &b, &err), MOEC_OK);
    assert_int_equal(b.out.slots[0], 0);
    assert_int_equal(b.out.slots[1], 34);
    assert_int_equal(b.out.slots[2], 270);
    assert_int_equal(b.out.slots[3], 135);
    assert_true(b.out.weights[3] == 4.0f);
    guarded_free_all();
    moec_kernels_close(k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_every_chain),
        cmocka_unit_test(known_answer_of_the_shared_slot_defect),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
