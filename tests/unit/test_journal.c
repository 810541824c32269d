/* SPDX-License-Identifier: Apache-2.0
 *
 * The journal of an unfinished output: what was noted is found again, and
 * nothing else is ever found, wherever the file was cut, whichever bit fell
 * over, whether the process died or the machine. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "journal.h"
#include "tmpdir.h"

enum { CELLS = 2700, EACH = 48, HEAD = 48, SUM = 16, RECORD = 16 };

static const char identity[] = "command convert\noption --ep 4\nlayout 00ff\n";

static struct {
    tmpdir dir;
    int fd;
    unsigned char cells[CELLS * EACH];
    moec_status sync_status;
    unsigned n_syncs;
} t;

/* ---------------------------------------------------------------- helpers */

static moec_status sync_data(void *ctx, moec_error *err)
{
    (void)ctx;
    t.n_syncs++;
    return t.sync_status == MOEC_OK
               ? MOEC_OK
               : moec_fail(err, t.sync_status, MOEC_RULE_NONE, "no sync");
}

static moec_journal *made(const char *text, size_t each, size_t n)
{
    moec_journal_opts o = {.dirfd = t.fd,
                           .where = "out.partial",
                           .identity = text,
                           .identity_bytes = strlen(text),
                           .cells = t.cells,
                           .cell_bytes = each,
                           .n_cells = n};
    moec_journal *j = NULL;

    assert_int_equal(moec_journal_create(&j, &o, NULL), MOEC_OK);
    return j;
}

static moec_journal *begun(void)
{
    moec_journal *j = made(identity, EACH, CELLS);

    assert_int_equal(moec_journal_begin(j, sync_data, NULL, NULL), MOEC_OK);
    return j;
}

static void fill(uint64_t first, uint64_t n)
{
    for (uint64_t i = first * EACH; i < (first + n) * EACH; i++)
        t.cells[i] = (unsigned char)(i * 7 + i / 251);
}

static void add(moec_journal *j, uint64_t first, uint64_t n)
{
    fill(first, n);
    assert_int_equal(moec_journal_add(j, first, n, NULL), MOEC_OK);
}

