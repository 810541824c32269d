/* SPDX-License-Identifier: Apache-2.0
 *
 * Whole reads and writes, and opening what a hostile directory may hold: a
 * file is opened only where it is regular and lies below its directory, links
 * included. */

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/base.h"

/* Linux moves at most this in one call; asking for more is only confusing. */
#define IO_BYTES_MAX ((size_t)1 << 30)

static bool offset_fits(uint64_t off, size_t n)
{
    return off <= INT64_MAX && n <= INT64_MAX - off;
}

/* Read up to n bytes; *got_out < n only at the end of the file. */
static moec_status pread_some(int fd, const char *name, void *buf, size_t n,
                              uint64_t off, size_t *got_out, moec_error *err)
{
    size_t done = 0;

    if (!offset_fits(off, n))
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                         "%s: read at offset %ju", name, (uintmax_t)off);
    while (done < n) {
        size_t want = n - done < IO_BYTES_MAX ? n - done : IO_BYTES_MAX;
        ssize_t got = pread(fd, (char *)buf + done, want, (off_t)(off + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return moec_fail_os(err, errno,
                                "%s: cannot read %zu bytes at offset %ju", name,
                                want, (uintmax_t)(off + done));
        if (got == 0)
            break;
        done += (size_t)got;
    }
    *got_out = done;
    return MOEC_OK;
}

moec_status moec_pread_full(int fd, const char *name, void *buf, size_t n,
                            uint64_t off, moec_error *err)
{
    size_t got = 0;

    MOEC_TRY(pread_some(fd, name, buf, n, off, &got, err));
    if (got < n)
        return moec_fail_at(err, MOEC_E_FORMAT, MOEC_RULE_H17, off + got,
                            "%s: ends at byte %ju, %zu bytes short", name,
                            (uintmax_t)(off + got), n - got);
    return MOEC_OK;
}

moec_status moec_pwrite_full(int fd, const char *name, const void *buf,
                             size_t n, uint64_t off, moec_error *err)
{
    size_t done = 0;

    if (!offset_fits(off, n))
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                         "%s: write at offset %ju", name, (uintmax_t)off);
    while (done < n) {
        size_t want = n - done < IO_BYTES_MAX ? n - done : IO_BYTES_MAX;
        ssize_t put =
            pwrite(fd, (const char *)buf + done, want, (off_t)(off + done));
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0) /* nothing written and no reason: a full device */
            return moec_fail_os(err, put < 0 ? errno : ENOSPC,
                                "%s: cannot write %zu bytes at offset %ju",
                                name, want, (uintmax_t)(off + done));
        done += (size_t)put;
    }
    return MOEC_OK;
}

/* Path of an open descriptor, without its NUL; 0 where it does not fit or
 * /proc is not there. */
static size_t fd_path(int fd, char *out, size_t cap)
{
    char link[40];
    ssize_t n;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    n = readlink(link, out, cap);
    return n > 0 && (size_t)n < cap ? (size_t)n : 0;
}

/* For kernels before 5.6 and sandboxes without openat2: open, then ask the
 * kernel where the descriptor leads. What was opened is what was checked. */
static int open_then_check(int dirfd, const char *name, int flags)
{
    char dir[4096], file[4096];
    size_t n_dir, n_file;
    int base = dirfd == AT_FDCWD ? open(".", O_PATH | O_CLOEXEC) : dirfd;
    int fd = base < 0 ? -1 : openat(base, name, flags);
    int why = errno;

    if (fd >= 0) {
        n_dir = fd_path(base, dir, sizeof(dir));
        n_file = fd_path(fd, file, sizeof(file));
        if (n_dir == 1) /* the directory "/" */
            n_dir = 0;
        if (n_file <= n_dir || memcmp(dir, file, n_dir) != 0 ||
            file[n_dir] != '/' || name[0] == '/') {
            close(fd);
            fd = -1;
            why = EXDEV;
        }
    }
    if (base != dirfd && base >= 0)
        close(base);
    errno = why;
    return fd;
}

/* Open below dirfd. O_NONBLOCK: a FIFO must not hold us up. */
static int open_beneath(int dirfd, const char *name)
{
    const int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    struct open_how how = {
        .flags = (unsigned)flags,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS,
    };
    long fd = -1;

    /* EAGAIN: something was renamed meanwhile and the kernel is not sure. */
    for (int tries = 0; tries < 16; tries++) {
        fd = syscall(SYS_openat2, dirfd, name, &how, sizeof(how));
        if (fd >= 0 || (errno != EAGAIN && errno != EINTR))
            break;
    }
    /* Old container sandboxes answer EPERM for calls they do not know. */
    if (fd < 0 && (errno == ENOSYS || errno == EPERM))
        return open_then_check(dirfd, name, flags);
    return (int)fd;
}

static moec_status open_failed(const char *name, int why, moec_error *err)
{
    if (why == EXDEV)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I03,
                         "%s: leads out of its directory", name);
    if (why == ELOOP)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I03,
                         "%s: is a link to itself or one not to be followed",
                         name);
    if (why == ENXIO)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I03,
                         "%s: is a socket or a device, not a regular file",
                         name);
    return moec_fail_os(err, why, "%s: cannot open", name);
}

static const char *kind_of(mode_t mode)
{
    if (S_ISDIR(mode))
        return "a directory";
    if (S_ISFIFO(mode))
        return "a FIFO";
    if (S_ISCHR(mode) || S_ISBLK(mode))
        return "a device";
    return "something else";
}

moec_status moec_open_regular(int dirfd, const char *name, int *fd_out,
                              uint64_t *bytes_out, moec_error *err)
{
    struct stat st;
    moec_status status;
    int fd = open_beneath(dirfd, name);

    if (fd < 0)
        return open_failed(name, errno, err);
    if (fstat(fd, &st) != 0) {
        status = moec_fail_os(err, errno, "%s: cannot stat", name);
        goto close_fd;
    }
    if (!S_ISREG(st.st_mode)) {
        status = moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I03,
                           "%s: is %s, not a regular file", name,
                           kind_of(st.st_mode));
        goto close_fd;
    }
    *fd_out = fd;
    if (bytes_out)
        *bytes_out = (uint64_t)st.st_size;
    return MOEC_OK;

close_fd:
    close(fd);
    return status;
}

static moec_status read_all(int fd, const char *name, uint64_t bytes,
                            moec_buf *b, moec_error *err)
{
    size_t got = 0;

    /* One byte more than there should be: a file that grew is seen. */
    if (bytes >= SIZE_MAX || !moec_buf_reserve(b, (size_t)bytes + 1))
        return moec_fail_nomem(err, name);
    MOEC_TRY(pread_some(fd, name, b->data + b->len, (size_t)bytes + 1, 0, &got,
                        err));
    if (got != bytes)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I13,
                         "%s: its size changed while it was read, it was %ju "
                         "bytes",
                         name, (uintmax_t)bytes);
    b->len += got;
    b->data[b->len] = '\0';
    return MOEC_OK;
}

moec_status moec_read_file(int dirfd, const char *name, uint64_t max,
                           moec_buf *b, moec_error *err)
{
    moec_status status;
    uint64_t bytes = 0;
    int fd = -1;

    MOEC_TRY(moec_open_regular(dirfd, name, &fd, &bytes, err));
    if (bytes > max)
        status = moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I04,
                           "%s: has %ju bytes, more than the limit of %ju",
                           name, (uintmax_t)bytes, (uintmax_t)max);
    else
        status = read_all(fd, name, bytes, b, err);
    close(fd);
    return status;
}
