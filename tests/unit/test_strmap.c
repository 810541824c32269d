/* SPDX-License-Identifier: Apache-2.0
 *
 * The string map. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"

enum { N = 20000, KEY = 16 };
static char keys[N][KEY];

static void make_keys(void)
{
    for (unsigned i = 0; i < N; i++)
        snprintf(keys[i], KEY, "k%u", i);
}

static void fill_and_check(size_t expect)
{
    moec_strmap m = {0};
    moec_error err = MOEC_ERROR_INIT;
    bool existed = true;
    uint64_t v = 0;

    assert_int_equal(moec_strmap_init(&m, expect, &err), MOEC_OK);
    for (size_t i = 0; i < N; i++) {
        assert_int_equal(
            moec_strmap_put(&m, keys[i], strlen(keys[i]), i, &existed, &err),
            MOEC_OK);
        assert_false(existed);
    }
    assert_int_equal(m.n, N);
    for (size_t i = 0; i < N; i++) {
        char copy[KEY]; /* bytes count, not the pointer */
        memcpy(copy, keys[i], KEY);
        assert_true(moec_strmap_get(&m, copy, strlen(copy), &v));
        assert_int_equal(v, i);
    }
    assert_false(moec_strmap_get(&m, "k", 1, &v));
    assert_false(moec_strmap_get(&m, "k20000", 6, &v));
    moec_strmap_fini(&m);
    assert_null(m.cells);
}

static void finds_all_after_growing(void **state)
{
    (void)state;
    fill_and_check(0);
}

static void never_allocates_up_to_what_was_expected(void **state)
{
    (void)state;
    moec_alloc_fail_at(0);
    fill_and_check(N);
    assert_int_equal(moec_alloc_fail_at(0), 1);
}

static void keeps_the_first_value(void **state)
{
    moec_strmap m = {0};
    bool existed = true;
    uint64_t v = 0;

    (void)state;
    assert_int_equal(moec_strmap_init(&m, 1, NULL), MOEC_OK);
    assert_int_equal(moec_strmap_put(&m, "a", 1, 1, &existed, NULL), MOEC_OK);
    assert_false(existed);
    assert_int_equal(moec_strmap_put(&m, "a", 1, 2, &existed, NULL), MOEC_OK);
    assert_true(existed);
    assert_int_equal(moec_strmap_put(&m, "a", 1, 3, NULL, NULL), MOEC_OK);
    assert_true(moec_strmap_get(&m, "a", 1, &v));
    assert_int_equal(v, 1);
    assert_int_equal(m.n, 1);
    moec_strmap_fini(&m);
}

static void tells_keys_apart_by_all_bytes(void **state)
{
    static const char bytes[] = "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    moec_strmap m = {0};
    bool existed = true;
    uint64_t v = 0;

    (void)state;
    assert_int_equal(moec_strmap_init(&m, 0, NULL), MOEC_OK);
    /* Zeros differ in length alone: across the words of the hash. */
    for (size_t n = 0; n < sizeof(bytes); n++) {
        assert_int_equal(
            moec_strmap_put(&m, n ? bytes : NULL, n, n, &existed, NULL),
            MOEC_OK);
        assert_false(existed);
    }
    for (size_t n = 0; n < sizeof(bytes); n++) {
        assert_true(moec_strmap_get(&m, bytes, n, &v));
        assert_int_equal(v, n);
    }
    moec_strmap_fini(&m);
}

static void seeds_differ_between_maps(void **state)
{
    moec_strmap a = {0}, b = {0};

    (void)state;
    assert_int_equal(moec_strmap_init(&a, 0, NULL), MOEC_OK);
    assert_int_equal(moec_strmap_init(&b, 0, NULL), MOEC_OK);
    assert_memory_not_equal(a.seed, b.seed, sizeof(a.seed));
    moec_strmap_fini(&a);
    moec_strmap_fini(&b);
}

static void failed_growth_keeps_the_map(void **state)
{
    moec_strmap m = {0};
    moec_error err = MOEC_ERROR_INIT;
    moec_status status = MOEC_OK;
    size_t n = 0;
    uint64_t v = 0;

    (void)state;
    assert_int_equal(moec_strmap_init(&m, 0, &err), MOEC_OK);
    moec_alloc_fail_at(1);
    while (n < N && status == MOEC_OK) {
        status = moec_strmap_put(&m, keys[n], strlen(keys[n]), n, NULL, &err);
        n += status == MOEC_OK;
    }
    assert_int_equal(status, MOEC_E_NOMEM);
    assert_int_equal(err.status, MOEC_E_NOMEM);
    assert_int_equal(m.n, n);
    for (size_t i = 0; i < n; i++)
        assert_true(moec_strmap_get(&m, keys[i], strlen(keys[i]), &v));
    assert_false(moec_strmap_get(&m, keys[n], strlen(keys[n]), &v));
    moec_alloc_fail_at(1);
    moec_strmap_fini(&m);
    assert_int_equal(moec_strmap_init(&m, 0, NULL), MOEC_E_NOMEM);
    assert_null(m.cells);
    moec_alloc_fail_at(0);
}

static void an_empty_struct_holds_nothing(void **state)
{
    moec_strmap m = {0};

    (void)state;
    assert_false(moec_strmap_get(&m, "a", 1, NULL));
    assert_int_equal(moec_strmap_put(&m, "a", 1, 1, NULL, NULL),
                     MOEC_E_INTERNAL);
    moec_strmap_fini(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_all_after_growing),
        cmocka_unit_test(never_allocates_up_to_what_was_expected),
        cmocka_unit_test(keeps_the_first_value),
        cmocka_unit_test(tells_keys_apart_by_all_bytes),
        cmocka_unit_test(seeds_differ_between_maps),
        cmocka_unit_test(failed_growth_keeps_the_map),
        cmocka_unit_test(an_empty_struct_holds_nothing),
    };

    make_keys();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
