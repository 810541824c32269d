/* SPDX-License-Identifier: Apache-2.0
 *
 * Several processes convert ranks of one output, and another one finishes it:
 * the result is that of one process, file by file, in any division of the
 * ranks, in both ways of sharing, after any number of deaths. What does not
 * fit together is refused, and nothing of the others is lost. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>

#include "bent_calls.h"
#include "convert.h"
#include "outdir.h"
#include "plan_fixture.h"
#include "same_out.h"
#include "tmpdir.h"

enum { N_RANKS = 4 };

static struct {
    tmpdir dir;
    plan_fixture x;
    moec_convert_stats whole; /* of one process */
} t;

static moec_status convert(const moec_layout *layout, const char *ranks,
                           moec_sharing sharing, moec_convert_stats *stats,
                           moec_error *err)
{
    uint8_t mine[N_RANKS] = {0};
    moec_convert_opts o = {.n_threads = 2, .ranks = mine, .sharing = sharing};

    for (; *ranks != '\0'; ranks++)
        mine[*ranks - '0'] = 1;
    return moec_convert(layout, tmpdir_path(&t.dir, "out"), &o, stats, err);
}

static moec_convert_stats go(const char *ranks, moec_sharing sharing)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_convert_stats stats;

    if (convert(t.x.layout, ranks, sharing, &stats, &err) != MOEC_OK)
        fail_msg("ranks %s: %s", ranks, err.text);
    return stats;
}

static moec_status finalize(moec_error *err)
{
    moec_convert_opts o = {.n_threads = 1};
    moec_convert_stats stats;

    return moec_finalize(tmpdir_path(&t.dir, "out"), &o, &stats, err);
}

static void finish_and_check(void)
{
    moec_error err = MOEC_ERROR_INIT;

    if (finalize(&err) != MOEC_OK)
        fail_msg("%s", err.text);
    check_out(&t.dir);
}

static void refused(moec_status got, moec_status want, const moec_error *err,
                    const char *words)
{
    if (got != want || strstr(err->text, words) == NULL)
        fail_msg("%s, %s: %s", moec_status_name(want), words, err->text);
}

static void clear(void)
{
    const char *out = tmpdir_path(&t.dir, "out.partial");

    if (access(out, F_OK) == 0)
        assert_int_equal(nftw(out, tmpdir_unlink_, 16, FTW_DEPTH | FTW_PHYS),
                         0);
}

static moec_plan_opts plan_of(const char *name)
{
    moec_plan_opts o = MOEC_PLAN_OPTS_INIT;

    o.n_ranks = N_RANKS;
    o.n_redundant = strcmp(name, "qwen3_next") == 0 ? 4 : 8;
    return o;
}

static void open_fixture(const char *name)
{
    moec_plan_opts o = plan_of(name);
    moec_convert_opts all = {.n_threads = 2};
    moec_error err = MOEC_ERROR_INIT;

    t.dir = tmpdir_make();
    t.x = plan_fixture_open(name, &o);
    if (moec_convert(t.x.layout, tmpdir_path(&t.dir, "want"), &all, &t.whole,
                     &err) != MOEC_OK)
        fail_msg("%s", err.text);
}

static void close_fixture(void)
{
    plan_fixture_close(&t.x);
    tmpdir_remove(&t.dir);
}

static int set_up(void **state)
{
    (void)state;
    /* hundreds of small conversions wait for fsync and for nothing else */
    if (access("/dev/shm", W_OK) == 0)
        (void)setenv("TMPDIR", "/dev/shm", 0);
    open_fixture("deepseek_v3");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    close_fixture();
    return 0;
}

/* ------------------------------------------------------------------ tests */

static void any_division_gives_the_bytes_of_one_process(void **state)
{
    static const char *const divisions[][N_RANKS + 1] = {
        {"0", "1", "2", "3", NULL}, {"3", "2", "1", "0", NULL},
        {"03", "12", NULL},         {"123", "0", NULL},
        {"012", "123", NULL}, /* what is there is left as it is */
    };

    (void)state;
    for (moec_sharing how = MOEC_SHARING_ONCE; how <= MOEC_SHARING_FILES; how++)
        for (size_t i = 0; i < sizeof(divisions) / sizeof(*divisions); i++) {
            for (size_t k = 0; divisions[i][k] != NULL; k++)
                (void)go(divisions[i][k], how);
            finish_and_check();
        }
}

