/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_ENGINE_H
#define MOEC_ENGINE_H

/*
 * What this is: the reading half of a load: many stretches of files into
 *   places in memory, as fast as the files give them, every leaf checked on
 *   the way, in bounded memory. Knows files, bytes and groups that become
 *   ready; nothing of experts.
 * Lifetime: the engine borrows files, pieces, leaves and callbacks until
 *   destroy. No thread before start, none left after wait or destroy.
 * Threads: start, wait and destroy one at a time; poll and cancel from any
 *   thread; callbacks come from the engine's threads, one at a time but for
 *   visit.
 * Errors: IO, FORMAT (I13: a file changed; H17: it ended), INTEGRITY (a leaf's
 *   digest), CANCELLED, NOMEM, ARG (the ring is too small: how much it takes),
 *   or what a callback returned. Of several failures the first in time; after
 *   any, the destination is undefined.
 *
 * How: pieces are sorted by (group, file, offset) and equal stretches are read
 * once; neighbours with small gaps are joined, and requests cut to 2 MiB (4
 * where leaves are checked; less where the ring is small). A request whose
 * pages are cached is read through the cache straight into the destination
 * (preadv with one iovec a piece; pairs of leaves, for SHA-256, by small blocks
 * that a mapping fetches ahead); any other by O_DIRECT, straight into the
 * destination where file offset, length and memory are aligned, else into the
 * ring, from where each piece is copied to its place while other requests are
 * under way. io_uring where the kernel allows it, else a pool of threads with
 * pread.
 */

#include "converted.h"
#include "io.h"

/* A file to read: by descriptor, or by the caller's function. */
typedef moec_status (*moec_read_at_fn)(void *ctx, uint32_t file, uint64_t off,
                                       void *buf, size_t n, moec_error *err);

typedef struct moec_engine_file {
    const char *name; /* for messages */
    const char *path; /* to open again for O_DIRECT, or NULL: never */
    int fd;           /* -1: read_at of the options */
    uint64_t bytes;
} moec_engine_file;

/* A stretch of a file and where its bytes go. The stretch is a matrix of
 * n_rows x n_cols elements, element (r, c) at off + r*src_row + c*src_col in
 * the file and at dst + r*dst_row + c*dst_col in memory (moec_move's terms).
 * A piece that is adjacent on both sides has n_rows 1, and src_col and dst_col
 * equal to elem_bytes. */
typedef struct moec_piece {
    uint32_t file;
    uint32_t group; /* of the engine's groups, in the order of their reading */
    uint64_t off;   /* in the file */
    unsigned char *dst;
    uint32_t elem_bytes;
    uint64_t n_rows, n_cols;
    uint64_t src_row, src_col;
    uint64_t dst_row, dst_col;
    /* Digests of each MOEC_LEAF_BYTES from off - lead on, the last one as short
     * as it is; NULL: unchecked. */
    const moec_leaf *leaves;
    /* Bytes before `off`, and behind the last, that the leaves cover beside the
     * piece: with it they are read and checked, and go nowhere. So are gaps
     * between its rows; their columns are adjacent in the file. */
    uint64_t lead, trail;
    moec_rule leaf_rule; /* that a wrong leaf breaks; MOEC_RULE_NONE: T3 */
    uint32_t tag;        /* the caller's: names the piece in describe */
    uint32_t unit;       /* with visit: cut at multiples of so many bytes, at
                            most a leaf's; equal stretches have equal units */
} moec_piece;

typedef enum moec_engine_verify {
    MOEC_ENGINE_NONE = 0,
    MOEC_ENGINE_XXH3 = 1,
    MOEC_ENGINE_SHA256 = 2
} moec_engine_verify;

/* A sink's own way from files to the destination, past the host's memory. What
 * it does not bring comes by the ring. Any thread, several at once; failures
 * are nobody's but the ring's, but for those of `digest`. */
typedef struct moec_engine_reader {
    void *ctx;
    bool always; /* of pages that are cached, too */
    /* A file by its descriptor for direct reads, which outlives it. */
    moec_status (*open)(void *ctx, int fd, void **out, moec_error *err);
    void (*close)(void *ctx, void *file);
    /* Whole pages of the file to pages of the destination; *got_out bytes. */
    moec_status (*read)(void *ctx, void *file, uint64_t off, void *dst,
                        uint64_t bytes, uint64_t *got_out, moec_error *err);
    /* Digests of what stands in the destination once all copies are done that
     * were enqueued: XXH3-128 (16 bytes), or SHA-256 (32), one behind the
     * other. */
    moec_status (*digest)(void *ctx, int sha256, const void *const *data,
                          const uint64_t *bytes, size_t n, uint8_t *out,
                          moec_error *err);
} moec_engine_reader;

