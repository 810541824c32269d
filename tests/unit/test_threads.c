/* SPDX-License-Identifier: Apache-2.0
 *
 * The parallel loop. Run under the thread sanitizer too. */

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/base.h"

static void nap_us(long us)
{
    struct timespec t = {0, us * 1000};

    nanosleep(&t, NULL);
}

enum { N = 5000 };

struct seen {
    unsigned char times[N]; /* each item's own byte: no lock needed */
    atomic_uint workers;    /* bit mask */
};

static moec_status note_item(void *ctx, size_t item, uint32_t worker,
                             moec_error *err)
{
    struct seen *s = ctx;

    (void)err;
    s->times[item]++;
    atomic_fetch_or(&s->workers, 1u << worker);
    return MOEC_OK;
}

static void runs_every_item_once(void **state)
{
    static const uint32_t threads[] = {0, 1, 2, 7};

    (void)state;
    for (size_t t = 0; t < sizeof(threads) / sizeof(threads[0]); t++) {
        struct seen s;
        memset(&s, 0, sizeof(s));
        assert_int_equal(moec_parallel(threads[t], N, note_item, &s, NULL),
                         MOEC_OK);
        for (size_t i = 0; i < N; i++)
            assert_int_equal(s.times[i], 1);
        if (threads[t] > 0)
            assert_true(s.workers < 1u << threads[t]);
    }
}

static moec_status never(void *ctx, size_t item, uint32_t worker,
                         moec_error *err)
{
    (void)ctx;
    (void)worker;
    return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE, "item %zu", item);
}

static void runs_nothing_for_no_items(void **state)
{
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    assert_int_equal(moec_parallel(4, 0, never, NULL, &err), MOEC_OK);
    assert_int_equal(err.status, MOEC_OK);
}

/* Items 17 and above fail; 17 itself as the last of those that have begun. */
static moec_status fail_late(void *ctx, size_t item, uint32_t worker,
                             moec_error *err)
{
    atomic_uint *ran = ctx;

    (void)worker;
    atomic_fetch_add(ran, 1);
    if (item < 17)
        return MOEC_OK;
    if (item == 17)
        nap_us(1500);
    return moec_fail(err, item == 17 ? MOEC_E_FORMAT : MOEC_E_IO,
                     MOEC_RULE_NONE, "item %zu", item);
}

static void reports_the_lowest_failing_item(void **state)
{
    (void)state;
    for (uint32_t threads = 1; threads <= 8; threads++) {
        moec_error err = MOEC_ERROR_INIT;
        atomic_uint ran = 0;
        assert_int_equal(moec_parallel(threads, 100, fail_late, &ran, &err),
                         MOEC_E_FORMAT);
        assert_string_equal(err.text, "item 17");
        /* One failing item for each thread, and no more. */
        assert_in_range(ran, 18, 17 + threads);
    }
}

static void an_earlier_error_stays(void **state)
{
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    moec_fail(&err, MOEC_E_ARG, MOEC_RULE_NONE, "before");
    assert_int_equal(moec_parallel(3, 9, never, NULL, &err), MOEC_E_INTERNAL);
    assert_string_equal(err.text, "before");
    assert_int_equal(moec_parallel(3, 9, never, NULL, NULL), MOEC_E_INTERNAL);
}

enum { MEET = 4 };

struct meeting {
    pthread_barrier_t barrier;
    pthread_t thread[MEET];
    char name[MEET][16];
    sigset_t mask[MEET];
};

/* All items wait for each other: each is on a thread of its own. */
static moec_status meet(void *ctx, size_t item, uint32_t worker,
                        moec_error *err)
{
    struct meeting *m = ctx;

    (void)item;
    (void)err;
    m->thread[worker] = pthread_self();
    pthread_getname_np(pthread_self(), m->name[worker], 16);
    pthread_sigmask(SIG_BLOCK, NULL, &m->mask[worker]);
    pthread_barrier_wait(&m->barrier);
    return MOEC_OK;
}

static void threads_are_named_and_deaf_to_signals(void **state)
{
    struct meeting m;
    sigset_t after;

    (void)state;
    memset(&m, 0, sizeof(m));
    pthread_barrier_init(&m.barrier, NULL, MEET);
    assert_int_equal(moec_parallel(MEET, MEET, meet, &m, NULL), MOEC_OK);
    pthread_barrier_destroy(&m.barrier);
    assert_true(pthread_equal(m.thread[0], pthread_self()));
    assert_false(sigismember(&m.mask[0], SIGINT));
    for (int i = 1; i < MEET; i++) {
        const char want[] = {'m', 'o', 'e', 'c', '/', (char)('0' + i), '\0'};
        assert_string_equal(m.name[i], want);
        assert_true(sigismember(&m.mask[i], SIGINT));
        assert_true(sigismember(&m.mask[i], SIGTERM));
        assert_true(sigismember(&m.mask[i], SIGUSR1));
    }
    pthread_sigmask(SIG_BLOCK, NULL, &after);
    assert_false(sigismember(&after, SIGINT));
}

static void counts_the_cpus_of_its_cpuset(void **state)
{
    cpu_set_t before, one;
    int cpu = 0;
    uint32_t n = moec_cpu_count();

    (void)state;
    if (sched_getaffinity(0, sizeof(before), &before) != 0)
        skip();
    assert_in_range(n, 1, (unsigned)CPU_COUNT(&before));
    while (!CPU_ISSET((unsigned)cpu, &before))
        cpu++;
    CPU_ZERO(&one);
    CPU_SET((unsigned)cpu, &one);
    if (sched_setaffinity(0, sizeof(one), &one) != 0)
        skip();
    n = moec_cpu_count();
    sched_setaffinity(0, sizeof(before), &before);
    assert_int_equal(n, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_every_item_once),
        cmocka_unit_test(runs_nothing_for_no_items),
        cmocka_unit_test(reports_the_lowest_failing_item),
        cmocka_unit_test(an_earlier_error_stays),
        cmocka_unit_test(threads_are_named_and_deaf_to_signals),
        cmocka_unit_test(counts_the_cpus_of_its_cpuset),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
