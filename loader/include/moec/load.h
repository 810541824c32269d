/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_LOAD_H
#define MOEC_LOAD_H

/*
 * What this is: what a server calls at start-up: one rank of a plan goes from
 *   a checkpoint (Hugging Face form, a conversion, a caller's source) into the
 *   caller's tensors, layer by layer, checked, in bounded memory.
 * Lifetime: a job borrows plan, conversion and sink until destroy, and memory
 *   that it was given until the end of what uses it; a signature is looked at
 *   in create only. It owns no destination: what the memory callback gave is
 *   the caller's to free, after destroy.
 * Threads: create, place, start, wait and destroy one thread at a time; poll
 *   and cancel from any thread while the job lives; callbacks come from the
 *   job's threads, one at a time, but for `progress`. No thread before start
 *   and none left after wait. A job must not be carried over a fork: in
 *   the child what places, starts, waits or reads is ARG, poll says FAILED,
 *   destroy frees what it can.
 * Errors: ARG, NOMEM (also: the cap is too small; the text says how much it
 *   takes), IO, FORMAT (I13: a file changed; H17: it ended), MAPPING (the plan
 *   is not proved, or does not fit the conversion), INTEGRITY (a digest; the
 *   text names file, tensor, slot and leaf), UNSUPPORTED, CANCELLED, or what a
 *   callback returned. After a failure the destination is undefined, but for
 *   layers that were ready.
 *
 * In order:
 *   moec_job_create      sizes are known now: moec_job_slot_tensor
 *   moec_job_place_...   the caller's tensors; the rest goes into one arena
 *   moec_job_start       allocates, starts, returns
 *   moec_job_wait        the result of the whole
 */

#include <moec/error.h>
#include <moec/loader.h>
#include <moec/mapping.h>
#include <moec/sign.h>
#include <moec/types.h>
#include <moec/validate.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moec_job moec_job;

/* ------------------------------------------------------------- memory */

typedef enum moec_memory_kind {
    MOEC_MEMORY_HOST = 0,
    MOEC_MEMORY_PINNED = 1,
    MOEC_MEMORY_DEVICE = 2
} moec_memory_kind;

#define MOEC_NUMA_ANY (-1)

typedef struct moec_memory_request {
    uint32_t struct_bytes; /* set by the library */
    moec_memory_kind kind;
    uint64_t bytes;
    uint64_t alignment; /* a power of two */
    int32_t numa_node;  /* or MOEC_NUMA_ANY */
    uint32_t layer;     /* planned layer, or MOEC_NO_LAYER: all of it */
} moec_memory_request;

/* Give memory: the caller's, now and later. */
typedef moec_status (*moec_memory_fn)(void *ctx,
                                      const moec_memory_request *want,
                                      void **out, moec_error *err);

/* Where the rows of one slot tensor go. A slot is a matrix, for w13 of two
 * halves (gate and up) that stand one behind the other, rows (MATRIX) or
 * columns (AWQ, GPTQ) of it. Strides are bytes; 0 stands for the dense one. */
typedef struct moec_slot_dst {
    void *data;           /* row 0 */
    uint64_t slot_stride; /* from slot to slot */
    uint64_t row_stride;  /* from row to row of the slot's matrix: padding */
    uint64_t half_stride; /* from the first half of w13 to the second */
    uint64_t n_slots;     /* the first rows alone, of a server without room for
                             shared slots, which stand last; 0: all */
} moec_slot_dst;

/* Where a source tensor goes that is no routed expert's: as a matrix of
 * shape[0] rows (1 row where it has fewer than two dimensions), or a view of
 * it: rows and columns (elements) [first, first + n). n 0: to the end. */
typedef struct moec_tensor_dst {
    void *data;
    uint64_t row_stride; /* bytes; 0: dense */
    uint64_t row_first, n_rows;
    uint64_t col_first, n_cols;
} moec_tensor_dst;

typedef struct moec_load_region {
    void *base;
    uint64_t bytes;
} moec_load_region;

/* A sink's own way from files to the destination (GPUDirect Storage), past the
 * host's memory. What it does not bring, or fails to, comes by the ring; a
 * failure of `digest` ends the job. A job that verifies digests what came this
 * way where it stands, before its layer is ready; without `digest` such a job
 * reads by the ring alone. All but `regions` come from several threads at
 * once. */
