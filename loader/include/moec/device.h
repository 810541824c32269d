/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_DEVICE_H
#define MOEC_DEVICE_H

/*
 * What this is: the kernels of kernels.h on an accelerator. Built as a
 *   plug-in (libmoec_cuda.so) that is loaded at run time; without the plug-in,
 *   a driver or a device everything else works and open answers NO_DEVICE.
 * Lifetime: a moec_device borrows nothing; close frees it. It creates no
 *   stream, allocates nothing behind the caller but what moec_device_alloc
 *   gives, and leaves the current device as it was.
 * Threads: immutable once open: share freely; work on one stream is the
 *   caller's to order.
 * Errors: NO_DEVICE (no plug-in, driver or device; the text says which), ARG,
 *   UNSUPPORTED, NOMEM, and INTERNAL with the device's own text. A fault on
 *   the device shows at the caller's next synchronisation.
 *
 * Every call of a kernel enqueues work on the caller's stream and returns: no
 * synchronisation, no allocation, no decision on the host, so that all of it
 * can be captured in a graph. Structs are those of kernels.h with DEVICE
 * pointers in them; the structs themselves are read during the call. Ids are
 * those of the scalar CPU back end bit for bit, weights within 2 ulp.
 */

#include <moec/error.h>
#include <moec/kernels.h>
#include <moec/types.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moec_device moec_device;

typedef struct moec_device_opts {
    uint32_t struct_bytes; /* sizeof(moec_device_opts) */
    uint32_t ordinal;      /* which device, as the CUDA runtime counts */
    const char *plugin;    /* path of the plug-in; NULL: beside the library,
                              then the installed place */
} moec_device_opts;
#define MOEC_DEVICE_OPTS_INIT                                                  \
  {                                                                            \
    sizeof(moec_device_opts), 0, NULL                                          \
  }

/* Load the plug-in and look at the device. `opts` may be NULL. */
MOEC_API moec_status moec_device_open(moec_device **out,
                                      const moec_device_opts *opts,
                                      moec_error *err);
/* Close; NULL is fine. Nothing of the device may be in use. */
MOEC_API void moec_device_close(moec_device *device);
/* "NVIDIA H200, compute capability 9.0, 132 multiprocessors". Borrowed. */
MOEC_API const char *moec_device_name(const moec_device *device);

/* Where and when a call works. */
typedef struct moec_launch {
    uint32_t struct_bytes;   /* sizeof(moec_launch) */
    void *stream;            /* cudaStream_t; NULL: the default stream */
    const uint32_t *n_valid; /* on the device: real rows, read when the work
                                runs, so that a captured graph serves any
                                number; NULL: the host's n_valid */
    void *workspace;         /* on the device, 256-byte aligned */
    uint64_t workspace_bytes;
} moec_launch;
#define MOEC_LAUNCH_INIT                                                       \
  {                                                                            \
    .struct_bytes = sizeof(moec_launch)                                        \
  }

/* Memory and streams, for callers without CUDA of their own (the command
 * line, tests). Copies are ordered on `stream` and return when done. */
MOEC_API moec_status moec_device_alloc(moec_device *d, void **out,
                                       uint64_t bytes, moec_error *err);
MOEC_API void moec_device_free(moec_device *d, void *p);
MOEC_API moec_status moec_device_upload(moec_device *d, void *to,
                                        const void *from, uint64_t bytes,
                                        void *stream, moec_error *err);
MOEC_API moec_status moec_device_download(moec_device *d, void *to,
                                          const void *from, uint64_t bytes,
                                          void *stream, moec_error *err);
/* Wait for a stream and tell what failed on it. */
MOEC_API moec_status moec_device_wait(moec_device *d, void *stream,
                                      moec_error *err);

/* Pinned host memory: what copies run from at the speed of the link. */
MOEC_API moec_status moec_device_alloc_host(moec_device *d, void **out,
                                            uint64_t bytes, moec_error *err);
MOEC_API void moec_device_free_host(moec_device *d, void *p);
/* Enqueue `rows` of `row_bytes` from pinned memory, or from the device, to the
 * device and return; strides in bytes. What is copied must stay until the copy
 * is done. */
MOEC_API moec_status moec_device_copy_rows(moec_device *d, void *to,
                                           uint64_t to_stride, const void *from,
                                           uint64_t from_stride,
                                           uint64_t row_bytes, uint64_t rows,
                                           void *stream, moec_error *err);
/* Events without timing: cudaEvent_t. */
MOEC_API moec_status moec_device_event_create(moec_device *d, void **out,
                                              moec_error *err);
MOEC_API void moec_device_event_destroy(moec_device *d, void *event);
MOEC_API moec_status moec_device_event_record(moec_device *d, void *event,
                                              void *stream, moec_error *err);
/* Is all done that stood before the event when it was recorded? With `block`,
 * wait for that. */