/* Where pieces go that are not in host memory: the engine's ring is then the
 * sink's memory (pinned), and each piece is copied from there. NULL: host. */
typedef struct moec_engine_sink {
    void *ctx;
    void *ring; /* the sink's, ring_bytes of the options; 4096-aligned */
    /* Enqueue a 2-D copy from the ring: `rows` of `row_bytes`. *ticket_out
     * is not 0 and grows from call to call. One thread at a time. */
    moec_status (*copy)(void *ctx, void *dst, uint64_t dst_row, const void *src,
                        uint64_t src_row, uint64_t row_bytes, uint64_t rows,
                        uint64_t *ticket_out, moec_error *err);
    /* Is all up to `ticket` done? *done_out 0 or 1; with `block`, wait. */
    moec_status (*poll)(void *ctx, uint64_t ticket, int block, int *done_out,
                        moec_error *err);
    bool copies_within;               /* `src` may be a destination too */
    const moec_engine_reader *reader; /* or NULL */
} moec_engine_sink;

typedef struct moec_engine_opts {
    uint32_t n_threads;  /* 0: one a CPU of the cpuset, at most 8; without
                            io_uring twice as many, at least 8: they block */
    uint64_t ring_bytes; /* 0: 64 MiB; what the engine may allocate beside its
                            lists (64 bytes a piece and request). Touched as far
                            as it is used, by its own threads: on their node,
                            by the process's policy */
    moec_engine_verify verify;
    bool no_direct; /* never O_DIRECT */
    bool no_uring;  /* never io_uring */
    const moec_engine_sink *sink;
    moec_read_at_fn read_at; /* for files without fd; any thread */
    void *read_ctx;
    /* All bytes of a group are in place and checked: once for each group, also
     * for one without pieces, in the order of the groups. With a sink, they are
     * checked and their copies enqueued: `ticket` is the last of the group.
     * May be NULL. */
    moec_status (*ready)(void *ctx, uint32_t group, uint64_t ticket,
                         moec_error *err);
    /* Bytes [at, at + n) of a piece that goes nowhere (dst NULL), in memory
     * that is the caller's until it returns: whole units, or to the piece's
     * end. Each byte once, in any order, by several threads at once. NULL: all
     * pieces have a place. With it none has, and each is adjacent in the
     * file. */
    moec_status (*visit)(void *ctx, const moec_piece *piece, uint64_t at,
                         void *data, uint64_t n, moec_error *err);
    /* Say what a piece is, for the text of an error: "layer 3
     * w13_weight slot 5 (expert 17)". Go by its tag: its axes may have been
     * turned. May be NULL. */
    void (*describe)(void *ctx, const moec_piece *piece, char *buf, size_t n);
    void *ctx;
} moec_engine_opts;

/* Counted from the start; pollable while it runs. */
typedef struct moec_engine_stats {
    uint64_t bytes_needed; /* of all pieces, equal stretches once; without what
                                only leaves want */
    uint64_t bytes_done;   /* in place and checked */
    uint64_t bytes_read;   /* asked of files, with gaps and alignment */
    uint64_t bytes_cached; /* of them, from the page cache */
    uint64_t bytes_ahead;  /* of them, fetched ahead of SHA-256 */
    uint64_t bytes_verified;        /* with a leaf's digest */
    uint64_t n_requests, n_retries; /* short reads and EINTR, EAGAIN */
    uint64_t n_ring_waits;
    uint64_t bytes_by_reader; /* by the sink's own; digested before the group
                                  is ready, after they count as done */
    uint64_t n_reader_failed; /* requests that the ring brought after all */
    uint32_t n_groups_ready;
    uint8_t uses_uring, uses_direct;
    double seconds, seconds_open, seconds_first_group;
    double seconds_digest; /* of all threads together */
} moec_engine_stats;

typedef struct moec_engine moec_engine;

/* Sort and cut. The pieces are copied; their leaves are not. */
moec_status moec_engine_create(moec_engine **out, const moec_engine_file *files,
                               size_t n_files, const moec_piece *pieces,
                               size_t n_pieces, uint32_t n_groups,
                               const moec_engine_opts *opts, moec_error *err);
/* Start the threads and return. */
moec_status moec_engine_start(moec_engine *e, moec_error *err);
/* Wait for the end; the result of the whole. No thread is left. */
moec_status moec_engine_wait(moec_engine *e, moec_error *err);
void moec_engine_poll(moec_engine *e, moec_engine_stats *out);
/* Ask to stop: wait returns CANCELLED within 100 ms. */
void moec_engine_cancel(moec_engine *e);
/* Cancel, wait, free. NULL is fine. */
void moec_engine_destroy(moec_engine *e);

#endif
