/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TEST_BENT_CALLS_H
#define MOEC_TEST_BENT_CALLS_H

/*
 * System calls that change something, counted: the n-th kills the process (a
 * write first writes its half) or fails with EIO. The clock runs a second at
 * each look. Replaces the C library's functions: include once in a program.
 */

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static struct {
    atomic_int calls;
    int die_at;  /* 0: never */
    int fail_at; /* with EIO; 0: never */
    atomic_long seconds;
} bent;

/* 0: go on; 1: fail; 2: die. */
static int step(void)
{
    int n = atomic_fetch_add(&bent.calls, 1) + 1;

    return n == bent.die_at ? 2 : n == bent.fail_at;
}

static long bend(int what, long number, long a, const void *b, long c, long d)
{
    if (what == 1) {
        errno = EIO;
        return -1;
    }
    if (what == 2) {
        if (number == SYS_pwrite64)
            (void)syscall(number, a, b, c / 2, d);
        kill(getpid(), SIGKILL);
    }
    return syscall(number, a, b, c, d);
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t off)
{
    return bend(step(), SYS_pwrite64, fd, data, (long)n, off);
}

int fsync(int fd)
{
    return (int)bend(step(), SYS_fsync, fd, NULL, 0, 0);
}

int fdatasync(int fd)
{
    return (int)bend(step(), SYS_fdatasync, fd, NULL, 0, 0);
}

int unlinkat(int dir, const char *name, int flags)
{
    return (int)bend(step(), SYS_unlinkat, dir, name, flags, 0);
}

int mkdirat(int dir, const char *name, mode_t mode)
{
    return (int)bend(step(), SYS_mkdirat, dir, name, (long)mode, 0);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to,
              unsigned int flags)
{
    int what = step();

    if (what != 0)
        return (int)bend(what, SYS_getpid, 0, NULL, 0, 0);
    return (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
}

int renameat(int from_dir, const char *from, int to_dir, const char *to)
{
    return renameat2(from_dir, from, to_dir, to, 0);
}

int fallocate(int fd, int mode, off_t off, off_t n)
{
    int what = step();

    if (what != 0)
        return (int)bend(what, SYS_getpid, 0, NULL, 0, 0);
    return (int)syscall(SYS_fallocate, fd, mode, off, n);
}

ssize_t copy_file_range(int from, __off64_t *from_off, int to,
                        __off64_t *to_off, size_t n, unsigned int flags)
{
    int what = step();

    if (what == 1)
        return bend(what, SYS_getpid, 0, NULL, 0, 0);
    if (what == 2)
        n /= 2;
    ssize_t done =
        syscall(SYS_copy_file_range, from, from_off, to, to_off, n, flags);
    if (what == 2)
        kill(getpid(), SIGKILL);
    return done;
}

int clock_gettime(clockid_t id, struct timespec *out)
{
    int rc = (int)syscall(SYS_clock_gettime, id, out);

    out->tv_sec += atomic_fetch_add(&bent.seconds, 1);
    return rc;
}

#endif