typedef struct moec_load_reader {
    uint32_t struct_bytes; /* sizeof(moec_load_reader) */
    uint32_t always;       /* 1: also what is in the page cache */
    void *ctx;
    /* The job's destinations, before anything is read: to be registered. n 0:
     * the job is being destroyed. May be NULL. */
    void (*regions)(void *ctx, const moec_load_region *v, size_t n);
    /* A file by a descriptor for direct reads, which outlives it. */
    moec_status (*open)(void *ctx, int fd, void **out, moec_error *err);
    void (*close)(void *ctx, void *file);
    /* Read; `off`, `bytes` and where they go are multiples of 4096. */
    moec_status (*read)(void *ctx, void *file, uint64_t off, void *dst,
                        uint64_t bytes, uint64_t *got_out, moec_error *err);
    /* Digests of n stretches of the destination, once all copies are done that
     * were enqueued: 16 bytes of XXH3-128 in its canonical form, or with
     * `sha256` 32, one behind the other. */
    moec_status (*digest)(void *ctx, int sha256, const void *const *data,
                          const uint64_t *bytes, size_t n, uint8_t *out,
                          moec_error *err);
} moec_load_reader;
#define MOEC_LOAD_READER_INIT                                                  \
  {                                                                            \
    .struct_bytes = sizeof(moec_load_reader)                                   \
  }

/* Where pieces go that are not in host memory: the job's ring is then the
 * sink's (pinned) memory of `ring_bytes` of the options, and every stretch is
 * copied from there by the sink. */
typedef struct moec_load_sink {
    uint32_t struct_bytes;  /* sizeof(moec_load_sink) */
    uint32_t copies_within; /* 1: `src` of copy may be a destination too, as
                               moec_job_follow wants it */
    void *ctx;
    void *ring; /* 4096-aligned, ring_bytes of the options */
    /* Enqueue a 2-D copy out of the ring: `rows` of `row_bytes`. *ticket_out
     * is not 0 and grows from call to call. One thread at a time. */
    moec_status (*copy)(void *ctx, void *dst, uint64_t dst_row, const void *src,
                        uint64_t src_row, uint64_t row_bytes, uint64_t rows,
                        uint64_t *ticket_out, moec_error *err);
    /* Is all up to `ticket` done? *done_out 0 or 1; with `block`, wait. */
    moec_status (*poll)(void *ctx, uint64_t ticket, int block, int *done_out,
                        moec_error *err);
    const moec_load_reader *reader; /* NULL: everything comes by the ring */
} moec_load_sink;
#define MOEC_LOAD_SINK_INIT                                                    \
  {                                                                            \
    .struct_bytes = sizeof(moec_load_sink)                                     \
  }

/* ------------------------------------------------------------ options */

typedef enum moec_load_verify {
    MOEC_LOAD_VERIFY_DEFAULT = 0, /* XXH3 of a conversion, else NONE: a
                                     published checkpoint has digests of whole
                                     files, not of ranges */
    MOEC_LOAD_VERIFY_NONE = 1,
    MOEC_LOAD_VERIFY_XXH3 = 2,  /* corruption */
    MOEC_LOAD_VERIFY_SHA256 = 3 /* hostile storage; behind a signature */
} moec_load_verify;

