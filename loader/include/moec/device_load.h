/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_DEVICE_LOAD_H
#define MOEC_DEVICE_LOAD_H

/*
 * What this is: a load's destination on an accelerator: the pinned ring that
 *   files are read into, and the copies from there to the device, so that
 *   reads, digests and copies go on at the same time; and, where NVIDIA's
 *   cuFile and the file system can, files straight to the device, digested
 *   there.
 * Lifetime: a sink borrows device and stream until destroy, and must outlive
 *   the job that uses it.
 * Threads: a sink serves one job at a time; wait_on from any one thread while
 *   the job lives.
 * Errors: those of device.h, NOMEM.
 *
 *   moec_device_sink_create(&sink, device, &opts, err);
 *   job_opts.sink = moec_device_sink_load(sink);
 *   job_opts.ring_bytes = moec_device_sink_ring_bytes(sink);
 *   ... moec_job_place_slots with device pointers, start ...
 *   ready(layer, ticket): moec_device_sink_wait_on(sink, ticket, stream, err)
 *     and work that `stream` gets from now on sees the layer
 */

#include <moec/device.h>
#include <moec/load.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moec_device_sink moec_device_sink;

/* Files to the device past the host (GPUDirect Storage, libcufile.so.0). Only
 * pages go this way that stand in the file as they will in memory, at multiples
 * of 4096 on both sides: those of conversions do. All else, and whatever fails,
 * goes by the ring. cuFile is a library of the process that stays loaded: it
 * reads its own configuration and environment, keeps a log (cufile.log in the
 * current directory, unless configured) and may write to stderr. */
typedef enum moec_gds {
    MOEC_GDS_AUTO =
        0, /* where it reads past the host, and what is not cached */
    MOEC_GDS_OFF = 1,
    MOEC_GDS_ON = 2 /* whatever cuFile does; NO_DEVICE where it is not there */
} moec_gds;

typedef struct moec_device_sink_opts {
    uint32_t struct_bytes; /* sizeof(moec_device_sink_opts) */
    moec_gds gds;
    void *stream;        /* of the copies: cudaStream_t; best one of its own */
    uint64_t ring_bytes; /* pinned; 0: 512 MiB */
    const char *cufile;  /* path of libcufile; NULL: as the system finds it */
} moec_device_sink_opts;
#define MOEC_DEVICE_SINK_OPTS_INIT                                             \
  {                                                                            \
    .struct_bytes = sizeof(moec_device_sink_opts)                              \
  }

/* Pin the ring and make the events. `opts` may be NULL. */
MOEC_API moec_status moec_device_sink_create(moec_device_sink **out,
                                             moec_device *device,
                                             const moec_device_sink_opts *opts,
                                             moec_error *err);
/* Wait for copies under way and free. NULL is fine. */
MOEC_API void moec_device_sink_destroy(moec_device_sink *sink);

/* For moec_job_opts; borrowed. */
MOEC_API const moec_load_sink *
moec_device_sink_load(const moec_device_sink *sink);
MOEC_API uint64_t moec_device_sink_ring_bytes(const moec_device_sink *sink);

/* NULL where files may go straight to the device, else why they do not.
 * Borrowed. */
MOEC_API const char *moec_device_sink_no_gds(const moec_device_sink *sink);

/* Let work that `stream` gets from now on wait for all copies up to `ticket`:
 * no thread waits. */
MOEC_API moec_status moec_device_sink_wait_on(moec_device_sink *sink,
                                              uint64_t ticket, void *stream,
                                              moec_error *err);

#ifdef __cplusplus
}
#endif
#endif
