/* SPDX-License-Identifier: Apache-2.0 */

/* Sorting and looking up tensors by name. */

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

static void check_sorted(moec_tensor *t, size_t n)
{
    unsigned char seen[N] = {0};
    moec_error err = MOEC_ERROR_INIT;

    assert_int_equal(moec_table_sort(t, n, &err), MOEC_OK);
    for (size_t i = 0; i < n; i++) {
        assert_true(t[i].off < n);
        assert_ptr_equal(t[i].name, names[t[i].off]);
        assert_int_equal(seen[t[i].off]++, 0);
        if (i > 0)
            assert_true(strcmp(t[i - 1].name, t[i].name) <= 0);
    }
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
            check_sorted(t, n);
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
        check_sorted(t, N);
    }
}

static void sorts_by_bytes_without_sign(void **state)
{
    moec_tensor t[3];

    (void)state;
    strcpy(names[0], "\xc3\xa9");
    strcpy(names[1], "z");
    strcpy(names[2], "a");
    fill(t, 3);
    check_sorted(t, 3);
    assert_string_equal(t[0].name, "a");
    assert_string_equal(t[2].name, "\xc3\xa9");
}

static void finds_whole_names_only(void **state)
{
    moec_tensor t[N];

    (void)state;
    for (unsigned i = 0; i < N; i++)
        (void)snprintf(names[i], sizeof(names[i]), "t%05u.x", 2 * i);
    fill(t, N);
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
    moec_tensor t[2];
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    strcpy(names[0], "b");
    strcpy(names[1], "a");
    fill(t, 2);
    moec_alloc_fail_at(1);
    assert_int_equal(moec_table_sort(t, 2, &err), MOEC_E_NOMEM);
    moec_alloc_fail_at(0);
    assert_string_equal(t[0].name, "b");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sorts_any_order_and_loses_nothing),
        cmocka_unit_test(sorts_by_bytes_without_sign),
        cmocka_unit_test(finds_whole_names_only),
        cmocka_unit_test(reports_that_memory_is_short),
    };

    return cmocka_run_group_tests_name("table", tests, NULL, NULL);
}
