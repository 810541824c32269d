/* SPDX-License-Identifier: Apache-2.0
 *
 * Re-placed conversions against fresh ones with that placement, file by file;
 * and re-placements that die or fail at their n-th system call and are run
 * again. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <sys/wait.h>
#include <unistd.h>

#include "bent_calls.h"
#include "journal.h"
#include "place.h"
#include "plan_fixture.h"
#include "same_out.h"
#include "tmpdir.h"

static moec_families *families;
static uint64_t seed = 11;

static uint32_t draw(uint32_t n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((seed >> 33) % n);
}

static int set_up(void **state)
{
    moec_error err = MOEC_ERROR_INIT;
    (void)state;
    return moec_families_create(&families, &err) == MOEC_OK ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    moec_families_destroy(families);
    return 0;
}

/* --------------------------------------------------------------- pieces */

/* `change` of 10 slots of the base placement hold something else. */
static moec_placement *make_placement(const moec_model *m, uint32_t redundant,
                                      uint32_t change)
{
    uint32_t n_layers = (uint32_t)moec_model_n_layers(m);
    uint32_t e = moec_model_facts(m)->n_experts, n = e + redundant;
    int32_t *rows = calloc((size_t)n_layers * n, sizeof(*rows));
    moec_error err = MOEC_ERROR_INIT;
    moec_placement *p = NULL;

    assert_non_null(rows);
    for (uint32_t i = 0; i < n_layers; i++) {
        int32_t *row = rows + (size_t)i * n;

        for (uint32_t k = 0; k < n; k++)
            row[k] = (int32_t)(k % e);
        for (uint32_t k = 0; k < n; k++) {
            uint32_t at = draw(n);
            int32_t t = row[k];

            if (draw(10) >= change)
                continue;
            row[k] = row[at];
            row[at] = t;
        }
    }
    if (moec_placement_from_rows(&p, n_layers, e, n, rows, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    free(rows);
    return p;
}

/* A model, and layouts of it. */
typedef struct subject {
    moec_ckpt *ckpt;
    moec_model *model;
} subject;

static subject open_model(const char *name)
{
    moec_error err = MOEC_ERROR_INIT;
    subject s = {0};
    char path[512];

    plan_fixture_path(path, sizeof(path), name);
    if (moec_ckpt_open(&s.ckpt, path, NULL, &err) != MOEC_OK ||
        moec_model_open(&s.model, s.ckpt, families, &err) != MOEC_OK)
        fail_msg("%s: %s", name, err.text);
    return s;
}

static void close_model(subject *s)
{
    moec_model_destroy(s->model);
    moec_ckpt_close(s->ckpt);
}

static moec_layout *make_layout(const moec_model *m, moec_plan_opts o,
                                const moec_placement *p, moec_plan **plan_out)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_layout *layout = NULL;

    o.placement = p;
    o.n_redundant = 0;
    if (moec_plan_create(plan_out, m, &o, &err) != MOEC_OK ||
        moec_layout_create(&layout, *plan_out, 256 << 10, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    return layout;
}

/* A fresh conversion of `m` as `out`. */
static void convert(const moec_model *m, moec_plan_opts o,
                    const moec_placement *p, const char *out)
{
    moec_convert_opts c = {.n_threads = 2, .hash_source = true};
    moec_error err = MOEC_ERROR_INIT;
    moec_convert_stats stats;
    moec_plan *plan = NULL;
    moec_layout *layout = make_layout(m, o, p, &plan);

    if (moec_convert(layout, out, &c, &stats, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    moec_layout_destroy(layout);
    moec_plan_destroy(plan);
}

/* Place the conversion `from` anew as `out`. */
static moec_status place(const char *from, moec_plan_opts o,
                         const moec_placement *p, const char *out,
                         moec_convert_stats *stats, moec_error *err)
{
    moec_convert_opts c = {.n_threads = 2, .force = strcmp(from, out) == 0};
    moec_conversion *conv = NULL;
    moec_plan *plan = NULL;
    moec_status st = moec_conversion_open(&conv, from, families, err);

    if (st != MOEC_OK)
        return st;
    c.source = conv;
    moec_layout *layout = make_layout(
        moec_plan_model(moec_layout_plan(moec_conversion_layout(conv))), o, p,
        &plan);
    st = moec_place(layout, out, &c, stats, err);
    moec_layout_destroy(layout);
    moec_plan_destroy(plan);
    moec_conversion_close(conv);
    return st;
}

static void placed(const char *from, moec_plan_opts o, const moec_placement *p,
                   const char *out, moec_convert_stats *stats)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_convert_stats none;

    if (place(from, o, p, out, stats ? stats : &none, &err) != MOEC_OK)
        fail_msg("%s", err.text);
}

/* ---------------------------------------------------------------- tests */

static void check_one(const char *name, moec_plan_opts o, uint32_t before,
                      uint32_t after, uint32_t change)
{
    tmpdir d = tmpdir_make();
    subject s = open_model(name);
    moec_placement *a = make_placement(s.model, before, change);
    moec_placement *b = make_placement(s.model, after, change);

    convert(s.model, o, a, tmpdir_path(&d, "from"));
    convert(s.model, o, b, tmpdir_path(&d, "want"));
    placed(tmpdir_path(&d, "from"), o, b, tmpdir_path(&d, "out"), NULL);
    check_out(&d);
    moec_placement_destroy(a);
    moec_placement_destroy(b);
    close_model(&s);
    tmpdir_remove(&d);
}

static void equals_a_fresh_conversion(void **state)
{
    moec_plan_opts o = MOEC_PLAN_OPTS_INIT;
    (void)state;

    for (size_t i = 0; i < PLAN_FIXTURES; i++) {
        o.n_ranks = 2;
        check_one(plan_fixture_names[i], o, 2, i % 2 ? 2 : 4,
                  (uint32_t)i % 3 * 5);
    }
    o.n_ranks = 4;
    check_one("mixtral", o, 4, 4, 0); /* nothing changes */
    o.shared_store_common = 1;
    check_one("deepseek_v3", o, 4, 8, 9);
    o.shared_store_common = 0;
    o.shared = MOEC_SHARED_SLOTS_GLOBAL;
    o.w13_order = MOEC_W13_UP_GATE;
    check_one("deepseek_v2", o, 0, 4, 9);
    o.shared = MOEC_SHARED_SLOTS_OFF;
    o.no_mtp = 1;
    check_one("deepseek_v3", o, 4, 0, 3);
    o = (moec_plan_opts)MOEC_PLAN_OPTS_INIT;
    o.n_ranks = 3;
    o.allow_empty = 1; /* 8 + 2 slots, two empty ones; then 8 + 3, one */
    check_one("olmoe", o, 2, 3, 9);
    check_one("olmoe", o, 4, 2, 9); /* none, then two: their digest is new */
}

static void refuses_what_is_no_replacement(void **state)
{
    tmpdir d = tmpdir_make();
    subject s = open_model("mixtral");
    moec_plan_opts o = MOEC_PLAN_OPTS_INIT;
    moec_placement *p = make_placement(s.model, 0, 5);
    moec_error err = MOEC_ERROR_INIT;
    moec_convert_stats stats;
    (void)state;

    o.n_ranks = 2;
    convert(s.model, o, p, tmpdir_path(&d, "from"));
    o.w13_order = MOEC_W13_UP_GATE;
    assert_int_equal(place(tmpdir_path(&d, "from"), o, p,
                           tmpdir_path(&d, "out"), &stats, &err),
                     MOEC_E_MAPPING);
    assert_non_null(strstr(err.text, "--w13-order"));
    assert_int_not_equal(access(tmpdir_path(&d, "out.partial"), F_OK), 0);
    /* A file cut short. */
    o.w13_order = MOEC_W13_GATE_UP;
    err = (moec_error)MOEC_ERROR_INIT;
    assert_int_equal(
        truncate(
            tmpdir_path(
                &d, "from/experts-rank-00001-of-00002-part-00001.safetensors"),
            8192),
        0);
    assert_int_equal(place(tmpdir_path(&d, "from"), o, p,
                           tmpdir_path(&d, "out"), &stats, &err),
                     MOEC_E_INTEGRITY);
    moec_placement_destroy(p);
    close_model(&s);
    tmpdir_remove(&d);
}

/* --------------------------------------------------------------- faults */

static struct {
    tmpdir d;
    subject s;
    moec_plan_opts o;
    moec_placement *a, *b;
    int n_calls; /* of an undisturbed re-placement */
} t;

/* The re-placement in a process that dies or fails at its n-th call. True
 * where it came to its end. */
static bool child(const char *from, const char *out, int die_at, int fail_at)
{
    char a[1024], b[1024];
    int status;
    pid_t pid;

    snprintf(a, sizeof(a), "%s", tmpdir_path(&t.d, from));
    snprintf(b, sizeof(b), "%s", tmpdir_path(&t.d, out));
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        moec_convert_stats stats;
        moec_status st;

        atomic_store(&bent.calls, 0);
        bent.die_at = die_at;
        bent.fail_at = fail_at;
        st = place(a, t.o, t.b, b, &stats, NULL);
        _exit(st == MOEC_OK                                ? 0
              : st == MOEC_E_IO || st == MOEC_E_DURABILITY ? 4
                                                           : 70);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFSIGNALED(status))
        assert_int_equal(WTERMSIG(status), SIGKILL);
    else if (WEXITSTATUS(status) != 0)
        assert_int_equal(WEXITSTATUS(status), 4);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static int set_up_faults(void **state)
{
    (void)state;
    t.d = tmpdir_make();
    t.s = open_model("deepseek_v3");
    t.o = (moec_plan_opts)MOEC_PLAN_OPTS_INIT;
    t.o.n_ranks = 2;
    t.a = make_placement(t.s.model, 4, 5);
    t.b = make_placement(t.s.model, 4, 5);
    convert(t.s.model, t.o, t.a, tmpdir_path(&t.d, "from"));
    convert(t.s.model, t.o, t.b, tmpdir_path(&t.d, "want"));
    atomic_store(&bent.calls, 0);
    placed(tmpdir_path(&t.d, "from"), t.o, t.b, tmpdir_path(&t.d, "out"), NULL);
    t.n_calls = atomic_load(&bent.calls);
    check_out(&t.d);
    return t.n_calls > 50 ? 0 : -1;
}

static int tear_down_faults(void **state)
{
    (void)state;
    moec_placement_destroy(t.a);
    moec_placement_destroy(t.b);
    close_model(&t.s);
    tmpdir_remove(&t.d);
    return 0;
}

static bool exists(const char *name)
{
    return access(tmpdir_path(&t.d, name), F_OK) == 0;
}

static void dies_anywhere_and_goes_on(void **state)
{
    int deaths = 0, found = 0;
    (void)state;

    for (int n = 1; n < t.n_calls; n += 1 + t.n_calls / 16) {
        int at = n;

        while (!child("from", "out", at, 0)) {
            deaths++;
            found += exists("out.partial/" MOEC_JOURNAL_NAME);
            if (exists("out"))
                break;
            at = 1 + (int)draw((uint32_t)t.n_calls);
        }
        check_out(&t.d);
    }
    assert_true(deaths >= 16);
    assert_true(found >= 5);
}

static void fails_anywhere_and_goes_on(void **state)
{
    (void)state;
    for (int n = 2; n < t.n_calls; n += 1 + t.n_calls / 16) {
        (void)child("from", "out", 0, n);
        if (!exists("out"))
            placed(tmpdir_path(&t.d, "from"), t.o, t.b,
                   tmpdir_path(&t.d, "out"), NULL);
        check_out(&t.d);
    }
}

/* OUT is replaced: it is the old one or the new one whenever it dies. */
static void what_is_replaced_is_never_half_there(void **state)
{
    (void)state;
    for (int n = 1; n < t.n_calls + 40; n += 1 + t.n_calls / 10) {
        moec_conversion *c = NULL;
        moec_error err = MOEC_ERROR_INIT;

        convert(t.s.model, t.o, t.a, tmpdir_path(&t.d, "out"));
        (void)child("out", "out", n, 0);
        if (moec_conversion_open(&c, tmpdir_path(&t.d, "out"), families,
                                 &err) != MOEC_OK)
            fail_msg("died at %d: %s", n, err.text);
        moec_conversion_close(c);
        if (n % 2 == 0)
            assert_int_equal(moec_place_tidy(tmpdir_path(&t.d, "out"), &err),
                             MOEC_OK);
        placed(tmpdir_path(&t.d, "out"), t.o, t.b, tmpdir_path(&t.d, "out"),
               NULL);
        assert_false(exists("out.partial"));
        check_out(&t.d);
    }
}

static void does_only_what_is_left(void **state)
{
    moec_convert_stats whole, stats;
    (void)state;

    placed(tmpdir_path(&t.d, "from"), t.o, t.b, tmpdir_path(&t.d, "out"),
           &whole);
    check_out(&t.d);
    assert_false(child("from", "out", t.n_calls / 2, 0));
    placed(tmpdir_path(&t.d, "from"), t.o, t.b, tmpdir_path(&t.d, "out"),
           &stats);
    assert_true(stats.bytes_resumed > 0);
    assert_int_equal(stats.bytes_resumed + stats.bytes_written,
                     whole.bytes_written);
    check_out(&t.d);
    /* Of another placement's work nothing is taken. */
    assert_false(child("from", "out", t.n_calls / 2, 0));
    assert_int_equal(place(tmpdir_path(&t.d, "from"), t.o, t.a,
                           tmpdir_path(&t.d, "out"), &stats, NULL),
                     MOEC_E_ARG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_a_fresh_conversion),
        cmocka_unit_test(refuses_what_is_no_replacement),
    };
    const struct CMUnitTest faults[] = {
        cmocka_unit_test(dies_anywhere_and_goes_on),
        cmocka_unit_test(fails_anywhere_and_goes_on),
        cmocka_unit_test(what_is_replaced_is_never_half_there),
        cmocka_unit_test(does_only_what_is_left),
    };
    int failed;

    /* Hundreds of fsyncs: 2 s in memory, 20 on a busy disk. What dies here is
     * the process, not the machine. */
    if (!getenv("TMPDIR") && access("/dev/shm", W_OK) == 0)
        setenv("TMPDIR", "/dev/shm", 1);
    if (set_up(NULL) != 0)
        return 1;
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    failed += cmocka_run_group_tests(faults, set_up_faults, tear_down_faults);
    (void)tear_down(NULL);
    return failed;
}
