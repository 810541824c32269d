/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_ENGINE_PARTS_H
#define MOEC_ENGINE_PARTS_H

/*
 * What this is: what the files of the engine share: engine.c (its life),
 *   engine_pieces.c (what is wanted), engine_plan.c (requests),
 *   engine_files.c (descriptors, caches, stamps), engine_read.c (threads),
 *   engine_cached.c (requests through the cache), engine_reader.c (a sink's own
 *   reads) and engine_check.c (digests, copies). Nobody else includes it.
 */

#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "engine.h"
#include "scatter.h"
#include "uring.h"

/* What direct reads and their buffers are aligned to: a page, whatever less
 * the device would take. */
#define MOEC_ENGINE_PAGE UINT64_C(4096)

/* A file of the caller's, open for both ways of reading. */
typedef struct moec_engine_fd {
    const moec_engine_file *f;
    int direct_fd;      /* -1: not to be had; owned */
    atomic_bool direct; /* until the file system refuses it after all */
    uint32_t off_align, mem_align; /* of direct reads */
    void *own;                     /* of the sink's reader, or NULL */
    atomic_bool own_way;           /* until the reader fails */
    bool used;
    struct stat stamp; /* size, inode and time when the engine was made */
} moec_engine_fd;

/* A piece with its axes settled: rows joined where they follow each other,
 * the source's smaller stride on the columns, and elements that are adjacent
 * on both sides taken for bytes. A hull is the stretch of all leaves that the
 * piece touches: flat_src, p.off where it begins, and p's element (0, 0) `skip`
 * bytes behind that. */
typedef struct moec_engine_piece {
    moec_piece p;
    uint64_t skip;
    uint64_t src_bytes; /* from the first to the last byte in the file */
    uint32_t unit;      /* cut at multiples of it */
    bool flat_src;      /* adjacent in the file: may be cut anywhere */
    bool flat;          /* and in memory */
    bool dense;         /* rows with gaps that another piece fills */
    bool checked;       /* has leaves, and they are asked for */
    bool hull;          /* and they cover more than it */
} moec_engine_piece;

/* What one request has of one piece: of a piece that is adjacent in the file
 * `bytes` from byte `at` on; of another the n_rows rows from `at` on, and of
 * them the n_cols columns from c0 on. */
typedef struct moec_part {
    uint64_t off, bytes; /* in the file, from the first to the last byte */
    uint64_t at, n_rows, c0, n_cols;
    uint32_t piece;
    uint32_t place; /* ordinal of (group, file): the sort key */
    bool same;      /* the part before has the same source */
} moec_part;

typedef struct moec_request {
    uint64_t off, bytes; /* aligned, at most part_bytes of the engine */
    uint64_t needed;     /* that equal parts share counts once */
    size_t first;        /* part */
    uint32_t n_parts;
    uint32_t file, group;
    bool straight; /* adjacent parts in order: preadv into their places */
    bool in_place; /* one run, aligned: direct reads into its place */
    bool offered;  /* the same with a sink, whose reader may bring it */
    bool taken;    /* and did */
} moec_request;

struct moec_engine {
    moec_engine_opts o;
    size_t n_files, n_pieces, n_requests, n_parts;
    moec_engine_fd *files;
    moec_engine_piece *pieces;
    moec_part *parts;
    moec_request *requests;
    uint32_t n_groups;
    uint32_t n_threads;
    uint64_t part_bytes; /* of one slot of the ring, and of one request */
    uint32_t n_slots;    /* of one thread */
    unsigned char *ring; /* n_threads * n_slots * part_bytes */
    /* Reads into their place need two pages of ours, for head and tail: so
     * many of them are under way in each thread, whatever the ring. */
    uint32_t n_places;
    unsigned char *pages; /* n_threads * n_places * 2 pages */
    struct moec_engine_worker *workers;
    uint32_t n_started;

    atomic_size_t next; /* request */
    atomic_bool stop;
    pthread_mutex_t lock; /* the following five */
    size_t *left;         /* requests, by group */
    uint64_t *tickets;    /* of a sink, by group */
    uint32_t n_ready;
    bool telling; /* a thread is calling `ready` */
    moec_status status;
    moec_error error;
    pthread_mutex_t sink_lock;

    bool done;
    double t_open;
    _Atomic double t_begin, t_end, t_first;
    atomic_uint_fast64_t bytes_done, bytes_read, bytes_cached, bytes_ahead;
    atomic_uint_fast64_t bytes_verified;
    atomic_uint_fast64_t n_asked, n_retries, n_waits, digest_ns;
    atomic_uint_fast64_t bytes_by_reader, n_reader_failed;
    atomic_uint_fast32_t groups_ready;
    atomic_bool uses_uring, uses_direct;
    uint64_t bytes_needed;
};

/* One read of a request: aligned where it is direct. */
typedef struct moec_engine_read {
    uint64_t off;
    unsigned char *to;
    uint32_t len;
} moec_engine_read;

