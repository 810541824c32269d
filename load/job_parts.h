/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_JOB_PARTS_H
#define MOEC_JOB_PARTS_H

/*
 * What this is: the inside of a moec_job, shared by the files of load/ and by
 *   nobody else: job.c (its life), job_place.c (where things go),
 *   job_pieces.c (what the engine gets), slow.c (what it cannot do),
 *   job_sink.c (host memory or a sink's), job_common.c (several processes),
 *   job_expert.c (one expert), job_follow.c (a re-placement).
 */

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include <moec/load.h>

#include "base/base.h"
#include "conversion.h"
#include "execute.h"
#include "load_pieces.h"
#include "requant.h"

/* What places are aligned to: as files are, so that direct reads can end
 * where they belong. */
#define MOEC_JOB_ALIGN        UINT64_C(4096)

#define MOEC_JOB_RING_BYTES   (UINT64_C(64) << 20)
#define MOEC_JOB_RING_MINIMUM (UINT64_C(4) << 20)
/* What the engine keeps for a piece, roughly: its own copy and a request. */
#define MOEC_JOB_PIECE_BYTES (sizeof(moec_piece) + 256)
/* Threads, where the caller does not say how many: no more CPUs than that. */
#define MOEC_JOB_THREADS 8u
/* One thread of slow.c: a leaf, what was made of it, the executor's scratch. */
#define MOEC_SLOW_BYTES (2 * (uint64_t)MOEC_LEAF_BYTES + MOEC_SCRATCH_BYTES_MAX)

#define MOEC_NO_GROUP   UINT32_MAX

/* Processes that share common tensors: their cells fill a page. */
#define MOEC_LOCAL_SIZE_MAX 500u

/* Where one slot tensor goes. */
typedef struct moec_job_slots {
    moec_window w;
    uint64_t slot_stride, extent; /* bytes; of one slot, gaps included */
    uint64_t n_slots;             /* rows that are loaded */
    unsigned char *data;          /* row 0 */
    uint64_t arena_off;
    bool skipped, placed; /* neither: in the arena */
} moec_job_slots;

typedef struct moec_job_layer {
    uint32_t group; /* MOEC_NO_GROUP: not loaded */
    bool ready;
    size_t n;
    moec_job_slots *slots;
} moec_job_layer;

/* A source tensor that was asked for. */
typedef struct moec_job_tensor {
    size_t tensor;
    moec_tensor_window w;
    unsigned char *data;
    uint64_t arena_off; /* of the arena, or of the shared memfd */
    bool placed;
} moec_job_tensor;

/* What a tag names. `t` is a slot tensor, or MOEC_NO_SLOTS: `layer` is the
 * index of a moec_job_tensor. */
#define MOEC_NO_SLOTS UINT32_MAX
typedef struct moec_job_tag {
    uint32_t layer, t, row, unit;
} moec_job_tag;

/* What the engine cannot do, by group. */
typedef struct moec_slow_block {
    uint32_t group;
    moec_job_tag what;
} moec_slow_block;

typedef struct moec_job_lists {
    moec_piece_list pieces;
    size_t n_tags, cap_tags;
    moec_job_tag *tags;
    size_t n_slow, cap_slow;
    moec_slow_block *slow;
} moec_job_lists;

struct moec_job {
    pid_t pid; /* that made it */
    moec_job_opts o;
    const moec_plan *plan;
    moec_plan *own_plan; /* choose_plan */
    const moec_ckpt *ckpt;
    const moec_converted *files; /* NULL: bytes come from the checkpoint */
    moec_loading ld;
    moec_requant *requant;
    moec_engine_verify verify;
    uint32_t *order; /* planned layers, n_order */
    uint32_t n_order;
    uint32_t n_groups, common_group;
    size_t n_layers;
    moec_job_layer *layers; /* by planned layer */
    size_t n_tensors, cap_tensors;
    moec_job_tensor *tensors; /* by index of the tensor once started */
    /* files */
    size_t n_files;
    moec_engine_file *file; /* fd -1: not open */
    char **paths;           /* of a conversion's */
    bool *looked_at;        /* of one behind a source: asked what they are */
    /* of the run */
    moec_job_lists lists;
    uint64_t ring_bytes;
    moec_engine *engine;
    moec_load_sink load_sink; /* what o.sink points to */
    moec_engine_sink sink;
    moec_engine_reader reader;
    size_t n_regions, cap_regions;
    moec_load_region *regions; /* for the sink's reader */
    bool has_regions;          /* it knows them */
    pthread_mutex_t sink_lock, file_lock;
    uint64_t last_ticket; /* of moec_job_copy; sink_lock */
    void *common_map;     /* shared memfd */
    bool common_entered;
    uint64_t common_map_bytes;
    pthread_t thread;
    bool has_thread;
    bool planned; /* start was called */
    atomic_bool cancelled;
    pthread_mutex_t lock; /* the following, while it runs */
    pthread_cond_t changed;
    moec_job_state state;
    moec_status status;
    moec_error error;
    uint32_t n_ready;
    double t_begin, t_planned, t_first, t_end, t_peers;
    atomic_uint_fast64_t slow_needed, slow_done, slow_read, slow_verified;
    struct moec_job_experts *expert; /* job_expert.c */
    const moec_diff *diff;           /* job_follow.c */
    moec_diff_hooks hooks;
    unsigned char *bounce; /* a row of all tensors of a layer; with a sink the
                              caller's */
};

/* ------------------------------------------------------------------ job.c */

