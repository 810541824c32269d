/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The journal where the system fails: each call that changes something in
 * turn, names that are no file, memory. It says so, and what a later run finds
 * was noted before.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "journal.h"
#include "support/bent_calls.h"
#include "tmpdir.h"

enum { CELLS = 9000, EACH = 64 }; /* more than its buffers hold */

static const char identity[] = "command convert\n";

static struct {
    tmpdir dir;
    int fd;
    unsigned char cells[CELLS * EACH];
} t;

/* Reads: the n-th fails, or its bytes are others. */
static struct {
    int calls, fail_at, spoil_at;
} reads;

ssize_t pread(int fd, void *data, size_t n, off_t off)
{
    ssize_t got;

    if (++reads.calls == reads.fail_at) {
        errno = EIO;
        return -1;
    }
    got = syscall(SYS_pread64, fd, data, n, off);
    if (reads.calls == reads.spoil_at && got > 0)
        memset(data, 0, (size_t)got);
    return got;
}

static moec_status no_sync(void *ctx, moec_error *err)
{
    (void)ctx;
    (void)err;
    return MOEC_OK;
}

static moec_journal_opts options(void)
{
    return (moec_journal_opts){.dirfd = t.fd,
                               .where = "out.partial",
                               .identity = identity,
                               .identity_bytes = strlen(identity),
                               .cells = t.cells,
                               .cell_bytes = EACH,
                               .n_cells = CELLS};
}

static moec_journal *made(void)
{
    moec_journal_opts o = options();
    moec_journal *j = NULL;

    assert_int_equal(moec_journal_create(&j, &o, NULL), MOEC_OK);
    return j;
}