static void every_family_divides(void **state)
{
    static const char *const names[] = {"qwen2_moe", "gpt_oss", "llama4",
                                        "deepseek_v3_fp8", "qwen3_next"};

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        plan_fixture outer = t.x;
        moec_convert_stats whole = t.whole;
        tmpdir dir = t.dir;
        open_fixture(names[i]);
        for (moec_sharing how = MOEC_SHARING_ONCE; how <= MOEC_SHARING_FILES;
             how++) {
            (void)go("02", how);
            (void)go("13", how);
            finish_and_check();
        }
        close_fixture();
        t.x = outer;
        t.whole = whole;
        t.dir = dir;
    }
}

/* Replicas and shared experts included. */
static void reads_each_source_byte_once_in_the_job(void **state)
{
    uint64_t once = 0, apart = 0;

    (void)state;
    for (char k[2] = "0"; k[0] < '0' + N_RANKS; k[0]++)
        once += go(k, MOEC_SHARING_ONCE).bytes_read;
    finish_and_check();
    for (char k[2] = "0"; k[0] < '0' + N_RANKS; k[0]++)
        apart += go(k, MOEC_SHARING_FILES).bytes_read;
    finish_and_check();
    assert_true(once <= t.whole.bytes_read + t.whole.bytes_read / 100);
    assert_true(apart > once);
}

static void one_process_after_another_takes_what_is_there(void **state)
{
    (void)state;
    moec_convert_stats first = go("01", MOEC_SHARING_ONCE);
    moec_convert_stats again = go("1", MOEC_SHARING_FILES); /* ONCE stands */
    assert_int_equal(again.bytes_written, 0);
    assert_true(again.bytes_resumed > 0);
    assert_true(again.bytes_resumed < first.bytes_written);
    (void)go("23", MOEC_SHARING_ONCE);
    finish_and_check();
}

static void finalize_names_what_is_missing(void **state)
{
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    refused(finalize(&err), MOEC_E_FORMAT, &err, "holds no converted ranks");
    (void)go("0", MOEC_SHARING_ONCE);
    err = (moec_error)MOEC_ERROR_INIT;
    refused(finalize(&err), MOEC_E_FORMAT, &err,
            "ranks 1-3 of 4 are not converted: run the same convert command "
            "with --ranks 1-3, then");
    (void)go("13", MOEC_SHARING_ONCE);
    err = (moec_error)MOEC_ERROR_INIT;
    refused(finalize(&err), MOEC_E_FORMAT, &err, "rank 2 of 4 is not");
    (void)go("2", MOEC_SHARING_ONCE);
    finish_and_check();
    (void)go("1", MOEC_SHARING_ONCE); /* without rank 0 nobody knows the plan */
    err = (moec_error)MOEC_ERROR_INIT;
    refused(finalize(&err), MOEC_E_FORMAT, &err, "ranks 0,2-3 of 4");
    clear();
}

static void refuses_other_options(void **state)
{
    moec_plan_opts o = plan_of("deepseek_v3");
    moec_error err = MOEC_ERROR_INIT;
    moec_convert_stats stats;

    (void)state;
    (void)go("0", MOEC_SHARING_ONCE);
    o.w13_order = MOEC_W13_UP_GATE;
    plan_fixture other = plan_fixture_open("deepseek_v3", &o);
    refused(convert(other.layout, "1", MOEC_SHARING_ONCE, &stats, &err),
            MOEC_E_ARG, &err, "--w13-order up-gate' now");
    plan_fixture_close(&other);
    o = plan_of("olmoe");
    other = plan_fixture_open("olmoe", &o);
    err = (moec_error)MOEC_ERROR_INIT;
    refused(convert(other.layout, "1", MOEC_SHARING_ONCE, &stats, &err),
            MOEC_E_ARG, &err, "belongs to another conversion");
    plan_fixture_close(&other);
    (void)go("123", MOEC_SHARING_ONCE);
    finish_and_check();
}

/* Not by mistake, either. */
static void all_ranks_and_some_do_not_mix(void **state)
{
    moec_convert_opts all = {.n_threads = 1};
    moec_error err = MOEC_ERROR_INIT;
    moec_convert_stats stats;
    const char *out = tmpdir_path(&t.dir, "out");

    (void)state;
    (void)go("0", MOEC_SHARING_ONCE);
    refused(moec_convert(t.x.layout, out, &all, &stats, &err), MOEC_E_ARG, &err,
            "is being converted by ranks");
    (void)go("123", MOEC_SHARING_ONCE);
    finish_and_check();
}

