/* SPDX-License-Identifier: Apache-2.0
 *
 * Expert Choice of a device against the vectors, and against the scalar CPU
 * bit for bit: ids, weights, figures and AUTO's state. With the argument
 * "long" the random part runs for minutes. */

#include "device_route.h"

#include <jansson.h>
#include <math.h>

#include "guarded.h"
#include "route_vectors.h"

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

/* ------------------------------------------------------------- vectors */

static const char *const mode_names[] = {"fill-missing", "full-row", "pad",
                                         "balanced"};

static moec_route_config config_of(const json_t *c, moec_ec_fill fill)
{
    moec_route_config cfg = MOEC_ROUTE_CONFIG_INIT;

    cfg.n_experts = case_uint(c, "E");
    cfg.top_k = case_uint(c, "K");
    cfg.score = strcmp(case_text(c, "scoring"), "softmax") == 0
                    ? MOEC_SCORE_SOFTMAX
                    : MOEC_SCORE_SIGMOID;
    cfg.n_group = case_uint(c, "groups");
    cfg.topk_group = case_uint(c, "topk_group");
    cfg.group_score =
        json_object_get(c, "bias") ? MOEC_GROUP_TOP2 : MOEC_GROUP_MAX;
    cfg.norm = MOEC_NORM_SUM;
    cfg.n_shared = 1;
    cfg.shared_kind = MOEC_SHARED_PLAIN;
    cfg.ec.mode = MOEC_EC_ON;
    cfg.ec.fill = fill;
    cfg.ec.capacity_ppm = case_uint(c, "capacity_ppm");
    return cfg;
}

static void store_row(float *to, const json_t *row, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        const json_t *x = json_array_get(row, i);

        to[i] = json_is_null(x) ? (i % 2 ? -INFINITY : NAN)
                                : (float)json_number_value(x);
    }
}