/* Load into empty cells; the journal is the caller's to destroy. */
static moec_journal *loaded(bool want_found)
{
    moec_journal *j = made(identity, EACH, CELLS);
    moec_error err = MOEC_ERROR_INIT;
    bool found = !want_found;

    memset(t.cells, 0xee, sizeof(t.cells));
    if (moec_journal_load(j, &found, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    assert_int_equal(found, want_found);
    return j;
}

/* Exactly the cells [0, n) are found, with what was in them. */
static void check_first(const moec_journal *j, uint64_t n)
{
    static unsigned char got[sizeof(t.cells)];

    memcpy(got, t.cells, sizeof(got));
    fill(0, CELLS);
    for (uint64_t i = 0; i < CELLS; i++)
        assert_int_equal(moec_journal_has(j, i, 1), i < n);
    assert_memory_equal(got, t.cells, n * EACH);
    assert_true(moec_journal_has(j, 0, n));
    assert_false(moec_journal_has(j, 0, n + 1));
}

static void check_found(uint64_t n)
{
    moec_journal *j = loaded(true);

    check_first(j, n);
    moec_journal_destroy(j);
}

static void check_none(void)
{
    moec_journal *j = loaded(false);

    check_first(j, 0);
    moec_journal_destroy(j);
}

static size_t get(unsigned char *out, size_t cap)
{
    int fd = openat(t.fd, MOEC_JOURNAL_NAME, O_RDONLY | O_CLOEXEC);
    ssize_t n = read(fd, out, cap);

    close(fd);
    assert_true(n > 0 && (size_t)n < cap);
    return (size_t)n;
}

static void put(const unsigned char *data, size_t n)
{
    tmpdir_write(&t.dir, MOEC_JOURNAL_NAME, data, n);
}

static size_t file_bytes(void)
{
    struct stat st;

    assert_int_equal(fstatat(t.fd, MOEC_JOURNAL_NAME, &st, 0), 0);
    return (size_t)st.st_size;
}

static void put_le(unsigned char *p, uint64_t v, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        p[i] = (unsigned char)(v >> 8 * i);
}

static void sum_up(unsigned char *data, size_t n)
{
    moec_xxh128 sum = moec_xxh128_of(data, n);

    memcpy(data + n, &sum, sizeof(sum));
}

/* The machine was started again: the file is of another boot. */
static void reboot(void)
{
    static unsigned char data[1 << 20];
    size_t n = get(data, sizeof(data));

    data[24] ^= 0x40;
    sum_up(data, HEAD + strlen(identity));
    put(data, n);
}

/* A record with a right digest behind what is there. */
static void append(uint32_t kind, uint32_t n, uint64_t first, size_t payload)
{
    static unsigned char data[1 << 20];
    size_t at = get(data, sizeof(data));

    memset(data + at, 0x5a, RECORD + payload);
    put_le(data + at, kind, 4);
    put_le(data + at + 4, n, 4);
    put_le(data + at + 8, first, 8);
    sum_up(data + at, RECORD + payload);
    put(data, at + RECORD + payload + SUM);
}

static int set_up(void **state)
{
    (void)state;
    t.dir = tmpdir_make();
    t.fd = open(t.dir.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    t.sync_status = MOEC_OK;
    t.n_syncs = 0;
    return t.fd >= 0 ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    close(t.fd);
    tmpdir_remove(&t.dir);
    return 0;
}

/* -------------------------------------------------------------- its course */

static void finds_what_was_added(void **state)
{
    moec_journal *j = begun();

    (void)state;
    add(j, 0, 1);
    add(j, 1, 2500); /* more than one record holds */
    add(j, 2501, 3);
    assert_int_equal(moec_journal_flush(j, NULL), MOEC_OK);
    moec_journal_destroy(j);
    check_found(2504);
    assert_int_equal(faccessat(t.fd, MOEC_JOURNAL_NAME ".new", F_OK, 0), -1);
    assert_int_equal(t.n_syncs, 0);
}

static void finds_nothing_where_nothing_was(void **state)
{
    (void)state;
    check_none();
    moec_journal_destroy(begun());
    check_found(0);
}

static void knows_no_cells_beyond_the_last(void **state)
{
    moec_journal *j = begun();

    (void)state;
    add(j, 0, CELLS);
    assert_int_equal(moec_journal_flush(j, NULL), MOEC_OK);
    moec_journal_destroy(j);
    j = loaded(true);
    assert_true(moec_journal_has(j, 0, CELLS));
    assert_false(moec_journal_has(j, CELLS - 1, 2));
    assert_false(moec_journal_has(j, UINT64_MAX, 2));
    moec_journal_forget(j);
    assert_false(moec_journal_has(j, 0, 1));
    moec_journal_destroy(j);
}

static void needs_no_payload(void **state)
{
    moec_journal *j = made("x\n", 0, 10);
    bool found = false;

    (void)state;
    assert_int_equal(moec_journal_begin(j, sync_data, NULL, NULL), MOEC_OK);
    assert_int_equal(moec_journal_add(j, 3, 4, NULL), MOEC_OK);
    assert_int_equal(moec_journal_flush(j, NULL), MOEC_OK);
    moec_journal_destroy(j);
    j = made("x\n", 0, 10);
    assert_int_equal(moec_journal_load(j, &found, NULL), MOEC_OK);
    assert_true(found && moec_journal_has(j, 3, 4));
    assert_false(moec_journal_has(j, 2, 1) || moec_journal_has(j, 7, 1));
    moec_journal_destroy(j);
}

static void writes_without_being_asked(void **state)
{
    moec_journal *j = begun();

    (void)state;
    for (uint64_t i = 0; i < 2000; i++) /* 160 KB of records */
        add(j, i, 1);
    moec_journal_destroy(j); /* and what is still buffered is lost */
    j = loaded(true);
    assert_true(moec_journal_has(j, 0, 1000));
    moec_journal_destroy(j);
}

static void *add_every_eighth(void *arg)
{
    static atomic_uint_fast64_t next;
    moec_journal *j = arg;
    uint64_t from = atomic_fetch_add(&next, 1);

    for (uint64_t i = from; i < CELLS; i += 8)
        if (moec_journal_add(j, i, 1, NULL) != MOEC_OK)
            return arg;
    return NULL;
}

static void takes_adds_from_many_threads(void **state)
{
    moec_journal *j = begun();
    pthread_t threads[8];
    void *bad;

    (void)state;
    fill(0, CELLS);
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, add_every_eighth, j),
                         0);
    for (unsigned i = 0; i < 8; i++) {
        assert_int_equal(pthread_join(threads[i], &bad), 0);
        assert_null(bad);
    }
    assert_int_equal(moec_journal_flush(j, NULL), MOEC_OK);
    moec_journal_destroy(j);
    check_found(CELLS);
}

/* ------------------------------------------------------------- broken files */

/* A journal with records that end at ends[i] and bring the cells to cells[i];
 * ends[0] is the header's. */
enum { RECORDS = 5 };
static size_t make_records(size_t *ends, uint64_t *cells)
{
    moec_journal *j = begun();

    ends[0] = file_bytes();
    cells[0] = 0;
    for (size_t i = 1; i <= RECORDS; i++) {
        add(j, cells[i - 1], i);
        assert_int_equal(moec_journal_flush(j, NULL), MOEC_OK);
        cells[i] = cells[i - 1] + i;
        ends[i] = file_bytes();
    }
    moec_journal_destroy(j);
    return ends[RECORDS];
}

static uint64_t cells_below(const size_t *ends, const uint64_t *cells, size_t n)
{
    uint64_t most = 0;

    for (size_t i = 0; i <= RECORDS; i++)
        if (ends[i] <= n)
            most = cells[i];
    return most;
}

static void cuts_off_a_torn_tail_at_every_byte(void **state)
{
    static unsigned char data[1 << 20];
    size_t ends[RECORDS + 1], n;
    uint64_t cells[RECORDS + 1];

    (void)state;
    n = make_records(ends, cells);
    assert_int_equal(get(data, sizeof(data)), n);
    for (size_t k = 1; k <= n; k++) {
        put(data, k);
        if (k < ends[0])
            check_none();
        else
            check_found(cells_below(ends, cells, k));
    }
}

static void goes_on_behind_a_torn_tail(void **state)
{
    static unsigned char data[1 << 20];
    size_t ends[RECORDS + 1], n;
    uint64_t cells[RECORDS + 1];
    moec_journal *j;

    (void)state;
    n = make_records(ends, cells);
    assert_int_equal(get(data, sizeof(data)), n);
    put(data, n - 1);
    j = loaded(true);
    assert_int_equal(moec_journal_begin(j, sync_data, NULL, NULL), MOEC_OK);
    add(j, cells[RECORDS - 1], 100);
    assert_int_equal(moec_journal_flush(j, NULL), MOEC_OK);
    moec_journal_destroy(j);
    check_found(cells[RECORDS - 1] + 100);
}

static void never_trusts_a_flipped_bit(void **state)
{
    static unsigned char data[1 << 20];
    size_t ends[RECORDS + 1], n;
    uint64_t cells[RECORDS + 1];

    (void)state;
    n = make_records(ends, cells);
    assert_int_equal(get(data, sizeof(data)), n);
    for (size_t k = 0; k < n; k++) {
        data[k] ^= (unsigned char)(1u << k % 8);
        put(data, n);
        if (k < ends[0])
            check_none();
        else
            check_found(cells_below(ends, cells, k));
        data[k] ^= (unsigned char)(1u << k % 8);
    }
}

static void takes_a_foreign_file_for_none(void **state)
{
    static unsigned char data[4096];
    moec_journal *j;
    bool found = true;

    (void)state;
    put(data, 0);
    check_none();
    put(data, sizeof(data));
    check_none();
    tmpdir_text(&t.dir, MOEC_JOURNAL_NAME, "dear diary, today I converted");
    check_none();
    /* the same words about other cells: another program's */
    j = made(identity, EACH, CELLS - 1);
    assert_int_equal(moec_journal_begin(j, sync_data, NULL, NULL), MOEC_OK);
    moec_journal_destroy(j);
    check_none();
    j = begun();
    moec_journal_destroy(j);
    size_t n = get(data, sizeof(data));
    data[8] = 2; /* version */
    sum_up(data, HEAD + strlen(identity));
    put(data, n);
    check_none();
    put_le(data + 40, UINT64_MAX - 8, 8); /* text */
    put(data, n);
    check_none();
    j = made(identity, EACH, CELLS);
    assert_int_equal(unlinkat(t.fd, MOEC_JOURNAL_NAME, 0), 0);
    tmpdir_fifo(&t.dir, MOEC_JOURNAL_NAME);
    assert_int_equal(moec_journal_load(j, &found, NULL), MOEC_OK);
    assert_false(found);
    moec_journal_destroy(j);
}

static void ends_at_records_that_lie(void **state)
{
    static const struct {
        uint32_t kind, n;
        uint64_t first;
        size_t payload;
    } bad[] = {{1, 1, CELLS, EACH},
               {1, 2, CELLS - 1, 2 * EACH},
               {1, 0, 10, 0},
               {1, 1025, 0, 1025 * EACH},
               {1, 1, UINT64_MAX, EACH},
               {1, 1000, UINT64_MAX - 500, 1000 * EACH},
               {2, 1, 0, 0},
               {2, 0, 1 << 20, 0},
               {3, 0, 1, 0},
               {4, 0, 0, 0},
               {0, 0, 0, 0}};
    moec_journal *j;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        j = begun();
        add(j, 0, 4);
        assert_int_equal(moec_journal_flush(j, NULL), MOEC_OK);
        moec_journal_destroy(j);
        append(bad[i].kind, bad[i].n, bad[i].first, bad[i].payload);
        append(1, 1, 4, EACH); /* right, but behind it */
        check_found(4);
    }
}

