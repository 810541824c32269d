/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_CONVERT_H
#define MOEC_CONVERT_H

/*
 * What this is: a plan executed into files, and back.
 * Threads: one call, one output directory; the calls block.
 * Errors: ARG (output exists and no force; layout and opts->source are of two
 *   models), LOCKED, IO, FORMAT, MAPPING,
 *   INTEGRITY, CANCELLED, DURABILITY (the output is there, its last fsync
 *   failed).
 *
 * After CANCELLED, IO and NOMEM, and after any death of the process or the
 * machine, OUT.partial stays, and the same call goes on with it: what its
 * journal proves done is not done again, and the result is the same, byte for
 * byte but for provenance.json. Threads, memory and no_direct may differ; where
 * the source or another option does, the call is refused with ARG and
 * OUT.partial is left as it is.
 */

#include <signal.h>
#include <stdbool.h>

#include <moec/mapping.h>
#include <moec/validate.h>

/* How several processes divide what more than one rank holds (share.h). */
typedef enum moec_sharing {
    MOEC_SHARING_AUTO = 0, /* once, unless the file system is a network one
                              that does not keep pages coherent */
    MOEC_SHARING_ONCE = 1, /* each source byte is read once in the whole job */
    MOEC_SHARING_FILES = 2 /* each file is written by one process */
} moec_sharing;

typedef struct moec_convert_opts {
    /* Take the source's bytes back out of this conversion, whose model the
     * layout is of; NULL: read the layout's checkpoint. Either way the output
     * is the same. */
    const moec_conversion *source;
    /* Unconvert: what the conversion was made from, for the tensors that it
     * left out; or NULL. */
    const moec_ckpt *original;
    uint32_t n_threads;        /* 0: chosen */
    uint64_t memory_bytes;     /* cap on buffers; 0: the default */
    uint64_t max_part_bytes;   /* 0: the default */
    bool force;                /* replace an existing output */
    bool no_direct;            /* never use O_DIRECT */
    bool hash_source;          /* SHA-256 of whole source shards into the
                                  manifest: reads the source once more */
    const char *family_text;   /* description given with --family, or NULL */
    const char *command;       /* command line for provenance.json, or NULL */
    moec_progress_fn progress; /* bytes written and to write */
    /* Called once where an earlier run is gone on with: bytes that were there
     * already, and bytes of all. Gets progress_ctx too. May be NULL. */
    void (*resumed)(void *ctx, uint64_t done, uint64_t total);
    void *progress_ctx;
    volatile sig_atomic_t *stop; /* non-zero: stop soon; may be NULL */
    /* Convert only these ranks: one byte for each, not 0 for ours. Other
     * processes do the others at the same time or later, and moec_finalize
     * commits. NULL: all of them. */
    const uint8_t *ranks;
    moec_sharing sharing;
    uint64_t upload_part_bytes; /* bucket.h; 0: the default */
} moec_convert_opts;

typedef struct moec_convert_stats {
    uint64_t bytes_read;    /* from source files */
    uint64_t bytes_written; /* into data files, by this call */
    uint64_t bytes_resumed; /* into data files, by earlier ones */
    uint64_t bytes_cloned;  /* of those written, shared with the source's files
                               (moec_place) */
    double seconds;
    uint32_t n_threads;
    uint32_t n_files;
    bool durability_uncertain;
    bool requantised; /* and what it lost, by projection: gate, up, down */
    struct {
        double max_abs, relative_rms;
    } lossy[3];
} moec_convert_stats;

/* Buffer memory that a conversion takes, for `plan --json` and --memory. */
uint64_t moec_convert_memory(const moec_plan *plan,
                             const moec_convert_opts *opts);

/* Does the directory hold a manifest.json of ours? Others have files of that
 * name too. IO where nobody can tell. */
moec_status moec_convert_is_output(const char *dir, bool *ours,
                                   moec_error *err);

/* The family description that `source` was made with, for opts->family_text
 * of what is made of it; or NULL. */
const char *moec_convert_family_text(const moec_conversion *source);

/* Fail where `source` does not hold all that `layout` needs (M09). */
moec_status moec_convert_check_source(const moec_layout *layout,
                                      const moec_conversion *source,
                                      moec_error *err);

/* Write the converted checkpoint `out_dir`. `layout` is proved first.
 *
 * With opts->ranks it is written into OUT.partial, rank by rank: each rank has
 * a lock there (LOCKED where another process has it) and a journal, by which a
 * killed process is gone on with, by any process, in any division of the
 * ranks. A rank that is done is left as it is. ARG where the processes do not
 * agree on source and options, with what differs. Nothing is discarded on
 * failure, as others work there too. */
moec_status moec_convert(const moec_layout *layout, const char *out_dir,
                         const moec_convert_opts *opts,
                         moec_convert_stats *stats, moec_error *err);

/* Commit what several processes have converted: merge the digests of all
 * ranks, prove, write the manifest, rename. The result is, byte for byte, that
 * of one process; provenance.json is that of the process that had rank 0. The
 * source is not needed. FORMAT (M05) where ranks are missing, with their
 * numbers; LOCKED while one is being converted. Nothing is lost by a refusal. */
moec_status moec_finalize(const char *out_dir, const moec_convert_opts *opts,
                          moec_convert_stats *stats, moec_error *err);

/* Fail (M09) where `original` is not what was converted, or is NULL and the
 * conversion left tensors out: unconvert cannot give them back. */
moec_status moec_unconvert_check(const moec_conversion *c,
                                 const moec_ckpt *original, moec_error *err);

/* Give the source's files back: those of the conversion opts->source into the
 * new directory `out_dir`. */
moec_status moec_unconvert(const char *out_dir, const moec_convert_opts *opts,
                           moec_convert_stats *stats, moec_error *err);

#endif
