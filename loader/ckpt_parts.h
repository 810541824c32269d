/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_CKPT_PARTS_H
#define MOEC_CKPT_PARTS_H

/*
 * What this is: the inside of a moec_ckpt, shared by ckpt.c (open, access),
 *   ckpt_files.c (which files) and ckpt_index.c (what the index says), and by
 *   nobody else.
 * Lifetime: all is the checkpoint's; moec_ckpt_close frees what there is, at
 *   any stage of an open.
 */

#include <sys/types.h>
#include <time.h>

#include "ckpt.h"
#include "index.h"
#include "safetensors.h"
#include "source.h"

#define MOEC_CKPT_INDEX "model.safetensors.index.json"

/* What must stay the same while a file is read. */
typedef struct moec_stamp {
    dev_t dev;
    ino_t ino;
    off_t bytes;
    struct timespec mtime;
} moec_stamp;

typedef struct moec_shard {
    int fd; /* -1 for a checkpoint of headers alone */
    moec_stamp stamp;
    const char *path; /* resolved, in the arena */
    moec_header header;
    bool has_header; /* read before the files were chosen */
    /* What the index says of it: so many tensors, and their names_sum. */
    size_t index_tensors;
    uint64_t index_sum;
} moec_shard;

struct moec_ckpt {
    moec_source source;
    moec_arena arena;                    /* names of files, paths */
    moec_arena tables[MOEC_THREADS_MAX]; /* of headers, by who read them */
    size_t n_files;
    moec_file *files;
    moec_shard *shards;
    size_t n_tensors;
    const moec_tensor **by_name; /* in the shards' tables */
    size_t n_extra;
    const char **extra;
    size_t n_notes;
    moec_note *notes;
    size_t n_notes_left_out;
    const char *index_name; /* NULL without an index */
    uint64_t secret[2];     /* of names_sum */
    moec_stamp index_stamp;
};

/* ---------------------------------------------------------- ckpt_files.c */

/* Add a note, in the form of an error's text. */
moec_status moec_ckpt_add_note(moec_ckpt *c, moec_rule rule, moec_error *err,
                               const char *fmt, ...) MOEC_PRINTF(4, 5);
/* Say how many were left out, once all are made. */
void moec_ckpt_sum_notes(moec_ckpt *c);

/* Remember what an open file is; fail with I13 where it is another one. */
moec_status moec_stamp_take(int fd, const char *name, moec_stamp *out,
                            moec_error *err);
moec_status moec_stamp_check(int fd, const char *name, const moec_stamp *then,
                             moec_error *err);

/* Make room for `n` files, all closed. */
moec_status moec_ckpt_make_files(moec_ckpt *c, size_t n, moec_error *err);
/* Open all files; of those that are not there the first is named (I06). */
moec_status moec_ckpt_open_files(moec_ckpt *c, moec_error *err);

/* Take this file alone; the only one in a sorted listing (I01, I02, I12). */
moec_status moec_ckpt_choose_one(moec_ckpt *c, const char *name,
                                 moec_error *err);
moec_status moec_ckpt_choose_only(moec_ckpt *c, const char **list, size_t n,
                                  moec_error *err);
/* Take from a sorted listing what a conversion copies. */
moec_status moec_ckpt_choose_extra(moec_ckpt *c, const char **list, size_t n,
                                   moec_error *err);
/* I15. */
moec_status moec_ckpt_note_unindexed(moec_ckpt *c, const char **list, size_t n,
                                     moec_error *err);

/* ---------------------------------------------------------- ckpt_index.c */

/* Open the index again; the caller closes *fd_out. */
moec_status moec_ckpt_open_index(const moec_ckpt *c, int *fd_out,
                                 moec_error *err);
/* Take the index's files, in the order of their names. While the index is
 * read, other threads open the shards that it will name, as far as a look at
 * its begin tells, and read their headers. */
moec_status moec_ckpt_choose_indexed(moec_ckpt *c, uint32_t n_threads,
                                     moec_index_facts *facts, moec_error *err);
/* I08, I10: compare with the headers. */
moec_status moec_ckpt_compare_index(moec_ckpt *c, moec_error *err);
/* I14. */
moec_status moec_ckpt_note_total(moec_ckpt *c, const moec_index_facts *facts,
                                 moec_error *err);
/* Write to `err` why the open failed with `failed` and `why`: return the
 * status. */
moec_status moec_ckpt_explain_failure(const moec_ckpt *c, moec_status failed,
                                      const moec_error *why, moec_error *err);

#endif