/* -------------------------------------------------------------- identities */

static void check_refused(const char *now, const char *text)
{
    static unsigned char before[4096], after[4096];
    size_t n = get(before, sizeof(before));
    moec_journal *j = made(now, EACH, CELLS);
    moec_error err = MOEC_ERROR_INIT;
    bool found = true;

    assert_int_equal(moec_journal_load(j, &found, &err), MOEC_E_ARG);
    if (strstr(err.text, text) == NULL)
        fail_msg("'%s' does not say '%s'", err.text, text);
    assert_non_null(strstr(err.text, "out.partial belongs to another"));
    assert_false(found || moec_journal_has(j, 0, 1));
    moec_journal_destroy(j);
    assert_int_equal(get(after, sizeof(after)), n);
    assert_memory_equal(after, before, n);
}

static void refuses_another_conversion_and_says_what_differs(void **state)
{
    moec_journal *j = begun();

    (void)state;
    add(j, 0, 4);
    assert_int_equal(moec_journal_flush(j, NULL), MOEC_OK);
    moec_journal_destroy(j);
    check_refused("command convert\noption --ep 8\nlayout 00ff\n",
                  "('option --ep 4' then, 'option --ep 8' now)");
    check_refused("command convert\noption --ep 4\n",
                  "('layout 00ff' then, '' now)");
    check_refused("command convert\noption --ep 4\nlayout 00ff\nmore\n",
                  "('' then, 'more' now)");
    check_refused("", "('command convert' then, '' now)");
    check_found(4);
}