static int set_up(void **state)
{
    (void)state;
    t.dir = tmpdir_make();
    t.fd = open(t.dir.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return t.fd >= 0 ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    close(t.fd);
    tmpdir_remove(&t.dir);
    return 0;
}

/* A run: what was there, new cells, a mark, what is left. */
static moec_status run(moec_journal *j, moec_error *err)
{
    bool found;

    MOEC_TRY(moec_journal_load(j, &found, err));
    MOEC_TRY(moec_journal_begin(j, no_sync, NULL, err));
    for (uint64_t i = 0; i < 8; i++)
        MOEC_TRY(moec_journal_add(j, i * 10, 10, err));
    MOEC_TRY(moec_journal_mark(j, err));
    MOEC_TRY(moec_journal_add(j, 80, CELLS - 80, err));
    return moec_journal_flush(j, err);
}

static void each_failed_call_is_said(void **state)
{
    int n_calls = 0;

    (void)state;
    for (int n = 0; n <= n_calls; n++) { /* 0: none fails */
        moec_error err = MOEC_ERROR_INIT;
        moec_journal *j = made();
        moec_status st;
        bool found;

        assert_int_equal(run(j, NULL), MOEC_OK);
        moec_journal_destroy(j);
        j = made();
        bent.fail_at = n;
        atomic_store(&bent.calls, 0);
        st = run(j, &err);
        if (n == 0)
            n_calls = atomic_load(&bent.calls);
        moec_journal_doubt(j);
        bent.fail_at = 0;
        moec_journal_destroy(j);
        if (st != MOEC_OK && (st != MOEC_E_IO || err.text[0] == '\0'))
            fail_msg("call %d: %s %s", n, moec_status_name(st), err.text);
        j = made();
        assert_int_equal(moec_journal_load(j, &found, NULL), MOEC_OK);
        moec_journal_destroy(j);
    }
    assert_true(n_calls > 10);
}

/* Nothing is found of what cannot be read, or reads otherwise a second time. */
static void each_failed_read_is_said(void **state)
{
    moec_journal *j = made();
    moec_error err = MOEC_ERROR_INIT;
    int n_reads;
    bool found;

    (void)state;
    assert_int_equal(run(j, NULL), MOEC_OK);
    moec_journal_destroy(j);
    j = made();
    reads.calls = 0;
    assert_int_equal(moec_journal_load(j, &found, NULL), MOEC_OK);
    assert_true(found);
    n_reads = reads.calls;
    assert_true(n_reads > 4);
    for (int n = 1; n <= n_reads; n++) {
        reads.calls = 0;
        reads.fail_at = n;
        assert_int_equal(moec_journal_load(j, &found, NULL), MOEC_E_IO);
        assert_false(found || moec_journal_has(j, 0, 1));
        reads.fail_at = 0;
    }
    reads.calls = 0;
    reads.spoil_at = n_reads;
    assert_int_equal(moec_journal_load(j, &found, &err), MOEC_E_IO);
    assert_non_null(strstr(err.text, "changed while it was read"));
    assert_false(found || moec_journal_has(j, 0, 1));
    reads.spoil_at = 0;
    moec_journal_destroy(j);
}

/* Each clock look is a second: thirty adds make a mark due. */
static void marks_come_by_the_clock(void **state)
{
    moec_journal *j = made();
    bool found;

    (void)state;
    assert_int_equal(moec_journal_begin(j, no_sync, NULL, NULL), MOEC_OK);
    for (uint64_t i = 0; i < 100; i++)
        assert_int_equal(moec_journal_add(j, i, 1, NULL), MOEC_OK);
    moec_journal_destroy(j);
    j = made();
    assert_int_equal(moec_journal_load(j, &found, NULL), MOEC_OK);
    assert_true(found && moec_journal_has(j, 0, 100));
    /* durable cells are carried over, with a mark behind them */
    assert_int_equal(moec_journal_begin(j, NULL, NULL, NULL), MOEC_OK);
    moec_journal_destroy(j);
}

static void names_that_are_no_file_are_said(void **state)
{
    moec_journal *j = made();
    moec_error err = MOEC_ERROR_INIT;
    moec_buf text = {0};
    bool found = true;

    (void)state;
    assert_int_equal(symlinkat("elsewhere", t.fd, MOEC_JOURNAL_NAME), 0);
    assert_int_equal(moec_journal_load(j, &found, &err), MOEC_E_IO);
    assert_false(found);
    assert_non_null(strstr(err.text, "cannot open it"));
    assert_int_equal(moec_journal_identity(j, &text, &found, NULL), MOEC_E_IO);
    assert_int_equal(mkdirat(t.fd, MOEC_JOURNAL_NAME ".new", 0777), 0);
    err = (moec_error)MOEC_ERROR_INIT;
    assert_int_equal(moec_journal_begin(j, no_sync, NULL, &err), MOEC_E_IO);
    assert_non_null(strstr(err.text, "cannot make the file"));
    assert_int_equal(unlinkat(t.fd, MOEC_JOURNAL_NAME ".new", AT_REMOVEDIR), 0);
    moec_journal_destroy(j);
}

static void cells_and_names_have_limits(void **state)
{
    static char name[MOEC_JOURNAL_NAME_BYTES_MAX + 2];
    moec_journal_opts o = options();
    moec_journal *j = NULL;

    (void)state;
    o.cell_bytes = EACH + 1;
    assert_int_equal(moec_journal_create(&j, &o, NULL), MOEC_E_INTERNAL);
    o.cell_bytes = EACH;
    memset(name, 'x', sizeof(name) - 1);
    o.name = name;
    assert_int_equal(moec_journal_create(&j, &o, NULL), MOEC_E_INTERNAL);
    name[MOEC_JOURNAL_NAME_BYTES_MAX] = '\0';
    assert_int_equal(moec_journal_create(&j, &o, NULL), MOEC_OK);
    moec_journal_destroy(j);
}

static void tells_whose_it_is(void **state)
{
    moec_journal *j = made();
    moec_buf text = {0};
    bool found = true;

    (void)state;
    assert_int_equal(moec_journal_identity(j, &text, &found, NULL), MOEC_OK);
    assert_false(found);
    tmpdir_text(&t.dir, MOEC_JOURNAL_NAME, "no journal");
    assert_int_equal(moec_journal_identity(j, &text, &found, NULL), MOEC_OK);
    assert_false(found);
    assert_int_equal(moec_journal_begin(j, no_sync, NULL, NULL), MOEC_OK);
    for (uint64_t n = 1; n < 3; n++) {
        moec_alloc_fail_at(n);
        assert_int_equal(moec_journal_identity(j, &text, &found, NULL),
                         MOEC_E_NOMEM);
        moec_alloc_fail_at(0);
        moec_buf_fini(&text);
    }
    assert_int_equal(moec_journal_identity(j, &text, &found, NULL), MOEC_OK);
    assert_true(found);
    assert_int_equal(text.len, strlen(identity));
    assert_memory_equal(text.data, identity, text.len);
    moec_buf_fini(&text);
    moec_journal_destroy(j);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(each_failed_call_is_said),
        TEST(each_failed_read_is_said),
        TEST(marks_come_by_the_clock),
        TEST(names_that_are_no_file_are_said),
        TEST(cells_and_names_have_limits),
        TEST(tells_whose_it_is),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
