/* SPDX-License-Identifier: Apache-2.0
 *
 * Dispatch on a device: the vectors' chains, waterfill's vectors, and random
 * batches of every rule, topology and waterfill against the CPU bit for bit,
 * alone and fused with the choice. With the argument "long" the random part
 * runs for minutes (the target device-dispatch-long). */

#include "vectors.h"

#include <moec/moec.h>

#include "device_route.h"
#include "dispatch_batch.h"
#include "guarded.h"

static moec_device *device;
static moec_kernels *cpu;
static bool is_long;

static int open_both(void **state)
{
    (void)state;
    return test_open_both(&device, &cpu, MOEC_ISA_SCALAR);
}

static int close_both(void **state)
{
    (void)state;
    moec_device_close(device);
    moec_kernels_close(cpu);
    return 0;
}

/* How the same batch may be asked for. */
struct how {
    bool in_place, n_valid_on_device, no_counts;
};

/* b->out on the device, brought back. */
static void on_the_device(const struct batch *b, struct how how)
{
    size_t n = (size_t)b->n_tokens * n_cols(b) * 4, T = b->n_tokens;
    uint32_t n_ranks = b->map.topology.n_ranks;
    moec_dispatch_map map = map_on_device(device, &b->map);
    moec_waterfill w = waterfill_on_device(device, &b->waterfill, n_ranks);
    int32_t *ids = on_device(device, b->ids, n);
    float *weights = on_device(device, b->weights, n);
    moec_dispatch_out out = {.struct_bytes = sizeof(out)};
    moec_launch l = MOEC_LAUNCH_INIT;
    moec_error err = MOEC_ERROR_INIT;
    uint32_t n_valid = b->n_valid;

    out.slots = how.in_place ? ids : on_device(device, NULL, n);
    out.weights = how.in_place ? weights : on_device(device, NULL, n);
    if (b->out.identity)
        out.identity = on_device(device, NULL, T * 4);
    if (!how.no_counts) {
        out.slot_counts = on_device(device, NULL, b->n_slots * 4);
        out.rank_counts = on_device(device, NULL, n_ranks * 4);
    }
    if (how.n_valid_on_device) {
        l.n_valid = on_device(device, &n_valid, 4);
        n_valid = 0;
    }
    l.workspace_bytes =
        moec_device_dispatch_workspace_bytes(device, &b->map, b->n_tokens);
    l.workspace = on_device(device, NULL, l.workspace_bytes);
    if (moec_device_dispatch(device, &map, &w, ids, weights, b->n_tokens,
                             n_valid, b->top_k, &out, &l, &err) != MOEC_OK ||
        moec_device_wait(device, NULL, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    test_from_device(device, b->out.slots, out.slots, n);
    test_from_device(device, b->out.weights, out.weights, n);
    if (b->out.identity)
        test_from_device(device, b->out.identity, out.identity, T * 4);
    if (!how.no_counts) {
        test_from_device(device, b->out.slot_counts, out.slot_counts,
                         b->n_slots * 4);
        test_from_device(device, b->out.rank_counts, out.rank_counts,
                         n_ranks * 4);
    }
    device_free_all(device);
}

static void on_the_cpu(const struct batch *b)
{
    uint64_t bytes = moec_dispatch_workspace_bytes(cpu, &b->map, b->n_tokens);
    moec_error err = MOEC_ERROR_INIT;

    if (moec_dispatch(cpu, &b->map, &b->waterfill, b->ids, b->weights,
                      b->n_tokens, b->n_valid, b->top_k, &b->out,
                      guarded(bytes), bytes, &err) != MOEC_OK)
        fail_msg("%s", err.text);
}

static void check_batch(const struct batch *b, struct how how)
{
    size_t n = (size_t)b->n_tokens * n_cols(b);
    struct batch want = *b;

    alloc_outputs(&want);
    on_the_cpu(&want);
    on_the_device(b, how);
    result_same("slot", b->out.slots, want.out.slots, n);
    result_same("weight", b->out.weights, want.out.weights, n);
    if (b->out.identity)
        result_same("identity", b->out.identity, want.out.identity,
                    b->n_tokens);
    if (how.no_counts)
        return;
    result_same("slot count", b->out.slot_counts, want.out.slot_counts,
                b->n_slots);
    result_same("rank count", b->out.rank_counts, want.out.rank_counts,
                b->map.topology.n_ranks);
}

/* ------------------------------------------------------------- vectors */

static void agrees_with_every_chain(void **state)
{
    json_t *root = vectors_load("dispatch.json"), *c;
    size_t i;

    (void)state;
    json_array_foreach (json_object_get(root, "chains"), i, c) {
        int32_t *want = vectors_i32(json_object_get(c, "out"), NULL);
        struct batch b = {0};

        take_map(&b, c, find_map(root, vectors_text(c, "map")));
        take_ids(&b, c);
        alloc_outputs(&b);
        check_batch(&b, (struct how){.in_place = i % 2 != 0});
        result_same(vectors_text(c, "id"), b.out.slots, want,
                    (size_t)b.n_tokens * n_cols(&b));
        free((void *)(uintptr_t)b.map.table);
        free(want);
    }
    assert_true(i >= 36);
    guarded_free_all();
    json_decref(root);
}

/* Physical ids, dispatched by the identity, as one rank sees them. */
static void check_fill(const json_t *c, uint32_t rank, const json_t *rows,
                       const json_t *want, const moec_waterfill *w)
{
    size_t n, n_tokens = json_array_size(rows);
    int32_t *ids = vectors_i32(rows, &n), *best = vectors_i32(want, NULL);
    uint32_t S = json_object_get(c, "S") ? vectors_u32(c, "S") : 1;
    struct batch b = {.waterfill = *w};
    moec_topology *t = &b.map.topology;
    uint32_t *table;

    b.map.struct_bytes = sizeof(b.map);
    b.map.rank = rank;
    t->n_ranks = vectors_u32(c, "W");
    t->n_physical = b.map.n_experts = vectors_u32(c, "P");
    t->n_local = t->n_physical / t->n_ranks;
    t->n_shared_slots = S;
    table = guarded(t->n_physical * sizeof(*table));
    for (uint32_t p = 0; p < t->n_physical; p++)
        table[p] = p;
    b.map.table = table;
    b.n_tokens = b.n_valid = (uint32_t)n_tokens;
    b.top_k = vectors_u32(c, "K");
    b.ids = guarded(n_tokens * n_cols(&b) * 4);
    b.weights = guarded(n_tokens * n_cols(&b) * 4);
    memset(b.weights, 0, n_tokens * n_cols(&b) * 4);
    for (size_t i = 0; i < n; i++)
        b.ids[i / b.top_k * n_cols(&b) + i % b.top_k] = ids[i];
    alloc_outputs(&b);
    check_batch(&b, (struct how){0});
    for (size_t i = 0; i < n_tokens; i++) {
        int32_t q = b.out.slots[i * n_cols(&b) + b.top_k];
        int32_t width = (int32_t)(t->n_local + S);

        assert_int_equal(
            q, best[i] < 0 ? -1 : best[i] * width + (int32_t)t->n_local);
    }
    free(ids);
    free(best);
    guarded_free_all();
}

static uint64_t *wide(const json_t *v)
{
    size_t n;
    int32_t *small = vectors_i32(v, &n);
    uint64_t *out = calloc(n + 1, sizeof(*out));

    assert_non_null(out);
    for (size_t i = 0; i < n; i++)
        out[i] = (uint64_t)small[i];
    free(small);
    return out;
}

static void check_dynamic(const json_t *c)
{
    const json_t *by_rank = json_object_get(c, "best_rank_order");
    const json_t *by_column = json_object_get(c, "best");
    uint64_t *routed = wide(json_object_get(c, "routed"));
    uint64_t *tokens = wide(json_object_get(c, "tokens"));
    moec_waterfill w = {
        .mode = MOEC_WATERFILL_DYNAMIC, .routed = routed, .tokens = tokens};

    for (uint32_t r = 0; r < vectors_u32(c, "W"); r++) {
        w.by_rank = r % 2;
        check_fill(
            c, r, json_array_get(json_object_get(c, "ids"), r),
            json_array_get(w.by_rank && by_rank ? by_rank : by_column, r), &w);
    }
    free(routed);
    free(tokens);
}

static void agrees_with_every_waterfill(void **state)
{
    moec_waterfill fixed = {.mode = MOEC_WATERFILL_STATIC};
    json_t *root = vectors_load("waterfill.json"), *c;
    size_t i;

    (void)state;
    json_array_foreach (json_object_get(root, "cases"), i, c) {
        if (strcmp(vectors_text(c, "mode"), "dynamic") == 0)
            check_dynamic(c);
        else
            check_fill(c, vectors_u32(c, "rank"), json_object_get(c, "ids"),
                       json_object_get(c, "best"), &fixed);
    }
    assert_true(i > 10);
    json_decref(root);
}

/* ------------------------------------------------------------- random */

static void agrees_with_the_cpu(void **state)
{
    static const uint32_t sizes[] = {0, 1, 2, 63, 64, 65, 130, 300};
    uint64_t seed = 1;

    (void)state;
    for (uint32_t turn = 0; turn < (is_long ? 20000u : 40u); turn++) {
        struct batch b;
        struct how how = {random_below(&seed, 2) != 0,
                          random_below(&seed, 2) != 0,
                          random_below(&seed, 4) == 0};

        random_batch(&seed, &b, sizes[turn % 8]);
        check_batch(&b, how);
        guarded_free_all();
    }
}

/* More slots than a block has counters for. */
static void counts_many_slots(void **state)
{
    uint64_t seed = 2;
    struct batch b = {.waterfill = {.mode = MOEC_WATERFILL_OFF}};
    uint32_t n = 1u << 14, *table = guarded(n * 4ull);

    (void)state;
    b.map.struct_bytes = sizeof(b.map);
    b.map.topology = (moec_topology){n, 1024, n / 1024, 2, 0};
    b.map.n_experts = n;
    b.map.rank = 1000;
    b.n_tokens = b.n_valid = 70;
    b.top_k = 8;
    for (uint32_t e = 0; e < n; e++)
        table[e] = n - 1 - e;
    b.map.table = table;
    random_ids(&seed, &b);
    alloc_outputs(&b);
    for (uint32_t mode = 0; mode < 3; mode++) {
        random_waterfill(&seed, &b);
        b.waterfill.mode = (moec_waterfill_mode)mode;
        check_batch(&b, (struct how){0});
    }
    guarded_free_all();
}

/* The choice and the dispatch of a batch's map in one call. */
static void check_fused(uint64_t *seed, uint32_t n_tokens)
{
    struct route_call c = {.config = MOEC_ROUTE_CONFIG_INIT,
                           .in = MOEC_ROUTE_IN_INIT};
    uint32_t n;
    float *x, *bias;
    struct batch b;

    do
        random_batch(seed, &b, n_tokens);
    while (b.map.n_experts > 600);
    c.config.n_experts = b.map.n_experts;
    c.config.n_zero = b.n_zero;
    n = c.config.n_experts + c.config.n_zero;
    c.config.top_k = 1 + random_below(seed, n < 20 ? n : 20);
    c.config.n_shared = b.map.topology.n_shared_slots;
    c.config.score = (moec_score)random_below(seed, 4);
    c.config.rsf = 2.5f;
    if (random_below(seed, 4) == 0)
        c.config.softcap = 8.0f; /* the other kernel */
    x = guarded((size_t)n_tokens * n * 4 + 4);
    bias = guarded(n * 4ull);
    for (size_t i = 0; i < (size_t)n_tokens * n; i++)
        x[i] = random_below(seed, 9) ? 3.0f * random_float(seed)
                                     : -__builtin_inff();
    for (uint32_t i = 0; i < n; i++)
        bias[i] = random_float(seed);
    c.in.n_tokens = n_tokens;
    c.in.n_valid = b.n_valid;
    c.in.logits = x;
    c.in.bias = random_below(seed, 2) ? bias : NULL;
    c.n_valid_on_device = random_below(seed, 2) != 0;
    c.map = &b.map;
    c.waterfill = &b.waterfill;
    c.no_ids = random_below(seed, 2) != 0;
    c.no_counts = random_below(seed, 4) == 0;
    check_call(&c, device, cpu);
    guarded_free_all();
}

static void fused_equals_the_cpu(void **state)
{
    static const uint32_t sizes[] = {0, 1, 7, 64, 65, 90};
    uint64_t seed = 3;

    (void)state;
    for (uint32_t turn = 0; turn < (is_long ? 10000u : 24u); turn++)
        check_fused(&seed, sizes[turn % 6]);
}

/* --------------------------------------------------------- particular */

/* What moec_dispatch refuses has no slot here, and nothing else changes. */
static void ids_that_no_map_has_are_left_out(void **state)
{
    uint32_t table[4] = {0, 1, 99, 3};
    int32_t ids[6] = {0, 2, 7, 2, 3, 1}, slots[6];
    float weights[6] = {1, 2, 3, 4, 5, 6}, out_weights[6];
    uint32_t counts[4];
    struct batch b = {.ids = ids, .weights = weights};

    (void)state;
    b.map = (moec_dispatch_map){.struct_bytes = sizeof(b.map),
                                .topology = {4, 2, 2, 0, 0},
                                .n_experts = 4,
                                .table = table};
    b.n_tokens = b.n_valid = 3;
    b.top_k = 2;
    b.n_slots = 4;
    b.out = (moec_dispatch_out){.struct_bytes = sizeof(b.out),
                                .slots = slots,
                                .weights = out_weights,
                                .slot_counts = counts,
                                .rank_counts = (uint32_t[2]){0}};
    on_the_device(&b, (struct how){0});
    result_same("slot", slots, (int32_t[]){0, -1, -1, -1, 3, 1}, 6);
    result_same("weight", out_weights, (float[]){1, 0, 0, 0, 5, 6}, 6);
    result_same("count", counts, (uint32_t[]){1, 1, 0, 1}, 4);
}

static void refuses_what_does_not_fit(void **state)
{
    uint32_t table[16] = {0};
    int32_t slots[4];
    float weights[4] = {0};
    struct {
        const char *text;
        moec_topology t;
        uint32_t rank, n_experts, top_k;
        moec_waterfill_mode mode;
    } cases[] = {
        {"physical slots on", {15, 4, 4, 1, 0}, 0, 8, 2, MOEC_WATERFILL_OFF},
        {"rank 4 of 4", {16, 4, 4, 1, 0}, 4, 8, 2, MOEC_WATERFILL_OFF},
        {"17 experts", {16, 4, 4, 1, 0}, 0, 17, 2, MOEC_WATERFILL_OFF},
        {"top_k 65", {16, 4, 4, 1, 0}, 0, 8, 65, MOEC_WATERFILL_OFF},
        {"2000 ranks", {2000, 2000, 1, 1, 0}, 0, 8, 2, MOEC_WATERFILL_STATIC},
        {"name no rank", {16, 4, 4, 1, 1}, 0, 8, 2, MOEC_WATERFILL_STATIC},
        {"DYNAMIC without", {16, 4, 4, 1, 0}, 0, 8, 2, MOEC_WATERFILL_DYNAMIC},
        {"workspace of 0", {16, 4, 4, 1, 0}, 0, 8, 2, MOEC_WATERFILL_STATIC},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        moec_dispatch_map map = {.struct_bytes = sizeof(map),
                                 .topology = cases[i].t,
                                 .rank = cases[i].rank,
                                 .n_experts = cases[i].n_experts,
                                 .table = table};
        moec_waterfill w = {.mode = cases[i].mode};
        moec_dispatch_out out = {
            .struct_bytes = sizeof(out), .slots = slots, .weights = weights};
        moec_launch l = MOEC_LAUNCH_INIT;
        moec_error err = MOEC_ERROR_INIT;

        assert_int_not_equal(moec_device_dispatch(device, &map, &w, slots,
                                                  weights, 1, 1, cases[i].top_k,
                                                  &out, &l, &err),
                             MOEC_OK);
        if (!strstr(err.text, cases[i].text))
            fail_msg("'%s' is not in: %s", cases[i].text, err.text);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_every_chain),
        cmocka_unit_test(agrees_with_every_waterfill),
        cmocka_unit_test(agrees_with_the_cpu),
        cmocka_unit_test(counts_many_slots),
        cmocka_unit_test(fused_equals_the_cpu),
        cmocka_unit_test(ids_that_no_map_has_are_left_out),
        cmocka_unit_test(refuses_what_does_not_fit),
    };

    is_long = argc > 1 && strcmp(argv[1], "long") == 0;
    return cmocka_run_group_tests(tests, open_both, close_both);
}
