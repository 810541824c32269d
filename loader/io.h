/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_IO_H
#define MOEC_IO_H

/*
 * What this is: bulk reading of files, past the page cache where the pages
 *   are not cached anyway.
 * Threads: a moec_io_file is immutable once open: share freely; one
 *   moec_io_buf, one thread.
 */

#include <stdbool.h>

#include "base/base.h"

typedef struct moec_io_file {
    const char *name; /* for messages; borrowed */
    uint64_t bytes;
    int fd;        /* buffered; borrowed */
    int direct_fd; /* O_DIRECT, owned; -1: not to be had */
    /* Not NULL: reads file `file` in the place of descriptors. */
    moec_status (*read)(const void *ctx, size_t file, uint64_t off, void *buf,
                        size_t n, moec_error *err);
    const void *ctx;
    size_t file;
} moec_io_file;

/* Bytes from which on a read is tried past the page cache. */
#define MOEC_IO_DIRECT_BYTES ((size_t)256 << 10)
/* Most bytes that one system call asks for. */
#define MOEC_IO_REQUEST_BYTES ((size_t)4 << 20)

/* Aligned room for unaligned direct reads; zero-initialise. */
typedef struct moec_io_buf {
    unsigned char *data;
    uint64_t n_bytes_read; /* statistics: bytes asked of files */
} moec_io_buf;
void moec_io_buf_fini(moec_io_buf *b);

/* Try to open `path` for direct reading beside `fd`; failing to is no error. */
void moec_io_open(moec_io_file *f, const char *name, const char *path, int fd,
                  uint64_t bytes, bool no_direct);
void moec_io_close(moec_io_file *f);

/* Does the page cache hold the whole range (n > 0)? False where nobody can
 * tell. */
bool moec_io_is_cached(int fd, uint64_t off, uint64_t n);

/* Read `n` bytes at `off`. Cached pages are taken from the cache, others by
 * O_DIRECT where the request is large, else through the cache. */
moec_status moec_io_read(const moec_io_file *f, moec_io_buf *b, uint64_t off,
                         void *buf, size_t n, moec_error *err);

#endif