typedef struct moec_job_opts {
    uint32_t struct_bytes; /* sizeof(moec_job_opts) */
    uint32_t n_threads;    /* 0: one a CPU of the cpuset, at most 8; where
                              reads block a thread, twice that and 8 at least */
    uint64_t ring_bytes;   /* buffers; 0: 64 MiB */
    uint64_t memory_bytes; /* cap on all that the job allocates beside the
                              destination; 0: none */
    moec_load_verify verify;
    /* Tensor parallelism inside experts: rank t of T has rows t of T of each
     * half of w13 and columns t of T of w2, scales by their blocks. What has
     * no such axis (scalars, records, a bias of w2) is whole on every rank.
     * 0 and 1: all of it. UNSUPPORTED where a block would be cut. */
    uint32_t tp_rank, tp_size;
    /* Planned layers to load, in the order in which they become ready; NULL:
     * all, in the plan's order. */
    const uint32_t *layers;
    size_t n_layers;
    uint8_t no_direct;    /* never O_DIRECT */
    uint8_t no_uring;     /* never io_uring */
    uint8_t common_last;  /* source tensors behind all layers, not before */
    uint8_t layer_arenas; /* one request of memory a layer, not one in all */
    uint8_t common_arena; /* all common tensors go into the arena */
    uint8_t reserved0[3];
    /* Common tensors once for all processes of a node: descriptor of a memfd
     * that they share, of moec_job_common_bytes or empty. Process `local_rank`
     * of `local_size` (at most 500) reads its part of the bytes and waits for
     * the others. It serves one load. 0: not shared. */
    uint32_t local_rank, local_size;
    int common_fd;
    uint32_t peer_seconds; /* to wait for the others; 0: 600. A peer that died
                              or failed is noticed at once */
    /* Memory for what was not placed. NULL: everything must be placed. */
    moec_memory_fn memory;
    moec_memory_kind memory_kind;
    int32_t numa_node;
    const moec_load_sink *sink; /* NULL: destinations are host memory */
    /* All bytes of a planned layer, or of the source tensors (MOEC_NO_LAYER),
     * are in place and checked. Once each, in order. With a sink, `ticket` is
     * that of the last copy. */
    moec_status (*ready)(void *ctx, uint32_t layer, uint64_t ticket,
                         moec_error *err);
    /* Bytes done and in all, now and then, from the thread that waits; non-zero
     * cancels. */
    moec_progress_fn progress;
    void *ctx; /* of memory, ready and progress */
    /* The conversion must be signed, and by this: its manifest.json is compared
     * with what was signed, and leaves are verified by SHA-256, whatever
     * `verify` says. INTEGRITY where it is not. NULL: not asked. */
    const moec_signature *signature;
} moec_job_opts;
#define MOEC_JOB_OPTS_INIT                                                     \
  {                                                                            \
    .struct_bytes = sizeof(moec_job_opts), .common_fd = -1,                    \
    .numa_node = MOEC_NUMA_ANY                                                 \
  }

/* ---------------------------------------------------------------- job */

/* Make a job that loads rank `rank` of `plan`. Bytes come from the plan's
 * checkpoint, or with `conversion` from that directory's files: `plan` is then
 * NULL (the conversion's own, with rows for shared experts that it keeps in a
 * file of their own: moec_job_plan), or any other plan over the conversion's
 * model with the same w13 order and no other treatment of shared experts:
 * another world out of an expert store. The plan is proved (T1, T2, T4, T5):
 * MAPPING where it is not. */
MOEC_API moec_status moec_job_create(moec_job **out, const moec_plan *plan,
                                     const moec_conversion *conversion,
                                     uint32_t rank, const moec_job_opts *opts,
                                     moec_error *err);
/* Cancel, wait, free. NULL is fine. */
MOEC_API void moec_job_destroy(moec_job *job);

/* The plan that is loaded. */
MOEC_API const moec_plan *moec_job_plan(const moec_job *job);

/* Slot tensor `t` of planned layer `layer` as this job loads it: the plan's,
 * its shape and slot_bytes cut by tp. ARG where there is none. */
MOEC_API moec_status moec_job_slot_tensor(const moec_job *job, size_t layer,
                                          size_t t, moec_slot_tensor *out,
                                          moec_error *err);
/* Matrix of one slot of it: rows and columns (bytes) of one half, and how many
 * halves. With `half_in_columns` they stand side by side in each row. */
typedef struct moec_slot_shape {
    uint64_t n_rows, row_bytes;
    uint32_t n_halves;
    uint32_t half_in_columns;
} moec_slot_shape;
MOEC_API moec_status moec_job_slot_shape(const moec_job *job, size_t layer,
                                         size_t t, moec_slot_shape *out,
                                         moec_error *err);

/* Say where slot tensor `t` of planned layer `layer` goes. `dst` with data
 * NULL: it is not loaded. ARG after start. */
