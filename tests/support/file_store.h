/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TESTS_FILE_STORE_H
#define MOEC_TESTS_FILE_STORE_H

/*
 * A directory as a caller's source (moec_store): held, failing or changing
 * where a test asks for it. Use with cmocka.
 */

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <setjmp.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <moec/loader.h>

#include "base/base.h"

typedef struct store {
    moec_store pub;
    moec_store_file files[64];
    char names[64][256];
    int fds[64];
    atomic_uint n_reads;
    atomic_ullong bytes_read[64];
    atomic_bool held; /* reads begin and do not end */
    unsigned fail_at;
    bool changes;
} store;

static inline moec_status store_read(void *ctx, size_t file, uint64_t off,
                                     void *buf, size_t n, moec_error *err)
{
    store *s = ctx;
    unsigned i = atomic_fetch_add(&s->n_reads, 1) + 1;

    while (atomic_load(&s->held))
        usleep(1000);
    if (i == s->fail_at)
        return moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE, "no such object");
    atomic_fetch_add(&s->bytes_read[file], n);
    return moec_pread_full(s->fds[file], s->files[file].name, buf, n, off, err);
}

static inline moec_status store_stat(void *ctx, size_t file,
                                     moec_store_file *out, moec_error *err)
{
    store *s = ctx;

    (void)err;
    *out = s->files[file];
    if (s->changes)
        out->etag = "another";
    return MOEC_OK;
}

static inline void store_open(store *s, const char *path)
{
    moec_store init = MOEC_STORE_INIT;
    DIR *d = opendir(path);

    memset(s, 0, sizeof(*s));
    assert_non_null(d);
    for (const struct dirent *e = readdir(d); e != NULL; e = readdir(d)) {
        size_t i = s->pub.n_files;
        if (e->d_name[0] == '.')
            continue;
        snprintf(s->names[i], sizeof(s->names[i]), "%s", e->d_name);
        s->fds[i] = openat(dirfd(d), e->d_name, O_RDONLY | O_CLOEXEC);
        assert_true(s->fds[i] >= 0);
        s->files[i] = (moec_store_file){
            s->names[i], (uint64_t)lseek(s->fds[i], 0, SEEK_END), "tag"};
        s->pub.n_files++;
        init.n_files = s->pub.n_files;
    }
    closedir(d);
    init.name = "store://files";
    init.files = s->files;
    init.read_at = store_read;
    init.stat = store_stat;
    init.ctx = s;
    s->pub = init;
}

static inline void store_close(store *s)
{
    for (size_t i = 0; i < s->pub.n_files; i++)
        close(s->fds[i]);
}

#endif
