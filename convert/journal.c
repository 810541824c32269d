/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The journal of an unfinished output. See journal.h for what its records
 * prove and for the grammar of the file.
 *
 * Cost: a record is 32 bytes and 48 a MiB, put into a buffer under a lock; the
 * buffer goes out fifty times a second. A mark costs an fsync of the files
 * written since the last one, on one worker while the others go on, and the
 * next mark waits until the last one's seconds are under 5 % of the time.
 */

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "identity.h"
#include "journal.h"

#define VERSION 1u

enum {
    BOOT_BYTES = 16,
    HEAD_BYTES = 48,
    RECORD_BYTES = 16, /* before the payload */
    SUM_BYTES = 16,
    RECORD_CELLS_MAX = 1024,
    CELL_BYTES_MAX = 64
};

enum { KIND_CELLS = 1, KIND_MARK = 2, KIND_DOUBT = 3 };

/* What is known of a cell. */
enum { CELL_OPEN = 0, CELL_WRITTEN = 1, CELL_DURABLE = 2 };

#define FLUSH_BYTES        ((size_t)64 << 10)
#define BUFFER_BYTES       ((size_t)256 << 10)
#define FLUSH_SECONDS      0.02
#define MARK_SECONDS       30.0
#define MARK_SHARE         20.0
#define IDENTITY_BYTES_MAX (UINT64_C(64) << 20)

static const char magic[8] = {'M', 'O', 'E', 'C', 'J', 'N', 'L', 1};

struct moec_journal {
    moec_journal_opts opts;
    char new_name[MOEC_JOURNAL_NAME_BYTES_MAX + 8]; /* before its rename */
    uint8_t *found; /* by cell: CELL_* of earlier runs */
    moec_journal_sync_fn sync;
    void *sync_ctx;
    int fd; /* -1: not begun */
    pthread_mutex_t lock;
    /* under the lock */
    unsigned char *buf; /* records behind byte `end` of the file */
    size_t len;
    uint64_t end;
    double flushed, next_mark; /* seconds */
    bool marking;
    bool dir_synced; /* the files' names are durable; of the marking thread */
};

