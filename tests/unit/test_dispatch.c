/* SPDX-License-Identifier: Apache-2.0
 *
 * From logical ids to slots: the vectors' chains, and every combination of
 * rule, topology and waterfill against the rule written down once more.
 * Outputs are poisoned and end at guard pages. */

#include "vectors.h"

#include <moec/kernels.h>

#include "base/base.h"
#include "dispatch_batch.h"
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

/* -------------------------------------------------- the rule, once more */

static uint32_t physical_of(const struct batch *b, uint32_t t, uint32_t e)
{
    const moec_dispatch_map *m = &b->map;
    uint64_t row = (uint64_t)m->row0 + t;
    uint32_t n;

    if (m->rule == MOEC_REPLICA_TABLE)
        return m->table[e];
    if (m->rule != MOEC_REPLICA_ROW)
        row += m->layer;
    if (m->rule == MOEC_REPLICA_ROW_RANK_LAYER)
        row += m->rank;
    n = m->cand_first[e + 1] - m->cand_first[e];
    return m->cand[m->cand_first[e] + row % n];
}

/* Physical ids of the slots. */
static int32_t *visited_ids(const struct batch *b, const int32_t *slots)
{
    uint32_t width = b->map.topology.n_local + b->map.topology.n_shared_slots;
    size_t n = (size_t)b->n_tokens * b->top_k;
    int32_t *ids = calloc(n + 1, sizeof(*ids));

    assert_non_null(ids);
    for (size_t i = 0; i < n; i++) {
        int32_t q = slots[i / b->top_k * n_cols(b) + i % b->top_k];

        ids[i] = q < 0
                     ? -1
                     : (int32_t)((uint32_t)q / width * b->map.topology.n_local +
                                 (uint32_t)q % width);
    }
    return ids;
}

static void waterfill_ranks(const struct batch *b, const int32_t *ids,
                            int32_t *best)
{
    moec_error err = MOEC_ERROR_INIT;

    if (moec_waterfill_ranks(&b->map.topology, &b->waterfill, b->map.rank, ids,
                             b->n_tokens, b->top_k, best, NULL, NULL,
                             &err) != MOEC_OK)
        fail_msg("%s", err.text);
}

/* Rank of the shared columns of every row that moec_waterfill_ranks can say.
 * It knows no zero experts: a row of nothing else is asked for in a second
 * call, in which it has an id that changes neither loads nor candidates. */
static void oracle_ranks(const struct batch *b, const int32_t *slots,
                         int32_t *best)
{
    bool is_static = b->waterfill.mode == MOEC_WATERFILL_STATIC;
    int32_t *ids = visited_ids(b, slots), *with, *again;
    size_t n = (size_t)b->n_tokens * b->top_k, from = 0;

    with = calloc(n + 1, sizeof(*with));
    again = calloc(b->n_tokens + 1, sizeof(*again));
    assert_non_null(with);
    assert_non_null(again);
    waterfill_ranks(b, ids, best);
    for (size_t i = 0; i < n; i++) {
        with[i] = -1;
        if (i % b->top_k != 0 || best[i / b->top_k] >= 0)
            continue;
        while (from < n && ids[from] < 0)
            from++;
        with[i] = is_static ? from < n ? ids[from++] : -1
                            : (int32_t)(b->map.rank * b->map.topology.n_local);
    }
    for (size_t i = 0; is_static && i < n; i++) /* the loads stay equal */
        if (with[i] < 0 && from < n)
            with[i] = ids[from++];
    waterfill_ranks(b, with, again);
    for (uint32_t t = 0; t < b->n_tokens; t++) {
        if (best[t] < 0)
            best[t] = again[t];
        if (best[t] < 0)
            best[t] = (int32_t)b->map.rank;
    }
    free(ids);
    free(with);
    free(again);
}

