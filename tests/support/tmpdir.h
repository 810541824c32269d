/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TESTS_TMPDIR_H
#define MOEC_TESTS_TMPDIR_H

/*
 * A temporary directory for one test, and files in it. Every helper fails the
 * test where the system refuses. Use with cmocka.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <fcntl.h>
#include <ftw.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct tmpdir {
    char path[256];
} tmpdir;

static inline tmpdir tmpdir_make(void)
{
    const char *base = getenv("TMPDIR");
    tmpdir d;

    (void)snprintf(d.path, sizeof(d.path), "%s/moec-test-XXXXXX",
                   base != NULL && strlen(base) < 200 ? base : P_tmpdir);
    assert_non_null(mkdtemp(d.path));
    return d;
}

static inline int tmpdir_unlink_(const char *path, const struct stat *st,
                                 int kind, struct FTW *at)
{
    (void)st;
    (void)kind;
    (void)at;
    return remove(path);
}

static inline void tmpdir_remove(const tmpdir *d)
{
    assert_int_equal(nftw(d->path, tmpdir_unlink_, 16, FTW_DEPTH | FTW_PHYS),
                     0);
}

/* Path of `name` in the directory. The last 8 results stay valid. */
static inline const char *tmpdir_path(const tmpdir *d, const char *name)
{
    static char ring[8][1024];
    static unsigned next;
    char *out = ring[next++ % 8];
    int n = snprintf(out, sizeof(ring[0]), "%s/%s", d->path, name);

    assert_true(n > 0 && (size_t)n < sizeof(ring[0]));
    return out;
}

static inline void tmpdir_write(const tmpdir *d, const char *name,
                                const void *data, size_t n)
{
    FILE *f = fopen(tmpdir_path(d, name), "wb");

    assert_non_null(f);
    if (n > 0)
        assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static inline void tmpdir_text(const tmpdir *d, const char *name,
                               const char *text)
{
    tmpdir_write(d, name, text, strlen(text));
}

static inline void tmpdir_mkdir(const tmpdir *d, const char *name)
{
    assert_int_equal(mkdir(tmpdir_path(d, name), 0755), 0);
}

static inline void tmpdir_link(const tmpdir *d, const char *target,
                               const char *name)
{
    assert_int_equal(symlink(target, tmpdir_path(d, name)), 0);
}

static inline void tmpdir_fifo(const tmpdir *d, const char *name)
{
    assert_int_equal(mkfifo(tmpdir_path(d, name), 0644), 0);
}

#endif
