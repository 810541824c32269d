/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_REMOTE_H
#define MOEC_REMOTE_H

/*
 * What this is: a caller's source (moec_store) in the place of a directory.
 *   Small files are fetched whole and shards up to the end of their headers,
 *   when they are first opened, into memfds: whoever reads headers, the index
 *   or config.json reads a descriptor as ever. Data is never fetched here.
 * Lifetime: owned by the moec_source; names are copied, ctx is the caller's.
 * Threads: safe from any thread.
 * Errors: FORMAT (H01, I04), IO, NOMEM, or what a callback returned.
 */

#include <stdbool.h>

#include <moec/loader.h>

#include "base/base.h"

typedef struct moec_remote moec_remote;

moec_status moec_remote_create(moec_remote **out, const moec_store *store,
                               moec_error *err);
void moec_remote_destroy(moec_remote *r); /* NULL is fine */
const char *moec_remote_name(const moec_remote *r);

/* Index of the file with this name, or SIZE_MAX. Files are sorted by name. */
size_t moec_remote_find(const moec_remote *r, const char *name);
size_t moec_remote_n_files(const moec_remote *r);
const moec_store_file *moec_remote_file(const moec_remote *r, size_t i);

/* A descriptor of file `i`, the caller's to close: with the size of the whole
 * file, and of a shard only the header in it. The same inode each time. */
moec_status moec_remote_open(moec_remote *r, size_t i, int *fd_out,
                             moec_error *err);

moec_status moec_remote_read(moec_remote *r, size_t i, uint64_t off, void *buf,
                             size_t n, moec_error *err);
/* Fail with I13 where the file is another one now. */
moec_status moec_remote_check(moec_remote *r, size_t i, moec_error *err);

#endif