/* FREE -> READS (the kernel has it) -> CAME (to be copied) -> FREE, or DRAINS
 * while a sink's copies still read the slot. */
enum { MOEC_OP_FREE, MOEC_OP_READS, MOEC_OP_CAME, MOEC_OP_DRAINS };

/* A request on its way, and its slot of the ring. */
typedef struct moec_engine_op {
    const moec_request *r;
    unsigned char *slot;
    moec_engine_read reads[3]; /* head, middle, tail */
    uint32_t n_reads, n_pending;
    int state;
    bool in_place;
    bool registered;
    bool bad;      /* a read of it failed */
    uint64_t came; /* which in the order of coming */
    uint64_t ticket;
} moec_engine_op;

typedef struct moec_engine_worker {
    moec_engine *e;
    uint32_t number;
    pthread_t thread;
    moec_uring uring;
    moec_engine_op *ops; /* n_slots with one each, then n_places */
    uint32_t n_reading;  /* of all; of them into slots: */
    uint32_t n_reading_slots;
    const moec_request *held; /* taken, no room yet */
    uint64_t n_came;          /* so far: numbers them */
    uint32_t n_waiting;       /* of them, to be copied */
    uint64_t bounce_ticket;   /* of the slot behind the ops', with a sink */
    moec_error err;
} moec_engine_worker;

double moec_engine_now(void);

/* engine_pieces.c */
static inline int moec_engine_order(uint64_t a, uint64_t b)
{
    return a < b ? -1 : a > b;
}
/* Fill e->pieces, sorted, and e->bytes_needed. */
moec_status moec_engine_take_pieces(moec_engine *e, const moec_piece *pieces,
                                    size_t n, moec_error *err);
/* The same bytes of the same file in the same order? */
bool moec_engine_same_source(const moec_engine_piece *a,
                             const moec_engine_piece *b);
/* Does g want nothing that `before`, which has the same source, does not? */
bool moec_engine_same_wanted(const moec_engine_piece *before,
                             const moec_engine_piece *g);

/* engine_plan.c: fill pieces, requests, parts and what needs them. */
moec_status moec_engine_make_plan(moec_engine *e, const moec_piece *pieces,
                                  size_t n, moec_error *err);

/* engine_files.c */
moec_status moec_engine_open_files(moec_engine *e, moec_error *err);
void moec_engine_close_files(moec_engine *e);
moec_status moec_engine_check_file(const moec_engine *e, uint32_t file,
                                   moec_error *err);
/* Read through the cache, all of it. */
moec_status moec_engine_read_plain(moec_engine *e, uint32_t file, uint64_t off,
                                   void *to, size_t n, moec_error *err);

/* engine_cached.c: all of a request, into its places. */
moec_status moec_engine_read_cached(moec_engine_worker *w, moec_engine_op *op);

/* engine_read.c: the first request of a group, and the thread's work. */
size_t moec_engine_first_request(const moec_engine *e, uint32_t group);
void moec_engine_work(moec_engine_worker *w);

/* engine_reader.c */
/* Let the sink's reader bring a request: true where it has an end, *st_out. */
bool moec_engine_offer(moec_engine_worker *w, moec_engine_op *op,
                       moec_status *st_out);
/* All requests of the group are in place: check what a reader brought. */
moec_status moec_engine_prove(moec_engine_worker *w, uint32_t group);

/* engine_check.c */
/* Enqueue a rectangle of adjacent rows, out of the slot or a destination. */
moec_status moec_engine_sink_copy(moec_engine_worker *w, moec_engine_op *op,
                                  unsigned char *dst, const moec_grid *g,
                                  const unsigned char *src);
moec_status moec_engine_wrong_leaf(moec_engine_worker *w, const moec_part *p,
                                   uint64_t leaf, bool sha256,
                                   const void *expected, const void *found);
/* Where the bytes of a part go, if they are adjacent there; or NULL. */
unsigned char *moec_engine_place(const moec_engine *e, const moec_part *p);
/* How many of the bytes [from, to) of a hull are its piece's. */
uint64_t moec_engine_of_hull(const moec_engine_piece *g, uint64_t from,
                             uint64_t to);
/* Check `n` bytes from byte `at` of the part against the piece's leaves. */
moec_status moec_engine_check(moec_engine_worker *w, const moec_part *p,
                              uint64_t at, const unsigned char *data,
                              uint64_t n);
/* Digests of `n` leaves from `leaf` on of the part's piece. */
moec_status moec_engine_compare(moec_engine_worker *w, const moec_part *p,
                                uint64_t leaf, const moec_sha256 *found,
                                size_t n);
/* All bytes of the request stand at `data`: check and copy each part,
 * or have it visited. */
moec_status moec_engine_place_all(moec_engine_worker *w, moec_engine_op *op,
                                  unsigned char *data);
/* The first of equal parts is in its place: check it, and copy the others. */
moec_status moec_engine_settle(moec_engine_worker *w, const moec_request *r,
                               bool check);

#endif