static double now(void)
{
    struct timespec t = {0, 0};

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The id of this run of the kernel. False where nobody tells. */
static bool read_boot_id(uint8_t out[BOOT_BYTES])
{
    char text[37] = {0}, hex[33] = {0};
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
    size_t k = 0;

    if (fd >= 0)
        close(fd);
    memset(out, 0, BOOT_BYTES);
    for (ssize_t i = 0; i < n && k < 32; i++)
        if (text[i] != '-')
            hex[k++] = text[i];
    return k == 32 && moec_unhex(hex, out, BOOT_BYTES);
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

/* --------------------------------------------------------------- reading */

/* The file through a window, so that its size costs no memory. */
typedef struct reader {
    int fd;
    const char *name;
    uint64_t bytes; /* of the file */
    uint64_t off;   /* of the window */
    size_t len;
    unsigned char *window; /* BUFFER_BYTES */
} reader;

/* `n` bytes at `off`, n <= BUFFER_BYTES; *out is NULL where the file ends
 * before. Valid until the next call. */
static moec_status look(reader *r, uint64_t off, size_t n,
                        const unsigned char **out, moec_error *err)
{
    *out = NULL;
    if (off > r->bytes || n > r->bytes - off)
        return MOEC_OK;
    if (off < r->off || off + n > r->off + r->len) {
        r->len = 0;
        size_t k = (size_t)moec_min_u64(BUFFER_BYTES, r->bytes - off);
        MOEC_TRY(moec_pread_full(r->fd, r->name, r->window, k, off, err));
        r->off = off;
        r->len = k;
    }
    *out = r->window + (off - r->off);
    return MOEC_OK;
}

typedef struct record {
    uint32_t kind, n;
    uint64_t first;
    const unsigned char *payload;
    uint64_t end; /* byte behind it */
} record;

static bool fields_fit(const moec_journal *j, const record *r, uint64_t off)
{
    switch (r->kind) {
    case KIND_CELLS:
        return r->n > 0 && r->n <= RECORD_CELLS_MAX &&
               r->first < j->opts.n_cells && r->n <= j->opts.n_cells - r->first;
    case KIND_MARK:
        return r->n == 0 && r->first <= off;
    case KIND_DOUBT:
        return r->n == 0 && r->first == 0;
    default:
        return false;
    }
}

static bool sum_fits(const unsigned char *data, size_t n)
{
    moec_xxh128 sum = moec_xxh128_of(data, n);

    return memcmp(&sum, data + n, sizeof(sum)) == 0;
}

/* The record at `off`; *good_out is false where there is none. */
static moec_status next_record(const moec_journal *j, reader *in, uint64_t off,
                               record *out, bool *good_out, moec_error *err)
{
    const unsigned char *p;
    size_t n;

    *good_out = false;
    MOEC_TRY(look(in, off, RECORD_BYTES, &p, err));
    if (p == NULL)
        return MOEC_OK;
    out->kind = moec_le32(p);
    out->n = moec_le32(p + 4);
    out->first = moec_le64(p + 8);
    if (!fields_fit(j, out, off))
        return MOEC_OK;
    n = RECORD_BYTES + out->n * j->opts.cell_bytes;
    MOEC_TRY(look(in, off, n + SUM_BYTES, &p, err));
    if (p == NULL || !sum_fits(p, n))
        return MOEC_OK;
    out->payload = p + RECORD_BYTES;
    out->end = off + n + SUM_BYTES;
    *good_out = true;
    return MOEC_OK;
}

/* What the whole of a journal says about trust. */
typedef struct trust {
    uint64_t durable; /* records that end here or before */
    bool all;         /* written ones count too */
} trust;

static void take_cells(moec_journal *j, const record *r, trust t)
{
    bool durable = r->end <= t.durable;
    size_t each = j->opts.cell_bytes;

    if (!durable && !t.all)
        return;
    if (each > 0)
        memcpy((unsigned char *)j->opts.cells + r->first * each, r->payload,
               r->n * each);
    for (uint32_t i = 0; i < r->n; i++)
        if (durable)
            j->found[r->first + i] = CELL_DURABLE;
        else if (j->found[r->first + i] == CELL_OPEN)
            j->found[r->first + i] = CELL_WRITTEN;
}

/* Two walks: the last mark decides about the first record. */
static moec_status read_records(moec_journal *j, reader *in, uint64_t begin,
                                bool same_boot, moec_error *err)
{
    trust t = {0, same_boot};
    record r = {0};
    bool good = true;
    uint64_t off, end;

    for (off = begin; good; off = good ? r.end : off) {
        MOEC_TRY(next_record(j, in, off, &r, &good, err));
        if (good && r.kind == KIND_MARK)
            t.durable = moec_max_u64(t.durable, r.first);
        if (good && r.kind == KIND_DOUBT)
            t.all = false;
    }
    end = off;
    for (off = begin; off < end; off = r.end) {
        MOEC_TRY(next_record(j, in, off, &r, &good, err));
        if (!good)
            return moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE,
                             "%s/%s: changed while it was read", j->opts.where,
                             j->opts.name);
        if (r.kind == KIND_CELLS)
            take_cells(j, &r, t);
    }
    return MOEC_OK;
}

/* Header and text: *text is NULL where they cannot be read. *begin is the
 * first record's byte. */
static moec_status read_header(reader *in, unsigned char head[HEAD_BYTES],
                               unsigned char **text, uint64_t *begin,
                               moec_error *err)
{
    const unsigned char *p;
    uint64_t text_bytes;

    *text = NULL;
    MOEC_TRY(look(in, 0, HEAD_BYTES, &p, err));
    if (p == NULL)
        return MOEC_OK;
    memcpy(head, p, HEAD_BYTES);
    text_bytes = moec_le64(head + 40);
    if (memcmp(head, magic, sizeof(magic)) != 0 ||
        moec_le32(head + 8) != VERSION || text_bytes > IDENTITY_BYTES_MAX ||
        in->bytes < HEAD_BYTES + text_bytes + SUM_BYTES)
        return MOEC_OK;
    size_t n = HEAD_BYTES + (size_t)text_bytes;
    unsigned char *all = moec_alloc(n + SUM_BYTES);
    if (all == NULL)
        return moec_fail_nomem(err, "a journal");
    moec_status st =
        moec_pread_full(in->fd, in->name, all, n + SUM_BYTES, 0, err);
    if (st != MOEC_OK || !sum_fits(all, n)) {
        moec_free(all);
        return st;
    }
    memmove(all, all + HEAD_BYTES, (size_t)text_bytes);
    *text = all;
    *begin = n + SUM_BYTES;
    return MOEC_OK;
}

static moec_status load(moec_journal *j, reader *in, bool *found_out,
                        moec_error *err)
{
    unsigned char head[HEAD_BYTES], *text;
    uint8_t boot[BOOT_BYTES];
    bool same_boot = read_boot_id(boot);
    uint64_t begin;
    moec_status st = MOEC_OK;

    MOEC_TRY(read_header(in, head, &text, &begin, err));
    if (text == NULL)
        return MOEC_OK;
    uint64_t n = moec_le64(head + 40);
    same_boot = same_boot && memcmp(head + 24, boot, BOOT_BYTES) == 0;
    if (n != j->opts.identity_bytes ||
        memcmp(text, j->opts.identity, (size_t)n) != 0)
        st =
            moec_identity_refuse(j->opts.where, (const char *)text, (size_t)n,
                                 j->opts.identity, j->opts.identity_bytes, err);
    else if (moec_le32(head + 12) == j->opts.cell_bytes &&
             moec_le64(head + 16) == j->opts.n_cells) {
        st = read_records(j, in, begin, same_boot, err);
        *found_out = st == MOEC_OK;
    }
    moec_free(text);
    return st;
}

/* Open the file; in->fd is -1 where there is none. */
static moec_status open_journal(const moec_journal *j, reader *in,
                                moec_error *err)
{
    struct stat sb;

    *in = (reader){.window = j->buf, .name = j->opts.name};
    in->fd = openat(j->opts.dirfd, j->opts.name,
                    O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (in->fd < 0)
        return errno == ENOENT
                   ? MOEC_OK
                   : moec_fail_os(err, errno, "%s/%s: cannot open it",
                                  j->opts.where, j->opts.name);
    if (fstat(in->fd, &sb) != 0) {
        int why = errno;
        close(in->fd);
        return moec_fail_os(err, why, "%s/%s: cannot look at it", j->opts.where,
                            j->opts.name);
    }
    in->bytes = S_ISREG(sb.st_mode) ? (uint64_t)sb.st_size : 0;
    return MOEC_OK;
}

moec_status moec_journal_load(moec_journal *j, bool *found_out, moec_error *err)
{
    reader in;

    *found_out = false;
    MOEC_TRY(open_journal(j, &in, err));
    if (in.fd < 0)
        return MOEC_OK;
    moec_status st = load(j, &in, found_out, err);
    close(in.fd);
    if (!*found_out)
        moec_journal_forget(j);
    return st;
}

moec_status moec_journal_identity(moec_journal *j, moec_buf *out,
                                  bool *found_out, moec_error *err)
{
    unsigned char head[HEAD_BYTES], *text = NULL;
    uint64_t begin;
    reader in;

    *found_out = false;
    MOEC_TRY(open_journal(j, &in, err));
    if (in.fd < 0)
        return MOEC_OK;
    moec_status st = read_header(&in, head, &text, &begin, err);
    close(in.fd);
    if (st != MOEC_OK || text == NULL)
        return st;
    moec_buf_append(out, text, (size_t)moec_le64(head + 40));
    moec_free(text);
    *found_out = true;
    return out->oom ? moec_fail_nomem(err, "a journal") : MOEC_OK;
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

    memcpy(head, magic, sizeof(magic));
    put_le(head + 8, VERSION, 4);
    put_le(head + 12, j->opts.cell_bytes, 4);
    put_le(head + 16, j->opts.n_cells, 8);
    (void)read_boot_id(head + 24); /* zeros are nobody's id */
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