double moec_job_now(void);
moec_job_state moec_job_state_of(moec_job *j);
/* ARG in a child of the process that made the job. */
moec_status moec_job_check_process(const moec_job *j, moec_error *err);
uint32_t moec_job_threads(const moec_job *j);
moec_status moec_job_spawn(pthread_t *out, void *(*fn)(void *), void *arg,
                           moec_error *err);
moec_status moec_job_end_thread(moec_job *j, moec_status st,
                                const moec_error *why);

/* ----------------------------------------------------------- job_follow.c */

/* The list of what is read from files. */
moec_status moec_job_list_diff(moec_job *j, moec_error *err);
/* Bytes of the row that cycles go through; 0: none do. */
uint64_t moec_job_bounce_bytes(const moec_job *j);
/* All moves of the diff but those from files. */
moec_status moec_job_make_moves(moec_job *j, moec_error *err);

/* ------------------------------------------------------------ job_place.c */

/* Choose ring_bytes under the cap, or refuse. */
moec_status moec_job_choose_ring(moec_job *j, moec_error *err);
/* Ask the memory callback. */
moec_status moec_job_ask(moec_job *j, uint64_t bytes, uint32_t layer,
                         unsigned char **out, moec_error *err);
/* Ask for memory: afterwards every slot tensor and source tensor that is
 * loaded has its data. */
moec_status moec_job_place_all(moec_job *j, moec_error *err);

/* ----------------------------------------------------------- job_pieces.c */

/* Fill j->lists with one row of one slot tensor, and once all are in, count
 * what slow.c will bring. */
moec_status moec_job_list_row(moec_job *j, moec_job_tag tag, uint32_t group,
                              moec_job_lists *l, moec_error *err);
void moec_job_count_slow(moec_job *j);
/* The source tensors that were asked for. */
moec_status moec_job_list_tensors(moec_job *j, moec_error *err);
/* By group, as slow.c wants them. */
void moec_job_sort_slow(moec_job_lists *l);
/* Fill j->lists for the whole job. */
moec_status moec_job_list(moec_job *j, moec_error *err);
/* The same for one unit into one row of a layer: job_expert.c. */
moec_status moec_job_list_unit(moec_job *j, size_t layer, uint32_t unit,
                               uint32_t row, moec_job_lists *out,
                               moec_error *err);
void moec_job_lists_fini(moec_job_lists *l);
/* Open the files that j->lists names. */
moec_status moec_job_open_files(moec_job *j, moec_error *err);
/* Open file `i` if it is not. */
moec_status moec_job_open_file(moec_job *j, size_t i, moec_error *err);
/* Fail with I13 where a file behind a caller's source is another one now. */
moec_status moec_job_look_again(const moec_job *j, moec_error *err);
void moec_job_close_files(moec_job *j);
/* moec_engine_opts.describe and read_at. */
void moec_job_describe(void *ctx, const moec_piece *piece, char *buf, size_t n);
moec_status moec_job_read_at(void *ctx, uint32_t file, uint64_t off, void *buf,
                             size_t n, moec_error *err);
void moec_job_say(const moec_job *j, const moec_job_tag *tag, char *buf,
                  size_t n);

/* ----------------------------------------------------------------- slow.c */

/* Do what the engine could not of `group`; *ticket grows with a sink. */
moec_status moec_slow_group(moec_job *j, uint32_t group, uint64_t *ticket,
                            moec_error *err);
moec_status moec_slow_blocks(moec_job *j, const moec_slow_block *blocks,
                             size_t n, uint64_t *ticket, moec_error *err);

/* ------------------------------------------------------------- job_sink.c */

/* Take the caller's sink. ARG where it is none. */
moec_status moec_job_take_sink(moec_job *j, moec_error *err);
/* A leaf's bytes of the sink's ring that engines leave to slow.c, or NULL. */
unsigned char *moec_job_slow_ring(const moec_job *j);
/* Tell the sink's reader where bytes will go, what was asked for and what was
 * placed, and that no more will. */
moec_status moec_job_add_region(moec_job *j, void *base, uint64_t bytes,
                                moec_error *err);
moec_status moec_job_tell_regions(moec_job *j, moec_error *err);
void moec_job_leave_sink(moec_job *j);
/* What all engines of the job have in common. */
moec_engine_opts moec_job_engine_opts(moec_job *j);
/* Copy rows into the destination: at once, or by the sink, in order; `src` is
 * host memory or of the sink's ring, or another destination. */
moec_status moec_job_copy(moec_job *j, void *dst, uint64_t dst_row,
                          const void *src, uint64_t src_row, uint64_t row_bytes,
                          uint64_t rows, moec_error *err);
/* Wait for all of these copies. */
moec_status moec_job_settle(moec_job *j, moec_error *err);

/* ----------------------------------------------------------- job_common.c */

/* Map the memfd, take the place of local_rank in it. */
moec_status moec_job_common_map(moec_job *j, moec_error *err);
/* Our part is there: wait for those of the others. */
moec_status moec_job_common_join(moec_job *j, moec_error *err);
/* Tell the others, if they wait for us. */
void moec_job_common_failed(moec_job *j);
/* Bytes [*from, *to) of a tensor that this process reads into the memfd. */
void moec_job_common_share(const moec_job *j, const moec_job_tensor *t,
                           uint64_t *from, uint64_t *to);

/* ----------------------------------------------------------- job_expert.c */

/* Stop the read under way and drop those that wait. */
void moec_job_expert_cancel(moec_job *j);
/* The same, and end the thread. */
void moec_job_expert_end(moec_job *j);

#endif