MOEC_API moec_status moec_job_place_slots(moec_job *job, size_t layer, size_t t,
                                          const moec_slot_dst *dst,
                                          moec_error *err);

/* Ask for source tensor `tensor` of the plan's checkpoint: a common one, or one
 * of a shared expert, which goes there whether or not it stands in slots too.
 * `dst` NULL: into the arena. ARG for a routed expert's; UNSUPPORTED where the
 * conversion does not hold its bytes (--no-mtp). */
MOEC_API moec_status moec_job_place_tensor(moec_job *job, size_t tensor,
                                           const moec_tensor_dst *dst,
                                           moec_error *err);

/* Bytes that the memory callback will be asked for: what is not placed. */
MOEC_API uint64_t moec_job_arena_bytes(const moec_job *job);
/* Bytes of the memfd that shares the common tensors. */
MOEC_API uint64_t moec_job_common_bytes(const moec_job *job);
/* Bytes that the job allocates itself at most, as it is placed now. Under a cap
 * of less it takes a smaller ring, if ring_bytes leaves it the choice. */
MOEC_API uint64_t moec_job_memory_bytes(const moec_job *job);

/* Allocate, start the threads, return. NOMEM under the cap starts nothing. */
MOEC_API moec_status moec_job_start(moec_job *job, moec_error *err);
/* Wait for the end; the result of the whole, again at each call. */
MOEC_API moec_status moec_job_wait(moec_job *job, moec_error *err);
/* Ask to stop: wait returns CANCELLED within 100 ms, unless a callback of the
 * caller holds it up. */
MOEC_API void moec_job_cancel(moec_job *job);

/* Row 0 of a slot tensor once the job was started; NULL where not loaded. */
MOEC_API void *moec_job_slots_data(const moec_job *job, size_t layer, size_t t);
/* Where a source tensor stands; NULL where it was not asked for. With a shared
 * memfd it is the job's mapping, which ends with the job. */
MOEC_API void *moec_job_tensor_data(const moec_job *job, size_t tensor);

typedef enum moec_job_state {
    MOEC_JOB_CREATED = 0,
    MOEC_JOB_RUNNING = 1,
    MOEC_JOB_DONE = 2,
    MOEC_JOB_FAILED = 3 /* cancelled too */
} moec_job_state;

/* Counted from the start; pollable while it runs. */
typedef struct moec_job_stats {
    uint32_t struct_bytes; /* set by the library */
    moec_job_state state;
    uint64_t bytes_needed; /* of all pieces; replicas of a rank once */
    uint64_t bytes_done; /* in place and checked; of a sink's reader: in place,
                                and checked before their layer is ready */
    uint64_t bytes_read; /* asked of files, with gaps and alignment */
    uint64_t bytes_cached;   /* of them, from the page cache */
    uint64_t bytes_verified; /* with a leaf's digest */
    uint64_t n_requests, n_retries, n_ring_waits;
    uint32_t n_layers, n_layers_ready;
    uint8_t uses_uring, uses_direct;
    uint8_t reserved[6];
    double seconds;           /* from start to the end, or to now */
    double seconds_plan;      /* pieces made of the plan, memory asked for */
    double seconds_open;      /* threads, files, rings */
    double seconds_first;     /* until the first layer was ready; 0: not yet */
    double seconds_digest;    /* of all threads together */
    double seconds_peers;     /* waited for other processes */
    uint64_t bytes_by_reader; /* of bytes_read: by the sink's own reader */
    uint64_t n_reader_failed; /* requests that the ring brought after all */
} moec_job_stats;
MOEC_API void moec_job_poll(const moec_job *job, moec_job_stats *out);

/* ------------------------------------------------------- one expert */

/* The end of a read: `status` and, where it failed, why. From the job's
 * thread. */
typedef void (*moec_expert_fn)(void *ctx, uint64_t ticket, moec_status status,
                               const moec_error *why);

/* Read logical expert `expert` of planned layer `layer` into local row `row`
 * of all slot tensors of that layer, whatever the placement says, and return
 * at once. Of several reads that wait the highest `priority` is next, then the
 * oldest. `done` is called once for each read that was taken, CANCELLED where
 * cancel or destroy came first. For servers that swap experts: a job that was
 * not started (then memory is asked for here), or is done. ARG otherwise. */
