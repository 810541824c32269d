/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_CKPT_H
#define MOEC_CKPT_H

/*
 * What this is: what the rest of the library may ask of a checkpoint beyond
 *   the public loader.h.
 */

#include <moec/loader.h>

#include "base/base.h"
#include "io.h"

/* One shard whose header is in memory: for a checkpoint that is known by its
 * headers alone (sources.bin). */
typedef struct moec_header_blob {
    const char *name;
    const void *data; /* the first 8 + N bytes */
    uint64_t data_bytes;
    uint64_t file_bytes; /* size of the whole shard */
} moec_header_blob;

/* Make a checkpoint of headers in memory. moec_ckpt_read on it is
 * UNSUPPORTED. Nothing is borrowed after return. */
moec_status moec_ckpt_from_headers(moec_ckpt **out, const char *dir,
                                   const moec_header_blob *blobs, size_t n,
                                   moec_error *err);

/* Descriptor of file `i` for reading, owned by the checkpoint; -1 where the
 * checkpoint is of headers alone, or a caller's source. */
int moec_ckpt_fd(const moec_ckpt *ckpt, size_t i);

/* Read `n` bytes at `off` of file `i`, wherever it is. */
moec_status moec_ckpt_read_file(const moec_ckpt *ckpt, size_t i, uint64_t off,
                                void *buf, size_t n, moec_error *err);

/* Descriptor of the directory (O_PATH or O_RDONLY), owned by the checkpoint;
 * -1 where there is none. */
int moec_ckpt_dirfd(const moec_ckpt *ckpt);

/* Is it a caller's source (moec_ckpt_open_source)? It has no descriptors. */
bool moec_ckpt_is_remote(const moec_ckpt *ckpt);

/* Open file `i` for bulk reading. */
void moec_ckpt_io_open(const moec_ckpt *ckpt, size_t i, bool no_direct,
                       moec_io_file *out);

/* Full path of file `i` for messages and for opening again with other flags
 * (resolved: a cache link's target). */
const char *moec_ckpt_path(const moec_ckpt *ckpt, size_t i);

/* Name of the index file in the directory, or NULL; and its bytes. */
const char *moec_ckpt_index_name(const moec_ckpt *ckpt);
moec_status moec_ckpt_read_index(const moec_ckpt *ckpt, moec_buf *out,
                                 moec_error *err);

/* Fail with I13 where size, inode or mtime of any file changed since open. */
moec_status moec_ckpt_check_unchanged(const moec_ckpt *ckpt, moec_error *err);

/* Names of the regular top-level files that a conversion copies: all but
 * weights in any format (.safetensors, .bin, .pt, .pth, .gguf, .msgpack, .h5,
 * .onnx, .ot, .ckpt), index files (*.index.json), .git and .moec-*. Sorted
 * bytewise. Cache links count where they stay inside the
 * repository directory. */
size_t moec_ckpt_n_extra(const moec_ckpt *ckpt);
const char *moec_ckpt_extra(const moec_ckpt *ckpt, size_t i);
/* Read extra file (or config.json) `name`, at most `max` bytes. */
moec_status moec_ckpt_read_extra(const moec_ckpt *ckpt, const char *name,
                                 uint64_t max, moec_buf *out, moec_error *err);
/* Open it for reading: *fd_out is the caller's to close. */
moec_status moec_ckpt_open_extra(const moec_ckpt *ckpt, const char *name,
                                 int *fd_out, uint64_t *bytes_out,
                                 moec_error *err);

#endif