static void run_vector(const json_t *c, moec_ec_fill fill, bool on_device)
{
    struct route_call call = {.config = config_of(c, fill),
                              .in = MOEC_ROUTE_IN_INIT,
                              .n_valid_on_device = on_device};
    const json_t *all = json_object_get(c, "ids");
    const json_t *want = json_object_get(all, mode_names[fill]);
    const json_t *bias = json_object_get(c, "bias");
    uint32_t T = case_uint(c, "T"), K = call.config.top_k;
    uint32_t E = call.config.n_experts;
    float *logits = guarded((size_t)T * E * 4 + 4), *biases = NULL;
    moec_error err = MOEC_ERROR_INIT;
    moec_router *r = NULL;
    struct route_result x;

    for (uint32_t t = 0; t < T; t++)
        store_row(logits + (size_t)t * E,
                  json_array_get(json_object_get(c, "logits"), t), E);
    if (bias) {
        biases = guarded(E * 4);
        store_row(biases, bias, E);
    }
    call.in.n_tokens = T;
    call.in.n_valid = case_uint(c, "non_padded");
    call.in.logits = logits;
    call.in.bias = biases;
    x = result_of(&call);
    if (moec_router_create(&r, cpu, &call.config, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    device_call(&call, device, r, &x);
    if (json_is_string(want))
        want = json_object_get(all, json_string_value(want));
    for (uint32_t i = 0; i < T * K; i++) {
        int32_t id = (int32_t)json_integer_value(
            json_array_get(json_array_get(want, i / K), i % K));

        if (x.ids[i / K * (K + 1) + i % K] != id)
            fail_msg("%s %s: row %u column %u is %d, not %d",
                     case_text(c, "id"), mode_names[fill], i / K, i % K,
                     x.ids[i / K * (K + 1) + i % K], id);
    }
    check_call(&call, device, cpu);
    moec_router_destroy(r);
    result_free(&x);
    guarded_free_all();
}

static void gives_what_the_vectors_say(void **state)
{
    json_error_t je;
    json_t *doc = json_load_file(
        MOEC_TEST_FIXTURES "/vectors/expert_choice.json", 0, &je);
    json_t *cases = json_object_get(doc, "cases"), *c;
    size_t i;

    (void)state;
    assert_true(json_array_size(cases) > 30);
    json_array_foreach (cases, i, c)
        for (int fill = 0; fill <= MOEC_EC_BALANCED; fill++)
            run_vector(c, (moec_ec_fill)fill, i % 2 != 0);
    json_decref(doc);
}

/* -------------------------------------------------------------- random */

/* In the style of the call: normal, skewed, or few values with many ties. */
static float *random_logits(uint64_t *seed, uint32_t T, uint32_t E)
{
    float *x = guarded((size_t)T * E * 4 + 4);
    uint32_t style = random_below(seed, 4);

    for (uint32_t t = 0; t < T; t++)
        for (uint32_t e = 0; e < E; e++) {
            float v = 3.0f * random_float(seed);

            if (style == 1)
                v += 4.0f * (float)e / (float)E;
            else if (style == 2)
                v = (float)random_below(seed, 4);
            else if (style == 3 && random_below(seed, 9) == 0)
                v = random_below(seed, 2) ? NAN : -INFINITY;
            x[(size_t)t * E + e] = v;
        }
    return x;
}

static float *random_bias(uint64_t *seed, uint32_t n)
{
    float *x = guarded(n * 4 + 4);

    for (uint32_t i = 0; i < n; i++)
        x[i] = random_float(seed);
    return x;
}

static struct route_call random_call(uint64_t *seed, uint32_t T, uint32_t E,
                                     uint32_t K)
{
    static const uint32_t ppm[] = {0,       1000000, 1030000,
                                   1250000, 300000,  4000000};
    struct route_call c = {.config = MOEC_ROUTE_CONFIG_INIT,
                           .in = MOEC_ROUTE_IN_INIT};

    c.config.n_experts = E;
    c.config.top_k = K;
    c.config.n_shared = random_below(seed, 2);
    c.config.score = (moec_score)random_below(seed, 4);
    c.config.norm = random_below(seed, 2) ? MOEC_NORM_SUM : MOEC_NORM_NONE;
    if (random_below(seed, 6) == 0)
        c.config.softcap = 5.0f;
    if (E % 4 == 0 && E >= 8 && K <= E / 2 && random_below(seed, 2)) {
        c.config.n_group = 4;
        c.config.topk_group = 2 + random_below(seed, 2);
        c.config.group_score = (moec_group_score)random_below(seed, 2);
    }
    c.config.ec.mode = MOEC_EC_ON;
    c.config.ec.fill = (moec_ec_fill)random_below(seed, 4);
    c.config.ec.capacity_ppm = ppm[random_below(seed, 6)];
    c.in.n_tokens = T;
    c.in.n_valid = random_below(seed, 3) ? T : random_below(seed, T + 1);
    c.n_valid_on_device = random_below(seed, 2) != 0;
    c.in.logits = random_logits(seed, T, E);
    if (random_below(seed, 2))
        c.in.bias = random_bias(seed, E);
    return c;
}

static void equals_the_scalar_cpu(void **state)
{
    static const struct {
        uint32_t T, E, K;
    } shapes[] = {{1, 4, 2},   {7, 8, 3},    {33, 16, 4},  {64, 40, 8},
                  {90, 33, 9}, {16, 64, 33}, {260, 16, 2}, {300, 12, 3}};
    uint64_t seed = 7;

    (void)state;
    for (uint32_t turn = 0; turn < (is_long ? 400u : 10u); turn++)
        for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++) {
            struct route_call c =
                random_call(&seed, shapes[i].T, shapes[i].E, shapes[i].K);

            check_call(&c, device, cpu);
            guarded_free_all();
        }
}

/* The dispatch behind it: slots and counts, with logical ids and without. */
static void hands_its_ids_to_the_dispatch(void **state)
{
    uint32_t table[16];
    uint64_t seed = 10;

    (void)state;
    for (uint32_t e = 0; e < 16; e++)
        table[e] = (e * 5 + 3) % 16;
    for (uint32_t turn = 0; turn < 8; turn++) {
        struct route_call c = random_call(&seed, turn < 4 ? 40 : 270, 16, 4);
        moec_dispatch_map map = {.struct_bytes = sizeof(map),
                                 .n_experts = 16,
                                 .rule = MOEC_REPLICA_TABLE,
                                 .rank = 1,
                                 .table = table};

        map.topology.n_physical = 16;
        map.topology.n_ranks = 2;
        map.topology.n_local = 8;
        map.topology.n_shared_slots = c.config.n_shared;
        c.config.ec.fill = (moec_ec_fill)(turn % 4);
        c.map = &map;
        c.no_ids = turn % 3 == 2;
        check_call(&c, device, cpu);
        guarded_free_all();
    }
}

/* Rows enough for a sample: floors, lists that are cut, and, where the sample
 * misleads (the best tokens stand where it does not look, or all are the
 * same), lists that are too short or too long. */
static void equals_it_where_lists_are_cut(void **state)
{
    uint64_t seed = 8;

    (void)state;
    for (uint32_t turn = 0; turn < (is_long ? 40u : 3u); turn++) {
        struct route_call c = random_call(&seed, 1100, 16, 2);
        float *x = guarded(1100 * 16 * 4);

        c.config.ec.fill = (moec_ec_fill)(turn % 3);
        c.config.ec.capacity_ppm = turn % 2 ? 1000000 : 1250000;
        check_call(&c, device, cpu);
        for (uint32_t i = 0; i < 1100 * 16; i++)
            x[i] = turn % 3 == 1 ? 1.0f : random_float(&seed);
        if (turn % 3 == 2)
            for (uint32_t i = 0; i < 1100 * 4; i++) /* good, and next to all */
                x[i] = x[i] - 30.0f;
        c.in.logits = x;
        c.config.n_group = 0;
        check_call(&c, device, cpu);
        guarded_free_all();
    }
}

/* ---------------------------------------------------------------- AUTO */

/* Balanced and skewed batches in turn, below, between and above the bounds. */
static void turns_on_and_off_as_the_cpu_does(void **state)
{
    static const uint32_t rows[] = {8,  32, 40, 60, 60, 128, 129, 50,
                                    31, 64, 64, 64, 0,  300, 70,  70};
    uint64_t seed = 9;

    (void)state;
    for (int fill = 0; fill <= MOEC_EC_BALANCED; fill++) {
        moec_ec_state memory = {0};
        uint32_t on = 0;

        for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
            struct route_call c = random_call(&seed, 300, 8, 2);

            c.config.ec.mode = MOEC_EC_AUTO;
            c.config.ec.fill = (moec_ec_fill)fill;
            c.config.ec.ema = 0.6f;
            c.config.ec.threshold = 0.5f;
            c.config.ec.threshold_off = 0.3f;
            c.in.n_valid = rows[i];
            c.in.ec_state = &memory;
            check_call(&c, device, cpu);
            on += memory.on;
            guarded_free_all();
        }
        assert_true(memory.seen > 5);
        assert_true(on > 0 && on < sizeof(rows) / sizeof(*rows));
    }
}

