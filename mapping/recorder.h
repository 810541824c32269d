/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_RECORDER_H
#define MOEC_RECORDER_H

/*
 * What this is: a recorder from the inside: recorder.c, which appends, and
 *   recorder_take.c, which takes.
 * Threads: `blocks`, `dir`, `chunks`, `generation` and the counts are atomic
 *   and read without the lock; all else of requests and recorder is changed
 *   under it.
 */

#include <pthread.h>
#include <stdatomic.h>

#include "routes.h"

#define CHUNK_BITS    6u
#define CHUNK         (1u << CHUNK_BITS)
#define BLOCK_BITS    8u
#define BLOCK         (1u << BLOCK_BITS)
#define BLOCKS_MAX    (1u << 14) /* 4 million requests held at once */
#define DIR_MIN       16u
#define BUCKETS_FIRST 256u

/* Marks of CHUNK tokens [CHUNK][N], then their ids [CHUNK][N][K]. */
typedef struct chunk {
    uint8_t bytes[1];
} chunk;

typedef struct directory {
    struct directory *old; /* the one it replaced */
    uint32_t n;
    _Atomic(chunk *) chunks[];
} directory;

typedef struct request {
    /* Upper half of the handle; odd while held. */
    _Atomic uint32_t generation;
    uint32_t index;
    _Atomic(directory *) dir;
    struct request *next; /* in its bucket, or of the free ones */
    char *id;
    uint64_t hash;
    uint64_t serial; /* order of arrival */
    moec_route_gap *gaps;
    size_t n_gaps;
    uint32_t sample;
} request;

struct moec_recorder {
    moec_routes_shape shape;
    uint32_t width;
    uint64_t row_ids_bytes; /* K * width */
    uint64_t marks_bytes;   /* CHUNK * N */
    uint64_t chunk_bytes;
    uint64_t max_bytes;
    _Atomic uint64_t bytes, rows;
    pthread_mutex_t lock; /* of all below */
    _Atomic(request *) blocks[BLOCKS_MAX];
    uint32_t n_made;
    uint64_t n_held, serial;
    request *free_ones;
    request **buckets;
    size_t n_buckets;
    uint64_t secret[2];
    bool stopped;
};

/* The request of a handle, or NULL where it ended; and the refusal of that. */
request *moec_recorder_find(const moec_recorder *r, uint64_t handle);
moec_status moec_recorder_stale(uint64_t handle, moec_error *err);

/* The chunk of a position, or NULL where there is none. */
chunk *moec_recorder_chunk(const request *q, uint32_t position);

/* Free what a request holds. Under the lock, or without other threads. */
void moec_recorder_clear(moec_recorder *r, request *q);

#endif
