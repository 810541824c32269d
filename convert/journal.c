/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The journal of an unfinished output, written. See journal.h for what its
 * records prove and for the grammar of the file.
 *
 * Cost: a record is 32 bytes and 48 a MiB, put into a buffer under a lock; the
 * buffer goes out fifty times a second. A mark costs an fsync of the files
 * written since the last one, on one worker while the others go on, and the
 * next mark waits until the last one's seconds are under 5 % of the time.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "journal_parts.h"

#define FLUSH_BYTES   ((size_t)64 << 10)
#define FLUSH_SECONDS 0.02
#define MARK_SECONDS  30.0
#define MARK_SHARE    20.0

static double now(void)
{
    struct timespec t = {0, 0};

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

moec_status moec_journal_create(moec_journal **out,
                                const moec_journal_opts *opts, moec_error *err)
{
    moec_journal *j;

    if (opts->cell_bytes > CELL_BYTES_MAX ||
        (opts->name && strlen(opts->name) > MOEC_JOURNAL_NAME_BYTES_MAX))
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                         "a journal's cell of %zu bytes, or a long name",
                         opts->cell_bytes);
    j = moec_calloc(1, sizeof(*j));
    if (j == NULL)
        return moec_fail_nomem(err, "a journal");
    j->opts = *opts;
    if (j->opts.name == NULL)
        j->opts.name = MOEC_JOURNAL_NAME;
    snprintf(j->new_name, sizeof(j->new_name), "%s.new", j->opts.name);
    j->fd = -1;
    j->found = moec_calloc(opts->n_cells + 1, 1);
    j->buf = moec_alloc(BUFFER_BYTES);
    pthread_mutex_init(&j->lock, NULL);
    if (j->found == NULL || j->buf == NULL) {
        moec_journal_destroy(j);
        return moec_fail_nomem(err, "a journal");
    }
    *out = j;
    return MOEC_OK;
}

void moec_journal_destroy(moec_journal *j)
{
    if (j == NULL)
        return;
    if (j->fd >= 0)
        close(j->fd);
    pthread_mutex_destroy(&j->lock);
    moec_free(j->found);
    moec_free(j->buf);
    moec_free(j);
}

void moec_journal_forget(moec_journal *j)
{
    memset(j->found, CELL_OPEN, j->opts.n_cells);
}

bool moec_journal_has(const moec_journal *j, uint64_t first, uint64_t n)
{
    if (first > j->opts.n_cells || n > j->opts.n_cells - first)
        return false;
    for (uint64_t i = 0; i < n; i++)
        if (j->found[first + i] == CELL_OPEN)
            return false;
    return true;
}

/* --------------------------------------------------------------- writing */

static moec_status write_out(moec_journal *j, moec_error *err)
{
    moec_status st =
        moec_pwrite_full(j->fd, j->opts.name, j->buf, j->len, j->end, err);

    if (st != MOEC_OK)
        return st;
    j->end += j->len;
    j->len = 0;
    j->flushed = now();
    return MOEC_OK;
}

static void put_le(unsigned char *p, uint64_t v, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        p[i] = (unsigned char)(v >> 8 * i);
}

static moec_status put_record(moec_journal *j, uint32_t kind, uint64_t first,
                              uint32_t n, moec_error *err)
{
    size_t payload = kind == KIND_CELLS ? n * j->opts.cell_bytes : 0;
    size_t bytes = RECORD_BYTES + payload;
    unsigned char *p;
    moec_xxh128 sum;

    if (j->len + bytes + SUM_BYTES > BUFFER_BYTES)
        MOEC_TRY(write_out(j, err));
    p = j->buf + j->len;
    put_le(p, kind, 4);
    put_le(p + 4, n, 4);
    put_le(p + 8, first, 8);
    if (payload > 0)
        memcpy(p + RECORD_BYTES,
               (const unsigned char *)j->opts.cells +
                   first * j->opts.cell_bytes,
               payload);
    sum = moec_xxh128_of(p, bytes);
    memcpy(p + bytes, &sum, sizeof(sum));
    j->len += bytes + SUM_BYTES;
    return MOEC_OK;
}

static moec_status put_cells(moec_journal *j, uint64_t first, uint64_t n,
                             moec_error *err)
{
    while (n > 0) {
        uint32_t k = (uint32_t)moec_min_u64(n, RECORD_CELLS_MAX);
        MOEC_TRY(put_record(j, KIND_CELLS, first, k, err));
        first += k;
        n -= k;
    }
    return MOEC_OK;
}

static moec_status put_header(moec_journal *j, moec_error *err)
{
    unsigned char head[HEAD_BYTES] = {0};
    moec_buf b = {0};
    moec_xxh128 sum;

    memcpy(head, MAGIC, 8);
    put_le(head + 8, VERSION, 4);
    put_le(head + 12, j->opts.cell_bytes, 4);
    put_le(head + 16, j->opts.n_cells, 8);
    (void)moec_journal_boot_id(head + 24); /* zeros are nobody's id */
    put_le(head + 40, j->opts.identity_bytes, 8);
    moec_buf_append(&b, head, sizeof(head));
    moec_buf_append(&b, j->opts.identity, j->opts.identity_bytes);
    if (!b.oom) {
        sum = moec_xxh128_of(b.data, b.len);
        moec_buf_append(&b, &sum, sizeof(sum));
    }
    moec_status st =
        b.oom ? moec_fail_nomem(err, "a journal")
              : moec_pwrite_full(j->fd, j->new_name, b.data, b.len, 0, err);
    j->end = b.len;
    j->len = 0;
    moec_buf_fini(&b);
    return st;
}

