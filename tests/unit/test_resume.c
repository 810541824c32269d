/* SPDX-License-Identifier: Apache-2.0
 *
 * A conversion that dies at the n-th system call that changes something, and
 * the same conversion again: the result is that of an undisturbed one, file by
 * file. The calls are replaced here: the n-th kills the process (a write first
 * writes its half) or fails. The clock runs a second at each look, so that the
 * journal is written at every step, and marks are made. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bent_calls.h"
#include "convert.h"
#include "journal.h"
#include "plan_fixture.h"
#include "same_out.h"
#include "tmpdir.h"

/* ---------------------------------------------------------------- helpers */

static struct {
    tmpdir dir;
    plan_fixture x;
    int n_calls; /* of an undisturbed conversion on one thread */
} t;

static moec_status convert(const char *out, uint32_t n_threads,
                           moec_convert_stats *stats, moec_error *err)
{
    moec_convert_opts o = {.n_threads = n_threads};

    if (n_threads == 2)
        o.memory_bytes = 40u << 20; /* other ranges of work */
    return moec_convert(t.x.layout, tmpdir_path(&t.dir, out), &o, stats, err);
}

static void go(const char *out, uint32_t n_threads, moec_convert_stats *stats)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_convert_stats none;

    if (convert(out, n_threads, stats ? stats : &none, &err) != MOEC_OK)
        fail_msg("%s", err.text);
}

/* The conversion in a process of its own that dies or fails at its n-th call.
 * Returns true where it came to its end. */
static bool child(int die_at, int fail_at, uint32_t n_threads)
{
    int status;
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        moec_convert_stats stats;
        moec_status st;

        atomic_store(&bent.calls, 0);
        bent.die_at = die_at;
        bent.fail_at = fail_at;
        st = convert("out", n_threads, &stats, NULL);
        if (st == MOEC_E_DURABILITY) /* done; the parent's fsync failed */
            st = MOEC_E_IO;
        _exit(st == MOEC_OK ? 0 : st == MOEC_E_IO ? 4 : 70);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFSIGNALED(status))
        assert_int_equal(WTERMSIG(status), SIGKILL);
    else if (WEXITSTATUS(status) != 0)
        assert_int_equal(WEXITSTATUS(status), 4);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static bool exists(const char *name)
{
    return access(tmpdir_path(&t.dir, name), F_OK) == 0;
}

static int set_up(void **state)
{
    moec_plan_opts opts = plan_fixture_opts();

    (void)state;
    t.dir = tmpdir_make();
    t.x = plan_fixture_open("deepseek_v3", &opts);
    atomic_store(&bent.calls, 0);
    go("want", 1, NULL);
    t.n_calls = atomic_load(&bent.calls);
    return t.n_calls > 100 ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    plan_fixture_close(&t.x);
    tmpdir_remove(&t.dir);
    return 0;
}

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

/* ------------------------------------------------------------------ tests */

/* First deaths spread over all of a run; then again and again, later and
 * later, until one comes through. */
static void dies_anywhere_and_goes_on(void **state)
{
    uint32_t seed = 7;
    int deaths = 0, found = 0;

    (void)state;
    for (int n = 1; n < t.n_calls; n += 1 + t.n_calls / 60) {
        int at = n;
        for (uint32_t i = 0; !child(at, 0, 1 + i % 4); i++) {
            deaths++;
            found += exists("out.partial/" MOEC_JOURNAL_NAME);
            if (exists("out")) /* between the rename and the end */
                break;
            at = 1 + (int)(next_random(&seed) % (uint32_t)(t.n_calls / 3));
        }
        check_out(&t.dir);
    }
    assert_true(deaths >= 100);
    assert_true(found >= 60);
}

/* EIO instead of death, at every call in turn: what a failed fsync may have
 * lost is not gone on with. */
static void fails_anywhere_and_goes_on(void **state)
{
    (void)state;
    for (int n = 2; n < t.n_calls; n += 1 + t.n_calls / 60) {
        (void)child(0, n, 3);
        if (!exists("out"))
            go("out", 2, NULL);
        check_out(&t.dir);
    }
}

static void does_only_what_is_left(void **state)
{
    moec_convert_stats whole, stats;

    (void)state;
    go("out", 1, &whole);
    assert_int_equal(whole.bytes_resumed, 0);
    check_out(&t.dir);
    assert_false(child(t.n_calls / 2, 0, 1));
    go("out", 4, &stats);
    assert_true(stats.bytes_resumed > whole.bytes_written / 8);
    assert_true(stats.bytes_written > whole.bytes_written / 8);
    assert_int_equal(stats.bytes_resumed + stats.bytes_written,
                     whole.bytes_written);
    assert_true(stats.bytes_read < whole.bytes_read);
    check_out(&t.dir);
}

static void starts_over_where_a_data_file_is_not_as_it_was(void **state)
{
    static const char *const name =
        "out.partial/experts-rank-00001-of-00002-part-00001.safetensors";
    moec_convert_stats stats;

    (void)state;
    for (int i = 0; i < 3; i++) {
        assert_false(child(t.n_calls / 2, 0, 1));
        if (i == 0)
            assert_int_equal(unlink(tmpdir_path(&t.dir, name)), 0);
        else if (i == 1)
            assert_int_equal(truncate(tmpdir_path(&t.dir, name), 4096), 0);
        else
            assert_int_equal(
                truncate(tmpdir_path(&t.dir, "out.partial/" MOEC_JOURNAL_NAME),
                         40),
                0);
        go("out", 2, &stats);
        assert_int_equal(stats.bytes_resumed, 0);
        check_out(&t.dir);
    }
}

static void removes_what_is_not_its_own_and_keeps_what_is(void **state)
{
    moec_convert_stats stats;

    (void)state;
    assert_false(child(t.n_calls / 2, 0, 1));
    tmpdir_text(&t.dir, "out.partial/manifest.json", "{}");
    tmpdir_text(&t.dir, "out.partial/slots.bin", "half of it");
    go("out", 2, &stats);
    assert_true(stats.bytes_resumed > 0);
    check_out(&t.dir);
}

static void refuses_another_plan_and_leaves_all_as_it_is(void **state)
{
    moec_plan_opts opts = plan_fixture_opts();
    moec_error err = MOEC_ERROR_INIT;
    moec_convert_stats stats;
    plan_fixture mine = t.x;
    moec_status st;

    (void)state;
    assert_false(child(t.n_calls / 2, 0, 1));
    opts.w13_order = MOEC_W13_UP_GATE;
    t.x = plan_fixture_open("deepseek_v3", &opts);
    st = convert("out", 1, &stats, &err);
    plan_fixture_close(&t.x);
    t.x = mine;
    assert_int_equal(st, MOEC_E_ARG);
    assert_non_null(strstr(err.text, "--w13-order gate-up' then"));
    go("out", 1, &stats);
    assert_true(stats.bytes_resumed > 0);
    check_out(&t.dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dies_anywhere_and_goes_on),
        cmocka_unit_test(fails_anywhere_and_goes_on),
        cmocka_unit_test(does_only_what_is_left),
        cmocka_unit_test(starts_over_where_a_data_file_is_not_as_it_was),
        cmocka_unit_test(removes_what_is_not_its_own_and_keeps_what_is),
        cmocka_unit_test(refuses_another_plan_and_leaves_all_as_it_is),
    };

    /* Thousands of fsyncs: they are to be called, not waited for. */
    if (getenv("TMPDIR") == NULL && access("/dev/shm", W_OK) == 0)
        (void)setenv("TMPDIR", "/dev/shm", 1);
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
