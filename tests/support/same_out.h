/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_SAME_OUT_H
#define MOEC_SAME_OUT_H

/*
 * What this is: the comparison of a finished output with the one of an
 *   undisturbed run, file by file.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tmpdir.h"

static inline char *slurp(const char *dir, const char *name, size_t *n)
{
    char path[1300];
    FILE *f;
    char *data = NULL;

    (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    f = fopen(path, "rb");
    if (f == NULL)
        fail_msg("%s is not there", path);
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    *n = (size_t)ftell(f);
    rewind(f);
    data = malloc(*n + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *n, f), *n);
    assert_int_equal(fclose(f), 0);
    return data;
}

static inline size_t n_entries(const char *dir)
{
    DIR *d = opendir(dir);
    size_t n = 0;

    assert_non_null(d);
    while (readdir(d) != NULL)
        n++;
    closedir(d);
    return n;
}

/* `out` of the directory is what `want` is, but for provenance.json; and it
 * goes. */
static inline void check_out(const tmpdir *dir)
{
    char want[1024], out[1024];
    const struct dirent *e;
    DIR *d;

    (void)snprintf(want, sizeof(want), "%s", tmpdir_path(dir, "want"));
    (void)snprintf(out, sizeof(out), "%s", tmpdir_path(dir, "out"));
    assert_int_equal(n_entries(out), n_entries(want));
    d = opendir(want);
    assert_non_null(d);
    while ((e = readdir(d)) != NULL) {
        size_t n, m;
        if (e->d_name[0] == '.' || strcmp(e->d_name, "provenance.json") == 0)
            continue;
        char *a = slurp(want, e->d_name, &n), *b = slurp(out, e->d_name, &m);
        if (n != m || memcmp(a, b, n) != 0)
            fail_msg("%s differs", e->d_name);
        free(a);
        free(b);
    }
    closedir(d);
    assert_int_equal(nftw(out, tmpdir_unlink_, 16, FTW_DEPTH | FTW_PHYS), 0);
    assert_int_equal(access(tmpdir_path(dir, "out.partial"), F_OK), -1);
}

#endif
