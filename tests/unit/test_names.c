/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Matching of tensor names: what loaders that match by substring get wrong.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "names.h"

enum {
    EXPERT_DOWN = 6,
    EXPERT_GATE = 7,
    SHARED_GATE = 8,
    ROUTER = 9,
    MTP_GATE = 10
};

static moec_names names;

static void add(size_t prefix, const char *tail, uint32_t variant,
                uint16_t kind)
{
    uint16_t old, other;
    moec_error err = MOEC_ERROR_INIT;
    assert_int_equal(
        moec_names_add(&names, prefix, tail, variant, kind, &old, &other, &err),
        MOEC_OK);
    assert_int_equal(old, MOEC_NO_KIND);
}

static int setup(void **state)
{
    static const char *const prefixes[] = {"model.layers.#.", "mtp.layers.#."};
    static const char *const spaces[] = {"mlp.experts", "mlp.shared_experts"};
    moec_error err = MOEC_ERROR_INIT;
    (void)state;
    assert_int_equal(moec_names_init(&names, prefixes, 2, spaces, 2, &err),
                     MOEC_OK);
    add(0, "mlp.experts.#.gate_proj.weight", 0, EXPERT_GATE);
    add(0, "mlp.shared_experts.gate_proj.weight", 0, SHARED_GATE);
    add(0, "mlp.gate.weight", 0, ROUTER);
    add(1, "mlp.experts.#.gate_proj.weight", 0, MTP_GATE);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    moec_names_fini(&names);
    return 0;
}

static moec_name_found find(const char *name)
{
    moec_norm norm;
    return moec_names_find(&names, name, &norm);
}

static uint16_t kind_of(const char *name)
{
    moec_name_found f = find(name);
    assert_int_equal(f.what, MOEC_NAME_KNOWN);
    return names.entries[f.entry].kind[0];
}

static void replaces_whole_segments_of_digits_only(void **state)
{
    moec_norm n;
    (void)state;
    assert_true(moec_norm_name(&n, "a.12.b3.4c.0"));
    assert_string_equal(n.text, "a.#.b3.4c.#");
    assert_int_equal(n.n_numbers, 2);
    assert_int_equal(n.numbers[0], 12);
    assert_int_equal(n.numbers[1], 0);
    assert_true(n.canonical);
}

static void marks_numbers_that_have_two_spellings(void **state)
{
    static const char *const bad[] = {"a.01",         "a.00",
                                      "a.2147483648", "a.99999999999999999999",
                                      "a.4294967297", "a.#"};
    moec_norm n;
    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        assert_true(moec_norm_name(&n, bad[i]));
        assert_string_equal(n.text, "a.#");
        assert_false(n.canonical);
    }
    assert_true(moec_norm_name(&n, "a.2147483647"));
    assert_true(n.canonical);
    assert_int_equal(n.numbers[0], INT32_MAX);
}

static void refuses_names_beyond_the_limit(void **state)
{
    moec_norm n;
    char name[MOEC_NAME_BYTES_MAX + 2];
    (void)state;
    memset(name, 'x', sizeof(name));
    name[MOEC_NAME_BYTES_MAX + 1] = '\0';
    assert_false(moec_norm_name(&n, name));
    name[MOEC_NAME_BYTES_MAX] = '\0';
    assert_true(moec_norm_name(&n, name));
    assert_int_equal(n.bytes, MOEC_NAME_BYTES_MAX);
    name[MOEC_NAME_BYTES_MAX - 1] = '.';
    assert_true(moec_norm_name(&n, name));
}

static void expert_1_is_not_expert_11(void **state)
{
    (void)state;
    moec_name_found one = find("model.layers.3.mlp.experts.1.gate_proj.weight");
    moec_name_found eleven =
        find("model.layers.3.mlp.experts.11.gate_proj.weight");
    assert_int_equal(one.what, MOEC_NAME_KNOWN);
    assert_int_equal(eleven.what, MOEC_NAME_KNOWN);
    assert_int_equal(one.layer, 3);
    assert_int_equal(one.expert, 1);
    assert_int_equal(eleven.expert, 11);
}

static void shared_experts_are_not_experts(void **state)
{
    (void)state;
    assert_int_equal(
        kind_of("model.layers.0.mlp.shared_experts.gate_proj.weight"),
        SHARED_GATE);
    assert_int_equal(kind_of("model.layers.0.mlp.experts.0.gate_proj.weight"),
                     EXPERT_GATE);
    assert_int_equal(
        find("model.layers.0.mlp.shared_experts.1.gate_proj.weight").what,
        MOEC_NAME_STRANGE);
}

static void router_is_not_the_dense_gate(void **state)
{
    (void)state;
    assert_int_equal(kind_of("model.layers.0.mlp.gate.weight"), ROUTER);
    moec_name_found dense = find("model.layers.2.mlp.gate_proj.weight");
    assert_int_equal(dense.what, MOEC_NAME_LAYER);
    assert_int_equal(dense.layer, 2);
}