/* -------------------------------------------------------------------- trust */

static void trusts_only_marks_after_a_reboot(void **state)
{
    moec_journal *j = begun();

    (void)state;
    add(j, 0, 10);
    assert_int_equal(moec_journal_flush(j, NULL), MOEC_OK);
    reboot();
    check_found(0);
    moec_journal_destroy(j);

    j = begun();
    add(j, 0, 10);
    assert_int_equal(moec_journal_mark(j, NULL), MOEC_OK);
    assert_int_equal(t.n_syncs, 1);
    add(j, 10, 10);
    assert_int_equal(moec_journal_flush(j, NULL), MOEC_OK);
    moec_journal_destroy(j);
    check_found(20);
    reboot();
    check_found(10);
}

/* What a mark's fsync does not cover stands behind its number, not only
 * behind its record. */
static void trusts_nothing_that_was_added_during_the_sync(void **state)
{
    moec_journal *j = begun();

    (void)state;
    add(j, 0, 10);
    assert_int_equal(moec_journal_flush(j, NULL), MOEC_OK);
    uint64_t upto = file_bytes();
    add(j, 10, 5);
    assert_int_equal(moec_journal_flush(j, NULL), MOEC_OK);
    moec_journal_destroy(j);
    append(2, 0, upto, 0);
    check_found(15);
    reboot();
    check_found(10);
}