/* What the batch must give. */
static void oracle_routed(const struct batch *b, moec_dispatch_out *want)
{
    const moec_topology *topo = &b->map.topology;

    for (uint32_t t = 0; t < b->n_tokens; t++) {
        bool any = false;

        want->identity[t] = 0.0f;
        for (uint32_t c = 0; c < n_cols(b); c++) {
            size_t at = (size_t)t * n_cols(b) + c;
            int32_t id = b->ids[at];

            want->slots[at] = -1;
            want->weights[at] = 0.0f;
            if (t >= b->n_valid)
                continue;
            if (c >= b->top_k) {
                if (any)
                    want->weights[at] = b->weights[at];
                want->slots[at] = any ? 0 : -1;
            } else if (id >= (int32_t)b->map.n_experts) {
                want->identity[t] += b->weights[at];
                any = true;
            } else if (id >= 0) {
                moec_physical_id p = {physical_of(b, t, (uint32_t)id)};

                want->slots[at] = (int32_t)moec_physical_slot(*topo, p).v;
                want->weights[at] = b->weights[at];
                any = true;
            }
        }
    }
}

static void oracle(const struct batch *b, moec_dispatch_out *want)
{
    const moec_topology *topo = &b->map.topology;
    int32_t *best = calloc(b->n_tokens + 1, sizeof(*best));
    uint32_t width = topo->n_local + topo->n_shared_slots;

    assert_non_null(best);
    memset(want->slot_counts, 0, b->n_slots * sizeof(uint32_t));
    memset(want->rank_counts, 0, topo->n_ranks * sizeof(uint32_t));
    oracle_routed(b, want);
    for (uint32_t t = 0; t < b->n_tokens; t++)
        best[t] = (int32_t)b->map.rank;
    if (b->waterfill.mode != MOEC_WATERFILL_OFF)
        oracle_ranks(b, want->slots, best);
    for (uint32_t t = 0; t < b->n_tokens; t++)
        for (uint32_t c = 0; c < n_cols(b); c++) {
            int32_t *q = &want->slots[(size_t)t * n_cols(b) + c];
            uint32_t rank;

            if (*q < 0)
                continue;
            if (c >= b->top_k)
                *q = (int32_t)moec_shared_slot(*topo, (uint32_t)best[t],
                                               c - b->top_k)
                         .v;
            rank = topo->shared_global ? (uint32_t)*q / topo->n_local
                                       : (uint32_t)*q / width;
            if (c >= b->top_k && topo->shared_global)
                rank = b->map.rank;
            want->slot_counts[*q]++;
            want->rank_counts[rank]++;
        }
    free(best);
}

/* ------------------------------------------------------ random batches */

static void assert_as_wanted(const struct batch *b,
                             const moec_dispatch_out *want)
{
    size_t n = (size_t)b->n_tokens * n_cols(b);

    for (size_t i = 0; i < n; i++)
        if (b->out.slots[i] != want->slots[i])
            fail_msg("row %zu of %u, column %zu of %u: slot %d, not %d "
                     "(rule %d, waterfill %d)",
                     i / n_cols(b), b->n_tokens, i % n_cols(b), n_cols(b),
                     b->out.slots[i], want->slots[i], (int)b->map.rule,
                     (int)b->waterfill.mode);
    assert_memory_equal(b->out.weights, want->weights, n * sizeof(float));
    if (b->n_zero)
        assert_memory_equal(b->out.identity, want->identity,
                            b->n_tokens * sizeof(float));
    assert_memory_equal(b->out.slot_counts, want->slot_counts,
                        b->n_slots * sizeof(uint32_t));
    assert_memory_equal(b->out.rank_counts, want->rank_counts,
                        b->map.topology.n_ranks * sizeof(uint32_t));
}

/* The oracle's own outputs. */
static moec_dispatch_out wanted(const struct batch *b)
{
    struct batch own = *b;

    own.n_zero = 1;
    alloc_outputs(&own);
    oracle(b, &own.out);
    return own.out;
}

static void agrees_with_the_rule(void **state)
{
    static const uint32_t sizes[] = {0, 1, 2, 7, 63, 64, 65, 130};
    moec_kernels *k = open_kernels(MOEC_ISA_AUTO, 1);
    uint64_t seed = 7;

    (void)state;
    for (int turn = 0; turn < 400; turn++) {
        moec_error err = MOEC_ERROR_INIT;
        struct batch b;
        moec_dispatch_out want;

        random_batch(&seed, &b, sizes[turn % 8]);
        want = wanted(&b);
        if (dispatch(k, &b, &err) != MOEC_OK)
            fail_msg("%s", err.text);
        assert_as_wanted(&b, &want);
        guarded_free_all();
    }
    moec_kernels_close(k);
}