/* Records of all cells of which `state` is known. */
static moec_status put_found(moec_journal *j, uint8_t state, bool *any,
                             moec_error *err)
{
    uint64_t end = j->opts.n_cells, to;

    *any = false;
    for (uint64_t i = 0; i < end; i = to) {
        to = i + 1;
        if (j->found[i] != state)
            continue;
        while (to < end && j->found[to] == state)
            to++;
        MOEC_TRY(put_cells(j, i, to - i, err));
        *any = true;
    }
    return MOEC_OK;
}

static moec_status put_all(moec_journal *j, moec_error *err)
{
    bool durable, written;

    MOEC_TRY(put_header(j, err));
    MOEC_TRY(put_found(j, CELL_DURABLE, &durable, err));
    if (durable)
        MOEC_TRY(put_record(j, KIND_MARK, j->end + j->len, 0, err));
    MOEC_TRY(put_found(j, CELL_WRITTEN, &written, err));
    MOEC_TRY(write_out(j, err));
    /* what was durable stays so while the old file goes; and a journal that
     * will have no marks is all that there ever is of it */
    if ((durable || j->sync == NULL) && fdatasync(j->fd) != 0)
        return moec_fail_os(err, errno, "%s: cannot fsync", j->new_name);
    return MOEC_OK;
}

moec_status moec_journal_begin(moec_journal *j, moec_journal_sync_fn sync,
                               void *sync_ctx, moec_error *err)
{
    int dir = j->opts.dirfd;

    j->sync = sync;
    j->sync_ctx = sync_ctx;
    (void)unlinkat(dir, j->new_name, 0);
    j->fd = openat(dir, j->new_name,
                   O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (j->fd < 0)
        return moec_fail_os(err, errno, "%s/%s: cannot make the file",
                            j->opts.where, j->new_name);
    MOEC_TRY(put_all(j, err));
    if (renameat(dir, j->new_name, dir, j->opts.name) != 0)
        return moec_fail_os(err, errno, "%s/%s: cannot rename it",
                            j->opts.where, j->new_name);
    j->next_mark = now() + MARK_SECONDS;
    return MOEC_OK;
}

moec_status moec_journal_flush(moec_journal *j, moec_error *err)
{
    moec_status st = MOEC_OK;

    if (j->fd < 0)
        return MOEC_OK;
    pthread_mutex_lock(&j->lock);
    if (j->len > 0)
        st = write_out(j, err);
    pthread_mutex_unlock(&j->lock);
    return st;
}

void moec_journal_doubt(moec_journal *j)
{
    moec_status st;

    if (j->fd < 0)
        return;
    pthread_mutex_lock(&j->lock);
    st = put_record(j, KIND_DOUBT, 0, 0, NULL);
    if (st == MOEC_OK)
        st = write_out(j, NULL);
    pthread_mutex_unlock(&j->lock);
    /* rather no journal than one that lies */
    if (st != MOEC_OK)
        (void)unlinkat(j->opts.dirfd, j->opts.name, 0);
}

/* fsync the data; the first time also the directory, which knows the files'
 * names and that of the journal. */
static moec_status sync_data(moec_journal *j, moec_error *err)
{
    moec_status st = j->sync(j->sync_ctx, err);

    if (st == MOEC_OK && !j->dir_synced && fsync(j->opts.dirfd) != 0)
        st = moec_fail_os(err, errno, "%s: cannot fsync", j->opts.where);
    if (st == MOEC_OK)
        j->dir_synced = true;
    else
        moec_journal_doubt(j);
    return st;
}

moec_status moec_journal_mark(moec_journal *j, moec_error *err)
{
    moec_status st = MOEC_OK;
    uint64_t upto;

    if (j->fd < 0)
        return MOEC_OK;
    MOEC_TRY(moec_journal_flush(j, err));
    pthread_mutex_lock(&j->lock);
    upto = j->end; /* others go on behind it */
    pthread_mutex_unlock(&j->lock);
    MOEC_TRY(sync_data(j, err));
    pthread_mutex_lock(&j->lock);
    st = put_record(j, KIND_MARK, upto, 0, err);
    if (st == MOEC_OK)
        st = write_out(j, err);
    pthread_mutex_unlock(&j->lock);
    if (st == MOEC_OK && fdatasync(j->fd) != 0)
        st = moec_fail_os(err, errno, "%s: cannot fsync", j->opts.name);
    return st;
}

static moec_status mark_now_and_then(moec_journal *j, moec_error *err)
{
    double begin = now(), end;
    moec_status st = moec_journal_mark(j, err);

    end = now();
    pthread_mutex_lock(&j->lock);
    j->next_mark = end + MARK_SECONDS;
    if ((end - begin) * MARK_SHARE > MARK_SECONDS)
        j->next_mark = end + (end - begin) * MARK_SHARE;
    j->marking = false;
    pthread_mutex_unlock(&j->lock);
    return st;
}

moec_status moec_journal_add(moec_journal *j, uint64_t first, uint64_t n,
                             moec_error *err)
{
    moec_status st;
    bool due = false;

    if (j->fd < 0)
        return MOEC_OK;
    pthread_mutex_lock(&j->lock);
    st = put_cells(j, first, n, err);
    double at = now();
    if (st == MOEC_OK &&
        (j->len >= FLUSH_BYTES || at - j->flushed >= FLUSH_SECONDS))
        st = write_out(j, err);
    if (st == MOEC_OK && !j->marking && at >= j->next_mark)
        due = j->marking = true;
    pthread_mutex_unlock(&j->lock);
    return due ? mark_now_and_then(j, err) : st;
}
