/* SPDX-License-Identifier: Apache-2.0
 *
 * The standing pool. Run under the thread sanitizer too. */

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/base.h"

struct sums {
    atomic_uint runs[1000];
    atomic_uint workers;
};

static void count(void *ctx, size_t item, uint32_t worker)
{
    struct sums *s = ctx;

    atomic_fetch_add(&s->runs[item], 1);
    atomic_fetch_or(&s->workers, 1u << worker);
}

static void runs_every_item_once(void **state)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_pool *p = NULL;
    static struct sums s;

    (void)state;
    assert_int_equal(moec_pool_create(&p, 3, &err), MOEC_OK);
    for (unsigned turn = 1; turn <= 2000; turn++) {
        size_t n = turn % 7 == 0 ? 1 : turn % 1000;

        memset(&s, 0, sizeof(s));
        moec_pool_run(p, n, count, &s);
        for (size_t i = 0; i < 1000; i++)
            assert_int_equal(atomic_load(&s.runs[i]), i < n ? 1 : 0);
        assert_true(atomic_load(&s.workers) < 1u << 3);
    }
    moec_pool_destroy(p);
}

static void wakes_sleeping_threads(void **state)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_pool *p = NULL;
    static struct sums s;

    (void)state;
    assert_int_equal(moec_pool_create(&p, 2, &err), MOEC_OK);
    for (int i = 0; i < 5; i++) {
        struct timespec nap = {.tv_nsec = 2000000};

        nanosleep(&nap, NULL); /* longer than a thread spins */
        moec_pool_run(p, 100, count, &s);
    }
    for (size_t i = 0; i < 100; i++)
        assert_int_equal(atomic_load(&s.runs[i]), 5);
    moec_pool_destroy(p);
}

static void runs_on_the_caller_without_a_pool(void **state)
{
    static struct sums s;

    (void)state;
    moec_pool_run(NULL, 10, count, &s);
    assert_int_equal(atomic_load(&s.runs[9]), 1);
    assert_int_equal(atomic_load(&s.workers), 1);
    assert_int_equal(moec_pool_n_threads(NULL), 1);
    moec_pool_destroy(NULL);
}

static void says_when_memory_is_short(void **state)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_pool *p = NULL;

    (void)state;
    moec_alloc_fail_at(1);
    assert_int_equal(moec_pool_create(&p, 2, &err), MOEC_E_NOMEM);
    moec_alloc_fail_at(0);
    assert_null(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_every_item_once),
        cmocka_unit_test(wakes_sleeping_threads),
        cmocka_unit_test(runs_on_the_caller_without_a_pool),
        cmocka_unit_test(says_when_memory_is_short),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