static void threads_and_back_ends_change_nothing(void **state)
{
    uint64_t seed = 8;

    (void)state;
    for (int isa = MOEC_ISA_SCALAR; isa <= MOEC_ISA_AVX512; isa++) {
        moec_kernels *k = open_kernels((moec_isa)isa, 3);

        for (int turn = 0; k && turn < 5; turn++) {
            moec_error err = MOEC_ERROR_INIT;
            struct batch b;
            moec_dispatch_out want;

            random_batch(&seed, &b, 3800 + random_below(&seed, 2000));
            want = wanted(&b);
            if (dispatch(k, &b, &err) != MOEC_OK)
                fail_msg("%s", err.text);
            assert_as_wanted(&b, &want);
            guarded_free_all();
        }
        moec_kernels_close(k);
    }
}

static void works_in_place(void **state)
{
    moec_kernels *k = open_kernels(MOEC_ISA_AUTO, 1);
    uint64_t seed = 9;

    (void)state;
    for (int turn = 0; turn < 50; turn++) {
        moec_error err = MOEC_ERROR_INIT;
        struct batch b;
        moec_dispatch_out want;

        random_batch(&seed, &b, 100);
        want = wanted(&b);
        b.out.slots = b.ids;
        b.out.weights = b.weights;
        assert_int_equal(dispatch(k, &b, &err), MOEC_OK);
        assert_as_wanted(&b, &want);
        guarded_free_all();
    }
    moec_kernels_close(k);
}

static void row0_continues_a_batch(void **state)
{
    moec_kernels *k = open_kernels(MOEC_ISA_AUTO, 1);
    uint64_t seed = 10;

    (void)state;
    for (int turn = 0; turn < 50; turn++) {
        uint32_t cut = random_below(&seed, 101);
        moec_error err = MOEC_ERROR_INIT;
        moec_dispatch_out want;
        struct batch b, rest;

        random_batch(&seed, &b, 100);
        b.n_valid = 100;
        b.waterfill.mode = MOEC_WATERFILL_OFF;
        want = wanted(&b);
        rest = b;
        b.n_tokens = b.n_valid = cut;
        rest.n_tokens = rest.n_valid = 100 - cut;
        rest.map.row0 += cut;
        rest.ids += (size_t)cut * n_cols(&b);
        rest.weights += (size_t)cut * n_cols(&b);
        rest.out.slots += (size_t)cut * n_cols(&b);
        rest.out.weights += (size_t)cut * n_cols(&b);
        rest.out.identity = b.n_zero ? rest.out.identity + cut : NULL;
        assert_int_equal(dispatch(k, &b, &err), MOEC_OK);
        assert_int_equal(dispatch(k, &rest, &err), MOEC_OK);
        assert_memory_equal(b.out.slots, want.slots,
                            (size_t)100 * n_cols(&b) * sizeof(int32_t));
        guarded_free_all();
    }
    moec_kernels_close(k);
}

static void counts_and_waterfill_are_optional(void **state)
{
    moec_kernels *k = open_kernels(MOEC_ISA_AUTO, 1);
    moec_error err = MOEC_ERROR_INIT;
    uint64_t seed = 11;
    struct batch b;
    moec_dispatch_out want;

    (void)state;
    random_batch(&seed, &b, 100);
    b.waterfill.mode = MOEC_WATERFILL_OFF;
    want = wanted(&b);
    b.out.slot_counts = NULL;
    b.out.rank_counts = NULL;
    assert_int_equal(moec_dispatch(k, &b.map, NULL, b.ids, b.weights,
                                   b.n_tokens, b.n_valid, b.top_k, &b.out, NULL,
                                   0, &err),
                     MOEC_OK);
    assert_memory_equal(b.out.slots, want.slots,
                        (size_t)100 * n_cols(&b) * sizeof(int32_t));
    guarded_free_all();
    moec_kernels_close(k);
}

/* ------------------------------------------------------------ refusals */

