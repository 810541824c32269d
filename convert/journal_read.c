/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A journal that an earlier run left, read: which cells it proves. Refuses one
 * of another job; what is torn or foreign ends it, and is no error.
 */

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "identity.h"
#include "journal_parts.h"

#define IDENTITY_BYTES_MAX (UINT64_C(64) << 20)

bool moec_journal_boot_id(uint8_t out[BOOT_BYTES])
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
    if (memcmp(head, MAGIC, 8) != 0 || moec_le32(head + 8) != VERSION ||
        text_bytes > IDENTITY_BYTES_MAX ||
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
    bool same_boot = moec_journal_boot_id(boot);
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
