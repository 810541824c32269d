/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_LOADER_H
#define MOEC_LOADER_H

/*
 * What this is: read-only access to a checkpoint: its files and one flat,
 *   sorted table of its tensors. Knows files and bytes, nothing of experts.
 * Lifetime: moec_ckpt owns every pointer it returns.
 * Threads: a moec_ckpt is immutable after open: share freely.
 * Errors: FORMAT (a broken file; rule H.. or I..), IO, NOMEM, ARG,
 *   UNSUPPORTED. Nothing is opened on failure.
 */

#include <moec/error.h>
#include <moec/types.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moec_ckpt moec_ckpt;

/* Limits. Each is named in the refusal that it causes. */
#define MOEC_HEADER_BYTES_MAX     UINT64_C(100000000) /* of the format */
#define MOEC_TENSORS_PER_FILE_MAX 1000000u
#define MOEC_INDEX_BYTES_MAX      (UINT64_C(1) << 30)

/* One data file of a checkpoint. */
typedef struct moec_file {
    const char *name;          /* base name, as the index spells it */
    uint64_t bytes;            /* of the file */
    uint64_t header_bytes;     /* 8 + N: data begins here */
    uint8_t header_sha256[32]; /* of those first 8 + N bytes */
    const char *etag;          /* Hugging Face blob name, or NULL */
} moec_file;

/* One finding that does not stop an open (warnings and notes). */
typedef struct moec_note {
    moec_rule rule;
    char text[MOEC_ERROR_TEXT_BYTES];
} moec_note;

typedef struct moec_ckpt_opts {
    uint32_t struct_bytes; /* sizeof(moec_ckpt_opts) */
    uint32_t n_threads;    /* for parsing headers; 0: one per CPU allowed */
    /* Root of the Hugging Face cache ("hub" directory) for `org/name[@rev]`;
     * NULL: no cache lookup. The library reads no environment. */
    const char *hf_cache;
} moec_ckpt_opts;
#define MOEC_CKPT_OPTS_INIT                                                    \
  {                                                                            \
    sizeof(moec_ckpt_opts), 0, NULL                                            \
  }

/* Open the checkpoint at `path`: a directory with safetensors (indexed
 * shards, or exactly one file), one `.safetensors` file, a Hugging Face cache
 * snapshot, or `org/name[@revision]` below opts->hf_cache. Reads headers only
 * and keeps the files open. On success `*out` is the caller's to close; on
 * failure it is untouched. */
MOEC_API moec_status moec_ckpt_open(moec_ckpt **out, const char *path,
                                    const moec_ckpt_opts *opts,
                                    moec_error *err);

/* A file of a source that is no directory. */
typedef struct moec_store_file {
    const char *name; /* as it would be called in the directory */
    uint64_t bytes;
    const char *etag; /* changes when the file does; NULL where unknown */
} moec_store_file;

/* A caller's source: an object store, or memory that holds new weights. */
typedef struct moec_store {
    uint32_t struct_bytes; /* sizeof(moec_store) */
    uint32_t reserved;
    const char *name;             /* for messages: "s3://bucket/DeepSeek-V3" */
    const moec_store_file *files; /* all that there is, in any order */
    size_t n_files;
    /* Read `n` bytes at `off` of files[file] into buf: all of them or an
     * error. Any thread, many at once. */
    moec_status (*read_at)(void *ctx, size_t file, uint64_t off, void *buf,
                           size_t n, moec_error *err);
    /* Say what the file is now (name need not be set): asked before and after
     * a load, another size or etag is FORMAT (I13). NULL: it cannot change. */
    moec_status (*stat)(void *ctx, size_t file, moec_store_file *now,
                        moec_error *err);
    void *ctx; /* must outlive the checkpoint */
} moec_store;
#define MOEC_STORE_INIT                                                        \
  {                                                                            \
    .struct_bytes = sizeof(moec_store)                                         \
  }

/* The same over a caller's source, which is copied but for ctx. Headers, index
 * and small files are read through read_at when they are needed, and kept;
 * tensors whenever they are read. What needs a directory (convert, verify's
 * source) is UNSUPPORTED. */
MOEC_API moec_status moec_ckpt_open_source(moec_ckpt **out,
                                           const moec_store *store,
                                           const moec_ckpt_opts *opts,
                                           moec_error *err);

/* Close; NULL is fine. */
MOEC_API void moec_ckpt_close(moec_ckpt *ckpt);

/* Return the directory that holds the files (resolved), never NULL. */
MOEC_API const char *moec_ckpt_dir(const moec_ckpt *ckpt);

/* Return 1 if the checkpoint was opened as one bare file. */
MOEC_API int moec_ckpt_is_bare_file(const moec_ckpt *ckpt);

/* Return the number of tensors; they are sorted by name (bytewise). */
MOEC_API size_t moec_ckpt_n_tensors(const moec_ckpt *ckpt);

/* Return tensor `i` < n_tensors. */
MOEC_API const moec_tensor *moec_ckpt_tensor(const moec_ckpt *ckpt, size_t i);

/* Return the index of the tensor with this name, or SIZE_MAX. */
MOEC_API size_t moec_ckpt_find(const moec_ckpt *ckpt, const char *name);

MOEC_API size_t moec_ckpt_n_files(const moec_ckpt *ckpt);
MOEC_API const moec_file *moec_ckpt_file(const moec_ckpt *ckpt, size_t i);

/* Notes found while opening: warnings, unindexed files. */
MOEC_API size_t moec_ckpt_n_notes(const moec_ckpt *ckpt);
MOEC_API const moec_note *moec_ckpt_note(const moec_ckpt *ckpt, size_t i);

/* Read `n` bytes at `off` bytes from the begin of tensor `i`'s data into
 * `buf`. ARG when the range leaves the tensor; IO; FORMAT (I13) when the file
 * changed since open. Safe from any thread. */
MOEC_API moec_status moec_ckpt_read(const moec_ckpt *ckpt, size_t i,
                                    uint64_t off, void *buf, size_t n,
                                    moec_error *err);

/* Compute the SHA-256 of `bytes` bytes at `off` bytes from the begin of tensor
 * `tensor`'s data into out[32], by reading them. `out` is untouched on
 * failure. The same statuses as moec_ckpt_read, and NOMEM. Safe from any
 * thread. */
MOEC_API moec_status moec_ckpt_digest(const moec_ckpt *ckpt, size_t tensor,
                                      uint64_t off, uint64_t bytes,
                                      uint8_t out[32], moec_error *err);

/* Compute the SHA-256 of `n` bytes of memory into out[32]. NOMEM. Safe from any
 * thread. */
MOEC_API moec_status moec_digest_memory(const void *data, size_t n,
                                        uint8_t out[32], moec_error *err);

#ifdef __cplusplus
}
#endif
#endif