static void carries_both_kinds_of_trust_over(void **state)
{
    moec_journal *j = begun();

    (void)state;
    add(j, 0, 1500);
    assert_int_equal(moec_journal_mark(j, NULL), MOEC_OK);
    add(j, 1500, 1100);
    assert_int_equal(moec_journal_flush(j, NULL), MOEC_OK);
    moec_journal_destroy(j);
    for (int i = 0; i < 3; i++) { /* three runs that do nothing */
        j = loaded(true);
        check_first(j, 2600);
        assert_int_equal(moec_journal_begin(j, sync_data, NULL, NULL), MOEC_OK);
        moec_journal_destroy(j);
    }
    reboot();
    j = loaded(true);
    check_first(j, 1500);
    assert_int_equal(moec_journal_begin(j, sync_data, NULL, NULL), MOEC_OK);
    add(j, 1500, 1);
    assert_int_equal(moec_journal_flush(j, NULL), MOEC_OK);
    moec_journal_destroy(j);
    check_found(1501);
}

static void doubts_everything_but_marks_after_a_failed_sync(void **state)
{
    moec_journal *j = begun();
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    add(j, 0, 10);
    assert_int_equal(moec_journal_mark(j, NULL), MOEC_OK);
    add(j, 10, 10);
    t.sync_status = MOEC_E_IO;
    assert_int_equal(moec_journal_mark(j, &err), MOEC_E_IO);
    moec_journal_destroy(j);
    check_found(10);
    t.sync_status = MOEC_OK;
    j = loaded(true);
    assert_int_equal(moec_journal_begin(j, sync_data, NULL, NULL), MOEC_OK);
    add(j, 0, 10);
    add(j, 10, 2);
    assert_int_equal(moec_journal_flush(j, NULL), MOEC_OK);
    moec_journal_destroy(j);
    check_found(12); /* the doubt is over with the run that had it */
}

static void doubts_when_told(void **state)
{
    moec_journal *j = begun();

    (void)state;
    add(j, 0, 10);
    moec_journal_doubt(j);
    moec_journal_destroy(j);
    check_found(0);
}

static void does_nothing_before_it_is_begun(void **state)
{
    moec_journal *j = made(identity, EACH, CELLS);

    (void)state;
    assert_int_equal(moec_journal_add(j, 0, 1, NULL), MOEC_OK);
    assert_int_equal(moec_journal_mark(j, NULL), MOEC_OK);
    assert_int_equal(moec_journal_flush(j, NULL), MOEC_OK);
    moec_journal_doubt(j);
    moec_journal_destroy(j);
    moec_journal_destroy(NULL);
    check_none();
}

static void survives_every_failed_allocation(void **state)
{
    moec_journal_opts o = {.dirfd = t.fd,
                           .where = "out.partial",
                           .identity = identity,
                           .identity_bytes = strlen(identity),
                           .cells = t.cells,
                           .cell_bytes = EACH,
                           .n_cells = CELLS};

    (void)state;
    for (uint64_t n = 1; n < 50; n++) {
        moec_journal *j = NULL;
        bool found = false;

        moec_journal_destroy(begun());
        moec_alloc_fail_at(n);
        moec_status st = moec_journal_create(&j, &o, NULL);
        if (st == MOEC_OK)
            st = moec_journal_load(j, &found, NULL);
        if (st == MOEC_OK)
            st = moec_journal_begin(j, sync_data, NULL, NULL);
        moec_alloc_fail_at(0);
        moec_journal_destroy(j);
        if (st == MOEC_OK) {
            assert_true(n > 3); /* it did fail before */
            return;
        }
        assert_int_equal(st, MOEC_E_NOMEM);
    }
    fail_msg("never succeeds");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(finds_what_was_added),
        TEST(finds_nothing_where_nothing_was),
        TEST(knows_no_cells_beyond_the_last),
        TEST(needs_no_payload),
        TEST(writes_without_being_asked),
        TEST(takes_adds_from_many_threads),
        TEST(cuts_off_a_torn_tail_at_every_byte),
        TEST(goes_on_behind_a_torn_tail),
        TEST(never_trusts_a_flipped_bit),
        TEST(takes_a_foreign_file_for_none),
        TEST(ends_at_records_that_lie),
        TEST(refuses_another_conversion_and_says_what_differs),
        TEST(trusts_only_marks_after_a_reboot),
        TEST(trusts_nothing_that_was_added_during_the_sync),
        TEST(carries_both_kinds_of_trust_over),
        TEST(doubts_everything_but_marks_after_a_failed_sync),
        TEST(doubts_when_told),
        TEST(does_nothing_before_it_is_begun),
        TEST(survives_every_failed_allocation),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
