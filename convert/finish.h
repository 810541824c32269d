/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_FINISH_H
#define MOEC_FINISH_H

/*
 * What this is: everything of an output besides the data files: the index of
 *   the common files, copies of the source's small files, slots.bin,
 *   sources.bin, provenance.json, and manifest.json LAST: without it the
 *   directory is no checkpoint. finish.c, finish_slots.c, finish_source.c,
 *   finish_lossy.c, finish_hash.c.
 * Threads: one.
 * Errors: IO, NOMEM, FORMAT (I04), INTEGRITY (M08).
 */

#include "convert.h"
#include "digests.h"
#include "input.h"
#include "objects.h"
#include "outdir.h"

/* Where it goes: one of the two. */
typedef struct moec_finish_to {
    moec_output *dir;
    const moec_objects *objects;
} moec_finish_to;

/* manifest.json while digests are missing: of several processes the one that
 * has rank 0 writes it, and finalize fills them in. */
#define MOEC_OUTPUT_BEGUN ".moec-manifest"

/* All of it. `header_sha256` are those of the data files. */
moec_status moec_finish_write(moec_input *in, const moec_digests *d,
                              const moec_sha256 *header_sha256,
                              moec_finish_to to, moec_convert_stats *stats,
                              moec_error *err);

/* What needs the source, and MOEC_OUTPUT_BEGUN last. Files that an interrupted
 * call left are replaced. */
moec_status moec_finish_begin(moec_input *in, moec_finish_to to,
                              moec_convert_stats *stats, moec_error *err);

/* What needs all digests, and manifest.json last: `begun` with them. Replaces
 * what an interrupted call left. */
moec_status moec_finish_merge(const moec_layout *layout, const moec_digests *d,
                              const moec_sha256 *header_sha256,
                              const moec_manifest *begun, moec_finish_to to,
                              moec_error *err);

/* ------------------------------------------------- between the three files */

typedef struct moec_finish {
    const moec_input *in; /* NULL in a merge */
    const moec_layout *layout;
    const moec_plan *plan;
    const moec_model *model;
    const moec_ckpt *ckpt;
    const moec_digests *d;      /* NULL in a begin */
    const moec_sha256 *headers; /* the same */
    moec_finish_to to;
    const moec_convert_opts *opts; /* NULL in a merge */
    bool replace;                  /* delete files before they are made */
    moec_arena arena;
    moec_slots slots;
    moec_sources sources;
    moec_manifest mf;
    moec_mf_file *files;          /* of mf, to fill in */
    moec_mf_source *source_files; /* the same */
    moec_mf_copied *copied;       /* room for all extra files */
} moec_finish;

/* Zeroed memory for n + 1 of them, from the arena; NULL where there is none. */
void *moec_finish_take(moec_finish *f, size_t n, size_t size);
/* Make room for a file that is about to be written. */
moec_status moec_finish_room(const moec_finish *f, const char *name,
                             moec_error *err);
/* Write a small file, replacing what an interrupted call left. */
moec_status moec_finish_put(const moec_finish *f, const char *name,
                            const moec_buf *b, moec_error *err);

moec_status moec_finish_slots(moec_finish *f, moec_error *err);
moec_status moec_finish_index(moec_finish *f, moec_error *err);
moec_status moec_finish_sources(moec_finish *f, moec_error *err);
moec_status moec_finish_lossy(moec_finish *f, moec_input *in,
                              moec_convert_stats *stats, moec_error *err);
moec_status moec_finish_hash(moec_finish *f, moec_input *in,
                             moec_convert_stats *stats, moec_error *err);
moec_status moec_finish_extras(moec_finish *f, moec_error *err);

#endif
