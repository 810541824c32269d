/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_MUTATE_H
#define MOEC_MUTATE_H

/*
 * What this is: mutations (moec/validate.h) in three steps: where one is made
 *   (mutate.c), what it changes in the snapshots that level 1 proves
 *   (mutate_plan.c), and what it changes in the bytes that level 2 reads
 *   (mutate_bytes.c).
 * Lifetime: a mutant is a plain value; patches own their items.
 * Threads: moec_patches_apply is safe from any thread, the rest is one thread
 *   at a time.
 */

#include <stdatomic.h>

#include <moec/validate.h>

#include "base/base.h"

/* Where a mutation is made; each kind uses the fields that it needs. Rows are
 * local rows; layers are planned ones. */
typedef struct moec_mutant {
    moec_mutation kind;
    size_t layer, other_layer;
    size_t t; /* slot tensor of `layer` */
    uint32_t rank, row, other_rank, other_row;
    size_t source; /* source tensor */
} moec_mutant;

/* Find the first place where `kind` can be made. UNSUPPORTED: there is none,
 * and the text says what is missing. */
moec_status moec_mutant_find(moec_mutant *out, const moec_layout *layout,
                             moec_mutation kind, moec_error *err);

/* UNSUPPORTED, with the kind's name in front of `why`. */
moec_status moec_mutant_refuse(moec_mutation kind, const char *why,
                               moec_error *err);

/* Bytes of one output file that read as others: made by the moves from where
 * `from` says, zeros where there are none, or `data`. */
typedef struct moec_patch {
    size_t file; /* for moec_layout_file */
    uint64_t off, bytes;
    size_t from_file;
    uint64_t from_off;
    size_t n_moves;
    moec_move moves[2];
    void *data; /* whole, for free(3); or NULL */
} moec_patch;

typedef struct moec_patches {
    moec_mutant mutant;
    bool on;             /* false: remember the files and change nothing */
    atomic_bool changed; /* some byte that was read became another one */
    size_t n, cap;
    moec_patch *items;
    const moec_layout *layout; /* borrowed while a verifier runs */
    int dirfd;                 /* of OUT; borrowed */
    size_t n_names, cap_names;
    char (*names)[256]; /* of the files that are changed: plain names */
} moec_patches;

/* Decide what `mutant.kind` changes in the files of `layout`, anew. */
moec_status moec_patches_make(moec_patches *p, const moec_layout *layout,
                              int dirfd, moec_error *err);
void moec_patches_fini(moec_patches *p);

/* Is file `file` changed? True for all where `p` is NULL. */
bool moec_patches_concern(const moec_patches *p, size_t file);

/* Change bytes [off, off + n) of file `file`, just read into `buf`. */
moec_status moec_patches_apply(moec_patches *p, size_t file, uint64_t off,
                               void *buf, size_t n, moec_error *err);

#endif