MOEC_API moec_status moec_job_read_expert(moec_job *job, size_t layer,
                                          uint32_t expert, uint32_t row,
                                          int priority, moec_expert_fn done,
                                          void *ctx, uint64_t *ticket_out,
                                          moec_error *err);

/* ------------------------------------------------------- re-placement */

/* What the library cannot do of a re-placement. Called from the job's thread,
 * one at a time. */
typedef struct moec_diff_hooks {
    uint32_t struct_bytes; /* sizeof(moec_diff_hooks) */
    uint32_t reserved;
    void *ctx;
    /* PEER: bring the other rank's row into ours: rows[t] is where it goes in
     * slot tensor `t` of the layer, with the strides that it was placed with;
     * NULL where the move is not about `t`. */
    moec_status (*peer)(void *ctx, const moec_diff_move *move,
                        void *const *rows, moec_error *err);
    /* HOST: where `unit` stands in host memory for slot tensor `t`, dense, of
     * moec_job_slot_tensor's slot_bytes. */
    moec_status (*host)(void *ctx, size_t layer, size_t t, uint32_t unit,
                        const void **out, moec_error *err);
    /* A later round of a layer begins: return once all ranks have ended the one
     * before. NULL: nobody waits. Each rank asks for its own rounds alone, and
     * some have fewer: a barrier of all ranks would never open. Say to the
     * others how far this one is, and after wait that it is through. */
    moec_status (*round)(void *ctx, size_t layer, uint32_t round,
                         moec_error *err);
} moec_diff_hooks;
#define MOEC_DIFF_HOOKS_INIT                                                   \
  {                                                                            \
    .struct_bytes = sizeof(moec_diff_hooks)                                    \
  }

/* Make the job execute `diff` instead of a load: of moec_plan_diff from the
 * plan whose rows the placed tensors hold, to the job's plan and rank. All slot
 * tensors must be placed, for the rows of both plans. LOCAL, HOST and ZEROS
 * moves are made in their order, PEER ones handed over when those before them
 * are done, then all DISK ones are read at once; ready is called for each layer
 * when its are there. With a sink the memory callback is asked for the row that
 * cycles go through (moec_diff_sums.bounce_bytes is not 0). `diff` and `hooks`
 * (NULL where there are no PEER and HOST moves) are borrowed until wait. ARG
 * after start; UNSUPPORTED with a sink that does not copy within. */
MOEC_API moec_status moec_job_follow(moec_job *job, const moec_diff *diff,
                                     const moec_diff_hooks *hooks,
                                     moec_error *err);

/* ------------------------------------------------ questions of a server */

/* What a server was started with, to be compared with what is on disk. 0 (or
 * NULL) where it does not matter to the caller. */
typedef struct moec_layout_want {
    uint32_t struct_bytes; /* sizeof(moec_layout_want) */
    uint32_t n_ranks;      /* EP size */
    uint32_t n_redundant;  /* with has_redundant */
    uint32_t has_redundant;
    const char *family;    /* or model_type of config.json */
    uint32_t w13_order;    /* moec_w13_order + 1 */
    uint32_t shared_slots; /* slots of fused shared experts a rank, with
                               has_shared */
    uint32_t has_shared;
    uint32_t shared_global;        /* 1: numbered per rank, 2: once */
    const char *const *components; /* suffixes that the kernels take ("weight",
                                      "weight_scale_inv"); NULL: any */
    size_t n_components;
    const moec_placement *placement;
} moec_layout_want;
#define MOEC_LAYOUT_WANT_INIT                                                  \
  {                                                                            \
    .struct_bytes = sizeof(moec_layout_want)                                   \
  }

/* Compare, and refuse with the first difference as a sentence. MAPPING. */
MOEC_API moec_status moec_layout_check(const moec_plan *plan,
                                       const moec_layout_want *want,
                                       moec_error *err);
/* Compare two placements: MAPPING with layer, slot and both experts. */
MOEC_API moec_status moec_placement_check(const moec_placement *is,
                                          const moec_placement *want,
                                          moec_error *err);

#ifdef __cplusplus
}
#endif
#endif
