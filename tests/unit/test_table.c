/* SPDX-License-Identifier: Apache-2.0 */

/* Merging tables by name, and looking names up. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "table.h"

enum { N = 2000 };

static char names[N][16];

static uint32_t next_random(uint64_t *seed)
{
    *seed = *seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (uint32_t)(*seed >> 33);
}

/* Tensor i points to its name and says its number. */
static void fill(moec_tensor *t, size_t n)
{
    memset(t, 0, n * sizeof(*t));
    for (size_t i = 0; i < n; i++) {
        t[i].name = names[i];
        t[i].off = i;
    }
}

/* Cut the tensors into runs where a name is below the one before, and, where
 * `cuts` says so, at every so many tensors. */
static size_t cut(const moec_tensor *t, size_t n, size_t cuts, moec_run *out)
{
    size_t n_runs = 0;

    for (size_t i = 0; i < n; i++) {
        if (i == 0 || (cuts > 0 && i % cuts == 0) ||
            strcmp(t[i - 1].name, t[i].name) > 0)
            out[n_runs++].next = t + i;
        out[n_runs - 1].end = t + i + 1;
    }
    return n_runs;
}

/* The first place whose name was there before, as the other one. */
static void check_merged(const moec_tensor *t, size_t n, size_t cuts)
{
    static const moec_tensor *out[N];
    static moec_run runs[N];
    unsigned char seen[N] = {0};
    moec_error err = MOEC_ERROR_INIT;
    size_t twice = 0, n_runs = cut(t, n, cuts, runs);

    assert_int_equal(moec_table_merge(out, runs, n_runs, &twice, &err),
                     MOEC_OK);
    for (size_t i = 0; i < n && i <= twice; i++) {
        assert_true(out[i] >= t && out[i] < t + n);
        assert_int_equal(seen[out[i] - t]++, 0);
        if (i == twice)
            assert_string_equal(out[i - 1]->name, out[i]->name);
        else if (i > 0)
            assert_true(strcmp(out[i - 1]->name, out[i]->name) < 0);
    }
    if (twice != SIZE_MAX)
        assert_true(out[twice - 1] < out[twice]);
}

static void sorts_any_order_and_loses_nothing(void **state)
{
    static moec_tensor t[N];
    uint64_t seed = 1;

    (void)state;
    for (size_t n = 0; n < 40; n++) {
        for (int round = 0; round < 20; round++) {
            for (size_t i = 0; i < n; i++)
                (void)snprintf(names[i], sizeof(names[i]), "%u",
                               next_random(&seed) % 30);
            fill(t, n);
            check_merged(t, n, 1); /* equal ones may follow each other */
        }
    }
    for (int shape = 0; shape < 4; shape++) {
        for (unsigned i = 0; i < N; i++) {
            unsigned v = shape == 0   ? i
                         : shape == 1 ? N - i
                         : shape == 2 ? i % 100 * 100 + i / 100
                                      : next_random(&seed);
            (void)snprintf(names[i], sizeof(names[i]), "%09u", v % 100000000);
        }
        fill(t, N);
        check_merged(t, N, 0);
        check_merged(t, N, 7);
        check_merged(t, N, 1);
    }
}

static void sorts_by_bytes_without_sign(void **state)
{
    const moec_tensor *out[3];
    moec_tensor t[3];
    moec_run runs[3];
    size_t twice = 0;

    (void)state;
    strcpy(names[0], "\xc3\xa9");
    strcpy(names[1], "z");
    strcpy(names[2], "a");
    fill(t, 3);
    assert_int_equal(
        moec_table_merge(out, runs, cut(t, 3, 0, runs), &twice, NULL), MOEC_OK);
    assert_string_equal(out[0]->name, "a");
    assert_string_equal(out[2]->name, "\xc3\xa9");
    assert_true(twice == SIZE_MAX);
}

/* Of a name that three shards have, the first two are told. */
static void tells_of_a_name_twice_in_the_order_of_the_runs(void **state)
{
    const moec_tensor *out[6];
    moec_tensor t[6];
    moec_run runs[3] = {{t, t + 2}, {t + 2, t + 4}, {t + 4, t + 6}};
    size_t twice = 0;

    (void)state;
    for (int i = 0; i < 6; i++)
        strcpy(names[i], i % 2 ? (i == 1 ? "y" : "z") : "m");
    fill(t, 6);
    assert_int_equal(moec_table_merge(out, runs, 3, &twice, NULL), MOEC_OK);
    assert_int_equal(twice, 1);
    assert_ptr_equal(out[0], &t[0]);
    assert_ptr_equal(out[1], &t[2]);
}

static void finds_whole_names_only(void **state)
{
    static moec_tensor table[N];
    const moec_tensor *t[N];

    (void)state;
    for (unsigned i = 0; i < N; i++) {
        (void)snprintf(names[i], sizeof(names[i]), "t%05u.x", 2 * i);
        t[i] = &table[i];
    }
    fill(table, N);
    for (unsigned i = 0; i < N; i++) {
        char odd[16];
        size_t n = strlen(names[i]);
        assert_int_equal(moec_table_find(t, N, names[i], n, SIZE_MAX), i);
        assert_int_equal(moec_table_find(t, N, names[i], n, i), i);
        assert_int_equal(moec_table_find(t, N, names[i], n, i + 1), i);
        assert_int_equal(moec_table_find(t, N, names[i], n - 1, i), SIZE_MAX);
        (void)snprintf(odd, sizeof(odd), "t%05u.x", 2 * i + 1);
        assert_int_equal(moec_table_find(t, N, odd, n, i), SIZE_MAX);
        (void)snprintf(odd, sizeof(odd), "t%05u.xy", 2 * i);
        assert_int_equal(moec_table_find(t, N, odd, n + 1, i), SIZE_MAX);
    }
    assert_int_equal(moec_table_find(t, 0, "t", 1, 0), SIZE_MAX);
}

static void reports_that_memory_is_short(void **state)
{
    const moec_tensor *out[2];
    moec_tensor t[2];
    moec_run runs[2] = {{t, t + 1}, {t + 1, t + 2}};
    moec_error err = MOEC_ERROR_INIT;
    size_t twice;

    (void)state;
    strcpy(names[0], "b");
    strcpy(names[1], "a");
    fill(t, 2);
    moec_alloc_fail_at(1);
    assert_int_equal(moec_table_merge(out, runs, 2, &twice, &err),
                     MOEC_E_NOMEM);
    moec_alloc_fail_at(0);
    assert_string_equal(t[0].name, "b");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sorts_any_order_and_loses_nothing),
        cmocka_unit_test(sorts_by_bytes_without_sign),
        cmocka_unit_test(tells_of_a_name_twice_in_the_order_of_the_runs),
        cmocka_unit_test(finds_whole_names_only),
        cmocka_unit_test(reports_that_memory_is_short),
    };

    return cmocka_run_group_tests_name("table", tests, NULL, NULL);
}
