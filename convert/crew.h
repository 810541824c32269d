/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_CREW_H
#define MOEC_CREW_H

/*
 * What this is: what convert and unconvert share: workers with their buffers,
 *   how many of them the options allow, and their common progress.
 * Threads: a worker is one thread's; moec_crew_done from any.
 */

#include <pthread.h>
#include <stdatomic.h>

#include "convert.h"
#include "execute.h"
#include "io.h"

/* One piece of work of plain copies: large enough for the disk (8 MiB reads
 * reach its full speed with two in flight), small enough for the caches. */
#define MOEC_COPY_RANGE_BYTES (UINT64_C(4) << 20)
/* Transposed and interleaved blocks: a range takes a stripe of every source
 * row, so it should be as wide as memory allows. */
#define MOEC_TURN_RANGE_BYTES (UINT64_C(64) << 20)

typedef struct moec_worker {
    unsigned char *buf; /* range_bytes, aligned for direct I/O */
    moec_scratch scratch;
    moec_io_buf io;
    void *extra; /* of the user */
} moec_worker;

typedef struct moec_crew {
    uint32_t n;
    uint64_t range_bytes; /* most bytes of one piece of work */
    uint64_t bytes;       /* of all workers' buffers */
    moec_worker *workers;
    const moec_convert_opts *opts;
    uint64_t total_bytes;
    _Atomic uint64_t done_bytes;
    pthread_mutex_t progress_lock;
} moec_crew;

/* Decide how many workers work on ranges of at most `range` bytes, within the
 * options' threads and memory. Allocates nothing. NOMEM where --memory is too
 * little for one. */
moec_status moec_crew_choose(moec_crew *c, uint64_t range,
                             const moec_convert_opts *opts, moec_error *err);
/* Make the buffers. */
moec_status moec_crew_hire(moec_crew *c, moec_error *err);
void moec_crew_fini(moec_crew *c);

/* `bytes` were there before this run: count them as done and say so. */
void moec_crew_resumed(moec_crew *c, uint64_t bytes);

/* Count written bytes, tell the progress callback, and fail with CANCELLED
 * where somebody asked to stop. */
moec_status moec_crew_done(moec_crew *c, uint64_t bytes, moec_error *err);

/* Bytes that all workers asked of files. */
uint64_t moec_crew_bytes_read(const moec_crew *c);

/* Longest range that any block of the plan wants. */
uint64_t moec_crew_range(const moec_plan *plan);

#endif