static void assert_text(const moec_error *err, const char *want)
{
    if (!strstr(err->text, want))
        fail_msg("'%s' is not in: %s", want, err->text);
}

/* A plain batch: 8 experts, 4 ranks of 3, K 2, S 1. */
static void plain_batch(struct batch *b, uint32_t n_tokens)
{
    uint32_t *table = guarded(8 * sizeof(*table));
    uint32_t *first = guarded(9 * sizeof(*first));

    memset(b, 0, sizeof(*b));
    for (uint32_t e = 0; e < 9; e++) {
        if (e < 8)
            table[e] = e;
        first[e] = e;
    }
    b->map = (moec_dispatch_map){.struct_bytes = sizeof(b->map),
                                 .topology = {12, 4, 3, 1, 0},
                                 .n_experts = 8,
                                 .table = table,
                                 .cand_first = first,
                                 .cand = table};
    b->top_k = 2;
    b->n_tokens = b->n_valid = n_tokens;
    b->ids = guarded(n_tokens * 3 * sizeof(int32_t));
    b->weights = guarded(n_tokens * 3 * sizeof(float));
    for (uint32_t i = 0; i < n_tokens * 3; i++) {
        b->ids[i] = (int32_t)(i % 8);
        b->weights[i] = 1.0f;
    }
    alloc_outputs(b);
}

static void names_the_first_bad_id_whatever_the_threads(void **state)
{
    moec_kernels *k = open_kernels(MOEC_ISA_AUTO, 3);
    struct batch b;

    (void)state;
    for (int turn = 0; turn < 20; turn++) {
        moec_error err = MOEC_ERROR_INIT;

        plain_batch(&b, 5000);
        b.ids[3 * 3990] = 8;
        b.ids[3 * 1700 + 1] = 9;
        b.ids[3 * 1700 + 2] = 77; /* a shared column: not read */
        b.ids[3 * 2000] = INT32_MAX;
        assert_int_equal(dispatch(k, &b, &err), MOEC_E_ARG);
        assert_text(&err, "row 1700, column 1: id 9");
        b.n_valid = 1700; /* rows behind are not looked at */
        assert_int_equal(dispatch(k, &b, &err), MOEC_OK);
        guarded_free_all();
    }
    moec_kernels_close(k);
}

/* A bad id in the last row of the first item, and one in the first row of the
 * second, which is found long before. */
static void names_the_first_of_two_that_race(void **state)
{
    moec_kernels *k = open_kernels(MOEC_ISA_AUTO, 3);
    struct batch b;
    uint64_t bytes;
    void *ws;

    (void)state;
    plain_batch(&b, 5000);
    for (uint32_t t = 0; t < 511; t++)
        b.ids[3 * t] = -1; /* the long way */
    b.ids[3 * 511 + 1] = 10;
    b.ids[3 * 512] = 11;
    bytes = moec_dispatch_workspace_bytes(k, &b.map, b.n_tokens);
    ws = guarded(bytes);
    for (int turn = 0; turn < 300; turn++) {
        moec_error err = MOEC_ERROR_INIT;

        assert_int_equal(moec_dispatch(k, &b.map, NULL, b.ids, b.weights,
                                       b.n_tokens, b.n_valid, b.top_k, &b.out,
                                       ws, bytes, &err),
                         MOEC_E_ARG);
        assert_text(&err, "row 511, column 1: id 10");
    }
    guarded_free_all();
    moec_kernels_close(k);
}

