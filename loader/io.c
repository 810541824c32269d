/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Bulk reading. See io.h.
 *
 * A large request is first offered to the page cache with RWF_NOWAIT, which
 * copies what is there and never starts device reads (measured: a cached
 * file comes at memory speed, and a cold one costs one failed call per
 * request). What is left is read with O_DIRECT: on the machines we measured,
 * buffered cold reads reach 80 % of the disk and cost four times the CPU.
 * Sources begin at any byte, so a direct read goes into an aligned buffer and
 * is copied from there unless file offset, length and memory happen to be
 * aligned.
 */

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "io.h"

#define ALIGN UINT64_C(4096)

void moec_io_buf_fini(moec_io_buf *b)
{
    moec_free_aligned(b->data);
    b->data = NULL;
}

void moec_io_open(moec_io_file *f, const char *name, const char *path, int fd,
                  uint64_t bytes, bool no_direct)
{
    f->name = name;
    f->bytes = bytes;
    f->fd = fd;
    f->direct_fd = -1;
    if (!no_direct && path != NULL && bytes >= MOEC_IO_DIRECT_BYTES)
        f->direct_fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_DIRECT);
}

void moec_io_close(moec_io_file *f)
{
    if (f->direct_fd >= 0)
        close(f->direct_fd);
    f->direct_fd = -1;
}

/* Copy what the page cache holds from the begin of the range; returns bytes. */
static size_t read_cached(const moec_io_file *f, uint64_t off, void *buf,
                          size_t n)
{
    size_t done = 0;

    while (done < n) {
        struct iovec v = {(char *)buf + done, n - done};
        ssize_t k = preadv2(f->fd, &v, 1, (off_t)(off + done), RWF_NOWAIT);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            break;
        done += (size_t)k;
    }
    return done;
}

/* One aligned read of [begin, end) into `to`; the file may end before `end`.
 * *got_out is what came; 0 where O_DIRECT is refused after all. */
static moec_status read_aligned(const moec_io_file *f, uint64_t begin,
                                uint64_t end, unsigned char *to,
                                size_t *got_out, moec_error *err)
{
    size_t n = (size_t)(end - begin), done = 0;

    while (done < n) {
        ssize_t k = pread(f->direct_fd, to + done, n - done,
                          (off_t)(begin + done));
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0 && errno == EINVAL)
            break;
        if (k < 0)
            return moec_fail_os(err, errno, "%s: cannot read %zu bytes at "
                                            "%llu",
                                f->name, n, (unsigned long long)begin);
        done += (size_t)k;
        if (k == 0 || (uint64_t)k % ALIGN != 0)
            break; /* end of file */
    }
    *got_out = done;
    return MOEC_OK;
}

/* One request of at most MOEC_IO_REQUEST_BYTES. */
static moec_status read_direct(const moec_io_file *f, moec_io_buf *b,
                               uint64_t off, unsigned char *buf, size_t n,
                               moec_error *err)
{
    uint64_t begin = off & ~(ALIGN - 1);
    uint64_t end = (off + n + ALIGN - 1) & ~(ALIGN - 1);
    bool in_place = begin == off && n % ALIGN == 0 && (uintptr_t)buf % ALIGN == 0;
    size_t skip = (size_t)(off - begin), got = 0;

    if (b->data == NULL && !in_place) {
        b->data = moec_alloc_aligned(MOEC_IO_REQUEST_BYTES + 2 * ALIGN, ALIGN);
        if (b->data == NULL)
            return moec_fail_nomem(err, "an aligned buffer");
    }
    unsigned char *to = in_place ? buf : b->data;
    MOEC_TRY(read_aligned(f, begin, end, to, &got, err));
    b->n_bytes_read += got;
    size_t have = got > skip ? (size_t)moec_min_u64(got - skip, n) : 0;
    if (!in_place && have > 0)
        memcpy(buf, to + skip, have);
    if (have == n)
        return MOEC_OK;
    /* refused, or the file has become shorter: the plain road says which */
    b->n_bytes_read += n - have;
    return moec_pread_full(f->fd, f->name, buf + have, n - have, off + have,
                           err);
}

moec_status moec_io_read(const moec_io_file *f, moec_io_buf *b, uint64_t off,
                         void *buf, size_t n, moec_error *err)
{
    unsigned char *p = buf;

    if (f->direct_fd < 0 || n < MOEC_IO_DIRECT_BYTES) {
        b->n_bytes_read += n;
        return moec_pread_full(f->fd, f->name, buf, n, off, err);
    }
    size_t done = read_cached(f, off, p, n);
    b->n_bytes_read += done;
    while (done < n) {
        size_t k = (size_t)moec_min_u64(n - done, MOEC_IO_REQUEST_BYTES);
        MOEC_TRY(read_direct(f, b, off + done, p + done, k, err));
        done += k;
    }
    return MOEC_OK;
}