static void layers_of_another_prefix_are_other_layers(void **state)
{
    (void)state;
    assert_int_equal(kind_of("mtp.layers.0.mlp.experts.5.gate_proj.weight"),
                     MTP_GATE);
    assert_int_equal(find("mtp.layers.0.mlp.experts.5.gate_proj.weight").prefix,
                     1);
    assert_int_equal(
        find("x.model.layers.0.mlp.experts.5.gate_proj.weight").what,
        MOEC_NAME_OTHER);
    assert_int_equal(find("model.norm.weight").what, MOEC_NAME_OTHER);
}

static void what_follows_a_pattern_counts(void **state)
{
    static const char *const strange[] = {
        "model.layers.0.mlp.experts.0.gate_proj.weight_scale",
        "model.layers.0.mlp.experts.0.gate_proj.weight.x",
        "model.layers.0.mlp.experts.0.gate_proj",
        "model.layers.0.mlp.experts.gate_proj.weight",
        "model.layers.0.mlp.experts.e_score_correction_bias",
        "model.layers.0.mlp.experts",
        "model.layers.0.mlp.experts.01.gate_proj.weight",
        "model.layers.00.mlp.experts.1.gate_proj.weight",
        "model.layers.0.mlp.experts.#.gate_proj.weight",
        "model.layers.#.mlp.experts.0.gate_proj.weight",
        "model.layers.0.mlp.experts.4294967297.gate_proj.weight",
    };
    (void)state;
    for (size_t i = 0; i < sizeof(strange) / sizeof(*strange); i++)
        if (find(strange[i]).what != MOEC_NAME_STRANGE)
            fail_msg("'%s' is class %d", strange[i], find(strange[i]).what);
    assert_int_equal(find("model.layers.0.mlp.experts_norm.weight").what,
                     MOEC_NAME_LAYER);
}

static void a_name_may_have_a_kind_in_each_variant(void **state)
{
    uint16_t old, other;
    moec_error err = MOEC_ERROR_INIT;
    (void)state;
    assert_int_equal(
        moec_names_add(&names, 0, "mlp.gate.weight", 1, 20, &old, &other, &err),
        MOEC_OK);
    assert_int_equal(old, MOEC_NO_KIND);
    assert_int_equal(other, ROUTER);
    moec_name_found f = find("model.layers.0.mlp.gate.weight");
    assert_int_equal(names.entries[f.entry].variants, 3);
    assert_int_equal(names.entries[f.entry].kind[1], 20);
    assert_int_equal(
        moec_names_add(&names, 0, "mlp.gate.weight", 1, 21, &old, &other, &err),
        MOEC_OK);
    assert_int_equal(old, 20);
    assert_int_equal(names.entries[f.entry].kind[1], 20);
}

/* What was found before changes no answer, in any order of the names. */
static void recalls_what_it_would_find(void **state)
{
    static const char *const pieces[][8] = {
        {"model.layers.", "model.layer.", "language_model.model.layers.", ""},
        {"0", "1", "11", "01", "4294967296", "1234567890", "x"},
        {".mlp.experts.", ".mlp.shared_experts.", ".mlp.gate.", "."},
        {"0", "7", "00", "07", "123456789", "1234567890", "#", ""},
        {".down_proj.weight", ".gate_proj.weight", ".weight", ".", "",
         ".0.weight", ".up_proj.weight_scale_inv", "9.down_proj.weight"}};
    enum { N = 5000 };
    static char list[N][96]; /* the memo points to names */
    moec_name_memo memo = {0};
    uint64_t seed = 1;
    uint32_t known = 0;

    (void)state;
    add(0, "mlp.experts.#.down_proj.weight", 0, EXPERT_DOWN);
    for (int i = 0; i < N; i++) {
        moec_norm a, b;
        size_t n = 0;
        for (size_t k = 0; k < 5; k++) {
            const char *piece = NULL;
            while (piece == NULL) {
                seed = seed * UINT64_C(6364136223846793005) + 1;
                /* the first ones often, as in a checkpoint */
                unsigned r = (unsigned)(seed >> 40);
                piece = pieces[k][r % 3 == 0 ? r / 3 % 8 : r / 3 % 2];
            }
            n +=
                (size_t)snprintf(list[i] + n, sizeof(list[i]) - n, "%s", piece);
        }
        moec_name_found want = moec_names_find(&names, list[i], &a);
        moec_name_found got = moec_names_recall(&names, &memo, list[i], &b);
        known += want.what == MOEC_NAME_KNOWN;
        if (want.what != got.what || want.entry != got.entry ||
            want.prefix != got.prefix || want.layer != got.layer ||
            want.expert != got.expert)
            fail_msg("'%s' is found as %d, recalled as %d", list[i], want.what,
                     got.what);
    }
    assert_true(known > N / 20);
    assert_true(memo.n_tails > 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(replaces_whole_segments_of_digits_only),
        cmocka_unit_test(marks_numbers_that_have_two_spellings),
        cmocka_unit_test(refuses_names_beyond_the_limit),
        cmocka_unit_test(expert_1_is_not_expert_11),
        cmocka_unit_test(shared_experts_are_not_experts),
        cmocka_unit_test(router_is_not_the_dense_gate),
        cmocka_unit_test(layers_of_another_prefix_are_other_layers),
        cmocka_unit_test(what_follows_a_pattern_counts),
        cmocka_unit_test(a_name_may_have_a_kind_in_each_variant),
        cmocka_unit_test(recalls_what_it_would_find),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