static void refuses_experts_without_a_slot(void **state)
{
    moec_kernels *k = open_kernels(MOEC_ISA_AUTO, 1);
    static const uint32_t plain[9] = {0, 1, 2, 3, 3, 5, 6, 7, 8};
    uint32_t first[9], cand[9];

    (void)state;
    for (uint32_t i = 0; i < 10; i++) {
        uint32_t turn = i % 5, n_tokens = i < 5 ? 1 : 64; /* by tables too */
        moec_error err = MOEC_ERROR_INIT;
        struct batch b;

        plain_batch(&b, n_tokens);
        memcpy(first, plain, sizeof(first));
        memset(cand, 0, sizeof(cand));
        b.ids[0] = 1;
        b.ids[1] = 3;
        if (turn == 0) { /* a slot past the last */
            ((uint32_t *)(uintptr_t)b.map.table)[3] = 12;
        } else {
            b.map.rule = MOEC_REPLICA_ROW;
            b.map.cand_first = first;
            b.map.cand = cand;
        }
        if (turn == 2) { /* a list past the last */
            first[3] = 2;
            first[4] = 100;
        } else if (turn == 3) { /* a list that ends before it begins */
            first[3] = 4;
            first[4] = 3;
        } else if (turn == 4) {
            first[3] = 3;
            first[4] = 4;
            cand[3] = UINT32_MAX;
        }
        assert_int_equal(dispatch(k, &b, &err), MOEC_E_ARG);
        assert_text(&err, "row 0, column 1: the map has no physical slot below "
                          "12 for expert 3");
        guarded_free_all();
    }
    moec_kernels_close(k);
}

static void refuses_what_does_not_fit(void **state)
{
    static const char *const texts[] = {
        "12 physical slots are not 4 ranks of 2",
        "rank 4 of 4",
        "13 experts in 12 physical slots",
        "0 experts",
        "top_k 0",
        "top_k 65",
        "no table",
        "no candidates",
        "past 2^32",
        "no such rule",
        "global",
        "4 valid rows of 3",
        "struct_bytes 8",
        "workspace of",
        "ids is NULL",
        "out.weights is NULL",
        "waterfill: mode 9",
    };
    moec_kernels *k = open_kernels(MOEC_ISA_AUTO, 1);
    const size_t n = sizeof(texts) / sizeof(texts[0]);
    unsigned char *ws = guarded(4096);

    (void)state;
    for (size_t i = 0; i < n; i++) {
        moec_error err = MOEC_ERROR_INIT;
        struct batch b;
        moec_status st;

        plain_batch(&b, 3);
        b.map.topology.n_local = i == 0 ? 2 : 3;
        b.map.rank = i == 1 ? 4 : 0;
        b.map.n_experts = i == 2 ? 13 : i == 3 ? 0 : 8;
        b.top_k = i == 4 ? 0 : i == 5 ? 65 : 2;
        b.map.table = i == 6 ? NULL : b.map.table;
        b.map.rule = i == 7   ? MOEC_REPLICA_ROW_LAYER
                     : i == 8 ? MOEC_REPLICA_ROW
                     : i == 9 ? (moec_replica_rule)4
                              : MOEC_REPLICA_TABLE;
        b.map.cand = i == 7 ? NULL : b.map.cand;
        b.map.row0 = i == 8 ? UINT32_MAX - 2 : 0;
        b.map.topology.shared_global = i == 10;
        b.waterfill.mode = i == 10   ? MOEC_WATERFILL_STATIC
                           : i == 16 ? (moec_waterfill_mode)9
                                     : MOEC_WATERFILL_OFF;
        b.n_valid = i == 11 ? 4 : 3;
        b.map.struct_bytes = i == 12 ? 8 : sizeof(b.map);
        b.ids = i == 14 ? NULL : b.ids;
        b.out.weights = i == 15 ? NULL : b.out.weights;
        st = moec_dispatch(k, &b.map, &b.waterfill, b.ids, b.weights,
                           b.n_tokens, b.n_valid, b.top_k, &b.out, ws,
                           i == 13 ? 4 : 4096, &err);
        assert_int_equal(st, i == 10 ? MOEC_E_UNSUPPORTED : MOEC_E_ARG);
        assert_text(&err, texts[i]);
    }
    guarded_free_all();
    moec_kernels_close(k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_every_chain),
        cmocka_unit_test(known_answer_of_the_shared_slot_defect),
        cmocka_unit_test(agrees_with_the_rule),
        cmocka_unit_test(threads_and_back_ends_change_nothing),
        cmocka_unit_test(works_in_place),
        cmocka_unit_test(row0_continues_a_batch),
        cmocka_unit_test(counts_and_waterfill_are_optional),
        cmocka_unit_test(names_the_first_bad_id_whatever_the_threads),
        cmocka_unit_test(names_the_first_of_two_that_race),
        cmocka_unit_test(refuses_experts_without_a_slot),
        cmocka_unit_test(refuses_what_does_not_fit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