static void refuses_auto_without_a_state(void **state)
{
    moec_route_config cfg = MOEC_ROUTE_CONFIG_INIT;
    moec_route_in in = MOEC_ROUTE_IN_INIT;
    int32_t ids[2];
    float w[2], logits[4] = {0};
    moec_route_out out = {
        .struct_bytes = sizeof(out), .ids = ids, .weights = w};
    moec_launch l = MOEC_LAUNCH_INIT;
    moec_error err = MOEC_ERROR_INIT;
    moec_router *r = NULL;

    (void)state;
    cfg.n_experts = 4;
    cfg.top_k = 2;
    cfg.ec.mode = MOEC_EC_AUTO;
    assert_int_equal(moec_router_create(&r, cpu, &cfg, &err), MOEC_OK);
    in.n_tokens = in.n_valid = 1;
    in.logits = logits;
    assert_int_equal(moec_device_route(device, r, &in, &out, &l, &err),
                     MOEC_E_ARG);
    assert_non_null(strstr(err.text, "workspace"));
    l.workspace_bytes = moec_device_route_workspace_bytes(device, r, NULL, 1);
    l.workspace = on_device(device, NULL, l.workspace_bytes);
    err = (moec_error)MOEC_ERROR_INIT;
    assert_int_equal(moec_device_route(device, r, &in, &out, &l, &err),
                     MOEC_E_ARG);
    assert_non_null(strstr(err.text, "ec_state"));
    device_free_all(device);
    moec_router_destroy(r);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gives_what_the_vectors_say),
        cmocka_unit_test(equals_the_scalar_cpu),
        cmocka_unit_test(equals_it_where_lists_are_cut),
        cmocka_unit_test(hands_its_ids_to_the_dispatch),
        cmocka_unit_test(turns_on_and_off_as_the_cpu_does),
        cmocka_unit_test(refuses_auto_without_a_state),
    };

    is_long = argc > 1 && strcmp(argv[1], "long") == 0;
    return cmocka_run_group_tests(tests, open_both, close_both);
}