MOEC_API moec_status moec_device_event_done(moec_device *d, void *event,
                                            int block, int *done_out,
                                            moec_error *err);
/* Let work that `stream` gets from now on wait for the event. */
MOEC_API moec_status moec_device_stream_wait(moec_device *d, void *stream,
                                             void *event, moec_error *err);

/* Workspace of the next two for T tokens. `map` may be NULL for a plain
 * choice. */
MOEC_API uint64_t moec_device_route_workspace_bytes(
    const moec_device *d, const moec_router *router,
    const moec_dispatch_map *map, uint32_t n_tokens);
/* moec_route. The router may be of any CPU back end: only its configuration
 * is used. in->ec_state and out->ec are on the device. */
MOEC_API moec_status moec_device_route(
    moec_device *d, const moec_router *router, const moec_route_in *in,
    const moec_route_out *out, const moec_launch *launch, moec_error *err);
/* moec_route_dispatch. Where the choice is plain one kernel does it all; counts
 * of more than 8 rows take a node before it, which zeroes them, waterfill
 * STATIC one behind it.
 * What the CPU refuses when it meets it (an id that is no column, a token not
 * below vocab, an expert without a slot) is left out: id or slot -1. Loads of
 * waterfill DYNAMIC that the CPU refuses keep all rows at home. */
MOEC_API moec_status moec_device_route_dispatch(
    moec_device *d, const moec_router *router, const moec_route_in *in,
    const moec_dispatch_map *map, const moec_waterfill *waterfill,
    const moec_route_out *out, const moec_dispatch_out *dispatch,
    const moec_launch *launch, moec_error *err);
/* moec_dispatch, for a custom router. */
MOEC_API uint64_t moec_device_dispatch_workspace_bytes(
    const moec_device *d, const moec_dispatch_map *map, uint32_t n_tokens);
MOEC_API moec_status moec_device_dispatch(
    moec_device *d, const moec_dispatch_map *map,
    const moec_waterfill *waterfill, const int32_t *ids, const float *weights,
    uint32_t n_tokens, uint32_t n_valid, uint32_t top_k,
    const moec_dispatch_out *out, const moec_launch *launch, moec_error *err);

/* moec_align; n_padded_out and slot_first are on the device too. */
MOEC_API uint64_t moec_device_align_workspace_bytes(const moec_device *d,
                                                    uint64_t n,
                                                    uint32_t n_slots);
typedef struct moec_align_out {
    uint32_t struct_bytes; /* sizeof(moec_align_out) */
    uint32_t *sorted;      /* [moec_align_capacity] */
    uint32_t *expert_ids;  /* [moec_align_capacity / block] */
    uint64_t *slot_first;  /* [n_slots + 1], or NULL */
    uint64_t *n_padded;    /* [1] */
} moec_align_out;
MOEC_API moec_status moec_device_align(moec_device *d, const int32_t *slots,
                                       uint64_t n, uint32_t first_slot,
                                       uint32_t n_slots, uint32_t block,
                                       const moec_align_out *out,
                                       const moec_launch *launch,
                                       moec_error *err);
/* moec_permute, over moec_align_capacity rows; *n_sorted is on the device. */
MOEC_API moec_status moec_device_permute(
    moec_device *d, const void *x, uint64_t row_bytes, const uint32_t *sorted,
    const uint64_t *n_sorted, uint64_t n_sorted_max, uint64_t n_columns,
    uint32_t n_cols, void *out, const moec_launch *launch, moec_error *err);
MOEC_API moec_status moec_device_combine(moec_device *d,
                                         const moec_combine_in *in, float *out,
                                         const moec_launch *launch,
                                         moec_error *err);
MOEC_API moec_status moec_device_cast(moec_device *d, const void *in,
                                      moec_dtype in_dtype, void *out,
                                      moec_dtype out_dtype, uint64_t n,
                                      const moec_launch *launch,
                                      moec_error *err);
/* moec_matmul: EXACT, the router's product. */
MOEC_API moec_status moec_device_matmul(moec_device *d, const moec_matrix *m,
                                        uint32_t index, const float *x,
                                        uint64_t x_stride, uint32_t n_tokens,
                                        float *out, uint64_t out_stride,
                                        const moec_launch *launch,
                                        moec_error *err);
/* moec_ffn, EXACT and FAST; in->sorted and in->slot_first are on the device,
 * n_columns_max bounds slot_first[n_rows]. */
MOEC_API uint64_t moec_device_ffn_workspace_bytes(const moec_device *d,
                                                  const moec_ffn_config *config,
                                                  uint64_t n_columns_max,
                                                  uint32_t n_rows);
MOEC_API moec_status moec_device_ffn(moec_device *d,
                                     const moec_ffn_config *config,
                                     const moec_ffn_in *in,
                                     uint64_t n_columns_max, float *y,
                                     const moec_launch *launch,
                                     moec_error *err);

#ifdef __cplusplus
}
#endif
#endif
