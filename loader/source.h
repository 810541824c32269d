/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_SOURCE_H
#define MOEC_SOURCE_H

/*
 * What this is: where a checkpoint's files are, and the only way to open one
 *   of them: by plain name, regular, inside the directory or, in a Hugging
 *   Face cache, inside the repository directory that the snapshot is part of.
 * Lifetime: moec_source owns its strings and descriptors until _fini.
 * Threads: immutable once open: share freely.
 * Errors: FORMAT (I01, I02, I03, I11), IO, NOMEM, ARG.
 */

#include <moec/loader.h>

#include "base/base.h"

typedef struct moec_source {
    char *dir;    /* resolved path of the directory with the files */
    int dirfd;    /* of it; -1 where there is none */
    int rootfd;   /* links may lead anywhere below it; dirfd outside caches */
    char *prefix; /* from the root to dir: "snapshots/REVISION/", or "" */
    char *bare;   /* name of the one file that was asked for, or NULL */
    struct moec_remote *remote; /* in the place of a directory, or NULL */
} moec_source;
#define MOEC_SOURCE_INIT                                                       \
  {                                                                            \
    NULL, -1, -1, NULL, NULL, NULL                                             \
  }

/* Find what `path` means. `hf_cache` may be NULL. */
moec_status moec_source_open(moec_source *out, const char *path,
                             const char *hf_cache, moec_error *err);
/* The same over a caller's source. */
moec_status moec_source_open_store(moec_source *out, const moec_store *store,
                                   moec_error *err);
void moec_source_fini(moec_source *s);

/* True where the directory is a snapshot of a Hugging Face cache. */
bool moec_source_in_cache(const moec_source *s);

/* Open the file `name` of the directory. Not plain -> ARG; absent -> IO with
 * os_errno ENOENT; not regular or leading outside -> FORMAT I03; a Git LFS
 * pointer -> FORMAT I11. *fd_out is the caller's to close. */
moec_status moec_source_file(const moec_source *s, const char *name,
                             int *fd_out, uint64_t *bytes_out, moec_error *err);

/* List the names in the directory, sorted bytewise, without "." and "..".
 * The names live in `arena`; the array is the caller's to moec_free. */
moec_status moec_source_list(const moec_source *s, moec_arena *arena,
                             const char ***names_out, size_t *n_out,
                             moec_error *err);

/* What a name of the directory is. */
typedef enum moec_source_entry {
    MOEC_ENTRY_OTHER,  /* a directory, a device, a link to nothing */
    MOEC_ENTRY_FILE,   /* a regular file, or a link to one that stays inside */
    MOEC_ENTRY_OUTSIDE /* a link to a file that does not */
} moec_source_entry;

/* IO where nobody can tell: "no file" would leave it out of a conversion. */
moec_status moec_source_look(const moec_source *s, const char *name,
                             moec_source_entry *out, moec_error *err);

/* True where `name` ends as a format of weights that may run code or that we
 * do not read: .bin, .pt, .pth, .gguf. */
bool moec_is_foreign_weights(const char *name);

bool moec_has_suffix(const char *s, const char *suffix);

#endif
