/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_WRITER_H
#define MOEC_WRITER_H

/*
 * What this is: the data files of an output directory, written in any order
 *   by many threads. Space is taken when a file is made, so that a full disk
 *   is known before the first gigabyte; at most a few dozen descriptors are
 *   open at once, however many ranks there are; aligned writes bypass the
 *   page cache where the file system allows it.
 * Threads: create, add, keep, sync, destroy on one thread; write from any;
 *   flush from one at a time.
 */

#include <stdbool.h>

#include "base/base.h"

typedef struct moec_writer moec_writer;

/* Files are made below `dirfd`, which stays the caller's. */
moec_status moec_writer_create(moec_writer **out, int dirfd, size_t n_files,
                               bool no_direct, moec_error *err);

/* Files that are made from now on take no space before it is written: what is
 * shared with other files needs none. */
void moec_writer_sparse(moec_writer *w);

/* Make file `i` < n_files with its final size; `name` is copied. */
moec_status moec_writer_add(moec_writer *w, size_t i, const char *name,
                            uint64_t bytes, moec_error *err);

/* The same for a file of that size that is there already. `unsynced`: it may
 * hold bytes of ours that nobody has synced. */
moec_status moec_writer_keep(moec_writer *w, size_t i, const char *name,
                             uint64_t bytes, bool unsynced, moec_error *err);

/* Write `n` bytes at `off`. Goes past the page cache where off, n and buf are
 * multiples of 4096. */
moec_status moec_writer_write(moec_writer *w, size_t i, uint64_t off,
                              const void *buf, size_t n, moec_error *err);

/* Copy `n` bytes at `from` of file `fd` to `off`: shared with it (reflink) as
 * far as file system and alignment allow, else copied in the kernel, else read
 * and written. *cloned_out: bytes that are shared. */
moec_status moec_writer_copy(moec_writer *w, size_t i, uint64_t off, int fd,
                             uint64_t from, uint64_t n, uint64_t *cloned_out,
                             moec_error *err);

/* fsync, one after the other, the files that were written since the last call.
 * While others write: what they wrote before the call is covered. */
moec_status moec_writer_flush(moec_writer *w, moec_error *err);

/* fsync every file. */
moec_status moec_writer_sync(moec_writer *w, uint32_t n_threads,
                             moec_error *err);

void moec_writer_destroy(moec_writer *w);

#endif