static int lock_of(const char *name)
{
    char path[300];

    (void)snprintf(path, sizeof(path), "out.partial/%s", name);
    int fd = open(tmpdir_path(&t.dir, path), O_RDWR | O_CREAT, 0666);
    assert_true(fd >= 0);
    assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), 0);
    return fd;
}

static void one_rank_has_one_process(void **state)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_convert_stats stats;

    (void)state;
    (void)go("013", MOEC_SHARING_ONCE);
    int fd = lock_of(".moec-rank-00002.lock");
    refused(convert(t.x.layout, "2", MOEC_SHARING_ONCE, &stats, &err),
            MOEC_E_LOCKED, &err, "rank 2 is being converted");
    err = (moec_error)MOEC_ERROR_INIT;
    refused(finalize(&err), MOEC_E_LOCKED, &err, "rank 2 is still being");
    (void)go("3", MOEC_SHARING_ONCE); /* others do not mind */
    close(fd);
    (void)go("2", MOEC_SHARING_ONCE);
    finish_and_check();
}

/* A file that goes takes the work of all with it: never zeros instead. */
static void notices_a_file_that_was_removed(void **state)
{
    static const char *const name =
        "out.partial/experts-rank-00001-of-00004-part-00001.safetensors";
    moec_error err = MOEC_ERROR_INIT;
    moec_convert_stats stats;

    (void)state;
    (void)go("012", MOEC_SHARING_ONCE);
    assert_int_equal(unlink(tmpdir_path(&t.dir, name)), 0);
    refused(convert(t.x.layout, "3", MOEC_SHARING_ONCE, &stats, &err),
            MOEC_E_FORMAT, &err, "is lost: remove");
    clear();
    (void)go("0123", MOEC_SHARING_ONCE);
    FILE *f = fopen(tmpdir_path(&t.dir, name), "r+b");
    assert_non_null(f);
    assert_int_equal(fputc('x', f), 'x');
    assert_int_equal(fclose(f), 0);
    err = (moec_error)MOEC_ERROR_INIT;
    refused(finalize(&err), MOEC_E_INTEGRITY, &err, "is not as it was made");
    clear();
}

/* One step of a job in a process of its own that dies at its n-th call. True
 * where it came to its end. */
static bool child(const char *ranks, moec_sharing how, int die_at)
{
    int status;
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        moec_convert_stats stats;
        moec_error err = MOEC_ERROR_INIT;
        moec_status st;

        atomic_store(&bent.calls, 0);
        bent.die_at = die_at;
        st = ranks ? convert(t.x.layout, ranks, how, &stats, &err)
                   : finalize(&err);
        if (st != MOEC_OK)
            print_error("%s\n", err.text);
        _exit(st == MOEC_OK ? 0 : 70);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status))
        assert_int_equal(WEXITSTATUS(status), 0);
    return WIFEXITED(status);
}

static void dies_anywhere_and_goes_on(void **state)
{
    int deaths = 0;

    (void)state;
    for (int n = 1; n < 500; n += n < 20 ? 4 : 61) {
        moec_sharing how = n % 2 ? MOEC_SHARING_ONCE : MOEC_SHARING_FILES;

        for (int at = n; !child("02", how, at); at += 40)
            deaths++;
        for (int at = n; !child("13", how, at); at += 40)
            deaths++;
        /* behind the rename OUT is there, and there is nothing to do */
        for (int at = 1 + n % 45; access(tmpdir_path(&t.dir, "out"), F_OK) != 0;
             at += 3)
            deaths += !child(NULL, how, at);
        check_out(&t.dir);
    }
    assert_true(deaths >= 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_division_gives_the_bytes_of_one_process),
        cmocka_unit_test(every_family_divides),
        cmocka_unit_test(reads_each_source_byte_once_in_the_job),
        cmocka_unit_test(one_process_after_another_takes_what_is_there),
        cmocka_unit_test(finalize_names_what_is_missing),
        cmocka_unit_test(refuses_other_options),
        cmocka_unit_test(all_ranks_and_some_do_not_mix),
        cmocka_unit_test(one_rank_has_one_process),
        cmocka_unit_test(notices_a_file_that_was_removed),
        cmocka_unit_test(dies_anywhere_and_goes_on),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
